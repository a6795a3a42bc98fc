// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! New images.
//!
//! A new image is kept only if every step of making it succeeds, its directory entry included: an
//! empty file that is left behind would be the disk of the next start.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::error::ImageError;
use super::options::{CacheMode, ImageOptions};
use super::topology::{MIN_BLOCK_BYTES, check_size};

/// A file that was made and is removed again, unless it is [kept](Self::keep).
#[derive(Debug)]
pub(super) struct NewFile<'a> {
    path: &'a Path,
    size_bytes: u64,
    /// Device and inode: the name may lead elsewhere by the time it is removed.
    id: (u64, u64),
    kept: bool,
}

impl<'a> NewFile<'a> {
    /// Makes a sparse file.
    pub(super) fn create(
        options: &'a ImageOptions,
        size_bytes: u64,
    ) -> Result<(OwnedFd, Self), ImageError> {
        let path = options.path.as_path();
        check_size(
            size_bytes,
            options.block_size_bytes.unwrap_or(MIN_BLOCK_BYTES),
        )?;
        // Without O_DIRECT: a file system that has none makes the file first, and then refuses.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|source| options.open_error(source))?;
        let failed = |source| ImageError::Create {
            path: path.to_owned(),
            size_bytes,
            source,
        };
        let new = Self {
            path,
            size_bytes,
            id: rustix::fs::fstat(&fd).map(id_of).map_err(failed)?,
            kept: false,
        };
        rustix::fs::ftruncate(&fd, size_bytes).map_err(failed)?;
        if options.cache == CacheMode::None {
            rustix::fs::fcntl_getfl(&fd)
                .and_then(|flags| rustix::fs::fcntl_setfl(&fd, flags | OFlags::DIRECT))
                .map_err(|source| options.open_error(source))?;
        }
        Ok((fd, new))
    }

    /// Makes the file and its name stable: a flush of the guest does not reach the directory.
    pub(super) fn keep(mut self, fd: &OwnedFd) -> Result<(), ImageError> {
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let named = rustix::fs::fsync(fd)
            .and_then(|()| rustix::fs::open(&directory, flags, Mode::empty()))
            .and_then(rustix::fs::fsync);
        match named {
            Ok(()) => {}
            // File systems without such a call, and directories that may be used but not read.
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::ACCESS) => {
                log::warn!(
                    "{}: its directory cannot be synced: a host crash soon may undo its creation",
                    self.path.display()
                );
            }
            Err(source) => {
                return Err(ImageError::Create {
                    path: self.path.to_owned(),
                    size_bytes: self.size_bytes,
                    source,
                });
            }
        }
        self.kept = true;
        Ok(())
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let is_ours = rustix::fs::lstat(self.path).is_ok_and(|stat| id_of(stat) == self.id);
        if is_ours && let Err(error) = rustix::fs::unlink(self.path) {
            log::warn!(
                "{}: cannot remove the unfinished image: {error}",
                self.path.display()
            );
        }
    }
}

fn id_of(stat: rustix::fs::Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}
