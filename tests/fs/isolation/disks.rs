// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk of this machine hangs: who wants what is not in memory waits, whoever asks for something
//! else does not. The disk is a file of a file system whose server is stopped.

use super::*;

impl Scene {
    /// One whose disk can be made to hang; none where there can be no such disk.
    fn on_disk(local: &Path, dir: &Path) -> Result<std::result::Result<Self, String>> {
        let content = tempfile::tempdir()?;
        let folder = content.path().join("share");
        fs::create_dir(&folder)?;
        prepare(&folder)?;
        fs::write(folder.join("long"), vec![7; HUNG << 20])?;
        for at in 0..HUNG {
            for kind in ["listed", "searched"] {
                fs::create_dir(folder.join(name(kind, at)))?;
                fs::write(folder.join(name(kind, at)).join("there"), "")?;
            }
        }
        if let Err(error) = HostFs::make_ext4(&dir.join("image"), 64 << 20, content.path()) {
            return Ok(Err(error.to_string()));
        }
        let options = MountOptions::default();
        let disk = FsMount::start(dir, &["--cache", "never"], &options)?;
        let share = match HostFs::of_image(&disk.join("image")) {
            Ok(share) => share,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let mut scene = Self::of(local, share, Some(disk), 1, &[])?;
        // It is in memory.
        let other = scene.other;
        let queue = scene.client.queue();
        queue.read(other.file, other.handle, 0, 100)?;
        Ok(Ok(scene))
    }
}

/// What is to be read from the disk: the request that is the `n`-th of its kind.
fn reads(queue: &mut FuseQueue, other: Opened) -> Result<Vec<Kind>> {
    let long = queue.lookup(other.root, "long")?.node;
    let handle = queue.open(long, 0)?.handle;
    let mut listed = Vec::new();
    let mut searched = Vec::new();
    for at in 0..HUNG {
        let node = queue.lookup(other.root, name("listed", at))?.node;
        listed.push((node, queue.opendir(node)?.handle));
        searched.push(queue.lookup(other.root, name("searched", at))?.node);
    }
    Ok(vec![
        (
            "READ",
            Box::new(move |at| Request::read(long, handle, (at as u64) << 20, 4096)),
        ),
        (
            "READDIR",
            Box::new(move |at| Request::readdir(listed[at].0, listed[at].1, 0, 4096)),
        ),
        (
            "LOOKUP",
            Box::new(move |at| Request::lookup(searched[at], "there")),
        ),
    ])
}

macro_rules! scene_on_disk {
    ($local:expr, $dir:expr) => {{
        if let Some(reason) = needs() {
            skip!("{reason}");
        }
        match Scene::on_disk($local.path(), $dir.path())? {
            Ok(scene) => scene,
            Err(error) => skip!("no file system on a disk of our own: {error}"),
        }
    }};
}

#[test]
fn f4_4_reads_of_a_disk_that_hangs_keep_no_other_of_the_same_queue() -> TestResult {
    let (local, dir) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut scene = scene_on_disk!(local, dir);
    let threads = scene.threads()?;
    let other = scene.other;
    for (kind, request) in reads(scene.client.queue(), other)? {
        scene.freeze()?;
        scene.send(0, &request)?;
        let slowest = scene.assert_served(0, kind)?;
        let hung = scene.hung[0].len();
        // A new thread of the mount is called after the data thread until it has run.
        let deadline = Instant::now() + PATIENCE;
        while scene.threads()? > threads + 2 {
            assert!(
                Instant::now() < deadline,
                "{kind}: {} threads",
                scene.threads()?
            );
            sleep(Duration::from_millis(5));
        }
        let more = scene.threads()? - threads;
        scene.thaw();
        scene.finish(0, kind)?;
        skip::say(&format!(
            "{kind}: others beside {hung} took {slowest:?}, {more} relieved"
        ));
        assert_eq!(hung, HUNG, "{kind}: answered by a disk that hangs");
        scene.wait_for_threads(threads)?;
        sleep(QUIET);
    }
    Ok(())
}

/// Files without a name that a process has open on the disk.
fn nameless(pid: u32) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // It may have been closed since.
        let target = fs::read_link(entry?.path()).unwrap_or_default();
        let target = target.to_string_lossy();
        count += usize::from(target.contains("/gone") && target.ends_with(" (deleted)"));
    }
    Ok(count)
}

/// Attributes of a file of each share.
fn look_at_both(queue: &mut FuseQueue) -> TestResult {
    for name in ["local", "other"] {
        let folder = queue.lookup(ROOT_NODE, name)?.node;
        let file = queue.lookup(folder, "file0")?.node;
        queue.getattr(file, None)?;
    }
    Ok(())
}

/// What such a file has is given back when it is closed: for that its disk is asked what it has.
#[test]
fn f4_4_front_end_that_leaves_nameless_files_of_a_disk_that_hangs_is_followed_at_once() -> TestResult
{
    let (local, dir) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut scene = scene_on_disk!(local, dir);
    let root = scene.other.root;
    for at in 0..HUNG {
        let queue = scene.client.queue();
        let node = queue.lookup(root, name("gone", at))?.node;
        queue.open(node, 2)?;
        queue.unlink(root, name("gone", at))?;
    }
    scene.freeze()?;
    let Scene {
        frozen,
        client,
        mut back_end,
        share: _share,
        ..
    } = scene;
    let mut client = Some(client);
    let mut slowest = Duration::ZERO;
    let mut beside = || -> Result<usize> {
        for _ in 0..3 {
            drop(client.take());
            let start = Instant::now();
            let next = FuseClient::connect(&back_end.socket(), &config(1))?;
            let queue = client.insert(next).queue();
            look_at_both(queue)?;
            slowest = slowest.max(start.elapsed());
        }
        let left = nameless(back_end.process().id())?;
        back_end.process().signal(Signal::TERM)?;
        let (socket, deadline) = (back_end.socket(), Instant::now() + PATIENCE);
        while socket.exists() {
            if Instant::now() > deadline {
                return Err(back_end.process().stderr().into());
            }
            sleep(Duration::from_millis(10));
        }
        Ok(left)
    };
    let (left, in_time) = scope(|threads| -> Result<(usize, bool)> {
        let guest = threads.spawn(|| beside().map_err(|error| error.to_string()));
        let deadline = Instant::now() + 2 * PATIENCE;
        while !guest.is_finished() && Instant::now() < deadline {
            sleep(Duration::from_millis(10));
        }
        let in_time = guest.is_finished();
        // Who waits goes on: a thread that is in the kernel keeps its process until it comes back.
        drop(frozen);
        Ok((guest.join().map_err(|_panic| "a guest")??, in_time))
    })?;
    skip::say(&format!(
        "{left} nameless files left open, others served after {slowest:?}"
    ));
    let status = back_end.process_mut().wait_exit(PATIENCE)?;
    assert!(status.success(), "{}", back_end.process().stderr());
    assert!(in_time, "others waited for the disk: {slowest:?}");
    assert_ne!(left, 0, "no file was kept from being closed");
    Ok(())
}
