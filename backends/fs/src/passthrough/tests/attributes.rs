// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Changing attributes.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::*;
use crate::testing::as_root;
use crate::wire::flags::SetAttrValid;
use crate::wire::operation::{SetAttr, Time};

impl Guest {
    fn set(&mut self, node: u64, set: &SetAttr) -> Result<AttrOut> {
        self.ask(node, |fs, cx| fs.set_attr(cx, set))
    }
}

#[test]
fn mode_that_is_set_with_an_owner_is_what_it_is_then() {
    as_root(|| {
        let mut guest = Guest::new(FsConfig::default());
        std::fs::write(guest.path("a"), "12345").unwrap();
        let node = guest.lookup(ROOT_NODE, c"a").unwrap().node;
        let set = SetAttr {
            valid: SetAttrValid::MODE | SetAttrValid::UID | SetAttrValid::GID | SetAttrValid::SIZE,
            mode: 0o6711,
            uid: 1000,
            gid: 1001,
            size_bytes: 2,
            ..SetAttr::default()
        };
        let out = guest.set(node, &set).unwrap().attr;
        assert_eq!(
            (out.mode & 0o7777, out.uid, out.gid, out.size_bytes),
            (0o6711, 1000, 1001, 2)
        );
        // The owner alone takes the bits off.
        let owner = SetAttr {
            valid: SetAttrValid::UID,
            uid: 0,
            ..SetAttr::default()
        };
        let out = guest.set(node, &owner).unwrap().attr;
        assert_eq!((out.mode & 0o7777, out.uid, out.gid), (0o711, 0, 1001));
        let nobody = SetAttr {
            valid: SetAttrValid::UID,
            uid: u32::MAX,
            ..SetAttr::default()
        };
        assert_eq!(guest.set(node, &nobody).unwrap_err(), Errno::INVAL);
    });
}

#[test]
fn size_takes_set_user_id_off_only_if_the_guest_leaves_it_to_us() {
    as_root(|| {
        for kills in [false, true] {
            let mut guest = Guest::new(FsConfig {
                killpriv_v2: kills,
                ..FsConfig::default()
            });
            std::fs::write(guest.path("a"), "12345").unwrap();
            let permissions = std::fs::Permissions::from_mode(0o4755);
            std::fs::set_permissions(guest.path("a"), permissions).unwrap();
            let node = guest.lookup(ROOT_NODE, c"a").unwrap().node;
            let set = SetAttr {
                valid: SetAttrValid::SIZE | SetAttrValid::KILL_SUIDGID,
                size_bytes: 1,
                ..SetAttr::default()
            };
            let out = guest.set(node, &set).unwrap().attr;
            let mode = if kills { 0o755 } else { 0o4755 };
            assert_eq!((out.mode & 0o7777, out.size_bytes), (mode, 1));
        }
    });
}

#[test]
fn times_that_are_not_set_stay() {
    let mut guest = Guest::new(FsConfig::default());
    std::fs::write(guest.path("a"), "").unwrap();
    let node = guest.lookup(ROOT_NODE, c"a").unwrap().node;
    let before = std::fs::metadata(guest.path("a")).unwrap();
    let set = SetAttr {
        valid: SetAttrValid::ATIME,
        atime: Time::new(1_000_000_000, 7),
        mtime: Time::new(1, 1),
        ..SetAttr::default()
    };
    let out = guest.set(node, &set).unwrap().attr;
    assert_eq!((out.atime_s, out.atime_ns), (1_000_000_000, 7));
    let now = std::fs::metadata(guest.path("a")).unwrap();
    assert_eq!(
        (now.mtime(), now.mtime_nsec()),
        (before.mtime(), before.mtime_nsec())
    );
    let set = SetAttr {
        valid: SetAttrValid::MTIME | SetAttrValid::MTIME_NOW,
        mtime: Time::new(1, 1),
        ..SetAttr::default()
    };
    let out = guest.set(node, &set).unwrap().attr;
    assert!(out.mtime_s > 1_000_000_000, "{}", out.mtime_s);
    assert_eq!(out.atime_s, 1_000_000_000);
}

#[test]
fn size_of_what_has_none_is_refused() {
    let mut guest = Guest::new(FsConfig::default());
    std::os::unix::fs::symlink("there", guest.path("link")).unwrap();
    let link = guest.lookup(ROOT_NODE, c"link").unwrap().node;
    let set = SetAttr {
        valid: SetAttrValid::SIZE,
        ..SetAttr::default()
    };
    assert_eq!(guest.set(ROOT_NODE, &set).unwrap_err(), Errno::ISDIR);
    assert_eq!(guest.set(link, &set).unwrap_err(), Errno::INVAL);
    assert_eq!(guest.set(77, &set).unwrap_err(), Errno::NOENT);
}
