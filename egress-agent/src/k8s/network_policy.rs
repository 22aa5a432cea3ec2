//! The egress half of a NetworkPolicy.
//!
//! Follows the field documentation of `networking.k8s.io/v1` and, where that is silent, what the API server's validation
//! accepts. What it would refuse is refused here too, because manifests in a directory have passed no API server.

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{
        IPBlock, NetworkPolicyEgressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1, util::intstr::IntOrString},
};
use serde_json::Value;

use super::convert;
use crate::policy::{
    cluster::NsName,
    index::Unreadable,
    model::{
        DefaultAction, Effect, Governance, LabelSelector, Mode, Operator, Peer, Policy, PolicyId, PolicyKind,
        PortMatch, PortSpec, Ports, Requirement, Rule, is_v4_mapped,
    },
    selector::{key_fault, value_fault},
};

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The field, such as `spec.egress[0].ports[1].port`.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
    /// What to write instead, where that can be told.
    pub hint: Option<String>,
}

impl Fault {
    fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Makes it the reason why a whole policy is not enforceable.
    #[must_use]
    pub fn unreadable(self, selector: Option<LabelSelector>) -> Unreadable {
        Unreadable { path: self.path, message: self.message, hint: self.hint, selector }
    }
}

/// Returns the policy that a NetworkPolicy's egress half makes, or nothing when it is not about egress.
///
/// # Errors
///
/// Says what is wrong, and which pods it selects if that much could be read.
pub fn egress(id: &NsName, spec: Option<NetworkPolicySpec>) -> Result<Option<Policy>, Unreadable> {
    let Some(spec) = spec else { return Ok(None) };
    // A missing podSelector is an empty one, which selects every pod of the namespace.
    let selector = selector("spec.podSelector", &spec.pod_selector.unwrap_or_default())
        .map_err(|fault| fault.unreadable(None))?;
    let rules = spec.egress.unwrap_or_default();
    let types = spec.policy_types.unwrap_or_default();
    if let Some((i, other)) = types.iter().enumerate().find(|(_, t)| *t != "Ingress" && *t != "Egress") {
        return Err(Fault::new(format!("spec.policyTypes[{i}]"), format!("`{other}` is not a policy type"))
            .hint("the types are `Ingress` and `Egress`")
            .unreadable(Some(selector)));
    }
    // Without policyTypes a policy is about egress if it has egress rules.
    let applies = if types.is_empty() { !rules.is_empty() } else { types.iter().any(|t| t == "Egress") };
    if !applies {
        return Ok(None);
    }
    let rules = match rules.iter().enumerate().map(|(i, r)| rule(i, r)).collect::<Result<Vec<_>, _>>() {
        Ok(rules) => rules,
        Err(fault) => return Err(fault.unreadable(Some(selector))),
    };
    Ok(Some(Policy {
        id: PolicyId { kind: PolicyKind::NetworkPolicy, id: id.clone() },
        mode: Mode::Enforce,
        default_action: DefaultAction::Deny,
        selector,
        cluster_dns: false,
        own_node: true,
        rules,
    }))
}

fn rule(index: usize, rule: &NetworkPolicyEgressRule) -> Result<Rule, Fault> {
    let path = format!("spec.egress[{index}]");
    let to = rule.to.as_deref().unwrap_or_default();
    let peers = if to.is_empty() {
        vec![Peer::Any]
    } else {
        to.iter().enumerate().map(|(i, p)| peer(&format!("{path}.to[{i}]"), p)).collect::<Result<_, _>>()?
    };
    let listed = rule.ports.as_deref().unwrap_or_default();
    let ports = if listed.is_empty() {
        Ports::All
    } else {
        let list = listed.iter().enumerate().map(|(i, p)| port(&format!("{path}.ports[{i}]"), p));
        Ports::List(list.collect::<Result<_, _>>()?)
    };
    Ok(Rule {
        name: format!("egress[{index}]"),
        effect: Effect::Allow,
        peers,
        ports,
        expires: None,
        governance: Governance::default(),
    })
}

