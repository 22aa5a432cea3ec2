//! From traffic under an audited policy to one that is enforced, and denies nothing that was seen.

use std::process::Stdio;

use serde_json::Value;

use super::*;

const AUDIT: &str = r#"{"defaultAction": "deny", "mode": "audit", "allowedDestinations": [
    {"name": "good", "cidr": "192.0.2.0/24", "governance": {"reason": "the shop's own"}},
    {"name": "idle", "cidr": "10.99.0.0/16"}],
    "deniedDestinations": [{"name": "imds", "cidr": "169.254.169.254/32"}]}"#;

fn config_map(name: &str, policy: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  namespace: shop\n  name: {name}\n  labels: {{egress-controller: managed}}\ndata:\n  policy.json: |\n    {}\n",
        policy.replace('\n', " ")
    )
}

/// Runs a subcommand of the agent's binary and returns its exit code, standard output and standard error.
fn run(node: &Node, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(&node.binary)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the agent's binary starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("no signal ends it"), text(&output.stdout), text(&output.stderr))
}

/// Asks until what is recommended is as wanted, and returns the object.
#[track_caller]
fn wait_recommended(node: &Node, arguments: &[&str], wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + LIMIT;
    loop {
        let mut all = vec!["recommend", "-n", "shop", "-o", "json"];
        all.extend(arguments);
        let (code, out, error) = run(node, &all);
        if code == 0 {
            let value: Value = serde_json::from_str(&out).expect("it is JSON");
            if wanted(&value) {
                return value;
            }
        }
        assert!(Instant::now() < deadline, "{code}: {out}{error}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// The names of the allowed destinations of the first proposal.
fn names(value: &Value) -> Vec<&str> {
    let list = value["proposals"][0]["policy"]["allowedDestinations"].as_array();
    list.into_iter().flatten().filter_map(|entry| entry["name"].as_str()).collect()
}

#[test]
fn what_is_recommended_denies_nothing_that_was_seen() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    node.write("policy.yaml", &config_map("policy", AUDIT));
    node.write(
        "service.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {namespace: infra, name: redis}\nspec:\n  clusterIP: 203.0.113.9\n  clusterIPs: [203.0.113.9]\n  ports: [{port: 6379}]\n",
    );
    let agent = node.run(&[]);
    let runtime = agent.runtime.to_str().expect("the lab's paths are text");
    let (code, _, error) = run(&node, &["recommend", "-n", "shop", "--runtime-dir", runtime]);
    assert!(code == 2 && error.contains("audit mode"), "nothing was seen yet: {error}");
    for server in ["203.0.113.9:6379", "203.0.113.10:8080"] {
        node.out.serve_tcp(at(server));
    }
    // As the kernel sees it: allowed by an entry, audited, audited at a ClusterIP, audited by datagram, and forbidden.
    let reached = [GOOD, BAD, "203.0.113.9:6379", "203.0.113.10:8080"];
    for server in reached {
        assert_eq!(node.pod.connect(at(server)).outcome, Outcome::Ok, "{server} passes while it is audited");
    }
    let watch = node.watch(&["203.0.113.10:53"]);
    thread::sleep(Duration::from_millis(200));
    let imds = node.pod.connect(at("169.254.169.254:80")).outcome;
    assert_ne!(imds, Outcome::NotPermitted, "it leaves the pod while it is audited");
    let sent = node.pod.close(watch);
    assert!(sent.count(Outcome::Ok) > 0, "{sent:?}");
    let manifests = node.manifests.to_str().expect("the lab's paths are text");
    let from = ["--runtime-dir", runtime, "--manifests", manifests];
    let value = wait_recommended(&node, &from, |value| {
        names(value).len() == 4 && value["remarks"].to_string().contains("forbids it")
    });
    assert_eq!(
        names(&value),
        ["good", "redis.infra", "198.51.100.7-tcp-443", "203.0.113.10-tcp-8080"],
        "{value:#}"
    );
    let policy = &value["proposals"][0]["policy"];
    assert_eq!(value["proposals"][0]["workload"], "Pod/web", "{value:#}");
    assert_eq!(policy["podSelector"]["matchLabels"]["app"], "web", "{policy:#}");
    assert_eq!(
        policy["allowedDestinations"][0]["governance"]["reason"], "the shop's own",
        "what is kept stays as it is"
    );
    assert_eq!(policy["deniedDestinations"][0]["name"], "imds", "{policy:#}");
    assert_eq!(value["removable"][0]["destination"], "idle", "{value:#}");
    assert_eq!(value["removable"].as_array().map(Vec::len), Some(1), "{value:#}");
    let remarks = value["remarks"].to_string();
    assert!(remarks.contains("deniedDestinations entry forbids it"), "{remarks}");
    // The ConfigMap is refused for its blanks and nothing else.
    let (code, yaml, _) = run(&node, &[&["recommend", "-n", "shop"], &from[..]].concat());
    assert_eq!(code, 0, "{yaml}");
    let file = node.lab.folder.join("recommended.yaml");
    fs::write(&file, &yaml).expect("the lab's folder can be written");
    let (code, out, _) = run(&node, &["validate", "-o", "json", file.to_str().expect("text")]);
    assert_eq!(code, 1, "{out}");
    let findings: Value = serde_json::from_str(&out).expect("it is JSON");
    let text = findings.to_string();
    assert!(text.contains("governance"), "{text}");
    // What an export says is what the agent says.
    let (_, exported, _) = run(&node, &["recommend", "-n", "shop", "--export", "--runtime-dir", runtime]);
    let export = node.lab.folder.join("flows.json");
    fs::write(&export, &exported).expect("the lab's folder can be written");
    let again = wait_recommended(
        &node,
        &["--flows", export.to_str().expect("text"), "--manifests", manifests],
        |value| names(value).len() == 4 && value["remarks"].to_string().contains("forbids it"),
    );
    assert_eq!(again["proposals"], value["proposals"]);
    // Filled in and enforced in place of the audited one, it lets all of it pass and nothing else.
    let mut filled = policy.clone();
    for entry in filled["allowedDestinations"].as_array_mut().expect("a list") {
        entry["governance"] = serde_json::json!({"owner": "team", "reason": "seen", "expiry": "2099-01-01"});
    }
    node.write("policy.yaml", &config_map("policy", &filled.to_string()));
    node.wait("192.0.2.10:444", Outcome::Refused);
    node.wait("203.0.113.10:9", Outcome::NotPermitted);
    for server in reached {
        assert_eq!(node.pod.connect(at(server)).outcome, Outcome::Ok, "{server} was seen");
    }
    for server in ["198.51.100.7:444", "203.0.113.9:443", "203.0.113.77:443", "169.254.169.254:80"] {
        assert_eq!(node.pod.connect(at(server)).outcome, Outcome::NotPermitted, "{server} was not");
    }
}

/// Events that were printed are as good as what the agent remembers; and what was denied is covered on request.
#[test]
fn events_in_a_file_are_recommended_from() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    node.policy(&[destination("good", "192.0.2.0/24")]);
    let agent = node.run(&[]);
    assert_eq!(node.pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    let deadline = Instant::now() + LIMIT;
    while agent.lines().is_empty() {
        assert!(Instant::now() < deadline, "no event is printed");
        thread::sleep(Duration::from_millis(10));
    }
    let file = node.lab.folder.join("events.json");
    fs::write(&file, agent.lines().join("\n")).expect("the lab's folder can be written");
    let flows = ["--flows", file.to_str().expect("text")];
    let (code, _, error) = run(&node, &[&["recommend", "-n", "shop"], &flows[..]].concat());
    assert!(code == 2 && error.contains("--include-denied"), "{error}");
    let value = wait_recommended(&node, &[&flows[..], &["--include-denied"]].concat(), |_| true);
    assert_eq!(names(&value), ["198.51.100.7-tcp-443"], "{value:#}");
}

/// With --learn-allowed the agent knows which flows an allowed destination stands for.
#[test]
fn allowed_flows_are_learnt_on_request() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    node.policy(&[destination("wide", "192.0.0.0/8")]);
    let agent = node.run(&["--learn-allowed"]);
    let runtime = agent.runtime.to_str().expect("the lab's paths are text");
    assert_eq!(node.pod.connect(at(GOOD)).outcome, Outcome::Ok);
    let value = wait_recommended(&node, &["--runtime-dir", runtime], |_| true);
    assert_eq!(names(&value), ["192.0.2.10-tcp-443"], "narrower than what is there: {value:#}");
    assert!(agent.lines().is_empty(), "{:?}", agent.lines());
}

fn removable(value: &Value) -> Vec<&str> {
    let list = value["removable"].as_array().into_iter().flatten();
    list.filter_map(|entry| entry["destination"].as_str()).collect()
}

/// What a destination came to is neither lost with the pods that needed it, nor another's who has its slot or its name.
#[test]
fn what_was_used_is_told_from_what_was_not_over_changes() {
    let node = Node::new(Driver::Cgroupfs, Qos::Burstable);
    let policy = |good: &str| {
        let text = format!(
            r#"{{"defaultAction": "deny", "mode": "audit", "podSelector": {{"matchLabels": {{"app": "web"}}}},
            "allowedDestinations": [{{"name": "good", "cidr": "{good}"}}, {{"name": "idle", "cidr": "10.99.0.0/16"}}]}}"#
        );
        node.write("policy.yaml", &config_map("policy", &text));
    };
    policy("192.0.2.0/24");
    let other = r#"{"defaultAction": "deny", "mode": "audit", "podSelector": {"matchLabels": {"app": "other"}},
        "allowedDestinations": [{"name": "first", "cidr": "10.98.0.0/16"}, {"name": "second", "cidr": "10.97.0.0/16"},
        {"name": "third", "cidr": "10.96.0.0/16"}, {"name": "fourth", "cidr": "10.95.0.0/16"}]}"#;
    node.write("other.yaml", &config_map("other", other));
    let agent = node.run(&[]);
    let runtime = agent.runtime.to_str().expect("the lab's paths are text");
    let manifests = node.manifests.to_str().expect("the lab's paths are text");
    let from = ["--runtime-dir", runtime, "--manifests", manifests];
    for server in [GOOD, BAD] {
        assert_eq!(node.pod.connect(at(server)).outcome, Outcome::Ok);
    }
    let value = wait_recommended(&node, &from, |value| removable(value) == ["idle"]);
    assert_eq!(names(&value), ["good", "198.51.100.7-tcp-443"], "{value:#}");
    // The pod is nobody's, so no slot is needed; then another workload's, and the second policy's destinations have the slots.
    let pod =
        |app: &str| node.write("pod.yaml", &pod_manifest(UID).replace("app: web", &format!("app: {app}")));
    pod("nobody");
    wait_recommended(&node, &from, |value| removable(value).is_empty());
    pod("other");
    let unused = ["first", "fourth", "second", "third"];
    wait_recommended(&node, &from, |value| removable(value) == unused);
    // And back: what was used is still that, though its counter has begun anew.
    pod("web");
    let value = wait_recommended(&node, &from, |value| removable(value) == ["idle"]);
    assert_eq!(names(&value)[0], "good", "{value:#}");
    // Another place under the same name was never used, until it is.
    policy("203.0.113.0/24");
    wait_recommended(&node, &from, |value| removable(value) == ["good", "idle"]);
    node.out.serve_tcp(at("203.0.113.9:443"));
    assert_eq!(node.pod.connect(at("203.0.113.9:443")).outcome, Outcome::Ok);
    wait_recommended(&node, &from, |value| removable(value) == ["idle"]);
}
