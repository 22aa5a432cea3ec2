//! Packs built programs, reproducibly: the same programs, sources and time give the same bytes, on any machine.
//!
//! `cargo xtask image` builds the programs and calls this one; see [`Arguments`] for what it takes. In the output folder it leaves
//!
//! - `oci/`: an [OCI image layout](https://github.com/opencontainers/image-spec/blob/main/image-layout.md) with one image for each
//!   architecture, and the bill of materials of each as a referrer
//! - `NAME-VERSION.tar`: the same as one file, without the bills of materials
//! - `NAME-VERSION-linux-ARCH.cdx.json`: the bills of materials, CycloneDX 1.6
//! - `kubectl-egress_VERSION_linux_ARCH.tar.gz`: the program as a plugin of kubectl
//! - `SHA256SUMS` of these files
//! - with `--download`, `egress.yaml`: the plugin's manifest for krew
//! - with `--unpacked`, `rootfs/ARCH/`: what a container sees as `/`

mod crates;
mod files;
mod oci;
mod program;
mod sbom;
mod third_party;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::files::{Entry, Tree};
use crate::program::Architecture;

/// What the plugin of kubectl is called.
const PLUGIN: &str = "kubectl-egress";
/// What the list of certificate authorities goes by.
const AUTHORITIES: &str = "Mozilla's certificate authorities";
/// The template of the plugin's manifest for krew.
const KREW: &str = "deploy/krew/egress.yaml";
/// Where a container's own documents are, without the leading slash.
const DOCUMENTS: &str = "usr/share/doc/egress-agent";

/// Pack built programs: an OCI image, archives of the kubectl plugin, bills of materials
#[derive(Parser)]
struct Arguments {
    /// The checkout the programs were built from
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// A static program: `amd64=PATH` or `arm64=PATH`; may be given for each architecture
    #[arg(long = "program", value_name = "ARCH=PATH", required = true, value_parser = program_path)]
    programs: Vec<(Architecture, PathBuf)>,
    /// Where the results go; what stands there from another run is replaced
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The image's name, with or without a registry
    #[arg(long, default_value = "egress-agent")]
    name: String,
    /// The image's tag and the version in its labels
    #[arg(long)]
    version: String,
    /// What the programs were built from: a commit
    #[arg(long)]
    revision: String,
    /// The time of the sources, in seconds since 1970: nothing in the output is younger
    #[arg(long, value_name = "SECONDS")]
    created: u64,
    /// Where the sources can be had
    #[arg(long, value_name = "URL")]
    source: Option<String>,
    /// The address below which the archives will be; writes the plugin's manifest for krew
    #[arg(long, value_name = "URL")]
    download: Option<String>,
    /// A text that must come along with what was linked in and is no crate: `NAME=PATH`
    #[arg(long = "notice", value_name = "NAME=PATH", value_parser = named_path)]
    notices: Vec<(String, PathBuf)>,
    /// Write what a container sees as / into folders too: rootfs/ARCH
    #[arg(long)]
    unpacked: bool,
}

/// What is said of an image and its parts.
pub(crate) struct Release<'a> {
    pub(crate) name: &'a str,
    pub(crate) version: &'a str,
    pub(crate) revision: &'a str,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) source: Option<&'a str>,
}

