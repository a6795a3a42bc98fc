// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A list of CPUs as `taskset --cpu-list` and the kernel write it.

use std::num::ParseIntError;
use std::str::FromStr;

use thiserror::Error;

/// The kernel's `CPU_SETSIZE`: the fixed-size CPU set cannot name a CPU beyond it.
const MAX_CPUS: usize = 1024;

/// Why a list of CPUs was not understood.
#[derive(Debug, Error, Eq, PartialEq)]
#[non_exhaustive]
pub enum CpuListError {
    /// Part of it is not a number.
    #[error("not a list of CPU numbers like 0-3,5")]
    Number(#[from] ParseIntError),
    /// A range runs backwards.
    #[error("the range {first}-{last} is empty")]
    EmptyRange {
        /// Where it starts.
        first: usize,
        /// Where it ends.
        last: usize,
    },
    /// A CPU number is beyond what the kernel knows.
    #[error("CPU {cpu} is not below {MAX_CPUS}")]
    TooLarge {
        /// The number.
        cpu: usize,
    },
    /// A CPU is named twice.
    #[error("CPU {cpu} is named twice")]
    Twice {
        /// The number.
        cpu: usize,
    },
}

/// CPU numbers in the order in which they were written; never empty, no number twice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CpuList(Vec<usize>);

impl CpuList {
    /// The CPU numbers.
    pub fn into_inner(self) -> Vec<usize> {
        self.0
    }
}

impl FromStr for CpuList {
    type Err = CpuListError;

    fn from_str(list: &str) -> Result<Self, Self::Err> {
        let mut cpus = Vec::new();
        for part in list.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (usize, usize) = (first.trim().parse()?, last.trim().parse()?);
            if first > last {
                return Err(CpuListError::EmptyRange { first, last });
            }
            if last >= MAX_CPUS {
                return Err(CpuListError::TooLarge { cpu: last });
            }
            for cpu in first..=last {
                if cpus.contains(&cpu) {
                    return Err(CpuListError::Twice { cpu });
                }
                cpus.push(cpu);
            }
        }
        Ok(Self(cpus))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_of_numbers_and_ranges_keeps_its_order() {
        for (text, expected) in [
            ("0", vec![0]),
            ("5,0-3", vec![5, 0, 1, 2, 3]),
            ("7-7", vec![7]),
            ("0, 2", vec![0, 2]),
            ("1023", vec![1023]),
        ] {
            assert_eq!(
                text.parse::<CpuList>().map(CpuList::into_inner),
                Ok(expected),
                "{text}"
            );
        }
    }

    #[test]
    fn list_with_a_fault_names_it() {
        assert_eq!(
            "3-1".parse::<CpuList>(),
            Err(CpuListError::EmptyRange { first: 3, last: 1 })
        );
        assert_eq!(
            "1024".parse::<CpuList>(),
            Err(CpuListError::TooLarge { cpu: 1024 })
        );
        assert_eq!(
            "0-3,2".parse::<CpuList>(),
            Err(CpuListError::Twice { cpu: 2 })
        );
        let huge = format!("0-{}", usize::MAX);
        assert_eq!(
            huge.parse::<CpuList>(),
            Err(CpuListError::TooLarge { cpu: usize::MAX })
        );
        for text in ["", ",", "a", "-1", "1-", "0-3-5", "0x1", "1,,2"] {
            let error = text.parse::<CpuList>().unwrap_err();
            assert!(matches!(error, CpuListError::Number(_)), "{text}: {error}");
        }
    }
}
