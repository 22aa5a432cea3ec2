//! Asks the API server. Reads only.

use std::{collections::BTreeMap, fmt::Debug};

use anyhow::Context as _;
use k8s_openapi::{
    api::{
        admissionregistration::v1::ValidatingWebhookConfiguration,
        apps::v1::{DaemonSet, Deployment},
        coordination::v1::Lease as ApiLease,
        core::v1::{ConfigMap, Namespace, Node, Secret, Service},
        discovery::v1::EndpointSlice,
        events::v1::Event,
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{ListParams, PartialObjectMeta},
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde::de::DeserializeOwned;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

use super::{
    super::{Fact, Unchecked},
    Agents, Certificate, Denials, Facts, Lease, Policy, Rollout, Webhook,
};
use crate::{
    k8s::{
        client::{self, Access},
        convert::{MANAGED, POLICY_KEY},
        generated::{MANAGED_BY, is_generated},
        published::{self, head_name},
        summary::{self, Summary},
    },
    kernel::clock,
    policy::{
        cluster::NsName,
        document,
        model::{DefaultAction, Peer, Unresolved},
    },
    ranges::publish::Head,
};

/// The Secret with the webhook's certificates.
pub(super) const SECRET: &str = "egress-webhook-certificates";
/// The label of namespaces whose policies the webhook is asked about.
const VALIDATION: &str = "egress-validation=enabled";
/// How many objects one answer has.
const PAGE: u32 = 500;
/// How many objects of a kind are read at all.
const MOST: usize = 100_000;

/// Where to look.
#[derive(Clone, Debug)]
pub struct Options {
    /// The namespace of the agents.
    pub agent_namespace: String,
    /// The namespace of the webhook.
    pub webhook_namespace: String,
    /// The namespace of the controller.
    pub controller_namespace: String,
    /// Services that answer names, unless the agents' DaemonSet says others.
    pub cluster_dns: Vec<NsName>,
}

/// Gathers what there is to know of a cluster.
///
/// # Errors
///
/// When the API server cannot be reached.
pub async fn gather(access: &Access, options: &Options) -> anyhow::Result<(Facts, Vec<Unchecked>)> {
    let (client, _contact) = client::connect(access).await?;
    client.apiserver_version().await.context("the API server cannot be asked")?;
    let (now, _) = clock::wall_seconds_and_fraction();
    let ask = Ask { client, options };
    let (agents, services) = ask.agents().await;
    let webhook = ask.webhook().await;
    let trusted = match &webhook {
        Ok(Some((_, bundle))) => Some(bundle.as_slice()),
        _ => None,
    };
    let service = match &webhook {
        Ok(Some((webhook, _))) => webhook.service.clone(),
        _ => NsName::new(&options.webhook_namespace, "egress-webhook"),
    };
    let policies = ask.policies().await;
    let mut dns = Vec::new();
    for name in services {
        dns.push(ask.ready(&name).await.map(|ready| (name, ready)));
    }
    let mut unchecked = Vec::new();
    let mut note = |what: &str, why: Option<String>| {
        unchecked.extend(why.map(|why| Unchecked { what: what.to_owned(), why }));
    };
    let (policies, more) = match policies {
        Ok((policies, more)) => (Ok(policies), more),
        Err(why) => (Err(why), false),
    };
    if more {
        note("all policies", Some(format!("there are more than {MOST}")));
    }
    let facts = Facts {
        now,
        options: options.clone(),
        nodes: ask.nodes().await,
        agents,
        controller: ask.deployment(&options.controller_namespace, "egress-controller").await,
        certificate: ask.certificate(&service, trusted).await,
        endpoints: ask.ready(&service).await,
        webhook: webhook.map(|found| found.map(|(webhook, _)| webhook)),
        lease: ask.lease().await,
        ranges: ask.ranges(&mut note).await,
        summaries: ask.summaries(&mut note).await,
        generated: ask.generated().await,
        policies,
        validated: ask.validated().await,
        dns: dns.into_iter().collect(),
        node_local_dns: ask.node_local_dns().await,
        denials: ask.denials().await,
    };
    note("the nodes", facts.nodes.clone().err());
    note("the agents", facts.agents.clone().err());
    note("the controller", facts.controller.clone().err());
    note("the webhook's configuration", facts.webhook.clone().err());
    note("the webhook's certificate", facts.certificate.clone().err());
    note("what answers for the webhook", facts.endpoints.clone().err());
    note("the controllers' Lease", facts.lease.clone().err());
    note("published ranges", facts.ranges.clone().err());
    note("what nodes tell of themselves", facts.summaries.clone().err());
    note("the NetworkPolicies that were made of policies", facts.generated.clone().err());
    note("policies", facts.policies.clone().err());
    note("the labels of namespaces", facts.validated.clone().err());
    note("what answers names", facts.dns.clone().err());
    note("a cache for names on nodes", facts.node_local_dns.clone().err());
    note("denials in Events", facts.denials.clone().err());
    Ok((facts, unchecked))
}

struct Ask<'o> {
    client: Client,
    options: &'o Options,
}

fn told(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        error => error.to_string(),
    }
}

