//! `egress-agent generate` and `parity`, on manifests in `tests/generated` and on the examples that are shipped.
//!
//! What is expected stands beside the manifests; `EGRESS_UPDATE_GOLDEN=1` writes it anew.

use std::{
    env, fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use egress_agent::{
    k8s::{
        manifests,
        network_policy::{egress, unknown_fields},
    },
    policy::cluster::NsName,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::Value;

const AT: &str = "2027-01-15T08:00:00Z";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/generated")
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/demo")
}

fn agent(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_egress-agent"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the program starts");
    assert_ne!(output.status.code(), None, "{output:?}");
    output
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("it is text")
}

/// Runs on the manifests of this test. Returns standard output and standard error.
fn on_manifests(command: &[&str], more: &[&str]) -> (Option<i32>, String, String) {
    let path = folder().join("manifests.yaml");
    let path = path.to_str().expect("the path is text");
    let output = agent(&[command, &["--manifests", path, "--at", AT], more].concat());
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn expect(name: &str, found: &str) {
    let path = folder().join(name);
    if env::var_os("EGRESS_UPDATE_GOLDEN").is_some() {
        fs::write(&path, found).expect("it can be written");
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(expected == found, "{name} is otherwise, {found}\ninstead of {expected}");
}

/// Reads objects as the API server and the agent would.
fn objects(yaml: &str) -> Vec<NetworkPolicy> {
    let documents = yaml.split("---\n").filter(|document| !document.trim().is_empty());
    documents
        .map(|document| {
            let value: Value =
                serde_saphyr::from_str(document).unwrap_or_else(|error| panic!("{error}: {document}"));
            assert_eq!(unknown_fields(&value), [], "{document}");
            let object: NetworkPolicy = serde_json::from_value(value).expect("the types are right");
            let metadata = &object.metadata;
            let id = NsName::new(
                metadata.namespace.clone().expect("a namespace"),
                metadata.name.clone().expect("a name"),
            );
            let policy =
                egress(&id, object.spec.clone()).unwrap_or_else(|fault| panic!("{fault:?}: {document}"));
            assert!(policy.is_some(), "it is about egress: {document}");
            object
        })
        .collect()
}

#[test]
fn network_policies_are_as_expected() {
    for (mode, count) in [("widen", 3), ("omit", 3), ("skip", 1)] {
        let (code, out, err) = on_manifests(&["generate", "networkpolicy"], &["--inexpressible", mode]);
        assert_eq!(code, Some(0), "{err}");
        assert_eq!(objects(&out).len(), count, "{out}");
        expect(&format!("networkpolicy-{mode}.yaml"), &out);
        expect(&format!("networkpolicy-{mode}.txt"), &err);
    }
    let (_, out, _) = on_manifests(&["generate", "networkpolicy"], &["--cluster-ips", "false"]);
    assert!(!out.contains("cidr: 10.96.0."), "{out}");
    let (_, out, _) = on_manifests(&["generate", "networkpolicy"], &["--except", "false"]);
    assert!(!out.contains("except:"), "{out}");
    let (_, yaml, _) = on_manifests(&["generate", "networkpolicy"], &["--policy", "checkout"]);
    let (_, json, _) = on_manifests(&["generate", "networkpolicy"], &["--policy", "checkout", "-o", "json"]);
    let list: Value = serde_json::from_str(&json).expect("it is JSON");
    let items: Vec<NetworkPolicy> = serde_json::from_value(list["items"].clone()).expect("a list of objects");
    assert_eq!(items, objects(&yaml));
    let (code, _, err) = on_manifests(&["generate", "networkpolicy"], &["--policy", "other"]);
    assert_eq!((code, err.as_str()), (Some(2), "error: there is no policy other\n"));
}

#[test]
fn generated_objects_agree_with_the_kernel_layer() {
    for mode in ["widen", "omit", "skip"] {
        for said in ["true", "false"] {
            let more = ["--inexpressible", mode, "--cluster-ips", said, "--except", said];
            let (code, out, err) = on_manifests(&["parity"], &more);
            assert_eq!(code, Some(0), "{mode} {said}: {out}{err}");
        }
    }
    let (_, out, _) = on_manifests(&["parity"], &[]);
    expect("parity.txt", &out);
    let (_, json, _) = on_manifests(&["parity"], &["-o", "json"]);
    let answer: Value = serde_json::from_str(&json).expect("it is JSON");
    assert_eq!(answer["undeclared"], 0);
    assert_eq!(answer["pods"], 5);
    let (_, yaml, _) = on_manifests(&["parity"], &["-o", "yaml"]);
    assert_eq!(serde_saphyr::from_str::<Value>(&yaml).expect("it is YAML"), answer);
}

#[test]
fn the_demo_agrees_with_the_kernel_layer() {
    let demo = demo();
    let demo = demo.to_str().expect("the path is text");
    for more in [&[][..], &["--enforce-network-policy"]] {
        let output = agent(&[&["parity", "--manifests", demo, "--at", AT], more].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    let output = agent(&["generate", "networkpolicy", "--manifests", demo, "--at", AT]);
    assert_eq!(objects(&text(output.stdout)).len(), 2);
}

#[test]
fn what_cannot_be_read_is_not_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("bad.yaml");
    fs::write(&path, "kind: [").expect("it can be written");
    let path = path.to_str().expect("the path is text");
    for command in [&["parity"][..], &["generate", "networkpolicy"], &["generate", "envoy"]] {
        let output = agent(&[command, &["--manifests", path]].concat());
        assert_eq!(output.status.code(), Some(2), "{command:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn proxies_are_told_the_domains() {
    let (code, out, err) = on_manifests(&["generate", "serviceentry"], &[]);
    assert_eq!(code, Some(0), "{err}");
    expect("serviceentry.yaml", &out);
    let (code, out, err) = on_manifests(&["generate", "envoy"], &[]);
    assert_eq!(code, Some(0), "{err}");
    expect("envoy.yaml", &out);
}

/// Returns the Envoy to try with, named by `EGRESS_ENVOY` or found in `PATH`.
fn envoy() -> Option<PathBuf> {
    let named = env::var_os("EGRESS_ENVOY").map(PathBuf::from);
    named.or_else(|| {
        let path = env::var_os("PATH")?;
        env::split_paths(&path).map(|folder| folder.join("envoy")).find(|file| file.is_file())
    })
}

#[test]
fn envoy_takes_its_configuration() {
    let Some(envoy) = envoy() else {
        println!("skipped: there is no envoy, neither named by EGRESS_ENVOY nor in PATH");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let check = |text: &str| {
        let file = folder.path().join("envoy.yaml");
        fs::write(&file, text).expect("it can be written");
        let output = Command::new(&envoy)
            .args(["--mode", "validate", "-c"])
            .arg(&file)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("{}: {error}", envoy.display()));
        (output.status.success(), text_of(&output))
    };
    let (_, yaml, _) = on_manifests(&["generate", "envoy"], &[]);
    let (taken, said) = check(&yaml);
    assert!(taken, "{said}");
    // It does look: a misspelt field is refused.
    let (taken, said) = check(&yaml.replace("server_names", "server_name"));
    assert!(!taken, "{said}");
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // A failure means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the first line of what is answered to a request with this Host.
fn ask(port: u16, host: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}

#[test]
fn envoy_passes_on_what_is_named_and_nothing_else() {
    let Some(envoy) = envoy() else {
        println!("skipped: there is no envoy, neither named by EGRESS_ENVOY nor in PATH");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let policy = folder.path().join("policy.yaml");
    // Names below localhost are looked up without asking anybody, and nobody listens there.
    let text = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "shop", "name": "p", "labels": {"egress-controller": "managed"}},
        "data": {"policy.json": "{\"allowedDestinations\": [{\"name\": \"x\", \"domains\": [\"one.localhost\", \"*.two.localhost\"], \"ports\": [80]}]}"}}"#;
    fs::write(&policy, text).expect("it can be written");
    let output = agent(&["generate", "envoy", "--manifests", policy.to_str().expect("text"), "-o", "json"]);
    let mut bootstrap: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let free =
        || TcpListener::bind("127.0.0.1:0").and_then(|one| one.local_addr()).expect("a free port").port();
    let port = free();
    let place =
        |port: u16| serde_json::json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    bootstrap["static_resources"]["listeners"][0]["address"] = place(port);
    bootstrap["admin"]["address"] = place(free());
    let file = folder.path().join("envoy.json");
    fs::write(&file, bootstrap.to_string()).expect("it can be written");
    let child = Command::new(&envoy)
        .args(["--use-dynamic-base-id", "-l", "error", "-c"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", envoy.display()));
    let _running = Running(child);
    let begin = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(30), "envoy does not listen");
        thread::sleep(Duration::from_millis(50));
    }
    for (host, status) in [
        // Passed on to an address where nobody listens.
        ("one.localhost", "503"),
        ("ONE.localhost", "503"),
        ("a.two.localhost", "503"),
        ("a.b.two.localhost:80", "503"),
        ("two.localhost", "403"),
        ("xtwo.localhost", "403"),
        ("a.one.localhost", "403"),
        ("one.localhost:22", "403"),
        ("127.0.0.1", "403"),
    ] {
        let line = ask(port, host).unwrap_or_else(|error| panic!("{host}: {error}"));
        assert!(line.contains(&format!(" {status} ")), "{host}: {line}");
    }
}

fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

/// The objects that are expected are those of the manifests that are expected.
#[test]
fn the_manifests_are_valid() {
    let read = manifests::load(&folder().join("manifests.yaml")).expect("they can be read");
    assert_eq!(read.errors().map(ToString::to_string).collect::<Vec<_>>(), Vec::<String>::new());
}
