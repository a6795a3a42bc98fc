// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How large a disk is, how it becomes smaller, and what it is made of.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ringside_frontend::blk::{BlkConfig, BlkDriver, BlkRequest, Range, SECTOR_BYTES, kind, status};
use ringside_frontend::load::{check_pattern, fill_pattern};
use ringside_frontend::session::Session;
use ringside_tests::host_fs::LoopDevice;
use ringside_tests::hostile::support_chains::{
    DISK_BYTES, DISK_SECTORS, Disk, Outcome, PATIENCE, TRACE, control, image_pattern, launch,
    launch_traced,
};
use ringside_tests::process::{Launch, back_end_binary};
use ringside_tests::skip;
use serde_json::{Value, json};

use super::{run, verify_io};

const HALF_SECTORS: u64 = DISK_SECTORS / 2;
const HALF_BYTES: u64 = DISK_BYTES / 2;

fn file_bytes(disk: &Disk) -> Outcome<u64> {
    Ok(std::fs::metadata(disk.image())?.len())
}

#[test]
fn f3_5_smaller_needs_shrink_and_nothing_is_no_size() -> Outcome {
    let mut disk = Disk::start(&[])?;
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    for params in [
        json!({ "size": HALF_BYTES }),
        json!({ "size": HALF_BYTES, "shrink": false }),
        json!({ "size": HALF_BYTES, "shrink": "yes" }),
        json!({ "size": HALF_BYTES, "force": true }),
        json!({ "size": 0 }),
        json!({ "size": 0, "shrink": true }),
        json!({ "size": 1000, "shrink": true }),
    ] {
        let refused = disk.control("resize", &params);
        assert!(refused.is_err(), "{params} was accepted");
        assert_eq!(file_bytes(&disk)?, DISK_BYTES, "{params}");
        assert_eq!(disk.info("size_bytes")?, json!(DISK_BYTES), "{params}");
    }
    // A file that somebody else has made longer is not cut by what was to make it longer.
    let file = std::fs::OpenOptions::new().write(true).open(disk.image())?;
    file.set_len(4 * DISK_BYTES)?;
    let refused = disk.control("resize", &json!({ "size": 2 * DISK_BYTES }));
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(file_bytes(&disk)?, 4 * DISK_BYTES);
    verify_io(&mut driver, DISK_BYTES, 1)
}

