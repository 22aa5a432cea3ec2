//! The container image: what the layout names is unpacked as a runtime does, and run by `runc` as the image's own user, in an empty network,
//! without capabilities, with nothing writable.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{env, process};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Names the folder of the OCI image layout; `cargo xtask test --strict` builds one and sets it.
const LAYOUT: &str = "EGRESS_IMAGE_LAYOUT";
/// What a node may have to download, in bytes.
const MOST: u64 = 15_000_000;

/// An image on its way into a container.
struct Image {
    /// How it starts, as the configuration says.
    config: Value,
    /// What a node downloads, in bytes.
    pulled: u64,
    /// The digest of its manifest.
    digest: String,
    /// What names it in the top index.
    layout: PathBuf,
    unpacked: TempDir,
}

/// Unpacks the image of this machine's architecture; says so and returns nothing if there is none.
fn image() -> Option<Image> {
    let skip = |why: &str| {
        // The harness would swallow what `println!` says.
        let said = format!("\nSKIPPED image: {why}\n");
        io::stdout().write_all(said.as_bytes()).expect("standard output is open");
        None
    };
    let Some(layout) = env::var_os(LAYOUT).map(PathBuf::from) else {
        return skip(&format!(
            "{LAYOUT} names no image layout; `cargo xtask image` makes one in target/image/out/oci"
        ));
    };
    let runs = Command::new("runc").arg("--version").stdout(Stdio::null()).status();
    if !runs.is_ok_and(|status| status.success()) {
        return skip("no runc in PATH; install it with `apt-get install --yes runc`");
    }
    let top = document(&layout.join("index.json"));
    let index = document(&blob(&layout, &top["manifests"][0]));
    let architecture = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => panic!("no image is made for {other}"),
    };
    let manifests = index["manifests"].as_array().expect("an index lists manifests");
    let fits = |manifest: &&Value| manifest["platform"]["architecture"] == architecture;
    let descriptor = manifests.iter().find(fits).expect("one is for this machine");
    let manifest = document(&blob(&layout, descriptor));
    let unpacked = tempfile::tempdir().expect("a folder");
    let root = unpacked.path().join("rootfs");
    fs::create_dir(&root).expect("a folder");
    let mut pulled = manifest["config"]["size"].as_u64().expect("a size");
    for layer in manifest["layers"].as_array().expect("a manifest lists layers") {
        pulled += layer["size"].as_u64().expect("a size");
        let mut tar = Command::new("tar");
        tar.arg("--extract").arg("--gzip").arg("--preserve-permissions").arg("--numeric-owner");
        let status = tar.arg("--file").arg(blob(&layout, layer)).arg("--directory").arg(&root).status();
        assert!(status.expect("tar starts").success(), "a layer is an archive");
    }
    let config = document(&blob(&layout, &manifest["config"]))["config"].clone();
    let digest = descriptor["digest"].as_str().expect("a digest").to_owned();
    Some(Image { config, pulled, digest, layout, unpacked })
}

fn document(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the file of what a descriptor names.
fn blob(layout: &Path, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().expect("a descriptor has a digest");
    layout.join("blobs").join(digest.replace(':', "/"))
}

impl Image {
    fn root(&self) -> PathBuf {
        self.unpacked.path().join("rootfs")
    }

    /// Runs the image's program with these arguments; `mounts` are folders of this machine, to be seen read-only.
    fn run(&self, arguments: &[&str], mounts: &[(&Path, &str)]) -> Output {
        let user = self.config["User"].as_str().expect("the image has a user");
        let (uid, gid) = user.split_once(':').expect("the user is numbers");
        let number = |text: &str| text.parse::<u32>().expect("the user is numbers");
        let mut all: Vec<Value> = self.config["Entrypoint"].as_array().expect("a program").clone();
        all.extend(arguments.iter().map(|argument| json!(argument)));
        let mut mounted = vec![json!({"destination": "/proc", "type": "proc", "source": "proc"})];
        for (source, destination) in mounts {
            mounted.push(json!({
                "destination": destination, "type": "bind", "source": source, "options": ["rbind", "ro"],
            }));
            // The root is read-only: what is mounted over must be there before.
            fs::create_dir_all(self.root().join(destination.trim_start_matches('/'))).expect("a folder");
        }
        fs::create_dir_all(self.root().join("proc")).expect("a folder");
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": number(uid), "gid": number(gid)},
                "args": all,
                "env": self.config["Env"],
                "cwd": self.config["WorkingDir"],
                "noNewPrivileges": true,
                "capabilities": {"bounding": [], "effective": [], "permitted": []},
            },
            "root": {"path": "rootfs", "readonly": true},
            "mounts": mounted,
            "linux": {"namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"},
            ]},
        });
        fs::write(self.unpacked.path().join("config.json"), config.to_string()).expect("written");
        let name =
            self.unpacked.path().file_name().expect("a folder has a name").to_string_lossy().into_owned();
        let id = format!("egress-image-{}-{}", process::id(), name.trim_start_matches('.'));
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(self.unpacked.path().join("state"));
        runc.arg("run").arg("--bundle").arg(self.unpacked.path()).arg(id);
        runc.stdin(Stdio::null()).output().expect("runc starts")
    }
}

