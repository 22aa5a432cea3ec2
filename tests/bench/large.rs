//! The real agent in a cluster as large as they get: what it receives, what it keeps, and what it spends.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use egress_tests::lab::api::{Double, Kind};
use serde_json::{Value, json};

use crate::{
    kube::{APPLY, objects},
    measure::{Effort, percentile},
    process::{Agent, BpfFs, Pinned, reached},
    report::{Report, Table, number},
    room::{PodRoom, Qos, Room},
    scale::Shape,
};

const MB: f64 = 1e6;
/// How long a start may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(180);
/// Events of pods in a second, while the cluster changes.
const EVENTS: u32 = 150;
/// Events that replacing a pod makes: it goes, its successor comes, and gets its address.
const REPLACING: u32 = 3;
/// How often a pod comes that matters.
const PROBE_EVERY: Duration = Duration::from_millis(250);
/// From how many addresses on policies need room that the default is too small for.
const ROOM: &str = "524288";
const PORT: u16 = 8080;

/// What the policies of the node's pods speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policies {
    Addresses,
    SomeNamespaces,
    Some,
    All,
    World,
}

impl Policies {
    const EACH: [Self; 5] = [Self::Addresses, Self::SomeNamespaces, Self::Some, Self::All, Self::World];

    const fn title(self) -> &'static str {
        match self {
            Self::Addresses => "addresses only",
            Self::SomeNamespaces => "pods of 12 namespaces",
            Self::Some => "1.5 % of all pods, by label",
            Self::All => "all pods",
            Self::World => "`world`",
        }
    }

    /// Returns the policies that come to those everybody has, with their namespaces: `own` are those of the node's pods.
    fn more(self, own: &[String], shape: Shape) -> Vec<Value> {
        let everywhere = |pods: Value| json!([{"name": "peers", "pods": {"namespaceSelector": {}, "podSelector": pods}, "ports": [PORT]}]);
        let one = |destinations: Value| vec![policy(&own[0], "more", &destinations)];
        match self {
            Self::Addresses => Vec::new(),
            Self::SomeNamespaces => own[..4].iter().enumerate().map(|(number, namespace)| {
                let other = |place: usize| {
                    let place = u32::try_from(number * 2 + place).expect("a small number");
                    shape.namespace(shape.namespaces / 2 + place)
                };
                policy(namespace, "more", &json!([
                    {"name": "own", "pods": {"podSelector": {}}, "ports": [PORT]},
                    {"name": "others", "pods": {"namespaceSelector": {"matchExpressions": [{
                        "key": "kubernetes.io/metadata.name", "operator": "In", "values": [other(0), other(1)]}]}, "podSelector": {}}, "ports": [PORT]},
                ]))
            }).collect(),
            Self::Some => one(everywhere(json!({"matchLabels": {"tier": "gold"}}))),
            Self::All => one(everywhere(json!({}))),
            Self::World => one(json!([{"name": "world", "entity": "world", "ports": [443]}])),
        }
    }
}

fn policy(namespace: &str, name: &str, destinations: &Value) -> Value {
    let text = json!({"defaultAction": "deny", "podSelector": {}, "allowedDestinations": destinations});
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "labels": {"egress-controller": "managed"}},
        "data": {"policy.json": text.to_string()},
    })
}

/// A large cluster behind a double, and the pods of one node of it.
struct Cluster {
    double: Double,
    shape: Shape,
    /// Pods of the node, with their namespaces.
    pods: Vec<(PodRoom, String)>,
    /// Pods of other nodes, to be replaced by others.
    replaced: Vec<Value>,
}

impl Cluster {
    fn load(room: &Room, shape: Shape) -> Result<Self> {
        let double = Double::start()?;
        let mut cluster = Self { double, shape, pods: Vec::new(), replaced: Vec::new() };
        let node = shape.node(0);
        cluster.double.load(shape.namespaces())?;
        cluster.double.load(shape.all_nodes())?;
        cluster.double.load(shape.services())?;
        cluster.double.load(shape.slices())?;
        cluster.double.load(dns())?;
        // As many as are replaced while the cluster changes, from all over it.
        let step = (shape.pods / 1_500).max(1) as usize;
        let mut here = Vec::new();
        let replaced = &mut cluster.replaced;
        cluster.double.load(shape.all_pods().enumerate().map(|(number, pod)| {
            if pod["spec"]["nodeName"] == node.as_str() {
                here.push((pod["metadata"]["uid"].clone(), pod["metadata"]["namespace"].clone()));
            } else if number % step == 0 {
                replaced.push(pod.clone());
            }
            pod
        }))?;
        // What was before is of no use to any watch.
        cluster.double.compact();
        cluster.double.keep_history(100_000);
        for (uid, namespace) in here {
            let text =
                |value: &Value| value.as_str().map(str::to_owned).context("a pod has a UID and a namespace");
            cluster.pods.push((room.pod(Qos::Burstable, &text(&uid)?)?, text(&namespace)?));
        }
        ensure!(cluster.pods.len() > 4, "the node has pods");
        Ok(cluster)
    }

