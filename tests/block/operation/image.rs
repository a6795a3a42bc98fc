// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images: locks, sizes, cache modes, alignment, and files that change or fail under the device.

use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use ringside_frontend::blk::{BlkConfig, BlkDriver, BlkRequest, SECTOR_BYTES, blk_feature, status};
use ringside_frontend::load::{check_pattern, fill_pattern};
use ringside_frontend::session::Session;
use ringside_tests::host_fs::LoopDevice;
use ringside_tests::hostile::support_chains::{
    DISK_BYTES, DISK_SECTORS, Disk, IMAGE_SEED, MOST_THREADS, Outcome, PACKAGE, PATIENCE,
    image_pattern, launch, launch_traced,
};
use ringside_tests::process::{Launch, Process};
use ringside_tests::skip;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{run, verify_io};

/// A second back-end on the image of `disk`.
fn second(disk: &Disk, args: &[&str]) -> Outcome<Launch> {
    Ok(launch()?.arg("--blk-file").arg(disk.image()).args(args))
}

#[test]
fn image_has_one_writer_or_any_number_of_readers() -> Outcome {
    let writer = Disk::start(&[])?;
    for args in [&[][..], &["--read-only"]] {
        let (code, said) = run(second(&writer, args)?)?;
        assert_eq!(code, Some(1), "{args:?}: {said}");
        assert!(said.contains("in use by another process"), "{said}");
    }
    // Those who know what they do may.
    let mut unlocked = Disk::of(second(&writer, &["--no-lock"])?, writer.image().into())?;
    unlocked.process.terminate(PATIENCE)?;
    drop(writer);

    let mut reader = Disk::start(&["--read-only"])?;
    let mut other = Disk::of(second(&reader, &["--read-only"])?, reader.image().into())?;
    for disk in [&mut reader, &mut other] {
        let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
        let mut data = [0; 4096];
        driver.read(8, &mut data)?.ok()?;
        check_pattern(IMAGE_SEED, 8, &data)?;
    }
    let (code, said) = run(second(&reader, &[])?)?;
    assert_eq!(code, Some(1), "{said}");
    // A lock ends with its holder, however that ends.
    reader.process.kill()?;
    other.process.kill()?;
    let mut writer = Disk::of(second(&reader, &[])?, reader.image().into())?;
    assert!(writer.process.terminate(PATIENCE)?.success());
    Ok(())
}

#[test]
fn qemu_and_ringside_see_each_others_locks() -> Outcome {
    let disk = Disk::start(&[])?;
    let arguments = ["-f", "raw", "-c", "read 0 512"];
    let tool = Command::new("qemu-io")
        .args(arguments)
        .arg(disk.image())
        .output();
    let Ok(tool) = tool else {
        skip!("qemu-io is not installed");
    };
    let said = String::from_utf8_lossy(&tool.stderr).into_owned();
    assert!(!tool.status.success() && said.contains("lock"), "{said}");
    Ok(())
}

#[test]
fn size_creates_a_sparse_image_and_leaves_one_that_is_there() -> Outcome {
    let launch = launch()?;
    let image = launch.path("new.img");
    let launch = launch.arg("--blk-file").arg(&image).args(["--size", "64M"]);
    let mut disk = Disk::of(launch, image.clone())?;
    let made = std::fs::metadata(&image)?;
    assert_eq!((made.len(), made.blocks()), (64 << 20, 0));
    assert_eq!(made.mode() & 0o077, 0, "readable by others");
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    let mut data = [1; 4096];
    driver.read(131_072 - 8, &mut data)?.ok()?;
    assert_eq!(data, [0; 4096]);
    verify_io(&mut driver, DISK_BYTES, 1)?;
    // Discarded space goes back to the host.
    let full = std::fs::metadata(&image)?.blocks();
    let range = ringside_frontend::blk::Range {
        sector: 0,
        sectors: u32::try_from(DISK_SECTORS)?,
        flags: 0,
    };
    driver
        .run_ranges(ringside_frontend::blk::kind::DISCARD, &[range])?
        .ok()?;
    let freed = std::fs::metadata(&image)?.blocks();
    assert!(full >= DISK_SECTORS && freed < full / 4, "{full} {freed}");
    drop(driver);
    assert!(disk.process.terminate(PATIENCE)?.success());

    let there = ringside_tests::hostile::support_chains::launch()?
        .arg("--blk-file")
        .arg(&image);
    let disk = Disk::of(there.args(["--size", "1M"]), image)?;
    assert_eq!(disk.info("size_bytes")?, json!(64 << 20));
    drop(disk);

    for (args, said) in [
        (&["--size", "1000"][..], "multiple"),
        (&[], "cannot open"),
        (&["--size", "1M", "--read-only"], "cannot open"),
    ] {
        let launch = ringside_tests::hostile::support_chains::launch()?;
        let image = launch.path("none.img");
        let (code, wrote) = run(launch.arg("--blk-file").arg(&image).args(args))?;
        assert_eq!(code, Some(1), "{args:?}: {wrote}");
        assert!(wrote.contains(said), "{args:?}: {wrote}");
    }
    Ok(())
}

