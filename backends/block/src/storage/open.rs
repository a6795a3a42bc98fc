// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An image from a file or a block device.
//!
//! [`Image::open`] settles everything about an image that can be asked for: its lock, size, block
//! sizes, the alignment that `O_DIRECT` demands and whether it can discard. It never looks at the
//! content, so nothing a guest writes into its disk changes how the disk is read (case E15).

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::create::NewFile;
use super::error::ImageError;
use super::image::{Image, Kind};
use super::options::{DiscardMode, ImageOptions};
use super::topology::check_block_size;
use super::{lock, probe, sys};

impl Image {
    /// Opens, locks and probes an image.
    ///
    /// # Errors
    ///
    /// See [`ImageError`]. A new file that cannot be served is removed again.
    pub fn open(options: &ImageOptions) -> Result<Self, ImageError> {
        if let Some(block_size_bytes) = options.block_size_bytes {
            check_block_size(block_size_bytes)?;
        }
        let (fd, kind, new) = open_or_create(options)?;
        if options.lock {
            lock::lock_or_say_why_not(&fd, options)?;
        }
        let image = Self::from_fd(fd, kind, options)?;
        match new {
            Some(new) => new.keep(&image.fd)?,
            None => image.say_if_not(options.size_bytes),
        }
        Ok(image)
    }

    pub(super) fn from_fd(
        fd: OwnedFd,
        kind: Kind,
        options: &ImageOptions,
    ) -> Result<Self, ImageError> {
        let (topology, alignment) = probe::sizes(&fd, kind, options)?;
        let clear_granule_bytes = probe::clear_granule_bytes(&fd, kind, &options.path)?;
        let can_discard = !options.read_only
            && options.discard == DiscardMode::Unmap
            && probe::can_discard(&fd, kind);
        let image = Self {
            fd,
            path: options.path.clone(),
            kind,
            read_only: options.read_only,
            cache: options.cache,
            can_discard,
            topology,
            alignment,
            clear_granule_bytes,
            capacity_sectors: AtomicU64::new(0),
            zeroed_edges: AtomicBool::new(false),
            rounding: Mutex::default(),
        };
        image.refresh()?;
        Ok(image)
    }
}

fn open_or_create(
    options: &ImageOptions,
) -> Result<(OwnedFd, Kind, Option<NewFile<'_>>), ImageError> {
    let path = &options.path;
    let (opened, new) = match kind_of(path, rustix::fs::stat(path.as_path())) {
        Ok(_) => open_existing(options).map(|fd| (fd, None)),
        Err(ImageError::Open {
            source: Errno::NOENT,
            ..
        }) if !options.read_only => match options.size_bytes {
            Some(size_bytes) => {
                NewFile::create(options, size_bytes).map(|(fd, new)| (fd, Some(new)))
            }
            None => Err(ImageError::Open {
                path: path.clone(),
                source: Errno::NOENT,
            }),
        },
        Err(other) => Err(other),
    }?;
    // What was opened may not be what was looked at.
    let kind = kind_of(path, rustix::fs::fstat(&opened))?;
    if kind == Kind::BlockDevice && !options.read_only {
        let read_only =
            sys::block_device_is_read_only(&opened).map_err(|source| ImageError::Probe {
                path: path.clone(),
                what: "write protection",
                source,
            })?;
        if read_only {
            return Err(ImageError::ReadOnlyDevice { path: path.clone() });
        }
    }
    Ok((opened, kind, new))
}

/// Refuses what must not even be opened: opening a tape or a watchdog does something.
fn kind_of(path: &Path, stat: Result<rustix::fs::Stat, Errno>) -> Result<Kind, ImageError> {
    let stat = stat.map_err(|source| ImageError::Open {
        path: path.to_owned(),
        source,
    })?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(Kind::RegularFile),
        FileType::BlockDevice => Ok(Kind::BlockDevice),
        _ => Err(ImageError::FileType {
            path: path.to_owned(),
        }),
    }
}

fn open_existing(options: &ImageOptions) -> Result<OwnedFd, ImageError> {
    let access = if options.read_only {
        OFlags::RDONLY
    } else {
        OFlags::RDWR
    };
    // Not to hang if the path became a FIFO since it was looked at.
    let flags = access | options.cache_flags() | OFlags::NONBLOCK | OFlags::NOCTTY;
    rustix::fs::open(&options.path, flags | OFlags::CLOEXEC, Mode::empty())
        .and_then(|fd| {
            let flags = rustix::fs::fcntl_getfl(&fd)?;
            // O_NONBLOCK would make io_uring fail reads with EAGAIN.
            rustix::fs::fcntl_setfl(&fd, flags - OFlags::NONBLOCK).map(|()| fd)
        })
        .map_err(|source| options.open_error(source))
}
