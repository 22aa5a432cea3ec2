//! Generated NetworkPolicies as Kubernetes objects.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{
        IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyPeer, NetworkPolicyPort,
        NetworkPolicySpec,
    },
    apimachinery::pkg::{
        apis::meta::v1::{self, ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};

use crate::policy::{
    cluster::NsName,
    generated::{self, Loss, Peer, label},
    model::{LabelSelector, Operator, PortMatch, PortSpec},
};

/// The label that says who made an object.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "egress-agent");
/// The label with the name of the policy an object comes from; shortened, with a hash, where it is too long for a label.
pub const POLICY: &str = "egress-agent.dev/policy";
/// The annotation with namespace and name of the policy.
pub const SOURCE: &str = "egress-agent.dev/source";
/// The annotation with the version of the policy.
pub const SOURCE_REVISION: &str = "egress-agent.dev/source-revision";
/// The annotation that lists what gets lost.
pub const LOSSES: &str = "egress-agent.dev/losses";

/// Most bytes of the list of losses in an object. All annotations of an object together may have 256 KiB.
const MOST_LOSSES: usize = 4 << 10;

/// What all objects of a policy have in common.
#[derive(Clone, Debug)]
pub struct Origin<'a> {
    /// Namespace and name of the policy.
    pub policy: &'a NsName,
    /// Its version, where there is one.
    pub revision: Option<&'a str>,
    /// Its object, so that they go with it.
    pub owner: Option<&'a OwnerReference>,
    /// What gets lost.
    pub losses: &'a [Loss],
}

/// Tells whether an object was generated from a policy that is behind it: it has our label, names a policy of its namespace, and goes
/// with that. What was only written offline belongs to nobody, and is a NetworkPolicy like any.
#[must_use]
pub fn is_generated(metadata: &ObjectMeta) -> bool {
    let value = |pairs: &Option<BTreeMap<String, String>>, key: &str| {
        pairs.as_ref().and_then(|pairs| pairs.get(key).cloned())
    };
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let Some(source) = value(&metadata.annotations, SOURCE) else { return false };
    value(&metadata.labels, MANAGED_BY.0).is_some_and(|by| by == MANAGED_BY.1)
        && metadata.owner_references.iter().flatten().any(|owner| {
            owner.kind == "ConfigMap"
                && owner.api_version == "v1"
                && source == format!("{namespace}/{}", owner.name)
        })
}

/// Returns an object of a policy as Kubernetes has it.
#[must_use]
pub fn object(object: &generated::NetworkPolicy, origin: &Origin<'_>) -> NetworkPolicy {
    let labels = [(MANAGED_BY.0, MANAGED_BY.1.to_owned()), (POLICY, label(&origin.policy.name))];
    let mut annotations = vec![(SOURCE, origin.policy.to_string())];
    annotations.extend(origin.revision.map(|revision| (SOURCE_REVISION, revision.to_owned())));
    if !origin.losses.is_empty() {
        annotations.push((LOSSES, told(origin.losses)));
    }
    let owned = |pairs: &[(&str, String)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
    };
    NetworkPolicy {
        metadata: ObjectMeta {
            namespace: Some(object.id.namespace.clone()),
            name: Some(object.id.name.clone()),
            labels: Some(owned(&labels)),
            annotations: Some(owned(&annotations)),
            owner_references: origin.owner.map(|owner| vec![owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(&object.selector)),
            policy_types: Some(vec!["Egress".to_owned()]),
            // Said even where there is none: applied without it, somebody else's rules would stay.
            egress: Some(object.egress.iter().map(rule).collect()),
            ingress: None,
        }),
    }
}

/// Returns the losses, one on each line, as many as fit.
#[must_use]
pub fn told(losses: &[Loss]) -> String {
    let mut text = String::new();
    for (number, loss) in losses.iter().enumerate() {
        let line = loss.to_string();
        let more = format!("and {} more", losses.len() - number);
        if text.len() + line.len() + more.len() + 2 > MOST_LOSSES {
            return text + &more;
        }
        text += &line;
        if number + 1 < losses.len() {
            text.push('\n');
        }
    }
    text
}

fn rule(rule: &generated::EgressRule) -> NetworkPolicyEgressRule {
    let listed = |some: bool| some.then_some(());
    NetworkPolicyEgressRule {
        to: listed(!rule.to.is_empty()).map(|()| rule.to.iter().map(peer).collect()),
        ports: listed(!rule.ports.is_empty()).map(|()| rule.ports.iter().map(port).collect()),
    }
}

fn peer(peer: &Peer) -> NetworkPolicyPeer {
    match peer {
        Peer::Block { cidr, except } => NetworkPolicyPeer {
            ip_block: Some(IPBlock {
                cidr: cidr.to_string(),
                except: (!except.is_empty()).then(|| except.iter().map(ToString::to_string).collect()),
            }),
            ..NetworkPolicyPeer::default()
        },
        Peer::Pods { namespaces, pods } => NetworkPolicyPeer {
            ip_block: None,
            namespace_selector: namespaces.as_ref().map(selector),
            pod_selector: pods.as_ref().map(selector),
        },
    }
}

