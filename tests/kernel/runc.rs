//! Real containers: `runc` makes them where kubelet and containerd would, and the agent holds them to their pod's policy.

use std::{
    ffi::CStr,
    fs,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use egress_agent::kernel::cgroup;
use egress_tests::lab::{
    self, Driver, Host, Lab, Qos,
    agent::{self, Agent},
    at,
    wire::Outcome,
};
use serde_json::{Value, json};

/// How long anything may take. Debug builds on busy machines are slow.
const LIMIT: Duration = Duration::from_secs(30);
/// A refusal is an error of the call itself, so it comes long before a connection attempt would time out.
const AT_ONCE: f64 = 250.0;

const GOOD: &str = "192.0.2.10:443";
const BAD: &str = "198.51.100.7:443";

const WEB: &str = "01234567-89ab-cdef-0123-456789abcdef";
const AGENT: &str = "fedcba98-7654-3210-fedc-ba9876543210";
const NEXT_AGENT: &str = "fedcba98-7654-3210-fedc-ba9876543211";

/// What `deploy/base/daemonset.yaml` adds after dropping everything.
const CAPABILITIES: [&str; 3] = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"];

/// Returns whether containers can be made here; says so if not.
fn has_runc() -> bool {
    let runs = Command::new("runc").arg("--version").stdout(Stdio::null()).status();
    if runs.is_ok_and(|status| status.success()) {
        return true;
    }
    // The harness would swallow what `println!` says.
    io::stdout()
        .write_all(b"\nSKIPPED runc: no runc in PATH; install it with `apt-get install --yes runc`\n")
        .expect("standard output is open");
    false
}

/// A node: a lab with servers outside, manifests, and a container runtime.
struct Node {
    /// Holds the network namespace of the pod, as a sandbox does.
    sandbox: Arc<Host>,
    manifests: PathBuf,
    pins: PathBuf,
    binary: PathBuf,
    driver: Driver,
    lab: Lab,
}

/// A container with a `podrun` that does what it is asked to.
struct Container {
    id: String,
    /// What runs first in it.
    init: Host,
}

impl Node {
    fn new(driver: Driver) -> Self {
        let binary = agent::binary().unwrap_or_else(|error| panic!("{error:#}"));
        let lab = Lab::new(driver).unwrap_or_else(|error| panic!("{error:#}"));
        let outside = |addresses: &[&str]| lab.outside(addresses).unwrap_or_else(|error| panic!("{error:#}"));
        let out = outside(&["192.0.2.10", "198.51.100.7"]);
        for server in [GOOD, BAD] {
            out.serve_tcp(at(server));
        }
        let sandbox = outside(&["10.244.0.5"]);
        let pins = lab.bpffs().unwrap_or_else(|error| panic!("{error:#}")).join("egress-agent");
        let manifests = lab.folder.join("manifests");
        for folder in [&manifests, &lab.folder.join("bundles")] {
            fs::create_dir(folder).expect("the lab's folder can be written");
        }
        let node = Self { sandbox, manifests, pins, binary, driver, lab };
        node.write(
            "pods.yaml",
            &format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n---\n\
                 apiVersion: v1\nkind: Namespace\nmetadata: {{name: egress-agent}}\n---\n\
                 apiVersion: v1\nkind: Pod\nmetadata: {{namespace: shop, name: web, uid: {WEB}}}\n\
                 status: {{phase: Running, podIPs: [{{ip: 10.244.0.5}}]}}\n---\n\
                 apiVersion: v1\nkind: Pod\nmetadata: {{namespace: egress-agent, name: agent, uid: {AGENT}}}\n\
                 spec: {{hostNetwork: true, containers: []}}\nstatus: {{phase: Running}}\n"
            ),
        );
        node.allow("192.0.2.0/24");
        node
    }

    /// Puts a manifest there in one step.
    fn write(&self, name: &str, text: &str) {
        let hidden = self.manifests.join(format!(".{name}"));
        fs::write(&hidden, text).expect("the lab's folder can be written");
        fs::rename(&hidden, self.manifests.join(name)).expect("the lab's folder can be written");
    }

    /// Puts a policy there that denies by default and allows one destination.
    fn allow(&self, cidr: &str) {
        let text = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  namespace: shop\n  name: policy\n  \
             labels: {{egress-controller: managed}}\ndata:\n  policy.json: '{{\"defaultAction\": \"deny\", \
             \"allowedDestinations\": [{{\"name\": \"good\", \"cidr\": \"{cidr}\"}}]}}'\n"
        );
        self.write("policy.yaml", &text);
    }

    /// Makes the cgroup of a pod, as kubelet does, and returns it.
    fn pod(&self, uid: &str, qos: Qos) -> PathBuf {
        let (pod, container) = self.lab.pod_cgroup(uid, qos).unwrap_or_else(|error| panic!("{error:#}"));
        // Making that one is the runtime's part.
        fs::remove_dir(container).expect("nobody is in it yet");
        pod
    }

    /// The cgroup of a container as runc wants to be told: from the root of the hierarchy.
    fn cgroup_of(&self, pod: &Path, id: &str) -> PathBuf {
        let mount = cgroup::hierarchy().expect("the lab has found it");
        let inside = Path::new("/").join(pod.strip_prefix(mount).expect("the pod is in the hierarchy"));
        inside.join(match self.driver {
            Driver::Cgroupfs => id.to_owned(),
            Driver::Systemd => format!("cri-containerd-{id}.scope"),
        })
    }

    /// Returns a command of runc, which finds cgroup v2 where a node has it.
    fn runc(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.lab.folder.join("runc"));
        own_cgroup_mount(&mut command);
        command
    }

    /// Writes a bundle and returns it: the machine's programs and libraries read-only, and what `changes` adds.
    fn bundle(&self, id: &str, cgroup: &Path, mut mounts: Vec<Value>, changes: &[(&str, Value)]) -> PathBuf {
        let bundle = self.lab.folder.join("bundles").join(id);
        let root = bundle.join("rootfs");
        fs::create_dir_all(&root).expect("the lab's folder can be written");
        let mut all = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}),
            json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}),
            // As in Kubernetes, the container sees its own cgroup as the root.
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}),
        ];
        for folder in ["/usr", "/lib", "/lib64"].into_iter().filter(|folder| Path::new(folder).exists()) {
            all.push(bind(folder, folder, &["ro"]));
        }
        all.append(&mut mounts);
        let mut config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": [],
                "env": ["PATH=/usr/sbin:/usr/bin"],
                "cwd": "/",
                "noNewPrivileges": true,
                "capabilities": {"bounding": [], "effective": [], "permitted": []},
            },
            "root": {"path": root, "readonly": true},
            "mounts": all,
            "linux": {
                "cgroupsPath": cgroup,
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}],
            },
        });
        for (pointer, value) in changes {
            *config.pointer_mut(pointer).expect("changes are made to what is there") = value.clone();
        }
        fs::write(bundle.join("config.json"), config.to_string()).expect("the lab's folder can be written");
        bundle
    }

    /// Runs a container of the pod, in the pod's network.
    fn container(&self, pod: &Path, id: &str) -> Container {
        let cgroup = self.cgroup_of(pod, id);
        let program = lab::program("podrun").unwrap_or_else(|error| panic!("{error:#}"));
        let network = format!("/proc/{}/ns/net", self.sandbox.pid);
        let namespaces = json!([
            {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"},
            {"type": "network", "path": network},
        ]);
        let bundle = self.bundle(
            id,
            &cgroup,
            vec![bind(program.to_str().expect("the path is text"), "/podrun", &["ro"])],
            &[("/process/args", json!(["/podrun", "host", "shared"])), ("/linux/namespaces", namespaces)],
        );
        let mut command = self.runc();
        command.arg("run").arg("--pid-file").arg(bundle.join("pid")).arg("--bundle").arg(&bundle).arg(id);
        let init = self.speaking(command, &bundle.join("pid"), &cgroup);
        Container { id: id.to_owned(), init }
    }

    /// Runs a process in a container that runs already, as `kubectl exec` does.
    fn exec(&self, container: &Container, pod: &Path) -> Host {
        let pid = self.lab.folder.join("bundles").join(&container.id).join("exec");
        let mut command = self.runc();
        command
            .arg("exec")
            .arg("--pid-file")
            .arg(&pid)
            .arg(&container.id)
            .args(["/podrun", "host", "shared"]);
        self.speaking(command, &pid, &self.cgroup_of(pod, &container.id))
    }

    /// Starts a command of runc, and makes sure that its process is where it should be, and is ended with the lab.
    fn speaking(&self, command: Command, pid: &Path, cgroup: &Path) -> Host {
        let host = Host::speaking(command, &self.lab.keeper).unwrap_or_else(|error| panic!("{error:#}"));
        let pid = self.register(pid);
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("the process is there");
        let unified = format!("0::{}", cgroup.display());
        assert!(text.lines().any(|line| line == unified), "process {pid} is not in {unified}:\n{text}");
        host
    }

    /// Has the process whose id runc writes there ended with the lab, and returns the id.
    fn register(&self, file: &Path) -> u32 {
        let deadline = Instant::now() + LIMIT;
        // runc writes it after the process has begun.
        let pid = loop {
            match fs::read_to_string(file).map(|text| text.trim().parse()) {
                Ok(Ok(pid)) => break pid,
                _not_yet if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
                seen => panic!("{}: {seen:?}", file.display()),
            }
        };
        self.lab.keeper.process(pid).unwrap_or_else(|error| panic!("{error:#}"));
        pid
    }

    /// Ends a container and takes it away, its cgroup included.
    fn remove(&self, id: &str) {
        let output = self.runc().args(["delete", "--force", id]).output().expect("runc starts");
        assert!(output.status.success(), "runc delete: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn path(&self, path: &Path) -> String {
        path.to_str().expect("the lab's paths are text").to_owned()
    }

    fn agent(&self) -> Agent {
        let (manifests, kubepods, pins) =
            (self.path(&self.manifests), self.path(&self.lab.kubepods().path), self.path(&self.pins));
        let arguments = ["--manifests", &manifests, "--kubepods-cgroup", &kubepods, "--pin-dir", &pins];
        let mut agent = Agent::start(&self.binary, &self.lab.keeper, &arguments)
            .unwrap_or_else(|error| panic!("{error:#}"));
        agent.wait_ready(LIMIT).unwrap_or_else(|error| panic!("{error:#}"));
        agent
    }
}

/// Gives a command a mount namespace of its own, in which cgroup v2 is at `/sys/fs/cgroup`, unless it is there anyway.
///
/// On machines that have cgroup v1 as well it is elsewhere, and runc would use v1.
fn own_cgroup_mount(command: &mut Command) {
    const MOUNT: &CStr = c"/sys/fs/cgroup";
    if cgroup::hierarchy().expect("the lab has found it") == Path::new("/sys/fs/cgroup") {
        return;
    }
    let mount = || {
        let check = |result: libc::c_int| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        let none = std::ptr::null();
        // SAFETY: system calls that take numbers and strings that end in zero; nothing is allocated.
        unsafe {
            check(libc::unshare(libc::CLONE_NEWNS))?;
            // What is mounted here stays here.
            let private = libc::MS_REC | libc::MS_PRIVATE;
            check(libc::mount(none, c"/".as_ptr(), none, private, none.cast()))?;
            check(libc::mount(c"cgroup2".as_ptr(), MOUNT.as_ptr(), c"cgroup2".as_ptr(), 0, none.cast()))
        }
    };
    // SAFETY: the closure makes system calls and allocates nothing.
    unsafe { command.pre_exec(mount) };
}

fn bind(source: &str, destination: &str, options: &[&str]) -> Value {
    let mut all = vec!["rbind"];
    all.extend(options);
    json!({"destination": destination, "type": "bind", "source": source, "options": all})
}

/// Checks that a process reaches what its pod may reach, and that the rest is refused by the call itself.
#[track_caller]
fn held(process: &Host, who: &str) {
    assert_eq!(process.connect(at(GOOD)).outcome, Outcome::Ok, "{who} reaches what is allowed");
    let refused = process.connect(at(BAD));
    assert_eq!(refused.outcome, Outcome::NotPermitted, "{who} is refused the rest");
    assert!(refused.millis < AT_ONCE, "{who} is refused at once, not after {} ms", refused.millis);
}

/// Waits until a new connection ends as wanted.
#[track_caller]
fn wait(process: &Host, to: &str, wanted: Outcome) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let seen = process.connect(at(to)).outcome;
        if seen == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{to} is still {seen}, not {wanted}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn containers_are_held_to_their_pods_policy(driver: Driver, qos: Qos) {
    if !has_runc() {
        return;
    }
    let node = Node::new(driver);
    let pod = node.pod(WEB, qos);
    let agent = node.agent();

    let init = node.container(&pod, "init");
    held(&init.init, "the init container");
    node.remove(&init.id);

    let main = node.container(&pod, "main");
    held(&main.init, "the container");
    let sidecar = node.container(&pod, "sidecar");
    held(&sidecar.init, "the sidecar");
    let exec = node.exec(&main, &pod);
    held(&exec, "a process that was started in it later");
    held(&node.exec(&sidecar, &pod), "a process that was started in the sidecar later");
    let metrics = agent.metrics().unwrap_or_else(|error| panic!("{error:#}"));
    let labels = [("namespace", "shop"), ("pod", "web"), ("reason", "default_deny")];
    assert_eq!(metrics.sum("egress_denied_packets_total", &labels), 5.0, "all of them are the pod's");

    node.remove(&main.id);
    held(&sidecar.init, "the sidecar without the container");
    let main = node.container(&pod, "main-again");
    held(&main.init, "the container that was started again");

    agent.kill(&node.lab.keeper).unwrap_or_else(|error| panic!("{error:#}"));
    held(&main.init, "the container without an agent");
    held(&node.exec(&main, &pod), "a process that is started without an agent");
    node.remove(&sidecar.id);
    let sidecar = node.container(&pod, "sidecar-again");
    held(&sidecar.init, "a container that is started again without an agent");

    for container in [main, sidecar] {
        node.remove(&container.id);
    }
    drop((init, exec));
    agent::unload(&node.binary, &node.pins).unwrap_or_else(|error| panic!("{error:#}"));
    node.lab.close().unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn containers_of_a_burstable_pod_under_cgroupfs() {
    containers_are_held_to_their_pods_policy(Driver::Cgroupfs, Qos::Burstable);
}

#[test]
fn containers_of_a_guaranteed_pod_under_cgroupfs() {
    containers_are_held_to_their_pods_policy(Driver::Cgroupfs, Qos::Guaranteed);
}

#[test]
fn containers_of_a_burstable_pod_under_systemd() {
    containers_are_held_to_their_pods_policy(Driver::Systemd, Qos::Burstable);
}

#[test]
fn containers_of_a_guaranteed_pod_under_systemd() {
    containers_are_held_to_their_pods_policy(Driver::Systemd, Qos::Guaranteed);
}

/// The agent in a container with the DaemonSet's privileges and mounts.
struct Caged<'a> {
    node: &'a Node,
    uid: &'static str,
    pod: PathBuf,
    /// The pod's empty folder at `/run/egress-agent`.
    run: PathBuf,
}

impl<'a> Caged<'a> {
    fn new(node: &'a Node, uid: &'static str) -> Self {
        let run = node.lab.folder.join(format!("run-{uid}"));
        fs::create_dir(&run).expect("the lab's folder can be written");
        Self { node, uid, pod: node.pod(uid, Qos::Burstable), run }
    }

    /// Returns the command that runs the agent's binary so.
    fn command(&self, id: &str, arguments: &[&str]) -> Command {
        let node = self.node;
        let bpffs = node.pins.parent().expect("the pins are in a bpffs");
        let mut words = vec!["/egress-agent"];
        words.extend(arguments);
        // Where runc sees the hierarchy; see `own_cgroup_mount`.
        let mounts = vec![
            bind("/sys/fs/cgroup", "/sys/fs/cgroup", &["ro", "rslave"]),
            bind(&node.path(bpffs), "/bpf", &["rslave"]),
            bind(&node.path(&node.manifests), "/manifests", &["ro"]),
            bind(&node.path(&node.binary), "/egress-agent", &["ro"]),
            bind(&node.path(&self.run), "/run/egress-agent", &[]),
        ];
        let capabilities =
            json!({"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES});
        let bundle = node.bundle(
            id,
            &node.cgroup_of(&self.pod, id),
            mounts,
            &[
                ("/process/args", json!(words)),
                ("/process/env", json!([format!("EGRESS_POD_UID={}", self.uid)])),
                ("/process/capabilities", capabilities),
            ],
        );
        let mut command = node.runc();
        command.arg("run").arg("--pid-file").arg(bundle.join("pid")).arg("--bundle").arg(&bundle).arg(id);
        command
    }

    fn agent(&self, id: &str) -> Agent {
        let address = agent::free_address().unwrap_or_else(|error| panic!("{error:#}"));
        let mount = cgroup::hierarchy().expect("the lab has found it");
        let kubepods = self.node.lab.kubepods().path.strip_prefix(mount).expect("it is in the hierarchy");
        let command = self.command(
            id,
            &[
                "agent",
                "--manifests",
                "/manifests",
                "--kubepods-cgroup",
                &self.node.path(kubepods),
                "--pin-dir",
                "/bpf/egress-agent",
                "--listen",
                &address.to_string(),
            ],
        );
        let mut agent = Agent::listening(command, address, &self.node.lab.keeper)
            .unwrap_or_else(|error| panic!("{error:#}"));
        agent.wait_ready(LIMIT).unwrap_or_else(|error| panic!("{error:#}"));
        self.node.register(&self.node.lab.folder.join("bundles").join(id).join("pid"));
        agent
    }
}

#[test]
fn the_agent_needs_no_more_than_the_daemonset_gives_it() {
    if !has_runc() {
        return;
    }
    let node = Node::new(Driver::Systemd);
    let caged = Caged::new(&node, AGENT);
    let web = node.pod(WEB, Qos::Burstable);
    let first = caged.agent("agent");
    let main = node.container(&web, "main");
    held(&main.init, "a container");

    // Killed, and started again in another container of its pod, as kubelet does.
    node.remove("agent");
    held(&main.init, "a container without an agent");
    let second = caged.agent("agent-again");
    held(&main.init, "a container under the next agent");
    let metrics = second.metrics().unwrap_or_else(|error| panic!("{error:#}"));
    let labels = [("namespace", "shop"), ("pod", "web"), ("reason", "default_deny")];
    assert_eq!(metrics.sum("egress_denied_packets_total", &labels), 3.0, "the maps were taken over");
    node.allow("198.51.100.0/24");
    wait(&main.init, BAD, Outcome::Ok);

    // The socket is in the pod's folder, where the container before had left one.
    let status = Command::new(&node.binary).args(["status", "--runtime-dir"]).arg(&caged.run).output();
    let status = status.expect("the agent's binary starts");
    assert_eq!(status.status.code(), Some(0), "{}", String::from_utf8_lossy(&status.stderr));
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("(this agent)"), "{status}");

    node.remove("agent-again");
    drop((first, second));
    let unload = caged.command("unload", &["unload", "--pin-dir", "/bpf/egress-agent"]).output();
    let unload = unload.expect("runc starts");
    assert!(unload.status.success(), "{}", String::from_utf8_lossy(&unload.stderr));
    assert!(!node.pins.exists(), "nothing is left of the pins");
    node.remove(&main.id);
    node.lab.close().unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn the_next_agents_pod_is_let_out_before_anyone_knows_it() {
    if !has_runc() {
        return;
    }
    let node = Node::new(Driver::Systemd);
    let first = Caged::new(&node, AGENT).agent("agent");
    node.remove("agent");
    // The DaemonSet is updated: the next pod has another uid, and the pins are as the first agent left them.
    let next = Caged::new(&node, NEXT_AGENT);
    let probe = node.container(&next.pod, "probe");
    assert_eq!(probe.init.connect(at(GOOD)).outcome, Outcome::NotPermitted, "nobody knows the pod yet");
    let second = next.agent("agent-again");
    let free = |when: &str| {
        for to in [GOOD, BAD] {
            assert_eq!(probe.init.connect(at(to)).outcome, Outcome::Ok, "{to} {when}");
        }
    };
    free("before its manifest is there");

    // No policy closes it either: the agent could not learn that the policy is gone.
    node.write(
        "agent.yaml",
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: egress-agent, name: agent-2, uid: {NEXT_AGENT}}}\n\
             spec: {{hostNetwork: true, containers: []}}\nstatus: {{phase: Running}}\n---\n\
             apiVersion: v1\nkind: ConfigMap\nmetadata:\n  namespace: egress-agent\n  name: closed\n  \
             labels: {{egress-controller: managed}}\ndata:\n  policy.json: '{{\"defaultAction\": \"deny\", \
             \"allowedDestinations\": []}}'\n"
        ),
    );
    // The same change, seen at a pod that it does concern.
    node.allow("198.51.100.0/24");
    let web = node.container(&node.pod(WEB, Qos::Burstable), "main");
    wait(&web.init, BAD, Outcome::Ok);
    free("with a policy that selects it");

    for id in ["agent-again", "probe", "main"] {
        node.remove(id);
    }
    drop((first, second));
    agent::unload(&node.binary, &node.pins).unwrap_or_else(|error| panic!("{error:#}"));
    node.lab.close().unwrap_or_else(|error| panic!("{error:#}"));
}
