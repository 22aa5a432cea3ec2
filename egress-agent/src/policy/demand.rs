//! What of a cluster the policies in force need to know, so that an agent watches no more than that.
//!
//! Namespaces, the pods of the own node, and the policies themselves are always needed, and are not counted here. Of everything
//! else a node needs nothing until a policy that selects one of its pods speaks of pods, Services or entities.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    cluster::{Cluster, Settings},
    model::{Effect, Entity, Peer, PolicyId, Rule, Unresolved},
    ranges::{AWS, CUSTOM},
};

/// From how many namespaces on one question about all of them is cheaper than a question about each.
pub const MOST_NAMESPACES: usize = 16;

/// The part of the cluster of which objects of one kind are needed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// None of it.
    #[default]
    Nothing,
    /// These namespaces.
    Namespaces(BTreeSet<String>),
    /// All of it.
    Everything,
}

impl Scope {
    /// Returns the scope of one namespace.
    #[must_use]
    pub fn namespace(name: impl Into<String>) -> Self {
        Self::Namespaces(BTreeSet::from([name.into()]))
    }

    /// Takes in another scope.
    pub fn add(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Everything, _) | (_, Self::Nothing) => {}
            (Self::Namespaces(here), Self::Namespaces(more)) => here.extend(more),
            (_, other) => *self = other,
        }
    }

    /// Returns whether everything in `other` is in this one.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Everything, _) | (_, Self::Nothing) => true,
            (Self::Namespaces(here), Self::Namespaces(other)) => other.is_subset(here),
            (Self::Nothing | Self::Namespaces(_), _) => false,
        }
    }

    /// Returns whether objects of a namespace are in it.
    #[must_use]
    pub fn holds(&self, namespace: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::Namespaces(here) => here.contains(namespace),
            Self::Everything => true,
        }
    }

    /// Returns this scope, or everything where it names many namespaces.
    #[must_use]
    pub fn rounded(self) -> Self {
        match self {
            Self::Namespaces(names) if names.is_empty() => Self::Nothing,
            Self::Namespaces(names) if names.len() > MOST_NAMESPACES => Self::Everything,
            other => other,
        }
    }
}

/// Which nodes are needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Nodes {
    /// None.
    #[default]
    Nothing,
    /// The pods' own.
    Own,
    /// All of them.
    Everything,
}

/// What is needed beyond namespaces, policies and the pods of the own node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Demand {
    /// Pods of other nodes.
    pub pods: Scope,
    /// Services and their EndpointSlices.
    pub services: Scope,
    /// Nodes.
    pub nodes: Nodes,
    /// Published ranges, by the lower case of their provider's name instead of a namespace.
    #[serde(default)]
    pub ranges: Scope,
}

impl Demand {
    /// Everything there is.
    #[must_use]
    pub const fn everything() -> Self {
        Self {
            pods: Scope::Everything,
            services: Scope::Everything,
            nodes: Nodes::Everything,
            ranges: Scope::Everything,
        }
    }

    /// Takes in another demand.
    pub fn add(&mut self, other: Self) {
        self.pods.add(other.pods);
        self.services.add(other.services);
        self.nodes = self.nodes.max(other.nodes);
        self.ranges.add(other.ranges);
    }

    /// Returns whether everything in `other` is in this one.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.pods.covers(&other.pods)
            && self.services.covers(&other.services)
            && self.nodes >= other.nodes
            && self.ranges.covers(&other.ranges)
    }

    /// Returns this demand with scopes of many namespaces made into everything.
    #[must_use]
    pub fn rounded(self) -> Self {
        Self { pods: self.pods.rounded(), services: self.services.rounded(), ..self }
    }
}

/// Returns what compiling `policies` needs: those that select one pod, as [`super::compile::Compiled::policies`] names them.
///
/// With less than that, a policy may come out wider than it is: `world` would hold addresses of the cluster, and ClusterIPs in
/// front of what is denied would stay open. With exactly that, a ClusterIP opens for a `pods` destination only if its Service is
/// in a namespace of which that destination chooses pods.
#[must_use]
pub fn of<'a>(
    cluster: &Cluster,
    settings: &Settings,
    policies: impl IntoIterator<Item = &'a PolicyId>,
) -> Demand {
    let mut demand = Demand::default();
    for id in policies {
        let Some(policy) = cluster.policies.get(id) else {
            // Made up for a broken policy or a governed namespace: it allows the cluster's DNS and nothing else.
            demand.services.add(dns(settings));
            continue;
        };
        if policy.cluster_dns {
            demand.services.add(dns(settings));
        }
        if policy.own_node {
            demand.nodes = demand.nodes.max(Nodes::Own);
        }
        for rule in &policy.rules {
            demand.add(of_rule(cluster, settings, &policy.id.id.namespace, rule));
        }
    }
    demand
}

