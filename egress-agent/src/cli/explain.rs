//! `egress-agent explain`: what the policies say about flows, and why.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use egress_common::verdict::Verdict;
use ipnet::IpNet;
use serde::Serialize;

use super::COULD_NOT_RUN;
use crate::{
    explain::{
        AnswerLine, Engine, Explainer, Family, ProtocolName, Question, Resolved, Target, missed, mode_name,
        namespaced, policy_name, protocol_name, resolve, sentence, time,
    },
    k8s::manifests::DirectorySource,
    kernel::{
        clock,
        loader::{Capacities, LoadError},
        object,
        program_run::{ProgramRun, RunError},
    },
    policy::{
        cluster::{Cluster, InvalidPolicy, NsName, Settings},
        compile::compile,
        index::{self, Index},
        model::DefaultAction,
        reference::nearest_allow,
    },
    ranges::files::{Files, provider_file},
};

/// The exit code of a denied flow.
const DENIED: u8 = 1;

/// What to ask.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Read Namespaces, Pods, Services, EndpointSlices, Nodes, ConfigMaps and NetworkPolicies from these files and directories
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    manifests: Vec<PathBuf>,

    /// Read a provider's address ranges from this file, in the provider's own format; `custom` for services of your own; may be given
    /// several times
    #[arg(long, value_name = "PROVIDER=FILE", value_parser = provider_file)]
    ranges: Vec<(String, PathBuf)>,

    /// Answer the flows in this file, a JSON object on each line; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["from", "to"], required_unless_present = "from")]
    flows: Option<PathBuf>,

    /// The pod that sends
    #[arg(long, value_name = "NAMESPACE/POD", requires = "to")]
    from: Option<String>,

    /// Where to: an address, pod:NAMESPACE/NAME or service:NAMESPACE/NAME, with :PORT
    #[arg(long, value_name = "DESTINATION", requires = "from")]
    to: Option<String>,

    /// TCP, UDP, SCTP, ICMP or a number
    #[arg(long, value_name = "PROTOCOL", default_value = "TCP", conflicts_with = "flows")]
    protocol: String,

    /// Which address of a pod or Service; IPv4 unless it has none
    #[arg(long, value_name = "FAMILY", conflicts_with = "flows")]
    family: Option<FamilyArgument>,

    /// How to write the answer; flows from a file are answered in JSON only
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Output>,

    /// What answers
    #[arg(long, value_name = "ENGINE", default_value = "entries")]
    engine: EngineArgument,

    /// Answer for this time (RFC 3339) instead of now
    #[arg(long, value_name = "TIME", value_parser = super::second)]
    at: Option<u64>,

    /// Take every policy as if it said mode audit, as an agent with this flag does
    #[arg(long)]
    audit: bool,

    /// Take the egress rules of NetworkPolicies into account
    #[arg(long)]
    enforce_network_policy: bool,

    /// Namespaces whose pods are denied by default while no policy selects them
    #[arg(long, value_name = "NAMESPACE,…", value_delimiter = ',')]
    governed_namespaces: Vec<String>,

    /// What a policy that never had a valid version does to its namespace
    #[arg(long, value_name = "ACTION", default_value = "deny")]
    invalid_policy: Invalid,

    /// Services that answer the cluster's names
    #[arg(
        long,
        value_name = "NAMESPACE/NAME,…",
        default_value = "kube-system/kube-dns",
        value_delimiter = ',',
        value_parser = |text: &str| namespaced(text).map_err(|error| error.to_string())
    )]
    cluster_dns: Vec<NsName>,

    /// Further addresses pods ask for names, such as a node-local cache
    #[arg(long, value_name = "ADDRESS,…", value_delimiter = ',')]
    cluster_dns_addresses: Vec<IpAddr>,

    /// Prefixes that belong to the cluster, so not to the entity `world`
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    cluster_cidrs: Vec<IpNet>,

    /// Ask this BPF object instead of the one inside the binary
    #[arg(long, value_name = "FILE", env = "EGRESS_BPF_OBJECT_FILE")]
    bpf_object: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FamilyArgument {
    Ipv4,
    Ipv6,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EngineArgument {
    /// The policies as they are written, rule by rule
    Reference,
    /// The compiled entries, looked up as the kernel does
    Entries,
    /// The program itself, loaded but not attached; needs root
    Kernel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Invalid {
    /// Its pods are denied by default
    Deny,
    /// Nothing
    Ignore,
}

impl Arguments {
    fn settings(&self) -> Settings {
        Settings {
            enforce_network_policy: self.enforce_network_policy,
            governed_namespaces: self.governed_namespaces.iter().cloned().collect(),
            invalid_policy: match self.invalid_policy {
                Invalid::Deny => InvalidPolicy::Deny,
                Invalid::Ignore => InvalidPolicy::Ignore,
            },
            cluster_dns: self.cluster_dns.clone(),
            cluster_dns_addresses: self.cluster_dns_addresses.clone(),
            cluster_cidrs: self.cluster_cidrs.clone(),
        }
    }

    fn engine(&self) -> anyhow::Result<Engine> {
        Ok(match self.engine {
            EngineArgument::Reference => Engine::Reference,
            EngineArgument::Entries => Engine::Entries,
            EngineArgument::Kernel => Engine::Kernel(Box::new(self.program()?)),
        })
    }

    fn program(&self) -> anyhow::Result<ProgramRun> {
        let read;
        let object = match &self.bpf_object {
            Some(path) => {
                read =
                    std::fs::read(path).with_context(|| format!("reading BPF object {}", path.display()))?;
                read.as_slice()
            }
            None => object::embedded().ok_or(LoadError::NoObject)?,
        };
        ProgramRun::new(object, Capacities::default()).map_err(|error| match error {
            RunError::Load(LoadError::Privilege { .. }) => anyhow::Error::new(error)
                .context("--engine kernel needs root; run it with sudo, or use --engine entries"),
            other => other.into(),
        })
    }
}

/// Answers.
///
/// # Errors
///
/// When there is nothing to answer from, or the engine cannot be had.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let index = load(&arguments.manifests, &arguments.ranges, arguments.audit)?;
    let settings = arguments.settings();
    let now = arguments.at.unwrap_or_else(|| clock::wall_seconds_and_fraction().0);
    let mut explainer = Explainer::new(index.cluster(), &settings, arguments.engine()?);
    match &arguments.flows {
        Some(_) if arguments.output.is_some_and(|output| output != Output::Json) => {
            bail!("flows from a file are answered with -o json only");
        }
        Some(path) => batch(path, index.cluster(), &mut explainer, now),
        None => single(arguments, index.cluster(), &settings, &mut explainer, now),
    }
}

/// Reads the manifests. What is wrong with some of them goes to standard error.
fn load(paths: &[PathBuf], ranges: &[(String, PathBuf)], audit: bool) -> anyhow::Result<Index> {
    let index = Index::default();
    let mut index = if audit { index.auditing() } else { index };
    // Nothing was made of the index yet that would have to change.
    let _: index::Change = index.set_ranges(Files::load(ranges, clock::wall_seconds_and_fraction().0)?);
    let reload = DirectorySource::with_paths(paths.to_vec()).reload(&mut index);
    for error in &reload.errors {
        eprintln!("{error}");
    }
    for problem in index.problems() {
        for finding in problem.findings {
            eprintln!("{}: {}: {finding}", problem.policy, finding.severity);
        }
    }
    if reload.objects == 0 {
        let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        bail!("no objects could be read from {}", paths.join(", "));
    }
    Ok(index)
}

#[derive(Serialize)]
struct ErrorLine {
    error: String,
}

/// Answers each line with a line, at once.
fn batch(
    path: &Path,
    cluster: &Cluster,
    explainer: &mut Explainer<'_>,
    now: u64,
) -> anyhow::Result<ExitCode> {
    let reading = || format!("reading flows from {}", path.display());
    let mut input: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(path).with_context(reading)?))
    };
    let mut output = io::stdout().lock();
    let mut failed = false;
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line).with_context(reading)? == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let text = match answer(&line, cluster, explainer, now) {
            Ok(answer) => serde_json::to_string(&answer)?,
            Err(error) => {
                failed = true;
                serde_json::to_string(&ErrorLine { error: format!("{error:#}") })?
            }
        };
        writeln!(output, "{text}").context("writing answers")?;
    }
    output.flush().context("writing answers")?;
    Ok(if failed { ExitCode::from(COULD_NOT_RUN) } else { ExitCode::SUCCESS })
}

