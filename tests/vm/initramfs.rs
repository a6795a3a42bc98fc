// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's root file system: an initramfs made of this machine's own programs.
//!
//! Two cpio archives follow each other in one file. The big one (busybox, kernel modules, the
//! programs asked for with their libraries) depends only on what is installed and is cached under
//! a hash of it; the small one holds what belongs to one run: script and settings. Neither is
//! compressed: under TCG the guest would take longer to inflate them than to copy them.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process;

use super::error::VmError;
use super::kernel::{Kernel, OPTIONAL, WANTED};
use super::program::{find_program, run_program};

const INIT: &str = include_str!("guest/init");
const LIB: &str = include_str!("guest/lib.sh");

const MODE_DIRECTORY: u32 = 0o040_755;
const MODE_FILE: u32 = 0o100_755;
const MODE_SYMLINK: u32 = 0o120_777;

/// Writes the initramfs of one run to `target`: the cached archive for `programs`, then the script
/// and its settings.
pub(crate) fn write(
    target: &Path,
    cache: &Path,
    kernel: &Kernel,
    programs: &[String],
    run_files: &[(&str, &str)],
) -> Result<(), VmError> {
    let base = base(cache, kernel, programs)?;
    let mut bytes = fs::read(&base).map_err(VmError::file(base))?;
    let mut archive = Archive::default();
    archive.file("ringside/lib.sh", LIB.as_bytes());
    archive.file("ringside/programs", program_functions(programs)?.as_bytes());
    for (name, text) in run_files {
        archive.file(&format!("ringside/{name}"), text.as_bytes());
    }
    bytes.extend_from_slice(&archive.finish());
    fs::write(target, bytes).map_err(VmError::file(target))
}

/// The big archive, built unless the cache holds it.
fn base(cache: &Path, kernel: &Kernel, programs: &[String]) -> Result<PathBuf, VmError> {
    let busybox = find_program("busybox")?;
    let mut files = Vec::new();
    for program in programs {
        let path = find_program(program)?;
        files.extend(libraries(&path)?);
        files.push(path);
    }
    files.sort();
    files.dedup();

    let mut hasher = DefaultHasher::new();
    (INIT, kernel.image(), WANTED, OPTIONAL).hash(&mut hasher);
    for path in files.iter().chain([&busybox]) {
        let metadata = fs::metadata(path).map_err(VmError::file(path))?;
        (path, metadata.len(), metadata.modified().ok()).hash(&mut hasher);
    }
    let target = cache.join(format!("initramfs-{:016x}.cpio", hasher.finish()));
    if target.exists() {
        return Ok(target);
    }
    let bytes = build(kernel, &busybox, &files)?;
    // Another process may build the same file: each writes its own, the rename settles it.
    let draft = cache.join(format!("initramfs-{}-{:?}.tmp", process::id(), thread_id()));
    fs::write(&draft, bytes).map_err(VmError::file(&draft))?;
    fs::rename(&draft, &target).map_err(VmError::file(&target))?;
    Ok(target)
}

/// Shell functions that stand for the programs brought along: Debian's busybox prefers its own
/// applets to files in the search path.
fn program_functions(programs: &[String]) -> Result<String, VmError> {
    let mut text = String::new();
    for program in programs
        .iter()
        .filter(|name| name.bytes().all(|b| b.is_ascii_alphanumeric()))
    {
        let path = find_program(program)?;
        text.push_str(&format!("{program}() {{ {} \"$@\"; }}\n", path.display()));
    }
    Ok(text)
}

fn thread_id() -> std::thread::ThreadId {
    std::thread::current().id()
}

