// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The end of a session: what a guest knew is forgotten at once, and what it had open is closed by
//! threads that may wait.
//!
//! Closing a file takes as long as its file system likes. The last descriptor of one without a name
//! gives back what the file has, which a frozen file system does not let it; and so may a disk that
//! hangs.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use ringside_common::limited;

use super::PassThrough;
use super::handles::Handle;
use crate::pool::{Fate, Work};
use crate::tables::{Budget, For, Hung, Mount, MountFd, Node};

/// How long the end of a session waits for mounts that are quick. They are done by then, so that
/// the next session finds no lock and no descriptor of this one; a mount that is not is not quick.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a session has left on one mount.
#[derive(Debug)]
struct Left {
    mount: Arc<Mount>,
    locks: Vec<Arc<MountFd>>,
    handles: Vec<Arc<Handle>>,
    nodes: Vec<Arc<Node>>,
}

impl Left {
    fn nothing(mount: &Arc<Mount>) -> Self {
        Self {
            mount: Arc::clone(mount),
            locks: Vec::new(),
            handles: Vec::new(),
            nodes: Vec::new(),
        }
    }

    /// Closes it on this thread, which may have to wait, and gives back what it has of the budget.
    fn close_here(self, budget: &Budget) {
        let locks = self.locks.into_iter().filter_map(Arc::into_inner);
        locks.for_each(MountFd::close_here);
        for handle in self.handles {
            // Its last use closes it.
            if let Some(handle) = Arc::into_inner(handle) {
                handle.close_here();
            }
            budget.give_back(For::File);
        }
        for node in self.nodes {
            let counts = node.is_hot();
            if let Some(node) = Arc::into_inner(node) {
                node.close_here();
            }
            if counts {
                budget.give_back(For::Node);
            }
        }
    }
}

/// What is left on `mount`.
fn on<'a>(all: &'a mut HashMap<u64, Left>, mount: &Arc<Mount>) -> &'a mut Left {
    let left = all.entry(mount.number());
    left.or_insert_with(|| Left::nothing(mount))
}

impl PassThrough {
    /// Forgets all that a guest knew, and has closed what it had open. What a mount does not let us
    /// close stays in the budget until it does.
    pub fn reset(&self) {
        let mut all = HashMap::new();
        for fd in self.locks.clear() {
            on(&mut all, fd.mount()).locks.push(fd);
        }
        for handle in self.handles.clear() {
            on(&mut all, handle.mount()).handles.push(handle);
        }
        for node in self.nodes.clear() {
            on(&mut all, node.mount()).nodes.push(node);
        }
        self.negotiated.store(0, Ordering::Release);
        self.close(all.into_values());
    }

    /// Has it closed by the threads of its mounts, and waits for those that are quick.
    fn close(&self, all: impl Iterator<Item = Left>) {
        let (open, closed) = channel::<Infallible>();
        let mut waited = Vec::new();
        for left in all {
            let mount = Arc::clone(&left.mount);
            let budget = Arc::clone(self.handles.budget());
            // Gone when it is done.
            let under_way = (!mount.is_slow()).then(|| Arc::new(open.clone()));
            if let Some(under_way) = &under_way {
                let hung: Hung = Arc::<Sender<Infallible>>::downgrade(under_way);
                waited.push((Arc::clone(&mount), hung));
            }
            let job = move |_: Fate| {
                left.close_here(&budget);
                drop(under_way);
            };
            mount.pool().run(Work::Changes, Box::new(job));
        }
        drop(open);
        if closed.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        for (mount, hung) in waited {
            if hung.strong_count() > 0 {
                limited!(
                    warn,
                    "a file system does not let go of what a guest had open"
                );
                mount.stall(hung);
            }
        }
    }
}
