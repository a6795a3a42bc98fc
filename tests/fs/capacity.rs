// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! More files than descriptors: a large tree is walked, and files are opened until there is no room.
//!
//! 100 000 files; with `RINGSIDE_FULL_MATRIX=1` two million, of which the guest knows the last
//! million at once.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use ringside_frontend::fuse::flags::ROOT_NODE;
use ringside_frontend::fuse::{DirEntry, FuseClient, FuseConfig, FuseQueue, Request};
use ringside_tests::covering::FULL_VARIABLE;
use ringside_tests::fs_back_end::FsBackEnd;
use ringside_tests::host_fs::HostFs;
use ringside_tests::process::Sample;
use ringside_tests::skip;

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type TestResult = Result<()>;

/// Files of each directory.
const PER_DIR: usize = 1000;
/// The limit of descriptors.
const LIMIT: usize = 4096;

/// A tree of files, who serves it, and the connection.
struct Scene {
    client: FuseClient,
    back_end: FsBackEnd,
    _share: HostFs,
}

impl Scene {
    /// With `dirs` directories of [`PER_DIR`] files; none where this machine cannot have it.
    fn new(dirs: usize, args: &[&str]) -> Result<Self> {
        let share = HostFs::tmpfs("size=16g,nr_inodes=0,mode=755")?;
        fill(&share.path(), dirs)?;
        let limit = LIMIT.to_string();
        let args = [&["--rlimit-nofile", &limit], args].concat();
        let back_end = FsBackEnd::start(&share.path(), &args)?;
        let client = FuseClient::connect(&back_end.socket(), &FuseConfig::default())?;
        Ok(Self {
            client,
            back_end,
            _share: share,
        })
    }

    fn sample(&self) -> Result<Sample> {
        Ok(self.back_end.process().sample()?)
    }
}

/// Makes real files, each with an inode of its own.
fn fill(root: &Path, dirs: usize) -> TestResult {
    for dir in 0..dirs {
        let dir = root.join(dir.to_string());
        fs::create_dir(&dir)?;
        for file in 0..PER_DIR {
            fs::File::create(dir.join(format!("file-{file}")))?;
        }
    }
    Ok(())
}

/// The node of an entry that was replied.
fn node_of(reply: &[u8]) -> u64 {
    let bytes = reply.first_chunk().copied();
    bytes.map_or(0, u64::from_le_bytes)
}

/// Everything in an open directory but "." and "..".
fn listing(queue: &mut FuseQueue, dir: u64, handle: u64) -> Result<Vec<DirEntry>> {
    let (mut all, mut offset) = (Vec::new(), 0);
    loop {
        let entries = queue.readdirplus(dir, handle, offset, 64 << 10)?;
        let Some(last) = entries.last() else {
            all.retain(|entry: &DirEntry| entry.name != b"." && entry.name != b"..");
            return Ok(all);
        };
        offset = last.offset;
        all.extend(entries);
    }
}

/// Lists a directory and looks every name up, which must lead to the node that the listing says;
/// returns the nodes, each of which is then known by two lookups.
fn walk(queue: &mut FuseQueue, name: &str) -> Result<(u64, Vec<u64>)> {
    let dir = queue.lookup(ROOT_NODE, name)?.node;
    let handle = queue.opendir(dir)?.handle;
    let entries = listing(queue, dir, handle)?;
    queue.releasedir(dir, handle)?;
    let names: BTreeSet<&[u8]> = entries.iter().map(|entry| &entry.name[..]).collect();
    assert_eq!((entries.len(), names.len()), (PER_DIR, PER_DIR));
    let nodes: Vec<u64> = entries
        .iter()
        .map(|entry| entry.entry.map_or(0, |entry| entry.node))
        .collect();
    let lookups = entries
        .iter()
        .map(|entry| Request::lookup(dir, &entry.name));
    let mut wrong = Vec::new();
    queue.call_many(lookups, |at, reply| {
        let node = reply.map(|reply| node_of(&reply));
        if node != Ok(nodes[at]) || nodes[at] == 0 {
            wrong.push((at, node));
        }
    })?;
    assert!(wrong.is_empty(), "{wrong:?}");
    Ok((dir, nodes))
}

