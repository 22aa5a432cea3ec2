//! A laboratory: real processes in pod cgroups and network namespaces of their own.
//!
//! A [`Lab`] has a cgroup laid out as kubelet does it, and a switch: a network namespace with a bridge that every pod and every
//! host outside is joined to. Addresses are on-link everywhere, so an address is reached by whoever owns it, whatever it is.
//! The machine's own network namespace stays untouched, and a [`keeper::Keeper`] removes everything, however the lab ends.

pub mod agent;
pub mod api;
pub mod direct;
pub mod keeper;
pub mod kubelet;
pub mod packet;
pub mod rights;
pub mod terminal;
pub mod wire;

use std::{
    env,
    ffi::CString,
    fs,
    io::{BufRead, BufReader, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, bail};
use egress_agent::kernel::cgroup::{self, Kubepods};

use self::{
    keeper::Keeper,
    wire::{Outcome, Reply, Request, SocketOption},
};

/// How long a connection attempt may take before it counts as timed out.
pub const CONNECT_MILLIS: u64 = 1500;
/// How long an answer may take that must come. Generous, since machines are busy.
pub const ANSWER_MILLIS: u64 = 5000;
/// How long to wait for an answer that must not come.
pub const SILENCE_MILLIS: u64 = 400;

static LABS: AtomicU32 = AtomicU32::new(0);

/// How kubelet names pods' cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// `kubepods/burstable/pod<uid>/<container>`.
    Cgroupfs,
    /// `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/cri-containerd-<container>.scope`.
    Systemd,
}

/// Quality of service of a pod, which decides how deep its cgroup lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// One level below kubepods.
    Guaranteed,
    /// Two levels below.
    Burstable,
    /// Two levels below.
    BestEffort,
}

/// The laboratory.
#[derive(Debug)]
pub struct Lab {
    // First, so that the processes are gone before the rest.
    hosts: Mutex<Vec<Arc<Host>>>,
    /// Removes everything at the end.
    pub keeper: Keeper,
    driver: Driver,
    kubepods: Kubepods,
    switch: OwnedFd,
    /// A folder for files, removed at the end.
    pub folder: PathBuf,
    joined: AtomicU32,
}

/// A pod: its cgroup and, unless it is on the host network, its own network namespace.
#[derive(Debug)]
pub struct Pod {
    /// The process in it.
    pub host: Arc<Host>,
    /// Its uid.
    pub uid: String,
    /// The cgroup of the pod (not of its container).
    pub cgroup: PathBuf,
    /// The cgroup's id.
    pub id: u64,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl std::ops::Deref for Pod {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

/// Returns the path of a program of this crate, which stands beside the running one or a folder above.
///
/// # Errors
///
/// When it is not there.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("cannot tell which program this is")?;
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| {
        format!("{name} is not beside {}: build it with `cargo build -p egress-tests --bins`", own.display())
    })
}

impl Lab {
    /// Makes a lab without anyone in it.
    ///
    /// # Errors
    ///
    /// When something it needs is missing: root, cgroup v2, `ip`, `podrun`.
    pub fn new(driver: Driver) -> Result<Self> {
        let keeper = Keeper::start()?;
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let name = format!("egress-lab-{}-{number}", std::process::id());
        let mount = cgroup::hierarchy()?;
        let top = mount.join(&name);
        keeper.cgroup(&top)?;
        let kubepods = match driver {
            Driver::Cgroupfs => "kubepods",
            Driver::Systemd => "kubepods.slice",
        };
        make_folders(&top.join(kubepods))?;
        let kubepods = cgroup::find_in(&top, 1, None)?;
        let folder = env::temp_dir().join(&name);
        keeper.folder(&folder)?;
        make_folders(&folder)?;
        let switch = new_namespace()?;
        ip(&switch, "link set lo up\nlink add bridge0 type bridge mcast_snooping 0\nlink set bridge0 up\n")?;
        let hosts = Mutex::default();
        Ok(Self { hosts, keeper, driver, kubepods, switch, folder, joined: AtomicU32::new(0) })
    }

    /// The cgroup that holds the pods.
    #[must_use]
    pub fn kubepods(&self) -> &Kubepods {
        &self.kubepods
    }

