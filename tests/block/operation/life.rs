// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The process: where it meets its front-end, how it ends, what it says about itself.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use ringside_frontend::FrontendError;
use ringside_frontend::blk::{BlkConfig, BlkDriver, BlkRequest, SECTOR_BYTES, status};
use ringside_frontend::load::check_pattern;
use ringside_frontend::session::Session;
use ringside_tests::hostile::support_chains::{
    DISK_BYTES, Disk, IMAGE_SEED, Outcome, PACKAGE, PATIENCE, image_pattern, launch, launch_traced,
};
use ringside_tests::process::{Launch, Process, accept, back_end_binary, thread_ids};
use ringside_tests::skip;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{run, verify_io};

/// The back-end with an image and no socket yet.
fn unconnected(args: &[&str]) -> Outcome<Launch> {
    let launch = Launch::back_end(PACKAGE)?;
    let image = launch.path("disk.img");
    std::fs::write(&image, image_pattern(usize::try_from(DISK_BYTES)?))?;
    Ok(launch.arg("--blk-file").arg(image).args(args))
}

/// A driver on a connected stream.
fn driver_on(stream: UnixStream) -> Outcome<(Session, BlkDriver)> {
    let mut session = Session::builder().from_stream(stream)?;
    let vring = session.start_all()?.remove(0);
    Ok((session, BlkDriver::new(vring, BlkConfig::default())?))
}

#[test]
fn sigterm_ends_an_idle_process_and_removes_the_socket() -> Outcome {
    let mut disk = Disk::start(&[])?;
    let mode = std::fs::metadata(disk.process.socket())?
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let began = Instant::now();
    assert_eq!(disk.process.terminate(PATIENCE)?.code(), Some(0));
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert!(!disk.process.socket().exists());
    assert!(!disk.process.path("control.sock").exists());
    Ok(())
}

#[test]
fn sigterm_completes_what_was_taken() -> Outcome {
    for args in [&[][..], &["--aio", "threads"], &["--cache", "none"]] {
        for round in 0..4_u64 {
            let mut disk = Disk::start(args)?;
            let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
            for at in 0..32 {
                let slot = driver.acquire()?;
                driver.data(slot).fill(0, 8192, 0xc3);
                driver.submit(slot, &BlkRequest::write(at * 16, 8192))?;
            }
            driver.publish()?;
            // From "nothing taken yet" to "all done".
            std::thread::sleep(Duration::from_micros(300 * round));
            let ended = disk.process.terminate(PATIENCE)?;
            assert_eq!(ended.code(), Some(0), "{args:?}");
            assert!(!disk.process.socket().exists());
            let mut answered = [false; 32];
            while let Some(done) = driver.poll()? {
                let done = done.ok()?;
                answered[usize::try_from(done.request.sector / 16)?] = true;
            }
            let content = disk.content()?;
            for (answered, found) in answered.iter().zip(content.chunks(8192)) {
                let written = found.iter().all(|byte| *byte == 0xc3);
                // What was taken was answered; what was not, was not written.
                assert_eq!(*answered, written, "{args:?}");
            }
        }
    }
    Ok(())
}

/// The one child of a process: what `strace` runs.
fn child_of(process: &Process) -> Outcome<Pid> {
    let id = process.id();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
    let child = children
        .split_whitespace()
        .next()
        .ok_or("no child")?
        .parse()?;
    Pid::from_raw(child).ok_or_else(|| "no child".into())
}

#[test]
fn sigterm_waits_for_a_slow_disk_and_flushes() -> Outcome {
    let inject = "inject=pwritev2:delay_enter=500000";
    let Some(launch) = launch_traced(&["-e", "trace=pwritev2,fdatasync", "-e", inject])? else {
        skip!("strace cannot trace here");
    };
    let image = image_pattern(usize::try_from(DISK_BYTES)?);
    let mut disk = Disk::launched(launch, &image, &["--aio", "threads"])?;
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    for at in 0..4 {
        let slot = driver.acquire()?;
        driver.data(slot).fill(0, 512, 0xc3);
        driver.submit(slot, &BlkRequest::write(at, 512))?;
    }
    driver.publish()?;
    std::thread::sleep(Duration::from_millis(100));
    kill_process(child_of(&disk.process)?, Signal::TERM)?;
    assert_eq!(disk.process.wait_exit(PATIENCE)?.code(), Some(0));
    for _ in 0..4 {
        driver.poll()?.ok_or("a write was not answered")?.ok()?;
    }
    assert_eq!(disk.content()?[..2048], [0xc3; 2048]);
    let trace = std::fs::read_to_string(disk.process.path("trace.log"))?;
    let last_write = trace.rfind("pwritev2").ok_or("no write")?;
    let sync = trace.rfind("fdatasync(").ok_or("no sync at the end")?;
    assert!(sync > last_write, "{trace}");
    Ok(())
}

