//! The certificate the webhook shows, which can change while it runs.

use std::{
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Why a certificate cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A text holds no PEM of what it must hold.
    #[error("the {what} is no PEM: {source}")]
    Pem {
        /// The certificate or the key.
        what: &'static str,
        /// Why not.
        source: rustls::pki_types::pem::Error,
    },
    /// There is no certificate in the text.
    #[error("there is no certificate in it")]
    Empty,
    /// The certificate cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Certificate(#[source] x509_parser::nom::Err<x509_parser::error::X509Error>),
    /// The key does not fit or is of a kind that cannot be used.
    #[error("the certificate and the key cannot be used together: {0}")]
    Key(#[source] rustls::Error),
    /// A file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// The certificate that is shown, and what has become of its replacements.
#[derive(Debug)]
pub struct Served {
    provider: Arc<CryptoProvider>,
    current: RwLock<Option<Arc<CertifiedKey>>>,
    /// Second at which the certificate ends; 0 while there is none.
    expires: AtomicU64,
    reloads: AtomicU64,
    failures: AtomicU64,
}

impl Default for Served {
    fn default() -> Self {
        Self {
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            current: RwLock::new(None),
            expires: AtomicU64::new(0),
            reloads: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }
}

impl Served {
    /// Shows another certificate from now on. Returns whether it is another one indeed.
    ///
    /// # Errors
    ///
    /// When it cannot be used. The one before then stays.
    pub fn load(&self, chain: &[u8], key: &[u8]) -> Result<bool, Error> {
        let loaded = self.certified(chain, key);
        if loaded.is_err() {
            self.failed();
        }
        let (certified, expires) = loaded?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|current| current.cert == certified.cert) {
            return Ok(false);
        }
        *current = Some(Arc::new(certified));
        self.expires.store(expires, Ordering::Relaxed);
        self.reloads.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    fn certified(&self, chain: &[u8], key: &[u8]) -> Result<(CertifiedKey, u64), Error> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|source| Error::Pem { what: "certificate", source })?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|source| Error::Pem { what: "key", source })?;
        let (_, leaf) =
            X509Certificate::from_der(chain.first().ok_or(Error::Empty)?).map_err(Error::Certificate)?;
        // A certificate that ended before 1970 has ended.
        let expires = u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or(0);
        Ok((CertifiedKey::from_der(chain, key, &self.provider).map_err(Error::Key)?, expires))
    }

    /// Counts a replacement that failed before it could be loaded.
    pub fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the second at which the certificate ends; `None` while there is none.
    #[must_use]
    pub fn expires(&self) -> Option<u64> {
        Some(self.expires.load(Ordering::Relaxed)).filter(|&expires| expires != 0)
    }

    /// Returns how often another certificate was shown from then on, and how often that failed.
    #[must_use]
    pub fn reloads(&self) -> (u64, u64) {
        (self.reloads.load(Ordering::Relaxed), self.failures.load(Ordering::Relaxed))
    }

    /// Returns the settings for TLS with this certificate.
    ///
    /// # Errors
    ///
    /// When the library has no protocol version in common with itself.
    pub fn config(self: &Arc<Self>) -> Result<ServerConfig, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // The API server keeps its connections. Whoever makes a new one sees the certificate of now.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
