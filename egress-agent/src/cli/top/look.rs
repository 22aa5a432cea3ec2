//! Counters of a node at two moments, what they come to, and that of many nodes put together.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use egress_common::verdict::Verdict;
use serde::{Deserialize, Serialize};

use crate::observe::{EntryUse, PodUse, verdict_of};

/// What stands for what is not there.
const NONE: &str = "<none>";

/// What is counted: a pod, a destination, or a reason.
pub(super) type Subject = (String, String);

/// The counters of a node at one moment.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Sample {
    /// When.
    at: Instant,
    /// The node's name.
    pub(super) node: String,
    /// By namespace and pod: its workload, and denied, audited and allowed packets.
    pods: BTreeMap<Subject, (String, [u64; 3])>,
    /// Packets by policy and destination.
    destinations: BTreeMap<Subject, u64>,
    /// Packets by verdict and reason.
    reasons: BTreeMap<Subject, u64>,
    /// What most of the denied or audited packets of a pod have as their reason.
    most: BTreeMap<Subject, (u64, String)>,
}

impl Sample {
    pub(super) fn new(at: Instant) -> Self {
        Self {
            at,
            node: String::new(),
            pods: BTreeMap::new(),
            destinations: BTreeMap::new(),
            reasons: BTreeMap::new(),
            most: BTreeMap::new(),
        }
    }

    /// Adds a pod, if it is of the namespace that is wanted.
    pub(super) fn add_pod(&mut self, pod: PodUse, namespace: Option<&str>) {
        if namespace.is_some_and(|wanted| pod.namespace.as_deref() != Some(wanted)) {
            return;
        }
        let or_none = |name: Option<String>| name.unwrap_or_else(|| NONE.to_owned());
        let subject = (or_none(pod.namespace), or_none(pod.pod));
        let workload = or_none(pod.workload);
        for (verdict, reason, packets) in pod.packets {
            let place = match verdict_of(&verdict) {
                Some(Verdict::Deny) => 0,
                Some(Verdict::Audit) => 1,
                Some(Verdict::Allow) => 2,
                None => continue,
            };
            let (_, counts) = self.pods.entry(subject.clone()).or_insert_with(|| (workload.clone(), [0; 3]));
            counts[place] = counts[place].saturating_add(packets);
            if place < 2 && packets > self.most.get(&subject).map_or(0, |(most, _)| *most) {
                self.most.insert(subject.clone(), (packets, reason.clone()));
            }
            let of_reason = self.reasons.entry((verdict, reason)).or_default();
            *of_reason = of_reason.saturating_add(packets);
        }
    }

    /// Adds a destination likewise.
    pub(super) fn add_entry(&mut self, entry: EntryUse, namespace: Option<&str>) {
        let of = entry.policy.split_once('/').map_or("", |(of, _)| of);
        if namespace.is_none_or(|wanted| wanted == of) {
            self.destinations.insert((entry.policy, entry.destination), entry.packets);
        }
    }
}

/// How many packets, and how many of them a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct Count {
    pub(super) packets: u64,
    /// In thousandths.
    #[serde(with = "thousandths")]
    pub(super) per_second: u64,
}

impl Count {
    fn of(now: u64, before: Option<u64>, seconds: f64) -> Self {
        Self { packets: now, per_second: rate(now, before, seconds) }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.per_second = self.per_second.saturating_add(other.per_second);
    }
}

/// Thousandths, written as a number with a point.
mod thousandths {
    use serde::{Deserialize as _, Deserializer, Serializer};

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        clippy::cast_precision_loss,
        reason = "as serde wants it; a rate that people read"
    )]
    pub(super) fn serialize<S: Serializer>(rate: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(*rate as f64 / 1000.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        Ok(super::rounded(f64::deserialize(deserializer)? * 1000.0))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate that is shown with one decimal; casts from float saturate"
)]
fn rounded(rate: f64) -> u64 {
    rate.round() as u64
}

/// Returns how many packets a second came, in thousandths, for sorting and writing.
fn rate(now: u64, before: Option<u64>, seconds: f64) -> u64 {
    let Some(before) = before.filter(|_| seconds > 0.0) else { return 0 };
    // A counter that has become smaller is another pod's, and began at nothing.
    let more = if now >= before { now - before } else { now };
    #[expect(clippy::cast_precision_loss, reason = "as above")]
    let more = more as f64;
    rounded(more * 1000.0 / seconds)
}

/// What a pod, or the pods of a workload, did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct Use {
    pub(super) denied: Count,
    pub(super) audited: Count,
    pub(super) allowed: Count,
    /// What most of the denied or audited packets have as their reason, and how many these are.
    pub(super) mostly: Option<(String, u64)>,
}

