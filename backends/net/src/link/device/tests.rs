// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::unix::net::UnixListener;

use tempfile::TempDir;

use super::*;
use crate::link::tap::TapSpec;
use crate::link::testing::{Peer, in_network, ip, is_plain, plain_frame, received_all};

#[test]
fn connection_outlives_the_data_thread_that_has_the_queue() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let link = Link::open(&LinkSpec::Stream { path }, 1).unwrap();
    assert!(link.queue(1).is_none());

    let mut queue = link.queue(0).unwrap();
    assert!(link.queue(0).is_none(), "lent already");
    assert_eq!(queue.generation(), 0);
    assert!(queue.descriptor().is_none());
    assert!(queue.retry(0));
    let (_peer, _) = listener.accept().unwrap();
    std::thread::spawn(move || drop(queue)).join().unwrap();

    let mut queue = link.queue(0).unwrap();
    assert_eq!(queue.generation(), 1);
    assert!(queue.descriptor().is_some());
    assert!(!queue.supports_headers());
    assert_eq!(link.supported(), Offloads::empty());
    assert_eq!(link.mtu(), None);
}

#[test]
fn sockets_have_one_queue_pair() {
    let path = || "/nowhere/socket".into();
    for spec in [
        LinkSpec::Stream { path: path() },
        LinkSpec::Dgram {
            path: path(),
            local: None,
        },
        LinkSpec::Packet {
            interface: "lo".into(),
            netns: None,
        },
    ] {
        let error = Link::open(&spec, 2).unwrap_err();
        assert!(matches!(error, LinkError::OnePair { pairs: 2 }));
    }
}

#[test]
fn link_of_each_kind_with_headers_moves_frames() {
    in_network("link_of_each_kind_with_headers_moves_frames", || {
        let tap = LinkSpec::Tap(TapSpec::named("tap0"));
        let tap = Link::open(&tap, 1).unwrap();
        ip("link set tap0 up");
        let packet = LinkSpec::Packet {
            interface: "tap0".into(),
            netns: None,
        };
        let packet = Link::open(&packet, 1).unwrap();
        assert!(tap.obeys_offloads());
        assert!(!packet.obeys_offloads());
        let peer = Peer::on("tap0");
        let (mut near, mut far) = (tap.queue(0).unwrap(), packet.queue(0).unwrap());
        let frame = plain_frame(60);
        let header = NetHeader::default();
        for link in [&tap, &packet] {
            assert!(link.supported().contains(Offloads::CSUM | Offloads::TSO6));
            assert_eq!(link.mtu(), Some(1500));
            link.set_carrier(true).unwrap();
            link.set_offloads(Offloads::CSUM).unwrap();
            link.attach(0, true).unwrap();
        }
        assert_eq!(near.send(&header, Payload::Bytes(&frame)), Sent::Done);
        assert_eq!(peer.receive(is_plain), frame);
        assert_eq!(
            received_all(|room| far.receive(room)),
            [(header, frame.clone())]
        );
        assert_eq!(far.send(&header, Payload::Bytes(&frame)), Sent::Done);
        assert_eq!(far.send(&header, Payload::Bytes(&frame)), Sent::Done);
        assert!(received_all(|room| near.receive(room)).contains(&(header, frame.clone())));
        for queue in [&mut near, &mut far] {
            assert!(queue.supports_headers());
            assert!(queue.retry(0));
            assert_eq!(queue.retry_at_ns(), None);
            assert_eq!((queue.flush(), queue.has_unsent()), (Sent::Done, false));
        }
        assert_eq!(far.send(&header, Payload::Bytes(&frame)), Sent::Done);
        assert_eq!((tap.drain(0), packet.drain(0)), (1, 0));
    });
}
