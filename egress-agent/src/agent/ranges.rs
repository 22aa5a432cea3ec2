//! Ranges beside the API server: kept on the disk for a start without one, and read from files where nobody publishes them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use crate::{
    k8s::published::{self, Published},
    policy::ranges::{CUSTOM, Ranges, Table},
    ranges::{
        accept,
        providers::{self, Provider},
        publish::{Head, Publication, Sha256},
    },
};

/// No file larger than this is read; the largest that a provider publishes has 4 MiB.
const MOST_BYTES: u64 = 64 << 20;

/// One provider's ranges in a file of ours.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    provider: String,
    #[serde(default)]
    head: Option<String>,
    #[serde(default)]
    chunks: BTreeMap<String, ByteString>,
    #[serde(default)]
    texts: Vec<(String, String)>,
}

/// Returns the folder beside a snapshot that ranges are kept in.
pub(super) fn folder(snapshot: &Path) -> PathBuf {
    let mut name = snapshot.as_os_str().to_owned();
    name.push(".ranges");
    name.into()
}

/// Keeps what is published of a provider. It takes as long as the disk does.
pub(super) fn keep(folder: &Path, provider: &str, published: &Published) -> io::Result<()> {
    let mut stored =
        Stored { provider: provider.to_owned(), head: None, chunks: BTreeMap::new(), texts: Vec::new() };
    match published {
        Published::Table { publication, .. } => {
            stored.head = Some(publication.head.text());
            let chunks = publication.chunks.iter();
            stored.chunks =
                chunks.map(|(hash, bytes)| (hash.to_string(), ByteString(bytes.clone()))).collect();
        }
        Published::Custom { texts, .. } => stored.texts = texts.to_vec(),
    }
    fs::create_dir_all(folder)?;
    let path = folder.join(format!("{provider}.json"));
    let temporary = folder.join(format!("{provider}.json.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(&stored)?)?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    File::open(folder)?.sync_all()
}

/// Returns what was kept. A file that cannot be used is told of and left alone.
pub(super) fn kept(folder: &Path) -> Vec<(String, Published)> {
    let files = match fs::read_dir(folder) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            warn!(folder = %folder.display(), %error, "kept ranges cannot be read");
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for file in files {
        let read = file.map_err(anyhow::Error::from).and_then(|file| {
            let path = file.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                return Ok(None);
            }
            restore(&path).with_context(|| path.display().to_string()).map(Some)
        });
        match read {
            Ok(Some(restored)) => found.push(restored),
            Ok(None) => {}
            Err(error) => warn!(error = format!("{error:#}"), "kept ranges cannot be used"),
        }
    }
    found
}

fn restore(path: &Path) -> anyhow::Result<(String, Published)> {
    let Stored { provider, head, chunks, texts } = serde_json::from_slice(&read(path)?)?;
    let published = match head {
        Some(head) => {
            let head = Head::parse(head.as_bytes())?;
            let chunks = chunks.into_values().map(|bytes| (Sha256::of(&bytes.0), bytes.0)).collect();
            published::of_publication(Publication { head, chunks })?
        }
        None => published::custom(texts)?.context("it holds nothing")?,
    };
    Ok((provider, published))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let length = fs::metadata(path)?.len();
    anyhow::ensure!(length <= MOST_BYTES, "it has {length} bytes, and {MOST_BYTES} are read at most");
    Ok(fs::read(path)?)
}

/// What tells a file from the one that was there before.
type Mark = (u64, u64, i64, i64);

/// A provider's documents in files.
#[derive(Debug)]
struct Source {
    provider: String,
    files: Vec<PathBuf>,
    marks: Vec<Option<Mark>>,
    /// The last good one, and when it was read, in seconds since the epoch.
    table: Option<(Arc<Table>, u64)>,
    /// What was said last that is wrong.
    told: String,
}

/// Ranges that are read from files, and again when these change.
#[derive(Debug, Default)]
pub(super) struct Files(Vec<Source>);

impl Files {
    /// Returns those of some files, each with the provider whose it is; several of one are its documents, in that order.
    ///
    /// # Errors
    ///
    /// For a provider that there is none of, and for another number of documents than it has.
    pub(super) fn new(files: &[(String, PathBuf)]) -> anyhow::Result<Self> {
        let mut sources: Vec<Source> = Vec::new();
        for (provider, path) in files {
            let name = provider.to_ascii_lowercase();
            if name != CUSTOM && providers::provider(&name).is_none() {
                let known: Vec<&str> = providers::PROVIDERS.iter().map(|known| known.name()).collect();
                anyhow::bail!("no provider {provider:?}; there are {} and {CUSTOM}", known.join(", "));
            }
            match sources.iter_mut().find(|source| source.provider == name) {
                Some(source) => source.files.push(path.clone()),
                None => sources.push(Source {
                    provider: name,
                    files: vec![path.clone()],
                    marks: Vec::new(),
                    table: None,
                    told: String::new(),
                }),
            }
        }
        Ok(Self(sources))
    }

    /// Returns the providers.
    pub(super) fn providers(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|source| source.provider.as_str())
    }

    /// Returns when each was read, in seconds since the epoch.
    pub(super) fn read_at(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().filter_map(|source| Some((source.provider.as_str(), source.table.as_ref()?.1)))
    }

    /// Reads what has changed into `ranges`. What cannot be used, or looks like an accident, is told of, and the last good one stays.
    pub(super) fn reload(&mut self, ranges: &mut Ranges, now: u64) {
        for source in &mut self.0 {
            let marks: Vec<Option<Mark>> = source.files.iter().map(|file| mark(file)).collect();
            if marks == source.marks {
                continue;
            }
            source.marks = marks;
            match source.read(ranges, now) {
                Ok(()) => source.told.clear(),
                Err(error) => {
                    let text = format!("{error:#}");
                    if text != source.told {
                        error!(
                            provider = source.provider,
                            error = text,
                            "ranges cannot be used; the last good ones, if any, stay"
                        );
                        source.told = text;
                    }
                }
            }
        }
    }
}

fn mark(path: &Path) -> Option<Mark> {
    let data = fs::metadata(path).ok()?;
    Some((data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}

impl Source {
    fn read(&mut self, ranges: &mut Ranges, now: u64) -> anyhow::Result<()> {
        let mut documents = Vec::with_capacity(self.files.len());
        for file in &self.files {
            documents.push(read(file).with_context(|| format!("reading {}", file.display()))?);
        }
        if self.provider == CUSTOM {
            let names = self.files.iter().map(|file| file.display().to_string());
            let texts = documents.into_iter().map(String::from_utf8).collect::<Result<Vec<_>, _>>();
            let texts = names.zip(texts.context("it is no UTF-8")?).collect();
            if let Some(published) = published::custom(texts)? {
                published.enter(CUSTOM, ranges);
            }
            return Ok(());
        }
        let provider: &dyn Provider =
            providers::provider(&self.provider).context("the provider was known before")?;
        let documents: Vec<&[u8]> = documents.iter().map(Vec::as_slice).collect();
        let files: Vec<String> = self.files.iter().map(|file| file.display().to_string()).collect();
        let table = provider.parse(&documents).with_context(|| files.join(", "))?;
        let before = self.table.as_ref().map(|(table, _)| &**table);
        let delta = accept::accept(before, &table, &accept::Limits::default())?;
        info!(
            provider = self.provider,
            added = delta.added.len(),
            removed = delta.removed.len(),
            "ranges were read"
        );
        let table = Arc::new(table);
        ranges.set_provider(&self.provider, Arc::clone(&table));
        self.table = Some((table, now));
        Ok(())
    }
}
