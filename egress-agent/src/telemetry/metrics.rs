//! Metrics: a small model of families, the families of this project, and the two formats Prometheus reads.
//!
//! There is no global registry: a scrape collects the families anew, so a series ends with its pod. No address, port or
//! domain is ever a label.
//!
//! Formats: <https://prometheus.io/docs/instrumenting/exposition_formats/> (text 0.0.4) and
//! <https://prometheus.io/docs/specs/om/open_metrics_spec/> (OpenMetrics 1.0.0).

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use egress_common::verdict::{CLASSES, COUNTED, Reason, Verdict};

/// What a family measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A count that only grows.
    Counter,
    /// A value that goes up and down.
    Gauge,
    /// Observations in buckets.
    Histogram,
    /// A constant 1 whose labels tell something.
    Info,
}

/// The value of one series.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number, written exactly.
    Whole(u64),
    /// Any number.
    Float(f64),
    /// The state of a histogram.
    Histogram(Snapshot),
}

/// One series of a family.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Names and values of its labels, in the order they are written.
    pub labels: Vec<(&'static str, String)>,
    /// Its value.
    pub value: Value,
}

/// Series that share a name and a meaning.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Its name, without the suffix that its kind adds: `_total` of a counter, `_info` of an info.
    pub name: &'static str,
    /// One sentence that says what is measured.
    pub help: &'static str,
    /// What it measures.
    pub kind: Kind,
    /// Its unit, if it has one; the name then ends with it.
    pub unit: Option<&'static str>,
    /// Its series.
    pub samples: Vec<Sample>,
}

/// The name, help, kind and unit of a family: everything but its series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// See [`Family::name`].
    pub name: &'static str,
    /// See [`Family::help`].
    pub help: &'static str,
    /// See [`Family::kind`].
    pub kind: Kind,
    /// See [`Family::unit`].
    pub unit: Option<&'static str>,
}

impl Description {
    const fn new(name: &'static str, kind: Kind, unit: Option<&'static str>, help: &'static str) -> Self {
        Self { name, help, kind, unit }
    }

    /// Returns the family with these series.
    #[must_use]
    pub fn family(&self, samples: Vec<Sample>) -> Family {
        Family { name: self.name, help: self.help, kind: self.kind, unit: self.unit, samples }
    }

    /// Returns the family with one series that has no labels.
    #[must_use]
    pub fn single(&self, value: Value) -> Family {
        self.family(vec![Sample { labels: Vec::new(), value }])
    }
}

