use proptest::prelude::*;

use super::*;
use crate::policy::model::{PortMatch, Protocol};

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

fn row<'a>(service: &'a str, region: &'a str, border: &'a str, cidr: &str) -> Row<'a> {
    Row { service, region, network_border_group: border, wider: "", cidr: net(cidr) }
}

/// As AWS writes them: a service with GLOBAL rows, one with a local zone, one that is in one region only.
fn aws_rows() -> Vec<Row<'static>> {
    vec![
        row("S3", "us-east-1", "us-east-1", "192.0.2.0/25"),
        row("S3", "us-east-1", "us-east-1", "192.0.2.128/25"),
        row("S3", "us-east-1", "us-east-1-atl-1", "198.51.100.0/24"),
        row("S3", "us-east-1", "us-east-1", "2001:db8::/32"),
        row("S3", "eu-west-1", "eu-west-1", "203.0.113.0/24"),
        row("S3", "GLOBAL", "GLOBAL", "203.0.112.0/24"),
        row("ROUTE53", "GLOBAL", "GLOBAL", "205.251.192.0/23"),
        row("DYNAMODB", "eu-west-1", "eu-west-1", "52.94.24.0/23"),
    ]
}

fn table(rows: &[Row<'_>]) -> Table {
    let mut builder = Builder::new();
    for row in rows {
        builder.push(*row).expect("it is good");
    }
    builder.finish(Some(7))
}

fn ranges() -> Ranges {
    let mut ranges = Ranges::default();
    ranges.set_provider("aws", Arc::new(table(&aws_rows())));
    let mut github = Builder::new();
    github.push(row("hooks", GLOBAL, "", "192.30.252.0/22")).expect("it is good");
    github.push_domain("website", "*.GitHub.com").expect("it is good");
    github.push_domain("hooks", "hooks.github.com").expect("it is good");
    ranges.set_provider("GitHub", Arc::new(github.finish(None)));
    ranges
}

fn aws(service: &str, regions: &[&str]) -> Unresolved {
    Unresolved::AwsService { service: service.into(), regions: owned(regions) }
}

fn cloud(provider: &str, services: &[&str], regions: &[&str]) -> Unresolved {
    Unresolved::Cloud { provider: provider.into(), services: owned(services), regions: owned(regions) }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn cidrs(found: &Result<Found, Missing>) -> Vec<String> {
    let found = found.as_ref().unwrap_or_else(|missing| panic!("{missing}"));
    found.cidrs.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn missing(what: &Unresolved, expected: &str) {
    assert_eq!(ranges().resolve(what).expect_err("it stands for nothing").to_string(), expected);
}

#[test]
fn a_service_in_a_region_is_its_rows_there_collapsed() {
    let found = ranges().resolve(&aws("s3", &["us-east-1"]));
    assert_eq!(cidrs(&found), ["192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32"]);
    let found = found.expect("it was found");
    assert_eq!(found.left_out_global, 1, "one row is of no region");
    assert_eq!((found.v4().len(), found.v6().len()), (2, 1));
    assert_eq!(found.width().to_string(), "3 CIDRs, 512 IPv4 addresses");
}

#[test]
fn global_is_meant_when_it_is_named_or_no_region_is() {
    let all = ranges().resolve(&aws("S3", &[])).expect("it was found");
    assert_eq!((all.cidrs.len(), all.left_out_global), (4, 0), "203.0.112.0/23 is one");
    assert_eq!(cidrs(&ranges().resolve(&aws("S3", &["GLOBAL"]))), ["203.0.112.0/24"]);
    let both = ranges().resolve(&aws("S3", &["eu-west-1", "global"]));
    assert_eq!(cidrs(&both), ["203.0.112.0/23"]);
    assert_eq!(both.expect("it was found").left_out_global, 0);
}

#[test]
fn a_border_group_is_only_itself_and_part_of_its_region() {
    assert_eq!(cidrs(&ranges().resolve(&aws("S3", &["us-east-1-atl-1"]))), ["198.51.100.0/24"]);
}

#[test]
fn several_services_and_regions_are_all_of_them() {
    let found = ranges().resolve(&cloud("AWS", &["S3", "DynamoDB"], &["eu-west-1", "us-east-1-atl-1"]));
    assert_eq!(cidrs(&found), ["52.94.24.0/23", "198.51.100.0/24", "203.0.113.0/24"]);
    let all = ranges().resolve(&cloud("aws", &[], &[]));
    assert_eq!(cidrs(&all).len(), 6);
}

#[test]
fn a_part_without_rows_is_told() {
    let found = ranges().resolve(&cloud("aws", &["S3", "ROUTE53"], &["us-east-1"])).expect("it was found");
    assert_eq!(found.nothing_of, ["ROUTE53"]);
    assert_eq!(found.left_out_global, 2);
    let found = ranges().resolve(&cloud("aws", &["DYNAMODB"], &["us-east-1", "eu-west-1"]));
    assert_eq!(found.expect("it was found").nothing_of, ["us-east-1"]);
}

#[test]
fn nothing_is_missing_and_never_empty() {
    missing(&aws("ROUTE53", &["us-east-1"]), "aws publishes no address of ROUTE53 in us-east-1");
    missing(
        &cloud("aws", &["ROUTE53", "DYNAMODB"], &["us-east-1", "us-east-1-atl-1"]),
        "aws publishes no address of ROUTE53 or DYNAMODB in us-east-1 or us-east-1-atl-1",
    );
    missing(&aws("DYNMODB", &[]), "aws publishes no service DYNMODB; did you mean DYNAMODB?");
    missing(&aws("SQS", &[]), "aws publishes no service SQS");
    missing(&aws("S3", &["eu-wset-1"]), "aws publishes no region eu-wset-1; did you mean eu-west-1?");
    missing(&cloud("oracle", &[], &[]), "there are no published ranges of oracle here");
    missing(&cloud("custom", &[], &[]), "there are no published ranges of custom here");
    missing(&cloud("custom", &["x"], &[]), "custom publishes no service x");
    missing(&cloud("github", &["website"], &["eu-west-1"]), "github publishes no region eu-west-1");
    missing(&Unresolved::Domains(vec!["a.example".into()]), "domains have no published ranges");
    let ten: Vec<String> = (0..10).map(|n| format!("s{n}")).collect();
    assert_eq!(List(&ten, "").to_string(), "s0, s1, s2, s3, s4, s5, s6, s7 or 2 more");
}

#[test]
fn domains_come_with_their_service() {
    let found = ranges().resolve(&cloud("github", &["website"], &[])).expect("it was found");
    assert_eq!((found.cidrs.len(), found.domains), (0, vec!["*.github.com".to_owned()]));
    assert_eq!(Width::of(&found.cidrs), Width { addresses: 0, cidrs: 0 });
    let all = ranges().resolve(&cloud("GITHUB", &[], &["global"])).expect("it was found");
    assert_eq!((all.cidrs.len(), all.domains.len()), (1, 2));
}

#[test]
fn a_region_may_stand_in_the_name_of_the_service() {
    let mut builder = Builder::new();
    builder.global_is_sum();
    for (service, region, border, cidr) in [
        ("Sql", GLOBAL, "", "192.0.2.0/24"),
        ("Sql", "FranceCentral", "centralfrance", "192.0.2.0/25"),
        ("Sql", "EastUS", "", "192.0.2.128/25"),
        ("AzureFrontDoor.Frontend", GLOBAL, "", "198.51.100.0/24"),
    ] {
        builder.push(row(service, region, border, cidr)).expect("it is good");
    }
    let mut ranges = Ranges::default();
    ranges.set_provider("azure", Arc::new(builder.finish(Some(1))));
    let of = |services: &[&str], regions: &[&str]| ranges.resolve(&cloud("azure", services, regions));
    assert_eq!(cidrs(&of(&["sql.francecentral"], &[])), ["192.0.2.0/25"]);
    assert_eq!(cidrs(&of(&["Sql"], &["CentralFrance"])), ["192.0.2.0/25"]);
    assert_eq!(of(&["Sql"], &["EastUS"]).expect("it was found").left_out_global, 0, "GLOBAL repeats it");
    assert_eq!(cidrs(&of(&["Sql"], &[])), ["192.0.2.0/24"]);
    assert_eq!(cidrs(&of(&["AzureFrontDoor.Frontend"], &[])), ["198.51.100.0/24"]);
    let other = of(&["Sql.EastUS"], &["FranceCentral"]).expect_err("the two have nothing in common");
    assert_eq!(other.to_string(), "azure publishes no address of Sql.EastUS in FranceCentral");
    assert!(matches!(of(&["Sql.Nowhere"], &[]), Err(Missing::Service { .. })));
}

fn custom(text: &str) -> Ranges {
    let mut ranges = ranges();
    ranges.set_custom(Custom::parse(&[("services", text)]).expect("it is good"));
    ranges
}

#[test]
fn custom_services_come_first() {
    let ranges = custom(
        r#"{"services": {"s3": {"cidrs": ["10.0.0.0/8"]},
            "Partner": {"cidrs": ["10.0.0.0/9"], "domains": ["p.example.com"], "ports": [{"port": 443}]}}}"#,
    );
    assert_eq!(cidrs(&ranges.resolve(&aws("S3", &[]))), ["10.0.0.0/8"]);
    assert_eq!(cidrs(&ranges.resolve(&cloud("Aws", &["S3"], &["GLOBAL"]))), ["10.0.0.0/8"]);
    let both = ranges.resolve(&cloud("aws", &["S3", "DYNAMODB"], &["eu-west-1"]));
    assert_eq!(cidrs(&both), ["10.0.0.0/8", "52.94.24.0/23"]);
    let partner = ranges.resolve(&cloud("custom", &["PARTNER"], &[])).expect("it was found");
    assert_eq!((partner.cidrs.len(), partner.domains), (1, vec!["p.example.com".to_owned()]));
    assert_eq!(partner.ports, [PortSpec { protocol: Protocol::Tcp, port: PortMatch::Range(443, 443) }]);
    let sentence = |what| ranges.resolve(&what).expect_err("it stands for nothing").to_string();
    assert_eq!(sentence(aws("S3", &["us-east-1"])), "custom publishes no region us-east-1");
    assert_eq!(
        sentence(cloud("custom", &[], &[])),
        "Partner and s3 have different ports; give each a destination of its own"
    );
    assert_eq!(
        sentence(cloud("aws", &["DYNAMODB", "partner"], &[])),
        "DYNAMODB and Partner have different ports; give each a destination of its own"
    );
    assert_eq!(
        sentence(cloud("custom", &["partners"], &[])),
        "custom publishes no service partners; did you mean Partner?"
    );
    assert_eq!(sentence(cloud("github", &["partner"], &[])), "github publishes no service partner");
}

#[test]
fn providers_come_and_go() {
    let mut ranges = ranges();
    let before = ranges.clone();
    ranges.remove_provider("AWS");
    assert_ne!(ranges, before, "a copy is not changed with it");
    assert_eq!(ranges.resolve(&aws("S3", &[])), Err(Missing::Provider("aws".into())));
    ranges.set_provider("Aws", Arc::new(table(&aws_rows())));
    assert_eq!(ranges, before);
    assert_eq!(ranges.providers().map(|(name, _)| name).collect::<Vec<_>>(), ["aws", "github"]);
}

#[test]
fn widths_are_written_for_people() {
    let of = |addresses, cidrs| Width { addresses, cidrs }.to_string();
    assert_eq!(of(0, 0), "0 CIDRs, no IPv4 address");
    assert_eq!(of(1, 1), "1 CIDR, 1 IPv4 address");
    assert_eq!(of(9_999, 2), "2 CIDRs, 9999 IPv4 addresses");
    assert_eq!(of(659_500, 2), "2 CIDRs, 660 thousand IPv4 addresses");
    assert_eq!(of(21_450_000, 406), "406 CIDRs, 21.5 million IPv4 addresses");
    assert_eq!(of(1 << 32, 1), "1 CIDR, 4295.0 million IPv4 addresses");
    assert_eq!(Width::of(&[net("0.0.0.0/0"), net("::/0")]), Width { addresses: 1 << 32, cidrs: 2 });
}

#[test]
fn a_table_refuses_what_no_provider_has() {
    let refused = |row: Row<'_>| Builder::new().push(row);
    for cidr in [
        "0.0.0.0/0",
        "10.0.0.0/7",
        "0.1.2.3/32",
        "127.0.0.0/8",
        "10.1.0.0/16",
        "100.64.0.0/24",
        "169.254.169.254/32",
        "169.0.0.0/8",
        "172.31.0.0/24",
        "192.168.0.0/24",
        "64:ff9b::/96",
        "fd00:ec2::254/128",
        "fe80::/64",
        "224.0.0.0/24",
        "::/0",
        "::1/128",
        "ff00::/16",
    ] {
        assert_eq!(refused(row("S3", "eu", "", cidr)), Err(table::BuildError::Prefix), "{cidr}");
    }
    for name in ["", "a b", "é", "a\n", &"x".repeat(129)] {
        assert_eq!(refused(row(name, "eu", "", "192.0.2.0/24")), Err(table::BuildError::Name), "{name:?}");
        assert_eq!(refused(row("S3", name, "", "192.0.2.0/24")), Err(table::BuildError::Name), "{name:?}");
    }
    let mut many = Builder::new();
    for n in 0..table::MAX_NAMES {
        many.push(row(&format!("s{n}"), "eu", "", "192.0.2.0/24")).expect("so many are good");
    }
    assert_eq!(many.push(row("one-more", "eu", "", "192.0.2.0/24")), Err(table::BuildError::Names));
}

/// Rows that meet: few names, in different cases, and few prefixes.
fn rows() -> impl Strategy<Value = Vec<(usize, usize, usize, u8, bool)>> {
    prop::collection::vec((0..4_usize, 0..4_usize, 0..4_usize, 0..16_u8, any::<bool>()), 0..60)
}

const SERVICES: [&str; 4] = ["S3", "s3", "EC2", "Sql.EastUS"];
const REGIONS: [&str; 4] = ["us-east-1", "GLOBAL", "global", "EastUS"];

fn made(rows: &[(usize, usize, usize, u8, bool)]) -> Vec<Row<'static>> {
    let cidr = |n: u8, v6: bool| match v6 {
        true => net(&format!("2001:db8:{:x}::/{}", n & !3, 46 + n % 4)).trunc(),
        false => net(&format!("192.0.{}.0/{}", n & !3, 22 + n % 4)).trunc(),
    };
    rows.iter()
        .map(|&(service, region, border, n, v6)| Row {
            service: SERVICES[service],
            region: REGIONS[region],
            network_border_group: REGIONS[border],
            wider: "",
            cidr: cidr(n, v6),
        })
        .collect()
}

