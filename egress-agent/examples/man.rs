//! Writes a manual page for each command into a folder: `cargo xtask man` says which.

use std::{error::Error, fs, path::Path};

use clap::{Command, CommandFactory as _};
use clap_mangen::{
    Man,
    roff::{Roff, roman},
};
use egress_agent::cli::{Cli, plugin::Plugin};

/// The name of a page's file, and what it holds.
pub type Page = (String, Vec<u8>);

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).ok_or("which folder?")?;
    fs::create_dir_all(&folder)?;
    for (name, page) in pages()? {
        fs::write(Path::new(&folder).join(name), page)?;
    }
    Ok(())
}

/// Returns the pages of egress-agent and of `kubectl egress`, each with the name of its file.
pub fn pages() -> Result<Vec<Page>, Box<dyn Error>> {
    let mut pages = Vec::new();
    for (command, name, called) in [
        (Cli::command(), "egress-agent", "egress-agent"),
        (Plugin::command(), "kubectl-egress", "kubectl egress"),
    ] {
        let mut command = command.name(name).bin_name(called).disable_help_subcommand(true);
        command.build();
        let version = command.get_version().unwrap_or_default().to_owned();
        add(&command, None, &version, &mut pages)?;
    }
    Ok(pages)
}

/// Adds the pages of a command and of those below it.
fn add(
    command: &Command,
    above: Option<&str>,
    version: &str,
    pages: &mut Vec<Page>,
) -> Result<(), Box<dyn Error>> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let man = Man::new(command.clone())
        // An empty date would have what follows taken for it.
        .date("\u{a0}")
        .source(format!("egress-agent {version}"))
        .manual("Egress control");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(notes) = command.get_after_long_help().or_else(|| command.get_after_help()) {
        write_notes(&notes.to_string(), &mut page)?;
    }
    if let Some(above) = above {
        let mut roff = Roff::default();
        roff.control("SH", ["SEE ALSO"]).text([roman(format!("{above}(1)"))]);
        roff.to_writer(&mut page)?;
    }
    pages.push((man.get_filename(), ascii(&String::from_utf8(page)?).into_bytes()));
    for below in command.get_subcommands() {
        add(below, Some(&name), version, pages)?;
    }
    Ok(())
}

/// Names what is not ASCII by its number, so that a page means the same whatever encoding a reader's troff takes it for.
fn ascii(page: &str) -> String {
    let name = |letter: char| {
        if letter.is_ascii() { letter.to_string() } else { format!("\\[u{:04X}]", u32::from(letter)) }
    };
    page.chars().map(name).collect()
}

/// Writes what stands under the options in the help: exit codes and examples in the sections where readers of manual pages look for them.
fn write_notes(notes: &str, page: &mut Vec<u8>) -> Result<(), Box<dyn Error>> {
    let mut roff = Roff::default();
    let mut section = "";
    let mut is_as_written = false;
    for line in notes.lines().filter(|line| !line.trim().is_empty()) {
        let indented = line.starts_with(' ');
        if is_as_written && !indented {
            roff.control("fi", []);
            is_as_written = false;
        }
        let wanted = if line == "Examples:" || indented {
            "EXAMPLES"
        } else if line.starts_with("Exit codes:") {
            "EXIT STATUS"
        } else {
            "NOTES"
        };
        if wanted == section {
            if !indented {
                roff.control("PP", []);
            }
        } else {
            roff.control("SH", [wanted]);
            section = wanted;
        }
        if indented {
            if !is_as_written {
                roff.control("nf", []);
                is_as_written = true;
            }
            roff.text([roman(line.trim_start())]);
        } else if line != "Examples:" {
            roff.text([roman(line.strip_prefix("Exit codes: ").unwrap_or(line))]);
        }
    }
    if is_as_written {
        roff.control("fi", []);
    }
    roff.to_writer(page)?;
    Ok(())
}
