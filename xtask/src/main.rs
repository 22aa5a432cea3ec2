//! Every task of this repository: `cargo xtask` lists them.

mod apt;
mod apt_sources;
mod bench;
mod build;
mod chart;
mod demo;
mod docs;
mod image;
mod kernels;
mod lint;
mod man;
mod manifests;
mod process;
mod python;
mod summary;
mod test;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Build, check and test egress-agent
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Measure what there are goals for, and write docs/benchmarks.md
    Bench(bench::Arguments),
    /// Build the kernel object and the release agent that contains it
    Build(build::Arguments),
    /// Write into the Helm chart what kustomize renders
    Chart,
    /// Show the agent at work on this machine: pods, policies and verdicts, all removed at the end
    Demo(demo::Arguments),
    /// Write what is made of code: the pages of metrics, flags and the policy document, and the JSON Schema
    #[command(visible_alias = "metrics")]
    Docs,
    /// Build the container image, and the plugin of kubectl, for amd64 and arm64
    Image(image::Arguments),
    /// Run the kernel tests on other kernels, in virtual machines
    Kernels(kernels::Arguments),
    /// Check formatting and lints of every crate, the kernel programs included
    Lint,
    /// Write the manual pages, one a command
    Man(man::Arguments),
    /// Render everything under deploy/, the Helm chart too, and validate it against the schemas of Kubernetes
    Manifests(manifests::Arguments),
    /// Run what CI runs: formatting, lints, tests, and the tests that need root
    Test(test::Arguments),
}

fn main() -> ExitCode {
    match dispatch(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Some(verb) = arguments.verb else {
        Arguments::command().print_help()?;
        return Ok(ExitCode::SUCCESS);
    };
    let workspace = workspace::Workspace::locate();
    match verb {
        Verb::Bench(arguments) => bench::run(&workspace, &arguments)?,
        Verb::Build(arguments) => build::run(&workspace, &arguments)?,
        Verb::Chart => chart::write(&workspace)?,
        Verb::Demo(arguments) => return demo::run(&workspace, &arguments),
        Verb::Docs => docs::run(&workspace)?,
        Verb::Image(arguments) => image::run(&workspace, &arguments)?,
        Verb::Kernels(arguments) => return kernels::run(&workspace, &arguments),
        Verb::Lint => lint::run(&workspace)?,
        Verb::Man(arguments) => man::run(&workspace, &arguments)?,
        Verb::Manifests(arguments) => return manifests::run(&workspace, &arguments),
        Verb::Test(arguments) => return test::run(&workspace, &arguments),
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
#[path = "../../tests/pages/mod.rs"]
#[expect(dead_code, reason = "the tests of the agent look at links and anchors")]
mod pages;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_that_the_pages_name_is_there() {
        let (mut wrong, mut seen) = (Vec::new(), 0);
        for page in pages::pages() {
            let code = page.code().into_iter().flat_map(|(line, code)| {
                pages::split_commands(&code).into_iter().map(move |words| (line, words))
            });
            for (line, words) in page.commands().into_iter().chain(code) {
                let Some(arguments) = pages::words_of(&words, &["cargo", "xtask"]) else { continue };
                seen += 1;
                // In prose, brackets stand around what may be left out.
                let typed = arguments.iter().map(|word| word.trim_matches(['[', ']']));
                let outcome = Arguments::command().try_get_matches_from(["xtask"].into_iter().chain(typed));
                if let Err(error) = outcome {
                    wrong.push(format!("{}:{line}: {words:?}: {error}", page.name));
                }
            }
        }
        assert_eq!(wrong, [""; 0]);
        assert!(seen > 15, "only {seen} tasks were seen");
    }
}
