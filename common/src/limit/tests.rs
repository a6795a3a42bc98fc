// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::Arc;
use std::thread;

use proptest::prelude::*;

use super::*;

const MAX_FRAME_BYTES: u64 = 65_550;

fn rate(per_s: u64, burst: Option<u64>) -> Option<Rate> {
    NonZeroU64::new(per_s).map(|per_s| Rate { per_s, burst })
}

fn bytes(per_s: u64, burst: Option<u64>) -> Limits {
    Limits {
        bytes: rate(per_s, burst),
        operations: None,
    }
}

fn packets(per_s: u64, burst: Option<u64>) -> Limits {
    Limits {
        bytes: None,
        operations: rate(per_s, burst),
    }
}

/// Sends frames as fast as the limit lets them from `start_ns` on, asking again when told, until
/// `frames` have passed; returns the time that took.
fn saturate(limit: &RateLimit, start_ns: u64, frame_bytes: u64, frames: u64) -> u64 {
    let mut now_ns = start_ns;
    let mut passed = 0;
    while passed < frames {
        match limit.admit(now_ns) {
            Admission::Now => {
                limit.charge(now_ns, usize::try_from(frame_bytes).unwrap(), || 1);
                passed += 1;
            }
            Admission::Until(then_ns) => {
                assert!(then_ns > now_ns && then_ns - now_ns <= MAX_WAIT_NS);
                now_ns = then_ns;
            }
        }
    }
    now_ns.wrapping_sub(start_ns)
}

#[test]
fn limit_of_nothing_admits_everything() {
    let limit = RateLimit::default();
    limit.charge(5, usize::MAX, || 1);
    assert_eq!(limit.admit(5), Admission::Now);
    assert_eq!(limit.limits(), Limits::default());
    assert!(limit.limits().is_none());
}

#[test]
fn limit_holds_over_all_rates_and_sizes() {
    for per_s in [
        1,
        7,
        1_000,
        125_000,
        12_500_000,
        1_250_000_000,
        12_500_000_000,
    ] {
        for frame_bytes in [14, 60, 64, 1514, 9014, MAX_FRAME_BYTES] {
            let burst = (per_s / 100).max(1);
            let limit = RateLimit::new(0, bytes(per_s, Some(burst)));
            // As many as go through without the help of the burst.
            let frames = 4 * burst / frame_bytes + 100;
            if frames > 200_000 {
                continue;
            }
            let took_ns = saturate(&limit, 0, frame_bytes, frames);
            // The last frame is paid for by those behind it.
            let paid = ((frames - 1) * frame_bytes).saturating_sub(burst.max(per_s / 1000));
            let expected_ns = paid as f64 * 1e9 / per_s as f64;
            let error = (took_ns as f64 - expected_ns).abs() / expected_ns;
            assert!(error < 0.0005, "{per_s} B/s, {frame_bytes} B: {error}");
        }
    }
}

#[test]
fn frames_at_the_highest_rate_cost_what_they_should_to_a_half_percent() {
    const FRAMES: u64 = 1_000;
    for (frame_bytes, worst) in [(14, 0.005), (60, 0.003), (64, 0.001), (1514, 0.0001)] {
        let limit = RateLimit::new(0, bytes(MAX_BYTES_PER_S, None));
        for _ in 0..FRAMES {
            limit.charge(0, usize::try_from(frame_bytes).unwrap(), || 1);
        }
        let ticks = limit.bytes.full_at.load(Ordering::Relaxed) as f64;
        let exact_ns = (FRAMES * frame_bytes) as f64 * 1e9 / MAX_BYTES_PER_S as f64;
        let error = (ticks / TICKS_PER_NS as f64 - exact_ns).abs() / exact_ns;
        assert!(error < worst, "{frame_bytes} B: {error}");
    }
    let limit = RateLimit::new(0, packets(MAX_OPERATIONS_PER_S, None));
    (0..FRAMES).for_each(|_| limit.charge(0, 64, || 1));
    let ticks = limit.operations.full_at.load(Ordering::Relaxed);
    assert_eq!(ticks, FRAMES * 10 * TICKS_PER_NS);
}

#[test]
fn packets_at_one_per_second_pass_one_per_second() {
    let limit = RateLimit::new(0, packets(1, Some(1)));
    limit.charge(0, 1, || 1);
    // The burst is not in debt yet.
    assert_eq!(limit.admit(0), Admission::Now);
    limit.charge(0, 1, || 1);
    assert_eq!(limit.admit(0), Admission::Until(MAX_WAIT_NS));
    assert_eq!(limit.admit(999_999_999), Admission::Until(NS_PER_S));
    assert_eq!(limit.admit(NS_PER_S), Admission::Now);
}

