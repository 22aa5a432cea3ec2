//! What a packet costs.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use egress_agent::kernel::loader::Capacities;
use egress_common::{
    policy::{TCP, UDP},
    verdict::{Reason, Verdict},
};

use crate::{
    measure::{self, Cost, Effort, FLOOR, PROGRAM, Pinned, Subject, hot, short},
    report::{COST, Report, Table, number},
    room::{PodRoom, Qos, Room},
    scene::{self, METADATA, Scene, Shape, cluster, destinations, hits, misses, packet, policy},
};

const ALLOWED: (Verdict, Reason) = (Verdict::Allow, Reason::AllowedDestination);
const DEFAULT_DENY: (Verdict, Reason) = (Verdict::Deny, Reason::DefaultDeny);
const APP: &str = "app-0";

/// Measures `packets`, and makes sure that every run ended where it was meant to.
fn checked(
    scene: &Scene,
    packets: &[Vec<u8>],
    effort: &Effort,
    expected: Option<(Verdict, Reason)>,
) -> Result<Cost> {
    let passes = u32::from(expected.is_none_or(|(verdict, _)| verdict != Verdict::Deny));
    let count = || expected.map_or(Ok(0), |(verdict, reason)| scene.counted(verdict, reason));
    let before = count()?;
    let cost = hot(scene.engine.datapath(), packets, effort, passes)?;
    let runs = effort.rounds as u64 * (u64::from(effort.repeat) + 1000);
    let counted = count()? - before;
    ensure!(expected.is_none() || counted == runs, "{counted} of {runs} runs ended as {expected:?}");
    Ok(cost)
}

/// Everything about single packets.
///
/// # Errors
///
/// When the kernel refuses, or a program decides otherwise than it should.
pub fn run(room: &Room, effort: &Effort, report: &mut Report) -> Result<()> {
    let pod = room.pod(Qos::Burstable, &scene::uid(0))?;
    room.enter(&pod)?;
    let outcome = measured(room, &pod, effort, report);
    room.leave()?;
    outcome
}

fn measured(room: &Room, pod: &PodRoom, effort: &Effort, report: &mut Report) -> Result<()> {
    let _pinned = Pinned::new()?;
    established(room, pod, effort, report)?;
    denied(room, pod, effort, report)?;
    judged(room, pod, effort, report)?;
    new_flows(room, pod, effort, report)?;
    pods(room, pod, effort, report)
}

fn established(room: &Room, pod: &PodRoom, effort: &Effort, report: &mut Report) -> Result<()> {
    const YEAR_2100: u64 = 4_102_444_800;
    let mut scene = Scene::load(room, pod, true, Capacities::default())?;
    let v4 = destinations(Shape::V4, 10);
    let v6 = destinations(Shape::V6, 10);
    let mut rows = Vec::new();

    scene.put(&cluster(1, vec![policy(APP, &v4, None)]))?;
    let cost = checked(&scene, &hits(&v4, effort.rounds, TCP), effort, Some(ALLOWED))?;
    let main = cost.net.median;
    rows.push(report.cost_row("established flow, IPv4", &cost, Some(12.0)));

    scene.put(&cluster(1, vec![policy(APP, &v6, None)]))?;
    let cost = checked(&scene, &hits(&v6, effort.rounds, TCP), effort, Some(ALLOWED))?;
    rows.push(report.cost_row("established flow, IPv6", &cost, Some(12.0)));

    scene.put(&cluster(1, vec![policy(APP, &v4, Some(YEAR_2100))]))?;
    let cost = checked(&scene, &hits(&v4, effort.rounds, TCP), effort, Some(ALLOWED))?;
    rows.push(report.cost_row("established flow, IPv4, by a rule that will expire", &cost, None));

    scene.put(&cluster(1, Vec::new()))?;
    let packets = hits(&v4, effort.rounds, TCP);
    let cost = checked(&scene, &packets, effort, None)?;
    let ungoverned = cost.net.median;
    rows.push(report.cost_row("pod no policy selects", &cost, Some(15.0)));

    scene.clear()?;
    let cost = checked(&scene, &packets, effort, Some((Verdict::Deny, Reason::UnknownPod)))?;
    rows.push(report.cost_row("pod the maps do not know, strict, allowance of events used up", &cost, None));

    guaranteed(room, pod, effort, report, &mut rows)?;
    report.table(Table {
        title: "Packets of flows that are known, and of pods without a policy",
        about: "The verdict is kept in the socket and counted for the pod and for the rule. The policy has 10 rules, denies by default \
                and allows cluster DNS. Pods are burstable, two levels below kubepods, unless the row says otherwise.",
        reading: format!(
            "An established packet costs {} ns more than an empty program; one of a pod without a policy {} ns.",
            number(main),
            number(ungoverned)
        ),
        head: COST,
        rows,
    });
    Ok(())
}

