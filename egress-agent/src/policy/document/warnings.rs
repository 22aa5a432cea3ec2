//! What a document without errors says that its author may not have meant.

use std::collections::HashMap;

use ipnet::IpNet;

use super::{
    cidrs::{Place, Set},
    context::{Context, Fields, Slot},
    destination::Entry,
};
use crate::policy::{
    addresses::{Addresses, Count, METADATA},
    governance::port_is_in,
    model::{DefaultAction, Effect, Peer, PortMatch, PortSpec, Ports, Protocol, Rule},
};

/// Destinations with one prefix that are remembered, at most.
const LOOKED_AT: usize = 8;

/// Destinations compared with one other, at most. What is beyond only withholds a warning.
const MOST_LOOKED_AT: usize = 32;

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
    let denied = Covers::new(entries, Effect::Deny);
    let allowed = Covers::new(entries, Effect::Allow);
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
        } else if let Some(rule) = allowed.covering(entry) {
            let (name, wider) = (&entry.rule.name, &rule.name);
            cx.warning_at(
                entry.at,
                entry.path.clone(),
                format!("{name} adds nothing: {wider} allows all of it"),
            )
            .hint = Some(format!("remove it, or narrow {wider}"));
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

/// Most public addresses that a destination may open without a warning: those of a /16 and of a /32 of IPv6.
const WIDE: Count = Count { v4: 1 << 16, v6: 1 << 96 };

fn wide(cx: &mut Context<'_>, entry: &Entry) {
    let mut whole = (false, false);
    for place in entry.places.iter().filter(|place| place.net.prefix_len() == 0) {
        let family = match place.net {
            IpNet::V4(_) => {
                whole.0 = true;
                "IPv4"
            }
            IpNet::V6(_) => {
                whole.1 = true;
                "IPv6"
            }
        };
        cx.warning_at(place.at, place.path.clone(), format!("{} allows every {family} address", place.net))
            .hint = Some("entity world names those outside the cluster".into());
    }
    let size = |net: &IpNet| match net {
        IpNet::V4(net) => Count { v4: 1 << (32 - net.prefix_len()), v6: 0 },
        IpNet::V6(net) => {
            Count { v4: 0, v6: 1_u128.checked_shl(128 - u32::from(net.prefix_len())).unwrap_or(u128::MAX) }
        }
    };
    let sum = entry
        .places
        .iter()
        .map(|place| size(&place.net))
        .fold(Count::default(), |sum, one| Count { v4: sum.v4 + one.v4, v6: sum.v6.saturating_add(one.v6) });
    if (whole.0 || sum.v4 <= WIDE.v4) && (whole.1 || sum.v6 <= WIDE.v6) {
        return;
    }
    let count = Addresses::of_peer(&entry.rule.peers[0]).public().count();
    let wide = Count {
        v4: if !whole.0 && count.v4 > WIDE.v4 { count.v4 } else { 0 },
        v6: if !whole.1 && count.v6 > WIDE.v6 { count.v6 } else { 0 },
    };
    if !wide.is_zero() {
        // Of prefixes that are wide only together, none is the one.
        let widest = entry.places.iter().find(|place| {
            let long = match place.net {
                IpNet::V4(net) => wide.v4 == 0 || net.prefix_len() >= 16,
                IpNet::V6(net) => wide.v6 == 0 || net.prefix_len() >= 32,
            };
            !long && !Addresses::of_nets([&place.net]).public().is_empty()
        });
        let (at, path) = widest.map_or((entry.at, &entry.path), |place| (place.at, &place.path));
        cx.warning_at(at, path.clone(), format!("Wide: {} opens {wide} of the internet", entry.rule.name))
            .hint = Some("name the prefixes that are needed".into());
    }
}

fn metadata(cx: &mut Context<'_>, entry: &Entry, denied: &Covers<'_>) {
    let Peer::Cidrs { except, .. } = &entry.rule.peers[0] else { return };
    let http = Ports::List(vec![PortSpec { protocol: Protocol::Tcp, port: PortMatch::Range(80, 80) }]);
    if !includes(&entry.rule.ports, &http) {
        return;
    }
    let mut allowed: Vec<(&Place, Vec<String>)> = Vec::new();
    for address in METADATA {
        let net = IpNet::from(address);
        let spared = except.iter().any(|except| except.contains(&net));
        if spared || denied.denies(&net, &http, entry.rule.expires) {
            continue;
        }
        if let Some(place) = entry.places.iter().find(|place| place.net.contains(&net)) {
            match allowed.iter_mut().find(|(known, _)| known.at == place.at) {
                Some((_, addresses)) => addresses.push(address.to_string()),
                None => allowed.push((place, vec![address.to_string()])),
            }
        }
    }
    for (place, addresses) in allowed {
        let (noun, verb, them) = match addresses.len() {
            1 => ("address", "it hands", "it"),
            _ => ("addresses", "they hand", "them"),
        };
        let message = format!("{} allows the metadata {noun} {}", place.net, addresses.join(", "));
        cx.warning_at(place.at, place.path.clone(), message).hint =
            Some(format!("{verb} out the node's credentials; except or deny {them} if that is not meant"));
    }
}

/// The destinations of one effect, to be found from those inside them.
struct Covers<'e> {
    /// With what it names and what it excepts, where those are prefixes.
    rules: Vec<(&'e Rule, Set, Set)>,
    /// Positions in `rules`.
    by_net: HashMap<IpNet, Vec<usize>>,
    /// Positions in `rules` of what is no prefixes.
    by_peer: HashMap<&'e Peer, Vec<usize>>,
}

impl<'e> Covers<'e> {
    fn new(entries: &'e [Entry], effect: Effect) -> Self {
        let mut rules = Vec::new();
        let mut by_net: HashMap<IpNet, Vec<usize>> = HashMap::new();
        let mut by_peer: HashMap<&Peer, Vec<usize>> = HashMap::new();
        for Entry { rule, .. } in entries.iter().filter(|entry| entry.rule.effect == effect) {
            let note = |here: &mut Vec<usize>| {
                if here.len() < LOOKED_AT {
                    here.push(rules.len());
                }
            };
            let (all, carved) = match &rule.peers[0] {
                Peer::Cidrs { cidrs, except } => {
                    cidrs.iter().for_each(|cidr| note(by_net.entry(*cidr).or_default()));
                    (Set::new(cidrs.iter().copied()), Set::new(except.iter().copied()))
                }
                peer => {
                    note(by_peer.entry(peer).or_default());
                    (Set::default(), Set::default())
                }
            };
            rules.push((rule, all, carved));
        }
        Self { rules, by_net, by_peer }
    }

    /// Returns the first rule found that names all of `nets` at all of `ports`, at least until `expires`. Of rules that are as wide as `own`
    /// only those before it count.
    fn covering_of(
        &self,
        nets: &[IpNet],
        ports: &Ports,
        expires: Option<u64>,
        own: Option<&Rule>,
    ) -> Option<&'e Rule> {
        let first = nets.first()?;
        let mut outer = Some(*first);
        let mut looked = 0;
        while let Some(net) = outer {
            for (rule, all, carved) in
                self.by_net.get(&net).into_iter().flatten().map(|&index| &self.rules[index])
            {
                looked += 1;
                let covers = may_cover(rule, ports, expires, own)
                    && nets.iter().all(|net| all.contains(net) && !carved.overlaps(net));
                if covers {
                    return Some(rule);
                }
                if looked == MOST_LOOKED_AT {
                    return None;
                }
            }
            outer = net.supernet();
        }
        None
    }

    fn covering(&self, entry: &Entry) -> Option<&'e Rule> {
        let own = &entry.rule;
        match &own.peers[0] {
            Peer::Cidrs { cidrs, .. } => self.covering_of(cidrs, &own.ports, own.expires, Some(own)),
            peer => {
                let same = self.by_peer.get(peer).into_iter().flatten().map(|&index| self.rules[index].0);
                same.into_iter().find(|rule| may_cover(rule, &own.ports, own.expires, Some(own)))
            }
        }
    }

    fn denies(&self, net: &IpNet, ports: &Ports, expires: Option<u64>) -> bool {
        self.covering_of(&[*net], ports, expires, None).is_some()
    }
}

/// Tells whether `rule` may make another one superfluous as far as ports and time go: it is not that one, and if they say the same
/// it is the one that stands first.
fn may_cover(rule: &Rule, ports: &Ports, expires: Option<u64>, own: Option<&Rule>) -> bool {
    let until = |expires: Option<u64>| expires.unwrap_or(u64::MAX);
    if until(rule.expires) < until(expires) || !includes(&rule.ports, ports) {
        return false;
    }
    own.is_none_or(|own| {
        let same = rule.effect == own.effect
            && rule.expires == own.expires
            && rule.peers == own.peers
            && includes(&own.ports, &rule.ports);
        // Rules of a document lie in one list, in the order of the text.
        !std::ptr::eq(rule, own) && (!same || std::ptr::from_ref(rule) < std::ptr::from_ref(own))
    })
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
        && inner.iter().all(|inner| outer.iter().any(|outer| port_is_in(inner, outer)))
}
