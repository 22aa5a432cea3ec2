//! What the webhook counts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{namespaces::Namespaces, review::Verdict, served::Served};
use crate::telemetry::{
    catalogue,
    metrics::{self, Description, Family, Histogram, Kind, Sample, Value},
};

const REQUESTS: Description = Description {
    name: "egress_admission_requests",
    help: "Requests to validate a policy, by what became of them: allowed, refused, ignored for not being about a policy, invalid, or failed.",
    kind: Kind::Counter,
    unit: None,
};
const SECONDS: Description = Description {
    name: "egress_admission_seconds",
    help: "Time from the head of a request to its answer.",
    kind: Kind::Histogram,
    unit: Some("seconds"),
};
const HANDSHAKES: Description = Description {
    name: "egress_webhook_handshake_failures",
    help: "Connections that ended during the TLS handshake, as when a client does not trust the certificate.",
    kind: Kind::Counter,
    unit: None,
};
const EXPIRY: Description = Description {
    name: "egress_webhook_certificate_expiry_timestamp_seconds",
    help: "When the certificate that is shown ends, in seconds since 1970.",
    kind: Kind::Gauge,
    unit: Some("seconds"),
};
const RELOADS: Description = Description {
    name: "egress_webhook_certificate_reloads",
    help: "Times another certificate was to be shown from then on, by whether it could be.",
    kind: Kind::Counter,
    unit: None,
};
const KEEPING: Description = Description {
    name: "egress_webhook_certificate_failures",
    help: "Times the certificates could not be kept: read, made, written, or told to the API server.",
    kind: Kind::Counter,
    unit: None,
};
const NAMESPACES: Description = Description {
    name: "egress_webhook_namespaces",
    help: "Namespaces that are known.",
    kind: Kind::Gauge,
    unit: None,
};
const INTERRUPTIONS: Description = Description {
    name: "egress_webhook_watch_interruptions",
    help: "Times a watch was interrupted, of namespaces or of published ranges.",
    kind: Kind::Counter,
    unit: None,
};

/// Every family of the webhook, with its labels.
pub const FAMILIES: &[catalogue::Entry] = &[
    (REQUESTS, &["verdict"]),
    (SECONDS, &[]),
    (HANDSHAKES, &[]),
    (EXPIRY, &[]),
    (RELOADS, &["result"]),
    (KEEPING, &[]),
    (NAMESPACES, &[]),
    (INTERRUPTIONS, &["watch"]),
    catalogue::BUILD,
];

/// Up to what the API server waits.
const BOUNDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0];

/// What is counted of requests.
#[derive(Debug)]
pub struct Counts {
    verdicts: [AtomicU64; Verdict::ALL.len()],
    seconds: Histogram,
    handshakes: AtomicU64,
}

impl Default for Counts {
    fn default() -> Self {
        Self { verdicts: Default::default(), seconds: Histogram::new(BOUNDS), handshakes: AtomicU64::new(0) }
    }
}

impl Counts {
    /// Counts a request.
    pub fn count(&self, verdict: Verdict, took: Duration) {
        let place = Verdict::ALL.iter().position(|one| *one == verdict).expect("all are in it");
        self.verdicts[place].fetch_add(1, Ordering::Relaxed);
        self.seconds.observe(took);
    }

    /// Counts a connection that ended during the handshake.
    pub fn handshake_failed(&self) {
        self.handshakes.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many requests ended like this.
    #[must_use]
    pub fn of(&self, verdict: Verdict) -> u64 {
        let place = Verdict::ALL.iter().position(|one| *one == verdict).expect("all are in it");
        self.verdicts[place].load(Ordering::Relaxed)
    }
}

/// Where the numbers of a scrape come from.
#[derive(Debug)]
pub struct Sources {
    /// Of requests.
    pub counts: Arc<Counts>,
    /// Of the certificate.
    pub served: Arc<Served>,
    /// Of namespaces.
    pub namespaces: Arc<Namespaces>,
    /// Interruptions of the watch of published ranges, if they are followed.
    pub ranges: Option<Arc<AtomicU64>>,
    /// Rounds in which the certificates could not be kept.
    pub troubles: Arc<AtomicU64>,
}

impl Sources {
    /// Returns all families.
    #[must_use]
    pub fn families(&self) -> Vec<Family> {
        let labelled = |label, word: &str, value| Sample {
            labels: vec![(label, word.to_owned())],
            value: Value::Whole(value),
        };
        let verdicts = Verdict::ALL
            .iter()
            .map(|&verdict| labelled("verdict", verdict.as_str(), self.counts.of(verdict)))
            .collect();
        let (good, bad) = self.served.reloads();
        let (namespaces, interruptions) = self.namespaces.counts();
        let ranges = self.ranges.as_ref().map(|count| count.load(Ordering::Relaxed));
        let mut families = vec![
            REQUESTS.family(verdicts),
            SECONDS.single(Value::Histogram(self.counts.seconds.snapshot())),
            HANDSHAKES.single(Value::Whole(self.counts.handshakes.load(Ordering::Relaxed))),
            RELOADS.family(vec![labelled("result", "good", good), labelled("result", "failed", bad)]),
            KEEPING.single(Value::Whole(self.troubles.load(Ordering::Relaxed))),
            NAMESPACES.single(Value::Whole(namespaces as u64)),
            INTERRUPTIONS.family(
                std::iter::once(labelled("watch", "namespaces", interruptions))
                    .chain(ranges.map(|count| labelled("watch", "ranges", count)))
                    .collect(),
            ),
            metrics::build_info(env!("CARGO_PKG_VERSION"), option_env!("EGRESS_REVISION").unwrap_or("")),
        ];
        // Without a certificate there is no series: a zero would look like one that ended long ago.
        families.extend(self.served.expires().map(|expires| EXPIRY.single(Value::Whole(expires))));
        families
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Format;

    #[test]
    fn every_family_follows_the_rules_of_names_and_can_be_written() {
        let served = Arc::new(Served::default());
        let sources = Sources {
            counts: Arc::default(),
            served,
            namespaces: Arc::default(),
            ranges: Some(Arc::default()),
            troubles: Arc::default(),
        };
        sources.counts.count(Verdict::Refused, Duration::from_millis(3));
        let families = sources.families();
        let certificate = EXPIRY.single(Value::Whole(1));
        let all: Vec<&Family> = families.iter().chain([&certificate]).collect();
        catalogue::tests::agrees(FAMILIES, &all);
        for family in all {
            assert!(family.name.starts_with("egress_"), "{}", family.name);
            if let Some(unit) = family.unit {
                assert!(family.name.ends_with(&format!("_{unit}")), "{} ends with its unit", family.name);
            }
        }
        let text = Format::Classic.write(&families);
        assert!(text.contains("egress_admission_requests_total{verdict=\"refused\"} 1\n"), "{text}");
        assert!(text.contains("egress_admission_requests_total{verdict=\"allowed\"} 0\n"), "{text}");
        assert!(text.contains("egress_webhook_watch_interruptions_total{watch=\"ranges\"} 0\n"), "{text}");
        assert!(text.contains("egress_admission_seconds_bucket{le=\"0.005\"} 1\n"), "{text}");
        assert!(!text.contains("egress_webhook_certificate_expiry"), "there is no certificate: {text}");
    }
}