/// A guaranteed pod stands one level higher: one hash lookup fails before its own is found.
fn guaranteed(
    room: &Room,
    burstable: &PodRoom,
    effort: &Effort,
    report: &mut Report,
    rows: &mut Vec<Vec<String>>,
) -> Result<()> {
    let pod = room.pod(Qos::Guaranteed, &scene::uid(1))?;
    room.enter(&pod)?;
    let v4 = destinations(Shape::V4, 10);
    let packets = hits(&v4, effort.rounds, TCP);
    for (keep, what) in [(true, "established flow"), (false, "packet judged by policy, 10 rules")] {
        let mut scene = Scene::load(room, &pod, keep, Capacities::default())?;
        scene.put(&cluster(1, vec![policy(APP, &v4, None)]))?;
        let cost = checked(&scene, &packets, effort, Some(ALLOWED))?;
        rows.push(report.cost_row(
            &format!("{what}, guaranteed pod (one level below kubepods)"),
            &cost,
            None,
        ));
        if keep {
            scene.put(&cluster(1, Vec::new()))?;
            let cost = checked(&scene, &packets, effort, None)?;
            rows.push(report.cost_row("guaranteed pod no policy selects", &cost, Some(15.0)));
        }
    }
    room.enter(burstable)
}

fn denied(room: &Room, pod: &PodRoom, effort: &Effort, report: &mut Report) -> Result<()> {
    let mut scene = Scene::load(room, pod, true, Capacities::default())?;
    let v4 = destinations(Shape::V4, 10);
    let v6 = destinations(Shape::V6, 10);
    let mut rows = Vec::new();
    scene.put(&cluster(1, vec![policy(APP, &v4, None)]))?;
    let default = misses(&v4, Shape::V4, effort.rounds);
    let cost = checked(&scene, &default, effort, Some(DEFAULT_DENY))?;
    let main = cost.net.median;
    rows.push(report.cost_row("denied by default, IPv4", &cost, Some(45.0)));

    let metadata = vec![packet(TCP, METADATA.into(), 80)];
    let cost = checked(&scene, &metadata, effort, Some((Verdict::Deny, Reason::DeniedDestination)))?;
    rows.push(report.cost_row("denied destination (a /32), IPv4", &cost, Some(45.0)));

    let datagrams = vec![packet(UDP, Ipv4Addr::new(198, 51, 100, 77).into(), 53)];
    let cost = checked(&scene, &datagrams, effort, Some(DEFAULT_DENY))?;
    rows.push(report.cost_row(
        "denied by default, a datagram (also asks whether it is an answer)",
        &cost,
        None,
    ));

    scene.put(&cluster(1, vec![policy(APP, &v6, None)]))?;
    let cost = checked(&scene, &misses(&v6, Shape::V6, effort.rounds), effort, Some(DEFAULT_DENY))?;
    rows.push(report.cost_row("denied by default, IPv6", &cost, Some(45.0)));

    // An allowance lasts for 20 events, so calls are that long, and it is given back before each.
    const ALLOWANCE: u32 = egress_common::event::EVENTS_PER_SECOND;
    let (engine, buckets, ring) = scene.parts();
    let datapath = engine.datapath();
    let subjects = [FLOOR, PROGRAM].map(|program| Subject { datapath, program, repeat: ALLOWANCE });
    let packets = misses(&v6, Shape::V6, 64);
    let rounds = short(&subjects, &packets, effort, 0, || Scene::permit_events(buckets, ring))?;
    let each =
        |index: usize| rounds.iter().map(|round| round[index] / f64::from(ALLOWANCE)).collect::<Vec<_>>();
    let cost = measure::cost(&each(0), &each(1));
    let told = cost.net.median;
    rows.push(report.cost_row("denied by default, IPv6, each with an event", &cost, None));
    report.table(Table {
        title: "Denied packets",
        about: "Counted for the pod by verdict and reason, and for the rule. Each pod may send 20 events a second; unless the row says \
                otherwise the allowance is used up, as it is for nearly every packet of a flood. The policy has 10 rules.",
        reading: format!(
            "A denied packet costs {} ns more than an empty program, and {} ns while events are sent.",
            number(main),
            number(told)
        ),
        head: COST,
        rows,
    });
    Ok(())
}

