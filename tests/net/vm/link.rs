// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices whose back-ends go and come back, and devices that do.

use std::cell::RefCell;
use std::time::Duration;

use ringside_tests::vm::{
    BoxError, Capture, Device, Guest, HttpServer, Network, Nic, NicOptions, VmError,
};

use super::{FILE_BYTES, address, assert_announces, assert_passed, mac, net, ready, script};

/// How often QEMU tries to reach a back-end that is gone.
const RECONNECT: Duration = Duration::from_millis(100);

/// How long a frame may take from QEMU to the wire, the machine being busy.
const FRAME_LIMIT: Duration = Duration::from_secs(20);

/// QEMU connects to the first back-end; the second one connects to QEMU; the third one's device is
/// plugged in.
const CALLER: usize = 0;
const LISTENER: usize = 1;
const PLUGGED: usize = 2;

/// A back-end outside of the network, on a tap device in it.
fn nic(network: &Network, index: usize) -> Result<RefCell<Nic>, VmError> {
    let tap = format!("tap{index}");
    network.tap(&tap, 1, &[&format!("{}.1/24", net(index))])?;
    let backend = format!("tap:{tap},netns={}", network.path().display());
    let options = NicOptions {
        connect: index == LISTENER,
        outside: true,
        ..NicOptions::new(&backend).args(&["--queue-pairs=1"])
    };
    Nic::start(network, options).map(RefCell::new)
}

fn device(nics: &[RefCell<Nic>], index: usize) -> Device {
    let socket = nics[index].borrow().socket(0);
    let device = Device::net(&format!("nic{index}"), &socket).mac(&mac(index));
    match index {
        CALLER => device
            .reconnect(RECONNECT)
            .property("guest_announce", false),
        LISTENER => device.listen(),
        _ => device,
    }
}

/// A guest whose script may say `kill_0`, `restart_0`, `kill_1` and `restart_1`.
fn guest(nics: &[RefCell<Nic>]) -> Guest<'_> {
    let guest = Guest::new()
        .cpus(2)
        .program("iperf3")
        .program("tcpdump")
        .hotplug_ports(1);
    [CALLER, LISTENER].into_iter().fold(guest, |guest, index| {
        let nic = &nics[index];
        guest
            .device(device(nics, index))
            .on(&format!("kill_{index}"), |_| {
                nic.borrow_mut().kill();
                Ok(())
            })
            .on(&format!("restart_{index}"), |_| {
                Ok(nic.borrow_mut().restart()?)
            })
    })
}

#[test]
fn killed_back_ends_come_back_and_announcements_go_out() -> Result<(), BoxError> {
    if !ready("killed_back_ends_come_back_and_announcements_go_out")? {
        return Ok(());
    }
    let network = Network::new()?;
    let nics = [
        nic(&network, CALLER)?,
        nic(&network, LISTENER)?,
        nic(&network, PLUGGED)?,
    ];
    let _iperf3 = network.iperf3_server()?;
    let http = HttpServer::start(&network, address("0.0.0.0:80")?, FILE_BYTES)?;
    let mut capture = Capture::start(&network, "tap0", "rarp")?;
    let plugged = device(&nics, PLUGGED);
    let outcome = (0..nics.len())
        .fold(guest(&nics), |guest, index| {
            guest
                .env(&format!("MAC_{index}"), mac(index))
                .env(&format!("NET_{index}"), net(index))
        })
        .env("FILE_SHA256", http.sha256())
        .script(&script(include_str!("link.sh")))
        .on("announce", |machine| {
            machine.announce_self()?;
            let frame = capture.first_frame(FRAME_LIMIT)?;
            assert_announces(&frame, &mac(CALLER));
            Ok(())
        })
        .on("plug", |machine| Ok(machine.plug(&plugged)?))
        .on("unplug", |machine| Ok(machine.unplug(&plugged)?))
        .run()?;
    assert_passed(&outcome);
    assert_eq!(capture.frames().len(), 1, "{:?}", capture.frames());
    for nic in nics {
        nic.into_inner().terminate()?;
    }
    Ok(())
}
