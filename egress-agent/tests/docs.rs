//! The documentation is current: pages that are made of code, links, paths, and every command line it shows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use clap::CommandFactory as _;
use egress_agent::cli::{Cli, plugin::Plugin};

#[path = "../examples/docs.rs"]
#[expect(dead_code, reason = "the example's own entry point is not called here")]
mod made;
#[path = "../../tests/pages/mod.rs"]
mod pages;

use pages::{Page, root, split_commands, words_of};

#[test]
fn the_pages_made_of_code_are_current() {
    for (name, page) in made::pages() {
        let path = root().join("docs").join(name);
        let written = fs::read_to_string(&path).unwrap_or_else(|error| panic!("docs/{name}: {error}"));
        assert!(written == page, "docs/{name} is old; run `cargo xtask docs`");
    }
}

#[test]
fn every_link_leads_somewhere() {
    let pages = pages::pages();
    let anchors: BTreeMap<&str, Vec<String>> =
        pages.iter().map(|page| (page.name.as_str(), page.anchors())).collect();
    let (mut wrong, mut followed) = (Vec::new(), 0);
    for page in &pages {
        for (line, to) in page.links() {
            if to.contains("://") || to.starts_with("mailto:") {
                continue;
            }
            followed += 1;
            let (path, anchor) = to.split_once('#').unwrap_or((&to, ""));
            let folder = Path::new(&page.name).parent().expect("a page is in a folder");
            let target = if path.is_empty() { page.name.clone() } else { plain(&folder.join(path)) };
            let at = format!("{}:{line}: {to}", page.name);
            if !root().join(&target).exists() {
                wrong.push(format!("{at}: there is no {target}"));
            } else if !anchor.is_empty()
                && !anchors.get(target.as_str()).is_some_and(|all| all.iter().any(|one| one == anchor))
            {
                wrong.push(format!("{at}: {target} has no heading of that name"));
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
    assert!(followed > 100, "only {followed} links were followed");
}

/// Resolves `..` in a path from the root.
fn plain(path: &Path) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.to_str().expect("a path is text").split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Parses the command line of `egress-agent` or `kubectl egress` in these words; `None` if there is none.
fn parse(words: &[String]) -> Option<Result<(), String>> {
    for (name, command) in [
        (&["egress-agent"][..], Cli::command()),
        (&["kubectl", "egress"], Plugin::command()),
        (&["kubectl-egress"], Plugin::command()),
    ] {
        let Some(arguments) = words_of(words, name) else { continue };
        let typed = std::iter::once("program").chain(arguments.iter().map(String::as_str));
        return Some(match command.try_get_matches_from(typed) {
            // Help and version end the program, too.
            Err(error) if error.use_stderr() => Err(error.to_string()),
            _ => Ok(()),
        });
    }
    None
}

#[test]
fn every_command_line_that_is_shown_parses() {
    let (mut wrong, mut parsed) = (Vec::new(), 0);
    let mut check = |place: String, words: &[String]| {
        if let Some(outcome) = parse(words) {
            parsed += 1;
            wrong.extend(outcome.err().map(|error| format!("{place}: {words:?}: {error}")));
        }
    };
    for page in pages::pages() {
        for (line, words) in page.commands() {
            check(format!("{}:{line}", page.name), &words);
        }
    }
    // The help shows some, too.
    for command in [Cli::command(), Plugin::command()] {
        let mut waiting = vec![command];
        while let Some(command) = waiting.pop() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in help.lines().filter(|line| line.starts_with("  ")) {
                // Two spaces part a command from what it does.
                let typed = line.trim().split("  ").next().expect("split yields at least one part");
                for words in split_commands(typed) {
                    check(format!("help of {}", command.get_name()), &words);
                }
            }
            waiting.extend(command.get_subcommands().cloned());
        }
    }
    assert_eq!(wrong, [""; 0]);
    assert!(parsed > 60, "only {parsed} command lines were parsed");
}

/// Finds the command that words name, and returns the words that are left.
fn named(mut command: clap::Command, mut words: &[String]) -> (clap::Command, &[String]) {
    while let Some((first, rest)) = words.split_first()
        && let Some(below) = command.find_subcommand(first)
    {
        command = below.clone();
        words = rest;
    }
    (command, words)
}

#[test]
fn every_command_that_the_prose_names_is_there() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for page in pages::pages() {
        for (line, code) in page.code() {
            for words in split_commands(&code) {
                for (name, command) in
                    [(&["egress-agent"][..], Cli::command()), (&["kubectl", "egress"], Plugin::command())]
                {
                    let Some(arguments) = words_of(&words, name).filter(|words| !words.is_empty()) else {
                        continue;
                    };
                    seen += 1;
                    let (command, rest) = named(command, arguments);
                    let at = format!("{}:{line}: {code}", page.name);
                    if rest.len() == arguments.len() && !rest[0].starts_with('-') && rest[0] != "help" {
                        wrong.push(format!("{at}: there is no such subcommand"));
                    }
                    for word in rest.iter().take_while(|word| *word != "--") {
                        let flag = word
                            .trim_matches(['[', ']', ',', '…'])
                            .split(['=', '['])
                            .next()
                            .expect("one part");
                        if let Some(long) = flag.strip_prefix("--")
                            && !["help", "version"].contains(&long)
                            && !command.get_arguments().any(|argument| argument.get_long() == Some(long))
                        {
                            wrong.push(format!("{at}: {} has no {flag}", command.get_name()));
                        }
                    }
                }
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
    assert!(seen > 40, "only {seen} commands were seen");
}

#[test]
fn every_subcommand_is_on_the_page_of_commands() {
    let page = fs::read_to_string(root().join("docs/commands.md")).expect("the page is there");
    for command in Cli::command().get_subcommands() {
        let name = command.get_name();
        let is_named =
            page.split('`').skip(1).step_by(2).any(|code| {
                code.strip_prefix("egress-agent ").unwrap_or(code).split(' ').next() == Some(name)
            });
        assert!(is_named, "docs/commands.md says what {name} does");
    }
}

/// The folders of the repository whose names begin paths.
const FOLDERS: [&str; 7] = [".ci", "deploy", "docs", "egress-agent", "egress-common", "egress-ebpf", "xtask"];

/// Modules of the agent, which pages about the code name without the way to them.
const MODULES: [&str; 8] = ["agent", "cli", "k8s", "kernel", "policy", "ranges", "telemetry", "webhook"];

/// Returns every path of the repository, files and folders, from the root.
fn repository() -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    let mut waiting: Vec<PathBuf> = FOLDERS.iter().chain(&["tests"]).map(|name| root().join(name)).collect();
    while let Some(folder) = waiting.pop() {
        paths.insert(plain(folder.strip_prefix(root()).expect("it is below the root")));
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("it can be listed").path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                paths.insert(plain(path.strip_prefix(root()).expect("it is below the root")));
            }
        }
    }
    paths
}

/// Returns the paths that a piece of code stands for: `a/{b,c}` are two.
fn expanded(code: &str) -> Vec<String> {
    let Some((before, rest)) = code.split_once('{') else { return vec![code.to_owned()] };
    let Some((choices, after)) = rest.split_once('}') else { return vec![code.to_owned()] };
    choices.split(',').map(|choice| format!("{before}{}{after}", choice.trim())).collect()
}

/// Returns whether a piece of code looks like a path of the repository, and the path without what may follow it.
fn path_in(code: &str) -> Option<&str> {
    let path = code.split_once(':').map_or(code, |(path, _)| path).trim_end_matches('/');
    let plain = path.chars().all(|letter| letter.is_ascii_alphanumeric() || "._/-".contains(letter));
    // Capitals stand for something that the reader puts there, and a first slash for another place.
    let open = path
        .split('/')
        .any(|part| !part.is_empty() && part.chars().all(|letter| letter.is_ascii_uppercase()));
    let first = path.split('/').next().expect("split yields at least one part");
    let is_source =
        [".rs", ".rego"].iter().any(|end| path.strip_suffix(end).is_some_and(|name| !name.is_empty()));
    let begins =
        path.contains('/') && (FOLDERS.contains(&first) || first == "tests" || MODULES.contains(&first));
    (plain && !open && !path.starts_with('/') && (begins || is_source)).then_some(path)
}

#[test]
fn every_path_that_is_named_is_there() {
    let there = repository();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for page in pages::pages() {
        for (line, code) in page.code() {
            for one in expanded(&code) {
                let Some(path) = path_in(&one) else { continue };
                // A copy of this repository under its own name, as kustomizations have it.
                let copied = path.strip_prefix("egress-agent/deploy/").map(|rest| format!("deploy/{rest}"));
                seen += 1;
                let end = format!("/{path}");
                let found = there.contains(path)
                    || copied.is_some_and(|path| there.contains(&path))
                    // Within a crate, as the pages about the code name them.
                    || there.iter().any(|whole| whole.ends_with(&end));
                if !found {
                    wrong.push(format!("{}:{line}: there is no {path}", page.name));
                }
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
    assert!(seen > 80, "only {seen} paths were seen");
}

#[test]
fn what_pages_contain_is_read_as_people_read_it() {
    let page = Page {
        name: "docs/a.md".to_owned(),
        text: "# One `two`: three\n\n[a](b.md#c) `[no](link)`\n\n## Same\n## Same\n\n```console\n$ A=1 egress-agent observe | less # no\n# kubectl exec -it x -- egress-agent status > file\nout\n$ cargo \\\n  xtask 'a b'\n```\n".to_owned(),
    };
    assert_eq!(page.anchors(), ["one-two-three", "same", "same-1"]);
    assert_eq!(page.links(), [(3, "b.md#c".to_owned())]);
    let commands = page.commands();
    let lines: Vec<(usize, String)> = commands.iter().map(|(line, words)| (*line, words.join("_"))).collect();
    assert_eq!(
        lines,
        [
            (9, "A=1_egress-agent_observe".to_owned()),
            (9, "less".to_owned()),
            (10, "kubectl_exec_-it_x_--_egress-agent_status".to_owned()),
            (12, "cargo_xtask_a b".to_owned()),
        ]
    );
    assert_eq!(words_of(&commands[0].1, &["egress-agent"]), Some(&["observe".to_owned()][..]));
    assert_eq!(words_of(&commands[2].1, &["egress-agent"]), Some(&["status".to_owned()][..]));
    assert_eq!(words_of(&commands[1].1, &["egress-agent"]), None);
    assert_eq!(page.code(), [(1, "two".to_owned()), (3, "[no](link)".to_owned())]);
    assert_eq!(plain(Path::new("docs/../deploy/./a")), "deploy/a");
    assert_eq!(expanded("a/{b,c}/d"), ["a/b/d", "a/c/d"]);
    assert_eq!(path_in("deploy/base"), Some("deploy/base"));
    assert_eq!(path_in("sockets.rs:12"), Some("sockets.rs"));
    assert_eq!(path_in("/sys/fs/bpf"), None);
    assert_eq!(path_in("deploy/NAME"), None);
}

/// Returns the references in a text, such as `A1` of `[A1]`.
fn references(text: &str) -> BTreeSet<String> {
    let inside = text.split('[').skip(1).filter_map(|rest| rest.split(']').next());
    let is_one = |word: &&str| {
        let mut letters = word.chars();
        letters.next().is_some_and(|first| first.is_ascii_uppercase())
            && word.len() > 1
            && letters.all(|letter| letter.is_ascii_digit())
    };
    inside.filter(is_one).map(str::to_owned).collect()
}

#[test]
fn every_statement_about_others_has_its_source() {
    let page = fs::read_to_string(root().join("docs/comparison.md")).expect("the page is there");
    let (statements, sources) = page.split_once("\n## Sources\n").expect("the page ends with its sources");
    let rows = sources.lines().filter(|line| line.starts_with("| ["));
    let mut listed = BTreeSet::new();
    for row in rows {
        assert!(row.contains("](https://"), "a source has an address: {row}");
        let name = row.trim_start_matches("| [").split(']').next().expect("split yields at least one part");
        assert!(listed.insert(name.to_owned()), "{name} is listed twice");
    }
    assert_eq!(references(statements), listed, "what is referred to, and what is listed");
    assert!(listed.len() > 20, "{listed:?}");
}

#[test]
fn the_first_policy_is_as_the_page_says() {
    let page =
        pages::pages().into_iter().find(|page| page.name == "docs/first-policy.md").expect("it is there");
    let folder = tempfile::tempdir().expect("a folder can be made");
    for (name, text) in page.files() {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("a folder can be made");
        fs::write(path, text).expect("a file can be written");
    }
    let programs = Path::new(env!("CARGO_BIN_EXE_egress-agent")).parent().expect("it is in a folder");
    let mut path = std::ffi::OsString::from(programs);
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut ran = 0;
    for step in page.steps().iter().filter(|step| !step.root) {
        let output = std::process::Command::new("sh")
            .args(["-c", &step.command])
            .env("PATH", &path)
            .current_dir(folder.path())
            .output()
            .expect("a shell starts");
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(pages::is_printed(&said, &step.prints), "{} prints:\n{said}", step.command);
        ran += 1;
    }
    assert_eq!(ran, 3, "the commands that need no root");
}

#[test]
fn lines_are_compared_as_written_but_for_what_is_left_out() {
    let wanted = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    assert!(pages::is_printed("a\nb 12 c\nd\ne\n", &wanted("a\nb … c\n…\ne")));
    assert!(pages::is_printed("a\n", &wanted("a\n…")));
    for (output, lines) in
        [("a\nb\n", "a"), ("a\n", "a\nb"), ("b\n", "a"), ("a x\n", "a … c"), ("x\na\n", "a\n…")]
    {
        assert!(!pages::is_printed(output, &wanted(lines)), "{output:?} {lines:?}");
    }
}

#[test]
fn pictures_are_whole_and_can_be_read_on_light_and_dark() {
    let mut seen = 0;
    for entry in fs::read_dir(root().join("docs")).expect("the folder can be listed") {
        let path = entry.expect("it can be listed").path();
        if path.extension().is_none_or(|extension| extension != "svg") {
            continue;
        }
        seen += 1;
        let text = fs::read_to_string(&path).expect("a picture is text");
        let picture =
            roxmltree::Document::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let has = |name: &str| picture.descendants().any(|node| node.tag_name().name() == name);
        assert!(has("title") && has("desc"), "{}: who cannot see it is told what it shows", path.display());
        assert!(text.contains("prefers-color-scheme: dark"), "{}", path.display());
        // GitHub shows it as an image, which loads nothing and runs nothing.
        assert!(!has("script") && !has("image") && !text.contains("href="), "{}", path.display());
    }
    assert!(seen > 0, "there is a picture");
}
