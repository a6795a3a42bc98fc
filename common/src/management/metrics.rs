// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The counters as `OpenMetrics` text, which Prometheus reads.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::devices::{Family, FamilyKind, Sample};
use super::protocol::Services;
use crate::stats::{DeviceSnapshot, LatencySnapshot, OperationSnapshot, QueueSnapshot};

/// The content type of [`encode`]'s text.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const NS_PER_SECOND: f64 = 1e9;

/// Encodes every counter.
pub(super) fn encode(services: &Services) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("ringside");
    let devices = services.devices.iter().map(|(port, view)| Device {
        port: port.map(str::to_owned),
        counters: view.stats.snapshot(),
        families: view
            .counters
            .as_ref()
            .map(|counters| counters.families())
            .unwrap_or_default(),
    });
    registry.register_collector(Box::new(Snapshot {
        devices: devices.collect(),
        program: services.program,
        version: services.version,
    }));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Snapshot {
    devices: Vec<Device>,
    program: &'static str,
    version: &'static str,
}

#[derive(Debug)]
struct Device {
    port: Option<String>,
    counters: DeviceSnapshot,
    families: Vec<Family>,
}

type Labels<'a> = Vec<(&'a str, &'a str)>;

impl Device {
    /// What tells the values of this device from those of others, and then `more`.
    fn labels<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Labels<'a> {
        let port = self.port.as_deref().map(|port| ("port", port));
        let device = [("device", self.counters.device)];
        device
            .into_iter()
            .chain(port)
            .chain(more.iter().copied())
            .collect()
    }
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
        self.latency(&mut encoder)?;
        self.families(&mut encoder)
    }
}

impl Snapshot {
    fn build(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let device = self
            .devices
            .first()
            .map_or("", |device| device.counters.device);
        encoder
            .encode_descriptor("build", "The program", None, MetricType::Info)?
            .encode_info(&[
                ("device", device),
                ("program", self.program),
                ("version", self.version),
            ])
    }

    /// Calls `f` with each vring and its labels.
    fn each_queue(
        &self,
        mut f: impl FnMut(&QueueSnapshot, &Labels<'_>) -> fmt::Result,
    ) -> fmt::Result {
        for device in &self.devices {
            for queue in &device.counters.queues {
                let index = queue.queue.to_string();
                f(queue, &device.labels(&[("queue", &index)]))?;
            }
        }
        Ok(())
    }

    /// Calls `f` with each kind of operation of each vring and its labels.
    fn each_operation(
        &self,
        mut f: impl FnMut(&OperationSnapshot, &Labels<'_>) -> fmt::Result,
    ) -> fmt::Result {
        self.each_queue(|queue, labels| {
            for op in &queue.operations {
                let mut labels = labels.clone();
                labels.push(("op", op.op));
                f(op, &labels)?;
            }
            Ok(())
        })
    }

    fn queue_counter(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help, value): CounterOf<QueueSnapshot>,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        self.each_queue(|queue, labels| {
            ConstCounter::new(value(queue)).encode(metric.encode_family(labels)?)
        })
    }

    fn in_flight(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Chains taken and not yet returned";
        let mut metric = encoder.encode_descriptor("in_flight", help, None, MetricType::Gauge)?;
        self.each_queue(|queue, labels| {
            ConstGauge::new(queue.in_flight).encode(metric.encode_family(labels)?)
        })
    }

    fn operation_counter(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help, value): CounterOf<OperationSnapshot>,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        self.each_operation(|op, labels| {
            ConstCounter::new(value(op)).encode(metric.encode_family(labels)?)
        })
    }

    fn latency(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(
            "request_latency",
            "Time from the chain being taken to its used element",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        self.each_operation(|op, labels| {
            metric
                .encode_family(labels)?
                .encode_histogram::<NoLabelSet>(
                    seconds(op.latency.sum_ns),
                    op.operations,
                    &buckets(&op.latency),
                    None,
                )
        })
    }

    /// What only this kind of device counts. A family is written once, with the values of all
    /// devices; all of them name the same.
    fn families(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let first = self.devices.first();
        for family in first.map_or(&[][..], |device| &device.families) {
            let Family {
                name, help, kind, ..
            } = family;
            let mut metric = encoder.encode_descriptor(name, help, None, metric_type(*kind))?;
            for device in &self.devices {
                device.encode_samples(&mut metric, family)?;
            }
        }
        Ok(())
    }
}

impl Device {
    /// The values this device has for a family of that name.
    fn encode_samples(&self, metric: &mut MetricEncoder<'_>, family: &Family) -> fmt::Result {
        let same = self.families.iter().find(|own| own.name == family.name);
        for Sample { labels, value } in same.map_or(&[][..], |own| &own.samples) {
            let more = labels.iter().map(|(key, value)| (*key, value.as_str()));
            let labels = self.labels(&more.collect::<Labels<'_>>());
            let metric = metric.encode_family(&labels)?;
            match family.kind {
                FamilyKind::Counter => ConstCounter::new(*value).encode(metric)?,
                FamilyKind::Gauge => ConstGauge::new(*value).encode(metric)?,
            }
        }
        Ok(())
    }
}

fn metric_type(kind: FamilyKind) -> MetricType {
    match kind {
        FamilyKind::Counter => MetricType::Counter,
        FamilyKind::Gauge => MetricType::Gauge,
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

/// Loses precision above 2^53 ns (104 days), where single nanoseconds do not matter.
fn seconds(ns: u64) -> f64 {
    ns as f64 / NS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use super::super::devices::tests::two_ports;
    use super::super::protocol::tests::services;
    use super::*;

    #[test]
    fn encode_names_and_labels_are_stable() {
        let services = services();
        let queue = services.stats().queue(0);
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
            services.stats().queue(0).record(1, 0, true, ns);
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

    #[test]
    fn encode_of_ports_labels_them_and_names_each_family_once() {
        let services = Services {
            devices: two_ports(),
            ..services()
        };
        for (_, device) in services.devices.iter() {
            device.stats.queue(2).add_kick();
            device.stats.queue(2).record(0, 1, true, 1);
        }

        let text = encode(&services).unwrap();

        for line in [
            r#"ringside_build_info{device="net",program="ringside-test",version="1.2.3"} 1"#,
            r#"ringside_kicks_total{device="net",port="vm0",queue="2"} 1"#,
            r#"ringside_requests_total{device="net",port="vm1",queue="2",op="ctrl"} 1"#,
            r#"ringside_sheep_total{device="net",port="vm0",color="white"} 5"#,
            r#"ringside_sheep_total{device="net",port="vm1",color="black"} 1"#,
            r#"ringside_awake{device="net",port="vm1",color=""} 0"#,
        ] {
            assert!(text.lines().any(|got| got == line), "{line}\n{text}");
        }
        for family in [
            "kicks",
            "sheep",
            "awake",
            "build",
            "request_latency_seconds",
        ] {
            let line = format!("# TYPE ringside_{family} ");
            assert_eq!(text.matches(&line).count(), 1, "{family}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
