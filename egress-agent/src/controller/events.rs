//! Kubernetes Events about what the controller does.
//!
//! Nothing waits for them: they go through a bounded queue to a task of its own, warnings first, at a bounded rate. No namespace takes more
//! than its share of the queue. What there is no room for is counted, and may be said again. What it told is in the log, too.

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
/// How many of them may be about one namespace.
const OF_NAMESPACE: usize = 128;
/// How many are sent at once, and how many a second after that.
const BURST: f64 = 200.0;
const PER_SECOND: f64 = 20.0;
/// What one object is told: so many Events in this time, and none twice.
const OBJECT: (usize, Duration) = (20, Duration::from_secs(600));
/// How many objects are kept apart, in all and of one namespace.
const MOST_OBJECTS: usize = 16_384;
const MOST_IN_NAMESPACE: usize = 1024;
/// How often it is looked which of them can be forgotten, at most.
const SWEEP: Duration = Duration::from_secs(10);
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
    /// Its place in the share of its namespace, given back when it is sent or dropped.
    share: Share,
}

/// What was said of one object lately.
#[derive(Debug)]
struct Said {
    since: Instant,
    texts: Vec<Sha256>,
}

/// What was said lately, and what waits.
#[derive(Debug)]
struct Book {
    /// By namespace and name.
    said: HashMap<String, HashMap<String, Said>>,
    /// How many objects there are in it.
    objects: usize,
    /// When it was looked last what can be forgotten.
    swept: Option<Instant>,
    /// How many Events of each namespace wait: none has a zero.
    waiting: HashMap<String, usize>,
}

impl Book {
    fn new() -> Self {
        Self { said: HashMap::new(), objects: 0, swept: None, waiting: HashMap::new() }
    }

    /// Forgets what was said long ago, unless that was done a moment ago.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now.saturating_duration_since(swept) < SWEEP) {
            return;
        }
        self.swept = Some(now);
        self.said.retain(|_, objects| {
            objects.retain(|_, said| now.saturating_duration_since(said.since) < OBJECT.1);
            !objects.is_empty()
        });
        self.objects = self.said.values().map(HashMap::len).sum();
    }

    /// Looks whether an object may be told that: not twice in a while, and not too much.
    fn look(&mut self, (namespace, name): (&str, &str), text: &Sha256, now: Instant) -> News {
        let said = self.said.get(namespace).and_then(|objects| objects.get(name));
        let is_known = said.is_some();
        let said = said.filter(|said| now.saturating_duration_since(said.since) < OBJECT.1);
        if said.is_some_and(|said| said.texts.contains(text)) {
            return News::Said;
        }
        let too_many = said.is_some_and(|said| said.texts.len() >= OBJECT.0)
            || self.waiting.get(namespace).is_some_and(|waiting| *waiting >= OF_NAMESPACE);
        if too_many {
            return News::TooMany;
        }
        if is_known {
            return News::New;
        }
        let full = |book: &Self| {
            book.objects >= MOST_OBJECTS
                || book.said.get(namespace).is_some_and(|objects| objects.len() >= MOST_IN_NAMESPACE)
        };
        if full(self) {
            self.sweep(now);
        }
        if full(self) { News::TooMany } else { News::New }
    }

    /// Notes that an object was told that.
    fn note(&mut self, (namespace, name): (String, String), text: Sha256, now: Instant) {
        let objects = self.said.entry(namespace).or_default();
        let before = objects.len();
        let said = objects.entry(name).or_insert_with(|| Said { since: now, texts: Vec::new() });
        if now.saturating_duration_since(said.since) >= OBJECT.1 {
            *said = Said { since: now, texts: Vec::new() };
        }
        said.texts.push(text);
        self.objects += objects.len() - before;
    }
}

/// One place of a namespace among what waits.
#[derive(Debug)]
struct Share {
    namespace: String,
    book: Arc<Mutex<Book>>,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = book.waiting.get_mut(&self.namespace) {
            *waiting -= 1;
            if *waiting == 0 {
                book.waiting.remove(&self.namespace);
            }
        }
    }
}

