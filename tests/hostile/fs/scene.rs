// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A share with a guest, something outside of it, and the check after each case.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use ringside_frontend::fuse::flags::ROOT_NODE;
use ringside_frontend::fuse::{
    Framing, FuseClient, FuseConfig, FuseError, FuseQueue, ReplyHeader, Request,
};
use ringside_frontend::raw::RawClient;
use ringside_tests::fs_back_end::{FsBackEnd, FsProgram};
use ringside_tests::hostile::{PATIENCE, Result, TestResult, wait_until};
use ringside_tests::process::thread_ids;

/// What is in the file outside of the share.
pub(crate) const SECRET: &[u8] = b"not for the guest";
/// Where no reply was written.
pub(crate) const UNTOUCHED: ReplyHeader = ReplyHeader {
    len_bytes: 0xa5a5_a5a5,
    error: 0xa5a5_a5a5_u32.cast_signed(),
    unique: 0xa5a5_a5a5_a5a5_a5a5,
};

/// A directory that is shared, in one that is not.
#[derive(Debug)]
pub(crate) struct Scene {
    outer: tempfile::TempDir,
    back_end: FsBackEnd,
    before: Held,
}

/// What the process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    fds: usize,
    threads: usize,
}

/// What is told of a file: inode, mode, owners, links, bytes, times of the content and of the inode,
/// and the content or the target.
pub(crate) type Told = (u64, u32, (u32, u32), u64, u64, [i64; 4], Vec<u8>);

impl Scene {
    /// No sandbox around the process, so that only its own care protects what is outside.
    pub(crate) fn start(args: &[&str]) -> Result<Self> {
        let outer = tempfile::tempdir()?;
        fs::create_dir(outer.path().join("share"))?;
        fs::write(outer.path().join("x"), SECRET)?;
        fs::create_dir(outer.path().join("outside"))?;
        fs::write(outer.path().join("outside/secret"), SECRET)?;
        let own = ["--xattr", "--cache", "never", "--num-request-queues", "2"];
        let back_end = FsBackEnd::start_program(
            FsProgram::Ringside,
            &outer.path().join("share"),
            &[&own, args].concat(),
        )?;
        let mut scene = Self {
            outer,
            before: Held { fds: 0, threads: 0 },
            back_end,
        };
        // What a first session allocates for good is not the case's.
        let mut client = scene.client()?;
        scene.serves(&mut client)?;
        drop(client);
        let silent = scene.silent()?;
        wait_until("the threads of the first session gone", || {
            scene.before = scene.held()?;
            Ok(scene.before.threads == 1)
        })?;
        drop(silent);
        Ok(scene)
    }

    /// A guest with two request queues.
    pub(crate) fn client(&self) -> Result<FuseClient> {
        self.client_as(&config())
    }

    pub(crate) fn client_as(&self, config: &FuseConfig) -> Result<FuseClient> {
        Ok(FuseClient::connect(&self.back_end.socket(), config)?)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.back_end.socket()
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        self.back_end.process().stderr()
    }

    /// A path in the share.
    pub(crate) fn host(&self, name: &str) -> PathBuf {
        self.outer.path().join("share").join(name)
    }

    /// A path beside the share.
    pub(crate) fn outside(&self, name: &str) -> PathBuf {
        self.outer.path().join(name)
    }

    /// All that is beside the share, as it stands.
    pub(crate) fn outside_told(&self) -> Result<BTreeMap<PathBuf, Told>> {
        let mut told = BTreeMap::new();
        tell(self.outer.path(), Some(&self.host("")), &mut told)?;
        Ok(told)
    }

    /// The same with what is in the share.
    pub(crate) fn all_told(&self) -> Result<BTreeMap<PathBuf, Told>> {
        let mut told = BTreeMap::new();
        tell(self.outer.path(), None, &mut told)?;
        Ok(told)
    }

    /// Both queues do their work.
    pub(crate) fn serves(&self, client: &mut FuseClient) -> TestResult {
        for queue in &mut client.queues {
            serves(queue, &self.host(""))?;
        }
        Ok(())
    }

    /// The common check after a case: the hostile session goes on, a new one works, the process
    /// holds no more than before, and ends when it is told to.
    pub(crate) fn check(self, mut client: FuseClient) -> TestResult {
        self.serves(&mut client)?;
        drop(client);
        self.check_gone()
    }

    /// The same when the hostile session is over.
    pub(crate) fn check_gone(mut self) -> TestResult {
        let mut client = self.client()?;
        self.serves(&mut client)?;
        drop(client);
        self.holds_no_more()?;
        let stderr = self.back_end.process().stderr();
        if stderr.contains("panicked") {
            return Err(format!("a panic: {stderr}").into());
        }
        let status = self.back_end.process_mut().terminate(PATIENCE)?;
        if !status.success() {
            return Err(format!("ended with {status}: {stderr}").into());
        }
        Ok(())
    }

