// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The window of a device, shared memory region 0: what the back-end has a front-end map into it.
//!
//! [`Window::serve`] answers on the back-channel as a VMM does: `SHMEM_MAP` maps the file that came
//! with it, `SHMEM_UNMAP` takes a mapping away as a whole. The guest's side of the window is
//! [`Window::read`] and [`Window::write`], which reach the file through the mapping. What the
//! protocol forbids is refused, and noted as a fault of the back-end.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags, VhostUserMsgValidator as _};
use vm_memory::{ByteValued as _, Bytes as _, FileOffset, MmapRegion, VolatileMemory as _};

use super::back_channel::BackChannel;
use super::ids::{backend_request, header_flag};
use super::raw::{Header, Message};

/// A back-end that is silent for longer has ended.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a front-end does with a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// What it is asked to.
    #[default]
    Obliging,
    /// It answers with an error.
    Refusing,
    /// It maps nothing that can be written.
    ReadOnly,
    /// It does not answer.
    Silent,
}

/// A window that is served.
#[derive(Clone, Debug)]
pub struct Window {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    size_bytes: u64,
    manner: Manner,
    mapped: BTreeMap<u64, MmapRegion>,
    messages: usize,
    faults: Vec<String>,
}

impl Window {
    /// Answers what comes on `channel` until it is closed, on a thread of its own.
    #[must_use]
    pub fn serve(channel: BackChannel, size_bytes: u64) -> Self {
        let state = State {
            size_bytes,
            ..State::default()
        };
        let window = Self {
            state: Arc::new(Mutex::new(state)),
        };
        let served = window.clone();
        std::thread::spawn(move || {
            while let Ok(message) = channel.raw().recv(PATIENCE) {
                let request = message.header.request;
                let Some(answer) = served.with(|state| state.receive(message)) else {
                    continue;
                };
                let mut header = Header::new(request, 8);
                header.flags |= header_flag::REPLY;
                let _gone = channel.raw().send(header, &answer.to_ne_bytes(), &[]);
            }
        });
        window
    }

    /// From now on.
    pub fn set_manner(&self, manner: Manner) {
        self.with(|state| state.manner = manner);
    }

    /// Offset, length and whether the guest may write, of all that is mapped.
    #[must_use]
    pub fn mapped(&self) -> Vec<(u64, usize, bool)> {
        let writable = |region: &MmapRegion| region.prot() & libc::PROT_WRITE != 0;
        self.with(|state| {
            let all = state.mapped.iter();
            all.map(|(offset, region)| (*offset, region.size(), writable(region)))
                .collect()
        })
    }

    /// Messages received.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.with(|state| state.messages)
    }

    /// What the back-end did that it must not.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        self.with(|state| state.faults.clone())
    }

    /// Reads from the window; none unless it is within one mapping.
    #[must_use]
    pub fn read(&self, offset: u64, bytes: usize) -> Option<Vec<u8>> {
        let mut data = vec![0; bytes];
        self.with(|state| {
            let (region, at) = state.at(offset)?;
            let window = region.as_volatile_slice();
            window.read_slice(&mut data, at).ok()
        })?;
        Some(data)
    }

    /// Writes to the window; none unless it is within one mapping.
    #[must_use]
    pub fn write(&self, offset: u64, data: &[u8]) -> Option<()> {
        self.with(|state| {
            let (region, at) = state.at(offset)?;
            region.as_volatile_slice().write_slice(data, at).ok()
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    /// The mapping that a place of the window is in, if any, and where in it.
    fn at(&self, offset: u64) -> Option<(&MmapRegion, usize)> {
        let (start, region) = self.mapped.range(..=offset).next_back()?;
        Some((region, usize::try_from(offset - start).ok()?))
    }

    /// The answer, if there is one.
    fn receive(&mut self, message: Message) -> Option<u64> {
        self.messages += 1;
        match self.manner {
            Manner::Silent => None,
            Manner::Refusing => Some(1),
            Manner::ReadOnly if wants_to_write(&message) => Some(1),
            Manner::Obliging | Manner::ReadOnly => match self.serve(message) {
                Ok(()) => Some(0),
                Err(fault) => {
                    self.faults.push(fault);
                    Some(1)
                }
            },
        }
    }

    fn serve(&mut self, message: Message) -> Result<(), String> {
        if message.header.flags != header_flag::VERSION | header_flag::NEED_REPLY {
            return Err(format!("flags {:#x}", message.header.flags));
        }
        let request = VhostUserMMap::from_slice(&message.body).copied();
        let request = request.filter(|request| request.is_valid() && request.shmid == 0);
        let request = request.ok_or_else(|| format!("{:?}", message.body))?;
        let mut fds = message.fds.into_iter();
        match (message.header.request, fds.next(), fds.next()) {
            (backend_request::SHMEM_MAP, Some(fd), None) => self.map(&request, fd),
            (backend_request::SHMEM_UNMAP, None, None) => self.unmap(&request),
            (request, ..) => Err(format!("message {request}, or its descriptors")),
        }
    }

    fn map(&mut self, request: &VhostUserMMap, fd: OwnedFd) -> Result<(), String> {
        let (offset, len) = (request.shm_offset, request.len);
        let ends = |(start, region): (&u64, &MmapRegion)| start + region.size() as u64;
        let before = self.mapped.range(..offset + len).next_back().map(ends);
        if offset + len > self.size_bytes || before.is_some_and(|end| end > offset) {
            return Err(format!("{request:?} does not fit"));
        }
        let mut prot = libc::PROT_READ;
        if request.flags == VhostUserMMapFlags::WRITABLE.bits() {
            prot |= libc::PROT_WRITE;
        }
        let file = FileOffset::new(File::from(fd), request.fd_offset);
        let bytes = usize::try_from(len).map_err(|e| e.to_string())?;
        let region = MmapRegion::build(Some(file), bytes, prot, libc::MAP_SHARED);
        self.mapped
            .insert(offset, region.map_err(|e| e.to_string())?);
        Ok(())
    }

    fn unmap(&mut self, request: &VhostUserMMap) -> Result<(), String> {
        let (offset, len) = (request.shm_offset, request.len);
        let region = self.mapped.get(&offset);
        if region.is_none_or(|region| region.size() as u64 != len) {
            return Err(format!("{request:?} is not mapped"));
        }
        self.mapped.remove(&offset);
        Ok(())
    }
}

fn wants_to_write(message: &Message) -> bool {
    let request = VhostUserMMap::from_slice(&message.body);
    request.is_some_and(|request| request.flags == VhostUserMMapFlags::WRITABLE.bits())
}