    fn namespaces(&self) -> Vec<String> {
        let mut names: Vec<String> = self.pods.iter().map(|(_, namespace)| namespace.clone()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// The cluster's DNS.
fn dns() -> [Value; 2] {
    let port = json!([{"name": "dns", "port": 53, "protocol": "UDP"}]);
    [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {"clusterIP": "10.200.0.2", "clusterIPs": ["10.200.0.2"], "ports": port}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "kube-dns-1", "namespace": "kube-system", "labels": {"kubernetes.io/service-name": "kube-dns"}},
            "ports": port, "endpoints": [{"addresses": ["10.0.1.2"], "conditions": {"ready": true}}]}),
    ]
}

/// What one sort of policies costs.
#[derive(Debug, Default)]
struct Outcome {
    /// Bytes of answers until everything was enforced.
    bytes: f64,
    objects: f64,
    requests: u64,
    /// From the execution until everything was enforced.
    seconds: f64,
    /// Processor seconds until then.
    spent: f64,
    resident: f64,
    /// The most it ever had.
    most: f64,
    churn: Churn,
}

/// What it costs to follow a cluster that changes.
#[derive(Debug, Default)]
struct Churn {
    /// Events in a second, as they were made.
    pace: f64,
    /// In a second.
    bytes: f64,
    /// Percent of a core.
    share: f64,
    /// Milliseconds from the change of a pod that matters to the kernel.
    times: Vec<f64>,
    /// By the agent's own measure, the bound within which 99 of a hundred applications are, in milliseconds.
    own: f64,
    resident: f64,
}

/// Everything about a large cluster.
///
/// # Errors
///
/// When the agent does not do what it should.
pub fn run(room: &Room, effort: &Effort, report: &mut Report) -> Result<()> {
    let shape = if effort.quick {
        Shape { nodes: 500, pods: 15_000, namespaces: 200, workloads: 2_000, ..Shape::LARGEST }
    } else {
        Shape { workloads: 20_000, ..Shape::LARGEST }
    };
    let mut cluster = Cluster::load(room, shape)?;
    eprintln!("  {} pods on {} nodes", cluster.double.count(Kind::Pod), cluster.double.count(Kind::Node));
    let own = cluster.namespaces();
    let always = json!([
        {"name": "net", "cidrs": ["192.0.2.0/24", "198.51.100.0/25"], "ports": [443]},
        {"name": "host", "cidr": "203.0.113.7/32", "ports": [5432]},
    ]);
    cluster.double.load(own.iter().map(|namespace| policy(namespace, "always", &always)))?;
    let bpffs = BpfFs::mount()?;
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let mut outcomes = Vec::new();
    for (number, policies) in Policies::EACH.into_iter().enumerate() {
        let more = policies.more(&own, shape);
        cluster.double.load(more.iter().cloned())?;
        let pins = bpffs.pins(&format!("large-{number}"));
        let seconds = if effort.quick { 4 } else { 20 };
        let outcome = one(room, &mut cluster, policies, &pins, &folder.path().join("agent.log"), seconds)
            .with_context(|| format!("policies of {}", policies.title()))?;
        eprintln!("  {}: {outcome:?}", policies.title());
        outcomes.push((policies, outcome));
        for policy in more {
            ensure!(
                cluster.double.remove(Kind::ConfigMap, policy["metadata"]["namespace"].as_str(), "more"),
                "the policy was there"
            );
        }
    }
    told(report, &outcomes, shape, effort);
    Ok(())
}

