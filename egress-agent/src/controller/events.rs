//! Kubernetes Events about what the controller does.
//!
//! Nothing waits for them: they go through a bounded queue to a task of its own, warnings first, at a bounded rate. What there is no room
//! for is counted. What it told is in the log, too.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::{Lead, lease::FIELD_MANAGER};
use crate::{k8s::summary::plain, ranges::publish::Sha256};

/// How long the text of an Event may be, in bytes; the API server's limit is 1024.
const MOST_NOTE: usize = 1000;
/// How much of an object's name an Event's name begins with: the rest of the 253 characters is for what tells it from others.
const MOST_NAME: usize = 200;
/// How many Events may wait, of each sort.
const WAITING: usize = 2048;
/// How many are sent at once, and how many a second after that.
const BURST: f64 = 200.0;
const PER_SECOND: f64 = 20.0;
/// What one object is told: so many Events in this time, and none twice.
const OBJECT: (usize, Duration) = (20, Duration::from_secs(600));
/// How many objects are kept apart.
const MOST_OBJECTS: usize = 16_384;
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What became of Events.
#[derive(Debug, Default)]
pub struct Counts {
    /// Sent.
    pub sent: AtomicU64,
    /// Not sent, because the API server would not take them.
    pub failed: AtomicU64,
    /// Left out, because there were too many, of one object or of all.
    pub dropped: AtomicU64,
}

/// An Event that waits.
#[derive(Debug)]
struct Waiting {
    warning: bool,
    about: ObjectReference,
    reason: String,
    action: String,
    note: String,
}

/// What was said of one object lately.
#[derive(Debug)]
struct Said {
    since: Instant,
    texts: Vec<Sha256>,
}

/// Takes Events for the task that writes them. The task ends with the last of its handles.
#[derive(Clone, Debug)]
pub(super) struct Events {
    warnings: mpsc::Sender<Waiting>,
    others: mpsc::Sender<Waiting>,
    said: Arc<Mutex<HashMap<(String, String), Said>>>,
    counts: Arc<Counts>,
}

impl Events {
    /// Returns where Events go, and the task that writes them.
    pub(super) fn new(
        client: Client,
        lead: Lead,
        counts: Arc<Counts>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (warnings, first) = mpsc::channel(WAITING);
        let (others, second) = mpsc::channel(WAITING);
        let events = Self { warnings, others, said: Arc::default(), counts: Arc::clone(&counts) };
        (events, write(client, lead, counts, first, second))
    }

    /// Says that something is as it should be.
    pub(super) fn tell(&self, about: &ObjectReference, reason: &str, action: &str, note: &str) {
        self.publish(false, about, reason, action, note);
    }

    /// Says that something is not.
    pub(super) fn warn(&self, about: &ObjectReference, reason: &str, action: &str, note: &str) {
        self.publish(true, about, reason, action, note);
    }

