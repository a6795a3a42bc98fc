// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Nodes of a directory of this machine.

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::testing::{as_root, skip};
use crate::wire::name::Name;

struct Fixture {
    dir: tempfile::TempDir,
    nodes: Nodes,
    root: Arc<Node>,
}

fn options(inode_file_handles: InodeHandles) -> NodeOptions {
    NodeOptions {
        inode_file_handles,
        max_hot: 1000,
        max_nodes: 100_000,
        budget: Arc::new(Budget::new(1000)),
        pool_threads: 1,
        proc_self_fd: File::open("/proc/self/fd").unwrap().into(),
    }
}

fn fixture(options: NodeOptions) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let nodes = Nodes::new(options);
    let fd = rustix::fs::open(dir.path(), HOLD, Mode::empty()).unwrap();
    let root = nodes.add_root(fd).unwrap();
    Fixture { dir, nodes, root }
}

impl Fixture {
    /// Makes a file on the host; returns its inode number.
    fn file(&self, name: &str) -> u64 {
        let file = File::create(self.dir.path().join(name)).unwrap();
        file.metadata().unwrap().ino()
    }

    fn lookup(&self, name: &str) -> Result<Arc<Node>> {
        let name = CString::new(name).unwrap();
        let name: &CStr = &name;
        let found = self
            .nodes
            .lookup(&self.root, Name::new(name).unwrap(), false)?;
        assert_eq!(found.stat.stx_ino, found.node.key().inode);
        Ok(found.node)
    }

    fn inode_of(&self, node: &Node) -> Result<u64> {
        Ok(sys::statx_of(self.nodes.fd(node)?.as_fd())?.stx_ino)
    }

    fn in_map(&self) -> usize {
        let parts = self.nodes.parts.iter();
        parts.map(|part| part.lock().unwrap().len()).sum()
    }
}

#[test]
fn name_looked_up_again_is_the_same_node_until_both_are_forgotten() {
    let it = fixture(options(InodeHandles::Prefer));
    let inode = it.file("a");
    let first = it.lookup("a").unwrap().number();
    fs::hard_link(it.dir.path().join("a"), it.dir.path().join("b")).unwrap();
    fs::rename(it.dir.path().join("a"), it.dir.path().join("c")).unwrap();
    assert_eq!(it.lookup("b").unwrap().number(), first);
    assert_eq!(it.lookup("c").unwrap().number(), first);
    assert_eq!(it.lookup("a").unwrap_err(), Errno::NOENT);
    it.nodes.forget(first, 2);
    let node = it.nodes.get(first).unwrap();
    assert_eq!(it.inode_of(&node), Ok(inode));
    drop(node);
    it.nodes.forget(first, 1);
    assert_eq!(it.nodes.get(first).unwrap_err(), Errno::NOENT);
    assert_eq!((it.nodes.len(), it.in_map()), (1, 1));
    assert_ne!(it.lookup("b").unwrap().number(), first);
}

#[test]
fn name_that_leads_elsewhere_since_is_another_node_although_it_was_guessed() {
    let it = fixture(options(InodeHandles::Prefer));
    it.file("a");
    let old = it.lookup("a").unwrap();
    let new = it.file("b");
    fs::rename(it.dir.path().join("b"), it.dir.path().join("a")).unwrap();
    let found = it.lookup("a").unwrap();
    assert_eq!(found.key().inode, new);
    assert_ne!(found.number(), old.number());
}

#[test]
fn inode_number_used_again_is_another_node_and_the_old_one_is_stale() {
    as_root(|| {
        let it = fixture(options(InodeHandles::Mandatory));
        let inode = it.file("old");
        let old = it.lookup("old").unwrap();
        old.cool();
        fs::remove_file(it.dir.path().join("old")).unwrap();
        let again = (0..100).map(|at| format!("new-{at}"));
        let Some(name) = { again }.find(|name| it.file(name) == inode) else {
            return skip(
                "inode_number_used_again_is_another_node_and_the_old_one_is_stale",
                "the file system of temporary files does not use numbers again",
            );
        };
        let new = it.lookup(&name).unwrap();
        assert_eq!(new.key(), old.key());
        assert_ne!(new.number(), old.number());
        assert_eq!(it.inode_of(&old).unwrap_err(), Errno::STALE);
        assert_eq!(it.inode_of(&new), Ok(inode));
        // Forgetting the one does not take the other away.
        it.nodes.forget(old.number(), 1);
        assert_eq!(it.lookup(&name).unwrap().number(), new.number());
        assert_eq!((it.nodes.len(), it.in_map()), (2, 2));
    });
}

