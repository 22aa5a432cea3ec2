//! What `egress-agent status` is told: one document about this agent, its source and its pods.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use egress_common::verdict::{COUNTED, Verdict};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tracing::{error, warn};

use super::{Node, Source, SourceConfig};
use crate::{kernel::clock, policy::index::InForce};

/// The name of the socket in the runtime folder.
const SOCKET: &str = "agent.sock";
/// The part of a map in use, in percent, from which on there is something to be done.
const NEARLY_FULL: u64 = 90;

/// Everything there is to say about one agent. Times are RFC 3339 in UTC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// The commit it was built from; null when nobody said.
    pub revision: Option<String>,
    /// The node it enforces on: as the API knows it, or else the machine's host name.
    pub node: String,
    /// When this was written.
    pub time: String,
    /// When the agent started.
    pub started: String,
    /// Whether everything wanted is in force, as `/readyz` says.
    pub ready: bool,
    /// Why it is not ready, a line for each cause.
    pub not_ready_because: Vec<String>,
    /// What else somebody should look at, a line each. Empty: nothing.
    pub degraded: Vec<String>,
    /// What was said last about destinations that match nothing, and about pods that wait.
    pub remarks: Vec<String>,
    /// How it enforces.
    pub enforcement: Enforcement,
    /// Where the state of the cluster comes from.
    pub source: SourceStatus,
    /// The kernel maps that can fill up.
    pub maps: Vec<MapFill>,
    /// The pods that have a cgroup on this node, in the order of their names; those nobody knows come last.
    pub pods: Vec<PodStatus>,
    /// The policies with findings.
    pub policies: Vec<PolicyStatus>,
    /// What was denied since the agent started.
    #[serde(default)]
    pub denials: DenialStatus,
}

/// What the kernel told of denials: a sample where there are many, at most 20 a second for each pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DenialStatus {
    /// How many it told of.
    pub told: u64,
    /// How many of those were of port 53.
    pub names: u64,
}

/// How the agent enforces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enforcement {
    /// The folder of the kubepods cgroup.
    pub kubepods: String,
    /// Whether the programs are attached to it.
    pub attached: bool,
    /// `strict` or `standard`: what holds for pods nobody knows. A namespace that wants `strict` makes it so for the node.
    pub pod_start: String,
    /// Whether calls are refused before there is a packet.
    pub connect_hooks: bool,
    /// Whether every policy counts as one in audit mode.
    #[serde(default)]
    pub audit: bool,
    /// The folder of the pins; null when enforcement ends with the process.
    pub pins: Option<String>,
    /// How often programs or pins were found changed and put right.
    pub repairs: u64,
}

/// Where the state of the cluster comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum SourceStatus {
    /// Manifests in a directory or file.
    Directory {
        /// Which.
        path: String,
        /// Whether all of them could be read.
        complete: bool,
        /// How many errors they have.
        errors: u64,
    },
    /// An API server.
    ApiServer {
        /// Seconds since it was heard last; null if never.
        contact_age_seconds: Option<f64>,
        /// How old the state in force may be, in seconds; 0 while every watch goes on, null while there is no state.
        state_age_seconds: Option<f64>,
        /// When the state in force was written, if it is the kept one; null once the API server was heard in full.
        restored_from: Option<String>,
        /// Each watch.
        watches: Vec<WatchStatus>,
        /// Objects that cannot be read.
        rejected: Vec<RejectedObject>,
        /// The file with the last good state; null without `--snapshot`.
        snapshot: Option<SnapshotStatus>,
    },
}

/// One watch of the API server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchStatus {
    /// What is watched.
    pub subject: String,
    /// `synced`, `syncing` or `failing`.
    pub state: String,
    /// Why it fails; null unless it does.
    pub error: Option<String>,
}

/// An object that cannot be read. What it said before holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RejectedObject {
    /// Its namespace and name.
    pub name: String,
    /// What is wrong with it.
    pub error: String,
}

/// The file with the last good state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotStatus {
    /// Where it is.
    pub path: String,
    /// When it was written last; null if never.
    pub written: Option<String>,
    /// Seconds since then. It is written when the state changes, so an old one is as good as the state.
    pub age_seconds: Option<f64>,
    /// How often it could not be written.
    pub failures: u64,
    /// Whether the last attempt failed.
    pub failing: bool,
}

/// How full a kernel map is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MapFill {
    /// The map's name; `RULE_COUNTERS` counts destinations, `REVISIONS` governed pods.
    pub map: String,
    /// Entries in use.
    pub entries: u64,
    /// Entries that fit.
    pub capacity: u64,
}

