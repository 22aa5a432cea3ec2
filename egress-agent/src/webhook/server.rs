//! The HTTPS server the API server asks: limits for everything a client can do, and one place where reviews are judged.

use std::{
    future::Future,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderValue, Request, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::post,
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, error, warn};

use super::{
    Clock,
    metrics::Counts,
    namespaces::Namespaces,
    review::{Answer, Governance, Review, Verdict},
};
use crate::{
    check::Rules,
    telemetry::server::{Connection, Limits as Phases},
};

/// What clients may take of the server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many connections are served at once. Others wait until one ends; those without a request end for them.
    pub connections: usize,
    /// How long the TLS handshake of a connection may take.
    pub handshake: Duration,
    /// How long a client may take to send a request, or to read an answer.
    pub transfer: Duration,
    /// How long a connection may wait for the next request: longer than the API server keeps one that is idle, 90 seconds, so that it
    /// never asks on a connection that is about to be closed.
    pub idle: Duration,
    /// Longest body, in bytes: a ConfigMap of a megabyte, twice, each as JSON within JSON.
    pub body: usize,
    /// Bytes of bodies that are in memory at once. Others wait.
    pub bodies: usize,
    /// How many reviews are judged at once. Others wait.
    pub judged: usize,
    /// How long a review may take, waiting included: less than the API server waits.
    pub review: Duration,
    /// How long to wait for news of a namespace that is not known yet.
    pub news: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            handshake: Duration::from_secs(5),
            transfer: Duration::from_secs(10),
            idle: Duration::from_secs(180),
            body: 6 << 20,
            bodies: 24 << 20,
            judged: std::thread::available_parallelism().map_or(2, usize::from),
            review: Duration::from_secs(4),
            news: Duration::from_secs(1),
        }
    }
}

/// Makes the answer to a review.
type How = dyn Fn(&Review, &Governance, u64) -> Answer + Send + Sync;

/// Judges what is asked.
pub struct Judge {
    rules: Arc<Rules>,
    how: Arc<How>,
    namespaces: Arc<Namespaces>,
    counts: Arc<Counts>,
    limits: Limits,
    clock: Clock,
    /// In KiB.
    memory: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    draining: Arc<AtomicBool>,
}

/// How something ended that is no answer to a review.
struct Refusal {
    status: StatusCode,
    verdict: Verdict,
    sentence: String,
}

impl Refusal {
    fn new(status: StatusCode, verdict: Verdict, sentence: impl Into<String>) -> Self {
        Self { status, verdict, sentence: sentence.into() }
    }
}

impl Judge {
    /// Returns what judges by these rules. Once `draining` is set, each answer ends its connection.
    #[must_use]
    pub fn new(
        rules: Arc<Rules>,
        namespaces: Arc<Namespaces>,
        counts: Arc<Counts>,
        limits: Limits,
        clock: Clock,
        draining: Arc<AtomicBool>,
    ) -> Self {
        let by = Arc::clone(&rules);
        Self {
            rules,
            how: Arc::new(move |review, governance, now| review.judge(&by, governance, now)),
            namespaces,
            counts,
            memory: Arc::new(Semaphore::new(limits.bodies.max(limits.body) >> 10)),
            turns: Arc::new(Semaphore::new(limits.judged)),
            limits,
            clock,
            draining,
        }
    }

    /// Returns the routes.
    pub fn router(self: Arc<Self>) -> Router {
        Router::new().route("/validate", post(validate)).with_state(self)
    }

