// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::net::sockopt::set_socket_send_buffer_size;
use tempfile::TempDir;

use super::*;
use crate::link::testing::{
    PATIENCE, in_network, ip, is_plain, plain_frame, received, received_all, skip, up, wait,
};

/// A stream with a peer to connect to.
struct Pair {
    _dir: TempDir,
    listener: UnixListener,
    queue: StreamQueue,
}

impl Pair {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let queue = StreamQueue::new(&path).unwrap();
        Self {
            _dir: dir,
            listener,
            queue,
        }
    }

    fn connect(&mut self, now_ns: u64) -> UnixStream {
        assert!(self.queue.retry(now_ns));
        self.listener.accept().unwrap().0
    }

    fn send(&mut self, frame: &[u8]) -> Sent {
        self.queue.send(Payload::Bytes(frame))
    }

    fn receive(&mut self) -> (Received, Vec<u8>) {
        received(|room| self.queue.receive(room))
    }
}

fn announced(frame: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(frame.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(frame);
    bytes
}

fn read_frame(peer: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    peer.read_exact(&mut length).unwrap();
    let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    peer.read_exact(&mut frame).unwrap();
    frame
}

/// Ends a program that a test has started.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn front_tells_frames_from_parts_and_garbage() {
    assert_eq!(front(&[]), Front::Partial);
    assert_eq!(front(&[0, 0, 0]), Front::Partial);
    assert_eq!(front(&[0, 0, 0, 1]), Front::Partial);
    assert_eq!(front(&[0, 0, 0, 1, 9]), Front::Frame(1));
    assert_eq!(front(&[0, 0, 0, 2, 9, 9, 0]), Front::Frame(2));
    assert_eq!(front(&[0, 1, 0, 14]), Front::Partial);
    for length in [0, 65_559, u32::MAX] {
        assert_eq!(front(&length.to_be_bytes()), Front::Garbage(length));
    }
}

#[test]
fn stream_moves_frames_both_ways() {
    let mut pair = Pair::new();
    let mut peer = pair.connect(0);
    for bytes in [1, 60, 1514, MAX_FRAME_BYTES] {
        let frame = plain_frame(bytes);
        assert_eq!(pair.send(&frame), Sent::Done);
        assert!(!pair.queue.has_unsent());
        assert_eq!(read_frame(&mut peer), frame);
        peer.write_all(&announced(&frame)).unwrap();
        let (outcome, got) = pair.receive();
        let header = NetHeader::default();
        let bytes = frame.len();
        assert_eq!(outcome, Received::Frame { header, bytes });
        assert_eq!(got, frame);
        assert_eq!(pair.receive().0, Received::Empty);
    }
    for bytes in [0, MAX_FRAME_BYTES + 1] {
        let sent = pair.send(&vec![0; bytes]);
        assert_eq!(sent, Sent::Dropped(SendLoss::Invalid));
    }
}

#[test]
fn frames_are_told_apart_however_they_arrive() {
    let mut pair = Pair::new();
    let mut peer = pair.connect(0);
    let frames: Vec<_> = (0..300).map(|at| plain_frame(14 + at * 7)).collect();
    let stream: Vec<u8> = frames.iter().flat_map(|frame| announced(frame)).collect();
    for piece in [1, 3, 1000, 4096, 50_000] {
        let mut got = Vec::new();
        for part in stream.chunks(piece) {
            peer.write_all(part).unwrap();
            got.extend(received_all(|room| pair.queue.receive(room)));
        }
        let got: Vec<_> = got.into_iter().map(|(_, frame)| frame).collect();
        assert!(got == frames, "in pieces of {piece} bytes");
    }
}

#[test]
fn frame_that_is_partly_sent_is_finished_first() {
    let mut pair = Pair::new();
    let mut peer = pair.connect(0);
    set_socket_send_buffer_size(pair.queue.descriptor().unwrap(), 1).unwrap();
    let long = plain_frame(60_000);
    let short = plain_frame(100);
    assert_eq!(pair.send(&long), Sent::Done);
    assert!(pair.queue.has_unsent());
    assert_eq!(pair.send(&short), Sent::Blocked);
    assert_eq!(pair.queue.flush(), Sent::Blocked);
    let queue = pair.queue.descriptor().unwrap();
    assert!(!wait(queue, PollFlags::OUT, std::time::Duration::ZERO));

    let mut wanted = announced(&long);
    wanted.extend(announced(&short));
    let mut got: Vec<u8> = Vec::new();
    let mut sent_short = false;
    while got.len() < wanted.len() {
        let mut some = [0; 3000];
        let bytes = peer.read(&mut some).unwrap();
        got.extend(&some[..bytes]);
        if !sent_short && pair.queue.flush() == Sent::Done {
            sent_short = pair.send(&short) == Sent::Done;
        }
    }
    assert!(got == wanted);
    assert_eq!(pair.queue.flush(), Sent::Done);
    assert!(!pair.queue.has_unsent());
}

