// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors: too many, too few, of the wrong kind, and shared.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};

use ringside_frontend::blk::{BlkConfig, BlkDriver, BlkRequest};
use ringside_frontend::ids::{VRING_NOFD, request};
use ringside_frontend::load::{Verify, check_content, write_pattern};
use ringside_frontend::raw::Header;
use ringside_frontend::ring::CallMode;
use ringside_frontend::session::Session;
use ringside_tests::hostile::wire::{self, RegionBody, mem_region, mem_table, vring_state, words};
use ringside_tests::hostile::{DISK_BYTES, PATIENCE, TestResult, Victim, wait_until};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::process::Signal;

const PLAN: Verify = Verify {
    depth: 16,
    block_bytes: 4096,
    first_sector: 0,
    blocks: 64,
    seed: 17,
};

fn memfd(bytes: u64) -> rustix::io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("ringside-hostile", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, bytes)?;
    Ok(fd)
}

#[test]
fn a7_fds_on_a_message_that_takes_none_closes_and_leaks_nothing() -> TestResult {
    let mut victim = Victim::memory()?;
    let event = eventfd(0, EventfdFlags::CLOEXEC)?;
    for (id, body) in [
        (request::GET_FEATURES, Vec::new()),
        (request::SET_FEATURES, words(&[1 << 32 | 1 << 30])),
        (request::RESET_OWNER, Vec::new()),
        (request::SET_VRING_NUM, vring_state(0, 128)),
        (request::SET_VRING_BASE, vring_state(0, 0)),
        (request::GET_VRING_BASE, vring_state(0, 0)),
        (request::SET_VRING_ENABLE, vring_state(0, 1)),
        (request::GET_QUEUE_NUM, Vec::new()),
        (request::RESET_DEVICE, Vec::new()),
    ] {
        for count in [1, 3, 33] {
            let fds = vec![event.as_fd(); count];
            victim.closes_on(wire::header(id, &body), &body, &fds)?;
        }
    }
    // The peek step takes this one off the socket by itself.
    let body = vring_state(0, 1);
    let header = wire::header(request::SET_VRING_ENABLE, &body);
    let client = victim.raw()?;
    client.send(header, &body, &[event.as_fd()])?;
    client.expect_closed(PATIENCE)?;
    victim.check()
}

#[test]
fn a7_wrong_number_of_fds_closes_and_leaks_nothing() -> TestResult {
    let mut victim = Victim::memory()?;
    let event = eventfd(0, EventfdFlags::CLOEXEC)?;
    let memory = memfd(8192)?;
    let (socket, _peer) = UnixStream::pair()?;
    let region = |gpa: u64| RegionBody {
        gpa,
        bytes: 4096,
        uva: gpa,
        offset: 0,
    };
    let index = words(&[0]);
    let one = mem_table(1, &[region(0)]);
    let two = mem_table(2, &[region(0), region(4096)]);
    let add = mem_region(&region(0));
    for (id, body, fd, right) in [
        (request::SET_VRING_KICK, &index, event.as_fd(), 1),
        (request::SET_VRING_CALL, &index, event.as_fd(), 1),
        (request::SET_VRING_ERR, &index, event.as_fd(), 1),
        (request::SET_MEM_TABLE, &one, memory.as_fd(), 1),
        (request::SET_MEM_TABLE, &two, memory.as_fd(), 2),
        (request::ADD_MEM_REG, &add, memory.as_fd(), 1),
        (request::SET_BACKEND_REQ_FD, &Vec::new(), socket.as_fd(), 1),
    ] {
        for count in [0, 1, 2, 3, 32, 33, 100] {
            if count != right {
                victim.closes_on(wire::header(id, body), body, &vec![fd; count])?;
            }
        }
    }
    // Descriptors that come with the body and not with the header belong to no message.
    let client = victim.negotiated()?;
    client.send_bytes(&Header::new(request::SET_VRING_CALL, 8).to_bytes(), &[])?;
    client.send_bytes(&index, &[event.as_fd(); 2])?;
    client.expect_closed(PATIENCE)?;
    victim.check()
}

