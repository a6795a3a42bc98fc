// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A web server of one file, as small as `HTTP/1.0` lets it be.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::super::child::POLL;
use super::super::error::{BoxError, VmError};
use super::super::program::run_program;
use super::super::qmp::would_block;
use super::{Network, Server};

/// Longest wait for a peer that says nothing. A guest that boots under TCG may be slow.
const PEER_LIMIT: Duration = Duration::from_secs(60);

/// Serves the same contents whatever path is asked for, and remembers what it did.
#[derive(Debug)]
pub struct HttpServer {
    asked: Arc<Mutex<Vec<String>>>,
    served_bytes: Arc<AtomicU64>,
    sha256: String,
    _server: Server,
}

impl HttpServer {
    /// Serves `bytes` random bytes, which no compression or luck can make up, at `address`, one
    /// request after the other.
    ///
    /// # Errors
    /// When the address cannot be had in the namespace.
    pub fn start(network: &Network, address: SocketAddr, bytes: usize) -> Result<Self, VmError> {
        let random = "/dev/urandom";
        let mut contents = vec![0; bytes];
        File::open(random)
            .and_then(|mut file| file.read_exact(&mut contents))
            .map_err(VmError::file(random))?;
        let listener = network
            .open(|| TcpListener::bind(address))
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(VmError::channel("HTTP server"))?;
        let sha256 = sha256(&contents)?;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let served_bytes = Arc::new(AtomicU64::new(0));
        let (paths, bytes) = (Arc::clone(&asked), Arc::clone(&served_bytes));
        let server = Server::new(move || {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if would_block(&error) => {
                    thread::sleep(POLL);
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            };
            let path = request_path(&stream)?;
            paths
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(path);
            let count = answer(stream, &contents)?;
            bytes.fetch_add(count, Ordering::Relaxed);
            Ok(())
        });
        Ok(Self {
            asked,
            served_bytes,
            sha256,
            _server: server,
        })
    }

    /// The SHA-256 of the contents, in hexadecimal digits.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The paths asked for, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Bytes of contents that clients have taken, headers not counted. A client that hung up early
    /// has taken none.
    #[must_use]
    pub fn served_bytes(&self) -> u64 {
        self.served_bytes.load(Ordering::Relaxed)
    }
}

fn sha256(contents: &[u8]) -> Result<String, VmError> {
    let mut file = tempfile::NamedTempFile::new().map_err(VmError::file(std::env::temp_dir()))?;
    file.write_all(contents)
        .map_err(VmError::file(file.path()))?;
    let line = run_program("sha256sum", &[&file.path().to_string_lossy()])?;
    let line = String::from_utf8_lossy(&line).into_owned();
    Ok(line.split(' ').next().unwrap_or_default().to_owned())
}

/// Reads a request and gives its path.
fn request_path(stream: &TcpStream) -> Result<String, BoxError> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PEER_LIMIT))?;
    stream.set_write_timeout(Some(PEER_LIMIT))?;
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().ok_or("no request")??;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let path = request.split(' ').nth(1).ok_or("no path")?;
    Ok(path.to_owned())
}

/// Sends the contents and waits until the client has taken them: it closes its side then.
fn answer(mut stream: TcpStream, contents: &[u8]) -> io::Result<u64> {
    let length = contents.len();
    let header = format!(
        "HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\
         Content-Type: application/octet-stream\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(header.as_bytes())?;
    stream.write_all(contents)?;
    stream.shutdown(Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(u64::try_from(length).unwrap_or(u64::MAX))
}
