//! What real packets of real sockets cost: both programs attached to the pod's kubepods cgroup, and the kernel counts their time.

use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use aya::sys::{Stats, enable_stats};
use egress_agent::kernel::{
    bpf::{self, AttachType},
    loader::Datapath,
};
use socket2::{Domain, Socket, Type};

use crate::{
    measure::{self, Effort, FLOOR, PROGRAM, Pinned},
    report::{COST, Report, Table, number},
    room::{PodRoom, Qos, Room},
    scene::{self, POD_V4, Scene, Shape, cluster, destinations, policy},
};

/// Runs of a program and the nanoseconds they took together.
#[derive(Clone, Copy, Debug)]
struct Usage {
    runs: u64,
    nanoseconds: u64,
}

fn usage(datapath: &Datapath, program: &str) -> Result<Usage> {
    let descriptor = datapath.program_fd(program)?.as_raw_fd();
    let path = format!("/proc/self/fdinfo/{descriptor}");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let field = |name: &str| -> Result<u64> {
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value.with_context(|| format!("{path} has no {name}"))?.trim().parse().context("it is a number")
    };
    Ok(Usage { runs: field("run_cnt:")?, nanoseconds: field("run_time_ns:")? })
}

/// The two programs, attached side by side.
struct Attached<'a> {
    datapath: &'a Datapath,
    _links: [OwnedFd; 2],
}

impl<'a> Attached<'a> {
    fn new(datapath: &'a Datapath, room: &Room) -> Result<Self> {
        let cgroup = fs::File::open(&room.kubepods.path).context("cannot open the kubepods cgroup")?;
        let attach = |program| -> Result<OwnedFd> {
            bpf::link_create(datapath.program_fd(program)?, &cgroup, AttachType::Egress)
                .with_context(|| format!("cannot attach {program}"))
        };
        Ok(Self { datapath, _links: [attach(FLOOR)?, attach(PROGRAM)?] })
    }

    /// Runs `work`, and returns the mean nanoseconds of a run of each program, the floor first.
    fn during(&self, packets: u64, work: impl FnOnce() -> Result<()>) -> Result<(f64, f64)> {
        let before = [usage(self.datapath, FLOOR)?, usage(self.datapath, PROGRAM)?];
        work()?;
        let after = [usage(self.datapath, FLOOR)?, usage(self.datapath, PROGRAM)?];
        let mean = |index: usize| -> Result<f64> {
            let runs = after[index].runs - before[index].runs;
            // The kernel itself may send a packet now and then in a new network.
            let strays = runs.checked_sub(packets);
            ensure!(strays.is_some_and(|strays| strays < 10), "{runs} runs for {packets} packets");
            Ok((after[index].nanoseconds - before[index].nanoseconds) as f64 / runs as f64)
        };
        Ok((mean(0)?, mean(1)?))
    }
}

/// Gives the calling thread a network of its own, in which every address is on a link that leads nowhere.
fn own_network() -> Result<()> {
    // SAFETY: a system call that takes a number and changes the calling thread alone.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error()).context("cannot make a network namespace");
    }
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start ip (package iproute2)")?;
    let script = format!(
        "link set lo up\nlink add bench0 type bridge mcast_snooping 0\nlink set bench0 arp off addrgenmode none\n\
         address add {POD_V4}/32 dev bench0\nlink set bench0 up\nroute add default dev bench0 src {POD_V4}\n"
    );
    child.stdin.take().expect("stdin is piped").write_all(script.as_bytes()).context("cannot tell ip")?;
    let status = child.wait().context("cannot wait for ip")?;
    ensure!(status.success(), "ip: {status}");
    Ok(())
}

/// Begins a connection and gives it up: one SYN.
fn connect(address: SocketAddr) -> Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Ok(()) => bail!("nobody answers here"),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot connect to {address}")),
    }
}

/// Everything about real sockets.
///
/// # Errors
///
/// When the kernel refuses.
pub fn run(room: &Room, effort: &Effort, report: &mut Report) -> Result<()> {
    let pod = room.pod(Qos::Burstable, &scene::uid(0))?;
    room.enter(&pod)?;
    // A thread, because the network namespace it moves to is its own.
    let outcome = thread::scope(|scope| {
        let measuring = scope.spawn(|| {
            own_network()?;
            measured(room, &pod, effort, report)
        });
        measuring.join().expect("a panic ends the process")
    });
    room.leave()?;
    outcome
}

