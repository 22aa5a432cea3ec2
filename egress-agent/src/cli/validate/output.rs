//! Findings as people and programs want them.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    env,
    fmt::Write as _,
    io::{self, IsTerminal as _},
    ops::Range,
    sync::Arc,
};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use clap::ValueEnum;
use serde_json::{Value, json};

use super::report::{Report, harmless, one_line};
use crate::{
    policy::{document::is_hidden, governance},
    rego,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// The lines of the files, with a mark under each finding; the default on a terminal
    Text,
    /// A line for each finding; the default elsewhere
    Table,
    /// A list of findings
    Json,
    /// A list of findings
    Yaml,
    /// SARIF 2.1.0, for code scanning
    Sarif,
    /// JUnit XML, a test case for each policy
    Junit,
    /// Workflow commands of GitHub Actions, which mark the lines of a change
    Github,
}

/// A document that was looked at.
#[derive(Clone, Debug)]
pub(super) struct Checked {
    pub(super) file: String,
    pub(super) name: String,
    pub(super) line: Option<usize>,
}

/// Everything there is to tell.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) reports: Vec<Report>,
    pub(super) checked: Vec<Checked>,
    pub(super) sources: BTreeMap<Arc<str>, Arc<str>>,
    /// Whether a warning is a failure.
    pub(super) strict: bool,
}

impl Outcome {
    /// Writes it down. `None` chooses by what standard output is.
    pub(super) fn write(&self, output: Option<Output>) -> anyhow::Result<String> {
        let terminal = io::stdout().is_terminal();
        let output = output.unwrap_or(if terminal { Output::Text } else { Output::Table });
        Ok(match output {
            Output::Text => {
                self.text(terminal && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
            }
            Output::Table => self.reports.iter().map(|report| format!("{report}\n")).collect(),
            Output::Json => serde_json::to_string_pretty(&self.reports)? + "\n",
            Output::Yaml => serde_saphyr::to_string(&self.reports)?,
            Output::Sarif => serde_json::to_string_pretty(&self.sarif())? + "\n",
            Output::Junit => self.junit(),
            Output::Github => self.reports.iter().map(github).collect(),
        })
    }

    fn text(&self, coloured: bool) -> String {
        let renderer = if coloured { Renderer::styled() } else { Renderer::plain() };
        let shown = self.shown();
        let sources = lines(&shown);
        let mut text = String::new();
        for report in &self.reports {
            text += &self::text(report, &sources, &renderer);
            text += "\n\n";
        }
        text
    }

    /// Returns the text of each file that something was found in, as it may be shown.
    fn shown(&self) -> HashMap<&str, Cow<'_, str>> {
        let mut shown = HashMap::new();
        for report in self.reports.iter().filter(|report| report.line.is_some()) {
            if let Some(text) = self.sources.get(report.file.as_str()) {
                shown.entry(report.file.as_str()).or_insert_with(|| harmless(text));
            }
        }
        shown
    }

    fn sarif(&self) -> Value {
        let shown = self.shown();
        let sources = lines(&shown);
        let mut rules = Rules::default();
        let results: Vec<Value> =
            self.reports.iter().map(|report| sarif_result(report, &sources, &mut rules)).collect();
        json!({
            "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
            "version": "2.1.0",
            "runs": [{
                "tool": {"driver": {
                    "name": "egress-agent",
                    "semanticVersion": env!("CARGO_PKG_VERSION"),
                    "rules": rules.list,
                }},
                "columnKind": "unicodeCodePoints",
                "results": results,
            }],
        })
    }

