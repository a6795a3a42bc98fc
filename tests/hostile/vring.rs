// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Group C of the hostile cases: addresses, indices and state of vrings.

#[path = "vring/load.rs"]
mod load;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringside_frontend::blk::{BlkConfig, BlkDriver, BlkRequest, RequestShape, TableShape};
use ringside_frontend::ids::request;
use ringside_frontend::load::{Rng, Verify, check_content, write_pattern};
use ringside_frontend::ring::{CallMode, Descriptor, Segment};
use ringside_frontend::session::Session;
use ringside_frontend::vring::Vring;
use ringside_tests::hostile::wire::{self, vring_addr, vring_state};
use ringside_tests::hostile::{Bystander, PATIENCE, Result, TestResult, Victim, wait_until};

pub(crate) const PLAN: Verify = Verify {
    depth: 16,
    block_bytes: 4096,
    first_sector: 0,
    blocks: 64,
    seed: 29,
};

/// A driver on queue 0 and verified I/O on queue 1, with one data thread for both: the strictest.
pub(crate) struct Pair {
    pub(crate) victim: Victim,
    pub(crate) session: Session,
    pub(crate) driver: BlkDriver,
    pub(crate) bystander: Bystander,
}

impl Pair {
    fn start() -> Result<Self> {
        Self::with(Session::builder(), BlkConfig::default())
    }

    fn with(
        builder: ringside_frontend::session::SessionBuilder,
        config: BlkConfig,
    ) -> Result<Self> {
        // A discard made of random bytes can be as large as the disk.
        let mut victim = Victim::memory_with(&["--threads", "1", "--discard", "ignore"])?;
        let mut session = victim.session(builder.queues(2))?;
        let mut vrings = session.start_all()?;
        let second = vrings.remove(1);
        let bystander = Bystander::start(BlkDriver::new(second, BlkConfig::default())?)?;
        let driver = BlkDriver::new(vrings.remove(0), config)?;
        Ok(Self {
            victim,
            session,
            driver,
            bystander,
        })
    }

    /// The ring was stopped and its error eventfd signalled; nothing more is served, until it is
    /// stopped and started. Queue 1 went on all the while.
    fn expect_stopped(mut self) -> TestResult {
        self.driver.vring().wait_err(PATIENCE)?;
        let used = self.driver.vring().ring.used_idx();
        self.driver.vring_mut().kick()?;
        self.bystander.goes_on()?;
        assert_eq!(
            self.driver.vring().ring.used_idx(),
            used,
            "served when stopped"
        );
        self.session.stop(0)?;
        self.driver.reset(0);
        self.session.start(self.driver.vring(), 0)?;
        self.expect_served()
    }

    /// The ring is served, and queue 1 went on all the while.
    fn expect_served(mut self) -> TestResult {
        write_pattern(&mut self.driver, &PLAN)?;
        check_content(&mut self.driver, &PLAN)?;
        let bystander = self.bystander.finish()?;
        drop((self.session, self.driver, bystander));
        self.victim.check()
    }
}

#[test]
fn c1_sizes_that_are_no_powers_of_two_or_too_large_are_refused() -> TestResult {
    let mut victim = Victim::memory_with(&["--queue-size", "256"])?;
    for num in [
        0,
        3,
        255,
        257,
        512,
        32768,
        65535,
        65536,
        65536 + 256,
        1 << 31,
        u32::MAX,
    ] {
        let client = victim.negotiated()?;
        let body = vring_state(0, num);
        let header = wire::header(request::SET_VRING_NUM, &body).need_reply();
        client.send(header, &body, &[])?;
        ringside_tests::hostile::expect_refusal(&client).map_err(|e| format!("{num}: {e}"))?;
    }
    for num in [1, 2, 4, 128, 256] {
        let client = victim.negotiated()?;
        let body = vring_state(0, num);
        let header = wire::header(request::SET_VRING_NUM, &body).need_reply();
        client.send(header, &body, &[])?;
        assert_eq!(client.recv(PATIENCE)?.u64_at(0), Some(0), "{num}");
    }
    victim.check()
}

