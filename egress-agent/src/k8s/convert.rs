//! Kubernetes objects as the index takes them.
//!
//! An object that cannot be converted is an error with its name in it, never an object with less in it: the caller keeps
//! the last version and reports.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::{
    api::{
        core::v1::{ConfigMap, Container, Namespace, Node, Pod, Service},
        discovery::v1::EndpointSlice,
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{generated, network_policy};
use crate::policy::{
    cluster::{self, NamedPort, NsName},
    index::{Object, ObjectKind},
    model::{Protocol, unmapped},
};

/// The label that makes a ConfigMap a policy, and its value.
pub const MANAGED: (&str, &str) = ("egress-controller", "managed");

/// The key of a ConfigMap under which its policy stands.
pub const POLICY_KEY: &str = "policy.json";

/// The namespace of an object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const TEMPLATE_HASH: &str = "pod-template-hash";

/// An object that cannot be converted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing can be done with an object without a name.
    #[error("{kind} without metadata.name")]
    NoName {
        /// What it is.
        kind: ObjectKind,
    },
    /// A field holds something else than it should.
    #[error("{kind} {name}: {path}: {message}")]
    Field {
        /// What it is.
        kind: ObjectKind,
        /// Its name, with the namespace if it has one.
        name: String,
        /// The field, such as `status.podIPs[0].ip`.
        path: String,
        /// What is wrong with it.
        message: String,
    },
}

/// Returns a Namespace's labels under its name.
///
/// # Errors
///
/// Without a name.
pub fn namespace(object: Namespace) -> Result<Object, Error> {
    let name = object.metadata.name.ok_or(Error::NoName { kind: ObjectKind::Namespace })?;
    Ok(Object::Namespace { name, labels: object.metadata.labels.unwrap_or_default().into() })
}

/// Returns what matters of a Pod.
///
/// # Errors
///
/// Without a name, or if an address or a named port cannot be understood.
pub fn pod(object: Pod) -> Result<Object, Error> {
    let id = namespaced(ObjectKind::Pod, &object.metadata)?;
    let at = Place { kind: ObjectKind::Pod, name: &id };
    let workload = workload(&id.name, &object.metadata);
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();

    let mut ips: Vec<IpAddr> = Vec::new();
    let listed = status.pod_ips.unwrap_or_default();
    let addresses = if listed.is_empty() {
        status.pod_ip.into_iter().map(|ip| ("status.podIP".to_owned(), ip)).collect::<Vec<_>>()
    } else {
        listed.into_iter().enumerate().map(|(i, ip)| (format!("status.podIPs[{i}].ip"), ip.ip)).collect()
    };
    for (path, text) in addresses {
        if text.is_empty() {
            continue;
        }
        let ip = at.address(&path, &text)?;
        if ips.contains(&ip) {
            continue;
        }
        if let Some(other) = ips.iter().find(|other| other.is_ipv4() == ip.is_ipv4()) {
            return Err(at.fault(path, format!("{ip} is a second address of the same family as {other}")));
        }
        ips.push(ip);
    }

    let mut ports = Vec::new();
    let sidecars = |container: &Container| container.restart_policy.as_deref() == Some("Always");
    let init = spec.init_containers.unwrap_or_default();
    let containers = spec
        .containers
        .iter()
        .enumerate()
        .map(|(i, container)| (format!("spec.containers[{i}]"), container))
        .chain(
            init.iter()
                .enumerate()
                .filter(|(_, container)| sidecars(container))
                .map(|(i, container)| (format!("spec.initContainers[{i}]"), container)),
        );
    for (path, container) in containers {
        for (i, port) in container.ports.iter().flatten().enumerate() {
            let Some(name) = port.name.as_ref().filter(|name| !name.is_empty()) else { continue };
            ports.push(NamedPort {
                name: name.clone(),
                protocol: at.protocol(&format!("{path}.ports[{i}].protocol"), port.protocol.as_deref())?,
                port: at.port(&format!("{path}.ports[{i}].containerPort"), port.container_port)?,
            });
        }
    }

    let annotations = object.metadata.annotations.unwrap_or_default();
    let pod = cluster::Pod {
        labels: object.metadata.labels.unwrap_or_default().into(),
        ips: ips.into_iter().collect(),
        host_network: spec.host_network.unwrap_or(false),
        finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        ports: ports.into(),
        local: Some(Box::new(cluster::Local {
            uid: object.metadata.uid.unwrap_or_default(),
            static_hash: static_hash(&annotations, status.host_ip.as_deref()),
            node: spec.node_name.unwrap_or_default(),
            workload,
        })),
    };
    Ok(Object::Pod(id, pod))
}

