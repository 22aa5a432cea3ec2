//! Domain destinations for what knows names: a service mesh or an egress proxy.
//!
//! Neither knows which pods a policy selects, nor denials or prefixes. What is generated allows the domains of all policies together, and
//! everything that is not said is a [`Note`].

pub mod envoy;
pub mod istio;

use std::{borrow::Cow, collections::BTreeMap, fmt};

use crate::policy::{
    governance::is_active,
    model::{Effect, Mode, Peer, Policy, PolicyId, PolicyKind, PortMatch, Ports, Protocol, Rule, Unresolved},
};

/// Something the generated objects do not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The policy it is about.
    pub policy: PolicyId,
    /// The destination it is about, if it is about one.
    pub destination: Option<String>,
    /// What is not said.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.destination {
            Some(destination) => write!(f, "{}: {destination}: {}", self.policy, self.text),
            None => write!(f, "{}: {}", self.policy, self.text),
        }
    }
}

/// An allowed destination known by domain, with ports a proxy can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The policy.
    pub policy: PolicyId,
    /// Its name in the policy.
    pub name: String,
    /// Lower case; `*.` in front stands for one or more labels.
    pub domains: Vec<String>,
    /// TCP ports, ascending.
    pub ports: Vec<u16>,
}

/// Most ports of a range that are listed one by one.
const MOST_PORTS: usize = 64;
/// Ports of destinations that name none: HTTPS and HTTP.
const USUAL: [u16; 2] = [80, 443];

/// Ports on which HTTP is expected; on all others TLS is.
const PLAIN: [u16; 3] = [80, 8000, 8080];

/// Tells whether HTTP without TLS is expected on a port.
#[must_use]
pub fn is_plain(port: u16) -> bool {
    PLAIN.contains(&port)
}

/// Returns the domain destinations of `policies` that are allowed at `now`, and what of them cannot be said.
#[must_use]
pub fn destinations<'p>(
    policies: impl Iterator<Item = &'p Policy>,
    now: u64,
) -> (Vec<Destination>, Vec<Note>) {
    let (mut destinations, mut notes) = (Vec::new(), Vec::new());
    for policy in policies.filter(|policy| policy.id.kind == PolicyKind::ConfigMap) {
        let allowed = |rule: &&Rule| rule.effect == Effect::Allow && is_active(rule.expires, now);
        for rule in policy.rules.iter().filter(allowed) {
            let mut note = |text: String| {
                notes.push(Note { policy: policy.id.clone(), destination: Some(rule.name.clone()), text });
            };
            let mut domains: Vec<String> = Vec::new();
            let mut ports = Cow::Borrowed(&rule.ports);
            for peer in &rule.peers {
                match peer {
                    Peer::Unresolved(Unresolved::Domains(names)) => domains.extend(names.iter().cloned()),
                    Peer::Cloud(cloud) if !cloud.domains.is_empty() => {
                        let Some(both) = cloud.ports(&rule.ports) else { continue };
                        domains.extend(cloud.domains.iter().cloned());
                        ports = both;
                    }
                    _ => {}
                }
            }
            if domains.is_empty() {
                continue;
            }
            if policy.mode == Mode::Audit {
                note(
                    "its policy is audited, and a proxy has no audit: nothing is generated for it".to_owned(),
                );
                continue;
            }
            let ports = numbers(&ports, &mut note);
            if !ports.is_empty() {
                let (policy, name) = (policy.id.clone(), rule.name.clone());
                destinations.push(Destination { policy, name, domains, ports });
            }
        }
    }
    (destinations, notes)
}

fn numbers(ports: &Ports, note: &mut impl FnMut(String)) -> Vec<u16> {
    let Ports::List(list) = ports else {
        note("it names no ports: 80 and 443 are generated".to_owned());
        return USUAL.into();
    };
    let mut numbers = Vec::new();
    for item in list {
        match (item.protocol, &item.port) {
            (Protocol::Tcp, PortMatch::Range(first, last)) => {
                let range = *first..=*last;
                if range.len() > MOST_PORTS {
                    note(format!("ports {first} to {last} are more than {MOST_PORTS}: they are left out"));
                } else {
                    numbers.extend(range);
                }
            }
            (Protocol::Tcp, PortMatch::Any) => {
                note("it names every TCP port: 80 and 443 are generated".to_owned());
                numbers.extend(USUAL);
            }
            (protocol, _) => {
                note(format!("{} has no names a proxy could read: it is left out", protocol.as_str()));
            }
        }
    }
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// Returns domains by port, each once and in order.
#[must_use]
pub fn by_port(destinations: &[Destination]) -> BTreeMap<u16, Vec<String>> {
    let mut ports: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for destination in destinations {
        for port in &destination.ports {
            ports.entry(*port).or_default().extend(destination.domains.iter().cloned());
        }
    }
    for domains in ports.values_mut() {
        domains.sort_unstable();
        domains.dedup();
    }
    ports
}

#[cfg(test)]
mod tests;
