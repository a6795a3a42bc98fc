// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The peer of a link, which may be anybody who can reach its socket.

use std::io::Write;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use ringside_frontend::net::{NetConfig, NetHeader, NetPort};
use ringside_tests::hostile::{PATIENCE, Result, TestResult};
use ringside_tests::net_back_end::NetBackEnd;
use ringside_tests::process::flood;

use crate::scene::{builder, config};

/// For long enough to be told of more often than once a second: a link is made again after 250 ms.
const AGAIN: Duration = Duration::from_secs(4);

fn guest(link: &str) -> Result<(NetBackEnd, NetPort)> {
    let mut back_end = NetBackEnd::start(1, &["--backend", link])?;
    let config = NetConfig {
        control: false,
        ..config()
    };
    let mut port = NetPort::open(back_end.connect(0)?, builder(), &config)?;
    // Without room for a frame nothing is read, and the end of a stream not seen.
    port.pairs[0].rx.post_all()?;
    Ok((back_end, port))
}

/// The log has each of `words`, and nothing too often.
fn is_told(back_end: &mut NetBackEnd, words: &[&str]) {
    let log = back_end.process().stderr();
    for word in words {
        assert!(log.contains(word), "no word of it: {word}: {log}");
    }
    assert_eq!(flood(&log), None);
}

fn meets(listener: &UnixListener, meet: impl Fn(UnixStream) -> Result<()>) -> TestResult {
    let start = Instant::now();
    while start.elapsed() < AGAIN {
        meet(ringside_tests::process::accept(listener, PATIENCE)?)?;
    }
    Ok(())
}

#[test]
fn f2_6_stream_that_breaks_again_and_again_is_told_of_once_a_second() -> TestResult {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("peer");
    let (mut back_end, port) = guest(&format!("stream:{}", path.display()))?;
    std::thread::sleep(AGAIN);
    is_told(&mut back_end, &["cannot connect yet"]);
    let listener = UnixListener::bind(&path)?;
    meets(&listener, |stream| {
        drop(stream);
        Ok(())
    })?;
    is_told(&mut back_end, &[": connected", "the peer has closed"]);
    meets(&listener, |mut stream| {
        Ok(stream.write_all(&u32::MAX.to_be_bytes())?)
    })?;
    is_told(&mut back_end, &["is announced; closed"]);
    drop(port);
    Ok(())
}

/// Sends until there is no peer any more.
fn send(port: &mut NetPort) -> TestResult {
    let tx = &mut port.pairs[0].tx;
    tx.send_now(&NetHeader::default(), &[2; 60], PATIENCE)?;
    Ok(())
}

fn come_and_go(port: &mut NetPort, path: &Path) -> TestResult {
    let start = Instant::now();
    while start.elapsed() < AGAIN {
        let peer = UnixDatagram::bind(path)?;
        peer.set_read_timeout(Some(Duration::from_millis(1)))?;
        let met = Instant::now();
        while peer.recv(&mut [0; 100]).is_err() {
            send(port)?;
            if met.elapsed() > PATIENCE {
                return Err("nothing comes".into());
            }
        }
        drop(peer);
        std::fs::remove_file(path)?;
        send(port)?;
    }
    Ok(())
}

#[test]
fn f2_6_dgram_peer_that_comes_and_goes_is_told_of_once_a_second() -> TestResult {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("peer");
    let (mut back_end, mut port) = guest(&format!("dgram:{}", path.display()))?;
    std::thread::sleep(AGAIN);
    is_told(&mut back_end, &["cannot connect yet"]);
    come_and_go(&mut port, &path)?;
    is_told(&mut back_end, &[": connected", "the peer has gone"]);
    drop(port);
    Ok(())
}