#[test]
fn c2_bad_addresses_close_at_the_message() -> TestResult {
    let mut victim = Victim::memory()?;
    let layout = ringside_frontend::memory::MemoryLayout::adjacent(2, 1 << 20);
    let session = victim.session(Session::builder().memory(layout.uva_base(1 << 40)))?;
    let (base, next) = {
        let regions = session.memory().regions();
        (regions[0].uva(), regions[1].uva())
    };
    drop(session);
    let (desc, avail, used) = (base, base + 0x2000, base + 0x4000);
    let end = next + (1 << 20);
    for (desc, avail, used) in [
        (desc + 8, avail, used),
        (desc, avail + 1, used),
        (desc, avail, used + 2),
        (0, 0, 0),
        (0, avail, used),
        (desc, 0, used),
        (desc, avail, 0),
        (desc, avail, u64::MAX - 3),
        (u64::MAX - 15, avail, used),
        (desc, end, used),
        // Extents past the end, and across the border of two regions.
        (end - 16, avail, used),
        (desc, end - 2, used),
        (desc, avail, end - 4),
        (next - 2048, avail, used),
        (desc, avail, next - 64),
        // Extents that overlap.
        (desc, desc, desc),
        (desc, desc + 4080, used),
        (desc, avail, avail),
        (desc, avail, avail + 512),
        (avail - 2048, avail, used),
    ] {
        let layout = ringside_frontend::memory::MemoryLayout::adjacent(2, 1 << 20);
        let builder = Session::builder().memory(layout.uva_base(1 << 40));
        let (_session, client) = victim.session_and_raw(builder)?;
        client.request(request::SET_VRING_NUM, &vring_state(0, 256))?;
        let body = vring_addr(0, desc, used, avail);
        client.request(request::SET_VRING_ADDR, &body)?;
        client
            .expect_closed(PATIENCE)
            .map_err(|e| format!("{desc:#x} {avail:#x} {used:#x}: {e}"))?;
    }
    victim.check()
}

#[test]
fn c2_ring_that_grows_past_its_region_closes_at_the_start() -> TestResult {
    let mut victim = Victim::memory()?;
    let (mut session, client) = victim.session_and_raw(Session::builder())?;
    let vring = session.create_vring(0)?;
    session.set_up(&vring, 0)?;
    let region = &session.memory().regions()[0];
    let last = region.uva() + region.len_bytes() as u64 - 4096;
    client.request(request::SET_VRING_NUM, &vring_state(0, 128))?;
    let body = vring_addr(0, region.uva(), last, region.uva() + 0x8000);
    client.request(request::SET_VRING_ADDR, &body)?;
    // Sound so far; a used ring of 1024 entries is not.
    assert!(client.is_alive(PATIENCE));
    client.request(request::SET_VRING_NUM, &vring_state(0, 1024))?;
    assert!(session.set_kick(&vring).is_err());
    client.expect_closed(PATIENCE)?;
    drop((session, vring));
    victim.check()
}

#[test]
fn c3_index_that_jumps_too_far_or_back_stops_the_ring() -> TestResult {
    for jump in [257, 1000, 32768, 65535, u16::MAX - 256] {
        let mut pair = Pair::start()?;
        write_pattern(&mut pair.driver, &PLAN)?;
        let ring = &pair.driver.vring().ring;
        ring.set_avail_idx(ring.next_avail().wrapping_add(jump));
        pair.driver.vring_mut().kick()?;
        pair.expect_stopped()?;
    }
    Ok(())
}

