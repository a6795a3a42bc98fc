// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! G5 and G7: the host changes the tree while the guest walks it. Somebody on the host, or another
//! guest of the same directory, swaps what the guest is just looking at for a link that leads out.
//!
//! Each race takes a few seconds, and with `RINGSIDE_FULL_MATRIX=1` a hundred: five minutes in all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringside_frontend::fuse::flags::{ROOT_NODE, SetAttrValid};
use ringside_frontend::fuse::types::Entry;
use ringside_frontend::fuse::types::SetAttr;
use ringside_frontend::fuse::{FuseError, FuseQueue, FuseResult};
use ringside_tests::covering;
use ringside_tests::hostile::{Result, TestResult};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::scene::{SECRET, Scene, Told};

/// Who looks whether the guest has seen what it must not.
#[derive(Debug, Default)]
struct Guard {
    /// Inodes outside of the share.
    outside: BTreeSet<u64>,
    /// Requests that could have led out.
    attempts: AtomicU64,
    /// Of those, answered with a link, and with something else.
    links: AtomicU64,
    others: AtomicU64,
}

impl Guard {
    fn of(scene: &Scene) -> Result<Self> {
        let mut outside = BTreeSet::new();
        for path in ["", "x", "outside", "outside/secret"] {
            outside.insert(fs::metadata(scene.outside(path))?.ino());
        }
        Ok(Self {
            outside,
            ..Self::default()
        })
    }

    /// What a request said, if it did not fail; that it is nothing from outside.
    fn entry(&self, answer: FuseResult<Entry>) -> Result<Option<Entry>> {
        let Some(entry) = self.done(answer)? else {
            return Ok(None);
        };
        let ino = entry.attr.ino;
        if self.outside.contains(&ino) {
            return Err(format!("escaped: inode {ino}").into());
        }
        let is_link = entry.attr.mode & libc::S_IFMT == libc::S_IFLNK;
        let count = if is_link { &self.links } else { &self.others };
        count.fetch_add(1, Ordering::Relaxed);
        Ok(Some(entry))
    }

    /// The same of a request without an entry. Any errno will do.
    fn done<T>(&self, answer: FuseResult<T>) -> Result<Option<T>> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        match answer {
            Ok(value) => Ok(Some(value)),
            Err(FuseError::Errno(_)) => Ok(None),
            Err(other) => Err(other.into()),
        }
    }

    fn content(&self, queue: &mut FuseQueue, node: u64) -> TestResult {
        let Some(opened) = self.done(queue.open(node, 0))? else {
            return Ok(());
        };
        let content = queue.read(node, opened.handle, 0, 100)?;
        if content == SECRET {
            return Err("escaped: the secret was read".into());
        }
        queue.release_file(node, opened.handle)?;
        Ok(())
    }
}

/// Does `host` over and over, and `guest` on both queues, for a while.
fn race(
    scene: Scene,
    mut host: impl FnMut() -> TestResult + Send,
    guest: fn(&mut FuseQueue, &Guard, u64) -> TestResult,
    before: &Tree,
) -> TestResult {
    let full = std::env::var_os(covering::FULL_VARIABLE).is_some();
    let time = Duration::from_secs(if full { 100 } else { 4 });
    let guard = Guard::of(&scene)?;
    let mut client = scene.client()?;
    let stop = AtomicBool::new(false);
    let text = |done: TestResult| done.map_err(|error| error.to_string());
    std::thread::scope(|scope| -> TestResult {
        let (stop, guard) = (&stop, &guard);
        let swaps = scope.spawn(move || {
            let mut swaps = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                text(host())?;
                swaps += 1;
            }
            Ok::<_, String>(swaps)
        });
        let guests: Vec<_> = (0..)
            .zip(&mut client.queues)
            .map(|(number, queue)| {
                scope.spawn(move || {
                    let start = Instant::now();
                    while start.elapsed() < time {
                        text(guest(queue, guard, number))?;
                    }
                    Ok::<_, String>(())
                })
            })
            .collect();
        let done: Vec<_> = guests.into_iter().map(|guest| guest.join()).collect();
        stop.store(true, Ordering::Relaxed);
        let swaps = swaps.join().map_err(|_panic| "the host has panicked")??;
        for done in done {
            done.map_err(|_panic| "a guest has panicked")??;
        }
        let attempts = guard.attempts.load(Ordering::Relaxed);
        let links = guard.links.load(Ordering::Relaxed);
        let others = guard.others.load(Ordering::Relaxed);
        writeln!(
            std::io::stdout(),
            "{attempts} attempts, {swaps} swaps, {links} links and {others} others seen"
        )?;
        if attempts.min(swaps).min(others) < 100 {
            return Err("that was no race".into());
        }
        Ok(())
    })?;
    let after = scene.outside_told()?;
    if after != *before {
        return Err(format!("escaped: {after:?} instead of {before:?}").into());
    }
    scene.check(client)
}

/// What is outside of the share.
type Tree = BTreeMap<PathBuf, Told>;

/// Two names in the share change what they are.
fn swap(scene: &Scene, a: &str, b: &str) -> impl FnMut() -> TestResult + Send + use<> {
    let (a, b) = (scene.host(a), scene.host(b));
    move || Ok(renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE)?)
}

