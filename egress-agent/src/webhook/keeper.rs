//! Keeps the webhook's certificates: in a Secret, in its configuration as `caBundle`, and in what it shows.
//!
//! Every replica does the same. Two that write at once meet at the Secret's version: one of them is refused, and reads again.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::Secret},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
    runtime::watcher,
};
use serde_json::json;
use tracing::{debug, error, info, warn};

use super::{
    Clock,
    certificates::{self, Lifetimes, Step, Stored},
    served::{self, Served},
};
use crate::{k8s::summary::plain, telemetry::server::Health};

/// What keeps the webhook from being ready while it has no certificate.
pub const NO_CERTIFICATE: &str = "certificate";

/// The keys of the Secret, named as those of other tools.
const CA: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const LEAF: &str = "tls.crt";
const LEAF_KEY: &str = "tls.key";

/// How often everything is looked at when nothing is heard, at most.
const LOOK: Duration = Duration::from_secs(15);
/// How much is told of an error.
const MOST_REASON: usize = 500;
/// How often files are read again.
const FILES: Duration = Duration::from_secs(5);

/// What the certificates are for and where they are kept.
#[derive(Clone, Debug)]
pub struct Place {
    /// The namespace of the Secret.
    pub namespace: String,
    /// The name of the Secret.
    pub secret: String,
    /// The ValidatingWebhookConfiguration that is told which CAs to trust.
    pub configuration: String,
    /// The names and addresses the API server calls.
    pub names: Vec<String>,
    /// How long things last.
    pub lifetimes: Lifetimes,
}

