//! Pods that come and go by the hundred while policies change at random: after each quiet moment the kernel judges as the
//! reference does, and at the end nothing is left.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use egress_tests::lab::{
    Host, Qos,
    agent::Metrics,
    api::{Fault, Rule, Server, Verb, When},
    at,
    wire::Outcome,
};
use serde_json::{Value, json};

use crate::scene::{LIMIT, Running, Scene, allow, cidr, config_map, good, pod_object, quantile, until};

/// How long it goes on, in seconds.
const SECONDS: &str = "EGRESS_CHURN_SECONDS";
/// Pods and policies: as many as a large node has, and fewer.
const LARGE: (usize, usize) = (250, 200);
const SMALL: (usize, usize) = (60, 50);
const NAMESPACES: usize = 4;
/// Addresses that are somebody's: pods take theirs from here, Services and policies name them.
const ADDRESSES: usize = 48;
const APPS: usize = 6;
/// How many flows are judged after each quiet moment.
const SAMPLES: usize = 60;

/// Random numbers (splitmix64), the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^= number >> 31;
        usize::try_from(number % end as u64).expect("it is below a usize")
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }
}

fn address(number: usize) -> String {
    format!("10.244.7.{}", number + 1)
}

/// A pod of this node that is there, and its cgroup.
struct Here {
    namespace: String,
    name: String,
    address: String,
    cgroup: PathBuf,
    container: PathBuf,
}

/// Which pod sends, where to, the protocol and the port.
type Flow = (usize, String, &'static str, i32);

/// Everything that changes.
struct World<'a> {
    scene: &'a Scene<'a>,
    random: Random,
    pods: Vec<Option<Here>>,
    policies: Vec<bool>,
    /// What moves from pod to pod and sends.
    actor: &'a Host,
    made: usize,
}

/// A scene whose host outside has every address that may be somebody's.
fn scene(server: &Server) -> Scene<'_> {
    let addresses: Vec<String> = (0..ADDRESSES).map(address).collect();
    let mut outside: Vec<&str> = vec!["192.0.2.10", "198.51.100.7"];
    outside.extend(addresses.iter().map(String::as_str));
    Scene::with_outside(server, "t", &outside)
}

