//! `fmt`, `diff` and `exceptions` from the outside, and what runs them in pipelines.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder can be made");
        fs::write(path, text).expect("it can be written to");
    }
    folder
}

/// Runs in a folder and returns the exit code and both outputs.
fn run(folder: &Path, arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_egress-agent"))
        .args(arguments)
        .current_dir(folder)
        .env_remove("EGRESS_RULES")
        .env_remove("KUBECONFIG")
        .env("HOME", folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("it is read");
    let output = child.wait_with_output().expect("the program ends");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("output is UTF-8");
    (output.status.code().expect("it ends by itself"), text(&output.stdout), text(&output.stderr))
}

const UNFORMED: &str = r#"{"allowedDestinations":[{"ports":[443],"cidr":"10.0.0.0/8","name":"a","governance":{"expiresAt":"2027-03-31"}}]}"#;
const FORMED: &str = "{\n  \"allowedDestinations\": [\n    {\n      \"name\": \"a\",\n      \"cidr\": \"10.0.0.0/8\",\n      \"ports\": [443],\n\
                      \u{20}     \"governance\": {\n        \"expiry\": \"2027-03-31\"\n      }\n    }\n  ]\n}\n";

#[test]
fn fmt_writes_the_form() {
    let folder = folder(&[("p.json", UNFORMED), ("good.json", FORMED)]);
    let at = folder.path();
    assert_eq!(run(at, &["fmt", "p.json"], ""), (0, FORMED.to_owned(), String::new()));
    assert_eq!(run(at, &["fmt", "-"], UNFORMED), (0, FORMED.to_owned(), String::new()));
    assert_eq!(run(at, &["fmt", "--check", "."], ""), (1, "./p.json\n".to_owned(), String::new()));
    assert_eq!(
        fs::read_to_string(at.join("p.json")).expect("it is there"),
        UNFORMED,
        "--check writes nothing"
    );
    fs::set_permissions(at.join("p.json"), fs::Permissions::from_mode(0o640)).expect("it is ours");
    std::os::unix::fs::symlink("p.json", at.join("link.json")).expect("a link can be made");
    assert_eq!(run(at, &["fmt", "-w", "link.json"], ""), (0, String::new(), String::new()));
    assert_eq!(fs::read_to_string(at.join("p.json")).expect("it is there"), FORMED);
    let mode = fs::metadata(at.join("p.json")).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert!(at.join("link.json").is_symlink());
    assert_eq!(run(at, &["fmt", "--check", "."], "").0, 0);
    assert_eq!(fs::read_dir(at).expect("a folder").count(), 3, "nothing else is left");
}

#[test]
fn fmt_leaves_the_rest_of_a_manifest_alone() {
    let around = |first: &str, second: &str| {
        format!(
            "# kept: \u{e9}\napiVersion: v1\nkind: ConfigMap\nmetadata:   {{name: p, labels: {{egress-controller: managed}} }}\ndata:\n  other: |\n    {UNFORMED}\n  \
             policy.json: |-   # why\n{first}\n\n  last:   x\n---\nkind: ConfigMap\napiVersion: v1\nmetadata: {{name: q, namespace: b, labels: {{egress-controller: managed}}}}\n\
             data: {{\"policy.json\": '{UNFORMED}'}}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: r, labels: {{egress-controller: managed}}}}\ndata:\n      policy.json: |\n{second}\n"
        )
    };
    let indented = |text: &str, by: usize| -> String {
        text.lines()
            .map(|line| format!("{}{line}\n", " ".repeat(by)))
            .collect::<String>()
            .trim_end()
            .to_owned()
    };
    let before = around(&indented(UNFORMED, 3), &indented(UNFORMED, 12));
    let after = around(&indented(FORMED, 3), &indented(FORMED, 12));
    let folder = folder(&[("m.yaml", &before), ("dos.yaml", &before.replace('\n', "\r\n"))]);
    let (code, _, err) = run(folder.path(), &["fmt", "-w", "m.yaml"], "");
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("b/q stays as it is"), "{err}");
    assert_eq!(fs::read_to_string(folder.path().join("m.yaml")).expect("it is there"), after);
    assert_eq!(run(folder.path(), &["fmt", "-w", "dos.yaml"], "").0, 0);
    let dos = fs::read_to_string(folder.path().join("dos.yaml")).expect("it is there");
    assert_eq!(dos, after.replace('\n', "\r\n"));
}

