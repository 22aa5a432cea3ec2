//! Any bytes as what a provider publishes, as definitions of services, or as a part of a publication; a first line says which.
#![no_main]

use egress_agent::{
    policy::ranges::{Builder, Custom},
    ranges::{
        providers::provider,
        publish::{self, Head, Sha256},
    },
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
    let Ok(kind) = std::str::from_utf8(&bytes[..end]) else { return };
    let bytes = &bytes[end + 1..];
    match kind {
        "chunk" => {
            let mut builder = Builder::new();
            if publish::read(bytes, Sha256::of(bytes), &mut builder).is_ok() {
                let table = builder.finish(None);
                let publication = publish::encode("p", &table, 0).expect("it came from a chunk");
                let chunks: Vec<_> = publication
                    .head
                    .chunks
                    .iter()
                    .map(|chunk| (chunk, publication.chunks[&chunk.sha256].as_slice()))
                    .collect();
                assert_eq!(publish::decode(&publication.head, &chunks).expect("it was just written"), table);
            }
        }
        "head" => {
            if let Ok(head) = Head::parse(bytes) {
                assert_eq!(Head::parse(head.text().as_bytes()), Ok(head));
            }
        }
        "custom" => {
            if let Ok(text) = std::str::from_utf8(bytes) {
                let faults = Custom::parse(&[("custom", text)]).err();
                assert!(faults.is_none_or(|faults| !faults.is_empty()));
            }
        }
        name => {
            if let Some(Ok(table)) = provider(name).map(|provider| provider.parse(&[bytes])) {
                assert!(!table.collapsed().is_empty() || table.domains().len() > 0);
            }
        }
    }
});
