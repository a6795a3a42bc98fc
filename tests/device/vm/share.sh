# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# A share whose device comes from another house: a file of the host's, and files of the guest's.
share_mount stranger /mnt
equal "the host's file" "$(cat /mnt/greeting)" "from the host"
dd status=none if=/dev/urandom of=/mnt/random bs=1M count=4
check "a copy" cp /mnt/random /mnt/copy
sync
check "umount" umount /mnt
share_mount stranger /mnt
check "the copy, read again" cmp /mnt/random /mnt/copy
mkdir /mnt/dir
for name in $(seq 100); do
    echo "$name" >"/mnt/dir/$name"
done
equal "files" "$(ls /mnt/dir | wc -l)" 100
check "rm" rm -r /mnt/dir
check "umount" umount /mnt
