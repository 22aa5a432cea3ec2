//! The objects and what happened to them.
//!
//! An object is kept as the bytes it is sent as, without its version, kind and the beginning that all objects have in
//! common. Its labels and selectable fields stand beside them. The changes of each kind are kept until they are compacted
//! away; they serve the watches, and they tell what a list looked like when its first page was sent.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::sync::watch;

use super::{
    kinds::{ALL, Kind},
    selectors::Filter,
    status::{Failure, Result},
};

/// One state of one object.
#[derive(Debug)]
pub(super) struct Object {
    /// `namespace/name`, or `name` alone.
    pub(super) key: Box<str>,
    pub(super) version: u64,
    /// Everything after `{"metadata":{"resourceVersion":"…",`.
    body: Bytes,
    /// How much of the body belongs to the metadata, its closing brace included.
    metadata: usize,
    labels: Box<[(Box<str>, Box<str>)]>,
    /// The values of the kind's selectable fields.
    pub(super) fields: Box<[Box<str>]>,
}

/// How much of an object is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// All of it.
    Whole,
    /// `PartialObjectMetadata`.
    Metadata,
}

/// Returns the key of an object.
pub(super) fn key(namespace: Option<&str>, name: &str) -> String {
    namespace.map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"))
}

impl Object {
    /// Takes an object whose metadata has a name.
    pub(super) fn new(kind: Kind, mut value: Map<String, Value>, version: u64) -> Self {
        value.remove("apiVersion");
        value.remove("kind");
        let mut metadata = match value.remove("metadata") {
            Some(Value::Object(metadata)) => metadata,
            _ => Map::new(),
        };
        metadata.remove("resourceVersion");
        let text = |name: &str| metadata.get(name).and_then(Value::as_str);
        let key = key(text("namespace").filter(|_| kind.facts().namespaced), text("name").unwrap_or(""));
        let labels = match metadata.get("labels") {
            Some(Value::Object(labels)) => labels
                .iter()
                .map(|(name, value)| (name.as_str().into(), value.as_str().unwrap_or("").into()))
                .collect(),
            _ => Box::default(),
        };
        let whole = Value::Object(value);
        let field = |pointer: &str| match whole.pointer(pointer) {
            Some(Value::String(text)) => text.as_str().into(),
            Some(Value::Bool(flag)) => flag.to_string().into(),
            _ => Box::default(),
        };
        let fields = kind.facts().fields.iter().map(|(_, pointer)| field(pointer)).collect();
        let mut body = serde_json::to_vec(&metadata).expect("a JSON value can be written").split_off(1);
        let length = body.len();
        let rest = serde_json::to_vec(&whole).expect("a JSON value can be written");
        if rest.len() > 2 {
            body.push(b',');
        }
        body.extend_from_slice(&rest[1..]);
        body.shrink_to_fit();
        Self { key: key.into(), version, body: body.into(), metadata: length, labels, fields }
    }

    fn at(&self, version: u64) -> Self {
        Self {
            key: self.key.clone(),
            version,
            body: self.body.clone(),
            metadata: self.metadata,
            labels: self.labels.clone(),
            fields: self.fields.clone(),
        }
    }

    pub(super) fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or("")
    }

    pub(super) fn namespace(&self) -> Option<&str> {
        self.key.split_once('/').map(|(namespace, _)| namespace)
    }

    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(name, _)| **name == *key).map(|(_, value)| &**value)
    }

    /// Writes it as JSON; items of a list have no kind of their own.
    pub(super) fn write(&self, kind: Kind, form: Form, in_list: bool, version: u64, out: &mut Vec<u8>) {
        out.push(b'{');
        match form {
            Form::Whole if in_list => {}
            Form::Whole => {
                let kind_name = kind.facts().kind;
                out.extend_from_slice(
                    format!("\"kind\":\"{kind_name}\",\"apiVersion\":\"{}\",", kind.api_version()).as_bytes(),
                );
            }
            Form::Metadata => out
                .extend_from_slice(b"\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/v1\","),
        }
        out.extend_from_slice(format!("\"metadata\":{{\"resourceVersion\":\"{version}\",").as_bytes());
        match form {
            Form::Whole => out.extend_from_slice(&self.body),
            Form::Metadata => {
                out.extend_from_slice(&self.body[..self.metadata]);
                out.push(b'}');
            }
        }
    }

    /// Returns it as one JSON text.
    pub(super) fn json(&self, kind: Kind, form: Form) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.body.len() + 128);
        self.write(kind, form, false, self.version, &mut out);
        out
    }

    /// Returns it as a value, with kind and version.
    pub(super) fn value(&self, kind: Kind) -> Value {
        serde_json::from_slice(&self.json(kind, Form::Whole)).expect("the store writes JSON")
    }
}

/// A change of an object.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) version: u64,
    /// What it was before.
    pub(super) before: Option<Arc<Object>>,
    /// What it is now.
    pub(super) after: Option<Arc<Object>>,
}

impl Change {
    pub(super) fn key(&self) -> &str {
        let object = self.after.as_ref().or(self.before.as_ref());
        &object.expect("a change has something before or after").key
    }
}

