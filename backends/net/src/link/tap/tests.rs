// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::net::UdpSocket;

use rustix::event::PollFlags;

use super::*;
use crate::header::{GSO_NONE, GSO_UDP_L4, NEEDS_CSUM, NetHeader};
use crate::link::testing::{
    PATIENCE, Peer, in_network, ip, is_plain, plain_frame, received, received_all, run, skip,
    tcp_frame, udp_sum_is_right, up, wait,
};
use crate::link::{Payload, RETRY_NS, Received, SendLoss, Sent};

const PLAIN: NetHeader = NetHeader {
    flags: 0,
    gso_type: GSO_NONE,
    hdr_len_bytes: 0,
    gso_size_bytes: 0,
    csum_start: 0,
    csum_offset: 0,
    num_buffers: 0,
};

fn named(name: &str) -> TapSpec {
    TapSpec::named(name)
}

/// A tap that is up.
fn open_up(pairs: u16) -> Tap {
    let tap = Tap::open(&named("tap0"), pairs).unwrap();
    ip("link set tap0 up");
    tap
}

/// Gives the tap an address and a neighbour that it need not ask for.
fn give_address() {
    ip("addr add 10.0.0.1/24 dev tap0");
    ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev tap0");
}

/// The frames of UDP that wait in a queue.
fn datagrams(queue: &mut TapQueue) -> Vec<(NetHeader, Vec<u8>)> {
    let mut frames = received_all(|room| queue.receive(room));
    frames.retain(|(_, frame)| frame.get(12..14) == Some(&[8, 0]) && frame[23] == 17);
    frames
}

#[test]
fn tap_moves_frames_both_ways() {
    in_network("tap_moves_frames_both_ways", || {
        let tap = open_up(1);
        let mut queue = tap.queue(0).unwrap();
        let peer = Peer::on("tap0");
        for bytes in [60, 1514] {
            let frame = plain_frame(bytes);
            assert_eq!(queue.send(&PLAIN, Payload::Bytes(&frame)), Sent::Done);
            assert_eq!(peer.receive(is_plain), frame);
            peer.send(&frame);
            let frames = received_all(|room| queue.receive(room));
            assert!(frames.contains(&(PLAIN, frame)));
        }
        assert_eq!(received(|room| queue.receive(room)).0, Received::Empty);
    });
}

#[test]
fn tap_takes_a_segment_of_62_kib_whole() {
    in_network("tap_takes_a_segment_of_62_kib_whole", || {
        let tap = open_up(1);
        let mut queue = tap.queue(0).unwrap();
        let peer = Peer::on("tap0");
        let (header, frame) = tcp_frame(62 << 10);
        assert_eq!(queue.send(&header, Payload::Bytes(&frame)), Sent::Done);
        let received = peer.receive(|frame| frame.len() > 1514);
        assert_eq!(received, frame);
    });
}

#[test]
fn tap_with_a_full_send_buffer_blocks_until_there_is_room() {
    let test = "tap_with_a_full_send_buffer_blocks_until_there_is_room";
    in_network(test, || {
        let tap = open_up(1);
        // Frames stay in the queue of a slow interface, in the name of the tap.
        ip("link add bridge0 type bridge");
        ip("link add slow0 type veth peer name slow1");
        if let Err(reason) =
            run("tc qdisc add dev slow0 root tbf rate 8kbit burst 1600 limit 1000000")
        {
            return skip(test, &reason);
        }
        for name in ["tap0", "slow0"] {
            ip(&format!("link set {name} master bridge0"));
        }
        up(&["bridge0", "slow0", "slow1"]);
        let mut queue = tap.queue(0).unwrap();
        sys::tun_set_send_buffer(queue.descriptor(), 4096).unwrap();
        let frame = plain_frame(1514);
        let deadline = std::time::Instant::now() + PATIENCE;
        while queue.send(&PLAIN, Payload::Bytes(&frame)) != Sent::Blocked {
            assert!(std::time::Instant::now() < deadline);
        }
        let writable = PollFlags::OUT;
        assert!(!wait(
            queue.descriptor(),
            writable,
            std::time::Duration::ZERO
        ));
        ip("link set slow0 nomaster");
        ip("link del slow0");
        assert!(wait(queue.descriptor(), writable, PATIENCE));
        assert_eq!(queue.send(&PLAIN, Payload::Bytes(&frame)), Sent::Done);
    });
}