fn answer(
    line: &[u8],
    cluster: &Cluster,
    explainer: &mut Explainer<'_>,
    now: u64,
) -> anyhow::Result<AnswerLine> {
    let question: Question = serde_json::from_slice(line).context("not a flow")?;
    let asked = resolve(cluster, &question)?;
    Ok(AnswerLine::from(&explainer.answer(&asked, now)?))
}

/// Everything there is to say about one flow.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Explanation {
    from: String,
    to: String,
    address: IpAddr,
    protocol: String,
    port: Option<u16>,
    at: String,
    #[serde(flatten)]
    answer: AnswerLine,
    why: &'static str,
    selected_by: Vec<Selecting>,
    nearest: Option<Nearest>,
    change: Option<Change>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Selecting {
    policy: String,
    mode: &'static str,
    default_action: &'static str,
}

#[derive(Debug, Serialize)]
struct Nearest {
    policy: String,
    destination: String,
    why: String,
}

#[derive(Debug, Serialize)]
struct Change {
    at: String,
    #[serde(flatten)]
    answer: AnswerLine,
}

fn single(
    arguments: &Arguments,
    cluster: &Cluster,
    settings: &Settings,
    explainer: &mut Explainer<'_>,
    now: u64,
) -> anyhow::Result<ExitCode> {
    let from = arguments.from.clone().expect("clap asks for it where there are no flows");
    let written = arguments.to.clone().expect("clap asks for it with --from");
    let (to, port) = target(&written)?;
    let family = arguments.family.map(|family| match family {
        FamilyArgument::Ipv4 => Family::V4,
        FamilyArgument::Ipv6 => Family::V6,
    });
    let protocol = ProtocolName::Name(arguments.protocol.clone());
    let asked = resolve(cluster, &Question { from: from.clone(), to, protocol, port, family })?;
    let answer = explainer.answer(&asked, now)?;
    let explanation = Explanation {
        from,
        to: written,
        address: asked.flow.destination,
        protocol: protocol_name(asked.flow.protocol),
        port: (asked.flow.port != 0).then_some(asked.flow.port),
        at: time(now),
        answer: AnswerLine::from(&answer),
        why: sentence(answer.reason),
        selected_by: selecting(cluster, settings, &asked),
        nearest: nearest_allow(cluster, settings, &asked.pod, &asked.flow, now)?.map(|miss| Nearest {
            policy: policy_name(&miss.rule),
            destination: miss.rule.part.as_str().to_owned(),
            why: missed(&miss.why),
        }),
        change: explainer
            .next_change(&asked, now)?
            .map(|(at, answer)| Change { at: time(at), answer: AnswerLine::from(&answer) }),
    };
    let text = match arguments.output.unwrap_or(Output::Table) {
        Output::Table => table(&explanation),
        Output::Json => serde_json::to_string_pretty(&explanation)? + "\n",
        Output::Yaml => serde_saphyr::to_string(&explanation)?,
    };
    io::stdout().lock().write_all(text.as_bytes()).context("writing the answer")?;
    Ok(match answer.verdict {
        Verdict::Deny => ExitCode::from(DENIED),
        Verdict::Allow | Verdict::Audit => ExitCode::SUCCESS,
    })
}

