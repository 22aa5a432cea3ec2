//! Counters as rows, and rows as a screen.

use std::{collections::BTreeMap, time::Instant};

use egress_common::verdict::Verdict;

use super::super::observe::shown;
use crate::observe::{EntryUse, PodUse, verdict_of};

/// What stands for what is not there.
const NONE: &str = "<none>";

/// What is counted: a pod, a destination, or a reason.
type Subject = (String, String);

/// What rows are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    Pods,
    Destinations,
    Reasons,
}

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Denied,
    Allowed,
    Name,
}

impl Sort {
    /// Returns the next in turn.
    pub(super) fn next(self) -> Self {
        match self {
            Self::Denied => Self::Allowed,
            Self::Allowed => Self::Name,
            Self::Name => Self::Denied,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Allowed => "allowed",
            Self::Name => "name",
        }
    }
}

/// The counters of one look.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// When.
    at: Instant,
    /// The node's name.
    pub(super) node: String,
    /// Denied, audited and allowed packets by pod.
    pods: BTreeMap<Subject, [u64; 3]>,
    /// Packets by policy and destination.
    destinations: BTreeMap<Subject, u64>,
    /// Packets by verdict and reason.
    reasons: BTreeMap<Subject, u64>,
    /// What most of the denied or audited packets of a pod have as their reason.
    most: BTreeMap<Subject, (u64, String)>,
}

impl Sample {
    pub(super) fn new(at: Instant) -> Self {
        Self {
            at,
            node: String::new(),
            pods: BTreeMap::new(),
            destinations: BTreeMap::new(),
            reasons: BTreeMap::new(),
            most: BTreeMap::new(),
        }
    }

    /// Adds a pod, if it is of the namespace that is wanted.
    pub(super) fn add_pod(&mut self, pod: PodUse, namespace: Option<&str>) {
        if namespace.is_some_and(|wanted| pod.namespace.as_deref() != Some(wanted)) {
            return;
        }
        let subject =
            (pod.namespace.unwrap_or_else(|| NONE.to_owned()), pod.pod.unwrap_or_else(|| NONE.to_owned()));
        for (verdict, reason, packets) in pod.packets {
            let place = match verdict_of(&verdict) {
                Some(Verdict::Deny) => 0,
                Some(Verdict::Audit) => 1,
                Some(Verdict::Allow) => 2,
                None => continue,
            };
            let counts = self.pods.entry(subject.clone()).or_default();
            counts[place] = counts[place].saturating_add(packets);
            if place < 2 && packets > self.most.get(&subject).map_or(0, |(most, _)| *most) {
                self.most.insert(subject.clone(), (packets, reason.clone()));
            }
            let of_reason = self.reasons.entry((verdict, reason)).or_default();
            *of_reason = of_reason.saturating_add(packets);
        }
    }

    /// Adds a destination likewise.
    pub(super) fn add_entry(&mut self, entry: EntryUse, namespace: Option<&str>) {
        let of = entry.policy.split_once('/').map_or("", |(of, _)| of);
        if namespace.is_none_or(|wanted| wanted == of) {
            self.destinations.insert((entry.policy, entry.destination), entry.packets);
        }
    }
}

/// A row before it is text.
struct Row {
    names: Vec<String>,
    /// What it is sorted by: denied and allowed, per second and in all.
    denied: (u64, u64),
    allowed: (u64, u64),
    cells: Vec<String>,
}

/// Returns how many packets a second came, in thousandths, for sorting and writing.
fn rate(now: u64, before: Option<u64>, seconds: f64) -> u64 {
    let Some(before) = before.filter(|_| seconds > 0.0) else { return 0 };
    // A counter that has become smaller is another pod's, and began at nothing.
    let more = if now >= before { now - before } else { now };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rate that is shown with one decimal; casts from float saturate"
    )]
    let rate = (more as f64 * 1000.0 / seconds).round() as u64;
    rate
}

/// Writes a rate with one decimal, or none where it is large.
fn written(rate: u64) -> String {
    match rate {
        0 => "-".to_owned(),
        100_000.. => (rate / 1000).to_string(),
        _ => format!("{}.{}", rate / 1000, rate % 1000 / 100),
    }
}

