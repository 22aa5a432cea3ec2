//! `egress-agent status`: how this node's agent does, or what is in force in the whole cluster.

mod cluster;

use std::{
    env,
    fmt::Write as _,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};

use super::{plugin, validate::report::one_line};
use crate::{
    agent::status::{self, PodStatus, SourceStatus, Status},
    k8s::client::Access,
    telemetry::client::{self, Answer},
};

/// The exit code of an agent that is degraded or not ready.
const DEGRADED: u8 = 1;
/// What stands in a table for what is not there.
const NONE: &str = "<none>";

/// What to ask.
#[derive(Debug, Args)]
#[command(
    after_help = "Called as kubectl-egress, as by `kubectl egress status`, it asks about the cluster: the namespace of the context, or --all-namespaces.\n\n\
    Exit codes: 0 healthy, 1 degraded, not ready, or a policy that is not in force as it is written, 2 could not ask.\n\n\
    Examples:\n  \
    egress-agent status                   this node's agent\n  \
    egress-agent status --cluster         every policy, and on how many nodes it is in force\n  \
    kubectl egress status -n shop -o json"
)]
pub struct Arguments {
    /// Ask the agent whose socket is in this folder
    #[arg(long, value_name = "DIR", env = "EGRESS_RUNTIME_DIR", default_value = super::agent::RUNTIME_DIR)]
    runtime_dir: PathBuf,

    /// Ask the API server about the policies of the whole cluster, instead of this node's agent
    #[arg(long, conflicts_with = "pods")]
    cluster: bool,

    /// Ask the API server about the policies of all namespaces
    #[arg(short = 'A', long, conflicts_with_all = ["pods", "namespace"])]
    all_namespaces: bool,

    /// Find the API server in this file; without it in KUBECONFIG's, the home directory's, or the pod's service account
    #[arg(long, value_name = "FILE", env = "EGRESS_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,

    /// Use this context of the kubeconfig instead of its current one
    #[arg(long, value_name = "NAME", env = "EGRESS_CONTEXT")]
    context: Option<String>,

    /// The namespace in which agents tell what their nodes enforce
    #[arg(long, value_name = "NAMESPACE", env = "EGRESS_SUMMARY_NAMESPACE", default_value = crate::k8s::summary::NAMESPACE)]
    summary_namespace: String,

    /// How to write the answer
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,

    /// Tell of the pods only
    #[arg(long)]
    pods: bool,

    /// Tell of the pods, or of the cluster's policies, of this namespace only
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
    /// For both
    Yaml,
}

/// Asks, and prints the answer.
///
/// # Errors
///
/// When nobody answers.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let plugin = plugin::is_called(env::args_os().next().as_deref());
    if arguments.cluster || arguments.all_namespaces || plugin && !arguments.pods {
        return of_cluster(arguments, plugin);
    }
    let path = status::socket(&arguments.runtime_dir);
    let mut status: Status = serde_json::from_str(&ask(&path)?)
        .context("the agent's answer cannot be read; use the version of egress-agent that runs")?;
    let healthy = status.ready && status.degraded.is_empty();
    if let Some(namespace) = &arguments.namespace {
        status.pods.retain(|pod| pod.namespace.as_ref() == Some(namespace));
    }
    let text = match (arguments.output, arguments.pods) {
        (Output::Table, true) => pods(&status.pods),
        (Output::Table, false) => table(&status, coloured()),
        (Output::Json, true) => serde_json::to_string_pretty(&status.pods)? + "\n",
        (Output::Json, false) => serde_json::to_string_pretty(&status)? + "\n",
        (Output::Yaml, true) => serde_saphyr::to_string(&status.pods)?,
        (Output::Yaml, false) => serde_saphyr::to_string(&status)?,
    };
    super::write(&text).context("writing the answer")?;
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::from(DEGRADED) })
}

