//! Finding and watching pods' cgroups in the real cgroup v2 hierarchy, below a folder of the test's own.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use egress_agent::kernel::cgroup::{self, Error, Kubepods, Watcher};
use tokio::{runtime::Runtime, time::timeout};

const UID: &str = "01234567-89ab-cdef-0123-456789abcdef";
const POD: &str = "kubepods-burstable-pod01234567_89ab_cdef_0123_456789abcdef.slice";

/// How long to wait for what must happen.
const SOON: Duration = Duration::from_secs(5);

/// A cgroup of the test's own, removed with everything below it at the end, also when the test fails.
struct Sandbox {
    mount: PathBuf,
    path: PathBuf,
}

impl Sandbox {
    /// Makes the cgroup; `name` keeps tests apart that run at the same time.
    fn new(name: &str) -> Self {
        let mount = cgroup::hierarchy().expect("these tests need a cgroup v2 mount");
        let path = mount.join(format!("egress-test-{}-{name}", std::process::id()));
        fs::create_dir(&path).expect("these tests need root");
        Self { mount, path }
    }

    /// Makes a cgroup below, with those around it.
    fn make(&self, path: &str) {
        fs::create_dir_all(self.path.join(path)).expect("a cgroup can be made");
    }

    /// Removes a cgroup below.
    fn remove(&self, path: &str) {
        fs::remove_dir(self.path.join(path)).expect("an empty cgroup can be removed");
    }

    /// Returns the kubepods cgroup found here.
    fn kubepods(&self) -> Kubepods {
        cgroup::find_in(&self.path, 1, None).expect("there is a kubepods cgroup in the sandbox")
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        fn remove(path: &Path) -> std::io::Result<()> {
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    remove(&entry.path())?;
                }
            }
            fs::remove_dir(path)
        }
        if let Err(error) = remove(&self.path) {
            eprintln!("{} stays behind: {error}", self.path.display());
        }
    }
}

/// A runtime with one thread, as the agent has.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be had")
}

/// Waits for a change that must come.
async fn change(watcher: &mut Watcher) {
    timeout(SOON, watcher.changed()).await.expect("the change is told").expect("the watcher works");
}

/// Waits a little for a change that must not come.
async fn no_change(watcher: &mut Watcher) {
    let told = timeout(Duration::from_millis(20), watcher.changed()).await;
    assert!(told.is_err(), "nothing happened to a pod: {told:?}");
}

#[test]
fn the_hierarchy_is_whole_and_on_cgroup2() {
    let mount = cgroup::hierarchy().expect("these tests need a cgroup v2 mount");
    let magic = rustix::fs::statfs(&mount).expect("it can be asked").f_type;
    assert_eq!(magic, 0x6367_7270, "{} is on cgroup2", mount.display());
}

#[test]
fn ids_are_those_of_the_kernel() {
    let sandbox = Sandbox::new("ids");
    sandbox.make("kubepods.slice");
    let kubepods = sandbox.kubepods();
    assert_eq!(kubepods.level, 2);
    // A file handle of cgroup2 holds the 64-bit id alone: what bpf_skb_ancestor_cgroup_id returns.
    assert_eq!(kubepods.id, handle_id(&kubepods.path), "the inode number is the id");

    sandbox.make(&format!("kubepods.slice/kubepods-burstable.slice/{POD}/cri-containerd-1.scope"));
    let pods = cgroup::pods(&kubepods).expect("the cgroups can be read");
    assert_eq!(pods.len(), 1, "{pods:?}");
    assert_eq!((pods[0].uid.as_str(), pods[0].level), (UID, 4));
    assert_eq!(pods[0].id, handle_id(&pods[0].path), "the inode number is the id");
}

/// Returns the cgroup id as the kernel puts it into a file handle.
fn handle_id(path: &Path) -> u64 {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        id: u64,
    }
    let path =
        std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).expect("the path holds no zero byte");
    let mut handle = Handle { bytes: 8, kind: 0, id: 0 };
    let mut mount_id = 0;
    // SAFETY: `path` ends with a zero byte; `handle` begins as `struct file_handle` does and has room for the 8 bytes it
    // announces; both outlive the call.
    let failed = unsafe {
        libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), (&raw mut handle).cast(), &mut mount_id, 0)
    };
    assert_eq!(failed, 0, "{path:?}: {}", std::io::Error::last_os_error());
    assert_eq!(handle.bytes, 8);
    assert_eq!(handle.kind, 0xfe, "FILEID_KERNFS");
    handle.id
}

