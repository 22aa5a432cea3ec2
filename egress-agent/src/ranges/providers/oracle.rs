//! Oracle Cloud: `public_ip_ranges.json`. The tags of a prefix are its services: OCI, OSN, OBJECT_STORAGE.

use serde::Deserialize;

use super::{
    ParseError, Provider, checked,
    json::{self, Prefix, Text},
    push,
};
use crate::policy::{
    document::shown,
    ranges::{Builder, Table},
};

/// Oracle Cloud Infrastructure.
pub(super) struct Oracle;

const FORM: &str = "Oracle's public_ip_ranges.json has last_updated_timestamp, and regions with cidrs";

#[derive(Deserialize)]
struct Document<'d> {
    #[serde(borrow)]
    last_updated_timestamp: Text<'d>,
    #[serde(borrow)]
    regions: Vec<Region<'d>>,
}

#[derive(Deserialize)]
struct Region<'d> {
    #[serde(borrow)]
    region: Text<'d>,
    #[serde(borrow)]
    cidrs: Vec<Entry<'d>>,
}

#[derive(Deserialize)]
struct Entry<'d> {
    cidr: Prefix,
    #[serde(borrow)]
    tags: Vec<Text<'d>>,
}

impl Provider for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }

    fn urls(&self) -> &'static [&'static str] {
        &["https://docs.oracle.com/en-us/iaas/tools/public_ip_ranges.json"]
    }

    fn parse(&self, documents: &[&[u8]]) -> Result<Table, ParseError> {
        let name = self.name();
        let [document] = checked(name, documents)?;
        let document: Document<'_> = json::read(name, 0, document, FORM)?;
        let of = |message: String| ParseError::new(name, 0, message).hint(FORM);
        let written = &document.last_updated_timestamp.0;
        let revision = moment(written)
            .ok_or_else(|| of(format!("last_updated_timestamp {} is no time", shown(written))))?;
        let mut builder = Builder::new();
        for region in &document.regions {
            for entry in &region.cidrs {
                let at = |message: &dyn std::fmt::Display| of(format!("at {}: {message}", entry.cidr.0));
                if entry.tags.is_empty() {
                    return Err(at(&"it has no tag"));
                }
                for tag in &entry.tags {
                    push(&mut builder, &tag.0, &region.region.0, entry.cidr.0).map_err(|error| at(&error))?;
                }
            }
        }
        if builder.is_empty() {
            return Err(of("there is no prefix in it".into()));
        }
        Ok(builder.finish(Some(revision)))
    }
}

/// Returns the digits of a time such as `2025-07-21T07:13:25.457838` up to its seconds, as one number: later times have larger ones.
fn moment(text: &str) -> Option<u64> {
    let form = b"dddd-dd-ddTdd:dd:dd";
    let (whole, _) = text.split_at_checked(form.len())?;
    let fits = whole.bytes().zip(form).all(|(byte, wanted)| match wanted {
        b'd' => byte.is_ascii_digit(),
        other => byte == *other,
    });
    let digits: String = whole.chars().filter(char::is_ascii_digit).collect();
    if fits { super::number(&digits) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_is_larger() {
        assert_eq!(moment("2025-07-21T07:13:25.457838"), Some(20_250_721_071_325));
        assert!(moment("2025-07-21T07:13:25Z") < moment("2026-01-01T00:00:00Z"));
        for other in ["", "2025-07-21", "2025-07-21 07:13:25", "2025-07-21T07:13:2é", "x025-07-21T07:13:25"]
        {
            assert_eq!(moment(other), None, "{other}");
        }
    }
}