fn main() -> ExitCode {
    match pack(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn pack(arguments: &Arguments) -> Result<()> {
    let release = Release {
        name: &arguments.name,
        version: &arguments.version,
        revision: &arguments.revision,
        created: arguments.created,
        source: arguments.source.as_deref(),
    };
    let programs: BTreeMap<Architecture, &PathBuf> =
        arguments.programs.iter().map(|(architecture, path)| (*architecture, path)).collect();
    if programs.len() != arguments.programs.len() {
        bail!("an architecture is given twice");
    }
    let title = release.name.rsplit('/').next().expect("split yields at least one part");
    let out = &arguments.out;
    // Of what another run has left, all is removed and nothing else.
    remove_results(out, title)?;
    files::replace_folder(&out.join("oci"))?;
    let mut layout = oci::Layout::create(&out.join("oci"))?;
    let mut sums = BTreeMap::new();
    // What is in the image besides crates of the program.
    let mut notices = arguments.notices.clone();
    notices.push((
        AUTHORITIES.to_owned(),
        crates::folder(&arguments.root, "webpki-root-certs")?.join("LICENSE"),
    ));
    let mut bills = Vec::new();
    for (architecture, path) in programs {
        let program = program::read(path, architecture)?;
        let linked = crates::linked(&arguments.root, architecture.target())?;
        let bill = sbom::cyclonedx(&release, architecture, &linked, &notices, &program)?;
        let third_party = third_party::text(&linked, &notices)?;
        let tree = root_folder(&arguments.root, &program, &bill, &third_party)?;
        if arguments.unpacked {
            let folder = out.join("rootfs").join(architecture.to_string());
            files::replace_folder(&folder)?;
            tree.unpack(&folder)?;
        }
        let image = layout.add_image(&release, architecture, &tree)?;
        let name = format!("{title}-{}-linux-{architecture}.cdx.json", release.version);
        files::write(out, &name, &bill, &mut sums)?;
        let archive = plugin(&arguments.root, &program, &third_party)?.gzipped(release.created)?;
        files::write(out, &archive_name(&release, architecture), &archive, &mut sums)?;
        println!(
            "linux/{architecture}: {:.1} MB as it is pulled, {:.1} MB unpacked, {} crates",
            megabytes(image.pulled),
            megabytes(tree.bytes()),
            linked.len()
        );
        bills.push((image, bill));
    }
    if let Some(download) = &arguments.download {
        let template = root_text(&arguments.root, KREW)?;
        let manifest = krew(&template, &release, download, &sums)?;
        files::write(out, "egress.yaml", manifest.as_bytes(), &mut sums)?;
    }
    // What loads an archive expects a single image in it, so the bills come after.
    layout.finish(&release)?;
    let archive = files::tar_of_folder(&out.join("oci"), release.created)?;
    files::write(out, &format!("{title}-{}.tar", release.version), &archive, &mut sums)?;
    for (image, bill) in &bills {
        layout.add_bill(&release, image, bill)?;
    }
    let index = layout.finish(&release)?;
    let lines: String = sums.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect();
    let file = out.join("SHA256SUMS");
    fs::write(&file, lines).with_context(|| format!("cannot write {}", file.display()))?;
    println!("{}:{} is {index}, in {}", release.name, release.version, out.display());
    Ok(())
}

/// Removes what a run of this program has left in a folder.
fn remove_results(out: &Path, title: &str) -> Result<()> {
    let failed = || format!("cannot clear {}", out.display());
    for entry in fs::read_dir(out).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = |beginning: &str, endings: &[&str]| {
            name.starts_with(beginning) && endings.iter().any(|ending| name.ends_with(ending))
        };
        if name == "rootfs" {
            fs::remove_dir_all(entry.path()).with_context(failed)?;
        } else if ["SHA256SUMS", "egress.yaml"].contains(&name.as_str())
            || ours(&format!("{title}-"), &[".tar", ".cdx.json"])
            || ours(&format!("{PLUGIN}_"), &[".tar.gz"])
        {
            fs::remove_file(entry.path()).with_context(failed)?;
        }
    }
    Ok(())
}

/// What a container sees as `/`.
fn root_folder(root: &Path, program: &[u8], bill: &[u8], third_party: &str) -> Result<Tree> {
    let mut tree = Tree::default();
    tree.add("usr/bin/egress-agent", Entry::Program(program.to_vec()))?;
    tree.add("etc/ssl/certs/ca-certificates.crt", Entry::File(authorities().into_bytes()))?;
    tree.add(
        "etc/passwd",
        Entry::text("root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n"),
    )?;
    tree.add("etc/group", Entry::text("root:x:0:\nnonroot:x:65532:\n"))?;
    // Some runtimes want it to be there even when nothing is ever written.
    tree.add("tmp", Entry::Scratch)?;
    for name in ["LICENSE", "LICENSE-GPL-2.0", "LICENSES.md"] {
        tree.add(&format!("{DOCUMENTS}/{name}"), Entry::File(read(&root.join(name))?))?;
    }
    tree.add(&format!("{DOCUMENTS}/THIRD-PARTY.txt"), Entry::text(third_party))?;
    // Scanners find it by its ending; no other file says what the program is made of.
    tree.add(&format!("{DOCUMENTS}/egress-agent.cdx.json"), Entry::File(bill.to_vec()))?;
    Ok(tree)
}

/// Fills in the template of the plugin's manifest.
fn krew(
    template: &str,
    release: &Release<'_>,
    download: &str,
    sums: &BTreeMap<String, String>,
) -> Result<String> {
    // What the template says of itself is not true of the manifest.
    let lines = template.lines().skip_while(|line| line.starts_with('#'));
    let template: String = lines.map(|line| format!("{line}\n")).collect();
    let mut filled =
        template.replace("@VERSION@", release.version).replace("@BASE_URL@", download.trim_end_matches('/'));
    for architecture in [Architecture::Amd64, Architecture::Arm64] {
        let archive = archive_name(release, architecture);
        let sum = sums
            .get(&archive)
            .with_context(|| format!("krew's manifest names {archive}, which was not made"))?;
        filled = filled.replace(&format!("@SHA256_{}@", architecture.to_string().to_uppercase()), sum);
    }
    // What is left of the template would be an address that does not exist. What was filled in may have the sign, too.
    let known = ["@VERSION@", "@BASE_URL@", "@SHA256_AMD64@", "@SHA256_ARM64@"];
    let rest = known.iter().fold(template, |rest, placeholder| rest.replace(placeholder, ""));
    match rest.lines().find(|line| line.contains('@')) {
        Some(line) => bail!("{KREW} has a placeholder that is not known: {}", line.trim()),
        None => Ok(filled),
    }
}

fn archive_name(release: &Release<'_>, architecture: Architecture) -> String {
    format!("{PLUGIN}_{}_linux_{architecture}.tar.gz", release.version)
}

fn root_text(root: &Path, name: &str) -> Result<String> {
    String::from_utf8(read(&root.join(name))?).with_context(|| format!("{name} is no text"))
}

/// What `kubectl krew` unpacks.
fn plugin(root: &Path, program: &[u8], third_party: &str) -> Result<Tree> {
    let mut tree = Tree::default();
    tree.add(PLUGIN, Entry::Program(program.to_vec()))?;
    for name in ["LICENSE", "LICENSE-GPL-2.0", "LICENSES.md"] {
        tree.add(name, Entry::File(read(&root.join(name))?))?;
    }
    tree.add("THIRD-PARTY.txt", Entry::text(third_party))?;
    Ok(tree)
}

/// Mozilla's list of authorities, as the file in which TLS libraries look for them.
fn authorities() -> String {
    let certificates = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
    certificates.map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.to_vec()))).collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn program_path(text: &str) -> Result<(Architecture, PathBuf), String> {
    let (architecture, path) =
        text.split_once('=').ok_or("want ARCH=PATH, such as amd64=target/egress-agent")?;
    Ok((architecture.parse()?, path.into()))
}

