//! The least policy that covers flows that were seen.
//!
//! 1. A destination that the cluster or a provider has a name for is written by that name: a Service by its ClusterIP, a pod by its
//!    labels, a cloud's service by its published ranges.
//! 2. Other addresses are written as they are, those of one block with the same ports together. Only where many neighbours were seen
//!    does their smallest common prefix take their place, and never one wider than the block.
//! 3. Each destination has the ports that were seen there. Only for protocols that no list of ports can name has it none.
//!
//! Whether the result says what it should is asked of [`reference`](super::reference) in tests.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    net::IpAddr,
};

use egress_common::policy::{ICMP, ICMPV6, SCTP, TCP, UDP};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    cluster::{Cluster, Labels, NsName},
    model::{PortMatch, PortSpec, Unresolved},
    ranges::{CUSTOM, Ranges, Width, custom::Service},
    selector::METADATA_NAME,
};

/// Labels that a pod has from whoever made it, and its successor has others of.
const PASSING: [&str; 10] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/job-name",
    "controller-uid",
    "job-name",
];

/// Services that are no service but a cloud's room for whatever its customers run. To name one would open all of that.
const ROOMS: [(&str, Option<&str>); 6] = [
    ("aws", Some("AMAZON")),
    ("aws", Some("EC2")),
    ("azure", Some("AzureCloud")),
    ("google", Some("cloud")),
    ("oracle", Some("OCI")),
    ("digitalocean", None),
];

/// The Service through which pods reach the API server.
const API_SERVER: (&str, &str) = ("default", "kubernetes");

/// A destination that pods were seen to send to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The address; a prefix where addresses are masked.
    pub to: IpNet,
    /// The number off the wire.
    pub protocol: u8,
    /// The port; 0 for protocols without.
    pub port: u16,
    /// What stands at the address.
    pub name: Option<Name>,
}

/// What stands at an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Name {
    /// The API server's Service.
    KubeApiserver,
    /// A Service that has the port.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A pod.
    Pods {
        /// Its namespace.
        namespace: String,
        /// Its labels, but for those that pass with it. Never empty.
        labels: BTreeMap<String, String>,
    },
    /// A cloud's service.
    Cloud {
        /// The provider.
        provider: String,
        /// The service, as the provider calls it.
        service: String,
        /// The region, unless the service is in none.
        region: Option<String>,
    },
}

/// How far addresses may be put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// No IPv4 prefix is shorter than this.
    pub v4: u8,
    /// No IPv6 prefix is shorter than this.
    pub v6: u8,
    /// So many addresses of one block become one prefix. Fewer stay as they are.
    pub neighbours: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { v4: 24, v6: 64, neighbours: 8 }
    }
}

