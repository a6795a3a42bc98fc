// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The storage below a block device: a raw file, a host block device, or anonymous memory.
//!
//! [`Image::open`] settles everything about an image that can be asked for: its lock, size, block
//! sizes, the alignment that `O_DIRECT` demands and whether it can discard. It never looks at the
//! content, so nothing a guest writes into its disk changes how the disk is read (case E15).

mod create;
mod error;
mod lock;
mod probe;
mod size;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use clap::ValueEnum;
use rustix::fs::{FallocateFlags, FileType, MemfdFlags, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use crate::config_space::Topology;
use crate::slow_path::{Alignment, Storage, is_not_supported};
use crate::sys;
use create::NewFile;
pub use error::ImageError;
use size::{check_size, len_bytes};

/// Smallest block size: a sector.
const MIN_BLOCK_BYTES: u32 = 512;
/// Largest block size: what Linux takes as a logical block.
const MAX_BLOCK_BYTES: u32 = 1 << 16;

/// When a write is stable, and what the host caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CacheMode {
    /// The host's page cache; stable after a flush.
    #[default]
    Writeback,
    /// The host's page cache for reads; a write completes when it is stable.
    Writethrough,
    /// No page cache (`O_DIRECT`); stable after a flush.
    None,
    /// The host's page cache; a flush does nothing, so a host crash loses data.
    Unsafe,
}

/// What a discard by the driver does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DiscardMode {
    /// Gives the space back to the host.
    #[default]
    Unmap,
    /// Nothing: it is not offered.
    Ignore,
}

/// How to open an image.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Open it for reading only.
    pub read_only: bool,
    /// Create a sparse file of so many bytes if there is none. An existing image keeps its size,
    /// whatever this says.
    pub size_bytes: Option<u64>,
    /// Cache mode.
    pub cache: CacheMode,
    /// The logical block size to present, instead of the image's own.
    pub block_size_bytes: Option<u32>,
    /// What a discard does.
    pub discard: DiscardMode,
    /// Lock the image against other users. For images on file systems without locks, and for
    /// guests that share a disk and know it.
    pub lock: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    RegularFile,
    BlockDevice,
}

