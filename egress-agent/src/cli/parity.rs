//! `egress-agent parity`: whether generated NetworkPolicies say what the kernel layer does.

use std::{collections::BTreeMap, fmt::Write as _, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::generate::{Manner, Source};
use crate::{
    parity::{self, Difference, Objects, Outcome, compare_pods},
    policy::{cluster::NsName, generated::Direction},
};

/// The exit code when there is a difference that nothing declares.
const DIFFERENT: u8 = 1;
/// Most prefixes or pods named in a line.
const FEW: usize = 3;

/// What to compare.
#[derive(Debug, Args)]
#[command(
    after_help = "NetworkPolicies are generated as `generate networkpolicy` does, and compared with the compiled policies over every address, protocol and port.\n\n\
    Exit codes: 0 no difference but those declared as a loss, 1 another difference or an invalid policy, 2 could not run.\n\n\
    Example:\n  \
    egress-agent parity --manifests cluster/ policies/"
)]
pub struct Arguments {
    #[command(flatten)]
    source: Source,

    #[command(flatten)]
    manner: Manner,

    /// How to write the answer
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
    /// For both
    Yaml,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    /// How many pods were compared.
    pods: usize,
    /// How many objects were generated.
    objects: usize,
    /// How many of the differences nothing declares.
    undeclared: usize,
    differences: Vec<Row>,
    losses: Vec<LossRow>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    declared: Vec<String>,
    /// `generated` or `kernel`: who allows it.
    allowed_by: &'static str,
    pods: Vec<String>,
    addresses: Vec<String>,
    ports: String,
    example: Example,
    reason: String,
}

#[derive(Serialize)]
struct Example {
    from: String,
    to: String,
    protocol: u8,
    port: u16,
}

#[derive(Serialize)]
struct LossRow {
    policy: String,
    kind: &'static str,
    destination: Option<String>,
    text: String,
}

/// Compares.
///
/// # Errors
///
/// When the manifests cannot be read, or the answer cannot be written.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut read = arguments.source.read()?;
    arguments.manner.set(&mut read.options);
    let cluster = read.index.cluster();
    let objects = Objects::of(cluster, &read.settings, &read.options, read.now);
    let wanted = |name: &NsName| {
        arguments.source.namespace.as_ref().is_none_or(|namespace| name.namespace == *namespace)
    };
    let outcome = compare_pods(cluster, &read.settings, &objects, read.now, &wanted);
    let undeclared = outcome.undeclared().count();
    let text = match arguments.output {
        Output::Table => table(&outcome),
        Output::Json => serde_json::to_string_pretty(&answer(&outcome))? + "\n",
        Output::Yaml => serde_saphyr::to_string(&answer(&outcome))?,
    };
    super::write(&text).context("writing the answer")?;
    let clean = undeclared == 0 && read.valid;
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::from(DIFFERENT) })
}

fn allowed_by(direction: Direction) -> &'static str {
    match direction {
        Direction::Wider => "generated",
        Direction::Narrower => "kernel",
    }
}

fn declared(difference: &Difference) -> Vec<String> {
    difference.declared.iter().map(|(id, kind)| format!("{} of {id}", kind.as_str())).collect()
}

fn answer(outcome: &Outcome) -> Answer {
    let row = |difference: &Difference| Row {
        declared: declared(difference),
        allowed_by: allowed_by(difference.direction),
        pods: difference.pods.iter().map(ToString::to_string).collect(),
        addresses: difference.addresses.nets().map(|net| net.to_string()).collect(),
        ports: parity::shown(&difference.ports),
        example: Example {
            from: difference.pods[0].to_string(),
            to: difference.flow.destination.to_string(),
            protocol: difference.flow.protocol,
            port: difference.flow.port,
        },
        reason: difference.reason.clone(),
    };
    let losses = outcome.losses.iter().map(|(id, loss)| LossRow {
        policy: id.to_string(),
        kind: loss.kind.as_str(),
        destination: loss.destination.clone(),
        text: loss.text.clone(),
    });
    Answer {
        pods: outcome.pods,
        objects: outcome.objects,
        undeclared: outcome.undeclared().count(),
        differences: outcome.differences.iter().map(row).collect(),
        losses: losses.collect(),
    }
}

fn few(texts: impl Iterator<Item = String>) -> String {
    let mut texts = texts.peekable();
    let shown: Vec<String> = texts.by_ref().take(FEW).collect();
    match texts.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn table(outcome: &Outcome) -> String {
    let mut text = String::new();
    let mut line = |words: std::fmt::Arguments<'_>| text.write_fmt(words).expect("a string takes everything");
    for difference in &outcome.differences {
        let head = if difference.is_declared() { "declared" } else { "DIFFERENT" };
        let who = match difference.direction {
            Direction::Wider => "only the generated objects allow it",
            Direction::Narrower => "only the kernel layer allows it",
        };
        line(format_args!("{head}: {who}\n"));
        line(format_args!("  pods:      {}\n", few(difference.pods.iter().map(ToString::to_string))));
        line(format_args!("  addresses: {}\n", few(difference.addresses.nets().map(|net| net.to_string()))));
        line(format_args!("  ports:     {}\n", parity::shown(&difference.ports)));
        if difference.is_declared() {
            line(format_args!("  losses:    {}\n", few(declared(difference).into_iter())));
        }
        let flow = &difference.flow;
        line(format_args!(
            "  example:   to {} protocol {} port {}\n",
            flow.destination, flow.protocol, flow.port
        ));
        line(format_args!("  reason:    {}\n", difference.reason));
    }
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, loss) in &outcome.losses {
        *kinds.entry(loss.kind.as_str()).or_default() += 1;
    }
    let undeclared = outcome.undeclared().count();
    let all = outcome.differences.len();
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    line(format_args!(
        "{} compared with {}: {undeclared} undeclared and {}\n",
        plural(outcome.pods, "pod"),
        plural(outcome.objects, "object"),
        plural(all - undeclared, "declared difference"),
    ));
    if !kinds.is_empty() {
        let kinds = kinds.iter().map(|(kind, count)| format!("{kind} {count}"));
        line(format_args!("losses: {}\n", kinds.collect::<Vec<_>>().join(", ")));
    }
    text
}
