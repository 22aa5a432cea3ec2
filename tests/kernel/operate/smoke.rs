//! The smoke test of a pod, run in the pod's cgroup and network namespace under the real agent.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, UdpSocket},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    path::Path,
    process::Command,
    sync::mpsc,
    thread,
};

use egress_agent::{k8s::summary, kernel::cgroup};
use egress_tests::lab::{
    agent::{self, Agent},
    api::{Server, real},
    at,
};
use serde_json::{Value, json};

use crate::scene::{Node, Said, ask, good};

const POLICY: &str = r#"{"defaultAction": "deny", "allowedDestinations": [
    {"name": "good", "cidrs": ["192.0.2.0/24", "2001:db8::/64"]}, {"name": "agent", "cidr": "10.0.0.1/32"}]}"#;
const OUTSIDE: [&str; 7] = [
    "192.0.2.10",
    "2001:db8::10",
    "198.51.100.7",
    "2001:db8:bad::7",
    "169.254.169.254",
    "10.96.0.10",
    "fd00:96::a",
];

fn scene(more: &[&str]) -> (Node, Agent) {
    let node = Node::new(&["10.244.0.5", "fd00:10:244::5"], &OUTSIDE, POLICY.replace('\n', "").as_str());
    for server in [
        "192.0.2.10:443",
        "[2001:db8::10]:443",
        "198.51.100.7:443",
        "[2001:db8:bad::7]:443",
        "169.254.169.254:80",
    ] {
        node.out.serve_tcp(at(server));
    }
    resolve(&node);
    let agent = node.run(&[&["--cluster-dns-addresses", "10.96.0.10,fd00:96::a"], more].concat());
    (node, agent)
}

/// Answers questions for names outside, over UDP and TCP. The threads end with the process.
fn resolve(node: &Node) {
    let namespace = format!("/proc/{}/ns/net", node.out.pid);
    for address in ["10.96.0.10:53", "[fd00:96::a]:53"] {
        let namespace = namespace.clone();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let namespace = File::open(namespace).expect("the host is there");
            // SAFETY: a system call that takes numbers, about this thread alone.
            let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(entered, 0, "{}", std::io::Error::last_os_error());
            let (udp, tcp) = (UdpSocket::bind(at(address)), TcpListener::bind(at(address)));
            let (udp, tcp) = (udp.expect("it is its address"), tcp.expect("it is its address"));
            tell.send(()).expect("the test waits");
            thread::spawn(move || {
                let mut buffer = [0; 512];
                while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                    buffer[2] |= 0x80;
                    udp.send_to(&buffer[..length], from).expect("who asked is there");
                }
            });
            for stream in tcp.incoming() {
                let mut stream = stream.expect("it can be accepted");
                let mut message = [0; 19];
                stream.read_exact(&mut message).expect("a question comes");
                message[4] |= 0x80;
                stream.write_all(&message).expect("who asked is there");
            }
        });
        told.recv().expect("it listens");
    }
}

