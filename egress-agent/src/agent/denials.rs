//! What is said of denials: once at once, then how often; and on the pod itself, once for each kind.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use egress_common::verdict::{Reason, Verdict};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::sync::mpsc;
use tracing::warn;

use super::{LocalPod, report::why_missed};
use crate::{
    explain::sentence,
    kernel::events::{Denial, protocol_name},
    observe::Mask,
    policy::{
        model::{PolicyKind, RuleName},
        reference::NearMiss,
    },
};

/// Denials that differ in nothing but time and source are told once in so long.
const WINDOW: Duration = Duration::from_secs(10);
/// How many different ones are kept apart, and as many of what is allowed. Beyond that each is told by itself.
const MOST_KINDS: usize = 4096;
/// Looking for the nearest rule takes no more than one part in so many of the time.
const NEAREST_SHARE: u32 = 100;
/// A pod is told of the same kind of denial once in so long.
const ANNOUNCED: Duration = Duration::from_secs(30 * 60);
/// A pod is told of so many kinds in that time.
const MOST_ANNOUNCED: usize = 10;
/// How many Events may be sent at once, and how many a second after that, for the whole node.
const BURST: f64 = 20.0;
const PER_SECOND: f64 = 1.0;
/// How many Events may wait for the API server.
const WAITING: usize = 64;
/// No longer than the API allows a note to be.
const MOST_NOTE: usize = 1000;

/// All that makes two denials different.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    cgroup: u64,
    verdict: Verdict,
    reason: Reason,
    rule: u32,
    protocol: u8,
    destination: IpAddr,
    port: u16,
}

#[derive(Debug)]
struct Seen {
    since: Instant,
    /// How many came after the one that was told, and the last of them.
    more: u64,
    last: Denial,
}

/// Tells equal denials apart from new ones.
#[derive(Debug, Default)]
pub(super) struct Denials {
    seen: HashMap<Kind, Seen>,
    /// What is allowed, so that it takes no place of what is not. Empty unless somebody wants to be told.
    allowed: HashMap<Kind, Seen>,
    /// The nearest rule is not looked for before this.
    nearest: Option<Instant>,
    /// How many packets and calls were told as denied, and how many of them asked for names.
    told: u64,
    told_names: u64,
}

/// The port that names are asked at.
const NAMES: u16 = 53;

/// Denials that differed in nothing but time and source.
#[derive(Debug)]
pub(super) struct Repeated {
    /// The last of them; what was held back in the kernel is the sum.
    pub(super) last: Denial,
    /// How many.
    pub(super) count: u64,
}

impl Denials {
    /// Takes a denial; returns whether it is to be told now. Others come out of [`Denials::ended`].
    pub(super) fn is_new(&mut self, denial: &Denial, now: Instant) -> bool {
        if denial.verdict == Verdict::Deny {
            self.told = self.told.saturating_add(1);
            self.told_names = self.told_names.saturating_add(u64::from(denial.destination_port == NAMES));
        }
        let kind = Kind {
            cgroup: denial.cgroup,
            verdict: denial.verdict,
            reason: denial.reason,
            rule: denial.rule,
            protocol: denial.protocol,
            destination: denial.destination,
            port: denial.destination_port,
        };
        let table = if denial.verdict == Verdict::Allow { &mut self.allowed } else { &mut self.seen };
        if let Some(seen) = table.get_mut(&kind) {
            let suppressed = seen.last.suppressed.saturating_mul(u32::from(seen.more > 0));
            seen.more += 1;
            seen.last = Denial { suppressed: denial.suppressed.saturating_add(suppressed), ..*denial };
            return false;
        }
        if table.len() < MOST_KINDS {
            table.insert(kind, Seen { since: now, more: 0, last: *denial });
        }
        true
    }

    /// Returns how many denials the kernel has told of, and how many of them were of port 53.
    pub(super) fn told(&self) -> (u64, u64) {
        (self.told, self.told_names)
    }

