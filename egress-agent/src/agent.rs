//! Joins the thin sides: manifests and cgroups in, compiled policies into the kernel, counters and events out.
//!
//! One task owns everything that changes. It wakes for a change of the manifests, of the pods' cgroups, of the wall clock, for
//! events and for the tick that checks on all of them; a scrape takes the same lock for as long as it reads counters.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use egress_common::maps::node_counter;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{debug, error, info, warn};

use crate::{
    k8s::manifests::DirectorySource,
    kernel::{
        cgroup::{self, Kubepods, PodCgroup},
        clock::{self, ClockWatch},
        engine::{Engine, EngineError},
        events::{Denial, Events, protocol_name},
        loader::{self, Capacities, Options},
        maps::Maps,
        object,
    },
    policy::{
        cluster::{NsName, Settings},
        compile::{self, Compiled},
        diff::Wanted,
        document,
        index::{InForce, Index},
        model::{PolicyKind, RuleName, RulePart},
    },
    telemetry::{
        metrics::{self, Destination, Family, Histogram, MapUse, PodCounters, PolicyErrors},
        server::{self, Health, Limits},
    },
    watch::Watch,
};

/// How to run; see the flags of `egress-agent agent`.
#[derive(Clone, Debug)]
pub struct Config {
    /// File or directory of manifests.
    pub manifests: PathBuf,
    /// The kubepods cgroup, if told.
    pub kubepods: Option<PathBuf>,
    /// Where to pin, if at all.
    pub pins: Option<PathBuf>,
    /// Whether to mount a bpffs above it.
    pub mount_bpffs: bool,
    /// A BPF object to use instead of the one inside.
    pub object: Option<Vec<u8>>,
    /// Where to serve metrics and health.
    pub listen: SocketAddr,
    /// Whether unknown pods are denied.
    pub strict: bool,
    /// Whether calls are refused early.
    pub connect_hooks: bool,
    /// What policies are compiled with.
    pub settings: Settings,
    /// Map sizes.
    pub capacities: Capacities,
    /// Whether events go to standard output.
    pub print_events: bool,
}

/// How often everything is checked.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// How long after a change the directory must be quiet before it is read: editors write in several steps.
const QUIET: Duration = Duration::from_millis(3);
/// No longer than this, however busy the directory is.
const NOT_LONGER: Duration = Duration::from_millis(50);

const NOT_IN_KERNEL: &str = "kernel";
const NOT_FITTING: &str = "capacity";
const NO_CGROUP: &str = "cgroup";

/// A governed or known pod on this node.
#[derive(Clone, Debug)]
struct LocalPod {
    id: NsName,
    workload: String,
}

/// Everything that changes.
struct Node {
    config: Config,
    kubepods: Kubepods,
    engine: Engine,
    index: Index,
    source: DirectorySource,
    /// Pod cgroups by pod UID.
    cgroups: BTreeMap<String, PodCgroup>,
    /// Pods by cgroup id.
    pods: BTreeMap<u64, LocalPod>,
    /// Pods by slot, for events.
    by_slot: BTreeMap<u32, LocalPod>,
    apply_seconds: Arc<Histogram>,
    health: Arc<Health>,
    clock_checked: u64,
    /// Records in the ring that were none of ours, and events standard output did not take.
    events_dropped: u64,
    /// What was reported last, so that the log repeats nothing.
    reported: BTreeSet<String>,
    /// What was said of destinations without addresses, likewise.
    unmatched: BTreeSet<String>,
    /// The last attempt failed or did not fit, so it is repeated at the next check.
    retry: bool,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("kubepods", &self.kubepods).finish_non_exhaustive()
    }
}

