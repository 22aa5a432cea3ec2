//! Policy documents in files: where each stands, and the text around it.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    fs::{self, File},
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use anyhow::Context as _;
use serde_json::Value;

use crate::{
    k8s::{
        convert::{DEFAULT_NAMESPACE, MANAGED, POLICY_KEY},
        manifests::{self, MAX_FILE_BYTES, ManifestError, ManifestFile},
    },
    policy::{
        cluster::NsName,
        governance::ANNOTATION,
        index::{Object, ObjectKey},
    },
};

/// What standard input is called in findings.
pub(super) const STANDARD_INPUT: &str = "<stdin>";

/// A policy document, or a managed ConfigMap without one.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub(super) id: NsName,
    /// `None` where the ConfigMap has no text under the key.
    pub(super) text: Option<String>,
    pub(super) place: Place,
}

/// Where the text of a policy stands in a file.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) file: Arc<str>,
    /// The line of the file before the text's first, and how many characters stand before each of its lines; `None` if the text
    /// does not stand in the file as it is.
    pub(super) offset: Option<(usize, usize)>,
    /// The line of the object, as near as is known.
    pub(super) line: Option<usize>,
    /// Whether the file is the policy.
    pub(super) bare: bool,
}

/// Everything that was read.
#[derive(Debug, Default)]
pub(super) struct Documents {
    /// In the order of the files, and of the text in each.
    pub(super) list: Vec<Document>,
    /// Every object, those with the documents included, in the same order.
    pub(super) objects: Vec<(ObjectKey, Object)>,
    /// What is wrong with the files.
    pub(super) errors: Vec<ManifestError>,
    /// ConfigMaps with policies that another one of the same name takes the place of, or stands in the place of.
    pub(super) twice: Vec<ManifestError>,
    /// ConfigMaps with the key of a policy and without the label: who wrote them, and where.
    pub(super) unlabelled: Vec<(NsName, Place)>,
    /// How many NetworkPolicies there are.
    pub(super) network_policies: usize,
    /// What Namespaces among the objects say about governance. The first of a name counts.
    pub(super) annotations: BTreeMap<String, Option<String>>,
    /// The texts of the files.
    pub(super) sources: BTreeMap<Arc<str>, Arc<str>>,
    /// The files in the order in which they were read.
    pub(super) order: HashMap<String, usize>,
    /// Where each ConfigMap stood first, and whether it was managed.
    first: HashMap<NsName, (Arc<str>, Option<usize>, bool)>,
}

impl Documents {
    /// Reads a file, a directory, or standard input for `-`.
    ///
    /// What is wrong with the content of a file stands among the [errors](Self::errors).
    pub(super) fn add(&mut self, path: &Path) -> anyhow::Result<()> {
        if path == Path::new("-") {
            let text = standard_input()?;
            self.named(STANDARD_INPUT, "stdin", text);
            return Ok(());
        }
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        // What is no file, such as a pipe, can be read once only.
        if fs::metadata(path).is_ok_and(|metadata| !metadata.is_dir() && !metadata.is_file()) {
            let reading = || format!("cannot read {}", path.display());
            let text = File::open(path).map_err(anyhow::Error::from).and_then(|file| limited(&file));
            self.named(
                &path.display().to_string(),
                stem.as_deref().unwrap_or("policy"),
                text.with_context(reading)?,
            );
            return Ok(());
        }
        let named = !path.is_dir();
        for file in manifests::load(path)?.files {
            // What cannot be read has been reported among the file's errors, so its text matters no more.
            let text = match fs::read_to_string(&file.path) {
                Ok(text) => text,
                Err(error) if named => {
                    return Err(error).with_context(|| format!("cannot read {}", path.display()));
                }
                Err(_) => {
                    self.file(&file.path.display().to_string());
                    self.errors.extend(file.errors);
                    continue;
                }
            };
            let json = file.path.extension().is_some_and(|extension| extension == "json");
            if (json || named) && is_bare(&text) {
                let stem = file.path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
                self.bare(&file.path.display().to_string(), stem.as_deref().unwrap_or("policy"), text);
            } else {
                self.manifest(file, text, named);
            }
        }
        Ok(())
    }

