//! Objects as the API server sends them, read for what the agent keeps and nothing else.
//!
//! A pod is four to six kilobytes of JSON, of which some two hundred octets matter here. Reading only those saves most of the work
//! of a long list, and an object of unexpected shape costs itself and not the list it stands in.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::{
    api::{
        core::v1::{
            ConfigMap, Container, ContainerPort, Namespace, Node, NodeAddress, NodeSpec, NodeStatus, Pod,
            PodIP, PodSpec, PodStatus, Service, ServicePort, ServiceSpec,
        },
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::core::{DynamicResourceScope, Resource};
use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;

use super::convert;
use crate::policy::{
    cluster::NsName,
    index::{Object, ObjectKey, ObjectKind},
};

/// An object that has not been looked into yet, but for its name.
#[derive(Clone, Debug)]
pub struct Raw {
    metadata: ObjectMeta,
    text: Box<RawValue>,
}

impl Raw {
    /// Returns what the index takes of it.
    ///
    /// # Errors
    ///
    /// [`Rejected`], with the name if that much can be read.
    pub fn read(&self, kind: ObjectKind) -> Result<Object, Rejected> {
        read(kind, self.text.get()).map_err(|message| Rejected { key: self.key(kind), message })
    }

    /// Returns its name; `None` if it has none, or no namespace where it must.
    #[must_use]
    pub fn key(&self, kind: ObjectKind) -> Option<ObjectKey> {
        let name = self.metadata.name.clone().filter(|name| !name.is_empty())?;
        let id = |name: String| {
            let namespace = self.metadata.namespace.clone().filter(|namespace| !namespace.is_empty())?;
            Some(NsName::new(namespace, name))
        };
        Some(match kind {
            ObjectKind::Namespace => ObjectKey::Namespace(name),
            ObjectKind::Node => ObjectKey::Node(name),
            ObjectKind::Pod => ObjectKey::Pod(id(name)?),
            ObjectKind::Service => ObjectKey::Service(id(name)?),
            ObjectKind::EndpointSlice => ObjectKey::EndpointSlice(id(name)?),
            ObjectKind::ConfigMap => ObjectKey::ConfigMap(id(name)?),
            ObjectKind::NetworkPolicy => ObjectKey::NetworkPolicy(id(name)?),
        })
    }
}

/// An object that could not be read. The last version of it stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejected {
    /// Its name, if it has one.
    pub key: Option<ObjectKey>,
    /// What is wrong with it.
    pub message: String,
}

impl<'de> Deserialize<'de> for Raw {
    /// Fails only where the text is no JSON.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Named {
            metadata: Lenient<Identity>,
        }
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let named: Lenient<Named> = serde_json::from_str(text.get()).map_err(de::Error::custom)?;
        let Identity { name, namespace, uid, resource_version } = named.0.metadata.0;
        let metadata = ObjectMeta {
            name: name.0,
            namespace: namespace.0,
            uid: uid.0,
            resource_version: resource_version.0,
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, text })
    }
}

/// A value, or its default where the text holds something else.
#[derive(Default)]
struct Lenient<T>(T);

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&RawValue>::deserialize(deserializer)?;
        Ok(Self(serde_json::from_str(text.get()).unwrap_or_default()))
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Identity {
    name: Lenient<Option<String>>,
    namespace: Lenient<Option<String>>,
    uid: Lenient<Option<String>>,
    resource_version: Lenient<Option<String>>,
}

impl Resource for Raw {
    type DynamicType = ObjectKind;
    type Scope = DynamicResourceScope;

    fn kind(kind: &ObjectKind) -> Cow<'_, str> {
        kind.as_str().into()
    }

    fn group(kind: &ObjectKind) -> Cow<'_, str> {
        kind.api_version().split_once('/').map_or("", |(group, _)| group).into()
    }

    fn version(kind: &ObjectKind) -> Cow<'_, str> {
        kind.api_version().rsplit('/').next().expect("splitting gives at least one part").into()
    }

    fn plural(kind: &ObjectKind) -> Cow<'_, str> {
        plural(*kind).into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Returns how a kind is called in paths and in metrics.
