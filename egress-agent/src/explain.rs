//! Answers questions about flows: from the words of a question to addresses, from an engine to a verdict, and from a verdict
//! to a sentence.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::IpAddr,
};

use egress_common::{
    endpoint::Endpoint,
    policy::{ICMP, ICMPV6, NO_RULE, SCTP, TCP, UDP},
    verdict::{Reason, Verdict},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    kernel::program_run::{ProgramRun, RunError},
    policy::{
        cluster::{Cluster, EndpointSlice, NsName, Service, Settings},
        compile::{Compiled, compile_all},
        diff::{self, State, Step, Wanted},
        entries::{Capacities, Full, Numbered},
        flow::{Answer, Flow},
        model::{Mode, PolicyKind, Protocol, RuleName},
        reference::{self, MissReason, ReferenceError},
        simulate::simulate_entries,
    },
};

/// A question, as it stands on a line of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The pod that sends, `namespace/name`.
    pub from: String,
    /// Where to.
    pub to: Target,
    /// Absent means TCP.
    #[serde(default)]
    pub protocol: ProtocolName,
    /// The destination port, for the protocols that have ports.
    pub port: Option<u16>,
    /// Which address of a pod or Service.
    pub family: Option<Family>,
}

/// Where a flow goes to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// An address.
    Ip(IpAddr),
    /// A pod, `namespace/name`.
    Pod(String),
    /// A Service, `namespace/name`.
    Service(String),
}

