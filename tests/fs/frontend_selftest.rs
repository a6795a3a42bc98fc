// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file-system front-end against a back-end: every operation once, in every framing, and what
//! the calls return is what the host file system shows. With `RINGSIDE_FS_BACK_END=virtiofsd` it is
//! a back-end that nobody here wrote, so that faults of the front-end show.

use std::error::Error;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use ringside_frontend::fuse::flags::{ROOT_NODE, SetAttrValid};
use ringside_frontend::fuse::types::{CopyFileRange, SetAttr};
use ringside_frontend::fuse::{Framing, FuseClient, FuseConfig, FuseError, Request};
use ringside_frontend::ring::CallMode;
use ringside_tests::fs_back_end::FsBackEnd;

type TestResult = Result<(), Box<dyn Error>>;

/// A share, who serves it, and the connection.
struct Bench {
    share: tempfile::TempDir,
    client: FuseClient,
    _back_end: FsBackEnd,
}

fn bench(config: &FuseConfig) -> Result<Bench, Box<dyn Error>> {
    let share = tempfile::tempdir()?;
    let back_end = FsBackEnd::start(share.path(), &["--xattr", "--cache", "never"])?;
    let client = FuseClient::connect(&back_end.socket(), config)?;
    Ok(Bench {
        share,
        client,
        _back_end: back_end,
    })
}

/// What the device answered, if it was an errno.
fn errno<T>(result: Result<T, FuseError>) -> Option<i32> {
    result.err().and_then(|error| error.errno())
}

fn config(framing: Framing, indirect: bool, calls: CallMode) -> FuseConfig {
    let mut config = FuseConfig::default().calls(calls);
    config.queue.framing = framing;
    config.queue.indirect = indirect;
    config
}

#[test]
fn operations_in_every_framing_do_what_the_host_shows() -> TestResult {
    for (framing, indirect, calls) in [
        (Framing::Kernel, true, CallMode::Wanted),
        (Framing::Kernel, false, CallMode::Never),
        (Framing::Contiguous, true, CallMode::Never),
        (Framing::Chunks(1021), false, CallMode::Wanted),
    ] {
        let mut bench = bench(&config(framing, indirect, calls))?;
        names_and_attributes(&mut bench)?;
        file_content(&mut bench)?;
        listings(&mut bench)?;
        extended_attributes(&mut bench)?;
    }
    Ok(())
}

fn names_and_attributes(bench: &mut Bench) -> TestResult {
    let host = bench.share.path();
    let queue = bench.client.queue();
    assert_eq!(errno(queue.lookup(ROOT_NODE, "none")), Some(libc::ENOENT));
    let dir = queue.mkdir(ROOT_NODE, "dir", 0o750)?;
    assert_eq!(dir.attr.mode, 0o040_750);
    assert_eq!(dir.attr.ino, fs::metadata(host.join("dir"))?.ino());
    let link = queue.symlink(dir.node, "link", "some/where")?;
    assert_eq!(queue.readlink(link.node)?, b"some/where");
    let fifo = queue.mknod(dir.node, "fifo", libc::S_IFIFO | 0o600, 0)?;
    assert_eq!(fifo.attr.mode, libc::S_IFIFO | 0o600);
    let hard = queue.link(fifo.node, ROOT_NODE, "hard")?;
    assert_eq!((hard.node, hard.attr.nlink), (fifo.node, 2));
    queue.rename((ROOT_NODE, "hard"), (dir.node, "moved"), 0)?;
    assert!(!host.join("hard").exists() && host.join("dir/moved").exists());
    let set = SetAttr {
        valid: SetAttrValid::MODE,
        mode: 0o640,
        ..SetAttr::default()
    };
    let (attr, _) = queue.setattr(fifo.node, &set)?;
    assert_eq!(attr.mode, libc::S_IFIFO | 0o640);
    assert_eq!(
        fs::metadata(host.join("dir/fifo"))?.permissions().mode(),
        attr.mode
    );
    for name in ["fifo", "moved", "link"] {
        queue.unlink(dir.node, name)?;
    }
    queue.rmdir(ROOT_NODE, "dir")?;
    assert_eq!(fs::read_dir(host)?.count(), 0);
    queue.access(ROOT_NODE, 4)?;
    assert!(queue.statfs(ROOT_NODE)?.blocks > 0);
    bench.client.forget(dir.node, 1)?;
    Ok(())
}

