//! What a change of a policy opens and closes, in words, for whoever reviews it.
//!
//! Each policy is looked at by itself: what another policy allows or denies besides is not known here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
};

use super::{
    addresses::{Addresses, Count},
    document::shown,
    governance::{Field, are_in, is_active, is_among, plain, value, when},
    model::{
        DefaultAction, Effect, Entity, LabelSelector, Mode, Operator, Peer, Policy, PortMatch, PortSpec,
        Ports, Protocol, Rule, Unresolved,
    },
};

/// What differs between two versions of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// What pods reach that they did not reach before.
    pub opens: Vec<Statement>,
    /// What they do not reach any more.
    pub closes: Vec<Statement>,
    /// What else is different.
    pub changes: Vec<Statement>,
}

/// One sentence about a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The destination it is about, if it is about one.
    pub destination: Option<String>,
    /// What changes.
    pub text: String,
    /// How many addresses it is about, where they are known.
    pub addresses: Option<Count>,
    /// How many of them no other destination of the policy allows for as long and on these ports.
    pub alone: Option<Count>,
}

impl Statement {
    fn new(destination: Option<&str>, text: impl Into<String>) -> Self {
        Self { destination: destination.map(str::to_owned), text: text.into(), addresses: None, alone: None }
    }
}

impl Difference {
    /// Tells whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.opens.is_empty() && self.closes.is_empty() && self.changes.is_empty()
    }

    /// Compares two versions of a policy as they are at second `now`; `None` where there is no such policy.
    #[must_use]
    pub fn between(old: Option<&Policy>, new: Option<&Policy>, now: u64) -> Self {
        let mut difference = Self::default();
        match (old, new) {
            (None, None) => {}
            (None, Some(new)) => difference.whole(new, "the policy is new", true),
            (Some(old), None) => difference.whole(old, "the policy is gone", false),
            (Some(old), Some(new)) => difference.top(old, new),
        }
        let both = Both { old: Side::new(old, new, now), new: Side::new(new, old, now), now };
        both.rules(&mut difference);
        difference
    }

    /// Tells of a policy that comes or goes.
    fn whole(&mut self, policy: &Policy, what: &str, comes: bool) {
        let action = action(policy.default_action);
        let mode = mode(policy.mode);
        let selected = selection(&policy.selector);
        let text = format!("{what}: it selects {selected}, {mode}, default {action}");
        self.changes.push(Statement::new(None, text));
        if policy.cluster_dns {
            let list = if comes { &mut self.opens } else { &mut self.closes };
            list.push(Statement::new(None, CLUSTER_DNS));
        }
        if policy.default_action == DefaultAction::Deny && policy.mode == Mode::Enforce {
            let (list, text) = match comes {
                true => (
                    &mut self.closes,
                    "everything that no destination allows, for the pods it selects: the default is deny",
                ),
                false => (
                    &mut self.opens,
                    "everything that it denied by default, for the pods it selected, unless another policy denies it",
                ),
            };
            list.push(Statement::new(None, text));
        }
    }

    fn top(&mut self, old: &Policy, new: &Policy) {
        let statement = |text: &str| Statement::new(None, text);
        match (old.mode, new.mode) {
            (Mode::Enforce, Mode::Audit) => {
                self.opens.push(statement(
                    "mode is audit instead of enforce: what it denies passes and is reported",
                ));
                self.closes.push(statement(
                    "mode is audit instead of enforce: its destinations open nothing that another policy closes",
                ));
            }
            (Mode::Audit, Mode::Enforce) => {
                self.closes.push(statement("mode is enforce instead of audit: what it denies is dropped"));
                self.opens.push(statement(
                    "mode is enforce instead of audit: its destinations are open, also where another policy denies by default",
                ));
            }
            (Mode::Enforce, Mode::Enforce) | (Mode::Audit, Mode::Audit) => {}
        }
        match (old.default_action, new.default_action) {
            (DefaultAction::Deny, DefaultAction::Allow) => self.opens.push(Statement::new(
                None,
                "everything that no destination denies: the default is allow instead of deny",
            )),
            (DefaultAction::Allow, DefaultAction::Deny) => self.closes.push(Statement::new(
                None,
                "everything that no destination allows: the default is deny instead of allow",
            )),
            (DefaultAction::Allow, DefaultAction::Allow) | (DefaultAction::Deny, DefaultAction::Deny) => {}
        }
        let dns = |policy: &Policy, other: &Policy| policy.cluster_dns && allows_beside(policy, other);
        match (dns(old, new), dns(new, old)) {
            (false, true) => self.opens.push(Statement::new(None, CLUSTER_DNS)),
            (true, false) => self.closes.push(Statement::new(None, CLUSTER_DNS)),
            (true, true) | (false, false) => {}
        }
        if old.selector != new.selector {
            let (before, after) = (selection(&old.selector), selection(&new.selector));
            let text = format!(
                "it selects {after} instead of {before}: pods that are selected no more are not held by it, those that are now have its destinations"
            );
            self.opens.push(Statement::new(None, text));
        }
    }
}

