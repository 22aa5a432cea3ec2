//! `cargo xtask manifests`: everything under `deploy/` renders, and is what the API of one Kubernetes release accepts.
//!
//! What the files say about the agent (its flags, its privileges) is tested in `egress-agent/tests/manifests.rs`.

use std::path::{Component, Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;
use crate::{chart, process, python};

/// The release whose API the manifests are written for.
const RELEASE: &str = "1.33";
/// Carries the schemas of every release, so nothing is fetched to validate.
pub(crate) const VALIDATOR: &str = "kubernetes-validate==1.37.0";
/// Where kubectl stands beside the API server of controller tests.
const ASSETS: &str = "/usr/local/kubebuilder/bin";
/// Folders below `deploy/` with other files than manifests: workflows, a chart, a plugin, policy as code, schemas. Each has tests of its own.
const NO_MANIFESTS: [&str; 5] = ["ci", "helm", "krew", "rego", "schema"];
/// What components are tried with.
const BASE: &str = "base";

/// The file that makes a folder a kustomization.
const KUSTOMIZATION: &str = "kustomization.yaml";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Fail if kubectl or python3 is missing; the default when CI=true
    #[arg(long)]
    strict: bool,
}

/// How a check ended that did not fail.
pub(crate) enum Outcome {
    /// Everything was checked and is right.
    Good,
    /// Nothing was checked, because of this.
    Skipped(String),
}

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let strict = arguments.strict || env::var_os("CI").is_some_and(|value| value == "true");
    let mut is_good = true;
    for (level, outcome) in [("manifests", check(workspace)?), ("chart", chart::check(workspace)?)] {
        if let Outcome::Skipped(why) = outcome {
            println!("SKIPPED {level}: {why}");
            is_good = !strict;
        }
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Renders and validates everything under `deploy/`.
pub(crate) fn check(workspace: &Workspace) -> Result<Outcome> {
    let work = workspace.target.join("xtask").join("manifests");
    let Some(kubectl) = kubectl() else {
        return Ok(Outcome::Skipped(
            "no kubectl in PATH: install version 1.27 or newer as its own documentation says".to_owned(),
        ));
    };
    let python = match python::with(&work.join("venv"), &[VALIDATOR]) {
        Ok(python) => python,
        Err(error) => {
            return Ok(Outcome::Skipped(format!(
                "{VALIDATOR} cannot be installed ({error:#}); it needs `apt-get install --yes python3-venv` and pip's index"
            )));
        }
    };
    let rendered = rendered(workspace);
    // What an earlier run left would be validated again.
    for folder in [&rendered, &work.join("overlays")] {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let deploy = Deploy::find(&workspace.root.join("deploy"))?;
    let mut files = deploy.plain.clone();
    let mut render = |folder: &Path| {
        let text = process::output(Command::new(&kubectl).arg("kustomize").arg(folder))?;
        let file = rendered.join(name(folder)).with_extension("yaml");
        fs::write(&file, &text).with_context(|| format!("cannot write {}", file.display()))?;
        files.push(file);
        Ok::<String, anyhow::Error>(text)
    };
    let bases: Vec<String> = deploy.bases.iter().map(|base| render(base)).collect::<Result<_>>()?;
    let mut seen = bases;
    for overlay in overlays(&deploy, &work.join("overlays"))? {
        // A patch whose target is not there changes nothing, and kustomize says nothing.
        let text = render(&overlay)?;
        if seen.contains(&text) {
            bail!("{} renders what something else does: its last component changes nothing", name(&overlay));
        }
        seen.push(text);
    }
    validate(workspace, &python, &files)?;
    Ok(Outcome::Good)
}

/// Validates files with objects, by a Python that has the validator.
pub(crate) fn validate(workspace: &Workspace, python: &Path, files: &[PathBuf]) -> Result<()> {
    let script = workspace.root.join("xtask").join("src").join("manifests.py");
    process::run(Command::new(python).arg(script).arg(RELEASE).args(files))
}

/// Returns the folder that [`check`] leaves what kustomize rendered in.
pub(crate) fn rendered(workspace: &Workspace) -> PathBuf {
    workspace.target.join("xtask").join("manifests").join("rendered")
}

/// What is under `deploy/`, by how it is used.
#[derive(Debug, Default, PartialEq, Eq)]
struct Deploy {
    /// Folders that render by themselves.
    bases: Vec<PathBuf>,
    /// Folders that change a base.
    components: Vec<PathBuf>,
    /// Manifests in folders that are neither.
    plain: Vec<PathBuf>,
}

impl Deploy {
    fn find(top: &Path) -> Result<Deploy> {
        let mut deploy = Deploy::default();
        deploy.walk(top)?;
        if !deploy.bases.contains(&top.join(BASE)) {
            bail!("{} holds no {BASE}", top.display());
        }
        Ok(deploy)
    }

    fn walk(&mut self, folder: &Path) -> Result<()> {
        let kustomization = folder.join(KUSTOMIZATION);
        if kustomization.is_file() {
            let text = fs::read_to_string(&kustomization)
                .with_context(|| format!("cannot read {}", kustomization.display()))?;
            let is_component = text.lines().any(|line| line.trim_end() == "kind: Component");
            let kind = if is_component { &mut self.components } else { &mut self.bases };
            kind.push(folder.to_owned());
            return Ok(());
        }
        let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
        let mut paths: Vec<PathBuf> = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()
            .with_context(|| format!("cannot list {}", folder.display()))?;
        paths.sort();
        for path in paths {
            let name = path.file_name().expect("an entry has a name");
            if path.is_dir() && NO_MANIFESTS.iter().any(|folder| name == *folder) {
                continue;
            }
            if path.is_dir() {
                self.walk(&path)?;
            } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
                self.plain.push(path);
            }
        }
        Ok(())
    }
}

/// Writes kustomizations that use each component, and all of them together, with `deploy/base`.
///
/// A component whose name begins with another's and a dash, as `webhook-cert-manager`, changes that one, and is used after it.
fn overlays(deploy: &Deploy, work: &Path) -> Result<Vec<PathBuf>> {
    let with_what_it_changes = |one: &PathBuf| {
        let own = name(one);
        let is_used = |other: &&PathBuf| own == name(other) || own.starts_with(&format!("{}-", name(other)));
        (own.clone(), deploy.components.iter().filter(is_used).cloned().collect())
    };
    let base = deploy.bases.iter().find(|base| name(base) == BASE).expect("there is one");
    let mut sets: Vec<(String, Vec<PathBuf>)> = deploy.components.iter().map(with_what_it_changes).collect();
    if deploy.components.len() > 1 {
        sets.push(("all-components".to_owned(), deploy.components.clone()));
    }
    let mut overlays = Vec::new();
    for (name, components) in sets {
        let folder = work.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let mut text =
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n".to_owned();
        text += &format!("  - {}\ncomponents:\n", relative(&folder, base)?);
        for component in components {
            text += &format!("  - {}\n", relative(&folder, &component)?);
        }
        let file = folder.join(KUSTOMIZATION);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        overlays.push(folder);
    }
    Ok(overlays)
}

/// Returns the path of `to` as seen from `from`: kustomize takes no absolute ones.
fn relative(from: &Path, to: &Path) -> Result<String> {
    let resolve =
        |path: &Path| path.canonicalize().with_context(|| format!("cannot find {}", path.display()));
    let (from, to) = (resolve(from)?, resolve(to)?);
    let up = from.components().filter(|component| matches!(component, Component::Normal(_))).count();
    let down = to.strip_prefix("/").context("a path in canonical form is absolute")?;
    Ok(format!("{}{}", "../".repeat(up), down.display()))
}

fn name(folder: &Path) -> String {
    folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// Returns a kubectl that runs.
pub(crate) fn kubectl() -> Option<PathBuf> {
    let assets = env::var_os("KUBEBUILDER_ASSETS").map_or_else(|| PathBuf::from(ASSETS), PathBuf::from);
    let runs = |program: &PathBuf| {
        let mut version = Command::new(program);
        version.args(["version", "--client"]).stdout(Stdio::null()).stderr(Stdio::null());
        // A program that cannot start is a missing one.
        version.status().is_ok_and(|status| status.success())
    };
    [PathBuf::from("kubectl"), assets.join("kubectl")].into_iter().find(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_deploy_is_told_apart() {
        let top = Workspace::locate().root.join("deploy");
        let deploy = Deploy::find(&top).expect("the folder can be read");
        for base in ["base", "overlays/dev", "overlays/stage", "overlays/prod", "policies/networkpolicy"] {
            assert!(deploy.bases.contains(&top.join(base)), "{deploy:?}");
        }
        assert!(deploy.components.contains(&top.join("components/prometheus-operator")), "{deploy:?}");
        assert!(deploy.plain.contains(&top.join("examples/demo/cluster.yaml")), "{deploy:?}");
        assert!(deploy.plain.iter().all(|file| file.starts_with(top.join("examples"))), "{deploy:?}");
    }

    #[test]
    fn a_path_leads_from_one_folder_to_the_other() {
        let root = Workspace::locate().root;
        let from = root.join("xtask/src");
        let path = relative(&from, &root.join("deploy/base")).expect("both are there");
        assert!(!path.starts_with('/'), "{path}");
        assert!(from.join(path).join(KUSTOMIZATION).is_file());
    }
}
