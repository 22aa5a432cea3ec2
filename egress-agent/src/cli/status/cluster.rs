//! `egress-agent status --cluster`: what is in force of each policy, on how many nodes.
//!
//! It asks the API server for policies, for what nodes tell, and for the NetworkPolicies that were made; the controller need not run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

use anyhow::{Context as _, bail};
use k8s_openapi::api::{
    core::v1::{ConfigMap, Node},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, Client,
    api::{ListParams, ObjectList},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;

use super::{NONE, rows_of};
use crate::{
    agent::read_policy,
    k8s::{
        client::{self, Access},
        convert::{MANAGED, POLICY_KEY},
        generated::{LOSSES, MANAGED_BY, SOURCE, is_generated},
        summary::{self, LABEL, Summary, plain},
    },
    kernel::clock,
    overview::{self, Facts, Nodes, Objects, Overview, PolicyStatus},
    policy::{cluster::NsName, index::InForce},
};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many objects one page of a list has.
const PAGE: u32 = 500;
/// Nodes that take no agent.
const NO_AGENT: &str = "eks.amazonaws.com/compute-type!=fargate,kubernetes.io/os!=windows";

/// What to ask.
pub(super) struct Question<'a> {
    pub(super) access: Access,
    /// One namespace, or all.
    pub(super) namespace: Option<&'a str>,
    /// The namespace that agents tell in.
    pub(super) summaries: &'a str,
}

/// Returns the namespace that kubectl would use.
pub(super) fn current_namespace(access: &Access) -> anyhow::Result<String> {
    let file = match &access.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let file = file.context("reading the kubeconfig")?;
    let wanted = KubeConfigOptions { context: access.context.clone(), ..KubeConfigOptions::default() };
    let name = wanted.context.or(file.current_context).unwrap_or_default();
    let context = file.contexts.into_iter().find(|context| context.name == name);
    let namespace = context.and_then(|context| context.context).and_then(|context| context.namespace);
    Ok(namespace.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned()))
}

/// Asks, and puts the answers together. Notes are what could not be asked, and why.
pub(super) fn ask(question: &Question<'_>) -> anyhow::Result<(Overview, Vec<String>)> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(async {
        let (client, _contact) = client::connect(&question.access).await?;
        let now = clock::wall_seconds_and_fraction().0;
        let mut notes = Vec::new();
        let mut facts = policies(&client, question.namespace, now).await?;
        match objects(&client, question.namespace).await {
            Ok(found) => facts.iter_mut().for_each(|facts| {
                facts.generated = Some(found.get(&facts.id).cloned().unwrap_or_default());
            }),
            Err(error) => notes.push(format!("NetworkPolicies cannot be asked for: {error:#}")),
        }
        let nodes = match summaries(&client, question.summaries).await {
            Ok((summaries, wrong)) => {
                notes.extend(wrong);
                let all = match nodes(&client).await {
                    Ok(all) => Some(all),
                    Err(error) => {
                        notes.push(format!("nodes cannot be listed, so none is missed: {error:#}"));
                        None
                    }
                };
                Some(Nodes { summaries, all })
            }
            Err(error) => {
                notes.push(format!(
                    "what nodes tell cannot be read in namespace {}: {error:#}",
                    question.summaries
                ));
                None
            }
        };
        Ok((overview::overview(&facts, nodes.as_ref(), now), notes))
    })
}

fn within<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Clone + DeserializeOwned + kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Lists page by page.
async fn pages<T, F>(mut params: ListParams, mut list: impl FnMut(ListParams) -> F) -> anyhow::Result<Vec<T>>
where
    T: Clone,
    F: Future<Output = Result<ObjectList<T>, kube::Error>>,
{
    params = params.limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = tokio::time::timeout(PATIENCE, list(params.clone())).await;
        let page = page.context("the API server does not answer")??;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

async fn policies(client: &Client, namespace: Option<&str>, now: u64) -> anyhow::Result<Vec<Facts>> {
    let api: Api<ConfigMap> = within(client, namespace);
    let params = ListParams::default().labels(&format!("{}={}", MANAGED.0, MANAGED.1));
    let maps = match pages(params, |params| {
        let api = api.clone();
        async move { api.list(&params).await }
    })
    .await
    {
        Ok(maps) => maps,
        Err(error) if namespace.is_none() && is_forbidden(&error) => {
            bail!("{error:#}; pass --namespace with one you may list configmaps in")
        }
        Err(error) => return Err(error.context("listing policies")),
    };
    let mut facts = Vec::with_capacity(maps.len());
    for map in maps {
        let id =
            NsName::new(map.metadata.namespace.unwrap_or_default(), map.metadata.name.unwrap_or_default());
        let text = map.data.and_then(|mut data| data.remove(POLICY_KEY));
        let (policy, findings) = match &text {
            Some(text) => read_policy(&id, text),
            None => (None, Vec::new()),
        };
        let in_force = if policy.is_some() { InForce::Current } else { InForce::Nothing };
        let mut known = Facts::new(id, in_force, policy.as_ref(), &findings, now);
        known.written = text.as_deref().map(summary::revision);
        known.accepted = known.written.clone().filter(|_| policy.is_some());
        facts.push(known);
    }
    facts.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(facts)
}

fn is_forbidden(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<kube::Error>(), Some(kube::Error::Api(status)) if status.code == 403)
}

