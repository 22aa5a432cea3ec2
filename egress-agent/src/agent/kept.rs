//! Keeps the last good state in a file.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::task::JoinHandle;
use tracing::{debug, error, warn};

use crate::{
    k8s::snapshot::{self, Snapshot},
    kernel::clock,
    policy::{
        demand::Demand,
        index::{Index, View},
    },
};

/// Writing takes no more than one part in so many of the time.
const SHARE: u32 = 200;
/// It is written no more often than this.
const LEAST: Duration = Duration::from_millis(500);

/// Writes the state after it has changed, as often as that is cheap.
#[derive(Debug)]
pub(super) struct Keeper {
    path: PathBuf,
    node: String,
    changed: bool,
    /// What of the cluster was known in full in the one written last.
    heard: Demand,
    /// Not before this.
    next: Instant,
    /// The one that is on its way to the disk, and since when.
    writing: Option<(Instant, JoinHandle<()>)>,
    kept: Arc<Kept>,
}

/// What came of it.
#[derive(Debug, Default)]
struct Kept {
    /// When the last one was written that is safe, in seconds since the epoch; 0 for never.
    at: AtomicU64,
    failures: AtomicU64,
    /// The last attempt failed.
    failing: AtomicBool,
    /// How long the last attempt took, in microseconds, without what the disk took.
    took: AtomicU64,
}

impl Kept {
    fn failed(&self, failure: &snapshot::SnapshotError) {
        self.failing.store(true, Ordering::Relaxed);
        // One line for a disk that stays full, not one a second.
        if self.failures.fetch_add(1, Ordering::Relaxed).is_multiple_of(600) {
            error!(error = %failure, "the state cannot be kept; a start without an API server would begin from an older one");
        }
    }
}

impl Keeper {
    /// Returns one for this file, and what the file holds.
    ///
    /// A file that cannot be used is told and left alone until there is something to write over it: the pinned maps then say what is in
    /// force.
    pub(super) fn open(path: PathBuf, node: String) -> anyhow::Result<(Self, Option<Snapshot>)> {
        let folder = path.parent().context("a snapshot is a file in a folder")?;
        if !folder.as_os_str().is_empty() {
            fs::create_dir_all(folder).with_context(|| format!("making folder {}", folder.display()))?;
        }
        let found = match snapshot::read(&path, &node) {
            Ok(found) => found,
            Err(failure) => {
                warn!(error = %failure, "the kept state cannot be used");
                None
            }
        };
        let kept = Arc::new(Kept::default());
        kept.at.store(found.as_ref().map_or(0, |found| found.written), Ordering::Relaxed);
        let heard = Demand::default();
        let keeper = Self { path, node, changed: false, heard, next: Instant::now(), writing: None, kept };
        Ok((keeper, found))
    }

    /// Notes that what is kept is no longer what holds.
    pub(super) fn changed(&mut self) {
        self.changed = true;
    }

    /// Returns when the last safe one was written, in seconds since the epoch, if ever, and how often it failed.
    pub(super) fn told(&self) -> (Option<u64>, u64) {
        let at = self.kept.at.load(Ordering::Relaxed);
        ((at > 0).then_some(at), self.kept.failures.load(Ordering::Relaxed))
    }

    /// Returns the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether the last attempt to write it failed.
    pub(super) fn failing(&self) -> bool {
        self.kept.failing.load(Ordering::Relaxed)
    }

    /// Writes the state if it has changed and that is due. What takes time is done elsewhere: the state is noted here, which costs next to
    /// nothing, and what changes meanwhile is copied then.
    pub(super) fn keep(&mut self, index: &Index, heard: &Demand) {
        if let Some((began, _)) = self.writing.take_if(|(_, writing)| writing.is_finished()) {
            let took = Duration::from_micros(self.kept.took.load(Ordering::Relaxed));
            self.next = began + (took * SHARE).max(LEAST);
            self.changed |= self.failing();
        }
        if !self.is_due(heard) || self.writing.is_some() || Instant::now() < self.next {
            return;
        }
        self.write(index, heard);
    }

    /// Writes the state if it has changed; what it returns is to be waited for.
    pub(super) fn last(&mut self, index: &Index, heard: &Demand) -> Option<JoinHandle<()>> {
        let failed = self.writing.as_ref().is_none_or(|(_, writing)| writing.is_finished()) && self.failing();
        if self.is_due(heard) || failed {
            self.write(index, heard);
        }
        self.writing.take().map(|(_, writing)| writing)
    }

    /// Returns whether what was written last is no longer what holds, or no longer all that is known in full.
    fn is_due(&self, heard: &Demand) -> bool {
        self.changed || self.heard != *heard
    }

    /// Begins to write, after what is being written.
    fn write(&mut self, index: &Index, heard: &Demand) {
        let began = Instant::now();
        let before = self.writing.take();
        let (state, kept) = (index.view(), Arc::clone(&self.kept));
        let (heard_now, node, path) = (heard.clone(), self.node.clone(), self.path.clone());
        debug!(microseconds = began.elapsed().as_micros(), "the state is being written");
        self.changed = false;
        self.heard = heard.clone();
        let writing = tokio::spawn(async move {
            let wait = async |writing: JoinHandle<()>| {
                if let Err(failure) = writing.await {
                    error!(error = %failure, "writing the state was given up");
                }
            };
            if let Some((_, before)) = before {
                wait(before).await;
            }
            wait(tokio::task::spawn_blocking(move || put(&state, &heard_now, &node, &path, &kept))).await;
        });
        self.writing = Some((began, writing));
    }
}

/// Writes a state and waits until it is safe.
fn put(state: &View, heard: &Demand, node: &str, path: &Path, kept: &Kept) {
    let began = Instant::now();
    let now = clock::wall_seconds_and_fraction().0;
    let written = snapshot::write(state, heard, node, path, now);
    let took = began.elapsed().as_micros();
    kept.took.store(u64::try_from(took).unwrap_or(u64::MAX), Ordering::Relaxed);
    match written.and_then(snapshot::Pending::commit) {
        Ok(()) => {
            kept.at.store(now, Ordering::Relaxed);
            kept.failing.store(false, Ordering::Relaxed);
        }
        Err(failure) => kept.failed(&failure),
    }
}
