// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What file systems and processes of the host do that a guest is to see, or not to see.

#[path = "host/lease.rs"]
mod lease;
#[path = "host/long_names.rs"]
mod long_names;
#[path = "host/names.rs"]
mod names;

use std::error::Error;
use std::fs::FileTimes;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use lease::Lease;
use ringside_frontend::fuse::flags::{AttrFlags, ROOT_NODE};
use ringside_frontend::fuse::{FuseClient, FuseConfig, FuseError, FuseQueue, Request};
use ringside_tests::fs_back_end::FsBackEnd;
use ringside_tests::host_fs::HostFs;
use ringside_tests::skip;

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type TestResult = Result<()>;

/// A file system made by `mkfs`, or a counted skip.
macro_rules! host_fs {
    ($mkfs:literal, $args:expr, $bytes:expr) => {
        match HostFs::in_file(Command::new($mkfs).args($args), $bytes) {
            Ok(share) => share,
            Err(error) => skip!("{error}"),
        }
    };
}

fn start(dir: &Path, args: &[&str]) -> Result<(FsBackEnd, FuseClient)> {
    let back_end = FsBackEnd::start(dir, args)?;
    let client = FuseClient::connect(&back_end.socket(), &FuseConfig::default())?;
    Ok((back_end, client))
}

#[test]
fn subvolumes_are_submounts_where_those_are_announced() -> TestResult {
    let share = host_fs!("mkfs.btrfs", ["-q"], 128 << 20);
    let root = share.path();
    for name in ["one", "two"] {
        let made = Command::new("btrfs")
            .args(["subvolume", "create"])
            .arg(root.join(name))
            .output()?;
        assert!(made.status.success(), "{made:?}");
    }
    std::fs::create_dir(root.join("plain"))?;
    for (args, announced) in [(&[][..], true), (&["--no-announce-submounts"], false)] {
        let (_back_end, mut client) = start(&root, args)?;
        let queue = client.queue();
        for (name, expected) in [("one", announced), ("two", announced), ("plain", false)] {
            let attr = queue.lookup(ROOT_NODE, name)?.attr;
            let submount = attr.flags.contains(AttrFlags::SUBMOUNT);
            assert_eq!(submount, expected, "{name} {args:?}");
            assert_eq!(attr.ino == 256, name != "plain", "{name}");
        }
        let handle = queue.opendir(ROOT_NODE)?.handle;
        for listed in queue.readdirplus(ROOT_NODE, handle, 0, 4096)? {
            let Some(entry) = listed.entry.filter(|entry| entry.node != 0) else {
                continue;
            };
            let submount = entry.attr.flags.contains(AttrFlags::SUBMOUNT);
            let expected = announced && listed.name != b"plain";
            assert_eq!(submount, expected, "{listed:?} {args:?}");
        }
    }
    Ok(())
}

#[test]
fn entries_of_a_directory_without_kinds_have_none() -> TestResult {
    let share = host_fs!("mkfs.ext4", ["-q", "-O", "^filetype"], 64 << 20);
    std::fs::write(share.path().join("file"), "")?;
    let (_back_end, mut client) = start(&share.path(), &[])?;
    let queue = client.queue();
    let handle = queue.opendir(ROOT_NODE)?.handle;
    let entries = queue.readdir(ROOT_NODE, handle, 0, 4096)?;
    let file = entries.iter().find(|entry| entry.name == b"file");
    assert_eq!(file.map(|entry| entry.kind), Some(libc::DT_UNKNOWN.into()));
    Ok(())
}