#[test]
fn file_that_is_gone_is_there_while_it_has_a_descriptor_and_stale_then() {
    as_root(|| {
        let it = fixture(options(InodeHandles::Mandatory));
        let inode = it.file("a");
        let node = it.lookup("a").unwrap();
        fs::remove_file(it.dir.path().join("a")).unwrap();
        assert_eq!(it.inode_of(&node), Ok(inode));
        node.cool();
        assert_eq!(it.inode_of(&node).unwrap_err(), Errno::STALE);
        let open = it.nodes.open(&node, OFlags::RDONLY);
        assert_eq!(open.unwrap_err(), Errno::STALE);
    });
}

#[test]
fn nodes_beyond_the_hot_ones_lose_their_descriptor_and_get_it_again() {
    as_root(|| {
        let mut few = options(InodeHandles::Mandatory);
        few.max_hot = 32;
        let it = fixture(few);
        let all: Vec<_> = (0..200)
            .map(|at| {
                (
                    it.file(&at.to_string()),
                    it.lookup(&at.to_string()).unwrap(),
                )
            })
            .collect();
        let hot = || all.iter().filter(|(_, node)| node.is_hot()).count();
        assert_eq!(hot(), it.nodes.hot.capacity());
        for _ in 0..2 {
            for (at, (inode, node)) in all.iter().enumerate() {
                assert_eq!(it.inode_of(node), Ok(*inode));
                let known = it.lookup(&at.to_string()).unwrap();
                assert_eq!(known.number(), node.number());
            }
        }
        assert_eq!(hot(), it.nodes.hot.capacity());
        it.nodes.clear();
        assert_eq!((it.nodes.len(), it.in_map()), (1, 1));
    });
}

#[test]
fn root_is_never_forgotten() {
    let it = fixture(options(InodeHandles::Prefer));
    let root = it.root.number();
    it.nodes.forget(root, u64::MAX);
    it.nodes.clear();
    assert_eq!(it.nodes.get(root).unwrap().number(), root);
    assert_eq!(it.inode_of(&it.root), Ok(it.root.key().inode));
    it.nodes.forget(77, 1);
    it.nodes.forget(0, 1);
    assert_eq!(it.nodes.len(), 1);
}

#[test]
fn forgetting_more_than_was_looked_up_forgets_once() {
    let it = fixture(options(InodeHandles::Never));
    it.file("a");
    let node = it.lookup("a").unwrap();
    it.nodes.forget(node.number(), 0);
    assert_eq!(it.nodes.len(), 2);
    it.nodes.forget(node.number(), u64::MAX);
    it.nodes.forget(node.number(), u64::MAX);
    assert_eq!((it.nodes.len(), it.in_map()), (1, 1));
    assert_eq!(it.nodes.options.budget.nodes(), 1);
}

#[test]
fn nodes_that_need_a_descriptor_beyond_the_limit_are_refused_until_one_is_forgotten() {
    let mut few = options(InodeHandles::Never);
    few.budget = Arc::new(Budget::new(4));
    let it = fixture(few);
    for name in ["a", "b", "c", "d"] {
        it.file(name);
    }
    let a = it.lookup("a").unwrap();
    assert!(it.lookup("b").is_ok() && it.lookup("c").is_ok());
    assert_eq!(it.lookup("d").unwrap_err(), Errno::NFILE);
    // One that is known needs no other.
    assert_eq!(it.lookup("a").unwrap().number(), a.number());
    it.nodes.forget(a.number(), 2);
    it.lookup("d").unwrap();
    assert_eq!(it.lookup("a").unwrap_err(), Errno::NFILE);
    // Those that are left count until they are closed.
    let left = it.nodes.clear();
    assert_eq!((left.len(), it.nodes.options.budget.nodes()), (3, 4));
}