/// Everything that is no eventfd, or is one that nothing can be done with.
fn not_eventfds() -> Result<Vec<(&'static str, OwnedFd)>, Box<dyn std::error::Error>> {
    let event = eventfd(0, EventfdFlags::CLOEXEC)?;
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&event));
    let (closed_pipe, _) = rustix::pipe::pipe()?;
    let (full_pipe, end) = rustix::pipe::pipe()?;
    rustix::io::write(&end, &[1])?;
    let (socket, _) = UnixStream::pair()?;
    let open = |path: &str, flags| rustix::fs::open(path, flags, Mode::empty());
    Ok(vec![
        ("/dev/null", open("/dev/null", OFlags::RDWR)?),
        ("/dev/zero", open("/dev/zero", OFlags::RDWR)?),
        ("a directory", open("/", OFlags::RDONLY)?),
        ("a file", memfd(8)?),
        ("a file by O_PATH", open("/dev/null", OFlags::PATH)?),
        ("an eventfd by O_PATH", open(&path, OFlags::PATH)?),
        ("a pipe that was closed", closed_pipe),
        ("a pipe with a byte", full_pipe),
        ("a socket", socket.into()),
        (
            "an epoll",
            rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC)?,
        ),
        (
            "an inotify",
            rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC)?,
        ),
        (
            "a pidfd",
            rustix::process::pidfd_open(
                rustix::process::getpid(),
                rustix::process::PidfdFlags::empty(),
            )?,
        ),
        (
            "a timerfd",
            rustix::time::timerfd_create(
                rustix::time::TimerfdClockId::Monotonic,
                rustix::time::TimerfdFlags::CLOEXEC,
            )?,
        ),
    ])
}

#[test]
fn a17_descriptors_that_are_no_eventfds_close() -> TestResult {
    // Both ways of waiting: epoll, and the io_uring that learns of a bad descriptor late.
    for mut victim in [Victim::memory()?, Victim::file(&[])?] {
        for (name, fd) in not_eventfds()? {
            for id in [
                request::SET_VRING_KICK,
                request::SET_VRING_CALL,
                request::SET_VRING_ERR,
            ] {
                let (mut session, client) = victim.session_and_raw(Session::builder())?;
                let vring = session.create_vring(0)?;
                session.set_up(&vring, 0)?;
                client.send(Header::new(id, 8), &words(&[0]), &[fd.as_fd()])?;
                client
                    .expect_closed(PATIENCE)
                    .map_err(|e| format!("{name} in message {id}: {e}"))?;
            }
        }
        victim.check()?;
    }
    Ok(())
}

/// A started ring whose descriptors were replaced by these.
fn serve_with(victim: &mut Victim, id: u32, fd: BorrowedFd<'_>, calls: CallMode) -> TestResult {
    let (mut session, client) = victim.session_and_raw(Session::builder().calls(calls))?;
    let vring = session.start_all()?.remove(0);
    client.send(Header::new(id, 8), &words(&[0]), &[fd])?;
    assert!(client.is_alive(PATIENCE));
    let mut driver = BlkDriver::new(vring, BlkConfig::default())?;
    for _ in 0..4 {
        write_pattern(&mut driver, &PLAN)?;
        check_content(&mut driver, &PLAN)?;
    }
    assert_eq!(usize::from(session.stop(0)?), 8 * 64);
    Ok(())
}

#[test]
fn a17_blocking_and_full_eventfds_block_nobody() -> TestResult {
    for mut victim in [Victim::memory()?, Victim::file(&[])?] {
        for flags in [
            EventfdFlags::CLOEXEC,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        ] {
            let full = eventfd(0, flags)?;
            rustix::io::write(&full, &0xffff_ffff_ffff_fffe_u64.to_ne_bytes())?;
            // Nobody hears a call on it: the driver looks at the used ring by itself. A call is
            // still made for each batch, since `used_event` asks for it.
            serve_with(
                &mut victim,
                request::SET_VRING_CALL,
                full.as_fd(),
                CallMode::Never,
            )?;
            serve_with(
                &mut victim,
                request::SET_VRING_ERR,
                full.as_fd(),
                CallMode::Wanted,
            )?;
            let (mut session, _) = victim.session_and_raw(Session::builder())?;
            let vring = session.create_vring(0)?;
            session.set_up(&vring, 0)?;
            drop((session, vring));
        }
        victim.check()?;
    }
    Ok(())
}

#[test]
fn a17_full_call_with_calls_wanted_is_skipped() -> TestResult {
    let mut victim = Victim::memory()?;
    let (mut session, mut drivers) = victim.drivers(Session::builder(), BlkConfig::default())?;
    let mut driver = drivers.remove(0);
    // Every call is wanted and none fits.
    driver.vring().call.fd().write(0xffff_ffff_ffff_fffd)?;
    let slot = driver.acquire()?;
    for round in 1..100_u16 {
        driver.vring().ring.set_used_event(round - 1);
        driver.submit(slot, &BlkRequest::read(0, 512))?;
        driver.vring_mut().ring.publish();
        driver.vring_mut().kick()?;
        wait_until("a completion", || {
            Ok(driver.vring().ring.used_idx() == round)
        })?;
        driver.poll()?.ok_or("no completion")?.ok()?;
    }
    assert_eq!(driver.vring().call.take()?, Some(0xffff_ffff_ffff_fffe));
    assert_eq!(session.stop(0)?, 99);
    drop((session, driver));
    victim.check()
}

