//! `egress-agent diff`: what a change of policies opens and closes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{
    documents::{Documents, STANDARD_INPUT},
    validate::report::{Report, one_line},
};
use crate::{
    kernel::clock,
    policy::{
        addresses::Count,
        difference::{Difference, Statement},
        document,
        finding::Finding,
        model::Policy,
    },
};

/// The exit code when something differs.
const DIFFERENT: u8 = 1;

/// What to compare.
#[derive(Debug, Args)]
#[command(
    after_help = "Policies are the same by namespace and name of their ConfigMap; documents without one by their path below OLD and NEW, or because \
    OLD and NEW are files with one document each. Each policy is looked at by itself; NetworkPolicies are not compared. What was valid until now is judged as of now: an exception \
    that has ended opens nothing.\n\n\
    Exit codes: 0 nothing differs, 1 something differs, 2 could not run, for example because a policy has errors."
)]
pub struct Arguments {
    /// Manifests, a policy.json document, or a directory of them, before the change; - for standard input
    #[arg(value_name = "OLD")]
    old: PathBuf,

    /// The same after the change
    #[arg(value_name = "NEW")]
    new: PathBuf,

    /// How to write the differences
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,

    /// Compare as of this time (RFC 3339) instead of now
    #[arg(long, value_name = "TIME", value_parser = super::second)]
    now: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people: what is opened first
    Table,
    /// A list of policies
    Json,
}

/// What differs in one policy.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Changed {
    /// Namespace and name, or the path of the document.
    policy: String,
    /// `added`, `removed` or `changed`.
    change: &'static str,
    /// Where it stands; before the change if it is gone.
    file: String,
    opens: Vec<Said>,
    closes: Vec<Said>,
    changes: Vec<Said>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Said {
    destination: Option<String>,
    text: String,
    addresses: Option<Counted>,
    /// Those of the addresses that no other destination of the policy allows.
    alone: Option<Counted>,
}

/// Numbers as texts, since those of IPv6 are too large for most readers of JSON.
#[derive(Debug, Serialize)]
struct Counted {
    ipv4: String,
    ipv6: String,
}

impl From<Count> for Counted {
    fn from(count: Count) -> Self {
        Self { ipv4: count.v4.to_string(), ipv6: count.v6.to_string() }
    }
}

impl From<Statement> for Said {
    fn from(statement: Statement) -> Self {
        let Statement { destination, text, addresses, alone } = statement;
        Self { destination, text, addresses: addresses.map(Counted::from), alone: alone.map(Counted::from) }
    }
}

/// Compares.
///
/// # Errors
///
/// When one of the two cannot be read, or a policy in it is wrong.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if arguments.old == Path::new("-") && arguments.new == Path::new("-") {
        bail!("OLD and NEW cannot both be standard input");
    }
    let now = arguments.now.unwrap_or_else(|| clock::wall_seconds_and_fraction().0);
    let (old, new) = (Policies::read(&arguments.old), Policies::read(&arguments.new));
    let (mut old, mut new) = (old?, new?);
    if let ([Key::Path(_)], [Key::Path(_)]) = (old.keys().as_slice(), new.keys().as_slice())
        && old.single
        && new.single
        && let (Some((_, before)), Some((key, after))) = (old.list.pop_first(), new.list.pop_first())
    {
        old.list.insert(key.clone(), before);
        new.list.insert(key, after);
    }
    let keys: BTreeSet<&Key> = old.list.keys().chain(new.list.keys()).collect();
    let mut list = Vec::new();
    for key in keys {
        let (before, after) = (old.list.get(key), new.list.get(key));
        let policy = |found: Option<&'_ (String, Policy)>| found.map(|(_, policy)| policy.clone());
        let difference = Difference::between(policy(before).as_ref(), policy(after).as_ref(), now);
        if difference.is_empty() {
            continue;
        }
        let Difference { opens, closes, changes } = difference;
        let said = |list: Vec<Statement>| list.into_iter().map(Said::from).collect();
        list.push(Changed {
            policy: key.to_string(),
            change: match (before, after) {
                (None, _) => "added",
                (_, None) => "removed",
                _ => "changed",
            },
            file: after.or(before).map_or_else(String::new, |(file, _)| file.clone()),
            opens: said(opens),
            closes: said(closes),
            changes: said(changes),
        });
    }
    // Those that open something are what a reviewer has to look at.
    list.sort_by_key(|changed| changed.opens.is_empty());
    let text = match arguments.output {
        Output::Table => table(&list),
        Output::Json => serde_json::to_string_pretty(&list)? + "\n",
    };
    super::write(&text).context("writing the differences")?;
    if old.network_policies + new.network_policies > 0 {
        eprintln!(
            "note: NetworkPolicies are not compared: {} before, {} after",
            old.network_policies, new.network_policies
        );
    }
    Ok(if list.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(DIFFERENT) })
}