#[must_use]
pub const fn plural(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Namespace => "namespaces",
        ObjectKind::Pod => "pods",
        ObjectKind::Service => "services",
        ObjectKind::EndpointSlice => "endpointslices",
        ObjectKind::Node => "nodes",
        ObjectKind::ConfigMap => "configmaps",
        ObjectKind::NetworkPolicy => "networkpolicies",
    }
}

fn read(kind: ObjectKind, text: &str) -> Result<Object, String> {
    fn parsed<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }
    let object = match kind {
        ObjectKind::Namespace => convert::namespace(parsed::<NamespaceText>(text)?.into()),
        ObjectKind::Pod => convert::pod(parsed::<PodText>(text)?.into()),
        ObjectKind::Service => convert::service(parsed::<ServiceText>(text)?.into()),
        ObjectKind::EndpointSlice => convert::endpoint_slice(parsed::<SliceText>(text)?.into()),
        ObjectKind::Node => convert::node(parsed::<NodeText>(text)?.into()),
        ObjectKind::ConfigMap => convert::config_map(parsed::<ConfigMapText>(text)?.into()),
        ObjectKind::NetworkPolicy => convert::network_policy(parsed::<NetworkPolicy>(text)?),
    };
    object.map_err(|error| error.to_string())
}

type Strings = BTreeMap<String, String>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    labels: Option<Strings>,
    annotations: Option<Annotations>,
    owner_references: Option<Vec<Owner>>,
}

#[derive(Deserialize)]
struct Annotations {
    #[serde(rename = "kubernetes.io/config.hash")]
    config_hash: Option<String>,
    #[serde(rename = "kubernetes.io/config.mirror")]
    config_mirror: Option<String>,
}

#[derive(Deserialize)]
struct Owner {
    kind: String,
    name: String,
    controller: Option<bool>,
}

impl From<Metadata> for ObjectMeta {
    fn from(text: Metadata) -> Self {
        let owner = |owner: Owner| OwnerReference {
            kind: owner.kind,
            name: owner.name,
            controller: owner.controller,
            ..OwnerReference::default()
        };
        let annotations = text.annotations.map(|Annotations { config_hash, config_mirror }| {
            let hash = config_hash.map(|hash| ("kubernetes.io/config.hash".to_owned(), hash));
            let mirror = config_mirror.map(|mirror| ("kubernetes.io/config.mirror".to_owned(), mirror));
            hash.into_iter().chain(mirror).collect()
        });
        Self {
            name: text.name,
            namespace: text.namespace,
            uid: text.uid,
            labels: text.labels,
            annotations,
            owner_references: text.owner_references.map(|owners| owners.into_iter().map(owner).collect()),
            ..Self::default()
        }
    }
}

#[derive(Deserialize)]
struct NamespaceText {
    metadata: Metadata,
}

impl From<NamespaceText> for Namespace {
    fn from(text: NamespaceText) -> Self {
        Self { metadata: text.metadata.into(), ..Self::default() }
    }
}

