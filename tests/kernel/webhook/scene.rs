//! What the tests are made of: an API server with the shipped manifests, and webhooks on loopback that it asks.

use std::{
    cell::RefCell,
    env,
    fs::{self, File},
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use egress_tests::lab::{
    agent::{self, Agent},
    api::{Server, real},
    keeper::Keeper,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long anything may take. Debug builds on busy machines are slow.
pub(crate) const LIMIT: Duration = Duration::from_secs(40);

pub(crate) const JSON: &str = "application/json";
const JSON_PATCH: &str = "application/json-patch+json";

/// The namespace and the ServiceAccount of the webhook.
pub(crate) const OWN: &str = "egress-webhook";
pub(crate) const CONFIGURATION: &str =
    "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/egress-agent";

/// The variables that would send a client to a proxy instead of the server on this machine.
pub(crate) const PROXIES: [&str; 8] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
];

/// A policy with nothing to say against.
pub(crate) const GOOD: &str = r#"{"defaultAction": "deny", "allowedDestinations": [{"name": "db", "cidr": "10.1.0.0/24", "ports": [5432]}]}"#;

/// Returns a value, or fails with what is behind the error.
#[track_caller]
pub(crate) fn good<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error:#}"))
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "not after {LIMIT:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Finds kubectl beside the real server or in `PATH`.
pub(crate) fn kubectl() -> Result<PathBuf> {
    let assets = env::var_os(real::VARIABLE)
        .map_or_else(|| PathBuf::from("/usr/local/kubebuilder/bin"), PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    std::iter::once(assets.clone())
        .chain(env::split_paths(&path))
        .map(|folder| folder.join("kubectl"))
        .find(|path| path.is_file())
        .with_context(|| format!("no kubectl in {} or PATH", assets.display()))
}

/// What a command said, and whether it went well.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) well: bool,
    pub(crate) text: String,
}

/// A ConfigMap with the label and this policy.
pub(crate) fn policy(namespace: &str, name: &str, text: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "namespace": namespace, "name": name, "labels": { "egress-controller": "managed" } },
        "data": { "policy.json": text },
    })
}

/// An API server, and the webhook it asks.
pub(crate) struct Scene<'a> {
    pub(crate) server: &'a Server,
    pub(crate) keeper: Keeper,
    pub(crate) folder: TempDir,
    /// Where the API server asks.
    pub(crate) address: SocketAddr,
    webhook: RefCell<Option<Agent>>,
}

impl<'a> Scene<'a> {
    pub(crate) fn new(server: &'a Server) -> Self {
        let folder =
            tempfile::Builder::new().prefix("egress-webhook-").tempdir().expect("a folder can be made");
        let scene = Self {
            server,
            keeper: good(Keeper::start()),
            folder,
            address: good(agent::free_address()),
            webhook: RefCell::new(None),
        };
        scene.install();
        scene.start(&[]);
        scene
    }

    /// Applies the shipped manifests, and has the API server ask on loopback instead of at a Service.
    fn install(&self) {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let deploy = deploy.canonicalize().expect("the manifests are in the checkout");
        // kustomize takes no absolute paths.
        let up = "../".repeat(self.folder.path().components().count() - 1);
        let deploy = format!("{up}{}", deploy.strip_prefix("/").expect("it is absolute").display());
        let components = ["webhook", "controller", "webhook-ranges"];
        let components = components.map(|name| format!("{deploy}/components/{name}")).join(", ");
        let text = format!("resources: [{deploy}/base]\ncomponents: [{components}]\n");
        fs::write(self.folder.path().join("kustomization.yaml"), text).expect("a file can be written");
        let folder = self.folder.path().to_str().expect("temporary folders have plain names");
        let said = self.kubectl(&["apply", "--kustomize", folder], "");
        assert!(said.well, "{}", said.text);
        let url = format!("https://{}/validate", self.address);
        let patch = json!([
            { "op": "remove", "path": "/webhooks/0/clientConfig/service" },
            { "op": "add", "path": "/webhooks/0/clientConfig/url", "value": url },
        ]);
        good(self.server.request("PATCH", CONFIGURATION, JSON_PATCH, &patch));
    }

