//! `egress-agent fmt`: policies in their canonical form.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::Value;

use super::{
    COULD_NOT_RUN,
    documents::{self, Document, Documents, STANDARD_INPUT},
    validate::report::{Report, one_line},
};
use crate::{
    k8s::convert::{MANAGED, POLICY_KEY},
    policy::{
        cluster::NsName,
        document::{self, canonical},
        finding::Finding,
        model::Policy,
    },
};

/// The exit code when a file is not in its form, or holds a policy that is none.
const FINDINGS: u8 = 1;

/// What to write, and where.
#[derive(Debug, Args)]
#[command(
    after_help = "Fields are put in the order of the documentation under their main names, each on a line of its own; lists of plain values \
    stay on one line while they fit. Nothing changes in meaning: lists keep their order, and texts and numbers their value. Of a manifest only \
    the lines under `policy.json: |` are written anew, everything else stays byte for byte.\n\n\
    A file with an error in it is left as it is, and so is a policy that is no block of its own, with a word on standard error.\n\n\
    Exit codes: 0 done, 1 a file is not in its form, or cannot be brought into it (--check), or has an error in it, 2 could not run."
)]
pub struct Arguments {
    /// Manifests, policy.json documents, and directories of them; - for standard input
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    /// Write nothing; name the files that are not in their form
    #[arg(long, conflicts_with = "write")]
    check: bool,

    /// Write the files in place of standard output
    #[arg(short, long)]
    write: bool,
}

/// Formats.
///
/// # Errors
///
/// When something cannot be written.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut code = 0;
    for path in &arguments.paths {
        let mut documents = Documents::default();
        if let Err(error) = documents.add(path) {
            super::complain(&error);
            code = COULD_NOT_RUN;
            continue;
        }
        code = code.max(all(arguments, documents)?);
    }
    Ok(ExitCode::from(code))
}

/// Formats every file that was read, and returns what the program is to end with on their account.
fn all(arguments: &Arguments, documents: Documents) -> anyhow::Result<u8> {
    let Documents { list, errors, sources, order, .. } = documents;
    let mut code = 0;
    for error in &errors {
        eprintln!("{}", Report::of_file(error));
        code = FINDINGS;
    }
    // What stands in a file beside an error may not be all that was meant.
    let broken: BTreeSet<String> = errors.iter().map(|error| error.path.display().to_string()).collect();
    let mut files: Vec<_> = sources.iter().collect();
    files.sort_by_key(|(file, _)| order.get(&***file));
    let mut rest = list.as_slice();
    for (file, text) in files {
        let count = rest.iter().take_while(|document| document.place.file == *file).count();
        let (own, others) = rest.split_at(count);
        rest = others;
        if broken.contains(&**file) {
            continue;
        }
        let formed = match form(file, text, own) {
            Ok(Formed { text, notes }) => {
                notes.iter().for_each(|note| eprintln!("{}", one_line(note)));
                if arguments.check && !notes.is_empty() {
                    code = code.max(FINDINGS);
                }
                text
            }
            Err(reports) => {
                reports.iter().for_each(|report| eprintln!("{report}"));
                code = FINDINGS;
                continue;
            }
        };
        let changed = formed != **text;
        if arguments.check {
            if changed {
                super::write(&format!("{}\n", one_line(file))).context("writing the names of files")?;
                code = code.max(FINDINGS);
            }
        } else if arguments.write && &**file != STANDARD_INPUT {
            if changed {
                replace(Path::new(&**file), &formed)?;
            }
        } else {
            super::write(&formed).context("writing the form")?;
        }
    }
    Ok(code)
}

/// A file in its form.
struct Formed {
    text: String,
    /// What could not be written anew.
    notes: Vec<String>,
}

