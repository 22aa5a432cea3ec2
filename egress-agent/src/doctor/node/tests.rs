use super::{
    super::{Severity, examine},
    gather::{chosen, effective, exported, lock_holder, v1_controllers},
    *,
};
use crate::agent::status::{
    DenialStatus, Enforcement, MapFill, PodStatus, PolicyStatus, RejectedObject, SnapshotStatus, WatchStatus,
};

fn status() -> Status {
    Status {
        version: "0.1.0".to_owned(),
        revision: None,
        node: "node-a".to_owned(),
        time: String::new(),
        started: String::new(),
        ready: true,
        not_ready_because: Vec::new(),
        degraded: Vec::new(),
        remarks: Vec::new(),
        enforcement: Enforcement {
            kubepods: "/sys/fs/cgroup/kubepods".to_owned(),
            attached: true,
            pod_start: "strict".to_owned(),
            connect_hooks: true,
            pins: Some("/sys/fs/bpf/egress-agent".to_owned()),
            repairs: 0,
            audit: false,
        },
        source: SourceStatus::ApiServer {
            contact_age_seconds: Some(1.0),
            state_age_seconds: Some(0.0),
            restored_from: None,
            watches: vec![WatchStatus {
                subject: "namespaces".to_owned(),
                state: "synced".to_owned(),
                error: None,
            }],
            rejected: Vec::new(),
            snapshot: None,
        },
        maps: vec![MapFill { map: "RULES".to_owned(), entries: 10, capacity: 100 }],
        pods: vec![pod(Holds::Governed), pod(Holds::Ungoverned)],
        policies: Vec::new(),
        denials: DenialStatus { told: 100, names: 3 },
    }
}

fn pod(holds: Holds) -> PodStatus {
    PodStatus {
        namespace: Some("shop".to_owned()),
        name: Some("web".to_owned()),
        workload: None,
        uid: "u".to_owned(),
        cgroup_id: 7,
        holds,
        own: false,
        slot: None,
        revision: None,
        policy_set: None,
        policies: Vec::new(),
        denied_packets: 0,
        audited_packets: 0,
    }
}

fn healthy() -> Facts {
    let links = ATTACHED.iter().map(|(program, _)| PinnedLink { program: (*program).to_owned(), cgroup: 42 });
    Facts {
        now: 1_800_000_000,
        release: "6.12.9-cloud".to_owned(),
        v1: Ok(Vec::new()),
        v2: Ok("/sys/fs/cgroup".into()),
        kubepods: Ok((42, "/sys/fs/cgroup/kubepods".into(), 3)),
        pin_dir: "/sys/fs/bpf/egress-agent".into(),
        bpffs: true,
        capabilities: Ok(1 << capability::BPF | 1 << capability::PERFMON | 1 << capability::NET_ADMIN),
        lockdown: Ok("none".to_owned()),
        jit: Ok(Some(1)),
        programs: Ok(Programs::Loaded),
        attached: Ok(vec![attached("egress", 2, &[])]),
        pins: Ok(Pins { other_layouts: Vec::new(), links: links.collect(), holder: Some(9) }),
        socket: "/run/egress-agent/agent.sock".into(),
        socket_exists: true,
        agent: Ok(Box::new(status())),
        exported: Ok(Exported { health: 200, beat: Some(1_799_999_998), store_failures: 0 }),
        snapshot: Ok(None),
    }
}

fn attached(at: &'static str, flags: u32, others: &[(u32, &str)]) -> Attached {
    Attached {
        cgroup: "/sys/fs/cgroup/kubepods".into(),
        is_kubepods: true,
        at,
        flags,
        others: others.iter().map(|(id, name)| (*id, Some((*name).to_owned()))).collect(),
    }
}

/// Changes the facts, and says which check then finds what.
type Case = (&'static str, Severity, &'static str, fn(&mut Facts));

fn agent_of(facts: &mut Facts) -> &mut Status {
    facts.agent.as_mut().expect("the healthy agent answers")
}

