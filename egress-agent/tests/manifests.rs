//! What the manifests under `deploy/` say about the agent: that it understands the flags and variables it is given, and has the
//! privileges it needs and no others.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingWebhookConfiguration},
    apps::v1::{DaemonSet, Deployment},
    core::v1::{Container, Namespace, PodSpec, Probe, Service},
    rbac::v1::{ClusterRole, PolicyRule, Role},
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a crate of the workspace").join("deploy")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn daemonset() -> DaemonSet {
    let text = read(&deploy().join("base/daemonset.yaml"));
    serde_saphyr::from_str(&text).expect("one DaemonSet")
}

fn pod() -> PodSpec {
    let spec = daemonset().spec.expect("it has a spec");
    spec.template.spec.expect("its template has a spec")
}

fn container() -> Container {
    let mut containers = pod().containers;
    assert_eq!(containers.len(), 1, "nothing runs beside the agent");
    containers.remove(0)
}

/// The variables with a value of their own.
fn variables() -> BTreeMap<String, String> {
    let env = container().env.expect("it has variables");
    env.into_iter().filter_map(|variable| Some((variable.name, variable.value?))).collect()
}

/// All manifests, by path.
fn texts(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut texts = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("the folder can be listed").path();
        if path.is_dir() {
            texts.append(&mut self::texts(&path));
        } else {
            texts.insert(path.clone(), read(&path));
        }
    }
    texts
}

fn help(subcommand: &str) -> String {
    let mut agent = Command::new(env!("CARGO_BIN_EXE_egress-agent"));
    let output = agent.args([subcommand, "--help"]).output().expect("the binary starts");
    assert!(output.status.success(), "{subcommand} --help");
    String::from_utf8(output.stdout).expect("help is text")
}

#[test]
fn the_agent_knows_every_flag_and_variable_it_is_given() {
    let (smoke, webhook, controller, help) =
        (help("smoke"), help("webhook"), help("controller"), help("agent"));
    let container = container();
    assert_eq!(container.command.expect("it names its program"), ["egress-agent"]);
    let arguments = container.args.expect("it has arguments");
    assert_eq!(arguments[0], "agent");
    for flag in arguments.iter().filter(|argument| argument.starts_with('-')) {
        let name = flag.split('=').next().expect("split yields at least one part");
        assert!(help.split([' ', ',', '\n']).any(|word| word == name), "the agent has no flag {name}");
    }
    // What CI and the image's build read has variables of its own.
    let others = ["ci", "image"].map(|folder| deploy().join(folder));
    let is_ours = |path: &Path| !others.iter().any(|folder| path.starts_with(folder));
    for (path, text) in texts(&deploy()).into_iter().filter(|(path, _)| is_ours(path)) {
        // Comments count: they tell people what to set.
        let words = text.split(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_');
        for variable in words.filter(|word| word.starts_with("EGRESS_")) {
            let known = [&help, &webhook, &controller, &smoke]
                .iter()
                .any(|help| help.contains(&format!("{variable}=")));
            assert!(known, "{}: nothing reads {variable}", path.display());
        }
    }
}

#[test]
fn the_container_has_the_privileges_it_needs_and_no_others() {
    let container = container();
    let security = container.security_context.expect("it has a security context");
    assert_eq!(security.privileged, Some(false));
    assert_eq!(security.allow_privilege_escalation, Some(false));
    assert_eq!(security.read_only_root_filesystem, Some(true));
    assert_eq!(security.run_as_user, Some(0));
    let capabilities = security.capabilities.expect("it says which capabilities");
    assert_eq!(capabilities.drop.expect("it drops"), ["ALL"]);
    // The same as in the hint of the loader's error, and in tests/kernel/runc.rs, which runs the agent with them.
    assert_eq!(capabilities.add.expect("it adds"), ["BPF", "NET_ADMIN", "PERFMON"]);
    assert_eq!(security.app_armor_profile, None, "the runtime's own profile is good enough");
    let pod = pod();
    let seccomp = pod.security_context.and_then(|security| security.seccomp_profile);
    assert_eq!(seccomp.map(|profile| profile.type_).as_deref(), Some("RuntimeDefault"));
    assert_eq!(security.seccomp_profile, None, "the pod's profile holds");
    assert_eq!((pod.host_pid, pod.host_ipc), (None, None));
    assert_eq!(pod.init_containers, None);
}

#[test]
fn old_kernels_get_one_more_capability() {
    let text = read(&deploy().join("components/old-kernels/kustomization.yaml"));
    let values: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("value: ")).collect();
    assert_eq!(values, ["SYS_RESOURCE"]);
}

