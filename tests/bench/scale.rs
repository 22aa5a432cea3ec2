//! A large cluster, object by object, as an API server would show it.
//!
//! Everything follows from the [`Shape`], its seed included, so that two runs see the same cluster. Lists come in the order of
//! namespaces and workloads, as from an API server.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

/// How large a cluster is.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Nodes, at most 65 536.
    pub nodes: u32,
    /// Pods, spread evenly over the nodes, at most 250 on each.
    pub pods: u32,
    /// Namespaces.
    pub namespaces: u32,
    /// Deployments and StatefulSets. Every second one has a Service.
    pub workloads: u32,
    /// Of a hundred pods, how many have an IPv6 address, too.
    pub dual_stack: u32,
    /// Another seed, other names.
    pub seed: u64,
}

impl Shape {
    /// As large as Kubernetes says a cluster may be.
    pub const LARGEST: Self =
        Self { nodes: 5_000, pods: 150_000, namespaces: 2_000, workloads: 5_000, dual_stack: 10, seed: 1 };

    /// Returns a number for one use of it at one place.
    fn draw(&self, what: u64, number: u32) -> u64 {
        // SplitMix64 over the seed, the use and the place.
        let mut z = self
            .seed
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_add(what << 32 | u64::from(number))
            .wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns letters and digits as Kubernetes puts them at the end of names.
    fn suffix(&self, what: u64, number: u32, length: usize) -> String {
        const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let mut drawn = self.draw(what, number);
        let letter = |_| {
            let letter = pick(LETTERS, drawn);
            drawn /= LETTERS.len() as u64;
            char::from(letter)
        };
        (0..length).map(letter).collect()
    }

    fn uid(&self, what: u64, number: u32) -> String {
        let (high, low) = (self.draw(what, number), self.draw(what + 1, number));
        format!(
            "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
            high >> 32,
            high >> 16 & 0xffff,
            high & 0xfff,
            low >> 48 & 0xfff,
            low & 0xffff_ffff_ffff
        )
    }

    /// Returns the name of a namespace.
    #[must_use]
    pub fn namespace(&self, number: u32) -> String {
        format!("team-{number:04}")
    }

    /// Returns the name of a node.
    #[must_use]
    pub fn node(&self, number: u32) -> String {
        format!("node-{number:05}")
    }

    fn workload(&self, number: u32) -> Workload {
        const NAMES: [&str; 8] = ["api", "cache", "checkout", "db", "frontend", "mailer", "search", "worker"];
        let name = pick(&NAMES, self.draw(10, number));
        let namespace = u64::from(number) * u64::from(self.namespaces) / u64::from(self.workloads);
        Workload {
            number,
            namespace: u32::try_from(namespace).expect("one of the namespaces"),
            name: format!("{name}-{number:04}"),
            hash: self.suffix(11, number, 10),
            stateful: self.draw(12, number).is_multiple_of(8),
            tier: match number % 100 {
                50 => "gold",
                n if n % 10 == 3 => "silver",
                _ => "bronze",
            },
        }
    }

    /// Returns which pods a workload has. Of two neighbours one has three times as many as the other.
    fn pods_of(&self, workload: u32) -> std::ops::Range<u32> {
        let until = |workload: u32| {
            let pairs = u64::from(workload / 2) * 4 + if workload % 2 == 1 { 3 } else { 0 };
            let all = u64::from(self.workloads / 2) * 4 + if self.workloads % 2 == 1 { 3 } else { 0 };
            u32::try_from(u64::from(self.pods) * pairs / all).expect("at most as many as there are")
        };
        until(workload)..until(workload + 1)
    }

    /// Returns the node a pod runs on and its place there.
    fn seat(&self, pod: u32) -> (u32, u32) {
        // A step without a common divisor with the number of nodes visits all of them; neighbours land far apart.
        let step = (self.nodes / 3..).find(|step| gcd(*step, self.nodes) == 1).expect("some number has none");
        let node = u64::from(pod % self.nodes) * u64::from(step) % u64::from(self.nodes);
        (u32::try_from(node).expect("one of the nodes"), pod / self.nodes)
    }

    /// Returns a pod's addresses.
    fn addresses(&self, pod: u32) -> (Ipv4Addr, Option<Ipv6Addr>) {
        let (node, place) = self.seat(pod);
        let v4 = Ipv4Addr::from(0x0a00_0000 | node << 8 | (place + 2));
        let dual = self.draw(13, pod) % 100 < u64::from(self.dual_stack);
        let v6 = Ipv6Addr::from(0xfd00_0010_u128 << 96 | u128::from(node) << 64 | u128::from(place + 2));
        (v4, dual.then_some(v6))
    }

    /// Returns all namespaces.
    pub fn namespaces(self) -> impl Iterator<Item = Value> {
        (0..self.namespaces).map(move |number| {
            let name = self.namespace(number);
            json!({"apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "uid": self.uid(20, number), "labels": {
                    "kubernetes.io/metadata.name": name, "team": format!("t{}", number % 200),
                    "stage": if number % 10 == 0 { "staging" } else { "production" }}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
        })
    }

    /// Returns all nodes.
    pub fn all_nodes(self) -> impl Iterator<Item = Value> {
        (0..self.nodes).map(move |number| {
            let name = self.node(number);
            let v4 = Ipv4Addr::from(0x0a00_0000 | number << 8);
            let v6 = Ipv6Addr::from(0xfd00_0010_u128 << 96 | u128::from(number) << 64);
            let own = Ipv4Addr::from(0xac14_0000 | number);
            json!({"apiVersion": "v1", "kind": "Node",
                "metadata": {"name": name, "uid": self.uid(22, number), "labels": {
                    "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                    "topology.kubernetes.io/zone": format!("zone-{}", number % 3)}},
                "spec": {"podCIDR": format!("{v4}/24"), "podCIDRs": [format!("{v4}/24"), format!("{v6}/64")]},
                "status": {"addresses": [{"type": "InternalIP", "address": own.to_string()},
                    {"type": "Hostname", "address": name}]}})
        })
    }

    /// Returns all Services.
    pub fn services(self) -> impl Iterator<Item = Value> {
        (0..self.workloads).step_by(2).map(move |number| {
            let workload = self.workload(number);
            let cluster_ip = Ipv4Addr::from(0x0ac8_0000 | (number + 10)).to_string();
            json!({"apiVersion": "v1", "kind": "Service",
                "metadata": {"namespace": self.namespace(workload.namespace), "name": workload.name,
                    "uid": self.uid(24, number), "labels": {"app": workload.name}},
                "spec": {"clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ipFamilies": ["IPv4"],
                    "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"}],
                    "selector": {"app": workload.name}, "type": "ClusterIP"}})
        })
    }

    /// Returns the EndpointSlices of all Services, at most a hundred endpoints in each.
    pub fn slices(self) -> impl Iterator<Item = Value> {
        (0..self.workloads).step_by(2).flat_map(move |number| {
            let workload = self.workload(number);
            let pods: Vec<u32> = self.pods_of(number).collect();
            let slices: Vec<Value> = pods.chunks(100).map(|pods| {
                let endpoints: Vec<Value> = pods.iter().map(|pod| {
                    json!({"addresses": [self.addresses(*pod).0.to_string()], "nodeName": self.node(self.seat(*pod).0),
                        "conditions": {"ready": true, "serving": true, "terminating": false},
                        "targetRef": {"kind": "Pod", "namespace": self.namespace(workload.namespace),
                            "name": self.pod_name(&workload, *pod), "uid": self.uid(26, *pod)}})
                }).collect();
                json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                    "metadata": {"namespace": self.namespace(workload.namespace),
                        "name": format!("{}-{}", workload.name, self.suffix(28, pods[0], 5)),
                        "labels": {"kubernetes.io/service-name": workload.name,
                            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
                    "addressType": "IPv4", "endpoints": endpoints,
                    "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]})
            }).collect();
            slices
        })
    }

    /// Returns all pods.
    pub fn all_pods(self) -> impl Iterator<Item = Value> {
        (0..self.workloads).flat_map(move |number| {
            let workload = self.workload(number);
            self.pods_of(number).map(move |pod| self.pod_of(&workload, pod))
        })
    }

    fn pod_name(&self, workload: &Workload, pod: u32) -> String {
        if workload.stateful {
            return format!("{}-{}", workload.name, pod - self.pods_of(workload.number).start);
        }
        format!("{}-{}-{}", workload.name, workload.hash, self.suffix(30, pod, 5))
    }

    fn pod_of(&self, workload: &Workload, pod: u32) -> Value {
        let name = self.pod_name(workload, pod);
        let namespace = self.namespace(workload.namespace);
        let node = self.seat(pod).0;
        let (v4, v6) = self.addresses(pod);
        let ips: Vec<Value> = [v4.to_string()]
            .into_iter()
            .chain(v6.map(|v6| v6.to_string()))
            .map(|ip| json!({"ip": ip}))
            .collect();
        let host_ip = Ipv4Addr::from(0xac14_0000 | node).to_string();
        let mut labels =
            json!({"app": workload.name, "app.kubernetes.io/part-of": namespace, "tier": workload.tier});
        let (owner_kind, owner) = if workload.stateful {
            let place = pod - self.pods_of(workload.number).start;
            labels["apps.kubernetes.io/pod-index"] = place.to_string().into();
            labels["controller-revision-hash"] = format!("{}-{}", workload.name, workload.hash).into();
            labels["statefulset.kubernetes.io/pod-name"] = name.clone().into();
            ("StatefulSet", workload.name.clone())
        } else {
            labels["pod-template-hash"] = workload.hash.clone().into();
            ("ReplicaSet", format!("{}-{}", workload.name, workload.hash))
        };
        let fields: Value = labels
            .as_object()
            .into_iter()
            .flatten()
            .map(|(label, _)| (format!("f:{label}"), json!({})))
            .collect::<serde_json::Map<_, _>>()
            .into();
        let since = "2026-01-01T00:00:00Z";
        let env: Vec<Value> = (0..12).map(|number| {
            json!({"name": format!("SETTING_{number}"), "value": format!("https://{}.{namespace}.svc:8443/v1", workload.name)})
        }).collect();
        let env_fields: Value = (0..12)
            .map(|number| {
                (
                    format!("k:{{\"name\":\"SETTING_{number}\"}}"),
                    json!({".": {}, "f:name": {}, "f:value": {}}),
                )
            })
            .collect::<serde_json::Map<_, _>>()
            .into();
        let image = format!("registry.example/{namespace}/{}:{}", workload.name, workload.hash);
        let condition = |kind: &str| json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": since});
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": namespace, "uid": self.uid(26, pod), "resourceVersion": (1_000_000 + pod).to_string(),
                "creationTimestamp": since, "labels": labels,
                "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "8080",
                    "checksum/config": format!("{:016x}{:016x}", self.draw(32, pod), self.draw(33, pod))},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": owner_kind, "name": owner,
                    "uid": self.uid(34, workload.number), "controller": true, "blockOwnerDeletion": true}],
                "managedFields": [
                    {"manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1", "time": since, "fieldsType": "FieldsV1",
                        "fieldsV1": {"f:metadata": {"f:annotations": {".": {}, "f:prometheus.io/scrape": {}, "f:checksum/config": {}},
                            "f:generateName": {}, "f:labels": fields, "f:ownerReferences": {".": {}}},
                            "f:spec": {"f:containers": {"k:{\"name\":\"main\"}": {".": {}, "f:env": env_fields, "f:image": {},
                                "f:imagePullPolicy": {}, "f:livenessProbe": {".": {}, "f:httpGet": {".": {}, "f:path": {}, "f:port": {}}},
                                "f:name": {}, "f:ports": {".": {}, "k:{\"containerPort\":8080,\"protocol\":\"TCP\"}": {".": {}}},
                                "f:resources": {".": {}, "f:limits": {".": {}, "f:memory": {}}, "f:requests": {".": {}, "f:cpu": {}}},
                                "f:volumeMounts": {".": {}}}},
                                "f:dnsPolicy": {}, "f:restartPolicy": {}, "f:schedulerName": {}, "f:securityContext": {}, "f:volumes": {".": {}}}}},
                    {"manager": "kubelet", "operation": "Update", "subresource": "status", "apiVersion": "v1", "time": since,
                        "fieldsType": "FieldsV1", "fieldsV1": {"f:status": {"f:conditions": {"k:{\"type\":\"Ready\"}": {".": {}, "f:status": {}}},
                            "f:containerStatuses": {}, "f:hostIP": {}, "f:phase": {}, "f:podIP": {}, "f:podIPs": {}, "f:startTime": {}}}}]},
            "spec": {
                "nodeName": self.node(node), "serviceAccountName": workload.name, "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
                "schedulerName": "default-scheduler", "terminationGracePeriodSeconds": 30, "enableServiceLinks": true, "priority": 0,
                "containers": [{
                    "name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "env": env,
                    "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}, {"name": "metrics", "containerPort": 9090, "protocol": "TCP"}],
                    "resources": {"limits": {"memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "256Mi"}},
                    "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP"}, "periodSeconds": 10, "timeoutSeconds": 1},
                    "readinessProbe": {"httpGet": {"path": "/ready", "port": "http", "scheme": "HTTP"}, "periodSeconds": 5, "timeoutSeconds": 1},
                    "volumeMounts": [{"name": "config", "mountPath": "/etc/config"},
                        {"name": "token", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]}],
                "volumes": [{"name": "config", "configMap": {"name": workload.name, "defaultMode": 420}},
                    {"name": "token", "projected": {"defaultMode": 420, "sources": [
                        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}]}}],
                "tolerations": [
                    {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
                    {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]},
            "status": {
                "phase": "Running", "hostIP": host_ip, "hostIPs": [{"ip": host_ip}], "podIP": v4.to_string(), "podIPs": ips,
                "startTime": since, "qosClass": "Burstable",
                "conditions": [condition("PodReadyToStartContainers"), condition("Initialized"), condition("Ready"),
                    condition("ContainersReady"), condition("PodScheduled")],
                "containerStatuses": [{"name": "main", "ready": true, "started": true, "restartCount": 0, "image": image,
                    "imageID": format!("registry.example/{namespace}@sha256:{:016x}{:016x}", self.draw(36, pod), self.draw(37, pod)),
                    "containerID": format!("containerd://{:016x}{:016x}", self.draw(38, pod), self.draw(39, pod)),
                    "state": {"running": {"startedAt": since}}, "lastState": {}}]}
        })
    }
}

/// A Deployment or a StatefulSet.
#[derive(Clone, Debug)]
struct Workload {
    number: u32,
    namespace: u32,
    name: String,
    hash: String,
    stateful: bool,
    /// Of a hundred workloads one is `gold`, ten are `silver`, the rest `bronze`.
    tier: &'static str,
}

/// Returns one of `choices`.
fn pick<T: Copy>(choices: &[T], drawn: u64) -> T {
    choices[usize::try_from(drawn % choices.len() as u64).expect("less than their number")]
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