    /// Returns what came again in windows that have ended.
    pub(super) fn ended(&mut self, now: Instant) -> Vec<Repeated> {
        let mut ended = Vec::new();
        for table in [&mut self.seen, &mut self.allowed] {
            table.retain(|_, seen| {
                let over = now.duration_since(seen.since) >= WINDOW;
                if over && seen.more > 0 {
                    ended.push(Repeated { last: seen.last, count: seen.more });
                }
                !over
            });
        }
        ended.sort_by_key(|repeated| repeated.last.time);
        ended
    }

    /// Looks for the nearest rule with `look`, unless that has taken its share of the time.
    pub(super) fn nearest<T>(&mut self, now: Instant, look: impl FnOnce() -> Option<T>) -> Option<T> {
        if self.nearest.is_some_and(|next| now < next) {
            return None;
        }
        let began = Instant::now();
        let found = look();
        self.nearest = Some(now + began.elapsed() * NEAREST_SHARE);
        found
    }
}

/// What makes a kind of denial, for a pod: the verdict, why, and the policy.
type Told = (Verdict, Reason, Option<String>);

/// Puts Events on pods: one for the first denial of a kind, at a bounded rate, from a task of its own.
#[derive(Debug)]
pub(super) struct Announcer {
    queue: mpsc::Sender<Announcement>,
    /// What each pod was told, by its cgroup and when.
    told: BTreeMap<u64, BTreeMap<Told, Instant>>,
    allowance: f64,
    counted: Instant,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Announcement {
    event: Event_,
    regarding: ObjectReference,
}

/// [`Event`], which has no `Debug`.
#[derive(Debug)]
struct Event_ {
    warning: bool,
    reason: &'static str,
    action: String,
    note: String,
    related: Option<ObjectReference>,
}

impl Announcer {
    /// Starts the task. It ends with this value.
    pub(super) fn start(client: Client, node: &str, now: Instant) -> Self {
        let (queue, announcements) = mpsc::channel(WAITING);
        let counts = Arc::new(Counts::default());
        let reporter = Reporter { controller: "egress-agent".to_owned(), instance: Some(node.to_owned()) };
        tokio::spawn(announce(Recorder::new(client, reporter), announcements, Arc::clone(&counts)));
        Self { queue, told: BTreeMap::new(), allowance: BURST, counted: now, counts }
    }

