use std::{collections::HashMap, net::SocketAddr};

use tokio::{net::TcpListener, task::JoinHandle};

use super::*;

/// A server on loopback that gives a fixed answer to each connection in turn, the last one again and again, and keeps what it was asked.
struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
    asked: Arc<std::sync::Mutex<Vec<String>>>,
}

/// A part of an answer: what is sent, and how long to wait then.
type Part = (Vec<u8>, Duration);

impl Server {
    async fn start(answers: Vec<Vec<Part>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
        let kept = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            for turn in 0.. {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let answer = answers[turn.min(answers.len() - 1)].clone();
                let kept = Arc::clone(&kept);
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        if stream.read_buf(&mut request).await.expect("it can be read") == 0 {
                            return;
                        }
                    }
                    let text = String::from_utf8(request).expect("a request is text");
                    kept.lock().expect("nobody panicked").push(text);
                    for (bytes, wait) in answer {
                        // Who has had enough goes away.
                        if stream.write_all(&bytes).await.is_err() {
                            return;
                        }
                        tokio::time::sleep(wait).await;
                    }
                });
            }
        });
        Self { address, task, asked }
    }

    /// Starts one that answers with each of the texts in turn.
    async fn saying(answers: &[&str]) -> Self {
        let part = |answer: &&str| vec![(answer.replace('\n', "\r\n").into_bytes(), Duration::ZERO)];
        Self::start(answers.iter().map(part).collect()).await
    }

    fn url(&self) -> String {
        format!("http://{}/data/ranges.json?x=1", self.address)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("nobody panicked").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Trusts a CA that signs nothing here.
fn roots() -> Roots {
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(vec!["ca.example".to_owned()])
        .and_then(|parameters| parameters.self_signed(&key))
        .expect("a certificate");
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), certificate.pem()).expect("it can be written");
    let (_, path) = file.keep().expect("it is kept");
    Roots::File(path)
}

fn fetcher(limits: Limits) -> Fetcher {
    let roots = roots();
    let fetcher = Fetcher::new(&roots, Proxy::default(), limits).expect("it can be set up");
    if let Roots::File(path) = roots {
        fs::remove_file(path).expect("it is there");
    }
    fetcher.plain_on_loopback()
}

fn quick() -> Limits {
    let (idle, total) = (Duration::from_millis(300), Duration::from_secs(20));
    Limits { bytes: 1000, connect: total, idle, total, redirects: 2 }
}