fn forget(client: &mut FuseClient, nodes: &[(u64, u64)]) -> TestResult {
    let batches = nodes.chunks(1000).map(Request::batch_forget);
    client.hiprio.call_many(batches, |_, _| {})?;
    Ok(())
}

/// Walks directories; returns what is to be forgotten.
fn walk_all(client: &mut FuseClient, dirs: std::ops::Range<usize>) -> Result<Vec<(u64, u64)>> {
    let mut known = Vec::new();
    for dir in dirs {
        let (dir, nodes) = walk(client.queue(), &dir.to_string())?;
        known.push((dir, 1));
        known.extend(nodes.into_iter().map(|node| (node, 2)));
    }
    Ok(known)
}

#[test]
fn walk_of_more_files_than_descriptors_misses_none_and_takes_little_memory() -> TestResult {
    let full = std::env::var_os(FULL_VARIABLE).is_some();
    let (dirs, known_dirs) = if full { (2000, 1000) } else { (100, 100) };
    let mut scene = match Scene::new(dirs, &[]) {
        Ok(scene) => scene,
        Err(error) => skip!("{error}"),
    };
    let before = scene.sample()?;
    let start = Instant::now();
    // What is not to be known at once is forgotten directory by directory.
    for dir in 0..dirs - known_dirs {
        let known = walk_all(&mut scene.client, dir..dir + 1)?;
        forget(&mut scene.client, &known)?;
    }
    let known = walk_all(&mut scene.client, dirs - known_dirs..dirs)?;
    let took = start.elapsed();
    let during = scene.sample()?;
    let grown_bytes = during.rss_anon_kib.saturating_sub(before.rss_anon_kib) * 1024;
    let per_node = grown_bytes / known.len() as u64;
    writeln!(
        std::io::stderr(),
        "{} files in {took:?}, {} known with {per_node} bytes each, {} descriptors",
        dirs * PER_DIR,
        known.len(),
        during.fds
    )?;
    assert!(per_node <= 256, "{per_node} bytes per node");
    assert!(during.fds < LIMIT, "{during:?}");
    forget(&mut scene.client, &known)?;
    let after = scene.sample()?;
    assert_eq!(after.fds, before.fds);

    let known = walk_all(&mut scene.client, dirs - known_dirs..dirs)?;
    let again = scene.sample()?;
    let most = during.rss_anon_kib + during.rss_anon_kib / 20;
    assert!(again.rss_anon_kib <= most, "{during:?} {again:?}");
    forget(&mut scene.client, &known)?;
    assert_eq!(scene.sample()?.fds, before.fds);
    Ok(())
}

/// Files that are open: nodes and handles.
type Open = Vec<(u64, u64)>;

/// Opens every file of a directory; returns nodes and handles, and what the others said.
fn open_all(queue: &mut FuseQueue, nodes: &[u64]) -> Result<(Open, Vec<i32>)> {
    let (mut open, mut refused) = (Vec::new(), Vec::new());
    let requests = nodes.iter().map(|node| Request::open(*node, 0));
    queue.call_many(requests, |at, reply| match reply {
        Ok(reply) => open.push((nodes[at], node_of(&reply))),
        Err(errno) => refused.push(errno),
    })?;
    Ok((open, refused))
}

