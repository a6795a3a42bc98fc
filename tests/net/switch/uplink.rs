// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The other end of an uplink: QEMU's stream protocol on a Unix socket.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use ringside_tests::net_back_end::NetBackEnd;

use crate::{PATIENCE, Result, TestResult};

/// A peer that may read, or not.
pub(crate) struct Uplink {
    stream: UnixStream,
    read: Vec<u8>,
}

impl Uplink {
    /// Starts a switch with an uplink; its first guest has to be there before the back-end connects.
    pub(crate) fn start(ports: &[&str], args: &[&str]) -> Result<(NetBackEnd, UnixListener)> {
        let (uplink, listener) = Self::listen()?;
        let args = [&["--backend", "switch", "--uplink", &uplink], args].concat();
        let back_end = NetBackEnd::start_ports(ports, &args)?;
        Ok((back_end, listener))
    }

    /// Where a peer listens, as the back-end is told it.
    pub(crate) fn listen() -> Result<(String, UnixListener)> {
        // The path is needed for one connection only, but by a process that comes for it later.
        let path = tempfile::tempdir()?.keep().join("uplink.sock");
        let listener = UnixListener::bind(&path)?;
        Ok((format!("stream:{}", path.display()), listener))
    }

    /// Takes the connection.
    pub(crate) fn accept(listener: &UnixListener) -> Result<Self> {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            read: Vec::new(),
        })
    }

    /// The frames that have come since.
    pub(crate) fn frames(&mut self) -> Result<Vec<Vec<u8>>> {
        let mut piece = [0; 64 << 10];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => break,
                Ok(bytes) => self.read.extend_from_slice(&piece[..bytes]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        let (mut frames, mut rest) = (Vec::new(), &self.read[..]);
        while let Some((length, behind)) = rest.split_first_chunk::<4>() {
            let bytes = usize::try_from(u32::from_be_bytes(*length))?;
            let Some((frame, behind)) = behind.split_at_checked(bytes) else {
                break;
            };
            frames.push(frame.to_vec());
            rest = behind;
        }
        self.read = rest.to_vec();
        Ok(frames)
    }

    /// Sends a frame in.
    pub(crate) fn send(&mut self, frame: &[u8]) -> TestResult {
        let length = u32::try_from(frame.len())?.to_be_bytes();
        let bytes = [&length, frame].concat();
        self.stream.set_nonblocking(false)?;
        self.stream.write_all(&bytes)?;
        Ok(self.stream.set_nonblocking(true)?)
    }
}