/// Runs the smoke test in the pod.
fn smoke(node: &Node, arguments: &[&str]) -> Said {
    let own = fs::read_to_string(format!("/proc/{}/cgroup", node.pod.host.pid)).expect("the pod is there");
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("it has a cgroup v2");
    let procs = good(cgroup::hierarchy().map_err(Into::into)).join(own).join("cgroup.procs");
    let procs = File::options().write(true).open(procs).expect("the cgroup can be joined");
    let namespace = File::open(format!("/proc/{}/ns/net", node.pod.host.pid)).expect("the pod is there");
    let mut command = Command::new(&node.binary);
    command.args(["smoke", "-o", "json", "--timeout", "1", "--pod-namespace", "shop", "--pod-name", "web"]);
    command.args(arguments);
    let (procs_fd, namespace_fd) = (procs.as_raw_fd(), namespace.as_raw_fd());
    let enter = move || {
        // SAFETY: system calls that take numbers and one octet that is there.
        let well = unsafe {
            libc::setns(namespace_fd, libc::CLONE_NEWNET) == 0
                && libc::write(procs_fd, c"0".as_ptr().cast(), 1) == 1
        };
        if well { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: it makes two system calls and allocates nothing.
    unsafe { command.pre_exec(enter) };
    let said = ask(&mut command);
    drop((procs, namespace));
    said
}

/// Returns what was seen, and what that proves, of each destination.
fn outcomes(said: &Said) -> BTreeMap<String, String> {
    let checks = said.json["checks"].as_array().unwrap_or_else(|| panic!("{said:?}"));
    let text = |check: &Value, field: &str| check[field].as_str().expect("it is text").to_owned();
    checks
        .iter()
        .map(|check| (text(check, "target"), format!("{} {}", text(check, "seen"), text(check, "outcome"))))
        .collect()
}

#[track_caller]
fn are(said: &Said, wanted: &[(&str, &str)]) {
    let wanted: BTreeMap<String, String> =
        wanted.iter().map(|(target, outcome)| ((*target).to_owned(), (*outcome).to_owned())).collect();
    assert_eq!(outcomes(said), wanted, "{}", said.errors);
}

#[test]
fn the_smoke_test_proves_what_holds() {
    let (node, agent) = scene(&[]);
    let socket = agent.runtime.join("agent.sock");
    let evidence = node.lab.folder.join("evidence");
    let expect = node.lab.folder.join("expect.json");
    let text = r#"{"allow": ["192.0.2.10:443", "[2001:db8::10]:443", "192.0.2.10:81", "dns://10.96.0.10", "dns+tcp://10.96.0.10",
        "dns://[fd00:96::a]", "dns+tcp://[fd00:96::a]", "localhost:1"],
        "deny": ["198.51.100.7:443", "[2001:db8:bad::7]:443", "169.254.169.254:80", "udp://198.51.100.7:53", "dns+tcp://198.51.100.7"]}"#;
    fs::write(&expect, text).expect("the lab's folder can be written");
    let path = |path: &std::path::Path| path.to_str().expect("the lab's paths are text").to_owned();
    let (expect, socket, folder) = (path(&expect), path(&socket), path(&evidence));
    let with_agent = ["--expect", &expect, "--agent-socket", &socket, "--evidence", &folder];
    let said = smoke(&node, &[&with_agent[..], &["--policy-revision", "shop/policy=r7"]].concat());
    let mut wanted = vec![
        ("tcp://192.0.2.10:443", "connected proven"),
        ("tcp://[2001:db8::10]:443", "connected proven"),
        ("tcp://192.0.2.10:81", "refused proven"),
        ("dns://10.96.0.10:53", "answered proven"),
        ("dns+tcp://10.96.0.10:53", "answered proven"),
        ("dns://[fd00:96::a]:53", "answered proven"),
        ("dns+tcp://[fd00:96::a]:53", "answered proven"),
        ("tcp://localhost:1", "refused proven"),
        ("tcp://198.51.100.7:443", "not-permitted proven"),
        ("tcp://[2001:db8:bad::7]:443", "not-permitted proven"),
        ("tcp://169.254.169.254:80", "not-permitted proven"),
        ("udp://198.51.100.7:53", "not-permitted proven"),
        ("dns+tcp://198.51.100.7:53", "not-permitted proven"),
    ];
    are(&said, &wanted);
    assert_eq!(said.code, Some(0), "{said:?}");
    for check in said.json["checks"].as_array().expect("there are checks") {
        let denied = check["denied"].as_u64().expect("the agent counts");
        assert_eq!(denied > 0, check["expect"] == "deny", "{check}");
    }
    let told = &said.json["agent"];
    assert_eq!((&told["holds"], &told["policies"][0]), (&"governed".into(), &"shop/policy".into()), "{told}");
    assert_eq!(said.json["policies"]["shop/policy"], "r7");
    let (before, after) = (told["deniedBefore"].as_u64(), told["deniedAfter"].as_u64());
    assert!(before.is_some() && after > before, "{told}");
    let page = fs::read_to_string(evidence.join("smoke.md")).expect("the page is written");
    assert!(page.contains("**PASSED: 1") && page.contains("shop/policy"), "{page}");
    let kept: Value = serde_json::from_slice(&fs::read(evidence.join("smoke.json")).expect("it is written"))
        .expect("it is JSON");
    assert_eq!(kept, said.json);

    // The opposite is disproven, and silence proves nothing.
    let said = smoke(
        &node,
        &[
            "--deny",
            "192.0.2.10:443",
            "--deny",
            "192.0.2.10:81",
            "--deny",
            "udp://192.0.2.10:9",
            "--allow",
            "198.51.100.7:443",
            "--deny",
            "192.0.2.99:443",
        ],
    );
    wanted = vec![
        ("tcp://192.0.2.10:443", "connected disproven"),
        ("tcp://192.0.2.10:81", "refused disproven"),
        ("udp://192.0.2.10:9", "refused disproven"),
        ("tcp://198.51.100.7:443", "not-permitted disproven"),
    ];
    let mut seen = outcomes(&said);
    let silence = seen.remove("tcp://192.0.2.99:443").expect("it was asked");
    assert!(["timeout unproven", "unreachable unproven"].contains(&silence.as_str()), "{silence}");
    let wanted: BTreeMap<String, String> =
        wanted.iter().map(|(target, outcome)| ((*target).to_owned(), (*outcome).to_owned())).collect();
    assert_eq!((seen, said.code), (wanted, Some(1)), "{}", said.errors);

    let said = smoke(&node, &["--deny", "198.51.100.7:443", "--deny", "198.51.100.7:80", "--at-most", "1"]);
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.errors.contains("more than --at-most 1"), "{said:?}");
}

/// Without the hooks that refuse calls a denial is silence, which the agent's count tells from any other.
#[test]
fn silence_is_proven_by_the_agents_count_alone() {
    let (node, agent) = scene(&["--connect-hooks", "off"]);
    let socket = agent.runtime.join("agent.sock");
    let socket = socket.to_str().expect("the lab's paths are text");
    let denied = ["--deny", "198.51.100.7:443", "--deny", "[2001:db8:bad::7]:443"];
    let said = smoke(&node, &denied);
    are(
        &said,
        &[
            ("tcp://198.51.100.7:443", "timeout unproven"),
            ("tcp://[2001:db8:bad::7]:443", "timeout unproven"),
        ],
    );
    assert_eq!(said.code, Some(1));
    let said = smoke(&node, &[&denied[..], &["--agent-socket", socket]].concat());
    are(
        &said,
        &[("tcp://198.51.100.7:443", "timeout proven"), ("tcp://[2001:db8:bad::7]:443", "timeout proven")],
    );
    assert_eq!(said.code, Some(0));
}

