//! Gets what providers publish, and publishes it in the cluster for agents to read.
//!
//! The cluster itself keeps the last good ranges: whoever leads next begins with those, network or not.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use tracing::{debug, error, info, warn};

use super::{Lead, Means, NotLeading, events::Events, lease::FIELD_MANAGER};
use crate::{
    k8s::{
        published::{self, LABEL, Parts, Published},
        summary::plain,
    },
    overview::CONTROLLER,
    ranges::{
        accept::{self, Delta},
        cache::Cached,
        fetch::{self, Fetcher},
        providers::Provider,
        publish::{self, Publication, TooLarge},
        refresh::{self, Current, Found, RefreshError},
    },
};

/// Where the ranges of one provider come from.
pub struct Source {
    /// The provider.
    pub provider: &'static dyn Provider,
    /// Its documents. Without any, they are downloaded.
    pub files: Vec<PathBuf>,
    /// Where they are downloaded instead of where the provider says.
    pub urls: Vec<String>,
}

/// How to follow providers.
#[derive(Clone)]
pub struct Options {
    /// The namespace to publish in.
    pub namespace: String,
    /// The pause between two questions for something new.
    pub every: Duration,
    /// What looks like an accident.
    pub limits: accept::Limits,
    /// Which controller this is, in the annotation of what it writes.
    pub instance: String,
}

/// What is counted of one provider.
#[derive(Debug, Default)]
pub struct Counts {
    /// When the provider last told what is its newest, in seconds since the epoch; 0 for never.
    pub heard: AtomicU64,
    /// The revision that is published; 0 for none.
    pub revision: AtomicU64,
    /// How often something could not be got or read.
    pub failed: AtomicU64,
    /// How often something was refused.
    pub refused: AtomicU64,
    /// How often something was published.
    pub published: AtomicU64,
}

/// Why a round did not end well.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}; the last good ranges, if any, stay")]
    Refresh(#[from] RefreshError),
    #[error("{path}: {source}", path = path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    #[error("{what}: {source}")]
    Api { what: &'static str, source: Box<kube::Error> },
    #[error(transparent)]
    NotLeading(#[from] NotLeading),
    #[error(
        "the ranges here are published by controller {0:?}, as their annotation {CONTROLLER} says; end one of the two, or give this one the \
         name of the other with --instance"
    )]
    Foreign(String),
    #[error("what is published cannot be replaced before it is known: {0}")]
    Unknown(String),
}

fn api(what: &'static str) -> impl FnOnce(kube::Error) -> Trouble {
    move |source| Trouble::Api { what, source: Box::new(source) }
}

/// Follows one provider.
pub(super) struct Follower {
    source: Arc<Source>,
    options: Options,
    fetcher: Option<Fetcher>,
    maps: Api<ConfigMap>,
    events: Events,
    lead: Lead,
    counts: Arc<Counts>,
    clock: super::Clock,
    /// What is published.
    present: Option<Arc<Publication>>,
    current: Option<Current>,
    told: String,
}

impl Follower {
    pub(super) fn new(
        client: &Client,
        source: Arc<Source>,
        options: Options,
        fetcher: Option<Fetcher>,
        means: &Means,
        counts: Arc<Counts>,
    ) -> Self {
        let Means { lead, events, clock } = means.clone();
        Self {
            maps: Api::namespaced(client.clone(), &options.namespace),
            events,
            source,
            options,
            fetcher,
            lead,
            counts,
            clock,
            present: None,
            current: None,
            told: String::new(),
        }
    }