    /// Takes the text of what was named by itself; `name` is what a policy without a ConfigMap around it is called.
    fn named(&mut self, file: &str, name: &str, text: String) {
        if is_bare(&text) {
            self.bare(file, name, text);
        } else {
            self.manifest(manifests::parse(file.into(), &text), text, true);
        }
    }

    fn file(&mut self, name: &str) -> Arc<str> {
        let next = self.order.len();
        self.order.entry(name.to_owned()).or_insert(next);
        name.into()
    }

    /// Takes a text that is a policy without a ConfigMap around it.
    fn bare(&mut self, file: &str, name: &str, text: String) {
        let file = self.file(file);
        self.sources.insert(Arc::clone(&file), text.as_str().into());
        let place = Place { file, offset: Some((0, 0)), line: None, bare: true };
        self.list.push(Document { id: NsName::new(DEFAULT_NAMESPACE, name), text: Some(text), place });
    }

    /// Takes a file with objects. One that is `named` by itself is to have some.
    fn manifest(&mut self, file: ManifestFile, text: String, named: bool) {
        let path = file.path.display().to_string();
        if named && file.objects.is_empty() && file.errors.is_empty() && file.ignored.is_empty() {
            self.errors.push(ManifestError {
                path: file.path.clone(),
                document: None,
                line: None,
                message: "it holds no object and no policy".into(),
                hint: Some("was the command before it, or the file, what was meant?".into()),
            });
        }
        self.errors.extend(file.errors);
        let name = self.file(&path);
        let names = name_lines(&text);
        let of_policies = |(_, object): &(ObjectKey, Object)| match object {
            Object::ConfigMap { id, managed: true, policy: Some(policy) } => {
                Some((id.name.clone(), policy.clone()))
            }
            _ => None,
        };
        let policies: Vec<(String, String)> = file.objects.iter().filter_map(of_policies).collect();
        let mut blocks = place(&text, &policies).into_iter();
        let is_namespace = |object: &Object| matches!(object, Object::Namespace { .. });
        let is_unmanaged = |object: &Object| matches!(object, Object::ConfigMap { managed: false, .. });
        if file.objects.iter().any(|(_, object)| is_namespace(object) || is_unmanaged(object)) {
            for value in values(&path, &text) {
                each(value, &mut |object| self.look(&object, &name, &names));
            }
        }
        for (key, object) in file.objects {
            match &object {
                Object::ConfigMap { id, managed, policy } => {
                    let block = policy.as_ref().and_then(|_| blocks.next().flatten());
                    let place = Place {
                        file: Arc::clone(&name),
                        offset: block.map(|block| (block.line, block.indent)),
                        line: names.get(&id.name).copied(),
                        bare: false,
                    };
                    self.is_first(id, &place, *managed);
                    if *managed {
                        self.list.push(Document { id: id.clone(), text: policy.clone(), place });
                    }
                }
                Object::NetworkPolicy(..) => self.network_policies += 1,
                _ => {}
            }
            self.objects.push((key, object));
        }
        self.sources.insert(name, text.into());
    }

    /// Notes a ConfigMap. Of two with the same name the cluster has the one that was applied last, whichever that is.
    fn is_first(&mut self, id: &NsName, place: &Place, managed: bool) {
        let line = place.offset.map(|(line, _)| line).or(place.line);
        match self.first.entry(id.clone()) {
            Entry::Vacant(entry) => {
                entry.insert((Arc::clone(&place.file), line, managed));
            }
            Entry::Occupied(entry) => {
                let (file, before, was_managed) = entry.get();
                if managed || *was_managed {
                    let at = before.map_or_else(String::new, |line| format!(" line {line}"));
                    self.twice.push(ManifestError {
                        path: (&*place.file).into(),
                        document: None,
                        line,
                        message: format!("ConfigMap {id} stands in {file}{at} already"),
                        hint: Some(
                            "only one of them would be in the cluster; check each overlay by itself".into(),
                        ),
                    });
                }
            }
        }
    }

