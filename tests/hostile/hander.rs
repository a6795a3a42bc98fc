// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Has a file open, and hands it over as it is told to: `file-hander FILE`. Its standard input is a
//! socket of packets, from which it is asked with [`Ask`]; each is answered when it is done, or not
//! taken.
//!
//! It is a process of its own because who has such a file cannot start a program, and may not end:
//! so nothing that it is asked for ends it.

use std::error::Error;
use std::fs::File;
use std::os::fd::AsFd as _;

use ringside_tests::hostile::silent::Ask;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("FILE")?;
    let file = File::options().read(true).write(true).open(path)?;
    let asks = std::io::stdin();
    Ask::answer(asks.as_fd(), true)?;
    while let Some(ask) = Ask::receive(asks.as_fd())? {
        let done = ask.hand_over(file.as_fd()).is_ok();
        Ask::answer(asks.as_fd(), done)?;
    }
    Ok(())
}