#[test]
fn only_files_and_block_devices_are_images() -> Outcome {
    for path in ["/dev/null", "/dev/zero", "/"] {
        let (code, said) = run(launch()?.args(["--blk-file", path]))?;
        assert_eq!(code, Some(1), "{path}: {said}");
    }
    let launch = launch()?;
    let fifo = launch.path("fifo");
    let made = Command::new("mkfifo").arg(&fifo).status()?;
    assert!(made.success());
    let (code, said) = run(launch.arg("--blk-file").arg(&fifo))?;
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("neither a regular file nor a block device"),
        "{said}"
    );
    Ok(())
}

#[test]
fn memory_disk_serves_zeroes_and_forgets() -> Outcome {
    for round in 0..2 {
        let launch = launch()?.args(["--memory", "--size", "2M"]);
        let mut disk = Disk::of(launch, "none".into())?;
        let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
        let mut data = [1; 4096];
        driver.read(1024, &mut data)?.ok()?;
        assert_eq!(data, [0; 4096], "round {round}");
        verify_io(&mut driver, 2 << 20, 2)?;
        let range = ringside_frontend::blk::Range {
            sector: 8,
            sectors: 8,
            flags: 0,
        };
        driver
            .run_ranges(ringside_frontend::blk::kind::WRITE_ZEROES, &[range])?
            .ok()?;
        driver.read(8, &mut data)?.ok()?;
        assert_eq!(data, [0; 4096]);
    }
    Ok(())
}

#[test]
fn every_cache_mode_and_engine_serves_what_was_written() -> Outcome {
    for cache in ["writeback", "writethrough", "none", "unsafe"] {
        for aio in ["io_uring", "threads"] {
            let mut disk = Disk::start(&["--cache", cache, "--aio", aio])?;
            let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
            let served = verify_io(&mut driver, DISK_BYTES, 3);
            served.map_err(|error| format!("{cache} {aio}: {error}"))?;
            drop(driver);
            let status = disk.process.terminate(PATIENCE)?;
            assert!(status.success(), "{cache} {aio}: {status}");
            let content = disk.content()?;
            check_pattern(3, 8, &content[8 * SECTOR_BYTES..])?;
        }
    }
    Ok(())
}

#[test]
fn cache_modes_sync_as_they_say() -> Outcome {
    for (cache, stable_writes, syncs) in [
        ("writeback", 0, 1),
        ("none", 0, 1),
        ("writethrough", 1, 1),
        ("unsafe", 0, 0),
    ] {
        let Some(launch) = launch_traced(&["-e", "trace=pwritev2,fdatasync"])? else {
            skip!("strace cannot trace here");
        };
        let image = image_pattern(usize::try_from(DISK_BYTES)?);
        let args = ["--cache", cache, "--aio", "threads"];
        let mut disk = Disk::launched(launch, &image, &args)?;
        let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
        driver.write(8, &[1; 4096])?.ok()?;
        driver.flush()?.ok()?;
        let trace = std::fs::read_to_string(disk.process.path("trace.log"))?;
        let found = (
            trace.matches("RWF_DSYNC").count(),
            trace.matches("fdatasync(").count(),
        );
        assert_eq!(found, (stable_writes, syncs), "{cache}:\n{trace}");
    }
    Ok(())
}

