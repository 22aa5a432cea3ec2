//! The stream of a watch.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body::Frame;
use tokio::{
    sync::watch,
    time::{self, Instant},
};

use super::{
    counts::{Open, Verb},
    double::Shared,
    faults::Fault,
    kinds::Kind,
    selectors::Filter,
    status::Failure,
    store::{Change, Form, Object},
};

/// How much is sent at once.
const CHUNK: usize = 64 * 1024;
/// How many changes are taken from the store at once.
const BATCH: usize = 256;
/// How long a swapped event waits for another.
const SWAP: Duration = Duration::from_millis(200);
/// How long a connection lives on that is to be cut.
pub(super) const BEFORE_CUT: Duration = Duration::from_millis(20);
/// How long before its end a watch sends a bookmark.
const BEFORE_END: Duration = Duration::from_secs(2);

/// What is asked of a watch.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) kind: Kind,
    pub(super) form: Form,
    pub(super) namespace: Option<String>,
    pub(super) filter: Filter,
    /// The version after which changes are sent.
    pub(super) after: u64,
    /// The objects that are there already.
    pub(super) initial: Vec<Arc<Object>>,
    /// Whether a bookmark tells the end of those.
    pub(super) mark_end: bool,
    pub(super) bookmarks: bool,
    pub(super) limit: Duration,
    /// Sent instead of everything else.
    pub(super) refusal: Option<Failure>,
}

/// A watch that goes on.
pub(super) struct Watching {
    shared: Arc<Shared>,
    open: Open,
    start: Start,
    initial: VecDeque<Arc<Object>>,
    changes: VecDeque<Change>,
    held: Option<(Box<str>, Vec<u8>)>,
    wake: watch::Receiver<u64>,
    end: Instant,
    bookmark: Option<Instant>,
    out: Vec<u8>,
    done: bool,
    cut: bool,
    /// The version the client knows from the start or a bookmark.
    told: u64,
    /// Whether an event was just held up, and is to be sent at once.
    slow: bool,
}

impl Watching {
    pub(super) fn new(shared: &Arc<Shared>, open: Open, mut start: Start) -> Self {
        let wake = shared.store().listen(start.kind);
        let end = Instant::now() + start.limit;
        let initial = std::mem::take(&mut start.initial).into();
        let after = start.after;
        let bookmark = start.bookmarks.then(|| next_bookmark(shared, end));
        Self {
            shared: Arc::clone(shared),
            open,
            start,
            initial,
            changes: VecDeque::new(),
            held: None,
            wake,
            end,
            bookmark,
            out: Vec::new(),
            done: false,
            cut: false,
            told: after,
            slow: false,
        }
    }

    /// Returns the next piece of the stream.
    pub(super) async fn next(mut self) -> Option<(io::Result<Frame<Bytes>>, Self)> {
        let kind = self.start.kind;
        if self.shared.faults.strike(Verb::Watch, kind, |fault| *fault == Fault::Silence).is_some() {
            // The caller drops this when the client goes.
            std::future::pending::<()>().await;
        }
        if let Some(refusal) = self.start.refusal.take() {
            self.error(&refusal);
        }
        loop {
            if !self.out.is_empty() {
                let piece = Bytes::from(std::mem::take(&mut self.out));
                self.open.sent(piece.len());
                return Some((Ok(Frame::data(piece)), self));
            }
            if self.cut {
                self.cut = false;
                self.done = true;
                // What was written before goes out while this waits.
                time::sleep(BEFORE_CUT).await;
                let error =
                    io::Error::new(io::ErrorKind::ConnectionReset, "the connection is cut on purpose");
                return Some((Err(error), self));
            }
            if self.done || Instant::now() >= self.end {
                return None;
            }
            if !self.initial.is_empty() || self.start.mark_end {
                self.initial();
                continue;
            }
            if self.changes.is_empty() {
                self.wake.mark_unchanged();
                let next = self.shared.store().changes(kind, self.start.after, BATCH);
                match next {
                    Ok((changes, seen)) => {
                        self.changes = changes.into();
                        if self.changes.is_empty() {
                            self.start.after = seen;
                        }
                    }
                    Err(failure) => {
                        self.error(&failure);
                        continue;
                    }
                }
            }
            if self.changes.is_empty() {
                self.wait().await;
            }
            while let Some(change) = self.changes.pop_front() {
                self.start.after = change.version;
                if let Some(line) = self.line(&change) {
                    self.send(change.key(), line).await;
                }
                if self.out.len() >= CHUNK || self.done || self.cut || std::mem::take(&mut self.slow) {
                    break;
                }
            }
        }
    }

    /// Waits for something to do.
    async fn wait(&mut self) {
        let bookmark = self.bookmark;
        tokio::select! {
            changed = self.wake.changed() => {
                if changed.is_err() {
                    self.done = true;
                }
            }
            () = time::sleep_until(self.end) => self.done = true,
            () = time::sleep_until(bookmark.unwrap_or(self.end)), if bookmark.is_some() => {
                // A bookmark that tells nothing new is not sent.
                if self.start.after > self.told {
                    self.write_bookmark(false);
                }
                self.bookmark = Some(next_bookmark(&self.shared, self.end));
            }
            () = time::sleep(SWAP), if self.held.is_some() => {
                if let Some((_, line)) = self.held.take() {
                    self.out.extend_from_slice(&line);
                }
            }
        }
    }

