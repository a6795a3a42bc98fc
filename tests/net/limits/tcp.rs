// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One TCP connection between two kernels.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use ringside_tests::vm::Network;

use crate::{PATIENCE, Result};

/// Sends from one namespace to `address` in another for some time; returns the payload in bits per
/// second that arrived from its first byte on.
pub(crate) fn speed(from: &Network, to: &Network, address: &str, time: Duration) -> Result<f64> {
    let listener = to.open(|| TcpListener::bind((address, 0)))?;
    let port = listener.local_addr()?.port();
    let mut sender = from.open(|| TcpStream::connect((address, port)))?;
    sender.set_write_timeout(Some(PATIENCE))?;
    let (mut receiver, _) = listener.accept()?;
    receiver.set_read_timeout(Some(PATIENCE))?;
    let end = sender.try_clone()?;
    let sending = thread::spawn(move || {
        let piece = vec![0x5a; 64 << 10];
        // Ends when the connection does.
        while sender.write_all(&piece).is_ok() {}
    });
    let mut piece = vec![0; 256 << 10];
    let mut bytes = receiver.read(&mut piece)?;
    let start = Instant::now();
    while start.elapsed() < time {
        let more = receiver.read(&mut piece)?;
        if more == 0 {
            return Err("the connection has ended".into());
        }
        bytes += more;
    }
    let elapsed = start.elapsed();
    end.shutdown(Shutdown::Both)?;
    sending.join().map_err(|_panic| "the sender panicked")?;
    Ok(bytes as f64 * 8.0 / elapsed.as_secs_f64())
}
