//! Joins the thin sides: manifests and cgroups in, compiled policies into the kernel, counters and events out.
//!
//! One task owns everything that changes. It wakes for a change of the manifests, of the pods' cgroups, of the wall clock, for
//! events and for the tick that checks on all of them; a scrape takes the same lock for as long as it reads counters.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
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

#[cfg(feature = "debug-log")]
use crate::kernel::debug_log::DebugLog;
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
        cluster::{NsName, Pod, Settings},
        compile::{self, Compiled},
        diff::Wanted,
        document,
        index::{InForce, Index},
        model::{PolicyKind, RuleName, RulePart},
    },
    telemetry::{
        log::{self, Lines},
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
/// How long the last lines may take that are written at the end.
const LAST_LINES: Duration = Duration::from_millis(500);
/// No longer than this, however busy the directory is.
const NOT_LONGER: Duration = Duration::from_millis(50);

const NOT_IN_KERNEL: &str = "kernel";
const NOT_FITTING: &str = "capacity";
const NO_CGROUP: &str = "cgroup";
const INCOMPLETE: &str = "manifests";
const NOT_WATCHED: &str = "watch";
const NOT_PINNED: &str = "pins";

/// How many findings of one policy, or errors of one file, the log names.
const MOST_FINDINGS: usize = 5;
/// How many events may wait for whoever reads standard output.
const WAITING_EVENTS: usize = 4096;

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
    /// What was compiled for the pods before.
    cache: compile::Cache,
    /// Counts the reloads that changed the cluster; the index does not tell which part of it.
    generations: compile::Generations,
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
    /// Standard output, if events go there.
    events: Option<Lines>,
    /// Records in the ring that were none of ours.
    events_dropped: u64,
    /// Whether all manifests could be read.
    complete: bool,
    /// Namespaces with a policy that is broken and of which this process knows no good version.
    broken: BTreeSet<String>,
    /// Cgroups whose endpoint is the one an earlier agent left, because nothing was sure enough to replace it.
    adopted: BTreeSet<u64>,
    /// Errors of the manifests.
    manifest_errors: u64,
    /// What was reported last of manifests and policies, so that the log repeats nothing.
    reported: BTreeSet<String>,
    /// What was said when policies were applied, likewise.
    remarked: BTreeSet<String>,
    /// What was wrong when policies were applied, likewise.
    wrong: BTreeSet<String>,
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
    let mut pods = Some(cgroup::Watcher::new(&node.kubepods)?);
    let mut events =
        Events::new(Maps::events(node.engine.datapath_mut())?).context("watching the ring of events")?;
    let clock_watch = ClockWatch::new().context("watching the wall clock")?;
    #[cfg(feature = "debug-log")]
    match DebugLog::new(node.engine.datapath_mut(), |line| debug!(target: "egress_ebpf", "{line}"))? {
        Some(kernel_log) => {
            _ = tokio::spawn(async {
                if let Err(error) = kernel_log.follow().await {
                    error!(%error, "the programs' log can no longer be read");
                }
            });
        }
        None => warn!("this agent prints what a debug object logs, and the object was built without a log"),
    }

    let began = Instant::now();
    node.scan();
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
        "{}",
        if node.health.reasons().is_empty() { "policies are in force" } else { "running, but not ready" }
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
            _ = check.tick() => {
                let mut node = lock(&node);
                let watched = watch_again(&mut pods, &mut manifests, &node.kubepods);
                node.watched(watched);
                node.check();
                health.beat();
            }
            changed = clock_watch.changed() => {
                changed.context("watching the wall clock")?;
                info!("the wall clock was set; deadlines follow it");
                lock(&node).check_clock();
            }
            changed = pods_changed(&mut pods) => {
                let began = Instant::now();
                let mut node = lock(&node);
                match changed {
                    Ok(()) => if node.scan() {
                        node.apply(began);
                    },
                    // Its successor has another id: everything starts over.
                    Err(gone @ cgroup::Error::Gone { .. }) => return Err(gone.into()),
                    Err(failure) => {
                        pods = None;
                        node.watched(Err(failure.into()));
                    }
                }
            }
            changed = manifests.changed() => {
                let began = Instant::now();
                let mut watched = changed;
                while watched.is_ok() && began.elapsed() < NOT_LONGER {
                    match tokio::time::timeout(QUIET, manifests.changed()).await {
                        Ok(more) => watched = more,
                        Err(_quiet) => break,
                    }
                }
                let mut node = lock(&node);
                node.watched(watched.and_then(|()| manifests.renew()).context("watching manifests"));
                if node.reload() {
                    node.apply(began);
                }
            }
            received = events.receive(|denial| lock(&node).tell(&denial)) => {
                let received = received.context("reading events")?;
                if received.malformed > 0 {
                    lock(&node).events_dropped += received.malformed as u64;
                }
            }
        }
    }
    info!("stopping; what is pinned stays in force");
    if stop.send(()).is_err() {
        debug!("the server had ended before");
    }
    server.await.context("stopping the server")??;
    log::flush(LAST_LINES);
    if let Some(events) = &lock(&node).events {
        events.flush(LAST_LINES);
    }
    Ok(())
}