/// Works out demands, each only once: pods that the same policies select need the same.
#[derive(Debug)]
pub struct Demands<'a> {
    cluster: &'a Cluster,
    settings: &'a Settings,
    known: HashMap<Vec<PolicyId>, Demand>,
}

impl<'a> Demands<'a> {
    /// Returns one that knows none yet.
    #[must_use]
    pub fn new(cluster: &'a Cluster, settings: &'a Settings) -> Self {
        Self { cluster, settings, known: HashMap::new() }
    }

    /// Returns what [`of`] returns.
    pub fn of(&mut self, policies: &[PolicyId]) -> &Demand {
        if !self.known.contains_key(policies) {
            self.known.insert(policies.to_vec(), of(self.cluster, self.settings, policies));
        }
        &self.known[policies]
    }

    /// Returns all of them together.
    #[must_use]
    pub fn total(self) -> Demand {
        let mut total = Demand::default();
        self.known.into_values().for_each(|demand| total.add(demand));
        total
    }
}

fn dns(settings: &Settings) -> Scope {
    Scope::Namespaces(settings.cluster_dns.iter().map(|service| service.namespace.to_string()).collect())
}

fn of_rule(cluster: &Cluster, settings: &Settings, namespace: &str, rule: &Rule) -> Demand {
    let mut demand = Demand::default();
    let denies = rule.effect == Effect::Deny;
    for peer in &rule.peers {
        // Where it is denied, the ClusterIPs in front of it are: any Service may have it behind it.
        let mut fronts = denies;
        match peer {
            Peer::Any => {}
            Peer::Cidrs { cidrs, .. } => fronts &= !cidrs.iter().all(never_behind_a_service),
            Peer::Cloud(cloud) => {
                demand.ranges.add(published(&cloud.what));
                fronts &= !cloud.cidrs.iter().all(never_behind_a_service);
            }
            Peer::Unresolved(what) => {
                demand.ranges.add(published(what));
                // One that is denied stands for the world.
                match what.at_most().filter(|_| denies) {
                    Some(Peer::Any) => {}
                    Some(_) => {
                        demand.add(world());
                        fronts = false;
                    }
                    None => fronts = false,
                }
            }
            Peer::Pods { namespaces, .. } => {
                let scope = match namespaces {
                    None => Scope::namespace(namespace),
                    Some(selector) if selector.is_empty() => Scope::Everything,
                    Some(selector) => {
                        let names = cluster.namespaces.keys();
                        let chosen = names.filter(|name| selector.matches(&cluster.namespace_labels(name)));
                        Scope::Namespaces(chosen.cloned().collect()).rounded()
                    }
                };
                demand.services.add(scope.clone());
                demand.pods.add(scope);
            }
            Peer::Service(service) => demand.services.add(Scope::namespace(service.namespace.to_string())),
            Peer::Entity(Entity::KubeApiserver) => demand.services.add(Scope::namespace("default")),
            Peer::Entity(Entity::ClusterDns) => demand.services.add(dns(settings)),
            Peer::Entity(Entity::Node) => demand.nodes = demand.nodes.max(Nodes::Own),
            Peer::Entity(Entity::World) => demand.add(world()),
        }
        if fronts {
            demand.services.add(Scope::Everything);
        }
    }
    demand
}

/// All of the cluster, to know what is outside.
fn world() -> Demand {
    Demand { ranges: Scope::Nothing, ..Demand::everything() }
}

/// The ranges that say what a destination is.
fn published(what: &Unresolved) -> Scope {
    let custom = |name: &str| name.eq_ignore_ascii_case(AWS).then(|| CUSTOM.to_owned());
    let provider = match what {
        Unresolved::AwsService { .. } => AWS,
        Unresolved::Cloud { provider, .. } => provider,
        Unresolved::Domains(_) => return Scope::Nothing,
    };
    let names = custom(provider).into_iter().chain([provider.to_ascii_lowercase()]);
    Scope::Namespaces(names.collect())
}