#[test]
fn c3_index_that_jumps_by_the_size_is_served() -> TestResult {
    let config = BlkConfig {
        depth: 256,
        slot_bytes: 4096,
        shape: RequestShape {
            table: TableShape::Indirect,
            ..RequestShape::default()
        },
        ..BlkConfig::default()
    };
    let mut pair = Pair::with(Session::builder(), config)?;
    for round in 0..20 {
        for block in 0..256 {
            let slot = pair.driver.acquire()?;
            pair.driver
                .submit(slot, &BlkRequest::read(block * 8, 4096))?;
        }
        assert_eq!(pair.driver.vring().ring.free_len(), 0);
        pair.driver.publish()?;
        for _ in 0..256 {
            let slot = pair.driver.wait()?.ok()?.slot;
            pair.driver.release(slot);
        }
        assert_eq!(pair.driver.vring().ring.used_idx(), 256 * (round + 1));
    }
    pair.expect_served()
}

#[test]
fn c4_ring_that_never_empties_leaves_the_others_their_turn() -> TestResult {
    // The table says 10 ms, on a machine of one's own. The two processors here have at least three
    // threads to run (spinner, back-end, this one) and other work besides.
    const BOUND: Duration = Duration::from_millis(10 * 50);
    let mut victim = Victim::memory_with(&["--threads", "1"])?;
    let (session, mut drivers) =
        victim.drivers(Session::builder().queues(2), BlkConfig::default())?;
    let mut driver = drivers.remove(1);
    let mut spun = drivers.remove(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> TestResult {
        // Every head is a chain without a status byte, which comes back at once; the index is kept
        // a full ring ahead of what has come back.
        let ring = &spun.vring().ring;
        for head in 0..256 {
            ring.set_avail_slot(head, head);
            ring.set_desc(head, Descriptor::default());
        }
        ring.set_avail_idx(256);
        spun.vring_mut().kick()?;
        let ring = &spun.vring().ring;
        let (told, kick) = (&stop, &spun.vring().kick);
        let spinner = scope.spawn(move || {
            let mut turn = 0_u64;
            while !told.load(Ordering::Relaxed) {
                ring.set_avail_idx(ring.used_idx().wrapping_add(256));
                turn += 1;
                // For when it was empty after all, while this thread was not running.
                if turn.is_multiple_of(256) && kick.signal().is_err() {
                    break;
                }
            }
        });
        let outcome = (|| -> TestResult {
            let mut worst = Duration::ZERO;
            for block in 0..200 {
                let start = Instant::now();
                driver.execute(&BlkRequest::read(block * 8, 4096))?.ok()?;
                worst = worst.max(start.elapsed());
            }
            if worst >= BOUND {
                return Err(format!("a request took {worst:?}").into());
            }
            let served = ring.used_idx();
            wait_until("the ring is still served", || Ok(ring.used_idx() != served))
        })();
        // Still spinning.
        let start = Instant::now();
        let ended = victim.process().terminate(PATIENCE);
        let took = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        let _ = spinner.join();
        outcome?;
        let status = ended?;
        assert_eq!(status.code(), Some(0));
        assert!(took < Duration::from_secs(1), "SIGTERM took {took:?}");
        Ok(())
    })?;
    drop(session);
    Ok(())
}

#[test]
fn c5_head_outside_of_the_table_stops_the_ring() -> TestResult {
    for head in [256, 257, 0x8000, u16::MAX] {
        let mut pair = Pair::start()?;
        write_pattern(&mut pair.driver, &PLAN)?;
        pair.driver.vring_mut().ring.push_head(head);
        pair.driver.vring_mut().ring.publish();
        pair.driver.vring_mut().kick()?;
        pair.expect_stopped()?;
    }
    Ok(())
}

/// Puts a sound flush into the ring and its head into `times` slots.
fn same_head(pair: &mut Pair, times: u16) -> Result<()> {
    let slot = pair.driver.acquire()?;
    pair.driver.submit(slot, &BlkRequest::read(0, 4096))?;
    let ring = &mut pair.driver.vring_mut().ring;
    let head = ring.avail_slot(ring.next_avail().wrapping_sub(1));
    for _ in 1..times {
        ring.push_head(head);
    }
    ring.publish();
    pair.driver.vring_mut().kick().map_err(Into::into)
}

