// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every property of a port on every back-end: it holds there, or is refused with a word.

use std::time::{Duration, Instant};

use ringside_frontend::net::NetPort;
use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::skip;
use ringside_tests::vm::network_needs;

use crate::outside::{Kind, Outside};
use crate::{Result, TestResult, counted, eventually, frame, mac, open_listening, plain, receive};

const STATION: [u8; 6] = [2, 0, 0, 0, 0xff, 1];
/// How long a limit is looked at.
const TIME: Duration = Duration::from_millis(250);

/// A back-end, and what is at its other end.
enum Place {
    /// Frames of so many bytes come from nowhere.
    Null(usize),
    Loopback,
    Link(Box<Outside>),
}

impl Place {
    fn spec(&self) -> String {
        match self {
            Self::Null(0) => "null".to_owned(),
            Self::Null(bytes) => format!("null:{bytes}"),
            Self::Loopback => "loopback".to_owned(),
            Self::Link(outside) => outside.spec.clone(),
        }
    }

    fn start(&mut self, properties: &str) -> Result<(NetBackEnd, NetPort)> {
        let backend = self.spec();
        let mut back_end = NetBackEnd::start_ports(&[properties], &["--backend", &backend])?;
        let port = open_listening(&mut back_end, 0)?;
        if let Self::Link(outside) = self {
            outside.meet()?;
        }
        Ok((back_end, port))
    }

    /// Has frames of so many bytes come to the guest, as many as the back-end takes at once.
    fn send_in(&mut self, port: &mut NetPort, bytes: usize) -> TestResult {
        const FRAMES: usize = 10;
        match self {
            Self::Null(_) => {}
            Self::Loopback => {
                for _ in 0..FRAMES {
                    assert!(
                        port.pairs[0]
                            .tx
                            .send(&plain(), &frame(mac(1), mac(1), bytes))?
                    );
                }
                port.pairs[0].tx.publish()?;
            }
            Self::Link(outside) => {
                for _ in 0..FRAMES {
                    outside.send(&frame(STATION, mac(1), bytes))?;
                }
            }
        }
        Ok(())
    }
}

fn unprivileged() -> Result<Vec<Place>> {
    let mut places = vec![Place::Null(0), Place::Null(100), Place::Loopback];
    for kind in Kind::SOCKETS {
        places.push(Place::Link(Box::new(Outside::new(kind)?)));
    }
    Ok(places)
}

fn interfaces() -> Result<Vec<Place>> {
    let places = Kind::INTERFACES.into_iter().map(|kind| {
        let outside = Outside::new(kind)?;
        Ok(Place::Link(Box::new(outside)))
    });
    places.collect()
}

#[test]
fn f5_13b_properties_of_a_switch_are_refused_without_one() -> TestResult {
    for backend in [
        "null",
        "null:64",
        "loopback",
        "stream:/none",
        "dgram:/none",
        "tap:none0",
        "tap:fd=7",
        "macvtap:none0",
        "packet:none0",
    ] {
        for (property, name) in [
            (",vlan=10", "vlan"),
            (",isolated", "isolated"),
            (",mac-limit=5", "mac-limit"),
        ] {
            let started = NetBackEnd::start_ports(&[property], &["--backend", backend]);
            let refused = started
                .err()
                .ok_or_else(|| format!("{backend}{property} started"))?;
            let said = format!("{refused:?}");
            assert!(said.contains(&format!("{name} needs a switch")), "{said}");
        }
        let started = NetBackEnd::start_ports(&[",anti-spoof"], &["--backend", backend]);
        let said = format!("{:?}", started.err().ok_or("it started")?);
        assert!(said.contains("add mac=ADDR"), "{said}");
    }
    Ok(())
}

/// The guest is told its address and MTU, and gets no longer frame.
fn address_and_mtu_hold(place: &mut Place) -> TestResult {
    const MTU: u16 = 576;
    let spec = place.spec();
    let (back_end, mut port) = place.start(",mac=02:00:00:00:00:01,mtu=576")?;
    assert_eq!(port.session.config(0, 6)?, mac(1), "{spec}");
    assert_eq!(port.session.config(10, 2)?, MTU.to_le_bytes(), "{spec}");
    if matches!(place, Place::Null(_)) {
        return Ok(());
    }
    let most = usize::from(MTU) + 18;
    place.send_in(&mut port, most)?;
    let mut arrived = 0;
    eventually("frames", || {
        arrived += receive(&mut port)?
            .iter()
            .filter(|f| f.len() == most)
            .count();
        Ok(arrived == 10)
    })?;
    place.send_in(&mut port, most + 1)?;
    eventually("losses", || {
        let longer = |frame: &Vec<u8>| frame.len() > most;
        assert!(!receive(&mut port)?.iter().any(longer), "{spec}");
        Ok(counted(&back_end, 0, 0)?.lost("mtu_exceeded") == 10)
    })
}

/// A limit of 20 small frames a second, and five at once, in whatever it is counted.
const LIMITS: [(&str, &str); 4] = [
    ("limit-rx-packets", "20,burst=5"),
    ("limit-rx-bytes", "2000,burst=500"),
    ("limit-tx-packets", "20,burst=5"),
    ("limit-tx-bytes", "2000,burst=500"),
];

fn limits_hold(place: &mut Place) -> TestResult {
    let spec = place.spec();
    for (limit, rate) in LIMITS {
        let receives = limit.starts_with("limit-rx");
        if receives && matches!(place, Place::Null(0)) {
            continue;
        }
        let (back_end, mut port) = place.start(&format!(",{limit}={rate}"))?;
        let start = Instant::now();
        if receives {
            place.send_in(&mut port, 100)?;
        } else {
            for _ in 0..60 {
                assert!(
                    port.pairs[0]
                        .tx
                        .send(&plain(), &frame(mac(1), STATION, 100))?
                );
            }
            port.pairs[0].tx.publish()?;
        }
        while start.elapsed() < TIME {
            receive(&mut port)?;
            let passed = counted(&back_end, 0, u64::from(!receives))?.passed();
            let allowed = 7.0 + 20.0 * start.elapsed().as_secs_f64();
            let what = format!("{spec}: {limit}: {passed} after {:?}", start.elapsed());
            assert!(f64::from(u32::try_from(passed)?) <= allowed, "{what}");
        }
        eventually("a frame", || {
            receive(&mut port)?;
            Ok(counted(&back_end, 0, u64::from(!receives))?.passed() > 0)
        })?;
        if let Place::Link(outside) = place {
            **outside = Outside::new(outside.kind)?;
        }
    }
    Ok(())
}

#[test]
fn f5_13b_address_and_mtu_hold_on_every_back_end_without_privileges() -> TestResult {
    for mut place in unprivileged()? {
        address_and_mtu_hold(&mut place)?;
    }
    Ok(())
}

#[test]
fn f5_13b_address_and_mtu_hold_on_every_interface() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    for mut place in interfaces()? {
        address_and_mtu_hold(&mut place)?;
    }
    Ok(())
}

#[test]
fn f5_13b_limits_hold_on_every_back_end_without_privileges() -> TestResult {
    let _one = crate::alone();
    for mut place in unprivileged()? {
        limits_hold(&mut place)?;
    }
    Ok(())
}

#[test]
fn f5_13b_limits_hold_on_every_interface() -> TestResult {
    if let Some(reason) = network_needs() {
        skip!("{reason}");
    }
    let _one = crate::alone();
    for mut place in interfaces()? {
        limits_hold(&mut place)?;
    }
    Ok(())
}
