//! The HTTP servers: for `/metrics`, `/healthz` and `/readyz`, and for `/status` on this machine.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
    serve::Listener,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};

use super::metrics::{Family, Format};

/// Collects all families for one scrape. It runs on a thread of its own, so it may read kernel maps, and never twice at once.
pub type Collect = Arc<dyn Fn() -> Result<Vec<Family>, CollectError> + Send + Sync>;

/// Why the families could not be collected. Its text becomes the answer to the scrape.
pub type CollectError = Box<dyn std::error::Error + Send + Sync>;

/// Writes what there is to say about the agent, as JSON. It runs on a thread of its own, like [`Collect`], and never twice at once.
pub type Tell = Arc<dyn Fn() -> Result<String, CollectError> + Send + Sync>;

/// Why the server could not be started or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: choose another address for metrics and health if it is in use")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The server ended by itself.
    #[error("the server for metrics and health failed")]
    Serve(#[source] io::Error),
}

/// What a client may take of the server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many connections are served at once. Others wait until one ends.
    pub connections: usize,
    /// How long it may take until the answer begins, from the beginning of the connection or the request's first byte: for
    /// the client to send the request, and for the agent to collect what it asks for.
    pub request: Duration,
    /// How long a client may take to read an answer.
    pub response: Duration,
    /// How long a connection may wait for the next request.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 32,
            request: Duration::from_secs(10),
            response: Duration::from_secs(10),
            // Longer than the usual interval of scrapes, so that Prometheus keeps its connection.
            idle: Duration::from_secs(90),
        }
    }
}

/// Whether the agent lives and is ready.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    /// When [`Health::beat`] was called last, in milliseconds since `started`.
    heartbeat: AtomicU64,
    max_age: Duration,
    /// Why the agent is not ready, by what makes it so. Empty: it is ready.
    causes: Mutex<BTreeMap<&'static str, String>>,
}

/// The cause that keeps a new [`Health`] from being ready.
pub const STARTING: &str = "starting";

impl Health {
    /// Returns the health of an agent that has just started: alive, and not ready until [`STARTING`] is cleared.
    ///
    /// It counts as dead once no heartbeat came for longer than `max_age`.
    #[must_use]
    pub fn new(max_age: Duration) -> Self {
        let causes = BTreeMap::from([(STARTING, "the first state is not enforced yet".to_owned())]);
        Self { started: Instant::now(), heartbeat: AtomicU64::new(0), max_age, causes: Mutex::new(causes) }
    }

    /// Tells that the main loop still turns.
    pub fn beat(&self) {
        self.heartbeat.store(self.millis(), Ordering::Relaxed);
    }

    /// Returns the time since the last heartbeat.
    #[must_use]
    pub fn age(&self) -> Duration {
        Duration::from_millis(self.millis().saturating_sub(self.heartbeat.load(Ordering::Relaxed)))
    }

    /// Says that something keeps the agent from being ready; the same cause again replaces the reason.
    pub fn not_ready(&self, cause: &'static str, reason: impl Into<String>) {
        self.causes().insert(cause, reason.into());
    }

    /// Says that a cause no longer keeps the agent from being ready.
    pub fn clear(&self, cause: &'static str) {
        self.causes().remove(cause);
    }

    /// Returns why the agent is not ready, a line for each cause; none if it is ready.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        self.causes().iter().map(|(cause, reason)| format!("{cause}: {reason}")).collect()
    }

    fn causes(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, String>> {
        // A map of whole entries is right at every moment, also after a panic elsewhere.
        self.causes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).expect("nothing runs for 584 million years")
    }
}

/// Listens on an address.
///
/// # Errors
///
/// If the address cannot be listened on.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}