#[test]
fn c5_head_in_flight_already_stops_the_ring() -> TestResult {
    for times in [2, 3, 100, 256] {
        let mut pair = Pair::start()?;
        same_head(&mut pair, times)?;
        pair.driver.vring().wait_err(PATIENCE)?;
        // The first of them is answered, once.
        wait_until("the first", || Ok(pair.driver.vring().ring.used_idx() >= 1))?;
        assert_eq!(pair.driver.vring().ring.used_idx(), 1);
        pair.driver.vring_mut().err.signal()?;
        pair.expect_stopped()?;
    }
    Ok(())
}

#[test]
fn c5_head_that_came_back_is_a_request_of_its_own() -> TestResult {
    let mut pair = Pair::start()?;
    same_head(&mut pair, 1)?;
    for round in 1..100 {
        wait_until("its turn", || {
            Ok(pair.driver.vring().ring.used_idx() == round)
        })?;
        let ring = &mut pair.driver.vring_mut().ring;
        let head = ring.avail_slot(0);
        ring.push_head(head);
        ring.publish();
        pair.driver.vring_mut().kick()?;
    }
    wait_until(
        "the last",
        || Ok(pair.driver.vring().ring.used_idx() == 100),
    )?;
    pair.session.stop(0)?;
    pair.driver.reset(0);
    pair.session.start(pair.driver.vring(), 0)?;
    pair.expect_served()
}

#[test]
fn c7_suppression_fields_full_of_noise_lose_no_call() -> TestResult {
    for event_idx in [true, false] {
        let mut pair = Pair::with(
            Session::builder().event_idx(event_idx),
            BlkConfig::default(),
        )?;
        let mut rng = Rng::new(7);
        for round in 0..500_u16 {
            let slot = pair.driver.acquire()?;
            pair.driver.submit(slot, &BlkRequest::read(0, 512))?;
            let ring = &pair.driver.vring().ring;
            let noise = rng.next_u64().to_ne_bytes();
            let noise = u16::from_ne_bytes([noise[0], noise[1]]);
            if event_idx {
                // The flags mean nothing then; the event is wanted.
                ring.set_avail_flags(u16::MAX);
                ring.set_used_event(round);
            } else {
                ring.set_avail_flags(noise & !1);
                ring.set_used_event(noise);
            }
            pair.driver.vring_mut().ring.publish();
            pair.driver.vring_mut().kick()?;
            // Woken by the call alone.
            pair.driver.vring().wait_call(PATIENCE)?;
            wait_until("its completion", || {
                Ok(pair.driver.vring().ring.used_idx() == round + 1)
            })?;
            let done = pair
                .driver
                .poll()?
                .ok_or("a call without a completion")?
                .ok()?;
            pair.driver.release(done.slot);
        }
        pair.expect_served()?;
    }
    Ok(())
}

#[test]
fn c7_random_events_are_no_storm() -> TestResult {
    let builder = Session::builder().calls(CallMode::Never);
    let mut pair = Pair::with(builder, BlkConfig::default())?;
    pair.driver.vring().call.take()?;
    let mut rng = Rng::new(8);
    for round in 1..=1000_u16 {
        let slot = pair.driver.acquire()?;
        pair.driver.submit(slot, &BlkRequest::read(0, 512))?;
        let noise = rng.next_u64().to_ne_bytes();
        let ring = &pair.driver.vring().ring;
        ring.set_used_event(u16::from_ne_bytes([noise[0], noise[1]]));
        ring.set_avail_flags(u16::MAX);
        pair.driver.vring_mut().ring.publish();
        pair.driver.vring_mut().kick()?;
        wait_until("its completion", || {
            Ok(pair.driver.vring().ring.used_idx() == round)
        })?;
        let done = pair.driver.poll()?.ok_or("no completion")?.ok()?;
        pair.driver.release(done.slot);
    }
    let calls = pair.driver.vring().call.take()?.unwrap_or(0);
    assert!(calls <= 1000, "{calls} calls for 1000 completions");
    pair.expect_served()
}

