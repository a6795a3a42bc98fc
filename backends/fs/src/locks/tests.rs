// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Locks against each other and against those of somebody else on the host.

use std::fs::File;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use super::*;
use crate::tables::Mounts;

struct Fixture {
    _directory: tempfile::TempDir,
    path: PathBuf,
    locks: Locks,
}

const ONE: Owner = Owner { node: 5, owner: 1 };
const TWO: Owner = Owner { node: 5, owner: 2 };
const HANDLE: u64 = 30;
const TICKET: Ticket = Ticket {
    queue: 1,
    unique: 77,
};

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    std::fs::write(&path, b"data").unwrap();
    Fixture {
        _directory: directory,
        path,
        locks: Locks::new(2),
    }
}

fn range(kind: LockKind, start: u64, end: u64) -> RangeLock {
    RangeLock { kind, start, end }
}

fn whole(kind: LockKind) -> RangeLock {
    range(kind, 0, OFFSET_MAX)
}

impl Fixture {
    fn file(&self) -> File {
        File::options()
            .read(true)
            .write(true)
            .open(&self.path)
            .unwrap()
    }

    fn opened(&self) -> MountFd {
        MountFd::new(self.file().into(), &Mounts::new(1).of_nothing())
    }

    fn set(&self, owner: Owner, lock: RangeLock) -> Result<()> {
        self.set_with(HANDLE, owner, lock)
    }

    fn set_with(&self, handle: u64, owner: Owner, lock: RangeLock) -> Result<()> {
        let wanted = Wanted {
            owner,
            handle,
            lock,
        };
        self.locks.set(wanted, || Ok(self.opened()))
    }

    fn get(&self, owner: Owner, lock: RangeLock) -> Option<RangeLock> {
        let found = self.locks.get(owner, lock, || Ok(self.opened()));
        found.unwrap()
    }

    fn wait(&self, ticket: Ticket, owner: Owner, lock: RangeLock) -> Receiver<Result<()>> {
        let (done, result) = channel();
        let done = Box::new(move |value| done.send(value).unwrap());
        let open = || Ok(self.opened());
        let wanted = Wanted {
            owner,
            handle: HANDLE,
            lock,
        };
        self.locks.set_waiting(ticket, wanted, open, done);
        result
    }

    fn wait_flock(&self, file: &Arc<File>, kind: LockKind) -> Receiver<Result<()>> {
        let (done, result) = channel();
        let done = Box::new(move |value| done.send(value).unwrap());
        self.locks
            .flock_waiting(TICKET, Arc::clone(file), kind, done);
        result
    }

    fn owners(&self) -> usize {
        self.locks.table.owners().len()
    }
}

#[test]
fn lock_kinds_have_the_numbers_of_fcntl() {
    for (number, kind) in [LockKind::Read, LockKind::Write, LockKind::Unlock]
        .into_iter()
        .enumerate()
    {
        let number = u32::try_from(number).unwrap();
        assert_eq!(LockKind::new(number), Ok(kind));
        assert_eq!(kind.number(), number);
    }
    assert_eq!(LockKind::new(3), Err(Errno::INVAL));
    assert_eq!(LockKind::new(u32::MAX), Err(Errno::INVAL));
}

#[test]
fn lock_of_one_owner_excludes_the_other() {
    let it = fixture();
    assert_eq!(it.set(ONE, range(LockKind::Write, 10, 19)), Ok(()));
    assert_eq!(it.set(ONE, range(LockKind::Read, 15, 16)), Ok(()));
    let all = whole(LockKind::Write);
    assert_eq!(it.get(TWO, all), Some(range(LockKind::Write, 10, 14)));
    assert_eq!(it.get(ONE, all), None);
    assert_eq!(it.owners(), 1);
    assert_eq!(it.set(TWO, range(LockKind::Read, 15, 16)), Ok(()));
    assert_eq!(
        it.set(TWO, range(LockKind::Write, 15, 15)),
        Err(Errno::AGAIN)
    );
    assert_eq!(it.set(TWO, range(LockKind::Write, 20, OFFSET_MAX)), Ok(()));
    assert_eq!(
        it.get(ONE, range(LockKind::Read, 100, 200)),
        Some(range(LockKind::Write, 20, OFFSET_MAX))
    );
}

