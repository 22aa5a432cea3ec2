//! Who asked the double for what.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use super::{kinds::Kind, store::Form};

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// Reads one object.
    Get,
    /// Reads all of a kind, or a page of them.
    List,
    /// Follows the changes of a kind.
    Watch,
    /// Makes an object; a binding too.
    Create,
    /// Replaces one.
    Update,
    /// Patches or applies.
    Patch,
    /// Deletes one.
    Delete,
    /// Deletes all that match.
    DeleteCollection,
}

/// A request, as far as requests are told apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// What it does.
    pub verb: Verb,
    /// The kind.
    pub kind: Kind,
    /// The namespace, or none for all of them and for what has none.
    pub namespace: Option<String>,
    /// The `labelSelector`, empty for none.
    pub labels: String,
    /// The `fieldSelector`, empty for none.
    pub fields: String,
    /// Whether it asks for metadata alone.
    pub metadata: bool,
}

/// What came of requests of one sort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How many there were.
    pub requests: u64,
    /// How many bytes of bodies were sent.
    pub bytes: u64,
    /// How many are open at this moment.
    pub open: u64,
}

/// The counts of all requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts(Arc<Mutex<BTreeMap<Asked, Count>>>);

/// Counts one request until it ends.
#[derive(Debug)]
pub(super) struct Open {
    counts: Counts,
    asked: Asked,
}

impl Asked {
    pub(super) fn form(&self) -> Form {
        if self.metadata { Form::Metadata } else { Form::Whole }
    }
}

impl Counts {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Asked, Count>> {
        self.0.lock().expect("no thread panics with the lock held")
    }

    pub(super) fn open(&self, asked: Asked) -> Open {
        let mut counts = self.lock();
        let count = counts.entry(asked.clone()).or_default();
        count.requests += 1;
        count.open += 1;
        Open { counts: self.clone(), asked }
    }

    pub(super) fn all(&self) -> BTreeMap<Asked, Count> {
        self.lock().clone()
    }

    /// Starts anew; what is open stays so.
    pub(super) fn reset(&self) {
        let mut counts = self.lock();
        counts.retain(|_, count| count.open > 0);
        for count in counts.values_mut() {
            *count = Count { open: count.open, ..Count::default() };
        }
    }
}

impl Open {
    pub(super) fn asked(&self) -> &Asked {
        &self.asked
    }

    pub(super) fn sent(&self, bytes: usize) {
        let mut counts = self.counts.lock();
        counts.get_mut(&self.asked).expect("what is open is counted").bytes += bytes as u64;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        counts.get_mut(&self.asked).expect("what is open is counted").open -= 1;
    }
}