    /// Mounts a bpffs for this lab alone and returns where.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn bpffs(&self) -> Result<PathBuf> {
        let path = self.folder.join("bpffs");
        self.keeper.mount(&path)?;
        make_folders(&path)?;
        let target =
            CString::new(path.as_os_str().as_bytes()).expect("a temporary folder has no zero in its name");
        // SAFETY: strings that end in zero and live as long as the call.
        let result =
            unsafe { libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null()) };
        if result != 0 {
            return Err(std::io::Error::last_os_error())
                .with_context(|| format!("cannot mount a bpffs at {}", path.display()));
        }
        Ok(path)
    }

    /// Gives the node itself addresses: the ones of the host network.
    ///
    /// # Errors
    ///
    /// When `ip` fails.
    pub fn node_addresses(&self, addresses: &[&str]) -> Result<()> {
        let mut commands = String::new();
        for address in addresses {
            commands.push_str(&address_command(address.parse()?, "bridge0"));
        }
        commands.push_str("route add default dev bridge0\n-6 route add default dev bridge0\n");
        ip(&self.switch, &commands)
    }

    /// Makes a pod's cgroups without anyone in them, and returns the pod's and the container's.
    ///
    /// # Errors
    ///
    /// When a folder cannot be made.
    pub fn pod_cgroup(&self, uid: &str, qos: Qos) -> Result<(PathBuf, PathBuf)> {
        let (class, driver) = match qos {
            Qos::Guaranteed => ("", self.driver),
            Qos::Burstable => ("burstable", self.driver),
            Qos::BestEffort => ("besteffort", self.driver),
        };
        let relative = match (driver, class) {
            (Driver::Cgroupfs, "") => format!("pod{uid}"),
            (Driver::Cgroupfs, class) => format!("{class}/pod{uid}"),
            (Driver::Systemd, "") => format!("kubepods-pod{}.slice", uid.replace('-', "_")),
            (Driver::Systemd, class) => {
                format!("kubepods-{class}.slice/kubepods-{class}-pod{}.slice", uid.replace('-', "_"))
            }
        };
        let pod = self.kubepods.path.join(relative);
        let container = pod.join(match driver {
            Driver::Cgroupfs => "0123456789abcdef",
            Driver::Systemd => "cri-containerd-0123456789abcdef.scope",
        });
        make_folders(&container)?;
        Ok((pod, container))
    }

    /// Starts a pod with a network namespace of its own, which its addresses belong to.
    ///
    /// # Errors
    ///
    /// When something fails on the way.
    pub fn pod(&self, uid: &str, qos: Qos, addresses: &[&str]) -> Result<Pod> {
        let addresses = parse(addresses)?;
        let host = self.host(&addresses)?;
        self.join_pod(host, uid, qos, addresses)
    }

    /// Starts a pod on the host network, as the switch's namespace plays it.
    ///
    /// # Errors
    ///
    /// When something fails on the way.
    pub fn host_network_pod(&self, uid: &str, qos: Qos) -> Result<Pod> {
        let host = Arc::new(Host::start(Some(&self.switch), &self.keeper)?);
        self.hosts.lock().expect("no thread panics with the lock held").push(Arc::clone(&host));
        self.join_pod(host, uid, qos, Vec::new())
    }

    fn join_pod(&self, host: Arc<Host>, uid: &str, qos: Qos, addresses: Vec<IpAddr>) -> Result<Pod> {
        let (cgroup, container) = self.pod_cgroup(uid, qos)?;
        // The namespace is made by now: its kernel sockets stay in the cgroup of before.
        let procs = container.join("cgroup.procs");
        fs::write(&procs, host.pid.to_string())
            .with_context(|| format!("cannot write {}", procs.display()))?;
        let id = fs::metadata(&cgroup).with_context(|| format!("cannot read {}", cgroup.display()))?.ino();
        Ok(Pod { host, uid: uid.to_owned(), cgroup, id, addresses })
    }

    /// Starts a host outside of the cluster, in no pod's cgroup.
    ///
    /// # Errors
    ///
    /// When something fails on the way.
    pub fn outside(&self, addresses: &[&str]) -> Result<Arc<Host>> {
        self.host(&parse(addresses)?)
    }

    fn host(&self, addresses: &[IpAddr]) -> Result<Arc<Host>> {
        let host = Arc::new(Host::start(None, &self.keeper)?);
        self.hosts.lock().expect("no thread panics with the lock held").push(Arc::clone(&host));
        let number = self.joined.fetch_add(1, Ordering::Relaxed);
        let pid = host.pid;
        ip(
            &self.switch,
            &format!(
                "link add port{number} type veth peer name eth0 netns {pid}\n\
                 link set port{number} master bridge0 up\n"
            ),
        )?;
        let path = format!("/proc/{pid}/ns/net");
        let namespace = fs::File::open(&path).with_context(|| format!("cannot open {path}"))?.into();
        let mut commands = "link set lo up\nlink set eth0 up\n".to_owned();
        for address in addresses {
            commands.push_str(&address_command(*address, "eth0"));
        }
        commands.push_str("route add default dev eth0\n-6 route add default dev eth0\n");
        ip(&namespace, &commands)?;
        Ok(host)
    }

    /// Ends everyone in the lab and removes it.
    ///
    /// # Errors
    ///
    /// When something stays behind.
    pub fn close(self) -> Result<()> {
        self.keeper.dismiss()
    }
}

