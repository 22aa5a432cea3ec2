//! The kernel's verifier takes every program, and the loader leaves nothing behind.

use std::{
    env, fs,
    path::Path,
    sync::{Arc, Mutex},
};

use egress_agent::kernel::{
    debug_log::DebugLog,
    loader::{ATTACHED, Capacities, Datapath, LoadError, Options, unload},
    object,
};
use egress_common::{
    config::setting,
    verdict::{Reason, Verdict},
};
use egress_tests::lab::{Driver, Lab, at, packet, v4};

fn options() -> Options {
    Options { level: 1, pins: None, capacities: Capacities::default(), keep_verdicts: true }
}

/// Most instructions the verifier may walk of a program. A kernel refuses more than 1 000 000, and the next change, or the next
/// kernel, needs room.
const MOST_WALKED: u32 = 400_000;

#[test]
fn the_verifier_takes_every_program() {
    let object = object::embedded().expect("the tests are built with the BPF object: run `cargo xtask test`");
    let datapath = Datapath::load(object, &options()).unwrap_or_else(|error| panic!("{error}"));
    assert!([100, 250, 300, 1000].contains(&datapath.hz), "a rate kernels are built with: {}", datapath.hz);
    for program in ATTACHED.map(|(program, _)| program) {
        let info = datapath.program_info(program).unwrap_or_else(|error| panic!("{error}"));
        // `cargo xtask kernels` reads this. Kernels before 5.16 do not tell how many instructions the verifier walked.
        match info.verified_instruction_count() {
            Some(verified) => {
                println!("verified {program} {verified}");
                assert!(verified <= MOST_WALKED, "{program}: the verifier walks {verified} instructions");
            }
            None => println!("verified {program} unknown"),
        }
    }
}

#[test]
fn a_pin_folder_off_bpffs_is_refused_with_what_to_do() {
    let object = object::embedded().expect("the tests are built with the BPF object: run `cargo xtask test`");
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let pins = folder.path().join("egress-agent");
    let error = Datapath::load(object, &Options { pins: Some(pins), ..options() }).expect_err("not a bpffs");
    assert!(matches!(error, LoadError::NotBpffs { .. }), "{error}");
    assert!(error.to_string().contains("mount -t bpf bpf"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).expect("the folder is there").count(), 0, "nothing was made");
}

#[test]
fn an_object_that_is_none_is_refused() {
    let error = Datapath::load(b"not an object", &options()).expect_err("not ELF");
    assert!(matches!(error, LoadError::Object(_)), "{error}");
    assert!(Path::new("/proc/self").exists(), "and the process lives");
}

/// Returns a datagram with an Ethernet header, as a test run wants it.
fn datagram() -> Vec<u8> {
    let datagram = packet::udp(at("10.244.0.5:4000"), at("192.0.2.10:53"));
    let mut bytes = vec![0; 12];
    bytes.extend([0x08, 0x00]);
    bytes.extend(packet::V4::plain(17).packet(v4("10.244.0.5"), v4("192.0.2.10"), &datagram));
    bytes
}

/// Runs on the object that `EGRESS_DEBUG_BPF_OBJECT` names, which `cargo xtask test` builds.
#[test]
fn an_object_that_logs_says_what_it_judges() {
    let Some(path) = env::var_os("EGRESS_DEBUG_BPF_OBJECT") else {
        println!("EGRESS_DEBUG_BPF_OBJECT names no object that logs, so none was tried");
        return;
    };
    let object = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", Path::new(&path).display()));
    let lab = Lab::new(Driver::Cgroupfs).unwrap_or_else(|error| panic!("{error:#}"));
    let pins = lab.bpffs().unwrap_or_else(|error| panic!("{error:#}")).join("egress-agent");
    let options = Options { level: lab.kubepods().level, pins: Some(pins.clone()), ..options() };
    // The second time over the pins of the first, whose log it does not share.
    for taken_over in [false, true] {
        let mut datapath = Datapath::load(&object, &options).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(datapath.taken_over, taken_over);
        datapath.set(setting::STRICT, 1).unwrap_or_else(|error| panic!("{error}"));
        datapath.attach(lab.kubepods()).unwrap_or_else(|error| panic!("{error}"));
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let taken = Arc::clone(&lines);
        let take = move |line: std::fmt::Arguments<'_>| {
            taken.lock().expect("no thread panics with the lock held").push(line.to_string());
        };
        let log = DebugLog::new(&mut datapath, take).unwrap_or_else(|error| panic!("{error}"));
        let mut log = log.expect("the object has a log");
        log.read();
        assert_eq!(lines.lock().expect("as above").len(), 0, "nothing was judged yet");
        datapath.run("egress", &datagram(), None, 1).unwrap_or_else(|error| panic!("{error}"));
        log.read();
        let (verdict, reason) = (Verdict::Deny as u8, Reason::UnknownPod as u8);
        let said = format!("slot 0 protocol 17 port 53: verdict {verdict} reason {reason} rule 0");
        assert_eq!(*lines.lock().expect("as above"), [said]);
    }
    unload(&pins).unwrap_or_else(|error| panic!("{error}"));
    assert!(!pins.exists(), "nothing stays behind");
}

#[test]
fn an_object_that_logs_nothing_has_no_log() {
    let object = object::embedded().expect("the tests are built with the BPF object: run `cargo xtask test`");
    let mut datapath = Datapath::load(object, &options()).unwrap_or_else(|error| panic!("{error}"));
    let log = DebugLog::new(&mut datapath, |_| ()).unwrap_or_else(|error| panic!("{error}"));
    assert!(log.is_none());
}
