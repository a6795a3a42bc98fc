// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors that no thread can close without a risk, and the process that closes them when this
//! one has ended.
//!
//! `close(2)` of a file of FUSE waits for its server, whichever that is, and no signal ends that
//! wait. So does the end of a process that has one open. Only the last process to have a table of
//! descriptors (`CLONE_FILES`) closes what is in it. So with the first descriptor that is kept
//! comes an *heir*: a process that shares descriptors and memory with this one, and waits until it
//! is gone, by whatever end. Then the heir closes all but what is kept and unmaps what is shared,
//! so that locks, sockets and guest memory are free, and ends: it is the one that waits, with
//! nothing but these files, and nobody waits for it.
//!
//! Where the sandbox has left a parent outside, that one is told of our end, and waits for it only
//! for a while ([`leave_to_parent`]). In a namespace of processes there is no heir: the namespace
//! ends with the last of them. So there a process that is killed is gone with its file only.

use std::io::{self, PipeWriter, Write as _};
use std::ops::Range;
use std::os::fd::{AsRawFd as _, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use libc::{c_int, c_uint, c_void};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read};
use rustix::mm::munmap;
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use rustix::thread::set_name;

use super::signal::HeldSignals;
use crate::num::{unsigned, usize_of};
use crate::{descriptors, limited};

/// The most descriptors that are kept: each of 256 sockets has its share.
const MOST: usize = 1 << 14;
/// Of the heir's stack.
const STACK_BYTES: usize = 64 << 10;
/// Of the list of mappings that is read at a time.
const MAPS_BYTES: usize = 4096;

/// The numbers of what is kept, counted from 1; the heir reads them when all threads that could
/// hold a lock are gone.
static KEPT: [AtomicI32; MOST] = [const { AtomicI32::new(0) }; MOST];
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// Whether there is an heir.
static MADE: Mutex<bool> = Mutex::new(false);
/// There must not be one.
static NO_HEIR: AtomicBool = AtomicBool::new(false);
/// Where a parent is told how this process ends.
static PARENT: OnceLock<PipeWriter> = OnceLock::new();

/// Whether nothing more can be kept.
pub(crate) fn is_full() -> bool {
    COUNT.load(Ordering::Acquire) >= MOST
}

/// Whether this process may have an heir.
pub(crate) fn may_be() -> bool {
    !NO_HEIR.load(Ordering::Acquire)
}

/// Keeps `fd` open for as long as this process lives.
pub(crate) fn keep(fd: OwnedFd) {
    note(fd.into_raw_fd());
    if !may_be() {
        return;
    }
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if *made {
        return;
    }
    match make() {
        Ok(()) => *made = true,
        // The next one tries again.
        Err(error) => limited!(
            error,
            "the end of this process may have to wait for a file that was handed over: {error}"
        ),
    }
}

fn note(number: RawFd) {
    let slot = KEPT.get(COUNT.fetch_add(1, Ordering::AcqRel));
    if let Some(slot) = slot {
        slot.store(number + 1, Ordering::Release);
    }
}

/// A parent waits for the end of this process, and is told of it through `parent` before. There is
/// an heir besides it if this process `may_have_heir`.
pub(crate) fn leave_to_parent(parent: PipeWriter, may_have_heir: bool) {
    // There is one sandbox in the life of a process.
    let _ = PARENT.set(parent);
    NO_HEIR.store(!may_have_heir, Ordering::Release);
}

/// Tells the parent, if there is one, that this process is about to end with `status`.
/// Async-signal-safe.
pub(crate) fn tell_parent(status: u8) {
    if let Some(mut parent) = PARENT.get() {
        // It has room for one byte, or the parent has gone.
        let _ = parent.write(&[status]);
    }
}

fn make() -> io::Result<()> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let held = HeldSignals::all()?;
    let mut stack = vec![0_u8; STACK_BYTES];
    let top = stack.as_mut_ptr_range().end.cast::<c_void>();
    let number = usize_of(unsigned(own.as_raw_fd().into()));
    let argument = std::ptr::without_provenance_mut(number);
    // No signal when it ends: nothing waits for it.
    let flags = libc::CLONE_VM | libc::CLONE_FILES;
    // SAFETY: the stack is the heir's for good; what it runs takes no lock, allocates nothing, and
    // uses no variable of a thread, since it has those of this one, which may be gone by then.
    let heir = unsafe { libc::clone(inherit, top, flags, argument) };
    let error = io::Error::last_os_error();
    drop(held);
    if heir < 0 {
        return Err(error);
    }
    // Both are in use until this process has ended.
    let _ = (stack.leak(), own.into_raw_fd());
    Ok(())
}