/// The labels of a pod that its successors have too.
#[must_use]
pub fn lasting(labels: &Labels) -> BTreeMap<String, String> {
    let lasting = labels.iter().filter(|(key, _)| !PASSING.contains(key));
    lasting.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// How many digits the minute has that a CronJob puts after its name to name a Job: from 1989 to 2160.
const MINUTE: usize = 8;

/// Returns what a pod belongs to, as whoever wrote it knows it: of the ReplicaSet of a Deployment, the Deployment; of a CronJob's Job, the
/// CronJob, by its name: a Job that somebody else named so counts as one, too.
#[must_use]
pub fn workload(owner: &str, labels: &Labels) -> String {
    if let Some((name, minute)) = owner.strip_prefix("Job/").and_then(|job| job.rsplit_once('-'))
        && minute.len() == MINUTE
        && minute.bytes().all(|digit| digit.is_ascii_digit())
    {
        return format!("CronJob/{name}");
    }
    let hash = labels.get("pod-template-hash");
    let deployment =
        hash.and_then(|hash| owner.strip_prefix("ReplicaSet/")?.strip_suffix(hash)?.strip_suffix('-'));
    deployment.map_or_else(|| owner.to_owned(), |name| format!("Deployment/{name}"))
}

/// Returns what stands at these addresses, for those at which something stands that a policy can name.
#[must_use]
pub fn names(
    cluster: &Cluster,
    ranges: &Ranges,
    sought: &BTreeSet<(IpAddr, u8, u16)>,
) -> BTreeMap<(IpAddr, u8, u16), Name> {
    let mut asked: BTreeMap<IpAddr, Vec<(u8, u16)>> = BTreeMap::new();
    for (address, protocol, port) in sought {
        asked.entry(*address).or_default().push((*protocol, *port));
    }
    let mut found = BTreeMap::new();
    for (id, service) in cluster.services.iter() {
        for address in &service.cluster_ips {
            for (protocol, port) in asked.get(address).into_iter().flatten().copied() {
                if service.ports.iter().any(|own| own.protocol.number() == protocol && own.port == port) {
                    found.insert((*address, protocol, port), of_service(id));
                }
            }
        }
    }
    // A host network pod has the address of its node, which others have, too.
    let pods = cluster.pods.iter().filter(|(_, pod)| !pod.host_network && !pod.finished);
    for (id, pod) in pods {
        let id = NsName::from(id);
        for address in pod.ips.iter() {
            let Some(asked) = asked.get(&address) else { continue };
            let labels = lasting(&pod.labels);
            // The API server sees to this label; manifests may say otherwise.
            let by_name = cluster.namespace_labels(&id.namespace).get(METADATA_NAME) == Some(&id.namespace);
            if labels.is_empty() || !by_name {
                continue;
            }
            for (protocol, port) in asked.iter().copied().filter(|(protocol, _)| has_ports(*protocol)) {
                let name = Name::Pods { namespace: id.namespace.clone(), labels: labels.clone() };
                found.entry((address, protocol, port)).or_insert(name);
            }
        }
    }
    let unnamed: BTreeSet<IpAddr> = asked
        .iter()
        .filter(|(address, asked)| {
            asked.iter().any(|(protocol, port)| !found.contains_key(&(**address, *protocol, *port)))
        })
        .map(|(address, _)| *address)
        .collect();
    let published = clouds(ranges, &unnamed);
    let own = own_services(ranges, &unnamed);
    for address in &unnamed {
        for (protocol, port) in asked[address].iter().copied() {
            // A service that the platform team defines, unless a provider's is narrower.
            let fits = |service: &&(Width, &Service)| admits(service.1, protocol, port);
            let own = own.get(address).into_iter().flatten().find(fits).map(|(width, service)| {
                let (provider, service) = (CUSTOM.to_owned(), service.name.clone());
                (*width, Name::Cloud { provider, service, region: None })
            });
            let published = published.get(address).cloned();
            let narrowest = [own, published].into_iter().flatten().min_by_key(|(width, _)| width.addresses);
            if let Some((_, name)) = narrowest {
                found.entry((*address, protocol, port)).or_insert(name);
            }
        }
    }
    found
}

fn of_service(id: &NsName) -> Name {
    if (id.namespace.as_str(), id.name.as_str()) == API_SERVER {
        return Name::KubeApiserver;
    }
    Name::Service { namespace: id.namespace.clone(), name: id.name.clone() }
}

/// A prefix of fewer bits than this is no service, whoever defines one with it.
const WIDEST: (u8, u8) = (8, 16);

/// Returns the defined services that each of these addresses is in, the narrowest first.
fn own_services<'a>(
    ranges: &'a Ranges,
    addresses: &BTreeSet<IpAddr>,
) -> BTreeMap<IpAddr, Vec<(Width, &'a Service)>> {
    let mut found: BTreeMap<IpAddr, Vec<(Width, &Service)>> = BTreeMap::new();
    for service in ranges.custom().services() {
        let wide = |net: &IpNet| net.prefix_len() < if net.addr().is_ipv4() { WIDEST.0 } else { WIDEST.1 };
        if service.cidrs.iter().any(wide) {
            continue;
        }
        for net in service.cidrs.iter() {
            for address in addresses.range(net.network()..=net.broadcast()) {
                found.entry(*address).or_default().push((Width::of(&service.cidrs), service));
            }
        }
    }
    for services in found.values_mut() {
        services.sort_by_key(|(width, service)| (width.addresses, &service.name));
    }
    found
}

