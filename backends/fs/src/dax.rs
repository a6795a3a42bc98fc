// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The window of the guest that files are mapped into (virtio 1.3 §5.11.6 "DAX Window").
//!
//! The window is shared memory region 0 of the device; the front-end makes it, of the size that
//! `GET_SHMEM_CONFIG` tells, and maps into it what it is asked to on the back channel. So the
//! guest reads and writes the host's page cache itself, and keeps no copy. `SETUPMAPPING` puts a
//! range of a file at a place of the window, `REMOVEMAPPING` takes it away.
//!
//! [`Window`] knows what is mapped, so that a guest can only take away what it has put there, and
//! nothing is left over for the next one. A mapping is known by where it begins and how long it
//! is. The same range may be mapped anew (Linux does to write where it has only read before),
//! which takes the former one away first, for the protocol has no way to change it, and brings it
//! back if the front-end refuses the new one; another that overlaps is refused.
//!
//! What the front-end does not answer is taken for mapped, and taken away before the next use. A
//! session that ends takes the window with it; a reset leaves it as it is until the next `INIT`,
//! for a front-end that waits for us may not listen.
//!
//! # Dangers
//! A file that is cut off on the host under a mapping is a fault in the guest or in the VMM when
//! that part is touched. Data that the guest has written is in the page cache of the host, as with
//! any `mmap(2)`: it is stable after `FSYNC`.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ringside_common::backchannel::{BackChannel, ShmemError};
use ringside_common::limited;
use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags};

use crate::error::{Errno, Result};

/// The least size of a window: what Linux maps at once.
pub const MIN_WINDOW_BYTES: u64 = 2 << 20;
/// Files smaller than this are not to be mapped where the guest leaves it to us: a request to map
/// costs more than one to read.
pub const MIN_FILE_BYTES: u64 = 32 << 10;
/// The most mappings: as many as a Linux process may have, and the front-end is one.
const MAX_MAPPINGS: usize = 1 << 15;

/// A part of a file at a place of the window. All numbers are the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Of which file.
    pub node: u64,
    /// Where it is in the window.
    pub window_offset_bytes: u64,
    /// Where it begins in the file.
    pub file_offset_bytes: u64,
    /// How long it is.
    pub len_bytes: u64,
    /// Whether the guest may write.
    pub writable: bool,
}

impl Mapping {
    /// Whole pages of a file that can be, within a window of `window_bytes`.
    fn check(&self, window_bytes: u64) -> Result<()> {
        let page_bytes = rustix::param::page_size() as u64;
        let numbers = [
            self.window_offset_bytes,
            self.file_offset_bytes,
            self.len_bytes,
        ];
        let is_aligned = numbers.iter().all(|n| n.is_multiple_of(page_bytes));
        let fits = |offset: u64, limit: u64| {
            let end = offset.checked_add(self.len_bytes);
            end.is_some_and(|end| end <= limit)
        };
        let is_valid = self.len_bytes > 0
            && is_aligned
            && fits(self.window_offset_bytes, window_bytes)
            && fits(self.file_offset_bytes, i64::MAX.cast_unsigned());
        is_valid.then_some(()).ok_or(Errno::INVAL)
    }
}

/// What is mapped, by the offset in the window.
type Mapped = BTreeMap<u64, Mapping>;

/// The window, and the way to the front-end that has it.
#[derive(Debug, Default)]
pub struct Window {
    size_bytes: u64,
    channel: BackChannel,
    /// Held while the front-end is asked.
    mapped: Mutex<Mapped>,
}