fn file_content(bench: &mut Bench) -> TestResult {
    let host = bench.share.path().join("file");
    let queue = bench.client.queue();
    let (entry, opened) = queue.create(ROOT_NODE, "file", 2, 0o644)?;
    let data: Vec<u8> = (0..70_001_u32)
        .flat_map(|n| n.to_le_bytes())
        .take(100_001)
        .collect();
    let written = queue.write(entry.node, opened.handle, 5, &data)?;
    assert_eq!(written as usize, data.len());
    assert_eq!(&fs::read(&host)?[5..], data);
    let read = queue.read(entry.node, opened.handle, 4, 120_000)?;
    assert_eq!((read[0], &read[1..]), (0, &data[..]));
    queue.fallocate(entry.node, opened.handle, 0, 200_000, 0)?;
    assert_eq!(
        queue.getattr(entry.node, Some(opened.handle))?.0.size_bytes,
        200_000
    );
    queue.fsync(entry.node, opened.handle, true)?;
    assert_eq!(queue.lseek(entry.node, opened.handle, 0, 2)?, 200_000);
    let copy = CopyFileRange {
        handle_in: opened.handle,
        node_out: entry.node,
        handle_out: opened.handle,
        offset_out_bytes: 300_000,
        len_bytes: 1000,
        ..CopyFileRange::default()
    };
    assert_eq!(queue.copy_file_range(entry.node, &copy)?, 1000);
    assert_eq!(fs::read(&host)?[300_000..], fs::read(&host)?[..1000]);
    queue.flush(entry.node, opened.handle, 7)?;
    queue.release_file(entry.node, opened.handle)?;
    queue.unlink(ROOT_NODE, "file")?;
    Ok(())
}

fn listings(bench: &mut Bench) -> TestResult {
    let host = bench.share.path();
    for number in 0..100 {
        fs::write(host.join(format!("{number:03}")), b"")?;
    }
    let queue = bench.client.queue();
    for plus in [false, true] {
        let opened = queue.opendir(ROOT_NODE)?;
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let entries = if plus {
                queue.readdirplus(ROOT_NODE, opened.handle, offset, 4096)?
            } else {
                queue.readdir(ROOT_NODE, opened.handle, offset, 1024)?
            };
            let Some(last) = entries.last() else { break };
            offset = last.offset;
            assert!(entries.iter().all(|entry| entry.entry.is_some() == plus));
            names.extend(entries.into_iter().map(|entry| entry.name));
        }
        queue.releasedir(ROOT_NODE, opened.handle)?;
        names.retain(|name| !name.starts_with(b"."));
        names.sort();
        let expected: Vec<_> = (0..100).map(|n| format!("{n:03}").into_bytes()).collect();
        assert_eq!(names, expected);
    }
    for number in 0..100 {
        queue.unlink(ROOT_NODE, format!("{number:03}"))?;
    }
    Ok(())
}

fn extended_attributes(bench: &mut Bench) -> TestResult {
    let queue = bench.client.queue();
    let (entry, opened) = queue.create(ROOT_NODE, "file", 2, 0o644)?;
    queue.setxattr(entry.node, "user.a", b"value", 0)?;
    assert_eq!(queue.getxattr_size(entry.node, "user.a")?, 5);
    assert_eq!(queue.getxattr(entry.node, "user.a", 64)?, b"value");
    let short = errno(queue.getxattr(entry.node, "user.a", 4));
    assert_eq!(short, Some(libc::ERANGE));
    assert_eq!(queue.listxattr_size(entry.node)?, 7);
    assert_eq!(queue.listxattr(entry.node, 64)?, b"user.a\0");
    queue.removexattr(entry.node, "user.a")?;
    assert_eq!(queue.listxattr_size(entry.node)?, 0);
    queue.release_file(entry.node, opened.handle)?;
    queue.unlink(ROOT_NODE, "file")?;
    Ok(())
}

#[test]
fn requests_at_depth_16_all_come_back() -> TestResult {
    for calls in [CallMode::Wanted, CallMode::Never] {
        let mut bench = bench(&config(Framing::Kernel, true, calls))?;
        let queue = bench.client.queue();
        let request = Request::getattr(ROOT_NODE, None);
        let (mut sent, mut back) = (0, 0);
        while back < 1000 {
            while sent < 1000
                && let Ok(slot) = queue.acquire()
            {
                queue.submit(slot, &request)?;
                sent += 1;
            }
            queue.publish()?;
            let completion = queue.wait()?;
            assert_eq!(
                queue.checked_header(completion.slot, completion.used_len)?,
                104
            );
            queue.release(completion.slot);
            back += 1;
        }
        assert_eq!(queue.in_flight(), 0);
    }
    Ok(())
}

#[test]
fn raw_bytes_are_answered_as_they_are() -> TestResult {
    let mut bench = bench(&FuseConfig::default())?;
    let queue = bench.client.queue();
    let request = Request {
        opcode: 999,
        ..Request::getattr(ROOT_NODE, None)
    };
    let mut bytes = request.header(56, 77, queue.caller).to_vec();
    bytes.extend_from_slice(&request.args);
    let slot = queue.acquire()?;
    queue.submit_bytes(slot, &bytes, 200)?;
    queue.publish()?;
    let completion = queue.wait()?;
    let header = queue.reply_header(slot);
    assert_eq!((header.error, header.unique), (-libc::ENOSYS, 77));
    assert_eq!((header.len_bytes, completion.used_len), (16, 16));
    let mut rest = [0; 184];
    queue.read_reply(slot, &mut rest);
    assert_eq!(rest, [0xa5; 184]);
    queue.release(slot);
    let wrong = queue.lookup(ROOT_NODE, "a/b");
    assert!(matches!(wrong, Err(FuseError::Errno(_))), "{wrong:?}");
    Ok(())
}