/// Returns whether a defined service is about this protocol and port.
fn admits(service: &Service, protocol: u8, port: u16) -> bool {
    let fits = |spec: &PortSpec| match &spec.port {
        _ if spec.protocol.number() != protocol => false,
        PortMatch::Any => true,
        PortMatch::Range(first, last) => (*first..=*last).contains(&port),
        PortMatch::Name(_) => false,
    };
    service.ports.is_empty() || service.ports.iter().any(fits)
}

/// Returns the narrowest service of a provider that publishes each of these addresses.
fn clouds(ranges: &Ranges, addresses: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, (Width, Name)> {
    type Candidate<'a> = (&'a str, &'a str, &'a str);
    let mut candidates: BTreeMap<IpAddr, BTreeSet<Candidate<'_>>> = BTreeMap::new();
    for (provider, table) in ranges.providers() {
        let room = |service: &str| {
            ROOMS.iter().any(|(of, room)| {
                provider.eq_ignore_ascii_case(of)
                    && room.is_none_or(|room| room.eq_ignore_ascii_case(service))
            })
        };
        for row in table.rows() {
            for address in addresses.range(row.cidr.network()..=row.cidr.broadcast()) {
                if !room(row.service) {
                    candidates.entry(*address).or_default().insert((provider, row.service, row.region));
                }
            }
        }
    }
    // What a candidate stands for, by its names.
    let mut known: HashMap<Candidate<'_>, Option<Stands>> = HashMap::new();
    let mut found = BTreeMap::new();
    for (address, candidates) in candidates {
        let mut best: Option<(Width, Name)> = None;
        for candidate in candidates {
            let stands = known.entry(candidate).or_insert_with(|| stands_for(ranges, candidate));
            let Some((width, region, cidrs)) = stands else { continue };
            if !cidrs.iter().any(|cidr| cidr.contains(&address)) {
                continue;
            }
            let (provider, service, _) = candidate;
            if best.as_ref().is_none_or(|(narrowest, _)| width.addresses < narrowest.addresses) {
                let name = Name::Cloud {
                    provider: provider.to_owned(),
                    service: service.to_owned(),
                    region: region.clone(),
                };
                best = Some((*width, name));
            }
        }
        found.extend(best.map(|best| (address, best)));
    }
    found
}

/// A service in a region: how many addresses it has, how the region is named, and which they are.
type Stands = (Width, Option<String>, Vec<IpNet>);

/// Returns what a service in a region stands for, if a destination can name it.
fn stands_for(ranges: &Ranges, (provider, service, region): (&str, &str, &str)) -> Option<Stands> {
    let region = Some(region).filter(|region| !region.is_empty());
    let what = Unresolved::Cloud {
        provider: provider.to_owned(),
        services: vec![service.to_owned()],
        regions: region.iter().map(|region| (*region).to_owned()).collect(),
    };
    // A name that stands for nothing is no name; the address stays as it is.
    let Ok(found) = ranges.resolve(&what) else { return None };
    // Only those that a destination without ports of its own can name.
    found.ports.is_empty().then(|| (Width::of(&found.cidrs), region.map(str::to_owned), found.cidrs.to_vec()))
}

fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | SCTP)
}

/// A destination to allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Unique among those of one proposal.
    pub name: String,
    /// Where to.
    pub to: Target,
    /// Protocols and ports; none: all of them.
    pub ports: BTreeSet<(u8, u16)>,
}

/// Protocols, each with a port where it has ports.
type Ports = BTreeSet<(u8, u16)>;

/// Where a destination is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// By name.
    Named(Name),
    /// By address.
    Cidrs(Vec<IpNet>),
}

