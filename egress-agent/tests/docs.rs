//! The documentation is current: the pages that are made of code.

use std::{fs, path::Path};

#[path = "../examples/docs.rs"]
#[expect(dead_code, reason = "the example's own entry point is not called here")]
mod made;

#[test]
fn the_pages_made_of_code_are_current() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    for (name, page) in made::pages() {
        let written = fs::read_to_string(docs.join(name)).unwrap_or_else(|error| panic!("docs/{name}: {error}"));
        assert!(written == page, "docs/{name} is old; run `cargo xtask docs`");
    }
}