#[track_caller]
fn text(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{out}{err}")
}

#[test]
fn the_image_runs_as_nobody_with_nothing_to_write() {
    let Some(image) = image() else { return };
    assert!(image.pulled <= MOST, "{} bytes are more than {MOST}", image.pulled);
    let output = image.run(&["--version"], &[]);
    assert!(output.status.success(), "{}", text(&output));
    let labels = &image.config["Labels"];
    let version = labels["org.opencontainers.image.version"].as_str().expect("a label");
    assert_eq!(text(&output).trim(), format!("egress-agent {version}"));
    let revision = labels["org.opencontainers.image.revision"].as_str().expect("a label");
    assert!(revision.trim_end_matches("-dirty").len() == 40, "{revision} is a commit");

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a folder above");
    let demo = root.join("deploy/examples/demo");
    let output = image.run(&["validate", "/policies"], &[(&demo, "/policies")]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("policies checked: 0 errors"), "{}", text(&output));
    let output = image.run(
        &["explain", "--manifests", "/policies", "--from", "shop/checkout", "--to", "198.51.100.7:8080"],
        &[(&demo, "/policies")],
    );
    assert_eq!(output.status.code(), Some(1), "denied: {}", text(&output));
    let output = image.run(&["schema"], &[]);
    let schema = fs::read_to_string(root.join("deploy/schema/policy.schema.json")).expect("it is there");
    assert_eq!(String::from_utf8_lossy(&output.stdout), schema);
}

/// jemalloc has found what `main.rs` tells it; it says so when it is asked as it is here.
#[test]
fn the_images_allocator_is_told_how_to_work() {
    let Some(mut image) = image() else { return };
    let variables = image.config["Env"].as_array_mut().expect("variables");
    variables.push(json!("_RJEM_MALLOC_CONF=stats_print:true"));
    let said = text(&image.run(&["--version"], &[]));
    for option in ["opt.narenas: 1", "opt.dirty_decay_ms: 0", "opt.muzzy_decay_ms: 0"] {
        assert!(said.contains(option), "no {option} in {said}");
    }
}

#[test]
fn the_image_comes_with_authorities_licences_and_what_it_is_made_of() {
    let Some(image) = image() else { return };
    let read = |path: &str| {
        fs::read_to_string(image.root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let authorities = read("etc/ssl/certs/ca-certificates.crt").matches("BEGIN CERTIFICATE").count();
    assert!(authorities > 100, "{authorities} authorities");
    assert!(read("etc/passwd").contains(":65532:"));
    let documents = "usr/share/doc/egress-agent";
    assert!(read(&format!("{documents}/LICENSE")).contains("Apache License"));
    let third_party = read(&format!("{documents}/THIRD-PARTY.txt"));
    for part in ["aya ", "musl ", "rustls "] {
        assert!(third_party.lines().any(|line| line.starts_with(part)), "no licence of {part}");
    }
    // The bill that registries list is the one inside.
    let top = document(&image.layout.join("index.json"));
    let bill = top["manifests"].as_array().expect("a list").iter().skip(1).find_map(|descriptor| {
        let manifest = document(&blob(&image.layout, descriptor));
        (manifest["subject"]["digest"] == image.digest.as_str())
            .then(|| blob(&image.layout, &manifest["layers"][0]))
    });
    let listed = fs::read_to_string(bill.expect("the image has a bill of materials")).expect("a blob");
    assert_eq!(listed, read(&format!("{documents}/egress-agent.cdx.json")));
}
