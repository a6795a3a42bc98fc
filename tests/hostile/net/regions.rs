// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory of several ports at once.

use std::os::fd::AsFd as _;

use ringside_frontend::ids::request;
use ringside_frontend::memory::{MemoryLayout, Sealing};
use ringside_frontend::net::NetPort;
use ringside_frontend::raw::RawClient;
use ringside_tests::hostile::wire::{self, RegionBody, mem_region};
use ringside_tests::hostile::{PATIENCE, Result, TestResult, negotiated};
use rustix::fs::MemfdFlags;

use crate::scene::{Scene, builder, config};

const PAGE: u64 = 4096;

/// A front-end that has every slot there is in use.
fn full(scene: &mut Scene, port: usize) -> Result<RawClient> {
    let client = negotiated(scene.back_end.connect(port)?, PATIENCE)?;
    let answer = client.call(request::GET_MAX_MEM_SLOTS, &[], PATIENCE)?;
    let slots = answer.u64_at(0).ok_or("short answer")?;
    assert_eq!(slots, 509);
    let file = rustix::fs::memfd_create("slots", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, slots * PAGE)?;
    for n in 0..slots {
        let region = RegionBody {
            // Apart, so that each has a mapping of its own.
            gpa: 2 * n * PAGE,
            bytes: PAGE,
            uva: 2 * n * PAGE,
            offset: n * PAGE,
        };
        let body = mem_region(&region);
        let header = wire::header(request::ADD_MEM_REG, &body);
        client.send(header, &body, &[file.as_fd()])?;
    }
    assert!(client.is_alive(PATIENCE), "a slot was refused");
    Ok(client)
}

#[test]
fn f1_3_truncation_beside_ports_that_have_all_their_slots_ends_its_session_only() -> TestResult {
    let mut scene = Scene::start_with(3)?;
    let others = [full(&mut scene, 1)?, full(&mut scene, 2)?];
    for keep in [0, 8 << 20] {
        let stream = scene.back_end.connect(0)?;
        let raw = RawClient::from_stream(stream.try_clone()?)?;
        let layout = MemoryLayout::default().sealing(Sealing::Open);
        let mut port = NetPort::open(stream, builder().memory(layout), &config())?;
        let tx = port.pairs[0].tx.vring_mut();
        rustix::fs::ftruncate(tx.memory().regions()[0].file(), keep)?;
        if keep > 0 {
            // The ring is still there, the frame is not.
            let gone = ringside_frontend::memory::FIRST_GPA + (32 << 20);
            let frame = ringside_frontend::ring::Segment::readable(gone, 100);
            tx.ring.add(&[frame], &[])?;
            tx.ring.publish();
        }
        tx.kick()?;
        raw.expect_closed(PATIENCE)?;
        drop(port);
        scene.goes_on()?;
        for other in &others {
            assert!(other.is_alive(PATIENCE));
        }
    }
    drop(others);
    scene.check()
}
