// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest knows by number: nodes and handles.
//!
//! Numbers lead to entries through a [`slab`](Slab) that is read without a lock; a number is never
//! given out twice. Nodes are found again by what they are on the host in a map of many parts, so
//! that queues seldom meet there. A node is kept as a file handle, which takes no descriptor; those
//! used lately have one beside it, and [`Hot`] sees to it that they are not too many. Where the
//! file system has no file handles, the descriptor stays as long as the guest knows the node.
//!
//! While a node has its descriptor, its inode exists, so the same device and inode number are the
//! same file: a name that leads there needs one system call. Without it, numbers may have been used
//! again, and only the file handle tells.

mod budget;
mod hints;
mod hot;
mod mounts;
mod node;
mod nodes;
mod slab;
mod stalls;

pub use budget::{Budget, For};
pub use hints::Hints;
pub use hot::Hot;
pub use mounts::{Between, Mount, MountFd, Mounts};
pub use node::{Key, Node, NodeFd, Place};
pub use nodes::{Found, NodeOptions, Nodes};
pub use slab::{Identified, Slab, SlabRef};
pub use stalls::{Hung, Stall, Watched};
