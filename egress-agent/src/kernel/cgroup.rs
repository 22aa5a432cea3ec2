//! Finds the cgroup v2 hierarchy, the kubepods cgroup in it, and the pods' cgroups below that.
//!
//! The id of a cgroup is the inode number of its directory: on 64-bit machines the kernel uses one 64-bit number for both
//! (`kernfs_ino()` and `cgroup_id()` since Linux 5.5), and the programs compare it with what
//! `bpf_skb_ancestor_cgroup_id` returns. The root of the hierarchy always has id 1 (`cgroup_setup_root()`), which is how a
//! mount of the whole hierarchy is told from a mount of a part of it, as a private cgroup namespace shows.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fmt::Write as _,
    fs, io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{DirEntryExt, MetadataExt},
    },
    path::{Component, Path, PathBuf},
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::{Interest, unix::AsyncFd};

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the inode number of a cgroup's directory is its id on 64-bit machines only");

/// The id of the root of the cgroup v2 hierarchy.
const ROOT_ID: u64 = 1;

/// Where the kernel tells what is mounted.
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// What went wrong while looking for cgroups, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No cgroup v2 hierarchy is mounted.
    #[error(
        "no cgroup v2 hierarchy is mounted: boot the node with systemd.unified_cgroup_hierarchy=1, and mount the node's \
         /sys/fs/cgroup into the agent's container"
    )]
    NoCgroup2,
    /// What is mounted is only a part of the hierarchy.
    #[error(
        "{mounts} shows only a part of the cgroup v2 hierarchy, as a private cgroup namespace does: mount the node's \
         /sys/fs/cgroup into the agent's container (hostPath)",
        mounts = list(mounts)
    )]
    PartOfHierarchy {
        /// The mounts found.
        mounts: Vec<PathBuf>,
    },
    /// No kubepods cgroup was found.
    #[error(
        "no kubepods cgroup below {mount}: looked for kubepods.slice and kubepods there and one folder deeper; name it with \
         --kubepods-cgroup",
        mount = mount.display()
    )]
    NoKubepods {
        /// Where the cgroup v2 hierarchy is mounted.
        mount: PathBuf,
    },
    /// More than one folder could be the kubepods cgroup.
    #[error("more than one kubepods cgroup: {found}; choose one with --kubepods-cgroup", found = list(found))]
    SeveralKubepods {
        /// All of them.
        found: Vec<PathBuf>,
    },
    /// The cgroup named by the flag does not exist.
    #[error(
        "--kubepods-cgroup {given}: no such folder (looked for {path}); give a path below {mount}",
        given = given.display(),
        path = path.display(),
        mount = mount.display()
    )]
    NoSuchCgroup {
        /// What the flag said.
        given: PathBuf,
        /// Where that was looked for.
        path: PathBuf,
        /// Where the cgroup v2 hierarchy is mounted.
        mount: PathBuf,
    },
    /// The cgroup named by the flag is not a folder below the root of the hierarchy.
    #[error(
        "--kubepods-cgroup {given}: not a cgroup below {mount}; give the folder that holds the pods' cgroups, such as \
         kubepods.slice",
        given = given.display(),
        mount = mount.display()
    )]
    NotBelowMount {
        /// What the flag said.
        given: PathBuf,
        /// Where the cgroup v2 hierarchy is mounted.
        mount: PathBuf,
    },
    /// The kubepods cgroup was removed while it was watched.
    #[error("the kubepods cgroup {path} was removed, and with it what was attached to it", path = path.display())]
    Gone {
        /// Which one.
        path: PathBuf,
    },
    /// No inotify instance could be had.
    #[error("cannot start inotify: if too many are in use, raise the sysctl fs.inotify.max_user_instances")]
    Inotify(#[source] io::Error),
    /// A folder could not be watched.
    #[error("cannot watch {path}: if the limit is reached, raise the sysctl fs.inotify.max_user_watches", path = path.display())]
    Watch {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Events could not be read from inotify.
    #[error("cannot read what inotify saw")]
    Events(#[source] io::Error),
}

/// Returns the paths joined with commas.
fn list(paths: &[PathBuf]) -> String {
    let mut text = String::new();
    for path in paths {
        let separator = if text.is_empty() { "" } else { ", " };
        write!(text, "{separator}{}", path.display()).expect("writing to a string cannot fail");
    }
    text
}

/// A mounted cgroup v2 hierarchy, as mountinfo tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Which folder of the hierarchy is mounted, as seen from the reader's cgroup namespace.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
}

/// The cgroup that holds all pods of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubepods {
    /// Where the cgroup v2 hierarchy is mounted.
    pub mount: PathBuf,
    /// The cgroup's folder.
    pub path: PathBuf,
    /// Its depth below the root of the hierarchy, which is 0.
    pub level: u32,
    /// Its id, as the programs see it.
    pub id: u64,
}

