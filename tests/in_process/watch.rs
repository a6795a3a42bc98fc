// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that changes memory between any two reads of a device that is served in this process.
//!
//! [`Watch`] takes pages of guest memory away from the device: each of its accesses traps, is let
//! through as one instruction, and is counted. A [`Change`] can be made behind any of them, so that
//! what two threads would meet by luck once in a million requests is met each time.

#![expect(
    unsafe_code,
    reason = "handlers of signals, and pages that are taken away and given back"
)]

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use crate::covering::FULL_VARIABLE;
use ringside_frontend::memory::{GuestMemory, GuestSlice};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Other bytes at one place of the pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where.
    pub at: usize,
    /// What is there then: one byte, or a field that is read as one.
    pub bytes: Vec<u8>,
}

impl Change {
    /// The longest field.
    const MOST_BYTES: usize = 8;

    /// Another byte at `at`.
    #[must_use]
    pub fn byte(at: usize, value: u8) -> Self {
        let bytes = vec![value];
        Self { at, bytes }
    }
}

/// When a change is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Not at all.
    Never,
    /// Before the device looks.
    Before,
    /// When it has made so many accesses.
    After(usize),
}

/// Whether an instruction of the device can be let through alone on this kind of machine.
pub const SUPPORTED: bool = cfg!(target_arch = "x86_64");

/// The trap flag: the processor stops behind the next instruction.
#[cfg(target_arch = "x86_64")]
const TRAP: libc::greg_t = 0x100;

/// The device's mapping of the pages that are taken away; nothing is while it is empty.
static START: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);
/// Accesses so far, and the one behind which the change is made.
static ACCESSES: AtomicUsize = AtomicUsize::new(0);
static AFTER: AtomicUsize = AtomicUsize::new(0);
/// Where the first of them were, from the start of the pages.
static PLACES: [AtomicUsize; KEPT_PLACES] = [const { AtomicUsize::new(0) }; KEPT_PLACES];
const KEPT_PLACES: usize = 512;
/// The change: our own mapping of its place, and what is written there.
static PLACE: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static VALUE: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static VALUE_BYTES: AtomicUsize = AtomicUsize::new(0);

/// The most bytes that one instruction reads.
const WIDEST_BYTES: usize = 64;

/// What the device has done with the pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Accesses it has made.
    pub accesses: usize,
    /// Where the first of them were.
    places: Vec<usize>,
    /// Where the change was.
    change: Range<usize>,
}

impl Seen {
    fn of(change: &Change) -> Self {
        let accesses = ACCESSES.load(Ordering::SeqCst);
        let kept = PLACES.iter().take(accesses);
        Self {
            accesses,
            places: kept.map(|place| place.load(Ordering::Relaxed)).collect(),
            change: change.at..change.at + change.bytes.len(),
        }
    }

    /// The accesses that may have been of a byte of this range, as [`Moment::After`] has them.
    fn near(&self, range: &Range<usize>) -> Vec<usize> {
        let is_near = |&access: &usize| {
            self.places
                .get(access - 1)
                .is_none_or(|&place| place < range.end && range.start < place + WIDEST_BYTES)
        };
        (1..=self.accesses).filter(is_near).collect()
    }
}

/// There is one pair of handlers, and what they use.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Pages of guest memory of which every access by a device in this process is seen.
#[derive(Debug)]
pub struct Watch {
    ours: GuestSlice,
    theirs: usize,
}

impl Watch {
    /// Watches `bytes` at `gpa`, both whole pages, in the memory of a session whose device is
    /// served in this process.
    ///
    /// # Errors
    ///
    /// When the device has not mapped them.
    pub fn new(memory: &GuestMemory, gpa: u64, bytes: usize) -> Result<Self> {
        let ours = memory.slice(gpa, bytes)?;
        let region = memory
            .regions()
            .iter()
            .find(|region| {
                gpa.checked_sub(region.gpa())
                    .is_some_and(|offset| offset < region.len_bytes() as u64)
            })
            .ok_or("no region")?;
        let in_file = region.info().mmap_offset + (gpa - region.gpa());
        let inode = rustix::fs::fstat(region.file().as_fd())?.st_ino;
        let hva = usize::try_from(ours.hva())?;
        let theirs = mappings(inode, in_file)?
            .into_iter()
            .find(|&address| address != hva)
            .ok_or("the device has not mapped that memory")?;
        install();
        Ok(Self { ours, theirs })
    }

