//! Policy as code: rules in Rego, asked about policy documents in this process.
//!
//! A [`Bundle`] is the rules that are shipped, or a folder of somebody's own. What a rule is asked about is the ConfigMap as it stands
//! in a manifest, so that conftest and opa ask the same rules the same question. Rules cannot reach the network, files or the
//! environment: the functions for it are not there. A bundle that cannot be evaluated is an [`Error`], never an empty list.

mod builtin;
mod files;
pub mod test;

use std::{
    collections::BTreeMap,
    fmt, io,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use regorus::{
    CompiledPolicy, Engine, LimitError, Value,
    languages::rego::compiler::Compiler,
    rvm::{
        program::Program,
        vm::{RegoVM, VmError},
    },
    utils::limits::ExecutionTimerConfig,
};
use rustix::time::{ClockId, clock_gettime};

use self::files::{Folder, Module};
use crate::policy::{document::is_hidden, finding::Severity};

pub use self::builtin::{DATA, MODULES};

/// The shipped rules that [`governance`](crate::policy::governance) covers, under names and in words of its own. They are for those who
/// run the rules without this program.
pub const GOVERNED: [&str; 6] = ["EGR-0010", "EGR-0011", "EGR-0012", "EGR-0014", "EGR-0016", "EGR-0017"];

/// The package of the shipped rules and all below it, which no other bundle may add to.
const OWN: &str = "egress";

/// The package that gathers what the rules of a bundle say.
const GATHERED: &str = "egress_agent_gathered";

/// Most violations one bundle may report of one document. What is beyond is counted in one more.
const MOST: usize = 500;

/// Longest text of a violation, in characters.
const LONGEST: usize = 500;

/// Functions no rule may call, and why.
const REFUSED: [(&str, &str); 5] = [
    ("net.cidr_expand", "it lists every address of a prefix; compare with net.cidr_contains"),
    ("numbers.range", "it can fill the memory in one step"),
    ("numbers.range_step", "it can fill the memory in one step"),
    ("rand.intn", "a verdict must not depend on chance"),
    ("trace", "use print in tests"),
];

/// Rules that are evaluated together.
#[derive(Debug)]
pub struct Bundle {
    name: String,
    machine: Machine,
    /// In the order in which [`GATHERED`] lists them.
    sets: Vec<Set>,
}

/// What evaluates a bundle.
enum Machine {
    /// regorus' virtual machine, for the shipped rules. It is two to three times as fast as the interpreter, but where a function fails
    /// in a rule it leaves the rule out, as OPA does. A test has both say the same.
    Compiled { program: Arc<Program>, policy: CompiledPolicy, data: Value },
    /// regorus' interpreter, for rules of others: a function that fails is an error there.
    Interpreted(Box<Engine>),
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compiled { .. } => "Compiled",
            Self::Interpreted(_) => "Interpreted",
        })
    }
}

/// A rule that says what is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Set {
    /// Package and name, such as `main.deny_wide`.
    name: String,
    /// How regorus calls it.
    path: String,
    severity: Severity,
}

/// What a rule is told besides the document.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The second (since the epoch, UTC) at which it is asked.
    pub now: u64,
    /// The namespace of the ConfigMap.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// How long one bundle may take.
    pub limit: Duration,
}

/// What a rule has against a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule's id, such as `EGR-0001`; its package and name if it gives none.
    pub id: String,
    /// What is wrong.
    pub msg: String,
    /// The field, such as `allowedDestinations[1].cidr`; empty for the whole document.
    pub path: String,
    /// Error for `deny` and `violation`, warning for `warn`.
    pub severity: Severity,
    /// What to do about it.
    pub remediation: Option<String>,
}

/// Why a bundle cannot be used, or could not say what it thinks of a document.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// It.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of data is not what it should be.
    #[error("{}: {message}", path.display())]
    Data {
        /// It.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A rule is wrong. The message names file, line and column, and shows the text.
    #[error("{message}")]
    Rule {
        /// What is wrong.
        message: String,
    },
    /// There is nothing to evaluate.
    #[error("{} has no rule named deny, violation or warn", path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
    },
    /// The rules took too long over a document.
    #[error("policy as code took longer than {limit:?} ({bundle})")]
    TooLong {
        /// The bundle.
        bundle: String,
        /// How long it may take.
        limit: Duration,
    },
    /// A rule failed.
    #[error("policy as code failed: {message}")]
    Failed {
        /// Where and why.
        message: String,
    },
}

impl Bundle {
    /// Returns the shipped rules. `settings` take the place of values of `data.egress`, field by field.
    ///
    /// # Errors
    ///
    /// [`Error::Data`] if the settings do not fit.
    pub fn builtin(settings: &serde_json::Value) -> Result<Self, Error> {
        Self::new("shipped rules", &builtin::folder(), settings)
    }

