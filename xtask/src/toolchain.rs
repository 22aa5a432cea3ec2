//! The BPF toolchain: rustc, the source of its core library, and bpf-linker. What is missing is installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::workspace::{self, Workspace};
use crate::{apt, process};

/// The oldest rustc that builds this workspace.
const OLDEST_RUSTC: (u32, u32) = (1, 95);
/// Brings its own LLVM; from 0.11 on, bpf-linker wants one installed on the system.
const BPF_LINKER: &str = "0.10.3";
/// How long `rustup component add` may take: on a machine that cannot download it retries for minutes.
const RUSTUP_LIMIT: Duration = Duration::from_secs(60);

/// What a build for the BPF target calls besides cargo.
pub(crate) struct Tools {
    /// The path of bpf-linker, or its bare name when it is in `PATH`.
    pub(crate) linker: PathBuf,
}

/// Checks the toolchain and installs what is missing.
pub(crate) fn ensure(workspace: &Workspace) -> Result<Tools> {
    let version = rustc_version()?;
    let sysroot = process::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    ensure_rust_src(&workspace.target, &Path::new(sysroot.trim()).join("lib/rustlib/src"), &version)?;
    Ok(Tools { linker: ensure_linker()? })
}

/// Returns the version of rustc, such as `1.95.0`; fails when it is too old.
fn rustc_version() -> Result<String> {
    const UPDATE: &str = "install a newer one with `rustup update stable`";
    let verbose =
        process::output(Command::new("rustc").arg("-vV")).with_context(|| format!("no rustc: {UPDATE}"))?;
    let release =
        verbose.lines().find_map(|line| line.strip_prefix("release: ")).context("rustc tells no release")?;
    let version = release.split('-').next().expect("split yields at least one part");
    let (major, minor) = OLDEST_RUSTC;
    if !at_least(version, &format!("{major}.{minor}")) {
        bail!("rustc {release} is older than {major}.{minor}: {UPDATE}");
    }
    Ok(version.to_owned())
}

/// Returns whether a dotted version is the wanted one or newer.
fn at_least(version: &str, wanted: &str) -> bool {
    let numbers = |text: &str| text.split('.').map(str::parse).collect::<Result<Vec<u32>, _>>();
    match (numbers(version), numbers(wanted)) {
        (Ok(version), Ok(wanted)) => version >= wanted,
        _ => false,
    }
}

/// Makes sure that `sources` (`<sysroot>/lib/rustlib/src`) holds the library of this rustc version.
fn ensure_rust_src(target: &Path, sources: &Path, version: &str) -> Result<()> {
    let library = sources.join("rust").join("library");
    let present = || library.join("core").join("Cargo.toml").is_file();
    if present() {
        return Ok(());
    }
    eprintln!("the source of the core library is missing; trying `rustup component add rust-src`");
    let mut rustup = Command::new("rustup");
    // A failed download is a sentence, not a stack trace.
    rustup.env_remove("RUST_BACKTRACE");
    let by_rustup = process::run_within(rustup.args(["component", "add", "rust-src"]), RUSTUP_LIMIT);
    if present() {
        return Ok(());
    }
    let by_rustup =
        by_rustup.err().map_or("the component is listed, yet not there".to_owned(), |e| format!("{e:#}"));
    eprintln!("{by_rustup}; trying the Debian package rust-src {version}");
    let by_apt = apt::install_rust_src(&target.join("xtask").join("apt"), sources, version);
    if present() {
        return Ok(());
    }
    let by_apt = by_apt.err().map_or("the package holds no library".to_owned(), |e| format!("{e:#}"));
    bail!(
        "the source of the core library is not in {}. Either of these installs it:\n  \
         rustup component add rust-src\n    (tried: {by_rustup})\n  \
         apt-get install --target-release {} rust-src, then link /usr/src/rustc-{version}/library to the path above\n    \
         (tried: {by_apt})",
        library.display(),
        apt::SUITE,
    )
}

/// Returns a bpf-linker that runs; installs one into cargo's own program directory if there is none.
fn ensure_linker() -> Result<PathBuf> {
    let installed = workspace::cargo_home()?.join("bin").join("bpf-linker");
    for candidate in [PathBuf::from("bpf-linker"), installed.clone()] {
        if linker_fits(&candidate) {
            return Ok(candidate);
        }
    }
    eprintln!("bpf-linker {BPF_LINKER} is missing; installing it, which takes a minute or two");
    let mut install = Command::new("cargo");
    install.args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked"]);
    // These would change where it goes and how it is compiled.
    for name in ["CARGO_BUILD_TARGET", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR", "RUSTC", "RUSTFLAGS"] {
        install.env_remove(name);
    }
    process::run(&mut install)?;
    if !linker_fits(&installed) {
        bail!("{} does not run, although cargo has just installed it", installed.display());
    }
    Ok(installed)
}

fn linker_fits(program: &Path) -> bool {
    let output = Command::new(program).arg("--version").stderr(Stdio::null()).output();
    // A program that cannot start is a missing one.
    let Ok(output) = output else { return false };
    let text = String::from_utf8_lossy(&output.stdout);
    output.status.success()
        && text.split_whitespace().nth(1).is_some_and(|version| at_least(version, BPF_LINKER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(at_least("1.95.0", "1.95"));
        assert!(at_least("1.100.0", "1.95"));
        assert!(at_least("0.10.3", "0.10.3"));
        assert!(!at_least("1.94.9", "1.95"));
        assert!(!at_least("0.9.15", "0.10.3"));
        assert!(!at_least("unknown", "1.95"));
    }
}
