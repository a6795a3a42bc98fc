// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A mount that answers nothing holds up whoever asks it, and nobody else on the same queue.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use ringside_frontend::fuse::flags::SetAttrValid;
use ringside_frontend::fuse::types::{CopyFileRange, SetAttr};
use ringside_tests::process::Stopped;

use super::*;

/// Requests that hang at once: more than there are threads for a mount.
const HUNG: usize = 20;
/// Kinds of requests that the host's kernel answers without the file system: they are about two, or
/// ask for what it has.
const ANSWERED: [&str; 1] = ["COPY_FILE_RANGE to a local file"];

/// What a local request may take beside them: the bound is the issue's, the machine may be busy.
const SOON: Duration = Duration::from_millis(100);

/// A mount at a second place; gone on drop.
struct Bound<'a>(&'a Path);

impl<'a> Bound<'a> {
    fn new(from: &Path, to: &'a Path) -> Result<Self> {
        mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(Self(to))
    }
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

/// What a file system that another process serves has: the share of a back-end that keeps nothing.
fn served(dir: &Path) -> Result<FsMount> {
    for at in 0..HUNG {
        fs::write(dir.join(format!("file{at}")), "content")?;
        fs::write(dir.join(format!("gone{at}")), "")?;
    }
    fs::create_dir(dir.join("dir"))?;
    std::os::unix::fs::symlink("file0", dir.join("link"))?;
    let options = MountOptions::default();
    // 20 requests of one kind reach it together.
    Ok(FsMount::start(
        dir,
        &["--cache", "never", "--xattr"],
        &options,
    )?)
}

/// A guest of one queue that has two folders, one of which is on a mount that may hang.
struct TwoMounts {
    client: FuseClient,
    local: Opened,
    slow: Opened,
    /// Handles of the file on the mount, to be closed.
    handles: Vec<u64>,
    _back_end: FsBackEnd,
    mount: FsMount,
}

/// What is asked for, and the request that is the `n`-th of its kind.
pub(super) type Kind = (&'static str, Box<dyn Fn(usize) -> Request>);

/// What is known of a folder.
#[derive(Clone, Copy)]
pub(super) struct Opened {
    pub(super) root: u64,
    pub(super) file: u64,
    link: u64,
    pub(super) handle: u64,
    dir: u64,
}

fn handle_of(opened: &[u8]) -> Result<u64> {
    Ok(u64::from_le_bytes(opened[..8].try_into()?))
}

/// Learns what is in one of several folders.
pub(super) fn open_folder(queue: &mut FuseQueue, name: &str) -> Result<Opened> {
    let root = queue.lookup(ROOT_NODE, name)?.node;
    let file = queue.lookup(root, "file0")?.node;
    let link = queue.lookup(root, "link")?.node;
    Ok(Opened {
        root,
        file,
        link,
        handle: handle_of(&call_alone(queue, &Request::open(file, 2))?)?,
        dir: handle_of(&call_alone(queue, &Request::opendir(root, 0))?)?,
    })
}

impl TwoMounts {
    fn new(local: &Path, slow: &Path, args: &[&str]) -> Result<Self> {
        fs::write(local.join("file0"), "content")?;
        std::os::unix::fs::symlink("file0", local.join("link"))?;
        let mount = served(slow)?;
        let shares = [("local", local), ("slow", mount.path())];
        let args = [&["--xattr", "--threads", "2"], args].concat();
        let back_end = FsBackEnd::start_shares(&shares, &args)?;
        let mut config = FuseConfig::default();
        config.queue.depth = 64;
        config.queue.data_bytes = 16 << 10;
        let mut client = FuseClient::connect(&back_end.socket(), &config)?;
        let queue = client.queue();
        let local = open_folder(queue, "local")?;
        let slow = open_folder(queue, "slow")?;
        let mut handles = Vec::new();
        for _ in 0..HUNG {
            let opened = call_alone(queue, &Request::open(slow.file, 2))?;
            handles.push(handle_of(&opened)?);
        }
        Ok(Self {
            client,
            local,
            slow,
            handles,
            _back_end: back_end,
            mount,
        })
    }

    fn stop(&mut self) -> Result<Stopped> {
        Ok(Stopped::new(self.mount.back_end_mut().process().id())?)
    }

    /// Of each kind, the request that is the `at`-th of those that hang.
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn kinds(&self) -> Vec<Kind> {
        let (
            Opened {
                root,
                file,
                link,
                handle,
                dir,
            },
            local,
        ) = (self.slow, self.local);
        let handles = self.handles.clone();
        let name = |what: &str, at: usize| format!("{what}{at}");
        let copy = move |node_out, handle_out| CopyFileRange {
            handle_in: handle,
            node_out,
            handle_out,
            len_bytes: 100,
            ..CopyFileRange::default()
        };
        let mode = SetAttr {
            valid: SetAttrValid::MODE,
            mode: 0o600,
            ..SetAttr::default()
        };
        vec![
            (
                "LOOKUP",
                Box::new(move |at| Request::lookup(root, name("file", at))),
            ),
            ("GETATTR", Box::new(move |_| Request::getattr(file, None))),
            (
                "STATX",
                Box::new(move |_| Request::statx(file, None, 0, 0x7ff)),
            ),
            ("OPEN", Box::new(move |_| Request::open(file, 0))),
            ("OPENDIR", Box::new(move |_| Request::opendir(root, 0))),
            (
                "READDIR",
                Box::new(move |_| Request::readdir(root, dir, 0, 4096)),
            ),
            (
                "READDIRPLUS",
                Box::new(move |_| Request::readdirplus(root, dir, 0, 4096)),
            ),
            ("READLINK", Box::new(move |_| Request::readlink(link))),
            (
                "GETXATTR",
                Box::new(move |_| Request::getxattr(file, "user.x", 100)),
            ),
            (
                "LISTXATTR",
                Box::new(move |_| Request::listxattr(file, 100)),
            ),
            ("STATFS", Box::new(move |_| Request::statfs(root))),
            ("ACCESS", Box::new(move |_| Request::access(file, 4))),
            (
                "READ",
                Box::new(move |_| Request::read(file, handle, 0, 100)),
            ),
            (
                "LSEEK",
                Box::new(move |_| Request::lseek(file, handle, 0, 3)),
            ),
            ("SETATTR", Box::new(move |_| Request::setattr(file, &mode))),
            (
                "MKDIR",
                Box::new(move |at| Request::mkdir(root, name("new", at), 0o755, 0)),
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
                    Request::rename((root, name("gone", at)), (root, name("moved", at)), 0)
                }),
            ),
            (
                "RENAME from a local folder",
                Box::new(move |at| {
                    Request::rename((local.root, name("none", at)), (root, name("file", at)), 0)
                }),
            ),
            (
                "LINK from a local folder",
                Box::new(move |at| Request::link(local.file, root, name("across", at))),
            ),
            (
                "UNLINK",
                Box::new(move |at| Request::unlink(root, name("moved", at))),
            ),
            (
                "COPY_FILE_RANGE to a local file",
                Box::new(move |_| Request::copy_file_range(file, &copy(local.file, local.handle))),
            ),
            (
                "FSYNC",
                Box::new(move |_| Request::fsync(file, handle, false)),
            ),
            (
                "FALLOCATE",
                Box::new(move |_| Request::fallocate(file, handle, 0, 9, 1)),
            ),
            ("FLUSH", Box::new(move |_| Request::flush(file, handle, 1))),
            (
                "RELEASE",
                Box::new(move |at| Request::release(file, handles[at], 0)),
            ),
        ]
    }

