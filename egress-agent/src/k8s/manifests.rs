//! Objects from files: YAML and JSON manifests, as they are, in a directory.
//!
//! What cannot be read is reported with its place and never stops the rest: files stand on their own, and so do the
//! documents of a YAML file.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    ffi::OsStr,
    fmt,
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1;
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor},
};
use serde_json::{Map, Value};
use serde_path_to_error::Segment;

use super::{convert, network_policy};
use crate::policy::{
    cluster::{Labels, NsName},
    index::{Change, Index, Object, ObjectKey, ObjectKind},
};

/// The largest file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 16 << 20;

/// The deepest nesting that is read.
const MAX_DEPTH: usize = 64;

/// How many faults of one object are told each by itself. The line of each is looked for in the text.
const MAX_FAULTS: usize = 100;

/// How many directories and manifest files below one path are read.
pub const MAX_DIRECTORIES: usize = 4096;
/// See [`MAX_DIRECTORIES`].
pub const MAX_FILES: usize = 65_536;

/// `F_SETSIG` of fcntl(2): which signal tells of a lease that is in somebody's way.
const F_SETSIG: libc::c_int = 10;

/// How many nodes and aliases may unfold into. A file of [`MAX_FILE_BYTES`] without aliases stays far below.
const MAX_NODES: usize = 4 << 20;
const MAX_ALIASED: usize = 100_000;

/// What was found in a file or a directory.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    /// Every file, in the order of their paths.
    pub files: Vec<ManifestFile>,
    /// How many objects of kinds that decide nothing about egress were passed over, by `apiVersion` and `kind`.
    pub ignored: BTreeMap<String, usize>,
}

impl Manifests {
    /// Returns what is wrong, in the order of the files.
    pub fn errors(&self) -> impl Iterator<Item = &ManifestError> {
        self.files.iter().flat_map(|file| &file.errors)
    }
}

/// What was found in one file.
#[derive(Clone, Debug, Default)]
pub struct ManifestFile {
    /// Its path.
    pub path: PathBuf,
    /// Its objects, in the order of the text.
    pub objects: Vec<(ObjectKey, Object)>,
    /// What is wrong with it. A policy that is wrong in itself stands here and, as far as it has a name, among the objects,
    /// so that the index can fail closed for it.
    pub errors: Vec<ManifestError>,
    /// Whether objects may be missing because of an error, so that nobody knows what the file is to say.
    pub unread: bool,
    /// As in [`Manifests::ignored`].
    pub ignored: BTreeMap<String, usize>,
    /// The labels its Services select pods by. The kernel layer takes the addresses behind a Service from elsewhere, so they are no part
    /// of the objects.
    pub selectors: BTreeMap<NsName, Labels>,
}

/// Something wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestError {
    /// The file.
    pub path: PathBuf,
    /// Which document of the file, from 1; none if it is about the whole file.
    pub document: Option<usize>,
    /// The line in the file, from 1, where known; that of the document's beginning where nothing nearer is.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do, where that can be told.
    pub hint: Option<String>,
}

impl std::error::Error for ManifestError {}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

/// A path that cannot be read at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot read manifests from {path}")]
pub struct LoadError {
    /// The path.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Reads a manifest file, or every one in a directory and the directories in it.
///
/// In directories only names that end in `.yaml`, `.yml` or `.json` count, and hidden ones don't: neither editors' files nor
/// the `..data` links of a mounted ConfigMap. Pipes, sockets and devices don't either. Links are followed; what is reached
/// twice is read once, under the first path.
///
/// # Errors
///
/// If `path` itself does not exist or cannot be read. Everything else stands in the result.
pub fn load(path: &Path) -> Result<Manifests, LoadError> {
    // Named by a person, so it may also be a pipe.
    load_with(path, true, &mut Cache::default(), &|_| false)
}

fn load_with(
    path: &Path,
    pipes: bool,
    cache: &mut Cache,
    gave: &dyn Fn(&Path) -> bool,
) -> Result<Manifests, LoadError> {
    let failed = |source| LoadError { path: path.to_owned(), source };
    let mut files = Vec::new();
    let metadata = fs::metadata(path).map_err(failed)?;
    if metadata.is_dir() {
        fs::read_dir(path).map_err(failed)?;
        let mut walk = Walk::default();
        walk.directory(path, &metadata);
        for found in walk.found {
            files.push(match found {
                Found::File(path, stamp) => cache.read(path, stamp, gave),
                Found::Fault(path, error) => unreadable(path, &error),
            });
        }
    } else if pipes && !metadata.is_file() {
        files.push(match File::open(path).and_then(|file| text(&file)) {
            Ok(text) => parse(path.to_owned(), &text),
            Err(error) => unreadable(path.to_owned(), &error),
        });
    } else {
        files.push(cache.read(path.to_owned(), Stamp::of(&metadata), gave));
    }
    let mut ignored = BTreeMap::new();
    for file in &files {
        for (kind, count) in &file.ignored {
            *ignored.entry(kind.clone()).or_default() += count;
        }
    }
    Ok(Manifests { files, ignored })
}

enum Found {
    File(PathBuf, Stamp),
    Fault(PathBuf, io::Error),
}

/// A walk through a directory and those in it, each of them once and in the order of their names.
#[derive(Default)]
struct Walk {
    /// Device and inode of everything seen, so that links neither repeat anything nor lead in circles.
    seen: BTreeSet<(u64, u64)>,
    directories: usize,
    files: usize,
    found: Vec<Found>,
}

impl Walk {
    fn fault(&mut self, path: &Path, error: io::Error) {
        self.found.push(Found::Fault(path.to_owned(), error));
    }

    fn directory(&mut self, directory: &Path, metadata: &fs::Metadata) {
        if !self.seen.insert((metadata.dev(), metadata.ino())) {
            return;
        }
        self.directories += 1;
        if self.directories > MAX_DIRECTORIES {
            // Once is enough to say it.
            if self.directories == MAX_DIRECTORIES + 1 {
                let message = format!("more than {MAX_DIRECTORIES} directories; the rest is not read");
                self.fault(directory, io::Error::other(message));
            }
            return;
        }
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) => return self.fault(directory, error),
        };
        let mut paths = Vec::new();
        for entry in entries {
            match entry {
                Ok(entry) => paths.push(entry.path()),
                Err(error) => self.fault(directory, error),
            }
        }
        paths.sort_unstable();
        for path in paths {
            self.visit(path);
        }
    }

    fn visit(&mut self, path: PathBuf) {
        if is_hidden(&path) {
            return;
        }
        let manifest =
            path.extension().and_then(OsStr::to_str).is_some_and(|e| matches!(e, "yaml" | "yml" | "json"));
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => self.directory(&path, &metadata),
            Ok(metadata) if manifest && metadata.is_file() => {
                if !self.seen.insert((metadata.dev(), metadata.ino())) {
                    return;
                }
                self.files += 1;
                if self.files <= MAX_FILES {
                    self.found.push(Found::File(path, Stamp::of(&metadata)));
                } else if self.files == MAX_FILES + 1 {
                    let message = format!("more than {MAX_FILES} manifest files; the rest is not read");
                    self.fault(&path, io::Error::other(message));
                }
            }
            Err(error) if manifest => self.found.push(Found::Fault(path, error)),
            // Neither a directory nor a manifest, so whether it can be read does not matter.
            Ok(_) | Err(_) => {}
        }
    }
}

