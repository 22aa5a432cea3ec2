//! What is in force of each policy in the whole cluster: what is known of the policy, beside what the nodes tell.
//!
//! Pure, and one for all who show it: the controller's Reports and metrics, and `egress-agent status --cluster`.

pub mod report;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use crate::{
    k8s::summary::{Held, Summary, plain},
    policy::{
        cluster::NsName,
        finding::Finding,
        index::InForce,
        model::{Mode, Policy},
    },
};

/// The annotation that says which controller an object is from: the namespace and name of the Lease that it holds, or what it was told.
pub const CONTROLLER: &str = "egress-agent.dev/controller";

/// A node that has not written for so long, in seconds, counts as silent: agents write every ten minutes.
pub const SILENT: u64 = 30 * 60;
/// A node whose clock is so far ahead, in seconds, counts as silent, too: nobody could tell when it falls silent.
pub const AHEAD: u64 = 5 * 60;
/// How many findings of a policy are told.
pub const MOST_FINDINGS: usize = 16;
/// How long the text of one may be, in bytes.
pub const MOST_TEXT: usize = 500;
/// How many nodes a policy names.
const NAMED: usize = 3;
/// How many nodes are named that do not do well.
const MOST_NODES: usize = 10;

/// What is known of a policy without asking any node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its namespace and name.
    pub id: NsName,
    /// The UID of its ConfigMap, where it is known.
    pub uid: Option<String>,
    /// The revision of the text that is there; nothing without one.
    pub written: Option<String>,
    /// The revision that counts: that, or the last valid one where it is known.
    pub accepted: Option<String>,
    /// Which of them.
    pub in_force: InForce,
    /// Whether it only reports.
    pub audit: bool,
    /// What there is to say about the text: the first few.
    pub findings: Vec<Noted>,
    /// How many more.
    pub more_findings: usize,
    /// What became of it as NetworkPolicies, if that is known.
    pub generated: Option<Objects>,
    /// When its next destination ends, in seconds since the epoch.
    pub next_expiry: Option<u64>,
    /// How many destinations have ended.
    pub expired: usize,
    /// Destinations that stand for nothing so far.
    pub unresolved: Vec<String>,
}

/// A finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Noted {
    /// `error` or `warning`.
    pub severity: &'static str,
    /// The rule that found it, if it has a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What it says.
    pub text: String,
}

/// What became of a policy as NetworkPolicies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// How many there are.
    pub count: usize,
    /// In how many places they say something else than nodes enforce.
    pub losses: usize,
    /// The first few of those.
    pub named: Vec<String>,
    /// Why there are none, where there should be.
    pub refused: Option<String>,
}

impl Facts {
    /// Returns those of a policy that is read as `policy`, if it is valid, with these findings.
    #[must_use]
    pub fn new(
        id: NsName,
        in_force: InForce,
        policy: Option<&Policy>,
        findings: &[Finding],
        now: u64,
    ) -> Self {
        let ends = || policy.into_iter().flat_map(|policy| &policy.rules).filter_map(|rule| rule.expires);
        let mut sorted: Vec<&Finding> = findings.iter().collect();
        sorted.sort_by_key(|finding| finding.severity);
        let noted = |finding: &&Finding| Noted {
            severity: finding.severity.as_str(),
            rule: finding.rule.as_deref().map(|rule| plain(rule, 64)),
            text: plain(&Finding { rule: None, ..(*finding).clone() }.to_string(), MOST_TEXT),
        };
        Self {
            id,
            uid: None,
            written: None,
            accepted: None,
            in_force,
            audit: policy.is_some_and(|policy| policy.mode == Mode::Audit),
            findings: sorted.iter().take(MOST_FINDINGS).map(noted).collect(),
            more_findings: findings.len().saturating_sub(MOST_FINDINGS),
            generated: None,
            next_expiry: ends().filter(|end| *end > now).min(),
            expired: ends().filter(|end| *end <= now).count(),
            unresolved: Vec::new(),
        }
    }
}

/// What the nodes tell, and which there are.
#[derive(Clone, Debug, Default)]
pub struct Nodes {
    /// By node.
    pub summaries: BTreeMap<String, Summary>,
    /// The nodes that agents run on, if that is known.
    pub all: Option<BTreeSet<String>>,
}