const CLUSTER_DNS: &str = "the cluster's DNS, by clusterDns";

/// Tells whether what a policy allows counts beside the other version. What an audited policy allows opens nothing that another policy
/// closes, so it counts only if the other version is audited too.
fn allows_beside(policy: &Policy, other: &Policy) -> bool {
    policy.mode == Mode::Enforce || other.mode == Mode::Audit
}

/// One of the two versions.
struct Side<'p> {
    rules: &'p [Rule],
    by_name: HashMap<&'p str, &'p Rule>,
    /// Whether what it allows counts.
    allows: bool,
    /// What is allowed by rules with the same ports and end, of those that hold.
    allowed: Vec<(Ports, Option<u64>, Addresses)>,
}

impl<'p> Side<'p> {
    fn new(policy: Option<&'p Policy>, other: Option<&Policy>, now: u64) -> Self {
        let rules = policy.map_or(&[][..], |policy| &policy.rules);
        let counts = match (policy, other) {
            (Some(policy), Some(other)) => allows_beside(policy, other),
            _ => true,
        };
        let mut groups: Vec<(Ports, Option<u64>, Vec<&Rule>)> = Vec::new();
        let mut numbers: HashMap<(Ports, Option<u64>), usize> = HashMap::new();
        let allows = |rule: &&Rule| counts && rule.effect == Effect::Allow && is_active(rule.expires, now);
        for rule in rules.iter().filter(allows) {
            let key = (plain(&rule.ports), rule.expires);
            match numbers.get(&key) {
                Some(&index) => groups[index].2.push(rule),
                None if groups.len() < MOST_GROUPS => {
                    groups.push((key.0.clone(), rule.expires, vec![rule]));
                    numbers.insert(key, groups.len() - 1);
                }
                // Then it is not among those that allow something already, which says too much rather than too little.
                None => {}
            }
        }
        let allowed = groups.into_iter().map(|(ports, end, list)| {
            let nets: Vec<_> =
                list.iter().flat_map(|rule| addresses(rule).nets().collect::<Vec<_>>()).collect();
            (ports, end, Addresses::of_nets(&nets))
        });
        Self {
            rules,
            by_name: rules.iter().map(|rule| (rule.name.as_str(), rule)).collect(),
            allows: counts,
            allowed: allowed.collect(),
        }
    }

    /// Returns which of `addresses` no rule allows on all of these ports for as long.
    fn not_allowed(&self, addresses: &Addresses, ports: &Ports, end: Option<u64>) -> Addresses {
        let until = |end: Option<u64>| end.unwrap_or(u64::MAX);
        let mut rest = addresses.clone();
        for (outer, other, allowed) in &self.allowed {
            if rest.is_empty() {
                break;
            }
            if until(*other) >= until(end) && are_in(ports, outer) {
                rest = rest.minus(allowed);
            }
        }
        rest
    }
}

/// Most combinations of ports and end that are looked through for what allows something besides.
const MOST_GROUPS: usize = 256;

/// The two versions.
struct Both<'p> {
    old: Side<'p>,
    new: Side<'p>,
    now: u64,
}