fn named_path(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("want NAME=PATH, such as musl=COPYRIGHT")?;
    Ok((name.to_owned(), path.into()))
}

#[expect(clippy::cast_precision_loss, reason = "for people, with one digit")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_a_list_of_certificates() {
        let text = authorities();
        let parsed = pem::parse_many(&text).expect("it is PEM");
        assert_eq!(parsed.len(), webpki_root_certs::TLS_SERVER_ROOT_CERTS.len());
        assert!(parsed.len() > 100, "{} authorities", parsed.len());
        assert!(parsed.iter().all(|entry| entry.tag() == "CERTIFICATE"));
    }

    #[test]
    fn the_manifest_for_krew_names_what_was_made() {
        let release =
            Release { name: "egress-agent", version: "1.2.3", revision: "abc", created: 0, source: None };
        let template = "v@VERSION@ @BASE_URL@/x @SHA256_AMD64@ @SHA256_ARM64@\n";
        let mut sums =
            BTreeMap::from([("kubectl-egress_1.2.3_linux_amd64.tar.gz".to_owned(), "aa".to_owned())]);
        let error = krew(template, &release, "https://x/", &sums).expect_err("one is missing");
        assert!(error.to_string().contains("kubectl-egress_1.2.3_linux_arm64.tar.gz"), "{error}");
        sums.insert("kubectl-egress_1.2.3_linux_arm64.tar.gz".to_owned(), "bb".to_owned());
        let filled = krew(template, &release, "https://x/", &sums).expect("all is known");
        assert_eq!(filled, "v1.2.3 https://x/x aa bb\n");
        assert!(krew(template, &release, "https://x@1/", &sums).is_ok(), "an address may have the sign");
        assert!(krew("@WHAT@", &release, "https://x", &sums).is_err());
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("two folders up");
        let template = root_text(root, KREW).expect("it is there");
        let filled =
            krew(&template, &release, "https://x", &sums).expect("the template asks for nothing else");
        assert!(filled.starts_with("apiVersion: krew."), "{filled}");
        assert!(filled.contains("uri: \"https://x/kubectl-egress_1.2.3_linux_amd64.tar.gz\""), "{filled}");
    }

    #[test]
    fn only_results_of_another_run_are_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let names = [
            "SHA256SUMS",
            "e-1.tar",
            "e-1-linux-arm64.cdx.json",
            "kubectl-egress_1_linux_amd64.tar.gz",
            "mine",
        ];
        for name in names {
            fs::write(folder.path().join(name), "").expect("written");
        }
        fs::create_dir_all(folder.path().join("rootfs").join("arm64")).expect("made");
        remove_results(folder.path(), "e").expect("removed");
        let left: Vec<_> = fs::read_dir(folder.path())
            .expect("a folder")
            .map(|entry| entry.expect("read").file_name())
            .collect();
        assert_eq!(left, ["mine"]);
    }

    #[test]
    fn arguments_say_what_they_want() {
        assert_eq!(program_path("arm64=a/b").expect("fine"), (Architecture::Arm64, PathBuf::from("a/b")));
        assert!(program_path("a/b").expect_err("no architecture").contains("want ARCH=PATH"));
        assert!(program_path("riscv64=a").expect_err("unknown").contains("amd64 or arm64"));
    }
}
