// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Group B of the hostile cases: the memory table.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use ringside_frontend::blk::{BlkConfig, BlkDriver, BlkRequest, status};
use ringside_frontend::ids::request;
use ringside_frontend::load::{Verify, check_content, check_pattern, fill_pattern, write_pattern};
use ringside_frontend::memory::{FIRST_GPA, GuestMemory, MemoryLayout, RegionSpec, Sealing};
use ringside_frontend::raw::RawClient;
use ringside_frontend::ring::Segment;
use ringside_frontend::session::{MemoryMessages, Session};
use ringside_tests::hostile::wire::{self, RegionBody, mem_region, mem_table};
use ringside_tests::hostile::{Bystander, PATIENCE, SlowDisk, TestResult, Victim, wait_until};
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags};

const PAGE: u64 = 4096;
const PLAN: Verify = Verify {
    depth: 16,
    block_bytes: 4096,
    first_sector: 0,
    blocks: 64,
    seed: 19,
};

fn memfd(bytes: u64) -> rustix::io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("ringside-hostile", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, bytes)?;
    Ok(fd)
}

fn region(gpa: u64, bytes: u64, uva: u64, offset: u64) -> RegionBody {
    RegionBody {
        gpa,
        bytes,
        uva,
        offset,
    }
}

/// A table of one region closes, and so does the region added alone.
fn refused(victim: &mut Victim, region: &RegionBody, fd: BorrowedFd<'_>) -> TestResult {
    let table = mem_table(1, &[*region]);
    victim.closes_on(wire::header(request::SET_MEM_TABLE, &table), &table, &[fd])?;
    let alone = mem_region(region);
    victim.closes_on(wire::header(request::ADD_MEM_REG, &alone), &alone, &[fd])
}

#[test]
fn b1_region_beyond_its_file_closes() -> TestResult {
    let mut victim = Victim::memory()?;
    let file = memfd(2 * PAGE)?;
    for (bytes, offset) in [
        (1 << 40, 0),
        (3 * PAGE, 0),
        (2 * PAGE, PAGE),
        (PAGE, 2 * PAGE),
        (PAGE, 1 << 40),
        (1 << 62, 0),
    ] {
        refused(&mut victim, &region(0, bytes, 0, offset), file.as_fd())?;
    }
    victim.check()
}

#[test]
fn b2_truncated_file_closes_and_the_process_lives() -> TestResult {
    for mut victim in [Victim::memory()?, Victim::file(&[])?] {
        for keep in [0, 8 << 20] {
            let layout = MemoryLayout::single(64 << 20).sealing(Sealing::Open);
            let stream = victim.stream()?;
            let raw = RawClient::from_stream(stream.try_clone()?)?;
            let mut session = Session::builder().memory(layout).from_stream(stream)?;
            let mut vring = session.start_all()?.remove(0);
            // The back-end sleeps; its next look at the ring is at what is no longer there. Nor
            // can we look at it any more.
            rustix::fs::ftruncate(session.memory().regions()[0].file(), keep)?;
            if keep > 0 {
                // The ring is still there, its buffers are not.
                let gone = FIRST_GPA + (32 << 20);
                let segment = Segment::readable(gone, 16);
                let status = Segment::writable(gone + PAGE, 1);
                vring.ring.add(&[segment, status], &[])?;
                vring.ring.publish();
            }
            vring.kick()?;
            raw.expect_closed(PATIENCE)?;
            drop((session, vring));
            victim.check()?;
        }
    }
    Ok(())
}

#[test]
fn b2_payload_in_a_truncated_file_fails_that_request() -> TestResult {
    for mut victim in [Victim::memory()?, Victim::file(&[])?] {
        let layout = MemoryLayout::adjacent(2, 8 << 20).sealing(Sealing::Open);
        let builder = Session::builder().memory(layout);
        let (session, mut drivers) = victim.drivers(builder, BlkConfig::default())?;
        let mut driver = drivers.remove(0);
        let gone = FIRST_GPA + (12 << 20);
        rustix::fs::ftruncate(session.memory().regions()[1].file(), 0)?;
        for request in [BlkRequest::read(0, 4096), BlkRequest::write(0, 4096)] {
            let answer = driver.execute(&request.at(gone))?;
            assert_eq!(answer.status, status::IOERR, "{request:?}");
        }
        write_pattern(&mut driver, &PLAN)?;
        check_content(&mut driver, &PLAN)?;
        drop((session, driver));
        victim.check()?;
    }
    Ok(())
}