#[test]
fn opening_without_a_descriptor_left_takes_some_away_and_tries_once_more() {
    as_root(|| {
        let it = fixture(options(InodeHandles::Mandatory));
        let all: Vec<_> = (0..100)
            .map(|at| {
                it.file(&at.to_string());
                it.lookup(&at.to_string()).unwrap()
            })
            .collect();
        let hot = || all.iter().filter(|node| node.is_hot()).count();
        assert_eq!(hot(), 100);
        let tries = Cell::new(0);
        let opened = it.nodes.opening(|| {
            tries.set(tries.get() + 1);
            (tries.get() == 2).then_some(hot()).ok_or(Errno::MFILE)
        });
        let left = opened.unwrap();
        assert!((50..=80).contains(&left), "{left} are left");
        let refused: Result<()> = it.nodes.opening(|| Err(Errno::MFILE));
        assert_eq!(refused, Err(Errno::NFILE));
        assert!(hot() < left, "{} after {left}", hot());
        for node in &all {
            assert_eq!(it.inode_of(node), Ok(node.key().inode));
        }
    });
}

#[test]
fn shrinking_again_and_again_takes_all_descriptors_away() {
    as_root(|| {
        let it = fixture(options(InodeHandles::Mandatory));
        let all: Vec<_> = (0..100)
            .map(|at| {
                it.file(&at.to_string());
                it.lookup(&at.to_string()).unwrap()
            })
            .collect();
        for _ in 0..8 {
            it.nodes.hot.shrink(&it.nodes.slab);
        }
        assert_eq!(all.iter().filter(|node| node.is_hot()).count(), 0);
        // There is room for as many as before.
        for node in &all {
            assert_eq!(it.inode_of(node), Ok(node.key().inode));
        }
        assert_eq!(all.iter().filter(|node| node.is_hot()).count(), 100);
    });
}

#[test]
fn storm_of_lookups_and_forgets_ends_with_the_root_alone() {
    for handles in [InodeHandles::Prefer, InodeHandles::Never] {
        let mut few = options(handles);
        few.max_hot = 16;
        let it = fixture(few);
        for at in 0..16 {
            it.file(&at.to_string());
        }
        std::thread::scope(|scope| {
            for thread in 0..4_usize {
                let it = &it;
                scope.spawn(move || {
                    let mut known = Vec::new();
                    for round in 0..4000_usize {
                        let name = (round * (thread + 1) % 17).to_string();
                        match it.lookup(&name) {
                            Ok(node) => known.push(node.number()),
                            Err(error) => assert_eq!((error, &*name), (Errno::NOENT, "16")),
                        }
                        if round % 3 != 0
                            && let Some(gone) = known.pop()
                        {
                            it.nodes.forget(gone, 1);
                        }
                    }
                    for node in known {
                        it.nodes.get(node).unwrap();
                        it.nodes.forget(node, 1);
                    }
                });
            }
        });
        assert_eq!((it.nodes.len(), it.in_map()), (1, 1));
        assert_eq!(it.nodes.options.budget.nodes(), 1);
    }
}

#[test]
fn file_system_without_file_handles_is_refused_if_they_are_a_must() {
    let path = format!("/proc/{}", std::process::id());
    let proc = || rustix::fs::open(&path, HOLD, Mode::empty()).unwrap();
    let must = Nodes::new(options(InodeHandles::Mandatory));
    assert_eq!(must.add_root(proc()).unwrap_err(), Errno::OPNOTSUPP);
    let nodes = Nodes::new(options(InodeHandles::Prefer));
    let root = nodes.add_root(proc()).unwrap();
    let found = nodes
        .lookup(&root, Name::new(c"status").unwrap(), false)
        .unwrap();
    assert!(matches!(found.node.place(), Place::Descriptor));
    assert!(found.node.is_file());
}
