# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Functions about network devices, put before the scripts that need them.

# The name of the network device that has a MAC address, for example "eth0".
nic() {
    for device in /sys/class/net/*; do
        [ "$(cat "$device/address")" != "$1" ] || basename "$device"
    done
}

# An IPv6 address is used at once: nobody else has it.
echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad

# nic_static NIC ADDRESS/PREFIX...: gives it addresses and sets it up.
nic_static() {
    static=$1
    shift
    ip link set "$static" up
    for address in "$@"; do
        ip address add "$address" dev "$static" || fail "$static does not take $address"
    done
}

# nic_dhcp NIC: lets a DHCP server configure it.
nic_dhcp() {
    cat >/tmp/dhcp.sh <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev "$interface"
[ -z "$router" ] || ip route add default via "${router%% *}" dev "$interface"
END
    chmod +x /tmp/dhcp.sh
    ip link set "$1" up
    udhcpc -i "$1" -n -q -t 20 -T 1 -s /tmp/dhcp.sh >/tmp/dhcp.log 2>&1 || {
        cat /tmp/dhcp.log
        fail "$1 gets no address by DHCP"
    }
}

nic_address() { ip -4 -o address show dev "$1" | awk '{ sub("/.*", "", $4); print $4 }'; }
nic_mtu() { cat "/sys/class/net/$1/mtu"; }
nic_queues() { find "/sys/class/net/$1/queues/" -name 'tx-*' | wc -l; }
# 1 or 0; nothing while the device is down.
nic_carrier() { cat "/sys/class/net/$1/carrier" 2>/dev/null; }
nic_carrier_is() { [ "$(nic_carrier "$1")" = "$2" ]; }

# nic_has NIC NAME=BIT...: the driver has taken these features (virtio 1.3 5.1.3, 6).
nic_has() {
    bits=$(cat "/sys/class/net/$1/device/features")
    device=$1
    shift
    for feature in "$@"; do
        bit=${feature#*=}
        [ "$(echo "$bits" | cut -c $((bit + 1)))" = 1 ] || fail "$device has no ${feature%=*}: $bits"
    done
    echo "ok: $device features: $*"
}

# nic_offloads NIC NAME...: `ethtool -k` says that these are on.
nic_offloads() {
    device=$1
    ethtool -k "$device" >/tmp/offloads || fail "ethtool -k $device"
    shift
    for offload in "$@"; do
        grep -q "^[[:space:]]*$offload: on" /tmp/offloads || {
            cat /tmp/offloads
            fail "$device: $offload is not on"
        }
    done
    echo "ok: $device offloads: $*"
}

# pings ADDRESS [OPTION...]: all of three answers come.
pings() {
    address=$1
    shift
    ping -c 3 -W 5 "$@" "$address" >/tmp/ping 2>&1 && grep -q ' 0% packet loss' /tmp/ping || {
        cat /tmp/ping /proc/interrupts
        return 1
    }
}

# fetch WHAT URL SHA256
fetch() {
    equal "$1" "$(wget -q -O - "$2" | sha256sum | cut -d' ' -f1)" "$3"
}

# nic_count NIC tx_bytes|tx_packets|rx_bytes|rx_packets
nic_count() { cat "/sys/class/net/$1/statistics/$2"; }

# transfers NIC SERVER AMOUNT [OPTION...]: iperf3 sends that much, then receives that much. Leaves
# the mean size of the packets of each way in SENT_MEAN and RECEIVED_MEAN.
transfers() {
    device=$1
    transfer "$@" && SENT_MEAN=$(mean_size tx)
    transfer "$@" --reverse && RECEIVED_MEAN=$(mean_size rx)
}

# transfer NIC SERVER AMOUNT [OPTION...]
transfer() {
    for way in tx rx; do
        nic_count "$1" "${way}_bytes" >"/tmp/${way}_bytes"
        nic_count "$1" "${way}_packets" >"/tmp/${way}_packets"
    done
    server=$2 amount=$3
    shift 3
    iperf3 --client "$server" --bytes "$amount" "$@" >/tmp/iperf3 2>&1 || {
        cat /tmp/iperf3
        fail "$device: iperf3 $server $*"
    }
    # shellcheck disable=SC2046
    echo "ok:" $(echo "$device" iperf3 "$amount" "$@" at \
        $(awk '/receiver/ { print $7, $8 }' /tmp/iperf3))
}

# mean_size tx|rx: of the packets of the last transfer.
mean_size() {
    bytes=$(($(nic_count "$device" "$1_bytes") - $(cat "/tmp/$1_bytes")))
    packets=$(($(nic_count "$device" "$1_packets") - $(cat "/tmp/$1_packets")))
    echo $((bytes / packets))
}

# watch_for NIC FILTER: lines about frames that pass the filter go to /tmp/seen, until `killall
# tcpdump`.
watch_for() {
    # tcpdump wants to give up root, for a user this system has.
    grep -qs '^root:' /etc/passwd || echo 'root:x:0:0:root:/:/bin/sh' >>/etc/passwd
    tcpdump -Z root --immediate-mode -n -l -i "$1" "$2" >/tmp/seen 2>/tmp/tcpdump.log &
    wait_until 20 grep -q 'listening on' /tmp/tcpdump.log || {
        cat /tmp/tcpdump.log
        fail "tcpdump -i $1 $2"
    }
}
