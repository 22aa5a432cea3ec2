//! What a person is told of each command: its help, its manual page, and what a shell completes.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use clap::CommandFactory as _;
use egress_agent::cli::{Cli, plugin::Plugin};

#[path = "../examples/man.rs"]
#[expect(dead_code, reason = "the example's own entry point is not called here")]
mod man;

const BINARY: &str = env!("CARGO_BIN_EXE_egress-agent");

/// Says that something could not run here.
fn skipped(what: &str, why: &str) {
    // Past the harness, which shows nothing of tests that pass, and which may have begun a line.
    let line = format!("\nSKIPPED {what}: {why}\n");
    std::io::stdout().write_all(line.as_bytes()).expect("standard output is open");
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Visits a command and those below it, each with its name as it is typed.
fn visit(command: &clap::Command, above: &str, see: &mut impl FnMut(&str, &clap::Command)) {
    let name = format!("{above} {}", command.get_name()).trim_start().to_owned();
    see(&name, command);
    for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
        visit(below, &name, see);
    }
}

fn commands() -> [clap::Command; 2] {
    let mut both = [Cli::command(), Plugin::command()];
    both.iter_mut().for_each(clap::Command::build);
    both
}

#[test]
fn every_command_and_option_says_what_it_is_for() {
    let (mut seen, mut wrong) = (0, Vec::new());
    let mut check = |what: String, help: Option<String>| {
        seen += 1;
        match help.as_deref().map(str::trim) {
            None | Some("") => wrong.push(format!("{what} has no help")),
            Some(text) if text.ends_with('.') => {
                wrong.push(format!("{what}: a help ends without a full stop"));
            }
            Some(_) => {}
        }
    };
    for command in commands() {
        visit(&command, "", &mut |name, command| {
            check(name.to_owned(), command.get_about().map(ToString::to_string));
            for argument in command.get_arguments() {
                let of = format!("{name} {}", argument.get_id());
                check(of.clone(), argument.get_help().map(ToString::to_string));
            }
        });
    }
    assert_eq!(wrong, [""; 0]);
    assert!(seen > 250, "{seen} were seen");
}

#[test]
fn every_command_has_a_page_that_names_its_options() {
    let pages = man::pages().expect("they can be written");
    let mut names = Vec::new();
    for command in commands() {
        visit(&command, "", &mut |name, command| {
            let file = format!("{}.1", name.replace(' ', "-"));
            let (_, page) =
                pages.iter().find(|(name, _)| *name == file).unwrap_or_else(|| panic!("there is no {file}"));
            let page = std::str::from_utf8(page).expect("a page is text").replace("\\-", "-");
            for part in [".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION"] {
                assert!(page.contains(part), "{file} has {part}");
            }
            // The synopsis has all of them, too, and says nothing about them.
            let (_, below) = page.split_once(".SH DESCRIPTION").expect("it was just found");
            for option in command.get_arguments().filter_map(clap::Arg::get_long) {
                assert!(below.contains(&format!("--{option}")), "{file} says what --{option} does");
            }
            names.push(file);
        });
    }
    let there: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, there);
}

#[test]
fn every_page_renders_without_a_warning() {
    let (program, arguments): (_, &[&str]) = if is_there("mandoc") {
        ("mandoc", &["-T", "utf8", "-W", "warning"])
    } else if is_there("groff") {
        ("groff", &["-ww", "-man", "-T", "utf8", "-P", "-cbou"])
    } else {
        return skipped("manpages", "neither groff nor mandoc is in PATH");
    };
    for (name, page) in man::pages().expect("they can be written") {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let mut input = child.stdin.take().expect("it is piped");
        // What is written back is read at the same time, so that neither side waits.
        let writing = std::thread::spawn(move || input.write_all(&page));
        let output = child.wait_with_output().expect("it ends");
        writing.join().expect("it does not panic").expect("all of it is read");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{program} {name}: {said}");
        let text = String::from_utf8_lossy(&output.stdout);
        let foot = text.lines().rfind(|line| !line.is_empty()).unwrap_or("");
        let version = concat!("egress-agent ", env!("CARGO_PKG_VERSION"), " ");
        assert!(foot.starts_with(version) && text.contains("SYNOPSIS"), "{name}: {text}");
    }
}

fn script(shell: &str, program: &Path) -> String {
    let output = Command::new(program).args(["completions", shell]).output().expect("the program starts");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("it writes text")
}