macro_rules! families {
    ($($(#[$doc:meta])* $constant:ident = $name:literal $kind:ident $unit:expr, $help:literal;)*) => {
        $($(#[$doc])* #[doc = $help] pub const $constant: Description = Description::new($name, Kind::$kind, $unit, $help);)*
        /// Every family of this project.
        pub const ALL: &[Description] = &[$($constant),*];
    };
}

families! {
    ALLOWED_PACKETS = "egress_allowed_packets" Counter Some("packets"), "Packets of governed pods that passed.";
    ALLOWED_BYTES = "egress_allowed_bytes" Counter Some("bytes"), "Bytes of governed pods' packets that passed.";
    DENIED_PACKETS = "egress_denied_packets" Counter Some("packets"), "Packets of pods that were dropped.";
    DENIED_BYTES = "egress_denied_bytes" Counter Some("bytes"), "Bytes of pods' packets that were dropped.";
    AUDITED_PACKETS = "egress_audited_packets" Counter Some("packets"),
        "Packets of pods that passed but would be dropped if the policies in audit mode were enforced.";
    AUDITED_BYTES = "egress_audited_bytes" Counter Some("bytes"),
        "Bytes of pods' packets that passed but would be dropped if the policies in audit mode were enforced.";
    UNPROTECTED_PACKETS = "egress_unprotected_packets" Counter Some("packets"),
        "Packets that passed because their pod was not known to the node yet.";
    DESTINATION_PACKETS = "egress_destination_packets" Counter Some("packets"),
        "Packets that each destination of a policy decided about.";
    POLICY_APPLY = "egress_policy_apply_seconds" Histogram Some("seconds"),
        "Time from the event that changed a policy or a pod until the kernel enforced it.";
    POLICY_ERRORS = "egress_policy_errors" Gauge None, "Errors of a policy that is not in force as it is written.";
    MANIFEST_ERRORS = "egress_manifest_errors" Gauge None, "Errors of the manifests, such as files that cannot be read.";
    MAP_ENTRIES = "egress_map_entries" Gauge Some("entries"), "Entries in a kernel map.";
    MAP_CAPACITY = "egress_map_capacity_entries" Gauge Some("entries"), "Entries that fit into a kernel map.";
    EXCEPTION_EXPIRY = "egress_exception_expiry_timestamp_seconds" Gauge Some("seconds"),
        "When a destination of a policy expires, in seconds since 1970.";
    CLOUD_RANGES_AGE = "egress_cloud_ranges_age_seconds" Gauge Some("seconds"),
        "Time since a cloud provider's address ranges were read.";
    EVENTS_LOST = "egress_events_lost" Counter None, "Reports of denied packets that were not kept, for lack of room.";
    STORE_FAILURES = "egress_socket_store_failures" Counter None,
        "Times the kernel had no memory to keep a verdict in a socket or a peer that may be answered.";
    API_BYTES = "egress_api_received_bytes" Counter Some("bytes"), "Octets of answers from the API server.";
    API_REQUESTS = "egress_api_requests" Counter None, "Requests to the API server, watches included.";
    API_FAILURES = "egress_api_request_failures" Counter None,
        "Requests to the API server that had no answer, or one that says no.";
    API_EVENTS = "egress_api_events" Counter None, "Objects the API server has told of, in lists and watches.";
    API_REJECTED = "egress_api_rejected_objects" Gauge None,
        "Objects of the API server that cannot be read; their last readable version holds.";
    WATCHES = "egress_api_watches" Gauge None, "What is followed of the API server, by whether it was heard in full and goes on.";
    API_SILENCE = "egress_api_silence_seconds" Gauge Some("seconds"), "Time since the API server was heard last.";
    STATE_AGE = "egress_state_age_seconds" Gauge Some("seconds"),
        "Age of the state in force: zero while the API server tells of changes, and else the time since it did.";
    SNAPSHOT = "egress_snapshot_timestamp_seconds" Gauge Some("seconds"),
        "When the last good state was safely kept on the disk, in seconds since 1970.";
    SNAPSHOT_FAILURES = "egress_snapshot_failures" Counter None, "Times the state could not be kept on the disk.";
    PODS = "egress_pods" Gauge None, "Pods of this node that have a cgroup, by what is known of them.";
    POD_EVENTS = "egress_pod_events" Counter None,
        "Kubernetes Events about denials, by what became of them: sent, failed, or dropped for being too many.";
    SUMMARY_WRITES = "egress_node_state_writes" Counter None,
        "Times the summary of this node was published, or could not be.";
    REPAIRS = "egress_datapath_repairs" Counter None, "Programs and maps that were found detached or unpinned and were put back.";
    AUDIT_ONLY = "egress_audit_only" Gauge None,
        "1 if every policy counts as one in audit mode (--audit), so that nothing is denied for a policy's sake.";
    CLOCK_CHECK = "egress_clock_check_timestamp_seconds" Gauge Some("seconds"),
        "When the kernel's clock was last compared with the wall clock, in seconds since 1970.";
    BUILD = "egress_build" Info None, "The version that runs.";
}

/// The pairs whose packet counters exist from zero on, so that the first packet is seen as an increase. The other series
/// appear with their first packet: most pods never have them.
const FROM_ZERO: [(Verdict, Reason); 5] = [
    (Verdict::Allow, Reason::AllowedDestination),
    (Verdict::Audit, Reason::DefaultDeny),
    (Verdict::Deny, Reason::DefaultDeny),
    (Verdict::Deny, Reason::DeniedDestination),
    (Verdict::Deny, Reason::Expired),
];

/// Packets and bytes for each pair of [`COUNTED`].
pub type Counters = [(u64, u64); CLASSES as usize];

/// What was counted for one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodCounters {
    /// The pod's namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// The name of what owns it; empty if nothing does.
    pub workload: String,
    /// What was counted, by the kind of outcome.
    pub counters: Counters,
}

/// Names a destination of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// The policy's namespace.
    pub namespace: String,
    /// The policy's name.
    pub policy: String,
    /// The destination's name within it.
    pub destination: String,
}

impl Destination {
    fn labels(&self) -> Vec<(&'static str, String)> {
        vec![
            ("namespace", self.namespace.clone()),
            ("policy", self.policy.clone()),
            ("destination", self.destination.clone()),
        ]
    }
}

/// How full a kernel map is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapUse {
    /// The map's name.
    pub map: &'static str,
    /// Entries in it.
    pub entries: u64,
    /// Entries that fit.
    pub capacity: u64,
}

/// A policy that is not in force as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyErrors {
    /// The policy's namespace.
    pub namespace: String,
    /// Its name.
    pub policy: String,
    /// How many errors it has.
    pub errors: u64,
}

