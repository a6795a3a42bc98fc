// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a back-end that was taken over might try, and what a good one must still be able to do.
#![expect(
    unsafe_code,
    reason = "the acts that a sandbox forbids have no safe wrappers"
)]

use std::error::Error;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libc::{c_int, c_void, siginfo_t};
use ringside_common::sandbox::{CapabilitySet, Inside};
use rustix::fs::{Mode, OFlags, RawDir, openat};
use rustix::io::Errno;
use rustix::process::{Gid, Resource, Uid, getegid, geteuid, getgid, getrlimit, getuid};
use rustix::thread::{UnshareFlags, capabilities as current, capability_is_in_bounding_set};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use vmm_sys_util::signal::register_signal_handler;

/// What the probe ends with after SIGTERM, so that it is known for its own.
const TERMINATED: u8 = 7;

static TERMINATION: AtomicBool = AtomicBool::new(false);

extern "C" fn on_terminate(_number: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    TERMINATION.store(true, Ordering::Release);
}

pub(crate) fn watch_termination() -> io::Result<()> {
    register_signal_handler(libc::SIGTERM, on_terminate)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

pub(crate) fn wait_for_termination() -> io::Result<u8> {
    writeln!(io::stdout(), "ready")?;
    while !TERMINATION.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(TERMINATED)
}

/// Ends by no signal that can be ignored, like a process that waits for what does not come.
pub(crate) fn stay() -> io::Result<u8> {
    writeln!(io::stdout(), "ready")?;
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// As if the kernel had no Landlock.
pub(crate) fn hide_landlock() -> Result<(), Box<dyn Error>> {
    let absent = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let rules = [(libc::SYS_landlock_create_ruleset, Vec::new())].into();
    let arch = std::env::consts::ARCH.try_into()?;
    let program: BpfProgram =
        SeccompFilter::new(rules, SeccompAction::Allow, absent, arch)?.try_into()?;
    Ok(apply_filter(&program)?)
}

/// Whether the kernel has Landlock.
pub(crate) fn landlock() -> io::Result<()> {
    /// linux/landlock.h: asks for the version.
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;
    let (none, size) = (std::ptr::null::<c_void>(), 0_usize);
    let flags = LANDLOCK_CREATE_RULESET_VERSION;
    // SAFETY: nothing is read or written.
    if unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, size, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The user and the group, real and effective.
pub(crate) fn identity() -> String {
    let user = [getuid(), geteuid()].map(Uid::as_raw);
    let group = [getgid(), getegid()].map(Gid::as_raw);
    format!("{user:?} {group:?}")
}

/// The names in each share, which are opened as the device does: through `/proc/self/fd`.
pub(crate) fn list_shares(inside: &Inside) -> Result<String, Box<dyn Error>> {
    let mut shares = Vec::new();
    for root in &inside.share_roots {
        let number = root.as_raw_fd().to_string();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = openat(&inside.proc_self_fd, number, flags, Mode::empty())?;
        shares.push(names(&opened)?);
    }
    Ok(shares.join(";"))
}

fn names(opened: &OwnedFd) -> Result<String, Box<dyn Error>> {
    let mut buffer = Vec::with_capacity(4096);
    let mut entries = RawDir::new(opened, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        match entry {
            Ok(entry) => names.push(entry.file_name().to_str()?.to_owned()),
            Err(Errno::NOTDIR) => return Ok("file".to_owned()),
            Err(error) => return Err(error.into()),
        }
    }
    names.retain(|name| !matches!(name.as_str(), "." | ".."));
    names.sort_unstable();
    Ok(names.join(","))
}

/// The effective capabilities, and those of the bounding set.
pub(crate) fn capabilities() -> Result<String, Box<dyn Error>> {
    let sets = current(None)?;
    let bounding = (0..u64::BITS)
        .map(|number| CapabilitySet::from_bits_retain(1 << number))
        .filter(|&capability| matches!(capability_is_in_bounding_set(capability), Ok(true)))
        .fold(CapabilitySet::empty(), CapabilitySet::union);
    Ok(format!(
        "{:#x} {:#x} {:#x} {:#x}",
        sets.effective.bits(),
        sets.permitted.bits(),
        sets.inheritable.bits(),
        bounding.bits()
    ))
}

pub(crate) fn mount() -> Result<(), Errno> {
    rustix::mount::mount(
        "none",
        "/",
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        None,
    )
}

pub(crate) fn attach_to_parent() -> io::Result<()> {
    // SAFETY: nothing is read or written but the state of the other process.
    let parent = unsafe { libc::getppid() };
    let none = std::ptr::null_mut::<c_void>();
    // SAFETY: as above.
    if unsafe { libc::ptrace(libc::PTRACE_SEIZE, parent, none, none) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

pub(crate) fn open_device(inside: &Inside, name: &str) -> Result<(), Errno> {
    let root = inside.share_roots.first().ok_or(Errno::NOENT)?;
    openat(root, name, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map(drop)
}

pub(crate) fn new_user_namespace() -> Result<(), Errno> {
    // SAFETY: the table of descriptors stays shared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }
}

pub(crate) fn map_executable() -> Result<(), Errno> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let access = ProtFlags::READ | ProtFlags::EXEC;
    // SAFETY: a new mapping that nobody uses.
    unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, access, MapFlags::PRIVATE) }.map(drop)
}

/// What data threads do: they are started late, and make an `io_uring` of their own.
pub(crate) fn thread_and_ring() -> Result<String, Box<dyn Error>> {
    let started = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&started);
    let ring = std::thread::Builder::new()
        .name("data".to_owned())
        .spawn(move || {
            told.store(true, Ordering::Release);
            make_ring().map(drop)
        })?
        .join();
    let ring = match ring {
        Ok(Ok(())) => "ring".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "panic".to_owned(),
    };
    Ok(format!("{} {ring}", started.load(Ordering::Acquire)))
}

fn make_ring() -> io::Result<OwnedFd> {
    // struct io_uring_params.
    let mut parameters = [0_u8; 120];
    // SAFETY: the structure is ours, of the kernel's size and all zeros as it has to be.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 8, parameters.as_mut_ptr()) };
    match c_int::try_from(fd) {
        // SAFETY: the descriptor was just made and nobody else has it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The limits and switches of the process.
pub(crate) fn limits() -> String {
    let core = getrlimit(Resource::Core);
    let dumpable = rustix::process::dumpable_behavior();
    let no_new_privs = rustix::thread::no_new_privs();
    format!("{:?} {dumpable:?} {no_new_privs:?}", core.maximum)
}
