// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names that are longer than those of most file systems.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;

use ringside_frontend::fuse::flags::ROOT_NODE;
use ringside_frontend::fuse::{FuseQueue, FuseResult, Request};
use ringside_tests::fs_mount::needs;
use ringside_tests::skip;
use rustix::fs::{AtFlags, statat};

use super::long_names::{LongNames, OF_EVERY_KERNEL};
use super::{Result, TestResult, start};

/// The longest name that a path can have (`PATH_MAX`, without the NUL).
const OF_ANY_KERNEL: usize = 4095;

/// As much of it as there can be is characters of three bytes.
fn name(bytes: usize, last: char) -> Vec<u8> {
    let mut name = "\u{20ac}".repeat((bytes - 1) / 3);
    name.extend(std::iter::repeat_n(last, bytes - name.len()));
    name.into_bytes()
}

/// All names but "." and "..", in both kinds of a listing.
fn listed(queue: &mut FuseQueue) -> Result<BTreeSet<Vec<u8>>> {
    const ROOM: u32 = 16 << 10;
    let handle = queue.opendir(ROOT_NODE)?.handle;
    let mut both = [BTreeSet::new(), BTreeSet::new()];
    for (plus, names) in [false, true].into_iter().zip(&mut both) {
        let mut offset = 0;
        loop {
            let entries = if plus {
                queue.readdirplus(ROOT_NODE, handle, offset, ROOM)?
            } else {
                queue.readdir(ROOT_NODE, handle, offset, ROOM)?
            };
            let Some(last) = entries.last() else { break };
            offset = last.offset;
            for entry in entries {
                if let Some(found) = entry.entry.filter(|found| found.node != 0) {
                    queue.forget(found.node, 1)?;
                }
                names.insert(entry.name);
            }
        }
    }
    queue.releasedir(ROOT_NODE, handle)?;
    let [plain, plus] = both;
    assert_eq!(plain, plus);
    Ok(plain)
}

/// A file, a directory and a link by the name: made, found, listed, renamed and removed.
fn has_a_life(queue: &mut FuseQueue, host: &LongNames, bytes: usize) -> TestResult {
    let [first, second] = ['a', 'b'].map(|last| name(bytes, last));
    let is = |queue: &mut FuseQueue, name: &Vec<u8>| -> TestResult {
        assert_eq!(host.names(), std::slice::from_ref(name), "{bytes}");
        assert_eq!(listed(queue)?, BTreeSet::from([name.clone()]), "{bytes}");
        Ok(())
    };
    let flags = libc::O_RDWR.cast_unsigned();
    let (file, opened) = queue.create(ROOT_NODE, &first, flags, 0o600)?;
    queue.release_file(file.node, opened.handle)?;
    is(queue, &first)?;
    assert_eq!(queue.lookup(ROOT_NODE, &first)?.node, file.node);
    queue.rename((ROOT_NODE, &first), (ROOT_NODE, &second), 0)?;
    is(queue, &second)?;
    let only_new = libc::RENAME_NOREPLACE;
    queue.rename((ROOT_NODE, &second), (ROOT_NODE, &first), only_new)?;
    is(queue, &first)?;
    let linked = queue.link(file.node, ROOT_NODE, &second)?;
    assert_eq!((linked.node, linked.attr.nlink), (file.node, 2));
    queue.unlink(ROOT_NODE, &first)?;
    is(queue, &second)?;
    queue.unlink(ROOT_NODE, &second)?;
    queue.forget(file.node, 3)?;

    let made = queue.mknod(ROOT_NODE, &first, libc::S_IFREG | 0o600, 0)?;
    queue.unlink(ROOT_NODE, &first)?;
    let dir = queue.mkdir(ROOT_NODE, &first, 0o700)?;
    is(queue, &first)?;
    queue.rmdir(ROOT_NODE, &first)?;
    let link = queue.symlink(ROOT_NODE, &first, "target")?;
    assert_eq!(queue.readlink(link.node)?, b"target");
    queue.unlink(ROOT_NODE, &first)?;
    for node in [made.node, dir.node, link.node] {
        queue.forget(node, 1)?;
    }
    assert_eq!(host.names().len(), 0, "{bytes}");
    Ok(())
}

/// No operation takes it, on either side of a rename.
fn is_too_long(queue: &mut FuseQueue, host: &LongNames, bytes: usize) -> TestResult {
    let long = name(bytes, 'a');
    let made = queue.mknod(ROOT_NODE, "short", libc::S_IFREG | 0o600, 0)?;
    let requests = [
        Request::lookup(ROOT_NODE, &long),
        Request::create(ROOT_NODE, &long, 2, 0o600, 0),
        Request::mknod(ROOT_NODE, &long, libc::S_IFREG | 0o600, 0, 0),
        Request::mkdir(ROOT_NODE, &long, 0o700, 0),
        Request::symlink(ROOT_NODE, &long, "target"),
        Request::link(made.node, ROOT_NODE, &long),
        Request::unlink(ROOT_NODE, &long),
        Request::rmdir(ROOT_NODE, &long),
        Request::rename((ROOT_NODE, "short"), (ROOT_NODE, &long), 0),
        Request::rename((ROOT_NODE, &long), (ROOT_NODE, "short"), 0),
        Request::rename((ROOT_NODE, "short"), (ROOT_NODE, &long), 1),
        Request::rename((ROOT_NODE, &long), (ROOT_NODE, "other"), 1),
    ];
    for request in requests {
        let answer: FuseResult<_> = queue.call(&request);
        let errno = answer.err().and_then(|error| error.errno());
        let what = format!("operation {} with {bytes} bytes", request.opcode);
        assert_eq!(errno, Some(libc::ENAMETOOLONG), "{what}");
    }
    assert_eq!(host.names(), [b"short"]);
    queue.unlink(ROOT_NODE, "short")?;
    queue.forget(made.node, 1)?;
    Ok(())
}

fn are_served(host: &LongNames, longest: usize, lengths: &[usize]) -> TestResult {
    let (_back_end, mut client) = start(host.path(), &[])?;
    let queue = client.queue();
    assert_eq!(queue.statfs(ROOT_NODE)?.namelen as usize, longest);
    for bytes in lengths {
        has_a_life(queue, host, *bytes)?;
    }
    is_too_long(queue, host, longest + 1)
}

#[test]
fn f6_7_names_of_up_to_1024_bytes_of_the_host_are_served_and_longer_ones_too_long() -> TestResult {
    if let Some(reason) = needs() {
        skip!("{reason}");
    }
    let host = LongNames::mount(OF_EVERY_KERNEL)?;
    are_served(&host, OF_EVERY_KERNEL, &[1, 255, 256, 765, 1024])
}

#[test]
fn f6_7_names_as_long_as_a_path_are_served_where_the_kernel_has_them() -> TestResult {
    if let Some(reason) = needs() {
        skip!("{reason}");
    }
    let host = LongNames::mount(OF_ANY_KERNEL)?;
    let root = std::fs::File::open(host.path())?;
    let found = statat(root.as_fd(), name(OF_ANY_KERNEL, 'a'), AtFlags::empty());
    if found.is_err_and(|errno| errno == rustix::io::Errno::NAMETOOLONG) {
        skip!("FUSE has no names above 1024 bytes here (Linux 6.15 has)");
    }
    drop(root);
    are_served(&host, OF_ANY_KERNEL, &[1024, 1025, 4000, 4095])
}
