//! Which destinations the workloads of this node sent to, in bounded memory, for `egress-agent recommend`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry};

use egress_common::{
    maps::Counter,
    verdict::{CLASSES, COUNTED, Reason, Verdict},
};

use crate::{
    kernel::{
        clock,
        events::{Denial, protocol_name},
    },
    observe::{Destination, EntryUse, FlowSeen, Mask, Message, PodUse, WorkloadSeen},
    policy::{
        cluster::{Cluster, Labels},
        model::{RuleName, RulePart},
        ranges::Ranges,
        recommend,
    },
};

use super::LocalPod;

/// How many flows of one workload are told apart.
const OF_WORKLOAD: usize = 512;
/// How many of the node.
const OF_NODE: usize = 4096;
/// How many workloads.
const WORKLOADS: usize = 512;

/// Flows by workload.
#[derive(Debug)]
pub(super) struct Flows {
    /// By namespace and name.
    workloads: BTreeMap<(String, String), Workload>,
    /// How many flows there are of all of them.
    count: usize,
    /// Events of workloads there was no room for.
    left_out: u64,
    /// When it began, in seconds since the epoch.
    since: u64,
}

#[derive(Debug, Default)]
struct Workload {
    /// The labels that all of its pods have.
    labels: Option<BTreeMap<String, String>>,
    /// Pods whose labels are among them. Emptied when it grows.
    pods: HashSet<u64>,
    flows: HashMap<Flow, u64>,
    left_out: u64,
    held_back: u64,
}

/// What makes two flows different.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Flow {
    to: Destination,
    protocol: u8,
    port: u16,
    verdict: Verdict,
    reason: Reason,
    rule: Option<RuleName>,
}

impl Default for Flows {
    fn default() -> Self {
        let since = clock::wall_seconds_and_fraction().0;
        Self { workloads: BTreeMap::new(), count: 0, left_out: 0, since }
    }
}

impl Flows {
    /// Takes note of `count` events like this one. Those of pods that nobody knows are not noted.
    pub(super) fn note(
        &mut self,
        event: &Denial,
        count: u64,
        pod: &LocalPod,
        labels: Option<&Labels>,
        rule: Option<&RuleName>,
        mask: Mask,
    ) {
        let none = Labels::new();
        let name = recommend::workload(&pod.workload, labels.unwrap_or(&none));
        let key = (pod.id.namespace.clone(), name);
        if !self.workloads.contains_key(&key) && self.workloads.len() >= WORKLOADS {
            self.left_out = self.left_out.saturating_add(count);
            return;
        }
        let workload = self.workloads.entry(key).or_default();
        workload.held_back = workload.held_back.saturating_add(event.suppressed.into());
        if let Some(labels) = labels
            && !workload.pods.contains(&event.cgroup)
        {
            if workload.pods.len() >= OF_WORKLOAD {
                workload.pods.clear();
            }
            workload.pods.insert(event.cgroup);
            let own = recommend::lasting(labels);
            match &mut workload.labels {
                None => workload.labels = Some(own),
                Some(all) => all.retain(|key, value| own.get(key) == Some(value)),
            }
        }
        let flow = Flow {
            to: mask.show(event.destination),
            protocol: event.protocol,
            port: event.destination_port,
            verdict: event.verdict,
            reason: event.reason,
            rule: rule.cloned(),
        };
        let room = workload.flows.len() < OF_WORKLOAD && self.count < OF_NODE;
        match workload.flows.entry(flow) {
            Entry::Occupied(mut known) => *known.get_mut() = known.get().saturating_add(count),
            Entry::Vacant(new) if room => {
                new.insert(count);
                self.count += 1;
            }
            Entry::Vacant(_) => workload.left_out = workload.left_out.saturating_add(count),
        }
    }

    /// Returns what was noted of the workloads of these namespaces, or of all, with the names of destinations that are known here.
    pub(super) fn told(
        &self,
        namespaces: &BTreeSet<String>,
        cluster: &Cluster,
        ranges: &Ranges,
    ) -> Vec<Message> {
        let wanted = || {
            let all = self.workloads.iter();
            all.filter(|((namespace, _), _)| namespaces.is_empty() || namespaces.contains(namespace))
        };
        let mut sought = BTreeSet::new();
        for flow in wanted().flat_map(|(_, workload)| workload.flows.keys()) {
            if let Some(address) = flow.to.address() {
                sought.insert((address, flow.protocol, flow.port));
            }
        }
        let names = recommend::names(cluster, ranges, &sought);
        let mut told = Vec::new();
        for ((namespace, name), workload) in wanted() {
            told.push(Message::Workload(WorkloadSeen {
                namespace: namespace.clone(),
                workload: name.clone(),
                labels: workload.labels.clone().unwrap_or_default(),
                since: self.since,
                left_out: workload.left_out,
                held_back: workload.held_back,
            }));
            for (flow, count) in &workload.flows {
                let key = flow.to.address().map(|address| (address, flow.protocol, flow.port));
                told.push(Message::Flow(Box::new(FlowSeen {
                    namespace: namespace.clone(),
                    workload: name.clone(),
                    verdict: flow.verdict,
                    reason: flow.reason.as_str().to_owned(),
                    policy: flow.rule.as_ref().map(|rule| rule.policy.id.to_string()),
                    destination: flow.rule.as_ref().map(|rule| rule.part.as_str().to_owned()),
                    protocol: protocol_name(flow.protocol),
                    to: flow.to,
                    port: flow.port,
                    count: *count,
                    name: key.and_then(|key| names.get(&key).cloned()),
                })));
            }
        }
        if self.left_out > 0 {
            told.push(Message::LeftOut(self.left_out));
        }
        told
    }
}

