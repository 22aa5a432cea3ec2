//! Tells when something below a path may have changed.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use inotify::{Inotify, WatchMask};
use tokio::io::{Interest, unix::AsyncFd};

/// Watches a file, or a directory and everything below it.
///
/// A file is watched through its directory, because editors and ConfigMap mounts replace it. Symbolic links are followed one
/// step: the directory a link leads to is watched as well.
#[derive(Debug)]
pub struct Watch {
    inotify: AsyncFd<Inotify>,
    path: PathBuf,
}

/// What changes contents; reading does not wake us.
const CHANGES: WatchMask = WatchMask::CREATE
    .union(WatchMask::DELETE)
    .union(WatchMask::MOVE)
    .union(WatchMask::CLOSE_WRITE)
    .union(WatchMask::MODIFY)
    .union(WatchMask::ATTRIB)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::MOVE_SELF);

impl Watch {
    /// Starts to watch. It must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the path or what is above it does not exist, or the kernel's limits for inotify are reached.
    pub fn new(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        // SAFETY: `Inotify` owns its descriptor, returns the same one each time and closes it only when dropped.
        let inotify = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }
            .map_err(io::Error::from)?;
        let watch = Self { inotify, path: path.to_owned() };
        watch.renew()?;
        Ok(watch)
    }

    /// Watches directories that have come since. Those that are watched already stay so.
    ///
    /// # Errors
    ///
    /// When the path or what is above it does not exist, or the kernel's limits for inotify are reached.
    pub fn renew(&self) -> io::Result<()> {
        let parent = match self.path.parent() {
            None => Path::new("/"),
            Some(parent) if parent == Path::new("") => Path::new("."),
            Some(parent) => parent,
        };
        self.add(parent)?;
        if self.path.is_dir() { self.add_below(&self.path, 0) } else { Ok(()) }
    }

    fn add(&self, folder: &Path) -> io::Result<()> {
        self.inotify.get_ref().watches().add(folder, CHANGES).map(|_| ())
    }

    fn add_below(&self, folder: &Path, depth: usize) -> io::Result<()> {
        /// Deeper than anybody nests manifests; ends loops of links.
        const DEEPEST: usize = 16;
        if depth > DEEPEST {
            return Ok(());
        }
        match self.add(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let hidden =
                path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(".git"));
            if path.is_dir() && !hidden {
                self.add_below(&path, depth + 1)?;
            }
        }
        Ok(())
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
            match guard.try_io(|inotify| inotify.get_mut().read_events(&mut buffer).map(Iterator::count)) {
                Ok(Ok(0)) | Err(_) => {}
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => return Err(error),
            }
        }
    }
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
    async fn a_path_that_does_not_exist_is_an_error() {
        assert!(Watch::new(Path::new("/nonexistent/below/this")).is_err(), "nothing to watch");
    }
}
