//! Programs in Python, each with packages of a pinned version in an environment of its own.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process;

/// How long pip may take: on a machine that cannot download it retries for minutes, and the largest package has 100 MB.
const PIP_LIMIT: Duration = Duration::from_secs(240);

/// Returns a Python that has these packages, each given as `name==version`, in an environment at `venv`.
pub(crate) fn with(venv: &Path, packages: &[&str]) -> Result<PathBuf> {
    install(venv, packages, packages.iter().map(OsStr::new).collect())
}

/// Returns a Python that has what a file of requirements names; each of them with its checksums.
pub(crate) fn locked(venv: &Path, requirements: &Path) -> Result<PathBuf> {
    let text = fs::read_to_string(requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    let packages: Vec<&str> = text.split_whitespace().filter(|word| word.contains("==")).collect();
    let flags = ["--require-hashes", "--only-binary", ":all:", "--requirement"].map(OsStr::new);
    install(venv, &packages, flags.into_iter().chain([requirements.as_os_str()]).collect())
}

/// Makes sure of an environment with these packages; `wanted` is how pip is told of them.
fn install(venv: &Path, packages: &[&str], wanted: Vec<&OsStr>) -> Result<PathBuf> {
    let python = venv.join("bin").join("python");
    let versions: Vec<String> = packages
        .iter()
        .map(|package| {
            let (name, version) = package.split_once("==").expect("the version is pinned");
            format!("assert m.version('{name}') == '{version}'")
        })
        .collect();
    let program = format!("import importlib.metadata as m; {}", versions.join("; "));
    let fits = || {
        let mut test = Command::new(&python);
        test.args(["-c", &program]).stderr(Stdio::null());
        test.status().is_ok_and(|status| status.success())
    };
    if fits() {
        return Ok(python);
    }
    process::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(venv))?;
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(wanted);
    process::run_within(&mut install, PIP_LIMIT)?;
    if !fits() {
        bail!("{} does not run, although pip has just installed it", packages.join(", "));
    }
    Ok(python)
}
