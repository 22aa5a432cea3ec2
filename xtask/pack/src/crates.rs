//! Which crates a program was linked from, as cargo tells.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A crate that is in the program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Crate {
    pub(crate) name: String,
    pub(crate) version: String,
    /// An SPDX expression; empty if the crate names none.
    pub(crate) licence: String,
    /// As the crate gives them.
    pub(crate) authors: Vec<String>,
    pub(crate) repository: String,
    /// The SHA-256 of the crate as it was downloaded, from the lock file; `None` for our own.
    pub(crate) checksum: Option<String>,
    /// Where its sources are on this machine.
    pub(crate) folder: PathBuf,
    /// Places of the crates it uses, in the same list.
    pub(crate) uses: BTreeSet<usize>,
}

/// Lists what the agent is linked from for this target, itself first, then by name and version. What only runs while it is built
/// (build scripts, procedural macros) and what only tests use is not among them.
pub(crate) fn linked(root: &Path, target: &str) -> Result<Vec<Crate>> {
    let tree = cargo(
        root,
        &[
            "tree",
            "--locked",
            "--package",
            "egress-agent",
            "--edges",
            "normal,no-proc-macro",
            "--target",
            target,
        ]
        .into_iter()
        .chain(["--prefix", "depth", "--format", " {p}"])
        .collect::<Vec<_>>(),
    )?;
    let edges = parse_tree(&tree)?;
    let metadata =
        cargo(root, &["metadata", "--locked", "--format-version", "1", "--filter-platform", target])?;
    let metadata: Value = serde_json::from_str(&metadata).context("`cargo metadata` wrote no JSON")?;
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    describe(&edges, &metadata, &checksums(&lock))
}

/// Returns where the sources of a crate of the workspace's lock file are, whichever package uses it.
pub(crate) fn folder(root: &Path, name: &str) -> Result<PathBuf> {
    let metadata = cargo(root, &["metadata", "--locked", "--format-version", "1"])?;
    let metadata: Value = serde_json::from_str(&metadata).context("`cargo metadata` wrote no JSON")?;
    let packages = metadata["packages"].as_array().context("`cargo metadata` lists no packages")?;
    let found = packages.iter().find(|package| package["name"] == name);
    let manifest = found.and_then(|package| package["manifest_path"].as_str());
    let folder = manifest.and_then(|manifest| Path::new(manifest).parent());
    folder.map(Path::to_owned).with_context(|| format!("`cargo metadata` does not know {name}"))
}

type Name = (String, String);

