//! Every family that a role exports, with its labels: what the documentation, the alerts and the dashboard are checked against.

use std::fmt::Write as _;

use egress_common::verdict::{COUNTED, Verdict};

use super::metrics::{self, Description, Kind};
use crate::{controller, webhook};

/// A family and the names of its labels.
pub type Entry = (Description, &'static [&'static str]);

const POD: &[&str] = &["namespace", "pod", "workload", "reason"];
const DESTINATION: &[&str] = &["namespace", "policy", "destination"];

/// What an agent exports. Those about the API server are there only with one.
pub const AGENT: &[Entry] = &[
    (metrics::ALLOWED_PACKETS, POD),
    (metrics::ALLOWED_BYTES, POD),
    (metrics::DENIED_PACKETS, POD),
    (metrics::DENIED_BYTES, POD),
    (metrics::AUDITED_PACKETS, POD),
    (metrics::AUDITED_BYTES, POD),
    (metrics::UNPROTECTED_PACKETS, &[]),
    (metrics::DESTINATION_PACKETS, DESTINATION),
    (metrics::POLICY_APPLY, &[]),
    (metrics::PODS, &["state"]),
    (metrics::POLICY_ERRORS, &["namespace", "policy"]),
    (metrics::MANIFEST_ERRORS, &[]),
    (metrics::EXCEPTION_EXPIRY, DESTINATION),
    (metrics::CLOUD_RANGES_AGE, &["provider"]),
    (metrics::MAP_ENTRIES, &["map"]),
    (metrics::MAP_CAPACITY, &["map"]),
    (metrics::WATCHES, &["state"]),
    (metrics::API_SILENCE, &[]),
    (metrics::STATE_AGE, &[]),
    (metrics::API_REJECTED, &[]),
    (metrics::API_BYTES, &[]),
    (metrics::API_REQUESTS, &[]),
    (metrics::API_FAILURES, &[]),
    (metrics::API_EVENTS, &["resource"]),
    (metrics::SNAPSHOT, &[]),
    (metrics::SNAPSHOT_FAILURES, &[]),
    (metrics::POD_EVENTS, &["outcome"]),
    (metrics::SUMMARY_WRITES, &["result"]),
    (metrics::EVENTS_LOST, &[]),
    (metrics::REPAIRS, &[]),
    (metrics::STORE_FAILURES, &[]),
    (metrics::AUDIT_ONLY, &[]),
    (metrics::CLOCK_CHECK, &[]),
    BUILD,
];

/// What every role exports.
pub const BUILD: Entry = (metrics::BUILD, &["version", "revision"]);

/// The roles, as headings of the page, each with what it exports.
pub const ROLES: &[(&str, &str, &[Entry])] = &[
    ("The agent", "at `--listen` (9469), on every node", AGENT),
    ("The webhook", "at `--telemetry` (9470)", webhook::metrics::FAMILIES),
    ("The controller", "at `--listen` (9471)", controller::FAMILIES),
];

/// Returns the names of the series that a family has.
#[must_use]
pub fn series(description: &Description) -> Vec<String> {
    let name = description.name;
    match description.kind {
        Kind::Counter => vec![format!("{name}_total")],
        Kind::Info => vec![format!("{name}_info")],
        Kind::Gauge => vec![name.to_owned()],
        Kind::Histogram => ["_bucket", "_sum", "_count"].map(|suffix| format!("{name}{suffix}")).to_vec(),
    }
}

/// Returns `docs/metrics.md`.
#[must_use]
pub fn page() -> String {
    let mut page = "# Metrics

Every metric of every role. This page is written by `cargo xtask docs` from the code, and a test fails when it is old.

`/metrics` speaks Prometheus text 0.0.4 and OpenMetrics 1.0.0. Series end with their pod. No address, port or domain is ever a label. Alerts,
recording rules and a dashboard are in `deploy/components/prometheus-operator` and `deploy/components/grafana`; what to do when an alert fires is in
[Operations](operations.md#when-an-alert-fires).
"
    .to_owned();
    for (role, place, entries) in ROLES {
        put(
            &mut page,
            &format!("\n## {role}\n\nServed {place}.\n\n| metric | type | labels | |\n|---|---|---|---|\n"),
        );
        for (description, labels) in *entries {
            let kind = match description.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
                Kind::Info => "info",
            };
            let name = match description.kind {
                Kind::Histogram => description.name.to_owned(),
                _ => series(description).remove(0),
            };
            let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
            let labels = if labels.is_empty() { "–".to_owned() } else { labels.join(", ") };
            put(&mut page, &format!("| `{name}` | {kind} | {labels} | {} |\n", description.help));
        }
    }
    page.push_str(LABELS);
    for (verdict, family) in [
        (Verdict::Allow, "egress_allowed"),
        (Verdict::Deny, "egress_denied"),
        (Verdict::Audit, "egress_audited"),
    ] {
        let reasons = COUNTED.iter().filter(|pair| pair.0 == verdict);
        let reasons: Vec<String> = reasons.map(|(_, reason)| format!("`{}`", reason.as_str())).collect();
        put(&mut page, &format!("- `{family}_…`: {}\n", reasons.join(", ")));
    }
    page
}

const LABELS: &str = "
## Labels

- `namespace`, `pod`, `workload`: the pod that sent, and the name of what owns it. They are empty for packets of pods nobody knows. Prometheus must keep them
  (`honorLabels: true`), or it puts those of the process it scraped in their place.
- `namespace`, `policy`, `destination`: a policy's ConfigMap, and the name of an entry in it; `(default)`, `(cluster-dns)` and `(own-node)` for the parts
  without a name. Every node that has such a policy in force has the series.
- `reason`: why a packet met its verdict.

The reasons there are:

";

fn put(text: &mut String, more: &str) {
    text.write_str(more).expect("writing to a string cannot fail");
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::{
        super::metrics::{Family, tests::everything},
        *,
    };

    /// Asserts that these are the families of a role, each with its labels.
    #[track_caller]
    pub(crate) fn agrees(entries: &[Entry], families: &[&Family]) {
        let named: BTreeMap<&str, &[&str]> =
            entries.iter().map(|(description, labels)| (description.name, *labels)).collect();
        assert_eq!(named.len(), entries.len(), "each is named once");
        let all: BTreeSet<&str> = families.iter().map(|family| family.name).collect();
        let named_all: BTreeSet<&str> = named.keys().copied().collect();
        assert_eq!(named_all, all, "name each in its role's list, then run `cargo xtask docs`");
        for family in families {
            for sample in &family.samples {
                let labels: Vec<&str> = sample.labels.iter().map(|(label, _)| *label).collect();
                assert_eq!(labels, named[family.name], "{}", family.name);
            }
        }
    }

    #[test]
    fn the_agents_families_have_these_labels() {
        let families = everything();
        agrees(AGENT, &families.iter().collect::<Vec<_>>());
    }
}