#[test]
fn b2_hole_reads_as_zeroes() -> TestResult {
    let mut victim = Victim::memory()?;
    let builder = Session::builder().memory(MemoryLayout::default().sealing(Sealing::Open));
    let (session, mut drivers) = victim.drivers(builder, BlkConfig::default())?;
    let mut driver = drivers.remove(0);
    write_pattern(&mut driver, &PLAN)?;
    let slot = driver.acquire()?;
    driver.data(slot).fill(0, 4096, 0xee);
    let offset = driver.data_gpa(slot) - FIRST_GPA;
    rustix::fs::fallocate(
        session.memory().regions()[0].file(),
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        offset,
        PAGE,
    )?;
    driver.run(slot, &BlkRequest::write(8, 4096))?.ok()?;
    driver.release(slot);
    let mut back = vec![1; 4096];
    driver.read(8, &mut back)?.ok()?;
    assert_eq!(back, vec![0; 4096]);
    drop((session, driver));
    victim.check()
}

#[test]
fn b3_overflow_zero_and_misaligned_regions_close() -> TestResult {
    let mut victim = Victim::memory()?;
    let file = memfd(16 * PAGE)?;
    let top = u64::MAX - PAGE + 1;
    for body in [
        region(top, 2 * PAGE, 0, 0),
        region(0, 2 * PAGE, top, 0),
        region(0, 2 * PAGE, 0, top),
        region(u64::MAX, PAGE, 0, 0),
        region(0, u64::MAX, 0, 0),
        region(0, top, PAGE, 0),
        region(0, 0, 0, 0),
        region(0, PAGE, 0, 512),
        region(0, PAGE, 0, 1),
    ] {
        refused(&mut victim, &body, file.as_fd())?;
    }
    victim.check()
}

/// libblkio and virtio-driver share their rings in a file of just their length, so the end of a
/// region need not be aligned; it must lie within the file all the same.
#[test]
fn b3_region_that_ends_within_a_page_is_accepted_up_to_the_end_of_its_file() -> TestResult {
    let mut victim = Victim::memory()?;
    let file = memfd(PAGE + 512)?;
    refused(&mut victim, &region(0, PAGE + 513, 0, 0), file.as_fd())?;
    let body = mem_region(&region(0, PAGE + 512, 0, 0));
    let client = victim.negotiated()?;
    let header = wire::header(request::ADD_MEM_REG, &body).need_reply();
    client.send(header, &body, &[file.as_fd()])?;
    assert_eq!(client.recv(PATIENCE)?.u64_at(0), Some(0));
    drop(client);
    victim.check()
}

#[test]
fn b4_overlaps_and_wrong_counts_close() -> TestResult {
    let mut victim = Victim::memory()?;
    let file = memfd(64 * PAGE)?;
    let low = region(0x10_0000, 4 * PAGE, 0x7000_0000, 0);
    for high in [
        low,
        region(low.gpa + 3 * PAGE, 4 * PAGE, 0x8000_0000, 0),
        region(low.gpa, PAGE, 0x8000_0000, 0),
        region(0x20_0000, 4 * PAGE, low.uva + 3 * PAGE, 0),
        region(0x20_0000, 8 * PAGE, low.uva - PAGE, 0),
    ] {
        for pair in [[low, high], [high, low]] {
            let table = mem_table(2, &pair);
            let header = wire::header(request::SET_MEM_TABLE, &table);
            victim.closes_on(header, &table, &[file.as_fd(); 2])?;
            if high == low {
                // Added alone, the same again is no overlap.
                continue;
            }
            let client = victim.negotiated()?;
            for one in pair {
                let body = mem_region(&one);
                let header = wire::header(request::ADD_MEM_REG, &body);
                client.send(header, &body, &[file.as_fd()])?;
            }
            client.expect_closed(PATIENCE)?;
        }
    }
    for (count, regions, fds) in [
        (0, 0, 0),
        (0, 1, 1),
        (33, 33, 33),
        (u32::MAX, 1, 1),
        (2, 1, 1),
        (1, 2, 2),
        (2, 2, 1),
        (1, 1, 2),
        (1, 1, 0),
    ] {
        let bodies: Vec<_> = (0..regions)
            .map(|n| region(n * PAGE, PAGE, n * PAGE, 0))
            .collect();
        let table = mem_table(count, &bodies);
        let header = wire::header(request::SET_MEM_TABLE, &table);
        victim.closes_on(header, &table, &vec![file.as_fd(); fds])?;
    }
    victim.check()
}