    /// Returns the rules in the `.rego` files of a folder and those below, tests left out. They may import `data.egress.lib` and see the
    /// same data as the shipped rules, and what a `data.json` or `data.yaml` in the folder adds.
    ///
    /// # Errors
    ///
    /// [`Error`] if something cannot be read or is wrong, if a rule is added to the shipped packages or calls what no rule may, or
    /// if there is no rule to ask.
    pub fn load(dir: &Path, settings: &serde_json::Value) -> Result<Self, Error> {
        let folder = files::read(dir)?;
        if let Some(module) = folder.modules.iter().find(|module| module.is_of(OWN)) {
            let message = format!(
                "{}: package {OWN} and those below it are the shipped ones; they are always there",
                module.path
            );
            return Err(Error::Rule { message });
        }
        Self::new(&dir.to_string_lossy(), &folder, settings)
    }

    fn new(name: &str, folder: &Folder, settings: &serde_json::Value) -> Result<Self, Error> {
        let shipped = builtin::folder();
        let mut engine = Engine::new();
        let is_shipped = folder.modules.iter().any(|module| module.is_of(OWN));
        let shared = if is_shipped { &[][..] } else { &shipped.modules[..] };
        for module in shared.iter().chain(&folder.modules).filter(|module| !module.is_test()) {
            add(&mut engine, module)?;
        }
        let data = data_of(folder, &shipped, settings)?;
        engine.add_data(data.clone()).map_err(rule_error)?;

        let sets = sets(&mut engine, &folder.modules)?;
        if sets.is_empty() {
            return Err(Error::Empty { path: folder.path.clone() });
        }
        let lists: Vec<String> = sets.iter().map(|set| format!("[x | x := {}]", set.path)).collect();
        let text =
            format!("package {GATHERED}\n\nimport rego.v1\n\nall := [\n\t{},\n]\n", lists.join(",\n\t"));
        add(&mut engine, &Module { path: "(gathering)".into(), text })?;
        let entry = format!("data.{GATHERED}.all");
        let policy = engine.compile_with_entrypoint(&entry.as_str().into()).map_err(rule_error)?;
        let program = Compiler::compile_from_policy(&policy, &[&entry])
            .map_err(|error| Error::Rule { message: error.to_string().trim().to_owned() })?;
        for (function, why) in REFUSED {
            if program.builtin_info_table.iter().any(|info| info.name == function) {
                let place = folder.modules.iter().find_map(|module| module.place_of(function));
                let place = place.map_or_else(String::new, |place| format!("{place}: "));
                return Err(Error::Rule { message: format!("{place}{function} is not allowed: {why}") });
            }
        }
        engine.set_gather_prints(true);
        let machine = match is_shipped {
            true => Machine::Compiled { program, policy, data },
            false => Machine::Interpreted(Box::new(engine)),
        };
        Ok(Self { name: name.to_owned(), machine, sets })
    }

    /// Asks every rule about a document, the text under `policy.json`.
    ///
    /// May be called from several threads at a time. Errors stand before warnings.
    ///
    /// # Errors
    ///
    /// [`Error::TooLong`] and [`Error::Failed`]: what the rules would have said is not known then.
    pub fn evaluate(&self, text: &str, context: &Context<'_>) -> Result<Vec<Violation>, Error> {
        const TRIES: u32 = 3;
        let mut left = TRIES;
        loop {
            left -= 1;
            let before = cpu_time();
            match self.run(text, context) {
                // The limit is one of time that passes. What lost it to others on a busy machine may try again.
                Err(Error::TooLong { .. })
                    if left > 0 && cpu_time().saturating_sub(before) < context.limit / 2 => {}
                result => return result,
            }
        }
    }