/// Returns the six families of packets and bytes per pod.
///
/// Two pods with the same labels, as when a StatefulSet replaces one, are added up.
#[must_use]
pub fn pod_families(pods: &[PodCounters]) -> Vec<Family> {
    let families = [
        (Verdict::Allow, ALLOWED_PACKETS, ALLOWED_BYTES),
        (Verdict::Deny, DENIED_PACKETS, DENIED_BYTES),
        (Verdict::Audit, AUDITED_PACKETS, AUDITED_BYTES),
    ];
    let mut sums: BTreeMap<(&str, &str, &str), Counters> = BTreeMap::new();
    for pod in pods {
        let sum = sums.entry((&pod.namespace, &pod.pod, &pod.workload)).or_default();
        for (sum, counter) in sum.iter_mut().zip(pod.counters) {
            *sum = (sum.0.saturating_add(counter.0), sum.1.saturating_add(counter.1));
        }
    }
    let mut result = Vec::with_capacity(families.len() * 2);
    for (verdict, packets_family, bytes_family) in families {
        let (mut packets, mut bytes) = (Vec::new(), Vec::new());
        for (&(namespace, pod, workload), counters) in &sums {
            for (pair, &(packet_count, byte_count)) in COUNTED.into_iter().zip(counters) {
                if pair.0 != verdict {
                    continue;
                }
                let sample = |value| Sample {
                    labels: vec![
                        ("namespace", namespace.to_owned()),
                        ("pod", pod.to_owned()),
                        ("workload", workload.to_owned()),
                        ("reason", pair.1.as_str().to_owned()),
                    ],
                    value: Value::Whole(value),
                };
                if packet_count > 0 || FROM_ZERO.contains(&pair) {
                    packets.push(sample(packet_count));
                }
                if byte_count > 0 {
                    bytes.push(sample(byte_count));
                }
            }
        }
        result.push(packets_family.family(packets));
        result.push(bytes_family.family(bytes));
    }
    result
}

/// Returns the family of packets per destination. Counts with the same name are added up.
#[must_use]
pub fn destination_packets(counts: &[(Destination, u64)]) -> Family {
    let mut sums: BTreeMap<&Destination, u64> = BTreeMap::new();
    for (destination, packets) in counts {
        let sum = sums.entry(destination).or_default();
        *sum = sum.saturating_add(*packets);
    }
    let sample = |(destination, packets): (&Destination, u64)| Sample {
        labels: destination.labels(),
        value: Value::Whole(packets),
    };
    DESTINATION_PACKETS.family(sums.into_iter().map(sample).collect())
}

/// Returns the family of expiry times, from seconds since the epoch. Of several times for one name the first is told.
#[must_use]
pub fn exception_expiry(expiries: &[(Destination, u64)]) -> Family {
    let mut first: BTreeMap<&Destination, u64> = BTreeMap::new();
    for (destination, expiry) in expiries {
        first.entry(destination).and_modify(|known| *known = (*known).min(*expiry)).or_insert(*expiry);
    }
    let sample = |(destination, expiry): (&Destination, u64)| Sample {
        labels: destination.labels(),
        value: Value::Whole(expiry),
    };
    EXCEPTION_EXPIRY.family(first.into_iter().map(sample).collect())
}

/// Returns the families of the kernel maps' entries and capacities.
#[must_use]
pub fn map_families(maps: &[MapUse]) -> Vec<Family> {
    let samples = |value: fn(&MapUse) -> u64| {
        let sample = |map: &MapUse| Sample {
            labels: vec![("map", map.map.to_owned())],
            value: Value::Whole(value(map)),
        };
        maps.iter().map(sample).collect()
    };
    vec![MAP_ENTRIES.family(samples(|map| map.entries)), MAP_CAPACITY.family(samples(|map| map.capacity))]
}

/// Returns the family of policies that are not in force as they are written.
#[must_use]
pub fn policy_errors(policies: &[PolicyErrors]) -> Family {
    let sample = |policy: &PolicyErrors| Sample {
        labels: vec![("namespace", policy.namespace.clone()), ("policy", policy.policy.clone())],
        value: Value::Whole(policy.errors),
    };
    POLICY_ERRORS.family(policies.iter().map(sample).collect())
}

/// Returns the family of errors of the manifests.
#[must_use]
pub fn manifest_errors(errors: u64) -> Family {
    MANIFEST_ERRORS.single(Value::Whole(errors))
}

/// Returns the family of the ages of cloud providers' address ranges.
#[must_use]
pub fn cloud_ranges_age(ages: &[(&str, Duration)]) -> Family {
    let sample = |&(provider, age): &(&str, Duration)| Sample {
        labels: vec![("provider", provider.to_owned())],
        value: Value::Float(age.as_secs_f64()),
    };
    CLOUD_RANGES_AGE.family(ages.iter().map(sample).collect())
}

/// Returns the family of packets whose pod was not known.
#[must_use]
pub fn unprotected_packets(packets: u64) -> Family {
    UNPROTECTED_PACKETS.single(Value::Whole(packets))
}

