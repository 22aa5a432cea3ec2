//! The walk-through for a new tenant: every command of docs/onboarding.md, as people type it, and what it prints.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use egress_tests::lab::agent::{self, Agent};

use crate::scene::{LIMIT, PROXIES, Scene, good, kubectl};

const PAGE: &str = include_str!("../../../docs/onboarding.md");

/// A command of the page and the lines that it prints.
#[derive(Debug)]
struct Step {
    /// Who types it: `platform` or `team`.
    who: String,
    /// Whether it is to fail.
    refused: bool,
    command: String,
    prints: Vec<String>,
}

/// Returns the files that the page shows, by name, and the steps.
fn read(page: &str) -> (Vec<(String, String)>, Vec<Step>) {
    let (mut files, mut steps) = (Vec::new(), Vec::<Step>::new());
    let mut blocks = page.split("```");
    blocks.next().expect("a page begins with text");
    for block in blocks.step_by(2) {
        let (kind, text) = block.split_once('\n').expect("a block has lines");
        let (language, more) = kind.split_once(' ').unwrap_or((kind, ""));
        match language {
            "yaml" => {
                let (name, _) = text.split_once('\n').expect("a file has lines");
                files.push((name.trim_start_matches("# ").to_owned(), text.to_owned()));
            }
            "console" => {
                let (who, refused) = match more.split_once(", ") {
                    Some((who, "refused")) => (who, true),
                    Some(other) => panic!("nobody knows what {other:?} means"),
                    None => (more, false),
                };
                for line in text.lines() {
                    if let Some(command) = line.strip_prefix("$ ") {
                        let (who, command) = (who.to_owned(), command.to_owned());
                        steps.push(Step { who, refused, command, prints: Vec::new() });
                    } else {
                        steps.last_mut().expect("a block begins with a command").prints.push(line.to_owned());
                    }
                }
            }
            other => panic!("nothing runs a block of {other:?}"),
        }
    }
    (files, steps)
}

/// Says whether a line is the wanted one, in which `…` stands for anything, and any space for any other.
fn fits(line: &str, wanted: &str) -> bool {
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (line, wanted) = (plain(line), plain(wanted));
    let mut parts = wanted.split('…');
    let first = parts.next().expect("split yields at least one part");
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let Some(last) = wanted.contains('…').then(|| wanted.rsplit('…').next().expect("one part")) else {
        return rest.is_empty();
    };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    line.ends_with(last)
}

/// Says whether the wanted lines are among those printed, in their order, with no other line of a table between.
fn prints(output: &str, wanted: &[String]) -> bool {
    let mut lines = output.lines();
    wanted.iter().all(|wanted| lines.by_ref().any(|line| fits(line, wanted)))
}

/// Starts the controller with the rights it ships with.
fn controller(scene: &Scene<'_>) -> Agent {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/components/controller");
    let said = scene.kubectl(&["apply", "--kustomize", deploy.to_str().expect("a plain name")], "");
    assert!(said.well, "{}", said.text);
    let own = "egress-controller";
    let kubeconfig = good(scene.server.kubeconfig_for(own, own));
    let listen = good(agent::free_address());
    let mut command = Command::new(good(agent::binary()));
    for proxy in PROXIES {
        command.env_remove(proxy);
    }
    let log = fs::File::create(scene.folder.path().join("controller.log")).expect("a log can be made");
    // Nobody publishes ranges here, and no policy of the page asks for any.
    command.args(["controller", "--ranges-url", "aws=http://127.0.0.1:9/ip-ranges.json"]);
    command.args(["--listen", &listen.to_string(), "--kubeconfig"]).arg(kubeconfig).stderr(log);
    let mut controller = good(Agent::listening(command, listen, &scene.keeper));
    good(controller.wait_ready(LIMIT));
    controller
}

/// Makes a folder with the program `kubectl` as this person has it.
fn tools(scene: &Scene<'_>, folder: &Path, who: &str) {
    let kubectl = good(kubectl());
    let person = match who {
        "platform" => "",
        "team" => "--as anna --as-group team-a --as-group system:authenticated",
        other => panic!("nobody is called {other:?}"),
    };
    let script = format!(
        "#!/bin/sh\nexec {} --kubeconfig {} {person} \"$@\"\n",
        kubectl.display(),
        scene.server.kubeconfig().display()
    );
    fs::create_dir_all(folder).expect("a folder can be made");
    let path = folder.join("kubectl");
    fs::write(&path, script).expect("a file can be written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it can be made a program");
}

pub(crate) fn walk_through(scene: &Scene<'_>, _: &str) {
    let (files, steps) = read(PAGE);
    assert!(files.len() == 2 && steps.len() > 12, "the page has its files and commands: {steps:?}");
    let controller = controller(scene);
    // As it ships; the other cases are judged without rules of governance.
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/components/webhook/rules.yaml");
    good(scene.take().terminate(&scene.keeper));
    scene.start(&["--rules", rules.to_str().expect("a plain name")]);
    let folder = scene.folder.path().join("onboarding");
    fs::create_dir_all(&folder).expect("a folder can be made");
    for (name, text) in files {
        fs::write(folder.join(name), text).expect("a file can be written");
    }
    let binary = good(agent::binary());
    let programs = binary.parent().expect("it is in a folder");
    for Step { who, refused, command, prints: wanted } in steps {
        let own = scene.folder.path().join(&who);
        tools(scene, &own, &who);
        let others = env::var_os("PATH").expect("there is one");
        let path = format!("{}:{}:{}", own.display(), programs.display(), others.display());
        let deadline = Instant::now() + LIMIT;
        loop {
            let mut shell = Command::new("sh");
            shell.args(["-c", &command]).current_dir(&folder).env("PATH", &path);
            for proxy in PROXIES {
                shell.env_remove(proxy);
            }
            let output = shell.output().expect("a shell starts");
            let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
            if output.status.success() != refused && prints(&said, &wanted) {
                break;
            }
            // Only looking may be done again: what the controller does takes a moment.
            let may_wait = command.starts_with("kubectl get ") && Instant::now() < deadline;
            assert!(may_wait, "{who}: $ {command}\nprints\n{said}\nand not\n{}", wanted.join("\n"));
            thread::sleep(Duration::from_millis(200));
        }
    }
    good(controller.terminate(&scene.keeper));
    good(scene.take().terminate(&scene.keeper));
    scene.start(&[]);
    lines_are_told_apart();
}

/// The comparison itself sees a difference.
fn lines_are_told_apart() {
    assert!(
        fits("a   b", "a b")
            && fits("x 17s", "x …")
            && fits("egress-egress-1 app=web 3s", "egress-egress… app=web …")
    );
    assert!(
        !fits("a b c", "a b")
            && !fits("b", "a")
            && !fits("x y", "… z")
            && !fits("egress app=till 3s", "egress… app=web …")
    );
    let wanted = ["one".to_owned(), "two".to_owned()];
    assert!(
        prints("zero\none\ntwo\n", &wanted) && !prints("two\none\n", &wanted) && !prints("one\n", &wanted)
    );
}
