// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::mpsc::channel;
use std::thread;
use std::time::Instant;

use rustix::event::PollFlags;

use super::*;
use crate::link::testing::{
    PATIENCE, Peer, in_network, ip, is_plain, plain_frame, received, received_all, run, tcp_frame,
    up, wait,
};

fn veth() {
    ip("link add veth0 type veth peer name veth1");
    up(&["veth0", "veth1"]);
}

/// The next frame that is wanted.
fn next_frame(queue: &mut PacketQueue, wanted: impl Fn(&[u8]) -> bool) -> (NetHeader, Vec<u8>) {
    let start = Instant::now();
    loop {
        let left = PATIENCE.saturating_sub(start.elapsed());
        assert!(
            wait(queue.descriptor(), PollFlags::IN, left),
            "no frame came"
        );
        let (outcome, frame) = received(|room| queue.receive(room));
        if let Received::Frame { header, .. } = outcome
            && wanted(&frame)
        {
            return (header, frame);
        }
    }
}

/// Puts a VLAN tag into a frame.
fn tagged(frame: &[u8], kind: u16, tag: u16) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(ADDRESSES_BYTES);
    let tag = [kind.to_be_bytes(), tag.to_be_bytes()].concat();
    [addresses, &tag, rest].concat()
}

fn auxdata(status: u32, tag: u16, kind: u16) -> [u8; AUXDATA_BYTES] {
    let mut bytes = [0xee; AUXDATA_BYTES];
    bytes[..4].copy_from_slice(&status.to_ne_bytes());
    bytes[16..18].copy_from_slice(&tag.to_ne_bytes());
    bytes[18..].copy_from_slice(&kind.to_ne_bytes());
    bytes
}

#[test]
fn vlan_tag_is_what_the_kernel_tells() {
    let valid = libc::TP_STATUS_VLAN_VALID;
    let both = valid | libc::TP_STATUS_VLAN_TPID_VALID;
    assert_eq!(vlan_tag(&auxdata(1, 0x6005, 0x88a8)), None);
    let old = vlan_tag(&auxdata(valid, 0x6005, 0));
    assert_eq!(old, Some([0x81, 0, 0x60, 5]));
    let new = vlan_tag(&auxdata(both, 0x6005, 0x88a8));
    assert_eq!(new, Some([0x88, 0xa8, 0x60, 5]));
}

#[test]
fn packet_socket_moves_frames_both_ways() {
    in_network("packet_socket_moves_frames_both_ways", || {
        veth();
        let packet = Packet::open("veth0", None).unwrap();
        assert_eq!(packet.mtu(), Some(1500));
        let mut queue = packet.queue();
        let peer = Peer::on("veth1");
        for bytes in [60, 1514] {
            let frame = plain_frame(bytes);
            let header = NetHeader::default();
            assert_eq!(queue.send(&header, Payload::Bytes(&frame)), Sent::Done);
            assert_eq!(peer.receive(is_plain), frame);
            // What was sent does not come back.
            assert!(received_all(|room| queue.receive(room)).is_empty());
            peer.send(&frame);
            // Not for the address of the interface, and here for all that.
            assert_eq!(next_frame(&mut queue, is_plain), (header, frame));
        }
        assert_eq!(received(|room| queue.receive(room)).0, Received::Empty);
    });
}

#[test]
fn long_segments_cross_packet_sockets_whole() {
    in_network("long_segments_cross_packet_sockets_whole", || {
        veth();
        let mut queue = Packet::open("veth0", None).unwrap().queue();
        let mut far = Packet::open("veth1", None).unwrap().queue();
        let (header, frame) = tcp_frame(62 << 10);
        for _ in 0..20 {
            assert_eq!(queue.send(&header, Payload::Bytes(&frame)), Sent::Done);
        }
        for _ in 0..20 {
            let (got, long) = next_frame(&mut far, |frame| frame.len() > 1514);
            assert_eq!(got, header);
            assert!(long == frame);
        }
    });
}

#[test]
fn vlan_tags_are_kept() {
    in_network("vlan_tags_are_kept", || {
        veth();
        let mut queue = Packet::open("veth0", None).unwrap().queue();
        let peer = Peer::on("veth1");
        for (kind, tag) in [(0x8100, 5), (0x8100, 0x6fff), (0x88a8, 7)] {
            let frame = tagged(&plain_frame(100), kind, tag);
            peer.send(&frame);
            let (_, got) = next_frame(&mut queue, |frame| frame.len() == 104);
            assert_eq!(got, frame);
        }
        // Two tags, of which the kernel takes out one.
        let frame = tagged(&tagged(&plain_frame(100), 0x8100, 5), 0x88a8, 7);
        peer.send(&frame);
        let (_, got) = next_frame(&mut queue, |frame| frame.len() == 108);
        assert_eq!(got, frame);
    });
}

