# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The entropy device of docs/writing-a-device.md: two reads that differ, neither of them zeroes.
equal "the source of randomness" "$(cat /sys/class/misc/hw_random/rng_current)" "virtio_rng.0"
check "read" dd status=none if=/dev/hwrng of=/tmp/one bs=4096 count=16 iflag=fullblock
check "read again" dd status=none if=/dev/hwrng of=/tmp/two bs=4096 count=16 iflag=fullblock
equal "bytes" "$(wc -c </tmp/one) $(wc -c </tmp/two)" "65536 65536"
cmp -s /tmp/one /tmp/two && fail "the same bytes twice"
gzip -c /tmp/one >/tmp/one.gz
[ "$(wc -c </tmp/one.gz)" -gt 65536 ] || fail "the bytes can be compressed"
