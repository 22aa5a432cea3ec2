//! Which destinations the workloads of this node sent to, in bounded memory, for `egress-agent recommend`.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry};

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
/// One namespace has no more than one part in so many of both, while others want a place.
const SHARE: usize = 4;
/// A workload with more labels, or with more bytes of them, has none: they are its tenant's to choose.
const LABELS: usize = 32;
const LABEL_BYTES: usize = 4096;

/// Flows by workload.
#[derive(Debug)]
pub(super) struct Flows {
    /// By namespace and name.
    workloads: BTreeMap<(String, String), Workload>,
    /// How much of it is each namespace's. Has those that have a workload.
    namespaces: HashMap<String, Places>,
    /// How many flows there are of all of them.
    count: usize,
    /// Events of workloads there was no room for, or no longer.
    left_out: u64,
    /// Counts events, to tell which workload had none for longest.
    turn: u64,
    /// When it began, in seconds since the epoch.
    since: u64,
}

#[derive(Debug, Default)]
struct Workload {
    /// The labels that all of its pods have.
    labels: Option<BTreeMap<String, String>>,
    /// Pods that sent something and are still here, and whether their labels are among them. Emptied when it grows.
    pods: HashMap<u64, bool>,
    flows: HashMap<Flow, u64>,
    /// The turn of its last event.
    used: u64,
    left_out: u64,
    held_back: u64,
}

/// What a namespace takes.
#[derive(Clone, Copy, Debug, Default)]
struct Places {
    workloads: usize,
    flows: usize,
}

/// Of what there is too little.
#[derive(Clone, Copy, Debug)]
enum Scarce {
    Workloads,
    Flows,
}

impl Scarce {
    fn of(self, places: Places) -> usize {
        match self {
            Self::Workloads => places.workloads,
            Self::Flows => places.flows,
        }
    }