    /// Whatever is local is answered, and soon.
    fn assert_local_is_served(&mut self, beside: &str, hung: &mut BTreeSet<usize>) -> TestResult {
        let Opened {
            root,
            file,
            link,
            handle,
            dir,
        } = self.local;
        let queue = &mut self.client.queues[0];
        let mut slowest = Duration::ZERO;
        for request in [
            Request::getattr(file, None),
            Request::lookup(root, "file0"),
            Request::read(file, handle, 0, 100),
            Request::readlink(link),
            Request::statfs(root),
            Request::readdirplus(root, dir, 0, 4096),
            Request::setattr(file, &SetAttr::default()),
            Request::fsync(file, handle, false),
            // The directory of both: not all that is in it answers.
            Request::getattr(ROOT_NODE, None),
            Request::readdirplus(ROOT_NODE, 0, 0, 4096),
            Request::statfs(ROOT_NODE),
        ] {
            let start = Instant::now();
            call_among(queue, &request, hung).map_err(|error| format!("{beside}: {error}"))?;
            slowest = slowest.max(start.elapsed());
        }
        // A machine with as many tests at once as processors forgets threads for longer than that.
        assert!(slowest < 10 * SOON, "{beside}: {slowest:?}");
        Ok(())
    }
}

#[test]
fn f4_4_requests_of_any_kind_that_hang_on_one_mount_keep_no_other_of_the_same_queue() -> TestResult
{
    if let Some(reason) = needs() {
        skip!("{reason}");
    }
    let (local, slow) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut scene = TwoMounts::new(local.path(), slow.path(), &[])?;
    // What the kernel answers by itself.
    let mut answered = Vec::new();
    for (kind, request) in scene.kinds() {
        let stopped = scene.stop()?;
        let mut hung = BTreeSet::new();
        let queue = &mut scene.client.queues[0];
        for at in 0..HUNG {
            let slot = queue.acquire()?;
            queue.submit(slot, &request(at))?;
            queue.publish()?;
            hung.insert(slot.index());
        }
        let served = scene.assert_local_is_served(kind, &mut hung);
        if hung.len() < HUNG {
            answered.push(kind);
        }
        // FORGET of what nobody answers for, and of what is local.
        scene.client.forget(scene.slow.link, 0)?;
        scene.client.forget(scene.local.file, 1)?;
        drop(stopped);
        served?;
        let queue = &mut scene.client.queues[0];
        while !hung.is_empty() {
            let completion = queue.wait()?;
            assert!(hung.remove(&completion.slot.index()), "{kind}");
            // Whether it succeeds is not what is asked here, but that it was the mount that said so.
            drop(queue.reply(completion));
            queue.release(completion.slot);
        }
    }
    assert_eq!(answered, ANSWERED);
    Ok(())
}

