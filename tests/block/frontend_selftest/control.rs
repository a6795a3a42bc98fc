// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Everything beside the data path: raw messages, the back-channel, the process itself.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ringside_frontend::blk::{BlkConfig, BlkDriver, SECTOR_BYTES};
use ringside_frontend::raw::{Header, RawClient};
use ringside_frontend::session::Session;
use ringside_frontend::{FrontendError, ids};
use ringside_tests::process::{Launch, ProcessError};
use rustix::process::Signal;
use vhost::vhost_user::VhostUserProtocolFeatures;

use crate::daemon::{DISK_BYTES, MONITOR, PATIENCE, TestResult, connect, storage_daemon_or_skip};

#[test]
fn raw_client_talks_is_closed_and_leaves_no_descriptors_behind() -> TestResult {
    let mut process = storage_daemon_or_skip!();
    let client = RawClient::from_stream(process.connect(PATIENCE)?)?;
    let offered = client.call(ids::request::GET_FEATURES, &[], PATIENCE)?;
    let features = offered.u64_at(0).ok_or("short answer")?;
    assert_ne!(features & ids::feature::VERSION_1, 0);
    assert!(client.is_alive(PATIENCE));
    // A header in two parts.
    let header = Header::new(ids::request::GET_FEATURES, 0).to_bytes();
    client.send_bytes(&header[..5], &[])?;
    client.send_bytes(&header[5..], &[])?;
    assert_eq!(client.recv(PATIENCE)?.u64_at(0), Some(features));
    let silent = client.recv(Duration::from_millis(20));
    assert!(
        matches!(silent, Err(FrontendError::Timeout { .. })),
        "{silent:?}"
    );
    let open = client.expect_closed(Duration::from_millis(20));
    assert!(
        matches!(open, Err(FrontendError::Timeout { .. })),
        "{open:?}"
    );

    let null = std::fs::File::open("/dev/null")?;
    let fds = [null.as_fd(); 33];
    let header = Header::new(ids::request::SET_MEM_TABLE, u32::MAX);
    client.send(header, &[], &fds)?;
    client.expect_closed(PATIENCE)?;

    let client = RawClient::from_stream(process.connect(PATIENCE)?)?;
    assert!(client.is_alive(PATIENCE));
    let connected = process.sample()?;
    drop(client);
    process.poll_until("closed descriptor", PATIENCE, |process| {
        Ok((process.sample()?.fds < connected.fds).then_some(()))
    })?;
    Ok(())
}

#[test]
fn resize_arrives_on_the_back_channel() -> TestResult {
    let mut process = storage_daemon_or_skip!();
    let builder = Session::builder().require_protocol(
        VhostUserProtocolFeatures::BACKEND_REQ | VhostUserProtocolFeatures::CONFIG,
    );
    let (mut session, _driver) = connect(&mut process, builder, BlkConfig::default())?;
    let quiet = session
        .back_channel()
        .ok_or("no back-channel")?
        .wait_config_change(Duration::from_millis(20));
    assert!(
        matches!(quiet, Err(FrontendError::Timeout { .. })),
        "{quiet:?}"
    );
    let mut monitor = UnixStream::connect(process.path(MONITOR))?;
    let commands = format!(
        r#"{{"execute":"qmp_capabilities"}}
        {{"execute":"block_resize","arguments":{{"node-name":"f","size":{}}}}}"#,
        2 * DISK_BYTES
    );
    monitor.write_all(commands.as_bytes())?;
    session
        .back_channel()
        .ok_or("no back-channel")?
        .wait_config_change(PATIENCE)?;
    let sectors = BlkDriver::capacity(&session.config(0, 60)?);
    assert_eq!(sectors, Some(2 * DISK_BYTES / SECTOR_BYTES as u64));
    Ok(())
}

#[test]
fn process_is_awaited_sampled_and_signalled() -> TestResult {
    let mut process = storage_daemon_or_skip!();
    process.wait_listening(PATIENCE)?;
    let sample = process.sample()?;
    assert!(
        sample.fds > 3 && sample.threads > 0 && sample.maps > 10,
        "{sample:?}"
    );
    assert!(
        sample.rss_kib > 1000 && sample.cpu > Duration::ZERO,
        "{sample:?}"
    );
    assert!(process.try_exit()?.is_none());
    let status = process.terminate(PATIENCE)?;
    assert_eq!(status.code(), Some(0));

    let mut process = storage_daemon_or_skip!();
    process.wait_listening(PATIENCE)?;
    process.signal(Signal::STOP)?;
    let stopped = process.wait_exit(Duration::from_millis(20));
    assert!(
        matches!(stopped, Err(ProcessError::Timeout { .. })),
        "{stopped:?}"
    );
    assert!(!process.kill()?.success());

    let mut ending = Launch::program("sh")?
        .args(["-c", "echo broken >&2; exit 3"])
        .spawn()?;
    let ended = ending.wait_listening(PATIENCE);
    assert!(
        matches!(&ended, Err(ProcessError::Ended { status, stderr, .. })
            if status.code() == Some(3) && stderr.contains("broken")),
        "{ended:?}"
    );
    Ok(())
}