/// Runs until SIGTERM or SIGINT. What is pinned goes on enforcing afterwards.
///
/// # Errors
///
/// When the agent cannot start, or can no longer watch what it must.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watching for SIGINT")?;
    let listener = server::listen(config.listen).await?;
    info!(address = %config.listen, "serving metrics and health");

    let mut manifests = Watch::new(&config.manifests)
        .with_context(|| format!("watching manifests {}", config.manifests.display()))?;
    let health = Arc::new(Health::new(CHECK_EVERY * 6));
    let mut node = Node::start(config, Arc::clone(&health))?;
    let mut pods = cgroup::Watcher::new(&node.kubepods)?;
    let mut events =
        Events::new(Maps::events(node.engine.datapath_mut())?).context("watching the ring of events")?;
    let clock_watch = ClockWatch::new().context("watching the wall clock")?;

    let began = Instant::now();
    node.scan()?;
    node.reload();
    // Policies first, then programs: no packet meets a program that does not know its pod's policy yet.
    node.apply(began);
    let kubepods = node.kubepods.clone();
    node.engine.attach(&kubepods)?;
    health.clear(server::STARTING);
    info!(
        kubepods = %kubepods.path.display(),
        pods = node.pods.len(),
        hz = node.engine.datapath().hz,
        taken_over = node.engine.datapath().taken_over,
        milliseconds = began.elapsed().as_millis(),
        "policies are in force"
    );

    let node = Arc::new(Mutex::new(node));
    let collect = {
        let node = Arc::clone(&node);
        Arc::new(move || lock(&node).collect().map_err(server::CollectError::from))
    };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server =
        tokio::spawn(server::serve(listener, collect, Arc::clone(&health), Limits::default(), async {
            // Ends with the sender, too.
            if stopped.await.is_err() {
                debug!("the server outlived the agent's loop");
            }
        }));
    let mut check = tokio::time::interval(CHECK_EVERY);
    check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);

    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            changed = pods.changed() => {
                let began = Instant::now();
                changed?;
                let mut node = lock(&node);
                if node.scan()? {
                    node.apply(began);
                }
            }
            changed = manifests.changed() => {
                let began = Instant::now();
                changed.context("watching manifests")?;
                while began.elapsed() < NOT_LONGER
                    && tokio::time::timeout(QUIET, manifests.changed()).await.is_ok() {}
                let mut node = lock(&node);
                manifests.renew().context("watching manifests")?;
                if node.reload() {
                    node.apply(began);
                }
            }
            changed = clock_watch.changed() => {
                changed.context("watching the wall clock")?;
                info!("the wall clock was set; deadlines follow it");
                lock(&node).check_clock();
            }
            received = events.receive(|denial| lock(&node).tell(&denial)) => {
                let received = received.context("reading events")?;
                if received.malformed > 0 {
                    lock(&node).events_dropped += received.malformed as u64;
                }
            }
            _ = check.tick() => {
                let mut node = lock(&node);
                node.check();
                health.beat();
            }
        }
    }
    info!("stopping; what is pinned stays in force");
    if stop.send(()).is_err() {
        debug!("the server had ended before");
    }
    server.await.context("stopping the server")??;
    Ok(())
}

