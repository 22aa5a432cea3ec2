use super::*;

fn source(uri: &str, suites: &[&str], components: &[&str], signed_by: Option<&str>) -> Source {
    let own = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    Source {
        uris: vec![uri.to_owned()],
        suites: own(suites),
        components: own(components),
        signed_by: signed_by.map(str::to_owned),
    }
}

#[test]
fn deb822_stanzas_are_read_with_comments_and_several_suites() {
    let text = "# the archive\nTypes: deb deb-src\nURIs: http://mirror.example/debian\n# of old: http://x.example\n\
                Suites: bookworm bookworm-updates\nComponents: main contrib\nSigned-By: /keys/a.gpg\n\n\n\
                types: deb\nuris: http://other.example\nsuites: nodistro\ncomponents: main\n";
    let wanted = [
        source(
            "http://mirror.example/debian",
            &["bookworm", "bookworm-updates"],
            &["main", "contrib"],
            Some("/keys/a.gpg"),
        ),
        source("http://other.example", &["nodistro"], &["main"], None),
    ];
    assert_eq!(parse_deb822(text), wanted);
}

#[test]
fn disabled_and_source_only_stanzas_are_left_out() {
    let text = "Types: deb\nEnabled: no\nURIs: http://a.example\nSuites: s\n\nTypes: deb-src\nURIs: http://a.example\n\
                Suites: s\n";
    assert_eq!(parse_deb822(text), []);
}

#[test]
fn a_key_inside_the_stanza_keeps_its_lines() {
    let text = "Types: deb\nURIs: http://a.example\nSuites: trixie\nComponents: main\nSigned-By:\n -----BEGIN\n .\n abc\n";
    let parsed = parse_deb822(text);
    assert_eq!(parsed[0].signed_by.as_deref(), Some("\n -----BEGIN\n .\n abc"));
    let stanza = "Types: deb\nURIs: http://a.example\nSuites: sid\nComponents: main\n\
                  Signed-By: \n -----BEGIN\n .\n abc\n";
    assert_eq!(parsed[0].for_suite("sid"), stanza);
}

#[test]
fn one_line_entries_are_read_with_options_and_comments() {
    let text = "# deb http://old.example/ sid main\ndeb-src http://a.example/ trixie main\n\
                deb [arch=amd64 signed-by=/keys/a.gpg,/keys/b.gpg] http://a.example/debian trixie main contrib # note\n\
                \tdeb http://b.example ./\ndebris http://c.example trixie main\n\
                deb [ signed-by=/keys/c.gpg ] http://c.example trixie main";
    let wanted = [
        source("http://a.example/debian", &["trixie"], &["main", "contrib"], Some("/keys/a.gpg /keys/b.gpg")),
        source("http://b.example", &["./"], &[], None),
        source("http://c.example", &["trixie"], &["main"], Some("/keys/c.gpg")),
    ];
    assert_eq!(parse_one_line(text), wanted);
}

#[test]
fn the_mirror_is_the_source_that_serves_main_of_the_own_release() {
    let serves = |suites: &[&str], components: &[&str], uri: &str| {
        source(uri, suites, components, None).serves_main_of("bookworm")
    };
    assert!(serves(&["bookworm", "bookworm-updates"], &["main"], "http://a.example"));
    assert!(!serves(&["bookworm-security"], &["main"], "http://a.example"));
    assert!(!serves(&["cloud-bookworm"], &["main"], "http://a.example"));
    assert!(!serves(&["bookworm"], &["contrib"], "http://a.example"));
    assert!(!serves(&["bookworm"], &["main"], "cdrom:[Debian]/"));
}
