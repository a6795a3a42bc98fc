// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! I4 and I11 where files are concerned: front-ends that leave in the middle of everything.

use std::fs;

use ringside_frontend::fuse::flags::ROOT_NODE;
use ringside_frontend::fuse::{FuseClient, Request};
use ringside_frontend::load::Rng;
use ringside_tests::hostile::{Result, TestResult};

use crate::queues::{Locked, leave};
use crate::scene::{Scene, errno, serves};

/// Opens, looks up, locks, and leaves requests of all kinds in the rings.
fn busy(scene: &Scene, client: &mut FuseClient) -> Result<Locked> {
    let locked = Locked::on(scene, client)?;
    let (node, handle) = (locked.node, locked.handle);
    for number in 0..50 {
        let queue = client.queue();
        let name = format!("open-{number}");
        let (entry, opened) = queue.create(ROOT_NODE, &name, 2, 0o600)?;
        queue.write(entry.node, opened.handle, 0, &[1; 50_000])?;
        queue.opendir(ROOT_NODE)?;
    }
    for (queue, owner) in client.queues.iter_mut().zip([1, 100]) {
        for more in 0..4 {
            leave(queue, &locked.wait_for(owner + more))?;
        }
        for request in [
            Request::fsync(node, handle, false),
            Request::syncfs(ROOT_NODE),
            Request::fallocate(node, handle, 0, 1 << 20, 0),
            Request::read(node, handle, 0, 100_000),
            Request::getattr(ROOT_NODE, None),
        ] {
            leave(queue, &request)?;
        }
    }
    Ok(locked)
}

fn clear(scene: &Scene) -> TestResult {
    for entry in fs::read_dir(scene.host(""))? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}

#[test]
fn i4_front_end_that_leaves_amid_requests_leaves_nothing_behind() -> TestResult {
    let scene = Scene::start(&["--posix-lock", "--flock"])?;
    for _ in 0..10 {
        let mut client = scene.client()?;
        let locked = busy(&scene, &mut client)?;
        // The socket is closed, the memory unmapped.
        drop(client);
        scene.holds_no_more()?;
        locked.unlock()?;
        clear(&scene)?;
    }
    scene.check_gone()
}

/// The front-end stops a queue, and the answer is there before it is told that it has.
#[test]
fn a21_queue_stopped_while_a_lock_is_waited_for_has_its_answer() -> TestResult {
    let scene = Scene::start(&["--posix-lock"])?;
    let mut client = scene.client()?;
    let locked = Locked::on(&scene, &mut client)?;
    let slot = leave(client.queue(), &locked.wait_for(1))?;
    // Served behind it, so that it is waited for by now.
    client.queue().getattr(ROOT_NODE, None)?;
    client.session.stop(1)?;
    let queue = client.queue();
    let completion = queue.poll()?.ok_or("no answer")?;
    assert_eq!(completion.slot, slot);
    assert_eq!(errno(queue.reply(completion)), libc::ENOLCK);
    serves(&mut client.queues[1], &scene.host(""))?;
    drop(client);
    scene.check_gone()
}

#[test]
fn i4_locks_of_a_front_end_that_left_are_free() -> TestResult {
    let scene = Scene::start(&["--posix-lock"])?;
    let mut client = scene.client()?;
    let locked = Locked::on(&scene, &mut client)?;
    locked.unlock()?;
    let taken = locked.wait_for(1);
    client.queue().call_empty(&taken)?;
    drop(client);
    let mut client = scene.client()?;
    let node = client.queue().lookup(ROOT_NODE, "locked")?.node;
    let mut request = taken;
    request.node = node;
    let opened = client.queue().open(node, 2)?;
    request.args[..8].copy_from_slice(&opened.handle.to_le_bytes());
    request.opcode = ringside_frontend::fuse::flags::opcode::SETLK;
    client.queue().call_empty(&request)?;
    scene.check(client)
}

#[test]
fn i11_two_hundred_sessions_leave_no_more_than_one() -> TestResult {
    let scene = Scene::start(&[])?;
    let mut rng = Rng::new(11);
    for _ in 0..200 {
        let mut client = scene.client()?;
        let queue = client.queue();
        for number in 0..rng.below(8) {
            let name = format!("file-{number}");
            let entry = match queue.lookup(ROOT_NODE, &name) {
                Ok(entry) => entry,
                Err(_none) => queue.create(ROOT_NODE, &name, 2, 0o600)?.0,
            };
            queue.open(entry.node, 0)?;
        }
        if rng.below(4) == 0 {
            queue.destroy()?;
        }
        if rng.below(2) == 0 {
            leave(queue, &Request::syncfs(ROOT_NODE))?;
        }
    }
    scene.check_gone()
}