/// Counts the NetworkPolicies that were made of each policy.
async fn objects(client: &Client, namespace: Option<&str>) -> anyhow::Result<BTreeMap<NsName, Objects>> {
    let api: Api<NetworkPolicy> = within(client, namespace);
    let params = ListParams::default().labels(&format!("{}={}", MANAGED_BY.0, MANAGED_BY.1));
    let all = pages(params, |params| {
        let api = api.clone();
        async move { api.list_metadata(&params).await }
    })
    .await?;
    let mut objects: BTreeMap<NsName, Objects> = BTreeMap::new();
    for object in all.into_iter().filter(|object| is_generated(&object.metadata)) {
        let annotations = object.metadata.annotations.unwrap_or_default();
        let Some((namespace, name)) = annotations.get(SOURCE).and_then(|source| source.split_once('/'))
        else {
            continue;
        };
        let of = objects.entry(NsName::new(namespace, name)).or_default();
        of.count += 1;
        // All objects of a policy have the same list. Every NetworkPolicy allows the pod's own node, which is no news.
        let lines = annotations.get(LOSSES).map_or("", String::as_str).lines();
        let losses: Vec<&str> = lines.filter(|line| !line.ends_with("[own-node]")).collect();
        of.losses = losses.len();
        of.named = losses.into_iter().take(3).map(str::to_owned).collect();
    }
    Ok(objects)
}

/// Reads what nodes tell. What cannot be read is told, a line each.
async fn summaries(
    client: &Client,
    namespace: &str,
) -> anyhow::Result<(BTreeMap<String, Summary>, Vec<String>)> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default().labels(&format!("{}={}", LABEL.0, LABEL.1));
    let maps = pages(params, |params| {
        let api = api.clone();
        async move { api.list(&params).await }
    })
    .await?;
    let (mut summaries, mut wrong) = (BTreeMap::new(), Vec::new());
    for map in maps {
        let name = map.metadata.name.clone().unwrap_or_default();
        match Summary::read(map) {
            Ok((node, summary)) => {
                summaries.insert(node, summary);
            }
            Err(error) => wrong.push(format!("{name} is no summary of a node: {error}")),
        }
    }
    Ok((summaries, wrong))
}

async fn nodes(client: &Client) -> anyhow::Result<BTreeSet<String>> {
    let api: Api<Node> = Api::all(client.clone());
    let nodes = pages(ListParams::default().labels(NO_AGENT), |params| {
        let api = api.clone();
        async move { api.list_metadata(&params).await }
    })
    .await?;
    Ok(nodes.into_iter().filter_map(|node| node.metadata.name).collect())
}

/// Returns the answer for people.
pub(super) fn table(overview: &Overview) -> String {
    let mut text = String::new();
    if let Some(nodes) = &overview.nodes {
        let counts = |counts: &BTreeMap<String, usize>| -> String {
            let each: Vec<String> = counts.iter().map(|(what, count)| format!("{what} ({count})")).collect();
            if each.is_empty() { NONE.to_owned() } else { each.join(", ") }
        };
        let missing =
            nodes.missing.map_or_else(String::new, |missing| format!(", nothing heard of {missing}"));
        let auditing = match nodes.auditing {
            0 => String::new(),
            auditing => format!("{auditing} only auditing, "),
        };
        let mut lines = vec![
            (
                "Nodes",
                format!(
                    "{} ready, {auditing}{} not ready, {} silent{missing}",
                    nodes.ready, nodes.not_ready, nodes.silent
                ),
            ),
            ("Versions", counts(&nodes.versions)),
        ];
        let ranges =
            nodes.ranges.iter().map(|(provider, revisions)| format!("{provider} {}", counts(revisions)));
        lines.extend(ranges.map(|line| ("Ranges", line)));
        lines.extend(nodes.reasons.iter().chain(&overview.contradiction).map(|reason| ("", reason.clone())));
        for (head, line) in lines {
            let head = if head.is_empty() { String::new() } else { format!("{head}:") };
            writeln!(text, "{head:<13}{line}").expect("a string takes everything");
        }
        text.push('\n');
    }
    if overview.policies.is_empty() {
        return text + "No policies.\n";
    }
    let heads = [
        "NAMESPACE",
        "POLICY",
        "STATE",
        "MODE",
        "REVISION",
        "NODES",
        "PODS",
        "OBJECTS",
        "LOSSES",
        "NEXT EXPIRY",
    ];
    let asked = overview.nodes.is_some();
    let row = |policy: &PolicyStatus| {
        let number =
            |number: Option<usize>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| NONE.to_owned());
        vec![
            policy.namespace.clone(),
            policy.name.clone(),
            policy.state.words().to_owned(),
            policy.mode.to_owned(),
            text(&policy.accepted),
            if asked {
                format!("{}/{}", policy.nodes.enforcing, policy.nodes.selected)
            } else {
                "-".to_owned()
            },
            number(asked.then(|| usize::try_from(policy.pods).unwrap_or(usize::MAX))),
            number(policy.network_policies),
            number(policy.losses),
            text(&policy.next_expiry),
        ]
    };
    text += &rows_of(&heads, overview.policies.iter().map(row).collect());
    let told = overview.policies.iter().flat_map(|policy| {
        let findings =
            policy.findings.iter().map(|finding| format!("{}: {}", finding.severity, finding.text));
        // An error is a reason, too, and is told as such.
        let findings = findings.skip(usize::from(policy.accepted.is_none() && !policy.findings.is_empty()));
        let more = (policy.more_findings > 0).then(|| format!("and {} more findings", policy.more_findings));
        let lines = policy.reasons.iter().cloned().chain(findings).chain(more);
        lines.map(|line| vec![format!("{}/{}", policy.namespace, policy.name), plain(&line, 1000)])
    });
    let told: Vec<Vec<String>> = told.collect();
    if !told.is_empty() {
        text.push('\n');
        text += &rows_of(&["POLICY", "WHAT THERE IS TO SAY"], told);
    }
    text
}
