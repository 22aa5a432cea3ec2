//! What can be wrong on a node.

mod gather;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use egress_common::LAYOUT_VERSION;

pub use self::gather::{Options, gather};
use super::{Check, Fact, Findings, Severity, percent, span};
use crate::{
    agent::status::{Holds, SourceStatus, Status, Version},
    kernel::loader::ATTACHED,
};

/// The part of a map in use, in percent, from which on there is something to be done.
const NEARLY_FULL: u64 = 90;
/// The part of denials that asked for names, in percent, from which on names are what is wrong.
const NAMES_DOMINATE: u64 = 50;
/// No fewer denials than this say anything.
const FEW: u64 = 10;
/// A heartbeat older than this is none, in seconds. The agent compares clocks every 5 s.
const BEAT: u64 = 60;
/// A snapshot that nobody renews is told of from this age on, in seconds.
const OLD_SNAPSHOT: u64 = 24 * 60 * 60;

/// The capabilities by number, as `linux/capability.h` has them.
mod capability {
    pub(super) const NET_ADMIN: u32 = 12;
    pub(super) const SYS_ADMIN: u32 = 21;
    pub(super) const SYS_RESOURCE: u32 = 24;
    pub(super) const PERFMON: u32 = 38;
    pub(super) const BPF: u32 = 39;
}

/// What is attached to a cgroup for one purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The cgroup.
    pub cgroup: PathBuf,
    /// Whether it is the kubepods cgroup, not one around it.
    pub is_kubepods: bool,
    /// The purpose, called as our program for it.
    pub at: &'static str,
    /// How: 0 alone and not to be overridden, 1 overridable, 2 one of several.
    pub flags: u32,
    /// Programs of others, with the name if the kernel told it.
    pub others: Vec<(u32, Option<String>)>,
}

/// A link that is pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedLink {
    /// The program's name.
    pub program: String,
    /// The id of the cgroup it is attached to; 0 once that is gone.
    pub cgroup: u64,
}

/// What is pinned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    /// The folders of other layouts.
    pub other_layouts: Vec<String>,
    /// The links of this layout.
    pub links: Vec<PinnedLink>,
    /// The process that works with the pins, if one does.
    pub holder: Option<u32>,
}

/// What the agent exports, as far as the doctor wants it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// The status of `/healthz`.
    pub health: u16,
    /// When the agent compared the clocks last, in seconds since the epoch.
    pub beat: Option<u64>,
    /// Times the kernel had no memory to keep a verdict in a socket.
    pub store_failures: u64,
}

/// How the kernel took the agent's programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Programs {
    /// It loaded each of them.
    Loaded,
    /// It refused; what it said.
    Refused(String),
}

/// Everything that was gathered. What is an error was not.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Now, in seconds since the epoch.
    pub now: u64,
    /// The kernel's release, such as `6.12.9-cloud`.
    pub release: String,
    /// The controllers of the cgroup v1 hierarchies that are mounted.
    pub v1: Fact<Vec<String>>,
    /// Whether a cgroup v2 hierarchy is mounted; what is wrong with it if not as a whole.
    pub v2: Fact<PathBuf>,
    /// The id of the kubepods cgroup, its path, and how many pods are in it.
    pub kubepods: Fact<(u64, PathBuf, usize)>,
    /// The pin folder.
    pub pin_dir: PathBuf,
    /// Whether that is on a bpffs.
    pub bpffs: bool,
    /// The effective capabilities of this process.
    pub capabilities: Fact<u64>,
    /// What `/sys/kernel/security/lockdown` says is chosen; empty where there is none.
    pub lockdown: Fact<String>,
    /// `net.core.bpf_jit_enable`; nothing where there is no such setting.
    pub jit: Fact<Option<u32>>,
    /// How the kernel took the programs.
    pub programs: Fact<Programs>,
    /// What is attached to the kubepods cgroup and those around it.
    pub attached: Fact<Vec<Attached>>,
    /// What is pinned.
    pub pins: Fact<Pins>,
    /// The runtime folder's socket.
    pub socket: PathBuf,
    /// Whether there is one.
    pub socket_exists: bool,
    /// What the agent says of itself.
    pub agent: Fact<Box<Status>>,
    /// What it exports.
    pub exported: Fact<Exported>,
    /// The age of the snapshot named by a flag, in seconds; nothing if it is not there.
    pub snapshot: Fact<Option<(PathBuf, u64)>>,
}

