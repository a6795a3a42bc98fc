// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The mapping of one region, and bounds-checked windows into it.
//!
//! This is the only `unsafe` code of the test front-end. A back-end in another process writes the
//! same pages at any time, so no Rust reference to plain data is ever made: fields are atomics,
//! bulk data is copied through raw pointers.

#![expect(
    unsafe_code,
    reason = "shared memory has to be mapped and accessed through raw pointers"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use rustix::mm::{MapFlags, ProtFlags};

/// One `mmap` of guest memory, unmapped on drop.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: 1. the pages are shared by nature: every access goes through atomics or raw copies;
// 2. the mapping is never moved or resized; 3. it is unmapped only when the last owner is gone.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`; there is no interior state besides the shared pages.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: 1. `start` and `bytes` are what mmap returned and was given; 2. windows hold an
        // `Arc` of this value, so none exists any more.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "munmap of a mapping we own: {unmapped:?}");
    }
}

/// A contiguous window into guest memory. Cloning is cheap and keeps the mapping alive.
///
/// Offsets outside the window are mistakes of the test and panic.
#[derive(Clone, Debug)]
pub struct GuestSlice {
    /// Keeps `start` valid.
    mapping: Arc<Mapping>,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: 1. `start` points into `mapping`, which is itself `Send` and `Sync` and held alive here;
// 2. all access goes through atomics or raw copies.
unsafe impl Send for GuestSlice {}
// SAFETY: as for `Send`.
unsafe impl Sync for GuestSlice {}

impl GuestSlice {
    /// Maps `bytes` of `file` from `offset` on, readable, writable and shared.
    ///
    /// # Errors
    /// Of `mmap(2)`.
    pub fn map(
        file: BorrowedFd<'_>,
        offset: u64,
        bytes: usize,
        populate: bool,
    ) -> rustix::io::Result<Self> {
        let mut flags = MapFlags::SHARED;
        if populate {
            flags |= MapFlags::POPULATE;
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: 1. a null hint without MAP_FIXED replaces no mapping of ours; 2. the kernel
        // checks length, offset and file.
        let start =
            unsafe { rustix::mm::mmap(ptr::null_mut(), bytes, access, flags, file, offset) }?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(rustix::io::Errno::NOMEM)?;
        let mapping = Arc::new(Mapping { start, bytes });
        Ok(Self {
            mapping,
            start,
            bytes,
        })
    }

    /// Length of the window.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.bytes
    }

    /// Where the window starts in this process.
    #[must_use]
    pub fn hva(&self) -> u64 {
        self.start.as_ptr().addr() as u64
    }

    /// A window into this window.
    #[must_use]
    pub fn sub(&self, offset: usize, bytes: usize) -> Self {
        self.check(offset, bytes);
        // SAFETY: `check` found `offset` inside the window, hence inside the mapping.
        let start = unsafe { self.start.add(offset) };
        Self {
            mapping: Arc::clone(&self.mapping),
            start,
            bytes,
        }
    }

    /// The byte at `offset`.
    #[inline]
    #[must_use]
    pub fn u8(&self, offset: usize) -> &AtomicU8 {
        let field = self.field(offset);
        // SAFETY: `field` vouches for bounds and alignment, `mapping` for the life time.
        unsafe { AtomicU8::from_ptr(field) }
    }

    /// The aligned 16-bit field at `offset`.
    #[inline]
    #[must_use]
    pub fn u16(&self, offset: usize) -> &AtomicU16 {
        let field = self.field(offset);
        // SAFETY: `field` vouches for bounds and alignment, `mapping` for the life time.
        unsafe { AtomicU16::from_ptr(field) }
    }

    /// The aligned 32-bit field at `offset`.
    #[inline]
    #[must_use]
    pub fn u32(&self, offset: usize) -> &AtomicU32 {
        let field = self.field(offset);
        // SAFETY: `field` vouches for bounds and alignment, `mapping` for the life time.
        unsafe { AtomicU32::from_ptr(field) }
    }

    /// The aligned 64-bit field at `offset`.
    #[inline]
    #[must_use]
    pub fn u64(&self, offset: usize) -> &AtomicU64 {
        let field = self.field(offset);
        // SAFETY: `field` vouches for bounds and alignment, `mapping` for the life time.
        unsafe { AtomicU64::from_ptr(field) }
    }

    /// Copies out `into.len()` bytes from `offset`.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        self.check(offset, into.len());
        // SAFETY: `check` found `offset` inside the window.
        let from = unsafe { self.start.add(offset) };
        // SAFETY: 1. `check` covers the source; 2. `into` is private memory, so they do not
        // overlap; 3. a concurrent write by the device can tear bytes, which any value survives.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), into.as_mut_ptr(), into.len()) };
    }

    /// Copies `from` in at `offset`.
    pub fn write(&self, offset: usize, from: &[u8]) {
        self.check(offset, from.len());
        // SAFETY: `check` found `offset` inside the window.
        let into = unsafe { self.start.add(offset) };
        // SAFETY: as in `read`, with the roles exchanged.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), into.as_ptr(), from.len()) };
    }

    /// Sets `bytes` bytes from `offset` to `value`.
    pub fn fill(&self, offset: usize, bytes: usize, value: u8) {
        self.check(offset, bytes);
        // SAFETY: `check` found `offset` inside the window.
        let into = unsafe { self.start.add(offset) };
        // SAFETY: `check` covers the whole range.
        unsafe { ptr::write_bytes(into.as_ptr(), value, bytes) };
    }

    /// `read(2)`s up to `bytes` bytes into the window at `offset`.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn read_from(
        &self,
        offset: usize,
        bytes: usize,
        file: BorrowedFd<'_>,
    ) -> io::Result<usize> {
        self.check(offset, bytes);
        // SAFETY: `check` found `offset` inside the window.
        let into = unsafe { self.start.add(offset) };
        // SAFETY: `check` covers the whole range, which the kernel fills.
        let read = unsafe { libc::read(file.as_raw_fd(), into.as_ptr().cast(), bytes) };
        usize::try_from(read).map_err(|_negative| io::Error::last_os_error())
    }

    /// `write(2)`s `bytes` bytes of the window from `offset`.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn write_to(&self, offset: usize, bytes: usize, file: BorrowedFd<'_>) -> io::Result<usize> {
        self.check(offset, bytes);
        // SAFETY: `check` found `offset` inside the window.
        let from = unsafe { self.start.add(offset) };
        // SAFETY: `check` covers the whole range, which the kernel only reads.
        let written = unsafe { libc::write(file.as_raw_fd(), from.as_ptr().cast(), bytes) };
        usize::try_from(written).map_err(|_negative| io::Error::last_os_error())
    }

    #[inline]
    fn check(&self, offset: usize, bytes: usize) {
        let inside = offset <= self.bytes && bytes <= self.bytes - offset;
        assert!(
            inside,
            "access {offset}+{bytes} outside a window of {} bytes",
            self.bytes
        );
    }

    /// A pointer to a naturally aligned `T` inside the window.
    #[inline]
    fn field<T>(&self, offset: usize) -> *mut T {
        self.check(offset, size_of::<T>());
        // SAFETY: `check` found `offset` inside the window.
        let field = unsafe { self.start.add(offset) };
        let field = field.as_ptr().cast::<T>();
        assert!(field.is_aligned(), "misaligned field at offset {offset}");
        field
    }
}