#[test]
fn b5_descriptors_that_are_no_memory_close() -> TestResult {
    let mut victim = Victim::memory()?;
    let memory = memfd(PAGE)?;
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memory));
    let open = |path: &str, flags| rustix::fs::open(path, flags, Mode::empty());
    let (pipe, _end) = rustix::pipe::pipe()?;
    let (socket, _peer) = UnixStream::pair()?;
    for fd in [
        open(&link, OFlags::RDONLY)?,
        open(&link, OFlags::WRONLY)?,
        open(&link, OFlags::PATH)?,
        open("/dev/null", OFlags::RDWR)?,
        open("/dev/zero", OFlags::RDWR)?,
        open("/", OFlags::RDONLY)?,
        pipe,
        socket.into(),
    ] {
        refused(&mut victim, &region(0, PAGE, 0, 0), fd.as_fd())?;
    }
    victim.check()
}

#[test]
fn b5_file_on_tmpfs_is_memory() -> TestResult {
    let mut victim = Victim::memory()?;
    let dir = tempfile::tempdir_in("/dev/shm")?;
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(dir.path().join("memory"))?;
    file.set_len(PAGE)?;
    for (id, body) in [
        (
            request::SET_MEM_TABLE,
            mem_table(1, &[region(0, PAGE, 0, 0)]),
        ),
        (
            request::ADD_MEM_REG,
            mem_region(&region(PAGE, PAGE, PAGE, 0)),
        ),
    ] {
        let client = victim.negotiated()?;
        client.send(wire::header(id, &body), &body, &[file.as_fd()])?;
        assert!(client.is_alive(PATIENCE), "message {id}");
    }
    victim.check()
}

#[test]
fn b6_every_slot_offered_works_and_one_more_closes() -> TestResult {
    let mut victim = Victim::memory()?;
    let client = victim.negotiated()?;
    let answer = client.call(request::GET_MAX_MEM_SLOTS, &[], PATIENCE)?;
    let slots = answer.u64_at(0).ok_or("short answer")?;
    let file = memfd((slots + 1) * PAGE)?;
    let add = |n: u64| -> TestResult {
        // Apart from each other, so that the kernel cannot merge the mappings.
        let body = mem_region(&region(2 * n * PAGE, PAGE, 2 * n * PAGE, n * PAGE));
        let header = wire::header(request::ADD_MEM_REG, &body);
        Ok(client.send(header, &body, &[file.as_fd()])?)
    };
    for n in 0..slots {
        add(n)?;
    }
    assert!(client.is_alive(PATIENCE));
    assert_eq!(
        victim.footprint()?.fds,
        victim.before().fds + usize::try_from(slots)?
    );
    add(slots)?;
    client.expect_closed(PATIENCE)?;
    victim.check()
}

