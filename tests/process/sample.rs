// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a process costs, from `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ProcessError, Result};

/// Figures of a process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Open file descriptors.
    pub fds: usize,
    /// Threads.
    pub threads: usize,
    /// Mappings.
    pub maps: usize,
    /// Resident memory, shared guest memory included.
    pub rss_kib: u64,
    /// Resident anonymous memory: the process's own.
    pub rss_anon_kib: u64,
    /// Times a thread went to sleep, summed over the threads alive.
    pub voluntary_switches: u64,
    /// CPU time of the threads alive, in the scheduler's nanoseconds.
    pub cpu: Duration,
}

/// Samples a process.
///
/// # Errors
///
/// When the process is gone or not ours to look at.
pub fn sample(pid: u32) -> Result<Sample> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let status = read(&proc.join("status"))?;
    let missing = |field| ProcessError::Proc {
        pid,
        file: "status",
        field,
    };
    let mut sample = Sample {
        fds: entries(&proc.join("fd"))?.len(),
        threads: 0,
        maps: read(&proc.join("maps"))?.lines().count(),
        rss_kib: number(&status, "VmRSS:").ok_or_else(|| missing("VmRSS"))?,
        rss_anon_kib: number(&status, "RssAnon:").ok_or_else(|| missing("RssAnon"))?,
        voluntary_switches: 0,
        cpu: Duration::ZERO,
    };
    for task in entries(&proc.join("task"))? {
        // A thread may end between the listing and the look; it then counts for nothing.
        let (Ok(status), Ok(schedstat)) =
            (read(&task.join("status")), read(&task.join("schedstat")))
        else {
            continue;
        };
        let switches = number(&status, "voluntary_ctxt_switches:");
        let nanoseconds = schedstat.split_whitespace().next();
        sample.threads += 1;
        sample.voluntary_switches += switches.ok_or_else(|| missing("voluntary_ctxt_switches"))?;
        sample.cpu += nanoseconds
            .and_then(|n| n.parse().ok())
            .map(Duration::from_nanos)
            .ok_or(ProcessError::Proc {
                pid,
                file: "task/schedstat",
                field: "run time",
            })?;
    }
    Ok(sample)
}

/// What one thread has done so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadActivity {
    /// Its name.
    pub name: String,
    /// Times it went to sleep.
    pub voluntary_switches: u64,
    /// CPU time in the scheduler's nanoseconds.
    pub cpu_ns: u64,
}

/// What the threads of a process have done so far, by thread id. One that ends meanwhile is left
/// out.
///
/// # Errors
///
/// When the process is gone.
pub fn thread_activity(pid: u32) -> Result<BTreeMap<u32, ThreadActivity>> {
    let tasks = entries(&PathBuf::from(format!("/proc/{pid}/task")))?;
    let of = |task: &PathBuf| {
        let status = read(&task.join("status")).ok()?;
        let schedstat = read(&task.join("schedstat")).ok()?;
        let activity = ThreadActivity {
            name: read(&task.join("comm")).ok()?.trim().to_owned(),
            voluntary_switches: number(&status, "voluntary_ctxt_switches:")?,
            cpu_ns: schedstat.split_whitespace().next()?.parse().ok()?,
        };
        Some((task.file_name()?.to_str()?.parse().ok()?, activity))
    };
    Ok(tasks.iter().filter_map(of).collect())
}

/// The threads of a process whose names start with `prefix`.
///
/// # Errors
///
/// When the process is gone.
pub fn thread_ids(pid: u32, prefix: &str) -> Result<Vec<u32>> {
    let tasks = entries(&PathBuf::from(format!("/proc/{pid}/task")))?;
    Ok(tasks
        .iter()
        .filter(|task| read(&task.join("comm")).is_ok_and(|name| name.starts_with(prefix)))
        .filter_map(|task| task.file_name()?.to_str()?.parse().ok())
        .collect())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(ProcessError::io("reading /proc"))
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(dir)
        .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect())
        .map_err(ProcessError::io("listing /proc"))
}

/// The number after a label at the start of a line.
fn number(text: &str, label: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(label))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Instant;

    #[test]
    fn number_needs_its_label_at_the_start_of_a_line() {
        let status = "nonvoluntary_ctxt_switches:\t9\nvoluntary_ctxt_switches:\t7\n";
        assert_eq!(number(status, "voluntary_ctxt_switches:"), Some(7));
        assert_eq!(number(status, "VmRSS:"), None);
    }

    #[test]
    fn sample_of_this_process_sees_a_thread_a_descriptor_and_cpu_time_come() {
        let before = sample(std::process::id()).unwrap();
        let (stop, wait) = mpsc::channel::<()>();
        let thread = thread::spawn(move || wait.recv().is_err());
        let files: Vec<_> = (0..64)
            .map(|_| fs::File::open("/dev/null").unwrap())
            .collect();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let during = sample(std::process::id()).unwrap();
        drop((files, stop));
        assert!(thread.join().unwrap());

        // Other tests of this process run beside; the margins are wider than what they do.
        assert!(during.fds >= before.fds + 32, "{before:?} {during:?}");
        assert!(during.threads >= 2, "{during:?}");
        assert!(during.cpu > before.cpu, "{before:?} {during:?}");
        assert!(during.rss_kib >= during.rss_anon_kib && during.rss_anon_kib > 0);
    }
}
