//! `egress-agent completions`: what a shell needs to complete command lines, and the answers to kubectl, which asks for those of its plugins.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Arg, ArgAction, Args, Command, CommandFactory as _, ValueHint};
use clap_complete::Shell;

use super::plugin::Plugin;

/// Which shell to write for.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    egress-agent completions bash > ~/.local/share/bash-completion/completions/egress-agent\n  \
    egress-agent completions zsh > \"${fpath[1]}/_egress-agent\"\n  \
    egress-agent completions fish > ~/.config/fish/completions/egress-agent.fish\n\n\
    For `kubectl egress`, with kubectl's own completions in the shell, link kubectl_complete-egress to this program, in the PATH.")]
pub struct Arguments {
    /// The shell
    shell: Shell,
}

/// Writes the script for a program called `name` to standard output.
///
/// # Errors
///
/// When it cannot be written.
pub fn run(arguments: &Arguments, command: Command, name: &'static str) -> anyhow::Result<ExitCode> {
    super::write(&script(arguments.shell, command, name)).context("writing the completions")?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the script with which a shell completes the command lines of a program.
#[must_use]
pub fn script(shell: Shell, command: Command, name: &'static str) -> String {
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut command.name(name), name, &mut bytes);
    let text = String::from_utf8(bytes).expect("names and help texts are text");
    if shell == Shell::Bash {
        // clap_complete 4.6.11 writes the dash of a program's name in one way where it sets the state and in another where it asks for it, so
        // that nothing below the first word would be completed: https://github.com/clap-rs/clap/issues/6421
        return text.replace(&name.replace('-', "__subcmd__"), &name.replace('-', "__"));
    }
    text
}

/// Returns whether a program of this name was called by kubectl for the completions of `kubectl egress`.
#[must_use]
pub fn is_called(program: Option<&OsStr>) -> bool {
    let name = program.and_then(|program| Path::new(program).file_name()).and_then(OsStr::to_str);
    name.is_some_and(|name| name.starts_with("kubectl_complete-egress"))
}

/// Answers kubectl: a line for each word that may stand last, a tab and its meaning, and at the end a colon and what the shell may add.
///
/// <https://github.com/kubernetes/kubernetes/pull/105867>
pub fn answer(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let words: Vec<String> = arguments.map(|word| word.to_string_lossy().into_owned()).collect();
    let (candidates, rest) = complete(Plugin::command(), &words);
    let mut text = String::new();
    for Candidate { word, meaning } in candidates {
        text.push_str(&word);
        if let Some(meaning) = meaning {
            text.push('\t');
            text.push_str(&meaning);
        }
        text.push('\n');
    }
    text += &format!(":{}\n", rest as u8);
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// What the shell may add to the candidates, by Cobra's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// Names of files.
    Files = 0,
    /// Nothing.
    Nothing = 4,
}

/// A word that may stand there.
#[derive(Debug, PartialEq, Eq)]
struct Candidate {
    word: String,
    meaning: Option<String>,
}

/// Returns what the last of the words may become.
fn complete(mut command: Command, words: &[String]) -> (Vec<Candidate>, Rest) {
    command = command.disable_help_subcommand(true);
    command.build();
    let Some((last, before)) = words.split_last() else { return (Vec::new(), Rest::Nothing) };
    let mut at = &command;
    let mut awaited: Option<&Arg> = None;
    for word in before {
        if awaited.take().is_some() {
            continue;
        }
        if word == "--" {
            // What follows is somebody else's.
            return (Vec::new(), Rest::Files);
        }
        if word.starts_with('-') {
            awaited = awaiting(at, word);
        } else if let Some(next) = at.find_subcommand(word) {
            at = next;
        }
    }
    if let Some(option) = awaited {
        return values(option, last, "");
    }
    if let Some((name, value)) = last.split_once('=').filter(|_| last.starts_with("--")) {
        return match option(at, name) {
            Some(option) => values(option, value, &format!("{name}=")),
            None => (Vec::new(), Rest::Nothing),
        };
    }
    if last.starts_with('-') {
        return (options(at, last), Rest::Nothing);
    }
    let subcommands = at
        .get_subcommands()
        .filter(|next| !next.is_hide_set() && next.get_name().starts_with(last.as_str()))
        .map(|next| Candidate { word: next.get_name().to_owned(), meaning: next.get_about().map(meaning) });
    let mut found: Vec<Candidate> = subcommands.collect();
    let mut rest = Rest::Nothing;
    for positional in at.get_positionals() {
        let (words, more) = values(positional, last, "");
        found.extend(words);
        if more == Rest::Files {
            rest = more;
        }
    }
    (found, rest)
}

/// Finds an option by its long name.
fn option<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    let long = word.strip_prefix("--")?;
    command.get_arguments().find(|option| option.get_long() == Some(long))
}

