//! Several controllers, one Lease.

use std::time::{Duration, Instant};

use egress_agent::controller::lease::{Elector, Standing, Timing};
use egress_tests::lab::api::{Backend, Fault, Kind, Rule, Server, Verb, When};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use serde_json::{Value, json};
use tokio::sync::watch::Receiver;

const NAMESPACE: &str = "default";

/// As short as whole seconds allow.
const TIMING: Timing = Timing {
    lease: Duration::from_secs(2),
    deadline: Duration::from_millis(1200),
    pause: Duration::from_millis(100),
};

fn elector(server: &Server, lease: &str, who: &str) -> (Elector, Receiver<Standing>) {
    // A client of its own: a connection is driven by the runtime that opened it, which stands still while the server's own calls wait.
    let client = server.worker().client(&server.kubeconfig()).expect("a client can be made");
    Elector::new(Api::<Lease>::namespaced(client, NAMESPACE), lease, who, TIMING)
}

fn leads(standing: &Receiver<Standing>) -> bool {
    standing.borrow().leads(Instant::now())
}

fn follows(standing: &Receiver<Standing>, leader: &str) -> bool {
    *standing.borrow() == Standing::Follower { leader: leader.to_owned() }
}

fn spec(server: &Server, lease: &str) -> Value {
    let object = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "namespace": NAMESPACE, "name": lease },
    });
    server.get(&object).expect("there is a Lease")["spec"].clone()
}

/// Tries with one until it leads. Returns how long that took.
async fn until_it_leads(elector: &mut Elector, standing: &Receiver<Standing>) -> Duration {
    let began = Instant::now();
    while !leads(standing) {
        assert!(began.elapsed() < 10 * TIMING.lease, "it never leads: {:?}", standing.borrow());
        elector.round().await;
        tokio::time::sleep(TIMING.pause / 4).await;
    }
    began.elapsed()
}

/// The first one leads, and the other one when it is told or the Lease has run out, not before.
pub(crate) async fn succession(server: &Server) {
    let (mut one, first) = elector(server, "succession", "one");
    let (mut two, second) = elector(server, "succession", "two");
    one.round().await;
    assert!(leads(&first));
    two.round().await;
    assert!(follows(&second, "one"), "{:?}", second.borrow());
    assert_eq!(spec(server, "succession")["holderIdentity"], "one");
    one.round().await;
    assert_eq!(spec(server, "succession")["leaseTransitions"], 0, "a renewal is no change of hands");

    one.release().await;
    assert!(!leads(&first));
    two.round().await;
    assert!(leads(&second), "what is given back is free at once");
    one.round().await;
    assert!(follows(&first, "two"));

    // Now it dies. What it wrote last may have been seen up to one round late.
    two.round().await;
    let died = Instant::now();
    one.round().await;
    let waited = until_it_leads(&mut one, &first).await;
    assert!(waited >= TIMING.lease - TIMING.pause, "a Lease is not taken while it lasts: {waited:?}");
    assert!(!leads(&second), "who held it has stopped by its own clock");
    assert!(died.elapsed() < 2 * TIMING.lease);
    two.round().await;
    assert!(follows(&second, "one"));
    assert_eq!(spec(server, "succession")["leaseTransitions"], 1);
}

/// Of many that take an abandoned Lease at the same moment, one gets it.
pub(crate) async fn race(server: &Server) {
    for turn in 0..20 {
        let lease = format!("race-{turn}");
        let mut all: Vec<_> = (0..4).map(|who| elector(server, &lease, &format!("who-{who}"))).collect();
        let rounds = all.iter_mut().map(|(elector, _)| elector.round());
        futures::future::join_all(rounds).await;
        let leaders: Vec<usize> = (0..all.len()).filter(|who| leads(&all[*who].1)).collect();
        let [leader] = leaders[..] else { panic!("turn {turn}: {leaders:?} lead") };
        // It gives it back, and all of them see that before any takes it.
        all[leader].0.release().await;
        let rounds = all.iter_mut().map(|(elector, _)| elector.round());
        futures::future::join_all(rounds).await;
        let leaders = all.iter().filter(|(_, standing)| leads(standing)).count();
        assert_eq!(leaders, 1, "turn {turn}");
    }
}

/// Somebody writes another name into it.
pub(crate) async fn theft(server: &Server) {
    let (mut one, first) = elector(server, "theft", "one");
    one.round().await;
    assert!(leads(&first));
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "namespace": NAMESPACE, "name": "theft" },
    });
    let thief = json!({ "spec": { "holderIdentity": "thief" } });
    server.merge(&lease, &thief).expect("the server takes it");
    one.round().await;
    assert!(follows(&first, "thief"), "{:?}", first.borrow());
    // The thief does nothing more, so the Lease runs out.
    until_it_leads(&mut one, &first).await;
    assert_eq!(spec(server, "theft")["holderIdentity"], "one");
}

/// The API server answers with errors, or not at all.
pub(crate) async fn faults(server: &Server) {
    if server.backend() == Backend::Real {
        return;
    }
    let Some(double) = server.as_double() else { panic!("it is the double") };
    let (mut one, first) = elector(server, "faults", "one");
    one.round().await;
    let began = Instant::now();
    for fault in [Fault::Refuse { code: 500, retry_after: None }, Fault::Silence] {
        let rule = double.faults().add(Rule::new(fault, When::Always).kind(Kind::Lease));
        while leads(&first) {
            assert!(began.elapsed() < 4 * TIMING.deadline, "it leads without a Lease");
            one.round().await;
            tokio::time::sleep(TIMING.pause).await;
        }
        double.faults().remove(rule);
        assert!(until_it_leads(&mut one, &first).await < TIMING.lease, "it is still its own");
    }
    // One renewal that fails is nothing.
    let rule = double.faults().add(
        Rule::new(Fault::Refuse { code: 429, retry_after: Some(1) }, When::Times(1))
            .kind(Kind::Lease)
            .verb(Verb::Patch),
    );
    one.round().await;
    assert!(leads(&first));
    assert_eq!(double.faults().strikes(rule), 1);
    one.round().await;
    assert!(leads(&first));
}
