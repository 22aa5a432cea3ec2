//! One look for newer ranges of a provider: ask, read, compare.

use std::sync::Arc;

use super::{
    accept::{self, Delta, Limits, Refused},
    cache::{Cached, Document},
    fetch::{Answer, FetchError, Fetcher},
    providers::{ParseError, Provider},
};
use crate::policy::ranges::Table;

/// What is in force, and what it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Current {
    /// The documents.
    pub cached: Cached,
    /// What is in them.
    pub table: Arc<Table>,
}

/// What a look found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing new. What is in force was seen to be the newest now, which is worth keeping.
    Same(Cached),
    /// Something new, which is good. It may have the same rows.
    New(Current, Delta),
}

/// Why nothing new is taken. What is in force stays, with what it was read from: what was refused is asked for again.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// It cannot be downloaded.
    #[error("{url}: {source}")]
    Fetch {
        /// From where.
        url: String,
        /// Why.
        source: FetchError,
    },
    /// It cannot be read.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// It looks like an accident.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// Reads documents again that were kept.
///
/// # Errors
///
/// When they are not what the provider publishes, which they were when they were kept: another version of this program reads less.
pub fn restore(provider: &dyn Provider, cached: Cached) -> Result<Current, ParseError> {
    let table = Arc::new(parse(provider, &cached)?);
    Ok(Current { cached, table })
}

/// Looks for newer ranges at `urls`, the provider's own or others in their order. `now` is in seconds since the epoch.
///
/// A document that was kept from the same address is asked for only if it has changed. One of several can be new and the others not.
///
/// # Errors
///
/// When there is nothing that can be taken.
pub async fn refresh(
    fetcher: &Fetcher,
    provider: &dyn Provider,
    urls: &[String],
    current: Option<&Current>,
    limits: &Limits,
    now: u64,
) -> Result<Found, RefreshError> {
    let kept = |index: usize| {
        let documents =
            current.map(|current| &current.cached.documents).filter(|kept| kept.len() == urls.len())?;
        documents.get(index).filter(|document| document.url == urls[index])
    };
    let (mut documents, mut new) = (Vec::with_capacity(urls.len()), false);
    for (index, url) in urls.iter().enumerate() {
        let kept = kept(index);
        let answer = fetcher.get(url, kept.map(|document| &document.validators)).await;
        let answer = answer.map_err(|source| RefreshError::Fetch { url: url.clone(), source })?;
        documents.push(match (answer, kept) {
            (Answer::Body { bytes, validators }, kept) => {
                new |= kept.is_none_or(|kept| kept.bytes != bytes);
                Document { url: url.clone(), validators, bytes }
            }
            (Answer::NotModified, Some(kept)) => kept.clone(),
            (Answer::NotModified, None) => {
                let source = FetchError::Unusable("is that nothing has changed, though nothing is known");
                return Err(RefreshError::Fetch { url: url.clone(), source });
            }
        });
    }
    let cached = Cached { documents, seen: now };
    if !new {
        return Ok(Found::Same(cached));
    }
    let table = parse(provider, &cached)?;
    let delta = accept::accept(current.map(|current| &*current.table), &table, limits)?;
    Ok(Found::New(Current { cached, table: Arc::new(table) }, delta))
}

