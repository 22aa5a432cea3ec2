//! Any bytes as the body of a request to the webhook.
#![no_main]

use egress_agent::{
    check::Rules,
    policy::governance::Profile,
    webhook::review::{Governance, Review},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(review) = Review::read(bytes) else { return };
    let governance = Governance { profile: Profile::Required, notice: None };
    let answer = review.judge(&Rules::default(), &governance, 1_800_000_000);
    assert!(
        answer.body.starts_with(
            br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":""#
        )
    );
});