    /// Takes from an object what its typed reading leaves out.
    fn look(&mut self, object: &Value, file: &Arc<str>, names: &HashMap<String, usize>) {
        let metadata = &object["metadata"];
        let Some(name) = metadata["name"].as_str() else { return };
        if object["kind"] == "Namespace" {
            let word = metadata["annotations"][ANNOTATION].as_str().map(str::to_owned);
            self.annotations.entry(name.to_owned()).or_insert(word);
        }
        let managed = metadata["labels"][MANAGED.0] == MANAGED.1;
        if object["kind"] == "ConfigMap" && !managed && object["data"].get(POLICY_KEY).is_some() {
            let namespace = metadata["namespace"].as_str().unwrap_or(DEFAULT_NAMESPACE);
            let line = names.get(name).copied();
            let place = Place { file: Arc::clone(file), offset: None, line, bare: false };
            self.unlabelled.push((NsName::new(namespace, name), place));
        }
    }
}

/// Reads all of standard input.
pub(super) fn standard_input() -> anyhow::Result<String> {
    limited(io::stdin().lock()).context("reading standard input")
}

/// Reads to the end.
fn limited(from: impl Read) -> anyhow::Result<String> {
    let mut text = String::new();
    from.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    anyhow::ensure!(text.len() as u64 <= MAX_FILE_BYTES, "larger than {} MiB", MAX_FILE_BYTES >> 20);
    Ok(text)
}

/// Returns whether a text is a policy document rather than an object: a JSON object without apiVersion and kind.
pub(super) fn is_bare(text: &str) -> bool {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if !text.trim_start().starts_with('{') {
        return false;
    }
    match serde_json::from_str::<serde_json::Map<String, Value>>(text) {
        Ok(fields) => !fields.contains_key("apiVersion") && !fields.contains_key("kind"),
        // Several objects in a row, or a broken one: what it looks like decides.
        Err(_) => !text.contains("\"apiVersion\"") && !text.contains("\"kind\""),
    }
}

/// A block of text under `policy.json` in YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// The line of its key, from 1: the line before its first.
    pub(super) line: usize,
    /// How many blanks stand before each of its lines.
    pub(super) indent: usize,
    /// The bytes of the file that its lines take, those that are blank at the end left out.
    pub(super) span: std::ops::Range<usize>,
    /// Without the blanks in front.
    pub(super) text: String,
}

/// How many policies and blocks that say the same are compared with each other in one file.
const MOST_PAIRS: usize = 1 << 20;

/// Returns the block that each of the policies of a file stands in, given with the names of their ConfigMaps in the order of the text;
/// `None` where that is not certain.
pub(super) fn place(text: &str, policies: &[(String, String)]) -> Vec<Option<Block>> {
    let blocks = block_scalars(text);
    let says = |block: &Block, policy: &str| block.text.trim_end() == policy.trim_end();
    // As many blocks as policies, and each says what the policy does: nothing else stands between them.
    if blocks.len() == policies.len()
        && blocks.iter().zip(policies).all(|(block, (_, policy))| says(block, policy))
    {
        return blocks.into_iter().map(Some).collect();
    }
    let parts = Parts::new(text);
    let mut same: HashMap<&str, (Vec<usize>, Vec<&Block>)> = HashMap::new();
    for (number, (_, policy)) in policies.iter().enumerate() {
        same.entry(policy.trim_end()).or_default().0.push(number);
    }
    for block in &blocks {
        if let Some((_, here)) = same.get_mut(block.text.trim_end()) {
            here.push(block);
        }
    }
    let fits = |number: usize, block: &Block| parts.names(block, &policies[number].0);
    let mut placed = vec![None; policies.len()];
    for (numbers, here) in same.into_values() {
        if numbers.len() == here.len()
            && numbers.iter().zip(&here).all(|(number, block)| fits(*number, block))
        {
            for (number, block) in numbers.into_iter().zip(here) {
                placed[number] = Some(block.clone());
            }
            continue;
        }
        if numbers.len() * here.len() > MOST_PAIRS {
            continue;
        }
        // A block that can be of one policy only is that one's, unless another block can be, too.
        let mut of: HashMap<usize, Vec<&Block>> = HashMap::new();
        for block in here {
            let mut fitting = numbers.iter().copied().filter(|number| fits(*number, block)).take(2);
            if let (Some(number), None) = (fitting.next(), fitting.next()) {
                of.entry(number).or_default().push(block);
            }
        }
        for (number, blocks) in of {
            if let [block] = blocks.as_slice() {
                placed[number] = Some((*block).clone());
            }
        }
    }
    placed
}