#[test]
fn the_agent_reaches_the_host_where_its_flags_say() {
    let pod = pod();
    let paths: BTreeMap<String, String> = pod
        .volumes
        .expect("it has volumes")
        .into_iter()
        .map(|volume| {
            let path = match (volume.host_path, volume.empty_dir) {
                (Some(host), None) => host.path,
                (None, Some(empty)) => empty.medium.expect("what is empty at first takes no disk"),
                _ => panic!("volume {} is neither a path of the host nor empty", volume.name),
            };
            (volume.name, path)
        })
        .collect();
    let mounts = container().volume_mounts.expect("it has mounts");
    let seen: BTreeSet<(&str, &str, bool, Option<&str>)> = mounts
        .iter()
        .map(|mount| {
            let propagation = mount.mount_propagation.as_deref();
            (
                paths[&mount.name].as_str(),
                mount.mount_path.as_str(),
                mount.read_only == Some(true),
                propagation,
            )
        })
        .collect();
    let wanted = BTreeSet::from([
        ("/sys/fs/cgroup", "/sys/fs/cgroup", true, Some("HostToContainer")),
        ("/sys/fs/bpf", "/bpf", false, Some("HostToContainer")),
        ("/var/lib/egress-agent", "/var/lib/egress-agent", false, None),
        ("Memory", "/run/egress-agent", false, None),
    ]);
    assert_eq!(seen, wanted);
    let variables = variables();
    assert_eq!(variables["EGRESS_PIN_DIR"], "/bpf/egress-agent");
    assert!(variables["EGRESS_SNAPSHOT"].starts_with("/var/lib/egress-agent/"));
    assert!(
        !variables.contains_key("EGRESS_RUNTIME_DIR"),
        "`egress-agent status` asks where it asks by itself"
    );
    assert!(help("status").contains("[default: /run/egress-agent]"));
}

#[test]
fn probes_ask_where_the_agent_listens() {
    let listen: SocketAddr = variables()["EGRESS_LISTEN"].parse().expect("an address and port");
    assert!(listen.ip().is_unspecified(), "Prometheus asks at the node's address, probes through loopback");
    let container = container();
    let port = &container.ports.as_ref().expect("it names its port")[0];
    assert_eq!((port.name.as_deref(), port.container_port), (Some("metrics"), i32::from(listen.port())));
    let path = |probe: &Option<Probe>| {
        let get = probe.as_ref().and_then(|probe| probe.http_get.as_ref()).expect("a request");
        assert_eq!(get.host.as_deref(), Some("127.0.0.1"));
        assert_eq!(get.port, IntOrString::String("metrics".to_owned()));
        get.path.clone().expect("a path")
    };
    assert_eq!(path(&container.startup_probe), "/healthz");
    assert_eq!(path(&container.liveness_probe), "/healthz", "never the API server");
    assert_eq!(path(&container.readiness_probe), "/readyz");
}

#[test]
fn the_agent_stays_on_every_node() {
    let pod = pod();
    assert_eq!(pod.host_network, Some(true), "the pod network may need the agent");
    assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
    let tolerations = pod.tolerations.expect("it tolerates");
    assert_eq!(tolerations.len(), 1);
    assert_eq!((tolerations[0].operator.as_deref(), &tolerations[0].key), (Some("Exists"), &None));
    let resources = container().resources.expect("it says what it takes");
    let (requests, limits) = (resources.requests.expect("requests"), resources.limits.expect("limits"));
    assert_eq!(requests["memory"], limits["memory"]);
    assert!(!limits.contains_key("cpu"), "a CPU limit delays what is to be enforced");
    let spec = daemonset().spec.expect("it has a spec");
    let labels = spec.template.metadata.and_then(|meta| meta.labels).expect("its pods have labels");
    for label in spec.selector.match_labels.expect("it selects by label") {
        assert_eq!(labels.get(&label.0), Some(&label.1));
    }
    let update = spec.update_strategy.and_then(|strategy| strategy.rolling_update).expect("it rolls");
    assert_eq!(update.max_surge, Some(IntOrString::Int(0)), "two agents cannot share the pins");
}