/// Waits for a change of the pods' cgroups; for ever while they are not watched.
async fn pods_changed(pods: &mut Option<cgroup::Watcher>) -> Result<(), cgroup::Error> {
    match pods {
        Some(pods) => pods.changed().await,
        None => std::future::pending().await,
    }
}

/// Watches again what is not watched, or not wholly.
fn watch_again(
    pods: &mut Option<cgroup::Watcher>,
    manifests: &mut Watch,
    kubepods: &Kubepods,
) -> anyhow::Result<()> {
    if pods.is_none() {
        *pods = Some(cgroup::Watcher::new(kubepods)?);
    }
    manifests.renew().context("watching manifests")
}

/// Says what was not said before.
fn say(lines: BTreeSet<String>, said: &mut BTreeSet<String>, speak: fn(&str)) {
    for line in lines.difference(said) {
        speak(line);
    }
    *said = lines;
}

/// Returns the pods that each cgroup may belong to, by the cgroup's id and in the order of their names.
///
/// More than one is a mistake of whoever wrote the manifests. A static pod's cgroup is named after the hash of its manifest,
/// which stands in an annotation of the pod the API shows for it; a pod that has that very UID comes first.
fn claims<'a>(
    pods: &'a BTreeMap<NsName, Pod>,
    cgroups: &BTreeMap<String, PodCgroup>,
) -> BTreeMap<u64, Vec<&'a NsName>> {
    let uids: BTreeSet<&str> = pods.values().map(|pod| pod.uid.as_str()).collect();
    let mut claims: BTreeMap<u64, Vec<&NsName>> = BTreeMap::new();
    for (id, pod) in pods.iter().filter(|(_, pod)| !pod.finished) {
        let hash = || Some(&pod.static_hash).filter(|hash| !hash.is_empty() && !uids.contains(hash.as_str()));
        let cgroup = cgroups.get(&pod.uid).or_else(|| hash().and_then(|hash| cgroups.get(hash)));
        if let Some(cgroup) = cgroup {
            claims.entry(cgroup.id).or_default().push(id);
        }
    }
    claims
}

/// Returns which of the pods that claim one cgroup it is taken for: the first that is governed, so that a pod nobody governs
/// never opens one that somebody does.
fn strictest<'a>(claimants: &[&'a NsName], compiled: &BTreeMap<NsName, Compiled>) -> Option<&'a NsName> {
    let governed = |pod: &&&NsName| compiled.get(**pod).is_some_and(|compiled| compiled.set.is_some());
    claimants.iter().find(governed).or(claimants.first()).copied()
}