    /// When all sessions are over, the process holds what it held before the case.
    pub(crate) fn holds_no_more(&self) -> TestResult {
        // Its being served shows that the session before is over.
        let silent = self.silent()?;
        // Threads end a moment after they are told to.
        let settled = wait_until("descriptors and threads as before", || {
            Ok(self.held()? == self.before)
        });
        settled.map_err(|e| format!("{e}: {:?}, now {:?}", self.before, self.held()))?;
        drop(silent);
        Ok(())
    }

    fn silent(&self) -> Result<RawClient> {
        let silent = RawClient::connect(&self.back_end.socket())?;
        if !silent.is_alive(PATIENCE) {
            return Err("a new front-end is not served".into());
        }
        Ok(silent)
    }

    /// The thread that waits for locks is not counted: it stays, once there was one to wait for.
    fn held(&self) -> Result<Held> {
        let process = self.back_end.process();
        let sample = process.sample()?;
        Ok(Held {
            fds: sample.fds,
            threads: sample.threads - thread_ids(process.id(), "fs-locks")?.len(),
        })
    }
}

fn tell(dir: &Path, without: Option<&Path>, told: &mut BTreeMap<PathBuf, Told>) -> TestResult {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if without.is_some_and(|without| without.components().eq(path.components())) {
            continue;
        }
        let meta = fs::symlink_metadata(&path)?;
        let content = if meta.is_file() {
            fs::read(&path)?
        } else if meta.is_symlink() {
            fs::read_link(&path)?.into_os_string().into_encoded_bytes()
        } else {
            Vec::new()
        };
        let times = [
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
        ];
        let of = (
            meta.ino(),
            meta.mode(),
            (meta.uid(), meta.gid()),
            meta.nlink(),
            meta.size(),
            times,
            content,
        );
        if meta.is_dir() {
            tell(&path, without, told)?;
        }
        told.insert(path, of);
    }
    Ok(())
}

/// Whether devices and foreign owners can be made here, and files opened by handles.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Two request queues.
pub(crate) fn config() -> FuseConfig {
    let mut config = FuseConfig {
        request_queues: 2,
        ..FuseConfig::default()
    };
    config.queue.timeout = PATIENCE;
    config.queue.framing = Framing::Kernel;
    config
}

/// A file is made, written, read back and removed, more than a hundred requests in all, and the
/// host sees the same.
pub(crate) fn serves(queue: &mut FuseQueue, share: &Path) -> TestResult {
    const BLOCK: usize = 5000;
    const ROUNDS: u64 = 32;
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("verified-{number}");
    let flags = libc::O_RDWR.cast_unsigned();
    let (entry, opened) = queue.create(ROOT_NODE, &name, flags, 0o600)?;
    let mut all = Vec::new();
    for round in 0..ROUNDS {
        let block: Vec<u8> = (number * 1000 + round..)
            .map(|n| n.to_le_bytes()[0].wrapping_mul(167))
            .take(BLOCK)
            .collect();
        let offset = round * BLOCK as u64;
        let written = queue.write(entry.node, opened.handle, offset, &block)?;
        assert_eq!(written as usize, BLOCK);
        let size = u32::try_from(BLOCK)?;
        let back = queue.read(entry.node, opened.handle, offset, size)?;
        assert!(back == block, "round {round} reads something else");
        all.extend(block);
        let (attr, _) = queue.getattr(entry.node, None)?;
        assert_eq!(attr.size_bytes, all.len() as u64);
        assert_eq!(queue.lookup(ROOT_NODE, &name)?.node, entry.node);
    }
    assert!(
        fs::read(share.join(&name))? == all,
        "the host sees something else"
    );
    queue.release_file(entry.node, opened.handle)?;
    queue.unlink(ROOT_NODE, &name)?;
    queue.forget(entry.node, ROUNDS + 1)?;
    assert_eq!(errno(queue.lookup(ROOT_NODE, &name)), libc::ENOENT);
    Ok(())
}

/// What the device answered; 0 for a success, -1 where that was no sound answer.
pub(crate) fn errno<T>(result: std::result::Result<T, FuseError>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.errno().unwrap_or(-1),
    }
}

/// The bytes of a request, with the length that they have.
pub(crate) fn bytes_of(queue: &FuseQueue, request: &Request, unique: u64) -> Vec<u8> {
    let len_bytes = u32::try_from(40 + request.args.len()).unwrap_or(u32::MAX);
    let mut bytes = request.header(len_bytes, unique, queue.caller).to_vec();
    bytes.extend_from_slice(&request.args);
    bytes
}

/// Sends any bytes with any room for a reply, and returns what the header of the reply says and
/// what the used element does.
pub(crate) fn raw(
    queue: &mut FuseQueue,
    bytes: &[u8],
    reply_bytes: usize,
) -> Result<(ReplyHeader, u32)> {
    let slot = queue.acquire()?;
    queue.submit_bytes(slot, bytes, reply_bytes)?;
    queue.publish()?;
    let completion = queue.wait()?;
    let header = queue.reply_header(slot);
    queue.release(slot);
    Ok((header, completion.used_len))
}

/// The reply that says an errno and nothing else.
pub(crate) fn refusal(unique: u64, errno: i32) -> (ReplyHeader, u32) {
    let header = ReplyHeader {
        len_bytes: 16,
        error: -errno,
        unique,
    };
    (header, 16)
}