/// A write behind the new end, which takes a while.
fn slow_write(delay_us: u64) -> Outcome<Option<(Disk, Session, BlkDriver)>> {
    let inject = format!("inject=pwritev2:delay_enter={delay_us}:when=1");
    let Some(launch) = launch_traced(&["-e", "trace=pwritev2", "-e", &inject])? else {
        return Ok(None);
    };
    let image = image_pattern(usize::try_from(DISK_BYTES)?);
    let mut disk = Disk::launched(launch, &image, &["--aio", "threads"])?;
    let (session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    let slot = driver.acquire()?;
    driver.submit(slot, &BlkRequest::write(DISK_SECTORS - 8, 4096))?;
    driver.publish()?;
    std::thread::sleep(Duration::from_millis(200));
    Ok(Some((disk, session, driver)))
}

#[test]
fn f3_5_shrink_tells_the_guest_waits_for_writes_in_flight_and_cuts_then() -> Outcome {
    let Some((disk, mut session, mut driver)) = slow_write(1_500_000)? else {
        skip!("strace cannot trace here");
    };
    let reply = disk.control("resize", &json!({ "size": HALF_BYTES, "shrink": true }))?;
    assert_eq!(reply, json!({ "size_bytes": HALF_BYTES }));
    // The write was not lost on the way: it has ended before the cut.
    driver
        .poll()?
        .ok_or("cut before the write had ended")?
        .ok()?;
    assert_eq!(file_bytes(&disk)?, HALF_BYTES);
    let channel = session.back_channel().ok_or("no back-channel")?;
    channel.wait_config_change(PATIENCE)?;
    let capacity = BlkDriver::capacity(&session.config(0, 8)?);
    assert_eq!(capacity, Some(HALF_SECTORS));
    // It goes on, and what is behind the end is gone for good.
    assert_eq!(driver.write(HALF_SECTORS, &[1; 512])?.status, status::IOERR);
    verify_io(&mut driver, HALF_BYTES, 2)?;
    assert_eq!(file_bytes(&disk)?, HALF_BYTES);
    // Larger again, and what was cut off reads as zeroes.
    disk.control("resize", &json!({ "size": DISK_BYTES }))?;
    let mut data = [1; 4096];
    driver.read(DISK_SECTORS - 8, &mut data)?.ok()?;
    assert_eq!(data, [0; 4096]);
    Ok(())
}

#[test]
fn f3_5_shrink_that_cannot_wait_for_the_disk_leaves_everything_as_it_was() -> Outcome {
    let Some((disk, mut session, mut driver)) = slow_write(13_000_000)? else {
        skip!("strace cannot trace here");
    };
    let refused = disk.control("resize", &json!({ "size": HALF_BYTES, "shrink": true }));
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(file_bytes(&disk)?, DISK_BYTES);
    let capacity = BlkDriver::capacity(&session.config(0, 8)?);
    assert_eq!(capacity, Some(DISK_SECTORS));
    // Another blocking thread has a slow one before it, too.
    driver.set_timeout(Duration::from_secs(60));
    let slot = driver.wait()?.ok()?.slot;
    driver.release(slot);
    driver.write(DISK_SECTORS - 8, &[3; 4096])?.ok()?;
    Ok(())
}

#[test]
fn f3_5_shrink_of_a_drained_disk_leaves_it_drained() -> Outcome {
    let mut disk = Disk::start(&[])?;
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    disk.control("drain", &Value::Null)?;
    disk.control("resize", &json!({ "size": HALF_BYTES, "shrink": true }))?;
    let slot = driver.acquire()?;
    driver.submit(slot, &BlkRequest::read(0, 512))?;
    driver.publish()?;
    std::thread::sleep(Duration::from_millis(100));
    assert!(driver.poll()?.is_none(), "no longer drained");
    disk.control("resume", &Value::Null)?;
    driver.wait()?.ok()?;
    driver.release(slot);
    verify_io(&mut driver, HALF_BYTES, 4)
}

/// Nobody ends the pause on which the cut relies.
#[test]
fn f3_5_resume_while_a_shrink_waits_is_done_after_the_cut() -> Outcome {
    let Some((disk, session, mut driver)) = slow_write(1_500_000)? else {
        skip!("strace cannot trace here");
    };
    let socket = disk.process.path("control.sock");
    let shrink = std::thread::spawn(move || {
        let half = json!({ "size": HALF_BYTES, "shrink": true });
        control(&socket, "resize", &half).map_err(|error| error.to_string())
    });
    std::thread::sleep(Duration::from_millis(200));
    // What is written behind the new end from here on would make the file grow.
    let slot = driver.acquire()?;
    driver.submit(slot, &BlkRequest::write(DISK_SECTORS - 16, 4096))?;
    driver.publish()?;
    assert_eq!(disk.control("resume", &Value::Null)?["done"], true);
    assert_eq!(file_bytes(&disk)?, HALF_BYTES);
    shrink.join().map_err(|_panic| "the shrink panicked")??;
    for wanted in [status::OK, status::IOERR] {
        let done = driver.wait()?;
        assert_eq!(done.status, wanted);
        driver.release(done.slot);
    }
    assert_eq!(file_bytes(&disk)?, HALF_BYTES);
    verify_io(&mut driver, HALF_BYTES, 6)?;
    drop(session);
    Ok(())
}

#[test]
fn f3_5_shrink_under_load_never_lets_the_file_grow_back() -> Outcome {
    for args in [&[][..], &["--aio", "threads"], &["--cache", "none"]] {
        let mut disk = Disk::start(args)?;
        let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
        let socket = disk.process.path("control.sock");
        for _ in 0..10 {
            let socket = socket.clone();
            let shrink = std::thread::spawn(move || {
                control(
                    &socket,
                    "resize",
                    &json!({ "size": HALF_BYTES, "shrink": true }),
                )
                .map_err(|error| error.to_string())
            });
            let mut refused = 0;
            for sector in (HALF_SECTORS..DISK_SECTORS).step_by(8).cycle().take(4000) {
                let done = driver.write(sector, &[7; 4096])?;
                refused += u64::from(done.status != status::OK);
                if refused > 8 {
                    break;
                }
            }
            shrink.join().map_err(|_panic| "the shrink panicked")??;
            assert_eq!(file_bytes(&disk)?, HALF_BYTES, "{args:?}");
            disk.control("resize", &json!({ "size": DISK_BYTES }))?;
        }
    }
    Ok(())
}

/// A file system, taken away again.
struct Mounted(tempfile::TempDir);

impl Mounted {
    /// `None` where it cannot be mounted.
    fn mount(kind: &str, device: &str) -> Outcome<Option<Self>> {
        let dir = tempfile::tempdir()?;
        let done = Command::new("mount")
            .args(["-t", kind, device])
            .arg(dir.path())
            .output();
        Ok(done
            .is_ok_and(|out| out.status.success())
            .then_some(Self(dir)))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: the back-end may still have the image open.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status();
    }
}

fn serve(image: &Path, args: &[&str]) -> Outcome<Launch> {
    Ok(launch()?.arg("--blk-file").arg(image).args(args))
}

#[test]
fn f3_6_create_that_fails_leaves_no_image() -> Outcome {
    // A file system without O_DIRECT, which makes the file and refuses to open it.
    let Some(ramfs) = Mounted::mount("ramfs", "ramfs")? else {
        skip!("cannot mount a ramfs here");
    };
    let image = ramfs.path("new.img");
    let (code, said) = run(serve(&image, &["--size", "1M", "--cache", "none"])?)?;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("bypass its page cache"), "{said}");
    assert!(!image.exists(), "an image of nothing is left behind");
    // The next start does not serve it.
    let (code, said) = run(serve(&image, &["--cache", "writeback"])?)?;
    assert_eq!(code, Some(1), "{said}");
    // What fails later, with the file made: its size, and its name in the directory.
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("new.img");
    for (trace, inject) in [
        ("trace=ftruncate", "inject=ftruncate:error=ENOSPC"),
        ("trace=fsync", "inject=fsync:error=EIO"),
        ("trace=fsync", "inject=fsync:error=EIO:when=2"),
    ] {
        let Some(launch) = launch_traced(&["-e", trace, "-e", inject])? else {
            skip!("strace cannot trace here");
        };
        let launch = launch.arg("--blk-file").arg(&image);
        let (code, said) = run(launch.args(["--size", "1M"]))?;
        assert_eq!(code, Some(1), "{inject}: {said}");
        assert!(!image.exists(), "{inject}: {said}");
    }
    Ok(())
}

