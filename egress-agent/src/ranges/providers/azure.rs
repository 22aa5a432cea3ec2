//! Azure: the weekly `ServiceTags_*.json` of one of its clouds.
//!
//! A tag such as `Sql` is the service everywhere, `Sql.EastUS` its part in a region. The first has region `GLOBAL` here, which repeats
//! the others. A region has two names, that in the tags and the one in the field `region` (`FranceCentral` and `centralfrance`).

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{
    ParseError, Provider, checked,
    json::{self, Prefix, Text},
};
use crate::policy::ranges::{Builder, GLOBAL, Row, Table};

/// Microsoft Azure.
pub(super) struct Azure;

const FORM: &str = "Azure's ServiceTags file has changeNumber, and values with name and properties";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document<'d> {
    change_number: u64,
    #[serde(borrow)]
    values: Vec<Tag<'d>>,
}

#[derive(Deserialize)]
struct Tag<'d> {
    #[serde(borrow)]
    name: Text<'d>,
    #[serde(borrow)]
    properties: Properties<'d>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Properties<'d> {
    #[serde(borrow)]
    region: Text<'d>,
    address_prefixes: Vec<Prefix>,
}

impl Provider for Azure {
    fn name(&self) -> &'static str {
        "azure"
    }

    fn urls(&self) -> &'static [&'static str] {
        &["https://www.microsoft.com/en-us/download/details.aspx?id=56519"]
    }

    fn parse(&self, documents: &[&[u8]]) -> Result<Table, ParseError> {
        let name = self.name();
        let [document] = checked(name, documents)?;
        let document: Document<'_> = json::read(name, 0, document, FORM)?;
        let regions = regions(&document.values);
        let mut builder = Builder::new();
        builder.global_is_sum();
        for tag in &document.values {
            let region = &*tag.properties.region.0;
            let (service, region, other) = place(&tag.name.0, region, &regions);
            for Prefix(cidr) in &tag.properties.address_prefixes {
                let row = Row { service, region, network_border_group: other, wider: "", cidr: *cidr };
                builder.push(row).map_err(|error| {
                    let message = format!("tag {}: {error}", crate::policy::document::shown(&tag.name.0));
                    ParseError::new(name, 0, message).hint(FORM)
                })?;
            }
        }
        if builder.is_empty() {
            return Err(ParseError::new(name, 0, "there is no prefix in it").hint(FORM));
        }
        Ok(builder.finish(Some(document.change_number)))
    }
}

/// Returns for each value of the field `region`, in lower case, what most tags in that region end with: the region's name in tags.
fn regions<'d>(tags: &'d [Tag<'_>]) -> BTreeMap<String, &'d str> {
    // Distinct tags, by region and lower case of the end.
    let mut ends: BTreeMap<String, BTreeMap<String, BTreeSet<&str>>> = BTreeMap::new();
    for tag in tags {
        let (name, region) = (&*tag.name.0, &*tag.properties.region.0);
        if let Some((_, end)) = name.rsplit_once('.').filter(|_| !region.is_empty()) {
            let ends = ends.entry(region.to_ascii_lowercase()).or_default();
            ends.entry(end.to_ascii_lowercase()).or_default().insert(name);
        }
    }
    let end = |name: &'d str| name.rsplit_once('.').map_or(name, |(_, end)| end);
    ends.into_iter()
        .filter_map(|(region, ends)| {
            // Of several as frequent the last in order, and of several spellings the first.
            let tags = ends.into_values().max_by_key(BTreeSet::len)?;
            Some((region, tags.into_iter().map(end).min()?))
        })
        .collect()
}

/// Returns the service, the region, and the region's other name, of a tag with this name and this field `region`.
fn place<'d>(
    tag: &'d str,
    region: &'d str,
    regions: &BTreeMap<String, &'d str>,
) -> (&'d str, &'d str, &'d str) {
    if region.is_empty() {
        return (tag, GLOBAL, "");
    }
    let name = regions.get(&region.to_ascii_lowercase()).copied().unwrap_or(region);
    match tag.rsplit_once('.') {
        Some((service, end)) if end.eq_ignore_ascii_case(name) || end.eq_ignore_ascii_case(region) => {
            (service, name, region)
        }
        // Its end is no region: Sql.EastUS2Stage is in eastus2, and not what somebody means who writes Sql and EastUS2.
        _ => (tag, name, region),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_services_in_regions() {
        let tags = [
            ("Sql", "", ("Sql", "GLOBAL", "")),
            ("AzureFrontDoor.Frontend", "", ("AzureFrontDoor.Frontend", "GLOBAL", "")),
            ("Sql.EastUS2", "eastus2", ("Sql", "EastUS2", "eastus2")),
            ("Storage.EastUS2", "eastus2", ("Storage", "EastUS2", "eastus2")),
            ("Sql.EastUS2Stage", "eastus2", ("Sql.EastUS2Stage", "EastUS2", "eastus2")),
            ("Sql.FranceCentral", "centralfrance", ("Sql", "FranceCentral", "centralfrance")),
            ("Storage.FranceCentral", "centralfrance", ("Storage", "FranceCentral", "centralfrance")),
            ("AzureCloud.centralfrance", "centralfrance", ("AzureCloud", "FranceCentral", "centralfrance")),
            ("Plain", "northeurope", ("Plain", "northeurope", "northeurope")),
        ];
        let list: Vec<Tag<'_>> = tags
            .iter()
            .map(|(name, region, _)| Tag {
                name: Text((*name).into()),
                properties: Properties { region: Text((*region).into()), address_prefixes: Vec::new() },
            })
            .collect();
        let regions = regions(&list);
        for (tag, region, expected) in tags {
            assert_eq!(place(tag, region, &regions), expected, "{tag} in {region}");
        }
    }
}
