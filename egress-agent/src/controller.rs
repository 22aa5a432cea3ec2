//! The controller: what one process does for the whole cluster, and no packet waits for.
//!
//! Several may run; the one that holds the [`lease`] works. Its work are [`ranges`], [`policies`] and [`reports`]. Each write is preceded by a look at the lease, and
//! whoever loses it is stopped at once. Nodes go on with what they have when there is none.

mod events;
#[cfg(test)]
mod fake;
pub mod lease;
mod metrics;
pub mod policies;
pub mod ranges;
pub mod reports;
pub mod startup;

pub use metrics::FAMILIES;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
    task::JoinSet,
};
use tracing::{error, info};

use self::{
    events::Events,
    lease::{Elector, Standing, Timing},
    ranges::AllCounts,
};
use crate::{
    k8s::client::{self, Access},
    ranges::{
        accept,
        fetch::{self, Fetcher, Proxy, Roots},
        providers,
    },
    telemetry::server::{self as telemetry, Health},
};

/// Tells the second since the epoch, UTC.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The version of what is not there: no object has it. Applied with it, an object is made, or refused with 409 where there is one of its
/// name already; an apply without a version would take that over.
const ABSENT: &str = "1";

/// How often the loop says that it turns.
const BEAT: Duration = Duration::from_secs(2);

const NO_LEASE: &str = "lease";

/// How to run.
pub struct Config {
    /// How to reach the API server.
    pub access: Access,
    /// The namespace of the Lease, and of what is published.
    pub namespace: String,
    /// The name of the Lease.
    pub lease: String,
    /// What this process is called in it.
    pub identity: String,
    /// How the Lease is held.
    pub timing: Timing,
    /// Where metrics and health are served.
    pub telemetry: SocketAddr,
    /// The providers whose ranges are published; each with its documents, if they are in files.
    pub providers: Vec<(String, Vec<PathBuf>)>,
    /// Where a provider's documents are downloaded instead.
    pub urls: Vec<(String, String)>,
    /// How often providers are asked.
    pub every: Duration,
    /// Whose certificates are trusted.
    pub roots: Roots,
    /// What looks like an accident.
    pub limits: accept::Limits,
    /// The taint that new nodes lose when their agent is ready, if they have one.
    pub startup: Option<startup::Options>,
    /// How policies are followed.
    pub policies: policies::Options,
    /// How it is reported what became of them.
    pub reports: reports::Options,
}

/// This process does not hold the lease, so it may not write.
#[derive(Debug, thiserror::Error)]
#[error("this controller does not lead any more")]
pub struct NotLeading;

/// Says whether this process may write.
#[derive(Clone, Debug)]
pub struct Lead(watch::Receiver<Standing>);

impl Lead {
    /// To be asked before each write.
    ///
    /// # Errors
    ///
    /// When it may not.
    pub fn permit(&self) -> Result<(), NotLeading> {
        if self.0.borrow().leads(Instant::now()) { Ok(()) } else { Err(NotLeading) }
    }
}

/// What the parts of the work have in common.
#[derive(Clone)]
struct Means {
    lead: Lead,
    events: Events,
    clock: Clock,
}

/// What the leader does.
struct Work {
    client: Client,
    sources: Vec<Arc<ranges::Source>>,
    options: ranges::Options,
    fetcher: Option<Fetcher>,
    startup: Option<startup::Options>,
    counts: Arc<AllCounts>,
    policies: policies::Options,
    policy_counts: Arc<policies::Counts>,
    reports: reports::Options,
    report_counts: Arc<reports::Counts>,
    event_counts: Arc<events::Counts>,
    clock: Clock,
    lead: Lead,
}

impl Work {
    fn begin(&self) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        if let Some(options) = &self.startup {
            tasks.spawn(startup::Remover::new(&self.client, options, self.lead.clone()).run());
        }
        let (events, writing) =
            Events::new(self.client.clone(), self.lead.clone(), Arc::clone(&self.event_counts));
        // It ends with the last of those below, so not by itself.
        tasks.spawn(writing);
        let means = Means { lead: self.lead.clone(), events, clock: Arc::clone(&self.clock) };
        for source in &self.sources {
            let follower = ranges::Follower::new(
                &self.client,
                Arc::clone(source),
                self.options.clone(),
                self.fetcher.clone(),
                &means,
                self.counts.of(source.provider.name()),
            );
            tasks.spawn(follower.run());
        }
        let (facts, known) = watch::channel(None);
        let reconciler = policies::Reconciler::new(
            self.client.clone(),
            self.policies.clone(),
            means,
            Arc::clone(&self.policy_counts),
            facts,
        );
        tasks.spawn(reconciler.run());
        let reporter = reports::Reporter::new(
            self.client.clone(),
            self.reports.clone(),
            self.lead.clone(),
            Arc::clone(&self.report_counts),
            Arc::clone(&self.clock),
            known,
        );
        tasks.spawn(reporter.run());
        tasks
    }
}

