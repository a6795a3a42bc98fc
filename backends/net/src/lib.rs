// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vhost-user network device back-end: virtio-net (virtio 1.3 §5.1) on tap devices, packet
//! sockets, stream and datagram sockets, and on a switch between guests in shared memory.

pub mod capture;
pub mod config_space;
pub mod control;
pub mod counters;
pub mod device;
pub mod features;
pub mod filter;
pub mod flow;
pub mod frame;
pub mod header;
pub mod hub;
pub mod limit;
pub mod link;
pub mod mac_table;
pub mod manage;
pub mod network;
pub mod offload;
pub mod options;
pub mod port;
mod sys;
pub mod worker;
