// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Group G of the hostile cases: what a guest can do to a file system device, and what of groups C
//! and D (rings and chains) comes out differently here.
//!
//! The victim shares a directory beside which lies what a guest must never reach. After each case
//! both request queues still serve verified requests, a new session works, and the process holds no
//! more than before.

#[path = "fs/arguments.rs"]
mod arguments;
#[path = "fs/chains.rs"]
mod chains;
#[path = "fs/ending.rs"]
mod ending;
#[path = "fs/fuzz.rs"]
mod fuzz;
#[path = "fs/limits.rs"]
mod limits;
#[path = "fs/links.rs"]
mod links;
#[path = "fs/names.rs"]
mod names;
#[path = "fs/numbers.rs"]
mod numbers;
#[path = "fs/owners.rs"]
mod owners;
#[path = "fs/queues.rs"]
mod queues;
#[path = "fs/races.rs"]
mod races;
#[path = "fs/requests.rs"]
mod requests;
#[path = "fs/scene.rs"]
mod scene;
#[path = "fs/special.rs"]
mod special;
