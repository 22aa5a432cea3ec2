//! `cargo xtask docs`: writes the pages of docs/ that are made of code, and the JSON Schema.

use std::fs;

use anyhow::{Context, Result};

use crate::process;
use crate::workspace::Workspace;

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let folder = workspace.root.join("docs");
    let mut pages = workspace.cargo();
    pages.args(["run", "--quiet", "--package", "egress-agent", "--example", "docs", "--"]).arg(&folder);
    process::run(&mut pages)?;
    let mut schema = workspace.cargo();
    schema.args(["run", "--quiet", "--package", "egress-agent", "--bin", "egress-agent", "--", "schema"]);
    let text = process::output(&mut schema)?;
    let file = workspace.root.join("deploy").join("schema").join("policy.schema.json");
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    for name in
        ["docs/flags.md", "docs/metrics.md", "docs/policy-reference.md", "deploy/schema/policy.schema.json"]
    {
        println!("{name}");
    }
    Ok(())
}