/// The words of each YAML document of a file.
struct Parts<'t> {
    starts: Vec<usize>,
    words: Vec<HashSet<&'t str>>,
}

impl<'t> Parts<'t> {
    fn new(text: &'t str) -> Self {
        let mut starts = vec![0];
        starts.extend(text.match_indices("\n---").map(|(at, _)| at + 1));
        let words = |(part, start): (usize, &usize)| -> HashSet<&str> {
            let end = starts.get(part + 1).copied().unwrap_or(text.len());
            text[*start..end].split(|c: char| !c.is_ascii_alphanumeric() && !"-.".contains(c)).collect()
        };
        let words = starts.iter().enumerate().map(words).collect();
        Self { starts, words }
    }

    /// Tells whether a block stands in a document that has the name and the label of a policy.
    fn names(&self, block: &Block, name: &str) -> bool {
        let words = &self.words[self.starts.partition_point(|start| *start <= block.span.start) - 1];
        [name, MANAGED.0, MANAGED.1].iter().all(|word| words.contains(word))
    }
}

/// Finds every `policy.json: |` and the lines that belong to it. What stands inside another block is text, not a key.
fn block_scalars(text: &str) -> Vec<Block> {
    let mut lines: Vec<(usize, &str)> = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        lines.push((at, line.trim_end_matches('\n').trim_end_matches('\r')));
        at += line.len();
    }
    let indent = |line: &str| line.len() - line.trim_start_matches(' ').len();
    let blank = |line: &str| line.trim().is_empty();
    let mut found = Vec::new();
    let mut next = 0;
    while let Some((_, line)) = lines.get(next) {
        let i = next;
        next += 1;
        let Some(Header { parent, content, indicators }) = header(line) else { continue };
        let Some((_, first)) = lines[i + 1..].iter().find(|(_, line)| !blank(line)) else { continue };
        let depth = match indicators.chars().find_map(|c| c.to_digit(10)) {
            Some(digit) => parent + digit as usize,
            None => indent(first),
        };
        if depth <= parent || indent(first) < depth {
            continue;
        }
        let body = lines[i + 1..].iter().take_while(|(_, line)| blank(line) || indent(line) >= depth).count();
        let body = &lines[i + 1..i + 1 + body];
        next += body.len();
        let key = [POLICY_KEY, "\"policy.json\"", "'policy.json'"]
            .iter()
            .find_map(|name| content.strip_prefix(name)?.trim_start().strip_prefix(':'));
        if key.is_none_or(|rest| !rest.trim_start().starts_with('|')) {
            continue;
        }
        let filled = body.iter().rposition(|(_, line)| !blank(line)).map_or(0, |last| last + 1);
        let end = body[..filled].last().map_or(body[0].0, |(at, line)| at + line.len());
        let text: Vec<&str> = body.iter().map(|(_, line)| line.get(depth..).unwrap_or("")).collect();
        found.push(Block { line: i + 1, indent: depth, span: body[0].0..end, text: text.join("\n") });
    }
    found
}

/// A line that a block scalar begins at.
struct Header<'l> {
    /// The column of what the block belongs to: its lines stand further in.
    parent: usize,
    /// The line without what stands before its key.
    content: &'l str,
    /// What stands after `|` or `>`.
    indicators: &'l str,
}