const CASES: &[Case] = &[
    ("dns", Severity::Critical, "60 of 100", |facts| {
        agent_of(facts).denials = DenialStatus { told: 100, names: 60 };
    }),
    ("agent", Severity::Critical, "no agent answers", |facts| {
        facts.agent = Err("connection refused".to_owned());
    }),
    ("agent", Severity::Critical, "not ready: capacity", |facts| {
        agent_of(facts).not_ready_because = vec!["capacity".to_owned()];
    }),
    ("agent", Severity::Critical, "not attached", |facts| agent_of(facts).enforcement.attached = false),
    ("agent", Severity::Warning, "3 times", |facts| agent_of(facts).enforcement.repairs = 3),
    ("agent", Severity::Note, "audit mode", |facts| agent_of(facts).enforcement.audit = true),
    ("agent", Severity::Warning, "nothing is pinned", |facts| agent_of(facts).enforcement.pins = None),
    ("heartbeat", Severity::Critical, "answers 503", |facts| {
        facts.exported = Ok(Exported { health: 503, ..Exported::default() });
    }),
    ("heartbeat", Severity::Warning, "2 h ago", |facts| {
        facts.exported = Ok(Exported { health: 200, beat: Some(facts.now - 7200), store_failures: 0 });
    }),
    ("heartbeat", Severity::Warning, "no memory", |facts| {
        facts.exported = Ok(Exported { health: 200, beat: None, store_failures: 4 });
    }),
    ("kernel", Severity::Critical, "5.4.0", |facts| facts.release = "5.4.0-1-generic".to_owned()),
    ("programs", Severity::Critical, "program egress", |facts| {
        facts.programs = Ok(Programs::Refused("the kernel refused program egress".to_owned()));
    }),
    ("cgroup", Severity::Critical, "cgroup v1: 1", |facts| {
        facts.v1 = Ok(vec!["cpu".to_owned()]);
        facts.v2 = Err("no cgroup v2 hierarchy is mounted".to_owned());
        facts.kubepods = Err("no cgroup v2 hierarchy is mounted".to_owned());
    }),
    ("cgroup", Severity::Critical, "a part", |facts| {
        facts.v2 = Err("/sys/fs/cgroup shows only a part".to_owned());
    }),
    ("cgroup", Severity::Critical, "hybrid", |facts| {
        facts.v1 = Ok(vec!["memory".to_owned()]);
        facts.kubepods = Err("no kubepods cgroup".to_owned());
    }),
    ("cgroup", Severity::Critical, "no kubepods", |facts| {
        facts.kubepods = Err("no kubepods cgroup".to_owned());
    }),
    ("cgroup", Severity::Warning, "hybrid", |facts| facts.v1 = Ok(vec!["cpu,cpuacct".to_owned()])),
    ("cgroup", Severity::Critical, "net_cls", |facts| {
        facts.v1 = Ok(vec!["net_cls,net_prio".to_owned()]);
        facts.release = "5.10.0".to_owned();
        facts.capabilities = Ok(u64::MAX);
    }),
    ("bpffs", Severity::Critical, "not on a bpffs", |facts| facts.bpffs = false),
    ("capabilities", Severity::Critical, "PERFMON", |facts| {
        facts.capabilities = Ok(1 << capability::BPF | 1 << capability::NET_ADMIN);
    }),
    ("capabilities", Severity::Critical, "SYS_RESOURCE", |facts| {
        facts.release = "5.10.0".to_owned();
    }),
    ("lockdown", Severity::Note, "confidentiality", |facts| {
        facts.lockdown = Ok("confidentiality".to_owned());
    }),
    ("jit", Severity::Warning, "interprets", |facts| facts.jit = Ok(Some(0))),
    ("neighbours", Severity::Critical, "permits no other", |facts| {
        facts.attached = Ok(vec![attached("egress", 0, &[(5, "cil_x")])]);
    }),
    ("neighbours", Severity::Critical, "as the only one", |facts| {
        facts.attached = Ok(vec![attached("egress", 1, &[(5, "x")])]);
    }),
    ("neighbours", Severity::Warning, "overridden", |facts| {
        facts.attached = Ok(vec![Attached { is_kubepods: false, ..attached("egress", 1, &[(5, "x")]) }]);
    }),
    ("neighbours", Severity::Note, "of Cilium (program 5)", |facts| {
        facts.attached = Ok(vec![attached("connect4", 2, &[(5, "cil_sock4_connec")])]);
    }),
    ("pins", Severity::Warning, "/v1", |facts| {
        facts.pins.as_mut().expect("they were read").other_layouts =
            vec!["/sys/fs/bpf/egress-agent/v1".to_owned()];
    }),
    ("pins", Severity::Critical, "orphaned links: egress", |facts| {
        let pins = facts.pins.as_mut().expect("they were read");
        pins.links.iter_mut().filter(|link| link.program == "egress").for_each(|link| link.cgroup = 0);
    }),
    ("pins", Severity::Critical, "no link is pinned for connect6", |facts| {
        facts.pins.as_mut().expect("they were read").links.retain(|link| link.program != "connect6");
    }),
    ("pins", Severity::Warning, "pins without an agent", |facts| {
        facts.agent = Err("gone".to_owned());
        facts.pins.as_mut().expect("they were read").holder = None;
    }),
    ("pins", Severity::Warning, "process 9", |facts| facts.agent = Err("gone".to_owned())),
    ("maps", Severity::Warning, "95 % full", |facts| agent_of(facts).maps[0].entries = 95),
    ("maps", Severity::Critical, "100 % full", |facts| agent_of(facts).maps[0].entries = 100),
    ("source", Severity::Warning, "2 days old", |facts| {
        facts.agent = Err("gone".to_owned());
        facts.snapshot = Ok(Some(("/var/lib/egress-agent/snapshot".into(), 2 * 86_400 + 5)));
    }),
    ("source", Severity::Warning, "errors: 2", |facts| {
        agent_of(facts).source =
            SourceStatus::Directory { path: "/etc/egress".to_owned(), complete: true, errors: 2 };
    }),
    ("source", Severity::Warning, "kept at yesterday", |facts| {
        api(facts).0.replace("yesterday".to_owned());
    }),
    ("source", Severity::Warning, "watch of namespaces fails", |facts| {
        api(facts).1[0].error = Some("403 Forbidden".to_owned());
    }),
    ("source", Severity::Warning, "shop/x cannot be read", |facts| {
        api(facts).2.push(RejectedObject { name: "shop/x".to_owned(), error: "no ports".to_owned() });
    }),
    ("source", Severity::Warning, "cannot be written", |facts| {
        *api(facts).3 = Some(SnapshotStatus {
            path: "/s".to_owned(),
            written: None,
            age_seconds: None,
            failures: 2,
            failing: true,
        });
    }),
    ("policies", Severity::Warning, "an earlier version is: bad", |facts| policy(facts, Version::Earlier)),
    ("policies", Severity::Critical, "never had a valid version", |facts| policy(facts, Version::Nothing)),
    ("pods", Severity::Critical, "not known to the API", |facts| {
        agent_of(facts).pods.push(PodStatus { name: None, namespace: None, ..pod(Holds::Unknown) });
    }),
    ("pods", Severity::Warning, "pass because", |facts| agent_of(facts).pods.push(pod(Holds::Unprotected))),
    ("pods", Severity::Warning, "1 pods wait", |facts| agent_of(facts).pods.push(pod(Holds::Waiting))),
];