    fn junit(&self) -> String {
        let mut of: Vec<Vec<&Report>> = vec![Vec::new(); self.checked.len()];
        let mut files: Vec<(&str, Vec<&Report>)> = Vec::new();
        for report in &self.reports {
            match report.document.and_then(|document| of.get_mut(document)) {
                Some(reports) => reports.push(report),
                None => match files.iter_mut().find(|(file, _)| *file == report.file) {
                    Some((_, reports)) => reports.push(report),
                    None => files.push((&report.file, vec![report])),
                },
            }
        }
        let failed = |reports: &[&Report]| reports.iter().any(|report| self.strict || report.is_error());
        let failures = of.iter().filter(|reports| failed(reports)).count();
        let errors = files.iter().filter(|(_, reports)| failed(reports)).count();
        let counts = format!(
            "tests=\"{}\" failures=\"{failures}\" errors=\"{errors}\" skipped=\"0\"",
            of.len() + files.len()
        );
        let mut xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"egress-agent validate\" {counts}>\n  \
             <testsuite name=\"egress-agent validate\" {counts}>\n"
        );
        for (checked, reports) in self.checked.iter().zip(&of) {
            let line = checked.line.map_or_else(String::new, |line| format!(" line=\"{line}\""));
            let kind = if failed(reports) { "failure" } else { "" };
            case(&mut xml, &checked.file, &checked.name, &line, kind, reports);
        }
        for (file, reports) in &files {
            let kind = if failed(reports) { "error" } else { "" };
            case(&mut xml, file, "manifest", "", kind, reports);
        }
        xml + "  </testsuite>\n</testsuites>\n"
    }
}

/// Cuts texts into lines.
fn lines<'s>(texts: &'s HashMap<&'s str, Cow<'_, str>>) -> HashMap<&'s str, Vec<&'s str>> {
    texts.iter().map(|(file, text)| (*file, text.lines().collect())).collect()
}

fn text(report: &Report, sources: &HashMap<&str, Vec<&str>>, renderer: &Renderer) -> String {
    let level = if report.is_error() { Level::ERROR } else { Level::WARNING };
    let message = one_line(&report.message).into_owned();
    let mut title = level.primary_title(message);
    if let Some(rule) = &report.rule {
        title = title.id(one_line(rule).into_owned());
    }
    let Some((line, number, span)) = marked(report, sources) else {
        // Without a line to show, one line says it all.
        return report.to_string();
    };
    let about = report.about();
    let mut mark = AnnotationKind::Primary.span(span);
    if let Some(path) = &report.path {
        mark = mark.label(one_line(path).into_owned());
    }
    let snippet = Snippet::source(line)
        .line_start(number)
        .path(one_line(&report.file).into_owned())
        .fold(false)
        .annotation(mark);
    let mut group = title.element(snippet);
    if let Some(hint) = &report.hint {
        group = group.element(Level::HELP.message(one_line(hint).into_owned()));
    }
    if let Some(policy) = about.first().filter(|_| report.policy.is_some()) {
        group = group.element(Level::NOTE.message(format!("in policy {policy}")));
    }
    renderer.render(&[group])
}

/// Longest line that is shown, in bytes.
const LONGEST_LINE: usize = 1000;

/// Returns the line a report is about, its number and the bytes of it that are to be marked.
fn marked<'s>(
    report: &Report,
    sources: &HashMap<&str, Vec<&'s str>>,
) -> Option<(&'s str, usize, Range<usize>)> {
    let number = usize::try_from(report.line?).ok()?;
    let line = *sources.get(report.file.as_str())?.get(number.checked_sub(1)?)?;
    if line.len() > LONGEST_LINE {
        return None;
    }
    let span = match report.column {
        Some(column) => span_at(line, usize::try_from(column).ok()?)?,
        // On a line of blanks there is nothing to mark.
        None if line.trim().is_empty() => return None,
        None => line.len() - line.trim_start().len()..line.trim_end().len(),
    };
    Some((line, number, span))
}

/// Returns the bytes of what begins at a column, counted in characters from 1: a string, a word or a number as a whole, of
/// anything else one character.
fn span_at(line: &str, column: usize) -> Option<Range<usize>> {
    let skipped = column.checked_sub(1)?;
    let mut places = line.char_indices().map(|(at, _)| at).chain([line.len()]);
    let start = places.nth(skipped)?;
    let rest = &line[start..];
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
    let first = rest.chars().next();
    let length = match first {
        Some('"') => string_length(rest),
        Some(c) if plain(c) => rest.find(|c| !plain(c)).unwrap_or(rest.len()),
        Some(c) => c.len_utf8(),
        None => 0,
    };
    Some(start..start + length)
}

