# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# DISKS: one "NAME BYTES SERIAL QUEUES" a line.
files=
while read -r disk bytes serial queues; do
    disk_identity "$disk" "$bytes" "$serial" "$queues"
    files="$files /dev/$disk"
done <<END
$DISKS
END
# shellcheck disable=SC2086
fio_verify $files