#[test]
fn lock_is_seen_by_others_on_the_host_and_sees_theirs() {
    let it = fixture();
    let other = it.file();
    ofd_set(other.as_fd(), range(LockKind::Write, 0, 0)).unwrap();
    assert_eq!(it.set(ONE, whole(LockKind::Read)), Err(Errno::AGAIN));
    assert_eq!(it.set(ONE, range(LockKind::Read, 1, 1)), Ok(()));
    assert_eq!(
        ofd_get(other.as_fd(), whole(LockKind::Write)),
        Ok(Some(range(LockKind::Read, 1, 1)))
    );
}

#[test]
fn lock_of_an_owner_who_closes_is_gone_and_no_other() {
    let it = fixture();
    it.set(ONE, range(LockKind::Write, 0, 0)).unwrap();
    it.set(TWO, range(LockKind::Write, 1, 1)).unwrap();
    it.locks.drop_owner(ONE);
    assert_eq!(it.owners(), 1);
    assert_eq!(it.get(ONE, range(LockKind::Write, 0, 0)), None);
    assert_eq!(
        it.get(ONE, whole(LockKind::Write)),
        Some(range(LockKind::Write, 1, 1))
    );
    drop(it.locks.clear());
    assert_eq!(it.get(ONE, whole(LockKind::Write)), None);
}

#[test]
fn lock_of_one_owner_too_many_is_refused() {
    let it = fixture();
    it.set(ONE, whole(LockKind::Read)).unwrap();
    it.set(TWO, whole(LockKind::Read)).unwrap();
    let three = Owner { node: 6, owner: 1 };
    assert_eq!(it.set(three, whole(LockKind::Read)), Err(Errno::NOLCK));
    assert_eq!(it.set(three, whole(LockKind::Unlock)), Ok(()));
    it.locks.drop_owner(ONE);
    assert_eq!(it.set(three, whole(LockKind::Read)), Ok(()));
}

#[test]
fn lock_of_a_handle_that_is_closed_is_gone_and_no_other() {
    let it = fixture();
    it.set_with(7, ONE, range(LockKind::Write, 0, 0)).unwrap();
    it.set_with(8, TWO, range(LockKind::Write, 1, 1)).unwrap();
    it.locks.drop_handle(ONE.node + 1, 7);
    it.locks.drop_handle(ONE.node, 9);
    assert_eq!(it.owners(), 2);
    it.locks.drop_handle(ONE.node, 7);
    assert_eq!(it.owners(), 1);
    assert_eq!(
        it.get(ONE, whole(LockKind::Write)),
        Some(range(LockKind::Write, 1, 1))
    );
    it.locks.drop_handle(ONE.node, 8);
    assert_eq!(it.owners(), 0);
    assert_eq!(it.get(ONE, whole(LockKind::Write)), None);
}

#[test]
fn lock_of_an_owner_with_another_handle_goes_with_the_last_of_them() {
    let it = fixture();
    it.set_with(7, ONE, range(LockKind::Write, 0, 0)).unwrap();
    it.set_with(8, ONE, range(LockKind::Write, 1, 1)).unwrap();
    it.set_with(7, ONE, range(LockKind::Write, 2, 2)).unwrap();
    it.locks.drop_handle(ONE.node, 7);
    assert_eq!(
        it.get(TWO, whole(LockKind::Write)),
        Some(range(LockKind::Write, 0, 2))
    );
    it.locks.drop_handle(ONE.node, 8);
    assert_eq!(it.get(TWO, whole(LockKind::Write)), None);
}

#[test]
fn lock_of_an_owner_with_many_handles_goes_with_the_latest_of_them() {
    let it = fixture();
    for handle in 1..=100 {
        it.set_with(handle, ONE, whole(LockKind::Write)).unwrap();
    }
    for handle in (1..=96).chain(98..=100) {
        it.locks.drop_handle(ONE.node, handle);
        assert_eq!(it.owners(), 1, "{handle}");
    }
    it.locks.drop_handle(ONE.node, 97);
    assert_eq!(it.owners(), 0);
}

#[test]
fn lock_of_one_handle_after_the_other_is_never_refused() {
    let it = fixture();
    it.set(TWO, range(LockKind::Write, 0, 0)).unwrap();
    for number in 100..200 {
        let owner = Owner {
            node: 5,
            owner: number,
        };
        let free = range(LockKind::Write, 1, 1);
        assert_eq!(it.set_with(number, owner, free), Ok(()));
        let taken = whole(LockKind::Read);
        assert_eq!(it.set_with(number, owner, taken), Err(Errno::AGAIN));
        it.locks.drop_handle(5, number);
    }
    assert_eq!(it.owners(), 1);
}