/// How a policy stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// It is not valid, and no valid version is known: its namespace is denied by default.
    Rejected,
    /// It is not valid; the last valid version holds.
    Earlier,
    /// Not every node that should enforce it does.
    Partly,
    /// Every node that should enforces it.
    InForce,
    /// Every node that should has it, and only audits it, as every node of the cluster does (`--audit`).
    Audited,
    /// It is valid, and selects no pod that runs.
    Unused,
    /// No node tells anything.
    Unknown,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Rejected,
        Self::Earlier,
        Self::Partly,
        Self::InForce,
        Self::Audited,
        Self::Unused,
        Self::Unknown,
    ];

    /// Returns its word for metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Earlier => "earlier",
            Self::Partly => "partly",
            Self::InForce => "in_force",
            Self::Audited => "audited",
            Self::Unused => "unused",
            Self::Unknown => "unknown",
        }
    }

    /// Returns its words for people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Earlier => "earlier version",
            Self::Partly => "partly",
            Self::InForce => "in force",
            Self::Audited => "audited",
            Self::Unused => "selects no pod",
            Self::Unknown => "not known",
        }
    }

    /// Returns whether somebody should look at it.
    #[must_use]
    pub const fn is_bad(self) -> bool {
        matches!(self, Self::Rejected | Self::Earlier | Self::Partly)
    }
}

/// How many nodes do what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeCounts {
    /// Have a pod that it selects, so should enforce it.
    pub selected: usize,
    /// Do, with the version that counts and for all of these pods.
    pub enforcing: usize,
    /// Have another version.
    pub other: usize,
    /// Have that version, but not for all pods.
    pub behind: usize,
    /// Only audit it, though it enforces (`--audit`).
    pub auditing: usize,
    /// Have not told anything for long, or by a clock that is ahead.
    pub silent: usize,
}

/// How one policy stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The UID of its ConfigMap.
    #[serde(skip)]
    pub uid: Option<String>,
    /// How it stands.
    pub state: State,
    /// `enforce` or `audit`.
    pub mode: &'static str,
    /// The revision of the text that is there.
    pub written: Option<String>,
    /// The revision that counts, if it is known.
    pub accepted: Option<String>,
    /// Nodes.
    pub nodes: NodeCounts,
    /// Pods that it selects, as nodes tell.
    pub pods: u64,
    /// How many of them have something older.
    pub pods_behind: u64,
    /// How many NetworkPolicies it has become; null where that is not known.
    pub network_policies: Option<usize>,
    /// In how many places those say something else.
    pub losses: Option<usize>,
    /// The first few of those.
    pub named_losses: Vec<String>,
    /// When its next destination ends.
    pub next_expiry: Option<String>,
    /// How many destinations have ended.
    pub expired: usize,
    /// What there is to say about the text.
    pub findings: Vec<Noted>,
    /// How many more findings there are.
    pub more_findings: usize,
    /// Why it is not in force as it is written, a line each.
    pub reasons: Vec<String>,
}

/// How the nodes do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodesStatus {
    /// How many tell something.
    pub told: usize,
    /// How many of those have everything in force that is wanted.
    pub ready: usize,
    /// How many would, but deny nothing (`--audit`).
    pub auditing: usize,
    /// How many are not ready.
    pub not_ready: usize,
    /// How many have not told anything for long, or by a clock that is ahead.
    pub silent: usize,
    /// How many never have; null where it is not known which nodes there are.
    pub missing: Option<usize>,
    /// The agents' versions, with how many nodes have each.
    pub versions: BTreeMap<String, usize>,
    /// The revisions of each provider's ranges, with how many nodes have each.
    pub ranges: BTreeMap<String, BTreeMap<String, usize>>,
    /// Whether every node that tells something only audits: nothing is denied for a policy's sake.
    pub audit_only: bool,
    /// What is wrong, a line each: the first few.
    pub reasons: Vec<String>,
}

impl NodesStatus {
    /// Returns whether every node has told that all is in force. A cluster that only audits is meant to; one of which a part does is not.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.not_ready == 0
            && (self.auditing == 0 || self.audit_only)
            && self.silent == 0
            && self.missing.unwrap_or(0) == 0
    }
}

/// How the cluster does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// The nodes; null where they could not be asked.
    pub nodes: Option<NodesStatus>,
    /// What contradicts that every node only audits: what others enforce.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contradiction: Option<String>,
    /// The policies.
    pub policies: Vec<PolicyStatus>,
}

impl Overview {
    /// Returns whether there is nothing that somebody should look at.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.nodes.as_ref().is_none_or(NodesStatus::is_good)
            && self.contradiction.is_none()
            && self.policies.iter().all(|policy| !policy.state.is_bad())
    }
}

