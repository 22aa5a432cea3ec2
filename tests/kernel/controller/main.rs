//! The controller's parts against an API server: the double, and a real one where its binaries are.

mod lease;
mod policies;
mod ranges;
mod reports;
mod rights;
mod startup;

use std::{io::Write as _, pin::Pin};

use egress_tests::lab::api::{Server, real};

type Running<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;
type Case = for<'a> fn(&'a Server) -> Running<'a>;

const CASES: &[(&str, Case)] = &[
    ("one leads, and then another", |server| Box::pin(lease::succession(server))),
    ("one of many takes a lease", |server| Box::pin(lease::race(server))),
    ("a lease is stolen", |server| Box::pin(lease::theft(server))),
    ("the server fails", |server| Box::pin(lease::faults(server))),
    ("ranges are published", |server| Box::pin(ranges::publication(server))),
    ("policies become objects", |server| Box::pin(policies::follow(server))),
    ("two installations and one policy", |server| Box::pin(policies::two(server))),
    ("two installations and one namespace", |server| Box::pin(ranges::another(server))),
    ("people ask for the status of a cluster", |server| Box::pin(reports::asked(server))),
    ("reports are written", |server| Box::pin(reports::written(server))),
    ("a thousand policies", |server| Box::pin(policies::many(server))),
    ("new nodes wait for their agent", |server| Box::pin(startup::taints(server))),
    ("each right is needed, and named where it is missing", |server| Box::pin(rights::named(server))),
    ("another one takes the work over", |server| Box::pin(ranges::takeover(server))),
];

fn run(server: &Server) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime can be made");
    let only = std::env::var("EGRESS_CASE").ok();
    for (name, case) in CASES {
        if only.as_ref().is_some_and(|only| !name.contains(only)) {
            continue;
        }
        println!("{name}");
        runtime.block_on(case(server));
    }
}

#[test]
fn on_the_double() {
    run(&Server::double().expect("the double starts"));
}

#[test]
fn on_a_real_server() {
    match real::binaries() {
        Ok(binaries) => {
            run(&Server::real(&binaries, &real::Settings::default()).expect("the real server starts"));
        }
        Err(error) => {
            // Past the harness, which shows nothing of tests that pass, and which may have begun a line.
            let line = format!("\nSKIPPED cluster: {error:#}\n");
            std::io::stdout().write_all(line.as_bytes()).expect("standard output is open");
        }
    }
}
