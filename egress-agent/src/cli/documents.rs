//! Policy documents in files: where each stands, and the text around it.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fs,
    io::{self, Read as _},
    path::Path,
    sync::Arc,
};

use anyhow::Context as _;
use serde_json::Value;

use crate::{
    k8s::{
        convert::{DEFAULT_NAMESPACE, POLICY_KEY},
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
    /// How many NetworkPolicies there are.
    pub(super) network_policies: usize,
    /// What Namespaces among the objects say about governance. The first of a name counts.
    pub(super) annotations: BTreeMap<String, Option<String>>,
    /// The texts of the files.
    pub(super) sources: BTreeMap<Arc<str>, Arc<str>>,
    /// The files in the order in which they were read.
    pub(super) order: HashMap<String, usize>,
}

impl Documents {
    /// Reads a file, a directory, or standard input for `-`.
    ///
    /// What is wrong with the content of a file stands among the [errors](Self::errors).
    pub(super) fn add(&mut self, path: &Path) -> anyhow::Result<()> {
        if path == Path::new("-") {
            let text = standard_input()?;
            if is_bare(&text) {
                self.bare(STANDARD_INPUT, "stdin", text);
            } else {
                self.manifest(manifests::parse(STANDARD_INPUT.into(), &text), text);
            }
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
                self.manifest(file, text);
            }
        }
        Ok(())
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

    fn manifest(&mut self, file: ManifestFile, text: String) {
        self.errors.extend(file.errors);
        if text.contains(ANNOTATION) {
            annotations(&text, &mut self.annotations);
        }
        let name = self.file(&file.path.display().to_string());
        let mut blocks = Blocks::new(&text);
        let mut names: Option<HashMap<String, usize>> = None;
        for (key, object) in file.objects {
            match &object {
                Object::ConfigMap { id, managed: true, policy } => {
                    let names = names.get_or_insert_with(|| name_lines(&text));
                    let place = Place {
                        file: Arc::clone(&name),
                        offset: policy
                            .as_ref()
                            .and_then(|policy| blocks.take(policy, &id.name))
                            .map(|block| (block.line, block.indent)),
                        line: names.get(&id.name).copied(),
                        bare: false,
                    };
                    self.list.push(Document { id: id.clone(), text: policy.clone(), place });
                }
                Object::NetworkPolicy(..) => self.network_policies += 1,
                _ => {}
            }
            self.objects.push((key, object));
        }
        self.sources.insert(name, text.into());
    }
}

/// Reads all of standard input.
pub(super) fn standard_input() -> anyhow::Result<String> {
    let mut text = String::new();
    let reading = "reading standard input";
    io::stdin().lock().take(MAX_FILE_BYTES + 1).read_to_string(&mut text).context(reading)?;
    anyhow::ensure!(
        text.len() as u64 <= MAX_FILE_BYTES,
        "{reading}: larger than {} MiB",
        MAX_FILE_BYTES >> 20
    );
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
#[derive(Debug)]
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

/// The blocks of a file that are not yet known to be a policy's.
#[derive(Debug, Default)]
pub(super) struct Blocks<'t> {
    list: Vec<Block>,
    /// Which of them say the same, in their order, each with the part of the file it stands in.
    by_text: HashMap<String, VecDeque<(usize, usize)>>,
    /// The words of each part; none if there is one part only.
    words: Vec<HashSet<&'t str>>,
}

impl<'t> Blocks<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let list = block_scalars(text);
        let mut starts = vec![0];
        if !list.is_empty() {
            starts.extend(text.match_indices("\n---").map(|(at, _)| at + 1));
        }
        let mut by_text: HashMap<String, VecDeque<(usize, usize)>> = HashMap::new();
        for (index, block) in list.iter().enumerate() {
            let part = starts.partition_point(|start| *start <= block.span.start) - 1;
            by_text.entry(block.text.trim_end().to_owned()).or_default().push_back((index, part));
        }
        let words = |(part, start): (usize, &usize)| -> HashSet<&str> {
            let end = starts.get(part + 1).copied().unwrap_or(text.len());
            text[*start..end].split(|c: char| !c.is_ascii_alphanumeric() && !"-.".contains(c)).collect()
        };
        let words =
            if starts.len() > 1 { starts.iter().enumerate().map(words).collect() } else { Vec::new() };
        Self { list, by_text, words }
    }

    /// Returns the first block that says the same, stands where the name does, and is not another policy's.
    pub(super) fn take(&mut self, policy: &str, name: &str) -> Option<&Block> {
        let same = self.by_text.get_mut(policy.trim_end())?;
        let named =
            |(_, part): &(usize, usize)| self.words.get(*part).is_none_or(|words| words.contains(name));
        let (index, _) = same.iter().position(named).and_then(|at| same.remove(at))?;
        Some(&self.list[index])
    }
}

