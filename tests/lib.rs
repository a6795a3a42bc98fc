// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Everything the Ringside test suites share.
//!
//! * [`in_process`]: a device served in this process, a disk on any engine, and whatever happens
//!   between two of its reads of guest memory.
//! * [`block_engine`]: such an engine, a disk with a volatile cache and faults at will.
//! * [`hostile`]: a running back-end as the victim of hostile cases, and the check after each.
//! * [`process`]: runs a back-end binary as a child and samples it through `/proc`.
//! * [`net_back_end`]: a running `ringside-net` and its sockets.
//! * [`fs_back_end`]: a running `ringside-fs`, or its rival.
//! * [`fs_mount`]: what such a one shares, mounted on this machine.
//! * [`testpmd`]: DPDK's test program as a front-end and as a rival.
//! * [`covering`]: which cases of a large matrix cover all pairs of its values.
//! * [`host_fs`]: file systems that a test mounts for itself.
//! * [`fs_tools`]: where other people's file system programs are.
//! * [`libvirt`]: the README's lines for libvirt, and what it makes of them.
//! * [`vm`]: boots a real Linux guest in QEMU with a back-end attached.
//! * [`mod@skip`]: how a test says, countably, that its machine lacks something.

pub mod block_engine;
pub mod covering;
pub mod fs_back_end;
pub mod fs_mount;
pub mod fs_tools;
pub mod host_fs;
pub mod hostile;
pub mod in_process;
pub mod libvirt;
pub mod net_back_end;
pub mod process;
pub mod skip;
pub mod testpmd;
pub mod vm;
