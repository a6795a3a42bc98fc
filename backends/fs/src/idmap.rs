// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! User and group numbers, changed between guest and host.

/// The rules of `--translate-uid` and `--translate-gid`.
#[derive(Clone, Debug, Default)]
pub struct IdMaps;