fn peer(path: &str, peer: &NetworkPolicyPeer) -> Result<Peer, Fault> {
    match (&peer.ip_block, &peer.namespace_selector, &peer.pod_selector) {
        (Some(block), None, None) => ip_block(&format!("{path}.ipBlock"), block),
        (Some(_), _, _) => {
            Err(Fault::new(path, "ipBlock cannot stand together with podSelector or namespaceSelector")
                .hint("make it two items of `to`; a rule matches where any of them does"))
        }
        (None, None, None) => Err(Fault::new(path, "a peer needs ipBlock, podSelector or namespaceSelector")
            .hint("to allow every destination leave `to` out")),
        (None, namespaces, pods) => {
            let part = |name: &str, part: &Option<v1::LabelSelector>| {
                part.as_ref().map(|part| selector(&format!("{path}.{name}"), part)).transpose()
            };
            Ok(Peer::Pods {
                namespaces: part("namespaceSelector", namespaces)?,
                pods: part("podSelector", pods)?,
            })
        }
    }
}

fn ip_block(path: &str, block: &IPBlock) -> Result<Peer, Fault> {
    let whole = cidr(&format!("{path}.cidr"), &block.cidr)?;
    let mut except = Vec::new();
    for (i, text) in block.except.iter().flatten().enumerate() {
        let path = format!("{path}.except[{i}]");
        let part = cidr(&path, text)?;
        if !whole.contains(&part) {
            return Err(Fault::new(path, format!("{part} is not within {whole}")));
        }
        except.push(part);
    }
    Ok(Peer::Cidrs { cidrs: vec![whole], except })
}

/// Host bits and leading zeros in IPv4 numbers are tolerated, because the API server stores such prefixes.
fn cidr(path: &str, text: &str) -> Result<IpNet, Fault> {
    let plain = match text.split_once('/') {
        Some((address, bits)) if !address.contains(':') => {
            let numbers = address.split('.').map(|number| match number.trim_start_matches('0') {
                "" if !number.is_empty() => "0",
                rest => rest,
            });
            format!("{}/{bits}", numbers.collect::<Vec<_>>().join("."))
        }
        _ => text.to_owned(),
    };
    let net: IpNet = plain.parse().map_err(|_| {
        let fault = Fault::new(path, format!("`{text}` is not a prefix"));
        if text.contains('/') { fault } else { fault.hint("write the length too, such as 10.0.0.5/32") }
    })?;
    if is_v4_mapped(&net) {
        return Err(Fault::new(path, format!("`{text}` is IPv4 mapped into IPv6"))
            .hint("write the IPv4 prefix itself"));
    }
    Ok(net.trunc())
}

fn port(path: &str, port: &NetworkPolicyPort) -> Result<PortSpec, Fault> {
    let protocol = convert::protocol(port.protocol.as_deref())
        .map_err(|message| Fault::new(format!("{path}.protocol"), message))?;
    let matched = match (&port.port, port.end_port) {
        (None, None) => PortMatch::Any,
        (None, Some(_)) => {
            return Err(Fault::new(format!("{path}.endPort"), "endPort needs port, where the range begins"));
        }
        (Some(IntOrString::Int(first)), last) => {
            let number = |field: &str, number: i32| {
                convert::port(number).map_err(|message| Fault::new(format!("{path}.{field}"), message))
            };
            let first = number("port", *first)?;
            let last = last.map_or(Ok(first), |last| number("endPort", last))?;
            if last < first {
                return Err(Fault::new(
                    format!("{path}.endPort"),
                    format!("the range ends at {last}, before it begins at {first}"),
                ));
            }
            PortMatch::Range(first, last)
        }
        (Some(IntOrString::String(_)), Some(_)) => {
            return Err(Fault::new(format!("{path}.endPort"), "a range cannot begin at a named port"));
        }
        (Some(IntOrString::String(name)), None) => {
            if let Some(message) = port_name_fault(name) {
                let fault =
                    Fault::new(format!("{path}.port"), format!("`{name}` is not a port name: {message}"));
                return Err(if name.parse::<u16>().is_ok() {
                    fault.hint("write the number without quotes")
                } else {
                    fault
                });
            }
            PortMatch::Name(name.clone())
        }
    };
    Ok(PortSpec { protocol, port: matched })
}