/// Returns how often a destination of a policy decided, if it is one.
pub(super) fn use_of(rule: &RuleName, packets: u64) -> Option<Message> {
    let RulePart::Destination(destination) = &rule.part else { return None };
    Some(Message::Entry(EntryUse {
        policy: rule.policy.id.to_string(),
        destination: destination.clone(),
        packets,
    }))
}

/// Returns what the counters of a pod say; without one, of the pods nobody knows.
pub(super) fn use_of_pod(pod: Option<&LocalPod>, counters: &[Counter; CLASSES as usize]) -> Message {
    let packets = COUNTED.iter().zip(counters).filter(|(_, counter)| counter.packets > 0);
    let packets = packets.map(|((verdict, reason), counter)| {
        (verdict.as_str().to_owned(), reason.as_str().to_owned(), counter.packets)
    });
    Message::Pod(PodUse {
        namespace: pod.map(|pod| pod.id.namespace.clone()),
        pod: pod.map(|pod| pod.id.name.clone()),
        workload: pod.map(|pod| pod.workload.clone()),
        packets: packets.collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::policy::cluster::NsName;

    fn event(cgroup: u64, number: u32) -> Denial {
        Denial {
            time: (1_800_000_000, 0),
            cgroup,
            slot: 1,
            rule: 2,
            verdict: Verdict::Audit,
            reason: Reason::DefaultDeny,
            hook: "packet",
            protocol: 6,
            source: IpAddr::from([10, 0, 0, 1]),
            source_port: 40_000,
            destination: IpAddr::from(number.to_be_bytes()),
            destination_port: 443,
            bytes: 60,
            suppressed: 0,
        }
    }

    fn pod(name: &str, workload: &str) -> LocalPod {
        LocalPod { id: NsName::new("shop", name), workload: workload.to_owned(), ..LocalPod::default() }
    }

    fn told(flows: &Flows) -> Vec<Message> {
        flows.told(&BTreeSet::new(), &Cluster::default(), &Ranges::default())
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_pods_of_a_workload_are_one_and_their_common_labels_its() {
        let mut flows = Flows::default();
        let first = labels(&[("app", "web"), ("zone", "a"), ("pod-template-hash", "1")]);
        let second = labels(&[("app", "web"), ("zone", "b"), ("pod-template-hash", "2")]);
        flows.note(&event(1, 1), 1, &pod("web-1-x", "ReplicaSet/web-1"), Some(&first), None, Mask::Off);
        flows.note(&event(2, 1), 4, &pod("web-2-y", "ReplicaSet/web-2"), Some(&second), None, Mask::Off);
        let told = told(&flows);
        let [Message::Workload(workload), Message::Flow(flow)] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!((workload.workload.as_str(), flow.count), ("Deployment/web", 5));
        assert_eq!(workload.labels, BTreeMap::from([("app".to_owned(), "web".to_owned())]));
        assert_eq!(flow.to.to_string(), "0.0.0.1");
        let none = flows.told(&BTreeSet::from(["till".to_owned()]), &Cluster::default(), &Ranges::default());
        assert_eq!(none, []);
    }

    #[test]
    fn what_does_not_fit_is_counted_and_told() {
        let mut flows = Flows::default();
        for number in (0_u32..).take(OF_WORKLOAD + 3) {
            flows.note(&event(1, number), 2, &pod("a", "Pod/a"), None, None, Mask::Off);
        }
        // What is known already still fits.
        flows.note(&event(1, 0), 1, &pod("a", "Pod/a"), None, None, Mask::Off);
        let one = told(&flows);
        assert_eq!(one.len(), 1 + OF_WORKLOAD);
        let Message::Workload(workload) = &one[0] else { panic!("{:?}", one[0]) };
        assert_eq!(workload.left_out, 6);
        for workload in 0..WORKLOADS + 5 {
            for number in 0..20 {
                let name = format!("Pod/{workload:04}");
                flows.note(&event(1, number), 1, &pod("b", &name), None, None, Mask::Off);
            }
        }
        let all = told(&flows);
        let count = all.iter().filter(|message| matches!(message, Message::Flow(_))).count();
        assert_eq!(count, OF_NODE);
        // One place was taken before.
        assert_eq!(all.last(), Some(&Message::LeftOut(6 * 20)));
    }

    #[test]
    fn a_mask_holds_here_too() {
        let mut flows = Flows::default();
        for number in 0..100 {
            flows.note(&event(1, 0xc000_0200 + number), 1, &pod("a", "Pod/a"), None, None, Mask::Prefix);
        }
        let told = told(&flows);
        let [_, Message::Flow(flow)] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!((flow.to.to_string(), flow.count), ("192.0.2.0/24".to_owned(), 100));
    }
}
