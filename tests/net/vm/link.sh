# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Back-ends that are killed and come back, one to which QEMU connects and one that connects to QEMU.
# The first device's guest cannot announce itself.
caller=$(nic "$MAC_CALLER")
listener=$(nic "$MAC_LISTENER")
nic_static "$caller" "$NET_CALLER.2/24"
nic_static "$listener" "$NET_LISTENER.2/24"

echo "--- an announcement goes to the network, and not to the guest"
tcpdump --immediate-mode -n -l -i "$caller" rarp >/tmp/rarp 2>/tmp/rarp.log &
listening() { grep -q 'listening on' /tmp/rarp.log; }
check "tcpdump listens" wait_until 20 listening
host announce
check "$caller ping" pings "$NET_CALLER.1"
killall tcpdump
equal "announcements seen by the guest" "$(cat /tmp/rarp)" ""

# killed NIC NET NAME
killed() {
    nic=$1 net=$2 name=$3
    echo "--- the back-end of $nic is killed and started again under load"
    iperf3 --client "$net.1" --time 600 --bidir >/tmp/load 2>&1 &
    load=$!
    before=$(nic_received_bytes "$nic")
    busy() { [ "$(nic_received_bytes "$nic")" -gt $((before + 2000000)) ]; }
    check "$nic has load" wait_until 30 busy
    check "$nic has a carrier" nic_carrier_is "$nic" 1
    for round in 1 2; do
        changes=$(cat "/sys/class/net/$nic/carrier_changes")
        host "kill_$name"
        check "$nic loses its carrier" wait_until 30 nic_carrier_is "$nic" 0
        host "restart_$name"
        check "$nic has a carrier again" wait_until 30 nic_carrier_is "$nic" 1
        equal "$nic carrier changes, round $round" \
            "$(($(cat "/sys/class/net/$nic/carrier_changes") - changes))" 2
        before=$(nic_received_bytes "$nic")
        check "the connection goes on" wait_until 60 busy
    done
    check "iperf3 was running all the time" kill -0 $load
    killall iperf3
    check "$nic ping" pings "$net.1"
    fetch "$nic HTTP" "http://$net.1/file" "$FILE_SHA256"
}
killed "$caller" "$NET_CALLER" caller
killed "$listener" "$NET_LISTENER" listener