#[test]
fn fmt_refuses_what_is_wrong() {
    let folder =
        folder(&[("bad.json", "{\"mode\": \"x\"}"), ("p.json", UNFORMED), ("broken.yaml", "a: b: c\n")]);
    let at = folder.path();
    let (code, out, err) = run(at, &["fmt", "-w", "."], "");
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("bad.json:1:10: error: Invalid mode: x") && err.contains("broken.yaml:1"), "{err}");
    assert_eq!(fs::read_to_string(at.join("bad.json")).expect("it is there"), "{\"mode\": \"x\"}");
    assert_eq!(fs::read_to_string(at.join("p.json")).expect("it is there"), FORMED, "the others are written");
    assert_eq!(run(at, &["fmt", "absent"], "").0, 2);
    assert_eq!(run(at, &["fmt", "--check", "-w", "."], "").0, 2);
    fs::write(at.join("bytes.json"), b"\xff").expect("it can be written");
    assert_eq!(run(at, &["fmt", "bytes.json"], "").0, 2);
    let big = format!("{{\"description\": \"{}\"}}", "x".repeat(10 << 20));
    fs::write(at.join("big.json"), big).expect("it can be written");
    let (code, out, err) = run(at, &["fmt", "big.json"], "");
    assert!(code == 1 && out.is_empty() && err.contains("Policy too large"), "{err}");
}

#[test]
fn fmt_writes_into_the_policy_and_nothing_else() {
    let body = |indent: usize| format!("{:indent$}{UNFORMED}\n", "");
    let head = |name: &str, label: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\n  labels: {{egress-controller: {label}}}\n"
        )
    };
    let readme = format!(
        "{}data:\n  README: |\n    policy.json: |\n{}  policy.json: |\n{}",
        head("p", "managed"),
        body(6),
        body(4)
    );
    // Which of two blocks with the same text is the policy's cannot be told without reading on.
    let list = format!(
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: ConfigMap\n  metadata: {{name: p}}\n  data:\n    policy.json: |\n{0}- apiVersion: v1\n  kind: ConfigMap\n  metadata: {{name: p2, labels: {{egress-controller: managed}}}}\n  data:\n    policy.json: |\n{0}",
        body(6)
    );
    let annotation = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: p\n  labels: {{egress-controller: managed}}\n  annotations:\n    policy.json: |\n{}data:\n  policy.json: '{UNFORMED}'\n",
        body(6)
    );
    let folder = folder(&[("readme.yaml", &readme), ("list.yaml", &list), ("annotation.yaml", &annotation)]);
    let at = folder.path();
    let read = |name: &str| fs::read_to_string(at.join(name)).expect("it is there");
    assert_eq!(run(at, &["fmt", "-w", "readme.yaml"], "").0, 0);
    let (before, _) = readme.split_once("  policy.json: |\n    {").expect("the last one");
    let after = read("readme.yaml");
    assert!(after.starts_with(before) && after.len() > readme.len(), "{after}");
    for (name, text) in [("list.yaml", &list), ("annotation.yaml", &annotation)] {
        let (code, _, err) = run(at, &["fmt", "-w", name], "");
        assert!(code == 0 && err.contains("stays as it is"), "{name}: {err}");
        assert_eq!(&read(name), text, "{name}");
        assert_eq!(run(at, &["fmt", "--check", name], "").0, 1, "{name}");
    }
}

#[test]
fn fmt_leaves_a_file_with_an_error_alone() {
    let policy = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: p, labels: {{egress-controller: managed}}}}\ndata:\n  policy.json: |\n    {UNFORMED}\n"
    );
    let text = format!("{policy}---\na: b: c\n");
    let folder = folder(&[("p.yaml", &text)]);
    let (code, out, err) = run(folder.path(), &["fmt", "-w", "p.yaml"], "");
    assert!(code == 1 && out.is_empty() && err.contains("p.yaml:"), "{err}");
    assert_eq!(fs::read_to_string(folder.path().join("p.yaml")).expect("it is there"), text);
}