/// Returns how many bytes a string in double quotes takes; all if it is not closed.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Writes a finding as a workflow command.
fn github(report: &Report) -> String {
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    let file = report.file.strip_prefix("./").unwrap_or(&report.file);
    let mut command = format!("::{} file={}", report.severity, property(file));
    if let Some(line) = report.line {
        write!(command, ",line={line}").expect("a string takes everything");
        if let Some(column) = report.column {
            write!(command, ",col={column}").expect("a string takes everything");
        }
    }
    let title: Vec<&str> = [&report.rule, &report.policy].into_iter().flatten().map(String::as_str).collect();
    if !title.is_empty() {
        write!(command, ",title={}", property(&title.join(" "))).expect("a string takes everything");
    }
    let mut message = report.message.clone();
    if let Some(path) = &report.path {
        write!(message, " ({path})").expect("a string takes everything");
    }
    if let Some(hint) = &report.hint {
        write!(message, "; {hint}").expect("a string takes everything");
    }
    format!("{command}::{}\n", data(&message))
}

/// Escapes what ends a command or begins an escape, and what would reach into the log.
fn data(text: &str) -> String {
    let mut data = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '%' => data.push_str("%25"),
            '\r' => data.push_str("%0D"),
            '\n' => data.push_str("%0A"),
            c if is_hidden(c) => data.extend(c.escape_unicode()),
            c => data.push(c),
        }
    }
    data
}

fn case(xml: &mut String, file: &str, name: &str, line: &str, kind: &str, reports: &[&Report]) {
    write!(
        xml,
        "    <testcase classname=\"{0}\" name=\"{1}\" file=\"{0}\"{line} time=\"0\"",
        escaped(file),
        escaped(name)
    )
    .expect("a string takes everything");
    let Some(first) = reports.iter().find(|report| report.is_error()).or(reports.first()) else {
        xml.push_str("/>\n");
        return;
    };
    xml.push_str(">\n");
    let lines: String = reports.iter().map(|report| format!("{report}\n")).collect();
    let lines = escaped(&lines);
    let written = match kind {
        "" => write!(xml, "      <system-out>{lines}</system-out>\n    </testcase>\n"),
        kind => {
            let rule = first.rule.as_deref().unwrap_or(match kind {
                "error" => MANIFEST,
                _ => DOCUMENT,
            });
            write!(
                xml,
                "      <{kind} message=\"{}\" type=\"{}\">{lines}</{kind}>\n    </testcase>\n",
                escaped(&first.sentence()),
                escaped(rule)
            )
        }
    };
    written.expect("a string takes everything");
}

/// Returns a text for XML 1.0, in which some characters cannot stand at all, not even as references.
fn escaped(text: &str) -> String {
    let mut xml = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => xml.push_str("&amp;"),
            '<' => xml.push_str("&lt;"),
            '>' => xml.push_str("&gt;"),
            '"' => xml.push_str("&quot;"),
            '\n' => xml.push_str("&#10;"),
            '\t' => xml.push_str("&#9;"),
            '\r' => xml.push_str("&#13;"),
            c if is_hidden(c) || matches!(c, '\u{fffe}' | '\u{ffff}') => xml.push('\u{fffd}'),
            c => xml.push(c),
        }
    }
    xml
}

/// What SARIF calls a rule without a name of its own: what every document must obey.
const DOCUMENT: &str = "policy-document";
/// See [`DOCUMENT`]: what every file must obey.
const MANIFEST: &str = "manifest";

/// The rules of a run, each once.
#[derive(Debug, Default)]
struct Rules {
    list: Vec<Value>,
    by_id: HashMap<String, usize>,
    shipped: Option<BTreeMap<String, Shipped>>,
}

/// What a shipped rule of policy as code says of itself.
#[derive(Clone, Debug, serde::Deserialize)]
struct Shipped {
    title: String,
    #[serde(default)]
    description: String,
    custom: Custom,
}

#[derive(Clone, Debug, serde::Deserialize)]
struct Custom {
    id: String,
    severity: String,
    remediation: String,
}

impl Rules {
    /// Returns the number of the rule that a report names.
    fn index(&mut self, report: &Report) -> (String, usize) {
        let id = match (&report.rule, report.document) {
            (Some(rule), _) => rule.clone(),
            (None, Some(_)) => DOCUMENT.to_owned(),
            (None, None) => MANIFEST.to_owned(),
        };
        if let Some(index) = self.by_id.get(&id) {
            return (id, *index);
        }
        let rule = self.rule(&id, report);
        self.list.push(rule);
        self.by_id.insert(id.clone(), self.list.len() - 1);
        (id, self.list.len() - 1)
    }

