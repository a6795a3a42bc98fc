// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The network back-end under QEMU: Linux guests, and firmware alone.
//!
//! A boot takes long where processors are emulated, so each test puts as much as it can into one.
//! Hosts are namespaces of their own; what happens in the guests is in `vm/*.sh`.
//! `RINGSIDE_VM_NET=qemu` runs those tests that need no vhost-user on QEMU's own tap devices.

#[path = "vm/link.rs"]
mod link;
#[path = "vm/meeting.rs"]
mod meeting;

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use ringside_tests::vm::{
    BackEnd, BoxError, Capture, Device, DhcpOptions, DhcpServer, Disk, DiskOptions, EchoServer,
    Guest, HttpServer, Network, Nic, NicOptions, Outcome, VmError, needs, network_needs, skip,
};

use meeting::Meeting;

/// Functions that every guest script here starts with.
const LIB: &str = concat!(
    include_str!("../vm/guest/disk.sh"),
    include_str!("../vm/guest/net.sh")
);

/// What guests ask over many flows.
const FLOWS: &str = env!("CARGO_BIN_EXE_vm-flows");

/// What guests fetch by HTTP.
const FILE_BYTES: usize = 8 << 20;

/// Whether a guest and its network can be made here; says loudly when not.
fn ready(test: &str) -> Result<bool, BoxError> {
    match needs().or_else(network_needs) {
        None => Ok(true),
        Some(reason) => skip(test, &reason).map(|()| false).map_err(BoxError::from),
    }
}

/// Asserts that the script ended well, and shows what it printed if not.
fn assert_passed(outcome: &Outcome) {
    let Outcome {
        exit_code,
        output,
        console,
        log,
        ..
    } = outcome;
    assert_eq!(
        *exit_code, 0,
        "output:\n{output}\nconsole:\n{console}\nQEMU:\n{log}"
    );
}

fn script(text: &str) -> String {
    format!("{LIB}\n{text}")
}

fn mac(index: usize) -> String {
    format!("52:54:00:00:01:{index:02x}")
}

/// The first three numbers of an IPv4 network; the host is 1 in it, the guest 2.
fn net(index: usize) -> String {
    format!("10.0.{index}")
}

fn address(text: &str) -> Result<SocketAddr, BoxError> {
    Ok(text.parse()?)
}

/// A tap device with the host's addresses, and who serves it to the guest: `ringside-net`, or QEMU
/// itself when `RINGSIDE_VM_NET=qemu` asks for what nobody here wrote.
struct TapNic {
    device: Device,
    back_end: Option<Nic>,
}

impl TapNic {
    fn new(network: &Network, index: usize, queues: u16) -> Result<Self, BoxError> {
        let name = format!("tap{index}");
        let ipv4 = format!("{}.1/24", net(index));
        let mut addresses = vec![ipv4.as_str()];
        if index == 0 {
            addresses.push("fd00::1/64");
        }
        network.tap(&name, queues, &addresses)?;
        let id = format!("nic{index}");
        let (device, back_end) = if by_qemu() {
            (Device::tap(&id, &name), None)
        } else {
            let options = NicOptions::new(&format!("tap:{name}"))
                .args(&["--queue-pairs", &queues.to_string()]);
            let back_end = Nic::start(network, options)?;
            (Device::net(&id, &back_end.socket(0)), Some(back_end))
        };
        let device = device.queue_pairs(queues).mac(&mac(index));
        Ok(Self { device, back_end })
    }

    /// Ends the back-end, which must be well.
    fn finish(self) -> Result<(), VmError> {
        self.back_end.map_or(Ok(()), |mut nic| nic.terminate())
    }
}

fn by_qemu() -> bool {
    std::env::var("RINGSIDE_VM_NET").as_deref() == Ok("qemu")
}

#[test]
fn network_of_a_test_is_seen_from_inside_only() -> Result<(), BoxError> {
    if let Some(reason) = network_needs() {
        skip("network_of_a_test_is_seen_from_inside_only", &reason)?;
        return Ok(());
    }
    let network = Network::new()?;
    network.tap("rs-inside", 2, &["10.0.0.1/24"])?;
    let server = HttpServer::start(&network, address("10.0.0.1:80")?, 1 << 20)?;
    let fetch = "curl --silent http://10.0.0.1/x | sha256sum";
    let digest = network.run("sh", &["-c", fetch])?;
    assert_eq!(digest.split(' ').next(), Some(server.sha256()));
    assert_eq!(server.asked(), ["/x"]);
    assert!(network.run("ip", &["link"])?.contains("rs-inside"));
    let own = fs::read_to_string("/proc/thread-self/net/dev")?;
    assert!(!own.contains("rs-inside"), "{own}");
    Ok(())
}