impl<'a> World<'a> {
    /// Makes namespaces and a Service, and places for so many pods and policies.
    fn new(scene: &'a Scene<'a>, actor: &'a Host, (pods, policies): (usize, usize)) -> Self {
        let world = Self {
            scene,
            random: Random(1),
            pods: (0..pods).map(|_| None).collect(),
            policies: vec![false; policies],
            actor,
            made: 0,
        };
        for number in 0..NAMESPACES {
            good(scene.server.namespace(&world.namespace(number), &[]));
        }
        world.load(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": world.namespace(0), "name": "service" },
            "spec": { "clusterIP": address(40), "clusterIPs": [address(40)],
                      "ports": [{ "name": "main", "port": 443, "protocol": "TCP" }] },
        }));
        world.load(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "namespace": world.namespace(0), "name": "service-1", "labels": { "kubernetes.io/service-name": "service" } },
            "addressType": "IPv4", "ports": [{ "name": "main", "port": 443, "protocol": "TCP" }],
            "endpoints": [{ "addresses": [address(3), address(5)], "conditions": { "ready": true } }],
        }));
        world
    }

    /// Fills every place.
    fn fill(&mut self) {
        (0..self.policies.len()).for_each(|place| self.policy_changes(place));
        (0..self.pods.len()).for_each(|place| self.pod_comes(place));
    }

    /// Takes everything away.
    fn empty(&mut self) {
        (0..self.pods.len()).for_each(|place| self.pod_goes(place));
        for place in (0..self.policies.len()).filter(|place| self.policies[*place]) {
            let namespace = self.namespace(place % NAMESPACES);
            self.scene.delete(&config_map(&namespace, &format!("policy-{place}"), ""));
        }
    }

    fn namespace(&self, number: usize) -> String {
        format!("{}-{number}", self.scene.namespace)
    }

    fn load(&self, object: Value) {
        self.scene.double().load([object]).expect("the double takes it");
    }

    fn pod_comes(&mut self, place: usize) {
        self.made += 1;
        let (namespace, name) = (self.namespace(place % NAMESPACES), format!("pod-{place}"));
        let labels = json!({ "app": format!("app-{}", self.random.below(APPS)) });
        let address = address(self.random.below(ADDRESSES));
        let uid = format!("cccccccc-0000-0000-0000-{:012}", self.made);
        let mut object = pod_object(&namespace, &name, &self.scene.node, &labels, &address);
        object["metadata"]["uid"] = uid.as_str().into();
        // Kubelet makes the cgroup when it has heard of the pod; here it may also be there first.
        let first = self.random.one_in(2);
        if first {
            self.load(object.clone());
        }
        let (cgroup, container) = good(self.scene.lab.pod_cgroup(&uid, Qos::Burstable));
        if !first {
            self.load(object);
        }
        self.pods[place] = Some(Here { namespace, name, address, cgroup, container });
    }

    fn pod_goes(&mut self, place: usize) {
        let Some(pod) = self.pods[place].take() else { return };
        let object = pod_object(&pod.namespace, &pod.name, "", &json!({}), "");
        let cgroup_first = self.random.one_in(2);
        if !cgroup_first {
            self.scene.delete(&object);
        }
        for folder in [&pod.container, &pod.cgroup] {
            until("the cgroup can be removed", || fs::remove_dir(folder).is_ok());
        }
        if cgroup_first {
            self.scene.delete(&object);
        }
    }

    fn relabel(&mut self, place: usize) {
        let Some(pod) = &self.pods[place] else { return };
        let object = pod_object(&pod.namespace, &pod.name, "", &json!({}), "");
        let label = format!("app-{}", self.random.below(APPS));
        good(self.scene.server.merge(&object, &json!({ "metadata": { "labels": { "app": label } } })));
    }

    fn destination(&mut self, name: &str) -> Value {
        let app = json!({ "matchLabels": { "app": format!("app-{}", self.random.below(APPS)) } });
        let mut destination = match self.random.below(6) {
            0 => json!({ "pods": { "podSelector": app } }),
            1 => json!({ "pods": { "podSelector": app, "namespaceSelector": {} } }),
            2 => json!({ "service": { "name": "service", "namespace": self.namespace(0) } }),
            3 => cidr(name, &format!("10.244.7.{}/29", self.random.below(6) * 8)),
            _ => cidr(name, &format!("{}/32", address(self.random.below(ADDRESSES)))),
        };
        destination["name"] = name.into();
        // At a Service these would have to be its own.
        if destination.get("service").is_none() && self.random.one_in(2) {
            destination["ports"] = [json!([443]), json!(["53/UDP"]), json!(["400-500/TCP", "UDP"])]
                [self.random.below(3)]
            .clone();
        }
        destination
    }

    fn policy_changes(&mut self, place: usize) {
        let namespace = self.namespace(place % NAMESPACES);
        let name = format!("policy-{place}");
        if self.policies[place] && self.random.one_in(3) {
            self.scene.delete(&config_map(&namespace, &name, ""));
            self.policies[place] = false;
            return;
        }
        let first = self.destination("first");
        let second = self.destination("second");
        let mut policy = allow(&[first, second]);
        if self.random.one_in(3) {
            policy["deniedDestinations"] = json!([self.destination("denied")]);
        }
        if self.random.one_in(3) {
            policy["defaultAction"] = "allow".into();
        }
        if self.random.one_in(6) {
            policy["mode"] = "audit".into();
        }
        let app = json!({ "matchLabels": { "app": format!("app-{}", self.random.below(APPS)) } });
        policy["podSelector"] = app;
        // What was valid once stays in force, which the reference could not know.
        let broken = self.random.one_in(20) && !self.policies[place];
        let text = if broken { "{".to_owned() } else { policy.to_string() };
        self.load(config_map(&namespace, &name, &text));
        self.policies[place] = true;
    }

    fn step(&mut self) {
        match self.random.below(10) {
            0..4 => {
                let place = self.random.below(self.policies.len());
                self.policy_changes(place);
            }
            4..6 => {
                let place = self.random.below(self.pods.len());
                self.relabel(place);
            }
            _ => {
                let place = self.random.below(self.pods.len());
                if self.pods[place].is_some() { self.pod_goes(place) } else { self.pod_comes(place) }
            }
        }
    }

    /// Returns flows of pods chosen at random.
    fn flows(&mut self) -> Vec<Flow> {
        let there: Vec<usize> = (0..self.pods.len()).filter(|place| self.pods[*place].is_some()).collect();
        let mut flows = Vec::new();
        for _ in 0..SAMPLES.min(there.len()) {
            let place = there[self.random.below(there.len())];
            let to = address(self.random.below(ADDRESSES));
            // What a pod sends to itself stays inside it, and here one process sends for all.
            if self.pods[place].as_ref().is_some_and(|pod| pod.address == to) {
                continue;
            }
            let (protocol, port) =
                [("TCP", 443), ("UDP", 53), ("TCP", 80), ("UDP", 443)][self.random.below(4)];
            flows.push((place, to, protocol, port));
        }
        flows
    }

    /// Sends from pods chosen at random, and compares with what the reference says of the server's objects. Returns how many flows are
    /// denied.
    fn compare(&mut self, agent: &Running) -> usize {
        let flows = self.flows();
        let (denied, wrong) = self.judge(&flows);
        assert!(wrong.is_empty(), "{wrong:#?}; {:?}", agent.get("/readyz"));
        denied
    }

    /// The same, but waits for an agent that may not have heard everything yet.
    fn comes_to(&mut self, agent: &Running) -> usize {
        let flows = self.flows();
        let deadline = Instant::now() + LIMIT;
        loop {
            let (denied, wrong) = self.judge(&flows);
            if wrong.is_empty() {
                return denied;
            }
            assert!(Instant::now() < deadline, "{wrong:#?}; {:?}", agent.get("/readyz"));
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Returns how many of these flows the reference denies, and those that go otherwise.
    fn judge(&self, flows: &[Flow]) -> (usize, Vec<String>) {
        let expected = self.reference(flows);
        assert_eq!(expected.len(), flows.len());
        let (mut denied, mut wrong) = (0, Vec::new());
        for ((place, to, protocol, port), answer) in flows.iter().zip(&expected) {
            let pod = self.pods[*place].as_ref().expect("it is there");
            let wanted = answer["verdict"].as_str().expect("an answer has a verdict");
            let seen = self.send(pod, at(&format!("{to}:{port}")), protocol);
            let passes = match seen {
                Outcome::NotPermitted => Some(false),
                Outcome::Ok | Outcome::Refused => Some(true),
                _ => None,
            };
            if passes != Some(wanted != "deny") {
                let Here { namespace, name, .. } = pod;
                wrong.push(format!(
                    "{namespace}/{name} to {to}:{port}/{protocol}: {seen}; the reference says {answer}"
                ));
            }
            denied += usize::from(wanted == "deny");
        }
        (denied, wrong)
    }

    /// Sends from this pod's cgroup.
    fn send(&self, pod: &Here, to: std::net::SocketAddr, protocol: &str) -> Outcome {
        fs::write(pod.container.join("cgroup.procs"), self.actor.pid.to_string())
            .expect("a process can be moved");
        let seen = if protocol == "TCP" {
            let seen = self.actor.connect(to);
            if seen.outcome == Outcome::Ok {
                assert_eq!(self.actor.close(seen.id).outcome, Outcome::Ok);
            }
            seen.outcome
        } else {
            let socket = self.actor.udp(None);
            let seen = self.actor.send(socket, Some(to));
            assert_eq!(self.actor.close(socket).outcome, Outcome::Ok);
            seen
        };
        let away =
            self.scene.lab.kubepods().path.parent().expect("it is below the lab's").join("cgroup.procs");
        fs::write(away, self.actor.pid.to_string()).expect("a process can be moved");
        seen
    }

    /// What the reference says of flows over what the server has.
    fn reference(&self, flows: &[Flow]) -> Vec<Value> {
        let manifests = self.scene.lab.folder.join("manifests.yaml");
        let mut text = String::new();
        for (version, kind, path) in [
            ("v1", "Namespace", "/api/v1/namespaces"),
            ("v1", "Pod", "/api/v1/pods"),
            ("v1", "Service", "/api/v1/services"),
            ("discovery.k8s.io/v1", "EndpointSlice", "/apis/discovery.k8s.io/v1/endpointslices"),
            ("v1", "ConfigMap", "/api/v1/configmaps"),
        ] {
            let list = good(self.scene.server.request("GET", path, "application/json", &Value::Null));
            for item in list["items"].as_array().expect("a list has items") {
                let mut item = item.clone();
                item["apiVersion"] = version.into();
                item["kind"] = kind.into();
                writeln!(text, "---\n{item}").expect("a string takes everything");
            }
        }
        fs::write(&manifests, text).expect("the lab's folder can be written");
        let questions = self.scene.lab.folder.join("flows.jsonl");
        let mut text = String::new();
        for (place, to, protocol, port) in flows {
            let pod = self.pods[*place].as_ref().expect("it is there");
            let from = format!("{}/{}", pod.namespace, pod.name);
            let flow = json!({ "from": from, "to": { "ip": to }, "protocol": protocol, "port": port });
            writeln!(text, "{flow}").expect("a string takes everything");
        }
        fs::write(&questions, text).expect("the lab's folder can be written");
        let mut command = Command::new(&self.scene.binary);
        command.args(["explain", "--engine", "reference", "-o", "json", "--invalid-policy", "ignore"]);
        command.arg("--manifests").arg(&manifests).arg("--flows").arg(&questions);
        let output = command.output().expect("explain starts");
        let lines = String::from_utf8(output.stdout).expect("answers are text");
        let answers: Vec<Value> = lines
            .lines()
            .map(|line| serde_json::from_str(line).expect("an answer is a JSON object"))
            .collect();
        assert!(!answers.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        answers
    }
}

/// Waits until the agent has taken everything: what it counts stands still, and it is ready.
fn quiet(agent: &mut Running) {
    let heard = |metrics: &Metrics| {
        (
            metrics.sum("egress_api_events_total", &[]),
            metrics.sum("egress_policy_apply_seconds_count", &[]),
            metrics.sum("egress_pods", &[("state", "unknown")]),
        )
    };
    let mut last = heard(&agent.scrape());
    until("the agent is at rest", || {
        thread::sleep(Duration::from_millis(250));
        let now = heard(&agent.scrape());
        std::mem::replace(&mut last, now) == now
    });
    agent.ready();
}

#[test]
fn pods_and_policies_come_and_go() {
    let seconds = env::var(SECONDS).map_or(40, |text| text.parse().expect("it is a number of seconds"));
    let server = Server::double().expect("the double starts");
    let scene = scene(&server);
    let actor = good(scene.lab.outside(&["10.244.9.9"]));
    let mut world = World::new(&scene, &actor, LARGE);
    let arguments = ["--invalid-policy", "ignore"];
    let mut agent = scene.run(&arguments);
    // A first round of everything, so that what stays reserved is reserved.
    world.fill();
    quiet(&mut agent);
    world.compare(&agent);
    let full = agent.resident();

    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut rounds, mut steps, mut denied) = (0, 0, 0);
    while Instant::now() < end {
        for _ in 0..150 {
            world.step();
            steps += 1;
        }
        quiet(&mut agent);
        denied += world.compare(&agent);
        rounds += 1;
    }
    let metrics = agent.scrape();
    println!(
        "{rounds} rounds, {steps} changes, {} pods made, {denied} of {} flows denied; change to kernel p50 {} s, p99 {} s; resident {full} kB full, then {} kB",
        world.made,
        rounds * SAMPLES,
        quantile(&metrics, 0.5),
        quantile(&metrics, 0.99),
        agent.resident(),
    );
    assert!(denied > 0 && denied < rounds * SAMPLES, "both verdicts were seen");

    world.empty();
    quiet(&mut agent);
    until("nothing of any pod is left", || {
        let metrics = agent.scrape();
        let pods: f64 = metrics.sum("egress_pods", &[]);
        pods == 0.0 && metrics.sum("egress_map_entries", &[]) == 0.0
    });
    let metrics = agent.scrape();
    for (family, samples) in &metrics.0 {
        let left =
            samples.iter().filter(|(labels, _)| labels.contains_key("pod") || labels.contains_key("policy"));
        let left: Vec<_> =
            left.filter(|(labels, _)| labels.get("pod").is_none_or(|pod| !pod.is_empty())).collect();
        assert!(left.is_empty(), "{family} still has {left:?}");
    }
    let resident = agent.resident();
    assert!(resident <= full + full / 4, "{resident} kB at the end, {full} kB when it was full");
    drop(agent);
}

/// The same, with fewer of both, while the server fails in one way after the other.
#[test]
fn pods_and_policies_come_and_go_while_the_server_fails() {
    let server = Server::double().expect("the double starts");
    let scene = scene(&server);
    let actor = good(scene.lab.outside(&["10.244.9.9"]));
    let mut world = World::new(&scene, &actor, SMALL);
    let mut agent = scene.run(&["--invalid-policy", "ignore"]);
    world.fill();
    quiet(&mut agent);
    world.compare(&agent);
    let faults = scene.double().faults();
    let (mut denied, mut judged) = (0, 0);
    for (what, fault, when) in [
        ("dropped", Fault::Cut, When::Chance(0.05)),
        ("too old", Fault::GoneLater, When::Times(3)),
        ("twice", Fault::Duplicate, When::Always),
        ("429", Fault::Refuse { code: 429, retry_after: Some(1) }, When::Times(3)),
        ("500", Fault::Refuse { code: 500, retry_after: None }, When::Times(3)),
    ] {
        let began = Instant::now();
        let rules =
            [Verb::Watch, Verb::List].map(|verb| faults.add(Rule::new(fault.clone(), when).verb(verb)));
        if matches!(fault, Fault::Refuse { .. }) {
            // These strike only who asks anew.
            faults.add(Rule::new(Fault::Cut, When::Times(3)).verb(Verb::Watch));
        }
        for _ in 0..100 {
            world.step();
        }
        let strikes = || rules.iter().map(|rule| faults.strikes(*rule)).sum::<u64>();
        until(&format!("{what} has struck"), || strikes() > 0);
        faults.clear();
        denied += world.comes_to(&agent);
        judged += SAMPLES;
        println!("{what}: {} strikes, {:?} until the kernel was right", strikes(), began.elapsed());
    }
    assert!(denied > 0 && denied < judged, "both verdicts were seen");
    world.empty();
    until("nothing of any pod is left", || {
        let metrics = agent.scrape();
        metrics.sum("egress_pods", &[]) == 0.0 && metrics.sum("egress_map_entries", &[]) == 0.0
    });
    agent.ready();
    drop(agent);
}
