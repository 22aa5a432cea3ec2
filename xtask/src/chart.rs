//! `cargo xtask chart`: the Helm chart has what kustomize renders, and renders the same.
//!
//! The chart's own objects are copies in its folder `files`, since a chart can read nothing else; its templates change a few places of
//! them. [`check`] renders it with Helm's own code, which a Python package brings.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::manifests::{self, Outcome};
use crate::workspace::Workspace;
use crate::{process, python};

/// Brings Helm's own engine as a library.
const HELM: &str = "helm-python-sdk==0.2.2";
/// What the script reads YAML with.
const YAML: &str = "PyYAML==6.0.3";
/// What the chart has a copy of, below `deploy/`.
const SOURCES: [&str; 6] = [
    "overlays/dev",
    "overlays/stage",
    "overlays/prod",
    "components/prometheus-operator",
    "components/grafana",
    "components/egress-proxy",
];

fn folder(workspace: &Workspace) -> PathBuf {
    workspace.root.join("deploy").join("helm").join("egress-agent")
}

/// Writes what the chart has copies of.
pub(crate) fn write(workspace: &Workspace) -> Result<()> {
    let kubectl = manifests::kubectl().context("no kubectl in PATH: install version 1.27 or newer")?;
    for source in SOURCES {
        let source = workspace.root.join("deploy").join(source);
        let text = process::output(Command::new(&kubectl).arg("kustomize").arg(&source))?;
        let name = source.file_name().expect("a source has a name");
        let file = folder(workspace).join("files").join(name).with_extension("yaml");
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        println!("{}", file.display());
    }
    Ok(())
}

/// Compares the chart with what [`manifests::check`] has rendered, and validates what it makes of unusual values.
pub(crate) fn check(workspace: &Workspace) -> Result<Outcome> {
    let rendered = manifests::rendered(workspace);
    if !rendered.join("prod.yaml").is_file() {
        return Ok(Outcome::Skipped("kustomize has rendered nothing to compare with".to_owned()));
    }
    let work = workspace.target.join("xtask").join("chart");
    let python = match python::with(&work.join("venv"), &[HELM, YAML]) {
        Ok(python) => python,
        Err(error) => {
            return Ok(Outcome::Skipped(format!(
                "{HELM} cannot be installed ({error:#}); it needs `apt-get install --yes python3-venv` and pip's index"
            )));
        }
    };
    let out = work.join("rendered");
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
    }
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let script = workspace.root.join("xtask").join("src").join("chart.py");
    process::run(Command::new(python).arg(script).args([&folder(workspace), &rendered, &out]))?;
    let mut files = Vec::new();
    for entry in fs::read_dir(&out).with_context(|| format!("cannot list {}", out.display()))? {
        files.push(entry.with_context(|| format!("cannot list {}", out.display()))?.path());
    }
    if files.is_empty() {
        bail!("the chart has rendered nothing");
    }
    let venv = workspace.target.join("xtask").join("manifests").join("venv");
    manifests::validate(workspace, &python::with(&venv, &[manifests::VALIDATOR])?, &files)?;
    Ok(Outcome::Good)
}
