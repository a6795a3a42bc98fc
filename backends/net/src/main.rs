// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ringside-net`: a vhost-user network device back-end.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use ringside_common::cli::Endpoint;
use ringside_common::daemon::{Control, Source, serve_all};
use ringside_common::worker::WorkerOptions;
use ringside_net::capture::CaptureControl;
use ringside_net::device::NetDevice;
use ringside_net::hub::{Fabric, Hub};
use ringside_net::link::tap::TapSpec;
use ringside_net::link::{Link, LinkSpec};
use ringside_net::mac_table::{MacTable, PortId};
use ringside_net::port::{Port, PortOptions};

#[derive(Parser)]
struct Args {
    #[arg(long)]
    socket_path: Vec<PathBuf>,
    #[arg(long)]
    connect: Vec<PathBuf>,
    #[arg(long, default_value = "switch")]
    backend: String,
    #[arg(long)]
    uplink: Option<String>,
    #[arg(long, default_value_t = 8)]
    queue_pairs: u16,
    #[arg(long, default_value_t = 1024)]
    queue_size: u16,
    #[arg(long, default_value_t = 50)]
    poll_us: u64,
    #[arg(long)]
    mtu: Option<u16>,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

fn link(text: &str) -> LinkSpec {
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    let (name, netns) = rest.split_once(",netns=").unwrap_or((rest, ""));
    let netns = (!netns.is_empty()).then(|| PathBuf::from(format!("/run/netns/{netns}")));
    match kind {
        "tap" => LinkSpec::Tap(TapSpec::Interface {
            name: name.into(),
            netns,
        }),
        "packet" => LinkSpec::Packet {
            interface: name.into(),
            netns,
        },
        "dgram" => LinkSpec::Dgram {
            path: name.into(),
            local: None,
        },
        _ => LinkSpec::Stream { path: name.into() },
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let _ = ringside_common::logging::init_logging(log::LevelFilter::Info);
    let (fabric, spec) = match args.backend.split_once(':').unwrap_or((&args.backend, "")) {
        ("switch", _) => (Fabric::Switch, args.uplink.as_deref().map(link)),
        ("null", "") => (Fabric::Null { generate: None }, None),
        ("null", n) => (
            Fabric::Null {
                generate: Some(n.parse()?),
            },
            None,
        ),
        ("loopback", _) => (Fabric::Loopback, None),
        _ => (Fabric::Wire, Some(link(&args.backend))),
    };
    let pairs = args.queue_pairs;
    let link_pairs = match (&spec, fabric) {
        (Some(LinkSpec::Tap(_)), Fabric::Wire) => pairs,
        _ => 1,
    };
    let link = spec.map(|spec| Link::open(&spec, link_pairs)).transpose()?;
    let control = Control::new()?;
    let endpoints: Vec<_> = args
        .socket_path
        .into_iter()
        .map(|path| Endpoint::Listen {
            path,
            mode: 0o600,
            group: None,
        })
        .chain(args.connect.into_iter().map(Endpoint::Connect))
        .collect();
    let ports: Vec<_> = (0..)
        .zip(&endpoints)
        .map(|(n, _)| {
            let options = PortOptions {
                name: format!("port{n}"),
                mtu: args.mtu,
                ..PortOptions::default()
            };
            Arc::new(Port::new(PortId(n), options, pairs, Arc::default()))
        })
        .collect();
    let capture = CaptureControl::new(ports.iter().map(|p| p.options.name.clone()).collect());
    let table = MacTable::new(8192, ports.len() + 1, 300);
    let hub = Hub::new(
        fabric,
        link,
        ports.clone(),
        table,
        Arc::clone(capture.capture()),
    )?;
    let mut devices = Vec::new();
    for (endpoint, port) in endpoints.into_iter().zip(ports) {
        let device = Arc::new(NetDevice::new(port, Arc::clone(&hub), args.queue_size));
        devices.push((device, Source::of(endpoint)?));
    }
    let workers = WorkerOptions {
        max_threads: args.threads,
        cpus: Vec::new(),
        max_poll_ns: args.poll_us * 1000,
    };
    serve_all(devices, &workers, &control)?;
    Ok(())
}
