// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file system whose names are longer than 255 bytes, as those of vfat, exfat and ntfs3 can be:
//! the tests' own, by FUSE, so that it is there whatever the kernel has.
//!
//! It is one directory in memory. Files have no content, and directories in it are empty.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use ringside_fs::wire::dirents::{DirEntries, DirEntry};
use ringside_fs::wire::flags::{InitFlags, MAJOR, ROOT_NODE, opcode};
use ringside_fs::wire::header::{IN_HEADER_BYTES, InHeader, out_header};
use ringside_fs::wire::reply::{Attr, AttrOut, Entry, InitOut, StatFs};

/// The longest names that every kernel passes on to FUSE (`FUSE_NAME_LOW_MAX`).
pub(super) const OF_EVERY_KERNEL: usize = 1024;
/// What `/dev/fuse` wants of who reads requests, and more than any of them has here.
const REQUEST_BYTES: usize = 128 << 10;
/// Since 7.31 all that is sent here looks as it does.
const MINOR: u32 = 31;

type Reply = Result<Vec<u8>, i32>;

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub(super) struct LongNames {
    dir: tempfile::TempDir,
    tree: Arc<Mutex<Tree>>,
}

impl LongNames {
    /// Mounts one whose names have up to `longest` bytes.
    ///
    /// # Errors
    ///
    /// When nothing can be mounted, see `ringside_tests::fs_mount::needs`.
    pub(super) fn mount(longest: usize) -> Result<Self, Box<dyn Error>> {
        let mut options = OpenOptions::new();
        let mut fuse = options.read(true).write(true).open("/dev/fuse")?;
        let dir = tempfile::tempdir()?;
        let number = fuse.as_raw_fd();
        let data = format!("fd={number},rootmode=40000,user_id=0,group_id=0,allow_other");
        let (none, kind) = (Some("long-names"), Some("fuse.long-names"));
        mount(none, dir.path(), kind, MsFlags::empty(), Some(&*data))?;
        let tree = Arc::new(Mutex::new(Tree::new(longest)));
        let served = Arc::clone(&tree);
        let mounted = Self { dir, tree };
        std::thread::Builder::new()
            .name("long-names".into())
            .spawn(move || serve(&mut fuse, &served))?;
        Ok(mounted)
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// What is in it.
    pub(super) fn names(&self) -> Vec<Vec<u8>> {
        let tree = self.tree.lock().unwrap_or_else(PoisonError::into_inner);
        tree.names.keys().cloned().collect()
    }
}

impl Drop for LongNames {
    fn drop(&mut self) {
        // Nobody is left to tell; what stays mounted is seen by whoever cleans up.
        let _ = umount2(self.dir.path(), MntFlags::MNT_DETACH);
    }
}

/// Answers until nothing is mounted and used any more.
fn serve(fuse: &mut File, tree: &Mutex<Tree>) {
    let mut bytes = vec![0; REQUEST_BYTES];
    loop {
        let len = match fuse.read(&mut bytes) {
            Ok(len) => len,
            // Whoever asked has given up.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => {
                continue;
            }
            Err(_) => return,
        };
        let Some((header, args)) = bytes[..len].split_first_chunk::<IN_HEADER_BYTES>() else {
            return;
        };
        let header = InHeader::parse(header);
        if matches!(
            header.opcode,
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT
        ) {
            continue;
        }
        let reply = {
            let mut tree = tree.lock().unwrap_or_else(PoisonError::into_inner);
            tree.answer(&header, args)
        };
        let (errno, body) = match reply {
            Ok(body) => (0, body),
            Err(errno) => (errno, Vec::new()),
        };
        let whole_bytes = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
        let head = out_header(whole_bytes, -errno, header.unique);
        // One whose asker has given up is not wanted.
        let _ = fuse.write(&[&head[..], &body].concat());
    }
}

#[derive(Debug)]
struct Tree {
    longest: usize,
    names: BTreeMap<Vec<u8>, u64>,
    files: BTreeMap<u64, (Attr, Vec<u8>)>,
    last: u64,
}

impl Tree {
    fn new(longest: usize) -> Self {
        let root = Attr {
            ino: ROOT_NODE,
            mode: libc::S_IFDIR | 0o755,
            nlink: 2,
            ..Attr::default()
        };
        Self {
            longest,
            names: BTreeMap::new(),
            files: BTreeMap::from([(ROOT_NODE, (root, Vec::new()))]),
            last: ROOT_NODE,
        }
    }

    fn answer(&mut self, header: &InHeader, args: &[u8]) -> Reply {
        match header.opcode {
            opcode::INIT => Ok(self.init()),
            opcode::GETATTR => self.attr(header.node),
            opcode::SETATTR => self.set_attr(header.node, args),
            opcode::STATFS => Ok(self.stat_fs()),
            opcode::READLINK => Ok(self.file(header.node)?.1.clone()),
            opcode::READDIR => self.list(header.node, args),
            opcode::LOOKUP => {
                let [name] = self.names_of(args, 0)?;
                self.entry(&name)
            }
            opcode::MKNOD => {
                let [name] = self.names_of(args, 16)?;
                self.make(header, &name, word(args, 0)?, &[])
            }
            opcode::MKDIR => {
                let [name] = self.names_of(args, 8)?;
                self.make(header, &name, libc::S_IFDIR | word(args, 0)?, &[])
            }
            opcode::SYMLINK => {
                // The target is no name, but as long as one here.
                let [name, target] = self.names_of(args, 0)?;
                self.make(header, &name, libc::S_IFLNK | 0o777, &target)
            }
            opcode::LINK => {
                let [name] = self.names_of(args, 8)?;
                let node = u64::from(word(args, 0)?);
                self.file(node)?.0.nlink += 1;
                self.names.insert(name.clone(), node);
                self.entry(&name)
            }
            opcode::UNLINK | opcode::RMDIR => {
                let [name] = self.names_of(args, 0)?;
                self.remove(&name)
            }
            opcode::RENAME => self.rename(args, 8, 0),
            opcode::RENAME2 => self.rename(args, 16, word(args, 8)?),
            _ => Err(libc::ENOSYS),
        }
    }

