// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names of extended attributes that the guest does not get at, and those it sees.

use rustix::fs::XattrFlags;

use super::*;
use crate::config::Negotiation;
use crate::testing::as_root;

const USER: &CStr = c"user.ringside";
const ACL: &CStr = c"system.posix_acl_access";

fn config(posix_acl: Negotiation, xattrmap: Option<&str>) -> FsConfig {
    FsConfig {
        xattr: true,
        posix_acl,
        xattrmap: xattrmap.map(|rules| rules.parse().unwrap()),
        ..FsConfig::default()
    }
}

/// A guest with a file that has an attribute and an access control list, and its node.
fn guest(config: FsConfig) -> (Guest, u64) {
    let mut guest = Guest::new(config);
    let path = guest.path("file");
    std::fs::write(&path, "").unwrap();
    rustix::fs::setxattr(&path, USER, b"value", XattrFlags::empty()).unwrap();
    // A version, then kind, permissions and number: owner, user 7, group, mask, others.
    let entries: [(u16, u32); 5] = [(1, !0), (2, 7), (4, !0), (0x10, !0), (0x20, !0)];
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (kind, id) in entries {
        acl.extend(kind.to_le_bytes());
        acl.extend(6_u16.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    rustix::fs::setxattr(&path, ACL, &acl, XattrFlags::empty()).unwrap();
    let node = guest.lookup(ROOT_NODE, c"file").unwrap().node;
    (guest, node)
}

impl Guest {
    fn list_xattr(&mut self, node: u64, size_bytes: u32) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.ask(node, |fs, cx| fs.list_xattr(cx, size_bytes, &mut out))?;
        Ok(out)
    }

    fn get_xattr(&mut self, node: u64, name: &CStr) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.ask(node, |fs, cx| fs.get_xattr(cx, name, 100, &mut out))?;
        Ok(out)
    }
}

#[test]
fn names_that_cannot_be_asked_for_are_not_listed_and_not_counted() {
    as_root(|| {
        let all: &[u8] = b"system.posix_acl_access\0user.ringside\0";
        let own: &[u8] = b"user.ringside\0";
        for (acl, map, expected) in [
            (Negotiation::Never, None, own),
            (Negotiation::Always, None, all),
            (Negotiation::Never, Some(":ok:all:::"), own),
            (Negotiation::Always, Some(":ok:all:::"), all),
            (
                Negotiation::Always,
                Some(":bad:client:user.:: :ok:all:::"),
                &all[..all.len() - own.len()],
            ),
        ] {
            let (mut guest, node) = guest(config(acl, map));
            let size = u32::try_from(expected.len()).unwrap();
            let mut names = guest.list_xattr(node, size).unwrap();
            // Not every file system sorts them alike.
            let mut sorted: Vec<_> = names.split_inclusive(|&byte| byte == 0).collect();
            sorted.sort_unstable();
            names = sorted.concat();
            assert_eq!(names, expected, "{acl:?} {map:?}");
            let counted = guest.list_xattr(node, 0).unwrap();
            assert_eq!(counted[..4], size.to_ne_bytes());
            assert_eq!(guest.list_xattr(node, size - 1), Err(Errno::RANGE));
        }
    });
}

#[test]
fn attribute_that_a_rule_hides_is_not_there_and_cannot_be_set() {
    as_root(|| {
        let map = ":bad:all:user.:user.: :unsupported:all:trusted.:trusted.: :ok:all:::";
        let (mut guest, node) = guest(config(Negotiation::Never, Some(map)));
        assert_eq!(guest.get_xattr(node, USER), Err(Errno::NODATA));
        assert_eq!(guest.get_xattr(node, c"trusted.a"), Err(Errno::OPNOTSUPP));
        let set = guest.ask(node, |fs, cx| fs.set_xattr(cx, USER, b"x", 0, false));
        assert_eq!(set, Err(Errno::PERM));
        let removed = guest.ask(node, |fs, cx| fs.remove_xattr(cx, USER));
        assert_eq!(removed, Err(Errno::PERM));
    });
}

/// The kernel refuses a list that is none, and one that the file system has no room for.
#[test]
fn f3_8_set_group_id_is_put_back_if_the_access_control_list_is_refused() {
    as_root(|| {
        let (mut guest, node) = guest(config(Negotiation::Always, None));
        let path = guest.path("file");
        let mode = |mode| {
            let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(&path, permissions).unwrap();
        };
        let is = || std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
        let acl = guest.get_xattr(node, ACL).unwrap();
        for (before, value, result, after) in [
            (0o2770, &acl[..acl.len() - 1], Err(Errno::INVAL), 0o2770),
            (0o770, &acl[..acl.len() - 1], Err(Errno::INVAL), 0o770),
            (0o2770, &acl[..], Ok(()), 0o666),
        ] {
            mode(before);
            let set = guest.ask(node, |fs, cx| fs.set_xattr(cx, ACL, value, 0, true));
            assert_eq!((set, is() & 0o7777), (result, after), "{before:o}");
        }
    });
}

#[test]
fn f6_7_attribute_of_the_system_is_kept_under_the_name_that_a_map_gives_it() {
    as_root(|| {
        let (acl, nfs) = (c"system.posix_acl_access", c"system.nfs4_acl");
        let map = Some(":map::user.virtiofs.:");
        let (mut mapped, node) = guest(config(Negotiation::Never, map));
        let set = mapped.ask(node, |fs, cx| fs.set_xattr(cx, nfs, b"x", 0, false));
        assert_eq!(set, Ok(()));
        assert_eq!(mapped.get_xattr(node, nfs), Ok(b"x".to_vec()));
        assert_eq!(
            mapped.list_xattr(node, 100),
            Ok(b"system.nfs4_acl\0".to_vec())
        );
        let mut value = [0; 1];
        let host = rustix::fs::getxattr(
            mapped.path("file"),
            c"user.virtiofs.system.nfs4_acl",
            &mut value[..],
        );
        assert_eq!((host, value), (Ok(1), *b"x"));
        assert_eq!(mapped.ask(node, |fs, cx| fs.remove_xattr(cx, nfs)), Ok(()));
        // Of access control lists only the negotiation decides, as with virtiofsd.
        assert_eq!(mapped.get_xattr(node, acl), Err(Errno::OPNOTSUPP));

        // What would be one of the host's stays refused, also where a rule makes it one.
        for map in [None, Some(":ok:all:::"), Some(":prefix:all::system.:")] {
            let (mut guest, node) = guest(config(Negotiation::Always, map));
            let name = if map == Some(":prefix:all::system.:") {
                c"nfs4_acl"
            } else {
                nfs
            };
            let set = guest.ask(node, |fs, cx| fs.set_xattr(cx, name, b"x", 0, false));
            assert_eq!(set, Err(Errno::OPNOTSUPP), "{map:?}");
        }
    });
}
