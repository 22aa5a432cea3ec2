//! The command line: one file a subcommand. Exit codes: 0 clean, 1 findings or denied, 2 could not run.

pub mod agent;
pub mod completions;
pub mod controller;
pub mod diff;
pub mod doctor;
mod documents;
pub mod exceptions;
pub mod explain;
pub mod flags;
pub mod fmt;
pub mod generate;
pub mod observe;
pub mod parity;
pub mod plugin;
pub mod ranges;
pub mod recommend;
pub mod schema;
pub mod smoke;
pub mod status;
pub mod top;
pub mod unload;
pub mod validate;
pub mod webhook;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser, Subcommand};

use self::validate::report::one_line;

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
    /// Publish clouds' address ranges for the agents of a cluster
    Controller(Box<controller::Arguments>),
    /// Write the JSON Schema of the policy document
    Schema,
    /// Say how this node's agent does: its pods, their policies, what is degraded
    Status(status::Arguments),
    /// Say what this node's agent denies, audits and, on request, allows, as it happens
    Observe(observe::Arguments),
    /// Show what this node's pods send and are denied, as it happens
    Top(top::Arguments),
    /// Propose the least policies that cover what pods were seen to send
    Recommend(recommend::Arguments),
    /// Say what is wrong on this node or in the cluster, how it shows, and what mends it
    Doctor(Box<doctor::Arguments>),
    /// Prove from inside a pod what its policies let pass and what they deny
    Smoke(Box<smoke::Arguments>),
    /// Say what the policies say about flows, and why
    Explain(Box<explain::Arguments>),
    /// Say what is wrong in policies and manifests
    Validate(validate::Arguments),
    /// Write policies in their canonical form
    Fmt(fmt::Arguments),
    /// Say what a change of policies opens and closes
    Diff(diff::Arguments),
    /// Write the policies in the words of other tools
    Generate(Box<generate::Arguments>),
    /// Say where generated NetworkPolicies differ from what the kernel enforces
    Parity(Box<parity::Arguments>),
    /// Tell of the exceptions that policies make: who answers for each, why, until when
    Exceptions(exceptions::Arguments),
    /// Say what providers publish: which addresses a service has, and what changes
    Ranges(ranges::Arguments),
    /// Remove everything an agent left in the kernel; enforcement ends
    Unload(unload::Arguments),
    /// Write what a shell needs to complete command lines
    Completions(completions::Arguments),
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
        Command::Controller(arguments) => {
            abort_on_panic();
            controller::run(&arguments)
        }
        Command::Schema => schema::run(),
        Command::Status(arguments) => status::run(&arguments),
        Command::Observe(arguments) => observe::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Recommend(arguments) => recommend::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Smoke(arguments) => smoke::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Validate(arguments) => validate::run(&arguments),
        Command::Fmt(arguments) => fmt::run(&arguments),
        Command::Diff(arguments) => diff::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Parity(arguments) => parity::run(&arguments),
        Command::Exceptions(arguments) => exceptions::run(&arguments),
        Command::Ranges(arguments) => ranges::run(&arguments),
        Command::Unload(arguments) => unload::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments, Cli::command(), "egress-agent"),
    };
    result.unwrap_or_else(|error| {
        complain(&error);
        ExitCode::from(COULD_NOT_RUN)
    })
}

/// Writes to standard output. Whoever does not read on has had enough.
fn write(text: &str) -> io::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Tells of an error, on one line: it may have names of files in it, and others chose those.
fn complain(error: &anyhow::Error) {
    eprintln!("error: {}", one_line(&format!("{error:#}")));
}

/// Reads a time as seconds since the epoch.
fn second(text: &str) -> Result<u64, String> {
    let timestamp: jiff::Timestamp =
        text.parse().map_err(|_| "write it like 2027-03-31T12:00:00Z".to_owned())?;
    u64::try_from(timestamp.as_second()).map_err(|_| "no time before 1970".to_owned())
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