#[test]
fn largest_frame_at_one_byte_per_second_is_paid_for_in_18_hours() {
    let limit = RateLimit::new(0, bytes(1, Some(0)));
    limit.charge(0, 65_550, || 1);
    let paid_ns = 65_550 * NS_PER_S - MIN_BURST_NS;
    assert_eq!(limit.admit(paid_ns - 1), Admission::Until(paid_ns));
    assert_eq!(limit.admit(paid_ns), Admission::Now);
}

#[test]
fn both_buckets_are_charged_and_the_slower_one_decides() {
    let both = Limits {
        bytes: rate(1_000_000, Some(1_000)),
        operations: rate(1_000, Some(1)),
    };
    let limit = RateLimit::new(0, both);
    // 100 bytes take 0.1 ms, a packet takes 1 ms.
    assert_eq!(saturate(&limit, 0, 100, 1_001), 999_000_000);
    // 10 000 bytes take 10 ms.
    let limit = RateLimit::new(0, both);
    assert_eq!(saturate(&limit, 0, 10_000, 102), 1_009_000_000);
}

#[test]
fn burst_passes_at_once_after_a_pause_and_not_more() {
    let limit = RateLimit::new(0, packets(1_000, Some(50)));
    for pause_ns in [0, NS_PER_S, 1_000 * NS_PER_S] {
        let mut passed = 0;
        while limit.admit(pause_ns * 2) == Admission::Now {
            limit.charge(pause_ns * 2, 64, || 1);
            passed += 1;
        }
        // The last one goes into debt.
        assert_eq!(passed, 51, "after {pause_ns} ns");
    }
}

#[test]
fn change_takes_effect_at_once_and_forgets_debts() {
    let limit = RateLimit::new(0, bytes(1, None));
    limit.charge(0, 65_550, || 1);
    assert_eq!(limit.admit(0), Admission::Until(MAX_WAIT_NS));
    limit.set(1, bytes(1_000_000_000, None));
    assert_eq!(limit.admit(1), Admission::Now);
    assert_eq!(limit.limits(), bytes(1_000_000_000, None));
    limit.charge(1, 150_000_000, || 1);
    assert_eq!(limit.admit(1), Admission::Until(50_000_001));
    limit.set(2, Limits::default());
    limit.charge(2, usize::MAX, || 1);
    assert_eq!(limit.admit(2), Admission::Now);
}

#[test]
fn clock_past_the_end_of_ticks_goes_on() {
    let end_ns = u64::MAX / TICKS_PER_NS;
    let start_ns = end_ns - NS_PER_S / 2;
    let limit = RateLimit::new(start_ns, packets(1_000, Some(10)));
    assert_eq!(saturate(&limit, start_ns, 64, 1_011), NS_PER_S);
}

#[test]
fn limit_unused_for_years_has_its_burst_and_no_debt() {
    const YEAR_NS: u64 = 365 * 24 * 3600 * NS_PER_S;
    for years in [1, 2, 3, 4, 5, 6] {
        let limit = RateLimit::new(0, packets(1, Some(2)));
        let now_ns = years * YEAR_NS;
        for _ in 0..3 {
            assert_eq!(limit.admit(now_ns), Admission::Now, "{years}");
            limit.charge(now_ns, 64, || 1);
        }
        assert_eq!(limit.admit(now_ns), Admission::Until(now_ns + MAX_WAIT_NS));
    }
}

#[test]
fn debts_and_bursts_beyond_reason_are_bounded() {
    let limit = RateLimit::new(0, bytes(1, Some(u64::MAX)));
    assert_eq!(
        limit.bytes.burst_ticks.load(Ordering::Relaxed),
        MAX_BURST_TICKS
    );
    for _ in 0..3 {
        limit.charge(0, usize::MAX, || 1);
    }
    assert_eq!(limit.bytes.debt_ticks(0), MAX_AHEAD_TICKS - MAX_BURST_TICKS);
    assert_eq!(limit.admit(0), Admission::Until(MAX_WAIT_NS));
}

#[test]
fn charges_of_several_threads_all_count() {
    const EACH: u64 = 50_000;
    let limit = Arc::new(RateLimit::new(0, packets(1_000_000, None)));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let limit = Arc::clone(&limit);
            thread::spawn(move || (0..EACH).for_each(|_| limit.charge(0, 64, || 1)))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let owed_ns = 4 * EACH * 1_000 - DEFAULT_BURST_NS;
    assert_eq!(limit.operations.debt_ticks(0), owed_ns * TICKS_PER_NS);
}

/// How many bytes of long frames pass in some time when each is asked for `late_ns` after it might
/// have passed.
fn passed_when_late(per_s: u64, late_ns: u64, time_ns: u64) -> u64 {
    let limit = RateLimit::new(0, bytes(per_s, None));
    let (mut now_ns, mut passed) = (0, 0);
    while now_ns < time_ns {
        match limit.admit(now_ns) {
            Admission::Now => {
                limit.charge(now_ns, usize::try_from(MAX_FRAME_BYTES).unwrap(), || 1);
                passed += MAX_FRAME_BYTES;
            }
            Admission::Until(then_ns) => now_ns = then_ns + late_ns,
        }
    }
    passed
}

