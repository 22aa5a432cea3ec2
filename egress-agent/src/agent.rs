//! Joins the thin sides: manifests and cgroups in, compiled policies into the kernel, counters and events out.
//!
//! One task owns everything that changes. It wakes for a change of the manifests, of the pods' cgroups, of the wall clock, for
//! events and for the tick that checks on all of them; a scrape takes the same lock for as long as it reads counters.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use egress_common::{config::setting, verdict::Verdict};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tracing::{debug, error, info, warn};

#[cfg(feature = "debug-log")]
use crate::kernel::debug_log::DebugLog;
use crate::{
    check::{Judgement, Rules, Subject},
    heap,
    k8s::{
        client::{self, Access, Contact},
        manifests::DirectorySource,
        source::{self, KubeSource, Message},
    },
    kernel::{
        cgroup::{self, Kubepods, PodCgroup},
        clock::{self, ClockWatch},
        engine::{Engine, EngineError},
        events::{Denial, Events},
        loader::{self, Capacities, Options},
        maps::{Maps, Refused},
        object,
    },
    observe::{self as protocol, Mask, Observation},
    policy::{
        cluster::{Cluster, NsName, Pod, Settings},
        compile::{self, Compiled, Unmatched},
        demand::{self, Demand},
        diff::Wanted,
        finding::Finding,
        flow::Flow,
        governance::Profile,
        index::{Change, InForce, Index, ParsePolicy},
        model::{Policy, PolicyId, PolicyKind, RuleName},
        reference,
    },
    ranges::files::Files,
    telemetry::{
        log::{self, Lines},
        metrics::{self, Histogram},
        server::{self, Health, Limits},
    },
    watch::Watch,
};

use self::{
    binding::{Unclaimed, claims, own_cgroup, strictest, unclaimed},
    denials::{Announcer, Denials, Repeated},
    flows::Flows,
    kept::Keeper,
    observe::Hub,
    summary::Publisher,
    uses::Uses,
};

mod binding;
mod denials;
mod flows;
mod kept;
mod observe;
mod ranges;
mod report;
pub mod status;
pub mod summary;
mod uses;

/// What policies are judged by here: nothing that is laid down for writing them.
static RULES: LazyLock<Rules> = LazyLock::new(Rules::default);

/// How to run; see the flags of `egress-agent agent`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the state of the cluster comes from.
    pub source: SourceConfig,
    /// The UID of the pod this process runs in, if it does. Its own cgroup is never judged: an agent that its own programs keep
    /// from the API server could not learn otherwise.
    pub own_uid: Option<String>,
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
    /// The folder with the socket for `egress-agent status`.
    pub runtime: PathBuf,
    /// Whether unknown pods are denied.
    pub strict: bool,
    /// Whether calls are refused early.
    pub connect_hooks: bool,
    /// Whether every policy counts as one in audit mode.
    pub audit: bool,
    /// What policies are compiled with.
    pub settings: Settings,
    /// Map sizes.
    pub capacities: Capacities,
    /// The namespace that ranges are published in, if any are.
    pub ranges_namespace: Option<String>,
    /// Files with ranges, each with its provider.
    pub ranges_files: Vec<(String, PathBuf)>,
    /// Where this node's summary is published, if it is.
    pub summary: Option<summary::Options>,
    /// Whether events go to standard output.
    pub print_events: bool,
    /// How many events are kept for those who ask later.
    pub keep_events: usize,
    /// How much of destination addresses is told.
    pub mask: Mask,
    /// Whether what is allowed is told all the time, so that it is known which destinations are used.
    pub learn_allowed: bool,
    /// Whether everything that is pinned is removed at the end.
    pub cleanup_on_exit: bool,
}

/// Where the state of the cluster comes from.
#[derive(Clone, Debug)]
pub enum SourceConfig {
    /// Manifests in a file, or in a directory.
    Directory(PathBuf),
    /// An API server.
    Kube {
        /// Where it is, and who asks.
        access: Access,
        /// The name of this node.
        node: String,
        /// A file with the last good state, for a start without an API server.
        snapshot: Option<PathBuf>,
    },
}

/// How often everything is checked.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// How long after a change the directory must be quiet before it is read: editors write in several steps.
const QUIET: Duration = Duration::from_millis(3);
/// How long a pod that nobody governed so far stays so while what its policies need to know is not heard.
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// How long the first attachment waits at most for what the policies of some pods need to know.
const LAST_WAIT: Duration = Duration::from_secs(5);
/// How often it is seen whether the state is to be kept, and what came again is to be told.
const KEEP_EVERY: Duration = Duration::from_secs(1);
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
const NOT_SYNCED: &str = "sync";
const WAITING: &str = "waiting";

/// How many findings of one policy, or errors of one file, the log names.
const MOST_FINDINGS: usize = 5;
/// How many findings of one policy are kept: a text can be made to have one for every few octets.
const MOST_KEPT: usize = 32;
/// How many messages of the API server are taken before the kernel is brought up to date.
const MOST_MESSAGES: usize = 4096;
/// How long messages are taken at once: reading policies takes time, and there is more to do than that.
const AT_ONCE: Duration = Duration::from_millis(20);
/// After changes elsewhere were put into force, further ones wait for this many times as long as that took, at most for the time:
/// with a policy about every pod of a large cluster it takes long, and there is always another change.
const RESTS: (u32, Duration) = (3, Duration::from_secs(1));
/// What takes so long to put into force takes memory worth giving back, too.
const LARGE: Duration = Duration::from_millis(50);
/// The label of a namespace that says how its pods start, and its values.
pub const POD_START: (&str, &str, &str) = ("egress-agent.dev/pod-start", "strict", "standard");
/// How many events may wait for whoever reads standard output.
const WAITING_EVENTS: usize = 4096;

