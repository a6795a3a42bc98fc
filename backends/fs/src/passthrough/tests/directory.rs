// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Listings: cookies that go back and anywhere, replies of any size, directories that change.

use std::collections::BTreeSet;

use super::*;
use crate::passthrough::directory::{Filled, Listing, kind_number};
use crate::wire::dirents::{DIRENT_BYTES, DIRENT_PLUS_BYTES, DirEntries};
use crate::wire::operation::ReadIn;

/// What the guest sees of an entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Seen {
    /// 0 where there is none.
    pub(super) node: u64,
    pub(super) offset: u64,
    pub(super) name: String,
}

/// Takes a reply apart.
pub(super) fn parse(mut bytes: &[u8], plus: bool) -> Vec<Seen> {
    let mut all = Vec::new();
    let number =
        |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let head = if plus {
        DIRENT_PLUS_BYTES
    } else {
        DIRENT_BYTES
    };
    while !bytes.is_empty() {
        let entry = head - DIRENT_BYTES;
        let len = usize::try_from(number(bytes, entry + 16) & 0xffff_ffff).unwrap();
        let name = String::from_utf8(bytes[head..head + len].to_vec()).unwrap();
        all.push(Seen {
            node: if plus { number(bytes, 0) } else { 0 },
            offset: number(bytes, entry + 8),
            name,
        });
        bytes = &bytes[(head + len).next_multiple_of(8)..];
    }
    all
}

impl Guest {
    pub(super) fn list(
        &mut self,
        dir: u64,
        handle: u64,
        at: u64,
        size: u32,
        plus: bool,
    ) -> Result<Vec<Seen>> {
        let read = ReadIn {
            handle,
            offset_bytes: at,
            size_bytes: size,
            ..ReadIn::default()
        };
        let mut out = Vec::new();
        self.ask(dir, |fs, cx| {
            fs.read_dir(cx, &read, plus, &mut DirScratch::default(), &mut out)
        })?;
        assert!(out.len() <= size as usize);
        Ok(parse(&out, plus))
    }

    /// Reads on from an offset to the end.
    pub(super) fn rest(
        &mut self,
        dir: u64,
        handle: u64,
        mut at: u64,
        size: u32,
        plus: bool,
    ) -> Vec<Seen> {
        let mut all = Vec::new();
        loop {
            let some = self.list(dir, handle, at, size, plus).unwrap();
            let Some(last) = some.last() else {
                return all;
            };
            at = last.offset;
            all.extend(some);
        }
    }

    fn open_root(&mut self) -> u64 {
        self.ask(ROOT_NODE, |fs, cx| fs.open_dir(cx))
            .unwrap()
            .handle
    }
}

const FILES: usize = 300;

fn guest_with_files() -> (Guest, u64) {
    let mut guest = Guest::new(FsConfig::default());
    for at in 0..FILES {
        File::create(guest.path(&format!("file-with-a-name-{at}"))).unwrap();
    }
    let handle = guest.open_root();
    (guest, handle)
}

#[test]
fn listing_has_every_name_once_whatever_the_size_of_replies() {
    let (mut guest, handle) = guest_with_files();
    for plus in [false, true] {
        for size in [300, 1000, 4096, 1 << 20, u32::MAX] {
            let all = guest.rest(ROOT_NODE, handle, 0, size, plus);
            let names: BTreeSet<_> = all.iter().map(|seen| &seen.name).collect();
            assert_eq!((all.len(), names.len()), (FILES + 2, FILES + 2), "{size}");
            for seen in &all {
                let dots = seen.name.starts_with('.');
                assert_eq!(seen.node != 0, plus && !dots, "{seen:?}");
            }
        }
    }
    // Each of five listings has counted a lookup of each.
    let node = guest.lookup(ROOT_NODE, c"file-with-a-name-7").unwrap().node;
    guest.fs.nodes.forget(node, 5);
    guest.fs.nodes.get(node).unwrap();
    guest.fs.nodes.forget(node, 1);
    assert_eq!(guest.fs.nodes.get(node).unwrap_err(), Errno::NOENT);
}

#[test]
fn reply_without_room_for_an_entry_is_empty_and_counts_no_lookup() {
    let (mut guest, handle) = guest_with_files();
    for (size, plus) in [
        (0, false),
        (1, false),
        (24, false),
        (31, false),
        (0, true),
        (159, true),
    ] {
        assert_eq!(guest.list(ROOT_NODE, handle, 0, size, plus), Ok(vec![]));
    }
    for (size, plus) in [(32, false), (160, true)] {
        let some = guest.list(ROOT_NODE, handle, 0, size, plus).unwrap();
        assert!(some.len() <= 1, "{some:?}");
    }
    let before = guest.fs.nodes.len();
    let second = guest.rest(ROOT_NODE, handle, 0, 1 << 20, false)[1].offset;
    assert_eq!(guest.list(ROOT_NODE, handle, second, 175, true), Ok(vec![]));
    assert_eq!(guest.fs.nodes.len(), before);
}