#[test]
fn socket_of_a_live_process_is_refused_and_of_a_dead_one_replaced() -> Outcome {
    let mut disk = Disk::start(&[])?;
    let socket = disk.process.socket().to_owned();
    let second = || -> Outcome<Launch> { Ok(unconnected(&["--socket-path"])?.arg(&socket)) };
    let (code, said) = run(second()?)?;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("another process listens"), "{said}");
    // The first one is none the worse, connected or not.
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    let (code, _) = run(second()?)?;
    assert_eq!(code, Some(1));
    verify_io(&mut driver, DISK_BYTES, 1)?;
    drop(driver);
    disk.process.kill()?;
    assert!(socket.exists(), "SIGKILL leaves the socket behind");
    let mut next = second()?.spawn()?;
    let deadline = Instant::now() + PATIENCE;
    let stream = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let (_session, mut driver) = driver_on(stream)?;
    verify_io(&mut driver, DISK_BYTES, 2)?;
    assert!(next.terminate(PATIENCE)?.success());
    assert!(!socket.exists());
    Ok(())
}

#[test]
fn socket_path_that_is_something_else_is_left_alone() -> Outcome {
    for what in ["file", "directory", "link"] {
        let launch = unconnected(&["--socket-path"])?;
        let path = launch.path("taken");
        match what {
            "file" => std::fs::write(&path, b"precious")?,
            "directory" => std::fs::create_dir(&path)?,
            _ => std::os::unix::fs::symlink("elsewhere", &path)?,
        }
        let before = std::fs::symlink_metadata(&path)?.file_type();
        let mut process = launch.arg(&path).spawn()?;
        let ended = process.wait_exit(PATIENCE)?;
        assert_eq!(ended.code(), Some(1), "{what}: {}", process.stderr());
        assert_eq!(std::fs::symlink_metadata(&path)?.file_type(), before);
    }
    Ok(())
}

#[test]
fn inherited_listener_is_served_again_and_again() -> Outcome {
    let mut launch = unconnected(&["--fd", "0"])?;
    let socket = launch.socket();
    let listener = UnixListener::bind(&socket)?;
    launch
        .command_mut()
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
    let mut process = launch.spawn()?;
    for seed in 1..4 {
        let (_session, mut driver) = driver_on(UnixStream::connect(&socket)?)?;
        verify_io(&mut driver, DISK_BYTES, seed)?;
    }
    assert_eq!(process.terminate(PATIENCE)?.code(), Some(0));
    // Whoever made the socket file removes it.
    assert!(socket.exists());
    Ok(())
}

#[test]
fn inherited_connection_is_served_to_its_end() -> Outcome {
    let (ours, theirs) = UnixStream::pair()?;
    let mut launch = unconnected(&["--fd", "0"])?;
    launch
        .command_mut()
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    let mut process = launch.spawn()?;
    let (session, mut driver) = driver_on(ours)?;
    verify_io(&mut driver, DISK_BYTES, 1)?;
    drop((session, driver));
    assert_eq!(process.wait_exit(PATIENCE)?.code(), Some(0));
    // Not a socket, not connected, not open.
    let (code, said) = run(unconnected(&["--fd", "1"])?)?;
    assert_eq!(code, Some(1), "{said}");
    let (code, said) = run(unconnected(&["--fd", "999"])?)?;
    assert_eq!(code, Some(1), "{said}");
    Ok(())
}