/// What makes a policy the same one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Object(String),
    Path(String),
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Object(name) | Self::Path(name) => f.write_str(name),
        }
    }
}

/// The policies below a path, each with its file.
struct Policies {
    list: BTreeMap<Key, (String, Policy)>,
    /// Whether the path is one file.
    single: bool,
    /// How many NetworkPolicies stand beside them, which are not compared.
    network_policies: usize,
}

impl Policies {
    fn keys(&self) -> Vec<Key> {
        self.list.keys().cloned().collect()
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let mut documents = Documents::default();
        documents.add(path)?;
        let errors = documents.errors.iter().chain(&documents.twice);
        let mut wrong: Vec<String> = errors.map(|error| Report::of_file(error).to_string()).collect();
        let mut list = BTreeMap::new();
        for document in documents.list {
            let file = document.place.file.to_string();
            let Some(text) = &document.text else {
                let line = format!("{file}: error: {} has no text under policy.json", document.id);
                wrong.push(one_line(&line).into_owned());
                continue;
            };
            let parsed = document::parse(&document.id, text);
            let Some(policy) = parsed.policy else {
                let errors = parsed.findings.into_iter().filter(Finding::is_error);
                let place = &document.place;
                wrong.extend(
                    errors.map(|finding| Report::new(&document.id, finding, place, None).to_string()),
                );
                continue;
            };
            let below = Path::new(&file).strip_prefix(path).ok().filter(|rest| !rest.as_os_str().is_empty());
            let key = match (document.place.bare, below) {
                (false, _) => Key::Object(document.id.to_string()),
                (true, Some(rest)) => Key::Path(rest.display().to_string()),
                (true, None) if file == STANDARD_INPUT => Key::Path(file.clone()),
                (true, None) => Key::Path(document.id.name.clone() + ".json"),
            };
            if let Some((first, _)) = list.insert(key.clone(), (file.clone(), policy)) {
                wrong.push(one_line(&format!("{file}: error: {key} stands in {first} already")).into_owned());
            }
        }
        if !wrong.is_empty() {
            wrong.iter().for_each(|line| eprintln!("{line}"));
            bail!("{} cannot be compared because of these errors", path.display());
        }
        Ok(Self { list, single: !path.is_dir(), network_policies: documents.network_policies })
    }
}

fn table(list: &[Changed]) -> String {
    let mut text = String::new();
    for (index, changed) in list.iter().enumerate() {
        if index > 0 {
            text.push('\n');
        }
        text += &format!("{} {} ({})\n", one_line(&changed.policy), changed.change, one_line(&changed.file));
        for (word, said) in
            [("opens", &changed.opens), ("closes", &changed.closes), ("changes", &changed.changes)]
        {
            for Said { destination, text: what, .. } in said {
                let name =
                    destination.as_ref().map_or_else(String::new, |name| format!("{}: ", one_line(name)));
                text += &format!("  {word:<8}{name}{}\n", one_line(what));
            }
        }
    }
    text
}
