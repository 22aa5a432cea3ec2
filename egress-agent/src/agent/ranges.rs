//! Published ranges on the disk, for a start without an API server.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{
    k8s::published::{self, Published},
    ranges::{
        files,
        publish::{Head, Publication, Sha256},
    },
};

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
    let Stored { provider, head, chunks, texts } = serde_json::from_slice(&files::read(path)?)?;
    let published = match head {
        Some(head) => {
            let head = Head::parse(head.as_bytes())?;
            let chunks = chunks.into_values().map(|bytes| (Sha256::of(&bytes.0), bytes.0)).collect();
            published::of_publication(Publication { head, chunks })?
        }
        None => published::custom(texts)?,
    };
    Ok((provider, published))
}