/// It is not known to be another mount before it is asked for.
#[test]
fn f4_4_lookup_that_goes_over_to_a_mount_that_hangs_keeps_nobody() -> TestResult {
    if let Some(reason) = needs() {
        skip!("{reason}");
    }
    let (local, slow) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let below = local.path().join("below");
    fs::create_dir(&below)?;
    fs::write(local.path().join("file"), "content")?;
    let mut mount = served(slow.path())?;
    let _bound = Bound::new(mount.path(), &below)?;
    let back_end = FsBackEnd::start(local.path(), &["--announce-submounts"])?;
    let mut config = FuseConfig::default();
    config.queue.depth = 64;
    let mut client = FuseClient::connect(&back_end.socket(), &config)?;
    let queue = client.queue();
    let dir = handle_of(&call_alone(queue, &Request::opendir(ROOT_NODE, 0))?)?;
    for round in 0..2 {
        let stopped = Stopped::new(mount.back_end_mut().process().id())?;
        let queue = client.queue();
        let mut hung = BTreeSet::new();
        for _ in 0..HUNG {
            let slot = queue.acquire()?;
            queue.submit(slot, &Request::lookup(ROOT_NODE, "below"))?;
            queue.publish()?;
            hung.insert(slot.index());
        }
        let served = [
            Request::lookup(ROOT_NODE, "file"),
            Request::readdirplus(ROOT_NODE, dir, 0, 4096),
            Request::getattr(ROOT_NODE, None),
        ]
        .iter()
        .try_for_each(|request| {
            // What the guest's lookups find of themselves is answered by the kernel's memory.
            call_among(queue, request, &mut hung)
        });
        drop(stopped);
        served.map_err(|error| format!("round {round}: {error}"))?;
        while !hung.is_empty() {
            let completion = queue.wait()?;
            assert!(hung.remove(&completion.slot.index()));
            queue.reply(completion)?;
            queue.release(completion.slot);
        }
        // Known now, it is another mount, and what is on it is found.
        let entry = queue.lookup(ROOT_NODE, "below")?;
        queue.lookup(entry.node, "file0")?;
    }
    Ok(())
}