/// Everything that can be done in a directory.
fn in_directory(queue: &mut FuseQueue, guard: &Guard, number: u64) -> TestResult {
    let Some(dir) = guard.entry(queue.lookup(ROOT_NODE, "swap"))? else {
        return Ok(());
    };
    let own = format!("own-{number}");
    if let Some(file) = guard.entry(queue.lookup(dir.node, "secret"))? {
        guard.content(queue, file.node)?;
        let set = SetAttr {
            valid: SetAttrValid::MODE | SetAttrValid::MTIME,
            mode: 0o640,
            ..SetAttr::default()
        };
        guard.done(queue.setattr(file.node, &set))?;
        guard.done(queue.setxattr(file.node, "user.a", b"guest", 0))?;
        queue.forget(file.node, 1)?;
    }
    if let Some((file, opened)) = guard.done(queue.create(dir.node, &own, 2, 0o600))? {
        guard.entry(Ok(file))?;
        guard.done(queue.write(file.node, opened.handle, 0, b"guest"))?;
        queue.release_file(file.node, opened.handle)?;
        let moved = format!("moved-{number}");
        guard.done(queue.rename((dir.node, &own), (dir.node, &moved), 0))?;
        if guard
            .entry(queue.link(file.node, dir.node, &own))?
            .is_some()
        {
            queue.forget(file.node, 1)?;
        }
        guard.done(queue.unlink(dir.node, &own))?;
        guard.done(queue.unlink(dir.node, &moved))?;
        queue.forget(file.node, 1)?;
    }
    if let Some(made) = guard.entry(queue.mkdir(dir.node, &own, 0o700))? {
        guard.done(queue.rmdir(dir.node, &own))?;
        queue.forget(made.node, 1)?;
    }
    guard.done(queue.unlink(dir.node, "only-outside"))?;
    if let Some(opened) = guard.done(queue.opendir(dir.node))? {
        for entry in queue.readdirplus(dir.node, opened.handle, 0, 4096)? {
            if entry.name == b"only-outside" {
                return Err("escaped: a listing of outside".into());
            }
            if let Some(entry) = entry.entry.filter(|entry| entry.node != 0) {
                queue.forget(entry.node, 1)?;
            }
        }
        queue.releasedir(dir.node, opened.handle)?;
    }
    queue.forget(dir.node, 1)?;
    Ok(())
}

#[test]
fn g5_directory_swapped_for_a_link_out_does_not_lead_there() -> TestResult {
    let scene = Scene::start(&[])?;
    fs::create_dir(scene.host("swap"))?;
    fs::write(scene.host("swap/secret"), "inside")?;
    fs::write(scene.outside("outside/only-outside"), SECRET)?;
    symlink("../outside", scene.host("other"))?;
    let before = scene.outside_told()?;
    let host = swap(&scene, "swap", "other");
    race(scene, host, in_directory, &before)
}

/// Everything that opens a file by its name, or makes one.
fn at_file(queue: &mut FuseQueue, guard: &Guard, number: u64) -> TestResult {
    /// `O_RDWR | O_TRUNC`
    const FLAGS: u32 = 2 | 0o1000;
    for _ in 0..4 {
        if let Some((file, opened)) = guard.done(queue.create(ROOT_NODE, "swap", FLAGS, 0o600))? {
            guard.entry(Ok(file))?;
            guard.done(queue.write(file.node, opened.handle, 0, b"guest"))?;
            queue.release_file(file.node, opened.handle)?;
            queue.forget(file.node, 1)?;
        }
        if let Some(file) = guard.entry(queue.lookup(ROOT_NODE, "swap"))? {
            guard.content(queue, file.node)?;
            let set = SetAttr {
                valid: SetAttrValid::SIZE | SetAttrValid::MTIME_NOW | SetAttrValid::MTIME,
                size_bytes: number,
                ..SetAttr::default()
            };
            guard.done(queue.setattr(file.node, &set))?;
            if let Some(opened) = guard.done(queue.open(file.node, FLAGS))? {
                guard.done(queue.write(file.node, opened.handle, 0, b"guest"))?;
                queue.release_file(file.node, opened.handle)?;
            }
            queue.forget(file.node, 1)?;
        }
    }
    Ok(())
}

#[test]
fn g7_file_swapped_for_a_link_out_is_opened_as_what_it_was_found_to_be() -> TestResult {
    let scene = Scene::start(&[])?;
    fs::write(scene.host("swap"), "inside")?;
    symlink("../outside/secret", scene.host("other"))?;
    let before = scene.outside_told()?;
    let host = swap(&scene, "swap", "other");
    race(scene, host, at_file, &before)
}

/// The directory that is asked for what is above it may be outside of the share by then.
fn above(queue: &mut FuseQueue, guard: &Guard, _number: u64) -> TestResult {
    let Some(dir) = guard.entry(queue.lookup(ROOT_NODE, "dir"))? else {
        return Ok(());
    };
    if let Some(deep) = guard.entry(queue.lookup(dir.node, "deep"))? {
        for _ in 0..4 {
            for node in [dir.node, deep.node] {
                if let Some(above) = guard.entry(queue.lookup(node, ".."))? {
                    let secret = guard.entry(queue.lookup(above.node, "secret"))?;
                    if let Some(secret) = secret {
                        guard.content(queue, secret.node)?;
                        queue.forget(secret.node, 1)?;
                    }
                    queue.forget(above.node, 1)?;
                }
            }
        }
        queue.forget(deep.node, 1)?;
    }
    queue.forget(dir.node, 1)?;
    Ok(())
}

#[test]
fn g5_directory_moved_out_and_back_does_not_lead_to_what_is_above() -> TestResult {
    let scene = Scene::start(&["--export"])?;
    fs::create_dir_all(scene.host("dir/deep"))?;
    let before = scene.outside_told()?;
    let (inside, outside) = (scene.host("dir"), scene.outside("outside-dir"));
    let host = move || {
        fs::rename(&inside, &outside)?;
        std::thread::sleep(Duration::from_micros(50));
        fs::rename(&outside, &inside)?;
        // Long enough that the guest finds it.
        std::thread::sleep(Duration::from_micros(500));
        Ok(())
    };
    race(scene, host, above, &before)
}
