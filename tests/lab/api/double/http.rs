//! From HTTP requests to the store and back.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::Shared;
use crate::lab::api::{
    counts::{Asked, Open, Verb},
    faults::Fault,
    kinds::{ALL, Kind},
    selectors::Filter,
    status::{Failure, Result},
    store::{Form, Object, Page, Place},
    watching::{BEFORE_CUT, ODD, Start, Watching},
    write::{self, Deletion, Manner, Target},
};

type Body = UnsyncBoxBody<Bytes, io::Error>;
type Query = BTreeMap<String, String>;

/// How long a list waits for a version that is not there yet.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a watch goes on that sets no time.
const WATCH: Duration = Duration::from_secs(1800);
/// How much of a list is sent at once.
const CHUNK: usize = 256 * 1024;
const JSON: &str = "application/json";

/// What a path names.
struct Route {
    kind: Kind,
    namespace: Option<String>,
    name: Option<String>,
    subresource: Option<&'static str>,
}

/// Answers one request. An error ends the connection without an answer.
pub(super) async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let path = request.uri().path().to_owned();
    let query = parse_query(request.uri().query().unwrap_or(""));
    if let Some(fixed) = fixed(&path) {
        return Ok(fixed);
    }
    let route = match route(&path) {
        Ok(route) => route,
        Err(failure) => return Ok(refused(&failure)),
    };
    let Some(verb) = verb(request.method(), &route, &query) else {
        let failure = Failure::new(405, "the server does not allow this method on the requested resource");
        return Ok(refused(&failure));
    };
    let accept = header_text(&request, header::ACCEPT);
    let asked = Asked {
        verb,
        kind: route.kind,
        namespace: route.namespace.clone(),
        labels: query.get("labelSelector").cloned().unwrap_or_default(),
        fields: query.get("fieldSelector").cloned().unwrap_or_default(),
        metadata: accept.contains("as=PartialObjectMetadata"),
    };
    let open = shared.counts.open(asked);
    if let Some(outcome) = struck(&shared, verb, &route, &query).await {
        return outcome;
    }
    let answer = match verb {
        Verb::List => list(&shared, &route, &query, open).await,
        Verb::Watch => watch(&shared, &route, &query, open),
        _ => single(&shared, verb, route, &query, request, &open).await,
    };
    Ok(answer.unwrap_or_else(|failure| refused(&failure)))
}

/// Commits the faults that strike before an answer.
async fn struck(
    shared: &Shared,
    verb: Verb,
    route: &Route,
    query: &Query,
) -> Option<io::Result<Response<Body>>> {
    let strike = |fits: &dyn Fn(&Fault) -> bool| shared.faults.strike(verb, route.kind, fits);
    if let Some(Fault::Delay(time)) = strike(&|fault| matches!(fault, Fault::Delay(_))) {
        tokio::time::sleep(time).await;
    }
    if let Some(Fault::Refuse { code, retry_after }) = strike(&|fault| matches!(fault, Fault::Refuse { .. }))
    {
        let mut failure = Failure::new(code, format!("refused on purpose with {code}"));
        failure.retry_after = retry_after;
        return Some(Ok(refused(&failure)));
    }
    if verb == Verb::List
        && query.get("continue").is_some_and(|token| !token.is_empty())
        && strike(&|fault| *fault == Fault::ExpiredContinue).is_some()
    {
        let failure = Failure::expired(
            "The provided continue parameter is too old to display a consistent list result.",
        );
        return Some(Ok(refused(&failure)));
    }
    if verb != Verb::Watch && strike(&|fault| *fault == Fault::Silence).is_some() {
        std::future::pending::<()>().await;
    }
    if !matches!(verb, Verb::Watch | Verb::List) && strike(&|fault| *fault == Fault::Cut).is_some() {
        return Some(Err(io::Error::new(io::ErrorKind::ConnectionReset, "the connection is cut on purpose")));
    }
    None
}

fn verb(method: &Method, route: &Route, query: &Query) -> Option<Verb> {
    let watch = query.get("watch").is_some_and(|value| matches!(value.as_str(), "true" | "1"));
    Some(match (method.as_str(), &route.name, route.subresource) {
        ("GET", None, _) if watch => Verb::Watch,
        ("GET", None, _) => Verb::List,
        ("GET", Some(_), _) => Verb::Get,
        ("POST" | "DELETE", None, _) if route.kind.facts().namespaced && route.namespace.is_none() => {
            return None;
        }
        ("POST", None, None) | ("POST", Some(_), Some("binding")) => Verb::Create,
        ("PUT", Some(_), _) => Verb::Update,
        ("PATCH", Some(_), _) => Verb::Patch,
        ("DELETE", Some(_), None) => Verb::Delete,
        ("DELETE", None, None) => Verb::DeleteCollection,
        _ => return None,
    })
}

