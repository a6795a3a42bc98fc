// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Several shares below a directory that is none of the host's.

use super::*;
use crate::wire::flags::{AttrFlags, OpenInFlags, RenameFlags, SetAttrValid};
use crate::wire::operation::SetAttr;

/// Shares "a" and "b", with a file in each.
fn guest() -> Guest {
    let dir = tempfile::tempdir().unwrap();
    let roots = ["a", "b"].map(|name| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("file"), name).unwrap();
        Root {
            name: Some(name.to_owned()),
            fd: hold(&path),
        }
    });
    let config = FsConfig {
        announce_submounts: true,
        ..FsConfig::default()
    };
    Guest::of(dir, config, roots.into(), 1 << 16)
}

#[test]
fn root_lists_the_shares_from_any_offset() {
    let mut guest = guest();
    let opened = guest.ask(ROOT_NODE, |fs, cx| fs.open_dir(cx)).unwrap();
    for plus in [false, true] {
        for size in [200, 4096] {
            let all = guest.rest(ROOT_NODE, opened.handle, 0, size, plus);
            let names: Vec<_> = all.iter().map(|seen| &*seen.name).collect();
            assert_eq!(names, [".", "..", "a", "b"]);
            assert_eq!(
                all.iter().filter(|seen| seen.node != 0).count(),
                if plus { 2 } else { 0 }
            );
            let rest = guest.rest(ROOT_NODE, opened.handle, all[2].offset, size, plus);
            assert_eq!(rest, all[3..]);
        }
    }
    for (offset, size) in [(0, 0), (0, 31), (4, 4096), (u64::MAX, 4096)] {
        assert_eq!(
            guest.list(ROOT_NODE, opened.handle, offset, size, false),
            Ok(vec![])
        );
    }
}

#[test]
fn shares_are_found_by_name_and_are_apart() {
    let mut guest = guest();
    let a = guest.lookup(ROOT_NODE, c"a").unwrap();
    let b = guest.lookup(ROOT_NODE, c"b").unwrap();
    assert_ne!(a.node, b.node);
    assert_eq!(guest.lookup(ROOT_NODE, c"a").unwrap().node, a.node);
    assert!(a.attr.flags.contains(AttrFlags::SUBMOUNT));
    assert_eq!(guest.lookup(ROOT_NODE, c"c").unwrap_err(), Errno::NOENT);
    assert_eq!(guest.lookup(ROOT_NODE, c"file").unwrap_err(), Errno::NOENT);
    let in_a = guest.lookup(a.node, c"file").unwrap();
    let in_b = guest.lookup(b.node, c"file").unwrap();
    assert_ne!(in_a.node, in_b.node);
    assert!(!in_a.attr.flags.contains(AttrFlags::SUBMOUNT));
    // They stay, whatever the guest forgets.
    for node in [a.node, b.node, ROOT_NODE] {
        guest.fs.nodes.forget(node, 100);
    }
    assert_eq!(guest.lookup(ROOT_NODE, c"a").unwrap().node, a.node);
    guest.fs.reset();
    assert_eq!(guest.fs.nodes.len(), 3);
}

#[test]
fn root_of_shares_has_attributes_and_free_space() {
    let mut guest = guest();
    let attr = guest
        .ask(ROOT_NODE, |fs, cx| fs.get_attr(cx, None))
        .unwrap()
        .attr;
    assert_eq!((attr.ino, attr.mode, attr.nlink), (1, 0o040_555, 4));
    assert!(
        guest
            .ask(ROOT_NODE, |fs, cx| fs.stat_fs(cx))
            .unwrap()
            .blocks
            > 0
    );
    assert_eq!(guest.ask(ROOT_NODE, |fs, cx| fs.access(cx, 5)), Ok(()));
    assert_eq!(
        guest.ask(ROOT_NODE, |fs, cx| fs.access(cx, 2)),
        Err(Errno::ACCESS)
    );
    assert_eq!(guest.ask(ROOT_NODE, |fs, cx| fs.sync_fs(cx)), Ok(()));
}

#[test]
fn nothing_is_changed_in_the_root_of_shares() {
    let mut guest = guest();
    let a = guest.lookup(ROOT_NODE, c"a").unwrap().node;
    let file = guest.lookup(a, c"file").unwrap().node;
    let with = Creation::default();
    for kind in [
        Kind::Directory { mode: 0o755 },
        Kind::Symlink { target: c"a" },
    ] {
        let made = guest.ask(ROOT_NODE, |fs, cx| {
            fs.make(cx, name(c"new"), kind, 0, &with)
        });
        assert_eq!(made.unwrap_err(), Errno::PERM);
    }
    let new = NewFile {
        flags: 2,
        mode: 0o644,
        umask: 0,
        open_flags: OpenInFlags::empty(),
    };
    let created = guest.ask(ROOT_NODE, |fs, cx| fs.create(cx, name(c"new"), new, &with));
    assert_eq!(created.unwrap_err(), Errno::PERM);
    let created = guest.ask(ROOT_NODE, |fs, cx| fs.create_nameless(cx, new, &with));
    assert_eq!(created.unwrap_err(), Errno::PERM);
    for is_dir in [false, true] {
        let gone = guest.ask(ROOT_NODE, |fs, cx| fs.unlink(cx, name(c"a"), is_dir));
        assert_eq!(gone, Err(Errno::PERM));
    }
    for (from, to) in [(ROOT_NODE, a), (a, ROOT_NODE), (ROOT_NODE, ROOT_NODE)] {
        let moved = guest.ask(from, |fs, cx| {
            fs.rename(cx, name(c"file"), to, name(c"x"), RenameFlags::empty())
        });
        assert_eq!(moved, Err(Errno::PERM));
    }
    let linked = guest.ask(ROOT_NODE, |fs, cx| fs.link(cx, file, name(c"x")));
    assert_eq!(linked.unwrap_err(), Errno::PERM);
    let set = SetAttr {
        valid: SetAttrValid::MODE,
        ..SetAttr::default()
    };
    let changed = guest.ask(ROOT_NODE, |fs, cx| fs.set_attr(cx, &set));
    assert_eq!(changed.unwrap_err(), Errno::PERM);
    assert!(guest.fs.handles.is_empty());
    assert_eq!(std::fs::read_dir(guest.dir.path()).unwrap().count(), 2);
}