#[test]
fn diff_says_what_it_leaves_out() {
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {podSelector: {}, policyTypes: [Egress]}\n";
    let folder = folder(&[("old/p.json", "{}"), ("new/p.json", "{}"), ("new/np.yaml", policy)]);
    let (code, _, err) = run(folder.path(), &["diff", "old", "new"], "");
    assert!(code == 0 && err.contains("NetworkPolicies are not compared: 0 before, 1 after"), "{err}");
    assert_eq!(run(folder.path(), &["diff", "old", "old"], "").2, "");
}

#[test]
fn fmt_leaves_what_would_grow_too_large() {
    let entity = |n: usize| format!(r#"{{"name":"d{n}","entity":"node"}}"#);
    let list: Vec<String> = (0..16_000).map(entity).collect();
    let text =
        format!(r#"{{"description":"{}","allowedDestinations":[{}]}}"#, "x".repeat(500_000), list.join(","));
    let folder = folder(&[("p.json", &text)]);
    let (code, out, err) = run(folder.path(), &["fmt", "p.json"], "");
    assert_eq!((code, out == text), (0, true), "{err}");
    assert!(err.contains("stays as it is"), "{err}");
}

#[test]
fn diff_tells_what_opens_first() {
    let old = r#"{"allowedDestinations": [{"name": "a", "cidr": "10.1.0.0/24", "ports": [443]}, {"name": "b", "domain": "a.example"}]}"#;
    let new = r#"{"allowedDestinations": [{"name": "a", "cidr": "10.1.0.0/23", "ports": [443]}]}"#;
    let map = |name: &str| {
        let data = json!({"policy.json": "{\"defaultAction\": \"allow\"}"});
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "shop", "labels": {"egress-controller": "managed"}}, "data": data})
            .to_string()
    };
    let folder = folder(&[
        ("old/p.json", old),
        ("new/p.json", new),
        ("old/a.yaml", &map("gone")),
        ("new/b.yaml", &map("here")),
    ]);
    let at = folder.path();
    let p = "p.json changed (new/p.json)\n  opens   a: 256 IPv4 addresses (10.1.1.0/24) on 443/TCP\n  closes  b: domain a.example on every protocol and port\n";
    let (code, out, err) = run(at, &["diff", "old", "new"], "");
    assert_eq!(code, 1, "{err}");
    let here = "shop/here added (new/b.yaml)\n  opens   the cluster's DNS, by clusterDns\n  changes the policy is new: it selects every pod, enforced, default allow\n";
    let gone = "shop/gone removed (old/a.yaml)\n  closes  the cluster's DNS, by clusterDns\n  changes the policy is gone: it selects every pod, enforced, default allow\n";
    assert_eq!(out, format!("{here}\n{p}\n{gone}"));
    let (code, out, _) = run(at, &["diff", "old/p.json", "new/p.json", "-o", "json"], "");
    assert_eq!(code, 1);
    let list: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(list[0]["opens"][0]["addresses"], json!({"ipv4": "256", "ipv6": "0"}));
    assert_eq!((&list[0]["change"], &list[0]["closes"][0]["destination"]), (&json!("changed"), &json!("b")));
    fs::write(at.join("other.json"), new).expect("it can be written");
    let (_, out, _) = run(at, &["diff", "old/p.json", "other.json"], "");
    assert!(out.starts_with("other.json changed"), "{out}");
    assert_eq!(run(at, &["diff", "new", "new"], ""), (0, String::new(), String::new()));
    let (code, out, _) = run(at, &["diff", "old/p.json", "-"], new);
    assert!(code == 1 && out.contains("changed"), "{out}");
}

#[test]
fn diff_does_not_guess() {
    let folder =
        folder(&[("old/p.json", "{}"), ("new/p.json", "{\"mode\": 1}"), ("new/broken.yaml", "a: b: c\n")]);
    let (code, out, err) = run(folder.path(), &["diff", "old", "new"], "");
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(
        err.contains("Wrong type") && err.contains("broken.yaml") && err.contains("cannot be compared"),
        "{err}"
    );
    assert_eq!(run(folder.path(), &["diff", "old", "absent"], "").0, 2);
    assert_eq!(run(folder.path(), &["diff", "-", "-"], "").0, 2);
}

