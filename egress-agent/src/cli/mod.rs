//! The command line: one file a subcommand. Exit codes: 0 clean, 1 findings or denied, 2 could not run.

pub mod agent;
pub mod explain;
pub mod schema;
pub mod status;
pub mod unload;
pub mod validate;
pub mod webhook;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Could not run.
pub const COULD_NOT_RUN: u8 = 2;

/// Per-pod egress control for Kubernetes, enforced in the kernel
#[derive(Debug, Parser)]
#[command(
    name = "egress-agent",
    version,
    after_help = "Exit codes: 0 clean, 1 findings or denied, 2 could not run."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Enforce policies on this node's pods
    Agent(Box<agent::Arguments>),
    /// Tell the API server which policies may be written
    Webhook(Box<webhook::Arguments>),
    /// Write the JSON Schema of the policy document
    Schema,
    /// Say how this node's agent does: its pods, their policies, what is degraded
    Status(status::Arguments),
    /// Say what the policies say about flows, and why
    Explain(Box<explain::Arguments>),
    /// Say what is wrong in policies and manifests
    Validate(validate::Arguments),
    /// Remove everything an agent left in the kernel; enforcement ends
    Unload(unload::Arguments),
}

/// Runs the command line and returns its exit code. Errors go to standard error, with the chain of their causes.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Agent(arguments) => {
            abort_on_panic();
            agent::run(&arguments)
        }
        Command::Webhook(arguments) => webhook::run(&arguments),
        Command::Schema => schema::run(),
        Command::Status(arguments) => status::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Validate(arguments) => validate::run(&arguments),
        Command::Unload(arguments) => unload::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(COULD_NOT_RUN)
    })
}

/// Has a panic end the process at once.
///
/// The build unwinds, because the webhook must refuse a policy whose judgement panics, and go on. The agent is another matter: what
/// is half done there is nothing to build on, and the kernel enforces while it starts again.
fn abort_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}
