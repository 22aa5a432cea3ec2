//! How policies stand, as a Report in each namespace: what dashboards for policies read.
//!
//! There are two dialects of one shape, `wgpolicyk8s.io/v1alpha2` and `openreports.io/v1alpha1`; both are written from one struct.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use super::{Overview, PolicyStatus, State};
use crate::k8s::{generated::MANAGED_BY, summary::plain};

/// What a Report is called in its namespace.
pub const NAME: &str = "egress-agent";
/// Who made the results.
const SOURCE: &str = "egress-agent";
/// How many results one Report has.
const MOST_RESULTS: usize = 500;
/// How long the results may be together, in bytes of JSON. An object in etcd may have 1.5 MiB.
const MOST_BYTES: usize = 512 << 10;
/// How long the results of one that was read may be: ours, and what the API server adds to them.
const MOST_READ: usize = MOST_BYTES + (64 << 10);
/// How long each of its other fields may be.
const MOST_OTHER: usize = 4 << 10;
/// How long a message may be, in bytes.
const MOST_MESSAGE: usize = 500;

/// A kind of Report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dialect {
    /// `wgpolicyk8s.io/v1alpha2` PolicyReport.
    PolicyReport,
    /// `openreports.io/v1alpha1` Report.
    OpenReports,
}

impl Dialect {
    /// Both.
    pub const ALL: [Self; 2] = [Self::OpenReports, Self::PolicyReport];

    /// Returns group, version, kind and plural.
    #[must_use]
    pub const fn names(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Self::PolicyReport => ("wgpolicyk8s.io", "v1alpha2", "PolicyReport", "policyreports"),
            Self::OpenReports => ("openreports.io", "v1alpha1", "Report", "reports"),
        }
    }
}

/// One result. Serialized, its fields are those of both dialects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    policy: String,
    uid: Option<String>,
    rule: String,
    /// From bad to good, so that the bad ones come first.
    result: Outcome,
    message: String,
    properties: BTreeMap<&'static str, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Fail,
    Error,
    Warn,
    Pass,
    Skip,
}

impl Outcome {
    const ALL: [Self; 5] = [Self::Fail, Self::Error, Self::Warn, Self::Pass, Self::Skip];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Pass => "pass",
            Self::Skip => "skip",
        }
    }

    const fn severity(self) -> &'static str {
        match self {
            Self::Fail => "high",
            Self::Error => "medium",
            Self::Warn => "low",
            Self::Pass | Self::Skip => "info",
        }
    }
}

/// What is reported of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    lines: Vec<Line>,
    /// How many results had no room.
    more: usize,
    /// All results, by outcome.
    counts: BTreeMap<&'static str, usize>,
}

/// Returns a Report for each namespace that has a policy.
#[must_use]
pub fn reports(overview: &Overview) -> BTreeMap<String, Report> {
    let mut reports: BTreeMap<String, Vec<Line>> = BTreeMap::new();
    for policy in &overview.policies {
        reports.entry(policy.namespace.clone()).or_default().extend(lines(policy));
    }
    reports.into_iter().map(|(namespace, lines)| (namespace, Report::of(lines))).collect()
}

fn lines(policy: &PolicyStatus) -> Vec<Line> {
    let line = |rule: &str, result: Outcome, message: &str| Line {
        policy: policy.name.clone(),
        uid: policy.uid.clone(),
        rule: rule.to_owned(),
        result,
        message: plain(message, MOST_MESSAGE),
        properties: BTreeMap::new(),
    };
    let (result, words) = match policy.state {
        State::Rejected => (
            Outcome::Fail,
            "It is not valid, and no valid version is known; its namespace is denied by default.",
        ),
        State::Earlier => (Outcome::Fail, "It is not valid; its last valid version holds."),
        State::Partly => (Outcome::Warn, "Not every node that should enforces it."),
        State::InForce => (Outcome::Pass, "Every node that should enforces it."),
        State::Audited => (Outcome::Skip, "Every node only audits (--audit): it denies nothing."),
        State::Unused => (Outcome::Skip, "It selects no pod that runs."),
        State::Unknown => (Outcome::Error, "No node tells what it enforces."),
    };
    let mut main = line("in-force", result, &[&[words.to_owned()][..], &policy.reasons].concat().join(" "));
    let nodes = &policy.nodes;
    let mut properties = vec![
        ("mode", Some(policy.mode.to_owned())),
        ("revision", policy.accepted.clone()),
        ("nodes", Some(format!("{} of {}", nodes.enforcing, nodes.selected))),
        ("pods", Some(policy.pods.to_string())),
        ("networkPolicies", policy.network_policies.map(|count| count.to_string())),
        ("losses", policy.losses.map(|count| count.to_string())),
        ("nextExpiry", policy.next_expiry.clone()),
    ];
    if policy.pods_behind > 0 {
        properties.push(("podsBehind", Some(policy.pods_behind.to_string())));
    }
    if nodes.auditing > 0 {
        properties.push(("nodesAuditing", Some(nodes.auditing.to_string())));
    }
    main.properties = properties.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let mut lines = vec![main];
    for finding in &policy.findings {
        let result = if finding.severity == "error" { Outcome::Fail } else { Outcome::Warn };
        lines.push(line(finding.rule.as_deref().unwrap_or("validation"), result, &finding.text));
    }
    if policy.more_findings > 0 {
        lines.push(line("validation", Outcome::Warn, &format!("and {} more findings", policy.more_findings)));
    }
    if policy.losses.unwrap_or(0) > 0 {
        let message =
            format!("NetworkPolicies differ from what nodes enforce: {}", policy.named_losses.join("; "));
        lines.push(line("network-policy", Outcome::Warn, &message));
    }
    if policy.expired > 0 {
        let message = format!("Destinations that have ended and match nothing any more: {}.", policy.expired);
        lines.push(line("expiry", Outcome::Warn, &message));
    }
    lines
}

