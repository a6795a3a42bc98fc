// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! File systems that a test mounts for itself on this machine, and takes away again.

use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub struct HostFs {
    dir: tempfile::TempDir,
}

impl HostFs {
    /// A tmpfs with these options (`mount(8)`).
    ///
    /// # Errors
    ///
    /// When it cannot be mounted, as by who is not root.
    pub fn tmpfs(options: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (none, kind) = (Some("ringside"), Some("tmpfs"));
        mount(none, dir.path(), kind, MsFlags::empty(), Some(options))?;
        let mounted = Self { dir };
        std::fs::create_dir(mounted.path())?;
        Ok(mounted)
    }

    /// An ext4 file system in a file of its own.
    ///
    /// # Errors
    ///
    /// When there is no `mkfs.ext4` or no loop device, or one may not use them.
    pub fn ext4(bytes: u64) -> Result<Self> {
        Self::in_file(Command::new("mkfs.ext4").arg("-q"), bytes)
    }

    /// A file system in a file of its own, which `mkfs` makes.
    ///
    /// # Errors
    ///
    /// When there is no such program, no such file system or no loop device, or one may not use them.
    pub fn in_file(mkfs: &mut Command, bytes: u64) -> Result<Self> {
        let image = tempfile::NamedTempFile::new()?;
        File::options()
            .write(true)
            .open(image.path())?
            .set_len(bytes)?;
        run(mkfs.arg(image.path()))?;
        let mounted = Self::of_image(image.path())?;
        std::fs::create_dir(mounted.path())?;
        Ok(mounted)
    }

    /// Makes an ext4 file system in a file, with what is in the directory `content`.
    ///
    /// # Errors
    ///
    /// When there is no `mkfs.ext4`.
    pub fn make_ext4(image: &Path, bytes: u64, content: &Path) -> Result<()> {
        File::create_new(image)?.set_len(bytes)?;
        let mut mkfs = Command::new("mkfs.ext4");
        // Nobody is to write to it later what could be written here.
        mkfs.args(["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d"]);
        run(mkfs.arg(content).arg(image))
    }

    /// The file system in a file, of whose directory `share` is served.
    ///
    /// # Errors
    ///
    /// When there is no loop device, or one may not use it.
    pub fn of_image(image: &Path) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        run(Command::new("mount")
            .args(["-o", "loop,noatime"])
            .arg(image)
            .arg(dir.path()))?;
        Ok(Self { dir })
    }

    /// A directory on it, which is empty if nobody has put something there.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("share")
    }

    /// Makes whoever wants to change something wait (`FIFREEZE`), until what is returned is dropped.
    ///
    /// It must be dropped before anything that waits for a process which waits for this: nothing
    /// ends that, not even a signal.
    ///
    /// # Errors
    ///
    /// When `fsfreeze(8)` fails.
    pub fn freeze(&self) -> Result<Frozen> {
        let frozen = Frozen(self.dir.path().to_owned());
        run(Command::new("fsfreeze").arg("-f").arg(&frozen.0))?;
        Ok(frozen)
    }
}

/// A loop device on a file, taken away again when dropped.
#[derive(Debug)]
pub struct LoopDevice {
    path: String,
    _file: tempfile::NamedTempFile,
}

impl LoopDevice {
    /// A device of zeroes, with these options of `losetup(8)`.
    ///
    /// # Errors
    ///
    /// When there can be none, as for who is not root.
    pub fn attach(bytes: u64, options: &[&str]) -> Result<Self> {
        let file = tempfile::NamedTempFile::new()?;
        file.as_file().set_len(bytes)?;
        let made = Command::new("losetup")
            .args(["--find", "--show"])
            .args(options)
            .arg(file.path())
            .output()?;
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).trim().into());
        }
        let path = String::from_utf8(made.stdout)?.trim().to_owned();
        Ok(Self { path, _file: file })
    }

    /// Its name.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // Detached for sure once its last user closes it.
        let _ = Command::new("losetup")
            .args(["--detach", &self.path])
            .status();
    }
}

impl Drop for HostFs {
    fn drop(&mut self) {
        // Nobody is left to tell; what stays mounted is seen by whoever cleans up.
        let _ = umount2(self.dir.path(), MntFlags::MNT_DETACH);
    }
}

/// A file system that is frozen.
#[derive(Debug)]
pub struct Frozen(PathBuf);

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("fsfreeze").arg("-u").arg(&self.0)) {
            log::error!("still frozen: {error}");
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("{command:?}: {said}").into())
}