#[test]
fn devices_with_1_2_and_4_queue_pairs_and_a_disk_pass() -> Result<(), BoxError> {
    if !ready("devices_with_1_2_and_4_queue_pairs_and_a_disk_pass")? {
        return Ok(());
    }
    const MTU: u16 = 4000;
    const REFUSED: usize = 3;
    let network = Network::new()?;
    let mut nics = Vec::new();
    let mut disk = Disk::start(BackEnd::under_test(), &DiskOptions::default())?;
    // Linux uses no more queues than there are processors.
    let mut guest = Guest::new()
        .cpus(4)
        .program("iperf3")
        .program("ethtool")
        .device(Device::block("disk", &disk.socket()));
    let mut table = String::new();
    for (index, (queues, mtu)) in [(1, 1500), (2, MTU), (4, 1500)].into_iter().enumerate() {
        let nic = TapNic::new(&network, index, queues)?;
        let mut device = nic.device.clone();
        if mtu != 1500 {
            network.set_mtu(&format!("tap{index}"), 9000)?;
            device = device.host_mtu(mtu);
        }
        guest = guest.device(device);
        table.push_str(&format!("{} {} {queues} {mtu}\n", mac(index), net(index)));
        nics.push(nic);
    }
    if !by_qemu() {
        // Refused, since the tap device takes 1500 bytes. QEMU itself never refuses.
        let nic = TapNic::new(&network, REFUSED, 1)?;
        guest = guest
            .device(nic.device.clone().host_mtu(9000))
            .env("MAC_REFUSED", mac(REFUSED))
            .env("NET_REFUSED", net(REFUSED));
        nics.push(nic);
    }
    let range = (format!("{}.2", net(0)), format!("{}.2", net(0)));
    let dhcp = DhcpOptions {
        range: (&range.0, &range.1),
        boot: None,
    };
    let _dhcp = DhcpServer::start(&network, "tap0", &dhcp)?;
    let _iperf3 = network.iperf3_server()?;
    let http = HttpServer::start(&network, address("0.0.0.0:80")?, FILE_BYTES)?;
    let outcome = guest
        .network(&network)
        .env("NICS", table.trim_end())
        .env("MAC_DHCP", mac(0))
        .env("NET_DHCP", net(0))
        .env("FILE_SHA256", http.sha256())
        .env("BYTES", 256 << 20)
        .env("SERIAL", disk.serial())
        .script(&script(include_str!("vm/devices.sh")))
        .run()?;
    assert_passed(&outcome);
    assert_eq!(http.asked(), ["/file"; 3]);
    let refusal = "9000Bytes MTU not supported by the backend";
    assert_eq!(outcome.log.contains(refusal), !by_qemu(), "{}", outcome.log);
    disk.still_serving()?;
    nics.into_iter().try_for_each(TapNic::finish)?;
    Ok(())
}

#[test]
fn queue_pairs_changed_under_load_lose_no_flow() -> Result<(), BoxError> {
    if !ready("queue_pairs_changed_under_load_lose_no_flow")? {
        return Ok(());
    }
    const PAIRS: u16 = 4;
    let network = Network::new()?;
    let nic = TapNic::new(&network, 0, PAIRS)?;
    let _iperf3 = network.iperf3_server()?;
    let _echo = EchoServer::start(&network, address("0.0.0.0:7")?)?;
    let http = HttpServer::start(&network, address("0.0.0.0:80")?, FILE_BYTES)?;
    let outcome = Guest::new()
        .cpus(PAIRS.into())
        .program("iperf3")
        .program("ethtool")
        .program(FLOWS)
        .network(&network)
        .device(nic.device.clone())
        .env("MAC", mac(0))
        .env("NET", net(0))
        .env("FLOWS", FLOWS)
        .env("FILE_SHA256", http.sha256())
        .script(&script(include_str!("vm/queues.sh")))
        .run()?;
    assert_passed(&outcome);
    nic.finish()?;
    Ok(())
}

/// Asserts that a line of `tcpdump` is the reverse ARP request that tells switches where `mac` is.
fn assert_announces(frame: &str, mac: &str) {
    let header = format!("{mac} > ff:ff:ff:ff:ff:ff, ethertype Reverse ARP (0x8035), ");
    assert!(frame.starts_with(&header), "{frame}");
    let request = format!(": Reverse Request who-is {mac} tell {mac}, ");
    assert!(frame.contains(&request), "{frame}");
}

