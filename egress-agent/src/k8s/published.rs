//! Published ranges as ConfigMaps: what the controller writes, and agents read.
//!
//! All of one provider have the label [`LABEL`] with its name. One of them, [`head_name`], holds the head under [`HEAD_KEY`]; the
//! others, [`chunk_name`], hold a chunk each under [`CHUNK_KEY`] and never change. A head is written after its chunks and before those
//! that it no longer names are deleted, so whoever has them all has a whole publication.
//!
//! ConfigMaps of provider `custom` are the platform team's: services by their own names, under [`CUSTOM_KEY`].

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{ByteString, api::core::v1::ConfigMap};
use kube::api::ObjectMeta;

use crate::{
    policy::ranges::{CUSTOM, Custom, Ranges, Revision, Table},
    ranges::publish::{self, Head, Publication, Sha256},
};

/// The label of everything that is published. Its value is the provider's name.
pub const LABEL: &str = "egress-agent.dev/ranges";
/// Where the head is.
pub const HEAD_KEY: &str = "head.json";
/// Where a chunk is.
pub const CHUNK_KEY: &str = "chunk";
/// How far the clock of whoever publishes may be ahead, in seconds.
const SKEW: u64 = 3600;
/// Where custom services are.
pub const CUSTOM_KEY: &str = "services.json";

/// Returns the name of the object with a provider's head.
#[must_use]
pub fn head_name(provider: &str) -> String {
    format!("egress-ranges-{provider}")
}

/// Returns the name of the object with a chunk. Half of its hash is enough to tell it from all others of its provider.
#[must_use]
pub fn chunk_name(provider: &str, chunk: Sha256) -> String {
    format!("egress-ranges-{provider}-{}", &chunk.to_string()[..32])
}

fn metadata(provider: &str, name: String) -> ObjectMeta {
    let labels = [
        (LABEL.to_owned(), provider.to_owned()),
        ("app.kubernetes.io/managed-by".to_owned(), "egress-agent".to_owned()),
    ];
    ObjectMeta { name: Some(name), labels: Some(labels.into()), ..ObjectMeta::default() }
}

/// Returns the object with a publication's head.
#[must_use]
pub fn head_object(head: &Head) -> ConfigMap {
    ConfigMap {
        metadata: metadata(&head.provider, head_name(&head.provider)),
        data: Some(BTreeMap::from([(HEAD_KEY.to_owned(), head.text())])),
        ..ConfigMap::default()
    }
}

/// Returns the objects with a publication's chunks.
pub fn chunk_objects(publication: &Publication) -> impl Iterator<Item = ConfigMap> {
    let provider = &publication.head.provider;
    publication.chunks.iter().map(move |(hash, bytes)| ConfigMap {
        metadata: metadata(provider, chunk_name(provider, *hash)),
        binary_data: Some(BTreeMap::from([(CHUNK_KEY.to_owned(), ByteString(bytes.clone()))])),
        immutable: Some(true),
        ..ConfigMap::default()
    })
}

/// What is published of one provider.
#[derive(Clone, Debug)]
pub enum Published {
    /// Its ranges.
    Table {
        /// When the publication was made, in seconds since the epoch.
        created: u64,
        /// What is in it.
        table: Arc<Table>,
        /// As it was read.
        publication: Arc<Publication>,
    },
    /// The services that the platform team has defined.
    Custom {
        /// What is defined.
        services: Custom,
        /// The texts, each with its name, as they were read.
        texts: Arc<[(String, String)]>,
    },
}

impl Published {
    /// Puts them into `ranges`.
    pub fn enter(&self, provider: &str, ranges: &mut Ranges) {
        match self {
            Self::Table { table, .. } => ranges.set_provider(provider, Arc::clone(table)),
            Self::Custom { services, .. } => ranges.set_custom(services.clone()),
        }
    }

    /// Returns which publication of the provider's it is; nothing for custom services.
    #[must_use]
    pub fn revision(&self) -> Option<Revision> {
        match self {
            Self::Table { table, .. } => Some(table.revision()),
            Self::Custom { .. } => None,
        }
    }

    /// Returns why it may not take the place of `before`: it is older. `now` is in seconds since the epoch.
    ///
    /// A publication is older if it was made no later than the one before and the provider's own number, where it has one that grows, is
    /// smaller. So an old object that somebody restores changes nothing, and what is published anew counts whatever number the provider
    /// gives it: one that is far too high locks out nothing. A time of making that has not come yet is not believed, and then what is
    /// published counts.
    #[must_use]
    pub fn is_older(&self, before: &Self, now: u64) -> Option<String> {
        let (Self::Table { created, table, .. }, Self::Table { created: then, table: old, .. }) =
            (self, before)
        else {
            return None;
        };
        if *then > now.saturating_add(SKEW) {
            return None;
        }
        let older = match (table.revision(), old.revision()) {
            (Revision::Published(number), Revision::Published(before)) => number < before && created <= then,
            _ => created < then,
        };
        older.then(|| {
            format!(
                "revision {}, made at second {created}, is older than revision {}, made at second {then}, which stays in force",
                table.revision(),
                old.revision()
            )
        })
    }