/// A protocol by its name or number.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum ProtocolName {
    /// Off the wire.
    Number(u64),
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6` or digits.
    Name(String),
}

impl Default for ProtocolName {
    fn default() -> Self {
        Self::Name("TCP".to_owned())
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "ipv4", alias = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "ipv6", alias = "IPv6")]
    V6,
}

impl Family {
    fn has(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Why a question has no answer.
#[derive(Debug, Error)]
pub enum ExplainError {
    /// A name is not `namespace/name`.
    #[error("{0:?} is not a name; write it as namespace/name")]
    Name(String),
    /// Nothing of that name is there.
    #[error("there is no {kind} {name}{}", hint(near))]
    Unknown {
        /// Pod or Service.
        kind: &'static str,
        /// Its name.
        name: NsName,
        /// Names like it.
        near: Vec<NsName>,
    },
    /// It has no address to send to.
    #[error("{kind} {name} has no{} address{why}", family.map_or(String::new(), |family| format!(" {family}")))]
    NoAddress {
        /// Pod or Service.
        kind: &'static str,
        /// Its name.
        name: NsName,
        /// The family asked for.
        family: Option<Family>,
        /// Why, if that is known.
        why: String,
    },
    /// The address is of another family than asked for.
    #[error("{address} is no {family} address")]
    OtherFamily {
        /// The address.
        address: IpAddr,
        /// The family asked for.
        family: Family,
    },
    /// The protocol has no such name.
    #[error("unknown protocol {0:?}; write TCP, UDP, SCTP, ICMP or a number from 0 to 255")]
    Protocol(String),
    /// The number is one of a header between IPv6 and its payload.
    #[error("protocol {0} is an extension header of IPv6, not a protocol")]
    Extension(u8),
    /// TCP, UDP and SCTP have ports.
    #[error("port is missing")]
    NoPort,
    /// The policies of the pod do not fit into the maps.
    #[error(transparent)]
    Full(#[from] Full),
    /// The kernel did not answer.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The model did not answer.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
}

fn hint(near: &[NsName]) -> String {
    match near {
        [] => String::new(),
        near => {
            let names: Vec<String> = near.iter().map(NsName::to_string).collect();
            format!("; did you mean {}?", names.join(" or "))
        }
    }
}

/// A question with its names looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The pod that sends.
    pub pod: NsName,
    /// What it sends.
    pub flow: Flow,
}

/// Reads `namespace/name`.
///
/// # Errors
///
/// When the text is something else.
pub fn namespaced(text: &str) -> Result<NsName, ExplainError> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(NsName::new(namespace, name))
        }
        _ => Err(ExplainError::Name(text.to_owned())),
    }
}

/// Looks up the names of a question.
///
/// # Errors
///
/// When there is nothing of that name, or nothing to send to.
pub fn resolve(cluster: &Cluster, question: &Question) -> Result<Resolved, ExplainError> {
    let pod = namespaced(&question.from)?;
    if !cluster.pods.contains_key(&pod) {
        return Err(unknown("pod", pod, cluster.pods.keys().map(NsName::from)));
    }
    let numbered = match &question.protocol {
        ProtocolName::Number(number) => {
            Named::Number(u8::try_from(*number).map_err(|_| ExplainError::Protocol(number.to_string()))?)
        }
        ProtocolName::Name(name) => named(name)?,
    };
    let has_ports = |number| [TCP, UDP, SCTP].contains(&number);
    let port = match (numbered, question.port) {
        (Named::Number(number), None) if has_ports(number) => return Err(ExplainError::NoPort),
        (Named::Number(number), Some(port)) if has_ports(number) => port,
        _ => 0,
    };
    let (destination, port) = destination(cluster, question, numbered, port)?;
    let protocol = match numbered {
        Named::Number(number) => number,
        Named::Icmp if destination.is_ipv4() => ICMP,
        Named::Icmp => ICMPV6,
    };
    if destination.is_ipv6() && [0, 43, 44, 51, 60, 135, 139, 140].contains(&protocol) {
        return Err(ExplainError::Extension(protocol));
    }
    Ok(Resolved { pod, flow: Flow { destination, protocol, port } })
}

#[derive(Clone, Copy)]
enum Named {
    Number(u8),
    /// The number depends on the family.
    Icmp,
}

fn named(name: &str) -> Result<Named, ExplainError> {
    Ok(match name.to_ascii_uppercase().as_str() {
        "TCP" => Named::Number(TCP),
        "UDP" => Named::Number(UDP),
        "SCTP" => Named::Number(SCTP),
        "ICMP" => Named::Icmp,
        "ICMPV6" => Named::Number(ICMPV6),
        digits => Named::Number(digits.parse().map_err(|_| ExplainError::Protocol(name.to_owned()))?),
    })
}

fn destination(
    cluster: &Cluster,
    question: &Question,
    protocol: Named,
    port: u16,
) -> Result<(IpAddr, u16), ExplainError> {
    let family = question.family;
    match &question.to {
        Target::Ip(address) => {
            let address = address.to_canonical();
            match family.filter(|family| !family.has(address)) {
                Some(family) => Err(ExplainError::OtherFamily { address, family }),
                None => Ok((address, port)),
            }
        }
        Target::Pod(name) => {
            let name = namespaced(name)?;
            let Some(pod) = cluster.pods.get(&name) else {
                return Err(unknown("pod", name, cluster.pods.keys().map(NsName::from)));
            };
            match choose(pod.ips.iter(), family) {
                Some(address) => Ok((address, port)),
                None => Err(ExplainError::NoAddress { kind: "pod", name, family, why: String::new() }),
            }
        }
        Target::Service(name) => {
            let name = namespaced(name)?;
            let Some(service) = cluster.services.get(&name) else {
                return Err(unknown("service", name, cluster.services.keys().cloned()));
            };
            let none = |name, why: String| ExplainError::NoAddress { kind: "service", name, family, why };
            if let Some(other) = &service.external_name {
                let why = format!(": it is of type ExternalName and stands for {other}");
                return Err(none(name, why));
            }
            if !service.cluster_ips.is_empty() {
                return choose(service.cluster_ips.iter().copied(), family)
                    .map(|address| (address, port))
                    .ok_or_else(|| none(name, String::new()));
            }
            headless(cluster, &name, service, protocol, port, family)
                .ok_or_else(|| none(name, " and no endpoint behind that port".to_owned()))
        }
    }
}

/// Returns the address of that family; of none in particular the first IPv4 one, or else the first.
fn choose(mut addresses: impl Iterator<Item = IpAddr>, family: Option<Family>) -> Option<IpAddr> {
    let first = addresses.find(|address| family.is_none_or(|family| family.has(*address)))?;
    let better = if family.is_none() && first.is_ipv6() { addresses.find(IpAddr::is_ipv4) } else { None };
    Some(better.unwrap_or(first).to_canonical())
}

/// What a client finds behind a Service without a ClusterIP: an endpoint, and its port in place of the Service's.
fn headless(
    cluster: &Cluster,
    name: &NsName,
    service: &Service,
    protocol: Named,
    port: u16,
    family: Option<Family>,
) -> Option<(IpAddr, u16)> {
    let slices: Vec<&EndpointSlice> = cluster
        .slices
        .iter()
        .filter(|(id, slice)| id.namespace == name.namespace && slice.service == name.name)
        .map(|(_, slice)| slice)
        .collect();
    let listed = service.ports.iter().find(|listed| {
        matches!(protocol, Named::Number(number) if number == listed.protocol.number()) && listed.port == port
    });
    let Some(listed) = listed else {
        let addresses = slices.iter().flat_map(|slice| slice.addresses.iter().copied());
        return choose(addresses, family).map(|address| (address, port));
    };
    let behind = |slice: &EndpointSlice| {
        let same = slice.ports.iter().find(|p| p.name == listed.name && p.protocol == listed.protocol)?;
        Some(same.port.unwrap_or(port))
    };
    let pairs: Vec<(IpAddr, u16)> = slices
        .iter()
        .filter_map(|slice| Some((slice, behind(slice)?)))
        .flat_map(|(slice, port)| slice.addresses.iter().map(move |address| (address.to_canonical(), port)))
        .collect();
    let address = choose(pairs.iter().map(|(address, _)| *address), family)?;
    pairs.into_iter().find(|(other, _)| *other == address)
}

fn unknown(kind: &'static str, name: NsName, names: impl Iterator<Item = NsName>) -> ExplainError {
    let mut near: Vec<(usize, NsName)> = names
        .map(|other| {
            let apart =
                if other.name == name.name { 1 } else { distance(&other.to_string(), &name.to_string()) };
            (apart, other)
        })
        .filter(|(apart, _)| *apart <= 3)
        .collect();
    near.sort();
    let near = near.into_iter().take(3).map(|(_, other)| other).collect();
    ExplainError::Unknown { kind, name, near }
}

/// How many letters must be put in, left out or changed to get from one text to the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, letter) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in to.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

/// What answers.
#[derive(Debug)]
pub enum Engine {
    /// The model, by brute force.
    Reference,
    /// The compiled entries, looked up as the kernel does.
    Entries,
    /// The loaded program.
    Kernel(Box<ProgramRun>),
}

/// Answers questions about one state of a cluster.
#[derive(Debug)]
pub struct Explainer<'a> {
    cluster: &'a Cluster,
    settings: &'a Settings,
    engine: Engine,
    compiled: BTreeMap<NsName, Compiled>,
    /// What the entries engine has numbered.
    planned: HashMap<NsName, Planned>,
    /// Whose policies the kernel engine holds.
    installed: Option<NsName>,
}

/// The entries of one pod.
#[derive(Debug)]
struct Planned {
    set: Option<Numbered>,
    endpoint: Option<Endpoint>,
    state: State,
}

impl<'a> Explainer<'a> {
    /// Compiles what the engine needs.
    #[must_use]
    pub fn new(cluster: &'a Cluster, settings: &'a Settings, engine: Engine) -> Self {
        let compiled = match engine {
            Engine::Reference => BTreeMap::new(),
            Engine::Entries | Engine::Kernel(_) => compile_all(cluster, settings, cluster.pods.keys()),
        };
        Self { cluster, settings, engine, compiled, planned: HashMap::new(), installed: None }
    }

    /// Returns what the policies say about a flow at `now` (seconds since the epoch).
    ///
    /// # Errors
    ///
    /// When the engine fails.
    pub fn answer(&mut self, asked: &Resolved, now: u64) -> Result<Answer, ExplainError> {
        let Resolved { pod, flow } = asked;
        match &mut self.engine {
            Engine::Reference => Ok(reference::reference(self.cluster, self.settings, pod, flow, now)?),
            Engine::Entries => {
                let compiled = compiled_for(&self.compiled, pod)?;
                if !self.planned.contains_key(pod) {
                    self.planned.insert(pod.clone(), plan(pod, compiled)?);
                }
                Ok(self.planned[pod].answer(flow, now))
            }
            Engine::Kernel(program) => {
                let compiled = compiled_for(&self.compiled, pod)?;
                if self.installed.as_ref() != Some(pod) {
                    self.installed = None;
                    program.install(compiled)?;
                    self.installed = Some(pod.clone());
                }
                Ok(program.judge(flow, now)?)
            }
        }
    }

    /// Returns when, after `now`, the answer will be another one because an exception ends, and which.
    ///
    /// # Errors
    ///
    /// When the engine fails.
    pub fn next_change(&mut self, asked: &Resolved, now: u64) -> Result<Option<(u64, Answer)>, ExplainError> {
        let present = self.answer(asked, now)?;
        let mut ends: Vec<u64> = self
            .cluster
            .policies
            .iter()
            .filter(|(id, _)| id.id.namespace == asked.pod.namespace)
            .flat_map(|(_, policy)| policy.rules.iter().filter_map(|rule| rule.expires))
            .filter(|end| *end > now)
            .collect();
        ends.sort_unstable();
        ends.dedup();
        for end in ends {
            let then = self.answer(asked, end)?;
            if then != present {
                return Ok(Some((end, then)));
            }
        }
        Ok(None)
    }
}

fn compiled_for<'c>(
    compiled: &'c BTreeMap<NsName, Compiled>,
    pod: &NsName,
) -> Result<&'c Compiled, ExplainError> {
    compiled.get(pod).ok_or_else(|| ReferenceError::UnknownPod(pod.clone()).into())
}

fn plan(pod: &NsName, compiled: &Compiled) -> Result<Planned, ExplainError> {
    const ONLY: u64 = 1;
    let state = State::new(Capacities::default());
    let plan =
        diff::plan(&state, &BTreeMap::from([(ONLY, Wanted::new(pod.clone(), compiled))]), &BTreeSet::new());
    if let Some(refused) = plan.refused.first() {
        return Err(refused.full.into());
    }
    let (mut set, mut endpoint) = (None, None);
    for step in plan.steps {
        match step {
            Step::WriteSet(numbered) => set = Some(numbered),
            Step::WriteEndpoint { endpoint: record, .. } => endpoint = Some(record),
            Step::WriteUngoverned { .. } | Step::RemoveEndpoint { .. } | Step::RetireSet { .. } => {}
        }
    }
    Ok(Planned { set, endpoint, state: plan.next })
}

impl Planned {
    fn answer(&self, flow: &Flow, now: u64) -> Answer {
        let Some(endpoint) = &self.endpoint else {
            return Answer { verdict: Verdict::Allow, reason: Reason::Ungoverned, rule: None };
        };
        let decision = simulate_entries(self.set.as_ref(), endpoint, flow, now);
        let rule =
            (decision.rule != NO_RULE).then(|| self.state.allocator().rule(decision.rule).cloned()).flatten();
        Answer { verdict: decision.verdict, reason: decision.reason, rule }
    }
}

/// An answer, as it stands on a line of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AnswerLine {
    /// `allow`, `deny` or `audit`.
    pub verdict: &'static str,
    /// Why, in one word.
    pub reason: &'static str,
    /// The policy that decided.
    pub policy: Option<String>,
    /// The part of it that decided.
    pub destination: Option<String>,
}

impl From<&Answer> for AnswerLine {
    fn from(answer: &Answer) -> Self {
        Self {
            verdict: answer.verdict.as_str(),
            reason: answer.reason.as_str(),
            policy: answer.rule.as_ref().map(policy_name),
            destination: answer.rule.as_ref().map(|rule| rule.part.as_str().to_owned()),
        }
    }
}

/// The name of a rule's policy: `namespace/name`, or the namespace for the default of a governed one.
#[must_use]
pub fn policy_name(rule: &RuleName) -> String {
    match rule.policy.kind {
        PolicyKind::Namespace => rule.policy.id.namespace.clone(),
        PolicyKind::ConfigMap | PolicyKind::NetworkPolicy => rule.policy.id.to_string(),
    }
}

/// Says in a sentence why a flow met its verdict.
#[must_use]
pub const fn sentence(reason: Reason) -> &'static str {
    match reason {
        Reason::AllowedDestination => "a destination of a policy allows it",
        Reason::DefaultAllow => {
            "no destination names it, and no policy that selects the pod denies by default"
        }
        Reason::Reply => "it answers a connection or datagram that came to the pod",
        Reason::Local => "it goes to loopback or to the pod's own address, which always passes",
        Reason::Ungoverned => "no policy selects the pod",
        Reason::Unprotected => "the node does not know the pod yet, and lets it pass until it does",
        Reason::DefaultDeny => {
            "no destination allows it, and a policy that selects the pod denies by default"
        }
        Reason::DeniedDestination => "a denied destination names it",
        Reason::Expired => "the destination that allowed it has expired",
        Reason::UnknownPod => "the node does not know the pod yet",
        Reason::InvalidPacket => "its headers are cut short or contradict themselves",
        Reason::Fragment => "it is a fragment made by hand",
        Reason::SourceRoute => "it carries a source route",
        Reason::UnknownFamily => "it is neither IPv4 nor IPv6",
        Reason::NotRemembered => "the kernel had no memory to remember that the pod opened this connection",
    }
}

/// Says in a sentence why a rule that came near did not let a flow pass.
#[must_use]
pub fn missed(why: &MissReason) -> String {
    match why {
        MissReason::Overruled(rule) => format!(
            "it matches, but the denied destination {} of {} beats every allowed one",
            rule.part.as_str(),
            rule.policy
        ),
        MissReason::Expired(end) => format!("it matches, but ended at {}", time(*end)),
        MissReason::Port => "address and protocol match, the port does not".to_owned(),
        MissReason::Protocol => "the address matches, the protocol does not".to_owned(),
        MissReason::AuditOnly => {
            "it matches, but its policy is in audit mode and permits nothing that an enforcing one denies"
                .to_owned()
        }
        MissReason::PolicyDoesNotSelect => "it matches, but its policy does not select the pod".to_owned(),
        MissReason::SomeEndpoints => {
            "it allows some of the endpoints behind this ClusterIP and port, not all of them".to_owned()
        }
        MissReason::PodNotSelected => "the destination is a pod that its labels do not select".to_owned(),
        MissReason::Except(net) => {
            format!("the address is in one of its CIDRs, but in its exception {net} too")
        }
        MissReason::Address { nearest, common_bits } => {
            format!(
                "the address is in none of its CIDRs; nearest is {nearest}, with the first {common_bits} bits in common"
            )
        }
        MissReason::Unresolved => "its addresses are not resolved yet, so it matches nothing".to_owned(),
    }
}

/// Writes a second as a time in UTC.
#[must_use]
pub fn time(second: u64) -> String {
    match i64::try_from(second).map(jiff::Timestamp::from_second) {
        Ok(Ok(timestamp)) => timestamp.to_string(),
        _ => format!("second {second}"),
    }
}

/// Names the protocol with this number.
#[must_use]
pub fn protocol_name(number: u8) -> String {
    match number {
        ICMPV6 => "ICMPv6".to_owned(),
        _ => [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp]
            .into_iter()
            .find(|protocol| protocol.number() == number)
            .map_or_else(|| format!("protocol {number}"), |protocol| protocol.as_str().to_owned()),
    }
}

/// Names a mode.
#[must_use]
pub const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Audit => "audit",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_letters() {
        for (from, to, apart) in
            [("", "", 0), ("web", "web", 0), ("web", "wbe", 2), ("a", "", 1), ("pod", "pods", 1)]
        {
            assert_eq!(distance(from, to), apart, "{from} {to}");
        }
    }

    #[test]
    fn a_target_is_one_of_three() {
        let question = |text: &str| serde_json::from_str::<Question>(text);
        assert!(question(r#"{"from":"a/b","to":{"ip":"192.0.2.1"},"port":443}"#).is_ok());
        assert!(question(r#"{"from":"a/b","to":{"pod":"a/c"},"protocol":47}"#).is_ok());
        assert!(question(r#"{"from":"a/b","to":{"ip":"192.0.2.1","pod":"a/c"},"port":443}"#).is_err());
        assert!(question(r#"{"from":"a/b","to":{"ip":"192.0.2.1"},"prot":443}"#).is_err());
    }

    #[test]
    fn without_a_family_ipv4_is_chosen_if_there_is_one() {
        let (v4, v6): (IpAddr, IpAddr) = ("10.0.0.1".parse().expect("ok"), "fd00::1".parse().expect("ok"));
        assert_eq!(choose([v6, v4].into_iter(), None), Some(v4));
        assert_eq!(choose([v6].into_iter(), None), Some(v6));
        assert_eq!(choose([v6, v4].into_iter(), Some(Family::V6)), Some(v6));
        assert_eq!(choose([v6].into_iter(), Some(Family::V4)), None);
    }
}
