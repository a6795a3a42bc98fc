// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The counters as `OpenMetrics` text, which Prometheus reads.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::protocol::Services;
use crate::stats::{DeviceSnapshot, LatencySnapshot, OperationSnapshot, QueueSnapshot};

/// The content type of [`encode`]'s text.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const NS_PER_SECOND: f64 = 1e9;

/// Encodes every counter.
pub(super) fn encode(services: &Services) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("ringside");
    registry.register_collector(Box::new(Snapshot {
        device: services.stats.snapshot(),
        program: services.program,
        version: services.version,
    }));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Snapshot {
    device: DeviceSnapshot,
    program: &'static str,
    version: &'static str,
}

type CounterOf<T> = (&'static str, &'static str, fn(&T) -> u64);

/// Counters of a vring: name, help, value.
const PER_QUEUE: &[CounterOf<QueueSnapshot>] = &[
    ("kicks", "Notifications from the driver", |queue| {
        queue.kicks
    }),
    ("calls", "Notifications to the driver", |queue| queue.calls),
    (
        "calls_suppressed",
        "Batches for which the driver wanted no notification",
        |queue| queue.calls_suppressed,
    ),
    ("chains", "Descriptor chains taken", |queue| queue.chains),
    (
        "malformed_chains",
        "Descriptor chains that broke the rules",
        |queue| queue.malformed_chains,
    ),
    (
        "poll_hits",
        "Rounds of busy polling that found work",
        |queue| queue.poll_hits,
    ),
    (
        "poll_misses",
        "Rounds of busy polling that ended in a wait",
        |queue| queue.poll_misses,
    ),
];

/// Counters of one kind of operation on a vring: name, help, value.
const PER_OPERATION: &[CounterOf<OperationSnapshot>] = &[
    (
        "requests",
        "Completed requests, failed ones included",
        |op| op.operations,
    ),
    ("bytes", "Bytes moved by requests", |op| op.bytes),
    ("errors", "Failed requests", |op| op.errors),
];

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.build(&mut encoder)?;
        for counter in PER_QUEUE {
            self.queue_counter(&mut encoder, *counter)?;
        }
        self.in_flight(&mut encoder)?;
        for counter in PER_OPERATION {
            self.operation_counter(&mut encoder, *counter)?;
        }
        self.latency(&mut encoder)
    }
}

impl Snapshot {
    fn build(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        encoder
            .encode_descriptor("build", "The program", None, MetricType::Info)?
            .encode_info(&[
                ("device", self.device.device),
                ("program", self.program),
                ("version", self.version),
            ])
    }

    fn queue_counter(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help, value): CounterOf<QueueSnapshot>,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for queue in &self.device.queues {
            let index = queue.queue.to_string();
            let labels = [("device", self.device.device), ("queue", index.as_str())];
            ConstCounter::new(value(queue)).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn in_flight(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Chains taken and not yet returned";
        let mut metric = encoder.encode_descriptor("in_flight", help, None, MetricType::Gauge)?;
        for queue in &self.device.queues {
            let index = queue.queue.to_string();
            let labels = [("device", self.device.device), ("queue", index.as_str())];
            ConstGauge::new(queue.in_flight).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn operation_counter(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help, value): CounterOf<OperationSnapshot>,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for queue in &self.device.queues {
            let index = queue.queue.to_string();
            for op in &queue.operations {
                let labels = [
                    ("device", self.device.device),
                    ("queue", index.as_str()),
                    ("op", op.op),
                ];
                ConstCounter::new(value(op)).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn latency(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(
            "request_latency",
            "Time from the chain being taken to its used element",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for queue in &self.device.queues {
            let index = queue.queue.to_string();
            for op in &queue.operations {
                let labels = [
                    ("device", self.device.device),
                    ("queue", index.as_str()),
                    ("op", op.op),
                ];
                let sum = seconds(op.latency.sum_ns);
                metric
                    .encode_family(&labels)?
                    .encode_histogram::<NoLabelSet>(
                        sum,
                        op.operations,
                        &buckets(&op.latency),
                        None,
                    )?;
            }
        }
        Ok(())
    }
}

fn buckets(latency: &LatencySnapshot) -> Vec<(f64, u64)> {
    let bound = |ns: Option<u64>| ns.map_or(f64::INFINITY, seconds);
    latency
        .buckets
        .iter()
        .map(|bucket| (bound(bucket.upper_bound_ns), bucket.count))
        .collect()
}

/// Loses precision above 2^53 ns (104 days), where nobody asks for single nanoseconds.
fn seconds(ns: u64) -> f64 {
    ns as f64 / NS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use super::super::protocol::tests::services;
    use super::*;

    #[test]
    fn encode_names_and_labels_are_stable() {
        let services = services();
        let queue = services.stats.queue(0);
        queue.add_kick();
        queue.set_in_flight(3);
        queue.record(0, 4096, true, 1_000);
        queue.record(0, 4096, false, 3_000);

        let text = encode(&services).unwrap();

        for line in [
            r#"ringside_build_info{device="blk",program="ringside-test",version="1.2.3"} 1"#,
            r#"ringside_kicks_total{device="blk",queue="0"} 1"#,
            r#"ringside_in_flight{device="blk",queue="0"} 3"#,
            r#"ringside_requests_total{device="blk",queue="0",op="read"} 2"#,
            r#"ringside_bytes_total{device="blk",queue="0",op="read"} 8192"#,
            r#"ringside_errors_total{device="blk",queue="0",op="read"} 1"#,
            "# TYPE ringside_request_latency_seconds histogram",
            r#"ringside_request_latency_seconds_sum{device="blk",queue="0",op="read"} 0.000004"#,
            r#"ringside_request_latency_seconds_count{device="blk",queue="0",op="read"} 2"#,
        ] {
            assert!(text.lines().any(|got| got == line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn encode_of_histogram_is_cumulative_and_ends_with_all() {
        let services = services();
        for ns in [100, 1_000, 1_000_000, 1 << 40] {
            services.stats.queue(0).record(1, 0, true, ns);
        }
        let text = encode(&services).unwrap();
        let counts: Vec<u64> = text
            .lines()
            .filter(|line| line.contains("seconds_bucket"))
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(counts.len(), 30);
        assert!(counts.is_sorted(), "{counts:?}");
        assert_eq!((counts[0], counts[28], counts[29]), (1, 3, 4));
        assert!(text.contains(r#"{le="+Inf",device="blk",queue="0",op="write"} 4"#));
    }
}
