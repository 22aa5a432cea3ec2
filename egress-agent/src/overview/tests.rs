use serde_json::{Value, json};

use super::{
    report::{self, Dialect},
    *,
};
use crate::policy::finding::Severity;

const NOW: u64 = 1_800_000_000;
const GOOD: &str = "1111111111111111";
const OLD: &str = "2222222222222222";

fn facts(name: &str) -> Facts {
    Facts {
        uid: Some("u-1".to_owned()),
        written: Some(GOOD.to_owned()),
        accepted: Some(GOOD.to_owned()),
        generated: Some(Objects { count: 1, ..Objects::default() }),
        ..Facts::new(NsName::new("shop", name), InForce::Current, None, &[], NOW)
    }
}

fn rejected(name: &str) -> Facts {
    let finding = Finding {
        severity: Severity::Error,
        path: String::new(),
        line: 0,
        column: 0,
        message: "Missing field: name".to_owned(),
        hint: None,
        rule: None,
    };
    Facts {
        written: Some(GOOD.to_owned()),
        ..Facts::new(NsName::new("shop", name), InForce::Nothing, None, &[finding], NOW)
    }
}

/// A policy, its revision, its pods, and how many of them are behind.
type Told<'a> = (&'a str, &'a str, u32, u32);

fn nodes(told: &[(&str, &[Told<'_>])]) -> Nodes {
    let summary = |policies: &[Told<'_>]| Summary {
        version: "0.1.0".to_owned(),
        written: NOW - 60,
        ready: true,
        policies: policies
            .iter()
            .map(|(policy, revision, pods, behind)| {
                let held = Held { revision: (*revision).to_owned(), pods: *pods, behind: *behind };
                ((*policy).to_owned(), held)
            })
            .collect(),
        ..Summary::default()
    };
    let summaries = told.iter().map(|(node, policies)| ((*node).to_owned(), summary(policies)));
    Nodes { summaries: summaries.collect(), all: None }
}

fn one(facts: Facts, nodes: &Nodes) -> PolicyStatus {
    overview(&[facts], Some(nodes), NOW).policies.remove(0)
}

#[test]
fn a_policy_is_in_force_where_all_its_nodes_say_so() {
    let told = nodes(&[
        ("a", &[("shop/web", GOOD, 3, 0)]),
        ("b", &[("shop/web", GOOD, 2, 0), ("shop/other", OLD, 1, 0)]),
        ("c", &[]),
    ]);
    let status = one(facts("web"), &told);
    assert_eq!(status.state, State::InForce);
    assert_eq!((status.nodes.enforcing, status.nodes.selected, status.pods), (2, 2, 5), "c has no pod of it");
    assert_eq!(one(facts("third"), &told).state, State::Unused);
    assert_eq!(one(facts("web"), &nodes(&[])).state, State::Unknown);
    assert!(overview(&[facts("web")], Some(&told), NOW).is_good());
}

#[test]
fn each_node_that_does_not_enforce_is_counted_for_its_reason() {
    let mut told = nodes(&[
        ("a", &[("shop/web", GOOD, 3, 0)]),
        ("b", &[("shop/web", OLD, 1, 0)]),
        ("c", &[("shop/web", GOOD, 4, 1)]),
        ("d", &[("shop/web", "", 1, 0)]),
        ("e", &[("shop/web", GOOD, 1, 0)]),
    ]);
    let edit = |told: &mut Nodes, node: &str, edit: &dyn Fn(&mut Summary)| {
        edit(told.summaries.get_mut(node).expect("it is there"));
    };
    edit(&mut told, "e", &|summary| summary.written = NOW - SILENT);
    edit(&mut told, "c", &|summary| summary.reasons = vec!["map RULES is full".to_owned()]);
    let status = one(facts("web"), &told);
    assert_eq!(status.state, State::Partly);
    let counts = NodeCounts { selected: 5, enforcing: 1, other: 2, behind: 1, auditing: 0, silent: 1 };
    assert_eq!(status.nodes, counts);
    assert_eq!((status.pods, status.pods_behind), (10, 1));
    assert_eq!(
        status.reasons,
        [
            "node b has revision 2222222222222222",
            "node c has it for 3 of 4 pods: map RULES is full",
            "node d knows no valid version",
            "and 1 more nodes",
        ]
    );
    // A clock that is a little ahead is no silence; one that is far ahead would hide it.
    edit(&mut told, "e", &|summary| summary.written = NOW + AHEAD - 1);
    assert_eq!(one(facts("web"), &told).nodes.silent, 0);
    let mut ahead = nodes(&[("a", &[("shop/web", GOOD, 3, 0)])]);
    edit(&mut ahead, "a", &|summary| summary.written = NOW + AHEAD);
    let status = one(facts("web"), &ahead);
    assert_eq!((status.state, status.nodes.silent), (State::Partly, 1));
    let why = ["node a tells of a time 5 minutes from now: its clock is ahead"];
    assert_eq!(status.reasons, why);
    let seen = overview(&[], Some(&ahead), NOW).nodes.expect("they were asked");
    assert_eq!((seen.ready, seen.silent, seen.reasons.as_slice()), (0, 1, &why.map(str::to_owned)[..]));
}

#[test]
fn a_node_that_only_audits_does_not_enforce() {
    let mut told = nodes(&[
        ("a", &[("shop/web", GOOD, 3, 0)]),
        ("b", &[("shop/web", GOOD, 1, 0)]),
        ("c", &[("shop/web", GOOD, 1, 0)]),
        ("d", &[("shop/web", OLD, 1, 0)]),
    ]);
    for node in ["b", "c"] {
        told.summaries.get_mut(node).expect("it is there").audit = true;
    }
    let all = overview(&[facts("web")], Some(&told), NOW);
    let status = &all.policies[0];
    assert_eq!(status.state, State::Partly);
    let counts = NodeCounts { selected: 4, enforcing: 1, other: 1, auditing: 2, ..NodeCounts::default() };
    assert_eq!(status.nodes, counts);
    let why = ["2 nodes only audit (--audit)", "node d has revision 2222222222222222"];
    assert_eq!(status.reasons, why);
    let seen = all.nodes.as_ref().expect("they were asked");
    assert_eq!((seen.ready, seen.auditing, seen.not_ready), (2, 2, 0));
    assert_eq!(seen.reasons, why[..1]);
    assert!(!seen.is_good());
    let report = report::reports(&all)["shop"].object(Dialect::OpenReports, "shop", "one", None, 7);
    let result = &report["results"][0];
    assert_eq!((&result["result"], &result["properties"]["nodesAuditing"]), (&json!("warn"), &json!("2")));
    assert!(result["message"].as_str().is_some_and(|text| text.contains(why[0])), "{result}");
    // A policy that only audits is what it says.
    told.summaries.get_mut("d").expect("it is there").policies.clear();
    let audits = one(Facts { audit: true, ..facts("web") }, &told);
    assert_eq!((audits.state, audits.nodes.enforcing, audits.nodes.auditing), (State::InForce, 3, 0));
}

#[test]
fn a_cluster_that_only_audits_is_a_state_and_no_finding() {
    let mut told = nodes(&[("a", &[("shop/web", GOOD, 3, 0)]), ("b", &[("shop/web", GOOD, 1, 0)])]);
    told.summaries.values_mut().for_each(|summary| summary.audit = true);
    let unwritten = |name: &str| Facts { generated: Some(Objects::default()), ..facts(name) };
    let all = overview(&[unwritten("web"), unwritten("other")], Some(&told), NOW);
    let states: Vec<State> = all.policies.iter().map(|policy| policy.state).collect();
    assert_eq!(states, [State::Audited, State::Unused]);
    assert_eq!(all.policies[0].reasons, [""; 0], "it is said once, of the nodes");
    let seen = all.nodes.as_ref().expect("they were asked");
    assert_eq!((seen.ready, seen.auditing, seen.audit_only), (0, 2, true));
    assert_eq!(seen.reasons, ["every node only audits (--audit): no policy denies anything"]);
    assert!(all.is_good() && all.contradiction.is_none());
    let report = report::reports(&all)["shop"].object(Dialect::OpenReports, "shop", "one", None, 7);
    assert_eq!((&report["summary"]["skip"], &report["summary"]["warn"]), (&json!(2), &json!(0)));
    let messages = report["results"].to_string();
    assert!(messages.contains("Every node only audits (--audit): it denies nothing."), "{messages}");

    // What others enforce contradicts it.
    let written = overview(&[facts("web"), facts("other")], Some(&told), NOW);
    let text = written.contradiction.as_deref().unwrap_or_default();
    assert!(text.contains("2 NetworkPolicies are written all the same"), "{text}");
    assert!(!written.is_good());
    // A node that has another version, is behind, silent or not ready is a finding all the same.
    let bad: [fn(&mut Summary); 3] = [
        |summary| summary.written = NOW - SILENT,
        |summary| summary.policies.values_mut().for_each(|held| held.revision = OLD.to_owned()),
        |summary| summary.policies.values_mut().for_each(|held| held.behind = 1),
    ];
    for (number, change) in bad.iter().enumerate() {
        let mut told = told.clone();
        change(told.summaries.get_mut("b").expect("it is there"));
        let status = one(unwritten("web"), &told);
        assert_eq!(status.state, State::Partly, "{number}");
        assert_eq!(status.reasons.len(), 1, "{number}: {:?}", status.reasons);
    }
    told.summaries.get_mut("b").expect("it is there").ready = false;
    assert!(!overview(&[unwritten("web")], Some(&told), NOW).is_good());
    // As soon as one enforces, the others are a finding.
    told.summaries.get_mut("b").expect("it is there").ready = true;
    told.summaries.get_mut("b").expect("it is there").audit = false;
    let mixed = overview(&[facts("web")], Some(&told), NOW);
    assert_eq!(mixed.policies[0].state, State::Partly);
    assert!(mixed.contradiction.is_none() && !mixed.is_good());
}

#[test]
fn a_node_that_is_silent_or_missing_is_a_finding_by_itself() {
    let good = nodes(&[("a", &[("shop/web", GOOD, 3, 0)]), ("b", &[])]);
    assert!(overview(&[facts("web")], Some(&good), NOW).is_good());
    let mut silent = good.clone();
    silent.summaries.get_mut("b").expect("it is there").written = NOW - SILENT;
    assert!(!overview(&[facts("web")], Some(&silent), NOW).is_good());
    let missing = Nodes { all: Some(["a", "b", "c"].map(str::to_owned).into()), ..good };
    assert!(!overview(&[facts("web")], Some(&missing), NOW).is_good());
}

#[test]
fn what_is_told_of_many_nodes_is_bounded() {
    let names: Vec<String> = (10..40).map(|number| format!("node-{number}")).collect();
    let all = Some(names.iter().cloned().collect());
    let seen =
        overview(&[], Some(&Nodes { summaries: BTreeMap::new(), all }), NOW).nodes.expect("they were asked");
    assert_eq!((seen.reasons.len(), seen.missing), (MOST_NODES + 1, Some(30)));
    assert_eq!(seen.reasons.last().map(String::as_str), Some("and 20 more"));
    // More pods than there are cannot be behind.
    let status = one(facts("web"), &nodes(&[("a", &[("shop/web", GOOD, 3, 9)])]));
    assert_eq!((status.pods, status.pods_behind), (3, 3));
}

#[test]
fn what_is_told_of_a_policy_is_bounded_and_shown_as_it_is() {
    let finding = |number: usize| Finding {
        severity: Severity::Error,
        path: String::new(),
        line: 0,
        column: 0,
        message: format!("{number:03} \u{202e}{}", "x".repeat(1000)),
        hint: None,
        rule: None,
    };
    let findings: Vec<Finding> = (0..30).map(finding).collect();
    let facts = Facts::new(NsName::new("shop", "web"), InForce::Nothing, None, &findings, NOW);
    assert_eq!((facts.findings.len(), facts.more_findings), (MOST_FINDINGS, 30 - MOST_FINDINGS));
    assert!(facts.findings.iter().all(|one| one.text.len() <= MOST_TEXT && !one.text.contains('\u{202e}')));
    let loss = format!("\u{1b}[31m{}", "y".repeat(1000));
    let refused =
        Objects { count: 0, losses: 1, named: vec![loss], refused: Some("Too many.\u{7}".to_owned()) };
    let status = one(Facts { generated: Some(refused), ..self::facts("web") }, &nodes(&[]));
    assert!(status.named_losses[0].len() <= MOST_TEXT && !status.named_losses[0].contains('\u{1b}'));
    assert_eq!(status.reasons, ["Too many. "]);
}

#[test]
fn the_next_end_counts_and_what_has_ended() {
    let rule = |name: &str, expires: Option<u64>| {
        let governance = expires.map(|at| {
            let at =
                jiff::Timestamp::from_second(i64::try_from(at).expect("it is a time")).expect("it is a time");
            json!({ "expiry": at.to_string() })
        });
        let mut rule = json!({ "name": name, "cidr": "192.0.2.0/24", "ports": [443] });
        if let Some(governance) = governance {
            rule["governance"] = governance;
        }
        rule
    };
    let text = json!({ "defaultAction": "deny", "allowedDestinations": [
        rule("a", Some(NOW + 500)), rule("b", Some(NOW + 100)), rule("c", Some(NOW - 1)), rule("d", Some(NOW)), rule("e", None),
    ] });
    let id = NsName::new("shop", "web");
    let (policy, findings) = crate::agent::read_policy(&id, &text.to_string());
    let facts = Facts::new(id, InForce::Current, policy.as_ref(), &findings, NOW);
    assert_eq!((facts.next_expiry, facts.expired), (Some(NOW + 100), 2), "{findings:?}");
}

#[test]
fn a_report_says_how_each_policy_stands() {
    let told = nodes(&[(
        "a",
        &[("shop/behind", GOOD, 3, 1), ("shop/earlier", OLD, 1, 0), ("shop/ends", GOOD, 1, 0)],
    )]);
    let earlier = Facts {
        in_force: InForce::Earlier,
        accepted: Some(OLD.to_owned()),
        more_findings: 4,
        ..rejected("earlier")
    };
    let ends = Facts {
        next_expiry: Some(NOW + 100),
        expired: 2,
        unresolved: vec!["x".repeat(900); 3],
        ..facts("ends")
    };
    let all = overview(&[facts("behind"), earlier, ends, facts("unused")], Some(&told), NOW);
    let report = report::reports(&all)["shop"].object(Dialect::OpenReports, "shop", "one", None, 7);
    let results = report["results"].as_array().expect("a list").clone();
    let find = |policy: &str, rule: &str| -> Vec<Value> {
        let is_meant = |result: &&Value| result["policy"] == policy && result["rule"] == rule;
        results.iter().filter(is_meant).cloned().collect()
    };
    let main = |policy: &str| find(policy, "in-force").remove(0);
    assert_eq!(
        (&main("behind")["result"], &main("behind")["properties"]["podsBehind"]),
        (&json!("warn"), &json!("1"))
    );
    assert_eq!(main("earlier")["result"], "fail");
    let more = |result: &Value| result["message"] == "and 4 more findings" && result["result"] == "warn";
    assert!(find("earlier", "validation").iter().any(more), "{results:?}");
    assert_eq!(main("unused")["result"], "skip");
    let ends = main("ends");
    assert_eq!(ends["properties"]["nextExpiry"], "2027-01-15T08:01:40Z");
    assert!(ends["message"].as_str().is_some_and(|text| text.len() <= 500), "{ends}");
    let expired = &find("ends", "expiry")[0];
    assert_eq!(expired["message"], "Destinations that have ended and match nothing any more: 2.");
    let unheard = overview(&[facts("web")], Some(&nodes(&[])), NOW);
    let report = report::reports(&unheard)["shop"].object(Dialect::OpenReports, "shop", "one", None, 7);
    assert_eq!(report["results"][0]["result"], "error", "nobody tells");
}

#[test]
fn a_policy_that_is_not_valid_says_what_holds() {
    let none = nodes(&[("a", &[("shop/web", "", 1, 0)])]);
    let status = one(rejected("web"), &none);
    assert_eq!(status.state, State::Rejected);
    assert_eq!(status.reasons, ["it is not valid: Missing field: name"]);
    // Nodes know more than who asks.
    let older = nodes(&[("a", &[("shop/web", OLD, 1, 0)])]);
    assert_eq!(one(rejected("web"), &older).state, State::Earlier);
    let known = Facts { in_force: InForce::Earlier, accepted: Some(OLD.to_owned()), ..rejected("web") };
    let status = one(known, &older);
    assert_eq!((status.state, status.nodes.enforcing), (State::Earlier, 1));
    assert!(!overview(&[rejected("web")], Some(&older), NOW).is_good());
}

#[test]
fn nodes_are_counted_by_how_they_do() {
    let mut told = nodes(&[("a", &[]), ("b", &[]), ("c", &[])]);
    told.all = Some(["a", "b", "c", "d"].map(str::to_owned).into());
    let b = told.summaries.get_mut("b").expect("it is there");
    (b.ready, b.reasons) = (false, vec!["capacity: no room".to_owned()]);
    told.summaries.get_mut("c").expect("it is there").written = NOW - 3600;
    let seen = overview(&[], Some(&told), NOW).nodes.expect("they were asked");
    assert_eq!((seen.told, seen.ready, seen.not_ready, seen.silent, seen.missing), (3, 1, 1, 1, Some(1)));
    assert_eq!(
        seen.reasons,
        [
            "node b is not ready: capacity: no room",
            "node c has told nothing for 60 minutes",
            "node d tells nothing"
        ]
    );
    assert!(!seen.is_good());
    assert_eq!(overview(&[], None, NOW).nodes, None, "who may not ask, does not know");
}

fn object(facts: &[Facts], dialect: Dialect, before: Option<&Value>, at: u64) -> Value {
    let told = nodes(&[("a", &[("shop/web", GOOD, 3, 0)])]);
    let overview = overview(facts, Some(&told), NOW);
    let reports = report::reports(&overview);
    assert_eq!(reports.len(), 1);
    reports["shop"].object(dialect, "shop", "egress-controller/egress-controller", before, at)
}

#[test]
fn both_dialects_say_the_same() {
    let all = [facts("web"), rejected("broken")];
    let old = object(&all, Dialect::PolicyReport, None, 7);
    assert_eq!(old["apiVersion"], "wgpolicyk8s.io/v1alpha2");
    assert_eq!(old["kind"], "PolicyReport");
    assert_eq!(old["summary"], json!({ "pass": 1, "fail": 2, "warn": 0, "error": 0, "skip": 0 }));
    assert_eq!(
        old["results"][2],
        json!({
            "source": "egress-agent", "policy": "web", "rule": "in-force", "category": "Egress", "result": "pass",
            "severity": "info", "scored": true, "message": "Every node that should enforces it.",
            "resources": [{ "apiVersion": "v1", "kind": "ConfigMap", "namespace": "shop", "name": "web", "uid": "u-1" }],
            "properties": {
                "mode": "enforce", "revision": GOOD, "nodes": "1 of 1", "pods": "3", "networkPolicies": "1", "losses": "0",
            },
            "timestamp": { "seconds": 7, "nanos": 0 },
        })
    );
    assert_eq!(old["results"][0]["result"], "fail", "what is bad comes first");
    let new = object(&all, Dialect::OpenReports, None, 7);
    assert_eq!((&new["apiVersion"], &new["kind"]), (&json!("openreports.io/v1alpha1"), &json!("Report")));
    assert_eq!((&new["results"], &new["summary"]), (&old["results"], &old["summary"]));
    assert!(old.get("configuration").is_none() && new["configuration"]["limits"]["maxResults"].is_u64());
}

#[test]
fn a_result_keeps_its_time_while_it_stays() {
    let first = object(&[facts("web"), rejected("broken")], Dialect::OpenReports, None, 7);
    let same = object(&[facts("web"), rejected("broken")], Dialect::OpenReports, Some(&first), 9);
    assert!(report::says_the_same(&first, &same));
    let next = object(&[facts("web"), facts("broken")], Dialect::OpenReports, Some(&first), 9);
    assert!(!report::says_the_same(&first, &next));
    let since = |object: &Value, policy: &str| {
        let results = object["results"].as_array().expect("a list");
        results.iter().find(|result| result["policy"] == policy).expect("it is there")["timestamp"]["seconds"]
            .clone()
    };
    assert_eq!((since(&next, "web"), since(&next, "broken")), (json!(7), json!(9)));
}

#[test]
fn a_report_is_bounded_and_says_so() {
    let named = vec!["x".repeat(1000); 3];
    let many: Vec<Facts> = (0..3000)
        .map(|number| Facts {
            generated: Some(Objects { count: 1, losses: 5, named: named.clone(), refused: None }),
            ..facts(&format!("policy-{number}"))
        })
        .collect();
    let object = object(&many, Dialect::PolicyReport, None, 7);
    let results = object["results"].as_array().expect("a list");
    assert!(results.len() <= 501, "{}", results.len());
    assert!(object.to_string().len() < 700 << 10, "{}", object.to_string().len());
    let last = results.last().expect("there are some");
    assert_eq!(last["message"], format!("and {} more results", 6000 - (results.len() - 1)));
    assert_eq!(object["summary"]["warn"], 3000, "the sum counts all");
    assert_eq!(results[0]["result"], "warn", "what is bad comes first");
}

#[test]
fn of_a_report_that_was_read_only_what_can_be_ours_is_kept() {
    let all = [facts("web"), rejected("broken")];
    let mut first = object(&all, Dialect::OpenReports, None, 7);
    first["metadata"]["uid"] = "u".into();
    first["metadata"]["resourceVersion"] = "5".into();
    let mut read = first.clone();
    read["metadata"]["managedFields"] = json!([{ "manager": "x" }]);
    read["more"] = "x".repeat(1 << 20).into();
    read["metadata"]["annotations"]["theirs"] = "x".into();
    let kept = report::kept(read.clone());
    assert!(report::says_the_same(&kept, &first), "{kept}");
    assert_eq!((&kept["metadata"]["uid"], &kept["metadata"]["resourceVersion"]), (&json!("u"), &json!("5")));
    assert!(kept.to_string().len() < 4096, "{kept}");
    let again = object(&all, Dialect::OpenReports, Some(&kept), 9);
    assert!(report::says_the_same(&kept, &again), "times stay");

    let results = first["results"].as_array().expect("a list").clone();
    let stuffed: Vec<Value> = results.iter().cloned().cycle().take(502).collect();
    let long = json!([{ "message": "x".repeat(600 << 10) }]);
    for results in [Value::from(stuffed), long] {
        read["results"] = results;
        let kept = report::kept(read.clone());
        assert!(kept["results"].is_null());
        assert!(!report::says_the_same(&kept, &first), "it is written anew");
    }
    // All that fits stays as it is.
    let many: Vec<Facts> = (0..3000).map(|number| facts(&format!("policy-{number}"))).collect();
    let most = object(&many, Dialect::OpenReports, None, 7);
    assert!(report::says_the_same(&report::kept(most.clone()), &most));
}
