// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Long packets that get a VLAN tag on their way out, or lose one on their way in.

use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::skip;
use ringside_tests::vm::network_needs;

use crate::guest::{Guest, SENDS_LONG};
use crate::kernel::Host;
use crate::sample::Sample;
use crate::tcpdump::{self, Capture};
use crate::{Result, TestResult};

const VLAN: u16 = 10;
const FROM_US: &str = "ether src 02:00:00:00:00:a1";

/// A long packet of each kind.
fn samples() -> [Sample; 4] {
    [(false, false), (true, false), (false, true), (true, true)]
        .map(|(v6, udp)| Sample::new(v6, udp, 40_001, 1400))
}

fn switch(uplink: &str) -> Result<NetBackEnd> {
    let args = ["--backend", "switch", "--uplink", uplink];
    Ok(NetBackEnd::start_ports(&[",vlan=10"], &args)?)
}

#[test]
fn long_packets_of_a_vlan_leave_by_a_tap_with_its_tag() -> TestResult {
    if let Some(reason) = network_needs().or_else(tcpdump::needs) {
        skip!("{reason}");
    }
    let host = Host::with_tap("up0")?;
    let capture = Capture::start(&host, "up0", FROM_US)?;
    let mut back_end = switch(&host.link("tap", "up0"))?;
    let mut guest = Guest::open(&mut back_end, 0, SENDS_LONG)?;
    for (index, sample) in samples().into_iter().enumerate() {
        guest.send(&sample.unfinished())?;
        // The kernel takes it in one piece, its header moved with the packet.
        let frames = capture.frames(index + 1)?;
        let (_, tagged) = sample.tagged(VLAN).unfinished();
        assert_eq!(frames.len(), index + 1);
        assert!(frames[index] == tagged, "sample {index} is another frame");
    }
    Ok(())
}

/// A device that leaves nothing to its cable has the kernel cut the packets, and complete them.
#[test]
fn long_packets_of_a_vlan_are_cut_by_the_kernel_into_valid_segments() -> TestResult {
    if let Some(reason) = network_needs().or_else(tcpdump::needs) {
        skip!("{reason}");
    }
    let host = Host::with_veth("peer0", "wire0")?;
    host.without_offloads("wire0")?;
    let capture = Capture::start(&host, "peer0", FROM_US)?;
    let mut back_end = switch(&host.link("packet", "wire0"))?;
    let mut guest = Guest::open(&mut back_end, 0, SENDS_LONG)?;
    let mut seen = 0;
    for sample in samples() {
        guest.send(&sample.unfinished())?;
        let all = capture.frames(seen + sample.segments())?;
        let frames = &all[seen..];
        sample.tagged(VLAN).check(frames)?;
        tcpdump::check(frames)?;
        seen = all.len();
    }
    Ok(())
}

/// The packet is put on the tap by another back-end: the kernel takes it as a long one.
#[test]
fn long_packets_from_a_tap_lose_their_tag_and_arrive_as_valid_segments() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let host = Host::with_tap("up0")?;
    let mut back_end = switch(&host.link("tap", "up0"))?;
    let mut guest = Guest::open(&mut back_end, 0, 0)?;
    let mut other = host.back_end("packet", "up0")?;
    let mut other = Guest::open(&mut other, 0, SENDS_LONG)?;
    for sample in samples() {
        other.send(&sample.clone().tagged(VLAN).unfinished())?;
        let frames = guest.receive_finished(sample.segments())?;
        sample.check(&frames)?;
    }
    // Of another VLAN, or of none.
    for sample in samples() {
        other.send(&sample.clone().tagged(VLAN + 1).unfinished())?;
        other.send(&sample.unfinished())?;
    }
    guest.receives_nothing()
}
