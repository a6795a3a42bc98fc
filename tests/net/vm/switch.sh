# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# One of two guests on a switch. Each has two devices: "full" with all offloads; "plain", where the
# first guest offers everything and the second can neither take nor give anything but plain packets.
# ROLE is "first" or "second"; MAC_FULL and MAC_PLAIN are this guest's.
full=$(nic "$MAC_FULL")
plain=$(nic "$MAC_PLAIN")
# Two devices on one wire: each answers for its own address only.
echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore
echo 2 >/proc/sys/net/ipv4/conf/all/arp_announce

case $ROLE in
first) own=1 other=2 ;;
second) own=2 other=1 ;;
esac
nic_static "$full" "10.1.0.$own/24" "fd01::$own/64"
nic_static "$plain" "10.2.0.$own/24"

mkdir /tmp/www
dd status=none if=/dev/urandom of=/tmp/www/file bs=1M count=16
sha256sum /tmp/www/file | cut -d' ' -f1 >/tmp/www/sha256
httpd -h /tmp/www
iperf3 --server --daemon
host meet

# exchange NIC ADDRESS: both ways by iperf3, and a file with its checksum.
exchange() {
    transfers "$1" "$2" 16M
    fetch "$1 file" "http://$2/file" "$(wget -q -O - "http://$2/sha256")"
}

if [ "$ROLE" = first ]; then
    check "ping" pings "10.1.0.$other"
    echo "--- with all offloads"
    exchange "$full" "10.1.0.$other"
    transfers "$full" "fd01::$other" 8M -6
    echo "--- to a device that takes plain packets only"
    exchange "$plain" "10.2.0.$other"
    echo "--- without offloads of the sender"
    check "offloads off" ethtool -K "$full" tx off sg off tso off gso off gro off
    exchange "$full" "10.1.0.$other"
fi
host meet
if [ "$ROLE" = second ]; then
    fetch "file of the other" "http://10.1.0.$other/file" "$(wget -q -O - "http://10.1.0.$other/sha256")"
fi

echo "--- an announcement reaches everybody but its guest"
watch_for "$full" "rarp and ether src $MAC_ANNOUNCED"
host meet
[ "$ROLE" = second ] || host announce
host meet
seen() { [ -s /tmp/seen ]; }
[ "$ROLE" = first ] || check "the other guest sees it" wait_until 20 seen
host meet
killall tcpdump
case $ROLE in
first) equal "announcements seen" "$(cat /tmp/seen)" "" ;;
second) equal "announcements seen" "$(grep -c Request /tmp/seen)" 1 ;;
esac