/// A poisoned lock means a panic under it, and this binary aborts on panic; tests may not.
fn lock(node: &Mutex<Node>) -> MutexGuard<'_, Node> {
    node.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    fn start(config: Config, health: Arc<Health>) -> anyhow::Result<Self> {
        let kubepods = cgroup::find(config.kubepods.as_deref())?;
        if let Some(pins) = &config.pins
            && config.mount_bpffs
        {
            mount_bpffs(pins)?;
        }
        let object = match &config.object {
            Some(object) => object.as_slice(),
            None => object::embedded().ok_or(loader::LoadError::NoObject)?,
        };
        let options = Options {
            level: kubepods.level,
            pins: config.pins.clone(),
            capacities: config.capacities,
            keep_verdicts: true,
        };
        let engine = Engine::new(object, &options, config.strict, config.connect_hooks)?;
        let source = DirectorySource::new(&config.manifests);
        Ok(Self {
            config,
            kubepods,
            engine,
            index: Index::new(|id, text| {
                let parsed = document::parse(id, text);
                (parsed.policy, parsed.findings)
            }),
            source,
            cgroups: BTreeMap::new(),
            pods: BTreeMap::new(),
            by_slot: BTreeMap::new(),
            apply_seconds: Arc::new(Histogram::new(metrics::APPLY_BOUNDS)),
            health,
            clock_checked: clock::wall_seconds_and_fraction().0,
            events_dropped: 0,
            reported: BTreeSet::new(),
            unmatched: BTreeSet::new(),
            retry: false,
        })
    }

    /// Looks which pods have a cgroup; returns whether that changed.
    fn scan(&mut self) -> Result<bool, cgroup::Error> {
        let pods = cgroup::pods(&self.kubepods)?;
        let pods: BTreeMap<String, PodCgroup> = pods.into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
        let changed = pods != self.cgroups;
        self.cgroups = pods;
        Ok(changed)
    }

    /// Reads the manifests; returns whether policies have to be compiled again.
    fn reload(&mut self) -> bool {
        let reload = self.source.reload(&mut self.index);
        let mut report = BTreeSet::new();
        for manifest in &reload.errors {
            report.insert(format!("{manifest}"));
        }
        for problem in self.index.problems() {
            let held = match problem.in_force {
                InForce::Current => "in force",
                InForce::Earlier => "its last valid version stays in force",
                InForce::Nothing => "no valid version of it is known",
            };
            for finding in problem.findings {
                report.insert(format!("policy {}: {finding} ({held})", problem.policy));
            }
        }
        for line in report.difference(&self.reported) {
            warn!("{line}");
        }
        self.reported = report;
        reload.change.cluster
    }

    /// Compiles and brings the kernel up to date. `began` is when the change that made it necessary was seen.
    fn apply(&mut self, began: Instant) {
        let cluster = self.index.cluster();
        let mut local: BTreeMap<NsName, u64> = BTreeMap::new();
        self.pods.clear();
        for (id, pod) in cluster.pods.iter().filter(|(_, pod)| !pod.finished) {
            if let Some(cgroup) = self.cgroups.get(&pod.uid) {
                local.insert(id.clone(), cgroup.id);
                self.pods.insert(cgroup.id, LocalPod { id: id.clone(), workload: pod.workload.clone() });
            }
        }
        let compiled: BTreeMap<NsName, Compiled> =
            compile::compile_all(cluster, &self.config.settings, local.keys());
        let mut unmatched = BTreeSet::new();
        let mut wanted: BTreeMap<u64, Wanted> = BTreeMap::new();
        for (id, compiled) in &compiled {
            unmatched.extend(compiled.unresolved.iter().map(ToString::to_string));
            wanted.insert(local[id], Wanted::new(id.clone(), compiled));
        }
        for line in unmatched.difference(&self.unmatched) {
            warn!("{line}");
        }
        self.unmatched = unmatched;
        self.retry = false;
        let histogram = Arc::clone(&self.apply_seconds);
        match self.engine.apply(&wanted, || histogram.observe(began.elapsed())) {
            Ok(applied) => {
                self.health.clear(NOT_IN_KERNEL);
                if applied.refused.is_empty() {
                    self.health.clear(NOT_FITTING);
                }
                for refused in &applied.refused {
                    let pods: Vec<String> = refused.pods.iter().map(ToString::to_string).collect();
                    error!(pods = pods.join(","), full = %refused.full, "a policy does not fit into the maps; its pods keep what they had");
                    self.health.not_ready(NOT_FITTING, refused.full.to_string());
                    self.retry = true;
                }
                debug!(endpoints = applied.endpoints, sets = applied.sets, "the kernel is up to date");
            }
            Err(failure) => self.failed(&failure),
        }
        self.by_slot = self
            .engine
            .state()
            .endpoints()
            .iter()
            .filter_map(|(cgroup, endpoint)| Some((endpoint.as_ref()?.slot, self.pods.get(cgroup)?.clone())))
            .collect();
    }

    /// The old or the new policy holds for every pod; what is wanted is tried again at the next check.
    fn failed(&mut self, failure: &EngineError) {
        error!(error = %failure, "the kernel does not hold what is wanted");
        self.retry = true;
        self.health.not_ready(NOT_IN_KERNEL, failure.to_string());
    }

    fn check_clock(&mut self) {
        match self.engine.datapath_mut().set_clock() {
            Ok(()) => self.clock_checked = clock::wall_seconds_and_fraction().0,
            Err(failure) => self.failed(&failure.into()),
        }
    }

    /// Makes sure that what should be in force is: programs attached, clock right, every pod known, last attempt repeated.
    fn check(&mut self) {
        self.check_clock();
        match self.engine.datapath().detached(&self.kubepods) {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => {
                warn!(programs = gone.join(","), "programs were detached; attaching them again");
                let kubepods = self.kubepods.clone();
                if let Err(failure) = self.engine.attach(&kubepods) {
                    self.failed(&failure.into());
                }
            }
            Err(failure) => self.failed(&failure.into()),
        }
        let began = Instant::now();
        let scanned = match self.scan() {
            Ok(changed) => changed,
            Err(failure) => {
                error!(error = %failure, "the pods' cgroups cannot be listed");
                self.health.not_ready(NO_CGROUP, failure.to_string());
                return;
            }
        };
        self.health.clear(NO_CGROUP);
        let reloaded = self.reload();
        if scanned || reloaded || self.retry {
            self.apply(began);
        }
    }

    /// Prints an event, with names.
    fn tell(&mut self, denial: &Denial) {
        let rule = self.engine.state().allocator().rule(denial.rule);
        let event = EventLine::new(denial, self.by_slot.get(&denial.slot), rule);
        if self.config.print_events {
            let written = serde_json::to_string(&event).map_err(io::Error::from).and_then(|line| {
                io::Write::write_all(&mut io::stdout().lock(), format!("{line}\n").as_bytes())
            });
            if written.is_err() {
                self.events_dropped += 1;
            }
        }
        debug!(?event, "not allowed");
    }

    /// Everything a scrape is to see.
    fn collect(&self) -> anyhow::Result<Vec<Family>> {
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
        let mut expiries = Vec::new();
        for policy in self.index.cluster().policies.values() {
            if policy.id.kind != PolicyKind::ConfigMap {
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
            .filter(|problem| problem.in_force != InForce::Current)
            .map(|problem| PolicyErrors {
                namespace: problem.policy.id.namespace.clone(),
                policy: problem.policy.id.name.clone(),
                errors: problem.findings.len().max(1) as u64,
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
        let lost = node[node_counter::EVENTS_LOST as usize]
            + node[node_counter::EVENTS_SUPPRESSED as usize]
            + self.events_dropped;
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
        families.extend(metrics::map_families(&uses));
        families.push(metrics::exception_expiry(&expiries));
        families.push(metrics::events_lost(lost));
        families.push(metrics::clock_check(self.clock_checked));
        families.push(metrics::build_info(
            env!("CARGO_PKG_VERSION"),
            option_env!("EGRESS_REVISION").unwrap_or(""),
        ));
        Ok(families)
    }
}

fn destination(rule: &RuleName) -> Destination {
    Destination {
        namespace: rule.policy.id.namespace.clone(),
        policy: rule.policy.id.name.clone(),
        destination: rule.part.as_str().to_owned(),
    }
}

/// One line of the event stream.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct EventLine<'a> {
    time: String,
    namespace: Option<&'a str>,
    pod: Option<&'a str>,
    workload: Option<&'a str>,
    verdict: &'static str,
    reason: &'static str,
    policy: Option<String>,
    destination: Option<&'a str>,
    hook: &'static str,
    protocol: String,
    source: Option<String>,
    source_port: u16,
    to: String,
    port: u16,
    bytes: u32,
    suppressed: u32,
}

impl<'a> EventLine<'a> {
    fn new(denial: &Denial, pod: Option<&'a LocalPod>, rule: Option<&'a RuleName>) -> Self {
        let time = i64::try_from(denial.time.0)
            .ok()
            .zip(i32::try_from(denial.time.1).ok())
            .and_then(|(seconds, nanoseconds)| jiff::Timestamp::new(seconds, nanoseconds).ok());
        Self {
            time: time.map_or_else(|| denial.time.0.to_string(), |time| format!("{time:.6}")),
            namespace: pod.map(|pod| pod.id.namespace.as_str()),
            pod: pod.map(|pod| pod.id.name.as_str()),
            workload: pod.map(|pod| pod.workload.as_str()),
            verdict: denial.verdict.as_str(),
            reason: denial.reason.as_str(),
            policy: rule.map(|rule| rule.policy.id.to_string()),
            destination: rule.map(|rule| rule.part.as_str()),
            hook: denial.hook,
            protocol: protocol_name(denial.protocol),
            source: (!denial.source.is_unspecified()).then(|| denial.source.to_string()),
            source_port: denial.source_port,
            to: denial.destination.to_string(),
            port: denial.destination_port,
            bytes: denial.bytes,
            suppressed: denial.suppressed,
        }
    }
}

/// Mounts a bpffs at the parent of the pin folder, unless the folder is on one.
fn mount_bpffs(pins: &Path) -> anyhow::Result<()> {
    if loader::is_bpffs(pins) {
        return Ok(());
    }
    let target = pins.parent().context("the pin folder must lie below the mount")?;
    fs::create_dir_all(target).with_context(|| format!("making {}", target.display()))?;
    rustix::mount::mount("bpf", target, "bpf", rustix::mount::MountFlags::empty(), None::<&std::ffi::CStr>)
        .with_context(|| format!("mounting a bpffs at {}", target.display()))?;
    info!(path = %target.display(), "mounted a bpffs");
    Ok(())
}