/// Returns the table: its heads, then its rows, columns two spaces apart.
pub(super) fn lines(now: &Sample, before: Option<&Sample>, view: View, sort: Sort) -> Vec<String> {
    let seconds = before.map_or(0.0, |before| now.at.duration_since(before.at).as_secs_f64());
    let (heads, names, mut rows): (Vec<&str>, usize, Vec<Row>) = match view {
        View::Pods => {
            let rows = now.pods.iter().map(|(subject, counts)| {
                let earlier = before.and_then(|before| before.pods.get(subject));
                let rates: Vec<u64> = (0..3)
                    .map(|place| rate(counts[place], earlier.map(|earlier| earlier[place]), seconds))
                    .collect();
                let most = now.most.get(subject).map_or("-", |(_, reason)| reason);
                let mut cells = Vec::new();
                for place in 0..3 {
                    cells.extend([written(rates[place]), counts[place].to_string()]);
                }
                cells.push(shown(most));
                Row {
                    names: vec![shown(&subject.0), shown(&subject.1)],
                    denied: (rates[0].saturating_add(rates[1]), counts[0].saturating_add(counts[1])),
                    allowed: (rates[2], counts[2]),
                    cells,
                }
            });
            let heads = vec![
                "NAMESPACE",
                "POD",
                "DENIED/s",
                "DENIED",
                "AUDITED/s",
                "AUDITED",
                "ALLOWED/s",
                "ALLOWED",
                "MOSTLY",
            ];
            (heads, 2, rows.collect())
        }
        View::Destinations => {
            let earlier = |subject: &Subject| before.and_then(|before| before.destinations.get(subject));
            let rows = now.destinations.iter().map(|(subject, packets)| {
                counted(subject, *packets, rate(*packets, earlier(subject).copied(), seconds), true, true)
            });
            (vec!["POLICY", "DESTINATION", "PACKETS/s", "PACKETS"], 2, rows.collect())
        }
        View::Reasons => {
            let earlier = |subject: &Subject| before.and_then(|before| before.reasons.get(subject));
            let rows = now.reasons.iter().filter(|(_, packets)| **packets > 0).map(|(subject, packets)| {
                let allowed = subject.0 == Verdict::Allow.as_str();
                counted(
                    subject,
                    *packets,
                    rate(*packets, earlier(subject).copied(), seconds),
                    !allowed,
                    allowed,
                )
            });
            (vec!["VERDICT", "REASON", "PACKETS/s", "PACKETS"], 2, rows.collect())
        }
    };
    match sort {
        Sort::Denied => {
            rows.sort_by(|one, other| (other.denied, &one.names).cmp(&(one.denied, &other.names)));
        }
        Sort::Allowed => {
            rows.sort_by(|one, other| (other.allowed, &one.names).cmp(&(one.allowed, &other.names)));
        }
        Sort::Name => rows.sort_by(|one, other| one.names.cmp(&other.names)),
    }
    let heads: Vec<String> = heads.into_iter().map(str::to_owned).collect();
    let all: Vec<Vec<String>> = std::iter::once(heads)
        .chain(rows.into_iter().map(|row| row.names.into_iter().chain(row.cells).collect()))
        .collect();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..all[0].len()).map(width).collect();
    all.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
                // Numbers end where others end.
                let number = column >= names && column < names + row.len().min(8) - names;
                if number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect()
}

fn counted(subject: &Subject, packets: u64, rate: u64, denied: bool, allowed: bool) -> Row {
    Row {
        names: vec![shown(&subject.0), shown(&subject.1)],
        denied: if denied { (rate, packets) } else { (0, 0) },
        allowed: if allowed { (rate, packets) } else { (0, 0) },
        cells: vec![written(rate), packets.to_string()],
    }
}

