//! The commands of docs/first-policy.md that need root, as people type them, in the cgroup of a lab.

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use egress_tests::lab::{
    Driver, Lab,
    agent::{self, Agent},
};

use super::LIMIT;
use crate::pages::{self, Page};

/// Where the page has the pods of a node.
const SHOWN: &str = "/sys/fs/cgroup/kubepods";

#[test]
fn the_first_policy_denies_as_the_page_says() {
    let page =
        pages::pages().into_iter().find(|page| page.name == "docs/first-policy.md").expect("it is there");
    let lab = Lab::new(Driver::Cgroupfs).unwrap_or_else(|error| panic!("{error:#}"));
    let kubepods = lab.kubepods().path.to_str().expect("the lab's paths are text").to_owned();
    for (name, text) in page.files() {
        let path = lab.folder.join(name);
        fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("a folder can be made");
        fs::write(path, text).expect("a file can be written");
    }
    let steps: Vec<_> = page.steps().into_iter().filter(|step| step.root).collect();
    let [set, make, run, be] = steps.as_slice() else { panic!("four commands of root: {steps:?}") };
    let typed = |command: &str| {
        let flag = format!("--kubepods-cgroup {kubepods}");
        format!("{}\n{}", set.command, command)
            .replace(SHOWN, &kubepods)
            .replace("--kubepods-cgroup kubepods", &flag)
    };
    let made = shell(&lab.folder, &typed(&make.command)).output().expect("a shell starts");
    assert!(made.status.success(), "{made:?}");

    let listen = agent::free_address().unwrap_or_else(|error| panic!("{error:#}"));
    let mut command = shell(&lab.folder, &typed(&format!("exec {}", run.command)));
    command.env("EGRESS_LISTEN", listen.to_string());
    let mut agent =
        Agent::listening(command, listen, &lab.keeper).unwrap_or_else(|error| panic!("{error:#}"));
    agent.wait_ready(LIMIT).unwrap_or_else(|error| panic!("{error:#}"));

    let denied = shell(&lab.folder, &typed(&be.command)).output().expect("a shell starts");
    let said = String::from_utf8_lossy(&denied.stderr);
    assert!(!denied.status.success() && pages::is_printed(&said, &be.prints), "it prints:\n{said}");

    let deadline = Instant::now() + LIMIT;
    let line = loop {
        if let Some(line) = agent.lines().first() {
            break line.clone();
        }
        assert!(Instant::now() < deadline, "no event is printed");
        thread::sleep(Duration::from_millis(10));
    };
    let event = |line: &str| -> serde_json::Value { serde_json::from_str(line).expect("an event is JSON") };
    let (mut seen, mut shown) = (event(&line), event(&shown(&page)));
    for event in [&mut seen, &mut shown] {
        event["time"].take();
    }
    assert_eq!(seen, shown, "but for the time, it is the event of the page");
    let ended = agent.terminate(&lab.keeper).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(ended.success(), "{ended}");
}

/// Returns the event that the page shows.
fn shown(page: &Page) -> String {
    let (blocks, _) = page.split();
    blocks.into_iter().find(|block| block.language == "json").expect("the page shows an event").text
}

/// Returns a shell that runs a line in this folder, with the agent in its `PATH`.
fn shell(folder: &Path, line: &str) -> Command {
    let binary = agent::binary().unwrap_or_else(|error| panic!("{error:#}"));
    let mut path = std::ffi::OsString::from(binary.parent().expect("it is in a folder"));
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut shell = Command::new("bash");
    shell.args(["-c", line]).current_dir(folder).env("PATH", path).env("LC_ALL", "C");
    shell
}

/// Returns the words of a line, with what is measured anew each time left out: milliseconds and points in time.
fn words(line: &str) -> Vec<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_measured = |(at, word): (usize, &&str)| {
        let is_time = word.contains('T') && word.trim_end_matches('.').ends_with('Z');
        let is_number = word.parse::<f64>().is_ok();
        is_time
            || (is_number
                && (word.contains('.') || words.get(at + 1).is_some_and(|next| next.starts_with("ms"))))
    };
    let keep = |(at, word): (usize, &&str)| {
        if is_measured((at, word)) { "…".to_owned() } else { (*word).to_owned() }
    };
    words.iter().enumerate().map(keep).collect()
}

#[test]
fn the_demo_shows_what_the_readme_says() {
    let readme = pages::pages().into_iter().find(|page| page.name == "README.md").expect("it is there");
    let (blocks, _) = readme.split();
    let of = |word: &str| {
        let found = blocks.iter().find(|block| block.language == "text" && block.text.contains(word));
        found.unwrap_or_else(|| panic!("the README shows {word}")).text.clone()
    };
    let output = Command::new(env!("CARGO_BIN_EXE_demo")).output().expect("the demo starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let mut lines = said.lines();
    for wanted in of("EXPECTED").lines().filter(|line| !line.is_empty() && *line != "…") {
        let found = lines.by_ref().any(|line| words(line) == words(wanted));
        assert!(found, "the demo says, after what stands above it: {wanted}\n{said}");
    }
    let head = of("DENIED/s");
    let head: Vec<&str> = head.lines().next().expect("it has a head").split_whitespace().collect();
    assert_eq!(head, super::top::HEAD, "what `top` writes over its columns");
}