impl Use {
    pub(super) fn add(&mut self, other: &Self) {
        self.denied.add(other.denied);
        self.audited.add(other.audited);
        self.allowed.add(other.allowed);
        let packets = |most: &Option<(String, u64)>| most.as_ref().map_or(0, |(_, packets)| *packets);
        if packets(&other.mostly) > packets(&self.mostly) {
            self.mostly.clone_from(&other.mostly);
        }
    }
}

/// What there is to show of one node or of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct Look {
    /// The nodes it is of.
    pub(in crate::cli) nodes: BTreeSet<String>,
    /// The nodes that were asked and are not heard.
    pub(in crate::cli) silent: BTreeSet<String>,
    /// By namespace and pod: its workload, and what it did.
    pub(super) pods: BTreeMap<Subject, (String, Use)>,
    /// By policy and destination.
    pub(super) destinations: BTreeMap<Subject, Count>,
    /// By verdict and reason.
    pub(super) reasons: BTreeMap<Subject, Count>,
}

impl Look {
    /// Returns what a sample says, with rates where there was one before it.
    pub(super) fn of(now: &Sample, before: Option<&Sample>) -> Self {
        let seconds = before.map_or(0.0, |before| now.at.duration_since(before.at).as_secs_f64());
        let pods = now.pods.iter().map(|(subject, (workload, counts))| {
            let earlier = before.and_then(|before| before.pods.get(subject));
            let count =
                |place: usize| Count::of(counts[place], earlier.map(|(_, earlier)| earlier[place]), seconds);
            let mostly = now.most.get(subject).map(|(packets, reason)| (reason.clone(), *packets));
            let done = Use { denied: count(0), audited: count(1), allowed: count(2), mostly };
            (subject.clone(), (workload.clone(), done))
        });
        let counts = |now: &BTreeMap<Subject, u64>, before: Option<&BTreeMap<Subject, u64>>| {
            let count = |(subject, packets): (&Subject, &u64)| {
                let earlier = before.and_then(|before| before.get(subject)).copied();
                (subject.clone(), Count::of(*packets, earlier, seconds))
            };
            now.iter().map(count).collect()
        };
        Self {
            nodes: BTreeSet::from([now.node.clone()]),
            silent: BTreeSet::new(),
            pods: pods.collect(),
            destinations: counts(&now.destinations, before.map(|before| &before.destinations)),
            reasons: counts(&now.reasons, before.map(|before| &before.reasons)),
        }
    }

    /// Adds what another node says, under this name.
    pub(in crate::cli) fn add(&mut self, node: &str, other: &Self) {
        self.nodes.insert(node.to_owned());
        for (subject, (workload, done)) in &other.pods {
            let (_, all) =
                self.pods.entry(subject.clone()).or_insert_with(|| (workload.clone(), Use::default()));
            all.add(done);
        }
        for (all, more) in
            [(&mut self.destinations, &other.destinations), (&mut self.reasons, &other.reasons)]
        {
            for (subject, count) in more {
                all.entry(subject.clone()).or_default().add(*count);
            }
        }
    }

    /// Returns what the workloads did, by namespace and name.
    pub(super) fn workloads(&self) -> BTreeMap<Subject, Use> {
        let mut workloads: BTreeMap<Subject, Use> = BTreeMap::new();
        for ((namespace, _), (workload, done)) in &self.pods {
            workloads.entry((namespace.clone(), workload.clone())).or_default().add(done);
        }
        workloads
    }

    /// Returns it as a line of JSON.
    pub(in crate::cli) fn line(&self) -> serde_json::Result<String> {
        let pods = self.pods.iter().map(|((namespace, pod), (workload, done))| PodLine {
            namespace: namespace.clone(),
            pod: pod.clone(),
            workload: workload.clone(),
            done: done.clone(),
        });
        let destinations = self.destinations.iter().map(|((policy, destination), count)| DestinationLine {
            policy: policy.clone(),
            destination: destination.clone(),
            count: *count,
        });
        let reasons = self.reasons.iter().map(|((verdict, reason), count)| ReasonLine {
            verdict: verdict.clone(),
            reason: reason.clone(),
            count: *count,
        });
        serde_json::to_string(&Line {
            nodes: self.nodes.clone(),
            silent: self.silent.clone(),
            pods: pods.collect(),
            destinations: destinations.collect(),
            reasons: reasons.collect(),
        })
    }

    /// Reads such a line.
    pub(in crate::cli) fn read(line: &str) -> Option<Self> {
        let line: Line = serde_json::from_str(line).ok()?;
        let mut look = Self { nodes: line.nodes, silent: line.silent, ..Self::default() };
        for pod in line.pods {
            look.pods.insert((pod.namespace, pod.pod), (pod.workload, pod.done));
        }
        for of in line.destinations {
            look.destinations.insert((of.policy, of.destination), of.count);
        }
        for of in line.reasons {
            look.reasons.insert((of.verdict, of.reason), of.count);
        }
        Some(look)
    }
}

