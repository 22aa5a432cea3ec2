//! Ranges on their way from a provider's file into the cluster.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use egress_agent::k8s::published::{self, Parts, Published};
use egress_tests::lab::{
    agent::{self, Agent},
    api::Server,
    keeper::Keeper,
};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

/// The namespace and the account of the shipped controller.
const SHIPPED: &str = "egress-controller";

/// Finds kubectl beside the real server, or else in `PATH`.
pub(crate) fn kubectl() -> PathBuf {
    let assets = std::env::var_os(egress_tests::lab::api::real::VARIABLE);
    let assets = assets.map_or_else(|| PathBuf::from("/usr/local/kubebuilder/bin"), PathBuf::from);
    let beside = assets.join("kubectl");
    if beside.is_file() { beside } else { PathBuf::from("kubectl") }
}

const LIMIT: Duration = Duration::from_secs(40);

/// Controllers, a file that they read, and what they say.
pub(crate) struct Scene<'a> {
    server: &'a Server,
    pub(crate) keeper: Keeper,
    namespace: String,
    pub(crate) kubeconfig: PathBuf,
    folder: tempfile::TempDir,
}

impl<'a> Scene<'a> {
    /// Returns one with the shipped namespace, and with the rights of the shipped account where the server looks at rights.
    pub(crate) fn shipped(server: &'a Server) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/components/controller");
        if server.as_real().is_some() {
            for file in ["namespace.yaml", "rbac.yaml"] {
                let said = Command::new(kubectl())
                    .arg("--kubeconfig")
                    .arg(server.kubeconfig())
                    .args(["apply", "--filename"])
                    .arg(folder.join(file))
                    .env("NO_PROXY", "*")
                    .output()
                    .expect("kubectl starts");
                assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
            }
        } else {
            server.namespace(SHIPPED, &[]).expect("a namespace can be made");
        }
        let kubeconfig = server.kubeconfig_for(SHIPPED, SHIPPED).expect("it has a token");
        Self { kubeconfig, ..Self::within(server, SHIPPED) }
    }

    /// Returns one with the rights of the account in this namespace that is called as it is.
    pub(crate) fn of_account(server: &'a Server, name: &str) -> Self {
        let scene = Self::new(server, name);
        Self { kubeconfig: server.kubeconfig_for(name, name).expect("it has a token"), ..scene }
    }

    pub(crate) fn new(server: &'a Server, namespace: &str) -> Self {
        server.namespace(namespace, &[]).expect("a namespace can be made");
        Self::within(server, namespace)
    }

    fn within(server: &'a Server, namespace: &str) -> Self {
        Self {
            server,
            keeper: Keeper::start().expect("it starts"),
            namespace: namespace.to_owned(),
            kubeconfig: server.kubeconfig(),
            folder: tempfile::tempdir().expect("a folder can be made"),
        }
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("ip-ranges.json")
    }

    /// Writes AWS' file with these prefixes of S3.
    pub(crate) fn provide(&self, token: u64, prefixes: &[(&str, &str)]) {
        let row = |(prefix, region): &(&str, &str)| json!({ "ip_prefix": prefix, "region": region, "service": "S3", "network_border_group": region });
        let rows: Vec<Value> = prefixes.iter().map(row).collect();
        let text = json!({ "syncToken": token.to_string(), "prefixes": rows, "ipv6_prefixes": [] });
        let next = self.folder.path().join("next");
        fs::write(&next, text.to_string()).expect("it can be written");
        fs::rename(&next, self.file()).expect("it can be renamed");
    }

    pub(crate) fn start(&self, name: &str, more: &[&str]) -> Controller {
        let log = self.folder.path().join(format!("{name}.log"));
        let address = agent::free_address().expect("there is a port");
        let mut command = Command::new(agent::binary().expect("the agent is built"));
        command.args(["controller", "--namespace", &self.namespace, "--identity", name, "--lease-time", "3"]);
        command.args(["--ranges-every", "1s", "--listen", &address.to_string()]);
        command.arg("--ranges").arg(format!("aws={}", self.file().display()));
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(more);
        command.env("NO_PROXY", "*").stdout(Stdio::null());
        command.stderr(fs::File::create(&log).expect("the folder can be written"));
        let agent = Agent::listening(command, address, &self.keeper).expect("the controller starts");
        until("it tells how it does", || agent.metrics().is_ok());
        Controller { agent: Some(agent), log }
    }

    /// Returns what is published, if all of it is there.
    fn published(&self) -> Option<Published> {
        let mut parts = Parts::new("aws");
        self.objects().into_iter().for_each(|object| parts.put(object));
        parts.together().ok().flatten()
    }

    fn objects(&self) -> Vec<ConfigMap> {
        let path = format!(
            "/api/v1/namespaces/{}/configmaps?labelSelector={}%3Daws",
            self.namespace,
            published::LABEL.replace('/', "%2F")
        );
        let list = self.server.request("GET", &path, "application/json", &Value::Null).expect("it is listed");
        serde_json::from_value(list["items"].clone()).expect("a list of ConfigMaps")
    }

    fn revision(&self) -> Option<u64> {
        self.published().and_then(|published| published.revision()).map(|revision| revision.number())
    }
}

pub(crate) struct Controller {
    agent: Option<Agent>,
    log: PathBuf,
}

