use std::collections::VecDeque;

use super::*;

const START: u64 = 1_800_000_000;
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

fn names() -> Vec<String> {
    ["egress-webhook.egress-webhook.svc", "127.0.0.1", "::1"].map(str::to_owned).to_vec()
}

fn first(lifetimes: &Lifetimes) -> Stored {
    match next(None, &names(), lifetimes, None, START).expect("certificates can be made") {
        Step::Write { stored, .. } => stored,
        Step::Wait(_) => panic!("there is nothing to wait for"),
    }
}

fn written(step: Step) -> Stored {
    match step {
        Step::Write { stored, .. } => stored,
        Step::Wait(until) => panic!("it waits until {until}"),
    }
}

fn ask(stored: &Stored, published: Option<u64>, now: u64) -> Step {
    next(Some(stored), &names(), &Lifetimes::default(), published, now).expect("certificates can be made")
}

/// Returns whether a client that trusts these CAs takes this leaf at second `now`, as rustls judges it.
fn is_trusted(bundle: &str, leaf: &str, now: u64) -> bool {
    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
        pki_types::{ServerName, UnixTime},
    };
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(ca.expect("the bundle is PEM")).expect("a CA can be trusted");
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider)
        .build()
        .expect("there is a CA to trust");
    let leaf = CertificateDer::from_pem_slice(leaf.as_bytes()).expect("the leaf is PEM");
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
    ["egress-webhook.egress-webhook.svc", "127.0.0.1", "::1"].iter().all(|name| {
        let name = ServerName::try_from(*name).expect("a name or an address");
        verifier.verify_server_cert(&leaf, &[], &name, &[], time).is_ok()
    })
}

#[test]
fn the_first_certificates_are_trusted_for_every_name_and_for_as_long_as_they_say() {
    let stored = first(&Lifetimes::default());
    assert!(is_trusted(&stored.bundle, &stored.leaf, START));
    assert!(is_trusted(&stored.bundle, &stored.leaf, START - BACKDATE + 1), "clocks may be behind");
    assert!(is_trusted(&stored.bundle, &stored.leaf, START + 90 * DAY - 1));
    assert!(!is_trusted(&stored.bundle, &stored.leaf, START + 90 * DAY + 1));
    assert!(
        !is_trusted(&first(&Lifetimes::default()).bundle, &stored.leaf, START),
        "another CA is another one"
    );
    let shown = format!("{stored:?}");
    assert!(!shown.contains("PRIVATE"), "keys are in no log: {shown}");
    let served = super::super::served::Served::default();
    let load = |stored: &Stored, key: &str| served.load(stored.leaf.as_bytes(), key.as_bytes());
    assert!(load(&stored, &stored.leaf_key).expect("they fit"));
    assert!(!load(&stored, &stored.leaf_key).expect("they fit"), "the same again is no change");
    assert_eq!(served.expires(), Some(START + 90 * DAY));
    load(&stored, &stored.ca_key).expect_err("the key of another certificate does not fit");
    assert_eq!(served.reloads(), (1, 1));
}

#[test]
fn what_a_machine_made_whose_clock_was_ahead_is_replaced() {
    let stored = first(&Lifetimes::default());
    // An hour is what clocks may differ by; until then the API server refuses it, and then takes it.
    assert_eq!(ask(&stored, Some(START), START - HOUR + 1), Step::Wait(START + 60 * DAY));
    let now = START - 30 * DAY;
    assert!(!is_trusted(&stored.bundle, &stored.leaf, now));
    let next = written(ask(&stored, Some(now), now));
    assert!(is_trusted(&next.bundle, &next.leaf, now));
    assert_eq!(blocks(&next.bundle).len(), 1, "what is not trusted yet is not kept");
    // One that was good before the clock jumped is trusted, and stays what is shown.
    let early = match super::next(None, &names(), &Lifetimes::default(), None, now) {
        Ok(Step::Write { stored, .. }) => stored,
        other => panic!("{other:?}"),
    };
    let jumped = with_new_ca(&early, vec![early.bundle.clone()], &Lifetimes::default(), START)
        .expect("it can be made");
    let next = written(ask(&jumped, Some(now), now));
    assert_eq!(next.leaf, early.leaf);
    assert!(is_trusted(&next.bundle, &next.leaf, now) && blocks(&next.bundle).len() == 2);
}

