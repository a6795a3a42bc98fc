# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# A disk comes, goes, and comes back with its data.
check "no disk at first" disk_absent vda
host plug
check "the disk comes" wait_until 20 disk_present vda
disk_identity vda "$BYTES" "$SERIAL" "$(nproc)"
write_and_read vda 5
dd status=none if=/dev/vda of=/tmp/before bs=1M skip=5 count=4

host unplug
check "the disk goes" wait_until 20 disk_absent vda

host plug
check "the disk comes back" wait_until 20 disk_present vda
dd status=none if=/dev/vda of=/tmp/after bs=1M skip=5 count=4
check "its data are as before" cmp /tmp/before /tmp/after
