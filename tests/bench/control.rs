//! What a change of policy costs in this process: compiling it, and bringing the kernel to it.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use egress_agent::{
    kernel::loader::Capacities,
    policy::{cluster::Settings, compile},
};

use crate::{
    HEAP,
    measure::{Effort, Spread, thread_time},
    report::{Report, Table, number, range},
    room::{Qos, Room},
    scene::{self, Scene, Shape, cluster, destinations, policy},
};

const MIB: f64 = 1_048_576.0;

/// Everything about changes.
///
/// # Errors
///
/// When the kernel refuses.
pub fn run(room: &Room, effort: &Effort, report: &mut Report) -> Result<()> {
    compiling(effort, report)?;
    swapping(room, effort, report)
}

fn compiling(effort: &Effort, report: &mut Report) -> Result<()> {
    let mut rows = Vec::new();
    let mut reading = Vec::new();
    let cases = [(10, 1), (100, 1), (1000, 1), (10_000, 1), (100_000, 1), (10, 110), (10, 250), (100, 250)];
    for (rules, pods) in cases {
        // One policy for each pod, so that nothing is shared.
        let policies = (0..pods)
            .map(|number| {
                let mut all = destinations(Shape::V4, rules + number % 7);
                all.truncate(rules);
                policy(&format!("app-{number}"), &all, None)
            })
            .collect();
        let cluster = cluster(pods, policies);
        let (mut walls, mut times, mut peaks, mut kept) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            let live = HEAP.live();
            HEAP.restart();
            let (wall, time) = (Instant::now(), thread_time());
            let compiled = compile::compile_all(&cluster, &Settings::default(), cluster.pods.keys());
            times.push((thread_time().saturating_sub(time)).as_secs_f64() * 1e3);
            walls.push(wall.elapsed().as_secs_f64() * 1e3);
            peaks.push(HEAP.peak().saturating_sub(live) as f64 / MIB);
            kept.push(HEAP.live().saturating_sub(live) as f64 / MIB);
            ensure!(compiled.len() == pods, "every pod is compiled");
        }
        let time = Spread::of(&times);
        if rules >= 10_000 || pods >= 250 {
            reading.push(format!("{} ms for {rules} rules and {pods} pods", number(time.median)));
        }
        rows.push(vec![
            rules.to_string(),
            pods.to_string(),
            format!("{:.2}", time.median),
            format!("{:.2} to {:.2}", time.low, time.high),
            format!("{:.2}", Spread::of(&walls).median),
            format!("{:.2}", Spread::of(&peaks).median),
            format!("{:.2}", Spread::of(&kept).median),
        ]);
        eprintln!("  {}", rows[rows.len() - 1].join("  "));
    }
    report.table(Table {
        title: "Compiling",
        about: "From a cluster in memory to policy sets, one policy with that many rules for each pod and no two alike. Memory is the heap's.",
        reading: format!("Compiling takes {}.", reading.join(", ")),
        head: &["rules", "pods", "processor ms", "min to max", "wall ms", "peak MiB", "result MiB"],
        rows,
    });
    Ok(())
}

fn swapping(room: &Room, effort: &Effort, report: &mut Report) -> Result<()> {
    let pod = room.pod(Qos::Burstable, &scene::uid(0))?;
    let mut rows = Vec::new();
    let mut main = 0.0;
    for size in [10, 100, 1000, 10_000] {
        let mut scene = Scene::load(room, &pod, true, Capacities::default())?;
        let all = destinations(Shape::V4, size);
        let mut changed = all.clone();
        changed[size / 2].port ^= 1;
        let versions = [all, changed].map(|destinations| {
            scene::wanted(&cluster(1, vec![policy("app-0", &destinations, None)]), pod.id)
        });
        let (mut flips, mut wholes, mut times) = (Vec::new(), Vec::new(), Vec::new());
        // The first version finds empty maps, so it does not count.
        for round in 0..=effort.rounds {
            let (began, time) = (Instant::now(), thread_time());
            let mut flipped = None;
            let applied = scene.engine.apply(&versions[round % 2], &BTreeSet::new(), || {
                flipped = Some((began.elapsed(), thread_time().saturating_sub(time)));
            })?;
            let whole = began.elapsed();
            ensure!(applied.sets == 1 && applied.refused.is_empty(), "one set is written: {applied:?}");
            if round > 0 {
                let (flipped, spent) = flipped.context("the new version is in force")?;
                flips.push(flipped.as_secs_f64() * 1e3);
                times.push(spent.as_secs_f64() * 1e3);
                wholes.push(whole.as_secs_f64() * 1e3);
            }
        }
        let (flip, whole) = (Spread::of(&flips), Spread::of(&wholes));
        let goal = if size == 10_000 {
            main = flip.median;
            report.goal("swap of a 10 000-rule policy, until it is in force", 15.0, flip.median, "ms")
        } else {
            [String::new(), String::new()]
        };
        let [limit, verdict] = goal;
        rows.push(vec![
            size.to_string(),
            format!("{:.2}", flip.median),
            range(&flip),
            format!("{:.2}", Spread::of(&times).median),
            format!("{:.2}", whole.median),
            range(&whole),
            limit,
            verdict,
        ]);
        eprintln!("  {}", rows[rows.len() - 1].join("  "));
    }
    report.table(Table {
        title: "Swapping a policy",
        about: "`Engine::apply` of a version in which one port of one rule differs: the whole new set is written beside the old one, the pod is flipped \
                to it with one store, and after a grace period the old one is taken away.",
        reading: format!(
            "A version of 10 000 rules is in force after {} ms; packets meet the old version until then and the new one from then on.",
            number(main)
        ),
        head: &["rules", "in force, ms", "min to max", "of which processor", "old one gone, ms", "min to max", "goal", ""],
        rows,
    });
    Ok(())
}
