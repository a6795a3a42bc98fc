// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is kept of a started vring.

/// Descriptors of a `SETLKW` where the driver has no indirect tables: the header, the arguments,
/// and the header of the reply.
const LOCK_DESCRIPTORS: u16 = 3;

/// What is kept of a started vring.
#[derive(Debug)]
pub struct FsQueue {
    index: u16,
    /// Of each head whose request is not done.
    pending: Box<[Pending]>,
    /// The most requests that wait for a lock: they take half of the ring. If they had all of it,
    /// the request that gives the lock back would find no place, and nothing would ever go on.
    max_waiting: u32,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pending {
    pub(super) unique: u64,
    pub(super) kind: usize,
}

impl FsQueue {
    /// A vring of `size` descriptors, of which a chain takes one if it is `indirect`.
    pub(super) fn new(index: u16, size: u16, indirect: bool) -> Self {
        let per_lock = if indirect { 1 } else { LOCK_DESCRIPTORS };
        Self {
            index,
            pending: vec![Pending::default(); usize::from(size)].into(),
            max_waiting: (size / 2 / per_lock).max(1).into(),
        }
    }

    /// The vring's number.
    pub(super) fn index(&self) -> u16 {
        self.index
    }

    /// Notes what the request of `head` is.
    pub(super) fn note(&mut self, head: u16, unique: u64, kind: usize) {
        if let Some(pending) = self.pending.get_mut(usize::from(head)) {
            *pending = Pending { unique, kind };
        }
    }

    /// What was noted of `head`.
    pub(super) fn pending(&self, head: u16) -> Pending {
        let pending = self.pending.get(usize::from(head));
        pending.copied().unwrap_or_default()
    }

    /// Whether one more request may wait for a lock, beside those that do.
    pub(super) fn may_wait(&self, waiting: u32) -> bool {
        waiting < self.max_waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many requests may wait for locks at once.
    fn most(size: u16, indirect: bool) -> u32 {
        let queue = FsQueue::new(1, size, indirect);
        let mut waiting = 0;
        while queue.may_wait(waiting) {
            waiting += 1;
        }
        waiting
    }

    #[test]
    fn waiting_requests_take_half_of_the_ring_and_at_least_one_may_wait() {
        let sizes = [1, 2, 4, 128, 1024];
        assert_eq!(sizes.map(|size| most(size, true)), [1, 1, 2, 64, 512]);
        assert_eq!(sizes.map(|size| most(size, false)), [1, 1, 1, 21, 170]);
    }
}