#[test]
fn tap_refuses_headers_that_make_no_sense() {
    in_network("tap_refuses_headers_that_make_no_sense", || {
        let tap = open_up(1);
        let mut queue = tap.queue(0).unwrap();
        let frame = plain_frame(60);
        let unknown_type = NetHeader {
            gso_type: 0x7f,
            gso_size_bytes: 1448,
            ..PLAIN
        };
        let sum_outside = NetHeader {
            flags: NEEDS_CSUM,
            csum_start: 2000,
            ..PLAIN
        };
        let invalid = Sent::Dropped(SendLoss::Invalid);
        for header in [unknown_type, sum_outside] {
            assert_eq!(queue.send(&header, Payload::Bytes(&frame)), invalid);
        }
        for bytes in [&[][..], &frame[..13]] {
            assert_eq!(queue.send(&PLAIN, Payload::Bytes(bytes)), invalid);
        }
        assert_eq!(queue.send(&PLAIN, Payload::Bytes(&frame)), Sent::Done);
    });
}

#[test]
fn tap_that_is_down_or_deleted_drops() {
    in_network("tap_that_is_down_or_deleted_drops", || {
        let tap = open_up(1);
        let mut queue = tap.queue(0).unwrap();
        let frame = plain_frame(60);
        let down = Sent::Dropped(SendLoss::Down);
        ip("link set tap0 down");
        assert_eq!(queue.send(&PLAIN, Payload::Bytes(&frame)), down);
        assert_eq!(received(|room| queue.receive(room)).0, Received::Empty);
        ip("link set tap0 up");
        assert_eq!(queue.send(&PLAIN, Payload::Bytes(&frame)), Sent::Done);
        assert_eq!(tap.mtu(), Some(1500));
        assert!(queue.check());
        ip("link del tap0");
        assert!(!queue.check());
        assert_eq!(queue.send(&PLAIN, Payload::Bytes(&frame)), down);
        let (last, _) = received(|room| queue.receive(room));
        assert_eq!(last, Received::Down);
        assert_eq!(queue.is_lost(), Some(true));
        assert_eq!(tap.mtu(), None);
        // Nothing comes from it, whatever it was to be set to.
        tap.set_offloads(Offloads::CSUM).unwrap();
    });
}

#[test]
fn tap_takes_every_set_of_offloads_that_can_be_negotiated() {
    in_network(
        "tap_takes_every_set_of_offloads_that_can_be_negotiated",
        || {
            let tap = open_up(1);
            assert!(tap.supported().contains(Offloads::CSUM | Offloads::TSO4));
            let unsupported = !tap.supported().bits();
            for bits in (0..=Offloads::all().bits()).filter(|bits| bits & unsupported == 0) {
                tap.set_offloads(Offloads::from_bits_truncate(bits))
                    .unwrap();
            }
        },
    );
}

#[test]
fn frames_are_as_unfinished_as_the_offloads_say() {
    let test = "frames_are_as_unfinished_as_the_offloads_say";
    in_network(test, || {
        let tap = open_up(1);
        let mut queue = tap.queue(0).unwrap();
        give_address();
        let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
        sys::udp_set_segment(&socket, 1000).unwrap();
        let mut send = || {
            socket.send_to(&[7; 3000], "10.0.0.2:9").unwrap();
            datagrams(&mut queue)
        };

        let complete = send();
        assert_eq!(complete.len(), 3);
        for (header, frame) in &complete {
            assert_eq!(*header, PLAIN);
            assert!(udp_sum_is_right(frame));
        }

        tap.set_offloads(Offloads::CSUM).unwrap();
        let unsummed = send();
        assert_eq!(unsummed.len(), 3);
        for (header, frame) in &unsummed {
            assert_eq!((header.flags, header.gso_type), (NEEDS_CSUM, GSO_NONE));
            assert_eq!((header.csum_start, header.csum_offset), (34, 6));
            assert!(!udp_sum_is_right(frame));
        }

        let uso = Offloads::USO4 | Offloads::USO6;
        if !tap.supported().contains(uso) {
            return skip(test, "the kernel has no TUN_F_USO4");
        }
        tap.set_offloads(Offloads::CSUM | uso).unwrap();
        let long = send();
        assert_eq!(long.len(), 1);
        let (header, frame) = &long[0];
        assert_eq!((header.flags, header.gso_type), (NEEDS_CSUM, GSO_UDP_L4));
        assert_eq!((header.gso_size_bytes, frame.len()), (1000, 42 + 3000));
    });
}

