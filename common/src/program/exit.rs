// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a back-end ends, and the man page that says so.

use std::error::Error;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Command;

use crate::error::{EXIT_DATA_THREAD, HostError, chain};
use crate::sys::heir;

/// Each exit status, and when it is that.
const EXIT_STATUS: &[(&str, &str)] = &[
    (
        "0",
        "after SIGTERM or SIGINT, requests in flight having been completed, or when the inherited \
         connections have ended",
    ),
    (
        "1",
        "it could not start or go on; or SIGTERM or SIGINT came a second time, which ends it where \
         it stands",
    ),
    ("2", "the command line is wrong"),
    (
        "3",
        "a data thread has failed, so that guests are served no more: to be started again",
    ),
    (
        "4",
        "requests in flight did not end within --stop-timeout, after SIGTERM or when a ring was to \
         stop. Threads that the kernel holds in a wait of its own, as it may for a disk that \
         hangs, keep the process from being gone until the kernel lets them go",
    ),
];

/// The end of a program: its status, or what went wrong on the standard error, with its causes, and
/// a status that tells whether a data thread has failed. To be returned from `main` at once.
pub(super) fn exit_code(program: &str, result: Result<u8, Box<dyn Error>>) -> ExitCode {
    let status = result.unwrap_or_else(|error| tell(program, error.as_ref()));
    heir::tell_parent(status);
    ExitCode::from(status)
}

fn tell(program: &str, error: &(dyn Error + 'static)) -> u8 {
    // Nobody may be there to read it.
    let _ = writeln!(io::stderr(), "{program}: {}", chain(error));
    match error.downcast_ref::<HostError>() {
        Some(error) if error.is_of_data_thread() => EXIT_DATA_THREAD,
        _ => 1,
    }
}

/// The man page of `command`, in roff.
///
/// # Errors
///
/// Never in practice: it is written to memory.
pub fn man_page(command: Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    writeln!(page, ".SH \"EXIT STATUS\"")?;
    for (status, when) in EXIT_STATUS {
        let when = when.replace('-', "\\-");
        writeln!(page, ".TP\n{status}\n{when}")?;
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser};

    use super::man_page;
    use crate::cli::CommonArgs;

    /// A device for tests.
    #[derive(Debug, Parser)]
    #[command(name = "ringside-test", version)]
    struct Cli {
        #[command(flatten)]
        common: CommonArgs,
    }

    #[test]
    fn man_page_names_every_visible_option() {
        let page = String::from_utf8(man_page(Cli::command()).unwrap()).unwrap();
        let page = page.replace("\\-", "-");
        for arg in Cli::command()
            .get_arguments()
            .filter(|arg| !arg.is_hide_set())
        {
            let option = format!("--{}", arg.get_long().unwrap());
            assert!(page.contains(&option), "{option}");
        }
        assert!(!page.contains("--print-man"));
    }
}
