//! Answers from the model by brute force: slow, obvious, and sharing no code with what it checks.
//!
//! Each question looks at every rule of every policy that selects the pod and asks what the rule grants at the one address
//! the flow goes to. Nothing is sorted by address, merged or cached. The words of the documented semantics are the only
//! source of this file; where the compiler and this file disagree, one of them does not say what the semantics say.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use egress_common::verdict::{Reason, Verdict};
use ipnet::IpNet;

use super::{
    cluster::{Cluster, EndpointSlice, InvalidPolicy, Labels, NsName, Pod, Service, ServicePort, Settings},
    flow::{Answer, Flow},
    model::{
        DefaultAction, Effect, Entity, LabelSelector, Mode, Operator, Peer, Policy, PolicyId, PolicyKind,
        PortMatch, PortSpec, Ports, Protocol, RuleName, RulePart,
    },
};

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The cluster has no pod of this name.
    #[error("there is no pod {0}")]
    UnknownPod(NsName),
}

/// The allow rule that came closest to a flow that is denied, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearMiss {
    /// The rule.
    pub rule: RuleName,
    /// Why it did not let the flow pass.
    pub why: MissReason,
}

/// Why an allow rule did not let a flow pass, from the closest to the most distant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MissReason {
    /// It matches, but this denied destination beats it.
    Overruled(RuleName),
    /// It matches, but ended at this second (since the epoch, UTC).
    Expired(u64),
    /// Address and protocol match, the port does not.
    Port,
    /// The address matches, the protocol does not.
    Protocol,
    /// It matches, but its policy is in audit mode and so permits nothing that an enforcing policy denies.
    AuditOnly,
    /// It matches, but its policy does not select the pod that sends.
    PolicyDoesNotSelect,
    /// The destination is a ClusterIP with pods of the rule behind the port, but not every endpoint behind it is allowed at
    /// its target port.
    SomeEndpoints,
    /// The destination is a pod that the rule's labels do not select.
    PodNotSelected,
    /// The address lies in one of the rule's CIDRs, but this exception carves it out.
    Except(IpNet),
    /// The address is in none of the rule's CIDRs.
    Address {
        /// The CIDR that shares most leading bits with the address.
        nearest: IpNet,
        /// How many they share.
        common_bits: u8,
    },
    /// The rule's addresses have not been looked up, so it matches nothing.
    Unresolved,
}

impl MissReason {
    /// Orders reasons: the greater, the closer the rule came.
    fn closeness(&self) -> (u8, u8) {
        match self {
            Self::Overruled(_) => (10, 0),
            Self::Expired(_) => (9, 0),
            Self::Port => (8, 0),
            Self::Protocol => (7, 0),
            Self::AuditOnly => (6, 0),
            Self::PolicyDoesNotSelect => (5, 0),
            Self::SomeEndpoints => (4, 0),
            Self::PodNotSelected => (3, 0),
            Self::Except(net) => (2, net.prefix_len()),
            Self::Address { common_bits, .. } => (1, *common_bits),
            Self::Unresolved => (0, 0),
        }
    }
}

/// A rule of a policy, written or implied, ready to be asked.
struct Clause {
    name: RuleName,
    audit: bool,
    effect: Effect,
    peers: Vec<Peer>,
    ports: Ports,
    expires: Option<u64>,
}

impl Clause {
    fn deadline(&self) -> u64 {
        self.expires.unwrap_or(u64::MAX)
    }

    fn is_active(&self, now: u64) -> bool {
        self.expires.is_none_or(|end| now < end)
    }
}

/// What a peer grants at one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grant {
    /// Every protocol and port.
    Everything,
    /// ICMP of the address's own family.
    Icmp,
    /// Ports of TCP, UDP or SCTP, from the first to the last.
    Ports(Protocol, u16, u16),
}

impl Grant {
    fn covers(self, flow: &Flow) -> bool {
        match self {
            Self::Everything => true,
            Self::Icmp => self.has_protocol(flow),
            Self::Ports(_, first, last) => self.has_protocol(flow) && first <= flow.port && flow.port <= last,
        }
    }

    fn has_protocol(self, flow: &Flow) -> bool {
        match self {
            Self::Everything => true,
            Self::Icmp => flow.protocol == wire_number(Protocol::Icmp, flow.destination),
            Self::Ports(protocol, _, _) => flow.protocol == wire_number(protocol, flow.destination),
        }
    }
}

/// The number of a protocol on the wire to a destination.
fn wire_number(protocol: Protocol, destination: IpAddr) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
        Protocol::Icmp if destination.is_ipv4() => 1,
        Protocol::Icmp => 58,
    }
}

/// Everything a rule is asked about besides itself.
struct Question<'a> {
    cluster: &'a Cluster,
    settings: &'a Settings,
    pod: &'a Pod,
    flow: &'a Flow,
}

/// Returns what the policies of the cluster say about a flow of a pod at a time.
///
/// A pod that has finished is not governed.
///
/// # Errors
///
/// The cluster must have the pod.
pub fn reference(
    cluster: &Cluster,
    settings: &Settings,
    pod: &NsName,
    flow: &Flow,
    now: u64,
) -> Result<Answer, ReferenceError> {
    let subject = find(cluster, pod)?;
    let policies = selecting(cluster, settings, pod, subject);
    let question = Question { cluster, settings, pod: subject, flow };
    Ok(judge(&question, &policies, now))
}

/// Returns the allow rule that came closest to letting a denied flow pass, and why it did not.
///
/// The same is told for a flow that passes only because the policy that denies it is in audit mode. There is no near miss
/// where the flow is allowed, or where no rule comes near. Of rules that came equally close, the first in policy order is
/// named, those of policies that select the pod before the others.
///
/// # Errors
///
/// The cluster must have the pod.
pub fn nearest_allow(
    cluster: &Cluster,
    settings: &Settings,
    pod: &NsName,
    flow: &Flow,
    now: u64,
) -> Result<Option<NearMiss>, ReferenceError> {
    let subject = find(cluster, pod)?;
    let selecting = selecting(cluster, settings, pod, subject);
    let question = Question { cluster, settings, pod: subject, flow };
    let answer = judge(&question, &selecting, now);
    if answer.verdict == Verdict::Allow {
        return Ok(None);
    }
    let overruled = answer.rule.filter(|_| answer.reason == Reason::DeniedDestination);
    let mut misses = Vec::new();
    for policy in &selecting {
        for clause in clauses(policy) {
            if clause.effect == Effect::Deny {
                continue;
            }
            misses.extend(clause_misses(&question, policy, &clause, now, overruled.as_ref(), answer.verdict));
        }
    }
    for policy in cluster.policies.values() {
        let enforced = match policy.id.kind {
            PolicyKind::ConfigMap => true,
            PolicyKind::NetworkPolicy => settings.enforce_network_policy,
            PolicyKind::Namespace => false,
        };
        if !enforced
            || policy.mode == Mode::Audit
            || policy.id.id.namespace != pod.namespace
            || selecting.iter().any(|other| other.id == policy.id)
        {
            continue;
        }
        for clause in clauses(policy) {
            if clause.effect == Effect::Allow && clause.is_active(now) && matches(&question, policy, &clause)
            {
                misses.push(NearMiss { rule: clause.name, why: MissReason::PolicyDoesNotSelect });
            }
        }
    }
    let mut nearest: Option<NearMiss> = None;
    for miss in misses {
        if nearest.as_ref().is_none_or(|best| miss.why.closeness() > best.why.closeness()) {
            nearest = Some(miss);
        }
    }
    Ok(nearest)
}

fn find<'a>(cluster: &'a Cluster, pod: &NsName) -> Result<&'a Pod, ReferenceError> {
    cluster.pods.get(pod).ok_or_else(|| ReferenceError::UnknownPod(pod.clone()))
}

/// The policies that select the pod, implied ones included, in policy order.
fn selecting(cluster: &Cluster, settings: &Settings, name: &NsName, pod: &Pod) -> Vec<Policy> {
    if pod.finished {
        return Vec::new();
    }
    let mut found = Vec::new();
    for policy in cluster.policies.values() {
        let counts = match policy.id.kind {
            PolicyKind::ConfigMap => true,
            PolicyKind::NetworkPolicy => settings.enforce_network_policy,
            PolicyKind::Namespace => false,
        };
        if counts && policy.id.id.namespace == name.namespace && selects(&policy.selector, &pod.labels) {
            found.push((**policy).clone());
        }
    }
    if settings.invalid_policy == InvalidPolicy::Deny {
        for broken in &cluster.broken {
            if broken.namespace == name.namespace {
                found.push(closed(PolicyKind::ConfigMap, broken.clone()));
            }
        }
    }
    let enforced = found.iter().any(|policy| policy.mode == Mode::Enforce);
    if settings.governed_namespaces.contains(&name.namespace) && !enforced {
        found.push(closed(PolicyKind::Namespace, NsName::new(name.namespace.clone(), "")));
    }
    found.sort_by(|a, b| a.id.cmp(&b.id));
    found
}

