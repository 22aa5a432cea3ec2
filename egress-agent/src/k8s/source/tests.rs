//! What becomes of messages, without a server.

use std::convert::Infallible;

use http::{Request, Response};
use kube::client::Body;

use super::*;
use crate::policy::cluster::{Local, Pod, Service};

const OWN: &str = "here";

/// A source whose watches hear nothing, and an index.
struct Scene {
    source: KubeSource,
    index: Index,
    start: Instant,
}

impl Scene {
    fn new() -> Self {
        let silent = tower::service_fn(|_request: Request<Body>| {
            std::future::pending::<Result<Response<Body>, Infallible>>()
        });
        let options = Options {
            node: OWN.to_owned(),
            network_policies: false,
            ranges: Some("ranges".to_owned()),
            other_ranges: BTreeSet::new(),
        };
        let (source, _receiver) = KubeSource::start(Client::new(silent, "default"), options);
        Self { source, index: Index::default(), start: Instant::now() }
    }

    /// One with an index that reads policies for pods here.
    fn for_pods_here() -> Self {
        let index = Index::for_pods_here(|id, text| {
            let parsed = crate::policy::document::parse(id, text);
            (parsed.policy, parsed.findings)
        });
        Self { index, ..Self::new() }
    }

    /// Puts policies into other namespaces until there is no room left for those that nobody here needs.
    fn fill(&mut self) {
        while self.source.lengths.total < MOST_UNREAD_BYTES {
            let room = MOST_UNREAD_BYTES - self.source.lengths.total;
            self.policy(&format!("other-{room}"), "p", &" ".repeat(room.min(LARGE)));
        }
    }

    fn policy(&mut self, namespace: &str, name: &str, text: &str) {
        let policy =
            Object::ConfigMap { id: NsName::new(namespace, name), managed: true, policy: Some(text.into()) };
        self.say(&Subject::Policies, News::Object(Ok(policy)));
    }

    /// Returns the texts of the namespace `shop`: each as it is now, and the one in force where that is an earlier one.
    fn texts(&self) -> Vec<(&str, Option<&str>, Option<&str>)> {
        let texts = self.index.texts().filter(|(id, ..)| id.namespace == "shop");
        texts.map(|(id, text, good)| (id.name.as_str(), text, good)).collect()
    }

    fn say(&mut self, subject: &Subject, news: News) -> Taken {
        let watch = self.source.watches[subject].number;
        let message = Message { subject: subject.clone(), watch, at: self.start, news };
        self.source.take(message, &mut self.index)
    }

    fn list(&mut self, subject: &Subject, objects: Vec<Object>) {
        self.say(subject, News::Begin);
        for object in objects {
            self.say(subject, News::Object(Ok(object)));
        }
        self.say(subject, News::End);
    }

    fn gone(&mut self, subject: &Subject, key: ObjectKey) {
        self.say(subject, News::Gone(Some(key)));
    }

    fn want(&mut self, demand: &Demand, seconds: u64) -> Change {
        self.source.want(demand, &mut self.index, self.start + Duration::from_secs(seconds))
    }

    fn pods(&self) -> Vec<String> {
        let pods = self.index.cluster().pods.iter();
        pods.map(|(id, pod)| format!("{id}@{}", pod.ips.iter().next().expect("each has an address")))
            .collect()
    }

    fn followed(&self) -> Vec<String> {
        self.source.watches.keys().filter(|subject| !subject.is_base()).map(ToString::to_string).collect()
    }
}

fn pod(name: &str, node: &str, address: &str) -> Object {
    let local = Local {
        uid: format!("uid-{name}-{node}"),
        node: node.into(),
        workload: "Deployment/d".into(),
        ..Local::default()
    };
    let ips = [address.parse().expect("a literal address")].into_iter().collect();
    let pod = Pod { ips, local: Some(Box::new(local)), ..Pod::default() };
    Object::Pod(id(name), pod)
}

fn id(name: &str) -> NsName {
    NsName::new("shop", name)
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::Pod(id(name))
}