/// The cgroup of one pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodCgroup {
    /// The pod's uid with its dashes; for a static pod, the hash of its manifest.
    pub uid: String,
    /// The cgroup's folder.
    pub path: PathBuf,
    /// Its id, as the programs see it.
    pub id: u64,
    /// Its depth below the root of the hierarchy: one below kubepods, or two with a quality-of-service folder between.
    pub level: u32,
}

/// Returns the cgroup v2 mounts in the text of a mountinfo file, those of the whole hierarchy first.
///
/// Each mount point appears once: where several mounts cover each other, only the last is visible. Lines that do not have
/// the form described in proc_pid_mountinfo(5) are no cgroup v2 mounts.
#[must_use]
pub fn cgroup2_mounts(mountinfo: &[u8]) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    for line in mountinfo.split(|&byte| byte == b'\n') {
        let mut fields = line.split(|&byte| byte == b' ');
        let (Some(root), Some(point)) = (fields.nth(3), fields.next()) else { continue };
        let point = unescape(point);
        mounts.retain(|mount| mount.point != point);
        // Mount options and a varying number of optional fields stand before the separator.
        if fields.any(|field| field == b"-") && fields.next() == Some(b"cgroup2") {
            mounts.push(Mount { root: unescape(root), point });
        }
    }
    mounts.sort_by_key(|mount| mount.root != Path::new("/"));
    mounts
}

/// Returns a path of mountinfo with its octal escapes (`\040` for a space) undone.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        match *rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = &rest[4..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

/// Finds the kubepods cgroup of this node.
///
/// `explicit` is the value of `--kubepods-cgroup`: a path relative to where cgroup v2 is mounted, or an absolute path.
///
/// # Errors
///
/// If the whole cgroup v2 hierarchy is not mounted, or the kubepods cgroup is missing or ambiguous.
pub fn find(explicit: Option<&Path>) -> Result<Kubepods, Error> {
    find_in(&hierarchy()?, 0, explicit)
}

/// Returns where the whole cgroup v2 hierarchy is mounted.
///
/// # Errors
///
/// If it is not mounted, or only a part of it.
pub fn hierarchy() -> Result<PathBuf, Error> {
    let mountinfo = fs::read(MOUNTINFO).map_err(|source| Error::Read { path: MOUNTINFO.into(), source })?;
    whole(cgroup2_mounts(&mountinfo), |point| Ok(metadata(point)?.ino()))
}

/// Returns where the first of the mounts is that shows the whole hierarchy, by the id of the folder it shows.
///
/// What mountinfo calls the root depends on the reader's cgroup namespace: inside a private one the node's own mount has
/// the root `/../..`, and the mount with the root `/` shows the container alone. The id tells them apart.
fn whole(mounts: Vec<Mount>, id: impl Fn(&Path) -> Result<u64, Error>) -> Result<PathBuf, Error> {
    if mounts.is_empty() {
        return Err(Error::NoCgroup2);
    }
    let mut unreadable = None;
    for mount in &mounts {
        match id(&mount.point) {
            Ok(ROOT_ID) => return Ok(mount.point.clone()),
            Ok(_) => {}
            Err(error) => unreadable = Some(error),
        }
    }
    // A mount that cannot be read may be the right one: that is then what has to be mended.
    Err(unreadable.unwrap_or_else(|| Error::PartOfHierarchy {
        mounts: mounts.into_iter().map(|mount| mount.point).collect(),
    }))
}