/// Returns what of each key is worth a line: the first few, and how many more there are.
fn few<'a>(lines: impl Iterator<Item = (String, String)> + 'a) -> BTreeSet<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut few = BTreeSet::new();
    for (key, line) in lines {
        let count = counts.entry(key).or_default();
        *count += 1;
        if *count <= MOST_FINDINGS {
            few.insert(line);
        }
    }
    for (key, count) in counts.into_iter().filter(|(_, count)| *count > MOST_FINDINGS) {
        few.insert(format!("{key}: {} more", count - MOST_FINDINGS));
    }
    few
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
        let events = match config.print_events {
            true => Some(Lines::stdout(WAITING_EVENTS).context("writing events to standard output")?),
            false => None,
        };
        let adopted = engine.state().endpoints().keys().copied().collect();
        Ok(Self {
            config,
            kubepods,
            engine,
            cache: compile::Cache::default(),
            generations: compile::Generations::default(),
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
            events,
            events_dropped: 0,
            complete: false,
            broken: BTreeSet::new(),
            adopted,
            manifest_errors: 0,
            reported: BTreeSet::new(),
            remarked: BTreeSet::new(),
            wrong: BTreeSet::new(),
            retry: false,
        })
    }

    /// Looks which pods have a cgroup; returns whether that changed.
    fn scan(&mut self) -> bool {
        let pods = match cgroup::pods(&self.kubepods) {
            Ok(pods) => pods,
            Err(failure) => {
                error!(error = %failure, "the pods' cgroups cannot be listed");
                self.health.not_ready(NO_CGROUP, failure.to_string());
                return false;
            }
        };
        self.health.clear(NO_CGROUP);
        let pods: BTreeMap<String, PodCgroup> = pods.into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
        let changed = pods != self.cgroups;
        self.cgroups = pods;
        changed
    }

    /// Takes note whether everything is watched. What is not is looked at by the check, and watched again then.
    fn watched(&self, watched: anyhow::Result<()>) {
        match watched {
            Ok(()) => self.health.clear(NOT_WATCHED),
            Err(failure) => {
                error!(error = format!("{failure:#}"), "changes are seen late");
                self.health.not_ready(NOT_WATCHED, format!("{failure:#}"));
            }
        }
    }

    /// Reads the manifests; returns whether policies have to be compiled again.
    fn reload(&mut self) -> bool {
        let reload = self.source.reload(&mut self.index);
        self.manifest_errors = reload.errors.len() as u64;
        let manifests =
            reload.errors.iter().map(|error| (error.path.display().to_string(), error.to_string()));
        let findings = self.index.problems().flat_map(|problem| {
            let held = match problem.in_force {
                InForce::Current => "in force",
                InForce::Earlier => "its last valid version stays in force",
                InForce::Nothing => "no valid version of it is known",
            };
            let key = format!("policy {}", problem.policy);
            let line = move |finding| (key.clone(), format!("{key}: {finding} ({held})"));
            problem.findings.iter().map(line)
        });
        let mut report = few(manifests.chain(findings));
        let broken = self
            .index
            .problems()
            .filter(|problem| problem.in_force == InForce::Nothing)
            .filter(|problem| {
                problem.policy.kind == PolicyKind::ConfigMap || self.config.settings.enforce_network_policy
            })
            .map(|problem| problem.policy.id.namespace.clone())
            .collect();
        match &reload.incomplete_because {
            None => self.health.clear(INCOMPLETE),
            Some(reason) => {
                report.insert(
                    "not every manifest could be read: what an earlier agent left stays in force, and pods without a policy stay unknown until it can"
                        .to_owned(),
                );
                self.health.not_ready(INCOMPLETE, reason.clone());
            }
        }
        say(report, &mut self.reported, |line| warn!("{line}"));
        if reload.change.cluster {
            self.generations.services += 1;
            self.generations.others += 1;
        }
        let changed = reload.change.cluster || reload.complete != self.complete || broken != self.broken;
        self.complete = reload.complete;
        self.broken = broken;
        changed
    }

    /// Compiles and brings the kernel up to date. `began` is when the change that made it necessary was seen.
    fn apply(&mut self, began: Instant) {
        let cluster = self.index.cluster();
        let claims = claims(&cluster.pods, &self.cgroups);
        let compiled: BTreeMap<NsName, Compiled> = compile::compile_all_cached(
            &mut self.cache,
            cluster,
            &self.config.settings,
            self.generations,
            claims.values().flatten().copied(),
        );
        let (mut remarks, mut wrong) = (BTreeSet::new(), BTreeSet::new());
        let mut wanted: BTreeMap<u64, Wanted> = BTreeMap::new();
        let known = self.engine.state().endpoints();
        self.pods.clear();
        for (cgroup, claimants) in &claims {
            let Some(id) = strictest(claimants, &compiled) else { continue };
            if claimants.len() > 1 {
                let names: Vec<String> = claimants.iter().map(ToString::to_string).collect();
                wrong.insert(format!(
                    "pods {} have the same UID; its cgroup is taken for {id}'s",
                    names.join(", ")
                ));
            }
            let workload = cluster.pods[id].workload.clone();
            self.pods.insert(*cgroup, LocalPod { id: id.clone(), workload });
            let compiled = &compiled[id];
            remarks.extend(compiled.unresolved.iter().map(ToString::to_string));
            // What is missing may be the policy that governs it.
            if self.complete || compiled.set.is_some() || known.contains_key(cgroup) {
                wanted.insert(*cgroup, Wanted::new(id.clone(), compiled));
            }
        }
        let present: BTreeSet<u64> = self.cgroups.values().map(|cgroup| cgroup.id).collect();
        let doubtful = |cgroup: &u64| {
            let broken = self.pods.get(cgroup).is_some_and(|pod| self.broken.contains(&pod.id.namespace));
            // One that nobody governed may be governed at any time.
            let tightened = known.get(cgroup) == Some(&None)
                && wanted.get(cgroup).is_some_and(|wanted| wanted.set.is_some());
            present.contains(cgroup) && (!self.complete || broken) && !tightened
        };
        let kept: BTreeSet<u64> = self.adopted.iter().copied().filter(doubtful).collect();
        if !kept.is_empty() {
            remarks.insert(format!("{} pods keep what an earlier agent gave them", kept.len()));
        }
        self.retry = false;
        let histogram = Arc::clone(&self.apply_seconds);
        match self.engine.apply(&wanted, &kept, || histogram.observe(began.elapsed())) {
            Ok(applied) => {
                self.adopted = kept;
                self.health.clear(NOT_IN_KERNEL);
                if applied.refused.is_empty() {
                    self.health.clear(NOT_FITTING);
                }
                for refused in &applied.refused {
                    let pods: Vec<String> = refused.pods.iter().map(ToString::to_string).collect();
                    wrong.insert(format!(
                        "the policy of {} does not fit ({}); what they had stays in force",
                        pods.join(", "),
                        refused.full
                    ));
                    self.health.not_ready(NOT_FITTING, refused.full.to_string());
                    self.retry = true;
                }
                debug!(endpoints = applied.endpoints, sets = applied.sets, "the kernel is up to date");
            }
            Err(failure) => self.failed(&failure),
        }
        say(remarks, &mut self.remarked, |line| warn!("{line}"));
        say(wrong, &mut self.wrong, |line| error!("{line}"));
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
        match self.engine.datapath().unpinned() {
            gone if gone.is_empty() => self.health.clear(NOT_PINNED),
            gone => {
                let reason = format!("the pins of {} are gone; restart the agent", gone.join(", "));
                error!("{reason}");
                self.health.not_ready(NOT_PINNED, reason);
            }
        }
        let began = Instant::now();
        let scanned = self.scan();
        let reloaded = self.reload();
        if scanned || reloaded || self.retry {
            self.apply(began);
        }
    }

    /// Prints an event, with names.
    fn tell(&mut self, denial: &Denial) {
        let rule = self.engine.state().allocator().rule(denial.rule);
        let event = EventLine::new(denial, self.by_slot.get(&denial.slot), rule);
        if let Some(events) = &self.events {
            match serde_json::to_string(&event) {
                // What does not fit is counted there.
                Ok(line) => events.send(format!("{line}\n").into_bytes()),
                Err(failure) => {
                    error!(error = %failure, "an event cannot be written");
                    self.events_dropped += 1;
                }
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
        families.push(metrics::events_lost(lost));
        families.push(metrics::socket_store_failures(unstored));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, static_hash: &str, finished: bool) -> Pod {
        Pod { uid: uid.into(), static_hash: static_hash.into(), finished, ..Pod::default() }
    }

    fn claimed(pods: &[(&str, Pod)], cgroups: &[&str]) -> Vec<(u64, Vec<String>)> {
        let pods = pods.iter().map(|(name, pod)| (NsName::new("ns", *name), pod.clone())).collect();
        let cgroups = (1..)
            .zip(cgroups)
            .map(|(id, uid)| {
                let cgroup = PodCgroup { uid: (*uid).into(), path: PathBuf::new(), id, level: 2 };
                ((*uid).into(), cgroup)
            })
            .collect();
        let claims = claims(&pods, &cgroups);
        claims.into_iter().map(|(id, pods)| (id, pods.iter().map(|pod| pod.name.clone()).collect())).collect()
    }

    #[test]
    fn a_cgroup_belongs_to_the_pods_with_its_uid() {
        let pods = [("b", pod("u", "", false)), ("a", pod("u", "", false)), ("c", pod("u", "", true))];
        assert_eq!(claimed(&pods, &["u", "v"]), [(1, vec!["a".into(), "b".into()])]);
    }

    #[test]
    fn a_static_pod_is_found_by_its_hash_unless_that_is_the_uid_of_another() {
        let mirror = ("a", pod("u", "hash", false));
        assert_eq!(claimed(std::slice::from_ref(&mirror), &["hash"]), [(1, vec!["a".into()])]);
        let thief = ("b", pod("victim", "", false));
        let claims = claimed(&[("a", pod("u", "victim", false)), thief], &["victim"]);
        assert_eq!(claims, [(1, vec!["b".into()])]);
        assert_eq!(claimed(&[("a", pod("u", "", false))], &[""]), []);
    }

    #[test]
    fn the_log_names_a_few_findings_and_counts_the_rest() {
        let lines = (0..1000).map(|i| ("policy p".to_owned(), format!("policy p: {i}")));
        let few = few(lines.chain([("policy q".to_owned(), "policy q: x".to_owned())]));
        assert_eq!(few.len(), MOST_FINDINGS + 2);
        assert!(few.contains("policy p: 995 more"), "{few:?}");
    }
}
