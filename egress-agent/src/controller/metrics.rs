//! What the controller counts.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{Clock, lease::Standing, policies, ranges::AllCounts};
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
    (GENERATION, &[]),
    catalogue::BUILD,
];

/// Where the numbers of a scrape come from.
pub(super) struct Sources {
    pub(super) counts: Arc<AllCounts>,
    pub(super) policies: Arc<policies::Counts>,
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
            let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
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
        let writes = [
            ("written", &policies.written),
            ("deleted", &policies.deleted),
            ("conflict", &policies.conflicts),
            ("failed", &policies.failed),
        ];
        let writes = writes.map(|(result, counter)| Sample {
            labels: vec![("result", result.to_owned())],
            value: Value::Whole(counter.load(Ordering::Relaxed)),
        });
        let writes = writes.to_vec();
        vec![
            LEADER.single(Value::Whole(leads.into())),
            metrics::cloud_ranges_age(&ages),
            REVISION.family(revisions),
            ROUNDS.family(rounds),
            POLICIES.single(Value::Whole(self.policies.policies.load(Ordering::Relaxed))),
            OBJECTS.single(Value::Whole(self.policies.objects.load(Ordering::Relaxed))),
            LOSSES.single(Value::Whole(self.policies.losses.load(Ordering::Relaxed))),
            WRITES.family(writes),
            #[expect(clippy::cast_precision_loss, reason = "it is a time in seconds")]
            GENERATION.single(Value::Float(self.policies.took.load(Ordering::Relaxed) as f64 / 1e6)),
            metrics::build_info(env!("CARGO_PKG_VERSION"), option_env!("EGRESS_REVISION").unwrap_or("")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_exports_is_named_with_its_labels() {
        let counts = Arc::<AllCounts>::default();
        counts.of("aws").heard.store(1, Ordering::Relaxed);
        let (_, standing) = watch::channel(Standing::Unknown);
        let sources = Sources { counts, policies: Arc::default(), standing, clock: Arc::new(|| 10) };
        catalogue::tests::agrees(FAMILIES, &sources.families().iter().collect::<Vec<_>>());
    }
}
