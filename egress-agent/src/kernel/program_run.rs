//! Asks the loaded program itself: a private copy of the datapath judges packets made for the question, and nothing is
//! attached anywhere.
//!
//! `BPF_PROG_TEST_RUN` gives each packet a socket of the calling process. So the private copy takes this process' own cgroup
//! for the pod: the level of kubepods is set to two above it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use egress_common::{
    config::setting,
    endpoint::{Endpoint, UNGOVERNED},
    policy::{ICMP, ICMPV6, NO_RULE, SCTP, TCP, UDP},
    verdict::{COUNTED, Reason, Verdict},
};
use thiserror::Error;

use super::{
    cgroup,
    loader::{Capacities, Datapath, LoadError, Options},
    maps::{Maps, Refused},
};
use crate::policy::{
    cluster::NsName,
    compile::{Addresses, Compiled},
    diff::{self, State, Step, Wanted},
    entries::{self, Full, Numbered},
    flow::{Answer, Flow},
};

/// Sets with at most this many rules have all their rules' counters read after each packet. Of larger ones the counter of the
/// rule that the entries name is read first, and the others only if that one has not risen.
const READ_ALL: usize = 64;

/// How long the clock of the private copy may run on before it is set again. Less than a second, so that no deadline comes
/// near that was not meant.
const CLOCK_HOLDS: Duration = Duration::from_millis(400);

/// The return value that lets a packet pass.
const PASS: u32 = 1;

/// Why the program could not be asked, or gave no answer.
#[derive(Debug, Error)]
pub enum RunError {
    /// The programs could not be loaded or run.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The policies of the pod do not fit into the maps.
    #[error(transparent)]
    Full(#[from] Full),
    /// No cgroup v2 hierarchy was found.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// A file could not be read.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The cgroup of this process is not known.
    #[error(
        "cannot find the cgroup of this process below {mount}; run it outside a private cgroup namespace, with the whole cgroup v2 hierarchy mounted",
        mount = mount.display()
    )]
    OwnCgroup {
        /// Where the hierarchy is mounted.
        mount: PathBuf,
    },
    /// What the program returned and what it counted are not one answer.
    #[error("the program contradicts itself on {flow}: {what}")]
    Contradiction {
        /// The question.
        flow: String,
        /// What it did.
        what: String,
    },
}

/// The cgroup a process is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OwnCgroup {
    id: u64,
    /// Its depth below the root, which is 0.
    level: u32,
}

/// What the program said about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The verdict.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// The slot of the rule that decided; [`NO_RULE`] for none.
    pub rule: u32,
}

/// A private copy of the datapath that judges one pod at a time.
#[derive(Debug)]
pub struct ProgramRun {
    datapath: Datapath,
    maps: Maps,
    state: State,
    cgroup: u64,
    numbered: Option<Numbered>,
    addresses: Addresses,
    /// Slots of the set's rules.
    rules: Vec<u32>,
    /// Packets counted so far, by slot and class.
    classes: HashMap<u32, [u64; COUNTED.len()]>,
    /// Packets counted so far, by rule slot.
    counted: HashMap<u32, u64>,
    /// What time it is for the program, and since when.
    clock: Option<(u64, Instant)>,
}

impl ProgramRun {
    /// Loads a private copy of `object`. Nothing is pinned or attached, and all is gone with the value.
    ///
    /// # Errors
    ///
    /// [`RunError`], most likely [`LoadError::Privilege`]: this needs what the agent needs.
    pub fn new(object: &[u8], capacities: Capacities) -> Result<Self, RunError> {
        let own = own_cgroup()?;
        // Wraps for the root and its children; the program computes with signed numbers.
        let options =
            Options { level: own.level.wrapping_sub(2), pins: None, capacities, keep_verdicts: true };
        let mut datapath = Datapath::load(object, &options)?;
        let maps = Maps::new(&mut datapath)?;
        datapath.set(setting::STRICT, 1)?;
        let state = State::new(entries::Capacities {
            exact: capacities.exact,
            prefixes: capacities.prefixes,
            rules: capacities.rules,
            rule_slots: capacities.rule_slots,
            endpoints: capacities.endpoints,
        });
        Ok(Self {
            datapath,
            maps,
            state,
            cgroup: own.id,
            numbered: None,
            addresses: Addresses::default(),
            rules: Vec::new(),
            classes: HashMap::new(),
            counted: HashMap::new(),
            clock: None,
        })
    }

