//! Bundles as folders: `.rego` files, and data beside them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::Error;

/// What stands in a folder.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    /// In the order of their paths.
    pub(super) modules: Vec<Module>,
    /// An object.
    pub(super) data: serde_json::Value,
}

/// A `.rego` file.
#[derive(Clone, Debug)]
pub(super) struct Module {
    pub(super) path: String,
    pub(super) text: String,
}

impl Module {
    /// Tells whether it holds tests.
    pub(super) fn is_test(&self) -> bool {
        self.path.ends_with("_test.rego")
    }

    /// Tells whether its package is `package` or one below it.
    pub(super) fn is_of(&self, package: &str) -> bool {
        let declared =
            self.text.lines().find_map(|line| line.trim().strip_prefix("package ")).unwrap_or_default();
        let declared = declared.split(['#', ' ', '\t', '[']).next().unwrap_or_default();
        declared.strip_prefix(package).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// Returns where a function is called first, as file, line and column.
    pub(super) fn place_of(&self, function: &str) -> Option<String> {
        self.text.lines().enumerate().find_map(|(index, line)| {
            let column = line.split('#').next()?.find(&format!("{function}("))?;
            Some(format!("{}:{}:{}", self.path, index + 1, column + 1))
        })
    }
}

/// Reads a folder and those below it. What begins with a dot is left out: a mounted ConfigMap keeps its versions there.
pub(super) fn read(dir: &Path) -> Result<Folder, Error> {
    let mut folder = Folder {
        path: dir.to_owned(),
        modules: Vec::new(),
        data: serde_json::Value::Object(serde_json::Map::new()),
    };
    visit(dir, &mut folder)?;
    folder.modules.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(folder)
}

fn visit(dir: &Path, folder: &mut Folder) -> Result<(), Error> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Read { path, source }
    };
    for entry in fs::read_dir(dir).map_err(unreadable(dir))? {
        let entry = entry.map_err(unreadable(dir))?;
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        if fs::metadata(&path).map_err(unreadable(&path))?.is_dir() {
            visit(&path, folder)?;
            continue;
        }
        let text = || fs::read_to_string(&path).map_err(unreadable(&path));
        if name.ends_with(".rego") {
            folder.modules.push(Module { path: path.to_string_lossy().into_owned(), text: text()? });
        } else if matches!(name.as_str(), "data.json" | "data.yaml" | "data.yml") {
            let refused = |message: String| Error::Data { path: path.clone(), message };
            if dir != folder.path {
                return Err(refused(
                    "data belong into the bundle's own folder, not into one below it".into(),
                ));
            }
            let data = data_from(&text()?).map_err(refused)?;
            match &mut folder.data {
                serde_json::Value::Object(all) if all.is_empty() => folder.data = data,
                _ => return Err(Error::Data { path, message: "a bundle has one file of data".into() }),
            }
        }
    }
    Ok(())
}

/// Reads data from YAML or JSON.
pub(super) fn data_from(text: &str) -> Result<serde_json::Value, String> {
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    let data: serde_json::Value =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?;
    if data.is_object() { Ok(data) } else { Err("data are an object".into()) }
}