/// Returns whether no address of a prefix can be an endpoint of a Service: the API refuses unspecified, loopback, link-local and
/// link-local multicast ones (`ValidateEndpointIP` in Kubernetes' `pkg/apis/core/validation`). So the most common denial, of the
/// cloud's metadata address, needs no look at Services.
fn never_behind_a_service(net: &IpNet) -> bool {
    const SPECIAL: [(&str, u8); 6] = [
        ("127.0.0.0", 8),
        ("169.254.0.0", 16),
        ("224.0.0.0", 24),
        ("::1", 128),
        ("fe80::", 10),
        ("ff02::", 16),
    ];
    SPECIAL.iter().any(|(address, length)| {
        let address: IpAddr = address.parse().expect("a literal address");
        IpNet::new_assert(address, *length).contains(net)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::policy::{
        cluster::{Labels, NsName},
        document,
        model::{Policy, PolicyKind},
    };

    fn demand(destinations: &str) -> Demand {
        let id = NsName::new("shop", "p");
        let text = format!(r#"{{"defaultAction": "deny", {destinations}}}"#);
        let parsed = document::parse(&id, &text);
        let policy: Policy = parsed.policy.unwrap_or_else(|| panic!("{text}: {:?}", parsed.findings));
        let id = PolicyId { kind: PolicyKind::ConfigMap, id };
        let mut cluster = Cluster::default();
        for (name, team) in [("shop", "a"), ("infra", "b"), ("web", "b")] {
            let labels: Labels = [("team".to_owned(), team.to_owned())].into();
            cluster.namespaces.insert(name.into(), labels);
        }
        cluster.policies.insert(id.clone(), Arc::new(policy));
        of(&cluster, &Settings::default(), [&id])
    }

    fn allowed(destination: &str) -> Demand {
        demand(&format!(r#""clusterDns": false, "allowedDestinations": [{{"name": "d", {destination}}}]"#))
    }

    fn denied(destination: &str) -> Demand {
        demand(&format!(r#""clusterDns": false, "deniedDestinations": [{{"name": "d", {destination}}}]"#))
    }

    fn names(names: &[&str]) -> Scope {
        Scope::Namespaces(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn addresses_need_nothing_and_dns_one_namespace() {
        assert_eq!(allowed(r#""cidr": "192.0.2.0/24""#), Demand::default());
        assert_eq!(
            demand(r#""allowedDestinations": []"#),
            Demand { services: names(&["kube-system"]), ..Demand::default() }
        );
    }

    #[test]
    fn services_and_entities_need_where_they_are() {
        let services = |names| Demand { services: names, ..Demand::default() };
        assert_eq!(
            allowed(r#""service": {"namespace": "infra", "name": "redis"}"#),
            services(names(&["infra"]))
        );
        assert_eq!(allowed(r#""entity": "kube-apiserver""#), services(names(&["default"])));
        assert_eq!(allowed(r#""entity": "cluster-dns""#), services(names(&["kube-system"])));
        assert_eq!(allowed(r#""entity": "node""#), Demand { nodes: Nodes::Own, ..Demand::default() });
        assert_eq!(allowed(r#""entity": "world""#), world());
    }

    #[test]
    fn selectors_need_the_namespaces_they_choose() {
        let both = |scope: Scope| Demand { pods: scope.clone(), services: scope, ..Demand::default() };
        assert_eq!(allowed(r#""pods": {"podSelector": {}}"#), both(names(&["shop"])));
        let team = r#""pods": {"namespaceSelector": {"matchLabels": {"team": "b"}}, "podSelector": {}}"#;
        assert_eq!(allowed(team), both(names(&["infra", "web"])));
        let by_name = r#""pods": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "web"}}, "podSelector": {}}"#;
        assert_eq!(allowed(by_name), both(names(&["web"])), "also where the label is not there yet");
        let all = r#""pods": {"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "Exists"}]}, "podSelector": {}}"#;
        assert_eq!(allowed(all), both(names(&["infra", "shop", "web"])));
    }

    #[test]
    fn what_is_denied_may_be_behind_any_service_unless_it_cannot_be() {
        let any = Demand { services: Scope::Everything, ..Demand::default() };
        assert_eq!(denied(r#""cidr": "10.0.0.0/8""#), any);
        assert_eq!(denied(r#""cidr": "169.254.169.254/32""#), Demand::default());
        assert_eq!(denied(r#""cidrs": ["fe80::/64", "169.254.0.0/16"]"#), Demand::default());
        assert_eq!(denied(r#""cidrs": ["169.254.169.254/32", "10.0.0.1/32"]"#), any);
        assert_eq!(denied(r#""cidr": "169.254.0.0/15""#), any);
    }

    #[test]
    fn scopes_add_up_and_cover() {
        let mut scope = Scope::Nothing;
        assert!(!scope.covers(&names(&["a"])) && scope.covers(&Scope::Nothing));
        scope.add(names(&["a"]));
        scope.add(Scope::Nothing);
        scope.add(names(&["b"]));
        assert_eq!(scope, names(&["a", "b"]));
        assert!(scope.covers(&names(&["a"])) && !scope.covers(&names(&["a", "c"])) && scope.holds("b"));
        assert!(!scope.covers(&Scope::Everything));
        scope.add(Scope::Everything);
        scope.add(names(&["c"]));
        assert!(scope.covers(&names(&["x"])) && scope == Scope::Everything);
    }

    #[test]
    fn many_namespaces_are_everything() {
        let many: BTreeSet<String> = (0..=MOST_NAMESPACES).map(|n| format!("n{n}")).collect();
        assert_eq!(Scope::Namespaces(many.clone()).rounded(), Scope::Everything);
        let fewer = Scope::Namespaces(many.into_iter().skip(1).collect());
        assert_eq!(fewer.clone().rounded(), fewer);
        assert_eq!(names(&[]).rounded(), Scope::Nothing);
    }
}