/// The state of the cluster, as it comes.
enum Source {
    Directory(DirectorySource),
    Kube(Box<KubeSource>),
}

/// A governed or known pod on this node.
#[derive(Clone, Debug, Default)]
struct LocalPod {
    id: NsName,
    workload: String,
    uid: String,
    /// The policies that select it.
    policies: Arc<[PolicyId]>,
}

/// Everything that changes.
struct Node {
    config: Config,
    kubepods: Kubepods,
    engine: Engine,
    /// When it started, in seconds since the epoch.
    started: u64,
    /// Ranges that are read from files.
    ranges: Files,
    /// What was compiled for the pods before.
    cache: compile::Cache,
    index: Index,
    source: Source,
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
    /// Whoever else is told of events.
    hub: Arc<Hub>,
    /// Whether the kernel tells what is allowed.
    tells_allowed: bool,
    /// Where this node's workloads sent to.
    flows: Flows,
    uses: Uses,
    /// Records in the ring that were none of ours.
    events_dropped: u64,
    /// Whether all manifests could be read.
    complete: bool,
    /// Namespaces with a policy that is broken and of which this process knows no good version.
    broken: BTreeSet<String>,
    /// Cgroups whose endpoint is the one an earlier agent left, because nothing was sure enough to replace it.
    adopted: BTreeSet<u64>,
    /// Cgroups that were left as they were when policies were applied last, those among them.
    kept: BTreeSet<u64>,
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
    /// The contact with the API server, if there is one.
    contact: Option<Arc<Contact>>,
    /// Keeps the last good state in a file.
    keeper: Option<Keeper>,
    /// When the state in use was written, if it came from that file and the API server has not been heard in full since.
    restored: Option<u64>,
    /// What of the cluster was known in full when that was written.
    heard_then: Demand,
    /// The cgroup of the pod this process runs in.
    own: Option<u64>,
    /// How often programs or pins were found changed and put right.
    repairs: u64,
    /// The programs are attached.
    attached: bool,
    /// Which denials were told lately.
    denials: Denials,
    /// Puts Events on pods, where there is an API server.
    announcer: Option<Announcer>,
    /// Publishes what this node enforces, where that is wanted.
    publisher: Option<Publisher>,
    /// Pods whose policy did not fit when policies were applied last; they keep what they had.
    refused: BTreeSet<NsName>,
    /// When policies were applied last, the kernel did not take them all.
    stale: bool,
    /// What was said last of watches that fail and objects that cannot be read.
    unheard: BTreeSet<String>,
    /// What the policies in force need to know of the cluster.
    demand: Demand,
    /// Since when each pod waits that waits for what its policies need to know, by its cgroup.
    waits: BTreeMap<u64, Instant>,
    /// How many those are.
    unsure: usize,
    /// Since when everything is known that is always followed.
    whole: Option<Instant>,
    /// Whether pods nobody knows are denied: because this node says so, or a namespace.
    strict: bool,
    /// When the first of the changes elsewhere was received that the kernel does not have yet.
    behind: Option<Instant>,
    /// No sooner than this, changes elsewhere are put into force.
    rested: Instant,
    /// There was a long list or another large piece of work: what it took can be given back.
    untidy: bool,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("kubepods", &self.kubepods).finish_non_exhaustive()
    }
}

/// What wakes the agent, besides its clocks: whichever of the two its source has.
struct Inputs {
    manifests: Option<Watch>,
    news: Option<mpsc::Receiver<Message>>,
}

/// Runs until SIGTERM or SIGINT. What is pinned goes on enforcing afterwards, unless it is to be cleaned up.
///
/// # Errors
///
/// When the agent cannot start, or can no longer watch what it must.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watching for SIGINT")?;
    let listener = server::listen(config.listen).await?;
    info!(address = %config.listen, "serving metrics and health");

    let (pins, cleanup) = (config.pins.clone(), config.cleanup_on_exit);
    let socket = status::Socket::listen(status::socket(&config.runtime), "status")?;
    let observers = status::Socket::listen(protocol::socket(&config.runtime), "observe")?;
    let health = Arc::new(Health::new(CHECK_EVERY * 6));
    let (mut node, mut inputs) = Node::start(config, Arc::clone(&health)).await?;
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
    node.begin()?;
    if let Err(failure) = node.turn_allowed() {
        error!(error = format!("{failure:#}"), "allowed flows are not learnt");
    }

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
    let (stop_status, stopped) = tokio::sync::oneshot::channel::<()>();
    let status = socket.map(|(socket, listener)| {
        let node = Arc::clone(&node);
        let tell = Arc::new(move || lock(&node).status_text().map_err(server::CollectError::from));
        (socket, status::serve(listener, tell, stopped))
    });
    let (stop_observers, stopped) = tokio::sync::oneshot::channel::<()>();
    let observers = observers.map(|(socket, listener)| {
        let hub = Arc::clone(&lock(&node).hub);
        let node = Arc::clone(&node);
        let (same, again) = (Arc::clone(&node), Arc::clone(&node));
        let answers = observe::Answers {
            counted: Arc::new(move || lock(&again).counted().map_err(|failure| format!("{failure:#}"))),
            turn: Arc::new(move || lock(&node).turn_allowed().map_err(|failure| format!("{failure:#}"))),
            seen: Arc::new(move |namespaces| {
                lock(&same).seen(&namespaces).map_err(|failure| format!("{failure:#}"))
            }),
        };
        // Ends with the sender, too.
        (socket, observe::serve(listener, hub, answers, async { drop(stopped.await) }))
    });
    let mut check = tokio::time::interval(CHECK_EVERY);
    check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut keep = tokio::time::interval(KEEP_EVERY);
    keep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);

    loop {
        let due = lock(&node).due();
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = check.tick() => {
                let mut node = lock(&node);
                let watched = watch_again(&mut pods, inputs.manifests.as_mut(), &node.kubepods);
                node.watched(watched);
                if node.read_ranges() {
                    node.apply(Instant::now());
                }
                node.check();
                node.attach_first(Instant::now())?;
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
            changed = manifests_changed(&mut inputs.manifests) => {
                let began = Instant::now();
                let manifests = inputs.manifests.as_mut().expect("it has just spoken");
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
            () = until(due) => lock(&node).apply(Instant::now()),
            message = next(&mut inputs.news) => {
                let news = inputs.news.as_mut().expect("it has just spoken");
                lock(&node).take(message, news)?;
            }
            received = events.receive(|denial| lock(&node).tell(&denial)) => {
                let received = received.context("reading events")?;
                if received.malformed > 0 {
                    lock(&node).events_dropped += received.malformed as u64;
                }
            }
            _ = keep.tick() => {
                let mut node = lock(&node);
                node.keep();
                node.tell_repeated();
                node.publish(Instant::now());
                node.tidy();
            }
        }
    }
    if stop.send(()).is_err() {
        debug!("the server had ended before");
    }
    server.await.context("stopping the server")??;
    drop(stop_status);
    if let Some((_socket, serving)) = status {
        serving.await.context("stopping the server for status")?;
    }
    drop(stop_observers);
    if let Some((_socket, serving)) = observers {
        serving.await.context("stopping the server for events")?;
    }
    lock(&node).stop_telling_allowed()?;
    let keeping = lock(&node).keep_last();
    if let Some(keeping) = keeping {
        keeping.await.context("writing the last snapshot")?;
    }
    drop(events);
    let events = lock(&node).events.take();
    drop(node);
    match pins.filter(|_| cleanup) {
        Some(pins) => {
            let removed = loader::unload(&pins)?;
            info!(
                pins = removed.len(),
                "stopping; everything that was pinned is removed, and nothing is enforced any more"
            );
        }
        None => info!("stopping; what is pinned stays in force"),
    }
    log::flush(LAST_LINES);
    if let Some(events) = events {
        events.flush(LAST_LINES);
    }
    Ok(())
}