#[test]
fn f5_7_long_frames_pass_at_the_limit_however_late_they_are_asked_for() {
    const TIME_S: u64 = 10;
    for per_s in [125_000, 1_250_000, 12_500_000, 125_000_000] {
        for late_ns in [0, 1_000_000, 20_000_000, 90_000_000] {
            let passed = passed_when_late(per_s, late_ns, TIME_S * NS_PER_S);
            let part = passed as f64 / (per_s * TIME_S) as f64;
            assert!(
                (0.95..1.1).contains(&part),
                "{per_s} B/s, {late_ns} ns late: {part}"
            );
        }
    }
}

#[test]
fn f5_7_packet_of_many_segments_is_charged_for_each() {
    let limit = RateLimit::new(0, packets(1_000, Some(1)));
    limit.charge(0, 65_226, || 45);
    assert_eq!(limit.admit(0), Admission::Until(44_000_000));
    assert_eq!(limit.admit(44_000_000), Admission::Now);
}

#[test]
fn f5_7_backlog_holds_the_longest_frame_and_has_a_bound() {
    for (limits, expected) in [
        (bytes(1, None), MIN_BACKLOG_BYTES),
        (bytes(125_000, None), MIN_BACKLOG_BYTES),
        (bytes(12_500_000, None), 1_250_000),
        (bytes(MAX_BYTES_PER_S, None), MAX_BACKLOG_BYTES),
        (packets(10_000, None), 1_514_000),
        (packets(MAX_OPERATIONS_PER_S, None), MAX_BACKLOG_BYTES),
        (
            Limits {
                bytes: rate(12_500_000, None),
                operations: rate(2_000, None),
            },
            302_800,
        ),
    ] {
        let found = RateLimit::new(0, limits).backlog_bytes();
        assert_eq!(found as u64, expected, "{limits:?}");
    }
}

#[test]
fn limit_beside_others_shares_no_cache_line() {
    assert_eq!(align_of::<RateLimit>(), 128);
}

proptest! {
    /// In any stretch of time that begins with a full bucket, no more passes than the burst, what
    /// the rate allows, and the frame that goes into debt.
    #[test]
    fn no_more_passes_than_rate_and_burst_allow(
        per_s in 1..=MAX_BYTES_PER_S,
        burst in 0..=1_u64 << 40,
        start_ns in any::<u64>(),
        frames in prop::collection::vec((14..=MAX_FRAME_BYTES, 0..2_000_000_u64), 1..400),
    ) {
        // The monotonic clock begins near 0, and the sum of the gaps is small.
        let start_ns = start_ns >> 1;
        let limit = RateLimit::new(start_ns, bytes(per_s, Some(burst)));
        let mut now_ns = start_ns;
        let (mut passed, mut last) = (0_u64, 0);
        for (frame, gap_ns) in frames {
            now_ns += gap_ns;
            if limit.admit(now_ns) == Admission::Now {
                limit.charge(now_ns, usize::try_from(frame).unwrap(), || 1);
                passed += frame;
                last = frame;
            }
        }
        let elapsed_s = (now_ns - start_ns) as f64 / 1e9;
        let earned = per_s as f64 * (elapsed_s + 0.001) * 1.005 + burst as f64;
        let before_last = passed - last;
        prop_assert!(before_last as f64 <= earned + 1.0, "{before_last} of {earned}");
    }

    /// A sender that is never idle gets its rate, whatever the sizes and however late it asks,
    /// as long as it asks before a full bucket overflows.
    #[test]
    fn no_less_passes_than_the_rate_allows(
        per_s in 1_000_000..=MAX_BYTES_PER_S,
        sizes in prop::collection::vec(14..=MAX_FRAME_BYTES, 1..20),
        late_ns in 0..DEFAULT_BURST_NS,
    ) {
        let limit = RateLimit::new(0, bytes(per_s, None));
        let end_ns = 20 * DEFAULT_BURST_NS;
        let (mut now_ns, mut passed) = (0, 0_u64);
        let mut sizes = sizes.iter().cycle();
        let mut asked = 0;
        while now_ns < end_ns && asked < 20_000 {
            asked += 1;
            match limit.admit(now_ns) {
                Admission::Now => {
                    let frame = *sizes.next().unwrap();
                    limit.charge(now_ns, usize::try_from(frame).unwrap(), || 1);
                    passed += frame;
                }
                Admission::Until(then_ns) => now_ns = then_ns + late_ns,
            }
        }
        let allowed = per_s as f64 * now_ns as f64 / 1e9;
        // It may have stopped just before a frame, and slept through a piece of the end.
        let slack = per_s as f64 * late_ns as f64 / 1e9 + MAX_FRAME_BYTES as f64;
        prop_assert!(passed as f64 >= allowed * 0.995 - slack, "{passed} of {allowed}");
    }
}