/// Rules, goal.
const SIZES: [(usize, Option<f64>); 5] =
    [(10, Some(60.0)), (100, None), (1000, Some(90.0)), (10_000, Some(130.0)), (100_000, Some(230.0))];

fn judged(room: &Room, pod: &PodRoom, effort: &Effort, report: &mut Report) -> Result<()> {
    let mut scene = Scene::load(room, pod, false, scene::large())?;
    let mut rows = Vec::new();
    let mut nets = Vec::new();
    for (shape, name) in
        [(Shape::V4, "IPv4"), (Shape::V6, "IPv6"), (Shape::V4Hosts, "IPv4, nine of ten a /32")]
    {
        for (size, limit) in SIZES {
            if shape == Shape::V4Hosts && size < 1000 {
                continue;
            }
            let destinations = destinations(shape, size);
            scene.put(&cluster(1, vec![policy(APP, &destinations, None)]))?;
            let cost = checked(&scene, &hits(&destinations, effort.rounds, TCP), effort, Some(ALLOWED))?;
            if shape == Shape::V4 {
                nets.push(format!("{} at {size}", number(cost.net.median)));
            }
            rows.push(report.cost_row(&format!("{size} rules, {name}, allowed"), &cost, limit));
            let cost =
                checked(&scene, &misses(&destinations, shape, effort.rounds), effort, Some(DEFAULT_DENY))?;
            rows.push(report.cost_row(&format!("{size} rules, {name}, no rule, denied"), &cost, limit));
        }
    }
    report.table(Table {
        title: "Packets judged by policy",
        about: "No verdict is kept (`KEEP_VERDICTS` off), so each packet is looked up. Each rule is one prefix with one TCP port, the prefixes \
                uniform over the unicast addresses, /16 to /32 (IPv4) or /32 to /64 (IPv6) alike. Each round uses another packet, many \
                times over, so what it touches is cached.",
        reading: format!("An allowed IPv4 packet costs {} rules (net ns).", nets.join(", ")),
        head: COST,
        rows,
    });
    Ok(())
}

