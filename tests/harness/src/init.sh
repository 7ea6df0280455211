#!/bin/busybox sh
# The first program of a test guest. With a /script it runs that on the second serial port and
# switches off; without, it gives a shell on the kernel's console.
if [ "$1" != moved ]; then
    # The initramfs cannot be a root that is pivoted from, and jails do so. The same files mounted
    # over it can.
    /bin/busybox mount --bind / /mnt
    cd /mnt
    /bin/busybox mount --move . /
    exec /bin/busybox chroot . /init moved
fi
cd /
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ TERM=linux
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /mnt /tmp
mount -t devpts devpts /dev/pts

while read -r module; do
    insmod "/modules/$module.ko" || echo "init: $module does not load"
done </modules/order

if [ -e /script ]; then
    exec </dev/ttyS1 >/dev/ttyS1 2>&1
    # Raw, or the line discipline would echo what the test sends and turn \n into \r\n.
    stty raw -echo
    echo "@@begin"
    sh /script
    echo "@@exit $?"
    # Changing modes waits until all output has gone out (tcsetattr(3), TCSADRAIN).
    stty raw -echo
else
    echo
    echo "A guest on vudev, kernel $(uname -r). 'exit' or Ctrl-D switches it off."
    export PS1='guest# '
    setsid cttyhack sh
fi
sync
poweroff -f
