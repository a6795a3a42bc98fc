# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# One of several guests that come one after the other; each adds a line. The first leaves without
# unmounting, with a file open.
share_mount "$TAG" /mnt
equal "lines of the guests before" "$(cat /mnt/guests)" "$BEFORE"
echo "$NAME" >>/mnt/guests
equal "digest of the host's file" "$(sha256sum </mnt/large | cut -d' ' -f1)" "$LARGE"
exec 9>/mnt/left_open
echo "$NAME" >&9
sync
