//! What can be wrong in a cluster, seen from outside with no more than a kubeconfig.

mod gather;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use self::gather::{Options, gather};
use super::{Check, Fact, Findings, Severity, percent, span};
use crate::{k8s::summary::Summary, overview::contradiction, policy::cluster::NsName};

/// The part of denials that asked for names, in percent, from which on names are what is wrong.
const NAMES_DOMINATE: u64 = 50;
/// No fewer denials than this say anything.
const FEW: u64 = 3;
const DAY: u64 = 24 * 60 * 60;
/// A certificate that ends sooner than this should have been renewed.
const CERTIFICATE_ENDS: u64 = 7 * DAY;
/// Ranges published longer ago than this are told of.
const OLD_RANGES: u64 = 30 * DAY;
/// A node writes its summary every ten minutes at least.
const SILENT_NODE: u64 = 30 * 60;
/// A change younger than this may be on its way to the nodes, and back.
const UNDER_WAY: u64 = 120;

/// How far a DaemonSet or a Deployment has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rollout {
    /// Pods that are wanted.
    pub wanted: u32,
    /// Pods of the newest template.
    pub updated: u32,
    /// Pods that are ready.
    pub ready: u32,
    /// Whether its controller has seen the newest template.
    pub observed: bool,
}

/// The DaemonSet of the agents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agents {
    /// How far it has come.
    pub rollout: Rollout,
    /// Whether they are told of addresses that answer names besides Services.
    pub dns_addresses: bool,
    /// Whether they publish what their nodes enforce.
    pub summaries: bool,
}

/// What the API server is told of the webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// The name of the configuration.
    pub name: String,
    /// The Service it calls.
    pub service: NsName,
    /// What it does when nobody answers.
    pub failure_policy: String,
    /// When each CA it trusts ends, in seconds since the epoch; what is wrong with the bundle if it cannot be read.
    pub bundle: Fact<Vec<u64>>,
}

/// The certificate the webhook shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// From when it is valid, in seconds since the epoch.
    pub begins: u64,
    /// When it ends.
    pub ends: u64,
    /// Whether it is good for the Service's name.
    pub covers: bool,
    /// Whether one of the CAs that the API server trusts has signed it; nothing where that is not known.
    pub trusted: Option<bool>,
}

/// The controllers' Lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// Who holds it; empty for nobody.
    pub holder: String,
    /// When it was renewed last, in seconds since the epoch.
    pub renewed: u64,
    /// How long that lasts, in seconds.
    pub lasts: u64,
}

/// A policy as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The revision of its text.
    pub revision: String,
    /// Why it is invalid; nothing if it is not.
    pub invalid: Option<String>,
    /// Whether it denies by default and leaves the cluster's DNS out.
    pub without_dns: bool,
    /// Whether it leaves the cluster's DNS to the agent, and so needs its Services to be found.
    pub needs_dns: bool,
    /// The providers whose ranges it needs.
    pub providers: Vec<String>,
    /// When it was changed last, in seconds since the epoch; 0 if nobody says.
    pub changed: u64,
}

/// What agents have told of denials in Events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Denials {
    /// How many.
    pub all: u64,
    /// How many of those were of port 53.
    pub names: u64,
    /// The namespaces of those, with how many.
    pub namespaces: BTreeMap<String, u64>,
}

/// Everything that was gathered. What is an error was not.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Now, in seconds since the epoch.
    pub now: u64,
    /// Where things were looked for.
    pub options: Options,
    /// How many nodes there are.
    pub nodes: Fact<usize>,
    /// The agents; nothing if there is no DaemonSet.
    pub agents: Fact<Option<Agents>>,
    /// The controllers; nothing if there is no Deployment.
    pub controller: Fact<Option<Rollout>>,
    /// The webhook's configuration; nothing if there is none.
    pub webhook: Fact<Option<Webhook>>,
    /// The webhook's certificate; nothing if there is no Secret.
    pub certificate: Fact<Option<Certificate>>,
    /// How many addresses behind the webhook's Service are ready; nothing if there is no Service.
    pub endpoints: Fact<Option<usize>>,
    /// The controllers' Lease; nothing if there is none.
    pub lease: Fact<Option<Lease>>,
    /// When each provider's ranges were published, in seconds since the epoch.
    pub ranges: Fact<BTreeMap<String, u64>>,
    /// What nodes tell of themselves.
    pub summaries: Fact<BTreeMap<String, Summary>>,
    /// How many NetworkPolicies were made of policies.
    pub generated: Fact<usize>,
    /// All policies.
    pub policies: Fact<BTreeMap<NsName, Policy>>,
    /// The namespaces whose policies the webhook is asked about.
    pub validated: Fact<Vec<String>>,
    /// For each Service that answers names, how many of its addresses are ready; nothing if there is no such Service.
    pub dns: Fact<Vec<(NsName, Option<usize>)>>,
    /// Whether the nodes run a cache for names.
    pub node_local_dns: Fact<bool>,
    /// What agents have told of denials.
    pub denials: Fact<Denials>,
}

