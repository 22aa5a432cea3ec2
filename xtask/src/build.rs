//! `cargo xtask build`: the kernel object, then the agent with the object inside.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::workspace::Workspace;
use crate::{process, toolchain};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Log each judged packet; for debugging, never for a release
    #[arg(long)]
    debug_log: bool,
    /// Build the kernel object only
    #[arg(long)]
    no_agent: bool,
}

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let object = object(workspace, arguments.debug_log)?;
    let agent = if arguments.no_agent { None } else { Some(agent(workspace, &object, arguments.debug_log)?) };
    print_size(&object)?;
    agent.as_deref().map_or(Ok(()), print_size)
}

/// Builds the kernel object and returns its path; sets up the BPF toolchain first if it is missing. The object that logs stands
/// beside the other.
pub(crate) fn object(workspace: &Workspace, debug_log: bool) -> Result<PathBuf> {
    let tools = toolchain::ensure(workspace)?;
    let mut build = workspace.bpf_cargo("build", &tools.linker)?;
    if debug_log {
        build.args(["--features", "debug-log"]);
    }
    process::run(&mut build)?;
    let name = if debug_log { "egress-ebpf-debug.o" } else { "egress-ebpf.o" };
    let (built, object) = (workspace.bpf_output(), workspace.target.join(name));
    copy_if_changed(&built, &object)?;
    Ok(object)
}

/// Builds the release agent around the object and returns its path.
pub(crate) fn agent(workspace: &Workspace, object: &Path, debug_log: bool) -> Result<PathBuf> {
    let mut build = workspace.cargo();
    build.args(["build", "--release", "--package", "egress-agent", "--bin", "egress-agent"]);
    if debug_log {
        build.args(["--features", "debug-log"]);
    }
    process::run(build.env("EGRESS_BPF_OBJECT", object))?;
    Ok(workspace.target.join("release").join("egress-agent"))
}

/// Keeps the time stamp of an unchanged object, so that the agent is not rebuilt around it.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if to.exists() && fs::read(to).with_context(|| format!("cannot read {}", to.display()))? == new {
        return Ok(());
    }
    fs::write(to, new).with_context(|| format!("cannot write {}", to.display()))
}

fn print_size(path: &Path) -> Result<()> {
    let size = fs::metadata(path).with_context(|| format!("cannot find {}", path.display()))?.len();
    println!("{} ({size} bytes)", path.display());
    Ok(())
}
