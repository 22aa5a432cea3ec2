//! `cargo xtask demo`: builds the agent and the demo, and runs it as root.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::workspace::Workspace;
use crate::{apt, build, process};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How to print what is seen
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// A table and prose
    Table,
    /// One JSON object, with the prose on standard error
    Json,
}

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let is_root = fs::metadata("/proc/self").context("cannot read /proc/self")?.uid() == 0;
    apt::ensure_program("ip", "iproute2", is_root).context("the demo joins network namespaces with `ip`")?;
    let object = build::object(workspace, false)?;
    let agent = build::agent(workspace, &object, false)?;
    let mut bins = workspace.cargo();
    bins.args(["build", "--release", "--package", "egress-tests", "--bin", "demo", "--bin", "podrun"]);
    process::run(bins.env("EGRESS_BPF_OBJECT", &object))?;
    let program = workspace.target.join("release").join("demo");
    let format = match arguments.output {
        Output::Table => "table",
        Output::Json => "json",
    };
    let mut demo = if is_root {
        let mut demo = Command::new(&program);
        demo.env("EGRESS_AGENT_BIN", &agent);
        demo
    } else {
        // By argument, since sudo may be set up to pass no variables on.
        let mut demo = Command::new("sudo");
        demo.arg("env").arg(format!("EGRESS_AGENT_BIN={}", agent.display())).arg(&program);
        demo
    };
    demo.args(["-o", format]).current_dir(&workspace.root);
    let name = process::line(&demo);
    let status = demo.status().with_context(|| format!("cannot start `{name}`"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