/// Reads what `--to` says.
fn target(text: &str) -> anyhow::Result<(Target, Option<u16>)> {
    let wrong = || {
        format!(
            "--to {text}: write it as ADDRESS:PORT, pod:NAMESPACE/NAME:PORT or service:NAMESPACE/NAME:PORT"
        )
    };
    let named = |rest: &str| -> anyhow::Result<(String, Option<u16>)> {
        Ok(match rest.split_once(':') {
            Some((name, port)) => (name.to_owned(), Some(port.parse().with_context(wrong)?)),
            None => (rest.to_owned(), None),
        })
    };
    if let Some(rest) = text.strip_prefix("pod:") {
        let (name, port) = named(rest)?;
        return Ok((Target::Pod(name), port));
    }
    if let Some(rest) = text.strip_prefix("service:") {
        let (name, port) = named(rest)?;
        return Ok((Target::Service(name), port));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok((Target::Ip(address.ip()), Some(address.port())));
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    Ok((Target::Ip(bare.parse().with_context(wrong)?), None))
}

/// The policies that select the pod, those that stand for something else included.
fn selecting(cluster: &Cluster, settings: &Settings, asked: &Resolved) -> Vec<Selecting> {
    let mut seen = BTreeSet::new();
    compile(cluster, settings, &asked.pod)
        .policies
        .into_iter()
        .filter(|id| seen.insert(id.clone()))
        .map(|id| match cluster.policies.get(&id) {
            Some(policy) => Selecting {
                policy: id.to_string(),
                mode: mode_name(policy.mode),
                default_action: match policy.default_action {
                    DefaultAction::Allow => "allow",
                    DefaultAction::Deny => "deny",
                },
            },
            // A governed namespace, or a ConfigMap that never had a valid version.
            None => Selecting { policy: id.to_string(), mode: "enforce", default_action: "deny" },
        })
        .collect()
}

fn table(explanation: &Explanation) -> String {
    let Explanation { from, to, address, protocol, port, at, answer, why, selected_by, nearest, change } =
        explanation;
    let head = match answer.verdict {
        "deny" => "Denied",
        "audit" => "Passes, but would be denied if the audited policies were enforced",
        _ => "Allowed",
    };
    let port = port.map_or(String::new(), |port| format!(" port {port}"));
    let mut lines = vec![
        format!("{head}: {why}."),
        String::new(),
        format!("From:         {from}"),
        format!("To:           {to} ({address}{port}, {protocol})"),
        format!("At:           {at}"),
        format!("Verdict:      {}", answer.verdict),
        format!("Reason:       {}", answer.reason),
        format!("Policy:       {}", answer.policy.as_deref().unwrap_or("<none>")),
        format!("Destination:  {}", answer.destination.as_deref().unwrap_or("<none>")),
    ];
    match selected_by.as_slice() {
        [] => lines.push("Selected by:  <none>".to_owned()),
        policies => {
            lines.push("Selected by:".to_owned());
            for Selecting { policy, mode, default_action } in policies {
                lines.push(format!("  {policy}: {mode}, default {default_action}"));
            }
        }
    }
    if let Some(Nearest { policy, destination, why }) = nearest {
        lines.push(format!("Nearest rule: {destination} of {policy}: {why}."));
    }
    if let Some(Change { at, answer }) = change {
        lines.push(format!("Changes:      at {at} to {} ({})", answer.verdict, answer.reason));
    }
    lines.join("\n") + "\n"
}
