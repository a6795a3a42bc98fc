// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Operations at random, and what the guest must give back of them.

use std::collections::BTreeMap;

use ringside_frontend::fuse::flags::{ROOT_NODE, SetAttrValid, opcode};
use ringside_frontend::fuse::types::{LockIn, SetAttr};
use ringside_frontend::fuse::{Caller, FuseQueue, Request};

use super::{Result, TestResult};

/// Requests of one step: all of one caller, most of them at the same time.
const BATCH: usize = 32;
/// Kinds of operations.
const OPERATIONS: usize = 17;
/// `FUSE_EXT_GROUPS`
const EXT_GROUPS: u32 = 32;

/// Makes a request that creates a name in a directory.
pub(super) type Make = fn(u64, &str) -> Request;

/// All requests that create something.
pub(super) const CREATING: [Make; 6] = [
    |dir, name| Request::create(dir, name, 2, 0o644, 0o22),
    |dir, _| Request::tmpfile(dir, 2, 0o600, 0),
    |dir, name| Request::mkdir(dir, name, 0o777, 0o22),
    |dir, name| Request::mknod(dir, name, libc::S_IFREG | 0o600, 0, 0),
    |dir, name| Request::mknod(dir, name, libc::S_IFIFO | 0o600, 0, 0o77),
    |dir, name| Request::symlink(dir, name, "target"),
];

/// What the guest has of the device, and what it has seen.
#[derive(Debug)]
pub(super) struct Mix {
    state: u64,
    done: usize,
    /// Each stands for one lookup.
    nodes: Vec<u64>,
    dirs: Vec<u64>,
    handles: Vec<(u64, u64)>,
    /// Files that are locked, and stay known.
    locked: [u64; 2],
    seen: BTreeMap<(u32, i32), usize>,
}

/// Adds extensions to a request that creates something (`fuse.h fuse_secctx_header`,
/// `fuse_supp_groups`).
pub(super) fn labelled(
    mut request: Request,
    label: Option<(&str, &[u8])>,
    group: Option<u32>,
) -> Request {
    let names = request.args.len();
    let mut add = |kind: u32, mut content: Vec<u8>| {
        content.resize(content.len().next_multiple_of(8), 0);
        let bytes = u32::try_from(content.len() + 8).unwrap_or(u32::MAX);
        request.args.extend(bytes.to_le_bytes());
        request.args.extend(kind.to_le_bytes());
        request.args.extend(content);
    };
    if let Some((name, value)) = label {
        let bytes = u32::try_from(value.len()).unwrap_or(u32::MAX);
        let fields = [
            &bytes.to_le_bytes()[..],
            &[0; 4],
            name.as_bytes(),
            &[0],
            value,
        ];
        add(1, fields.concat());
    }
    if let Some(group) = group {
        add(
            EXT_GROUPS,
            [1_u32.to_le_bytes(), group.to_le_bytes()].concat(),
        );
    }
    let bytes = request.args.len() - names;
    request.extensions = u16::try_from(bytes / 8).unwrap_or(u16::MAX);
    request
}

fn number(reply: &[u8], at: usize) -> u64 {
    let bytes = reply[at..].first_chunk().copied();
    bytes.map_or(0, u64::from_le_bytes)
}

impl Mix {
    pub(super) fn new(queue: &mut FuseQueue, seed: u64) -> Result<Self> {
        let open = queue.lookup(ROOT_NODE, "open")?.node;
        let mut locked = [0; 2];
        for (at, node) in locked.iter_mut().enumerate() {
            *node = queue
                .mknod(
                    open,
                    format!("locked-{seed}-{at}"),
                    libc::S_IFREG | 0o666,
                    0,
                )?
                .node;
        }
        Ok(Self {
            state: 0x9e37_79b9_7f4a_7c15 ^ seed,
            done: 0,
            nodes: Vec::new(),
            dirs: vec![ROOT_NODE, open],
            handles: Vec::new(),
            locked,
            seen: BTreeMap::new(),
        })
    }

    /// Operations that were answered.
    pub(super) fn done(&self) -> usize {
        self.done
    }

    /// Below `most`.
    fn random(&mut self, most: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        usize::try_from(self.state >> 33).unwrap_or(0) % most.max(1)
    }

    /// True once in so many times.
    pub(super) fn chance(&mut self, times: usize) -> bool {
        self.random(times) == 0
    }