#[test]
fn block_size_of_4096_is_shown_and_smaller_requests_served() -> Outcome {
    for args in [
        &["--block-size", "4096"][..],
        &["--block-size", "4096", "--cache", "none"],
    ] {
        let mut disk = Disk::start(args)?;
        let (mut session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
        assert_ne!(session.negotiated().features & blk_feature::BLK_SIZE, 0);
        let config = session.config(20, 4)?;
        assert_eq!(config, 4096_u32.to_le_bytes());
        assert_eq!(disk.info("logical_block_bytes")?, json!(4096));
        verify_io(&mut driver, DISK_BYTES, 4)?;
    }
    // A size that its blocks do not divide, for a new image.
    let launch = launch()?;
    let image = launch.path("new.img");
    let launch = launch.arg("--blk-file").arg(image);
    let (code, said) = run(launch.args(["--size", "4608", "--block-size", "4096"]))?;
    assert_eq!(code, Some(1), "{said}");
    let (code, _) = run(ringside_tests::hostile::support_chains::launch()?.args([
        "--memory",
        "--size",
        "1M",
        "--block-size",
        "1000",
    ]))?;
    assert_eq!(code, Some(1));
    Ok(())
}

#[test]
fn direct_io_on_4k_blocks_bounces_and_rewrites() -> Outcome {
    const BYTES: u64 = 4 << 20;
    let Ok(device) = LoopDevice::attach(BYTES, &["--sector-size", "4096"]) else {
        skip!("no loop devices here");
    };
    let launch = launch()?.args(["--cache", "none", "--blk-file", device.path()]);
    let mut disk = Disk::of(launch, "none".into())?;
    assert_eq!(disk.info("logical_block_bytes")?, json!(4096));
    assert_eq!(disk.info("size_bytes")?, json!(BYTES));
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    verify_io(&mut driver, BYTES, 5)?;
    // Single sectors, at every place in a block, side by side and all at once: none may undo
    // another's.
    let mut data = [0; SECTOR_BYTES];
    for round in 0..8_u64 {
        for sector in 64..96 {
            let slot = driver.acquire()?;
            fill_pattern(600 + round, sector, &mut data);
            driver.data(slot).write(0, &data);
            driver.submit(slot, &BlkRequest::write(sector, 512))?;
        }
        driver.publish()?;
        while driver.in_flight() > 0 {
            let slot = driver.wait()?.ok()?.slot;
            driver.release(slot);
        }
        let mut found = [0; 32 * SECTOR_BYTES];
        driver.read(64, &mut found)?.ok()?;
        check_pattern(600 + round, 64, &found)?;
    }
    // What lies around them is as before.
    let mut around = [0; 4096];
    driver.read(56, &mut around)?.ok()?;
    check_pattern(5, 56, &around)?;
    driver.read(96, &mut around)?.ok()?;
    check_pattern(5, 96, &around)?;
    Ok(())
}

#[test]
fn tail_of_a_file_reads_as_zeroes_and_can_be_written() -> Outcome {
    for args in [
        &[][..],
        &["--cache", "none"],
        &["--block-size", "4096"],
        &["--cache", "none", "--block-size", "4096"],
    ] {
        let mut image = image_pattern(64 << 10);
        image.extend([0x77; 100]);
        let mut disk = Disk::start_with(&image, args)?;
        let (mut session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
        let capacity = BlkDriver::capacity(&session.config(0, 8)?).ok_or("no capacity")?;
        let blocks = if args.contains(&"4096") { 8 } else { 1 };
        // With direct I/O the file system's block may be the larger one.
        assert!(
            capacity >= 128 + blocks && capacity <= 136,
            "{args:?}: {capacity}"
        );
        for sector in [128, 127, 120] {
            let bytes = usize::try_from(capacity - sector)? * SECTOR_BYTES;
            let mut found = vec![0; bytes];
            let slot = driver.acquire()?;
            driver.data(slot).fill(0, bytes, 0x11);
            driver
                .run(slot, &BlkRequest::read(sector, u32::try_from(bytes)?))?
                .ok()?;
            driver.data(slot).read(0, &mut found);
            driver.release(slot);
            let start = usize::try_from(sector)? * SECTOR_BYTES;
            let mut expected = image[start..].to_vec();
            expected.resize(bytes, 0);
            assert!(found == expected, "{args:?}: from sector {sector}");
        }
        let beyond = driver.read(capacity, &mut [0; 512])?;
        assert_eq!((beyond.status, beyond.used_len), (status::IOERR, 1));
        driver.write(128, &[9; 512])?.ok()?;
        let mut found = [0; 512];
        driver.read(128, &mut found)?.ok()?;
        assert_eq!(found, [9; 512], "{args:?}");
    }
    Ok(())
}

#[test]
fn shrunk_file_fails_behind_its_end_and_the_guest_is_told_once_asked() -> Outcome {
    for args in [&[][..], &["--aio", "threads"], &["--cache", "none"]] {
        let mut disk = Disk::start(args)?;
        let (mut session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
        let file = std::fs::OpenOptions::new().write(true).open(disk.image())?;
        file.set_len(DISK_BYTES / 2)?;
        let middle = DISK_SECTORS / 2;
        for sector in [middle, DISK_SECTORS - 1] {
            let read = driver.read(sector, &mut [0; 512])?;
            assert_eq!((read.status, read.used_len), (status::IOERR, 1), "{args:?}");
        }
        driver.read(middle - 1, &mut [0; 512])?.ok()?;
        // Nobody has looked at the size yet: the guest still sees the old one.
        let capacity = BlkDriver::capacity(&session.config(0, 8)?);
        assert_eq!(capacity, Some(DISK_SECTORS), "{args:?}");
        disk.process.signal(Signal::HUP)?;
        let channel = session.back_channel().ok_or("no back-channel")?;
        channel.wait_config_change(PATIENCE)?;
        let capacity = BlkDriver::capacity(&session.config(0, 8)?);
        assert_eq!(capacity, Some(middle), "{args:?}");
        let write = driver.write(middle, &[1; 512])?;
        assert_eq!(write.status, status::IOERR);
        assert_eq!(disk.content()?.len() as u64, DISK_BYTES / 2);
    }
    Ok(())
}

#[test]
fn grown_file_is_announced_by_sighup_and_by_resize() -> Outcome {
    let mut disk = Disk::start(&[])?;
    let (mut session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    let announced = |session: &mut Session, sectors: u64| -> Outcome {
        let channel = session.back_channel().ok_or("no back-channel")?;
        channel.wait_config_change(PATIENCE)?;
        let found = BlkDriver::capacity(&session.config(0, 60)?);
        assert_eq!(found, Some(sectors));
        Ok(())
    };
    let file = std::fs::OpenOptions::new().write(true).open(disk.image())?;
    file.set_len(2 * DISK_BYTES)?;
    assert_eq!(
        driver.read(DISK_SECTORS, &mut [0; 512])?.status,
        status::IOERR
    );
    disk.process.signal(Signal::HUP)?;
    announced(&mut session, 2 * DISK_SECTORS)?;
    driver.write(2 * DISK_SECTORS - 8, &[1; 4096])?.ok()?;
    // A file made longer by somebody else, and by us.
    file.set_len(3 * DISK_BYTES)?;
    let reply = disk.control("resize", &Value::Null)?;
    assert_eq!(reply, json!({ "size_bytes": 3 * DISK_BYTES }));
    announced(&mut session, 3 * DISK_SECTORS)?;
    let reply = disk.control("resize", &json!({ "size": 4 * DISK_BYTES }))?;
    assert_eq!(reply, json!({ "size_bytes": 4 * DISK_BYTES }));
    announced(&mut session, 4 * DISK_SECTORS)?;
    driver.write(4 * DISK_SECTORS - 8, &[2; 4096])?.ok()?;
    assert_eq!(disk.content()?.len() as u64, 4 * DISK_BYTES);
    // And shorter.
    disk.control("resize", &json!({ "size": DISK_BYTES, "shrink": true }))?;
    announced(&mut session, DISK_SECTORS)?;
    assert_eq!(
        driver.read(DISK_SECTORS, &mut [0; 512])?.status,
        status::IOERR
    );
    for bad in [
        json!(1000),
        json!(-1),
        json!("x"),
        json!({}),
        json!(u64::MAX),
    ] {
        let refused = disk.control("resize", &json!({ "size": bad }));
        assert!(refused.is_err(), "{bad} was accepted");
    }
    assert_eq!(disk.content()?.len() as u64, DISK_BYTES);
    verify_io(&mut driver, DISK_BYTES, 6)
}

#[test]
fn image_deleted_or_replaced_is_served_to_the_end() -> Outcome {
    // J5: the open file counts, not the name.
    let mut disk = Disk::start(&[])?;
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    let other = disk.process.path("other.img");
    std::fs::write(&other, vec![0xee; usize::try_from(DISK_BYTES)?])?;
    std::fs::rename(&other, disk.image())?;
    let mut data = [0; 4096];
    driver.read(8, &mut data)?.ok()?;
    check_pattern(IMAGE_SEED, 8, &data)?;
    verify_io(&mut driver, DISK_BYTES, 7)?;
    assert!(disk.content()?.iter().all(|byte| *byte == 0xee));
    disk.process.signal(Signal::HUP)?;
    assert_eq!(disk.info("size_bytes")?, json!(DISK_BYTES));
    Ok(())
}

/// A small file system that can be full, taken away again.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where nothing can be mounted.
    fn mount(bytes: u64) -> Outcome<Option<Self>> {
        let dir = tempfile::tempdir()?;
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(dir.path())
            .output();
        Ok(status
            .is_ok_and(|out| out.status.success())
            .then_some(Self(dir)))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the back-end may still have the image open.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.0.path())
            .status();
    }
}

#[test]
fn write_to_a_full_disk_fails_alone_and_works_once_there_is_room() -> Outcome {
    for args in [&[][..], &["--aio", "threads"], &["--cache", "writethrough"]] {
        let Some(small) = SmallDisk::mount(1 << 20)? else {
            skip!("cannot mount a tmpfs here");
        };
        let image = small.0.path().join("disk.img");
        let ballast = small.0.path().join("ballast");
        std::fs::write(&ballast, vec![1; 512 << 10])?;
        let launch = launch()?.arg("--blk-file").arg(&image);
        let mut disk = Disk::of(launch.args(["--size", "4M"]).args(args), image.clone())?;
        let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
        let mut full = None;
        for sector in (0..4096).step_by(8) {
            let mut data = [0; 4096];
            fill_pattern(8, sector, &mut data);
            let write = driver.write(sector, &data)?;
            assert_eq!(write.used_len, 1);
            if write.status != status::OK {
                assert_eq!(write.status, status::IOERR, "{args:?}");
                full = Some(sector);
                break;
            }
        }
        let full = full.ok_or("the disk was never full")?;
        // What was answered is there, and flushes and reads go on.
        let mut data = [0; 4096];
        for sector in (0..full).step_by(8) {
            driver.read(sector, &mut data)?.ok()?;
            check_pattern(8, sector, &data)?;
        }
        driver.flush()?.ok()?;
        assert_eq!(disk.info("lost_writes")?, json!(false), "{args:?}");
        std::fs::remove_file(&ballast)?;
        fill_pattern(8, full, &mut data);
        driver.write(full, &data)?.ok()?;
        driver.flush()?.ok()?;
        driver.read(full, &mut data)?.ok()?;
        check_pattern(8, full, &data)?;
        drop(driver);
        assert!(disk.process.terminate(PATIENCE)?.success());
    }
    Ok(())
}

#[test]
fn read_and_write_errors_of_the_host_fail_the_request_alone() -> Outcome {
    // J1, J2 and J4: an error, an interruption and a transfer of nothing at the first call of each
    // blocking thread.
    for (call, fault, wanted) in [
        ("preadv", "error=EIO", status::IOERR),
        ("preadv", "error=EINTR", status::OK),
        ("preadv", "error=EAGAIN", status::OK),
        ("preadv", "retval=0", status::OK),
        ("pwritev2", "error=EIO", status::IOERR),
        ("pwritev2", "error=ENOSPC", status::IOERR),
        ("pwritev2", "error=EINTR", status::OK),
        ("pwritev2", "error=EAGAIN", status::OK),
        ("pwritev2", "retval=0", status::IOERR),
    ] {
        let inject = format!("inject={call}:{fault}:when=1");
        let trace = format!("trace={call}");
        let Some(launch) = launch_traced(&["-e", &trace, "-e", &inject])? else {
            skip!("strace cannot trace here");
        };
        let image = image_pattern(usize::try_from(DISK_BYTES)?);
        let mut disk = Disk::launched(launch, &image, &["--aio", "threads"])?;
        let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
        let mut data = [0x5a; 4096];
        let first = if call == "preadv" {
            driver.read(8, &mut data)?
        } else {
            driver.write(8, &[1; 4096])?
        };
        assert_eq!(first.status, wanted, "{call} {fault}");
        if call == "preadv" && wanted == status::OK {
            check_pattern(IMAGE_SEED, 8, &data)?;
        }
        let expected_len = if call == "preadv" && first.status == status::OK {
            4097
        } else {
            1
        };
        assert_eq!(first.used_len, expected_len, "{call} {fault}");
        let (mut failures, mut successes) = (0, 0);
        while successes < 50 {
            let sector = 8 * (successes + 1);
            fill_pattern(9, sector, &mut data);
            let write = driver.write(sector, &data)?;
            let mut found = [0; 4096];
            let read = driver.read(sector, &mut found)?;
            if write.status == status::OK && read.status == status::OK {
                check_pattern(9, sector, &found)?;
                successes += 1;
            } else {
                failures += 1;
                assert!(
                    failures <= MOST_THREADS,
                    "{call} {fault}: it goes on failing"
                );
            }
        }
        driver.flush()?.ok()?;
    }
    Ok(())
}

#[test]
fn without_io_uring_threads_serve() -> Outcome {
    // What a container without io_uring looks like: io_uring_setup is refused.
    let inject = "inject=io_uring_setup:error=EPERM";
    let Some(launch) = launch_traced(&["-e", "trace=io_uring_setup", "-e", inject])? else {
        skip!("strace cannot trace here");
    };
    let image = image_pattern(usize::try_from(DISK_BYTES)?);
    let mut disk = Disk::launched(launch, &image, &[])?;
    let (_session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    verify_io(&mut driver, DISK_BYTES, 10)?;
    let said = disk.process.stderr();
    assert!(said.contains("no io_uring here"), "{said}");
    Ok(())
}

#[test]
fn stalled_disk_holds_up_its_own_request_only() -> Outcome {
    // J6: the first read takes three seconds.
    let inject = "inject=preadv:delay_enter=3000000:when=1";
    let Some(launch) = launch_traced(&["-e", "trace=preadv", "-e", inject])? else {
        skip!("strace cannot trace here");
    };
    let image = image_pattern(usize::try_from(DISK_BYTES)?);
    let mut disk = Disk::launched(launch, &image, &["--aio", "threads"])?;
    let (mut session, mut driver) = disk.driver(Session::builder(), BlkConfig::default())?;
    let stalled = driver.acquire()?;
    driver.submit(stalled, &BlkRequest::read(8, 4096))?;
    driver.publish()?;
    std::thread::sleep(std::time::Duration::from_millis(100));
    for sector in 0..32 {
        let slot = driver.acquire()?;
        driver.data(slot).fill(0, 512, 3);
        driver.submit(slot, &BlkRequest::write(64 + sector, 512))?;
        driver.publish()?;
        let done = driver.wait()?.ok()?;
        assert_eq!(done.slot, slot, "the stalled one came first");
        driver.release(slot);
    }
    assert_eq!(driver.vring().ring.used_idx(), 32);
    // The vring stops when the request is done, not before.
    let base = session.stop(0)?;
    assert_eq!((base, driver.vring().ring.used_idx()), (33, 33));
    let done = driver.poll()?.ok_or("the stalled read is lost")?.ok()?;
    assert_eq!((done.slot, done.used_len), (stalled, 4097));
    let mut data = [0; 4096];
    driver.data(stalled).read(0, &mut data);
    check_pattern(IMAGE_SEED, 8, &data)?;
    Ok(())
}

#[test]
fn process_needs_no_privileges() -> Outcome {
    let launch = Launch::program("setpriv")?;
    let binary = ringside_tests::process::back_end_binary(PACKAGE)?;
    let image = launch.file("disk.img", DISK_BYTES)?;
    let (socket, dir) = (launch.socket(), launch.path("."));
    // Readable and writable by anyone, the one time that this is wanted.
    let opened = Command::new("chmod")
        .arg("777")
        .arg(&dir)
        .arg(&image)
        .status()?;
    let copy = dir.join("ringside-blk");
    std::fs::copy(binary, &copy)?;
    let limits = [
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--no-new-privs",
    ];
    let launch = launch
        .args(limits)
        .args(["--bounding-set=-all", "--inh-caps=-all"])
        .arg(copy);
    let launch = launch
        .arg("--blk-file")
        .arg(&image)
        .arg("--socket-path")
        .arg(&socket);
    let rooted = rustix::process::geteuid().is_root();
    if !opened.success() || !rooted {
        skip!("not root, so there are no privileges to drop");
    }
    let mut process: Process = launch.spawn()?;
    let mut session = Session::builder().from_stream(process.connect(PATIENCE)?)?;
    let vring = session.start_all()?.remove(0);
    let mut driver = BlkDriver::new(vring, BlkConfig::default())?;
    verify_io(&mut driver, DISK_BYTES, 11)
}
