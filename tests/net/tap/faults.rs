// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests that break the rules of a ring, and commands that are not for us.

use std::net::UdpSocket;

use ringside_frontend::ids::feature;
use ringside_frontend::net::net_feature::{CTRL_GUEST_OFFLOADS, GUEST_CSUM};
use ringside_frontend::net::{NetConfig, NetPort, Pair, Shape, ack, class};
use ringside_frontend::ring::{Descriptor, Segment, desc_flag};
use ringside_tests::skip;
use ringside_tests::vm::network_needs;

use crate::kernel::Host;
use crate::{
    PATIENCE, TestResult, builder, config, datagram_in, eventually, open, plain, to_kernel,
};

const MALFORMED: usize = 10_000;
/// Malformed chains at a time.
const BATCH: usize = 50;

/// A frame goes out by the pair, and those for the guest still arrive, by whatever pair.
fn passes(port: &mut NetPort, pair: usize, socket: &UdpSocket) -> TestResult {
    let kernel = socket.local_addr()?.port();
    let source = 2000 + u16::try_from(pair)?;
    let frame = to_kernel((source, kernel), b"out");
    port.pairs[pair].tx.send_now(&plain(), &frame, PATIENCE)?;
    let mut arrived = [0; 64];
    let (bytes, from) = socket.recv_from(&mut arrived)?;
    assert_eq!((&arrived[..bytes], from.port()), (&b"out"[..], source));
    socket.send_to(b"in", from)?;
    let mut frame = Vec::new();
    eventually("the datagram for the guest", || {
        for pair in &mut port.pairs {
            while pair.rx.poll(&mut frame)?.is_some() {
                pair.rx.post_all()?;
                let found = datagram_in(&frame)?;
                if found.is_some_and(|found| found.payload == b"in") {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    })
}

/// Spoils a descriptor at head `head`.
fn spoil(kind: usize, descriptor: &mut Descriptor, head: u16) {
    match kind % 4 {
        0 => (descriptor.flags, descriptor.next) = (desc_flag::NEXT, head),
        1 => descriptor.addr = 0xdead_0000_0000,
        // Of a transmit chain to be written, of a receive chain to be read.
        2 => descriptor.flags ^= desc_flag::WRITE,
        _ => descriptor.len = 0,
    }
}

fn send_malformed(pair: &mut Pair) -> TestResult {
    pair.tx.set_shape(Shape::WHOLE);
    let frame = to_kernel((1, 1), b"malformed");
    for batch in 0..MALFORMED / BATCH {
        for at in 0..BATCH {
            assert!(pair.tx.send(&plain(), &frame)?);
            let ring = &pair.tx.vring().ring;
            let head = ring.avail_slot(ring.next_avail().wrapping_sub(1));
            ring.edit_desc(head, |descriptor| spoil(batch + at, descriptor, head));
        }
        pair.tx.publish()?;
        // `reap` holds the device to a used length of 0.
        pair.tx.wait_all(PATIENCE)?;
    }
    Ok(())
}

fn post_malformed(pair: &mut Pair, socket: &UdpSocket, guest: (&str, u16)) -> TestResult {
    let vring = pair.rx.vring_mut();
    let gpa = vring.memory().alloc(2048, 64)?;
    for batch in 0..MALFORMED / BATCH {
        for at in 0..BATCH {
            let head = vring.ring.add(&[Segment::writable(gpa, 2048)], &[])?;
            vring
                .ring
                .edit_desc(head, |descriptor| spoil(batch + at, descriptor, head));
        }
        vring.publish()?;
        socket.send_to(b"for nobody", guest)?;
        let mut back = 0;
        eventually("the malformed chains", || {
            while let Some(used) = vring.ring.pop_used()? {
                assert_eq!(used.len, 0);
                back += 1;
            }
            Ok(back == BATCH)
        })?;
    }
    Ok(())
}

#[test]
fn rule_11_malformed_chains_stop_neither_their_pair_nor_another() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::new(2)?;
    let mut back_end = host.back_end(2)?;
    let mut port = open(&mut back_end, 2)?;
    host.meet()?;
    let socket = host.socket()?;
    send_malformed(&mut port.pairs[0])?;
    post_malformed(&mut port.pairs[0], &socket, ("10.9.0.2", 9))?;
    for pair in &mut port.pairs {
        pair.rx.post_all()?;
    }
    for pair in [0, 1, 0, 1] {
        passes(&mut port, pair, &socket)?;
    }
    Ok(())
}

#[test]
fn rule_17_guest_offloads_command_is_refused_and_not_offered() -> TestResult {
    const SET: u8 = 0;
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::new(1)?;
    let mut back_end = host.back_end(1)?;
    let config = NetConfig {
        control: true,
        ..config(1)
    };
    let mut port = NetPort::open(back_end.connect(0)?, builder(), &config)?;
    host.meet()?;
    let offered = port.session.negotiated().offered;
    assert_eq!(offered & CTRL_GUEST_OFFLOADS, 0);
    assert_ne!(offered & GUEST_CSUM & !feature::VERSION_1, 0);
    let control = port.control.as_mut().ok_or("no control queue")?;
    for offloads in [0_u64, GUEST_CSUM] {
        let answer = control.command(
            class::GUEST_OFFLOADS,
            SET,
            &offloads.to_le_bytes(),
            PATIENCE,
        )?;
        assert_eq!(answer, ack::ERR, "{offloads:#x}");
    }
    port.pairs[0].rx.post_all()?;
    passes(&mut port, 0, &host.socket()?)
}