/// What is known of the API server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Api {
    /// See [`API_BYTES`].
    pub bytes: u64,
    /// See [`API_REQUESTS`].
    pub requests: u64,
    /// See [`API_FAILURES`].
    pub failures: u64,
    /// See [`API_EVENTS`]; by resource.
    pub events: Vec<(&'static str, u64)>,
    /// See [`API_REJECTED`].
    pub rejected: u64,
    /// See [`WATCHES`]; by state.
    pub watches: Vec<(&'static str, u64)>,
    /// See [`API_SILENCE`]; `None` while it was never heard.
    pub silence: Option<Duration>,
    /// See [`STATE_AGE`]; `None` while there is no state.
    pub age: Option<Duration>,
    /// See [`SNAPSHOT`]; `None` while there is none.
    pub snapshot: Option<u64>,
    /// See [`SNAPSHOT_FAILURES`].
    pub snapshot_failures: u64,
}

/// Returns the families about the API server.
#[must_use]
pub fn api_families(api: &Api) -> Vec<Family> {
    let labelled = |description: Description, label: &'static str, values: &[(&'static str, u64)]| {
        let sample = |(name, value): &(&'static str, u64)| Sample {
            labels: vec![(label, (*name).to_owned())],
            value: Value::Whole(*value),
        };
        description.family(values.iter().map(sample).collect())
    };
    let seconds = |description: Description, value: Option<Duration>| {
        let sample =
            |value: Duration| Sample { labels: Vec::new(), value: Value::Float(value.as_secs_f64()) };
        description.family(value.map(sample).into_iter().collect())
    };
    let snapshot = |value| Sample { labels: Vec::new(), value: Value::Whole(value) };
    vec![
        API_BYTES.single(Value::Whole(api.bytes)),
        API_REQUESTS.single(Value::Whole(api.requests)),
        API_FAILURES.single(Value::Whole(api.failures)),
        labelled(API_EVENTS, "resource", &api.events),
        API_REJECTED.single(Value::Whole(api.rejected)),
        labelled(WATCHES, "state", &api.watches),
        seconds(API_SILENCE, api.silence),
        seconds(STATE_AGE, api.age),
        SNAPSHOT.family(api.snapshot.map(snapshot).into_iter().collect()),
        SNAPSHOT_FAILURES.single(Value::Whole(api.snapshot_failures)),
    ]
}

