// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control socket and the metrics.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ringside_frontend::FrontendError;
use ringside_frontend::blk::{BlkConfig, BlkDriver, BlkRequest, Range, SECTOR_BYTES, kind, status};
use ringside_frontend::session::Session;
use ringside_tests::hostile::support_chains::{
    DISK_BYTES, DISK_SECTORS, Disk, MOST_THREADS, Outcome, PACKAGE, PATIENCE, control,
    image_pattern, launch, launch_traced,
};
use ringside_tests::process::Launch;
use ringside_tests::skip;
use serde_json::{Value, json};

use super::{run, verify_io};

/// The counters of one operation on the first queue.
fn operation(stats: &Value, name: &str) -> [u64; 3] {
    let operations = stats["queues"][0]["operations"].as_array();
    let found = operations.and_then(|all| all.iter().find(|one| one["op"] == name));
    ["operations", "bytes", "errors"].map(|field| {
        found
            .and_then(|one| one[field].as_u64())
            .unwrap_or_default()
    })
}

#[test]
fn stats_count_every_request() -> Outcome {
    let mut disk = Disk::start(&[])?;
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    for sector in 0..10 {
        driver.write(sector, &[1; SECTOR_BYTES])?.ok()?;
    }
    for _ in 0..5 {
        driver.read(0, &mut [0; 4096])?.ok()?;
    }
    driver.read(DISK_SECTORS, &mut [0; 512])?;
    driver.flush()?.ok()?;
    driver.get_id()?;
    driver.execute(&BlkRequest {
        kind: 0x77,
        ..BlkRequest::flush()
    })?;
    let stats = disk.control("stats", &Value::Null)?;
    assert_eq!(stats["device"], "blk");
    assert_eq!(operation(&stats, "write"), [10, 5120, 0]);
    assert_eq!(operation(&stats, "read"), [5, 20480, 0]);
    assert_eq!(operation(&stats, "flush"), [1, 0, 0]);
    assert_eq!(operation(&stats, "get_id"), [1, 0, 0]);
    assert_eq!(operation(&stats, "invalid"), [2, 0, 2]);
    let queue = &stats["queues"][0];
    assert_eq!(
        (&queue["chains"], &queue["malformed_chains"]),
        (&json!(19), &json!(0))
    );
    assert_eq!(queue["in_flight"], json!(0));
    Ok(())
}

