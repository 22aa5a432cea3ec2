//! The shipped rules, in the program.

use std::path::PathBuf;

use super::files::{self, Folder, Module};

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../deploy/policies/rego/", $name)))),*]
    };
}

/// The `.rego` files of `deploy/policies/rego`, each with its name.
pub const MODULES: &[(&str, &str)] = shipped![
    "addresses.rego",
    "addresses_test.rego",
    "catalogue.rego",
    "destinations.rego",
    "destinations_test.rego",
    "governance.rego",
    "governance_test.rego",
    "lib.rego",
    "lib_test.rego",
    "policy.rego",
    "policy_test.rego",
];

/// `deploy/policies/rego/data.yaml`.
pub const DATA: &str = include_str!("../../../deploy/policies/rego/data.yaml");

/// Returns all of it.
pub(super) fn folder() -> Folder {
    let modules = MODULES.iter().map(|(name, text)| Module {
        path: format!("deploy/policies/rego/{name}"),
        text: (*text).to_owned(),
    });
    Folder {
        path: PathBuf::from("deploy/policies/rego"),
        modules: modules.collect(),
        data: files::data_from(DATA).expect("a test reads the shipped data"),
    }
}
