//! A real `kube-apiserver` with an `etcd` of its own, both on loopback.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File, Permissions},
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use kube::Client;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::{self, User, Worker};

/// The environment variable that names the folder of the binaries.
pub const VARIABLE: &str = "KUBEBUILDER_ASSETS";
/// Where they are if it names none.
const FOLDER: &str = "/usr/local/kubebuilder/bin";
/// The addresses of Services.
const SERVICES: &str = "10.96.0.0/16,fd00:10:96::/112";
/// How long a program may take to start.
const PATIENCE: Duration = Duration::from_secs(90);

/// The two programs.
#[derive(Clone, Debug)]
pub struct Binaries {
    etcd: PathBuf,
    apiserver: PathBuf,
}

/// How the server is to be run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address the API server listens on; etcd stays on loopback.
    pub address: IpAddr,
    /// Whether pods get a ServiceAccount and need one, which somebody must then create.
    pub service_accounts: bool,
    /// More flags for the API server.
    pub flags: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { address: Ipv4Addr::LOCALHOST.into(), service_accounts: false, flags: Vec::new() }
    }
}

/// A running server.
pub struct Real {
    // Children die with the thread that started them, and that is the worker's.
    children: Mutex<Vec<Running>>,
    worker: Worker,
    client: Client,
    url: String,
    binaries: Binaries,
    arguments: Vec<String>,
    folder: TempDir,
}

#[derive(Debug)]
struct Running {
    name: &'static str,
    child: Child,
}

