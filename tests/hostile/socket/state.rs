// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages at the wrong time or with the wrong values: features, owner, reset, configuration
//! space, order, answers.

use ringside_frontend::blk::{BlkConfig, BlkDriver};
use ringside_frontend::ids::{feature, request};
use ringside_frontend::load::{Verify, check_content, write_pattern};
use ringside_frontend::raw::Header;
use ringside_frontend::session::Session;
use ringside_tests::hostile::wire::{self, config, vring_state, words};
use ringside_tests::hostile::{Bystander, PATIENCE, Result, TestResult, Victim};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

const PLAN: Verify = Verify {
    depth: 16,
    block_bytes: 4096,
    first_sector: 0,
    blocks: 64,
    seed: 13,
};

#[test]
fn a13_unoffered_feature_bits_close() -> TestResult {
    let mut victim = Victim::memory()?;
    let sound = feature::VERSION_1 | feature::PROTOCOL_FEATURES;
    for bits in [
        sound | feature::RING_PACKED,
        sound | feature::ACCESS_PLATFORM,
        sound | feature::NOTIFY_ON_EMPTY,
        sound | 1 << 63,
        u64::MAX,
    ] {
        victim.closes_on(Header::new(request::SET_FEATURES, 8), &words(&[bits]), &[])?;
    }
    let header = Header::new(request::SET_PROTOCOL_FEATURES, 8);
    for bits in [1 << 63, 1 << 20, u64::MAX, 1 << 12] {
        victim.closes_on(header, &words(&[bits]), &[])?;
    }
    victim.check()
}

#[test]
fn a13_features_changed_while_rings_run_apply_at_the_next_start() -> TestResult {
    let mut victim = Victim::memory()?;
    let (mut session, mut drivers) = victim.drivers(Session::builder(), BlkConfig::default())?;
    let mut driver = drivers.remove(0);
    let without = session.negotiated().features & !feature::EVENT_IDX;
    session.frontend_mut().set_features(without)?;
    // Had it applied at once, the driver's `used_event` would be no wish for a call.
    write_pattern(&mut driver, &PLAN)?;
    let base = session.stop(0)?;
    assert_eq!(base, driver.vring().ring.used_idx());
    drop(driver);
    session.ring_config_mut().event_idx = false;
    let vring = session.create_vring(0)?;
    session.start(&vring, 0)?;
    let mut driver = BlkDriver::new(vring, BlkConfig::default())?;
    check_content(&mut driver, &PLAN)?;
    assert_eq!(driver.vring().ring.avail_event(), 0, "EVENT_IDX is off");
    drop((session, driver));
    victim.check()
}

#[test]
fn a14_enable_follows_the_protocol_features_bit() -> TestResult {
    let mut victim = Victim::memory()?;
    let enable = wire::header(request::SET_VRING_ENABLE, &[0; 8]);
    // Before the first SET_FEATURES it is taken and remembered, as QEMU's network device does.
    let early = victim.raw()?;
    early.send(enable, &vring_state(1, 1), &[])?;
    assert!(early.is_alive(PATIENCE));
    drop(early);
    // Neither 0 nor 1, before and after.
    let early = victim.raw()?;
    early.send(enable, &vring_state(0, 2), &[])?;
    early.expect_closed(PATIENCE)?;
    victim.closes_on(enable, &vring_state(0, 2), &[])?;
    victim.closes_on(enable, &vring_state(0, u32::MAX), &[])?;
    // After a SET_FEATURES without the bit there is nothing to enable.
    let client = victim.raw()?;
    client.request(request::SET_FEATURES, &words(&[feature::VERSION_1]))?;
    assert!(client.is_alive(PATIENCE));
    client.send(enable, &vring_state(0, 1), &[])?;
    client.expect_closed(PATIENCE)?;
    // Enabled long before it starts.
    let mut session = victim.session(Session::builder())?;
    session.enable(0, true)?;
    let vring = session.create_vring(0)?;
    session.set_up(&vring, 0)?;
    session.frontend_mut().set_vring_kick(0, vring.kick.fd())?;
    write_pattern(&mut BlkDriver::new(vring, BlkConfig::default())?, &PLAN)?;
    drop(session);
    victim.check()
}

#[test]
fn a15_second_owner_closes() -> TestResult {
    let mut victim = Victim::memory()?;
    victim.closes_on(Header::new(request::SET_OWNER, 0), &[], &[])?;
    victim.check()
}