/// Every check of a cluster.
pub const CHECKS: [Check<Facts>; 10] = [
    Check { name: "dns", look: dns },
    Check { name: "agents", look: agents },
    Check { name: "webhook", look: webhook },
    Check { name: "certificate", look: certificate },
    Check { name: "endpoints", look: endpoints },
    Check { name: "controller", look: controller },
    Check { name: "ranges", look: ranges },
    Check { name: "policies", look: policies },
    Check { name: "nodes", look: nodes },
    Check { name: "validation", look: validation },
];

/// Returns the first few of them, and how many more there are.
fn few<T: ToString>(all: &[T]) -> String {
    const MOST: usize = 5;
    let first: Vec<String> = all.iter().take(MOST).map(ToString::to_string).collect();
    match all.len().saturating_sub(MOST) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// How it shows that names are denied, whatever the cause.
const NO_NAMES: &str = "everything looks broken: pods fail with \"no such host\" or \"temporary failure in name resolution\" before they \
     connect to anything, and no rule for the destination itself helps";

fn dns(facts: &Facts, found: &mut Findings) {
    let denials = facts.denials.clone().unwrap_or_default();
    let dominates = denials.all >= FEW && percent(denials.names, denials.all) >= NAMES_DOMINATE;
    let no_policies = BTreeMap::new();
    let policies = facts.policies.as_ref().unwrap_or(&no_policies);
    let needed = policies.values().any(|policy| policy.needs_dns && policy.invalid.is_none());
    let without: Vec<&NsName> =
        policies.iter().filter(|(_, policy)| policy.without_dns).map(|(name, _)| name).collect();
    for (service, ready) in facts.dns.as_deref().unwrap_or_default() {
        let kubectl = format!("kubectl get service,endpointslice --namespace {}", service.namespace);
        match ready {
            None if needed => found.add(
                Severity::Critical,
                format!("the Service {service}, which is to answer names, does not exist"),
                NO_NAMES,
                format!(
                    "set EGRESS_CLUSTER_DNS of the agents to the Service that pods' /etc/resolv.conf names; {kubectl} shows what there is"
                ),
            ),
            Some(0) if needed => found.add(
                Severity::Critical,
                format!("the Service {service}, which is to answer names, has no ready endpoint"),
                NO_NAMES,
                format!("{kubectl}; then mend the pods behind it"),
            ),
            _ => {}
        }
    }
    if let (Ok(true), Ok(Some(Agents { dns_addresses: false, .. }))) = (&facts.node_local_dns, &facts.agents)
        && needed
    {
        found.add(
            if dominates { Severity::Critical } else { Severity::Warning },
            "the nodes run a cache for names, and the agents are not told of its address",
            NO_NAMES,
            "add deploy/components/node-local-dns to the kustomization (EGRESS_CLUSTER_DNS_ADDRESSES=169.254.20.10)",
        );
    }
    if !without.is_empty() {
        let denied = |policy: &&NsName| denials.namespaces.contains_key(policy.namespace.as_ref() as &str);
        let hurt: Vec<&NsName> = without.iter().copied().filter(denied).collect();
        let (severity, those) = match hurt.is_empty() {
            true => (Severity::Warning, &without),
            false => (Severity::Critical, &hurt),
        };
        found.add(
            severity,
            format!(
                "`\"clusterDns\": false` in {}{}",
                few(those),
                if hurt.is_empty() { "" } else { ", and names are denied there" }
            ),
            NO_NAMES,
            format!(
                "take that line out, or allow a resolver on port 53, UDP and TCP: kubectl edit configmap --namespace {} {}",
                those[0].namespace, those[0].name
            ),
        );
    }
    if dominates {
        let mut namespaces: Vec<(&String, &u64)> = denials.namespaces.iter().collect();
        namespaces.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let namespaces: Vec<&String> = namespaces.into_iter().map(|(namespace, _)| namespace).collect();
        found.add(
            Severity::Critical,
            format!(
                "most of what is denied asks for names: {} of {} denials in Events are of port 53, in {}",
                denials.names,
                denials.all,
                few(&namespaces)
            ),
            NO_NAMES,
            format!(
                "kubectl get events --namespace {} --field-selector reason=EgressDenied shows which resolver they ask; name it in \
                 EGRESS_CLUSTER_DNS or EGRESS_CLUSTER_DNS_ADDRESSES of the agents, or allow it in the policy",
                namespaces.first().map_or("NAMESPACE", |namespace| namespace.as_str())
            ),
        );
    }
}

fn agents(facts: &Facts, found: &mut Findings) {
    let namespace = &facts.options.agent_namespace;
    let Ok(agents) = &facts.agents else { return };
    let Some(Agents { rollout, .. }) = agents else {
        found.add(
            Severity::Critical,
            format!("there is no DaemonSet of agents in the namespace {namespace}"),
            "policies are written, and nothing enforces them",
            "kubectl apply -k deploy/overlays/prod; or pass --agent-namespace",
        );
        return;
    };
    let kubectl = format!("kubectl --namespace {namespace}");
    if rollout.wanted == 0 {
        found.add(
            Severity::Critical,
            "the DaemonSet of agents fits no node",
            "policies are written, and nothing enforces them",
            format!("{kubectl} describe daemonset; its nodeSelector and affinity say which nodes it wants"),
        );
    } else if rollout.ready < rollout.wanted {
        found.add(
            if rollout.ready == 0 { Severity::Critical } else { Severity::Warning },
            format!("{} of {} agents are ready", rollout.ready, rollout.wanted),
            "the other nodes enforce what is pinned there, or nothing if an agent never ran; changes are not followed",
            format!("{kubectl} get pods --output wide; then `egress-agent doctor` in the pod of a node"),
        );
    }
    if rollout.wanted > 0 && (!rollout.observed || rollout.updated < rollout.wanted) {
        found.add(
            Severity::Warning,
            format!(
                "the DaemonSet of agents is not rolled out: {} of {} are of the newest template",
                rollout.updated, rollout.wanted
            ),
            "nodes run different versions or settings",
            format!("{kubectl} rollout status daemonset --timeout 10m"),
        );
    }
    if let Ok(nodes) = facts.nodes
        && rollout.wanted > 0
        && (rollout.wanted as usize) < nodes
    {
        found.add(
            Severity::Note,
            format!("{} of {nodes} nodes are to have an agent", rollout.wanted),
            "pods on the others are not governed; that is as it should be for nodes that take no DaemonSets, such as Fargate's",
            format!("{kubectl} get pods --output wide, and kubectl get nodes, show which"),
        );
    }
}

const APPLY_WEBHOOK: &str = "kubectl apply -k deploy/overlays/prod (its component webhook)";

fn webhook(facts: &Facts, found: &mut Findings) {
    let Ok(webhook) = &facts.webhook else { return };
    let Some(webhook) = webhook else {
        found.add(
            Severity::Warning,
            "there is no webhook configuration for policies",
            "invalid policies are accepted by kubectl, and come to light on the nodes only",
            APPLY_WEBHOOK,
        );
        return;
    };
    let Webhook { name, failure_policy, bundle, .. } = webhook;
    if failure_policy != "Fail" {
        found.add(
            Severity::Warning,
            format!("the webhook configuration {name} has failurePolicy {failure_policy}"),
            "while no webhook answers, any policy is accepted unseen",
            format!(
                "kubectl patch validatingwebhookconfiguration {name} --type json -p \
                 '[{{\"op\":\"replace\",\"path\":\"/webhooks/0/failurePolicy\",\"value\":\"Fail\"}}]'"
            ),
        );
    }
    let refused = "the API server cannot call the webhook, so every change of a policy in a validated namespace is refused with \
         \"failed calling webhook\"";
    let restart = format!(
        "kubectl --namespace {} rollout restart deployment/egress-webhook",
        webhook.service.namespace
    );
    match bundle {
        Err(why) => {
            found.add(
                Severity::Critical,
                format!("the caBundle of {name} cannot be read: {why}"),
                refused,
                restart,
            );
        }
        Ok(ends) if ends.is_empty() => {
            found.add(Severity::Critical, format!("the caBundle of {name} is empty"), refused, restart);
        }
        Ok(ends) => {
            let last = ends.iter().copied().max().unwrap_or(0);
            if last <= facts.now {
                found.add(
                    Severity::Critical,
                    format!(
                        "every CA in the caBundle of {name} has expired, the last one {} ago",
                        span(facts.now - last)
                    ),
                    refused,
                    restart,
                );
            } else if last - facts.now < CERTIFICATE_ENDS {
                found.add(
                    Severity::Warning,
                    format!("the last CA in the caBundle of {name} ends in {}", span(last - facts.now)),
                    "from then on every change of a policy in a validated namespace is refused",
                    restart,
                );
            }
        }
    }
}

fn certificate(facts: &Facts, found: &mut Findings) {
    let (Ok(certificate), Ok(Some(webhook))) = (&facts.certificate, &facts.webhook) else { return };
    let namespace = &webhook.service.namespace;
    let logs = format!("kubectl --namespace {namespace} logs deployment/egress-webhook --tail 50");
    let again = format!(
        "kubectl --namespace {namespace} delete secret {} has the webhook make new ones; {logs}",
        gather::SECRET
    );
    let refused = "every change of a policy in a validated namespace is refused with \"failed calling webhook\" and an x509 error";
    let Some(Certificate { begins, ends, covers, trusted }) = *certificate else {
        found.add(
            Severity::Critical,
            format!("there is no Secret {namespace}/{} with the webhook's certificate", gather::SECRET),
            refused,
            logs,
        );
        return;
    };
    if ends <= facts.now {
        found.add(
            Severity::Critical,
            format!("the webhook's certificate expired {} ago", span(facts.now - ends)),
            refused,
            again,
        );
    } else if ends - facts.now < CERTIFICATE_ENDS {
        found.add(
            Severity::Warning,
            format!("the webhook's certificate ends in {}, and was not renewed", span(ends - facts.now)),
            "from then on every change of a policy in a validated namespace is refused",
            logs,
        );
    } else if begins > facts.now {
        found.add(
            Severity::Critical,
            format!(
                "the webhook's certificate is valid only in {}: a clock is wrong",
                span(begins - facts.now)
            ),
            refused,
            again,
        );
    } else if !covers {
        found.add(
            Severity::Critical,
            format!("the webhook's certificate is not good for {}.{namespace}.svc", webhook.service.name),
            refused,
            again,
        );
    } else if trusted == Some(false) {
        found.add(
            Severity::Critical,
            format!("no CA in the caBundle of {} has signed the webhook's certificate", webhook.name),
            refused,
            again,
        );
    }
}

fn endpoints(facts: &Facts, found: &mut Findings) {
    let (Ok(ready), Ok(Some(webhook))) = (&facts.endpoints, &facts.webhook) else { return };
    let refused =
        "every change of a policy in a validated namespace is refused with \"failed calling webhook\"";
    let namespace = &webhook.service.namespace;
    match ready {
        None => found.add(
            Severity::Critical,
            format!("the Service {} that the API server calls does not exist", webhook.service),
            refused,
            APPLY_WEBHOOK,
        ),
        Some(0) => found.add(
            Severity::Critical,
            format!("no webhook is ready behind the Service {}", webhook.service),
            refused,
            format!("kubectl --namespace {namespace} get pods; kubectl --namespace {namespace} logs deployment/egress-webhook"),
        ),
        Some(1) => found.add(
            Severity::Warning,
            format!("one webhook alone is ready behind the Service {}", webhook.service),
            "while it is replaced, changes of policies are refused",
            format!("kubectl --namespace {namespace} scale deployment/egress-webhook --replicas 2"),
        ),
        Some(_) => {}
    }
}

fn controller(facts: &Facts, found: &mut Findings) {
    let namespace = &facts.options.controller_namespace;
    let (Ok(rollout), Ok(lease)) = (&facts.controller, &facts.lease) else { return };
    let Some(rollout) = rollout else {
        let providers =
            facts.policies.as_ref().is_ok_and(|all| all.values().any(|policy| !policy.providers.is_empty()));
        found.add(
            if providers { Severity::Warning } else { Severity::Note },
            format!("there is no controller in the namespace {namespace}"),
            "clouds' ranges are not published, and no NetworkPolicies are written; enforcement on the nodes does not need it",
            "add deploy/components/controller to the kustomization; or pass --controller-namespace",
        );
        return;
    };
    let logs = format!("kubectl --namespace {namespace} logs deployment/egress-controller --tail 50");
    let waits = "ranges and NetworkPolicies stay as they are; enforcement on the nodes goes on";
    if rollout.ready == 0 {
        found.add(Severity::Critical, "no controller is ready", waits, &logs);
    }
    match lease {
        None => {
            found.add(
                Severity::Critical,
                format!("there is no Lease in {namespace}: no controller ever led"),
                waits,
                &logs,
            );
        }
        Some(lease) if lease.holder.is_empty() => {
            found.add(Severity::Warning, "nobody holds the controllers' Lease", waits, &logs);
        }
        Some(lease) => {
            let age = facts.now.saturating_sub(lease.renewed);
            if age > lease.lasts.saturating_mul(3) {
                found.add(
                    Severity::Critical,
                    format!(
                        "{} holds the controllers' Lease and renewed it {} ago; it lasts {}",
                        lease.holder,
                        span(age),
                        span(lease.lasts)
                    ),
                    waits,
                    &logs,
                );
            }
        }
    }
}

fn ranges(facts: &Facts, found: &mut Findings) {
    let Ok(ranges) = &facts.ranges else { return };
    let logs = format!(
        "kubectl --namespace {} logs deployment/egress-controller | grep -i ranges",
        facts.options.controller_namespace
    );
    for (provider, created) in ranges {
        let age = facts.now.saturating_sub(*created);
        if age > OLD_RANGES {
            found.add(
                Severity::Warning,
                format!("what is published of {provider} is {} old", span(age)),
                "addresses the provider has begun to use since are denied; ones it has given up stay open",
                &logs,
            );
        }
    }
    let mut missing: BTreeMap<&str, Vec<&NsName>> = BTreeMap::new();
    for (name, policy) in facts.policies.iter().flatten() {
        for provider in policy.providers.iter().filter(|provider| !ranges.contains_key(*provider)) {
            missing.entry(provider).or_default().push(name);
        }
    }
    for (provider, policies) in missing {
        found.add(
            Severity::Critical,
            format!("nothing is published of {provider}, which {} need", few(&policies)),
            "their entries match nothing, so what they allow is denied; pods keep an older policy until it is",
            format!("add {provider} to EGRESS_PROVIDERS of the controller and set EGRESS_RANGES_NAMESPACE of the agents; {logs}"),
        );
    }
}

fn policies(facts: &Facts, found: &mut Findings) {
    let Ok(policies) = &facts.policies else { return };
    let no_summaries = BTreeMap::new();
    let summaries = facts.summaries.as_ref().unwrap_or(&no_summaries);
    for (id, policy) in policies {
        let key = id.to_string();
        let edit = format!("kubectl edit configmap --namespace {} {}", id.namespace, id.name);
        if let Some(why) = &policy.invalid {
            let earlier = summaries
                .values()
                .any(|summary| summary.policies.get(&key).is_some_and(|held| !held.revision.is_empty()));
            found.add(
                if earlier { Severity::Warning } else { Severity::Critical },
                format!("policy {id} is not in force as it is written: {why}"),
                match earlier {
                    true => "an earlier version is in force",
                    false => "where it never had a valid version its namespace is denied by default, cluster DNS excepted",
                },
                edit,
            );
            continue;
        }
        if facts.now.saturating_sub(policy.changed) < UNDER_WAY {
            continue;
        }
        let old: Vec<&String> = summaries
            .iter()
            .filter(|(_, summary)| {
                summary.written > policy.changed.saturating_add(UNDER_WAY)
                    && summary.policies.get(&key).is_some_and(|held| held.revision != policy.revision)
            })
            .map(|(node, _)| node)
            .collect();
        if !old.is_empty() {
            found.add(
                Severity::Warning,
                format!("policy {id} is in force in another version on {}", few(&old)),
                "the change has no effect there",
                "`egress-agent doctor` in the agent's pod of that node says why",
            );
        }
        let behind: Vec<String> = summaries
            .iter()
            .filter_map(|(node, summary)| {
                let held = summary.policies.get(&key)?;
                (held.behind > 0).then(|| format!("{node} ({} of {} pods)", held.behind, held.pods))
            })
            .collect();
        if !behind.is_empty() {
            found.add(
                Severity::Warning,
                format!("policy {id} is not in force yet for pods of {}", few(&behind)),
                "these pods keep what they had: the policy does not fit, or not everything it names is known",
                "`egress-agent doctor` in the agent's pod of that node says why",
            );
        }
    }
}

fn nodes(facts: &Facts, found: &mut Findings) {
    let Ok(summaries) = &facts.summaries else { return };
    for (node, summary) in summaries {
        let age = facts.now.saturating_sub(summary.written);
        let ask = "kubectl exec into the agent's pod of that node: egress-agent doctor";
        if age > SILENT_NODE {
            found.add(
                Severity::Warning,
                format!("node {node} told of itself {} ago last", span(age)),
                "its agent does not run, or cannot write to the API server; what is pinned is enforced",
                ask,
            );
        } else if !summary.ready || !summary.reasons.is_empty() {
            let reasons = few(&summary.reasons);
            let word = if summary.ready { "degraded" } else { "not ready" };
            let reasons = if reasons.is_empty() { "no reason is told".to_owned() } else { reasons };
            found.add(
                if summary.ready { Severity::Warning } else { Severity::Critical },
                format!("the agent of node {node} is {word}: {reasons}"),
                "not everything that is wanted is in force there",
                ask,
            );
        }
    }
    if let Ok(Some(Agents { summaries: false, rollout, .. })) = &facts.agents
        && rollout.wanted > 0
    {
        found.add(
            Severity::Note,
            "the agents do not publish what their nodes enforce",
            "whether a policy is in force on every node cannot be told from here",
            "set EGRESS_SUMMARY_NAMESPACE of the agents; deploy/components/controller has the rights for it",
        );
    }
    let auditing = summaries.values().filter(|summary| summary.audit).count();
    if auditing > 0 && auditing < summaries.len() {
        found.add(
            Severity::Warning,
            format!("{auditing} of {} nodes only audit (--audit)", summaries.len()),
            "which policies hold depends on where a pod runs",
            format!("kubectl --namespace {} rollout status daemonset", facts.options.agent_namespace),
        );
    } else if auditing > 0
        && let Some(what) = facts.generated.as_ref().ok().and_then(|made| contradiction(*made))
    {
        found.add(
            Severity::Warning,
            what,
            "the cluster only seems to audit",
            "set EGRESS_NETWORK_POLICIES=off of the controller, look whether all of these are its own, and delete them: kubectl get \
             networkpolicies --all-namespaces --selector app.kubernetes.io/managed-by=egress-agent",
        );
    }
    let mut versions: Vec<&str> = summaries.values().map(|summary| summary.version.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    if versions.len() > 1 {
        found.add(
            Severity::Note,
            format!("agents of several versions run: {}", few(&versions)),
            "normal while they are replaced",
            format!("kubectl --namespace {} rollout status daemonset", facts.options.agent_namespace),
        );
    }
}

fn validation(facts: &Facts, found: &mut Findings) {
    let (Ok(policies), Ok(validated)) = (&facts.policies, &facts.validated) else { return };
    let mut namespaces: BTreeMap<&str, u64> = BTreeMap::new();
    for id in policies.keys().filter(|id| !validated.iter().any(|one| *one == *id.namespace)) {
        let governed: u64 = facts
            .summaries
            .iter()
            .flatten()
            .filter_map(|(_, summary)| summary.policies.get(&id.to_string()))
            .map(|held| u64::from(held.pods))
            .sum();
        *namespaces.entry(&*id.namespace).or_default() += governed;
    }
    for (namespace, pods) in namespaces {
        let governed = match pods {
            0 => String::new(),
            pods => format!(", which govern pods there ({pods} as their nodes tell)"),
        };
        found.add(
            Severity::Warning,
            format!("namespace {namespace} has policies{governed}, and not the label egress-validation=enabled"),
            "nobody checks what is written there: a mistake comes to light on the nodes, and exceptions need no reason and no expiry",
            format!("kubectl label namespace {namespace} egress-validation=enabled"),
        );
    }
}
