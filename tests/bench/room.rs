//! Cgroups laid out as kubelet does it, for the benchmark's own processes, and the memory group its loads are charged to.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use egress_agent::kernel::cgroup::{self, Kubepods};

const PREFIX: &str = "egress-bench-";

/// Quality of service of a pod, which decides how deep its cgroup lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// One level below kubepods.
    Guaranteed,
    /// Two levels below.
    Burstable,
}

/// A kubepods cgroup of our own; removed at the end.
#[derive(Debug)]
pub struct Room {
    root: PathBuf,
    /// Where this process came from.
    home: PathBuf,
    /// The kubepods cgroup.
    pub kubepods: Kubepods,
}

/// A pod's cgroup.
#[derive(Clone, Debug)]
pub struct PodRoom {
    /// Its id.
    pub id: u64,
    /// The cgroup of its container, where processes go.
    pub container: PathBuf,
}

impl Room {
    /// Makes one, and removes what a killed benchmark has left behind.
    ///
    /// # Errors
    ///
    /// When the cgroup v2 hierarchy is not there or not writable.
    pub fn make() -> Result<Self> {
        let mount = cgroup::hierarchy()?;
        sweep(&mount)?;
        let home = mount.join(own_group("0::")?.trim_start_matches('/'));
        let root = mount.join(format!("{PREFIX}{}", process::id()));
        let path = root.join("kubepods");
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let kubepods = match cgroup::find_in(&mount, 0, Some(&path)) {
            Ok(kubepods) => kubepods,
            Err(error) => {
                remove(&root)?;
                return Err(error.into());
            }
        };
        Ok(Self { root, home, kubepods })
    }

    /// Makes a pod with one container.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn pod(&self, qos: Qos, uid: &str) -> Result<PodRoom> {
        let class = match qos {
            Qos::Guaranteed => self.kubepods.path.clone(),
            Qos::Burstable => self.kubepods.path.join("burstable"),
        };
        let pod = class.join(format!("pod{uid}"));
        let container = pod.join("container");
        fs::create_dir_all(&container).with_context(|| format!("cannot make {}", container.display()))?;
        let id = fs::metadata(&pod).with_context(|| format!("cannot look at {}", pod.display()))?.ino();
        Ok(PodRoom { id, container })
    }

    /// Moves this process into a pod.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn enter(&self, pod: &PodRoom) -> Result<()> {
        move_to(&pod.container, process::id())
    }

    /// Moves this process back to where it came from.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn leave(&self) -> Result<()> {
        move_to(&self.home, process::id())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Err(error) = self.leave().and_then(|()| remove(&self.root)) {
            eprintln!("{} stays behind: {error:#}", self.root.display());
        }
    }
}

/// Moves a process into a cgroup.
///
/// # Errors
///
/// When the kernel refuses.
pub fn move_to(group: &Path, process: u32) -> Result<()> {
    let file = group.join("cgroup.procs");
    fs::write(&file, process.to_string()).with_context(|| format!("cannot write {}", file.display()))
}

/// The path of this process in one hierarchy, by how its line in `/proc/self/cgroup` begins or what its second field is.
fn own_group(prefix: &str) -> Result<String> {
    let text = fs::read_to_string("/proc/self/cgroup").context("cannot read /proc/self/cgroup")?;
    text.lines()
        .find_map(|line| line.strip_prefix(prefix))
        .map(ToOwned::to_owned)
        .with_context(|| format!("/proc/self/cgroup has no line {prefix}"))
}

/// Removes the rooms of benchmarks that no longer run.
fn sweep(mount: &Path) -> Result<()> {
    for entry in fs::read_dir(mount).with_context(|| format!("cannot list {}", mount.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(owner) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let owner = owner.trim_end_matches("-memory");
        if !Path::new("/proc").join(owner).exists() {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a cgroup and all below it; processes that have just ended may take a moment to leave.
fn remove(group: &Path) -> Result<()> {
    for entry in fs::read_dir(group).with_context(|| format!("cannot list {}", group.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("cannot remove {}", group.display()));
            }
            Err(_busy) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// A memory cgroup this process is in, to read what the kernel charges it.
#[derive(Debug)]
pub struct MemoryGroup {
    group: PathBuf,
    home: PathBuf,
    version: u8,
}

impl MemoryGroup {
    /// Enters one; `None` where there is no memory controller to use.
    ///
    /// # Errors
    ///
    /// When the kernel refuses although the controller is there.
    pub fn enter() -> Result<Option<Self>> {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let name = format!("{PREFIX}{}-memory", process::id());
        let (group, home, version) = if v1.join("memory.kmem.usage_in_bytes").exists() {
            sweep(v1)?;
            let text = fs::read_to_string("/proc/self/cgroup").context("cannot read /proc/self/cgroup")?;
            let own = text
                .lines()
                .find_map(|line| line.split_once(":memory:").map(|(_, path)| path))
                .context("this process is in no memory group")?;
            (v1.join(name), v1.join(own.trim_start_matches('/')), 1)
        } else {
            let mount = cgroup::hierarchy()?;
            (mount.join(name), mount.join(own_group("0::")?.trim_start_matches('/')), 2)
        };
        fs::create_dir(&group).with_context(|| format!("cannot make {}", group.display()))?;
        let group = Self { group, home, version };
        if group.version == 2 && !group.group.join("memory.stat").exists() {
            return Ok(None);
        }
        move_to(&group.group, process::id())?;
        Ok(Some(group))
    }

    /// Bytes of kernel memory charged to the group.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn kernel_bytes(&self) -> Result<u64> {
        let (file, key) = match self.version {
            1 => ("memory.kmem.usage_in_bytes", ""),
            _ => ("memory.stat", "kernel "),
        };
        let file = self.group.join(file);
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let value = text.lines().find_map(|line| line.strip_prefix(key));
        let Some(value) = value else { bail!("{} has no line {key}", file.display()) };
        value.trim().parse().with_context(|| format!("{} is no number", file.display()))
    }

    /// Where it is read, for the report.
    #[must_use]
    pub fn source(&self) -> &'static str {
        match self.version {
            1 => "`memory.kmem.usage_in_bytes` of a memory cgroup (v1)",
            _ => "`kernel` in `memory.stat` of a cgroup (v2)",
        }
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        if let Err(error) = move_to(&self.home, process::id()).and_then(|()| remove(&self.group)) {
            eprintln!("{} stays behind: {error:#}", self.group.display());
        }
    }
}
