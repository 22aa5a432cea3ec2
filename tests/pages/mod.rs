//! What the pages of the documentation contain: links, headings, commands, names in code.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// A page that people read.
#[derive(Debug)]
pub struct Page {
    /// From the root of the repository, such as `docs/policy.md`.
    pub name: String,
    pub text: String,
}

/// A block of code between fences.
#[derive(Debug)]
pub struct Block {
    /// What stands behind the fence, such as `console`.
    pub language: String,
    /// The line of the page on which the code begins, from 1.
    pub line: usize,
    pub text: String,
}

/// Returns the root of the repository.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a crate of the workspace").to_owned()
}

/// Returns the README and every page below `docs/` and `deploy/`.
#[must_use]
pub fn pages() -> Vec<Page> {
    let root = root();
    let mut files = vec![root.join("README.md"), root.join("LICENSES.md")];
    for folder in ["docs", "deploy"] {
        add(&root.join(folder), &mut files);
    }
    files.sort();
    let pages: Vec<Page> = files
        .into_iter()
        .map(|file| {
            let text =
                fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            let name = file.strip_prefix(&root).expect("it is below the root").display().to_string();
            Page { name, text }
        })
        .collect();
    assert!(pages.len() > 20, "there are only {} pages", pages.len());
    pages
}

fn add(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            add(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            files.push(path);
        }
    }
}

impl Page {
    /// Returns the blocks of code, and the rest of the page with blank lines in their place.
    #[must_use]
    pub fn split(&self) -> (Vec<Block>, String) {
        let (mut blocks, mut prose) = (Vec::<Block>::new(), String::new());
        let mut fence: Option<String> = None;
        for (number, line) in self.text.lines().enumerate() {
            let begin = line.trim_start();
            let marks: String = begin.chars().take_while(|letter| *letter == '`').collect();
            match &fence {
                Some(open) if begin.trim_end() == open => fence = None,
                Some(_) => {
                    let block = blocks.last_mut().expect("one is open");
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                None if marks.len() >= 3 => {
                    let language = begin[marks.len()..].trim().to_owned();
                    blocks.push(Block { language, line: number + 2, text: String::new() });
                    fence = Some(marks);
                }
                None => prose.push_str(line),
            }
            prose.push('\n');
        }
        assert!(fence.is_none(), "{}: a block of code has no end", self.name);
        (blocks, prose)
    }

    /// Returns what stands between backticks in the prose, each with its line.
    #[must_use]
    pub fn code(&self) -> Vec<(usize, String)> {
        let (_, prose) = self.split();
        let mut code = Vec::new();
        for (number, line) in prose.lines().enumerate() {
            for (at, part) in line.split('`').enumerate() {
                if at % 2 == 1 && !part.is_empty() {
                    code.push((number + 1, part.to_owned()));
                }
            }
        }
        code
    }

    /// Returns where links lead, each with its line.
    #[must_use]
    pub fn links(&self) -> Vec<(usize, String)> {
        let (_, prose) = self.split();
        let mut links = Vec::new();
        for (number, line) in prose.lines().enumerate() {
            // What stands in code is no link.
            let plain: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
            for rest in plain.split("](").skip(1) {
                let to = rest.split(')').next().expect("split yields at least one part");
                links.push((number + 1, to.to_owned()));
            }
            for mark in ["src=\"", "href=\"", "srcset=\""] {
                for rest in plain.split(mark).skip(1) {
                    links.push((number + 1, rest.split('"').next().expect("one part").to_owned()));
                }
            }
        }
        links
    }

    /// Returns the anchors of the headings, as GitHub makes them.
    #[must_use]
    pub fn anchors(&self) -> Vec<String> {
        let (_, prose) = self.split();
        let mut times: BTreeMap<String, usize> = BTreeMap::new();
        let headings = prose.lines().filter_map(|line| {
            let title = line.trim_start_matches('#');
            (title.len() < line.len() && title.starts_with(' ')).then(|| title.trim())
        });
        headings
            .map(|title| {
                // Of a link in a heading only its text counts.
                let mut text = String::new();
                let mut rest = title;
                while let Some((before, link)) = rest.split_once("](") {
                    text.push_str(before);
                    rest = link.split_once(')').map_or("", |(_, after)| after);
                }
                text.push_str(rest);
                let anchor: String = text
                    .to_lowercase()
                    .chars()
                    .filter(|letter| letter.is_alphanumeric() || [' ', '-', '_'].contains(letter))
                    .map(|letter| if letter == ' ' { '-' } else { letter })
                    .collect();
                let before = times.entry(anchor.clone()).or_default();
                *before += 1;
                if *before == 1 { anchor } else { format!("{anchor}-{}", *before - 1) }
            })
            .collect()
    }

    /// Returns the command lines of the blocks of code, as words, each with its line: what a shell would start, with pipes and lists taken
    /// apart.
    #[must_use]
    pub fn commands(&self) -> Vec<(usize, Vec<String>)> {
        let mut commands = Vec::new();
        let (blocks, _) = self.split();
        for block in blocks {
            let language = block.language.split_whitespace().next().unwrap_or("");
            let prompted = language == "console";
            if !prompted && !["sh", "bash"].contains(&language) {
                continue;
            }
            let mut lines = block.text.lines().enumerate();
            while let Some((number, line)) = lines.next() {
                let typed = if prompted {
                    line.strip_prefix("$ ").or_else(|| line.strip_prefix("# "))
                } else {
                    Some(line)
                };
                let Some(mut typed) = typed.map(str::to_owned) else { continue };
                while let Some(begun) = typed.strip_suffix('\\') {
                    let (_, more) = lines.next().expect("a line goes on");
                    typed = format!("{begun}{more}");
                }
                for words in split_commands(&typed) {
                    commands.push((block.line + number, words));
                }
            }
        }
        commands
    }
}

/// Splits a line as a shell does: into words, and at pipes and lists into commands. Redirections and comments are left out.
#[must_use]
pub fn split_commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut letters = line.chars().peekable();
    let mut to_file = false;
    let mut end = |word: &mut Option<String>, commands: &mut Vec<Vec<String>>| {
        if let Some(word) = word.take() {
            if to_file {
                to_file = false;
            } else if word == ">" || word == ">>" || word == "<" || word == "2>" {
                to_file = true;
            } else {
                commands.last_mut().expect("there is one").push(word);
            }
        }
    };
    while let Some(letter) = letters.next() {
        match letter {
            ' ' | '\t' => end(&mut word, &mut commands),
            '\'' => {
                let text = word.get_or_insert_default();
                text.extend(letters.by_ref().take_while(|letter| *letter != '\''));
            }
            '"' => {
                let text = word.get_or_insert_default();
                while let Some(letter) = letters.next().filter(|letter| *letter != '"') {
                    let escaped = (letter == '\\').then(|| letters.next()).flatten();
                    text.push(escaped.unwrap_or(letter));
                }
            }
            '\\' => word.get_or_insert_default().extend(letters.next()),
            '|' | ';' => {
                end(&mut word, &mut commands);
                commands.push(Vec::new());
            }
            '&' if letters.peek() == Some(&'&') => {
                letters.next();
                end(&mut word, &mut commands);
                commands.push(Vec::new());
            }
            '#' if word.is_none() => break,
            letter => word.get_or_insert_default().push(letter),
        }
    }
    end(&mut word, &mut commands);
    commands.retain(|words| !words.is_empty());
    commands
}

