// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file whose server answers nothing, as a front-end can have one by FUSE.

use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use rustix::net::sockopt::set_socket_timeout;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::{PATIENCE, Result, TestResult};
use crate::fs_mount::{FsMount, MountOptions};
use crate::process::{Launch, Process, Stopped};
use ringside_frontend::raw::{Header, RawClient};

/// The longest message that is handed over.
const MAX_BYTES: usize = 8192;

/// What a `file-hander` is asked to do.
#[derive(Debug)]
pub struct Ask {
    to: UnixStream,
    count: usize,
    message: Vec<u8>,
}

impl Ask {
    /// The next one; none when nobody asks any more.
    ///
    /// # Errors
    ///
    /// When it is not one.
    pub fn receive(asks: BorrowedFd<'_>) -> Result<Option<Self>> {
        let mut bytes = [0; MAX_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg(asks, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
        let to: Option<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
                _ => None,
            })
            .next();
        let [count, message @ ..] = &bytes[..got] else {
            return Ok(None);
        };
        Ok(Some(Self {
            to: to.ok_or("nobody to hand over to")?.into(),
            count: usize::from(*count),
            message: message.to_vec(),
        }))
    }

    /// Sends the message with `file`, as often as asked for.
    ///
    /// # Errors
    ///
    /// When it is not taken.
    pub fn hand_over(self, file: BorrowedFd<'_>) -> TestResult {
        let client = RawClient::from_stream(self.to)?;
        client.send_bytes(&self.message, &vec![file; self.count])?;
        Ok(())
    }

    /// It is done, or was not to be done.
    ///
    /// # Errors
    ///
    /// When nobody asks any more.
    pub fn answer(asks: BorrowedFd<'_>, done: bool) -> TestResult {
        rustix::net::send(asks, &[u8::from(done)], SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// The file, and who has it open. The process that asks never has: it could not start a program.
#[derive(Debug)]
pub struct SilentFile {
    // In this order: when its server answers again, nobody waits for it.
    _stopped: Stopped,
    hander: Process,
    asks: OwnedFd,
    _mount: FsMount,
    _share: tempfile::TempDir,
}

impl SilentFile {
    /// Mounts what a back-end shares, opens a file of it to write, and stops the back-end. `hander` is
    /// the program `file-hander`.
    ///
    /// # Errors
    ///
    /// When nothing can be mounted, see [`crate::fs_mount::needs`].
    pub fn new(hander: impl AsRef<Path>) -> Result<Self> {
        let share = tempfile::tempdir()?;
        fs::write(share.path().join("file"), [1; 4096])?;
        let mut mount = FsMount::start(share.path(), &[], &MountOptions::default())?;
        let (asks, asked) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        set_socket_timeout(&asks, rustix::net::sockopt::Timeout::Recv, Some(PATIENCE))?;
        let mut launch = Launch::program(hander.as_ref())?.arg(mount.join("file"));
        launch.command_mut().stdin(Stdio::from(asked));
        let hander = launch.spawn()?;
        rustix::net::recv(&asks, &mut [0; 1], RecvFlags::empty())?;
        Ok(Self {
            _stopped: Stopped::new(mount.back_end_mut().process().id())?,
            hander,
            asks,
            _mount: mount,
            _share: share,
        })
    }

    /// Has a message sent on `to` with so many descriptors of the file.
    ///
    /// # Errors
    ///
    /// When it is not taken.
    pub fn hand_over(&self, to: &UnixStream, header: Header, body: &[u8], count: u8) -> TestResult {
        let bytes = [&[count][..], &header.to_bytes(), body].concat();
        let to = [to.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&to));
        let slices = [IoSlice::new(&bytes)];
        sendmsg(&self.asks, &slices, &mut control, SendFlags::NOSIGNAL)?;
        let mut answer = [0; 1];
        let (answered, _) = rustix::net::recv(&self.asks, &mut answer, RecvFlags::empty())?;
        match (answered, answer) {
            (1, [1]) => Ok(()),
            _ => Err(format!("not handed over: {}", self.hander.stderr()).into()),
        }
    }
}