/// Resets with requests in flight; what was taken is answered, and the rings can start again.
fn reset_in_mid_io(reset: impl Fn(&mut Session) -> Result<()>) -> TestResult {
    let mut victim = Victim::memory()?;
    for round in 0..50 {
        let (mut session, mut drivers) =
            victim.drivers(Session::builder().queues(2), BlkConfig::default())?;
        let mut driver = drivers.remove(0);
        for block in 0..32 {
            let slot = driver.acquire()?;
            let request = ringside_frontend::blk::BlkRequest::read(block * 8, 4096);
            driver.submit(slot, &request)?;
        }
        driver.vring_mut().ring.publish();
        driver.vring_mut().kick()?;
        reset(&mut session)?;
        let served = driver.vring().ring.used_idx();
        assert!(served <= 32, "round {round}: {served}");
        // Nothing is written once the reset was answered: the ring is the driver's again.
        driver.reset(0);
        session.start(driver.vring(), 0)?;
        write_pattern(&mut driver, &PLAN)?;
        check_content(&mut driver, &PLAN)?;
    }
    victim.check()
}

#[test]
fn a15_reset_owner_in_mid_io_is_safe() -> TestResult {
    reset_in_mid_io(|session| Ok(session.frontend_mut().reset_owner()?))
}

#[test]
fn a15_reset_device_in_mid_io_drains_first() -> TestResult {
    reset_in_mid_io(|session| Ok(session.frontend_mut().reset_device()?))
}

#[test]
fn a16_configuration_space_out_of_range_changes_nothing() -> TestResult {
    let mut victim = Victim::memory()?;
    let mut session = victim.session(Session::builder())?;
    let before = session.config(0, 60)?;
    drop(session);
    // Ranges that could exist: an answer without payload.
    let client = victim.negotiated()?;
    for (offset, bytes) in [(0, 257), (0, 1024), (60, 256), (256, 4), (4000, 96)] {
        let body = config(offset, bytes, 0, &vec![0; bytes as usize]);
        let answer = client.call(request::GET_CONFIG, &body, PATIENCE)?;
        assert_eq!(answer.u32_at(4), Some(0), "{offset}+{bytes}: {answer:?}");
        assert_eq!(answer.body.len(), 12, "{offset}+{bytes}");
    }
    drop(client);
    // Ranges that cannot, and sizes that are not those of the payload.
    for (offset, bytes, payload) in [
        (u32::MAX, 1, 1),
        (u32::MAX, u32::MAX, 0),
        (1, u32::MAX, 0),
        (0, 0, 0),
        (4096, 1, 1),
        (0, 8, 4),
        (0, 4, 8),
    ] {
        let body = config(offset, bytes, 0, &vec![0xff; payload]);
        victim.closes_on(wire::header(request::GET_CONFIG, &body), &body, &[])?;
        victim.closes_on(wire::header(request::SET_CONFIG, &body), &body, &[])?;
    }
    // Unknown flags. `writeback` is at 32.
    let body = config(32, 1, 4, &[0]);
    victim.closes_on(wire::header(request::SET_CONFIG, &body), &body, &[])?;
    // Read-only fields, several bytes, a value that is none: the driver's doing, passed on by the
    // front-end. Refused where that is asked for, and ignored.
    let mut session = victim.session(Session::builder())?;
    for (offset, payload) in [
        (0, vec![0xff; 8]),
        (31, vec![0; 1]),
        (32, vec![0; 2]),
        (33, vec![0]),
        (256, vec![0]),
    ] {
        assert!(session.set_config(offset, &payload).is_err(), "{offset}");
    }
    session.set_config(32, &[2])?;
    assert_eq!(session.config(0, 60)?, before);
    drop(session);
    victim.check()
}

#[test]
fn a20_messages_out_of_order_close_or_have_a_defined_answer() -> TestResult {
    let mut victim = Victim::memory()?;
    // A kick and addresses before there is memory.
    let (mut session, client) = victim.session_and_raw(
        Session::builder().memory_messages(ringside_frontend::session::MemoryMessages::None),
    )?;
    let vring = session.create_vring(0)?;
    let refused = session.frontend_mut().set_vring_kick(0, vring.kick.fd());
    assert!(refused.is_err(), "a kick before memory");
    client.expect_closed(PATIENCE)?;
    drop((session, client));

    let (mut session, client) = victim.session_and_raw(
        Session::builder().memory_messages(ringside_frontend::session::MemoryMessages::None),
    )?;
    let vring = session.create_vring(0)?;
    let addresses = session.vring_addresses(&vring)?;
    let refused = session.frontend_mut().set_vring_addr(0, &addresses);
    assert!(refused.is_err(), "addresses before memory");
    client.expect_closed(PATIENCE)?;
    drop((session, client));

    // A start without a size: closed at the kick at the latest.
    let (mut session, client) = victim.session_and_raw(Session::builder())?;
    let vring = session.create_vring(0)?;
    let addresses = session.vring_addresses(&vring)?;
    let addressed = session.frontend_mut().set_vring_addr(0, &addresses);
    let kicked = session.frontend_mut().set_vring_kick(0, vring.kick.fd());
    assert!(kicked.is_err(), "a ring of no size starts: {addressed:?}");
    client.expect_closed(PATIENCE)?;
    drop((session, client));
    victim.check()
}

