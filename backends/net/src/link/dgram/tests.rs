// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::event::PollFlags;
use tempfile::TempDir;

use super::*;
use crate::link::MAX_FRAME_BYTES;
use crate::link::testing::{PATIENCE, plain_frame, received, wait};

/// A queue bound to `ours`, and the path of its peer.
fn open(dir: &TempDir) -> (DgramQueue, PathBuf) {
    let path = dir.path().join("theirs");
    let queue = DgramQueue::open(&path, Some(&dir.path().join("ours"))).unwrap();
    (queue, path)
}

fn receive(queue: &mut DgramQueue) -> (Received, Vec<u8>) {
    received(|room| queue.receive(room))
}

#[test]
fn datagrams_are_frames_both_ways() {
    let dir = TempDir::new().unwrap();
    let (mut queue, path) = open(&dir);
    let peer = UnixDatagram::bind(path).unwrap();
    assert!(queue.retry(0));
    assert_eq!(queue.retry_at_ns(), None);
    for bytes in [1, 60, 1514, MAX_FRAME_BYTES] {
        let frame = plain_frame(bytes);
        assert_eq!(queue.send(Payload::Bytes(&frame)), Sent::Done);
        let mut got = vec![0; 70_000];
        let bytes = peer.recv(&mut got).unwrap();
        assert!(got[..bytes] == frame);
        peer.send_to(&frame, dir.path().join("ours")).unwrap();
        let (outcome, got) = receive(&mut queue);
        let header = NetHeader::default();
        assert_eq!(outcome, Received::Frame { header, bytes });
        assert!(got == frame);
    }
    assert_eq!(receive(&mut queue).0, Received::Empty);
    for bytes in [0, MAX_FRAME_BYTES + 1] {
        let sent = queue.send(Payload::Bytes(&vec![0; bytes]));
        assert_eq!(sent, Sent::Dropped(SendLoss::Invalid));
    }
}

#[test]
fn datagram_longer_than_the_room_tells_its_length() {
    let dir = TempDir::new().unwrap();
    let (mut queue, _) = open(&dir);
    let peer = UnixDatagram::unbound().unwrap();
    peer.send_to(&[1; 1000], dir.path().join("ours")).unwrap();
    let window = ringside_common::memory::Buffers::default();
    let mut spare = [0; 10];
    let outcome = queue.receive(Room {
        window: &window,
        skip_bytes: 0,
        limit_bytes: 0,
        spare: &mut spare,
    });
    let header = NetHeader::default();
    assert_eq!(
        outcome,
        Received::Frame {
            header,
            bytes: 1000
        }
    );
    assert_eq!(spare, [1; 10]);
}

#[test]
fn full_peer_blocks_until_it_has_read() {
    let dir = TempDir::new().unwrap();
    let (mut queue, path) = open(&dir);
    let peer = UnixDatagram::bind(path).unwrap();
    assert!(queue.retry(0));
    let frame = plain_frame(60);
    let mut sent = 0;
    while queue.send(Payload::Bytes(&frame)) == Sent::Done {
        sent += 1;
        assert!(sent < 100_000);
    }
    assert_eq!(queue.send(Payload::Bytes(&frame)), Sent::Blocked);
    assert!(!wait(queue.descriptor(), PollFlags::OUT, Duration::ZERO));
    for _ in 0..sent {
        assert_eq!(peer.recv(&mut [0; 100]).unwrap(), 60);
    }
    assert!(wait(queue.descriptor(), PollFlags::OUT, PATIENCE));
    assert_eq!(queue.send(Payload::Bytes(&frame)), Sent::Done);
}

#[test]
fn peer_that_is_born_again_is_found_again() {
    let dir = TempDir::new().unwrap();
    let (mut queue, path) = open(&dir);
    let ours = dir.path().join("ours");
    let frame = plain_frame(60);
    let down = Sent::Dropped(SendLoss::Down);
    assert_eq!(queue.retry_at_ns(), Some(0));
    assert!(!queue.retry(7));
    assert_eq!(queue.retry_at_ns(), Some(7 + RETRY_NS));
    assert_eq!(queue.send(Payload::Bytes(&frame)), down);

    let peer = UnixDatagram::bind(&path).unwrap();
    assert!(!queue.retry(8), "too early");
    assert!(queue.retry(7 + RETRY_NS));
    assert_eq!(queue.send(Payload::Bytes(&frame)), Sent::Done);

    drop(peer);
    assert_eq!(queue.send(Payload::Bytes(&frame)), down);
    assert_eq!(queue.retry_at_ns(), Some(7 + 2 * RETRY_NS));
    assert!(!queue.retry(7 + 2 * RETRY_NS), "the file is still there");

    std::fs::remove_file(&path).unwrap();
    let peer = UnixDatagram::bind(&path).unwrap();
    // Its frames are let in before we are connected.
    peer.send_to(&frame, &ours).unwrap();
    assert_eq!(receive(&mut queue).1, frame);
    assert!(queue.retry(7 + 3 * RETRY_NS));
    assert_eq!(queue.send(Payload::Bytes(&frame)), Sent::Done);
    assert_eq!(peer.recv(&mut [0; 100]).unwrap(), 60);
    peer.send_to(&frame, &ours).unwrap();
    assert_eq!(receive(&mut queue).1, frame);
}

