use std::sync::atomic::AtomicU64;

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::oneshot,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::*;
use crate::webhook::{
    certificates::{self, Lifetimes, Step, Stored},
    served::Served,
};

const SOON: Duration = Duration::from_secs(10);

/// A server on loopback that knows the namespace `shop`.
struct Server {
    address: std::net::SocketAddr,
    served: Arc<Served>,
    stored: Stored,
    counts: Arc<Counts>,
    namespaces: Arc<Namespaces>,
    draining: Arc<AtomicBool>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

fn stored() -> Stored {
    let names = ["127.0.0.1".to_owned()];
    let now = wall_clock()();
    match certificates::next(None, &names, &Lifetimes::default(), None, now).expect("it can be made") {
        Step::Write { stored, .. } => stored,
        Step::Wait(_) => panic!("there is nothing to wait for"),
    }
}

impl Server {
    async fn start(limits: Limits, how: Option<Arc<How>>) -> Self {
        let (served, stored) = (Arc::new(Served::default()), stored());
        served.load(stored.leaf.as_bytes(), stored.leaf_key.as_bytes()).expect("it fits");
        let namespaces = Arc::new(Namespaces::default());
        namespaces.put("shop", None);
        let (counts, draining) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
        let mut judge = Judge::new(
            Arc::new(Rules::default()),
            Arc::clone(&namespaces),
            Arc::clone(&counts),
            limits,
            wall_clock(),
            Arc::clone(&draining),
        );
        if let Some(how) = how {
            judge.how = how;
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let tls = Arc::new(served.config().expect("TLS can be set up"));
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async { stopped.await.expect("the test stops the server") };
        let (router, counting) = (Arc::new(judge).router(), Arc::clone(&counts));
        let task = tokio::spawn(async move {
            serve(listener, tls, router, limits, counting, stopped, SOON).await;
        });
        Self { address, served, stored, counts, namespaces, draining, stop, task }
    }

    async fn connect(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        for ca in CertificateDer::pem_slice_iter(self.stored.bundle.as_bytes()) {
            roots.add(ca.expect("the bundle is PEM")).expect("a CA can be trusted");
        }
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("there are some")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.address).await.expect("the server listens");
        let name = ServerName::try_from("127.0.0.1").expect("an address");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// Returns the status and the body of the answer to what is sent, and whether the connection stays.
    async fn send(&self, bytes: &[u8]) -> (u16, String, bool) {
        let mut stream = self.connect().await.expect("it is trusted");
        stream.write_all(bytes).await.expect("the server reads");
        answer(&mut stream).await
    }

    async fn post(&self, body: &str) -> (u16, String, bool) {
        self.send(request(body).as_bytes()).await
    }

    async fn stop(self) {
        self.stop.send(()).expect("the server waits for it");
        timeout(SOON, self.task).await.expect("it ends").expect("it does not panic");
    }
}

fn request(body: &str) -> String {
    format!(
        "POST /validate?timeout=5s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn answer(stream: &mut TlsStream<TcpStream>) -> (u16, String, bool) {
    let read = async {
        let mut text = Vec::new();
        let head = loop {
            if let Some(at) = text.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            assert!(
                stream.read_buf(&mut text).await.expect("it can be read") > 0,
                "it ends without an answer"
            );
        };
        let head_text = String::from_utf8(text[..head].to_vec()).expect("a head is text").to_lowercase();
        let length = head_text
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse::<usize>().expect("a length is a number"));
        while text.len() < head + 4 + length {
            assert!(stream.read_buf(&mut text).await.expect("it can be read") > 0, "it is cut off");
        }
        let status = head_text.split(' ').nth(1).expect("a status").parse().expect("a number");
        let body = String::from_utf8(text[head + 4..].to_vec()).expect("a body is text");
        (status, body, !head_text.contains("connection: close"))
    };
    timeout(SOON, read).await.expect("it answers")
}

fn review(namespace: &str, policy: &str) -> String {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u", "kind": { "group": "", "version": "v1", "kind": "ConfigMap" },
            "name": "egress", "namespace": namespace, "operation": "CREATE",
            "object": {
                "metadata": { "name": "egress", "labels": { "egress-controller": "managed" } },
                "data": { "policy.json": policy },
            },
        },
    })
    .to_string()
}

fn response(body: &str) -> Value {
    serde_json::from_str::<Value>(body).expect("an answer is JSON")["response"].clone()
}

const GOOD: &str = r#"{"defaultAction": "deny", "allowedDestinations": []}"#;

