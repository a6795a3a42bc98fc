// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an open image can do, found out without reading or changing its data.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FallocateFlags, StatxFlags};
use rustix::io::Errno;

use super::aligned_buf::AlignedBuf;
use super::alignment::Alignment;
use super::error::ImageError;
use super::image::Kind;
use super::options::{CacheMode, ImageOptions};
use super::size::len_bytes;
use super::sys;
use super::topology::{MAX_BLOCK_BYTES, MIN_BLOCK_BYTES, Topology, check_block_size};

/// The block of most file systems; taken for one that reports a size no driver accepts.
const USUAL_BLOCK_BYTES: u32 = 4096;

/// The sizes to present to the driver, and those to keep to.
pub(super) fn sizes(
    fd: &OwnedFd,
    kind: Kind,
    options: &ImageOptions,
) -> Result<(Topology, Alignment), ImageError> {
    let probe_error = |what| {
        move |source| ImageError::Probe {
            path: options.path.clone(),
            what,
            source,
        }
    };
    let direct = match options.cache {
        CacheMode::None => Some(direct_alignment(fd, kind, &options.path)?),
        _ => None,
    };
    let own_block_bytes = match kind {
        Kind::BlockDevice => rustix::fs::ioctl_blksszget(fd).map_err(probe_error("block size"))?,
        // Not what O_DIRECT asks for: a guest's partition table must not depend on the cache mode.
        Kind::RegularFile => MIN_BLOCK_BYTES,
    };
    let logical_block_bytes = options.block_size_bytes.unwrap_or(own_block_bytes);
    check_block_size(logical_block_bytes)?;
    let alignment = match direct {
        Some(DirectAlignment {
            memory_bytes,
            offset_bytes,
        }) => {
            let block_bytes = logical_block_bytes.max(offset_bytes);
            Alignment {
                memory_bytes,
                offset_bytes,
                block_bytes,
            }
        }
        None => Alignment {
            memory_bytes: 1,
            offset_bytes: 1,
            block_bytes: logical_block_bytes,
        },
    };
    let topology = match kind {
        Kind::BlockDevice => device_topology(fd, logical_block_bytes),
        Kind::RegularFile => file_topology(fd, logical_block_bytes),
    };
    Ok((topology.map_err(probe_error("topology"))?, alignment))
}

/// What the kernel wants discards and zeroes of this image to be whole multiples of.
pub(super) fn clear_granule_bytes(
    fd: &OwnedFd,
    kind: Kind,
    path: &Path,
) -> Result<u32, ImageError> {
    match kind {
        Kind::RegularFile => Ok(1),
        Kind::BlockDevice => rustix::fs::ioctl_blksszget(fd).map_err(|source| ImageError::Probe {
            path: path.to_owned(),
            what: "block size",
            source,
        }),
    }
}

/// Whether discards free space.
pub(super) fn can_discard(fd: &OwnedFd, kind: Kind) -> bool {
    match kind {
        Kind::BlockDevice => {
            let limit = queue_dir(fd).and_then(|queue| read_limit(&queue, "discard_max_bytes"));
            limit.map_or_else(
                // A range that no device has: a device that can discard says that it is wrong.
                |_no_sysfs| sys::block_device_discard(fd, 1, 0) == Err(Errno::INVAL),
                |max_bytes| max_bytes > 0,
            )
        }
        // Behind the end of the file there is nothing to lose.
        Kind::RegularFile => len_bytes(fd, kind).is_ok_and(|len_bytes| {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let block_bytes = u64::from(MAX_BLOCK_BYTES);
            let offset = len_bytes.next_multiple_of(block_bytes);
            rustix::fs::fallocate(fd, flags, offset, block_bytes).is_ok()
        }),
    }
}

#[derive(Clone, Copy, Debug)]
struct DirectAlignment {
    memory_bytes: u32,
    offset_bytes: u32,
}