/// Waits for a change of the manifests; for ever where there are none.
async fn manifests_changed(manifests: &mut Option<Watch>) -> std::io::Result<()> {
    match manifests {
        Some(manifests) => manifests.changed().await,
        None => std::future::pending().await,
    }
}

/// Waits for a time; for ever where there is none.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits for a message; for ever where there is nobody to send one.
async fn next(news: &mut Option<mpsc::Receiver<Message>>) -> Message {
    match news {
        Some(news) => news.recv().await.expect("the source, which sends, lives as long as the node"),
        None => std::future::pending().await,
    }
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
    manifests: Option<&mut Watch>,
    kubepods: &Kubepods,
) -> anyhow::Result<()> {
    if pods.is_none() {
        *pods = Some(cgroup::Watcher::new(kubepods)?);
    }
    manifests.map_or(Ok(()), |manifests| manifests.renew().context("watching manifests"))
}

/// Reads the policy in the ConfigMap `id` as the agent does: whether it holds, and what there is to say about it.
///
/// Text and meaning decide. What else there is to say is told, in the words of the webhook.
#[must_use]
pub fn read_policy(id: &NsName, text: &str) -> (Option<Policy>, Vec<Finding>) {
    let subject = Subject { id, text, old: None, profile: Profile::Off };
    let now = clock::wall_seconds_and_fraction().0;
    let Judgement { policy, findings } = RULES.judge(&subject, now);
    (policy, some(findings))
}

/// Returns as many findings as are worth keeping for as long as the policy is there, errors first.
fn some(mut findings: Vec<Finding>) -> Vec<Finding> {
    if findings.len() > MOST_KEPT {
        findings.sort_by_key(|finding| finding.severity);
        findings.truncate(MOST_KEPT);
    }
    findings.shrink_to_fit();
    findings
}

