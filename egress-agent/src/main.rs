//! The command line of egress-agent: parse, dispatch, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use egress_agent::cli;

fn main() -> ExitCode {
    cli::run(cli::Cli::parse())
}
