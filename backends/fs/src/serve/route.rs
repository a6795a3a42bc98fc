// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a request is served.
//!
//! The data thread serves what only asks file systems of this machine, which answer from memory or
//! from a disk of theirs. Anything else goes to the threads of the mount that it may wait for. A
//! request that names two mounts waits for the one that is not quick; if neither is, it has threads
//! of the pair, so that one of them that hangs takes none of the other's. Which mounts those are is
//! known of every node, so that nothing is asked to find out.

use std::sync::Arc;

use crate::passthrough::PassThrough;
use crate::pool::{Pool, Work};
use crate::server::{self, Traits};
use crate::tables::{Between, Mount, Place, Stall};
use crate::wire::header::InHeader;
use crate::wire::operation::{LookupName, Operation};

/// The threads that serve a request instead of the data thread.
#[derive(Debug)]
pub(super) struct To {
    pub(super) pool: Arc<Pool>,
    pub(super) work: Work,
    /// The stall of a mount, if that is why: whether it is over is seen by such requests.
    pub(super) stall: Option<Arc<Stall>>,
}

impl To {
    fn new(pool: Arc<Pool>, work: Work) -> Self {
        Self {
            pool,
            work,
            stall: None,
        }
    }
}

/// The threads that serve a request, as far as that is known before; none: the data thread.
#[inline]
pub(super) fn elsewhere(
    fs: &PassThrough,
    header: &InHeader,
    op: &Operation<'_>,
    traits: &Traits,
) -> Option<To> {
    if !fs.nodes.mounts().are_quick()
        && let Some(to) = slow(fs, header, op, traits)
    {
        return Some(to);
    }
    server::is_long(fs, header.node, traits.wait).then(|| own(fs, header, traits))
}

/// The threads of the mount of a request that turns out to be long.
#[cold]
pub(super) fn own(fs: &PassThrough, header: &InHeader, traits: &Traits) -> To {
    let pool = match fs.nodes.get(header.node) {
        Ok(node) => Arc::clone(node.mount().pool()),
        // It is about no file.
        Err(_) => fs.nodes.mounts().pool_of(Between::Nothing),
    };
    To::new(pool, traits.work)
}

/// The threads that serve a request whose name leads to another mount, which is not known to be
/// quick. Each such name has threads of its own until the guest knows what is there.
#[cold]
pub(super) fn beyond(
    fs: &PassThrough,
    header: &InHeader,
    op: &Operation<'_>,
    traits: &Traits,
) -> To {
    let Operation::Lookup {
        name: LookupName::Child(name),
    } = op
    else {
        return own(fs, header, traits);
    };
    let between = fs.nodes.beyond(header.node, *name);
    To::new(fs.nodes.mounts().pool_of(between), Work::Reads)
}

/// The threads of those mounts of a request that are not quick.
#[cold]
fn slow(fs: &PassThrough, header: &InHeader, op: &Operation<'_>, traits: &Traits) -> Option<To> {
    let slow = |node: u64| {
        let node = fs.nodes.get(node).ok()?;
        slow_mount(node.mount())
    };
    let first = share_of(fs, header, op).or_else(|| slow(header.node));
    let second = match op {
        Operation::Rename { new_parent, .. } => slow(*new_parent),
        Operation::Link { node, .. } => slow(*node),
        Operation::CopyFileRange(copy) => slow(copy.node_out),
        _ => None,
    };
    let work = traits.work;
    match (first, second) {
        (Some(one), Some(other)) if one.number() != other.number() => {
            let (one, other) = (one.number(), other.number());
            let pair = Between::Mounts(one.min(other), one.max(other));
            Some(To::new(fs.nodes.mounts().pool_of(pair), work))
        }
        (Some(mount), _) | (None, Some(mount)) => {
            let long = server::is_long(fs, header.node, traits.wait);
            Some(To {
                pool: Arc::clone(mount.pool()),
                work,
                stall: mount.local_stall().filter(|_| !long).map(Arc::clone),
            })
        }
        (None, None) => None,
    }
}

/// The mount of the share that a request at the directory of several shares is about.
fn share_of(fs: &PassThrough, header: &InHeader, op: &Operation<'_>) -> Option<Arc<Mount>> {
    let node = fs.nodes.get(header.node).ok()?;
    if !matches!(node.place(), Place::Virtual) {
        return None;
    }
    let share = match op {
        Operation::Lookup {
            name: LookupName::Child(name),
        } => fs.share(*name),
        Operation::StatFs => fs.first_share(),
        _ => None,
    };
    slow_mount(share?.mount())
}

fn slow_mount(mount: &Arc<Mount>) -> Option<Arc<Mount>> {
    mount.is_slow().then(|| Arc::clone(mount))
}