fn header(line: &str) -> Option<Header<'_>> {
    let mut content = line.trim_start_matches(' ');
    let mut parent = line.len() - content.len();
    if content.starts_with('#') {
        return None;
    }
    // Of `- key: |` the key is the parent, of `- |` the dash.
    while let Some(rest) = content.strip_prefix("- ").or_else(|| content.strip_prefix("? ")) {
        let rest = rest.trim_start_matches(' ');
        if rest.starts_with(['|', '>']) {
            break;
        }
        parent += content.len() - rest.len();
        content = rest;
    }
    let code = content.split(" #").next()?.trim_end();
    let (before, last) = code.rsplit_once([' ', '\t'])?;
    let indicators = last.strip_prefix(['|', '>'])?;
    let fine = indicators.len() <= 2 && indicators.chars().all(|c| c.is_ascii_digit() || "+-".contains(c));
    (fine && !before.is_empty()).then_some(Header { parent, content, indicators })
}

/// Returns the first line that gives an object each name.
fn name_lines(text: &str) -> HashMap<String, usize> {
    let bare = |text: &str| text.trim().trim_end_matches(',').trim_matches(['"', '\'']).to_owned();
    let mut lines = HashMap::new();
    for (index, line) in text.lines().enumerate() {
        if let Some((key, value)) = line.split_once(':')
            && bare(key.trim_start().trim_start_matches("- ")) == "name"
        {
            lines.entry(bare(value)).or_insert(index + 1);
        }
    }
    lines
}

/// Returns the documents of a file as they are. What is broken is left out: who read the objects has reported it.
pub(super) fn values(file: &str, text: &str) -> Vec<Value> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if Path::new(file).extension().is_some_and(|extension| extension == "json") {
        return serde_json::Deserializer::from_str(text).into_iter().map_while(Result::ok).collect();
    }
    let options = || {
        serde_saphyr::options! {
            strict_booleans: true,
            with_snippet: false,
        }
    };
    let mark = |line: &str, mark: &str| {
        line.strip_prefix(mark)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
    };
    // A broken document must not hide what the others say.
    let mut part = String::new();
    let mut parts = Vec::new();
    for line in text.split_inclusive('\n') {
        if mark(line, "---") {
            parts.push(std::mem::take(&mut part));
            // What stands behind the mark belongs to the document.
            part.push_str(&line[3..]);
        } else if mark(line, "...") {
            parts.push(std::mem::take(&mut part));
        } else {
            part.push_str(line);
        }
    }
    parts.push(part);
    let read = |part: &String| serde_saphyr::from_multiple_with_options::<Value>(part, options());
    parts.iter().filter_map(|part| read(part).ok()).flatten().collect()
}

