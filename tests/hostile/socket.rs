// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Group A of the hostile cases: messages on the socket.
//!
//! "Closes" means: the connection is closed, with a refusal first where an answer was asked for,
//! and the next front-end is served. A9 to A12 and A25 are about messages that are not offered
//! yet; here they are only refused.

#[path = "socket/descriptors.rs"]
mod descriptors;
#[path = "socket/fuzz.rs"]
mod fuzz;
#[path = "socket/liveness.rs"]
mod liveness;
#[path = "socket/state.rs"]
mod state;

use std::os::fd::AsFd;

use ringside_frontend::ids::{feature, request};
use ringside_frontend::raw::Header;
use ringside_tests::hostile::wire::{self, vring_addr, vring_state, words};
use ringside_tests::hostile::{PATIENCE, QUEUES, TestResult, Victim, expect_refusal};
use rustix::event::{EventfdFlags, eventfd};

#[test]
fn a1_parts_of_a_message_then_close_are_passed_over_quietly() -> TestResult {
    let mut victim = Victim::memory()?;
    let mut message = Header::new(request::SET_FEATURES, 8).to_bytes().to_vec();
    message.extend([0; 8]);
    for sent in 0..message.len() {
        let client = victim.raw()?;
        if sent > 0 {
            client.send_bytes(&message[..sent], &[])?;
        }
    }
    victim.check()?;
    let log = victim.process().stderr();
    assert!(!log.contains(" WARN ") && !log.contains(" ERROR "), "{log}");
    Ok(())
}

#[test]
fn a3_wrong_sizes_close_and_allocate_nothing() -> TestResult {
    let mut victim = Victim::memory()?;
    let peak_before = victim.status_number("VmPeak:")?;
    for (id, size, body_bytes) in [
        (request::SET_FEATURES, u32::MAX, 8),
        (request::SET_MEM_TABLE, 4097, 4097),
        (request::GET_FEATURES, 8, 8),
        (request::SET_FEATURES, 4, 4),
        (request::SET_FEATURES, 0, 0),
        (request::SET_FEATURES, 16, 16),
        (request::SET_VRING_NUM, 7, 7),
        (request::SET_VRING_NUM, 16, 16),
        (request::SET_VRING_ADDR, 39, 39),
        (request::SET_VRING_KICK, 4, 4),
        (request::SET_MEM_TABLE, 4, 4),
        (request::SET_MEM_TABLE, 41, 41),
        (request::GET_CONFIG, 11, 11),
        (request::GET_CONFIG, 4096, 4096),
        (request::SET_CONFIG, 12, 12),
        (request::ADD_MEM_REG, 8, 8),
        (request::REM_MEM_REG, 32, 32),
        (request::SET_OWNER, 1, 1),
    ] {
        victim.closes_on(Header::new(id, size), &vec![0; body_bytes], &[])?;
    }
    // Stacks of the data threads of no session were made; a buffer of 4 GiB would show.
    let grown = victim.status_number("VmPeak:")? - peak_before;
    assert!(grown < 64 << 10, "peak grew by {grown} KiB");
    victim.check()
}

#[test]
fn a4_wrong_version_and_flags_close() -> TestResult {
    let mut victim = Victim::memory()?;
    for flags in [
        0,
        2,
        3,
        1 | 1 << 2,
        1 | 1 << 4,
        1 | 1 << 31,
        0xffff_fff9,
        u32::MAX,
    ] {
        let header = Header {
            flags,
            ..Header::new(request::GET_FEATURES, 0)
        };
        victim.closes_on(header, &[], &[])?;
    }
    victim.check()
}

#[test]
fn a5_unknown_and_unoffered_requests_close() -> TestResult {
    let mut victim = Victim::memory()?;
    let unknown = [0, 45, 46, 100, 0x100, 0x1_0001, u32::MAX];
    let unoffered = [
        request::SET_LOG_FD,
        request::SEND_RARP,
        request::NET_SET_MTU,
        request::IOTLB_MSG,
        request::SET_VRING_ENDIAN,
        request::CREATE_CRYPTO_SESSION,
        request::CLOSE_CRYPTO_SESSION,
        request::POSTCOPY_ADVISE,
        request::POSTCOPY_LISTEN,
        request::POSTCOPY_END,
        request::GPU_SET_SOCKET,
        request::VRING_KICK,
        request::SET_STATUS,
        request::GET_STATUS,
        request::GET_SHARED_OBJECT,
        request::GET_SHMEM_CONFIG,
    ];
    for id in unknown.into_iter().chain(unoffered) {
        for body_bytes in [0, 8, 16, 64] {
            victim.closes_on(
                Header::new(id, body_bytes),
                &vec![1; body_bytes as usize],
                &[],
            )?;
        }
    }
    // The GPU's socket with a socket, which the crate would take for a display.
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair()?;
    let header = Header::new(request::GPU_SET_SOCKET, 0);
    victim.closes_on(header, &[], &[ours.as_fd()])?;
    victim.check()
}