/// An open image.
#[derive(Debug)]
pub struct Image {
    fd: OwnedFd,
    path: PathBuf,
    kind: Kind,
    read_only: bool,
    cache: CacheMode,
    can_discard: bool,
    topology: Topology,
    alignment: Alignment,
    /// What discards and zeroes must be whole multiples of: the blocks of a device, whatever the
    /// driver is shown.
    clear_granule_bytes: u32,
    capacity_sectors: AtomicU64,
    /// A part of a file system's block was zeroed or discarded.
    zeroed_edges: AtomicBool,
    /// Held while the length of the file is changed.
    rounding: Mutex<()>,
}

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

    /// An image of zeroes in anonymous memory, for scratch disks.
    ///
    /// # Errors
    ///
    /// See [`ImageError`].
    pub fn anonymous(size_bytes: u64, block_size_bytes: Option<u32>) -> Result<Self, ImageError> {
        let path = PathBuf::from("anonymous memory");
        let block_size = block_size_bytes.unwrap_or(MIN_BLOCK_BYTES);
        check_block_size(block_size)?;
        check_size(size_bytes, block_size)?;
        let fd = rustix::fs::memfd_create("ringside-blk", MemfdFlags::CLOEXEC)
            .and_then(|fd| rustix::fs::ftruncate(&fd, size_bytes).map(|()| fd))
            .map_err(|source| ImageError::Create {
                path: path.clone(),
                size_bytes,
                source,
            })?;
        let options = ImageOptions {
            path,
            read_only: false,
            size_bytes: None,
            cache: CacheMode::Unsafe,
            block_size_bytes: Some(block_size),
            discard: DiscardMode::Unmap,
            lock: false,
        };
        Self::from_fd(fd, Kind::RegularFile, &options)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Block sizes to present to the driver.
    #[must_use]
    pub const fn topology(&self) -> Topology {
        self.topology
    }

    /// Whether a discard frees space, and so may be offered.
    #[must_use]
    pub const fn can_discard(&self) -> bool {
        self.can_discard
    }

    /// Whether the image is open for reading only.
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether what was written may be in the page cache only, until a sync: always but under
    /// `O_DIRECT`, and even there once the edge of a block was zeroed, which file systems do in the
    /// page cache.
    pub(crate) fn caches_writes(&self) -> bool {
        self.cache != CacheMode::None || self.zeroed_edges.load(Ordering::Acquire)
    }

    /// The cache mode it was opened with.
    #[must_use]
    pub const fn cache(&self) -> CacheMode {
        self.cache
    }

    /// Takes note of a range that begins or ends inside of a block of the file system.
    fn note_edges(&self, offset: u64, len_bytes: u64) {
        let block_bytes = u64::from(self.topology.physical_block_bytes);
        let is_whole = offset.is_multiple_of(block_bytes) && len_bytes.is_multiple_of(block_bytes);
        if self.kind == Kind::RegularFile && !is_whole {
            self.zeroed_edges.store(true, Ordering::Release);
        }
    }

    fn from_fd(fd: OwnedFd, kind: Kind, options: &ImageOptions) -> Result<Self, ImageError> {
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

impl AsFd for Image {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Storage for Image {
    fn alignment(&self) -> Alignment {
        self.alignment
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<usize, Errno> {
        rustix::io::pread(&self.fd, bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64, flags: ReadWriteFlags) -> Result<usize, Errno> {
        let written =
            rustix::io::pwritev2(&self.fd, &[std::io::IoSlice::new(bytes)], offset, flags)?;
        self.cut_rounding(offset + u64::try_from(written).unwrap_or(0));
        Ok(written)
    }

    fn clear_granule_bytes(&self) -> u32 {
        self.clear_granule_bytes
    }

    fn zero_range(&self, offset: u64, len_bytes: u64, unmap: bool) -> Result<(), Errno> {
        self.note_edges(offset, len_bytes);
        let fallocate = |flags: FallocateFlags| {
            let flags = flags | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&self.fd, flags, offset, len_bytes)
        };
        if unmap && self.can_discard {
            match fallocate(FallocateFlags::PUNCH_HOLE) {
                Err(errno) if is_not_supported(errno) => {}
                punched => return punched,
            }
        }
        fallocate(FallocateFlags::ZERO_RANGE)
    }

    fn discard(&self, offset: u64, len_bytes: u64) -> Result<(), Errno> {
        match self.kind {
            Kind::RegularFile => {
                self.note_edges(offset, len_bytes);
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&self.fd, flags, offset, len_bytes)
            }
            Kind::BlockDevice => sys::block_device_discard(&self.fd, offset, len_bytes),
        }
    }
}

fn check_block_size(block_size_bytes: u32) -> Result<(), ImageError> {
    let is_good = block_size_bytes.is_power_of_two()
        && (MIN_BLOCK_BYTES..=MAX_BLOCK_BYTES).contains(&block_size_bytes);
    if is_good {
        Ok(())
    } else {
        Err(ImageError::BlockSize { block_size_bytes })
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
    let flags = access | cache_flags(options.cache) | OFlags::NONBLOCK | OFlags::NOCTTY;
    rustix::fs::open(&options.path, flags | OFlags::CLOEXEC, Mode::empty())
        .and_then(|fd| {
            let flags = rustix::fs::fcntl_getfl(&fd)?;
            // O_NONBLOCK would make io_uring fail reads with EAGAIN.
            rustix::fs::fcntl_setfl(&fd, flags - OFlags::NONBLOCK).map(|()| fd)
        })
        .map_err(|source| open_error(options, source))
}

fn cache_flags(cache: CacheMode) -> OFlags {
    if cache == CacheMode::None {
        OFlags::DIRECT
    } else {
        OFlags::empty()
    }
}

fn open_error(options: &ImageOptions, source: Errno) -> ImageError {
    let path = options.path.clone();
    if options.cache == CacheMode::None && source == Errno::INVAL {
        return ImageError::DirectUnsupported { path };
    }
    ImageError::Open { path, source }
}

#[cfg(test)]
mod tests;