#[test]
fn error_that_a_peer_leaves_behind_hides_no_frame() {
    let dir = TempDir::new().unwrap();
    let (mut queue, path) = open(&dir);
    let peer = UnixDatagram::bind(path).unwrap();
    let other = dir.path().join("other");
    let _other = UnixDatagram::bind(&other).unwrap();
    assert!(queue.retry(0));
    peer.connect(dir.path().join("ours")).unwrap();
    peer.send(&plain_frame(60)).unwrap();
    peer.connect(other).unwrap();
    assert_eq!(receive(&mut queue).1, plain_frame(60));
    // It takes frames from someone else now.
    let sent = queue.send(Payload::Bytes(&plain_frame(60)));
    assert_eq!(sent, Sent::Dropped(SendLoss::Down));
    assert!(queue.retry_at_ns().is_some());
}

#[test]
fn own_path_is_removed_at_the_end_if_it_is_still_ours() {
    let dir = TempDir::new().unwrap();
    let ours = dir.path().join("ours");
    drop(open(&dir));
    assert!(!ours.exists());

    let queue = open(&dir);
    std::fs::remove_file(&ours).unwrap();
    std::fs::write(&ours, "of someone else").unwrap();
    drop(queue);
    assert!(ours.exists());
}

#[test]
fn own_path_is_replaced_only_if_it_is_a_socket_that_nobody_has() {
    let dir = TempDir::new().unwrap();
    let ours = dir.path().join("ours");
    let theirs = dir.path().join("theirs");
    drop(UnixDatagram::bind(&ours).unwrap());
    let first = DgramQueue::open(&theirs, Some(&ours)).unwrap();
    let in_use = |result| matches!(result, Err(LinkError::PathInUse { path }) if path == ours);
    assert!(in_use(DgramQueue::open(&theirs, Some(&ours)).map(drop)));
    drop(first);
    std::fs::write(&ours, "data").unwrap();
    assert!(in_use(DgramQueue::open(&theirs, Some(&ours)).map(drop)));
    assert_eq!(std::fs::read(&ours).unwrap(), b"data");
}

#[test]
fn queue_without_a_path_of_its_own_can_be_answered() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("theirs");
    let peer = UnixDatagram::bind(&path).unwrap();
    let mut queue = DgramQueue::open(&path, None).unwrap();
    assert!(queue.retry(0));
    let frame = plain_frame(60);
    assert_eq!(queue.send(Payload::Bytes(&frame)), Sent::Done);
    let (_, from) = peer.recv_from(&mut [0; 100]).unwrap();
    assert!(from.as_abstract_name().is_some());
    peer.send_to_addr(&frame, &from).unwrap();
    assert_eq!(receive(&mut queue).1, frame);
}

#[test]
fn f5_6_queue_without_a_path_takes_datagrams_of_its_peer_alone() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("theirs");
    let (frame, forged) = (plain_frame(60), plain_frame(61));
    let stranger = UnixDatagram::unbound().unwrap();
    let name_of = |queue: &DgramQueue| {
        let socket = UnixDatagram::from(queue.descriptor().try_clone_to_owned().unwrap());
        socket.local_addr().unwrap()
    };
    let mut queue = DgramQueue::open(&path, None).unwrap();
    let mut known = None;
    for round in 0..3 {
        let generation = queue.generation();
        // While the peer is away, and once it was there.
        assert!(name_of(&queue).is_unnamed(), "round {round}");
        if let Some(name) = &known {
            assert!(
                stranger.send_to_addr(&forged, name).is_err(),
                "round {round}"
            );
        }
        let peer = UnixDatagram::bind(&path).unwrap();
        queue.retry_at_ns = 0;
        assert!(queue.retry(1));
        assert_eq!(queue.send(Payload::Bytes(&frame)), Sent::Done);
        let (_, name) = peer.recv_from(&mut [0; 100]).unwrap();
        assert!(
            stranger.send_to_addr(&forged, &name).is_err(),
            "round {round}"
        );
        peer.send_to_addr(&frame, &name).unwrap();
        assert_eq!(receive(&mut queue).1, frame);
        assert_eq!(receive(&mut queue).0, Received::Empty);
        drop(peer);
        std::fs::remove_file(&path).unwrap();
        assert!(
            stranger.send_to_addr(&forged, &name).is_err(),
            "round {round}"
        );
        assert_eq!(
            queue.send(Payload::Bytes(&frame)),
            Sent::Dropped(SendLoss::Down)
        );
        assert!(
            queue.generation() > generation,
            "another socket is not told of"
        );
        known = Some(name);
    }
}