const EXCEPTIONS: &str = r#"{"governance": {"owner": "team, \"a\""}, "allowedDestinations": [
  {"name": "never", "cidr": "10.0.0.0/8"},
  {"name": "later", "cidr": "10.0.0.0/8", "governance": {"expiry": "2027-03-31"}},
  {"name": "soon", "cidr": "10.0.0.0/8", "governance": {"expiry": "2026-12-01", "reason": "two\nlines"}},
  {"name": "past", "cidr": "10.0.0.0/8", "governance": {"expiry": "2026-11-01"}}],
  "deniedDestinations": [{"name": "no", "cidr": "192.0.2.1/32"}]}"#;

#[test]
fn exceptions_are_listed_by_their_end() {
    let folder = folder(&[("p.json", EXCEPTIONS)]);
    let list = |more: &[&str]| {
        let arguments = [&["exceptions", "list", "p.json", "--now", "2026-11-22T12:00:00Z"], more].concat();
        run(folder.path(), &arguments, "")
    };
    let (code, out, err) = list(&["-o", "json"]);
    assert_eq!(code, 0, "{err}");
    let rows: Vec<Value> = serde_json::from_str(&out).expect("a list");
    let names: Vec<&str> = rows.iter().filter_map(|row| row["destination"].as_str()).collect();
    assert_eq!(names, ["past", "soon", "later", "never"]);
    assert_eq!((&rows[0]["state"], &rows[0]["daysLeft"]), (&json!("expired"), &json!(-21)));
    assert_eq!((&rows[1]["state"], &rows[1]["daysLeft"]), (&json!("active"), &json!(9)));
    let (_, out, _) = list(&["--expiring", "30d"]);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 3, "{out}");
    assert!(lines[0].starts_with("NAMESPACE   POLICY   DESTINATION   EXPIRES"), "{out}");
    assert!(lines[1].contains("past") && lines[2].contains("2026-12-02T00:00:00Z"), "{out}");
    let (_, wide, _) = list(&["-o", "wide"]);
    assert!(
        wide.lines().count() == 5 && wide.contains("two lines") && wide.contains("DATA-CLASSIFICATION"),
        "{wide}"
    );
    let (_, csv, _) = list(&["-o", "csv", "--expiring", "2w"]);
    assert!(csv.starts_with("namespace,policy,destination,") && csv.contains("\"team, \"\"a\"\"\""), "{csv}");
    assert!(csv.contains("\"two\nlines\"") && csv.ends_with("\r\n"), "{csv}");
    assert_eq!(list(&["-n", "other"]).1, "No exceptions.\n");
    assert_eq!(list(&["-n", "other", "-A"]).0, 2);
    assert_eq!(list(&["--expiring", "soon"]).0, 2);
}

#[test]
fn what_may_be_missing_from_the_list_is_told() {
    let folder = folder(&[("good.json", EXCEPTIONS), ("bad.json", "{\"mode\": 1}")]);
    let (code, out, err) = run(folder.path(), &["exceptions", "list", "."], "");
    assert_eq!((code, out.lines().count()), (1, 5));
    assert!(err.contains("bad.json: error:") && err.contains("Wrong type"), "{err}");
    assert_eq!(run(folder.path(), &["exceptions", "list", "absent"], "").0, 2);
    let (code, _, err) = run(folder.path(), &["exceptions", "list", "-A", "--kubeconfig", "absent"], "");
    assert!(code == 2 && err.contains("kubeconfig absent"), "{err}");
}

#[test]
fn exceptions_of_a_cluster_are_listed_page_by_page() {
    let item = |name: &str, policy: &str| json!({"metadata": {"name": name, "namespace": "shop", "labels": {"egress-controller": "managed"}}, "data": {"policy.json": policy}});
    let list = |next: &str, item: Value| {
        json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"continue": next}, "items": [item]})
            .to_string()
    };
    let pages = [list("more", item("p", EXCEPTIONS)), list("", item("q", "{\"mode\": 1}"))];
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let server = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = thread::spawn(move || {
        let mut asked = Vec::new();
        for page in pages {
            let (mut stream, _) = listener.accept().expect("somebody asks");
            let mut lines = BufReader::new(stream.try_clone().expect("a second handle")).lines();
            asked.push(lines.next().expect("a line").expect("a request"));
            for line in lines.by_ref() {
                if line.expect("a head").is_empty() {
                    break;
                }
            }
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                page.len()
            );
            stream.write_all((head + &page).as_bytes()).expect("it listens");
        }
        asked
    });
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}],
    });
    let folder = folder(&[("config", &kubeconfig.to_string())]);
    let (code, out, err) =
        run(folder.path(), &["exceptions", "list", "--kubeconfig", "config", "-o", "json"], "");
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("error: shop/q: Wrong type"), "{err}");
    let rows: Vec<Value> = serde_json::from_str(&out).expect("a list");
    assert_eq!((rows.len(), &rows[0]["policy"], &rows[0]["file"]), (4, &json!("p"), &Value::Null));
    let asked = asked.join().expect("it was asked twice");
    for line in &asked {
        assert!(line.starts_with("GET /api/v1/namespaces/shop/configmaps?"), "{line}");
        assert!(line.contains("labelSelector=egress-controller%3Dmanaged"), "{line}");
    }
    assert!(asked[1].contains("continue=more"), "{asked:?}");
}

