//! Trees of files as archives whose bytes depend on nothing but their content.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// What stands at a path.
pub(crate) enum Entry {
    /// Readable by all.
    File(Vec<u8>),
    /// Readable and executable by all.
    Program(Vec<u8>),
    /// A folder in which everybody may write, like `/tmp`.
    Scratch,
}

impl Entry {
    pub(crate) fn text(text: &str) -> Self {
        Entry::File(text.as_bytes().to_vec())
    }
}

/// Files by path, all of them root's; the folders around them come by themselves.
#[derive(Default)]
pub(crate) struct Tree {
    entries: BTreeMap<String, Entry>,
}

impl Tree {
    /// Adds what stands at a path without a leading slash.
    pub(crate) fn add(&mut self, path: &str, entry: Entry) -> Result<()> {
        if self.entries.insert(path.to_owned(), entry).is_some() {
            bail!("{path} is given twice");
        }
        Ok(())
    }

    /// Returns how many bytes the files have.
    pub(crate) fn bytes(&self) -> u64 {
        let sizes = self.entries.values().map(|entry| match entry {
            Entry::File(content) | Entry::Program(content) => content.len() as u64,
            Entry::Scratch => 0,
        });
        sizes.sum()
    }

    /// Returns the tree as a tar archive with every time stamp `created`, in seconds since 1970.
    pub(crate) fn tar(&self, created: u64) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut folders: Vec<&str> = Vec::new();
        for (path, entry) in &self.entries {
            for (end, _) in path.match_indices('/') {
                let folder = &path[..end];
                if !folders.contains(&folder) {
                    folders.push(folder);
                    append(&mut archive, &format!("{folder}/"), EntryType::Directory, 0o755, &[], created)?;
                }
            }
            match entry {
                Entry::File(content) => {
                    append(&mut archive, path, EntryType::Regular, 0o644, content, created)?;
                }
                Entry::Program(content) => {
                    append(&mut archive, path, EntryType::Regular, 0o755, content, created)?;
                }
                Entry::Scratch => {
                    append(&mut archive, &format!("{path}/"), EntryType::Directory, 0o1777, &[], created)?;
                }
            }
        }
        archive.into_inner().context("cannot finish an archive")
    }

    /// Writes the tree into an empty folder.
    pub(crate) fn unpack(&self, folder: &Path) -> Result<()> {
        let bytes = self.tar(0)?;
        let mut archive = tar::Archive::new(bytes.as_slice());
        // Modes as they are in the tree, whatever the caller's mask.
        archive.set_preserve_permissions(true);
        archive.unpack(folder).with_context(|| format!("cannot unpack into {}", folder.display()))
    }

    /// Returns the archive as a `.tar.gz`.
    pub(crate) fn gzipped(&self, created: u64) -> Result<Vec<u8>> {
        gzip(&self.tar(created)?)
    }
}

fn append(
    archive: &mut tar::Builder<Vec<u8>>,
    path: &str,
    kind: EntryType,
    mode: u32,
    content: &[u8],
    created: u64,
) -> Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(created);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content).with_context(|| format!("cannot archive {path}"))
}

/// Compresses as well as it can be done; there is neither a name nor a time in the result.
pub(crate) fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).context("cannot compress")
}

/// Returns the SHA-256 of these bytes, in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns what is in a folder as a tar archive.
pub(crate) fn tar_of_folder(folder: &Path, created: u64) -> Result<Vec<u8>> {
    let mut tree = Tree::default();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).with_context(|| format!("cannot list {}", next.display()))? {
            let path = entry.with_context(|| format!("cannot list {}", next.display()))?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("it was found in there");
                let name = name.to_str().with_context(|| format!("{} is no text", path.display()))?;
                tree.add(name, Entry::File(crate::read(&path)?))?;
            }
        }
    }
    tree.tar(created)
}

/// Makes an empty folder, in place of what has this path now.
pub(crate) fn replace_folder(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// Writes a file of the release and notes its checksum.
pub(crate) fn write(
    folder: &Path,
    name: &str,
    content: &[u8],
    sums: &mut BTreeMap<String, String>,
) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    sums.insert(name.to_owned(), sha256(content));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::default();
        tree.add("usr/bin/p", Entry::Program(b"program".to_vec())).expect("new");
        tree.add("usr/a", Entry::text("text")).expect("new");
        tree.add("tmp", Entry::Scratch).expect("new");
        tree
    }

    #[test]
    fn folders_come_before_what_is_in_them_and_all_is_roots() {
        let bytes = tree().tar(77).expect("it can be archived");
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut seen = Vec::new();
        for entry in archive.entries().expect("it is an archive") {
            let mut entry = entry.expect("an entry");
            let header = entry.header();
            assert_eq!((header.uid().expect("a number"), header.gid().expect("a number")), (0, 0));
            assert_eq!(header.mtime().expect("a number"), 77);
            let mode = header.mode().expect("a number");
            let path = String::from_utf8(entry.path_bytes().into_owned()).expect("text");
            let mut content = String::new();
            entry.read_to_string(&mut content).expect("text");
            seen.push(format!("{mode:o} {path} {content}"));
        }
        assert_eq!(
            seen,
            ["1777 tmp/ ", "755 usr/ ", "644 usr/a text", "755 usr/bin/ ", "755 usr/bin/p program"]
        );
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let once = tree().gzipped(5).expect("fine");
        assert_eq!(once, tree().gzipped(5).expect("fine"));
        assert_ne!(once, tree().gzipped(6).expect("fine"), "the time is in it");
        // Neither a name nor the time of packing in the header (RFC 1952, section 2.3).
        assert_eq!(once[3] & 0b1000, 0);
        assert_eq!(once[4..8], [0; 4]);
    }

    #[test]
    fn unpacked_it_has_its_modes() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        tree().unpack(folder.path()).expect("unpacked");
        let mode = |path: &str| {
            fs::metadata(folder.path().join(path)).expect("it is there").permissions().mode() & 0o7777
        };
        assert_eq!(
            [mode("tmp"), mode("usr"), mode("usr/a"), mode("usr/bin/p")],
            [0o1777, 0o755, 0o644, 0o755]
        );
    }

    #[test]
    fn a_path_stands_once() {
        assert!(tree().add("tmp", Entry::text("")).is_err());
    }

    #[test]
    fn a_checksum_is_as_sha256sum_writes_it() {
        assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
