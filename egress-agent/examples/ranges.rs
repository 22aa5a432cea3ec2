//! Prints what published ranges weigh, and what a question about them costs.
//!
//! `cargo run --release -p egress-agent --example ranges PROVIDER FILE...`

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use egress_agent::{
    policy::{
        model::Unresolved,
        ranges::{Ranges, Width},
    },
    ranges::{accept, providers},
};

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
        // As if both were there at once, which they may be.
        self.grow(size);
        self.live.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting { live: AtomicUsize::new(0), peak: AtomicUsize::new(0) };

/// Runs it some times and prints the median time and the most memory beyond what was there before.
fn measured<T>(what: &str, mut run: impl FnMut() -> T) -> T {
    const TIMES: usize = 15;
    let (mut times, mut peak) = (Vec::with_capacity(TIMES), 0);
    loop {
        let before = HEAP.live.load(Relaxed);
        HEAP.peak.store(before, Relaxed);
        let began = Instant::now();
        let result = run();
        times.push(began.elapsed());
        peak = peak.max(HEAP.peak.load(Relaxed) - before);
        if times.len() == TIMES {
            times.sort();
            let median: Duration = times[TIMES / 2];
            println!("{what:<48} {median:>10.1?}  {:>8.2} MB at peak", peak as f64 / 1e6);
            return result;
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().expect("name a provider");
    let provider = providers::provider(&name).expect("a provider of that name");
    let documents: Vec<Vec<u8>> =
        arguments.map(|file| fs::read(&file).unwrap_or_else(|error| panic!("{file}: {error}"))).collect();
    let documents: Vec<&[u8]> = documents.iter().map(Vec::as_slice).collect();

    let parse = || provider.parse(&documents).unwrap_or_else(|error| panic!("{error}"));
    measured("parse, filter and collapse everything", || {
        let mut ranges = Ranges::default();
        ranges.set_provider(&name, Arc::new(parse()));
        ranges.resolve(&all(&name)).unwrap_or_else(|error| panic!("{error}"))
    });
    let table = Arc::new(measured("parse", parse));
    let count = table.count();
    println!("{} IPv4 and {} IPv6 rows in {} bytes", count.v4, count.v6, table.bytes());
    let mut ranges = Ranges::default();
    ranges.set_provider(&name, Arc::clone(&table));
    let found = measured("resolve everything", || ranges.resolve(&all(&name)).expect("it was found"));
    println!("{}", Width::of(&found.cidrs));
    if let Some((largest, _)) = table.count_by_service().into_iter().max_by_key(|(_, count)| count.rows()) {
        let region = table.count_by_region().into_iter().max_by_key(|(_, count)| count.rows());
        let region = region.map_or_else(String::new, |(region, _)| region.to_owned());
        let what = Unresolved::Cloud {
            provider: name.clone(),
            services: vec![largest.to_owned()],
            regions: vec![region.clone()],
        };
        match measured(&format!("resolve {largest} in {region}"), || ranges.resolve(&what)) {
            Ok(found) => println!("{}", found.width()),
            Err(missing) => println!("{missing}"),
        }
    }
    let delta = measured("accept the same again", || {
        accept::accept(Some(&table), &table, &accept::Limits::default()).expect("nothing changes")
    });
    println!("{delta}");
}

fn all(provider: &str) -> Unresolved {
    Unresolved::Cloud { provider: provider.to_owned(), services: Vec::new(), regions: Vec::new() }
}
