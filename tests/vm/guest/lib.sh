# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# What every guest script may call. BOOT holds the number of this boot, from 1.

# Calls the runner's handler NAME and waits until it has returned.
host() {
    printf '%s mark %s\n' "$NONCE" "$1" >&3
    read -r reply <&3
    [ "$reply" = ok ] || fail "the runner answered $1 with '$reply'"
}

# Ends the script as failed.
fail() {
    echo "FAIL: $*"
    exit 1
}

# check WHAT COMMAND...: runs the command; says "ok: WHAT", or fails.
check() {
    what=$1
    shift
    "$@" || fail "$what ($*)"
    echo "ok: $what"
}

# equal WHAT FOUND EXPECTED
equal() {
    [ "$2" = "$3" ] || fail "$1: found '$2', expected '$3'"
    echo "ok: $1: $2"
}

# wait_until SECONDS COMMAND...: repeats the command until it succeeds.
wait_until() {
    tries=$(($1 * 10))
    shift
    while ! "$@"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.1
    done
}

# Restarts the machine; the script runs again with the next BOOT.
reboot_guest() {
    sync
    printf '%s reboot\n' "$NONCE" >&3
    reboot -f
    sleep 60
    fail "the guest did not reboot"
}

# Facts about a disk, for example "vda".
disk_bytes() { echo $(($(cat "/sys/block/$1/size") * 512)); }
disk_serial() { cat "/sys/block/$1/serial"; }
disk_queues() { ls "/sys/block/$1/mq" | wc -l; }
disk_present() { [ -b "/dev/$1" ]; }
disk_absent() { [ ! -e "/sys/block/$1" ]; }