/// The rules of RFC 6335, which the API server applies to port names.
fn port_name_fault(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.len() > 15 {
        Some("it must have 1 to 15 characters")
    } else if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        Some("only lower case letters, digits and `-` are allowed")
    } else if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        Some("it must have a letter")
    } else if name.starts_with('-') || name.ends_with('-') || name.contains("--") {
        Some("`-` must stand between letters or digits")
    } else {
        None
    }
}

/// Returns a label selector in our own words.
///
/// # Errors
///
/// Says which condition the API server would refuse.
pub fn selector(path: &str, selector: &v1::LabelSelector) -> Result<LabelSelector, Fault> {
    let mut match_labels = Vec::new();
    for (key, value) in selector.match_labels.iter().flatten() {
        if let Some(message) = key_fault(key) {
            return Err(Fault::new(
                format!("{path}.matchLabels"),
                format!("`{key}` is not a label key: {message}"),
            ));
        }
        if let Some(message) = value_fault(value) {
            return Err(Fault::new(
                format!("{path}.matchLabels.{key}"),
                format!("`{value}` is not a label value: {message}"),
            ));
        }
        match_labels.push((key.clone(), value.clone()));
    }
    let mut match_expressions = Vec::new();
    for (i, requirement) in selector.match_expressions.iter().flatten().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let key = &requirement.key;
        if let Some(message) = key_fault(key) {
            return Err(Fault::new(format!("{path}.key"), format!("`{key}` is not a label key: {message}")));
        }
        let values = requirement.values.clone().unwrap_or_default();
        for value in &values {
            if let Some(message) = value_fault(value) {
                return Err(Fault::new(
                    format!("{path}.values"),
                    format!("`{value}` is not a label value: {message}"),
                ));
            }
        }
        let operator = match (requirement.operator.as_str(), values.is_empty()) {
            ("In", false) => Operator::In(values),
            ("NotIn", false) => Operator::NotIn(values),
            ("Exists", true) => Operator::Exists,
            ("DoesNotExist", true) => Operator::DoesNotExist,
            (name @ ("In" | "NotIn"), true) => {
                return Err(Fault::new(format!("{path}.values"), format!("{name} needs at least one value")));
            }
            (name @ ("Exists" | "DoesNotExist"), false) => {
                return Err(Fault::new(format!("{path}.values"), format!("{name} takes no values")));
            }
            (other, _) => {
                return Err(Fault::new(format!("{path}.operator"), format!("`{other}` is not an operator"))
                    .hint("the operators are In, NotIn, Exists and DoesNotExist"));
            }
        };
        match_expressions.push(Requirement { key: key.clone(), operator });
    }
    Ok(LabelSelector { match_labels, match_expressions })
}

/// What may stand at a place of a manifest.
enum Shape {
    /// Anything; types are checked elsewhere.
    Open,
    /// An object with these fields.
    Fields(&'static [(&'static str, Shape)]),
    /// A list of such.
    List(&'static Shape),
}

const SELECTOR: Shape = Shape::Fields(&[
    ("matchLabels", Shape::Open),
    (
        "matchExpressions",
        Shape::List(&Shape::Fields(&[
            ("key", Shape::Open),
            ("operator", Shape::Open),
            ("values", Shape::Open),
        ])),
    ),
]);
const PEERS: Shape = Shape::List(&Shape::Fields(&[
    ("podSelector", SELECTOR),
    ("namespaceSelector", SELECTOR),
    ("ipBlock", Shape::Fields(&[("cidr", Shape::Open), ("except", Shape::Open)])),
]));
const PORTS: Shape = Shape::List(&Shape::Fields(&[
    ("protocol", Shape::Open),
    ("port", Shape::Open),
    ("endPort", Shape::Open),
]));
const POLICY: Shape = Shape::Fields(&[
    ("apiVersion", Shape::Open),
    ("kind", Shape::Open),
    ("metadata", Shape::Open),
    // Was there until Kubernetes 1.28; means nothing.
    ("status", Shape::Open),
    (
        "spec",
        Shape::Fields(&[
            ("podSelector", SELECTOR),
            ("policyTypes", Shape::Open),
            ("ingress", Shape::List(&Shape::Fields(&[("from", PEERS), ("ports", PORTS)]))),
            ("egress", Shape::List(&Shape::Fields(&[("to", PEERS), ("ports", PORTS)]))),
        ]),
    ),
]);

