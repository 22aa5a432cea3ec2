//! Certificates that live for seconds, under load.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use egress_tests::lab::{agent, api::Server};
use serde_json::{Value, json};

use crate::scene::{GOOD, JSON, LIMIT, Scene, good, policy};

const SECRET: &str = "/api/v1/namespaces/egress-webhook/secrets/egress-webhook-certificates";
const SHORT: [&str; 6] = ["--ca-life", "30s", "--certificate-life", "16s", "--settle", "3s"];

/// How many ask at once.
const ASKING: usize = 6;

/// The Secret as it is now, if it is there: the CAs and the leaf.
fn kept(server: &Server) -> Option<(String, String)> {
    let secret = server.request("GET", SECRET, JSON, &Value::Null).ok()?;
    let text = |key: &str| secret["data"][key].as_str().map(str::to_owned);
    Some((text("ca.crt")?, text("tls.crt")?))
}

pub(crate) fn under_load(scene: &Scene<'_>, name: &str) {
    let namespace = scene.validated(&format!("{name}-shop"));
    // The certificates of long life make way for those of short life, as after a change of flags.
    let status = good(scene.take().terminate(&scene.keeper));
    assert!(status.success(), "{status}");
    good(scene.server.request("DELETE", SECRET, JSON, &json!({})));
    scene.start(&SHORT);
    // A second replica wants to write the same Secret.
    let mut other = scene.spawn(good(agent::free_address()), &SHORT);
    good(other.wait_ready(LIMIT));

    let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut leafs, mut cas, mut most_cas) = (BTreeSet::new(), BTreeSet::new(), 0);
    let lost: Vec<String> = thread::scope(|scope| {
        let asking: Vec<_> = (0..ASKING)
            .map(|number| {
                let (server, stop, asked) = (scene.server, &stop, &asked);
                let namespace = namespace.as_str();
                let object = policy(namespace, &format!("p{number}"), GOOD);
                scope.spawn(move || {
                    let mut lost = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        asked.fetch_add(1, Ordering::Relaxed);
                        let path = format!("/api/v1/namespaces/{namespace}/configmaps?dryRun=All");
                        if let Err(error) = server.request("POST", &path, JSON, &object) {
                            lost.push(format!("{error:#}"));
                        }
                        thread::sleep(Duration::from_millis(10));
                    }
                    lost
                })
            })
            .collect();
        let began = Instant::now();
        let mut taken = false;
        while began.elapsed() < Duration::from_secs(60) {
            if let Some((ca, leaf)) = kept(scene.server) {
                leafs.insert(leaf);
                // Base64 of PEM: the length tells how many there are.
                most_cas = most_cas.max(ca.len());
                cas.insert(ca);
            }
            if !taken && began.elapsed() > Duration::from_secs(40) {
                // Somebody takes the Secret away, as people do to force a new CA.
                good(scene.server.request("DELETE", SECRET, JSON, &json!({})));
                taken = true;
            }
            thread::sleep(Duration::from_millis(100));
        }
        stop.store(true, Ordering::Relaxed);
        asking.into_iter().flat_map(|one| one.join().expect("it does not panic")).collect()
    });
    println!(
        "{} requests, {} lost, {} leafs, {} bundles of CAs",
        asked.load(Ordering::Relaxed),
        lost.len(),
        leafs.len(),
        cas.len()
    );
    assert!(lost.is_empty(), "{} were lost, such as {:?}\n{}", lost.len(), lost[0], scene.log());
    assert!(asked.load(Ordering::Relaxed) > 1000, "that is no load");
    assert!(leafs.len() >= 4, "the leaf changed: {}", leafs.len());
    assert!(cas.len() >= 5, "CAs came and went: {}", cas.len());
    let shortest = cas.iter().map(String::len).min().expect("there are some");
    assert!(most_cas > shortest + shortest / 2, "two were trusted for a while");
    let metrics = good(scene.with(egress_tests::lab::agent::Agent::metrics));
    assert!(metrics.sum("egress_webhook_certificate_reloads_total", &[("result", "good")]) >= 4.0);
    // Both show the same in the end, whoever wrote it.
    good(other.terminate(&scene.keeper));
    let status = good(scene.take().terminate(&scene.keeper));
    assert!(status.success(), "{status}");
    good(scene.server.request("DELETE", SECRET, JSON, &json!({})));
    scene.start(&[]);
    assert!(kept(scene.server).is_some());
}