fn new_flows(room: &Room, pod: &PodRoom, effort: &Effort, report: &mut Report) -> Result<()> {
    let mut rows = Vec::new();
    let mut reading = Vec::new();
    let mut kept = Scene::load(room, pod, true, scene::large())?;
    let mut plain = Scene::load(room, pod, false, scene::large())?;
    for (size, limit) in [(10, Some(200.0)), (1000, Some(230.0)), (10_000, Some(270.0)), (100_000, None)] {
        let destinations = destinations(Shape::V4, size);
        let cluster = cluster(1, vec![policy(APP, &destinations, None)]);
        kept.put(&cluster)?;
        plain.put(&cluster)?;
        let (kept, plain) = (kept.engine.datapath(), plain.engine.datapath());
        let subject = |datapath, program, repeat| Subject { datapath, program, repeat };
        // The first two meet the destination first and leave it cached for the others.
        let subjects = [
            subject(kept, FLOOR, 1),
            subject(plain, PROGRAM, 1),
            subject(kept, PROGRAM, 2),
            subject(kept, FLOOR, 1),
            subject(kept, PROGRAM, 1),
            subject(plain, PROGRAM, 1),
            subject(kept, FLOOR, 2),
            subject(kept, PROGRAM, 2),
            subject(plain, PROGRAM, 2),
        ];
        let rounds = short(&subjects, &hits(&destinations, 4096, TCP), effort, 1, || Ok(()))?;
        let column = |of: fn(&[f64]) -> f64| rounds.iter().map(|round| of(round)).collect::<Vec<_>>();
        let second_floor = column(|r| r[6] - r[3]);
        let storing = measure::cost(&second_floor, &column(|r| r[7] - r[4]));
        reading.push(format!("{} at {size}", number(storing.net.median)));
        rows.push(report.cost_row(
            &format!("{size} rules: the packet whose verdict is stored"),
            &storing,
            limit,
        ));
        let second = measure::cost(&second_floor, &column(|r| r[8] - r[5]));
        rows.push(report.cost_row(&format!("{size} rules: the same packet, nothing stored"), &second, None));
        let first = measure::cost(&column(|r| r[0]), &column(|r| r[1]));
        rows.push(report.cost_row(&format!("{size} rules: a first packet, nothing cached"), &first, None));
    }
    report.table(Table {
        title: "New flows, one socket each",
        about: "Every call of `BPF_PROG_TEST_RUN` makes a fresh socket, which is no stream, so its verdict is stored at its second packet. The cost of \
                that packet is the median of calls with two runs less the median of calls with one, destinations changing with every call; the \
                floor likewise. It holds lookup, creation of the storage and counting. Taking the storage away is not in it: the \
                kernel does that with the socket, after the program's work. The last row of each size is a first packet that meets caches \
                as a system call, another program and another destination have left them.",
        reading: format!("Judging and storing costs {} rules (net ns).", reading.join(", ")),
        head: COST,
        rows,
    });
    Ok(())
}

fn pods(room: &Room, pod: &PodRoom, effort: &Effort, report: &mut Report) -> Result<()> {
    let mut rows = Vec::new();
    let mut kept = Scene::load(room, pod, true, Capacities::default())?;
    let mut plain = Scene::load(room, pod, false, Capacities::default())?;
    let mut ends = Vec::new();
    for count in [1, 110, 250] {
        // Every pod has a policy of its own, so there are as many sets in the maps as pods.
        let policies: Vec<_> = (0..count)
            .map(|number| policy(&format!("app-{number}"), &destinations(Shape::V4, 10 + number % 7), None))
            .collect();
        let cluster = cluster(count, policies);
        kept.put(&cluster)?;
        plain.put(&cluster)?;
        let packets = hits(&destinations(Shape::V4, 10), effort.rounds, TCP);
        let cost = checked(&kept, &packets, effort, Some(ALLOWED))?;
        rows.push(report.cost_row(&format!("{count} pods known: established flow"), &cost, None));
        let cost = checked(&plain, &packets, effort, Some(ALLOWED))?;
        ends.push(format!("{} at {count}", number(cost.net.median)));
        rows.push(report.cost_row(
            &format!("{count} pods known: packet judged by policy, 10 rules"),
            &cost,
            None,
        ));
    }
    report.table(Table {
        title: "Pods known on the node",
        about: "Every pod has a policy of its own with 10 to 16 rules.",
        reading: format!(
            "A judged packet costs {} pods (net ns): finding the pod costs the same, but all sets share one trie of prefixes, which grows deeper.",
            ends.join(", ")
        ),
        head: COST,
        rows,
    });
    Ok(())
}