type Api<'a> = (
    &'a mut Option<String>,
    &'a mut Vec<WatchStatus>,
    &'a mut Vec<RejectedObject>,
    &'a mut Option<SnapshotStatus>,
);

fn api(facts: &mut Facts) -> Api<'_> {
    match &mut agent_of(facts).source {
        SourceStatus::ApiServer { restored_from, watches, rejected, snapshot, .. } => {
            (restored_from, watches, rejected, snapshot)
        }
        SourceStatus::Directory { .. } => panic!("the healthy agent follows an API server"),
    }
}

fn policy(facts: &mut Facts, in_force: Version) {
    agent_of(facts).policies =
        vec![PolicyStatus { policy: "shop/p".to_owned(), in_force, findings: vec!["bad".to_owned()] }];
}

#[test]
fn a_healthy_node_has_no_findings() {
    assert_eq!(examine(&CHECKS, &healthy(), &[]).findings, []);
}

#[test]
fn each_check_finds_what_it_is_for() {
    for (check, severity, words, change) in CASES {
        let mut facts = healthy();
        change(&mut facts);
        let findings = examine(&CHECKS, &facts, &[]).findings;
        let found = findings.iter().find(|finding| {
            finding.check == *check && finding.severity == *severity && finding.what.contains(words)
        });
        let found = found.unwrap_or_else(|| panic!("{check}: {words} is not in {findings:#?}"));
        assert!(!found.shows.is_empty() && !found.fix.is_empty(), "{found:?}");
    }
    let covered = |check: &&Check<Facts>| !CASES.iter().any(|(name, ..)| *name == check.name);
    assert!(CHECKS.iter().find(covered).is_none(), "every check has a case");
}