fn cargo(root: &Path, arguments: &[&str]) -> Result<String> {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output =
        Command::new(program).args(arguments).current_dir(root).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("`cargo {}` failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).context("cargo wrote something other than text")
}

/// Reads `cargo tree --prefix depth`: who uses whom.
fn parse_tree(tree: &str) -> Result<BTreeMap<Name, BTreeSet<Name>>> {
    let mut edges: BTreeMap<Name, BTreeSet<Name>> = BTreeMap::new();
    let mut above: Vec<Name> = Vec::new();
    for line in tree.lines() {
        let parsed = || -> Option<(usize, Name)> {
            let (depth, package) = line.split_once(' ')?;
            let mut words = package.split(' ');
            let name = words.next()?.to_owned();
            let version = words.next()?.strip_prefix('v')?.to_owned();
            Some((depth.parse().ok()?, (name, version)))
        };
        let (depth, package) = parsed().with_context(|| format!("`cargo tree` wrote {line:?}"))?;
        above.truncate(depth);
        edges.entry(package.clone()).or_default();
        if let Some(user) = above.last() {
            edges.get_mut(user).expect("it was entered when it was met").insert(package.clone());
        }
        above.push(package);
    }
    Ok(edges)
}

/// Reads the checksums in a lock file.
fn checksums(lock: &str) -> BTreeMap<Name, String> {
    let value = |package: &str, key: &str| {
        let mut lines = package.lines();
        let line = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
        line.map(|text| text.trim_matches('"').to_owned())
    };
    let packages = lock.split("[[package]]\n").skip(1);
    packages
        .filter_map(|package| {
            let name = (value(package, "name")?, value(package, "version")?);
            Some((name, value(package, "checksum")?))
        })
        .collect()
}

fn describe(
    edges: &BTreeMap<Name, BTreeSet<Name>>,
    metadata: &Value,
    checksums: &BTreeMap<Name, String>,
) -> Result<Vec<Crate>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages = metadata["packages"].as_array().context("`cargo metadata` lists no packages")?;
    let by_name: BTreeMap<Name, &Value> = packages
        .iter()
        .map(|package| ((text(&package["name"]), text(&package["version"])), package))
        .collect();
    let mut names: Vec<&Name> = edges.keys().collect();
    names.sort_by_key(|(name, version)| (name != "egress-agent", name.clone(), version.clone()));
    let place: BTreeMap<&Name, usize> =
        names.iter().enumerate().map(|(place, name)| (*name, place)).collect();
    let mut crates = Vec::new();
    for name in &names {
        let package = by_name
            .get(*name)
            .with_context(|| format!("`cargo metadata` does not know {} {}", name.0, name.1))?;
        let manifest = PathBuf::from(text(&package["manifest_path"]));
        let authors = package["authors"].as_array().map(|authors| authors.iter().map(text).collect());
        crates.push(Crate {
            name: name.0.clone(),
            version: name.1.clone(),
            licence: text(&package["license"]),
            authors: authors.unwrap_or_default(),
            repository: text(&package["repository"]),
            checksum: checksums.get(*name).cloned(),
            folder: manifest.parent().context("a manifest is in a folder")?.to_owned(),
            uses: edges[*name].iter().map(|used| place[used]).collect(),
        });
    }
    Ok(crates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Name {
        (name.to_owned(), "1.0.0".to_owned())
    }

    #[test]
    fn depths_say_who_uses_whom() {
        let tree = "0 egress-agent v1.0.0 (/src)\n1 a v1.0.0\n2 b v1.0.0\n1 b v1.0.0 (*)\n1 c v1.0.0\n2 b v1.0.0 (*)\n";
        let edges = parse_tree(tree).expect("it is a tree");
        assert_eq!(edges[&name("egress-agent")], [name("a"), name("b"), name("c")].into());
        assert_eq!(edges[&name("a")], [name("b")].into());
        assert_eq!(edges[&name("c")], [name("b")].into());
        assert!(parse_tree("what\n").is_err());
    }

    #[test]
    fn what_cargo_does_not_know_is_no_crate_without_a_licence() {
        let edges = parse_tree("0 egress-agent v1.0.0\n").expect("it is a tree");
        let nothing = serde_json::json!({"packages": []});
        let error = describe(&edges, &nothing, &BTreeMap::new()).expect_err("it is not known");
        assert!(error.to_string().contains("does not know egress-agent 1.0.0"), "{error}");
    }

    #[test]
    fn this_workspace_is_listed() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("two folders up");
        let crates = linked(root, "x86_64-unknown-linux-musl").expect("cargo knows");
        assert_eq!(crates[0].name, "egress-agent");
        let named = |name: &str| crates.iter().find(|found| found.name == name);
        let aya = named("aya").expect("the agent uses it");
        assert_eq!(aya.checksum.as_ref().map(String::len), Some(64));
        assert!(aya.folder.join("Cargo.toml").is_file());
        assert!(crates[0].uses.iter().any(|place| crates[*place].name == "aya"));
        assert!(crates[0].checksum.is_none(), "our own comes from no registry");
        for absent in ["proptest", "serde_derive", "cc", "egress-ebpf"] {
            assert!(named(absent).is_none(), "{absent} is not linked in");
        }
    }
}
