//! Tests of bundles: rules named `test_…` in files named `*_test.rego`, as conftest and opa run them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

use regorus::{Engine, Value, utils::limits::ExecutionTimerConfig};

use super::{
    Error, OWN, add, builtin, data_of,
    files::{self, Folder},
    packages, rule_error, rules,
};

/// How long one test may take. Tests run in an interpreter that also counts lines, which is slower than what documents are judged by.
const LIMIT: Duration = Duration::from_secs(10);

/// What the tests of some bundles came to.
#[derive(Debug, Default)]
pub struct Report {
    /// Every test, in the order of bundles, files and names.
    pub tests: Vec<Test>,
    /// The files with rules.
    pub files: Vec<File>,
}

/// One test.
#[derive(Debug)]
pub struct Test {
    /// Package and name.
    pub name: String,
    /// Its file.
    pub file: String,
    /// The line it begins at.
    pub line: usize,
    /// How it ended.
    pub outcome: Outcome,
    /// What it printed.
    pub prints: Vec<String>,
}

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It does not hold.
    Failed {
        /// The last of its statements that was looked at, as line and text: the ones before it hold.
        at: Option<(usize, String)>,
    },
    /// It could not be evaluated.
    Broken(String),
    /// Its name begins with `todo_`.
    Skipped,
}

/// Which lines of a file the tests ran.
#[derive(Debug, PartialEq, Eq)]
pub struct File {
    /// Its path.
    pub path: String,
    /// Lines that ran.
    pub run: BTreeSet<u32>,
    /// Lines that hold something to run and did not.
    pub not_run: BTreeSet<u32>,
}

/// Runs the tests of the bundles in some folders; of the shipped one if there is none.
///
/// # Errors
///
/// [`Error`] if a bundle cannot be read or its rules are wrong.
pub fn run(folders: &[PathBuf]) -> Result<Report, Error> {
    let mut report = Report::default();
    if folders.is_empty() {
        run_one(&builtin::folder(), &mut report)?;
    }
    for folder in folders {
        run_one(&files::read(folder)?, &mut report)?;
    }
    Ok(report)
}

fn run_one(folder: &Folder, report: &mut Report) -> Result<(), Error> {
    let shipped = builtin::folder();
    let is_shipped = folder.modules.iter().any(|module| module.is_of(OWN) && !module.is_test());
    let mut engine = Engine::new();
    let shared = shipped.modules.iter().filter(|module| !is_shipped && !module.is_test());
    for module in shared.chain(&folder.modules) {
        add(&mut engine, module)?;
    }
    // A folder that is the shipped one, or a copy of it, brings its own data.
    let data = match is_shipped {
        true => Value::from(folder.data.clone()),
        false => data_of(folder, &shipped, &serde_json::json!({}))?,
    };
    engine.add_data(data).map_err(rule_error)?;
    engine.set_gather_prints(true);
    engine.set_strict_builtin_errors(true);
    engine.set_enable_coverage(true);
    engine.set_execution_timer_config(ExecutionTimerConfig {
        limit: LIMIT,
        check_interval: NonZeroU32::new(256).expect("not zero"),
    });

    let packages = packages(&engine, &folder.modules)?;
    let mut lines = BTreeMap::<String, File>::new();
    for path in rules(&mut engine)? {
        let Some((package, rule)) = path.rsplit_once('.') else { continue };
        let Some(package) = packages.get(package) else { continue };
        let is_todo = rule.starts_with("todo_test_");
        if !is_todo && !rule.starts_with("test_") {
            continue;
        }
        let (file, line) = place(folder, package, rule);
        let (outcome, prints) = match is_todo {
            true => (Outcome::Skipped, Vec::new()),
            false => one(&engine, &path, (&file, line), &mut lines)?,
        };
        report.tests.push(Test { name: format!("{package}.{rule}"), file, line, outcome, prints });
    }
    let own = |file: &File| folder.modules.iter().any(|module| !module.is_test() && module.path == file.path);
    report.files.extend(lines.into_values().filter(own));
    Ok(())
}

