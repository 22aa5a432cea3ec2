//! `kubectl egress`: asks the agents of a cluster, each in its pod, with the access of whoever runs it.

mod cluster;
mod merge;
mod observe;
mod recommend;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::cluster::Cluster;

/// Could not run, as for egress-agent itself.
const COULD_NOT_RUN: u8 = 2;

/// Ask the egress agents of a cluster
#[derive(Debug, Parser)]
#[command(
    name = "kubectl egress",
    bin_name = "kubectl egress",
    version,
    after_help = "It runs kubectl, so whoever uses it needs the rights to list pods and to exec into those of the agents.\n\
    Exit codes: 0 as it should be, 2 could not run, or not everywhere."
)]
struct Arguments {
    #[command(flatten)]
    cluster: Cluster,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what agents deny, audit and, on request, allow, as it happens
    Observe(observe::Arguments),
    /// Propose the least policies that cover what pods were seen to send
    Recommend(recommend::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(anyhow::Error::from).and_then(|runtime| match &arguments.command {
        Command::Observe(observe) => runtime.block_on(observe::run(&arguments.cluster, observe)),
        Command::Recommend(recommend) => runtime.block_on(recommend::run(&arguments.cluster, recommend)),
    });
    result.unwrap_or_else(|error| {
        eprintln!("error: {}", merge::plain(&format!("{error:#}")));
        ExitCode::from(COULD_NOT_RUN)
    })
}