#[tokio::test]
async fn reviews_are_answered_one_after_the_other_on_a_connection() {
    let server = Server::start(Limits::default(), None).await;
    let mut stream = server.connect().await.expect("it is trusted");
    for (policy, allowed) in [(GOOD, true), ("{", false), (GOOD, true)] {
        stream.write_all(request(&review("shop", policy)).as_bytes()).await.expect("the server reads");
        let (status, body, stays) = answer(&mut stream).await;
        assert_eq!(
            (status, response(&body)["allowed"].as_bool(), stays),
            (200, Some(allowed), true),
            "{body}"
        );
    }
    assert_eq!((server.counts.of(Verdict::Allowed), server.counts.of(Verdict::Refused)), (2, 1));
    server.stop().await;
}

#[tokio::test]
async fn what_is_no_review_gets_a_sentence_and_the_end_of_its_connection() {
    let limits = Limits { body: 10_000, ..Limits::default() };
    let server = Server::start(limits, None).await;
    for (bytes, status, words) in [
        (request("{"), 400, "this is not an AdmissionReview of admission.k8s.io/v1: "),
        (request(&review("shop", &"x".repeat(10_000))), 413, "larger than 10000 bytes; split the policy"),
        // One that does not say how long it is, and one that lies.
        (
            format!(
                "POST /validate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4e20\r\n{}\r\n0\r\n\r\n",
                "x".repeat(20_000)
            ),
            413,
            "larger than 10000 bytes",
        ),
        (
            "POST /validate HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n".to_owned(),
            413,
            "larger",
        ),
    ] {
        let (told, body, stays) = server.send(bytes.as_bytes()).await;
        assert_eq!((told, stays), (status, false), "{body}");
        assert!(body.contains(words), "{body}");
    }
    assert_eq!(server.send(b"GET /validate HTTP/1.1\r\nHost: x\r\n\r\n").await.0, 405);
    assert_eq!(server.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await.0, 404);
    assert_eq!(server.send(b"\x00\x01\x02\r\n\r\n").await.0, 400);
    assert_eq!(server.counts.of(Verdict::Invalid), 4);
    server.stop().await;
}

#[tokio::test]
async fn clients_that_say_nothing_or_no_tls_are_ended_and_others_served() {
    let limits = Limits {
        connections: 3,
        handshake: Duration::from_millis(200),
        transfer: Duration::from_millis(200),
        review: Duration::from_millis(200),
        idle: Duration::from_millis(600),
        ..Limits::default()
    };
    let server = Server::start(limits, None).await;
    let _silent = TcpStream::connect(server.address).await.expect("the server listens");
    let mut plain = TcpStream::connect(server.address).await.expect("the server listens");
    plain.write_all(b"GET /validate HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("the server reads");
    // The third place goes to one that begins a request and does not end it.
    let mut slow = server.connect().await.expect("it is trusted");
    slow.write_all(b"POST /validate HTTP/1.1\r\nContent-Length: 100\r\n\r\nx")
        .await
        .expect("the server reads");
    let (status, _, _) =
        timeout(SOON, server.post(&review("shop", GOOD))).await.expect("a place becomes free");
    assert_eq!(status, 200);
    let mut rest = Vec::new();
    // It may be cut off without the farewell of TLS.
    let ended = timeout(SOON, slow.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "it is ended");
    let rest = String::from_utf8_lossy(&rest).into_owned();
    assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 503"), "{rest}");
    server.stop().await;
}

#[tokio::test]
async fn who_waits_for_a_place_gets_that_of_one_without_a_request() {
    let server = Server::start(Limits { connections: 2, ..Limits::default() }, None).await;
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut stream = server.connect().await.expect("it is trusted");
        stream.write_all(request(&review("shop", GOOD)).as_bytes()).await.expect("the server reads");
        let (status, _, stays) = answer(&mut stream).await;
        assert_eq!((status, stays), (200, true));
        idle.push(stream);
    }
    let (status, _, _) =
        timeout(SOON, server.post(&review("shop", GOOD))).await.expect("a place becomes free");
    assert_eq!(status, 200);
    let mut rest = Vec::new();
    let ended = timeout(SOON, idle[0].read_to_end(&mut rest)).await;
    assert!(ended.is_ok() && rest.is_empty(), "it is ended between requests: {rest:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_review_that_takes_too_long_is_refused_and_others_go_on() {
    let busy = Arc::new(AtomicU64::new(0));
    let counting = Arc::clone(&busy);
    let how: Arc<How> = Arc::new(move |review, governance, now| {
        if review.namespace() == Some("slow") {
            counting.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(900));
        }
        review.judge(&Rules::default(), governance, now)
    });
    let limits = Limits { review: Duration::from_millis(300), judged: 2, ..Limits::default() };
    let server = Server::start(limits, Some(how)).await;
    server.namespaces.put("slow", None);
    let slow = review("slow", GOOD);
    let (one, two, third) = tokio::join!(server.post(&slow), server.post(&slow), server.post(&slow));
    for (status, body, _) in [one, two, third] {
        if status == 503 {
            // It never had its turn, not even to be read.
            assert!(body.contains("took longer than 300ms"), "{body}");
            continue;
        }
        let response = response(&body);
        assert_eq!(
            (response["allowed"].as_bool(), response["status"]["code"].as_u64()),
            (Some(false), Some(504))
        );
        let told = response["status"]["message"].as_str().expect("there is a message");
        assert!(told.starts_with("Policy could not be validated: it took longer than 300ms"), "{told}");
    }
    assert_eq!(busy.load(Ordering::Relaxed), 2, "no more at once than there are turns");
    // Turns come back when the work ends, not when somebody stops waiting.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(response(&server.post(&review("shop", GOOD)).await.1)["allowed"], true);
    assert_eq!(server.counts.of(Verdict::Failed), 3);
    server.stop().await;
}

