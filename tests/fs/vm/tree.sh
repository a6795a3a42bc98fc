# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# What a developer does in a share, beside a disk; then the share is left and mounted anew.
check "mkfs.ext4" mkfs.ext4 -q -F /dev/vda
mkdir /tmp/disk
check "mount the disk" mount -t ext4 /dev/vda /tmp/disk
share_mount "$TAG" /mnt
cd /mnt || fail "cd /mnt"
equal "the host's file" "$(cat greeting)" "$GREETING"

source_tree source.tar tree
edit_tree tree
host look
same_tree tree

equal "lines grep finds" "$(grep -rn 'pub fn' tree/common | wc -l)" "$(cat lines)"
equal "the last of a large file" "$(tail -c 5 large)" "last"
dd status=none if=/dev/urandom of=random bs=1M count=8
equal "digest of 8 MiB by guest and host" "$(sha256sum <random)" "$(host hash_random && cat random.sha256)"

check "copy to the disk" cp -a tree /tmp/disk/
check "copy from the disk" cp -a /tmp/disk/tree copy
equal "digest of the copy" "$(cd copy && tree_digest)" "$(cat tree.digest)"
rm -rf copy
check "the copy is removed" [ ! -e copy ]
link_program build

# Each processor has its queue: with as many queues as processors, each is used.
requests() { awk -v queue="requests.$1\$" '$NF ~ queue { for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+$/) n += $i } END { print n + 0 }' /proc/interrupts; }
equal "request queues" "$(grep -c 'requests\.' /proc/interrupts)" "$QUEUES"
queue=0
while [ "$queue" -lt "$QUEUES" ]; do
    before=$(requests "$queue")
    for file in $(seq 1 20); do
        taskset -c "$queue" touch "by$queue.$file" || fail "processor $queue cannot make a file"
    done
    check "queue $queue is used by processor $queue" [ "$(requests "$queue")" -ge $((before + 20)) ]
    queue=$((queue + 1))
done

cd /tmp || fail "cd /tmp"
check "umount" umount /mnt
check "the share is away" [ ! -e /mnt/tree ]
share_mount "$TAG" /mnt
cd /mnt || fail "cd /mnt"
same_tree tree
check "the program still runs" sh -c 'build/program; [ $? = 132 ]'
cd /tmp || fail "cd /tmp"
check "umount again" umount /mnt
check "umount the disk" umount /tmp/disk