async fn get(server: &Server, known: Option<&Validators>) -> Result<Answer, String> {
    fetcher(quick()).get(&server.url(), known).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_body_comes_with_what_to_ask_the_next_time() {
    let server = Server::saying(&[
        "HTTP/1.1 200 OK\nETag: \"abc\"\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\nContent-Length: 2\n\nhi",
        "HTTP/1.1 304 Not Modified\nETag: \"abc\"\n\n",
        "HTTP/1.1 304 Not Modified\n\n",
    ])
    .await;
    let validators = Validators {
        etag: Some("\"abc\"".into()),
        last_modified: Some("Wed, 21 Oct 2015 07:28:00 GMT".into()),
    };
    let first = get(&server, None).await;
    assert_eq!(first, Ok(Answer::Body { bytes: b"hi".to_vec(), validators: validators.clone() }));
    assert_eq!(get(&server, Some(&validators)).await, Ok(Answer::NotModified));
    let nothing_known = get(&server, None).await.expect_err("there is nothing to keep");
    assert_eq!(nothing_known, "the server answers 304 Not Modified");
    let asked = server.asked();
    assert!(asked[0].starts_with("GET /data/ranges.json?x=1 HTTP/1.1\r\n"), "{}", asked[0]);
    assert!(!asked[0].contains("if-"), "{}", asked[0]);
    assert!(asked[1].contains("if-none-match: \"abc\"\r\n"), "{}", asked[1]);
    assert!(asked[1].contains("if-modified-since: Wed, 21 Oct 2015 07:28:00 GMT\r\n"), "{}", asked[1]);
}

#[tokio::test]
async fn chunks_are_put_together() {
    let server =
        Server::saying(&["HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2\nhi\n4\n you\n0\n\n"]).await;
    let answer = get(&server, None).await.expect("it is whole");
    assert!(matches!(answer, Answer::Body { bytes, .. } if bytes == b"hi you"));
}

#[tokio::test]
async fn what_is_cut_off_is_no_answer() {
    for answer in [
        "HTTP/1.1 200 OK\nContent-Length: 10\n\nhi",
        "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nhi",
        "HTTP/1.1 200 OK\nContent-Le",
        "",
        "SSH-2.0-OpenSSH_9.9\n",
    ] {
        let server = Server::saying(&[answer]).await;
        let error = fetcher(quick()).get(&server.url(), None).await.expect_err("it is cut off");
        assert!(error.is_transient() && error.to_string().starts_with("the answer is broken: "), "{error}");
    }
    let server = Server::saying(&["HTTP/1.1 200 OK\nConnection: close\n\nhi"]).await;
    assert_eq!(get(&server, None).await, Err("the answer does not say where it ends".into()));
}

#[tokio::test]
async fn what_is_too_large_is_refused_early() {
    let large = "x".repeat(1001);
    let announced = format!("HTTP/1.1 200 OK\nContent-Length: 1001\n\n{large}");
    let streamed = format!("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n3e9\n{large}\n0\n\n");
    for answer in [announced, streamed] {
        let server = Server::saying(&[&answer]).await;
        assert_eq!(get(&server, None).await, Err("the answer has more than 1000 bytes".into()));
    }
}

#[tokio::test]
async fn what_is_slow_is_given_up() {
    let long = Duration::from_secs(60);
    let server = Server::start(vec![vec![(Vec::new(), long)]]).await;
    assert_eq!(get(&server, None).await, Err("the beginning of the answer took longer than 300ms".into()));
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhi".to_vec();
    let server = Server::start(vec![vec![(head.clone(), long)]]).await;
    assert_eq!(get(&server, None).await, Err("the next part of the answer took longer than 300ms".into()));
    // Always a little, so that it is never idle.
    let little = std::iter::repeat_n((b"x".to_vec(), Duration::from_millis(50)), 90);
    let server = Server::start(vec![std::iter::once((head, Duration::ZERO)).chain(little).collect()]).await;
    let limits = Limits { total: Duration::from_millis(500), ..quick() };
    let error = fetcher(limits).get(&server.url(), None).await.expect_err("it is slow");
    assert_eq!(error.to_string(), "the download took longer than 500ms");
    assert!(error.is_transient());
}

#[tokio::test]
async fn redirects_are_followed_up_to_a_limit() {
    let to = |location: &str| format!("HTTP/1.1 302 Found\nLocation: {location}\nContent-Length: 0\n\n");
    let good = "HTTP/1.1 200 OK\nContent-Length: 2\n\nhi";
    let server = Server::saying(&[&to("/other"), &to("more.json"), good]).await;
    assert!(get(&server, None).await.is_ok());
    let paths: Vec<String> =
        server.asked().iter().map(|asked| asked.split(' ').nth(1).expect("a path").to_owned()).collect();
    assert_eq!(paths, ["/data/ranges.json?x=1", "/other", "/more.json"]);

    let server = Server::saying(&[&to("/again")]).await;
    assert_eq!(get(&server, None).await, Err("more than 2 redirects".into()));
    let server = Server::saying(&[&to("http://192.0.2.1/x")]).await;
    assert_eq!(get(&server, None).await, Err("http://192.0.2.1/x: only https is asked".into()));
    let server = Server::saying(&["HTTP/1.1 302 Found\nContent-Length: 0\n\n"]).await;
    assert_eq!(get(&server, None).await, Err("the answer redirects to nowhere".into()));
}

#[test]
fn redirects_do_not_leave_https() {
    let from: Uri = "https://a.example/b/c?d".parse().expect("a URL");
    let to = |location: &str| joined(&from, location).map_err(|error| error.to_string());
    assert_eq!(to("https://e.example/f#g"), Ok("https://e.example/f".into()));
    assert_eq!(to("//e.example/f"), Ok("https://e.example/f".into()));
    assert_eq!(to("/f"), Ok("https://a.example/f".into()));
    assert_eq!(to("f?g"), Ok("https://a.example/b/f?g".into()));
    assert_eq!(to("http://e.example/f"), Err("http://e.example/f: a redirect leads away from https".into()));
    assert_eq!(to("file:///etc/passwd"), Err("file:///etc/passwd: a redirect leads away from https".into()));
}

#[tokio::test]
async fn other_answers_are_told_and_how_long_to_wait() {
    let answer = |head: &str| format!("HTTP/1.1 {head}\nContent-Length: 0\n\n");
    for (head, sentence, transient, wait) in [
        ("404 Not Found", "the server answers 404 Not Found", false, None),
        ("403 Forbidden", "the server answers 403 Forbidden", false, None),
        ("503 Service Unavailable", "the server answers 503 Service Unavailable", true, None),
        (
            "429 Too Many Requests\nRetry-After: 90",
            "the server answers 429 Too Many Requests",
            true,
            Some(90),
        ),
        (
            "429 Too Many Requests\nDate: Wed, 21 Oct 2015 07:28:00 GMT\nRetry-After: Wed, 21 Oct 2015 07:30:00 GMT",
            "the server answers 429 Too Many Requests",
            true,
            Some(120),
        ),
        ("503 Busy\nRetry-After: soon", "the server answers 503 Service Unavailable", true, None),
        ("206 Partial Content", "the server answers 206 Partial Content", false, None),
    ] {
        let server = Server::saying(&[&answer(head)]).await;
        let error = fetcher(quick()).get(&server.url(), None).await.expect_err("there is nothing");
        assert_eq!((error.to_string().as_str(), error.is_transient()), (sentence, transient));
        assert_eq!(error.retry_after(), wait.map(Duration::from_secs), "{head}");
    }
    let server = Server::saying(&["HTTP/1.1 200 OK\nContent-Encoding: gzip\nContent-Length: 2\n\nhi"]).await;
    assert_eq!(get(&server, None).await, Err("the answer is compressed, which was not asked for".into()));
}

#[tokio::test]
async fn only_https_is_asked() {
    let limits = quick();
    let strict = Fetcher { plain_on_loopback: false, ..fetcher(limits) };
    for url in
        ["http://127.0.0.1:1/", "ftp://127.0.0.1/", "/path", "https://user:word@127.0.0.1/", "https://"]
    {
        let error = strict.get(url, None).await.expect_err("it is not asked");
        assert!(matches!(error, FetchError::Url(..)), "{url}: {error}");
    }
    let error = fetcher(limits).get("http://192.0.2.1/", None).await.expect_err("it is not this machine");
    assert!(matches!(error, FetchError::Url(..)), "{error}");
}

#[tokio::test]
async fn who_cannot_be_reached_or_does_not_speak_tls_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    drop(listener);
    let error =
        fetcher(quick()).get(&format!("https://{address}/"), None).await.expect_err("nobody is there");
    assert!(matches!(error, FetchError::Connect { .. }) && error.is_transient(), "{error}");
    let server = Server::saying(&["HTTP/1.1 400 Bad Request\n\n"]).await;
    let listening = format!("https://{}/", server.address);
    let limits = Limits { connect: Duration::from_millis(300), ..quick() };
    let error = fetcher(limits).get(&listening, None).await.expect_err("it waits for the end of a head");
    assert_eq!(error.to_string(), "the connection took longer than 300ms");
}