#[test]
fn a20_base_and_size_of_a_started_ring_close() -> TestResult {
    let mut victim = Victim::memory()?;
    for id in [request::SET_VRING_BASE, request::SET_VRING_NUM] {
        let (mut session, client) = victim.session_and_raw(Session::builder())?;
        let _vrings = session.start_all()?;
        client.request(id, &vring_state(0, 128))?;
        client.expect_closed(PATIENCE)?;
    }
    victim.check()
}

#[test]
fn a20_base_of_a_ring_that_never_started_is_what_was_set() -> TestResult {
    let mut victim = Victim::memory()?;
    let client = victim.negotiated()?;
    let base = |index, want| -> TestResult {
        let answer = client.call(request::GET_VRING_BASE, &vring_state(index, 0), PATIENCE)?;
        assert_eq!(
            (answer.u32_at(0), answer.u32_at(4)),
            (Some(index), Some(want))
        );
        Ok(())
    };
    base(0, 0)?;
    client.request(request::SET_VRING_BASE, &vring_state(1, 77))?;
    base(1, 77)?;
    base(1, 77)?;
    // Enabled before it has a size, or anything.
    client.request(request::SET_VRING_ENABLE, &vring_state(2, 1))?;
    client.request(request::SET_VRING_ENABLE, &vring_state(2, 0))?;
    base(2, 0)?;
    drop(client);
    victim.closes_on(
        Header::new(request::SET_VRING_BASE, 8),
        &vring_state(0, 0x1_0000),
        &[],
    )?;
    victim.check()
}

#[test]
fn a24_need_reply_brings_exactly_one_answer() -> TestResult {
    let mut victim = Victim::memory()?;
    let client = victim.negotiated()?;
    let protocol = client.call(request::GET_PROTOCOL_FEATURES, &[], PATIENCE)?;
    let state = vring_state(0, 0);
    let enable = vring_state(0, 1);
    let get_config = config(0, 8, 0, &[0; 8]);
    for (id, body) in [
        (request::GET_FEATURES, &[][..]),
        (request::GET_PROTOCOL_FEATURES, &[]),
        (request::GET_QUEUE_NUM, &[]),
        (request::GET_MAX_MEM_SLOTS, &[]),
        (request::GET_VRING_BASE, &state),
        (request::GET_CONFIG, &get_config),
        (request::SET_VRING_ENABLE, &enable),
        (request::SET_VRING_NUM, &vring_state(0, 64)),
        (request::SET_PROTOCOL_FEATURES, &protocol.body),
    ] {
        client.send(wire::header(id, body).need_reply(), body, &[])?;
        assert_eq!(client.recv(PATIENCE)?.header.request, id);
        // A second answer would be taken for this one's.
        assert!(client.is_alive(PATIENCE), "after message {id}");
    }
    drop(client);
    // Not agreed on: what has no answer gets none, in either half of the peek step.
    let client = victim.raw()?;
    for (id, body) in [
        (request::SET_VRING_ENABLE, enable),
        (request::SET_OWNER, Vec::new()),
        (request::SET_FEATURES, words(&[feature::VERSION_1])),
    ] {
        client.send(wire::header(id, &body).need_reply(), &body, &[])?;
        assert!(client.is_alive(PATIENCE), "after message {id}");
    }
    drop(client);
    victim.check()
}

#[test]
fn a24_early_enable_with_reply_ack_is_answered_once() -> TestResult {
    let mut victim = Victim::memory()?;
    let client = victim.raw()?;
    let protocol = client.call(request::GET_PROTOCOL_FEATURES, &[], PATIENCE)?;
    client.request(request::SET_PROTOCOL_FEATURES, &protocol.body)?;
    let body = vring_state(0, 1);
    let header = wire::header(request::SET_VRING_ENABLE, &body).need_reply();
    client.send(header, &body, &[])?;
    let answer = client.recv(PATIENCE)?;
    assert_eq!(answer.header.request, request::SET_VRING_ENABLE);
    assert_eq!(answer.u64_at(0), Some(0));
    assert!(client.is_alive(PATIENCE));
    drop(client);
    victim.check()
}

#[test]
fn a23_second_front_end_waits_and_the_first_is_unaffected() -> TestResult {
    let mut victim = Victim::memory()?;
    let (session, mut drivers) =
        victim.drivers(Session::builder().queues(2), BlkConfig::default())?;
    let bystander = Bystander::start(drivers.remove(1))?;
    let second = victim.raw()?;
    second.request(request::GET_FEATURES, &[])?;
    bystander.goes_on()?;
    let answered = second.recv(std::time::Duration::from_millis(50));
    assert!(answered.is_err(), "served beside the first: {answered:?}");
    let first = bystander.finish()?;
    drop((session, drivers, first));
    let answer = second.recv(PATIENCE)?;
    assert_eq!(answer.header.request, request::GET_FEATURES);
    drop(second);
    victim.check()
}
