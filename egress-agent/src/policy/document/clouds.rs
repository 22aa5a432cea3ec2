//! Destinations that a cloud provider's published ranges resolve.

use super::context::{Context, Slot, nearest, shown};
use crate::policy::model::Unresolved;

/// The services AWS publishes ranges of, sorted.
const AWS_SERVICES: [&str; 28] = [
    "AMAZON",
    "AMAZON_APPFLOW",
    "AMAZON_CONNECT",
    "API_GATEWAY",
    "AURORA_DSQL",
    "CHIME_MEETINGS",
    "CHIME_VOICECONNECTOR",
    "CLOUD9",
    "CLOUDFRONT",
    "CLOUDFRONT_ORIGIN_FACING",
    "CODEBUILD",
    "DYNAMODB",
    "EBS",
    "EC2",
    "EC2_INSTANCE_CONNECT",
    "EFS",
    "GLOBALACCELERATOR",
    "IOT_CORE",
    "IVS_LOW_LATENCY",
    "IVS_REALTIME",
    "KINESIS_VIDEO_STREAMS",
    "MEDIA_PACKAGE_V2",
    "ROUTE53",
    "ROUTE53_HEALTHCHECKS",
    "ROUTE53_HEALTHCHECKS_PUBLISHING",
    "ROUTE53_RESOLVER",
    "S3",
    "WORKSPACES_GATEWAYS",
];

/// Services of AWS, by the names in their host names, that AWS publishes no ranges of their own for; sorted.
const AWS_UNPUBLISHED: [&str; 33] = [
    "acm",
    "athena",
    "autoscaling",
    "bedrock",
    "cloudformation",
    "cloudtrail",
    "cloudwatch",
    "cognito",
    "ecr",
    "ecs",
    "eks",
    "elasticache",
    "elasticloadbalancing",
    "events",
    "eventbridge",
    "firehose",
    "glue",
    "iam",
    "kinesis",
    "kms",
    "lambda",
    "logs",
    "monitoring",
    "rds",
    "redshift",
    "sagemaker",
    "secretsmanager",
    "ses",
    "sns",
    "sqs",
    "ssm",
    "states",
    "sts",
];

/// Providers that publish their ranges, and the name for services that a platform team defines.
const PROVIDERS: [(&str, &str); 9] = [
    ("aws", "aws"),
    ("azure", "azure"),
    ("cloudflare", "cloudflare"),
    ("custom", "custom"),
    ("digitalocean", "digitalocean"),
    ("fastly", "fastly"),
    ("github", "github"),
    ("google", "google"),
    ("oracle", "oracle"),
];

/// Reads `awsService` and the `regions` beside it.
pub(super) fn aws(cx: &mut Context<'_>, slot: &Slot<'_>, regions: Option<&Slot<'_>>) -> Option<Unresolved> {
    let service = aws_service(cx, slot);
    let regions = regions_of(cx, regions, true);
    Some(Unresolved::AwsService { service: service?, regions: regions? })
}

/// Reads `cloud`.
pub(super) fn any(cx: &mut Context<'_>, slot: &Slot<'_>) -> Option<Unresolved> {
    let fields = cx.object(slot, &["provider", "service", "services", "regions"])?;
    let provider = match fields.get("provider") {
        Some(slot) => cx.word(&slot, "provider", &PROVIDERS),
        None => {
            let names: Vec<&str> = PROVIDERS.iter().map(|(name, _)| *name).collect();
            cx.error(slot, "Missing field: provider").hint = Some(format!("one of {}", names.join(", ")));
            None
        }
    };
    let is_aws = provider == Some("aws");
    let one = |cx: &mut Context<'_>, slot: &Slot<'_>| {
        if is_aws { aws_service(cx, slot) } else { tag(cx, slot, "service") }
    };
    let services = match (fields.get("service"), fields.get("services")) {
        (None, None) => Some(Vec::new()),
        (Some(slot), None) => one(cx, &slot).map(|service| vec![service]),
        (None, Some(slot)) => cx
            .filled_list(&slot, "leave services out to name all of them")
            .map(|items| items.iter().filter_map(|item| one(cx, item)).collect()),
        (Some(first), Some(second)) => {
            let at = ["service", "services"].iter().filter_map(|name| fields.key_at(name)).max();
            let path = if first.at() > second.at() { first.path } else { second.path };
            cx.error_at(at.unwrap_or(slot.at()), path, "Cannot specify both service and services");
            None
        }
    };
    let regions = regions_of(cx, fields.get("regions").as_ref(), is_aws);
    Some(Unresolved::Cloud { provider: provider?.to_owned(), services: services?, regions: regions? })
}

fn aws_service(cx: &mut Context<'_>, slot: &Slot<'_>) -> Option<String> {
    let text = cx.string(slot)?;
    let upper = text.to_ascii_uppercase();
    if AWS_SERVICES.contains(&upper.as_str()) {
        return Some(text.to_owned());
    }
    let hint = if AWS_UNPUBLISHED.contains(&text.to_ascii_lowercase().as_str()) {
        "AWS publishes no ranges of its own for it: use domain, or the cidr of a VPC endpoint".to_owned()
    } else if let Some(name) = nearest(&upper, AWS_SERVICES.into_iter()) {
        format!("did you mean {name}?")
    } else {
        "the names are those of AWS' published ranges, such as S3, DYNAMODB, EC2, API_GATEWAY".to_owned()
    };
    cx.error(slot, format!("Invalid service: {}", shown(text))).hint = Some(hint);
    None
}

