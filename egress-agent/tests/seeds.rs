//! What the fuzzer starts from, and what it has found, replayed: see `tests/fuzz`.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use egress_agent::{
    check::{Rules, Subject},
    policy::{
        cluster::NsName,
        governance::Profile,
        ranges::{Builder, Custom},
    },
    ranges::{
        accept::{self, Limits},
        providers::provider,
        publish::{self, Head, Sha256},
    },
    webhook::review::{Governance, Review},
};

const NOW: u64 = 1_800_000_000;
/// Debug builds on busy machines are slow; what never ends is not seen by a smaller limit either.
const LIMIT: Duration = Duration::from_secs(5);

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let seeds: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("the folder can be listed").path();
            let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (path.display().to_string(), bytes)
        })
        .collect();
    assert!(seeds.len() > 4, "{}: {} seeds", folder.display(), seeds.len());
    seeds
}

#[test]
fn policy_documents() {
    let id = NsName::new("shop", "egress");
    let mut refused = 0;
    let seeds = seeds("policy_document");
    for (name, bytes) in &seeds {
        let text = std::str::from_utf8(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (old, text) = text.split_once("\n---\n").map_or((None, text), |(old, text)| (Some(old), text));
        for profile in Profile::ALL {
            let began = Instant::now();
            let judgement = Rules::default().judge(&Subject { id: &id, text, old, profile }, NOW);
            assert!(began.elapsed() < LIMIT, "{name}");
            assert_eq!(judgement.refused(), judgement.message().is_some(), "{name}");
            assert!(judgement.policy.is_some() || judgement.refused(), "{name}: nothing without a reason");
            refused += usize::from(judgement.refused());
        }
    }
    assert!(
        refused > 0 && refused < seeds.len() * Profile::ALL.len(),
        "some are good, some are not: {refused}"
    );
}

#[test]
fn admission_reviews() {
    let governance = Governance { profile: Profile::Off, notice: None };
    let (mut allowed, mut refused, mut none) = (0, 0, 0);
    for (name, bytes) in seeds("admission_review") {
        let began = Instant::now();
        match Review::read(&bytes) {
            Err(error) => {
                assert!(!error.to_string().is_empty(), "{name}");
                none += 1;
            }
            Ok(review) => {
                let answer = review.judge(&Rules::default(), &governance, NOW);
                let body: serde_json::Value =
                    serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{name}: {error}"));
                match body["response"]["allowed"].as_bool() {
                    Some(true) => allowed += 1,
                    Some(false) => refused += 1,
                    None => panic!("{name}: {body}"),
                }
            }
        }
        assert!(began.elapsed() < LIMIT, "{name}");
    }
    assert_eq!((allowed, refused, none), (3, 5, 1), "as the names of the seeds say");
}

#[test]
fn published_ranges() {
    let (mut good, mut refused) = (0, 0);
    for (name, bytes) in seeds("ranges") {
        let began = Instant::now();
        // A line of its own says what the rest is.
        let end = bytes
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or_else(|| panic!("{name} has no first line"));
        let (kind, bytes) = (std::str::from_utf8(&bytes[..end]).expect("it is text"), &bytes[end + 1..]);
        let error = match kind {
            "chunk" => {
                let mut builder = Builder::new();
                publish::read(bytes, Sha256::of(bytes), &mut builder).err().map(|error| error.to_string())
            }
            "head" => Head::parse(bytes).err().map(|error| error.to_string()),
            "custom" => {
                let text = std::str::from_utf8(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
                Custom::parse(&[("custom", text)]).err().map(|faults| faults[0].to_string())
            }
            provider_name => {
                let provider = provider(provider_name).unwrap_or_else(|| panic!("{name}: no such provider"));
                match provider.parse(&[bytes]) {
                    Ok(table) => {
                        accept::accept(None, &table, &Limits::default()).err().map(|error| error.to_string())
                    }
                    Err(error) => Some(error.to_string()),
                }
            }
        };
        assert!(began.elapsed() < LIMIT, "{name}");
        match error {
            None => good += 1,
            Some(error) => {
                assert!(!error.is_empty(), "{name}");
                refused += 1;
            }
        }
    }
    assert_eq!((good, refused), (9, 4), "as the names of the seeds say");
}
