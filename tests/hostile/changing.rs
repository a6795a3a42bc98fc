// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! No field that the driver can write is read twice: whatever byte of a request it changes, and
//! between whichever two reads of the device, the request is the one or the other, wholly.

#[path = "changing/disk.rs"]
mod disk;
#[path = "changing/folder.rs"]
mod folder;
#[path = "changing/operations.rs"]
mod operations;
