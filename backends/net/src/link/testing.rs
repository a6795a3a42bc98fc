// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tests of links share: a network namespace of their own, frames, and the other end of an
//! interface.

use std::ffi::c_int;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ringside_common::memory::Buffers;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netdevice::name_to_index;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use super::frame::{Received, Room, SPARE_BYTES};
use crate::header::{GSO_TCPV4, NEEDS_CSUM, NetHeader};
use crate::sys;

/// For experiments: no stack answers to it.
pub(super) const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// How long what must come may take on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Says that a test cannot run here, in a way that is counted.
pub(super) fn skip(test: &str, reason: &str) {
    let line = format!("\nRINGSIDE-SKIP {test}: {reason}\n");
    // A closed standard error leaves nobody to tell.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Runs a test on a thread with a network namespace of its own, without IPv6 and its chatter.
pub(super) fn in_network(test: &str, work: impl FnOnce() + Send) {
    if let Err(error) = OpenOptions::new().write(true).open("/dev/net/tun") {
        return skip(test, &format!("/dev/net/tun: {error}"));
    }
    if Command::new("ip").arg("-V").output().is_err() {
        return skip(test, "no ip command");
    }
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Err(errno) = sys::unshare_network() {
                return skip(test, &format!("no new network namespace: {errno}"));
            }
            // Not there in a kernel without IPv6.
            let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
            work();
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Runs a command.
pub(super) fn run(line: &str) -> Result<(), String> {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output();
    let output = output.map_err(|error| format!("{line}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!("{line}: {}", complaint.trim()))
}

/// Runs `ip` with these words.
pub(super) fn ip(line: &str) {
    run(&format!("ip {line}")).unwrap();
}

/// Sets interfaces up and waits until they pass frames, which takes the kernel a moment.
pub(super) fn up(names: &[&str]) {
    for name in names {
        ip(&format!("link set {name} up"));
    }
    let deadline = Instant::now() + PATIENCE;
    let passes = |name: &str| {
        let output = Command::new("ip").args(["link", "show", name]).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        text.contains("LOWER_UP") && text.contains("state UP") && !text.contains("qdisc noop ")
    };
    while !names.iter().all(|name| passes(name)) {
        assert!(Instant::now() < deadline, "{names:?} are not up");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a descriptor is ready for `flags`; whether it is, in time.
pub(super) fn wait(fd: BorrowedFd<'_>, flags: PollFlags, most: Duration) -> bool {
    let timeout = Timespec::try_from(most).unwrap();
    let mut fds = [PollFd::new(&fd, flags)];
    poll(&mut fds, Some(&timeout)).unwrap() > 0 && fds[0].revents().intersects(flags)
}

/// Receives by `receive` into no guest memory.
pub(super) fn received(receive: impl FnOnce(Room<'_>) -> Received) -> (Received, Vec<u8>) {
    let mut spare = vec![0xee; SPARE_BYTES];
    let window = Buffers::default();
    let received = receive(Room {
        window: &window,
        skip_bytes: 0,
        limit_bytes: 0,
        spare: &mut spare,
    });
    if let Received::Frame { bytes, .. } = received {
        spare.truncate(bytes);
    } else {
        spare.clear();
    }
    (received, spare)
}

/// Receives frames until there are none.
pub(super) fn received_all(
    mut receive: impl FnMut(Room<'_>) -> Received,
) -> Vec<(NetHeader, Vec<u8>)> {
    let mut frames = Vec::new();
    while let (Received::Frame { header, .. }, frame) = received(&mut receive) {
        frames.push((header, frame));
    }
    frames
}

/// A frame of a test.
pub(super) fn plain_frame(bytes: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    frame.extend(ETHERTYPE);
    frame.extend((14..bytes).map(|at| u8::try_from(at % 251).unwrap()));
    frame
}

/// Whether a frame is one of [`plain_frame`].
pub(super) fn is_plain(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&ETHERTYPE)
}

/// A long TCP segment over IPv4 and its header, to be cut into segments of 1448 bytes.
pub(super) fn tcp_frame(payload_bytes: usize) -> (NetHeader, Vec<u8>) {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    let total = u16::try_from(40 + payload_bytes).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1]);
    let sum = !fold(sum_of(&packet));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(&packet);
    frame.extend([0x12, 0x34, 0x56, 0x78, 0, 0, 0, 1, 0, 0, 0, 1]);
    let tcp_bytes = u32::try_from(20 + payload_bytes).unwrap();
    let pseudo = fold(sum_of(&packet[12..20]) + 6 + tcp_bytes);
    frame.extend([0x50, 0x10, 0xff, 0xff]);
    frame.extend(pseudo.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend((0..payload_bytes).map(|at| u8::try_from(at % 251).unwrap()));
    let header = NetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len_bytes: 54,
        gso_size_bytes: 1448,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    (header, frame)
}

fn sum_of(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| (u32::from(pair[0]) << 8) | u32::from(*pair.get(1).unwrap_or(&0));
    bytes.chunks(2).map(word).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// Whether the checksum of a frame of UDP over IPv4, without options, is right.
pub(super) fn udp_sum_is_right(frame: &[u8]) -> bool {
    let datagram = &frame[34..];
    let length = u32::try_from(datagram.len()).unwrap();
    fold(sum_of(&frame[26..34]) + 17 + length + sum_of(datagram)) == 0xffff
}

/// The other end of an interface: a packet socket without any header.
pub(super) struct Peer(OwnedFd);

impl Peer {
    pub(super) fn on(interface: &str) -> Self {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None).unwrap();
        let index = name_to_index(&socket, interface).unwrap();
        sys::packet_set(&socket, libc::PACKET_IGNORE_OUTGOING, 1).unwrap();
        sys::packet_bind(&socket, c_int::try_from(index).unwrap()).unwrap();
        Self(socket)
    }

    pub(super) fn send(&self, frame: &[u8]) {
        let sent = send(&self.0, frame, SendFlags::empty()).unwrap();
        assert_eq!(sent, frame.len());
    }

    /// The next frame that is wanted.
    pub(super) fn receive(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut frame = vec![0; SPARE_BYTES];
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(wait(self.0.as_fd(), PollFlags::IN, left), "no frame came");
            let (bytes, _) = recv(&self.0, &mut frame[..], RecvFlags::empty()).unwrap();
            frame.truncate(bytes);
            if wanted(&frame) {
                return frame;
            }
        }
    }
}