    fn run(&self, text: &str, context: &Context<'_>) -> Result<Vec<Violation>, Error> {
        let failed = |message: String| Error::Failed { message };
        let limit = context.limit;
        let timer = ExecutionTimerConfig { limit, check_interval: NonZeroU32::new(256).expect("not zero") };
        let now = time(context.now).map_err(failed)?;
        let too_long = || Error::TooLong { bundle: self.name.clone(), limit };
        let value = match &self.machine {
            Machine::Compiled { program, policy, data } => {
                let mut vm = RegoVM::new_with_policy(policy.clone());
                vm.load_program(Arc::clone(program));
                vm.set_strict_builtin_errors(true);
                vm.set_max_instructions(usize::MAX);
                vm.set_execution_timer_config(Some(timer));
                vm.set_data(at(data.clone(), now).map_err(failed)?).map_err(|error| failed(brief(&error)))?;
                vm.set_input(input(text, context));
                vm.execute().map_err(|error| match error {
                    VmError::TimeLimitExceeded { .. } => too_long(),
                    error => failed(brief(&error)),
                })?
            }
            Machine::Interpreted(engine) => {
                let mut engine = engine.clone();
                engine.set_execution_timer_config(timer);
                engine.set_input(input(text, context));
                let query =
                    format!("data.{GATHERED}.all with data.{OWN}.now as {}", serde_json::Value::from(now));
                let mut answer = engine.eval_query(query, false).map_err(|error| {
                    match error.chain().any(is_time_limit) {
                        true => too_long(),
                        false => failed(brief(&error)),
                    }
                })?;
                let expression = answer.result.pop().and_then(|mut result| result.expressions.pop());
                expression.map_or(Value::Undefined, |expression| expression.value)
            }
        };
        self.violations(&value).ok_or_else(|| failed(format!("no answer of {}", self.name)))
    }

    /// Returns what the sets hold; `None` if there is not a list for each of them.
    fn violations(&self, value: &Value) -> Option<Vec<Violation>> {
        let Value::Array(lists) = value else { return None };
        if lists.len() != self.sets.len() {
            return None;
        }
        let mut found = Vec::new();
        for (set, list) in self.sets.iter().zip(lists.iter()) {
            let Value::Array(list) = list else { return None };
            for value in list.iter() {
                match value {
                    Value::Set(items) => found.extend(items.iter().filter_map(|item| set.violation(item))),
                    Value::Array(items) => found.extend(items.iter().filter_map(|item| set.violation(item))),
                    value => found.extend(set.violation(value)),
                }
            }
        }
        // `sets` has the errors first, so what is cut off is the least bad.
        if found.len() > MOST {
            let severity = found[MOST].severity;
            let msg = format!("and {} more findings", found.len() - MOST);
            found.truncate(MOST);
            found.push(Violation {
                id: self.name.clone(),
                msg,
                path: String::new(),
                severity,
                remediation: None,
            });
        }
        Some(found)
    }
}

impl Set {
    fn violation(&self, value: &Value) -> Option<Violation> {
        let mut violation = Violation {
            id: self.name.clone(),
            msg: String::new(),
            path: String::new(),
            severity: self.severity,
            remediation: None,
        };
        match value {
            Value::Undefined | Value::Bool(false) => return None,
            Value::Object(fields) if fields.is_empty() => return None,
            Value::Bool(true) => violation.msg = format!("{} holds", self.name),
            Value::String(msg) => violation.msg = plain(msg),
            Value::Object(fields) => {
                let text = |name: &str| match fields.get(&Value::from(name)) {
                    Some(Value::String(text)) => Some(plain(text)),
                    _ => None,
                };
                violation.msg = text("msg").unwrap_or_else(|| plain(&value.to_string()));
                violation.id = text("id").unwrap_or(violation.id);
                violation.path = text("path").unwrap_or_default();
                violation.remediation = text("remediation");
            }
            other => violation.msg = plain(&other.to_string()),
        }
        Some(violation)
    }
}

/// Returns a rule's text on one line, and not longer than [`LONGEST`].
fn plain(text: &str) -> String {
    let mut chars = text.chars().map(|c| if is_hidden(c) { ' ' } else { c });
    let mut plain: String = chars.by_ref().take(LONGEST).collect();
    if chars.next().is_some() {
        plain.push('…');
    }
    plain
}

fn rule_error(error: impl std::fmt::Display) -> Error {
    Error::Rule { message: error.to_string().trim().to_owned() }
}

fn add(engine: &mut Engine, module: &Module) -> Result<(), Error> {
    engine.add_policy(module.path.clone(), module.text.clone()).map(|_| ()).map_err(rule_error)
}

/// Returns the data of a bundle: the shipped ones with the settings, and the folder's own.
fn data_of(folder: &Folder, shipped: &Folder, settings: &serde_json::Value) -> Result<Value, Error> {
    let mut data = shipped.data.clone();
    if !settings.is_object() {
        return Err(Error::Data { path: folder.path.clone(), message: "settings are an object".into() });
    }
    merge(&mut data[OWN], settings);
    let mut value = Value::from(data);
    if folder.path != shipped.path && folder.data.as_object().is_some_and(|data| !data.is_empty()) {
        let mut engine = Engine::new();
        for data in [value, Value::from(folder.data.clone())] {
            engine.add_data(data).map_err(|error| Error::Data {
                path: folder.path.clone(),
                message: error.to_string().trim().to_owned(),
            })?;
        }
        value = engine.get_data();
    }
    Ok(value)
}

