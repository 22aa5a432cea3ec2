//! `egress-agent validate`: what is wrong, or doubtful, in policies and manifests.

use std::{
    collections::BTreeSet,
    fmt, fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::COULD_NOT_RUN;
use crate::{
    check::{Rules, Subject},
    k8s::{
        convert::POLICY_KEY,
        manifests::{self, ManifestError, ManifestFile},
    },
    kernel::clock,
    policy::{
        cluster::{Cluster, NsName, Settings},
        compile::{Why, compile_all},
        finding::{Finding, Severity},
        index::{Change, Index, Object, ObjectKey},
        model::{Effect, Peer, Policy, PolicyKind, RulePart},
    },
    rego,
};

/// The exit code when something was found.
const FINDINGS: u8 = 1;

/// What standard input is called in findings.
const STANDARD_INPUT: &str = "<stdin>";

/// What to check.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Manifests, policy.json documents, and directories of them; - for standard input
    #[arg(value_name = "PATH", required_unless_present = "test")]
    paths: Vec<PathBuf>,

    /// Run the tests of policy as code in the PATHs, which are folders then; without one those of the shipped rules
    #[arg(long, conflicts_with_all = ["output", "fail_on_warn"])]
    test: bool,

    /// How to write the findings
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,

    /// Fail on warnings too
    #[arg(long)]
    fail_on_warn: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A line for each
    Table,
    /// A list
    Json,
    /// A list
    Yaml,
}

/// Something found, with its place.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    file: String,
    /// In the file; of the policy or the object where nothing nearer is known.
    line: Option<u64>,
    column: Option<u64>,
    policy: Option<String>,
    severity: &'static str,
    /// The field.
    path: Option<String>,
    message: String,
    hint: Option<String>,
    /// The rule of governance or of policy as code that found it.
    rule: Option<String>,
    /// The place in the text of the policy, where that cannot be turned into one in the file.
    policy_line: Option<u32>,
    policy_column: Option<u32>,
}

impl Report {
    fn is_error(&self) -> bool {
        self.severity == Severity::Error.as_str()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
            if let Some(column) = self.column {
                write!(f, ":{column}")?;
            }
        }
        write!(f, ": {}: {}", self.severity, self.message)?;
        let mut about = Vec::new();
        about.extend(self.policy.clone());
        about.extend(self.path.clone());
        if let (Some(line), Some(column)) = (self.policy_line, self.policy_column) {
            about.push(format!("{POLICY_KEY} line {line} column {column}"));
        }
        if !about.is_empty() {
            write!(f, " ({})", about.join(", "))?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        if let Some(rule) = &self.rule {
            write!(f, " [{rule}]")?;
        }
        Ok(())
    }
}

/// What has been found so far.
#[derive(Debug)]
struct Check {
    now: u64,
    rules: Rules,
    reports: Vec<Report>,
    policies: usize,
    index: Index,
    seen: BTreeSet<ObjectKey>,
    /// Where the policies stand whose unresolved destinations are told at the end.
    places: Vec<(NsName, Place)>,
}

/// Where the text of a policy stands in a file.
#[derive(Clone, Debug)]
struct Place {
    file: String,
    /// The line of the file before the text's first, and what stands before each of its lines; `None` if the text does not
    /// stand in the file as it is.
    offset: Option<(usize, usize)>,
    /// The line of the object, as near as is known.
    line: Option<usize>,
    /// Whether the file is the policy.
    bare: bool,
}

