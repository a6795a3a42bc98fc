// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests at random through a ring: sound ones, spoilt ones, noise, in chains of any shape. Each
//! that can be answered is, and what follows is served.
//!
//! The share is a small file system in memory, so that nothing the guest does fills a disk. With
//! `RINGSIDE_FULL_MATRIX=1` a million requests without a sandbox and a million with it, else fewer;
//! `RINGSIDE_FUZZ_SEED` repeats a run.

#[path = "fuzz/generator.rs"]
mod generator;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use ringside_frontend::fuse::flags::opcode;
use ringside_frontend::fuse::{Completion, Framing, FuseClient, FuseQueue};
use ringside_frontend::load::Rng;
use ringside_frontend::ring::desc_flag;
use ringside_fs::wire::limits::has_reply;
use ringside_tests::covering;
use ringside_tests::hostile::{PATIENCE, Result, TestResult, wait_until};
use ringside_tests::process::{Launch, Process, sample};
use ringside_tests::skip;
use rustix::fs::{IFlags, Mode, OFlags};

use crate::scene::{UNTOUCHED, config, serves};
use generator::Generator;

/// Requests between two clearings of the share, which is full by then.
const BETWEEN_CLEARINGS: u64 = 20_000;

/// A file system in memory.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let options = "size=16m,nr_inodes=4000,mode=755";
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        mount(
            Some("fuzz"),
            dir.path(),
            Some("tmpfs"),
            flags,
            Some(options),
        )?;
        Ok(Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Removes all there is, immutable or not.
    fn clear(&self) -> TestResult {
        make_mutable(self.path())?;
        for entry in fs::read_dir(self.path())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        rustix::fs::chmod(self.path(), Mode::from_raw_mode(0o755))?;
        Ok(())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // A file system left behind goes with the machine.
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// Takes the flags off that keep files from being removed.
fn make_mutable(path: &Path) -> TestResult {
    let is_dir = fs::symlink_metadata(path)?.is_dir();
    if is_dir || fs::symlink_metadata(path)?.is_file() {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        rustix::fs::ioctl_setflags(&file, IFlags::empty())?;
    }
    if is_dir {
        for entry in fs::read_dir(path)? {
            make_mutable(&entry?.path())?;
        }
    }
    Ok(())
}

/// What was sent from a slot.
#[derive(Clone, Copy, Debug)]
struct Sent {
    unique: u64,
    opcode: u32,
    node: u64,
    /// Where most requests have one.
    handle: u64,
    room: usize,
    /// Whether the request has a whole header, and its reply has room for one.
    is_answerable: bool,
    is_chain_sound: bool,
}

/// A queue that is driven by a thread of its own.
struct Fuzz<'a> {
    generator: Generator,
    queue: &'a mut FuseQueue,
    sent: BTreeMap<usize, Sent>,
    done: u64,
    answered: u64,
    succeeded: u64,
}

impl<'a> Fuzz<'a> {
    fn new(queue: &'a mut FuseQueue, seed: u64, number: u64) -> Self {
        Self {
            generator: Generator::new(Rng::new(seed + number), number),
            queue,
            sent: BTreeMap::new(),
            done: 0,
            answered: 0,
            succeeded: 0,
        }
    }

    /// Sends one request; false when the ring has no room for it.
    fn send(&mut self) -> Result<bool> {
        // One slot is left for what interrupts the others.
        if self.sent.len() + 1 >= usize::from(self.queue.config().depth) {
            return Ok(false);
        }
        let (bytes, room) = self.generator.request();
        self.send_bytes(&bytes, room)
    }

    fn send_bytes(&mut self, bytes: &[u8], room: usize) -> Result<bool> {
        let framing = match self.generator.rng.below(8) {
            0..3 => Framing::Kernel,
            3..5 => Framing::Contiguous,
            5 => Framing::Chunks(1 + u32::try_from(self.generator.rng.below(8))?),
            _ => Framing::Chunks(1 + u32::try_from(self.generator.rng.below(200))?),
        };
        let indirect = self.generator.rng.below(2) == 0;
        let queue = &mut *self.queue;
        let Ok(slot) = queue.acquire() else {
            return Ok(false);
        };
        queue.config_mut().framing = framing;
        queue.config_mut().indirect = indirect;
        if queue.submit_bytes(slot, bytes, room).is_err() {
            queue.release(slot);
            return Ok(false);
        }
        let number = |at: usize, len: usize| {
            let mut field = [0; 8];
            let part = bytes.get(at..at + len).unwrap_or_default();
            field[..part.len()].copy_from_slice(part);
            u64::from_le_bytes(field)
        };
        let sent = Sent {
            opcode: u32::try_from(number(4, 4))?,
            unique: number(8, 8),
            node: number(16, 8),
            handle: number(40, 8),
            room,
            is_answerable: bytes.len() >= 40 && room >= 16,
            is_chain_sound: true,
        };
        self.sent.insert(slot.index(), sent);
        Ok(true)
    }

    /// Spoils the chain that was added last.
    fn spoil_chain(&mut self) {
        let random = self.generator.rng.next_u64();
        let small = u16::try_from(random >> 32 & 0x1ff).unwrap_or(0);
        for sent in self.sent.values_mut() {
            sent.is_chain_sound = false;
        }
        let ring = &mut self.queue.vring_mut().ring;
        let slot = ring.next_avail().wrapping_sub(1);
        let mut at = ring.avail_slot(slot);
        for _ in 0..random & 3 {
            let descriptor = ring.desc(at);
            if descriptor.flags & desc_flag::NEXT != 0 {
                at = descriptor.next;
            }
        }
        ring.edit_desc(at, |d| match random >> 8 & 7 {
            0 => d.next = at,
            1 => (d.flags, d.next) = (d.flags | desc_flag::NEXT, small),
            2 => d.len = 0,
            3 => d.len = u32::MAX,
            4 => d.addr = 1 << 60 | random,
            5 => d.addr = u64::MAX - u64::from(small),
            6 => d.flags ^= desc_flag::INDIRECT,
            // A request that may be written to; never a buffer longer than it was.
            _ => d.flags ^= desc_flag::WRITE,
        });
    }

    /// Waits until all has come back. What waits for a lock is interrupted.
    fn drain(&mut self) -> TestResult {
        const STALLED: Duration = Duration::from_millis(5);
        let (start, mut last) = (Instant::now(), Instant::now());
        while self.queue.in_flight() > 0 {
            if let Some(completion) = self.queue.poll()? {
                self.check(completion)?;
                last = Instant::now();
                continue;
            }
            std::thread::yield_now();
            if last.elapsed() > STALLED {
                let waiting: Vec<_> = self.sent.values().copied().collect();
                let waits = |sent: &&Sent| sent.opcode == opcode::SETLKW;
                if let Some(sent) = waiting.iter().find(waits) {
                    let interrupt = self.generator.interrupt(sent.unique);
                    self.send_bytes(&interrupt, 0)?;
                    self.queue.publish()?;
                }
                last = Instant::now();
                if start.elapsed() > PATIENCE {
                    return Err(format!("no answer to {waiting:?}").into());
                }
            }
        }
        Ok(())
    }

    /// The answer is one, if there can be one, and nothing else is written.
    fn check(&mut self, completion: Completion) -> TestResult {
        let slot = completion.slot;
        let sent = self.sent.remove(&slot.index()).ok_or("nothing was sent")?;
        let used_len = completion.used_len;
        let queue = &mut *self.queue;
        let header = queue.reply_header(slot);
        let mut payload = [0; 144];
        queue.read_reply(slot, &mut payload);
        queue.release(slot);
        self.done += 1;
        let wrong = |what| Err(format!("{what}: {sent:?}, used {used_len}, {header:?}").into());
        if !sent.is_chain_sound {
            return Ok(());
        }
        if used_len as usize > sent.room {
            return wrong("more than there is room for");
        }
        if !sent.is_answerable || !has_reply(sent.opcode) {
            let is_quiet = used_len == 0 && (sent.room < 16 || header == UNTOUCHED);
            return if is_quiet { Ok(()) } else { wrong("a reply") };
        }
        let errno = -header.error;
        let is_error = (1..4096).contains(&errno) && used_len == 16;
        if header.unique != sent.unique
            || header.len_bytes != used_len
            || used_len < 16
            || !(errno == 0 || is_error)
        {
            return wrong("no sound reply");
        }
        self.answered += 1;
        self.generator
            .unlearn(errno, sent.opcode, sent.node, sent.handle);
        if errno == 0 {
            self.succeeded += 1;
            let used = payload.len().min(used_len as usize - 16);
            self.generator
                .learn(sent.opcode, sent.node, &payload[..used]);
        }
        Ok(())
    }

    fn run(&mut self, share: &Tmpfs, requests: u64) -> TestResult {
        let mut cleared = 0;
        while self.done < requests {
            if self.generator.rng.below(16) == 0 {
                if self.send()? {
                    self.spoil_chain();
                }
            } else {
                for _ in 0..=self.generator.rng.below(16) {
                    if !self.send()? {
                        break;
                    }
                }
            }
            self.queue.publish()?;
            self.drain()?;
            if self.done - cleared > BETWEEN_CLEARINGS {
                cleared = self.done;
                // Others go on filling it, so that there may always be something left.
                let _ = share.clear();
            }
        }
        Ok(())
    }
}

/// The process that serves: a sandbox puts it below others.
fn innermost(process: &Process) -> u32 {
    let mut pid = process.id();
    let child = |pid: u32| {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        children.ok()?.split_whitespace().next()?.parse().ok()
    };
    while let Some(inner) = child(pid) {
        pid = inner;
    }
    pid
}

fn start(share: &Tmpfs, args: &[&str]) -> Result<Process> {
    let launch = Launch::back_end("ringside-fs")?;
    let socket = launch.socket();
    let mut process = launch
        .arg("--shared-dir")
        .arg(share.path())
        .arg("--socket-path")
        .arg(&socket)
        .args(["--tag", "share", "--xattr", "--num-request-queues", "2"])
        .args(args)
        .spawn()?;
    process.wait_listening(PATIENCE)?;
    Ok(process)
}

/// A session that does what a guest should.
fn session(process: &Process, share: &Tmpfs) -> Result<FuseClient> {
    let mut client = FuseClient::connect(process.socket(), &config())?;
    for queue in &mut client.queues {
        serves(queue, share.path())?;
    }
    Ok(client)
}

/// Half of the requests on either queue, at once; all, those answered, and those with success.
fn both_queues(
    client: &mut FuseClient,
    share: &Tmpfs,
    seed: u64,
    requests: u64,
) -> Result<[u64; 3]> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(&mut client.queues)
            .map(|(number, queue)| {
                scope.spawn(move || {
                    let mut fuzz = Fuzz::new(queue, seed, number);
                    match fuzz.run(share, requests / 2) {
                        Ok(()) => Ok([fuzz.done, fuzz.answered, fuzz.succeeded]),
                        Err(error) => {
                            let done = fuzz.done;
                            Err(format!("seed {seed}, after {done} requests: {error}"))
                        }
                    }
                })
            })
            .collect();
        let mut sum = [0; 3];
        for thread in threads {
            let of = thread.join().map_err(|_panic| "a thread has panicked")??;
            for (sum, of) in sum.iter_mut().zip(of) {
                *sum += of;
            }
        }
        Ok(sum)
    })
}