#[test]
fn f3_6_directory_of_a_new_image_is_synced() -> Outcome {
    let Some(launch) = launch_traced(&["-y", "-e", "trace=fsync"])? else {
        skip!("strace cannot trace here");
    };
    let image = launch.path("new.img");
    let launch = launch.arg("--blk-file").arg(&image).args(["--size", "1M"]);
    let mut disk = Disk::of(launch, image.clone())?;
    disk.session(Session::builder())?;
    let trace = std::fs::read_to_string(disk.process.path(TRACE))?;
    let synced = |path: &Path| {
        let file = format!("<{}>)", path.display());
        trace.lines().position(|line| line.contains(&file))
    };
    let directory = image.parent().ok_or("no directory")?;
    let (file, directory) = (synced(&image), synced(directory));
    assert!(file.is_some() && file < directory, "{trace}");
    Ok(())
}

#[test]
fn f3_6_other_size_of_an_image_is_said_and_no_sectors_are_refused() -> Outcome {
    let disk = Disk::start(&["--size", "64M"])?;
    assert_eq!(disk.info("size_bytes")?, json!(DISK_BYTES));
    let said = disk.process.stderr();
    assert!(
        said.contains("WARN") && said.contains("keeps its 1048576 bytes"),
        "{said}"
    );
    drop(disk);
    // The same size is nothing to speak of.
    let disk = Disk::start(&["--size", "1M"])?;
    assert!(!disk.process.stderr().contains("WARN"));
    drop(disk);
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("empty.img");
    std::fs::write(&image, [])?;
    for args in [
        &[][..],
        &["--size", "1M"],
        &["--read-only"],
        &["--cache", "none"],
    ] {
        let (code, said) = run(serve(&image, args)?)?;
        assert_eq!(code, Some(1), "{args:?}: {said}");
        assert!(said.contains("0 sectors"), "{args:?}: {said}");
        assert!(image.exists(), "what was there is not ours to remove");
    }
    let image = dir.path().join("none.img");
    let (code, said) = run(serve(&image, &["--size", "0"])?)?;
    assert_ne!(code, Some(0), "{said}");
    assert!(!image.exists());
    let (code, said) = run(launch()?.args(["--memory", "--size", "0"]))?;
    assert_ne!(code, Some(0), "{said}");
    // One that loses them while it is served.
    let mut disk = Disk::start(&[])?;
    std::fs::OpenOptions::new()
        .write(true)
        .open(disk.image())?
        .set_len(0)?;
    disk.control("resize", &Value::Null)?;
    let said = disk.process.stderr();
    assert!(
        said.contains("ERROR") && said.contains("no sectors"),
        "{said}"
    );
    assert!(disk.process.terminate(PATIENCE)?.success());
    Ok(())
}