/// Takes Events for the task that writes them. The task ends with the last of its handles.
#[derive(Clone, Debug)]
pub(super) struct Events {
    warnings: mpsc::Sender<Waiting>,
    others: mpsc::Sender<Waiting>,
    book: Arc<Mutex<Book>>,
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
        let book = Arc::new(Mutex::new(Book::new()));
        let events = Self { warnings, others, book, counts: Arc::clone(&counts) };
        (events, write(client, lead, counts, first, second))
    }

    /// Says that something is as it should be. Returns whether it is on its way, or was said lately.
    pub(super) fn tell(&self, about: &ObjectReference, reason: &str, action: &str, note: &str) -> bool {
        self.publish(false, about, reason, action, note)
    }

    /// Says that something is not. Returns whether it is on its way, or was said lately.
    pub(super) fn warn(&self, about: &ObjectReference, reason: &str, action: &str, note: &str) -> bool {
        self.publish(true, about, reason, action, note)
    }

    fn publish(
        &self,
        warning: bool,
        about: &ObjectReference,
        reason: &str,
        action: &str,
        note: &str,
    ) -> bool {
        let note = plain(note, MOST_NOTE);
        let news = self.enqueue(warning, about, reason, action, note, Instant::now());
        if news == News::TooMany {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
        news != News::TooMany
    }

    /// Queues what is new, and notes it as said only then.
    fn enqueue(
        &self,
        warning: bool,
        about: &ObjectReference,
        reason: &str,
        action: &str,
        note: String,
        now: Instant,
    ) -> News {
        let text = Sha256::of(format!("{reason}\n{note}").as_bytes());
        let namespace = about.namespace.clone().unwrap_or_default();
        let name = about.name.clone().unwrap_or_default();
        let queue = if warning { &self.warnings } else { &self.others };
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let news = book.look((&namespace, &name), &text, now);
        if news != News::New {
            return news;
        }
        let Ok(place) = queue.try_reserve() else { return News::TooMany };
        *book.waiting.entry(namespace.clone()).or_default() += 1;
        book.note((namespace.clone(), name), text, now);
        drop(book);
        place.send(Waiting {
            warning,
            about: about.clone(),
            reason: reason.to_owned(),
            action: action.to_owned(),
            note,
            share: Share { namespace, book: Arc::clone(&self.book) },
        });
        news
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    let Waiting { warning, about, reason, action, note, share } = waiting;
    drop(share);
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
    use super::{super::fake, *};

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
        let book = Arc::new(Mutex::new(Book::new()));
        (Events { warnings, others, book, counts: Arc::default() }, first, second)
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

    fn in_namespace(namespace: &str, name: &str) -> ObjectReference {
        ObjectReference { namespace: Some(namespace.to_owned()), ..about(name) }
    }

    fn all(queue: &mut mpsc::Receiver<Waiting>) -> usize {
        std::iter::from_fn(|| queue.try_recv().ok()).count()
    }

    #[test]
    fn one_object_has_a_bounded_number_and_the_queue_is_bounded() {
        let (events, mut warnings, _others) = events();
        for number in 0..100 {
            events.warn(&about("web"), "Rejected", "Generate", &number.to_string());
        }
        assert_eq!(all(&mut warnings), OBJECT.0);
        assert_eq!(events.counts.dropped.load(Ordering::Relaxed), 80);
        let later = Instant::now() + OBJECT.1;
        let again = |now| events.enqueue(true, &about("web"), "Rejected", "Generate", "0".to_owned(), now);
        assert_eq!(again(later), News::New, "it is told again");
        assert_eq!(again(later), News::Said);
        assert_eq!(all(&mut warnings), 1);
        for number in 0..WAITING + 10 {
            let about = in_namespace(&format!("team-{}", number / 100), "web");
            events.warn(&about, "Rejected", "Generate", &number.to_string());
            let other = in_namespace(&format!("other-{number}"), "web");
            events.warn(&other, "Rejected", "Generate", "x");
        }
        assert_eq!(all(&mut warnings), WAITING);
    }

    #[test]
    fn a_namespace_takes_no_more_than_its_share() {
        let (events, mut warnings, _others) = events();
        let warn = |namespace: &str, number: usize| {
            events.warn(&in_namespace(namespace, &format!("web-{number}")), "Rejected", "Generate", "x")
        };
        let taken = (0..WAITING * 2).filter(|number| warn("loud", *number)).count();
        assert_eq!(taken, OF_NAMESPACE);
        assert!(warn("quiet", 0), "another one has its own");
        assert!(!warn("loud", OF_NAMESPACE), "what was dropped is not taken for said");
        assert_eq!(all(&mut warnings), OF_NAMESPACE + 1);
        assert!(events.book.lock().expect("nobody panicked").waiting.is_empty(), "it is given back");
        assert!(warn("loud", OF_NAMESPACE), "it is said when there is room");
        let mut next = OF_NAMESPACE + 1;
        while next < MOST_IN_NAMESPACE {
            assert!(warn("loud", next));
            warnings.try_recv().expect("it waits");
            next += 1;
        }
        assert_eq!(all(&mut warnings), 1);
        assert!(!warn("loud", next), "its objects are bounded");
        assert!(warn("quiet", 1));
    }

    #[test]
    fn what_was_said_long_ago_makes_room_without_a_walk_each_time() {
        let mut book = Book::new();
        let start = Instant::now();
        let text = || Sha256::of(b"x");
        for number in 0..MOST_IN_NAMESPACE {
            book.note(("loud".to_owned(), number.to_string()), text(), start);
        }
        assert_eq!(book.look(("loud", "more"), &text(), start), News::TooMany);
        assert_eq!(book.swept, Some(start));
        let soon = start + SWEEP / 2;
        assert_eq!(book.look(("loud", "more"), &text(), soon), News::TooMany);
        assert_eq!(book.swept, Some(start), "it was looked a moment ago");
        let late = start + OBJECT.1;
        assert_eq!(book.look(("loud", "more"), &text(), late), News::New);
        assert_eq!((book.objects, book.said.len()), (0, 0));
    }

    /// Writes what waits, and returns the reasons in the order in which they were written, and the counts.
    async fn written(lead: Lead, code: u16, says: &[(bool, usize)]) -> (Vec<String>, [u64; 3]) {
        let (client, asked) = fake::api(move |asked| (code, asked.body.clone()));
        let counts = Arc::<Counts>::default();
        let (events, writing) = Events::new(client, lead, Arc::clone(&counts));
        for (number, (warning, times)) in says.iter().enumerate() {
            for time in 0..*times {
                let about = in_namespace(&format!("n-{}", number / 10), &format!("web-{number}"));
                let reason = format!("{warning}-{number}");
                assert!(events.publish(*warning, &about, &reason, "Generate", &format!("{time}")));
            }
        }
        drop(events);
        writing.await;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = [count(&counts.sent), count(&counts.failed), count(&counts.dropped)];
        let reason = |asked: &fake::Asked| {
            let reason = asked.body["reason"].as_str().expect("it has one").to_owned();
            let sort = if reason.starts_with("true") { "Warning" } else { "Normal" };
            assert_eq!(asked.body["type"], sort, "{asked:?}");
            reason
        };
        let reasons = asked.now().iter().map(reason).collect();
        (reasons, counts)
    }

    #[tokio::test]
    async fn warnings_are_written_before_what_is_as_it_should_be() {
        let (reasons, counts) = written(fake::lead(), 201, &[(false, 3), (true, 2)]).await;
        assert_eq!(reasons, ["true-1", "true-1", "false-0", "false-0", "false-0"]);
        assert_eq!(counts, [5, 0, 0]);
    }

    #[test]
    fn objects_are_bounded_in_all() {
        let mut book = Book::new();
        let start = Instant::now();
        for number in 0..MOST_OBJECTS {
            let object = (format!("team-{}", number % 64), number.to_string());
            book.note(object, Sha256::of(b"x"), start);
        }
        let text = Sha256::of(b"y");
        assert_eq!(book.look(("another", "web"), &text, start), News::TooMany);
        assert_eq!(book.look(("team-0", "0"), &text, start), News::New, "one that is known is told on");
    }

    #[tokio::test]
    async fn who_does_not_lead_writes_none_and_what_fails_is_counted() {
        let nobody =
            Lead(tokio::sync::watch::channel(super::super::Standing::Unknown { why: String::new() }).1);
        assert_eq!(written(nobody, 201, &[(true, 3)]).await, (Vec::new(), [0, 0, 3]));
        let (reasons, counts) = written(fake::lead(), 500, &[(true, 3)]).await;
        assert_eq!((reasons.len(), counts), (3, [0, 3, 0]));
    }

    #[tokio::test]
    async fn after_the_first_hundreds_they_are_written_at_a_bounded_rate() {
        let began = Instant::now();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is a small whole number"
        )]
        let burst = BURST as usize;
        let more = 10;
        let says: Vec<(bool, usize)> = (0..burst / 10 + more / 10).map(|_| (true, 10)).collect();
        let (_, counts) = written(fake::lead(), 201, &says).await;
        assert_eq!(counts, [(burst + more) as u64, 0, 0]);
        assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
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
            share: Share { namespace: "shop".to_owned(), book: Arc::new(Mutex::new(Book::new())) },
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
