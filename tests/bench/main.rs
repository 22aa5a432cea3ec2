//! Measures everything this project promises a number for, and writes the page that says so. Run by `cargo xtask bench`.

mod agent;
mod control;
mod datapath;
mod heap;
mod kube;
mod large;
mod measure;
mod memory;
mod process;
mod report;
mod room;
mod scale;
mod scene;
mod sockets;
mod webhook;

use std::{env, fs, path::PathBuf};

use anyhow::{Context, Result, bail};

use crate::{heap::Counting, measure::Effort, report::Report, room::Room};

/// Counts what compiling takes.
#[global_allocator]
static HEAP: Counting = Counting::new();

/// A section: its name, and what measures it.
type Section = (&'static str, fn(&Room, &Effort, &mut Report) -> Result<()>);

/// In the order of the page. Those with an agent come last, since they move this process into a mount namespace of its own.
const SECTIONS: [Section; 8] = [
    ("datapath", datapath::run),
    ("sockets", sockets::run),
    ("control", control::run),
    ("memory", memory::run),
    ("webhook", webhook::run),
    ("agent", agent::run),
    ("kube", kube::run),
    ("large", large::run),
];

/// What to do.
#[derive(Debug, Default)]
struct Arguments {
    quick: bool,
    /// Where the page goes; standard output without.
    out: Option<PathBuf>,
    /// Sections to run; empty means all.
    only: Vec<String>,
}

fn arguments() -> Result<Arguments> {
    let mut arguments = Arguments::default();
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--quick" => arguments.quick = true,
            "--out" => arguments.out = Some(words.next().context("--out wants a file")?.into()),
            "--only" => {
                let section = words.next().context("--only wants a section")?;
                if !SECTIONS.iter().any(|(name, _)| *name == section) {
                    bail!("no section {section}");
                }
                arguments.only.push(section);
            }
            _ => bail!("unknown argument {word}"),
        }
    }
    Ok(arguments)
}

fn main() -> Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    if let [process::SENDER, rate, seconds] = words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return process::send_denied(rate, seconds);
    }
    let arguments = arguments()?;
    let effort = if arguments.quick { Effort::QUICK } else { Effort::FULL };
    let mut report = Report::default();
    let room = Room::make()?;
    let wants =
        |section: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == section);
    for (name, section) in SECTIONS.into_iter().filter(|(name, _)| wants(name)) {
        eprintln!("== {name}");
        section(&room, &effort, &mut report).with_context(|| format!("section {name}"))?;
    }
    let page = report.page(effort.quick)?;
    match &arguments.out {
        Some(path) => fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?,
        None => print!("{page}"),
    }
    Ok(())
}