/// Finds the kubepods cgroup below a folder of the cgroup v2 hierarchy whose depth is `level`.
///
/// # Errors
///
/// If the kubepods cgroup is missing or ambiguous.
pub fn find_in(mount: &Path, level: u32, explicit: Option<&Path>) -> Result<Kubepods, Error> {
    let path = match explicit {
        Some(given) => resolve(mount, given)?,
        None => search(mount)?,
    };
    let metadata = metadata(&path)?;
    let depth =
        path.strip_prefix(mount).expect("the path was made by joining to the mount").components().count();
    let depth = u32::try_from(depth).expect("a path has fewer components than bytes, PATH_MAX at most");
    Ok(Kubepods { mount: mount.to_owned(), path, level: level + depth, id: metadata.ino() })
}

/// Returns the folder that `--kubepods-cgroup` names.
fn resolve(mount: &Path, given: &Path) -> Result<PathBuf, Error> {
    // Kubelet's own flags write cgroups as absolute paths from the root of the hierarchy: accept those too.
    let relative = given.strip_prefix(mount).or_else(|_| given.strip_prefix("/")).unwrap_or(given);
    let not_below = || Error::NotBelowMount { given: given.to_owned(), mount: mount.to_owned() };
    let mut path = mount.to_owned();
    for component in relative.components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(not_below()),
        }
    }
    if path == mount {
        return Err(not_below());
    }
    let found = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NoSuchCgroup { given: given.to_owned(), path, mount: mount.to_owned() });
        }
        Err(source) => return Err(Error::Read { path, source }),
    };
    // Another file system may be mounted below: its inode numbers are not cgroup ids.
    if !found.is_dir() || found.dev() != metadata(mount)?.dev() {
        return Err(not_below());
    }
    Ok(path)
}

/// Returns the only folder with the name of a kubepods cgroup, at the top or one folder deeper.
fn search(mount: &Path) -> Result<PathBuf, Error> {
    let mut found = Vec::new();
    for folder in folders(mount)? {
        if is_kubepods(&folder.name, None) {
            found.push(folder.path);
            continue;
        }
        // Kubelet's --cgroup-root puts kubepods into a cgroup of its own, as kind does.
        match folders(&folder.path) {
            Ok(inner) => {
                found.extend(
                    inner.into_iter().filter(|f| is_kubepods(&f.name, Some(&folder.name))).map(|f| f.path),
                );
            }
            Err(Error::Read { source, .. }) if vanished(&source) => {}
            Err(error) => return Err(error),
        }
    }
    found.sort();
    match found.len() {
        0 => Err(Error::NoKubepods { mount: mount.to_owned() }),
        1 => Ok(found.remove(0)),
        _ => Err(Error::SeveralKubepods { found }),
    }
}

/// Tells whether a folder has the name kubelet gives to the cgroup of all pods, below the cgroup root `parent` if any.
///
/// Under systemd the name of a slice begins with the names of the slices around it.
fn is_kubepods(name: &OsStr, parent: Option<&OsStr>) -> bool {
    if name == "kubepods" {
        return true;
    }
    let Some(slice) = name.as_bytes().strip_suffix(b".slice") else { return false };
    match parent {
        None => slice == b"kubepods",
        Some(parent) => {
            let outer = parent.as_bytes().strip_suffix(b".slice").unwrap_or(parent.as_bytes());
            slice == b"kubepods" || slice.strip_prefix(outer).is_some_and(|rest| rest == b"-kubepods")
        }
    }
}

/// Returns the cgroups of all pods, in the order of their uids.
///
/// A pod that comes or goes meanwhile may be among them or not.
///
/// # Errors
///
/// If a folder cannot be read.
pub fn pods(kubepods: &Kubepods) -> Result<Vec<PodCgroup>, Error> {
    let mut pods = Vec::new();
    let mut collect = |folder: Folder, level| match pod_uid(&folder.name) {
        Some(uid) => {
            pods.push(PodCgroup { uid, path: folder.path, id: folder.id, level });
            None
        }
        None => Some(folder),
    };
    for folder in folders(&kubepods.path)? {
        let Some(other) = collect(folder, kubepods.level + 1) else { continue };
        if !is_qos(&other.name) {
            continue;
        }
        match folders(&other.path) {
            Ok(inner) => inner.into_iter().for_each(|folder| drop(collect(folder, kubepods.level + 2))),
            Err(Error::Read { source, .. }) if vanished(&source) => {}
            Err(error) => return Err(error),
        }
    }
    pods.sort();
    Ok(pods)
}

