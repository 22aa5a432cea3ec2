//! Counters as rows, and rows as a screen.

use egress_common::verdict::Verdict;

use super::{
    super::observe::shown,
    look::{Count, Look, Subject, Use},
};

/// What rows are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum View {
    Workloads,
    Pods,
    Destinations,
    Reasons,
}

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Sort {
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

/// A row before it is text.
struct Row {
    names: Vec<String>,
    /// What it is sorted by: denied and allowed, per second and in all.
    denied: (u64, u64),
    allowed: (u64, u64),
    cells: Vec<String>,
}

/// Writes a rate with one decimal, or none where it is large.
fn written(rate: u64) -> String {
    match rate {
        0 => "-".to_owned(),
        100_000.. => (rate / 1000).to_string(),
        _ => format!("{}.{}", rate / 1000, rate % 1000 / 100),
    }
}

/// Returns the heads of the columns, and a line for each row.
pub(in crate::cli) fn lines(look: &Look, view: View, sort: Sort) -> Vec<String> {
    const OF_PODS: [&str; 7] =
        ["DENIED/s", "DENIED", "AUDITED/s", "AUDITED", "ALLOWED/s", "ALLOWED", "MOSTLY"];
    let names = 2;
    let (heads, mut rows): (Vec<&str>, Vec<Row>) = match view {
        View::Workloads => {
            let rows = look.workloads().iter().map(|(subject, done)| used(subject, done)).collect();
            ([&["NAMESPACE", "WORKLOAD"][..], &OF_PODS].concat(), rows)
        }
        View::Pods => {
            let rows = look.pods.iter().map(|(subject, (_, done))| used(subject, done)).collect();
            ([&["NAMESPACE", "POD"][..], &OF_PODS].concat(), rows)
        }
        View::Destinations => {
            let rows = look.destinations.iter().map(|(subject, count)| counted(subject, *count, true, true));
            (vec!["POLICY", "DESTINATION", "PACKETS/s", "PACKETS"], rows.collect())
        }
        View::Reasons => {
            let rows = look.reasons.iter().filter(|(_, count)| count.packets > 0).map(|(subject, count)| {
                let allowed = subject.0 == Verdict::Allow.as_str();
                counted(subject, *count, !allowed, allowed)
            });
            (vec!["VERDICT", "REASON", "PACKETS/s", "PACKETS"], rows.collect())
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

fn used(subject: &Subject, done: &Use) -> Row {
    let Use { denied, audited, allowed, mostly } = done;
    let counts = [denied, audited, allowed];
    let mut cells: Vec<String> =
        counts.iter().flat_map(|count| [written(count.per_second), count.packets.to_string()]).collect();
    cells.push(mostly.as_ref().map_or_else(|| "-".to_owned(), |(reason, _)| shown(reason)));
    let mut not_allowed = *denied;
    not_allowed.add(*audited);
    Row {
        names: vec![shown(&subject.0), shown(&subject.1)],
        denied: (not_allowed.per_second, not_allowed.packets),
        allowed: (allowed.per_second, allowed.packets),
        cells,
    }
}

fn counted(subject: &Subject, count: Count, denied: bool, allowed: bool) -> Row {
    let sorted = (count.per_second, count.packets);
    Row {
        names: vec![shown(&subject.0), shown(&subject.1)],
        denied: if denied { sorted } else { (0, 0) },
        allowed: if allowed { sorted } else { (0, 0) },
        cells: vec![written(count.per_second), count.packets.to_string()],
    }
}

/// Returns what fits on a screen: a line about the whole, the heads, and rows from `from` on, which is moved to where there are some.
pub(super) fn frame(
    look: &Look,
    (view, sort): (View, Sort),
    from: &mut usize,
    trouble: Option<&str>,
    (columns, rows): (usize, usize),
) -> Vec<String> {
    let mut table = lines(look, view, sort).into_iter();
    let heads = table.next().unwrap_or_default();
    let table: Vec<String> = table.collect();
    let room = rows.saturating_sub(3);
    *from = (*from).min(table.len().saturating_sub(room));
    let mut sum = Use::default();
    for (_, done) in look.pods.values() {
        sum.add(done);
    }
    let head = match trouble {
        Some(trouble) => format!("no news: {}", shown(trouble)),
        None => format!(
            "{}: {} pods, packets denied {}, audited {}, allowed {}",
            whose(look),
            look.pods.len(),
            sum.denied.packets,
            sum.audited.packets,
            sum.allowed.packets
        ),
    };
    let last = table.len().min(*from + room);
    let foot = format!(
        "{}-{last} of {}, {} first   w workloads  p pods  d destinations  r reasons  s order  q end",
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

/// Returns whose counters these are: the node's by its name, or of how many.
fn whose(look: &Look) -> String {
    let nodes = match (look.nodes.len(), look.nodes.first()) {
        (1, Some(node)) if look.silent.is_empty() => shown(node),
        (1, _) => "1 node".to_owned(),
        (many, _) => format!("{many} nodes"),
    };
    match look.silent.first() {
        None => nodes,
        Some(first) if look.silent.len() == 1 => format!("{nodes}, {} not heard", shown(first)),
        Some(first) => format!("{nodes}, {} and {} more not heard", shown(first), look.silent.len() - 1),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{
        super::look::tests::{pod, sample, two},
        *,
    };
    use crate::{observe::PodUse, policy::document::is_hidden};

    #[test]
    fn what_is_denied_most_comes_first() {
        let look = two();
        let wanted = "\
NAMESPACE  POD   DENIED/s  DENIED  AUDITED/s  AUDITED  ALLOWED/s  ALLOWED  MOSTLY
shop       web       10.0      31          -        0        0.5     1001  default_deny
shop       till         -     501          -        0          -        0  default_deny
shop       new          -       8          -        0          -        5  default_deny";
        assert_eq!(lines(&look, View::Pods, Sort::Denied).join("\n"), wanted);
        let first = |sort| lines(&look, View::Pods, sort)[1].split_whitespace().nth(1).map(str::to_owned);
        assert_eq!(first(Sort::Allowed).as_deref(), Some("web"));
        assert_eq!(first(Sort::Name).as_deref(), Some("new"));
        let workloads = lines(&look, View::Workloads, Sort::Denied);
        assert!(
            workloads[0].starts_with("NAMESPACE  WORKLOAD ") && workloads[1].contains("Deployment/w"),
            "{workloads:#?}"
        );
    }

    #[test]
    fn destinations_and_reasons_have_their_own_tables() {
        let look = two();
        let destinations = lines(&look, View::Destinations, Sort::Name).join("\n");
        assert_eq!(
            destinations,
            "POLICY    DESTINATION  PACKETS/s  PACKETS\nshop/web  db                   -       70\nshop/web  idle                 -        0"
        );
        let reasons = lines(&look, View::Reasons, Sort::Denied);
        assert!(
            reasons[1].starts_with("deny     default_deny") && reasons[1].contains("13.5"),
            "{reasons:#?}"
        );
    }

    #[test]
    fn rates_have_one_decimal_or_none() {
        assert_eq!(
            [written(0), written(500), written(12_340), written(250_900)],
            ["-", "0.5", "12.3", "250"]
        );
    }

    #[test]
    fn a_frame_fits_the_screen_whatever_its_size() {
        let pods: Vec<PodUse> =
            (0..100).map(|number| pod("shop", &format!("pod\x1b[2J-{number:03}"), number, 0)).collect();
        let mut look = Look::of(&sample(Instant::now(), &pods), None);
        for size in [(80, 24), (20, 5), (1, 1), (0, 0), (300, 200), (40, 3)] {
            let mut from = 1000;
            let frame = frame(&look, (View::Pods, Sort::Name), &mut from, None, size);
            assert!(frame.len() <= size.1.max(1), "{size:?}: {frame:#?}");
            assert!(frame.iter().all(|line| line.chars().count() <= size.0), "{size:?}: {frame:#?}");
            assert!(!frame.iter().any(|line| line.contains(is_hidden)), "{frame:?}");
            assert!(from <= 100, "{from}");
        }
        let mut from = 3;
        let whole = frame(&look, (View::Pods, Sort::Name), &mut from, None, (200, 24));
        assert!(whole[0].starts_with("node-a: 100 pods, packets denied 5050"), "{whole:#?}");
        assert!(whole[2].contains("-003"), "{whole:#?}");
        assert!(whole[23].starts_with("4-24 of 100, name first"), "{whole:#?}");
        let troubled = frame(&look, (View::Pods, Sort::Name), &mut from, Some("gone\n"), (200, 24));
        assert!(troubled[0].starts_with("no news: gone"), "{troubled:#?}");
        let mut head = |look: &Look| {
            frame(look, (View::Pods, Sort::Name), &mut from, None, (200, 24))[0]
                .split(": ")
                .next()
                .map(str::to_owned)
        };
        look.silent.insert("node-\u{1b}b".to_owned());
        assert_eq!(head(&look).as_deref(), Some("1 node, node-\\u{1b}b not heard"));
        look.add("node-c", &Look::default());
        look.silent.insert("node-d".to_owned());
        assert_eq!(head(&look).as_deref(), Some("2 nodes, node-\\u{1b}b and 1 more not heard"));
    }
}
