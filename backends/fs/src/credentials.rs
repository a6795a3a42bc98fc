// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The user and group that a thread acts as.
//!
//! What is created belongs to the process of the guest that creates it, so the thread takes on its
//! user and group for the call, and gives them up afterwards. All of this is done with raw system
//! calls that change one thread, not with the C library's, which change all. Real and saved
//! numbers stay, so the way back is always open; a thread that cannot go back all the same must
//! not serve another request, and ends the process.
//!
//! The order is fixed: groups, group, user, because a user other than root has no capability to
//! change the rest; and user first on the way back, which brings the capabilities back. The kernel
//! takes the effective capabilities of a thread that stops being root, and gives it all permitted
//! ones when it becomes root again (`capabilities(7)`).

use std::cell::Cell;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::process::abort;

use rustix::fs::Mode;
use rustix::process::{Gid, Uid, fchdir, getegid, geteuid, getgroups, umask};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use crate::error::{Errno, Result};

/// The process of the guest that asks, in numbers of the host.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Caller {
    /// Its user; 0 is the user that this process runs as, which need not be root.
    pub uid: u32,
    /// Its group; 0 as above.
    pub gid: u32,
    /// The supplementary group of it that matters, if the guest said so.
    pub group: Option<u32>,
    /// Whether the guest cannot say that (before Linux 6.3), so that access is not ours to check:
    /// `CAP_DAC_OVERRIDE` is kept.
    pub keeps_dac_override: bool,
}

/// A thread that is set up: its current directory is `/proc/self/fd` and its umask 0, both its own
/// and not the process's; it is in no group but its own.
#[derive(Debug)]
pub struct ThreadContext {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    capabilities: CapabilitySets,
    /// Whether groups may be set at all.
    sets_groups: bool,
    /// Whether `CAP_FSETID` is effective now.
    has_fsetid: Cell<bool>,
    /// It is of one thread.
    not_send: PhantomData<*const ()>,
}

impl ThreadContext {
    /// Sets up the calling thread; `proc_self_fd` is the directory `/proc/self/fd`.
    ///
    /// # Errors
    /// Of the system calls; nothing that the process may not do is needed.
    pub fn new(proc_self_fd: BorrowedFd<'_>) -> Result<Self> {
        crate::sys::unshare_fs()?;
        fchdir(proc_self_fd)?;
        umask(Mode::empty());
        let mut groups = getgroups()?;
        // A group of the host that we happen to be in is not the guest's.
        let sets_groups = match set_thread_groups(&[]) {
            Ok(()) => {
                groups.clear();
                true
            }
            Err(Errno::PERM) => false,
            Err(error) => return Err(error),
        };
        let capabilities = capabilities(None)?;
        Ok(Self {
            uid: geteuid(),
            gid: getegid(),
            groups,
            capabilities,
            sets_groups,
            has_fsetid: Cell::new(capabilities.effective.contains(CapabilitySet::FSETID)),
            not_send: PhantomData,
        })
    }

    /// Does something as the caller. Switches only what differs; where nothing does, it costs no
    /// system call.
    ///
    /// # Errors
    /// `EINVAL` for the numbers that stand for none, `EPERM` where this process may not be that
    /// user; nothing was done then, and the thread is as it was.
    pub fn as_caller<R>(&mut self, caller: Caller, act: impl FnOnce(&Self) -> R) -> Result<R> {
        let this = &*self;
        let mut switched = Switched::new(this);
        switched.switch(caller)?;
        let result = act(this);
        drop(switched);
        Ok(result)
    }

    /// Does something under a umask of the guest, which where the directory has default access
    /// control entries is not the same as taking its bits off the mode.
    pub fn with_umask<R>(&self, mask: u32, act: impl FnOnce() -> R) -> R {
        struct Restore(Mode);
        impl Drop for Restore {
            fn drop(&mut self) {
                umask(self.0);
            }
        }
        let restore = Restore(umask(Mode::from_bits_truncate(mask & 0o777)));
        let result = act();
        drop(restore);
        result
    }