/// The objects of one kind.
#[derive(Debug)]
struct Shelf {
    objects: BTreeMap<Box<str>, Arc<Object>>,
    changes: VecDeque<Change>,
    /// The version of the last change that was compacted away.
    dropped: u64,
    wake: watch::Sender<u64>,
}

/// All objects.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) version: u64,
    /// The oldest version that a watch may start from, or that a list may be of.
    floor: u64,
    /// How many changes of a kind are kept.
    keep: usize,
    shelves: Vec<Shelf>,
}

/// What the store held at one time.
#[derive(Clone, Debug)]
pub struct Snapshot {
    version: u64,
    objects: Vec<BTreeMap<Box<str>, Arc<Object>>>,
}

/// A part of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) version: u64,
    pub(super) objects: Vec<Arc<Object>>,
    /// The token for the next one, and how many objects are left where that is known.
    pub(super) next: Option<(String, Option<u64>)>,
}

/// Which part of a list is asked for.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Now,
    At(u64),
    Token(String),
}

impl Store {
    pub(super) fn new() -> Self {
        let shelf = |_| Shelf {
            objects: BTreeMap::new(),
            changes: VecDeque::new(),
            dropped: 0,
            wake: watch::Sender::new(0),
        };
        Self { version: 1, floor: 1, keep: usize::MAX, shelves: ALL.iter().map(shelf).collect() }
    }

    fn shelf(&self, kind: Kind) -> &Shelf {
        &self.shelves[kind as usize]
    }

    pub(super) fn get(&self, kind: Kind, key: &str) -> Option<&Arc<Object>> {
        self.shelf(kind).objects.get(key)
    }

    pub(super) fn count(&self, kind: Kind) -> usize {
        self.shelf(kind).objects.len()
    }

    /// Returns a receiver that is told of each change of a kind.
    pub(super) fn listen(&self, kind: Kind) -> watch::Receiver<u64> {
        self.shelf(kind).wake.subscribe()
    }

    /// Puts an object in its place and wakes the watches.
    pub(super) fn put(&mut self, kind: Kind, value: Map<String, Value>) -> Arc<Object> {
        let object = self.put_quietly(kind, value);
        self.wake(kind);
        object
    }

    /// Puts an object in its place; the watches learn of it at the next [`Self::wake`].
    pub(super) fn put_quietly(&mut self, kind: Kind, value: Map<String, Value>) -> Arc<Object> {
        self.version += 1;
        let object = Arc::new(Object::new(kind, value, self.version));
        let before = self.shelves[kind as usize].objects.insert(object.key.clone(), Arc::clone(&object));
        self.changed(kind, before, Some(Arc::clone(&object)));
        object
    }

    /// Removes an object and returns it with the version of its removal.
    pub(super) fn remove(&mut self, kind: Kind, key: &str) -> Option<Arc<Object>> {
        let before = self.shelves[kind as usize].objects.remove(key)?;
        self.version += 1;
        let last = Arc::new(before.at(self.version));
        self.changed(kind, Some(before), None);
        self.wake(kind);
        Some(last)
    }

    fn changed(&mut self, kind: Kind, before: Option<Arc<Object>>, after: Option<Arc<Object>>) {
        let shelf = &mut self.shelves[kind as usize];
        shelf.changes.push_back(Change { version: self.version, before, after });
        while shelf.changes.len() > self.keep {
            let change = shelf.changes.pop_front().expect("it is longer than what is kept");
            shelf.dropped = change.version;
            self.floor = self.floor.max(change.version);
        }
    }

    pub(super) fn wake(&self, kind: Kind) {
        self.shelf(kind).wake.send_replace(self.version);
    }

    /// Keeps at most so many changes of each kind from now on.
    pub(super) fn keep(&mut self, changes: usize) {
        self.keep = changes;
    }

    /// Forgets all changes up to now.
    pub(super) fn compact(&mut self) {
        self.floor = self.version;
        for shelf in &mut self.shelves {
            if let Some(change) = shelf.changes.back() {
                shelf.dropped = change.version;
            }
            shelf.changes.clear();
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            version: self.version,
            objects: self.shelves.iter().map(|shelf| shelf.objects.clone()).collect(),
        }
    }

    /// Goes back to what was, version included, with no memory of what came before or after.
    pub(super) fn restore(&mut self, snapshot: &Snapshot) {
        self.version = snapshot.version;
        self.floor = snapshot.version;
        for (shelf, objects) in self.shelves.iter_mut().zip(&snapshot.objects) {
            shelf.objects.clone_from(objects);
            shelf.changes.clear();
            shelf.dropped = 0;
            shelf.wake.send_replace(snapshot.version);
        }
    }

    /// Returns whether a watch may start after a version.
    pub(super) fn watchable(&self, version: u64) -> Result<()> {
        if version < self.floor {
            return Err(Failure::expired(format!("too old resource version: {version} ({})", self.floor)));
        }
        Ok(())
    }