/// Answers with a certificate of a CA, through a proxy or not.
#[tokio::test]
async fn tls_through_a_proxy() {
    let ca_key = rcgen::KeyPair::generate().expect("a key");
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("no names are good");
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = parameters.self_signed(&ca_key).expect("a CA");
    let issuer = rcgen::Issuer::new(parameters, ca_key);
    let key = rcgen::KeyPair::generate().expect("a key");
    let leaf = rcgen::CertificateParams::new(vec!["ranges.example".to_owned()])
        .and_then(|parameters| parameters.signed_by(&key, &issuer))
        .expect("a certificate");
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("there are some")
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
            )
            .expect("they fit");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut request).await.expect("it can be read") > 0);
            }
            let text = String::from_utf8(request).expect("a request is text");
            let lets_pass = text.contains("Proxy-Authorization: Basic dXNlcjpw\r\n");
            heard.send(text).expect("the test listens");
            if !lets_pass {
                let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n";
                stream.write_all(refusal).await.expect("it can be written");
                continue;
            }
            stream
                .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                .await
                .expect("it can be written");
            // The client does not trust it in one of the cases.
            let Ok(mut tls) = acceptor.accept(stream).await else { continue };
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert!(tls.read_buf(&mut request).await.expect("it can be read") > 0);
            }
            tls.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
                .await
                .expect("it can be written");
            tls.shutdown().await.expect("it can be closed");
        }
    });
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.pem");
    fs::write(&file, ca.pem()).expect("it can be written");
    let through = |user: &str| {
        let variables = HashMap::from([("HTTPS_PROXY".to_owned(), format!("http://{user}{address}"))]);
        Proxy::from_variables(|name| variables.get(name).cloned()).expect("it is a proxy")
    };
    let get = async |roots: Roots, proxy: Proxy, url: &str| {
        let fetcher = Fetcher::new(&roots, proxy, quick()).expect("it can be set up");
        fetcher.get(url, None).await.map_err(|error| error.to_string())
    };
    let url = "https://ranges.example/x";
    let answer = get(Roots::File(file.clone()), through("user:p@"), url).await;
    assert!(matches!(answer, Ok(Answer::Body { bytes, .. }) if bytes == b"hi"));
    let asked = hears.recv().await.expect("it was asked");
    assert!(
        asked.starts_with("CONNECT ranges.example:443 HTTP/1.1\r\nHost: ranges.example:443\r\n"),
        "{asked}"
    );
    assert_eq!(
        get(Roots::File(file.clone()), through(""), url).await,
        Err("the proxy does not connect to ranges.example:443: HTTP/1.1 407 Proxy Authentication Required"
            .into())
    );
    let other = get(Roots::File(file.clone()), through("user:p@"), "https://other.example/").await;
    assert!(other.is_err_and(|error| error.contains("certificate")), "the name is another");
    let untrusted = roots();
    let distrusted = get(untrusted.clone(), through("user:p@"), url).await;
    assert!(distrusted.is_err_and(|error| error.contains("certificate")), "the CA is another");
    if let Roots::File(path) = untrusted {
        fs::remove_file(path).expect("it is there");
    }
    task.abort();
}

