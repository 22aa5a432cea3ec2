//! What people are told of clouds' services, once somebody has published what they stand for.

use egress_agent::{
    k8s::published,
    ranges::{providers, publish},
};
use serde_json::json;

use crate::scene::{Scene, good, policy, until};

const NAMESPACE: &str = "egress-controller";

/// The webhook follows what is published with the rights it ships with.
pub(crate) fn warned_of(scene: &Scene<'_>, name: &str) {
    let namespace = scene.validated(&format!("{name}-shop"));
    let s3 = json!({ "name": "files", "awsService": "s3", "regions": ["us-east-1"], "ports": [443] });
    let text = json!({ "defaultAction": "deny", "allowedDestinations": [s3] }).to_string();
    let said = scene.apply(&policy(&namespace, "before", &text));
    assert!(said.well && !said.text.contains("Wide"), "nobody has told of AWS: {}", said.text);

    let row = json!({ "ip_prefix": "52.0.0.0/14", "region": "us-east-1", "service": "S3", "network_border_group": "us-east-1" });
    let file = json!({ "syncToken": "100", "createDate": "2026-11-22-00-00-00", "prefixes": [row], "ipv6_prefixes": [] });
    let aws = providers::provider("aws").expect("there is one");
    let table = aws.parse(&[file.to_string().as_bytes()]).expect("it is what AWS publishes");
    let publication = publish::encode("aws", &table, 100).expect("it is small");
    let objects = published::chunk_objects(&publication).chain([published::head_object(&publication.head)]);
    for object in objects {
        let mut object = serde_json::to_value(object).expect("an object can be written");
        object["metadata"]["namespace"] = NAMESPACE.into();
        good(scene.server.put(&object));
    }
    let warned = |number: usize| {
        let said = scene.apply(&policy(&namespace, &format!("after-{number}"), &text));
        assert!(said.well, "{}", said.text);
        said.text
    };
    let mut tries = 0;
    until("it is warned of a wide service", || {
        tries += 1;
        warned(tries).contains("Warning: Wide: files opens ")
    });
    let elsewhere = text.replace("us-east-1", "eu-west-9");
    let said = scene.apply(&policy(&namespace, "elsewhere", &elsewhere));
    assert!(said.well, "{}", said.text);
    assert!(said.text.contains("Warning: Nothing published: files matches no address: "), "{}", said.text);
    println!("{}", said.text.trim());
}
