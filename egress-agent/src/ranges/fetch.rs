//! Downloads what providers publish: HTTPS, one request at a time, with a limit on everything.
//!
//! A response must say where it ends. One that ends with its connection is refused: nothing would tell the whole from a part.

use std::{
    fmt, fs,
    io::{self, Read as _},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::{HeaderMap, Request, Response, StatusCode, Uri, header, uri::Authority};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::providers::MAX_BYTES;
use crate::policy::document::shown;

/// What a download may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a body.
    pub bytes: usize,
    /// Until a connection is there, with TLS.
    pub connect: Duration,
    /// Without a byte.
    pub idle: Duration,
    /// All of it, with redirects.
    pub total: Duration,
    /// Redirects that are followed.
    pub redirects: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: MAX_BYTES,
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(20),
            total: Duration::from_secs(180),
            redirects: 4,
        }
    }
}

/// Whose certificates are trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Roots {
    /// Those that the system trusts. `SSL_CERT_FILE` and `SSL_CERT_DIR` say where they are if they are elsewhere.
    #[default]
    System,
    /// Those in a PEM file, and no others.
    File(PathBuf),
}

/// Through whom requests go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxy {
    /// Host and port, and what `Proxy-Authorization` says.
    through: Option<(String, u16, Option<String>)>,
    /// Lower case names, each also for what is below it; `*` for all.
    except: Vec<String>,
}

/// What a server said of a body, to be asked whether that is still the newest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Validators {
    /// `ETag`.
    pub etag: Option<String>,
    /// `Last-Modified`.
    pub last_modified: Option<String>,
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What is known is still the newest.
    NotModified,
    /// There is something.
    Body {
        /// All of it.
        bytes: Vec<u8>,
        /// For the next request.
        validators: Validators,
    },
}

/// Why nothing can be downloaded at all.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The file of certificates cannot be used.
    #[error("{path}: {what}", path = path.display())]
    Roots {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The system trusts nobody.
    #[error("there are no trusted certificates on this system{0}; name a file with some")]
    NoRoots(String),
    /// The proxy cannot be used.
    #[error("proxy {}: {}", shown(.0), .1)]
    Proxy(String, &'static str),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It is no address that is asked.
    #[error("{}: {}", shown(.0), .1)]
    Url(String, &'static str),
    /// There is no connection.
    #[error("{host} cannot be reached: {source}")]
    Connect {
        /// Who.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// The proxy does not let it pass.
    #[error("the proxy does not connect to {host}: {answer}")]
    Proxy {
        /// Who.
        host: String,
        /// What it said.
        answer: String,
    },
    /// Something took too long.
    #[error("{0} took longer than {1:?}")]
    Slow(&'static str, Duration),
    /// The answer came to an end before its end, or is no answer.
    #[error("the answer is broken: {0}")]
    Broken(#[from] hyper::Error),
    /// The answer is larger than it may be.
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
    /// The answer cannot be used.
    #[error("the answer {0}")]
    Unusable(&'static str),
    /// Too many redirects.
    #[error("more than {0} redirects")]
    Redirects(usize),
    /// The server does not give it.
    #[error("the server answers {status}")]
    Status {
        /// What it says.
        status: StatusCode,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
}

impl FetchError {
    /// Returns whether it may be otherwise the next time.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Slow(..) | Self::Broken(_) | Self::Proxy { .. } => true,
            Self::Status { status, .. } => {
                status.is_server_error()
                    || matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
            }
            Self::Url(..) | Self::TooLarge(_) | Self::Unusable(_) | Self::Redirects(_) => false,
        }
    }

    /// Returns how long the server wants to be left alone, if it said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Returns how long to wait after the `failures`th failure in a row, from 1.
///
/// It doubles from 5 seconds to 15 minutes. A random part of up to a half is left off, so that not everybody who failed together asks
/// together. What the server asked for is the least, up to six hours.
#[must_use]
pub fn pause(failures: u32, error: &FetchError, random: u32) -> Duration {
    const FIRST: Duration = Duration::from_secs(5);
    const LONGEST: Duration = Duration::from_secs(15 * 60);
    const ASKED: Duration = Duration::from_secs(6 * 60 * 60);
    let whole = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST);
    let pause = whole - whole.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0);
    pause.max(error.retry_after().unwrap_or_default().min(ASKED))
}

/// Reads a file as if it had been downloaded.
///
/// # Errors
///
/// When it cannot be read, or is larger than what is downloaded may be.
pub fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    match bytes.len() > MAX_BYTES {
        true => Err(io::Error::other(format!("it has more than {MAX_BYTES} bytes"))),
        false => Ok(bytes),
    }
}

impl Proxy {
    /// Reads what the variables `HTTPS_PROXY` and `NO_PROXY` say, or the same in lower case, which count more.
    ///
    /// `NO_PROXY` is a list of names and addresses. A name is also for what is below it, with or without a dot in front.
    ///
    /// # Errors
    ///
    /// When the proxy is none that can be used.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, SetupError> {
        let read = |lower: &str| variable(lower).or_else(|| variable(&lower.to_ascii_uppercase()));
        let except = read("no_proxy").unwrap_or_default();
        let except = except
            .split(',')
            .map(|name| name.trim().trim_start_matches('.').to_ascii_lowercase())
            .filter(|name| !name.is_empty())
            .collect();
        let Some(text) = read("https_proxy").filter(|text| !text.is_empty()) else {
            return Ok(Self { through: None, except });
        };
        let wrong = |what| SetupError::Proxy(without_user(&text), what);
        let uri: Uri = if text.contains("://") { text.parse() } else { format!("http://{text}").parse() }
            .map_err(|_| wrong("it is no URL"))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("a proxy is spoken to in plain HTTP, write http://"));
        }
        let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
        let user = authority
            .as_str()
            .rsplit_once('@')
            .map(|(user, _)| format!("Basic {}", base64(&unescaped(user))));
        let host = bare(authority.host()).to_owned();
        Ok(Self { through: Some((host, authority.port_u16().unwrap_or(3128), user)), except })
    }

    fn of(&self, host: &str) -> Option<&(String, u16, Option<String>)> {
        let host = host.to_ascii_lowercase();
        let is = |name: &String| {
            name == "*"
                || host == *name
                || host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'))
        };
        self.through.as_ref().filter(|_| !self.except.iter().any(is))
    }
}