/// Every check of a node.
pub const CHECKS: [Check<Facts>; 16] = [
    Check { name: "dns", look: dns },
    Check { name: "agent", look: agent },
    Check { name: "heartbeat", look: heartbeat },
    Check { name: "kernel", look: kernel },
    Check { name: "programs", look: programs },
    Check { name: "cgroup", look: cgroup },
    Check { name: "bpffs", look: bpffs },
    Check { name: "capabilities", look: capabilities },
    Check { name: "lockdown", look: lockdown },
    Check { name: "jit", look: jit },
    Check { name: "neighbours", look: neighbours },
    Check { name: "pins", look: pins },
    Check { name: "maps", look: maps },
    Check { name: "source", look: source },
    Check { name: "policies", look: policies },
    Check { name: "pods", look: pods },
];

const RESTART: &str = "kubectl --namespace egress-agent rollout restart daemonset/egress-agent";
const LOGS: &str = "kubectl --namespace egress-agent logs daemonset/egress-agent --tail 50";

fn dns(facts: &Facts, found: &mut Findings) {
    let Ok(status) = &facts.agent else { return };
    let denials = status.denials;
    if denials.told < FEW || percent(denials.names, denials.told) < NAMES_DOMINATE {
        return;
    }
    found.add(
        Severity::Critical,
        format!(
            "most of what is denied asks for names: {} of {} denials the kernel told of were of port 53",
            denials.names, denials.told
        ),
        "everything looks broken: pods fail with \"no such host\" or \"temporary failure in name resolution\" before they connect to \
         anything, and no rule for the destination itself helps",
        "take `\"clusterDns\": false` out of the policies, or name the resolver that pods use: EGRESS_CLUSTER_DNS=NAMESPACE/NAME for a \
         Service, EGRESS_CLUSTER_DNS_ADDRESSES=ADDRESS for a node-local cache; `egress-agent doctor --cluster` says which of them it is",
    );
}

fn agent(facts: &Facts, found: &mut Findings) {
    let status = match &facts.agent {
        Ok(status) => status,
        Err(why) => {
            let what = match facts.socket_exists {
                true => {
                    format!(
                        "no agent answers at {}, which one has left behind: {why}",
                        facts.socket.display()
                    )
                }
                false => format!("no agent answers at {}: {why}", facts.socket.display()),
            };
            let pinned = facts.pins.as_ref().is_ok_and(|pins| !pins.links.is_empty());
            found.add(
                Severity::Critical,
                what,
                match pinned {
                    true => "what is pinned goes on enforcing; changes of policies are not followed, and pods that start are unknown",
                    false => "nothing is pinned either, so no pod is governed",
                },
                format!("{RESTART}; or pass the agent's own --runtime-dir"),
            );
            return;
        }
    };
    for reason in &status.not_ready_because {
        found.add(
            Severity::Critical,
            format!("the agent is not ready: {reason}"),
            "not everything that is wanted is in force; pods keep what they had",
            LOGS,
        );
    }
    if !status.enforcement.attached {
        found.add(
            Severity::Critical,
            format!("the programs are not attached to {}", status.enforcement.kubepods),
            "no pod is governed until they are",
            LOGS,
        );
    }
    if status.enforcement.repairs > 0 {
        found.add(
            Severity::Warning,
            format!("the agent had to put programs or pins back {} times", status.enforcement.repairs),
            "in between, pods were not governed by what was detached; something on this node detaches programs or cleans up the bpffs",
            format!("{LOGS} | grep -i attach"),
        );
    }
    if status.enforcement.audit {
        found.add(
            Severity::Note,
            "the agent takes every policy as one in audit mode",
            "nothing is denied by a policy; what would be is counted and reported",
            "start the agent without --audit (EGRESS_AUDIT) to enforce",
        );
    }
    if status.enforcement.pins.is_none() {
        found.add(
            Severity::Warning,
            "nothing is pinned: enforcement ends with the agent",
            "while the agent restarts, every pod passes",
            "start the agent without --no-pin (EGRESS_NO_PIN)",
        );
    }
}

