// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VMMs that nobody here wrote, each with one of each device on the README's lines.
//!
//! A boot has all three devices, each with as many queues as the README gives it. What happens in
//! a Linux guest of QEMU is in `front_ends/devices.sh`; other VMMs, which take KVM, have a guest
//! without an operating system (`front_ends/bare_metal.rs`).

#[path = "front_ends/bare_metal.rs"]
mod bare_metal;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use ringside_tests::skip;
use ringside_tests::skip::front_end;
use ringside_tests::vm::{
    BackEnd, BoxError, Device, Disk, DiskOptions, Guest, HttpServer, Network, Nic, NicOptions,
    Share, ShareOptions, ShareServer, needs, network_needs, old_qemu,
};

/// What the guest's script starts with.
const SCRIPT: &str = concat!(
    include_str!("guest/disk.sh"),
    include_str!("guest/net.sh"),
    include_str!("guest/share.sh"),
    include_str!("front_ends/devices.sh")
);

const QUEUES: u16 = 4;
const TAG: &str = "project";
const MAC: &str = "52:54:00:00:00:01";
const NET: &str = "10.0.0";
const GREETING: &str = "from the host";

/// A machine without a clock of known frequency boots slowly where the host has much to do.
const MICROVM_LIMIT: Duration = Duration::from_secs(600);

/// What QEMU says of a back channel that was closed on it.
const EARLY_END: &str = "Unexpected end-of-file";

/// A guest with the three devices on the README's lines, whose sockets are those of a disk, a network
/// and a folder.
///
/// QEMU 7.2 dies of a null pointer of its own when a guest unmasks a vector of a vhost-user network
/// where there is no KVM: such a device gets no vectors there.
fn devices([disk, nic, share]: [&Path; 3], has_vectors: bool) -> Guest<'static> {
    let again = Duration::from_millis(500);
    let nic = Device::net("nic", nic).queue_pairs(QUEUES);
    let nic = if has_vectors {
        nic
    } else {
        nic.property("vectors", 0)
    };
    Guest::new()
        .cpus(QUEUES.into())
        .program("iperf3")
        .program("ethtool")
        .device(
            Device::block("disk", disk)
                .num_queues(QUEUES)
                .reconnect(again),
        )
        .device(nic.mac(MAC).host_mtu(1500).reconnect(again))
        .device(
            Device::fs("share", share, TAG)
                .request_queues(QUEUES)
                .queue_size(1024),
        )
        .env("QUEUES", QUEUES)
        .env("BYTES", 256 << 20)
        .env("MAC", MAC)
        .env("NET", NET)
        .env("TAG", TAG)
        .env("GREETING", GREETING)
        .script(SCRIPT)
}

/// Boots a guest with a disk, a network and a folder in `qemu`.
fn attach_all(name: &str, qemu: Option<&Path>) -> Result<(), BoxError> {
    let network = Network::new()?;
    let host = format!("{NET}.1/24");
    network.tap("tap0", QUEUES, &[host.as_str()])?;
    let mut nic = Nic::start(&network, NicOptions::new("tap:tap0"))?;
    let mut disk = Disk::start(BackEnd::Ringside, &DiskOptions::default())?;
    let share = Share::start(ShareServer::Ringside, TAG, &ShareOptions::default())?;
    fs::write(share.path("greeting"), format!("{GREETING}\n"))?;
    let _iperf3 = network.iperf3_server()?;
    let server: SocketAddr = "0.0.0.0:80".parse()?;
    let http = HttpServer::start(&network, server, 1 << 20)?;
    let guest = devices(
        [&disk.socket(), &nic.socket(0), &share.socket()],
        qemu.is_none(),
    )
    .network(&network)
    .env("SERIAL", disk.serial())
    .env("FILE_SHA256", http.sha256());
    let guest = match qemu {
        Some(program) => guest.qemu(program),
        None => guest,
    };
    let outcome = guest.run()?;
    assert_eq!(
        outcome.exit_code,
        0,
        "{name}: {}\nconsole:\n{}\nQEMU:\n{}\nringside-net:\n{}",
        outcome.output,
        outcome.console,
        outcome.log,
        nic.log()
    );
    assert!(!outcome.log.contains(EARLY_END), "{name}: {}", outcome.log);
    disk.still_serving()?;
    nic.terminate()?;
    share.finish()?;
    front_end(name, "disk ok, network ok, folder ok");
    Ok(())
}

/// Why no guest and no network can be made here; `None` when everything is there.
fn lacking() -> Option<String> {
    needs().or_else(network_needs)
}

#[test]
fn f7_8_qemu_takes_all_devices_with_several_queues() -> Result<(), BoxError> {
    if let Some(reason) = lacking() {
        skip!("{reason}");
    }
    attach_all("QEMU", None)
}

#[test]
fn f7_1_oldest_supported_qemu_takes_all_devices_with_several_queues() -> Result<(), BoxError> {
    if let Some(reason) = lacking() {
        skip!("{reason}");
    }
    let Some(qemu) = old_qemu() else {
        skip!("no old QEMU: no apt source has it, and QEMU_OLD names none");
    };
    attach_all("oldest QEMU", Some(&qemu))
}

/// QEMU's microvm has virtio-mmio instead of PCI, by default as it was before virtio 1.
#[test]
fn f7_2_linux_drives_the_disk_of_a_microvm() -> Result<(), BoxError> {
    if let Some(reason) = lacking() {
        skip!("{reason}");
    }
    let mut disk = Disk::start(BackEnd::Ringside, &DiskOptions::default())?;
    let device = Device::block("disk", &disk.socket()).num_queues(2);
    let outcome = Guest::new()
        .microvm()
        .cpus(2)
        .device(device.mmio())
        .env("BYTES", 256 << 20)
        .env("SERIAL", disk.serial())
        .script(concat!(
            include_str!("guest/disk.sh"),
            "disk_identity vda \"$BYTES\" \"$SERIAL\" 2\n",
            "write_and_read vda 9\n"
        ))
        .timeout(MICROVM_LIMIT)
        .run()?;
    assert_eq!(
        outcome.exit_code, 0,
        "{}\nconsole:\n{}",
        outcome.output, outcome.console
    );
    disk.still_serving()?;
    front_end("QEMU's microvm, Linux", "legacy disk ok");
    Ok(())
}