    fn init(&self) -> Vec<u8> {
        // The kernel has longer names for who takes more than one page.
        let flags = if self.longest > OF_EVERY_KERNEL {
            InitFlags::MAX_PAGES
        } else {
            InitFlags::empty()
        };
        let init = InitOut {
            major: MAJOR,
            minor: MINOR,
            flags,
            max_write_bytes: 64 << 10,
            max_pages: 16,
            time_gran_ns: 1,
            ..InitOut::default()
        };
        init.to_bytes().to_vec()
    }

    fn stat_fs(&self) -> Vec<u8> {
        let stat = StatFs {
            block_size_bytes: 4096,
            fragment_size_bytes: 4096,
            name_max_bytes: u32::try_from(self.longest).unwrap_or(u32::MAX),
            ..StatFs::default()
        };
        stat.to_bytes().to_vec()
    }

    /// The strings behind `fields_bytes` of other arguments.
    fn names_of<const N: usize>(
        &self,
        args: &[u8],
        fields_bytes: usize,
    ) -> Result<[Vec<u8>; N], i32> {
        let mut strings = args
            .get(fields_bytes..)
            .ok_or(libc::EIO)?
            .split(|b| *b == 0);
        let names = std::array::from_fn(|_| strings.next().unwrap_or_default().to_vec());
        if names.iter().any(|name| name.len() > self.longest) {
            return Err(libc::ENAMETOOLONG);
        }
        Ok(names)
    }

    fn file(&mut self, node: u64) -> Result<&mut (Attr, Vec<u8>), i32> {
        self.files.get_mut(&node).ok_or(libc::ENOENT)
    }

    fn attr(&mut self, node: u64) -> Reply {
        let attr = AttrOut {
            attr: self.file(node)?.0,
            ..AttrOut::default()
        };
        Ok(attr.to_bytes().to_vec())
    }

    /// Mode and owners; everything else stays as it is.
    fn set_attr(&mut self, node: u64, args: &[u8]) -> Reply {
        let valid = word(args, 0)?;
        let attr = &mut self.file(node)?.0;
        if valid & 1 != 0 {
            attr.mode = attr.mode & libc::S_IFMT | word(args, 68)? & !libc::S_IFMT;
        }
        if valid & 2 != 0 {
            attr.uid = word(args, 76)?;
        }
        if valid & 4 != 0 {
            attr.gid = word(args, 80)?;
        }
        self.attr(node)
    }

    fn entry(&mut self, name: &[u8]) -> Reply {
        let node = *self.names.get(name).ok_or(libc::ENOENT)?;
        let entry = Entry {
            node,
            attr: self.file(node)?.0,
            ..Entry::default()
        };
        Ok(entry.to_bytes().to_vec())
    }

    fn make(&mut self, header: &InHeader, name: &[u8], mode: u32, target: &[u8]) -> Reply {
        if header.node != ROOT_NODE {
            return Err(libc::EPERM);
        }
        if self.names.contains_key(name) {
            return Err(libc::EEXIST);
        }
        self.last += 1;
        let attr = Attr {
            ino: self.last,
            mode,
            nlink: 1,
            uid: header.uid,
            gid: header.gid,
            size_bytes: target.len() as u64,
            ..Attr::default()
        };
        self.files.insert(self.last, (attr, target.to_vec()));
        self.names.insert(name.to_vec(), self.last);
        self.entry(name)
    }

    fn remove(&mut self, name: &[u8]) -> Reply {
        let node = self.names.remove(name).ok_or(libc::ENOENT)?;
        // It stays for those who have it.
        self.file(node)?.0.nlink -= 1;
        Ok(Vec::new())
    }

    fn rename(&mut self, args: &[u8], fields_bytes: usize, flags: u32) -> Reply {
        let [from, to] = self.names_of(args, fields_bytes)?;
        if flags & !libc::RENAME_NOREPLACE != 0 {
            return Err(libc::EINVAL);
        }
        if flags != 0 && self.names.contains_key(&to) {
            return Err(libc::EEXIST);
        }
        let node = self.names.remove(&from).ok_or(libc::ENOENT)?;
        self.names.insert(to, node);
        Ok(Vec::new())
    }

    fn list(&self, node: u64, args: &[u8]) -> Reply {
        let (begin, limit_bytes) = (word(args, 8)? as usize, word(args, 16)? as usize);
        let mut out = Vec::new();
        let mut entries = DirEntries::new(&mut out, limit_bytes);
        let names = self.names.iter().filter(|_| node == ROOT_NODE);
        for (at, (name, ino)) in names.enumerate().skip(begin) {
            let entry = DirEntry {
                ino: *ino,
                next_offset: at as u64 + 1,
                kind: 0,
                name,
            };
            if !entries.add(&entry) {
                break;
            }
        }
        Ok(out)
    }
}

fn word(args: &[u8], at: usize) -> Result<u32, i32> {
    let bytes = args.get(at..).and_then(|rest| rest.first_chunk());
    Ok(u32::from_ne_bytes(*bytes.ok_or(libc::EIO)?))
}
