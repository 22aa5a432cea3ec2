//! Agents that end, are replaced, are cleaned up after, and lose their programs.

use std::{io, os::fd::AsRawFd as _, thread, time::Duration};

use egress_agent::kernel::{bpf, loader};
use egress_tests::lab::{
    api::Server,
    at,
    wire::{Outcome, Request},
};
use serde_json::json;

use crate::scene::{BAD, GOOD, Scene, allow, cidr, good, of, until, wait, watch};

/// SIGTERM leaves everything in force; the next agent takes over under traffic; one that cleans up ends it.
pub(crate) fn upgrade(server: &Server, name: &str) {
    let scene = Scene::new(server, name);
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    scene.policy("policy", &allow(&[cidr("good", "192.0.2.0/24")]));
    let agent = scene.run(&[]);
    let open = pod.connect(at(GOOD));
    let pump = pod.ask(&Request::Pump { id: open.id, micros: 500 }).id;
    let seen = watch(&pod, &["192.0.2.10:9", "198.51.100.7:9"]);
    // One that starts too early finds the pins taken, and changes nothing.
    let early = scene.spawn(&[]);
    until("the early one gives up", || early.log().contains("another agent"));
    drop(early);
    scene.terminate(agent);
    thread::sleep(Duration::from_millis(200));
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::NotPermitted, "SIGTERM leaves enforcement");
    let agent = scene.run(&[]);
    assert!(agent.log().contains("taken_over=true"), "{}", agent.log());
    scene.kill(agent);
    let agent = scene.run(&["--cleanup-on-exit"]);
    thread::sleep(Duration::from_millis(200));
    let seen = pod.close(seen);
    assert_eq!(of(&seen, 0), [Outcome::Ok], "what is allowed never failed: {seen:?}");
    assert_eq!(of(&seen, 1), [Outcome::NotPermitted], "what is denied never passed: {seen:?}");
    let pumped = pod.close(pump);
    assert_eq!(pumped.counts.len(), 1, "the connection never broke: {pumped:?}");
    assert!(pumped.count(Outcome::Ok) > 20, "{pumped:?}");
    scene.terminate(agent);
    assert!(!scene.pins.exists(), "nothing is pinned any more");
    wait(&pod, BAD, Outcome::Ok);
    scene.clean();
}

/// Somebody detaches a program and takes a pin away; the agent notices, mends it, and counts.
pub(crate) fn detached(server: &Server, name: &str) {
    let scene = Scene::new(server, name);
    let pod = scene.pod("web", &json!({ "app": "web" }), "10.244.0.5");
    scene.policy("policy", &allow(&[cidr("good", "192.0.2.0/24")]));
    let agent = scene.run(&[]);
    assert_eq!(agent.sum("egress_datapath_repairs_total", &[]), 0.0);
    let links = loader::layout_folder(&scene.pins).join("links");
    let links: Vec<_> = std::fs::read_dir(&links)
        .expect("links are pinned")
        .map(|entry| entry.expect("the folder can be read").path())
        .collect();
    assert!(links.len() >= 4, "{links:?}");
    for link in &links {
        let link = bpf::get(link).expect("it is pinned");
        detach(link.as_raw_fd()).expect("links can be detached");
    }
    assert_eq!(pod.connect(at(BAD)).outcome, Outcome::Ok, "nothing is attached");
    let open = pod.connect(at(BAD));
    wait(&pod, BAD, Outcome::NotPermitted);
    crate::scene::is_cut(&pod, open.id);
    #[expect(clippy::cast_precision_loss, reason = "there are a handful of links")]
    let wanted = links.len() as f64;
    until("the repairs are counted", || agent.sum("egress_datapath_repairs_total", &[]) >= wanted);
    assert_eq!(agent.says("programs were detached"), 1, "{}", agent.log());
    // A pin alone is put back, too.
    std::fs::remove_file(&links[0]).expect("a pin can be removed");
    until("the pin is back", || links[0].exists());
    assert_eq!(pod.connect(at(GOOD)).outcome, Outcome::Ok);
    good(agent.metrics());
    drop(agent);
    scene.clean();
}

/// Has the kernel detach a link, as `bpftool link detach` does.
fn detach(link: i32) -> io::Result<()> {
    const LINK_DETACH: libc::c_int = 34;
    let attr = link.cast_unsigned();
    // SAFETY: for this command the kernel reads a descriptor's number, four bytes that live as long as the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, LINK_DETACH, &raw const attr, size_of_val(&attr)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
