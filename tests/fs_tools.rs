// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs of others that the file system suites and benchmarks run.

use std::env;
use std::path::{Path, PathBuf};

/// If set, tools are looked for in this directory first.
const TOOLS_VARIABLE: &str = "RINGSIDE_FS_TOOLS";

/// Where `tests/fs/install` puts them.
const INSTALLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/fs-tools/bin");

/// Where `name` is: in `RINGSIDE_FS_TOOLS`, in `target/fs-tools/bin` of the repository, or in the
/// search path.
#[must_use]
pub fn find_tool(name: &str) -> Option<PathBuf> {
    let search = env::var_os("PATH").unwrap_or_default();
    env::var_os(TOOLS_VARIABLE)
        .map(PathBuf::from)
        .into_iter()
        .chain([PathBuf::from(INSTALLED)])
        .chain(env::split_paths(&search))
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

/// The daemon that Ringside's file system is measured against: the file that `VIRTIOFSD` names, or
/// where [`find_tool`] finds it.
#[must_use]
pub fn virtiofsd() -> Option<PathBuf> {
    match env::var_os("VIRTIOFSD") {
        Some(path) => Path::new(&path).is_file().then(|| PathBuf::from(path)),
        None => find_tool("virtiofsd"),
    }
}
