//! The command line of egress-agent: parse, dispatch, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use egress_agent::cli;

fn main() -> ExitCode {
    if cli::plugin::is_called(std::env::args_os().next().as_deref()) {
        return cli::plugin::run(&cli::plugin::Plugin::parse());
    }
    cli::run(cli::Cli::parse())
}
