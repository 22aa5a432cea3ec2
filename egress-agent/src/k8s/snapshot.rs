//! The last good state in a file, for a node that starts without an API server.
//!
//! The file is a stream of manifests: every object trimmed to what the agent keeps, each on a line of its own, so that `egress-agent
//! explain --manifests FILE` reads it too. The first one says when it was written, the last one how many there are; without that one
//! the file was cut short, and says nothing.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    convert::{MANAGED, POLICY_KEY},
    trimmed::Raw,
};
use crate::policy::{
    cluster::{EndpointSlice, Node, NsName, Pod, Service},
    demand::Demand,
    index::{Object, ObjectKind, View},
    model::{LabelSelector, Operator, Peer, Policy, PolicyKind, PortMatch, Ports},
};

/// The `apiVersion` of the first and the last document.
const VERSION: &str = "egress-agent.dev/v1";
const HEAD: &str = "Snapshot";
const TAIL: &str = "SnapshotEnd";
/// No file larger than this is read: far more than the largest cluster has.
const MOST_BYTES: u64 = 1 << 30;
/// What stands between two documents.
const SEPARATOR: &str = "---\n";

/// Why a snapshot could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file operation failed.
    #[error("{action} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file does not hold what it should.
    #[error("{path}, line {line}: {message}", path = path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// Where in it.
        line: usize,
        /// What is wrong.
        message: String,
    },
}

/// What was read.
#[derive(Debug)]
pub struct Snapshot {
    /// When it was written, in seconds since the epoch.
    pub written: u64,
    /// What of the cluster was known in full, besides what is always followed.
    pub heard: Demand,
    /// The objects; of a policy whose last version is invalid, first the one in force and then that one.
    pub objects: Vec<Object>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: String,
    kind: String,
    node: String,
    written_at: u64,
    /// Nothing where it is not said.
    #[serde(default)]
    heard: Demand,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Tail {
    api_version: String,
    kind: String,
    objects: usize,
}

/// A snapshot that is written but not yet the one that counts.
#[derive(Debug)]
#[must_use = "it does not count before it is committed"]
pub struct Pending {
    file: File,
    path: PathBuf,
    target: PathBuf,
}

impl Pending {
    /// Makes it the one that counts, once it is safely on the disk. This may take as long as the disk does.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::File`]; the one before then still counts.
    pub fn commit(self) -> Result<(), SnapshotError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| SnapshotError::File { action, path, source }
        };
        self.file.sync_all().map_err(failed("writing", &self.path))?;
        fs::rename(&self.path, &self.target).map_err(failed("renaming", &self.path))?;
        let folder = folder(&self.target);
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("writing", folder))
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Writes what an index held beside `target`; see [`Pending::commit`]. `heard` is what of the cluster it holds in full, `now` is in
/// seconds since the epoch.
///
/// # Errors
///
/// [`SnapshotError::File`], as when the disk is full; the snapshot before stays.
pub fn write(
    state: &View,
    heard: &Demand,
    node: &str,
    target: &Path,
    now: u64,
) -> Result<Pending, SnapshotError> {
    let mut path = target.as_os_str().to_owned();
    path.push(".new");
    let path = PathBuf::from(path);
    let failed = |source| SnapshotError::File { action: "writing", path: path.clone(), source };
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path).map_err(failed)?;
    let mut out = BufWriter::with_capacity(1 << 16, file);
    let written = (|| {
        let head = Head {
            api_version: VERSION.into(),
            kind: HEAD.into(),
            node: node.into(),
            written_at: now,
            heard: heard.clone(),
        };
        put(&mut out, &head)?;
        let objects = objects(state, &mut out)?;
        put(&mut out, &Tail { api_version: VERSION.into(), kind: TAIL.into(), objects })?;
        out.flush()
    })();
    if let Err(source) = written {
        // Half a file is no use, and takes room on a disk that may be full.
        let removed = fs::remove_file(&path);
        tracing::debug!(?removed, "a snapshot was given up");
        return Err(failed(source));
    }
    let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
    Ok(Pending { file, path, target: target.to_owned() })
}