/// Serves metrics and health until `shutdown` completes and the requests that have begun are answered.
///
/// # Errors
///
/// If the listener fails for good.
pub async fn serve(
    listener: TcpListener,
    collect: Collect,
    health: Arc<Health>,
    limits: Limits,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Error> {
    axum::serve(Limited::new(listener, limits), router(collect, health))
        .with_graceful_shutdown(shutdown)
        .await
        .map_err(Error::Serve)
}

/// Serves the status until `shutdown` completes and the requests that have begun are answered.
///
/// # Errors
///
/// If the listener fails for good.
pub async fn serve_status(
    listener: UnixListener,
    tell: Tell,
    limits: Limits,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Error> {
    let statuses = Statuses { tell, turn: Arc::new(Semaphore::new(1)) };
    let router = Router::new().route("/status", get(status)).with_state(statuses);
    axum::serve(Limited::new(listener, limits), router)
        .with_graceful_shutdown(shutdown)
        .await
        .map_err(Error::Serve)
}

/// Returns the routes.
fn router(collect: Collect, health: Arc<Health>) -> Router {
    let scrapes = Scrapes { collect, turn: Arc::new(Semaphore::new(1)) };
    let metrics = Router::new().route("/metrics", get(metrics)).with_state(scrapes);
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(health)
        .merge(metrics)
}

/// What a scrape needs.
#[derive(Clone)]
struct Scrapes {
    collect: Collect,
    /// Lets one collection run at a time, so that many scrapes do not take many threads.
    turn: Arc<Semaphore>,
}

/// Answers a scrape.
async fn metrics(State(scrapes): State<Scrapes>, headers: HeaderMap) -> Response {
    // A header that is not ASCII names no format that is known here.
    let accept: Vec<_> =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = Format::negotiate(&accept.join(","));
    let collect = scrapes.collect;
    let write = move || collect().map(|families| format.write(&families));
    match in_turn(scrapes.turn, "metrics", write).await {
        Ok(text) => ([(header::CONTENT_TYPE, format.content_type())], text).into_response(),
        Err(failure) => failure,
    }
}

/// What an answer about the status needs.
#[derive(Clone)]
struct Statuses {
    tell: Tell,
    turn: Arc<Semaphore>,
}

/// Answers with the status.
async fn status(State(statuses): State<Statuses>) -> Response {
    let tell = statuses.tell;
    match in_turn(statuses.turn, "the status", move || tell()).await {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(failure) => failure,
    }
}

/// Writes an answer on a thread of its own once those before it are done, or returns the answer that says why it cannot be.
async fn in_turn(
    turn: Arc<Semaphore>,
    what: &'static str,
    write: impl FnOnce() -> Result<String, CollectError> + Send + 'static,
) -> Result<String, Response> {
    let turn = turn.acquire_owned().await.expect("nobody closes the semaphore");
    let written = tokio::task::spawn_blocking(move || {
        // Held here and not by the request: a client that hangs up does not end the collection.
        let _turn = turn;
        write()
    });
    let why = match written.await {
        Ok(Ok(text)) => return Ok(text),
        Ok(Err(error)) => chain(&*error),
        Err(error) => format!("the collection ended early: {error}"),
    };
    tracing::error!(error = why, "{what} cannot be collected");
    Err(failure(StatusCode::INTERNAL_SERVER_ERROR, &format!("{what} cannot be collected: {why}")))
}

/// Answers whether the agent lives.
async fn healthz(State(health): State<Arc<Health>>) -> Response {
    let age = health.age();
    if age <= health.max_age {
        return "ok\n".into_response();
    }
    let reason = format!(
        "the last heartbeat was {:.1} s ago, more than {:.1} s",
        age.as_secs_f64(),
        health.max_age.as_secs_f64()
    );
    failure(StatusCode::SERVICE_UNAVAILABLE, &reason)
}

/// Answers whether the agent is ready.
async fn readyz(State(health): State<Arc<Health>>) -> Response {
    let reasons = health.reasons();
    if reasons.is_empty() {
        return "ok\n".into_response();
    }
    failure(StatusCode::SERVICE_UNAVAILABLE, &reasons.join("\n"))
}

/// Returns an answer that says in plain text what is wrong.
fn failure(status: StatusCode, text: &str) -> Response {
    (status, format!("{text}\n")).into_response()
}

/// Returns an error and what caused it, joined with colons.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A listener that takes no more connections than there are places, and ends slow ones.
struct Limited<L> {
    listener: L,
    places: Arc<Semaphore>,
    limits: Limits,
}

impl<L> Limited<L> {
    fn new(listener: L, limits: Limits) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(limits.connections)), limits }
    }
}

