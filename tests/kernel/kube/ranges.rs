//! Clouds' address ranges that somebody publishes through the API server.

use egress_agent::{
    k8s::published,
    ranges::{providers, publish},
};
use egress_tests::lab::{api::Server, at, wire::Outcome};
use serde_json::{Value, json};

use crate::scene::{BAD, GOOD, Scene, allow, until, wait};

/// The objects of a publication of AWS' ranges with these rows: service, region, prefix. The head is the last one.
fn publication(namespace: &str, token: u64, rows: &[(&str, &str, &str)]) -> Vec<Value> {
    let rows: Vec<Value> = rows
        .iter()
        .map(|(service, region, prefix)| {
            json!({ "ip_prefix": prefix, "region": region, "service": service, "network_border_group": region })
        })
        .collect();
    let file = json!({ "syncToken": token.to_string(), "createDate": "2026-11-22-00-00-00", "prefixes": rows, "ipv6_prefixes": [] });
    let aws = providers::provider("aws").expect("there is one");
    let table = aws.parse(&[file.to_string().as_bytes()]).expect("it is what AWS publishes");
    let publication = publish::encode("aws", &table, token).expect("it is small");
    let objects = published::chunk_objects(&publication).chain([published::head_object(&publication.head)]);
    let objects = objects.map(|object| {
        let mut object = serde_json::to_value(object).expect("an object can be written");
        object["metadata"]["namespace"] = namespace.into();
        object
    });
    objects.collect()
}

fn s3(region: &str) -> Value {
    json!({ "name": "s3", "awsService": "s3", "regions": [region], "ports": [443] })
}

/// What is published is in force, and changes as a whole; what is broken leaves what was.
pub(crate) fn come_and_change(server: &Server, name: &str) {
    let scene = Scene::new(server, name);
    let here = scene.namespace.clone();
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    scene.policy("policy", &allow(&[s3("us-east-1")]));
    let mut agent = scene.run(&["--ranges-namespace", &here]);
    assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::NotPermitted);
    until("it says what is not known", || {
        agent.says("the addresses of AWS service s3 are not known yet") > 0
    });

    let rows = [("S3", "us-east-1", "192.0.2.0/24"), ("S3", "eu-west-1", "198.51.100.0/24")];
    let first = publication(&here, 100, &rows);
    first.iter().for_each(|object| drop(scene.put(object)));
    wait(&pod, GOOD, Outcome::Ok);
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted, "another region is not meant");
    let age = agent.scrape().sum("egress_cloud_ranges_age_seconds", &[("provider", "aws")]);
    assert!(age > 1e9, "it was published in 1970: {age}");

    // A head whose chunks are not all there changes nothing.
    let turned = [("S3", "us-east-1", "198.51.100.0/24"), ("S3", "eu-west-1", "192.0.2.0/24")];
    let second = publication(&here, 200, &turned);
    let (head, chunks) = second.split_last().expect("there is a head");
    scene.put(head);
    until("it is told", || agent.says("chunks are not there") > 0);
    assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::Ok);
    chunks.iter().for_each(|object| drop(scene.put(object)));
    wait(&pod, BAD, Outcome::Ok);
    assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::NotPermitted, "both have changed at once");

    // What is taken away stays in force, too: a change of what is allowed is never an accident's.
    second.iter().for_each(|object| scene.delete(object));
    scene.policy("policy", &allow(&[s3("eu-west-1")]));
    wait(&pod, GOOD, Outcome::Ok);
    agent.ready();
    drop(agent);
    scene.clean();
}

/// What is denied by a name nobody knows yet is denied wherever it may be.
pub(crate) fn denied_before_known(server: &Server, name: &str) {
    let scene = Scene::new(server, name);
    let here = scene.namespace.clone();
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    let policy = json!({
        "defaultAction": "allow",
        "deniedDestinations": [{ "name": "s3", "awsService": "S3" }],
    });
    scene.policy("policy", &policy);
    let agent = scene.run(&["--ranges-namespace", &here]);
    assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::NotPermitted);
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    let objects = publication(&here, 100, &[("S3", "us-east-1", "198.51.100.0/24")]);
    objects.iter().for_each(|object| drop(scene.put(object)));
    wait(&pod, GOOD, Outcome::Ok);
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted);
    drop(agent);
    scene.clean();
}

/// A start without an API server knows the ranges of before, with nothing pinned.
#[test]
fn a_start_without_a_server_uses_kept_ranges() {
    let server = Server::double().expect("the double starts");
    let scene = Scene::new(&server, "t");
    let here = scene.namespace.clone();
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    scene.policy("policy", &allow(&[s3("us-east-1")]));
    let objects = publication(&here, 100, &[("S3", "us-east-1", "192.0.2.0/24")]);
    objects.iter().for_each(|object| drop(scene.put(object)));
    let agent = scene.spawn_with_snapshot(&["--ranges-namespace", &here]);
    wait(&pod, GOOD, Outcome::Ok);
    let folder = format!("{}.ranges", scene.snapshot.display());
    let kept = std::path::Path::new(&folder).join("aws.json");
    until("they are kept", || kept.is_file() && scene.snapshot.is_file());
    scene.terminate(agent);
    scene.unload();
    server.stop().expect("the double stops");
    let agent = scene.spawn_with_snapshot(&["--ranges-namespace", &here]);
    wait(&pod, BAD, Outcome::NotPermitted);
    wait(&pod, GOOD, Outcome::Ok);
    drop(agent);
    server.resume().expect("the double goes on");
    scene.clean();
}

/// Without a controller, from the provider's own file; a file that looks like an accident changes nothing.
#[test]
fn ranges_come_from_a_file() {
    let server = Server::double().expect("the double starts");
    let scene = Scene::new(&server, "t");
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    scene.policy("policy", &allow(&[s3("us-east-1")]));
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = folder.path().join("ip-ranges.json");
    let write = |token: u64, prefixes: &[&str]| {
        let rows: Vec<Value> = prefixes
            .iter()
            .map(|prefix| json!({ "ip_prefix": prefix, "region": "us-east-1", "service": "S3", "network_border_group": "us-east-1" }))
            .collect();
        let text =
            json!({ "syncToken": token.to_string(), "prefixes": rows, "ipv6_prefixes": [] }).to_string();
        let next = folder.path().join("next");
        std::fs::write(&next, text).expect("it can be written");
        std::fs::rename(&next, &file).expect("it can be renamed");
    };
    write(100, &["192.0.2.0/24"]);
    let agent = scene.run(&["--ranges", &format!("aws={}", file.display())]);
    wait(&pod, GOOD, Outcome::Ok);
    write(90, &["198.51.100.0/24"]);
    until("an older one is refused", || agent.says("ranges cannot be used") > 0);
    assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::Ok);
    write(200, &["198.51.100.0/24"]);
    wait(&pod, BAD, Outcome::Ok);
    assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::NotPermitted);
    drop(agent);
    scene.clean();
}