#[test]
fn checksum_start_counts_a_tag_that_was_put_back() {
    in_network("checksum_start_counts_a_tag_that_was_put_back", || {
        veth();
        let mut queue = Packet::open("veth0", None).unwrap().queue();
        let mut far = Packet::open("veth1", None).unwrap().queue();
        let (mut header, frame) = tcp_frame(1000);
        header.gso_type = GSO_NONE;
        header.gso_size_bytes = 0;
        header.hdr_len_bytes = 0;
        header.csum_start += 4;
        let frame = tagged(&frame, 0x8100, 5);
        assert_eq!(queue.send(&header, Payload::Bytes(&frame)), Sent::Done);
        let (got, received) = next_frame(&mut far, |got| got.len() == frame.len());
        assert_eq!(received, frame);
        assert_eq!((got.flags, got.gso_type), (NEEDS_CSUM, GSO_NONE));
        assert_eq!((got.csum_start, got.csum_offset), (38, 16));
    });
}

#[test]
fn packet_socket_drops_what_the_interface_does_not_take() {
    in_network(
        "packet_socket_drops_what_the_interface_does_not_take",
        || {
            veth();
            let packet = Packet::open("veth0", None).unwrap();
            let mut queue = packet.queue();
            let mut send =
                |header: &NetHeader, bytes| queue.send(header, Payload::Bytes(&plain_frame(bytes)));
            let header = NetHeader::default();
            let unknown_type = NetHeader {
                gso_type: 0x7f,
                gso_size_bytes: 1448,
                ..header
            };
            let down = Sent::Dropped(SendLoss::Down);
            assert_eq!(send(&unknown_type, 100), Sent::Dropped(SendLoss::Invalid));
            assert_eq!(send(&header, 1600), Sent::Dropped(SendLoss::Invalid));
            assert_eq!(send(&header, 100), Sent::Done);
            ip("link set veth0 down");
            assert_eq!(send(&header, 100), down);
            let mut queue = packet.queue();
            assert!(received_all(|room| queue.receive(room)).is_empty());
            up(&["veth0"]);
            let peer = Peer::on("veth1");
            peer.send(&plain_frame(60));
            assert_eq!(next_frame(&mut queue, is_plain).1, plain_frame(60));
            ip("link del veth0");
            let sent = queue.send(&header, Payload::Bytes(&plain_frame(60)));
            assert_eq!(sent, down);
            assert!(received_all(|room| queue.receive(room)).is_empty());
            assert_eq!(packet.mtu(), None);
            let error = Packet::open("veth0", None).unwrap_err();
            assert!(matches!(error, LinkError::NoInterface { .. }));
        },
    );
}

#[test]
fn packet_socket_takes_a_capability() {
    in_network("packet_socket_takes_a_capability", || {
        veth();
        let nobody = rustix::fs::Uid::from_raw(65534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let error = Packet::open("veth0", None).unwrap_err();
        assert!(matches!(error, LinkError::PacketPermission { .. }));
    });
}

#[test]
fn packet_socket_is_opened_in_another_namespace_from_outside() {
    in_network(
        "packet_socket_is_opened_in_another_namespace_from_outside",
        || {
            let (path_to, path_from) = channel();
            let (end_to, end_from) = channel::<()>();
            thread::scope(|scope| {
                scope.spawn(move || {
                    sys::unshare_network().unwrap();
                    veth();
                    let peer = Peer::on("veth1");
                    let thread = rustix::thread::gettid().as_raw_nonzero();
                    path_to
                        .send(format!("/proc/self/task/{thread}/ns/net"))
                        .unwrap();
                    assert_eq!(peer.receive(is_plain), plain_frame(60));
                    // An error, as well: the other end of the channel has gone.
                    let _ = end_from.recv();
                });
                let _end_to = end_to;
                let path = path_from.recv().unwrap();
                assert!(run("ip link show veth0").is_err());
                let packet = Packet::open("veth0", Some(Path::new(&path))).unwrap();
                let frame = plain_frame(60);
                let sent = packet
                    .queue()
                    .send(&NetHeader::default(), Payload::Bytes(&frame));
                assert_eq!(sent, Sent::Done);
            });
        },
    );
}
