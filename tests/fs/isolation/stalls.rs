// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A mount of this machine that was quick stalls: its file system is frozen, and whoever changes
//! something waits in the kernel, where no signal reaches it; or its disk hangs, and so does whoever
//! wants what is not in memory. The queue goes on without it.

#[path = "disks.rs"]
mod disks;

use std::any::Any;
use std::fs;
use std::path::Path;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use ringside_frontend::fuse::flags::SetAttrValid;
use ringside_frontend::fuse::types::SetAttr;
use ringside_tests::process::{Stopped, thread_ids};
use rustix::process::Signal;

use super::mounts::{Kind, Opened, call_among, open_folder};
use super::*;

/// Requests that hang at once: more than there are threads for a mount.
const HUNG: usize = 20;
/// What a local request may take beside them. It is 100 ms on a machine that does nothing else.
const SOON: Duration = Duration::from_secs(1);
/// Longer than a mount has to be quick to be taken for that again.
const QUIET: Duration = Duration::from_millis(1200);
/// Long enough for what is not to come.
const A_WHILE: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);

/// A guest that has two folders, one of which is on a file system that can be frozen. Fields are
/// dropped in order: nothing waits for the back-end while something is frozen.
struct Scene {
    frozen: Option<Box<dyn Any>>,
    client: FuseClient,
    local: Opened,
    other: Opened,
    /// Slots of requests that are not answered yet, by queue.
    hung: Vec<BTreeSet<usize>>,
    back_end: FsBackEnd,
    share: HostFs,
    /// What its disk is a file of, where it is not frozen but its disk hangs.
    disk: Option<FsMount>,
}

fn prepare(dir: &Path) -> Result<()> {
    fs::write(dir.join("file0"), "content")?;
    std::os::unix::fs::symlink("file0", dir.join("link"))?;
    for at in 0..HUNG {
        fs::write(dir.join(format!("gone{at}")), "")?;
        fs::write(dir.join(format!("old{at}")), "")?;
        fs::create_dir(dir.join(format!("empty{at}")))?;
    }
    Ok(())
}

fn config(queues: usize) -> FuseConfig {
    let mut config = FuseConfig {
        request_queues: queues,
        ..FuseConfig::default()
    };
    config.queue.depth = 64;
    config.queue.data_bytes = 16 << 10;
    config
}

impl Scene {
    /// None where no file system can be frozen.
    fn new(
        local: &Path,
        queues: usize,
        args: &[&str],
    ) -> Result<std::result::Result<Self, String>> {
        let share = match HostFs::ext4(64 << 20) {
            Ok(share) => share,
            Err(error) => return Ok(Err(error.to_string())),
        };
        prepare(&share.path())?;
        Self::of(local, share, None, queues, args).map(Ok)
    }

    fn of(
        local: &Path,
        share: HostFs,
        disk: Option<FsMount>,
        queues: usize,
        args: &[&str],
    ) -> Result<Self> {
        prepare(local)?;
        let threads = queues.to_string();
        let args = [&["--xattr", "--threads", &threads], args].concat();
        let path = share.path();
        let shares = [("local", local), ("other", path.as_path())];
        let back_end = FsBackEnd::start_shares(&shares, &args)?;
        let mut client = FuseClient::connect(&back_end.socket(), &config(queues))?;
        let local = open_folder(client.queue(), "local")?;
        let other = open_folder(client.queue(), "other")?;
        Ok(Self {
            frozen: None,
            client,
            local,
            other,
            hung: vec![BTreeSet::new(); queues],
            back_end,
            share,
            disk,
        })
    }

    fn freeze(&mut self) -> TestResult {
        self.frozen = Some(match &mut self.disk {
            None => Box::new(self.share.freeze()?),
            Some(disk) => Box::new(Stopped::new(disk.back_end_mut().process().id())?),
        });
        Ok(())
    }

    fn thaw(&mut self) {
        self.frozen = None;
    }

    /// Data threads, with those that have not come back.
    fn threads(&self) -> Result<usize> {
        Ok(thread_ids(self.back_end.process().id(), "data-")?.len())
    }