/// An enforcing policy that selects every pod of its namespace and allows cluster DNS alone.
fn closed(kind: PolicyKind, id: NsName) -> Policy {
    Policy {
        id: PolicyId { kind, id },
        mode: Mode::Enforce,
        default_action: DefaultAction::Deny,
        selector: LabelSelector::default(),
        cluster_dns: true,
        own_node: false,
        rules: Vec::new(),
    }
}

/// The rules of a policy in order, the implied ones last.
fn clauses(policy: &Policy) -> Vec<Clause> {
    let id = Arc::new(policy.id.clone());
    let audit = policy.mode == Mode::Audit;
    let mut all = Vec::new();
    for rule in &policy.rules {
        all.push(Clause {
            name: RuleName { policy: Arc::clone(&id), part: RulePart::Destination(rule.name.clone()) },
            audit,
            effect: rule.effect,
            peers: rule.peers.clone(),
            ports: rule.ports.clone(),
            expires: rule.expires,
        });
    }
    if policy.cluster_dns {
        let port_53 = |protocol| PortSpec { protocol, port: PortMatch::Range(53, 53) };
        all.push(Clause {
            name: RuleName { policy: Arc::clone(&id), part: RulePart::ClusterDns },
            audit,
            effect: Effect::Allow,
            peers: vec![Peer::Entity(Entity::ClusterDns)],
            ports: Ports::List(vec![port_53(Protocol::Udp), port_53(Protocol::Tcp)]),
            expires: None,
        });
    }
    if policy.own_node {
        all.push(Clause {
            name: RuleName { policy: id, part: RulePart::OwnNode },
            audit,
            effect: Effect::Allow,
            peers: vec![Peer::Entity(Entity::Node)],
            ports: Ports::All,
            expires: None,
        });
    }
    all
}

fn judge(question: &Question<'_>, policies: &[Policy], now: u64) -> Answer {
    if policies.is_empty() {
        return answer(Verdict::Allow, Reason::Ungoverned, None);
    }
    let to = question.flow.destination;
    let loopback = match to {
        IpAddr::V4(v4) => v4.octets()[0] == 127,
        IpAddr::V6(v6) => v6 == Ipv6Addr::LOCALHOST,
    };
    if loopback || question.pod.ips.contains(&to) {
        return answer(Verdict::Allow, Reason::Local, None);
    }

    // Of all rules of a kind that match, the one that lives longest; the first among equals.
    let mut matching = Vec::new();
    for policy in policies {
        for clause in clauses(policy) {
            if matches(question, policy, &clause) {
                matching.push(clause);
            }
        }
    }
    let candidate = |audit: bool, effect: Effect| {
        let mut best: Option<&Clause> = None;
        for clause in matching.iter().filter(|clause| clause.audit == audit && clause.effect == effect) {
            if best.is_none_or(|so_far| clause.deadline() > so_far.deadline()) {
                best = Some(clause);
            }
        }
        best
    };
    let active = |clause: Option<&Clause>| {
        clause.filter(|clause| clause.is_active(now)).map(|clause| clause.name.clone())
    };
    let default_deny = |mode: Mode| {
        let denies = policies
            .iter()
            .find(|policy| policy.mode == mode && policy.default_action == DefaultAction::Deny);
        denies.map(|policy| RuleName { policy: Arc::new(policy.id.clone()), part: RulePart::Default })
    };
    let deny = candidate(false, Effect::Deny);
    let allow = candidate(false, Effect::Allow);
    let audit_deny = candidate(true, Effect::Deny);
    let audit_allow = candidate(true, Effect::Allow);

    if let Some(rule) = active(deny) {
        return answer(Verdict::Deny, Reason::DeniedDestination, Some(rule));
    }
    if let Some(rule) = active(allow) {
        return match active(audit_deny) {
            Some(audited) => answer(Verdict::Audit, Reason::DeniedDestination, Some(audited)),
            None => answer(Verdict::Allow, Reason::AllowedDestination, Some(rule)),
        };
    }
    if let Some(default) = default_deny(Mode::Enforce) {
        return match allow {
            Some(ended) => answer(Verdict::Deny, Reason::Expired, Some(ended.name.clone())),
            None => answer(Verdict::Deny, Reason::DefaultDeny, Some(default)),
        };
    }
    if let Some(rule) = active(audit_deny) {
        return answer(Verdict::Audit, Reason::DeniedDestination, Some(rule));
    }
    if let Some(rule) = active(audit_allow) {
        return answer(Verdict::Allow, Reason::AllowedDestination, Some(rule));
    }
    if let Some(default) = default_deny(Mode::Audit) {
        return match audit_allow {
            Some(ended) => answer(Verdict::Audit, Reason::Expired, Some(ended.name.clone())),
            None => answer(Verdict::Audit, Reason::DefaultDeny, Some(default)),
        };
    }
    answer(Verdict::Allow, Reason::DefaultAllow, None)
}

fn answer(verdict: Verdict, reason: Reason, rule: Option<RuleName>) -> Answer {
    Answer { verdict, reason, rule }
}

/// Whether a clause speaks about the flow, whatever the time.
fn matches(question: &Question<'_>, policy: &Policy, clause: &Clause) -> bool {
    clause.peers.iter().any(|peer| {
        grants(question, policy, peer, &clause.ports, clause.effect)
            .iter()
            .any(|grant| grant.covers(question.flow))
    })
}

/// What a peer with these ports grants at the address the flow goes to: at its own addresses, and at ClusterIPs in front of
/// them.
fn grants(
    question: &Question<'_>,
    policy: &Policy,
    peer: &Peer,
    ports: &Ports,
    effect: Effect,
) -> Vec<Grant> {
    let own;
    let (peer, ports) = match peer {
        Peer::Cloud(cloud) => {
            let Some(both) = cloud.ports(ports) else { return Vec::new() };
            own = both;
            (peer, &*own)
        }
        // Until its addresses are known, what is denied may be anywhere.
        Peer::Unresolved(what) if effect == Effect::Deny => {
            let Some(most) = what.at_most() else { return Vec::new() };
            return grants(question, policy, &most, ports, effect);
        }
        _ => (peer, ports),
    };
    let mut granted = at_own_address(question, policy, peer, ports, question.flow.destination);
    granted.extend(at_cluster_ip(question, policy, peer, ports, effect));
    granted
}

/// What a peer with these ports grants at one of the addresses it names itself.
fn at_own_address(
    question: &Question<'_>,
    policy: &Policy,
    peer: &Peer,
    ports: &Ports,
    to: IpAddr,
) -> Vec<Grant> {
    let by_number_if = |holds: bool| if holds { by_number(ports) } else { Vec::new() };
    match peer {
        Peer::Any => by_number(ports),
        Peer::Cidrs { cidrs, except } => by_number_if(
            cidrs.iter().any(|net| contains(net, to)) && !except.iter().any(|net| contains(net, to)),
        ),
        Peer::Pods { namespaces, pods } => {
            let selected = selected_pods(question.cluster, policy, namespaces.as_ref(), pods.as_ref());
            at_pods(&selected, ports, to)
        }
        Peer::Service(name) => at_service(question.cluster, name, ports, to),
        Peer::Entity(Entity::ClusterDns) => {
            let mut granted = by_number_if(question.settings.cluster_dns_addresses.contains(&to));
            for name in &question.settings.cluster_dns {
                granted.extend(at_service(question.cluster, name, ports, to));
            }
            granted
        }
        Peer::Entity(Entity::KubeApiserver) => {
            at_service(question.cluster, &NsName::new("default", "kubernetes"), ports, to)
        }
        Peer::Entity(Entity::Node) => {
            let node = question.cluster.nodes.get(question.pod.node());
            by_number_if(node.is_some_and(|node| node.addresses.contains(&to)))
        }
        Peer::Entity(Entity::World) => by_number_if(in_world(question.cluster, question.settings, to)),
        Peer::Cloud(cloud) => by_number_if(cloud.cidrs.iter().any(|net| contains(net, to))),
        Peer::Unresolved(_) => Vec::new(),
    }
}