/// As [`call_alone`], but some of those that hang may have been answered from memory.
pub(super) fn call_among(
    queue: &mut FuseQueue,
    request: &Request,
    hung: &mut BTreeSet<usize>,
) -> Result<()> {
    let slot = queue.acquire()?;
    queue.submit(slot, request)?;
    queue.publish()?;
    loop {
        let completion = queue.wait()?;
        let mine = completion.slot == slot;
        assert!(mine || hung.remove(&completion.slot.index()));
        let reply = queue.reply(completion);
        queue.release(completion.slot);
        if mine {
            return reply.map(drop).map_err(Into::into);
        }
    }
}

/// A guest that leaves has files open there.
#[test]
fn f4_4_end_of_a_session_waits_for_no_file_of_a_mount_that_hangs() -> TestResult {
    if let Some(reason) = needs() {
        skip!("{reason}");
    }
    let (local, slow) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let scene = TwoMounts::new(local.path(), slow.path(), &[])?;
    let TwoMounts {
        client,
        slow: opened,
        mut mount,
        _back_end: back_end,
        ..
    } = scene;
    let stopped = Stopped::new(mount.back_end_mut().process().id())?;
    let before = back_end.process().sample()?.fds;
    drop(client);
    let mut client = FuseClient::connect(&back_end.socket(), &FuseConfig::default())?;
    let queue = client.queue();
    let root = queue.lookup(ROOT_NODE, "local")?.node;
    queue.lookup(root, "file0")?;
    drop(stopped);
    let deadline = Instant::now() + Duration::from_secs(20);
    // The files of the first guest are closed once the mount answers.
    while back_end.process().sample()?.fds > before - HUNG {
        assert!(Instant::now() < deadline, "files are left open");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(errno(queue.getattr(opened.file, None)), Some(libc::ENOENT));
    Ok(())
}

/// Neither the first try of a lock, nor the question who has it, keeps others.
#[test]
fn f4_4_locks_of_a_file_on_a_mount_that_hangs_keep_nobody_and_are_taken_later() -> TestResult {
    if let Some(reason) = needs() {
        skip!("{reason}");
    }
    let (local, slow) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let args = ["--posix-lock", "--flock"];
    let mut scene = TwoMounts::new(local.path(), slow.path(), &args)?;
    let Opened { file, handle, .. } = scene.slow;
    let stopped = scene.stop()?;
    let mut hung = BTreeSet::new();
    let queue = &mut scene.client.queues[0];
    for owner in 0..HUNG as u64 {
        // All of them may have it together.
        let shared = LockIn {
            kind: 0,
            ..whole(handle, owner, false)
        };
        let slot = queue.acquire()?;
        queue.submit(slot, &Request::setlk(file, &shared, owner % 4 != 0))?;
        queue.publish()?;
        hung.insert(slot.index());
    }
    let served = scene.assert_local_is_served("SETLKW", &mut hung);
    drop(stopped);
    served?;
    assert_eq!(hung.len(), HUNG);
    let queue = &mut scene.client.queues[0];
    while !hung.is_empty() {
        let completion = queue.wait()?;
        assert!(hung.remove(&completion.slot.index()));
        queue.reply(completion)?;
        queue.release(completion.slot);
    }
    Ok(())
}