/// Checks.
///
/// # Errors
///
/// When the findings cannot be written.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if arguments.test {
        let report = rego::test::run(&arguments.paths)?;
        write!(io::stdout().lock(), "{report}").context("writing what the tests came to")?;
        return Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::from(FINDINGS) });
    }
    let mut check = Check {
        now: clock::wall_seconds_and_fraction().0,
        rules: Rules::default(),
        reports: Vec::new(),
        policies: 0,
        index: Index::default(),
        seen: BTreeSet::new(),
        places: Vec::new(),
    };
    let mut unreadable = false;
    for path in &arguments.paths {
        if let Err(error) = check.path(path) {
            eprintln!("error: {error:#}");
            unreadable = true;
        }
    }
    check.unmatched();
    let Check { reports, policies, .. } = check;
    write(&reports, arguments.output).context("writing the findings")?;
    let errors = reports.iter().filter(|report| report.is_error()).count();
    let warnings = reports.len() - errors;
    let count = |number: usize, word: &str| match number {
        1 => format!("1 {word}"),
        number => format!("{number} {word}s"),
    };
    let checked = if policies == 1 { "1 policy".to_owned() } else { format!("{policies} policies") };
    eprintln!("{checked} checked: {}, {}", count(errors, "error"), count(warnings, "warning"));
    Ok(if unreadable {
        ExitCode::from(COULD_NOT_RUN)
    } else if errors > 0 || (arguments.fail_on_warn && warnings > 0) {
        ExitCode::from(FINDINGS)
    } else {
        ExitCode::SUCCESS
    })
}

fn write(reports: &[Report], output: Output) -> anyhow::Result<()> {
    let text = match output {
        Output::Table => reports.iter().map(|report| format!("{report}\n")).collect(),
        Output::Json => serde_json::to_string_pretty(reports)? + "\n",
        Output::Yaml => serde_saphyr::to_string(&reports)?,
    };
    Ok(io::stdout().lock().write_all(text.as_bytes())?)
}

impl Check {
    fn path(&mut self, path: &Path) -> anyhow::Result<()> {
        if path == Path::new("-") {
            let mut text = String::new();
            io::stdin().lock().read_to_string(&mut text).context("reading standard input")?;
            if is_bare(&text) {
                self.bare(STANDARD_INPUT, "stdin", &text);
            } else {
                self.manifest(manifests::parse(STANDARD_INPUT.into(), &text), &text);
            }
            return Ok(());
        }
        let named = !path.is_dir();
        for file in manifests::load(path)?.files {
            // What cannot be read has been reported among the file's errors, so its text matters no more.
            let text = match fs::read_to_string(&file.path) {
                Ok(text) => text,
                Err(error) if named => {
                    return Err(error).with_context(|| format!("cannot read {}", path.display()));
                }
                Err(_) => {
                    self.errors(&file.errors);
                    continue;
                }
            };
            let json = file.path.extension().is_some_and(|extension| extension == "json");
            if (json || named) && is_bare(&text) {
                let stem = file.path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
                self.bare(&file.path.display().to_string(), stem.as_deref().unwrap_or("policy"), &text);
            } else {
                self.manifest(file, &text);
            }
        }
        Ok(())
    }

    /// Checks a text that is a policy without a ConfigMap around it.
    fn bare(&mut self, file: &str, name: &str, text: &str) {
        let place = Place { file: file.to_owned(), offset: Some((0, 0)), line: None, bare: true };
        self.policy(&NsName::new("default", name), text, &place);
    }

    fn errors(&mut self, errors: &[ManifestError]) {
        for error in errors {
            self.reports.push(Report {
                file: error.path.display().to_string(),
                line: error.line.map(|line| line as u64),
                column: None,
                policy: None,
                severity: Severity::Error.as_str(),
                path: None,
                message: error.message.clone(),
                hint: error.hint.clone(),
                rule: None,
                policy_line: None,
                policy_column: None,
            });
        }
    }