/// QEMU before 8.0 adds each region once for every pair of queues of a network device, and removes
/// it as often.
#[test]
fn f7_1_region_added_again_or_removed_in_vain_changes_nothing() -> TestResult {
    let mut victim = Victim::memory()?;
    let (file, other) = (memfd(4 * PAGE)?, memfd(4 * PAGE)?);
    let have = region(0x10_0000, 2 * PAGE, 0x7000_0000, 0);
    let done = |client: &RawClient, id, body: &RegionBody, fd: &OwnedFd| -> TestResult {
        let body = mem_region(body);
        let fds = [fd.as_fd()];
        let fds = if id == request::ADD_MEM_REG {
            &fds[..]
        } else {
            &[]
        };
        client.send(wire::header(id, &body).need_reply(), &body, fds)?;
        assert_eq!(client.recv(PATIENCE)?.u64_at(0), Some(0), "message {id}");
        Ok(())
    };
    let client = victim.negotiated()?;
    done(&client, request::ADD_MEM_REG, &have, &file)?;
    let held = victim.footprint()?;
    for _ in 0..3 {
        done(&client, request::ADD_MEM_REG, &have, &file)?;
    }
    for absent in [
        region(0x20_0000, 2 * PAGE, 0x7000_0000, 0),
        region(0x10_0000, PAGE, 0x7000_0000, 0),
        region(0x10_0000, 2 * PAGE, 0x7000_1000, 0),
    ] {
        done(&client, request::REM_MEM_REG, &absent, &file)?;
    }
    assert_eq!(victim.footprint()?, held, "nothing came and nothing went");
    for _ in 0..3 {
        done(&client, request::REM_MEM_REG, &have, &file)?;
    }
    assert_eq!(victim.footprint()?.shared_maps, 0);
    drop(client);
    // The same place in another file, or another part of it, is an overlap.
    for (body, fd) in [
        (have, &other),
        (region(0x10_0000, 2 * PAGE, 0x7000_0000, PAGE), &file),
        (region(0x10_0000, PAGE, 0x7000_0000, 0), &file),
    ] {
        let client = victim.negotiated()?;
        done(&client, request::ADD_MEM_REG, &have, &file)?;
        let body = mem_region(&body);
        let header = wire::header(request::ADD_MEM_REG, &body);
        client.send(header, &body, &[fd.as_fd()])?;
        client.expect_closed(PATIENCE)?;
    }
    victim.check()
}

/// Two regions: rings and most else in the first, and a buffer at the end of the second.
fn two_regions() -> MemoryLayout {
    MemoryLayout::of(vec![
        RegionSpec::new(FIRST_GPA, 48 << 20),
        RegionSpec::new(FIRST_GPA + (1 << 30), 4 << 20),
    ])
}

#[test]
fn f4_5_ring_whose_region_is_removed_waits_for_it_and_no_other_does() -> TestResult {
    for mut victim in [Victim::memory()?, Victim::file(&[])?] {
        let builder = Session::builder()
            .queues(2)
            .memory(two_regions())
            .memory_messages(MemoryMessages::Slots);
        let mut session = victim.session(builder)?;
        let memory = session.memory().clone();
        let mut config = session.ring_config();
        config.indirect_len = 0;
        let size = usize::from(config.size);
        let second = FIRST_GPA + (1 << 30);
        let layout = ringside_frontend::ring::RingLayout {
            desc_gpa: second,
            avail_gpa: second + 0x2000,
            used_gpa: second + 0x4000,
        };
        assert!(size * 16 <= 0x2000);
        let mut waiting = session.create_vring(0)?;
        waiting.ring = ringside_frontend::ring::SplitRing::at(&memory, config, layout)?;
        session.start(&waiting, 0)?;
        let other = session.create_vring(1)?;
        session.start(&other, 0)?;
        let bystander = Bystander::start(BlkDriver::new(other, BlkConfig::default())?)?;
        let config = BlkConfig {
            depth: 16,
            ..BlkConfig::default()
        };
        let mut driver = BlkDriver::new(waiting, config)?;
        for round in 0..4 {
            let plan = Verify {
                seed: round,
                ..PLAN
            };
            write_pattern(&mut driver, &plan)?;
            check_content(&mut driver, &plan)?;
            let used = driver.vring().ring.used_idx();
            session.remove_region(&memory.regions()[1])?;
            let slot = driver.acquire()?;
            driver.submit(slot, &BlkRequest::read(0, 4096))?;
            driver.vring_mut().ring.publish();
            driver.vring_mut().kick()?;
            bystander.goes_on()?;
            assert_eq!(
                driver.vring().ring.used_idx(),
                used,
                "served without memory"
            );
            // Once with a kick in the time between, once without.
            session.add_region(&memory.regions()[1])?;
            let answer = driver.wait()?;
            assert_eq!(answer.status, status::OK);
            driver.release(slot);
        }
        // Removed for good, it can be stopped.
        let served = driver.vring().ring.used_idx();
        session.remove_region(&memory.regions()[1])?;
        assert_eq!(session.stop(0)?, served);
        let bystander = bystander.finish()?;
        drop((session, driver, bystander));
        victim.check()?;
    }
    Ok(())
}

