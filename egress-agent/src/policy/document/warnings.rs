//! What a document without errors says that its author may not have meant.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{
    cidrs::Set,
    context::{Context, Fields, Slot},
    destination::Entry,
};
use crate::policy::model::{DefaultAction, Effect, Peer, PortMatch, PortSpec, Ports, Protocol, Rule};

/// Where nodes of the clouds hand out credentials, on port 80.
const METADATA: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Denied destinations looked at for one allowed prefix, at most.
const LOOKED_AT: usize = 8;

/// Adds the warnings that take more than one field to see.
pub(super) fn add(
    cx: &mut Context<'_>,
    root: &Slot<'_>,
    fields: &Fields<'_>,
    default_action: DefaultAction,
    cluster_dns: bool,
    entries: &[Entry],
) {
    whole(cx, root, fields, default_action, cluster_dns, entries);
    let denied = Denied::new(entries);
    for entry in entries.iter().filter(|entry| entry.rule.effect == Effect::Allow) {
        wide(cx, entry);
        metadata(cx, entry, &denied);
        if let Some(rule) = denied.covering(entry) {
            let (name, denying) = (&entry.rule.name, &rule.name);
            cx.warning_at(
                entry.at,
                entry.path.clone(),
                format!("{name} can never match: {denying} denies all of it"),
            );
        }
    }
}

fn whole(
    cx: &mut Context<'_>,
    root: &Slot<'_>,
    fields: &Fields<'_>,
    default_action: DefaultAction,
    cluster_dns: bool,
    entries: &[Entry],
) {
    let any = |effect| entries.iter().any(|entry| entry.rule.effect == effect);
    let slot = |name| fields.get(name).unwrap_or_else(|| root.clone());
    match default_action {
        DefaultAction::Deny if !any(Effect::Allow) => {
            let but = if cluster_dns { "everything but cluster DNS" } else { "everything" };
            cx.warning(
                &slot("allowedDestinations"),
                format!("Without allowedDestinations this denies {but}"),
            );
        }
        DefaultAction::Allow if !any(Effect::Deny) => {
            cx.warning(
                &slot("defaultAction"),
                "defaultAction allow without deniedDestinations denies nothing",
            )
            .hint = Some("add deniedDestinations, or leave defaultAction out to deny".into());
        }
        _ => {}
    }
}

fn wide(cx: &mut Context<'_>, entry: &Entry) {
    for place in entry.places.iter().filter(|place| place.net.prefix_len() == 0) {
        let family = match place.net {
            IpNet::V4(_) => "IPv4",
            IpNet::V6(_) => "IPv6",
        };
        cx.warning_at(place.at, place.path.clone(), format!("{} allows every {family} address", place.net))
            .hint = Some("entity world names those outside the cluster".into());
    }
}

fn metadata(cx: &mut Context<'_>, entry: &Entry, denied: &Denied<'_>) {
    let Peer::Cidrs { except, .. } = &entry.rule.peers[0] else { return };
    let http = Ports::List(vec![PortSpec { protocol: Protocol::Tcp, port: PortMatch::Range(80, 80) }]);
    if !includes(&entry.rule.ports, &http) {
        return;
    }
    for address in METADATA {
        let net = IpNet::from(address);
        let spared = except.iter().any(|except| except.contains(&net));
        if spared || denied.denies(&net, &http, entry.rule.expires) {
            continue;
        }
        if let Some(place) = entry.places.iter().find(|place| place.net.contains(&net)) {
            let message = format!("{} allows the metadata address {address}", place.net);
            cx.warning_at(place.at, place.path.clone(), message).hint =
                Some("it hands out the node's credentials; except or deny it if that is not meant".into());
        }
    }
}

/// The denied prefixes, to be found from those inside them.
struct Denied<'e> {
    /// With what it names and what it excepts.
    rules: Vec<(&'e Rule, Set, Set)>,
    /// Positions in `rules`.
    by_net: HashMap<IpNet, Vec<usize>>,
}

impl<'e> Denied<'e> {
    fn new(entries: &'e [Entry]) -> Self {
        let mut rules = Vec::new();
        let mut by_net: HashMap<IpNet, Vec<usize>> = HashMap::new();
        for Entry { rule, .. } in entries.iter().filter(|entry| entry.rule.effect == Effect::Deny) {
            let Peer::Cidrs { cidrs, except } = &rule.peers[0] else { continue };
            for cidr in cidrs {
                let here = by_net.entry(*cidr).or_default();
                if here.len() < LOOKED_AT {
                    here.push(rules.len());
                }
            }
            rules.push((rule, Set::new(cidrs.iter().copied()), Set::new(except.iter().copied())));
        }
        Self { rules, by_net }
    }

    /// Returns the first rule found that denies all of `nets` at all of `ports`, at least until `expires`.
    fn covering_of(&self, nets: &[IpNet], ports: &Ports, expires: Option<u64>) -> Option<&'e Rule> {
        let first = nets.first()?;
        let mut outer = Some(*first);
        while let Some(net) = outer {
            let here = self.by_net.get(&net).into_iter().flatten().map(|&index| &self.rules[index]);
            let found = here.into_iter().find(|(rule, all, carved)| {
                rule.expires.unwrap_or(u64::MAX) >= expires.unwrap_or(u64::MAX)
                    && includes(&rule.ports, ports)
                    && nets.iter().all(|net| all.contains(net) && !carved.overlaps(net))
            });
            if let Some((rule, ..)) = found {
                return Some(rule);
            }
            outer = net.supernet();
        }
        None
    }

    fn covering(&self, entry: &Entry) -> Option<&'e Rule> {
        match &entry.rule.peers[0] {
            Peer::Cidrs { cidrs, .. } => self.covering_of(cidrs, &entry.rule.ports, entry.rule.expires),
            _ => None,
        }
    }

    fn denies(&self, net: &IpNet, ports: &Ports, expires: Option<u64>) -> bool {
        self.covering_of(&[*net], ports, expires).is_some()
    }
}

/// Tells whether some item of `outer` holds each item of `inner` whole.
fn includes(outer: &Ports, inner: &Ports) -> bool {
    let (outer, inner) = match (outer, inner) {
        (Ports::All, _) => return true,
        (_, Ports::All) => return false,
        (Ports::List(outer), Ports::List(inner)) => (outer, inner),
    };
    // Bounded like the rest: a longer list is not looked at, which only withholds a warning.
    outer.len() * inner.len() <= 1024
        && inner.iter().all(|inner| {
            outer.iter().any(|outer| {
                outer.protocol == inner.protocol
                    && match (&outer.port, &inner.port) {
                        (PortMatch::Any, _) => true,
                        (PortMatch::Range(first, last), PortMatch::Range(from, to)) => {
                            first <= from && to <= last
                        }
                        (outer, inner) => outer == inner,
                    }
            })
        })
}
