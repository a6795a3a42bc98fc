# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# One of each device, each with several queues, as the README's lines have them.
echo "--- the disk"
disk_identity vda "$BYTES" "$SERIAL" "$QUEUES"
write_and_read vda 9

echo "--- the network"
nic=$(nic "$MAC")
equal "$nic queue pairs" "$(nic_queues "$nic")" "$QUEUES"
nic_static "$nic" "$NET.2/24"
check "$nic ping" pings "$NET.1"
check "$nic takes all its queues" ethtool -L "$nic" combined "$QUEUES"
transfers "$nic" "$NET.1" 16M --parallel "$QUEUES"
fetch "$nic HTTP" "http://$NET.1/file" "$FILE_SHA256"

echo "--- the folder"
share_mount "$TAG" /mnt
equal "what the host has written" "$(cat /mnt/greeting)" "$GREETING"
for part in $(seq 1 "$QUEUES"); do
    (echo "$part" >"/mnt/part$part" && sync) &
done
wait
equal "what the guest has written" "$(cat /mnt/part* | sort | tr '\n' ' ')" "$(seq -s ' ' 1 "$QUEUES") "
