// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests that take for ever keep nobody else from being served: locks that are waited for, and
//! calls that the host's file system does not let go on. There are more of them than threads.

#[path = "isolation/mounts.rs"]
mod mounts;
#[path = "isolation/stalls.rs"]
mod stalls;

use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use ringside_common::management::ctl;
use ringside_frontend::fuse::flags::ROOT_NODE;
use ringside_frontend::fuse::types::LockIn;
use ringside_frontend::fuse::{
    FuseClient, FuseConfig, FuseError, FuseQueue, FuseResult, FuseSlot, Request,
};
use ringside_tests::fs_back_end::FsBackEnd;
use ringside_tests::fs_mount::{FsMount, MountOptions, needs};
use ringside_tests::host_fs::HostFs;
use ringside_tests::skip;

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type TestResult = Result<()>;

const QUEUES: usize = 2;
/// Slow requests on each queue.
const SLOW: usize = 40;
/// A file has so many bytes, all written.
const FILE_BYTES: usize = 5;

fn config() -> FuseConfig {
    let mut config = FuseConfig {
        request_queues: QUEUES,
        ..FuseConfig::default()
    };
    config.queue.depth = 64;
    config.queue.data_bytes = 16 << 10;
    config
}

/// A file that is open, and what is outstanding.
struct Scene {
    client: FuseClient,
    node: u64,
    handle: u64,
    /// By queue.
    slow: Vec<BTreeSet<usize>>,
    back_end: FsBackEnd,
}

impl Scene {
    fn new(dir: &Path, args: &[&str]) -> Result<Self> {
        Self::with(dir, args, &config())
    }

    fn with(dir: &Path, args: &[&str], config: &FuseConfig) -> Result<Self> {
        // One thread for each queue, so that it shows which of them wait.
        let args = [&["--threads", "3", "--xattr"], args].concat();
        let back_end = FsBackEnd::start(dir, &args)?;
        let mut client = FuseClient::connect(&back_end.socket(), config)?;
        let queue = client.queue();
        let (entry, opened) = queue.create(ROOT_NODE, "file", 2, 0o644)?;
        queue.write(entry.node, opened.handle, 0, &[7; FILE_BYTES])?;
        queue.mkdir(ROOT_NODE, "dir", 0o755)?;
        Ok(Self {
            client,
            node: entry.node,
            handle: opened.handle,
            slow: vec![BTreeSet::new(); QUEUES],
            back_end,
        })
    }

    /// Sends a request that will take long; returns where it is.
    fn send_slow(&mut self, on: usize, request: &Request) -> Result<FuseSlot> {
        let queue = &mut self.client.queues[on];
        let slot = queue.acquire()?;
        queue.submit(slot, request)?;
        queue.publish()?;
        self.slow[on].insert(slot.index());
        Ok(slot)
    }

    /// Sends a request and waits for it: nothing else may come meanwhile.
    fn call(&mut self, on: usize, request: &Request) -> FuseResult<Vec<u8>> {
        call_alone(&mut self.client.queues[on], request)
    }

    /// What changes nothing is answered on a queue.
    fn assert_served(&mut self, on: usize) -> TestResult {
        let (node, handle) = (self.node, self.handle);
        self.call(on, &Request::getattr(node, None))?;
        self.call(on, &Request::getattr(node, Some(handle)))?;
        assert_eq!(
            self.call(on, &Request::read(node, handle, 0, 100))?,
            [7; FILE_BYTES]
        );
        self.call(on, &Request::lookup(ROOT_NODE, "file"))?;
        self.call(on, &Request::lookup(ROOT_NODE, "dir"))?;
        let missing = self.call(on, &Request::lookup(ROOT_NODE, "none"));
        assert_eq!(errno(missing), Some(libc::ENOENT));
        self.call(on, &Request::statfs(ROOT_NODE))?;
        let opened = self.call(on, &Request::open(node, 2))?;
        let again = u64::from_le_bytes(opened[..8].try_into()?);
        self.call(on, &Request::release(node, again, 0))?;
        let opened = self.call(on, &Request::opendir(ROOT_NODE, 0))?;
        let dir = u64::from_le_bytes(opened[..8].try_into()?);
        let listed = self.call(on, &Request::readdirplus(ROOT_NODE, dir, 0, 4096))?;
        assert!(listed.len() > 2 * 128, "{} bytes", listed.len());
        self.call(on, &Request::releasedir(ROOT_NODE, dir))?;
        Ok(())
    }

    fn assert_all_served(&mut self) -> TestResult {
        for on in 0..QUEUES {
            self.assert_served(on)?;
        }
        // Its lookup above is taken back.
        self.client.forget(self.node, 1)?;
        Ok(())
    }

