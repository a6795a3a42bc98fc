// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vhost-user network device back-end: virtio-net (virtio 1.3 §5.1) on tap devices, packet
//! sockets, stream and datagram sockets, and on a switch between guests in shared memory.
//!
//! | module | does |
//! |---|---|
//! | [`options`], [`program`] | the command line, checked; what it takes to serve it |
//! | [`network`] | link, ports and devices, made of the command line |
//! | [`device`] | features, configuration space, MTU, announcements: the control side |
//! | [`port`] | one guest's network card: what control side and data threads share |
//! | [`hub`] | what all ports share: where frames go, and the link out |
//! | [`worker`] | frames between vrings, and between vrings and links: the data side |
//! | [`link`] | tap, packet socket, stream and datagram sockets |
//! | [`features`], [`config_space`] | what is offered; the configuration space, to the byte |
//! | [`header`], [`frame`], [`control`] | what is in a packet or a command, from its bytes alone |
//! | [`offload`] | checksums and segments for receivers that take no offloads |
//! | [`mac_table`], [`flow`], [`filter`] | which port, which queue pair, and whether at all |
//! | [`counters`] | packets, bytes, and why packets were lost |
//! | [`capture`] | pcapng files of what passes |
//! | [`manage`] | methods of the control socket |
//!
//! How it works, and why, is in `docs/net.md`.

pub mod cable;
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
pub mod link;
pub mod mac_table;
pub mod manage;
pub mod network;
pub mod offload;
pub mod options;
pub mod port;
pub mod program;
mod sys;
pub mod worker;
