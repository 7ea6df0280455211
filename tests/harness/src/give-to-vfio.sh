#!/bin/sh
# Gives PCI functions of a device VM to VFIO, which loads what programs need to drive them:
#     give-to-vfio ADDRESS...
if [ ! -e /sys/module/vfio_pci ]; then
    while read -r module; do insmod "/modules/$module.ko" || exit 1; done </modules/device-vm
fi
for address; do
    function="/sys/bus/pci/devices/0000:$address"
    echo vfio-pci >"$function/driver_override" || exit 1
    # The kernel's own driver has taken it, for lack of another.
    [ ! -e "$function/driver" ] || echo "0000:$address" >"$function/driver/unbind"
    echo "0000:$address" >/sys/bus/pci/drivers_probe
done
