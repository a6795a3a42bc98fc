// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Both engines against a real file and real eventfds.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use libc::iovec;
use rustix::event::{EventfdFlags, eventfd};

use super::{Engine, Event, FileId, IoQueue, Wait};

fn file_with(content: &[u8]) -> Arc<OwnedFd> {
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, content, 0).unwrap();
    Arc::new(OwnedFd::from(file))
}

fn wait_for(queue: &mut IoQueue, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < count {
        queue.turn(Wait::Event, &mut events).unwrap();
    }
    events
}

fn iov(buffer: &mut [u8]) -> iovec {
    iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    }
}

const ENGINES: [Engine; 3] = [Engine::Uring, Engine::Threads, Engine::Inline];

#[test]
fn read_and_write_move_the_bytes() {
    for engine in ENGINES {
        let file = file_with(b"hello world");
        let mut queue = IoQueue::new(engine, vec![Arc::clone(&file)]).unwrap();
        let (mut a, mut b) = ([0; 5], [0; 6]);
        let table = [iov(&mut a), iov(&mut b)];
        queue.read(FileId::new(0), &table, 0, 7).unwrap();
        assert_eq!(
            wait_for(&mut queue, 1),
            [Event::Done {
                token: 7,
                result: 11
            }]
        );
        assert_eq!((&a, &b), (b"hello", b" world"));
        let mut c = *b"WORLD";
        queue
            .write(FileId::new(0), &[iov(&mut c)], 6, true, 8)
            .unwrap();
        assert_eq!(
            wait_for(&mut queue, 1),
            [Event::Done {
                token: 8,
                result: 5
            }]
        );
        queue.fdatasync(FileId::new(0), 9).unwrap();
        assert_eq!(
            wait_for(&mut queue, 1),
            [Event::Done {
                token: 9,
                result: 0
            }]
        );
        let mut back = [0; 11];
        rustix::io::pread(file.as_fd(), &mut back, 0).unwrap();
        assert_eq!(&back, b"hello WORLD");
    }
}

#[test]
fn read_of_bad_memory_is_efault() {
    for engine in ENGINES {
        let mut queue = IoQueue::new(engine, vec![file_with(&[1; 4096])]).unwrap();
        let nowhere = iovec {
            iov_base: std::ptr::without_provenance_mut(8),
            iov_len: 4096,
        };
        queue.read(FileId::new(0), &[nowhere], 0, 1).unwrap();
        assert_eq!(
            wait_for(&mut queue, 1),
            [Event::Done {
                token: 1,
                result: -libc::EFAULT
            }]
        );
    }
}

#[test]
fn every_watcher_of_a_shared_eventfd_hears_every_write() {
    for engine in ENGINES {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let mut one = IoQueue::new(engine, vec![]).unwrap();
        let mut two = IoQueue::new(engine, vec![]).unwrap();
        let a = one.watch(fd.try_clone().unwrap()).unwrap();
        let b = two.watch(fd.try_clone().unwrap()).unwrap();
        // Submits the watches.
        one.turn(Wait::Batch, &mut Vec::new()).unwrap();
        two.turn(Wait::Batch, &mut Vec::new()).unwrap();
        for _ in 0..3 {
            rustix::io::write(&fd, &1_u64.to_ne_bytes()).unwrap();
            assert_eq!(wait_for(&mut one, 1), [Event::Signalled(a)]);
            assert_eq!(wait_for(&mut two, 1), [Event::Signalled(b)]);
        }
    }
}

#[test]
fn an_unwatched_eventfd_is_silent_and_closed() {
    for engine in ENGINES {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let mut queue = IoQueue::new(engine, vec![]).unwrap();
        let id = queue.watch(fd.try_clone().unwrap()).unwrap();
        queue.turn(Wait::Batch, &mut Vec::new()).unwrap();
        queue.unwatch(id).unwrap();
        queue.turn(Wait::Batch, &mut Vec::new()).unwrap();
        rustix::io::write(&fd, &1_u64.to_ne_bytes()).unwrap();
        let mut events = Vec::new();
        queue.turn(Wait::Batch, &mut events).unwrap();
        assert_eq!(events, []);
        assert!(queue.watches.is_free(id));
    }
}

#[test]
fn jobs_run_and_report() {
    for engine in ENGINES {
        let mut queue = IoQueue::new(engine, vec![]).unwrap();
        for token in 0..40 {
            let result = i32::try_from(token).unwrap();
            queue.run(Box::new(move || result), token).unwrap();
        }
        let mut got: Vec<_> = wait_for(&mut queue, 40)
            .into_iter()
            .map(|event| match event {
                Event::Done { token, result } => (token, result),
                other @ Event::Signalled(_) => panic!("{other:?}"),
            })
            .collect();
        got.sort_unstable();
        assert_eq!(
            got,
            (0..40)
                .map(|i| (i, i32::try_from(i).unwrap()))
                .collect::<Vec<_>>()
        );
        assert!(queue.has_room(1));
    }
}