/// Finds the binaries in the folder that [`VARIABLE`] names or the usual one, etcd also in `PATH`.
///
/// # Errors
///
/// When one of them is missing; the message tells which.
pub fn binaries() -> Result<Binaries> {
    let folder = env::var_os(VARIABLE).map_or_else(|| PathBuf::from(FOLDER), PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let find = |name: &str, elsewhere: &OsStr| {
        let folders = std::iter::once(folder.clone()).chain(env::split_paths(elsewhere));
        let found = folders.map(|folder| folder.join(name)).find(|path| is_program(path));
        found.with_context(|| format!("no {name} in {} ({VARIABLE} names another folder)", folder.display()))
    };
    Ok(Binaries { etcd: find("etcd", &path)?, apiserver: find("kube-apiserver", OsStr::new(""))? })
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn free_port(address: IpAddr) -> Result<u16> {
    let listener = TcpListener::bind((address, 0)).with_context(|| format!("no free port at {address}"))?;
    Ok(listener.local_addr().context("a listener has an address")?.port())
}

impl Real {
    /// Starts etcd and the API server and waits until they are ready.
    ///
    /// # Errors
    ///
    /// When something cannot be started; the message ends with what the program wrote.
    pub fn start(binaries: &Binaries, settings: &Settings) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("egress-api-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .context("no temporary folder")?;
        let pki = Pki::write(folder.path(), settings.address)?;
        let worker = Worker::start()?;
        let etcd_url = format!("http://127.0.0.1:{}", free_port(Ipv4Addr::LOCALHOST.into())?);
        let peer_url = format!("http://127.0.0.1:{}", free_port(Ipv4Addr::LOCALHOST.into())?);
        let etcd = vec![
            "--name=test".to_owned(),
            format!("--data-dir={}", folder.path().join("etcd").display()),
            format!("--listen-client-urls={etcd_url}"),
            format!("--advertise-client-urls={etcd_url}"),
            format!("--listen-peer-urls={peer_url}"),
            format!("--initial-advertise-peer-urls={peer_url}"),
            format!("--initial-cluster=test={peer_url}"),
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        let etcd = spawn(&worker, "etcd", &binaries.etcd, &etcd, folder.path())?;
        let socket = SocketAddr::new(settings.address, free_port(settings.address)?);
        let url = format!("https://{socket}");
        let kubeconfig = folder.path().join("admin.kubeconfig");
        let user =
            User::Certificate { certificate: pki.admin_certificate.clone(), key: pki.admin_key.clone() };
        client::write_kubeconfig(&kubeconfig, &url, Some(&pki.ca), &user)?;
        let client = worker.client(&kubeconfig)?;
        let arguments = arguments(&pki, folder.path(), &etcd_url, socket, settings);
        let real = Self {
            children: Mutex::new(vec![etcd]),
            worker,
            client,
            url,
            binaries: binaries.clone(),
            arguments,
            folder,
        };
        real.until_up("etcd", || healthy(&etcd_url))?;
        real.start_api()?;
        Ok(real)
    }

    /// Starts the API server again after [`Self::stop_api`], and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start_api(&self) -> Result<()> {
        let name = "kube-apiserver";
        let running =
            spawn(&self.worker, name, &self.binaries.apiserver, &self.arguments, self.folder.path())?;
        self.children().push(running);
        self.until_up(name, || {
            let ask = http::Request::get("/readyz").body(Vec::new()).expect("a constant request");
            let client = self.client.clone();
            let answer = self.worker.wait(async move {
                tokio::time::timeout(Duration::from_secs(2), client.request_text(ask)).await
            });
            matches!(answer, Ok(Ok(_)))
        })
    }

    /// Stops the API server and leaves etcd running: an outage, until [`Self::start_api`].
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn stop_api(&self) -> Result<()> {
        let mut children = self.children();
        let place = children.iter().position(|running| running.name == "kube-apiserver");
        let mut running = children.remove(place.context("the API server does not run")?);
        running.kill()
    }

    fn children(&self) -> MutexGuard<'_, Vec<Running>> {
        self.children.lock().expect("no thread panics with the lock held")
    }

    fn until_up(&self, name: &str, up: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !up() {
            for running in self.children().iter_mut() {
                if let Some(status) = running.child.try_wait().context("cannot wait for a child")? {
                    bail!("{} ended with {status}:\n{}", running.name, self.log(running.name)?);
                }
            }
            if Instant::now() >= deadline {
                bail!("{name} is not ready after {PATIENCE:?}:\n{}", self.log(name)?);
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Returns the end of what a program, `etcd` or `kube-apiserver`, wrote.
    ///
    /// # Errors
    ///
    /// When its log cannot be read.
    pub fn log(&self, name: &str) -> Result<String> {
        let path = self.folder.path().join(format!("{name}.log"));
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        Ok(lines[lines.len().saturating_sub(20)..].join("\n"))
    }

    /// Returns its URL.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Returns the file with the certificate that signed the server's.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// Returns the kubeconfig file of an administrator, for kubectl too.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("admin.kubeconfig")
    }

    /// Returns the folder of this server, removed with it.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns a client with an administrator's rights.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Returns a token with the rights of a ServiceAccount, which is created if it is not there.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    pub fn token(&self, namespace: &str, account: &str) -> Result<String> {
        let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        let ask = |path: &str, body: &Value| {
            self.worker.request(&self.client, "POST", path, "application/json", body)
        };
        let body = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": account } });
        match ask(&accounts, &body) {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
            Err(error) => return Err(error).with_context(|| format!("cannot create {namespace}/{account}")),
        }
        self.request_token(namespace, account, &json!({ "expirationSeconds": 7200 }))
    }

    /// Returns a token as kubelet gives it to a pod of a ServiceAccount on a node. The account must be there; the pod is created.
    ///
    /// # Errors
    ///
    /// When the server refuses.
    pub fn token_on(&self, namespace: &str, account: &str, node: &str) -> Result<String> {
        let name = format!("{account}-on-{node}");
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": {
                "serviceAccountName": account, "nodeName": node, "automountServiceAccountToken": false,
                "containers": [{ "name": "main", "image": "example.com/none" }],
            },
        });
        let pods = format!("/api/v1/namespaces/{namespace}/pods");
        let pod = self.worker.request(&self.client, "POST", &pods, "application/json", &pod);
        let pod = pod.with_context(|| format!("cannot create {namespace}/{name}"))?;
        let bound = json!({ "apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod["metadata"]["uid"] });
        self.request_token(namespace, account, &json!({ "expirationSeconds": 7200, "boundObjectRef": bound }))
    }

    fn request_token(&self, namespace: &str, account: &str, spec: &Value) -> Result<String> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let body = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
        let answer = self.worker.request(&self.client, "POST", &path, "application/json", &body);
        let answer = answer.with_context(|| format!("no token for {namespace}/{account}"))?;
        answer["status"]["token"].as_str().map(str::to_owned).context("an answer without a token")
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        // The API server first, so that it does not miss its etcd.
        while let Some(mut running) = self.children().pop() {
            if let Err(error) = running.kill() {
                eprintln!("{error:#}");
            }
        }
    }
}

impl Running {
    /// Ends it at once: a server asked to end would wait for the watches that are open.
    fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        self.child.wait().with_context(|| format!("cannot wait for {}", self.name))?;
        Ok(())
    }
}