    fn share(self) -> usize {
        match self {
            Self::Workloads => WORKLOADS / SHARE,
            Self::Flows => OF_NODE / SHARE,
        }
    }
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
        Self { workloads: BTreeMap::new(), namespaces: HashMap::new(), count: 0, left_out: 0, since, turn: 0 }
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
        self.turn += 1;
        if !self.workloads.contains_key(&key) {
            if self.workloads.len() >= WORKLOADS && !self.make_room(Scarce::Workloads, &key) {
                self.left_out = self.left_out.saturating_add(count);
                return;
            }
            self.namespaces.entry(key.0.clone()).or_default().workloads += 1;
        }
        let flow = Flow {
            to: mask.show(event.destination),
            protocol: event.protocol,
            port: event.destination_port,
            verdict: event.verdict,
            reason: event.reason,
            rule: rule.cloned(),
        };
        let known = self.workloads.get(&key);
        let is_new = known.is_none_or(|workload| !workload.flows.contains_key(&flow));
        let fits = known.is_none_or(|workload| workload.flows.len() < OF_WORKLOAD);
        let room = is_new && fits && (self.count < OF_NODE || self.make_room(Scarce::Flows, &key));
        let places = self.namespaces.entry(key.0.clone()).or_default();
        let workload = self.workloads.entry(key).or_default();
        workload.used = self.turn;
        workload.held_back = workload.held_back.saturating_add(event.suppressed.into());
        workload.know(event.cgroup, labels);
        match workload.flows.entry(flow) {
            Entry::Occupied(mut known) => *known.get_mut() = known.get().saturating_add(count),
            Entry::Vacant(new) if room => {
                new.insert(count);
                self.count += 1;
                places.flows += 1;
            }
            Entry::Vacant(_) => workload.left_out = workload.left_out.saturating_add(count),
        }
    }

    /// Forgets which pods are gone. What was noted of them stays while there is room.
    pub(super) fn forget(&mut self, here: impl Fn(u64) -> bool) {
        for workload in self.workloads.values_mut() {
            workload.pods.retain(|cgroup, _| here(*cgroup));
        }
    }

    /// Gives up a workload for this one, and says whether there was one to give up.
    ///
    /// A namespace that has its share takes places of nobody but itself, and only of workloads without a pod here. One that has less takes
    /// them of those that have more than theirs, or else of any workload without a pod here. The one that had no event for longest goes.
    fn make_room(&mut self, scarce: Scarce, wanted_by: &(String, String)) -> bool {
        let places = |namespace: &str| self.namespaces.get(namespace).copied().unwrap_or_default();
        let has_share = scarce.of(places(&wanted_by.0)) >= scarce.share();
        let candidates = self.workloads.iter().filter_map(|(key, workload)| {
            if key == wanted_by || (matches!(scarce, Scarce::Flows) && workload.flows.is_empty()) {
                return None;
            }
            let gone = workload.pods.is_empty();
            if has_share {
                return (gone && key.0 == wanted_by.0).then_some(((false, false, workload.used), key));
            }
            let has_more = scarce.of(places(&key.0)) > scarce.share();
            (gone || has_more).then_some(((!has_more, !gone, workload.used), key))
        });
        let Some((_, key)) = candidates.min() else { return false };
        let key = key.clone();
        let Some(given_up) = self.workloads.remove(&key) else { return false };
        self.count -= given_up.flows.len();
        let events = given_up.flows.values().fold(given_up.left_out, |sum, count| sum.saturating_add(*count));
        self.left_out = self.left_out.saturating_add(events);
        if let Entry::Occupied(mut places) = self.namespaces.entry(key.0) {
            places.get_mut().workloads -= 1;
            places.get_mut().flows -= given_up.flows.len();
            if places.get().workloads == 0 {
                places.remove();
            }
        }
        true
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

impl Workload {
    /// Takes note of one of its pods.
    fn know(&mut self, cgroup: u64, labels: Option<&Labels>) {
        if self.pods.len() >= OF_WORKLOAD && !self.pods.contains_key(&cgroup) {
            self.pods.clear();
        }
        let known = self.pods.entry(cgroup).or_default();
        let Some(labels) = labels.filter(|_| !*known) else { return };
        *known = true;
        let mut own = recommend::lasting(labels);
        let bytes: usize = own.iter().map(|(key, value)| key.len() + value.len()).sum();
        if own.len() > LABELS || bytes > LABEL_BYTES {
            own.clear();
        }
        match &mut self.labels {
            None => self.labels = Some(own),
            Some(all) => all.retain(|key, value| own.get(key) == Some(value)),
        }
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
                flows.note(&event(2, number), 1, &pod("b", &name), None, None, Mask::Off);
            }
        }
        let all = told(&flows);
        let count = all.iter().filter(|message| matches!(message, Message::Flow(_))).count();
        assert_eq!(count, OF_NODE);
        // One place was taken before.
        assert_eq!(all.last(), Some(&Message::LeftOut(6 * 20)));
    }

    #[test]
    fn a_workload_of_many_pods_takes_bounded_room_and_what_the_kernel_held_back_adds_up() {
        let mut flows = Flows::default();
        for cgroup in 0..OF_WORKLOAD as u64 * 3 {
            let held_back = Denial { suppressed: 2, ..event(cgroup, 1) };
            flows.note(&held_back, 1, &pod("a", "Pod/a"), None, None, Mask::Off);
        }
        let one = flows.workloads.values().next().expect("there is one");
        assert!(one.pods.len() <= OF_WORKLOAD, "{}", one.pods.len());
        let told = told(&flows);
        let Message::Workload(workload) = &told[0] else { panic!("{:?}", told[0]) };
        assert_eq!(workload.held_back, OF_WORKLOAD as u64 * 6);
    }

    /// Notes flows of a workload's pod.
    fn send(flows: &mut Flows, namespace: &str, workload: usize, destinations: u32) {
        let name = format!("Pod/{workload:04}");
        let pod = LocalPod { id: NsName::new(namespace, "a"), workload: name, ..LocalPod::default() };
        for number in 0..destinations {
            flows.note(&event(workload as u64, number), 1, &pod, None, None, Mask::Off);
        }
    }

    /// How much is known of a namespace, and how much is said to be.
    fn places(flows: &Flows, namespace: &str) -> (usize, usize) {
        let own = flows.workloads.iter().filter(|((of, _), _)| of == namespace);
        let seen = own.fold((0, 0), |seen, (_, workload)| (seen.0 + 1, seen.1 + workload.flows.len()));
        let said = flows.namespaces.get(namespace).copied().unwrap_or_default();
        assert_eq!((said.workloads, said.flows), seen, "{namespace}");
        seen
    }

    #[test]
    fn no_namespace_keeps_others_out() {
        let mut flows = Flows::default();
        for workload in 0..WORKLOADS {
            send(&mut flows, "greedy", workload, 8);
        }
        assert_eq!(places(&flows, "greedy"), (WORKLOADS, OF_NODE), "nobody else wants them");
        for workload in 0..100 {
            send(&mut flows, "shop", workload, 2);
        }
        assert_eq!(places(&flows, "shop"), (100, 200));
        // It does not get them back, and it does not grow at the others' expense.
        for workload in 0..WORKLOADS {
            send(&mut flows, "greedy", workload, 9);
        }
        assert_eq!(places(&flows, "shop"), (100, 200));
        let (workloads, _) = places(&flows, "greedy");
        assert_eq!(workloads, WORKLOADS - 100);
        // What was given up is counted, and what there was no room for.
        let kept: u64 =
            flows.workloads.values().map(|one| one.left_out + one.flows.values().sum::<u64>()).sum();
        assert_eq!(kept + flows.left_out, (WORKLOADS * 17 + 200) as u64);
        // A share is all that others can be made to give.
        for workload in 0..WORKLOADS {
            send(&mut flows, "second", workload, 8);
        }
        assert_eq!(places(&flows, "second").0, WORKLOADS / SHARE);
    }

    #[test]
    fn workloads_without_pods_make_room_those_that_had_no_event_for_longest_first() {
        let mut flows = Flows::default();
        for namespace in ["a", "b", "c", "d"] {
            for workload in 0..WORKLOADS / SHARE {
                send(&mut flows, namespace, workload, 1);
            }
        }
        send(&mut flows, "e", 1, 1);
        assert_eq!((places(&flows, "e"), flows.left_out), ((0, 0), 1), "all have what is theirs");
        send(&mut flows, "a", 3, 1);
        flows.forget(|cgroup| cgroup != 3 && cgroup != 4);
        send(&mut flows, "e", 1, 1);
        send(&mut flows, "e", 2, 1);
        let gone: Vec<_> = ["a", "b", "c", "d"].map(|namespace| places(&flows, namespace).0).into();
        assert_eq!(gone, [127, 127, 128, 128]);
        let has = |namespace: &str, name: &str| {
            flows.workloads.contains_key(&(namespace.to_owned(), name.to_owned()))
        };
        assert!(has("a", "Pod/0003") && !has("a", "Pod/0004"), "one of them sent something since");
        assert!(!has("b", "Pod/0003") && has("b", "Pod/0004"));
        // A namespace that has its share makes room in what is its own.
        send(&mut flows, "c", 1000, 1);
        assert_eq!((places(&flows, "c").0, places(&flows, "d").0), (128, 128));
        let has = |name: &str| flows.workloads.contains_key(&("c".to_owned(), name.to_owned()));
        assert!(has("Pod/1000") && !has("Pod/0003"));
    }

    #[test]
    fn labels_of_no_end_are_not_kept() {
        let of = |count: usize, bytes: usize| {
            let value = "v".repeat(bytes);
            let pairs: Vec<_> = (0..count).map(|number| (format!("{number:04}"), value.clone())).collect();
            let labels: Labels = pairs.into_iter().collect();
            let mut flows = Flows::default();
            flows.note(&event(1, 1), 1, &pod("a", "Pod/a"), Some(&labels), None, Mask::Off);
            // Nor by way of a second pod that has few.
            let few: Labels = [("0000".to_owned(), value)].into_iter().collect();
            flows.note(&event(2, 1), 1, &pod("a", "Pod/a"), Some(&few), None, Mask::Off);
            let Message::Workload(workload) = told(&flows).remove(0) else {
                panic!("a workload comes first")
            };
            workload.labels.len()
        };
        assert_eq!((of(LABELS, 1), of(LABELS + 1, 1)), (1, 0));
        assert_eq!((of(16, LABEL_BYTES / 16 - 4), of(16, LABEL_BYTES / 16 - 3)), (1, 0));
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
