//! `cargo xtask bench`: measures what the project promises numbers for, and writes `docs/benchmarks.md`.

use std::time::Duration;

use anyhow::Result;

use crate::workspace::Workspace;
use crate::{build, image, process};

/// How long the measurement may take.
const LIMIT: Duration = Duration::from_secs(30 * 60);
/// Where the benchmark finds the agent it starts.
const AGENT: &str = "EGRESS_AGENT_BIN";
/// What the page says of it.
const LINKED: &str = "EGRESS_AGENT_LINKED";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Do less of everything: rough figures, to see that it works
    #[arg(long)]
    quick: bool,
    /// Run this section only and print it (datapath, sockets, control, memory, webhook, agent, kube, large); may be repeated
    #[arg(long, value_name = "SECTION")]
    only: Vec<String>,
    /// Measure the static program of the container image instead of one with this machine's C library
    #[arg(long = "static")]
    image: bool,
}

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let object = build::object(workspace, false)?;
    let (agent, linked) = if arguments.image {
        (image::program_of_this_machine(workspace, &object)?, "static, the program of the container image")
    } else {
        (build::agent(workspace, &object, false)?, "linked with this machine's C library")
    };
    let mut build = workspace.cargo();
    build.args(["build", "--release", "--package", "egress-tests", "--bin", "bench"]);
    process::run(build.env("EGRESS_BPF_OBJECT", &object))?;
    let page = workspace.root.join("docs").join("benchmarks.md");
    let mut bench = std::process::Command::new(workspace.target.join("release").join("bench"));
    bench.env(AGENT, &agent).env(LINKED, linked).current_dir(&workspace.root);
    if arguments.quick {
        bench.arg("--quick");
    }
    for section in &arguments.only {
        bench.args(["--only", section]);
    }
    // A part of the page would take the place of the whole.
    if arguments.only.is_empty() {
        std::fs::create_dir_all(page.parent().expect("the page has a folder"))?;
        bench.arg("--out").arg(&page);
    }
    process::run_within(&mut bench, LIMIT)?;
    if arguments.only.is_empty() {
        println!("{}", page.display());
    }
    Ok(())
}
