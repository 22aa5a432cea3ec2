//! Any text as a policy document, and as the document another takes the place of.
#![no_main]

use egress_agent::{
    check::{Rules, Subject},
    policy::{cluster::NsName, governance::Profile},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // A line of its own parts the old text from the new one.
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (old, text) = match text.split_once("\n---\n") {
        Some((old, text)) => (Some(old), text),
        None => (None, text),
    };
    let id = NsName::new("shop", "egress");
    for profile in Profile::ALL {
        let judgement = Rules::default().judge(&Subject { id: &id, text, old, profile }, 1_800_000_000);
        assert_eq!(judgement.refused(), judgement.message().is_some());
        assert!(judgement.policy.is_some() || judgement.refused());
    }
});
