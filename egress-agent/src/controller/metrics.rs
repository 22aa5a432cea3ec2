//! What the controller counts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{Clock, events, lease::Standing, policies, ranges::AllCounts, reports};
use crate::telemetry::{
    catalogue,
    metrics::{self, Description, Family, Kind, Sample, Value},
};

const LEADER: Description = Description {
    name: "egress_controller_leader",
    help: "1 if this process leads, otherwise 0.",
    kind: Kind::Gauge,
    unit: None,
};
const REVISION: Description = Description {
    name: "egress_cloud_ranges_revision",
    help: "The revision of a provider's ranges that is published; AWS' is the second since 1970 in which it was made.",
    kind: Kind::Gauge,
    unit: None,
};
const ROUNDS: Description = Description {
    name: "egress_cloud_ranges_refreshes",
    help: "What became of new ranges of a provider: published, refused because they look like an accident, or failed.",
    kind: Kind::Counter,
    unit: None,
};

const POLICIES: Description = Description {
    name: "egress_generated_policies",
    help: "Policies that NetworkPolicies are made of.",
    kind: Kind::Gauge,
    unit: None,
};
const OBJECTS: Description = Description {
    name: "egress_generated_objects",
    help: "NetworkPolicies that are made of them.",
    kind: Kind::Gauge,
    unit: None,
};
const LOSSES: Description = Description {
    name: "egress_generated_losses",
    help: "Places where these say something else than nodes enforce.",
    kind: Kind::Gauge,
    unit: None,
};
const WRITES: Description = Description {
    name: "egress_generated_writes",
    help: "Generated NetworkPolicies that were written, deleted, in conflict with somebody else's change, or could not be written.",
    kind: Kind::Counter,
    unit: None,
};
const REFUSED: Description = Description {
    name: "egress_generated_refused",
    help: "Policies whose NetworkPolicies would be too many, or are another controller's, and stay as they are.",
    kind: Kind::Gauge,
    unit: None,
};
const EVENTS: Description = Description {
    name: "egress_controller_events",
    help: "Kubernetes Events, by what became of them: sent, failed, or dropped for being too many.",
    kind: Kind::Counter,
    unit: None,
};
const REPORTS: Description = Description {
    name: "egress_reports",
    help: "Reports that were written, deleted, somebody else's, or could not be written.",
    kind: Kind::Counter,
    unit: None,
};
const NODES: Description = Description {
    name: "egress_nodes",
    help: "Nodes, by what their agents tell: ready, ready but only auditing, not ready, silent for long, or never heard of.",
    kind: Kind::Gauge,
    unit: None,
};
const STANDING: Description = Description {
    name: "egress_policies",
    help: "Policies, by how they stand in the whole cluster.",
    kind: Kind::Gauge,
    unit: None,
};
const GENERATION: Description = Description {
    name: "egress_generation_seconds",
    help: "Time that the last generation of all NetworkPolicies took, without waiting for the API server.",
    kind: Kind::Gauge,
    unit: Some("seconds"),
};

/// Every family of the controller, with its labels.
pub const FAMILIES: &[catalogue::Entry] = &[
    (LEADER, &[]),
    (metrics::CLOUD_RANGES_AGE, &["provider"]),
    (REVISION, &["provider"]),
    (ROUNDS, &["provider", "result"]),
    (POLICIES, &[]),
    (OBJECTS, &[]),
    (LOSSES, &[]),
    (WRITES, &["result"]),
    (REFUSED, &[]),
    (EVENTS, &["outcome"]),
    (REPORTS, &["result"]),
    (NODES, &["state"]),
    (STANDING, &["state"]),
    (GENERATION, &[]),
    catalogue::BUILD,
];

/// Where the numbers of a scrape come from.
pub(super) struct Sources {
    pub(super) counts: Arc<AllCounts>,
    pub(super) policies: Arc<policies::Counts>,
    pub(super) reports: Arc<reports::Counts>,
    pub(super) events: Arc<events::Counts>,
    pub(super) standing: watch::Receiver<Standing>,
    pub(super) clock: Clock,
}