    /// Follows until it is ended from outside.
    pub(super) async fn run(mut self) {
        let provider = self.source.provider.name();
        let mut failures = 0;
        loop {
            let wait = match self.round().await {
                Ok(()) => {
                    failures = 0;
                    self.told.clear();
                    // Those of many clusters should not ask at the same second.
                    self.options.every.mul_f64(0.9 + 0.2 * random())
                }
                Err(trouble) => {
                    failures += 1;
                    self.tell(&trouble);
                    match &trouble {
                        Trouble::Refresh(RefreshError::Fetch { source: error, .. }) => {
                            #[expect(
                                clippy::cast_possible_truncation,
                                clippy::cast_sign_loss,
                                reason = "it is below one"
                            )]
                            let random = (random() * f64::from(u32::MAX)) as u32;
                            fetch::pause(failures, error, random).min(self.options.every)
                        }
                        Trouble::Api { .. } | Trouble::NotLeading(_) => {
                            (Duration::from_secs(5) * (1 << failures.min(7))).min(self.options.every)
                        }
                        // The provider has to publish something else first.
                        _ => self.options.every.min(Duration::from_secs(15 * 60)),
                    }
                }
            };
            debug!(provider, ?wait, "the ranges are looked at again then");
            tokio::time::sleep(wait).await;
        }
    }

    fn tell(&mut self, trouble: &Trouble) {
        let provider = self.source.provider.name();
        let (count, reason) = match trouble {
            Trouble::Refresh(RefreshError::Refused(_)) => (&self.counts.refused, Some("RangesRefused")),
            Trouble::Refresh(RefreshError::Parse(_)) => (&self.counts.failed, Some("RangesUnreadable")),
            Trouble::Foreign(_) => (&self.counts.refused, Some("AnotherController")),
            _ => (&self.counts.failed, None),
        };
        count.fetch_add(1, Ordering::Relaxed);
        let text = trouble.to_string();
        if text == self.told {
            return;
        }
        warn!(provider, error = text, "the ranges could not be brought up to date");
        if let Some(reason) = reason {
            self.events.warn(&self.head_reference(), reason, "Refresh", &text);
        }
        self.told = text;
    }

    fn head_reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("ConfigMap".to_owned()),
            namespace: Some(self.options.namespace.clone()),
            name: Some(published::head_name(self.source.provider.name())),
            ..ObjectReference::default()
        }
    }

    /// Brings what is published up to date with what the provider says now.
    async fn round(&mut self) -> Result<(), Trouble> {
        let provider = self.source.provider;
        let existing = self.existing().await?;
        if let Some(present) = self.present.clone()
            && !objects_of(&present).is_subset(&existing)
        {
            warn!(
                provider = provider.name(),
                "what was published is no longer all there, and is published again"
            );
            self.publish(&present, &existing, &Delta::default()).await?;
        }
        let now = (self.clock)();
        let found = match self.fetcher.as_ref().filter(|_| self.source.files.is_empty()) {
            Some(fetcher) => {
                let urls: Vec<String> = match self.source.urls.as_slice() {
                    [] => provider.urls().iter().map(|url| (*url).to_owned()).collect(),
                    urls => urls.to_vec(),
                };
                refresh::refresh(fetcher, provider, &urls, self.current.as_ref(), &self.options.limits, now)
                    .await?
            }
            None => self.read_files(now).await?,
        };
        self.counts.heard.store(now, Ordering::Relaxed);
        let (current, delta) = match found {
            Found::Same(cached) => {
                if let Some(current) = &mut self.current {
                    current.cached = cached;
                }
                return Ok(());
            }
            Found::New(current, delta) => (current, delta),
        };
        let known = self.current.as_ref().map(|current| current.table.revision());
        if !delta.is_empty() || known != Some(current.table.revision()) {
            let publication = publish::encode(provider.name(), &current.table, now)?;
            self.publish(&publication, &existing, &delta).await?;
            self.present = Some(Arc::new(publication));
        }
        self.current = Some(current);
        Ok(())
    }

    /// Reads the provider's documents from files.
    async fn read_files(&self, now: u64) -> Result<Found, Trouble> {
        let (files, provider) = (self.source.files.clone(), self.source.provider);
        let read = tokio::task::spawn_blocking(move || {
            let read = |path: &PathBuf| {
                fetch::read_file(path).map_err(|source| Trouble::File { path: path.clone(), source })
            };
            let documents = files.iter().map(read).collect::<Result<Vec<_>, _>>()?;
            let documents: Vec<&[u8]> = documents.iter().map(Vec::as_slice).collect();
            Ok::<_, Trouble>(provider.parse(&documents).map_err(RefreshError::Parse)?)
        });
        let table = read.await.map_err(|error| Trouble::Unknown(error.to_string()))??;
        let before = self.current.as_ref().map(|current| &*current.table);
        let delta = accept::accept(before, &table, &self.options.limits).map_err(RefreshError::Refused)?;
        let cached = Cached { documents: Vec::new(), seen: now };
        Ok(Found::New(Current { cached, table: Arc::new(table) }, delta))
    }

    /// Reads what is published. Returns the names of all objects of this provider.
    async fn existing(&mut self) -> Result<BTreeSet<String>, Trouble> {
        let provider = self.source.provider.name();
        let params = ListParams::default().labels(&format!("{LABEL}={provider}"));
        let list = self.maps.list(&params).await.map_err(api("reading what is published"))?;
        let head = published::head_name(provider);
        let heads = list.items.iter().filter(|object| object.metadata.name.as_deref() == Some(&head));
        let of = heads.filter_map(|head| head.metadata.annotations.as_ref()?.get(CONTROLLER)).next();
        if let Some(other) = of.filter(|of| **of != self.options.instance) {
            return Err(Trouble::Foreign(plain(other, 300)));
        }
        let names = list.items.iter().filter_map(|object| object.metadata.name.clone()).collect();
        if self.current.is_some() {
            return Ok(names);
        }
        let mut parts = Parts::new(provider);
        list.items.into_iter().for_each(|object| parts.put(object));
        match parts.together() {
            Ok(Some(Published::Table { table, publication, .. })) => {
                self.counts.revision.store(publication.head.revision, Ordering::Relaxed);
                info!(provider, revision = publication.head.revision, "these ranges are published");
                // What it was read from is not known, so all of it is asked for.
                self.current = Some(Current { cached: Cached { documents: Vec::new(), seen: 0 }, table });
                self.present = Some(publication);
            }
            Ok(_) => {}
            // Nothing good is lost: agents cannot read it either, and keep what they have.
            Err(wrong) => {
                error!(provider, error = %wrong, "what is published cannot be used, and will be replaced");
            }
        }
        Ok(names)
    }

    /// Writes the chunks that are not there, then the head, then takes away what neither this head nor the one before it names: an agent
    /// may be between the two.
    async fn publish(
        &self,
        publication: &Publication,
        existing: &BTreeSet<String>,
        delta: &Delta,
    ) -> Result<(), Trouble> {
        let began = Instant::now();
        let provider = self.source.provider.name();
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            force: true,
            ..PatchParams::default()
        };
        let mut written = 0;
        let mut wanted = BTreeSet::from([published::head_name(provider)]);
        for object in published::chunk_objects(publication) {
            let name = object.metadata.name.clone().unwrap_or_default();
            if !existing.contains(&name) {
                self.lead.permit()?;
                let write = self.maps.patch(&name, &params, &Patch::Apply(&object)).await;
                write.map_err(api("writing a chunk"))?;
                written += 1;
            }
            wanted.insert(name);
        }
        self.lead.permit()?;
        let mut head = published::head_object(&publication.head);
        head.metadata.annotations = Some([(CONTROLLER.to_owned(), self.options.instance.clone())].into());
        let name = published::head_name(provider);
        self.maps.patch(&name, &params, &Patch::Apply(&head)).await.map_err(api("writing the head"))?;
        self.counts.published.fetch_add(1, Ordering::Relaxed);
        self.counts.revision.store(publication.head.revision, Ordering::Relaxed);
        info!(
            provider,
            revision = publication.head.revision,
            changes = %delta,
            chunks = written,
            of = publication.chunks.len(),
            milliseconds = began.elapsed().as_millis(),
            "ranges were published"
        );
        let note = format!("Revision {}: {delta}", publication.head.revision);
        self.events.tell(&self.head_reference(), "RangesPublished", "Refresh", &note);
        if let Some(before) = &self.present {
            wanted.extend(before.chunks.keys().map(|hash| published::chunk_name(provider, *hash)));
        }
        // Whoever gave something else that label may have meant something by it.
        let is_chunk = |name: &&String| {
            let hash = name.strip_prefix(&format!("{}-", published::head_name(provider)));
            hash.is_some_and(|hash| hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
        };
        for name in existing.difference(&wanted).filter(is_chunk) {
            self.lead.permit()?;
            match self.maps.delete(name, &DeleteParams::default()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(api("taking a chunk away")(error)),
            }
        }
        Ok(())
    }
}

/// Returns the names of the objects that a publication is.
fn objects_of(publication: &Publication) -> BTreeSet<String> {
    let provider = &publication.head.provider;
    let chunks = publication.chunks.keys().map(|hash| published::chunk_name(provider, *hash));
    chunks.chain([published::head_name(provider)]).collect()
}

/// Returns a random number from 0 to 1.
fn random() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness everybody asks at the same time, which is all that this is against.
    if ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes).is_err() {
        return 0.5;
    }
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

/// What is counted, by provider.
#[derive(Debug, Default)]
pub struct AllCounts(Mutex<BTreeMap<&'static str, Arc<Counts>>>);

impl AllCounts {
    /// Returns those of one provider.
    pub fn of(&self, provider: &'static str) -> Arc<Counts> {
        Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(provider).or_default())
    }

    /// Returns all of them.
    #[must_use]
    pub fn all(&self) -> Vec<(&'static str, Arc<Counts>)> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(provider, counts)| (*provider, Arc::clone(counts))).collect()
    }
}
