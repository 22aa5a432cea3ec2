//! Timing of program runs, always next to the empty program so that both meet the same machine.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use egress_agent::kernel::loader::Datapath;
use rustix::{
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
};

/// The program under test and the empty one it is compared with.
pub const PROGRAM: &str = "egress";
/// The empty program, attached and run in the same way.
pub const FLOOR: &str = "floor";

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds of each row.
    pub rounds: usize,
    /// Runs in each round.
    pub repeat: u32,
    /// Calls of one or two runs in each round, for what happens once to a socket.
    pub calls: usize,
    /// Policy changes under a running agent.
    pub changes: usize,
    /// Further changes before its memory is read again.
    pub wear: usize,
    /// Whether everything was cut short.
    pub quick: bool,
}

impl Effort {
    /// What the published figures are made with.
    pub const FULL: Self =
        Self { rounds: 11, repeat: 1_000_000, calls: 1500, changes: 300, wear: 1000, quick: false };
    /// To see that everything works.
    pub const QUICK: Self =
        Self { rounds: 9, repeat: 100_000, calls: 300, changes: 60, wear: 100, quick: true };
}

/// A middle value and how far the others lie from it.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub low: f64,
    /// The largest.
    pub high: f64,
}

impl Spread {
    /// Returns the spread of at least one value.
    ///
    /// # Panics
    ///
    /// Without values.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        let sorted = sorted(values);
        Self { median: middle(&sorted), low: sorted[0], high: sorted[sorted.len() - 1] }
    }
}

/// Returns the value below which `share` of the values lie.
///
/// # Panics
///
/// Without values.
#[must_use]
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let sorted = sorted(values);
    let steps = (sorted.len() as f64 * share).ceil();
    let reached = (1..=sorted.len()).take_while(|count| (*count as f64) < steps).count();
    sorted[reached.min(sorted.len() - 1)]
}

/// Returns the median.
///
/// # Panics
///
/// Without values.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    middle(&sorted(values))
}

fn sorted(values: &[f64]) -> Vec<f64> {
    assert!(!values.is_empty(), "there is something to summarise");
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

fn middle(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) }
}

/// What the runs of one row cost, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// The empty program.
    pub floor: Spread,
    /// The program under test.
    pub total: Spread,
    /// The difference of the two in the same round.
    pub net: Spread,
    /// Their quotient in the same round.
    pub ratio: f64,
    /// The kernel's own average of the program under test, whole nanoseconds; a check on ours. None where ours is the kernel's.
    pub kernel: Option<f64>,
}

impl Cost {
    fn of(floor: &[f64], total: &[f64], kernel: Option<f64>) -> Self {
        let pairs = || floor.iter().zip(total);
        let net: Vec<f64> = pairs().map(|(floor, total)| total - floor).collect();
        let ratio: Vec<f64> = pairs().map(|(floor, total)| total / floor).collect();
        Self {
            floor: Spread::of(floor),
            total: Spread::of(total),
            net: Spread::of(&net),
            ratio: median(&ratio),
            kernel,
        }
    }
}

/// Keeps the calling thread on one processor for as long as it lives.
#[derive(Debug)]
pub struct Pinned {
    before: CpuSet,
}

impl Pinned {
    /// Chooses the last processor the thread may use: the first one serves most interrupts.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn new() -> Result<Self> {
        let before = sched_getaffinity(None).context("cannot read the affinity")?;
        let processor = (0..CpuSet::MAX_CPU)
            .rev()
            .find(|processor| before.is_set(*processor))
            .context("the thread may run nowhere")?;
        let mut one = CpuSet::new();
        one.set(processor);
        sched_setaffinity(None, &one).context("cannot pin the thread")?;
        Ok(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Err(error) = sched_setaffinity(None, &self.before) {
            eprintln!("the thread stays pinned: {error}");
        }
    }
}

/// Time the calling thread has spent on a processor.
#[must_use]
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).expect("processor time is not negative"),
        u32::try_from(time.tv_nsec).expect("a part of a second"),
    )
}

/// Runs a program `repeat` times in one call; returns nanoseconds a run by the thread's processor time and by the kernel.
fn timed(datapath: &Datapath, program: &str, packet: &[u8], repeat: u32, returns: u32) -> Result<(f64, f64)> {
    let began = thread_time();
    let (returned, average) = datapath.run(program, packet, None, repeat)?;
    let spent = thread_time().saturating_sub(began);
    ensure!(returned == returns, "{program} returned {returned} where {returns} was expected");
    Ok((nanoseconds(spent) / f64::from(repeat), nanoseconds(average)))
}

/// A duration in nanoseconds.
#[must_use]
pub fn nanoseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

/// Measures the program on packets it has seen a moment ago: many runs in each call, one packet a round, so everything it
/// touches is in the nearest cache. The socket of a call lives as long as the call.
///
/// # Errors
///
/// When the kernel refuses a run, or the program does not return `returns`.
pub fn hot(datapath: &Datapath, packets: &[Vec<u8>], effort: &Effort, returns: u32) -> Result<Cost> {
    let (mut floors, mut totals, mut kernel) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..effort.rounds {
        let packet = &packets[round % packets.len()];
        let floor = || timed(datapath, FLOOR, packet, effort.repeat, 1);
        let program = || timed(datapath, PROGRAM, packet, effort.repeat, returns);
        // A short run of each first, so that neither pays for the other's eviction; then in alternating order.
        timed(datapath, FLOOR, packet, 1000, 1)?;
        timed(datapath, PROGRAM, packet, 1000, returns)?;
        let (floor, total) = if round % 2 == 0 {
            let floor = floor()?;
            (floor, program()?)
        } else {
            let total = program()?;
            (floor()?, total)
        };
        floors.push(floor.0);
        totals.push(total.0);
        kernel.push(total.1);
    }
    Ok(Cost::of(&floors, &totals, Some(median(&kernel))))
}

/// Something to time in short calls.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// Where it is loaded.
    pub datapath: &'a Datapath,
    /// Which program.
    pub program: &'static str,
    /// Runs in a call.
    pub repeat: u32,
}

/// Times short calls of each subject in turn, one packet after the other; returns for each round and subject the median
/// nanoseconds of a whole call. The kernel's own clock is used, which leaves out the system call around the runs.
///
/// # Errors
///
/// When the kernel refuses a run, or a run denies a packet; and what `before` returns.
pub fn short(
    subjects: &[Subject<'_>],
    packets: &[Vec<u8>],
    effort: &Effort,
    returns: u32,
    mut before: impl FnMut() -> Result<()>,
) -> Result<Vec<Vec<f64>>> {
    let mut rounds = Vec::new();
    for round in 0..effort.rounds {
        let mut times = vec![Vec::new(); subjects.len()];
        for call in 0..effort.calls {
            let packet = &packets[(round * effort.calls + call) % packets.len()];
            for (subject, times) in subjects.iter().zip(&mut times) {
                before()?;
                let (returned, average) =
                    subject.datapath.run(subject.program, packet, None, subject.repeat)?;
                let wanted = if subject.program == FLOOR { 1 } else { returns };
                ensure!(returned == wanted, "{} returned {returned}", subject.program);
                times.push(nanoseconds(average) * f64::from(subject.repeat));
            }
        }
        rounds.push(times.iter().map(|times| median(times)).collect());
    }
    Ok(rounds)
}

/// The cost from rounds of floor and total that were taken otherwise.
#[must_use]
pub fn cost(floor: &[f64], total: &[f64]) -> Cost {
    Cost::of(floor, total, None)
}
