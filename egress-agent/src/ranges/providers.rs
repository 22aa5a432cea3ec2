//! Reads what providers publish.

mod aws;
mod azure;
mod cloudflare;
mod digitalocean;
mod fastly;
mod github;
mod google;
mod json;
mod oracle;

use std::{fmt, net::IpAddr};

use ipnet::IpNet;

use crate::policy::{
    document::shown,
    ranges::{
        Builder, GLOBAL, Row, Table,
        table::{BuildError, is_plausible},
    },
};

/// The largest document that is read, in bytes. The largest that is published takes 4.2 MB.
pub const MAX_BYTES: usize = 32 << 20;

/// Somebody who publishes address ranges.
pub trait Provider: Send + Sync {
    /// Returns the name that policies use.
    fn name(&self) -> &'static str;

    /// Returns where the documents are. [`parse`](Self::parse) takes one for each, in this order.
    ///
    /// Azure's has another name every week: its entry is the page that leads to it, and an operator names the file.
    fn urls(&self) -> &'static [&'static str];

    /// Reads the documents.
    ///
    /// # Errors
    ///
    /// When they are not what the provider publishes. Nothing of a document with an error is used.
    fn parse(&self, documents: &[&[u8]]) -> Result<Table, ParseError>;
}

impl fmt::Debug for dyn Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// All providers, in order of their names.
pub const PROVIDERS: [&dyn Provider; 8] = [
    &aws::Aws,
    &azure::Azure,
    &cloudflare::Cloudflare,
    &digitalocean::DigitalOcean,
    &fastly::Fastly,
    &github::GitHub,
    &google::Google,
    &oracle::Oracle,
];

/// Returns the provider of this name, whatever its case.
#[must_use]
pub fn provider(name: &str) -> Option<&'static dyn Provider> {
    PROVIDERS.into_iter().find(|provider| provider.name().eq_ignore_ascii_case(name))
}

/// Why documents are not what a provider publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// The provider.
    pub provider: &'static str,
    /// Which of its documents, from 0.
    pub document: usize,
    /// Where, from 1, columns in bytes; `None` if it is about the whole.
    pub place: Option<(usize, usize)>,
    /// One sentence.
    pub message: String,
    /// What may be the matter.
    pub hint: Option<&'static str>,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.provider)?;
        if self.document > 0 {
            write!(f, ", document {}", self.document + 1)?;
        }
        if let Some((line, column)) = self.place {
            write!(f, ", line {line}, column {column}")?;
        }
        write!(f, ": {}", self.message)?;
        match self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ParseError {}

const CUT: &str = "the document ends too early; was the download cut off?";
const HTML: &str = "this is a web page; did a proxy or a login page answer?";

impl ParseError {
    fn new(provider: &'static str, document: usize, message: impl Into<String>) -> Self {
        Self { provider, document, place: None, message: message.into(), hint: None }
    }

    fn at(mut self, line: usize, column: usize) -> Self {
        self.place = Some((line, column));
        self
    }

    fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }
}

/// Returns the documents, each without a byte order mark, once nothing speaks against them at first sight.
fn checked<'d, const N: usize>(
    provider: &'static str,
    documents: &[&'d [u8]],
) -> Result<[&'d [u8]; N], ParseError> {
    let count = documents.len();
    let mut documents: [&[u8]; N] = documents
        .try_into()
        .map_err(|_| ParseError::new(provider, 0, format!("{count} documents where {N} are needed")))?;
    for (number, document) in documents.iter_mut().enumerate() {
        let of = |message: String| ParseError::new(provider, number, message);
        *document = document.strip_prefix(b"\xef\xbb\xbf").unwrap_or(document);
        if document.len() > MAX_BYTES {
            return Err(of(format!("the document has more than {MAX_BYTES} bytes")));
        }
        match document.iter().find(|byte| !byte.is_ascii_whitespace()) {
            None => return Err(of("the document is empty".into()).hint(CUT)),
            Some(b'<') => return Err(of("the document is not data".into()).hint(HTML)),
            Some(_) => {}
        }
    }
    Ok(documents)
}

/// Reads a prefix, or an address that stands for itself.
fn prefix(text: &str) -> Result<IpNet, String> {
    let net = match text.contains('/') {
        true => text.parse().ok(),
        false => text.parse().map(|address: IpAddr| IpNet::from(address)).ok(),
    };
    let net: IpNet = net.ok_or_else(|| format!("{} is no prefix", shown(text)))?;
    if net != net.trunc() {
        return Err(format!("{net} has host bits set; {} would be the prefix", net.trunc()));
    }
    if !is_plausible(&net) {
        return Err(format!("{net} is a prefix that no provider has"));
    }
    Ok(net)
}

/// Reads lists of prefixes, one a line, into one service of that name. Empty lines and those that begin with `#` are left out.
///
/// A last line without a newline is whole in the lists of all who publish some, so that a cut in the middle of it goes unseen here:
/// how long a response is, is for the download to check.
fn lines(provider: &'static str, documents: &[&[u8]]) -> Result<Table, ParseError> {
    let mut builder = Builder::new();
    for (number, document) in documents.iter().enumerate() {
        let text = text(provider, number, document)?;
        let mut found = false;
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let error = |message: String| ParseError::new(provider, number, message).at(at + 1, 1);
            let cidr = prefix(line).map_err(error)?;
            found = true;
            push(&mut builder, provider, GLOBAL, cidr).map_err(|reason| error(reason.to_string()))?;
        }
        if !found {
            return Err(ParseError::new(provider, number, "there is no prefix in it").hint(CUT));
        }
    }
    Ok(builder.finish(None))
}

/// Returns a document as text.
fn text<'d>(provider: &'static str, number: usize, document: &'d [u8]) -> Result<&'d str, ParseError> {
    std::str::from_utf8(document).map_err(|error| {
        let before = &document[..error.valid_up_to()];
        let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        ParseError::new(provider, number, "the document is not UTF-8")
            .at(before.iter().filter(|byte| **byte == b'\n').count() + 1, before.len() - line_start + 1)
    })
}

/// Adds a row that says no more than service and region.
fn push(builder: &mut Builder, service: &str, region: &str, cidr: IpNet) -> Result<(), BuildError> {
    builder.push(Row { service, region, network_border_group: "", wider: "", cidr })
}

/// Returns digits as a number.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests;