    /// Writes some of the objects that are there already, or what tells that those are all.
    fn initial(&mut self) {
        while let Some(object) = self.initial.pop_front() {
            let line = event("ADDED", self.start.kind, self.start.form, &object, object.version);
            self.out.extend_from_slice(&line);
            if self.out.len() >= CHUNK {
                return;
            }
        }
        if self.start.mark_end {
            self.start.mark_end = false;
            self.write_bookmark(true);
        }
    }

    fn write_bookmark(&mut self, end: bool) {
        let (kind, api_version) = match self.start.form {
            Form::Whole => (self.start.kind.facts().kind, self.start.kind.api_version()),
            Form::Metadata => ("PartialObjectMetadata", "meta.k8s.io/v1".to_owned()),
        };
        let annotations = if end { ",\"annotations\":{\"k8s.io/initial-events-end\":\"true\"}" } else { "" };
        let version = self.start.after;
        self.told = version;
        let line = format!(
            "{{\"type\":\"BOOKMARK\",\"object\":{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\
             \"metadata\":{{\"resourceVersion\":\"{version}\",\"creationTimestamp\":null{annotations}}}}}}}\n"
        );
        self.out.extend_from_slice(line.as_bytes());
    }

    /// Ends the stream with an error.
    fn error(&mut self, failure: &Failure) {
        let line = format!("{{\"type\":\"ERROR\",\"object\":{}}}\n", failure.status());
        self.out.extend_from_slice(line.as_bytes());
        self.done = true;
    }

    /// Returns what a change is to this watch, if it is anything.
    fn line(&self, change: &Change) -> Option<Vec<u8>> {
        let Start { kind, form, namespace, filter, .. } = &self.start;
        let of_interest = |object: &&Arc<Object>| {
            namespace.as_deref().is_none_or(|wanted| object.namespace() == Some(wanted))
                && filter.matches(object)
        };
        let before = change.before.as_ref().filter(of_interest);
        let after = change.after.as_ref().filter(of_interest);
        let (word, object) = match (before, after) {
            (None, None) => return None,
            (None, Some(after)) => ("ADDED", after),
            (Some(_), Some(after)) => ("MODIFIED", after),
            (Some(before), None) => ("DELETED", before),
        };
        Some(event(word, *kind, *form, object, change.version))
    }

    /// Sends an event, with the faults that strike it.
    async fn send(&mut self, key: &str, mut line: Vec<u8>) {
        let kind = self.start.kind;
        let shared = Arc::clone(&self.shared);
        let strike = |wanted: fn(&Fault) -> bool| shared.faults.strike(Verb::Watch, kind, wanted);
        if let Some(Fault::SlowEvent(time)) = strike(|fault| matches!(fault, Fault::SlowEvent(_))) {
            time::sleep(time).await;
            self.slow = true;
        }
        let instead =
            |fault: &Fault| matches!(fault, Fault::Cut | Fault::GoneLater | Fault::Malformed | Fault::Odd);
        match strike(instead) {
            Some(Fault::Cut) => {
                self.cut = true;
                return;
            }
            Some(Fault::GoneLater) => {
                let version = self.start.after;
                self.error(&Failure::expired(format!("too old resource version: {version} ({version})")));
                return;
            }
            Some(Fault::Malformed) => {
                line = b"{\"type\":\"MODIFIED\",\"object\":}\n".to_vec();
            }
            Some(_) => line = [&b"{\"type\":\"MODIFIED\",\"object\":"[..], ODD, b"}\n"].concat(),
            None => {}
        }
        if strike(|fault| *fault == Fault::Duplicate).is_some() {
            line = line.repeat(2);
        }
        match self.held.take() {
            Some((other, earlier)) if *other == *key => {
                self.out.extend_from_slice(&earlier);
                self.out.extend_from_slice(&line);
            }
            Some((_, earlier)) => {
                self.out.extend_from_slice(&line);
                self.out.extend_from_slice(&earlier);
            }
            None if strike(|fault| *fault == Fault::Swap).is_some() => self.held = Some((key.into(), line)),
            None => self.out.extend_from_slice(&line),
        }
    }
}

/// An object that fits no kind.
pub(super) const ODD: &[u8] =
    b"{\"metadata\":{\"name\":\"odd\",\"namespace\":\"odd\",\"resourceVersion\":\"1\",\"labels\":[\"odd\"]}}";

fn next_bookmark(shared: &Shared, end: Instant) -> Instant {
    let now = Instant::now();
    let regular = now + shared.bookmark_every();
    match end.checked_sub(BEFORE_END) {
        Some(last) if last > now => regular.min(last),
        _ => regular,
    }
}

fn event(word: &str, kind: Kind, form: Form, object: &Object, version: u64) -> Vec<u8> {
    let mut line = format!("{{\"type\":\"{word}\",\"object\":").into_bytes();
    object.write(kind, form, false, version, &mut line);
    line.extend_from_slice(b"}\n");
    line
}