/// Why a round ended early.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{what}: {source}")]
    Api { what: &'static str, source: Box<kube::Error> },
    #[error(transparent)]
    Make(#[from] certificates::Error),
    #[error("the object of the API server has no version")]
    NoVersion,
    #[error("the name of the webhook configuration: {0}")]
    Name(#[source] http::Error),
}

/// A Secret as it was read: its version, and what is in it, if that is all there.
struct Seen {
    version: String,
    stored: Option<Stored>,
}

/// Keeps certificates; made by [`Keeper::new`].
pub struct Keeper {
    place: Place,
    client: Client,
    secrets: Api<Secret>,
    configurations: Api<ValidatingWebhookConfiguration>,
    served: Arc<Served>,
    health: Arc<Health>,
    clock: Clock,
    /// What is shown.
    shown: Option<Stored>,
    /// Since when the API server is known to be told of the newest CA, and which bundle that was.
    published: Option<(u64, String)>,
    troubles: Arc<AtomicU64>,
}

impl Keeper {
    /// Returns what keeps the certificates at this place.
    #[must_use]
    pub fn new(client: Client, place: Place, served: Arc<Served>, health: Arc<Health>, clock: Clock) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &place.namespace),
            configurations: Api::all(client.clone()),
            client,
            place,
            served,
            health,
            clock,
            shown: None,
            published: None,
            troubles: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Returns the count of rounds that ended early.
    #[must_use]
    pub fn troubles(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.troubles)
    }

    /// Keeps them for as long as the process lives.
    pub async fn run(mut self) {
        let lifetimes = self.place.lifetimes;
        let look = LOOK.min(Duration::from_secs(lifetimes.settle.max(4)) / 4);
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.place.secret));
        let mut events = Box::pin(watcher::watcher(self.secrets.clone(), config));
        let mut told = String::new();
        loop {
            let wait = match self.round().await {
                Ok(wait) => wait.clamp(Duration::from_millis(200), look),
                Err(trouble) => {
                    self.troubles.fetch_add(1, Ordering::Relaxed);
                    error!(error = %trouble, "the certificates cannot be kept");
                    if self.shown.is_none() {
                        let why = plain(&trouble.to_string(), MOST_REASON);
                        self.health.not_ready(NO_CERTIFICATE, format!("there is none yet: {why}"));
                    }
                    Duration::from_secs(1).min(look)
                }
            };
            let due = tokio::time::sleep(wait);
            tokio::pin!(due);
            loop {
                tokio::select! {
                    () = &mut due => break,
                    event = events.next() => match event {
                        Some(Ok(watcher::Event::Init | watcher::Event::InitDone)) => {}
                        Some(Ok(_)) => break,
                        Some(Err(error)) => {
                            // The round asks anyway, so this costs only time.
                            let error = plain(&error.to_string(), MOST_REASON);
                            if error == told {
                                debug!(error, "the watch of the Secret was interrupted");
                            } else {
                                warn!(error, "the watch of the Secret was interrupted; it is looked at now and then");
                                told = error;
                            }
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                        None => unreachable!("a watcher never ends"),
                    },
                }
            }
        }
    }

    /// Does what is to be done now, and returns how long there is nothing more to do if nothing is heard.
    async fn round(&mut self) -> Result<Duration, Trouble> {
        let seen = self.read().await?;
        let stored = seen.as_ref().and_then(|seen| seen.stored.as_ref());
        let now = (self.clock)();
        if let Some(stored) = stored {
            self.show(stored);
            // Without a CA nobody could be asked any more: what is published stays until the next step has made one.
            if stored.bundle.contains("BEGIN CERTIFICATE") {
                self.publish(stored, now).await?;
            }
        }
        let step = match (stored, &self.shown) {
            // Somebody took it away. The API server may not trust a new CA at once.
            (None, Some(shown)) => Step::Write {
                stored: certificates::replace(shown, &self.place.names, &self.place.lifetimes, now)?,
                why: "a new CA, because the Secret is gone",
            },
            (stored, _) => {
                let published = self.published.as_ref().map(|(since, _)| *since);
                certificates::next(stored, &self.place.names, &self.place.lifetimes, published, now)?
            }
        };
        match step {
            Step::Wait(until) => Ok(Duration::from_secs(until.saturating_sub(now))),
            Step::Write { stored, why } => {
                if self.write(seen.as_ref(), &stored).await? {
                    info!(secret = %self.place.secret, why, "certificates were written");
                }
                Ok(Duration::ZERO)
            }
        }
    }

    /// Shows the leaf. One that cannot be shown is replaced by what comes next; until then the one before stays.
    fn show(&mut self, stored: &Stored) {
        match self.served.load(stored.leaf.as_bytes(), stored.leaf_key.as_bytes()) {
            Ok(is_new) => {
                if is_new {
                    info!(secret = %self.place.secret, expires = self.served.expires(), "another certificate is shown");
                }
                self.shown = Some(stored.clone());
                self.health.clear(NO_CERTIFICATE);
            }
            Err(error) => {
                self.troubles.fetch_add(1, Ordering::Relaxed);
                error!(secret = %self.place.secret, %error, "the certificate in the Secret cannot be used; the one before stays");
            }
        }
    }

    /// Tells the API server which CAs to trust, unless it has been told.
    async fn publish(&mut self, stored: &Stored, now: u64) -> Result<(), Trouble> {
        let name = &self.place.configuration;
        let read = self.configurations.get_opt(name).await;
        let Some(configuration) = read.map_err(api("reading the webhook configuration"))? else {
            self.published = None;
            warn!(configuration = %name, "there is no such ValidatingWebhookConfiguration: nothing is validated");
            return Ok(());
        };
        let wanted = ByteString(stored.bundle.clone().into_bytes());
        let version = configuration.metadata.resource_version.ok_or(Trouble::NoVersion)?;
        let webhooks = configuration.webhooks.unwrap_or_default();
        let mut patch = vec![json!({ "op": "test", "path": "/metadata/resourceVersion", "value": version })];
        for (place, webhook) in webhooks.iter().enumerate() {
            if webhook.client_config.ca_bundle.as_ref() != Some(&wanted) {
                let path = format!("/webhooks/{place}/clientConfig/caBundle");
                patch.push(json!({ "op": "add", "path": path, "value": wanted }));
            }
        }
        if patch.len() > 1 {
            let request = http::Request::patch(format!(
                "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/{name}?fieldManager=egress-webhook"
            ))
            .header(http::header::CONTENT_TYPE, "application/json-patch+json")
            .body(json!(patch).to_string().into_bytes())
            .map_err(Trouble::Name)?;
            let patched = self.client.request::<ValidatingWebhookConfiguration>(request).await;
            match patched {
                Ok(_) => info!(configuration = %name, "the API server was told which CAs to trust"),
                // Another replica was faster, or somebody changed something else: the next round sees.
                Err(kube::Error::Api(status)) if matches!(status.code, 409 | 422) => {
                    debug!(configuration = %name, %status, "the webhook configuration has changed meanwhile");
                    return Ok(());
                }
                Err(error) => return Err(api("telling the API server which CAs to trust")(error)),
            }
        }
        if self.published.as_ref().is_none_or(|(_, bundle)| *bundle != stored.bundle) {
            let newest_is_known = self
                .published
                .as_ref()
                .is_some_and(|(_, bundle)| certificates::trusts_newest(bundle.as_bytes(), stored));
            let since = match &self.published {
                Some((since, _)) if newest_is_known => *since,
                _ => now,
            };
            self.published = Some((since, stored.bundle.clone()));
        }
        Ok(())
    }

    async fn read(&self) -> Result<Option<Seen>, Trouble> {
        let read = self.secrets.get_opt(&self.place.secret).await;
        let Some(secret) = read.map_err(api("reading the Secret"))? else { return Ok(None) };
        let version = secret.metadata.resource_version.ok_or(Trouble::NoVersion)?;
        let mut data = secret.data.unwrap_or_default();
        let mut text = |key: &str| data.remove(key).and_then(|value| String::from_utf8(value.0).ok());
        let stored = match (text(CA), text(CA_KEY), text(LEAF), text(LEAF_KEY)) {
            (Some(bundle), Some(ca_key), Some(leaf), Some(leaf_key)) => {
                Some(Stored { bundle, ca_key, leaf, leaf_key })
            }
            _ => None,
        };
        Ok(Some(Seen { version, stored }))
    }

    /// Writes the Secret. Returns false if somebody else has just written it.
    async fn write(&self, seen: Option<&Seen>, stored: &Stored) -> Result<bool, Trouble> {
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let labels = [
            ("app.kubernetes.io/name", "egress-agent"),
            ("app.kubernetes.io/component", "webhook"),
            ("app.kubernetes.io/managed-by", "egress-agent"),
        ];
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(self.place.secret.clone()),
                namespace: Some(self.place.namespace.clone()),
                resource_version: seen.map(|seen| seen.version.clone()),
                labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([
                (CA.to_owned(), bytes(&stored.bundle)),
                (CA_KEY.to_owned(), bytes(&stored.ca_key)),
                (LEAF.to_owned(), bytes(&stored.leaf)),
                (LEAF_KEY.to_owned(), bytes(&stored.leaf_key)),
            ])),
            type_: Some("Opaque".to_owned()),
            ..Secret::default()
        };
        let params = PostParams::default();
        let written = match seen {
            Some(_) => self.secrets.replace(&self.place.secret, &params, &secret).await,
            None => self.secrets.create(&params, &secret).await,
        };
        match written {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(api("writing the Secret")(error)),
        }
    }
}

