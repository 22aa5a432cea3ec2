//! The sources in a machine's apt configuration, in both of its formats.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// One place that apt gets packages from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    /// A key file or an ASCII-armoured key, as it was written; `None` means apt's default keys.
    signed_by: Option<String>,
}

/// Reads every source of an apt configuration directory, such as `/etc/apt`.
pub(crate) fn configured(etc: &Path) -> Result<Vec<Source>> {
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
    /// Returns whether this source has a mirror of `main` of the release.
    pub(crate) fn serves_main_of(&self, codename: &str) -> bool {
        self.suites.iter().any(|suite| suite == codename)
            && self.components.iter().any(|component| component == "main")
            && self.uris.iter().any(|uri| !uri.starts_with("cdrom:"))
    }

    /// Returns a stanza for `main` of another suite, with the same mirror and keys.
    pub(crate) fn for_suite(&self, suite: &str) -> String {
        let signed_by = self.signed_by.as_ref().map_or(String::new(), |key| format!("Signed-By: {key}\n"));
        let uris: Vec<&str> =
            self.uris.iter().map(String::as_str).filter(|uri| !uri.starts_with("cdrom:")).collect();
        format!("Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\n{signed_by}", uris.join(" "))
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

#[cfg(test)]
#[path = "apt_sources_tests.rs"]
mod tests;
