//! The agent as it ships, fed by an API server: real pods' cgroups and namespaces, real sockets, objects made through the API.
//!
//! What holds of either server runs on the double and, where its binaries are, on a real one; faults and scale need the double.

mod churn;
mod demand;
mod doubt;
mod faults;
mod input;
mod lifecycle;
mod policies;
mod ranges;
mod rights;
mod scene;
mod speed;
mod starts;
mod startup;
mod summary;

use std::{
    io::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use egress_tests::lab::api::{Server, real};

/// A case: it has a node, and namespaces that begin with a name of its own.
type Case = fn(&Server, &str);

/// Makes a test of each case on a double of its own, and a list of all for the real server.
macro_rules! cases {
    ($($name:ident: $case:path,)+) => {
        mod on_the_double {
            use super::Server;

            $(
                #[test]
                fn $name() {
                    $case(&Server::double().expect("the double starts"), "t");
                }
            )+
        }

        const CASES: &[(&str, Case)] = &[$((stringify!($name), $case)),+];
    };
}

cases! {
    policies_come_change_and_go: crate::policies::come_change_and_go,
    labels_of_pods_select: crate::policies::labels_of_pods_select,
    a_pod_comes_again_with_another_uid: crate::policies::a_pod_comes_again,
    a_service_is_followed: crate::policies::a_service_is_followed,
    ranges_come_and_change: crate::ranges::come_and_change,
    what_is_denied_is_denied_before_it_is_known: crate::ranges::denied_before_known,
    a_start_without_a_server_keeps_what_is_pinned: crate::startup::pins_hold,
    a_start_after_a_reboot_uses_the_kept_state: crate::startup::kept_state_holds,
    an_agent_ends_and_the_next_takes_over: crate::lifecycle::upgrade,
    a_detached_program_is_attached_again: crate::lifecycle::detached,
    a_node_tells_what_it_enforces: crate::summary::told,
    odd_objects_keep_nothing_from_working: crate::input::odd_objects,
}

#[test]
fn on_a_real_server() {
    let binaries = match real::binaries() {
        Ok(binaries) => binaries,
        Err(error) => return skip(&format!("{error:#}")),
    };
    let server = Server::real(&binaries, &real::Settings::default()).expect("the real server starts");
    if let Err(why) = scene::apply_rbac(&server) {
        return skip(&format!("{why:#}"));
    }
    let only = std::env::var("EGRESS_CASE").ok();
    let mut failed = Vec::new();
    for (number, (name, case)) in CASES.iter().enumerate() {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let began = Instant::now();
        if catch_unwind(AssertUnwindSafe(|| case(&server, &format!("t{number}")))).is_err() {
            failed.push(*name);
        }
        println!("{name}: {:?}", began.elapsed());
    }
    assert!(failed.is_empty(), "on a real server fail: {failed:?}");
}

/// Tells that a test did not run, past the harness, which shows nothing of tests that pass.
fn skip(why: &str) {
    // The harness may have begun a line with the name of the test.
    let line = format!("\nSKIPPED cluster: {why}\n");
    std::io::stdout().write_all(line.as_bytes()).expect("standard output is open");
}