/// Returns the seconds since the epoch.
fn second(time: jiff::Timestamp) -> u64 {
    u64::try_from(time.as_second()).unwrap_or(0)
}

fn number(value: Option<i32>) -> u32 {
    u32::try_from(value.unwrap_or(0)).unwrap_or(0)
}

/// Returns all of them, page by page, and whether there are more than are ever read.
async fn all<K: Clone + DeserializeOwned + Debug>(api: &Api<K>, params: ListParams) -> Fact<(Vec<K>, bool)> {
    let mut params = params.limit(PAGE);
    let mut found = Vec::new();
    loop {
        let page = api.list(&params).await.map_err(told)?;
        let next = page.metadata.continue_.filter(|token| !token.is_empty());
        found.extend(page.items);
        let Some(next) = next else { return Ok((found, false)) };
        if found.len() >= MOST {
            return Ok((found, true));
        }
        params.continue_token = Some(next);
    }
}

impl Ask<'_> {
    async fn nodes(&self) -> Fact<usize> {
        let api: Api<Node> = Api::all(self.client.clone());
        let mut params = ListParams::default().limit(PAGE);
        let mut count = 0;
        loop {
            let page: kube::core::ObjectList<PartialObjectMeta<Node>> =
                api.list_metadata(&params).await.map_err(told)?;
            count += page.items.len();
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(next) if count < MOST => params.continue_token = Some(next),
                _ => return Ok(count),
            }
        }
    }

    /// Returns what there is to say of the agents, and the Services that are to answer names.
    async fn agents(&self) -> (Fact<Option<Agents>>, Vec<NsName>) {
        let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), &self.options.agent_namespace);
        let params = ListParams::default()
            .labels("app.kubernetes.io/name=egress-agent,app.kubernetes.io/component=agent");
        let named = self.options.cluster_dns.clone();
        let set = match api.list(&params).await {
            Ok(found) => found.items.into_iter().next(),
            Err(error) => return (Err(told(error)), named),
        };
        let Some(set) = set else { return (Ok(None), named) };
        let generation = set.metadata.generation.unwrap_or(0);
        let status = set.status.unwrap_or_default();
        let pod = set.spec.and_then(|spec| spec.template.spec).unwrap_or_default();
        let variables: Vec<_> =
            pod.containers.into_iter().flat_map(|container| container.env.unwrap_or_default()).collect();
        let variable = |name: &str| {
            let found = variables.iter().find(|variable| variable.name == name);
            found.and_then(|variable| variable.value.clone()).filter(|value| !value.is_empty())
        };
        let services = match variable("EGRESS_CLUSTER_DNS") {
            Some(value) => {
                let names = value.split(',').filter_map(|one| one.trim().split_once('/'));
                names.map(|(namespace, name)| NsName::new(namespace, name)).collect()
            }
            None => named,
        };
        let agents = Agents {
            rollout: Rollout {
                wanted: number(Some(status.desired_number_scheduled)),
                updated: number(status.updated_number_scheduled),
                ready: number(Some(status.number_ready)),
                observed: status.observed_generation.unwrap_or(0) >= generation,
            },
            dns_addresses: variable("EGRESS_CLUSTER_DNS_ADDRESSES").is_some(),
            summaries: variable("EGRESS_SUMMARY_NAMESPACE").is_some(),
        };
        (Ok(Some(agents)), services)
    }

    async fn deployment(&self, namespace: &str, name: &str) -> Fact<Option<Rollout>> {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), namespace);
        let Some(found) = api.get_opt(name).await.map_err(told)? else { return Ok(None) };
        let status = found.status.unwrap_or_default();
        Ok(Some(Rollout {
            wanted: found.spec.map_or(1, |spec| number(spec.replicas.or(Some(1)))),
            updated: number(status.updated_replicas),
            ready: number(status.ready_replicas),
            observed: status.observed_generation.unwrap_or(0) >= found.metadata.generation.unwrap_or(0),
        }))
    }

    /// Returns the webhook's configuration, and the CAs in it.
    async fn webhook(&self) -> Fact<Option<(Webhook, Vec<Vec<u8>>)>> {
        let api: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
        let (found, _) = all(&api, ListParams::default()).await?;
        for configuration in found {
            let name = configuration.metadata.name.unwrap_or_default();
            for webhook in configuration.webhooks.unwrap_or_default() {
                if webhook.name != "policies.egress-agent.dev" {
                    continue;
                }
                let config = webhook.client_config;
                let service = config.service.map_or_else(
                    || NsName::new(&self.options.webhook_namespace, "egress-webhook"),
                    |service| NsName::new(&service.namespace, &service.name),
                );
                let bundle = config.ca_bundle.map(|bytes| bytes.0).unwrap_or_default();
                let ders = ders(&bundle);
                return Ok(Some((
                    Webhook {
                        name,
                        service,
                        failure_policy: webhook.failure_policy.unwrap_or_else(|| "Fail".to_owned()),
                        bundle: ders.as_ref().map_err(Clone::clone).and_then(|ders| {
                            ders.iter().map(|der| Ok(of_der(der)?.1)).collect::<Fact<Vec<u64>>>()
                        }),
                    },
                    ders.unwrap_or_default(),
                )));
            }
        }
        Ok(None)
    }

    async fn certificate(&self, service: &NsName, cas: Option<&[Vec<u8>]>) -> Fact<Option<Certificate>> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &service.namespace);
        let Some(secret) = api.get_opt(SECRET).await.map_err(told)? else { return Ok(None) };
        let bytes = secret.data.and_then(|mut data| data.remove("tls.crt")).map(|bytes| bytes.0);
        let shown = ders(&bytes.unwrap_or_default())?;
        let Some(leaf) = shown.first() else { return Ok(None) };
        certificate(leaf, service, cas).map(Some)
    }

    /// Returns how many addresses behind a Service are ready; nothing if there is no such Service.
    async fn ready(&self, name: &NsName) -> Fact<Option<usize>> {
        let services: Api<Service> = Api::namespaced(self.client.clone(), &name.namespace);
        if services.get_opt(&name.name).await.map_err(told)?.is_none() {
            return Ok(None);
        }
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &name.namespace);
        let params = ListParams::default().labels(&format!("kubernetes.io/service-name={}", name.name));
        let (slices, _) = all(&slices, params).await?;
        let endpoints = slices.into_iter().flat_map(|slice| slice.endpoints);
        let ready = endpoints.filter(|endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
        });
        Ok(Some(ready.map(|endpoint| endpoint.addresses.len()).sum()))
    }

    async fn lease(&self) -> Fact<Option<Lease>> {
        let api: Api<ApiLease> = Api::namespaced(self.client.clone(), &self.options.controller_namespace);
        let Some(lease) = api.get_opt("egress-controller").await.map_err(told)? else { return Ok(None) };
        let spec = lease.spec.unwrap_or_default();
        Ok(Some(Lease {
            holder: spec.holder_identity.unwrap_or_default(),
            renewed: spec.renew_time.map_or(0, |time| second(time.0)),
            lasts: u64::from(number(spec.lease_duration_seconds)),
        }))
    }

    async fn ranges(&self, note: &mut impl FnMut(&str, Option<String>)) -> Fact<BTreeMap<String, u64>> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.options.controller_namespace);
        // Chunks are large, and only heads are wanted: names first.
        let params = ListParams::default().labels(published::LABEL);
        let names = api.list_metadata(&params).await.map_err(told)?;
        let mut found = BTreeMap::new();
        for object in names.items {
            let provider =
                object.metadata.labels.unwrap_or_default().remove(published::LABEL).unwrap_or_default();
            let name = object.metadata.name.unwrap_or_default();
            if name != head_name(&provider) {
                continue;
            }
            let Some(head) = api.get_opt(&name).await.map_err(told)? else { continue };
            let text = head.data.and_then(|mut data| data.remove(published::HEAD_KEY)).unwrap_or_default();
            match Head::parse(text.as_bytes()) {
                Ok(head) => drop(found.insert(provider, head.created)),
                Err(error) => note(&format!("what is published of {provider}"), Some(error.to_string())),
            }
        }
        Ok(found)
    }

    async fn summaries(
        &self,
        note: &mut impl FnMut(&str, Option<String>),
    ) -> Fact<BTreeMap<String, Summary>> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.options.agent_namespace);
        let params = ListParams::default().labels(&format!("{}={}", summary::LABEL.0, summary::LABEL.1));
        let mut found = BTreeMap::new();
        let (objects, _) = all(&api, params).await?;
        for object in objects {
            let name = object.metadata.name.clone().unwrap_or_default();
            match Summary::read(object) {
                Ok((node, summary)) => drop(found.insert(node, summary)),
                Err(wrong) => note(&format!("the summary {name}"), Some(wrong.to_string())),
            }
        }
        Ok(found)
    }

    async fn generated(&self) -> Fact<usize> {
        let api: Api<NetworkPolicy> = Api::all(self.client.clone());
        let params = ListParams::default().labels(&format!("{}={}", MANAGED_BY.0, MANAGED_BY.1));
        let (objects, _) = all(&api, params).await?;
        Ok(objects.iter().filter(|object| is_generated(&object.metadata)).count())
    }

    async fn policies(&self) -> Fact<(BTreeMap<NsName, Policy>, bool)> {
        let api: Api<ConfigMap> = Api::all(self.client.clone());
        let params = ListParams::default().labels(&format!("{}={}", MANAGED.0, MANAGED.1));
        let (objects, more) = all(&api, params).await?;
        let policies = objects.into_iter().map(|object| {
            let ObjectMeta { namespace, name, managed_fields, .. } = object.metadata;
            let id = NsName::new(namespace.unwrap_or_default(), name.unwrap_or_default());
            let changes = managed_fields.unwrap_or_default().into_iter().filter_map(|fields| fields.time);
            let changed = changes.map(|time| second(time.0)).max().unwrap_or(0);
            let policy = match object.data.and_then(|mut data| data.remove(POLICY_KEY)) {
                Some(text) => policy(&id, &text),
                None => Policy {
                    invalid: Some(format!("there is no text under {POLICY_KEY}")),
                    ..Policy::default()
                },
            };
            (id, Policy { changed, ..policy })
        });
        Ok((policies.collect(), more))
    }

    async fn validated(&self) -> Fact<Vec<String>> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let mut params = ListParams::default().labels(VALIDATION).limit(PAGE);
        let mut found = Vec::new();
        loop {
            let page = api.list_metadata(&params).await.map_err(told)?;
            found.extend(page.items.into_iter().filter_map(|object| object.metadata.name));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(next) if found.len() < MOST => params.continue_token = Some(next),
                _ => return Ok(found),
            }
        }
    }

    async fn node_local_dns(&self) -> Fact<bool> {
        let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), "kube-system");
        Ok(api.get_metadata_opt("node-local-dns").await.map_err(told)?.is_some())
    }

    async fn denials(&self) -> Fact<Denials> {
        let api: Api<Event> = Api::all(self.client.clone());
        // One page is sample enough.
        let params = ListParams::default().fields("reason=EgressDenied").limit(PAGE);
        let mut denials = Denials::default();
        for event in api.list(&params).await.map_err(told)?.items {
            let count = event.series.map_or(1, |series| u64::from(number(Some(series.count))).max(1));
            denials.all += count;
            if event.note.is_some_and(|note| is_of_names(&note)) {
                denials.names += count;
                *denials.namespaces.entry(event.metadata.namespace.unwrap_or_default()).or_default() += count;
            }
        }
        Ok(denials)
    }
}

