// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver side of the control queue (virtio 1.3 §5.1.6.5).

use std::time::Duration;

use crate::error::Result;
use crate::memory::GuestSlice;
use crate::ring::{CallMode, Segment};
use crate::vring::Vring;

/// Room for class, command and data.
const ROOM_BYTES: usize = 64 << 10;

/// Classes of commands.
#[expect(
    missing_docs,
    reason = "the names are the specification's and explained there"
)]
pub mod class {
    pub const RX: u8 = 0;
    pub const MAC: u8 = 1;
    pub const VLAN: u8 = 2;
    pub const ANNOUNCE: u8 = 3;
    pub const MQ: u8 = 4;
    pub const GUEST_OFFLOADS: u8 = 5;
}

/// The device's answers.
pub mod ack {
    /// The command was done.
    pub const OK: u8 = 0;
    /// The command was refused, and nothing has changed.
    pub const ERR: u8 = 1;
    /// What the byte holds before the device answers.
    pub const UNTOUCHED: u8 = 0x77;
}

/// The control queue, for one thread.
#[derive(Debug)]
pub struct ControlQueue {
    vring: Vring,
    gpa: u64,
    window: GuestSlice,
}

impl ControlQueue {
    /// Allocates room for one command at a time.
    ///
    /// # Errors
    ///
    /// When guest memory runs out.
    pub fn new(vring: Vring) -> Result<Self> {
        let gpa = vring.memory().alloc(ROOM_BYTES + 8, 64)?;
        let window = vring.memory().slice(gpa, ROOM_BYTES + 8)?;
        Ok(Self { vring, gpa, window })
    }

    /// Sends class and command in a descriptor and data in another, as Linux does, and returns the
    /// answer.
    ///
    /// # Errors
    ///
    /// When none comes in time.
    pub fn command(&mut self, class: u8, command: u8, data: &[u8], wait: Duration) -> Result<u8> {
        self.window.write(0, &[class, command]);
        self.window.write(2, data);
        let data_len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let readable = [
            Segment::readable(self.gpa, 2),
            Segment::readable(self.gpa + 2, data_len),
        ];
        let count = if data.is_empty() { 1 } else { 2 };
        self.chain(&readable[..count], 1, wait)
            .map(|(answer, _)| answer)
    }

    /// Sends any readable segments with `ack_bytes` writable bytes after them; returns what the
    /// first of those holds then, and the used length.
    ///
    /// # Errors
    ///
    /// When the chain is not used in time.
    pub fn chain(
        &mut self,
        readable: &[Segment],
        ack_bytes: u32,
        wait: Duration,
    ) -> Result<(u8, u32)> {
        let ack_at = ROOM_BYTES;
        self.window.fill(ack_at, 8, ack::UNTOUCHED);
        let mut segments = readable.to_vec();
        if ack_bytes > 0 {
            segments.push(Segment::writable(self.gpa + ack_at as u64, ack_bytes));
        }
        self.vring.ring.add(&segments, &[])?;
        self.vring.publish()?;
        let deadline = std::time::Instant::now() + wait;
        loop {
            if let Some(used) = self.vring.ring.pop_used()? {
                let mut answer = [0];
                self.window.read(ack_at, &mut answer);
                return Ok((answer[0], used.len));
            }
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if self.vring.ring.config().calls == CallMode::Never && !left.is_zero() {
                std::thread::yield_now();
            } else {
                self.vring.wait_used(left)?;
            }
        }
    }

    /// Room for readable segments of a test's own: its address, and the window to fill it.
    #[must_use]
    pub fn room(&self) -> (u64, &GuestSlice) {
        (self.gpa, &self.window)
    }

    /// The vring.
    #[must_use]
    pub fn vring(&self) -> &Vring {
        &self.vring
    }

    /// The vring, for raw access.
    pub fn vring_mut(&mut self) -> &mut Vring {
        &mut self.vring
    }
}