impl Both<'_> {
    fn rules(&self, difference: &mut Difference) {
        let renamed = self.renamed();
        let former: BTreeSet<&str> = renamed.values().copied().collect();
        for new in self.new.rules {
            let same = self.old.by_name.get(new.name.as_str()).copied();
            match renamed.get(new.name.as_str()) {
                Some(name) => {
                    let text = format!("is called so instead of {name}");
                    difference.changes.push(Statement::new(Some(&new.name), text));
                    self.governance(difference, self.old.by_name[name], new);
                }
                None => self.rule(difference, same, Some(new)),
            }
        }
        for old in self.old.rules {
            if !former.contains(old.name.as_str()) && !self.new.by_name.contains_key(old.name.as_str()) {
                self.rule(difference, Some(old), None);
            }
        }
    }

    /// Returns the former name of rules that differ in their name only.
    fn renamed(&self) -> BTreeMap<&str, &str> {
        if self.old.allows != self.new.allows {
            // Each of them counts in one version only, and is told of.
            return BTreeMap::new();
        }
        let key = |rule: &Rule| format!("{:?}", (rule.effect, &rule.peers, &rule.ports, rule.expires));
        let mut gone: HashMap<String, Vec<&str>> = HashMap::new();
        for old in self.old.rules.iter().rev() {
            if !self.new.by_name.contains_key(old.name.as_str()) {
                gone.entry(key(old)).or_default().push(&old.name);
            }
        }
        let mut renamed = BTreeMap::new();
        for new in self.new.rules.iter().filter(|new| !self.old.by_name.contains_key(new.name.as_str())) {
            if let Some(name) = gone.get_mut(&key(new)).and_then(Vec::pop) {
                renamed.insert(new.name.as_str(), name);
            }
        }
        renamed
    }

    /// Compares two rules of the same name.
    fn rule(&self, difference: &mut Difference, old: Option<&Rule>, new: Option<&Rule>) {
        if let (Some(before), Some(after)) = (old, new)
            && before.effect != after.effect
        {
            self.rule(difference, Some(before), None);
            self.rule(difference, None, Some(after));
            return;
        }
        let Some(either) = new.or(old) else { return };
        let name = Some(either.name.as_str());
        let allow = either.effect == Effect::Allow;
        let holds =
            |side: &Side<'_>, rule: &Rule| is_active(rule.expires, self.now) && (side.allows || !allow);
        let old_holds = old.filter(|rule| holds(&self.old, rule));
        let new_holds = new.filter(|rule| holds(&self.new, rule));
        // What is reached more is opened by an allowed destination, and closed by a denied one.
        let more =
            new_holds.map_or_else(Vec::new, |new| self.beyond(new, old_holds, allow.then_some(&self.old)));
        let less =
            old_holds.map_or_else(Vec::new, |old| self.beyond(old, new_holds, allow.then_some(&self.new)));
        let denied = |mut statement: Statement| {
            if !allow {
                statement.text = format!("{}, a denied destination", statement.text);
            }
            statement
        };
        let (wider, narrower) = match allow {
            true => (&mut difference.opens, &mut difference.closes),
            false => (&mut difference.closes, &mut difference.opens),
        };
        wider.extend(more.into_iter().map(denied));
        narrower.extend(less.into_iter().map(denied));
        let why = |rule: &Rule| match is_active(rule.expires, self.now) {
            true => "is only audited".to_owned(),
            false => format!("ended at {}", end(rule.expires)),
        };
        match (old, new) {
            (Some(before), Some(after)) => {
                if before.expires != after.expires {
                    let text = format!("ends at {} instead of {}", end(after.expires), end(before.expires));
                    let until = |rule: &Rule| rule.expires.unwrap_or(u64::MAX);
                    let list = match (old_holds.is_some(), new_holds.is_some()) {
                        (true, true) if until(after) > until(before) => wider,
                        (true, true) => narrower,
                        _ => &mut difference.changes,
                    };
                    list.push(Statement::new(name, text));
                }
                if (old_holds.is_none() || new_holds.is_none()) && !reaches_the_same(before, after) {
                    let rule = if new_holds.is_none() { after } else { before };
                    let it = if new_holds.is_none() { "" } else { "before " };
                    let text =
                        format!("leads elsewhere, or to other ports, than before; it {it}{}", why(rule));
                    difference.changes.push(Statement::new(name, text));
                }
                self.governance(difference, before, after);
            }
            (None, Some(rule)) if new_holds.is_none() => {
                difference.changes.push(Statement::new(name, format!("is new, but {}", why(rule))));
            }
            (Some(rule), None) if old_holds.is_none() => {
                difference.changes.push(Statement::new(name, format!("is gone; it {}", why(rule))));
            }
            _ => {}
        }
    }

    fn governance(&self, difference: &mut Difference, old: &Rule, new: &Rule) {
        for field in [Field::Owner, Field::Reason, Field::Scope, Field::DataClassification, Field::AuditRef] {
            let (before, after) = (value(old, field), value(new, field));
            if before != after {
                let said = |text: Option<&str>| {
                    text.map_or_else(|| "nothing".to_owned(), |text| format!("{:?}", shown(text)))
                };
                let text = format!("{} is {} instead of {}", field.as_str(), said(after), said(before));
                difference.changes.push(Statement::new(Some(&new.name), text));
            }
        }
    }

    /// Returns what `rule` reaches that `other` does not. Of its addresses, those that `side` allows by another rule are told apart.
    fn beyond(&self, rule: &Rule, other: Option<&Rule>, side: Option<&Side<'_>>) -> Vec<Statement> {
        let mut statements = Vec::new();
        let (reach, before) = (Reach::of(rule), other.map_or_else(Reach::default, Reach::of));
        let fresh = Reach {
            addresses: reach.addresses.minus(&before.addresses),
            names: reach.names.iter().filter(|name| !before.covers(name)).cloned().collect(),
        };
        let kept = Reach {
            addresses: reach.addresses.minus(&fresh.addresses),
            names: reach.names.difference(&fresh.names).cloned().collect(),
        };
        let ports = plain(&rule.ports);
        let more_ports = other.and_then(|other| ports_minus(&ports, &plain(&other.ports)));
        for (part, ports) in [(&fresh, Some(Rest::Ports(ports))), (&kept, more_ports)] {
            let Some(ports) = ports else { continue };
            let on = ports.said();
            let ports = ports.at_most();
            if !part.addresses.is_empty() {
                let count = part.addresses.count();
                let mut text = format!("{count} ({}) on {on}", few(&part.addresses));
                let alone = side.map(|side| side.not_allowed(&part.addresses, ports, rule.expires).count());
                match alone {
                    Some(alone) if alone.is_zero() => text += "; another destination allows all of them",
                    Some(alone) if alone != count => {
                        write!(text, "; no other destination allows {alone}")
                            .expect("a string takes everything");
                    }
                    _ => {}
                }
                let destination = Some(rule.name.clone());
                statements.push(Statement { destination, text, addresses: Some(count), alone });
            }
            for name in &part.names {
                let narrowed =
                    !before.names.is_empty() && before.names.iter().any(|other| name.covers(other));
                let but = if narrowed { ", but for what stays" } else { "" };
                statements.push(Statement::new(Some(&rule.name), format!("{}{but} on {on}", name.said())));
            }
        }
        statements
    }
}