#[test]
fn garbage_lengths_close_the_connection() {
    for length in [0, 65_559, u32::MAX] {
        let mut pair = Pair::new();
        let mut peer = pair.connect(1000);
        let good = plain_frame(60);
        peer.write_all(&announced(&good)).unwrap();
        peer.write_all(&length.to_be_bytes()).unwrap();
        assert_eq!(pair.receive().1, good);
        assert_eq!(pair.receive().0, Received::Down);
        assert!(pair.queue.descriptor().is_none());
        // Not at once: a peer that talks nonsense will do so again.
        assert_eq!(pair.queue.retry_at_ns(), Some(1000 + RETRY_NS));
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn stream_connects_when_there_is_a_peer_and_again_after_it_has_gone() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("socket");
    let mut queue = StreamQueue::new(&path).unwrap();
    let frame = plain_frame(60);
    let down = Sent::Dropped(SendLoss::Down);
    assert_eq!(queue.retry_at_ns(), Some(0));
    assert!(!queue.retry(5));
    assert_eq!(queue.retry_at_ns(), Some(5 + RETRY_NS));
    assert_eq!(queue.send(Payload::Bytes(&frame)), down);
    assert_eq!(received(|room| queue.receive(room)).0, Received::Down);
    assert_eq!(queue.generation(), 0);

    let listener = UnixListener::bind(&path).unwrap();
    assert!(!queue.retry(4 + RETRY_NS), "too early");
    assert!(queue.retry(5 + RETRY_NS));
    assert!(queue.retry(6 + RETRY_NS));
    assert_eq!((queue.generation(), queue.retry_at_ns()), (1, None));
    let (peer, _) = listener.accept().unwrap();

    drop(peer);
    assert_eq!(received(|room| queue.receive(room)).0, Received::Down);
    assert_eq!(queue.send(Payload::Bytes(&frame)), down);
    // It had been there for long.
    let now_ns = 10 * RETRY_NS;
    assert!(queue.retry(now_ns));
    assert_eq!(queue.generation(), 2);
    drop(listener.accept().unwrap());
    assert_eq!(queue.send(Payload::Bytes(&frame)), down);
    assert_eq!(queue.retry_at_ns(), Some(now_ns + RETRY_NS));
}

#[test]
fn nothing_half_done_gets_into_the_next_connection() {
    let mut pair = Pair::new();
    let mut peer = pair.connect(0);
    let frame = plain_frame(60);
    set_socket_send_buffer_size(pair.queue.descriptor().unwrap(), 1).unwrap();
    assert_eq!(pair.send(&plain_frame(60_000)), Sent::Done);
    assert!(pair.queue.has_unsent());
    peer.write_all(&announced(&frame)[..30]).unwrap();
    assert_eq!(pair.receive().0, Received::Empty);
    drop(peer);
    assert_eq!(pair.receive().0, Received::Down);
    assert!(!pair.queue.has_unsent());

    let mut peer = pair.connect(RETRY_NS);
    assert_eq!(pair.send(&frame), Sent::Done);
    assert_eq!(read_frame(&mut peer), frame);
    peer.write_all(&announced(&frame)).unwrap();
    assert_eq!(pair.receive().1, frame);
}

#[test]
fn stream_does_not_wait_for_a_peer_that_does_not_accept() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("socket");
    let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let mut queues: Vec<_> = (0..4).map(|_| StreamQueue::new(&path).unwrap()).collect();
    let connected = queues.iter_mut().map(|queue| queue.retry(0));
    assert_eq!(connected.collect::<Vec<_>>(), [true, false, false, false]);
    rustix::net::accept(&listener).unwrap();
    assert!(queues[1].retry(RETRY_NS));
}

#[test]
fn path_too_long_for_a_socket_is_refused() {
    let error = StreamQueue::new(Path::new(&"p".repeat(200))).unwrap_err();
    let text = "has at most 107 bytes, this one has 200";
    assert!(error.to_string().ends_with(text), "{error}");
}

