//! An API server in this process, for as much of the API as the project uses.
//!
//! It speaks plain HTTP on a loopback address from a thread of its own. It has no admission, no authentication and no
//! controllers. What it does it does as `kube-apiserver` does, which the conformance suite of this crate checks.

mod http;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
};

use super::{
    client,
    counts::{Asked, Count, Counts, Verb},
    faults::Faults,
    kinds::Kind,
    store::{Snapshot, Store},
    write,
};

/// What the thread and its owner share.
#[derive(Debug)]
pub(super) struct Shared {
    store: Mutex<Store>,
    pub(super) faults: Faults,
    pub(super) counts: Counts,
    bookmark_every: Mutex<Duration>,
}

/// The server.
#[derive(Debug)]
pub struct Double {
    shared: Arc<Shared>,
    address: SocketAddr,
    orders: Option<UnboundedSender<Order>>,
    thread: Option<JoinHandle<()>>,
    // Keeps the port while nobody listens on it.
    _port: Socket,
    folder: TempDir,
}

/// Something the thread is to do, and whom to tell when it is done.
#[derive(Debug)]
struct Order {
    listen: bool,
    done: mpsc::Sender<std::io::Result<()>>,
}

impl Shared {
    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().expect("no thread panics with the lock held")
    }

    pub(super) fn bookmark_every(&self) -> Duration {
        *self.bookmark_every.lock().expect("no thread panics with the lock held")
    }
}

impl Double {
    /// Starts a server on 127.0.0.1, with the namespaces that every cluster has.
    ///
    /// # Errors
    ///
    /// When there is no port or no temporary folder.
    pub fn start() -> Result<Self> {
        Self::start_at("127.0.0.1:0".parse().expect("a constant"))
    }