impl<L: Listener> Listener for Limited<L> {
    type Io = Connection<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let place = Arc::clone(&self.places).acquire_owned().await.expect("nobody closes the semaphore");
        // Accepts again after an error, as the trait wants it.
        let (stream, address) = Listener::accept(&mut self.listener).await;
        (Connection::new(stream, place, self.limits), address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// What a connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The rest of a request, and what it asks for.
    Request,
    /// The client to read the answer.
    Response,
    /// The next request.
    Idle,
}

/// A connection that fails when the client is slower than the limits.
///
/// The limit is one for a whole request or answer: a client that sends or reads a byte now and then gains no time.
pub(crate) struct Connection<S> {
    stream: S,
    limits: Limits,
    phase: Phase,
    /// When the phase must have ended.
    deadline: Pin<Box<Sleep>>,
    /// Given back when the connection ends.
    _place: OwnedSemaphorePermit,
}

impl<S> Connection<S> {
    pub(crate) fn new(stream: S, place: OwnedSemaphorePermit, limits: Limits) -> Self {
        let deadline = Box::pin(tokio::time::sleep(limits.request));
        Self { stream, limits, phase: Phase::Request, deadline, _place: place }
    }

    /// Begins a phase.
    fn enter(&mut self, phase: Phase) {
        let limit = match phase {
            Phase::Request => self.limits.request,
            Phase::Response => self.limits.response,
            Phase::Idle => self.limits.idle,
        };
        self.phase = phase;
        self.deadline.as_mut().reset(tokio::time::Instant::now() + limit);
    }

