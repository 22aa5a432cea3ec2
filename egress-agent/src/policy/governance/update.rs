//! Whether an entry is one that was there before.

use std::collections::HashMap;

use super::{Field, is_active, value};
use crate::policy::{
    addresses::Addresses,
    model::{DefaultAction, Effect, Mode, Peer, Policy, PortMatch, PortSpec, Ports, Rule, Unresolved},
};

/// The entries of the policy before, and what is known of those that are looked at.
pub(crate) struct Kept<'p> {
    /// The policy before, if its entries were as open as they are now.
    policy: Option<&'p Policy>,
    old: HashMap<&'p str, &'p Rule>,
    /// Destinations that were denied, and are so no more, or less than before.
    lost: Vec<Lost<'p>>,
    now: u64,
    /// The rule looked at last, by its name, and whether it is no wider.
    last: Option<(String, bool)>,
}

/// A denied destination that is gone.
struct Lost<'p> {
    rule: &'p Rule,
    addresses: Addresses,
}

impl Lost<'_> {
    /// Tells whether a rule may reach more without it.
    fn matters(&self, rule: &Rule) -> bool {
        let by_address = |rule: &Rule| rule.peers.iter().all(|peer| matches!(peer, Peer::Cidrs { .. }));
        // Where the one or the other goes is not known here but by its addresses.
        !(by_address(self.rule) && by_address(rule))
            || rule
                .peers
                .iter()
                .any(|peer| !Addresses::of_peer(peer).minus(&self.addresses).eq(&Addresses::of_peer(peer)))
    }
}

impl<'p> Kept<'p> {
    pub(crate) fn new(policy: &Policy, old: Option<&'p Policy>, now: u64) -> Self {
        // A policy that comes to hold for other pods, or in earnest, opens all of its entries anew.
        let old = old.filter(|old| {
            (policy.selector == old.selector || old.selector.is_empty())
                && (policy.mode == old.mode || old.mode == Mode::Enforce)
        });
        let of = |effect| move |rule: &&Rule| rule.effect == effect;
        let rules = || old.map_or(&[][..], |old| &old.rules).iter();
        let denied: HashMap<&str, &Rule> =
            policy.rules.iter().filter(of(Effect::Deny)).map(|rule| (rule.name.as_str(), rule)).collect();
        // What had ended denied nothing any more.
        let lost = rules()
            .filter(of(Effect::Deny))
            .filter(|rule| is_active(rule.expires, now))
            .filter(|rule| !denied.get(rule.name.as_str()).is_some_and(|new| denies_as_much(new, rule)));
        let lost = lost.map(|rule| {
            let nothing = Addresses::default();
            let addresses =
                rule.peers.iter().map(Addresses::of_peer).fold(nothing, |all, peer| all.plus(&peer));
            Lost { rule, addresses }
        });
        Self {
            policy: old,
            old: rules().filter(of(Effect::Allow)).map(|rule| (rule.name.as_str(), rule)).collect(),
            lost: lost.collect(),
            now,
            last: None,
        }
    }

    /// Tells whether an entry of this name was there and reached as far, for as long, with no less denied beside it.
    pub(crate) fn is_no_wider(&mut self, rule: &Rule) -> bool {
        let Some(old) = self.old.get(rule.name.as_str()) else { return false };
        match &self.last {
            Some((name, known)) if *name == rule.name => *known,
            _ => {
                let lost = || self.lost.iter().any(|lost| lost.matters(rule));
                let known = is_no_wider(rule, old) && !(is_active(rule.expires, self.now) && lost());
                self.last = Some((rule.name.clone(), known));
                known
            }
        }
    }

    /// Tells whether what a policy says besides its entries opens no more than before. A pod that is selected no longer is open.
    pub(crate) fn is_no_laxer(&self, policy: &Policy) -> bool {
        self.policy.is_some_and(|old| {
            policy.selector == old.selector
                && policy.mode == old.mode
                && (policy.default_action == DefaultAction::Deny
                    || (policy.default_action == old.default_action && self.lost.is_empty()))
                && (old.cluster_dns || !policy.cluster_dns)
        })
    }

    /// Tells whether a policy as a whole opens no more than before: nothing is added to what is allowed, nothing taken from what is
    /// denied.
    pub(crate) fn opens_no_more(&mut self, policy: &Policy) -> bool {
        if !self.is_no_laxer(policy) {
            return false;
        }
        let allowed = |rule: &&Rule| rule.effect == Effect::Allow;
        self.lost.is_empty() && policy.rules.iter().filter(allowed).all(|rule| self.is_no_wider(rule))
    }

    /// Tells whether, besides, it said the same in these fields.
    pub(super) fn is_unchanged(&mut self, rule: &Rule, fields: &[Field]) -> bool {
        self.is_no_wider(rule)
            && fields.iter().all(|field| value(rule, *field) == value(self.old[rule.name.as_str()], *field))
    }
}

