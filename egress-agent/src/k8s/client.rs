//! The client for the API server, and what is known of the contact with it.

use std::{
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use kube::{
    Client, Config,
    client::{Body as RequestBody, ClientBuilder, DynBody},
    config::{KubeConfigOptions, Kubeconfig},
};
use tower::{BoxError, Layer, Service};

/// A connection on which nothing arrives for so long is dead. The API server sends a bookmark on each watch about once a minute.
const SILENCE: Duration = Duration::from_secs(150);
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);

/// Where the API server is, and who asks.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// A kubeconfig file. Without one: the file `KUBECONFIG` names, the one in the home directory, or the service account of the
    /// pod.
    pub kubeconfig: Option<PathBuf>,
    /// The context in it; without one, its current context.
    pub context: Option<String>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig file cannot be used.
    #[error("kubeconfig {path}: {source}", path = path.display())]
    Kubeconfig {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: kube::config::KubeconfigError,
    },
    /// Nothing says where the API server is.
    #[error(
        "nothing says where the API server is: neither a kubeconfig nor the service account of a pod could be read ({0}); pass --kubeconfig FILE, or --manifests DIR to run without an API server"
    )]
    Nowhere(#[from] kube::config::InferConfigError),
    /// The client cannot be made from what was said.
    #[error("the client for the API server cannot be made: {0}")]
    Client(#[from] kube::Error),
}

/// Returns a client, and what watches its contact. Nothing is sent yet.
///
/// # Errors
///
/// [`ClientError`].
pub async fn connect(access: &Access) -> Result<(Client, Arc<Contact>), ClientError> {
    // One of the two threads that get here first installs it; that another did is as good.
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        drop(rustls::crypto::ring::default_provider().install_default());
    }
    let options = KubeConfigOptions { context: access.context.clone(), ..KubeConfigOptions::default() };
    let mut config = match &access.kubeconfig {
        Some(path) => {
            let failed = |source| ClientError::Kubeconfig { path: path.clone(), source };
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(file, &options).await.map_err(failed)?
        }
        None => Config::infer().await?,
    };
    config.read_timeout = Some(SILENCE);
    config.connect_timeout = Some(CONNECT);
    // Each watch waits and tries again by itself, and says so; a request that is repeated out of sight says nothing for minutes.
    config.default_retry = false;
    let contact = Arc::new(Contact::default());
    let client =
        ClientBuilder::try_from(config)?.with_layer(&CountLayer { contact: Arc::clone(&contact) }).build();
    Ok((client, contact))
}

/// What was heard of the API server.
#[derive(Debug)]
pub struct Contact {
    started: Instant,
    bytes: AtomicU64,
    requests: AtomicU64,
    failures: AtomicU64,
    /// Milliseconds from `started` to the last octet of a good answer, plus one; 0 while there was none.
    heard: AtomicU64,
}

impl Default for Contact {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            bytes: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            heard: AtomicU64::new(0),
        }
    }
}

impl Contact {
    /// Returns how many octets the bodies of answers had.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns how many requests were sent.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Returns how many requests had no answer, or one that says no.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Returns how long ago the API server was heard last; `None` if never.
    #[must_use]
    pub fn silent_for(&self) -> Option<Duration> {
        let heard = self.heard.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.started.elapsed().saturating_sub(Duration::from_millis(heard)))
    }

    fn hear(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.heard.store(millis + 1, Ordering::Relaxed);
    }
}

#[derive(Clone)]
struct CountLayer {
    contact: Arc<Contact>,
}

impl<S> Layer<S> for CountLayer {
    type Service = Count<S>;

    fn layer(&self, inner: S) -> Count<S> {
        Count { inner, contact: Arc::clone(&self.contact) }
    }
}

/// Counts requests and what comes back.
#[derive(Clone)]
struct Count<S> {
    inner: S,
    contact: Arc<Contact>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Counted>, BoxError>> + Send>>;

impl<S> Service<Request<RequestBody>> for Count<S>
where
    S: Service<Request<RequestBody>, Response = Response<Box<DynBody>>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<Counted>;
    type Error = BoxError;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<RequestBody>) -> Answer {
        let contact = Arc::clone(&self.contact);
        contact.requests.fetch_add(1, Ordering::Relaxed);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let good = answer.as_ref().is_ok_and(|answer| answer.status().is_success());
            if good {
                contact.hear();
            } else {
                contact.failures.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer?.map(|body| Counted { body, contact, good }))
        })
    }
}

/// A body whose octets are counted.
struct Counted {
    body: Box<DynBody>,
    contact: Arc<Contact>,
    good: bool,
}

impl Body for Counted {
    type Data = <DynBody as Body>::Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.contact.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
            if self.good {
                self.contact.hear();
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
