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
    k8s::snapshot::{self, Pending, Snapshot},
    kernel::clock,
    policy::{demand::Demand, index::Index},
};

/// Writing takes no more than one part in so many of the time.
const SHARE: u32 = 200;

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
    /// The one that is on its way to the disk.
    writing: Option<JoinHandle<()>>,
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

    /// Writes the state if it has changed and that is due. The disk is waited for elsewhere.
    pub(super) fn keep(&mut self, index: &Index, heard: &Demand) {
        if self.writing.as_ref().is_some_and(JoinHandle::is_finished) {
            self.writing = None;
        }
        if !self.is_due(heard) || self.writing.is_some() || Instant::now() < self.next {
            return;
        }
        self.write(index, heard);
    }

    /// Writes the state if it has changed; what it returns is to be waited for.
    pub(super) fn last(&mut self, index: &Index, heard: &Demand) -> Option<JoinHandle<()>> {
        if self.is_due(heard) && self.writing.as_ref().is_none_or(JoinHandle::is_finished) {
            self.write(index, heard);
        }
        self.writing.take()
    }

    /// Returns whether what was written last is no longer what holds, or no longer all that is known in full.
    fn is_due(&self, heard: &Demand) -> bool {
        self.changed || self.heard != *heard
    }

    fn write(&mut self, index: &Index, heard: &Demand) {
        let began = Instant::now();
        let now = clock::wall_seconds_and_fraction().0;
        match snapshot::write(index, heard, &self.node, &self.path, now) {
            Ok(pending) => {
                self.changed = false;
                self.heard = heard.clone();
                let kept = Arc::clone(&self.kept);
                self.writing = Some(tokio::task::spawn_blocking(move || commit(pending, now, &kept)));
            }
            Err(failure) => self.kept.failed(&failure),
        }
        let took = began.elapsed();
        debug!(microseconds = took.as_micros(), "the state was written");
        self.next = began + (took * SHARE).max(Duration::from_millis(500));
    }
}

fn commit(pending: Pending, now: u64, kept: &Kept) {
    match pending.commit() {
        Ok(()) => {
            kept.at.store(now, Ordering::Relaxed);
            kept.failing.store(false, Ordering::Relaxed);
        }
        Err(failure) => kept.failed(&failure),
    }
}