#[test]
fn help_tells_exit_codes_and_examples() {
    let folder = folder(&[]);
    for command in [&["validate"][..], &["fmt"], &["diff"], &["exceptions", "list"]] {
        let (code, out, _) = run(folder.path(), &[command, &["--help"]].concat(), "");
        assert!(code == 0 && out.contains("Exit codes: 0"), "{out}");
    }
}

#[test]
fn pipelines_run_what_there_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/ci");
    let read = |path: &str| -> (Value, String) {
        let text = fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        (serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}")), text)
    };
    let (github, text) = read("github/egress-policy.yml");
    let call = &github["on"]["workflow_call"];
    assert_eq!(call["inputs"]["image"]["required"], true, "no image is made up");
    let steps = github["jobs"]["policies"]["steps"].as_array().expect("a list of steps");
    for step in steps {
        if let Some(uses) = step["uses"].as_str() {
            let (_, pin) = uses.split_once('@').expect("a version");
            assert!(pin.len() == 40 && pin.bytes().all(|b| b.is_ascii_hexdigit()), "{uses}");
        }
        // Inputs reach scripts as variables, never as part of their text.
        assert!(!step["run"].as_str().unwrap_or_default().contains("${{"), "{step}");
    }
    assert_eq!(github["permissions"]["contents"], "read");
    let (gitlab, other) = read("gitlab/egress-policy.gitlab-ci.yml");
    assert!(
        gitlab[".egress-policy"]["image"]["name"].as_str().is_some_and(|name| name.starts_with('$')),
        "{gitlab}"
    );
    for (text, commands) in [
        (&text, &["validate -o github", "validate -o sarif", "fmt --check", "diff ", "validate --test"][..]),
        (&other, &["validate -o junit", "fmt --check", "diff ", "validate --test"]),
    ] {
        for command in commands {
            assert!(text.contains(command), "{command}");
        }
    }
}

