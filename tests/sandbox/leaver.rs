// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Becomes another program that it leaves descriptors to, without telling it of them, as libvirt
//! does: `descriptor-leaver FILE SOCKET PROGRAM ARGUMENT...`. It has a lock of fcntl(2) on the
//! file, and is connected to the socket.

use std::error::Error;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::{FdFlags, fcntl_setfd};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let [file, socket, program, arguments @ ..] = &words[..] else {
        return Err("FILE SOCKET PROGRAM ARGUMENT...".into());
    };
    let file = File::options().write(true).open(file)?;
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)?;
    let connection = UnixStream::connect(socket)?;
    fcntl_setfd(&file, FdFlags::empty())?;
    fcntl_setfd(&connection, FdFlags::empty())?;
    Err(Command::new(program).args(arguments).exec().into())
}