/// Returns the family of this node's pods, by what is known of them.
#[must_use]
pub fn pods(counts: &[(&'static str, u64)]) -> Family {
    let sample = |(state, count): &(&'static str, u64)| Sample {
        labels: vec![("state", (*state).to_owned())],
        value: Value::Whole(*count),
    };
    PODS.family(counts.iter().map(sample).collect())
}

/// Returns the family of Kubernetes Events about denials.
#[must_use]
pub fn pod_events(counts: &[(&'static str, u64)]) -> Family {
    let sample = |(outcome, count): &(&'static str, u64)| Sample {
        labels: vec![("outcome", (*outcome).to_owned())],
        value: Value::Whole(*count),
    };
    POD_EVENTS.family(counts.iter().map(sample).collect())
}

/// Returns the family of writes of this node's summary.
#[must_use]
pub fn summary_writes(counts: &[(&'static str, u64)]) -> Family {
    let sample = |(result, count): &(&'static str, u64)| Sample {
        labels: vec![("result", (*result).to_owned())],
        value: Value::Whole(*count),
    };
    SUMMARY_WRITES.family(counts.iter().map(sample).collect())
}

/// Returns the family of repairs.
#[must_use]
pub fn repairs(count: u64) -> Family {
    REPAIRS.single(Value::Whole(count))
}

/// Returns the family of what could not be kept in the kernel for want of memory.
#[must_use]
pub fn socket_store_failures(failures: u64) -> Family {
    STORE_FAILURES.single(Value::Whole(failures))
}

/// Returns the family of lost events.
#[must_use]
pub fn events_lost(events: u64) -> Family {
    EVENTS_LOST.single(Value::Whole(events))
}

/// Returns the family that says whether every policy is only audited.
#[must_use]
pub fn audit_only(audit: bool) -> Family {
    AUDIT_ONLY.single(Value::Whole(audit.into()))
}

/// Returns the family of the last check of the clock, from seconds since the epoch.
#[must_use]
pub fn clock_check(seconds: u64) -> Family {
    CLOCK_CHECK.single(Value::Whole(seconds))
}

/// Returns the family of the time from event to kernel.
#[must_use]
pub fn policy_apply(histogram: &Histogram) -> Family {
    POLICY_APPLY.single(Value::Histogram(histogram.snapshot()))
}

/// Returns the family that tells which version runs.
#[must_use]
pub fn build_info(version: &str, revision: &str) -> Family {
    let labels = vec![("version", version.to_owned()), ("revision", revision.to_owned())];
    BUILD.family(vec![Sample { labels, value: Value::Whole(1) }])
}

/// The upper bounds of the buckets of [`POLICY_APPLY`], in seconds. 50 ms is the aim for the 99th percentile.
pub const APPLY_BOUNDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Durations counted in fixed buckets. Observing and reading need no lock.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, and one for what is above all of them. Each counts its own range alone.
    buckets: Vec<AtomicU64>,
    /// Of all observations, in nanoseconds: room for 584 years.
    sum_nanos: AtomicU64,
}

/// The state of a histogram.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The upper bounds of the buckets, ascending, without the infinite one.
    pub bounds: &'static [f64],
    /// Observations up to each bound, and all of them last.
    pub cumulative: Vec<u64>,
    /// The sum of all observations.
    pub sum: f64,
}

impl Histogram {
    /// Returns an empty histogram.
    ///
    /// # Panics
    ///
    /// If the bounds are not finite and strictly ascending.
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Self {
        assert!(bounds.iter().all(|bound| bound.is_finite()), "bounds are finite: {bounds:?}");
        assert!(bounds.is_sorted_by(|a, b| a < b), "bounds ascend: {bounds:?}");
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, buckets, sum_nanos: AtomicU64::new(0) }
    }

    /// Counts one duration. A duration on a bound belongs below it.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = self.bounds.partition_point(|&bound| bound < seconds);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Returns the state now.
    ///
    /// The count is the sum of the buckets, so both always agree. An observation that happens meanwhile may be in the sum
    /// and not yet in the buckets, or the other way round.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut total = 0;
        let cumulative = self.buckets.iter().map(|bucket| {
            total += bucket.load(Ordering::Relaxed);
            total
        });
        Snapshot {
            bounds: self.bounds,
            cumulative: cumulative.collect(),
            sum: Duration::from_nanos(self.sum_nanos.load(Ordering::Relaxed)).as_secs_f64(),
        }
    }
}

/// A text format for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4.
    Classic,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The value of the `Content-Type` header.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Returns the format that an `Accept` header asks for.
    ///
    /// OpenMetrics must be named with a greater weight than what the classic format gets; everything else, a header that
    /// cannot be read included, gets the classic format.
    #[must_use]
    pub fn negotiate(accept: &str) -> Self {
        let (mut open_metrics, mut classic) = (0, None);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().expect("splitting yields at least one part").to_ascii_lowercase();
            let (mut weight, mut version) = (Some(1000), None);
            for parameter in parts {
                let Some((name, value)) = parameter.split_once('=') else { continue };
                match name.trim().to_ascii_lowercase().as_str() {
                    "q" => weight = quality(value.trim()),
                    "version" => version = Some(value.trim().trim_matches('"')),
                    _ => {}
                }
            }
            let Some(weight) = weight else { continue };
            match (media.as_str(), version) {
                ("application/openmetrics-text", None | Some("1.0.0")) => {
                    open_metrics = open_metrics.max(weight);
                }
                ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => {
                    classic = classic.max(Some(weight));
                }
                _ => {}
            }
        }
        if open_metrics > classic.unwrap_or(0) { Self::OpenMetrics } else { Self::Classic }
    }

    /// Returns the families as text, in the order of their names, each one's series in the order of their labels.
    #[must_use]
    pub fn write(self, families: &[Family]) -> String {
        let mut families: Vec<&Family> = families.iter().collect();
        families.sort_by_key(|family| family.name);
        let mut text = String::new();
        let mut previous = None;
        for family in families {
            // A format has one block for each name.
            if previous != Some(family.name) {
                self.write_head(&mut text, family);
            }
            previous = Some(family.name);
            let mut samples: Vec<&Sample> = family.samples.iter().collect();
            samples.sort_by(|a, b| a.labels.cmp(&b.labels));
            for sample in samples {
                self.write_sample(&mut text, family, sample);
            }
        }
        if self == Self::OpenMetrics {
            text.push_str("# EOF\n");
        }
        text
    }

    /// Writes the lines that describe a family.
    fn write_head(self, text: &mut String, family: &Family) {
        let name = family.name;
        match self {
            Self::Classic => {
                let suffix = suffix(family.kind);
                put(text, format_args!("# HELP {name}{suffix} "));
                escape(text, family.help, false);
                let kind = match family.kind {
                    Kind::Counter => "counter",
                    Kind::Gauge | Kind::Info => "gauge",
                    Kind::Histogram => "histogram",
                };
                put(text, format_args!("\n# TYPE {name}{suffix} {kind}\n"));
            }
            Self::OpenMetrics => {
                let kind = match family.kind {
                    Kind::Counter => "counter",
                    Kind::Gauge => "gauge",
                    Kind::Histogram => "histogram",
                    Kind::Info => "info",
                };
                put(text, format_args!("# TYPE {name} {kind}\n"));
                if let Some(unit) = family.unit {
                    put(text, format_args!("# UNIT {name} {unit}\n"));
                }
                put(text, format_args!("# HELP {name} "));
                escape(text, family.help, true);
                text.push('\n');
            }
        }
    }

    /// Writes the line or lines of one series.
    fn write_sample(self, text: &mut String, family: &Family, sample: &Sample) {
        let labels = &sample.labels;
        match &sample.value {
            Value::Whole(value) => {
                line(text, family.name, suffix(family.kind), labels, None, format_args!("{value}"));
            }
            Value::Float(value) => {
                line(
                    text,
                    family.name,
                    suffix(family.kind),
                    labels,
                    None,
                    format_args!("{}", Number(*value)),
                );
            }
            Value::Histogram(histogram) => {
                let bounds = histogram.bounds.iter().copied().chain([f64::INFINITY]);
                for (bound, count) in bounds.zip(&histogram.cumulative) {
                    let bound = self.bound(bound);
                    line(text, family.name, "_bucket", labels, Some(&bound), format_args!("{count}"));
                }
                line(text, family.name, "_sum", labels, None, format_args!("{}", Number(histogram.sum)));
                let count = histogram.cumulative.last().copied().unwrap_or(0);
                line(text, family.name, "_count", labels, None, format_args!("{count}"));
            }
        }
    }

    /// Returns the `le` label of a bucket.
    fn bound(self, bound: f64) -> String {
        match self {
            // OpenMetrics wants a canonical number there, and its form of 1 is 1.0.
            Self::OpenMetrics if bound.is_finite() => format!("{bound:?}"),
            _ => Number(bound).to_string(),
        }
    }
}