/// A look as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    nodes: BTreeSet<String>,
    silent: BTreeSet<String>,
    pods: Vec<PodLine>,
    destinations: Vec<DestinationLine>,
    reasons: Vec<ReasonLine>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PodLine {
    namespace: String,
    pod: String,
    workload: String,
    #[serde(flatten)]
    done: Use,
}

#[derive(Debug, Serialize, Deserialize)]
struct DestinationLine {
    policy: String,
    destination: String,
    #[serde(flatten)]
    count: Count,
}

#[derive(Debug, Serialize, Deserialize)]
struct ReasonLine {
    verdict: String,
    reason: String,
    #[serde(flatten)]
    count: Count,
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;

    pub(in crate::cli::top) fn pod(namespace: &str, name: &str, denied: u64, allowed: u64) -> PodUse {
        let count = |verdict: &str, reason: &str, packets| (verdict.to_owned(), reason.to_owned(), packets);
        PodUse {
            namespace: Some(namespace.to_owned()),
            pod: Some(name.to_owned()),
            workload: Some(format!("Deployment/{}", &name[..1])),
            packets: vec![
                count("deny", "default_deny", denied),
                count("deny", "expired", 1),
                count("allow", "allowed_destination", allowed),
            ],
        }
    }

    pub(in crate::cli::top) fn sample(at: Instant, pods: &[PodUse]) -> Sample {
        let mut sample = Sample::new(at);
        sample.node = "node-a".to_owned();
        for pod in pods {
            sample.add_pod(pod.clone(), None);
        }
        let entry = |destination: &str, packets| EntryUse {
            policy: "shop/web".to_owned(),
            destination: destination.to_owned(),
            packets,
        };
        sample.add_entry(entry("db", 70), None);
        sample.add_entry(entry("idle", 0), None);
        sample
    }

    pub(in crate::cli::top) fn two() -> Look {
        let start = Instant::now();
        let before = sample(start, &[pod("shop", "web", 10, 1000), pod("shop", "till", 500, 0)]);
        let now = sample(
            start + Duration::from_secs(2),
            &[pod("shop", "web", 30, 1001), pod("shop", "till", 500, 0), pod("shop", "new", 7, 5)],
        );
        Look::of(&now, Some(&before))
    }

    #[test]
    fn a_counter_that_becomes_smaller_began_at_nothing() {
        assert_eq!(rate(5, Some(100), 1.0), 5000);
        assert_eq!(rate(5, None, 1.0), 0, "nobody knows since when");
        assert_eq!(rate(u64::MAX, Some(0), 0.1), u64::MAX, "however much");
    }

    #[test]
    fn only_what_is_of_the_namespace_counts() {
        let mut sample = Sample::new(Instant::now());
        sample.add_pod(pod("till", "web", 1, 1), Some("shop"));
        sample.add_entry(
            EntryUse { policy: "till/p".to_owned(), destination: "d".to_owned(), packets: 1 },
            Some("shop"),
        );
        assert!(sample.pods.is_empty() && sample.destinations.is_empty() && sample.reasons.is_empty());
        sample.add_pod(pod("shop", "web", 1, 1), Some("shop"));
        assert_eq!(sample.pods.len(), 1);
    }

    #[test]
    fn what_is_written_is_read_as_it_was() {
        let mut look = two();
        assert_eq!(Look::read(&look.line().expect("it can be written")), Some(look.clone()));
        look.silent.insert("node-b".to_owned());
        let line = look.line().expect("it can be written");
        assert_eq!(Look::read(&line), Some(look));
        let value: serde_json::Value = serde_json::from_str(&line).expect("it is JSON");
        assert_eq!(value["pods"][2]["denied"]["perSecond"], 10.0, "{value:#}");
        for strange in ["", "{}", "[]", "null", &line[1..]] {
            assert_eq!(Look::read(strange), None, "{strange}");
        }
        // Whatever a node says about how often something came.
        let strange = line.replace("10.0", "-1e300");
        assert_eq!(
            Look::read(&strange).map(|look| look.pods[&("shop".into(), "web".into())].1.denied.per_second),
            Some(0)
        );
    }

    #[test]
    fn nodes_are_put_together_by_what_is_counted() {
        let one = two();
        let mut all = Look::default();
        all.add("node-a", &one);
        all.add("node-b", &one);
        let shop = |name: &str| ("shop".to_owned(), name.to_owned());
        assert_eq!(all.nodes.len(), 2);
        assert_eq!(all.pods[&shop("web")].1.denied, Count { packets: 62, per_second: 20_000 });
        assert_eq!(all.destinations[&("shop/web".to_owned(), "db".to_owned())].packets, 140);
        assert_eq!(all.workloads()[&shop("Deployment/t")].denied.packets, 1002);
        assert_eq!(all.workloads()[&shop("Deployment/t")].mostly, Some(("default_deny".to_owned(), 500)));
    }
}