fn sources(config: &Config) -> anyhow::Result<Vec<Arc<ranges::Source>>> {
    let mut sources: Vec<ranges::Source> = Vec::new();
    for (name, files) in &config.providers {
        let Some(provider) = providers::provider(name) else {
            let known: Vec<&str> = providers::PROVIDERS.iter().map(|known| known.name()).collect();
            anyhow::bail!("no provider {name:?}; there are {}", known.join(", "));
        };
        let source = match sources.iter_mut().find(|source| source.provider.name() == provider.name()) {
            Some(source) => source,
            None => {
                sources.push(ranges::Source { provider, files: Vec::new(), urls: Vec::new() });
                sources.last_mut().expect("it was just added")
            }
        };
        source.files.extend(files.iter().cloned());
    }
    for (name, url) in &config.urls {
        let known = sources.iter_mut().find(|source| source.provider.name().eq_ignore_ascii_case(name));
        known
            .with_context(|| format!("an address for {name:?}, which is not among the providers"))?
            .urls
            .push(url.clone());
    }
    for source in &sources {
        let documents = source.provider.urls().len();
        for (what, count) in [("files", source.files.len()), ("addresses", source.urls.len())] {
            anyhow::ensure!(
                count == 0 || count == documents,
                "{} has {documents} documents, and {count} {what} are named",
                source.provider.name()
            );
        }
    }
    Ok(sources.into_iter().map(Arc::new).collect())
}

/// Runs the controller until it is told to end.
///
/// # Errors
///
/// When it cannot start, or a server of its own fails for good.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watching for SIGINT")?;
    let listener = telemetry::listen(config.telemetry).await?;
    let sources = sources(&config)?;
    let fetcher = if sources.iter().any(|source| source.files.is_empty()) {
        let proxy = Proxy::from_variables(|name| std::env::var(name).ok())?;
        Some(Fetcher::new(&config.roots, proxy, fetch::Limits::default())?)
    } else {
        None
    };
    let (client, _contact) = client::connect(&config.access).await?;

    let health = Arc::new(Health::new(BEAT * 10));
    health.not_ready(NO_LEASE, "nothing is known of the lease yet");
    health.clear(telemetry::STARTING);
    let counts = Arc::new(AllCounts::default());
    let policy_counts = Arc::new(policies::Counts::default());
    let report_counts = Arc::new(reports::Counts::default());
    let event_counts = Arc::new(events::Counts::default());
    let leases: Api<Lease> = Api::namespaced(client.clone(), &config.namespace);
    let (elector, mut standing) = Elector::new(leases, &config.lease, &config.identity, config.timing);
    let clock: Clock = Arc::new(|| crate::kernel::clock::wall_seconds_and_fraction().0);
    let work = Work {
        client,
        sources,
        options: ranges::Options {
            namespace: config.namespace.clone(),
            every: config.every,
            limits: config.limits,
            instance: config.policies.instance.clone(),
        },
        fetcher,
        startup: config.startup,
        counts: Arc::clone(&counts),
        policies: config.policies,
        policy_counts: Arc::clone(&policy_counts),
        reports: config.reports,
        report_counts: Arc::clone(&report_counts),
        event_counts: Arc::clone(&event_counts),
        clock: Arc::clone(&clock),
        lead: Lead(standing.clone()),
    };
    let scraped = metrics::Sources {
        counts,
        policies: policy_counts,
        reports: report_counts,
        events: event_counts,
        standing: standing.clone(),
        clock,
    };
    let (end_telemetry, telemetry_ends) = oneshot::channel::<()>();
    let serving = tokio::spawn(telemetry::serve(
        listener,
        Arc::new(move || Ok(scraped.families())),
        Arc::clone(&health),
        telemetry::Limits::default(),
        async {
            // A sender that is gone says the same.
            drop(telemetry_ends.await);
        },
    ));
    let (stop, stopped) = oneshot::channel::<()>();
    let mut electing = tokio::spawn(elector.run(async {
        drop(stopped.await);
    }));

    let mut tasks: Option<JoinSet<()>> = None;
    let mut beat = tokio::time::interval(BEAT);
    let mut broken = None;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = beat.tick() => health.beat(),
            changed = standing.changed() => if changed.is_err() { break },
            ended = &mut electing => {
                broken = Some(anyhow::anyhow!("what holds the lease ended: {ended:?}"));
                break;
            }
            Some(ended) = ended(&mut tasks) => {
                // Nothing of it ends by itself, so it has panicked. The next process begins anew.
                broken = Some(anyhow::anyhow!("a part of the work ended: {ended:?}"));
                break;
            }
        }
        if serving.is_finished() {
            break;
        }
        let now = standing.borrow().clone();
        match &now {
            Standing::Unknown { why } if why.is_empty() => {}
            Standing::Unknown { why } => {
                health.not_ready(NO_LEASE, format!("the lease cannot be read or written: {why}"));
            }
            _ => health.clear(NO_LEASE),
        }
        match (now.leads(Instant::now()), &tasks) {
            (true, None) => tasks = Some(work.begin()),
            (false, Some(_)) => {
                error!("the work ends, because another controller may have taken it over");
                tasks = None;
            }
            _ => {}
        }
    }
    info!("ending");
    health.not_ready("ending", "it was told to end");
    if let Some(mut tasks) = tasks {
        tasks.shutdown().await;
    }
    // Now nothing is written any more.
    drop(stop);
    if broken.is_none() {
        electing.await.context("giving the lease back")?;
    }
    drop(end_telemetry);
    serving.await.context("the server for metrics and health ended early")??;
    broken.map_or(Ok(()), Err)
}

/// Waits until one of them ends; for ever where there are none.
async fn ended(tasks: &mut Option<JoinSet<()>>) -> Option<Result<(), tokio::task::JoinError>> {
    match tasks {
        Some(tasks) if !tasks.is_empty() => tasks.join_next().await,
        _ => std::future::pending().await,
    }
}