fn heartbeat(facts: &Facts, found: &mut Findings) {
    let Ok(exported) = &facts.exported else { return };
    if exported.health != 200 {
        found.add(
            Severity::Critical,
            format!("the agent's loop does not turn: /healthz answers {}", exported.health),
            "changes of policies are not followed",
            RESTART,
        );
    }
    if let Some(beat) = exported.beat
        && facts.now.saturating_sub(beat) > BEAT
    {
        found.add(
            Severity::Warning,
            format!("the clocks were compared {} ago", span(facts.now - beat)),
            "exceptions may end early or late by as much as the wall clock was set meanwhile",
            RESTART,
        );
    }
    if exported.store_failures > 0 {
        found.add(
            Severity::Warning,
            format!("the kernel had no memory for a socket's verdict {} times", exported.store_failures),
            "new connections were refused with the reason not_remembered",
            "raise the memory limit of the pods concerned, or free memory on the node",
        );
    }
}

/// Returns the first two numbers of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn kernel(facts: &Facts, found: &mut Findings) {
    if version(&facts.release).is_some_and(|version| version < (5, 10)) {
        found.add(
            Severity::Critical,
            format!("the kernel is {}; the programs need 5.10 or newer", facts.release),
            "the agent does not start",
            "move the node to an image with a newer kernel; docs/kernels.md has those that were tested",
        );
    }
}

fn programs(facts: &Facts, found: &mut Findings) {
    if let Ok(Programs::Refused(why)) = &facts.programs {
        found.add(
            Severity::Critical,
            format!("the kernel does not load the agent's programs: {why}"),
            "an agent that starts here fails; programs of one before stay in force",
            "see docs/kernels.md for what is needed; `egress-agent agent --bpf-object FILE` tries another object",
        );
    }
}

fn cgroup(facts: &Facts, found: &mut Findings) {
    let governs = "no pod can be governed on this node";
    let boot = "boot the node with systemd.unified_cgroup_hierarchy=1";
    let v1 = facts.v1.as_deref().unwrap_or_default();
    let on_v1 = v1.iter().any(|one| one.split(',').any(|name| ["cpu", "memory", "pids"].contains(&name)));
    match (&facts.v2, &facts.kubepods) {
        (Err(why), _) if !v1.is_empty() => {
            found.add(
                Severity::Critical,
                format!("cgroup v1: {} v1 hierarchies are mounted, and {why}", v1.len()),
                governs,
                boot,
            );
        }
        (Err(why), _) => found.add(
            Severity::Critical,
            why.clone(),
            governs,
            "mount the node's /sys/fs/cgroup into the agent's container",
        ),
        (Ok(_), Err(why)) if on_v1 => found.add(
            Severity::Critical,
            format!("hybrid cgroups: v2 is mounted beside v1 hierarchies that kubelet uses, and {why}"),
            governs,
            boot,
        ),
        (Ok(_), Err(why)) => found.add(
            Severity::Critical,
            why.clone(),
            governs,
            "name the cgroup that holds the pods' with --kubepods-cgroup (EGRESS_KUBEPODS_CGROUP)",
        ),
        (Ok(mount), Ok(_)) => {
            if on_v1 {
                found.add(
                    Severity::Warning,
                    format!("hybrid cgroups: v2 is at {}, beside v1 hierarchies", mount.display()),
                    "pods are governed only if the runtime puts their processes into the v2 hierarchy too",
                    boot,
                );
            }
            // Linux 8520e224f547: until 5.15 a socket carried either its v2 cgroup or a v1 class, and lost the first for the second.
            let classes =
                v1.iter().any(|one| one.split(',').any(|name| ["net_cls", "net_prio"].contains(&name)));
            if classes && version(&facts.release).is_some_and(|version| version < (5, 15)) {
                found.add(
                    Severity::Critical,
                    "net_cls or net_prio of cgroup v1 is mounted, on a kernel before 5.15",
                    "once one of them is used, sockets no longer carry their v2 cgroup, and their packets pass unjudged",
                    format!("{boot}, or move to a kernel from 5.15 on"),
                );
            }
        }
    }
}

