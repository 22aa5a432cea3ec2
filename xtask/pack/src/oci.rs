//! An OCI image layout: blobs by their checksums, and an index that names them.
//!
//! The layout has one index as the image, with a manifest for each platform, and each bill of materials as a manifest of its own that has the
//! image as its subject, which is how registries list them with the image.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};
use oci_spec::image::{
    ANNOTATION_REF_NAME, Arch, Config, ConfigBuilder, Descriptor, DescriptorBuilder, HistoryBuilder,
    ImageConfigurationBuilder, ImageIndexBuilder, ImageManifestBuilder, MediaType, OciLayoutBuilder, Os,
    PlatformBuilder, RootFsBuilder, Sha256Digest,
};

use crate::files::{self, Tree};
use crate::program::Architecture;
use crate::{Release, sbom};

/// Who runs it unless told otherwise: nobody in particular, as in the base images called nonroot.
const USER: &str = "65532:65532";
/// An annotation that containerd takes an image's whole name from when it imports an archive.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// A layout that is being written.
pub(crate) struct Layout {
    folder: PathBuf,
    images: Vec<Descriptor>,
    bills: Vec<Descriptor>,
}

/// An image in the layout.
pub(crate) struct Image {
    descriptor: Descriptor,
    /// What a node downloads, in bytes: configuration and layers.
    pub(crate) pulled: u64,
}

