//! Packages from Debian without installing them: the source of the core library, for machines that reach a Debian mirror but
//! not rustup's server, and kernels for tests.
//!
//! Nothing of the machine's own apt state changes: lists, cache and the sources file are in a directory of ours. Only
//! [`ensure_program`] installs, and says so.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

use anyhow::{Context, Result, bail};

use crate::apt_sources::{self, Source};
use crate::process;

/// The suite that carries current rustc versions.
pub(crate) const SUITE: &str = "trixie-backports";

/// An apt state of our own, in a directory of ours.
pub(crate) struct State<'a> {
    work: &'a Path,
}

impl<'a> State<'a> {
    /// Sets one up in `work` for `main` of these suites, from the machine's own mirror. Lists that are there stay.
    pub(crate) fn new(work: &'a Path, suites: &[&str]) -> Result<Self> {
        let mirror = debian_mirror()?;
        for folder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(work.join(folder))
                .with_context(|| format!("cannot create {folder} in {}", work.display()))?;
        }
        let stanzas: Vec<String> = suites.iter().map(|suite| mirror.for_suite(suite)).collect();
        let state = Self { work };
        let list = state.list();
        fs::write(&list, stanzas.join("\n")).with_context(|| format!("cannot write {}", list.display()))?;
        Ok(state)
    }

    fn list(&self) -> PathBuf {
        self.work.join("suites.sources")
    }

    /// Returns a command of apt that knows nothing but this state, and leaves its files in the directory.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.work);
        for option in [
            format!("Dir::Etc::sourcelist={}", self.list().display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={}", self.work.join("lists").display()),
            format!("Dir::Cache={}", self.work.join("cache").display()),
            // Otherwise root's apt downloads as a user who may not enter this directory.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    /// Fetches the lists of packages.
    pub(crate) fn update(&self) -> Result<()> {
        process::run(self.command("apt-get").args(["--quiet", "update", "--error-on=any"]))
    }

    /// Downloads a package into the directory.
    pub(crate) fn download(&self, package: &str) -> Result<()> {
        process::run(self.command("apt-get").args(["--quiet", "download", package]))
    }
}

/// Checks that a program is there, and installs the package that has it if it is not and we may.
pub(crate) fn ensure_program(program: &str, package: &str, is_root: bool) -> Result<()> {
    let found = Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match found {
        // It need not know the flag.
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot start `{program}`")),
    }
    let mut install = Command::new("apt-get");
    // Standard output may belong to someone else.
    install.args(["install", "--yes", "--no-install-recommends", package]).stdout(Stdio::null());
    let line = process::line(&install);
    if !is_root {
        bail!("`{program}` is missing; install it with `sudo {line}`");
    }
    eprintln!("`{program}` is missing; trying `{line}`");
    process::run(&mut install).with_context(|| format!("`{program}` is missing; install it with `{line}`"))
}

/// Unpacks a package of the machine's own release into `work` and returns the folder of its programs. What is unpacked there already stays.
///
/// For packages that would start a service if they were installed.
pub(crate) fn programs_of(package: &str, work: &Path) -> Result<PathBuf> {
    let unpacked = work.join(package);
    let programs = unpacked.join("usr").join("bin");
    if programs.is_dir() {
        return Ok(programs);
    }
    let state = State::new(work, &[&codename()?])?;
    state.update()?;
    state.download(package)?;
    let partial = work.join(format!(".{package}"));
    process::run(Command::new("dpkg-deb").arg("-x").arg(downloaded(work)?).arg(&partial))?;
    fs::rename(&partial, &unpacked).with_context(|| format!("cannot move {}", partial.display()))?;
    Ok(programs)
}

/// Unpacks the library of exactly this rustc version into `sources`/rust/library.
pub(crate) fn install_rust_src(work: &Path, sources: &Path, version: &str) -> Result<()> {
    // What an interrupted run left behind could be taken for the package.
    if work.exists() {
        fs::remove_dir_all(work).with_context(|| format!("cannot remove {}", work.display()))?;
    }
    let state = State::new(work, &[SUITE])?;
    state.update()?;
    let offered = process::output(state.command("apt-cache").args(["madison", "rust-src"]))?;
    let package = pick_version(&offered, version)
        .with_context(|| format!("{SUITE} has no rust-src of version {version}, but:\n{offered}"))?;
    state.download(&format!("rust-src={package}"))?;
    let unpacked = sources.join(format!(".rust-src-{version}"));
    unpack(&downloaded(work)?, &unpacked, version, &sources.join("rust"))
}

/// Unpacks the package beside its destination, so that moving the library there is one step.
fn unpack(package: &Path, unpacked: &Path, version: &str, destination: &Path) -> Result<()> {
    for folder in [unpacked, destination] {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    process::run(Command::new("dpkg-deb").arg("-x").arg(package).arg(unpacked))?;
    let (from, to) = (
        unpacked.join("usr/src").join(format!("rustc-{version}")).join("library"),
        destination.join("library"),
    );
    fs::rename(&from, &to).with_context(|| format!("cannot move {} to {}", from.display(), to.display()))?;
    fs::remove_dir_all(unpacked).with_context(|| format!("cannot remove {}", unpacked.display()))?;
    fs::remove_file(package).with_context(|| format!("cannot remove {}", package.display()))
}

fn downloaded(work: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(work).with_context(|| format!("cannot list {}", work.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", work.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            return Ok(path);
        }
    }
    bail!("apt-get left no package in {}", work.display())
}

/// Returns the name of the release the machine runs.
fn codename() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let codename = codename.context("/etc/os-release names no release: not a Debian machine")?;
    Ok(codename.trim_matches('"').to_owned())
}

/// Returns the machine's own Debian mirror: the source that serves `main` of the release it runs.
fn debian_mirror() -> Result<Source> {
    let codename = codename()?;
    let mut found = apt_sources::configured(Path::new("/etc/apt"))?;
    found.retain(|source| source.serves_main_of(&codename));
    found.into_iter().next().with_context(|| format!("no source in /etc/apt serves main of {codename}"))
}

/// Picks from `apt-cache madison` the first package of exactly this upstream version.
fn pick_version(madison: &str, version: &str) -> Option<String> {
    let offered = madison.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim);
    let fits = |package: &&str| {
        let upstream = package.split_once(':').map_or(*package, |(_, rest)| rest);
        upstream
            .strip_prefix(version)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', '-', '~']))
    };
    offered.into_iter().find(fits).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_upstream_version_is_picked() {
        let madison = " rust-src | 1.95.10+dfsg-1 | http://a.example trixie-backports/main amd64 Packages\n \
                       rust-src | 1.95.0+dfsg1-1~bpo13+2 | http://a.example trixie-backports/main amd64 Packages\n \
                       rust-src | 1.85.0+dfsg3-1 | http://a.example trixie/main amd64 Packages\n";
        assert_eq!(pick_version(madison, "1.95.0").as_deref(), Some("1.95.0+dfsg1-1~bpo13+2"));
        assert_eq!(pick_version(madison, "1.85.0").as_deref(), Some("1.85.0+dfsg3-1"));
        assert_eq!(pick_version(madison, "1.95.1"), None);
        assert_eq!(pick_version(" rust-src | 1:1.95.0-1 | x", "1.95.0").as_deref(), Some("1:1.95.0-1"));
        assert_eq!(pick_version("", "1.95.0"), None);
    }
}