#[derive(Deserialize)]
struct PodText {
    metadata: Metadata,
    spec: Option<PodSpecText>,
    status: Option<PodStatusText>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpecText {
    node_name: Option<String>,
    host_network: Option<bool>,
    containers: Option<Vec<ContainerText>>,
    init_containers: Option<Vec<ContainerText>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerText {
    restart_policy: Option<String>,
    ports: Option<Vec<ContainerPortText>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPortText {
    name: Option<String>,
    protocol: Option<String>,
    container_port: i32,
}

#[derive(Deserialize)]
struct PodStatusText {
    phase: Option<String>,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIpText>>,
}

#[derive(Deserialize)]
struct PodIpText {
    ip: Option<String>,
}

impl From<PodText> for Pod {
    fn from(text: PodText) -> Self {
        let port = |port: ContainerPortText| ContainerPort {
            name: port.name,
            protocol: port.protocol,
            container_port: port.container_port,
            ..ContainerPort::default()
        };
        let container = |container: ContainerText| Container {
            restart_policy: container.restart_policy,
            ports: container.ports.map(|ports| ports.into_iter().map(port).collect()),
            ..Container::default()
        };
        let spec = text.spec.map(|spec| PodSpec {
            node_name: spec.node_name,
            host_network: spec.host_network,
            containers: spec.containers.unwrap_or_default().into_iter().map(container).collect(),
            init_containers: spec.init_containers.map(|all| all.into_iter().map(container).collect()),
            ..PodSpec::default()
        });
        let address = |text: PodIpText| PodIP { ip: text.ip.unwrap_or_default() };
        let status = text.status.map(|status| PodStatus {
            phase: status.phase,
            host_ip: status.host_ip,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips.map(|addresses| addresses.into_iter().map(address).collect()),
            ..PodStatus::default()
        });
        Self { metadata: text.metadata.into(), spec, status }
    }
}

#[derive(Deserialize)]
struct ServiceText {
    metadata: Metadata,
    spec: Option<ServiceSpecText>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceSpecText {
    #[serde(rename = "type")]
    kind: Option<String>,
    external_name: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    ports: Option<Vec<ServicePortText>>,
}

#[derive(Deserialize)]
struct ServicePortText {
    name: Option<String>,
    protocol: Option<String>,
    port: i32,
}

impl From<ServiceText> for Service {
    fn from(text: ServiceText) -> Self {
        let port = |port: ServicePortText| ServicePort {
            name: port.name,
            protocol: port.protocol,
            port: port.port,
            ..ServicePort::default()
        };
        let spec = text.spec.map(|spec| ServiceSpec {
            type_: spec.kind,
            external_name: spec.external_name,
            cluster_ip: spec.cluster_ip,
            cluster_ips: spec.cluster_ips,
            ports: spec.ports.map(|ports| ports.into_iter().map(port).collect()),
            ..ServiceSpec::default()
        });
        Self { metadata: text.metadata.into(), spec, ..Self::default() }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SliceText {
    metadata: Metadata,
    address_type: Option<String>,
    endpoints: Option<Vec<EndpointText>>,
    ports: Option<Vec<EndpointPortText>>,
}

#[derive(Deserialize)]
struct EndpointText {
    addresses: Option<Vec<String>>,
    conditions: Option<ConditionsText>,
}

#[derive(Deserialize)]
struct ConditionsText {
    ready: Option<bool>,
    serving: Option<bool>,
}

#[derive(Deserialize)]
struct EndpointPortText {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i32>,
}

impl From<SliceText> for EndpointSlice {
    fn from(text: SliceText) -> Self {
        let endpoint = |endpoint: EndpointText| Endpoint {
            addresses: endpoint.addresses.unwrap_or_default(),
            conditions: endpoint.conditions.map(|conditions| EndpointConditions {
                ready: conditions.ready,
                serving: conditions.serving,
                ..EndpointConditions::default()
            }),
            ..Endpoint::default()
        };
        let port = |port: EndpointPortText| EndpointPort {
            name: port.name,
            protocol: port.protocol,
            port: port.port,
            ..EndpointPort::default()
        };
        Self {
            metadata: text.metadata.into(),
            address_type: text.address_type.unwrap_or_default(),
            endpoints: text.endpoints.unwrap_or_default().into_iter().map(endpoint).collect(),
            ports: text.ports.map(|ports| ports.into_iter().map(port).collect()),
        }
    }
}

#[derive(Deserialize)]
struct NodeText {
    metadata: Metadata,
    spec: Option<NodeSpecText>,
    status: Option<NodeStatusText>,
}

#[derive(Deserialize)]
struct NodeSpecText {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct NodeStatusText {
    addresses: Option<Vec<NodeAddressText>>,
}

#[derive(Deserialize)]
struct NodeAddressText {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

impl From<NodeText> for Node {
    fn from(text: NodeText) -> Self {
        let address = |text: NodeAddressText| NodeAddress { type_: text.kind, address: text.address };
        let spec = text.spec.map(|spec| NodeSpec {
            pod_cidr: spec.pod_cidr,
            pod_cidrs: spec.pod_cidrs,
            ..NodeSpec::default()
        });
        let status = text.status.map(|status| NodeStatus {
            addresses: status.addresses.map(|addresses| addresses.into_iter().map(address).collect()),
            ..NodeStatus::default()
        });
        Self { metadata: text.metadata.into(), spec, status }
    }
}

#[derive(Deserialize)]
struct ConfigMapText {
    metadata: Metadata,
    data: Option<DataText>,
}

#[derive(Deserialize)]
struct DataText {
    #[serde(rename = "policy.json")]
    policy: Option<String>,
}

impl From<ConfigMapText> for ConfigMap {
    fn from(text: ConfigMapText) -> Self {
        let policy = text.data.and_then(|data| data.policy);
        let data = policy.map(|policy| [(convert::POLICY_KEY.to_owned(), policy)].into());
        Self { metadata: text.metadata.into(), data, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn raw(value: &Value) -> Raw {
        serde_json::from_str(&value.to_string()).expect("any JSON is taken")
    }

    /// What the whole object gives, read with every field there is.
    fn whole(kind: ObjectKind, value: Value) -> Result<Object, String> {
        fn typed<T: de::DeserializeOwned>(value: Value) -> T {
            serde_json::from_value(value).expect("the test's object has the right types")
        }
        let object = match kind {
            ObjectKind::Namespace => convert::namespace(typed(value)),
            ObjectKind::Pod => convert::pod(typed(value)),
            ObjectKind::Service => convert::service(typed(value)),
            ObjectKind::EndpointSlice => convert::endpoint_slice(typed(value)),
            ObjectKind::Node => convert::node(typed(value)),
            ObjectKind::ConfigMap => convert::config_map(typed(value)),
            ObjectKind::NetworkPolicy => convert::network_policy(typed(value)),
        };
        object.map_err(|error| error.to_string())
    }

    fn metadata() -> Value {
        json!({
            "name": "web-1", "namespace": "shop", "uid": "u-1", "resourceVersion": "7", "generation": 3,
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"app": "web", "pod-template-hash": "abc", "egress-controller": "managed",
                       "kubernetes.io/service-name": "web"},
            "annotations": {"kubernetes.io/config.hash": "feed", "kubernetes.io/config.mirror": "feed", "other": "x"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-abc", "uid": "r",
                                 "controller": true}],
            "managedFields": [{"manager": "m", "operation": "Update", "fieldsV1": {"f:a": {}}}]
        })
    }

    fn samples() -> Vec<(ObjectKind, Value)> {
        let of = |kind: ObjectKind, mut body: Value| {
            body["apiVersion"] = kind.api_version().into();
            body["kind"] = kind.as_str().into();
            body["metadata"] = metadata();
            (kind, body)
        };
        vec![
            of(ObjectKind::Namespace, json!({"status": {"phase": "Active"}})),
            of(
                ObjectKind::Pod,
                json!({
                    "spec": {
                        "nodeName": "n1", "hostNetwork": true, "tolerations": [{"operator": "Exists"}],
                        "containers": [{"name": "c", "image": "i", "env": [{"name": "A", "value": "b"}],
                            "ports": [{"name": "http", "containerPort": 80}, {"containerPort": 81}]}],
                        "initContainers": [
                            {"name": "s", "restartPolicy": "Always", "ports": [{"name": "m", "containerPort": 9, "protocol": "UDP"}]},
                            {"name": "i", "ports": [{"name": "never", "containerPort": 10}]}]
                    },
                    "status": {"phase": "Running", "hostIP": "192.0.2.1", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                               "conditions": [{"type": "Ready", "status": "True"}]}
                }),
            ),
            of(
                ObjectKind::Pod,
                json!({"spec": {"containers": []}, "status": {"phase": "Failed", "podIP": "10.0.0.1"}}),
            ),
            of(
                ObjectKind::Service,
                json!({"spec": {"type": "ClusterIP", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:96::1"],
                    "selector": {"a": "b"}, "ports": [{"name": "dns", "protocol": "UDP", "port": 53, "targetPort": "dns"}]}}),
            ),
            of(ObjectKind::Service, json!({"spec": {"type": "ExternalName", "externalName": "example.com"}})),
            of(
                ObjectKind::EndpointSlice,
                json!({"addressType": "IPv4", "ports": [{"name": "http", "protocol": "TCP", "port": 8080}, {"name": "x"}],
                    "endpoints": [
                        {"addresses": ["10.0.0.2"], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "p"}},
                        {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                        {"addresses": ["10.0.0.4"], "conditions": {"ready": false}},
                        {"addresses": ["10.0.0.1"]}]}),
            ),
            of(
                ObjectKind::Node,
                json!({"spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"]},
                    "status": {"images": [{"names": ["a"], "sizeBytes": 1}],
                        "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n"}]}}),
            ),
            of(
                ObjectKind::ConfigMap,
                json!({"data": {"policy.json": "{}", "other": "x"}, "binaryData": {"b": "AAAA"}}),
            ),
            of(ObjectKind::ConfigMap, json!({"data": {"other": "x"}})),
            of(
                ObjectKind::NetworkPolicy,
                json!({"spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": 443}]}]}}),
            ),
        ]
    }

    #[test]
    fn what_is_read_is_what_the_whole_object_gives() {
        for (kind, value) in samples() {
            let object = raw(&value).read(kind).unwrap_or_else(|error| panic!("{kind}: {error}"));
            assert_eq!(raw(&value).key(kind).as_ref(), Some(&object.key()));
            assert_eq!(Ok(object), whole(kind, value));
        }
    }

    #[test]
    fn null_and_missing_fields_are_the_same() {
        for (kind, mut value) in samples() {
            if kind == ObjectKind::NetworkPolicy {
                continue;
            }
            let fields = ["spec", "status", "data", "endpoints", "ports", "addressType"];
            let (mut missing, mut null) = (value.clone(), value.clone());
            for field in fields {
                missing.as_object_mut().expect("an object").remove(field);
                if value.get(field).is_some() {
                    null[field] = Value::Null;
                }
            }
            value["metadata"] = json!({"name": "web-1", "namespace": "shop", "labels": null});
            missing["metadata"] = value["metadata"].clone();
            null["metadata"] = value["metadata"].clone();
            assert_eq!(raw(&missing).read(kind), raw(&null).read(kind), "{kind}");
        }
    }

    #[test]
    fn an_object_of_unexpected_shape_is_rejected_with_its_name() {
        let pod = json!({"metadata": {"name": "a", "namespace": "b", "resourceVersion": "3"}, "status": {"podIPs": "x"}});
        let object = raw(&pod);
        let rejected = object.read(ObjectKind::Pod).expect_err("an array was expected");
        assert_eq!(rejected.key, Some(ObjectKey::Pod(NsName::new("b", "a"))));
        assert!(rejected.message.contains("invalid type"), "{rejected}");
        assert_eq!(object.meta().resource_version.as_deref(), Some("3"), "the watch goes on from here");
        let address = json!({"metadata": {"name": "a", "namespace": "b"}, "status": {"podIP": "10.0.0.300"}});
        let rejected = raw(&address).read(ObjectKind::Pod).expect_err("no such address");
        assert!(rejected.message.contains("10.0.0.300"), "{rejected}");
    }

    #[test]
    fn nothing_that_is_json_stops_a_list() {
        for text in [
            "null",
            "3",
            "[]",
            "\"x\"",
            "{}",
            r#"{"metadata": 3}"#,
            r#"{"metadata": {"name": {}, "labels": []}}"#,
        ] {
            let list: Vec<Raw> = serde_json::from_str(&format!("[{text}]")).expect("it is JSON");
            for kind in ObjectKind::ALL {
                assert!(list[0].read(kind).is_err(), "{text} is no {kind}");
                assert_eq!(list[0].key(kind), None, "{text} has no name");
            }
        }
        assert!(serde_json::from_str::<Vec<Raw>>("[{]").is_err());
    }

    #[test]
    fn paths_are_those_of_the_api() {
        let path = |kind, namespace| Raw::url_path(&kind, namespace);
        assert_eq!(path(ObjectKind::Pod, None), "/api/v1/pods");
        assert_eq!(path(ObjectKind::ConfigMap, Some("a")), "/api/v1/namespaces/a/configmaps");
        assert_eq!(path(ObjectKind::EndpointSlice, None), "/apis/discovery.k8s.io/v1/endpointslices");
        assert_eq!(
            path(ObjectKind::NetworkPolicy, Some("a")),
            "/apis/networking.k8s.io/v1/namespaces/a/networkpolicies"
        );
    }
}
