// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Headers and arguments of all FUSE requests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringside_frontend::fuse::flags::{InitFlags, ROOT_NODE, opcode};
use ringside_frontend::fuse::{FuseClient, FuseConfig, FuseQueue, Request};
use ringside_frontend::ring::Segment;
use ringside_fs::config::FsConfig;
use ringside_fs::device::FsDevice;
use ringside_fs::passthrough::Root;
use ringside_fs::shared::FsOptions;
use ringside_fs::wire::limits::has_reply;
use ringside_tests::hostile::{PATIENCE, Result, TestResult};
use ringside_tests::in_process::Served;
use ringside_tests::in_process::watch::{self, Moment, Seen, Watch};
use ringside_tests::skip;
use rustix::fs::{Mode, OFlags};

use super::operations::{Known, OUTSIDE, bytes_of, cases, changes};

const PAGE_BYTES: usize = 4096;
const REPLY_BYTES: usize = 2048;
/// Of the two files; the words tell which of them a reply comes from.
const FILE: &[u8; 64] = &[b'A'; 64];
const OTHER: &[u8; 64] = &[b'B'; 64];

/// Of the first one.
const ATTRIBUTES: &[u8] = b"user.a\0AAAA";

/// What the host has: mode, owner, bytes, content or target, and a time that a guest has set.
type Told = (u32, (u32, u32), u64, Vec<u8>, i64);

