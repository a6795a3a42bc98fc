// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Long directories.

use std::time::{Duration, Instant};

use ringside_frontend::fuse::Request;

use crate::Result;
use crate::contest::{Contender, Turn};
use crate::program::Served;
use crate::single::ROOT;
use crate::tree::MANY;

/// What the C library asks Linux for, and Linux the device.
const READ_BYTES: u32 = 32 << 10;

/// Nodes in one `BATCH_FORGET`.
const FORGETS: usize = 1000;

/// Lists the directory once in a turn.
struct Listing {
    served: Served,
    dir: u64,
    forgets: bool,
}

pub(crate) fn cold(served: Served) -> Result<Box<dyn Contender>> {
    listing(served, true)
}

pub(crate) fn known(served: Served) -> Result<Box<dyn Contender>> {
    listing(served, false)
}

fn listing(mut served: Served, forgets: bool) -> Result<Box<dyn Contender>> {
    let dir = served.client.queue().lookup(ROOT, "many")?.node;
    Ok(Box::new(Listing {
        served,
        dir,
        forgets,
    }))
}

impl Contender for Listing {
    fn turn(&mut self, _: Duration) -> Result<Turn> {
        let mut nodes = Vec::with_capacity(MANY);
        let before = self.served.back_end.process().sample()?.cpu;
        let start = Instant::now();
        let queue = self.served.client.queue();
        let handle = queue.opendir(self.dir)?.handle;
        let mut offset = 0;
        loop {
            let entries = queue.readdirplus(self.dir, handle, offset, READ_BYTES)?;
            let Some(last) = entries.last() else { break };
            offset = last.offset;
            let found = entries.iter().filter(|entry| !entry.name.starts_with(b"."));
            nodes.extend(found.map(|entry| entry.entry.map_or(0, |entry| entry.node)));
        }
        queue.releasedir(self.dir, handle)?;
        let seconds = start.elapsed().as_secs_f64();
        let cpu = self.served.back_end.process().sample()?.cpu - before;
        if nodes.len() != MANY || nodes.contains(&0) {
            return Err(format!("{} entries, or some of no node", nodes.len()).into());
        }
        if self.forgets {
            for nodes in nodes.chunks(FORGETS) {
                let forgets: Vec<_> = nodes.iter().map(|node| (*node, 1)).collect();
                queue.send(&Request::batch_forget(&forgets))?;
            }
        }
        Ok(Turn {
            count: u32::try_from(MANY)?.into(),
            seconds,
            cpu_seconds: cpu.as_secs_f64(),
        })
    }
}
