// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Logging: to standard error or the system log, with a level that can change at run time, and
//! [`limited!`](crate::limited) where a guest or a front-end could flood it.

use std::fmt;
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use env_logger::{Builder, Target};
use log::{LevelFilter, warn};
use rustix::time::{ClockId, clock_gettime};
use thiserror::Error;

use crate::num::unsigned;

#[doc(hidden)]
pub use log::{Level, log_enabled};

/// Why logging could not be set up.
#[derive(Debug, Error)]
#[error("logging is already set up")]
pub struct LoggingError(#[from] log::SetLoggerError);

/// Starts logging to standard error with timestamps, at `level` unless `RUST_LOG` says otherwise.
///
/// Without `RUST_LOG` the logger itself lets everything pass and the global maximum decides, so
/// that the management method `log-level` can raise it as well as lower it. With `RUST_LOG` it
/// can be lowered, and raised again up to what `RUST_LOG` allows.
///
/// # Errors
///
/// [`LoggingError`] when a logger is already set.
pub fn init_logging(level: LevelFilter) -> Result<(), LoggingError> {
    let mut builder = Builder::new();
    builder.format_timestamp_millis();
    start(builder, level)
}

/// The same to the system log, as `program`; when there is none, to standard error.
///
/// # Errors
///
/// [`LoggingError`] when a logger is already set.
pub fn init_syslog(program: &'static str, level: LevelFilter) -> Result<(), LoggingError> {
    let socket = match connect(Path::new("/dev/log")) {
        Ok(socket) => socket,
        Err(error) => {
            init_logging(level)?;
            warn!("no system log, so this goes to standard error: {error}");
            return Ok(());
        }
    };
    let mut builder = Builder::new();
    let pid = std::process::id();
    builder.format(move |buffer, record| {
        let priority = priority(record.level());
        write!(buffer, "<{priority}>{program}[{pid}]: {}", record.args())
    });
    builder.target(Target::Pipe(Box::new(Datagrams(socket))));
    start(builder, level)
}

/// `LOG_USER` of syslog(3), in the place where it goes: the facility that virtiofsd has.
const LOG_USER: u8 = 1 << 3;

/// The facility, and the severities of syslog(3).
fn priority(level: Level) -> u8 {
    let severity = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    LOG_USER + severity
}

/// A socket that never waits: a log that nobody reads must not hold up a guest.
fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Each line in a datagram; what does not fit into the socket's queue is lost.
struct Datagrams(UnixDatagram);

impl io::Write for Datagrams {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = self.0.send(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn start(mut builder: Builder, level: LevelFilter) -> Result<(), LoggingError> {
    let directives = std::env::var_os("RUST_LOG").is_some_and(|value| !value.is_empty());
    if directives {
        builder.parse_default_env().try_init()?;
    } else {
        builder.filter_level(LevelFilter::Trace).try_init()?;
        log::set_max_level(level);
    }
    Ok(())
}

/// Logs a line that a guest, a front-end, a peer or a client can cause, whatever its level: one a
/// second at most, which tells how many there were since the one before.
///
/// Each place in the sources has a [`LogLimiter`] of its own, for the whole process. Where that is
/// too few or too many, one is given before the level.
///
/// ```
/// use ringside_common::limited;
/// use ringside_common::logging::LogLimiter;
///
/// limited!(debug, "vring {}: malformed chain", 3);
///
/// struct Port { left: LogLimiter }
/// let port = Port { left: LogLimiter::new() };
/// limited!(port.left, info, "the front-end has left");
/// ```
#[macro_export]
macro_rules! limited {
    (@level error) => { $crate::logging::Level::Error };
    (@level warn) => { $crate::logging::Level::Warn };
    (@level info) => { $crate::logging::Level::Info };
    (@level debug) => { $crate::logging::Level::Debug };
    (@level trace) => { $crate::logging::Level::Trace };
    ($level:ident, $text:literal $($values:tt)*) => {{
        static LIMITER: $crate::logging::LogLimiter = $crate::logging::LogLimiter::new();
        $crate::limited!(LIMITER, $level, $text $($values)*);
    }};
    ($limiter:expr, $level:ident, $text:literal $($values:tt)*) => {{
        const LEVEL: $crate::logging::Level = $crate::limited!(@level $level);
        // What is not shown at this level costs the first comparison, and is not counted.
        if $crate::logging::log_enabled!(LEVEL)
            && let Some(unshown) = $limiter.allow()
        {
            $crate::logging::write(
                LEVEL,
                ::core::module_path!(),
                ::core::format_args!($text $($values)*),
                unshown,
            );
        }
    }};
}

/// For [`limited!`](crate::limited).
#[doc(hidden)]
#[cold]
pub fn write(level: Level, target: &str, message: fmt::Arguments<'_>, unshown: u64) {
    match unshown {
        0 => log::log!(target: target, level, "{message}"),
        _ => log::log!(target: target, level, "{message} ({unshown} more not shown)"),
    }
}

/// One line per second for one cause.
#[derive(Debug, Default)]
pub struct LogLimiter {
    /// Milliseconds of the last line in the upper 40 bits (35 years of uptime), lines suppressed
    /// since then in the lower 24. Zero: no line yet.
    state: AtomicU64,
}

/// Width of the number of suppressed lines.
const SUPPRESSED_BITS: u32 = 24;
/// The largest number of suppressed lines that can be told.
const SUPPRESSED_MAX: u64 = (1 << SUPPRESSED_BITS) - 1;
/// At most one line in this time.
const INTERVAL_MS: u64 = 1000;

impl LogLimiter {
    /// Makes a limiter; mostly for a `static`.
    pub const fn new() -> Self {
        Self {
            state: AtomicU64::new(0),
        }
    }

    /// `Some(n)` if a line may be written now, `n` having been suppressed since the last one.
    #[inline]
    pub fn allow(&self) -> Option<u64> {
        self.allow_at(monotonic_ms())
    }

    fn allow_at(&self, now_ms: u64) -> Option<u64> {
        let now_ms = now_ms.max(1);
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            let (last_ms, suppressed) = (state >> SUPPRESSED_BITS, state & SUPPRESSED_MAX);
            let allowed = state == 0 || now_ms.saturating_sub(last_ms) >= INTERVAL_MS;
            let next = match allowed {
                true => now_ms << SUPPRESSED_BITS,
                false if suppressed == SUPPRESSED_MAX => return None,
                false => state.wrapping_add(1),
            };
            match self.state.compare_exchange_weak(
                state,
                next,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return allowed.then_some(suppressed),
                Err(changed) => state = changed,
            }
        }
    }
}

/// The coarse clock is read without a system call and is exact to a few milliseconds.
fn monotonic_ms() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    let (seconds, ms) = (unsigned(now.tv_sec), unsigned(now.tv_nsec) / 1_000_000);
    seconds.wrapping_mul(1000).wrapping_add(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syslog_priorities_are_those_of_a_user_program() {
        let levels = [Level::Error, Level::Warn, Level::Info, Level::Trace];
        assert_eq!(levels.map(priority), [11, 12, 14, 15]);
    }

    #[test]
    fn syslog_lines_are_one_datagram_each_and_a_full_queue_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = UnixDatagram::bind(&path).unwrap();
        let mut datagrams = Datagrams(connect(&path).unwrap());
        for line in ["<30>one", "<28>two"] {
            datagrams.write_all(line.as_bytes()).unwrap();
            let mut buffer = [0; 64];
            let size = log.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..size], line.as_bytes());
        }
        for _ in 0..10_000 {
            datagrams.write_all(&[b'x'; 100]).unwrap();
        }
    }

    #[test]
    fn limiter_allows_the_first_line_even_right_after_boot() {
        assert_eq!(LogLimiter::new().allow_at(0), Some(0));
        assert_eq!(LogLimiter::new().allow(), Some(0));
    }

    #[test]
    fn limiter_allows_one_line_per_second_and_tells_the_rest() {
        let limiter = LogLimiter::new();
        assert_eq!(limiter.allow_at(5_000), Some(0));
        for ms in 5_000..5_999 {
            assert_eq!(limiter.allow_at(ms), None);
        }
        assert_eq!(limiter.allow_at(6_000), Some(999));
        assert_eq!(limiter.allow_at(6_999), None);
        assert_eq!(limiter.allow_at(7_500), Some(1));
        assert_eq!(limiter.allow_at(10_000), Some(0));
    }

    #[test]
    fn limiter_with_full_count_saturates() {
        let limiter = LogLimiter::new();
        limiter.state.store(
            (5_000 << SUPPRESSED_BITS) | (SUPPRESSED_MAX - 1),
            Ordering::Relaxed,
        );
        assert_eq!(limiter.allow_at(5_001), None);
        assert_eq!(limiter.allow_at(5_002), None);
        assert_eq!(limiter.allow_at(6_000), Some(SUPPRESSED_MAX));
    }

    #[test]
    fn limiter_from_many_threads_loses_no_line() {
        let limiter = LogLimiter::new();
        let told: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let now = |i: u64| 1 + i / 4;
                        (0..10_000)
                            .filter_map(|i| limiter.allow_at(now(i)))
                            .map(|n| n + 1)
                            .sum()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or(0))
                .sum()
        });
        let rest = limiter.allow_at(100_000).unwrap();
        assert_eq!(told + rest, 40_000);
    }
}
