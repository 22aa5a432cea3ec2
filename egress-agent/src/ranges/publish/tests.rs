use proptest::prelude::*;

use super::*;
use crate::policy::ranges::{Found, Missing, Ranges};

fn row<'a>(service: &'a str, region: &'a str, border: &'a str, wider: &'a str, cidr: &str) -> Row<'a> {
    let cidr = cidr.parse().expect("a network");
    Row { service, region, network_border_group: border, wider, cidr }
}

fn table(rows: &[Row<'_>]) -> Table {
    let mut builder = Builder::new();
    for row in rows {
        builder.push(*row).expect("it is good");
    }
    builder.finish(Some(7))
}

fn published(table: &Table) -> Publication {
    encode("aws", table, 1_800_000_000).expect("it is small")
}

fn all(publication: &Publication) -> Vec<(&Chunk, &[u8])> {
    let chunks = publication.head.chunks.iter();
    chunks.map(|chunk| (chunk, publication.chunks[&chunk.sha256].as_slice())).collect()
}

fn cloud(services: &[&str], regions: &[&str]) -> Unresolved {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Unresolved::Cloud { provider: "AWS".into(), services: owned(services), regions: owned(regions) }
}

fn some_rows() -> Vec<Row<'static>> {
    vec![
        row("S3", "us-east-1", "us-east-1", "", "192.0.2.0/24"),
        row("S3", "us-east-1", "us-east-1-atl-1", "", "198.51.100.0/32"),
        row("S3", "us-east-1", "us-east-1", "", "2001:db8::/128"),
        row("EC2", "eu-west-1", "eu-west-1", "eu", "203.0.113.0/24"),
        row("EC2", "GLOBAL", "GLOBAL", "", "223.255.255.255/32"),
    ]
}

#[test]
fn a_head_says_what_is_where() {
    let mut builder = Builder::new();
    for row in some_rows() {
        builder.push(row).expect("it is good");
    }
    builder.push_domain("S3", "s3.example.com").expect("it is good");
    let publication = published(&builder.finish(Some(7)));
    let head = &publication.head;
    assert_eq!((head.format, head.revision, head.from_content), (1, 7, false));
    assert_eq!(head.services, ["EC2", "S3"]);
    let of = |chunk: &Chunk| (chunk.regions.join(" "), chunk.services.clone(), chunk.rows);
    assert_eq!(
        head.chunks.iter().map(of).collect::<Vec<_>>(),
        [
            ("GLOBAL".to_owned(), vec![0, 1], 2),
            ("eu eu-west-1".to_owned(), vec![0], 1),
            ("us-east-1 us-east-1-atl-1".to_owned(), vec![1], 3),
        ]
    );
    assert_eq!(Head::parse(head.text().as_bytes()), Ok(head.clone()));

    let wanted = |what: &Unresolved| -> Vec<String> {
        head.wanted(&[what]).iter().map(|chunk| chunk.regions[0].clone()).collect()
    };
    assert_eq!(wanted(&cloud(&["ec2"], &["EU"])), ["eu"]);
    assert_eq!(wanted(&cloud(&["s3"], &["us-east-1-atl-1", "eu-west-1"])), ["us-east-1"]);
    assert_eq!(wanted(&cloud(&["S3.global"], &[])), ["GLOBAL", "us-east-1"]);
    assert_eq!(wanted(&cloud(&[], &[])).len(), 3);
    assert_eq!(wanted(&cloud(&["SQS"], &[])), [""; 0]);
    assert_eq!(wanted(&Unresolved::AwsService { service: "EC2".into(), regions: vec![] }), ["GLOBAL", "eu"]);
    let other = Unresolved::Cloud { provider: "azure".into(), services: vec![], regions: vec![] };
    assert_eq!(wanted(&other), [""; 0]);
    assert_eq!(head.wanted(&[&other, &cloud(&[], &[]), &cloud(&[], &[])]).len(), 3, "each once");
}