    /// Waits for a slow request of any queue; returns its errno, 0 for none.
    fn next(&mut self) -> Result<i32> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            for (queue, slow) in self.client.queues.iter_mut().zip(&mut self.slow) {
                if let Some(completion) = queue.poll()? {
                    assert!(slow.remove(&completion.slot.index()));
                    let reply = queue.reply(completion);
                    queue.release(completion.slot);
                    return Ok(errno(reply).unwrap_or(0));
                }
            }
            std::thread::yield_now();
        }
        Err("no request has ended".into())
    }

    /// Waits for all slow requests of a queue; returns their errnos, 0 for none.
    fn finish(&mut self, on: usize) -> Result<Vec<i32>> {
        let queue = &mut self.client.queues[on];
        let mut errnos = Vec::new();
        while !self.slow[on].is_empty() {
            let completion = queue.wait()?;
            assert!(self.slow[on].remove(&completion.slot.index()));
            errnos.push(errno(queue.reply(completion)).unwrap_or(0));
            queue.release(completion.slot);
        }
        Ok(errnos)
    }
}

fn call_alone(queue: &mut FuseQueue, request: &Request) -> FuseResult<Vec<u8>> {
    let slot = queue.acquire()?;
    queue.submit(slot, request)?;
    queue.publish()?;
    let completion = queue.wait()?;
    assert_eq!(completion.slot, slot, "a slow request was answered");
    let reply = queue.reply(completion);
    queue.release(slot);
    reply
}

fn errno<T>(result: std::result::Result<T, FuseError>) -> Option<i32> {
    result.err().and_then(|error| error.errno())
}

fn whole(handle: u64, owner: u64, flock: bool) -> LockIn {
    LockIn {
        handle,
        owner,
        start: 0,
        end: i64::MAX.cast_unsigned(),
        kind: 1,
        pid: 1,
        flock,
    }
}

/// The first of the file has both locks; on each queue others wait for one of them. Returns where
/// those of the second queue are.
fn wait_for_locks(scene: &mut Scene) -> Result<Vec<FuseSlot>> {
    let node = scene.node;
    for flock in [false, true] {
        let lock = whole(scene.handle, 1, flock);
        scene.call(0, &Request::setlk(node, &lock, true))?;
    }
    let mut last = Vec::new();
    for on in 0..QUEUES {
        last.clear();
        for at in 0..SLOW {
            let opened = scene.call(on, &Request::open(node, 2))?;
            let handle = u64::from_le_bytes(opened[..8].try_into()?);
            let owner = 100 * (on as u64 + 1) + at as u64;
            let lock = whole(handle, owner, at % 2 == 1);
            last.push(scene.send_slow(on, &Request::setlk(node, &lock, true))?);
        }
        // What is answered behind them tells that all have been taken.
        scene.call(on, &Request::getattr(node, None))?;
    }
    Ok(last)
}

#[test]
fn locks_waited_for_on_every_queue_keep_nobody_and_end_when_interrupted_or_free() -> TestResult {
    let share = tempfile::tempdir()?;
    let mut scene = Scene::new(share.path(), &["--posix-lock", "--flock"])?;
    let slots = wait_for_locks(&mut scene)?;
    scene.assert_all_served()?;

    // One of either kind is interrupted, and that one only.
    for slot in &slots[..2] {
        let unique = scene.client.queues[1].unique(*slot);
        scene.client.hiprio.send(&Request::interrupt(unique))?;
        let completion = scene.client.queues[1].wait()?;
        assert_eq!(completion.slot, *slot);
        let reply = scene.client.queues[1].reply(completion);
        assert_eq!(errno(reply), Some(libc::EINTR));
        scene.slow[1].remove(&slot.index());
        scene.client.queues[1].release(*slot);
    }
    scene.assert_all_served()?;

    // Each lock that is given up goes to one who waits for it.
    let (node, handle) = (scene.node, scene.handle);
    for flock in [false, true] {
        let free = LockIn {
            kind: 2,
            ..whole(handle, 1, flock)
        };
        scene.send_slow(0, &Request::setlk(node, &free, false))?;
        assert_eq!([scene.next()?, scene.next()?], [0, 0]);
    }
    let waiting: usize = scene.slow.iter().map(BTreeSet::len).sum();
    assert_eq!(waiting, QUEUES * SLOW - 4);
    scene.assert_all_served()?;
    Ok(())
}