#[test]
fn a18_kick_shared_by_two_queues_serves_both() -> TestResult {
    for mut victim in [
        Victim::memory_with(&["--threads", "1"])?,
        Victim::file(&[])?,
    ] {
        let mut session = victim.session(Session::builder().queues(2))?;
        let first = session.create_vring(0)?;
        session.start(&first, 0)?;
        let mut second = session.create_vring(1)?;
        second.kick = first.kick.try_clone()?;
        session.start(&second, 0)?;
        let mut drivers = [first, second]
            .into_iter()
            .map(|vring| BlkDriver::new(vring, BlkConfig::default()))
            .collect::<Result<Vec<_>, _>>()?;
        for round in 0..4 {
            let plan = Verify {
                seed: round,
                ..PLAN
            };
            for driver in &mut drivers {
                write_pattern(driver, &plan)?;
                check_content(driver, &plan)?;
            }
        }
        drop((session, drivers));
        victim.check()?;
    }
    Ok(())
}

#[test]
fn a18_kick_that_is_the_call_is_no_storm() -> TestResult {
    for mut victim in [Victim::memory()?, Victim::file(&[])?] {
        let mut session = victim.session(Session::builder())?;
        let mut vring = session.create_vring(0)?;
        vring.call = vring.kick.try_clone()?;
        session.start(&vring, 0)?;
        let mut driver = BlkDriver::new(vring, BlkConfig::default())?;
        let slot = driver.acquire()?;
        // Each completion is called for, and nobody but the back-end is woken by it.
        for round in 1..200_u16 {
            driver.vring().ring.set_used_event(round - 1);
            driver.submit(slot, &BlkRequest::read(0, 512))?;
            driver.vring_mut().ring.publish();
            driver.vring_mut().kick()?;
            wait_until("a completion", || {
                Ok(driver.vring().ring.used_idx() == round)
            })?;
            driver.poll()?.ok_or("no completion")?.ok()?;
        }
        let quiet = std::time::Duration::from_millis(500);
        let cpu = victim.cpu_over(quiet)?;
        assert!(cpu < quiet / 100, "{cpu:?} of processor time in {quiet:?}");
        drop((session, driver));
        victim.check()?;
    }
    Ok(())
}

#[test]
fn a18_kick_replaced_while_running_is_closed_and_the_new_one_works() -> TestResult {
    for mut victim in [Victim::memory()?, Victim::file(&[])?] {
        let (session, mut drivers) = victim.drivers(Session::builder(), BlkConfig::default())?;
        let mut driver = drivers.remove(0);
        let held = victim.footprint()?.fds;
        for round in 0..100 {
            let fresh = ringside_frontend::vring::Event::new()?;
            driver.vring_mut().kick = fresh;
            session.set_kick(driver.vring())?;
            let plan = Verify {
                blocks: 4,
                seed: round,
                ..PLAN
            };
            write_pattern(&mut driver, &plan)?;
            check_content(&mut driver, &plan)?;
        }
        wait_until("old descriptors closed", || {
            Ok(victim.footprint()?.fds == held)
        })?;
        drop((session, driver));
        victim.check()?;
    }
    Ok(())
}

#[test]
fn a18_descriptor_beside_the_word_that_there_is_none_closes() -> TestResult {
    let mut victim = Victim::memory()?;
    let nofd = words(&[VRING_NOFD]);
    let event = eventfd(0, EventfdFlags::CLOEXEC)?;
    for id in [
        request::SET_VRING_KICK,
        request::SET_VRING_CALL,
        request::SET_VRING_ERR,
    ] {
        victim.closes_on(Header::new(id, 8), &nofd, &[event.as_fd()])?;
    }
    victim.check()
}