/// Returns every field of a NetworkPolicy manifest that no such object has.
///
/// The types ignore what they do not know, so a misspelt `ports` would silently allow every port.
#[must_use]
pub fn unknown_fields(manifest: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    walk(&POLICY, manifest, &mut String::new(), &mut faults);
    faults
}

fn walk(shape: &Shape, value: &Value, path: &mut String, faults: &mut Vec<Fault>) {
    let length = path.len();
    match (shape, value) {
        (Shape::Fields(known), Value::Object(fields)) => {
            for (name, value) in fields {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
                match known.iter().find(|(known, _)| known == name) {
                    Some((_, shape)) => walk(shape, value, path, faults),
                    None => {
                        let fault = Fault::new(path.as_str(), format!("unknown field `{name}`"));
                        let names = known.iter().map(|(known, _)| *known);
                        faults.push(match nearest(name, names.clone()) {
                            Some(near) => fault.hint(format!("did you mean `{near}`?")),
                            None => {
                                fault.hint(format!("known here: {}", names.collect::<Vec<_>>().join(", ")))
                            }
                        });
                    }
                }
                path.truncate(length);
            }
        }
        (Shape::List(item), Value::Array(items)) => {
            for (i, value) in items.iter().enumerate() {
                path.push_str(&format!("[{i}]"));
                walk(item, value, path, faults);
                path.truncate(length);
            }
        }
        // Something of another type: the typed reading refuses it, or it is null, which is absent.
        _ => {}
    }
}

