use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const NOW: u64 = 1_800_000_000;

const GOOD: &str = r#"{"defaultAction": "deny", "allowedDestinations": [{"name": "db", "cidr": "10.1.0.0/24", "ports": [5432]}]}"#;
const BAD: &str = r#"{ "defaultAction": "deny",
  "allowedDestinations": [
    {"name": "s3", "cidr": "192.0.2.0/24", "ports": [443]},
    {"name": "db",
     "cidr": "10.1.0.0/99", "ports": [5432]} ] }"#;

fn map(labels: &Value, data: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "egress", "namespace": "shop", "labels": labels },
        "data": data,
    })
}

fn managed(text: &str) -> Value {
    map(&json!({ "egress-controller": "managed" }), &json!({ "policy.json": text }))
}

fn review(operation: &str, object: &Value, old: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": { "group": "", "version": "v1", "kind": "ConfigMap" },
            "resource": { "group": "", "version": "v1", "resource": "configmaps" },
            "requestKind": { "group": "", "version": "v1", "kind": "ConfigMap" },
            "name": "egress", "namespace": "shop", "operation": operation,
            "userInfo": { "username": "mallory", "groups": ["system:authenticated"] },
            "object": object, "oldObject": old, "dryRun": false, "options": null,
        },
    })
}

/// Judges a review with the default rules and returns the response in the answer.
fn ask(review: &Value) -> (Verdict, Value) {
    let review = Review::read(review.to_string().as_bytes()).expect("it is a review");
    let answer = review.judge(&Rules::default(), &Governance::default(), NOW);
    let body: Value = serde_json::from_slice(&answer.body).expect("answers are JSON");
    assert_eq!(body["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(body["kind"], "AdmissionReview");
    assert_eq!(body["response"]["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002", "the uid is the request's");
    (answer.verdict, body["response"].clone())
}

fn create(object: &Value) -> (Verdict, Value) {
    ask(&review("CREATE", object, &Value::Null))
}

fn update(object: &Value, old: &Value) -> (Verdict, Value) {
    ask(&review("UPDATE", object, old))
}

fn message(response: &Value) -> &str {
    response["status"]["message"].as_str().expect("a refusal has a message")
}

fn warnings(response: &Value) -> Vec<&str> {
    response["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn a_good_policy_is_allowed_without_a_word() {
    let (verdict, response) = create(&managed(GOOD));
    assert_eq!(verdict, Verdict::Allowed);
    assert_eq!(response["allowed"], true);
    assert_eq!(response.get("status"), None, "an allowed request needs no status");
    assert_eq!(response["auditAnnotations"], json!({ "governance": "off" }));
}

#[test]
fn a_bad_policy_is_refused_with_all_its_errors_and_their_places() {
    let (verdict, response) = create(&managed(BAD));
    assert_eq!((verdict, &response["allowed"]), (Verdict::Refused, &json!(false)));
    assert_eq!(
        (&response["status"]["code"], &response["status"]["reason"]),
        (&json!(422), &json!("Invalid"))
    );
    assert!(
        message(&response).starts_with(
            "Policy validation failed: Invalid CIDR format: 10.1.0.0/99 (allowedDestinations[1].cidr, line 5 column 14)"
        ),
        "{response}"
    );
    assert_eq!(response["auditAnnotations"]["errors"], "1");
    let two = BAD.replace("192.0.2.0/24", "192.0.2.0/33");
    let (_, response) = create(&managed(&two));
    assert!(message(&response).contains("192.0.2.0/33"), "{response}");
    assert!(message(&response).contains("also: Invalid CIDR format: 10.1.0.0/99"), "{response}");
}

#[test]
fn what_validate_says_is_what_is_answered() {
    let id = NsName::new("shop", "egress");
    let subject = Subject { id: &id, text: BAD, old: None, profile: Profile::Off };
    let judgement = Rules::default().judge(&subject, NOW);
    let (_, response) = create(&managed(BAD));
    assert_eq!(Some(message(&response).to_owned()), judgement.message());
}

#[test]
fn the_label_decides_what_is_judged() {
    let (plain, other) = (json!({}), json!({ "egress-controller": "other" }));
    for labels in [&plain, &other, &Value::Null] {
        let (verdict, response) = create(&map(labels, &json!({ "policy.json": "{" })));
        assert_eq!((verdict, &response["allowed"]), (Verdict::Ignored, &json!(true)), "{labels}");
    }
    // The label comes: the text was no policy before, however old it is.
    let before = map(&plain, &json!({ "policy.json": BAD }));
    let (verdict, response) = update(&managed(BAD), &before);
    assert_eq!((verdict, &response["allowed"]), (Verdict::Refused, &json!(false)));
    // The label goes: allowed, like deleting the policy, and said out loud.
    let (verdict, response) = update(&before, &managed(BAD));
    assert_eq!((verdict, &response["allowed"]), (Verdict::Allowed, &json!(true)));
    assert!(warnings(&response)[0].contains("shop/egress is no policy any more"), "{response}");
    assert_eq!(response["auditAnnotations"]["policy"], "released");
}

#[test]
fn a_policy_that_does_not_change_is_let_through() {
    let mut object = managed(BAD);
    object["metadata"]["annotations"] = json!({ "note": "seen" });
    let (verdict, response) = update(&object, &managed(BAD));
    assert_eq!((verdict, &response["allowed"]), (Verdict::Allowed, &json!(true)));
    assert!(
        warnings(&response)[0]
            .starts_with("let through because the policy does not change: Policy validation"),
        "{response}"
    );
    assert_eq!(response["auditAnnotations"]["policy"], "unchanged");
    // One space more is a change.
    let (verdict, _) = update(&managed(&format!("{BAD} ")), &managed(BAD));
    assert_eq!(verdict, Verdict::Refused);
}

#[test]
fn a_key_that_is_missing_or_too_much_is_told() {
    let labels = json!({ "egress-controller": "managed" });
    for data in [Value::Null, json!({}), json!({ "policy.yaml": GOOD })] {
        let (verdict, response) = create(&map(&labels, &data));
        assert_eq!(verdict, Verdict::Refused);
        assert!(
            message(&response).starts_with("Policy validation failed: no text under `policy.json`"),
            "{response}"
        );
    }
    let mut binary = map(&labels, &Value::Null);
    binary["binaryData"] = json!({ "policy.json": "e30=" });
    assert!(message(&create(&binary).1).contains("put it under data"), "{:?}", create(&binary));
    let keys = json!({ "policy.json": GOOD, "a": "1", "b": "2", "c": "3", "d": "4" });
    let (verdict, response) = create(&map(&labels, &keys));
    assert_eq!(verdict, Verdict::Allowed);
    assert_eq!(warnings(&response), ["only the key policy.json is read; ignored: a, b, c and 1 more"]);
}

#[test]
fn deleting_is_not_our_question() {
    for object in [Value::Null, managed(BAD)] {
        let (verdict, response) = ask(&review("DELETE", &object, &managed(BAD)));
        assert_eq!((verdict, &response["allowed"]), (Verdict::Ignored, &json!(true)));
    }
}

#[test]
fn what_is_odd_is_refused_with_a_sentence() {
    let none = Value::Null;
    let mut other_kind = review("CREATE", &managed(GOOD), &none);
    other_kind["request"]["kind"] = json!({ "group": "apps", "version": "v1", "kind": "Deployment" });
    let mut part = review("UPDATE", &managed(GOOD), &managed(GOOD));
    part["request"]["subResource"] = json!("status");
    let mut numbers = managed(GOOD);
    numbers["data"] = json!({ "policy.json": 7 });
    for (review, words) in [
        (review("CREATE", &none, &none), "the CREATE request has no object"),
        (review("UPDATE", &managed(GOOD), &none), "the UPDATE request has no oldObject"),
        (review("UPDATE", &none, &managed(GOOD)), "the UPDATE request has no object"),
        (review("CONNECT", &managed(GOOD), &none), "CONNECT is none of CREATE, UPDATE and DELETE"),
        (review("", &managed(GOOD), &none), " is none of CREATE, UPDATE and DELETE"),
        (review("CREATE", &json!([]), &none), "object is no ConfigMap: "),
        (review("CREATE", &json!("text"), &none), "object is no ConfigMap: "),
        (review("CREATE", &numbers, &none), "object is no ConfigMap: "),
        (other_kind, "only ConfigMaps are judged here, not Deployment of the group apps"),
        (part, "ConfigMaps have no subresource"),
    ] {
        let (verdict, response) = ask(&review);
        assert_eq!((verdict, &response["allowed"]), (Verdict::Refused, &json!(false)), "{review}");
        assert_eq!(response["status"]["code"], 400, "{review}");
        assert!(message(&response).contains(words), "{response}");
    }
}

#[test]
fn bytes_that_are_no_review_get_a_sentence_and_no_answer() {
    let mut beta = review("CREATE", &managed(GOOD), &Value::Null);
    beta["apiVersion"] = "admission.k8s.io/v1beta1".into();
    let mut nameless = review("CREATE", &managed(GOOD), &Value::Null);
    nameless["request"]["uid"] = "".into();
    let empty = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview" });
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for (bytes, words) in [
        (Vec::new(), "this is not an AdmissionReview of admission.k8s.io/v1: EOF"),
        (b"\xff\xfe{}".to_vec(), "this is not an AdmissionReview"),
        (b"null".to_vec(), "this is not an AdmissionReview"),
        (b"{}".to_vec(), "this is something without a kind of no version"),
        (b"{} {}".to_vec(), "trailing characters"),
        (br#"{"kind": "A", "kind": "B"}"#.to_vec(), "duplicate field"),
        (managed(GOOD).to_string().into_bytes(), "this is ConfigMap of v1, not an AdmissionReview"),
        (
            beta.to_string().into_bytes(),
            "admission.k8s.io/v1beta1, not an AdmissionReview of admission.k8s.io/v1",
        ),
        (nameless.to_string().into_bytes(), "has no uid"),
        (empty.to_string().into_bytes(), "has no request"),
        (deep.into_bytes(), "this is not an AdmissionReview"),
    ] {
        let error = Review::read(&bytes).expect_err("it is none").to_string();
        assert!(error.contains(words), "{error}");
        assert!(error.len() < 500, "a sentence, not the body: {error}");
    }
}

#[test]
fn nesting_is_skipped_where_nobody_looks_and_refused_where_somebody_does() {
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let text = review("CREATE", &managed(GOOD), &Value::Null).to_string();
    // In what is not read, it costs time in proportion, and no stack.
    let elsewhere = text.replacen("\"dryRun\":false", &format!("\"dryRun\":{deep}"), 1);
    assert_ne!(elsewhere, text);
    let read = Review::read(elsewhere.as_bytes());
    if let Ok(review) = &read {
        let answer = review.judge(&Rules::default(), &Governance::default(), NOW);
        assert_eq!(answer.verdict, Verdict::Allowed);
    }
    let policy = create(&managed(&deep));
    assert_eq!(policy.0, Verdict::Refused);
    assert!(message(&policy.1).starts_with("Policy validation failed: Invalid JSON: "), "{policy:?}");
}

#[test]
fn a_name_that_the_server_makes_is_taken_from_the_object() {
    let mut made = review("UPDATE", &map(&Value::Null, &json!({})), &managed(GOOD));
    made["request"]["name"] = "".into();
    made["request"]["object"]["metadata"]["name"] = "egress-x7k2p".into();
    let (_, response) = ask(&made);
    assert!(warnings(&response)[0].contains("shop/egress-x7k2p"), "{response}");
}

#[test]
fn messages_and_warnings_stay_within_what_is_passed_on() {
    let many: Vec<Value> =
        (0..2000).map(|n| json!({ "name": format!("n{n}"), "cidr": format!("10.0.0.{n}/99") })).collect();
    let text = json!({ "defaultAction": "deny", "allowedDestinations": many }).to_string();
    let (_, response) = create(&managed(&text));
    let told = message(&response);
    assert!(told.len() <= 4096 && told.ends_with(" more errors"), "{told}");

    let mut many: Vec<String> = (0..40).map(|n| format!("{n} {}", "é".repeat(600))).collect();
    many[0] = "a line\nand another\r\x1b[31m".to_owned();
    let kept = bounded(&many);
    assert_eq!(kept.len(), WARNINGS);
    assert_eq!(kept[0], "a line and another  [31m", "a header holds no control characters");
    assert!(kept.iter().all(|warning| warning.chars().count() <= WARNING_CHARS));
    assert_eq!(kept[WARNINGS - 1], "and 26 more warnings; `egress-agent validate` tells every one");
    let together: usize = kept.iter().map(|warning| warning.chars().count()).sum();
    assert!(together <= 4096, "the server drops what goes beyond: {together}");
}

#[test]
fn what_rules_of_the_house_say_comes_first() {
    let finding = |rule: Option<&str>, message: &str| Finding {
        severity: crate::policy::finding::Severity::Error,
        path: String::new(),
        line: 0,
        column: 0,
        message: message.to_owned(),
        hint: None,
        rule: rule.map(str::to_owned),
    };
    let judgement = Judgement {
        policy: None,
        findings: vec![
            finding(Some("EGR-0004"), "b"),
            finding(None, "a"),
            finding(Some("EGR-0001"), "c"),
            finding(Some("EGR-0001"), "d"),
        ],
    };
    let audit = audit(&judgement, Profile::Required, false);
    let wanted = BTreeMap::from([
        ("governance", "required".to_owned()),
        ("errors", "4".to_owned()),
        ("refused-by", "EGR-0001,EGR-0004".to_owned()),
    ]);
    assert_eq!(audit, wanted);
    for (key, value) in &audit {
        assert!(key.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') && key.len() <= 63, "{key}");
        assert!(value.len() <= ANNOTATION_CHARS);
    }
}

#[test]
fn a_failure_is_a_refusal() {
    let review = review("CREATE", &managed(GOOD), &Value::Null).to_string();
    let review = Review::read(review.as_bytes()).expect("it is a review");
    let answer = review.failed(504, "Timeout", "it took longer than 4s");
    assert_eq!(answer.verdict, Verdict::Failed);
    let body: Value = serde_json::from_slice(&answer.body).expect("answers are JSON");
    assert_eq!(body["response"]["allowed"], false);
    assert_eq!(message(&body["response"]), "Policy could not be validated: it took longer than 4s");
}

/// Something that is nearly a review: any part may be missing, of another type, or from elsewhere.
fn nearly() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~\\n\"\\\\é]{0,12}".prop_map(Value::from),
        Just(json!(GOOD)),
        Just(json!(BAD)),
        Just(json!("managed")),
        Just(json!("ConfigMap")),
        Just(json!({})),
        Just(json!([])),
        Just(managed(GOOD)),
    ];
    let pointers = prop::sample::select(vec![
        "/apiVersion",
        "/kind",
        "/request",
        "/request/uid",
        "/request/kind",
        "/request/kind/kind",
        "/request/kind/group",
        "/request/operation",
        "/request/name",
        "/request/namespace",
        "/request/subResource",
        "/request/object",
        "/request/oldObject",
        "/request/object/metadata",
        "/request/object/metadata/labels",
        "/request/object/metadata/labels/egress-controller",
        "/request/object/metadata/name",
        "/request/object/data",
        "/request/object/data/policy.json",
        "/request/object/binaryData",
        "/request/oldObject/data",
        "/request/oldObject/metadata/labels",
    ]);
    let operations = prop::sample::select(vec!["CREATE", "UPDATE", "DELETE", "CONNECT"]);
    (operations, prop::collection::vec((pointers, leaf), 0..4)).prop_map(|(operation, changes)| {
        let mut whole = review(operation, &managed(GOOD), &managed(BAD));
        for (pointer, value) in changes {
            if let Some(place) = whole.pointer_mut(pointer) {
                *place = value;
            }
        }
        whole
    })
}

/// Answers bytes as the server does, and returns whether they were a review.
fn handle(bytes: &[u8]) -> bool {
    let began = std::time::Instant::now();
    let is_review = match Review::read(bytes) {
        Ok(review) => {
            let answer = review.judge(&Rules::default(), &Governance::default(), NOW);
            let body: Value = serde_json::from_slice(&answer.body).expect("answers are JSON");
            let response = &body["response"];
            assert!(response["uid"].as_str().is_some_and(|uid| !uid.is_empty()), "{body}");
            assert_eq!(response["allowed"] == false, response.get("status").is_some(), "{body}");
            let refuses = matches!(answer.verdict, Verdict::Refused | Verdict::Failed);
            assert_eq!(response["allowed"] == false, refuses, "{body}");
            true
        }
        Err(error) => error.to_string().is_empty(),
    };
    assert!(began.elapsed() < std::time::Duration::from_secs(2), "it takes its time");
    is_review
}

proptest! {
    #[test]
    fn nothing_that_is_nearly_a_review_makes_it_panic(review in nearly()) {
        handle(review.to_string().as_bytes());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(!handle(&bytes));
    }

    #[test]
    fn no_broken_review_makes_it_panic(at in 0.0..1.0_f64, byte: u8, cut: bool) {
        let mut bytes = review("UPDATE", &managed(GOOD), &managed(BAD)).to_string().into_bytes();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a place in a short text")]
        let at = (bytes.len() as f64 * at) as usize;
        bytes[at] = byte;
        if cut {
            bytes.truncate(at);
        }
        handle(&bytes);
    }
}
