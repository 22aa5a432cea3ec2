//! `cargo xtask demo`: builds the agent and the demo, and runs it as root.

use std::os::unix::fs::MetadataExt;
use std::process::{Command, ExitCode, Stdio};
use std::{fs, io};

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;
use crate::{build, process};

/// What puts `ip` on the machine.
const INSTALL_IP: [&str; 5] = ["apt-get", "install", "--yes", "--no-install-recommends", "iproute2"];

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
    ensure_ip(is_root)?;
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

/// Checks that `ip` is there, and installs it if it is not and we may.
fn ensure_ip(is_root: bool) -> Result<()> {
    let found = Command::new("ip").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match found {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).context("cannot start `ip`"),
    }
    let line = INSTALL_IP.join(" ");
    if !is_root {
        bail!("the demo joins network namespaces with `ip`, which is missing; install it with `sudo {line}`");
    }
    let mut install = Command::new(INSTALL_IP[0]);
    // Standard output belongs to the demo.
    install.args(&INSTALL_IP[1..]).stdout(Stdio::null());
    process::run(&mut install).with_context(|| format!("`ip` is missing; install it with `{line}`"))
}