/// Asks the API server.
fn of_cluster(arguments: &Arguments, plugin: bool) -> anyhow::Result<ExitCode> {
    let access = Access { kubeconfig: arguments.kubeconfig.clone(), context: arguments.context.clone() };
    let namespace = match &arguments.namespace {
        Some(namespace) => Some(namespace.clone()),
        None if plugin && !arguments.cluster && !arguments.all_namespaces => {
            Some(cluster::current_namespace(&access)?)
        }
        None => None,
    };
    let (overview, notes) = cluster::ask(&cluster::Question {
        access,
        namespace: namespace.as_deref(),
        summaries: &arguments.summary_namespace,
    })?;
    for note in notes {
        eprintln!("note: {}", one_line(&note));
    }
    let text = match arguments.output {
        Output::Table => cluster::table(&overview),
        Output::Json => serde_json::to_string_pretty(&overview)? + "\n",
        Output::Yaml => serde_saphyr::to_string(&overview)?,
    };
    super::write(&text).context("writing the answer")?;
    Ok(if overview.is_good() { ExitCode::SUCCESS } else { ExitCode::from(DEGRADED) })
}

fn coloured() -> bool {
    io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Returns the body of the answer.
fn ask(path: &Path) -> anyhow::Result<String> {
    let stream = match client::connect(path) {
        Ok(stream) => stream,
        Err(error) => {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => "run it as the user the agent runs as, normally root",
                _ => {
                    "start one with `egress-agent agent`, or pass the --runtime-dir it was given; in a cluster, ask in its pod: \
                     kubectl exec -n egress-agent ds/egress-agent -- egress-agent status"
                }
            };
            bail!("no agent answers at {} ({error}); {hint}", path.display());
        }
    };
    let answer = client::get(stream, "/status");
    let Answer { code, body } = answer.with_context(|| format!("asking the agent at {}", path.display()))?;
    if code != 200 {
        bail!("the agent at {} says: {}", path.display(), one_line(body.trim_end()));
    }
    Ok(body)
}