fn api(what: &'static str) -> impl FnOnce(kube::Error) -> Trouble {
    move |source| Trouble::Api { what, source: Box::new(source) }
}

/// Shows the certificate in two files, and again whenever they change, for as long as the process lives.
pub async fn follow_files(certificate: &Path, key: &Path, served: &Served, health: &Health) {
    let read = async |path: &Path| {
        let read = tokio::task::spawn_blocking({
            let path = path.to_owned();
            move || std::fs::read(path)
        });
        let file = |source| served::Error::File { path: path.to_owned(), source };
        read.await.map_err(|error| file(std::io::Error::other(error)))?.map_err(file)
    };
    let mut last = None;
    let mut told = String::new();
    loop {
        let pair = async { Ok((read(certificate).await?, read(key).await?)) }.await;
        let loaded = match pair {
            Ok(pair) if last.as_ref() == Some(&pair) => Ok(false),
            // The two are written one after the other; a pair that does not fit yet is tried again.
            Ok(pair) => served.load(&pair.0, &pair.1).inspect(|_| last = Some(pair)),
            Err(error) => {
                served.failed();
                Err(error)
            }
        };
        match loaded {
            Ok(is_new) => {
                told.clear();
                health.clear(NO_CERTIFICATE);
                if is_new {
                    info!(file = %certificate.display(), expires = served.expires(), "another certificate is shown");
                }
            }
            Err(error) => {
                let error: served::Error = error;
                let text = error.to_string();
                if text != told {
                    error!(error = %text, "the certificate cannot be used; the one before stays");
                    told = text;
                }
            }
        }
        tokio::time::sleep(FILES).await;
    }
}