    fn dir(&mut self) -> u64 {
        let at = self.random(self.dirs.len());
        self.dirs[at]
    }

    fn node(&mut self) -> u64 {
        let at = self.random(self.nodes.len());
        self.nodes.get(at).copied().unwrap_or(ROOT_NODE)
    }

    fn handle(&mut self) -> (u64, u64) {
        let at = self.random(self.handles.len());
        self.handles
            .get(at)
            .copied()
            .unwrap_or((self.locked[0], 77))
    }

    fn name(&mut self) -> String {
        match self.random(100) {
            0 => "n".repeat(256),
            1 => "a/b".to_owned(),
            number => format!("name-{number}"),
        }
    }

    fn caller(&mut self) -> Caller {
        let (uid, gid) = [(0, 0), (1000, 1000), (1000, 0), (0, 5), (u32::MAX, 0)][self.random(5)];
        Caller { uid, gid, pid: 1 }
    }

    fn creation(&mut self) -> Request {
        let make = CREATING[self.random(CREATING.len())];
        let (dir, name) = (self.dir(), self.name());
        let long = vec![b'l'; self.random(65_537)];
        let labels: [Option<(&str, &[u8])>; 7] = [
            None,
            None,
            Some(("security.ringside", b"system_u:object_r:file_t:s0")),
            Some(("user.label", b"value")),
            Some(("trusted.long", &long)),
            Some(("bogus.label", b"x")),
            Some(("security.capability", b"not one")),
        ];
        let label = labels[self.random(labels.len())];
        let group = [None, Some(7), Some(1000)][self.random(3)];
        labelled(make(dir, &name), label, group)
    }

    fn request(&mut self) -> Request {
        let node = self.node();
        match self.random(OPERATIONS) {
            0..4 => self.creation(),
            4 => Request::lookup(self.dir(), self.name()),
            5 | 6 => Request::unlink(self.dir(), self.name()),
            7 => Request::rmdir(self.dir(), self.name()),
            8 => Request::rename((self.dir(), self.name()), (self.dir(), self.name()), 0),
            9 => Request::link(node, self.dir(), self.name()),
            10 => Request::open(node, 2),
            11 => {
                let (node, handle) = self.handle();
                Request::fsync(node, handle, true)
            }
            12 => Request::setxattr(node, "user.x", &[1; 100], 0, true),
            13 => self.change(node),
            14 => self.lock(),
            15 => Request::opendir(self.dir(), 0),
            _ => {
                let (node, handle) = self.handle();
                let offset = self.random(1 << 21) as u64;
                Request::fallocate(node, handle, offset, 100_000, 0)
            }
        }
    }

    fn change(&mut self, node: u64) -> Request {
        let valid = [
            SetAttrValid::MODE,
            SetAttrValid::SIZE,
            SetAttrValid::UID | SetAttrValid::GID,
        ][self.random(3)];
        let set = SetAttr {
            valid,
            mode: 0o6755,
            uid: 1000,
            gid: 1000,
            size_bytes: 1000,
            ..SetAttr::default()
        };
        Request::setattr(node, &set)
    }

    fn lock(&mut self) -> Request {
        let at = self.random(2);
        let start = self.random(8) as u64;
        let lock = LockIn {
            handle: 0,
            owner: self.random(4) as u64,
            start,
            end: start + 2,
            kind: [0, 1, 2][self.random(3)],
            pid: 1,
            flock: false,
        };
        Request::setlk(self.locked[at], &lock, false)
    }

    /// Sends a batch; when it returns the queue is quiet.
    pub(super) fn step(&mut self, queue: &mut FuseQueue) -> TestResult {
        let caller = self.caller();
        queue.caller = caller;
        let requests: Vec<Request> = (0..BATCH).map(|_| self.request()).collect();
        let mut replies = Vec::with_capacity(BATCH);
        queue.call_many(requests.iter().cloned(), |at, reply| {
            replies.push((at, reply));
        })?;
        queue.caller = Caller::default();
        for (at, reply) in replies {
            self.take(&requests[at], reply);
        }
        self.done += BATCH;
        if self.chance(8) {
            self.list(queue)?;
        }
        if self.handles.len() > 100 {
            self.release(queue, 50)?;
        }
        if self.nodes.len() > 400 {
            self.forget(queue, 200)?;
        }
        Ok(())
    }