#[test]
fn drain_completes_what_is_in_flight_and_takes_no_more_until_resume() -> Outcome {
    for args in [&[][..], &["--aio", "threads"], &["--poll-us", "0"]] {
        let mut disk = Disk::start(args)?;
        let (mut session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
        for at in 0..32 {
            let slot = driver.acquire()?;
            driver.submit(slot, &BlkRequest::write(at * 64, 32768))?;
        }
        driver.publish()?;
        assert_eq!(
            disk.control("drain", &Value::Null)?,
            json!({ "done": true })
        );
        let taken = driver.vring().ring.used_idx();
        // The disk is quiet now: what is published stays where it is.
        driver.vring_mut().kick()?;
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(driver.vring().ring.used_idx(), taken);
        let stats = disk.control("stats", &Value::Null)?;
        assert_eq!(stats["queues"][0]["chains"], json!(taken), "{args:?}");
        assert_eq!(disk.control("resume", &json!({"port": 0})).ok(), None);
        // Messages are answered all the same, and a second drain is none the wiser.
        assert_eq!(
            BlkDriver::capacity(&session.config(0, 8)?),
            Some(DISK_SECTORS)
        );
        assert_eq!(
            disk.control("drain", &Value::Null)?,
            json!({ "done": true })
        );
        assert_eq!(
            disk.control("resume", &Value::Null)?,
            json!({ "done": true })
        );
        while driver.in_flight() > 0 {
            let slot = driver.wait()?.ok()?.slot;
            driver.release(slot);
        }
        verify_io(&mut driver, DISK_BYTES, 1)?;
    }
    Ok(())
}

#[test]
fn drain_holds_for_front_ends_and_queues_that_come_later() -> Outcome {
    let mut disk = Disk::start(&[])?;
    assert_eq!(
        disk.control("drain", &Value::Null)?,
        json!({ "done": true })
    );
    let (session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    driver.set_timeout(Duration::from_millis(50));
    let early = driver.get_id();
    assert!(
        matches!(early, Err(FrontendError::Timeout { .. })),
        "{early:?}"
    );
    assert_eq!(
        disk.control("resume", &Value::Null)?,
        json!({ "done": true })
    );
    driver.set_timeout(PATIENCE);
    driver.wait()?.ok()?;
    // A vring stopped while it is drained, and a connection that ends.
    disk.control("drain", &Value::Null)?;
    drop((session, driver));
    let (mut session, _driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    assert_eq!(session.stop(0)?, 0);
    disk.control("resume", &Value::Null)?;
    drop(session);
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    verify_io(&mut driver, DISK_BYTES, 2)?;
    // SIGTERM does not wait for a resume.
    disk.control("drain", &Value::Null)?;
    assert_eq!(disk.process.terminate(PATIENCE)?.code(), Some(0));
    Ok(())
}

#[test]
fn drain_waits_for_the_disk_and_makes_it_stable() -> Outcome {
    let inject = "inject=pwritev2:delay_enter=500000";
    let Some(launch) = launch_traced(&["-e", "trace=pwritev2,fdatasync", "-e", inject])? else {
        skip!("strace cannot trace here");
    };
    let image = image_pattern(usize::try_from(DISK_BYTES)?);
    let mut disk = Disk::launched(launch, &image, &["--aio", "threads"])?;
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    let slot = driver.acquire()?;
    driver.submit(slot, &BlkRequest::write(0, 512))?;
    driver.publish()?;
    std::thread::sleep(Duration::from_millis(100));
    let began = Instant::now();
    assert_eq!(
        disk.control("drain", &Value::Null)?,
        json!({ "done": true })
    );
    assert!(
        began.elapsed() >= Duration::from_millis(300),
        "{:?}",
        began.elapsed()
    );
    driver.poll()?.ok_or("drained before it was done")?.ok()?;
    let trace = std::fs::read_to_string(disk.process.path("trace.log"))?;
    assert!(
        trace.rfind("fdatasync(") > trace.rfind("pwritev2"),
        "{trace}"
    );
    Ok(())
}

#[test]
fn f3_4_ctl_tells_of_a_failed_sync_and_clears_it_with_the_word_only() -> Outcome {
    // The first of each blocking thread, so all of the first requests.
    let inject = "inject=fdatasync:error=EIO:when=1";
    let Some(launch) = launch_traced(&["-e", "trace=fdatasync", "-e", inject])? else {
        skip!("strace cannot trace here");
    };
    let image = image_pattern(usize::try_from(DISK_BYTES)?);
    let mut disk = Disk::launched(launch, &image, &["--aio", "threads"])?;
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    assert_eq!(disk.info("sync_error")?, Value::Null);
    assert_eq!(
        disk.control("clear-error", &json!({ "confirm": "data-may-be-lost" }))?,
        json!({ "cleared": false })
    );
    driver.write(4, &[8; SECTOR_BYTES])?.ok()?;
    assert_eq!(driver.flush()?.status, status::IOERR);
    let told = disk.info("sync_error")?;
    assert!(
        told.as_str()
            .is_some_and(|text| text.contains("Input/output")),
        "{told}"
    );
    for params in [
        Value::Null,
        json!({ "confirm": "yes" }),
        json!({ "confirm": true }),
        json!({ "confirmed": "data-may-be-lost" }),
    ] {
        let refused = disk.control("clear-error", &params);
        assert!(refused.is_err(), "{params} was accepted");
        assert_eq!(driver.flush()?.status, status::IOERR);
    }
    assert_eq!(
        disk.control("clear-error", &json!({ "confirm": "data-may-be-lost" }))?,
        json!({ "cleared": true })
    );
    assert_eq!(disk.info("lost_writes")?, json!(false));
    // Another blocking thread may have its first one still to come.
    for _ in 0..MOST_THREADS {
        if driver.flush()?.status == status::OK {
            return Ok(());
        }
        disk.control("clear-error", &json!({ "confirm": "data-may-be-lost" }))?;
    }
    Err("flushes go on failing".into())
}

#[test]
fn f3_4_direct_image_is_not_lossy_after_a_failed_flush_but_for_edges_that_are_cached() -> Outcome {
    // The first of each blocking thread.
    let inject = "inject=fdatasync:error=EIO:when=1";
    for (edges, lossy) in [(false, false), (true, true)] {
        let Some(launch) = launch_traced(&["-e", "trace=fdatasync", "-e", inject])? else {
            skip!("strace cannot trace here");
        };
        let image = image_pattern(usize::try_from(DISK_BYTES)?);
        let args = ["--cache", "none", "--aio", "threads"];
        let mut disk = Disk::launched(launch, &image, &args)?;
        let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
        driver.write(8, &[8; 4096])?.ok()?;
        // Whole blocks of the file system, or a sector of one.
        let range = Range {
            sector: 16,
            sectors: if edges { 1 } else { 8 },
            flags: 0,
        };
        driver.run_ranges(kind::WRITE_ZEROES, &[range])?.ok()?;
        let failed = driver.flush()?;
        assert_eq!(failed.status, status::IOERR, "{edges}");
        assert_eq!(disk.info("lost_writes")?, json!(lossy), "{edges}");
        let good = (0..MOST_THREADS)
            .map(|_| driver.flush())
            .collect::<Result<Vec<_>, _>>()?
            .iter()
            .any(|done| done.status == status::OK);
        assert_eq!(good, !lossy, "{edges}");
    }
    Ok(())
}

#[test]
fn log_level_is_changed_while_it_runs() -> Outcome {
    let mut disk = Disk::start(&[])?;
    assert_eq!(
        disk.control("log-level", &Value::Null)?,
        json!({ "level": "info" })
    );
    disk.control("log-level", &json!({ "level": "off" }))?;
    let before = disk.process.stderr();
    drop(disk.session(Session::builder())?);
    drop(disk.session(Session::builder())?);
    assert_eq!(disk.process.stderr(), before);
    disk.control("log-level", &json!({ "level": "debug" }))?;
    assert_eq!(
        disk.control("log-level", &Value::Null)?,
        json!({ "level": "debug" })
    );
    drop(disk.session(Session::builder())?);
    assert_ne!(disk.process.stderr(), before);
    let refused = disk.control("log-level", &json!({ "level": "loud" }));
    assert_eq!(refused.ok(), None);
    Ok(())
}

#[test]
fn log_of_a_hostile_guest_is_limited() -> Outcome {
    // H4: 20 000 malformed chains, a handful of lines.
    let mut disk = Disk::start(&["--log-level", "debug"])?;
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    let before = disk.process.stderr().lines().count();
    let began = Instant::now();
    let slot = driver.acquire()?;
    let request = BlkRequest::read(0, 512).at(0xdead_0000);
    for _ in 0..5000 {
        driver.run(slot, &request)?;
    }
    let lines = disk.process.stderr().lines().count() - before;
    let seconds = usize::try_from(began.elapsed().as_secs())?;
    assert!(lines <= 4 + 2 * seconds, "{lines} lines in {seconds} s");
    Ok(())
}

#[test]
fn client_calls_methods_and_tells_errors() -> Outcome {
    let disk = Disk::start(&[])?;
    let call = |args: &[&str]| -> Outcome<(Option<i32>, String)> {
        let socket = disk.process.path("control.sock");
        run(Launch::back_end(PACKAGE)?.arg("ctl").arg(socket).args(args))
    };
    let (code, said) = call(&["info"])?;
    assert_eq!(code, Some(0), "{said}");
    let info: Value = serde_json::from_str(&said)?;
    assert_eq!(info["size_bytes"], json!(DISK_BYTES));
    assert_eq!(info["read_only"], json!(false));
    let (code, said) = call(&["resize", &format!("size={}", 2 * DISK_BYTES)])?;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(disk.info("size_bytes")?, json!(2 * DISK_BYTES));
    let (code, said) = call(&["help"])?;
    assert_eq!(code, Some(0));
    for method in [
        "stats",
        "drain",
        "resume",
        "log-level",
        "resize",
        "info",
        "version",
    ] {
        assert!(said.contains(method), "{method} is not in {said}");
    }
    for args in [
        &["nonsense"][..],
        &["resize", "size=1"],
        &["resize", "size"],
    ] {
        let (code, said) = call(args)?;
        assert_ne!(code, Some(0), "{args:?}: {said}");
    }
    let nobody = run(Launch::back_end(PACKAGE)?.args(["ctl", "/nowhere/s", "info"]))?;
    assert_eq!(nobody.0, Some(1), "{}", nobody.1);
    Ok(())
}

#[test]
fn control_socket_survives_garbage() -> Outcome {
    let disk = Disk::start(&[])?;
    let socket = disk.process.path("control.sock");
    for garbage in [
        &b"\n"[..],
        b"\0\0\0\n",
        b"{\n",
        b"{\"method\":",
        &[b'x'; 200_000],
    ] {
        let mut stream = UnixStream::connect(&socket)?;
        // It may have hung up on us before we are done.
        let _ = stream.write_all(garbage);
        drop(stream);
    }
    assert_eq!(control(&socket, "version", &Value::Null)?["name"], PACKAGE);
    assert_eq!(control(&socket, "nonsense", &Value::Null).ok(), None);
    Ok(())
}

/// One HTTP exchange.
fn get(mut stream: impl std::io::Read + std::io::Write, path: &str) -> Outcome<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply)
}

/// Whether the metrics tell of one write of 512 bytes.
fn check_metrics(reply: &str) {
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    let (_head, body) = reply.split_once("\r\n\r\n").unwrap_or_default();
    let writes = body.lines().any(|line| {
        line.starts_with("ringside_") && line.contains("op=\"write\"") && line.ends_with(" 1")
    });
    assert!(writes, "no write counted: {body}");
    assert!(body.trim_end().ends_with("# EOF"), "cut off: {body}");
}

#[test]
fn metrics_are_served_over_tcp_and_unix_socket() -> Outcome {
    let write_one = |disk: &mut Disk| -> Outcome {
        let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
        driver.write(3, &[1; SECTOR_BYTES])?.ok()?;
        Ok(())
    };
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut disk = Disk::start(&["--metrics", &port.to_string()])?;
    write_one(&mut disk)?;
    let connect = || -> Outcome<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    };
    check_metrics(&get(connect()?, "/metrics")?);
    let missing = get(connect()?, "/nonsense")?;
    assert!(missing.starts_with("HTTP/1.1 404"), "{missing}");
    let (code, said) =
        run(launch()?.args(["--memory", "--size", "1M", "--metrics", &port.to_string()]))?;
    assert_eq!(code, Some(1), "{said}");

    let dir = tempfile::tempdir()?;
    let path = dir.path().join("metrics.sock");
    let mut disk = Disk::start(&["--metrics", path.to_str().ok_or("path")?])?;
    write_one(&mut disk)?;
    let stream = UnixStream::connect(&path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    check_metrics(&get(stream, "/metrics")?);
    assert!(disk.process.terminate(PATIENCE)?.success());
    assert!(!path.exists());
    Ok(())
}