#[test]
fn drain_drops_what_was_made_for_other_offloads() {
    in_network("drain_drops_what_was_made_for_other_offloads", || {
        let tap = open_up(1);
        give_address();
        tap.set_offloads(Offloads::CSUM).unwrap();
        let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
        // What the interface said when it came up.
        tap.drain(0);
        for _ in 0..5 {
            socket.send_to(&[7; 100], "10.0.0.2:9").unwrap();
        }
        tap.set_offloads(Offloads::empty()).unwrap();
        assert_eq!(tap.drain(0), 5);
        let mut queue = tap.queue(0).unwrap();
        assert_eq!(received(|room| queue.receive(room)).0, Received::Empty);
        assert_eq!(tap.drain(1), 0);
    });
}

#[test]
fn flows_do_not_go_to_a_detached_queue() {
    in_network("flows_do_not_go_to_a_detached_queue", || {
        let tap = open_up(2);
        give_address();
        let mut first = tap.queue(0).unwrap();
        let mut second = tap.queue(1).unwrap();
        let sockets = (0..64).map(|_| UdpSocket::bind("10.0.0.1:0").unwrap());
        let sockets: Vec<_> = sockets.collect();
        let mut send = || {
            for socket in &sockets {
                socket.send_to(&[7; 100], "10.0.0.2:9").unwrap();
            }
            (datagrams(&mut first).len(), datagrams(&mut second).len())
        };

        let (to_first, to_second) = send();
        assert_eq!(to_first + to_second, 64);
        assert!(to_first > 0 && to_second > 0, "{to_first} and {to_second}");

        for _ in 0..2 {
            tap.attach(1, false).unwrap();
            assert_eq!(send(), (64, 0));
        }
        let frame = plain_frame(60);
        let detached = tap.queue(1).unwrap().send(&PLAIN, Payload::Bytes(&frame));
        assert_eq!(detached, Sent::Done);

        // Without any attached queue, the device is still within reach.
        tap.attach(1, true).unwrap();
        tap.attach(0, false).unwrap();
        tap.set_offloads(Offloads::CSUM).unwrap();
        assert_eq!(send(), (0, 64));
        tap.attach(1, false).unwrap();
        tap.set_offloads(Offloads::empty()).unwrap();
        assert_eq!(send(), (0, 0));

        for _ in 0..2 {
            tap.attach(0, true).unwrap();
            tap.attach(1, true).unwrap();
            let (to_first, to_second) = send();
            assert_eq!(to_first + to_second, 64);
        }
        tap.attach(7, false).unwrap();
    });
}

#[test]
fn attach_does_nothing_to_a_tap_with_one_queue() {
    in_network("attach_does_nothing_to_a_tap_with_one_queue", || {
        let tap = open_up(1);
        tap.attach(0, false).unwrap();
        let mut queue = tap.queue(0).unwrap();
        let frame = plain_frame(60);
        assert_eq!(queue.send(&PLAIN, Payload::Bytes(&frame)), Sent::Done);
    });
}

#[test]
fn carrier_is_what_it_was_set_to() {
    in_network("carrier_is_what_it_was_set_to", || {
        let tap = open_up(2);
        let no_carrier = || {
            let mut command = std::process::Command::new("ip");
            let output = command.args(["link", "show", "tap0"]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).contains("NO-CARRIER")
        };
        for up in [false, true, false] {
            tap.set_carrier(up).unwrap();
            assert_eq!(no_carrier(), !up);
        }
    });
}

/// Deletes the tap and has `queue` notice.
fn delete(queue: &mut TapQueue) {
    ip("link del tap0");
    assert_eq!(received(|room| queue.receive(room)).0, Received::Down);
    assert_eq!(queue.is_lost(), Some(true));
}

/// Retries for as long as it takes.
fn come_back(queue: &mut TapQueue) {
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut now_ns = 0;
    while !queue.retry(now_ns) {
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(std::time::Duration::from_millis(5));
        now_ns += RETRY_NS;
    }
    assert_eq!((queue.is_lost(), queue.retry_at_ns()), (None, None));
}

