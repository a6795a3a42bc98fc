# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The number of queue pairs in use changes under load: no flow may lose its way. The device has four
# pairs; MAC, NET as in devices.sh.
nic=$(nic "$MAC")
nic_static "$nic" "$NET.2/24"
combined() { ethtool -l "$nic" | awk '/^Combined/ { n = $2 } END { print n }'; }
flows() { "$FLOWS" "$NET.1:7" 64 20; }
check "64 flows are answered" flows

iperf3 --client "$NET.1" --time 600 --parallel 8 --bitrate 8M --bidir >/tmp/load 2>&1 &
load=$!
before=$(nic_count "$nic" rx_bytes)
busy() { [ "$(nic_count "$nic" rx_bytes)" -gt $((before + 2000000)) ]; }
check "there is load" wait_until 30 busy
for queues in 1 4 2 3 1 2 4 1 4; do
    check "ethtool takes $queues" ethtool -L "$nic" combined "$queues"
    equal "queue pairs in use" "$(combined)" "$queues"
    check "64 flows are answered over $queues" flows
    before=$(nic_count "$nic" rx_bytes)
    check "the load goes on" wait_until 30 busy
done
check "iperf3 was running all the time" kill -0 $load
killall iperf3
fetch "HTTP after the changes" "http://$NET.1/file" "$FILE_SHA256"
