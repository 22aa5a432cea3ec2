//! `egress-agent exceptions`: who may go where beyond the default, why, and until when.

use std::{cmp::Ordering, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::ListParams};
use serde::Serialize;

use super::{
    documents::Documents,
    validate::report::{Report, one_line},
};
use crate::{
    k8s::{
        client::{self, Access},
        convert::{self, MANAGED},
    },
    kernel::clock,
    policy::{
        cluster::NsName,
        document::{self, is_hidden},
        governance::{is_active, when},
        index::Object,
        model::{Effect, Governance, Policy},
    },
};

/// The exit code when a policy could not be read, so that exceptions may be missing.
const INCOMPLETE: u8 = 1;

/// Objects asked for at a time.
const PAGE: u32 = 500;

/// How long the API server may take for all of them.
const PATIENCE: Duration = Duration::from_secs(120);

const DAY: u64 = 24 * 60 * 60;

/// What to do with exceptions.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the allowed destinations of policies, those that end first at the top
    List(List),
}

/// Which exceptions to list.
#[derive(Debug, Args)]
#[command(
    after_help = "Without a PATH the policies are those of the cluster that the kubeconfig names, in the namespace of its context unless -n or -A says otherwise.\n\n\
    Exit codes: 0 all were listed, 1 a policy could not be read, 2 could not run.\n\n\
    Examples:\n  \
    egress-agent exceptions list -A --expiring 30d\n  \
    egress-agent exceptions list policies/ -o csv > exceptions.csv"
)]
struct List {
    /// Read manifests, policy.json documents, and directories of them; - for standard input
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,

    /// Only those that end within this time, such as 30d, 2w or 12h, or have ended
    #[arg(long, value_name = "TIME", value_parser = span)]
    expiring: Option<u64>,

    /// Of every namespace; with a PATH the default
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,

    /// Of this namespace only
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// How to write the list
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,

    /// List as of this time (RFC 3339) instead of now
    #[arg(long, value_name = "TIME", value_parser = super::second)]
    now: Option<u64>,

    /// Find the API server in this file; without it in KUBECONFIG's, the home directory's, or the pod's service account
    #[arg(long, value_name = "FILE", env = "EGRESS_KUBECONFIG", help_heading = "Cluster")]
    kubeconfig: Option<PathBuf>,

    /// Use this context of the kubeconfig instead of its current one
    #[arg(long, value_name = "NAME", env = "EGRESS_CONTEXT", help_heading = "Cluster")]
    context: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For people with wide screens: every field
    Wide,
    /// A list
    Json,
    /// RFC 4180, with a head line
    Csv,
}

/// An allowed destination.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Exception {
    namespace: String,
    policy: String,
    destination: String,
    /// `None`: it never ends.
    expires: Option<String>,
    /// `active` or `expired`.
    state: &'static str,
    /// Whole days until it ends; negative since it ended.
    days_left: Option<i64>,
    owner: Option<String>,
    reason: Option<String>,
    scope: Option<String>,
    data_classification: Option<String>,
    audit_ref: Option<String>,
    /// The file; `None` if it is in the cluster.
    file: Option<String>,
    #[serde(skip)]
    end: Option<u64>,
}

/// Reads a span of time as seconds.
fn span(text: &str) -> Result<u64, String> {
    let wrong = || "write it like 30d, 2w or 12h".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit = match &text[digits..] {
        "h" => 60 * 60,
        "d" => DAY,
        "w" => 7 * DAY,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).ok_or_else(wrong)
}

/// Does what is asked.
///
/// # Errors
///
/// When the policies cannot be had, or the list cannot be written.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let Command::List(list) = &arguments.command;
    list.run()
}

