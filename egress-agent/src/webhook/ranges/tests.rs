//! What becomes of published ranges in the webhook's warnings.

use super::*;
use crate::{
    check::Subject,
    k8s::published::{CUSTOM_KEY, chunk_objects, head_name, head_object},
    policy::{
        cluster::NsName,
        governance::Profile,
        ranges::{Builder, Row},
    },
    ranges::publish::{self, Publication},
};

fn publication(revision: u64, cidrs: &[&str]) -> Publication {
    let mut builder = Builder::new();
    for cidr in cidrs {
        let row = Row {
            service: "S3",
            region: "us-east-1",
            network_border_group: "us-east-1",
            wider: "",
            cidr: cidr.parse().expect("a literal prefix"),
        };
        builder.push(row).expect("it can be published");
    }
    publish::encode("aws", &builder.finish(Some(revision)), 1).expect("it is small")
}

fn custom(name: &str, text: &str) -> ConfigMap {
    let mut object = head_object(&publication(1, &["52.94.0.0/24"]).head);
    object.metadata.name = Some(name.to_owned());
    object.metadata.labels = Some([(LABEL.to_owned(), CUSTOM.to_owned())].into());
    object.data = Some([(CUSTOM_KEY.to_owned(), text.to_owned())].into());
    object
}

/// Returns what a document is warned of that allows this service of AWS'.
fn warnings(rules: &Rules, service: &str) -> Vec<String> {
    let text = format!(
        r#"{{"defaultAction": "deny", "allowedDestinations": [{{"name": "a", "awsService": "{service}", "ports": [443]}}]}}"#
    );
    let id = NsName { namespace: "shop".into(), name: "checkout".into() };
    let judgement = rules.judge(&Subject { id: &id, text: &text, old: None, profile: Profile::Off }, 0);
    assert!(!judgement.refused(), "{judgement:?}");
    judgement.warnings().map(|finding| finding.message.clone()).collect()
}

fn apply_all(follower: &mut Follower, publication: &Publication) {
    chunk_objects(publication).for_each(|chunk| follower.take(Event::Apply(chunk)));
    follower.take(Event::Apply(head_object(&publication.head)));
}

#[test]
fn what_is_published_is_warned_of_and_forgotten_when_it_is_taken_back() {
    let rules = Arc::new(Rules::default());
    let mut follower = Follower::new(Arc::clone(&rules));
    assert_eq!(warnings(&rules, "S3"), [""; 0], "nobody has told of AWS");
    let wide = publication(7, &["52.0.0.0/14"]);
    apply_all(&mut follower, &wide);
    let said = warnings(&rules, "S3");
    assert!(said.iter().any(|text| text.starts_with("Wide: a opens ")), "{said:?}");
    let said = warnings(&rules, "DYNAMODB");
    assert!(said.iter().any(|text| text.starts_with("Nothing published: a ")), "{said:?}");

    apply_all(&mut follower, &publication(8, &["52.0.0.0/24"]));
    assert_eq!(warnings(&rules, "S3"), [""; 0], "the next revision is narrow");

    // Old chunks are cleaned up after the head that no longer names them.
    chunk_objects(&wide).for_each(|chunk| follower.take(Event::Delete(chunk)));
    assert!(rules.ranges.now().provider("aws").is_some());
    follower.take(Event::Delete(head_object(&publication(8, &["52.0.0.0/24"]).head)));
    assert!(rules.ranges.now().provider("aws").is_none());
}

#[test]
fn what_is_not_whole_or_cannot_be_read_leaves_what_was_known() {
    let rules = Arc::new(Rules::default());
    let mut follower = Follower::new(Arc::clone(&rules));
    let (first, second) = (publication(7, &["52.0.0.0/14"]), publication(8, &["52.0.0.0/24"]));
    apply_all(&mut follower, &first);
    let known = || rules.ranges.now().provider("aws").map(|table| table.revision().number());
    follower.take(Event::Apply(head_object(&second.head)));
    assert_eq!(known(), Some(7), "its chunk is missing");
    let mut broken = head_object(&second.head);
    broken.data = Some([(HEAD_KEY.to_owned(), "{".to_owned())].into());
    follower.take(Event::Apply(broken));
    assert_eq!(known(), Some(7));
    apply_all(&mut follower, &second);
    assert_eq!(known(), Some(8));
}

#[test]
fn a_new_list_replaces_what_was_known_and_only_when_it_ends() {
    let rules = Arc::new(Rules::default());
    let mut follower = Follower::new(Arc::clone(&rules));
    apply_all(&mut follower, &publication(7, &["52.0.0.0/14"]));
    follower.take(Event::Apply(custom("mine", r#"{"services": {"ledger": {"cidrs": ["10.1.0.0/24"]}}}"#)));
    let next = publication(8, &["52.0.0.0/24"]);
    follower.take(Event::Init);
    follower.take(Event::InitApply(head_object(&next.head)));
    chunk_objects(&next).for_each(|chunk| follower.take(Event::InitApply(chunk)));
    let known = || {
        let ranges = rules.ranges.now();
        let aws = ranges.provider("aws").map(|table| table.revision().number());
        (aws, ranges.custom().get("ledger").is_some())
    };
    assert_eq!(known(), (Some(7), true));
    follower.take(Event::InitDone);
    assert_eq!(known(), (Some(8), false), "what is not in the list is gone");
}

#[test]
fn an_object_with_another_label_belongs_to_another_provider() {
    let rules = Arc::new(Rules::default());
    let mut follower = Follower::new(Arc::clone(&rules));
    let mine = custom("mine", r#"{"services": {"ledger": {"cidrs": ["10.1.0.0/24"]}}}"#);
    follower.take(Event::Apply(mine.clone()));
    assert!(rules.ranges.now().custom().get("ledger").is_some());
    let mut other = mine;
    other.metadata.labels = Some([(LABEL.to_owned(), "google".to_owned())].into());
    follower.take(Event::Apply(other));
    assert!(rules.ranges.now().custom().get("ledger").is_none());
}

#[test]
fn files_of_ones_own_count_instead_and_providers_are_bounded() {
    let mut ranges = crate::policy::ranges::Ranges::default();
    let mut follower = Follower::new(Arc::new(Rules::default()));
    let own = publication(9, &["52.0.0.0/20"]);
    apply_all(&mut follower, &own);
    let table = follower.rules.ranges.now().provider("aws").cloned().expect("it was published");
    ranges.set_provider("aws", table);
    let rules = Arc::new(Rules { ranges: ranges.into(), ..Rules::default() });
    let mut follower = Follower::new(Arc::clone(&rules));
    apply_all(&mut follower, &publication(10, &["52.0.0.0/14"]));
    assert_eq!(rules.ranges.now().provider("aws").map(|table| table.revision().number()), Some(9));

    for number in 0..=MOST {
        let mut object = head_object(&own.head);
        object.metadata.labels = Some([(LABEL.to_owned(), format!("p{number}"))].into());
        object.metadata.name = Some(head_name(&format!("p{number}")));
        follower.take(Event::Apply(object));
    }
    assert_eq!(follower.known.len(), MOST);
}