fn files_are_opened_until_there_is_no_room(handles: &str) -> TestResult {
    let mut scene = match Scene::new(3, &["--inode-file-handles", handles]) {
        Ok(scene) => scene,
        Err(error) => skip!("{error}"),
    };
    let before = scene.sample()?;
    let queue = scene.client.queue();
    let dir = queue.lookup(ROOT_NODE, "0")?.node;
    let nodes: Vec<u64> = (0..100)
        .map(|file| Ok(queue.lookup(dir, format!("file-{file}"))?.node))
        .collect::<Result<_>>()?;
    let many: Vec<u64> = nodes.iter().copied().cycle().take(LIMIT).collect();
    let (open, refused) = open_all(queue, &many)?;
    // A guest may have most of the limit, and never all of it.
    assert!(open.len() >= 3000, "{} open", open.len());
    assert_eq!(refused, vec![libc::ENFILE; LIMIT - open.len()]);
    let full = queue.create(dir, "one-more", 2, 0o644).err();
    assert_eq!(full.and_then(|error| error.errno()), Some(libc::ENFILE));
    assert_eq!(
        queue
            .lookup(dir, "one-more")
            .err()
            .and_then(|error| error.errno()),
        Some(libc::ENOENT)
    );

    // Everything that opens nothing goes on.
    let (node, handle) = open[0];
    assert_eq!(queue.getattr(node, Some(handle))?.0.size_bytes, 0);
    assert_eq!(
        queue
            .write(node, handle, 0, b"x")
            .err()
            .and_then(|e| e.errno()),
        Some(libc::EBADF)
    );
    assert_eq!(queue.read(node, handle, 0, 10)?, b"");
    let other = queue.lookup(ROOT_NODE, "1")?.node;
    let new = queue.mkdir(other, "new", 0o755)?.node;
    queue.rmdir(other, "new")?;
    let during = scene.sample()?;
    assert!(during.fds < LIMIT, "{during:?}");

    let releases = open
        .iter()
        .map(|(node, handle)| Request::release(*node, *handle, 0));
    let queue = scene.client.queue();
    let mut failed = Vec::new();
    queue.call_many(releases, |_, reply| failed.extend(reply.err()))?;
    assert_eq!(failed, Vec::<i32>::new());
    let (again, _) = open_all(queue, &many)?;
    assert_eq!(again.len(), open.len());
    let releases = again
        .iter()
        .map(|(node, handle)| Request::release(*node, *handle, 0));
    queue.call_many(releases, |_, _| {})?;
    let known: Vec<_> = nodes
        .iter()
        .chain([&dir, &other, &new])
        .map(|node| (*node, 1))
        .collect();
    forget(&mut scene.client, &known)?;
    assert_eq!(scene.sample()?.fds, before.fds);
    Ok(())
}

#[test]
fn open_files_beyond_the_limit_with_file_handles_are_refused_and_nothing_else() -> TestResult {
    files_are_opened_until_there_is_no_room("prefer")
}

#[test]
fn open_files_beyond_the_limit_without_file_handles_are_refused_and_nothing_else() -> TestResult {
    files_are_opened_until_there_is_no_room("never")
}

#[test]
fn nodes_beyond_the_limit_without_file_handles_are_refused_and_listed_all_the_same() -> TestResult {
    let mut scene = match Scene::new(LIMIT / PER_DIR + 1, &["--inode-file-handles", "never"]) {
        Ok(scene) => scene,
        Err(error) => skip!("{error}"),
    };
    let before = scene.sample()?;
    let queue = scene.client.queue();
    let mut known = Vec::new();
    let mut without = 0;
    for dir in 0..=LIMIT / PER_DIR {
        let Ok(dir) = queue.lookup(ROOT_NODE, dir.to_string()) else {
            continue;
        };
        known.push((dir.node, 1));
        let handle = queue.opendir(dir.node)?.handle;
        let entries = listing(queue, dir.node, handle)?;
        queue.releasedir(dir.node, handle)?;
        assert_eq!(entries.len(), PER_DIR);
        let nodes = entries
            .iter()
            .map(|entry| entry.entry.map_or(0, |e| e.node));
        without += nodes.clone().filter(|node| *node == 0).count();
        known.extend(nodes.filter(|node| *node != 0).map(|node| (node, 1)));
    }
    // Most of the limit is for nodes, for all of them need a descriptor.
    assert!(known.len() >= 3000, "{} nodes known", known.len());
    assert!(without > 0);
    let full = queue.lookup(known[0].0, "file-0").map(|found| found.node);
    let known_file = known[1].0;
    // It may be known; one that is not has no room.
    assert!(full.is_ok() || matches!(&full, Err(error) if error.errno() == Some(libc::ENFILE)));
    assert_eq!(queue.getattr(known_file, None)?.0.size_bytes, 0);
    let during = scene.sample()?;
    assert!(during.fds < LIMIT, "{during:?}");
    if let Ok(node) = full {
        known.push((node, 1));
    }
    forget(&mut scene.client, &known)?;
    assert_eq!(scene.sample()?.fds, before.fds);
    let queue = scene.client.queue();
    assert_ne!(queue.lookup(ROOT_NODE, "4")?.node, 0);
    Ok(())
}