    /// Waits until so many data threads are left.
    fn wait_for_threads(&self, wanted: usize) -> TestResult {
        let deadline = Instant::now() + PATIENCE;
        while self.threads()? != wanted {
            assert!(Instant::now() < deadline, "{} threads", self.threads()?);
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Sends as many of a kind as hang at once.
    fn send(&mut self, on: usize, request: &dyn Fn(usize) -> Request) -> TestResult {
        let queue = &mut self.client.queues[on];
        for at in 0..HUNG {
            let slot = queue.acquire()?;
            queue.submit(slot, &request(at))?;
            self.hung[on].insert(slot.index());
        }
        queue.publish()?;
        Ok(())
    }

    /// What does not change the frozen folder is answered, and soon; returns the longest it took.
    fn assert_served(&mut self, on: usize, beside: &str) -> Result<Duration> {
        let (local, other) = (self.local, self.other);
        let queue = &mut self.client.queues[on];
        let hung = &mut self.hung[on];
        let mut slowest = Duration::ZERO;
        // Where reads hang they have all threads of the mount.
        let of_other = if self.disk.is_none() { 3 } else { 0 };
        let mode = SetAttr {
            valid: SetAttrValid::MODE,
            mode: 0o640,
            ..SetAttr::default()
        };
        let of_local = [
            Request::getattr(local.file, None),
            Request::setattr(local.file, &mode),
            Request::read(local.file, local.handle, 0, 100),
            Request::lookup(local.root, "file0"),
            Request::getattr(ROOT_NODE, None),
            Request::readdirplus(ROOT_NODE, 0, 0, 4096),
        ];
        // Of the frozen folder, what is in memory.
        let in_memory = [
            Request::getattr(other.file, None),
            Request::read(other.file, other.handle, 0, 100),
            Request::lookup(other.root, "file0"),
        ];
        for request in of_local
            .into_iter()
            .chain(in_memory.into_iter().take(of_other))
        {
            let start = Instant::now();
            call_among(queue, &request, hung).map_err(|error| format!("{beside}: {error}"))?;
            slowest = slowest.max(start.elapsed());
        }
        assert!(slowest < SOON, "{beside}: {slowest:?}");
        Ok(slowest)
    }

    /// All that hung is answered, each request once, and the queue goes on.
    fn finish(&mut self, on: usize, what: &str) -> TestResult {
        let queue = &mut self.client.queues[on];
        let hung = &mut self.hung[on];
        while !hung.is_empty() {
            let completion = queue.wait()?;
            assert!(hung.remove(&completion.slot.index()), "{what}: twice");
            queue
                .reply(completion)
                .map_err(|error| format!("{what}: {error}"))?;
            queue.release(completion.slot);
        }
        self.client.queues[on].getattr(self.other.file, None)?;
        assert!(self.client.queues[on].poll()?.is_none(), "{what}: one more");
        Ok(())
    }

    /// 20 directories are made on the frozen file system, and others served.
    fn stall(&mut self, name: &str) -> TestResult {
        let root = self.other.root;
        self.freeze()?;
        self.send(0, &|at| {
            Request::mkdir(root, format!("{name}{at}"), 0o755, 0)
        })?;
        self.assert_served(0, name)?;
        assert_eq!(self.hung[0].len(), HUNG, "answered on a frozen file system");
        Ok(())
    }
}

/// What waits for a frozen file system: the request that is the `n`-th of its kind.
fn changes(other: Opened) -> Vec<Kind> {
    let mut all = changes_of_a_file(other);
    all.extend(changes_of_a_directory(other));
    all
}

fn name(what: &str, at: usize) -> String {
    format!("{what}{at}")
}

fn changes_of_a_file(other: Opened) -> Vec<Kind> {
    let Opened { file, handle, .. } = other;
    let mode = SetAttr {
        valid: SetAttrValid::MODE,
        mode: 0o600,
        ..SetAttr::default()
    };
    let size = |at: usize| SetAttr {
        valid: SetAttrValid::SIZE,
        size_bytes: 100 + at as u64,
        ..SetAttr::default()
    };
    vec![
        (
            "WRITE",
            Box::new(move |at| Request::write(file, handle, 5 * at as u64, 5)),
        ),
        ("SETATTR", Box::new(move |_| Request::setattr(file, &mode))),
        (
            "SETATTR of the size",
            Box::new(move |at| Request::setattr(file, &size(at))),
        ),
        (
            "SETXATTR",
            Box::new(move |at| Request::setxattr(file, name("user.x", at), b"1", 0, false)),
        ),
        (
            "REMOVEXATTR",
            Box::new(move |at| Request::removexattr(file, name("user.x", at))),
        ),
        (
            "FALLOCATE",
            Box::new(move |at| Request::fallocate(file, handle, 4096 * at as u64, 4096, 0)),
        ),
    ]
}

fn changes_of_a_directory(other: Opened) -> Vec<Kind> {
    let Opened { root, file, .. } = other;
    vec![
        (
            "MKDIR",
            Box::new(move |at| Request::mkdir(root, name("dir", at), 0o755, 0)),
        ),
        (
            "MKNOD",
            Box::new(move |at| Request::mknod(root, name("fifo", at), 0o10644, 0, 0)),
        ),
        (
            "SYMLINK",
            Box::new(move |at| Request::symlink(root, name("to", at), "file0")),
        ),
        (
            "CREATE",
            Box::new(move |at| Request::create(root, name("made", at), 2, 0o644, 0)),
        ),
        (
            "LINK",
            Box::new(move |at| Request::link(file, root, name("again", at))),
        ),
        (
            "RENAME",
            Box::new(move |at| {
                Request::rename((root, name("old", at)), (root, name("moved", at)), 0)
            }),
        ),
        (
            "UNLINK",
            Box::new(move |at| Request::unlink(root, name("gone", at))),
        ),
        (
            "RMDIR",
            Box::new(move |at| Request::rmdir(root, name("empty", at))),
        ),
    ]
}

macro_rules! scene {
    ($local:expr, $queues:expr, $args:expr) => {
        match Scene::new($local.path(), $queues, $args)? {
            Ok(scene) => scene,
            Err(error) => skip!("no file system of our own to freeze: {error}"),
        }
    };
}

#[test]
fn f4_4_changes_of_any_kind_that_a_frozen_mount_holds_keep_no_other_of_the_same_queue() -> TestResult
{
    let local = tempfile::tempdir()?;
    let mut scene = scene!(local, 1, &[]);
    let threads = scene.threads()?;
    let mut relieved = Vec::new();
    for (kind, request) in changes(scene.other) {
        scene.assert_served(0, kind)?;
        scene.freeze()?;
        scene.send(0, &request)?;
        let start = Instant::now();
        let local = scene.local.file;
        let mut hung = std::mem::take(&mut scene.hung[0]);
        let first = call_among(
            &mut scene.client.queues[0],
            &Request::getattr(local, None),
            &mut hung,
        );
        let took = start.elapsed();
        scene.hung[0] = hung;
        first?;
        let slowest = scene.assert_served(0, kind)?;
        let more = scene.threads()? - threads;
        let hung = scene.hung[0].len();
        scene.thaw();
        scene.finish(0, kind)?;
        skip::say(&format!(
            "{kind}: GETATTR beside {hung} took {took:?}, others {slowest:?}, {more} relieved"
        ));
        assert_eq!(hung, HUNG, "{kind}: answered on a frozen file system");
        assert!(took < SOON, "{kind}: {took:?}");
        // The disk of the other folder may be busy.
        assert!(more <= 2, "{kind}: {more} threads more");
        relieved.push(more);
        scene.wait_for_threads(threads)?;
        sleep(QUIET);
    }
    assert_ne!(
        relieved[0], 0,
        "the first was not served by the data thread"
    );
    Ok(())
}

/// A file whose name has gone goes with its last descriptor, which some kernels let wait.
#[test]
fn f4_4_forgets_of_what_has_gone_from_a_frozen_mount_keep_no_other_forget() -> TestResult {
    let local = tempfile::tempdir()?;
    let mut scene = scene!(local, 1, &[]);
    let threads = scene.threads()?;
    let (other, local) = (scene.other, scene.local);
    let mut nodes = Vec::new();
    for at in 0..HUNG {
        let name = format!("gone{at}");
        nodes.push(scene.client.queue().lookup(other.root, &name)?.node);
        scene.client.queue().unlink(other.root, &name)?;
    }
    nodes.push(local.file);
    scene.freeze()?;
    let start = Instant::now();
    let mut sent = Vec::new();
    for node in nodes {
        let queue = &mut scene.client.hiprio;
        let slot = queue.acquire()?;
        queue.submit(slot, &Request::forget(node, 1))?;
        queue.publish()?;
        sent.push(slot.index());
    }
    let mut answered = Vec::new();
    while answered.last() != sent.last() {
        answered.push(scene.client.hiprio.wait()?.slot.index());
    }
    let took = start.elapsed();
    skip::say(&format!("FORGET: the last of {} took {took:?}", sent.len()));
    scene.thaw();
    while answered.len() < sent.len() {
        answered.push(scene.client.hiprio.wait()?.slot.index());
    }
    assert!(scene.client.hiprio.poll()?.is_none());
    answered.sort_unstable();
    sent.sort_unstable();
    assert_eq!(answered, sent);
    assert!(took < SOON, "{took:?}");
    scene.wait_for_threads(threads)
}

#[test]
fn f4_4_every_queue_goes_on_when_all_of_them_stall_again_and_again() -> TestResult {
    let local = tempfile::tempdir()?;
    let mut scene = scene!(local, 2, &[]);
    let threads = scene.threads()?;
    let root = scene.other.root;
    for round in 0..4 {
        scene.freeze()?;
        for on in 0..2 {
            scene.send(on, &|at| {
                Request::mkdir(root, format!("{round}-{on}-{at}"), 0o755, 0)
            })?;
        }
        for on in 0..2 {
            scene.assert_served(on, "two queues")?;
        }
        // One for each mount and data thread: where the disk is busy, the other folder may stall, too.
        let more = scene.threads()? - threads;
        assert!(more <= 4, "{more} threads more");
        assert!(scene.hung.iter().all(|hung| hung.len() == HUNG));
        scene.thaw();
        for on in 0..2 {
            scene.finish(on, "two queues")?;
        }
        scene.wait_for_threads(threads)?;
        if round % 2 == 1 {
            // It is quick again; or, in the other rounds, it stalls once more before that.
            sleep(QUIET);
        }
    }
    for name in ["0-0-0", "3-1-19"] {
        assert!(scene.share.path().join(name).is_dir(), "{name}");
    }
    Ok(())
}

#[test]
fn f4_4_drain_waits_for_what_a_frozen_mount_holds_and_not_longer() -> TestResult {
    let local = tempfile::tempdir()?;
    let own = tempfile::tempdir()?;
    let control = own.path().join("control.sock");
    let at = control.to_str().ok_or("a path that is no text")?;
    let mut scene = scene!(local, 1, &["--control-socket", at]);
    scene.stall("drained")?;
    scope(|threads| -> TestResult {
        let drain =
            threads.spawn(|| ctl(&control, "drain", &[]).map_err(|error| error.to_string()));
        sleep(A_WHILE);
        assert!(!drain.is_finished(), "drained beside what hangs");
        scene.thaw();
        let drained = drain.join().map_err(|_panic| "drain")??;
        assert_eq!(drained, "{\n  \"done\": true\n}");
        Ok(())
    })?;
    assert_eq!(ctl(&control, "resume", &[])?, "{\n  \"done\": true\n}");
    scene.finish(0, "drained")?;
    scene.assert_served(0, "drained").map(drop)
}

#[test]
fn f4_4_vring_stops_when_what_a_frozen_mount_holds_is_answered() -> TestResult {
    let local = tempfile::tempdir()?;
    let mut scene = scene!(local, 1, &[]);
    scene.stall("stopped")?;
    let frozen = scene.frozen.take();
    let session = &mut scene.client.session;
    scope(|threads| -> TestResult {
        let stop = threads.spawn(|| session.stop(1).map_err(|error| error.to_string()));
        sleep(A_WHILE);
        let early = stop.is_finished();
        drop(frozen);
        stop.join().map_err(|_panic| "stop")??;
        assert!(!early, "stopped beside what hangs");
        Ok(())
    })?;
    // Nothing is left to come.
    let queue = &mut scene.client.queues[0];
    while let Some(completion) = queue.poll()? {
        assert!(scene.hung[0].remove(&completion.slot.index()), "twice");
        queue.reply(completion)?;
    }
    assert!(scene.hung[0].is_empty(), "{:?}", scene.hung);
    Ok(())
}

#[test]
fn f4_4_front_end_that_leaves_a_frozen_mount_is_followed_by_the_next_when_it_thaws() -> TestResult {
    let local = tempfile::tempdir()?;
    let mut scene = scene!(local, 1, &[]);
    scene.stall("left")?;
    let Scene {
        frozen,
        client,
        back_end,
        share,
        ..
    } = scene;
    drop(client);
    let socket = back_end.socket();
    scope(|threads| -> TestResult {
        let connect =
            || FuseClient::connect(&socket, &config(1)).map_err(|error| error.to_string());
        let next = threads.spawn(connect);
        sleep(A_WHILE);
        let early = next.is_finished();
        drop(frozen);
        let mut client = next.join().map_err(|_panic| "connect")??;
        assert!(!early, "served beside what hangs");
        let root = client.queue().lookup(ROOT_NODE, "other")?.node;
        for at in 0..HUNG {
            client.queue().lookup(root, format!("left{at}"))?;
        }
        client.queue().mkdir(root, "after", 0o755)?;
        Ok(())
    })?;
    assert!(share.path().join("after").is_dir());
    Ok(())
}

#[test]
fn f4_4_memory_table_changes_beside_what_a_frozen_mount_holds() -> TestResult {
    let local = tempfile::tempdir()?;
    let mut scene = scene!(local, 1, &[]);
    let memory = std::sync::Arc::clone(scene.client.session.memory());
    scene.stall("table")?;
    for _ in 0..3 {
        scene.client.session.set_mem_table(&memory)?;
        scene.assert_served(0, "another memory table")?;
    }
    assert_eq!(scene.hung[0].len(), HUNG);
    scene.thaw();
    scene.finish(0, "another memory table")?;
    scene.assert_served(0, "another memory table").map(drop)
}

#[test]
fn f4_4_process_told_to_end_beside_a_frozen_mount_gives_up_in_time_with_its_own_status()
-> TestResult {
    let local = tempfile::tempdir()?;
    let mut scene = scene!(local, 1, &["--stop-timeout", "2"]);
    scene.stall("ended")?;
    scene.back_end.process().signal(Signal::TERM)?;
    let deadline = Instant::now() + PATIENCE;
    while !scene
        .back_end
        .process()
        .stderr()
        .contains("(--stop-timeout): this process ends")
    {
        assert!(
            Instant::now() < deadline,
            "{}",
            scene.back_end.process().stderr()
        );
        sleep(Duration::from_millis(10));
    }
    // A thread that is in the kernel keeps its process until it comes back.
    scene.thaw();
    let status = scene.back_end.process_mut().wait_exit(PATIENCE)?;
    assert_eq!(
        status.code(),
        Some(4),
        "{}",
        scene.back_end.process().stderr()
    );
    Ok(())
}

#[test]
fn f4_4_process_told_to_end_when_a_mount_has_thawed_ends_well() -> TestResult {
    let local = tempfile::tempdir()?;
    let mut scene = scene!(local, 1, &[]);
    scene.stall("ended")?;
    scene.back_end.process().signal(Signal::TERM)?;
    sleep(A_WHILE);
    scene.thaw();
    let status = scene.back_end.process_mut().wait_exit(PATIENCE)?;
    assert!(status.success(), "{}", scene.back_end.process().stderr());
    for at in 0..HUNG {
        assert!(
            scene.share.path().join(format!("ended{at}")).is_dir(),
            "{at}"
        );
    }
    Ok(())
}