/// Returns what fits on a screen: a line about the whole, the heads, and rows from `from` on, which is moved to where there are some.
pub(super) fn frame(
    now: &Sample,
    before: Option<&Sample>,
    (view, sort): (View, Sort),
    from: &mut usize,
    trouble: Option<&str>,
    (columns, rows): (usize, usize),
) -> Vec<String> {
    let mut table = lines(now, before, view, sort).into_iter();
    let heads = table.next().unwrap_or_default();
    let table: Vec<String> = table.collect();
    let room = rows.saturating_sub(3);
    *from = (*from).min(table.len().saturating_sub(room));
    let sum = |place: usize| now.pods.values().map(|counts| counts[place]).fold(0, u64::saturating_add);
    let head = match trouble {
        Some(trouble) => format!("no news: {}", shown(trouble)),
        None => format!(
            "{}: {} pods, packets denied {}, audited {}, allowed {}",
            shown(&now.node),
            now.pods.len(),
            sum(0),
            sum(1),
            sum(2)
        ),
    };
    let last = table.len().min(*from + room);
    let foot = format!(
        "{}-{last} of {}, {} first   p pods  d destinations  r reasons  s order  q end",
        (*from + 1).min(last),
        table.len(),
        sort.as_str()
    );
    let mut frame = vec![head, heads];
    frame.extend(table.into_iter().skip(*from).take(room));
    frame.resize(rows.saturating_sub(1).max(2), String::new());
    frame.push(foot);
    frame.truncate(rows.max(1));
    for line in &mut frame {
        if let Some((end, _)) = line.char_indices().nth(columns) {
            line.truncate(end);
        }
    }
    frame
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::policy::document::is_hidden;

    fn pod(namespace: &str, name: &str, denied: u64, allowed: u64) -> PodUse {
        let count = |verdict: &str, reason: &str, packets| (verdict.to_owned(), reason.to_owned(), packets);
        PodUse {
            namespace: Some(namespace.to_owned()),
            pod: Some(name.to_owned()),
            workload: None,
            packets: vec![
                count("deny", "default_deny", denied),
                count("deny", "expired", 1),
                count("allow", "allowed_destination", allowed),
            ],
        }
    }

    fn sample(at: Instant, pods: &[PodUse]) -> Sample {
        let mut sample = Sample::new(at);
        sample.node = "node-a".to_owned();
        for pod in pods {
            sample.add_pod(pod.clone(), None);
        }
        let entry = |destination: &str, packets| EntryUse {
            policy: "shop/web".to_owned(),
            destination: destination.to_owned(),
            packets,
        };
        sample.add_entry(entry("db", 70), None);
        sample.add_entry(entry("idle", 0), None);
        sample
    }

    fn two() -> (Sample, Sample) {
        let start = Instant::now();
        let before = sample(start, &[pod("shop", "web", 10, 1000), pod("shop", "till", 500, 0)]);
        let now = sample(
            start + Duration::from_secs(2),
            &[pod("shop", "web", 30, 1001), pod("shop", "till", 500, 0), pod("shop", "new", 7, 5)],
        );
        (before, now)
    }

    #[test]
    fn what_is_denied_most_comes_first() {
        let (before, now) = two();
        let wanted = "\
NAMESPACE  POD   DENIED/s  DENIED  AUDITED/s  AUDITED  ALLOWED/s  ALLOWED  MOSTLY
shop       web       10.0      31          -        0        0.5     1001  default_deny
shop       till         -     501          -        0          -        0  default_deny
shop       new          -       8          -        0          -        5  default_deny";
        assert_eq!(lines(&now, Some(&before), View::Pods, Sort::Denied).join("\n"), wanted);
        let first = |sort| {
            lines(&now, Some(&before), View::Pods, sort)[1].split_whitespace().nth(1).map(str::to_owned)
        };
        assert_eq!(first(Sort::Allowed).as_deref(), Some("web"));
        assert_eq!(first(Sort::Name).as_deref(), Some("new"));
    }

    #[test]
    fn destinations_and_reasons_have_their_own_tables() {
        let (before, now) = two();
        let destinations = lines(&now, Some(&before), View::Destinations, Sort::Name).join("\n");
        assert_eq!(
            destinations,
            "POLICY    DESTINATION  PACKETS/s  PACKETS\nshop/web  db                   -       70\nshop/web  idle                 -        0"
        );
        let reasons = lines(&now, Some(&before), View::Reasons, Sort::Denied);
        assert!(
            reasons[1].starts_with("deny     default_deny") && reasons[1].contains("13.5"),
            "{reasons:#?}"
        );
    }

    #[test]
    fn a_counter_that_becomes_smaller_began_at_nothing() {
        assert_eq!(rate(5, Some(100), 1.0), 5000);
        assert_eq!(rate(5, None, 1.0), 0, "nobody knows since when");
        assert_eq!(rate(u64::MAX, Some(0), 0.1), u64::MAX, "however much");
        assert_eq!(
            [written(0), written(500), written(12_340), written(250_900)],
            ["-", "0.5", "12.3", "250"]
        );
    }

    #[test]
    fn a_frame_fits_the_screen_whatever_its_size() {
        let start = Instant::now();
        let pods: Vec<PodUse> =
            (0..100).map(|number| pod("shop", &format!("pod\x1b[2J-{number:03}"), number, 0)).collect();
        let now = sample(start, &pods);
        for size in [(80, 24), (20, 5), (1, 1), (0, 0), (300, 200), (40, 3)] {
            let mut from = 1000;
            let frame = frame(&now, None, (View::Pods, Sort::Name), &mut from, None, size);
            assert!(frame.len() <= size.1.max(1), "{size:?}: {frame:#?}");
            assert!(frame.iter().all(|line| line.chars().count() <= size.0), "{size:?}: {frame:#?}");
            assert!(!frame.iter().any(|line| line.contains(is_hidden)), "{frame:?}");
            assert!(from <= 100, "{from}");
        }
        let mut from = 3;
        let whole = frame(&now, None, (View::Pods, Sort::Name), &mut from, None, (200, 24));
        assert!(whole[0].starts_with("node-a: 100 pods, packets denied 5050"), "{whole:#?}");
        assert!(whole[2].contains("-003"), "{whole:#?}");
        assert!(whole[23].starts_with("4-24 of 100, name first"), "{whole:#?}");
        let troubled = frame(&now, None, (View::Pods, Sort::Name), &mut from, Some("gone\n"), (200, 24));
        assert!(troubled[0].starts_with("no news: gone"), "{troubled:#?}");
    }

    #[test]
    fn only_what_is_of_the_namespace_counts() {
        let mut sample = Sample::new(Instant::now());
        sample.add_pod(pod("till", "web", 1, 1), Some("shop"));
        sample.add_entry(
            EntryUse { policy: "till/p".to_owned(), destination: "d".to_owned(), packets: 1 },
            Some("shop"),
        );
        assert!(sample.pods.is_empty() && sample.destinations.is_empty() && sample.reasons.is_empty());
        sample.add_pod(pod("shop", "web", 1, 1), Some("shop"));
        assert_eq!(sample.pods.len(), 1);
    }
}