fn pods_of(names: &[&str]) -> Demand {
    Demand { pods: scope(names), ..Demand::default() }
}

fn scope(names: &[&str]) -> Scope {
    Scope::Namespaces(names.iter().map(|name| (*name).to_owned()).collect())
}

const REMOTE: Subject = Subject::RemotePods(None);

#[tokio::test]
async fn it_is_synced_when_everything_that_is_always_followed_was_listed() {
    let mut scene = Scene::new();
    for subject in [Subject::Namespaces, Subject::Policies, Subject::LocalPods] {
        assert!(!scene.source.synced(), "{subject} was not listed yet");
        scene.list(&subject, Vec::new());
    }
    assert!(scene.source.synced());
    scene.say(&Subject::Policies, News::Begin);
    assert!(scene.source.synced(), "a later list replaces what is there bit by bit");
    scene.say(&Subject::Policies, News::Failed("refused".to_owned()));
    assert!(scene.source.synced());
    let failing: Vec<_> = scene.source.status().into_iter().filter_map(|watch| watch.failing).collect();
    assert_eq!(failing, ["refused"]);
    assert!(scene.say(&Subject::Policies, News::Begin).status, "it goes on");
    assert!(scene.source.status().iter().all(|watch| watch.failing.is_none()));
}

#[tokio::test]
async fn what_a_new_list_lacks_is_deleted_when_the_list_ends() {
    let mut scene = Scene::new();
    scene.list(&Subject::LocalPods, vec![pod("a", OWN, "10.0.0.1"), pod("b", OWN, "10.0.0.2")]);
    scene.say(&Subject::LocalPods, News::Begin);
    scene.say(&Subject::LocalPods, News::Object(Ok(pod("b", OWN, "10.0.0.9"))));
    assert_eq!(scene.pods(), ["shop/a@10.0.0.1", "shop/b@10.0.0.9"], "nothing is deleted before the end");
    scene.say(&Subject::LocalPods, News::Failed("cut".to_owned()));
    scene.list(&Subject::LocalPods, vec![pod("b", OWN, "10.0.0.2")]);
    assert_eq!(scene.pods(), ["shop/b@10.0.0.2"]);
}

#[tokio::test]
async fn an_object_that_cannot_be_read_keeps_its_last_version() {
    let mut scene = Scene::new();
    let broken = |key| News::Object(Err(Rejected { key, message: "odd".to_owned() }));
    scene.list(&Subject::LocalPods, vec![pod("a", OWN, "10.0.0.1")]);
    scene.say(&Subject::LocalPods, News::Begin);
    assert!(scene.say(&Subject::LocalPods, broken(Some(key("a")))).status);
    scene.say(&Subject::LocalPods, broken(None));
    scene.say(&Subject::LocalPods, News::End);
    assert_eq!(scene.pods(), ["shop/a@10.0.0.1"]);
    assert_eq!(scene.source.rejected().collect::<Vec<_>>(), [("pods", "odd"), ("Pod shop/a", "odd")]);
    scene.say(&Subject::LocalPods, News::Object(Ok(pod("a", OWN, "10.0.0.2"))));
    assert_eq!(scene.source.rejected().count(), 1, "a good version ends it");
    scene.list(&Subject::LocalPods, vec![pod("a", OWN, "10.0.0.2")]);
    assert_eq!(scene.source.rejected().count(), 0, "and so does a list without it");

    let policy = ObjectKey::ConfigMap(id("p"));
    scene.say(&Subject::Policies, broken(Some(policy)));
    assert!(scene.index.cluster().broken.contains(&id("p")), "a policy without a good version fails closed");
}

