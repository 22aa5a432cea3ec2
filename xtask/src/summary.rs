//! Counting what ran: one line for each level, and one for all of them.

use std::fmt;
use std::ops::AddAssign;

/// Levels that need more than a kernel and root. Strict runs tolerate that these are skipped.
const OPTIONAL: [&str; 6] = ["cluster", "data", "kernels", "manpages", "promtool", "shells"];

/// How many tests ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

/// What the output of one `cargo test` said so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    counts: Counts,
    /// The names in `SKIPPED name: why` lines.
    skips: Vec<String>,
}

/// What all levels said.
#[derive(Default)]
pub(crate) struct Summary {
    lines: Vec<String>,
    total: Counts,
    /// Whether something was skipped that a strict run must have.
    missed: bool,
}

impl Tally {
    /// Takes one line of the output of `cargo test`.
    pub(crate) fn see(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("SKIPPED ").and_then(|rest| rest.split(':').next()) {
            self.skips.push(name.to_owned());
        } else if let Some(results) = line.strip_prefix("test result: ") {
            self.counts += read_results(results);
        }
    }

    /// Returns the counts, with each test that skipped itself taken from the passed ones.
    ///
    /// The test harness knows no such tests: they return early, and it counts them as passed.
    fn counts(&self) -> Counts {
        let own = u64::try_from(self.skips.len()).expect("usize fits u64");
        Counts {
            passed: self.counts.passed.saturating_sub(own),
            skipped: self.counts.skipped + own,
            ..self.counts
        }
    }
}

impl Summary {
    /// Records a level that counts no tests, such as a lint.
    pub(crate) fn checked(&mut self, level: &str, outcome: anyhow::Result<()>) {
        match outcome {
            Ok(()) => self.lines.push(format!("{level}: ok")),
            Err(error) => self.failed(level, &error),
        }
    }

    /// Records a level of tests; `outcome` is an error if the command failed, whatever it printed.
    pub(crate) fn tested(&mut self, level: &str, tally: &Tally, outcome: anyhow::Result<()>) {
        let counts = tally.counts();
        self.total += counts;
        self.missed |= tally.skips.iter().any(|name| !OPTIONAL.contains(&name.as_str()));
        match outcome {
            Err(error) if counts.failed == 0 => self.failed(level, &error),
            Ok(()) | Err(_) => self.lines.push(format!("{level}: {counts}")),
        }
    }

    /// Records a level that cannot run here.
    pub(crate) fn skipped(&mut self, level: &str, why: &str) {
        println!("SKIPPED {level}: {why}");
        self.lines.push(format!("{level}: SKIPPED, {why}"));
        self.total.skipped += 1;
        self.missed |= !OPTIONAL.contains(&level);
    }

    /// Records a failure that no test stands for.
    fn failed(&mut self, level: &str, error: &anyhow::Error) {
        self.lines.push(format!("{level}: FAILED, {error:#}"));
        self.total.failed += 1;
    }

    /// Prints a line for each level, and the total alone on the last line.
    pub(crate) fn print(&self) {
        println!();
        for line in &self.lines {
            println!("{line}");
        }
        println!("{}", self.total);
    }

    /// Returns whether the run is good; a strict one also needs every level that is not optional.
    #[must_use]
    pub(crate) fn is_good(&self, strict: bool) -> bool {
        self.total.failed == 0 && !(strict && self.missed)
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Reads `ok. 3 passed; 0 failed; 1 ignored; …`.
fn read_results(results: &str) -> Counts {
    let mut counts = Counts::default();
    for words in results.split([';', '.']).map(|part| part.split_whitespace().collect::<Vec<_>>()) {
        let [number, kind] = words[..] else { continue };
        let Ok(number) = number.parse::<u64>() else { continue };
        match kind {
            "passed" => counts.passed += number,
            "failed" => counts.failed += number,
            "ignored" => counts.skipped += number,
            _ => {}
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(text: &str) -> Tally {
        let mut tally = Tally::default();
        text.lines().for_each(|line| tally.see(line));
        tally
    }

    const TWO_BINARIES: &str = "running 3 tests\ntest a ... ok\n\
        test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.10s\n\
        test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.25s\n";

    #[test]
    fn results_of_several_binaries_are_summed() {
        assert_eq!(tally(TWO_BINARIES).counts(), Counts { passed: 14, failed: 3, skipped: 1 });
    }

    #[test]
    fn a_test_that_skips_itself_is_not_passed() {
        let skipping = format!("SKIPPED sockets: no cgroup v2\n{TWO_BINARIES}");
        assert_eq!(tally(&skipping).counts(), Counts { passed: 13, failed: 3, skipped: 2 });
    }

    #[test]
    fn a_failed_command_without_a_failed_test_counts_as_one_failure() {
        let mut summary = Summary::default();
        summary.tested("pure", &tally(""), Err(anyhow::anyhow!("does not compile")));
        assert_eq!(summary.total, Counts { failed: 1, ..Counts::default() });
        assert!(!summary.is_good(false));
    }

    #[test]
    fn a_failed_test_is_counted_once() {
        let mut summary = Summary::default();
        summary.tested("pure", &tally(TWO_BINARIES), Err(anyhow::anyhow!("exit status 101")));
        assert_eq!(summary.total.failed, 3);
    }

    #[test]
    fn a_strict_run_needs_every_level_that_is_not_optional() {
        let mut summary = Summary::default();
        summary.skipped("data", "no data");
        assert!(summary.is_good(true));
        summary.skipped("kernel", "no object");
        assert!(summary.is_good(false) && !summary.is_good(true));
        assert_eq!(summary.total.to_string(), "0 passed, 0 failed, 2 skipped");
    }

    #[test]
    fn a_strict_run_sees_what_tests_skip() {
        let mut summary = Summary::default();
        summary.tested("kernel", &tally("SKIPPED sockets: why\ntest result: ok. 1 passed; 0 failed"), Ok(()));
        assert!(!summary.is_good(true));
    }
}
