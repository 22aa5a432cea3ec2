//! Which cgroup belongs to which pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path},
};

use crate::{
    kernel::cgroup::{Kubepods, PodCgroup},
    policy::{
        cluster::{NsName, Pod},
        compile::Compiled,
    },
};

/// Returns the pods that each cgroup may belong to, by the cgroup's id and in the order of their names.
///
/// More than one is a mistake of whoever wrote the manifests. A static pod's cgroup is named after the hash of its manifest,
/// which stands in an annotation of the pod the API shows for it; a pod that has that very UID comes first.
pub(super) fn claims<'a>(
    pods: &[(&'a NsName, &'a Pod)],
    cgroups: &BTreeMap<String, PodCgroup>,
) -> BTreeMap<u64, Vec<&'a NsName>> {
    let uids: BTreeSet<&str> = pods.iter().map(|(_, pod)| pod.uid()).collect();
    let mut claims: BTreeMap<u64, Vec<&NsName>> = BTreeMap::new();
    for (id, pod) in pods.iter().copied().filter(|(_, pod)| !pod.finished) {
        let hash = || Some(pod.static_hash()).filter(|hash| !hash.is_empty() && !uids.contains(hash));
        let cgroup = cgroups.get(pod.uid()).or_else(|| hash().and_then(|hash| cgroups.get(hash)));
        if let Some(cgroup) = cgroup {
            claims.entry(cgroup.id).or_default().push(id);
        }
    }
    claims
}

/// Returns which of the pods that claim one cgroup it is taken for: the first that is governed, so that a pod nobody governs
/// never opens one that somebody does.
pub(super) fn strictest<'a>(
    claimants: &[&'a NsName],
    compiled: &BTreeMap<NsName, Compiled>,
) -> Option<&'a NsName> {
    let governed = |pod: &&&NsName| compiled.get(**pod).is_some_and(|compiled| compiled.set.is_some());
    claimants.iter().find(governed).or(claimants.first()).copied()
}