#[test]
fn f6_4_serial_is_empty_unless_asked_for() -> Outcome {
    let mut disk = Disk::start(&[])?;
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    assert_eq!(driver.get_id()?, [0; 20]);
    drop(driver);
    let mut disk = Disk::start(&["--serial", "one of my own"])?;
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    assert_eq!(driver.get_id()?, *b"one of my own\0\0\0\0\0\0\0");
    Ok(())
}

/// A file system on blocks of 4096 bytes, which direct I/O has to keep to there.
fn large_blocks() -> Outcome<Option<(Mounted, LoopDevice)>> {
    let Ok(device) = LoopDevice::attach(64 << 20, &["--sector-size", "4096"]) else {
        return Ok(None);
    };
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-b", "4096", device.path()])
        .output();
    if !made.is_ok_and(|out| out.status.success()) {
        return Ok(None);
    }
    Ok(Mounted::mount("ext4", device.path())?.map(|mounted| (mounted, device)))
}

#[test]
fn f6_5_capacity_is_the_same_in_all_cache_modes_whatever_is_written() -> Outcome {
    let Some((mounted, _device)) = large_blocks()? else {
        skip!("no ext4 on a loop device here");
    };
    let whole = 64 << 10;
    for more in [0, 1, 100, 511, 512, 513, 3584, 4095] {
        let sectors = (whole + more as u64).div_ceil(SECTOR_BYTES as u64);
        for cache in ["writeback", "none", "writethrough", "unsafe", "none"] {
            let image = mounted.path("disk.img");
            let mut content = image_pattern(usize::try_from(whole)?);
            content.extend(vec![0x77; more]);
            std::fs::write(&image, &content)?;
            let start = || Disk::of(serve(&image, &["--cache", cache])?, image.clone());
            let mut disk = start()?;
            let what = format!("{whole} + {more} bytes, {cache}");
            assert_eq!(disk.info("size_bytes")?, json!(sectors * 512), "{what}");
            let (mut session, mut driver) =
                disk.driver(Session::builder(), BlkConfig::default())?;
            assert_eq!(
                BlkDriver::capacity(&session.config(0, 8)?),
                Some(sectors),
                "{what}"
            );
            // The last sector, read, written, and read again; and one that is not there.
            content.resize(usize::try_from(sectors * 512)?, 0);
            let mut found = [1; SECTOR_BYTES];
            driver.read(sectors - 1, &mut found)?.ok()?;
            assert_eq!(found[..], content[content.len() - SECTOR_BYTES..], "{what}");
            driver.write(sectors - 1, &[9; SECTOR_BYTES])?.ok()?;
            driver.read(sectors - 1, &mut found)?.ok()?;
            assert_eq!(found, [9; SECTOR_BYTES], "{what}");
            driver.flush()?.ok()?;
            assert_eq!(driver.read(sectors, &mut found)?.status, status::IOERR);
            disk.control("resize", &Value::Null)?;
            assert_eq!(disk.info("size_bytes")?, json!(sectors * 512), "{what}");
            drop((session, driver));
            assert!(disk.process.terminate(PATIENCE)?.success());
            // The file has no more than the disk, and the next start finds the same.
            assert!(std::fs::metadata(&image)?.len() <= sectors * 512, "{what}");
            let disk = start()?;
            assert_eq!(disk.info("size_bytes")?, json!(sectors * 512), "{what}");
            let last = std::fs::read(&image)?;
            let start = usize::try_from(sectors - 1)? * SECTOR_BYTES;
            assert_eq!(last[start..], [9; SECTOR_BYTES], "{what}");
            assert!(last[..start] == content[..start], "{what}");
        }
    }
    Ok(())
}