    /// Makes `CAP_FSETID` effective or not; to be called before whatever it matters to. Without
    /// it a write or truncation takes the set-user-ID and set-group-ID bits off a file, as the
    /// guest asks for (`FUSE_WRITE_KILL_SUIDGID`); with it a set-group-ID bit of a foreign group
    /// can be set. Costs nothing if it is that way already. A thread that never had it goes on
    /// without.
    ///
    /// # Errors
    /// Of `capset(2)`; what was to be done must not be done then.
    pub fn use_fsetid(&mut self, used: bool) -> Result<()> {
        let initial = self.capabilities.effective;
        if used == self.has_fsetid.get() || !initial.contains(CapabilitySet::FSETID) {
            return Ok(());
        }
        let effective = if used {
            initial
        } else {
            initial.difference(CapabilitySet::FSETID)
        };
        self.set_effective(effective)?;
        self.has_fsetid.set(used);
        Ok(())
    }

    /// Whether the kernel sees this thread as it was set up, [`Self::use_fsetid`] excepted.
    #[must_use]
    pub fn is_initial(&self) -> bool {
        let Ok(now) = capabilities(None) else {
            return false;
        };
        let fsetid = CapabilitySet::FSETID;
        geteuid() == self.uid
            && getegid() == self.gid
            && getgroups().is_ok_and(|groups| groups == self.groups)
            && now.permitted == self.capabilities.permitted
            && now.effective.difference(fsetid) == self.capabilities.effective.difference(fsetid)
            && now.effective.contains(fsetid) == self.has_fsetid.get()
    }

    fn set_effective(&self, effective: CapabilitySet) -> Result<()> {
        let sets = CapabilitySets {
            effective,
            ..self.capabilities
        };
        set_capabilities(None, sets)
    }

    /// The user to switch to, if any.
    fn other_uid(&self, uid: u32) -> Result<Option<Uid>> {
        if uid == u32::MAX {
            return Err(Errno::INVAL);
        }
        Ok((uid != 0 && uid != self.uid.as_raw()).then(|| Uid::from_raw(uid)))
    }

    /// The group to switch to, if any.
    fn other_gid(&self, gid: u32) -> Result<Option<Gid>> {
        if gid == u32::MAX {
            return Err(Errno::INVAL);
        }
        Ok((gid != 0 && gid != self.gid.as_raw()).then(|| Gid::from_raw(gid)))
    }
}

/// What of a thread is not as it was set up; dropping it switches back.
struct Switched<'a> {
    context: &'a ThreadContext,
    groups: bool,
    gid: bool,
    uid: bool,
}

impl<'a> Switched<'a> {
    fn new(context: &'a ThreadContext) -> Self {
        Self {
            context,
            groups: false,
            gid: false,
            uid: false,
        }
    }

    fn switch(&mut self, caller: Caller) -> Result<()> {
        let uid = self.context.other_uid(caller.uid)?;
        let gid = self.context.other_gid(caller.gid)?;
        let group = match caller.group {
            Some(u32::MAX) => return Err(Errno::INVAL),
            Some(group) if self.context.sets_groups && group != caller.gid => {
                Some(Gid::from_raw(group))
            }
            _ => None,
        };
        if let Some(group) = group {
            set_thread_groups(&[group])?;
            self.groups = true;
        }
        if let Some(gid) = gid {
            set_thread_res_gid(None, gid, None)?;
            self.gid = true;
        }
        if let Some(uid) = uid {
            set_thread_res_uid(None, uid, None)?;
            self.uid = true;
            self.keep_dac_override(caller)?;
        }
        Ok(())
    }

    fn keep_dac_override(&self, caller: Caller) -> Result<()> {
        let context = self.context;
        let keep = CapabilitySet::DAC_OVERRIDE;
        if caller.keeps_dac_override
            && context.uid.is_root()
            && context.capabilities.effective.contains(keep)
        {
            context.set_effective(keep)?;
        }
        Ok(())
    }

    fn restore(&self) -> Result<()> {
        let context = self.context;
        if self.uid {
            set_thread_res_uid(None, context.uid, None)?;
            if context.uid.is_root() {
                self.restore_effective()?;
            }
        }
        if self.gid {
            set_thread_res_gid(None, context.gid, None)?;
        }
        if self.groups {
            set_thread_groups(&context.groups)?;
        }
        Ok(())
    }

    /// The kernel has just made all permitted capabilities effective.
    fn restore_effective(&self) -> Result<()> {
        let CapabilitySets {
            effective,
            permitted,
            ..
        } = self.context.capabilities;
        if effective != permitted {
            self.context.set_effective(effective)?;
        }
        self.context
            .has_fsetid
            .set(effective.contains(CapabilitySet::FSETID));
        Ok(())
    }
}

impl Drop for Switched<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            log::error!("a thread cannot go back to its own user and group: {error}");
            abort();
        }
    }
}

#[cfg(test)]
mod tests;
