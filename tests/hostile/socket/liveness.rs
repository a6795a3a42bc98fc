// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Front-ends that are slow, silent, deaf or repetitive.

use std::time::{Duration, Instant};

use ringside_frontend::blk::{BlkConfig, BlkRequest};
use ringside_frontend::ids::request;
use ringside_frontend::raw::{Header, RawClient};
use ringside_frontend::session::Session;
use ringside_tests::hostile::wire::{self, vring_state};
use ringside_tests::hostile::{
    Bystander, PATIENCE, QUEUES, SlowDisk, TestResult, Victim, wait_until,
};
use ringside_tests::process::flood;
use rustix::net::SendFlags;

/// The bound of A2 for an exit on SIGTERM.
const EXIT_BOUND: Duration = Duration::from_secs(1);

/// SIGTERM ends the process cleanly and in time.
fn terminates(mut victim: Victim) -> TestResult {
    let start = Instant::now();
    let status = victim.process().terminate(PATIENCE)?;
    let took = start.elapsed();
    assert_eq!(status.code(), Some(0));
    assert!(took < EXIT_BOUND, "SIGTERM took {took:?}");
    Ok(())
}

#[test]
fn a2_header_then_silence_costs_nothing_and_stops_nothing() -> TestResult {
    for (step, body_bytes) in [(12, 0), (5, 0), (12, 4)] {
        let mut victim = Victim::memory()?;
        let (mut session, client) = victim.session_and_raw(Session::builder().queues(2))?;
        let mut drivers = Vec::new();
        for vring in session.start_all()? {
            let config = BlkConfig::default();
            drivers.push(ringside_frontend::blk::BlkDriver::new(vring, config)?);
        }
        let header = Header::new(request::SET_FEATURES, 8).to_bytes();
        client.send_bytes(&header[..step], &[])?;
        if body_bytes > 0 {
            client.send_bytes(&vec![0; body_bytes], &[])?;
        }
        let bystander = Bystander::start(drivers.remove(1))?;
        let driver = bystander.finish()?;
        let quiet = Duration::from_millis(500);
        let cpu = victim.cpu_over(quiet)?;
        assert!(cpu < quiet / 100, "{cpu:?} of processor time in {quiet:?}");
        if step == 5 {
            drop((session, client, driver, drivers));
            victim.check()?;
        } else {
            terminates(victim)?;
        }
    }
    Ok(())
}

#[test]
fn a8_vring_num_100_000_times_grows_nothing() -> TestResult {
    const BATCH: u32 = 1000;
    let mut victim = Victim::memory()?;
    let client = victim.negotiated()?;
    assert!(client.is_alive(PATIENCE));
    let during = victim.footprint()?;
    let anon_before = victim.process().sample()?.rss_anon_kib;
    for batch in 0..100 {
        let mut bytes = Vec::new();
        for n in 0..BATCH {
            let body = vring_state(n % 4, 1 << (batch % 8));
            bytes.extend(wire::header(request::SET_VRING_NUM, &body).to_bytes());
            bytes.extend(body);
        }
        client.send_bytes(&bytes, &[])?;
    }
    assert!(client.is_alive(PATIENCE));
    let grown = victim
        .process()
        .sample()?
        .rss_anon_kib
        .saturating_sub(anon_before);
    assert!(grown < 512, "grew by {grown} KiB");
    assert_eq!(victim.footprint()?, during);
    drop(client);
    victim.check()
}

#[test]
fn a21_vring_base_is_not_answered_before_what_is_in_flight_is_done() -> TestResult {
    for aio in ["threads", "io_uring"] {
        let mut victim = Victim::file(&["--aio", aio])?;
        let config = BlkConfig {
            depth: 128,
            slot_bytes: 65_536,
            timeout: PATIENCE,
            ..BlkConfig::default()
        };
        let builder = Session::builder().queue_size(512).timeout(PATIENCE);
        let (mut session, mut drivers) = victim.drivers(builder, config)?;
        let mut driver = drivers.remove(0);
        let slow = SlowDisk::start(&victim.process().path("disk.img"))?;
        // How long the disk is in the way is up to the kernel: some rounds hit nothing.
        let mut hits = 0;
        for round in 0..50 {
            let used_before = driver.vring().ring.used_idx();
            for block in 0..128 {
                let slot = driver.acquire()?;
                driver.submit(slot, &BlkRequest::write(block * 128, 65_536))?;
            }
            driver.vring_mut().ring.publish();
            driver.vring_mut().kick()?;
            let ring = &driver.vring().ring;
            wait_until("a first completion", || Ok(ring.used_idx() != used_before))?;
            let done = ring.used_idx().wrapping_sub(used_before);
            let base = session.stop(0)?;
            assert_eq!(ring.used_idx(), base, "answered too early, round {round}");
            hits += u32::from(done < 128);
            session.start(driver.vring(), base)?;
            while driver.in_flight() > 0 {
                let slot = driver.wait()?.ok()?.slot;
                driver.release(slot);
            }
            if hits == 3 {
                break;
            }
        }
        assert!(hits > 0, "nothing was ever in flight");
        slow.finish()?;
        drop((session, driver));
        victim.check()?;
    }
    Ok(())
}

/// Asks and asks, and never reads an answer, until the socket takes no more.
fn deafen(client: &RawClient) -> TestResult {
    let message = Header::new(request::GET_FEATURES, 0).to_bytes();
    let mut full = 0;
    // Full twice with a pause between: the back-end has stopped reading.
    while full < 20 {
        match rustix::net::send(
            client.stream(),
            &message,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        ) {
            Ok(_) => full = 0,
            Err(rustix::io::Errno::AGAIN) => {
                full += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[test]
fn a26_front_end_that_never_reads_blocks_no_queue_and_no_exit() -> TestResult {
    for terminate in [false, true] {
        let mut victim = Victim::memory()?;
        let (mut session, client) = victim.session_and_raw(Session::builder().queues(2))?;
        let mut drivers = Vec::new();
        for vring in session.start_all()? {
            let config = BlkConfig::default();
            drivers.push(ringside_frontend::blk::BlkDriver::new(vring, config)?);
        }
        let bystander = Bystander::start(drivers.remove(1))?;
        deafen(&client)?;
        let driver = bystander.finish()?;
        if terminate {
            terminates(victim)?;
            continue;
        }
        let quiet = Duration::from_millis(500);
        let cpu = victim.cpu_over(quiet)?;
        assert!(cpu < quiet / 100, "{cpu:?} of processor time in {quiet:?}");
        drop((session, client, driver, drivers));
        victim.check()?;
    }
    Ok(())
}

#[test]
fn f2_6_front_ends_that_come_and_go_are_told_of_once_a_second() -> TestResult {
    let mut victim = Victim::memory()?;
    for _ in 0..300 {
        assert!(victim.raw()?.is_alive(PATIENCE));
    }
    for _ in 0..100 {
        victim.closes_on(Header::new(0, 0), &[], &[])?;
    }
    for _ in 0..50 {
        let builder = Session::builder().queues(QUEUES.into());
        let (mut session, _drivers) = victim.drivers(builder, BlkConfig::default())?;
        for vring in 0..usize::from(QUEUES) {
            session.stop(vring)?;
        }
    }
    let log = victim.process().stderr();
    for word in [
        "has connected",
        "has left",
        "the connection was closed",
        " started",
        " stopped at",
    ] {
        assert!(log.contains(word), "{word}: {log}");
    }
    assert_eq!(flood(&log), None);
    victim.check()
}
