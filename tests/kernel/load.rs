//! The kernel's verifier takes every program, and the loader leaves nothing behind.

use std::path::Path;

use egress_agent::kernel::{
    loader::{ATTACHED, Capacities, Datapath, LoadError, Options},
    object,
};

fn options() -> Options {
    Options { level: 1, pins: None, capacities: Capacities::default(), keep_verdicts: true }
}

#[test]
fn the_verifier_takes_every_program() {
    let object = object::embedded().expect("the tests are built with the BPF object: run `cargo xtask test`");
    let datapath = Datapath::load(object, &options()).unwrap_or_else(|error| panic!("{error}"));
    assert!([100, 250, 300, 1000].contains(&datapath.hz), "a rate kernels are built with: {}", datapath.hz);
    for program in ATTACHED.map(|(program, _)| program) {
        let info = datapath.program_info(program).unwrap_or_else(|error| panic!("{error}"));
        // `cargo xtask kernels` reads this. Kernels before 5.16 do not tell how many instructions the verifier walked.
        match info.verified_instruction_count() {
            Some(verified) => println!("verified {program} {verified}"),
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
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder is there").count(), 0, "nothing was made");
}

#[test]
fn an_object_that_is_none_is_refused() {
    let error = Datapath::load(b"not an object", &options()).expect_err("not ELF");
    assert!(matches!(error, LoadError::Object(_)), "{error}");
    assert!(Path::new("/proc/self").exists(), "and the process lives");
}
