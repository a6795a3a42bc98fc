// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! G13 and G14: requests that wait, and the queue for urgent ones.

use std::fs::File;

use ringside_frontend::fuse::flags::ROOT_NODE;
use ringside_frontend::fuse::types::LockIn;
use ringside_frontend::fuse::{FuseClient, FuseQueue, FuseSlot, Request};
use ringside_tests::hostile::{Result, TestResult};
use rustix::fs::{FlockOperation, fcntl_lock};

use crate::scene::{Scene, errno};

/// A file that the host has locked.
pub(crate) struct Locked {
    pub(crate) node: u64,
    pub(crate) handle: u64,
    file: File,
}

impl Locked {
    pub(crate) fn on(scene: &Scene, client: &mut FuseClient) -> Result<Self> {
        let (entry, opened) = client.queue().create(ROOT_NODE, "locked", 2, 0o600)?;
        let file = File::options()
            .read(true)
            .write(true)
            .open(scene.host("locked"))?;
        fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self {
            node: entry.node,
            handle: opened.handle,
            file,
        })
    }

    /// `SETLKW` of the whole file.
    pub(crate) fn wait_for(&self, owner: u64) -> Request {
        let lock = LockIn {
            handle: self.handle,
            owner,
            start: 0,
            end: i64::MAX as u64,
            kind: libc::F_WRLCK.cast_unsigned(),
            pid: 1,
            flock: false,
        };
        Request::setlk(self.node, &lock, true)
    }

    pub(crate) fn unlock(&self) -> TestResult {
        Ok(fcntl_lock(&self.file, FlockOperation::Unlock)?)
    }
}

/// Sends a request and does not wait for it.
pub(crate) fn leave(queue: &mut FuseQueue, request: &Request) -> Result<FuseSlot> {
    let slot = queue.acquire()?;
    queue.submit(slot, request)?;
    queue.publish()?;
    Ok(slot)
}

/// Waits for a request that was left, the only one; its errno.
fn finish(queue: &mut FuseQueue, slot: FuseSlot) -> Result<i32> {
    let completion = queue.wait()?;
    assert_eq!(completion.slot, slot);
    let answer = errno(queue.reply(completion));
    queue.release(slot);
    Ok(answer)
}

