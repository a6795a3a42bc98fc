// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long the strings of requests may be. What has more is refused.

/// The longest name of a directory entry that a path can have (`PATH_MAX` without the NUL), and
/// that FUSE has (`FUSE_NAME_MAX`; 1024 before Linux 6.15). What a file system takes is for the
/// host to say: 255 bytes of most, but 255 units of UTF-16 of vfat, exfat and ntfs3, which are up
/// to 765 bytes here, and more of those by FUSE.
pub const NAME_MAX_BYTES: usize = 4095;
/// The longest target of a symbolic link (`PATH_MAX`, less the NUL).
pub const TARGET_MAX_BYTES: usize = 4095;
/// The longest name of an extended attribute (`XATTR_NAME_MAX`).
pub const XATTR_NAME_MAX_BYTES: usize = 255;
/// The longest value of an extended attribute (`XATTR_SIZE_MAX`).
pub const XATTR_VALUE_MAX_BYTES: usize = 65536;
