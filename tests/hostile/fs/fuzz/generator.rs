// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests at random, from nodes and handles that the device gave out before.

use ringside_frontend::fuse::flags::{InitFlags, ROOT_NODE, SetAttrValid, opcode};
use ringside_frontend::fuse::types::{CopyFileRange, LockIn, SetAttr, Time};
use ringside_frontend::fuse::{Caller, Request};
use ringside_frontend::load::Rng;

/// Nodes and handles that are remembered.
const KNOWN: usize = 64;
/// Names, most of them good.
const NAMES: [&[u8]; 16] = [
    b"a",
    b"b",
    b"c",
    b"d",
    b"e",
    b"f",
    b"a",
    b"b",
    b"c",
    b"d",
    b"",
    b".",
    b"..",
    b"a/b",
    b"../x",
    &[b'n'; 256],
];
/// Numbers on edges.
const EDGES: [u64; 14] = [
    0,
    1,
    2,
    7,
    0xfff,
    0x1000,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

/// Makes requests.
#[derive(Debug)]
pub(super) struct Generator {
    pub(super) rng: Rng,
    nodes: Vec<u64>,
    handles: Vec<(u64, u64)>,
    count: u64,
}

impl Generator {
    /// Of several guests of one device each has its `number` of them.
    pub(super) fn new(rng: Rng, number: u64) -> Self {
        Self {
            rng,
            nodes: vec![ROOT_NODE],
            handles: vec![(ROOT_NODE, 0)],
            count: number << 32,
        }
    }

    /// A number that no other request of this guest has.
    fn unique(&mut self) -> [u8; 8] {
        self.count += 1;
        self.count.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
    }

    /// An `INTERRUPT`.
    pub(super) fn interrupt(&mut self, of: u64) -> Vec<u8> {
        let request = Request::interrupt(of);
        let mut bytes = request.header(48, 0, Caller::default()).to_vec();
        bytes.extend_from_slice(&request.args);
        put(&mut bytes, 8, &self.unique());
        bytes
    }

    /// The bytes of a request and how much room its reply has.
    pub(super) fn request(&mut self) -> (Vec<u8>, usize) {
        let request = self.sound();
        let data = vec![0x5a; request.data_bytes as usize];
        let caller = match self.rng.below(8) {
            0 => Caller {
                uid: 1000,
                gid: 1000,
                pid: 1,
            },
            1 => Caller {
                uid: self.small(),
                gid: self.small(),
                pid: self.small(),
            },
            _ => Caller::default(),
        };
        let reply = (request.reply_args_bytes + request.reply_data_bytes) as usize;
        let mut bytes = request.header(0, 0, caller).to_vec();
        bytes.extend_from_slice(&request.args);
        bytes.extend_from_slice(&data);
        if self.rng.below(4) == 0 {
            self.spoil(&mut bytes);
        }
        if self.rng.below(50) == 0 {
            bytes = self.noise();
        }
        if self.rng.below(30) != 0 {
            let length = length(&bytes);
            put(&mut bytes, 0, &length);
        }
        let unique = self.unique();
        put(&mut bytes, 8, &unique);
        let room = match self.rng.below(20) {
            0 => self.below(40),
            1 => 16 + self.below(8192),
            _ => 16 + reply,
        };
        if bytes.is_empty() && room == 0 {
            return (vec![0], 0);
        }
        (bytes, room)
    }

    /// Remembers what a reply gave out.
    pub(super) fn learn(&mut self, opcode: u32, node: u64, payload: &[u8]) {
        let number = |at| {
            let field: Option<&[u8; 8]> = payload.get(at..).and_then(|p| p.first_chunk());
            field.map_or(0, |field| u64::from_le_bytes(*field))
        };
        match opcode {
            opcode::LOOKUP
            | opcode::SYMLINK
            | opcode::MKNOD
            | opcode::MKDIR
            | opcode::LINK
            | opcode::CREATE
            | opcode::TMPFILE => {
                let node = number(0);
                self.remember(node);
                if matches!(opcode, opcode::CREATE | opcode::TMPFILE) {
                    self.remember_handle(node, number(128));
                }
            }
            opcode::OPEN | opcode::OPENDIR => self.remember_handle(node, number(0)),
            opcode::INIT | opcode::DESTROY => {
                self.nodes.truncate(1);
                self.handles.truncate(1);
            }
            _ => {}
        }
    }

    /// Forgets what turned out not to be there (any more).
    pub(super) fn unlearn(&mut self, errno: i32, opcode: u32, node: u64, handle: u64) {
        let is_about_node = matches!(
            opcode,
            opcode::GETATTR | opcode::SETATTR | opcode::OPEN | opcode::OPENDIR | opcode::STATX
        );
        match errno {
            libc::EBADF => self
                .handles
                .retain(|known| known.1 != handle || handle == 0),
            libc::ENOENT if is_about_node => {
                self.nodes
                    .retain(|&known| known != node || node == ROOT_NODE);
            }
            _ => {}
        }
    }

    fn remember(&mut self, node: u64) {
        if self.nodes.len() < KNOWN {
            self.nodes.push(node);
        } else {
            // The root stays.
            let at = 1 + self.below(KNOWN - 1);
            self.nodes[at] = node;
        }
    }

    fn remember_handle(&mut self, node: u64, handle: u64) {
        if self.handles.len() < KNOWN {
            self.handles.push((node, handle));
        } else {
            let at = 1 + self.below(KNOWN - 1);
            self.handles[at] = (node, handle);
        }
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.rng.below(n as u64)).unwrap_or(0)
    }

    fn small(&mut self) -> u32 {
        u32::try_from(self.number() & 0xffff_ffff).unwrap_or(0)
    }

    /// Mostly small, now and then on an edge.
    fn number(&mut self) -> u64 {
        match self.rng.below(6) {
            0 => EDGES[self.below(EDGES.len())],
            1 => self.rng.next_u64() >> self.rng.below(64),
            _ => self.rng.below(9000),
        }
    }

    fn node(&mut self) -> u64 {
        match self.rng.below(40) {
            0 => self.number(),
            1..16 => ROOT_NODE,
            _ => {
                let at = self.below(self.nodes.len());
                self.nodes[at]
            }
        }
    }

    fn handle(&mut self) -> (u64, u64) {
        let at = self.below(self.handles.len());
        let (node, handle) = self.handles[at];
        match self.rng.below(30) {
            0 => (node, self.number()),
            1 => (self.node(), handle),
            _ => (node, handle),
        }
    }

    fn name(&mut self) -> &'static [u8] {
        NAMES[self.below(NAMES.len())]
    }

    fn mode(&mut self) -> u32 {
        const KINDS: [u32; 6] = [
            libc::S_IFREG,
            libc::S_IFIFO,
            libc::S_IFSOCK,
            libc::S_IFCHR,
            libc::S_IFBLK,
            0,
        ];
        KINDS[self.below(KINDS.len())] | self.small() & 0o7777 | 0o600
    }

    fn open_flags(&mut self) -> u32 {
        const FLAGS: [u32; 8] = [0, 1, 2, 0o1002, 0o2001, 0o4000, 0o100, u32::MAX];
        FLAGS[self.below(FLAGS.len())]
    }

    fn size(&mut self) -> u32 {
        match self.rng.below(20) {
            0 => self.small(),
            _ => u32::try_from(self.rng.below(8192)).unwrap_or(0),
        }
    }

    /// Something that could be meant.
    fn sound(&mut self) -> Request {
        match self.rng.below(5) {
            0 => self.about_open(),
            1 => self.about_content(),
            2 => self.about_names(),
            3 => self.about_nodes(),
            _ => self.about_rest(),
        }
    }

    fn about_open(&mut self) -> Request {
        let ((node, handle), flags) = (self.handle(), self.open_flags());
        match self.rng.below(10) {
            0 | 1 => Request::open(self.node(), flags),
            2 => Request::opendir(self.node(), flags),
            3 => Request::release(node, handle, flags),
            4 => Request::releasedir(node, handle),
            5 => Request::flush(node, handle, self.number()),
            6 => Request::fsync(node, handle, flags & 1 == 0),
            7 => Request::fsyncdir(node, handle, flags & 1 == 0),
            8 => Request::tmpfile(self.node(), flags, self.mode(), 0),
            _ => Request::create(self.node(), self.name(), flags, self.mode(), self.small()),
        }
    }

    fn about_content(&mut self) -> Request {
        let ((node, handle), offset, size) = (self.handle(), self.number(), self.size());
        let room = size.min(8192);
        let (node_out, handle_out) = self.handle();
        match self.rng.below(8) {
            0 => Request::read(node, handle, offset, size).reply_data(room),
            1 => Request::write(node, handle, offset, room),
            2 => Request::readdir(node, handle, offset, size).reply_data(room),
            3 => Request::readdirplus(node, handle, 0, size).reply_data(room),
            4 => Request::readdir(node, handle, 0, size).reply_data(room),
            5 => Request::lseek(node, handle, offset, size % 6),
            6 => Request::fallocate(node, handle, offset, self.number(), size % 128),
            _ => Request::copy_file_range(
                node,
                &CopyFileRange {
                    handle_in: handle,
                    offset_in_bytes: offset,
                    node_out,
                    handle_out,
                    offset_out_bytes: self.number(),
                    len_bytes: self.number(),
                    flags: 0,
                    wide: size % 2 == 0,
                },
            ),
        }
    }

    fn about_names(&mut self) -> Request {
        let (node, name, other) = (self.node(), self.name(), self.name());
        match self.rng.below(10) {
            0..3 => Request::lookup(node, name),
            3 => Request::mkdir(node, name, self.mode(), self.small()),
            4 => Request::mknod(node, name, self.mode(), self.small(), self.small()),
            5 => Request::symlink(node, name, other),
            6 => Request::link(self.node(), node, name),
            7 => Request::rename((node, name), (self.node(), other), self.small() % 8),
            8 => Request::unlink(node, name),
            _ => Request::rmdir(node, name),
        }
    }

    fn about_nodes(&mut self) -> Request {
        let node = self.node();
        let (_, handle) = self.handle();
        let set = SetAttr {
            valid: SetAttrValid::from_bits_retain(self.small() & 0xfff),
            handle,
            size_bytes: self.number(),
            atime: Time::new(self.number(), self.small()),
            mtime: Time::new(self.number(), self.small()),
            mode: self.mode(),
            uid: self.small(),
            gid: self.small(),
            ..SetAttr::default()
        };
        match self.rng.below(10) {
            0 => Request::getattr(node, None),
            1 => Request::getattr(node, Some(handle)),
            2 => Request::statx(node, None, self.small(), self.small()),
            3 => Request::readlink(node),
            4 => Request::setattr(node, &set),
            5 => Request::access(node, self.small()),
            6 => {
                let ext = self.rng.below(2) == 0;
                Request::setxattr(node, "user.a", &[7; 100], self.small() % 4, ext)
            }
            7 => Request::getxattr(node, "user.a", self.size().min(8192)),
            8 => Request::listxattr(node, self.size().min(8192)),
            _ => Request::removexattr(node, "user.a"),
        }
    }

    fn about_rest(&mut self) -> Request {
        const COMMANDS: [u32; 5] = [0x8008_6601, 0x4008_6602, 0x801c_581f, 0x401c_5820, 0x5401];
        let (node, handle) = self.handle();
        let lock = LockIn {
            handle,
            owner: self.rng.below(4),
            start: self.number(),
            end: self.number(),
            kind: self.small() % 4,
            pid: 1,
            flock: self.rng.below(2) == 0,
        };
        match self.rng.below(12) {
            0 => Request::statfs(node),
            1 => Request::forget(self.node(), self.number()),
            2 => Request::forget(self.node(), 1),
            3 => Request::batch_forget(&[(self.node(), 1), (self.number(), self.number())]),
            4 => Request::interrupt(self.number()),
            5 => Request::getlk(node, &lock),
            6 => Request::setlk(node, &lock, false),
            7 => Request::setlk(node, &lock, true),
            8 if self.rng.below(200) == 0 => {
                let flags = InitFlags::from_bits_retain(self.rng.next_u64());
                Request::init(flags)
            }
            9 if self.rng.below(200) == 0 => Request::destroy(),
            10 => {
                let command = COMMANDS[self.below(COMMANDS.len())];
                Request::ioctl(node, handle, command, &[0; 28], 28)
            }
            11 => Request::syncfs(node),
            _ => {
                // One of those that begin or end a session would have nothing else succeed.
                let opcode = match u32::try_from(self.rng.below(60)).unwrap_or(0) {
                    opcode::INIT | opcode::DESTROY => opcode::BMAP,
                    other => other,
                };
                let args = vec![0; self.below(100)];
                Request::new(opcode, node, args, 200)
            }
        }
    }

    /// Changes, cuts or lengthens.
    fn spoil(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.rng.below(3) {
            match self.rng.below(6) {
                0 => bytes.truncate(self.below(bytes.len() + 1)),
                1 => bytes.resize(bytes.len() + self.below(100), 0xee),
                2 => {
                    let edge = EDGES[self.below(EDGES.len())].to_le_bytes();
                    let at = 4 * self.below(bytes.len() / 4 + 1);
                    put(bytes, at, &edge);
                }
                _ => {
                    let at = self.below(bytes.len() + 1);
                    let random = self.rng.next_u64().to_le_bytes();
                    put(bytes, at, &random[..1]);
                }
            }
        }
    }

    fn noise(&mut self) -> Vec<u8> {
        let len = self.below(300);
        std::iter::repeat_with(|| self.rng.next_u64().to_le_bytes()[0])
            .take(len)
            .collect()
    }
}

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes()
}

/// Overwrites as much as there is.
fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(at).zip(field) {
        *to = *from;
    }
}