/// Connects to a program that is about to listen.
fn connect_to(path: &Path) -> StreamQueue {
    let mut queue = StreamQueue::new(path).unwrap();
    let start = Instant::now();
    while !queue.retry(u64::try_from(start.elapsed().as_nanos()).unwrap()) {
        assert!(start.elapsed() < PATIENCE, "nobody listens");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    queue
}

/// The next frame that is wanted.
fn next_frame(queue: &mut StreamQueue, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let start = Instant::now();
    loop {
        let (outcome, frame) = received(|room| queue.receive(room));
        match outcome {
            Received::Frame { .. } if wanted(&frame) => return frame,
            Received::Frame { .. } => {}
            Received::Empty => {
                let left = PATIENCE.saturating_sub(start.elapsed());
                let queue = queue.descriptor().unwrap();
                assert!(wait(queue, PollFlags::IN, left), "no frame came");
            }
            Received::Down => panic!("the peer has gone"),
        }
    }
}

#[test]
fn passt_answers_for_the_gateway() {
    let test = "passt_answers_for_the_gateway";
    in_network(test, || {
        ip("link add veth0 type veth peer name veth1");
        up(&["veth0", "veth1"]);
        ip("addr add 10.9.0.2/24 dev veth0");
        ip("route add default via 10.9.0.1");
        let dir = TempDir::new().unwrap();
        // As root, passt becomes somebody else.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let path = dir.path().join("socket");
        let mut command = Command::new("passt");
        command.arg("--foreground").arg("--socket").arg(&path);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(child) = command.spawn() else {
            return skip(test, "no passt");
        };
        let _passt = Started(child);
        let mut queue = connect_to(&path);

        let guest = [2, 0, 0, 0, 0, 1];
        let mut request = [&[0xff; 6][..], &guest, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
        request.extend(guest);
        request.extend([10, 9, 0, 2, 0, 0, 0, 0, 0, 0, 10, 9, 0, 1]);
        assert_eq!(queue.send(Payload::Bytes(&request)), Sent::Done);
        let answer = next_frame(&mut queue, |frame| frame.get(12..14) == Some(&[8, 6]));
        assert_eq!(answer[..6], guest);
        // A reply, from the gateway, to the guest.
        assert_eq!(answer[20..22], [0, 2]);
        assert_eq!(answer[28..32], [10, 9, 0, 1]);
        assert_eq!(answer[32..42], [&guest[..], &[10, 9, 0, 2]].concat());
    });
}

#[test]
fn qemu_passes_frames_between_its_stream_and_its_datagrams() {
    let test = "qemu_passes_frames_between_its_stream_and_its_datagrams";
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let unix = |end: &str, name: &str| {
        let path = path(name);
        format!(",{end}.type=unix,{end}.path={}", path.display())
    };
    let mut command = Command::new("qemu-system-x86_64");
    command.args("-M none -nodefaults -nographic -monitor none".split(' '));
    let stream = format!("stream,id=s,server=on{}", unix("addr", "stream"));
    let local = unix("local", "qemu");
    let dgram = format!("dgram,id=d{local}{}", unix("remote", "ours"));
    for netdev in [
        &stream,
        &dgram,
        "hubport,id=a,hubid=0,netdev=s",
        "hubport,id=b,hubid=0,netdev=d",
    ] {
        command.args(["-netdev", netdev]);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let Ok(child) = command.spawn() else {
        return skip(test, "no qemu-system-x86_64");
    };
    let _qemu = Started(child);
    let mut stream = connect_to(&path("stream"));
    let ours = path("ours");
    let mut dgram = crate::link::dgram::DgramQueue::open(&path("qemu"), Some(&ours)).unwrap();
    assert!(dgram.retry(0));
    for bytes in [60, 1514, 60_000] {
        let frame = plain_frame(bytes);
        // First what waits until QEMU has accepted; it drops what it has nobody for.
        assert_eq!(stream.send(Payload::Bytes(&frame)), Sent::Done);
        assert!(wait(dgram.descriptor(), PollFlags::IN, PATIENCE));
        assert_eq!(received(|room| dgram.receive(room)).1, frame);
        assert_eq!(dgram.send(Payload::Bytes(&frame)), Sent::Done);
        assert_eq!(next_frame(&mut stream, is_plain), frame);
    }
}