#[test]
fn a_kubepods_cgroup_can_be_named() {
    let sandbox = Sandbox::new("named");
    sandbox.make("deep/er/kubepods");
    let absolute = sandbox.path.join("deep/er/kubepods");
    let relative = absolute.strip_prefix(&sandbox.mount).expect("it lies below the mount");
    for given in [&absolute, relative] {
        let kubepods = cgroup::find(Some(given)).expect("it is there");
        assert_eq!((&kubepods.path, kubepods.level), (&absolute, 4));
        assert_eq!(kubepods.mount, sandbox.mount);
    }
    let error = cgroup::find(Some(Path::new("no/such/cgroup"))).expect_err("it is not there");
    assert!(matches!(error, Error::NoSuchCgroup { .. }), "{error}");
}

#[test]
fn pods_are_told_as_they_come_and_go() {
    runtime().block_on(async {
        let sandbox = Sandbox::new("watch");
        sandbox.make("kubepods.slice/kubepods-burstable.slice");
        let kubepods = sandbox.kubepods();
        let mut watcher = Watcher::new(&kubepods).expect("it can be watched");
        let uids = || {
            let pods = cgroup::pods(&kubepods).expect("the cgroups can be read");
            pods.into_iter().map(|pod| pod.uid).collect::<Vec<_>>()
        };
        no_change(&mut watcher).await;

        // A guaranteed pod stands in kubepods itself; its containers come below it and are no change.
        sandbox.make("kubepods.slice/kubepods-podaa_1.slice");
        change(&mut watcher).await;
        assert_eq!(uids(), ["aa-1"]);
        sandbox.make("kubepods.slice/kubepods-podaa_1.slice/cri-containerd-1.scope");
        sandbox.make("kubepods.slice/other.slice");
        sandbox.make("other.slice");
        no_change(&mut watcher).await;

        // A pod of a class whose folder was there.
        sandbox.make("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podbb_2.slice");
        change(&mut watcher).await;
        assert_eq!(uids(), ["aa-1", "bb-2"]);

        // A pod of a class whose folder comes with it: in whatever order it is seen, a scan after the last change finds it.
        sandbox.make("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podcc_3.slice");
        change(&mut watcher).await;
        assert_eq!(uids(), ["aa-1", "bb-2", "cc-3"]);
        sandbox.make("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-poddd_4.slice");
        change(&mut watcher).await;
        assert_eq!(uids(), ["aa-1", "bb-2", "cc-3", "dd-4"], "the new folder is watched");

        // Many changes are told as few.
        for n in 0..100 {
            sandbox.make(&format!(
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podee_{n}.slice"
            ));
        }
        let mut told = 0;
        while timeout(Duration::from_millis(20), watcher.changed()).await.is_ok() {
            told += 1;
        }
        assert!((1..=20).contains(&told), "100 changes were told as {told}");
        assert_eq!(uids().len(), 104);

        sandbox.remove("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podbb_2.slice");
        change(&mut watcher).await;
        assert!(!uids().contains(&"bb-2".to_owned()));

        // A folder that is removed and made again is watched again.
        sandbox.remove("kubepods.slice/kubepods-burstable.slice");
        change(&mut watcher).await;
        sandbox.make("kubepods.slice/kubepods-burstable.slice");
        change(&mut watcher).await;
        sandbox.make("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podff_5.slice");
        change(&mut watcher).await;
        assert!(uids().contains(&"ff-5".to_owned()));
    });
}

#[test]
fn the_end_of_kubepods_is_told() {
    runtime().block_on(async {
        let sandbox = Sandbox::new("gone");
        sandbox.make("kubepods");
        let mut watcher = Watcher::new(&sandbox.kubepods()).expect("it can be watched");
        sandbox.remove("kubepods");
        sandbox.make("kubepods");
        let told = timeout(SOON, watcher.changed()).await.expect("it is told");
        assert!(
            matches!(told, Err(Error::Gone { .. })),
            "another cgroup of the same name is not the same: {told:?}"
        );
    });
}

#[test]
fn a_new_pod_is_told_within_a_millisecond() {
    runtime().block_on(async {
        const ROUNDS: usize = 101;
        let sandbox = Sandbox::new("latency");
        sandbox.make("kubepods/burstable");
        let mut watcher = Watcher::new(&sandbox.kubepods()).expect("it can be watched");
        let mut latencies = Vec::new();
        for round in 0..ROUNDS {
            let path = sandbox.path.join(format!("kubepods/burstable/pod{round}"));
            let maker = std::thread::spawn(move || {
                // The watcher sleeps by the time the folder comes.
                std::thread::sleep(Duration::from_millis(2));
                fs::create_dir(path).expect("a cgroup can be made");
                Instant::now()
            });
            change(&mut watcher).await;
            let told = Instant::now();
            let made = maker.join().expect("the cgroup was made");
            latencies.push(told.saturating_duration_since(made));
        }
        latencies.sort();
        let (median, worst) = (latencies[ROUNDS / 2], latencies[ROUNDS - 1]);
        println!("from mkdir to the watcher: median {median:?}, worst of {ROUNDS} {worst:?}");
        assert!(
            median < Duration::from_millis(1),
            "the median of {ROUNDS} is {median:?}, the worst {worst:?}"
        );
    });
}
