// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can be wrong with an image.

use std::path::PathBuf;

use rustix::io::Errno;
use thiserror::Error;

/// An image that cannot be used as asked.
#[derive(Debug, Error)]
pub enum ImageError {
    /// `open` failed.
    #[error("{path}: cannot open the image")]
    Open {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A new image could not be made.
    #[error("{path}: cannot create an image of {size_bytes} bytes")]
    Create {
        /// The image.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A directory, FIFO, socket or character device.
    #[error("{path}: neither a regular file nor a block device")]
    FileType {
        /// The image.
        path: PathBuf,
    },
    /// A write-protected block device, opened for writing.
    #[error("{path}: the block device is read-only")]
    ReadOnlyDevice {
        /// The image.
        path: PathBuf,
    },
    /// Another process uses the image in a way that excludes this one.
    #[error("{path}: in use by another process, which holds the \"{permission}\" lock")]
    InUse {
        /// The image.
        path: PathBuf,
        /// QEMU's name of what that process does or forbids.
        permission: &'static str,
    },
    /// The file system could not lock.
    #[error("{path}: cannot lock the image")]
    Lock {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A size or limit of the image is unknown.
    #[error("{path}: cannot find out the {what}")]
    Probe {
        /// The image.
        path: PathBuf,
        /// What was asked for.
        what: &'static str,
        /// Why.
        #[source]
        source: Errno,
    },
    /// `O_DIRECT` is not for this file.
    #[error("{path}: the file system cannot bypass its page cache (cache mode none)")]
    DirectUnsupported {
        /// The image.
        path: PathBuf,
    },
    /// A block size that no driver takes.
    #[error("block size {block_size_bytes} is not a power of two from 512 to 65536")]
    BlockSize {
        /// The size.
        block_size_bytes: u32,
    },
    /// A size of the image that its blocks do not divide.
    #[error("image size {size_bytes} is not a multiple of the block size {block_size_bytes}")]
    Size {
        /// The size.
        size_bytes: u64,
        /// The block size.
        block_size_bytes: u32,
    },
    /// No sector at all.
    #[error("{path}: a disk of 0 sectors is none")]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// A size below the present one, where only a larger one is meant.
    #[error("{path}: {size_bytes} bytes are not the size to which it may change this way")]
    Shrink {
        /// The image.
        path: PathBuf,
        /// The size.
        size_bytes: u64,
    },
    /// Only a writable file can be resized from here.
    #[error("{path}: a read-only image or block device cannot be resized from here")]
    NotResizable {
        /// The image.
        path: PathBuf,
    },
    /// `ftruncate` failed.
    #[error("{path}: cannot resize the image to {size_bytes} bytes")]
    Resize {
        /// The image.
        path: PathBuf,
        /// Its new size.
        size_bytes: u64,
        /// Why.
        #[source]
        source: Errno,
    },
}