impl Sources {
    pub(super) fn families(&self) -> Vec<Family> {
        let leads = self.standing.borrow().leads(Instant::now());
        let all = self.counts.all();
        let now = (self.clock)();
        let mut ages = Vec::new();
        let (mut revisions, mut rounds) = (Vec::new(), Vec::new());
        for (provider, counts) in &all {
            let provider = *provider;
            let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let heard = read(&counts.heard);
            if heard > 0 {
                ages.push((provider, Duration::from_secs(now.saturating_sub(heard))));
            }
            let label = ("provider", provider.to_owned());
            let revision = Value::Whole(read(&counts.revision));
            revisions.push(Sample { labels: vec![label.clone()], value: revision });
            for (result, counter) in
                [("published", &counts.published), ("refused", &counts.refused), ("failed", &counts.failed)]
            {
                let labels = vec![label.clone(), ("result", result.to_owned())];
                rounds.push(Sample { labels, value: Value::Whole(read(counter)) });
            }
        }
        let policies = &self.policies;
        let by = |label: &'static str, counts: Vec<(&str, u64)>| -> Vec<Sample> {
            let sample = |(what, count): (&str, u64)| Sample {
                labels: vec![(label, what.to_owned())],
                value: Value::Whole(count),
            };
            counts.into_iter().map(sample).collect()
        };
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let writes = vec![
            ("written", read(&policies.written)),
            ("deleted", read(&policies.deleted)),
            ("conflict", read(&policies.conflicts)),
            ("failed", read(&policies.failed)),
        ];
        let reports = vec![
            ("written", read(&self.reports.written)),
            ("deleted", read(&self.reports.deleted)),
            ("conflict", read(&self.reports.conflicts)),
            ("failed", read(&self.reports.failed)),
        ];
        let events = vec![
            ("sent", read(&self.events.sent)),
            ("failed", read(&self.events.failed)),
            ("dropped", read(&self.events.dropped)),
        ];
        // Who does not lead knows only how it was once.
        let seen = if leads { self.reports.seen() } else { reports::Seen::default() };
        let now_known = |description: &Description, value: Value| {
            description.family(leads.then(|| Sample { labels: Vec::new(), value }).into_iter().collect())
        };
        vec![
            LEADER.single(Value::Whole(leads.into())),
            metrics::cloud_ranges_age(&ages),
            REVISION.family(revisions),
            ROUNDS.family(rounds),
            now_known(&POLICIES, Value::Whole(read(&policies.policies))),
            now_known(&OBJECTS, Value::Whole(read(&policies.objects))),
            now_known(&LOSSES, Value::Whole(read(&policies.losses))),
            WRITES.family(by("result", writes)),
            now_known(&REFUSED, Value::Whole(read(&policies.refused))),
            EVENTS.family(by("outcome", events)),
            REPORTS.family(by("result", reports)),
            NODES.family(by("state", seen.nodes)),
            STANDING.family(by("state", seen.policies.into_iter().collect())),
            #[expect(clippy::cast_precision_loss, reason = "it is a time in seconds")]
            GENERATION.single(Value::Float(self.policies.took.load(Ordering::Relaxed) as f64 / 1e6)),
            metrics::build_info(env!("CARGO_PKG_VERSION"), option_env!("EGRESS_REVISION").unwrap_or("")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overview::{NodesStatus, Overview};

    #[test]
    fn what_it_exports_is_named_with_its_labels() {
        let counts = Arc::<AllCounts>::default();
        counts.of("aws").heard.store(1, Ordering::Relaxed);
        let until = Instant::now() + Duration::from_secs(60);
        let (lead, standing) = watch::channel(Standing::Leader { until, term: 0 });
        let reports = Arc::<reports::Counts>::default();
        let told = Overview { nodes: Some(NodesStatus::default()), ..Overview::default() };
        reports.see(&told);
        let sources = Sources {
            counts,
            policies: Arc::default(),
            reports,
            events: Arc::default(),
            standing,
            clock: Arc::new(|| 10),
        };
        catalogue::tests::agrees(FAMILIES, &sources.families().iter().collect::<Vec<_>>());
        // How policies and nodes stand is told by one: another one's word would be an old one.
        lead.send_replace(Standing::Follower { leader: "another".to_owned() });
        let families = sources.families();
        for description in [POLICIES, OBJECTS, LOSSES, REFUSED, NODES, STANDING] {
            let family = families.iter().find(|family| family.name == description.name);
            assert!(family.expect("it is a family").samples.is_empty(), "{}", description.name);
        }
    }
}