fn bpffs(facts: &Facts, found: &mut Findings) {
    if facts.bpffs {
        return;
    }
    let mount = facts.pin_dir.parent().unwrap_or(&facts.pin_dir).display();
    found.add(
        Severity::Critical,
        format!("{} is not on a bpffs", facts.pin_dir.display()),
        "nothing can be pinned, so the agent does not start, or enforcement ends with it",
        format!("mount -t bpf bpf {mount}"),
    );
}

fn capabilities(facts: &Facts, found: &mut Findings) {
    let Ok(held) = facts.capabilities else { return };
    let has = |capability: u32| held & 1 << capability != 0;
    let version = version(&facts.release).unwrap_or((u32::MAX, 0));
    let mut missing = Vec::new();
    if version >= (5, 8) {
        for (number, name) in [(capability::BPF, "BPF"), (capability::PERFMON, "PERFMON")] {
            if !has(number) && !has(capability::SYS_ADMIN) {
                missing.push(name);
            }
        }
    }
    if !has(capability::NET_ADMIN) {
        missing.push("NET_ADMIN");
    }
    if version < (5, 11) && !has(capability::SYS_RESOURCE) {
        missing.push("SYS_RESOURCE");
    }
    if !missing.is_empty() {
        found.add(
            Severity::Critical,
            format!("this process lacks the capabilities {}", missing.join(", ")),
            "an agent with the same ones does not start",
            "ask as root, or in the agent's pod; securityContext.capabilities.add in deploy/base/daemonset.yaml has what it needs",
        );
    }
}

fn lockdown(facts: &Facts, found: &mut Findings) {
    if let Ok(mode) = &facts.lockdown
        && mode == "confidentiality"
    {
        found.add(
            Severity::Note,
            "the kernel is locked down for confidentiality",
            "programs may not read kernel memory; the agent's do not, and are loaded all the same",
            "nothing has to be done",
        );
    }
}

fn jit(facts: &Facts, found: &mut Findings) {
    if let Ok(Some(0)) = facts.jit {
        found.add(
            Severity::Warning,
            "the kernel interprets BPF programs instead of compiling them",
            "each packet of a pod costs many times as much",
            "sysctl -w net.core.bpf_jit_enable=1",
        );
    }
}

/// Whose programs begin with what.
const KNOWN: [(&str, &str); 5] = [
    ("cil_", "Cilium"),
    ("sd_", "systemd"),
    ("cali_", "Calico"),
    ("calico_", "Calico"),
    ("tetragon_", "Tetragon"),
];

fn neighbours(facts: &Facts, found: &mut Findings) {
    for Attached { cgroup, is_kubepods, at, flags, others } in facts.attached.as_deref().unwrap_or_default() {
        if others.is_empty() {
            continue;
        }
        let names: Vec<String> = others
            .iter()
            .map(|(id, name)| match name {
                None => format!("program {id}"),
                Some(name) => match KNOWN.iter().find(|(begin, _)| name.starts_with(begin)) {
                    Some((_, who)) => format!("{name} of {who} (program {id})"),
                    None => format!("{name} (program {id})"),
                },
            })
            .collect();
        let (names, cgroup) = (names.join(", "), cgroup.display());
        let show = "bpftool cgroup tree /sys/fs/cgroup";
        match flags {
            0 => found.add(
                Severity::Critical,
                format!("{names} is attached to {cgroup} for {at} and permits no other"),
                "the kernel refuses the agent's program, and the agent does not start",
                format!("have its owner attach it with BPF_F_ALLOW_MULTI; {show} shows it"),
            ),
            1 if *is_kubepods => found.add(
                Severity::Critical,
                format!("{names} is attached to {cgroup} for {at} as the only one"),
                "the kernel refuses the agent's program beside it, and the agent does not start",
                format!("have its owner attach it with BPF_F_ALLOW_MULTI; {show} shows it"),
            ),
            1 => found.add(
                Severity::Warning,
                format!("{names} is attached to {cgroup} for {at}, and is overridden below it"),
                "with the agent's program in place it no longer runs for pods",
                format!("have its owner attach it with BPF_F_ALLOW_MULTI; {show} shows it"),
            ),
            _ => {
                let rewrites = at.starts_with("connect") || at.starts_with("sendmsg");
                let shows = match rewrites {
                    true => {
                        "if it rewrites addresses, the agent judges both what the pod asked for and what comes of it; where it is a \
                         service mesh's, EGRESS_CONNECT_HOOKS=off leaves the judgement to the packets"
                    }
                    false => "both run, and a packet passes only if neither refuses it",
                };
                found.add(
                    Severity::Note,
                    format!("{names} is attached to {cgroup} for {at} as well"),
                    shows,
                    "nothing has to be done",
                );
            }
        }
    }
}

