// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A new file belongs to the caller, with the permissions and the label that it wants.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::*;
use crate::config::Negotiation;
use crate::testing::as_root;
use crate::wire::flags::OpenInFlags;
use crate::wire::reply::Created;

const LABEL: &CStr = c"security.ringside";

fn everything() -> FsConfig {
    FsConfig {
        xattr: true,
        posix_acl: Negotiation::Always,
        security_label: Negotiation::Always,
        ..FsConfig::default()
    }
}

fn labelled<'a>(label: &'a CStr, value: &'a [u8]) -> Creation<'a> {
    Creation {
        security: Some((label, value)),
        group: None,
    }
}

const KINDS: [Kind<'static>; 4] = [
    Kind::Directory { mode: 0o755 },
    Kind::Node {
        mode: libc::S_IFREG | 0o644,
        rdev: 0,
    },
    Kind::Node {
        mode: libc::S_IFIFO | 0o644,
        rdev: 0,
    },
    Kind::Symlink { target: c"there" },
];

impl Guest {
    fn make(
        &mut self,
        what: &CStr,
        kind: Kind<'_>,
        umask: u32,
        with: &Creation<'_>,
    ) -> Result<Entry> {
        self.ask(ROOT_NODE, |fs, cx| {
            fs.make(cx, name(what), kind, umask, with)
        })
    }

    fn create(
        &mut self,
        what: &CStr,
        mode: u32,
        umask: u32,
        with: &Creation<'_>,
    ) -> Result<Created> {
        let file = new_file(mode, umask);
        self.ask(ROOT_NODE, |fs, cx| fs.create(cx, name(what), file, with))
    }

    fn names(&self) -> usize {
        std::fs::read_dir(self.dir.path()).unwrap().count()
    }

    fn label_of(&self, name: &str) -> Vec<u8> {
        let mut value = [0; 100];
        let bytes = rustix::fs::lgetxattr(self.path(name), LABEL, &mut value[..]).unwrap();
        value[..bytes].to_vec()
    }
}

fn new_file(mode: u32, umask: u32) -> NewFile {
    NewFile {
        flags: libc::O_RDWR.cast_unsigned(),
        mode,
        umask,
        open_flags: OpenInFlags::empty(),
    }
}

#[test]
fn umask_counts_where_it_is_ours_and_the_directory_has_no_default_entries() {
    as_root(|| {
        // A version, then kind, permissions and number: rwx, rwx and none.
        let entries = [(1_u16, 7_u16), (4, 7), (0x20, 0)];
        let acl: Vec<u8> = 2_u32
            .to_le_bytes()
            .into_iter()
            .chain(entries.iter().flat_map(|(kind, permissions)| {
                let [a, b] = kind.to_le_bytes();
                let [c, d] = permissions.to_le_bytes();
                [a, b, c, d, 0xff, 0xff, 0xff, 0xff]
            }))
            .collect();
        let with = Creation::default();
        for (ours, has_acl, expected) in [
            (false, false, 0o666),
            (true, false, 0o644),
            (true, true, 0o660),
        ] {
            let config = if ours {
                everything()
            } else {
                FsConfig::default()
            };
            let mut guest = Guest::new(config);
            if has_acl {
                let (path, flags) = (guest.dir.path(), rustix::fs::XattrFlags::empty());
                let name = "system.posix_acl_default";
                rustix::fs::setxattr(path, name, &acl, flags).unwrap();
            }
            let created = guest.create(c"file", 0o666, 0o022, &with).unwrap();
            assert_eq!(created.entry.attr.mode, libc::S_IFREG | expected);
            let kind = Kind::Directory { mode: 0o666 };
            let made = guest.make(c"dir", kind, 0o022, &with).unwrap();
            assert_eq!(made.attr.mode, libc::S_IFDIR | expected);
            let file = new_file(0o666, 0o022);
            let nameless = guest.ask(ROOT_NODE, |fs, cx| fs.create_nameless(cx, file, &with));
            assert_eq!(nameless.unwrap().entry.attr.mode, libc::S_IFREG | expected);
        }
    });
}

#[test]
fn everything_made_has_the_label_and_the_owner_asked_for() {
    as_root(|| {
        let mut guest = Guest::new(everything());
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(guest.dir.path(), open).unwrap();
        (guest.uid, guest.gid) = (1000, 1001);
        let with = labelled(LABEL, b"some:label");
        for (at, kind) in KINDS.into_iter().enumerate() {
            let made = CString::new(at.to_string()).unwrap();
            let entry = guest.make(&made, kind, 0, &with).unwrap();
            assert_eq!((entry.attr.uid, entry.attr.gid), (1000, 1001));
            assert_eq!(guest.label_of(&at.to_string()), b"some:label");
        }
        let created = guest.create(c"file", 0o600, 0, &with).unwrap();
        assert_eq!(
            (created.entry.attr.uid, created.entry.attr.nlink),
            (1000, 1)
        );
        assert_eq!(guest.label_of("file"), b"some:label");
        assert_eq!(
            std::fs::metadata(guest.path("file")).unwrap().ino(),
            created.entry.attr.ino
        );
    });
}

#[test]
fn what_cannot_be_labelled_is_not_made() {
    as_root(|| {
        let mut guest = Guest::new(everything());
        let nodes = guest.fs.nodes.len();
        let with = labelled(c"bogus.label", b"x");
        for kind in KINDS {
            assert_eq!(
                guest.make(c"a", kind, 0, &with).unwrap_err(),
                Errno::OPNOTSUPP
            );
        }
        let created = guest.create(c"a", 0o600, 0, &with);
        assert_eq!(created.unwrap_err(), Errno::OPNOTSUPP);
        let file = new_file(0o600, 0);
        let nameless = guest.ask(ROOT_NODE, |fs, cx| fs.create_nameless(cx, file, &with));
        assert_eq!(nameless.unwrap_err(), Errno::OPNOTSUPP);
        assert_eq!((guest.names(), guest.fs.nodes.len()), (0, nodes));
        assert!(guest.fs.handles.is_empty());
    });
}