/// Returns the name that `word` is most likely a slip of, if one is near enough.
fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    names
        .map(|name| (distance(&lower, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Edit distance, with words longer than any field name cut short.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn convert(spec: Value) -> Result<Option<Policy>, Unreadable> {
        let spec = serde_json::from_value(spec).expect("the test's spec has the right types");
        egress(&NsName::new("ns", "np"), Some(spec))
    }

    fn first_rule(rule: &Value) -> Result<Rule, String> {
        match convert(json!({"podSelector": {}, "egress": [rule]})) {
            Ok(policy) => Ok(policy.expect("it is about egress").rules.remove(0)),
            Err(fault) => Err(fault.to_string()),
        }
    }

    fn labels(pairs: &[(&str, &str)]) -> LabelSelector {
        LabelSelector {
            match_labels: pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            match_expressions: Vec::new(),
        }
    }

    #[test]
    fn policy_types_decide_whether_it_is_about_egress() {
        for (spec, rules) in [
            (json!({}), None),
            (json!({"podSelector": {}}), None),
            (json!({"egress": []}), None),
            (json!({"policyTypes": [], "egress": []}), None),
            (json!({"egress": [{}]}), Some(1)),
            (json!({"policyTypes": [], "egress": [{}]}), Some(1)),
            (json!({"ingress": [{}], "egress": [{}]}), Some(1)),
            (json!({"policyTypes": ["Ingress"], "egress": [{}]}), None),
            (json!({"policyTypes": ["Egress"]}), Some(0)),
            (json!({"policyTypes": ["Egress"], "egress": []}), Some(0)),
            (json!({"policyTypes": ["Ingress", "Egress"]}), Some(0)),
            (json!({"policyTypes": ["Ingress", "Egress"], "egress": [{}, {}]}), Some(2)),
        ] {
            let policy = convert(spec.clone()).expect("it can be read");
            assert_eq!(policy.map(|policy| policy.rules.len()), rules, "{spec}");
        }
        assert_eq!(egress(&NsName::new("ns", "np"), None), Ok(None));
    }

    #[test]
    fn the_policy_enforces_and_allows_its_own_node_only() {
        let spec =
            json!({"podSelector": {"matchLabels": {"app": "x"}}, "egress": [{}, {"to": [], "ports": []}]});
        let policy = convert(spec).expect("it can be read").expect("it is about egress");
        assert_eq!(policy.id, PolicyId { kind: PolicyKind::NetworkPolicy, id: NsName::new("ns", "np") });
        assert_eq!((policy.mode, policy.default_action), (Mode::Enforce, DefaultAction::Deny));
        assert!(policy.own_node && !policy.cluster_dns);
        assert_eq!(policy.selector, labels(&[("app", "x")]));
        for (i, rule) in policy.rules.iter().enumerate() {
            assert_eq!(rule.name, format!("egress[{i}]"));
            assert_eq!((rule.effect, rule.expires), (Effect::Allow, None));
            assert_eq!(rule.peers, [Peer::Any], "no `to` means every destination");
            assert_eq!(rule.ports, Ports::All, "no `ports` means every port");
        }
    }

    #[test]
    fn ports_follow_the_table() {
        let range = |protocol, first, last| PortSpec { protocol, port: PortMatch::Range(first, last) };
        use crate::policy::model::Protocol::{Sctp, Tcp, Udp};
        for (port, expected) in [
            (json!({}), Ok(PortSpec { protocol: Tcp, port: PortMatch::Any })),
            (json!({"protocol": "UDP"}), Ok(PortSpec { protocol: Udp, port: PortMatch::Any })),
            (json!({"port": 53, "protocol": "UDP"}), Ok(range(Udp, 53, 53))),
            (json!({"port": 1}), Ok(range(Tcp, 1, 1))),
            (json!({"port": 65535, "protocol": "SCTP"}), Ok(range(Sctp, 65535, 65535))),
            (json!({"port": 80, "endPort": 90}), Ok(range(Tcp, 80, 90))),
            (json!({"port": 80, "endPort": 80}), Ok(range(Tcp, 80, 80))),
            (json!({"port": "http"}), Ok(PortSpec { protocol: Tcp, port: PortMatch::Name("http".into()) })),
            (json!({"port": 0}), Err("port")),
            (json!({"port": 65536}), Err("port")),
            (json!({"port": -1}), Err("port")),
            (json!({"port": "80"}), Err("port")),
            (json!({"port": ""}), Err("port")),
            (json!({"port": "Http"}), Err("port")),
            (json!({"port": "a--b"}), Err("port")),
            (json!({"port": 80, "endPort": 79}), Err("endPort")),
            (json!({"port": 80, "endPort": 65536}), Err("endPort")),
            (json!({"endPort": 90}), Err("endPort")),
            (json!({"port": "http", "endPort": 90}), Err("endPort")),
            (json!({"protocol": "ICMP"}), Err("protocol")),
            (json!({"protocol": "tcp"}), Err("protocol")),
        ] {
            match (first_rule(&json!({"ports": [port.clone()]})), expected) {
                (Ok(rule), Ok(expected)) => assert_eq!(rule.ports, Ports::List(vec![expected]), "{port}"),
                (Err(error), Err(field)) => {
                    assert!(
                        error.starts_with(&format!("spec.egress[0].ports[0].{field}: ")),
                        "{port}: {error}"
                    );
                }
                (found, expected) => panic!("{port}: found {found:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn peers_follow_the_table() {
        let pods = |namespaces, pods| Peer::Pods { namespaces, pods };
        let cidrs = |cidrs: &[&str], except: &[&str]| Peer::Cidrs {
            cidrs: cidrs.iter().map(|c| c.parse().expect("a literal prefix")).collect(),
            except: except.iter().map(|c| c.parse().expect("a literal prefix")).collect(),
        };
        let a = || labels(&[("a", "b")]);
        let written = || json!({"matchLabels": {"a": "b"}});
        for (peer, expected) in [
            (json!({"podSelector": {}}), Ok(pods(None, Some(labels(&[]))))),
            (json!({"podSelector": written()}), Ok(pods(None, Some(a())))),
            (json!({"namespaceSelector": {}}), Ok(pods(Some(labels(&[])), None))),
            (json!({"namespaceSelector": written()}), Ok(pods(Some(a()), None))),
            (
                json!({"namespaceSelector": {}, "podSelector": written()}),
                Ok(pods(Some(labels(&[])), Some(a()))),
            ),
            (
                json!({"namespaceSelector": written(), "podSelector": {}}),
                Ok(pods(Some(a()), Some(labels(&[])))),
            ),
            (json!({"ipBlock": {"cidr": "10.0.0.0/8"}}), Ok(cidrs(&["10.0.0.0/8"], &[]))),
            (json!({"ipBlock": {"cidr": "0.0.0.0/0"}}), Ok(cidrs(&["0.0.0.0/0"], &[]))),
            (json!({"ipBlock": {"cidr": "::/0"}}), Ok(cidrs(&["::/0"], &[]))),
            (
                json!({"ipBlock": {"cidr": "10.1.2.3/8", "except": ["10.9.9.9/16", "10.1.0.0/32"]}}),
                Ok(cidrs(&["10.0.0.0/8"], &["10.9.0.0/16", "10.1.0.0/32"])),
            ),
            (json!({"ipBlock": {"cidr": "010.0.00.0/8"}}), Ok(cidrs(&["10.0.0.0/8"], &[]))),
            (
                json!({"ipBlock": {"cidr": "2001:db8::5/32", "except": ["2001:db8:1::/48"]}}),
                Ok(cidrs(&["2001:db8::/32"], &["2001:db8:1::/48"])),
            ),
            (
                json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}),
                Err(".ipBlock.except[0]"),
            ),
            (json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["0.0.0.0/0"]}}), Err(".ipBlock.except[0]")),
            (json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["::/0"]}}), Err(".ipBlock.except[0]")),
            (json!({"ipBlock": {"cidr": "10.0.0.0/33"}}), Err(".ipBlock.cidr")),
            (json!({"ipBlock": {"cidr": "10.0.0.1"}}), Err(".ipBlock.cidr")),
            (json!({"ipBlock": {"cidr": "10..0.0/8"}}), Err(".ipBlock.cidr")),
            (json!({"ipBlock": {"cidr": ""}}), Err(".ipBlock.cidr")),
            (json!({"ipBlock": {"cidr": "::ffff:10.0.0.0/104"}}), Err(".ipBlock.cidr")),
            (json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}), Err("")),
            (json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "namespaceSelector": {}}), Err("")),
            (json!({}), Err("")),
        ] {
            match (first_rule(&json!({"to": [peer.clone()]})), expected) {
                (Ok(rule), Ok(expected)) => assert_eq!(rule.peers, [expected], "{peer}"),
                (Err(error), Err(field)) => {
                    assert!(error.starts_with(&format!("spec.egress[0].to[0]{field}: ")), "{peer}: {error}");
                }
                (found, expected) => panic!("{peer}: found {found:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn several_peers_share_the_ports_even_named_ones() {
        let rule = first_rule(&json!({
            "to": [{"podSelector": {}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}],
            "ports": [{"port": "http"}, {"port": 53, "protocol": "UDP"}]}))
        .expect("it can be read");
        assert_eq!(rule.peers.len(), 2);
        let Ports::List(ports) = rule.ports else { panic!("ports are listed") };
        assert_eq!(ports[0].port, PortMatch::Name("http".into()));
        assert_eq!(ports.len(), 2);
    }

    #[test]
    fn selectors_are_read_with_every_operator() {
        let expression = |operator: &str, values: Value| json!({"matchExpressions": [{"key": "k", "operator": operator, "values": values}]});
        let values = || vec!["a".to_owned(), "b".to_owned()];
        for (written, expected) in [
            (expression("In", json!(["a", "b"])), Some(Operator::In(values()))),
            (expression("NotIn", json!(["a", "b"])), Some(Operator::NotIn(values()))),
            (expression("Exists", json!(null)), Some(Operator::Exists)),
            (expression("Exists", json!([])), Some(Operator::Exists)),
            (expression("DoesNotExist", json!(null)), Some(Operator::DoesNotExist)),
            (expression("In", json!([])), None),
            (expression("NotIn", json!(null)), None),
            (expression("Exists", json!(["a"])), None),
            (expression("DoesNotExist", json!(["a"])), None),
            (expression("in", json!(["a"])), None),
            (expression("Gt", json!(["1"])), None),
            (expression("In", json!(["a b"])), None),
        ] {
            let read: v1::LabelSelector =
                serde_json::from_value(written.clone()).expect("the types are right");
            match (selector("s", &read), expected) {
                (Ok(selector), Some(operator)) => assert_eq!(
                    selector.match_expressions,
                    [Requirement { key: "k".into(), operator }],
                    "{written}"
                ),
                (Err(fault), None) => assert!(fault.path.starts_with("s.matchExpressions[0]."), "{fault:?}"),
                (found, expected) => panic!("{written}: found {found:?} instead of {expected:?}"),
            }
        }
        let read: v1::LabelSelector =
            serde_json::from_value(json!({"matchLabels": {" app": "x"}})).expect("the types are right");
        assert_eq!(selector("s", &read).expect_err("a blank is no part of a key").path, "s.matchLabels");
    }

    #[test]
    fn a_fault_still_says_which_pods_are_meant() {
        let fault = convert(json!({"podSelector": {"matchLabels": {"a": "b"}}, "egress": [{"to": [{}]}]}))
            .expect_err("an empty peer is invalid");
        assert_eq!(fault.selector, Some(labels(&[("a", "b")])));
        let fault = convert(json!({"podSelector": {"matchLabels": {"a": "b"}}, "policyTypes": ["egress"]}))
            .expect_err("the type is misspelt");
        assert_eq!(fault.selector, Some(labels(&[("a", "b")])));
        let fault = convert(json!({"podSelector": {"matchLabels": {"a": "b c"}}, "egress": [{}]}))
            .expect_err("the selector is invalid");
        assert_eq!(fault.selector, None);
    }

    #[test]
    fn misspelt_fields_are_found_with_their_nearest_name() {
        for (manifest, path, hint) in [
            (json!({"spec": {"egress": [{"port": []}]}}), "spec.egress[0].port", Some("ports")),
            (json!({"spec": {"egress": [{"Ports": []}]}}), "spec.egress[0].Ports", Some("ports")),
            (json!({"spec": {"egres": []}}), "spec.egres", Some("egress")),
            (json!({"spec": {"podselector": {}}}), "spec.podselector", Some("podSelector")),
            (json!({"spec": {"policyType": []}}), "spec.policyType", Some("policyTypes")),
            (json!({"specs": {}}), "specs", Some("spec")),
            (json!({"spec": {"egress": [{"from": []}]}}), "spec.egress[0].from", None),
            (
                json!({"spec": {"egress": [{"ports": [{"port": 1, "endport": 2}]}]}}),
                "spec.egress[0].ports[0].endport",
                Some("endPort"),
            ),
            (
                json!({"spec": {"egress": [{"to": [{"ipBlock": {"cidr": "::/0", "excepts": []}}]}]}}),
                "spec.egress[0].to[0].ipBlock.excepts",
                Some("except"),
            ),
            (
                json!({"spec": {"egress": [{"to": [{"podSelector": {"matchLabel": {}}}]}]}}),
                "spec.egress[0].to[0].podSelector.matchLabel",
                Some("matchLabels"),
            ),
            (
                json!({"spec": {"podSelector": {"matchExpressions": [{"key": "a", "value": []}]}}}),
                "spec.podSelector.matchExpressions[0].value",
                Some("values"),
            ),
        ] {
            let faults = unknown_fields(&manifest);
            assert_eq!(faults.len(), 1, "{manifest}: {faults:?}");
            assert_eq!(faults[0].path, path);
            let text = faults[0].hint.as_deref().expect("there is always a hint");
            match hint {
                Some(name) => assert_eq!(text, format!("did you mean `{name}`?"), "{manifest}"),
                None => assert!(text.starts_with("known here: "), "{manifest}: {text}"),
            }
        }
        let good = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"x": 1},
            "spec": {"podSelector": {"matchLabels": {"anything": "x"}}, "policyTypes": ["Egress"],
                "ingress": [{"from": [{"ipBlock": {"cidr": "::/0", "except": []}}], "ports": [{"port": 1}]}],
                "egress": [{"to": [{"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}],
                    "ports": [{"protocol": "TCP", "port": 1, "endPort": 2}]}]}});
        assert_eq!(unknown_fields(&good), []);
    }
}