#[tokio::test]
async fn a_panic_is_a_refusal_and_no_more() {
    let how: Arc<How> = Arc::new(|review, governance, now| {
        assert_ne!(review.namespace(), Some("cursed"), "a policy that breaks the judge");
        review.judge(&Rules::default(), governance, now)
    });
    let server = Server::start(Limits::default(), Some(how)).await;
    server.namespaces.put("cursed", None);
    for _ in 0..10 {
        let response = response(&server.post(&review("cursed", GOOD)).await.1);
        assert_eq!(
            (response["allowed"].as_bool(), response["status"]["code"].as_u64()),
            (Some(false), Some(500))
        );
        assert_eq!(
            response["status"]["message"],
            "Policy could not be validated: an error of the webhook; its log says more"
        );
    }
    assert_eq!(response(&server.post(&review("shop", GOOD)).await.1)["allowed"], true);
    server.stop().await;
}

#[tokio::test]
async fn a_namespace_nobody_has_heard_of_is_waited_for_and_then_refused() {
    let limits = Limits { news: Duration::from_millis(300), ..Limits::default() };
    let server = Server::start(limits, None).await;
    let response_of = |body: String| response(&body);
    let unknown = response_of(server.post(&review("new", GOOD)).await.1);
    assert_eq!(unknown["allowed"], false);
    assert_eq!(
        unknown["status"]["message"],
        "Policy could not be validated: the webhook has not heard of the namespace new yet; try again"
    );
    let body = review("new", GOOD);
    let (known, ()) = tokio::join!(server.post(&body), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        server.namespaces.put("new", Some("required"));
    });
    let known = response_of(known.1);
    assert_eq!(known["auditAnnotations"]["governance"], "required", "{known}");
    server.stop().await;
}

#[tokio::test]
async fn another_certificate_is_shown_to_the_next_connection() {
    let mut server = Server::start(Limits::default(), None).await;
    let mut old = server.connect().await.expect("it is trusted");
    let new = stored();
    assert!(server.served.load(new.leaf.as_bytes(), new.leaf_key.as_bytes()).expect("it fits"));
    server.connect().await.expect_err("the CA of before did not sign it");
    assert_eq!(server.stored.leaf_key.len(), new.leaf_key.len());
    server.stored = new;
    assert_eq!(server.post(&review("shop", GOOD)).await.0, 200);
    // A connection that is there stays.
    old.write_all(request(&review("shop", GOOD)).as_bytes()).await.expect("the server reads");
    assert_eq!(answer(&mut old).await.0, 200);
    server.stop().await;
}

#[tokio::test]
async fn the_end_loses_no_review_that_has_begun() {
    let how: Arc<How> = Arc::new(|review, governance, now| {
        std::thread::sleep(Duration::from_millis(300));
        review.judge(&Rules::default(), governance, now)
    });
    let server = Server::start(Limits::default(), Some(how)).await;
    let mut idle = server.connect().await.expect("it is trusted");
    let mut busy = server.connect().await.expect("it is trusted");
    busy.write_all(request(&review("shop", GOOD)).as_bytes()).await.expect("the server reads");
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.draining.store(true, Ordering::Relaxed);
    let reading = tokio::spawn(async move { answer(&mut busy).await });
    let address = server.address;
    server.stop().await;
    let (status, body, stays) = reading.await.expect("it does not panic");
    assert_eq!((status, stays), (200, false), "{body}");
    assert_eq!(idle.read(&mut [0; 16]).await.unwrap_or(0), 0, "nobody waits for one that is idle");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}