fn until(rule: &Rule) -> u64 {
    rule.expires.unwrap_or(u64::MAX)
}

fn denies_as_much(new: &Rule, old: &Rule) -> bool {
    until(new) >= until(old)
        && ports_are_in(&old.ports, &new.ports)
        && old.peers.iter().all(|peer| new.peers.iter().any(|new| is_in(peer, new)))
}

fn is_no_wider(new: &Rule, old: &Rule) -> bool {
    new.effect == old.effect
        && until(new) <= until(old)
        && ports_are_in(&new.ports, &old.ports)
        && new.peers.iter().all(|peer| old.peers.iter().any(|old| is_in(peer, old)))
}

fn is_in(new: &Peer, old: &Peer) -> bool {
    new == old
        || match (new, old) {
            (Peer::Cidrs { .. }, Peer::Cidrs { .. }) => {
                Addresses::of_peer(new).are_in(&Addresses::of_peer(old))
            }
            _ => match (name(new), name(old)) {
                (Some(new), Some(old)) => is_part(new, old),
                _ => false,
            },
        }
}

/// Returns what a peer is called that is known by name; whether its addresses are known makes no difference.
fn name(peer: &Peer) -> Option<&Unresolved> {
    match peer {
        Peer::Unresolved(what) => Some(what),
        Peer::Cloud(cloud) => Some(&cloud.what),
        _ => None,
    }
}

fn is_part(new: &Unresolved, old: &Unresolved) -> bool {
    // Empty means all.
    let some = |new: &[String], old: &[String]| {
        old.is_empty() || (!new.is_empty() && new.iter().all(|item| old.contains(item)))
    };
    match (new, old) {
        (
            Unresolved::AwsService { service, regions },
            Unresolved::AwsService { service: other, regions: before },
        ) => service.eq_ignore_ascii_case(other) && some(regions, before),
        (
            Unresolved::Cloud { provider, services, regions },
            Unresolved::Cloud { provider: other, services: other_services, regions: before },
        ) => provider == other && some(services, other_services) && some(regions, before),
        (Unresolved::Domains(new), Unresolved::Domains(old)) => new.iter().all(|domain| {
            old.iter().any(|pattern| {
                domain == pattern || pattern.strip_prefix('*').is_some_and(|end| domain.ends_with(end))
            })
        }),
        _ => false,
    }
}

fn ports_are_in(new: &Ports, old: &Ports) -> bool {
    are_in(&plain(new), &plain(old))
}

/// Returns ports in order, each once, and those beside each other in one range.
pub(crate) fn plain(ports: &Ports) -> Ports {
    let Ports::List(list) = ports else { return Ports::All };
    let mut sorted: Vec<&PortSpec> = list.iter().collect();
    sorted.sort_unstable();
    let mut plain: Vec<PortSpec> = Vec::with_capacity(sorted.len());
    for spec in sorted {
        match plain.last_mut() {
            // It stands first of its protocol, and names all of it.
            Some(before) if before.protocol == spec.protocol && before.port == PortMatch::Any => {}
            Some(PortSpec { protocol, port: PortMatch::Range(_, end) })
                if *protocol == spec.protocol
                    && matches!(spec.port, PortMatch::Range(first, _) if first <= end.saturating_add(1)) =>
            {
                if let PortMatch::Range(_, last) = spec.port {
                    *end = last.max(*end);
                }
            }
            Some(before) if before == spec => {}
            _ => plain.push(spec.clone()),
        }
    }
    Ports::List(plain)
}

/// Tells whether each of `inner` is among `outer`, both of them [`plain`].
pub(crate) fn are_in(inner: &Ports, outer: &Ports) -> bool {
    match (inner, outer) {
        (_, Ports::All) => true,
        (Ports::All, Ports::List(_)) => false,
        (Ports::List(inner), Ports::List(outer)) => inner.iter().all(|spec| is_among(spec, outer)),
    }
}

/// Tells whether a [`plain`] list names all of `spec`.
pub(crate) fn is_among(spec: &PortSpec, list: &[PortSpec]) -> bool {
    let any = PortSpec { protocol: spec.protocol, port: PortMatch::Any };
    if list.binary_search(&any).is_ok() {
        return true;
    }
    let after = list.partition_point(|outer| match (&outer.port, &spec.port) {
        (PortMatch::Range(start, _), PortMatch::Range(first, _)) if outer.protocol == spec.protocol => {
            start <= first
        }
        _ => outer <= spec,
    });
    after > 0 && port_is_in(spec, &list[after - 1])
}

/// Tells whether `outer` names every port that `inner` does.
pub(crate) fn port_is_in(inner: &PortSpec, outer: &PortSpec) -> bool {
    inner.protocol == outer.protocol
        && match (&inner.port, &outer.port) {
            (_, PortMatch::Any) => true,
            (PortMatch::Range(from, to), PortMatch::Range(first, last)) => first <= from && to <= last,
            (inner, outer) => inner == outer,
        }
}