#[test]
fn what_is_near_a_limit_is_no_finding() {
    let quiet: [fn(&mut Facts); 6] = [
        |facts| agent_of(facts).denials = DenialStatus { told: 9, names: 9 },
        |facts| agent_of(facts).denials = DenialStatus { told: 100, names: 49 },
        |facts| agent_of(facts).maps[0].entries = 89,
        |facts| agent_of(facts).maps[0] = MapFill { map: "RULES".to_owned(), entries: 0, capacity: 0 },
        |facts| facts.capabilities = Ok(1 << capability::SYS_ADMIN | 1 << capability::NET_ADMIN),
        |facts| facts.v1 = Ok(vec!["net_cls".to_owned()]),
    ];
    for (number, change) in quiet.iter().enumerate() {
        let mut facts = healthy();
        change(&mut facts);
        assert_eq!(examine(&CHECKS, &facts, &[]).findings, [], "case {number}");
    }
}

#[test]
fn the_kernels_own_words_are_read() {
    let mountinfo = "30 24 0:26 / /sys/fs/cgroup rw shared:4 - tmpfs tmpfs ro\n\
        31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct\n\
        32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup none rw,xattr,name=systemd\n\
        33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n";
    assert_eq!(v1_controllers(mountinfo), ["cpu,cpuacct"]);
    assert_eq!(effective("Name:\tx\nCapEff:\t000000c000001000\n"), Ok(0xc0_0000_1000));
    assert!(effective("Name:\tx\n").is_err());
    assert_eq!(chosen("none [integrity] confidentiality\n"), "integrity");
    assert_eq!(chosen(""), "");
    let locks =
        "1: POSIX  ADVISORY  WRITE 811 00:1a:77 0 EOF\n2: FLOCK  ADVISORY  WRITE 912 00:1a:77 0 EOF\n";
    assert_eq!(lock_holder(locks, (0, 0x1a, 77)), Some(912));
    assert_eq!(lock_holder(locks, (0, 0x1a, 78)), None);
    let scrape = "# TYPE x counter\negress_socket_store_failures_total 3\n\
        egress_clock_check_timestamp_seconds 1800000000.5\n";
    let wanted = Exported { health: 0, beat: Some(1_800_000_000), store_failures: 3 };
    assert_eq!(exported(scrape), wanted);
    assert_eq!(exported("egress_socket_store_failures_total_more 9\n"), Exported::default());
    assert_eq!(version("6.12.9-cloud"), Some((6, 12)));
    assert_eq!(version("odd"), None);
}
