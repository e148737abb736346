//! Where training text comes from: one file a source, one row in the table.
//!
//! A source gives documents by index; [`crate::corpus`] turns them into ids. Held-out documents are
//! the `Test` split, for environments as for files.

pub mod conversations;
pub mod environment;
pub mod text;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use tallow_envs::{Environments, Seed, Split};
use tallow_verifiers::{ConfigFault, Message};

use crate::error::Error;

/// One piece of training text.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// Raw text; every token teaches.
    Text(String),
    /// Messages; whether all of it teaches or the replies only is the stage's choice.
    Conversation(Vec<Message>),
}

impl Document {
    /// Its text without markup, for tokenizer training.
    pub fn texts(&self) -> Vec<&str> {
        match self {
            Self::Text(text) => vec![text],
            Self::Conversation(messages) => messages.iter().map(|it| it.content.as_str()).collect(),
        }
    }
}

/// A source of documents.
pub trait Documents: Send + Sync {
    /// Number of documents; procedural sources give their range of indices.
    fn len(&self, split: Split) -> u64;

    /// Whether the split has none.
    fn is_empty(&self, split: Split) -> bool {
        self.len(split) == 0
    }

    /// Whether documents are made on demand, too many to be encoded beforehand.
    fn is_procedural(&self) -> bool;

    /// The `index`-th document; a pure function of the source's settings.
    ///
    /// # Errors
    /// If the source breaks or has no such document.
    fn document(&self, split: Split, index: u64) -> Result<Document, Error>;
}

/// What building a source may look at.
pub struct SourceContext<'a> {
    /// Environments that documents can be written from.
    pub environments: &'a Environments,
    /// Folder of the configuration file, which relative paths start from.
    pub folder: &'a Path,
    /// Seed of the run.
    pub seed: Seed,
}

/// Makes a source from its options.
pub type Build = fn(Value, &SourceContext<'_>) -> Result<Arc<dyn Documents>, ConfigFault>;

/// A row of the table of sources.
pub struct SourceEntry {
    /// The name configs use.
    pub name: &'static str,
    /// One line for `tallow list`.
    pub summary: &'static str,
    /// Builds from options.
    pub build: Build,
    /// The options with their defaults; `null` where one must be given.
    pub default_options: fn() -> Value,
}

/// Every source, alphabetical.
pub const BUILTIN: &[SourceEntry] = &[
    SourceEntry {
        name: "conversations",
        summary: "JSONL of messages, or of prompt and completion",
        build: conversations::build,
        default_options: || json!(conversations::Conversations::default()),
    },
    SourceEntry {
        name: "environment",
        summary: "an environment's tasks with their known replies, in chosen styles",
        build: environment::build,
        default_options: || json!({"env": null, "styles": null}),
    },
    SourceEntry {
        name: "text",
        summary: "plain text or JSONL with a text field",
        build: text::build,
        default_options: || json!(text::TextDocuments::default()),
    },
];

/// Builds the source that the table's `kind` names.
///
/// # Errors
/// If the kind is missing or unknown, or its options are wrong.
pub fn build(
    options: Value,
    context: &SourceContext<'_>,
) -> Result<Arc<dyn Documents>, ConfigFault> {
    let Value::Object(mut table) = options else {
        return Err(ConfigFault::new("", "documents must be a table"));
    };
    let names = || BUILTIN.iter().map(|it| it.name);
    let kind = match table.remove("kind") {
        Some(Value::String(kind)) => kind,
        other => {
            let fault = ConfigFault::new("kind", "the source of documents is not named")
                .expected(names().collect::<Vec<_>>().join(", "));
            return Err(ConfigFault { found: other.map(|it| it.to_string()), ..fault });
        }
    };
    let Some(entry) = BUILTIN.iter().find(|it| it.name == kind) else {
        return Err(ConfigFault::unknown_name("kind", "source of documents", &kind, names()));
    };
    (entry.build)(Value::Object(table), context)
}

/// Refuses a path that was not given.
pub(crate) fn require_path(path: &str) -> Result<(), ConfigFault> {
    if path.is_empty() {
        return Err(ConfigFault::new("path", "there is no file to read").expected("its path"));
    }
    Ok(())
}

/// Refuses a held-out share that is none.
pub(crate) fn require_share(held_out: f64) -> Result<(), ConfigFault> {
    if (0.0..1.0).contains(&held_out) {
        return Ok(());
    }
    Err(ConfigFault::new("held_out", "the held-out share is not a share")
        .found(held_out)
        .expected("0 or more and below 1, such as 0.05"))
}

/// A file by its path in the configuration: from the configuration's folder, or else from where the
/// command was started.
pub fn resolve(path: &str, folder: &Path) -> PathBuf {
    let beside = folder.join(path);
    if beside.exists() { beside } else { PathBuf::from(path) }
}

/// A text file whole; gzip and zstd are recognised by their first bytes.
///
/// # Errors
/// If it cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, Error> {
    let bytes = std::fs::read(path).map_err(|e| Error::file("read", path, e))?;
    let plain = match bytes.as_slice() {
        [0x1f, 0x8b, ..] => {
            let mut plain = Vec::new();
            flate2::read::MultiGzDecoder::new(bytes.as_slice())
                .read_to_end(&mut plain)
                .map_err(|e| Error::file("unpack", path, e))?;
            plain
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            zstd::decode_all(bytes.as_slice()).map_err(|e| Error::file("unpack", path, e))?
        }
        _ => bytes,
    };
    String::from_utf8(plain).map_err(|e| {
        Error::Data(format!(
            "{}: not UTF-8 at byte {}",
            path.display(),
            e.utf8_error().valid_up_to()
        ))
    })
}

/// A line's number, counted from 1, and its object.
pub type Line = (usize, serde_json::Map<String, Value>);

/// Every value of a JSONL file with its line number, counted from 1; blank lines are skipped.
///
/// # Errors
/// If the file cannot be read or a line is not a JSON object, named as `FILE:LINE`.
pub fn read_jsonl(path: &Path) -> Result<Vec<Line>, Error> {
    let text = read_text(path)?;
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let place = || format!("{}:{}", path.display(), index + 1);
        match serde_json::from_str(line) {
            Ok(Value::Object(row)) => rows.push((index + 1, row)),
            Ok(_) => return Err(Error::Data(format!("{}: expected a JSON object", place()))),
            Err(error) => return Err(Error::Data(format!("{}: {error}", place()))),
        }
    }
    Ok(rows)
}

/// Which split the `index`-th of a file's documents falls in: about `held_out` of them are `Test`.
pub fn split_of(seed: Seed, index: u64, held_out: f64) -> Split {
    let share = (seed.derive(&[index]).0 >> 11) as f64 / (1u64 << 53) as f64;
    if share < held_out { Split::Test } else { Split::Train }
}