/// What a port list grants where its numbers mean themselves and names mean nothing.
fn by_number(ports: &Ports) -> Vec<Grant> {
    let Ports::List(list) = ports else { return vec![Grant::Everything] };
    let mut granted = Vec::new();
    for spec in list {
        match (&spec.protocol, &spec.port) {
            (Protocol::Icmp, _) => granted.push(Grant::Icmp),
            (_, PortMatch::Name(_)) => {}
            (protocol, PortMatch::Any) => granted.push(Grant::Ports(*protocol, 0, u16::MAX)),
            (protocol, PortMatch::Range(first, last)) => granted.push(Grant::Ports(*protocol, *first, *last)),
        }
    }
    granted
}

/// Pods a `pods` peer of a policy selects: never finished ones, and no host network ones for a NetworkPolicy.
fn selected_pods<'a>(
    cluster: &'a Cluster,
    policy: &Policy,
    namespaces: Option<&LabelSelector>,
    pods: Option<&LabelSelector>,
) -> Vec<&'a Pod> {
    let mut selected = Vec::new();
    for (name, pod) in cluster.pods.iter() {
        if pod.finished || (pod.host_network && policy.id.kind == PolicyKind::NetworkPolicy) {
            continue;
        }
        let right_namespace = match namespaces {
            None => name.namespace == policy.id.id.namespace,
            Some(selector) => selects(selector, &namespace_labels(cluster, name.namespace)),
        };
        if right_namespace && pods.is_none_or(|selector| selects(selector, &pod.labels)) {
            selected.push(pod);
        }
    }
    selected
}

fn namespace_labels(cluster: &Cluster, namespace: &str) -> Labels {
    let mut labels: BTreeMap<String, String> = BTreeMap::new();
    labels.insert("kubernetes.io/metadata.name".to_owned(), namespace.to_owned());
    for (key, value) in cluster.namespaces.get(namespace).iter().flat_map(|labels| labels.iter()) {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels.into()
}

/// What a `pods` peer grants at an address that one or more of its pods have.
fn at_pods(selected: &[&Pod], ports: &Ports, address: IpAddr) -> Vec<Grant> {
    let mut granted = Vec::new();
    for pod in selected {
        if !pod.ips.contains(&address) {
            continue;
        }
        granted.extend(by_number(ports));
        let Ports::List(list) = ports else { continue };
        for spec in list {
            let PortMatch::Name(wanted) = &spec.port else { continue };
            for port in pod.ports.iter() {
                if port.name == *wanted && port.protocol == spec.protocol {
                    granted.push(Grant::Ports(port.protocol, port.port, port.port));
                }
            }
        }
    }
    granted
}

/// What a peer grants at a ClusterIP because of the endpoints behind it. An allow, for `pods` only: each service port behind
/// which every endpoint is granted. A deny, whatever the peer: each service port behind which any endpoint is, on any of the
/// ports it may be reached at, since nobody knows which endpoint a packet will reach.
fn at_cluster_ip(
    question: &Question<'_>,
    policy: &Policy,
    peer: &Peer,
    ports: &Ports,
    effect: Effect,
) -> Vec<Grant> {
    let address = question.flow.destination;
    let at_endpoint = |endpoint: IpAddr| at_own_address(question, policy, peer, ports, endpoint);
    let mut granted = Vec::new();
    if effect == Effect::Allow && !matches!(peer, Peer::Pods { .. }) {
        return granted;
    }
    for (name, service) in &question.cluster.services {
        if !service.cluster_ips.contains(&address) {
            continue;
        }
        for port in &service.ports {
            let behind = endpoints_behind(question.cluster, name, port, address);
            let holds = match effect {
                Effect::Allow => {
                    let allowed = behind.iter().filter(|(endpoint, target)| {
                        all_ports_granted(&at_endpoint(*endpoint), port.protocol, *target)
                    });
                    !behind.is_empty() && allowed.count() == behind.len()
                }
                Effect::Deny => behind.iter().any(|(endpoint, target)| {
                    some_port_granted(&at_endpoint(*endpoint), port.protocol, *target)
                }),
            };
            if holds {
                granted.push(Grant::Ports(port.protocol, port.port, port.port));
            }
        }
    }
    granted
}

/// Every pair of address and target port behind a port of a Service, of the family of one of its ClusterIPs.
fn endpoints_behind(
    cluster: &Cluster,
    service: &NsName,
    port: &ServicePort,
    cluster_ip: IpAddr,
) -> Vec<(IpAddr, Option<u16>)> {
    let mut pairs = Vec::new();
    for slice in slices_of(cluster, service) {
        for behind in &slice.ports {
            if behind.name != port.name || behind.protocol != port.protocol {
                continue;
            }
            for endpoint in &slice.addresses {
                if endpoint.is_ipv4() == cluster_ip.is_ipv4() {
                    pairs.push((*endpoint, behind.port));
                }
            }
        }
    }
    pairs
}

fn slices_of<'a>(cluster: &'a Cluster, service: &NsName) -> Vec<&'a EndpointSlice> {
    let mut slices = Vec::new();
    for (name, slice) in &cluster.slices {
        if name.namespace == service.namespace && slice.service == service.name {
            slices.push(slice);
        }
    }
    slices
}

/// Whether grants hold the target port; no number stands for every port, 0 included.
fn all_ports_granted(granted: &[Grant], protocol: Protocol, target: Option<u16>) -> bool {
    let holds = |number: u16| {
        granted.iter().any(|grant| match grant {
            Grant::Everything => true,
            Grant::Icmp => false,
            Grant::Ports(of, first, last) => *of == protocol && *first <= number && number <= *last,
        })
    };
    match target {
        Some(number) => holds(number),
        None => (0..=u16::MAX).all(holds),
    }
}

/// Whether grants hold the target port; no number stands for every port, of which one is enough.
fn some_port_granted(granted: &[Grant], protocol: Protocol, target: Option<u16>) -> bool {
    granted.iter().any(|grant| match grant {
        Grant::Everything => true,
        Grant::Icmp => false,
        Grant::Ports(of, first, last) => {
            *of == protocol && target.is_none_or(|number| *first <= number && number <= *last)
        }
    })
}

/// What a `service` peer grants at one of its ClusterIPs or endpoint addresses.
fn at_service(cluster: &Cluster, name: &NsName, ports: &Ports, address: IpAddr) -> Vec<Grant> {
    let Some(service) = cluster.services.get(name) else { return Vec::new() };
    if service.external_name.is_some() {
        return Vec::new();
    }
    let mut granted = Vec::new();
    if service.cluster_ips.contains(&address) {
        match ports {
            Ports::All => granted.push(Grant::Everything),
            Ports::List(list) => {
                for spec in list {
                    if spec.protocol == Protocol::Icmp {
                        granted.push(Grant::Icmp);
                    }
                    for port in service_ports(service, spec) {
                        granted.push(Grant::Ports(port.protocol, port.port, port.port));
                    }
                }
            }
        }
    }
    for slice in slices_of(cluster, name) {
        if !slice.addresses.contains(&address) {
            continue;
        }
        let Ports::List(list) = ports else {
            granted.push(Grant::Everything);
            continue;
        };
        for spec in list {
            if spec.protocol == Protocol::Icmp {
                granted.push(Grant::Icmp);
            }
            for port in service_ports(service, spec) {
                for behind in &slice.ports {
                    if behind.name == port.name && behind.protocol == port.protocol {
                        let (first, last) = match behind.port {
                            Some(number) => (number, number),
                            None => (0, u16::MAX),
                        };
                        granted.push(Grant::Ports(behind.protocol, first, last));
                    }
                }
            }
        }
    }
    granted
}

/// The ports of a Service that an item of a port list names.
fn service_ports<'a>(service: &'a Service, spec: &PortSpec) -> Vec<&'a ServicePort> {
    let mut named = Vec::new();
    for port in &service.ports {
        let meant = match &spec.port {
            PortMatch::Any => true,
            PortMatch::Range(first, last) => *first <= port.port && port.port <= *last,
            PortMatch::Name(name) => *name == port.name,
        };
        if meant && port.protocol == spec.protocol {
            named.push(port);
        }
    }
    named
}

/// Whether an address lies outside the cluster and is one that can be reached across networks.
fn in_world(cluster: &Cluster, settings: &Settings, address: IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(v4) => {
            let [a, b, _, _] = v4.octets();
            a == 0
                || a == 127
                || (a == 169 && b == 254)
                || (224..=239).contains(&a)
                || v4 == Ipv4Addr::BROADCAST
        }
        IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            v6 == Ipv6Addr::UNSPECIFIED
                || v6 == Ipv6Addr::LOCALHOST
                || (0xfe80..=0xfebf).contains(&first)
                || first >= 0xff00
        }
    };
    let metadata = ["169.254.169.254", "100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254"]
        .iter()
        .any(|known| known.parse() == Ok(address));
    let of_nodes = cluster.nodes.values().any(|node| {
        node.addresses.contains(&address) || node.pod_cidrs.iter().any(|net| contains(net, address))
    });
    let of_services = cluster.services.values().any(|service| service.cluster_ips.contains(&address));
    let of_pods = cluster.pods.values().any(|pod| !pod.finished && pod.ips.contains(&address));
    let declared = settings.cluster_cidrs.iter().any(|net| contains(net, address));
    !special && !metadata && !of_nodes && !of_services && !of_pods && !declared
}