fn route(path: &str) -> Result<Route> {
    let unknown = || Failure::new(404, "the server could not find the requested resource");
    let segments: Vec<String> = path.trim_matches('/').split('/').map(decode).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (group, rest) = match &segments[..] {
        ["api", "v1", rest @ ..] => ("", rest),
        ["apis", group, "v1", rest @ ..] => (*group, rest),
        _ => return Err(unknown()),
    };
    let (namespace, rest) = match rest {
        ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => (None, rest),
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
        _ => (None, rest),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (plural, None, None),
        [plural, name] => (plural, Some((*name).to_owned()), None),
        [plural, name, sub] => (plural, Some((*name).to_owned()), Some(*sub)),
        _ => return Err(unknown()),
    };
    let kind = Kind::served(group, plural).ok_or_else(unknown)?;
    let subresource = match subresource {
        None => None,
        Some("status") if kind.facts().status => Some("status"),
        Some("binding") if kind == Kind::Pod => Some("binding"),
        Some("finalize") if kind == Kind::Namespace => Some("finalize"),
        Some(_) => return Err(unknown()),
    };
    // Objects with a namespace are named within it; those without have none.
    if namespace.is_some() != kind.facts().namespaced && (namespace.is_some() || name.is_some()) {
        return Err(unknown());
    }
    Ok(Route { kind, namespace, name, subresource })
}

async fn list(shared: &Arc<Shared>, route: &Route, query: &Query, open: Open) -> Result<Response<Body>> {
    let asked = open.asked().clone();
    let filter = Filter::parse(route.kind, &asked.labels, &asked.fields)?;
    let (place, limit, least) = place(query)?;
    await_version(shared, route.kind, least).await?;
    let page = shared.store().list(route.kind, route.namespace.as_deref(), &filter, limit, &place)?;
    let strike =
        |wanted: Fault| shared.faults.strike(Verb::List, route.kind, |fault| *fault == wanted).is_some();
    let cut = strike(Fault::Cut);
    let odd = strike(Fault::Odd);
    let body = list_body(route.kind, asked.form(), page, open, cut, odd);
    Ok(answer(200, body))
}

/// What is left to send of a list.
struct Sending {
    kind: Kind,
    form: Form,
    page: Page,
    place: usize,
    begun: bool,
    ended: bool,
    cut: bool,
    odd: bool,
    open: Open,
}

fn list_body(kind: Kind, form: Form, page: Page, open: Open, cut: bool, odd: bool) -> Body {
    let sending = Sending { kind, form, page, place: 0, begun: false, ended: false, cut, odd, open };
    let pieces = stream::unfold(sending, |mut sending| async move {
        if sending.cut && sending.begun {
            // What was written before goes out while this waits.
            tokio::time::sleep(BEFORE_CUT).await;
        }
        let piece = sending.next()?;
        Some((piece, sending))
    });
    StreamBody::new(pieces).boxed_unsync()
}

impl Sending {
    fn next(&mut self) -> Option<io::Result<Frame<Bytes>>> {
        if self.ended {
            return None;
        }
        let mut out = Vec::new();
        if !self.begun {
            self.begun = true;
            self.head(&mut out);
        } else if self.cut {
            self.ended = true;
            return Some(Err(io::Error::new(
                io::ErrorKind::ConnectionReset,
                "the connection is cut on purpose",
            )));
        }
        while out.len() < CHUNK {
            let Some(object) = self.page.objects.get(self.place) else {
                // An empty list is cut after its head, too.
                if !self.cut {
                    out.extend_from_slice(b"]}\n");
                    self.ended = true;
                }
                break;
            };
            if self.cut && self.place * 2 > self.page.objects.len() {
                break;
            }
            if self.place > 0 {
                out.push(b',');
            }
            if self.place == 0 && self.odd {
                out.extend_from_slice(ODD);
            } else {
                object.write(self.kind, self.form, true, object.version, &mut out);
            }
            self.place += 1;
        }
        self.open.sent(out.len());
        Some(Ok(Frame::data(out.into())))
    }

    fn head(&self, out: &mut Vec<u8>) {
        let (kind, api_version) = match self.form {
            Form::Whole => (format!("{}List", self.kind.facts().kind), self.kind.api_version()),
            Form::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
        };
        let mut metadata = json!({ "resourceVersion": self.page.version.to_string() });
        if let Some((token, left)) = &self.page.next {
            metadata["continue"] = token.as_str().into();
            if let Some(left) = left {
                metadata["remainingItemCount"] = (*left).into();
            }
        }
        let head = format!(
            "{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata},\"items\":["
        );
        out.extend_from_slice(head.as_bytes());
    }
}