fn one(
    room: &Room,
    cluster: &mut Cluster,
    policies: Policies,
    pins: &Path,
    log: &Path,
    seconds: u64,
) -> Result<Outcome> {
    cluster.double.reset_counts();
    let kubeconfig = cluster.double.kubeconfig();
    let source = [
        "--kubeconfig",
        kubeconfig.to_str().context("a folder of this process has a plain name")?,
        "--node-name",
        &cluster.shape.node(0),
        "--max-addresses",
        ROOM,
    ];
    let mut agent = Agent::spawn(room, &source, pins, log.to_owned())?;
    let mut next = 0;
    let mut pinned = None;
    while next < cluster.pods.len() {
        agent.still(PATIENCE, "has not put all policies into force")?;
        thread::sleep(Duration::from_millis(5));
        match &pinned {
            None => {
                if let Ok(maps) = Pinned::open(pins) {
                    pinned = Some(maps);
                }
            }
            Some(maps) => {
                while let Some((pod, _)) = cluster.pods.get(next)
                    && maps.revision(pod)?.is_some()
                {
                    next += 1;
                }
            }
        }
    }
    let mut outcome = Outcome {
        seconds: agent.began.elapsed().as_secs_f64(),
        spent: agent.processor_time()?,
        bytes: cluster.double.bytes_sent() as f64,
        requests: crate::kube::asked(&cluster.double),
        ..Outcome::default()
    };
    let pinned = pinned.context("the maps were just read")?;
    thread::sleep(Duration::from_secs(2));
    outcome.objects = objects(&agent.metrics()?)?;
    outcome.resident = agent.memory("VmRSS:")?;
    outcome.churn = churn(cluster, policies, &agent, &pinned, seconds)?;
    outcome.most = agent.memory("VmHWM:")?;
    Ok(outcome)
}

fn churn(
    cluster: &mut Cluster,
    policies: Policies,
    agent: &Agent,
    pinned: &Pinned,
    seconds: u64,
) -> Result<Churn> {
    let (bytes, spent, metrics) = (cluster.double.bytes_sent(), agent.processor_time()?, agent.metrics()?);
    let began = Instant::now();
    let end = began + Duration::from_secs(seconds);
    let mut churn = Churn::default();
    let over = AtomicBool::new(false);
    let mut replaced = std::mem::take(&mut cluster.replaced);
    let shared = &*cluster;
    let made = thread::scope(|scope| -> Result<u64> {
        let replacing = scope.spawn(|| replace(&shared.double, &mut replaced, &over));
        let probing = probe(shared, policies, agent, pinned, end, &mut churn.times);
        thread::sleep(end.saturating_duration_since(Instant::now()));
        over.store(true, Ordering::Relaxed);
        let made = replacing.join().ok().context("the thread that replaces pods panicked")??;
        Ok(made + probing?)
    })?;
    cluster.replaced = replaced;
    let elapsed = began.elapsed().as_secs_f64();
    churn.pace = made as f64 / elapsed;
    churn.share = (agent.processor_time()? - spent) / elapsed * 100.0;
    churn.bytes = (cluster.double.bytes_sent() - bytes) as f64 / elapsed;
    churn.own = reached(&agent.metrics()?.buckets(APPLY, Some(&metrics))?, 0.99) * 1e3;
    churn.resident = agent.memory("VmRSS:")?;
    Ok(churn)
}

/// Replaces pods by others, one after the other, until it is over. Returns how many events that made.
fn replace(double: &Double, pods: &mut [Value], over: &AtomicBool) -> Result<u64> {
    let began = Instant::now();
    let mut made = 0;
    for count in 0_u32.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let due = Duration::from_secs(1) * count * REPLACING / EVENTS;
        thread::sleep(due.saturating_sub(began.elapsed()));
        let place = count as usize % pods.len();
        let pod = &mut pods[place];
        let text = |pointer: &str| {
            pod.pointer(pointer).and_then(Value::as_str).map(str::to_owned).context("a pod has all of it")
        };
        let (namespace, name, uid) =
            (text("/metadata/namespace")?, text("/metadata/name")?, text("/metadata/uid")?);
        let address: Ipv4Addr = text("/status/podIP")?.parse().context("an address")?;
        ensure!(double.remove(Kind::Pod, Some(&namespace), &name), "the pod {namespace}/{name} was there");
        // Another name and UID of the same length, another address on the same node.
        let other = |text: &str| -> String {
            let last = if text.ends_with('2') { '4' } else { '2' };
            text[..text.len() - 1].chars().chain([last]).collect()
        };
        let address = Ipv4Addr::from(u32::from(address) ^ 128).to_string();
        pod["metadata"]["name"] = format!("{}r", name.trim_end_matches('r')).into();
        if name.ends_with('r') {
            pod["metadata"]["name"] = name.trim_end_matches('r').into();
        }
        pod["metadata"]["uid"] = other(&uid).into();
        let mut early = pod.clone();
        early["status"] = json!({"phase": "Pending", "qosClass": "Burstable"});
        double.load([early])?;
        pod["status"]["podIP"] = address.clone().into();
        pod["status"]["podIPs"][0]["ip"] = address.into();
        double.load([pod.clone()])?;
        made += u64::from(REPLACING);
    }
    Ok(made)
}