/// Whether an address lies in a prefix of its own family.
fn contains(net: &IpNet, address: IpAddr) -> bool {
    common_bits(net, address).is_some_and(|bits| bits == net.prefix_len())
}

/// How many leading bits of a prefix an address shares, at most the prefix's length; none if the families differ.
fn common_bits(net: &IpNet, address: IpAddr) -> Option<u8> {
    let differing = match (net.addr(), address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u32::from(a) ^ u32::from(b)).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a) ^ u128::from(b)).leading_zeros(),
        _ => return None,
    };
    let shared = u8::try_from(differing).expect("an address has at most 128 bits");
    Some(shared.min(net.prefix_len()))
}

/// Whether labels satisfy every part of a selector.
fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    for (key, value) in &selector.match_labels {
        if labels.get(key) != Some(value.as_str()) {
            return false;
        }
    }
    for requirement in &selector.match_expressions {
        let present = labels.get(&requirement.key);
        let holds = match &requirement.operator {
            Operator::In(values) => present.is_some_and(|value| values.iter().any(|one| one == value)),
            Operator::NotIn(values) => present.is_none_or(|value| values.iter().all(|one| one != value)),
            Operator::Exists => present.is_some(),
            Operator::DoesNotExist => present.is_none(),
        };
        if !holds {
            return false;
        }
    }
    true
}

/// Every way in which an allow rule of a policy that selects the pod missed the flow.
fn clause_misses(
    question: &Question<'_>,
    policy: &Policy,
    clause: &Clause,
    now: u64,
    overruled: Option<&RuleName>,
    verdict: Verdict,
) -> Vec<NearMiss> {
    let widens = verdict == Verdict::Audit || !clause.audit;
    let mut reasons = Vec::new();
    if matches(question, policy, clause) {
        reasons.extend(match (clause.expires, overruled) {
            (Some(end), _) if now >= end => widens.then_some(MissReason::Expired(end)),
            _ if !widens => Some(MissReason::AuditOnly),
            (_, Some(rule)) => Some(MissReason::Overruled(rule.clone())),
            (_, None) => None,
        });
    } else if widens && clause.is_active(now) {
        for peer in &clause.peers {
            reasons.extend(peer_miss(question, policy, peer, &clause.ports));
        }
    }
    reasons.into_iter().map(|why| NearMiss { rule: clause.name.clone(), why }).collect()
}

/// Why a peer of a rule that does not match the flow missed it, if it came near at all.
fn peer_miss(question: &Question<'_>, policy: &Policy, peer: &Peer, ports: &Ports) -> Option<MissReason> {
    let to = question.flow.destination;
    if let Peer::Pods { namespaces, pods } = peer {
        let selected = selected_pods(question.cluster, policy, namespaces.as_ref(), pods.as_ref());
        if behind_cluster_ip(question, &selected) {
            return Some(MissReason::SomeEndpoints);
        }
    }
    if grants(question, policy, peer, ports, Effect::Allow)
        .iter()
        .any(|grant| grant.has_protocol(question.flow))
    {
        return Some(MissReason::Port);
    }
    if !grants(question, policy, peer, &Ports::All, Effect::Allow).is_empty() {
        return Some(named_port_or_protocol(question, ports));
    }
    match peer {
        Peer::Pods { .. } => {
            let a_pod = question.cluster.pods.values().any(|pod| !pod.finished && pod.ips.contains(&to));
            a_pod.then_some(MissReason::PodNotSelected)
        }
        Peer::Cidrs { cidrs, except } => {
            if cidrs.iter().any(|net| contains(net, to)) {
                let carved = except.iter().find(|net| contains(net, to))?;
                return Some(MissReason::Except(*carved));
            }
            nearest(cidrs, to)
        }
        Peer::Cloud(cloud) => nearest(&cloud.cidrs, to),
        Peer::Unresolved(_) => Some(MissReason::Unresolved),
        Peer::Any | Peer::Service(_) | Peer::Entity(_) => None,
    }
}

/// Says which of several prefixes, none of which contains an address, has most bits in common with it.
fn nearest(cidrs: &[IpNet], to: IpAddr) -> Option<MissReason> {
    let mut nearest: Option<(IpNet, u8)> = None;
    for net in cidrs {
        let Some(bits) = common_bits(net, to) else { continue };
        if nearest.is_none_or(|(_, most)| bits > most) {
            nearest = Some((*net, bits));
        }
    }
    nearest.map(|(nearest, common_bits)| MissReason::Address { nearest, common_bits })
}

/// A port is what missed where the list names the flow's protocol at all, otherwise the protocol.
fn named_port_or_protocol(question: &Question<'_>, ports: &Ports) -> MissReason {
    let named = match ports {
        Ports::All => true,
        Ports::List(list) => {
            let wanted = question.flow.protocol;
            list.iter().any(|spec| wire_number(spec.protocol, question.flow.destination) == wanted)
        }
    };
    if named { MissReason::Port } else { MissReason::Protocol }
}