#[test]
fn g13_lock_that_is_waited_for_keeps_no_other_request_waiting() -> TestResult {
    let scene = Scene::start(&["--posix-lock"])?;
    let mut client = scene.client()?;
    let locked = Locked::on(&scene, &mut client)?;
    let mut left = Vec::new();
    for (owner, queue) in (1..).zip(&mut client.queues) {
        left.push(leave(queue, &locked.wait_for(owner))?);
    }
    // On the same queues, among them requests that go to other threads.
    for queue in &mut client.queues {
        for _ in 0..100 {
            let slot = leave(queue, &Request::getattr(ROOT_NODE, None))?;
            assert_eq!(finish(queue, slot)?, 0);
            let slot = leave(queue, &Request::fsync(locked.node, locked.handle, true))?;
            assert_eq!(finish(queue, slot)?, 0);
        }
        assert_eq!(queue.in_flight(), 1);
    }
    // Interrupted, on either queue: one by one.
    let interrupts: Vec<_> = client
        .queues
        .iter()
        .zip(&left)
        .map(|(queue, &slot)| Request::interrupt(queue.unique(slot)))
        .collect();
    client.hiprio.send(&interrupts[0])?;
    assert_eq!(finish(&mut client.queues[0], left[0])?, libc::EINTR);
    assert_eq!(client.queues[1].in_flight(), 1);
    client.queues[0].send(&interrupts[1])?;
    assert_eq!(finish(&mut client.queues[1], left[1])?, libc::EINTR);
    // Once more, and now it is had.
    let slot = leave(&mut client.queues[0], &locked.wait_for(1))?;
    locked.unlock()?;
    assert_eq!(finish(&mut client.queues[0], slot)?, 0);
    let taken = fcntl_lock(&locked.file, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(taken, Err(rustix::io::Errno::AGAIN));
    scene.check(client)
}

#[test]
fn g14_urgent_requests_are_served_while_every_other_queue_is_full() -> TestResult {
    let scene = Scene::start(&["--posix-lock"])?;
    let mut client = scene.client()?;
    let locked = Locked::on(&scene, &mut client)?;
    let known = client.queue().mkdir(ROOT_NODE, "dir", 0o755)?.node;
    let mut owner = 1;
    for queue in &mut client.queues {
        while let Ok(slot) = queue.acquire() {
            queue.submit(slot, &locked.wait_for(owner))?;
            owner += 1;
        }
        queue.publish()?;
    }
    client.forget(known, 1)?;
    // It has been forgotten, as the urgent queue itself says.
    let gone = client.hiprio.getattr(known, None);
    assert_eq!(errno(gone), libc::ENOENT);
    let waiting: Vec<_> = client.queues.iter().map(FuseQueue::in_flight).collect();
    assert_eq!(waiting, [16, 16]);
    // Each gets the lock, gives it up, and the next has it.
    locked.unlock()?;
    let mut done = 0;
    while done < 32 {
        for index in 0..2 {
            while let Some(completion) = client.queues[index].poll()? {
                let queue = &mut client.queues[index];
                assert_eq!(errno(queue.reply(completion)), 0);
                queue.release(completion.slot);
                done += 1;
            }
        }
        // Whoever has it.
        for owner in 1..=32 {
            let flush = Request::flush(locked.node, locked.handle, owner);
            assert_eq!(errno(client.hiprio.call(&flush)), 0);
        }
    }
    scene.check(client)
}

#[test]
fn g14_every_request_is_served_on_every_queue() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    for number in 0..3 {
        let share = scene.host("");
        let queue = match number {
            0 => &mut client.hiprio,
            other => &mut client.queues[other - 1],
        };
        let name = format!("dir-{number}");
        let dir = queue.mkdir(ROOT_NODE, &name, 0o755)?;
        let (entry, opened) = queue.create(dir.node, "file", 2, 0o600)?;
        assert_eq!(queue.write(entry.node, opened.handle, 0, b"content")?, 7);
        queue.fsync(entry.node, opened.handle, false)?;
        let back = queue.read(entry.node, opened.handle, 0, 100)?;
        assert_eq!(back, b"content");
        queue.release_file(entry.node, opened.handle)?;
        queue.forget(entry.node, 1)?;
        queue.send(&Request::batch_forget(&[(dir.node, 1)]))?;
        assert_eq!(errno(queue.getattr(dir.node, None)), libc::ENOENT);
        assert_eq!(std::fs::read(share.join(name).join("file"))?, b"content");
    }
    scene.check(client)
}

/// A `FORGET` needs no room for a reply; with such room it still has none.
#[test]
fn g14_forget_with_room_for_a_reply_gets_none() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut client = scene.client()?;
    let node = client.queue().mkdir(ROOT_NODE, "dir", 0o755)?.node;
    let requests = [
        Request::forget(77, 1),
        Request::forget(node, 1),
        Request::batch_forget(&[(1, 1)]),
        Request::interrupt(5),
        Request::new(41, 1, vec![0; 32], 0),
        Request::new(2, 1, vec![0; 3], 0),
    ];
    for request in requests {
        for hiprio in [true, false] {
            let queue = if hiprio {
                &mut client.hiprio
            } else {
                &mut client.queues[0]
            };
            let bytes = crate::scene::bytes_of(queue, &request, 95);
            let answer = crate::scene::raw(queue, &bytes, 64)?;
            assert_eq!(answer, (crate::scene::UNTOUCHED, 0), "{request:?}");
        }
    }
    scene.check(client)
}
