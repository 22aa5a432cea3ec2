//! The flags of what runs for long, as a page of the documentation: from the same definitions as the help.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command, CommandFactory as _};

use super::Cli;

/// The subcommands of the page, each with what else is to be said about it.
const ROLES: [(&str, &str); 3] = [
    ("agent", "On every node: [Operations](operations.md)."),
    ("controller", "Once in a cluster: [The controller](controller.md)."),
    ("webhook", "Asked by the API server: [The webhook](webhook.md)."),
];

/// A number beyond what any flag takes: what is said about it names the limits.
const BEYOND: &str = "9007199254740991";

/// Returns `docs/flags.md`.
///
/// # Panics
///
/// When a role of the page is no subcommand.
#[must_use]
pub fn page() -> String {
    let mut page = "# Flags and variables\n\nEvery flag of the three parts that run for long, and the environment variable that says the same; a flag counts more. \
        The variable of a switch is `true` or `false`. Where several values may be given, they stand with commas between them. Other subcommands tell of theirs with `--help` and in their manual pages.\n\n\
        Made from the code by `cargo xtask docs`.\n"
        .to_owned();
    let mut all = Cli::command();
    all.build();
    for (name, where_to) in ROLES {
        let role = all.find_subcommand(name).expect("it is a subcommand");
        write!(page, "\n## `egress-agent {name}`\n\n{where_to}\n").expect("a string takes everything");
        let own: Vec<&Arg> = role.get_arguments().filter(|argument| is_own(argument)).collect();
        let mut headings: Vec<&str> = Vec::new();
        for heading in own.iter().map(|argument| heading_of(argument)) {
            if !headings.contains(&heading) {
                headings.push(heading);
            }
        }
        for heading in headings {
            write!(page, "\n**{heading}**\n\n| flag | variable | default | |\n|---|---|---|---|\n")
                .expect("a string takes everything");
            for argument in own.iter().filter(|argument| heading_of(argument) == heading) {
                row(name, argument, &mut page);
            }
        }
        if let Some(notes) = role.get_after_help() {
            writeln!(page, "\n{}", cell(&notes.to_string())).expect("a string takes everything");
        }
    }
    page
}

fn heading_of(argument: &Arg) -> &str {
    argument.get_help_heading().unwrap_or("Other")
}

fn is_own(argument: &Arg) -> bool {
    !argument.is_hide_set() && !["help", "version"].contains(&argument.get_id().as_str())
}

fn row(role: &str, argument: &Arg, page: &mut String) {
    let long = argument.get_long().expect("these have no positional arguments");
    let mut flag = argument.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    write!(flag, "--{long}").expect("a string takes everything");
    if let Some(names) = argument.get_value_names().filter(|_| takes_value(argument)) {
        let value = names.join(" ");
        let optional = argument.get_num_args().is_some_and(|count| count.min_values() == 0);
        match (optional, argument.is_require_equals_set()) {
            (true, true) => write!(flag, "[={value}]"),
            (true, false) => write!(flag, " [{value}]"),
            (false, _) => write!(flag, " {value}"),
        }
        .expect("a string takes everything");
    }
    let variable = argument.get_env().map_or_else(|| "–".to_owned(), |name| format!("`{}`", name.display()));
    let default: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let default = match (default.is_empty(), takes_value(argument)) {
        (false, true) => format!("`{}`", default.join(",")),
        (_, false) => "off".to_owned(),
        (true, true) => "–".to_owned(),
    };
    let mut help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    if let Some(limits) = limits(role, argument, long) {
        write!(help, " ({limits})").expect("a string takes everything");
    }
    let possible = argument.get_possible_values();
    let values = possible.iter().filter(|value| !value.is_hide_set() && takes_value(argument));
    let values: Vec<String> = values
        .map(|value| match value.get_help() {
            Some(help) => format!("`{}`: {}", value.get_name(), lower(&help.to_string())),
            None => format!("`{}`", value.get_name()),
        })
        .collect();
    if !values.is_empty() {
        write!(help, ". {}", values.join("; ")).expect("a string takes everything");
    }
    writeln!(page, "| `{}` | {variable} | {default} | {} |", cell(&flag), cell(&help))
        .expect("a string takes everything");
}

fn takes_value(argument: &Arg) -> bool {
    matches!(argument.get_action(), ArgAction::Set | ArgAction::Append)
}

/// Returns what numbers a flag takes, in the words of the parser that refuses others.
fn limits(role: &str, argument: &Arg, long: &str) -> Option<String> {
    if !takes_value(argument) || !argument.get_possible_values().is_empty() {
        return None;
    }
    let role: Command = Cli::command().find_subcommand(role)?.clone();
    let error = role.try_get_matches_from(["role".to_owned(), format!("--{long}={BEYOND}")]).err()?;
    let said = error.to_string();
    let (_, range) = said.split_once(&format!("{BEYOND} is not in "))?;
    let (from, to) = range.split_whitespace().next()?.split_once("..=")?;
    Some(format!("{from} to {to}"))
}

/// Returns a text as one line of a table.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// Returns a sentence as the middle of one, unless it begins with a name.
fn lower(text: &str) -> String {
    let mut letters = text.chars();
    let first = text.split_whitespace().next().unwrap_or("");
    if first.chars().skip(1).any(char::is_uppercase) {
        return text.to_owned();
    }
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_all_there_is_about_a_flag() {
        let page = page();
        for row in [
            "| `--pod-start MODE` | `EGRESS_POD_START` | `strict` | What a pod may do before its policies are known, unless its namespace's label egress-agent.dev/pod-start says otherwise. `strict`: nothing leaves a pod whose policy is not known; `standard`: it passes, and is counted as unprotected |",
            "| `--max-pods N` | `EGRESS_MAX_PODS` | `511` | Pods this node can hold (1 to 65535) |",
            "| `--no-pin` | `EGRESS_NO_PIN` | off | Pin nothing: enforcement ends with this process |",
            "| `-o, --output FORMAT` | – | – | Print each denial and audit event to standard output. `json`: one JSON object a line |",
        ] {
            assert!(page.contains(&format!("\n{row}\n")), "{row}\n\n{page}");
        }
        assert!(page.contains("`--mask-addresses[=MASK]`"), "{page}");
        let agent = page.split("\n## ").nth(1).expect("it begins with the agent");
        assert_eq!(agent.matches("**Output and service**").count(), 1, "{agent}");
        for (role, _) in ROLES {
            let command = Cli::command().find_subcommand(role).expect("it is there").clone();
            for argument in command.get_arguments().filter(|argument| is_own(argument)) {
                let long = argument.get_long().expect("it has a name");
                assert!(page.contains(&format!("--{long}")), "{role} --{long}");
            }
        }
    }
}