#[test]
fn the_agent_may_list_and_watch_and_write_events() {
    let text = read(&deploy().join("base/rbac.yaml"));
    let role = text.split("\n---\n").find(|document| document.contains("kind: ClusterRole\n"));
    let role: ClusterRole = serde_saphyr::from_str(role.expect("there is a role")).expect("a ClusterRole");
    let rule = |group: &str, resources: &[&str], verbs: &[&str]| {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
        PolicyRule {
            api_groups: Some(own(&[group])),
            resources: Some(own(resources)),
            verbs: own(verbs),
            ..PolicyRule::default()
        }
    };
    let watch = ["list", "watch"];
    let wanted = [
        rule("", &["configmaps", "namespaces", "nodes", "pods", "services"], &watch),
        rule("discovery.k8s.io", &["endpointslices"], &watch),
        rule("networking.k8s.io", &["networkpolicies"], &watch),
        rule("events.k8s.io", &["events"], &["create", "patch"]),
    ];
    assert_eq!(role.rules.expect("it has rules"), wanted);
}

#[test]
fn agents_write_their_summaries_in_their_own_namespace_only() {
    let folder = deploy().join("components/controller");
    let text = read(&folder.join("summaries.yaml"));
    let of = |kind: &str| {
        let line = format!("\nkind: {kind}\n");
        let document = text.split("\n---\n").find(|document| document.contains(&line));
        document.unwrap_or_else(|| panic!("there is a {kind}"))
    };
    let role: Role = serde_saphyr::from_str(of("Role")).expect("a Role");
    assert_eq!(role.metadata.namespace.as_deref(), Some("egress-agent"));
    let rules = role.rules.expect("it has rules");
    assert_eq!(rules.len(), 1);
    assert_eq!(rules[0].resources.as_deref(), Some(&["configmaps".to_owned()][..]));
    assert_eq!(rules[0].verbs, ["create", "patch"], "nothing is read, and nothing deleted");
    // What narrows the right comes with it.
    let policy: ValidatingAdmissionPolicy =
        serde_saphyr::from_str(of("ValidatingAdmissionPolicy")).expect("a ValidatingAdmissionPolicy");
    let spec = policy.spec.expect("it has a spec");
    assert_eq!(spec.failure_policy.as_deref(), Some("Fail"));
    let account = &spec.match_conditions.expect("it is about agents")[0].expression;
    assert!(account.contains("'system:serviceaccount:egress-agent:egress-agent'"), "{account}");
    let kustomization = read(&folder.join("kustomization.yaml"));
    assert!(kustomization.contains("- summaries.yaml") && kustomization.contains("EGRESS_SUMMARY_NAMESPACE"));
    assert!(
        !read(&deploy().join("base/daemonset.yaml")).contains("EGRESS_SUMMARY"),
        "off without the component"
    );
}

#[test]
fn the_rules_that_ship_can_be_read() {
    let path = deploy().join("components/webhook/rules.yaml");
    let rules = egress_agent::check::Rules::from_file(&path).expect("they are right");
    assert_eq!(rules.governance.profile, egress_agent::policy::governance::Profile::Warn);
    let env = webhook_pod().containers.remove(0).env.expect("it has variables");
    let named =
        env.iter().find(|variable| variable.name == "EGRESS_RULES").and_then(|one| one.value.as_deref());
    assert_eq!(named, Some("/etc/egress/rules.yaml"), "where the volume is mounted, the file's own name");
}

/// The object of this kind in a file of the webhook's component.
fn of_webhook<T: serde::de::DeserializeOwned>(file: &str, kind: &str) -> T {
    let text = read(&deploy().join("components/webhook").join(file));
    let line = format!("\nkind: {kind}\n");
    let document = text.split("\n---\n").find(|document| format!("\n{document}").contains(&line));
    serde_saphyr::from_str(document.unwrap_or_else(|| panic!("{file} has a {kind}"))).expect("it can be read")
}

fn webhook_pod() -> PodSpec {
    let deployment: Deployment = of_webhook("deployment.yaml", "Deployment");
    deployment.spec.expect("it has a spec").template.spec.expect("its template has a spec")
}