/// Returns a file in its form, or what is wrong with the policies in it.
fn form(file: &str, text: &str, documents: &[Document]) -> Result<Formed, Vec<Report>> {
    let mut wrong = Vec::new();
    let mut notes = Vec::new();
    let mut changes: Vec<(std::ops::Range<usize>, String)> = Vec::new();
    let policies: Vec<(String, String)> = documents
        .iter()
        .filter_map(|document| Some((document.id.name.clone(), document.text.clone()?)))
        .collect();
    let mut blocks = documents::place(text, &policies).into_iter();
    // The policies as they are to be, in the order of the text.
    let mut wanted = Vec::with_capacity(policies.len());
    for Document { id, text: policy, place } in documents {
        // What has no text is for `validate` to find.
        let Some(policy) = policy else { continue };
        let block = blocks.next().flatten();
        wanted.push(policy.clone());
        let parsed = document::parse(id, policy);
        let Some(meaning) = parsed.policy else {
            let errors = parsed.findings.into_iter().filter(Finding::is_error);
            wrong.extend(errors.map(|finding| Report::new(id, finding, place, None)));
            continue;
        };
        let formed = canonical(policy).expect("what has a policy is JSON");
        if !means_the_same(id, &meaning, &formed) {
            notes.push(format!(
                "{}: warning: {id} stays as it is: its form of {} bytes would not hold in its place",
                place.file,
                formed.len()
            ));
            continue;
        }
        if place.bare {
            changes.push((0..text.len(), formed));
            continue;
        }
        let Some(block) = block else {
            if formed.trim_end() != policy.trim_end() {
                let line = place.line.map_or_else(String::new, |line| format!(":{line}"));
                notes.push(format!(
                    "{}{line}: warning: {id} stays as it is: its policy.json is no block of its own; write `policy.json: |` and the document below it",
                    place.file
                ));
            }
            continue;
        };
        let mut lines = String::with_capacity(formed.len());
        // A file with the line ends of Windows keeps them.
        let end = if text[..block.span.start].ends_with("\r\n") { "\r\n" } else { "\n" };
        for (index, line) in formed.lines().enumerate() {
            let before = if index > 0 { end } else { "" };
            write!(lines, "{before}{:indent$}{line}", "", indent = block.indent)
                .expect("a string takes everything");
        }
        changes.push((block.span.clone(), lines));
        if let Some(wanted) = wanted.last_mut() {
            *wanted = formed;
        }
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    changes.sort_by_key(|(span, _)| span.start);
    let mut formed = String::with_capacity(text.len());
    let mut at = 0;
    for (span, lines) in changes {
        formed.push_str(&text[at..span.start]);
        formed.push_str(&lines);
        at = span.end;
    }
    formed.push_str(&text[at..]);
    let bare = documents.iter().any(|document| document.place.bare);
    if !bare && formed != text && !says(file, text, &formed, &wanted) {
        notes
            .push(format!("{file}: warning: it stays as it is: which lines are the policy's is not certain"));
        text.clone_into(&mut formed);
    }
    Ok(Formed { text: formed, notes })
}

/// Tells whether a file says the same after as before, but for its policies, which are the `wanted` ones.
fn says(file: &str, before: &str, after: &str, wanted: &[String]) -> bool {
    let (mut before, mut after) = (documents::values(file, before), documents::values(file, after));
    let (mut old, mut new) = (Vec::new(), Vec::new());
    before.iter_mut().for_each(|value| take(value, &mut old));
    after.iter_mut().for_each(|value| take(value, &mut new));
    let same = |(wanted, new): (&String, &String)| wanted.trim_end() == new.trim_end();
    before == after
        && old.len() == new.len()
        && new.len() == wanted.len()
        && wanted.iter().zip(&new).all(same)
}

/// Takes the policies out of the managed ConfigMaps of a document, in the order of the text.
fn take(value: &mut Value, policies: &mut Vec<String>) {
    if let Some(items) = value.get_mut("items").and_then(Value::as_array_mut) {
        items.iter_mut().for_each(|item| take(item, policies));
        return;
    }
    let managed = value["metadata"]["labels"][MANAGED.0] == MANAGED.1;
    if managed
        && let Some(Value::String(policy)) = value.get_mut("data").and_then(|data| data.get_mut(POLICY_KEY))
    {
        policies.push(std::mem::take(policy));
    }
}

/// Tells whether a document means the same in its form. It may be none any more, if it has grown beyond what a ConfigMap holds.
fn means_the_same(id: &NsName, before: &Policy, after: &str) -> bool {
    document::parse(id, after).policy.is_some_and(|after| after == *before)
}

/// Writes a file at once: whoever reads it sees the old text or the new one.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let writing = || format!("writing {}", path.display());
    let metadata = fs::metadata(path).with_context(writing)?;
    if !metadata.is_file() {
        bail!("{} is no file", path.display());
    }
    // The file that a link leads to is written, and the link stays.
    let path = fs::canonicalize(path).with_context(writing)?;
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        bail!("{} is no file", path.display());
    };
    let permissions = metadata.permissions();
    let mut temporary = name.to_os_string();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = folder.join(temporary);
    let write = || -> io::Result<()> {
        let mut file = File::options().write(true).create_new(true).open(&temporary)?;
        file.set_permissions(permissions)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write()
        .inspect_err(|_| {
            // What is left of it says so itself by its name.
            drop(fs::remove_file(&temporary));
        })
        .with_context(writing)
}