/// Returns whether a directory's walk passes over a name.
#[must_use]
pub fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds of the last write.
    written: (i64, i64),
    /// Those of the last change of any kind, which nobody can set back.
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            written: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Returns whether a later write is sure to leave another stamp: file systems count time in steps of some milliseconds.
    fn settled(&self) -> bool {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .is_ok_and(|now| i64::try_from(now.as_secs()).is_ok_and(|now| now > self.changed.0 + 1))
    }
}

/// Files as they were read last, so that only what has changed is read again.
#[derive(Debug, Default)]
struct Cache(BTreeMap<PathBuf, (Stamp, ManifestFile, bool)>);

impl Cache {
    /// Returns what a file says. `gave` tells whether a file gave objects before.
    fn read(&mut self, path: PathBuf, stamp: Stamp, gave: &dyn Fn(&Path) -> bool) -> ManifestFile {
        if let Some((known, file, used)) = self.0.get_mut(&path)
            && *known == stamp
        {
            *used = true;
            return file.clone();
        }
        let (stamp, text) = match whole(&path) {
            Ok(read) => read,
            Err(error) => return unreadable(path, &error),
        };
        if text.is_empty() && gave(&path) {
            let error = io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it is empty now; what it gave before stays (delete the file to take that away)",
            );
            return unreadable(path, &error);
        }
        let file = parse(path.clone(), &text);
        if stamp.settled() {
            self.0.insert(path, (stamp, file.clone(), true));
        } else {
            self.0.remove(&path);
        }
        file
    }

    /// Forgets the files that were not asked for since the last call.
    fn sweep(&mut self) {
        self.0.retain(|_, (_, _, used)| std::mem::take(used));
    }
}

fn unreadable(path: PathBuf, error: &io::Error) -> ManifestFile {
    let message = format!("cannot be read: {error}");
    let error = ManifestError { path: path.clone(), document: None, line: None, message, hint: None };
    ManifestFile { path, errors: vec![error], unread: true, ..ManifestFile::default() }
}

/// Reads a regular file that nobody is writing.
fn whole(path: &Path) -> io::Result<(Stamp, String)> {
    // What is a file now may be a pipe when it is opened, and a pipe would block.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    lease(&file)?;
    // The lease was not there yet when the first stamp was taken.
    let stamp = Stamp::of(&file.metadata()?);
    Ok((stamp, text(&file)?))
}

/// Makes sure that nobody has the file open for writing, and that whoever opens it so waits until `file` is closed.
///
/// Where the kernel grants no lease (files of other users without the capability, some network file systems), nothing is
/// known about writers, and the file is read as it is.
fn lease(file: &File) -> io::Result<()> {
    // When a writer waits, the kernel tells by a signal. The one it would take by default ends the process; this one does not.
    // SAFETY: system calls that take a descriptor, which is open, and numbers.
    let result = unsafe {
        if libc::fcntl(file.as_raw_fd(), F_SETSIG, libc::SIGURG) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK)
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::WouldBlock {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, "it is being written"));
    }
    Ok(())
}

fn text(file: &File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("larger than {} MiB", MAX_FILE_BYTES >> 20),
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        io::Error::new(io::ErrorKind::InvalidData, format!("not UTF-8: {}", error.utf8_error()))
    })
}

/// Reads the text of a file. The name decides between JSON (`.json`) and YAML.
#[must_use]
pub fn parse(path: PathBuf, text: &str) -> ManifestFile {
    let json = path.extension().is_some_and(|extension| extension == "json");
    let mut reader =
        Reader { file: ManifestFile { path, ..ManifestFile::default() }, document: 0, line: 1, text: "" };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if json {
        reader.json(text);
    } else {
        reader.yaml(text);
    }
    reader.file
}

/// A part of a YAML file that stands on its own.
struct Document<'a> {
    line: usize,
    text: &'a str,
}

/// Cuts a YAML text at its document marks.
///
/// A line that begins with `---` and a blank, or is just that, begins a document wherever it stands, even inside a block
/// scalar; one with `...` ends it. So the cut needs no parser, and one bad document does not spoil the others.
fn documents(text: &str) -> Vec<Document<'_>> {
    let mark = |line: &str, mark: &str| {
        line.strip_prefix(mark)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
    };
    let mut found = Vec::new();
    let (mut start, mut first) = (0, 1);
    // Whether what stands since `start` are directives, which belong to the document whose mark follows.
    let (mut directives, mut content) = (false, false);
    let mut offset = 0;
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let end = offset + line.len();
        if mark(line, "---") {
            if content || !directives {
                found.push(Document { line: first, text: &text[start..offset] });
                (start, first) = (offset, i + 1);
            }
            (directives, content) = (false, true);
        } else if mark(line, "...") {
            found.push(Document { line: first, text: &text[start..offset] });
            (start, first) = (end, i + 2);
            (directives, content) = (false, false);
        } else if !content && line.starts_with('%') {
            directives = true;
        } else if !is_blank(line) {
            content = true;
        }
        offset = end;
    }
    found.push(Document { line: first, text: &text[start..] });
    found.retain(|document| {
        let mut lines = document.text.lines();
        !lines.all(|line| is_blank(line) || line.strip_prefix("---").is_some_and(is_blank))
    });
    found
}

/// Returns whether a line holds nothing but blanks and a comment.
fn is_blank(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#')
}

fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 2 * MAX_NODES,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_ALIASED,
        },
        // `yes`, `n` and the like are names, as in YAML 1.2.
        strict_booleans: true,
        with_snippet: false,
    }
}

/// One file while it is read.
struct Reader<'a> {
    file: ManifestFile,
    /// The present document: its number, its first line and its text, empty if unknown.
    document: usize,
    line: usize,
    text: &'a str,
}

impl<'a> Reader<'a> {
    fn yaml(&mut self, text: &'a str) {
        for (i, document) in documents(text).into_iter().enumerate() {
            (self.document, self.line, self.text) = (i + 1, document.line, document.text);
            match serde_saphyr::from_str_with_options::<Unique>(document.text, yaml_options()) {
                Ok(value) => self.object(value.0, None),
                Err(error) => {
                    let line = error_line(&error).map(|line| document.line + line - 1);
                    self.error_at(line, error.without_snippet().to_string(), None);
                }
            }
        }
    }

    fn json(&mut self, text: &'a str) {
        if text.trim().is_empty() {
            return;
        }
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<Unique>();
        let mut line = 1;
        let mut start = 0;
        while let Some(value) = values.next() {
            let end = values.byte_offset().max(start);
            (self.document, self.line, self.text) = (self.document + 1, line, &text[start..end]);
            match value {
                Ok(value) => self.object(value.0, None),
                // Where the next document would begin is unknown after this.
                Err(error) => return self.error_at(Some(error.line()), error.to_string(), None),
            }
            line += self.text.matches('\n').count();
            start = end;
        }
    }

    fn error(&mut self, message: impl Into<String>, hint: Option<String>) {
        self.error_at(None, message, hint);
    }

    fn error_at(&mut self, line: Option<usize>, message: impl Into<String>, hint: Option<String>) {
        self.file.unread = true;
        self.file.errors.push(ManifestError {
            path: self.file.path.clone(),
            document: Some(self.document),
            line: Some(line.unwrap_or(self.line)),
            message: message.into(),
            hint,
        });
    }

    /// Returns the line where a field is first written in the present document.
    fn field_line(&self, name: &str) -> Option<usize> {
        let written = |line: &str| {
            line.match_indices(name).any(|(at, _)| {
                let before = line[..at].trim_end_matches(['"', '\'']);
                let after = line[at + name.len()..].trim_start_matches(['"', '\'']).trim_start();
                after.starts_with(':') && (before.is_empty() || before.ends_with([' ', '\t', '{', ',']))
            })
        };
        self.text.lines().position(written).map(|i| self.line + i)
    }