fn fuzz(args: &[&str]) -> TestResult {
    let full = std::env::var_os(covering::FULL_VARIABLE).is_some();
    let requests = if full { 1_000_000 } else { 100_000 };
    let seed = std::env::var("RINGSIDE_FUZZ_SEED");
    let seed = seed.map_or_else(|_| Ok(u64::from(std::process::id())), |seed| seed.parse())?;
    let share = match Tmpfs::mount() {
        Ok(share) => share,
        Err(error) => skip!("no file system in memory: {error}"),
    };
    let mut process = start(&share, args)?;
    drop(session(&process, &share)?);
    let mut client = session(&process, &share)?;
    let server = innermost(&process);
    let fds = sample(server)?.fds;
    let [done, answered, succeeded] = both_queues(&mut client, &share, seed, requests)?;
    writeln!(
        std::io::stdout(),
        "seed {seed}: {done} requests, {answered} answered, {succeeded} of them with success"
    )?;
    if succeeded < requests / 10 || answered < requests / 2 {
        return Err("that was nothing but noise".into());
    }
    share.clear()?;
    still_serves(client, &share, server, fds)?;
    drop(session(&process, &share)?);
    if process.stderr().contains("panicked") {
        return Err(format!("a panic: {}", process.stderr()).into());
    }
    let status = process.terminate(PATIENCE)?;
    assert!(status.success(), "{status}");
    Ok(())
}

/// The session goes on once it begins anew, and what the guest had open is closed by that.
fn still_serves(mut client: FuseClient, share: &Tmpfs, server: u32, fds: usize) -> TestResult {
    for queue in &mut client.queues {
        queue.config_mut().framing = Framing::Kernel;
    }
    client.initialise(config().init_flags)?;
    for queue in &mut client.queues {
        serves(queue, share.path())?;
    }
    let now = || sample(server).map_or(usize::MAX, |sample| sample.fds);
    let settled = wait_until("as many descriptors as before", || Ok(now() <= fds));
    settled.map_err(|error| format!("{error}: {fds}, now {}", now()).into())
}

#[test]
fn ring_fuzz_without_a_sandbox_is_answered_and_harmless() -> TestResult {
    fuzz(&["--sandbox", "none"])
}

#[test]
fn ring_fuzz_with_locks_in_the_default_sandbox_is_answered_and_harmless() -> TestResult {
    fuzz(&[
        "--posix-lock",
        "--flock",
        "--posix-acl=auto",
        "--killpriv-v2",
    ])
}
