# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Functions that check one disk, put before the scripts that need them.

# Makes the next read ask the device.
drop_caches() { echo 3 >/proc/sys/vm/drop_caches; }

# disk_identity DISK BYTES SERIAL QUEUES
disk_identity() {
    equal "$1 size" "$(disk_bytes "$1")" "$2"
    equal "$1 serial" "$(disk_serial "$1")" "$3"
    equal "$1 queues" "$(disk_queues "$1")" "$4"
}

# write_and_read DISK OFFSET_MIB: 4 MiB of random bytes come back as they went.
write_and_read() {
    dd status=none if=/dev/urandom of=/tmp/pattern bs=1M count=4
    check "$1 write" dd status=none if=/tmp/pattern of="/dev/$1" bs=1M seek="$2" conv=fsync,notrunc
    drop_caches
    dd status=none if="/dev/$1" of=/tmp/found bs=1M skip="$2" count=4
    check "$1 read back" cmp /tmp/pattern /tmp/found
    rm /tmp/pattern /tmp/found
}

# discard_zeroes DISK OFFSET_MIB: what is discarded reads as zeroes (a raw file guarantees that),
# its neighbours are left alone.
discard_zeroes() {
    dd status=none if=/dev/urandom of=/tmp/pattern bs=1M count=4
    dd status=none if=/tmp/pattern of="/dev/$1" bs=1M seek="$2" conv=fsync,notrunc
    check "$1 discard" blkdiscard --offset $((($2 + 1) << 20)) --length 2M "/dev/$1"
    dd status=none if=/dev/zero of=/tmp/pattern bs=1M seek=1 count=2 conv=notrunc
    drop_caches
    dd status=none if="/dev/$1" of=/tmp/found bs=1M skip="$2" count=4
    check "$1 zeroes where discarded" cmp /tmp/pattern /tmp/found
    rm /tmp/pattern /tmp/found
}

# fio_verify DISK_OR_DIRECTORY... [-- FIO_OPTION...]: random reads and writes on each disk, or on
# new files in a directory, every block checked by its checksum.
fio_verify() {
    jobs=
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        if [ -d "$1" ]; then
            jobs="$jobs --name=fio --directory=$1"
        else
            jobs="$jobs --name=$(basename "$1") --filename=$1"
        fi
        shift
    done
    [ $# -eq 0 ] || shift
    # shellcheck disable=SC2086
    fio --ioengine=libaio --direct=1 --rw=randrw --bs=4k --iodepth=32 --size=8M \
        --verify=crc32c --verify_fatal=1 --verify_state_save=0 --eta=never "$@" $jobs \
        >/tmp/fio 2>&1 || {
        tail -n 60 /tmp/fio
        fail "fio$jobs"
    }
    grep -E 'IOPS=' /tmp/fio || fail "fio did nothing"
    echo "ok: fio verify"
}