#[test]
fn f6_10_vring_without_kick_call_and_err_is_polled() -> TestResult {
    for mut victim in [Victim::memory()?, Victim::file(&[])?] {
        let (mut session, client) =
            victim.session_and_raw(Session::builder().calls(CallMode::Never))?;
        let vring = session.create_vring(0)?;
        session.set_up(&vring, 0)?;
        let nofd = words(&[VRING_NOFD]);
        for id in [
            request::SET_VRING_CALL,
            request::SET_VRING_ERR,
            request::SET_VRING_KICK,
        ] {
            client.request(id, &nofd)?;
        }
        client.request(request::SET_VRING_ENABLE, &vring_state(0, 1))?;
        assert!(client.is_alive(PATIENCE));
        let mut driver = BlkDriver::new(vring, BlkConfig::default())?;
        let slot = driver.acquire()?;
        for round in 1..=20_u16 {
            driver.submit(slot, &BlkRequest::read(0, 512))?;
            // No kick: nobody would hear it.
            driver.vring_mut().ring.publish();
            wait_until("a request without a kick", || {
                Ok(driver.vring().ring.used_idx() == round)
            })?;
            driver.poll()?.ok_or("no completion")?.ok()?;
            // The thread has gone to sleep.
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        // It does not spin meanwhile.
        let quiet = std::time::Duration::from_millis(500);
        let cpu = victim.cpu_over(quiet)?;
        assert!(cpu < quiet / 2, "{cpu:?} of processor time in {quiet:?}");
        driver.release(slot);
        // A descriptor that comes later is used.
        session.set_kick(driver.vring())?;
        write_pattern(&mut driver, &PLAN)?;
        check_content(&mut driver, &PLAN)?;
        drop((session, client, driver));
        victim.check()?;
    }
    Ok(())
}

/// QEMU prints an error when it ends, also where nothing is ever said on it.
#[test]
fn f7_3_back_channel_on_which_nothing_is_said_stays_open() -> TestResult {
    let mut victim = Victim::memory()?;
    let client = victim.raw()?;
    // BACKEND_REQ alone.
    client.request(request::SET_PROTOCOL_FEATURES, &words(&[1 << 5]))?;
    let (ours, theirs) = UnixStream::pair()?;
    let header = Header::new(request::SET_BACKEND_REQ_FD, 0);
    client.send(header, &[], &[theirs.as_fd()])?;
    drop(theirs);
    assert!(client.is_alive(PATIENCE));
    ours.set_nonblocking(true)?;
    let read = std::io::Read::read(&mut &ours, &mut [0]);
    let error = read.expect_err("it has ended");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    drop(client);
    ours.set_nonblocking(false)?;
    ours.set_read_timeout(Some(PATIENCE))?;
    assert_eq!(std::io::Read::read(&mut &ours, &mut [0])?, 0);
    victim.check()
}

#[test]
fn a19_back_channel_that_is_no_unix_stream_closes() -> TestResult {
    let mut victim = Victim::memory()?;
    let tcp = std::net::TcpListener::bind("127.0.0.1:0")?;
    let tcp_peer = std::net::TcpStream::connect(tcp.local_addr()?)?;
    let (datagram, _peer) = UnixDatagram::pair()?;
    let null = File::open("/dev/null")?;
    let memory = memfd(8)?;
    let event = eventfd(0, EventfdFlags::CLOEXEC)?;
    let header = Header::new(request::SET_BACKEND_REQ_FD, 0);
    for fd in [
        null.as_fd(),
        memory.as_fd(),
        event.as_fd(),
        datagram.as_fd(),
        tcp.as_fd(),
        tcp_peer.as_fd(),
    ] {
        victim.closes_on(header, &[], &[fd])?;
    }
    victim.check()
}

#[test]
fn a19_back_channel_that_is_our_own_peer_closes() -> TestResult {
    let mut victim = Victim::memory()?;
    let client = victim.negotiated()?;
    let header = Header::new(request::SET_BACKEND_REQ_FD, 0);
    client.send(header, &[], &[client.stream().as_fd()])?;
    client.expect_closed(PATIENCE)?;
    // Held by the back-end it would keep the connection open for ever.
    drop(client);
    victim.check()
}

#[test]
fn a19_back_channel_nobody_reads_blocks_nothing() -> TestResult {
    let mut victim = Victim::file(&[])?;
    let (session, client) = victim.session_and_raw(Session::builder())?;
    let mut session = session;
    let (_ours, theirs) = UnixStream::pair()?;
    // Not a byte fits any more.
    theirs.set_nonblocking(true)?;
    while std::io::Write::write(&mut &theirs, &[0; 4096]).is_ok() {}
    while std::io::Write::write(&mut &theirs, &[0]).is_ok() {}
    theirs.set_nonblocking(false)?;
    let header = Header::new(request::SET_BACKEND_REQ_FD, 0);
    client.send(header, &[], &[theirs.as_fd()])?;
    assert!(client.is_alive(PATIENCE));
    let vring = session.start_all()?.remove(0);
    let mut driver = BlkDriver::new(vring, BlkConfig::default())?;
    let disk = File::options()
        .write(true)
        .open(victim.process().path("disk.img"))?;
    disk.set_len(2 * DISK_BYTES)?;
    victim.process().signal(Signal::HUP)?;
    wait_until("the change of size", || {
        Ok(BlkDriver::capacity(&session.config(0, 60)?) == Some(2 * DISK_BYTES / 512))
    })?;
    write_pattern(&mut driver, &PLAN)?;
    check_content(&mut driver, &PLAN)?;
    let log = victim.process().stderr();
    assert!(
        log.contains("was not told of a configuration change"),
        "{log}"
    );
    drop((session, client, driver));
    victim.check()
}