#[test]
fn pipelines_compare_nodes_with_network_policies() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").canonicalize().expect("it is there");
    let read = |path: &str| -> Value {
        let text = fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let github = read("ci/github/egress-parity.yml");
    let steps = github["jobs"]["parity"]["steps"].as_array().expect("a list of steps").clone();
    let (_, pin) = steps[0]["uses"].as_str().and_then(|uses| uses.split_once('@')).expect("a version");
    assert!(pin.len() == 40 && pin.bytes().all(|b| b.is_ascii_hexdigit()), "{pin}");
    let script = |step: &Value| step["run"].as_str().expect("a script").to_owned();
    assert!(steps[1..].iter().all(|step| !script(step).contains("${{")), "inputs are variables");
    assert_eq!(github["permissions"]["contents"], "read");
    let gitlab = read("ci/gitlab/egress-parity.gitlab-ci.yml");
    let job = &gitlab["egress-policy:parity"];
    assert!(job["image"]["name"].as_str().is_some_and(|name| name.starts_with('$')), "{job}");
    let of_gitlab = job["script"][0].as_str().expect("a script").to_owned();

    let program = Path::new(env!("CARGO_BIN_EXE_egress-agent")).parent().expect("it is in a folder");
    let path = format!("{}:{}", program.display(), env::var("PATH").expect("there is one"));
    let bad = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "bad", "namespace": "shop", "labels": {"egress-controller": "managed"}}, "data": {"policy.json": "{"}}"#;
    let demo = root.join("examples/demo").display().to_string();
    for (paths, code) in [(demo.clone(), 0), (format!("{demo} bad"), 1), ("nothing".to_owned(), 2)] {
        for (script, names) in [
            (script(&steps[2]), ["PATHS", "CLUSTER_CIDRS", "INEXPRESSIBLE", "RANGES"]),
            (
                of_gitlab.clone(),
                [
                    "EGRESS_PARITY_PATHS",
                    "EGRESS_CLUSTER_CIDRS",
                    "EGRESS_INEXPRESSIBLE",
                    "EGRESS_PARITY_RANGES",
                ],
            ),
        ] {
            let folder = folder(&[("bad/bad.json", bad)]);
            let mut shell = Command::new("sh");
            // As the runners of both do.
            shell.args(["-e", "-c", &script]).current_dir(folder.path()).env("PATH", &path);
            shell.env("RUNNER_TEMP", ".").env("GITHUB_STEP_SUMMARY", "summary.md");
            for (name, value) in names.into_iter().zip([paths.as_str(), "10.0.0.0/8", "omit", ""]) {
                shell.env(name, value);
            }
            let output = shell.output().expect("a shell starts");
            let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{paths}: {said}");
            if code == 0 {
                assert!(said.contains("0 undeclared"), "{said}");
            }
        }
    }

    // What is given to the job reaches the program as it is, and what the program says and how it ends reach whoever looks.
    let told = "#!/bin/sh\nprintf '<%s>' \"$@\"\necho\nexit 7\n";
    let given = ["policies cluster", "10.0.0.0/8", "omit", "aws=ranges/aws.json gcp=g.json"];
    let wanted = "<parity><--manifests><policies><cluster><--ranges><aws=ranges/aws.json><--ranges><gcp=g.json><--cluster-cidrs><10.0.0.0/8>\
                  <--inexpressible><omit>";
    let usual = "<parity><--manifests><policies><--inexpressible><widen>";
    for (script, names, is_github) in [
        (script(&steps[2]), ["PATHS", "CLUSTER_CIDRS", "INEXPRESSIBLE", "RANGES"], true),
        (
            of_gitlab,
            ["EGRESS_PARITY_PATHS", "EGRESS_CLUSTER_CIDRS", "EGRESS_INEXPRESSIBLE", "EGRESS_PARITY_RANGES"],
            false,
        ),
    ] {
        let inputs = &github["on"]["workflow_call"]["inputs"];
        let default = |name: &str| inputs[name]["default"].as_str().expect("it has a default");
        let least = ["policies", default("cluster-cidrs"), default("inexpressible"), default("ranges")];
        for (values, wanted) in [(given, wanted), (least, usual)] {
            let folder = folder(&[("bin/egress-agent", told)]);
            let program = folder.path().join("bin/egress-agent");
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
                .expect("it can be made a program");
            let path = format!("{}:{path}", program.parent().expect("it is in a folder").display());
            let mut shell = Command::new("sh");
            shell.args(["-e", "-c", &script]).current_dir(folder.path()).env("PATH", path);
            shell.env("RUNNER_TEMP", ".").env("GITHUB_STEP_SUMMARY", "summary.md");
            for (name, value) in names.into_iter().zip(values) {
                // GitLab's variables are not there unless somebody sets them.
                if is_github || wanted != usual || name == "EGRESS_PARITY_PATHS" {
                    shell.env(name, value);
                }
            }
            let output = shell.output().expect("a shell starts");
            assert_eq!(output.status.code(), Some(7), "{output:?}");
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), wanted, "{output:?}");
            let kept = if is_github { "summary.md" } else { "egress-parity.txt" };
            let kept = fs::read_to_string(folder.path().join(kept)).expect("it is kept");
            assert!(kept.contains(wanted), "{kept}");
        }
    }
    let env = &github["jobs"]["parity"]["env"];
    for (variable, input) in [
        ("PATHS", "paths"),
        ("RANGES", "ranges"),
        ("INEXPRESSIBLE", "inexpressible"),
        ("CLUSTER_CIDRS", "cluster-cidrs"),
    ] {
        assert_eq!(env[variable], format!("${{{{ inputs.{input} }}}}"), "{variable}");
    }
    assert_eq!(job["artifacts"]["when"], "always", "of a job that fails, too");
}
