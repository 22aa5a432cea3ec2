//! `cargo xtask test`: what CI runs, from cheap to dear.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::manifests::{self, Outcome};
use crate::summary::{Summary, Tally};
use crate::workspace::Workspace;
use crate::{apt, build, chart, image, lint, process};

/// How long one level of tests may take, compiling included.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// Where the provider lists and captures are that the tests with real data read.
const DATA: &str = "EGRESS_DATA_DIR";
/// The object that logs each judged packet.
const DEBUG_OBJECT: &str = "EGRESS_DEBUG_BPF_OBJECT";
/// Where the container image is that tests run.
const IMAGE: &str = "EGRESS_IMAGE_LAYOUT";
/// The agent that tests run as a process of its own.
const AGENT: &str = "EGRESS_AGENT_BIN";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Leave out what needs root or the BPF toolchain
    #[arg(long)]
    pure: bool,
    /// Fail if a level that is not optional was skipped; the default when CI=true
    #[arg(long)]
    strict: bool,
    /// Arguments for the test programs, such as a part of a test's name; formatting and lints are then left out
    #[arg(last = true)]
    filter: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let strict = arguments.strict || env::var_os("CI").is_some_and(|value| value == "true");
    let mut summary = Summary::default();
    if arguments.filter.is_empty() {
        summary.checked("formatting", process::run(&mut lint::formatting(workspace)));
        summary.checked("lints", process::run(&mut lint::host_lints(workspace, &[])));
        // The chart is compared with what the manifests' check renders.
        for level in ["manifests", "chart"] {
            let outcome =
                if level == "chart" { chart::check(workspace) } else { manifests::check(workspace) };
            match outcome {
                Ok(Outcome::Good) => summary.checked(level, Ok(())),
                Ok(Outcome::Skipped(why)) => summary.skipped(level, &why),
                Err(error) => summary.checked(level, Err(error)),
            }
        }
    }
    let data = data_directory(workspace);
    if data.is_none() {
        summary.skipped("data", &format!("{DATA} names no directory of provider lists"));
    }
    let tests = |summary: &mut Summary, level: &str, command: &mut Command| {
        if let Some(data) = &data {
            command.env(DATA, data);
        }
        let mut tally = Tally::default();
        if !arguments.filter.is_empty() {
            command.arg("--").args(&arguments.filter);
        }
        let outcome = process::stream_within(command, LIMIT, |line| tally.see(line)).and_then(|status| {
            if !status.success() {
                bail!("`{}` failed: {status}", process::line(command));
            }
            Ok(())
        });
        summary.tested(level, &tally, outcome);
    };
    let mut pure = workspace.cargo();
    pure.args(["test", "--no-fail-fast"]);
    if strict && let Some(path) = path_with_promtool(workspace) {
        pure.env("PATH", path);
    }
    tests(&mut summary, "pure", &mut pure);
    if !arguments.pure {
        let objects = build::object(workspace, true)
            .and_then(|logging| Ok((logging, build::object(workspace, false)?)));
        match objects {
            Err(error) => {
                summary.checked("object", Err(error));
                summary.skipped("kernel", "there is no kernel object to load");
            }
            Ok((logging, object)) => {
                summary.checked("object", Ok(()));
                // A release for another target: minutes that only CI takes.
                let image = if strict && arguments.filter.is_empty() {
                    let layout = image::for_tests(workspace);
                    let layout = layout.map_err(|error| summary.checked("image", Err(error))).ok();
                    if layout.is_some() {
                        summary.checked("image", Ok(()));
                    }
                    layout
                } else {
                    env::var_os(IMAGE).map(PathBuf::from)
                };
                match debug_agent(workspace, &object)
                    .and_then(|agent| kernel_tests(workspace, &object, &logging, &agent))
                {
                    Ok(mut command) => {
                        if let Some(layout) = image {
                            command.env(IMAGE, layout);
                        }
                        tests(&mut summary, "kernel", &mut command);
                    }
                    Err(error) => summary.checked("kernel", Err(error)),
                }
            }
        }
    }
    summary.print();
    Ok(if summary.is_good(strict) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the directory that `EGRESS_DATA_DIR` names, or `shared/data` beside the checkout if it is there.
fn data_directory(workspace: &Workspace) -> Option<PathBuf> {
    if let Some(named) = env::var_os(DATA) {
        return Some(workspace.root.join(named));
    }
    let beside = workspace.root.parent()?.join("shared").join("data");
    beside.is_dir().then_some(beside)
}

/// Builds an agent around the object, with the settings the tests are built with, and returns its path.
fn debug_agent(workspace: &Workspace, object: &Path) -> Result<PathBuf> {
    let mut build = workspace.cargo();
    build.args(["build", "--package", "egress-agent", "--bin", "egress-agent"]);
    process::run(build.env("EGRESS_BPF_OBJECT", object))?;
    Ok(workspace.target.join("debug").join("egress-agent"))
}

/// Returns the command for the tests that load programs into the kernel.
///
/// Cargo itself runs as the caller; without root only the test programs go through sudo, so that the build output stays the
/// caller's.
fn kernel_tests(workspace: &Workspace, object: &Path, logging: &Path, agent: &Path) -> Result<Command> {
    let mut command = workspace.cargo();
    command.args(["test", "--no-fail-fast", "--package", "egress-tests"]);
    command.env("EGRESS_BPF_OBJECT", object).env(DEBUG_OBJECT, logging).env(AGENT, agent);
    let is_root = fs::metadata("/proc/self").context("cannot read /proc/self")?.uid() == 0;
    for (program, package) in [("ip", "iproute2"), ("runc", "runc")] {
        if let Err(error) = apt::ensure_program(program, package, is_root) {
            // The tests that need it fail without the one, and say that they were skipped without the other.
            eprintln!("{error:#}");
        }
    }
    if is_root {
        return Ok(command);
    }
    // Asks for the password now if there is someone to ask, so that the test programs do not have to.
    let ask: &[&str] = if io::stdin().is_terminal() { &["-v"] } else { &["--non-interactive", "true"] };
    process::run(Command::new("sudo").args(ask)).context(
        "these tests need root: run them as root, or leave them out with `cargo xtask test --pure`",
    )?;
    let host = host_triple()?.replace(['-', '.'], "_").to_uppercase();
    command.env(
        format!("CARGO_TARGET_{host}_RUNNER"),
        format!("sudo --preserve-env=EGRESS_BPF_OBJECT,{DEBUG_OBJECT},{AGENT},{DATA},{IMAGE},KUBEBUILDER_ASSETS,LD_LIBRARY_PATH,EGRESS_CHURN_SECONDS,PROPTEST_CASES,RUST_BACKTRACE"),
    );
    Ok(command)
}

/// Returns a `PATH` in which promtool is, if that takes another one than this.
///
/// The package is not installed: that would start a Prometheus on this machine.
fn path_with_promtool(workspace: &Workspace) -> Option<OsString> {
    let quiet = |program: &mut Command| program.stdout(Stdio::null()).stderr(Stdio::null()).status();
    if quiet(Command::new("promtool").arg("--version")).is_ok() {
        return None;
    }
    let added = apt::programs_of("prometheus", &workspace.target.join("xtask").join("promtool"));
    let joined = added.and_then(|programs| {
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = env::split_paths(&path).chain([programs]);
        env::join_paths(folders).context("PATH cannot be extended")
    });
    // The tests that need it say that they were skipped.
    joined.inspect_err(|error| eprintln!("there is no promtool: {error:#}")).ok()
}

fn host_triple() -> Result<String> {
    let verbose = process::output(Command::new("rustc").arg("-vV"))?;
    let host = verbose.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc tells no host")
}
