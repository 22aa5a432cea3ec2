//! Fastly: `public-ip-list`. It is one service, `fastly`.

use serde::Deserialize;

use super::{
    ParseError, Provider, checked,
    json::{self, V4, V6},
    push,
};
use crate::policy::ranges::{Builder, GLOBAL, Table};

/// Fastly.
pub(super) struct Fastly;

const FORM: &str = "Fastly's list has addresses and ipv6_addresses";

#[derive(Deserialize)]
struct Document {
    addresses: Vec<V4>,
    ipv6_addresses: Vec<V6>,
}

impl Provider for Fastly {
    fn name(&self) -> &'static str {
        "fastly"
    }

    fn urls(&self) -> &'static [&'static str] {
        &["https://api.fastly.com/public-ip-list"]
    }

    fn parse(&self, documents: &[&[u8]]) -> Result<Table, ParseError> {
        let name = self.name();
        let [document] = checked(name, documents)?;
        let document: Document = json::read(name, 0, document, FORM)?;
        if document.addresses.is_empty() {
            return Err(ParseError::new(name, 0, "there is no prefix in it").hint(FORM));
        }
        let mut builder = Builder::new();
        let v6 = document.ipv6_addresses.iter().map(|V6(net)| *net);
        for net in document.addresses.iter().map(|V4(net)| *net).chain(v6) {
            push(&mut builder, name, GLOBAL, net)
                .map_err(|error| ParseError::new(name, 0, format!("at {net}: {error}")))?;
        }
        Ok(builder.finish(None))
    }
}