#[test]
fn f6_5_stop_waits_for_a_piece_of_a_long_discard_or_zeroing_only() -> Outcome {
    // Each call takes a fifth of a second: all of them 50 s.
    let inject = "inject=fallocate:delay_enter=200000";
    for (kind, wanted) in [
        (kind::DISCARD, status::OK),
        (kind::WRITE_ZEROES, status::IOERR),
    ] {
        let Some(launch) = launch_traced(&["-e", "trace=fallocate", "-e", inject])? else {
            skip!("strace cannot trace here");
        };
        let image = image_pattern(usize::try_from(DISK_BYTES)?);
        let mut disk = Disk::launched(launch, &image, &[])?;
        let (mut session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
        let ranges: Vec<Range> = (0..250)
            .map(|at| Range {
                sector: at * 8,
                sectors: 8,
                flags: 0,
            })
            .collect();
        let slot = driver.acquire()?;
        driver.fill_ranges(slot, &ranges);
        driver.submit(slot, &BlkRequest::ranges(kind, 250))?;
        driver.publish()?;
        std::thread::sleep(Duration::from_millis(500));
        let began = Instant::now();
        assert_eq!(session.stop(0)?, 1);
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{:?}",
            began.elapsed()
        );
        let done = driver.poll()?.ok_or("stopped without an answer")?;
        assert_eq!(done.status, wanted, "{kind}");
        // Started again it goes on as if nothing had been.
        session.start(driver.vring(), 1)?;
        driver.release(slot);
        let mut data = [0; 4096];
        fill_pattern(5, 8, &mut data);
        driver.write(8, &data)?.ok()?;
        driver.read(8, &mut data)?.ok()?;
        check_pattern(5, 8, &data)?;
    }
    Ok(())
}

