// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use nix::mount::MsFlags;

/// Mount what a running vhost-user-fs back-end shares, without a virtual machine.
///
/// Connects to the back-end as a virtual machine would and hands its file system to this kernel
/// through /dev/fuse. Needs root. Stays in the foreground until the file system is
/// unmounted (umount MOUNTPOINT), or unmounts it itself on SIGINT and SIGTERM. If the back-end goes
/// away, everything on the mount fails with ENOTCONN and the exit status is 1.
///
/// What only a virtual machine has is not there: DAX, and mounts within the share shown as mounts.
#[derive(Clone, Debug, Parser)]
#[command(name = "vhost-user-fs-mount", version)]
pub(crate) struct Options {
    /// Where the back-end listens.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket_path: PathBuf,

    /// Request queues, as many as the back-end has at most; each has two threads.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) queues: u16,

    /// Requests of a queue that may wait for the back-end at once: a blocked lock takes one.
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) depth: u16,

    /// Background requests (readahead, write-back, asynchronous I/O) that the kernel keeps in
    /// flight; default: what the back-end says.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) max_background: Option<u16>,

    /// Mount options, separated by commas.
    #[arg(short = 'o', value_name = "OPTIONS", value_enum, value_delimiter = ',')]
    pub(crate) options: Vec<MountOption>,

    /// An empty directory outside of the share.
    pub(crate) mountpoint: PathBuf,
}

/// One mount option.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum MountOption {
    /// Other users than root may use the mount.
    AllowOther,
    /// The kernel checks permissions itself, as it does in a virtual machine.
    DefaultPermissions,
    /// Read only.
    Ro,
    /// Read and write.
    Rw,
    /// Set-user-ID bits have no effect.
    Nosuid,
    /// Device files cannot be opened.
    Nodev,
    /// Nothing can be executed.
    Noexec,
    /// Times of access are not updated.
    Noatime,
}

impl Options {
    /// The flags of `mount(2)`.
    pub(crate) fn flags(&self) -> MsFlags {
        let flag = |option: &MountOption| match option {
            MountOption::Ro => MsFlags::MS_RDONLY,
            MountOption::Nosuid => MsFlags::MS_NOSUID,
            MountOption::Nodev => MsFlags::MS_NODEV,
            MountOption::Noexec => MsFlags::MS_NOEXEC,
            MountOption::Noatime => MsFlags::MS_NOATIME,
            MountOption::AllowOther | MountOption::DefaultPermissions | MountOption::Rw => {
                MsFlags::empty()
            }
        };
        self.options.iter().map(flag).collect()
    }

    /// The data of `mount(2)` for a connection with this descriptor.
    pub(crate) fn data(&self, fd: i32) -> String {
        let mut data = format!("fd={fd},rootmode=40000,user_id=0,group_id=0");
        for (option, text) in [
            (MountOption::AllowOther, ",allow_other"),
            (MountOption::DefaultPermissions, ",default_permissions"),
        ] {
            if self.options.contains(&option) {
                data.push_str(text);
            }
        }
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_flags_and_data() {
        let words = [
            "x",
            "--socket-path",
            "s",
            "-o",
            "allow_other,ro",
            "-o",
            "nodev",
            "m",
        ];
        let options = Options::parse_from(words);
        assert_eq!(options.flags(), MsFlags::MS_RDONLY | MsFlags::MS_NODEV);
        let data = "fd=5,rootmode=40000,user_id=0,group_id=0,allow_other";
        assert_eq!(options.data(5), data);
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [
            ["x", "--socket-path=s", "--queues=0", "m"],
            ["x", "--socket-path=s", "-obig", "m"],
            ["x", "--socket-path=s", "--depth=1000", "m"],
        ] {
            assert!(Options::try_parse_from(words).is_err(), "{words:?}");
        }
    }
}
