//! The webhook: the API server asks it whether a policy may be written.
//!
//! A request goes one way: [`server`] (TLS, HTTP, limits) reads its bytes, [`review`] makes an answer of them with the judge of
//! [`crate::check`], and what that needs besides comes from [`namespaces`] and [`ranges`]. [`keeper`] sees to the certificate that [`served`]
//! shows, by the plan that [`certificates`] makes.
//!
//! Whatever fails, the answer is no, or there is none, which the API server takes for one.

pub mod certificates;
pub mod keeper;
pub mod metrics;
pub mod namespaces;
pub mod ranges;
pub mod review;
pub mod served;
pub mod server;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    task::JoinSet,
};
use tracing::info;

use self::{
    keeper::{Keeper, Place},
    metrics::{Counts, Sources},
    namespaces::Namespaces,
    ranges::Follower,
    served::Served,
    server::{Judge, Limits},
};
use crate::{
    check::Rules,
    heap,
    k8s::client::{self, Access},
    telemetry::server::{self as telemetry, Health},
};

/// Tells the second since the epoch, UTC.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// How often the loop says that it turns.
const BEAT: Duration = Duration::from_secs(2);

/// Where the certificate comes from.
#[derive(Clone, Debug)]
pub enum Certificates {
    /// The webhook makes them itself, and keeps them here.
    Kept(Place),
    /// Somebody else does, and writes them to these files.
    Files {
        /// The chain, as PEM.
        certificate: PathBuf,
        /// The key, as PEM.
        key: PathBuf,
    },
}

/// How to run.
pub struct Config {
    /// How to reach the API server.
    pub access: Access,
    /// What policies are judged by.
    pub rules: Rules,
    /// Where the controller publishes ranges, if they are to be followed.
    pub ranges_namespace: Option<String>,
    /// Where the API server asks.
    pub listen: SocketAddr,
    /// Where metrics and health are served, without TLS.
    pub telemetry: SocketAddr,
    /// Where the certificate comes from.
    pub certificates: Certificates,
    /// What clients may take.
    pub limits: Limits,
    /// How long to go on after having been told to end, until nobody asks here any more.
    pub farewell: Duration,
}

/// Runs the webhook until it is told to end.
///
/// # Errors
///
/// When it cannot start, or one of its servers fails for good.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watching for SIGINT")?;
    let plain = telemetry::listen(config.telemetry).await?;
    let listener = tokio::net::TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {} for the API server", config.listen))?;
    let (client, _contact) = client::connect(&config.access).await?;

    let health = Arc::new(Health::new(BEAT * 10));
    health.not_ready(namespaces::NOT_HEARD, "the API server has not told of all namespaces yet");
    health.not_ready(keeper::NO_CERTIFICATE, "there is none yet");
    health.clear(telemetry::STARTING);
    let served = Arc::new(Served::default());
    let namespaces = Arc::new(Namespaces::default());
    let counts = Arc::new(Counts::default());
    let clock = server::wall_clock();

    let known = Arc::clone(&namespaces);
    let (watching, watchful) = (client.clone(), Arc::clone(&health));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { known.follow(watching, &watchful).await });
    let rules = Arc::new(config.rules);
    let mut ranges = None;
    if let Some(namespace) = config.ranges_namespace {
        let follower = Follower::new(Arc::clone(&rules));
        ranges = Some(follower.interruptions());
        tasks.spawn(follower.run(client.clone(), namespace));
    }
    let mut troubles = Arc::new(AtomicU64::new(0));
    match config.certificates {
        Certificates::Kept(place) => {
            let keeper =
                Keeper::new(client, place, Arc::clone(&served), Arc::clone(&health), Arc::clone(&clock));
            troubles = keeper.troubles();
            tasks.spawn(keeper.run());
        }
        Certificates::Files { certificate, key } => {
            let (served, health) = (Arc::clone(&served), Arc::clone(&health));
            tasks.spawn(async move {
                keeper::follow_files(&certificate, &key, &served, &health).await;
            });
        }
    }
    let sources = Sources {
        counts: Arc::clone(&counts),
        served: Arc::clone(&served),
        namespaces: Arc::clone(&namespaces),
        troubles,
        ranges,
    };
    let (end_telemetry, telemetry_ends) = oneshot::channel::<()>();
    let serving = tokio::spawn(telemetry::serve(
        plain,
        Arc::new(move || Ok(sources.families())),
        Arc::clone(&health),
        telemetry::Limits::default(),
        async {
            // A sender that is gone says the same.
            drop(telemetry_ends.await);
        },
    ));

    let draining = Arc::new(AtomicBool::new(false));
    let judge = Judge::new(
        Arc::clone(&rules),
        namespaces,
        Arc::clone(&counts),
        config.limits,
        clock,
        Arc::clone(&draining),
    );
    let tls = Arc::new(served.config().context("setting up TLS")?);
    info!(address = %config.listen, telemetry = %config.telemetry, "the webhook serves");
    let farewell = config.farewell;
    let mut broken = None;
    let stop = async {
        let mut beat = tokio::time::interval(BEAT);
        let mut starting = true;
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = beat.tick() => {
                    health.beat();
                    if starting && health.reasons().is_empty() {
                        starting = false;
                        heap::give_back();
                    }
                }
                // These never end but by a panic. Without them the webhook would grow old unseen; a new one starts anew.
                Some(ended) = tasks.join_next() => {
                    broken = Some(ended);
                    break;
                }
            }
            if serving.is_finished() {
                break;
            }
        }
        info!(?farewell, "ending; requests are still answered until those who ask have heard of it");
        health.not_ready("ending", "it was told to end");
        draining.store(true, Ordering::Relaxed);
        tokio::time::sleep(farewell).await;
    };
    let patience = config.limits.review + config.limits.transfer;
    server::serve(listener, tls, Arc::new(judge).router(), config.limits, counts, stop, patience).await;
    // The server for metrics ends last, so that the last scrape sees everything.
    drop(end_telemetry);
    serving.await.context("the server for metrics and health ended early")??;
    match broken {
        None => Ok(()),
        Some(Err(panic)) => Err(panic).context("what follows namespaces or keeps certificates ended"),
        Some(Ok(())) => anyhow::bail!("what follows namespaces or keeps certificates ended"),
    }
}