    /// Fails once the phase has lasted too long; otherwise wakes the task when it will have.
    fn in_time<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        ready!(self.deadline.as_mut().poll(context));
        let late = match self.phase {
            Phase::Request => "the request took too long",
            Phase::Response => "the client took too long to read the answer",
            Phase::Idle => "the client sent no further request",
        };
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, late)))
    }

    /// Notes the result of a write.
    fn written(
        &mut self,
        context: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.phase != Phase::Response {
            self.enter(Phase::Response);
        }
        match result {
            Poll::Pending => self.in_time(context),
            done => done,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Pending if self.phase == Phase::Response => Poll::Pending, // Judged where it is written.
            Poll::Pending => self.in_time(context),
            Poll::Ready(Ok(())) if buffer.filled().len() > before => {
                if self.phase == Phase::Idle {
                    self.enter(Phase::Request);
                } else if self.phase == Phase::Request && self.in_time::<()>(context).is_ready() {
                    // Also a client that never lets the stream run dry has an end.
                    return self.in_time(context);
                }
                Poll::Ready(Ok(()))
            }
            done => done,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, buffer);
        self.written(context, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.written(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        // The server flushes when everything it has to say is written.
        if self.phase == Phase::Response {
            self.enter(Phase::Idle);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        sync::oneshot,
        task::JoinHandle,
        time::timeout,
    };

    use super::*;
    use crate::telemetry::metrics::{self, tests::everything};

    const SOON: Duration = Duration::from_secs(5);

    struct Server {
        address: SocketAddr,
        health: Arc<Health>,
        stop: oneshot::Sender<()>,
        task: JoinHandle<Result<(), Error>>,
    }

    impl Server {
        async fn start(collect: Collect, limits: Limits) -> Self {
            let listener =
                listen("127.0.0.1:0".parse().expect("it is an address")).await.expect("a free port");
            let address = listener.local_addr().expect("it is bound");
            let health = Arc::new(Health::new(Duration::from_millis(100)));
            let (stop, stopped) = oneshot::channel::<()>();
            let shutdown = async move { stopped.await.expect("the test stops the server") };
            let task = tokio::spawn(serve(listener, collect, Arc::clone(&health), limits, shutdown));
            Self { address, health, stop, task }
        }

        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.expect("the server listens")
        }

        /// Returns status line, head and body of an answer.
        async fn get(&self, path: &str, headers: &str) -> (String, String, String) {
            let mut stream = self.connect().await;
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
            stream.write_all(request.as_bytes()).await.expect("the server reads");
            let answer = read_all(&mut stream).await;
            let (head, body) = answer.split_once("\r\n\r\n").expect("a head ends with an empty line");
            let (status, head) = head.split_once("\r\n").expect("a head begins with the status");
            (status.to_owned(), head.to_ascii_lowercase(), body.to_owned())
        }

        async fn stop(self) {
            self.stop.send(()).expect("the server waits for it");
            let ended = timeout(SOON, self.task).await.expect("it ends").expect("it does not panic");
            ended.expect("it ends well");
        }
    }

    async fn read_all(stream: &mut TcpStream) -> String {
        let mut answer = Vec::new();
        let read =
            timeout(SOON, stream.read_to_end(&mut answer)).await.expect("the server ends the connection");
        match read {
            Ok(_) => {}
            // Closed with bytes unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("{error}"),
        }
        String::from_utf8(answer).expect("answers are text")
    }

    fn collect() -> Collect {
        Arc::new(|| Ok(everything()))
    }

    #[tokio::test]
    async fn metrics_are_served_in_the_format_asked_for() {
        let server = Server::start(collect(), Limits::default()).await;
        let (status, head, body) = server.get("/metrics", "").await;
        assert_eq!(status, "HTTP/1.1 200 OK");
        assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
        assert_eq!(body, metrics::Format::Classic.write(&everything()));
        let accept =
            "Accept: application/openmetrics-text;version=1.0.0;q=0.8\r\nAccept: text/plain;q=0.5\r\n";
        let (_, head, body) = server.get("/metrics", accept).await;
        assert!(
            head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
            "{head}"
        );
        assert!(body.ends_with("# EOF\n"), "{body}");
        assert_eq!(server.get("/", "").await.0, "HTTP/1.1 404 Not Found");
        server.stop().await;
    }

    #[tokio::test]
    async fn a_collection_that_fails_is_told() {
        let server = Server::start(Arc::new(|| Err("map rules: gone".into())), Limits::default()).await;
        let (status, _, body) = server.get("/metrics", "").await;
        assert_eq!(status, "HTTP/1.1 500 Internal Server Error");
        assert_eq!(body, "metrics cannot be collected: map rules: gone\n");
        server.stop().await;
    }

    #[tokio::test]
    async fn liveness_follows_the_heartbeat() {
        let server = Server::start(collect(), Limits::default()).await;
        assert_eq!(server.get("/healthz", "").await.0, "HTTP/1.1 200 OK");
        tokio::time::sleep(Duration::from_millis(150)).await;
        let (status, _, body) = server.get("/healthz", "").await;
        assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
        assert!(body.starts_with("the last heartbeat was 0."), "{body}");
        server.health.beat();
        assert_eq!(server.get("/healthz", "").await.0, "HTTP/1.1 200 OK");
        server.stop().await;
    }

    #[tokio::test]
    async fn readiness_tells_every_reason() {
        let server = Server::start(collect(), Limits::default()).await;
        let (status, _, body) = server.get("/readyz", "").await;
        assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
        assert!(body.starts_with("starting: "), "{body}");
        server.health.not_ready("map full", "rules");
        server.health.not_ready("api server", "connection refused");
        server.health.clear(STARTING);
        assert_eq!(server.get("/readyz", "").await.2, "api server: connection refused\nmap full: rules\n");
        server.health.clear("map full");
        server.health.clear("api server");
        let (status, head, body) = server.get("/readyz", "").await;
        assert_eq!((status.as_str(), body.as_str()), ("HTTP/1.1 200 OK", "ok\n"));
        assert!(head.contains("content-type: text/plain"), "{head}");
        server.stop().await;
    }

    #[tokio::test]
    async fn a_connection_serves_several_requests() {
        let server =
            Server::start(collect(), Limits { request: Duration::from_millis(100), ..Limits::default() })
                .await;
        let mut stream = server.connect().await;
        for _ in 0..3 {
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("the server reads");
            let mut buffer = [0; 1024];
            let read =
                timeout(SOON, stream.read(&mut buffer)).await.expect("it answers").expect("it answers");
            assert!(buffer[..read].starts_with(b"HTTP/1.1 "), "the connection is still open");
            // Longer than a request may take: between requests another limit holds.
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        server.stop().await;
    }

    #[tokio::test]
    async fn slow_clients_are_ended_and_others_served() {
        let limits = Limits {
            connections: 2,
            request: Duration::from_millis(200),
            idle: Duration::from_millis(100),
            ..Limits::default()
        };
        let server = Server::start(collect(), limits).await;
        let started = Instant::now();
        // One says nothing, the other a byte now and then: together they take every place.
        let mut silent = server.connect().await;
        let slow = server.connect().await;
        let (mut reader, mut writer) = slow.into_split();
        let dribble = tokio::spawn(async move {
            for byte in b"GET /metrics HTTP/1.1\r\nX-Header: abcdefghijklmnopqrstuvwxyz".iter().cycle() {
                if writer.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let (status, _, _) = server.get("/healthz", "").await;
        assert!(status.starts_with("HTTP/1.1 "), "it is served once a place is free");
        let waited = started.elapsed();
        assert!(waited >= Duration::from_millis(150), "both places were taken until then: {waited:?}");
        assert_eq!(read_all(&mut silent).await, "", "it is ended without an answer");
        let mut rest = Vec::new();
        let ended = timeout(SOON, reader.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "bytes now and then gain no time");
        timeout(SOON, dribble).await.expect("its writes fail in the end").expect("it does not panic");

        // And one that asks once and then stays.
        let mut idle = server.connect().await;
        idle.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("the server reads");
        assert!(
            read_all(&mut idle).await.starts_with("HTTP/1.1 503"),
            "it is answered, and ended when it idles"
        );
        server.stop().await;
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_ended() {
        // More than the buffers of both sockets hold.
        let long: String = "x".repeat(16 << 20);
        let collect: Collect = Arc::new(move || Ok(vec![metrics::build_info(&long, "")]));
        let limits = Limits { connections: 1, response: Duration::from_millis(200), ..Limits::default() };
        let server = Server::start(collect, limits).await;
        let mut stream = server.connect().await;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("the server reads");
        let (status, _, _) =
            timeout(SOON, server.get("/healthz", "")).await.expect("the only place becomes free");
        assert!(status.starts_with("HTTP/1.1 "), "{status}");
        server.stop().await;
    }

    #[tokio::test]
    async fn a_request_that_has_begun_is_answered_before_the_end() {
        let slow: Collect = Arc::new(|| {
            std::thread::sleep(Duration::from_millis(200));
            Ok(everything())
        });
        let server = Server::start(slow, Limits::default()).await;
        // An idle connection does not hold up the end.
        let _idle = server.connect().await;
        let mut stream = server.connect().await;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("the server reads");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let reader = tokio::spawn(async move { read_all(&mut stream).await });
        server.stop().await;
        let answer = reader.await.expect("it does not panic");
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("egress_build_info"), "{answer}");
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let taken = listen("127.0.0.1:0".parse().expect("it is an address")).await.expect("a free port");
        let address = taken.local_addr().expect("it is bound");
        let error = listen(address).await.expect_err("it is in use").to_string();
        assert!(error.contains(&address.to_string()), "{error}");
    }
}