/// Returns whether an Event's note, such as `UDP to 10.96.0.10 port 53 was denied: …`, is about port 53.
pub(super) fn is_of_names(note: &str) -> bool {
    note.split_once(" was denied").is_some_and(|(begin, _)| begin.ends_with(" port 53"))
}

/// Reads a policy's text.
pub(super) fn policy(id: &NsName, text: &str) -> Policy {
    let parsed = document::parse(id, text);
    let revision = summary::revision(text);
    let Some(policy) = parsed.policy else {
        let why = parsed.findings.iter().find(|finding| finding.is_error()).map(ToString::to_string);
        return Policy {
            revision,
            invalid: why.or(Some("it cannot be read".to_owned())),
            ..Policy::default()
        };
    };
    let mut providers: Vec<String> = policy
        .rules
        .iter()
        .flat_map(|rule| &rule.peers)
        .filter_map(|peer| match peer {
            Peer::Unresolved(Unresolved::AwsService { .. }) => Some("aws".to_owned()),
            Peer::Unresolved(Unresolved::Cloud { provider, .. }) => Some(provider.to_lowercase()),
            _ => None,
        })
        // Custom services are the platform team's own objects, and have no head.
        .filter(|provider| provider != crate::policy::ranges::CUSTOM)
        .collect();
    providers.sort();
    providers.dedup();
    let denies = policy.default_action == DefaultAction::Deny;
    Policy {
        revision,
        without_dns: denies && !policy.cluster_dns,
        needs_dns: denies && policy.cluster_dns,
        providers,
        ..Policy::default()
    }
}

