//! Protocols and ports as ranges of [`port_key`]s, and back to what a NetworkPolicy can say.

use egress_common::policy::{HIGHEST_PORT_KEY, LOWEST_PORT_KEY, port_key};

use crate::policy::{
    cluster::{Pod, Service, ServicePort},
    model::{PortMatch, PortSpec, Ports, Protocol},
};

/// First and last key, both included.
pub type Range = (u32, u32);

/// Ranges in order, with a gap between any two.
pub type Ranges = Vec<Range>;

/// Every protocol and port.
pub(super) const EVERYTHING: Range = (LOWEST_PORT_KEY, HIGHEST_PORT_KEY);

/// What a NetworkPolicy has a word for.
pub(super) const SPOKEN: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Returns the keys of all ports of `protocol`.
pub(super) fn whole(protocol: Protocol) -> Range {
    (port_key(protocol.number(), 0), port_key(protocol.number(), u16::MAX))
}

/// Returns the keys of ports from the first to the last.
fn range(protocol: Protocol, first: u16, last: u16) -> Range {
    (port_key(protocol.number(), first), port_key(protocol.number(), last))
}

/// Returns the keys of one port, or of all of the protocol's if it has no number.
pub(super) fn target(protocol: Protocol, port: Option<u16>) -> Range {
    port.map_or_else(|| whole(protocol), |port| range(protocol, port, port))
}

/// Returns ranges in order, those that touch or overlap joined.
pub(super) fn normal(mut ranges: Ranges) -> Ranges {
    ranges.sort_unstable();
    let mut joined = Ranges::with_capacity(ranges.len());
    for (low, high) in ranges {
        match joined.last_mut() {
            Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
            _ => joined.push((low, high)),
        }
    }
    joined
}

/// Returns what is in `one` and not in `other`.
pub(super) fn minus(one: &[Range], other: &[Range]) -> Ranges {
    let mut left = Ranges::new();
    for &(low, high) in one {
        let mut next = Some(low);
        for &(from, to) in other.iter().filter(|(from, to)| *from <= high && low <= *to) {
            let Some(start) = next else { break };
            if from > start {
                left.push((start, from - 1));
            }
            next = (to < high).then(|| start.max(to + 1));
        }
        left.extend(next.map(|start| (start, high)));
    }
    left
}

/// Tells whether the two have something in common.
pub(super) fn touch(one: &[Range], other: &[Range]) -> bool {
    one.iter().any(|(low, high)| other.iter().any(|(from, to)| from <= high && low <= to))
}

/// Returns the numbers in a list; names are not among them.
pub(super) fn numeric(ports: &Ports) -> Ranges {
    let Ports::List(list) = ports else { return vec![EVERYTHING] };
    let numbers = list.iter().filter_map(|spec| match spec.port {
        PortMatch::Any => Some(whole(spec.protocol)),
        PortMatch::Range(first, last) if first <= last => Some(range(spec.protocol, first, last)),
        PortMatch::Range(..) | PortMatch::Name(_) => None,
    });
    normal(numbers.collect())
}