#[tokio::test]
async fn what_one_watch_says_of_a_pod_never_takes_away_what_the_other_says() {
    let all = Demand { pods: Scope::Everything, ..Demand::default() };
    let (old, new) = ("10.0.0.1", "10.0.0.2");
    // A pod on another node is deleted, and one of its name comes to this node.
    for late in [false, true] {
        let mut scene = Scene::new();
        let _ = scene.want(&all, 0);
        scene.list(&Subject::LocalPods, Vec::new());
        scene.list(&REMOTE, vec![pod("a", "there", old)]);
        if late {
            scene.say(&Subject::LocalPods, News::Object(Ok(pod("a", OWN, new))));
            scene.say(&REMOTE, News::Object(Ok(pod("a", "there", old))));
            assert_eq!(scene.pods(), ["shop/a@10.0.0.2"], "an old version hides nothing");
            scene.gone(&REMOTE, key("a"));
        } else {
            scene.gone(&REMOTE, key("a"));
            scene.say(&Subject::LocalPods, News::Object(Ok(pod("a", OWN, new))));
        }
        assert_eq!(scene.pods(), ["shop/a@10.0.0.2"]);
        assert_eq!(scene.index.cluster().pods[&id("a")].uid(), "uid-a-here", "with all that matters here");
        scene.gone(&Subject::LocalPods, key("a"));
        assert_eq!(scene.pods(), [""; 0]);
    }
    // A pod here is deleted, and one of its name comes to another node.
    for late in [false, true] {
        let mut scene = Scene::new();
        let _ = scene.want(&all, 0);
        scene.list(&REMOTE, Vec::new());
        scene.list(&Subject::LocalPods, vec![pod("a", OWN, old)]);
        if late {
            scene.say(&REMOTE, News::Object(Ok(pod("a", "there", new))));
            scene.say(&Subject::LocalPods, News::Object(Ok(pod("a", OWN, old))));
            assert_eq!(scene.pods(), ["shop/a@10.0.0.1"]);
            scene.gone(&Subject::LocalPods, key("a"));
        } else {
            scene.gone(&Subject::LocalPods, key("a"));
            scene.say(&REMOTE, News::Object(Ok(pod("a", "there", new))));
        }
        assert_eq!(scene.pods(), ["shop/a@10.0.0.2"]);
        assert!(scene.index.cluster().pods[&id("a")].local.is_none(), "of a remote pod nothing else is kept");
        scene.list(&REMOTE, Vec::new());
        assert_eq!(scene.pods(), [""; 0]);
    }
}

#[tokio::test]
async fn a_list_of_one_watch_leaves_alone_what_another_is_about() {
    let mut scene = Scene::new();
    let _ = scene.want(&Demand { pods: Scope::Everything, ..Demand::default() }, 0);
    scene.list(&Subject::LocalPods, vec![pod("a", OWN, "10.0.0.1")]);
    scene.list(&REMOTE, vec![pod("b", "there", "10.0.0.2")]);
    scene.list(&Subject::LocalPods, vec![pod("a", OWN, "10.0.0.1")]);
    scene.list(&REMOTE, vec![pod("b", "there", "10.0.0.2")]);
    assert_eq!(scene.pods(), ["shop/a@10.0.0.1", "shop/b@10.0.0.2"]);
    scene.list(&REMOTE, Vec::new());
    assert_eq!(scene.pods(), ["shop/a@10.0.0.1"]);
    scene.list(&Subject::LocalPods, Vec::new());
    assert_eq!(scene.pods(), [""; 0]);
}

#[tokio::test]
async fn what_a_time_before_has_left_is_deleted_by_the_first_list() {
    let mut scene = Scene::new();
    for object in [pod("a", OWN, "10.0.0.1"), pod("b", OWN, "10.0.0.2"), pod("c", "there", "10.0.0.3")] {
        let _ = scene.index.apply(object);
    }
    scene.source.adopt(&scene.index, Vec::new());
    assert_eq!(scene.source.local().len(), 2);
    scene.list(&Subject::LocalPods, vec![pod("b", OWN, "10.0.0.2")]);
    assert_eq!(scene.pods(), ["shop/b@10.0.0.2", "shop/c@10.0.0.3"]);
}

