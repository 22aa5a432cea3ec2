//! What is published of clouds' ranges, so that a warning can say what a service stands for.
//!
//! Only warnings depend on it. The webhook is ready without, and what was heard stays when the API server cannot be reached.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use tracing::{info, warn};

use crate::{
    check::Rules,
    k8s::published::{HEAD_KEY, LABEL, Parts, Wrong},
    policy::ranges::CUSTOM,
};

/// How many providers are followed. Whoever may write where they are published may write any number.
const MOST: usize = 32;

/// Follows what is published and puts it into the rules.
#[derive(Debug)]
pub struct Follower {
    rules: Arc<Rules>,
    known: BTreeMap<String, Provider>,
    /// Those whose ranges come from elsewhere.
    others: Vec<String>,
    interruptions: Arc<AtomicU64>,
}

/// What is heard of one provider.
#[derive(Debug)]
struct Provider {
    parts: Parts,
    /// Whether the rules have what is published.
    settled: bool,
    wrong: Option<Wrong>,
}

impl Follower {
    /// Returns one that puts what it hears into these rules. What they know already comes from elsewhere and stays.
    #[must_use]
    pub fn new(rules: Arc<Rules>) -> Self {
        let ranges = rules.ranges.now();
        let mut others: Vec<String> = ranges.providers().map(|(name, _)| name.to_owned()).collect();
        others.extend((!ranges.custom().is_empty()).then(|| CUSTOM.to_owned()));
        Self { rules, known: BTreeMap::new(), others, interruptions: Arc::default() }
    }

    /// Returns what counts how often the watch was interrupted.
    #[must_use]
    pub fn interruptions(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.interruptions)
    }

    /// Follows the API server for as long as the process lives.
    pub async fn run(mut self, client: Client, namespace: String) {
        let api = Api::<ConfigMap>::namespaced(client, &namespace);
        let config = watcher::Config::default().labels(LABEL).page_size(50);
        let mut events = Box::pin(watcher::watcher(api, config).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.take(event),
                Err(error) => {
                    self.interruptions.fetch_add(1, Ordering::Relaxed);
                    warn!(%error, "the watch of published ranges was interrupted; what is known stays");
                }
            }
        }
        unreachable!("a watcher never ends");
    }

    /// Takes what a watch tells. Within a list nothing is complete, so what was known stays until it ends.
    pub fn take(&mut self, event: Event<ConfigMap>) {
        match event {
            Event::Init => {
                for (name, provider) in &mut self.known {
                    (provider.parts, provider.settled) = (Parts::new(name), false);
                }
            }
            Event::InitApply(object) => {
                self.put(object);
            }
            Event::InitDone => {
                for name in self.known.keys().cloned().collect::<Vec<_>>() {
                    self.look(&name);
                }
            }
            Event::Apply(object) => {
                // It may have belonged to another provider before.
                self.forget(&object, object.labels().get(LABEL));
                if let Some(provider) = self.put(object) {
                    self.look(&provider);
                }
            }
            Event::Delete(object) => self.forget(&object, None),
        }
    }

    /// Returns the provider that the object belongs to, unless that is not followed.
    fn put(&mut self, object: ConfigMap) -> Option<String> {
        let name = object.labels().get(LABEL)?.to_owned();
        if self.others.contains(&name.to_ascii_lowercase()) {
            return None;
        }
        if !self.known.contains_key(&name) && self.known.len() >= MOST {
            warn!(
                provider = name,
                most = MOST,
                "ranges of too many providers are published; these are left out"
            );
            return None;
        }
        let provider = self.known.entry(name.clone()).or_insert_with(|| Provider {
            parts: Parts::new(&name),
            settled: false,
            wrong: None,
        });
        // A head names its chunks by what is in them, so none of them can change what it stands for.
        provider.settled &=
            name != CUSTOM && !object.data.as_ref().is_some_and(|data| data.contains_key(HEAD_KEY));
        provider.parts.put(object);
        Some(name)
    }

    /// Forgets an object, which `next` will have in a moment.
    fn forget(&mut self, object: &ConfigMap, next: Option<&String>) {
        let Some(name) = &object.metadata.name else { return };
        for provider in self.known.keys().cloned().collect::<Vec<_>>() {
            let known = self.known.get_mut(&provider).expect("it was among the keys");
            let is_chunk = known.parts.is_chunk(name);
            if known.parts.remove(name) && !is_chunk {
                known.settled = false;
                if next != Some(&provider) {
                    self.look(&provider);
                }
            }
        }
    }

    /// Puts into the rules what is whole.
    fn look(&mut self, name: &str) {
        let Some(provider) = self.known.get_mut(name).filter(|provider| !provider.settled) else { return };
        match provider.parts.together() {
            Ok(Some(published)) => {
                self.rules.ranges.change(|ranges| published.enter(name, ranges));
                let revision = published.revision().map(|revision| revision.to_string());
                info!(provider = name, revision, "published ranges are known");
                (provider.settled, provider.wrong) = (true, None);
            }
            Ok(None) => {
                if self.rules.ranges.now().provider(name).is_some() {
                    self.rules.ranges.change(|ranges| ranges.remove_provider(name));
                    info!(provider = name, "its ranges are published no more");
                }
                if provider.parts.is_empty() {
                    self.known.remove(name);
                }
            }
            // Chunks are written before the head, and told in the order they were written.
            Err(wrong) if provider.wrong.as_ref() != Some(&wrong) => {
                warn!(provider = name, %wrong, "published ranges cannot be used; what was known stays");
                provider.wrong = Some(wrong);
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
