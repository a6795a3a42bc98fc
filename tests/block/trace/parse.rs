// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the text of a trace to what was done to the image.

use std::collections::BTreeMap;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A write; `dsync`: done when the data is stable.
    Write {
        /// Whether it was asked to be.
        dsync: bool,
    },
    /// An fdatasync.
    Fdatasync,
    /// An fsync, which nobody asked for.
    Fsync,
}

/// One operation on the image.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) what: What,
    /// Traces tell microseconds: the last nanosecond it may have begun.
    pub(crate) began_ns: u64,
    /// The first nanosecond it may have ended.
    pub(crate) ended_ns: u64,
    pub(crate) succeeded: bool,
}

/// `123.456789` in nanoseconds.
fn nanoseconds(text: &str) -> Option<u64> {
    let (seconds, micros) = text.split_once('.')?;
    let micros: u64 = micros.get(..6)?.parse().ok()?;
    Some(seconds.parse::<u64>().ok()? * 1_000_000_000 + micros * 1000)
}

/// Entries of `strace -f -ttt -T`.
pub(crate) fn strace(text: &str) -> Result<Vec<Entry>, String> {
    let mut begun: BTreeMap<&str, (u64, &str)> = BTreeMap::new();
    let mut entries = Vec::new();
    for line in text.lines() {
        let bad = || format!("not understood: {line}");
        let mut fields = line.splitn(2, char::is_whitespace);
        let (thread, rest) = fields.next().zip(fields.next()).ok_or_else(bad)?;
        let (time, call) = rest.trim_start().split_once(' ').ok_or_else(bad)?;
        let time = nanoseconds(time).ok_or_else(bad)?;
        if call.starts_with("+++") || call.starts_with("---") {
            continue;
        }
        if call.ends_with("<unfinished ...>") {
            begun.insert(thread, (time, call));
            continue;
        }
        let (began, head) = if call.starts_with("<...") {
            begun.remove(thread).ok_or_else(bad)?
        } else {
            (time, call)
        };
        let name = head.split('(').next().unwrap_or_default();
        let what = match name {
            "fdatasync" => What::Fdatasync,
            "fsync" => What::Fsync,
            _ => What::Write {
                dsync: head.contains("RWF_DSYNC") || call.contains("RWF_DSYNC"),
            },
        };
        let (_, result) = call.rsplit_once(" = ").ok_or_else(bad)?;
        let took = result
            .rsplit_once('<')
            .and_then(|(_, text)| nanoseconds(text.trim_end_matches('>')))
            .ok_or_else(bad)?;
        let result = result.split_whitespace().next();
        entries.push(Entry {
            what,
            began_ns: began + 999,
            ended_ns: began + took,
            succeeded: result == Some(if name.contains("sync") { "0" } else { "4096" }),
        });
    }
    Ok(entries)
}

/// A sync inside the file system.
struct Sync {
    began_ns: u64,
    ended_ns: u64,
    data_only: bool,
    succeeded: bool,
}

/// Entries of the tracepoints of `io_uring`, and of ext4 for what came of them.
pub(crate) fn tracepoints(text: &str) -> Result<Vec<Entry>, String> {
    let mut submitted: BTreeMap<&str, (u64, What)> = BTreeMap::new();
    let mut syncing: BTreeMap<&str, (u64, bool)> = BTreeMap::new();
    let mut syncs: Vec<Sync> = Vec::new();
    let mut entries = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let bad = || format!("not understood: {line}");
        // "  data-0-123  [001] .....  456.789012: event: field value, field value"
        let (place, rest) = line.split_once(": ").ok_or_else(bad)?;
        let (event, fields) = rest.split_once(": ").ok_or_else(bad)?;
        let time = place.rsplit(' ').next().and_then(nanoseconds);
        let time = time.ok_or_else(bad)?;
        let thread = place.split('[').next().unwrap_or_default().trim();
        let field = |name: &str| {
            let mut words = fields.split([' ', ',']).filter(|word| !word.is_empty());
            words.find(|word| *word == name).and_then(|_| words.next())
        };
        match event {
            "io_uring_submit_req" => {
                let what = match field("opcode").ok_or_else(bad)? {
                    "WRITE" | "WRITEV" => What::Write { dsync: false },
                    "FSYNC" => What::Fdatasync,
                    _ => continue,
                };
                submitted.insert(field("req").ok_or_else(bad)?, (time, what));
            }
            "io_uring_complete" => {
                let Some((began, what)) = submitted.remove(field("req").ok_or_else(bad)?) else {
                    continue;
                };
                let result = field("result").ok_or_else(bad)?;
                entries.push(ended(what, began, time, result, &syncs));
            }
            "ext4_sync_file_enter" => {
                let data_only = field("datasync").ok_or_else(bad)? == "1";
                syncing.insert(thread, (time, data_only));
            }
            "ext4_sync_file_exit" => {
                let (began_ns, data_only) = syncing.remove(thread).ok_or_else(bad)?;
                syncs.push(Sync {
                    began_ns,
                    ended_ns: time,
                    data_only,
                    succeeded: field("ret").ok_or_else(bad)? == "0",
                });
            }
            _ => return Err(bad()),
        }
    }
    Ok(entries)
}

/// An operation, with the sync that the file system made meanwhile.
fn ended(what: What, began: u64, ended_ns: u64, result: &str, syncs: &[Sync]) -> Entry {
    let within: Vec<&Sync> = syncs
        .iter()
        .filter(|sync| sync.began_ns >= began && sync.ended_ns <= ended_ns)
        .collect();
    let synced = within.len() == 1 && within[0].data_only && within[0].succeeded;
    let (what, succeeded) = match what {
        What::Write { .. } => (What::Write { dsync: synced }, result == "4096"),
        other => (other, result == "0" && synced),
    };
    Entry {
        what,
        began_ns: began + 999,
        ended_ns,
        succeeded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strace_lines_are_understood() {
        let text = "\
12 100.000001 pwritev2(5, [{iov_base=\"w = \", iov_len=4096}], 1, 0, RWF_DSYNC) = 4096 <0.000010>
13 100.000100 fdatasync(5 <unfinished ...>
12 100.000150 pwritev2(5, [], 1, 0, 0) = -1 ENOSPC (No space left on device) <0.000001>
13 100.000200 <... fdatasync resumed>) = 0 <0.000100>
";
        let entries = strace(text).unwrap();
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[0].what, What::Write { dsync: true });
        assert!(entries[0].succeeded && !entries[1].succeeded);
        assert_eq!(entries[2].what, What::Fdatasync);
        assert!(entries[2].succeeded);
        assert_eq!(entries[2].began_ns, 100_000_100_999);
        assert_eq!(entries[2].ended_ns, 100_000_200_000);
    }

    #[test]
    fn flush_without_a_sync_below_it_has_not_succeeded() {
        let text = "\
 data-0-12 [001] ..... 1.000001: io_uring_submit_req: ring 0x1, req 0x2, user_data 0x0, opcode FSYNC, flags 0x1, sq_thread 0
 data-0-12 [001] ..... 1.000009: io_uring_complete: ring 0x1, req 0x2, user_data 0x0, result 0, cflags 0x0 extra1 0 extra2 0 
";
        let entries = tracepoints(text).unwrap();
        assert_eq!(entries.len(), 1);
        assert!(!entries[0].succeeded);
    }
}
