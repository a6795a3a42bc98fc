// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file beside the socket that says which process serves it, as virtiofsd writes it: the
//! socket's path with `.pid` behind it, locked for as long as the process lives.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use thiserror::Error;

/// Why the file cannot be had.
#[derive(Debug, Error)]
#[error("{path}: cannot be written and locked")]
pub(super) struct PidFileError {
    path: PathBuf,
    source: io::Error,
}

/// The file; removed at drop.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    /// Holds the lock.
    file: File,
}

impl PidFile {
    /// Writes the number of this process beside the socket `socket`; fails when another process
    /// has the file locked, or it cannot be written.
    pub(super) fn beside(socket: &Path) -> Result<Self, PidFileError> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".pid");
        let path = PathBuf::from(path);
        match lock(&path).and_then(write) {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(PidFileError { path, source }),
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if is_at(&self.file, &self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Opens and locks the file at `path`, and not one that was just removed from there.
fn lock(path: &Path) -> io::Result<File> {
    loop {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(i32::try_from(OFlags::NOFOLLOW.bits()).map_err(io::Error::other)?)
            .open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        if is_at(&file, path) {
            return Ok(file);
        }
    }
}

fn write(mut file: File) -> io::Result<File> {
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_file_is_locked_while_it_lives_and_removed_after() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("fs.sock");
        let path = dir.path().join("fs.sock.pid");
        std::fs::write(&path, "a longer text left over by a crash\n").unwrap();
        let file = PidFile::beside(&socket).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
        let error = PidFile::beside(&socket).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::WouldBlock);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn pid_file_that_is_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        std::os::unix::fs::symlink(&target, dir.path().join("fs.sock.pid")).unwrap();
        let error = PidFile::beside(&dir.path().join("fs.sock")).unwrap_err();
        assert_eq!(error.source.raw_os_error(), Some(libc::ELOOP));
        assert!(!target.exists());
    }
}