#[test]
fn c8_a_million_spurious_kicks_cost_nothing_afterwards() -> TestResult {
    for mut victim in [Victim::memory()?, Victim::file(&[])?] {
        let (session, mut drivers) = victim.drivers(Session::builder(), BlkConfig::default())?;
        let mut driver = drivers.remove(0);
        write_pattern(&mut driver, &PLAN)?;
        for _ in 0..1_000_000 {
            driver.vring_mut().kick()?;
        }
        check_content(&mut driver, &PLAN)?;
        let time = Duration::from_secs(1);
        let cpu = victim.cpu_over(time)?;
        assert!(cpu < time / 100, "{cpu:?} of processor time in {time:?}");
        assert_eq!(driver.vring().err.take()?, None);
        drop((session, driver));
        victim.check()?;
    }
    Ok(())
}

#[test]
fn c10_disabled_ring_is_left_alone_and_no_kick_is_lost() -> TestResult {
    let mut pair = Pair::start()?;
    write_pattern(&mut pair.driver, &PLAN)?;
    for round in 0..50 {
        let used = pair.driver.vring().ring.used_idx();
        pair.session.enable(0, false)?;
        for block in 0..8 {
            let slot = pair.driver.acquire()?;
            pair.driver
                .submit(slot, &BlkRequest::read(block * 8, 4096))?;
        }
        pair.driver.vring_mut().ring.publish();
        pair.driver.vring_mut().kick()?;
        if round % 10 == 0 {
            pair.bystander.goes_on()?;
        }
        assert_eq!(
            pair.driver.vring().ring.used_idx(),
            used,
            "served while disabled"
        );
        pair.session.enable(0, true)?;
        while pair.driver.in_flight() > 0 {
            let slot = pair.driver.wait()?.ok()?.slot;
            pair.driver.release(slot);
        }
    }
    pair.expect_served()
}

#[test]
fn f4_5_ring_whose_used_ring_was_removed_at_completion_waits() -> TestResult {
    use ringside_frontend::memory::{FIRST_GPA, MemoryLayout, RegionSpec};
    let mut victim = Victim::file(&["--threads", "1"])?;
    let used_gpa = FIRST_GPA + (1 << 30);
    let layout = MemoryLayout::of(vec![
        RegionSpec::new(FIRST_GPA, 64 << 20),
        RegionSpec::new(used_gpa, 1 << 20),
    ]);
    let builder = Session::builder()
        .queues(2)
        .memory(layout)
        .timeout(PATIENCE);
    let mut session = victim.session(builder)?;
    let memory = session.memory().clone();
    let mut vring: Vring = session.create_vring(0)?;
    let mut at = vring.ring.layout();
    at.used_gpa = used_gpa;
    vring.ring = ringside_frontend::ring::SplitRing::at(&memory, session.ring_config(), at)?;
    session.start(&vring, 0)?;
    let other = session.create_vring(1)?;
    session.start(&other, 0)?;
    let mut driver = BlkDriver::new(vring, BlkConfig::default())?;
    let slow = ringside_tests::hostile::SlowDisk::start(&victim.process().path("disk.img"))?;
    for block in 0..32 {
        let slot = driver.acquire()?;
        driver.submit(slot, &BlkRequest::write(block * 8, 4096))?;
    }
    driver.vring_mut().ring.publish();
    driver.vring_mut().kick()?;
    wait_until("a first completion", || {
        Ok(driver.vring().ring.used_idx() > 0)
    })?;
    session.remove_region(&memory.regions()[1])?;
    // What was in flight ends, wherever its used elements go.
    let base = session.stop(0)?;
    assert_eq!(base, 32);
    slow.finish()?;
    let other = Bystander::start(BlkDriver::new(other, BlkConfig::default())?)?.finish()?;
    drop((session, driver, other));
    victim.check()
}