fn build(kernel: &Kernel, busybox: &Path, files: &[PathBuf]) -> Result<Vec<u8>, VmError> {
    let mut archive = Archive::default();
    for dir in ["proc", "sys", "dev", "tmp", "mnt", "etc"] {
        archive.directory(dir);
    }
    archive.file("init", INIT.as_bytes());
    archive.file(
        "bin/busybox",
        &fs::read(busybox).map_err(VmError::file(busybox))?,
    );
    let applets = run_program(&busybox.to_string_lossy(), &["--list"])?;
    for applet in String::from_utf8_lossy(&applets)
        .lines()
        .filter(|name| *name != "busybox")
    {
        archive.symlink(&format!("bin/{applet}"), "/bin/busybox");
    }
    let mut order = String::new();
    for (name, module) in kernel.modules()? {
        archive.file(&format!("lib/modules/{name}.ko"), &module);
        order.push_str(&format!("{name}.ko\n"));
    }
    archive.file("lib/modules/order", order.as_bytes());
    for path in files {
        let name = path.strip_prefix("/").unwrap_or(path).to_string_lossy();
        archive.file(&name, &fs::read(path).map_err(VmError::file(path))?);
    }
    Ok(archive.finish())
}

/// The shared libraries of a program, its loader included; none for a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, VmError> {
    let Ok(listing) = run_program("ldd", &[&program.to_string_lossy()]) else {
        return Ok(Vec::new());
    };
    let listing = String::from_utf8_lossy(&listing).into_owned();
    if let Some(line) = listing.lines().find(|line| line.contains("not found")) {
        return Err(VmError::File {
            path: PathBuf::from(line.trim()),
            source: std::io::ErrorKind::NotFound.into(),
        });
    }
    Ok(listing.lines().filter_map(library_path).collect())
}

/// The path in a line of ldd: `libz.so.1 => /lib/… (0x…)` or `/lib64/ld-linux… (0x…)`.
fn library_path(line: &str) -> Option<PathBuf> {
    let path = line.split_once("=>").map_or(line, |(_, path)| path);
    let path = path
        .trim()
        .split_once(" (")
        .map_or_else(|| path.trim(), |(path, _)| path);
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// A cpio archive in the "new ASCII" format (Linux: `early-userspace/buffer-format.rst`).
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    directories: BTreeMap<String, ()>,
    inodes: u32,
}

impl Archive {
    fn file(&mut self, name: &str, contents: &[u8]) {
        self.parents(name);
        self.entry(name, MODE_FILE, contents);
    }

    fn symlink(&mut self, name: &str, target: &str) {
        self.parents(name);
        self.entry(name, MODE_SYMLINK, target.as_bytes());
    }

    fn directory(&mut self, name: &str) {
        if !name.is_empty() && self.directories.insert(name.to_owned(), ()).is_none() {
            self.parents(name);
            self.entry(name, MODE_DIRECTORY, &[]);
        }
    }

    fn parents(&mut self, name: &str) {
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.inodes += 1;
        let fields = [self.inodes, mode, 0, 0, 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes
            .extend_from_slice(format!("{:08x}", contents.len()).as_bytes());
        // Device numbers of the file and of the node: four fields, all zero.
        self.bytes.extend_from_slice(&[b'0'; 32]);
        self.bytes
            .extend_from_slice(format!("{:08x}", name.len() + 1).as_bytes());
        self.bytes.extend_from_slice(b"00000000");
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(contents);
        self.pad(4);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.pad(512);
        self.bytes
    }

    fn pad(&mut self, multiple: usize) {
        let length = self.bytes.len().next_multiple_of(multiple);
        self.bytes.resize(length, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_path_reads_both_forms_of_ldd() {
        let named = library_path("\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f)");
        assert_eq!(
            named,
            Some(PathBuf::from("/lib/x86_64-linux-gnu/libz.so.1"))
        );
        let loader = library_path("\t/lib64/ld-linux-x86-64.so.2 (0x00007f4be614f000)");
        assert_eq!(loader, Some(PathBuf::from("/lib64/ld-linux-x86-64.so.2")));
        assert_eq!(library_path("\tlinux-vdso.so.1 (0x00007ffd)"), None);
    }

    #[test]
    fn archive_entries_are_aligned_and_parents_come_first() {
        let mut archive = Archive::default();
        archive.file("a/b/c", b"xyz");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 512, 0);
        let text = String::from_utf8_lossy(&bytes);
        let starts: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 4);
        assert!(starts.iter().all(|at| at % 4 == 0), "{starts:?}");
        let names = ["a\0", "a/b\0", "a/b/c\0", "TRAILER!!!\0"];
        for (start, name) in starts.iter().zip(names) {
            assert!(text[start + 110..].starts_with(name), "{name}");
        }
    }
}