/// Returns the names in a list.
pub(super) fn names(ports: &Ports) -> Vec<(Protocol, String)> {
    let Ports::List(list) = ports else { return Vec::new() };
    let mut names: Vec<(Protocol, String)> = Vec::new();
    for spec in list {
        if let PortMatch::Name(name) = &spec.port {
            let name = (spec.protocol, name.clone());
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

/// Returns what names stand for at a pod.
pub(super) fn named_at(names: &[(Protocol, String)], pod: &Pod) -> Ranges {
    let named = pod
        .ports
        .iter()
        .filter(|port| names.iter().any(|(protocol, name)| port.protocol == *protocol && port.name == *name));
    named.map(|port| range(port.protocol, port.port, port.port)).collect()
}

/// Returns the ports of a Service that a list chooses, by number, name or protocol.
pub(super) fn chosen<'s>(
    list: &'s [PortSpec],
    service: &'s Service,
) -> impl Iterator<Item = &'s ServicePort> {
    service.ports.iter().filter(move |port| {
        list.iter().any(|spec| {
            spec.protocol == port.protocol
                && spec.protocol != Protocol::Icmp
                && match &spec.port {
                    PortMatch::Any => true,
                    PortMatch::Range(first, last) => (*first..=*last).contains(&port.port),
                    PortMatch::Name(name) => *name == port.name,
                }
        })
    })
}

/// Returns the items that say the same as `ranges`, without any for all; `None` where no items can.
///
/// There is no word for protocols other than TCP, UDP and SCTP, and port 0 is only reached by naming no port.
pub(super) fn items(ranges: &[Range]) -> Option<Vec<PortSpec>> {
    if ranges == [EVERYTHING] {
        return Some(Vec::new());
    }
    let mut items = Vec::new();
    let mut rest = ranges.to_vec();
    for protocol in SPOKEN {
        let all = whole(protocol);
        for (low, high) in minus(&[all], &minus(&[all], ranges)) {
            let port = |key: u32| u16::try_from(key & 0xffff).expect("it has 16 bits");
            let (first, last) = (port(low), port(high));
            let port = match (first, last) {
                (0, u16::MAX) => PortMatch::Any,
                (0, _) => return None,
                _ => PortMatch::Range(first, last),
            };
            items.push(PortSpec { protocol, port });
        }
        rest = minus(&rest, &[all]);
    }
    (rest.is_empty() && !items.is_empty()).then_some(items)
}

/// Returns `ranges` with up to `most` of the smallest gaps inside one protocol closed.
pub(super) fn folded(ranges: &[Range], most: usize) -> Ranges {
    let mut ranges = ranges.to_vec();
    for _ in 0..most {
        let gap = |at: usize| ranges[at + 1].0 - ranges[at].1;
        let same = |at: &usize| ranges[*at].1 >> 16 == ranges[*at + 1].0 >> 16;
        let Some(at) = (0..ranges.len().saturating_sub(1)).filter(same).min_by_key(|at| gap(*at)) else {
            break;
        };
        ranges[at].1 = ranges[at + 1].1;
        ranges.remove(at + 1);
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: u32 = 6 << 16;

    #[test]
    fn what_is_left_of_ranges() {
        assert_eq!(minus(&[(1, 10)], &[(3, 4), (6, 6)]), [(1, 2), (5, 5), (7, 10)]);
        assert_eq!(minus(&[(1, 10)], &[(0, 4), (9, 20)]), [(5, 8)]);
        assert_eq!(minus(&[(1, 10), (20, 30)], &[(0, 50)]), []);
        assert_eq!(minus(&[(1, 10), (20, 30)], &[(5, 25)]), [(1, 4), (26, 30)]);
        assert_eq!(minus(&[EVERYTHING], &[EVERYTHING]), []);
    }

    #[test]
    fn only_what_has_a_word_is_said() {
        let any = |protocol| PortSpec { protocol, port: PortMatch::Any };
        let tcp = |first, last| PortSpec { protocol: Protocol::Tcp, port: PortMatch::Range(first, last) };
        assert_eq!(items(&[EVERYTHING]), Some(vec![]));
        assert_eq!(items(&[whole(Protocol::Udp)]), Some(vec![any(Protocol::Udp)]));
        assert_eq!(
            items(&[(TCP | 80, TCP | 80), (TCP | 90, TCP | 99)]),
            Some(vec![tcp(80, 80), tcp(90, 99)])
        );
        assert_eq!(items(&[(TCP, TCP | 24)]), None, "port 0 has no word");
        assert_eq!(items(&[whole(Protocol::Icmp)]), None);
        assert_eq!(items(&[(TCP | 80, TCP | 80), (0x2f_0000, 0x2f_ffff)]), None, "nor has GRE");
        assert_eq!(items(&minus(&[EVERYTHING], &[(TCP | 25, TCP | 25)])), None, "nor all but one port");
    }

    #[test]
    fn folding_closes_the_smallest_gaps_first() {
        let udp = 17 << 16;
        let ranges = [(TCP | 1, TCP | 1), (TCP | 3, TCP | 3), (TCP | 90, TCP | 90), (udp, udp | 9)];
        assert_eq!(folded(&ranges, 1), [(TCP | 1, TCP | 3), (TCP | 90, TCP | 90), (udp, udp | 9)]);
        assert_eq!(folded(&ranges, 9), [(TCP | 1, TCP | 90), (udp, udp | 9)], "protocols stay apart");
    }
}