/// Returns a URL for people: without who asks and the password.
fn without_user(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://{rest}"),
        (None, Some((_, rest))) => rest.to_owned(),
        (_, None) => url.to_owned(),
    }
}

/// Takes the brackets off an IPv6 address.
fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Resolves `%40` and the like. What is no such escape stays.
fn unescaped(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = text.get(at + 1..at + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match escape.filter(|_| bytes[at] == b'%') {
            Some(byte) => {
                plain.push(byte);
                at += 3;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    plain
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let number =
            three.iter().chain([&0; 2]).take(3).fold(0, |number, byte| number << 8 | usize::from(*byte));
        for place in 0..4 {
            let digit = DIGITS[number >> (18 - 6 * place) & 63];
            text.push(if place > three.len() { '=' } else { char::from(digit) });
        }
    }
    text
}

/// Downloads.
#[derive(Clone)]
pub struct Fetcher {
    tls: TlsConnector,
    proxy: Proxy,
    limits: Limits,
    plain_on_loopback: bool,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher").field("limits", &self.limits).finish_non_exhaustive()
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Fetcher {
    /// Returns one that trusts `roots`.
    ///
    /// # Errors
    ///
    /// When there are no trusted certificates.
    pub fn new(roots: &Roots, proxy: Proxy, limits: Limits) -> Result<Self, SetupError> {
        let mut store = RootCertStore::empty();
        match roots {
            Roots::System => {
                let found = rustls_native_certs::load_native_certs();
                // One that cannot be used does not speak against the others.
                store.add_parsable_certificates(found.certs);
                if store.is_empty() {
                    let why: String = found.errors.iter().map(|error| format!(": {error}")).collect();
                    return Err(SetupError::NoRoots(why));
                }
            }
            Roots::File(path) => {
                let wrong = |what: String| SetupError::Roots { path: path.clone(), what };
                let pem = fs::read(path).map_err(|error| wrong(error.to_string()))?;
                for certificate in CertificateDer::pem_slice_iter(&pem) {
                    let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                    store.add(certificate).map_err(|error| wrong(error.to_string()))?;
                }
                if store.is_empty() {
                    return Err(wrong("there is no certificate in it".into()));
                }
            }
        }
        let mut tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(store)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: TlsConnector::from(Arc::new(tls)), proxy, limits, plain_on_loopback: false })
    }

    /// Lets it speak plain HTTP with this machine, which only tests need.
    #[must_use]
    pub fn plain_on_loopback(self) -> Self {
        Self { plain_on_loopback: true, ..self }
    }

    /// Asks for what is at `url`, unless it is what is `known`.
    ///
    /// # Errors
    ///
    /// When there is no usable answer in time.
    pub async fn get(&self, url: &str, known: Option<&Validators>) -> Result<Answer, FetchError> {
        let total = self.limits.total;
        timeout(total, self.follow(url, known)).await.map_err(|_| FetchError::Slow("the download", total))?
    }

    async fn follow(&self, url: &str, known: Option<&Validators>) -> Result<Answer, FetchError> {
        let mut url = url.to_owned();
        for _ in 0..=self.limits.redirects {
            let uri: Uri = url.parse().map_err(|_| FetchError::Url(url.clone(), "it is no URL"))?;
            // What serves it must live as long as it.
            let (response, _serving) = self.ask(&uri, known).await?;
            match response.status() {
                StatusCode::OK => return self.body(response).await,
                StatusCode::NOT_MODIFIED if known.is_some() => return Ok(Answer::NotModified),
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => {
                    let location = text(response.headers(), header::LOCATION)
                        .ok_or(FetchError::Unusable("redirects to nowhere"))?;
                    url = joined(&uri, &location)?;
                }
                status => {
                    let retry_after = retry_after(response.headers());
                    return Err(FetchError::Status { status, retry_after });
                }
            }
        }
        Err(FetchError::Redirects(self.limits.redirects))
    }

    async fn ask(
        &self,
        uri: &Uri,
        known: Option<&Validators>,
    ) -> Result<(Response<Incoming>, JoinSet<()>), FetchError> {
        let wrong = |what| FetchError::Url(uri.to_string(), what);
        let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("it has a user in it"));
        }
        let connect = self.limits.connect;
        let stream: Box<dyn Stream> = match uri.scheme_str() {
            Some("https") => timeout(connect, self.secure(authority)).await,
            Some("http") if self.plain_on_loopback && is_loopback(authority.host()) => {
                timeout(connect, self.plain(authority, 80)).await
            }
            _ => return Err(wrong("only https is asked")),
        }
        .map_err(|_| FetchError::Slow("the connection", connect))??;

        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // It is served as long as the answer is read. What goes wrong with it, the answer tells.
        let mut serving = JoinSet::new();
        serving.spawn(async move { drop(connection.await) });
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::get(path)
            .header(header::HOST, authority.as_str())
            .header(header::USER_AGENT, concat!("egress-agent/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::CONNECTION, "close");
        if let Some(Validators { etag, last_modified }) = known {
            if let Some(etag) = etag {
                request = request.header(header::IF_NONE_MATCH, etag);
            }
            if let Some(time) = last_modified {
                request = request.header(header::IF_MODIFIED_SINCE, time);
            }
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|_| wrong("it cannot be asked for"))?;
        let idle = self.limits.idle;
        let response = timeout(idle, sender.send_request(request))
            .await
            .map_err(|_| FetchError::Slow("the beginning of the answer", idle))??;
        Ok((response, serving))
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Answer, FetchError> {
        let Limits { bytes: most, idle, .. } = self.limits;
        let headers = response.headers();
        if text(headers, header::CONTENT_ENCODING)
            .is_some_and(|coding| !coding.eq_ignore_ascii_case("identity"))
        {
            return Err(FetchError::Unusable("is compressed, which was not asked for"));
        }
        let chunked = text(headers, header::TRANSFER_ENCODING).is_some();
        let length = response.body().size_hint().exact();
        if length.is_none() && !chunked {
            return Err(FetchError::Unusable("does not say where it ends"));
        }
        if length.is_some_and(|length| length > most as u64) {
            return Err(FetchError::TooLarge(most));
        }
        let validators = Validators {
            etag: text(headers, header::ETAG),
            last_modified: text(headers, header::LAST_MODIFIED),
        };
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        while let Some(frame) = timeout(idle, body.frame())
            .await
            .map_err(|_| FetchError::Slow("the next part of the answer", idle))?
        {
            if let Ok(data) = frame?.into_data() {
                if bytes.len() + data.len() > most {
                    return Err(FetchError::TooLarge(most));
                }
                bytes.extend_from_slice(&data);
            }
        }
        Ok(Answer::Body { bytes, validators })
    }

    async fn plain(&self, authority: &Authority, port: u16) -> Result<Box<dyn Stream>, FetchError> {
        let host = bare(authority.host());
        Ok(Box::new(connected(host, authority.port_u16().unwrap_or(port)).await?))
    }

    async fn secure(&self, authority: &Authority) -> Result<Box<dyn Stream>, FetchError> {
        let (host, port) = (bare(authority.host()), authority.port_u16().unwrap_or(443));
        let stream = match self.proxy.of(host) {
            None => connected(host, port).await?,
            Some((proxy, proxy_port, user)) => {
                let stream = connected(proxy, *proxy_port).await?;
                tunnelled(stream, &format!("{}:{port}", authority.host()), user.as_deref()).await?
            }
        };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| FetchError::Url(authority.to_string(), "it names no host"))?;
        let secured = self.tls.connect(name, stream).await;
        Ok(Box::new(secured.map_err(|source| FetchError::Connect { host: host.to_owned(), source })?))
    }
}

fn is_loopback(host: &str) -> bool {
    bare(host).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

async fn connected(host: &str, port: u16) -> Result<TcpStream, FetchError> {
    let to_error = |source| FetchError::Connect { host: host.to_owned(), source };
    TcpStream::connect((host, port)).await.map_err(to_error)
}

/// Asks the proxy at the other end to connect to `target`.
async fn tunnelled(mut stream: TcpStream, target: &str, user: Option<&str>) -> Result<TcpStream, FetchError> {
    /// Bytes of its answer.
    const LONGEST: usize = 8 * 1024;
    let to_error = |source| FetchError::Connect { host: format!("the proxy for {target}"), source };
    let refused = |answer: &str| FetchError::Proxy { host: target.to_owned(), answer: shown(answer) };
    let user = user.map_or_else(String::new, |user| format!("Proxy-Authorization: {user}\r\n"));
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{user}\r\n");
    stream.write_all(request.as_bytes()).await.map_err(to_error)?;
    let mut answer = Vec::new();
    // Whoever is behind it says nothing before it is spoken to, so that nothing can follow the head.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() > LONGEST || stream.read_buf(&mut answer).await.map_err(to_error)? == 0 {
            return Err(refused("it gives no answer"));
        }
    }
    let first = String::from_utf8_lossy(&answer);
    let first = first.lines().next().unwrap_or_default();
    match first.strip_prefix("HTTP/1.").and_then(|rest| rest.get(1..5)) {
        Some(status) if status.starts_with(" 2") => Ok(stream),
        _ => Err(refused(first)),
    }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// Returns where a redirect leads.
fn joined(from: &Uri, location: &str) -> Result<String, FetchError> {
    let wrong = |what| FetchError::Url(location.to_owned(), what);
    let scheme = from.scheme_str().ok_or_else(|| wrong("it cannot be followed"))?;
    let authority = from.authority().ok_or_else(|| wrong("it cannot be followed"))?;
    let location = location.split('#').next().unwrap_or_default();
    if location.contains("://") {
        // One that was asked over TLS does not lead out of it; whether the scheme is allowed at all is seen when it is asked.
        return match scheme == "https" && !location.starts_with("https://") {
            true => Err(wrong("a redirect leads away from https")),
            false => Ok(location.to_owned()),
        };
    }
    if let Some(rest) = location.strip_prefix("//") {
        return Ok(format!("{scheme}://{rest}"));
    }
    if location.starts_with('/') {
        return Ok(format!("{scheme}://{authority}{location}"));
    }
    let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    Ok(format!("{scheme}://{authority}{folder}/{location}"))
}

/// Returns what `Retry-After` says: seconds, or a time, which is compared with the server's own `Date`.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text_of = |name| text(headers, name);
    let value = text_of(header::RETRY_AFTER)?;
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let time = |text: &str| jiff::fmt::rfc2822::parse(text).ok().map(|time| time.timestamp().as_second());
    let seconds = time(&value)?.checked_sub(time(&text_of(header::DATE)?)?)?;
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests;