/// Returns the hash that names a static pod's cgroup, of the pod that stands for it in the API; empty for other pods.
///
/// Whoever may create pods can write the annotations. But only kubelet writes the status, and it gives one to such a pod only if it
/// has a static pod for it; others it deletes.
fn static_hash(annotations: &BTreeMap<String, String>, host_ip: Option<&str>) -> String {
    let hash = annotations.get("kubernetes.io/config.hash");
    let mirrors = hash.is_some() && hash == annotations.get("kubernetes.io/config.mirror");
    let acknowledged = host_ip.is_some_and(|address| !address.is_empty());
    hash.filter(|_| mirrors && acknowledged).cloned().unwrap_or_else(String::new)
}

/// Returns what matters of a Service.
///
/// # Errors
///
/// Without a name, or if an address or a port cannot be understood.
pub fn service(object: Service) -> Result<Object, Error> {
    let id = namespaced(ObjectKind::Service, &object.metadata)?;
    let at = Place { kind: ObjectKind::Service, name: &id };
    let spec = object.spec.unwrap_or_default();

    let listed = spec.cluster_ips.unwrap_or_default();
    let addresses = if listed.is_empty() {
        spec.cluster_ip.into_iter().map(|ip| ("spec.clusterIP".to_owned(), ip)).collect::<Vec<_>>()
    } else {
        listed.into_iter().enumerate().map(|(i, ip)| (format!("spec.clusterIPs[{i}]"), ip)).collect()
    };
    let mut cluster_ips = Vec::new();
    for (path, text) in addresses {
        if !text.is_empty() && text != "None" {
            cluster_ips.push(at.address(&path, &text)?);
        }
    }

    let mut ports = Vec::new();
    for (i, port) in spec.ports.unwrap_or_default().into_iter().enumerate() {
        ports.push(cluster::ServicePort {
            name: port.name.unwrap_or_default(),
            protocol: at.protocol(&format!("spec.ports[{i}].protocol"), port.protocol.as_deref())?,
            port: at.port(&format!("spec.ports[{i}].port"), port.port)?,
        });
    }

    let external_name =
        (spec.type_.as_deref() == Some("ExternalName")).then(|| spec.external_name.unwrap_or_default());
    Ok(Object::Service(id, cluster::Service { cluster_ips, ports, external_name }))
}