#[test]
fn firmware_boots_from_the_network_and_fetches_32_mib() -> Result<(), BoxError> {
    if !ready("firmware_boots_from_the_network_and_fetches_32_mib")? {
        return Ok(());
    }
    const FILE_MIB: usize = 32;
    let text = "ringside: the firmware has fetched the file";
    let network = Network::new()?;
    let nic = TapNic::new(&network, 0, 1)?;
    let root = tempfile::tempdir()?;
    let boot = format!(
        "#!ipxe\nimgfetch --name file http://{}.1/file || exit\necho {text}\npoweroff\n",
        net(0)
    );
    fs::write(root.path().join("boot.ipxe"), boot)?;
    let range = (format!("{}.2", net(0)), format!("{}.9", net(0)));
    let dhcp = DhcpOptions {
        range: (&range.0, &range.1),
        boot: Some((root.path(), "boot.ipxe")),
    };
    let dhcp = DhcpServer::start(&network, "tap0", &dhcp)?;
    let http = HttpServer::start(&network, address("0.0.0.0:80")?, FILE_MIB << 20)?;
    let outcome = Guest::new()
        .network(&network)
        .timeout(Duration::from_secs(120))
        .device(nic.device.clone().boot_index(0))
        // Without a display the firmware talks to the serial port.
        .qemu_arg("-machine")
        .qemu_arg("graphics=off")
        .firmware_until(text)
        .run()
        .map_err(|error| format!("{error}; dnsmasq: {}", dhcp.log()))?;
    assert_passed(&outcome);
    assert_eq!(http.asked(), ["/file"]);
    assert_eq!(http.served_bytes(), u64::try_from(FILE_MIB << 20)?);
    nic.finish()?;
    Ok(())
}

/// What QEMU keeps from a driver that is to get plain packets only.
const PLAIN: [&str; 11] = [
    "csum",
    "guest_csum",
    "guest_ecn",
    "guest_tso4",
    "guest_tso6",
    "guest_ufo",
    "host_ecn",
    "host_tso4",
    "host_tso6",
    "host_ufo",
    "mrg_rxbuf",
];

/// One of the two guests of the test below: its first device offers all, and so does the second
/// one's, but for the second guest.
fn switched_guest(index: usize, switch: &Nic, meeting: &Meeting) -> Result<Outcome, VmError> {
    let (full, plain) = (2 * index, 2 * index + 1);
    let device =
        |port: usize| Device::net(&format!("nic{port}"), &switch.socket(port)).mac(&mac(port));
    let kept: &[&str] = if index == 0 { &[] } else { &PLAIN };
    let plain_device = kept
        .iter()
        .fold(device(plain), |device, name| device.property(name, false));
    Guest::new()
        .cpus(2)
        .memory_mib(384)
        .program("iperf3")
        .program("ethtool")
        .program("tcpdump")
        .device(device(full).property("guest_announce", false))
        .device(plain_device)
        .env("ROLE", if index == 0 { "first" } else { "second" })
        .env("MAC_FULL", mac(full))
        .env("MAC_PLAIN", mac(plain))
        .env("MAC_ANNOUNCED", mac(0))
        .script(&script(include_str!("vm/switch.sh")))
        .on("meet", |_| meeting.wait())
        .on("announce", |machine| Ok(machine.announce_self()?))
        .run()
}

#[test]
fn two_guests_on_a_switch_exchange_valid_data() -> Result<(), BoxError> {
    if !ready("two_guests_on_a_switch_exchange_valid_data")? {
        return Ok(());
    }
    let network = Network::new()?;
    network.tap("uplink", 1, &[])?;
    let options = NicOptions {
        ports: 4,
        ..NicOptions::new("switch").args(&["--uplink=tap:uplink"])
    };
    let mut switch = Nic::start(&network, options)?;
    let capture = Capture::start(&network, "uplink", "rarp")?;
    let meeting = Meeting::default();
    let outcomes = thread::scope(|scope| {
        let (switch, meeting) = (&switch, &meeting);
        [0, 1]
            .map(|index| scope.spawn(move || switched_guest(index, switch, meeting)))
            .map(|guest| guest.join())
    });
    for outcome in outcomes {
        assert_passed(&outcome.map_err(|_panic| "a guest panicked")??);
    }
    let frames = capture.frames();
    assert_eq!(frames.len(), 1, "{frames:?}");
    assert_announces(&frames[0], &mac(0));
    switch.terminate()?;
    Ok(())
}

#[test]
fn unprivileged_back_end_reaches_the_host_through_passt() -> Result<(), BoxError> {
    if !ready("unprivileged_back_end_reaches_the_host_through_passt")? {
        return Ok(());
    }
    const ADDRESS: &str = "10.9.0.2";
    const ROUTER: &str = "10.9.0.1";
    let network = Network::new()?;
    let passt = network.passt(&format!("{ADDRESS}/24"), ROUTER)?;
    let options = NicOptions {
        unprivileged: true,
        ..NicOptions::new(&format!("stream:{}", passt.socket().display()))
    };
    let mut nic = Nic::start(&network, options)?;
    let http = HttpServer::start(&network, address("127.0.0.1:8080")?, FILE_BYTES)?;
    let _iperf3 = network.iperf3_server()?;
    let outcome = Guest::new()
        .program("iperf3")
        .device(Device::net("nic", &nic.socket(0)).mac(&mac(0)))
        .env("MAC", mac(0))
        .env("ADDRESS", ADDRESS)
        .env("ROUTER", ROUTER)
        .env("FILE_SHA256", http.sha256())
        .script(&script(include_str!("vm/passt.sh")))
        .run()?;
    assert_passed(&outcome);
    assert_eq!(http.asked(), ["/file"]);
    nic.terminate()?;
    Ok(())
}
