//! Prints what a large cluster weighs in an agent, and what one changed pod costs.
//!
//! `cargo run --release -p egress-agent --example footprint [PODS]`

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::BTreeSet,
    fs,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use egress_agent::{
    k8s::{convert, snapshot},
    policy::{
        changes::Changes,
        cluster::{Addresses, NsName, Pod, Service, Settings},
        compile::{Cache, compile_all, compile_all_cached},
        demand::Demand,
        index::{Change, Index, Object},
    },
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

#[path = "../../tests/bench/scale.rs"]
mod scale;

use scale::Shape;

/// The system's allocator, with a count of live bytes and of their peak.
struct Counting {
    live: AtomicUsize,
    peak: AtomicUsize,
}

impl Counting {
    fn grow(&self, bytes: usize) {
        let live = self.live.fetch_add(bytes, Relaxed) + bytes;
        self.peak.fetch_max(live, Relaxed);
    }

    fn restart(&self) -> f64 {
        self.peak.store(self.live.load(Relaxed), Relaxed);
        megabytes(self.live.load(Relaxed))
    }
}

// SAFETY: every call goes to the system's allocator unchanged; the counters touch no memory it gives out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.grow(layout.size());
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.live.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.live.fetch_sub(layout.size(), Relaxed);
        self.grow(size);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting { live: AtomicUsize::new(0), peak: AtomicUsize::new(0) };

/// How many pods run here; with as many nodes as Kubernetes allows, each has about so many.
const HERE: &str = "node-00000";

fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("a process can read its own status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has a size");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("it is a number") * 1.024e-3
}

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the generated object has the right types")
}

fn expect<E: std::fmt::Display>(object: Result<Object, E>) -> Object {
    object.unwrap_or_else(|failure| panic!("{failure}"))
}

fn pod(value: Value) -> Object {
    match expect(convert::pod(read(value))) {
        Object::Pod(id, pod) => {
            let local = pod.local.filter(|local| local.node == HERE);
            Object::Pod(id, Pod { local, ..pod })
        }
        other => panic!("a pod became {other:?}"),
    }
}

/// Prints what it costs to keep the state in a file: noting it, what the first change of each kind then pays, and writing it.
#[expect(clippy::print_stdout, reason = "that is what it is for")]
fn kept(index: &mut Index) {
    let live = HEAP.restart();
    let start = Instant::now();
    let state = index.view();
    let noted = start.elapsed();
    let (id, pod) = index.cluster().pods.iter().next().expect("there are pods");
    let (id, pod) = (NsName::from(id), pod.clone());
    let (service, of_service) = index
        .cluster()
        .services
        .iter()
        .next()
        .map(|(id, one)| (id.clone(), one.clone()))
        .expect("and Services");
    let start = Instant::now();
    let moved = Pod { ips: Addresses { v4: Some([10, 99, 0, 1].into()), v6: None }, ..pod.clone() };
    assert!(index.apply(Object::Pod(id.clone(), moved)).cluster);
    let pod_changed = start.elapsed();
    let start = Instant::now();
    let fronted = Service { cluster_ips: vec![[10, 99, 0, 2].into()], ..of_service.clone() };
    assert!(index.apply(Object::Service(service.clone(), fronted)).cluster);
    let service_changed = start.elapsed();
    println!(
        "the state is noted in {noted:?}; a pod changes in {pod_changed:?} then, a Service in {service_changed:?}; {:.1} MB more",
        megabytes(HEAP.peak.load(Relaxed)) - live
    );
    let folder = std::env::temp_dir().join(format!("footprint-{}", std::process::id()));
    let start = Instant::now();
    let written = snapshot::write(&state, &Demand::everything(), HERE, &folder, 0).expect("there is room");
    println!(
        "it is written in {:?}; {:.1} MB more at most",
        start.elapsed(),
        megabytes(HEAP.peak.load(Relaxed)) - live
    );
    written.commit().expect("there is room");
    fs::remove_file(&folder).expect("it was written");
    assert!(index.apply(Object::Pod(id, pod)).cluster);
    assert!(index.apply(Object::Service(service, of_service)).cluster);
    drop(index.take_changes());
}