/// Returns what matters of an EndpointSlice. Its addresses come out sorted, so that a new order is no change.
///
/// # Errors
///
/// Without a name, or if an address or a port cannot be understood.
pub fn endpoint_slice(object: EndpointSlice) -> Result<Object, Error> {
    let id = namespaced(ObjectKind::EndpointSlice, &object.metadata)?;
    let at = Place { kind: ObjectKind::EndpointSlice, name: &id };

    let mut ports = Vec::new();
    for (i, port) in object.ports.unwrap_or_default().into_iter().enumerate() {
        ports.push(cluster::EndpointPort {
            name: port.name.unwrap_or_default(),
            protocol: at.protocol(&format!("ports[{i}].protocol"), port.protocol.as_deref())?,
            port: port.port.map(|number| at.port(&format!("ports[{i}].port"), number)).transpose()?,
        });
    }

    let mut addresses = Vec::new();
    // Addresses of type FQDN are names, not something a packet is sent to.
    if object.address_type != "FQDN" {
        for (i, endpoint) in object.endpoints.into_iter().enumerate() {
            let conditions = endpoint.conditions.unwrap_or_default();
            if conditions.ready == Some(false) && conditions.serving != Some(true) {
                continue;
            }
            for (j, text) in endpoint.addresses.iter().enumerate() {
                addresses.push(at.address(&format!("endpoints[{i}].addresses[{j}]"), text)?);
            }
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses.shrink_to_fit();

    let service = object.metadata.labels.unwrap_or_default().remove(SERVICE_NAME).unwrap_or_default();
    Ok(Object::EndpointSlice(id, cluster::EndpointSlice { service, ports, addresses }))
}

/// Returns what matters of a Node.
///
/// # Errors
///
/// Without a name, or if an address or a prefix cannot be understood.
pub fn node(object: Node) -> Result<Object, Error> {
    let name = object.metadata.name.ok_or(Error::NoName { kind: ObjectKind::Node })?;
    let at = Place { kind: ObjectKind::Node, name: &name };
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();

    let mut addresses = Vec::new();
    for (i, address) in status.addresses.unwrap_or_default().into_iter().enumerate() {
        if matches!(address.type_.as_str(), "InternalIP" | "ExternalIP") {
            addresses.push(at.address(&format!("status.addresses[{i}].address"), &address.address)?);
        }
    }

    let listed = spec.pod_cidrs.unwrap_or_default();
    let cidrs = if listed.is_empty() {
        spec.pod_cidr.into_iter().map(|cidr| ("spec.podCIDR".to_owned(), cidr)).collect::<Vec<_>>()
    } else {
        listed.into_iter().enumerate().map(|(i, cidr)| (format!("spec.podCIDRs[{i}]"), cidr)).collect()
    };
    let mut pod_cidrs = Vec::new();
    for (path, text) in cidrs {
        if !text.is_empty() {
            let cidr: IpNet = text
                .parse()
                .map_err(|_| at.fault(path, format!("`{text}` is not a prefix such as 10.1.0.0/24")))?;
            pod_cidrs.push(cidr.trunc());
        }
    }
    Ok(Object::Node(name, cluster::Node { addresses, pod_cidrs }))
}

/// Returns a ConfigMap's policy text and whether it is managed.
///
/// # Errors
///
/// Without a name.
pub fn config_map(object: ConfigMap) -> Result<Object, Error> {
    let id = namespaced(ObjectKind::ConfigMap, &object.metadata)?;
    let managed = object.metadata.labels.as_ref().is_some_and(is_managed);
    let policy = if managed { object.data.and_then(|mut data| data.remove(POLICY_KEY)) } else { None };
    Ok(Object::ConfigMap { id, managed, policy })
}

/// Returns a NetworkPolicy's egress half, or why it has none that can be enforced. One that was generated from a policy has none: it says
/// the same again, where it cannot say it exactly something wider.
///
/// # Errors
///
/// Without a name.
pub fn network_policy(object: NetworkPolicy) -> Result<Object, Error> {
    let id = namespaced(ObjectKind::NetworkPolicy, &object.metadata)?;
    if generated::is_generated(&object.metadata) {
        return Ok(Object::NetworkPolicy(id, Ok(None)));
    }
    let policy = network_policy::egress(&id, object.spec);
    Ok(Object::NetworkPolicy(id, policy))
}

/// Returns whether these are the labels of a ConfigMap that holds a policy.
#[must_use]
pub fn is_managed(labels: &BTreeMap<String, String>) -> bool {
    labels.get(MANAGED.0).is_some_and(|value| value == MANAGED.1)
}

/// Returns the protocol of this name; without one it is TCP, as everywhere in Kubernetes.
pub(super) fn protocol(name: Option<&str>) -> Result<Protocol, String> {
    match name {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("`{other}` is not a protocol; TCP, UDP and SCTP are")),
    }
}

/// Returns a port number in the range that ports have.
pub(super) fn port(number: i32) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(number) if number != 0 => Ok(number),
        Ok(_) | Err(_) => Err(format!("{number} is not a port; ports go from 1 to 65535")),
    }
}

