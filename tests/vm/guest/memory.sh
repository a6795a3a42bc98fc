# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Memory in several regions, and more of it plugged in while fio runs.
nodes() { ls -d /sys/devices/system/node/node[0-9]* | wc -l; }
memory_kib() { awk '/^MemTotal/ { print $2 }' /proc/meminfo; }
equal "NUMA nodes" "$(nodes)" "$NODES"
write_and_read vda 9

writes() { awk '{ print $5 }' /sys/block/vda/stat; }
before=$(memory_kib)
idle=$(writes)
(fio_verify /dev/vda -- --offset=64M --size=32M --time_based --runtime=8 --rate_iops=2000) &
busy() { [ "$(writes)" -gt $((idle + 500)) ]; }
check "fio writes" wait_until 30 busy
host plug_memory
grown() { [ "$(memory_kib)" -ge $((before + PLUGGED_MIB * 1024)) ]; }
check "memory grows by $PLUGGED_MIB MiB" wait_until 20 grown
check "fio was running all the time" kill -0 $!
# Linux takes pages from the plugged memory (zone Normal) before those it booted with (DMA32), so
# these transfers use the new region.
normal_free() { awk '/^Node/ { zone = $4 } zone == "Normal" && /nr_free_pages/ { n += $2 } END { print n + 0 }' /proc/zoneinfo; }
free=$(normal_free)
write_and_read vda 20
dd status=none if=/dev/vda of=/dev/null bs=1M count=32
check "the plugged memory is in use" [ "$(normal_free)" -lt "$free" ]
check "fio" wait $!
