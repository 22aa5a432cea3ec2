//! `egress-agent recommend`: the least policies that cover what pods were seen to send.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs::File,
    io::{self, BufRead, BufReader, Read as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use egress_common::verdict::Verdict;
use serde_json::{Value, json};

use super::{
    documents::Documents,
    observe::{ask, shown},
};
use crate::{
    explain::time,
    k8s::{
        convert::{MANAGED, POLICY_KEY},
        manifests::DirectorySource,
    },
    kernel::{clock, events::protocol_number},
    observe::{self, EntryUse, FlowSeen, Message, Observation, Request, WorkloadSeen},
    policy::{
        cluster::{Cluster, Labels, NsName},
        document,
        index::Index,
        model::{LabelSelector, Mode},
        ranges::Ranges,
        recommend::{self, Limits, Proposal, Seen},
    },
    ranges::files::{Files, provider_file},
};

/// How long a line of a file may be.
pub(crate) const LONGEST_LINE: u64 = 1 << 20;
/// How many flows are told apart here.
const MOST_FLOWS: usize = 200_000;

const FLOWS: &str = "What was seen";
const WIDTH: &str = "How wide";
const OUTPUT: &str = "Output";

/// What to propose.
#[derive(Debug, Args)]
#[command(
    after_help = "It covers what was audited and what was allowed and told. Fill in the governance that it leaves empty, look at each destination, and \
    check it with `egress-agent validate`: that pods sent something does not mean that they should.\n\
    Exit codes: 0 something is proposed, 2 could not run, or nothing was seen."
)]
pub struct Arguments {
    /// Propose policies for the workloads of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: String,

    /// For this workload only, such as Deployment/web or web
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,

    /// Ask the agent whose socket is in this folder
    #[arg(long, value_name = "DIR", env = "EGRESS_RUNTIME_DIR", default_value = super::agent::RUNTIME_DIR, help_heading = FLOWS)]
    runtime_dir: PathBuf,

    /// Read what was seen from this file instead, events of `observe -o json` or what --export wrote; - for standard input; may be
    /// given several times
    #[arg(long, value_name = "FILE", help_heading = FLOWS)]
    flows: Vec<PathBuf>,

    /// Write what was seen, for --flows, and propose nothing
    #[arg(long, help_heading = FLOWS)]
    export: bool,

    /// Cover what was denied, too
    #[arg(long, help_heading = FLOWS)]
    include_denied: bool,

    /// Find names and existing policies in these manifests: Namespaces, Pods, Services, ConfigMaps
    #[arg(long, value_name = "PATH", num_args = 1.., help_heading = FLOWS)]
    manifests: Vec<PathBuf>,

    /// Recognise a provider's services by its address ranges in this file; may be given several times
    #[arg(long, value_name = "PROVIDER=FILE", value_parser = provider_file, help_heading = FLOWS)]
    ranges: Vec<(String, PathBuf)>,

    /// No IPv4 prefix is shorter than this
    #[arg(long, value_name = "LENGTH", default_value_t = Limits::default().v4,
          value_parser = clap::value_parser!(u8).range(8..=32), help_heading = WIDTH)]
    widest_v4: u8,

    /// No IPv6 prefix is shorter than this
    #[arg(long, value_name = "LENGTH", default_value_t = Limits::default().v6,
          value_parser = clap::value_parser!(u8).range(32..=128), help_heading = WIDTH)]
    widest_v6: u8,

    /// Fewer addresses than this within such a prefix stay as they are
    #[arg(long, value_name = "N", default_value_t = Limits::default().neighbours, help_heading = WIDTH)]
    neighbours: usize,

    /// What the proposed policies do
    #[arg(long, value_name = "MODE", default_value = "enforce", help_heading = OUTPUT)]
    mode: ModeArgument,

    /// How to write them
    #[arg(short, long, value_name = "FORMAT", default_value = "configmap", help_heading = OUTPUT)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ModeArgument {
    Enforce,
    Audit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// ConfigMaps in YAML; what there is to say goes to standard error
    Configmap,
    /// One object with the policies, what can be removed, and what there is to say
    Json,
}

