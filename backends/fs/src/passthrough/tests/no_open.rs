// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that opens and closes files without telling us.

use super::*;
use crate::config::CachePolicy;
use crate::testing::as_root;
use crate::wire::flags::{FallocateFlags, OpenInFlags, OpenOutFlags, SetAttrValid, WriteFlags};
use crate::wire::operation::{SetAttr, WriteIn};
use crate::wire::reply::Created;

fn guest() -> Guest {
    Guest::new(FsConfig {
        no_open: true,
        cache: CachePolicy::Always,
        ..FsConfig::default()
    })
}

fn new_file(flags: i32, mode: u32) -> NewFile {
    NewFile {
        flags: flags.cast_unsigned(),
        mode,
        umask: 0,
        open_flags: OpenInFlags::empty(),
    }
}

impl Guest {
    fn create_unopened(&mut self, name: Option<&CStr>, flags: i32, mode: u32) -> Result<Created> {
        let (file, with) = (new_file(flags, mode), Creation::default());
        self.ask(ROOT_NODE, |fs, cx| match name {
            Some(what) => fs.create(cx, super::name(what), file, &with),
            None => fs.create_nameless(cx, file, &with),
        })
    }

    /// Writes, reads and all else that there is to do with an open file.
    fn use_unopened(&mut self, node: u64) {
        let write = WriteIn {
            write_flags: WriteFlags::empty(),
            ..WriteIn::default()
        };
        self.ask(node, |fs, cx| {
            let (target, _) = fs.write_target(cx, &write).unwrap();
            rustix::io::pwrite(target.as_fd(), b"12345", 0).unwrap();
            fs.fallocate(cx, 0, 0, 4096, FallocateFlags::empty())
                .unwrap();
            let target = fs.target(cx, node, 0, OFlags::RDONLY).unwrap();
            let mut bytes = [0; 5];
            rustix::io::pread(target.as_fd(), &mut bytes, 0).unwrap();
            assert_eq!(&bytes, b"12345");
            fs.fsync(cx, 0, false, false).unwrap();
            let data = libc::SEEK_DATA.cast_unsigned();
            assert_eq!(fs.lseek(cx, 0, 1, data), Ok(1));
            let set = SetAttr {
                valid: SetAttrValid::SIZE | SetAttrValid::HANDLE,
                size_bytes: 3,
                ..SetAttr::default()
            };
            assert_eq!(fs.set_attr(cx, &set).unwrap().attr.size_bytes, 3);
            assert_eq!(fs.get_attr(cx, Some(0)).unwrap().attr.size_bytes, 3);
            fs.flush(cx, 0, 0).unwrap();
        });
    }
}

#[test]
fn new_file_has_no_handle_and_is_used_whatever_its_mode_and_name() {
    as_root(|| {
        let mut guest = guest();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(guest.dir.path(), open).unwrap();
        (guest.uid, guest.gid) = (1000, 1000);
        let names = [c"none", c"read", c"all"]
            .map(Some)
            .into_iter()
            .chain([None]);
        for (name, mode) in names.zip([0, 0o444, 0o666, 0]) {
            let created = guest.create_unopened(name, libc::O_RDWR, mode).unwrap();
            assert_eq!(created.opened.handle, 0);
            assert_eq!(created.opened.flags, OpenOutFlags::KEEP_CACHE);
            let attr = created.entry.attr;
            assert_eq!(attr.mode, libc::S_IFREG | mode);
            assert_eq!((attr.uid, attr.nlink), (1000, u32::from(name.is_some())));
            guest.use_unopened(created.entry.node);
        }
        assert!(guest.fs.handles.is_empty());
    });
}

#[test]
fn file_without_a_name_gets_one_and_file_that_loses_it_is_still_there() {
    as_root(|| {
        let mut guest = guest();
        let nameless = guest.create_unopened(None, libc::O_RDWR, 0o600).unwrap();
        let node = nameless.entry.node;
        guest.use_unopened(node);
        let linked = guest.ask(ROOT_NODE, |fs, cx| fs.link(cx, node, name(c"a")));
        assert_eq!(linked.unwrap().attr.nlink, 1);
        guest
            .ask(ROOT_NODE, |fs, cx| fs.unlink(cx, name(c"a"), false))
            .unwrap();
        guest.use_unopened(node);
    });
}
