use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::policy::ranges::{Count, Revision, collapsed};

/// Returns the folder of the real files, or says that there is none.
fn data() -> Option<PathBuf> {
    let folder = std::env::var("EGRESS_DATA_DIR").ok();
    if folder.is_none() {
        println!("skipped: EGRESS_DATA_DIR does not say where the providers' files are");
    }
    folder.map(PathBuf::from)
}

fn file(folder: &Path, name: &str) -> Vec<u8> {
    fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn parse(name: &str, documents: &[&[u8]]) -> Result<Table, ParseError> {
    provider(name).unwrap_or_else(|| panic!("{name} is a provider")).parse(documents)
}

fn good(name: &str, documents: &[&[u8]]) -> Table {
    parse(name, documents).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn refused(name: &str, documents: &[&[u8]], expected: &str) {
    let error = parse(name, documents).expect_err("it is no good").to_string();
    assert_eq!(error, expected);
}

fn rows(v4: usize, v6: usize) -> Count {
    Count { v4, v6, domains: 0 }
}

/// Returns how many rows, and how many CIDRs they collapse to, of each family.
fn numbers(table: &Table, filter: impl Fn(&Row<'_>) -> bool) -> [usize; 4] {
    let nets: Vec<IpNet> = table.rows().filter(filter).map(|row| row.cidr).collect();
    let v4 = |nets: &[IpNet]| nets.iter().filter(|net| matches!(net, IpNet::V4(_))).count();
    let few = collapsed(&nets);
    [v4(&nets), v4(&few), nets.len() - v4(&nets), few.len() - v4(&few)]
}

#[test]
fn names_are_in_order_and_found() {
    let names = PROVIDERS.map(Provider::name);
    assert!(names.is_sorted());
    assert!(names.iter().all(|name| provider(&name.to_uppercase()).is_some()));
    assert!(provider("custom").is_none());
    assert!(PROVIDERS.iter().all(|provider| provider.urls().iter().all(|url| url.starts_with("https://"))));
}

#[test]
fn policies_may_name_every_provider() {
    use crate::policy::{cluster::NsName, document};
    for name in PROVIDERS.map(Provider::name).into_iter().chain([crate::policy::ranges::CUSTOM]) {
        let cloud = json!({"provider": name, "service": "S3"});
        let text = json!({"allowedDestinations": [{"name": "x", "cloud": cloud}]}).to_string();
        let parsed = document::parse(&NsName::new("shop", "egress"), &text);
        let named = parsed.findings.iter().any(|finding| finding.to_string().contains("Invalid provider"));
        assert!(!named, "{name}: {:?}", parsed.findings);
    }
}

#[test]
fn aws_real() {
    let Some(folder) = data() else { return };
    let table = good("aws", &[&file(&folder, "aws/ip-ranges.json")]);
    assert_eq!(table.revision(), Revision::Published(1_787_433_425));
    assert_eq!(table.count(), rows(10_666, 6_160));
    let of = |service: &'static str| numbers(&table, move |row| row.service == service);
    let all = numbers(&table, |_| true);
    assert_eq!(all, [10_666, 1_752, 6_160, 2_107]);
    assert_eq!([of("AMAZON")[1], of("AMAZON")[3]], [1_752, 2_107], "every other service lies in it");
    assert_eq!(of("EC2"), [1_923, 725, 2_230, 1_714]);
    assert_eq!(of("S3"), [441, 175, 513, 451]);
    assert_eq!(of("CLOUDFRONT"), [211, 180, 32, 31]);
    assert_eq!(of("DYNAMODB"), [94, 28, 0, 0]);
    assert_eq!(of("API_GATEWAY"), [214, 210, 0, 0]);
    assert_eq!(of("GLOBALACCELERATOR"), [131, 46, 45, 24]);
    assert_eq!(of("ROUTE53_RESOLVER")[..2], [638, 418]);
    assert_eq!(of("IOT_CORE")[0], 0);
    let at = |service: &'static str, region: &'static str| {
        numbers(&table, move |row| row.service == service && row.region == region)
    };
    assert_eq!(at("S3", "us-east-1"), [21, 15, 19, 17]);
    assert_eq!(at("DYNAMODB", "us-east-1"), [6, 5, 0, 0]);
    assert_eq!(at("EC2", "us-east-1"), [293, 232, 215, 174]);
    assert_eq!(at("AMAZON", "us-east-1"), [845, 509, 266, 216]);
    assert_eq!(at("S3", "eu-west-1"), [12, 10, 12, 12]);
    assert_eq!(at("EC2", "eu-west-1"), [88, 70, 73, 68]);
    let global: BTreeMap<&str, usize> =
        table.rows().filter(|row| row.region == GLOBAL).fold(BTreeMap::new(), |mut all, row| {
            *all.entry(row.service).or_default() += 1;
            all
        });
    for (service, count) in [("CLOUDFRONT", 150), ("GLOBALACCELERATOR", 60), ("ROUTE53", 14), ("AMAZON", 292)]
    {
        assert_eq!(global[service], count, "{service}");
    }
    assert_eq!(table.services().len(), 28);
    assert_eq!(table.count_by_region().len(), 43);
    assert_eq!(table.regions().len(), 43 + 78, "78 border groups are no regions");
}

#[test]
fn aws_real_answers() {
    use crate::policy::{
        model::Unresolved,
        ranges::{Missing, Ranges},
    };
    let Some(folder) = data() else { return };
    let mut ranges = Ranges::default();
    ranges.set_provider("aws", good("aws", &[&file(&folder, "aws/ip-ranges.json")]).into());
    let ask = |service: &str, regions: &[&str]| {
        let regions = regions.iter().map(|region| (*region).to_owned()).collect();
        ranges.resolve(&Unresolved::AwsService { service: service.into(), regions })
    };
    let ec2 = ask("ec2", &["us-east-1"]).expect("it was found");
    assert_eq!(ec2.width().to_string(), "406 CIDRs, 21.5 million IPv4 addresses");
    assert!(matches!(ask("ROUTE53", &["us-east-1"]), Err(Missing::Empty { .. })));
    assert!(matches!(ask("SQS", &[]), Err(Missing::Service { near: None, .. })));
    let cloudfront = ask("CLOUDFRONT", &["us-east-1"]).expect("it was found");
    assert_eq!(cloudfront.left_out_global, 150);
    let zone = ask("EC2", &["us-east-1-atl-1"]).expect("a border group is a region");
    assert!(zone.cidrs.len() < ec2.cidrs.len());
}

#[test]
fn aws_real_of_other_years() {
    let Some(folder) = data() else { return };
    let first = good("aws", &[&file(&folder, "aws/ip-ranges.2015-11.json")]);
    assert_eq!((first.revision(), first.count()), (Revision::Published(1_446_568_938), rows(513, 0)));
    assert_eq!((first.services().len(), first.regions().len()), (5, 12));
    let later = good("aws", &[&file(&folder, "aws/ip-ranges.2025-07.json")]);
    assert_eq!((later.count(), later.services().len()), (rows(8_971, 4_373), 25));
    let previous = good("aws", &[&file(&folder, "aws/ip-ranges.previous.json")]);
    assert_eq!(previous.count(), rows(10_668, 6_160));
}

#[test]
fn google_real() {
    let Some(folder) = data() else { return };
    let (cloud, all) = (file(&folder, "google/cloud.json"), file(&folder, "google/goog.json"));
    let table = good("google", &[&cloud, &all]);
    assert_eq!(table.revision(), Revision::Published(1_753_409_788_780));
    assert_eq!(table.services().collect::<Vec<_>>(), ["cloud", "services"]);
    assert_eq!(table.count_by_service()[0].1, rows(736, 46));
    assert_eq!(table.count_by_region().len(), 46, "with global, which services are in too");
    let nets = |service: &str| -> Vec<IpNet> {
        table.rows().filter(|row| row.service == service).map(|row| row.cidr).collect()
    };
    // 8.8.8.0/24 is nobody's to rent; 34.1.208.0/20 is.
    let (cloud, services) = (nets("cloud"), nets("services"));
    assert!(services.contains(&"8.8.8.0/24".parse().expect("a network")));
    let meet = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    assert!(!services.iter().any(|service| cloud.iter().any(|cloud| meet(service, cloud))));
}

#[test]
fn google_rewritten_is_refused() {
    let Some(folder) = data() else { return };
    let cloud = file(&folder, "google/cloud.2026-08.rewritten.json");
    let all = file(&folder, "google/goog.2026-08.rewritten.json");
    let error = parse("google", &[&cloud, &all]).expect_err("it has no syncToken").to_string();
    assert_eq!(
        error,
        "google, line 5474, column 1: missing field `syncToken` (Google's cloud.json and goog.json have syncToken, and ipv4Prefix or \
         ipv6Prefix; copies with ipPrefix are not read)"
    );
}

#[test]
fn azure_real() {
    let Some(folder) = data() else { return };
    let table = good("azure", &[&file(&folder, "azure/ServiceTags_Public.json")]);
    assert_eq!((table.revision(), table.count()), (Revision::Published(376), rows(71_348, 24_475)));
    assert!(table.bytes() < 1 << 20, "{} bytes", table.bytes());
    let names: Vec<&str> = table.services().collect();
    for service in
        ["Sql", "Sql.EastUS2Stage", "AzureFrontDoor.Frontend", "AzureActiveDirectory.ServiceEndpoint"]
    {
        assert!(names.contains(&service), "{service}");
    }
    assert!(!names.contains(&"Sql.EastUS"));
    let regions: Vec<&str> = table.regions().collect();
    for region in ["EastUS", "FranceCentral", "centralfrance", "GLOBAL"] {
        assert!(regions.contains(&region), "{region}");
    }
    let small = good("azure", &[&file(&folder, "azure/ServiceTags_AzureGovernment.json")]);
    assert_eq!((small.revision(), small.count()), (Revision::Published(401), rows(4_857, 1_732)));
    assert!(small.services().any(|name| name == "AzurePortal.AzureAppServiceUx"));
}

#[test]
fn github_real() {
    let Some(folder) = data() else { return };
    let table = good("github", &[&file(&folder, "github/meta.json")]);
    let counts: BTreeMap<&str, Count> = table.count_by_service().into_iter().collect();
    let prefixes = |name: &str| counts[name].rows();
    assert_eq!(
        ["hooks", "web", "api", "git", "packages", "pages", "actions", "codespaces", "copilot"].map(prefixes),
        [6, 26, 26, 46, 29, 10, 7_280, 191, 17]
    );
    let domains = |name: &str| counts[name].domains;
    assert_eq!(["website", "packages", "actions"].map(domains), [5, 19, 72]);
    assert!(domains("actions_inbound") > 100 && prefixes("actions_inbound") == 0);
    assert!(!counts.contains_key("ssh_keys") && !counts.contains_key("commit_signing_keys"));
    assert!(table.domains().any(|pair| pair == ("website", "*.github.com")));
    assert!(matches!(table.revision(), Revision::Content(_)));
}

#[test]
fn others_real() {
    let Some(folder) = data() else { return };
    let (v4, v6) = (file(&folder, "cloudflare/ips-v4.txt"), file(&folder, "cloudflare/ips-v6.txt"));
    let table = good("cloudflare", &[&v4, &v6]);
    assert_eq!(table.count(), rows(15, 7));
    assert_eq!(table.services().collect::<Vec<_>>(), ["cloudflare"]);
    assert_eq!(good("fastly", &[&file(&folder, "fastly/public-ip-list.json")]).count(), rows(19, 2));
    let table = good("oracle", &[&file(&folder, "oracle/public_ip_ranges.json")]);
    assert_eq!(table.revision(), Revision::Published(20_250_721_071_325));
    let of = |service| numbers(&table, |row| row.service == service);
    assert_eq!([of("OCI"), of("OSN"), of("OBJECT_STORAGE")].map(|n| n[0] + n[2]), [500, 396, 48]);
    assert_eq!(table.regions().len(), 45);
    let table = good("digitalocean", &[&file(&folder, "digitalocean/google.csv")]);
    assert_eq!(table.count().rows(), 1_182);
    let regions: Vec<&str> = table.regions().collect();
    for region in ["NL", "NL-NH", "Amsterdam", "North-Bergen", "US"] {
        assert!(regions.contains(&region), "{region}");
    }
}

/// Small documents of every provider's form.
fn samples() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let aws = json!({"syncToken": "7", "createDate": "2026-01-01-00-00-00", "prefixes": [
        {"ip_prefix": "192.0.2.0/24", "region": "eu-west-1", "service": "S3", "network_border_group": "eu-west-1"},
        {"ip_prefix": "198.51.100.0/25", "region": "eu-west-1", "service": "EC2", "network_border_group": "eu-west-1-ham-1"},
        {"ip_prefix": "198.51.100.128/25", "region": "GLOBAL", "service": "EC2", "network_border_group": "GLOBAL"},
    ], "ipv6_prefixes": [
        {"ipv6_prefix": "2001:db8::/32", "region": "eu-west-1", "service": "S3", "network_border_group": "eu-west-1"},
    ]});
    let cloud = json!({"syncToken": "9", "creationTime": "2026", "prefixes": [
        {"ipv4Prefix": "192.0.2.0/24", "service": "Google Cloud", "scope": "europe-west1"},
        {"ipv6Prefix": "2001:db8::/32", "service": "Google Cloud", "scope": "global"},
    ]});
    let goog = json!({"syncToken": "8", "creationTime": "2026", "prefixes": [
        {"ipv4Prefix": "192.0.0.0/16"}, {"ipv6Prefix": "2001:db8::/31"},
    ]});
    let tag = |name: &str, region: &str, prefixes: &[&str]| {
        json!({"name": name, "id": name, "properties": {"changeNumber": 1, "region": region, "regionId": 0,
            "platform": "Azure", "systemService": name, "addressPrefixes": prefixes, "networkFeatures": ["API"]}})
    };
    let azure = json!({"changeNumber": 5, "cloud": "Public", "values": [
        tag("Sql", "", &["192.0.2.0/24", "2001:db8::/32"]),
        tag("Sql.EastUS", "eastus", &["192.0.2.0/25", "192.0.2.128/25"]),
        tag("Sql.FranceCentral", "centralfrance", &["2001:db8::/33"]),
    ]});
    let github = json!({"verifiable_password_authentication": false, "ssh_key_fingerprints": {"SHA256_RSA": "x"},
        "ssh_keys": ["ssh-ed25519 AAAA"], "hooks": ["192.0.2.0/24", "2001:db8::/32"], "web": ["192.0.2.0/24"],
        "api": ["198.51.100.1/32"], "git": ["198.51.100.2"], "domains": {"website": ["*.github.com", "github.dev"],
        "actions_inbound": {"full_domains": ["github.com"], "wildcard_domains": ["*.github.com"]}}});
    let fastly =
        json!({"addresses": ["192.0.2.0/24", "198.51.100.0/24"], "ipv6_addresses": ["2001:db8::/32"]});
    let oracle = json!({"last_updated_timestamp": "2026-01-01T00:00:00.0", "regions": [
        {"region": "eu-paris-1", "cidrs": [{"cidr": "192.0.2.0/24", "tags": ["OSN", "OBJECT_STORAGE"]}]},
        {"region": "us-ashburn-1", "cidrs": [{"cidr": "198.51.100.0/24", "tags": ["OCI"]}]},
    ]});
    let bytes = |value: &Value| serde_json::to_vec_pretty(value).expect("it can be written");
    vec![
        ("aws", vec![bytes(&aws)]),
        ("azure", vec![bytes(&azure)]),
        (
            "cloudflare",
            vec![b"192.0.2.0/24\n198.51.100.0/24\n".to_vec(), b"2001:db8::/32\n2001:db9::/32\n".to_vec()],
        ),
        (
            "digitalocean",
            vec![
                b"192.0.2.0/24,NL,NL-NH,Amsterdam,1098 XH\n198.51.100.0/24,US,US-NJ,North Bergen,07047\n\
            2001:db8::/32,US,,,\n"
                    .to_vec(),
            ],
        ),
        ("fastly", vec![bytes(&fastly)]),
        ("github", vec![bytes(&github)]),
        ("google", vec![bytes(&cloud), bytes(&goog)]),
        ("oracle", vec![bytes(&oracle)]),
    ]
}

fn borrowed(documents: &[Vec<u8>]) -> Vec<&[u8]> {
    documents.iter().map(Vec::as_slice).collect()
}

#[test]
fn samples_are_good() {
    for (name, documents) in samples() {
        let table = good(name, &borrowed(&documents));
        assert!(table.count().rows() > 1, "{name}");
    }
}

#[test]
fn what_is_no_data_is_refused_with_place_and_hint() {
    for (name, documents) in samples() {
        let mut documents = borrowed(&documents);
        let starts = |documents: &[&[u8]], expected: &str| {
            let error = parse(name, documents).expect_err("it is no good").to_string();
            assert!(error.starts_with(name) && error.contains(expected), "{error}");
        };
        starts(&[], "0 documents where ");
        documents[0] = b" \r\n";
        starts(
            &documents,
            ": the document is empty (the document ends too early; was the download cut off?)",
        );
        documents[0] = b"\xef\xbb\xbf<!DOCTYPE html>";
        starts(&documents, "this is a web page; did a proxy or a login page answer?");
        documents[0] = b"{}";
        starts(&documents, "");
        documents[0] = b"null";
        starts(&documents, "line 1");
        documents[0] = b"\"\xff\"";
        starts(&documents, "line 1, column ");
    }
    let aws = |rows: &str| format!("{{\"syncToken\": \"7\",\n\"prefixes\": [{rows}]}}").into_bytes();
    let form = "(AWS' ip-ranges.json has syncToken, prefixes and ipv6_prefixes)";
    refused("aws", &[&aws("")], &format!("aws: there is no prefix in it {form}"));
    for (row, expected) in [
        (
            r#"{"ip_prefix": "192.0.2.1/24", "region": "a", "service": "b"}"#,
            "line 2, column 41: 192.0.2.1/24 has host bits set; 192.0.2.0/24 would be the prefix",
        ),
        (
            r#"{"ip_prefix": "2001:db8::/32", "region": "a", "service": "b"}"#,
            "line 2, column 42: 2001:db8::/32 among IPv4 prefixes",
        ),
        (
            r#"{"ip_prefix": "0.0.0.0/1", "region": "a", "service": "b"}"#,
            "line 2, column 38: 0.0.0.0/1 is a prefix that no provider has",
        ),
        (
            r#"{"ip_prefix": "x\u0022/1", "region": "a", "service": "b"}"#,
            "line 2, column 38: x\"/1 is no prefix",
        ),
        (
            r#"{"ip_prefix": 5, "region": "a", "service": "b"}"#,
            "line 2, column 28: invalid type: integer `5`, expected a prefix such as 192.0.2.0/24",
        ),
        (r#"{"ip_prefix": "192.0.2.0/24", "region": "a"}"#, "line 2, column 57: missing field `service`"),
        (
            r#"{"ip_prefix": "192.0.2.0/24", "region": "a b", "service": "b"}"#,
            "at 192.0.2.0/24: a name of a service or region that is empty, too long, or not of printable ASCII characters",
        ),
    ] {
        let error = parse("aws", &[&aws(row)]).expect_err("it is no good").to_string();
        assert!(error.contains(expected) && error.ends_with(form), "{error}");
    }
    refused(
        "aws",
        &[br#"{"syncToken": "7", "prefixes": [{"ip_prefix": "192.0.2.0/24","#],
        "aws, line 1, column 61: EOF while parsing a value (the document ends too early; was the download cut off?)",
    );
    refused(
        "aws",
        &[br#"{"syncToken": "soon", "prefixes": []}"#],
        &format!("aws, line 1, column 20: soon is no number {form}"),
    );
    refused(
        "cloudflare",
        &[b"192.0.2.0/24\n", b"2001:db8::/32\nnonsense\n"],
        "cloudflare, document 2, line 2, column 1: nonsense is no prefix",
    );
    refused(
        "digitalocean",
        &[b"192.0.2.0/24,US,US-NJ,Clifton,1\n192.0.3.0/2"],
        "digitalocean, line 2, column 1: the last line has no end (the document ends too early; was the download cut off?)",
    );
    refused(
        "digitalocean",
        &[b"192.0.2.0/24,US\n"],
        "digitalocean, line 1, column 1: 2 fields where at least 4 are needed (a geofeed has prefix,country,region,city,postal code)",
    );
    let huge = vec![b' '; MAX_BYTES + 1];
    refused("aws", &[&huge], "aws: the document has more than 33554432 bytes");
}

#[test]
fn github_knows_its_groups_from_other_lists() {
    let with = |field: &str, value: Value| {
        let (_, documents) = samples().remove(5);
        let mut document: Value = serde_json::from_slice(&documents[0]).expect("it is JSON");
        document[field] = value;
        parse("github", &[document.to_string().as_bytes()])
    };
    let services = |table: &Table| table.services().map(str::to_owned).collect::<Vec<_>>();
    let new = with("runners", json!(["192.0.2.0/24"])).expect("a new group is a group");
    assert!(services(&new).contains(&"runners".to_owned()));
    let keys = with("more_keys", json!(["ssh-rsa AAAA", "192.0.2.0/24"])).expect("keys are no group");
    assert!(!services(&keys).contains(&"more_keys".to_owned()));
    for (field, value, expected) in [
        ("hooks", json!(["192.0.2.0/24", "x"]), "github: row 2 of hooks: x is no prefix"),
        ("hooks", json!(["x"]), "github: row 1 of hooks: x is no prefix"),
        ("hooks", json!({}), "github: hooks is no list of prefixes"),
        ("hooks", json!([1]), "github: hooks is no list of prefixes"),
        (
            "runners",
            json!(["192.0.2.0/24", "192.0.2.1/24"]),
            "github: row 2 of runners: 192.0.2.1/24 has host bits set",
        ),
        (
            "domains",
            json!({"website": ["exa mple.com"]}),
            "github: domain exa mple.com of website has a space in it",
        ),
        ("domains", json!({"website": 5}), "github: domains.website is no list"),
    ] {
        let error = with(field, value).expect_err("it is no good").to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    refused(
        "github",
        &[br#"{"hooks": [], "web": [], "api": []}"#],
        "github: there is no git in it (GitHub's meta has lists of prefixes such as hooks, web, api and git)",
    );
    refused(
        "github",
        &[br#"{"hooks": [], "hooks": []}"#],
        "github, line 1, column 26: duplicate field hooks (GitHub's meta has lists of prefixes such as hooks, web, api and git)",
    );
}

/// Turns every list of a document by some places, and lets it begin again at its end.
fn turned(value: &mut Value, seed: usize, again: bool) {
    match value {
        Value::Array(list) => {
            for item in &mut *list {
                turned(item, seed, again);
            }
            if !list.is_empty() {
                let by = seed % list.len();
                list.rotate_left(by);
                list.reverse();
                if again {
                    list.extend(list.clone());
                }
            }
        }
        Value::Object(fields) => fields.values_mut().for_each(|field| turned(field, seed, again)),
        _ => {}
    }
}

/// Puts another value at the place with this number.
fn replaced(value: &mut Value, left: &mut usize, by: &Value) {
    if *left == 0 {
        *value = by.clone();
    }
    *left = left.wrapping_sub(1);
    match value {
        Value::Array(list) if *left < usize::MAX / 2 => {
            list.iter_mut().for_each(|item| replaced(item, left, by));
        }
        Value::Object(fields) if *left < usize::MAX / 2 => {
            fields.values_mut().for_each(|field| replaced(field, left, by));
        }
        _ => {}
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        Just(json!(true)),
        Just(json!(-1.5)),
        Just(json!(u64::MAX)),
        Just(json!([])),
        Just(json!({})),
        Just(json!([[["x"]]])),
        Just(json!("192.0.2.0/24")),
        ".{0,12}".prop_map(Value::from),
        Just(Value::from("x".repeat(100_000))),
    ]
}

/// Reads lines or JSON and gives them back in another order, perhaps twice.
fn mixed(document: &[u8], seed: usize, again: bool) -> Vec<u8> {
    match serde_json::from_slice::<Value>(document) {
        Ok(mut value) => {
            turned(&mut value, seed, again);
            value.to_string().into_bytes()
        }
        Err(_) => {
            let text = std::str::from_utf8(document).expect("it is text");
            let mut lines: Vec<&str> = text.lines().collect();
            let by = seed % lines.len();
            lines.rotate_left(by);
            if again {
                lines.extend(lines.clone());
            }
            (lines.join("\n") + "\n").into_bytes()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn order_and_repetition_make_no_difference(seed in 0..100_usize, again in any::<bool>()) {
        for (name, documents) in samples() {
            let others: Vec<Vec<u8>> = documents.iter().map(|document| mixed(document, seed, again)).collect();
            let table = good(name, &borrowed(&documents));
            prop_assert_eq!(good(name, &borrowed(&others)), table, "{}", name);
        }
    }

    #[test]
    fn what_is_cut_off_is_refused(cut in 0.0..1.0_f64) {
        for (name, mut documents) in samples() {
            let document = &mut documents[0];
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a short document")]
            let at = (document.len() as f64 * cut) as usize;
            document.truncate(at);
            let result = parse(name, &borrowed(&documents));
            // Lists without an end mark are whole at every line's end.
            if name != "cloudflare" && documents[0].last() != Some(&b'\n') {
                prop_assert!(result.is_err(), "{name} at {at}");
            }
        }
    }

    #[test]
    fn other_types_and_bytes_never_panic(
        mut place in 0..60_usize,
        by in any_value(),
        byte in any::<u8>(),
        at in any::<usize>(),
    ) {
        for (name, documents) in samples() {
            let mut others = documents.clone();
            if let Ok(mut value) = serde_json::from_slice::<Value>(&documents[0]) {
                replaced(&mut value, &mut place, &by);
                others[0] = value.to_string().into_bytes();
                if let Err(error) = parse(name, &borrowed(&others)) {
                    prop_assert!(error.to_string().len() < 600, "{error}");
                }
            }
            others[0].clone_from(&documents[0]);
            let at = at % others[0].len();
            others[0][at] = byte;
            if let Ok(table) = parse(name, &borrowed(&others)) {
                prop_assert!(table.rows().all(|row| is_plausible(&row.cidr)));
            }
        }
    }
}

#[test]
fn real_files_in_another_order_or_cut() {
    let Some(folder) = data() else { return };
    for (name, files) in [
        ("aws", &["aws/ip-ranges.json"][..]),
        ("azure", &["azure/ServiceTags_AzureGovernment.json"]),
        ("cloudflare", &["cloudflare/ips-v4.txt", "cloudflare/ips-v6.txt"]),
        ("digitalocean", &["digitalocean/google.csv"]),
        ("fastly", &["fastly/public-ip-list.json"]),
        ("github", &["github/meta.json"]),
        ("google", &["google/cloud.json", "google/goog.json"]),
        ("oracle", &["oracle/public_ip_ranges.json"]),
    ] {
        let documents: Vec<Vec<u8>> = files.iter().map(|name| file(&folder, name)).collect();
        let table = good(name, &borrowed(&documents));
        for again in [false, true] {
            let others: Vec<Vec<u8>> = documents.iter().map(|document| mixed(document, 17, again)).collect();
            assert_eq!(good(name, &borrowed(&others)), table, "{name}");
        }
        for part in 1..8 {
            let mut others = documents.clone();
            let length = others[0].len() * part / 8;
            others[0].truncate(length);
            if name != "cloudflare" {
                assert!(parse(name, &borrowed(&others)).is_err(), "{name} cut at {length}");
            }
        }
    }
}