impl Line {
    fn value(&self, namespace: &str) -> Value {
        let mut value = json!({
            "source": SOURCE, "policy": self.policy, "rule": self.rule, "category": "Egress",
            "result": self.result.as_str(), "severity": self.result.severity(), "scored": true, "message": self.message,
            "resources": [{
                "apiVersion": "v1", "kind": "ConfigMap", "namespace": namespace, "name": self.policy,
            }],
        });
        if let Some(uid) = &self.uid {
            value["resources"][0]["uid"] = uid.as_str().into();
        }
        if !self.properties.is_empty() {
            value["properties"] = json!(self.properties);
        }
        value
    }
}

impl Report {
    fn of(mut lines: Vec<Line>) -> Self {
        lines.sort_by(|one, other| {
            (one.result, &one.policy, &one.rule, &one.message).cmp(&(
                other.result,
                &other.policy,
                &other.rule,
                &other.message,
            ))
        });
        let mut counts: BTreeMap<&str, usize> =
            Outcome::ALL.iter().map(|outcome| (outcome.as_str(), 0)).collect();
        for line in &lines {
            *counts.entry(line.result.as_str()).or_default() += 1;
        }
        let mut room = MOST_BYTES;
        let all = lines.len();
        let fits = lines.iter().take(MOST_RESULTS).take_while(|line| {
            // A timestamp and the namespace come to it.
            let takes = line.value("").to_string().len() + 128;
            let fits = takes <= room;
            room = room.saturating_sub(takes);
            fits
        });
        let fits = fits.count();
        lines.truncate(fits);
        Self { more: all - lines.len(), lines, counts }
    }

    /// Returns the object. A result that `before` has keeps its time; the others have `at`.
    #[must_use]
    pub fn object(
        &self,
        dialect: Dialect,
        namespace: &str,
        controller: &str,
        before: Option<&Value>,
        at: u64,
    ) -> Value {
        let (group, version, kind, _) = dialect.names();
        let without_time = |result: &Value| {
            let mut result = result.clone();
            result.as_object_mut().map(|fields| fields.remove("timestamp"));
            result
        };
        // Of two that say the same the first counts.
        let mut known: HashMap<Value, &Value> = HashMap::new();
        let results = before.and_then(|before| before["results"].as_array()).into_iter().flatten();
        for result in results.take(MOST_RESULTS + 1).filter(|result| result["timestamp"].is_object()) {
            known.entry(without_time(result)).or_insert(&result["timestamp"]);
        }
        let mut results: Vec<Value> = Vec::with_capacity(self.lines.len() + 1);
        for line in &self.lines {
            let mut value = line.value(namespace);
            let since = known.get(&value);
            value["timestamp"] =
                since.map_or_else(|| json!({ "seconds": at, "nanos": 0 }), |since| (*since).clone());
            results.push(value);
        }
        if self.more > 0 {
            results.push(json!({
                "source": SOURCE, "policy": "(more)", "result": "skip", "severity": "info",
                "message": format!("and {} more results", self.more),
            }));
        }
        let mut object = json!({
            "apiVersion": format!("{group}/{version}"), "kind": kind,
            "metadata": {
                "namespace": namespace, "name": NAME,
                "labels": { MANAGED_BY.0: MANAGED_BY.1 },
                "annotations": { super::CONTROLLER: controller },
            },
            "scope": { "apiVersion": "v1", "kind": "Namespace", "name": namespace },
            "summary": self.counts,
            "results": results,
        });
        if dialect == Dialect::OpenReports {
            object["source"] = SOURCE.into();
            object["configuration"] = json!({ "limits": { "maxResults": MOST_RESULTS } });
        }
        object
    }
}

/// Returns what is kept of a Report that was read: what is ours of it. Results that are more than one of ours has are left out, so it
/// differs and is written anew.
#[must_use]
pub fn kept(mut object: Value) -> Value {
    let mut take = |field: &str| object.get_mut(field).map_or(Value::Null, Value::take);
    let (mut results, mut meta) = (take("results"), take("metadata"));
    let many = results.as_array().is_some_and(|results| results.len() > MOST_RESULTS + 1);
    if many || results.to_string().len() > MOST_READ {
        results = Value::Null;
    }
    let mut kept = json!({
        "metadata": {
            "labels": { MANAGED_BY.0: meta["labels"][MANAGED_BY.0].take() },
            "annotations": { super::CONTROLLER: meta["annotations"][super::CONTROLLER].take() },
        },
        "results": results,
    });
    for field in ["namespace", "name", "uid", "resourceVersion"] {
        kept["metadata"][field] = meta[field].take();
    }
    for field in ["source", "configuration", "scope", "summary"] {
        let value = take(field);
        // What is longer is not ours.
        if !value.is_null() && value.to_string().len() <= MOST_OTHER {
            kept[field] = value;
        }
    }
    kept
}

/// Returns whether two objects say the same in what is ours of them.
#[must_use]
pub fn says_the_same(one: &Value, other: &Value) -> bool {
    let own = ["source", "configuration", "scope", "summary", "results"];
    let meta = |object: &Value, part: &str, key: &str| object["metadata"][part][key].clone();
    own.iter().all(|field| one[*field] == other[*field])
        && meta(one, "labels", MANAGED_BY.0) == meta(other, "labels", MANAGED_BY.0)
        && meta(one, "annotations", super::CONTROLLER) == meta(other, "annotations", super::CONTROLLER)
}
