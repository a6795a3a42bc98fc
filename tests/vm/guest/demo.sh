# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The demonstration: what a user expects of a disk, a network device and a share, in
# two boots.
digest() { sha256sum "$1" | cut -d' ' -f1; }

nic=$(nic "$MAC")
if [ "$BOOT" = 2 ]; then
    echo "--- after the reboot"
    nic_static "$nic" "$GUEST/24"
    check "ping" pings "$HOST"
    check "mount again" mount -t ext4 /dev/vda /mnt
    equal "digest of the file" "$(digest /mnt/keep)" "$(cat /mnt/keep.sha256)"
    share_mount "$TAG" /tmp/share
    cd /tmp/share || fail "cd /tmp/share"
    same_tree tree
    check "copy from the disk to the share" cp /mnt/keep keep
    equal "digest of the copy" "$(digest keep)" "$(cat /mnt/keep.sha256)"
    cd /tmp || fail "cd /tmp"
    check "umount the share" umount /tmp/share
    check "umount" umount /mnt
    check "fsck.ext4 finds no fault" fsck.ext4 -f -n /dev/vda
    exit 0
fi

echo "--- the network"
nic_dhcp "$nic"
equal "address by DHCP" "$(nic_address "$nic")" "$GUEST"
equal "queue pairs" "$(nic_queues "$nic")" "$QUEUES"
nic_offloads "$nic" tx-checksumming tcp-segmentation-offload generic-receive-offload
check "ping" pings "$HOST"
transfers "$nic" "$HOST" 64M
fetch "HTTP, SHA-256 of 32 MiB" "http://$HOST/file" "$FILE_SHA256"

echo "--- the disk"
disk_identity vda "$BYTES" "$SERIAL" "$QUEUES"
write_and_read vda 9
discard_zeroes vda 16

echo "--- a file system on it"
check "mkfs.ext4" mkfs.ext4 -q -F /dev/vda
check "mount" mount -t ext4 /dev/vda /mnt
dd status=none if=/dev/urandom of=/mnt/keep bs=1M count=8
digest /mnt/keep >/mnt/keep.sha256
echo "--- fio, $QUEUES jobs at depth 32, every block verified"
fio_verify /mnt -- --numjobs="$QUEUES" --size=16M --group_reporting
rm /mnt/fio.*
check "fstrim" fstrim -v /mnt

echo "--- a source tree in the share"
share_mount "$TAG" /tmp/share
cd /tmp/share || fail "cd /tmp/share"
source_tree source.tar tree
edit_tree tree
host look
same_tree tree
echo "ok: grep finds 'pub fn' in $(grep -rl 'pub fn' tree | wc -l) files"
link_program build
check "copy to the disk" cp -a tree /mnt/tree
equal "digest of the copy" "$(cd /mnt/tree && tree_digest)" "$(cat tree.digest)"
cd /tmp || fail "cd /tmp"
check "umount the share" umount /tmp/share
check "umount" umount /mnt
check "fsck.ext4 finds no fault" fsck.ext4 -f -n /dev/vda
reboot_guest
