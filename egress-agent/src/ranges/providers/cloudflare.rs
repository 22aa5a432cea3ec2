//! Cloudflare: a list of IPv4 prefixes and one of IPv6 prefixes. It is one service, `cloudflare`.

use super::{ParseError, Provider, checked, lines};
use crate::policy::ranges::Table;

/// Cloudflare.
pub(super) struct Cloudflare;

impl Provider for Cloudflare {
    fn name(&self) -> &'static str {
        "cloudflare"
    }

    fn urls(&self) -> &'static [&'static str] {
        &["https://www.cloudflare.com/ips-v4", "https://www.cloudflare.com/ips-v6"]
    }

    fn parse(&self, documents: &[&[u8]]) -> Result<Table, ParseError> {
        let documents: [&[u8]; 2] = checked(self.name(), documents)?;
        lines(self.name(), &documents)
    }
}
