// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VM runner itself: what goes wrong in a guest must be seen, without any device in it.

use std::time::Duration;

use ringside_tests::vm::{BoxError, Guest, VmError, needs, skip};

/// Whether guests can be run; says loudly when not.
fn ready(test: &str) -> Result<bool, BoxError> {
    match needs() {
        None => Ok(true),
        Some(reason) => skip(test, &reason).map(|()| false).map_err(BoxError::from),
    }
}

#[test]
fn failing_script_gives_its_status_and_unmixed_output() -> Result<(), BoxError> {
    if !ready("failing_script_gives_its_status_and_unmixed_output")? {
        return Ok(());
    }
    let script =
        "echo one\necho '<0>a message of the kernel' >/dev/kmsg\nprintf \"two $WORD\"\nexit 3";
    let outcome = Guest::new()
        .env("WORD", "it's; $HOME")
        .script(script)
        .run()?;
    assert_eq!(outcome.exit_code, 3);
    assert_eq!(outcome.output, "one\ntwo it's; $HOME\n");
    assert!(
        outcome.console.contains("a message of the kernel"),
        "{}",
        outcome.console
    );
    assert_eq!(outcome.boots, 1);
    Ok(())
}

#[test]
fn kernel_panic_is_an_error_with_the_console() -> Result<(), BoxError> {
    if !ready("kernel_panic_is_an_error_with_the_console")? {
        return Ok(());
    }
    let ended = Guest::new()
        .script("echo before\necho c >/proc/sysrq-trigger\nsleep 60")
        .run();
    let Err(VmError::Ended { log, .. }) = ended else {
        return Err(format!("{ended:?}").into());
    };
    assert!(log.contains("Kernel panic"), "{log}");
    assert!(log.contains("output: before"), "{log}");
    Ok(())
}

#[test]
fn restart_nobody_asked_for_is_an_error() -> Result<(), BoxError> {
    if !ready("restart_nobody_asked_for_is_an_error")? {
        return Ok(());
    }
    let ended = Guest::new().reboots(1).script("reboot -f\nsleep 60").run();
    let boot = match &ended {
        Err(VmError::UnexpectedBoot { boot, .. }) => Some(*boot),
        _ => None,
    };
    assert_eq!(boot, Some(2), "{ended:?}");
    Ok(())
}

#[test]
fn handlers_are_called_in_order_and_their_failure_ends_the_run() -> Result<(), BoxError> {
    if !ready("handlers_are_called_in_order_and_their_failure_ends_the_run")? {
        return Ok(());
    }
    let mut calls = Vec::new();
    let mut lines = Vec::new();
    let ended = Guest::new()
        .script("echo start\nhost first\necho between\nhost second\necho never")
        .on("first", |machine| {
            let status = machine
                .qmp()
                .execute("query-status", serde_json::json!({}))?;
            calls.push(status["status"].as_str().unwrap_or_default().to_owned());
            Ok(())
        })
        .on("second", |_| Err("the second fails".into()))
        .watch(|line| lines.push(line.to_owned()))
        .run();
    let Err(VmError::Handler { name, source }) = ended else {
        return Err(format!("{ended:?}").into());
    };
    assert_eq!(
        (name.as_str(), source.to_string().as_str()),
        ("second", "the second fails")
    );
    assert_eq!(calls, ["running"]);
    assert_eq!(lines, ["start", "between"]);
    Ok(())
}

#[test]
fn script_that_hangs_times_out_and_unknown_marks_fail() -> Result<(), BoxError> {
    if !ready("script_that_hangs_times_out_and_unknown_marks_fail")? {
        return Ok(());
    }
    let limit = Duration::from_secs(15);
    let ended = Guest::new()
        .timeout(limit)
        .script("echo asleep\nsleep 600")
        .run();
    let what = match &ended {
        Err(VmError::Timeout { what, .. }) => what.as_str(),
        _ => "",
    };
    assert!(what.contains("the guest's script"), "{ended:?}");

    let ended = Guest::new().script("host nobody").run();
    let message = match &ended {
        Err(VmError::Message(message)) => message.as_str(),
        _ => "",
    };
    assert_eq!(message, "mark nobody", "{ended:?}");
    Ok(())
}
