//! The krew manifest: once a release has filled it in, krew takes it.
//!
//! The rules are those of krew's own validation, and of its index for what it adds to them:
//! <https://github.com/kubernetes-sigs/krew/blob/master/internal/index/validation/validate.go>,
//! <https://krew.sigs.k8s.io/docs/developer-guide/plugin-manifest/>

use std::{fs, path::Path};

use egress_agent::cli::plugin;
use regex::Regex;
use serde_json::Value;

const FILE: &str = "../deploy/krew/egress.yaml";
const VERSION: &str = "0.1.0";
const BASE: &str = "https://downloads.example.com/v0.1.0";

fn template() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE)).expect("the template is there")
}

/// Fills the template in as a release does.
fn filled(template: &str) -> String {
    [
        ("@VERSION@", VERSION),
        ("@BASE_URL@", BASE),
        ("@SHA256_AMD64@", &"a1".repeat(32)),
        ("@SHA256_ARM64@", &"b2".repeat(32)),
    ]
    .iter()
    .fold(template.to_owned(), |text, (place, value)| {
        assert!(text.contains(place), "the template has {place}");
        text.replace(place, value)
    })
}

/// Returns what krew has against a manifest in a file of this name.
fn faults(stem: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut say = |fine: bool, what: &str| {
        if !fine {
            faults.push(what.to_owned());
        }
    };
    let fits = |pattern: &str, text: &str| Regex::new(pattern).expect("a pattern").is_match(text);
    let manifest: Value = match serde_saphyr::from_str(text) {
        Ok(manifest) => manifest,
        Err(error) => return vec![error.to_string()],
    };
    let spec = &manifest["spec"];
    let of = |value: &Value| value.as_str().unwrap_or("").to_owned();
    say(of(&manifest["apiVersion"]) == "krew.googlecontainertools.github.com/v1alpha2", "apiVersion");
    say(of(&manifest["kind"]) == "Plugin", "kind");
    let name = of(&manifest["metadata"]["name"]);
    say(fits(r"^[\w-]+$", &name) && name == stem, "the name is that of the file");
    // The index takes small letters and dashes only.
    say(fits(r"^[a-z]([a-z-]*[a-z])?$", &name), "the name is one for the index");
    let short = of(&spec["shortDescription"]);
    say(
        !short.is_empty() && !short.contains(['\r', '\n']) && short.chars().count() <= 50,
        "shortDescription",
    );
    say(fits(r"^v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$", &of(&spec["version"])), "version");
    say(of(&spec["homepage"]).starts_with("https://"), "homepage");
    let platforms = spec["platforms"].as_array().cloned().unwrap_or_default();
    say(!platforms.is_empty(), "platforms");
    let mut seen = Vec::new();
    for platform in &platforms {
        let labels = platform["selector"]["matchLabels"].as_object().cloned().unwrap_or_default();
        say(
            !labels.is_empty() && labels.keys().all(|key| ["os", "arch"].contains(&key.as_str())),
            "selector",
        );
        let (os, arch) = (
            of(&platform["selector"]["matchLabels"]["os"]),
            of(&platform["selector"]["matchLabels"]["arch"]),
        );
        let uri = of(&platform["uri"]);
        say(uri == format!("{BASE}/kubectl-egress_{VERSION}_{os}_{arch}.tar.gz"), "uri");
        let sum = of(&platform["sha256"]);
        say(fits("^[a-f0-9]{64}$", &sum), "sha256");
        let files = platform["files"].as_array().cloned().unwrap_or_default();
        say(files.iter().all(|file| !of(&file["from"]).is_empty() && !of(&file["to"]).is_empty()), "files");
        let taken: Vec<String> = files.iter().map(|file| of(&file["from"])).collect();
        let bin = of(&platform["bin"]);
        say(!bin.is_empty() && taken.contains(&bin), "bin is one of the files");
        say(taken.contains(&"LICENSE".to_owned()), "the index wants a licence in the archive");
        seen.push((os, arch, sum));
    }
    seen.sort();
    let before = seen.len();
    seen.dedup_by(|one, other| (&one.0, &one.1) == (&other.0, &other.1) || one.2 == other.2);
    say(seen.len() == before, "each platform is there once, with a sum of its own");
    faults
}

#[test]
fn krew_takes_the_manifest_that_a_release_fills_in() {
    let text = filled(&template());
    assert_eq!(faults("egress", &text), [""; 0]);
    assert!(
        !Regex::new("@[A-Z0-9_]+@").expect("a pattern").is_match(&text),
        "a place was not filled in: {text}"
    );
    let manifest: Value = serde_saphyr::from_str(&text).expect("it is YAML");
    let platforms: Vec<String> = manifest["spec"]["platforms"]
        .as_array()
        .expect("it has platforms")
        .iter()
        .map(|platform| {
            let label =
                |name: &str| platform["selector"]["matchLabels"][name].as_str().expect("a label").to_owned();
            format!("{}/{}", label("os"), label("arch"))
        })
        .collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
}

#[test]
fn krew_calls_the_plugin_by_a_name_that_it_knows() {
    let manifest: Value = serde_saphyr::from_str(&filled(&template())).expect("it is YAML");
    let name = manifest["metadata"]["name"].as_str().expect("it has a name");
    // Krew links what the archive has to this, with underscores for dashes.
    let link = format!("kubectl-{}", name.replace('-', "_"));
    assert!(plugin::is_called(Some(link.as_ref())), "{link}");
}

#[test]
fn what_krew_would_refuse_is_found() {
    let good = filled(&template());
    for (from, to, fault) in [
        ("name: egress\n", "name: egress agent\n", "the name is that of the file"),
        ("version: v0", "version: 0", "version"),
        ("shortDescription: Ask", "shortDescription: Please be so kind as to ask", "shortDescription"),
        ("{os: linux, arch: arm64}", "{os: linux, machine: arm64}", "selector"),
        (
            "{os: linux, arch: arm64}",
            "{os: linux, arch: amd64}",
            "each platform is there once, with a sum of its own",
        ),
        ("a1a1", "A1A1", "sha256"),
        ("bin: kubectl-egress", "bin: egress-agent", "bin is one of the files"),
        ("- {from: LICENSE, to: .}", "- {from: LICENSE}", "files"),
        ("_linux_arm64.tar.gz", "_linux_arm64.zip", "uri"),
    ] {
        assert!(good.contains(from), "{from}");
        let found = faults("egress", &good.replace(from, to));
        assert!(found.iter().any(|one| one == fault), "{from} to {to}: {found:?}");
    }
}