#[test]
fn nothing_is_done_before_two_thirds_of_a_life() {
    let stored = first(&Lifetimes::default());
    let due = START + 60 * DAY;
    assert_eq!(ask(&stored, Some(START), START), Step::Wait(due));
    assert_eq!(ask(&stored, Some(START), due - 1), Step::Wait(due));
    let renewed = written(ask(&stored, Some(START), due));
    assert_eq!((&renewed.bundle, &renewed.ca_key), (&stored.bundle, &stored.ca_key), "the CA stays");
    assert_ne!(renewed.leaf, stored.leaf);
    assert!(is_trusted(&stored.bundle, &renewed.leaf, due));
}

#[test]
fn a_new_ca_signs_only_once_it_is_known_and_the_old_one_goes_last() {
    let lifetimes = Lifetimes::default();
    let old = first(&lifetimes);
    // At two thirds of a year the CA is due, and the leaf of then is younger.
    let now = START + lifetimes.ca / 3 * 2;
    let with_leaf = {
        let known = read(&old, &names(), START);
        let (ca, key) = known.ca.expect("the key is there");
        with_new_leaf(&old, &known.cas[0], &key, &ca, &names(), &lifetimes, now - DAY)
            .expect("it can be made")
    };
    let both = written(ask(&with_leaf, Some(START), now));
    assert_eq!(both.leaf, with_leaf.leaf, "the leaf is still that of the CA that is trusted");
    assert!(both.bundle.ends_with(old.bundle.trim_start()), "the old CA is still trusted");
    assert!(is_trusted(&both.bundle, &both.leaf, now));
    assert!(trusts_newest(both.bundle.as_bytes(), &both) && !trusts_newest(old.bundle.as_bytes(), &both));

    // As long as the API server is not known to trust it, it signs nothing.
    let later = now + 5 * DAY;
    assert!(matches!(ask(&both, None, later), Step::Wait(_)));
    // And then not at once.
    assert_eq!(ask(&both, Some(later), later), Step::Wait(later + lifetimes.settle));
    let later = later + lifetimes.settle;
    let signed = written(ask(&both, Some(later - lifetimes.settle), later));
    assert_ne!(signed.leaf, both.leaf);
    assert_eq!(signed.bundle, both.bundle, "replicas may still show the old leaf");
    assert!(!is_trusted(&old.bundle, &signed.leaf, later));
    assert_eq!(ask(&signed, Some(later), later), Step::Wait(later + lifetimes.settle));
    let later = later + lifetimes.settle;
    let alone = written(ask(&signed, Some(now), later));
    assert_eq!(blocks(&alone.bundle).len(), 1);
    assert!(is_trusted(&alone.bundle, &signed.leaf, later));
    assert!(matches!(ask(&alone, Some(now), later), Step::Wait(_)));
}