/// What a request comes to.
#[derive(Debug, PartialEq)]
struct Outcome {
    errno: i32,
    unique: u64,
    used_bytes: u32,
    /// Where in the reply are words that are known: inode numbers and contents.
    words: Vec<(usize, &'static str)>,
    host: BTreeMap<PathBuf, Told>,
    attributes: Vec<u8>,
    /// What the guest still knows and has open.
    kept: Vec<i32>,
}

struct Scene {
    outer: tempfile::TempDir,
    before: BTreeMap<PathBuf, Told>,
    known: Known,
    words: Vec<(u64, &'static str)>,
    served: Served<FsDevice>,
    client: FuseClient,
    watch: Watch,
    gpa: u64,
    reply_gpa: u64,
    data_gpa: u64,
}

impl Scene {
    fn start() -> Result<Self> {
        let outer = tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
        fs::create_dir(outer.path().join("share"))?;
        let (access, mode) = (OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        let fd = rustix::fs::open(outer.path().join("share"), access, mode)?;
        let proc_self_fd = rustix::fs::open("/proc/self/fd", access, mode)?;
        let config = FsConfig {
            xattr: true,
            readdirplus: true,
            posix_locks: true,
            flocks: true,
            ..FsConfig::default()
        };
        let options = FsOptions {
            tag: None,
            num_request_queues: 1,
            queue_size: 1024,
            max_files: 512,
        };
        let device = FsDevice::new(config, options, vec![Root { name: None, fd }], proc_self_fd)?;
        let mut served = Served::of(Arc::new(device), 1)?;
        let mut client = FuseClient::from_stream(served.stream()?, &FuseConfig::default())?;
        let memory = Arc::clone(client.queue().vring().memory());
        let gpa = memory.alloc(PAGE_BYTES, PAGE_BYTES)?;
        let mut scene = Self {
            before: BTreeMap::new(),
            known: Known::default(),
            words: Vec::new(),
            served,
            watch: Watch::new(&memory, gpa, PAGE_BYTES)?,
            gpa,
            reply_gpa: memory.alloc(PAGE_BYTES, PAGE_BYTES)?,
            data_gpa: memory.alloc(PAGE_BYTES, PAGE_BYTES)?,
            client,
            outer,
        };
        scene.rebuild()?;
        Ok(scene)
    }

    fn host(&self, name: &str) -> PathBuf {
        self.outer.path().join("share").join(name)
    }

    /// The share as it is before each request.
    fn rebuild(&mut self) -> TestResult {
        for entry in fs::read_dir(self.outer.path())? {
            let path = entry?.path();
            if !path.ends_with("share") {
                remove(&path)?;
            }
        }
        // A request for the root may have changed that, too.
        let share = self.host("");
        std::os::unix::fs::chown(&share, Some(0), Some(0))?;
        fs::set_permissions(&share, fs::Permissions::from_mode(0o755))?;
        for entry in fs::read_dir(self.host(""))? {
            remove(&entry?.path())?;
        }
        fs::write(self.outer.path().join(OUTSIDE), "not for the guest")?;
        fs::create_dir(self.host("dir"))?;
        fs::create_dir(self.host("dir/sub"))?;
        fs::write(self.host("dir/file"), FILE)?;
        fs::write(self.host("other"), OTHER)?;
        symlink("dir/file", self.host("link"))?;
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(self.host("dir/file"), "user.a", b"AAAA", flags)?;
        self.before = told(self.outer.path())?;
        self.prepare()
    }

    /// A new session, in which the guest knows what there is and has it open.
    fn prepare(&mut self) -> TestResult {
        self.client.initialise(FuseConfig::default().init_flags)?;
        let rdwr = libc::O_RDWR.cast_unsigned();
        let queue = self.client.queue();
        // A reply begins with the number that was asked for.
        let [dir, other, link] = numbers(
            queue,
            ["dir", "other", "link"].map(|name| Request::lookup(ROOT_NODE, name)),
        )?;
        let of_dir = [
            Request::lookup(dir, "file"),
            Request::opendir(dir, 0),
            Request::open(other, rdwr),
        ];
        let [file, dir_handle, other_handle] = numbers(queue, of_dir)?;
        let [file_handle] = numbers(queue, [Request::open(file, rdwr)])?;
        let known = Known {
            dir,
            file,
            other,
            link,
            dir_handle,
            file_handle,
            other_handle,
        };
        self.known = known;
        self.words = vec![
            (u64::from_ne_bytes([b'A'; 8]), "content of file"),
            (u64::from_ne_bytes([b'B'; 8]), "content of other"),
        ];
        for name in ["", "dir", "dir/file", "other"] {
            let inode = fs::metadata(self.host(name))?.ino();
            self.words.push((inode, name));
        }
        Ok(())
    }

    fn run(&mut self, of: usize, number: usize, moment: Moment) -> Result<(Outcome, Seen)> {
        let case = cases(&self.known).swap_remove(of);
        let change = changes(of, &self.known).swap_remove(number);
        let request = &case.request;
        let bytes = bytes_of(request);
        let vring = self.client.queues[0].vring_mut();
        let memory = Arc::clone(vring.memory());
        self.watch.memory().write(0, &bytes);
        memory.write(self.data_gpa, &[b'C'; 64])?;
        memory.write(self.reply_gpa, &[0; REPLY_BYTES])?;
        let mut chain = vec![Segment::readable(self.gpa, u32::try_from(bytes.len())?)];
        if request.data_bytes > 0 {
            chain.push(Segment::readable(self.data_gpa, request.data_bytes));
        }
        let room = 16 + request.reply_args_bytes + request.reply_data_bytes;
        chain.push(Segment::writable(self.reply_gpa, room.max(256)));
        vring.ring.add(&chain, &[])?;
        let (used, seen) = self.watch.during(&change, moment, || -> Result<u32> {
            vring.publish()?;
            loop {
                if let Some(used) = vring.ring.pop_used()? {
                    return Ok(used.len);
                }
                vring.wait_used(PATIENCE)?;
            }
        });
        let reply = memory.read_vec(self.reply_gpa, REPLY_BYTES)?;
        let outcome = self.outcome(used?, &reply)?;
        if outcome.host != self.before || outcome.attributes != ATTRIBUTES {
            self.rebuild()?;
        } else {
            // Whatever was opened or locked is let go, too.
            self.prepare()?;
        }
        Ok((outcome, seen))
    }

    fn outcome(&mut self, used_bytes: u32, reply: &[u8]) -> Result<Outcome> {
        let words = reply[16..]
            .chunks_exact(8)
            .enumerate()
            .filter_map(|(at, word)| {
                let word = u64::from_ne_bytes(word.try_into().ok()?);
                let found = self.words.iter().find(|(known, _)| *known == word)?;
                Some((at, found.1))
            })
            .collect();
        let host = told(self.outer.path())?;
        let attributes = attributes(&self.host("dir/file"));
        let known = self.known;
        let still = [
            Request::getattr(known.dir, None),
            Request::getattr(known.file, None),
            Request::getattr(known.other, None),
            Request::getattr(known.link, None),
            Request::readdir(known.dir, known.dir_handle, 0, 512),
            Request::flush(known.file, known.file_handle, 1),
            Request::flush(known.other, known.other_handle, 1),
        ];
        let mut kept = vec![0; still.len()];
        self.client.queue().call_many(still, |number, reply| {
            kept[number] = reply.err().unwrap_or(0);
        })?;
        Ok(Outcome {
            errno: i32::from_le_bytes(reply[4..8].try_into()?),
            unique: u64::from_le_bytes(reply[8..16].try_into()?),
            used_bytes,
            words,
            host,
            attributes,
            kept,
        })
    }
}

fn remove(path: &Path) -> TestResult {
    if fs::symlink_metadata(path)?.is_dir() {
        fs::remove_dir_all(path)?;
    } else {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// The numbers that so many replies begin with.
fn numbers<const N: usize>(queue: &mut FuseQueue, requests: [Request; N]) -> Result<[u64; N]> {
    let mut numbers = [0; N];
    queue.call_many(requests, |at, reply| {
        let reply = reply.unwrap_or_default();
        numbers[at] = reply
            .first_chunk()
            .map_or(0, |first| u64::from_ne_bytes(*first));
    })?;
    assert!(!numbers.contains(&0), "{numbers:?}");
    Ok(numbers)
}

/// The extended attributes of a file, names and values.
fn attributes(path: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for name in ["user.a", "user.b"] {
        let mut value = [0; 64];
        if let Ok(bytes) = rustix::fs::getxattr(path, name, &mut value) {
            all.extend_from_slice(name.as_bytes());
            all.push(0);
            all.extend_from_slice(&value[..bytes]);
        }
    }
    all
}

fn told(dir: &Path) -> Result<BTreeMap<PathBuf, Told>> {
    /// A time that nobody has set is later.
    const LONG_AGO: i64 = 1 << 30;
    /// More is not looked at: a file may have become very long.
    const MOST_BYTES: usize = 256;
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        let content = if meta.is_file() {
            let mut start = vec![0; MOST_BYTES];
            let bytes =
                std::os::unix::fs::FileExt::read_at(&fs::File::open(&path)?, &mut start, 0)?;
            start.truncate(bytes);
            start
        } else if meta.is_symlink() {
            fs::read_link(&path)?.into_os_string().into_encoded_bytes()
        } else {
            Vec::new()
        };
        if meta.is_dir() {
            all.extend(told(&path)?);
        }
        let size = if meta.is_dir() { 0 } else { meta.size() };
        let set = if meta.mtime() < LONG_AGO {
            meta.mtime()
        } else {
            0
        };
        let of = (meta.mode(), (meta.uid(), meta.gid()), size, content, set);
        all.insert(path, of);
    }
    Ok(all)
}

#[test]
fn f5_15_request_of_a_folder_that_changes_between_any_two_reads_is_one_of_the_two() -> TestResult {
    if !watch::SUPPORTED {
        skip!("single steps of this processor are not known");
    }
    if !rustix::process::geteuid().is_root() {
        skip!("not root, who may be anybody");
    }
    let mut scene = Scene::start()?;
    assert!(
        scene
            .client
            .init
            .flags
            .contains(InitFlags::CREATE_SUPP_GROUP)
    );
    let (mut seen, mut requests) = (BTreeSet::new(), 0);
    for of in 0..cases(&scene.known).len() {
        let case = cases(&scene.known).swap_remove(of);
        let (opcode, count) = (case.request.opcode, changes(of, &scene.known).len());
        seen.insert(opcode);
        let walked = watch::walk(count, |number, moment| scene.run(of, number, moment));
        let walked = walked.map_err(|error| format!("operation {opcode}, case {of}: {error}"))?;
        requests += walked.requests;
        // The eight bytes of its number always tell, where there is a reply.
        let least = if has_reply(opcode) { 8 } else { 0 };
        assert!(walked.telling > least, "operation {opcode}: {walked:?}");
    }
    let all: BTreeSet<_> = (opcode::LOOKUP..=opcode::COPY_FILE_RANGE_64)
        .filter(|number| ![7, 19, opcode::BMAP, opcode::POLL].contains(number))
        .collect();
    assert_eq!(seen, all, "operations that are served");
    skip::say(&format!("{requests} requests that change"));
    let Scene {
        mut served, client, ..
    } = scene;
    drop(client);
    served.wait_end()?;
    Ok(())
}