fn parse(provider: &dyn Provider, cached: &Cached) -> Result<Table, ParseError> {
    let documents: Vec<&[u8]> = cached.documents.iter().map(|document| document.bytes.as_slice()).collect();
    provider.parse(&documents)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        sync::{Mutex, PoisonError},
    };

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::ranges::{
        cache,
        fetch::{Limits as FetchLimits, Proxy, Roots, Validators},
        providers::provider,
    };

    type Bodies = Arc<Mutex<HashMap<&'static str, Vec<u8>>>>;

    /// Serves bodies by their paths with a tag made of their bytes, and answers 304 to who knows it. What has no body is 503.
    async fn serve(bodies: Bodies) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    assert!(stream.read_buf(&mut request).await.expect("it can be read") > 0);
                }
                let request = String::from_utf8(request).expect("it is text");
                let path = request.split(' ').nth(1).expect("a path");
                let body = bodies.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
                let answer = match body {
                    None => b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n".to_vec(),
                    Some(body) => {
                        let tag = format!("\"{}\"", crate::ranges::publish::Sha256::of(&body));
                        if request.contains(&tag) {
                            b"HTTP/1.1 304 Not Modified\r\n\r\n".to_vec()
                        } else {
                            let length = body.len();
                            let head =
                                format!("HTTP/1.1 200 OK\r\nETag: {tag}\r\nContent-Length: {length}\r\n\r\n");
                            [head.into_bytes(), body].concat()
                        }
                    }
                };
                stream.write_all(&answer).await.expect("it can be written");
            }
        });
        format!("http://{address}")
    }

    fn fetcher() -> Fetcher {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ca.pem");
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::new(vec!["ca.example".to_owned()])
            .and_then(|parameters| parameters.self_signed(&key))
            .expect("a certificate");
        std::fs::write(&file, certificate.pem()).expect("it can be written");
        let fetcher = Fetcher::new(&Roots::File(file), Proxy::default(), FetchLimits::default());
        fetcher.expect("it can be set up").plain_on_loopback()
    }

    #[tokio::test]
    async fn new_data_is_taken_and_bad_data_leaves_what_is_in_force() {
        let bodies: Bodies = Arc::default();
        let put = |path: &'static str, text: &str| {
            bodies.lock().unwrap_or_else(PoisonError::into_inner).insert(path, text.as_bytes().to_vec());
        };
        let server = serve(Arc::clone(&bodies)).await;
        let urls = [format!("{server}/v4"), format!("{server}/v6")];
        let (fetcher, limits) = (fetcher(), Limits::default());
        let cloudflare = provider("cloudflare").expect("it is a provider");
        let look = async |current: Option<&Current>, now: u64| {
            refresh(&fetcher, cloudflare, &urls, current, &limits, now).await
        };
        let failed = |result: Result<Found, RefreshError>| result.expect_err("it is no good").to_string();

        let v4: String = (0..10).map(|n| format!("192.0.{n}.0/24\n")).collect();
        put("/v4", &v4);
        let error = look(None, 1).await.expect_err("one of two is not there");
        assert_eq!(error.to_string(), format!("{server}/v6: the server answers 503 Service Unavailable"));
        assert!(matches!(error, RefreshError::Fetch { source, .. } if source.retry_after().is_some()));

        put("/v6", "2001:db8::/32\n");
        let Ok(Found::New(current, delta)) = look(None, 2).await else { panic!("everything is new") };
        assert_eq!((delta.added.len(), current.cached.seen), (11, 2));

        let Ok(Found::Same(seen)) = look(Some(&current), 3).await else { panic!("nothing is new") };
        assert_eq!((seen.seen, &seen.documents), (3, &current.cached.documents));

        // Only one document is new: the other is the one that was kept.
        put("/v6", "2001:db8::/32\n2001:db9::/32\n");
        let Ok(Found::New(next, delta)) = look(Some(&current), 4).await else { panic!("one is new") };
        assert_eq!((delta.added.len(), delta.removed.len()), (1, 0));
        assert_eq!(next.cached.documents[0], current.cached.documents[0]);

        // What is refused is refused again as long as it is there: its tag is not kept.
        put("/v4", "192.0.2.0/24\n");
        for _ in 0..2 {
            assert_eq!(
                failed(look(Some(&next), 5).await),
                "the new ranges have 1 IPv4 rows where there were 10"
            );
        }
        put("/v4", "<html>log in</html>");
        assert!(failed(look(Some(&next), 6).await).starts_with("cloudflare: the document is not data"));
        put("/v4", &v4);
        assert!(matches!(look(Some(&next), 7).await, Ok(Found::Same(_))));

        // A start without network goes on with what was kept.
        let folder = tempfile::tempdir().expect("a folder");
        cache::store(folder.path(), "cloudflare", &next.cached).expect("it can be stored");
        let loaded = cache::load(folder.path(), "cloudflare").expect("it is good").expect("it is there");
        assert_eq!(restore(cloudflare, loaded).expect("it was good"), next);
    }

    #[tokio::test]
    async fn a_server_without_tags_sends_everything_again() {
        let bodies: Bodies = Arc::default();
        let server = serve(Arc::clone(&bodies)).await;
        let urls = [format!("{server}/v4"), format!("{server}/v6")];
        let put = |path: &'static str, text: &str| {
            bodies.lock().unwrap_or_else(PoisonError::into_inner).insert(path, text.as_bytes().to_vec());
        };
        put("/v4", "192.0.2.0/24\n");
        put("/v6", "2001:db8::/32\n");
        let cloudflare = provider("cloudflare").expect("it is a provider");
        let (fetcher, limits) = (fetcher(), Limits::default());
        let look = async |current: Option<&Current>| {
            let found = refresh(&fetcher, cloudflare, &urls, current, &limits, 1).await;
            found.unwrap_or_else(|error| panic!("{error}"))
        };
        let Found::New(mut current, _) = look(None).await else { panic!("everything is new") };
        for document in &mut current.cached.documents {
            document.validators = Validators::default();
        }
        assert!(matches!(look(Some(&current)).await, Found::Same(_)), "the bytes are what they were");
        put("/v4", "198.51.100.0/24\n");
        let Found::New(_, delta) = look(Some(&current)).await else { panic!("the first is new") };
        assert_eq!((delta.added.len(), delta.removed.len()), (1, 1));
    }

    #[tokio::test]
    async fn what_was_kept_from_elsewhere_is_not_asked_about() {
        let bodies: Bodies = Arc::default();
        let list = b"192.0.2.0/24\n".to_vec();
        let other = b"2001:db8::/32\n".to_vec();
        let server = serve(Arc::clone(&bodies)).await;
        for (path, body) in [("/v4", &list), ("/v6", &other)] {
            bodies.lock().unwrap_or_else(PoisonError::into_inner).insert(path, body.clone());
        }
        let tag = format!("\"{}\"", crate::ranges::publish::Sha256::of(&list));
        let document = |url: &str, bytes: &[u8]| Document {
            url: url.to_owned(),
            validators: Validators { etag: Some(tag.clone()), last_modified: None },
            bytes: bytes.to_vec(),
        };
        let cloudflare = provider("cloudflare").expect("it is a provider");
        let documents =
            vec![document("https://elsewhere.example/", b"198.51.100.0/24\n"), document("x", &other)];
        let current = restore(cloudflare, Cached { documents, seen: 1 }).expect("it is good");
        let urls = [format!("{server}/v4"), format!("{server}/v6")];
        let found = refresh(&fetcher(), cloudflare, &urls, Some(&current), &Limits::default(), 2).await;
        let Ok(Found::New(current, delta)) = found else { panic!("it is from elsewhere") };
        assert_eq!((delta.added.len(), delta.removed.len()), (1, 1));
        assert_eq!(current.cached.documents[0].bytes, list);
    }
}
