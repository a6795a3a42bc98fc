// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ringside-net`: a vhost-user network device back-end.
//!
//! Exit codes: 0 after SIGTERM or when all inherited connections have ended, 1 when it could not
//! start or go on, 2 for a bad command line,
//! 3 when a data thread has failed, 4 when requests in flight did not end in time.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory as _, Parser as _};
use ringside_common::cli::exit_code;
use ringside_common::daemon::{Control, Source, raise_descriptor_limit, serve_all};
use ringside_common::logging::init_logging;
use ringside_common::management::{ManagementSockets, Services};
use ringside_net::manage::NetManagement;
use ringside_net::network::Network;
use ringside_net::options::{Action, CAPABILITIES, Options};

fn main() -> ExitCode {
    exit_code("ringside-net", run(Options::parse()).map(|()| 0))
}

fn run(options: Options) -> Result<(), Box<dyn Error>> {
    if let Some(Action::Ctl(ctl)) = options.command {
        writeln!(std::io::stdout(), "{}", ctl.run()?)?;
        return Ok(());
    }
    if options.common.print(CAPABILITIES, Options::command())? {
        return Ok(());
    }
    init_logging(options.common.log_level.into())?;
    let config = options.into_config()?;
    let workers = config.common.workers();
    let control = Arc::new(Control::new()?);
    let sockets = ManagementSockets::bind(
        config.common.control_socket.as_deref(),
        config.common.metrics.as_ref(),
    )?;
    let what = config.to_string();
    let (network, served) = Network::open(config)?;
    let served = served
        .into_iter()
        .map(|(device, endpoint)| Ok((device, Source::of(endpoint)?)))
        .collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    let capture = Arc::clone(network.capture());
    let methods = NetManagement::new(Arc::clone(&network) as _, capture);
    let services = Services {
        program: "ringside-net",
        version: env!("CARGO_PKG_VERSION"),
        devices: network.counters(),
        manage: vec![Arc::new(methods), Arc::clone(&control) as _],
    };
    let management = sockets.spawn(services, || {})?;
    log::info!("serving {what}, no sandbox");
    raise_descriptor_limit();
    serve_all(served, &workers, &control)?;
    drop(management);
    Ok(())
}
