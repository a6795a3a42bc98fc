// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line of `ringside-blk`.

use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::{Args, Parser, ValueEnum};
use ringside_common::cli::{Action, CommonArgs, size};
use ringside_common::io::Engine as IoEngine;

use crate::request::ID_BYTES;
use crate::storage::{CacheMode, DiscardMode, Image, ImageError, ImageOptions};

/// Serves a raw image file, a host block device or memory as a virtio-blk device to any VMM that
/// speaks vhost-user
#[derive(Clone, Debug, Parser)]
#[command(name = "ringside-blk", version, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Options {
    /// What all back-ends have.
    #[command(flatten)]
    pub common: CommonArgs,

    /// What this one has.
    #[command(flatten)]
    pub disk: DiskArgs,

    /// Something else than serving.
    #[command(subcommand)]
    pub command: Option<Action>,
}

/// Options of the disk.
#[derive(Args, Clone, Debug)]
#[group(id = "disk")]
#[command(about = None, long_about = None, next_help_heading = "Disk")]
pub struct DiskArgs {
    /// The raw image file or block device to serve
    #[arg(long, value_name = "PATH")]
    pub blk_file: Option<PathBuf>,

    /// Serve memory, whose content is lost when the process ends; needs --size
    #[arg(long, requires = "size", conflicts_with_all = ["blk_file", "read_only"])]
    pub memory: bool,

    /// Size of the memory, or of a sparse image that is created where none exists: bytes, or a
    /// number with K, M, G or T for powers of 1024
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub size: Option<u64>,

    /// Refuse writes
    #[arg(long)]
    pub read_only: bool,

    /// The serial number that the guest sees, up to 20 bytes [default: none]
    #[arg(long, value_name = "TEXT", value_parser = serial)]
    pub serial: Option<String>,

    /// How the host caches the image, and when a write is stable
    #[arg(long, value_enum, value_name = "MODE", default_value_t)]
    pub cache: CacheMode,

    /// What happens when the guest discards blocks
    #[arg(long, value_enum, value_name = "MODE", default_value_t)]
    pub discard: DiscardMode,

    /// The logical block size that the guest sees, in bytes [default: what the image needs]
    #[arg(long, value_name = "BYTES")]
    pub block_size: Option<u32>,

    /// The most segments that the guest puts in a request
    ///
    /// A guest without indirect descriptors needs a ring with two entries more: 126 segments fit the
    /// rings of 128 entries that VMMs make by default.
    #[arg(long, value_name = "N", default_value_t = 126)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1022))]
    pub seg_max: u32,

    /// How I/O on the image is done
    #[arg(long, value_enum, value_name = "ENGINE", default_value_t)]
    pub aio: Aio,

    /// Do not lock the image against other users
    #[arg(long)]
    pub no_lock: bool,
}

/// How I/O is done.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum Aio {
    /// With `io_uring`, or with threads where the kernel does not allow it
    #[default]
    #[value(name = "io_uring")]
    IoUring,
    /// With blocking threads
    Threads,
}

impl ValueEnum for CacheMode {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::Writeback,
            Self::Writethrough,
            Self::None,
            Self::Unsafe,
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Self::Writeback => ("writeback", "The host's page cache; stable after a flush"),
            Self::Writethrough => (
                "writethrough",
                "The host's page cache for reads; a write completes when it is stable",
            ),
            Self::None => ("none", "No page cache (`O_DIRECT`); stable after a flush"),
            Self::Unsafe => (
                "unsafe",
                "The host's page cache; a flush does nothing, so a host crash loses data",
            ),
        };
        Some(PossibleValue::new(name).help(help))
    }
}

impl ValueEnum for DiscardMode {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Unmap, Self::Ignore]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Self::Unmap => ("unmap", "Gives the space back to the host"),
            Self::Ignore => ("ignore", "Nothing: it is not offered"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}

/// A disk that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Neither an image nor memory was asked for.
    #[error("nothing to serve: give --blk-file PATH, or --memory with --size")]
    NoDisk,
    /// Nothing to serve.
    #[error("a disk of 0 sectors is none: the image is empty, or --size is 0")]
    NoSectors,
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl DiskArgs {
    /// Opens what is to be served, and says how I/O on it is done.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(&self) -> Result<(Image, IoEngine), DiskError> {
        if self.size == Some(0) {
            return Err(DiskError::NoSectors);
        }
        if self.memory {
            let image = Image::anonymous(self.size.unwrap_or(0), self.block_size)?;
            // Memory never blocks, and io_uring would hand each request to another thread.
            return Ok((image, IoEngine::Inline));
        }
        let path = self.blk_file.clone().ok_or(DiskError::NoDisk)?;
        let image = Image::open(&ImageOptions {
            path,
            read_only: self.read_only,
            size_bytes: self.size,
            cache: self.cache,
            block_size_bytes: self.block_size,
            discard: self.discard,
            lock: !self.no_lock,
        })?;
        if image.capacity_sectors() == 0 {
            return Err(DiskError::NoSectors);
        }
        let engine = match self.aio {
            Aio::IoUring => IoEngine::Uring,
            Aio::Threads => IoEngine::Threads,
        };
        Ok((image, engine))
    }

    /// The serial number: none unless asked for, as in QEMU. One that all disks have would be a
    /// lie, and one made up from the image would be another after a copy or a migration.
    #[must_use]
    pub fn serial(&self) -> String {
        self.serial.clone().unwrap_or_default()
    }
}

/// A serial number that does not fit.
#[derive(Debug, thiserror::Error)]
#[error("a serial number has at most {ID_BYTES} bytes")]
struct SerialError;

fn serial(text: &str) -> Result<String, SerialError> {
    if text.len() > ID_BYTES {
        Err(SerialError)
    } else {
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discovery_file_that_is_shipped_is_for_a_block_device() {
        let shipped = include_str!("../../../dist/50-ringside-blk.json");
        let shipped: serde_json::Value = serde_json::from_str(shipped).unwrap();
        assert_eq!(shipped["type"], "block");
        assert_eq!(shipped["binary"], "/usr/bin/ringside-blk");
    }

    #[test]
    fn memory_needs_a_size() {
        let parse = |args: &[&str]| Options::try_parse_from(args);
        parse(&["ringside-blk", "--socket-path", "s", "--memory"]).unwrap_err();
        let options = parse(&[
            "ringside-blk",
            "--socket-path",
            "s",
            "--memory",
            "--size",
            "1M",
        ]);
        assert_eq!(options.unwrap().disk.size, Some(1 << 20));
    }
}