#[test]
fn f6_5_one_long_segment_is_cleared_in_pieces() -> Outcome {
    let Some(launch) = launch_traced(&["-e", "trace=fallocate"])? else {
        skip!("strace cannot trace here");
    };
    let image = launch.path("new.img");
    let launch = launch.arg("--blk-file").arg(&image).args(["--size", "2G"]);
    let mut disk = Disk::of(launch, image)?;
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    let before = std::fs::read_to_string(disk.process.path(TRACE))?
        .lines()
        .count();
    let range = Range {
        sector: 8,
        sectors: 1 << 21,
        flags: 0,
    };
    driver.run_ranges(kind::DISCARD, &[range])?.ok()?;
    let trace = std::fs::read_to_string(disk.process.path(TRACE))?;
    let mut end = 4096;
    for line in trace.lines().skip(before) {
        let Some((_, call)) = line.split_once("fallocate(") else {
            continue;
        };
        let numbers: Vec<u64> = call
            .split([',', ')'])
            .filter_map(|word| word.trim().parse().ok())
            .collect();
        let (offset, len_bytes) = (numbers[numbers.len() - 2], numbers[numbers.len() - 1]);
        assert_eq!(offset, end, "{line}");
        assert!((1..=64 << 20).contains(&len_bytes), "{line}");
        end = offset + len_bytes;
    }
    assert_eq!(end, 4096 + (1 << 30), "{trace}");
    Ok(())
}

#[test]
fn f6_5_device_can_discard_where_sysfs_is_not_mounted() -> Outcome {
    let Ok(device) = LoopDevice::attach(4 << 20, &[]) else {
        skip!("no loop devices here");
    };
    let binary = back_end_binary("ringside-blk")?;
    let launch = Launch::program("unshare")?;
    let (socket, control) = (launch.socket(), launch.path("control.sock"));
    let script = "mount -t tmpfs none /sys && exec \"$0\" \"$@\"";
    let launch = launch
        .args(["--mount", "sh", "-c", script])
        .arg(binary)
        .arg("--socket-path")
        .arg(&socket)
        .arg("--control-socket")
        .arg(&control)
        .args(["--blk-file", device.path()]);
    let Ok(disk) = Disk::of(launch, "none".into()) else {
        skip!("no mount namespaces here");
    };
    let has_sysfs = Disk::of(
        serve(Path::new(device.path()), &["--no-lock"])?,
        "none".into(),
    )?;
    assert_eq!(disk.info("discard")?, has_sysfs.info("discard")?);
    assert_eq!(disk.info("discard")?, json!(true));
    Ok(())
}

#[test]
fn f6_5_file_system_without_locks_is_said_and_served() -> Outcome {
    // The first call for a lock, and the one after it; others set the flags of descriptors.
    let Some(launch) = launch_traced(&["-e", "trace=fcntl"])? else {
        skip!("strace cannot trace here");
    };
    let image = launch.file("disk.img", DISK_BYTES)?;
    let disk = Disk::of(launch.arg("--blk-file").arg(&image), image)?;
    let trace = std::fs::read_to_string(disk.process.path(TRACE))?;
    let first = 1 + trace
        .lines()
        .position(|line| line.contains("F_OFD_"))
        .ok_or("no lock was taken")?;
    drop(disk);
    for error in ["ENOLCK", "EOPNOTSUPP"] {
        let inject = format!("inject=fcntl:error={error}:when={first}..{}", first + 1);
        let Some(launch) = launch_traced(&["-e", "trace=fcntl", "-e", &inject])? else {
            skip!("strace cannot trace here");
        };
        let image = launch.file("disk.img", DISK_BYTES)?;
        let launch = launch.arg("--blk-file").arg(&image);
        let mut disk = Disk::of(launch, image)?;
        // No more than that: `strace` counts the calls of each thread.
        let mut session = disk.session(Session::builder())?;
        let capacity = BlkDriver::capacity(&session.config(0, 8)?);
        assert_eq!(capacity, Some(DISK_SECTORS));
        let said = disk.process.stderr();
        assert!(
            said.contains("WARN") && said.contains("cannot lock"),
            "{said}"
        );
    }
    Ok(())
}