    /// Makes what was compiled for a pod hold for the packets to come.
    ///
    /// # Errors
    ///
    /// [`RunError::Full`] when it does not fit; what held before still does.
    pub fn install(&mut self, compiled: &Compiled) -> Result<(), RunError> {
        let pod = NsName::default();
        let plan = diff::plan(
            &self.state,
            &BTreeMap::from([(self.cgroup, Wanted::new(pod, compiled))]),
            &BTreeSet::new(),
        );
        if let Some(refused) = plan.refused.first() {
            return Err(refused.full.into());
        }
        for step in plan.steps {
            self.take(step)?;
        }
        self.state = plan.next;
        if compiled.set.is_none() {
            self.numbered = None;
        }
        self.addresses = compiled.addresses;
        let allocator = self.state.allocator();
        self.rules = compiled
            .set
            .iter()
            .flat_map(|set| &set.rules)
            .map(|rule| allocator.slot_of(rule).expect("rules of sets in the maps have slots"))
            .collect();
        Ok(())
    }

    /// Takes one step. No other program run is under way, so nothing has to be waited for.
    fn take(&mut self, step: Step) -> Result<(), RunError> {
        match step {
            Step::WriteSet(set) => {
                let rules: Vec<_> = set.rules.iter().map(|(_, entry)| *entry).collect();
                self.maps.write_rules(set.block.offset, &rules)?;
                for (key, span) in &set.exact {
                    self.maps.write_exact(*key, *span)?;
                }
                for (bits, key, span) in &set.prefixes {
                    self.maps.write_prefix(*bits, *key, *span)?;
                }
                self.numbered = Some(set);
            }
            Step::WriteEndpoint { cgroup, endpoint } => {
                self.maps.write_endpoint(&endpoint)?;
                self.maps.flip(endpoint.slot, endpoint.revision)?;
                self.maps.bind(cgroup, endpoint.slot)?;
            }
            Step::WriteUngoverned { cgroup, .. } => self.maps.bind(cgroup, UNGOVERNED)?,
            Step::RemoveEndpoint { cgroup, .. } => self.maps.unbind(cgroup)?,
            Step::RetireSet { exact, prefixes, .. } => {
                for key in exact {
                    self.maps.remove_exact(key)?;
                }
                for (bits, key) in prefixes {
                    self.maps.remove_prefix(bits, key)?;
                }
            }
        }
        Ok(())
    }

    /// The numbered set and the record that now hold; neither where no policy governs the pod.
    #[must_use]
    pub fn installed(&self) -> Option<(&Numbered, &Endpoint)> {
        Some((self.numbered.as_ref()?, self.endpoint()?))
    }

    fn endpoint(&self) -> Option<&Endpoint> {
        self.state.endpoints().get(&self.cgroup)?.as_ref()
    }

    /// Returns what the program says about a flow of the installed pod at `now` (seconds since the epoch).
    ///
    /// # Errors
    ///
    /// [`RunError`].
    pub fn judge(&mut self, flow: &Flow, now: u64) -> Result<Answer, RunError> {
        let packet = packet_of(flow, self.addresses);
        let hint = self.installed().filter(|_| self.rules.len() > READ_ALL).map(|(set, endpoint)| {
            crate::policy::simulate::simulate_entries(Some(set), endpoint, flow, now).rule
        });
        let judged = self.ask(&packet, now, hint).map_err(|error| match error {
            RunError::Contradiction { what, .. } => {
                RunError::Contradiction { flow: format!("{flow:?}"), what }
            }
            other => other,
        })?;
        let rule = self.state.allocator().rule(judged.rule).cloned();
        Ok(Answer { verdict: judged.verdict, reason: judged.reason, rule })
    }

