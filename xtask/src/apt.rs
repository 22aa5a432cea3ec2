//! The source of the core library from Debian, for machines that reach a Debian mirror but not rustup's server.
//!
//! Nothing of the machine's own apt state changes: lists, cache and the sources file are in a directory of ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// The suite that carries current rustc versions.
pub(crate) const SUITE: &str = "trixie-backports";

/// One place that apt gets packages from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    /// A key file or an ASCII-armoured key, as it was written; `None` means apt's default keys.
    signed_by: Option<String>,
}

/// Unpacks the library of exactly this rustc version into `sources`/rust/library.
pub(crate) fn install_rust_src(work: &Path, sources: &Path, version: &str) -> Result<()> {
    let mirror = debian_mirror()?;
    for folder in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(work.join(folder))
            .with_context(|| format!("cannot create {folder} in {}", work.display()))?;
    }
    let list = work.join("backports.sources");
    fs::write(&list, mirror.as_deb822()).with_context(|| format!("cannot write {}", list.display()))?;
    let apt = |program: &str| {
        let mut command = Command::new(program);
        command.current_dir(work);
        for option in [
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={}", work.join("lists").display()),
            format!("Dir::Cache={}", work.join("cache").display()),
            // Otherwise root's apt downloads as a user who may not enter this directory.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    };
    process::run(apt("apt-get").args(["--quiet", "update", "--error-on=any"]))?;
    let offered = process::output(apt("apt-cache").args(["madison", "rust-src"]))?;
    let package = pick_version(&offered, version)
        .with_context(|| format!("{SUITE} has no rust-src of version {version}, but:\n{offered}"))?;
    process::run(apt("apt-get").args(["--quiet", "download"]).arg(format!("rust-src={package}")))?;
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

/// Returns the machine's own Debian mirror: the source that serves `main` of the release it runs.
fn debian_mirror() -> Result<Source> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let codename =
        codename.context("/etc/os-release names no release: not a Debian machine")?.trim_matches('"');
    let mut found = configured(Path::new("/etc/apt"))?;
    found.retain(|source| source.serves_main_of(codename));
    found.into_iter().next().with_context(|| format!("no source in /etc/apt serves main of {codename}"))
}

/// Reads every source of an apt configuration directory.
fn configured(etc: &Path) -> Result<Vec<Source>> {
    let mut files = vec![etc.join("sources.list")];
    let parts = etc.join("sources.list.d");
    if parts.is_dir() {
        for entry in fs::read_dir(&parts).with_context(|| format!("cannot list {}", parts.display()))? {
            files.push(entry.with_context(|| format!("cannot list {}", parts.display()))?.path());
        }
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let parse = match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => parse_one_line,
            Some("sources") => parse_deb822,
            _ => continue,
        };
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        sources.extend(parse(&text));
    }
    Ok(sources)
}

impl Source {
    fn serves_main_of(&self, codename: &str) -> bool {
        self.suites.iter().any(|suite| suite == codename)
            && self.components.iter().any(|component| component == "main")
            && self.uris.iter().any(|uri| !uri.starts_with("cdrom:"))
    }

    /// Writes the source as a stanza for `main` of [`SUITE`], with the same mirror and keys.
    fn as_deb822(&self) -> String {
        let signed_by = self.signed_by.as_ref().map_or(String::new(), |key| format!("Signed-By: {key}\n"));
        let uris: Vec<&str> =
            self.uris.iter().map(String::as_str).filter(|uri| !uri.starts_with("cdrom:")).collect();
        format!("Types: deb\nURIs: {}\nSuites: {SUITE}\nComponents: main\n{signed_by}", uris.join(" "))
    }
}

/// Parses `deb [option=value …] uri suite component …` lines.
fn parse_one_line(text: &str) -> Vec<Source> {
    let lines = text.lines().map(|line| line.split('#').next().expect("split yields at least one part"));
    lines.filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Source> {
    let mut rest = line.trim().strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    let mut signed_by = None;
    if let Some(bracketed) = rest.strip_prefix('[') {
        let (options, after) = bracketed.split_once(']')?;
        let keys = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        signed_by = keys.map(|keys| keys.replace(',', " "));
        rest = after;
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    let (uris, suites) = (vec![words.next()?], vec![words.next()?]);
    Some(Source { uris, suites, components: words.collect(), signed_by })
}

/// Parses deb822 stanzas; disabled ones and those without binary packages are left out.
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut stanzas = vec![Vec::<(String, String)>::new()];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let stanza = stanzas.last_mut().expect("there is always a stanza");
        if line.trim().is_empty() {
            stanzas.push(Vec::new());
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            stanza.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    stanzas.iter().filter_map(|stanza| from_stanza(stanza)).collect()
}

fn from_stanza(stanza: &[(String, String)]) -> Option<Source> {
    let field = |name: &str| stanza.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str());
    let words =
        |name: &str| field(name).map(|value| value.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let disabled = field("enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
    if disabled || !words("types")?.iter().any(|kind| kind == "deb") {
        return None;
    }
    let components = words("components").unwrap_or_else(Vec::new);
    Some(Source {
        uris: words("uris")?,
        suites: words("suites")?,
        components,
        signed_by: field("signed-by").map(str::to_owned),
    })
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
#[path = "apt_tests.rs"]
mod tests;