#[test]
fn lock_of_a_handle_that_is_closed_is_had_by_who_waits() {
    let it = fixture();
    it.set_with(7, ONE, whole(LockKind::Write)).unwrap();
    let result = it.wait(TICKET, TWO, whole(LockKind::Write));
    assert_eq!(result.try_recv(), Err(TryRecvError::Empty));
    it.locks.drop_handle(ONE.node, 7);
    assert_eq!(result.recv(), Ok(Ok(())));
}

#[test]
fn lock_of_a_range_that_is_none_is_refused() {
    let it = fixture();
    assert_eq!(it.set(ONE, range(LockKind::Read, 2, 1)), Err(Errno::INVAL));
    assert_eq!(
        it.set(ONE, range(LockKind::Read, OFFSET_MAX + 1, u64::MAX)),
        Err(Errno::INVAL)
    );
    assert_eq!(it.set(ONE, range(LockKind::Read, 0, u64::MAX)), Ok(()));
}

#[test]
fn lock_waited_for_is_had_when_it_is_given_up_here() {
    let it = fixture();
    it.set(ONE, whole(LockKind::Write)).unwrap();
    let result = it.wait(TICKET, TWO, range(LockKind::Write, 3, 3));
    assert_eq!(result.try_recv(), Err(TryRecvError::Empty));
    it.set(ONE, whole(LockKind::Unlock)).unwrap();
    assert_eq!(result.recv(), Ok(Ok(())));
    assert_eq!(
        it.get(ONE, whole(LockKind::Read)),
        Some(range(LockKind::Write, 3, 3))
    );
    assert!(!it.locks.interrupt(TICKET.unique));
}

#[test]
fn lock_waited_for_is_had_when_it_is_given_up_elsewhere() {
    let it = fixture();
    let other = it.file();
    ofd_set(other.as_fd(), whole(LockKind::Write)).unwrap();
    let result = it.wait(TICKET, ONE, whole(LockKind::Read));
    assert_eq!(result.try_recv(), Err(TryRecvError::Empty));
    drop(other);
    assert_eq!(result.recv(), Ok(Ok(())));
}

#[test]
fn lock_waited_for_by_an_owner_who_closes_is_kept() {
    let it = fixture();
    it.set(ONE, range(LockKind::Write, 0, 0)).unwrap();
    it.set(TWO, range(LockKind::Write, 5, 5)).unwrap();
    let result = it.wait(TICKET, TWO, range(LockKind::Write, 0, 0));
    it.locks.drop_owner(TWO);
    assert_eq!(it.get(ONE, range(LockKind::Write, 5, 5)), None);
    it.locks.drop_owner(ONE);
    assert_eq!(result.recv(), Ok(Ok(())));
    assert_eq!(it.owners(), 1);
    assert_eq!(
        it.get(ONE, whole(LockKind::Read)),
        Some(range(LockKind::Write, 0, 0))
    );
    // No further `FLUSH` comes.
    it.locks.drop_handle(TWO.node, HANDLE);
    assert_eq!(it.owners(), 0);
}

#[test]
fn lock_waited_for_that_is_free_is_had_at_once() {
    let it = fixture();
    let result = it.wait(TICKET, ONE, whole(LockKind::Write));
    assert_eq!(result.try_recv(), Ok(Ok(())));
    let result = it.wait(TICKET, ONE, whole(LockKind::Unlock));
    assert_eq!(result.try_recv(), Ok(Ok(())));
    let result = it.wait(TICKET, ONE, range(LockKind::Write, 1, 0));
    assert_eq!(result.try_recv(), Ok(Err(Errno::INVAL)));
}

#[test]
fn lock_waited_for_is_interrupted_by_its_number_only() {
    let it = fixture();
    it.set(ONE, whole(LockKind::Write)).unwrap();
    let result = it.wait(TICKET, TWO, whole(LockKind::Write));
    assert!(!it.locks.interrupt(TICKET.unique + 1));
    assert_eq!(result.try_recv(), Err(TryRecvError::Empty));
    assert!(it.locks.interrupt(TICKET.unique));
    assert_eq!(result.try_recv(), Ok(Err(Errno::INTR)));
    it.set(ONE, whole(LockKind::Unlock)).unwrap();
    assert_eq!(it.get(ONE, whole(LockKind::Write)), None);
}