    /// Notes what a reply has given.
    fn take(&mut self, request: &Request, reply: std::result::Result<Vec<u8>, i32>) {
        let errno = reply.as_ref().err().copied().unwrap_or(0);
        *self.seen.entry((request.opcode, errno)).or_default() += 1;
        let Ok(reply) = reply else {
            return;
        };
        match request.opcode {
            opcode::CREATE | opcode::TMPFILE => {
                self.nodes.push(number(&reply, 0));
                self.handles.push((number(&reply, 0), number(&reply, 128)));
            }
            opcode::MKDIR => {
                self.nodes.push(number(&reply, 0));
                if self.dirs.len() < 8 {
                    self.dirs.push(number(&reply, 0));
                }
            }
            opcode::LOOKUP | opcode::MKNOD | opcode::SYMLINK | opcode::LINK => {
                self.nodes.push(number(&reply, 0));
            }
            opcode::OPEN | opcode::OPENDIR => self.handles.push((request.node, number(&reply, 0))),
            _ => {}
        }
    }

    /// Lists a directory with its nodes.
    fn list(&mut self, queue: &mut FuseQueue) -> TestResult {
        let dir = self.dir();
        let Ok(opened) = queue.opendir(dir) else {
            self.dirs
                .retain(|known| *known != dir || *known == ROOT_NODE);
            return Ok(());
        };
        let listed = queue.readdirplus(dir, opened.handle, 0, 8192);
        queue.releasedir(dir, opened.handle)?;
        let entries = match listed {
            // It was removed.
            Err(error) if error.errno() == Some(libc::ENOENT) => Vec::new(),
            listed => listed?,
        };
        let nodes = entries.iter().filter_map(|entry| Some(entry.entry?.node));
        self.nodes.extend(nodes.filter(|node| *node != 0));
        Ok(())
    }

    fn release(&mut self, queue: &mut FuseQueue, keep: usize) -> TestResult {
        let gone: Vec<_> = self.handles.drain(keep.min(self.handles.len())..).collect();
        let releases = gone
            .iter()
            .map(|(node, handle)| Request::release(*node, *handle, 0));
        let mut failed = Vec::new();
        queue.call_many(releases, |_, reply| failed.extend(reply.err()))?;
        assert!(failed.is_empty(), "{failed:?}");
        Ok(())
    }

    fn forget(&mut self, queue: &mut FuseQueue, keep: usize) -> TestResult {
        // Nodes that files are open of stay known, as they do with a kernel.
        self.release(queue, 0)?;
        let gone: Vec<_> = self.nodes.drain(keep.min(self.nodes.len())..).collect();
        self.dirs.truncate(2);
        let pairs: Vec<_> = gone.iter().map(|node| (*node, 1)).collect();
        queue.call_many([Request::batch_forget(&pairs)], |_, _| {})?;
        Ok(())
    }

    /// Gives everything back.
    pub(super) fn let_go(&mut self, queue: &mut FuseQueue) -> TestResult {
        self.forget(queue, 0)?;
        for node in self.locked {
            for owner in 0..4 {
                // The locks go although there is no such handle.
                let flushed = queue.flush(node, 77, owner);
                let errno = flushed.err().and_then(|error| error.errno());
                assert_eq!(errno, Some(libc::EBADF));
            }
        }
        Ok(())
    }

    /// Every operation that creates has succeeded, and failed in each of these ways.
    pub(super) fn assert_all_happened(&self) {
        let ways = [
            0,
            libc::EINVAL,
            libc::ENOSPC,
            libc::EACCES,
            libc::EOPNOTSUPP,
        ];
        for code in [
            opcode::CREATE,
            opcode::MKDIR,
            opcode::MKNOD,
            opcode::SYMLINK,
        ] {
            for errno in ways.into_iter().chain([libc::EEXIST, libc::ENAMETOOLONG]) {
                // A file that is there is opened.
                if (code, errno) != (opcode::CREATE, libc::EEXIST) {
                    assert!(
                        self.seen.contains_key(&(code, errno)),
                        "{code} {errno} {:?}",
                        self.seen
                    );
                }
            }
        }
        for errno in ways {
            assert!(
                self.seen.contains_key(&(opcode::TMPFILE, errno)),
                "{errno} {:?}",
                self.seen
            );
        }
    }
}