/// Answers every question with this text. The thread ends with the process.
fn serve(text: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let address = listener.local_addr().expect("it has an address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("it can be accepted");
            let mut question = [0; 1024];
            // Who only looks whether it can be reached asks nothing.
            if stream.read(&mut question).is_ok_and(|length| length > 0) {
                write!(stream, "HTTP/1.0 200 OK\r\n\r\n{text}").expect("who asked is there");
            }
        }
    });
    address
}

/// Runs the smoke test where this one runs.
fn smoke_here(arguments: &[&str], kubeconfig: Option<&Path>) -> Said {
    let mut command = Command::new(good(agent::binary()));
    command.args(["smoke", "-o", "json", "--timeout", "1", "--pod-name", "web"]).args(arguments);
    command.env_remove("KUBECONFIG").env("NO_PROXY", "*");
    if let Some(kubeconfig) = kubeconfig {
        command.env("KUBECONFIG", kubeconfig);
    }
    ask(&mut command)
}

/// What answers in the agent's place, such as another exporter or the controller, counts no denials, and is told apart.
#[test]
fn what_is_no_agent_is_no_witness() {
    const BUILD: &str = "egress_build_info{version=\"0.1.0\",revision=\"\"} 1\n";
    const PODS: &str = "egress_pods{state=\"governed\"} 1\n";
    const DENIED: &str = "egress_denied_packets_total{namespace=\"shop\",pod=\"web\",reason=\"expired\"} 7\n";
    let open = serve(String::new()).to_string();
    let look = |text: &str| {
        let address = serve(text.to_owned()).to_string();
        smoke_here(&["--agent-metrics", &address, "--allow", &open], None)
    };
    for other in ["", "node_cpu_seconds_total{cpu=\"0\"} 1\n", BUILD, PODS] {
        let said = look(other);
        assert_eq!(said.code, Some(2), "{other:?}: {said:?}");
        assert!(said.errors.contains("so it is no agent's: its counts prove nothing"), "{other:?}: {said:?}");
        assert!(said.json.is_null(), "no evidence of it: {said:?}");
    }
    let said = look(&[BUILD, PODS, DENIED].concat());
    assert_eq!(said.code, Some(0), "{said:?}");
    let told = &said.json["agent"];
    assert_eq!((&told["version"], &told["deniedBefore"]), (&"0.1.0".into(), &7.into()), "{told}");
}

/// The evidence names each policy of the namespace with the revision of its text and the API server's.
fn asks(server: &Server) {
    let namespace = "smoke-shop";
    let text = POLICY.replace('\n', "");
    good(server.namespace(namespace, &[]));
    let map = |name: &str, labels: Value| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "namespace": namespace, "name": name, "labels": labels },
            "data": { "policy.json": text },
        })
    };
    let stored = good(server.put(&map("web", json!({ "egress-controller": "managed" }))));
    good(server.put(&map("other", json!({}))));
    let open = serve(String::new()).to_string();
    let arguments = ["--ask-api", "--pod-namespace", namespace, "--allow", &open];
    let said = smoke_here(&arguments, Some(&server.kubeconfig()));
    assert_eq!(said.code, Some(0), "{said:?}");
    let version = stored["metadata"]["resourceVersion"].as_str().expect("it has one");
    let revision = format!("{} (resourceVersion {version})", summary::revision(&text));
    assert_eq!(said.json["policies"], json!({ "smoke-shop/web": revision }));
    let said = smoke_here(&["--ask-api", "--allow", &open], Some(&server.kubeconfig()));
    assert!(said.code == Some(2) && said.errors.contains("--pod-namespace"), "{said:?}");
    if server.as_real().is_some() {
        let account = good(server.kubeconfig_for(namespace, "nobody"));
        let said = smoke_here(&arguments, Some(&account));
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(said.errors.contains("cannot list resource \"configmaps\""), "{said:?}");
        assert!(said.json.is_null(), "{said:?}");
    }
    good(server.stop());
    let said = smoke_here(&arguments, Some(&server.kubeconfig()));
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.json.is_null(), "revisions that were asked for and are not known are no evidence: {said:?}");
}

#[test]
fn revisions_are_asked_for_at_the_double() {
    asks(&good(Server::double()));
}

#[test]
fn revisions_are_asked_for_at_a_real_server() {
    match real::binaries() {
        Ok(binaries) => asks(&good(Server::real(&binaries, &real::Settings::default()))),
        Err(error) => {
            // The harness may have begun a line with the name of the test.
            let line = format!("\nSKIPPED cluster: {error:#}\n");
            std::io::stdout().write_all(line.as_bytes()).expect("standard output is open");
        }
    }
}