#[test]
fn what_nodes_would_refuse_is_not_published() {
    let names: Vec<String> = (0..MAX_CHUNKS + 1).map(|n| format!("region-{n}")).collect();
    let rows = |names: &[String]| {
        let rows: Vec<Row<'_>> = names.iter().map(|name| row("S3", name, "", "", "192.0.2.0/24")).collect();
        encode("aws", &table(&rows), 0)
    };
    assert!(rows(&names[..MAX_CHUNKS]).is_ok());
    let error = rows(&names).expect_err("there are too many regions").to_string();
    assert_eq!(error, "with region region-999 there are more than 1024 chunks of 524288 bytes");
    let long: Vec<String> = (0..6000).map(|n| format!("{n:0>100}")).collect();
    let rows: Vec<Row<'_>> = long.iter().map(|name| row(name, "eu", "", "", "192.0.2.0/24")).collect();
    assert_eq!(encode("aws", &table(&rows), 0), Err(TooLarge::Whole));
}

#[test]
fn one_prefix_changes_one_chunk() {
    let before = published(&table(&some_rows()));
    let mut rows = some_rows();
    rows.push(row("NEW", "us-east-1", "us-east-1", "", "192.0.3.0/24"));
    let after = published(&table(&rows));
    let new: Vec<_> = after.chunks.keys().filter(|name| !before.chunks.contains_key(name)).collect();
    assert_eq!((new.len(), after.chunks.len()), (1, before.chunks.len()));
}

#[test]
fn a_region_that_is_too_large_is_cut_and_one_prefix_still_changes_one_chunk() {
    let mut rows: Vec<String> = Vec::new();
    // Far from each other, so that each takes many bytes.
    for n in 0..80_000_u128 {
        let bits = (0x2000 << 112)
            + (n << 96)
            + n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835) % (1 << 96);
        rows.push(format!("{}/128", std::net::Ipv6Addr::from(bits)));
    }
    let made = |rows: &[String]| {
        let rows: Vec<Row<'_>> = rows.iter().map(|cidr| row("S3", "us-east-1", "", "", cidr)).collect();
        table(&rows)
    };
    let whole = made(&rows);
    let before = published(&whole);
    assert!(before.chunks.len() >= 3, "{} chunks", before.chunks.len());
    assert!(before.chunks.values().all(|bytes| bytes.len() <= MAX_CHUNK));
    assert_eq!(decode(&before.head, &all(&before)).expect("it is good"), whole);
    rows.pop();
    let after = published(&made(&rows));
    assert_eq!(after.chunks.keys().filter(|name| !before.chunks.contains_key(name)).count(), 1);
}

#[test]
fn what_is_no_publication_is_refused() {
    let publication = published(&table(&some_rows()));
    let text = publication.head.text();
    let refused = |text: &str| Head::parse(text.as_bytes()).expect_err("it is no good").to_string();
    assert_eq!(
        refused(&text.replace("\"format\":1", "\"format\":2")),
        "the format is 2, and this program reads 1"
    );
    assert!(refused("{}").contains("missing field `format`"));
    assert!(refused(&text.replace("\"created\"", "\"made\"")).contains("unknown field `made`"));
    assert!(
        refused(&text.replace("\"services\":[0]", "\"services\":[9]"))
            .contains("a service that is not listed")
    );
    assert!(
        refused(&text.replacen("\"sha256\":\"", "\"sha256\":\"F", 1)).contains("no SHA-256 in lower case")
    );
    assert!(refused(&" ".repeat(MAX_HEAD + 1)).contains("more than 524288 bytes"));
    let mut many = publication.head.clone();
    many.chunks = vec![many.chunks[0].clone(); MAX_CHUNKS + 1];
    assert!(refused(&many.text()).contains("more than 1024 chunks"));
    many.chunks.truncate(65);
    many.chunks.iter_mut().for_each(|chunk| chunk.bytes = 512 * 1024);
    assert!(refused(&many.text()).contains("its chunks have more than 33554432 bytes together"));
    many.chunks.truncate(1);
    many.chunks[0].bytes = 512 * 1024 + 1;
    assert!(refused(&many.text()).contains("a chunk has more than 524288 bytes"));

    let chunks = all(&publication);
    let mut other = chunks[0].1.to_vec();
    other[5] ^= 1;
    let error = decode(&publication.head, &[(chunks[0].0, &other)]).expect_err("a bit is wrong");
    assert_eq!(error, Unreadable::Hash(chunks[0].0.sha256));
    let error = decode(&publication.head, &[(chunks[0].0, chunks[1].1)]).expect_err("it is another");
    assert_eq!(error, Unreadable::Hash(chunks[0].0.sha256));
}

