//! DigitalOcean: a geofeed (RFC 8805), lines of prefix, country, region, city and postal code.
//!
//! It is one service, `digitalocean`. A region is called by its code (`US-NJ`), by its country (`US`) or by a city in it, with hyphens
//! for spaces (`North-Bergen`).

use super::{CUT, ParseError, Provider, checked, prefix, text};
use crate::policy::ranges::{Builder, GLOBAL, Row, Table};

/// DigitalOcean.
pub(super) struct DigitalOcean;

const FORM: &str = "a geofeed has prefix,country,region,city,postal code";

impl Provider for DigitalOcean {
    fn name(&self) -> &'static str {
        "digitalocean"
    }

    fn urls(&self) -> &'static [&'static str] {
        &["https://digitalocean.com/geo/google.csv"]
    }

    fn parse(&self, documents: &[&[u8]]) -> Result<Table, ParseError> {
        let name = self.name();
        let [document] = checked(name, documents)?;
        let text = text(name, 0, document)?;
        // The last line ends with a newline here. One that does not has lost something, perhaps the end of its prefix' length.
        if !text.ends_with('\n') {
            let line = text.lines().count();
            return Err(ParseError::new(name, 0, "the last line has no end").at(line, 1).hint(CUT));
        }
        let mut builder = Builder::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let error = |message: String| ParseError::new(name, 0, message).at(at + 1, 1);
            let fields: Vec<&str> = line.split(',').map(|field| field.trim().trim_matches('"')).collect();
            let &[cidr, country, region, city, ..] = fields.as_slice() else {
                return Err(error(format!("{} fields where at least 4 are needed", fields.len())).hint(FORM));
            };
            let cidr = prefix(cidr).map_err(|message| error(message).hint(FORM))?;
            let city = word(city);
            // All but the prefix may be empty.
            let region =
                [region, country, GLOBAL].into_iter().find(|name| !name.is_empty()).unwrap_or(GLOBAL);
            let wider = if country == region { "" } else { country };
            let row = Row { service: name, region, network_border_group: &city, wider, cidr };
            builder.push(row).map_err(|reason| error(reason.to_string()).hint(FORM))?;
        }
        if builder.is_empty() {
            return Err(ParseError::new(name, 0, "there is no prefix in it").hint(CUT));
        }
        Ok(builder.finish(None))
    }
}

/// Returns the name of a city as policies write it: ASCII without spaces. A city that cannot be written so has no name.
fn word(city: &str) -> String {
    let word = city.split_whitespace().collect::<Vec<_>>().join("-");
    if word.bytes().all(|b| b.is_ascii_graphic()) { word } else { String::new() }
}