/// Returns whether this is the UID of a static pod: the hash of its manifest, 32 hexadecimal digits. The API server gives no other pod
/// such a UID, and no user can choose one.
fn is_static(uid: &str) -> bool {
    uid.len() == 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What is to hold for a cgroup that no pod claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unclaimed {
    /// What governs it already.
    Held,
    /// Nothing, and that is counted.
    Passes,
    /// What the start mode says.
    Unknown,
}

/// Returns what is to hold for a cgroup that no pod claims. `opens` is whether a pod may pass because nobody knows it any more.
///
/// A pod that the API no longer shows, or shows as finished, may still run: one deleted by force does until its grace period ends,
/// and whoever wrote it chose that. So where it would pass, what governs it holds for as long as its cgroup is there; in strict
/// mode nothing leaves it.
///
/// Only root on the node makes static pods. Before the API shows one, it may be what the API server itself runs in: to deny it
/// would be to wait for ever.
pub(super) fn unclaimed(cgroup: &PodCgroup, governed: bool, opens: bool) -> Unclaimed {
    match (governed, is_static(&cgroup.uid)) {
        (true, is_static) if opens || is_static => Unclaimed::Held,
        (false, true) => Unclaimed::Passes,
        _ => Unclaimed::Unknown,
    }
}

/// Returns the cgroup of the pod this process runs in: that of the pod with this UID, or without one, the one it sees itself in
/// where that is below kubepods (in a cgroup namespace of its own it sees nothing).
pub(super) fn own_cgroup(
    cgroups: &BTreeMap<String, PodCgroup>,
    uid: Option<&str>,
    kubepods: &Kubepods,
) -> Option<u64> {
    if let Some(uid) = uid {
        return cgroups.get(uid).map(|cgroup| cgroup.id);
    }
    let text = match fs::read_to_string("/proc/self/cgroup") {
        Ok(text) => text,
        Err(error) => {
            tracing::debug!(%error, "this process cannot tell its cgroup");
            return None;
        }
    };
    let own = below(&text, &kubepods.mount)?;
    cgroups.values().find(|cgroup| own.starts_with(&cgroup.path)).map(|cgroup| cgroup.id)
}

/// Returns the folder of the cgroup v2 that `/proc/self/cgroup` names, below the mount.
fn below(text: &str, mount: &Path) -> Option<std::path::PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let path = Path::new(path.strip_prefix('/')?);
    let plain = path.components().all(|component| matches!(component, Component::Normal(_)));
    plain.then(|| mount.join(path))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::policy::cluster::Local;

    #[test]
    fn the_own_cgroup_is_found_where_it_can_be_seen() {
        let mount = Path::new("/m");
        let path = |text: &str| below(text, mount);
        assert_eq!(path("1:name=systemd:/x\n0::/a/b\n"), Some(PathBuf::from("/m/a/b")));
        assert_eq!(path("0::/\n"), Some(PathBuf::from("/m/")), "in a namespace of its own");
        assert_eq!(path("0::/../x\n"), None);
        assert_eq!(path("1:cpu:/a\n"), None);
    }

    fn pod(uid: &str, static_hash: &str, finished: bool) -> Pod {
        let local = Local { uid: uid.into(), static_hash: static_hash.into(), ..Local::default() };
        Pod { finished, local: Some(Box::new(local)), ..Pod::default() }
    }

    fn claimed(pods: &[(&str, Pod)], cgroups: &[&str]) -> Vec<(u64, Vec<String>)> {
        let pods: BTreeMap<NsName, Pod> =
            pods.iter().map(|(name, pod)| (NsName::new("ns", *name), pod.clone())).collect();
        let pods: Vec<(&NsName, &Pod)> = pods.iter().collect();
        let cgroups = (1..)
            .zip(cgroups)
            .map(|(id, uid)| {
                let cgroup = PodCgroup { uid: (*uid).into(), path: PathBuf::new(), id, level: 2 };
                ((*uid).into(), cgroup)
            })
            .collect();
        let claims = claims(&pods, &cgroups);
        claims.into_iter().map(|(id, pods)| (id, pods.iter().map(|pod| pod.name.clone()).collect())).collect()
    }

    #[test]
    fn a_static_pod_is_told_by_its_uid() {
        assert!(is_static("0123456789abcdef0123456789abcdef"));
        for other in ["3f1c2a9e-1111-4222-8333-0123456789ab", "", "0123456789abcdef0123456789abcdeg"] {
            assert!(!is_static(other), "{other}");
        }
    }

    #[test]
    fn what_governs_a_pod_holds_until_its_cgroup_is_gone() {
        let cgroup = |uid: &str| PodCgroup { uid: uid.into(), path: PathBuf::new(), id: 1, level: 2 };
        let (plain, fixed) =
            (cgroup("3f1c2a9e-1111-4222-8333-0123456789ab"), cgroup("0123456789abcdef0123456789abcdef"));
        assert_eq!(unclaimed(&plain, true, true), Unclaimed::Held, "deleted by force, or finished");
        assert_eq!(unclaimed(&plain, true, false), Unclaimed::Unknown, "strict");
        assert_eq!(unclaimed(&plain, false, true), Unclaimed::Unknown);
        assert_eq!(unclaimed(&fixed, true, true), Unclaimed::Held);
        assert_eq!(unclaimed(&fixed, true, false), Unclaimed::Held);
        assert_eq!(unclaimed(&fixed, false, true), Unclaimed::Passes);
    }

    #[test]
    fn a_cgroup_belongs_to_the_pods_with_its_uid() {
        let pods = [("b", pod("u", "", false)), ("a", pod("u", "", false)), ("c", pod("u", "", true))];
        assert_eq!(claimed(&pods, &["u", "v"]), [(1, vec!["a".into(), "b".into()])]);
    }

    #[test]
    fn a_static_pod_is_found_by_its_hash_unless_that_is_the_uid_of_another() {
        let mirror = ("a", pod("u", "hash", false));
        assert_eq!(claimed(std::slice::from_ref(&mirror), &["hash"]), [(1, vec!["a".into()])]);
        let thief = ("b", pod("victim", "", false));
        let claims = claimed(&[("a", pod("u", "victim", false)), thief], &["victim"]);
        assert_eq!(claims, [(1, vec!["b".into()])]);
        assert_eq!(claimed(&[("a", pod("u", "", false))], &[""]), []);
    }
}
