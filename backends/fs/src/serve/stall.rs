// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which mount it is that a data thread waits for.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringside_common::worker::WhileAway;
use rustix::fs::{Mode, OFlags};

use crate::passthrough::PassThrough;
use crate::shared::Shared;
use crate::tables::{Hung, Place};
use crate::wire::operation::Operation;

/// What a data thread serves at the moment, for the thread that takes its vrings if that does not
/// end. While this exists, the thread has not come back.
#[derive(Debug, Default)]
pub(super) struct Where {
    node: AtomicU64,
    /// The other node of a request that names two; zero: it names one.
    other: AtomicU64,
}

impl Where {
    /// A request is about to be served.
    #[inline]
    pub(super) fn goes_to(&self, node: u64, op: &Operation<'_>) {
        let other = match op {
            Operation::Rename { new_parent, .. } => *new_parent,
            Operation::Link { node, .. } => *node,
            _ => 0,
        };
        self.node.store(node, Ordering::Relaxed);
        self.other.store(other, Ordering::Relaxed);
    }

    /// It does not end: the mounts it is about are not quick, until it does. Where
    /// it is not known which those are, none is.
    fn note_stall(self: &Arc<Self>, fs: &PassThrough) {
        let hung: Hung = Arc::<Self>::downgrade(self);
        let mut known = false;
        for number in [&self.node, &self.other] {
            let node = fs.nodes.get(number.load(Ordering::Relaxed));
            if let Ok(node) = node
                && !matches!(node.place(), Place::Virtual)
            {
                node.mount().stall(Hung::clone(&hung));
                known = true;
            }
        }
        if !known {
            fs.nodes.mounts().stall_all(&hung);
        }
    }
}

/// A data thread, as the watchdog sees it.
#[derive(Debug)]
pub(super) struct Away {
    shared: Arc<Shared>,
    at: Arc<Where>,
    /// `proc_pid_stat(5)` of the thread, where it can be had: Landlock keeps it from us.
    stat: Option<OwnedFd>,
}

impl Away {
    /// The calling thread, which serves what `at` says.
    pub(super) fn of_this_thread(shared: &Arc<Shared>, at: &Arc<Where>) -> Self {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        // From `/proc/self/fd`, as there may be no `/proc` where we are.
        let own = "../../thread-self/stat";
        let stat = rustix::fs::openat(shared.proc_self_fd(), own, flags, Mode::empty());
        Self {
            shared: Arc::clone(shared),
            at: Arc::clone(at),
            stat: stat.ok(),
        }
    }
}

impl WhileAway for Away {
    fn waits(&self) -> bool {
        let Some(stat) = &self.stat else {
            return true;
        };
        let mut text = [0; 64];
        match rustix::io::pread(stat, &mut text, 0) {
            Ok(bytes) => text.get(..bytes).is_none_or(is_waiting),
            Err(_) => true,
        }
    }

    fn relieved(&self) {
        self.at.note_stall(&self.shared.fs);
    }
}

/// Whether a thread waits, by its `stat`: the state is behind the name, which is in brackets. One
/// that could run does not, nor does one that is stopped or traced.
fn is_waiting(stat: &[u8]) -> bool {
    let name_ends = stat.iter().rposition(|byte| *byte == b')');
    let state = name_ends.and_then(|at| stat.get(at + 2));
    matches!(state, Some(b'D' | b'S'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f4_4_state_of_a_thread_is_what_is_behind_its_name() {
        assert!(is_waiting(b"12 (data-0) D 1 2 3"));
        assert!(is_waiting(b"12 (a) R 1) S 1 2 3"));
        for other in [
            &b"12 (data-0) R 1 2 3"[..],
            b"12 (data-0) t 1 2 3",
            b"12 (S) R 1",
            b"12 (data-0) ",
            b"",
        ] {
            assert!(!is_waiting(other));
        }
    }
}
