//! Policy documents and what is said about them, for every door they come in by.
//!
//! A case is `policies/NAME.json`, perhaps the text it takes the place of in `NAME.old.json`, and `NAME.expected`: what is not as usual,
//! a line for each (`profile: required`, or `clock: fixed` where the words depend on the day), then the findings in the order of the text, a
//! line for each.

use std::{fs, path::PathBuf};

/// The second at which the cases are judged: noon of 2026-11-22, UTC.
pub const NOW: u64 = 1_795_348_800;

/// What the cases are judged by, in the form of a file with rules. The profile is the case's own.
pub const RULES: &str = include_str!("rules.yaml");

/// A document and what is said about it.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name, which can be that of a ConfigMap.
    pub name: String,
    /// The text under `policy.json`.
    pub text: String,
    /// The text it takes the place of.
    pub old: Option<String>,
    /// The word for the profile of governance.
    pub profile: String,
    /// Whether what is said depends on the day.
    pub fixed_clock: bool,
    /// The findings: severity and sentence, such as `error: Missing field: name (…)`.
    pub expected: Vec<String>,
}

/// Returns all cases in the order of their names.
pub fn cases() -> Vec<Case> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus/policies");
    let mut names: Vec<String> = fs::read_dir(&folder)
        .expect("the corpus is there")
        .filter_map(|file| {
            let name = file.expect("the folder can be read").file_name().into_string().expect("plain names");
            name.strip_suffix(".expected").map(str::to_owned)
        })
        .collect();
    names.sort_unstable();
    let read = |file: String| {
        fs::read_to_string(folder.join(&file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    };
    let case = |name: String| {
        let mut case = Case {
            text: read(format!("{name}.json")),
            old: folder.join(format!("{name}.old.json")).exists().then(|| read(format!("{name}.old.json"))),
            profile: "off".into(),
            fixed_clock: false,
            expected: Vec::new(),
            name: name.clone(),
        };
        for line in read(format!("{name}.expected")).lines() {
            match line.split_once(": ") {
                Some(("profile", profile)) => case.profile = profile.into(),
                Some(("clock", "fixed")) => case.fixed_clock = true,
                Some(("error" | "warning", _)) => case.expected.push(line.to_owned()),
                _ => panic!("{name}.expected says {line}"),
            }
        }
        case
    };
    names.into_iter().map(case).collect()
}