/// Proposes.
///
/// # Errors
///
/// When no agent answers, a file cannot be read, or nothing was seen.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let (mut cluster, mut documents) = (Cluster::default(), Documents::default());
    let ranges = Files::load(&arguments.ranges, clock::wall_seconds_and_fraction().0)?;
    if !arguments.manifests.is_empty() {
        let mut index = Index::default();
        let reload = DirectorySource::with_paths(arguments.manifests.clone()).reload(&mut index);
        for error in &reload.errors {
            eprintln!("{error}");
        }
        cluster = index.cluster().clone();
        for path in &arguments.manifests {
            documents.add(path)?;
        }
        // What is wrong with the files was told above.
    }
    let mut all = Gathered::default();
    if arguments.flows.is_empty() {
        let path = observe::socket(&arguments.runtime_dir);
        let request = Request::Flows { namespaces: BTreeSet::from([arguments.namespace.clone()]) };
        for message in ask(&path, &request, true)? {
            let message = message?;
            if arguments.export {
                super::write(&(serde_json::to_string(&message)? + "\n"))?;
            }
            all.take(message)?;
        }
    }
    for path in &arguments.flows {
        let reading = || format!("reading flows from {}", path.display());
        if path == Path::new("-") {
            all.read(io::stdin().lock(), &cluster).with_context(reading)?;
        } else {
            all.read(BufReader::new(File::open(path).with_context(reading)?), &cluster)
                .with_context(reading)?;
        }
    }
    if arguments.export {
        if arguments.flows.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        bail!("--export writes what an agent says; a file is already that");
    }
    let existing = existing(&documents, &arguments.namespace);
    let result = propose(arguments, &all, &cluster, &ranges, &existing);
    if result.proposals.is_empty() {
        for remark in &result.remarks {
            eprintln!("{remark}");
        }
        bail!(
            "nothing was seen of namespace {} that a policy could cover; select its pods with a policy in audit mode, and ask again when they \
             have done what they do",
            shown(&arguments.namespace)
        );
    }
    match arguments.output {
        Output::Json => super::write(&(serde_json::to_string_pretty(&result.json())? + "\n"))?,
        Output::Configmap => {
            super::write(&result.config_maps(&arguments.namespace))?;
            for line in result.notes() {
                eprintln!("{line}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What was seen, by workload, and how often existing entries were used.
#[derive(Debug, Default)]
struct Gathered {
    workloads: BTreeMap<(String, String), Workload>,
    /// By policy and destination.
    entries: BTreeMap<(String, String), u64>,
    left_out: u64,
    count: usize,
}

#[derive(Debug, Default)]
struct Workload {
    /// The labels all of its pods have; `None` while nobody said.
    labels: Option<BTreeMap<String, String>>,
    since: Option<u64>,
    left_out: u64,
    held_back: u64,
    flows: BTreeMap<String, FlowSeen>,
}

impl Gathered {
    /// Reads lines, events or messages.
    fn read(&mut self, mut input: impl BufRead, cluster: &Cluster) -> anyhow::Result<()> {
        let mut line = Vec::new();
        for number in 1_u64.. {
            line.clear();
            if (&mut input).take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let place = || format!("line {number}");
            let value: Value = serde_json::from_slice(&line).with_context(place)?;
            if value.get("time").is_some() {
                let event: Observation = serde_json::from_value(value).with_context(place)?;
                self.event(event, cluster).with_context(place)?;
            } else {
                self.take(serde_json::from_value(value).with_context(place)?).with_context(place)?;
            }
        }
        Ok(())
    }

    /// Takes an event as a flow of its pod's workload.
    fn event(&mut self, event: Observation, cluster: &Cluster) -> anyhow::Result<()> {
        let (Some(namespace), Some(pod), Some(owner)) = (event.namespace, event.pod, event.workload) else {
            // Of a pod nobody knows, nobody knows whose policy it should be.
            return Ok(());
        };
        let known = cluster.pods.get(&NsName::new(namespace.as_str(), pod));
        let none = Labels::new();
        let labels = known.map_or(&none, |pod| &pod.labels);
        let name = recommend::workload(&owner, labels);
        let workload = self.workloads.entry((namespace.clone(), name.clone())).or_default();
        workload.held_back = workload.held_back.saturating_add(event.suppressed.into());
        if let Some(pod) = known {
            workload.common(recommend::lasting(&pod.labels));
        }
        self.flow(FlowSeen {
            namespace,
            workload: name,
            verdict: event.verdict,
            reason: event.reason,
            policy: event.policy,
            destination: event.destination,
            protocol: event.protocol,
            to: event.to,
            port: event.port,
            count: event.count,
            name: None,
        })
    }

    /// Takes a message of an agent.
    fn take(&mut self, message: Message) -> anyhow::Result<()> {
        match message {
            Message::Workload(WorkloadSeen { namespace, workload, labels, since, left_out, held_back }) => {
                let known = self.workloads.entry((namespace, workload)).or_default();
                known.common(labels);
                known.since = Some(known.since.map_or(since, |before| before.min(since)));
                known.left_out = known.left_out.saturating_add(left_out);
                known.held_back = known.held_back.saturating_add(held_back);
            }
            Message::Flow(flow) => self.flow(*flow)?,
            Message::Entry(EntryUse { policy, destination, packets }) => {
                let count = self.entries.entry((policy, destination)).or_default();
                *count = count.saturating_add(packets);
            }
            Message::LeftOut(count) => self.left_out = self.left_out.saturating_add(count),
            Message::Event(_) | Message::Lost(_) | Message::Node(_) | Message::Pod(_) => {}
            Message::Error(why) => bail!("the agent says: {}", shown(&why)),
        }
        Ok(())
    }

    fn flow(&mut self, flow: FlowSeen) -> anyhow::Result<()> {
        let workload = self.workloads.entry((flow.namespace.clone(), flow.workload.clone())).or_default();
        let key = serde_json::to_string(&(
            flow.to,
            &flow.protocol,
            flow.port,
            flow.verdict.as_str(),
            &flow.reason,
            &flow.policy,
            &flow.destination,
        ))?;
        if let Some(known) = workload.flows.get_mut(&key) {
            known.count = known.count.saturating_add(flow.count);
            known.name = known.name.take().or(flow.name);
            return Ok(());
        }
        if self.count >= MOST_FLOWS {
            bail!("there are more than {MOST_FLOWS} different flows; read fewer at a time");
        }
        self.count += 1;
        workload.flows.insert(key, flow);
        Ok(())
    }
}

impl Workload {
    /// Keeps the labels that these pods have, too.
    fn common(&mut self, labels: BTreeMap<String, String>) {
        match &mut self.labels {
            None => self.labels = Some(labels),
            Some(all) => all.retain(|key, value| labels.get(key) == Some(value)),
        }
    }
}

/// A policy that is there.
#[derive(Debug)]
struct Existing {
    name: String,
    mode: Mode,
    selector: LabelSelector,
    allowed: Vec<Value>,
    denied: Vec<Value>,
}

/// Returns the policies of a namespace that can be read.
fn existing(documents: &Documents, namespace: &str) -> Vec<Existing> {
    let mut all = Vec::new();
    for found in documents.list.iter().filter(|found| found.id.namespace == namespace) {
        let Some(text) = &found.text else { continue };
        let parsed = document::parse(&found.id, text).policy;
        let value = serde_json::from_str::<Value>(text);
        let (Some(policy), Ok(value)) = (parsed, value) else {
            eprintln!("policy {} cannot be read; nothing of it is kept", shown(&found.id.to_string()));
            continue;
        };
        let list = |name: &str| value.get(name).and_then(Value::as_array).cloned().unwrap_or_else(Vec::new);
        all.push(Existing {
            name: found.id.to_string(),
            mode: policy.mode,
            selector: policy.selector,
            allowed: list("allowedDestinations"),
            denied: list("deniedDestinations"),
        });
    }
    all
}

/// What is proposed.
#[derive(Debug, Default)]
struct Proposed {
    proposals: Vec<(String, Proposal)>,
    /// Policy and destination.
    removable: Vec<(String, String)>,
    remarks: Vec<String>,
    /// Names of ConfigMaps that are there, in whose place none of these is to be put by accident.
    taken: BTreeSet<String>,
}

fn propose(
    arguments: &Arguments,
    all: &Gathered,
    cluster: &Cluster,
    ranges: &Ranges,
    existing: &[Existing],
) -> Proposed {
    let limits =
        Limits { v4: arguments.widest_v4, v6: arguments.widest_v6, neighbours: arguments.neighbours };
    let mut result = Proposed::default();
    let mut used: BTreeSet<(&str, &str)> = BTreeSet::new();
    for ((policy, destination), packets) in &all.entries {
        if *packets > 0 {
            used.insert((policy, destination));
        }
    }
    let flows = all.workloads.values().flat_map(|workload| workload.flows.values());
    for flow in flows.filter(|flow| flow.verdict == Verdict::Allow) {
        if let (Some(policy), Some(destination)) = (&flow.policy, &flow.destination) {
            used.insert((policy, destination));
        }
    }
    let wanted = |name: &str| {
        let short = name.split_once('/').map_or(name, |(_, short)| short);
        arguments.workload.as_deref().is_none_or(|wanted| wanted == name || wanted == short)
    };
    for ((namespace, name), workload) in &all.workloads {
        if *namespace != arguments.namespace || !wanted(name) {
            continue;
        }
        let labels: Option<Labels> = workload
            .labels
            .as_ref()
            .map(|labels| labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect());
        let selects = |policy: &&Existing| {
            let own = Labels::new();
            policy.selector.matches(labels.as_ref().unwrap_or(&own))
        };
        let (mut kept, mut denied, mut stays) = (Vec::new(), Vec::new(), BTreeSet::new());
        for policy in existing.iter().filter(selects) {
            for entry in &policy.allowed {
                let Some(destination) = entry.get("name").and_then(Value::as_str) else { continue };
                if policy.mode == Mode::Audit && used.contains(&(policy.name.as_str(), destination)) {
                    kept.push(entry.clone());
                }
                stays.insert((policy.name.as_str(), destination));
            }
            if policy.mode == Mode::Audit {
                denied.extend(policy.denied.iter().cloned());
            }
        }
        let mut say = |count: u64, what: &str| {
            if count > 0 {
                result.remarks.push(format!("{}: {count} {what}", shown(name)));
            }
        };
        say(workload.held_back, "events were held back in the kernel: flows may be missing");
        say(
            workload.left_out,
            "events are of further flows, for which the agent had no room: they are not covered",
        );
        let (mut seen, mut forbidden, mut masked, mut refused, mut ended) = (Vec::new(), 0, 0, 0, 0);
        for flow in workload.flows.values() {
            match flow.reason.as_str() {
                "denied_destination" => {
                    forbidden += 1;
                    continue;
                }
                "allowed_destination" | "default_allow" | "default_deny" => {}
                "expired" => ended += 1,
                _ => continue,
            }
            if flow.verdict == Verdict::Deny && !arguments.include_denied {
                refused += 1;
                continue;
            }
            let by = flow.policy.as_deref().zip(flow.destination.as_deref());
            let allowed = flow.verdict == Verdict::Allow;
            // An entry that stays, here or in its own policy, or cluster DNS, which every policy allows.
            if allowed && by.is_some_and(|by| stays.contains(&by) || by.1 == "(cluster-dns)") {
                continue;
            }
            match (flow.to, protocol_number(&flow.protocol)) {
                (observe::Destination::Known(to), Some(protocol)) => {
                    seen.push(Seen { to, protocol, port: flow.port, name: flow.name.clone() });
                }
                _ => masked += 1,
            }
        }
        say(forbidden, "flows go where a deniedDestinations entry forbids it: they are not covered");
        say(refused, "flows were denied: they are not covered, unless with --include-denied");
        say(ended, "flows match a destination that has expired: they are covered as if they were new");
        say(masked, "flows have masked addresses: they are not covered");
        if seen.is_empty() && kept.is_empty() {
            continue;
        }
        named(&mut seen, cluster, ranges);
        if workload.labels.as_ref().is_none_or(BTreeMap::is_empty) {
            say(
                1,
                "policy for all pods of the namespace: no label of this workload is known that lasts, or there are more than an agent keeps",
            );
        }
        let taken = kept.iter().chain(&denied);
        let taken = taken.filter_map(|entry| entry.get("name")?.as_str().map(str::to_owned)).collect();
        let proposal = Proposal {
            enforce: arguments.mode == ModeArgument::Enforce,
            pods: workload.labels.clone().unwrap_or_else(BTreeMap::new),
            kept,
            denied,
            destinations: recommend::propose(&seen, limits, &taken),
        };
        if proposal.destinations.iter().any(|destination| destination.ports.is_empty()) {
            say(
                1,
                "destination at least has no ports: a protocol was seen there that no list of ports can name",
            );
        }
        result.proposals.push((name.clone(), proposal));
    }
    let here = format!("{}/", arguments.namespace);
    for (policy, destination) in all.entries.keys().filter(|(policy, _)| policy.starts_with(&here)) {
        if !used.contains(&(policy.as_str(), destination.as_str())) {
            result.removable.push((policy.clone(), destination.clone()));
        }
    }
    let there =
        all.entries.keys().map(|(policy, _)| policy).chain(existing.iter().map(|policy| &policy.name));
    result.taken = there.filter_map(|policy| policy.strip_prefix(&here).map(str::to_owned)).collect();
    if let Some(since) = all.workloads.values().filter_map(|workload| workload.since).min() {
        result.remarks.push(format!("Seen since {} at the earliest.", time(since)));
    }
    if all.left_out > 0 {
        let count = all.left_out;
        result.remarks.push(format!(
            "{count} events are of workloads for which an agent had no room, or had to make it."
        ));
    }
    result
}

/// Gives destinations the names that the manifests and ranges at hand have for them.
fn named(seen: &mut [Seen], cluster: &Cluster, ranges: &Ranges) {
    let host = |seen: &Seen| seen.to.prefix_len() == seen.to.max_prefix_len() && seen.name.is_none();
    let key = |seen: &Seen| (seen.to.addr(), seen.protocol, seen.port);
    let sought = seen.iter().filter(|seen| host(seen)).map(key).collect();
    let names = recommend::names(cluster, ranges, &sought);
    for seen in seen.iter_mut().filter(|seen| host(seen)) {
        seen.name = names.get(&key(seen)).cloned();
    }
}

impl Proposed {
    fn notes(&self) -> Vec<String> {
        let mut notes = self.remarks.clone();
        for (policy, destination) in &self.removable {
            notes.push(format!("never used, can be removed: {} of {}", shown(destination), shown(policy)));
        }
        let new: usize = self.proposals.iter().map(|(_, proposal)| proposal.destinations.len()).sum();
        notes.push(format!(
            "{new} new destinations; fill in their governance: {}",
            recommend::BLANKS.join(", ")
        ));
        notes
    }

    fn json(&self) -> Value {
        let proposals: Vec<Value> = self
            .proposals
            .iter()
            .map(|(workload, proposal)| json!({ "workload": workload, "policy": proposal.document() }))
            .collect();
        let removable: Vec<Value> = self
            .removable
            .iter()
            .map(|(policy, destination)| json!({ "policy": policy, "destination": destination }))
            .collect();
        json!({ "proposals": proposals, "removable": removable, "remarks": self.remarks })
    }

    fn config_maps(&self, namespace: &str) -> String {
        let mut text = String::new();
        let mut taken = self.taken.clone();
        for (workload, proposal) in &self.proposals {
            let short = workload.split_once('/').map_or(workload.as_str(), |(_, short)| short);
            let plain: String = short
                .chars()
                .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
                .take(200)
                .collect();
            let mut name = format!("{}-egress", plain.trim_matches('-'));
            while !taken.insert(name.clone()) {
                name.push_str("-2");
            }
            let document = proposal.document().to_string();
            let document = document::canonical(&document).unwrap_or(document);
            let (label, value) = MANAGED;
            write!(
                text,
                "{}apiVersion: v1\nkind: ConfigMap\nmetadata:\n  namespace: {}\n  name: {name}\n  labels:\n    {label}: {value}\ndata:\n  {POLICY_KEY}: |\n",
                if text.is_empty() { "" } else { "---\n" },
                json!(namespace),
            )
            .expect("a string takes everything");
            for line in document.lines() {
                writeln!(text, "    {line}").expect("a string takes everything");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::observe::Destination;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn arguments(more: &[&str]) -> Arguments {
        let all = ["recommend", "-n", "shop"].iter().chain(more);
        Line::try_parse_from(all).unwrap_or_else(|error| panic!("{error}")).arguments
    }

    fn flow(workload: &str, to: &str, verdict: Verdict, by: Option<(&str, &str)>) -> Message {
        Message::Flow(Box::new(FlowSeen {
            namespace: "shop".to_owned(),
            workload: workload.to_owned(),
            verdict,
            reason: if verdict == Verdict::Allow { "allowed_destination" } else { "default_deny" }.to_owned(),
            policy: by.map(|by| by.0.to_owned()),
            destination: by.map(|by| by.1.to_owned()),
            protocol: "TCP".to_owned(),
            to: serde_json::from_value(json!(to)).expect("a destination"),
            port: 443,
            count: 1,
            name: None,
        }))
    }

    fn workload(name: &str, labels: &[(&str, &str)]) -> Message {
        Message::Workload(WorkloadSeen {
            namespace: "shop".to_owned(),
            workload: name.to_owned(),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            since: 1_800_000_000,
            left_out: 1,
            held_back: 2,
        })
    }

    fn gathered(messages: Vec<Message>) -> Gathered {
        let mut all = Gathered::default();
        for message in messages {
            all.take(message).expect("it fits");
        }
        all
    }

    fn existing_of(policy: &str) -> Vec<Existing> {
        let folder = tempfile::tempdir().expect("a folder");
        let indented = policy.replace('\n', " ");
        let text = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{namespace: shop, name: p, labels: {{egress-controller: managed}}}}\ndata:\n  policy.json: |\n    {indented}\n"
        );
        let file = folder.path().join("p.yaml");
        std::fs::write(&file, text).expect("the folder can be written");
        let mut documents = Documents::default();
        documents.add(&file).expect("it can be read");
        existing(&documents, "shop")
    }

    fn proposed(more: &[&str], messages: Vec<Message>, existing: &[Existing]) -> Proposed {
        propose(&arguments(more), &gathered(messages), &Cluster::default(), &Ranges::default(), existing)
    }

    fn names(proposal: &Proposal) -> Vec<String> {
        let document = proposal.document();
        let list = document["allowedDestinations"].as_array().expect("a list");
        list.iter().map(|entry| entry["name"].as_str().expect("a name").to_owned()).collect()
    }

    #[test]
    fn what_several_nodes_say_is_one() {
        let all = gathered(vec![
            workload("Deployment/web", &[("app", "web"), ("zone", "a")]),
            flow("Deployment/web", "192.0.2.1", Verdict::Audit, None),
            workload("Deployment/web", &[("app", "web"), ("zone", "b")]),
            flow("Deployment/web", "192.0.2.1", Verdict::Audit, None),
        ]);
        let web = &all.workloads[&("shop".to_owned(), "Deployment/web".to_owned())];
        assert_eq!((web.left_out, web.held_back, web.flows.len()), (2, 4, 1));
        assert_eq!(web.labels, Some(BTreeMap::from([("app".to_owned(), "web".to_owned())])));
        assert_eq!(web.flows.values().next().map(|flow| flow.count), Some(2));
    }

    #[test]
    fn what_an_enforcing_policy_allows_is_not_proposed_again_and_what_an_audited_one_does_is_kept() {
        let seen = || {
            vec![
                workload("Deployment/web", &[("app", "web")]),
                flow("Deployment/web", "192.0.2.1", Verdict::Allow, Some(("shop/p", "used"))),
                flow("Deployment/web", "198.51.100.1", Verdict::Audit, None),
                Message::Entry(EntryUse { policy: "shop/p".into(), destination: "used".into(), packets: 1 }),
                Message::Entry(EntryUse { policy: "shop/p".into(), destination: "idle".into(), packets: 0 }),
                Message::Entry(EntryUse { policy: "till/p".into(), destination: "idle".into(), packets: 0 }),
            ]
        };
        let text = |mode: &str| {
            format!(
                r#"{{"mode": "{mode}", "defaultAction": "deny", "allowedDestinations": [{{"name": "used", "cidr": "192.0.2.0/24"}}, {{"name": "idle", "cidr": "10.0.0.0/8"}}]}}"#
            )
        };
        let enforced = proposed(&[], seen(), &existing_of(&text("enforce")));
        assert_eq!(names(&enforced.proposals[0].1), ["198.51.100.1-tcp-443"]);
        let audited = proposed(&[], seen(), &existing_of(&text("audit")));
        assert_eq!(names(&audited.proposals[0].1), ["used", "198.51.100.1-tcp-443"]);
        let unknown = proposed(&[], seen(), &[]);
        assert_eq!(names(&unknown.proposals[0].1), ["192.0.2.1-tcp-443", "198.51.100.1-tcp-443"]);
        assert_eq!(unknown.removable, [("shop/p".to_owned(), "idle".to_owned())]);
    }

    #[test]
    fn what_is_not_covered_is_said() {
        let mut messages = vec![
            workload("Deployment/web", &[("app", "web")]),
            flow("Deployment/web", "192.0.2.1", Verdict::Deny, None),
            flow("Deployment/web", "masked", Verdict::Audit, None),
            flow("Deployment/web", "192.0.2.2", Verdict::Audit, None),
            Message::LeftOut(9),
        ];
        let said = proposed(&[], messages.clone(), &[]);
        let remarks = said.remarks.join("\n");
        for part in [
            "2 events were held back",
            "1 events are of further flows",
            "1 flows were denied",
            "1 flows have masked",
            "9 events are of workloads",
        ] {
            assert!(remarks.contains(part), "{part} stands in {remarks}");
        }
        assert_eq!(names(&said.proposals[0].1), ["192.0.2.2-tcp-443"]);
        let all = proposed(&["--include-denied"], messages.clone(), &[]);
        let text = all.proposals[0].1.document().to_string();
        assert!(text.contains("192.0.2.1/32") && text.contains("192.0.2.2/32"), "{text}");
        messages.push(flow("Deployment/other", "192.0.2.3", Verdict::Audit, None));
        let one = proposed(&["--workload", "other"], messages, &[]);
        assert_eq!(one.proposals.len(), 1);
        assert!(
            one.remarks.iter().any(|remark| remark.contains("all pods of the namespace")),
            "{:?}",
            one.remarks
        );
    }

    #[test]
    fn config_maps_are_manifests_whatever_workloads_are_called() {
        let messages = ["Deployment/web", "StatefulSet/web", "Pod/\u{1b}[2J: x\n- y"]
            .iter()
            .flat_map(|name| {
                [workload(name, &[("app", name)]), flow(name, "192.0.2.1", Verdict::Audit, None)]
            })
            .collect();
        let mut proposed = proposed(&[], messages, &[]);
        proposed.taken.insert("web-egress".to_owned());
        let text = proposed.config_maps("shop");
        let mut names = BTreeSet::new();
        for part in text.split("---\n") {
            let value: Value = serde_saphyr::from_str(part).unwrap_or_else(|error| panic!("{error}: {part}"));
            assert_eq!(value["metadata"]["labels"]["egress-controller"], "managed", "{part}");
            let policy = value["data"]["policy.json"].as_str().expect("text");
            assert!(serde_json::from_str::<Value>(policy).is_ok(), "{policy}");
            names.insert(value["metadata"]["name"].as_str().expect("text").to_owned());
        }
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(!names.contains("web-egress"), "it is another's: {names:?}");
    }

    #[test]
    fn lines_that_say_nothing_are_refused_with_their_place() {
        let cluster = Cluster::default();
        let read =
            |text: &[u8]| Gathered::default().read(text, &cluster).map_err(|error| format!("{error:#}"));
        assert_eq!(read(b"\n  \n{\"leftOut\":3}\n"), Ok(()));
        for text in [&b"\n{}\n"[..], b"\nnull", b"\n[1,2", b"\n{\"time\":1}", b"\n{\"flow\":{}}", b"\n\xff"] {
            let error = read(text).expect_err("it is no line of flows");
            assert!(error.starts_with("line 2"), "{error}");
        }
        let long = vec![b' '; usize::try_from(LONGEST_LINE).expect("it fits") + 5];
        assert!(read(&[&long[..], b"x"].concat()).is_err(), "a line without an end");
        assert!(
            read(b"{\"error\":\"no \\u001b place\"}").is_err_and(|error| error.ends_with("no \\u{1b} place"))
        );
    }

    #[test]
    fn an_event_is_a_flow_of_its_workload() {
        let event = crate::observe::tests::denial("192.0.2.1", 443);
        let nobody = Observation { namespace: None, pod: None, workload: None, ..event.clone() };
        let text =
            [event.clone(), event, nobody].map(|event| serde_json::to_string(&event).expect("it is JSON"));
        let mut all = Gathered::default();
        all.read(text.join("\n").as_bytes(), &Cluster::default()).expect("they are events");
        let web = &all.workloads[&("shop".to_owned(), "Deployment/web".to_owned())];
        let flows: Vec<(Destination, u64)> = web.flows.values().map(|flow| (flow.to, flow.count)).collect();
        assert_eq!((all.workloads.len(), flows.len()), (1, 1));
        assert_eq!((flows[0].0.to_string(), flows[0].1), ("192.0.2.1".to_owned(), 2));
    }
}