impl Window {
    /// A window of a power of two of bytes; 0 for none.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            ..Self::default()
        }
    }

    /// How large it is; 0 when there is none.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The way to the front-end.
    #[must_use]
    pub fn channel(&self) -> &BackChannel {
        &self.channel
    }

    /// Whether there is one, and the front-end maps into it what it is asked to.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.size_bytes > 0 && self.channel.has_shmem()
    }

    /// Whether something is mapped, or about to be.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.mapped
            .try_lock()
            .map_or(true, |mapped| !mapped.is_empty())
    }

    /// Maps a part of `file`. May wait for the front-end.
    ///
    /// # Errors
    /// EINVAL for what cannot be or overlaps another, ENOMEM when there are too many; EIO when the
    /// front-end does not do it.
    pub fn map(&self, mapping: &Mapping, file: BorrowedFd<'_>) -> Result<()> {
        mapping.check(self.size_bytes)?;
        let (offset, len) = (mapping.window_offset_bytes, mapping.len_bytes);
        let mut mapped = self.lock();
        let former = mapped.get(&offset).copied();
        let former = former.filter(|former| former.len_bytes == len);
        if former.is_some() {
            match self.take_away(&mut mapped, offset, len) {
                Ok(()) | Err(ShmemError::Refused(_)) => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        let before = mapped.range(..offset + len).next_back();
        if before.is_some_and(|(start, last)| start + last.len_bytes > offset) {
            return Err(Errno::INVAL);
        }
        if mapped.len() >= MAX_MAPPINGS {
            return Err(Errno::NOMEM);
        }
        let mut result = self.put(&mut mapped, mapping, file);
        let read_only = Mapping {
            writable: false,
            ..*mapping
        };
        if matches!(result, Err(ShmemError::Refused(_))) && former == Some(read_only) {
            // The guest goes on reading where it has read before.
            if let Err(error) = self.put(&mut mapped, &read_only, file) {
                result = Err(error);
            }
        }
        result.map_err(|error| failed(&error))
    }

    fn put(
        &self,
        mapped: &mut Mapped,
        mapping: &Mapping,
        file: BorrowedFd<'_>,
    ) -> std::result::Result<(), ShmemError> {
        let flags = if mapping.writable {
            VhostUserMMapFlags::WRITABLE
        } else {
            VhostUserMMapFlags::empty()
        };
        let request = VhostUserMMap {
            fd_offset: mapping.file_offset_bytes,
            flags: flags.bits(),
            ..range(mapping.window_offset_bytes, mapping.len_bytes)
        };
        let result = self.channel.shmem_map(&request, file);
        if matches!(result, Ok(()) | Err(ShmemError::Unanswered(_))) {
            mapped.insert(mapping.window_offset_bytes, *mapping);
        }
        result
    }

    /// Takes a mapping away. May wait for the front-end.
    ///
    /// # Errors
    /// EINVAL when there is none; EIO when the front-end does not do it.
    pub fn unmap(&self, offset: u64, len: u64) -> Result<()> {
        let mut mapped = self.lock();
        if mapped.get(&offset).is_none_or(|last| last.len_bytes != len) {
            return Err(Errno::INVAL);
        }
        self.take_away(&mut mapped, offset, len)
            .map_err(|error| failed(&error))
    }

    /// Takes away whatever is mapped. May wait for the front-end.
    pub fn clear(&self) {
        let mut mapped = self.lock();
        while let Some((&offset, first)) = mapped.first_key_value() {
            let len = first.len_bytes;
            match self.take_away(&mut mapped, offset, len) {
                Ok(()) | Err(ShmemError::Refused(_)) => {}
                Err(error) => {
                    limited!(warn, "mappings of the guest are left: {error}");
                    break;
                }
            }
        }
    }

    /// The window has gone with all that was in it.
    pub fn forget(&self) {
        self.lock().clear();
    }

    fn take_away(
        &self,
        mapped: &mut Mapped,
        offset: u64,
        len: u64,
    ) -> std::result::Result<(), ShmemError> {
        let result = self.channel.shmem_unmap(&range(offset, len));
        // A front-end that refuses has none.
        if matches!(result, Ok(()) | Err(ShmemError::Refused(_))) {
            mapped.remove(&offset);
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, Mapped> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A range of the window, which is `VIRTIO_FS_SHMCAP_ID_CACHE`: region 0.
fn range(offset: u64, len: u64) -> VhostUserMMap {
    VhostUserMMap {
        shm_offset: offset,
        len,
        ..VhostUserMMap::default()
    }
}

/// What the guest is told.
fn failed(error: &ShmemError) -> Errno {
    limited!(debug, "the window of the guest: {error}");
    Errno::IO
}