/// Changes memory under requests in flight. How long the disk is in the way is up to the kernel:
/// attempts that hit nothing are made again.
fn changed_in_flight(
    aio: &str,
    change: impl Fn(&mut Session, &GuestMemory) -> TestResult,
) -> TestResult {
    for _ in 0..20 {
        if attempt_in_flight(aio, &change)? {
            return Ok(());
        }
    }
    Err("nothing was ever in flight".into())
}

/// Starts writes of a megabyte each from the second region and changes memory under them; whether
/// some of them were still in flight afterwards.
fn attempt_in_flight(
    aio: &str,
    change: impl Fn(&mut Session, &GuestMemory) -> TestResult,
) -> ringside_tests::hostile::Result<bool> {
    const BYTES: u32 = 1 << 20;
    const WRITES: u64 = 24;
    let mut victim = Victim::file(&["--aio", aio])?;
    let builder = Session::builder()
        .queues(2)
        .memory(two_regions())
        .memory_messages(MemoryMessages::Slots)
        .timeout(PATIENCE);
    let config = BlkConfig {
        depth: 32,
        slot_bytes: 4096,
        timeout: PATIENCE,
        ..BlkConfig::default()
    };
    let (mut session, mut drivers) = victim.drivers(builder, config)?;
    let memory = session.memory().clone();
    let mut driver = drivers.remove(0);
    let mut data = vec![0; BYTES as usize];
    let source = FIRST_GPA + (1 << 30);
    fill_pattern(PLAN.seed, 0, &mut data);
    memory.write(source, &data)?;
    let slow = SlowDisk::start(&victim.process().path("disk.img"))?;
    for n in 0..WRITES {
        let slot = driver.acquire()?;
        let request = BlkRequest::write(n * u64::from(BYTES) / 512, BYTES);
        driver.submit(slot, &request.at(source))?;
    }
    driver.vring_mut().ring.publish();
    driver.vring_mut().kick()?;
    wait_until("a first completion", || {
        Ok(driver.vring().ring.used_idx() > 0)
    })?;
    change(&mut session, &memory)?;
    let done = driver.vring().ring.used_idx();
    let hit = u64::from(done) < WRITES;
    // One that the device had not taken yet finds its buffer gone, and is refused for that: such
    // an attempt says nothing.
    let mut refused = 0;
    while driver.in_flight() > 0 {
        let completion = driver.wait()?;
        refused += u64::from(completion.status != 0);
        driver.release(completion.slot);
    }
    slow.finish()?;
    if refused > 0 {
        drop((session, driver, drivers));
        victim.check()?;
        return Ok(false);
    }
    // What was written came from the old mapping, all of it.
    let image = File::open(victim.process().path("disk.img"))?;
    let mut back = vec![0; BYTES as usize];
    for n in 0..WRITES {
        std::os::unix::fs::FileExt::read_exact_at(&image, &mut back, n * u64::from(BYTES))?;
        check_pattern(PLAN.seed, 0, &back)?;
    }
    write_pattern(&mut driver, &PLAN)?;
    check_content(&mut driver, &PLAN)?;
    drop((session, driver, drivers));
    victim.check()?;
    Ok(hit)
}