/// A pod that has a cgroup on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Its namespace; null for a pod nobody knows, and for the agent's own.
    pub namespace: Option<String>,
    /// Its name; null likewise.
    pub name: Option<String>,
    /// What it belongs to, such as `Deployment/web`; null likewise.
    pub workload: Option<String>,
    /// The UID its cgroup is named after.
    pub uid: String,
    /// The id of its cgroup, as the programs see it.
    pub cgroup_id: u64,
    /// What holds for it.
    pub holds: Holds,
    /// Whether it is the agent's own, which is never judged.
    pub own: bool,
    /// Its place among revisions and counters; null when it is not governed, as are the next two.
    pub slot: Option<u32>,
    /// The word that made its policy the current one.
    pub revision: Option<u64>,
    /// The number of the policy set its packets are looked up in; pods with the same policy share one.
    pub policy_set: Option<u32>,
    /// The policies that select it, in policy order.
    pub policies: Vec<String>,
    /// Packets and calls that were denied since it got its slot.
    pub denied_packets: u64,
    /// Packets and calls that passed but audited policies would deny.
    pub audited_packets: u64,
}

/// What holds for a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Holds {
    /// Policies.
    Governed,
    /// Nothing: no policy selects it.
    Ungoverned,
    /// Nothing yet: its policies are not known and its start is `standard`.
    Unprotected,
    /// What an earlier agent or an earlier state gave it, until what its policies need is known.
    Waiting,
    /// What the start mode says: nobody knows the pod, or in strict mode its policies.
    Unknown,
}

impl Holds {
    /// Returns its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Governed => "governed",
            Self::Ungoverned => "ungoverned",
            Self::Unprotected => "unprotected",
            Self::Waiting => "waiting",
            Self::Unknown => "unknown",
        }
    }
}

/// A policy with findings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// Its namespace and name.
    pub policy: String,
    /// Which version holds.
    pub in_force: Version,
    /// What there is to say about the version that is there now.
    pub findings: Vec<String>,
}

/// Which version of a policy holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Version {
    /// The one that is there now.
    Current,
    /// The last good one; the one that is there now is invalid.
    Earlier,
    /// None: there never was a good one.
    Nothing,
}

impl Version {
    /// Returns its words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Current => "as written",
            Self::Earlier => "earlier version",
            Self::Nothing => "nothing",
        }
    }
}

/// Returns the path of the socket in a runtime folder.
#[must_use]
pub fn socket(runtime: &Path) -> PathBuf {
    runtime.join(SOCKET)
}

/// A socket of this agent in its runtime folder. Removed with this.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), %error, "a socket cannot be removed");
        }
    }
}

impl Socket {
    /// Listens at a path in the runtime folder, for the subcommand `asker`. A socket that a dead agent has left is replaced.
    ///
    /// Enforcement does not depend on it: `None`, with a line in the log, where it cannot be made.
    ///
    /// # Errors
    ///
    /// When another agent answers there.
    pub(super) fn listen(path: PathBuf, asker: &str) -> anyhow::Result<Option<(Self, UnixListener)>> {
        if std::os::unix::net::UnixStream::connect(&path).is_ok() {
            anyhow::bail!(
                "another agent answers at {}; stop it first, or pass another --runtime-dir",
                path.display()
            );
        }
        match bind(&path) {
            Ok(listener) => Ok(Some((Self { path }, listener))),
            Err(error) => {
                warn!(
                    path = %path.display(), %error,
                    "the socket for `egress-agent {asker}` cannot be made; going on without it"
                );
                Ok(None)
            }
        }
    }
}

/// Makes the folder and the socket in it, both for this user alone.
fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(runtime) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(runtime)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _removed_or_gone => {}
    }
    // For the whole process, but nothing else makes files at this time.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    listener
}

/// Returns a time in seconds since the epoch as RFC 3339 in UTC.
fn rfc3339(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.map_or_else(|| seconds.to_string(), |time| time.to_string())
}

