//! The webhook's own certificates: what is kept, and what is to be done next. Pure: the clock is the caller's.
//!
//! A certificate authority (CA) signs the webhook's certificate (the leaf), and the API server is told to trust the CA. Nothing
//! may ever be shown that the API server does not trust yet, and nothing distrusted that is still shown. So a new CA is first
//! added to those that are trusted; the next leaf is its own only after a while; and the old CA goes a while after that.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData as _,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use time::OffsetDateTime;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

/// Certificates are valid from so many seconds before they are made, for machines whose clock is behind.
const BACKDATE: u64 = 300;

/// What is valid only from later than this, in seconds from now, was made by a machine whose clock was wrong: an API server does not
/// trust it yet.
const EARLY: u64 = 3600;

/// How long things last, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// The life of a CA. It is replaced after two thirds of it.
    pub ca: u64,
    /// The life of a leaf. It is replaced after two thirds of it.
    pub leaf: u64,
    /// How long to wait until every API server and every replica has heard of a change.
    pub settle: u64,
}

impl Default for Lifetimes {
    fn default() -> Self {
        const DAY: u64 = 24 * 60 * 60;
        Self { ca: 365 * DAY, leaf: 90 * DAY, settle: 10 * 60 }
    }
}

/// What is kept in the Secret, all of it PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Stored {
    /// The CAs to trust, the newest first.
    pub bundle: String,
    /// The key of the newest CA.
    pub ca_key: String,
    /// The leaf.
    pub leaf: String,
    /// Its key.
    pub leaf_key: String,
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys belong into no log.
        f.debug_struct("Stored")
            .field("bundle", &self.bundle)
            .field("leaf", &self.leaf)
            .finish_non_exhaustive()
    }
}

/// Why certificates cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The library refuses.
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// The clock says something that is no time for a certificate.
    #[error("second {0} is no time for a certificate")]
    Time(u64),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing before this second.
    Wait(u64),
    /// Keep this from now on.
    Write {
        /// What to keep.
        stored: Stored,
        /// What has changed.
        why: &'static str,
    },
}

/// What a CA or a leaf says of itself.
struct Facts {
    made: u64,
    ends: u64,
}

impl Facts {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        let second = |time: &x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
        let validity = certificate.validity();
        Self {
            made: second(&validity.not_before).saturating_add(BACKDATE),
            ends: second(&validity.not_after),
        }
    }

    /// Returns whether it is valid, as far as clocks agree.
    fn hold(&self, now: u64) -> bool {
        self.ends > now && self.made <= now.saturating_add(EARLY)
    }

    /// The second at which two thirds of the life are over.
    fn renewal(&self) -> u64 {
        self.made.saturating_add(self.ends.saturating_sub(self.made) / 3 * 2)
    }
}

/// What is known of something kept.
struct Known {
    /// The CAs that can be read and are valid, the newest first, as PEM.
    cas: Vec<String>,
    /// What the newest says, if its key is there and it is valid.
    ca: Option<(Facts, KeyPair)>,
    /// What the leaf says, and whether the newest CA signed it, if it can be shown.
    leaf: Option<(Facts, bool)>,
    /// Whether some CA is not valid or cannot be read.
    has_waste: bool,
}