#[test]
fn b6_region_removed_under_requests_in_flight_lives_as_long_as_they() -> TestResult {
    for aio in ["threads", "io_uring"] {
        changed_in_flight(aio, |session, memory| {
            session.remove_region(&memory.regions()[1])?;
            // The guest has the pages for something else.
            memory.regions()[1]
                .window()
                .sub(2 << 20, 2 << 20)
                .fill(0, 2 << 20, 0xff);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn b7_table_set_again_under_requests_in_flight_keeps_the_old_mapping() -> TestResult {
    for aio in ["threads", "io_uring"] {
        changed_in_flight(aio, |session, memory| {
            // The same memory anew, as on a hot-plug; and once with another second region.
            session.set_mem_table(memory)?;
            let other = GuestMemory::new(&MemoryLayout::of(vec![RegionSpec::new(
                FIRST_GPA + (2 << 30),
                1 << 20,
            )]))?;
            session.remove_region(&memory.regions()[1])?;
            session.add_region(&other.regions()[0])?;
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn b7_table_set_again_and_again_under_load_loses_nothing() -> TestResult {
    let mut victim = Victim::memory()?;
    let builder = Session::builder().queues(2);
    let (mut session, mut drivers) = victim.drivers(builder, BlkConfig::default())?;
    let memory = session.memory().clone();
    let bystander = Bystander::start(drivers.remove(1))?;
    for _ in 0..500 {
        session.set_mem_table(&memory)?;
    }
    let second = bystander.finish()?;
    drop((session, drivers, second));
    victim.check()
}

#[test]
fn b8_buffers_at_the_edges_of_regions() -> TestResult {
    const BYTES: u32 = 8192;
    let mut victim = Victim::memory()?;
    let layout = MemoryLayout::adjacent(3, 8 << 20);
    let end = FIRST_GPA + 3 * (8 << 20);
    let (session, mut drivers) =
        victim.drivers(Session::builder().memory(layout), BlkConfig::default())?;
    let mut driver = drivers.remove(0);
    let memory = session.memory().clone();
    let mut data = vec![0; BYTES as usize];
    // Across two regions, and up to the very last byte.
    for (sector, gpa) in [
        (0, memory.alloc_straddling(1, 8191)?),
        (64, memory.alloc_straddling(4096, 4096)?),
        (128, end - u64::from(BYTES)),
    ] {
        fill_pattern(23, sector, &mut data);
        memory.write(gpa, &data)?;
        driver
            .execute(&BlkRequest::write(sector, BYTES).at(gpa))?
            .ok()?;
        memory.write(gpa, &vec![0; data.len()])?;
        driver
            .execute(&BlkRequest::read(sector, BYTES).at(gpa))?
            .ok()?;
        check_pattern(23, sector, &memory.read_vec(gpa, data.len())?)?;
    }
    // In a gap, in part in a gap, and where addresses end.
    for gpa in [
        end - 1,
        end - 4096,
        end,
        0,
        FIRST_GPA - 1,
        1 << 63,
        u64::MAX - 100,
    ] {
        for request in [BlkRequest::read(0, BYTES), BlkRequest::write(0, BYTES)] {
            let answer = driver.execute(&request.at(gpa))?;
            assert_eq!(
                (answer.status, answer.used_len),
                (status::IOERR, 1),
                "{gpa:#x}"
            );
        }
    }
    drop((session, driver));
    victim.check()
}

#[test]
fn b8_buffer_of_no_bytes_at_no_address_is_passed_over() -> TestResult {
    let mut victim = Victim::memory()?;
    let (session, mut drivers) = victim.drivers(Session::builder(), BlkConfig::default())?;
    let mut driver = drivers.remove(0);
    let memory = session.memory().clone();
    let gpa = memory.alloc(1024, 64)?;
    memory.write(gpa, &[0; 16])?;
    let ring = &mut driver.vring_mut().ring;
    let used = ring.used_idx();
    let chain = [
        Segment::readable(gpa, 16),
        Segment::readable(1 << 50, 0),
        Segment::writable(u64::MAX, 0),
        Segment::writable(gpa + 64, 512),
        Segment::writable(gpa + 32, 1),
    ];
    memory.write(gpa + 32, &[0xff])?;
    ring.add(&chain, &[])?;
    driver.publish()?;
    wait_until("the read", || {
        Ok(driver.vring().ring.used_idx() == used.wrapping_add(1))
    })?;
    assert_eq!(memory.read_vec(gpa + 32, 1)?, [status::OK]);
    drop((session, driver));
    victim.check()
}

#[test]
fn b9_table_set_10_000_times_stays_flat() -> TestResult {
    const TIMES: u32 = 10_000;
    let mut victim = Victim::memory()?;
    let (session, client) = victim.session_and_raw(Session::builder())?;
    let region = &session.memory().regions()[0];
    let table = mem_table(1, &[RegionBody::of(region)]);
    let header = wire::header(request::SET_MEM_TABLE, &table);
    let mut held = None;
    let mut anon_before = 0;
    for n in 1..=TIMES {
        client.send(header, &table, &[region.file()])?;
        if n % 1000 == 0 {
            assert!(client.is_alive(PATIENCE));
            let now = victim.footprint()?;
            let anon = victim.process().sample()?.rss_anon_kib;
            assert_eq!(*held.get_or_insert(now), now, "after {n}");
            if anon_before == 0 {
                anon_before = anon;
            }
            assert!(
                anon < anon_before + 256,
                "{anon_before} KiB, now {anon} KiB"
            );
        }
    }
    drop((session, client));
    victim.check()
}