#[test]
fn f5_12_tap_made_again_is_told_all_that_the_one_before_was() {
    in_network(
        "f5_12_tap_made_again_is_told_all_that_the_one_before_was",
        || {
            ip("tuntap add tap0 mode tap multi_queue vnet_hdr");
            let tap = open_up(3);
            let changes = Arc::new(std::sync::atomic::AtomicU64::new(0));
            let observed = Arc::clone(&changes);
            let relaxed = std::sync::atomic::Ordering::Relaxed;
            tap.observe(move || _ = observed.fetch_add(1, relaxed));
            tap.set_offloads(Offloads::CSUM).unwrap();
            tap.attach(1, false).unwrap();
            tap.set_carrier(false).unwrap();
            let mut queue = tap.queue(0).unwrap();
            let mut other = tap.queue(2).unwrap();
            let generation = queue.generation();
            delete(&mut queue);
            assert!(queue.generation() > generation && !tap.is_there());
            // What is said meanwhile counts as well.
            tap.set_carrier(true).unwrap();
            tap.attach(2, false).unwrap();
            tap.attach(2, true).unwrap();
            // It is not ours to be made.
            for now_ns in [0, RETRY_NS, 2 * RETRY_NS] {
                assert!(!queue.retry(now_ns));
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            assert!(run("ip link show tap0").is_err());
            ip("tuntap add tap0 mode tap multi_queue vnet_hdr");
            come_back(&mut queue);
            // The second queue finds that it has gone, and takes what is there.
            assert_eq!(received(|room| other.receive(room)).0, Received::Down);
            assert!(other.retry(0));
            assert!(tap.is_there());
            let deadline = std::time::Instant::now() + PATIENCE;
            while changes.load(relaxed) < 2 {
                assert!(std::time::Instant::now() < deadline);
                std::thread::yield_now();
            }
            let netlink = crate::link::netlink::Netlink::open().unwrap();
            let queues = netlink.interface("tap0").unwrap().unwrap().queues.unwrap();
            assert_eq!((queues.attached, queues.detached), (2, 1));
            up(&["tap0"]);
            give_address();
            let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
            let frames: Vec<_> = (0..64)
                .flat_map(|_| {
                    socket.send_to(&[7; 100], "10.0.0.2:9").unwrap();
                    [datagrams(&mut queue), datagrams(&mut other)].concat()
                })
                .collect();
            assert_eq!(frames.len(), 64);
            assert!(frames.iter().all(|(header, _)| header.flags == NEEDS_CSUM));
            let peer = Peer::on("tap0");
            for queue in [&mut queue, &mut other, &mut tap.queue(1).unwrap()] {
                let frame = plain_frame(60);
                assert_eq!(queue.send(&PLAIN, Payload::Bytes(&frame)), Sent::Done);
                assert_eq!(peer.receive(is_plain), frame);
            }
        },
    );
}

#[test]
fn f5_12_tap_made_again_for_one_queue_serves_all_pairs_with_it() {
    in_network(
        "f5_12_tap_made_again_for_one_queue_serves_all_pairs_with_it",
        || {
            ip("tuntap add tap0 mode tap multi_queue vnet_hdr");
            let tap = open_up(2);
            let mut queue = tap.queue(1).unwrap();
            delete(&mut queue);
            ip("tuntap add tap0 mode tap vnet_hdr");
            come_back(&mut queue);
            ip("link set tap0 up");
            let peer = Peer::on("tap0");
            let frame = plain_frame(60);
            assert_eq!(queue.send(&PLAIN, Payload::Bytes(&frame)), Sent::Done);
            assert_eq!(peer.receive(is_plain), frame);
            tap.attach(1, false).unwrap();
            // And for several once more, without a link this time.
            tap.set_carrier(false).unwrap();
            delete(&mut queue);
            ip("tuntap add tap0 mode tap multi_queue vnet_hdr");
            come_back(&mut queue);
            ip("link set tap0 up");
            let shown = std::process::Command::new("ip")
                .args(["link", "show", "tap0"])
                .output()
                .unwrap();
            assert!(String::from_utf8_lossy(&shown.stdout).contains("NO-CARRIER"));
        },
    );
}

#[test]
fn f5_12_tap_that_somebody_else_has_by_now_is_not_taken_from_them() {
    in_network(
        "f5_12_tap_that_somebody_else_has_by_now_is_not_taken_from_them",
        || {
            ip("tuntap add tap0 mode tap multi_queue vnet_hdr");
            let tap = open_up(2);
            let mut queue = tap.queue(0).unwrap();
            delete(&mut queue);
            let theirs = Tap::open(&named("tap0"), 2).unwrap();
            for round in 0..10 {
                assert!(!queue.retry(round * RETRY_NS));
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            // A tap that was made for as long as it is open goes with them.
            drop(theirs);
            ip("tuntap add tap0 mode tap multi_queue vnet_hdr");
            come_back(&mut queue);
        },
    );
}