fn port(item: &PortSpec) -> NetworkPolicyPort {
    let (port, end_port) = match &item.port {
        PortMatch::Any => (None, None),
        PortMatch::Range(first, last) => {
            (Some(IntOrString::Int(i32::from(*first))), (first < last).then(|| i32::from(*last)))
        }
        PortMatch::Name(name) => (Some(IntOrString::String(name.clone())), None),
    };
    NetworkPolicyPort { protocol: Some(item.protocol.as_str().to_owned()), port, end_port }
}

fn selector(selector: &LabelSelector) -> v1::LabelSelector {
    let labels = &selector.match_labels;
    let expressions = selector.match_expressions.iter().map(|requirement| {
        let (operator, values) = match &requirement.operator {
            Operator::In(values) => ("In", Some(values.clone())),
            Operator::NotIn(values) => ("NotIn", Some(values.clone())),
            Operator::Exists => ("Exists", None),
            Operator::DoesNotExist => ("DoesNotExist", None),
        };
        v1::LabelSelectorRequirement { key: requirement.key.clone(), operator: operator.to_owned(), values }
    });
    v1::LabelSelector {
        match_labels: (!labels.is_empty()).then(|| labels.iter().cloned().collect()),
        match_expressions: (!selector.match_expressions.is_empty()).then(|| expressions.collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        k8s::network_policy,
        policy::{
            addresses::Addresses,
            generated::{EgressRule, LossKind},
            model::{Ports, Protocol, Requirement},
        },
    };

    fn loss(text: &str) -> Loss {
        Loss {
            kind: LossKind::Icmp,
            destination: Some("ping".into()),
            direction: None,
            addresses: Addresses::default(),
            ports: Vec::new(),
            text: text.into(),
        }
    }

    #[test]
    fn what_is_written_is_read_as_it_was_meant() {
        let labels = |key: &str, value: &str| LabelSelector {
            match_labels: vec![(key.to_owned(), value.to_owned())],
            match_expressions: vec![Requirement {
                key: "tier".into(),
                operator: Operator::NotIn(vec!["x".into()]),
            }],
        };
        let port = |port| PortSpec { protocol: Protocol::Udp, port };
        let plain = generated::NetworkPolicy {
            id: NsName::new("shop", "egress-checkout"),
            selector: labels("app", "checkout"),
            egress: vec![
                EgressRule {
                    to: vec![],
                    ports: vec![port(PortMatch::Any), port(PortMatch::Range(1, 65535))],
                },
                EgressRule {
                    to: vec![
                        Peer::Block {
                            cidr: "10.0.0.0/8".parse().expect("a prefix"),
                            except: vec!["10.9.0.0/16".parse().expect("a prefix")],
                        },
                        Peer::Pods { namespaces: Some(labels("team", "x")), pods: None },
                        Peer::Pods { namespaces: None, pods: Some(LabelSelector::default()) },
                    ],
                    ports: vec![port(PortMatch::Name("dns".into())), port(PortMatch::Range(53, 53))],
                },
            ],
        };
        let policy = NsName::new("shop", "checkout");
        let losses = [loss("a"), loss("b")];
        let owner = OwnerReference { name: "checkout".into(), ..OwnerReference::default() };
        let origin = Origin { policy: &policy, revision: Some("17"), owner: Some(&owner), losses: &losses };
        let written = object(&plain, &origin);
        assert_eq!(written.metadata.owner_references, Some(vec![owner.clone()]));
        let annotations = written.metadata.annotations.clone().expect("it has annotations");
        assert_eq!(annotations[SOURCE], "shop/checkout");
        assert_eq!(annotations[SOURCE_REVISION], "17");
        assert_eq!(annotations[LOSSES], "ping: a [icmp]\nping: b [icmp]");

        let value = serde_json::to_value(&written).expect("it is JSON");
        assert_eq!(network_policy::unknown_fields(&value), []);
        let read = network_policy::egress(&plain.id, written.spec)
            .expect("it is valid")
            .expect("it is about egress");
        assert_eq!(read.selector, plain.selector);
        assert_eq!(read.rules.len(), 2);
        assert_eq!(read.rules[0].ports, Ports::List(plain.egress[0].ports.clone()));
        assert_eq!(read.rules[1].peers.len(), 3);
        assert_eq!(generated::restated(&read).map(|read| read.egress), Some(plain.egress));
    }

    #[test]
    fn an_object_without_rules_denies_everything() {
        let plain = generated::NetworkPolicy {
            id: NsName::new("shop", "egress-none"),
            selector: LabelSelector::default(),
            egress: Vec::new(),
        };
        let policy = NsName::new("shop", "none");
        let written = object(&plain, &Origin { policy: &policy, revision: None, owner: None, losses: &[] });
        let read = network_policy::egress(&plain.id, written.spec)
            .expect("it is valid")
            .expect("it is about egress");
        assert!(read.rules.is_empty());
    }

    #[test]
    fn the_list_of_losses_is_bounded() {
        let losses: Vec<Loss> = (0..500).map(|number| loss(&format!("loss number {number}"))).collect();
        let text = told(&losses);
        assert!(text.len() <= MOST_LOSSES, "{}", text.len());
        let lines = text.lines().count();
        assert!(text.ends_with(&format!("\nand {} more", 500 - (lines - 1))), "{text}");
    }
}
