# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# A disk with default options, then resized while in use.
disk_identity vda "$BYTES" "$SERIAL" "$(nproc)"
write_and_read vda 9
discard_zeroes vda 16

host grow
grown() { [ "$(disk_bytes vda)" = "$BYTES_GROWN" ]; }
check "vda grows to $BYTES_GROWN bytes" wait_until 20 grown
write_and_read vda $((BYTES_GROWN / 1048576 - 4))