impl Layout {
    /// Begins a layout in an empty folder.
    pub(crate) fn create(folder: &Path) -> Result<Self> {
        let blobs = folder.join("blobs").join("sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("cannot create {}", blobs.display()))?;
        Ok(Self { folder: folder.to_owned(), images: Vec::new(), bills: Vec::new() })
    }

    /// Adds the image of one platform with these files as its only layer.
    pub(crate) fn add_image(
        &mut self,
        release: &Release<'_>,
        architecture: Architecture,
        tree: &Tree,
    ) -> Result<Image> {
        let archive = tree.tar(release.created)?;
        let layer = self.blob(MediaType::ImageLayerGzip, &files::gzip(&archive)?)?;
        let created = sbom::time(release.created)?;
        let arch = Arch::from(architecture.to_string().as_str());
        let history =
            HistoryBuilder::default().created(created.clone()).created_by("cargo xtask image").build()?;
        let configuration = ImageConfigurationBuilder::default()
            .created(created)
            .architecture(arch.clone())
            .os(Os::Linux)
            .config(run_configuration(release)?)
            .rootfs(
                RootFsBuilder::default()
                    .typ("layers")
                    .diff_ids(vec![format!("sha256:{}", files::sha256(&archive))])
                    .build()?,
            )
            .history(vec![history])
            .build()?;
        let configuration = self.blob(MediaType::ImageConfig, configuration.to_string()?.as_bytes())?;
        let pulled = layer.size() + configuration.size();
        let manifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .config(configuration)
            .layers(vec![layer])
            .annotations(labels(release)?)
            .build()?;
        let mut descriptor = self.blob(MediaType::ImageManifest, manifest.to_string()?.as_bytes())?;
        descriptor.set_platform(Some(PlatformBuilder::default().architecture(arch).os(Os::Linux).build()?));
        self.images.push(descriptor.clone());
        Ok(Image { descriptor, pulled })
    }

    /// Adds the bill of materials of an image.
    pub(crate) fn add_bill(&mut self, release: &Release<'_>, image: &Image, bill: &[u8]) -> Result<()> {
        let layer = self.blob(MediaType::Other(sbom::MEDIA_TYPE.to_owned()), bill)?;
        let subject = DescriptorBuilder::default()
            .media_type(image.descriptor.media_type().clone())
            .digest(image.descriptor.digest().clone())
            .size(image.descriptor.size())
            .build()?;
        let manifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .artifact_type(MediaType::Other(sbom::MEDIA_TYPE.to_owned()))
            .config(self.blob(MediaType::EmptyJSON, b"{}")?)
            .layers(vec![layer])
            .subject(subject)
            .annotations(labels(release)?)
            .build()?;
        let mut descriptor = self.blob(MediaType::ImageManifest, manifest.to_string()?.as_bytes())?;
        descriptor.set_artifact_type(Some(MediaType::Other(sbom::MEDIA_TYPE.to_owned())));
        self.bills.push(descriptor);
        Ok(())
    }

    /// Writes what names all the rest so far, and returns the digest of the image.
    pub(crate) fn finish(&self, release: &Release<'_>) -> Result<String> {
        let image = ImageIndexBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageIndex)
            .manifests(self.images.clone())
            .annotations(labels(release)?)
            .build()?;
        let mut image = self.blob(MediaType::ImageIndex, image.to_string()?.as_bytes())?;
        let digest = image.digest().to_string();
        image.set_annotations(Some(HashMap::from([
            (ANNOTATION_REF_NAME.to_owned(), release.version.to_owned()),
            (CONTAINERD_NAME.to_owned(), full_name(release)),
        ])));
        let top = ImageIndexBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageIndex)
            .manifests([vec![image], self.bills.clone()].concat())
            .build()?;
        self.write("index.json", &sorted(&top.to_string()?)?)?;
        let version = OciLayoutBuilder::default().image_layout_version("1.0.0").build()?;
        self.write("oci-layout", version.to_string()?.as_bytes())?;
        Ok(digest)
    }

    /// Writes a blob and returns what names it.
    fn blob(&self, kind: MediaType, content: &[u8]) -> Result<Descriptor> {
        let content = match &kind {
            MediaType::ImageLayerGzip | MediaType::EmptyJSON | MediaType::Other(_) => content.to_vec(),
            _ => sorted(std::str::from_utf8(content).context("documents are text")?)?,
        };
        let sum = files::sha256(&content);
        self.write(&format!("blobs/sha256/{sum}"), &content)?;
        let digest = Sha256Digest::from_str(&sum).context("a checksum is a digest")?;
        Ok(Descriptor::new(kind, content.len() as u64, digest))
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Returns the JSON document with its keys in order: maps of labels come in a different one each time.
fn sorted(document: &str) -> Result<Vec<u8>> {
    let value: serde_json::Value = serde_json::from_str(document).context("a document is JSON")?;
    serde_json::to_vec(&value).context("a document can be written")
}

/// How a container of the image starts.
fn run_configuration(release: &Release<'_>) -> Result<Config> {
    let configuration = ConfigBuilder::default()
        .user(USER)
        // The manifests say `command: [egress-agent]`.
        .env(vec!["PATH=/usr/bin".to_owned()])
        .entrypoint(vec!["/usr/bin/egress-agent".to_owned()])
        .working_dir("/")
        .labels(labels(release)?)
        .build()?;
    Ok(configuration)
}

/// What the image says of itself, by the names of the
/// [specification](https://github.com/opencontainers/image-spec/blob/main/annotations.md).
fn labels(release: &Release<'_>) -> Result<HashMap<String, String>> {
    let mut labels = vec![
        ("title", "egress-agent".to_owned()),
        ("description", "Per-pod egress control for Kubernetes, enforced in the kernel".to_owned()),
        ("version", release.version.to_owned()),
        ("revision", release.revision.to_owned()),
        ("created", sbom::time(release.created)?),
        ("licenses", "Apache-2.0 AND (Apache-2.0 OR GPL-2.0-only) AND MPL-2.0".to_owned()),
    ];
    if let Some(source) = release.source {
        labels.push(("source", source.to_owned()));
    }
    Ok(labels.into_iter().map(|(name, value)| (format!("org.opencontainers.image.{name}"), value)).collect())
}

/// The name by which containerd keeps the image; a bare one is in the default registry there.
fn full_name(release: &Release<'_>) -> String {
    let has_registry = release
        .name
        .split_once('/')
        .is_some_and(|(first, _)| first.contains(['.', ':']) || first == "localhost");
    let prefix = match (has_registry, release.name.contains('/')) {
        (true, _) => "",
        (false, true) => "docker.io/",
        (false, false) => "docker.io/library/",
    };
    format!("{prefix}{}:{}", release.name, release.version)
}

#[cfg(test)]
mod tests {
    use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest};

    use super::*;
    use crate::files::Entry;

    fn release() -> Release<'static> {
        Release {
            name: "example.com/e",
            version: "1.2.3",
            revision: "abc",
            created: 9,
            source: Some("https://x"),
        }
    }

    fn write(folder: &Path) -> String {
        let mut layout = Layout::create(folder).expect("a layout");
        for architecture in [Architecture::Amd64, Architecture::Arm64] {
            let mut tree = Tree::default();
            tree.add("usr/bin/egress-agent", Entry::Program(architecture.to_string().into_bytes()))
                .expect("new");
            let image = layout.add_image(&release(), architecture, &tree).expect("an image");
            layout.add_bill(&release(), &image, b"{}").expect("a bill");
        }
        layout.finish(&release()).expect("an index")
    }

    fn blob(folder: &Path, descriptor: &Descriptor) -> PathBuf {
        let path = folder.join("blobs").join("sha256").join(descriptor.digest().digest());
        let content = fs::read(&path).expect("what is named is there");
        assert_eq!(content.len() as u64, descriptor.size());
        assert_eq!(files::sha256(&content), descriptor.digest().digest());
        path
    }

    #[test]
    fn everything_that_is_named_is_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        let digest = write(folder);
        let top = ImageIndex::from_file(folder.join("index.json")).expect("an index");
        let [image, bills @ ..] = top.manifests().as_slice() else { panic!("an index names the image") };
        assert_eq!(image.digest().to_string(), digest);
        let annotations = image.annotations().as_ref().expect("it has a name");
        assert_eq!(annotations[ANNOTATION_REF_NAME], "1.2.3");
        assert_eq!(annotations[CONTAINERD_NAME], "example.com/e:1.2.3");
        let image = ImageIndex::from_file(blob(folder, image)).expect("an index");
        assert_eq!((image.manifests().len(), bills.len()), (2, 2));
        for (descriptor, bill) in image.manifests().iter().zip(bills) {
            let manifest = ImageManifest::from_file(blob(folder, descriptor)).expect("a manifest");
            let configuration =
                ImageConfiguration::from_file(blob(folder, manifest.config())).expect("a configuration");
            let platform = descriptor.platform().as_ref().expect("a platform");
            assert_eq!(platform.architecture(), configuration.architecture());
            let run = configuration.config().as_ref().expect("how it runs");
            assert_eq!(run.user().as_deref(), Some(USER));
            let [layer] = manifest.layers().as_slice() else { panic!("one layer") };
            let mut archive = Vec::new();
            let compressed = fs::File::open(blob(folder, layer)).expect("a layer");
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(compressed), &mut archive)
                .expect("it is compressed");
            assert_eq!(configuration.rootfs().diff_ids(), &[format!("sha256:{}", files::sha256(&archive))]);
            let bill = ImageManifest::from_file(blob(folder, bill)).expect("a manifest");
            let subject = bill.subject().as_ref().expect("a bill is about an image");
            assert_eq!(subject.digest(), descriptor.digest());
            blob(folder, &bill.layers()[0]);
            blob(folder, bill.config());
        }
    }

    /// A container builder's image is the same one.
    #[test]
    fn the_containerfile_says_the_same() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("two folders up");
        let file = fs::read_to_string(root.join("deploy/image/Containerfile")).expect("it is there");
        let run = run_configuration(&release()).expect("a configuration");
        let user = run.user().clone().expect("a user");
        let program = &run.entrypoint().as_ref().expect("a program")[0];
        let folder = run.working_dir().clone().expect("a folder");
        for line in [
            format!("USER {user}"),
            format!("ENV {}", run.env().as_ref().expect("variables")[0]),
            format!("ENTRYPOINT [\"{program}\"]"),
            format!("WORKDIR {folder}"),
        ] {
            assert!(file.lines().any(|found| found == line), "no line is {line:?}");
        }
        // A default would count more than the platform that a builder builds for.
        assert!(!file.contains("TARGETARCH="), "the builder says which architecture it is");
        let labels = labels(&release()).expect("labels");
        for name in ["title", "description", "licenses"] {
            let name = format!("org.opencontainers.image.{name}");
            assert!(file.contains(&format!("{name}=\"{}\"", labels[&name])), "{name} differs");
        }
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let (first, second) =
            (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        assert_eq!(write(first.path()), write(second.path()));
        let whole = |folder: &Path| files::tar_of_folder(folder, 9).expect("it can be archived");
        assert!(whole(first.path()) == whole(second.path()), "the layouts differ");
    }

    #[test]
    fn containerd_gets_a_whole_name() {
        let named = |name| full_name(&Release { name, ..release() });
        assert_eq!(named("egress-agent"), "docker.io/library/egress-agent:1.2.3");
        assert_eq!(named("team/egress-agent"), "docker.io/team/egress-agent:1.2.3");
        assert_eq!(named("localhost/e"), "localhost/e:1.2.3");
        assert_eq!(named("r.example.com:5000/e"), "r.example.com:5000/e:1.2.3");
    }
}
