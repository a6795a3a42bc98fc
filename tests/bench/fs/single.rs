// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One operation at a time.

use ringside_frontend::fuse::{FuseClient, FuseQueue, Request};

use crate::Result;
use crate::contest::Contender;
use crate::program::{DATA_BYTES, Repeated, Served};
use crate::tree::{BIG_BYTES, XATTR};

/// `FUSE_ROOT_ID`
pub(crate) const ROOT: u64 = 1;

/// Between two looks at the clock.
const BATCH: u32 = 16;

const O_CREAT_EXCL_RDWR: u32 = 0o302;

/// Sends a request from a slot, waits for its reply and gives its first field.
pub(crate) fn round_trip(queue: &mut FuseQueue, request: &Request) -> Result<u64> {
    let slot = queue.acquire()?;
    queue.submit(slot, request)?;
    queue.publish()?;
    let completion = queue.wait()?;
    queue.checked_header(completion.slot, completion.used_len)?;
    let mut first = [0; 8];
    queue.read_reply(completion.slot, &mut first);
    queue.release(completion.slot);
    Ok(u64::from_le_bytes(first))
}

/// Puts a number at a place of the arguments of a request.
pub(crate) fn patch(request: &mut Request, offset: usize, value: u64) {
    request.args[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
}

fn nothing(_: &mut FuseClient) -> Result<()> {
    Ok(())
}

/// One request, again and again.
fn repeat(served: Served, request: Request) -> Box<dyn Contender> {
    let step = move |client: &mut FuseClient| {
        for _ in 0..BATCH {
            round_trip(client.queue(), &request)?;
        }
        Ok(f64::from(BATCH))
    };
    Box::new(Repeated {
        served,
        step,
        finish: nothing,
    })
}

pub(crate) fn getattr(mut served: Served) -> Result<Box<dyn Contender>> {
    let node = served.client.queue().lookup(ROOT, "f0")?.node;
    Ok(repeat(served, Request::getattr(node, None)))
}

pub(crate) fn lookup(mut served: Served) -> Result<Box<dyn Contender>> {
    served.client.queue().lookup(ROOT, "f0")?;
    Ok(repeat(served, Request::lookup(ROOT, "f0")))
}

pub(crate) fn getxattr(mut served: Served) -> Result<Box<dyn Contender>> {
    let node = served.client.queue().lookup(ROOT, "f0")?.node;
    Ok(repeat(served, Request::getxattr(node, XATTR, 256)))
}

pub(crate) fn open(mut served: Served) -> Result<Box<dyn Contender>> {
    let node = served.client.queue().lookup(ROOT, "f0")?.node;
    let open = Request::open(node, 0);
    let mut release = Request::release(node, 0, 0);
    let step = move |client: &mut FuseClient| {
        for _ in 0..BATCH {
            let handle = round_trip(client.queue(), &open)?;
            patch(&mut release, 0, handle);
            round_trip(client.queue(), &release)?;
        }
        Ok(f64::from(BATCH))
    };
    Ok(Box::new(Repeated {
        served,
        step,
        finish: nothing,
    }))
}

pub(crate) fn create(served: Served) -> Result<Box<dyn Contender>> {
    let name = format!("new-{}", served.back_end.process().id());
    let create = Request::create(ROOT, &name, O_CREAT_EXCL_RDWR, 0o644, 0);
    let unlink = Request::unlink(ROOT, &name);
    let step = move |client: &mut FuseClient| {
        for _ in 0..BATCH {
            let queue = client.queue();
            let slot = queue.acquire()?;
            queue.submit(slot, &create)?;
            queue.publish()?;
            let completion = queue.wait()?;
            queue.checked_header(slot, completion.used_len)?;
            // struct fuse_entry_out, then the handle.
            let mut reply = [0; 136];
            queue.read_reply(slot, &mut reply);
            queue.release(slot);
            let field = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| reply[at + i]));
            let (node, handle) = (field(0), field(128));
            round_trip(queue, &Request::release(node, handle, 0))?;
            round_trip(queue, &unlink)?;
            forget(client, node)?;
        }
        Ok(f64::from(BATCH))
    };
    Ok(Box::new(Repeated {
        served,
        step,
        finish: drain_forgets,
    }))
}

/// Sends a `FORGET` and waits for none, unless there is no room.
fn forget(client: &mut FuseClient, node: u64) -> Result<()> {
    let queue = &mut client.hiprio;
    while let Some(completion) = queue.poll()? {
        queue.release(completion.slot);
    }
    if queue.in_flight() == usize::from(queue.config().depth) {
        let completion = queue.wait()?;
        queue.release(completion.slot);
    }
    let slot = queue.acquire()?;
    queue.submit(slot, &Request::forget(node, 1))?;
    queue.publish()?;
    Ok(())
}

fn drain_forgets(client: &mut FuseClient) -> Result<()> {
    while client.hiprio.in_flight() > 0 {
        let completion = client.hiprio.wait()?;
        client.hiprio.release(completion.slot);
    }
    Ok(())
}

/// Counts MiB.
pub(crate) fn stream(mut served: Served) -> Result<Box<dyn Contender>> {
    let queue = served.client.queue();
    let node = queue.lookup(ROOT, "big")?.node;
    let handle = queue.open(node, 0)?.handle;
    let mut read = Request::read(node, handle, 0, DATA_BYTES);
    let mut offset = 0;
    let step = move |client: &mut FuseClient| {
        patch(&mut read, 8, offset);
        offset = (offset + u64::from(DATA_BYTES)) % BIG_BYTES;
        round_trip(client.queue(), &read)?;
        Ok(1.0)
    };
    Ok(Box::new(Repeated {
        served,
        step,
        finish: nothing,
    }))
}
