# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Network devices with 1, 2 and 4 queue pairs beside a disk, and one whose MTU the back-end refuses
# (MAC_REFUSED), if any.
# NICS: one "MAC HOST QUEUES MTU" a line, HOST being the first three numbers of an IPv4 network in
# which the host is 1 and the guest 2. The first device has a DHCP server.
BASICS="CSUM=0 GUEST_CSUM=1 MAC=5 GUEST_TSO4=7 GUEST_TSO6=8 HOST_TSO4=11 HOST_TSO6=12
    MRG_RXBUF=15 STATUS=16 CTRL_VQ=17 INDIRECT_DESC=28 EVENT_IDX=29 VERSION_1=32"

first=yes
while read -r mac net queues mtu; do
    nic=$(nic "$mac")
    echo "--- $nic, $queues queue pairs"
    if [ "$first" = yes ]; then
        nic_dhcp "$nic"
        equal "$nic address" "$(nic_address "$nic")" "$net.2"
        ip address add "fd00::2/64" dev "$nic"
        first=no
    else
        nic_static "$nic" "$net.2/24"
    fi
    # shellcheck disable=SC2086
    nic_has "$nic" $BASICS
    [ "$queues" = 1 ] || nic_has "$nic" MQ=22
    [ "$mtu" = 1500 ] || nic_has "$nic" MTU=3
    nic_offloads "$nic" tx-checksumming rx-checksumming scatter-gather tcp-segmentation-offload \
        tx-tcp-segmentation tx-tcp6-segmentation generic-receive-offload
    equal "$nic queue pairs" "$(nic_queues "$nic")" "$queues"
    equal "$nic MTU" "$(nic_mtu "$nic")" "$mtu"
    check "$nic ping" pings "$net.1"
    check "$nic ping with packets of nearly the MTU" pings "$net.1" -s $((mtu - 28))
    transfers "$nic" "$net.1" 32M
    # The host segments what it is sent, and the guest gets segments put together.
    check "$nic sends $SENT_MEAN bytes a packet" [ "$SENT_MEAN" -gt $((mtu * 2)) ]
    check "$nic receives $RECEIVED_MEAN bytes a packet" [ "$RECEIVED_MEAN" -gt $((mtu * 2)) ]
    fetch "$nic HTTP" "http://$net.1/file" "$FILE_SHA256"
done <<END
$NICS
END
echo "--- IPv6"
transfers "$(nic "$MAC_DHCP")" fd00::1 16M -6

echo "--- the disk, while the network is busy"
iperf3 --client "$NET_DHCP.1" --time 600 --parallel 2 >/tmp/busy 2>&1 &
disk_identity vda "$BYTES" "$SERIAL" "$(nproc)"
write_and_read vda 9
check "iperf3 was running all the time" kill -0 $!
killall iperf3

[ -n "$MAC_REFUSED" ] || exit 0
echo "--- an MTU that the back-end refuses"
refused=$(nic "$MAC_REFUSED")
nic_static "$refused" "$NET_REFUSED.2/24"
equal "$refused MTU" "$(nic_mtu "$refused")" 9000
if ping -q -c 3 -W 1 "$NET_REFUSED.1" >/dev/null; then
    fail "$refused works although its MTU was refused"
fi
echo "ok: $refused carries nothing"
