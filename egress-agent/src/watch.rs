//! Tells when something below a path may have changed.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::{Interest, unix::AsyncFd};

use crate::k8s::manifests::{MAX_DIRECTORIES, is_hidden};

/// Watches a file, or a directory and everything below it.
///
/// A file is watched through its directory, because editors and ConfigMap mounts replace it; so are the links that lead to it.
/// A file wakes when it is whole: when its writer has closed it, or when it was put there or taken away under its name.
#[derive(Debug)]
pub struct Watch {
    inotify: AsyncFd<Inotify>,
    path: PathBuf,
    watched: HashMap<WatchDescriptor, Watched>,
}

/// What is told about a directory.
#[derive(Debug)]
struct Watched {
    path: PathBuf,
    /// Everything in it counts.
    whole: bool,
    /// Otherwise only these names do.
    names: BTreeSet<OsString>,
}

/// What changes contents. A file that was made is not complete yet, so making one counts only for directories and links.
const CHANGES: WatchMask = WatchMask::CREATE
    .union(WatchMask::DELETE)
    .union(WatchMask::MOVE)
    .union(WatchMask::CLOSE_WRITE)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::MOVE_SELF);

impl Watch {
    /// Starts to watch. It must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When what is above the path does not exist, or the kernel's limits for inotify are reached.
    pub fn new(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        // SAFETY: `Inotify` owns its descriptor, returns the same one each time and closes it only when dropped.
        let inotify = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }
            .map_err(io::Error::from)?;
        let mut watch = Self { inotify, path: path.to_owned(), watched: HashMap::new() };
        watch.renew()?;
        Ok(watch)
    }

    /// Watches directories that have come since. Those that are watched already stay so.
    ///
    /// # Errors
    ///
    /// When what is above the path does not exist, or the kernel's limits for inotify are reached.
    pub fn renew(&mut self) -> io::Result<()> {
        for (folder, name) in names(&self.path) {
            let watched = self.add(&folder)?;
            watched.names.insert(name);
        }
        match fs::metadata(&self.path) {
            Ok(metadata) if metadata.is_dir() => self.add_below(&self.path.clone(), &mut BTreeSet::new()),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn add(&mut self, folder: &Path) -> io::Result<&mut Watched> {
        let descriptor = self.inotify.get_ref().watches().add(folder, CHANGES)?;
        Ok(self.watched.entry(descriptor).or_insert_with(|| Watched {
            path: folder.to_owned(),
            whole: false,
            names: BTreeSet::new(),
        }))
    }

    fn add_below(&mut self, folder: &Path, seen: &mut BTreeSet<(u64, u64)>) -> io::Result<()> {
        let vanished = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        match fs::metadata(folder) {
            Ok(metadata) if seen.insert((metadata.dev(), metadata.ino())) => {}
            Ok(_) => return Ok(()),
            Err(error) if vanished(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
        // No more is read either.
        if seen.len() > MAX_DIRECTORIES {
            return Ok(());
        }
        let entries = match self.add(folder) {
            Ok(watched) => {
                watched.whole = true;
                fs::read_dir(folder)
            }
            Err(error) => Err(error),
        };
        let entries = match entries {
            Err(error) if vanished(&error) => return Ok(()),
            other => other?,
        };
        let mut below = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if !is_hidden(&path) && path.is_dir() {
                below.push(path);
            }
        }
        below.sort_unstable();
        below.iter().try_for_each(|path| self.add_below(path, seen))
    }

    /// Waits for a change. Several at once count as one.
    ///
    /// # Errors
    ///
    /// When the kernel can no longer be asked.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut guard = self.inotify.readable_mut().await?;
            let mut buffer = [0; 4096];
            let events = guard.try_io(|inotify| {
                let events = inotify.get_mut().read_events(&mut buffer)?;
                Ok(events.map(|event| event.to_owned()).collect::<Vec<_>>())
            });
            match events {
                Ok(Ok(events)) => {
                    let mut counts = false;
                    for event in events {
                        counts |= self.counts(&event.wd, event.mask, event.name.as_deref());
                    }
                    if counts {
                        return Ok(());
                    }
                }
                Err(_would_block) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
            }
        }
    }

    /// Returns whether an event may mean that something else is to be read now.
    fn counts(&mut self, descriptor: &WatchDescriptor, mask: EventMask, name: Option<&OsStr>) -> bool {
        if mask.contains(EventMask::IGNORED) {
            self.watched.remove(descriptor);
            return true;
        }
        // What is not known was lost with the rest when the queue was full.
        let (Some(watched), Some(name)) = (self.watched.get(descriptor), name) else { return true };
        if !watched.whole && !watched.names.contains(name) {
            return false;
        }
        if !mask.contains(EventMask::CREATE) || mask.contains(EventMask::ISDIR) {
            return true;
        }
        // A second name of a file, like a link, has no writer that will close it.
        fs::symlink_metadata(watched.path.join(name))
            .is_ok_and(|metadata| !metadata.is_file() || metadata.nlink() > 1)
    }
}