/// Returns the uid of the pod whose cgroup has this folder name, if it is a pod's.
///
/// The cgroupfs driver writes `pod<uid>`; the systemd driver `…kubepods[-<quality of service>]-pod<uid>.slice` with each
/// dash of the uid as an underscore, because a dash there means a level of nesting. The uid of a static pod is the hash of
/// its manifest, without dashes.
#[must_use]
pub fn pod_uid(folder_name: &OsStr) -> Option<String> {
    let name = folder_name.to_str()?;
    let uid = match name.strip_suffix(".slice") {
        None => name.strip_prefix("pod")?.to_owned(),
        Some(slice) => {
            let (outer, last) = slice.rsplit_once('-')?;
            let outer = outer
                .strip_suffix("-burstable")
                .or_else(|| outer.strip_suffix("-besteffort"))
                .unwrap_or(outer);
            if outer != "kubepods" && !outer.ends_with("-kubepods") {
                return None;
            }
            last.strip_prefix("pod")?.replace('_', "-")
        }
    };
    // The manifest of a static pod may set a uid of its own, so this does not insist on hexadecimal digits.
    let well_formed = !uid.is_empty() && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    well_formed.then_some(uid)
}

/// Tells whether a folder below kubepods holds the pods of a quality-of-service class.
fn is_qos(name: &OsStr) -> bool {
    let name = name.as_bytes();
    match name.strip_suffix(b".slice") {
        None => name == b"burstable" || name == b"besteffort",
        Some(slice) => slice.ends_with(b"kubepods-burstable") || slice.ends_with(b"kubepods-besteffort"),
    }
}

/// A folder within another one.
struct Folder {
    name: OsString,
    path: PathBuf,
    id: u64,
}

/// Returns the folders within a folder.
///
/// Their ids come from the same read, so that no folder is asked for that has gone meanwhile.
fn folders(path: &Path) -> Result<Vec<Folder>, Error> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let mut folders = Vec::new();
    for entry in fs::read_dir(path).map_err(read)? {
        let entry = entry.map_err(read)?;
        if entry.file_type().map_err(read)?.is_dir() {
            folders.push(Folder { name: entry.file_name(), path: entry.path(), id: entry.ino() });
        }
    }
    Ok(folders)
}