fn reading(bytes: &[u8]) -> Result<Table, String> {
    let mut builder = Builder::new();
    read(bytes, Sha256([0; 32]), &mut builder).map_err(|error| error.to_string())?;
    Ok(builder.finish(None))
}

#[test]
fn what_is_no_chunk_is_refused_with_its_place() {
    let refused = |bytes: &[u8], expected: &str| {
        let error = reading(bytes).expect_err("it is no good");
        assert!(error.ends_with(expected), "{error}");
    };
    // One name "a", one group of it, one prefix 192.0.2.0/24, no domain.
    let good = b"EGR1\x01\x01a\x01\x00\x00\x00\x00\x01\x00\x18\x82\x80\x80\x06\x00";
    assert_eq!(reading(good).expect("it is good").count().rows(), 1);
    refused(b"", "byte 0: it ends too early");
    refused(b"EGR2\x00\x00\x00", "byte 4: it does not begin as a chunk does");
    refused(b"EGR1\xff\xff\xff\xff\x0f", "byte 9: a count that is too large");
    refused(b"EGR1\x80\x00", "byte 6: a number that could be shorter");
    refused(&[b"EGR1".as_slice(), &[0xff; 30]].concat(), "a number that is too large");
    refused(b"EGR1\x01\x01\xff", "byte 7: a name that is not UTF-8");
    refused(&good[..good.len() - 1], "byte 19: it ends too early");
    refused(&[good.as_slice(), b"\x00"].concat(), "byte 20: there is something behind its end");
    let with = |at: usize, byte: u8| {
        let mut bytes = good.to_vec();
        bytes[at] = byte;
        bytes
    };
    refused(&with(8, 1), "a name that is not there");
    refused(&with(14, 33), "byte 15: a prefix that is too long");
    refused(&with(14, 7), "an address beyond the last");
    refused(&with(15, 2), "a prefix that no provider has");
    refused(&vec![0; MAX_CHUNK + 1], "byte 0: it is larger than a chunk may be");
}

fn any_row() -> impl Strategy<Value = (usize, usize, usize, usize, u32, u8, bool)> {
    (0..3_usize, 0..3_usize, 0..4_usize, 0..3_usize, any::<u32>(), any::<u8>(), any::<bool>())
}

