// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use super::*;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread;

const CONFIG: VhostUserProtocolFeatures = VhostUserProtocolFeatures::CONFIG;
const SHMEM: VhostUserProtocolFeatures =
    VhostUserProtocolFeatures::SHMEM.union(VhostUserProtocolFeatures::REPLY_ACK);

/// A channel, and the front-end's end of it.
fn channel(features: VhostUserProtocolFeatures) -> (BackChannel, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let channel = BackChannel::default();
    channel.set(ours.into(), features);
    (channel, theirs)
}

fn mapping() -> VhostUserMMap {
    VhostUserMMap {
        shm_offset: 0x20_0000,
        len: 0x1000,
        ..VhostUserMMap::default()
    }
}

fn answer(request: u32, value: u64) -> Vec<u8> {
    let head = [request, 5, 8].map(u32::to_le_bytes).concat();
    [&head[..], &value.to_le_bytes()].concat()
}

/// Reads a message with a mapping, and says `bytes`.
fn reply(socket: &mut UnixStream, bytes: &[u8]) -> [u8; 52] {
    let mut message = [0; 52];
    socket.read_exact(&mut message).unwrap();
    socket.write_all(bytes).unwrap();
    message
}

/// What came of an unmapping that is answered with `bytes`.
fn unmap_answered(bytes: &[u8]) -> Result<(), ShmemError> {
    let (channel, mut theirs) = channel(SHMEM);
    thread::scope(|scope| {
        scope.spawn(|| reply(&mut theirs, bytes));
        channel.shmem_unmap(&mapping())
    })
}

#[test]
fn change_is_one_message_of_the_protocol() {
    assert!(!BackChannel::default().config_changed());
    let (channel, mut theirs) = channel(CONFIG);
    assert!(channel.config_changed());
    let mut got = [0; 12];
    theirs.read_exact(&mut got).unwrap();
    assert_eq!(got, CONFIG_CHANGE);
}

#[test]
fn peer_that_never_reads_does_not_block() {
    let (channel, _theirs) = channel(CONFIG);
    let refused = (0..100_000).any(|_| !channel.config_changed());
    assert!(refused, "the buffer of a socket is finite");
}

#[test]
fn what_was_not_negotiated_is_not_said() {
    for features in [
        CONFIG,
        VhostUserProtocolFeatures::SHMEM,
        VhostUserProtocolFeatures::empty(),
    ] {
        let (channel, _theirs) = channel(features);
        assert!(!channel.has_shmem());
        let refused = channel.shmem_unmap(&mapping());
        assert!(matches!(refused, Err(ShmemError::NotNegotiated)));
    }
    let (channel, _theirs) = channel(SHMEM);
    assert!(channel.has_shmem() && !channel.config_changed());
}

#[test]
fn message_that_is_answered_has_the_layout_of_the_protocol() {
    let (channel, mut theirs) = channel(SHMEM);
    let got = thread::scope(|scope| {
        let got = scope.spawn(|| reply(&mut theirs, &answer(9, 0)));
        let file = tempfile::tempfile().unwrap();
        channel.shmem_map(&mapping(), file.as_fd()).unwrap();
        got.join().unwrap()
    });
    let mut expected = [[9, 0, 0, 0], [9, 0, 0, 0], [40, 0, 0, 0]]
        .concat()
        .to_vec();
    for field in [0_u64, 0, 0x20_0000, 0x1000, 0] {
        expected.extend(field.to_le_bytes());
    }
    assert_eq!(got[..], expected);
}

#[test]
fn answer_in_parts_behind_one_to_something_else_is_found() {
    let (channel, mut theirs) = channel(CONFIG | SHMEM);
    assert!(channel.config_changed());
    thread::scope(|scope| {
        scope.spawn(move || {
            theirs.read_exact(&mut [0; 12]).unwrap();
            reply(&mut theirs, &answer(2, 1));
            for byte in answer(10, 0) {
                theirs.write_all(&[byte]).unwrap();
            }
            theirs
        });
        channel.shmem_unmap(&mapping()).unwrap();
    });
}

#[test]
fn refusal_and_nonsense_are_told_apart() {
    let refused = unmap_answered(&answer(10, 22));
    assert!(matches!(refused, Err(ShmemError::Refused(22))));
    let mut nonsense = answer(10, 0);
    nonsense[4] = 1;
    let nonsense = unmap_answered(&nonsense);
    assert!(matches!(
        nonsense,
        Err(ShmemError::Unanswered(Errno::PROTO))
    ));
}

#[test]
fn late_answer_is_not_taken_for_another() {
    let (channel, mut theirs) = channel(SHMEM);
    let late = channel.shmem_unmap(&mapping());
    assert!(matches!(late, Err(ShmemError::Unanswered(Errno::TIMEDOUT))));
    let held_up = channel.shmem_unmap(&mapping());
    assert!(matches!(held_up, Err(ShmemError::Busy)));
    reply(&mut theirs, &answer(10, 7));
    thread::scope(|scope| {
        scope.spawn(|| reply(&mut theirs, &answer(10, 0)));
        channel.shmem_unmap(&mapping()).unwrap();
    });
}

#[test]
fn end_of_the_session_wakes_who_waits() {
    let (channel, mut theirs) = channel(SHMEM);
    let woken = thread::scope(|scope| {
        let waits = scope.spawn(|| channel.shmem_unmap(&mapping()));
        theirs.read_exact(&mut [0; 52]).unwrap();
        channel.close();
        waits.join().unwrap()
    });
    assert!(matches!(
        woken,
        Err(ShmemError::Unanswered(Errno::CONNRESET))
    ));
}