    /// The pages.
    #[must_use]
    pub fn memory(&self) -> &GuestSlice {
        &self.ours
    }

    /// Runs `act` with the pages taken away from the device and `change` made at its moment, and
    /// returns what it returns and what the device has done with them.
    ///
    /// # Panics
    ///
    /// When the change is longer than a field, or outside of the pages.
    pub fn during<T>(&self, change: &Change, moment: Moment, act: impl FnOnce() -> T) -> (T, Seen) {
        assert!(change.bytes.len() <= Change::MOST_BYTES, "{change:?}");
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let after = match moment {
            Moment::Never => 0,
            Moment::Before => {
                self.ours.write(change.at, &change.bytes);
                0
            }
            Moment::After(accesses) => accesses,
        };
        let place = self.ours.sub(change.at, change.bytes.len()).hva();
        let place = usize::try_from(place).unwrap_or(0);
        PLACE.store(
            std::ptr::with_exposed_provenance_mut(place),
            Ordering::Relaxed,
        );
        VALUE.store(change.bytes.as_ptr().cast_mut(), Ordering::Relaxed);
        VALUE_BYTES.store(change.bytes.len(), Ordering::Relaxed);
        AFTER.store(after, Ordering::Relaxed);
        ACCESSES.store(0, Ordering::Relaxed);
        BYTES.store(self.ours.len_bytes(), Ordering::Relaxed);
        START.store(self.theirs, Ordering::SeqCst);
        protect(libc::PROT_NONE);
        let result = act();
        protect(libc::PROT_READ | libc::PROT_WRITE);
        START.store(0, Ordering::SeqCst);
        (result, Seen::of(change))
    }
}

/// Where this file is mapped at this offset.
fn mappings(inode: u64, in_file: u64) -> Result<Vec<usize>> {
    let mut found = Vec::new();
    for line in std::fs::read_to_string("/proc/self/maps")?.lines() {
        let mut words = line.split_ascii_whitespace();
        let mut word = || words.next().ok_or("a mapping without an inode");
        let (range, _access, offset, _device) = (word()?, word()?, word()?, word()?);
        if word()?.parse::<u64>()? != inode {
            continue;
        }
        let (start, end) = range.split_once('-').ok_or("a mapping without an end")?;
        let [start, end] = [start, end].map(|number| u64::from_str_radix(number, 16));
        let (start, offset) = (start?, u64::from_str_radix(offset, 16)?);
        if let Some(within) = in_file.checked_sub(offset)
            && start + within < end?
        {
            found.push(usize::try_from(start + within)?);
        }
    }
    Ok(found)
}

/// Takes the pages away from the device, or gives them back.
fn protect(access: c_int) {
    let start = std::ptr::with_exposed_provenance_mut(START.load(Ordering::SeqCst));
    let bytes = BYTES.load(Ordering::SeqCst);
    // SAFETY: `Watch` has found the range mapped, and its session keeps it so; the handlers let
    // every access through, so that nobody misses what is taken away.
    let done = unsafe { libc::mprotect(start, bytes, access) };
    // A handler can only end the process.
    if done != 0 {
        std::process::abort();
    }
}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        handle(libc::SIGSEGV, taken_away);
        handle(libc::SIGTRAP, let_through);
    });
}

fn handle(signal: c_int, handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void)) {
    let empty = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeroes are a valid `sigaction`, which has no references.
    let mut action = unsafe { empty.assume_init() };
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    let function: *const () = handler as *const ();
    action.sa_sigaction = function.expose_provenance();
    // SAFETY: the handler has the arguments that SA_SIGINFO gives it, and calls nothing that may
    // not be called in one.
    let done = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    assert_eq!(done, 0, "sigaction");
}