/// Makes pods that matter to the policies, one after the other, and sees when the kernel knows of each. Returns how many events that
/// made.
fn probe(
    cluster: &Cluster,
    policies: Policies,
    agent: &Agent,
    pinned: &Pinned,
    end: Instant,
    times: &mut Vec<f64>,
) -> Result<u64> {
    if policies == Policies::Addresses {
        return Ok(0);
    }
    let names = cluster.namespaces();
    let (pod, namespace) =
        cluster.pods.iter().find(|(_, namespace)| *namespace == names[0]).context("the node has pods")?;
    let mut made = 0;
    for number in 0_u32.. {
        thread::sleep(PROBE_EVERY);
        if Instant::now() >= end {
            break;
        }
        // An address that nothing else speaks of, but for `world`, to which it belongs until a pod has it.
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(203, 0, 113, 64)) + number % 128);
        let name = format!("probe-{number}");
        let probe = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": "probe", "tier": "gold"}},
            "spec": {"nodeName": cluster.shape.node(1), "containers": [{"name": "main"}]},
            "status": {"phase": "Running", "podIP": address.to_string(), "podIPs": [{"ip": address.to_string()}]},
        });
        let before = pinned.speaks(pod, IpAddr::V4(address))?;
        ensure!(before == (policies == Policies::World), "nobody has {address} yet");
        let began = Instant::now();
        cluster.double.load([probe])?;
        while pinned.speaks(pod, IpAddr::V4(address))? == before {
            ensure!(
                began.elapsed() < PATIENCE,
                "the kernel never knew of a pod; the agent says:\n{}",
                agent.said()
            );
            thread::sleep(Duration::from_millis(1));
        }
        times.push(began.elapsed().as_secs_f64() * 1e3);
        cluster.double.remove(Kind::Pod, Some(namespace), &name);
        made += 2;
    }
    Ok(made)
}

fn told(report: &mut Report, outcomes: &[(Policies, Outcome)], shape: Shape, effort: &Effort) {
    let all = outcomes.iter().find(|(policies, _)| *policies == Policies::All).map(|(_, outcome)| outcome);
    if let Some(all) = all {
        let what = format!("agent resident memory with {} pods selected against", shape.pods);
        report.goal(&what, 60.0, all.resident, "MiB");
    }
    let start = |(policies, outcome): &(Policies, Outcome)| {
        vec![
            policies.title().to_owned(),
            outcome.requests.to_string(),
            number(outcome.objects),
            number(outcome.bytes / MB),
            number(outcome.seconds),
            number(outcome.spent),
            number(outcome.resident),
        ]
    };
    let change = |(policies, outcome): &(Policies, Outcome)| {
        let churn = &outcome.churn;
        let time = |share: f64| match churn.times[..] {
            [] => "none matters".to_owned(),
            _ => number(percentile(&churn.times, share)),
        };
        vec![
            policies.title().to_owned(),
            number(churn.pace),
            number(churn.bytes / 1e3),
            number(churn.share),
            time(0.5),
            time(1.0),
            format!("{}", churn.own),
            number(churn.resident),
            number(outcome.most),
        ]
    };
    report.table(Table {
        title: "Starting in a large cluster",
        about: "The API double shows a cluster of 5 000 nodes, 150 000 pods, 2 000 namespaces and 10 000 Services with their EndpointSlices (a tenth of all but the node's own pods \
                with `--quick`). 30 of the pods run on the agent's node, and each has a policy that names addresses; in all rows but the first some of them have \
                another one, of which the row tells. Nothing is pinned before. Counted until each of the 30 is enforced.",
        reading: format!(
            "{} pods on {} nodes; a pod is sent with everything a real one has, about five kilobytes.",
            shape.pods, shape.nodes
        ),
        head: &[
            "policies speak of",
            "lists and watches",
            "objects",
            "received, MB",
            "until enforced, s",
            "processor time, s",
            "resident, MiB",
        ],
        rows: outcomes.iter().map(start).collect(),
    });
    report.table(Table {
        title: "Following a large cluster",
        about: "The same agents. Pods from all over the cluster are replaced: one goes, another comes, and gets an address. Four times a second a pod comes that matters: from \
                before it is put into the API until its address is found by a lookup in the pod's set (with `world`: no longer found).",
        reading: format!(
            "{} s of it with each sort of policies. What every agent follows brings nothing of it: where no policy speaks of pods, no byte is received.",
            if effort.quick { 4 } else { 20 }
        ),
        head: &[
            "policies speak of",
            "events a second",
            "received, kB/s",
            "processor time, % of a core",
            "pod to kernel p50, ms",
            "slowest, ms",
            "own measure p99 ≤, ms",
            "resident, MiB",
            "most ever, MiB",
        ],
        rows: outcomes.iter().map(change).collect(),
    });
}
