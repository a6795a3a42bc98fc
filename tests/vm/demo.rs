// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The demonstration: `ringside-blk` serves a disk, `ringside-net` a network device and
//! `ringside-fs` a directory; a Linux guest puts them through their paces.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use ringside_tests::vm::{
    BackEnd, BoxError, Device, DhcpOptions, DhcpServer, Disk, DiskOptions, Guest, HttpServer,
    Network, Nic, NicOptions, Outcome, Share, ShareOptions, ShareServer, needs, network_needs,
};

const QUEUES: u16 = 4;
const SIZE_MIB: u64 = 1024;

const HOST: &str = "10.0.0.1";
const GUEST: &str = "10.0.0.2";
const MAC: &str = "52:54:00:00:01:00";
/// What the guest fetches: enough to be a transfer, little enough for its memory.
const FILE_BYTES: usize = 32 << 20;

/// What the guest mounts the share by.
const TAG: &str = "myfs";

const PROGRAMS: &[&str] = &[
    "as",
    "blkdiscard",
    "ethtool",
    "fio",
    "fsck.ext4",
    "fstrim",
    "git",
    "iperf3",
    "ld",
    "mkfs.ext4",
];

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
    if let Some(reason) = needs().or_else(network_needs) {
        return Err(reason.into());
    }
    let mut disk = disk()?;
    let network = Network::new()?;
    network.tap("tap0", QUEUES, &[&format!("{HOST}/24")])?;
    let options = NicOptions::new("tap:tap0").args(&[&format!("--queue-pairs={QUEUES}")]);
    let mut nic = Nic::start(&network, options)?;
    say(&format!(
        "ringside-net serves a network device with {QUEUES} queue pairs"
    ));
    let (share, device) = share()?;
    say("booting Linux on all three");
    let dhcp = DhcpOptions {
        range: (GUEST, GUEST),
        boot: None,
    };
    let _dhcp = DhcpServer::start(&network, "tap0", &dhcp)?;
    let _iperf3 = network.iperf3_server()?;
    let http = HttpServer::start(&network, SocketAddr::new(HOST.parse()?, 80), FILE_BYTES)?;
    let outcome = PROGRAMS
        .iter()
        .fold(Guest::new(), |guest, program| guest.program(program))
        .cpus(QUEUES.into())
        .reboots(1)
        .device(Device::block("disk", &disk.socket()).num_queues(QUEUES))
        .device(
            Device::net("nic", &nic.socket(0))
                .queue_pairs(QUEUES)
                .mac(MAC),
        )
        .device(device)
        .on("look", |_| Ok(share.write_findings("tree")?))
        .env("HOST", HOST)
        .env("GUEST", GUEST)
        .env("MAC", MAC)
        .env("FILE_SHA256", http.sha256())
        .env("BYTES", SIZE_MIB << 20)
        .env("SERIAL", disk.serial())
        .env("QUEUES", QUEUES)
        .env("TAG", TAG)
        .script(concat!(
            include_str!("guest/disk.sh"),
            include_str!("guest/net.sh"),
            include_str!("guest/tree_digest.sh"),
            include_str!("guest/share.sh"),
            include_str!("guest/demo.sh")
        ))
        .watch(|line| say(&format!("  {line}")))
        .run()?;
    disk.still_serving()?;
    nic.still_serving()?;
    share.finish()?;
    Ok(verdict(&outcome))
}

/// An image that the back-end makes itself.
fn disk() -> Result<Disk, BoxError> {
    let kind = BackEnd::under_test();
    let disk = Disk::start(
        kind,
        &DiskOptions {
            size_mib: SIZE_MIB,
            create: true,
            num_queues: Some(QUEUES),
            serial: "ringside-demo".into(),
        },
    )?;
    say(&format!("{kind:?} serves a disk of {SIZE_MIB} MiB"));
    Ok(disk)
}

/// A directory with a packed source tree, and the device that gives it to the guest.
fn share() -> Result<(Share, Device), BoxError> {
    let server = ShareServer::under_test();
    let queues = match server {
        ShareServer::Ringside => QUEUES,
        ShareServer::Virtiofsd => 1,
    };
    let options = ShareOptions {
        request_queues: Some(queues),
        args: Vec::new(),
    };
    let share = Share::start(server, TAG, &options)?;
    share.add_source_tree()?;
    say(&format!(
        "{server:?} serves a directory with {queues} request queues"
    ));
    let device = Device::fs("share", &share.socket(), TAG);
    Ok((share, device.request_queues(queues)))
}

/// Says how it went.
fn verdict(outcome: &Outcome) -> bool {
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
    passed
}

/// Prints a line; a reader who has gone away is no reason to stop.
fn say(line: &str) {
    writeln!(io::stdout(), "{line}").unwrap_or_default();
}