#[test]
fn a6_vring_indices_out_of_range_close() -> TestResult {
    let mut victim = Victim::memory()?;
    let event = eventfd(0, EventfdFlags::CLOEXEC)?;
    for index in [
        u32::from(QUEUES),
        0xff,
        0x100,
        0x1_0000,
        0xffff_0000,
        u32::MAX,
    ] {
        for (id, body) in [
            (request::SET_VRING_NUM, vring_state(index, 128)),
            (request::SET_VRING_BASE, vring_state(index, 0)),
            (request::GET_VRING_BASE, vring_state(index, 0)),
            (request::SET_VRING_ENABLE, vring_state(index, 1)),
            (request::SET_VRING_ADDR, vring_addr(index, 0, 0, 0)),
        ] {
            victim.closes_on(wire::header(id, &body), &body, &[])?;
        }
        // Before the first SET_FEATURES the message takes another way.
        let client = victim.raw()?;
        client.request(request::SET_VRING_ENABLE, &vring_state(index, 1))?;
        client.expect_closed(PATIENCE)?;
    }
    for value in [u64::from(QUEUES), 0xff, 0x200, 0x1_0000, 1 << 32, !0x100] {
        let fds = [event.as_fd()];
        for id in [
            request::SET_VRING_KICK,
            request::SET_VRING_CALL,
            request::SET_VRING_ERR,
        ] {
            victim.closes_on(Header::new(id, 8), &value.to_ne_bytes(), &fds)?;
        }
    }
    victim.check()
}

#[test]
fn a6_refusals_are_answered_where_asked_for() -> TestResult {
    let mut victim = Victim::memory()?;
    let index = u32::from(QUEUES);
    for (id, body) in [
        (request::SET_VRING_NUM, vring_state(index, 128)),
        (request::SET_VRING_BASE, vring_state(index, 0)),
        (request::SET_VRING_ENABLE, vring_state(index, 1)),
        (request::SET_VRING_ADDR, vring_addr(index, 0, 0, 0)),
        (request::SET_VRING_CALL, words(&[u64::from(index) | 0x100])),
        (request::SET_VRING_ERR, words(&[1 << 9 | 0x100])),
        (request::SET_VRING_KICK, words(&[0x100])),
        (request::SET_FEATURES, words(&[feature::RING_PACKED])),
        (request::SET_OWNER, Vec::new()),
    ] {
        let client = victim.negotiated()?;
        client.send(wire::header(id, &body).need_reply(), &body, &[])?;
        expect_refusal(&client).map_err(|e| format!("message {id}: {e}"))?;
    }
    victim.check()
}

#[test]
fn a9_a10_a11_inflight_messages_close_while_not_offered() -> TestResult {
    let mut victim = Victim::memory()?;
    let file = std::fs::File::open("/dev/zero")?;
    let body = words(&[4096, 0, 128 << 16 | 1]);
    let get = wire::header(request::GET_INFLIGHT_FD, &body);
    victim.closes_on(get, &body, &[])?;
    let set = wire::header(request::SET_INFLIGHT_FD, &body);
    victim.closes_on(set, &body, &[file.as_fd()])?;
    victim.check()
}

#[test]
fn a12_dirty_log_messages_close_while_not_offered() -> TestResult {
    let mut victim = Victim::memory()?;
    let file = std::fs::File::open("/dev/zero")?;
    let body = words(&[4096, 0]);
    let header = wire::header(request::SET_LOG_BASE, &body);
    victim.closes_on(header, &body, &[file.as_fd()])?;
    victim.closes_on(header, &body, &[])?;
    let header = Header::new(request::SET_LOG_FD, 0);
    victim.closes_on(header, &[], &[file.as_fd()])?;
    let log_all = words(&[feature::VERSION_1 | feature::PROTOCOL_FEATURES | feature::LOG_ALL]);
    let header = wire::header(request::SET_FEATURES, &log_all);
    victim.closes_on(header, &log_all, &[])?;
    victim.check()
}

#[test]
fn a25_device_state_messages_are_refused_while_not_offered() -> TestResult {
    /// Bits 0-7: failed; bit 8: no descriptor comes with the answer.
    const FAILED: u64 = 0x101;
    let mut victim = Victim::memory()?;
    let dir = std::fs::File::open("/")?;
    let client = victim.negotiated()?;
    let body = words(&[0]);
    let header = wire::header(request::SET_DEVICE_STATE_FD, &body);
    client.send(header, &body, &[dir.as_fd()])?;
    let answer = client.recv(PATIENCE)?;
    assert_eq!((answer.u64_at(0), answer.fds.len()), (Some(FAILED), 0));
    let answer = client.call(request::CHECK_DEVICE_STATE, &[], PATIENCE)?;
    assert_ne!(answer.u64_at(0), Some(0), "there was nothing to check");
    assert!(client.is_alive(PATIENCE));
    drop(client);
    victim.closes_on(header, &body, &[])?;
    victim.check()
}