impl List {
    fn run(&self) -> anyhow::Result<ExitCode> {
        let now = self.now.unwrap_or_else(|| clock::wall_seconds_and_fraction().0);
        let found = if self.paths.is_empty() { self.cluster()? } else { self.files()? };
        let Found { policies, complete } = found;
        let mut rows: Vec<Exception> = policies
            .iter()
            .filter(|(policy, _)| {
                self.namespace.as_ref().is_none_or(|namespace| policy.id.id.namespace == *namespace)
            })
            .flat_map(|(policy, file)| exceptions(policy, file.as_deref(), now))
            .filter(|row| match (self.expiring, row.end) {
                (None, _) => true,
                (Some(span), Some(end)) => end <= now.saturating_add(span),
                (Some(_), None) => false,
            })
            .collect();
        rows.sort_by(|a, b| {
            let end = |row: &Exception| row.end.unwrap_or(u64::MAX);
            let name = |row: &Exception| (row.namespace.clone(), row.policy.clone());
            match end(a).cmp(&end(b)) {
                Ordering::Equal => name(a).cmp(&name(b)),
                order => order,
            }
        });
        let text = match self.output {
            Output::Table => table(&rows, 6),
            Output::Wide => table(&rows, HEAD.len()),
            Output::Json => serde_json::to_string_pretty(&rows)? + "\n",
            Output::Csv => csv(&rows),
        };
        super::write(&text).context("writing the list")?;
        Ok(if complete { ExitCode::SUCCESS } else { ExitCode::from(INCOMPLETE) })
    }

    fn files(&self) -> anyhow::Result<Found> {
        let mut documents = Documents::default();
        for path in &self.paths {
            documents.add(path)?;
        }
        let errors = || documents.errors.iter().chain(&documents.twice);
        let mut found = Found { policies: Vec::new(), complete: errors().next().is_none() };
        for error in errors() {
            eprintln!("{}", Report::of_file(error));
        }
        // Of objects of the same name all are listed: nobody knows which of them the cluster would have.
        for document in &documents.list {
            found.add(&document.id, document.text.as_deref(), Some(&document.place.file));
        }
        Ok(found)
    }

    fn cluster(&self) -> anyhow::Result<Found> {
        let access = Access { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting the runtime")?;
        let objects = runtime.block_on(async {
            tokio::time::timeout(PATIENCE, self.objects(&access))
                .await
                .context("the API server takes too long")?
        })?;
        let mut found = Found { policies: Vec::new(), complete: true };
        for object in objects {
            let object = convert::config_map(object).context("reading a ConfigMap")?;
            // Only those with the label were asked for.
            if let Object::ConfigMap { id, managed: true, policy } = object {
                found.add(&id, policy.as_deref(), None);
            }
        }
        Ok(found)
    }

    async fn objects(&self, access: &Access) -> anyhow::Result<Vec<ConfigMap>> {
        let (client, _) = client::connect(access).await?;
        let api: Api<ConfigMap> = match (&self.namespace, self.all_namespaces) {
            (_, true) => Api::all(client),
            (Some(namespace), false) => Api::namespaced(client, namespace),
            (None, false) => Api::default_namespaced(client),
        };
        let mut parameters =
            ListParams::default().labels(&format!("{}={}", MANAGED.0, MANAGED.1)).limit(PAGE);
        let mut objects = Vec::new();
        loop {
            let page = api.list(&parameters).await.context("listing the policies of the cluster")?;
            objects.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters = parameters.continue_token(&token),
                None => return Ok(objects),
            }
        }
    }
}

/// What could be read.
struct Found {
    /// Each with its file.
    policies: Vec<(Policy, Option<String>)>,
    complete: bool,
}

impl Found {
    fn add(&mut self, id: &NsName, text: Option<&str>, file: Option<&str>) {
        let at = file.map_or_else(String::new, |file| format!("{}: ", one_line(file)));
        let name = id.to_string();
        let name = one_line(&name);
        let Some(text) = text else {
            eprintln!("{at}error: {name} has no text under policy.json");
            self.complete = false;
            return;
        };
        let parsed = document::parse(id, text);
        match parsed.policy {
            Some(policy) => self.policies.push((policy, file.map(str::to_owned))),
            None => {
                for finding in parsed.findings.iter().filter(|finding| finding.is_error()) {
                    eprintln!("{at}error: {name}: {}", one_line(&finding.to_string()));
                }
                self.complete = false;
            }
        }
    }
}