    fn manifest(&mut self, file: ManifestFile, text: &str) {
        self.errors(&file.errors);
        let mut scalars = block_scalars(text);
        for (key, object) in file.objects {
            match &object {
                Object::ConfigMap { id, managed: true, policy } => {
                    let mut place = Place {
                        file: file.path.display().to_string(),
                        offset: None,
                        line: name_line(text, &id.name),
                        bare: false,
                    };
                    if let Some(policy) = policy {
                        // The first block that says the same and is not another policy's.
                        let same = |scalar: &Scalar| scalar.text.trim_end() == policy.trim_end();
                        if let Some(found) = scalars.iter().position(same) {
                            let scalar = scalars.remove(found);
                            place.offset = Some((scalar.line, scalar.indent));
                        }
                        self.policy(id, policy, &place);
                    } else {
                        self.policies += 1;
                        let finding = Finding {
                            severity: Severity::Error,
                            path: String::new(),
                            line: 0,
                            column: 0,
                            message: format!("no text under `{POLICY_KEY}`"),
                            hint: Some(
                                "put the policy under that key, or take the label `egress-controller: managed` off".into(),
                            ), rule: None,
                        };
                        self.report(id, finding, &place);
                    }
                }
                Object::NetworkPolicy(..) => self.policies += 1,
                _ => {}
            }
            // Of an object that stands twice the first counts, as for the agent.
            if self.seen.insert(key) {
                self.apply(object);
            }
        }
    }

    /// Takes an object into the cluster. What that changes is looked at when all are there.
    fn apply(&mut self, object: Object) {
        let _: Change = self.index.apply(object);
    }

    fn policy(&mut self, id: &NsName, text: &str, place: &Place) {
        self.policies += 1;
        let subject = Subject { id, text, old: None, profile: self.rules.governance.profile };
        let judgement = self.rules.judge(&subject, self.now);
        for finding in judgement.findings {
            self.report(id, finding, place);
        }
        if judgement.policy.is_some() {
            self.places.push((id.clone(), place.clone()));
        }
    }

    fn report(&mut self, id: &NsName, finding: Finding, place: &Place) {
        let Finding { severity, path, line, column, message, hint, rule } = finding;
        let known = line > 0;
        let (in_file, in_policy) = match place.offset {
            Some((before, indent)) if known => (
                (Some(before + line as usize), (column > 0).then_some(indent + column as usize)),
                (None, None),
            ),
            _ => (
                (place.offset.map(|(before, _)| before).filter(|line| *line > 0).or(place.line), None),
                (known.then_some(line), known.then_some(column)),
            ),
        };
        self.reports.push(Report {
            file: place.file.clone(),
            line: in_file.0.map(|line| line as u64),
            column: in_file.1.map(|column| column as u64),
            policy: (!place.bare).then(|| id.to_string()),
            severity: severity.as_str(),
            path: (!path.is_empty()).then_some(path),
            message,
            hint,
            rule,
            policy_line: in_policy.0,
            policy_column: in_policy.1,
        });
    }

    /// Warns of destinations that name what the manifests do not have, if there are pods to ask for.
    fn unmatched(&mut self) {
        let cluster = self.index.cluster();
        let mut found = BTreeSet::new();
        for compiled in compile_all(cluster, &Settings::default(), cluster.pods.keys()).into_values() {
            for unmatched in compiled.unresolved {
                let RulePart::Destination(name) = &unmatched.rule.part else { continue };
                let told = match &unmatched.why {
                    // Told for every policy already.
                    Why::NotLookedUp(_) => false,
                    // Without any Services among the manifests, that one is absent says nothing.
                    Why::NoService(_) => !cluster.services.is_empty(),
                    Why::ExternalName(..) => true,
                    Why::NoNode(_) => !cluster.nodes.is_empty(),
                };
                if told && unmatched.rule.policy.kind == PolicyKind::ConfigMap {
                    found.insert((unmatched.rule.policy.id.clone(), name.clone(), unmatched.why.to_string()));
                }
            }
        }
        let findings: Vec<_> = found
            .into_iter()
            .filter_map(|(id, name, why)| {
                let place = self.places.iter().find(|(other, _)| *other == id)?.1.clone();
                let finding = Finding {
                    severity: Severity::Warning,
                    path: path_of(cluster, &id, &name),
                    line: 0,
                    column: 0,
                    message: format!("{name} matches nothing: {why}"),
                    hint: None,
                    rule: None,
                };
                Some((id, finding, place))
            })
            .collect();
        for (id, finding, place) in findings {
            self.report(&id, finding, &place);
        }
    }
}