/// Tells whether an error means that the folder was removed.
fn vanished(error: &io::Error) -> bool {
    // Reading a folder of kernfs that was opened before its removal gives ENODEV.
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// Returns what the kernel knows of a path.
fn metadata(path: &Path) -> Result<fs::Metadata, Error> {
    fs::metadata(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// Tells when the cgroup of a pod was made or removed.
#[derive(Debug)]
pub struct Watcher {
    inotify: AsyncFd<Inotify>,
    kubepods: PathBuf,
    /// What each watch is for.
    watches: HashMap<WatchDescriptor, Watched>,
}

/// What a watched folder is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Watched {
    /// The folder around kubepods: only the removal of kubepods matters there.
    Parent,
    /// Kubepods itself.
    Kubepods,
    /// The folder of a quality-of-service class, by its name.
    Qos(OsString),
}

impl Watcher {
    /// Starts to watch a kubepods cgroup.
    ///
    /// Everything that happens after this returns is told: scan with [`pods`] afterwards, not before. It must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    ///
    /// If the kernel's limits for inotify are reached, or the folder is gone.
    pub fn new(kubepods: &Kubepods) -> Result<Self, Error> {
        let inotify = Inotify::init().map_err(Error::Inotify)?;
        // SAFETY: `Inotify` owns its descriptor, returns the same one each time and closes it only when dropped. Nothing here
        // replaces it through a mutable reference.
        let inotify = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) };
        let inotify = inotify.map_err(|error| Error::Inotify(error.into()))?;
        let mut watcher = Self { inotify, kubepods: kubepods.path.clone(), watches: HashMap::new() };
        // No event names the removal of a cgroup's folder itself (kernfs sends no IN_DELETE_SELF), so watch from outside.
        let parent = kubepods.path.parent().expect("kubepods lies below the mount").to_owned();
        watcher.add(&parent, WatchMask::DELETE, Watched::Parent)?;
        watcher.add(&kubepods.path, WatchMask::CREATE | WatchMask::DELETE, Watched::Kubepods)?;
        watcher.watch_qos()?;
        Ok(watcher)
    }

    /// Waits until a pod's cgroup was made or removed.
    ///
    /// Several changes in a row may be told as one; none is lost. Dropping the future loses nothing either.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`] if the kubepods cgroup itself was removed; otherwise if inotify fails.
    pub async fn changed(&mut self) -> Result<(), Error> {
        loop {
            let mut guard = self.inotify.readable_mut().await.map_err(Error::Events)?;
            let mut buffer = [0; 4096];
            // Owned, so that the watches can be changed while the events are gone through.
            let events = match guard.try_io(|inotify| {
                let events = inotify.get_mut().read_events(&mut buffer)?;
                Ok(events.map(|event| event.to_owned()).collect::<Vec<_>>())
            }) {
                Ok(Ok(events)) => events,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(Err(error)) => return Err(Error::Events(error)),
                Err(_would_block) => continue,
            };
            let mut changed = false;
            for event in events {
                changed |= self.take(&event.wd, event.mask, event.name.as_deref())?;
            }
            if changed {
                return Ok(());
            }
        }
    }

    /// Takes note of one event and tells whether it concerns a pod.
    fn take(&mut self, wd: &WatchDescriptor, mask: EventMask, name: Option<&OsStr>) -> Result<bool, Error> {
        if mask.contains(EventMask::Q_OVERFLOW) {
            self.rescan()?;
            return Ok(true);
        }
        let Some(watched) = self.watches.get(wd) else {
            return Ok(false); // Queued before the watch was removed.
        };
        if mask.contains(EventMask::IGNORED) {
            // The kernel has ended this watch: its folder or its file system is gone.
            return match self.watches.remove(wd) {
                Some(Watched::Qos(_)) => Ok(true),
                _ => Err(self.gone()),
            };
        }
        let Some(name) = name else { return Ok(false) };
        match watched {
            Watched::Parent if Some(name) == self.kubepods.file_name() => Err(self.gone()),
            Watched::Parent => Ok(false),
            Watched::Qos(_) => Ok(pod_uid(name).is_some()),
            Watched::Kubepods if is_qos(name) => {
                if mask.contains(EventMask::DELETE) {
                    self.unwatch_qos(name)?;
                } else {
                    self.add_qos(name)?;
                }
                // Pods may have come into a new folder before it was watched.
                Ok(true)
            }
            Watched::Kubepods => Ok(pod_uid(name).is_some()),
        }
    }

    /// Makes up for lost events: watches what there is now.
    fn rescan(&mut self) -> Result<(), Error> {
        // A folder that was removed and made again needs a new watch, and the old one cannot be told from it by name.
        let names: Vec<_> = self
            .watches
            .values()
            .filter_map(|w| if let Watched::Qos(n) = w { Some(n.clone()) } else { None })
            .collect();
        for name in names {
            self.unwatch_qos(&name)?;
        }
        // If kubepods was removed and made again, the watch on it is dead; a fresh watch has another descriptor.
        let kubepods = self.kubepods.clone();
        match self.add(&kubepods, WatchMask::CREATE | WatchMask::DELETE, Watched::Kubepods) {
            Ok(Added::Known) => self.watch_qos(),
            Ok(Added::New) => Err(self.gone()),
            Err(Error::Watch { source, .. }) if vanished(&source) => Err(self.gone()),
            Err(error) => Err(error),
        }
    }

    /// Watches the folders of the quality-of-service classes that exist.
    fn watch_qos(&mut self) -> Result<(), Error> {
        for folder in folders(&self.kubepods)? {
            if is_qos(&folder.name) {
                self.add_qos(&folder.name)?;
            }
        }
        Ok(())
    }

    /// Watches the folder of a quality-of-service class, unless it has gone meanwhile.
    fn add_qos(&mut self, name: &OsStr) -> Result<(), Error> {
        let path = self.kubepods.join(name);
        match self.add(&path, WatchMask::CREATE | WatchMask::DELETE, Watched::Qos(name.to_owned())) {
            Ok(_) => Ok(()),
            Err(Error::Watch { source, .. }) if vanished(&source) => Ok(()), // Its removal is the next event.
            Err(error) => Err(error),
        }
    }

    /// Ends the watch on the folder of a quality-of-service class.
    fn unwatch_qos(&mut self, name: &OsStr) -> Result<(), Error> {
        let ended: Vec<_> =
            self.watches.extract_if(|_, w| matches!(w, Watched::Qos(n) if n == name)).collect();
        for (wd, _) in ended {
            match self.inotify.get_ref().watches().remove(wd) {
                Ok(()) => {}
                // The kernel has ended it already.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                Err(source) => return Err(Error::Watch { path: self.kubepods.join(name), source }),
            }
        }
        Ok(())
    }

    /// Watches one folder.
    fn add(&mut self, path: &Path, mask: WatchMask, watched: Watched) -> Result<Added, Error> {
        let wd = self
            .inotify
            .get_ref()
            .watches()
            .add(path, mask | WatchMask::ONLYDIR)
            .map_err(|source| Error::Watch { path: path.to_owned(), source })?;
        // The kernel gives the same descriptor to the same folder.
        Ok(if self.watches.insert(wd, watched).is_none() { Added::New } else { Added::Known })
    }

    /// The error for the end of kubepods.
    fn gone(&self) -> Error {
        Error::Gone { path: self.kubepods.clone() }
    }
}