/// Reads what is kept. What cannot be read counts as missing.
fn read(stored: &Stored, names: &[String], now: u64) -> Known {
    let blocks = blocks(&stored.bundle);
    let ders: Vec<(&str, CertificateDer<'static>)> = blocks
        .iter()
        .filter_map(|block| Some((*block, CertificateDer::from_pem_slice(block.as_bytes()).ok()?)))
        .collect();
    let parsed: Vec<(&str, X509Certificate<'_>)> = ders
        .iter()
        .filter_map(|(block, der)| Some((*block, X509Certificate::from_der(der).ok()?.1)))
        .collect();
    let (texts, alive): (Vec<&str>, Vec<&X509Certificate<'_>>) =
        parsed.iter().filter(|(_, ca)| Facts::of(ca).hold(now)).map(|(block, ca)| (*block, ca)).unzip();
    let key = KeyPair::from_pem(&stored.ca_key).ok();
    let owns = |certificate: &X509Certificate<'_>, key: &KeyPair| {
        certificate.public_key().subject_public_key.data.as_ref() == key.der_bytes()
    };
    let ca = match (alive.first(), key) {
        // The first of the bundle is the newest; if it has ended, the key is of no use.
        (Some(first), Some(key)) if owns(first, &key) => Some((Facts::of(first), key)),
        _ => None,
    };
    Known {
        leaf: leaf(stored, names, now, &alive, ca.is_some()),
        cas: texts.into_iter().map(|text| format!("{text}\n")).collect(),
        ca,
        has_waste: alive.len() < blocks.len(),
    }
}

fn leaf(
    stored: &Stored,
    names: &[String],
    now: u64,
    cas: &[&X509Certificate<'_>],
    first_is_ours: bool,
) -> Option<(Facts, bool)> {
    let der = CertificateDer::from_pem_slice(stored.leaf.as_bytes()).ok()?;
    let (_, leaf) = X509Certificate::from_der(&der).ok()?;
    let key = KeyPair::from_pem(&stored.leaf_key).ok()?;
    let facts = Facts::of(&leaf);
    let is_ours = leaf.public_key().subject_public_key.data.as_ref() == key.der_bytes();
    let signer = cas.iter().position(|ca| leaf.verify_signature(Some(ca.public_key())).is_ok())?;
    (is_ours && facts.hold(now) && covers(&leaf, names)).then_some((facts, first_is_ours && signer == 0))
}

/// Returns whether a certificate is good for all these names and addresses.
fn covers(leaf: &X509Certificate<'_>, names: &[String]) -> bool {
    let Ok(Some(extension)) = leaf.subject_alternative_name() else { return false };
    names.iter().all(|name| {
        extension.value.general_names.iter().any(|own| match own {
            GeneralName::DNSName(own) => own == name,
            GeneralName::IPAddress(octets) => match name.parse() {
                Ok(std::net::IpAddr::V4(address)) => *octets == address.octets(),
                Ok(std::net::IpAddr::V6(address)) => *octets == address.octets(),
                Err(_) => false,
            },
            _ => false,
        })
    })
}

/// Returns the PEM blocks of certificates in a text.
fn blocks(text: &str) -> Vec<&str> {
    const END: &str = "-----END CERTIFICATE-----";
    let ends = text.match_indices(END).map(|(at, _)| at + END.len());
    let starts = std::iter::once(0).chain(ends.clone());
    starts.zip(ends).map(|(start, end)| text[start..end].trim()).collect()
}

/// Tells what to do at second `now` about what is kept, if anything is.
///
/// `published` is the second since which the API server is known to be told of the newest CA, if it is.
///
/// # Errors
///
/// When a certificate has to be made and cannot be.
pub fn next(
    stored: Option<&Stored>,
    names: &[String],
    lifetimes: &Lifetimes,
    published: Option<u64>,
    now: u64,
) -> Result<Step, Error> {
    let Some(stored) = stored else {
        return Ok(Step::Write { stored: fresh(names, lifetimes, now)?, why: "the first certificates" });
    };
    let known = read(stored, names, now);
    let Some((ca, key)) = &known.ca else {
        return Ok(match known.leaf {
            Some(_) => Step::Write {
                stored: with_new_ca(stored, known.cas, lifetimes, now)?,
                why: "a new CA, because the key of the newest is missing or it is not valid",
            },
            None => Step::Write {
                stored: fresh(names, lifetimes, now)?,
                why: "new certificates, because what was kept cannot be used",
            },
        });
    };
    let newest = || known.cas[0].as_str();
    let settled = published.map(|published| ca.made.max(published).saturating_add(lifetimes.settle));
    let Some((leaf, by_newest)) = &known.leaf else {
        return Ok(Step::Write {
            stored: with_new_leaf(stored, newest(), key, ca, names, lifetimes, now)?,
            why: "a new certificate, because the one before cannot be used",
        });
    };
    if now >= ca.renewal() {
        let stored = with_new_ca(stored, known.cas, lifetimes, now)?;
        return Ok(Step::Write { stored, why: "a new CA beside the one before" });
    }
    // The earliest second at which the next leaf may be signed by the newest CA. When the old one is about to end there is
    // nothing left to wait for.
    let last_moment = leaf.ends.saturating_sub(lifetimes.leaf / 20);
    let allowed = settled.unwrap_or(u64::MAX).min(last_moment);
    let due = if *by_newest { leaf.renewal() } else { 0 }.max(allowed);
    if now >= due {
        let stored = with_new_leaf(stored, newest(), key, ca, names, lifetimes, now)?;
        return Ok(Step::Write { stored, why: "a new certificate" });
    }
    let old_ends = leaf.made.saturating_add(lifetimes.settle);
    if known.has_waste || (*by_newest && known.cas.len() > 1 && now >= old_ends) {
        let keep = if *by_newest && now >= old_ends { 1 } else { known.cas.len() };
        let stored = Stored { bundle: known.cas[..keep].concat(), ..stored.clone() };
        return Ok(Step::Write { stored, why: "without the CAs that have signed nothing in use" });
    }
    let mut next = due.min(ca.renewal());
    if *by_newest && known.cas.len() > 1 {
        next = next.min(old_ends);
    }
    Ok(Step::Wait(next))
}

/// Returns what is to be kept when the Secret is gone and the certificates in it were still good: a new CA beside the ones before,
/// and the same leaf until the API server trusts the new CA.
///
/// # Errors
///
/// When no certificate can be made.
pub fn replace(lost: &Stored, names: &[String], lifetimes: &Lifetimes, now: u64) -> Result<Stored, Error> {
    let known = read(lost, names, now);
    match known.leaf {
        Some(_) => with_new_ca(lost, known.cas, lifetimes, now),
        None => fresh(names, lifetimes, now),
    }
}

/// Returns whether a list of CAs, as PEM, holds the newest of what is kept.
#[must_use]
pub fn trusts_newest(bundle: &[u8], stored: &Stored) -> bool {
    let newest = CertificateDer::from_pem_slice(stored.bundle.as_bytes());
    newest
        .is_ok_and(|newest| CertificateDer::pem_slice_iter(bundle).any(|ca| ca.is_ok_and(|ca| ca == newest)))
}

fn fresh(names: &[String], lifetimes: &Lifetimes, now: u64) -> Result<Stored, Error> {
    let (ca, key) = make_ca(lifetimes, now)?;
    let facts = Facts { made: now, ends: now.saturating_add(lifetimes.ca) };
    let empty = Stored {
        bundle: ca.clone(),
        ca_key: key.serialize_pem(),
        leaf: String::new(),
        leaf_key: String::new(),
    };
    with_new_leaf(&empty, &ca, &key, &facts, names, lifetimes, now)
}

fn with_new_ca(stored: &Stored, cas: Vec<String>, lifetimes: &Lifetimes, now: u64) -> Result<Stored, Error> {
    /// More are not kept, whatever happens: the API server reads all of them for each new connection.
    const MOST: usize = 4;
    let (ca, key) = make_ca(lifetimes, now)?;
    let bundle = std::iter::once(ca).chain(cas).take(MOST).collect();
    Ok(Stored { bundle, ca_key: key.serialize_pem(), ..stored.clone() })
}

fn make_ca(lifetimes: &Lifetimes, now: u64) -> Result<(String, KeyPair), Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "egress-agent webhook CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    (params.not_before, params.not_after) = validity(now, now.saturating_add(lifetimes.ca))?;
    Ok((params.self_signed(&key)?.pem(), key))
}

fn with_new_leaf(
    stored: &Stored,
    ca: &str,
    ca_key: &KeyPair,
    facts: &Facts,
    names: &[String],
    lifetimes: &Lifetimes,
    now: u64,
) -> Result<Stored, Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "egress-agent webhook");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    // A leaf that outlives its CA would be refused from then on.
    (params.not_before, params.not_after) =
        validity(now, now.saturating_add(lifetimes.leaf).min(facts.ends))?;
    let issuer = Issuer::from_ca_cert_pem(ca, ca_key)?;
    let leaf = params.signed_by(&key, &issuer)?.pem();
    Ok(Stored { leaf, leaf_key: key.serialize_pem(), ..stored.clone() })
}

fn validity(now: u64, ends: u64) -> Result<(OffsetDateTime, OffsetDateTime), Error> {
    let time = |second: u64| {
        i64::try_from(second)
            .ok()
            .and_then(|second| OffsetDateTime::from_unix_timestamp(second).ok())
            .ok_or(Error::Time(second))
    };
    Ok((time(now.saturating_sub(BACKDATE))?, time(ends)?))
}

#[cfg(test)]
mod tests;
