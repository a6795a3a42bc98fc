// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest and we agree to.

use std::sync::atomic::Ordering;

use super::PassThrough;
use ringside_common::limited;
use ringside_common::logging::LogLimiter;

use crate::config::{CachePolicy, Negotiation};
use crate::error::{Errno, Result};
use crate::wire::flags::{InitFlags, MAJOR, MINOR, OLDEST_MINOR};
use crate::wire::operation::InitIn;
use crate::wire::reply::InitOut;

/// The most that a `WRITE` has: 256 pages, which Linux does not exceed unless it is told to.
pub const MAX_WRITE_BYTES: u32 = 1 << 20;
const MAX_PAGES: u16 = 256;

/// What needs nothing of the host. `ATOMIC_O_TRUNC` is not there: with it Linux asks us to cut a
/// file off before it finds out that the file is being run, and must not be.
const ALWAYS: InitFlags = InitFlags::ASYNC_READ
    .union(InitFlags::BIG_WRITES)
    .union(InitFlags::HAS_IOCTL_DIR)
    .union(InitFlags::AUTO_INVAL_DATA)
    .union(InitFlags::ASYNC_DIO)
    .union(InitFlags::PARALLEL_DIROPS)
    .union(InitFlags::MAX_PAGES)
    .union(InitFlags::INIT_EXT)
    .union(InitFlags::CREATE_SUPP_GROUP)
    .union(InitFlags::ALLOW_IDMAP);

const ACL: InitFlags = InitFlags::POSIX_ACL
    .union(InitFlags::DONT_MASK)
    .union(InitFlags::SETXATTR_EXT);

/// What may be said at one `INIT`, each for itself.
static NO_ACLS: LogLimiter = LogLimiter::new();
static NO_LABELS: LogLimiter = LogLimiter::new();

impl PassThrough {
    /// `INIT`: a new session; nothing of another one is left.
    ///
    /// # Errors
    /// EPROTO for a guest that is too old, or cannot do what it must.
    pub fn init(&self, init: &InitIn) -> Result<InitOut> {
        self.end();
        if init.major > MAJOR {
            // It must ask again, with our version.
            return Ok(InitOut {
                major: MAJOR,
                minor: MINOR,
                ..InitOut::default()
            });
        }
        if init.major < MAJOR || init.minor < OLDEST_MINOR {
            let (major, minor) = (init.major, init.minor);
            limited!(
                error,
                "the guest speaks FUSE {major}.{minor}, which is too old"
            );
            return Err(Errno::PROTO);
        }
        let flags = self.wanted(init.flags)? & init.flags;
        self.negotiated.store(flags.bits(), Ordering::Release);
        let (major, minor) = (init.major, init.minor);
        limited!(debug, "FUSE {major}.{minor}, agreed to {flags:?}");
        Ok(InitOut {
            major: MAJOR,
            minor: MINOR,
            max_readahead_bytes: init.max_readahead_bytes,
            flags,
            max_background: u16::MAX,
            congestion_threshold: u16::MAX / 4 * 3,
            max_write_bytes: MAX_WRITE_BYTES,
            time_gran_ns: 1,
            max_pages: MAX_PAGES,
            map_alignment: map_alignment(flags),
            ..InitOut::default()
        })
    }

    fn wanted(&self, offered: InitFlags) -> Result<InitFlags> {
        let config = &self.config;
        let mut wanted = ALWAYS;
        let mut want = |flags: InitFlags, on: bool| {
            if on {
                wanted |= flags;
            }
        };
        want(
            InitFlags::DO_READDIRPLUS | InitFlags::READDIRPLUS_AUTO,
            config.readdirplus,
        );
        want(
            InitFlags::CACHE_SYMLINKS,
            config.cache != CachePolicy::Never,
        );
        want(InitFlags::WRITEBACK_CACHE, config.writeback);
        want(InitFlags::SUBMOUNTS, config.announce_submounts);
        want(InitFlags::HANDLE_KILLPRIV_V2, config.killpriv_v2);
        want(InitFlags::DIRECT_IO_ALLOW_MMAP, config.allow_mmap);
        want(InitFlags::EXPORT_SUPPORT, config.export);
        want(InitFlags::POSIX_LOCKS, config.posix_locks);
        want(InitFlags::FLOCK_LOCKS, config.flocks);
        want(
            InitFlags::NO_OPEN_SUPPORT | InitFlags::NO_OPENDIR_SUPPORT,
            config.no_open,
        );
        want(
            InitFlags::MAP_ALIGNMENT | InitFlags::HAS_INODE_DAX,
            self.window.is_usable(),
        );
        let acl = negotiate(("POSIX ACLs", &NO_ACLS), config.posix_acl, ACL, offered)?;
        want(ACL, acl);
        let label = InitFlags::SECURITY_CTX;
        let what = ("security labels", &NO_LABELS);
        let labels = negotiate(what, config.security_label, label, offered)?;
        want(label, labels);
        Ok(wanted)
    }
}

/// What mappings are aligned to, as a power of two: pages.
fn map_alignment(flags: InitFlags) -> u16 {
    if !flags.contains(InitFlags::MAP_ALIGNMENT) {
        return 0;
    }
    // No number has more than 64 zeroes at its end.
    u16::try_from(rustix::param::page_size().trailing_zeros()).unwrap_or(0)
}

/// Whether `needed` is used: it is wanted, and the guest has all of it.
fn negotiate(
    (what, limiter): (&str, &LogLimiter),
    wanted: Negotiation,
    needed: InitFlags,
    offered: InitFlags,
) -> Result<bool> {
    if wanted == Negotiation::Never || offered.contains(needed) {
        return Ok(wanted != Negotiation::Never);
    }
    if wanted == Negotiation::Always {
        limited!(limiter, error, "the guest has no {what}, and must");
        return Err(Errno::PROTO);
    }
    limited!(limiter, warn, "the guest has no {what}: going on without");
    Ok(false)
}
