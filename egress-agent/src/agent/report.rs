//! What a scrape and the stream of events tell.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use egress_common::maps::node_counter;

use super::{LocalPod, Node, Source, kept::Keeper};
use crate::{
    explain::missed,
    kernel::{
        clock,
        events::{Denial, protocol_name},
    },
    observe::{Mask, Nearest, Observation},
    policy::{
        cluster::NsName,
        index::InForce,
        model::{PolicyKind, RuleName, RulePart},
        reference::{MissReason, NearMiss},
    },
    telemetry::{
        log::Lines,
        metrics::{self, Destination, Family, MapUse, PodCounters, PolicyErrors},
    },
};

impl Node {
    /// How old the ranges of each provider are: since the controller made what it publishes, or since a file was read.
    fn ranges_ages(&self) -> Vec<(&str, Duration)> {
        let now = clock::wall_seconds_and_fraction().0;
        let published = match &self.source {
            Source::Directory(_) => None,
            Source::Kube(source) => Some(source.published()),
        };
        let published = published.into_iter().flatten();
        let published = published.filter_map(|(name, published)| Some((name.as_str(), published.created()?)));
        let ages = published.chain(self.ranges.read_at());
        ages.map(|(name, at)| (name, Duration::from_secs(now.saturating_sub(at)))).collect()
    }

    /// Everything a scrape is to see.
    pub(super) fn collect(&self) -> anyhow::Result<Vec<Family>> {
        let maps = self.engine.maps();
        let state = self.engine.state();
        let mut pods = Vec::new();
        let mut governed: BTreeSet<&NsName> = BTreeSet::new();
        for (cgroup, pod) in &self.pods {
            let Some(counters) = self.engine.pod_counters(*cgroup)? else { continue };
            governed.insert(&pod.id);
            pods.push(PodCounters {
                namespace: pod.id.namespace.clone(),
                pod: pod.id.name.clone(),
                workload: pod.workload.clone(),
                counters: counters.map(|counter| (counter.packets, counter.bytes)),
            });
        }
        // Slot 0: pods nobody knows. They have no name, and no series of their own.
        let unknown = maps.counters(0)?;
        if unknown.iter().any(|counter| counter.packets > 0) {
            pods.push(PodCounters {
                namespace: String::new(),
                pod: String::new(),
                workload: String::new(),
                counters: unknown.map(|counter| (counter.packets, counter.bytes)),
            });
        }
        let mut destinations = Vec::new();
        for (slot, rule) in state.allocator().rules() {
            destinations.push((destination(rule), maps.rule_counter(slot)?.packets));
        }
        // Of a whole cluster's policies each node tells those of the namespaces it has pods of.
        let here: BTreeSet<&str> = self.pods.values().map(|pod| &*pod.id.namespace).collect();
        let told = |namespace: &str| matches!(self.source, Source::Directory(_)) || here.contains(namespace);
        let mut expiries = Vec::new();
        for policy in self.index.cluster().policies.values() {
            if policy.id.kind != PolicyKind::ConfigMap || !told(&policy.id.id.namespace) {
                continue;
            }
            for rule in &policy.rules {
                if let Some(expires) = rule.expires {
                    let name = RuleName {
                        policy: Arc::new(policy.id.clone()),
                        part: RulePart::Destination(rule.name.clone()),
                    };
                    expiries.push((destination(&name), expires));
                }
            }
        }
        let errors: Vec<PolicyErrors> = self
            .index
            .problems()
            .filter(|problem| problem.in_force != InForce::Current && told(&problem.policy.id.namespace))
            .map(|problem| PolicyErrors {
                namespace: problem.policy.id.namespace.clone(),
                policy: problem.policy.id.name.clone(),
                errors: problem.findings.iter().filter(|finding| finding.is_error()).count().max(1) as u64,
            })
            .collect();
        let usage = state.allocator().usage();
        let uses: Vec<MapUse> = usage
            .iter()
            .chain(std::iter::once(&state.slots().usage()))
            .map(|usage| MapUse {
                map: usage.map,
                entries: u64::from(usage.used),
                capacity: u64::from(usage.capacity),
            })
            .collect();
        let node = maps.node_counters()?;
        let unstored = node[node_counter::STORE_FAILED as usize];
        let lost = node[node_counter::EVENTS_LOST as usize]
            + node[node_counter::EVENTS_SUPPRESSED as usize]
            + self.events_dropped
            + self.events.as_ref().map_or(0, Lines::lost);
        let unprotected = unknown[egress_common::verdict::class(
            egress_common::verdict::Verdict::Allow,
            egress_common::verdict::Reason::Unprotected,
        ) as usize]
            .packets;
        let mut families = metrics::pod_families(&pods);
        families.push(metrics::destination_packets(&destinations));
        families.push(metrics::unprotected_packets(unprotected));
        families.push(metrics::policy_apply(&self.apply_seconds));
        families.push(metrics::policy_errors(&errors));
        families.push(metrics::manifest_errors(self.manifest_errors));
        families.extend(metrics::map_families(&uses));
        families.push(metrics::exception_expiry(&expiries));
        families.push(metrics::cloud_ranges_age(&self.ranges_ages()));
        families.push(metrics::events_lost(lost));
        families.push(metrics::socket_store_failures(unstored));
        families.push(metrics::repairs(self.repairs));
        families.push(metrics::pods(&self.pod_states()));
        if let Some(api) = self.api() {
            families.extend(metrics::api_families(&api));
        }
        if let Some(announcer) = &self.announcer {
            families.push(metrics::pod_events(&announcer.counts()));
        }
        if let Some(publisher) = &self.publisher {
            families.push(metrics::summary_writes(&publisher.counts()));
        }
        families.push(metrics::audit_only(self.config.audit));
        families.push(metrics::clock_check(self.clock_checked));
        families.push(metrics::build_info(
            env!("CARGO_PKG_VERSION"),
            option_env!("EGRESS_REVISION").unwrap_or(""),
        ));
        Ok(families)
    }
}

