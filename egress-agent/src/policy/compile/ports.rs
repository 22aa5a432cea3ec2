//! Protocols and ports as ranges of [`port_key`]s.

use egress_common::policy::{HIGHEST_PORT_KEY, LOWEST_PORT_KEY, port_key};

use crate::policy::{
    cluster::{EndpointPort, EndpointSlice, Pod, Service, ServicePort},
    model::{PortMatch, PortSpec, Ports, Protocol},
};

/// First and last key, both included.
pub(super) type Range = (u32, u32);

/// Every protocol and port.
pub(super) const EVERYTHING: Range = (LOWEST_PORT_KEY, HIGHEST_PORT_KEY);

/// Returns the keys of all ports of `protocol`.
fn whole(protocol: Protocol) -> Range {
    (port_key(protocol.number(), 0), port_key(protocol.number(), u16::MAX))
}

/// Returns the key of one port.
pub(super) fn single(protocol: Protocol, port: u16) -> Range {
    let key = port_key(protocol.number(), port);
    (key, key)
}

/// Returns the keys of one port on an endpoint, or of all ports if it has no number.
pub(super) fn target(protocol: Protocol, port: Option<u16>) -> Range {
    port.map_or_else(|| whole(protocol), |port| single(protocol, port))
}

/// Sorts ranges and joins those that touch or overlap.
pub(super) fn normalize(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut joined: Vec<Range> = Vec::with_capacity(ranges.len());
    for (low, high) in ranges {
        match joined.last_mut() {
            Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
            _ => joined.push((low, high)),
        }
    }
    joined
}

/// Returns whether normalized `ranges` hold all of `wanted`.
pub(super) fn covers(ranges: &[Range], wanted: Range) -> bool {
    let after = ranges.partition_point(|range| range.0 <= wanted.0);
    after > 0 && ranges[after - 1].1 >= wanted.1
}

/// Returns whether normalized `ranges` hold any of `wanted`.
pub(super) fn touches(ranges: &[Range], wanted: Range) -> bool {
    let after = ranges.partition_point(|range| range.0 <= wanted.1);
    after > 0 && ranges[after - 1].1 >= wanted.0
}

/// Returns what `ports` says without asking anybody for names, which match nothing.
pub(super) fn numeric(ports: &Ports) -> Vec<Range> {
    match ports {
        Ports::All => vec![EVERYTHING],
        Ports::List(specs) => normalize(specs.iter().filter_map(number_of).collect()),
    }
}

fn number_of(spec: &PortSpec) -> Option<Range> {
    match &spec.port {
        PortMatch::Any => Some(whole(spec.protocol)),
        PortMatch::Range(first, last) if first <= last => {
            Some((port_key(spec.protocol.number(), *first), port_key(spec.protocol.number(), *last)))
        }
        PortMatch::Range(..) | PortMatch::Name(_) => None,
    }
}

/// Appends the ranges that the names in `ports` stand for at `pod`.
pub(super) fn named_at_pod(ports: &Ports, pod: &Pod, ranges: &mut Vec<Range>) {
    let Ports::List(specs) = ports else { return };
    for spec in specs {
        let PortMatch::Name(name) = &spec.port else { continue };
        let named = pod.ports.iter().filter(|port| port.protocol == spec.protocol && port.name == *name);
        ranges.extend(named.map(|port| single(port.protocol, port.port)));
    }
}

/// Returns whether `spec` names `port` of a Service.
fn selects(spec: &PortSpec, port: &ServicePort) -> bool {
    spec.protocol == port.protocol
        && spec.protocol != Protocol::Icmp
        && match &spec.port {
            PortMatch::Any => true,
            PortMatch::Range(first, last) => (*first..=*last).contains(&port.port),
            PortMatch::Name(name) => *name == port.name,
        }
}

fn selected<'a>(specs: &'a [PortSpec], service: &'a Service) -> impl Iterator<Item = &'a ServicePort> {
    service.ports.iter().filter(move |port| specs.iter().any(|spec| selects(spec, port)))
}

fn icmp(specs: &[PortSpec]) -> Option<Range> {
    specs.iter().any(|spec| spec.protocol == Protocol::Icmp).then(|| whole(Protocol::Icmp))
}

/// Returns what `ports` opens at the ClusterIPs of `service`.
pub(super) fn at_cluster_ip(ports: &Ports, service: &Service) -> Vec<Range> {
    match ports {
        Ports::All => vec![EVERYTHING],
        Ports::List(specs) => {
            selected(specs, service).map(|port| single(port.protocol, port.port)).chain(icmp(specs)).collect()
        }
    }
}

/// Returns what `ports`, written in numbers of `service`, opens at the addresses of one of its slices.
pub(super) fn at_endpoint(ports: &Ports, service: &Service, slice: &EndpointSlice) -> Vec<Range> {
    match ports {
        Ports::All => vec![EVERYTHING],
        Ports::List(specs) => selected(specs, service)
            .flat_map(|port| behind(port, slice).map(|target_port| target(port.protocol, target_port.port)))
            .chain(icmp(specs))
            .collect(),
    }
}

/// Returns the ports of `slice` that stand behind `port`.
pub(super) fn behind<'a>(
    port: &'a ServicePort,
    slice: &'a EndpointSlice,
) -> impl Iterator<Item = &'a EndpointPort> {
    slice.ports.iter().filter(|target| target.name == port.name && target.protocol == port.protocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_ranges_become_one() {
        assert_eq!(normalize(vec![(5, 9), (0, 2), (3, 4), (20, 30), (22, 25)]), [(0, 9), (20, 30)]);
        assert_eq!(normalize(vec![EVERYTHING, (7, 7)]), [EVERYTHING]);
    }

    #[test]
    fn covers_asks_for_the_whole_range() {
        let ranges = [(10, 20), (30, 40)];
        assert!(covers(&ranges, (10, 20)) && covers(&ranges, (31, 39)));
        assert!(!covers(&ranges, (9, 10)) && !covers(&ranges, (20, 30)) && !covers(&[], (0, 0)));
    }

    #[test]
    fn touches_asks_for_any_of_the_range() {
        let ranges = [(10, 20), (30, 40)];
        assert!(touches(&ranges, (20, 25)) && touches(&ranges, (0, 100)) && touches(&ranges, (40, 40)));
        assert!(!touches(&ranges, (21, 29)) && !touches(&ranges, (41, 50)) && !touches(&[], (0, 0)));
    }

    #[test]
    fn names_and_reversed_ranges_have_no_number() {
        let spec = |port| PortSpec { protocol: Protocol::Tcp, port };
        let ports = Ports::List(vec![spec(PortMatch::Name("http".into())), spec(PortMatch::Range(9, 8))]);
        assert!(numeric(&ports).is_empty());
    }
}