/// Returns the file and the line of a rule.
fn place(folder: &Folder, package: &str, rule: &str) -> (String, usize) {
    let of_package = folder.modules.iter().filter(|module| module.is_of(package));
    let place = of_package.clone().find_map(|module| {
        let line = module.text.lines().position(|line| {
            line.strip_prefix(rule)
                .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
        })?;
        Some((module.path.clone(), line + 1))
    });
    place.unwrap_or_else(|| (of_package.map(|module| module.path.clone()).next().unwrap_or_default(), 0))
}

/// Runs one test and adds the lines it ran to `lines`.
fn one(
    engine: &Engine,
    path: &str,
    (file, line): (&str, usize),
    lines: &mut BTreeMap<String, File>,
) -> Result<(Outcome, Vec<String>), Error> {
    let mut engine = engine.clone();
    let result = engine.eval_rule(path.to_owned());
    let prints = engine.take_prints().map_err(rule_error)?;
    let coverage = engine.get_coverage_report().map_err(rule_error)?;
    let mut stopped = None;
    for covered in coverage.files {
        if covered.path == file {
            stopped = last_run(&covered.code, line, &covered.covered);
        }
        let known = lines.entry(covered.path.clone()).or_insert_with(|| File {
            path: covered.path,
            run: BTreeSet::new(),
            not_run: BTreeSet::new(),
        });
        known.not_run.extend(covered.not_covered);
        known.run.extend(covered.covered);
        known.not_run = known.not_run.difference(&known.run).copied().collect();
    }
    let outcome = match result {
        Ok(Value::Bool(true)) => Outcome::Passed,
        Ok(_) => Outcome::Failed { at: stopped },
        Err(error) => Outcome::Broken(error.to_string().trim().to_owned()),
    };
    Ok((outcome, prints))
}

/// Returns the last line that ran of the rule that begins at line `first` and ends before the next line that is not indented.
fn last_run(code: &str, first: usize, run: &BTreeSet<u32>) -> Option<(usize, String)> {
    let body = code.lines().enumerate().skip(first);
    let body = body.take_while(|(_, line)| line.is_empty() || line.starts_with([' ', '\t']));
    let ran = body.filter(|(index, _)| u32::try_from(index + 1).is_ok_and(|line| run.contains(&line)));
    ran.last().map(|(index, line)| (index + 1, line.trim().to_owned()))
}

impl Report {
    /// Returns whether every test holds, and there is one.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.tests.is_empty()
            && self.tests.iter().all(|test| matches!(test.outcome, Outcome::Passed | Outcome::Skipped))
    }

    fn count(&self, is: impl Fn(&Outcome) -> bool) -> usize {
        self.tests.iter().filter(|test| is(&test.outcome)).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Test { name, file, line, outcome, prints } in &self.tests {
            match outcome {
                Outcome::Passed | Outcome::Skipped => continue,
                Outcome::Failed { at: None } => writeln!(f, "{file}:{line}: FAIL {name}")?,
                Outcome::Failed { at: Some((at, text)) } => {
                    writeln!(f, "{file}:{line}: FAIL {name}\n    line {at} does not hold: {text}")?;
                }
                Outcome::Broken(error) => {
                    writeln!(f, "{file}:{line}: ERROR {name}\n    {}", error.replace('\n', "\n    "))?;
                }
            }
            for print in prints {
                writeln!(f, "    printed: {print}")?;
            }
        }
        for File { path, run, not_run } in &self.files {
            let (run, all) = (run.len(), run.len() + not_run.len());
            let percent = (run * 100).checked_div(all).unwrap_or(100);
            write!(f, "{path}: {percent} % of {all} lines ran")?;
            if !not_run.is_empty() {
                let lines: Vec<String> = not_run.iter().map(u32::to_string).collect();
                write!(f, ", not {}", lines.join(", "))?;
            }
            writeln!(f)?;
        }
        let passed = self.count(|outcome| *outcome == Outcome::Passed);
        let skipped = self.count(|outcome| *outcome == Outcome::Skipped);
        let failed = self.count(|outcome| matches!(outcome, Outcome::Failed { .. }));
        let broken = self.count(|outcome| matches!(outcome, Outcome::Broken(_)));
        let all = self.tests.len();
        writeln!(f, "{all} tests: {passed} passed, {failed} failed, {broken} broken, {skipped} skipped")
    }
}