/// Returns the words of a command line from the program `name` on: at its beginning, after variables that are set for it, or behind `--`
/// where another program starts it.
#[must_use]
pub fn words_of<'w>(words: &'w [String], name: &[&str]) -> Option<&'w [String]> {
    let is_set = |word: &String| word.split_once('=').is_some_and(|(name, _)| !name.starts_with('-'));
    let begin = words.iter().take_while(|word| is_set(word) || *word == "sudo").count();
    let behind = words.iter().position(|word| word == "--").map(|at| at + 1);
    [Some(begin), behind].into_iter().flatten().find_map(|at| {
        let rest = &words[at..];
        let fits = rest.len() >= name.len() && rest.iter().zip(name).all(|(word, name)| word == name);
        fits.then(|| &rest[name.len()..])
    })
}

/// A command that a page shows, and what it prints.
#[derive(Debug)]
pub struct Step {
    /// Whether root types it: behind `#`, not `$`.
    pub root: bool,
    pub command: String,
    pub prints: Vec<String>,
}

impl Page {
    /// Returns the commands of the blocks `console`, in their order, with what they print.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::<Step>::new();
        let (blocks, _) = self.split();
        for line in
            blocks.iter().filter(|block| block.language == "console").flat_map(|block| block.text.lines())
        {
            let prompt = |mark| line.strip_prefix(mark);
            if let Some(command) = prompt("$ ").or_else(|| prompt("# ")) {
                steps.push(Step {
                    root: line.starts_with('#'),
                    command: command.to_owned(),
                    prints: Vec::new(),
                });
            } else {
                let step = steps
                    .last_mut()
                    .unwrap_or_else(|| panic!("{}: {line} stands under no command", self.name));
                step.prints.push(line.to_owned());
            }
        }
        steps
    }

    /// Returns the files that the page shows, by the names in their first lines.
    #[must_use]
    pub fn files(&self) -> Vec<(String, String)> {
        let (blocks, _) = self.split();
        let files = blocks.into_iter().filter(|block| block.language == "yaml").filter_map(|block| {
            let name = block.text.lines().next()?.strip_prefix("# ")?.to_owned();
            Some((name, block.text))
        });
        files.collect()
    }
}

/// Says whether what was printed are the wanted lines, in which `…` stands for anything, and a line of nothing else for any lines.
#[must_use]
pub fn is_printed(output: &str, wanted: &[String]) -> bool {
    let lines: Vec<&str> = output.lines().collect();
    fits_lines(&lines, wanted)
}

fn fits_lines(lines: &[&str], wanted: &[String]) -> bool {
    match wanted.split_first() {
        None => lines.is_empty(),
        Some((first, rest)) if first.trim() == "…" => {
            (0..=lines.len()).any(|from| fits_lines(&lines[from..], rest))
        }
        Some((first, rest)) => {
            lines.split_first().is_some_and(|(line, others)| fits(line, first) && fits_lines(others, rest))
        }
    }
}

fn fits(line: &str, wanted: &str) -> bool {
    match wanted.split_once('…') {
        None => line == wanted,
        Some((before, after)) => line.strip_prefix(before).is_some_and(|rest| {
            rest.char_indices().map(|(at, _)| at).chain([rest.len()]).any(|at| fits(&rest[at..], after))
        }),
    }
}