    /// Takes a document or an item of a list; `default` is what an item without a kind is.
    fn object(&mut self, mut value: Value, default: Option<(&str, &str)>) {
        if value.is_null() {
            return;
        }
        let Value::Object(fields) = &mut value else {
            return self.error(
                "not a Kubernetes object",
                Some("an object has apiVersion, kind and metadata".into()),
            );
        };
        if let Some((version, kind)) = default {
            fields.entry("apiVersion").or_insert_with(|| version.into());
            fields.entry("kind").or_insert_with(|| kind.into());
        }
        let text = |name: &str| fields.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let (Some(version), Some(kind)) = (text("apiVersion"), text("kind")) else {
            let missing = if text("kind").is_none() { "kind" } else { "apiVersion" };
            return self.error(
                format!("{missing} is missing"),
                Some("an object has apiVersion, kind and metadata".into()),
            );
        };
        let (version, kind) = (version.to_owned(), kind.to_owned());
        if let Some(item_kind) = kind.strip_suffix("List")
            && matches!(fields.get("items"), Some(Value::Array(_) | Value::Null))
        {
            let items = fields.remove("items");
            let default = (!item_kind.is_empty()).then_some((version.as_str(), item_kind));
            if let Some(Value::Array(items)) = items {
                for item in items {
                    self.object(item, default);
                }
            }
            return;
        }
        let Some(known) = ObjectKind::ALL.into_iter().find(|known| known.as_str() == kind) else {
            return self.ignore(&version, &kind);
        };
        if known.api_version() != version {
            if group(known.api_version()) != group(&version) {
                return self.ignore(&version, &kind);
            }
            return self.error(
                format!("{kind} in version `{version}`"),
                Some(format!("write `apiVersion: {}`", known.api_version())),
            );
        }
        self.known(known, value);
    }

    fn ignore(&mut self, version: &str, kind: &str) {
        *self.file.ignored.entry(format!("{version} {kind}")).or_default() += 1;
    }

    fn known(&mut self, kind: ObjectKind, value: Value) {
        match kind {
            ObjectKind::Namespace => self.simple(value, convert::namespace),
            ObjectKind::Pod => self.simple(value, convert::pod),
            ObjectKind::Service => self.service(value),
            ObjectKind::EndpointSlice => self.simple(value, convert::endpoint_slice),
            ObjectKind::Node => self.simple(value, convert::node),
            ObjectKind::ConfigMap => self.config_map(value),
            ObjectKind::NetworkPolicy => self.network_policy(&value),
        }
    }

    fn simple<T: DeserializeOwned>(
        &mut self,
        value: Value,
        convert: fn(T) -> Result<Object, convert::Error>,
    ) {
        let name = describe(&value);
        match typed(value) {
            Ok(object) => self.converted(convert(object)),
            Err(error) => self.type_error(&name, &error),
        }
    }

    fn service(&mut self, value: Value) {
        let selector = value.pointer("/spec/selector").and_then(Value::as_object);
        let label = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
        let selector: Labels = selector.into_iter().flatten().filter_map(label).collect();
        let before = self.file.objects.len();
        self.simple(value, convert::service);
        if let Some((ObjectKey::Service(id), _)) = self.file.objects.get(before)
            && !selector.is_empty()
        {
            self.file.selectors.entry(id.clone()).or_insert(selector);
        }
    }

    fn converted(&mut self, object: Result<Object, convert::Error>) {
        match object {
            Ok(object) => self.file.objects.push((object.key(), object)),
            Err(error) => self.error(error.to_string(), None),
        }
    }

    /// Reports what the typed reading says. It knows the path but no place, so the text is read once more for that.
    fn type_error(&mut self, name: &str, error: &TypeError) {
        let path: Vec<_> = error.path().iter().collect();
        let found =
            serde_saphyr::with_deserializer_from_str_with_options(self.text, yaml_options(), |yaml| {
                Seek(&path).deserialize(yaml)
            });
        let line = found.err().and_then(|error| error_line(&error)).map(|line| self.line + line - 1);
        self.error_at(line, format!("{name}: {}", error.inner()), None);
    }

    /// A managed ConfigMap that cannot be read is one without a policy, so an invalid one, not a missing one.
    fn config_map(&mut self, value: Value) {
        let name = describe(&value);
        let salvaged = identity(&value).filter(|(_, labels)| convert::is_managed(labels));
        let unread = self.file.unread;
        match typed(value) {
            Ok(object) => self.converted(convert::config_map(object)),
            Err(error) => {
                self.type_error(&name, &error);
                if let Some((id, _)) = salvaged {
                    self.file.unread = unread;
                    let object = Object::ConfigMap { id, managed: true, policy: None };
                    self.file.objects.push((object.key(), object));
                }
            }
        }
    }

    /// A NetworkPolicy that cannot be read is one that fails closed, as far as it has a name.
    fn network_policy(&mut self, value: &Value) {
        let name = describe(value);
        let id = identity(value).map(|(id, _)| id);
        let unread = self.file.unread;
        let mut faults = network_policy::unknown_fields(value).into_iter().peekable();
        if faults.peek().is_none() {
            match typed(value) {
                Ok(object) => {
                    let object = convert::network_policy(object);
                    if let Ok(Object::NetworkPolicy(_, Err(fault))) = &object {
                        let (message, hint) = (format!("{name}: {fault}"), fault.hint.clone());
                        self.error(message, hint);
                        self.file.unread = unread;
                    }
                    self.converted(object);
                }
                Err(error) => {
                    self.type_error(&name, &error);
                    let message = error.inner().to_string();
                    let fault = network_policy::Fault { path: "spec".into(), message, hint: None };
                    self.unreadable_policy(id, value, fault, unread);
                }
            }
            return;
        }
        let mut first = None;
        let mut told = 0;
        for fault in faults.by_ref().take(MAX_FAULTS) {
            told += 1;
            let field = fault.path.rsplit('.').next().expect("splitting yields at least one part");
            let line = self.field_line(field);
            self.error_at(line, format!("{name}: {}: {}", fault.path, fault.message), fault.hint.clone());
            first.get_or_insert(fault);
        }
        let more = faults.count();
        if more > 0 {
            self.error(format!("{name}: and {more} more fields beside these {told} are not known"), None);
        }
        if let Some(fault) = first {
            self.unreadable_policy(id, value, fault, unread);
        }
    }

    /// Lets a policy with a name fail closed. Then nothing is missing on its account, so `unread` is again what it was before.
    fn unreadable_policy(
        &mut self,
        id: Option<NsName>,
        value: &Value,
        fault: network_policy::Fault,
        unread: bool,
    ) {
        let Some(id) = id else { return };
        self.file.unread = unread;
        let object = Object::NetworkPolicy(id, Err(fault.unreadable(pod_selector(value))));
        self.file.objects.push((object.key(), object));
    }
}

type TypeError = serde_path_to_error::Error<serde_json::Error>;

/// Reads a value as a type; an error knows where in the value it is.
fn typed<'de, T: Deserialize<'de>>(
    value: impl Deserializer<'de, Error = serde_json::Error>,
) -> Result<T, TypeError> {
    serde_path_to_error::deserialize(value)
}

