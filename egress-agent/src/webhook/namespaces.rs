//! What is known of namespaces: that they are there, and what each says about governance.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, ResourceExt as _,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{k8s::summary::plain, policy::governance::ANNOTATION, telemetry::server::Health};

/// What keeps the webhook from being ready until all namespaces were heard of.
pub const NOT_HEARD: &str = "namespaces";
/// How much is told of an error.
const MOST_REASON: usize = 500;

/// All namespaces, by name, with the value of [`ANNOTATION`].
#[derive(Debug)]
pub struct Namespaces {
    known: Mutex<HashMap<String, Option<String>>>,
    /// Changes with everything that is heard.
    heard: watch::Sender<()>,
    interruptions: AtomicU64,
}

impl Default for Namespaces {
    fn default() -> Self {
        Self { known: Mutex::default(), heard: watch::Sender::new(()), interruptions: AtomicU64::new(0) }
    }
}

impl Namespaces {
    /// Adds a namespace, or changes it.
    pub fn put(&self, name: &str, annotation: Option<&str>) {
        self.known().insert(name.to_owned(), annotation.map(str::to_owned));
        self.heard.send_replace(());
    }

    /// Returns the value of the annotation of a namespace; `None` if there is no such namespace after `patience`.
    ///
    /// One that has just been created is heard of a moment later than the API server asks about what is in it.
    pub async fn annotation(&self, name: &str, patience: Duration) -> Option<Option<String>> {
        let mut heard = self.heard.subscribe();
        let find = || self.known().get(name).cloned();
        tokio::time::timeout(patience, async {
            loop {
                if let Some(found) = find() {
                    return found;
                }
                heard.changed().await.expect("the sender is here");
            }
        })
        .await
        .ok()
    }

    /// Returns how many there are, and how often the watch was interrupted.
    #[must_use]
    pub fn counts(&self) -> (usize, u64) {
        (self.known().len(), self.interruptions.load(Ordering::Relaxed))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, Option<String>>> {
        // A map of whole entries is right at every moment.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the API server for as long as the process lives. What was heard stays when it cannot be reached.
    pub async fn follow(&self, client: Client, health: &Health) {
        let api: Api<PartialObjectMeta<Namespace>> = Api::all(client);
        let config = watcher::Config::default().page_size(500);
        let mut events = Box::pin(watcher::watcher(api, config).default_backoff());
        let mut list = HashMap::new();
        let mut heard = false;
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => list = HashMap::new(),
                Ok(Event::InitApply(namespace)) => {
                    let annotation = namespace.annotations().get(ANNOTATION).cloned();
                    list.insert(namespace.name_any(), annotation);
                }
                Ok(Event::InitDone) => {
                    *self.known() = std::mem::take(&mut list);
                    self.heard.send_replace(());
                    health.clear(NOT_HEARD);
                    heard = true;
                    info!(namespaces = self.counts().0, "all namespaces are known");
                }
                Ok(Event::Apply(namespace)) => {
                    let annotation = namespace.annotations().get(ANNOTATION).map(String::as_str);
                    self.put(&namespace.name_any(), annotation);
                }
                Ok(Event::Delete(namespace)) => {
                    self.known().remove(&namespace.name_any());
                }
                Err(error) => {
                    self.interruptions.fetch_add(1, Ordering::Relaxed);
                    warn!(%error, "the watch of namespaces was interrupted; what is known stays");
                    if !heard {
                        let why = plain(&error.to_string(), MOST_REASON);
                        health.not_ready(NOT_HEARD, format!("the API server does not tell of them: {why}"));
                    }
                }
            }
        }
        unreachable!("a watcher never ends");
    }
}
