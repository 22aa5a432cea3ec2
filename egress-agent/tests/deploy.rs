//! What the kustomizations under `deploy/` amount to: the overlays do what their environment is for, every pod is as restricted as it
//! can be, and the policies that ship are good and current.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use k8s_openapi::api::core::v1::{Container, PodSpec};
use serde_json::Value;
use tempfile::TempDir;

/// When the policies that ship are judged: their entries have an expiry, as everybody's have.
const NOW: &str = "2026-12-01T00:00:00Z";

fn deploy() -> PathBuf {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a crate of the workspace").join("deploy");
    path.canonicalize().expect("it is there")
}

fn egress_agent(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_egress-agent"));
    let output = command.args(arguments).current_dir(deploy()).output().expect("the binary starts");
    let text = |bytes| String::from_utf8(bytes).expect("it writes text");
    (output.status.code().expect("it ends by itself"), text(output.stdout), text(output.stderr))
}

/// Finds kubectl beside the real API server or in `PATH`; without it a test says that it was skipped.
fn kubectl() -> Option<PathBuf> {
    let assets = env::var_os("KUBEBUILDER_ASSETS")
        .map_or_else(|| PathBuf::from("/usr/local/kubebuilder/bin"), PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let found = std::iter::once(assets)
        .chain(env::split_paths(&path))
        .map(|folder| folder.join("kubectl"))
        .find(|path| path.is_file());
    if found.is_none() {
        // Past the harness, which shows nothing of tests that pass, and which may have begun a line.
        let line = "\nSKIPPED cluster: no kubectl to render kustomizations with\n";
        std::io::stdout().write_all(line.as_bytes()).expect("standard output is open");
    }
    found
}

/// Returns the objects of a kustomization.
fn render(kubectl: &Path, folder: &Path) -> Vec<Value> {
    let output = Command::new(kubectl).arg("kustomize").arg(folder).output().expect("kubectl starts");
    assert!(output.status.success(), "{}: {}", folder.display(), String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("kubectl writes text");
    let objects = text.split("\n---\n").map(|document| serde_saphyr::from_str(document).expect("it is YAML"));
    objects.collect()
}

/// Returns the objects of `deploy/base` with these components.
fn with_components(kubectl: &Path, components: &[&str]) -> Vec<Value> {
    let list: String = components.iter().map(|name| format!("  - DEPLOY/components/{name}\n")).collect();
    let folder = kustomization(&format!("resources: [DEPLOY/base]\ncomponents:\n{list}"));
    render(kubectl, folder.path())
}

/// Makes a folder with a kustomization in which `DEPLOY` stands for the way to `deploy/`: kustomize takes no absolute paths.
fn kustomization(text: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let from = folder.path().canonicalize().expect("it is there");
    let deploy = deploy();
    let down = deploy.strip_prefix("/").expect("it is absolute").display();
    let way = format!("{}{down}", "../".repeat(from.components().count() - 1));
    fs::write(folder.path().join("kustomization.yaml"), text.replace("DEPLOY", &way))
        .expect("a file can be written");
    folder
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().expect("it has a name")
}

/// Returns the pods that workloads make: by kind and name, with their namespace.
fn pods(objects: &[Value]) -> BTreeMap<String, (String, PodSpec)> {
    let workloads = ["DaemonSet", "Deployment", "StatefulSet", "Job", "CronJob"];
    let of_interest =
        objects.iter().filter(|object| workloads.contains(&object["kind"].as_str().expect("it has a kind")));
    of_interest
        .map(|object| {
            let spec = object["spec"]["template"]["spec"].clone();
            let spec = serde_json::from_value(spec).expect("a template has a pod");
            let namespace = object["metadata"]["namespace"].as_str().expect("it has a namespace");
            (name(object).to_owned(), (namespace.to_owned(), spec))
        })
        .collect()
}

/// Returns the values of a container's variables.
fn variables(container: &Container) -> BTreeMap<&str, &str> {
    let env = container.env.iter().flatten();
    env.filter_map(|variable| Some((variable.name.as_str(), variable.value.as_deref()?))).collect()
}

/// Returns what a pod does that the Pod Security level `restricted` forbids, as of Kubernetes 1.33.
///
/// <https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted>
fn beyond_restricted(pod: &PodSpec) -> Vec<String> {
    let mut beyond = Vec::new();
    let mut say = |is_so: bool, what: &str| {
        if is_so {
            beyond.push(what.to_owned());
        }
    };
    say(pod.host_network == Some(true), "hostNetwork");
    say(pod.host_pid == Some(true), "hostPID");
    say(pod.host_ipc == Some(true), "hostIPC");
    for volume in pod.volumes.iter().flatten() {
        let allowed = volume.config_map.is_some()
            || volume.csi.is_some()
            || volume.downward_api.is_some()
            || volume.empty_dir.is_some()
            || volume.ephemeral.is_some()
            || volume.persistent_volume_claim.is_some()
            || volume.projected.is_some()
            || volume.secret.is_some();
        say(!allowed, &format!("volume {}", volume.name));
    }
    let of_pod = pod.security_context.clone().unwrap_or_default();
    say(of_pod.run_as_user == Some(0), "runAsUser 0 of the pod");
    say(of_pod.sysctls.is_some_and(|sysctls| !sysctls.is_empty()), "sysctls");
    for container in pod.containers.iter().chain(pod.init_containers.iter().flatten()) {
        let name = &container.name;
        let own = container.security_context.clone().unwrap_or_default();
        say(own.privileged == Some(true), &format!("{name}: privileged"));
        say(own.allow_privilege_escalation != Some(false), &format!("{name}: allowPrivilegeEscalation"));
        say(own.run_as_non_root.or(of_pod.run_as_non_root) != Some(true), &format!("{name}: runAsNonRoot"));
        say(own.run_as_user == Some(0), &format!("{name}: runAsUser 0"));
        say(own.proc_mount.is_some_and(|mount| mount != "Default"), &format!("{name}: procMount"));
        let seccomp = own.seccomp_profile.or(of_pod.seccomp_profile.clone()).map(|profile| profile.type_);
        let is_confined =
            seccomp.is_some_and(|kind| ["RuntimeDefault", "Localhost"].contains(&kind.as_str()));
        say(!is_confined, &format!("{name}: seccompProfile"));
        let capabilities = own.capabilities.unwrap_or_default();
        let drops_all = capabilities.drop.is_some_and(|drop| drop.contains(&"ALL".to_owned()));
        say(!drops_all, &format!("{name}: capabilities not dropped"));
        for added in capabilities.add.into_iter().flatten().filter(|name| name != "NET_BIND_SERVICE") {
            say(true, &format!("{name}: capability {added}"));
        }
        for port in container.ports.iter().flatten() {
            say(port.host_port.is_some_and(|port| port != 0), &format!("{name}: hostPort"));
        }
    }
    beyond
}

/// All components, in the order in which they can be used together.
fn components() -> Vec<String> {
    let folders = fs::read_dir(deploy().join("components")).expect("there are components");
    let mut names: Vec<String> = folders
        .map(|entry| entry.expect("it can be listed").file_name().into_string().expect("a plain name"))
        .collect();
    names.sort();
    names
}

#[test]
fn the_overlays_do_what_their_environment_is_for() {
    let Some(kubectl) = kubectl() else { return };
    for (overlay, profile, pod_start, invalid, policies) in [
        ("dev", "off", "standard", "ignore", Some("off")),
        ("stage", "warn", "strict", "deny", None),
        ("prod", "required", "strict", "deny", None),
    ] {
        let objects = render(&kubectl, &deploy().join("overlays").join(overlay));
        let pods = pods(&objects);
        let names: BTreeSet<&str> = pods.keys().map(String::as_str).collect();
        assert_eq!(names, BTreeSet::from(["egress-agent", "egress-controller", "egress-webhook"]));
        let agent = variables(&pods["egress-agent"].1.containers[0]);
        let controller = variables(&pods["egress-controller"].1.containers[0]);
        assert_eq!(agent["EGRESS_POD_START"], pod_start, "{overlay}");
        assert_eq!(agent.get("EGRESS_AUDIT").copied(), (overlay == "dev").then_some("true"), "{overlay}");
        assert_eq!(agent["EGRESS_INVALID_POLICY"], invalid, "{overlay}");
        assert_eq!(agent["EGRESS_RANGES_NAMESPACE"], "egress-controller", "{overlay}");
        // The controller must judge as the agents do.
        let judged = controller.get("EGRESS_INVALID_POLICY").copied().unwrap_or("deny");
        assert_eq!(judged, invalid, "{overlay}");
        assert_eq!(controller.get("EGRESS_NETWORK_POLICIES").copied(), policies, "{overlay}");
        // One set of rules, the overlay's, and the one the webhook mounts.
        let rules: Vec<&Value> = objects
            .iter()
            .filter(|object| object["kind"] == "ConfigMap" && name(object).starts_with("egress-rules"))
            .collect();
        assert_eq!(rules.len(), 1, "{overlay}");
        let volumes = pods["egress-webhook"].1.volumes.as_ref().expect("it has its rules");
        let mounted = volumes[0].config_map.as_ref().expect("a ConfigMap");
        assert_eq!(mounted.name, name(rules[0]), "{overlay}");
        let text = rules[0]["data"]["rules.yaml"].as_str().expect("a file");
        let file = tempfile::NamedTempFile::new().expect("a file can be made");
        fs::write(file.path(), text).expect("a file can be written");
        let rules = egress_agent::check::Rules::from_file(file.path()).expect("they can be read");
        assert_eq!(format!("{:?}", rules.governance.profile).to_lowercase(), profile, "{overlay}");
    }
}

#[test]
fn an_overlay_needs_no_edit_but_the_image() {
    let Some(kubectl) = kubectl() else { return };
    let text = "resources: [DEPLOY/overlays/prod]\nimages: [{name: egress-agent, newName: registry.example.com/egress, digest: sha256:abcd}]\n";
    let folder = kustomization(text);
    for (name, (_, pod)) in pods(&render(&kubectl, folder.path())) {
        for container in &pod.containers {
            let image = container.image.as_deref();
            assert_eq!(image, Some("registry.example.com/egress@sha256:abcd"), "{name}");
        }
    }
}

#[test]
fn every_pod_is_as_restricted_as_it_can_be() {
    let Some(kubectl) = kubectl() else { return };
    let all = components();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let mut sets: Vec<(String, Vec<Value>)> = ["dev", "stage", "prod"]
        .iter()
        .map(|overlay| ((*overlay).to_owned(), render(&kubectl, &deploy().join("overlays").join(overlay))))
        .collect();
    let unprivileged: Vec<&str> = all.iter().copied().filter(|name| *name != "privileged").collect();
    sets.push(("all components but `privileged`".to_owned(), with_components(&kubectl, &unprivileged)));
    for (set, objects) in &sets {
        let mut seen = BTreeSet::new();
        for (name, (namespace, pod)) in pods(objects) {
            let level = objects
                .iter()
                .find(|object| object["kind"] == "Namespace" && self::name(object) == namespace)
                .and_then(|object| {
                    object["metadata"]["labels"]["pod-security.kubernetes.io/enforce"].as_str()
                });
            let beyond = beyond_restricted(&pod);
            if name == "egress-agent" {
                assert_eq!(level, Some("privileged"), "{set}: host paths need it");
                assert!(!beyond.iter().any(|what| what.ends_with(": privileged")), "{set}: {beyond:?}");
                let own = pod.containers[0].security_context.as_ref().expect("it has one");
                assert_eq!(
                    (own.privileged, own.allow_privilege_escalation),
                    (Some(false), Some(false)),
                    "{set}"
                );
            } else {
                assert_eq!(level, Some("restricted"), "{set}: {name} in {namespace}");
                assert_eq!(beyond, [""; 0], "{set}: {name}");
                let own = pod.containers[0].security_context.as_ref().expect("it has one");
                assert_eq!(own.read_only_root_filesystem, Some(true), "{set}: {name}");
            }
            seen.insert(name);
        }
        assert!(seen.len() >= 3, "{set}: {seen:?}");
    }
    let proxied = pods(&sets.last().expect("there are sets").1);
    assert!(proxied.contains_key("egress-proxy"), "the set with all components has it");

    // The one exception says what it is.
    let (_, agent) = &pods(&with_components(&kubectl, &["privileged"]))["egress-agent"];
    let own = agent.containers[0].security_context.as_ref().expect("it has one");
    assert_eq!((own.privileged, own.allow_privilege_escalation), (Some(true), Some(true)));
}

#[test]
fn a_pod_with_more_than_restricted_allows_is_seen() {
    let pod = |text: &str| serde_saphyr::from_str::<PodSpec>(text).expect("a pod");
    let bare = pod("containers: [{name: a}]");
    let wanted = ["allowPrivilegeEscalation", "runAsNonRoot", "seccompProfile", "capabilities not dropped"];
    assert_eq!(beyond_restricted(&bare), wanted.map(|what| format!("a: {what}")));
    let good = "
securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
containers: [{name: a, securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}]
volumes: [{name: v, emptyDir: {}}]";
    assert_eq!(beyond_restricted(&pod(good)), [""; 0]);
    let host = good.replace("emptyDir: {}", "hostPath: {path: /}");
    assert_eq!(beyond_restricted(&pod(&host)), ["volume v"]);
    let network = format!("{good}\nhostNetwork: true");
    assert_eq!(beyond_restricted(&pod(&network)), ["hostNetwork"]);
    let capability = good.replace("drop: [ALL]", "drop: [ALL], add: [SYS_ADMIN]");
    assert_eq!(beyond_restricted(&pod(&capability)), ["a: capability SYS_ADMIN"]);
}

#[test]
fn resolvers_are_told_to_agents_and_controller_alike() {
    let Some(kubectl) = kubectl() else { return };
    for (component, variable) in
        [("node-local-dns", "EGRESS_CLUSTER_DNS_ADDRESSES"), ("openshift-dns", "EGRESS_CLUSTER_DNS")]
    {
        let pods = pods(&with_components(&kubectl, &["controller", component]));
        let of = |name: &str| {
            variables(&pods[name].1.containers[0]).get(variable).map(|value| (*value).to_owned())
        };
        assert!(of("egress-agent").is_some(), "{component}");
        assert_eq!(of("egress-agent"), of("egress-controller"), "{component}");
    }
}

#[test]
fn the_controller_runs_where_every_node_has_the_start_up_taint() {
    let Some(kubectl) = kubectl() else { return };
    let pods = pods(&with_components(&kubectl, &["controller", "controller-startup-taint"]));
    let (_, controller) = &pods["egress-controller"];
    let taint = variables(&controller.containers[0])["EGRESS_STARTUP_TAINT"].to_owned();
    let tolerations = controller.tolerations.as_deref().unwrap_or_default();
    let tolerates = |key: &str| {
        // Whatever the value and effect: those are for whoever registers nodes to choose.
        tolerations.iter().any(|one| {
            let any = one.value.is_none() && one.effect.is_none() && one.toleration_seconds.is_none();
            one.key.as_deref() == Some(key) && one.operator.as_deref() == Some("Exists") && any
        })
    };
    assert!(tolerates(&taint), "{tolerations:?}");
    // It is added to what there is.
    let text = "resources: [DEPLOY/base]\ncomponents: [DEPLOY/components/controller, own, DEPLOY/components/controller-startup-taint]\n";
    let folder = kustomization(text);
    fs::create_dir(folder.path().join("own")).expect("a folder can be made");
    let own = "
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
patches:
  - target: {kind: Deployment, name: egress-controller}
    patch: |-
      - {op: add, path: /spec/template/spec/tolerations/-, value: {key: dedicated, operator: Exists}}
";
    fs::write(folder.path().join("own/kustomization.yaml"), own).expect("a file can be written");
    let (_, controller) = &self::pods(&render(&kubectl, folder.path()))["egress-controller"];
    let tolerations = controller.tolerations.as_deref().unwrap_or_default();
    let keys: Vec<_> = tolerations.iter().filter_map(|one| one.key.as_deref()).collect();
    assert_eq!(keys, ["dedicated", taint.as_str()]);
}

#[test]
fn resolvers_can_be_asked_through_our_network_policies() {
    let Some(kubectl) = kubectl() else { return };
    let closed = ["controller", "webhook", "controller-network-policy", "webhook-network-policy"];
    let cache = serde_json::json!([{"ipBlock": {"cidr": "169.254.20.10/32"}}]);
    let pods = serde_json::json!([{
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "openshift-dns"}},
        "podSelector": {"matchLabels": {"dns.operator.openshift.io/daemonset-dns": "default"}},
    }]);
    for (component, to, port) in [("node-local-dns", cache, 53), ("openshift-dns", pods, 5353)] {
        let ports = serde_json::json!([{"port": port, "protocol": "UDP"}, {"port": port, "protocol": "TCP"}]);
        let rule = serde_json::json!({ "to": to, "ports": ports });
        let objects = with_components(&kubectl, &[&closed[..], &[component]].concat());
        for policy in ["egress-controller", "egress-webhook"] {
            let one = |object: &&Value| object["kind"] == "NetworkPolicy" && name(object) == policy;
            let found = objects.iter().find(one).unwrap_or_else(|| panic!("there is {policy}"));
            let egress = found["spec"]["egress"].as_array().expect("it lets something out");
            assert!(egress.contains(&rule), "{component}: {policy}: {egress:?}");
        }
    }
}