/// Fails at the end of a path, so that the reader's error says which line that is. One reading for all types: reading the
/// text as the type itself, with places, made a third of the program's code.
struct Seek<'a>(&'a [&'a Segment]);

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.0.first() {
            Some(Segment::Map { .. }) => deserializer.deserialize_map(self),
            Some(Segment::Seq { .. }) => deserializer.deserialize_seq(self),
            // Whatever stands here, its visit fails.
            None | Some(Segment::Enum { .. } | Segment::Unknown) => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Segment::Map { key: wanted }, rest)) = self.0.split_first() else {
            return Err(de::Error::invalid_type(Unexpected::Map, &self));
        };
        while let Some(key) = map.next_key::<String>()? {
            if key == *wanted {
                map.next_value_seed(Seek(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((Segment::Seq { index: wanted }, rest)) = self.0.split_first() else {
            return Err(de::Error::invalid_type(Unexpected::Seq, &self));
        };
        for _ in 0..*wanted {
            if seq.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        seq.next_element_seed(Seek(rest))?;
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

fn error_line(error: &serde_saphyr::Error) -> Option<usize> {
    error.location().and_then(|location| usize::try_from(location.line()).ok()).filter(|line| *line > 0)
}

fn group(version: &str) -> &str {
    version.rsplit_once('/').map_or("", |(group, _)| group)
}

/// Returns an object's kind and name for messages.
fn describe(value: &Value) -> String {
    let part = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let kind = part("/kind").unwrap_or("object");
    match (part("/metadata/namespace"), part("/metadata/name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        (_, None) => format!("{kind} without a name"),
    }
}

/// Returns name and labels of an object whose other parts may be broken.
fn identity(value: &Value) -> Option<(NsName, BTreeMap<String, String>)> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
    let name = text("/metadata/name")?;
    let namespace = match value.pointer("/metadata/namespace") {
        None | Some(Value::Null) => convert::DEFAULT_NAMESPACE,
        Some(Value::String(namespace)) if namespace.is_empty() => convert::DEFAULT_NAMESPACE,
        Some(Value::String(namespace)) => namespace,
        Some(_) => return None,
    };
    let labels = value.pointer("/metadata/labels").and_then(Value::as_object);
    let labels = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
    Some((NsName::new(namespace, name), labels.collect()))
}

/// Returns the pods that a broken NetworkPolicy selects, unless that is what is broken.
fn pod_selector(value: &Value) -> Option<crate::policy::model::LabelSelector> {
    let mut spec = Map::new();
    let written = value.pointer("/spec/podSelector")?;
    spec.insert("podSelector".into(), written.clone());
    let mut probe = Map::new();
    probe.insert("spec".into(), Value::Object(spec));
    if !network_policy::unknown_fields(&Value::Object(probe)).is_empty() {
        return None;
    }
    // What is wrong with it is reported with the policy; without a selector every pod of the namespace is meant.
    let Ok(selector) = v1::LabelSelector::deserialize(written) else { return None };
    let Ok(selector) = network_policy::selector("spec.podSelector", &selector) else { return None };
    Some(selector)
}

/// A value in whose objects no field stands twice, since of two only one would count.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Self)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(item) = items.next_element::<Unique>()? {
            values.push(item.0);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            if values.contains_key(&name) {
                return Err(serde::de::Error::custom(format!("field `{name}` stands twice in one object")));
            }
            let value = fields.next_value::<Unique>()?;
            values.insert(name, value.0);
        }
        Ok(Value::Object(values))
    }
}

/// What a reload has done.
#[derive(Clone, Debug, Default)]
pub struct Reload {
    /// What changed in the index.
    pub change: Change,
    /// Whether everything could be read. While it could not, what is missing may yet be there, so nothing may be opened because
    /// of what is missing.
    pub complete: bool,
    /// The first reason why it is not complete.
    pub incomplete_because: Option<String>,
    /// What is wrong with the files, and which objects stand in more than one.
    pub errors: Vec<ManifestError>,
    /// Objects that hold in an earlier version because their file is broken.
    pub kept: BTreeSet<ObjectKey>,
    /// How many objects hold.
    pub objects: usize,
    /// As in [`Manifests::ignored`].
    pub ignored: BTreeMap<String, usize>,
}

/// Keeps an index like what stands in files and directories.
#[derive(Debug)]
pub struct DirectorySource {
    paths: Vec<PathBuf>,
    /// What each file gave, those that are broken now included.
    files: BTreeMap<PathBuf, BTreeMap<ObjectKey, Object>>,
    /// What the index has from here.
    applied: BTreeSet<ObjectKey>,
    /// Whether a path may be a pipe.
    pipes: bool,
    cache: Cache,
}

impl DirectorySource {
    /// Returns a source for one regular file or directory; nothing is read yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { pipes: false, ..Self::with_paths(vec![path.into()]) }
    }

    /// Returns a source for several files, pipes and directories; of an object in more than one the first path wins.
    #[must_use]
    pub fn with_paths(paths: Vec<PathBuf>) -> Self {
        Self { paths, files: BTreeMap::new(), applied: BTreeSet::new(), pipes: true, cache: Cache::default() }
    }

    /// Reads everything again and brings `index` up to date.
    ///
    /// Objects that are gone from the files are deleted, but as long as a file has errors, what it gave before and does not
    /// give now stays, and so does everything from a path that is missing, or a directory that holds no manifest file any more:
    /// that is how a volume looks that is not mounted. Of an object that is defined twice the first definition counts, in the order of the paths.
    pub fn reload(&mut self, index: &mut Index) -> Reload {
        let mut manifests = Manifests::default();
        let mut broken: Vec<PathBuf> = Vec::new();
        let mut reload = Reload::default();
        let gave = |path: &Path| self.files.get(path).is_some_and(|objects| !objects.is_empty());
        for path in &self.paths {
            let fault = match load_with(path, self.pipes, &mut self.cache, &gave) {
                Ok(loaded) => {
                    let empty = loaded.files.is_empty();
                    manifests.files.extend(loaded.files);
                    for (kind, count) in loaded.ignored {
                        *manifests.ignored.entry(kind).or_default() += count;
                    }
                    if !empty {
                        continue;
                    }
                    "no manifest file is in there; what it gave before, if anything, stays".to_owned()
                }
                Err(error) => format!("{error}: {}", error.source),
            };
            broken.push(path.clone());
            let error =
                ManifestError { path: path.clone(), document: None, line: None, message: fault, hint: None };
            reload.incomplete_because.get_or_insert_with(|| error.to_string());
            reload.errors.push(error);
        }
        self.cache.sweep();
        self.take(index, manifests, broken, reload)
    }

    fn take(
        &mut self,
        index: &mut Index,
        manifests: Manifests,
        mut broken: Vec<PathBuf>,
        mut reload: Reload,
    ) -> Reload {
        reload.ignored = manifests.ignored;
        let before = std::mem::take(&mut self.files);
        // A path that two of the arguments lead to is read twice; the second time says nothing new.
        let mut order = Vec::new();
        for file in manifests.files {
            let Entry::Vacant(slot) = self.files.entry(file.path.clone()) else { continue };
            if !file.errors.is_empty() {
                broken.push(file.path.clone());
            }
            if let Some(error) = file.errors.first().filter(|_| file.unread) {
                reload.incomplete_because.get_or_insert_with(|| error.to_string());
            }
            reload.errors.extend(file.errors);
            let objects = slot.insert(BTreeMap::new());
            for (key, object) in file.objects {
                match objects.entry(key) {
                    Entry::Vacant(slot) => {
                        slot.insert(object);
                    }
                    Entry::Occupied(slot) => {
                        reload.errors.push(twice(&file.path, slot.key(), &file.path));
                    }
                }
            }
            order.push(file.path);
        }
        // What a broken file, or a file under a directory that cannot be read, gave before.
        for (path, objects) in before {
            if !broken.iter().any(|broken| path.starts_with(broken)) {
                continue;
            }
            let present = self.files.entry(path.clone()).or_insert_with(|| {
                order.push(path);
                BTreeMap::new()
            });
            for (key, object) in objects {
                if let Entry::Vacant(slot) = present.entry(key) {
                    reload.kept.insert(slot.key().clone());
                    slot.insert(object);
                }
            }
        }
        let rank = |path: &Path| {
            self.paths.iter().position(|root| path.starts_with(root)).unwrap_or(self.paths.len())
        };
        order.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.cmp(b)));

        let mut wanted: BTreeMap<&ObjectKey, (&Path, &Object)> = BTreeMap::new();
        for path in &order {
            for (key, object) in &self.files[path] {
                match wanted.entry(key) {
                    Entry::Vacant(slot) => {
                        slot.insert((path, object));
                    }
                    Entry::Occupied(slot) => reload.errors.push(twice(path, key, slot.get().0)),
                }
            }
        }
        for (_, object) in wanted.values() {
            reload.change |= index.apply((*object).clone());
        }
        reload.objects = wanted.len();
        let present: BTreeSet<ObjectKey> = wanted.into_keys().cloned().collect();
        for gone in self.applied.difference(&present) {
            reload.change |= index.delete(gone);
        }
        self.applied = present;
        reload.complete = reload.incomplete_because.is_none();
        reload
    }
}