/// Says what was not said before.
fn say(lines: BTreeSet<String>, said: &mut BTreeSet<String>, speak: fn(&str)) {
    for line in lines.difference(said) {
        speak(line);
    }
    *said = lines;
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
    async fn start(config: Config, health: Arc<Health>) -> anyhow::Result<(Self, Inputs)> {
        let mut inputs = Inputs { manifests: None, news: None };
        let connected = match &config.source {
            SourceConfig::Directory(path) => {
                let watch =
                    Watch::new(path).with_context(|| format!("watching manifests {}", path.display()))?;
                inputs.manifests = Some(watch);
                None
            }
            SourceConfig::Kube { access, .. } => Some(client::connect(access).await?),
        };
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
        let events = match config.print_events {
            true => Some(Lines::stdout(WAITING_EVENTS).context("writing events to standard output")?),
            false => None,
        };
        let adopted = engine.state().endpoints().keys().copied().collect();
        let directory = match &config.source {
            SourceConfig::Directory(path) => path.clone(),
            SourceConfig::Kube { .. } => PathBuf::new(),
        };
        let index: fn(ParsePolicy) -> Index = match &config.source {
            // What is in the files is told, whoever it is about.
            SourceConfig::Directory(_) => Index::new,
            SourceConfig::Kube { .. } => Index::for_pods_here,
        };
        let index = index(read_policy);
        let index = if config.audit { index.auditing() } else { index };
        let mut node = Self {
            strict: config.strict,
            ranges: Files::new(&config.ranges_files)?,
            hub: Arc::new(Hub::new(config.keep_events)),
            config,
            kubepods,
            engine,
            started: clock::wall_seconds_and_fraction().0,
            cache: compile::Cache::default(),
            index,
            source: Source::Directory(DirectorySource::new(directory)),
            cgroups: BTreeMap::new(),
            pods: BTreeMap::new(),
            by_slot: BTreeMap::new(),
            apply_seconds: Arc::new(Histogram::new(metrics::APPLY_BOUNDS)),
            health,
            clock_checked: clock::wall_seconds_and_fraction().0,
            events,
            tells_allowed: false,
            flows: Flows::default(),
            uses: Uses::default(),
            events_dropped: 0,
            complete: false,
            broken: BTreeSet::new(),
            adopted,
            kept: BTreeSet::new(),
            manifest_errors: 0,
            reported: BTreeSet::new(),
            remarked: BTreeSet::new(),
            wrong: BTreeSet::new(),
            retry: false,
            contact: None,
            keeper: None,
            restored: None,
            heard_then: Demand::default(),
            own: None,
            repairs: 0,
            attached: false,
            denials: Denials::default(),
            announcer: None,
            publisher: None,
            refused: BTreeSet::new(),
            stale: false,
            unheard: BTreeSet::new(),
            demand: Demand::default(),
            waits: BTreeMap::new(),
            unsure: 0,
            whole: None,
            behind: None,
            rested: Instant::now(),
            untidy: true,
        };
        node.scan();
        node.read_ranges();
        if let Some((client, contact)) = connected {
            node.contact = Some(contact);
            // What keeps the programs of an earlier agent from judging this one, before it sends anything.
            node.apply(Instant::now());
            inputs.news = Some(node.follow(client)?);
        }
        Ok((node, inputs))
    }

    /// Starts to follow the API server, from the state that was kept if there is one.
    fn follow(&mut self, client: kube::Client) -> anyhow::Result<mpsc::Receiver<Message>> {
        let SourceConfig::Kube { node, snapshot, .. } = self.config.source.clone() else {
            unreachable!("only a node with an API server follows one");
        };
        let options = source::Options {
            node: node.clone(),
            network_policies: self.config.settings.enforce_network_policy,
            ranges: self.config.ranges_namespace.clone(),
            other_ranges: self.ranges.providers().map(str::to_owned).collect(),
        };
        let mut published = Vec::new();
        if let Some(path) = snapshot {
            published = ranges::kept(&ranges::folder(&path));
            published.retain(|(provider, _)| !options.other_ranges.contains(provider));
            let mut ranges = self.index.ranges().clone();
            for (provider, published) in &published {
                published.enter(provider, &mut ranges);
            }
            let change = self.index.set_ranges(ranges);
            self.changed(change);
            let (keeper, kept) = Keeper::open(path, node)?;
            self.keeper = Some(keeper);
            if let Some(kept) = kept {
                info!(
                    written = kept.written,
                    objects = kept.objects.len(),
                    "starting from the last good state, until the API server is heard"
                );
                for object in kept.objects {
                    let change = self.index.apply(object);
                    self.changed(change);
                }
                self.restored = Some(kept.written);
                self.heard_then = kept.heard;
                self.complete = true;
            }
        }
        self.announcer = Some(Announcer::start(client.clone(), &options.node, Instant::now()));
        self.publisher = self
            .config
            .summary
            .as_ref()
            .map(|summary| Publisher::start(client.clone(), &options.node, summary, Instant::now()));
        let (mut source, news) = KubeSource::start(client, options);
        source.adopt(&self.index, published);
        self.source = Source::Kube(Box::new(source));
        Ok(news)
    }

    /// Puts the first state into force.
    fn begin(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        self.scan();
        self.reload();
        // Policies first, then programs: no packet meets a program that does not know its pod's policy yet.
        self.apply(began);
        match self.source {
            Source::Directory(_) => {}
            Source::Kube(_) => {
                self.report_sync();
                if !self.complete && !self.engine.datapath().taken_over {
                    info!("nothing is known of this node's policies yet; nothing is enforced before");
                    return Ok(());
                }
            }
        }
        self.attach(began)
    }

    fn attach(&mut self, began: Instant) -> anyhow::Result<()> {
        let kubepods = self.kubepods.clone();
        self.engine.attach(&kubepods)?;
        self.attached = true;
        self.untidy = true;
        self.health.clear(server::STARTING);
        info!(
            kubepods = %kubepods.path.display(),
            pods = self.pods.len(),
            hz = self.engine.datapath().hz,
            taken_over = self.engine.datapath().taken_over,
            milliseconds = began.elapsed().as_millis(),
            "{}",
            if self.health.reasons().is_empty() { "policies are in force" } else { "running, but not ready" }
        );
        Ok(())
    }

    /// Takes a message, and those that wait behind it, and brings the kernel up to date with all of them.
    fn take(&mut self, first: Message, news: &mut mpsc::Receiver<Message>) -> anyhow::Result<()> {
        let began = first.at;
        let (mut apply, mut status, mut prompt) = (false, false, false);
        let mut policies = false;
        let mut change = Change::NONE;
        let mut message = Some(first);
        let mut left = MOST_MESSAGES;
        let taking = Instant::now();
        while let (Some(next), Source::Kube(source)) = (message.take(), &mut self.source) {
            let taken = source.take(next, &mut self.index);
            change |= taken.change;
            apply |= taken.apply;
            status |= taken.status;
            policies |= taken.policies;
            prompt |= taken.here;
            left -= 1;
            if left > 0 && taking.elapsed() < AT_ONCE {
                // Empty for now, or for ever: the next wait tells.
                message = news.try_recv().ok();
            }
        }
        self.changed(change);
        if status {
            self.report_sync();
        }
        if change.problems || status {
            self.report_policies(BTreeSet::new());
        }
        self.untidy |= status;
        if self.complete && (status || policies || apply && self.concerns()) {
            if status || policies || prompt || Instant::now() >= self.rested {
                self.apply(began);
            } else {
                self.behind.get_or_insert(began);
            }
        }
        self.attach_first(began)
    }

    /// Attaches the programs for the first time, once everything is known that this node's policies need, or nearly: on a node that
    /// nothing was enforced on so far, a pod is not cut off for the moment its policies still wait.
    fn attach_first(&mut self, began: Instant) -> anyhow::Result<()> {
        if self.attached || !self.complete {
            return Ok(());
        }
        let since = *self.whole.get_or_insert_with(Instant::now);
        if self.unsure == 0 || since.elapsed() >= LAST_WAIT {
            self.attach(began)?;
        }
        Ok(())
    }

    /// Reads ranges from files that have changed.
    fn read_ranges(&mut self) -> bool {
        let mut ranges = self.index.ranges().clone();
        self.ranges.reload(&mut ranges, clock::wall_seconds_and_fraction().0);
        let change = self.index.set_ranges(ranges);
        self.changed(change);
        change.cluster
    }

    /// Keeps ranges that were published on the disk, for a start without an API server.
    fn keep_ranges(&mut self) {
        let (Source::Kube(source), SourceConfig::Kube { snapshot: Some(path), .. }) =
            (&mut self.source, &self.config.source)
        else {
            return;
        };
        for (provider, published) in source.take_news() {
            let folder = ranges::folder(path);
            _ = tokio::task::spawn_blocking(move || {
                if let Err(error) = ranges::keep(&folder, &provider, &published) {
                    error!(provider, %error, "ranges cannot be kept; a start without an API server would begin from older ones");
                }
            });
        }
    }

    /// Takes note that something has changed, for the kept state.
    fn changed(&mut self, change: Change) {
        if change.any()
            && let Some(keeper) = &mut self.keeper
        {
            keeper.changed();
        }
    }

    /// Returns whether what has changed, besides policies, may matter to a pod of this node: most changes of pods elsewhere do not.
    fn concerns(&mut self) -> bool {
        let changes = self.index.take_changes();
        // Namespaces say how their pods start, and a new one may be what a selector waits for.
        let namespaces = changes.everything || !changes.namespaces.is_empty();
        self.cache.absorb(self.index.cluster(), changes) || namespaces
    }

    /// Sees what of the API server is known, and says what is not.
    fn report_sync(&mut self) {
        let Source::Kube(source) = &self.source else { return };
        let status = source.status();
        let synced = source.synced();
        if synced {
            if self.restored.take().is_some() {
                info!("the API server was heard in full; the kept state is replaced");
                let change = source.forget_unfollowed(&mut self.index);
                if change.any()
                    && let Some(keeper) = &mut self.keeper
                {
                    keeper.changed();
                }
            }
            if !self.complete {
                info!(watches = status.len(), "the API server was heard in full");
            }
            self.complete = true;
            self.health.clear(NOT_SYNCED);
        } else {
            let missing: Vec<String> = status
                .iter()
                .filter(|watch| watch.subject.is_base() && !watch.synced)
                .map(|watch| match &watch.failing {
                    Some(why) => format!("{} ({why})", watch.subject),
                    None => watch.subject.to_string(),
                })
                .collect();
            self.health
                .not_ready(NOT_SYNCED, format!("not heard yet from the API server: {}", missing.join(", ")));
        }
        let failing = status.iter().filter_map(|watch| {
            let why = watch.failing.as_ref()?;
            Some((
                format!("{}", watch.subject),
                format!("the API server does not tell of {}: {why}", watch.subject),
            ))
        });
        let rejected = source.rejected().map(|(name, why)| {
            (
                "rejected".to_owned(),
                format!("{name} cannot be read: {why}; its last readable version, if any, stays"),
            )
        });
        let lines = few(failing.chain(rejected));
        say(lines, &mut self.unheard, |line| warn!("{line}"));
    }

    /// Writes the state to its file if that is due.
    fn keep(&mut self) {
        self.keep_ranges();
        if let (Some(keeper), Source::Kube(source)) = (&mut self.keeper, &self.source)
            && self.complete
            && self.restored.is_none()
        {
            keeper.keep(&self.index, &source.known());
        }
    }

    /// Writes the state once more, if it has changed since.
    fn keep_last(&mut self) -> Option<tokio::task::JoinHandle<()>> {
        let Source::Kube(source) = &self.source else { return None };
        if self.complete && self.restored.is_none() {
            self.keeper.as_mut()?.last(&self.index, &source.known())
        } else {
            None
        }
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

    /// Reads the manifests, if that is where the state comes from; returns whether policies have to be compiled again.
    fn reload(&mut self) -> bool {
        let Source::Directory(source) = &mut self.source else { return false };
        let reload = source.reload(&mut self.index);
        self.manifest_errors = reload.errors.len() as u64;
        let errors = reload.errors.iter().map(|error| (error.path.display().to_string(), error.to_string()));
        let mut report = few(errors);
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
        let broken = self.broken.clone();
        self.report_policies(report);
        self.changed(reload.change);
        let changed = reload.change.cluster || reload.complete != self.complete || broken != self.broken;
        self.complete = reload.complete;
        changed
    }

    /// Says what is to be said of policies, after `report`, and sees which namespaces have none that is known to be good.
    fn report_policies(&mut self, report: BTreeSet<String>) {
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
        let mut lines = few(findings);
        lines.extend(report);
        self.broken = self
            .index
            .problems()
            .filter(|problem| problem.in_force == InForce::Nothing)
            .filter(|problem| {
                problem.policy.kind == PolicyKind::ConfigMap || self.config.settings.enforce_network_policy
            })
            .map(|problem| problem.policy.id.namespace.clone())
            .collect();
        say(lines, &mut self.reported, |line| warn!("{line}"));
    }

    /// Returns when changes that wait are to be put into force, if some do.
    fn due(&self) -> Option<Instant> {
        self.behind.map(|_| self.rested)
    }

    /// Gives memory back that is no longer used, after what took much.
    fn tidy(&mut self) {
        if std::mem::take(&mut self.untidy) {
            heap::give_back();
        }
    }

    /// Compiles and brings the kernel up to date. `began` is when the change that made it necessary was seen, unless changes
    /// elsewhere have waited for longer.
    fn apply(&mut self, began: Instant) {
        let began = self.behind.take().map_or(began, |behind| behind.min(began));
        let working = Instant::now();
        self.bring(began);
        let (times, most) = RESTS;
        let took = working.elapsed();
        self.rested = Instant::now() + (took * times).min(most);
        self.untidy |= took >= LARGE;
    }

    fn bring(&mut self, began: Instant) {
        let changes = self.index.take_changes();
        self.own = own_cgroup(&self.cgroups, self.config.own_uid.as_deref(), &self.kubepods);
        let cluster = self.index.cluster();
        let local: Vec<(&NsName, &Pod)> = match &self.source {
            Source::Directory(_) => cluster.pods.local().collect(),
            // Until everything was heard, a pod may lack a policy that is there.
            Source::Kube(_) if !self.complete => Vec::new(),
            Source::Kube(source) => {
                source.local().iter().filter_map(|id| Some((id, cluster.pods.get(id)?))).collect()
            }
        };
        let mut claims = claims(&local, &self.cgroups);
        if let Some(own) = self.own {
            claims.remove(&own);
        }
        let mut compiled: BTreeMap<NsName, Compiled> = compile::compile_all_cached(
            &mut self.cache,
            cluster,
            &self.config.settings,
            changes,
            claims.values().flatten().copied(),
        );
        let heard = match &self.source {
            Source::Directory(_) => Demand::everything(),
            // It may have been written while something was not heard yet, and policies may need more by now.
            Source::Kube(_) if self.restored.is_some() => self.heard_then.clone(),
            Source::Kube(source) => source.known(),
        };
        let mut demands = demand::Demands::new(cluster, &self.config.settings);
        let (mut remarks, mut wrong) = (BTreeSet::new(), BTreeSet::new());
        let mut wanted: BTreeMap<u64, Wanted> = BTreeMap::new();
        let mut waiting: BTreeSet<u64> = BTreeSet::new();
        let mut unsure = 0_usize;
        let (mut waits, now) = (BTreeMap::new(), Instant::now());
        let mut unmatched: HashSet<&Unmatched> = HashSet::new();
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
            let pod = &cluster.pods[id];
            let local = LocalPod {
                id: id.clone(),
                workload: pod.workload().to_owned(),
                uid: pod.uid().to_owned(),
                policies: Arc::default(),
            };
            self.pods.insert(*cgroup, local);
            let compiled = &compiled[id];
            let sure = heard.covers(demands.of(&compiled.policies));
            if sure {
                // Before that, what is missing may only not have been heard of.
                unmatched.extend(&compiled.unresolved);
            }
            // What is missing may be the policy that governs it.
            if sure && (self.complete || compiled.set.is_some() || known.contains_key(cgroup)) {
                wanted.insert(*cgroup, Wanted::new(id.clone(), compiled));
                continue;
            }
            unsure += usize::from(!sure);
            let since = *self.waits.get(cgroup).unwrap_or(&now);
            waits.insert(*cgroup, since);
            // What is known of its policies so far is narrower than no policy at all, even where it is wider than they are.
            let open = known.get(cgroup).is_some_and(Option::is_none);
            if open && compiled.set.is_some() && now.duration_since(since) >= LONGEST_WAIT {
                wanted.insert(*cgroup, Wanted::new(id.clone(), compiled));
                continue;
            }
            if !sure && known.contains_key(cgroup) && !self.engine.state().unprotected().contains(cgroup) {
                waiting.insert(*cgroup);
            } else if starts_open(cluster, &id.namespace, self.config.strict) {
                wanted.insert(*cgroup, Wanted::unprotected(id.clone()));
            }
        }
        // Thousands of policies may lack the same: the first of them is named.
        let mut lacking: BTreeMap<String, (&Unmatched, bool)> = BTreeMap::new();
        for unmatched in &unmatched {
            let (first, others) = lacking.entry(unmatched.why.to_string()).or_insert((unmatched, false));
            *others |= *first != *unmatched;
            if unmatched.rule < first.rule {
                *first = unmatched;
            }
        }
        remarks.extend(lacking.into_values().map(|(first, others)| {
            format!("{first}{}", if others { "; and so it is with other policies" } else { "" })
        }));
        drop(unmatched);
        for pod in self.pods.values_mut() {
            if let Some(compiled) = compiled.remove(&pod.id) {
                pod.policies = compiled.policies.into();
            }
        }
        self.unsure = unsure;
        self.waits = waits;
        let demand = demands.total();
        let strict = self.config.strict || asks_for_strict(cluster);
        // Manifests name all pods there are; an API server may forget one that still runs.
        let opens = !strict && matches!(self.source, Source::Kube(_));
        let governed = |cgroup| known.get(&cgroup).is_some_and(Option::is_some);
        let nobodys = self
            .cgroups
            .values()
            .filter(|cgroup| !claims.contains_key(&cgroup.id) && self.own != Some(cgroup.id));
        let mut held = BTreeSet::new();
        for cgroup in nobodys {
            match unclaimed(cgroup, governed(cgroup.id), opens) {
                Unclaimed::Held => {
                    held.insert(cgroup.id);
                }
                Unclaimed::Passes => {
                    let name = format!("a static pod ({})", cgroup.uid);
                    wanted.insert(cgroup.id, Wanted::unprotected(NsName::new("", name)));
                }
                Unclaimed::Unknown => {}
            }
        }
        self.own.inspect(|own| {
            wanted.insert(*own, Wanted::ungoverned(NsName::new("", "the agent's own pod")));
        });
        let present: BTreeSet<u64> = self.cgroups.values().map(|cgroup| cgroup.id).collect();
        let doubtful = |cgroup: &u64| {
            let broken = self.pods.get(cgroup).is_some_and(|pod| self.broken.contains(&*pod.id.namespace));
            // One that nobody governed may be governed at any time.
            let tightened = known.get(cgroup) == Some(&None)
                && wanted.get(cgroup).is_some_and(|wanted| wanted.set.is_some());
            // What is pinned is never older than what was kept in a file.
            let unheard = !self.complete || self.restored.is_some();
            present.contains(cgroup) && (unheard || broken) && !tightened && self.own != Some(*cgroup)
        };
        let adopted: BTreeSet<u64> = self.adopted.iter().copied().filter(doubtful).collect();
        if !adopted.is_empty() {
            remarks.insert(format!("{} pods keep what an earlier agent gave them", adopted.len()));
        }
        if unsure == 0 {
            self.health.clear(WAITING);
        } else {
            let reason = format!(
                "what the policies of {unsure} pods need to know is not heard yet; {} of them keep what they have until then",
                waiting.len()
            );
            self.health.not_ready(WAITING, reason);
        }
        let kept: BTreeSet<u64> = adopted.iter().chain(&waiting).chain(&held).copied().collect();
        if strict != self.strict {
            match self.engine.datapath_mut().set(setting::STRICT, u64::from(strict)) {
                Ok(()) => self.strict = strict,
                Err(failure) => {
                    self.failed(&failure.into());
                    return;
                }
            }
        }
        self.retry = false;
        self.stale = true;
        self.refused.clear();
        let histogram = Arc::clone(&self.apply_seconds);
        match self.engine.apply(&wanted, &kept, || histogram.observe(began.elapsed())) {
            Ok(applied) => {
                self.adopted = adopted;
                self.stale = false;
                self.health.clear(NOT_IN_KERNEL);
                if applied.refused.is_empty() {
                    self.health.clear(NOT_FITTING);
                }
                for refused in &applied.refused {
                    self.refused.extend(refused.pods.iter().cloned());
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
        self.uses.keep(self.engine.take_given_up());
        // Until all is in force, what counters show may still be what the policies before have decided.
        if !self.stale
            && !self.retry
            && let Err(failure) = self.follow_uses()
        {
            error!(error = %failure, "what destinations came to cannot be told from what others of their names did");
        }
        self.kept = kept;
        say(remarks, &mut self.remarked, |line| warn!("{line}"));
        say(wrong, &mut self.wrong, |line| error!("{line}"));
        self.by_slot = self
            .engine
            .state()
            .endpoints()
            .iter()
            .filter_map(|(cgroup, endpoint)| Some((endpoint.as_ref()?.slot, self.pods.get(cgroup)?.clone())))
            .collect();
        self.demand = demand;
        self.follow_demand();
    }

    /// Follows what the policies in force need, and no longer what they do not.
    fn follow_demand(&mut self) {
        if let Source::Kube(source) = &mut self.source
            && self.complete
            && self.restored.is_none()
        {
            let change = source.want(&self.demand, &mut self.index, Instant::now());
            self.changed(change);
        }
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
        // Before the links, which would otherwise be all that a new agent finds.
        match self.engine.datapath_mut().repin() {
            Ok(gone) => {
                self.health.clear(NOT_PINNED);
                if !gone.is_empty() {
                    warn!(maps = gone.join(","), "maps were no longer pinned; pinned them again");
                    self.repairs += gone.len() as u64;
                }
            }
            Err(failure) => {
                let reason = format!("maps are no longer pinned: {failure}");
                error!("{reason}");
                self.health.not_ready(NOT_PINNED, reason);
            }
        }
        match self.engine.datapath().detached(&self.kubepods) {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => {
                warn!(programs = gone.join(","), "programs were detached or unpinned; attaching them again");
                self.repairs += gone.len() as u64;
                let kubepods = self.kubepods.clone();
                if let Err(failure) = self.engine.attach(&kubepods) {
                    self.failed(&failure.into());
                }
            }
            Err(failure) => self.failed(&failure.into()),
        }
        let began = Instant::now();
        let scanned = self.scan();
        let reloaded = self.reload();
        self.report_sync();
        if scanned || reloaded || self.retry || !self.waits.is_empty() {
            self.apply(began);
        }
        self.follow_demand();
    }

    /// Tells of an event, with names: the first of its kind now, the others when their window ends.
    fn tell(&mut self, denial: &Denial) {
        let now = Instant::now();
        if !self.denials.is_new(denial, now) {
            return;
        }
        let pod = self.by_slot.get(&denial.slot);
        let rule = self.engine.state().allocator().rule(denial.rule);
        let mask = self.config.mask;
        if let Some(pod) = pod {
            let labels = self.index.cluster().pods.get(&pod.id).map(|pod| &pod.labels);
            self.flows.note(denial, 1, pod, labels, rule, mask);
        }
        let nearest = if denial.verdict == Verdict::Allow {
            None
        } else {
            let look = || {
                let pod = &pod?.id;
                let flow = Flow {
                    destination: denial.destination,
                    protocol: denial.protocol,
                    port: denial.destination_port,
                };
                let (cluster, settings) = (self.index.cluster(), &self.config.settings);
                // A pod that is not known went a moment ago.
                reference::nearest_allow(cluster, settings, pod, &flow, denial.time.0).unwrap_or_default()
            };
            let nearest = self.denials.nearest(now, look);
            if let (Some(announcer), Some(pod)) = (&mut self.announcer, pod) {
                announcer.tell(now, denial, pod, rule, nearest.as_ref(), mask);
            }
            nearest
        };
        let event = report::observation(denial, pod, rule, 1, nearest.as_ref(), mask);
        self.hand_out(event);
    }

    /// Tells how often events came again that were told before.
    fn tell_repeated(&mut self) {
        for Repeated { last, count } in self.denials.ended(Instant::now()) {
            let rule = self.engine.state().allocator().rule(last.rule);
            let pod = self.by_slot.get(&last.slot);
            if let Some(pod) = pod {
                let labels = self.index.cluster().pods.get(&pod.id).map(|pod| &pod.labels);
                self.flows.note(&last, count, pod, labels, rule, self.config.mask);
            }
            let event = report::observation(&last, pod, rule, count, None, self.config.mask);
            self.hand_out(event);
        }
        self.flows.forget(|cgroup| self.pods.contains_key(&cgroup));
        if let Some(announcer) = &mut self.announcer {
            announcer.forget(|cgroup| self.pods.contains_key(&cgroup));
        }
    }

    /// Hands an event to all who read them: what is allowed only to those who asked for it.
    fn hand_out(&mut self, event: Observation) {
        if event.verdict != Verdict::Allow {
            self.events_dropped += print(self.events.as_ref(), &event);
        }
        if self.hub.listens() {
            self.hub.publish(event);
        }
    }

    /// Has the kernel tell what is allowed, or no longer, as those who listen want it.
    fn turn_allowed(&mut self) -> anyhow::Result<()> {
        self.tell_allowed(self.config.learn_allowed || self.hub.wants_allowed())
    }

    /// Has the kernel tell nothing of what is allowed: nobody will read it.
    fn stop_telling_allowed(&mut self) -> anyhow::Result<()> {
        self.tell_allowed(false)
    }

    fn tell_allowed(&mut self, wanted: bool) -> anyhow::Result<()> {
        if wanted != self.tells_allowed {
            let turning = "turning on or off what the kernel tells of allowed flows";
            self.engine.tell_allowed(wanted).context(turning)?;
            self.tells_allowed = wanted;
        }
        Ok(())
    }

    /// Returns where the workloads of these namespaces sent to, and how often their policies' destinations were used.
    fn seen(&self, namespaces: &BTreeSet<String>) -> anyhow::Result<Vec<protocol::Message>> {
        let mut seen = self.flows.told(namespaces, self.index.cluster(), self.index.ranges());
        let wanted = |rule: &RuleName| {
            let policy = &rule.policy;
            let named = namespaces.is_empty() || namespaces.contains(&policy.id.namespace);
            named && policy.kind == PolicyKind::ConfigMap
        };
        let allocator = self.engine.state().allocator();
        for (slot, rule) in allocator.rules().filter(|(_, rule)| wanted(rule)) {
            let counted = self.engine.maps().rule_counter(slot)?.packets;
            seen.extend(flows::use_of(rule, self.uses.of(rule, counted)));
        }
        // Of destinations that no pod needs now.
        for (rule, packets) in self.uses.before().filter(|(rule, _)| wanted(rule)) {
            if allocator.slot_of(&rule).is_none() {
                seen.extend(flows::use_of(&rule, packets));
            }
        }
        Ok(seen)
    }

    /// Takes note of destinations that have become others.
    fn follow_uses(&mut self) -> Result<(), Refused> {
        let Self { uses, engine, index, .. } = self;
        let counted = |rule: &RuleName| match engine.state().allocator().slot_of(rule) {
            Some(slot) => engine.maps().rule_counter(slot).map(|counter| Some(counter.packets)),
            None => Ok(None),
        };
        uses.follow(&index.cluster().policies, counted)
    }

    /// Returns this node's counters: of each governed pod, of the pods nobody knows, and of each destination.
    fn counted(&self) -> anyhow::Result<Vec<protocol::Message>> {
        let mut told = vec![protocol::Message::Node(self.node_name())];
        for (cgroup, pod) in &self.pods {
            let Some(counters) = self.engine.pod_counters(*cgroup)? else { continue };
            told.push(flows::use_of_pod(Some(pod), &counters));
        }
        let unknown = self.engine.maps().counters(0)?;
        if unknown.iter().any(|counter| counter.packets > 0) {
            told.push(flows::use_of_pod(None, &unknown));
        }
        for (slot, rule) in self.engine.state().allocator().rules() {
            told.extend(flows::use_of(rule, self.engine.maps().rule_counter(slot)?.packets));
        }
        Ok(told)
    }
}

/// Writes an event for whoever reads them; returns how many could not be written. What does not fit is counted there.
fn print(events: Option<&Lines>, event: &Observation) -> u64 {
    debug!(?event, "not allowed");
    let Some(events) = events else { return 0 };
    match serde_json::to_string(event) {
        Ok(line) => {
            events.send(format!("{line}\n").into_bytes());
            0
        }
        Err(failure) => {
            error!(error = %failure, "an event cannot be written");
            1
        }
    }
}

/// Returns whether pods of a namespace may send before their policies are known: as the namespace says, or else as the node does.
fn starts_open(cluster: &Cluster, namespace: &str, strict: bool) -> bool {
    let (label, closed, open) = POD_START;
    match cluster.namespaces.get(namespace).and_then(|labels| labels.get(label)) {
        Some(value) if value == closed => false,
        Some(value) if value == open => true,
        _ => !strict,
    }
}

/// Returns whether a namespace wants its pods denied while nobody knows them. Of a pod that nobody knows, nobody knows the namespace
/// either, so this holds for all.
fn asks_for_strict(cluster: &Cluster) -> bool {
    let (label, closed, _) = POD_START;
    cluster.namespaces.values().any(|labels| labels.get(label).is_some_and(|value| value == closed))
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

    #[test]
    fn the_log_names_a_few_findings_and_counts_the_rest() {
        let lines = (0..1000).map(|i| ("policy p".to_owned(), format!("policy p: {i}")));
        let few = few(lines.chain([("policy q".to_owned(), "policy q: x".to_owned())]));
        assert_eq!(few.len(), MOST_FINDINGS + 2);
        assert!(few.contains("policy p: 995 more"), "{few:?}");
    }
}
