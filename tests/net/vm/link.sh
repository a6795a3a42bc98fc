# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Back-ends that are killed and come back, one to which QEMU connects and one that connects to QEMU.
# The first device's driver may not announce its address itself. A third device is plugged in.
# MAC_0, NET_0 and so on are as in devices.sh.
caller=$(nic "$MAC_0")
listener=$(nic "$MAC_1")
nic_static "$caller" "$NET_0.2/24"
nic_static "$listener" "$NET_1.2/24"

echo "--- an announcement goes to the network, and not to the guest"
watch_for "$caller" rarp
host announce
check "$caller ping" pings "$NET_0.1"
killall tcpdump
equal "announcements seen by the guest" "$(cat /tmp/seen)" ""

# killed NIC NET INDEX
killed() {
    nic=$1 net=$2 index=$3
    echo "--- the back-end of $nic is killed and started again under load"
    iperf3 --client "$net.1" --time 600 --bidir >/tmp/load 2>&1 &
    load=$!
    before=$(nic_count "$nic" rx_bytes)
    busy() { [ "$(nic_count "$nic" rx_bytes)" -gt $((before + 2000000)) ]; }
    check "$nic has load" wait_until 30 busy
    check "$nic has a carrier" nic_carrier_is "$nic" 1
    for round in 1 2; do
        changes=$(cat "/sys/class/net/$nic/carrier_changes")
        host "kill_$index"
        check "$nic loses its carrier" wait_until 30 nic_carrier_is "$nic" 0
        host "restart_$index"
        check "$nic has a carrier again" wait_until 30 nic_carrier_is "$nic" 1
        equal "$nic carrier changes, round $round" \
            "$(($(cat "/sys/class/net/$nic/carrier_changes") - changes))" 2
        before=$(nic_count "$nic" rx_bytes)
        check "the connection goes on" wait_until 60 busy
    done
    check "iperf3 was running all the time" kill -0 $load
    killall iperf3
    # What iperf3 left in the queues may cost the first ones.
    check "$nic ping" wait_until 30 pings "$net.1"
    fetch "$nic HTTP" "http://$net.1/file" "$FILE_SHA256"
}
killed "$caller" "$NET_0" 0
killed "$listener" "$NET_1" 1

echo "--- a device comes, goes, and comes back"
present() { [ -n "$(nic "$MAC_2")" ]; }
absent() { [ -z "$(nic "$MAC_2")" ]; }
check "it is absent at first" absent
for round in 1 2; do
    host plug
    check "it comes, round $round" wait_until 30 present
    plugged=$(nic "$MAC_2")
    nic_static "$plugged" "$NET_2.2/24"
    check "$plugged ping" pings "$NET_2.1"
    [ "$round" = 2 ] || {
        host unplug
        check "it goes" wait_until 30 absent
    }
done