    /// Returns when it was made, in seconds since the epoch.
    #[must_use]
    pub fn created(&self) -> Option<u64> {
        match self {
            Self::Table { created, .. } => Some(*created),
            Self::Custom { .. } => None,
        }
    }
}

/// Why what is published cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Not everything that the head names is there yet.
    #[error("{missing} of {of} chunks are not there")]
    Incomplete {
        /// How many are not.
        missing: usize,
        /// How many it names.
        of: usize,
    },
    /// Something is not what it should be.
    #[error("{0}")]
    Unreadable(String),
}

/// One provider's objects, as they come.
#[derive(Debug, Default)]
pub struct Parts {
    provider: String,
    head: Option<String>,
    chunks: BTreeMap<String, Vec<u8>>,
    texts: BTreeMap<String, String>,
}

impl Parts {
    /// Returns those of a provider, of which nothing is known yet.
    #[must_use]
    pub fn new(provider: &str) -> Self {
        Self { provider: provider.to_owned(), ..Self::default() }
    }

    /// Takes an object as it is now.
    pub fn put(&mut self, object: ConfigMap) {
        let Some(name) = object.metadata.name else { return };
        self.remove(&name);
        if self.provider == CUSTOM {
            if let Some(text) = object.data.and_then(|mut data| data.remove(CUSTOM_KEY)) {
                self.texts.insert(name, text);
            }
        } else if name == head_name(&self.provider) {
            self.head = object.data.and_then(|mut data| data.remove(HEAD_KEY));
        } else if let Some(bytes) = object.binary_data.and_then(|mut data| data.remove(CHUNK_KEY)) {
            self.chunks.insert(name, bytes.0);
        }
    }

    /// Forgets an object. Returns whether there was one of that name.
    pub fn remove(&mut self, name: &str) -> bool {
        let mut was = self.texts.remove(name).is_some() | self.chunks.remove(name).is_some();
        if name == head_name(&self.provider) {
            was |= self.head.take().is_some();
        }
        was
    }

    /// Returns whether there is a chunk of that name.
    #[must_use]
    pub fn is_chunk(&self, name: &str) -> bool {
        self.chunks.contains_key(name)
    }

    /// Returns whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty() && self.chunks.is_empty() && self.head.is_none()
    }

    /// Returns what they are together; nothing if there is none.
    ///
    /// # Errors
    ///
    /// When something is missing or cannot be read.
    pub fn together(&self) -> Result<Option<Published>, Wrong> {
        if self.provider == CUSTOM {
            // None is no reason to keep what was: it was taken back.
            let texts = self.texts.iter().map(|(name, text)| (name.clone(), text.clone())).collect();
            return custom(texts).map(Some);
        }
        let Some(head) = &self.head else { return Ok(None) };
        let unreadable = |error: &dyn std::fmt::Display| Wrong::Unreadable(error.to_string());
        let head = Head::parse(head.as_bytes()).map_err(|error| unreadable(&error))?;
        if head.provider != self.provider {
            return Err(Wrong::Unreadable(format!(
                "the head is about another provider, {:?}",
                head.provider
            )));
        }
        let mut chunks = BTreeMap::new();
        for chunk in &head.chunks {
            if let Some(bytes) = self.chunks.get(&chunk_name(&self.provider, chunk.sha256)) {
                chunks.insert(chunk.sha256, bytes.clone());
            }
        }
        let of =
            head.chunks.iter().map(|chunk| chunk.sha256).collect::<std::collections::BTreeSet<_>>().len();
        if chunks.len() < of {
            return Err(Wrong::Incomplete { missing: of - chunks.len(), of });
        }
        of_publication(Publication { head, chunks }).map(Some).map_err(|error| unreadable(&error))
    }
}

/// Returns what the platform team has defined.
///
/// # Errors
///
/// When a text is wrong. All of them are, then: they may speak of one another.
pub fn custom(texts: Vec<(String, String)>) -> Result<Published, Wrong> {
    let documents: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (&**name, &**text)).collect();
    match Custom::parse(&documents) {
        Ok(services) => Ok(Published::Custom { services, texts: texts.into() }),
        Err(faults) => {
            let faults: Vec<String> = faults.iter().take(5).map(ToString::to_string).collect();
            Err(Wrong::Unreadable(faults.join("; ")))
        }
    }
}