/// Puts what `over` says in the place of what `base` says; objects are merged.
fn merge(base: &mut serde_json::Value, over: &serde_json::Value) {
    match (base, over) {
        (serde_json::Value::Object(base), serde_json::Value::Object(over)) => {
            for (key, over) in over {
                merge(base.entry(key).or_insert(serde_json::Value::Null), over);
            }
        }
        (base, over) => over.clone_into(base),
    }
}

/// Returns the rules of the modules that say what is wrong, errors first.
fn sets(engine: &mut Engine, modules: &[Module]) -> Result<Vec<Set>, Error> {
    let packages = packages(engine, modules)?;
    let mut sets = Vec::new();
    for path in rules(engine)? {
        let Some((package, rule)) = path.rsplit_once('.') else { continue };
        let Some(severity) = severity_of(rule) else { continue };
        if let Some(package) = packages.get(package) {
            sets.push(Set { name: format!("{package}.{rule}"), severity, path });
        }
    }
    sets.sort_by(|a, b| (a.severity, &a.name).cmp(&(b.severity, &b.name)));
    Ok(sets)
}

/// Returns the packages of the modules: as regorus calls them in paths, and their plain names.
fn packages(engine: &Engine, modules: &[Module]) -> Result<BTreeMap<String, String>, Error> {
    let all = engine.get_policy_package_components().map_err(rule_error)?;
    let own =
        all.into_iter().filter(|package| modules.iter().any(|module| module.path == package.source_file));
    Ok(own
        .map(|package| {
            let mut path = String::from("data");
            for component in &package.components {
                if is_identifier(component) {
                    path.push('.');
                    path.push_str(component);
                } else {
                    path.push_str(&format!("[{}]", serde_json::Value::from(component.as_str())));
                }
            }
            (path, package.components.join("."))
        })
        .collect())
}

/// Returns the paths of all rules, sorted.
fn rules(engine: &mut Engine) -> Result<Vec<String>, Error> {
    let mut engine = engine.clone();
    let text = format!("package {GATHERED}\n\nimport rego.v1\n\nnone := true\n");
    add(&mut engine, &Module { path: "(gathering)".into(), text })?;
    let entry = format!("data.{GATHERED}.none");
    let policy = engine.compile_with_entrypoint(&entry.as_str().into()).map_err(rule_error)?;
    let mut rules: Vec<String> = policy.get_rules().keys().cloned().collect();
    rules.sort();
    Ok(rules)
}

/// Returns how bad it is if a rule of this name holds; `None` for a rule that others only ask. As conftest has it.
fn severity_of(rule: &str) -> Option<Severity> {
    let is =
        |word: &str| rule.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
    match rule {
        _ if is("deny") || is("violation") => Some(Severity::Error),
        _ if is("warn") => Some(Severity::Warning),
        _ => None,
    }
}

fn is_identifier(text: &str) -> bool {
    !text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !text.is_empty()
}

/// Returns a second as RFC 3339 has it.
fn time(now: u64) -> Result<String, String> {
    let second = i64::try_from(now).map_err(|_| format!("second {now} is out of range"))?;
    Ok(Timestamp::from_second(second).map_err(|error| error.to_string())?.to_string())
}

/// Returns data with the time in them, which rules read as `data.egress.now`.
fn at(mut data: Value, now: String) -> Result<Value, String> {
    let root = data.as_object_mut().map_err(|error| error.to_string())?;
    let egress = root.get_mut(&Value::from(OWN)).ok_or("data without egress")?;
    let egress = egress.as_object_mut().map_err(|error| error.to_string())?;
    egress.insert(Value::from("now"), Value::from(now));
    Ok(data)
}

fn is_time_limit(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(LimitError::TimeLimitExceeded { .. }))
}

/// Returns one line of the lines regorus tells an error in: where, and what.
fn brief(error: &impl fmt::Display) -> String {
    let text = error.to_string();
    let place = text.lines().find_map(|line| line.strip_prefix("--> "));
    let what = text.lines().find_map(|line| line.strip_prefix("error: "));
    match (place, what) {
        (Some(place), Some(what)) => format!("{place}: {what}"),
        _ => plain(text.trim()),
    }
}

/// Returns the ConfigMap that a document stands in.
fn input(text: &str, context: &Context<'_>) -> Value {
    Value::from(serde_json::json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "namespace": context.namespace,
            "name": context.name,
            "labels": {"egress-controller": "managed"},
        },
        "data": {"policy.json": text},
    }))
}

/// Returns the time this thread has run.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).expect("the time a thread has run is not negative");
    let nanoseconds = u32::try_from(time.tv_nsec).expect("less than a second");
    Duration::new(seconds, nanoseconds)
}