/// Reads a snapshot; `None` if there is none, or one of another node.
///
/// # Errors
///
/// [`SnapshotError`]. Nothing of a file with errors is used.
pub fn read(path: &Path, node: &str) -> Result<Option<Snapshot>, SnapshotError> {
    let failed = |source| SnapshotError::File { action: "reading", path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut head: Option<Head> = None;
    let mut objects = Vec::new();
    let mut number = 0;
    let mut tail: Option<Tail> = None;
    for line in BufReader::new(file.take(MOST_BYTES)).lines() {
        number += 1;
        let content =
            |message: String| SnapshotError::Content { path: path.to_owned(), line: number, message };
        let line = line.map_err(failed)?;
        if line == "---" {
            continue;
        }
        if tail.is_some() {
            return Err(content("something follows the end".to_owned()));
        }
        if head.is_none() {
            let found: Head = serde_json::from_str(&line).map_err(|error| content(error.to_string()))?;
            if found.api_version != VERSION || found.kind != HEAD {
                return Err(content(format!("not a snapshot of version {VERSION}")));
            }
            if found.node != node {
                return Ok(None);
            }
            head = Some(found);
            continue;
        }
        let kind: Kind = serde_json::from_str(&line).map_err(|error| content(error.to_string()))?;
        if kind.kind == TAIL {
            tail = Some(serde_json::from_str(&line).map_err(|error| content(error.to_string()))?);
            continue;
        }
        let known = ObjectKind::ALL.into_iter().find(|known| known.as_str() == kind.kind);
        let known = known.ok_or_else(|| content(format!("{} is no kind of object known here", kind.kind)))?;
        let raw: Raw = serde_json::from_str(&line).map_err(|error| content(error.to_string()))?;
        let mut object = raw.read(known).map_err(|rejected| content(rejected.to_string()))?;
        if let Object::Pod(_, pod) = &mut object
            && pod.node() != node
        {
            pod.local = None;
        }
        objects.push(object);
    }
    let content = |message: &str| SnapshotError::Content {
        path: path.to_owned(),
        line: number,
        message: message.to_owned(),
    };
    match (head, tail) {
        (Some(head), Some(tail)) if tail.objects == objects.len() => {
            Ok(Some(Snapshot { written: head.written_at, heard: head.heard, objects }))
        }
        (_, Some(_)) => Err(content("some of the objects are missing")),
        (_, None) => Err(content("the end is missing: the file was cut short")),
    }
}

#[derive(Deserialize)]
struct Kind {
    kind: String,
}

fn put(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    out.write_all(SEPARATOR.as_bytes())?;
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

/// Writes every object; returns how many.
fn objects(state: &View, out: &mut impl Write) -> io::Result<usize> {
    let cluster = state.cluster();
    let mut count = 0;
    let mut write = |kind: ObjectKind, mut body: Value| {
        body["apiVersion"] = kind.api_version().into();
        body["kind"] = kind.as_str().into();
        count += 1;
        put(out, &body)
    };
    for (name, labels) in &cluster.namespaces {
        write(ObjectKind::Namespace, json!({"metadata": {"name": name, "labels": labels}}))?;
    }
    for (name, node) in &cluster.nodes {
        write(ObjectKind::Node, node_body(name, node))?;
    }
    for (id, text, good) in state.texts() {
        for text in good.into_iter().map(Some).chain([text]) {
            let data = text.map(|text| json!({POLICY_KEY: text}));
            let metadata =
                json!({"namespace": id.namespace, "name": id.name, "labels": {MANAGED.0: MANAGED.1}});
            write(ObjectKind::ConfigMap, json!({"metadata": metadata, "data": data}))?;
        }
    }
    for policy in cluster.policies.values().filter(|policy| policy.id.kind == PolicyKind::NetworkPolicy) {
        write(ObjectKind::NetworkPolicy, network_policy(policy))?;
    }
    for (id, service) in &cluster.services {
        write(ObjectKind::Service, service_body(id, service))?;
    }
    for (id, slice) in &cluster.slices {
        write(ObjectKind::EndpointSlice, slice_body(id, slice))?;
    }
    for (id, pod) in &cluster.pods {
        write(ObjectKind::Pod, pod_body(&id.into(), pod))?;
    }
    Ok(count)
}

fn metadata(id: &NsName) -> Value {
    json!({"namespace": id.namespace, "name": id.name})
}

fn node_body(name: &str, node: &Node) -> Value {
    let addresses: Vec<Value> =
        node.addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    json!({
        "metadata": {"name": name},
        "spec": {"podCIDRs": node.pod_cidrs},
        "status": {"addresses": addresses},
    })
}

fn service_body(id: &NsName, service: &Service) -> Value {
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|port| json!({"name": port.name, "protocol": port.protocol.as_str(), "port": port.port}))
        .collect();
    let mut spec = json!({"clusterIPs": service.cluster_ips, "ports": ports});
    if let Some(name) = &service.external_name {
        spec["type"] = "ExternalName".into();
        spec["externalName"] = name.clone().into();
    }
    json!({"metadata": metadata(id), "spec": spec})
}

fn slice_body(id: &NsName, slice: &EndpointSlice) -> Value {
    let ports: Vec<Value> = slice
        .ports
        .iter()
        .map(|port| json!({"name": port.name, "protocol": port.protocol.as_str(), "port": port.port}))
        .collect();
    let mut metadata = metadata(id);
    metadata["labels"] = json!({"kubernetes.io/service-name": slice.service});
    // The type of the addresses does not matter here but for names, of which none is kept.
    json!({
        "metadata": metadata, "addressType": "IPv4", "ports": ports,
        "endpoints": [{"addresses": slice.addresses}],
    })
}

fn pod_body(id: &NsName, pod: &Pod) -> Value {
    let mut metadata = metadata(id);
    metadata["labels"] = json!(pod.labels);
    let mut set = |field: &str, text: &str, value: Value| {
        if !text.is_empty() {
            metadata[field] = value;
        }
    };
    set("uid", pod.uid(), json!(pod.uid()));
    set(
        "annotations",
        pod.static_hash(),
        json!({"kubernetes.io/config.hash": pod.static_hash(), "kubernetes.io/config.mirror": pod.static_hash()}),
    );
    if let Some((kind, name)) = pod.workload().split_once('/')
        && kind != "Pod"
    {
        metadata["ownerReferences"] = json!([{"kind": kind, "name": name, "controller": true}]);
    }
    let ports: Vec<Value> = pod
        .ports
        .iter()
        .map(
            |port| json!({"name": port.name, "protocol": port.protocol.as_str(), "containerPort": port.port}),
        )
        .collect();
    let addresses: Vec<Value> = pod.ips.iter().map(|address| json!({"ip": address})).collect();
    json!({
        "metadata": metadata,
        "spec": {"nodeName": pod.node(), "hostNetwork": pod.host_network, "containers": [{"ports": ports}]},
        // That kubelet has acknowledged it is what makes a static pod one; where it runs is not kept.
        "status": {"phase": if pod.finished { "Succeeded" } else { "Running" }, "hostIP": "0.0.0.0", "podIPs": addresses},
    })
}

/// Returns the egress half of a NetworkPolicy as the API writes it.
fn network_policy(policy: &Policy) -> Value {
    let rules: Vec<Value> = policy
        .rules
        .iter()
        .filter_map(|rule| {
            let mut body = Map::new();
            if !rule.peers.contains(&Peer::Any) {
                let peers: Vec<Value> = rule.peers.iter().filter_map(peer_body).collect();
                // A rule without peers would hold for all of them.
                if peers.is_empty() {
                    return None;
                }
                body.insert("to".to_owned(), peers.into());
            }
            if let Ports::List(ports) = &rule.ports {
                let ports = ports.iter().map(|spec| {
                    let protocol = spec.protocol.as_str();
                    match &spec.port {
                        PortMatch::Any => json!({"protocol": protocol}),
                        PortMatch::Name(name) => json!({"protocol": protocol, "port": name}),
                        PortMatch::Range(first, last) if first == last => {
                            json!({"protocol": protocol, "port": first})
                        }
                        PortMatch::Range(first, last) => {
                            json!({"protocol": protocol, "port": first, "endPort": last})
                        }
                    }
                });
                body.insert("ports".to_owned(), ports.collect());
            }
            Some(Value::Object(body))
        })
        .collect();
    json!({
        "metadata": metadata(&policy.id.id),
        "spec": {"podSelector": selector(&policy.selector), "policyTypes": ["Egress"], "egress": rules},
    })
}

/// Returns a peer as the API writes it; the kinds a NetworkPolicy has not are not in one.
fn peer_body(peer: &Peer) -> Option<Value> {
    match peer {
        Peer::Cidrs { cidrs, except } => Some(json!({"ipBlock": {"cidr": cidrs.first()?, "except": except}})),
        Peer::Pods { namespaces, pods } => {
            let mut body = Map::new();
            if let Some(namespaces) = namespaces {
                body.insert("namespaceSelector".to_owned(), selector(namespaces));
            }
            if let Some(pods) = pods {
                body.insert("podSelector".to_owned(), selector(pods));
            }
            Some(Value::Object(body))
        }
        Peer::Any | Peer::Service(_) | Peer::Entity(_) | Peer::Cloud(_) | Peer::Unresolved(_) => None,
    }
}

fn selector(selector: &LabelSelector) -> Value {
    let labels: Map<String, Value> =
        selector.match_labels.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
    let expressions: Vec<Value> = selector
        .match_expressions
        .iter()
        .map(|requirement| {
            let key = &requirement.key;
            match &requirement.operator {
                Operator::In(values) => json!({"key": key, "operator": "In", "values": values}),
                Operator::NotIn(values) => json!({"key": key, "operator": "NotIn", "values": values}),
                Operator::Exists => json!({"key": key, "operator": "Exists"}),
                Operator::DoesNotExist => json!({"key": key, "operator": "DoesNotExist"}),
            }
        })
        .collect();
    json!({"matchLabels": labels, "matchExpressions": expressions})
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, test_runner::Config};

    use super::*;
    use crate::policy::{
        cluster::Cluster,
        demand::{Nodes, Scope},
        generate::{Scenario, scenario},
        index::{InForce, Index, ObjectKey},
        model::{Effect, Protocol, Rule},
    };

    fn restored(path: &Path) -> Index {
        let snapshot = read(path, "node-1").expect("it can be read").expect("it is there");
        let mut index = Index::default();
        for object in snapshot.objects {
            let _ = index.apply(object);
        }
        index
    }

    fn managed(name: &str, text: Option<&str>) -> Object {
        Object::ConfigMap { id: NsName::new("shop", name), managed: true, policy: text.map(str::to_owned) }
    }

    fn good(cidr: &str) -> String {
        format!(r#"{{"defaultAction": "deny", "allowedDestinations": [{{"name": "a", "cidr": "{cidr}"}}]}}"#)
    }

    /// An index with a cluster's objects, but for ConfigMaps: the scenarios have policies of which there is no text.
    fn index_of(cluster: &Cluster) -> Index {
        let mut index = Index::default();
        let namespaces = cluster
            .namespaces
            .iter()
            .map(|(name, labels)| Object::Namespace { name: name.clone(), labels: labels.clone() });
        let objects = namespaces
            .chain(cluster.nodes.iter().map(|(name, node)| Object::Node(name.clone(), node.clone())))
            .chain(cluster.services.iter().map(|(id, service)| Object::Service(id.clone(), service.clone())))
            .chain(cluster.slices.iter().map(|(id, slice)| Object::EndpointSlice(id.clone(), slice.clone())))
            .chain(cluster.pods.iter().map(|(id, pod)| Object::Pod(id.into(), pod.clone())))
            .chain(
                cluster.policies.values().filter(|policy| policy.id.kind == PolicyKind::NetworkPolicy).map(
                    |policy| Object::NetworkPolicy(policy.id.id.clone(), Ok(Some(Policy::clone(policy)))),
                ),
            );
        for object in objects {
            let _ = index.apply(object);
        }
        index
    }

    /// Whether the API could have said this: the scenarios' policies are of either kind, whatever is in them.
    fn is_network_policy(policy: &Policy) -> bool {
        let peer = |peer: &Peer| match peer {
            Peer::Any => true,
            Peer::Cidrs { cidrs, except } => {
                cidrs.len() == 1 && except.iter().all(|net| cidrs[0].contains(net) && *net != cidrs[0])
            }
            Peer::Pods { namespaces, pods } => namespaces.is_some() || pods.is_some(),
            Peer::Service(_) | Peer::Entity(_) | Peer::Cloud(_) | Peer::Unresolved(_) => false,
        };
        let ports = |ports: &Ports| match ports {
            Ports::All => true,
            Ports::List(specs) => specs.iter().all(|spec| spec.protocol != Protocol::Icmp),
        };
        let all_at_once = |rule: &Rule| rule.peers.contains(&Peer::Any) && rule.peers.len() > 1;
        policy.rules.iter().all(|rule| {
            rule.effect == Effect::Allow
                && rule.peers.iter().all(peer)
                && ports(&rule.ports)
                && !all_at_once(rule)
        })
    }

    /// A policy's selector and its rules' peers and ports, with labels as a map has them: sorted, each key once.
    fn normal(policy: &Policy) -> (LabelSelector, Vec<(Vec<Peer>, Ports)>) {
        let labels = |selector: &LabelSelector| {
            let map: std::collections::BTreeMap<_, _> = selector.match_labels.iter().cloned().collect();
            LabelSelector { match_labels: map.into_iter().collect(), ..selector.clone() }
        };
        let peer = |peer: &Peer| match peer {
            Peer::Pods { namespaces, pods } => {
                Peer::Pods { namespaces: namespaces.as_ref().map(labels), pods: pods.as_ref().map(labels) }
            }
            other => other.clone(),
        };
        let rules =
            policy.rules.iter().map(|rule| (rule.peers.iter().map(peer).collect(), rule.ports.clone()));
        (labels(&policy.selector), rules.collect())
    }

    proptest! {
        #![proptest_config(Config { cases: 300, failure_persistence: None, ..Config::default() })]

        #[test]
        fn what_is_read_is_what_was_written(scenario in scenario()) {
            let Scenario { cluster, .. } = scenario;
            let folder = tempfile::tempdir().expect("a folder for the test");
            let path = folder.path().join("state.yaml");
            let index = index_of(&cluster);
            write(&index.view(), &Demand::default(), "node-1", &path, 7).and_then(Pending::commit).expect("there is room");
            let again = restored(&path);
            let (left, right) = (index.cluster(), again.cluster());
            prop_assert_eq!(&left.namespaces, &right.namespaces);
            prop_assert_eq!(&left.nodes, &right.nodes);
            prop_assert_eq!(&left.services, &right.services);
            prop_assert_eq!(&left.slices, &right.slices);
            prop_assert_eq!(left.pods.keys().collect::<Vec<_>>(), right.pods.keys().collect::<Vec<_>>());
            for (id, pod) in &left.pods {
                let read = &right.pods[&id.into()];
                // A pod without an owner is its own workload, under its name.
                let mut pod = pod.clone();
                if pod.node() != "node-1" {
                    pod.local = None;
                }
                if let (Some(local), Some(read)) = (&mut pod.local, &read.local) {
                    local.workload.clone_from(&read.workload);
                }
                prop_assert_eq!(&pod, read);
            }
            for (id, policy) in left.policies.iter().filter(|(_, policy)| is_network_policy(policy)) {
                let read = &right.policies[id];
                prop_assert_eq!(normal(policy), normal(read));
            }
        }
    }

    #[test]
    fn the_version_in_force_of_an_invalid_policy_is_kept_with_the_invalid_one() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("state.yaml");
        let mut index = Index::default();
        let (ours, text) = (NsName::new("shop", "p"), good("192.0.2.0/24"));
        for object in [
            managed("p", Some(&text)),
            managed("p", Some("{")),
            managed("q", Some("{")),
            managed("r", None),
            managed("s", Some(&text)),
        ] {
            let _ = index.apply(object);
        }
        write(&index.view(), &Demand::default(), "node-1", &path, 1_800_000_000)
            .and_then(Pending::commit)
            .expect("there is room");
        let again = restored(&path);
        assert_eq!(again.cluster().policies, index.cluster().policies);
        assert_eq!(again.cluster().broken, index.cluster().broken);
        let held = |index: &Index| {
            index.problems().map(|problem| (problem.policy.clone(), problem.in_force)).collect::<Vec<_>>()
        };
        assert_eq!(held(&again), held(&index));
        assert_eq!(again.texts().collect::<Vec<_>>(), index.texts().collect::<Vec<_>>());
        assert!(held(&again).iter().any(|(id, held)| id.id == ours && *held == InForce::Earlier));
        assert_eq!(index.keys(ObjectKind::ConfigMap), again.keys(ObjectKind::ConfigMap));
        assert!(index.keys(ObjectKind::ConfigMap).contains(&ObjectKey::ConfigMap(ours)));
    }

    #[test]
    fn what_was_not_heard_is_not_taken_for_heard() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("state.yaml");
        let dns = Scope::namespace("kube-system");
        let some = Demand { services: dns, nodes: Nodes::Own, ..Demand::default() };
        for heard in [Demand::default(), some, Demand::everything()] {
            write(&Index::default().view(), &heard, "node-1", &path, 7)
                .and_then(Pending::commit)
                .expect("there is room");
            assert_eq!(read(&path, "node-1").expect("it can be read").expect("it is there").heard, heard);
        }
        let text = fs::read_to_string(&path).expect("it was written");
        let (before, after) = text.split_once(",\"heard\":").expect("it is the last field of the head");
        let (_, after) = after.split_once('\n').expect("the head is a line");
        fs::write(&path, format!("{before}}}\n{after}")).expect("the folder is ours");
        let silent = read(&path, "node-1").expect("it can be read").expect("it is there");
        assert_eq!(silent.heard, Demand::default(), "a file that does not say");
    }

    #[test]
    fn a_file_that_is_not_whole_says_nothing() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("state.yaml");
        assert!(read(&path, "node-1").expect("no file is no error").is_none());
        let mut index = Index::default();
        for name in ["p", "q"] {
            let _ = index.apply(managed(name, Some(&good("192.0.2.0/24"))));
        }
        write(&index.view(), &Demand::default(), "node-1", &path, 7)
            .and_then(Pending::commit)
            .expect("there is room");
        assert!(read(&path, "node-2").expect("another node's is no error").is_none());
        let whole = fs::read(&path).expect("it was written");
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).expect("the folder is ours");
            let read = read(&path, "node-1");
            // Without the last line break it is still whole.
            assert_eq!(read.is_ok(), length + 1 == whole.len(), "cut after {length} octets: {read:?}");
        }
        let text = String::from_utf8(whole).expect("JSON is text");
        let lines: Vec<&str> = text.lines().collect();
        for (gone, line) in lines.iter().enumerate().filter(|(_, line)| **line != "---") {
            let rest: Vec<&str> =
                lines.iter().enumerate().filter(|(i, _)| *i != gone).map(|(_, l)| *l).collect();
            fs::write(&path, rest.join("\n")).expect("the folder is ours");
            assert!(read(&path, "node-1").is_err(), "without {line}");
        }
        for odd in [
            format!("{text}---\n{{}}\n"),
            text.replace("ConfigMap", "Teapot"),
            text.replace("/v1\"", "/v9\""),
        ] {
            fs::write(&path, odd).expect("the folder is ours");
            read(&path, "node-1").expect_err("it is not what it should be");
        }
    }

    #[test]
    fn a_snapshot_that_cannot_be_written_leaves_the_one_before() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("state.yaml");
        let index = Index::default();
        write(&index.view(), &Demand::default(), "node-1", &path, 7)
            .and_then(Pending::commit)
            .expect("there is room");
        // A folder in the way of the new file, as a stand-in for a disk that takes no more.
        fs::create_dir(folder.path().join("state.yaml.new")).expect("the folder is ours");
        let error =
            write(&index.view(), &Demand::default(), "node-1", &path, 8).expect_err("a folder is no file");
        assert!(error.to_string().contains("state.yaml.new"), "{error}");
        assert_eq!(read(&path, "node-1").expect("it can be read").expect("it is there").written, 7);
    }
}