fn measured(room: &Room, pod: &PodRoom, effort: &Effort, report: &mut Report) -> Result<()> {
    let _pinned = Pinned::new()?;
    let _stats = match enable_stats(Stats::RunTime) {
        Ok(stats) => stats,
        Err(error) => {
            report.skip("real sockets", &format!("the kernel keeps no run times: {error}"));
            return Ok(());
        }
    };
    let mut rows = Vec::new();
    let mut reading = Vec::new();
    for size in [10, 1000, 10_000] {
        let destinations = destinations(Shape::V4, size);
        let peers: Vec<SocketAddr> = destinations
            .iter()
            .map(|destination| SocketAddr::new(destination.net.network(), destination.port))
            .collect();
        let cluster = cluster(1, vec![policy("app-0", &destinations, None)]);
        for keep in [true, false] {
            let mut scene = Scene::load(room, pod, keep, scene::large())?;
            scene.put(&cluster)?;
            let attached = Attached::new(scene.engine.datapath(), room)?;
            let mut next = 0;
            let (mut floors, mut totals) = (Vec::new(), Vec::new());
            for _ in 0..effort.rounds {
                let connects = effort.calls;
                let (floor, total) = attached.during(connects as u64, || {
                    for _ in 0..connects {
                        next += 1;
                        connect(peers[next % peers.len()])?;
                    }
                    Ok(())
                })?;
                floors.push(floor);
                totals.push(total);
            }
            let cost = measure::cost(&floors, &totals);
            let what = if keep { "verdict stored" } else { "nothing stored" };
            if keep {
                reading.push(format!("{} at {size}", number(cost.net.median)));
            }
            rows.push(report.cost_row(
                &format!("{size} rules: SYN of a new connection, {what}"),
                &cost,
                None,
            ));
        }
    }
    rows.extend(datagrams(room, pod, effort, report)?);
    report.table(Table {
        title: "Real sockets",
        about: "Real packets in a network namespace whose only link drops them. The floor and the program are both attached to the kubepods cgroup and \
                run for the same packets; the kernel adds up their times (`BPF_ENABLE_STATS`), which themselves cost both the same. Values are \
                means over the packets of a round, so interrupts are in them. The system call, routing and the socket's own life come \
                between two packets, so caches are colder than in test runs.",
        reading: format!(
            "The SYN of a new connection, judged and stored, costs {} rules (net ns).",
            reading.join(", ")
        ),
        head: COST,
        rows,
    });
    Ok(())
}

fn datagrams(room: &Room, pod: &PodRoom, effort: &Effort, report: &mut Report) -> Result<Vec<Vec<String>>> {
    let destinations = destinations(Shape::V4, 10);
    let mut scene = Scene::load(room, pod, true, scene::large())?;
    scene.put(&cluster(1, vec![policy("app-0", &destinations, None)]))?;
    let attached = Attached::new(scene.engine.datapath(), room)?;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // Cluster DNS: allowed to every pod of these policies.
    let resolver: SocketAddr = "10.96.0.10:53".parse().context("it is an address")?;
    socket.connect(&resolver.into())?;
    let refused = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let nowhere: SocketAddr = "198.51.100.77:53".parse().context("it is an address")?;
    refused.connect(&nowhere.into())?;
    let mut costs = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
    let packets = effort.calls as u64 * 10;
    for _ in 0..effort.rounds {
        for (denied, (floors, totals)) in [false, true].into_iter().zip(&mut costs) {
            let (floor, total) = attached.during(packets, || {
                for _ in 0..packets {
                    let sent = if denied { refused.send(b"datagram") } else { socket.send(b"datagram") };
                    match sent {
                        Err(error) if denied && error.raw_os_error() == Some(libc::EPERM) => {}
                        Ok(_) if !denied => {}
                        other => bail!("sending a datagram that is denied ({denied}): {other:?}"),
                    }
                }
                Ok(())
            })?;
            floors.push(floor);
            totals.push(total);
        }
    }
    let [established, denied] = costs.map(|(floors, totals)| measure::cost(&floors, &totals));
    Ok(vec![
        report.cost_row("datagram of an established flow", &established, None),
        report.cost_row("datagram denied by default (send fails with EPERM)", &denied, None),
    ])
}