#[test]
fn what_cannot_be_used_is_made_anew() {
    let good = first(&Lifetimes::default());
    let other = first(&Lifetimes::default());
    let broken = |change: fn(&mut Stored, &Stored)| {
        let mut stored = good.clone();
        change(&mut stored, &other);
        written(ask(&stored, Some(START), START))
    };
    for (what, made) in [
        ("no CA", broken(|stored, _| stored.bundle = String::new())),
        ("another CA", broken(|stored, other| stored.bundle = other.bundle.clone())),
        ("no leaf", broken(|stored, _| stored.leaf = "-----BEGIN CERTIFICATE-----".to_owned())),
        ("another leaf", broken(|stored, other| stored.leaf = other.leaf.clone())),
        ("another key", broken(|stored, other| stored.leaf_key = other.leaf_key.clone())),
        ("no key", broken(|stored, _| stored.leaf_key = String::new())),
        ("another key of the CA", broken(|stored, other| stored.ca_key = other.ca_key.clone())),
        (
            "nothing",
            broken(|stored, _| {
                *stored = Stored {
                    bundle: String::new(),
                    ca_key: String::new(),
                    leaf: String::new(),
                    leaf_key: String::new(),
                }
            }),
        ),
    ] {
        assert!(is_trusted(&made.bundle, &made.leaf, START), "{what}");
        assert_ne!(made, good, "{what}");
    }
    // The leaf may stay while only the key of its CA is lost: the API server trusts nothing else yet.
    let kept = broken(|stored, _| stored.ca_key = String::new());
    assert_eq!((kept.leaf, blocks(&kept.bundle).len()), (good.leaf.clone(), 2));
    // A new name cannot wait.
    let more = [names(), vec!["webhook.example.com".to_owned()]].concat();
    let step = next(Some(&good), &more, &Lifetimes::default(), Some(START), START).expect("it can be made");
    let renamed = written(step);
    assert_ne!(renamed.leaf, good.leaf);
    assert_eq!(renamed.bundle, good.bundle);
    // Long after, everything has ended.
    let late = START + 1000 * DAY;
    let anew = written(ask(&good, Some(START), late));
    assert!(is_trusted(&anew.bundle, &anew.leaf, late));
    assert_eq!(blocks(&anew.bundle).len(), 1);
}

#[test]
fn a_secret_that_is_taken_away_comes_back_with_a_new_ca_and_the_leaf_that_is_trusted() {
    let lost = first(&Lifetimes::default());
    let now = START + HOUR;
    let back = replace(&lost, &names(), &Lifetimes::default(), now).expect("it can be made");
    assert_eq!(back.leaf, lost.leaf);
    assert_ne!(back.ca_key, lost.ca_key);
    assert_eq!(blocks(&back.bundle).len(), 2);
    assert!(is_trusted(&lost.bundle, &back.leaf, now), "who trusts the CA of before still can");
}

#[test]
fn a_bundle_does_not_grow_without_end() {
    let mut stored = first(&Lifetimes::default());
    for n in 0..10 {
        stored = replace(&stored, &names(), &Lifetimes::default(), START + n).expect("it can be made");
    }
    assert!(blocks(&stored.bundle).len() <= 4);
}

/// Five years of a Secret, an API server and replicas that hear of changes late: at no time is something shown that is not trusted.
#[test]
fn years_pass_without_a_certificate_that_is_not_trusted() {
    let lifetimes = Lifetimes { ca: 365 * DAY, leaf: 90 * DAY, settle: 2 * HOUR };
    let lag = lifetimes.settle - 600;
    let mut stored = first(&lifetimes);
    let mut published = START;
    let mut bundles = VecDeque::from([(START, stored.bundle.clone())]);
    let mut leafs = VecDeque::from([(START, stored.leaf.clone())]);
    let (mut writes, mut cas) = (0, 0);
    let mut now = START;
    while now < START + 5 * 365 * DAY {
        match next(Some(&stored), &names(), &lifetimes, Some(published), now).expect("it can be made") {
            Step::Wait(until) => {
                assert!(until > now, "it never asks for the past");
                // No further than the next thing that is seen by the slowest.
                now = until.min(now + 10 * DAY);
            }
            Step::Write { stored: new, .. } => {
                writes += 1;
                if !trusts_newest(stored.bundle.as_bytes(), &new) {
                    cas += 1;
                    published = now;
                }
                bundles.push_back((now, new.bundle.clone()));
                leafs.push_back((now, new.leaf.clone()));
                stored = new;
            }
        }
        // Whatever was current within the lag may still be in use, in every combination.
        for seen in [&mut bundles, &mut leafs] {
            while seen.len() > 1 && seen[1].0 + lag <= now {
                seen.pop_front();
            }
        }
        for (_, bundle) in &bundles {
            for (_, leaf) in &leafs {
                assert!(is_trusted(bundle, leaf, now), "after {} days", (now - START) / DAY);
            }
        }
    }
    assert!(cas >= 6, "a CA each eight months: {cas}");
    assert!((cas * 3..200).contains(&writes), "{writes} writes");
}