fn made(rows: &[(usize, usize, usize, usize, u32, u8, bool)], domains: usize) -> Table {
    let mut builder = Builder::new();
    for (service, region, border, wider, bits, length, v6) in rows {
        let cidr = match v6 {
            false => {
                IpNet::V4(Ipv4Net::new_assert(((bits % (223 << 24)) | (1 << 24)).into(), 8 + length % 25))
            }
            true => {
                let bits = u128::from(*bits) << 90 | 0x2000 << 112 | u128::from(*bits);
                IpNet::V6(Ipv6Net::new_assert(bits.into(), 16 + length % 113))
            }
        };
        let row = Row {
            service: ["S3", "EC2", "Sql.x"][*service],
            region: ["us-east-1", "GLOBAL", "eu-west-1"][*region],
            network_border_group: ["", "us-east-1", "zone", "eu-west-1"][*border],
            wider: ["", "US", "zone"][*wider],
            cidr,
        };
        match builder.push(row) {
            Ok(()) | Err(BuildError::Prefix) => {}
            Err(error) => panic!("{error}"),
        }
    }
    for n in 0..domains {
        builder.push_domain(["S3", "website"][n % 2], &format!("d{n}.example.com")).expect("it is good");
    }
    builder.finish(None)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_read_is_what_was_written(rows in prop::collection::vec(any_row(), 0..80), domains in 0..4_usize) {
        let table = made(&rows, domains);
        let publication = published(&table);
        let head = Head::parse(publication.head.text().as_bytes()).expect("it is good");
        prop_assert_eq!(&head, &publication.head);
        prop_assert_eq!(&decode(&head, &all(&publication)).expect("it is good"), &table);
        prop_assert_eq!(published(&table), publication);
    }

    #[test]
    fn the_wanted_chunks_answer_as_the_whole(
        rows in prop::collection::vec(any_row(), 1..60),
        services in prop::collection::vec(prop::sample::select(vec!["s3", "EC2", "Sql.x", "S3.zone", "website"]), 0..3),
        regions in prop::collection::vec(prop::sample::select(vec!["US-east-1", "global", "zone", "US"]), 0..3),
    ) {
        let table = made(&rows, 3);
        let publication = published(&table);
        let what = cloud(&services, &regions);
        let wanted = publication.head.wanted(&[&what]);
        let chunks: Vec<_> =
            wanted.into_iter().map(|chunk| (chunk, publication.chunks[&chunk.sha256].as_slice())).collect();
        let part = decode(&publication.head, &chunks).expect("it is good");
        let ask = |table: Table| {
            let mut ranges = Ranges::default();
            ranges.set_provider("aws", table.into());
            ranges.resolve(&what)
        };
        let leave = |result: Result<Found, Missing>| {
            result.map(|found| Found { left_out_global: 0, ..found }).map_err(|missing| missing.to_string())
        };
        prop_assert_eq!(leave(ask(part)), leave(ask(table)));
    }

    #[test]
    fn any_bytes_give_an_error_or_a_table(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        magic in any::<bool>(),
    ) {
        let bytes = if magic { [MAGIC.as_slice(), &bytes].concat() } else { bytes };
        let _table = reading(&bytes);
        let _head = Head::parse(&bytes);
    }

    #[test]
    fn changed_bytes_give_an_error_or_a_table(
        rows in prop::collection::vec(any_row(), 1..20),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let publication = published(&made(&rows, 2));
        for bytes in publication.chunks.values() {
            let mut bytes = bytes.clone();
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            if let Ok(table) = reading(&bytes) {
                prop_assert!(table.count().rows() <= bytes.len());
            }
            bytes.truncate(cut.index(bytes.len()));
            prop_assert!(reading(&bytes).is_err(), "nothing that is cut off is whole");
        }
    }
}

#[test]
fn real_sizes() {
    let Ok(folder) = std::env::var("EGRESS_DATA_DIR") else {
        println!("skipped: EGRESS_DATA_DIR does not say where the providers' files are");
        return;
    };
    let parse = |name: &str, file: &str| {
        let path = std::path::Path::new(&folder).join(file);
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
        let provider = crate::ranges::providers::provider(name).expect("it is a provider");
        provider.parse(&[&bytes]).unwrap_or_else(|error| panic!("{file}: {error}"))
    };
    let sizes = |table: &Table| {
        let publication = encode("p", table, 0).expect("it fits");
        assert_eq!(&decode(&publication.head, &all(&publication)).expect("it is good"), table);
        let bytes: Vec<usize> = publication.chunks.values().map(Vec::len).collect();
        let total: usize = bytes.iter().sum();
        println!(
            "{} chunks of {total} bytes, the largest of {:?}; the head of {}",
            bytes.len(),
            bytes.iter().max(),
            publication.head.text().len()
        );
        (publication, total)
    };
    let current = parse("aws", "aws/ip-ranges.json");
    let (current, total) = sizes(&current);
    assert!(total < 150_000, "{total} bytes");
    let (previous, _) = sizes(&parse("aws", "aws/ip-ranges.previous.json"));
    let new = current.chunks.keys().filter(|name| !previous.chunks.contains_key(name)).count();
    assert_eq!(new, 1, "1.178.86.0/24 is in one region");
    let (_, total) = sizes(&parse("azure", "azure/ServiceTags_Public.json"));
    assert!(total < 800_000, "{total} bytes");
}