/// Finds the option of a word whose value is the next word.
fn awaiting<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    if word.starts_with("--") {
        // With a value of its own behind `=` it is no option's name.
        return option(command, word).filter(|option| takes_value(option));
    }
    let mut letters = word.chars().skip(1);
    // What stands behind a letter that takes a value is the value.
    let taking = letters.find_map(|letter| {
        command.get_arguments().find(|option| option.get_short() == Some(letter) && takes_value(option))
    });
    taking.filter(|_| letters.next().is_none())
}

fn takes_value(option: &Arg) -> bool {
    matches!(option.get_action(), ArgAction::Set | ArgAction::Append)
        && !option.is_require_equals_set()
        && option.get_num_args().is_none_or(|count| count.takes_values())
}

fn options(command: &Command, begun: &str) -> Vec<Candidate> {
    let mut found = Vec::new();
    for option in command.get_arguments().filter(|option| !option.is_hide_set()) {
        let short = option.get_short().map(|short| format!("-{short}"));
        let long = option.get_long().map(|long| format!("--{long}"));
        for word in short.into_iter().chain(long).filter(|word| word.starts_with(begun)) {
            found.push(Candidate { word, meaning: option.get_help().map(meaning) });
        }
    }
    found
}

/// Returns what the value of an option may become, `before` in front of it. Of several with commas between, the last one is begun.
fn values(option: &Arg, begun: &str, before: &str) -> (Vec<Candidate>, Rest) {
    let (done, begun) = match begun.rfind(',').filter(|_| option.get_value_delimiter() == Some(',')) {
        Some(comma) => begun.split_at(comma + 1),
        None => ("", begun),
    };
    let possible = option.get_possible_values();
    let found = possible
        .iter()
        .filter(|value| !value.is_hide_set() && value.get_name().starts_with(begun))
        .map(|value| Candidate {
            word: format!("{before}{done}{}", value.get_name()),
            meaning: value.get_help().map(meaning),
        })
        .collect();
    let path = matches!(
        option.get_value_hint(),
        ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath | ValueHint::ExecutablePath
    );
    (found, if path { Rest::Files } else { Rest::Nothing })
}

/// Returns a help text as one line without tabs, since both have a meaning in the answer.
fn meaning(help: &clap::builder::StyledStr) -> String {
    help.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &[&str], wanted: &[&str], rest: Rest) {
        let words: Vec<String> = line.iter().map(|word| (*word).to_owned()).collect();
        let (found, files) = complete(Plugin::command(), &words);
        let found: Vec<&str> = found.iter().map(|candidate| candidate.word.as_str()).collect();
        assert_eq!((found.as_slice(), files), (wanted, rest), "{line:?}");
    }

    #[test]
    fn every_kind_of_word_is_completed() {
        check(&["s"], &["status"], Rest::Nothing);
        check(&["zzz"], &[], Rest::Nothing);
        check(&["observe", "--ver"], &["--verdict"], Rest::Nothing);
        check(&["observe", "--verdict", ""], &["allow", "audit", "deny"], Rest::Nothing);
        check(&["observe", "--verdict", "deny,au"], &["deny,audit"], Rest::Nothing);
        check(&["observe", "-o", "j"], &["json"], Rest::Nothing);
        check(&["observe", "--output=j"], &["--output=json"], Rest::Nothing);
        check(&["observe", "-n", "observe", "--output", "t"], &["table"], Rest::Nothing);
        check(&["observe", "-fo", "t"], &["table"], Rest::Nothing);
        check(&["observe", "-nfoo", "--foll"], &["--follow"], Rest::Nothing);
        check(&["observe", "--follow", "--output", "t"], &["table"], Rest::Nothing);
        check(&["observe", "--output=json", "--fo"], &["--follow"], Rest::Nothing);
        check(&["status", "--kubeconfig", "a"], &[], Rest::Files);
        check(&["recommend", "--", "--a"], &[], Rest::Files);
        check(&["completions", "b"], &["bash"], Rest::Nothing);
        check(&[], &[], Rest::Nothing);
    }

    #[test]
    fn every_candidate_has_one_line() {
        for command in ["status", "observe", "recommend"] {
            let words = [command.to_owned(), "-".to_owned()];
            let (found, _) = complete(Plugin::command(), &words);
            assert!(found.len() > 5, "{command}");
            for Candidate { word, meaning } in found {
                let meaning = meaning.unwrap_or_else(|| panic!("{command} {word} has no help"));
                assert!(!meaning.contains(['\n', '\t']), "{command} {word}: {meaning}");
            }
        }
    }

    #[test]
    fn only_the_name_for_completions_is_taken_for_it() {
        let called = |name: &str| is_called(Some(OsStr::new(name)));
        assert!(called("/usr/local/bin/kubectl_complete-egress"));
        assert!(!called("kubectl-egress") && !called("egress-agent") && !is_called(None));
    }
}