/// Returns accounts that ValidatingAdmissionPolicies name in their texts and that are none, or not the one whose right they narrow.
fn accounts_of_nobody(objects: &[Value]) -> Vec<String> {
    const ACCOUNT: &str = "'system:serviceaccount:";
    // Which right a policy narrows. Kustomizations put something before or after names.
    let narrowed = [
        ("egress-node-summaries", "egress-agent-summaries"),
        ("egress-startup-taint", "egress-startup-taint"),
    ];
    let mut of_nobody = Vec::new();
    for object in objects.iter().filter(|object| object["kind"] == "ValidatingAdmissionPolicy") {
        let text = object["spec"].to_string();
        for account in text.split(ACCOUNT).skip(1).filter_map(|rest| rest.split('\'').next()) {
            let binding = narrowed.iter().find(|(policy, _)| name(object).contains(policy));
            let (_, binding) = binding.unwrap_or_else(|| panic!("{} narrows no known right", name(object)));
            let bindings = objects.iter().filter(|object| {
                ["RoleBinding", "ClusterRoleBinding"]
                    .contains(&object["kind"].as_str().expect("it has a kind"))
                    && name(object).contains(binding)
            });
            let subjects: Vec<String> = bindings
                .flat_map(|binding| binding["subjects"].as_array().expect("it has subjects"))
                .map(|subject| {
                    let field =
                        |field: &str| subject[field].as_str().expect("an account has both").to_owned();
                    format!("{}:{}", field("namespace"), field("name"))
                })
                .collect();
            let is_one = objects.iter().any(|object| {
                object["kind"] == "ServiceAccount"
                    && account.split_once(':')
                        == object["metadata"]["namespace"].as_str().zip(Some(name(object)))
            });
            if !is_one || subjects != [account] {
                of_nobody.push(format!("{}: {account}, not {subjects:?}", name(object)));
            }
        }
    }
    of_nobody
}