/// Returns which part of a list is asked for, how long it may be, and how new it must be.
fn place(query: &Query) -> Result<(Place, Option<usize>, u64)> {
    let get = |name: &str| query.get(name).map_or("", String::as_str);
    let limit = match get("limit") {
        "" | "0" => None,
        text => Some(text.parse().map_err(|_| Failure::new(400, format!("limit: {text} is no number")))?),
    };
    let version = get("resourceVersion");
    let matching = get("resourceVersionMatch");
    let number = || {
        let bad = |_| {
            Failure::new(400, format!("resourceVersion: Invalid value: \"{version}\": strconv.ParseUint"))
        };
        version.parse::<u64>().map_err(bad)
    };
    let list_options = |why: &str| Failure {
        reason: "Invalid",
        ..Failure::new(422, format!("ListOptions.meta.k8s.io \"\" is invalid: {why}"))
    };
    if !get("continue").is_empty() {
        if !matches!(version, "" | "0") {
            return Err(Failure::new(400, "specifying resource version is not allowed when using continue"));
        }
        return Ok((Place::Token(get("continue").to_owned()), limit, 0));
    }
    Ok(match (version, matching) {
        ("", "") => (Place::Now, limit, 0),
        ("", _) => {
            return Err(list_options(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        ("0", "Exact") => {
            return Err(list_options(
                "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
        // What the cache has is sent in one piece.
        ("0", _) => (Place::Now, None, 0),
        (_, "Exact") => (Place::At(number()?), limit, number()?),
        (_, "NotOlderThan") => (Place::Now, limit, number()?),
        (_, "") if limit.is_some() => (Place::At(number()?), limit, number()?),
        (_, "") => (Place::Now, None, number()?),
        (_, other) => {
            return Err(list_options(&format!("resourceVersionMatch: Unsupported value: \"{other}\"")));
        }
    })
}

/// Waits until a version is there.
async fn await_version(shared: &Shared, kind: Kind, least: u64) -> Result<()> {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let mut wake = shared.store().listen(kind);
        let version = shared.store().version;
        if version >= least {
            return Ok(());
        }
        // Versions of other kinds count, too, and wake nobody here.
        let pause = Duration::from_millis(50);
        if tokio::time::timeout(pause, wake.changed()).await.is_err() && tokio::time::Instant::now() >= end {
            let mut failure =
                Failure::new(504, format!("Too large resource version: {least}, current: {version}"));
            failure.details = json!({ "causes": [{
                "reason": "ResourceVersionTooLarge", "message": "Too large resource version",
            }]});
            failure.retry_after = Some(1);
            return Err(failure);
        }
    }
}

fn watch(shared: &Arc<Shared>, route: &Route, query: &Query, open: Open) -> Result<Response<Body>> {
    let asked = open.asked().clone();
    let get = |name: &str| query.get(name).map_or("", String::as_str);
    let flag = |name: &str| matches!(get(name), "true" | "1");
    let filter = Filter::parse(route.kind, &asked.labels, &asked.fields)?;
    let version = match get("resourceVersion") {
        "" | "0" => 0,
        text => text
            .parse::<u64>()
            .map_err(|_| Failure::new(500, format!("resourceVersion: Invalid value: \"{text}\"")))?,
    };
    let limit = match get("timeoutSeconds") {
        "" | "0" => WATCH,
        text => Duration::from_secs(
            text.parse().map_err(|_| Failure::new(400, format!("timeoutSeconds: {text} is no number")))?,
        ),
    };
    let streaming = flag("sendInitialEvents");
    let matching = get("resourceVersionMatch");
    if query.contains_key("sendInitialEvents") != (matching == "NotOlderThan") {
        let why = if matching.is_empty() {
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        } else {
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        };
        return Err(Failure::new(422, format!("ListOptions.meta.k8s.io \"\" is invalid: {why}")));
    }
    let listed = streaming || (version == 0 && !query.contains_key("sendInitialEvents"));
    let mut start = Start {
        kind: route.kind,
        form: asked.form(),
        namespace: route.namespace.clone(),
        filter,
        after: version,
        initial: Vec::new(),
        mark_end: streaming && flag("allowWatchBookmarks"),
        bookmarks: flag("allowWatchBookmarks"),
        limit,
        refusal: None,
    };
    let store = shared.store();
    if listed {
        let namespace = start.namespace.as_deref();
        let page = store.list(route.kind, namespace, &start.filter, None, &Place::Now)?;
        start.initial = page.objects;
        start.after = page.version;
    } else if version == 0 {
        start.after = store.version;
    } else if let Err(failure) = store.watchable(version) {
        start.refusal = Some(failure);
    }
    drop(store);
    if shared.faults.strike(Verb::Watch, route.kind, |fault| *fault == Fault::Gone).is_some() {
        start.refusal =
            Some(Failure::expired(format!("too old resource version: {version} ({})", version + 1)));
    }
    if streaming
        && shared.faults.strike(Verb::Watch, route.kind, |fault| *fault == Fault::NoWatchList).is_some()
    {
        let why = "a watch stream was requested by the client but the required storage feature RequestWatchProgress is disabled";
        start.refusal = Some(Failure::new(500, why));
    }
    let pieces = stream::unfold(Watching::new(shared, open, start), Watching::next);
    Ok(answer(200, StreamBody::new(pieces).boxed_unsync()))
}

/// Answers a request about one object, or a delete of several.
async fn single(
    shared: &Arc<Shared>,
    verb: Verb,
    route: Route,
    query: &Query,
    request: Request<Incoming>,
    open: &Open,
) -> Result<Response<Body>> {
    let sort = header_text(&request, header::CONTENT_TYPE);
    let agent = header_text(&request, header::USER_AGENT);
    let bytes = request
        .into_body()
        .collect()
        .await
        .map_err(|error| Failure::new(400, format!("cannot read the body: {error}")))?
        .to_bytes();
    if sort.contains("protobuf") {
        return Err(Failure::new(415, "the double reads JSON only"));
    }
    let body = || {
        serde_json::from_slice::<Value>(&bytes)
            .map_err(|error| Failure::new(400, format!("the body is no JSON: {error}")))
    };
    let options = || if bytes.is_empty() { Ok(Value::Null) } else { body() };
    let by = match query.get("fieldManager") {
        Some(name) if !name.is_empty() => name.clone(),
        _ => agent.split('/').next().filter(|name| !name.is_empty()).unwrap_or("unknown").to_owned(),
    };
    let manner = Manner {
        manager: by,
        dry: query.get("dryRun").is_some_and(|value| value == "All"),
        force: query.get("force").is_some_and(|value| value == "true"),
    };
    let kind = route.kind;
    let target = Target {
        kind,
        namespace: route.namespace,
        name: route.name.unwrap_or_default(),
        subresource: route.subresource,
    };
    let form = open.asked().form();
    let mut store = shared.store();
    let (code, object) = match verb {
        Verb::Get => {
            let key = crate::lab::api::store::key(target.namespace.as_deref(), &target.name);
            let found = store.get(kind, &key).cloned();
            (200, found.ok_or_else(|| Failure::not_found(kind, &target.name))?)
        }
        Verb::Create if target.subresource == Some("binding") => {
            write::bind(&mut store, &target, &body()?, &manner)?;
            return Ok(success(201, &json!({}), open));
        }
        Verb::Create => (201, write::create(&mut store, target, body()?, &manner)?.object),
        Verb::Update | Verb::Patch => {
            let written = match (verb, sort.split(';').next().unwrap_or("").trim()) {
                (Verb::Update, _) => write::update(&mut store, target, body()?, &manner)?,
                (_, "application/merge-patch+json") => write::patch(&mut store, target, &body()?, &manner)?,
                (_, "application/apply-patch+yaml") => {
                    if query.get("fieldManager").is_none_or(String::is_empty) {
                        let why = "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch";
                        return Err(Failure::new(422, why));
                    }
                    write::apply(&mut store, target, body()?, &manner)?
                }
                (_, other) => {
                    let message = format!("the body of the request was in an unknown format - {other:?}");
                    return Err(Failure::new(415, message));
                }
            };
            (if written.created { 201 } else { 200 }, written.object)
        }
        Verb::Delete => {
            let deletion = deletion(query, &options()?, &manner)?;
            let deleted = write::delete(&mut store, &target, &deletion)?;
            if deleted.gone && !kind.facts().returns_deleted {
                let uid = deleted.object.value(kind)["metadata"]["uid"].clone();
                let details = json!({ "name": target.name, "group": kind.facts().group, "kind": kind.facts().plural, "uid": uid });
                return Ok(success(200, &details, open));
            }
            (200, deleted.object)
        }
        Verb::DeleteCollection => {
            let filter = Filter::parse(kind, &open.asked().labels, &open.asked().fields)?;
            let page = store.list(kind, target.namespace.as_deref(), &filter, None, &Place::Now)?;
            let deletion = deletion(query, &options()?, &manner)?;
            for object in &page.objects {
                let one = Target {
                    name: object.name().to_owned(),
                    namespace: object.namespace().map(str::to_owned),
                    ..target.clone()
                };
                write::delete(&mut store, &one, &deletion)?;
            }
            drop(store);
            return Ok(success(200, &json!({}), open));
        }
        Verb::List | Verb::Watch => unreachable!("these are about many objects"),
    };
    drop(store);
    Ok(sent(code, &object, kind, form, open))
}

/// Returns a header, or nothing where there is none or it is no text.
fn header_text(request: &Request<Incoming>, name: header::HeaderName) -> String {
    match request.headers().get(name).map(header::HeaderValue::to_str) {
        Some(Ok(text)) => text.to_owned(),
        Some(Err(_)) | None => String::new(),
    }
}

fn deletion(query: &Query, options: &Value, manner: &Manner) -> Result<Deletion> {
    let asked = match query.get("gracePeriodSeconds") {
        Some(text) => Some(text.parse().map_err(|_| Failure::new(400, "gracePeriodSeconds is no number"))?),
        None => options["gracePeriodSeconds"].as_i64(),
    };
    let text = |pointer: &str| options.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    Ok(Deletion {
        grace: asked,
        uid: text("/preconditions/uid"),
        version: text("/preconditions/resourceVersion"),
        dry: manner.dry || options["dryRun"] == json!(["All"]),
    })
}

fn sent(code: u16, object: &Object, kind: Kind, form: Form, open: &Open) -> Response<Body> {
    let json = object.json(kind, form);
    open.sent(json.len());
    answer(code, whole(json))
}

fn success(code: u16, details: &Value, open: &Open) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details, "code": code,
    });
    let text = status.to_string();
    open.sent(text.len());
    answer(code, whole(text))
}

fn refused(failure: &Failure) -> Response<Body> {
    let mut response = answer(failure.code, whole(failure.status().to_string()));
    if let Some(seconds) = failure.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

fn whole(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

fn answer(code: u16, body: Body) -> Response<Body> {
    Response::builder()
        .status(code)
        .header(header::CONTENT_TYPE, JSON)
        .body(body)
        .expect("the codes and headers here are valid")
}

/// Answers what is the same at all times.
fn fixed(path: &str) -> Option<Response<Body>> {
    let group_of = |group: &str| {
        let version = json!({ "groupVersion": format!("{group}/v1"), "version": "v1" });
        json!({ "name": group, "versions": [version], "preferredVersion": version })
    };
    let mut groups: Vec<&str> =
        ALL.iter().map(|kind| kind.facts().group).filter(|group| !group.is_empty()).collect();
    groups.dedup();
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let value = match segments[..] {
        ["healthz" | "livez" | "readyz", ..] => {
            let mut response = answer(200, whole("ok"));
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
            return Some(response);
        }
        ["version"] => json!({
            "major": "1", "minor": "36", "gitVersion": "v1.36.0-double", "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
        }),
        ["api"] => json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] }),
        ["apis"] => {
            let groups: Vec<Value> = groups.into_iter().map(group_of).collect();
            json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
        }
        ["apis", group] if groups.contains(&group) => {
            let mut value = group_of(group);
            value["kind"] = "APIGroup".into();
            value["apiVersion"] = "v1".into();
            value
        }
        ["api", "v1"] => resources(""),
        ["apis", group, "v1"] if groups.contains(&group) => resources(group),
        _ => return None,
    };
    Some(answer(200, whole(value.to_string())))
}

fn resources(group: &str) -> Value {
    let mut list = Vec::new();
    for kind in ALL.into_iter().filter(|kind| kind.facts().group == group) {
        let facts = kind.facts();
        list.push(json!({
            "name": facts.plural, "singularName": facts.kind.to_lowercase(), "namespaced": facts.namespaced,
            "kind": facts.kind, "shortNames": facts.short,
            "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        }));
        if facts.status {
            list.push(json!({
                "name": format!("{}/status", facts.plural), "singularName": "", "namespaced": facts.namespaced,
                "kind": facts.kind, "verbs": ["get", "patch", "update"],
            }));
        }
    }
    let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": list })
}

fn parse_query(text: &str) -> Query {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(&name.replace('+', " ")), decode(&value.replace('+', " ")))
        })
        .collect()
}

/// Replaces `%20` and the like.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let digits = tail.get(..2).filter(|pair| *first == b'%' && pair.iter().all(u8::is_ascii_hexdigit));
        let byte = digits.map(|pair| u8::from_str_radix(&String::from_utf8_lossy(pair), 16));
        match byte {
            Some(Ok(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
