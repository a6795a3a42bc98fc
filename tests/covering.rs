// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cases of a matrix: all of them, or so few that every pair of values still meets.

/// If set, suites run all cases of their matrix.
pub const FULL_VARIABLE: &str = "RINGSIDE_FULL_MATRIX";

/// The cases to run of a matrix with that many values per factor.
#[must_use]
pub fn cases<const N: usize>(values: [usize; N]) -> Vec<[usize; N]> {
    if std::env::var_os(FULL_VARIABLE).is_some() {
        all(values)
    } else {
        pairwise(values)
    }
}

/// All cases.
#[must_use]
pub fn all<const N: usize>(values: [usize; N]) -> Vec<[usize; N]> {
    let count = values.iter().product::<usize>();
    (0..count)
        .map(|mut number| {
            values.map(|of| {
                let value = number % of;
                number /= of;
                value
            })
        })
        .collect()
}

/// Few cases in which any two values of any two factors meet: each time the one with the most
/// pairs that have not met.
#[must_use]
pub fn pairwise<const N: usize>(values: [usize; N]) -> Vec<[usize; N]> {
    let all = all(values);
    let mut missing: Vec<_> = all.iter().flat_map(pairs).collect();
    missing.sort_unstable();
    missing.dedup();
    let mut chosen = Vec::new();
    let news = |case: &[usize; N], missing: &[_]| {
        let is_new = |pair: &(usize, usize, usize, usize)| missing.binary_search(pair).is_ok();
        pairs(case).filter(is_new).count()
    };
    while !missing.is_empty()
        && let Some(best) = all.iter().max_by_key(|case| news(case, &missing))
    {
        missing.retain(|pair| !pairs(best).any(|met| met == *pair));
        chosen.push(*best);
    }
    chosen
}

/// Two factors and their values each.
fn pairs<const N: usize>(case: &[usize; N]) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    (0..N).flat_map(move |a| (a + 1..N).map(move |b| (a, case[a], b, case[b])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairwise_lets_all_pairs_meet_in_few_cases() {
        let values = [2, 2, 3, 3, 3];
        let chosen = pairwise(values);
        for wanted in all(values).iter().flat_map(pairs) {
            assert!(chosen.iter().flat_map(pairs).any(|met| met == wanted));
        }
        assert_eq!(all(values).len(), 108);
        assert!((9..=15).contains(&chosen.len()), "{}", chosen.len());
    }
}