#[test]
fn queue_that_stops_ends_its_locks_that_are_waited_for() -> TestResult {
    let share = tempfile::tempdir()?;
    let mut scene = Scene::new(share.path(), &["--posix-lock", "--flock"])?;
    wait_for_locks(&mut scene)?;
    // The first request queue is vring 1.
    scene.client.session.stop(1)?;
    assert_eq!(scene.finish(0)?, [libc::ENOLCK; SLOW]);
    // The other still waits, and is served.
    scene.assert_served(1)?;
    scene.client.session.stop(2)?;
    assert_eq!(scene.finish(1)?, [libc::ENOLCK; SLOW]);
    Ok(())
}

/// A stop does not wait for whoever has the lock, nor does `--stop-timeout` end it.
#[test]
fn f1_10_sigterm_while_locks_are_waited_for_ends_in_good_order() -> TestResult {
    let share = tempfile::tempdir()?;
    let args = ["--posix-lock", "--flock", "--stop-timeout", "20"];
    let mut scene = Scene::new(share.path(), &args)?;
    wait_for_locks(&mut scene)?;
    let status = scene
        .back_end
        .process_mut()
        .terminate(Duration::from_secs(15))?;
    assert!(status.success(), "{status}");
    for on in 0..QUEUES {
        assert_eq!(scene.finish(on)?, [libc::ENOLCK; SLOW]);
    }
    Ok(())
}

/// A guest waits for a place in the ring before it sends another request. So the one that gives a
/// lock back must find a place, however many wait for the lock.
fn lock_is_given_up_where_others_wait(
    client: &FuseConfig,
    at_once: usize,
    most: u64,
) -> TestResult {
    let share = tempfile::tempdir()?;
    let mut scene = Scene::with(share.path(), &["--posix-lock"], client)?;
    let (node, handle) = (scene.node, scene.handle);
    let held = whole(handle, 1, false);
    for round in 1..=2 {
        scene.call(0, &Request::setlk(node, &held, true))?;
        let first = 100 * round;
        let mut owners = first..;
        // The second time as many as may wait do so.
        for _ in 0..2 {
            while scene.slow[0].len() < at_once {
                let shared = LockIn {
                    kind: 0,
                    ..whole(handle, owners.next().ok_or("no owner")?, false)
                };
                scene.send_slow(0, &Request::setlk(node, &shared, true))?;
            }
            for _ in most..at_once as u64 {
                assert_eq!(scene.next()?, libc::ENOLCK);
            }
        }
        scene.assert_served(0)?;
        scene.client.forget(node, 1)?;

        // All of them get it, and others may wait in their stead.
        let free = LockIn { kind: 2, ..held };
        scene.send_slow(0, &Request::setlk(node, &free, false))?;
        assert_eq!(scene.finish(0)?, vec![0; usize::try_from(most)? + 1]);
        for owner in first..first + most {
            scene.call(0, &Request::flush(node, handle, owner))?;
        }
    }
    Ok(())
}

#[test]
fn lock_is_given_up_on_a_queue_where_more_wait_for_it_than_there_are_places() -> TestResult {
    let client = FuseConfig {
        queue_size: 16,
        ..config()
    };
    lock_is_given_up_where_others_wait(&client, 16, 8)
}

/// Each request takes three places.
#[test]
fn lock_is_given_up_on_a_queue_without_indirect_tables_where_many_wait_for_it() -> TestResult {
    let mut client = FuseConfig {
        queue_size: 32,
        ..config()
    };
    client.session = client.session.indirect(false);
    lock_is_given_up_where_others_wait(&client, 10, 5)
}

#[test]
fn lock_whose_interrupt_came_first_is_not_waited_for() -> TestResult {
    let share = tempfile::tempdir()?;
    let mut scene = Scene::new(share.path(), &["--posix-lock", "--flock"])?;
    let (node, handle) = (scene.node, scene.handle);
    let other = scene.call(0, &Request::open(node, 2))?;
    let other = u64::from_le_bytes(other[..8].try_into()?);
    for flock in [false, true] {
        let held = whole(handle, 1, flock);
        scene.call(0, &Request::setlk(node, &held, true))?;
        // What this queue sends next has the next number but one.
        let slot = scene.send_slow(0, &Request::getattr(node, None))?;
        assert_eq!(scene.next()?, 0);
        let unique = scene.client.queues[0].unique(slot) + 2;
        scene.client.hiprio.send(&Request::interrupt(unique))?;
        let wanted = whole(other, 2, flock);
        let slot = scene.send_slow(0, &Request::setlk(node, &wanted, true))?;
        assert_eq!(scene.client.queues[0].unique(slot), unique);
        assert_eq!(scene.next()?, libc::EINTR);
        // That was the end of it: the next one waits.
        scene.send_slow(0, &Request::setlk(node, &wanted, true))?;
        scene.assert_served(0)?;
        scene.client.forget(node, 1)?;
        let free = LockIn { kind: 2, ..held };
        scene.send_slow(0, &Request::setlk(node, &free, false))?;
        assert_eq!(scene.finish(0)?, [0, 0]);
    }
    Ok(())
}