/// Where a rule leads, whatever the port.
#[derive(Clone, Debug, Default)]
struct Reach {
    addresses: Addresses,
    names: BTreeSet<Named>,
}

/// A destination without addresses of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Named {
    Domain(String),
    /// A service of a cloud, or all of them, in one of its regions, or in all of them.
    Cloud {
        cloud: String,
        service: Option<String>,
        region: Option<String>,
    },
    Other(String),
}

impl Named {
    fn said(&self) -> String {
        match self {
            Self::Domain(domain) => format!("domain {domain}"),
            Self::Cloud { cloud, service, region } => {
                let service = match service.as_deref() {
                    Some(service) if cloud == AWS => format!("AWS service {}", shown(service)),
                    Some(service) => format!("{cloud} service {}", shown(service)),
                    None => format!("cloud {cloud}"),
                };
                let region = region.as_deref().map_or_else(|| "every region".to_owned(), shown);
                format!("{service} in {region}")
            }
            Self::Other(text) => text.clone(),
        }
    }

    /// Tells whether it takes in all of `other`.
    fn covers(&self, other: &Self) -> bool {
        self == other
            || match (self, other) {
                (
                    Self::Cloud { cloud, service, region },
                    Self::Cloud { cloud: same, service: other, region: part },
                ) => {
                    let all =
                        |ours: &Option<String>, theirs: &Option<String>| ours.is_none() || ours == theirs;
                    cloud == same && all(service, other) && all(region, part)
                }
                (Self::Domain(pattern), Self::Domain(domain)) => {
                    pattern.strip_prefix('*').is_some_and(|end| domain.ends_with(end))
                }
                _ => false,
            }
    }
}

