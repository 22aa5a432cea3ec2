//! `egress-agent ranges`, as a person runs it.

use std::{fs, path::Path, process::Command};

use serde_json::Value;
use tempfile::TempDir;

/// Runs it and returns the exit code, standard output and standard error.
fn ranges(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_egress-agent"))
        .current_dir(folder)
        .env_remove("EGRESS_RANGES_CACHE")
        .arg("ranges")
        .args(arguments)
        .output()
        .expect("it can be run");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it is text");
    (output.status.code().expect("it ends by itself"), text(output.stdout), text(output.stderr))
}

const OLD: &str = r#"{"syncToken": "7", "prefixes": [
  {"ip_prefix": "192.0.2.0/25", "region": "eu-west-1", "service": "S3", "network_border_group": "eu-west-1"},
  {"ip_prefix": "192.0.2.128/25", "region": "eu-west-1", "service": "S3", "network_border_group": "eu-west-1"},
  {"ip_prefix": "198.51.100.0/24", "region": "GLOBAL", "service": "S3", "network_border_group": "GLOBAL"},
  {"ip_prefix": "198.51.100.0/24", "region": "GLOBAL", "service": "ROUTE53", "network_border_group": "GLOBAL"}],
 "ipv6_prefixes": [{"ipv6_prefix": "2001:db8::/32", "region": "eu-west-1", "service": "S3", "network_border_group": "eu-west-1"}]}"#;

fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("old.json"), OLD).expect("it can be written");
    let new = OLD.replace("\"7\"", "\"8\"").replace("192.0.2.128/25", "203.0.113.0/25");
    fs::write(folder.path().join("new.json"), new).expect("it can be written");
    fs::write(folder.path().join("cut.json"), &OLD[..300]).expect("it can be written");
    folder
}