impl Node {
    /// Returns what there is to say about this agent.
    pub(super) fn status(&self) -> anyhow::Result<Status> {
        let reasons = self.health.reasons();
        let source = self.source_status();
        let maps = self.map_fill();
        let policies = self.policy_status();
        let (told, names) = self.denials.told();
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: option_env!("EGRESS_REVISION").filter(|text| !text.is_empty()).map(str::to_owned),
            node: self.node_name(),
            time: rfc3339(clock::wall_seconds_and_fraction().0),
            started: rfc3339(self.started),
            ready: reasons.is_empty(),
            not_ready_because: reasons,
            degraded: self.degraded(&source, &maps, &policies),
            remarks: self.remarked.iter().cloned().collect(),
            enforcement: Enforcement {
                kubepods: self.kubepods.path.display().to_string(),
                attached: self.attached,
                pod_start: if self.strict { "strict" } else { "standard" }.to_owned(),
                connect_hooks: self.config.connect_hooks,
                audit: self.config.audit,
                pins: self.config.pins.as_ref().map(|pins| pins.display().to_string()),
                repairs: self.repairs,
            },
            source,
            maps,
            pods: self.pods_status()?,
            policies,
            denials: DenialStatus { told, names },
        })
    }

    pub(super) fn node_name(&self) -> String {
        match &self.config.source {
            SourceConfig::Kube { node, .. } => node.clone(),
            SourceConfig::Directory(_) => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        }
    }

    pub(super) fn source_status(&self) -> SourceStatus {
        let (Source::Kube(source), Some(api)) = (&self.source, self.api()) else {
            let path = match &self.config.source {
                SourceConfig::Directory(path) => path.display().to_string(),
                SourceConfig::Kube { .. } => String::new(),
            };
            return SourceStatus::Directory { path, complete: self.complete, errors: self.manifest_errors };
        };
        let watches = source
            .status()
            .into_iter()
            .map(|watch| WatchStatus {
                subject: watch.subject.to_string(),
                state: match (&watch.failing, watch.synced) {
                    (Some(_), _) => "failing",
                    (None, true) => "synced",
                    (None, false) => "syncing",
                }
                .to_owned(),
                error: watch.failing,
            })
            .collect();
        let rejected = source
            .rejected()
            .map(|(name, why)| RejectedObject { name: name.to_owned(), error: why.to_owned() })
            .collect();
        let now = clock::wall_seconds_and_fraction().0;
        let snapshot = self.keeper.as_ref().map(|keeper| {
            let (written, failures) = keeper.told();
            SnapshotStatus {
                path: keeper.path().display().to_string(),
                written: written.map(rfc3339),
                age_seconds: written
                    .map(|written| Duration::from_secs(now.saturating_sub(written)).as_secs_f64()),
                failures,
                failing: keeper.failing(),
            }
        });
        SourceStatus::ApiServer {
            contact_age_seconds: api.silence.map(|silence| silence.as_secs_f64()),
            state_age_seconds: api.age.map(|age| age.as_secs_f64()),
            restored_from: self.restored.map(rfc3339),
            watches,
            rejected,
            snapshot,
        }
    }

    pub(super) fn map_fill(&self) -> Vec<MapFill> {
        let state = self.engine.state();
        let slots = state.slots().usage();
        let usage = state.allocator().usage();
        usage
            .iter()
            .chain(std::iter::once(&slots))
            .map(|usage| MapFill {
                map: usage.map.to_owned(),
                entries: u64::from(usage.used),
                capacity: u64::from(usage.capacity),
            })
            .collect()
    }

    fn pods_status(&self) -> anyhow::Result<Vec<PodStatus>> {
        let state = self.engine.state();
        let mut pods = Vec::with_capacity(self.cgroups.len());
        for cgroup in self.cgroups.values() {
            let known = self.pods.get(&cgroup.id);
            let endpoint = state.endpoints().get(&cgroup.id);
            let governed = endpoint.and_then(Option::as_ref);
            let waits = self.kept.contains(&cgroup.id);
            let holds = match endpoint {
                Some(_) if waits => Holds::Waiting,
                Some(Some(_)) => Holds::Governed,
                Some(None) if state.unprotected().contains(&cgroup.id) => Holds::Unprotected,
                Some(None) => Holds::Ungoverned,
                None => Holds::Unknown,
            };
            let (mut denied, mut audited) = (0, 0);
            for ((verdict, _), counter) in
                COUNTED.iter().zip(self.engine.pod_counters(cgroup.id)?.iter().flatten())
            {
                match verdict {
                    Verdict::Deny => denied += counter.packets,
                    Verdict::Audit => audited += counter.packets,
                    Verdict::Allow => {}
                }
            }
            pods.push(PodStatus {
                namespace: known.map(|pod| pod.id.namespace.clone()),
                name: known.map(|pod| pod.id.name.clone()),
                workload: known.map(|pod| pod.workload.clone()),
                uid: cgroup.uid.clone(),
                cgroup_id: cgroup.id,
                holds,
                own: self.own == Some(cgroup.id),
                slot: governed.map(|endpoint| endpoint.slot),
                revision: governed.map(|endpoint| endpoint.revision),
                policy_set: governed.map(|endpoint| endpoint.set),
                policies: known.iter().flat_map(|pod| pod.policies.iter()).map(ToString::to_string).collect(),
                denied_packets: denied,
                audited_packets: audited,
            });
        }
        pods.sort_by(|one, other| {
            let key = |pod: &PodStatus| (pod.name.is_none(), pod.namespace.clone(), pod.name.clone());
            key(one).cmp(&key(other)).then_with(|| one.uid.cmp(&other.uid))
        });
        Ok(pods)
    }

    pub(super) fn policy_status(&self) -> Vec<PolicyStatus> {
        let status = |problem: crate::policy::index::Problem<'_>| PolicyStatus {
            policy: problem.policy.to_string(),
            in_force: match problem.in_force {
                InForce::Current => Version::Current,
                InForce::Earlier => Version::Earlier,
                InForce::Nothing => Version::Nothing,
            },
            findings: problem.findings.iter().map(ToString::to_string).collect(),
        };
        self.index.problems().map(status).collect()
    }

    /// Returns what somebody should look at, besides what keeps the agent from being ready.
    pub(super) fn degraded(
        &self,
        source: &SourceStatus,
        maps: &[MapFill],
        policies: &[PolicyStatus],
    ) -> Vec<String> {
        let mut lines: Vec<String> = self.wrong.iter().cloned().collect();
        match source {
            SourceStatus::Directory { errors: 0, .. } => {}
            SourceStatus::Directory { errors, .. } => {
                lines.push(format!("errors in the manifests: {errors}"));
            }
            SourceStatus::ApiServer { restored_from, watches, rejected, snapshot, .. } => {
                if let Some(written) = restored_from {
                    lines.push(format!("the state in force is the one kept at {written}"));
                }
                let failing = watches.iter().filter(|watch| watch.error.is_some()).count();
                if failing > 0 {
                    lines.push(format!("watches that fail: {failing} of {}", watches.len()));
                }
                if !rejected.is_empty() {
                    lines.push(format!("objects of the API server that cannot be read: {}", rejected.len()));
                }
                if snapshot.as_ref().is_some_and(|snapshot| snapshot.failing) {
                    lines.push("the snapshot cannot be written".to_owned());
                }
            }
        }
        for MapFill { map, entries, capacity } in maps {
            if *entries > 0 && entries.saturating_mul(100) >= capacity.saturating_mul(NEARLY_FULL) {
                lines.push(format!("map {map} holds {entries} of {capacity} entries"));
            }
        }
        let invalid = policies.iter().filter(|policy| policy.in_force != Version::Current).count();
        if invalid > 0 {
            lines.push(format!("policies that are not in force as they are written: {invalid}"));
        }
        lines
    }

    /// Returns the status as the socket serves it.
    pub(super) fn status_text(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string(&self.status()?)?)
    }
}

