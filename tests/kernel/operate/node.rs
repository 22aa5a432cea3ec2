//! The doctor on a node.

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use egress_agent::kernel::loader::{Capacities, Datapath, Options};
use egress_tests::lab::{agent, agent::Agent, at};

use crate::scene::{LIMIT, Node, Said, ask, good};

const POLICY: &str =
    r#"{"defaultAction": "deny", "allowedDestinations": [{"name": "good", "cidr": "192.0.2.0/24"}]}"#;

/// Asks the doctor about the node. The cgroups of the machine that tests run on are no matter of theirs.
fn doctor(node: &Node, agent: &Agent) -> Said {
    asked(node, &agent.runtime, &agent.address.to_string())
}

fn asked(node: &Node, runtime: &Path, listen: &str) -> Said {
    let mut command = Command::new(&node.binary);
    command.args(["doctor", "-o", "json", "--listen", listen, "--pin-dir"]).arg(&node.pins);
    command.arg("--runtime-dir").arg(runtime).arg("--kubepods-cgroup").arg(&node.lab.kubepods().path);
    command.arg("--snapshot").arg(node.lab.folder.join("snapshot"));
    ask(&mut command)
}

fn begins(said: &Said, wanted: &[&str]) {
    let findings = said.findings(&["cgroup"]);
    let fits = findings.len() == wanted.len()
        && findings.iter().zip(wanted).all(|(finding, wanted)| finding.contains(wanted));
    assert!(fits, "wanted {wanted:#?}, found {findings:#?}\n{}", said.errors);
}

#[test]
fn the_doctor_looks_at_a_node() {
    let node = Node::new(&["10.244.0.5"], &["192.0.2.10", "198.51.100.7"], POLICY);
    let agent = node.run(&[]);
    let said = doctor(&node, &agent);
    begins(&said, &[]);
    assert_eq!(said.unchecked(), [""; 0], "{said:?}");
    let hybrid = said.findings(&[]).iter().any(|finding| finding.contains("hybrid"));
    assert_eq!(said.code, Some(i32::from(hybrid)), "{said:?}");

    // A pod that asks a resolver nobody named.
    for _ in 0..12 {
        _ = node.pod.udp_probe(at("198.51.100.7:53"));
        _ = node.pod.connect(at("198.51.100.7:53"));
    }
    let deadline = Instant::now() + LIMIT;
    let said = loop {
        let said = doctor(&node, &agent);
        if !said.findings(&["cgroup"]).is_empty() || Instant::now() > deadline {
            break said;
        }
        thread::sleep(Duration::from_millis(100));
    };
    begins(&said, &["dns critical: most of what is denied asks for names"]);
    assert_eq!(said.code, Some(1));

    // Somebody else's programs on the same cgroup.
    let object = std::env::var_os("EGRESS_BPF_OBJECT").expect("the object is named");
    let object = fs::read(object).expect("the object can be read");
    let capacities = Capacities { endpoints: 16, exact: 1024, prefixes: 1024, ..Capacities::default() };
    let options = Options { level: node.lab.kubepods().level, pins: None, capacities, keep_verdicts: true };
    let mut other = Datapath::load(&object, &options).expect("it loads");
    other.attach(node.lab.kubepods()).expect("several may be attached");
    let said = doctor(&node, &agent);
    let notes = said.findings(&["cgroup", "dns"]);
    assert_eq!(notes.len(), 7, "{notes:#?}");
    assert!(notes.iter().all(|note| note.starts_with("neighbours note: ")), "{notes:#?}");
    assert!(notes.iter().any(|note| note.contains("connect4 (program ")), "{notes:#?}");
    drop(other);

    // A policy that is broken, and a pod nobody knows.
    node.write("policy.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {namespace: shop, name: policy, labels: {egress-controller: managed}}\ndata: {policy.json: '{\"defaultAction\": \"perhaps\"}'}\n");
    good(node.lab.pod_cgroup("11111111-2222-3333-4444-555555555555", egress_tests::lab::Qos::BestEffort));
    let deadline = Instant::now() + LIMIT;
    let wanted = ["pods critical: 1 pods", "policies warning: policy shop/policy"];
    loop {
        let findings = doctor(&node, &agent).findings(&["cgroup", "dns"]);
        if wanted.iter().all(|wanted| findings.iter().any(|finding| finding.starts_with(wanted))) {
            break;
        }
        assert!(Instant::now() < deadline, "{findings:#?}");
        thread::sleep(Duration::from_millis(100));
    }

    // The agent is killed: its socket and its pins stay.
    let (runtime, listen) = (agent.runtime.clone(), agent.address.to_string());
    good(agent.kill(&node.lab.keeper));
    let said = asked(&node, &runtime, &listen);
    begins(&said, &["which one has left behind", "pins without an agent"]);

    // One link leads nowhere, and another is gone.
    let links = fs::read_dir(&node.pins).expect("it is pinned").next().expect("a layout").expect("readable");
    let links = links.path().join("links");
    fs::remove_file(links.join("connect6")).expect("it is pinned");
    fs::create_dir(node.pins.join("v0")).expect("a bpffs has folders");
    let said = asked(&node, &runtime, &listen);
    begins(
        &said,
        &[
            "which one has left behind",
            "no link is pinned for connect6",
            "pins of another version are left in",
            "pins without an agent",
        ],
    );
    good(agent::unload(&node.binary, &node.pins));
    begins(&asked(&node, &runtime, &listen), &["agent critical: no agent answers"]);
}

/// Whoever may do nothing is told so, and not that all is well.
#[test]
fn the_doctor_says_what_it_could_not_ask() {
    let node = Node::new(&["10.244.0.5"], &[], POLICY);
    let agent = node.run(&[]);
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set=-all", "--inh-caps=-all", "--reuid=65534", "--clear-groups"])
        .arg(&node.binary);
    command.args(["doctor", "-o", "json", "--pin-dir"]).arg(&node.pins);
    command.arg("--runtime-dir").arg(&agent.runtime).arg("--kubepods-cgroup").arg(&node.lab.kubepods().path);
    let said = ask(&mut command);
    assert_eq!(said.code, Some(1), "{said:?}");
    let findings = said.findings(&["cgroup"]);
    assert!(findings.iter().any(|finding| finding.contains("lacks the capabilities BPF")), "{findings:#?}");
    let unchecked = said.unchecked();
    assert!(unchecked.iter().any(|what| what == "whether the kernel takes the programs"), "{said:?}");
}