fn exceptions(policy: &Policy, file: Option<&str>, now: u64) -> Vec<Exception> {
    let allowed = policy.rules.iter().filter(|rule| rule.effect == Effect::Allow);
    allowed
        .map(|rule| {
            let Governance { owner, reason, scope, data_classification, audit_ref } = rule.governance.clone();
            let left = |end: u64| {
                let seconds = i128::from(end) - i128::from(now);
                i64::try_from(seconds.div_euclid(i128::from(DAY))).unwrap_or(i64::MAX)
            };
            Exception {
                namespace: policy.id.id.namespace.clone(),
                policy: policy.id.id.name.clone(),
                destination: rule.name.clone(),
                expires: rule.expires.map(when),
                state: if is_active(rule.expires, now) { "active" } else { "expired" },
                days_left: rule.expires.map(left),
                owner,
                reason,
                scope,
                data_classification,
                audit_ref,
                file: file.map(str::to_owned),
                end: rule.expires,
            }
        })
        .collect()
}

const HEAD: [&str; 12] = [
    "namespace",
    "policy",
    "destination",
    "expires",
    "state",
    "owner",
    "daysLeft",
    "dataClassification",
    "auditRef",
    "reason",
    "scope",
    "file",
];

/// Returns the fields in the order of [`HEAD`].
fn fields(row: &Exception) -> [Option<String>; HEAD.len()] {
    [
        Some(row.namespace.clone()),
        Some(row.policy.clone()),
        Some(row.destination.clone()),
        row.expires.clone(),
        Some(row.state.to_owned()),
        row.owner.clone(),
        row.days_left.map(|days| days.to_string()),
        row.data_classification.clone(),
        row.audit_ref.clone(),
        row.reason.clone(),
        row.scope.clone(),
        row.file.clone(),
    ]
}

/// Returns the first `columns` of each row, under each other.
fn table(rows: &[Exception], columns: usize) -> String {
    let head = HEAD.map(|name| {
        let mut word = String::new();
        for c in name.chars() {
            if c.is_ascii_uppercase() {
                word.push('-');
            }
            word.push(c.to_ascii_uppercase());
        }
        word
    });
    let cell = |field: Option<String>| {
        field.map_or_else(|| "<none>".to_owned(), |text| one_line(&text).into_owned())
    };
    let rows: Vec<Vec<String>> = std::iter::once(head.to_vec())
        .chain(rows.iter().map(|row| fields(row).map(cell).to_vec()))
        .map(|row| row.into_iter().take(columns).collect())
        .collect();
    if rows.len() == 1 {
        return "No exceptions.\n".to_owned();
    }
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
    }
    text
}

fn csv(rows: &[Exception]) -> String {
    let quoted = |text: &str| match text.contains(['"', ',', '\n', '\r']) || text.trim() != text {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    };
    let mut text = HEAD.join(",") + "\r\n";
    for row in rows {
        let field = |text: String| match text.contains(|c: char| is_hidden(c) && c != '\n') {
            true => quoted(&one_line(&text)),
            false => quoted(&text),
        };
        let fields = fields(row).map(|text| text.map_or_else(String::new, field));
        text += &(fields.join(",") + "\r\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        for (text, expected) in [("30d", 30 * DAY), ("2w", 14 * DAY), ("12h", DAY / 2), ("0d", 0)] {
            assert_eq!(span(text), Ok(expected), "{text}");
        }
        for text in ["", "30", "d", "30m", "-1d", "1.5d", "99999999999999999999d", "18446744073709551615w"] {
            assert!(span(text).is_err(), "{text}");
        }
    }
}