#[test]
fn project_of_a_file_is_not_the_guests_to_change() -> TestResult {
    const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
    const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
    const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
    const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;
    const FS_NODUMP_FL: u32 = 0x40;
    const FS_PROJINHERIT_FL: u32 = 0x2000_0000;
    let share = host_fs!("mkfs.xfs", ["-q"], 320 << 20);
    let on_host = share.path().join("dir");
    std::fs::create_dir(&on_host)?;
    let set = Command::new("chattr")
        .args(["-p", "7", "+P"])
        .arg(&on_host)
        .output()?;
    assert!(set.status.success(), "{set:?}");
    let (_back_end, mut client) = start(&share.path(), &[])?;
    let queue = client.queue();
    let node = queue.lookup(ROOT_NODE, "dir")?.node;
    let mut ioctl = |command, data: &[u8], out| queue.ioctl(node, 0, command, data, out);
    let refused = |error| matches!(error, Err(FuseError::Errno(libc::EPERM)));

    let (_, before) = ioctl(FS_IOC_FSGETXATTR, &[], 28)?;
    assert_eq!(before[12..16], 7_u32.to_ne_bytes());
    let mut other = before.clone();
    other[12] = 8;
    assert!(refused(ioctl(FS_IOC_FSSETXATTR, &other, 0)));
    let mut without = before.clone();
    // FS_XFLAG_PROJINHERIT
    without[1] &= !2;
    assert_ne!(without, before);
    assert!(refused(ioctl(FS_IOC_FSSETXATTR, &without, 0)));
    let (_, flags) = ioctl(FS_IOC_GETFLAGS, &[], 4)?;
    let flags = u32::from_ne_bytes(flags[..].try_into()?);
    assert_ne!(flags & FS_PROJINHERIT_FL, 0);
    let without = (flags & !FS_PROJINHERIT_FL).to_ne_bytes();
    assert!(refused(ioctl(FS_IOC_SETFLAGS, &without, 0)));
    assert_eq!(ioctl(FS_IOC_FSGETXATTR, &[], 28)?.1, before);
    // All else is the guest's.
    ioctl(FS_IOC_SETFLAGS, &(flags | FS_NODUMP_FL).to_ne_bytes(), 0)?;
    ioctl(FS_IOC_FSSETXATTR, &before, 0)?;
    Ok(())
}

/// Sends what has to wait for a lease, which meanwhile keeps nobody else; returns the reply once it
/// was given up.
fn call_under_lease(queue: &mut FuseQueue, lease: &Lease, request: &Request) -> Result<Vec<u8>> {
    let slow = queue.acquire()?;
    queue.submit(slow, request)?;
    queue.publish()?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !lease.is_breaking()? {
        assert!(Instant::now() < deadline, "nobody wants the lease");
        std::thread::yield_now();
    }
    let other = queue.acquire()?;
    queue.submit(other, &Request::getattr(ROOT_NODE, None))?;
    queue.publish()?;
    let first = queue.wait()?;
    assert_eq!(first.slot, other);
    queue.reply(first)?;
    queue.release(other);
    lease.give_up()?;
    let second = queue.wait()?;
    assert_eq!(second.slot, slow);
    let reply = queue.reply(second);
    queue.release(slow);
    Ok(reply?)
}

#[test]
fn open_of_a_file_under_a_lease_waits_and_keeps_nobody_else() -> TestResult {
    let share = tempfile::tempdir()?;
    let path = share.path().join("file");
    std::fs::write(&path, "before")?;
    for args in [&[][..], &["--inode-file-handles=never"]] {
        let (_back_end, mut client) = start(share.path(), args)?;
        let queue = client.queue();
        let node = queue.lookup(ROOT_NODE, "file")?.node;
        let lease = Lease::take(&path)?;
        let opened = call_under_lease(queue, &lease, &Request::open(node, 0))?;
        let handle = u64::from_le_bytes(opened[..8].try_into()?);
        assert_eq!(queue.read(node, handle, 0, 100)?, b"before");
        queue.release_file(node, handle)?;
    }
    Ok(())
}

#[test]
fn file_under_a_lease_is_waited_for_where_the_guest_does_not_open() -> TestResult {
    let share = tempfile::tempdir()?;
    let path = share.path().join("file");
    std::fs::write(&path, "before")?;
    let (_back_end, mut client) = start(share.path(), &["--no-open", "--cache=always"])?;
    let queue = client.queue();
    let node = queue.lookup(ROOT_NODE, "file")?.node;
    let lease = Lease::take(&path)?;
    let read = call_under_lease(queue, &lease, &Request::read(node, 0, 0, 100))?;
    assert_eq!(read, b"before");
    drop(lease);
    let lease = Lease::take(&path)?;
    let seek = Request::lseek(node, 0, 0, libc::SEEK_HOLE.cast_unsigned());
    let hole = call_under_lease(queue, &lease, &seek)?;
    assert_eq!(hole, 6_u64.to_le_bytes());
    Ok(())
}

