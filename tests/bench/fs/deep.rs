// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Many requests in flight.

use ringside_frontend::fuse::{Completion, FuseClient, FuseQueue, FuseSlot, Request};

use crate::Result;
use crate::contest::Contender;
use crate::program::{DEPTH, Repeated, Served};
use crate::single::{ROOT, patch};
use crate::tree::{BIG_BYTES, FILES};

const BLOCK_BYTES: u32 = 4096;

/// Says what a slot asks next; sees what its last reply says, if it has had one.
trait Source {
    fn next(&mut self, slot: usize, reply: Option<(&FuseQueue, FuseSlot)>) -> &Request;
}

/// Keeps all slots busy.
fn keep_busy(served: Served, mut source: impl Source + 'static) -> Box<dyn Contender> {
    let step = move |client: &mut FuseClient| {
        let queue = client.queue();
        while queue.in_flight() < usize::from(DEPTH) {
            let slot = queue.acquire()?;
            queue.submit(slot, source.next(slot.index(), None))?;
        }
        queue.publish()?;
        let mut count = 0.0;
        let mut next = Some(queue.wait()?);
        while let Some(Completion { slot, used_len }) = next {
            queue.checked_header(slot, used_len)?;
            count += 1.0;
            let request = source.next(slot.index(), Some((queue, slot)));
            queue.submit(slot, request)?;
            next = queue.poll()?;
        }
        queue.publish()?;
        Ok(count)
    };
    Box::new(Repeated {
        served,
        step,
        finish: drain,
    })
}

fn drain(client: &mut FuseClient) -> Result<()> {
    let queue = client.queue();
    while queue.in_flight() > 0 {
        let completion = queue.wait()?;
        queue.checked_header(completion.slot, completion.used_len)?;
        queue.release(completion.slot);
    }
    Ok(())
}

/// What one slot does with its own file, over and over.
struct Steps {
    requests: Vec<Request>,
    at: usize,
}

/// Where in [`Steps`] a file is opened, and where that handle is used.
const OPEN: usize = 3;
const RELEASE: usize = 5;

impl Steps {
    fn new(node: u64, name: &str) -> Self {
        let getattr = || Request::getattr(node, None);
        let lookup = || Request::lookup(ROOT, name);
        let requests = vec![
            lookup(),
            getattr(),
            lookup(),
            Request::open(node, 0),
            getattr(),
            Request::release(node, 0, 0),
            lookup(),
            getattr(),
        ];
        Self { requests, at: 0 }
    }
}

struct Metadata {
    slots: Vec<Steps>,
}

impl Source for Metadata {
    fn next(&mut self, slot: usize, reply: Option<(&FuseQueue, FuseSlot)>) -> &Request {
        let steps = &mut self.slots[slot];
        if let Some((queue, slot)) = reply {
            if steps.at == OPEN {
                let mut handle = [0; 8];
                queue.read_reply(slot, &mut handle);
                patch(&mut steps.requests[RELEASE], 0, u64::from_le_bytes(handle));
            }
            steps.at = (steps.at + 1) % steps.requests.len();
        } else if steps.at != OPEN {
            // A turn ended with this. An OPEN is sent again, since its handle was not looked at.
            steps.at = (steps.at + 1) % steps.requests.len();
        }
        &steps.requests[steps.at]
    }
}

pub(crate) fn metadata(mut served: Served) -> Result<Box<dyn Contender>> {
    let queue = served.client.queue();
    let mut slots = Vec::new();
    for slot in 0..usize::from(DEPTH) {
        let name = format!("f{}", slot % FILES);
        let node = queue.lookup(ROOT, &name)?.node;
        slots.push(Steps::new(node, &name));
    }
    Ok(keep_busy(served, Metadata { slots }))
}

/// One request at random places.
struct Random {
    request: Request,
    state: u64,
}

impl Source for Random {
    fn next(&mut self, _: usize, _: Option<(&FuseQueue, FuseSlot)>) -> &Request {
        // xorshift64
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let block = self.state % (BIG_BYTES / u64::from(BLOCK_BYTES));
        patch(&mut self.request, 8, block * u64::from(BLOCK_BYTES));
        &self.request
    }
}

fn random(
    mut served: Served,
    flags: u32,
    request: fn(u64, u64, u64, u32) -> Request,
) -> Result<Box<dyn Contender>> {
    let queue = served.client.queue();
    let node = queue.lookup(ROOT, "big")?.node;
    let handle = queue.open(node, flags)?.handle;
    let source = Random {
        request: request(node, handle, 0, BLOCK_BYTES),
        state: 0x9e37_79b9_7f4a_7c15,
    };
    Ok(keep_busy(served, source))
}

pub(crate) fn read(served: Served) -> Result<Box<dyn Contender>> {
    const O_RDONLY: u32 = 0;
    random(served, O_RDONLY, Request::read)
}

pub(crate) fn write(served: Served) -> Result<Box<dyn Contender>> {
    const O_WRONLY: u32 = 1;
    random(served, O_WRONLY, Request::write)
}