/// The back-end behind a shell that passes `count` sockets as systemd does.
fn activated(listener: UnixListener, count: u32) -> Outcome<Launch> {
    let script = r#"exec 3<&0 4<&0 </dev/null
        LISTEN_PID=$$ LISTEN_FDS=$1; export LISTEN_PID LISTEN_FDS; shift; exec "$@""#;
    let launch = Launch::program("sh")?;
    let image = launch.file("disk.img", DISK_BYTES)?;
    let mut launch = launch
        .args(["-c", script, "sh", &count.to_string()])
        .arg(back_end_binary(PACKAGE)?)
        .arg("--blk-file")
        .arg(image);
    launch
        .command_mut()
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
    Ok(launch)
}

#[test]
fn socket_activation_is_served() -> Outcome {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("activated.sock");
    let mut process = activated(UnixListener::bind(&path)?, 1)?.spawn()?;
    for seed in 1..3 {
        let (_session, mut driver) = driver_on(UnixStream::connect(&path)?)?;
        verify_io(&mut driver, DISK_BYTES, seed)?;
    }
    assert_eq!(process.terminate(PATIENCE)?.code(), Some(0));
    assert!(path.exists());
    let (code, said) = run(activated(UnixListener::bind(dir.path().join("two"))?, 2)?)?;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("passed 2 sockets"), "{said}");
    Ok(())
}

#[test]
fn connect_mode_waits_for_the_front_end_and_comes_back() -> Outcome {
    let launch = unconnected(&["--connect"])?;
    let path = launch.path("front-end.sock");
    let mut process = launch.arg(&path).spawn()?;
    process.poll_until("patience", PATIENCE, |process| {
        Ok(process.stderr().contains("waiting for").then_some(()))
    })?;
    let listener = UnixListener::bind(&path)?;
    for seed in 1..4 {
        let (_session, mut driver) = driver_on(accept(&listener, PATIENCE)?)?;
        verify_io(&mut driver, DISK_BYTES, seed)?;
    }
    // The front-end goes away altogether, and comes back.
    drop(listener);
    std::fs::remove_file(&path)?;
    std::thread::sleep(Duration::from_millis(300));
    assert!(process.try_exit()?.is_none());
    let listener = UnixListener::bind(&path)?;
    let (_session, mut driver) = driver_on(accept(&listener, PATIENCE)?)?;
    verify_io(&mut driver, DISK_BYTES, 5)?;
    assert_eq!(process.terminate(PATIENCE)?.code(), Some(0));
    assert!(
        path.exists(),
        "the front-end's socket is not ours to remove"
    );
    Ok(())
}

#[test]
fn connect_mode_ends_on_sigterm_while_it_waits() -> Outcome {
    let launch = unconnected(&["--connect"])?;
    let path = launch.path("nobody.sock");
    let mut process = launch.arg(&path).spawn()?;
    process.poll_until("patience", PATIENCE, |process| {
        Ok(process.stderr().contains("waiting for").then_some(()))
    })?;
    let began = Instant::now();
    assert_eq!(process.terminate(PATIENCE)?.code(), Some(0));
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    Ok(())
}

#[test]
fn sessions_leave_nothing_behind() -> Outcome {
    // I4, I11 and I12: front-ends that vanish, at any point.
    let mut disk = Disk::start(&[])?;
    let session = |disk: &mut Disk, until: u32| -> Outcome {
        let stream = disk.process.connect(PATIENCE)?;
        if until == 0 {
            return Ok(());
        }
        let mut session = Session::builder().from_stream(stream)?;
        if until == 1 {
            return Ok(());
        }
        let vring = session.start_all()?.remove(0);
        let mut driver = BlkDriver::new(vring, BlkConfig::default())?;
        for at in 0..16 {
            let slot = driver.acquire()?;
            driver.submit(slot, &BlkRequest::read(at * 64, 32768))?;
        }
        driver.publish()?;
        if until == 3 {
            while driver.in_flight() > 0 {
                driver.wait()?.ok()?;
            }
        }
        Ok(())
    };
    for until in [0, 1, 2, 3] {
        session(&mut disk, until)?;
    }
    disk.session(Session::builder())?;
    disk.info("size_bytes")?;
    let settled = |disk: &mut Disk| -> Outcome<_> {
        // A new session begins when the last has ended.
        drop(disk.session(Session::builder())?);
        std::thread::sleep(Duration::from_millis(50));
        Ok(disk.process.sample()?)
    };
    let before = settled(&mut disk)?;
    for round in 0..200 {
        session(&mut disk, round % 4)?;
    }
    let after = settled(&mut disk)?;
    assert_eq!((before.fds, before.threads), (after.fds, after.threads));
    assert!(after.maps <= before.maps + 2, "{before:?} {after:?}");
    assert!(
        after.rss_kib <= before.rss_kib + 2048,
        "{before:?} {after:?}"
    );
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    let mut data = [0; 4096];
    driver.read(8, &mut data)?.ok()?;
    check_pattern(IMAGE_SEED, 8, &data)?;
    Ok(())
}