#[test]
fn the_webhook_has_no_privileges() {
    let pod = webhook_pod();
    assert_eq!((pod.host_network, pod.host_pid, pod.host_ipc), (None, None, None));
    let security = pod.security_context.expect("it has a security context");
    assert_eq!((security.run_as_non_root, security.run_as_user), (Some(true), Some(65532)));
    assert_eq!(security.seccomp_profile.map(|profile| profile.type_).as_deref(), Some("RuntimeDefault"));
    assert_eq!(pod.containers.len(), 1);
    let security = pod.containers[0].security_context.as_ref().expect("it has a security context");
    assert_eq!(security.privileged, Some(false));
    assert_eq!(security.allow_privilege_escalation, Some(false));
    assert_eq!(security.read_only_root_filesystem, Some(true));
    let capabilities = security.capabilities.as_ref().expect("it says which capabilities");
    assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
    assert_eq!(capabilities.add, None);
    let volumes = pod.volumes.expect("it has its rules");
    assert!(volumes.iter().all(|volume| volume.config_map.is_some()), "it needs no files of the host");
    assert_eq!(volumes.len(), 1);
    let namespace: Namespace = of_webhook("namespace.yaml", "Namespace");
    let labels = namespace.metadata.labels.expect("it has labels");
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "restricted");
    let limits = pod.containers[0].resources.as_ref().and_then(|resources| resources.limits.as_ref());
    assert!(!limits.expect("it has limits").contains_key("cpu"), "a CPU limit delays every policy");
}

#[test]
fn the_controller_has_no_privileges_and_the_namespace_that_agents_read() {
    let folder = deploy().join("components/controller");
    let of = |file: &str, kind: &str| {
        let text = read(&folder.join(file));
        let line = format!("\nkind: {kind}\n");
        let document = text.split("\n---\n").find(|document| format!("\n{document}").contains(&line));
        document.unwrap_or_else(|| panic!("{file} has a {kind}")).to_owned()
    };
    let deployment: Deployment =
        serde_saphyr::from_str(&of("deployment.yaml", "Deployment")).expect("it can be read");
    let pod = deployment.spec.expect("it has a spec").template.spec.expect("its template has a spec");
    assert_eq!((pod.host_network, pod.host_pid, pod.host_ipc), (None, None, None));
    assert!(pod.volumes.is_none(), "it needs no files");
    let security = pod.security_context.expect("it has a security context");
    assert_eq!((security.run_as_non_root, security.run_as_user), (Some(true), Some(65532)));
    assert_eq!(security.seccomp_profile.map(|profile| profile.type_).as_deref(), Some("RuntimeDefault"));
    let container = &pod.containers[0];
    let security = container.security_context.as_ref().expect("it has a security context");
    assert_eq!((security.privileged, security.allow_privilege_escalation), (Some(false), Some(false)));
    assert_eq!(security.read_only_root_filesystem, Some(true));
    let capabilities = security.capabilities.as_ref().expect("it says which capabilities");
    assert_eq!(
        (capabilities.drop.as_deref(), capabilities.add.as_deref()),
        (Some(&["ALL".to_owned()][..]), None)
    );
    assert_eq!(container.args.as_deref(), Some(&["controller".to_owned()][..]));

    let namespace: Namespace =
        serde_saphyr::from_str(&of("namespace.yaml", "Namespace")).expect("it can be read");
    let name = namespace.metadata.name.expect("it has a name");
    assert!(help("controller").contains(&format!("[default: {name}]")), "{name}");
    // Agents follow it only when the component is there.
    let patch = read(&folder.join("kustomization.yaml"));
    assert!(patch.contains(&format!("{{name: EGRESS_RANGES_NAMESPACE, value: {name}}}")), "{patch}");
    let role: ClusterRole = serde_saphyr::from_str(&of("rbac.yaml", "ClusterRole")).expect("it can be read");
    for rule in role.rules.expect("it has rules") {
        let resources = rule.resources.unwrap_or_default();
        let writes = rule.verbs.iter().any(|verb| !["get", "list", "watch"].contains(&verb.as_str()));
        let written = ["networkpolicies", "events", "policyreports", "reports"];
        let may = written.contains(&resources[0].as_str()) && resources.len() == 1;
        assert!(!writes || may, "it writes {resources:?} in the whole cluster");
        assert!(!resources.iter().any(|resource| resource == "secrets" || resource == "*"));
    }
}