/// Returns what a publication holds.
///
/// # Errors
///
/// When it cannot be read.
pub fn of_publication(publication: Publication) -> Result<Published, publish::Unreadable> {
    let mut chunks = Vec::with_capacity(publication.head.chunks.len());
    for chunk in &publication.head.chunks {
        let bytes = publication.chunks.get(&chunk.sha256).ok_or(publish::Unreadable::Hash(chunk.sha256))?;
        chunks.push((chunk, bytes.as_slice()));
    }
    let table = publish::decode(&publication.head, &chunks)?;
    Ok(Published::Table {
        created: publication.head.created,
        table: Arc::new(table),
        publication: Arc::new(publication),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_of_ones_own_are_taken_back_with_the_last_of_them() {
        let object = |text: &str| ConfigMap {
            metadata: metadata(CUSTOM, "mine".to_owned()),
            data: Some(BTreeMap::from([(CUSTOM_KEY.to_owned(), text.to_owned())])),
            ..ConfigMap::default()
        };
        let mut ranges = Ranges::default();
        let mut parts = Parts::new(CUSTOM);
        let enter = |parts: &Parts, ranges: &mut Ranges| {
            parts.together().expect("it can be read").expect("it says something").enter(CUSTOM, ranges);
        };
        parts.put(object(r#"{"services": {"db": {"cidrs": ["10.1.0.0/24"]}}}"#));
        enter(&parts, &mut ranges);
        assert!(ranges.custom().get("db").is_some());
        parts.put(object(r#"{"services": {"db": "#));
        assert!(matches!(parts.together(), Err(Wrong::Unreadable(_))));
        parts.remove("mine");
        enter(&parts, &mut ranges);
        assert!(ranges.custom().is_empty());
    }

    fn made(revision: Option<u64>, service: &str, created: u64) -> Published {
        let mut builder = crate::policy::ranges::Builder::new();
        let row = crate::policy::ranges::Row {
            service,
            region: "us-east-1",
            network_border_group: "us-east-1",
            wider: "",
            cidr: "52.94.0.0/24".parse().expect("a literal prefix"),
        };
        builder.push(row).expect("it can be published");
        let publication = publish::encode("aws", &builder.finish(revision), created).expect("it is small");
        of_publication(publication).expect("it was just made")
    }

    #[test]
    fn what_was_published_before_does_not_come_back() {
        let now = 1_800_000_000;
        let older = |new: &Published, before: &Published| new.is_older(before, now).is_some();
        let (day, next) = (now - 86_400, now - 86_000);
        let before = made(Some(200), "S3", next);
        assert!(older(&made(Some(100), "S3", day), &before), "an object of yesterday");
        assert!(older(&made(Some(100), "S3", next), &before));
        assert!(!older(&made(Some(200), "S3", next), &before), "the same");
        assert!(!older(&made(Some(300), "S3", day), &before), "the clock of the controller was set back");
        assert!(!older(&made(Some(100), "S3", next + 1), &before), "somebody went back to it on purpose");
        // A number that is far too high, and then the right one again.
        let far = made(Some(u64::MAX), "S3", next);
        assert!(!older(&made(Some(201), "S3", next + 1), &far), "it locks out nothing");
        // Nor does a time that has not come yet.
        let later = made(Some(u64::MAX), "S3", now + 10 * SKEW);
        assert!(!older(&made(Some(201), "S3", now), &later));
        // Without a number of the provider's, the time decides.
        assert!(older(&made(None, "S3", day), &made(None, "EC2", next)));
        assert!(!older(&made(None, "S3", next + 1), &made(None, "EC2", next)));
        let custom = Published::Custom { services: Custom::default(), texts: [].into() };
        assert!(!older(&custom, &before) && !older(&before, &custom), "those are taken back as they like");
    }

    #[test]
    fn a_head_without_its_chunks_is_incomplete_and_another_providers_is_wrong() {
        let mut builder = crate::policy::ranges::Builder::new();
        let row = crate::policy::ranges::Row {
            service: "S3",
            region: "us-east-1",
            network_border_group: "us-east-1",
            wider: "",
            cidr: "52.94.0.0/24".parse().expect("a literal prefix"),
        };
        builder.push(row).expect("it can be published");
        let publication = publish::encode("aws", &builder.finish(Some(7)), 1).expect("it is small");
        let mut parts = Parts::new("aws");
        assert!(matches!(parts.together(), Ok(None)));
        parts.put(head_object(&publication.head));
        assert_eq!(parts.together().expect_err("it is not whole"), Wrong::Incomplete { missing: 1, of: 1 });
        chunk_objects(&publication).for_each(|chunk| parts.put(chunk));
        let published = parts.together().expect("it can be read").expect("there is something");
        assert_eq!(published.revision().map(Revision::number), Some(7));
        let mut other = Parts::new("google");
        let mut head = head_object(&publication.head);
        head.metadata.name = Some(head_name("google"));
        other.put(head);
        assert!(matches!(other.together(), Err(Wrong::Unreadable(_))));
    }
}