    /// Answers the body of a request.
    async fn answer<B>(self: &Arc<Self>, request: Request<B>) -> Result<Answer, Refusal>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<axum::BoxError>,
    {
        let deadline = tokio::time::Instant::now() + self.limits.review;
        let late = |what: &str| {
            Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                Verdict::Failed,
                format!("{what} took longer than {:?}; try again", self.limits.review),
            )
        };
        let read = tokio::time::timeout_at(deadline, self.read(request));
        let (body, memory) = read.await.map_err(|_elapsed| late("reading the request"))??;
        let parsed = self.work(deadline, move |_| {
            let review = Review::read(&body).map(Arc::new);
            // What was read is owned by the review, and less than the body.
            drop((body, memory));
            review
        });
        let review = match parsed.await {
            Ok(Ok(review)) => review,
            Ok(Err(error)) => {
                return Err(Refusal::new(StatusCode::BAD_REQUEST, Verdict::Invalid, error.to_string()));
            }
            Err(Unfinished::Late) => return Err(late("reading the review")),
            Err(Unfinished::Broken) => {
                let sentence =
                    "the review cannot be read, because of an error of the webhook; its log says more";
                return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, Verdict::Failed, sentence));
            }
        };
        let mut governance = Governance::default();
        if let Some(namespace) = review.namespace() {
            let Some(annotation) = self.namespaces.annotation(namespace, self.limits.news).await else {
                let why = format!("the webhook has not heard of the namespace {namespace} yet; try again");
                return Ok(review.failed(503, "ServiceUnavailable", &why));
            };
            let (profile, notice) = self.rules.profile(annotation.as_deref());
            governance = Governance { profile, notice };
        }
        let (asked, now) = (Arc::clone(&review), (self.clock)());
        let judged = self.work(deadline, move |judge| (judge.how)(&asked, &governance, now)).await;
        Ok(match judged {
            Ok(answer) => answer,
            Err(Unfinished::Late) => {
                let limit = self.limits.review;
                let why = format!(
                    "it took longer than {limit:?}; try again, or split the policy into several ConfigMaps: their allowed destinations add up"
                );
                review.failed(504, "Timeout", &why)
            }
            Err(Unfinished::Broken) => {
                review.failed(500, "InternalError", "an error of the webhook; its log says more")
            }
        })
    }

    /// Reads a body into memory, when there is room for it.
    async fn read<B>(&self, request: Request<B>) -> Result<(Bytes, OwnedSemaphorePermit), Refusal>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<axum::BoxError>,
    {
        let most = self.limits.body;
        let body = request.into_body();
        let large = || {
            let sentence = format!(
                "the review is larger than {most} bytes; split the policy into several ConfigMaps: their allowed destinations add up"
            );
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, Verdict::Invalid, sentence)
        };
        let hint = body.size_hint();
        // A client that does not say how much it sends may send all that is allowed.
        let length = hint.upper().and_then(|length| usize::try_from(length).ok());
        if hint.lower() > most as u64 {
            return Err(large());
        }
        let kib = u32::try_from(length.unwrap_or(most).min(most).div_ceil(1 << 10)).unwrap_or(u32::MAX);
        let memory = Arc::clone(&self.memory).acquire_many_owned(kib.max(1)).await;
        let memory = memory.expect("nobody closes the semaphore");
        match Limited::new(body, most).collect().await {
            Ok(body) => Ok((body.to_bytes(), memory)),
            Err(error) if error.is::<LengthLimitError>() => Err(large()),
            Err(error) => {
                let sentence = format!("the request ended early: {error}");
                Err(Refusal::new(StatusCode::BAD_REQUEST, Verdict::Invalid, sentence))
            }
        }
    }

    /// Does work on another thread when it is its turn, and no longer waits for it once the deadline has passed.
    async fn work<T: Send + 'static>(
        self: &Arc<Self>,
        deadline: tokio::time::Instant,
        work: impl FnOnce(&Judge) -> T + Send + 'static,
    ) -> Result<T, Unfinished> {
        let turn = Arc::clone(&self.turns).acquire_owned();
        let turn = tokio::time::timeout_at(deadline, turn).await.map_err(|_elapsed| Unfinished::Late)?;
        let turn = turn.expect("nobody closes the semaphore");
        let judge = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || {
            // Held until the work ends, not until somebody stops waiting for it.
            let _turn = turn;
            work(&judge)
        });
        match tokio::time::timeout_at(deadline, task).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(broken)) => {
                error!(error = %broken, "a review could not be judged");
                Err(Unfinished::Broken)
            }
            Err(_elapsed) => Err(Unfinished::Late),
        }
    }
}

/// Why work has no result.
enum Unfinished {
    Late,
    Broken,
}