fn twice(path: &Path, key: &ObjectKey, first: &Path) -> ManifestError {
    let place = if path == first { "above".to_owned() } else { format!("in {}", first.display()) };
    ManifestError {
        path: path.to_owned(),
        document: None,
        line: None,
        message: format!("{key} is already defined {place}, and that definition counts"),
        hint: Some("remove one of them".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::fs::symlink};

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::policy::{
        finding::{Finding, Severity},
        index::InForce,
        model::{DefaultAction, LabelSelector, Mode, Policy, PolicyId, PolicyKind},
    };

    const POD_A: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {podIP: 10.0.0.1}\n";
    const POD_B: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: b}\nstatus: {podIP: 10.0.0.2}\n";
    const NETWORK_POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: np, namespace: ns}
spec:
  podSelector: {matchLabels: {app: x}}
  egress:
  - to:
    - ipBlock: {cidr: 10.0.0.0/8}
    ports:
    - port: 443
";

    /// Takes every text but `bad` for a policy.
    fn policy_text(id: &NsName, text: &str) -> (Option<Policy>, Vec<Finding>) {
        if text == "bad" {
            let finding = Finding {
                severity: Severity::Error,
                path: String::new(),
                line: 1,
                column: 1,
                message: "bad".into(),
                hint: None,
                rule: None,
            };
            return (None, vec![finding]);
        }
        let policy = Policy {
            id: PolicyId { kind: PolicyKind::ConfigMap, id: id.clone() },
            mode: Mode::Enforce,
            default_action: DefaultAction::Deny,
            selector: LabelSelector {
                match_labels: vec![("t".into(), text.into())],
                match_expressions: Vec::new(),
            },
            cluster_dns: true,
            own_node: false,
            rules: Vec::new(),
        };
        (Some(policy), Vec::new())
    }

    fn mk_config_map(name: &str, text: &str) -> String {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, labels: {{egress-controller: managed}}}}\n\
             data: {{policy.json: {text}}}\n"
        )
    }

    fn yaml(text: &str) -> ManifestFile {
        parse("f.yaml".into(), text)
    }

    fn keys(file: &ManifestFile) -> Vec<String> {
        file.objects.iter().map(|(key, _)| key.to_string()).collect()
    }

    fn write(directory: &TempDir, name: &str, text: &str) {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().expect("a file has a parent")).expect("the directory can be made");
        fs::write(path, text).expect("the file can be written");
    }

    fn remove(directory: &TempDir, name: &str) {
        fs::remove_file(directory.path().join(name)).expect("the file is there");
    }

    fn names(index: &Index) -> Vec<String> {
        index.cluster().pods.keys().map(|id| id.name.to_owned()).collect()
    }

    #[test]
    fn documents_are_cut_at_their_marks() {
        let cut =
            |text: &str| documents(text).iter().map(|d| (d.line, d.text.to_owned())).collect::<Vec<_>>();
        let own =
            |pairs: &[(usize, &str)]| pairs.iter().map(|(l, t)| (*l, (*t).to_owned())).collect::<Vec<_>>();
        for (text, expected) in [
            ("", &[][..]),
            ("# only\n\n", &[]),
            ("---\n---\n# x\n---   \n", &[]),
            ("a: 1\n", &[(1, "a: 1\n")]),
            ("a: 1\n---\nb: 2", &[(1, "a: 1\n"), (2, "---\nb: 2")]),
            ("---\na: 1\n--- # c\nb: 2\n", &[(1, "---\na: 1\n"), (3, "--- # c\nb: 2\n")]),
            ("--- {a: 1}\n--- {b: 2}\n", &[(1, "--- {a: 1}\n"), (2, "--- {b: 2}\n")]),
            ("a: 1\r\n---\r\nb: 2\r\n", &[(1, "a: 1\r\n"), (2, "---\r\nb: 2\r\n")]),
            ("a: |\n  ---\n  x\n---x: 1\n", &[(1, "a: |\n  ---\n  x\n---x: 1\n")]),
            ("%YAML 1.2\n---\na: 1\n", &[(1, "%YAML 1.2\n---\na: 1\n")]),
            ("a: 1\n...\n%YAML 1.2\n---\nb: 2\n", &[(1, "a: 1\n"), (3, "%YAML 1.2\n---\nb: 2\n")]),
            ("a: 1\n...\nb: 2\n", &[(1, "a: 1\n"), (3, "b: 2\n")]),
        ] {
            assert_eq!(cut(text), own(expected), "{text:?}");
        }
    }

    #[test]
    fn every_kind_is_read_and_others_are_counted() {
        let text = [
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns}\n",
            POD_A,
            "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: ns}\nspec: {clusterIP: 10.1.0.1}\n",
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: e}\naddressType: IPv4\nendpoints: []\n",
            "apiVersion: v1\nkind: Node\nmetadata: {name: n}\n",
            &mk_config_map("c", "x"),
            NETWORK_POLICY,
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n",
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d2}\n",
            "apiVersion: crd.example/v1\nkind: NetworkPolicy\nmetadata: {name: other}\n",
        ]
        .join("---\n");
        let file = yaml(&text);
        assert_eq!(file.errors, []);
        assert_eq!(
            keys(&file),
            [
                "Namespace ns",
                "Pod default/a",
                "Service ns/s",
                "EndpointSlice default/e",
                "Node n",
                "ConfigMap default/c",
                "NetworkPolicy ns/np"
            ]
        );
        let ignored: Vec<_> = file.ignored.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
        assert_eq!(ignored, [("apps/v1 Deployment", 2), ("crd.example/v1 NetworkPolicy", 1)]);
    }

    #[test]
    fn lists_are_opened() {
        let file = yaml(
            "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n\
             - apiVersion: v1\n  kind: PodList\n  items:\n  - {metadata: {name: b}}\n- {apiVersion: v1, kind: Pod}\n",
        );
        assert_eq!(keys(&file), ["Pod default/a", "Pod default/b"]);
        assert_eq!(file.errors.len(), 1, "the item without a name: {:?}", file.errors);
        assert_eq!(yaml("apiVersion: v1\nkind: PodList\nitems: null\n").errors, []);
    }

    #[test]
    fn json_is_read_too() {
        let one = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}"#;
        let file = parse("f.json".into(), &format!("{one}\n{}", one.replace("\"a\"", "\"b\"")));
        assert_eq!(
            (keys(&file), file.errors.len()),
            (vec!["Pod default/a".into(), "Pod default/b".into()], 0)
        );
        assert_eq!(keys(&yaml(one)), ["Pod default/a"], "JSON is YAML");
        let file = parse("f.json".into(), &format!("{one}\n{{\"apiVersion\": }}"));
        assert_eq!(keys(&file), ["Pod default/a"]);
        assert_eq!((file.errors[0].line, file.errors[0].document), (Some(2), Some(2)), "{}", file.errors[0]);
        let twice = r#"{"apiVersion": "v1", "kind": "Pod", "kind": "Pod"}"#;
        assert!(parse("f.json".into(), twice).errors[0].message.contains("stands twice"));
    }

    #[test]
    fn a_bad_document_leaves_the_others() {
        let text = format!("{POD_A}---\na: [1\n---\n{POD_B}---\nkind: Pod\n---\n- 1\n");
        let file = yaml(&text);
        assert_eq!(keys(&file), ["Pod default/a", "Pod default/b"]);
        let places: Vec<_> = file.errors.iter().map(|error| (error.document, error.line)).collect();
        assert_eq!(
            places,
            [(Some(2), Some(6)), (Some(4), Some(12)), (Some(5), Some(14))],
            "{:?}",
            file.errors
        );
        assert_eq!(file.errors[1].message, "apiVersion is missing");
    }

    #[test]
    fn errors_say_what_and_where() {
        for (text, line, message) in [
            (
                "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels:\n    v: 1.10\n",
                6,
                "Pod a: invalid type",
            ),
            (
                "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n  - port: 1\n  - name: x\n    port: [2]\n",
                8,
                "Service a: invalid type",
            ),
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n    name: x\n",
                6,
                "Pod a: invalid type: map",
            ),
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {podIP: x}\n",
                1,
                "Pod default/a: status.podIP",
            ),
            ("apiVersion: v1\nkind: Pod\nkind: Pod\n", 3, "duplicate"),
            ("apiVersion: networking.k8s.io/v1beta1\nkind: NetworkPolicy\n", 1, "NetworkPolicy in version"),
            ("apiVersion: v1\nkind: Pod\nmetadata: {}\n", 1, "Pod without metadata.name"),
        ] {
            let file = yaml(text);
            assert_eq!(file.errors.len(), 1, "{text}: {:?}", file.errors);
            let error = &file.errors[0];
            assert_eq!(error.line, Some(line), "{error}");
            assert!(error.message.contains(message), "{error}");
            assert!(keys(&file).is_empty());
        }
    }

    #[test]
    fn a_misspelt_field_of_a_network_policy_fails_closed() {
        let file = yaml(&format!("{POD_A}---\n{}", NETWORK_POLICY.replace("ports:", "port:")));
        assert_eq!(keys(&file), ["Pod default/a", "NetworkPolicy ns/np"]);
        assert_eq!(file.errors.len(), 1);
        let error = &file.errors[0];
        assert_eq!((error.line, error.hint.as_deref()), (Some(14), Some("did you mean `ports`?")), "{error}");
        let (_, Object::NetworkPolicy(_, Err(fault))) = &file.objects[1] else { panic!("it is unreadable") };
        let selector =
            LabelSelector { match_labels: vec![("app".into(), "x".into())], match_expressions: Vec::new() };
        assert_eq!(fault.selector, Some(selector), "the pods it selects are known all the same");

        for wrong in [
            NETWORK_POLICY.replace("matchLabels", "matchLabel"),
            NETWORK_POLICY.replace("{app: x}", "[x]"),
            NETWORK_POLICY.replace("app: x", "app: 1"),
            NETWORK_POLICY.replace("app: x", "app: x y"),
            NETWORK_POLICY.replace("spec:", "specs:"),
        ] {
            let file = yaml(&wrong);
            assert_eq!(file.errors.len(), 1, "{wrong}: {:?}", file.errors);
            let Some((_, Object::NetworkPolicy(_, Err(fault)))) = file.objects.first() else {
                panic!("it is unreadable: {wrong}")
            };
            assert_eq!(fault.selector, None, "{wrong}");
        }
        for wrong in ["port: 0", "port: [1]", "port: 443\n      endPort: 1"] {
            let file = yaml(&NETWORK_POLICY.replace("port: 443", wrong));
            assert_eq!(file.errors.len(), 1, "{wrong}: {:?}", file.errors);
            let Some((_, Object::NetworkPolicy(_, Err(fault)))) = file.objects.first() else {
                panic!("it is unreadable: {wrong}")
            };
            assert!(fault.selector.is_some(), "{wrong}");
        }
    }

    #[test]
    fn a_managed_config_map_of_the_wrong_type_is_invalid_not_absent() {
        let file = yaml(&mk_config_map("c", "5"));
        assert_eq!(file.errors.len(), 1);
        let (_, object) = &file.objects[0];
        assert_eq!(
            *object,
            Object::ConfigMap { id: NsName::new("default", "c"), managed: true, policy: None }
        );
        let file = yaml("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: 5\n");
        assert_eq!((file.objects.len(), file.errors.len()), (0, 1), "an unmanaged one is only reported");
    }

    #[test]
    fn bombs_are_refused() {
        let deep = format!("a: {}1{}\n", "[".repeat(5000), "]".repeat(5000));
        let block: String = (0..5000).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
        let mut laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..12 {
            let aliases = vec![format!("*a{}", i - 1); 10].join(",");
            laughs.push_str(&format!("a{i}: &a{i} [{aliases}]\n"));
        }
        let recursive = "a: &a [*a]\n".to_owned();
        for text in [deep.clone(), block, laughs, recursive] {
            assert_eq!(yaml(&text).errors.len(), 1, "{:.60}", text);
        }
        let deep = deep.replacen("a: ", "", 1);
        assert_eq!(parse("f.json".into(), &deep).errors.len(), 1);
    }

    #[test]
    fn a_directory_is_read_in_order_without_editors_files() {
        let directory = TempDir::new().expect("a temporary directory");
        write(&directory, "sub/deep/c.yml", POD_B);
        write(&directory, "b.yaml", POD_A);
        write(&directory, "a.json", "not json");
        for skipped in
            [".hidden.yaml", ".#b.yaml", "b.yaml~", "#b.yaml#", "b.yaml.swp", "README", ".git/x.yaml"]
        {
            write(&directory, skipped, "kind: [");
        }
        let loaded = load(directory.path()).expect("the directory is there");
        let paths: Vec<_> = loaded
            .files
            .iter()
            .map(|file| {
                file.path.strip_prefix(directory.path()).expect("it is in there").display().to_string()
            })
            .collect();
        assert_eq!(paths, ["a.json", "b.yaml", "sub/deep/c.yml"]);
        assert_eq!(loaded.errors().count(), 1, "only a.json is broken");
        assert_eq!(loaded.files.iter().map(|file| file.objects.len()).sum::<usize>(), 2);
        assert_eq!(load(&directory.path().join("b.yaml")).expect("a file does too").files.len(), 1);
        assert!(load(&directory.path().join("absent")).is_err());
    }

    #[test]
    fn links_are_followed_and_read_once() {
        let directory = TempDir::new().expect("a temporary directory");
        // As kubelet mounts a ConfigMap.
        write(&directory, "..2026/p.yaml", POD_A);
        symlink("..2026", directory.path().join("..data")).expect("a link");
        symlink("..data/p.yaml", directory.path().join("p.yaml")).expect("a link");
        symlink("p.yaml", directory.path().join("q.yaml")).expect("a link");
        symlink(".", directory.path().join("loop")).expect("a link");
        symlink("nowhere", directory.path().join("r.yaml")).expect("a link");
        symlink("nowhere", directory.path().join("not-a-manifest")).expect("a link");
        let loaded = load(directory.path()).expect("the directory is there");
        let found: Vec<_> = loaded
            .files
            .iter()
            .map(|file| (file.path.file_name().and_then(OsStr::to_str).expect("a name"), file.objects.len()))
            .collect();
        assert_eq!(found, [("p.yaml", 1), ("r.yaml", 0)]);
        assert_eq!(loaded.errors().count(), 1, "r.yaml leads nowhere");
    }

    #[test]
    fn files_that_are_no_text_are_reported() {
        let directory = TempDir::new().expect("a temporary directory");
        fs::write(directory.path().join("a.yaml"), b"\xff\xfe").expect("the file can be written");
        let large = File::create(directory.path().join("b.yaml")).expect("the file can be made");
        large.set_len(MAX_FILE_BYTES + 1).expect("a sparse file");
        drop(large);
        fs::create_dir(directory.path().join("c.yaml")).expect("a directory may have such a name");
        write(&directory, "d.yaml", POD_A);
        let loaded = load(directory.path()).expect("the directory is there");
        let errors: Vec<_> = loaded.errors().map(|error| error.message.as_str()).collect();
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors[0].contains("not UTF-8") && errors[1].contains("larger than 16 MiB"), "{errors:?}");
        assert_eq!(loaded.files.len(), 3);
    }

    #[test]
    fn a_reload_follows_the_files() {
        let directory = TempDir::new().expect("a temporary directory");
        let mut index = Index::new(policy_text);
        let mut source = DirectorySource::new(directory.path());
        assert_eq!(source.reload(&mut index).change, Change::NONE);
        write(&directory, "a.yaml", POD_A);
        write(&directory, "b.yaml", POD_B);
        let reload = source.reload(&mut index);
        assert!(reload.change.cluster);
        assert_eq!((reload.objects, reload.errors.len()), (2, 0));
        assert_eq!(source.reload(&mut index).change, Change::NONE, "nothing has changed");
        write(&directory, "a.yaml", &POD_A.replace("10.0.0.1", "10.0.0.7"));
        assert!(source.reload(&mut index).change.cluster);
        fs::rename(directory.path().join("a.yaml"), directory.path().join("c.yaml")).expect("a rename");
        assert_eq!(source.reload(&mut index).change, Change::NONE, "an object may move to another file");
        remove(&directory, "b.yaml");
        assert!(source.reload(&mut index).change.cluster);
        assert_eq!(names(&index), ["a"]);
    }

    #[test]
    fn a_broken_file_keeps_what_it_gave() {
        let directory = TempDir::new().expect("a temporary directory");
        let mut index = Index::new(policy_text);
        let mut source = DirectorySource::new(directory.path());
        write(&directory, "a.yaml", &format!("{POD_A}---\n{POD_B}"));
        write(&directory, "c.yaml", &mk_config_map("c", "one"));
        assert!(source.reload(&mut index).change.cluster);

        write(&directory, "a.yaml", &format!("{POD_A}---\nkind: [\n"));
        write(&directory, "c.yaml", "kind: [\n");
        for _ in 0..2 {
            let reload = source.reload(&mut index);
            assert_eq!((reload.change, reload.errors.len()), (Change::NONE, 2));
            let kept: Vec<_> = reload.kept.iter().map(ToString::to_string).collect();
            assert_eq!(kept, ["Pod default/b", "ConfigMap default/c"]);
        }
        assert_eq!(names(&index), ["a", "b"]);
        assert_eq!(index.cluster().policies.len(), 1);

        write(&directory, "c.yaml", &mk_config_map("c", "bad"));
        let reload = source.reload(&mut index);
        assert_eq!(
            reload.change,
            Change { cluster: false, problems: true },
            "the index keeps the good version"
        );
        assert_eq!(index.problems().map(|problem| problem.in_force).collect::<Vec<_>>(), [InForce::Earlier]);

        write(&directory, "a.yaml", POD_A);
        let reload = source.reload(&mut index);
        assert!(reload.kept.is_empty() && reload.errors.is_empty());
        assert_eq!(names(&index), ["a"], "once the file is whole again, what it does not give is gone");
        remove(&directory, "c.yaml");
        assert!(source.reload(&mut index).change.any());
        assert!(index.cluster().policies.is_empty(), "a deleted file keeps nothing");
    }

    #[test]
    fn what_is_missing_makes_a_reload_incomplete_and_loosens_nothing() {
        let directory = TempDir::new().expect("a temporary directory");
        let root = directory.path().join("manifests");
        let mut index = Index::new(policy_text);
        let mut source = DirectorySource::new(&root);
        assert!(!source.reload(&mut index).complete, "the directory is not there");
        fs::create_dir(&root).expect("a directory");
        let empty = source.reload(&mut index);
        assert!(!empty.complete, "it may be a volume that is not mounted");
        assert!(empty.incomplete_because.expect("a reason").contains("no manifest file"));
        write(&directory, "manifests/a.yaml", &format!("{POD_A}---\nkind: [\n"));
        assert!(!source.reload(&mut index).complete, "one document is broken");
        write(&directory, "manifests/a.yaml", POD_A);
        write(&directory, "manifests/c.yaml", &mk_config_map("c", "one"));
        assert!(source.reload(&mut index).complete);
        for name in ["a.yaml", "c.yaml"] {
            remove(&directory, &format!("manifests/{name}"));
        }
        let reload = source.reload(&mut index);
        assert!(!reload.complete);
        assert_eq!(
            (reload.change, reload.kept.len()),
            (Change::NONE, 2),
            "an empty directory keeps everything"
        );
        write(&directory, "manifests/b.yaml", POD_B);
        let reload = source.reload(&mut index);
        assert!(reload.complete);
        assert_eq!(names(&index), ["b"], "a directory with manifests says what there is");
    }

    #[test]
    fn a_policy_that_fails_closed_is_not_missing() {
        let directory = TempDir::new().expect("a temporary directory");
        let mut index = Index::new(policy_text);
        write(&directory, "a.yaml", &NETWORK_POLICY.replace("ports", "prots"));
        let reload = DirectorySource::new(directory.path()).reload(&mut index);
        assert_eq!((reload.errors.len(), reload.complete), (1, true));
    }

    #[test]
    fn a_file_that_is_being_written_keeps_what_it_gave() {
        let directory = TempDir::new().expect("a temporary directory");
        let mut index = Index::new(policy_text);
        let mut source = DirectorySource::new(directory.path());
        write(&directory, "a.yaml", &format!("{POD_A}---\n{POD_B}"));
        assert!(source.reload(&mut index).complete);
        // As a shell's `cat new > a.yaml` does it: first empty, then in part, then closed.
        let mut file = File::create(directory.path().join("a.yaml")).expect("the file can be written");
        assert_eq!(source.reload(&mut index).change, Change::NONE);
        file.write_all(POD_A.as_bytes()).expect("the file can be written");
        let half = source.reload(&mut index);
        assert_eq!((half.change, half.complete), (Change::NONE, false), "{:?}", half.errors);
        assert_eq!(names(&index), ["a", "b"]);
        drop(file);
        let reload = source.reload(&mut index);
        assert!(reload.complete, "{:?}", reload.errors);
        assert_eq!(names(&index), ["a"]);
        write(&directory, "a.yaml", "");
        assert!(!source.reload(&mut index).complete);
        assert_eq!(names(&index), ["a"], "an empty file is one that somebody is about to write");
    }

    #[test]
    fn links_repeat_no_directory_and_pipes_are_passed_over() {
        let directory = TempDir::new().expect("a temporary directory");
        // Each directory links to all others: without a memory there are 8! ways through.
        for i in 0..8 {
            write(&directory, &format!("d{i}/p{i}.yaml"), &POD_A.replace("name: a", &format!("name: p{i}")));
            for j in 0..8 {
                symlink(format!("../d{j}"), directory.path().join(format!("d{i}/l{j}"))).expect("a link");
            }
        }
        let pipe = directory.path().join("pipe.yaml");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .expect("a pipe");
        let loaded = load(directory.path()).expect("the directory is there");
        assert_eq!((loaded.files.len(), loaded.errors().count()), (8, 0));
        assert!(whole(&pipe).is_err(), "and opening one does not block");
    }

    #[test]
    fn only_what_has_changed_is_read_again() {
        let directory = TempDir::new().expect("a temporary directory");
        let path = directory.path().join("a.yaml");
        write(&directory, "a.yaml", POD_A);
        let mut stamp = Stamp::of(&fs::metadata(&path).expect("the file is there"));
        assert!(!stamp.settled(), "the next write may leave the same times");
        let mut cache = Cache::default();
        cache.read(path.clone(), stamp, &|_| false);
        assert!(cache.0.is_empty(), "so nothing is remembered yet");
        stamp.changed.0 -= 10;
        assert!(stamp.settled());
        let told = parse(path.clone(), POD_B);
        cache.0.insert(path.clone(), (stamp, told, true));
        let known = cache.read(path.clone(), stamp, &|_| false);
        assert_eq!(keys(&known), ["Pod default/b"], "the same stamp is the same file");
        stamp.size += 1;
        let read = cache.read(path, stamp, &|_| false);
        assert_eq!(keys(&read), ["Pod default/a"], "another stamp is another file");
    }

    #[test]
    fn a_directory_that_is_gone_keeps_everything() {
        let directory = TempDir::new().expect("a temporary directory");
        let root = directory.path().join("manifests");
        write(&directory, "manifests/a.yaml", POD_A);
        let mut index = Index::new(policy_text);
        let mut source = DirectorySource::new(&root);
        assert!(source.reload(&mut index).change.cluster);
        fs::rename(&root, directory.path().join("elsewhere")).expect("a rename");
        let reload = source.reload(&mut index);
        assert_eq!((reload.change, reload.errors.len(), reload.kept.len()), (Change::NONE, 1, 1));
        fs::rename(directory.path().join("elsewhere"), &root).expect("a rename");
        let reload = source.reload(&mut index);
        assert_eq!((reload.change, reload.errors.len(), reload.kept.len()), (Change::NONE, 0, 0));
    }

    #[test]
    fn of_two_definitions_the_first_counts() {
        let directory = TempDir::new().expect("a temporary directory");
        let mut index = Index::new(policy_text);
        let mut source = DirectorySource::new(directory.path());
        let address = |index: &Index| {
            index.cluster().pods[&NsName::new("default", "a")]
                .ips
                .iter()
                .next()
                .expect("it has one")
                .to_string()
        };
        write(&directory, "a.yaml", POD_A);
        let other = POD_A.replace("10.0.0.1", "10.0.0.9");
        write(&directory, "b.yaml", &format!("{other}---\n{POD_A}"));
        let reload = source.reload(&mut index);
        assert_eq!(address(&index), "10.0.0.1");
        assert_eq!(reload.errors.len(), 2, "one within b.yaml, one across: {:?}", reload.errors);
        assert!(reload.errors.iter().all(|error| error.path.ends_with("b.yaml")));

        write(&directory, "a.yaml", "kind: [\n");
        assert_eq!(source.reload(&mut index).change, Change::NONE, "a broken a.yaml still holds its object");
        assert_eq!(address(&index), "10.0.0.1");
        remove(&directory, "a.yaml");
        assert!(source.reload(&mut index).change.cluster);
        assert_eq!(address(&index), "10.0.0.9", "the next one counts once a.yaml is gone");
    }

    #[test]
    fn several_paths_rank_in_their_order() {
        let directory = TempDir::new().expect("a temporary directory");
        write(&directory, "z/a.yaml", POD_A);
        write(&directory, "a/a.yaml", &POD_A.replace("10.0.0.1", "10.0.0.9"));
        let paths = vec![directory.path().join("z"), directory.path().join("a")];
        let mut index = Index::new(policy_text);
        let reload = DirectorySource::with_paths(paths).reload(&mut index);
        assert_eq!(reload.errors.len(), 1);
        assert_eq!(
            index.cluster().pods[&NsName::new("default", "a")]
                .ips
                .iter()
                .next()
                .expect("it has one")
                .to_string(),
            "10.0.0.1"
        );
    }

    /// Text made of what manifests are made of, so that it gets past the first token.
    fn fragments() -> impl Strategy<Value = String> {
        let words = [
            "apiVersion: v1\n",
            "kind: Pod\n",
            "kind: List\nitems:\n",
            "- ",
            "  ",
            "metadata: {name: a}\n",
            "---\n",
            "...\n",
            "%YAML 1.2\n",
            "kind: NetworkPolicy\n",
            "apiVersion: networking.k8s.io/v1\n",
            "spec:\n",
            "egress:\n",
            "ports: [{port: 80}]\n",
            "to: [{podSelector: {}}]\n",
            "&a ",
            "*a",
            "<<: *a\n",
            "!!binary ",
            "{",
            "}",
            "[",
            "]",
            "|\n",
            ">-\n",
            "\"",
            "'",
            "\t",
            "\r\n",
            "\u{feff}",
            "\0",
            "null",
            ".nan",
            "1e999",
            "data: {policy.json: x}\n",
            "labels: {egress-controller: managed}\n",
            "? ",
            ": ",
            "#",
            "é",
            "- - - ",
        ];
        prop::collection::vec(prop::sample::select(words.to_vec()), 0..40).prop_map(|words| words.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn arbitrary_text_never_panics(text in prop_oneof![fragments(), any::<String>()], json in any::<bool>()) {
            let lines = text.lines().count();
            let file = parse(if json { "f.json" } else { "f.yaml" }.into(), &text);
            for error in &file.errors {
                prop_assert!(error.line.is_some_and(|line| line >= 1 && line <= lines + 1), "{error} of {lines} lines");
            }
        }

        #[test]
        fn a_broken_document_never_hides_its_neighbours(text in fragments()) {
            let file = parse("f.yaml".into(), &format!("{POD_A}---\n{text}\n---\n{POD_B}"));
            let found = keys(&file);
            prop_assert!(found.first().is_some_and(|key| key == "Pod default/a"), "{found:?}");
            // Directives belong to the document behind them, so two that contradict each other are its own fault, and are reported.
            let own_fault = text.matches("%YAML").count() > 1 && !file.errors.is_empty();
            prop_assert!(own_fault || found.last().is_some_and(|key| key == "Pod default/b"), "{found:?}");
        }
    }
}
