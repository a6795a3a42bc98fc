// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The system calls a back-end may make (seccomp(2)).
//!
//! [`AllowList::common`] is what the suite itself needs to serve front-ends: its sockets,
//! `io_uring`, epoll and eventfds, memory, threads and signals. A device adds what it needs for its
//! backing. Everything else is answered as [`Action`] says.
//!
//! Calls with many uses are allowed with the arguments that we pass, no others: `clone(2)` makes
//! threads and neither processes (but for [`AllowList::allow_heir`]) nor namespaces, `mmap(2)` and
//! `mprotect(2)` make nothing executable, `prctl(2)` names threads and reads what the kernel has
//! told at the start. `clone3(2)` passes its flags where a filter cannot see them; it is said not
//! to exist, and the C library falls back to `clone(2)`. So are the calls by which a panic looks
//! for the names of functions.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads,
};

use super::error::SandboxError;
use crate::sys::heir;

/// What happens on a system call that is not allowed (`--seccomp`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum Action {
    /// There is no filter.
    None,
    /// The process is killed.
    #[default]
    Kill,
    /// The kernel logs it and makes the call.
    Log,
    /// The thread gets SIGSYS.
    Trap,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Kill => "kill",
            Self::Log => "log",
            Self::Trap => "trap",
        })
    }
}

/// What every back-end may call with any arguments.
const COMMON: &[i64] = &[
    // Descriptors.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_memfd_create,
    libc::SYS_newfstatat,
    libc::SYS_ftruncate,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_statx,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
    // Sockets that are there or come in.
    libc::SYS_accept4,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Waiting.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_gettimeofday,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads and signals.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_membarrier,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    // What the process may do and is.
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_prlimit64,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// The same where the architecture still has the older forms.
#[cfg(target_arch = "x86_64")]
const OLDER: &[i64] = &[
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_getrlimit,
    libc::SYS_lstat,
    libc::SYS_poll,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[i64] = &[];

/// What is said not to exist where a device does not need it: there are other ways, or, for a
/// backtrace after a panic, it does without.
const ABSENT: &[i64] = &[
    libc::SYS_clone3,
    libc::SYS_getcwd,
    libc::SYS_openat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
];

/// linux/prctl.h: how the size of a page is found out.
const PR_GET_AUXV: u64 = 0x4155_5856;

/// Flags of `clone(2)` that make namespaces, or trace.
const CLONE_NAMESPACES: u64 = (libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS
    | libc::CLONE_PTRACE) as u64;

/// System calls that are allowed, all others not being so.
#[derive(Clone, Debug)]
pub struct AllowList {
    rules: BTreeMap<i64, Vec<SeccompRule>>,
}

impl AllowList {
    /// What every back-end needs.
    ///
    /// # Errors
    /// Never in practice: the rules are well-formed.
    pub fn common() -> Result<Self, SandboxError> {
        let mut list = Self {
            rules: BTreeMap::new(),
        };
        list.allow(COMMON);
        list.allow(OLDER);
        let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
        list.allow_if(
            libc::SYS_clone,
            vec![bits(0, CLONE_NAMESPACES | thread, thread)?],
        )?;
        let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            list.allow_if(call, vec![bits(2, executable, 0)?])?;
        }
        for option in [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA] {
            list.allow_value(libc::SYS_prctl, 0, u64::from(option.unsigned_abs()))?;
        }
        list.allow_value(libc::SYS_prctl, 0, PR_GET_AUXV)?;
        for command in [libc::FIONBIO, libc::FIONREAD] {
            list.allow_value(libc::SYS_ioctl, 1, command)?;
        }
        Ok(list)
    }

    /// Allows `calls` with any arguments.
    pub fn allow(&mut self, calls: &[i64]) {
        self.rules
            .extend(calls.iter().map(|&call| (call, Vec::new())));
    }

    /// Allows connections to other processes of this host, for a back-end that makes its own.
    ///
    /// # Errors
    /// Never in practice: the rules are well-formed.
    pub fn allow_unix_connections(&mut self) -> Result<(), SandboxError> {
        let unix = u64::from(libc::AF_UNIX.unsigned_abs());
        self.allow_value(libc::SYS_socket, 0, unix)?;
        self.allow(&[libc::SYS_connect]);
        Ok(())
    }

    /// Allows what a process needs to leave files to be closed to another, where it may (see
    /// `sys::heir`).
    ///
    /// # Errors
    /// Never in practice: the rules are well-formed.
    pub fn allow_heir(&mut self) -> Result<(), SandboxError> {
        if !heir::may_be() {
            return Ok(());
        }
        let shared = libc::CLONE_VM | libc::CLONE_FILES;
        self.allow_value(libc::SYS_clone, 0, u64::from(shared.unsigned_abs()))?;
        self.allow(&[libc::SYS_close_range, libc::SYS_pidfd_open]);
        Ok(())
    }

    /// Allows `call` when the lower half of argument `argument`, counted from 0, is `value`. May be
    /// given several times for one call.
    ///
    /// # Errors
    /// When there is no such argument.
    pub fn allow_value(&mut self, call: i64, argument: u8, value: u64) -> Result<(), SandboxError> {
        let condition =
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?;
        self.allow_if(call, vec![condition])
    }

    fn allow_if(
        &mut self,
        call: i64,
        conditions: Vec<SeccompCondition>,
    ) -> Result<(), SandboxError> {
        let rule = SeccompRule::new(conditions)?;
        self.rules.entry(call).or_default().push(rule);
        Ok(())
    }

    /// From here on no thread of this process makes any other system call.
    ///
    /// # Errors
    /// When the kernel does not take the filter.
    pub fn install(self, action: Action) -> Result<(), SandboxError> {
        let otherwise = match action {
            Action::None => return Ok(()),
            Action::Kill => SeccompAction::KillProcess,
            Action::Log => SeccompAction::Log,
            Action::Trap => SeccompAction::Trap,
        };
        let mut rules = self.rules;
        let mut hidden = BTreeMap::new();
        for &call in ABSENT {
            if let Entry::Vacant(unused) = rules.entry(call) {
                // Decided by the other filter: of two answers the more severe one counts.
                unused.insert(Vec::new());
                hidden.insert(call, Vec::new());
            }
        }
        let absent = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
        // The longer one last: it does not allow `seccomp(2)` itself.
        for (rules, otherwise, listed) in [
            (hidden, SeccompAction::Allow, absent),
            (rules, otherwise, SeccompAction::Allow),
        ] {
            let arch = std::env::consts::ARCH.try_into()?;
            let program: BpfProgram =
                SeccompFilter::new(rules, otherwise, listed, arch)?.try_into()?;
            apply_filter_all_threads(&program)?;
        }
        Ok(())
    }
}

/// The lower half of argument `argument` has `value` in the bits of `mask`.
fn bits(argument: u8, mask: u64, value: u64) -> Result<SeccompCondition, SandboxError> {
    let operation = SeccompCmpOp::MaskedEq(mask);
    Ok(SeccompCondition::new(
        argument,
        SeccompCmpArgLen::Dword,
        operation,
        value,
    )?)
}