/// Returns the certificates in a PEM text.
fn ders(pem: &[u8]) -> Fact<Vec<Vec<u8>>> {
    let found = CertificateDer::pem_slice_iter(pem).map(|der| der.map(|der| der.to_vec()));
    found.collect::<Result<_, _>>().map_err(|error| format!("it is no PEM: {error}"))
}

/// Returns from when a certificate is valid and when it ends, in seconds since the epoch.
fn of_der(der: &[u8]) -> Fact<(u64, u64)> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|error| format!("it is no certificate: {error}"))?;
    let second = |time: &x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    Ok((second(&certificate.validity().not_before), second(&certificate.validity().not_after)))
}

/// Reads the certificate that is shown for a Service.
pub(super) fn certificate(der: &[u8], service: &NsName, cas: Option<&[Vec<u8>]>) -> Fact<Certificate> {
    let (begins, ends) = of_der(der)?;
    let (_, leaf) =
        X509Certificate::from_der(der).map_err(|error| format!("it is no certificate: {error}"))?;
    let wanted = format!("{}.{}.svc", service.name, service.namespace);
    let covers = match leaf.subject_alternative_name() {
        Ok(Some(names)) => names
            .value
            .general_names
            .iter()
            .any(|name| matches!(name, GeneralName::DNSName(name) if *name == wanted)),
        _ => false,
    };
    let signed = |ca: &Vec<u8>| {
        X509Certificate::from_der(ca)
            .is_ok_and(|(_, ca)| leaf.verify_signature(Some(ca.public_key())).is_ok())
    };
    Ok(Certificate { begins, ends, covers, trusted: cas.map(|cas| cas.iter().any(signed)) })
}
