#!/bin/busybox sh
# The first program of the emulated machine: its folders and devices, and then the suites.
export PATH=/bin HOME=/tmp TERM=linux

if [ -z "$COVERED" ]; then
    /bin/busybox --install -s /bin
    # Not all of setpriv(1) is in this one; the suites do without one that is not there.
    rm -f /bin/setpriv
    # The kernel lets nobody pivot_root(2) away from the mount that the initramfs is unpacked into.
    mount --bind / /new
    cd /new
    mount --move . /
    COVERED=1 exec chroot . /init
fi

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
chmod 1777 /tmp "$(cat /temporary)"
echo 'root:x:0:0::/tmp:/bin/sh' >/etc/passwd
echo 'nobody:x:65534:65534::/tmp:/bin/sh' >>/etc/passwd
ip link set lo up
unset COVERED

echo "@@kernel $(uname -srm)"
sh /suites.sh root
su -s /bin/sh nobody /suites.sh 'user 65534'
echo "@@end"
poweroff -f
