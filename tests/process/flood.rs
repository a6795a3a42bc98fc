// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a back-end has logged: whether a line was repeated without a limit.
//!
//! Numbers do not make lines different, as whoever causes them can choose most of them. What stands
//! before the first colon may: a port or a file, of which there are as many as the operator named.

use std::collections::BTreeMap;

/// A limited line comes once a second. One more may seem to come within it, where a thread is kept
/// from its processor between being allowed to write the line and looking at the clock.
const MOST_IN_A_SECOND: usize = 3;
/// What the operator asks for is told each time: the last of several is how it stays.
const ASKED_FOR: [&str; 3] = ["the disk has", "the link is", "log level set"];
const SECOND_MS: u64 = 1000;
const DAY_MS: u64 = 24 * 60 * 60 * SECOND_MS;

/// The lines that came more often within a second than any that is limited, how often they did, and
/// numbers masked.
#[must_use]
pub fn flood(log: &str) -> Option<String> {
    let mut seen: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut latest_ms = 0;
    for line in log.lines() {
        let Some((time_ms, text)) = split(line) else {
            continue;
        };
        if ASKED_FOR.iter().any(|asked| text.contains(asked)) {
            continue;
        }
        // Only the time of day is looked at.
        let mut time_ms = time_ms + latest_ms / DAY_MS * DAY_MS;
        if time_ms + DAY_MS / 2 < latest_ms {
            time_ms += DAY_MS;
        }
        latest_ms = latest_ms.max(time_ms);
        seen.entry(masked(text)).or_default().push(time_ms);
    }
    let floods = seen.into_iter().filter_map(|(text, mut times_ms)| {
        times_ms.sort_unstable();
        let most = (0..times_ms.len())
            .map(|first| {
                let end_ms = times_ms[first] + SECOND_MS;
                times_ms[first..].partition_point(|time_ms| *time_ms < end_ms)
            })
            .max()
            .unwrap_or(0);
        (most > MOST_IN_A_SECOND).then(|| format!("{most} times in a second: {text}"))
    });
    floods.reduce(|all, flood| format!("{all}\n{flood}"))
}

/// The time of day and what follows it: `[2026-01-31T23:59:59.999Z WARN  target] message`.
fn split(line: &str) -> Option<(u64, &str)> {
    let (time, text) = line.strip_prefix('[')?.split_once("Z ")?;
    let (_date, time) = time.split_once('T')?;
    let mut numbers = time.split([':', '.']).map(str::parse::<u64>);
    let mut next = || numbers.next()?.ok();
    let (hours, minutes, seconds, ms) = (next()?, next()?, next()?, next()?);
    Some((
        ((hours * 60 + minutes) * 60 + seconds) * SECOND_MS + ms,
        text,
    ))
}

/// `text` with a `#` for each number, decimal or hexadecimal.
fn masked(text: &str) -> String {
    let (level, message) = text.split_once("] ").unwrap_or(("", text));
    let (who, message) = match message.split_once(": ") {
        Some((who, message)) if !who.contains(' ') => (who, message),
        _ => ("", message),
    };
    let mut masked = format!("{level}] {who}: ");
    let mut word = String::new();
    for character in message.chars().chain(['\n']) {
        if character.is_ascii_alphanumeric() {
            word.push(character);
            continue;
        }
        let digits = word.trim_start_matches("0x");
        let is_number = digits.chars().all(|c| c.is_ascii_hexdigit())
            && word.chars().any(|c| c.is_ascii_digit());
        masked.push_str(if is_number { "#" } else { &word });
        masked.push(character);
        word.clear();
    }
    masked.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(ms: u64, message: &str) -> String {
        let (seconds, ms) = (ms / 1000, ms % 1000);
        let (h, m, s) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        format!("[2026-01-31T{h:02}:{m:02}:{s:02}.{ms:03}Z WARN  ringside_x::y] {message}\n")
    }

    fn lines(times_ms: impl Iterator<Item = u64>, message: impl Fn(u64) -> String) -> String {
        times_ms.map(|ms| line(ms, &message(ms))).collect()
    }

    #[test]
    fn flood_is_found_whatever_the_numbers_in_it() {
        let told = |n: u64| format!("vring {n}: no memory at {:#x} or {:x}9", n * 77, n * 7);
        let log = lines((0..50).map(|n| n * 10), told);
        assert_eq!(
            flood(&log).as_deref(),
            Some("50 times in a second: WARN  ringside_x::y] : vring #: no memory at # or #")
        );
        let calm = lines((0..60).map(|n| n * 1000), told);
        assert_eq!(flood(&calm), None);
        // A burst in a long life.
        assert!(
            flood(&format!(
                "{calm}{}",
                lines((0..5).map(|n| 61_000 + n), told)
            ))
            .is_some()
        );
    }

    #[test]
    fn lines_about_others_are_others() {
        let told = |n: u64| format!("port{n}: a front-end has connected");
        assert_eq!(flood(&lines(0..50, told)), None);
        let same = |_| "port7: a front-end has connected".to_owned();
        assert!(flood(&lines(0..50, same)).is_some());
    }

    #[test]
    fn midnight_is_no_reason() {
        let told = |_| "told".to_owned();
        let before = DAY_MS - 3000;
        assert_eq!(flood(&lines((0..9).map(|n| before + n * 1000), told)), None);
        assert!(flood(&lines((0..9).map(|n| DAY_MS - 4 + n), told)).is_some());
    }

    #[test]
    fn text_without_a_time_is_no_log() {
        assert_eq!(flood(&"usage: [options]\n\n".repeat(50)), None);
    }
}