/// Returns the destinations that cover what was seen. `taken` are names that others of the policy have.
#[must_use]
pub fn propose(seen: &[Seen], limits: Limits, taken: &BTreeSet<String>) -> Vec<Destination> {
    let mut named: BTreeMap<&Name, BTreeSet<(u8, u16)>> = BTreeMap::new();
    let mut plain: BTreeMap<IpNet, BTreeSet<(u8, u16)>> = BTreeMap::new();
    for seen in seen {
        let port = if has_ports(seen.protocol) { seen.port } else { 0 };
        match &seen.name {
            Some(name) if can_be_listed(seen.protocol, seen.to) => {
                named.entry(name).or_default().insert((seen.protocol, port));
            }
            _ => {
                plain.entry(seen.to).or_default().insert((seen.protocol, port));
            }
        }
    }
    let mut names = Names { taken: taken.clone() };
    let mut all = Vec::new();
    for (name, ports) in named {
        let called = names.give(&called(name));
        all.push(Destination { name: called, to: Target::Named(name.clone()), ports });
    }
    // By block, and by what was seen there: equal ports are told once.
    let mut blocks: BTreeMap<(IpNet, Ports), Vec<IpNet>> = BTreeMap::new();
    for (net, ports) in plain {
        let all = ports.iter().any(|(protocol, _)| !can_be_listed(*protocol, net));
        let ports = if all { BTreeSet::new() } else { ports };
        blocks.entry((block(net, limits), ports)).or_default().push(net);
    }
    for ((_, ports), nets) in blocks {
        let cidrs = fold(&nets, limits);
        let name = names.give(&called_by_address(&cidrs, &ports));
        all.push(Destination { name, to: Target::Cidrs(cidrs), ports });
    }
    all
}

/// Returns whether a list of ports can name a protocol at this address: ICMP stands for each family's own.
fn can_be_listed(protocol: u8, to: IpNet) -> bool {
    has_ports(protocol) || protocol == if to.addr().is_ipv4() { ICMP } else { ICMPV6 }
}

/// Returns the prefix of the limit's length around a net, or the net itself if that is wider.
fn block(net: IpNet, limits: Limits) -> IpNet {
    let limit = if net.addr().is_ipv4() { limits.v4 } else { limits.v6 };
    match IpNet::new(net.addr(), limit) {
        Ok(block) if limit < net.prefix_len() => block.trunc(),
        _ => net,
    }
}

/// Returns the nets of one block as they are, neighbours that fill a prefix as that prefix; or if there are many, the smallest
/// prefix that has them all.
fn fold(nets: &[IpNet], limits: Limits) -> Vec<IpNet> {
    if nets.len() < limits.neighbours.max(2) {
        return IpNet::aggregate(&nets.to_vec());
    }
    let mut common = nets[0];
    while !nets.iter().all(|net| common.contains(net)) {
        let Some(wider) = common.supernet() else { break };
        common = wider;
    }
    vec![common]
}

/// Gives every destination a name of its own.
struct Names {
    taken: BTreeSet<String>,
}

impl Names {
    fn give(&mut self, wanted: &str) -> String {
        /// A little less than a name may have, for a number.
        const LONGEST: usize = 56;
        let plain: String = wanted
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '_'))
            .take(LONGEST)
            .collect();
        let plain = if plain.is_empty() { "destination".to_owned() } else { plain };
        let mut name = plain.clone();
        let mut number = 2;
        while !self.taken.insert(name.clone()) {
            name = format!("{plain}-{number}");
            number += 1;
        }
        name
    }
}

fn called(name: &Name) -> String {
    match name {
        Name::KubeApiserver => "kube-apiserver".to_owned(),
        Name::Service { namespace, name } => format!("{name}.{namespace}"),
        Name::Pods { namespace, labels } => {
            let usual = ["app.kubernetes.io/name", "app", "k8s-app", "component"];
            let label = usual.iter().find_map(|key| labels.get(*key)).or_else(|| labels.values().next());
            format!("pods-{}.{namespace}", label.map_or("", String::as_str))
        }
        Name::Cloud { provider, service, region } => {
            let mut called = format!("{provider}-{service}");
            if let Some(region) = region {
                called.push('-');
                called.push_str(region);
            }
            called.to_lowercase()
        }
    }
}

fn called_by_address(cidrs: &[IpNet], ports: &BTreeSet<(u8, u16)>) -> String {
    let mut name = cidrs.first().map_or_else(String::new, |net| net.addr().to_string());
    for (protocol, port) in ports.iter().take(1) {
        match *port {
            0 => write!(name, "-{}", protocol_word(*protocol)),
            port => write!(name, "-{}-{port}", protocol_word(*protocol)),
        }
        .expect("a string takes everything");
    }
    name.to_lowercase()
}