fn parse(addresses: &[&str]) -> Result<Vec<IpAddr>> {
    addresses.iter().map(|text| text.parse().with_context(|| format!("{text} is no address"))).collect()
}

fn make_folders(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
}

fn address_command(address: IpAddr, device: &str) -> String {
    match address {
        IpAddr::V4(v4) => format!("addr add {v4}/32 dev {device}\n"),
        IpAddr::V6(v6) => format!("addr add {v6}/128 dev {device} nodad\n"),
    }
}

/// Makes a network namespace that lasts as long as the descriptor, or something in it.
fn new_namespace() -> Result<OwnedFd> {
    let made = thread::spawn(|| -> std::io::Result<OwnedFd> {
        // SAFETY: a call that takes a number; it changes this thread alone, which ends here.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(fs::File::open("/proc/thread-self/ns/net")?.into())
    });
    made.join().expect("the thread does not panic").context("cannot make a network namespace: are you root?")
}

/// Has a command start in a network namespace.
fn enter(command: &mut Command, namespace: &OwnedFd) {
    let descriptor = namespace.as_raw_fd();
    let join = move || {
        // SAFETY: a system call that takes numbers, safe between fork and exec; the descriptor is open in the caller.
        if unsafe { libc::setns(descriptor, libc::CLONE_NEWNET) } == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(join) };
}

/// Runs commands of iproute2 in a network namespace.
fn ip(namespace: &OwnedFd, commands: &str) -> Result<()> {
    // `-6` may not stand inside a batch, so those commands make a batch of their own.
    for (flags, prefix) in [(&["-batch", "-"][..], None), (&["-6", "-batch", "-"][..], Some("-6 "))] {
        let batch: Vec<&str> = commands
            .lines()
            .filter_map(|line| match prefix {
                None => (!line.starts_with("-6 ")).then_some(line),
                Some(prefix) => line.strip_prefix(prefix),
            })
            .collect();
        if batch.is_empty() {
            continue;
        }
        let mut command = Command::new("ip");
        command.args(flags);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        enter(&mut command, namespace);
        let mut child =
            command.spawn().context("cannot start `ip`; install it with `apt-get install --yes iproute2`")?;
        let mut input = child.stdin.take().expect("stdin is piped");
        input.write_all(batch.join("\n").as_bytes()).context("`ip` does not read its commands")?;
        drop(input);
        let output = child.wait_with_output().context("cannot wait for `ip`")?;
        if !output.status.success() {
            bail!("ip: {}commands:\n{}", String::from_utf8_lossy(&output.stderr), batch.join("\n"));
        }
    }
    Ok(())
}

/// A process that does what it is asked to.
#[derive(Debug)]
pub struct Host {
    /// Its id.
    pub pid: u32,
    child: Mutex<Child>,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Host {
    /// Starts one in a namespace of its own, or in a given one.
    fn start(namespace: Option<&OwnedFd>, keeper: &Keeper) -> Result<Self> {
        let program = program("podrun")?;
        let mut command = Command::new(&program);
        command.args(["host", if namespace.is_some() { "shared" } else { "own" }]);
        if let Some(namespace) = namespace {
            enter(&mut command, namespace);
        }
        Self::speaking(command, keeper)
    }

    /// Starts a command that becomes, or passes its input and output on to, a `podrun host`.
    ///
    /// # Errors
    ///
    /// When it cannot be started, or does not say that it is ready.
    pub fn speaking(mut command: Command, keeper: &Keeper) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let pid = child.id();
        let input = child.stdin.take().expect("stdin is piped");
        let mut output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let host_child = Mutex::new(child);
        let mut line = String::new();
        output.read_line(&mut line).context("podrun is gone")?;
        let host = Self { pid, child: host_child, pipes: Mutex::new((input, output)) };
        if line.trim_end() != "ready" {
            bail!("podrun does not start: {line}");
        }
        keeper.process(pid)?;
        Ok(host)
    }

