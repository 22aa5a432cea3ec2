//! Ranges that are read from files, where nobody publishes them.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use tracing::{error, info};

use super::{
    accept,
    providers::{self, Provider},
};
use crate::{
    k8s::published,
    policy::ranges::{CUSTOM, Ranges, Table},
};

/// No file larger than this is read; the largest that a provider publishes has 4 MiB.
const MOST_BYTES: u64 = 64 << 20;

/// Reads `PROVIDER=FILE`.
///
/// # Errors
///
/// When it is not written like that.
pub fn provider_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((provider, file)) if !provider.is_empty() && !file.is_empty() => {
            Ok((provider.to_owned(), file.into()))
        }
        _ => Err("write it as PROVIDER=FILE, such as aws=/etc/egress/ip-ranges.json".to_owned()),
    }
}

/// Reads a file that is not too large.
///
/// # Errors
///
/// When it cannot be read.
pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
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
pub struct Files(Vec<Source>);

impl Files {
    /// Returns those of some files, each with the provider whose it is; several of one are its documents, in that order.
    ///
    /// # Errors
    ///
    /// For a provider that there is none of, and for another number of documents than it has.
    pub fn new(files: &[(String, PathBuf)]) -> anyhow::Result<Self> {
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
    pub fn providers(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|source| source.provider.as_str())
    }

    /// Returns when each was read, in seconds since the epoch.
    pub fn read_at(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().filter_map(|source| Some((source.provider.as_str(), source.table.as_ref()?.1)))
    }

    /// Reads all of them.
    ///
    /// # Errors
    ///
    /// When one cannot be used.
    pub fn load(files: &[(String, PathBuf)], now: u64) -> anyhow::Result<Ranges> {
        let mut ranges = Ranges::default();
        for source in &mut Self::new(files)?.0 {
            source.read(&mut ranges, now)?;
        }
        Ok(ranges)
    }

    /// Reads what has changed into `ranges`. What cannot be used, or looks like an accident, is told of, and the last good one stays.
    pub fn reload(&mut self, ranges: &mut Ranges, now: u64) {
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
            published::custom(texts)?.enter(CUSTOM, ranges);
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