    /// Returns the configuration of the webhook as it is now.
    pub(crate) fn configuration(&self) -> Value {
        good(self.server.request("GET", CONFIGURATION, JSON, &Value::Null))
    }

    /// Starts the webhook that the API server asks, and waits until it does.
    pub(crate) fn start(&self, more: &[&str]) {
        let mut webhook = self.spawn(self.address, more);
        good(webhook.wait_ready(LIMIT));
        *self.webhook.borrow_mut() = Some(webhook);
        good(self.server.namespace("egress-probe", &[("egress-validation", "enabled")]));
        let mut probe = policy("egress-probe", "probe", GOOD);
        probe["metadata"]["name"] = "probe".into();
        until("the API server trusts the webhook", || self.dry_run(&probe).is_ok());
    }

    /// Starts a webhook at an address.
    pub(crate) fn spawn(&self, address: SocketAddr, more: &[&str]) -> Agent {
        let kubeconfig = good(self.server.kubeconfig_for(OWN, OWN));
        let telemetry = good(agent::free_address());
        let log = self.folder.path().join(format!("webhook-{}.log", address.port()));
        let mut command = Command::new(good(agent::binary()));
        for proxy in PROXIES {
            command.env_remove(proxy);
        }
        command
            .args(["webhook", "--ranges-namespace", "egress-controller"])
            .args(["--tls-names", "127.0.0.1", "--farewell", "1s"])
            .args(["--listen", &address.to_string(), "--telemetry", &telemetry.to_string()])
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(more)
            .env("EGRESS_LOG", "info")
            .stderr(File::options().create(true).append(true).open(log).expect("a log can be made"));
        good(Agent::listening(command, telemetry, &self.keeper))
    }

    /// Returns what the webhook at the address that is asked has logged.
    pub(crate) fn log(&self) -> String {
        let log = self.folder.path().join(format!("webhook-{}.log", self.address.port()));
        fs::read_to_string(log).expect("the log is there")
    }

    /// Does something with the running webhook.
    pub(crate) fn with<T>(&self, what: impl FnOnce(&Agent) -> T) -> T {
        what(self.webhook.borrow().as_ref().expect("the webhook runs"))
    }

    /// Takes the running webhook, so that it can be ended.
    pub(crate) fn take(&self) -> Agent {
        self.webhook.borrow_mut().take().expect("the webhook runs")
    }

    /// Creates a namespace with validation.
    pub(crate) fn validated(&self, name: &str) -> String {
        good(self.server.namespace(name, &[("egress-validation", "enabled")]));
        // The API server judges by a list of namespaces that it hears of itself.
        let bad = policy(name, "until-it-is-known", "{");
        until("the API server knows of the label", || self.dry_run(&bad).is_err());
        name.to_owned()
    }

    /// Asks whether an object could be created.
    pub(crate) fn dry_run(&self, object: &Value) -> Result<Value> {
        let namespace = object["metadata"]["namespace"].as_str().expect("it has one");
        let path = format!("/api/v1/namespaces/{namespace}/configmaps?dryRun=All");
        self.server.request("POST", &path, JSON, object)
    }

    /// Runs kubectl as an administrator, with something to read.
    pub(crate) fn kubectl(&self, arguments: &[&str], input: &str) -> Said {
        self.kubectl_as(&self.server.kubeconfig(), arguments, input)
    }

    /// Runs kubectl as whoever this file says.
    pub(crate) fn kubectl_as(&self, kubeconfig: &Path, arguments: &[&str], input: &str) -> Said {
        let mut command = Command::new(good(kubectl()));
        for proxy in PROXIES {
            command.env_remove(proxy);
        }
        command.arg("--kubeconfig").arg(kubeconfig).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl starts");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        stdin.write_all(input.as_bytes()).expect("kubectl reads");
        drop(stdin);
        let output = child.wait_with_output().expect("kubectl ends");
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        Said { well: output.status.success(), text: text.concat() }
    }

    /// Applies an object as people do.
    pub(crate) fn apply(&self, object: &Value) -> Said {
        self.kubectl(&["apply", "--filename", "-"], &object.to_string())
    }
}
