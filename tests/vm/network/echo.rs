// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A UDP server that sends every datagram back, for `vm-flows` in the guest.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use super::super::error::VmError;
use super::super::qmp::would_block;
use super::{Network, Server};

/// Longest wait before looking whether the server should end.
const SLICE: Duration = Duration::from_millis(50);

/// A UDP echo server (RFC 862), stopped when dropped.
#[derive(Debug)]
pub struct EchoServer {
    _server: Server,
}

impl EchoServer {
    /// Serves `address`.
    ///
    /// # Errors
    /// When the address cannot be had in the namespace.
    pub fn start(network: &Network, address: SocketAddr) -> Result<Self, VmError> {
        let socket = network
            .open(|| UdpSocket::bind(address))
            .and_then(|socket| socket.set_read_timeout(Some(SLICE)).map(|()| socket))
            .map_err(VmError::channel("echo server"))?;
        let server = Server::new(move || {
            let mut datagram = [0; 2048];
            match socket.recv_from(&mut datagram) {
                Ok((count, peer)) => {
                    let datagram = datagram.get(..count).unwrap_or_default();
                    // A full queue loses a datagram; the client asks again.
                    socket.send_to(datagram, peer)?;
                    Ok(())
                }
                Err(error) if would_block(&error) => Ok(()),
                Err(error) => Err(error.into()),
            }
        });
        Ok(Self { _server: server })
    }
}