/// Finds every `policy.json: |` and the lines that belong to it.
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
    for (i, (_, line)) in lines.iter().enumerate() {
        let key = line.trim_start().trim_start_matches("? ");
        let rest = [POLICY_KEY, "\"policy.json\"", "'policy.json'"]
            .iter()
            .find_map(|name| key.strip_prefix(name)?.trim_start().strip_prefix(':'));
        let Some(header) = rest.and_then(|rest| rest.trim_start().strip_prefix('|')) else { continue };
        let Some((_, first)) = lines[i + 1..].iter().find(|(_, line)| !blank(line)) else { continue };
        let depth = match header.chars().take(2).find_map(|c| c.to_digit(10)) {
            Some(digit) => indent(line) + digit as usize,
            None => indent(first),
        };
        if depth <= indent(line) || indent(first) < depth {
            continue;
        }
        let body = lines[i + 1..].iter().take_while(|(_, line)| blank(line) || indent(line) >= depth).count();
        let body = &lines[i + 1..i + 1 + body];
        let filled = body.iter().rposition(|(_, line)| !blank(line)).map_or(0, |last| last + 1);
        let end = body[..filled].last().map_or(body[0].0, |(at, line)| at + line.len());
        let text: Vec<&str> = body.iter().map(|(_, line)| line.get(depth..).unwrap_or("")).collect();
        found.push(Block { line: i + 1, indent: depth, span: body[0].0..end, text: text.join("\n") });
    }
    found
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

/// Adds what each Namespace of a file says about governance. What is broken has been reported by who read the objects.
fn annotations(text: &str, found: &mut BTreeMap<String, Option<String>>) {
    let options = || {
        serde_saphyr::options! {
            strict_booleans: true,
            with_snippet: false,
        }
    };
    // A broken document must not hide what the others say.
    let mut part = String::new();
    let mut parts = Vec::new();
    for line in text.split_inclusive('\n') {
        if line.starts_with("---") || line.trim_end() == "..." {
            parts.push(std::mem::take(&mut part));
        } else {
            part.push_str(line);
        }
    }
    parts.push(part);
    for part in parts.iter().filter(|part| part.contains(ANNOTATION)) {
        if let Ok(values) = serde_saphyr::from_multiple_with_options::<Value>(part, options()) {
            values.iter().for_each(|value| annotation(value, found));
        }
    }
}

fn annotation(value: &Value, found: &mut BTreeMap<String, Option<String>>) {
    if let Some(items) = value["items"].as_array() {
        items.iter().for_each(|item| annotation(item, found));
    }
    if value["kind"] == "Namespace"
        && let Some(name) = value["metadata"]["name"].as_str()
    {
        let word = value["metadata"]["annotations"][ANNOTATION].as_str().map(str::to_owned);
        found.entry(name.to_owned()).or_insert(word);
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

    #[test]
    fn two_blocks_that_say_the_same_are_two() {
        let one = "data:\n  policy.json: |\n    {}\n";
        let text = format!(
            "metadata: {{name: a}}\n{one}---\nmetadata: {{name: b}}\n{one}---\nmetadata: {{name: a}}\n{one}"
        );
        let mut blocks = Blocks::new(&text);
        let mut line = |policy, name| blocks.take(policy, name).map(|block| block.line);
        assert_eq!((line("{}\n", "b"), line("{}", "a")), (Some(8), Some(3)));
        assert_eq!((line("{}", "c"), line("{}", "a"), line("{}", "a")), (None, Some(13), None));
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
        let text = "kind: Namespace\nmetadata: {name: a, annotations: {egress-agent.dev/governance: warn}}\n---\na: b: c # egress-agent.dev/governance\n---\n\
                    kind: List\nitems: [{kind: Namespace, metadata: {name: b, annotations: {egress-agent.dev/governance: off}}}, {kind: Namespace, metadata: {name: a}}]\n";
        let mut found = BTreeMap::new();
        annotations(text, &mut found);
        let expected = [("a".to_owned(), Some("warn".to_owned())), ("b".to_owned(), Some("off".to_owned()))];
        assert_eq!(found, BTreeMap::from(expected));
    }
}