fn regions_of(cx: &mut Context<'_>, slot: Option<&Slot<'_>>, aws: bool) -> Option<Vec<String>> {
    let Some(slot) = slot else { return Some(Vec::new()) };
    let items = cx.filled_list(slot, "leave regions out to name all of them")?;
    let mut regions = Vec::with_capacity(items.len());
    for item in &items {
        let read = if aws { aws_region(cx, item) } else { tag(cx, item, "region") };
        regions.extend(read);
    }
    // One that is wrong has been reported; a shorter list must not pass for the whole.
    (regions.len() == items.len()).then_some(regions)
}

fn aws_region(cx: &mut Context<'_>, slot: &Slot<'_>) -> Option<String> {
    let text = cx.string(slot)?;
    if is_aws_region(text) {
        return Some(text.to_owned());
    }
    let lower = text.to_ascii_lowercase();
    let zone = lower.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let hint = if lower == "global" {
        "did you mean GLOBAL?".to_owned()
    } else if is_aws_region(&lower) {
        format!("did you mean {lower}?")
    } else if is_aws_region(zone) {
        format!("that is a zone; did you mean {zone}?")
    } else {
        "a region is written like us-east-1; GLOBAL stands for addresses of no region".to_owned()
    };
    cx.error(slot, format!("Invalid region: {}", shown(text))).hint = Some(hint);
    None
}

/// Tells whether `text` has the shape of the name of a region, such as `us-gov-west-1`, or of a network border group in one, such as
/// `us-east-1-wl1-bos-wlz-1`.
fn is_aws_region(text: &str) -> bool {
    if text == "GLOBAL" {
        return true;
    }
    let parts: Vec<&str> = text.split('-').collect();
    let number = |part: &&str| (1..=2).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    let Some(end) = parts.iter().position(number) else { return false };
    let (region, group) = (&parts[..end], &parts[end + 1..]);
    let letters = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase());
    let [partition, place @ ..] = region else { return false };
    let word = |part: &&str| {
        (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    letters(partition)
        && (2..=4).contains(&partition.len())
        && !place.is_empty()
        && place.iter().all(letters)
        // A group has a place and a number at least.
        && group.len() != 1
        && group.len() <= 6
        && group.iter().all(word)
}

/// Reads a name whose grammar only its provider knows.
fn tag(cx: &mut Context<'_>, slot: &Slot<'_>, field: &str) -> Option<String> {
    let text = cx.string(slot)?;
    if (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
        return Some(text.to_owned());
    }
    cx.error(slot, format!("Invalid {field}: {}", shown(text))).hint =
        Some("1 to 128 ASCII characters without spaces".into());
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn lists_are_sorted() {
        assert!(AWS_SERVICES.is_sorted());
        assert!(PROVIDERS.is_sorted());
    }

    #[test]
    fn services_and_regions_are_those_of_the_published_file() {
        let Ok(directory) = std::env::var("EGRESS_DATA_DIR") else {
            println!("skipped: EGRESS_DATA_DIR does not say where aws/ip-ranges.json is");
            return;
        };
        let path = std::path::Path::new(&directory).join("aws/ip-ranges.json");
        let text = std::fs::read_to_string(&path).expect("the file can be read");
        let ranges: serde_json::Value = serde_json::from_str(&text).expect("the file is JSON");
        let rows =
            ["prefixes", "ipv6_prefixes"].map(|list| ranges[list].as_array().expect("a list of prefixes"));
        let column = |name: &str| -> BTreeSet<&str> {
            rows.iter().copied().flatten().map(|row| row[name].as_str().expect("every row has it")).collect()
        };
        assert_eq!(column("service").into_iter().collect::<Vec<_>>(), AWS_SERVICES);
        for region in column("region").union(&column("network_border_group")) {
            assert!(is_aws_region(region), "{region} has the shape of a region");
        }
        for service in AWS_UNPUBLISHED {
            assert!(!AWS_SERVICES.contains(&service.to_ascii_uppercase().as_str()), "{service} is published");
        }
    }

    #[test]
    fn shapes_of_regions() {
        for region in [
            "us-east-1",
            "us-gov-west-1",
            "eusc-de-east-1",
            "cn-northwest-1",
            "GLOBAL",
            "us-east-1-atl-1",
            "ap-southeast-1-sggov-sin-1a",
            "us-west-2-wl1-sfo-wlz-1",
        ] {
            assert!(is_aws_region(region), "{region}");
        }
        for other in [
            "",
            "-",
            "us",
            "us-1",
            "us-east",
            "us-east-",
            "us-east-1a",
            "US-EAST-1",
            "us--1",
            "global",
            "us-east-123",
            "us-east-1-2",
            "us-east-1-atl-",
            "us-east-1-ATL-1",
            "us-east-1-a-b-c-d-e-f-g",
        ] {
            assert!(!is_aws_region(other), "{other}");
        }
    }
}