#[test]
fn files_made_without_opening_leave_nothing_open_once_they_are_forgotten() -> TestResult {
    const FILES: usize = 1000;
    let share = tempfile::tempdir()?;
    let (back_end, mut client) = start(share.path(), &["--no-open", "--cache=always"])?;
    let open = || -> Result<usize> { Ok(back_end.process().sample()?.fds) };
    let before = open()?;
    let mut made = Vec::new();
    for at in 0..FILES {
        let queue = client.queue();
        let (entry, opened) = if at % 2 == 0 {
            queue.create(ROOT_NODE, at.to_string(), 2, 0)?
        } else {
            queue.tmpfile(ROOT_NODE, 2, 0)?
        };
        assert_eq!(opened.handle, 0);
        queue.write(entry.node, 0, 0, b"written")?;
        assert_eq!(queue.read(entry.node, 0, 0, 100)?, b"written");
        queue.fsync(entry.node, 0, false)?;
        made.push((entry.node, 1));
    }
    assert_eq!(open()?, before + FILES);
    let forget = Request::batch_forget(&made);
    client.hiprio.send(&forget)?;
    // A disk that was slow to answer has them closed by a thread that may wait.
    for _ in 0..1000 {
        if open()? == before {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(open()?, before);
    Ok(())
}

/// The flags with which a process has a file open to read or write, as `fdinfo` has them.
fn open_flags(process: u32, path: &Path) -> Result<i32> {
    for entry in std::fs::read_dir(format!("/proc/{process}/fd"))? {
        let entry = entry?;
        // One that has just been closed is not it.
        if !std::fs::read_link(entry.path()).is_ok_and(|target| target == path) {
            continue;
        }
        let number = entry.file_name();
        let info = Path::new(&format!("/proc/{process}/fdinfo")).join(number);
        let info = std::fs::read_to_string(info)?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = i32::from_str_radix(flags.ok_or("no flags")?.trim(), 8)?;
        if flags & libc::O_PATH == 0 {
            return Ok(flags);
        }
    }
    Err(format!("{} is not open", path.display()).into())
}

/// Opens a file, and makes another, with `flag`; the host sees it with `option` only.
fn flag_reaches_the_host_with(option: &str, flag: i32) -> TestResult {
    let share = tempfile::tempdir()?;
    let root = share.path().canonicalize()?;
    std::fs::write(root.join("file"), "here before")?;
    for (args, expected) in [(&[][..], 0), (&[option], flag)] {
        let (back_end, mut client) = start(&root, args)?;
        let process = back_end.process().id();
        let queue = client.queue();
        let wanted = (libc::O_RDWR | flag).cast_unsigned();
        let entry = queue.lookup(ROOT_NODE, "file")?;
        let opened = queue.open(entry.node, wanted)?;
        let seen = open_flags(process, &root.join("file"))?;
        assert_eq!(seen & flag, expected, "{args:?}");
        queue.release_file(entry.node, opened.handle)?;
        let (entry, opened) = queue.create(ROOT_NODE, "made", wanted, 0o600)?;
        let seen = open_flags(process, &root.join("made"))?;
        assert_eq!(seen & flag, expected, "{args:?}, made");
        queue.release_file(entry.node, opened.handle)?;
        queue.unlink(ROOT_NODE, "made")?;
    }
    Ok(())
}

#[test]
fn o_direct_reaches_the_host_if_it_is_allowed() -> TestResult {
    let probe = tempfile::NamedTempFile::new()?;
    let mut options = std::fs::OpenOptions::new();
    let direct = options.read(true).custom_flags(libc::O_DIRECT);
    if let Err(error) = direct.open(probe.path()) {
        skip!("no O_DIRECT in the directory for temporary files: {error}");
    }
    flag_reaches_the_host_with("--allow-direct-io", libc::O_DIRECT)
}

/// Whether a read by a guest that opens the file with `O_NOATIME` is seen in its time of access.
fn read_is_seen(share: &Path, args: &[&str]) -> Result<bool> {
    let path = share.join("file");
    std::fs::write(&path, "content")?;
    // Older than the content: with any option of a mount but `noatime` a read is seen.
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let file = std::fs::File::options().write(true).open(&path)?;
    file.set_times(FileTimes::new().set_accessed(long_ago))?;
    let (_back_end, mut client) = start(share, args)?;
    let queue = client.queue();
    let node = queue.lookup(ROOT_NODE, "file")?.node;
    let handle = queue.open(node, libc::O_NOATIME.cast_unsigned())?.handle;
    assert_eq!(queue.read(node, handle, 0, 100)?, b"content");
    queue.release_file(node, handle)?;
    Ok(std::fs::metadata(&path)?.accessed()? != long_ago)
}

#[test]
fn o_noatime_reaches_the_host_if_it_is_preserved() -> TestResult {
    flag_reaches_the_host_with("--preserve-noatime", libc::O_NOATIME)?;
    let share = match HostFs::tmpfs("") {
        Ok(share) => share,
        Err(error) => skip!("{error}"),
    };
    assert!(read_is_seen(&share.path(), &[])?);
    assert!(!read_is_seen(&share.path(), &["--preserve-noatime"])?);
    Ok(())
}