    /// Starts a server on this address; port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// When the address cannot be had, or there is no temporary folder.
    pub fn start_at(address: SocketAddr) -> Result<Self> {
        let port = bound(address).with_context(|| format!("cannot have {address}"))?;
        let address = port
            .local_addr()
            .context("a bound socket has an address")?
            .as_socket()
            .context("it is an IP address")?;
        let shared = Arc::new(Shared {
            store: Mutex::new(Store::new()),
            faults: Faults::default(),
            counts: Counts::default(),
            bookmark_every: Mutex::new(Duration::from_secs(60)),
        });
        let (orders, receiver) = unbounded_channel();
        let served = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("api-double".to_owned())
            .spawn(move || serve(address, &served, receiver))
            .context("cannot start a thread")?;
        let folder =
            tempfile::Builder::new().prefix("egress-api-").tempdir().context("no temporary folder")?;
        let double =
            Self { shared, address, orders: Some(orders), thread: Some(thread), _port: port, folder };
        client::write_kubeconfig(
            &double.kubeconfig(),
            &double.url(),
            None,
            &client::User::Token("double".to_owned()),
        )?;
        let namespaces = ["default", "kube-system", "kube-public", "kube-node-lease"];
        double.load(namespaces.map(|name| {
            serde_json::json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })
        }))?;
        double.resume()?;
        Ok(double)
    }

    /// Returns where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the kubeconfig file for it.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("admin.kubeconfig")
    }

    /// Returns the folder of this server, removed with it.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the faults in force.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Puts objects in place as they are, statuses included, over what is there; returns how many.
    ///
    /// Nothing is checked except that kind and name are there. The watches learn of all of them.
    ///
    /// # Errors
    ///
    /// When an object has no name or a kind the double does not serve; those before it are in place by then.
    pub fn load(&self, objects: impl IntoIterator<Item = Value>) -> Result<usize> {
        let time = write::now();
        let mut count = 0;
        let mut kinds = std::collections::BTreeSet::new();
        let outcome = objects.into_iter().try_for_each(|mut object| {
            let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or("");
            let Some(kind) = Kind::named(text("/apiVersion"), text("/kind")) else {
                bail!("the double does not serve {} {}", text("/apiVersion"), text("/kind"));
            };
            let name = text("/metadata/name").to_owned();
            if name.is_empty() || (kind.facts().namespaced == text("/metadata/namespace").is_empty()) {
                bail!("{kind:?} {name:?}: the name or the namespace is not as it must be");
            }
            let mut store = self.shared.store();
            let metadata = &mut object["metadata"];
            if metadata.get("uid").is_none() {
                metadata["uid"] = write::uid(&store, kind).into();
            }
            if metadata.get("creationTimestamp").is_none() {
                metadata["creationTimestamp"] = time.as_str().into();
            }
            if kind.facts().generation && metadata.get("generation").is_none() {
                metadata["generation"] = 1.into();
            }
            if kind == Kind::Namespace {
                metadata["labels"]["kubernetes.io/metadata.name"] = name.into();
                if object.get("status").is_none() {
                    object["status"] = serde_json::json!({ "phase": "Active" });
                    object["spec"] = serde_json::json!({ "finalizers": ["kubernetes"] });
                }
            }
            let Value::Object(fields) = object else { unreachable!("it has a name") };
            store.put_quietly(kind, fields);
            kinds.insert(kind);
            count += 1;
            Ok(())
        });
        for kind in kinds {
            self.shared.store().wake(kind);
        }
        outcome.map(|()| count)
    }

    /// Removes an object at once, whatever it waits for; returns whether it was there.
    pub fn remove(&self, kind: Kind, namespace: Option<&str>, name: &str) -> bool {
        self.shared.store().remove(kind, &super::store::key(namespace, name)).is_some()
    }

    /// Returns the version of the latest change.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.shared.store().version
    }

    /// Returns how many objects of a kind there are.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        self.shared.store().count(kind)
    }

    /// Forgets the history: watches can start only from now on, and continue tokens are expired.
    pub fn compact(&self) {
        self.shared.store().compact();
    }

    /// Keeps at most so many changes of each kind from now on.
    pub fn keep_history(&self, changes: usize) {
        self.shared.store().keep(changes);
    }

    /// Sets how often watches that start from now on get bookmarks; a minute at first.
    ///
    /// # Panics
    ///
    /// Never: no thread panics with the lock held.
    pub fn bookmark_every(&self, time: Duration) {
        *self.shared.bookmark_every.lock().expect("no thread panics with the lock held") = time;
    }

    /// Returns what there is now, for [`Self::restore`].
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.shared.store().snapshot()
    }

    /// Goes back to a snapshot as after a restore of etcd: versions go backwards, and the history is empty.
    ///
    /// Open connections are not touched; [`Self::stop`] first if they must be gone.
    pub fn restore(&self, snapshot: &Snapshot) {
        self.shared.store().restore(snapshot);
    }

    /// Refuses connections from now on, and drops those that are open.
    ///
    /// # Errors
    ///
    /// When the thread is gone.
    pub fn stop(&self) -> Result<()> {
        self.order(false)
    }

    /// Listens again.
    ///
    /// # Errors
    ///
    /// When the port cannot be had again.
    pub fn resume(&self) -> Result<()> {
        self.order(true)
    }

    fn order(&self, listen: bool) -> Result<()> {
        let (done, answer) = mpsc::channel();
        let orders = self.orders.as_ref().expect("it is there until the drop");
        orders.send(Order { listen, done }).context("the thread of the API double is gone")?;
        answer.recv().context("the thread of the API double is gone")?.context("cannot listen")
    }

    /// Returns the counts of all requests so far, or since [`Self::reset_counts`].
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Asked, Count> {
        self.shared.counts.all()
    }

    /// Counts from zero again; what is open stays counted as open.
    pub fn reset_counts(&self) {
        self.shared.counts.reset();
    }

    /// Returns how many requests there were with this verb for this kind.
    #[must_use]
    pub fn requests(&self, verb: Verb, kind: Kind) -> u64 {
        let counts = self.counts();
        let of_kind = counts.iter().filter(|(asked, _)| asked.verb == verb && asked.kind == kind);
        of_kind.map(|(_, count)| count.requests).sum()
    }

    /// Returns how many bytes of bodies were sent.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.counts().values().map(|count| count.bytes).sum()
    }

    /// Returns the watches that are open, each as often as it is.
    #[must_use]
    pub fn open_watches(&self) -> Vec<Asked> {
        let counts = self.counts().into_iter().filter(|(asked, _)| asked.verb == Verb::Watch);
        counts.flat_map(|(asked, count)| (0..count.open).map(move |_| asked.clone())).collect()
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        // The thread ends when nobody can give orders any more.
        self.orders.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the thread of the API double panicked");
        }
    }
}

/// Takes an address without listening on it. Whoever connects is refused.
fn bound(address: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listener(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = bound(address)?;
    socket.listen(1024)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

/// Serves until nobody can give orders any more.
fn serve(address: SocketAddr, shared: &Arc<Shared>, orders: UnboundedReceiver<Order>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a process can have one more event queue");
    runtime.block_on(accept(address, shared, orders));
}

async fn accept(address: SocketAddr, shared: &Arc<Shared>, mut orders: UnboundedReceiver<Order>) {
    let mut listening: Option<TcpListener> = None;
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            match &listening {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            order = orders.recv() => {
                let Some(Order { listen, done }) = order else { return };
                let outcome = if !listen {
                    listening = None;
                    connections.shutdown().await;
                    Ok(())
                } else if listening.is_some() {
                    Ok(())
                } else {
                    listener(address).map(|listener| listening = Some(listener))
                };
                if done.send(outcome).is_err() {
                    return;
                }
            }
            accepted = next => match accepted {
                Ok((stream, _)) => {
                    let shared = Arc::clone(shared);
                    connections.spawn(async move {
                        let service = service_fn(move |request| http::handle(Arc::clone(&shared), request));
                        // A connection that ends early is the client's affair, or a fault on purpose.
                        if let Err(error) =
                            http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
                            && std::env::var_os("EGRESS_API_TRACE").is_some()
                        {
                            eprintln!("API double: {error}");
                        }
                    });
                }
                Err(error) => {
                    eprintln!("API double: cannot accept: {error}");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}
