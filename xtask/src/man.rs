//! `cargo xtask man`: writes the manual pages of egress-agent and `kubectl egress` from what their command lines say.

use std::path::PathBuf;

use anyhow::Result;

use crate::process;
use crate::workspace::Workspace;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where to; without it `man` in the folder of build output
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let folder = match &arguments.folder {
        Some(folder) => std::path::absolute(folder)?,
        None => workspace.target.join("man"),
    };
    let mut pages = workspace.cargo();
    pages.args(["run", "--quiet", "--package", "egress-agent", "--example", "man", "--"]).arg(&folder);
    process::run(&mut pages)?;
    println!("{}", folder.display());
    Ok(())
}