async fn validate(State(judge): State<Arc<Judge>>, request: Request<Body>) -> Response {
    let began = Instant::now();
    let (verdict, mut response) = match judge.answer(request).await {
        Ok(Answer { body, verdict }) => {
            (verdict, ([(header::CONTENT_TYPE, "application/json")], body).into_response())
        }
        Err(Refusal { status, verdict, sentence }) => {
            debug!(%status, sentence, "a request could not be answered as a review");
            let mut response = (status, format!("{sentence}\n")).into_response();
            // Whoever asks this is no API server, or will ask again.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            (verdict, response)
        }
    };
    if judge.draining.load(Ordering::Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    judge.counts.count(verdict, began.elapsed());
    response
}

/// Serves HTTPS until `stop` completes; then no connection is taken any more, and those there are may end what they have begun,
/// but in no more than `patience`.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    limits: Limits,
    counts: Arc<Counts>,
    stop: impl Future<Output = ()>,
    patience: Duration,
) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(limits.connections));
    let (closing, _) = watch::channel(false);
    let (crowded, _) = watch::channel(());
    let mut stop = pin!(stop);
    loop {
        let accepted = async {
            let (stream, _) = listener.accept().await?;
            Ok::<_, io::Error>((stream, place(&places, &crowded).await))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = &mut stop => break,
        };
        match accepted {
            Ok((stream, place)) => {
                let connection = Serving {
                    acceptor: acceptor.clone(),
                    router: router.clone(),
                    limits,
                    counts: Arc::clone(&counts),
                    closing: closing.subscribe(),
                    crowded: crowded.subscribe(),
                };
                drop(tokio::spawn(connection.run(stream, place)));
            }
            Err(error) => {
                // No descriptors left, or a client that was gone at once. The first gets better only with time.
                warn!(%error, "a connection could not be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    closing.send_replace(true);
    let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
    if timeout(patience, places.acquire_many(all)).await.is_err() {
        warn!(?patience, "connections were still open at the end");
    }
}

/// How long a connection has its place for sure, whoever else waits for one.
const ITS_OWN: Duration = Duration::from_secs(1);

/// Waits for a place. As long as there is none, connections that have no request to answer are told to end: else whoever opens as many as
/// there are places would keep the API server out with a request every three minutes.
async fn place(places: &Arc<Semaphore>, crowded: &watch::Sender<()>) -> OwnedSemaphorePermit {
    loop {
        if let Ok(place) = Arc::clone(places).try_acquire_owned() {
            return place;
        }
        crowded.send_replace(());
        if let Ok(place) = timeout(ITS_OWN, Arc::clone(places).acquire_owned()).await {
            return place.expect("nobody closes the semaphore");
        }
    }
}

/// What a connection needs.
struct Serving {
    acceptor: TlsAcceptor,
    router: Router,
    limits: Limits,
    counts: Arc<Counts>,
    closing: watch::Receiver<bool>,
    /// Changes when somebody waits for a place.
    crowded: watch::Receiver<()>,
}

impl Serving {
    async fn run(mut self, stream: TcpStream, place: OwnedSemaphorePermit) {
        // Answers are written whole; waiting for more to send would only delay them.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "a connection ended at once");
            return;
        }
        let since = Instant::now();
        let stream = match timeout(self.limits.handshake, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.counts.handshake_failed();
                debug!(%error, "a client does not talk TLS as it should, or does not trust the certificate");
                return;
            }
            Err(_elapsed) => {
                self.counts.handshake_failed();
                debug!("a client took too long for TLS");
                return;
            }
        };
        let phases = Phases {
            connections: self.limits.connections,
            request: self.limits.transfer + self.limits.review,
            response: self.limits.transfer,
            idle: self.limits.idle,
        };
        let stream = TokioIo::new(Connection::new(stream, place, phases));
        let mut http = http1::Builder::new();
        // The connection has limits of its own, for whole requests; this is for the head of one.
        http.timer(TokioTimer::new()).header_read_timeout(self.limits.idle).max_buf_size(64 << 10);
        let mut connection = pin!(http.serve_connection(stream, TowerToHyperService::new(self.router)));
        let mut is_closing = *self.closing.borrow_and_update();
        if is_closing {
            connection.as_mut().graceful_shutdown();
        }
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        debug!(%error, "a connection ended badly");
                    }
                    return;
                }
                changed = self.closing.changed(), if !is_closing => {
                    // The sender goes when the server does.
                    is_closing = true;
                    drop(changed);
                    connection.as_mut().graceful_shutdown();
                }
                Ok(()) = self.crowded.changed(), if !is_closing => {
                    if since.elapsed() >= ITS_OWN {
                        // What has begun is still answered.
                        is_closing = true;
                        connection.as_mut().graceful_shutdown();
                    }
                }
            }
        }
    }
}

/// Returns the clock of this machine.
#[must_use]
pub fn wall_clock() -> Clock {
    Arc::new(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

#[cfg(test)]
mod tests;
