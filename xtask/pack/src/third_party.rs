//! The licence texts of what is linked in, which must come along with the program.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::crates::Crate;

/// How the names of files with a licence begin, in small letters.
const BEGINNINGS: [&str; 6] = ["licen", "copying", "copyright", "notice", "unlicen", "authors"];

/// Returns every text once, with the crates that carry it.
///
/// `notices` are texts by the name of what they belong to and is no crate.
pub(crate) fn text(linked: &[Crate], notices: &[(String, PathBuf)]) -> Result<String> {
    let mut carriers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut list = String::new();
    // What comes from no registry is our own, under the licence beside this text.
    for part in linked.iter().filter(|part| part.checksum.is_some()) {
        let named = format!("{} {}", part.name, part.version);
        let texts = texts_of(part)?;
        list += &format!("{named}: {}", part.licence);
        if texts.is_empty() {
            // Such a crate names its licence and nothing else; who wrote it is all there is to tell.
            let authors =
                if part.authors.is_empty() { "its authors".to_owned() } else { part.authors.join(", ") };
            list += &format!("; it carries no text of it; by {authors}, {}", part.repository);
        }
        list.push('\n');
        for text in texts {
            carriers.entry(text).or_default().push(named.clone());
        }
    }
    for (name, path) in notices {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        carriers.entry(tidy(&text)).or_default().push(name.clone());
        list += &format!("{name}\n");
    }
    let mut texts: Vec<(Vec<String>, String)> =
        carriers.into_iter().map(|(text, carriers)| (carriers, text)).collect();
    texts.sort();
    let mut page = format!(
        "What is linked into egress-agent besides its own code, and under which licences.\n\n\
         The standard library of Rust: MIT OR Apache-2.0, by the Rust Project Contributors; used under Apache-2.0 (see LICENSE).\n{list}"
    );
    for (carriers, text) in texts {
        let rule = "=".repeat(80);
        page += &format!("\n{rule}\n{}\n{rule}\n\n{text}\n", carriers.join("\n"));
    }
    Ok(page)
}

/// How deep in a crate a licence is looked for: C code that a crate brings has its own, in a folder of its own.
const DEPTH: usize = 3;

/// The texts in a crate's own folder, and in folders below it.
fn texts_of(part: &Crate) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![(part.folder.clone(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let failed = || format!("cannot list {}", folder.display());
        for entry in fs::read_dir(&folder).with_context(failed)? {
            let entry = entry.with_context(failed)?;
            let kind = entry.file_type().with_context(failed)?;
            let name = entry.file_name().to_string_lossy().to_lowercase();
            if kind.is_dir() && depth < DEPTH {
                folders.push((entry.path(), depth + 1));
            } else if kind.is_file() && is_licence(&name) {
                let bytes = crate::read(&entry.path())?;
                found.push((entry.path(), tidy(&String::from_utf8_lossy(&bytes))));
            }
        }
    }
    // In an order that no file system decides.
    found.sort();
    Ok(found.into_iter().map(|(_, text)| text).collect())
}

/// Returns whether a file of this name, in small letters, is a licence and not code about licences.
fn is_licence(name: &str) -> bool {
    let is_text = match name.rsplit_once('.') {
        None => true,
        Some((_, ending)) => !["rs", "py", "json", "toml", "html", "c", "h"].contains(&ending),
    };
    is_text && BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

/// The same text with other line ends is the same text.
fn tidy(text: &str) -> String {
    let lines: Vec<&str> = text.trim_start_matches('\u{feff}').trim().lines().map(str::trim_end).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn part(name: &str, folder: &Path) -> Crate {
        Crate {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            licence: "MIT".to_owned(),
            authors: vec!["A. Uthor".to_owned()],
            repository: "https://example.com/x".to_owned(),
            checksum: (name != "egress-agent").then(|| "ab".repeat(32)),
            folder: folder.to_owned(),
            uses: BTreeSet::new(),
        }
    }

    #[test]
    fn a_text_stands_once_with_all_who_carry_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let folders: Vec<PathBuf> =
            ["own", "a", "b", "c"].iter().map(|name| folder.path().join(name)).collect();
        for folder in &folders {
            fs::create_dir(folder).expect("made");
        }
        fs::write(folders[1].join("LICENSE-MIT"), "one\r\ntext\r\n").expect("written");
        fs::write(folders[2].join("license.md"), "one\ntext").expect("written");
        fs::write(folders[2].join("NOTICE"), "b notes").expect("written");
        fs::write(folders[2].join("lib.rs"), "no licence").expect("written");
        fs::write(folders[2].join("license.rs"), "no licence").expect("written");
        fs::create_dir(folders[2].join("c")).expect("made");
        fs::write(folders[2].join("c").join("COPYING"), "of the C code").expect("written");
        let copyright = folder.path().join("COPYRIGHT");
        fs::write(&copyright, "of a C library").expect("written");
        let linked: Vec<Crate> = ["egress-agent", "a", "b", "c"]
            .iter()
            .zip(&folders)
            .map(|(name, folder)| part(name, folder))
            .collect();
        let page = text(&linked, &[("musl".to_owned(), copyright)]).expect("all can be read");
        assert_eq!(page.matches("one\ntext").count(), 1, "{page}");
        assert!(page.contains("a 1.0.0\nb 1.0.0\n====="), "{page}");
        assert!(
            ["b notes", "of the C code", "of a C library"].iter().all(|text| page.contains(text)),
            "{page}"
        );
        assert!(
            page.contains("c 1.0.0: MIT; it carries no text of it; by A. Uthor, https://example.com/x"),
            "{page}"
        );
        assert!(!page.contains("no licence") && !page.contains("egress-agent 1.0.0"), "{page}");
    }
}
