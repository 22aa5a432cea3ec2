//! `cargo xtask metrics`: writes docs/metrics.md from what the code exports.

use std::fs;

use anyhow::{Context, Result};

use crate::process;
use crate::workspace::Workspace;

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let mut page = workspace.cargo();
    page.args(["run", "--quiet", "--package", "egress-agent", "--example", "metrics"]);
    let text = process::output(&mut page)?;
    let file = workspace.root.join("docs").join("metrics.md");
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    println!("{}", file.display());
    Ok(())
}