/// Returns where a destination stands in its policy.
fn path_of(cluster: &Cluster, id: &NsName, name: &str) -> String {
    cluster
        .policies
        .values()
        .filter(|policy| policy.id.kind == PolicyKind::ConfigMap && policy.id.id == *id)
        .flat_map(|policy| paths(policy))
        .find(|(_, other, _)| *other == name)
        .map_or_else(String::new, |(path, _, _)| path)
}

/// Each rule of a policy with the field it stands in and its name.
fn paths(policy: &Policy) -> impl Iterator<Item = (String, &str, &[Peer])> {
    let (mut allowed, mut denied) = (0, 0);
    policy.rules.iter().map(move |rule| {
        let (list, index) = match rule.effect {
            Effect::Allow => ("allowedDestinations", &mut allowed),
            Effect::Deny => ("deniedDestinations", &mut denied),
        };
        let path = format!("{list}[{index}]");
        *index += 1;
        (path, rule.name.as_str(), rule.peers.as_slice())
    })
}

/// Returns whether a text is a policy document rather than an object: a JSON object without apiVersion and kind.
fn is_bare(text: &str) -> bool {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if !text.trim_start().starts_with('{') {
        return false;
    }
    match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text) {
        Ok(fields) => !fields.contains_key("apiVersion") && !fields.contains_key("kind"),
        // Several objects in a row, or a broken one: what it looks like decides.
        Err(_) => !text.contains("\"apiVersion\"") && !text.contains("\"kind\""),
    }
}

/// A block of text under `policy.json` in YAML.
#[derive(Debug)]
struct Scalar {
    /// The line of its key, from 1: the line before its first.
    line: usize,
    /// How many blanks stand before each of its lines.
    indent: usize,
    text: String,
}

/// Finds every `policy.json: |` and the lines that belong to it.
fn block_scalars(text: &str) -> Vec<Scalar> {
    let lines: Vec<&str> = text.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start_matches(' ').len();
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let key = line.trim_start().trim_start_matches("? ");
        let rest = [POLICY_KEY, "\"policy.json\"", "'policy.json'"]
            .iter()
            .find_map(|name| key.strip_prefix(name)?.trim_start().strip_prefix(':'));
        if !rest.is_some_and(|rest| rest.trim_start().starts_with('|')) {
            continue;
        }
        let Some(first) = lines[i + 1..].iter().find(|line| !line.trim().is_empty()) else { continue };
        let depth = indent(first);
        if depth <= indent(line) {
            continue;
        }
        let body = lines[i + 1..].iter().take_while(|line| line.trim().is_empty() || indent(line) >= depth);
        let text: Vec<&str> = body.map(|line| line.get(depth..).unwrap_or("")).collect();
        found.push(Scalar { line: i + 1, indent: depth, text: text.join("\n") });
    }
    found
}

/// Returns the first line that gives an object this name.
fn name_line(text: &str, name: &str) -> Option<usize> {
    let bare = |text: &str| text.trim().trim_end_matches(',').trim_matches(['"', '\'']).to_owned();
    text.lines()
        .position(|line| {
            line.split_once(':').is_some_and(|(key, value)| {
                bare(key.trim_start().trim_start_matches("- ")) == "name" && bare(value) == name
            })
        })
        .map(|line| line + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_with_their_depth() {
        let text = "data:\n  policy.json: |\n    {\n      \"a\": 1\n    }\n  other: x\n";
        let found = block_scalars(text);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].line, found[0].indent), (2, 4));
        assert_eq!(found[0].text, "{\n  \"a\": 1\n}");
    }

    #[test]
    fn a_document_is_told_from_an_object() {
        assert!(is_bare("{\"defaultAction\": \"deny\"}"));
        assert!(is_bare(" {\"defaultAction\": "));
        assert!(!is_bare("{\"apiVersion\": \"v1\", \"kind\": \"Pod\"}"));
        assert!(!is_bare("apiVersion: v1\nkind: Pod\n"));
    }
}
