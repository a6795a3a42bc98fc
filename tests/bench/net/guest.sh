# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# iperf3 over each of several network devices in turn, both ways, ROUNDS times after a first one.
# THERE: one "NAME MAC ADDRESS SERVER" a line, the address being "dhcp" or with its prefix length.
# BACK: the same lines the other way round. A measurement takes SECONDS.
while read -r name mac address server; do
    nic=$(nic "$mac")
    case $address in
    dhcp) nic_dhcp "$nic" ;;
    *) nic_static "$nic" "$address" ;;
    esac
    check "$name ping" pings "$server"
done <<END
$THERE
END

# megabits SERVER [OPTION...]
megabits() {
    iperf3 --client "$@" --time "$SECONDS_EACH" --format m </dev/null >/tmp/iperf3 2>&1 || {
        cat /tmp/iperf3
        fail "iperf3 $*"
    }
    awk '/receiver/ { print $7 }' /tmp/iperf3
}

lines=$THERE
for round in $(seq 0 "$ROUNDS"); do
    while read -r name mac address server; do
        echo "figure $round $name sends $(megabits "$server")"
        echo "figure $round $name receives $(megabits "$server" --reverse)"
    done <<END
$lines
END
    [ "$lines" = "$THERE" ] && lines=$BACK || lines=$THERE
done
