//! Talking to an API server from tests that are not async.

use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::mpsc,
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use http::Request;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::{runtime::Handle, sync::oneshot};

/// A thread with a runtime, for as long as this lives.
#[derive(Debug)]
pub struct Worker {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// How a kubeconfig file says who one is.
#[derive(Clone, Debug)]
pub(super) enum User {
    Token(String),
    Certificate { certificate: PathBuf, key: PathBuf },
}

impl Worker {
    /// Starts one.
    ///
    /// # Errors
    ///
    /// When there is no thread or event queue to be had.
    pub fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot make an event queue")?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new()
            .name("api-worker".to_owned())
            .spawn(move || {
                // It ends when the sender is used or dropped, which is the same here.
                if runtime.block_on(stopped).is_err() {
                    eprintln!("an API worker was not stopped as it should be");
                }
            })
            .context("cannot start a thread")?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Runs something on the thread and waits for what comes of it.
    ///
    /// # Panics
    ///
    /// When it panics.
    pub fn wait<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        let (sender, receiver) = mpsc::channel();
        self.handle.spawn(async move {
            let outcome = future.await;
            sender.send(outcome).expect("the caller waits");
        });
        receiver.recv().expect("what runs on the worker does not panic")
    }

    /// Returns the client that a kubeconfig file describes. It works as long as the worker lives, in any runtime.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or says something else.
    pub fn client(&self, kubeconfig: &Path) -> Result<Client> {
        let read = Kubeconfig::read_from(kubeconfig)
            .with_context(|| format!("cannot read {}", kubeconfig.display()))?;
        self.wait(async move {
            let options = KubeConfigOptions::default();
            let mut config = Config::from_custom_kubeconfig(read, &options).await?;
            // Everything is on this machine, whatever the environment says about proxies.
            config.proxy_url = None;
            // Tests see the first answer.
            config.default_retry = false;
            Client::try_from(config).context("cannot make a client")
        })
    }

    /// Sends a request with a JSON body and returns the JSON of the answer.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached, or refuses.
    pub fn request(
        &self,
        client: &Client,
        method: &str,
        path: &str,
        sort: &str,
        body: &Value,
    ) -> Result<Value, kube::Error> {
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::builder().method(method).uri(path).header("content-type", sort).body(bytes);
        let request = request
            .map_err(|error| kube::Error::BuildRequest(kube::core::request::Error::BuildRequest(error)))?;
        let client = client.clone();
        self.wait(async move { client.request::<Value>(request).await })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take()
            && stop.send(()).is_err()
        {
            eprintln!("an API worker is gone already");
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("an API worker panicked");
        }
    }
}

/// Writes a kubeconfig file that only its owner can read.
pub(super) fn write_kubeconfig(path: &Path, url: &str, ca: Option<&Path>, user: &User) -> Result<()> {
    let mut cluster = json!({ "server": url });
    if let Some(ca) = ca {
        cluster["certificate-authority"] = ca.display().to_string().into();
    }
    let user = match user {
        User::Token(token) => json!({ "token": token }),
        User::Certificate { certificate, key } => json!({
            "client-certificate": certificate.display().to_string(), "client-key": key.display().to_string(),
        }),
    };
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{ "name": "test", "cluster": cluster }],
        "users": [{ "name": "test", "user": user }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
    });
    let text = serde_json::to_string_pretty(&config).context("a JSON value can be written")?;
    write_private(path, text.as_bytes())
}

pub(super) fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot make {}", path.display()))?;
    file.write_all(bytes).with_context(|| format!("cannot write {}", path.display()))
}
