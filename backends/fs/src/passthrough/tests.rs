// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Operations of a guest on directories of this machine.

mod attributes;
mod create;
mod directory;
mod extended;
mod handles;
mod locking;
mod no_open;
mod shares;

use std::ffi::CStr;
use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;

use super::*;
use crate::sys::HOLD;
use crate::testing::context;
use crate::wire::flags::{MAJOR, MINOR, ROOT_NODE};
use crate::wire::name::Name;
use crate::wire::operation::{InitIn, LookupName, NewFile};

/// A guest that has said what it can, and a thread that serves it.
struct Guest {
    dir: tempfile::TempDir,
    fs: PassThrough,
    thread: ThreadContext,
    /// Who asks from now on.
    uid: u32,
    gid: u32,
}

fn hold(path: &Path) -> OwnedFd {
    rustix::fs::open(path, HOLD, Mode::empty()).unwrap()
}

impl Guest {
    /// Of one directory; the guest can do all that there is.
    fn new(config: FsConfig) -> Self {
        Self::with_files(config, 1 << 16)
    }

    fn with_files(config: FsConfig, max_files: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Root {
            name: None,
            fd: hold(dir.path()),
        };
        Self::of(dir, config, vec![root], max_files)
    }

    fn of(dir: tempfile::TempDir, config: FsConfig, roots: Vec<Root>, max_files: usize) -> Self {
        let proc_self_fd = File::open("/proc/self/fd").unwrap().into();
        let fs = PassThrough::new(config, roots, proc_self_fd, max_files).unwrap();
        let init = InitIn {
            major: MAJOR,
            minor: MINOR,
            max_readahead_bytes: 0,
            flags: InitFlags::all(),
        };
        fs.init(&init).unwrap();
        Self {
            dir,
            fs,
            thread: context(),
            uid: 0,
            gid: 0,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Asks for something about a node.
    fn ask<R>(&mut self, node: u64, act: impl FnOnce(&PassThrough, &mut Cx<'_>) -> R) -> R {
        let header = InHeader {
            node,
            uid: self.uid,
            gid: self.gid,
            ..InHeader::default()
        };
        let mut cx = Cx {
            header: &header,
            thread: &mut self.thread,
            waits: false,
        };
        let result = act(&self.fs, &mut cx);
        assert!(self.thread.is_initial());
        result
    }

    fn lookup(&mut self, parent: u64, what: &CStr) -> Result<Entry> {
        let what = LookupName::Child(name(what));
        self.ask(parent, |fs, cx| fs.lookup(cx, what))
    }
}

fn name(name: &CStr) -> Name<'_> {
    Name::new(name).unwrap()
}