    /// Returns what the program says about a packet, Ethernet header first, of the installed pod at `now`.
    ///
    /// # Errors
    ///
    /// [`RunError`].
    pub fn judge_packet(&mut self, packet: &[u8], now: u64) -> Result<Judged, RunError> {
        self.ask(packet, now, None)
    }

    fn ask(&mut self, packet: &[u8], now: u64, hint: Option<u32>) -> Result<Judged, RunError> {
        loop {
            let since = self.set_clock(now)?;
            let (returned, _) = self.datapath.run("egress", packet, None, 1)?;
            let judged = self.read(returned, hint)?;
            // Whoever is held up long enough for the program's time to have moved on asks again.
            if since.elapsed() < Duration::from_secs(1) {
                return Ok(judged);
            }
            self.clock = None;
        }
    }

    /// Makes the program believe that it is `now`. Returns since when it does.
    fn set_clock(&mut self, now: u64) -> Result<Instant, RunError> {
        if let Some((set, since)) = self.clock
            && set == now
            && since.elapsed() < CLOCK_HOLDS
        {
            return Ok(since);
        }
        let since = Instant::now();
        self.datapath.run("clock", &[0; 64], None, 1)?;
        let ticks = self.datapath.get(setting::SEEN_TICKS)?;
        let offset = now.wrapping_mul(u64::from(self.datapath.hz)).wrapping_sub(ticks);
        self.datapath.set(setting::CLOCK_OFFSET, offset)?;
        self.clock = Some((now, since));
        Ok(since)
    }

    /// Reads the answer out of the return value and the counters, which must agree.
    fn read(&mut self, returned: u32, hint: Option<u32>) -> Result<Judged, RunError> {
        let contradiction = |what: String| RunError::Contradiction { flow: "a packet".to_owned(), what };
        let class = match self.endpoint().map(|endpoint| endpoint.slot) {
            Some(slot) => self.risen_class(slot)?,
            None => None,
        };
        let (verdict, reason) = match class {
            Some(class) => COUNTED[class],
            None if self.endpoint().is_none() => (Verdict::Allow, Reason::Ungoverned),
            None => return Err(contradiction(format!("it returned {returned} and counted nothing"))),
        };
        let ruled = matches!(
            reason,
            Reason::AllowedDestination | Reason::DefaultDeny | Reason::DeniedDestination | Reason::Expired
        );
        // Of a large set whose rules had no say, their counters are left unread: a rise would show at the next reading.
        let rule = if ruled || hint.is_none() { self.risen_rule(hint)? } else { NO_RULE };
        if ruled != (rule != NO_RULE) {
            let what = format!("it counted {} ({}) for rule {rule}", verdict.as_str(), reason.as_str());
            return Err(contradiction(what));
        }
        if (returned == PASS) != (verdict != Verdict::Deny) {
            let what =
                format!("it returned {returned} and counted {} ({})", verdict.as_str(), reason.as_str());
            return Err(contradiction(what));
        }
        Ok(Judged { verdict, reason, rule })
    }

    /// Returns the class whose counter has risen by one since it was last read.
    fn risen_class(&mut self, slot: u32) -> Result<Option<usize>, RunError> {
        let counters = self.maps.counters(slot)?;
        let before = self.classes.entry(slot).or_default();
        let mut risen = None;
        for (class, (counter, before)) in counters.iter().zip(before).enumerate() {
            match counter.packets.wrapping_sub(*before) {
                0 => {}
                1 if risen.is_none() => risen = Some(class),
                by => {
                    let what = format!("class {class} rose by {by}, and class {risen:?} did too");
                    return Err(RunError::Contradiction { flow: "a packet".to_owned(), what });
                }
            }
            *before = counter.packets;
        }
        Ok(risen)
    }