/// What nodes tell of one policy.
#[derive(Default)]
struct Tally<'a> {
    told: Vec<(&'a str, &'a Summary, &'a Held)>,
}

/// Puts together what is known of policies and what nodes tell.
#[must_use]
pub fn overview(facts: &[Facts], nodes: Option<&Nodes>, now: u64) -> Overview {
    let mut tallies: HashMap<&str, Tally<'_>> = HashMap::new();
    for (node, summary) in nodes.into_iter().flat_map(|nodes| &nodes.summaries) {
        for (policy, held) in &summary.policies {
            tallies.entry(policy).or_default().told.push((node, summary, held));
        }
    }
    let none = Tally::default();
    let heard = nodes.is_some_and(|nodes| !nodes.summaries.is_empty());
    let audit_only = nodes.is_some_and(Nodes::only_audit);
    let policies: Vec<PolicyStatus> = facts
        .iter()
        .map(|facts| {
            let tally = tallies.get(facts.id.to_string().as_str()).unwrap_or(&none);
            policy(facts, tally, heard, audit_only, now)
        })
        .collect();
    let made = policies.iter().filter_map(|policy| policy.network_policies).sum();
    let contradiction = audit_only.then(|| contradiction(made)).flatten();
    Overview { nodes: nodes.map(|nodes| status(nodes, now)), contradiction, policies }
}

/// Says what so many NetworkPolicies mean where every node only audits.
#[must_use]
pub fn contradiction(made: usize) -> Option<String> {
    let written = match made {
        0 => return None,
        1 => "1 NetworkPolicy is written",
        _ => &format!("{made} NetworkPolicies are written"),
    };
    Some(format!(
        "every node only audits (--audit), and {written} all the same: network plugins that enforce those deny what agents let pass"
    ))
}

impl Nodes {
    /// Returns whether all that tell something only audit.
    #[must_use]
    pub fn only_audit(&self) -> bool {
        !self.summaries.is_empty() && self.summaries.values().all(|summary| summary.audit)
    }
}

/// Returns how a node has been silent, if it counts as that.
fn silent(node: &str, summary: &Summary, now: u64) -> Option<String> {
    let (age, ahead) = (now.saturating_sub(summary.written), summary.written.saturating_sub(now));
    if ahead >= AHEAD {
        return Some(format!(
            "node {node} tells of a time {} minutes from now: its clock is ahead",
            ahead / 60
        ));
    }
    (age >= SILENT).then(|| format!("node {node} has told nothing for {} minutes", age / 60))
}

/// Returns how many nodes only audit, in words.
fn only_audit(nodes: usize) -> Option<String> {
    match nodes {
        0 => None,
        1 => Some("1 node only audits (--audit)".to_owned()),
        _ => Some(format!("{nodes} nodes only audit (--audit)")),
    }
}

