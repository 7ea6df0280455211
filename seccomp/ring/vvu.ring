# The virtio-vhost-user transport: a PCI function of our own virtual machine, by VFIO. A part: never
# loaded by itself.
#
# It adds no operation of its own: kicks and interrupts are eventfds that are polled as all others,
# and no message crosses a socket, so nothing is accepted here.