#[test]
fn drain_does_not_wait_for_locks_that_only_the_guest_can_give_up() -> TestResult {
    let share = tempfile::tempdir()?;
    let own = tempfile::tempdir()?;
    let control = own.path().join("control.sock");
    let at = control.to_str().ok_or("a path that is no text")?;
    let args = ["--posix-lock", "--flock", "--control-socket", at];
    let mut scene = Scene::new(share.path(), &args)?;
    wait_for_locks(&mut scene)?;
    for _ in 0..2 {
        assert_eq!(ctl(&control, "drain", &[])?, "{\n  \"done\": true\n}");
        assert_eq!(ctl(&control, "resume", &[])?, "{\n  \"done\": true\n}");
        scene.assert_all_served()?;
    }
    // What was waited for comes as before.
    let free = LockIn {
        kind: 2,
        ..whole(scene.handle, 1, false)
    };
    scene.send_slow(0, &Request::setlk(scene.node, &free, false))?;
    assert_eq!([scene.next()?, scene.next()?], [0, 0]);
    // Drained, a queue stops all the same.
    assert_eq!(ctl(&control, "drain", &[])?, "{\n  \"done\": true\n}");
    scene.client.session.stop(2)?;
    assert!(scene.finish(1)?.contains(&libc::ENOLCK));
    Ok(())
}

#[test]
fn calls_that_a_frozen_file_system_holds_keep_nobody_who_changes_nothing() -> TestResult {
    let share = match HostFs::ext4(64 << 20) {
        Ok(share) => share,
        Err(error) => skip!("{error}"),
    };
    let mut scene = Scene::new(&share.path(), &[])?;
    let (node, handle) = (scene.node, scene.handle);
    // What is asked for meanwhile is in memory, as it is where a guest works.
    scene.assert_all_served()?;
    let frozen = share.freeze()?;
    for on in 0..QUEUES {
        for at in 0..SLOW as u64 {
            let request = Request::fallocate(node, handle, at * 4096, 4096, 1);
            scene.send_slow(on, &request)?;
        }
    }
    scene.assert_all_served()?;
    drop(frozen);
    for on in 0..QUEUES {
        assert_eq!(scene.finish(on)?, [0; SLOW]);
    }
    Ok(())
}

#[test]
fn changes_that_another_process_does_not_answer_keep_nobody() -> TestResult {
    if let Some(reason) = needs() {
        skip!("{reason}");
    }
    let share = match HostFs::ext4(64 << 20) {
        Ok(share) => share,
        Err(error) => skip!("{error}"),
    };
    // What is served by the one is shared by the other.
    let options = MountOptions::default();
    let mount = FsMount::start(&share.path(), &["--cache", "always"], &options)?;
    let mut scene = Scene::new(mount.path(), &[])?;
    scene.assert_all_served()?;
    let frozen = share.freeze()?;
    for on in 0..QUEUES {
        for at in 0..SLOW {
            let name = format!("{on}-{at}");
            scene.send_slow(on, &Request::mkdir(ROOT_NODE, name, 0o755, 0))?;
        }
    }
    // What the kernel has in memory needs nobody's answer.
    let node = scene.node;
    for on in 0..QUEUES {
        scene.call(on, &Request::getattr(node, None))?;
        scene.call(on, &Request::lookup(ROOT_NODE, "file"))?;
        scene.client.forget(node, 1)?;
    }
    drop(frozen);
    for on in 0..QUEUES {
        assert_eq!(scene.finish(on)?, [0; SLOW]);
    }
    Ok(())
}

#[test]
fn files_that_another_process_serves_keep_their_descriptor() -> TestResult {
    const FILES: usize = 100;
    if let Some(reason) = needs() {
        skip!("{reason}");
    }
    let share = tempfile::tempdir()?;
    for file in 0..FILES {
        std::fs::write(share.path().join(file.to_string()), "")?;
    }
    let options = MountOptions::default();
    let mount = FsMount::start(share.path(), &[], &options)?;
    let mut scene = Scene::new(mount.path(), &[])?;
    let before = scene.back_end.process().sample()?;
    for file in 0..FILES {
        scene.client.queue().lookup(ROOT_NODE, file.to_string())?;
    }
    let after = scene.back_end.process().sample()?;
    assert_eq!(after.fds, before.fds + FILES);
    Ok(())
}