/// Returns the whole answer for people.
fn table(status: &Status, coloured: bool) -> String {
    let enforcement = &status.enforcement;
    let (words, colour) = match (status.ready, status.degraded.is_empty()) {
        (false, _) => ("not ready", 31),
        (true, false) => ("degraded", 33),
        (true, true) => ("healthy", 32),
    };
    let words = if coloured { format!("\x1b[{colour}m{words}\x1b[0m") } else { words.to_owned() };
    let reasons = status.not_ready_because.iter().chain(&status.degraded);
    let mut lines = vec![
        ("Agent", format!("{} on {}, since {}", status.version, status.node, status.started)),
        ("Health", words),
    ];
    lines.extend(reasons.map(|reason| ("", reason.clone())));
    lines.push((
        "Kubepods",
        format!(
            "{}, programs {}",
            enforcement.kubepods,
            if enforcement.attached { "attached" } else { "not attached" }
        ),
    ));
    lines.push((
        "Modes",
        format!(
            "pod start {}, connect hooks {}{}",
            enforcement.pod_start,
            if enforcement.connect_hooks { "on" } else { "off" },
            if enforcement.audit { ", every policy audited" } else { "" }
        ),
    ));
    lines.push((
        "Pins",
        enforcement.pins.clone().unwrap_or_else(|| "none: enforcement ends with the agent".to_owned()),
    ));
    if enforcement.repairs > 0 {
        lines.push(("Repairs", enforcement.repairs.to_string()));
    }
    match &status.source {
        SourceStatus::Directory { path, complete, errors } => {
            let complete = if *complete { "all read" } else { "not all could be read" };
            lines.push(("Manifests", format!("{path}, {complete}, errors: {errors}")));
        }
        SourceStatus::ApiServer {
            contact_age_seconds, state_age_seconds, restored_from, snapshot, ..
        } => {
            let heard = contact_age_seconds
                .map_or_else(|| "not heard yet".to_owned(), |age| format!("heard {} ago", span(age)));
            let state = match (state_age_seconds, restored_from) {
                (None, _) => "no state yet".to_owned(),
                (Some(age), Some(written)) => format!("state kept at {written}, {} ago", span(*age)),
                (Some(age), None) if *age < 1.0 => "state current".to_owned(),
                (Some(age), None) => format!("state {} old", span(*age)),
            };
            lines.push(("API server", format!("{heard}, {state}")));
            if let Some(snapshot) = snapshot {
                let written = match (&snapshot.written, snapshot.age_seconds) {
                    (Some(at), Some(age)) => format!("written {at}, {} ago", span(age)),
                    _ => "not written yet".to_owned(),
                };
                let failing = if snapshot.failing { ", cannot be written" } else { "" };
                lines.push(("Snapshot", format!("{}, {written}{failing}", snapshot.path)));
            }
        }
    }
    let mut text = String::new();
    for (head, line) in lines {
        let head = if head.is_empty() { String::new() } else { format!("{head}:") };
        writeln!(text, "{head:<13}{line}").expect("a string takes everything");
    }
    let mut section = |rows: String| {
        text.push('\n');
        text.push_str(&rows);
    };
    if let SourceStatus::ApiServer { watches, rejected, .. } = &status.source {
        let rows = watches.iter().map(|watch| {
            let error = watch.error.as_deref().unwrap_or("");
            vec![watch.subject.clone(), watch.state.clone(), error.to_owned()]
        });
        section(rows_of(&["WATCH", "STATE", "ERROR"], rows.collect()));
        if !rejected.is_empty() {
            let rows = rejected.iter().map(|object| vec![object.name.clone(), object.error.clone()]);
            section(rows_of(&["UNREADABLE", "ERROR"], rows.collect()));
        }
    }
    let maps = status.maps.iter().map(|map| {
        let percent = (map.entries * 100).div_ceil(map.capacity.max(1));
        vec![map.map.clone(), map.entries.to_string(), map.capacity.to_string(), format!("{percent}%")]
    });
    section(rows_of(&["MAP", "ENTRIES", "CAPACITY", "USED"], maps.collect()));
    section(pods(&status.pods));
    if !status.policies.is_empty() {
        let rows = status.policies.iter().flat_map(|policy| {
            let one = |finding: Option<&String>| {
                let finding = finding.map_or(NONE, String::as_str);
                vec![policy.policy.clone(), policy.in_force.as_str().to_owned(), finding.to_owned()]
            };
            match policy.findings.as_slice() {
                [] => vec![one(None)],
                findings => findings.iter().map(|finding| one(Some(finding))).collect(),
            }
        });
        section(rows_of(&["POLICY", "IN FORCE", "FINDING"], rows.collect()));
    }
    if !status.remarks.is_empty() {
        section(rows_of(&["REMARK"], status.remarks.iter().map(|remark| vec![remark.clone()]).collect()));
    }
    text
}

/// Returns the table of pods.
fn pods(pods: &[PodStatus]) -> String {
    if pods.is_empty() {
        return "No pods.\n".to_owned();
    }
    let heads =
        ["NAMESPACE", "POD", "WORKLOAD", "CGROUP", "HOLDS", "SLOT", "REVISION", "SET", "DENIED", "POLICIES"];
    let rows = pods.iter().map(|pod| {
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| NONE.to_owned());
        let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        let name = match (&pod.name, pod.own) {
            (Some(name), _) => name.clone(),
            (None, true) => format!("{} (this agent)", pod.uid),
            (None, false) => pod.uid.clone(),
        };
        vec![
            text(&pod.namespace),
            name,
            text(&pod.workload),
            pod.cgroup_id.to_string(),
            pod.holds.as_str().to_owned(),
            number(pod.slot.map(u64::from)),
            number(pod.revision),
            number(pod.policy_set.map(u64::from)),
            pod.denied_packets.to_string(),
            if pod.policies.is_empty() { NONE.to_owned() } else { pod.policies.join(", ") },
        ]
    });
    rows_of(&heads, rows.collect())
}