fn pins(facts: &Facts, found: &mut Findings) {
    let Ok(pins) = &facts.pins else { return };
    for layout in &pins.other_layouts {
        found.add(
            Severity::Warning,
            format!("pins of another version are left in {layout}, beside v{LAYOUT_VERSION}"),
            "programs of both versions run, and what either refuses is refused; an agent removes the other's once its own are attached",
            "start the agent, or, with none running, `egress-agent unload` removes both, and enforcement ends",
        );
    }
    if pins.links.is_empty() {
        return;
    }
    if let Ok((id, path, _)) = &facts.kubepods {
        let strays: Vec<&str> =
            pins.links.iter().filter(|link| link.cgroup != *id).map(|link| link.program.as_str()).collect();
        if !strays.is_empty() {
            found.add(
                Severity::Critical,
                format!(
                    "orphaned links: {} lead to another cgroup than {}",
                    strays.join(", "),
                    path.display()
                ),
                "pods pass what these programs would have judged",
                RESTART,
            );
        }
    }
    let missing: Vec<&str> = ATTACHED
        .iter()
        .map(|(program, _)| *program)
        .filter(|program| !pins.links.iter().any(|link| link.program == *program))
        .collect();
    if !missing.is_empty() {
        found.add(
            Severity::Critical,
            format!("no link is pinned for {}", missing.join(", ")),
            "when the agent ends, what these programs judge passes",
            RESTART,
        );
    }
    if facts.agent.is_err() && pins.holder.is_none() {
        found.add(
            Severity::Warning,
            format!(
                "pins without an agent: {} has links, and no process works with them",
                facts.pin_dir.display()
            ),
            "the policies of then are enforced for the pods of then, and no others",
            "start the agent; or `egress-agent unload`, and enforcement ends",
        );
    }
    if let (Err(_), Some(holder)) = (&facts.agent, pins.holder) {
        found.add(
            Severity::Warning,
            format!("process {holder} works with the pins, and answers at no socket here"),
            "another agent cannot start on these pins",
            format!("pass that agent's --runtime-dir, or end it: kill {holder}"),
        );
    }
}

fn maps(facts: &Facts, found: &mut Findings) {
    let Ok(status) = &facts.agent else { return };
    for map in &status.maps {
        let used = percent(map.entries, map.capacity);
        if map.entries == 0 || used < NEARLY_FULL {
            continue;
        }
        let flag = match map.map.as_str() {
            "EXACT" | "PREFIXES" => "EGRESS_MAX_ADDRESSES",
            "RULES" => "EGRESS_MAX_RULES",
            "RULE_COUNTERS" => "EGRESS_MAX_DESTINATIONS",
            _ => "EGRESS_MAX_PODS",
        };
        found.add(
            if map.entries >= map.capacity { Severity::Critical } else { Severity::Warning },
            format!("map {} is {used} % full: {} of {} entries", map.map, map.entries, map.capacity),
            "a policy that does not fit is not put into force; its pods keep what they had",
            format!("raise {flag}; sizes change with `egress-agent unload` and a new start only, and nothing is enforced in between"),
        );
    }
}