#[test]
fn lock_whose_interrupt_came_first_is_not_waited_for() {
    let it = fixture();
    it.set(ONE, whole(LockKind::Write)).unwrap();
    let other = Ticket {
        queue: 1,
        unique: 78,
    };
    assert!(!it.locks.interrupt(TICKET.unique));
    let second = it.wait(other, TWO, whole(LockKind::Write));
    let first = it.wait(TICKET, TWO, whole(LockKind::Write));
    assert_eq!(first.try_recv(), Ok(Err(Errno::INTR)));
    assert_eq!(second.try_recv(), Err(TryRecvError::Empty));
    // It counts once.
    let again = it.wait(TICKET, TWO, whole(LockKind::Write));
    assert_eq!(again.try_recv(), Err(TryRecvError::Empty));
    drop(it.locks.clear());
    for waiting in [second, again] {
        assert_eq!(waiting.try_recv(), Ok(Err(Errno::NOLCK)));
    }
}

#[test]
fn lock_that_is_free_is_had_though_its_interrupt_came_first() {
    let it = fixture();
    assert!(!it.locks.interrupt(TICKET.unique));
    let result = it.wait(TICKET, ONE, whole(LockKind::Write));
    assert_eq!(result.try_recv(), Ok(Ok(())));
}

#[test]
fn interrupts_that_come_first_are_kept_until_64_others_have_come() {
    let it = fixture();
    it.set(ONE, whole(LockKind::Write)).unwrap();
    for unique in 1000..1065 {
        // Twice is once.
        assert!(!it.locks.interrupt(unique));
        assert!(!it.locks.interrupt(unique));
    }
    let ticket = |unique| Ticket { queue: 1, unique };
    let oldest = it.wait(ticket(1000), TWO, whole(LockKind::Write));
    assert_eq!(oldest.try_recv(), Err(TryRecvError::Empty));
    for unique in [1001, 1064] {
        let kept = it.wait(ticket(unique), TWO, whole(LockKind::Write));
        assert_eq!(kept.try_recv(), Ok(Err(Errno::INTR)));
    }
    // The next guest begins with the same numbers.
    drop(it.locks.clear());
    assert_eq!(oldest.try_recv(), Ok(Err(Errno::NOLCK)));
    it.set(ONE, whole(LockKind::Write)).unwrap();
    let next = it.wait(ticket(1030), TWO, whole(LockKind::Write));
    assert_eq!(next.try_recv(), Err(TryRecvError::Empty));
    drop(it.locks.clear());
    assert_eq!(next.try_recv(), Ok(Err(Errno::NOLCK)));
}

#[test]
fn lock_waited_for_ends_with_its_queue_and_with_the_device() {
    let it = fixture();
    it.set(ONE, whole(LockKind::Write)).unwrap();
    let elsewhere = Ticket {
        queue: 2,
        unique: 77,
    };
    let first = it.wait(TICKET, TWO, whole(LockKind::Write));
    let second = it.wait(elsewhere, TWO, whole(LockKind::Write));
    it.locks.cancel_queue(1);
    assert_eq!(first.try_recv(), Ok(Err(Errno::NOLCK)));
    assert_eq!(second.try_recv(), Err(TryRecvError::Empty));
    drop(it);
    assert_eq!(second.try_recv(), Ok(Err(Errno::NOLCK)));
}

#[test]
fn flock_of_one_file_excludes_the_other_until_it_is_closed() {
    let it = fixture();
    let (one, two) = (it.file(), Arc::new(it.file()));
    assert_eq!(it.locks.flock(&one, LockKind::Write), Ok(()));
    assert_eq!(it.locks.flock(&two, LockKind::Read), Err(Errno::AGAIN));
    let result = it.wait_flock(&two, LockKind::Read);
    assert_eq!(result.try_recv(), Err(TryRecvError::Empty));
    it.locks.flock(&one, LockKind::Read).unwrap();
    assert_eq!(result.recv(), Ok(Ok(())));
    let result = it.wait_flock(&two, LockKind::Write);
    assert_eq!(result.try_recv(), Err(TryRecvError::Empty));
    drop(one);
    it.locks.closed();
    assert_eq!(result.recv(), Ok(Ok(())));
    let result = it.wait_flock(&two, LockKind::Unlock);
    assert_eq!(result.try_recv(), Ok(Ok(())));
    assert_eq!(it.locks.flock(it.file(), LockKind::Write), Ok(()));
}