fn protocol_word(protocol: u8) -> &'static str {
    match protocol {
        TCP => "TCP",
        UDP => "UDP",
        SCTP => "SCTP",
        _ => "ICMP",
    }
}

/// A policy as it is proposed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proposal {
    /// Whether it is to be enforced.
    pub enforce: bool,
    /// The labels of the pods it is for; none: all of the namespace.
    pub pods: BTreeMap<String, String>,
    /// Destinations as an existing policy has them.
    pub kept: Vec<Value>,
    /// Denied destinations of existing policies.
    pub denied: Vec<Value>,
    /// New ones.
    pub destinations: Vec<Destination>,
}

impl Proposal {
    /// Returns the document. What somebody must answer for is left empty, so that it is not accepted before it is filled in.
    #[must_use]
    pub fn document(&self) -> Value {
        let mut document = Map::new();
        document.insert("defaultAction".to_owned(), json!("deny"));
        document.insert("mode".to_owned(), json!(if self.enforce { "enforce" } else { "audit" }));
        if !self.pods.is_empty() {
            document.insert("podSelector".to_owned(), json!({ "matchLabels": self.pods }));
        }
        let new = self.destinations.iter().map(written);
        let allowed: Vec<Value> = self.kept.iter().cloned().chain(new).collect();
        document.insert("allowedDestinations".to_owned(), Value::Array(allowed));
        if !self.denied.is_empty() {
            document.insert("deniedDestinations".to_owned(), Value::Array(self.denied.clone()));
        }
        Value::Object(document)
    }
}

/// The fields of governance that a new destination needs, each with its blank.
pub const BLANKS: [&str; 5] = ["owner", "reason", "dataClassification", "expiry", "auditRef"];

fn written(destination: &Destination) -> Value {
    let mut entry = Map::new();
    entry.insert("name".to_owned(), json!(destination.name));
    match &destination.to {
        Target::Cidrs(cidrs) => match cidrs.as_slice() {
            [one] => entry.insert("cidr".to_owned(), json!(one.to_string())),
            all => {
                let all: Vec<String> = all.iter().map(ToString::to_string).collect();
                entry.insert("cidrs".to_owned(), json!(all))
            }
        },
        Target::Named(Name::KubeApiserver) => entry.insert("entity".to_owned(), json!("kube-apiserver")),
        Target::Named(Name::Service { namespace, name }) => {
            entry.insert("service".to_owned(), json!({ "namespace": namespace, "name": name }))
        }
        Target::Named(Name::Pods { namespace, labels }) => entry.insert(
            "pods".to_owned(),
            json!({
                "namespaceSelector": { "matchLabels": { METADATA_NAME: namespace } },
                "podSelector": { "matchLabels": labels },
            }),
        ),
        Target::Named(Name::Cloud { provider, service, region }) => {
            let mut cloud = json!({ "provider": provider, "service": service });
            if let Some(region) = region {
                cloud["regions"] = json!([region]);
            }
            entry.insert("cloud".to_owned(), cloud)
        }
    };
    if !destination.ports.is_empty() {
        let icmp = |protocol: &u8| !has_ports(*protocol);
        let mut ports: Vec<Value> = destination
            .ports
            .iter()
            .filter(|(protocol, _)| !icmp(protocol))
            .map(|(protocol, port)| match port {
                // No list can name port 0; it is seen where somebody tries it.
                0 => json!({ "protocol": protocol_word(*protocol) }),
                port => json!(format!("{port}/{}", protocol_word(*protocol))),
            })
            .collect();
        if destination.ports.iter().any(|(protocol, _)| icmp(protocol)) {
            ports.push(json!({ "protocol": "ICMP" }));
        }
        entry.insert("ports".to_owned(), Value::Array(ports));
    }
    let blanks: Map<String, Value> = BLANKS.iter().map(|field| ((*field).to_owned(), json!(""))).collect();
    entry.insert("governance".to_owned(), Value::Object(blanks));
    Value::Object(entry)
}

#[cfg(test)]
mod tests;
