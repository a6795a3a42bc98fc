// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The example device of docs/writing-a-device.md, as the page starts it, in a Linux guest.

use std::error::Error;
use std::time::{Duration, Instant};

use ringside_tests::process::example_binary;
use ringside_tests::skip;
use ringside_tests::vm::{Device, Guest, needs};

#[test]
fn example_of_the_documents_serves_a_linux_guest() -> Result<(), Box<dyn Error>> {
    if let Some(reason) = needs() {
        skip!("{reason}");
    }
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("socket");
    let binary = example_binary("ringside-common", "entropy")?;
    let mut example = std::process::Command::new(binary).arg(&socket).spawn()?;
    let started = Instant::now();
    while !socket.exists() && started.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let outcome = Guest::new()
        .device(Device::entropy("rng", &socket))
        .script(include_str!("vm/entropy.sh"))
        .run();
    let pid = rustix::process::Pid::from_child(&example);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let status = example.wait()?;
    let outcome = outcome?;
    assert_eq!(outcome.exit_code, 0, "{outcome:?}");
    assert_eq!(status.code(), Some(0));
    Ok(())
}
