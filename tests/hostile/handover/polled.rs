// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Vrings without descriptors: nobody kicks, nobody is called (vhost-user.rst, "in polling mode").

use std::time::Duration;

use ringside_frontend::blk::BlkRequest;
use ringside_frontend::fuse::flags::ROOT_NODE;
use ringside_frontend::ids::{VRING_NOFD, request};
use ringside_frontend::net::NetHeader;
use ringside_frontend::raw::RawClient;
use ringside_frontend::ring::CallMode;
use ringside_frontend::session::Session;
use ringside_frontend::vring::Vring;
use ringside_tests::hostile::wire::words;
use ringside_tests::hostile::{PATIENCE, Result, TestResult};

use super::Target;
use super::guest::Guest;

/// Starts a vring anew: no descriptor of it is known any more.
fn strip(session: &mut Session, raw: &RawClient, vring: &Vring) -> TestResult {
    let base = session.stop(vring.index)?;
    session.set_up(vring, base)?;
    let none = words(&[VRING_NOFD | vring.index as u64]);
    for id in [
        request::SET_VRING_CALL,
        request::SET_VRING_ERR,
        request::SET_VRING_KICK,
    ] {
        raw.request(id, &none)?;
    }
    Ok(session.enable(vring.index, true)?)
}

impl Guest {
    /// Its vrings but those for urgent requests, with the session.
    fn parts(&mut self) -> (&mut Session, Vec<&mut Vring>) {
        match self {
            Self::Disk(session, driver) => (session, vec![driver.vring_mut()]),
            Self::Port(port) => {
                let pair = &mut port.pairs[0];
                let vrings = vec![pair.rx.vring_mut(), pair.tx.vring_mut()];
                (&mut port.session, vrings)
            }
            Self::Folder(client) => (&mut client.session, vec![client.queues[0].vring_mut()]),
        }
    }

    /// One request or frame.
    fn step(&mut self) -> TestResult {
        match self {
            Self::Disk(_, driver) => {
                driver.execute(&BlkRequest::read(0, 512))?.ok()?;
            }
            Self::Port(port) => {
                let header = NetHeader::default();
                let tx = &mut port.pairs[0].tx;
                tx.send_now(&header, &[2; 60], PATIENCE)?;
            }
            Self::Folder(client) => drop(client.queue().getattr(ROOT_NODE, None)?),
        }
        Ok(())
    }
}

fn stripped(target: &mut Target) -> Result<(Guest, RawClient)> {
    let builder = Session::builder().calls(CallMode::Never);
    let (mut guest, raw) = target.guest(builder)?;
    let (session, vrings) = guest.parts();
    for vring in vrings {
        strip(session, &raw, vring)?;
    }
    Ok((guest, raw))
}

#[test]
fn f6_10_vring_without_descriptors_is_polled_by_every_device() -> TestResult {
    for mut target in Target::all()? {
        let (mut guest, raw) = stripped(&mut target)?;
        for _ in 0..20 {
            guest.step()?;
            // The thread has gone to sleep.
            std::thread::sleep(Duration::from_millis(5));
        }
        target.works(&mut guest)?;
        // It does not spin meanwhile.
        let quiet = Duration::from_millis(500);
        let before = target.process.sample()?.cpu;
        std::thread::sleep(quiet);
        let cpu = target.process.sample()?.cpu.saturating_sub(before);
        assert!(cpu < quiet / 2, "{cpu:?} of processor time in {quiet:?}");
        // A descriptor that comes later is used.
        let (session, vrings) = guest.parts();
        for vring in vrings {
            session.set_kick(vring)?;
        }
        target.works(&mut guest)?;
        drop((guest, raw));
        target.serves()?;
        target.ends()?;
    }
    Ok(())
}

#[test]
fn f6_10_vring_without_err_that_is_broken_stops_alone() -> TestResult {
    for mut target in Target::all()? {
        let (mut guest, raw) = stripped(&mut target)?;
        let (_, mut vrings) = guest.parts();
        let ring = &mut vrings.pop().ok_or("no vring")?.ring;
        ring.set_avail_idx(ring.next_avail().wrapping_add(ring.config().size + 1));
        let broken = target
            .process
            .poll_until("word of it", PATIENCE, |process| {
                Ok(process.stderr().contains(" stopped: ").then_some(()))
            });
        broken?;
        target.others_go_on()?;
        assert!(raw.is_alive(PATIENCE));
        drop((guest, raw));
        target.serves()?;
        target.ends()?;
    }
    Ok(())
}
