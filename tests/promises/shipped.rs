// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is shipped beside the programs, and what the README has for libvirt, goes with them.

use std::ffi::OsString;

use clap::{Command, CommandFactory as _, Parser as _};
use ringside_blk::options::Options as BlkOptions;
use ringside_common::program::man_page;
use ringside_fs::options::Options as FsOptions;
use ringside_net::options::Options as NetOptions;
use ringside_tests::libvirt::{LibvirtDisk, LibvirtFilesystem, LibvirtInterface, readme_lines};

use super::Result;

/// A program, and what is shipped with it.
struct Program {
    name: &'static str,
    command: Command,
    /// Whether it takes a command line.
    takes: fn(Vec<OsString>) -> std::result::Result<(), clap::Error>,
    man_page: &'static str,
    unit: &'static str,
    discovery: &'static str,
}

fn programs() -> [Program; 3] {
    [
        Program {
            name: "ringside-blk",
            command: BlkOptions::command(),
            takes: |words| BlkOptions::try_parse_from(words).map(drop),
            man_page: include_str!("../../dist/ringside-blk.1"),
            unit: include_str!("../../dist/systemd/ringside-blk@.service"),
            discovery: include_str!("../../dist/50-ringside-blk.json"),
        },
        Program {
            name: "ringside-net",
            command: NetOptions::command(),
            takes: |words| NetOptions::try_parse_from(words).map(drop),
            man_page: include_str!("../../dist/ringside-net.1"),
            unit: include_str!("../../dist/systemd/ringside-net@.service"),
            discovery: include_str!("../../dist/60-ringside-net.json"),
        },
        Program {
            name: "ringside-fs",
            command: FsOptions::command(),
            takes: |words| FsOptions::read(words).map(drop),
            man_page: include_str!("../../dist/ringside-fs.1"),
            unit: include_str!("../../dist/systemd/ringside-fs@.service"),
            discovery: include_str!("../../dist/50-ringside-fs.json"),
        },
    ]
}

#[test]
fn command_lines_are_consistent() {
    for program in programs() {
        program.command.debug_assert();
    }
}

#[test]
fn man_pages_that_are_shipped_are_those_of_the_command_lines() -> Result<()> {
    for program in programs() {
        let made = String::from_utf8(man_page(program.command)?)?;
        let name = program.name;
        assert_eq!(program.man_page, made, "{name}: see dist/README.md");
    }
    Ok(())
}

#[test]
fn units_that_are_shipped_have_command_lines_that_are_taken() -> Result<()> {
    for program in programs() {
        let mut lines = program.unit.lines();
        let command = lines.find_map(|line| line.strip_prefix("ExecStart="));
        let mut words: Vec<OsString> = command
            .ok_or("nothing is started")?
            .split(' ')
            .map(OsString::from)
            .collect();
        assert_eq!(words[0], *format!("/usr/bin/{}", program.name));
        // What systemd passes is found without an option.
        words.extend(["--fd", "3"].map(OsString::from));
        (program.takes)(words).map_err(|error| format!("{}: {error}", program.name))?;
    }
    Ok(())
}

/// The words of the README's first line that starts `program`.
fn readme_command(section: &str, program: &str) -> Result<Vec<&'static str>> {
    let lines = readme_lines(section, "")?;
    let path = format!("target/release/{program}");
    let mut commands = lines.iter().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = commands.find(|words| words[0] == path);
    Ok(found.ok_or_else(|| format!("{section}: nothing starts {program}"))?)
}

#[test]
fn readme_lines_for_libvirt_go_with_those_that_start_the_programs() -> Result<()> {
    let disk = LibvirtDisk::of_readme()?;
    let served = BlkOptions::try_parse_from(readme_command("Serve a disk", "ringside-blk")?)?;
    assert_eq!(served.common.socket_path, [disk.socket]);
    assert!(disk.queues <= served.common.queues.num_queues);

    let interface = LibvirtInterface::of_readme()?;
    let served = NetOptions::try_parse_from(readme_command("Serve a network", "ringside-net")?)?;
    assert_eq!(served.common.socket_path, [interface.socket]);
    assert!(interface.pairs <= served.common.queues.queue_pairs);

    // This one libvirt starts itself, by the path where management software finds it.
    let filesystem = LibvirtFilesystem::of_readme()?;
    let [.., program] = programs();
    let discovery: serde_json::Value = serde_json::from_str(program.discovery)?;
    assert_eq!(discovery["binary"].as_str(), filesystem.binary.to_str());
    for arguments in filesystem.arguments() {
        let words = [program.name, "--socket-path=/run/fs.sock"].map(str::to_owned);
        let words = words.into_iter().chain(arguments.iter().cloned());
        let config = FsOptions::read(words)?.into_config()?;
        let [share] = &config.shares[..] else {
            return Err(format!("{arguments:?} share {:?}", config.shares).into());
        };
        assert_eq!(share.path, *filesystem.dir, "{arguments:?}");
        assert!(config.fs.xattr, "{arguments:?}");
        assert!(filesystem.queue_size <= config.common.queue_size);
    }
    Ok(())
}