/// Returns the weight of a media range in thousandths, `None` if it has not the form of a weight.
fn quality(text: &str) -> Option<u16> {
    let Ok(weight) = text.parse::<f64>() else { return None };
    (0.0..=1.0).contains(&weight).then(|| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 1000")]
        let thousandths = (weight * 1000.0).round() as u16;
        thousandths
    })
}

/// Returns what the name of a series adds to the name of its family.
const fn suffix(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter => "_total",
        Kind::Info => "_info",
        Kind::Gauge | Kind::Histogram => "",
    }
}

/// A number as both formats write it.
struct Number(f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_nan() {
            f.write_str("NaN")
        } else if self.0.is_infinite() {
            f.write_str(if self.0 > 0.0 { "+Inf" } else { "-Inf" })
        } else {
            write!(f, "{}", self.0)
        }
    }
}

/// Writes the line of one value.
fn line(
    text: &mut String,
    name: &str,
    suffix: &str,
    labels: &[(&'static str, String)],
    le: Option<&str>,
    value: fmt::Arguments<'_>,
) {
    put(text, format_args!("{name}{suffix}"));
    let mut separator = '{';
    for (label, value) in
        labels.iter().map(|(label, value)| (*label, value.as_str())).chain(le.map(|le| ("le", le)))
    {
        put(text, format_args!("{separator}{label}=\""));
        escape(text, value, true);
        text.push('"');
        separator = ',';
    }
    if separator == ',' {
        text.push('}');
    }
    put(text, format_args!(" {value}\n"));
}

/// Writes a text with what would end it escaped: backslash, newline and, within quotes and in OpenMetrics, the quote.
fn escape(text: &mut String, raw: &str, quotes: bool) {
    for character in raw.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '"' if quotes => text.push_str("\\\""),
            _ => text.push(character),
        }
    }
}