    /// Returns the rule slot whose counter has risen by one since it was last read, or [`NO_RULE`].
    fn risen_rule(&mut self, hint: Option<u32>) -> Result<u32, RunError> {
        if let Some(hint) = hint.filter(|hint| *hint != NO_RULE)
            && self.rise(hint)? == 1
        {
            return Ok(hint);
        }
        let mut risen = NO_RULE;
        for index in 0..self.rules.len() {
            let slot = self.rules[index];
            match self.rise(slot)? {
                0 => {}
                1 if risen == NO_RULE => risen = slot,
                by => {
                    let what = format!("rule {slot} rose by {by}, and rule {risen} did too");
                    return Err(RunError::Contradiction { flow: "a packet".to_owned(), what });
                }
            }
        }
        Ok(risen)
    }

    fn rise(&mut self, rule: u32) -> Result<u64, RunError> {
        let packets = self.maps.rule_counter(rule)?.packets;
        let before = self.counted.insert(rule, packets).unwrap_or(0);
        Ok(packets.wrapping_sub(before))
    }
}

/// Finds the cgroup of this process in the whole hierarchy.
fn own_cgroup() -> Result<OwnCgroup, RunError> {
    const OWN: &str = "/proc/self/cgroup";
    let text = fs::read_to_string(OWN).map_err(|source| RunError::Read { path: OWN.into(), source })?;
    let mount = cgroup::hierarchy()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let unknown = || RunError::OwnCgroup { mount: mount.clone() };
    let path = path.filter(|path| !path.split('/').any(|part| part == "..")).ok_or_else(unknown)?;
    let folder = mount.join(path);
    // In a private cgroup namespace the path is another one than in the hierarchy.
    if !members(&folder)?.lines().any(|pid| pid == std::process::id().to_string()) {
        return Err(unknown());
    }
    let metadata = fs::metadata(&folder).map_err(|source| RunError::Read { path: folder.clone(), source })?;
    let level = Path::new(path).components().count();
    let level = u32::try_from(level).expect("a path has fewer components than bytes, PATH_MAX at most");
    Ok(OwnCgroup { id: metadata.ino(), level })
}

fn members(folder: &Path) -> Result<String, RunError> {
    let path = folder.join("cgroup.procs");
    fs::read_to_string(&path).map_err(|source| RunError::Read { path, source })
}

/// Returns a packet of a flow as the pod's socket would send it first, Ethernet header included.
#[must_use]
pub fn packet_of(flow: &Flow, source: Addresses) -> Vec<u8> {
    const SOURCE_PORT: u16 = 40_000;
    let mut payload = Vec::with_capacity(24);
    let ports = |payload: &mut Vec<u8>| {
        payload.extend(SOURCE_PORT.to_be_bytes());
        payload.extend(flow.port.to_be_bytes());
    };
    match flow.protocol {
        TCP => {
            ports(&mut payload);
            // Sequence, acknowledgement, five words and SYN, window, checksum and urgent pointer.
            payload.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
        }
        UDP => {
            ports(&mut payload);
            payload.extend([0, 8, 0, 0]);
        }
        SCTP => {
            ports(&mut payload);
            payload.extend([0; 8]);
        }
        // Echo requests.
        ICMP => payload.extend([8, 0, 0, 0, 0, 1, 0, 1]),
        ICMPV6 => payload.extend([128, 0, 0, 0, 0, 1, 0, 1]),
        _ => payload.extend([0; 8]),
    }
    let mut packet = vec![0; 12];
    match flow.destination {
        IpAddr::V4(destination) => {
            let source = if destination.is_loopback() {
                destination
            } else {
                source.v4.unwrap_or(Ipv4Addr::new(192, 0, 2, 1))
            };
            packet.extend([0x08, 0x00, 0x45, 0x00]);
            packet.extend(length_of(20 + payload.len()));
            packet.extend([0, 1, 0, 0, 64, flow.protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        IpAddr::V6(destination) => {
            let source = if destination.is_loopback() {
                destination
            } else {
                source.v6.unwrap_or(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))
            };
            packet.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            packet.extend(length_of(payload.len()));
            packet.extend([flow.protocol, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
    }
    packet.extend(payload);
    packet
}

fn length_of(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("the packets made here are short").to_be_bytes()
}