#[test]
fn accounts_that_are_named_in_texts_are_those_of_the_bindings() {
    let Some(kubectl) = kubectl() else { return };
    let components = ["controller", "controller-startup-taint", "webhook"];
    let objects = with_components(&kubectl, &components);
    let texts = objects.iter().filter(|object| object["kind"] == "ValidatingAdmissionPolicy");
    let with_account = texts.filter(|object| object.to_string().contains("'system:serviceaccount:")).count();
    assert_eq!((with_account, accounts_of_nobody(&objects)), (2, Vec::new()));
    for overlay in ["dev", "stage", "prod"] {
        let objects = render(&kubectl, &deploy().join("overlays").join(overlay));
        assert_eq!(accounts_of_nobody(&objects), [""; 0], "{overlay}");
    }
    // What the comments in both files warn of is so, and is seen.
    for rename in ["nameSuffix: -two", "namePrefix: house-"] {
        let text = format!(
            "resources: [DEPLOY/base]\ncomponents: [DEPLOY/components/controller, DEPLOY/components/controller-startup-taint]\n{rename}\n"
        );
        let folder = kustomization(&text);
        assert_eq!(accounts_of_nobody(&render(&kubectl, folder.path())).len(), 2, "{rename}");
    }
}

#[test]
fn the_chart_asks_for_a_release_that_knows_its_kinds() {
    let chart = fs::read_to_string(deploy().join("helm/egress-agent/Chart.yaml")).expect("it is there");
    let chart: Value = serde_saphyr::from_str(&chart).expect("it is YAML");
    let wanted = chart["kubeVersion"].as_str().expect("it says so");
    let minor = wanted.strip_prefix(">=1.").and_then(|rest| rest.split('.').next());
    let minor: u32 = minor.expect("a smallest release").parse().expect("a number");
    let prod = fs::read_to_string(deploy().join("helm/egress-agent/files/prod.yaml")).expect("it is there");
    let policy = "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicy\n";
    assert!(prod.contains(policy));
    assert!(minor >= 30, "{policy} is of 1.30: {wanted}");
}