fn direct_alignment(fd: &OwnedFd, kind: Kind, path: &Path) -> Result<DirectAlignment, ImageError> {
    let probe_error = |source| ImageError::Probe {
        path: path.to_owned(),
        what: "alignment of direct i/o",
        source,
    };
    let statx = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    let reported = statx
        .ok()
        .filter(|statx| statx.stx_mask & StatxFlags::DIOALIGN.bits() != 0)
        .map(|statx| (statx.stx_dio_mem_align, statx.stx_dio_offset_align));
    let (memory_bytes, offset_bytes) = match (reported, kind) {
        (Some(reported), _) => reported,
        (None, Kind::BlockDevice) => {
            let block_bytes = rustix::fs::ioctl_blksszget(fd).map_err(probe_error)?;
            (block_bytes, block_bytes)
        }
        (None, Kind::RegularFile) => {
            let block_bytes = tried_alignment(fd).map_err(probe_error)?;
            (block_bytes, block_bytes)
        }
    };
    let is_usable = |bytes: u32| bytes.is_power_of_two() && bytes <= MAX_BLOCK_BYTES;
    if !is_usable(memory_bytes) || !is_usable(offset_bytes) {
        // Zeroes are how the kernel says that this file falls back to the page cache.
        return Err(ImageError::DirectUnsupported {
            path: path.to_owned(),
        });
    }
    let offset_bytes = offset_bytes.max(memory_bytes).max(MIN_BLOCK_BYTES);
    Ok(DirectAlignment {
        memory_bytes,
        offset_bytes,
    })
}

/// The smallest alignment a read at 0 succeeds with; its data is not looked at.
fn tried_alignment(fd: &OwnedFd) -> Result<u32, Errno> {
    let len_bytes = len_bytes(fd, Kind::RegularFile)?;
    // An empty file may take any read.
    if len_bytes > 0 && tried_read(fd, MIN_BLOCK_BYTES).is_ok() {
        return Ok(MIN_BLOCK_BYTES);
    }
    tried_read(fd, USUAL_BLOCK_BYTES).map(|()| USUAL_BLOCK_BYTES)
}

fn tried_read(fd: &OwnedFd, block_bytes: u32) -> Result<(), Errno> {
    let len = usize::try_from(block_bytes).or(Err(Errno::INVAL))?;
    // At an address aligned to one block and not to two.
    let mut buffer = AlignedBuf::new(len * 2, block_bytes * 2);
    let (_, second) = buffer.as_mut_slice().split_at_mut(len);
    rustix::io::pread(fd, second, 0).map(|_| ())
}

fn file_topology(fd: &OwnedFd, logical_block_bytes: u32) -> Result<Topology, Errno> {
    let block_bytes = u32::try_from(rustix::fs::fstat(fd)?.st_blksize)
        .ok()
        .filter(|bytes| bytes.is_power_of_two() && *bytes <= MAX_BLOCK_BYTES)
        .unwrap_or(USUAL_BLOCK_BYTES)
        .max(logical_block_bytes);
    Ok(Topology {
        logical_block_bytes,
        physical_block_bytes: block_bytes,
        alignment_offset_bytes: 0,
        min_io_bytes: block_bytes,
        opt_io_bytes: 0,
        discard_granularity_bytes: block_bytes,
    })
}

fn device_topology(fd: &OwnedFd, logical_block_bytes: u32) -> Result<Topology, Errno> {
    let physical_block_bytes = rustix::fs::ioctl_blkpbszget(fd)?.max(logical_block_bytes);
    let queue = queue_dir(fd)?;
    let limit = |name| queue_limit(&queue, name);
    Ok(Topology {
        logical_block_bytes,
        physical_block_bytes,
        alignment_offset_bytes: 0,
        min_io_bytes: limit("minimum_io_size").max(logical_block_bytes),
        opt_io_bytes: limit("optimal_io_size"),
        discard_granularity_bytes: limit("discard_granularity").max(logical_block_bytes),
    })
}

/// Where sysfs keeps the limits of a block device; a partition shares those of its disk.
fn queue_dir(fd: &OwnedFd) -> Result<PathBuf, Errno> {
    let device = rustix::fs::fstat(fd)?.st_rdev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let own = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let of_disk = if own.join("partition").exists() {
        own.join("..")
    } else {
        own
    };
    Ok(of_disk.join("queue"))
}

/// A limit, or 0 for an unknown one: where there is no sysfs, and where the driver cannot be told.
fn queue_limit(queue: &Path, name: &str) -> u32 {
    let limit = read_limit(queue, name).unwrap_or(0);
    u32::try_from(limit).unwrap_or(0)
}

fn read_limit(queue: &Path, name: &str) -> Result<u64, Errno> {
    let text = fs::read_to_string(queue.join(name)).or(Err(Errno::NOENT))?;
    text.trim().parse().or(Err(Errno::INVAL))
}