impl Node {
    /// Returns how many pods of this node have a cgroup, by what is known of them.
    pub(super) fn pod_states(&self) -> [(&'static str, u64); 4] {
        let state = self.engine.state();
        let (mut governed, mut ungoverned, mut unprotected, mut unknown) = (0, 0, 0, 0);
        for cgroup in self.cgroups.values() {
            match state.endpoints().get(&cgroup.id) {
                Some(Some(_)) => governed += 1,
                Some(None) if state.unprotected().contains(&cgroup.id) => unprotected += 1,
                Some(None) => ungoverned += 1,
                None => unknown += 1,
            }
        }
        [
            ("governed", governed),
            ("ungoverned", ungoverned),
            ("unprotected", unprotected),
            ("unknown", unknown),
        ]
    }

    /// Returns what is known of the API server, if there is one.
    pub(super) fn api(&self) -> Option<metrics::Api> {
        let (Source::Kube(source), Some(contact)) = (&self.source, &self.contact) else { return None };
        let (mut synced, mut syncing, mut failing) = (0, 0, 0);
        for watch in source.status() {
            match (&watch.failing, watch.synced) {
                (Some(_), _) => failing += 1,
                (None, true) => synced += 1,
                (None, false) => syncing += 1,
            }
        }
        let (snapshot, snapshot_failures) = self.keeper.as_ref().map_or((None, 0), Keeper::told);
        Some(metrics::Api {
            bytes: contact.bytes(),
            requests: contact.requests(),
            failures: contact.failures(),
            events: source.events().collect(),
            rejected: source.rejected().count() as u64,
            watches: vec![("synced", synced), ("syncing", syncing), ("failing", failing)],
            silence: contact.silent_for(),
            age: self.state_age(failing > 0),
            snapshot,
            snapshot_failures,
        })
    }

    /// Returns how old the state in force may be: nothing while every watch goes on; `None` while there is no state.
    fn state_age(&self, failing: bool) -> Option<Duration> {
        if let Some(written) = self.restored {
            let now = clock::wall_seconds_and_fraction().0;
            return Some(Duration::from_secs(now.saturating_sub(written)));
        }
        match (self.complete, failing) {
            (false, _) => None,
            (true, false) => Some(Duration::ZERO),
            (true, true) => self.contact.as_ref()?.silent_for(),
        }
    }
}

fn destination(rule: &RuleName) -> Destination {
    Destination {
        namespace: rule.policy.id.namespace.clone(),
        policy: rule.policy.id.name.clone(),
        destination: rule.part.as_str().to_owned(),
    }
}

/// Returns what is told of events: the last of them, how many there were, and what is known about them.
pub(super) fn observation(
    denial: &Denial,
    pod: Option<&LocalPod>,
    rule: Option<&RuleName>,
    count: u64,
    nearest: Option<&NearMiss>,
    mask: Mask,
) -> Observation {
    let time = i64::try_from(denial.time.0)
        .ok()
        .zip(i32::try_from(denial.time.1).ok())
        .and_then(|(seconds, nanoseconds)| jiff::Timestamp::new(seconds, nanoseconds).ok());
    Observation {
        time: time.map_or_else(|| denial.time.0.to_string(), |time| format!("{time:.6}")),
        namespace: pod.map(|pod| pod.id.namespace.clone()),
        pod: pod.map(|pod| pod.id.name.clone()),
        workload: pod.map(|pod| pod.workload.clone()),
        verdict: denial.verdict,
        reason: denial.reason.as_str().to_owned(),
        policy: rule.map(|rule| rule.policy.id.to_string()),
        destination: rule.map(|rule| rule.part.as_str().to_owned()),
        hook: denial.hook.to_owned(),
        protocol: protocol_name(denial.protocol),
        source: (!denial.source.is_unspecified()).then(|| denial.source.to_string()),
        source_port: denial.source_port,
        to: mask.show(denial.destination),
        port: denial.destination_port,
        bytes: denial.bytes,
        suppressed: denial.suppressed,
        count,
        nearest: nearest.map(|near| Nearest {
            policy: near.rule.policy.id.to_string(),
            destination: near.rule.part.as_str().to_owned(),
            why: why_missed(near, mask),
        }),
    }
}

/// Says why the nearest rule did not let something pass, without what a mask hides of the address.
pub(super) fn why_missed(near: &NearMiss, mask: Mask) -> String {
    match (&near.why, mask) {
        // How many bits are in common, and with what, tells those bits.
        (MissReason::Address { .. }, Mask::Prefix | Mask::All) => {
            "the address is in none of its CIDRs".to_owned()
        }
        (MissReason::Except(_), Mask::Prefix | Mask::All) => {
            "the address is in one of its CIDRs, but in an exception too".to_owned()
        }
        (why, _) => missed(why),
    }
}
