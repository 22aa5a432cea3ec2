//! Writes the pages that are made of code into a folder: `cargo xtask docs` says which.

use std::{error::Error, fs, path::Path};

use egress_agent::{cli::flags, schema::reference, telemetry::catalogue};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).ok_or("which folder?")?;
    for (name, page) in pages() {
        fs::write(Path::new(&folder).join(name), page)?;
    }
    Ok(())
}

/// Returns the pages, each with the name of its file.
pub fn pages() -> [(&'static str, String); 3] {
    [
        ("flags.md", flags::page()),
        ("metrics.md", catalogue::page()),
        ("policy-reference.md", reference::page()),
    ]
}
