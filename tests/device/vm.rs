// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The example device of docs/writing-a-device.md, as the page starts it, in a Linux guest.

use std::error::Error;
use std::time::Duration;

use ringside_tests::process::{Launch, example_binary};
use ringside_tests::skip;
use ringside_tests::vm::{Device, Guest, needs};

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn example_of_the_documents_serves_a_linux_guest() -> Result<(), Box<dyn Error>> {
    if let Some(reason) = needs() {
        skip!("{reason}");
    }
    let launch = Launch::program(example_binary("ringside-common", "entropy")?)?;
    let socket = launch.socket();
    let mut example = launch.arg(&socket).spawn()?;
    example.wait_listening(PATIENCE)?;
    let outcome = Guest::new()
        .device(Device::entropy("rng", &socket))
        .script(include_str!("vm/entropy.sh"))
        .run()?;
    assert_eq!(outcome.exit_code, 0, "{outcome:?}");
    assert_eq!(example.terminate(PATIENCE)?.code(), Some(0));
    Ok(())
}