#[tokio::test]
async fn no_more_is_followed_than_is_demanded() {
    let mut scene = Scene::new();
    assert_eq!(scene.followed(), [""; 0]);
    let demand = Demand {
        pods: scope(&["shop"]),
        services: scope(&["kube-system"]),
        nodes: Nodes::Own,
        ranges: Scope::Nothing,
    };
    let _ = scene.want(&demand, 0);
    assert_eq!(
        scene.followed(),
        [
            "pods of other nodes in namespace shop",
            "services in namespace kube-system",
            "endpointslices in namespace kube-system",
            "this node"
        ]
    );
    assert_eq!(scene.source.known(), Demand::default(), "none of it was listed yet");
    scene.list(&Subject::Services(Some("kube-system".to_owned())), Vec::new());
    assert_eq!(scene.source.known(), Demand::default(), "Services without their endpoints are no use");
    scene.list(&Subject::Slices(Some("kube-system".to_owned())), Vec::new());
    scene.list(&Subject::OwnNode, Vec::new());
    scene.list(&Subject::RemotePods(Some("shop".to_owned())), Vec::new());
    assert_eq!(scene.source.known(), demand);

    let _ = scene.want(&Demand::default(), 1);
    let _ = scene.want(&Demand::default(), 60);
    assert_eq!(scene.followed().len(), 4, "it lingers");
    let _ = scene.want(&demand, 61);
    let _ = scene.want(&Demand::default(), 62);
    let _ = scene.want(&Demand::default(), 121);
    assert_eq!(scene.followed().len(), 4, "asked for again, it lingers anew");
    let _ = scene.want(&Demand::default(), 122);
    assert_eq!(scene.followed(), [""; 0]);
    assert_eq!(scene.source.known(), Demand::default());
}

#[tokio::test]
async fn a_wider_watch_replaces_narrow_ones_once_it_knows_as_much_and_the_other_way_round() {
    let mut scene = Scene::new();
    let shop = Subject::RemotePods(Some("shop".to_owned()));
    let all = Demand { pods: Scope::Everything, ..Demand::default() };
    let _ = scene.want(&pods_of(&["shop"]), 0);
    scene.list(&shop, vec![pod("a", "there", "10.0.0.1")]);
    let _ = scene.want(&all, 1);
    assert_eq!(scene.followed().len(), 2);
    assert_eq!(scene.source.known(), pods_of(&["shop"]));
    let other = Object::Pod(
        NsName::new("web", "b"),
        Pod { ips: ["10.0.0.2".parse().expect("an address")].into_iter().collect(), ..Pod::default() },
    );
    scene.list(&REMOTE, vec![pod("a", "there", "10.0.0.1"), other]);
    assert_eq!(scene.want(&all, 2), Change::NONE);
    assert_eq!(scene.followed(), ["pods of other nodes in all namespaces"]);
    assert_eq!(scene.source.known(), all);

    let _ = scene.want(&pods_of(&["shop"]), 3);
    let _ = scene.want(&pods_of(&["shop"]), 100);
    assert_eq!(scene.followed().len(), 2, "the wide one stays until the narrow one knows its part");
    scene.list(&shop, vec![pod("a", "there", "10.0.0.1")]);
    assert!(scene.want(&pods_of(&["shop"]), 101).cluster, "what nobody is about any more is forgotten");
    assert_eq!(scene.followed(), ["pods of other nodes in namespace shop"]);
    assert_eq!(scene.pods(), ["shop/a@10.0.0.1"]);
}

#[tokio::test]
async fn a_watch_that_was_left_is_not_listened_to() {
    let mut scene = Scene::new();
    let services = Subject::Services(Some("shop".to_owned()));
    let demand = Demand { services: scope(&["shop"]), ..Demand::default() };
    let _ = scene.want(&demand, 0);
    let before = scene.source.watches[&services].number;
    let _ = scene.want(&Demand::default(), 1);
    let _ = scene.want(&Demand::default(), 100);
    let _ = scene.want(&demand, 101);
    let object = News::Object(Ok(Object::Service(id("s"), Service::default())));
    let late = Message { subject: services, watch: before, at: scene.start, news: object };
    assert_eq!(scene.source.take(late, &mut scene.index).change, Change::NONE);
    assert!(scene.index.cluster().services.is_empty());
}

