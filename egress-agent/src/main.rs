//! The command line of egress-agent: parse, dispatch, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use egress_agent::cli;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next();
    if cli::completions::is_called(program.as_deref()) {
        return cli::completions::answer(arguments);
    }
    if cli::plugin::is_called(program.as_deref()) {
        return cli::plugin::run(&cli::plugin::Plugin::parse());
    }
    cli::run(cli::Cli::parse())
}