#[test]
fn proxies_are_read_from_variables() {
    let of = |list: &[(&str, &str)]| {
        let variables: HashMap<String, String> =
            list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Proxy::from_variables(|name| variables.get(name).cloned())
    };
    assert_eq!(of(&[]).expect("none"), Proxy::default());
    let proxy = of(&[
        ("HTTPS_PROXY", "http://other:1"),
        ("https_proxy", "proxy.example:8080"),
        ("NO_PROXY", " .internal.example, 192.0.2.1,localhost,"),
    ])
    .expect("it is a proxy");
    assert_eq!(proxy.of("a.example"), Some(&("proxy.example".to_owned(), 8080, None)));
    for host in ["internal.example", "A.Internal.Example", "192.0.2.1", "localhost"] {
        assert_eq!(proxy.of(host), None, "{host}");
    }
    assert!(proxy.of("notinternal.example").is_some());
    let all = of(&[("https_proxy", "http://p"), ("no_proxy", "*")]).expect("it is a proxy");
    assert_eq!(all.of("a.example"), None);
    let user = of(&[("https_proxy", "http://us%40er:p%3Aw@[2001:db8::1]")]).expect("it is a proxy");
    let expected = ("2001:db8::1".to_owned(), 3128, Some("Basic dXNAZXI6cDp3".to_owned()));
    assert_eq!(user.of("a.example"), Some(&expected));
    let error =
        of(&[("https_proxy", "socks5://user:secret@p:1")]).expect_err("it is no such proxy").to_string();
    assert_eq!(error, "proxy socks5://p:1: a proxy is spoken to in plain HTTP, write http://");
}

#[test]
fn base64_is_that_of_rfc_4648() {
    for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
        assert_eq!(base64(plain.as_bytes()), coded);
    }
}

#[test]
fn pauses_grow_with_a_random_part() {
    let error = |retry_after: Option<u64>| FetchError::Status {
        status: StatusCode::TOO_MANY_REQUESTS,
        retry_after: retry_after.map(Duration::from_secs),
    };
    let of = |failures, asked, random| pause(failures, &error(asked), random).as_secs_f64();
    assert_eq!(
        [1, 2, 3, 8, 9, u32::MAX].map(|failures| of(failures, None, 0)),
        [5.0, 10.0, 20.0, 640.0, 900.0, 900.0]
    );
    assert_eq!(of(1, None, u32::MAX), 2.5);
    assert_eq!(of(1, Some(90), u32::MAX), 90.0);
    assert_eq!(of(1, Some(u64::MAX), 0), 6.0 * 3600.0);
    assert_eq!(of(9, Some(90), 0), 900.0, "what is asked for is the least");
}

#[test]
fn trusted_certificates_must_be_some() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("it can be written");
        let error =
            Fetcher::new(&Roots::File(path), Proxy::default(), Limits::default()).expect_err("it is no good");
        error.to_string()
    };
    assert!(refused("empty.pem", "").ends_with("empty.pem: there is no certificate in it"));
    let broken = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    assert!(refused("broken.pem", broken).contains("broken.pem: "));
    let missing = Roots::File(folder.path().join("none.pem"));
    assert!(Fetcher::new(&missing, Proxy::default(), Limits::default()).is_err());
}

#[test]
fn files_have_the_limit_of_downloads() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ranges.json");
    fs::write(&path, "hi").expect("it can be written");
    assert_eq!(read_file(&path).expect("it is small"), b"hi");
    fs::File::create(&path)
        .and_then(|file| file.set_len(MAX_BYTES as u64 + 1))
        .expect("it can be made large");
    assert_eq!(read_file(&path).expect_err("it is large").to_string(), "it has more than 33554432 bytes");
    assert!(read_file(&folder.path().join("none")).is_err());
}
