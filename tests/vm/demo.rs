// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The demonstration: `ringside-blk` serves a disk, a Linux guest puts it through its paces.

use std::io::{self, Write};
use std::process::ExitCode;

use ringside_tests::vm::{BackEnd, BoxError, Device, Disk, DiskOptions, Guest, needs};

const QUEUES: u16 = 4;
const SIZE_MIB: u64 = 1024;

const PROGRAMS: &[&str] = &["blkdiscard", "fio", "fsck.ext4", "fstrim", "mkfs.ext4"];

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let mut text = format!("vm-demo: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                text.push_str(&format!(": {error}"));
                cause = error.source();
            }
            say(&text);
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool, BoxError> {
    if let Some(reason) = needs() {
        return Err(reason.into());
    }
    let kind = BackEnd::under_test();
    let mut disk = Disk::start(
        kind,
        &DiskOptions {
            size_mib: SIZE_MIB,
            create: true,
            num_queues: Some(QUEUES),
            serial: "ringside-demo".into(),
        },
    )?;
    say(&format!(
        "{kind:?} serves a disk of {SIZE_MIB} MiB; booting Linux on it"
    ));
    let outcome = PROGRAMS
        .iter()
        .fold(Guest::new(), |guest, program| guest.program(program))
        .cpus(QUEUES.into())
        .reboots(1)
        .device(Device::block("disk", &disk.socket()).num_queues(QUEUES))
        .env("BYTES", SIZE_MIB << 20)
        .env("SERIAL", disk.serial())
        .env("QUEUES", QUEUES)
        .script(concat!(
            include_str!("guest/disk.sh"),
            include_str!("guest/demo.sh")
        ))
        .watch(|line| say(&format!("  {line}")))
        .run()?;
    disk.still_serving()?;
    let passed = outcome.exit_code == 0 && outcome.boots == 2;
    if !passed {
        say(&format!("the guest's console:\n{}", outcome.console));
    }
    let verdict = if passed { "PASSED" } else { "FAILED" };
    let (seconds, accel) = (outcome.elapsed.as_secs_f32(), outcome.accel);
    say(&format!(
        "{verdict} in {seconds:.1} s ({} boots, {accel:?})",
        outcome.boots
    ));
    Ok(passed)
}

/// Prints a line; a reader who has gone away is no reason to stop.
fn say(line: &str) {
    writeln!(io::stdout(), "{line}").unwrap_or_default();
}
