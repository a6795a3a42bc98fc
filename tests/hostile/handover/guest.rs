// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A sound driver of each device, and work of it whose result is checked.

use std::sync::Arc;

use ringside_frontend::blk::{BlkConfig, BlkDriver};
use ringside_frontend::fuse::flags::ROOT_NODE;
use ringside_frontend::fuse::{FuseClient, FuseConfig, FuseQueue};
use ringside_frontend::load::{Verify, check_content, fill_pattern, write_pattern};
use ringside_frontend::memory::{GuestMemory, MemoryLayout};
use ringside_frontend::net::net_feature::OFFLOADS;
use ringside_frontend::net::{Flow, Mac, NetConfig, NetHeader, NetPort, RxQueue, TxQueue};
use ringside_frontend::raw::RawClient;
use ringside_frontend::session::{Session, SessionBuilder};
use ringside_tests::hostile::{PATIENCE, Result, TestResult};

use super::{Device, Target};

/// The address of the port that nothing is done to.
pub(super) const OTHER: Mac = [2, 0, 0, 0, 0, 1];
/// That of the port under attack.
pub(super) const OWN: Mac = [2, 0, 0, 0, 0, 2];

/// A driver of a device, with one queue or pair of queues, or two of a folder.
pub(super) enum Guest {
    Disk(Session, BlkDriver),
    Port(NetPort),
    Folder(FuseClient),
}

impl Guest {
    pub(super) fn session(&mut self) -> &mut Session {
        match self {
            Self::Disk(session, _) => session,
            Self::Port(port) => &mut port.session,
            Self::Folder(client) => &mut client.session,
        }
    }
}

impl Target {
    /// A driver, and another hand on its connection.
    pub(super) fn guest(&mut self, builder: SessionBuilder) -> Result<(Guest, RawClient)> {
        let stream = self.process.connect(PATIENCE)?;
        let raw = RawClient::from_stream(stream.try_clone()?)?;
        let builder = builder.timeout(PATIENCE);
        let guest = match self.device {
            Device::Disk => {
                let mut session = builder.from_stream(stream)?;
                let vring = session.start_all()?.remove(0);
                Guest::Disk(session, BlkDriver::new(vring, BlkConfig::default())?)
            }
            Device::Switch => {
                let builder = builder.without_features(OFFLOADS);
                Guest::Port(NetPort::open(stream, builder, &NetConfig::default())?)
            }
            Device::Folder => {
                let config = FuseConfig {
                    session: builder,
                    ..FuseConfig::default()
                };
                Guest::Folder(FuseClient::from_stream(stream, &config)?)
            }
        };
        Ok((guest, raw))
    }

    /// Requests or frames, with content that is checked.
    pub(super) fn works(&mut self, guest: &mut Guest) -> TestResult {
        match guest {
            Guest::Disk(_, driver) => {
                let plan = Verify {
                    depth: 16,
                    block_bytes: 4096,
                    first_sector: 0,
                    blocks: 64,
                    seed: 7,
                };
                write_pattern(driver, &plan)?;
                check_content(driver, &plan)?;
            }
            Guest::Port(port) => {
                let (own, other) = (&mut port.pairs[0], &mut self.other);
                let other = &mut other.as_mut().ok_or("no other port")?.pairs[0];
                passes(&mut own.tx, &mut other.rx, OWN, OTHER)?;
                passes(&mut other.tx, &mut own.rx, OTHER, OWN)?;
            }
            Guest::Folder(client) => keeps(client.queue())?,
        }
        Ok(())
    }

    /// The next front-end is served.
    pub(super) fn serves(&mut self) -> TestResult {
        let memory = GuestMemory::new(&MemoryLayout::default())?;
        self.serves_in(memory)
    }

    /// The same with this memory.
    pub(super) fn serves_in(&mut self, memory: Arc<GuestMemory>) -> TestResult {
        let device = self.device;
        let (mut guest, _raw) = self.guest(Session::builder().existing_memory(memory))?;
        self.works(&mut guest)
            .map_err(|e| format!("{device:?}: {e}").into())
    }
}

/// Frames arrive as they were sent.
fn passes(tx: &mut TxQueue, rx: &mut RxQueue, source: Mac, destination: Mac) -> TestResult {
    let (mut sent, mut got) = (Vec::new(), Vec::new());
    for round in 0..20 {
        Flow::new(source, destination, 3).make(round, 700, &mut sent);
        rx.post_all()?;
        tx.send_now(&NetHeader::default(), &sent, PATIENCE)?;
        // What was sent before is passed over.
        while got != sent {
            rx.wait(&mut got, PATIENCE)?;
            rx.post_all()?;
        }
    }
    Ok(())
}

/// A file has what was written to it.
fn keeps(queue: &mut FuseQueue) -> TestResult {
    let (entry, opened) = queue.create(ROOT_NODE, "kept", libc::O_RDWR.cast_unsigned(), 0o600)?;
    let mut block = vec![0; 4096];
    for round in 0..20 {
        fill_pattern(round, 0, &mut block);
        queue.write(entry.node, opened.handle, round * 4096, &block)?;
        let back = queue.read(entry.node, opened.handle, round * 4096, 4096)?;
        assert!(back == block, "round {round} reads something else");
    }
    queue.release_file(entry.node, opened.handle)?;
    queue.unlink(ROOT_NODE, "kept")?;
    Ok(())
}
