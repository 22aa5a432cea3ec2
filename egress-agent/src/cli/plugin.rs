//! What egress-agent does under the name `kubectl-egress`, as `kubectl egress`: it asks the agents of a cluster, each in its pod, with the
//! access of whoever runs it.

mod cluster;
mod follow;
mod merge;
mod observe;
mod recommend;
mod top;

use std::{ffi::OsStr, path::Path, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};

use super::{COULD_NOT_RUN, complain, completions, status};

/// Ask the egress agents of a cluster
#[derive(Debug, Parser)]
#[command(
    name = "kubectl egress",
    bin_name = "kubectl egress",
    version,
    after_help = "Observe, top and recommend run kubectl, so whoever uses them needs the rights to list pods and to exec into those of the agents.\n\
    Exit codes: 0 as it should be, 1 something is not, 2 could not run, or not everywhere."
)]
pub struct Plugin {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what is in force of each policy, and on how many nodes
    Status(status::Arguments),
    /// Say what agents deny, audit and, on request, allow, as it happens
    Observe(observe::Arguments),
    /// Show what pods send and are denied, as it happens
    Top(top::Arguments),
    /// Propose the least policies that cover what pods were seen to send
    Recommend(recommend::Arguments),
    /// Write what a shell needs to complete the command lines of kubectl-egress; kubectl itself asks kubectl_complete-egress
    Completions(completions::Arguments),
}

/// Returns whether a program of this name was called as a plugin of kubectl.
#[must_use]
pub fn is_called(program: Option<&OsStr>) -> bool {
    let name = program.and_then(|program| Path::new(program).file_name()).and_then(OsStr::to_str);
    name.is_some_and(|name| name.starts_with("kubectl-egress"))
}

/// Runs the command line and returns its exit code. Errors go to standard error, with the chain of their causes.
#[must_use]
pub fn run(plugin: &Plugin) -> ExitCode {
    let result = match &plugin.command {
        Command::Status(arguments) => status::run(arguments),
        Command::Observe(arguments) => {
            turning().and_then(|runtime| runtime.block_on(observe::run(arguments)))
        }
        Command::Top(arguments) => turning().and_then(|runtime| runtime.block_on(top::run(arguments))),
        Command::Recommend(arguments) => {
            turning().and_then(|runtime| runtime.block_on(recommend::run(arguments)))
        }
        Command::Completions(arguments) => completions::run(arguments, Plugin::command(), "kubectl-egress"),
    };
    result.unwrap_or_else(|error| {
        complain(&error);
        ExitCode::from(COULD_NOT_RUN)
    })
}

fn turning() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