#[expect(clippy::print_stdout, reason = "that is what it is for")]
fn main() {
    let mut shape = Shape::LARGEST;
    if let Some(pods) = std::env::args().nth(1) {
        shape.pods = pods.parse().expect("the number of pods");
        shape.nodes = shape.nodes.min(shape.pods / 30);
        shape.workloads = shape.workloads.min(shape.pods / 30);
        shape.namespaces = shape.namespaces.min(shape.workloads);
    }
    let sizes: Vec<usize> = shape.all_pods().take(1000).map(|pod| pod.to_string().len()).collect();
    println!("a pod has {} bytes of JSON", sizes.iter().sum::<usize>() / sizes.len());
    println!("resident before: {:.1} MB", resident());

    let mut index = Index::default();
    let mut change = Change::NONE;
    let mut applying = Duration::ZERO;
    let mut before = HEAP.restart();
    let mut fill = |what: &str, index: &mut Index, objects: &mut dyn Iterator<Item = Object>| {
        let mut count = 0;
        for object in objects {
            count += 1;
            let start = Instant::now();
            change |= index.apply(object);
            applying += start.elapsed();
        }
        let changes = index.take_changes();
        drop(changes);
        let live = HEAP.restart();
        println!(
            "{count} {what}: {:.2} MB, {:.0} bytes each",
            live - before,
            (live - before) * 1e6 / f64::from(count)
        );
        before = live;
    };
    fill(
        "namespaces",
        &mut index,
        &mut shape.namespaces().map(|value| expect(convert::namespace(read(value)))),
    );
    fill("nodes", &mut index, &mut shape.all_nodes().map(|value| expect(convert::node(read(value)))));
    fill("services", &mut index, &mut shape.services().map(|value| expect(convert::service(read(value)))));
    fill("slices", &mut index, &mut shape.slices().map(|value| expect(convert::endpoint_slice(read(value)))));
    fill("pods", &mut index, &mut shape.all_pods().map(pod));
    assert!(change.any());
    println!("applied in {applying:?}; {:.1} MB live, {:.1} MB resident", HEAP.restart(), resident());

    kept(&mut index);
    let settings = Settings::default();
    let local: Vec<NsName> = index.cluster().pods.local().map(|(id, _)| id.clone()).collect();
    let mut homes: Vec<String> =
        local.iter().map(|id| id.namespace.clone()).collect::<BTreeSet<_>>().into_iter().collect();
    homes.truncate(5);
    println!("{} pods here, policies in {} of their namespaces", local.len(), homes.len());
    let peers = [
        ("no selectors", json!({"cidrs": ["192.0.2.0/24"]})),
        ("own namespace", json!({"pods": {"podSelector": {}}})),
        ("own namespace, port by name", json!({"pods": {"podSelector": {}}, "ports": ["http"]})),
        (
            "1 % of all",
            json!({"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"tier": "gold"}}}}),
        ),
        (
            "10 % of all",
            json!({"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"tier": "silver"}}}}),
        ),
        (
            "10 % of all, port by name",
            json!({"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"tier": "silver"}}}, "ports": ["http"]}),
        ),
        ("all", json!({"pods": {"namespaceSelector": {}, "podSelector": {}}})),
        ("the world", json!({"entity": "world"})),
    ];
    for (what, destination) in peers {
        for home in &homes {
            let mut destination = destination.clone();
            destination["name"] = "peers".into();
            let policy = json!({"podSelector": {}, "defaultAction": "deny", "clusterDns": false, "allowedDestinations": [destination]});
            let id = NsName::new(home.as_str(), "policy");
            let change =
                index.apply(Object::ConfigMap { id, managed: true, policy: Some(policy.to_string()) });
            assert!(change.cluster, "the policy is another one");
        }
        assert_eq!(
            index.problems().filter(|problem| problem.findings.iter().any(|one| one.is_error())).count(),
            0
        );
        let mut cache = Cache::default();
        let live = HEAP.restart();
        let start = Instant::now();
        let changes = index.take_changes();
        drop(changes);
        let mut compiled =
            compile_all_cached(&mut cache, index.cluster(), &settings, Changes::default(), local.iter());
        let (elapsed, peak) = (start.elapsed(), megabytes(HEAP.peak.load(Relaxed)));
        let entries = compiled
            .values()
            .filter_map(|one| one.set.as_ref())
            .map(|set| set.exact.len() + set.prefixes.len())
            .max();
        println!(
            "{what}: {elapsed:?}, up to {} addresses in each of {} sets",
            entries.unwrap_or(0),
            homes.len()
        );
        println!(
            "    {live:.1} MB before, {peak:.1} MB peak, {:.1} MB after, {:.1} MB resident",
            HEAP.restart(),
            resident()
        );
        for tier in ["bronze", "gold", "silver"] {
            let found = index
                .cluster()
                .pods
                .iter()
                .find(|(_, pod)| pod.labels.get("tier") == Some(tier) && pod.local.is_none());
            let (id, mut pod) =
                found.map(|(id, pod)| (NsName::from(id), pod.clone())).expect("each tier has pods");
            let old = pod.clone();
            let mut times: Vec<(Duration, bool)> = Vec::new();
            for number in 0..20_u8 {
                pod.ips = Addresses { v4: Some([10, 99, 0, number].into()), v6: None };
                let object = Object::Pod(id.clone(), pod.clone());
                let start = Instant::now();
                assert!(index.apply(object).cluster);
                let changes = index.take_changes();
                let concerned = cache.absorb(index.cluster(), changes);
                if concerned {
                    compiled = compile_all_cached(
                        &mut cache,
                        index.cluster(),
                        &settings,
                        Changes::default(),
                        local.iter(),
                    );
                }
                times.push((start.elapsed(), concerned));
            }
            if shape.pods <= 10_000 {
                assert_eq!(compiled, compile_all(index.cluster(), &settings, local.iter()));
            }
            times.sort();
            let (median, concerned) = times[times.len() / 2];
            println!(
                "    a changed {tier} pod: {median:?}, {}",
                if concerned { "compiled" } else { "of no concern" }
            );
            assert!(index.apply(Object::Pod(id, old)).cluster);
            let changes = index.take_changes();
            compiled = compile_all_cached(&mut cache, index.cluster(), &settings, changes, local.iter());
        }
        println!("    {:.1} MB peak in events", megabytes(HEAP.peak.load(Relaxed)));
    }
}