    /// Tells a pod of a denial, unless it was told of one of that kind, or too much was told already.
    pub(super) fn tell(
        &mut self,
        now: Instant,
        denial: &Denial,
        pod: &LocalPod,
        rule: Option<&RuleName>,
        nearest: Option<&NearMiss>,
        mask: Mask,
    ) {
        let policy = rule.map(|rule| rule.policy.to_string());
        let told = self.told.entry(denial.cgroup).or_default();
        told.retain(|_, at| now.duration_since(*at) < ANNOUNCED);
        let kind = (denial.verdict, denial.reason, policy);
        if told.contains_key(&kind) {
            return;
        }
        let elapsed = now.duration_since(self.counted).as_secs_f64();
        self.allowance = (self.allowance + elapsed * PER_SECOND).min(BURST);
        self.counted = now;
        if told.len() >= MOST_ANNOUNCED || self.allowance < 1.0 {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let announcement = announcement(denial, pod, rule, nearest, mask);
        match self.queue.try_send(announcement) {
            Ok(()) => {
                self.allowance -= 1.0;
                told.insert(kind, now);
            }
            Err(_full) => {
                self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Forgets pods that are gone.
    pub(super) fn forget(&mut self, here: impl Fn(u64) -> bool) {
        self.told.retain(|cgroup, _| here(*cgroup));
    }

    /// Returns how many Events were sent, could not be sent, and were left out for being too many.
    pub(super) fn counts(&self) -> [(&'static str, u64); 3] {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("sent", count(&self.counts.sent)),
            ("failed", count(&self.counts.failed)),
            ("dropped", count(&self.counts.dropped)),
        ]
    }
}

fn announcement(
    denial: &Denial,
    pod: &LocalPod,
    rule: Option<&RuleName>,
    nearest: Option<&NearMiss>,
    mask: Mask,
) -> Announcement {
    let denied = denial.verdict == Verdict::Deny;
    let port = match denial.destination_port {
        0 => String::new(),
        port => format!(" port {port}"),
    };
    let mut note = format!(
        "{} to {}{port} {}: {}",
        protocol_name(denial.protocol),
        mask.show(denial.destination),
        if denied { "was denied" } else { "passed, and would be denied if the policy were enforced" },
        sentence(denial.reason),
    );
    if let Some(rule) = rule {
        note += &format!(" (policy {}, {})", rule.policy, rule.part.as_str());
    }
    if let Some(nearest) = nearest {
        note += &format!(
            ". Nearest is destination {} of policy {}: {}",
            nearest.rule.part.as_str(),
            nearest.rule.policy,
            why_missed(nearest, mask)
        );
    }
    let end = (0..=MOST_NOTE.min(note.len())).rev().find(|end| note.is_char_boundary(*end)).unwrap_or(0);
    note.truncate(end);
    let config_map = rule.filter(|rule| rule.policy.kind == PolicyKind::ConfigMap);
    let related = config_map.map(|rule| ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("ConfigMap".to_owned()),
        namespace: Some(rule.policy.id.namespace.to_string()),
        name: Some(rule.policy.id.name.to_string()),
        ..ObjectReference::default()
    });
    Announcement {
        event: Event_ {
            warning: denied,
            reason: if denied { "EgressDenied" } else { "EgressAudited" },
            action: pascal(denial.reason.as_str()),
            note,
            related,
        },
        regarding: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.id.namespace.to_string()),
            name: Some(pod.id.name.to_string()),
            uid: Some(pod.uid.clone()).filter(|uid| !uid.is_empty()),
            ..ObjectReference::default()
        },
    }
}

/// Writes `default_deny` as `DefaultDeny`, as the field is usually written.
fn pascal(snake: &str) -> String {
    snake
        .split('_')
        .flat_map(|word| {
            let mut letters = word.chars();
            letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters)
        })
        .collect()
}

async fn announce(recorder: Recorder, mut queue: mpsc::Receiver<Announcement>, counts: Arc<Counts>) {
    while let Some(Announcement { event, regarding }) = queue.recv().await {
        let event = Event {
            type_: if event.warning { EventType::Warning } else { EventType::Normal },
            reason: event.reason.to_owned(),
            note: Some(event.note),
            action: event.action,
            secondary: event.related,
        };
        match recorder.publish(&event, &regarding).await {
            Ok(()) => {
                counts.sent.fetch_add(1, Ordering::Relaxed);
            }
            Err(failure) => {
                if counts.failed.fetch_add(1, Ordering::Relaxed) == 0 {
                    warn!(error = %failure, "an Event could not be put on a pod; this is said once");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{
        cluster::NsName,
        model::{PolicyId, RulePart},
        reference::MissReason,
    };

    fn denial(cgroup: u64, port: u16) -> Denial {
        Denial {
            time: (1_800_000_000, 0),
            cgroup,
            slot: 1,
            rule: 2,
            verdict: Verdict::Deny,
            reason: Reason::DefaultDeny,
            hook: "connect",
            protocol: 6,
            source: IpAddr::from([0, 0, 0, 0]),
            source_port: 0,
            destination: IpAddr::from([192, 0, 2, 9]),
            destination_port: port,
            bytes: 0,
            suppressed: 1,
        }
    }

    fn pod() -> LocalPod {
        LocalPod { id: NsName::new("shop", "web"), uid: "u-1".to_owned(), ..LocalPod::default() }
    }

    fn rule() -> RuleName {
        let policy = PolicyId { kind: PolicyKind::ConfigMap, id: NsName::new("shop", "p") };
        RuleName { policy: Arc::new(policy), part: RulePart::Default }
    }

    #[test]
    fn equal_denials_are_told_once_and_then_how_often() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut denials = Denials::default();
        assert!(denials.is_new(&denial(1, 80), start));
        assert!(denials.is_new(&denial(1, 81), start), "another port is another kind");
        assert!(denials.is_new(&denial(2, 80), start), "and so is another pod");
        for second in 1..4 {
            assert!(!denials.is_new(&denial(1, 80), at(second)));
        }
        assert!(denials.ended(at(9)).is_empty());
        let ended = denials.ended(at(10));
        assert_eq!(ended.len(), 1, "what came once was told once");
        assert_eq!((ended[0].count, ended[0].last.destination_port), (3, 80));
        assert_eq!(ended[0].last.suppressed, 3, "what the kernel held back adds up");
        assert!(denials.is_new(&denial(1, 80), at(11)), "a new window");
    }

    #[test]
    fn many_kinds_take_bounded_room_and_each_is_told() {
        let start = Instant::now();
        let mut denials = Denials::default();
        for cgroup in 0..MOST_KINDS as u64 + 100 {
            assert!(denials.is_new(&denial(cgroup, 80), start));
        }
        assert_eq!(denials.seen.len(), MOST_KINDS);
        assert!(denials.is_new(&denial(MOST_KINDS as u64 + 1, 80), start));
        assert!(denials.ended(start + WINDOW).is_empty() && denials.seen.is_empty());
    }

    #[test]
    fn what_is_allowed_takes_no_place_of_denials() {
        let start = Instant::now();
        let mut denials = Denials::default();
        let allowed = |cgroup| Denial { verdict: Verdict::Allow, ..denial(cgroup, 80) };
        for cgroup in 0..MOST_KINDS as u64 + 100 {
            assert!(denials.is_new(&allowed(cgroup), start));
        }
        assert!(denials.is_new(&denial(1, 80), start));
        assert!(!denials.is_new(&denial(1, 80), start), "there is room to remember it");
        assert!(!denials.is_new(&allowed(1), start));
        let ended = denials.ended(start + WINDOW);
        let verdicts: Vec<Verdict> = ended.iter().map(|repeated| repeated.last.verdict).collect();
        assert_eq!(verdicts, [Verdict::Deny, Verdict::Allow]);
        assert!(denials.seen.is_empty() && denials.allowed.is_empty());
    }

    #[test]
    fn looking_for_the_nearest_rule_takes_its_share_and_no_more() {
        let start = Instant::now();
        let mut denials = Denials::default();
        let slow = || {
            std::thread::sleep(Duration::from_millis(2));
            Some(1)
        };
        assert_eq!(denials.nearest(start, slow), Some(1));
        assert_eq!(denials.nearest(start + Duration::from_millis(150), || Some(2)), None);
        assert_eq!(denials.nearest(start + Duration::from_secs(60), || Some(3)), Some(3));
    }

    fn announcer(start: Instant) -> (Announcer, mpsc::Receiver<Announcement>) {
        let (queue, announcements) = mpsc::channel(WAITING);
        let counts = Arc::default();
        (Announcer { queue, told: BTreeMap::new(), allowance: BURST, counted: start, counts }, announcements)
    }

    #[test]
    fn a_pod_is_told_once_of_each_kind_and_the_node_speaks_at_a_bounded_rate() {
        let start = Instant::now();
        let (mut announcer, mut queue) = announcer(start);
        let mut sent = || std::iter::from_fn(|| queue.try_recv().ok()).count();
        for port in 0..100 {
            announcer.tell(start, &denial(1, port), &pod(), Some(&rule()), None, Mask::Off);
        }
        assert_eq!(sent(), 1, "ports make no kinds");
        announcer.tell(
            start,
            &Denial { reason: Reason::Expired, ..denial(1, 1) },
            &pod(),
            None,
            None,
            Mask::Off,
        );
        assert_eq!(sent(), 1);
        for cgroup in 2..100 {
            announcer.tell(start, &denial(cgroup, 1), &pod(), None, None, Mask::Off);
        }
        assert_eq!(sent(), 18, "twenty at once");
        announcer.tell(start + Duration::from_secs(3), &denial(99, 1), &pod(), None, None, Mask::Off);
        assert_eq!(sent(), 1, "what was left out is told when there is room");
        announcer.tell(start + ANNOUNCED, &denial(1, 1), &pod(), Some(&rule()), None, Mask::Off);
        assert_eq!(sent(), 1, "after a while it is worth telling again");
        assert_eq!(announcer.counts()[2], ("dropped", 80));
        announcer.forget(|cgroup| cgroup == 99);
        assert_eq!(announcer.told.len(), 1);
    }

    #[test]
    fn an_event_says_what_was_denied_by_what_and_what_came_near() {
        let near = NearMiss {
            rule: RuleName { part: RulePart::Destination("db".into()), ..rule() },
            why: MissReason::Port,
        };
        let told = announcement(&denial(1, 80), &pod(), Some(&rule()), Some(&near), Mask::Off);
        assert_eq!(
            told.event.note,
            "TCP to 192.0.2.9 port 80 was denied: no destination allows it, and a policy that selects the pod denies by default \
             (policy shop/p, (default)). Nearest is destination db of policy shop/p: address and protocol match, the port does not"
        );
        assert_eq!((told.event.reason, told.event.action.as_str()), ("EgressDenied", "DefaultDeny"));
        assert_eq!(told.event.related.and_then(|related| related.name).as_deref(), Some("p"));
        assert_eq!(told.regarding.uid.as_deref(), Some("u-1"));
        let long = RuleName { part: RulePart::Destination("ä".repeat(2000)), ..rule() };
        assert!(
            announcement(&denial(1, 80), &pod(), Some(&long), None, Mask::Off).event.note.len() <= MOST_NOTE
        );
    }

    #[test]
    fn a_pod_is_told_of_a_bounded_number_of_kinds_and_rest_saves_up_no_more_than_a_burst() {
        let start = Instant::now();
        let (mut announcer, mut queue) = announcer(start);
        let mut sent = || std::iter::from_fn(|| queue.try_recv().ok()).count();
        let of = |number: usize| {
            let policy =
                PolicyId { kind: PolicyKind::ConfigMap, id: NsName::new("shop", format!("p-{number}")) };
            RuleName { policy: Arc::new(policy), part: RulePart::Default }
        };
        for number in 0..MOST_ANNOUNCED + 5 {
            announcer.tell(start, &denial(1, 80), &pod(), Some(&of(number)), None, Mask::Off);
        }
        assert_eq!(sent(), MOST_ANNOUNCED, "each policy is a kind");
        assert_eq!(announcer.counts()[2], ("dropped", 5));
        let later = start + Duration::from_secs(1000);
        for cgroup in 2..100 {
            announcer.tell(later, &denial(cgroup, 80), &pod(), None, None, Mask::Off);
        }
        assert_eq!(sent(), 20);
    }

    #[test]
    fn what_asks_for_names_is_counted_apart() {
        let mut denials = Denials::default();
        let now = Instant::now();
        for port in [53, 53, 80] {
            denials.is_new(&denial(1, port), now);
        }
        denials.is_new(&Denial { verdict: Verdict::Allow, ..denial(1, 53) }, now);
        denials.is_new(&Denial { verdict: Verdict::Audit, ..denial(1, 53) }, now);
        assert_eq!(denials.told(), (3, 2), "of what is denied");
    }
}
