// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How many system calls an operation costs, by strace.
//!
//! Counted is what the whole process calls while many operations of one kind come, but for what
//! serves the ring and for memory. With `RINGSIDE_FS_BACK_END=virtiofsd` the same
//! count shows what that one needs, which proves the count.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ringside_frontend::fuse::{FuseClient, FuseConfig, FuseQueue};
use ringside_tests::fs_back_end::{FsBackEnd, FsProgram, is_missing};
use ringside_tests::skip;
use rustix::process::{Pid, Signal, kill_process};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Of each kind: as many as fit into a limit of open files that is usual, with two for each file.
const OPERATIONS: u32 = 2000;

/// What serves the rings and the socket: waiting, waking and being woken.
const WAITING: &str = "read,write,recvmsg,epoll_wait,epoll_pwait,poll,ppoll,futex,restart_syscall,\
                       sched_yield,io_uring_enter";

/// What a table that grows needs now and then.
const MEMORY: &str = "brk,mmap,munmap,mprotect,mremap,madvise";

const ROOT: u64 = 1;
const O_CREAT_EXCL_RDWR: u32 = 0o302;
const PATIENCE: Duration = Duration::from_secs(20);

/// What one operation may cost; all of them may cost a fiftieth of a call more for each, for
/// what happens once.
#[derive(Clone, Copy, Debug)]
enum Cost {
    Exactly(u32),
    AtMost(u32),
}

/// `strace -c` on all threads of a process.
struct Strace {
    strace: Child,
    output: tempfile::NamedTempFile,
}

impl Strace {
    fn attach(pid: u32) -> Result<Self> {
        let output = tempfile::NamedTempFile::new()?;
        let strace = Command::new("strace")
            .args(["-f", "-c", "-e"])
            .arg(format!("trace=!{WAITING},{MEMORY}"))
            .arg("-o")
            .arg(output.path())
            .args(["-p", &pid.to_string()])
            .stderr(Stdio::null())
            .spawn()?;
        let attached = Self { strace, output };
        let deadline = Instant::now() + PATIENCE;
        while !all_traced(pid)? {
            if Instant::now() > deadline {
                return Err("strace does not attach".into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(attached)
    }

    /// Ends the count: calls by name, and all of them.
    fn finish(mut self) -> Result<(Vec<(String, u64)>, u64)> {
        kill_process(Pid::from_child(&self.strace), Signal::INT)?;
        self.strace.wait()?;
        let text = fs::read_to_string(self.output.path())?;
        let calls: Vec<_> = text.lines().filter_map(calls_of_line).collect();
        let all = calls.iter().map(|(_, calls)| calls).sum();
        Ok((calls, all))
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        // It has ended, or nobody wants to know.
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

/// `% time, seconds, usecs/call, calls, [errors,] syscall`; not the heading nor the total.
fn calls_of_line(line: &str) -> Option<(String, u64)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let name = words.last().filter(|name| **name != "total")?;
    Some(((*name).to_owned(), words.get(3)?.parse().ok()?))
}

fn all_traced(pid: u32) -> Result<bool> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        if status.contains("TracerPid:\t0\n") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Counts the calls of `OPERATIONS` operations and asserts their cost.
fn assert_cost(
    back_end: &FsBackEnd,
    queue: &mut FuseQueue,
    name: &str,
    cost: Cost,
    mut operation: impl FnMut(&mut FuseQueue, u32) -> Result<()>,
) -> Result<()> {
    let strace = Strace::attach(back_end.process().id())?;
    for index in 0..OPERATIONS {
        operation(queue, index)?;
    }
    let (calls, all) = strace.finish()?;
    let (least, most) = match cost {
        Cost::Exactly(calls) => (calls, calls),
        Cost::AtMost(calls) => (0, calls),
    };
    let range = u64::from(least * OPERATIONS)..=u64::from(most * OPERATIONS + OPERATIONS / 50);
    assert!(
        range.contains(&all),
        "{name}: {cost:?}, {all} in all: {calls:?}"
    );
    Ok(())
}

/// What GETATTR, a known and a new LOOKUP, CREATE and UNLINK cost.
fn costs(program: FsProgram) -> [Cost; 5] {
    use Cost::{AtMost, Exactly};
    match program {
        FsProgram::Ringside | FsProgram::Old => {
            [Exactly(1), AtMost(1), AtMost(3), AtMost(4), Exactly(1)]
        }
        FsProgram::Virtiofsd => [Exactly(3), Exactly(6), Exactly(6), AtMost(20), AtMost(20)],
    }
}

/// `file0` and so on in `dir`, one for each operation.
fn make_files(dir: &Path) -> Result<()> {
    for file in 0..OPERATIONS {
        fs::write(dir.join(format!("file{file}")), [])?;
    }
    Ok(())
}

#[test]
fn operation_costs_no_more_system_calls_than_it_needs() -> Result<()> {
    if let Err(error) = Command::new("strace").arg("-V").output() {
        skip!("strace: {error}");
    }
    let program = FsProgram::chosen();
    let dir = tempfile::tempdir()?;
    make_files(dir.path())?;
    let back_end = match FsBackEnd::start(dir.path(), &["--seccomp=none"]) {
        Err(error) if is_missing(&error) => skip!("{error}"),
        started => started?,
    };
    let [getattr, known, new, create, unlink] = costs(program);
    let mut client = FuseClient::connect(&back_end.socket(), &FuseConfig::default())?;
    let queue = client.queue();
    let node = queue.lookup(ROOT, "file0")?.node;

    assert_cost(&back_end, queue, "GETATTR", getattr, |queue, _| {
        queue.getattr(node, None)?;
        Ok(())
    })?;
    assert_cost(&back_end, queue, "known LOOKUP", known, |queue, _| {
        queue.lookup(ROOT, "file0")?;
        Ok(())
    })?;
    assert_cost(&back_end, queue, "new LOOKUP", new, |queue, index| {
        queue.lookup(ROOT, format!("file{index}"))?;
        Ok(())
    })?;
    let mut handles = Vec::new();
    assert_cost(&back_end, queue, "CREATE", create, |queue, index| {
        let name = format!("new{index}");
        let (entry, opened) = queue.create(ROOT, name, O_CREAT_EXCL_RDWR, 0o644)?;
        handles.push((entry.node, opened.handle));
        Ok(())
    })?;
    for (node, handle) in handles {
        queue.release_file(node, handle)?;
    }
    assert_cost(&back_end, queue, "UNLINK", unlink, |queue, index| {
        Ok(queue.unlink(ROOT, format!("new{index}"))?)
    })?;
    Ok(())
}