impl Reach {
    fn of(rule: &Rule) -> Self {
        let mut names = BTreeSet::new();
        for peer in &rule.peers {
            let named;
            let peer = match peer {
                // A name says more than the addresses it has just now.
                Peer::Cloud(cloud) => {
                    named = Peer::Unresolved(cloud.what.clone());
                    &named
                }
                _ => peer,
            };
            match peer {
                Peer::Any | Peer::Cidrs { .. } | Peer::Cloud(_) => {}
                Peer::Service(id) => {
                    names.insert(Named::Other(format!("service {id}")));
                }
                Peer::Entity(entity) => {
                    names.insert(Named::Other(entity_name(*entity).to_owned()));
                }
                Peer::Pods { namespaces, pods } => {
                    names.insert(Named::Other(peer_pods(namespaces.as_ref(), pods.as_ref())));
                }
                Peer::Unresolved(Unresolved::Domains(domains)) => {
                    names.extend(domains.iter().cloned().map(Named::Domain));
                }
                Peer::Unresolved(Unresolved::AwsService { service, regions }) => {
                    names.extend(in_regions(AWS, Some(&service.to_ascii_uppercase()), regions));
                }
                Peer::Unresolved(Unresolved::Cloud { provider, services, regions })
                    if services.is_empty() =>
                {
                    names.extend(in_regions(provider, None, regions));
                }
                Peer::Unresolved(Unresolved::Cloud { provider, services, regions }) => {
                    for service in services {
                        // As it is written: what would be shown of two may be the same.
                        let service = match provider == AWS {
                            true => service.to_ascii_uppercase(),
                            false => service.clone(),
                        };
                        names.extend(in_regions(provider, Some(&service), regions));
                    }
                }
            }
        }
        Self { addresses: addresses(rule), names }
    }

    fn covers(&self, name: &Named) -> bool {
        self.names.iter().any(|own| own.covers(name))
    }
}

/// The provider that `awsService` is about.
const AWS: &str = "aws";

fn in_regions(cloud: &str, service: Option<&str>, regions: &[String]) -> Vec<Named> {
    let named = |region: Option<String>| Named::Cloud {
        cloud: cloud.to_owned(),
        service: service.map(str::to_owned),
        region,
    };
    match regions {
        [] => vec![named(None)],
        regions => regions.iter().map(|region| named(Some(region.clone()))).collect(),
    }
}

fn addresses(rule: &Rule) -> Addresses {
    let own = rule.peers.iter().filter(|peer| !matches!(peer, Peer::Cloud(_)));
    own.map(Addresses::of_peer).fold(Addresses::default(), |all, peer| all.plus(&peer))
}

/// Returns the first few prefixes of a set.
fn few(addresses: &Addresses) -> String {
    const MOST: usize = 4;
    let mut nets = addresses.nets();
    let mut text = nets.by_ref().take(MOST).map(|net| net.to_string()).collect::<Vec<_>>().join(", ");
    if nets.next().is_some() {
        text += ", …";
    }
    text
}

fn end(expires: Option<u64>) -> String {
    expires.map_or_else(|| "no time".to_owned(), when)
}

const fn action(action: DefaultAction) -> &'static str {
    match action {
        DefaultAction::Allow => "allow",
        DefaultAction::Deny => "deny",
    }
}

const fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforced",
        Mode::Audit => "audited",
    }
}

const fn entity_name(entity: Entity) -> &'static str {
    match entity {
        Entity::ClusterDns => "the cluster's DNS",
        Entity::KubeApiserver => "the API server",
        Entity::Node => "the pod's own node",
        Entity::World => "every address outside the cluster",
    }
}

fn peer_pods(namespaces: Option<&LabelSelector>, pods: Option<&LabelSelector>) -> String {
    let pods = pods.map_or_else(|| "every pod".to_owned(), selection);
    match namespaces {
        None => format!("{pods} of its own namespace"),
        Some(selector) if selector.is_empty() => format!("{pods} of every namespace"),
        Some(selector) => format!("{pods} of namespaces with {}", conditions(selector)),
    }
}

fn selection(selector: &LabelSelector) -> String {
    match selector.is_empty() {
        true => "every pod".to_owned(),
        false => format!("pods with {}", conditions(selector)),
    }
}