/// Whether the flow goes to a service port at a ClusterIP behind which at least one of these pods stands.
fn behind_cluster_ip(question: &Question<'_>, selected: &[&Pod]) -> bool {
    let to = question.flow.destination;
    question.cluster.services.iter().filter(|(_, service)| service.cluster_ips.contains(&to)).any(
        |(name, service)| {
            service.ports.iter().any(|port| {
                wire_number(port.protocol, to) == question.flow.protocol
                    && port.port == question.flow.port
                    && endpoints_behind(question.cluster, name, port, to)
                        .iter()
                        .any(|(endpoint, _)| selected.iter().any(|pod| pod.ips.contains(endpoint)))
            })
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{
        cluster::{EndpointPort, Local, NamedPort, Node},
        model::{Governance, Requirement, Rule, Unresolved},
    };

    const NOW: u64 = 1_800_000_000;
    const TCP: u8 = 6;
    const UDP: u8 = 17;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn label(key: &str, value: &str) -> LabelSelector {
        LabelSelector {
            match_labels: vec![(key.to_owned(), value.to_owned())],
            match_expressions: Vec::new(),
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("a literal address")
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("a literal prefix")).collect()
    }

    fn cidrs(texts: &[&str]) -> Peer {
        Peer::Cidrs { cidrs: nets(texts), except: Vec::new() }
    }

    fn tcp(ports: &[u16]) -> Ports {
        Ports::List(
            ports
                .iter()
                .map(|port| PortSpec { protocol: Protocol::Tcp, port: PortMatch::Range(*port, *port) })
                .collect(),
        )
    }

    fn tcp_named(name: &str) -> Ports {
        Ports::List(vec![PortSpec { protocol: Protocol::Tcp, port: PortMatch::Name(name.to_owned()) }])
    }

    fn any_of(protocol: Protocol) -> Ports {
        Ports::List(vec![PortSpec { protocol, port: PortMatch::Any }])
    }

    fn rule(name: &str, effect: Effect, peer: Peer, ports: Ports) -> Rule {
        Rule {
            name: name.to_owned(),
            effect,
            peers: vec![peer],
            ports,
            expires: None,
            governance: Governance::default(),
        }
    }

    fn allow(name: &str, peer: Peer, ports: Ports) -> Rule {
        rule(name, Effect::Allow, peer, ports)
    }

    fn until(end: u64, mut rule: Rule) -> Rule {
        rule.expires = Some(end);
        rule
    }

    /// A policy in namespace `shop` that enforces, denies by default and selects every pod.
    fn policy(name: &str, rules: Vec<Rule>) -> Policy {
        Policy {
            id: PolicyId { kind: PolicyKind::ConfigMap, id: NsName::new("shop", name) },
            mode: Mode::Enforce,
            default_action: DefaultAction::Deny,
            selector: LabelSelector::default(),
            cluster_dns: true,
            own_node: false,
            rules,
        }
    }

    fn network_policy(name: &str, rules: Vec<Rule>) -> Policy {
        let mut policy = policy(name, rules);
        policy.id.kind = PolicyKind::NetworkPolicy;
        policy.cluster_dns = false;
        policy.own_node = true;
        policy
    }

    fn audited(mut policy: Policy) -> Policy {
        policy.mode = Mode::Audit;
        policy
    }

    fn open(mut policy: Policy) -> Policy {
        policy.default_action = DefaultAction::Allow;
        policy
    }

    fn pod(node: &str, ips: &[&str], of: &[(&str, &str)]) -> Pod {
        Pod {
            labels: labels(of),
            ips: ips.iter().map(|text| ip(text)).collect(),
            ports: vec![NamedPort { name: "http".to_owned(), protocol: Protocol::Tcp, port: 8080 }].into(),
            local: Some(Box::new(Local { node: node.to_owned(), ..Local::default() })),
            ..Pod::default()
        }
    }

    fn service(ips: &[&str], ports: &[(&str, Protocol, u16)]) -> Service {
        Service {
            cluster_ips: ips.iter().map(|text| ip(text)).collect(),
            ports: ports
                .iter()
                .map(|(name, protocol, port)| ServicePort {
                    name: (*name).to_owned(),
                    protocol: *protocol,
                    port: *port,
                })
                .collect(),
            external_name: None,
        }
    }

    fn slice(service: &str, ports: &[(&str, Protocol, Option<u16>)], addresses: &[&str]) -> EndpointSlice {
        EndpointSlice {
            service: service.to_owned(),
            ports: ports
                .iter()
                .map(|(name, protocol, port)| EndpointPort {
                    name: (*name).to_owned(),
                    protocol: *protocol,
                    port: *port,
                })
                .collect(),
            addresses: addresses.iter().map(|text| ip(text)).collect(),
        }
    }

    /// Two namespaces on two nodes. `shop/front` asks; `shop/back` and `data/db` (twice) answer.
    fn cluster(policies: Vec<Policy>) -> Cluster {
        let mut cluster = Cluster::default();
        cluster.namespaces.insert("shop".to_owned(), labels(&[("team", "x")]));
        cluster.namespaces.insert("data".to_owned(), labels(&[("team", "y")]));
        for (name, pod) in [
            (NsName::new("shop", "front"), pod("n1", &["10.0.0.1", "fd00::1"], &[("app", "front")])),
            (NsName::new("shop", "back"), pod("n2", &["10.0.0.2", "fd00::2"], &[("app", "back")])),
            (NsName::new("data", "db-0"), pod("n1", &["10.0.0.3"], &[("app", "db"), ("role", "leader")])),
            (NsName::new("data", "db-1"), pod("n2", &["10.0.0.4"], &[("app", "db")])),
        ] {
            cluster.pods.insert(name, pod);
        }
        for (name, address, net) in
            [("n1", "172.16.0.1", "10.0.0.0/25"), ("n2", "172.16.0.2", "10.0.0.128/25")]
        {
            let node = Node { addresses: vec![ip(address)], pod_cidrs: nets(&[net]) };
            cluster.nodes.insert(name.to_owned(), node);
        }
        let dns =
            [("dns", Protocol::Udp, 53), ("dns-tcp", Protocol::Tcp, 53), ("metrics", Protocol::Tcp, 9153)];
        cluster.services.insert(NsName::new("kube-system", "kube-dns"), service(&["10.96.0.10"], &dns));
        let behind = [("dns", Protocol::Udp, Some(5353)), ("dns-tcp", Protocol::Tcp, Some(5353))];
        let dns_slice = slice("kube-dns", &behind, &["10.0.0.200"]);
        cluster.slices.insert(NsName::new("kube-system", "kube-dns-1"), dns_slice);
        cluster
            .services
            .insert(NsName::new("data", "db"), service(&["10.96.0.20"], &[("sql", Protocol::Tcp, 5432)]));
        let db_slice = slice("db", &[("sql", Protocol::Tcp, Some(15432))], &["10.0.0.3", "10.0.0.4"]);
        cluster.slices.insert(NsName::new("data", "db-1"), db_slice);
        cluster.services.insert(
            NsName::new("default", "kubernetes"),
            service(&["10.96.0.1"], &[("https", Protocol::Tcp, 443)]),
        );
        let api_slice = slice("kubernetes", &[("https", Protocol::Tcp, Some(6443))], &["172.16.0.9"]);
        cluster.slices.insert(NsName::new("default", "kubernetes"), api_slice);
        for policy in policies {
            cluster.policies.insert(policy.id.clone(), Arc::new(policy));
        }
        cluster
    }

    fn front() -> NsName {
        NsName::new("shop", "front")
    }

    fn flow(to: &str, protocol: u8, port: u16) -> Flow {
        Flow { destination: ip(to), protocol, port }
    }

    /// The answer to `shop/front` as `verdict reason policy/part`.
    fn ask_with(
        cluster: &Cluster,
        settings: &Settings,
        to: &str,
        protocol: u8,
        port: u16,
        now: u64,
    ) -> String {
        let answer =
            reference(cluster, settings, &front(), &flow(to, protocol, port), now).expect("the pod exists");
        let rule = answer.rule.map(|rule| format!(" {}:{}", rule.policy, rule.part.as_str()));
        format!("{} {}{}", answer.verdict.as_str(), answer.reason.as_str(), rule.as_deref().unwrap_or(""))
    }

    fn ask(cluster: &Cluster, to: &str, protocol: u8, port: u16) -> String {
        ask_with(cluster, &Settings::default(), to, protocol, port, NOW)
    }

    #[test]
    fn rule_1_a_pod_is_governed_when_a_policy_selects_it_or_its_namespace_says_so() {
        let mut elsewhere = policy("p", vec![]);
        elsewhere.id.id.namespace = "data".to_owned();
        let mut of_others = policy("q", vec![]);
        of_others.selector = label("app", "back");
        let network = network_policy("n", vec![]);
        let none = cluster(vec![elsewhere, of_others, network]);
        assert_eq!(ask(&none, "192.0.2.1", TCP, 80), "allow ungoverned");
        assert_eq!(
            ask(&none, "127.0.0.1", TCP, 80),
            "allow ungoverned",
            "nobody asks where an ungoverned pod sends"
        );

        let enforced = Settings { enforce_network_policy: true, ..Settings::default() };
        assert_eq!(
            ask_with(&none, &enforced, "192.0.2.1", TCP, 80, NOW),
            "deny default_deny shop/n (NetworkPolicy):(default)"
        );
        let governed = Settings { governed_namespaces: ["shop".to_owned()].into(), ..Settings::default() };
        assert_eq!(
            ask_with(&none, &governed, "192.0.2.1", TCP, 80, NOW),
            "deny default_deny shop (governed namespace):(default)"
        );
        assert_eq!(
            ask_with(&none, &governed, "10.96.0.10", UDP, 53, NOW),
            "allow allowed_destination shop (governed namespace):(cluster-dns)"
        );
        let only_audit = cluster(vec![audited(policy("p", vec![allow("all", Peer::Any, Ports::All)]))]);
        assert_eq!(
            ask_with(&only_audit, &governed, "192.0.2.1", TCP, 80, NOW),
            "deny default_deny shop (governed namespace):(default)",
            "an audit policy does not lift a governed namespace's default"
        );
        let one_open = cluster(vec![open(policy("p", vec![]))]);
        assert_eq!(ask_with(&one_open, &governed, "192.0.2.1", TCP, 80, NOW), "allow default_allow");

        let mut host = cluster(vec![policy("p", vec![])]);
        assert!(host.pods.change(&front(), |pod| pod.host_network = true));
        assert_eq!(ask(&host, "192.0.2.1", TCP, 80), "deny default_deny shop/p:(default)");
        assert!(host.pods.change(&front(), |pod| pod.finished = true));
        assert_eq!(ask(&host, "192.0.2.1", TCP, 80), "allow ungoverned");
    }

    #[test]
    fn rule_2_allows_add_up_one_default_deny_suffices_and_a_denied_destination_beats_every_allow() {
        let cluster = cluster(vec![
            open(policy("a", vec![allow("web", cidrs(&["192.0.2.0/24"]), tcp(&[80]))])),
            policy(
                "b",
                vec![
                    allow("tls", cidrs(&["192.0.2.0/24"]), tcp(&[443])),
                    rule("not-one", Effect::Deny, cidrs(&["192.0.2.1/32"]), Ports::All),
                ],
            ),
        ]);
        assert_eq!(ask(&cluster, "192.0.2.2", TCP, 80), "allow allowed_destination shop/a:web");
        assert_eq!(ask(&cluster, "192.0.2.2", TCP, 443), "allow allowed_destination shop/b:tls");
        assert_eq!(ask(&cluster, "192.0.2.2", TCP, 81), "deny default_deny shop/b:(default)");
        assert_eq!(ask(&cluster, "192.0.2.1", TCP, 80), "deny denied_destination shop/b:not-one");
    }

    #[test]
    fn rule_3_an_audit_policy_reports_and_never_widens() {
        let lone = cluster(vec![audited(policy(
            "p",
            vec![
                allow("web", cidrs(&["192.0.2.0/24"]), Ports::All),
                rule("no", Effect::Deny, cidrs(&["192.0.2.9/32"]), Ports::All),
            ],
        ))]);
        assert_eq!(ask(&lone, "198.51.100.1", TCP, 80), "audit default_deny shop/p:(default)");
        assert_eq!(ask(&lone, "192.0.2.1", TCP, 80), "allow allowed_destination shop/p:web");
        assert_eq!(ask(&lone, "192.0.2.9", TCP, 80), "audit denied_destination shop/p:no");

        let beside = cluster(vec![
            audited(policy(
                "a",
                vec![
                    allow("wide", cidrs(&["0.0.0.0/0"]), Ports::All),
                    rule("no", Effect::Deny, cidrs(&["192.0.2.9/32"]), Ports::All),
                ],
            )),
            policy("e", vec![allow("web", cidrs(&["192.0.2.0/24"]), Ports::All)]),
        ]);
        assert_eq!(ask(&beside, "198.51.100.1", TCP, 80), "deny default_deny shop/e:(default)");
        assert_eq!(ask(&beside, "192.0.2.1", TCP, 80), "allow allowed_destination shop/e:web");
        assert_eq!(ask(&beside, "192.0.2.9", TCP, 80), "audit denied_destination shop/a:no");

        let permissive = cluster(vec![audited(policy("a", vec![])), open(policy("e", vec![]))]);
        assert_eq!(ask(&permissive, "198.51.100.1", TCP, 80), "audit default_deny shop/a:(default)");
    }

    #[test]
    fn rule_4_the_model_judges_what_the_pod_starts_whatever_source_it_has() {
        // Replies are the datapath's business: here a flow is what a pod starts, so the opposite direction grants nothing.
        let mut cluster = cluster(vec![policy("p", vec![])]);
        let mut inviting =
            policy("q", vec![allow("front", Peer::Pods { namespaces: None, pods: None }, Ports::All)]);
        inviting.selector = label("app", "back");
        cluster.policies.insert(inviting.id.clone(), Arc::new(inviting));
        assert_eq!(ask(&cluster, "10.0.0.2", TCP, 8080), "deny default_deny shop/p:(default)");
    }

    #[test]
    fn rule_5_loopback_own_addresses_and_cluster_dns_pass_node_and_metadata_do_not() {
        let deny_all = rule("none", Effect::Deny, Peer::Any, Ports::All);
        let strict = cluster(vec![policy("p", vec![deny_all])]);
        for own in ["127.0.0.1", "127.255.255.255", "::1", "10.0.0.1", "fd00::1"] {
            assert_eq!(ask(&strict, own, TCP, 80), "allow local", "{own}");
        }
        assert_eq!(ask(&strict, "::2", TCP, 80), "deny denied_destination shop/p:none");

        let cluster = cluster(vec![policy("p", vec![])]);
        assert_eq!(ask(&cluster, "10.96.0.10", UDP, 53), "allow allowed_destination shop/p:(cluster-dns)");
        assert_eq!(ask(&cluster, "10.96.0.10", TCP, 53), "allow allowed_destination shop/p:(cluster-dns)");
        assert_eq!(ask(&cluster, "10.96.0.10", TCP, 9153), "deny default_deny shop/p:(default)");
        assert_eq!(ask(&cluster, "10.0.0.200", UDP, 5353), "allow allowed_destination shop/p:(cluster-dns)");
        assert_eq!(ask(&cluster, "10.0.0.200", UDP, 53), "deny default_deny shop/p:(default)");
        assert_eq!(ask(&cluster, "172.16.0.1", TCP, 10250), "deny default_deny shop/p:(default)");
        assert_eq!(ask(&cluster, "169.254.169.254", TCP, 80), "deny default_deny shop/p:(default)");
        let cache = Settings { cluster_dns_addresses: vec![ip("169.254.20.10")], ..Settings::default() };
        assert_eq!(
            ask_with(&cluster, &cache, "169.254.20.10", UDP, 53, NOW),
            "allow allowed_destination shop/p:(cluster-dns)"
        );
        let mut without = cluster;
        without.policies.clear();
        let mut no_dns = policy("p", vec![]);
        no_dns.cluster_dns = false;
        without.policies.insert(no_dns.id.clone(), Arc::new(no_dns));
        assert_eq!(ask(&without, "10.96.0.10", UDP, 53), "deny default_deny shop/p:(default)");
    }

    #[test]
    fn rule_6_service_and_pods_open_cluster_ips_and_endpoints_with_the_right_port_on_each_side() {
        let service = Peer::Service(NsName::new("data", "db"));
        let by_service = cluster(vec![policy("p", vec![allow("db", service.clone(), tcp(&[5432]))])]);
        let allowed = "allow allowed_destination shop/p:db";
        let denied = "deny default_deny shop/p:(default)";
        assert_eq!(ask(&by_service, "10.96.0.20", TCP, 5432), allowed);
        assert_eq!(ask(&by_service, "10.96.0.20", TCP, 15432), denied);
        assert_eq!(ask(&by_service, "10.0.0.3", TCP, 15432), allowed);
        assert_eq!(ask(&by_service, "10.0.0.4", TCP, 5432), denied);
        let by_name = cluster(vec![policy("p", vec![allow("db", service.clone(), tcp_named("sql"))])]);
        assert_eq!(ask(&by_name, "10.96.0.20", TCP, 5432), allowed);
        assert_eq!(ask(&by_name, "10.0.0.3", TCP, 15432), allowed);
        let whole = cluster(vec![policy("p", vec![allow("db", service, Ports::All)])]);
        assert_eq!(ask(&whole, "10.96.0.20", 47, 0), allowed);
        assert_eq!(ask(&whole, "10.0.0.4", UDP, 9), allowed);

        let db = |pods: LabelSelector| Peer::Pods { namespaces: Some(label("team", "y")), pods: Some(pods) };
        let all_pods = cluster(vec![policy("p", vec![allow("db", db(label("app", "db")), tcp(&[15432]))])]);
        assert_eq!(ask(&all_pods, "10.0.0.4", TCP, 15432), allowed);
        assert_eq!(
            ask(&all_pods, "10.96.0.20", TCP, 5432),
            allowed,
            "every endpoint is allowed, so the ClusterIP is"
        );
        let wrong_side = cluster(vec![policy("p", vec![allow("db", db(label("app", "db")), tcp(&[5432]))])]);
        assert_eq!(
            ask(&wrong_side, "10.96.0.20", TCP, 5432),
            denied,
            "a pods rule names the port of the pod"
        );
        let leader =
            cluster(vec![policy("p", vec![allow("db", db(label("role", "leader")), tcp(&[15432]))])]);
        assert_eq!(ask(&leader, "10.0.0.3", TCP, 15432), allowed);
        assert_eq!(ask(&leader, "10.96.0.20", TCP, 5432), denied, "the other endpoint is not allowed");
        let named =
            cluster(vec![policy("p", vec![allow("db", db(LabelSelector::default()), tcp_named("http"))])]);
        assert_eq!(ask(&named, "10.0.0.3", TCP, 8080), allowed);
        assert_eq!(ask(&named, "10.0.0.3", TCP, 80), denied);
    }

    #[test]
    fn rule_6_a_pods_rule_covers_every_port_endpoint_only_with_every_port() {
        let peer = || Peer::Pods { namespaces: Some(LabelSelector::default()), pods: None };
        let full_range =
            Ports::List(vec![PortSpec { protocol: Protocol::Tcp, port: PortMatch::Range(1, u16::MAX) }]);
        for (ports, expected) in [
            (Ports::All, "allow allowed_destination shop/p:db"),
            (any_of(Protocol::Tcp), "allow allowed_destination shop/p:db"),
            (any_of(Protocol::Udp), "deny default_deny shop/p:(default)"),
            (tcp(&[15432]), "deny default_deny shop/p:(default)"),
            (full_range, "deny default_deny shop/p:(default)"),
        ] {
            let mut cluster = cluster(vec![policy("p", vec![allow("db", peer(), ports.clone())])]);
            let slice = slice("db", &[("sql", Protocol::Tcp, None)], &["10.0.0.3", "10.0.0.4"]);
            cluster.slices.insert(NsName::new("data", "db-1"), slice);
            assert_eq!(ask(&cluster, "10.96.0.20", TCP, 5432), expected, "{ports:?}");
            cluster.slices.clear();
            assert_eq!(
                ask(&cluster, "10.96.0.20", TCP, 5432),
                "deny default_deny shop/p:(default)",
                "nothing is behind"
            );
        }
    }

    #[test]
    fn rule_7_narrow_prefixes_inherit_and_an_exception_denies_nothing_of_another_rule() {
        let carved = Peer::Cidrs {
            cidrs: nets(&["10.0.0.0/8", "fd00::/16"]),
            except: nets(&["10.9.0.0/16", "fd00:9::/32"]),
        };
        let cluster = cluster(vec![policy(
            "p",
            vec![
                allow("wide", carved, tcp(&[80])),
                allow("narrow", cidrs(&["10.8.0.0/24"]), tcp(&[443])),
                allow("inside", cidrs(&["10.9.1.0/24"]), tcp(&[22])),
            ],
        )]);
        assert_eq!(ask(&cluster, "10.8.0.1", TCP, 80), "allow allowed_destination shop/p:wide");
        assert_eq!(ask(&cluster, "10.8.0.1", TCP, 443), "allow allowed_destination shop/p:narrow");
        assert_eq!(ask(&cluster, "10.9.1.1", TCP, 80), "deny default_deny shop/p:(default)");
        assert_eq!(ask(&cluster, "10.9.1.1", TCP, 22), "allow allowed_destination shop/p:inside");
        assert_eq!(ask(&cluster, "10.8.255.255", TCP, 80), "allow allowed_destination shop/p:wide");
        assert_eq!(ask(&cluster, "10.10.0.0", TCP, 80), "allow allowed_destination shop/p:wide");
        assert_eq!(ask(&cluster, "fd00:8::1", TCP, 80), "allow allowed_destination shop/p:wide");
        assert_eq!(ask(&cluster, "fd00:9::1", TCP, 80), "deny default_deny shop/p:(default)");
    }

    #[test]
    fn rule_8_icmp_needs_its_name_or_no_ports_and_families_are_apart() {
        let cluster = cluster(vec![policy(
            "p",
            vec![
                allow("ping", cidrs(&["192.0.2.0/24", "2001:db8::/32"]), any_of(Protocol::Icmp)),
                allow("ports", cidrs(&["198.51.100.0/24"]), any_of(Protocol::Tcp)),
                allow("all", cidrs(&["203.0.113.0/24"]), Ports::All),
            ],
        )]);
        let denied = "deny default_deny shop/p:(default)";
        assert_eq!(ask(&cluster, "192.0.2.1", 1, 0), "allow allowed_destination shop/p:ping");
        assert_eq!(ask(&cluster, "192.0.2.1", 58, 0), denied);
        assert_eq!(ask(&cluster, "2001:db8::1", 58, 0), "allow allowed_destination shop/p:ping");
        assert_eq!(ask(&cluster, "2001:db8::1", 1, 0), denied);
        assert_eq!(ask(&cluster, "192.0.2.1", TCP, 80), denied);
        assert_eq!(ask(&cluster, "198.51.100.1", 1, 0), denied);
        assert_eq!(ask(&cluster, "198.51.100.1", TCP, 0), "allow allowed_destination shop/p:ports");
        assert_eq!(ask(&cluster, "203.0.113.1", 1, 0), "allow allowed_destination shop/p:all");
        assert_eq!(ask(&cluster, "203.0.113.1", 47, 0), "allow allowed_destination shop/p:all");
        let zero = super::tests::cluster(vec![policy("p", vec![allow("v6", cidrs(&["::/0"]), Ports::All)])]);
        assert_eq!(ask(&zero, "192.0.2.1", TCP, 80), denied, "an IPv6 prefix never holds an IPv4 address");
    }

    #[test]
    fn rule_9_an_expired_entry_matches_nothing_from_its_second_on() {
        let cluster = cluster(vec![policy(
            "p",
            vec![
                until(NOW, allow("short", cidrs(&["192.0.2.0/24"]), Ports::All)),
                until(NOW + 1, allow("long", cidrs(&["192.0.2.0/25"]), Ports::All)),
                until(NOW + 1, rule("no", Effect::Deny, cidrs(&["198.51.100.0/24"]), Ports::All)),
                allow("yes", cidrs(&["198.51.100.0/24"]), Ports::All),
            ],
        )]);
        let at = |to, now| ask_with(&cluster, &Settings::default(), to, TCP, 80, now);
        assert_eq!(at("192.0.2.200", NOW - 1), "allow allowed_destination shop/p:short");
        assert_eq!(at("192.0.2.200", NOW), "deny expired shop/p:short");
        assert_eq!(
            at("192.0.2.1", NOW - 1),
            "allow allowed_destination shop/p:long",
            "the one that lives longest is named"
        );
        assert_eq!(at("192.0.2.1", NOW), "allow allowed_destination shop/p:long");
        assert_eq!(at("192.0.2.1", NOW + 1), "deny expired shop/p:long");
        assert_eq!(at("198.51.100.1", NOW), "deny denied_destination shop/p:no");
        assert_eq!(at("198.51.100.1", NOW + 1), "allow allowed_destination shop/p:yes");

        let ended = until(NOW, allow("web", cidrs(&["192.0.2.0/24"]), Ports::All));
        let audit = super::tests::cluster(vec![audited(policy("p", vec![ended.clone()]))]);
        assert_eq!(ask(&audit, "192.0.2.1", TCP, 80), "audit expired shop/p:web");
        let open = super::tests::cluster(vec![open(policy("p", vec![ended]))]);
        assert_eq!(ask(&open, "192.0.2.1", TCP, 80), "allow default_allow");
    }

    #[test]
    fn rule_10_answers_depend_on_the_present_state_alone() {
        let mut cluster =
            cluster(vec![policy("p", vec![allow("web", cidrs(&["192.0.2.0/24"]), Ports::All)])]);
        assert_eq!(ask(&cluster, "192.0.2.1", TCP, 80), "allow allowed_destination shop/p:web");
        let changed = policy("p", vec![]);
        cluster.policies.insert(changed.id.clone(), Arc::new(changed));
        assert_eq!(ask(&cluster, "192.0.2.1", TCP, 80), "deny default_deny shop/p:(default)");
    }

    #[test]
    fn rule_11_an_invalid_config_map_without_a_good_version_denies_by_default() {
        let mut cluster = cluster(vec![audited(policy("watch", vec![]))]);
        cluster.broken.insert(NsName::new("shop", "bad"));
        cluster.broken.insert(NsName::new("data", "other"));
        assert_eq!(ask(&cluster, "192.0.2.1", TCP, 80), "deny default_deny shop/bad:(default)");
        assert_eq!(ask(&cluster, "10.96.0.10", UDP, 53), "allow allowed_destination shop/bad:(cluster-dns)");
        let ignore = Settings { invalid_policy: InvalidPolicy::Ignore, ..Settings::default() };
        assert_eq!(
            ask_with(&cluster, &ignore, "192.0.2.1", TCP, 80, NOW),
            "audit default_deny shop/watch:(default)"
        );
        let governed = Settings { governed_namespaces: ["shop".to_owned()].into(), ..Settings::default() };
        assert_eq!(
            ask_with(&cluster, &governed, "192.0.2.1", TCP, 80, NOW),
            "deny default_deny shop/bad:(default)",
            "a broken policy enforces, so the namespace's own default stays away"
        );
    }

    #[test]
    fn rule_12_network_policies_reach_the_own_node_spare_host_network_pods_and_unite_with_the_rest() {
        let everyone = Peer::Pods { namespaces: Some(LabelSelector::default()), pods: None };
        let mut cluster = cluster(vec![
            network_policy("n", vec![allow("egress[0]", everyone.clone(), Ports::All)]),
            policy("p", vec![allow("web", cidrs(&["192.0.2.0/24"]), Ports::All)]),
        ]);
        let host = Pod { host_network: true, ..pod("n2", &["172.16.0.2"], &[]) };
        cluster.pods.insert(NsName::new("data", "host"), host);
        let settings = Settings { enforce_network_policy: true, ..Settings::default() };
        let at = |cluster: &Cluster, to| ask_with(cluster, &settings, to, TCP, 80, NOW);
        assert_eq!(at(&cluster, "172.16.0.1"), "allow allowed_destination shop/n (NetworkPolicy):(own-node)");
        assert_eq!(at(&cluster, "172.16.0.2"), "deny default_deny shop/p:(default)");
        assert_eq!(at(&cluster, "10.0.0.4"), "allow allowed_destination shop/n (NetworkPolicy):egress[0]");
        assert_eq!(at(&cluster, "192.0.2.1"), "allow allowed_destination shop/p:web");
        let own = policy("p", vec![allow("pods", everyone, Ports::All)]);
        cluster.policies.insert(own.id.clone(), Arc::new(own));
        assert_eq!(at(&cluster, "172.16.0.2"), "allow allowed_destination shop/p:pods");
        assert!(cluster.pods.change(&NsName::new("data", "db-1"), |pod| pod.finished = true));
        assert_eq!(
            at(&cluster, "10.0.0.4"),
            "deny default_deny shop/p:(default)",
            "a finished pod is nobody's peer"
        );
    }

    #[test]
    fn entities_mean_their_roles() {
        let of = |entity| cluster(vec![policy("p", vec![allow("e", Peer::Entity(entity), Ports::All)])]);
        let allowed = "allow allowed_destination shop/p:e";
        let denied = "deny default_deny shop/p:(default)";
        let api = of(Entity::KubeApiserver);
        assert_eq!(ask(&api, "10.96.0.1", TCP, 443), allowed);
        assert_eq!(ask(&api, "172.16.0.9", TCP, 6443), allowed);
        let node = of(Entity::Node);
        assert_eq!(ask(&node, "172.16.0.1", TCP, 10250), allowed);
        assert_eq!(ask(&node, "172.16.0.2", TCP, 10250), denied);
        let world = of(Entity::World);
        for (to, expected) in [
            ("192.0.2.1", allowed),
            ("2001:db8::1", allowed),
            ("1.0.0.0", allowed),
            ("223.255.255.255", allowed),
            ("240.0.0.0", allowed),
            ("10.0.0.130", denied),
            ("172.16.0.2", denied),
            ("10.96.0.20", denied),
            ("fd00::2", denied),
            ("0.0.0.1", denied),
            ("169.254.169.254", denied),
            ("239.255.255.255", denied),
            ("255.255.255.255", denied),
            ("::", denied),
            ("fe80::1", denied),
            ("febf::1", denied),
            ("fec0::1", allowed),
            ("ff02::1", denied),
            ("fd00:ec2::254", denied),
            ("fd00:ec2::253", allowed),
            ("fd20:ce::254", denied),
            ("fd20:ce::255", allowed),
            ("100.100.100.200", denied),
            ("100.100.100.201", allowed),
            ("168.63.129.16", denied),
            ("168.63.129.17", allowed),
        ] {
            assert_eq!(ask(&world, to, TCP, 443), expected, "{to}");
        }
        let declared = Settings { cluster_cidrs: nets(&["192.0.2.0/25"]), ..Settings::default() };
        assert_eq!(ask_with(&world, &declared, "192.0.2.127", TCP, 443, NOW), denied);
        assert_eq!(ask_with(&world, &declared, "192.0.2.128", TCP, 443, NOW), allowed);
    }

    #[test]
    fn selectors_mean_what_kubernetes_says() {
        let require = |key: &str, operator| LabelSelector {
            match_labels: Vec::new(),
            match_expressions: vec![Requirement { key: key.to_owned(), operator }],
        };
        let of = labels(&[("app", "front")]);
        let values = |value: &str| vec![value.to_owned(), "other".to_owned()];
        for (selector, expected) in [
            (LabelSelector::default(), true),
            (label("app", "front"), true),
            (label("app", "back"), false),
            (require("app", Operator::In(values("front"))), true),
            (require("tier", Operator::In(values("front"))), false),
            (require("app", Operator::NotIn(values("front"))), false),
            (require("tier", Operator::NotIn(values("front"))), true),
            (require("app", Operator::Exists), true),
            (require("tier", Operator::Exists), false),
            (require("tier", Operator::DoesNotExist), true),
            (require("app", Operator::DoesNotExist), false),
        ] {
            assert_eq!(selects(&selector, &of), expected, "{selector:?}");
        }
        let empty = Cluster::default();
        assert_eq!(namespace_labels(&empty, "x"), labels(&[("kubernetes.io/metadata.name", "x")]));
    }

    #[test]
    fn a_pod_that_is_not_there_is_an_error() {
        let cluster = cluster(vec![]);
        let nobody = NsName::new("shop", "nobody");
        let asked = reference(&cluster, &Settings::default(), &nobody, &flow("192.0.2.1", TCP, 80), NOW);
        assert_eq!(asked, Err(ReferenceError::UnknownPod(nobody)));
    }

    #[test]
    fn near_misses_are_ranked_and_explained() {
        let near = |rules: Vec<Rule>, to: &str, protocol, port| {
            let cluster = cluster(vec![policy("p", rules)]);
            let found =
                nearest_allow(&cluster, &Settings::default(), &front(), &flow(to, protocol, port), NOW);
            found.expect("the pod exists").map(|miss| (miss.rule.part.as_str().to_owned(), miss.why))
        };
        let all = || {
            vec![
                allow(
                    "later",
                    Peer::Unresolved(Unresolved::Domains(vec!["example.com".to_owned()])),
                    Ports::All,
                ),
                allow("far", cidrs(&["192.0.0.0/24"]), Ports::All),
                allow("near", cidrs(&["192.0.2.128/25"]), Ports::All),
                allow("udp", cidrs(&["192.0.2.0/29"]), any_of(Protocol::Udp)),
                allow("tls", cidrs(&["192.0.2.0/30"]), tcp(&[443])),
                until(NOW, allow("old", cidrs(&["192.0.2.1/32"]), Ports::All)),
            ]
        };
        let nearest = nets(&["192.0.2.0/29"])[0];
        for (to, protocol, port, expected) in [
            ("192.0.2.1", TCP, 80, Some(("old", MissReason::Expired(NOW)))),
            ("192.0.2.2", TCP, 80, Some(("tls", MissReason::Port))),
            ("192.0.2.5", TCP, 80, Some(("udp", MissReason::Protocol))),
            ("192.0.2.9", TCP, 80, Some(("udp", MissReason::Address { nearest, common_bits: 28 }))),
            ("2001:db8::1", TCP, 80, Some(("later", MissReason::Unresolved))),
            ("192.0.2.200", TCP, 80, None),
        ] {
            let expected = expected.map(|(name, why)| (name.to_owned(), why));
            assert_eq!(near(all(), to, protocol, port), expected, "{to}");
        }
        assert_eq!(near(vec![], "192.0.2.1", TCP, 80), None);
        assert_eq!(
            near(vec![], "10.96.0.10", TCP, 9153),
            Some(("(cluster-dns)".to_owned(), MissReason::Port))
        );

        let carved = Peer::Cidrs { cidrs: nets(&["10.0.0.0/8"]), except: nets(&["10.9.0.0/16"]) };
        assert_eq!(
            near(vec![allow("lan", carved, Ports::All)], "10.9.0.1", TCP, 80),
            Some(("lan".to_owned(), MissReason::Except(nets(&["10.9.0.0/16"])[0])))
        );
        let leaders =
            Peer::Pods { namespaces: Some(LabelSelector::default()), pods: Some(label("role", "leader")) };
        let pods = vec![allow("leaders", leaders, Ports::All)];
        assert_eq!(
            near(pods.clone(), "10.0.0.4", TCP, 1),
            Some(("leaders".to_owned(), MissReason::PodNotSelected))
        );
        assert_eq!(
            near(pods, "10.96.0.20", TCP, 5432),
            Some(("leaders".to_owned(), MissReason::SomeEndpoints))
        );
        let beaten = vec![
            allow("web", cidrs(&["192.0.2.0/24"]), Ports::All),
            rule("no", Effect::Deny, cidrs(&["192.0.2.0/24"]), Ports::All),
        ];
        let Some((name, MissReason::Overruled(by))) = near(beaten, "192.0.2.1", TCP, 80) else {
            panic!("an allow that a denied destination beats is overruled");
        };
        assert_eq!((name.as_str(), by.part.as_str()), ("web", "no"));
    }

    #[test]
    fn near_misses_tell_of_policies_that_do_not_count() {
        let web = || vec![allow("web", cidrs(&["192.0.2.0/24"]), Ports::All)];
        let mut of_others = policy("others", web());
        of_others.selector = label("app", "back");
        let to = flow("192.0.2.1", TCP, 80);
        let ask = |policies| {
            let found = nearest_allow(&cluster(policies), &Settings::default(), &front(), &to, NOW);
            found.expect("the pod exists").map(|miss| (miss.rule.policy.to_string(), miss.why))
        };
        assert_eq!(
            ask(vec![policy("p", vec![]), of_others.clone()]),
            Some(("shop/others".to_owned(), MissReason::PolicyDoesNotSelect))
        );
        assert_eq!(
            ask(vec![policy("p", vec![]), of_others, audited(policy("watch", web()))]),
            Some(("shop/watch".to_owned(), MissReason::AuditOnly))
        );
    }
}
