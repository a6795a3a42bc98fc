# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Data survive a reboot by the guest and a reset by the machine.
echo "boot $BOOT"
disk_identity vda "$BYTES" "$SERIAL" "$(nproc)"
case $BOOT in
1)
    echo "written before the reboot" | dd status=none of=/dev/vda conv=fsync,notrunc
    reboot_guest
    ;;
2)
    equal "sector 0" "$(head -n 1 /dev/vda)" "written before the reboot"
    # The reset comes while requests are under way.
    dd status=none if=/dev/zero of=/dev/vda bs=64k seek=16 oflag=direct &
    host reset
    ;;
3)
    equal "sector 0" "$(head -n 1 /dev/vda)" "written before the reboot"
    write_and_read vda 9
    ;;
esac