/// The binary under its names for kubectl, in a folder of their own.
fn plugin_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["egress-agent", "kubectl-egress", "kubectl_complete-egress"] {
        symlink(BINARY, folder.path().join(name)).expect("the folder can be written");
    }
    folder
}

#[test]
fn there_is_a_script_for_every_shell() {
    let folder = plugin_folder();
    for name in ["egress-agent", "kubectl-egress"] {
        for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
            let text = script(shell, &folder.path().join(name));
            assert!(text.contains(name) && text.contains("observe"), "{name} {shell}");
            assert_eq!(text.contains("webhook"), name == "egress-agent", "{name} {shell}");
        }
    }
    let output = Command::new(BINARY).args(["completions", "csh"]).output().expect("it starts");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn other_shells_can_read_their_scripts() {
    let folder = plugin_folder();
    let mut missing = Vec::new();
    for shell in ["fish", "zsh"] {
        if !is_there(shell) {
            missing.push(shell);
            continue;
        }
        for name in ["egress-agent", "kubectl-egress"] {
            let file = folder.path().join("script");
            fs::write(&file, script(shell, &folder.path().join(name))).expect("a file can be written");
            let output = Command::new(shell).arg("-n").arg(&file).output().expect("it starts");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.is_empty(), "{shell} {name}: {said}");
        }
    }
    if !missing.is_empty() {
        skipped("shells", &format!("{} not in PATH: what is written for it is not read", missing.join(", ")));
    }
}

/// Has bash complete a line whose last word is begun, and returns what that word may become.
fn bash(folder: &Path, name: &str, line: &[&str]) -> Vec<String> {
    let file = folder.join("script.bash");
    fs::write(&file, script("bash", &folder.join(name))).expect("a file can be written");
    // As bash calls it when the tabulator key is pressed.
    let ask = r#"
        set -eu
        source "$1"; shift
        function_of() { local spec; spec=$(complete -p "$1"); spec=${spec#*-F }; printf '%s' "${spec%% *}"; }
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
        "$(function_of "$1")" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let output = Command::new("bash")
        .args(["--norc", "-c", ask, "bash"])
        .arg(&file)
        .arg(name)
        .args(line)
        .output()
        .expect("bash starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{name} {line:?}: {said}");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_a_line() {
    if !is_there("bash") {
        return skipped("shells", "there is no bash");
    }
    let folder = plugin_folder();
    let complete = |name: &str, line: &[&str]| bash(folder.path(), name, line);
    assert_eq!(complete("egress-agent", &["val"]), ["validate"]);
    assert_eq!(complete("egress-agent", &["agent", "--pod-"]), ["--pod-start", "--pod-uid"]);
    assert_eq!(complete("egress-agent", &["agent", "--pod-start", "st"]), ["strict", "standard"]);
    assert_eq!(complete("egress-agent", &["generate", "ser"]), ["serviceentry"]);
    assert_eq!(complete("kubectl-egress", &["obs"]), ["observe"]);
    assert_eq!(complete("kubectl-egress", &["observe", "--verdict", "a"]), ["allow", "audit"]);
}

/// Finds kubectl beside the real API server or in `PATH`.
fn kubectl() -> Option<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS")
        .map_or_else(|| PathBuf::from("/usr/local/kubebuilder/bin"), PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(assets)
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join("kubectl"))
        .find(|path| path.is_file())
}

#[test]
fn kubectl_completes_its_plugin() {
    let Some(kubectl) = kubectl() else { return skipped("cluster", "no kubectl whose plugin to complete") };
    let folder = plugin_folder();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path =
        std::env::join_paths(std::iter::once(folder.path().to_owned()).chain(std::env::split_paths(&path)))
            .expect("it can be extended");
    let complete = |line: &[&str]| {
        let output = Command::new(&kubectl)
            .args(["__complete", "egress"])
            .args(line)
            .env("PATH", &path)
            .env("HOME", folder.path())
            .env_remove("KUBECONFIG")
            .output()
            .expect("kubectl starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let words = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split('\t').next().unwrap_or("").to_owned()).collect()
    };
    let all = complete(&[""]);
    assert_eq!(words(&all), ["status", "observe", "top", "recommend", "completions", ":4"], "{all}");
    assert!(all.contains("status\tSay what is in force"), "{all}");
    assert_eq!(words(&complete(&["obs"])), ["observe", ":4"]);
    assert_eq!(words(&complete(&["observe", "--verdict", "deny,a"])), ["deny,allow", "deny,audit", ":4"]);
    assert_eq!(words(&complete(&["status", "--kubeconfig", ""])), [":0"]);
}
