//! What the kernel's side weighs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context, Result};
use aya::maps::loaded_maps;
use egress_agent::kernel::loader::{Capacities, Datapath, Options};
use egress_agent::kernel::object;

use crate::{
    measure::{Effort, Spread},
    report::{Report, Table, number, range},
    room::{MemoryGroup, Qos, Room},
    scene::{self, Scene, Shape, cluster, destinations, policy},
};

const MIB: f64 = 1_048_576.0;

/// Bytes each map of this process says it takes, by name.
fn said() -> Result<BTreeMap<String, u64>> {
    let mut names = BTreeMap::new();
    for info in loaded_maps() {
        let info = info.context("cannot list maps")?;
        names.insert(info.id(), info.name_as_str().unwrap_or("?").to_owned());
    }
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fdinfo").context("cannot list descriptors")? {
        let path = entry?.path();
        // The descriptor of this very listing is gone by the time it is read.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) else { continue };
        let id: u32 = id.parse().context("map_id is a number")?;
        let name = names.get(&id).cloned().unwrap_or_else(|| format!("map {id}"));
        maps.insert(name, bytes.parse().context("memlock is a number")?);
    }
    Ok(maps)
}

/// Kilobytes the whole machine uses for what maps are made of.
fn meminfo() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let mut sum = 0.0;
    for line in text.lines() {
        if ["Slab:", "Percpu:", "VmallocUsed:"].iter().any(|name| line.starts_with(name)) {
            let value = line.split_whitespace().nth(1).context("a line of /proc/meminfo has a value")?;
            sum += value.parse::<f64>().context("it is a number")?;
        }
    }
    Ok(sum)
}

/// Everything about kernel memory.
///
/// # Errors
///
/// When the kernel refuses.
pub fn run(room: &Room, effort: &Effort, report: &mut Report) -> Result<()> {
    let group = MemoryGroup::enter()?;
    defaults(room, group.as_ref(), effort, report)?;
    prefixes(room, group.as_ref(), report)
}

fn defaults(room: &Room, group: Option<&MemoryGroup>, effort: &Effort, report: &mut Report) -> Result<()> {
    let object = object::embedded().context("built without the BPF object: run `cargo xtask bench`")?;
    let options = Options {
        level: room.kubepods.level,
        pins: None,
        capacities: Capacities::default(),
        keep_verdicts: true,
    };
    let (mut charged, mut machine) = (Vec::new(), Vec::new());
    let mut maps = BTreeMap::new();
    let loads = if effort.quick { 3 } else { 7 };
    for load in 0..=loads {
        let before = (group.map(MemoryGroup::kernel_bytes).transpose()?, meminfo()?);
        let datapath = Datapath::load(object, &options)?;
        let after = (group.map(MemoryGroup::kernel_bytes).transpose()?, meminfo()?);
        // The first load also fills caches that stay.
        if load > 0 {
            if let (Some(before), Some(after)) = (before.0, after.0) {
                charged.push((after as f64 - before as f64) / MIB);
            }
            machine.push((after.1 - before.1) / 1024.0);
        }
        maps = said()?;
        drop(datapath);
        // Maps are freed after a grace period, in the background.
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    let said: u64 = maps.values().sum();
    let said = said as f64 / MIB;
    let machine = Spread::of(&machine);
    let mut rows = vec![
        vec!["what the maps say of themselves (`memlock` in fdinfo)".to_owned(), number(said), String::new()],
        vec![
            "growth of Slab, Percpu and VmallocUsed in /proc/meminfo (whole machine)".to_owned(),
            number(machine.median),
            range(&machine),
        ],
    ];
    let measured = if let Some(group) = group {
        let charged = Spread::of(&charged);
        rows.push(vec![
            format!("charged to the process: {}", group.source()),
            number(charged.median),
            range(&charged),
        ]);
        charged.median
    } else {
        report.skip("memory charged by the kernel", "there is no memory controller to use");
        machine.median
    };
    let limit = report.goal("kernel memory, default maps, programs included", 12.0, measured, "MiB");
    rows.push(vec!["goal".to_owned(), format!("{} {}", limit[0], limit[1]), String::new()]);
    let mut largest: Vec<(&String, &u64)> = maps.iter().collect();
    largest.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
    for (name, bytes) in largest.iter().take(8) {
        rows.push(vec![format!("of which {name}, as it says"), number(**bytes as f64 / MIB), String::new()]);
    }
    report.table(Table {
        title: "Kernel memory of empty maps",
        about: "Maps of the default sizes (511 pods, 131 072 addresses and as many prefixes, 32 768 rule entries, 16 383 destinations) and the programs, \
                before any policy. What grows with policies is below.",
        reading: format!("The kernel takes {} MiB; the maps themselves say {}.", number(measured), number(said)),
        head: &["what", "MiB", "min to max"],
        rows,
    });
    Ok(())
}

fn prefixes(room: &Room, group: Option<&MemoryGroup>, report: &mut Report) -> Result<()> {
    let Some(group) = group else { return Ok(()) };
    let pod = room.pod(Qos::Burstable, &scene::uid(0))?;
    let mut rows = Vec::new();
    let mut reading = Vec::new();
    for (shape, name) in [(Shape::V4, "prefixes /16 to /32"), (Shape::V4Hosts, "nine of ten a /32")] {
        for size in [10_000, 100_000] {
            let mut scene = Scene::load(room, &pod, true, scene::large())?;
            let cluster = cluster(1, vec![policy("app-0", &destinations(shape, size), None)]);
            let wanted = scene::wanted(&cluster, pod.id);
            let set = wanted.get(&pod.id).and_then(|wanted| wanted.set.as_ref());
            let (exact, lpm) =
                set.map(|set| (set.exact.len(), set.prefixes.len())).context("it is governed")?;
            let before = group.kernel_bytes()?;
            scene.engine.apply(&wanted, &BTreeSet::new(), || {})?;
            let bytes = group.kernel_bytes()?.saturating_sub(before) as f64;
            let each = bytes / (exact + lpm) as f64;
            reading.push(number(each));
            rows.push(vec![
                format!("{size} rules, {name}"),
                lpm.to_string(),
                exact.to_string(),
                number(bytes / MIB),
                number(each),
            ]);
        }
    }
    report.table(Table {
        title: "Kernel memory of policies",
        about: "Growth of the memory charged while one policy is written: the nodes of the trie of prefixes and the elements of the hash of single \
                addresses. Rule entries and counters lie in arrays that are there from the beginning.",
        reading: format!("An address or prefix takes {} bytes.", reading.join(", ")),
        head: &["policy", "prefixes", "single addresses", "MiB", "bytes each"],
        rows,
    });
    Ok(())
}