impl Controller {
    /// Returns what it answers at a path.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        self.agent.as_ref().expect("it runs").get(path).expect("it answers")
    }

    pub(crate) fn log(&self) -> String {
        read(&self.log)
    }

    pub(crate) fn says(&self, words: &str) -> bool {
        fs::read_to_string(&self.log).expect("there is a log").contains(words)
    }

    pub(crate) fn sum(&self, family: &str, labels: &[(&str, &str)]) -> f64 {
        let agent = self.agent.as_ref().expect("it runs");
        agent.metrics().expect("it tells").sum(family, labels)
    }

    pub(crate) fn end(mut self, keeper: &Keeper) {
        let status = self.agent.take().expect("it runs").terminate(keeper).expect("it ends");
        assert!(status.success(), "{status}: {}", read(&self.log));
    }

    pub(crate) fn kill(mut self, keeper: &Keeper) {
        self.agent.take().expect("it runs").kill(keeper).expect("it is killed");
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.log.display(), read(&self.log));
        }
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| error.to_string())
}

#[track_caller]
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "not after {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

const MANY: [(&str, &str); 3] =
    [("192.0.2.0/24", "us-east-1"), ("198.51.100.0/24", "eu-west-1"), ("203.0.113.0/24", "GLOBAL")];

/// It is published, changes as little as need be, and what looks like an accident changes nothing.
pub(crate) async fn publication(server: &Server) {
    let scene = Scene::new(server, "ranges-publication");
    scene.provide(100, &MANY);
    let one = scene.start("one", &[]);
    until("it is published", || scene.revision() == Some(100));
    let first: Vec<ConfigMap> = scene.objects();
    assert_eq!(first.len(), 4, "a head, and a chunk for each region");
    assert!(first.iter().all(|object| object.immutable == Some(true) || object.binary_data.is_none()));

    scene.provide(200, &[MANY[0], ("198.51.100.0/25", "eu-west-1"), MANY[2]]);
    until("the change is published", || scene.revision() == Some(200));
    until("it is counted", || {
        one.sum("egress_cloud_ranges_refreshes_total", &[("provider", "aws"), ("result", "published")]) == 2.0
    });
    let names = |objects: &[ConfigMap]| -> Vec<String> {
        objects.iter().filter_map(|object| object.metadata.name.clone()).collect()
    };
    let second = scene.objects();
    assert_eq!(second.len(), 5, "one more chunk, and those of the head before stay: {:?}", names(&second));
    let kept = names(&first);
    let new: Vec<String> = names(&second).into_iter().filter(|name| !kept.contains(name)).collect();
    assert_eq!(new.len(), 1, "one prefix is one chunk: {new:?}");

    // Somebody takes a part away.
    let head = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "namespace": scene.namespace, "name": published::head_name("aws") },
    });
    server.delete(&head).expect("it can be deleted");
    until("it is published again", || scene.revision() == Some(200));

    scene.provide(150, &MANY);
    until("an older file is refused", || one.says("older"));
    fs::write(scene.file(), "{\"syncToken\": \"300\", \"prefixes\": [").expect("it can be written");
    until("a cut one is refused", || one.says("ends too early"));
    scene.provide(400, &[]);
    until("an empty one is refused", || one.says("there is no prefix in it"));
    let became =
        |result| one.sum("egress_cloud_ranges_refreshes_total", &[("provider", "aws"), ("result", result)]);
    assert!(became("refused") >= 1.0 && became("failed") >= 2.0);
    assert_eq!(scene.revision(), Some(200));
    let age = one.sum("egress_cloud_ranges_age_seconds", &[("provider", "aws")]);
    assert!((0.0..120.0).contains(&age), "{age}");

    // The next one begins with what the cluster has, not with what it is told first.
    one.end(&scene.keeper);
    scene.provide(180, &MANY);
    let two = scene.start("two", &[]);
    until("it knows what was published", || two.says("older"));
    assert_eq!(scene.revision(), Some(200));
    scene.provide(500, &MANY);
    until("it goes on", || scene.revision() == Some(500));
    until("what neither head names is gone", || scene.objects().len() <= 6);
    two.end(&scene.keeper);
}

/// Of two installations in one namespace, the second publishes nothing over what the first has.
pub(crate) async fn another(server: &Server) {
    let scene = Scene::new(server, "ranges-another");
    scene.provide(100, &MANY);
    let one = scene.start("one", &[]);
    until("it is published", || scene.revision() == Some(100));
    let two = scene.start("two", &["--lease", "another"]);
    until("the second says why it does not publish", || {
        two.says("published by controller \\\"ranges-another/egress-controller\\\"")
            || two.says("published by controller \"ranges-another/egress-controller\"")
    });
    let refused =
        || two.sum("egress_cloud_ranges_refreshes_total", &[("provider", "aws"), ("result", "refused")]);
    assert!(refused() >= 1.0);
    scene.provide(200, &MANY[..2]);
    until("the first goes on", || scene.revision() == Some(200));
    assert_eq!(
        two.sum("egress_cloud_ranges_refreshes_total", &[("provider", "aws"), ("result", "published")]),
        0.0
    );
    one.end(&scene.keeper);
    two.end(&scene.keeper);
}

/// Of two, one works; when it is killed, the other does.
pub(crate) async fn takeover(server: &Server) {
    let scene = Scene::new(server, "ranges-takeover");
    scene.provide(100, &MANY);
    let one = scene.start("one", &[]);
    until("it is published", || scene.revision() == Some(100));
    let two = scene.start("two", &[]);
    until("the other one waits", || two.says("another controller leads"));
    assert_eq!(
        (one.sum("egress_controller_leader", &[]), two.sum("egress_controller_leader", &[])),
        (1.0, 0.0)
    );
    one.kill(&scene.keeper);
    scene.provide(200, &MANY[..2]);
    until("the other one works", || scene.revision() == Some(200));
    two.end(&scene.keeper);
}