#[tokio::test]
async fn what_no_watch_is_about_is_forgotten() {
    let mut scene = Scene::new();
    for object in [pod("a", OWN, "10.0.0.1"), pod("b", "there", "10.0.0.2"), pod("c", "there", "10.0.0.3")] {
        let _ = scene.index.apply(object);
    }
    for object in [
        Object::Namespace { name: "shop".into(), labels: [].into() },
        Object::Service(id("s"), Service::default()),
        Object::Node("there".into(), crate::policy::cluster::Node::default()),
    ] {
        let _ = scene.index.apply(object);
    }
    scene.source.adopt(&scene.index, Vec::new());
    assert!(scene.source.forget_unfollowed(&mut scene.index).cluster);
    assert_eq!(scene.pods(), ["shop/a@10.0.0.1"], "only the pods of this node are followed");
    let cluster = scene.index.cluster();
    assert!(cluster.services.is_empty() && cluster.nodes.is_empty());
    assert_eq!(cluster.namespaces.len(), 1);
    assert_eq!(scene.source.forget_unfollowed(&mut scene.index), Change::NONE);
}

#[tokio::test]
async fn a_namespace_has_only_so_much_room_for_policies() {
    let mut scene = Scene::new();
    scene.list(&Subject::LocalPods, Vec::new());
    let padding = " ".repeat(MOST_POLICY_BYTES / 4);
    let policy = |namespace: &str, name: &str| Object::ConfigMap {
        id: NsName::new(namespace, name),
        managed: true,
        policy: Some(format!(r#"{{"defaultAction": "deny"}}{padding}"#)),
    };
    let names = ["a", "b", "c", "d"];
    for name in names {
        scene.say(&Subject::Policies, News::Object(Ok(policy("shop", name))));
    }
    scene.say(&Subject::Policies, News::Object(Ok(policy("web", "e"))));
    let rejected: Vec<String> = scene.source.rejected().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(rejected, ["ConfigMap shop/d"], "the one too many, and no other namespace's");
    let closed = |scene: &Scene| {
        let texts = scene.index.texts().filter(|(id, ..)| id.namespace == "shop");
        texts.map(|(id, text, _)| (id.name.clone(), text == Some(CLOSED))).collect::<Vec<_>>()
    };
    let all = |is: bool| names.map(|name| (name.to_owned(), is)).to_vec();
    assert_eq!(closed(&scene), all(true), "whichever is left out, what it denies is denied");
    let number = scene.source.watches[&Subject::Policies].number;
    let _ = scene.want(&Demand::default(), 0);
    assert_eq!(scene.source.watches[&Subject::Policies].number, number, "a list would change nothing");

    scene.list(&Subject::Policies, names.map(|name| policy("shop", name)).to_vec());
    assert_eq!(closed(&scene), all(true), "nor does one");
    let _ = scene.want(&Demand::default(), 0);
    scene.gone(&Subject::Policies, ObjectKey::ConfigMap(id("a")));
    let _ = scene.want(&Demand::default(), 0);
    assert_ne!(scene.source.watches[&Subject::Policies].number, number, "there is room again");
    scene.list(&Subject::Policies, names[1..].iter().map(|name| policy("shop", name)).collect());
    assert_eq!(closed(&scene), all(false)[1..]);
    assert_eq!(scene.source.rejected().count(), 0);
}

#[tokio::test]
async fn policies_nobody_here_needs_have_only_so_much_room_together() {
    let mut scene = Scene::for_pods_here();
    let padding = " ".repeat(MOST_POLICY_BYTES / 8);
    let policy = |namespace: usize| Object::ConfigMap {
        id: NsName::new(format!("ns-{namespace:02}"), "p"),
        managed: true,
        policy: Some(format!(r#"{{"defaultAction": "deny"}}{padding}"#)),
    };
    let pod_of = |namespace: usize| {
        let local = Some(Box::new(Local { uid: "u".into(), node: OWN.into(), ..Local::default() }));
        Object::Pod(NsName::new(format!("ns-{namespace:02}"), "pod"), Pod { local, ..Pod::default() })
    };
    let all = MOST_UNREAD_BYTES / 2 / padding.len() + 2;
    scene.list(&Subject::Namespaces, Vec::new());
    scene.list(&Subject::LocalPods, Vec::new());
    scene.list(&Subject::Policies, (0..all).map(policy).collect());
    let rejected =
        |scene: &Scene| -> Vec<String> { scene.source.rejected().map(|(name, _)| name.to_owned()).collect() };
    let last = [
        format!("ConfigMap ns-{:02}/p", all - 3),
        format!("ConfigMap ns-{:02}/p", all - 2),
        format!("ConfigMap ns-{:02}/p", all - 1),
    ];
    assert_eq!(rejected(&scene), last);
    let kept: usize = scene.index.texts().filter_map(|(_, text, _)| text).map(str::len).sum();
    assert!(kept <= MOST_UNREAD_BYTES, "{kept} octets are kept");
    assert!(scene.index.cluster().policies.is_empty() && scene.index.cluster().broken.is_empty());

    // One that was kept is there as soon as its pod is.
    let number = |scene: &Scene| scene.source.watches[&Subject::Policies].number;
    let first = number(&scene);
    assert!(scene.say(&Subject::LocalPods, News::Object(Ok(pod_of(0)))).apply);
    assert_eq!(scene.index.cluster().policies.len(), 1);
    let _ = scene.want(&Demand::default(), 0);
    assert_eq!(number(&scene), first, "nothing is missing");
    // Of one that was not, the pod is denied until policies were listed again.
    scene.say(&Subject::LocalPods, News::Object(Ok(pod_of(all - 1))));
    assert_eq!(scene.index.cluster().policies.len(), 2);
    let _ = scene.want(&Demand::default(), 1);
    assert_ne!(number(&scene), first);
    assert!(scene.source.synced(), "what was known stays known");
    scene.list(&Subject::Policies, (0..all).map(policy).collect());
    assert!(scene.index.cluster().broken.is_empty());
    assert_eq!(scene.index.cluster().policies.len(), 2);
    assert!(!rejected(&scene).contains(&last[2]));
    // Not for each pod at once.
    let second = number(&scene);
    scene.say(&Subject::LocalPods, News::Object(Ok(pod_of(all - 2))));
    let _ = scene.want(&Demand::default(), 2);
    assert_eq!(number(&scene), second);
    let _ = scene.want(&Demand::default(), 1 + LISTED_AGAIN.as_secs());
    assert_ne!(number(&scene), second);
}

const ALLOW: &str =
    r#"{"defaultAction": "deny", "allowedDestinations": [{"name": "all", "cidr": "0.0.0.0/0"}]}"#;
const DENY: &str =
    r#"{"defaultAction": "deny", "deniedDestinations": [{"name": "one", "cidr": "192.0.2.1/32"}]}"#;

#[tokio::test]
async fn no_part_of_policies_holds_of_which_another_is_not_kept() {
    let mut scene = Scene::for_pods_here();
    scene.list(&Subject::LocalPods, Vec::new());
    scene.policy("shop", "allow", ALLOW);
    scene.policy("shop", "changed", ALLOW);
    scene.fill();
    scene.policy("shop", "deny", DENY);
    scene.policy("shop", "changed", DENY);
    let closed = ["allow", "changed", "deny"].map(|name| (name, Some(CLOSED), None));
    assert_eq!(scene.texts(), closed);
    scene.say(&Subject::LocalPods, News::Object(Ok(pod("a", OWN, "10.0.0.1"))));
    let cluster = scene.index.cluster();
    assert_eq!(cluster.policies.len(), 3);
    assert!(cluster.policies.values().all(|policy| policy.rules.is_empty() && policy.selector.is_empty()));
    scene.policy("shop", "allow", ALLOW);
    assert_eq!(scene.texts(), closed, "alone it would allow what is denied");

    let _ = scene.want(&Demand::default(), 0);
    assert_eq!(scene.texts(), closed, "until they are listed");
    scene.say(&Subject::Policies, News::Begin);
    for (name, text) in [("allow", ALLOW), ("changed", DENY), ("deny", DENY)] {
        scene.policy("shop", name, text);
    }
    let all = [("allow", Some(ALLOW), None), ("changed", Some(DENY), None), ("deny", Some(DENY), None)];
    assert_eq!(scene.texts(), all);
    // A list that is under way is not begun anew.
    scene.policy("web", "p", DENY);
    let number = scene.source.watches[&Subject::Policies].number;
    let mut other = pod("b", OWN, "10.0.0.2");
    if let Object::Pod(id, _) = &mut other {
        id.namespace = "web".into();
    }
    scene.say(&Subject::LocalPods, News::Object(Ok(other)));
    let _ = scene.want(&Demand::default(), 100);
    assert_eq!(scene.source.watches[&Subject::Policies].number, number);
    scene.say(&Subject::Policies, News::End);
    let _ = scene.want(&Demand::default(), 100);
    assert_ne!(scene.source.watches[&Subject::Policies].number, number);
}

#[tokio::test]
async fn before_the_pods_here_are_known_policies_that_are_not_kept_are_forgotten() {
    let mut scene = Scene::for_pods_here();
    scene.policy("shop", "allow", ALLOW);
    scene.policy("web", "allow", ALLOW);
    scene.fill();
    scene.policy("shop", "deny", DENY);
    assert_eq!(scene.texts(), [("allow", None, None), ("deny", None, None)]);
    scene.fill();
    scene.policy("web", "deny", DENY);
    let mut web = pod("a", OWN, "10.0.0.1");
    if let Object::Pod(id, _) = &mut web {
        id.namespace = "web".into();
    }
    scene.list(&Subject::LocalPods, vec![web]);
    assert_eq!(scene.texts(), [("allow", Some(CLOSED), None), ("deny", Some(CLOSED), None)]);
    let broken: Vec<String> = scene.index.cluster().broken.iter().map(ToString::to_string).collect();
    assert_eq!(broken, ["web/allow", "web/deny"], "its pods may keep what they have");
}

#[tokio::test]
async fn the_version_in_force_of_an_invalid_policy_takes_room_too() {
    for mut scene in [Scene::new(), Scene::for_pods_here()] {
        scene.list(&Subject::LocalPods, Vec::new());
        let valid = format!("{ALLOW}{}", " ".repeat(MOST_POLICY_BYTES / 8));
        for name in 0..20 {
            scene.policy("shop", &name.to_string(), &valid);
            scene.policy("shop", &name.to_string(), "{");
        }
        let texts = scene.index.texts().flat_map(|(_, text, good)| text.into_iter().chain(good));
        let kept: usize = texts.map(str::len).sum();
        assert!((20 * CLOSED.len()..=MOST_POLICY_BYTES).contains(&kept), "{kept} octets are kept");
        assert!(scene.index.texts().all(|(_, text, good)| text == Some(CLOSED) && good.is_none()));
    }
}

#[tokio::test]
async fn large_namespaces_leave_room_for_others() {
    let mut scene = Scene::for_pods_here();
    scene.list(&Subject::LocalPods, Vec::new());
    for number in 0..=MOST_UNREAD_BYTES / MOST_POLICY_BYTES {
        for name in ["a", "b", "c", "d"] {
            scene.policy(&format!("large-{number}"), name, &" ".repeat(MOST_POLICY_BYTES / 4));
        }
    }
    scene.policy("shop", "deny", DENY);
    assert_eq!(scene.texts(), [("deny", Some(DENY), None)]);
    let large: usize = scene.index.texts().filter_map(|(_, text, _)| text).map(str::len).sum();
    assert!(large <= MOST_UNREAD_BYTES / 2 + DENY.len() + 64 * CLOSED.len(), "{large} octets are kept");
    for number in 0..=MOST_UNREAD_BYTES / MOST_POLICY_BYTES {
        for name in ["a", "b", "c", "d"] {
            scene
                .gone(&Subject::Policies, ObjectKey::ConfigMap(NsName::new(format!("large-{number}"), name)));
        }
    }
    assert_eq!((scene.source.lengths.large, scene.source.lengths.total), (0, DENY.len()));
}
