// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every kind of descriptor with every message.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};

use ringside_frontend::ids::request;
use ringside_tests::hostile::wire::{self, mem_region, mem_table, vring_state, words};
use ringside_tests::hostile::{Result, TestResult};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, Mode, OFlags};

use super::{REGION, Target, answered_or_closed};

/// A body that the message has, whether or not it takes descriptors.
pub(super) fn messages() -> Vec<(u32, Vec<u8>)> {
    vec![
        (request::SET_MEM_TABLE, mem_table(1, &[REGION])),
        (request::ADD_MEM_REG, mem_region(&REGION)),
        (request::REM_MEM_REG, mem_region(&REGION)),
        (request::SET_VRING_KICK, words(&[0])),
        (request::SET_VRING_CALL, words(&[0])),
        (request::SET_VRING_ERR, words(&[0])),
        (request::SET_BACKEND_REQ_FD, Vec::new()),
        (request::SET_LOG_BASE, words(&[4096, 0])),
        (request::SET_LOG_FD, Vec::new()),
        (request::SET_INFLIGHT_FD, words(&[4096, 0, 1 << 32 | 1])),
        (request::GPU_SET_SOCKET, Vec::new()),
        (request::SET_DEVICE_STATE_FD, words(&[0])),
        (request::POSTCOPY_ADVISE, Vec::new()),
        (request::GET_FEATURES, Vec::new()),
        (request::SET_VRING_ENABLE, vring_state(0, 1)),
        (request::GET_VRING_BASE, vring_state(0, 0)),
        (request::SEND_RARP, words(&[2])),
        (9999, Vec::new()),
    ]
}

/// What is no use to a back-end, or is with one message only.
fn descriptors(dir: &std::path::Path) -> Result<Vec<(&'static str, OwnedFd)>> {
    let open = |path: &std::path::Path, flags| rustix::fs::open(path, flags, Mode::empty());
    let memory = rustix::fs::memfd_create("walk", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&memory, 4096)?;
    let link = format!("/proc/self/fd/{}", memory.as_raw_fd());
    let file = dir.join("file");
    File::create(&file)?.set_len(4096)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let tcp = TcpStream::connect(listener.local_addr()?)?;
    let linger = Some(std::time::Duration::from_secs(60));
    rustix::net::sockopt::set_socket_linger(&tcp, linger)?;
    let mut found = vec![
        ("a file on a disk", open(&file, OFlags::RDWR)?),
        ("a file by its path", open(link.as_ref(), OFlags::PATH)?),
        ("memory to read", open(link.as_ref(), OFlags::RDONLY)?),
        ("memory", memory),
        ("a directory", open(dir, OFlags::RDONLY)?),
        ("a pipe", rustix::pipe::pipe()?.0),
        ("nothing", open("/dev/null".as_ref(), OFlags::RDWR)?),
        (
            "a file of procfs",
            open("/proc/self/status".as_ref(), OFlags::RDONLY)?,
        ),
        ("an eventfd", eventfd(0, EventfdFlags::CLOEXEC)?),
        ("a stream", UnixStream::pair()?.0.into()),
        ("a datagram socket", UnixDatagram::pair()?.0.into()),
        ("a TCP connection that lingers", tcp.into()),
        (
            "an epoll",
            rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC)?,
        ),
    ];
    let huge = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB;
    if let Ok(huge) = rustix::fs::memfd_create("walk", huge) {
        rustix::fs::ftruncate(&huge, 2 << 20)?;
        found.push(("huge pages", huge));
    }
    Ok(found)
}

fn send_all(target: &mut Target, what: &str, fd: BorrowedFd<'_>, counts: &[usize]) -> TestResult {
    for (id, body) in messages() {
        for &count in counts {
            let client = target.negotiated()?;
            let header = wire::header(id, &body);
            client.send(header, &body, &vec![fd; count])?;
            answered_or_closed(&client)
                .map_err(|e| format!("{:?}: {what} in message {id}: {e}", target.device))?;
        }
    }
    target.others_go_on()?;
    Ok(())
}

#[test]
fn f1_5_every_descriptor_with_every_message_is_answered_or_refused() -> TestResult {
    let dir = tempfile::tempdir()?;
    for mut target in Target::all()? {
        for (what, fd) in descriptors(dir.path())? {
            send_all(&mut target, what, fd.as_fd(), &[1, 2])?;
        }
        let own = target.negotiated()?;
        let stream = own.stream().try_clone()?;
        own.send(
            wire::header(request::SET_BACKEND_REQ_FD, &[]),
            &[],
            &[stream.as_fd()],
        )?;
        answered_or_closed(&own)?;
        drop((own, stream));
        target.ends()?;
    }
    Ok(())
}