#[test]
fn harmless_signals_do_no_harm() -> Outcome {
    let mut disk = Disk::start(&[])?;
    for signal in [Signal::HUP, Signal::PIPE, Signal::HUP] {
        disk.process.signal(signal)?;
    }
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    for signal in [Signal::HUP, Signal::PIPE] {
        disk.process.signal(signal)?;
        driver.write(3, &[1; SECTOR_BYTES])?.ok()?;
    }
    assert!(disk.process.try_exit()?.is_none());
    Ok(())
}

#[test]
fn sixteen_queues_are_served_by_two_threads() -> Outcome {
    let mut disk = Disk::start(&["--threads", "2"])?;
    let mut session = disk.session(Session::builder().queues(16))?;
    let vrings = session.start_all()?;
    // The control thread, the management thread, the watchdog, and two for the data.
    assert_eq!(disk.process.sample()?.threads, 5);
    let mut drivers = vrings
        .into_iter()
        .map(|vring| {
            BlkDriver::new(
                vring,
                BlkConfig {
                    depth: 4,
                    ..BlkConfig::default()
                },
            )
        })
        .collect::<Result<Vec<_>, _>>()?;
    for (sector, driver) in (0..).step_by(16).zip(&mut drivers) {
        let slot = driver.acquire()?;
        driver.data(slot).fill(0, 512, 0x3c);
        driver.submit(slot, &BlkRequest::write(sector, 512))?;
        driver.publish()?;
    }
    for (sector, driver) in (0..).step_by(16).zip(&mut drivers) {
        assert_eq!(driver.wait()?.ok()?.request.sector, sector);
    }
    let mut data = [0; 512];
    for sector in (0..256).step_by(16) {
        drivers[0].read(sector, &mut data)?.ok()?;
        assert_eq!(data, [0x3c; 512]);
    }
    Ok(())
}

#[test]
fn data_threads_run_on_the_processors_they_are_given() -> Outcome {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    let ours: Vec<_> = (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|&cpu| allowed.is_set(cpu))
        .collect();
    let cpus: Vec<_> = ours.iter().rev().take(2).collect();
    let list = cpus.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut disk = Disk::start(&["--threads", "2", "--cpus", &list.join(",")])?;
    let mut session = disk.session(Session::builder().queues(2))?;
    let _vrings = session.start_all()?;
    let pid = disk.process.id();
    let mut found = Vec::new();
    for thread in thread_ids(pid, "data-")? {
        let status = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/status"))?;
        let on = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
            .ok_or("no list")?;
        found.push(on.trim().to_owned());
    }
    found.sort();
    let mut wanted = [list.clone(), list].concat();
    wanted.truncate(2);
    wanted.sort();
    assert_eq!(found, wanted);
    Ok(())
}

#[test]
fn queue_larger_than_allowed_is_refused() -> Outcome {
    let mut disk = Disk::start(&["--queue-size", "64"])?;
    let mut session = disk.session(Session::builder().queue_size(128))?;
    let refused = session.start_all();
    assert!(
        matches!(refused, Err(FrontendError::Message { .. })),
        "{refused:?}"
    );
    drop(session);
    let builder = Session::builder().queue_size(64);
    let (_session, mut driver) = disk.driver(builder, BlkConfig::default())?;
    verify_io(&mut driver, DISK_BYTES, 1)
}

#[test]
fn capabilities_are_those_of_a_block_back_end() -> Outcome {
    let (code, said) = run(Launch::back_end(PACKAGE)?.arg("--print-capabilities"))?;
    assert_eq!(code, Some(0));
    let said: Value = serde_json::from_str(&said)?;
    // vhost-user.rst "Backend program conventions".
    let expected = json!({ "type": "block", "features": ["read-only", "blk-file"] });
    assert_eq!(said, expected);
    Ok(())
}