    fn publish(&self, warning: bool, about: &ObjectReference, reason: &str, action: &str, note: &str) {
        let note = plain(note, MOST_NOTE);
        match self.is_new(about, reason, &note, Instant::now()) {
            News::New => {}
            News::Said => return,
            News::TooMany => {
                self.counts.dropped.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        let event = Waiting {
            warning,
            about: about.clone(),
            reason: reason.to_owned(),
            action: action.to_owned(),
            note,
        };
        let queue = if warning { &self.warnings } else { &self.others };
        if queue.try_send(event).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Looks whether an object was told that lately, or too much.
    fn is_new(&self, about: &ObjectReference, reason: &str, note: &str, now: Instant) -> News {
        let text = Sha256::of(format!("{reason}\n{note}").as_bytes());
        let object = (about.namespace.clone().unwrap_or_default(), about.name.clone().unwrap_or_default());
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() >= MOST_OBJECTS {
            said.retain(|_, said| now.duration_since(said.since) < OBJECT.1);
        }
        if said.len() >= MOST_OBJECTS && !said.contains_key(&object) {
            return News::TooMany;
        }
        let said = said.entry(object).or_insert_with(|| Said { since: now, texts: Vec::new() });
        if now.duration_since(said.since) >= OBJECT.1 {
            *said = Said { since: now, texts: Vec::new() };
        }
        if said.texts.contains(&text) {
            return News::Said;
        }
        if said.texts.len() >= OBJECT.0 {
            return News::TooMany;
        }
        said.texts.push(text);
        News::New
    }
}

#[derive(Debug, PartialEq, Eq)]
enum News {
    New,
    Said,
    TooMany,
}

/// Writes what comes, warnings first.
async fn write(
    client: Client,
    lead: Lead,
    counts: Arc<Counts>,
    mut warnings: mpsc::Receiver<Waiting>,
    mut others: mpsc::Receiver<Waiting>,
) {
    let mut allowance = Allowance { left: BURST, counted: Instant::now() };
    let mut number = 0_u64;
    loop {
        let waiting = tokio::select! {
            biased;
            Some(waiting) = warnings.recv() => waiting,
            Some(waiting) = others.recv() => waiting,
            else => return,
        };
        let pause = allowance.take(Instant::now());
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        if lead.permit().is_err() {
            counts.dropped.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        number += 1;
        let reason = waiting.reason.clone();
        let event = event(waiting, number, jiff::Timestamp::now());
        let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
        let api = Api::<Event>::namespaced(client.clone(), namespace);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match tokio::time::timeout(PATIENCE, api.create(&params, &event)).await {
            Ok(Ok(_)) => {
                counts.sent.fetch_add(1, Ordering::Relaxed);
            }
            failed => {
                let error = match failed {
                    Ok(Err(error)) => plain(&error.to_string(), 500),
                    _ => "no answer in time".to_owned(),
                };
                // A namespace that is going takes none, and an API server in trouble gives thousands of these.
                if counts.failed.fetch_add(1, Ordering::Relaxed).is_multiple_of(100) {
                    warn!(reason, error, "an Event could not be written; of a hundred of these, one is told");
                } else {
                    debug!(reason, error, "an Event could not be written");
                }
            }
        }
    }
}

/// How many may be sent now.
#[derive(Debug)]
struct Allowance {
    left: f64,
    counted: Instant,
}

impl Allowance {
    /// Takes one, and returns how long to wait for it.
    fn take(&mut self, now: Instant) -> Duration {
        let elapsed = now.saturating_duration_since(self.counted).as_secs_f64();
        self.left = (self.left + elapsed * PER_SECOND).min(BURST) - 1.0;
        self.counted = self.counted.max(now);
        if self.left >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.left / PER_SECOND) }
    }
}

/// Returns the object. Its name begins with that of what it is about, as far as there is room.
fn event(waiting: Waiting, number: u64, now: jiff::Timestamp) -> Event {
    let Waiting { warning, about, reason, action, note } = waiting;
    let name = about.name.as_deref().unwrap_or("egress-controller");
    let hash = Sha256::of(format!("{name} {number} {}", now.as_nanosecond()).as_bytes()).to_string();
    // Names are ASCII, and none of their parts may end with a dot or a dash.
    let begin = name.get(..MOST_NAME).unwrap_or(name).trim_end_matches(['.', '-']);
    Event {
        metadata: ObjectMeta {
            namespace: about.namespace.clone(),
            name: Some(format!("{begin}.{}", &hash[..16])),
            ..ObjectMeta::default()
        },
        action: Some(action),
        reason: Some(reason),
        note: Some(note),
        type_: Some(if warning { "Warning" } else { "Normal" }.to_owned()),
        event_time: Some(MicroTime(now)),
        regarding: Some(about),
        reporting_controller: Some(FIELD_MANAGER.to_owned()),
        reporting_instance: Some(FIELD_MANAGER.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(name: &str) -> ObjectReference {
        ObjectReference {
            kind: Some("ConfigMap".to_owned()),
            namespace: Some("shop".to_owned()),
            name: Some(name.to_owned()),
            ..ObjectReference::default()
        }
    }

    fn events() -> (Events, mpsc::Receiver<Waiting>, mpsc::Receiver<Waiting>) {
        let (warnings, first) = mpsc::channel(WAITING);
        let (others, second) = mpsc::channel(WAITING);
        (Events { warnings, others, said: Arc::default(), counts: Arc::default() }, first, second)
    }

    #[test]
    fn each_text_is_an_event_of_its_own_and_the_same_one_is_none() {
        let (events, mut warnings, mut others) = events();
        events.warn(&about("web"), "Rejected", "Generate", "one");
        events.warn(&about("web"), "Rejected", "Generate", "two");
        events.warn(&about("web"), "Rejected", "Generate", "one");
        events.tell(&about("web"), "Accepted", "Generate", "one");
        events.warn(&about("other"), "Rejected", "Generate", "a\u{1b}[31m\nb");
        let notes: Vec<String> =
            std::iter::from_fn(|| warnings.try_recv().ok()).map(|event| event.note).collect();
        assert_eq!(notes, ["one", "two", "a [31m b"]);
        assert_eq!(others.try_recv().expect("it is another sort").reason, "Accepted");
    }

    #[test]
    fn one_object_has_a_bounded_number_and_the_queue_is_bounded() {
        let (events, mut warnings, _others) = events();
        for number in 0..100 {
            events.warn(&about("web"), "Rejected", "Generate", &number.to_string());
        }
        let count =
            |warnings: &mut mpsc::Receiver<Waiting>| std::iter::from_fn(|| warnings.try_recv().ok()).count();
        assert_eq!(count(&mut warnings), OBJECT.0);
        assert_eq!(events.counts.dropped.load(Ordering::Relaxed), 80);
        let later = Instant::now() + OBJECT.1;
        assert_eq!(events.is_new(&about("web"), "Rejected", "0", later), News::New, "it is told again");
        for number in 0..WAITING + 10 {
            events.warn(&about(&format!("web-{number}")), "Rejected", "Generate", "x");
        }
        assert_eq!(count(&mut warnings), WAITING);
        assert_eq!(events.counts.dropped.load(Ordering::Relaxed), 90);
    }

    #[test]
    fn the_rate_is_bounded() {
        let start = Instant::now();
        let mut allowance = Allowance { left: BURST, counted: start };
        let waits: Vec<Duration> = (0..300).map(|_| allowance.take(start)).collect();
        assert!(waits[..200].iter().all(Duration::is_zero));
        assert_eq!(waits[200], Duration::from_millis(50));
        assert!(waits[299] >= Duration::from_secs(4), "{:?}", waits[299]);
    }

    #[test]
    fn every_policy_has_a_name_that_an_event_can_have() {
        let waiting = |name: &str| Waiting {
            warning: true,
            about: about(name),
            reason: "Rejected".to_owned(),
            action: "Generate".to_owned(),
            note: "n".to_owned(),
        };
        let now = jiff::Timestamp::UNIX_EPOCH;
        let long = format!("{}.{}", "a".repeat(199), "b".repeat(53));
        for name in ["web", &long, &"x".repeat(253)] {
            let made = event(waiting(name), 1, now).metadata.name.expect("it has a name");
            assert!(made.len() <= 253 && !made.contains(".."), "{made}");
            assert!(made.starts_with(&name[..name.len().min(199)]));
            assert_ne!(made, event(waiting(name), 2, now).metadata.name.expect("it has a name"));
        }
        assert!(plain(&"é".repeat(2000), MOST_NOTE).len() <= MOST_NOTE);
    }
}