/// Chains of random shape out of a playground, for the torn reads of C12.
fn random_descriptor(rng: &mut Rng, playground: u64, bytes: u64) -> Descriptor {
    let small = |value: u64| u16::try_from(value).unwrap_or(0);
    let at = playground + rng.below(bytes - 8192);
    let len = u32::try_from([0, 1, 16, 512, 4096, 8192][usize::from(small(rng.below(6)))]);
    Descriptor {
        addr: at,
        len: len.unwrap_or(0),
        flags: small(rng.below(4)),
        next: small(rng.below(256)),
    }
}

#[test]
#[expect(
    clippy::too_many_lines,
    reason = "one scope of threads around one case"
)]
fn c12_ring_rewritten_while_it_is_read_is_served_or_stopped() -> TestResult {
    const GROUND: usize = 1 << 20;
    const GUARD: usize = 64 << 10;
    for seed in [1, 2, 3] {
        let mut pair = Pair::start()?;
        let memory = pair.session.memory().clone();
        // Guards around the playground: nothing but the playground may change.
        let all = memory.alloc(GROUND + 2 * GUARD, 4096)?;
        let ground = all + GUARD as u64;
        let canary = vec![0x5a; GUARD];
        let guards = [all, ground + GROUND as u64];
        for guard in guards {
            memory.write(guard, &canary)?;
        }
        let header = memory.slice(ground, GROUND)?;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| -> TestResult {
            let ring = &pair.driver.vring().ring;
            let told = &stop;
            for tearer in 0..2 {
                let header = header.clone();
                scope.spawn(move || {
                    let mut rng = Rng::new(seed * 100 + tearer);
                    while !told.load(Ordering::Relaxed) {
                        let index = u16::try_from(rng.below(256)).unwrap_or(0);
                        let mut torn = random_descriptor(&mut rng, ground, GROUND as u64);
                        if rng.below(64) == 0 {
                            torn.flags = 4;
                            torn.len = 16 * u32::from(torn.next);
                        }
                        ring.set_desc(index, torn);
                        let at = usize::try_from(rng.below(GROUND as u64 / 8)).unwrap_or(0);
                        // Now and then something that is a header: type 0 to 15, sector below 64.
                        header.u64(8 * at).store(rng.below(16), Ordering::Relaxed);
                    }
                });
            }
            let start = Instant::now();
            let mut next = ring.next_avail();
            while start.elapsed() < Duration::from_secs(2) {
                if ring.used_idx() == next {
                    for _ in 0..64 {
                        ring.set_avail_slot(next, next % 256);
                        next = next.wrapping_add(1);
                    }
                    ring.set_avail_idx(next);
                    pair.driver.vring().kick.signal()?;
                }
                std::hint::spin_loop();
            }
            stop.store(true, Ordering::Relaxed);
            Ok(())
        })?;
        for guard in guards {
            assert_eq!(
                memory.read_vec(guard, GUARD)?,
                canary,
                "written outside, seed {seed}"
            );
        }
        pair.session.stop(0)?;
        pair.driver.reset(0);
        pair.session.start(pair.driver.vring(), 0)?;
        pair.expect_served()?;
    }
    Ok(())
}

#[test]
fn c2_one_entry_is_a_ring() -> TestResult {
    let mut victim = Victim::memory()?;
    let mut session = victim.session(Session::builder().queue_size(1))?;
    let mut vring = session.start_all()?.remove(0);
    let gpa = session.memory().alloc(64, 64)?;
    session.memory().write(gpa, &[4])?;
    for round in 1..100 {
        let table = [Segment::readable(gpa, 16), Segment::writable(gpa + 32, 1)];
        session.memory().write(gpa + 32, &[0xff])?;
        vring.ring.add(&[], &table)?;
        vring.publish()?;
        wait_until("a flush", || Ok(vring.ring.used_idx() == round))?;
        assert_eq!(session.memory().read_vec(gpa + 32, 1)?, [0]);
        vring.ring.pop_used()?;
    }
    drop((session, vring));
    victim.check()
}
