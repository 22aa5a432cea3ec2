//! The webhook as it ships, asked by a real API server: the shipped manifests, rights and configuration, kubectl as the user.
//!
//! Nothing here can be done with the double, which admits everything.

mod guards;
mod onboarding;
mod policies;
mod ranges;
mod rights;
mod rotation;
mod scene;

use std::{
    io::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use egress_tests::lab::api::{Server, real};

use self::scene::Scene;

/// A case: it has namespaces that begin with a name of its own.
type Case = fn(&Scene<'_>, &str);

/// In this order: the last ones end the webhook.
const CASES: &[(&str, Case)] = &[
    ("a refusal is told word for word", policies::refusal),
    ("a good policy is taken and warned of", policies::acceptance),
    ("only labelled maps in namespaces that say so are judged", policies::scope),
    ("clouds' services are warned of once their ranges are published", ranges::warned_of),
    ("the label comes and goes", policies::label),
    ("namespaces say how governance is taken", policies::governance),
    ("a policy without its key or of great size is refused without the webhook", guards::shape),
    ("a tenant cannot switch validation off", guards::switch),
    ("the webhook has the rights it needs and no others", guards::rights),
    ("each right is needed, and named where it is missing", rights::named),
    ("the walk-through for a new tenant does what it says", onboarding::walk_through),
    ("certificates change under load and no request is lost", rotation::under_load),
    ("a webhook that is down holds up policies and nothing else", policies::outage),
];

#[test]
fn on_a_real_server() {
    let binaries = match real::binaries() {
        Ok(binaries) => binaries,
        Err(error) => return skip(&format!("{error:#}")),
    };
    if let Err(error) = scene::kubectl() {
        return skip(&format!("{error:#}"));
    }
    let server = Server::real(&binaries, &real::Settings::default()).expect("the real server starts");
    let scene = Scene::new(&server);
    let only = std::env::var("EGRESS_CASE").ok();
    let mut failed = Vec::new();
    for (number, (name, case)) in CASES.iter().enumerate() {
        if only.as_ref().is_some_and(|only| !name.contains(only)) {
            continue;
        }
        let began = Instant::now();
        if catch_unwind(AssertUnwindSafe(|| case(&scene, &format!("t{number}")))).is_err() {
            failed.push(*name);
        }
        println!("{name}: {:?}", began.elapsed());
    }
    assert!(failed.is_empty(), "these fail: {failed:?}");
}

/// Tells that a test did not run, past the harness, which shows nothing of tests that pass.
fn skip(why: &str) {
    // The harness may have begun a line with the name of the test.
    let line = format!("\nSKIPPED cluster: {why}\n");
    std::io::stdout().write_all(line.as_bytes()).expect("standard output is open");
}
