// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The unpacked kernel package: its image, and its modules in the order they must be inserted.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::VmError;
use super::program::run_program;

/// Modules the guest may need, whatever the kernel has built in. Those of the device drivers and
/// file systems of the three back-ends, and memory hot-plug.
pub(super) const WANTED: &[&str] = &[
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtiofs",
    "virtio_mem",
    "virtio_rng",
    "ext4",
];

/// Modules inserted when the package has them: some kernels need one for ext4's checksums, none
/// names it as a dependency.
pub(super) const OPTIONAL: &[&str] = &["crc32c_generic", "crc32c_intel"];

/// The kernel that guests boot.
#[derive(Debug)]
pub(crate) struct Kernel {
    tree: PathBuf,
    image: PathBuf,
    modules: BTreeMap<String, PathBuf>,
    built_in: Vec<String>,
}

impl Kernel {
    /// Looks through the package unpacked at `tree`.
    pub(crate) fn open(tree: &Path) -> Result<Self, VmError> {
        let missing = |what: &str| VmError::Kernel {
            what: what.to_owned(),
            tree: tree.to_owned(),
        };
        let image = entries(&tree.join("boot"))
            .into_iter()
            .find(|path| name_of(path).starts_with("vmlinuz-"))
            .ok_or_else(|| missing("kernel image"))?;
        let releases = ["lib/modules", "usr/lib/modules"].map(|dir| entries(&tree.join(dir)));
        let release = releases
            .concat()
            .pop()
            .ok_or_else(|| missing("directory of modules"))?;
        let list = release.join("modules.builtin");
        let built_in = fs::read_to_string(&list).map_err(VmError::file(list))?;
        let built_in = built_in
            .lines()
            .map(|line| module_name(Path::new(line)))
            .collect();
        let mut modules = BTreeMap::new();
        collect_modules(&release.join("kernel"), &mut modules);
        Ok(Self {
            tree: tree.to_owned(),
            image,
            modules,
            built_in,
        })
    }

    /// The bootable image.
    pub(crate) fn image(&self) -> &Path {
        &self.image
    }

    /// Names and contents of the modules the guest inserts, dependencies first.
    pub(crate) fn modules(&self) -> Result<Vec<(String, Vec<u8>)>, VmError> {
        let mut ordered = Vec::new();
        for name in OPTIONAL
            .iter()
            .filter(|name| self.modules.contains_key(**name))
        {
            self.add(name, &mut ordered)?;
        }
        for name in WANTED {
            self.add(name, &mut ordered)?;
        }
        Ok(ordered)
    }

    /// Adds `name` after what it depends on.
    fn add(&self, name: &str, ordered: &mut Vec<(String, Vec<u8>)>) -> Result<(), VmError> {
        if ordered.iter().any(|(done, _)| done == name) || self.built_in.iter().any(|b| b == name) {
            return Ok(());
        }
        let path = self.modules.get(name).ok_or_else(|| VmError::Kernel {
            what: format!("module {name}"),
            tree: self.tree.clone(),
        })?;
        let module = read_module(path)?;
        for dependency in dependencies(&module) {
            self.add(&dependency, ordered)?;
        }
        ordered.push((name.to_owned(), module));
        Ok(())
    }
}

/// The modules named by the `depends=` string of a module's `.modinfo` section.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module
        .iter()
        .skip(start + KEY.len())
        .take_while(|byte| **byte != 0);
    let value: Vec<u8> = value.copied().collect();
    let value = String::from_utf8_lossy(&value);
    value
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// The contents of a module file, unpacked.
fn read_module(path: &Path) -> Result<Vec<u8>, VmError> {
    if path.extension() != Some(OsStr::new("xz")) {
        return fs::read(path).map_err(VmError::file(path));
    }
    let path = path.to_string_lossy().into_owned();
    run_program("xz", &["--decompress", "--stdout", &path])
}

fn collect_modules(dir: &Path, modules: &mut BTreeMap<String, PathBuf>) {
    for path in entries(dir) {
        if path.is_dir() {
            collect_modules(&path, modules);
        } else if name_of(&path).contains(".ko") {
            modules.insert(module_name(&path), path);
        }
    }
}

/// `crc32c_intel` for `…/crc32c-intel.ko.xz`.
fn module_name(path: &Path) -> String {
    let name = name_of(path);
    name.split_once(".ko")
        .map_or(name.as_str(), |(stem, _)| stem)
        .replace('-', "_")
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// The paths in a directory, sorted; none when it is not there.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_of_a_module_come_from_modinfo() {
        let module = b"\x7fELF..\0license=GPL\0depends=net-failover,failover\0name=virtio_net\0";
        assert_eq!(dependencies(module), ["net_failover", "failover"]);
        assert_eq!(dependencies(b"\0depends=\0name=x\0"), [""; 0]);
    }

    #[test]
    fn module_name_uses_underscores_and_no_suffix() {
        assert_eq!(
            module_name(Path::new("a/crc32c-intel.ko.xz")),
            "crc32c_intel"
        );
        assert_eq!(module_name(Path::new("kernel/fs/ext4/ext4.ko")), "ext4");
    }
}