    fn rule(&mut self, id: &str, report: &Report) -> Value {
        let describe = |short: &str, full: &str, help: &str, level: &str| {
            json!({
                "id": id,
                "shortDescription": {"text": short},
                "fullDescription": {"text": if full.is_empty() { short } else { full }},
                "help": {"text": help},
                "defaultConfiguration": {"level": level},
            })
        };
        match id {
            DOCUMENT => {
                return describe(
                    "The policy document is well formed",
                    "",
                    "The page about the policy document says what may stand in it; each finding says what to do.",
                    "error",
                );
            }
            MANIFEST => {
                return describe(
                    "The manifest can be read",
                    "",
                    "Write YAML or JSON objects as Kubernetes takes them.",
                    "error",
                );
            }
            _ => {}
        }
        if let Some(rule) = governance::RULES.iter().find(|rule| rule.id == id) {
            return describe(rule.title, "", rule.remediation, rule.severity.as_str());
        }
        if let Some(rule) = self.shipped.get_or_insert_with(shipped).get(id) {
            let level = if rule.custom.severity == "warning" { "warning" } else { "error" };
            return describe(&rule.title, rule.description.trim(), &rule.custom.remediation, level);
        }
        let help = report.hint.as_deref().unwrap_or("See the rule itself.");
        describe(&format!("Rule {id} of policy as code"), "", help, report.severity)
    }
}

/// Returns what the shipped rules of policy as code say of themselves.
fn shipped() -> BTreeMap<String, Shipped> {
    let mut found = BTreeMap::new();
    for (_, text) in rego::MODULES {
        let mut lines = text.lines();
        while lines.by_ref().any(|line| line == "# METADATA") {
            let block: Vec<&str> = lines.by_ref().map_while(|line| line.strip_prefix('#')).collect();
            let block: Vec<&str> =
                block.into_iter().map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
            // Blocks about packages have no id and are left out; a test counts the others.
            if let Ok(rule) = serde_saphyr::from_str::<Shipped>(&block.join("\n")) {
                found.insert(rule.custom.id.clone(), rule);
            }
        }
    }
    found
}

fn sarif_result(report: &Report, sources: &HashMap<&str, Vec<&str>>, rules: &mut Rules) -> Value {
    let (id, index) = rules.index(report);
    let mut physical = json!({"artifactLocation": {"uri": uri(&report.file)}});
    if let Some(line) = report.line {
        let mut region = json!({"startLine": line});
        if let Some(column) = report.column {
            region["startColumn"] = json!(column);
            if let Some((line, _, span)) = marked(report, sources) {
                // The column after the last one.
                let end = line[..span.end].chars().count() + 1;
                region["endColumn"] = json!(end.max(usize::try_from(column).unwrap_or(end)));
            }
        }
        physical["region"] = region;
    }
    let mut location = json!({"physicalLocation": physical});
    let about = report.about();
    if !about.is_empty() {
        let name = report.path.as_deref().or(report.policy.as_deref()).unwrap_or_default();
        location["logicalLocations"] = json!([{"name": name, "fullyQualifiedName": about.join(" ")}]);
    }
    json!({
        "ruleId": id,
        "ruleIndex": index,
        "level": report.severity,
        "message": {"text": report.sentence()},
        "locations": [location],
    })
}

/// Returns a path as a reference to a file: relative to where the program runs, or with its scheme.
fn uri(path: &str) -> String {
    let mut uri = String::from(if path.starts_with('/') { "file://" } else { "" });
    // Two slashes at the front would make the first part of the path a host.
    let path = match path.trim_start_matches('/') {
        rest if rest.len() < path.len() => &path[path.len() - rest.len() - 1..],
        _ => path.strip_prefix("./").unwrap_or(path),
    };
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                uri.push(char::from(byte));
            }
            byte => write!(uri, "%{byte:02X}").expect("a string takes everything"),
        }
    }
    uri
}

#[cfg(test)]
mod tests;
