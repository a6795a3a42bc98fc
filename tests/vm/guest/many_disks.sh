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

# A processor's requests go to its own queue: with as many queues as processors, each is used.
last=$(($(nproc) - 1))
for cpu in $(seq 0 $last); do
    taskset -c "$cpu" dd status=none if="/dev/$BUSIEST" of=/dev/null bs=64k skip="$cpu" count=1 iflag=direct ||
        fail "processor $cpu cannot read from $BUSIEST"
done
echo "ok: $BUSIEST read by processors 0 to $last"