/// Serves the status at a socket until `stopped`. That it ends early ends nothing else.
pub(super) fn serve(
    listener: UnixListener,
    tell: crate::telemetry::server::Tell,
    stopped: tokio::sync::oneshot::Receiver<()>,
) -> tokio::task::JoinHandle<()> {
    use crate::telemetry::server::{Limits, serve_status};
    tokio::spawn(async move {
        // Ends with the sender, too.
        let stopped = async { drop(stopped.await) };
        if let Err(failure) = serve_status(listener, tell, Limits::default(), stopped).await {
            error!(error = %failure, "the status is no longer served");
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it is there").permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn the_socket_is_for_one_user_and_one_agent() {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = folder.path().join("run");
        let first =
            Socket::listen(socket(&runtime), "status").expect("nobody listens").expect("it can be made");
        assert_eq!((mode(&runtime), mode(&socket(&runtime))), (0o700, 0o600));
        let refused = Socket::listen(socket(&runtime), "status").expect_err("one listens").to_string();
        assert!(refused.contains("another agent") && refused.contains("--runtime-dir"), "{refused}");
        // What a killed agent leaves: a socket nobody listens at.
        let (first, listener) = first;
        drop(listener);
        let second =
            Socket::listen(socket(&runtime), "status").expect("nobody listens").expect("it can be made");
        drop(second);
        assert!(!socket(&runtime).exists(), "it is removed at the end");
        drop(first);
    }

    #[tokio::test]
    async fn an_agent_goes_on_without_a_socket() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        fs::write(&file, "").expect("the folder can be written");
        let without = Socket::listen(socket(&file.join("run")), "status").expect("it is not another agent");
        assert!(without.is_none());
        let long = folder.path().join("long".repeat(30));
        assert!(
            Socket::listen(socket(&long), "status").expect("it is not another agent").is_none(),
            "sun_path has 108 octets"
        );
    }
}