#[test]
fn show_lists_services() {
    let folder = folder();
    let (code, out, err) = ranges(folder.path(), &["show", "old.json"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(
        out,
        "SERVICE   IPV4-ROWS   IPV6-ROWS   DOMAINS   CIDRS   IPV4-ADDRESSES\n\
         ROUTE53   1           0           0         1       256\n\
         S3        3           1           0         3       512\n\
         \naws, revision 7: 5 rows in 2 regions\n"
    );
    let (code, out, _) = ranges(folder.path(), &["show", "old.json", "-o", "json"]);
    let json: Value = serde_json::from_str(&out).expect("it is JSON");
    assert_eq!((code, &json["services"][1]["ipv4Addresses"]), (0, &Value::from(512)));
    assert_eq!(json["regions"], serde_json::json!(["eu-west-1", "GLOBAL"]));
}

#[test]
fn show_lists_addresses_and_warns() {
    let folder = folder();
    let arguments = ["show", "old.json", "--service", "s3", "--service", "ROUTE53", "--region", "eu-west-1"];
    let (code, out, err) = ranges(folder.path(), &arguments);
    assert_eq!((code, out.as_str()), (0, "192.0.2.0/24\n2001:db8::/32\n"));
    assert_eq!(
        err,
        "2 CIDRs, 256 IPv4 addresses\n\
         warning: 2 rows of region GLOBAL are left out; add GLOBAL to the regions to have them\n\
         warning: ROUTE53 gives nothing here\n"
    );
    let (code, out, _) = ranges(folder.path(), &[&arguments[..], &["-o", "json"]].concat());
    let json: Value = serde_json::from_str(&out).expect("it is JSON");
    assert_eq!((code, &json["cidrs"][0]), (0, &Value::from("192.0.2.0/24")));
    assert_eq!(json["nothingOf"], serde_json::json!(["ROUTE53"]));
}

#[test]
fn what_stands_for_nothing_is_a_finding() {
    let folder = folder();
    let of = |service: &str, region: &str| {
        ranges(folder.path(), &["show", "old.json", "--service", service, "--region", region])
    };
    let (code, out, err) = of("ROUTE53", "eu-west-1");
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(err, "error: aws publishes no address of ROUTE53 in eu-west-1\n");
    let (code, _, err) = of("S4", "eu-west-1");
    assert_eq!((code, err.as_str()), (1, "error: aws publishes no service S4; did you mean S3?\n"));
}

#[test]
fn what_cannot_be_read_cannot_run() {
    let folder = folder();
    let (code, _, err) = ranges(folder.path(), &["show", "none.json"]);
    assert!(code == 2 && err.starts_with("error: none.json: "), "{err}");
    let (code, _, err) = ranges(folder.path(), &["show", "cut.json"]);
    assert!(code == 2 && err.contains("was the download cut off?"), "{err}");
    let (code, _, err) = ranges(folder.path(), &["show", "--provider", "gcp", "old.json"]);
    assert!(code == 2 && err.contains("one of aws, azure, cloudflare"), "{err}");
    let (code, _, err) = ranges(folder.path(), &["show", "--cache", "."]);
    assert_eq!((code, err.as_str()), (2, "error: there is nothing of aws in .\n"));
}

#[test]
fn the_cache_is_read() {
    use egress_agent::ranges::{
        cache::{Cached, Document, store},
        fetch::Validators,
    };
    let folder = folder();
    let bytes = OLD.as_bytes().to_vec();
    let document = Document { url: "https://a.example/".into(), validators: Validators::default(), bytes };
    store(folder.path(), "aws", &Cached { documents: vec![document], seen: 1 }).expect("it can be stored");
    let (code, out, _) = ranges(folder.path(), &["show", "--cache", "."]);
    assert!(code == 0 && out.contains("revision 7"), "{out}");
}

#[test]
fn check_says_whether_a_file_can_be_used() {
    let folder = folder();
    let (code, out, err) = ranges(folder.path(), &["check", "old.json"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(out, "aws, revision 7: 4 IPv4 and 1 IPv6 rows of 2 services, 0 domains\n");
    let (code, out, err) = ranges(folder.path(), &["check", "cut.json"]);
    assert!(code == 1 && out.is_empty() && err.starts_with("error: aws, line 4, column "), "{err}");
    let (code, _, err) = ranges(folder.path(), &["check", "--provider", "oracle", "old.json"]);
    assert!(code == 1 && err.contains("missing field `last_updated_timestamp`"), "{err}");
    let (code, ..) = ranges(folder.path(), &["check"]);
    assert_eq!(code, 2);
}

#[test]
fn check_reads_definitions() {
    let folder = folder();
    let write =
        |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("it can be written");
    write(
        "good.json",
        r#"{"services": {"partners": {"cidrs": ["192.0.2.0/24"], "domains": ["a.example.com"]}}}"#,
    );
    write("bad.json", r#"{"services": {"b": {"includes": ["partner"]}}}"#);
    let (code, out, _) = ranges(folder.path(), &["check", "--custom", "good.json"]);
    assert_eq!((code, out.as_str()), (0, "partners: 1 CIDR, 256 IPv4 addresses, 1 domains\n"));
    let (code, _, err) = ranges(folder.path(), &["check", "--custom", "good.json", "bad.json"]);
    assert_eq!(code, 1);
    assert_eq!(
        err,
        "error: bad.json:1:34: b includes partner, which is not defined (did you mean partners?)\n"
    );
}

#[test]
fn diff_says_what_changes_and_whether_it_may() {
    let folder = folder();
    let (code, out, err) = ranges(folder.path(), &["diff", "old.json", "old.json"]);
    assert_eq!((code, out.as_str(), err.as_str()), (0, "+0 -0 prefixes, +0 -0 rows\n", ""));
    let (code, out, err) = ranges(folder.path(), &["diff", "old.json", "new.json"]);
    assert_eq!((code, err.as_str()), (1, ""));
    assert_eq!(out, "- 192.0.2.128/25\n+ 203.0.113.0/25\n+1 -1 prefixes, +1 -1 rows\n");
    let (code, out, err) = ranges(folder.path(), &["diff", "new.json", "old.json", "-o", "json"]);
    let json: Value = serde_json::from_str(&out).expect("it is JSON");
    assert_eq!((code, err.as_str()), (1, "error: the new ranges are older: revision 7 after 8\n"));
    assert_eq!(json["refused"], "the new ranges are older: revision 7 after 8");
    let (code, _, err) = ranges(folder.path(), &["diff", "old.json", "cut.json"]);
    assert!(code == 2 && err.starts_with("error: cut.json: aws, line 4"), "{err}");
}
