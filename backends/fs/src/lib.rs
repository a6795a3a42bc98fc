// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vhost-user file system device back-end: virtio-fs (virtio 1.3 §5.11) on shared directories of
//! the host.
//!
//! | module | does |
//! |---|---|
//! | [`options`], [`config`] | the command line; how the device behaves |
//! | [`program`], [`seccomp`] | what it opens, and what it may do in its sandbox |
//! | [`shared`] | what both sides share |
//! | [`device`] | features, configuration space, sessions: the control side |
//! | [`serve`] | requests from chains, replies into them, bytes between files and guest memory: the data side |
//! | [`server`] | from a request to the operation, and to its reply |
//! | [`passthrough`] | the operations, on the host's file systems |
//! | [`tables`] | nodes and handles by number, and which nodes have a descriptor |
//! | [`wire`] | requests and replies as bytes |
//! | [`pool`] | the threads that wait for a mount |
//! | [`credentials`] | the user and group that a thread acts as |
//! | [`manage`] | methods of the control socket |
//! | [`dax`] | the window of the guest that files are mapped into |
//! | [`locks`] | locks of the guest that the host and other guests see |
//! | [`attr`], [`idmap`], [`xattrmap`], [`ioctl`] | attributes, numbers of users, names of extended attributes, flags of inodes: what is translated |
//! | [`sys`] | the system calls that have no safe wrapper |
//!
//! How it works, and why, is in `docs/fs.md`.

pub mod attr;
pub mod config;
pub mod credentials;
pub mod dax;
pub mod device;
pub mod error;
pub mod idmap;
pub mod ioctl;
pub mod locks;
pub mod manage;
pub mod options;
pub mod passthrough;
pub mod pool;
pub mod program;
pub mod seccomp;
pub mod serve;
pub mod server;
pub mod shared;
pub mod sys;
pub mod tables;
#[cfg(test)]
mod testing;
pub mod wire;
pub mod xattrmap;
