//! Keeps what was downloaded, so that a start without network has ranges.
//!
//! One file for each provider: a line of JSON, then the documents as they came. It is written beside its place and renamed, so that it
//! is the old or the new one whenever the machine stops. What is read back is believed only if its hashes are right; what is not is
//! told ([`CacheError`]) and counts as not there.

use std::{
    fs, io,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{fetch::Validators, providers::MAX_BYTES, publish::Sha256};

/// Bytes of the first line.
const MAX_HEAD: usize = 64 * 1024;
const FORMAT: u32 = 1;

/// What was downloaded of one provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// In the order of the provider's addresses.
    pub documents: Vec<Document>,
    /// When it was last seen to be the newest, in seconds since the epoch.
    pub seen: u64,
}

/// A document, and where it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Where it was downloaded.
    pub url: String,
    /// What the server said of it.
    pub validators: Validators,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// Why a file of the cache cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {what}", path = path.display())]
pub struct CacheError {
    /// Which file.
    pub path: PathBuf,
    /// What is wrong.
    pub what: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Head {
    format: u32,
    provider: String,
    seen: u64,
    documents: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    url: String,
    #[serde(default)]
    validators: Validators,
    sha256: Sha256,
    bytes: usize,
}

/// Returns the file of a provider.
#[must_use]
pub fn path(folder: &Path, provider: &str) -> PathBuf {
    folder.join(format!("{provider}.ranges"))
}

/// Keeps what was downloaded in place of what is there.
///
/// # Errors
///
/// When it cannot be written; then what was there is still there.
pub fn store(folder: &Path, provider: &str, cached: &Cached) -> Result<(), CacheError> {
    let path = path(folder, provider);
    let to_error = |error: io::Error| CacheError { path: path.clone(), what: error.to_string() };
    let head = Head {
        format: FORMAT,
        provider: provider.to_owned(),
        seen: cached.seen,
        documents: cached
            .documents
            .iter()
            .map(|document| Entry {
                url: document.url.clone(),
                validators: document.validators.clone(),
                sha256: Sha256::of(&document.bytes),
                bytes: document.bytes.len(),
            })
            .collect(),
    };
    let head = serde_json::to_string(&head).map_err(|error| to_error(error.into()))? + "\n";
    fs::create_dir_all(folder).map_err(to_error)?;
    // Each process writes its own, so that two do not write into one.
    let beside = folder.join(format!(".{provider}.ranges.{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = fs::File::create(&beside)?;
        file.write_all(head.as_bytes())?;
        for document in &cached.documents {
            file.write_all(&document.bytes)?;
        }
        file.sync_all()?;
        drop(file);
        fs::rename(&beside, &path)?;
        fs::File::open(folder)?.sync_all()
    };
    write().map_err(|error| {
        // The first error is the one to tell; a file that stays is written over the next time.
        drop(fs::remove_file(&beside));
        to_error(error)
    })
}

/// Returns what is kept of a provider; `None` if nothing is.
///
/// # Errors
///
/// When the file is damaged, or cannot be read. Whoever calls it tells that, and goes on without.
pub fn load(folder: &Path, provider: &str) -> Result<Option<Cached>, CacheError> {
    let path = path(folder, provider);
    let wrong = |what: String| CacheError { path: path.clone(), what };
    let file = match fs::File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(error.to_string())),
    };
    // No provider has more than two documents.
    let most = MAX_HEAD + 2 * MAX_BYTES;
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(|error| wrong(error.to_string()))?;
    if bytes.len() > most {
        return Err(wrong(format!("it has more than {most} bytes")));
    }
    let end = bytes.iter().take(MAX_HEAD).position(|byte| *byte == b'\n');
    let end = end.ok_or_else(|| wrong("it has no first line".into()))?;
    let head: Head = serde_json::from_slice(&bytes[..end])
        .map_err(|error| wrong(format!("its first line cannot be read: {error}")))?;
    if head.format != FORMAT {
        return Err(wrong(format!("its format is {}, and this program reads {FORMAT}", head.format)));
    }
    if head.provider != provider {
        return Err(wrong("it is of another provider".into()));
    }
    let mut rest = &bytes[end + 1..];
    let mut documents = Vec::new();
    for entry in head.documents {
        let (document, others) =
            rest.split_at_checked(entry.bytes).ok_or_else(|| wrong("it ends too early".into()))?;
        if Sha256::of(document) != entry.sha256 {
            return Err(wrong(format!("it has other bytes than it had: document {}", documents.len() + 1)));
        }
        documents.push(Document { url: entry.url, validators: entry.validators, bytes: document.to_vec() });
        rest = others;
    }
    match rest.is_empty() {
        true => Ok(Some(Cached { documents, seen: head.seen })),
        false => Err(wrong("there is something behind its end".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cached(second: &str) -> Cached {
        let document = |url: &str, bytes: &str| Document {
            url: url.to_owned(),
            validators: Validators { etag: Some("\"x\"".into()), last_modified: None },
            bytes: bytes.as_bytes().to_vec(),
        };
        let documents =
            vec![document("https://a.example/1", "first\n"), document("https://a.example/2", second)];
        Cached { documents, seen: 1_800_000_000 }
    }

    #[test]
    fn what_is_loaded_is_what_was_stored_last() {
        let folder = tempfile::tempdir().expect("a folder");
        let below = folder.path().join("cache");
        assert_eq!(load(&below, "google").expect("nothing is wrong with nothing"), None);
        store(&below, "google", &cached("second")).expect("it can be stored");
        store(&below, "google", &cached("")).expect("it can be stored");
        assert_eq!(load(&below, "google").expect("it can be loaded"), Some(cached("")));
        assert_eq!(load(&below, "aws").expect("nothing is wrong with nothing"), None);
        let names: Vec<_> = fs::read_dir(&below).expect("it is there").collect();
        assert_eq!(names.len(), 1, "nothing else stays: {names:?}");
    }

    #[test]
    fn what_is_damaged_is_told_and_not_used() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = path(folder.path(), "aws");
        store(folder.path(), "aws", &cached("second")).expect("it can be stored");
        let good = fs::read(&path).expect("it is there");
        let text = String::from_utf8(good.clone()).expect("it is text here");
        let refused = |bytes: &[u8]| {
            fs::write(&path, bytes).expect("it can be written");
            load(folder.path(), "aws").expect_err("it is damaged").what
        };
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            // A bit of an address or of the time is a change that nothing shows; it changes nothing either.
            fs::write(&path, &bytes).expect("it can be written");
            if let Ok(Some(other)) = load(folder.path(), "aws") {
                let bodies =
                    |cached: &Cached| cached.documents.iter().map(|d| d.bytes.clone()).collect::<Vec<_>>();
                assert_eq!(bodies(&other), bodies(&cached("second")), "byte {at}");
            }
            assert!(!refused(&good[..at]).is_empty(), "cut at {at}");
        }
        assert_eq!(refused(b""), "it has no first line");
        assert_eq!(refused(&vec![b'x'; MAX_HEAD + 1]), "it has no first line");
        assert_eq!(refused(&good[..good.len() - 1]), "it ends too early");
        assert_eq!(refused(&[good.as_slice(), b"x"].concat()), "there is something behind its end");
        assert_eq!(
            refused(text.replace("first\n", "First\n").as_bytes()),
            "it has other bytes than it had: document 1"
        );
        assert_eq!(refused(text.replace("\"aws\"", "\"gcp\"").as_bytes()), "it is of another provider");
        let other = text.replace("\"format\":1", "\"format\":2");
        assert_eq!(refused(other.as_bytes()), "its format is 2, and this program reads 1");
        store(folder.path(), "aws", &cached("second")).expect("it can be stored over it");
        assert!(load(folder.path(), "aws").expect("it is good again").is_some());
    }

    #[test]
    fn what_cannot_be_written_leaves_what_was_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        fs::write(&file, "x").expect("it can be written");
        assert!(store(&file, "aws", &cached("")).is_err(), "a file is no folder");
        // A folder stands where the file should be.
        fs::create_dir(path(folder.path(), "aws")).expect("it can be made");
        assert!(store(folder.path(), "aws", &cached("")).is_err());
        let left = fs::read_dir(folder.path()).expect("it is there").count();
        assert_eq!(left, 2, "what was written beside it is gone");
    }
}