fn namespaced(kind: ObjectKind, metadata: &ObjectMeta) -> Result<NsName, Error> {
    let name = metadata.name.as_deref().filter(|name| !name.is_empty()).ok_or(Error::NoName { kind })?;
    let namespace = metadata.namespace.as_deref().filter(|namespace| !namespace.is_empty());
    Ok(NsName::new(namespace.unwrap_or(DEFAULT_NAMESPACE), name))
}

/// The controller a pod belongs to. A ReplicaSet made by a Deployment stands for it: its name is the Deployment's and the
/// hash of the template, which the pod carries as a label.
fn workload(name: &str, metadata: &ObjectMeta) -> String {
    let controller =
        metadata.owner_references.iter().flatten().find(|owner| owner.controller.unwrap_or(false));
    let Some(owner) = controller else { return format!("Pod/{name}") };
    let hash = metadata.labels.as_ref().and_then(|labels| labels.get(TEMPLATE_HASH));
    if owner.kind == "ReplicaSet"
        && let Some(deployment) =
            hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'))
        && !deployment.is_empty()
    {
        return format!("Deployment/{deployment}");
    }
    format!("{}/{}", owner.kind, owner.name)
}

/// Which object a fault is in.
struct Place<'a, N> {
    kind: ObjectKind,
    name: &'a N,
}

