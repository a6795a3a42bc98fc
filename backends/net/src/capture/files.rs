// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The files of a capture, one after the other: `NAME`, `NAME.1` and so on, and `NAME` again.
//!
//! They are opened in the directory that was there at the start, whatever becomes of its path.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fchmod, open, openat, statat};
use rustix::io::Errno;

use super::CaptureError;

/// The least that a file may be bounded to: the longest frame fits, and what is around it.
pub const MIN_FILE_BYTES: u64 = 100_000;
/// Most files.
pub const MAX_FILES: u32 = 1000;

/// The bytes of a name (`NAME_MAX`).
const MAX_NAME_BYTES: usize = 255;

/// What becomes of a file that is full.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rotation {
    /// Bytes of a file, at least [`MIN_FILE_BYTES`]; `None`: there is no bound, and one file.
    pub max_bytes: Option<u64>,
    /// How many files there are, 1 to [`MAX_FILES`]: behind the last one the first is begun anew.
    pub files: u32,
}

impl Default for Rotation {
    /// A capture that is forgotten takes no more than a gigabyte.
    fn default() -> Self {
        Self {
            max_bytes: Some(250_000_000),
            files: 4,
        }
    }
}

impl Rotation {
    /// What was said of it, on top of what is usual; there are not several files without a bound.
    #[must_use]
    pub fn of(max_bytes: Option<Option<u64>>, files: Option<u32>) -> Option<Self> {
        let usual = Self::default();
        let max_bytes = max_bytes.unwrap_or(usual.max_bytes);
        match (max_bytes, files) {
            (None, Some(2..)) => None,
            (None, _) => Some(Self {
                max_bytes,
                files: 1,
            }),
            (_, files) => Some(Self {
                max_bytes,
                files: files.unwrap_or(usual.files),
            }),
        }
    }
}

/// The files of a capture.
#[derive(Debug)]
pub(super) struct Files {
    directory: OwnedFd,
    path: PathBuf,
    files: u32,
    /// The number of the file that is open.
    current: u32,
}

impl Files {
    /// Opens the first one, and the directory for the others.
    ///
    /// # Errors
    /// [`CaptureError::Open`], [`CaptureError::NotAFile`] and [`CaptureError::OfOthers`].
    pub(super) fn open(path: &Path, rotation: Rotation) -> Result<(Self, File), CaptureError> {
        let parent = path.parent().filter(|parent| *parent != Path::new(""));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = open(
            parent.unwrap_or_else(|| Path::new(".")),
            flags,
            Mode::empty(),
        );
        let files = Self {
            directory: directory.map_err(|errno| failed(path, errno))?,
            path: path.to_owned(),
            files: rotation.files.max(1),
            current: 0,
        };
        if path.file_name().is_none() {
            return Err(failed(path, Errno::ISDIR));
        }
        if files.name(files.files - 1).len() > MAX_NAME_BYTES {
            return Err(failed(path, Errno::NAMETOOLONG));
        }
        let file = files.create(path, &files.name(0))?;
        Ok((files, file))
    }

    /// Opens the next one.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) fn next(&mut self) -> Result<File, CaptureError> {
        self.current = (self.current + 1) % self.files;
        let name = self.name(self.current);
        self.create(&self.path.with_file_name(&name), &name)
    }

    fn name(&self, number: u32) -> OsString {
        let mut name = self.path.file_name().map_or_else(OsString::new, Into::into);
        if number > 0 {
            name.push(format!(".{number}"));
        }
        name
    }

    /// Opens a file, without waiting for the other end of a FIFO, and empties it. What is there
    /// already has to be ours, and is for us alone from then on: others might have it open for
    /// nothing but to read what guests send. A symbolic link leads to nothing that was asked for.
    fn create(&self, path: &Path, name: &OsStr) -> Result<File, CaptureError> {
        let failed = |errno| failed(path, errno);
        let not_a_file = || CaptureError::NotAFile {
            path: path.to_owned(),
        };
        // Devices exist that do something when they are opened.
        if let Ok(stat) = statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW)
            && !matches!(
                FileType::from_raw_mode(stat.st_mode),
                FileType::RegularFile | FileType::Symlink
            )
        {
            return Err(not_a_file());
        }
        let flags = OFlags::WRONLY
            | OFlags::CREATE
            | OFlags::NONBLOCK
            | OFlags::NOFOLLOW
            | OFlags::NOCTTY
            | OFlags::CLOEXEC;
        let private = Mode::RUSR | Mode::WUSR;
        let file = openat(&self.directory, name, flags, private).map_err(failed)?;
        let file = File::from(file);
        let of_io = |error: io::Error| CaptureError::Open {
            path: path.to_owned(),
            source: error,
        };
        let metadata = file.metadata().map_err(of_io)?;
        if !metadata.is_file() {
            return Err(not_a_file());
        }
        if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.nlink() != 1 {
            return Err(CaptureError::OfOthers {
                path: path.to_owned(),
            });
        }
        fchmod(&file, private).map_err(failed)?;
        file.set_len(0).map_err(of_io)?;
        Ok(file)
    }
}

fn failed(path: &Path, errno: Errno) -> CaptureError {
    CaptureError::Open {
        path: path.to_owned(),
        source: errno.into(),
    }
}
