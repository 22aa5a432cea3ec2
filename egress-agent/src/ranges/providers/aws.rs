//! AWS: `ip-ranges.json`. Its first form of 2014 had neither IPv6 nor border groups, and is read too.

use serde::Deserialize;

use super::{
    ParseError, Provider, checked,
    json::{self, Digits, Text, V4, V6},
};
use crate::policy::ranges::{Builder, Row, Table};

/// Amazon Web Services.
pub(super) struct Aws;

const FORM: &str = "AWS' ip-ranges.json has syncToken, prefixes and ipv6_prefixes";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document<'d> {
    sync_token: Digits,
    #[serde(borrow)]
    prefixes: Vec<V4Row<'d>>,
    #[serde(rename = "ipv6_prefixes", borrow, default)]
    ipv6_prefixes: Vec<V6Row<'d>>,
}

#[derive(Deserialize)]
struct V4Row<'d> {
    ip_prefix: V4,
    #[serde(borrow)]
    region: Text<'d>,
    #[serde(borrow)]
    service: Text<'d>,
    #[serde(borrow, default)]
    network_border_group: Text<'d>,
}

#[derive(Deserialize)]
struct V6Row<'d> {
    ipv6_prefix: V6,
    #[serde(borrow)]
    region: Text<'d>,
    #[serde(borrow)]
    service: Text<'d>,
    #[serde(borrow, default)]
    network_border_group: Text<'d>,
}

impl Provider for Aws {
    fn name(&self) -> &'static str {
        "aws"
    }

    fn urls(&self) -> &'static [&'static str] {
        &["https://ip-ranges.amazonaws.com/ip-ranges.json"]
    }

    fn parse(&self, documents: &[&[u8]]) -> Result<Table, ParseError> {
        let name = self.name();
        let [document] = checked(name, documents)?;
        let document: Document<'_> = json::read(name, 0, document, FORM)?;
        if document.prefixes.is_empty() {
            return Err(ParseError::new(name, 0, "there is no prefix in it").hint(FORM));
        }
        let v4 = document.prefixes.iter().map(|row| Row {
            service: &row.service.0,
            region: &row.region.0,
            network_border_group: &row.network_border_group.0,
            wider: "",
            cidr: row.ip_prefix.0,
        });
        let v6 = document.ipv6_prefixes.iter().map(|row| Row {
            service: &row.service.0,
            region: &row.region.0,
            network_border_group: &row.network_border_group.0,
            wider: "",
            cidr: row.ipv6_prefix.0,
        });
        let mut builder = Builder::new();
        for row in v4.chain(v6) {
            builder
                .push(row)
                .map_err(|error| ParseError::new(name, 0, format!("at {}: {error}", row.cidr)).hint(FORM))?;
        }
        Ok(builder.finish(Some(document.sync_token.0)))
    }
}