#[test]
fn the_proxy_reaches_the_world_and_nothing_at_private_addresses() {
    let cluster = r#"
apiVersion: v1
kind: Namespace
metadata: {name: egress-proxy, labels: {kubernetes.io/metadata.name: egress-proxy}}
---
apiVersion: v1
kind: Service
metadata: {namespace: kube-system, name: kube-dns}
spec: {clusterIPs: [10.96.0.10], selector: {k8s-app: kube-dns}, ports: [{name: dns, port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: egress-proxy, name: proxy, uid: 11111111-aaaa-4aaa-8aaa-000000000001}
spec: {nodeName: node-a, containers: [{name: main, image: example.com/proxy}]}
status: {phase: Running, podIPs: [{ip: 10.244.1.10}]}
"#;
    let folder = tempfile::tempdir().expect("a folder can be made");
    fs::write(folder.path().join("cluster.yaml"), cluster).expect("a file can be written");
    fs::copy(deploy().join("components/egress-proxy/policy.yaml"), folder.path().join("policy.yaml"))
        .expect("it ships");
    let folder = folder.path().to_str().expect("a plain name");
    for (to, protocol, code) in [
        ("198.51.100.7:443", "TCP", 0),
        ("[2001:db8::1]:443", "TCP", 0),
        ("10.96.0.10:53", "UDP", 0),
        // No --cluster-cidrs says that these are the cluster's.
        ("10.96.0.1:443", "TCP", 1),
        ("172.20.0.1:443", "TCP", 1),
        ("192.168.7.7:80", "TCP", 1),
        ("100.64.0.9:80", "TCP", 1),
        ("[fd12::1]:443", "TCP", 1),
        ("169.254.169.254:80", "TCP", 1),
        ("198.51.100.7:22", "TCP", 1),
    ] {
        let arguments = ["--from", "egress-proxy/proxy", "--to", to, "--protocol", protocol];
        let (seen, output, said) =
            egress_agent(&[&["explain", "--manifests", folder][..], &arguments[..]].concat());
        assert_eq!(seen, code, "{to}: {output}{said}");
    }
}

#[test]
fn the_allow_lists_that_ship_pass_the_rules_of_production() {
    let arguments = ["validate", "policies/allowlists", "components/egress-proxy/policy.yaml", "--now", NOW];
    for overlay in ["dev", "stage"] {
        let rules = format!("overlays/{overlay}/rules/rules.yaml");
        let (code, output, said) = egress_agent(&[&arguments[..], &["--rules", &rules]].concat());
        assert_eq!(code, 0, "{overlay}: {output}{said}");
    }
    let rules = "overlays/prod/rules/rules.yaml";
    let (code, output, said) =
        egress_agent(&["validate", "policies/allowlists", "--now", NOW, "--rules", rules]);
    assert_eq!(code, 0, "{output}{said}");
    assert!(!output.contains("GOV-") && !output.contains("EGR-"), "not even a warning: {output}");
    // The rules are asked: what has no metadata is refused by production, and by nobody else.
    let bare = tempfile::Builder::new().suffix(".json").tempfile().expect("a file can be made");
    fs::write(
        bare.path(),
        r#"{"allowedDestinations": [{"name": "a", "cidr": "192.0.2.1/32", "ports": [443]}]}"#,
    )
    .expect("a file can be written");
    let bare = bare.path().to_str().expect("a plain name");
    for (overlay, wanted) in [("dev", 0), ("stage", 0), ("prod", 1)] {
        let rules = format!("overlays/{overlay}/rules/rules.yaml");
        let (code, output, _) = egress_agent(&["validate", bare, "--rules", &rules]);
        assert_eq!(code, wanted, "{overlay}: {output}");
        assert_eq!(output.contains("GOV-0001"), overlay != "dev", "{overlay}: {output}");
    }
}

#[test]
fn the_proxy_passes_on_what_the_allow_lists_name() {
    let (code, generated, said) =
        egress_agent(&["generate", "envoy", "--manifests", "policies/allowlists", "--at", NOW]);
    assert_eq!(code, 0, "{said}");
    let written =
        fs::read_to_string(deploy().join("components/egress-proxy/envoy.yaml")).expect("it is there");
    assert!(
        written == generated,
        "deploy/components/egress-proxy/envoy.yaml is old; in deploy/, run: \
         egress-agent generate envoy --manifests policies/allowlists --at {NOW} > components/egress-proxy/envoy.yaml"
    );
    // Each port Envoy listens on is one of the container, the Service and the NetworkPolicy.
    let Some(kubectl) = kubectl() else { return };
    let objects = with_components(&kubectl, &["egress-proxy"]);
    let config: Value = serde_saphyr::from_str(&generated).expect("it is YAML");
    let listeners = config["static_resources"]["listeners"].as_array().expect("it listens");
    let ports = |values: Vec<&Value>| -> BTreeSet<u64> {
        values.into_iter().map(|value| value.as_u64().expect("a port")).collect()
    };
    let listens: BTreeSet<u64> = ports(
        listeners.iter().map(|listener| &listener["address"]["socket_address"]["port_value"]).collect(),
    );
    let of = |kind: &str| {
        let found = objects.iter().find(|object| object["kind"] == kind && name(object) == "egress-proxy");
        found.unwrap_or_else(|| panic!("there is a {kind}"))
    };
    let container = &of("Deployment")["spec"]["template"]["spec"]["containers"][0];
    let list = |value: &Value, field: &str| -> BTreeSet<u64> {
        ports(value.as_array().expect("a list").iter().map(|port| &port[field]).collect())
    };
    assert_eq!(list(&container["ports"], "containerPort"), listens);
    assert_eq!(list(&of("NetworkPolicy")["spec"]["ingress"][0]["ports"], "port"), listens);
    let asked: BTreeSet<u64> = listens.iter().map(|port| port - 10_000).collect();
    assert_eq!(list(&of("Service")["spec"]["ports"], "port"), asked);
}

#[test]
fn the_baseline_lets_nothing_out_but_questions_to_cluster_dns() {
    let cluster = r#"
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {kubernetes.io/metadata.name: default}}
---
apiVersion: v1
kind: Namespace
metadata: {name: kube-system, labels: {kubernetes.io/metadata.name: kube-system}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: default, name: app, uid: 11111111-aaaa-4aaa-8aaa-000000000001}
spec: {nodeName: node-a, containers: [{name: main, image: example.com/app}]}
status: {phase: Running, podIPs: [{ip: 10.244.1.10}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: kube-system, name: dns, uid: 11111111-aaaa-4aaa-8aaa-000000000002, labels: {k8s-app: kube-dns}}
spec: {nodeName: node-b, containers: [{name: main, image: example.com/dns}]}
status: {phase: Running, podIPs: [{ip: 10.244.2.10}]}
"#;
    let folder = tempfile::tempdir().expect("a folder can be made");
    fs::write(folder.path().join("cluster.yaml"), cluster).expect("a file can be written");
    for file in ["default-deny.yaml", "allow-cluster-dns.yaml"] {
        fs::copy(deploy().join("policies/networkpolicy").join(file), folder.path().join(file))
            .expect("it ships");
    }
    let folder = folder.path().to_str().expect("a plain name");
    for (to, code) in [
        ("10.244.2.10:53/UDP", 0),
        ("10.244.2.10:53/TCP", 0),
        ("169.254.20.10:53/UDP", 0),
        ("10.244.2.10:443/TCP", 1),
        ("192.0.2.1:53/UDP", 1),
        ("169.254.169.254:80/TCP", 1),
        ("[2001:db8::1]:443/TCP", 1),
    ] {
        let (port, protocol) = to.rsplit_once('/').expect("a protocol");
        let (seen, output, said) = egress_agent(&[
            "explain",
            "--manifests",
            folder,
            "--enforce-network-policy",
            "--from",
            "default/app",
            "--to",
            port,
            "--protocol",
            protocol,
        ]);
        assert_eq!(seen, code, "{to}: {output}{said}");
    }
}
