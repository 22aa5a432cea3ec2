//! Bills of materials in the format [CycloneDX 1.6](https://cyclonedx.org/docs/1.6/json/).

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::Release;
use crate::crates::Crate;
use crate::files;
use crate::program::Architecture;

/// The media type of such a bill.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.cyclonedx+json";

/// Returns the bill of one program; `linked` begins with the program's own crate, `others` are what is in it or beside it and is no crate, such as
/// `musl 1.2.5`.
pub(crate) fn cyclonedx(
    release: &Release<'_>,
    architecture: Architecture,
    linked: &[Crate],
    others: &[(String, PathBuf)],
    program: &[u8],
) -> Result<Vec<u8>> {
    let sum = files::sha256(program);
    let references: Vec<String> = linked.iter().map(package_url).collect();
    let mut components: Vec<Value> = linked.iter().skip(1).map(component).collect();
    for value in &mut components {
        value["type"] = json!("library");
    }
    for (other, _) in others {
        let (name, version) = match other.rsplit_once(' ') {
            Some((name, version)) if version.starts_with(|first: char| first.is_ascii_digit()) => {
                (name, Some(version))
            }
            _ => (other.as_str(), None),
        };
        let mut value = json!({ "type": "library", "bom-ref": format!("other:{other}"), "name": name });
        if let Some(version) = version {
            value["version"] = json!(version);
        }
        components.push(value);
    }
    let (own, _) = linked.split_first().context("cargo lists nothing")?;
    let mut itself = component(own);
    itself["type"] = json!("application");
    itself["version"] = json!(release.version);
    itself["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
    itself["properties"] = json!([
        { "name": "egress-agent:platform", "value": format!("linux/{architecture}") },
        { "name": "egress-agent:revision", "value": release.revision },
    ]);
    let dependencies: Vec<Value> = linked
        .iter()
        .zip(&references)
        .map(|(part, reference)| {
            let uses: Vec<&String> = part.uses.iter().map(|place| &references[*place]).collect();
            json!({ "ref": reference, "dependsOn": uses })
        })
        .collect();
    let bill = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        // The same program has the same number: it is made of the program's checksum, marked as a UUID of version 8.
        "serialNumber": format!(
            "urn:uuid:{}-{}-8{}-8{}-{}", &sum[..8], &sum[8..12], &sum[13..16], &sum[17..20], &sum[20..32]
        ),
        "version": 1,
        "metadata": {
            "timestamp": time(release.created)?,
            "tools": { "components": [{
                "type": "application", "name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION"),
            }] },
            "component": itself,
        },
        "components": components,
        "dependencies": dependencies,
    });
    let mut bytes = serde_json::to_vec_pretty(&bill).context("cannot write a bill of materials")?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn component(part: &Crate) -> Value {
    let reference = package_url(part);
    let mut value = json!({
        "bom-ref": reference, "purl": reference, "name": part.name, "version": part.version,
    });
    if !part.licence.is_empty() {
        // Old crates separate with a slash what SPDX separates with OR.
        let expression = part.licence.replace(" / ", "/").replace('/', " OR ");
        value["licenses"] = json!([{ "expression": expression }]);
    }
    if !part.authors.is_empty() {
        value["authors"] = part.authors.iter().map(|author| json!({ "name": author })).collect();
    }
    if let Some(sum) = &part.checksum {
        value["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
    }
    if !part.repository.is_empty() {
        value["externalReferences"] = json!([{ "type": "vcs", "url": part.repository }]);
    }
    value
}

/// The [package URL](https://github.com/package-url/purl-spec) of a crate.
fn package_url(part: &Crate) -> String {
    // A plus begins build metadata in a version and would be read as a space.
    format!("pkg:cargo/{}@{}", part.name, part.version.replace('+', "%2B"))
}

/// Returns the time as RFC 3339 says it, in UTC.
pub(crate) fn time(seconds: u64) -> Result<String> {
    let seconds = i64::try_from(seconds).context("the time is out of range")?;
    Ok(jiff::Timestamp::from_second(seconds).context("the time is out of range")?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, licence: &str, uses: &[usize]) -> Crate {
        Crate {
            name: name.to_owned(),
            version: "1.0.0+x".to_owned(),
            licence: licence.to_owned(),
            authors: Vec::new(),
            repository: String::new(),
            checksum: Some("ab".repeat(32)),
            folder: PathBuf::new(),
            uses: uses.iter().copied().collect(),
        }
    }

    #[test]
    fn a_bill_says_what_the_program_is_made_of() {
        let release =
            Release { name: "r/egress-agent", version: "1.2.3", revision: "abc", created: 0, source: None };
        let linked = [part("egress-agent", "Apache-2.0", &[1]), part("a", "MIT/Apache-2.0", &[])];
        let others = [("musl 1.2.5".to_owned(), PathBuf::new()), ("a list".to_owned(), PathBuf::new())];
        let write = || {
            cyclonedx(&release, Architecture::Arm64, &linked, &others, b"program").expect("it can be written")
        };
        let bytes = write();
        assert_eq!(bytes, write());
        let bill: Value = serde_json::from_slice(&bytes).expect("it is JSON");
        assert_eq!(bill["metadata"]["timestamp"], "1970-01-01T00:00:00Z");
        let own = &bill["metadata"]["component"];
        assert_eq!((&own["version"], &own["type"]), (&json!("1.2.3"), &json!("application")));
        assert_eq!(own["hashes"][0]["content"], files::sha256(b"program"));
        assert_eq!(own["properties"][0]["value"], "linux/arm64");
        assert_eq!(bill["components"].as_array().expect("a list").len(), 3);
        assert_eq!(
            (&bill["components"][1]["name"], &bill["components"][1]["version"]),
            (&json!("musl"), &json!("1.2.5"))
        );
        assert_eq!(bill["components"][2]["name"], "a list");
        assert_eq!(bill["components"][0]["purl"], "pkg:cargo/a@1.0.0%2Bx");
        assert_eq!(bill["components"][0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(bill["dependencies"][0]["dependsOn"], json!(["pkg:cargo/a@1.0.0%2Bx"]));
        let number = bill["serialNumber"].as_str().expect("text");
        let groups: Vec<usize> = number["urn:uuid:".len()..].split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12], "{number}");
    }
}
