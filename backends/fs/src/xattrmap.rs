// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names of extended attributes, changed between guest and host.

/// The rules of `--xattrmap`.
#[derive(Clone, Debug, Default)]
pub struct XattrMap;