proptest! {
    #[test]
    fn order_and_repetition_make_no_difference(rows in rows(), seed in any::<u64>()) {
        let rows = made(&rows);
        let mut others: Vec<_> = rows.iter().chain(&rows).copied().enumerate().collect();
        others.sort_by_key(|(at, _)| (*at as u64 + 1).wrapping_mul(seed | 1));
        let others: Vec<Row<'_>> = others.into_iter().map(|(_, row)| row).collect();
        let of = |rows: &[Row<'_>]| {
            let mut builder = Builder::new();
            for row in rows {
                builder.push(*row).expect("it is good");
            }
            builder.finish(None)
        };
        let table = of(&rows);
        prop_assert!(table.rows().is_sorted_by(|a, b| a.in_order(b).is_lt()));
        prop_assert_eq!(table, of(&others));
    }

    #[test]
    fn selection_is_what_a_filter_of_all_rows_says(
        rows in rows(),
        services in prop::collection::vec(0..3_usize, 0..3),
        regions in prop::collection::vec(0..4_usize, 0..3),
    ) {
        let rows = made(&rows);
        let mut ranges = Ranges::default();
        ranges.set_provider("p", Arc::new(table(&rows)));
        let services: Vec<String> = services.iter().map(|at| SERVICES[*at].to_owned()).collect();
        let regions: Vec<String> = regions.iter().map(|at| REGIONS[*at].to_owned()).collect();
        let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
        let of_service = |row: &Row<'_>| services.is_empty() || services.iter().any(|name| same(name, row.service));
        let in_region = |row: &Row<'_>| {
            regions.is_empty()
                || regions.iter().any(|name| same(name, row.region) || same(name, row.network_border_group))
        };
        let wanted: Vec<IpNet> =
            rows.iter().filter(|row| of_service(row) && in_region(row)).map(|row| row.cidr).collect();
        match ranges.resolve(&Unresolved::Cloud { provider: "p".into(), services: services.clone(), regions: regions.clone() }) {
            Ok(found) => {
                let mut expected = IpNet::aggregate(&wanted);
                expected.sort();
                prop_assert_eq!(&*found.cidrs, expected);
                let left_out: std::collections::BTreeSet<_> = rows
                    .iter()
                    .filter(|row| of_service(row) && !in_region(row) && same(row.region, GLOBAL))
                    .map(|row| (row.service.to_lowercase(), row.network_border_group.to_lowercase(), row.cidr))
                    .collect();
                prop_assert_eq!(found.left_out_global, left_out.len());
            }
            Err(Missing::Service { service, .. }) => {
                prop_assert!(!rows.iter().any(|row| same(row.service, &service)), "{service} was there");
            }
            Err(Missing::Region { region, .. }) => {
                let is = |row: &Row<'_>| same(row.region, &region) || same(row.network_border_group, &region);
                prop_assert!(!rows.iter().any(is), "{region} was there");
            }
            Err(_) => prop_assert!(wanted.is_empty(), "{wanted:?} was there"),
        }
    }
}