/// Returns the names, each with its folder, through which a path leads to a file: its own and those of links on the way.
fn names(path: &Path) -> Vec<(PathBuf, OsString)> {
    /// As deep as the kernel follows links.
    const DEEPEST: usize = 40;
    let mut names = Vec::new();
    let mut path = path.to_owned();
    for _ in 0..DEEPEST {
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            Some(_) => PathBuf::from("."),
            None => return names,
        };
        let Some(name) = path.file_name() else { return names };
        names.push((parent.clone(), name.to_owned()));
        let Ok(target) = fs::read_link(&path) else { return names };
        // The first part of a relative one may be what is replaced, as with the `..data` of a mounted ConfigMap.
        if let Some(first) = target.components().next()
            && target.is_relative()
        {
            names.push((parent.clone(), first.as_os_str().to_owned()));
        }
        path = parent.join(target);
        if !path.parent().is_some_and(Path::is_dir) {
            return names;
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn wakes(watch: &mut Watch) -> bool {
        let woke = tokio::time::timeout(Duration::from_secs(2), watch.changed()).await;
        woke.is_ok_and(|result| result.is_ok())
    }

    async fn quiet(watch: &mut Watch) {
        while tokio::time::timeout(Duration::from_millis(20), watch.changed()).await.is_ok() {}
    }

    #[tokio::test]
    async fn a_write_in_a_folder_made_later_wakes() {
        let root = tempfile::tempdir().expect("a folder can be made");
        let mut watch = Watch::new(root.path()).expect("it can be watched");
        let below = root.path().join("team");
        fs::create_dir(&below).expect("a folder can be made");
        assert!(wakes(&mut watch).await, "the new folder");
        watch.renew().expect("it can be watched");
        quiet(&mut watch).await;
        fs::write(below.join("policy.yaml"), "x").expect("a file can be written");
        assert!(wakes(&mut watch).await, "the file in it");
    }

    #[tokio::test]
    async fn a_replaced_file_wakes() {
        let root = tempfile::tempdir().expect("a folder can be made");
        let file = root.path().join("all.yaml");
        fs::write(&file, "a").expect("a file can be written");
        let mut watch = Watch::new(&file).expect("it can be watched");
        quiet(&mut watch).await;
        let next = root.path().join("next");
        fs::write(&next, "b").expect("a file can be written");
        fs::rename(&next, &file).expect("it can be renamed");
        assert!(wakes(&mut watch).await, "the file was replaced");
    }

    #[tokio::test]
    async fn a_file_wakes_when_it_is_whole_and_its_neighbours_do_not() {
        use std::io::Write as _;
        let folder = tempfile::tempdir().expect("a folder can be made");
        let root = folder.path().join("manifests");
        fs::create_dir(&root).expect("a folder can be made");
        let mut watch = Watch::new(&root).expect("it can be watched");
        quiet(&mut watch).await;
        let silent = async |watch: &mut Watch| {
            tokio::time::timeout(Duration::from_millis(100), watch.changed()).await.is_err()
        };
        fs::write(folder.path().join("agent.log"), "x").expect("a file can be written");
        assert!(silent(&mut watch).await, "a file beside the directory");
        let mut file = fs::File::create(root.join("a.yaml")).expect("a file can be made");
        file.write_all(b"kind: Po").expect("a file can be written");
        assert!(silent(&mut watch).await, "half of a file");
        drop(file);
        assert!(wakes(&mut watch).await, "the whole file");
        quiet(&mut watch).await;
        fs::hard_link(root.join("a.yaml"), root.join("b.yaml")).expect("a link can be made");
        assert!(wakes(&mut watch).await, "a second name");
    }

    #[tokio::test]
    async fn a_file_behind_the_links_of_a_mounted_config_map_wakes() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().expect("a folder can be made");
        let path = |name: &str| folder.path().join(name);
        for version in ["..1", "..2"] {
            fs::create_dir(path(version)).expect("a folder can be made");
            fs::write(path(version).join("all.yaml"), version).expect("a file can be written");
        }
        symlink("..1", path("..data")).expect("a link can be made");
        symlink("..data/all.yaml", path("all.yaml")).expect("a link can be made");
        let mut watch = Watch::new(&path("all.yaml")).expect("it can be watched");
        quiet(&mut watch).await;
        symlink("..2", path("..next")).expect("a link can be made");
        fs::rename(path("..next"), path("..data")).expect("it can be renamed");
        assert!(wakes(&mut watch).await, "another version is mounted");
    }

    #[tokio::test]
    async fn a_path_that_does_not_exist_is_an_error() {
        assert!(Watch::new(Path::new("/nonexistent/below/this")).is_err(), "nothing to watch");
    }
}
