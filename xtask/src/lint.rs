//! `cargo xtask lint`: formatting and lints of every crate.

use std::process::Command;

use anyhow::Result;

use crate::workspace::Workspace;
use crate::{process, toolchain};

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    process::run(&mut formatting(workspace))?;
    process::run(&mut host_lints(workspace, &[]))?;
    process::run(&mut host_lints(workspace, &["--package", "egress-tests"]))?;
    let tools = toolchain::ensure(workspace)?;
    process::run(workspace.bpf_cargo("clippy", &tools.linker)?.args(["--", "-D", "warnings"]))
}

pub(crate) fn formatting(workspace: &Workspace) -> Command {
    let mut command = workspace.cargo();
    command.args(["fmt", "--all", "--check"]);
    command
}

/// Returns clippy for the default members, or for the packages selected by the arguments.
pub(crate) fn host_lints(workspace: &Workspace, packages: &[&str]) -> Command {
    let mut command = workspace.cargo();
    command.args(["clippy", "--all-targets"]).args(packages).args(["--", "-D", "warnings"]);
    command
}