/// What can be done whatever is used up: listing, finding something and removing it.
fn list_and_remove(scene: &mut Scene, name: &str) -> TestResult {
    let queue = scene.client.queue();
    let dir = queue.lookup(ROOT_NODE, name)?.node;
    let handle = queue.opendir(dir)?.handle;
    assert_eq!(listing(queue, dir, handle)?.len(), PER_DIR);
    queue.releasedir(dir, handle)?;
    queue.unlink(dir, "file-0")?;
    let handle = queue.opendir(dir)?.handle;
    assert_eq!(listing(queue, dir, handle)?.len(), PER_DIR - 1);
    queue.releasedir(dir, handle)?;
    let told = scene.back_end.process().stderr();
    assert_eq!(told.matches("--rlimit-nofile").count(), 1, "{told}");
    Ok(())
}

#[test]
fn f6_6_files_known_without_file_handles_may_have_most_of_the_limit() -> TestResult {
    let args = ["--inode-file-handles", "never"];
    let mut scene = match Scene::new(5, &args) {
        Ok(scene) => scene,
        Err(error) => skip!("{error}"),
    };
    let queue = scene.client.queue();
    let (mut found, mut refused) = (0, 0);
    for dir in 0..5 {
        let Ok(dir) = queue.lookup(ROOT_NODE, dir.to_string()) else {
            continue;
        };
        for file in 0..PER_DIR {
            match queue.lookup(dir.node, format!("file-{file}")) {
                Ok(_) => found += 1,
                Err(error) if error.errno() == Some(libc::ENFILE) => refused += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }
    assert!(found >= 3000 && refused > 0, "{found} found, {refused} not");
    assert!(scene.sample()?.fds < LIMIT);
    list_and_remove(&mut scene, "0")
}

#[test]
fn f6_6_open_files_with_file_handles_may_have_most_of_the_limit() -> TestResult {
    for (limit, least) in [(4096, 3000), (1500, 750)] {
        let share = match HostFs::tmpfs("size=1g,nr_inodes=0,mode=755") {
            Ok(share) => share,
            Err(error) => skip!("{error}"),
        };
        fill(&share.path(), 5)?;
        let text = limit.to_string();
        let back_end = FsBackEnd::start(&share.path(), &["--rlimit-nofile", &text])?;
        let client = FuseClient::connect(&back_end.socket(), &FuseConfig::default())?;
        let mut scene = Scene {
            client,
            back_end,
            _share: share,
        };
        // Each a file of its own, which has a descriptor beside its handle while there is room.
        let mut open = 0;
        for dir in 0..5 {
            let (_, nodes) = walk(scene.client.queue(), &dir.to_string())?;
            open += open_all(scene.client.queue(), &nodes)?.0.len();
        }
        assert!((least..limit).contains(&open), "{open} of {limit}");
        assert!(scene.sample()?.fds < limit, "{:?}", scene.sample()?);
        list_and_remove(&mut scene, "4")?;
    }
    Ok(())
}