    /// Asks it to do something and waits for the reply.
    ///
    /// # Panics
    ///
    /// When the process is gone: nothing in a test can go on without it.
    #[must_use]
    pub fn ask(&self, request: &Request) -> Reply {
        let mut pipes = self.pipes.lock().expect("no thread panics with the lock held");
        let (input, output) = &mut *pipes;
        let mut text = serde_json::to_string(request).expect("requests are plain data");
        text.push('\n');
        input.write_all(text.as_bytes()).expect("podrun reads its requests");
        let mut line = String::new();
        output.read_line(&mut line).expect("podrun answers");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("podrun said {line:?}: {error}"))
    }

    /// Connects; see [`Request::Connect`].
    #[must_use]
    pub fn connect(&self, to: SocketAddr) -> Reply {
        self.ask(&Request::Connect { to, mapped: false, options: Vec::new(), millis: CONNECT_MILLIS })
    }

    /// Connects from an IPv6 socket to an IPv4 address.
    #[must_use]
    pub fn connect_mapped(&self, to: SocketAddr) -> Reply {
        self.ask(&Request::Connect { to, mapped: true, options: Vec::new(), millis: CONNECT_MILLIS })
    }

    /// Connects with socket options set.
    #[must_use]
    pub fn connect_with(&self, to: SocketAddr, options: &[SocketOption]) -> Reply {
        self.ask(&Request::Connect { to, mapped: false, options: options.to_vec(), millis: CONNECT_MILLIS })
    }

    /// Exchanges a few bytes on a connection. A refused packet shows as a time-out.
    #[must_use]
    pub fn exchange(&self, id: u64, millis: u64) -> Outcome {
        self.ask(&Request::Exchange { id, bytes: 100, millis }).outcome
    }

    /// Starts an echo server for TCP.
    ///
    /// # Panics
    ///
    /// When it cannot listen.
    pub fn serve_tcp(&self, at: SocketAddr) -> u64 {
        let reply = self.ask(&Request::Listen { at, echo: true });
        assert_eq!(reply.outcome, Outcome::Ok, "listening at {at}");
        reply.id
    }

    /// Starts an echo server for UDP that counts.
    ///
    /// # Panics
    ///
    /// When it cannot be bound.
    pub fn serve_udp(&self, at: SocketAddr) -> u64 {
        let reply =
            self.ask(&Request::Udp { at: Some(at), ipv6: at.is_ipv6(), echo: true, options: Vec::new() });
        assert_eq!(reply.outcome, Outcome::Ok, "serving at {at}");
        reply.id
    }

    /// How many datagrams or connections an echo server has seen.
    #[must_use]
    pub fn served(&self, id: u64) -> u64 {
        self.ask(&Request::Count { id }).count(Outcome::Ok)
    }

    /// Makes a UDP socket; see [`Request::Udp`].
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    pub fn udp(&self, at: Option<SocketAddr>) -> u64 {
        let ipv6 = at.is_some_and(|at| at.is_ipv6());
        let reply = self.ask(&Request::Udp { at, ipv6, echo: false, options: Vec::new() });
        assert_eq!(reply.outcome, Outcome::Ok, "a UDP socket at {at:?}");
        reply.id
    }

    /// Sends a datagram.
    #[must_use]
    pub fn send(&self, id: u64, to: Option<SocketAddr>) -> Outcome {
        self.ask(&Request::Send { id, to }).outcome
    }

    /// Waits for a datagram.
    #[must_use]
    pub fn receive(&self, id: u64, millis: u64) -> Reply {
        self.ask(&Request::Receive { id, millis })
    }

    /// Sends a datagram from a new socket and waits for its echo.
    #[must_use]
    pub fn udp_probe(&self, to: SocketAddr) -> Outcome {
        self.ask(&Request::UdpProbe { to, mapped: false, millis: ANSWER_MILLIS }).outcome
    }

    /// Pings.
    #[must_use]
    pub fn ping(&self, to: IpAddr, millis: u64) -> Outcome {
        self.ask(&Request::Ping { to, millis }).outcome
    }

    /// Sends a packet made by hand.
    #[must_use]
    pub fn raw(&self, packet: &[u8], to: IpAddr) -> Outcome {
        self.ask(&Request::Raw { packet: packet.to_vec(), to }).outcome
    }

    /// Closes a socket, or ends a worker and returns what it counted.
    #[must_use]
    pub fn close(&self, id: u64) -> Reply {
        self.ask(&Request::Close { id })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let mut child = self.child.lock().expect("no thread panics with the lock held");
        // It may have ended by itself.
        if let Err(error) = child.kill().and_then(|()| child.wait()) {
            eprintln!("podrun {}: {error}", self.pid);
        }
    }
}

/// An address and port, from text.
///
/// # Panics
///
/// When the text is no such thing.
#[must_use]
pub fn at(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// An IPv4 address, from text.
///
/// # Panics
///
/// When the text is none.
#[must_use]
pub fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// An IPv6 address, from text.
///
/// # Panics
///
/// When the text is none.
#[must_use]
pub fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}