/// Appends formatted text.
fn put(text: &mut String, arguments: fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("writing to a string cannot fail");
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use egress_common::verdict::class;

    use super::*;

    /// A counted pair, with its packets and bytes.
    type Count = ((Verdict, Reason), (u64, u64));

    fn pod(name: &str, counts: &[Count]) -> PodCounters {
        let mut counters = [(0, 0); CLASSES as usize];
        for ((verdict, reason), count) in counts {
            counters[class(*verdict, *reason) as usize] = *count;
        }
        PodCounters { namespace: "shop".into(), pod: name.into(), workload: "web".into(), counters }
    }

    fn destination(name: &str) -> Destination {
        Destination { namespace: "shop".into(), policy: "web".into(), destination: name.into() }
    }

    /// One of every family there is.
    pub(crate) fn everything() -> Vec<Family> {
        let histogram = Histogram::new(APPLY_BOUNDS);
        for millis in [0, 1, 2, 40, 1000, 20_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let mut families = pod_families(&[pod(
            "web-0",
            &[
                ((Verdict::Allow, Reason::AllowedDestination), (3, 300)),
                ((Verdict::Deny, Reason::DefaultDeny), (1, 60)),
                ((Verdict::Audit, Reason::Expired), (2, 120)),
            ],
        )]);
        families.extend(map_families(&[MapUse { map: "rules", entries: 3, capacity: 10 }]));
        families.extend(api_families(&Api {
            bytes: 5000,
            requests: 7,
            failures: 1,
            events: vec![("configmaps", 3), ("pods", 110)],
            rejected: 1,
            watches: vec![("synced", 6), ("syncing", 1), ("failing", 0)],
            silence: Some(Duration::from_millis(1500)),
            age: Some(Duration::ZERO),
            snapshot: Some(1_800_000_000),
            snapshot_failures: 2,
        }));
        families.extend([
            pods(&[("governed", 3), ("ungoverned", 2), ("waiting", 0), ("unknown", 1)]),
            pod_events(&[("sent", 3), ("failed", 0), ("dropped", 80)]),
            summary_writes(&[("written", 2), ("failed", 1)]),
            repairs(1),
            destination_packets(&[(destination("s3"), 3)]),
            exception_expiry(&[(destination("stripe"), 1_806_451_200)]),
            policy_errors(&[PolicyErrors { namespace: "shop".into(), policy: "bad".into(), errors: 2 }]),
            cloud_ranges_age(&[("aws", Duration::from_millis(1500))]),
            manifest_errors(3),
            unprotected_packets(4),
            events_lost(5),
            socket_store_failures(3),
            audit_only(true),
            clock_check(1_800_000_000),
            policy_apply(&histogram),
            build_info("0.1.0", "abc"),
        ]);
        families
    }

    #[test]
    fn every_family_follows_the_rules_of_names() {
        for description in ALL {
            let name = description.name;
            assert!(name.starts_with("egress_"), "{name}");
            if let Some(unit) = description.unit {
                assert!(name.ends_with(&format!("_{unit}")), "OpenMetrics: {name} ends with its unit {unit}");
            }
            for suffix in ["_total", "_info", "_count", "_sum", "_bucket", "_created"] {
                assert!(
                    !name.ends_with(suffix),
                    "OpenMetrics: {name} does not end with a suffix of its samples"
                );
            }
        }
        let mut written: Vec<_> = everything().iter().map(|family| family.name).collect();
        let mut all: Vec<_> = ALL.iter().map(|description| description.name).collect();
        written.sort_unstable();
        all.sort_unstable();
        assert_eq!(written, all, "each family has a constructor and a test");
    }

    #[test]
    fn the_classic_format_is_as_specified() {
        let families = [
            events_lost(7),
            build_info("0.1.0", "abc"),
            cloud_ranges_age(&[("gcp", Duration::from_millis(1500)), ("aws", Duration::from_secs(2))]),
        ];
        let expected = "\
# HELP egress_build_info The version that runs.
# TYPE egress_build_info gauge
egress_build_info{version=\"0.1.0\",revision=\"abc\"} 1
# HELP egress_cloud_ranges_age_seconds Time since a cloud provider's address ranges were read.
# TYPE egress_cloud_ranges_age_seconds gauge
egress_cloud_ranges_age_seconds{provider=\"aws\"} 2
egress_cloud_ranges_age_seconds{provider=\"gcp\"} 1.5
# HELP egress_events_lost_total Reports of denied packets that were not kept, for lack of room.
# TYPE egress_events_lost_total counter
egress_events_lost_total 7
";
        assert_eq!(Format::Classic.write(&families), expected);
    }

    #[test]
    fn the_openmetrics_format_is_as_specified() {
        let families = [events_lost(7), build_info("0.1.0", "abc"), unprotected_packets(u64::MAX)];
        let expected = "\
# TYPE egress_build info
# HELP egress_build The version that runs.
egress_build_info{version=\"0.1.0\",revision=\"abc\"} 1
# TYPE egress_events_lost counter
# HELP egress_events_lost Reports of denied packets that were not kept, for lack of room.
egress_events_lost_total 7
# TYPE egress_unprotected_packets counter
# UNIT egress_unprotected_packets packets
# HELP egress_unprotected_packets Packets that passed because their pod was not known to the node yet.
egress_unprotected_packets_total 18446744073709551615
# EOF
";
        assert_eq!(Format::OpenMetrics.write(&families), expected);
        assert_eq!(Format::OpenMetrics.write(&[]), "# EOF\n");
    }

    #[test]
    fn label_values_and_help_are_escaped() {
        let label = vec![("a", "back\\slash \"quote\"\nline é".to_owned())];
        let description = Description::new("x", Kind::Gauge, None, "A \"b\" \\ \n c.");
        let family = description.family(vec![Sample { labels: label, value: Value::Whole(1) }]);
        let sample = r#"x{a="back\\slash \"quote\"\nline é"} 1"#;
        let classic = Format::Classic.write(std::slice::from_ref(&family));
        assert_eq!(classic, format!("# HELP x A \"b\" \\\\ \\n c.\n# TYPE x gauge\n{sample}\n"));
        let open = Format::OpenMetrics.write(&[family]);
        assert_eq!(open, format!("# TYPE x gauge\n# HELP x A \\\"b\\\" \\\\ \\n c.\n{sample}\n# EOF\n"));
    }

    #[test]
    fn numbers_are_written_as_prometheus_reads_them() {
        let cases = [
            (f64::NAN, "NaN"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (0.0, "0"),
            (-0.5, "-0.5"),
            (1e-7, "0.0000001"),
            (1e21, "1000000000000000000000"),
            (0.1 + 0.2, "0.30000000000000004"),
        ];
        for (number, text) in cases {
            assert_eq!(Number(number).to_string(), text);
        }
    }

    #[test]
    fn a_histogram_counts_what_is_up_to_each_bound() {
        let histogram = Histogram::new(&[0.01, 1.0]);
        for millis in [5, 10, 11, 1000, 3000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let family = Description::new("h_seconds", Kind::Histogram, Some("seconds"), "H.")
            .single(Value::Histogram(histogram.snapshot()));
        let classic = "# HELP h_seconds H.\n# TYPE h_seconds histogram\nh_seconds_bucket{le=\"0.01\"} 2\n\
            h_seconds_bucket{le=\"1\"} 4\nh_seconds_bucket{le=\"+Inf\"} 5\nh_seconds_sum 4.026\nh_seconds_count 5\n";
        assert_eq!(Format::Classic.write(std::slice::from_ref(&family)), classic);
        let open = Format::OpenMetrics.write(&[family]);
        for line in
            ["h_seconds_bucket{le=\"1.0\"} 4\n", "h_seconds_bucket{le=\"+Inf\"} 5\n", "h_seconds_count 5\n"]
        {
            assert!(open.contains(line), "{open} lacks {line}");
        }
    }

    #[test]
    fn the_order_does_not_depend_on_the_collector() {
        let mut families = everything();
        let text = Format::Classic.write(&families);
        families.reverse();
        families.iter_mut().for_each(|family| family.samples.reverse());
        assert_eq!(Format::Classic.write(&families), text);
    }

    #[test]
    fn counters_of_a_pod_appear_when_they_must() {
        let counters = pod("web-0", &[((Verdict::Deny, Reason::Fragment), (1, 1500))]);
        let text = Format::Classic.write(&pod_families(&[counters.clone(), counters]));
        let series = |name: &str, reason: &str, value: u64| {
            format!(
                "{name}{{namespace=\"shop\",pod=\"web-0\",workload=\"web\",reason=\"{reason}\"}} {value}\n"
            )
        };
        for line in [
            series("egress_denied_packets_total", "fragment", 2),
            series("egress_denied_bytes_total", "fragment", 3000),
            series("egress_denied_packets_total", "default_deny", 0),
            series("egress_audited_packets_total", "default_deny", 0),
        ] {
            assert!(
                text.contains(&line),
                "two pods of one name are one series, from zero on:\n{text} lacks {line}"
            );
        }
        let lines = text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(lines, FROM_ZERO.len() + 2, "nothing else is written:\n{text}");
    }

    #[test]
    fn every_counted_pair_is_told_under_its_own_verdict() {
        let all: Vec<_> = (0..).zip(COUNTED).map(|(n, pair)| (pair, (n + 1, 0))).collect();
        let text = Format::Classic.write(&pod_families(&[pod("p", &all)]));
        for (n, (verdict, reason)) in (1..).zip(COUNTED) {
            let family = match verdict {
                Verdict::Allow => "allowed",
                Verdict::Audit => "audited",
                Verdict::Deny => "denied",
            };
            let line = format!(
                "egress_{family}_packets_total{{namespace=\"shop\",pod=\"p\",workload=\"web\",reason=\"{}\"}} {n}\n",
                reason.as_str()
            );
            assert!(text.contains(&line), "{text} lacks {line}");
        }
    }

    #[test]
    fn the_earliest_expiry_of_a_destination_is_told() {
        let family =
            exception_expiry(&[(destination("a"), 20), (destination("a"), 10), (destination("b"), 30)]);
        let values: Vec<_> = family.samples.into_iter().map(|sample| sample.value).collect();
        assert_eq!(values, [Value::Whole(10), Value::Whole(30)]);
    }

    #[test]
    fn the_accept_header_decides_on_the_format() {
        const PROMETHEUS_3: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let cases = [
            ("", Format::Classic),
            ("*/*", Format::Classic),
            ("text/plain", Format::Classic),
            ("application/json", Format::Classic),
            (";;,=,q=,", Format::Classic),
            (PROMETHEUS_3, Format::OpenMetrics),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("Application/OpenMetrics-Text ; Version=\"1.0.0\" ; Q=0.5", Format::OpenMetrics),
            ("application/openmetrics-text; version=0.0.1", Format::Classic),
            ("application/openmetrics-text; version=2.0.0, */*;q=0.1", Format::Classic),
            ("application/openmetrics-text;q=0.5,text/plain;q=0.7", Format::Classic),
            ("application/openmetrics-text;q=0.7,text/plain;q=0.5", Format::OpenMetrics),
            ("application/openmetrics-text,text/plain", Format::Classic),
            ("application/openmetrics-text,text/plain;q=0.999", Format::OpenMetrics),
            ("application/openmetrics-text;q=0", Format::Classic),
            ("application/openmetrics-text;q=2", Format::Classic),
            ("application/openmetrics-text;q=NaN", Format::Classic),
            ("application/openmetrics-text,text/*;q=0.1", Format::OpenMetrics),
        ];
        for (accept, format) in cases {
            assert_eq!(Format::negotiate(accept), format, "{accept}");
        }
    }

    #[test]
    fn promtool_accepts_the_classic_format() {
        let child = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                // Written past the test harness, which shows nothing of a test that passes.
                writeln!(
                    std::io::stdout(),
                    "promtool is not on PATH: its check of the classic format was skipped"
                )
                .expect("stdout can be written to");
                return;
            }
            Err(error) => panic!("promtool cannot be run: {error}"),
        };
        let text = Format::Classic.write(&everything());
        child.stdin.take().expect("it is piped").write_all(text.as_bytes()).expect("promtool reads");
        let output = child.wait_with_output().expect("promtool ends");
        let said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "promtool: {said}\n{text}");
    }
}