    /// Returns the next changes after a version, and the version that has been seen with them.
    pub(super) fn changes(&self, kind: Kind, after: u64, most: usize) -> Result<(Vec<Change>, u64)> {
        let shelf = self.shelf(kind);
        if after < shelf.dropped {
            return Err(Failure::expired(format!("too old resource version: {after} ({})", shelf.dropped)));
        }
        let start = shelf.changes.partition_point(|change| change.version <= after);
        let changes: Vec<Change> = shelf.changes.range(start..).take(most).cloned().collect();
        let seen = match changes.last() {
            Some(last) if changes.len() == most => last.version,
            // A client may be ahead of a server that was restored. It learns nothing until the server is where it was.
            _ => after.max(self.version),
        };
        Ok((changes, seen))
    }

    /// Returns a part of a list.
    pub(super) fn list(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        filter: &Filter,
        limit: Option<usize>,
        place: &Place,
    ) -> Result<Page> {
        let (version, mut left, start) = match place {
            Place::Now => (self.version, None, None),
            Place::At(version) if *version < self.floor => {
                let floor = self.floor;
                return Err(Failure::expired(format!(
                    "The resourceVersion for the provided list is too old: {version} ({floor})"
                )));
            }
            Place::At(version) => (*version, None, None),
            Place::Token(token) => {
                let (version, left, start) = read_token(token)?;
                // A token without a version goes on with what is there now.
                (version.unwrap_or(self.version), left, Some(start))
            }
        };
        if version < self.floor {
            let mut failure = Failure::expired(
                "The provided continue parameter is too old to display a consistent list result.",
            );
            failure.go_on = start.map(|start| write_token(None, None, &start));
            return Err(failure);
        }
        let overlay = self.overlay(kind, version);
        let prefix = namespace.map(|namespace| format!("{namespace}/")).unwrap_or_default();
        let bound = start.as_deref().map_or(Bound::Included(&*prefix), Bound::Excluded);
        let mut objects = Vec::new();
        let mut more = false;
        for object in merged(&self.shelf(kind).objects, &overlay, bound) {
            if !object.key.starts_with(&*prefix) {
                break;
            }
            if filter.matches(object) {
                if limit.is_some_and(|limit| objects.len() >= limit) {
                    more = true;
                    break;
                }
                objects.push(Arc::clone(object));
            }
        }
        let next = more.then(|| {
            if filter.is_empty() && start.is_none() {
                left = Some(match namespace {
                    None if overlay.is_empty() => self.count(kind),
                    _ => merged(&self.shelf(kind).objects, &overlay, bound)
                        .take_while(|object| object.key.starts_with(&*prefix))
                        .count(),
                });
            }
            let left = left.map(|left| left.saturating_sub(objects.len()));
            let last = objects.last().map_or("", |object| &*object.key);
            (write_token(Some(version), left, last), left.map(|left| left as u64))
        });
        Ok(Page { version, objects, next })
    }

    /// Returns what was different at a version from what is there now.
    fn overlay(&self, kind: Kind, version: u64) -> BTreeMap<&str, Option<&Arc<Object>>> {
        let changes = &self.shelf(kind).changes;
        let start = changes.partition_point(|change| change.version <= version);
        let mut overlay = BTreeMap::new();
        for change in changes.range(start..) {
            overlay.entry(change.key()).or_insert(change.before.as_ref());
        }
        overlay
    }
}

/// Goes through objects in the order of their keys, with those of the overlay in place of what is there.
fn merged<'a>(
    objects: &'a BTreeMap<Box<str>, Arc<Object>>,
    overlay: &'a BTreeMap<&'a str, Option<&'a Arc<Object>>>,
    from: Bound<&'a str>,
) -> impl Iterator<Item = &'a Arc<Object>> {
    let mut present = objects.range::<str, _>((from, Bound::Unbounded)).peekable();
    let mut changed = overlay.range::<str, _>((from, Bound::Unbounded)).peekable();
    std::iter::from_fn(move || {
        loop {
            let first = match (present.peek(), changed.peek()) {
                (None, None) => return None,
                (Some((key, _)), Some((other, _))) => (***key).cmp(**other),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
            };
            if first.is_lt() {
                return present.next().map(|(_, object)| object);
            }
            if first.is_eq() {
                present.next();
            }
            if let Some((_, Some(object))) = changed.next() {
                return Some(*object);
            }
        }
    })
}

fn write_token(version: Option<u64>, left: Option<usize>, key: &str) -> String {
    let number = |value: Option<String>| value.unwrap_or_default();
    format!(
        "{}:{}:{key}",
        number(version.map(|one| one.to_string())),
        number(left.map(|one| one.to_string()))
    )
}

fn read_token(token: &str) -> Result<(Option<u64>, Option<usize>, String)> {
    let bad = || Failure::new(400, "continue key is not valid");
    let [version, left, key] = token.splitn(3, ':').collect::<Vec<_>>()[..] else { return Err(bad()) };
    let version = if version.is_empty() { None } else { Some(version.parse().map_err(|_| bad())?) };
    let left = if left.is_empty() { None } else { Some(left.parse().map_err(|_| bad())?) };
    Ok((version, left, key.to_owned()))
}
