// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtqueue with its three eventfds: what one driver thread needs.

use std::fmt;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::error::{FrontendError, Result};
use super::memory::GuestMemory;
use super::ring::{RingConfig, SplitRing};

/// A non-blocking eventfd that can be waited for.
pub struct Event {
    fd: EventFd,
    /// `EventFd` is no `AsFd`, so without `unsafe` only an epoll set can wait for it.
    epoll: Epoll,
}

impl Event {
    /// An eventfd with counter 0.
    ///
    /// # Errors
    ///
    /// When the kernel has no file descriptor left.
    pub fn new() -> Result<Self> {
        Self::of(EventFd::new(EFD_NONBLOCK).map_err(FrontendError::io("eventfd"))?)
    }

    fn of(fd: EventFd) -> Result<Self> {
        let epoll = Epoll::new().map_err(FrontendError::io("epoll_create"))?;
        let interest = EpollEvent::new(EventSet::IN, 0);
        epoll
            .ctl(ControlOperation::Add, fd.as_raw_fd(), interest)
            .map_err(FrontendError::io("epoll_ctl"))?;
        Ok(Self { fd, epoll })
    }

    /// The same eventfd a second time, with its one counter.
    ///
    /// # Errors
    ///
    /// When the kernel has no file descriptor left.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone().map_err(FrontendError::io("dup"))?;
        Self::of(fd)
    }

    /// Adds 1 to the counter.
    ///
    /// # Errors
    ///
    /// When the counter is at its maximum.
    #[inline]
    pub fn signal(&self) -> Result<()> {
        self.fd
            .write(1)
            .map_err(FrontendError::io("write to an eventfd"))
    }

    /// Takes the counter; `None` when it is 0.
    ///
    /// # Errors
    ///
    /// When the read fails for another reason.
    pub fn take(&self) -> Result<Option<u64>> {
        match self.fd.read() {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(FrontendError::io("read of an eventfd")(error)),
        }
    }

    /// Waits until the counter is not 0, and takes it.
    ///
    /// # Errors
    ///
    /// [`FrontendError::Timeout`] when it stays 0.
    pub fn wait(&self, event: &'static str, timeout: Duration) -> Result<u64> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(count) = self.take()? {
                return Ok(count);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(FrontendError::Timeout { event, timeout });
            }
            // Rounded up, or the last fraction of a millisecond would spin.
            let left_ms = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
            let mut ready = [EpollEvent::default()];
            match self.epoll.wait(left_ms, &mut ready) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(FrontendError::io("epoll_wait")(error)),
            }
        }
    }

    /// The eventfd as the vhost crate takes it.
    #[must_use]
    pub fn fd(&self) -> &EventFd {
        &self.fd
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Event").field(&self.fd.as_raw_fd()).finish()
    }
}

/// A virtqueue and the eventfds it is set up with.
#[derive(Debug)]
pub struct Vring {
    /// Index of the vring in the device.
    pub index: usize,
    /// The driver side.
    pub ring: SplitRing,
    /// Driver to device.
    pub kick: Event,
    /// Device to driver.
    pub call: Event,
    /// The back-end's complaint that the ring is broken.
    pub err: Event,
    /// Kicks sent so far.
    pub kicks: u64,
    memory: Arc<GuestMemory>,
}

impl Vring {
    /// Creates ring and eventfds; nothing is sent to the back-end.
    ///
    /// # Errors
    ///
    /// When guest memory or file descriptors run out.
    pub fn new(memory: &Arc<GuestMemory>, index: usize, config: RingConfig) -> Result<Self> {
        Ok(Self {
            index,
            ring: SplitRing::new(memory, config)?,
            kick: Event::new()?,
            call: Event::new()?,
            err: Event::new()?,
            kicks: 0,
            memory: Arc::clone(memory),
        })
    }

    /// The guest memory the ring lies in.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Publishes what was added and kicks if the device wants it; `true` when it was kicked.
    ///
    /// # Errors
    ///
    /// When the kick's eventfd is at its maximum.
    #[inline]
    pub fn publish(&mut self) -> Result<bool> {
        let wanted = self.ring.publish();
        if wanted {
            self.kick()?;
        }
        Ok(wanted)
    }

    /// Kicks in any case.
    ///
    /// # Errors
    ///
    /// When the eventfd is at its maximum.
    pub fn kick(&mut self) -> Result<()> {
        self.kicks += 1;
        self.kick.signal()
    }

    /// Waits for a call and returns how many were folded into it.
    ///
    /// # Errors
    ///
    /// [`FrontendError::Timeout`] when none comes.
    pub fn wait_call(&self, timeout: Duration) -> Result<u64> {
        self.call.wait("call", timeout)
    }

    /// Waits until the back-end reports the ring as broken.
    ///
    /// # Errors
    ///
    /// [`FrontendError::Timeout`] when it does not.
    pub fn wait_err(&self, timeout: Duration) -> Result<u64> {
        self.err.wait("err", timeout)
    }

    /// Asks for a call and waits until the used ring has something, woken by calls alone.
    ///
    /// # Errors
    ///
    /// [`FrontendError::Timeout`] when nothing comes; a call without a completion is passed over.
    pub fn wait_used(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while !self.ring.arm_call() {
            let left = deadline.saturating_duration_since(Instant::now());
            self.call.wait("call", left)?;
        }
        Ok(())
    }
}