/// Whether a folder was watched before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Added {
    New,
    Known,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(mountinfo: &str) -> Vec<String> {
        cgroup2_mounts(mountinfo.as_bytes())
            .into_iter()
            .map(|mount| mount.point.display().to_string())
            .collect()
    }

    #[test]
    fn the_mount_of_a_pure_v2_node_is_found() {
        let text = "22 27 0:21 / /proc rw,relatime - proc proc rw\n\
                    31 23 0:28 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(points(text), ["/sys/fs/cgroup"]);
    }

    #[test]
    fn the_mount_of_a_hybrid_node_is_found() {
        let text = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                    40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
                    41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(points(text), ["/sys/fs/cgroup/unified"]);
    }

    #[test]
    fn a_node_with_cgroup_v1_alone_has_no_mount() {
        let text =
            "40 31 0:37 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\nnonsense\n\n1 2 3";
        assert_eq!(points(text), [""; 0]);
        let hint = Error::NoCgroup2.to_string();
        assert!(hint.contains("systemd.unified_cgroup_hierarchy=1"), "{hint}");
    }

    #[test]
    fn octal_escapes_of_a_mount_point_are_undone() {
        let text = r"41 31 0:38 / /mnt/a\040b\134c\011d\ rw - cgroup2 none rw";
        assert_eq!(points(text), ["/mnt/a b\\c\td\\"]);
        assert_eq!(unescape(br"\303\251").as_os_str(), "é", "bytes above 127 are escaped one by one");
        assert_eq!(unescape(br"\09a\8").as_os_str(), r"\09a\8", "what is no escape stays");
    }

    #[test]
    fn the_mount_of_the_whole_hierarchy_comes_first() {
        let text = "41 31 0:38 /../../.. /host/cgroup rw - cgroup2 cgroup2 rw\n\
                    42 31 0:38 / /sys/fs/cgroup rw master:1 propagate_from:2 - cgroup2 cgroup2 rw\n\
                    43 31 0:38 /kubepods.slice /mnt rw - cgroup2 cgroup2 rw\n";
        assert_eq!(points(text), ["/sys/fs/cgroup", "/host/cgroup", "/mnt"]);
    }

    #[test]
    fn a_mount_that_another_one_covers_does_not_count() {
        let text = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
                    42 31 0:39 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n";
        assert_eq!(points(text), [""; 0]);
        let text = "41 31 0:38 /a /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
                    42 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            cgroup2_mounts(text.as_bytes()),
            [Mount { root: "/".into(), point: "/sys/fs/cgroup".into() }]
        );
    }

    #[test]
    fn the_mount_of_the_whole_hierarchy_is_told_by_its_id() {
        let text = "41 31 0:38 /../../.. /host rw - cgroup2 cgroup2 rw\n\
                    42 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let find = |host: Option<u64>, own: u64| {
            whole(cgroup2_mounts(text.as_bytes()), |point| match host {
                _ if point != Path::new("/host") => Ok(own),
                Some(id) => Ok(id),
                None => Err(Error::Read {
                    path: point.to_owned(),
                    source: io::ErrorKind::PermissionDenied.into(),
                }),
            })
        };
        assert_eq!(
            find(Some(1), 77).expect("the node's mount is there"),
            Path::new("/host"),
            "a private namespace"
        );
        assert_eq!(find(Some(77), 1).expect("the node's mount is there"), Path::new("/sys/fs/cgroup"));
        assert_eq!(find(None, 1).expect("the node's mount is there"), Path::new("/sys/fs/cgroup"));
        let error = find(Some(78), 77).expect_err("neither is whole").to_string();
        for part in ["/host", "/sys/fs/cgroup", "hostPath", "private cgroup namespace"] {
            assert!(error.contains(part), "{error} lacks {part}");
        }
        assert!(
            matches!(find(None, 77), Err(Error::Read { .. })),
            "what cannot be read may be the right one"
        );
        assert!(matches!(whole(Vec::new(), |_| Ok(1)), Err(Error::NoCgroup2)));
    }

    #[test]
    fn pod_folders_carry_the_uid() {
        const UID: &str = "01234567-89ab-cdef-0123-456789abcdef";
        const HASH: &str = "0123456789abcdef0123456789abcdef";
        let cases: &[(&str, Option<&str>)] = &[
            ("pod01234567-89ab-cdef-0123-456789abcdef", Some(UID)),
            ("pod0123456789abcdef0123456789abcdef", Some(HASH)),
            ("kubepods-pod01234567_89ab_cdef_0123_456789abcdef.slice", Some(UID)),
            ("kubepods-burstable-pod01234567_89ab_cdef_0123_456789abcdef.slice", Some(UID)),
            ("kubepods-besteffort-pod01234567_89ab_cdef_0123_456789abcdef.slice", Some(UID)),
            ("kubelet-kubepods-besteffort-pod01234567_89ab_cdef_0123_456789abcdef.slice", Some(UID)),
            ("kubelet-kubepods-pod0123456789abcdef0123456789abcdef.slice", Some(HASH)),
            ("a-b-kubepods-burstable-pod0123456789abcdef0123456789abcdef.slice", Some(HASH)),
            ("kubepods-podweb_1.slice", Some("web-1")),
            ("", None),
            ("pod", None),
            ("pods of mine", None),
            ("kubepods", None),
            ("burstable", None),
            ("kubepods.slice", None),
            ("kubepods-burstable.slice", None),
            ("kubepods-pod.slice", None),
            ("system-pod0123456789abcdef0123456789abcdef.slice", None),
            ("mykubepods-pod0123456789abcdef0123456789abcdef.slice", None),
            ("kubepods-pod0123456789abcdef0123456789abcdef.scope", None),
            ("cri-containerd-0123456789abcdef.scope", None),
            ("pod0123456789abcdef0123456789abcdef.slice", None),
        ];
        for (name, uid) in cases {
            assert_eq!(pod_uid(OsStr::new(name)).as_deref(), *uid, "{name}");
        }
        assert_eq!(pod_uid(OsStr::from_bytes(b"pod\xff")), None);
    }

    /// A folder tree that stands in for the hierarchy: finding and scanning need no cgroup file system.
    fn tree(paths: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary folder can be made");
        for path in paths {
            fs::create_dir_all(root.path().join(path)).expect("a folder can be made in it");
        }
        fs::write(root.path().join("cgroup.procs"), "").expect("a file can be written to it");
        root
    }

    #[test]
    fn kubepods_is_found_under_its_usual_names() {
        let cases = [
            ("kubepods.slice", 1),
            ("kubepods", 1),
            ("kubelet.slice/kubelet-kubepods.slice", 2),
            ("kubelet/kubepods", 2),
        ];
        for (path, level) in cases {
            let root = tree(&["system.slice/ssh.service", "user.slice", path]);
            let kubepods = find_in(root.path(), 0, None).expect(path);
            assert_eq!(kubepods.path, root.path().join(path));
            assert_eq!(kubepods.level, level, "{path}");
            assert_eq!(kubepods.id, fs::metadata(&kubepods.path).expect("it is there").ino(), "{path}");
            assert_eq!(
                find_in(root.path(), 3, None).expect(path).level,
                level + 3,
                "the mount's own depth counts"
            );
        }
    }

    #[test]
    fn no_kubepods_is_an_error_that_names_the_flag() {
        let root =
            tree(&["system.slice/x.slice/kubepods", "a/b-kubepods.slice", "mykubepods", "kubepods.scope"]);
        let error = find_in(root.path(), 0, None).expect_err("there is none");
        assert!(matches!(error, Error::NoKubepods { .. }), "{error}");
        for part in ["kubepods.slice", "--kubepods-cgroup", &root.path().display().to_string()] {
            assert!(error.to_string().contains(part), "{error} lacks {part}");
        }
    }

    #[test]
    fn several_kubepods_are_an_error_that_lists_them_unless_one_is_named() {
        let root = tree(&["kubepods.slice", "kubelet/kubepods"]);
        let error = find_in(root.path(), 0, None).expect_err("there are two").to_string();
        for path in ["kubepods.slice", "kubelet/kubepods"] {
            assert!(error.contains(&root.path().join(path).display().to_string()), "{error} lacks {path}");
        }
        let absolute = root.path().join("kubelet/kubepods");
        for given in [Path::new("kubelet/kubepods"), Path::new("/kubelet/kubepods/"), &absolute] {
            let kubepods = find_in(root.path(), 0, Some(given)).expect("it is there");
            assert_eq!(
                (kubepods.path.as_path(), kubepods.level),
                (absolute.as_path(), 2),
                "{}",
                given.display()
            );
        }
    }

    #[test]
    fn a_named_kubepods_must_be_a_folder_below_the_mount() {
        let root = tree(&["a/b"]);
        let missing = find_in(root.path(), 0, Some(Path::new("a/c"))).expect_err("it is not there");
        assert!(matches!(missing, Error::NoSuchCgroup { .. }), "{missing}");
        for given in ["", "/", ".", "a/../a", "cgroup.procs"] {
            let error = find_in(root.path(), 0, Some(Path::new(given))).expect_err(given);
            assert!(matches!(error, Error::NotBelowMount { .. }), "{given}: {error}");
        }
        let error =
            find_in(Path::new("/"), 0, Some(Path::new("/proc/self"))).expect_err("another file system");
        assert!(matches!(error, Error::NotBelowMount { .. }), "{error}");
    }

    #[test]
    fn pods_of_every_class_are_scanned_with_their_level() {
        let root = tree(&[
            "kubepods.slice/kubepods-pod0_1.slice/cri-containerd-1.scope",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0_2.slice",
            "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0_3.slice",
            "kubepods.slice/kubepods-besteffort.slice/other.slice",
            "kubepods.slice/other.slice/kubepods-pod0_4.slice",
        ]);
        let kubepods = find_in(root.path(), 0, None).expect("it is there");
        let found = pods(&kubepods).expect("the tree can be read");
        let brief: Vec<_> = found.iter().map(|pod| (pod.uid.as_str(), pod.level)).collect();
        assert_eq!(brief, [("0-1", 2), ("0-2", 3), ("0-3", 3)]);
        for pod in found {
            assert_eq!(pod.id, fs::metadata(&pod.path).expect("it is there").ino(), "{}", pod.uid);
        }
    }

    #[test]
    fn a_missing_kubepods_cannot_be_scanned() {
        let kubepods =
            Kubepods { mount: "/nowhere".into(), path: "/nowhere/kubepods".into(), level: 1, id: 2 };
        let error = pods(&kubepods).expect_err("an empty list would mean that there are no pods");
        assert!(matches!(error, Error::Read { .. }), "{error}");
    }

    #[tokio::test]
    async fn lost_events_are_made_up_for() {
        let root = tree(&["kubepods/burstable"]);
        let kubepods = find_in(root.path(), 0, None).expect("it is there");
        let mut watcher = Watcher::new(&kubepods).expect("it can be watched");
        let wd = watcher.watches.keys().next().expect("there are watches").clone();
        fs::create_dir(kubepods.path.join("besteffort")).expect("a folder can be made");
        assert!(
            watcher.take(&wd, EventMask::Q_OVERFLOW, None).expect("it is still there"),
            "an overflow means look again"
        );
        let qos = watcher.watches.values().filter(|w| matches!(w, Watched::Qos(_))).count();
        assert_eq!(qos, 2, "a folder whose event was lost is watched: {:?}", watcher.watches);
        fs::remove_dir_all(&kubepods.path).expect("it can be removed");
        fs::create_dir(&kubepods.path).expect("it can be made again");
        let error = watcher.take(&wd, EventMask::Q_OVERFLOW, None).expect_err("this is another kubepods");
        assert!(matches!(error, Error::Gone { .. }), "{error}");
    }
}