#[test]
fn cookie_leads_to_the_entries_behind_it_in_any_order() {
    let (mut guest, handle) = guest_with_files();
    let all = guest.rest(ROOT_NODE, handle, 0, 4096, false);
    for at in [150, 10, 299, 0, 77, 78, 300] {
        let rest = guest.rest(ROOT_NODE, handle, all[at].offset, 2000, false);
        assert_eq!(rest, all[at + 1..], "behind entry {at}");
    }
    // Once more from the same place, which is not where the kernel is now.
    for _ in 0..2 {
        let some = guest
            .list(ROOT_NODE, handle, all[4].offset, 400, false)
            .unwrap();
        assert_eq!(some[0], all[5]);
    }
}

#[test]
fn cookie_that_was_never_given_out_does_no_harm() {
    let (mut guest, handle) = guest_with_files();
    let all = guest.rest(ROOT_NODE, handle, 0, 4096, false);
    for cookie in [1, 12345, 1 << 40, u64::MAX >> 1, 1 << 63, u64::MAX] {
        // The host's answer, be it an error or some entries.
        if let Ok(some) = guest.list(ROOT_NODE, handle, cookie, 4096, false) {
            assert!(
                some.iter()
                    .all(|seen| all.iter().any(|a| a.name == seen.name))
            );
        }
        assert_eq!(guest.rest(ROOT_NODE, handle, 0, 4096, false), all);
    }
}

#[test]
fn names_that_stay_are_listed_once_while_others_come_and_go() {
    let (mut guest, handle) = guest_with_files();
    let mut all = guest.list(ROOT_NODE, handle, 0, 2000, true).unwrap();
    for at in 0..100 {
        std::fs::remove_file(guest.path(&format!("file-with-a-name-{at}"))).unwrap();
        File::create(guest.path(&format!("another-{at}"))).unwrap();
    }
    let offset = all.last().unwrap().offset;
    all.extend(guest.rest(ROOT_NODE, handle, offset, 2000, true));
    for at in 100..FILES {
        let name = format!("file-with-a-name-{at}");
        assert_eq!(
            all.iter().filter(|seen| seen.name == name).count(),
            1,
            "{name}"
        );
    }
}

#[test]
fn listing_of_a_handle_of_another_directory_or_of_none_is_refused() {
    let (mut guest, handle) = guest_with_files();
    std::fs::create_dir(guest.path("dir")).unwrap();
    let dir = guest.lookup(ROOT_NODE, c"dir").unwrap().node;
    assert_eq!(guest.list(dir, handle, 0, 4096, false), Err(Errno::BADF));
    assert_eq!(guest.list(ROOT_NODE, 0, 0, 4096, false), Err(Errno::BADF));
}

/// What a listing behind an entry has that the kernel cannot seek to.
fn read_past(fs: &PassThrough, dir: &Path, behind: u64, buffer: usize) -> Result<Vec<Seen>> {
    let dir = File::open(dir).unwrap();
    let node = fs.nodes.get(ROOT_NODE).unwrap();
    let mut out = Vec::new();
    let mut listing = Listing {
        fs,
        node: &node,
        dir: dir.as_fd(),
        plus: false,
        entries: DirEntries::new(&mut out, 1 << 20),
        behind: Some(behind),
    };
    let mut buffer = vec![std::mem::MaybeUninit::uninit(); buffer];
    let mut reached = behind;
    let filled = listing.fill(&mut buffer, &mut reached)?;
    assert_eq!(filled, Filled::All);
    let seen = parse(&out, false);
    assert_eq!(reached, seen.last().map_or(behind, |last| last.offset));
    Ok(seen)
}

#[test]
fn entries_behind_a_cookie_that_the_host_does_not_take_back_are_found() {
    let (mut guest, handle) = guest_with_files();
    let all = guest.rest(ROOT_NODE, handle, 0, 4096, false);
    // Each time the kernel is asked it gives a part of them, or all.
    for buffer in [280, 1000, 1 << 16] {
        for at in [0, 1, 2, 77, 78, 300] {
            let seen = read_past(&guest.fs, guest.dir.path(), all[at].offset, buffer).unwrap();
            assert_eq!(seen[..], all[at + 1..][..seen.len()], "behind {at}");
            assert!(!seen.is_empty(), "behind {at}");
        }
        let last = all[FILES + 1].offset;
        let seen = read_past(&guest.fs, guest.dir.path(), last, buffer);
        assert_eq!(seen, Ok(vec![]));
        let nobody = u64::MAX - 1;
        let seen = read_past(&guest.fs, guest.dir.path(), nobody, buffer);
        assert_eq!(seen, Err(Errno::INVAL));
    }
}

#[test]
fn kind_of_an_entry_is_that_of_readdir_and_unknown_is_none() {
    use rustix::fs::FileType;
    for (kind, number) in [
        (FileType::Unknown, libc::DT_UNKNOWN),
        (FileType::Fifo, libc::DT_FIFO),
        (FileType::CharacterDevice, libc::DT_CHR),
        (FileType::Directory, libc::DT_DIR),
        (FileType::BlockDevice, libc::DT_BLK),
        (FileType::RegularFile, libc::DT_REG),
        (FileType::Symlink, libc::DT_LNK),
        (FileType::Socket, libc::DT_SOCK),
    ] {
        assert_eq!(kind_number(kind), u32::from(number), "{kind:?}");
    }
}
