//! Finds the configuration files, reads them and merges them into one tree.

use std::path::{Path, PathBuf};

use super::disk::Disk;
use super::expand::{Variables, expand};
use super::node::{Key, Position, TreeNode, Value, join};
use super::problem::{Errors, Problems};
use super::toml;
#[cfg(feature = "server")]
use super::yaml;

/// The environment variable that names the configuration, unless the command line does.
pub const CONFIG_VARIABLE: &str = "TOLLGATE_CONFIG";

/// The extensions of configuration files.
const EXTENSIONS: [&str; 3] = ["toml", "yaml", "yml"];

/// The last directory to search.
const SYSTEM_DIRECTORY: &str = "/etc/tollgate";

/// Tables whose keys may be spread over several files. Any other key may be defined only once.
const MERGED_TABLES: [&str; 11] = [
    "server",
    "server.headers",
    "server.bounds",
    "stores",
    "limiters",
    "lists",
    "tables",
    "domains",
    "authz",
    "authz.entries",
    "fastapi",
];

/// The text of one file.
#[derive(Clone, Debug)]
pub struct SourceText {
    /// The file name, as errors show it. Its extension selects TOML or YAML.
    pub name: String,
    /// The content.
    pub text: String,
}

/// The paths to search, in order, for a configuration that is not named.
pub fn search_paths() -> Vec<PathBuf> {
    let stems = ["tollgate", "config/tollgate"];
    let files = stems
        .iter()
        .flat_map(|stem| EXTENSIONS.iter().map(move |extension| PathBuf::from(format!("./{stem}.{extension}"))));
    files.chain([PathBuf::from(SYSTEM_DIRECTORY)]).collect()
}

/// Returns the path of the configuration: the one named, or else the first that exists. None if there is neither.
pub(crate) fn find(named: Option<&Path>, variables: Variables<'_>) -> Result<Option<PathBuf>, Errors> {
    if let Some(path) = named {
        return Ok(Some(path.to_owned()));
    }
    if let Some(path) = variables(CONFIG_VARIABLE).filter(|path| !path.is_empty()) {
        if !Path::new(&path).exists() {
            return Err(Errors::one(path, format!("no such file or directory; {CONFIG_VARIABLE} names it")));
        }
        return Ok(Some(path.into()));
    }
    let exists = |path: &PathBuf| match path.as_path() == Path::new(SYSTEM_DIRECTORY) {
        true => files_of(path).is_ok_and(|files| !files.is_empty()),
        false => path.exists(),
    };
    Ok(search_paths().into_iter().find(exists))
}

/// Reads a file, or the files of a directory in name order.
pub(crate) fn read(path: &Path, disk: &Disk) -> Result<Vec<SourceText>, Errors> {
    disk.record_directory(path);
    let refuse = |path: &Path, text: String| Errors::one(path.display().to_string(), text);
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => refuse(path, "no such file or directory".to_owned()),
        _ => refuse(path, format!("cannot be read: {error}")),
    })?;
    let files = if metadata.is_dir() {
        let files = files_of(path).map_err(|error| refuse(path, format!("cannot be read: {error}")))?;
        if files.is_empty() {
            return Err(refuse(path, "the directory holds no .toml, .yaml or .yml file".to_owned()));
        }
        files
    } else {
        vec![path.to_owned()]
    };
    let mut sources = Vec::with_capacity(files.len());
    for file in files {
        if !has_config_extension(&file) {
            return Err(refuse(&file, "expected a name that ends in .toml, .yaml or .yml".to_owned()));
        }
        let bytes = disk.read(&file, u64::MAX).map_err(|error| refuse(&file, format!("cannot be read: {error}")))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1;
            refuse(&file, format!("not UTF-8 at line {line}"))
        })?;
        sources.push(SourceText { name: file.display().to_string(), text });
    }
    Ok(sources)
}

/// Whether this is the name of a configuration file.
pub(crate) fn has_config_extension(path: &Path) -> bool {
    path.extension().is_some_and(|extension| EXTENSIONS.iter().any(|known| extension == *known))
}

fn files_of(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && has_config_extension(&path) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Parses the files, expands their variables and merges them into one tree.
pub(crate) fn merged_tree(
    sources: &[SourceText],
    variables: Variables<'_>,
    disk: &Disk,
    problems: &mut Problems,
) -> TreeNode {
    let mut merged = Vec::new();
    for (number, source) in sources.iter().enumerate() {
        let file = u16::try_from(number).unwrap_or(u16::MAX);
        // A byte order mark is not part of the text.
        let text = source.text.strip_prefix('\u{feff}').unwrap_or(&source.text);
        let mut node = parse(&source.name, text, file, problems);
        let directory = Path::new(&source.name).parent().unwrap_or(Path::new(""));
        expand(&mut node, directory, variables, disk, problems);
        match node.value {
            Value::Table(entries) => merge(&mut merged, entries, "", problems),
            Value::Null => {}
            // The text is not shown: it may be `password:secret`, a table without the space after the colon.
            Value::Text(_) => {
                problems.error_near(node.position, "", "the file is a text, expected a table such as \"limiters\"");
            }
            other => {
                problems.error_near(
                    node.position,
                    "",
                    format!("the file is {other}, expected a table such as \"limiters\""),
                );
            }
        }
    }
    TreeNode { value: Value::Table(merged), position: Position::default() }
}

/// Parses a file in the format of its extension.
fn parse(name: &str, text: &str, file: u16, problems: &mut Problems) -> TreeNode {
    if name.ends_with(".toml") {
        return toml::parse(text, file, problems);
    }
    #[cfg(feature = "server")]
    return yaml::parse(text, file, problems);
    #[cfg(not(feature = "server"))]
    {
        let position = Position { file, ..Position::default() };
        problems.syntax_error(
            position,
            "is YAML, which this build cannot read; write TOML, or build tollgate with the cargo feature \"server\"",
        );
        TreeNode { value: Value::Null, position }
    }
}

fn merge(into: &mut Vec<(Key, TreeNode)>, from: Vec<(Key, TreeNode)>, path: &str, problems: &mut Problems) {
    for (key, node) in from {
        let path = join(path, &key.text);
        let Some((first_key, first)) = into.iter_mut().find(|(first, _)| first.text == key.text) else {
            into.push((key, node));
            continue;
        };
        match (&mut first.value, node.value) {
            (Value::Table(first), Value::Table(more)) if MERGED_TABLES.contains(&&*path) => {
                merge(first, more, &path, problems);
            }
            (Value::List(first), Value::List(more)) if path == "rules" => first.extend(more),
            (_, _) => {
                let first = problems.locate(first_key.position);
                problems.error(key.position, &path, format_args!("is defined twice; the first is at {first}"));
            }
        }
    }
}