/// Hands out the objects of a document: itself, or the items of a list, which need not say their kind again.
fn each(mut value: Value, take: &mut impl FnMut(Value)) {
    let kind = value["kind"].as_str().and_then(|kind| kind.strip_suffix("List")).map(str::to_owned);
    match (kind, value.get_mut("items").and_then(Value::as_array_mut)) {
        (Some(kind), Some(items)) => {
            for mut item in std::mem::take(items) {
                if let Some(fields) = item.as_object_mut()
                    && !kind.is_empty()
                {
                    fields.entry("kind").or_insert_with(|| kind.as_str().into());
                }
                each(item, take);
            }
        }
        _ => take(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_with_their_depth() {
        let text = "data:\n  policy.json: |\n    {\n      \"a\": 1\n    }\n\n  other: x\n";
        let found = block_scalars(text);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].line, found[0].indent), (2, 4));
        assert_eq!(found[0].text, "{\n  \"a\": 1\n}\n");
        assert_eq!(&text[found[0].span.clone()], "    {\n      \"a\": 1\n    }");
        let deep = block_scalars("data:\n  policy.json: |2-\n      {}\n");
        assert_eq!((deep[0].indent, deep[0].text.as_str()), (4, "  {}"));
        assert!(block_scalars("data:\n  policy.json: |\n  {}\n").is_empty());
    }

    fn lines(text: &str, policies: &[(&str, &str)]) -> Vec<Option<usize>> {
        let own = |(name, policy): &(&str, &str)| ((*name).to_owned(), (*policy).to_owned());
        let policies: Vec<_> = policies.iter().map(own).collect();
        place(text, &policies).into_iter().map(|block| block.map(|block| block.line)).collect()
    }

    #[test]
    fn two_blocks_that_say_the_same_are_two() {
        let one = "labels: {egress-controller: managed}\ndata:\n  policy.json: |\n    {}\n";
        let text = format!(
            "name: a\n{one}---\nname: b\n{one}---\nname: a\n{one}---\nname: c\ndata: {{policy.json: x}}\n"
        );
        assert_eq!(lines(&text, &[("a", "{}\n"), ("b", "{}"), ("a", "{}")]), [Some(4), Some(10), Some(16)]);
        // One more or one less of them, and nobody knows which is which.
        assert_eq!(lines(&text, &[("a", "{}"), ("b", "{}")]), [None, Some(10)]);
        assert_eq!(
            lines(&text, &[("a", "{}"), ("b", "{}"), ("a", "{}"), ("c", "{}")]),
            [None, Some(10), None, None]
        );
        // One more that says something else does not matter.
        let more = format!("{text}---\nname: d\ndata:\n  policy.json: |\n    []\n");
        assert_eq!(lines(&more, &[("a", "{}"), ("b", "{}"), ("a", "{}")]), [Some(4), Some(10), Some(16)]);
        assert_eq!(lines(&more, &[("x", "{}"), ("y", "{}"), ("z", "{}")]), [None; 3]);
    }

    #[test]
    fn what_stands_inside_a_block_is_no_key() {
        for readme in ["README: |", "README: >-", "- |", "- README: |2", "README: !!str | # so", "? |"] {
            let text = format!(
                "data:\n  {readme}\n      policy.json: |\n        {{}}\n  policy.json: |\n    {{}}\n"
            );
            let found = block_scalars(&text);
            assert_eq!(found.iter().map(|block| block.line).collect::<Vec<_>>(), [5], "{readme}");
        }
        for key in ["- a: |", "a: |", "- - a: >"] {
            // Its next line stands no further in than itself, so it is empty.
            let column = key.find('a').expect("a key");
            let text = format!("{key}\n{:column$}policy.json: |\n{:column$}  {{}}\n", "", "");
            assert_eq!(block_scalars(&text).len(), 1, "{text}");
        }
    }

    #[test]
    fn blocks_inside_blocks_take_no_more_than_their_text() {
        let mut text = String::new();
        for depth in 0..2000 {
            text += &format!("{:depth$}policy.json: |\n", "");
        }
        let found = block_scalars(&text);
        assert_eq!(found.len(), 1);
        assert!(found.iter().map(|block| block.text.len()).sum::<usize>() < text.len());
    }

    #[test]
    fn a_document_is_told_from_an_object() {
        assert!(is_bare("{\"defaultAction\": \"deny\"}"));
        assert!(is_bare(" {\"defaultAction\": "));
        assert!(!is_bare("{\"apiVersion\": \"v1\", \"kind\": \"Pod\"}"));
        assert!(!is_bare("apiVersion: v1\nkind: Pod\n"));
    }

    #[test]
    fn namespaces_say_their_profile_beside_what_is_broken() {
        let find = |file: &str, text: &str| {
            let mut documents = Documents::default();
            documents.named(file, "p", text.to_owned());
            documents.annotations
        };
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, annotations: {egress-agent.dev/governance: warn}}\n---\na: b: c # egress-agent.dev/governance\n---\n\
                    apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Namespace, metadata: {name: b, annotations: {egress-agent.dev/governance: off}}}, {apiVersion: v1, kind: Namespace, metadata: {name: a}}]\n";
        let expected = [("a".to_owned(), Some("warn".to_owned())), ("b".to_owned(), Some("off".to_owned()))];
        assert_eq!(find("n.yaml", text), BTreeMap::from(expected));
        let required = BTreeMap::from([("a".to_owned(), Some("required".to_owned()))]);
        let items = "apiVersion: v1\nkind: NamespaceList\nitems:\n- metadata: {name: a, annotations: {\"egress-agent.dev\\x2fgovernance\": required}}\n";
        assert_eq!(find("n.yaml", items), required);
        let slash = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "annotations": {"egress-agent.dev\/governance": "required"}}}"#;
        assert_eq!(find("n.json", slash), required);
        assert_eq!(find("n.yaml", slash), required);
    }
}