/// Long options, without their dashes.
fn options(text: &str) -> std::collections::BTreeSet<&str> {
    let name = |word: &'_ str| word.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    text.match_indices("--")
        .filter(|(at, _)| !text[..*at].ends_with(['-', '\\']))
        .map(|(at, _)| &text[at + 2..])
        .map(|rest| {
            rest.get(..name(rest).unwrap_or(rest.len()))
                .unwrap_or_default()
        })
        .filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))
        .collect()
}

#[test]
fn help_and_man_page_tell_the_same_options() -> Outcome {
    let (code, help) = run(Launch::back_end(PACKAGE)?.arg("--help"))?;
    assert_eq!(code, Some(0));
    let (code, man) = run(Launch::back_end(PACKAGE)?.arg("--print-man"))?;
    assert_eq!(code, Some(0));
    assert!(
        man.contains(".TH") && man.contains(".SH NAME"),
        "no man page: {man}"
    );
    let man = man.replace("\\-", "-");
    let (in_help, in_man) = (options(&help), options(&man));
    assert_eq!(in_help, in_man);
    for option in [
        "socket-path",
        "fd",
        "connect",
        "blk-file",
        "read-only",
        "size",
        "memory",
        "cache",
        "aio",
        "block-size",
        "print-capabilities",
        "control-socket",
        "metrics",
        "log-level",
        "help",
    ] {
        assert!(in_help.contains(option), "--{option} is not documented");
    }
    Ok(())
}

#[test]
fn bad_command_lines_are_refused() -> Outcome {
    const MEMORY: &str = "--socket-path s --memory --size 1M";
    for (line, wanted) in [
        ("--nonsense", 2),
        ("--socket-path s --memory", 2),
        ("--socket-path s --fd 0", 2),
        ("--socket-path s --memory --size 0", 2),
        ("+ --cache x", 2),
        ("+ --queue-size 3", 2),
        ("+ --num-queues 0", 2),
        ("+ --num-queues 257", 2),
        ("+ --serial 123456789012345678901", 2),
        ("--socket-path s", 1),
        ("--memory --size 1M", 1),
        ("--socket-path /nowhere/s --memory --size 1M", 1),
    ] {
        let line = line.replace('+', MEMORY);
        let (code, said) = run(Launch::back_end(PACKAGE)?.args(line.split(' ')))?;
        assert_eq!(code, Some(wanted), "{line}: {said}");
        assert!(!said.contains("panicked"), "{line}: {said}");
    }
    Ok(())
}

#[test]
fn second_front_end_waits_for_the_first() -> Outcome {
    let mut disk = Disk::start(&[])?;
    let (session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    let waiting = disk.process.connect(PATIENCE)?;
    verify_io(&mut driver, DISK_BYTES, 1)?;
    drop((session, driver));
    let (_session, mut driver) = driver_on(waiting)?;
    let write = driver.write(3, &[1; SECTOR_BYTES])?;
    assert_eq!(write.status, status::OK);
    Ok(())
}

#[test]
fn start_is_refused_before_the_socket_appears_when_the_image_is_missing() -> Outcome {
    let launch = launch()?.args(["--blk-file", "/nowhere/disk.img"]);
    let socket = launch.socket();
    let mut process = launch.spawn()?;
    assert_eq!(process.wait_exit(PATIENCE)?.code(), Some(1));
    assert!(
        process.stderr().contains("/nowhere/disk.img"),
        "{}",
        process.stderr()
    );
    assert!(!socket.exists());
    Ok(())
}

#[test]
fn f6_8_start_says_what_is_served_and_how_it_is_caged() -> Outcome {
    let start = |args: &[&str], what: &str| -> Outcome {
        let mut disk = Disk::start(args)?;
        let expected = format!(
            "serving {}, {DISK_BYTES} bytes, {what}, on socket {} (mode 600), no sandbox",
            disk.image().display(),
            disk.process.socket().display(),
        );
        Ok(disk.process.expect_served(&expected, PATIENCE)?)
    };
    start(&[], "read-write, cache writeback")?;
    start(
        &["--read-only", "--cache", "writethrough"],
        "read-only, cache writethrough",
    )
}