#[test]
fn the_webhook_is_asked_where_it_listens_and_by_the_name_it_has() {
    let container = webhook_pod().containers.remove(0);
    assert_eq!(container.args.as_deref(), Some(&["webhook".to_owned()][..]));
    let env = container.env.as_ref().expect("it has variables");
    let port = |name: &str| -> i32 {
        let value =
            env.iter().find(|variable| variable.name == name).and_then(|variable| variable.value.as_ref());
        let address: SocketAddr = value.expect("it has a value").parse().expect("an address and port");
        assert!(address.ip().is_unspecified(), "both families");
        address.port().into()
    };
    let ports = container.ports.as_ref().expect("it names its ports");
    let named = |name: &str| {
        ports
            .iter()
            .find(|port| port.name.as_deref() == Some(name))
            .expect("the port has a name")
            .container_port
    };
    assert_eq!(named("https"), port("EGRESS_WEBHOOK_LISTEN"));
    assert_eq!(named("metrics"), port("EGRESS_WEBHOOK_TELEMETRY"));
    for (probe, path) in [(&container.readiness_probe, "/readyz"), (&container.liveness_probe, "/healthz")] {
        let get = probe.as_ref().and_then(|probe| probe.http_get.as_ref()).expect("a request");
        assert_eq!(
            (get.path.as_deref(), &get.port),
            (Some(path), &IntOrString::String("metrics".to_owned()))
        );
    }
    let service: Service = of_webhook("deployment.yaml", "Service");
    let own = service.spec.and_then(|spec| spec.ports).expect("it has ports").remove(0);
    assert_eq!((own.port, own.target_port), (443, Some(IntOrString::String("https".to_owned()))));
    let configuration: ValidatingWebhookConfiguration =
        of_webhook("validation.yaml", "ValidatingWebhookConfiguration");
    let mut webhooks = configuration.webhooks.expect("it has webhooks");
    assert_eq!(webhooks.len(), 1);
    let webhook = webhooks.remove(0);
    let asked = webhook.client_config.service.expect("a Service is asked");
    assert_eq!((&asked.name, &asked.namespace), (&"egress-webhook".to_owned(), &"egress-webhook".to_owned()));
    assert_eq!((asked.path.as_deref(), asked.port), (Some("/validate"), Some(443)));
    // What the flags say without a word of the manifests.
    let help = help("webhook");
    for default in [
        "[default: egress-agent]",
        "[default: egress-webhook]",
        "[default: egress-webhook-certificates]",
        "[default: 4s]",
    ] {
        assert!(help.contains(default), "{default}");
    }
    assert_eq!(configuration.metadata.name.as_deref(), Some("egress-agent"));
    assert_eq!(service.metadata.name.as_deref(), Some("egress-webhook"));
    assert_eq!((webhook.failure_policy.as_deref(), webhook.timeout_seconds), (Some("Fail"), Some(5)));
    assert_eq!(
        (webhook.side_effects.as_str(), webhook.match_policy.as_deref()),
        ("None", Some("Equivalent"))
    );
    let labels = |selector: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>| {
        selector.and_then(|selector| selector.match_labels).expect("it selects by label")
    };
    assert_eq!(labels(webhook.object_selector)["egress-controller"], "managed");
    let excluded =
        webhook.namespace_selector.as_ref().and_then(|selector| selector.match_expressions.as_ref());
    let excluded = excluded.and_then(|list| list[0].values.clone()).expect("some are left out");
    assert_eq!(excluded, ["kube-system", "egress-agent", "egress-webhook"]);
    assert_eq!(labels(webhook.namespace_selector)["egress-validation"], "enabled");
}

#[test]
fn the_webhook_may_do_what_it_needs_and_no_more() {
    let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
    let rule = |group: &str, resource: &str, names: &[&str], verbs: &[&str]| PolicyRule {
        api_groups: Some(own(&[group])),
        resources: Some(own(&[resource])),
        resource_names: (!names.is_empty()).then(|| own(names)),
        verbs: own(verbs),
        ..PolicyRule::default()
    };
    let role: Role = of_webhook("rbac.yaml", "Role");
    let wanted = [
        rule("", "secrets", &["egress-webhook-certificates"], &["get", "list", "watch", "update"]),
        rule("", "secrets", &[], &["create"]),
    ];
    assert_eq!(role.rules.expect("it has rules"), wanted);
    let role: ClusterRole = of_webhook("rbac.yaml", "ClusterRole");
    let wanted = [
        rule("", "namespaces", &[], &["list", "watch"]),
        rule(
            "admissionregistration.k8s.io",
            "validatingwebhookconfigurations",
            &["egress-agent"],
            &["get", "patch"],
        ),
    ];
    assert_eq!(role.rules.expect("it has rules"), wanted);
}