/// An access to what was taken away: it is given back for one instruction. A fault elsewhere is
/// left to the kernel, which ends the process.
extern "C" fn taken_away(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a `siginfo_t`, which is the handler's until it returns.
    let info = unsafe { &*info };
    // SAFETY: that of a SIGSEGV has an address.
    let address = unsafe { info.si_addr() }.addr();
    let start = START.load(Ordering::SeqCst);
    let within = address.wrapping_sub(start) < BYTES.load(Ordering::SeqCst);
    if start == 0 || !within {
        // SAFETY: the default action takes no handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    let access = ACCESSES.fetch_add(1, Ordering::SeqCst);
    if let Some(place) = PLACES.get(access) {
        place.store(address - start, Ordering::Relaxed);
    }
    protect(libc::PROT_READ | libc::PROT_WRITE);
    step(context, true);
}

/// Behind that instruction: it is taken away again, and the change is made if it is its moment.
extern "C" fn let_through(_signal: c_int, _info: *mut libc::siginfo_t, context: *mut c_void) {
    step(context, false);
    if START.load(Ordering::SeqCst) == 0 {
        return;
    }
    protect(libc::PROT_NONE);
    if ACCESSES.load(Ordering::SeqCst) == AFTER.load(Ordering::SeqCst) {
        let (value, place) = (VALUE.load(Ordering::Relaxed), PLACE.load(Ordering::Relaxed));
        // SAFETY: `Watch::during` has both for as long as the pages are taken away, and checked
        // that so many bytes are there; only this thread is in a handler.
        unsafe { std::ptr::copy_nonoverlapping(value, place, VALUE_BYTES.load(Ordering::Relaxed)) };
    }
}

/// Whether the processor is to stop behind the next instruction of what was interrupted.
#[cfg(target_arch = "x86_64")]
fn step(context: *mut c_void, stops: bool) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes a `ucontext_t`, which is the handler's until it returns.
    let context = unsafe { &mut *context };
    let at = usize::try_from(libc::REG_EFL).unwrap_or(usize::MAX);
    if let Some(flags) = context.uc_mcontext.gregs.get_mut(at) {
        *flags = if stops { *flags | TRAP } else { *flags & !TRAP };
    }
}

/// There is no such flag.
#[cfg(not(target_arch = "x86_64"))]
fn step(_context: *mut c_void, _stops: bool) {
    std::process::abort();
}

/// What a walk has met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Changes with which the outcome is another.
    pub telling: usize,
    /// Requests, each with a change at another moment.
    pub requests: usize,
    /// Accesses of the request without a change.
    pub accesses: usize,
}

/// Has each of so many changes made at each moment of a request: it comes to what it comes to
/// without the change, or to what it comes to with it from the start, and to nothing else.
///
/// Up to the next access that may be of a changed byte the device does what it would do without the
/// change. So the moments are those behind such accesses, unless `RINGSIDE_FULL_MATRIX` asks for
/// all; behind the last one nobody looks.
///
/// `run` makes the request with the change of a number at a moment, and returns what it came to
/// and what the device has done. The pages are where they were in every run.
///
/// # Errors
///
/// What is wrong with `run`, or a third outcome.
pub fn walk<O: PartialEq + std::fmt::Debug>(
    changes: usize,
    mut run: impl FnMut(usize, Moment) -> Result<(O, Seen)>,
) -> Result<Walked> {
    let all = std::env::var_os(FULL_VARIABLE).is_some();
    let mut walked = Walked::default();
    let (without, unchanged) = run(0, Moment::Never)?;
    walked.accesses = unchanged.accesses;
    for change in 0..changes {
        let (with, seen) = run(change, Moment::Before)?;
        walked.telling += usize::from(without != with);
        let moments = if all {
            (1..=unchanged.accesses).collect()
        } else {
            unchanged.near(&seen.change)
        };
        let looked_at = moments.split_last().map_or(&[][..], |(_, before)| before);
        for &moment in looked_at {
            let (outcome, _) = run(change, Moment::After(moment))?;
            if outcome != without && outcome != with {
                return Err(format!(
                    "change {change} behind access {moment} of {}: {outcome:?}, neither \
                     {without:?} nor {with:?}",
                    unchanged.accesses
                )
                .into());
            }
        }
        walked.requests += 1 + looked_at.len();
    }
    Ok(walked)
}