/// Returns rows under heads, columns three spaces apart.
fn rows_of(heads: &[&str], rows: Vec<Vec<String>>) -> String {
    let heads = heads.iter().map(|head| (*head).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(heads).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// Returns a span of time as people write it, such as `4m10s`.
fn span(seconds: f64) -> String {
    let seconds = Duration::from_secs_f64(seconds.clamp(0.0, 1e12)).as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (minutes, hours, days) {
        (0, ..) => format!("{seconds}s"),
        (_, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (_, _, 0) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::status::{
        DenialStatus, Enforcement, Holds, MapFill, PolicyStatus, RejectedObject, SnapshotStatus, Version,
        WatchStatus,
    };

    fn pod(namespace: &str, name: &str, holds: Holds) -> PodStatus {
        PodStatus {
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            workload: Some(format!("Deployment/{name}")),
            uid: "01234567-89ab-cdef-0123-456789abcdef".to_owned(),
            cgroup_id: 4242,
            holds,
            own: false,
            slot: None,
            revision: None,
            policy_set: None,
            policies: Vec::new(),
            denied_packets: 0,
            audited_packets: 0,
        }
    }

    fn healthy() -> Status {
        let web = PodStatus {
            slot: Some(1),
            revision: Some(3),
            policy_set: Some(2),
            policies: vec!["shop/web".to_owned(), "shop/base".to_owned()],
            denied_packets: 17,
            audited_packets: 1,
            ..pod("shop", "web", Holds::Governed)
        };
        let unknown = PodStatus {
            namespace: None,
            name: None,
            workload: None,
            uid: "11111111-2222-3333-4444-555555555555".to_owned(),
            ..pod("", "", Holds::Unknown)
        };
        Status {
            version: "0.1.0".to_owned(),
            revision: None,
            node: "node-a".to_owned(),
            time: "2026-11-22T03:50:00Z".to_owned(),
            started: "2026-11-22T03:49:48Z".to_owned(),
            ready: true,
            not_ready_because: Vec::new(),
            degraded: Vec::new(),
            remarks: Vec::new(),
            enforcement: Enforcement {
                kubepods: "/sys/fs/cgroup/kubepods".to_owned(),
                attached: true,
                pod_start: "strict".to_owned(),
                connect_hooks: true,
                audit: false,
                pins: Some("/sys/fs/bpf/egress-agent".to_owned()),
                repairs: 0,
            },
            source: SourceStatus::Directory { path: "/etc/egress".to_owned(), complete: true, errors: 0 },
            maps: vec![MapFill { map: "EXACT".to_owned(), entries: 3, capacity: 131_072 }],
            pods: vec![web, pod("shop", "till", Holds::Ungoverned), unknown],
            policies: Vec::new(),
            denials: DenialStatus::default(),
        }
    }

    const PODS: &str = "\
NAMESPACE   POD                                    WORKLOAD          CGROUP   HOLDS        SLOT   REVISION   SET   DENIED   POLICIES
shop        web                                    Deployment/web    4242     governed     1      3          2     17       shop/web, shop/base
shop        till                                   Deployment/till   4242     ungoverned   -      -          -     0        <none>
<none>      11111111-2222-3333-4444-555555555555   <none>            4242     unknown      -      -          -     0        <none>
";

    #[test]
    fn a_healthy_agent_on_one_page() {
        let wanted = "\
Agent:       0.1.0 on node-a, since 2026-11-22T03:49:48Z
Health:      healthy
Kubepods:    /sys/fs/cgroup/kubepods, programs attached
Modes:       pod start strict, connect hooks on
Pins:        /sys/fs/bpf/egress-agent
Manifests:   /etc/egress, all read, errors: 0

MAP     ENTRIES   CAPACITY   USED
EXACT   3         131072     1%

"
        .to_owned()
            + PODS;
        assert_eq!(table(&healthy(), false), wanted);
        assert!(table(&healthy(), true).contains("Health:      \x1b[32mhealthy\x1b[0m\n"));
    }

    #[test]
    fn what_is_wrong_comes_first() {
        let watch = |subject: &str, state: &str, error: Option<&str>| WatchStatus {
            subject: subject.to_owned(),
            state: state.to_owned(),
            error: error.map(str::to_owned),
        };
        let status = Status {
            ready: false,
            not_ready_because: vec!["sync: not heard yet from the API server: namespaces".to_owned()],
            degraded: vec!["watches that fail: 1 of 2".to_owned()],
            remarks: vec!["destination api of shop/web matches nothing".to_owned()],
            source: SourceStatus::ApiServer {
                contact_age_seconds: Some(75.9),
                state_age_seconds: Some(7260.0),
                restored_from: Some("2026-11-22T01:49:00Z".to_owned()),
                watches: vec![
                    watch("namespaces", "failing", Some("503 Service Unavailable")),
                    watch("pods of this node", "synced", None),
                ],
                rejected: vec![RejectedObject { name: "shop/x".to_owned(), error: "no spec".to_owned() }],
                snapshot: Some(SnapshotStatus {
                    path: "/var/lib/egress-agent/snapshot".to_owned(),
                    written: Some("2026-11-22T01:49:00Z".to_owned()),
                    age_seconds: Some(7260.0),
                    failures: 2,
                    failing: true,
                }),
            },
            pods: Vec::new(),
            policies: vec![PolicyStatus {
                policy: "shop/web".to_owned(),
                in_force: Version::Earlier,
                findings: vec!["one".to_owned(), "two".to_owned()],
            }],
            ..healthy()
        };
        let wanted = "\
Agent:       0.1.0 on node-a, since 2026-11-22T03:49:48Z
Health:      not ready
             sync: not heard yet from the API server: namespaces
             watches that fail: 1 of 2
Kubepods:    /sys/fs/cgroup/kubepods, programs attached
Modes:       pod start strict, connect hooks on
Pins:        /sys/fs/bpf/egress-agent
API server:  heard 1m15s ago, state kept at 2026-11-22T01:49:00Z, 2h1m ago
Snapshot:    /var/lib/egress-agent/snapshot, written 2026-11-22T01:49:00Z, 2h1m ago, cannot be written

WATCH               STATE     ERROR
namespaces          failing   503 Service Unavailable
pods of this node   synced

UNREADABLE   ERROR
shop/x       no spec

MAP     ENTRIES   CAPACITY   USED
EXACT   3         131072     1%

No pods.

POLICY     IN FORCE          FINDING
shop/web   earlier version   one
shop/web   earlier version   two

REMARK
destination api of shop/web matches nothing
";
        assert_eq!(table(&status, false), wanted);
    }

    #[test]
    fn the_document_is_read_as_it_was_written() {
        let status = healthy();
        let text = serde_json::to_string(&status).expect("it is a document");
        assert_eq!(serde_json::from_str::<Status>(&text).expect("it was just written"), status);
        let value: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!(value["source"]["kind"], "directory");
        assert_eq!(value["pods"][0]["cgroupId"], 4242);
        assert_eq!(value["pods"][0]["holds"], "governed");
        assert_eq!(value["notReadyBecause"], serde_json::json!([]));
    }

    #[test]
    fn an_agent_that_does_not_run_is_told_with_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = status::socket(folder.path());
        let error = ask(&path).expect_err("nobody listens").to_string();
        for part in [path.to_str().expect("text"), "egress-agent agent", "--runtime-dir"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn spans_have_two_units_at_most() {
        let spans = [0.2, 59.9, 60.0, 3599.0, 3660.0, 90_000.0].map(span);
        assert_eq!(spans, ["0s", "59s", "1m0s", "59m59s", "1h1m", "1d1h"]);
    }
}