fn source(facts: &Facts, found: &mut Findings) {
    if let (Err(_), Ok(Some((path, age)))) = (&facts.agent, &facts.snapshot)
        && *age > OLD_SNAPSHOT
    {
        found.add(
            Severity::Warning,
            format!("the snapshot {} is {} old", path.display(), span(*age)),
            "an agent that starts without an API server begins with the policies and pods of then",
            RESTART,
        );
    }
    let Ok(status) = &facts.agent else { return };
    match &status.source {
        SourceStatus::Directory { errors: 0, .. } => {}
        SourceStatus::Directory { path, errors, .. } => found.add(
            Severity::Warning,
            format!("the manifests in {path} have errors: {errors}"),
            "what they said before stays in force",
            format!("egress-agent validate {path}"),
        ),
        SourceStatus::ApiServer { restored_from, watches, rejected, snapshot, .. } => {
            if let Some(written) = restored_from {
                found.add(
                    Severity::Warning,
                    format!("the API server was not heard in full; the state in force is the one kept at {written}"),
                    "policies and pods that came since are not known",
                    "kubectl get --raw /readyz; and see what the network between node and API server does",
                );
            }
            for watch in watches {
                let Some(error) = &watch.error else { continue };
                let forbidden = error.contains("403") || error.to_lowercase().contains("forbidden");
                found.add(
                    Severity::Warning,
                    format!("the watch of {} fails: {error}", watch.subject),
                    "changes of these are not followed",
                    match forbidden {
                        true => "kubectl apply -k deploy/base (its ClusterRole has the rights that are missing)",
                        false => "kubectl get --raw /readyz; and see what the network between node and API server does",
                    },
                );
            }
            for object in rejected {
                found.add(
                    Severity::Warning,
                    format!("the object {} cannot be read: {}", object.name, object.error),
                    "its last readable version holds",
                    "mend the object; the message says where",
                );
            }
            if let Some(snapshot) = snapshot
                && snapshot.failing
            {
                found.add(
                    Severity::Warning,
                    format!("the snapshot {} cannot be written ({} times)", snapshot.path, snapshot.failures),
                    "an agent that starts without an API server begins with an older state, or none",
                    "make room on the disk of /var/lib/egress-agent, and let the agent's user write there",
                );
            }
        }
    }
}

fn policies(facts: &Facts, found: &mut Findings) {
    let Ok(status) = &facts.agent else { return };
    for policy in &status.policies {
        let (severity, what) = match policy.in_force {
            Version::Current => continue,
            Version::Earlier => {
                (Severity::Warning, "is not in force as it is written; an earlier version is")
            }
            Version::Nothing => (Severity::Critical, "never had a valid version"),
        };
        let why = policy.findings.first().map_or("no reason is told", String::as_str);
        let shows = match policy.in_force {
            Version::Nothing => "its namespace is denied by default, cluster DNS excepted",
            Version::Current | Version::Earlier => "changes to it have no effect",
        };
        let (namespace, name) = policy.policy.split_once('/').unwrap_or(("", &policy.policy));
        found.add(
            severity,
            format!("policy {} {what}: {why}", policy.policy),
            shows,
            format!("kubectl edit configmap --namespace {namespace} {name}; `egress-agent validate FILE` says the same offline"),
        );
    }
}

fn pods(facts: &Facts, found: &mut Findings) {
    let Ok(status) = &facts.agent else { return };
    let those = |holds: Holds| -> Vec<String> {
        let held = status.pods.iter().filter(|pod| pod.holds == holds && !pod.own);
        held.map(|pod| match (&pod.namespace, &pod.name) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            _ => pod.uid.clone(),
        })
        .collect()
    };
    let few = |pods: &[String]| match pods.len() {
        0..=5 => pods.join(", "),
        count => format!("{} and {} more", pods[..5].join(", "), count - 5),
    };
    let unknown = those(Holds::Unknown);
    if !unknown.is_empty() {
        let strict = status.enforcement.pod_start == "strict";
        found.add(
            if strict { Severity::Critical } else { Severity::Warning },
            format!("{} pods have a cgroup and are not known to the API: {}", unknown.len(), few(&unknown)),
            match strict {
                true => "everything they send is denied (unknown_pod), names included",
                false => "everything they send passes, and is counted as unprotected",
            },
            "kubectl get pods --all-namespaces --field-selector spec.nodeName=NODE; if they are not there, their cgroups are what a \
             container runtime has left behind",
        );
    }
    let unprotected = those(Holds::Unprotected);
    if !unprotected.is_empty() {
        found.add(
            Severity::Warning,
            format!(
                "{} pods pass because their policies are not known yet: {}",
                unprotected.len(),
                few(&unprotected)
            ),
            "they are not governed",
            LOGS,
        );
    }
    let waiting = those(Holds::Waiting);
    if !waiting.is_empty() {
        found.add(
            Severity::Warning,
            format!("{} pods wait for what their policies name: {}", waiting.len(), few(&waiting)),
            "they keep what they had",
            "egress-agent status (its remarks say what is waited for)",
        );
    }
}