fn spawn(
    worker: &Worker,
    name: &'static str,
    program: &Path,
    arguments: &[String],
    folder: &Path,
) -> Result<Running> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join(format!("{name}.log")))
        .with_context(|| format!("no log for {name}"))?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    command.stdout(log.try_clone().context("cannot share a log")?).stderr(log);
    let parent = std::process::id();
    let die_with_parent = move || {
        // SAFETY: system calls that take numbers, safe between fork and exec.
        let alive = unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) == 0
                && u32::try_from(libc::getppid()).is_ok_and(|now| now == parent)
        };
        if alive { Ok(()) } else { Err(std::io::Error::other("the parent is gone")) }
    };
    // SAFETY: the closure makes two system calls and allocates nothing unless it fails.
    unsafe { command.pre_exec(die_with_parent) };
    let child = worker.wait(async move { command.spawn() });
    Ok(Running { name, child: child.with_context(|| format!("cannot start {}", program.display()))? })
}

fn healthy(url: &str) -> bool {
    let ask = || -> std::io::Result<String> {
        let address = url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /health HTTP/1.0\r\nHost: etcd\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    ask().is_ok_and(|text| text.contains("\"health\":\"true\""))
}

fn arguments(pki: &Pki, folder: &Path, etcd: &str, socket: SocketAddr, settings: &Settings) -> Vec<String> {
    let file = |flag: &str, path: &Path| format!("--{flag}={}", path.display());
    let mut arguments = vec![
        format!("--etcd-servers={etcd}"),
        format!("--bind-address={}", socket.ip()),
        format!("--secure-port={}", socket.port()),
        format!("--advertise-address={}", socket.ip()),
        file("tls-cert-file", &pki.server_certificate),
        file("tls-private-key-file", &pki.server_key),
        file("cert-dir", folder),
        file("client-ca-file", &pki.ca),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        file("service-account-key-file", &pki.accounts_public),
        file("service-account-signing-key-file", &pki.accounts_key),
        format!("--service-cluster-ip-range={SERVICES}"),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--profiling=false".to_owned(),
        // An Endpoints object may not hold a loopback address, so the server is kept from trying.
        "--endpoint-reconciler-type=none".to_owned(),
    ];
    if !settings.service_accounts {
        arguments.push("--disable-admission-plugins=ServiceAccount".to_owned());
    }
    arguments.extend(settings.flags.iter().cloned());
    arguments
}

/// Where the keys and certificates are.
#[derive(Debug)]
struct Pki {
    ca: PathBuf,
    server_certificate: PathBuf,
    server_key: PathBuf,
    admin_certificate: PathBuf,
    admin_key: PathBuf,
    accounts_key: PathBuf,
    accounts_public: PathBuf,
}

impl Pki {
    /// Makes everything anew, in a folder that nobody else can read.
    fn write(folder: &Path, address: IpAddr) -> Result<Self> {
        let file = |name: &str| folder.join(name);
        let key = || KeyPair::generate().context("cannot make a key");
        let mut params = named(&[(DnType::CommonName, "egress-agent test CA")], &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, key()?).context("cannot make a CA")?;
        client::write_private(&file("ca.crt"), issuer.pem().as_bytes())?;
        let issue = |name: &str, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose| {
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![usage];
            let key = key()?;
            let certificate = params.signed_by(&key, &issuer).context("cannot sign")?;
            let paths = (file(&format!("{name}.crt")), file(&format!("{name}.key")));
            client::write_private(&paths.0, certificate.pem().as_bytes())?;
            client::write_private(&paths.1, key.serialize_pem().as_bytes())?;
            anyhow::Ok(paths)
        };
        let address = address.to_string();
        let names = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "10.96.0.1",
            "127.0.0.1",
            &address,
        ];
        let server = named(&[(DnType::CommonName, "kube-apiserver")], &names)?;
        let (server_certificate, server_key) = issue("server", server, ExtendedKeyUsagePurpose::ServerAuth)?;
        let admin =
            named(&[(DnType::OrganizationName, "system:masters"), (DnType::CommonName, "admin")], &[])?;
        let (admin_certificate, admin_key) = issue("admin", admin, ExtendedKeyUsagePurpose::ClientAuth)?;
        let accounts = key()?;
        client::write_private(&file("accounts.key"), accounts.serialize_pem().as_bytes())?;
        client::write_private(&file("accounts.pub"), accounts.public_key_pem().as_bytes())?;
        Ok(Self {
            ca: file("ca.crt"),
            server_certificate,
            server_key,
            admin_certificate,
            admin_key,
            accounts_key: file("accounts.key"),
            accounts_public: file("accounts.pub"),
        })
    }
}

fn named(subject: &[(DnType, &str)], names: &[&str]) -> Result<CertificateParams> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).context("bad names for a certificate")?;
    params.distinguished_name = DistinguishedName::new();
    for (sort, value) in subject {
        params.distinguished_name.push(sort.clone(), *value);
    }
    Ok(params)
}