/// Returns a selector as `kubectl` takes it.
fn conditions(selector: &LabelSelector) -> String {
    let mut labels: Vec<String> =
        selector.match_labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.sort_unstable();
    labels.extend(selector.match_expressions.iter().map(|requirement| {
        let key = &requirement.key;
        match &requirement.operator {
            Operator::In(values) => format!("{key} in ({})", values.join(",")),
            Operator::NotIn(values) => format!("{key} notin ({})", values.join(",")),
            Operator::Exists => key.clone(),
            Operator::DoesNotExist => format!("!{key}"),
        }
    }));
    labels.join(",")
}

/// Tells whether two rules are about the same, whatever their names, ends and governance.
fn reaches_the_same(one: &Rule, other: &Rule) -> bool {
    let (one_reach, other_reach) = (Reach::of(one), Reach::of(other));
    one_reach.addresses == other_reach.addresses
        && one_reach.names == other_reach.names
        && plain(&one.ports) == plain(&other.ports)
}

/// What is left of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Rest {
    Ports(Ports),
    /// Every protocol and port but these.
    AllBut(Ports),
}

impl Rest {
    fn said(&self) -> String {
        match self {
            Self::Ports(ports) => said(ports),
            Self::AllBut(ports) => format!("every protocol and port but {}", said(ports)),
        }
    }

    /// Returns ports that hold all of it.
    fn at_most(&self) -> &Ports {
        match self {
            Self::Ports(ports) => ports,
            Self::AllBut(_) => &Ports::All,
        }
    }
}

/// Returns the ports of `ports` that `away` does not have, both of them [`plain`]; `None` if it has all of them.
fn ports_minus(ports: &Ports, away: &Ports) -> Option<Rest> {
    let (list, away) = match (ports, away) {
        (_, Ports::All) => return None,
        (Ports::All, Ports::List(_)) => return Some(Rest::AllBut(away.clone())),
        (Ports::List(list), Ports::List(away)) => (list, away),
    };
    let mut rest = Vec::new();
    for spec in list {
        rest.extend(spec_minus(spec, away));
    }
    (!rest.is_empty()).then_some(Rest::Ports(Ports::List(rest)))
}

fn spec_minus(spec: &PortSpec, away: &[PortSpec]) -> Vec<PortSpec> {
    if is_among(spec, away) {
        return Vec::new();
    }
    let PortMatch::Range(first, last) = spec.port else { return vec![spec.clone()] };
    let gone =
        away.iter().filter(|outer| outer.protocol == spec.protocol).filter_map(|outer| match outer.port {
            PortMatch::Range(first, last) => Some((first, last)),
            PortMatch::Any | PortMatch::Name(_) => None,
        });
    let mut rest = Vec::new();
    // In a wider type, so that there is a port after the last one.
    let mut from = u32::from(first);
    for (start, stop) in gone {
        let (start, stop) = (u32::from(start), u32::from(stop));
        if start > u32::from(last) {
            break;
        }
        if start > from {
            rest.push((from, start - 1));
        }
        from = from.max(stop + 1);
    }
    if from <= u32::from(last) {
        rest.push((from, u32::from(last)));
    }
    rest.into_iter()
        .map(|(first, last)| {
            let port = |port: u32| u16::try_from(port).expect("it lies between two ports");
            PortSpec { protocol: spec.protocol, port: PortMatch::Range(port(first), port(last)) }
        })
        .collect()
}

/// Returns ports as a document writes them.
fn said(ports: &Ports) -> String {
    const MOST: usize = 12;
    let Ports::List(list) = ports else { return "every protocol and port".to_owned() };
    let mut text: Vec<String> = list.iter().take(MOST).map(port_said).collect();
    if list.len() > MOST {
        text.push("…".to_owned());
    }
    text.join(", ")
}

fn port_said(spec: &PortSpec) -> String {
    let protocol = spec.protocol.as_str();
    match &spec.port {
        PortMatch::Any if spec.protocol == Protocol::Icmp => protocol.to_owned(),
        PortMatch::Any => format!("every port of {protocol}"),
        PortMatch::Range(first, last) if first == last => format!("{first}/{protocol}"),
        PortMatch::Range(first, last) => format!("{first}-{last}/{protocol}"),
        PortMatch::Name(name) => format!("{name}/{protocol}"),
    }
}

#[cfg(test)]
mod tests;