impl<N: ToString> Place<'_, N> {
    fn fault(&self, path: impl Into<String>, message: impl Into<String>) -> Error {
        Error::Field {
            kind: self.kind,
            name: self.name.to_string(),
            path: path.into(),
            message: message.into(),
        }
    }

    fn address(&self, path: &str, text: &str) -> Result<IpAddr, Error> {
        match text.parse() {
            Ok(address) => Ok(unmapped(address)),
            Err(_) => Err(self.fault(path, format!("`{text}` is not an IP address"))),
        }
    }

    fn port(&self, path: &str, number: i32) -> Result<u16, Error> {
        port(number).map_err(|message| self.fault(path, message))
    }

    fn protocol(&self, path: &str, name: Option<&str>) -> Result<Protocol, Error> {
        protocol(name).map_err(|message| self.fault(path, message))
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;
    use crate::policy::cluster::Labels;

    fn read<T: DeserializeOwned>(kind: ObjectKind, mut body: Value) -> T {
        body["apiVersion"] = kind.api_version().into();
        body["kind"] = kind.as_str().into();
        serde_json::from_value(body).expect("the test's object has the right types")
    }

    fn mk_pod(metadata: &Value, spec: &Value, status: &Value) -> Result<cluster::Pod, Error> {
        let body = json!({"metadata": metadata, "spec": spec, "status": status});
        pod(read(ObjectKind::Pod, body)).map(|object| match object {
            Object::Pod(_, pod) => pod,
            other => panic!("a pod became {other:?}"),
        })
    }

    fn ips(addresses: &[&str]) -> Vec<IpAddr> {
        addresses.iter().map(|a| a.parse().expect("a literal address")).collect()
    }

    #[test]
    fn a_pod_keeps_what_matters() {
        let spec = json!({
            "nodeName": "n1", "hostNetwork": true,
            "containers": [
                {"name": "a", "ports": [{"name": "http", "containerPort": 8080}, {"containerPort": 9}]},
                {"name": "b", "ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]}],
            "initContainers": [
                {"name": "sidecar", "restartPolicy": "Always", "ports": [{"name": "m", "containerPort": 1, "protocol": "SCTP"}]},
                {"name": "init", "ports": [{"name": "no", "containerPort": 2}]}]});
        let status = json!({"phase": "Running", "podIP": "10.0.0.1",
            "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]});
        let pod = mk_pod(&json!({"name": "p", "uid": "u", "labels": {"app": "x"}}), &spec, &status)
            .expect("it can be converted");
        let port = |name: &str, protocol, port| NamedPort { name: name.into(), protocol, port };
        assert_eq!(
            pod,
            cluster::Pod {
                labels: Labels::from([("app".into(), "x".into())]),
                ips: ips(&["10.0.0.1", "fd00::1"]).into_iter().collect(),
                host_network: true,
                finished: false,
                ports: vec![
                    port("http", Protocol::Tcp, 8080),
                    port("dns", Protocol::Udp, 53),
                    port("m", Protocol::Sctp, 1)
                ]
                .into(),
                local: Some(Box::new(cluster::Local {
                    uid: "u".into(),
                    static_hash: String::new(),
                    node: "n1".into(),
                    workload: "Pod/p".into(),
                })),
            }
        );
    }

    #[test]
    fn a_static_pod_is_one_that_kubelet_acknowledges() {
        let (hash, mirror) = ("kubernetes.io/config.hash", "kubernetes.io/config.mirror");
        let kept = json!({"hostIP": "192.0.2.1"});
        for (annotations, status, expected) in [
            (json!({hash: "feed", mirror: "feed"}), &kept, "feed"),
            (json!({hash: "feed", mirror: "feed"}), &json!({}), ""),
            (json!({hash: "feed", mirror: "feed"}), &json!({"hostIP": ""}), ""),
            (json!({hash: "feed", mirror: "face"}), &kept, ""),
            (json!({hash: "feed"}), &kept, ""),
            (json!({mirror: "feed"}), &kept, ""),
        ] {
            let metadata = json!({"name": "p", "annotations": annotations});
            let pod = mk_pod(&metadata, &json!({"containers": []}), status).expect("it can be converted");
            assert_eq!(pod.static_hash(), expected, "{annotations} {status}");
        }
    }

    #[test]
    fn pod_addresses_follow_the_table() {
        for (status, expected) in [
            (json!({}), Ok(vec![])),
            (json!({"podIP": "10.0.0.1"}), Ok(ips(&["10.0.0.1"]))),
            (json!({"podIP": ""}), Ok(vec![])),
            (json!({"podIPs": [], "podIP": "fd00::1"}), Ok(ips(&["fd00::1"]))),
            (json!({"podIPs": [{"ip": "::ffff:10.0.0.1"}]}), Ok(ips(&["10.0.0.1"]))),
            (json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.1"}]}), Ok(ips(&["10.0.0.1"]))),
            (json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]}), Err("status.podIPs[1].ip")),
            (json!({"podIPs": [{"ip": "10.0.0.1/24"}]}), Err("status.podIPs[0].ip")),
            (json!({"podIP": "here"}), Err("status.podIP")),
        ] {
            match (mk_pod(&json!({"name": "p"}), &json!({"containers": []}), &status), expected) {
                (Ok(pod), Ok(expected)) => assert!(pod.ips.iter().eq(expected), "{status}"),
                (Err(error), Err(path)) => {
                    assert!(error.to_string().starts_with(&format!("Pod default/p: {path}: ")), "{error}");
                }
                (found, expected) => panic!("{status}: found {found:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn a_pod_is_finished_by_its_phase() {
        for (phase, finished) in [
            ("Pending", false),
            ("Running", false),
            ("Unknown", false),
            ("Succeeded", true),
            ("Failed", true),
        ] {
            let pod = mk_pod(&json!({"name": "p"}), &json!({"containers": []}), &json!({"phase": phase}));
            assert_eq!(pod.expect("it can be converted").finished, finished, "{phase}");
        }
    }

    #[test]
    fn the_workload_is_the_controller() {
        let owner = |kind: &str, name: &str, controller: bool| json!({"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "u", "controller": controller});
        for (metadata, expected) in [
            (json!({"name": "p"}), "Pod/p"),
            (json!({"name": "p", "ownerReferences": [owner("StatefulSet", "s", true)]}), "StatefulSet/s"),
            (json!({"name": "p", "ownerReferences": [owner("X", "x", false)]}), "Pod/p"),
            (
                json!({"name": "p", "ownerReferences": [owner("X", "x", false), owner("Job", "j", true)]}),
                "Job/j",
            ),
            (
                json!({"name": "p", "labels": {"pod-template-hash": "5d4f"}, "ownerReferences": [owner("ReplicaSet", "web-5d4f", true)]}),
                "Deployment/web",
            ),
            (
                json!({"name": "p", "labels": {"pod-template-hash": "5d4f"}, "ownerReferences": [owner("ReplicaSet", "web-ffff", true)]}),
                "ReplicaSet/web-ffff",
            ),
            (
                json!({"name": "p", "labels": {"pod-template-hash": "5d4f"}, "ownerReferences": [owner("ReplicaSet", "-5d4f", true)]}),
                "ReplicaSet/-5d4f",
            ),
            (
                json!({"name": "p", "ownerReferences": [owner("ReplicaSet", "web-5d4f", true)]}),
                "ReplicaSet/web-5d4f",
            ),
        ] {
            let pod = mk_pod(&metadata, &json!({"containers": []}), &json!({}));
            assert_eq!(
                pod.expect("it can be converted").local.expect("it is").workload,
                expected,
                "{metadata}"
            );
        }
    }

    #[test]
    fn a_service_keeps_addresses_and_ports() {
        let convert = |spec: Value| match service(read(
            ObjectKind::Service,
            json!({"metadata": {"namespace": "a", "name": "s"}, "spec": spec}),
        )) {
            Ok(Object::Service(id, service)) => {
                assert_eq!(id, NsName::new("a", "s"));
                Ok(service)
            }
            Ok(other) => panic!("a Service became {other:?}"),
            Err(error) => Err(error.to_string()),
        };
        let port = |name: &str, protocol, port| cluster::ServicePort { name: name.into(), protocol, port };
        assert_eq!(
            convert(json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"],
                "ports": [{"port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]})),
            Ok(cluster::Service {
                cluster_ips: ips(&["10.0.0.1", "fd00::1"]),
                ports: vec![port("", Protocol::Tcp, 80), port("dns", Protocol::Udp, 53)],
                external_name: None,
            })
        );
        let addresses = |spec| convert(spec).map(|service| service.cluster_ips);
        assert_eq!(addresses(json!({"clusterIP": "10.0.0.1"})), Ok(ips(&["10.0.0.1"])));
        assert_eq!(addresses(json!({"clusterIP": "None", "clusterIPs": ["None"]})), Ok(vec![]));
        assert_eq!(addresses(json!({"clusterIP": ""})), Ok(vec![]));
        let external = convert(json!({"type": "ExternalName", "externalName": "x.example"}));
        assert_eq!(external.expect("it can be converted").external_name.as_deref(), Some("x.example"));
        for (spec, path) in [
            (json!({"clusterIP": "x"}), "spec.clusterIP"),
            (json!({"ports": [{"port": 0}]}), "spec.ports[0].port"),
            (json!({"ports": [{"port": 65536}]}), "spec.ports[0].port"),
            (json!({"ports": [{"port": 1, "protocol": "tcp"}]}), "spec.ports[0].protocol"),
        ] {
            let error = convert(spec).expect_err("it cannot be converted");
            assert!(error.starts_with(&format!("Service a/s: {path}: ")), "{error}");
        }
    }

    #[test]
    fn a_slice_keeps_endpoints_that_may_get_traffic() {
        let endpoint =
            |address: &str, conditions: Value| json!({"addresses": [address], "conditions": conditions});
        let body = |kind: &str| {
            json!({"metadata": {"namespace": "a", "name": "s-1", "labels": {"kubernetes.io/service-name": "s"}},
                "addressType": kind,
                "ports": [{"port": 80}, {"name": "all", "protocol": "UDP"}],
                "endpoints": [
                    endpoint("10.0.0.9", json!({"ready": true})),
                    endpoint("10.0.0.1", json!({})),
                    {"addresses": ["10.0.0.2"]},
                    endpoint("10.0.0.3", json!({"ready": false})),
                    endpoint("10.0.0.4", json!({"ready": false, "serving": true, "terminating": true})),
                    endpoint("10.0.0.5", json!({"ready": false, "serving": false}))]})
        };
        let Ok(Object::EndpointSlice(id, slice)) =
            endpoint_slice(read(ObjectKind::EndpointSlice, body("IPv4")))
        else {
            panic!("it can be converted")
        };
        assert_eq!(id, NsName::new("a", "s-1"));
        let port = |name: &str, protocol, port| cluster::EndpointPort { name: name.into(), protocol, port };
        assert_eq!(
            slice,
            cluster::EndpointSlice {
                service: "s".into(),
                ports: vec![port("", Protocol::Tcp, Some(80)), port("all", Protocol::Udp, None)],
                addresses: ips(&["10.0.0.1", "10.0.0.2", "10.0.0.4", "10.0.0.9"]),
            }
        );
        let mut names = body("FQDN");
        names["endpoints"] = json!([endpoint("x.example", json!({}))]);
        let Ok(Object::EndpointSlice(_, slice)) = endpoint_slice(read(ObjectKind::EndpointSlice, names))
        else {
            panic!("it can be converted")
        };
        assert!(slice.addresses.is_empty(), "names are no addresses");
    }

    #[test]
    fn a_node_keeps_its_own_and_its_pods_prefixes() {
        let body = json!({"metadata": {"name": "n"},
            "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.7/24", "fd00:1::/64"]},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n"},
                {"type": "ExternalIP", "address": "2001:db8::1"}, {"type": "InternalDNS", "address": "n.example"}]}});
        let expected = cluster::Node {
            addresses: ips(&["192.0.2.1", "2001:db8::1"]),
            pod_cidrs: ["10.1.0.0/24", "fd00:1::/64"].map(|c| c.parse().expect("a literal prefix")).into(),
        };
        assert_eq!(node(read(ObjectKind::Node, body)), Ok(Object::Node("n".into(), expected)));
        let fallback = json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.1.0.0/24"}});
        let Ok(Object::Node(_, found)) = node(read(ObjectKind::Node, fallback)) else {
            panic!("it can be converted")
        };
        assert_eq!(found.pod_cidrs.len(), 1);
        let wrong = json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.1.0.0"}});
        let error = node(read(ObjectKind::Node, wrong)).expect_err("it cannot be converted");
        assert!(error.to_string().starts_with("Node n: spec.podCIDR: "), "{error}");
    }

    #[test]
    fn a_config_map_is_managed_by_its_label() {
        let convert = |labels: Value, data: Value| {
            config_map(read(
                ObjectKind::ConfigMap,
                json!({"metadata": {"name": "c", "labels": labels}, "data": data}),
            ))
            .expect("it can be converted")
        };
        let object = |managed, policy: Option<&str>| Object::ConfigMap {
            id: NsName::new("default", "c"),
            managed,
            policy: policy.map(str::to_owned),
        };
        let managed = json!({"egress-controller": "managed"});
        assert_eq!(convert(managed.clone(), json!({"policy.json": "{}"})), object(true, Some("{}")));
        assert_eq!(convert(managed, json!({"policy.yaml": "{}"})), object(true, None));
        assert_eq!(
            convert(json!({"egress-controller": "Managed"}), json!({"policy.json": "{}"})),
            object(false, None)
        );
        assert_eq!(convert(json!({}), json!({"policy.json": "{}"})), object(false, None));
    }

    #[test]
    fn namespaces_keep_labels_and_every_kind_needs_a_name() {
        let body = json!({"metadata": {"name": "a", "labels": {"team": "x"}}});
        assert_eq!(
            namespace(read(ObjectKind::Namespace, body)),
            Ok(Object::Namespace { name: "a".into(), labels: Labels::from([("team".into(), "x".into())]) })
        );
        let none =
            || json!({"metadata": {}, "spec": {"containers": []}, "addressType": "IPv4", "endpoints": []});
        let errors = [
            namespace(read(ObjectKind::Namespace, none())),
            pod(read(ObjectKind::Pod, none())),
            endpoint_slice(read(ObjectKind::EndpointSlice, none())),
            config_map(read(ObjectKind::ConfigMap, none())),
            network_policy(read(ObjectKind::NetworkPolicy, none())),
        ];
        for error in errors {
            assert!(matches!(error, Err(Error::NoName { .. })), "{error:?}");
        }
    }
}