fn policy(facts: &Facts, tally: &Tally<'_>, heard: bool, audit_only: bool, now: u64) -> PolicyStatus {
    let mut nodes = NodeCounts { selected: tally.told.len(), ..NodeCounts::default() };
    let (mut pods, mut pods_behind) = (0, 0);
    let mut lines = Vec::new();
    let mut holds_some = false;
    for (node, summary, held) in &tally.told {
        pods += u64::from(held.pods);
        pods_behind += u64::from(held.behind.min(held.pods));
        holds_some |= !held.revision.is_empty() && Some(&held.revision) != facts.written.as_ref();
        let line = if let Some(line) = silent(node, summary, now) {
            nodes.silent += 1;
            line
        } else if Some(&held.revision) != facts.accepted.as_ref() {
            nodes.other += 1;
            match held.revision.is_empty() {
                true => format!("node {node} knows no valid version"),
                false => format!("node {node} has revision {}", held.revision),
            }
        } else if held.behind > 0 {
            nodes.behind += 1;
            let why = summary.reasons.first().map_or(String::new(), |reason| format!(": {reason}"));
            format!(
                "node {node} has it for {} of {} pods{why}",
                held.pods.saturating_sub(held.behind),
                held.pods
            )
        } else if summary.audit && !facts.audit {
            // All of them are told in one line.
            nodes.auditing += 1;
            continue;
        } else {
            nodes.enforcing += 1;
            continue;
        };
        if lines.len() < NAMED {
            lines.push(plain(&line, MOST_TEXT));
        }
    }
    let state = match facts.in_force {
        InForce::Nothing if !holds_some => State::Rejected,
        InForce::Nothing | InForce::Earlier => State::Earlier,
        InForce::Current
            if audit_only && nodes.auditing > 0 && nodes.selected == nodes.enforcing + nodes.auditing =>
        {
            State::Audited
        }
        InForce::Current if nodes.selected > nodes.enforcing => State::Partly,
        InForce::Current if !heard => State::Unknown,
        InForce::Current if nodes.selected == 0 => State::Unused,
        InForce::Current => State::InForce,
    };
    let mut reasons = Vec::new();
    if matches!(state, State::Rejected | State::Earlier) {
        let first = facts.findings.first().map_or("it cannot be read", |finding| &finding.text);
        reasons.push(plain(&format!("it is not valid: {first}"), MOST_TEXT));
    }
    let wanting = nodes.selected - nodes.enforcing;
    // Without a version that counts, every node has another one.
    if facts.accepted.is_some() && wanting > 0 {
        let more = wanting - nodes.auditing - lines.len();
        if more > 0 {
            lines.push(format!("and {more} more nodes"));
        }
        // Of a whole cluster it is said once.
        reasons.extend(only_audit(nodes.auditing).filter(|_| !audit_only));
        reasons.extend(lines);
    }
    reasons.extend(facts.unresolved.iter().map(|line| plain(line, MOST_TEXT)));
    if let Some(refused) = facts.generated.as_ref().and_then(|objects| objects.refused.as_ref()) {
        reasons.push(plain(refused, MOST_TEXT));
    }
    PolicyStatus {
        namespace: facts.id.namespace.clone(),
        name: facts.id.name.clone(),
        uid: facts.uid.clone(),
        state,
        mode: if facts.audit { "audit" } else { "enforce" },
        written: facts.written.clone(),
        accepted: facts.accepted.clone(),
        nodes,
        pods,
        pods_behind,
        network_policies: facts.generated.as_ref().map(|objects| objects.count),
        losses: facts.generated.as_ref().map(|objects| objects.losses),
        named_losses: facts.generated.as_ref().map_or_else(Vec::new, |objects| {
            objects.named.iter().map(|loss| plain(loss, MOST_TEXT)).collect()
        }),
        next_expiry: facts.next_expiry.map(time),
        expired: facts.expired,
        findings: facts.findings.clone(),
        more_findings: facts.more_findings,
        reasons,
    }
}

fn status(nodes: &Nodes, now: u64) -> NodesStatus {
    let mut status = NodesStatus { told: nodes.summaries.len(), ..NodesStatus::default() };
    let mut lines = Vec::new();
    for (node, summary) in &nodes.summaries {
        *status.versions.entry(summary.version.clone()).or_default() += 1;
        for (provider, revision) in &summary.ranges {
            let revisions = status.ranges.entry(provider.clone()).or_default();
            *revisions.entry(revision.clone()).or_default() += 1;
        }
        if let Some(line) = silent(node, summary, now) {
            status.silent += 1;
            lines.push(line);
        } else if summary.ready && summary.audit {
            status.auditing += 1;
        } else if summary.ready {
            status.ready += 1;
        } else {
            status.not_ready += 1;
            let why = summary.reasons.first().map_or("it does not say why", String::as_str);
            lines.push(format!("node {node} is not ready: {why}"));
        }
    }
    if let Some(all) = &nodes.all {
        let missing: Vec<&String> = all.iter().filter(|node| !nodes.summaries.contains_key(*node)).collect();
        status.missing = Some(missing.len());
        lines.extend(missing.iter().map(|node| format!("node {node} tells nothing")));
    }
    let more = lines.len().saturating_sub(MOST_NODES);
    status.audit_only = nodes.only_audit();
    status.reasons = match status.audit_only {
        true => vec!["every node only audits (--audit): no policy denies anything".to_owned()],
        false => only_audit(status.auditing).into_iter().collect(),
    };
    status.reasons.extend(lines.iter().take(MOST_NODES).map(|line| plain(line, MOST_TEXT)));
    if more > 0 {
        status.reasons.push(format!("and {more} more"));
    }
    status
}

/// Returns a second since the epoch as people and programs write it.
fn time(second: u64) -> String {
    let time = i64::try_from(second).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
    time.map_or_else(|| second.to_string(), |time| time.to_string())
}

#[cfg(test)]
mod tests;