#[test]
fn name_that_is_there_keeps_its_label_and_is_not_opened() {
    as_root(|| {
        let mut guest = Guest::new(everything());
        guest
            .create(c"a", 0o600, 0, &labelled(LABEL, b"first"))
            .unwrap();
        let second = labelled(LABEL, b"second");
        let again = guest.create(c"a", 0o644, 0, &second);
        assert_eq!(again.unwrap_err(), Errno::STALE);
        assert_eq!(guest.label_of("a"), b"first");
        let mut file = new_file(0o644, 0);
        file.flags |= libc::O_EXCL.cast_unsigned();
        let refused = guest.ask(ROOT_NODE, |fs, cx| fs.create(cx, name(c"a"), file, &second));
        assert_eq!(refused.unwrap_err(), Errno::EXIST);
        for kind in KINDS {
            assert_eq!(
                guest.make(c"a", kind, 0, &second).unwrap_err(),
                Errno::EXIST
            );
        }
        assert_eq!((guest.label_of("a"), guest.names()), (b"first".to_vec(), 1));
        assert_eq!(guest.fs.handles.len(), 1);
    });
}

#[test]
fn who_may_not_write_the_directory_makes_nothing_there() {
    as_root(|| {
        let mut guest = Guest::new(everything());
        let closed = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(guest.dir.path(), closed).unwrap();
        (guest.uid, guest.gid) = (1000, 1000);
        for with in [Creation::default(), labelled(LABEL, b"x")] {
            for kind in KINDS {
                assert_eq!(guest.make(c"a", kind, 0, &with).unwrap_err(), Errno::ACCESS);
            }
            let created = guest.create(c"a", 0o600, 0, &with);
            assert_eq!(created.unwrap_err(), Errno::ACCESS);
        }
        assert_eq!(guest.names(), 0);
        // Nobody is no caller.
        guest.uid = u32::MAX;
        let created = guest.create(c"a", 0o600, 0, &Creation::default());
        assert_eq!(created.unwrap_err(), Errno::INVAL);
    });
}

#[test]
fn supplementary_group_of_the_caller_lets_him_in() {
    as_root(|| {
        let mut guest = Guest::new(FsConfig::default());
        let group = std::fs::Permissions::from_mode(0o2770);
        std::os::unix::fs::chown(guest.dir.path(), Some(0), Some(77)).unwrap();
        std::fs::set_permissions(guest.dir.path(), group).unwrap();
        (guest.uid, guest.gid) = (1000, 1000);
        let none = guest.create(c"a", 0o660, 0, &Creation::default());
        assert_eq!(none.unwrap_err(), Errno::ACCESS);
        let with = Creation {
            group: Some(77),
            ..Creation::default()
        };
        let created = guest.create(c"a", 0o660, 0, &with).unwrap();
        assert_eq!((created.entry.attr.uid, created.entry.attr.gid), (1000, 77));
    });
}

#[test]
fn what_there_is_no_room_for_is_not_made() {
    let config = FsConfig {
        inode_file_handles: InodeHandles::Never,
        ..FsConfig::default()
    };
    for kind in KINDS.into_iter().map(Some).chain([None]) {
        let mut guest = Guest::with_files(config.clone(), 64);
        let with = Creation::default();
        let mut made = 0;
        let error = loop {
            let name = CString::new(made.to_string()).unwrap();
            let result = match kind {
                Some(kind) => guest.make(&name, kind, 0, &with).map(drop),
                // Handles are fewer than nodes.
                None => guest.create(&name, 0o644, 0, &with).map(|created| {
                    let node = created.entry.node;
                    let closed = guest.fs.handles.remove(created.opened.handle, node);
                    drop(closed.unwrap());
                }),
            };
            match result {
                Ok(()) => made += 1,
                Err(error) => break error,
            }
        };
        // One of 30 is the root; two of 32 are for what is opened.
        assert_eq!((error, made, guest.names()), (Errno::NFILE, 29, 29));
        assert_eq!(guest.fs.nodes.len(), 30);
    }
}

/// Somebody on the host may have another thing under the name by then, and no copy of it.
#[test]
fn f3_8_only_what_was_made_is_taken_away() {
    let guest = Guest::new(FsConfig::default());
    let dir = hold(guest.dir.path());
    let stat = |name: &str| crate::sys::statx_of(hold(&guest.path(name)).as_fd()).unwrap();
    std::fs::write(guest.path("a"), "made").unwrap();
    std::fs::create_dir(guest.path("d")).unwrap();
    let (file, directory) = (stat("a"), stat("d"));
    for name in ["a", "d"] {
        std::fs::rename(guest.path(name), guest.path(&format!("{name}-moved"))).unwrap();
    }
    std::fs::write(guest.path("a"), "another").unwrap();
    std::fs::create_dir(guest.path("d")).unwrap();
    for (at, made) in [(c"a", &file), (c"d", &directory), (c"gone", &file)] {
        super::super::create::take_away(dir.as_fd(), name(at), made);
    }
    assert_eq!(std::fs::read(guest.path("a")).unwrap(), b"another");
    assert_eq!(guest.names(), 4);
    // What was made goes, whatever kind it is.
    for (at, made) in [(c"a-moved", &file), (c"d-moved", &directory)] {
        super::super::create::take_away(dir.as_fd(), name(at), made);
    }
    assert_eq!(guest.names(), 2);
}