/// The life of the heir. Its calls go to the kernel without the C library, or do not fail: `errno`
/// is a variable of a thread.
extern "C" fn inherit(process: *mut c_void) -> c_int {
    let _ = set_name(c"ringside-heir");
    // `make` has made the address of a descriptor: nothing is clamped.
    let process = RawFd::try_from(process.addr()).unwrap_or(-1);
    // SAFETY: it is open until the loop below has ended: `make` has given it away.
    let process = unsafe { BorrowedFd::borrow_raw(process) };
    let maps = descriptors::open_own_maps().map(IntoRawFd::into_raw_fd);
    if let Ok(maps) = maps {
        note(maps);
    }
    loop {
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], None) {
            Err(Errno::INTR) => {}
            Ok(_) => break,
            // It cannot tell when, and must not close what is in use.
            Err(_) => return 1,
        }
    }
    let mut first = 0;
    while let Some(kept) = next_kept(first) {
        if kept > first {
            close_range(first, kept - 1);
        }
        first = kept + 1;
    }
    close_range(first, c_uint::MAX);
    // Behind what cannot wait: it may be memory of a file system that does.
    if let Ok(maps) = maps {
        // SAFETY: it is kept, and so has not been closed.
        unmap_shared(unsafe { BorrowedFd::borrow_raw(maps) });
    }
    0
}

/// Unmaps guest memory and the rings of `io_uring`, which hold the files that they do I/O to.
fn unmap_shared(maps: BorrowedFd<'_>) {
    let mut text = [0; MAPS_BYTES];
    let mut mappings = Mappings::default();
    while let Ok(count @ 1..) = read(maps, &mut text) {
        for byte in text.iter().take(count) {
            if let Some(shared) = mappings.shared_at(*byte) {
                let start = std::ptr::with_exposed_provenance_mut(shared.start);
                // SAFETY: who used it has ended; the heir uses none of what is shared.
                let _ = unsafe { munmap(start, shared.len()) };
            }
        }
    }
}

/// Reads `/proc/self/maps` byte by byte (`proc_pid_maps(5)`), for it may not allocate.
#[derive(Debug, Default)]
struct Mappings {
    /// Number of the byte's part of the line: the start, the end, the permissions, the rest.
    part: u8,
    start: usize,
    end: usize,
    is_shared: bool,
}

impl Mappings {
    /// The next byte is this; returns a mapping that is shared when its permissions are read.
    fn shared_at(&mut self, byte: u8) -> Option<Range<usize>> {
        match (byte, self.part) {
            (b'\n', _) => *self = Self::default(),
            (b'-', 0) | (b' ', 1) => self.part += 1,
            (b' ', 2) => {
                self.part += 1;
                return self.is_shared.then_some(self.start..self.end);
            }
            (digit, 0) => self.start = with_digit(self.start, digit),
            (digit, 1) => self.end = with_digit(self.end, digit),
            (letter, 2) => self.is_shared |= letter == b's',
            _ => {}
        }
        None
    }
}

fn with_digit(number: usize, digit: u8) -> usize {
    let value = match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        // The kernel writes no other.
        _ => 0,
    };
    number << 4 | usize::from(value)
}

/// The smallest number that is kept and not below `first`.
fn next_kept(first: c_uint) -> Option<c_uint> {
    let count = COUNT.load(Ordering::Acquire);
    let numbers = KEPT.iter().take(count);
    numbers
        .filter_map(|slot| c_uint::try_from(slot.load(Ordering::Acquire) - 1).ok())
        .filter(|number| *number >= first)
        .min()
}

fn close_range(first: c_uint, last: c_uint) {
    // SAFETY: nobody else uses these descriptors: the process that did has ended.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

#[cfg(test)]
mod tests {
    use super::Mappings;

    #[test]
    fn shared_mappings_are_found_in_the_list() {
        let list = b"55d0-55d8 r--p 00000000 fe:00 17  /usr/bin/ringside-blk\n\
            7f0012345000-7f0012347000 rw-s 00000000 00:01 5 /memfd:guest-1 (deleted)\n\
            7f0012347000-7f0012348000 ---p 00000000 00:00 0\n\
            7f0012349000-7f001234a000 rw-s 08000000 00:0e 9 anon_inode:[io_uring]\n";
        let mut mappings = Mappings::default();
        let found: Vec<_> = list
            .iter()
            .filter_map(|byte| mappings.shared_at(*byte))
            .collect();
        let rings = 0x7f00_1234_9000..0x7f00_1234_a000;
        assert_eq!(found, [0x7f00_1234_5000..0x7f00_1234_7000, rings]);
    }
}
