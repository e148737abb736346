//! Raw text: a plain text file is one document (split at blank lines into pieces when long enough to
//! be held out), a JSONL file is one document a line.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tallow_envs::Split;
use tallow_verifiers::ConfigFault;
use tallow_verifiers::config_fault::read_options;

use super::{
    Document, Documents, SourceContext, read_jsonl, read_text, require_path, require_share,
    resolve, split_of,
};
use crate::error::Error;

/// A plain text file is cut at blank lines into documents of at least this many bytes, so that some
/// can be held out.
const PLAIN_DOCUMENT_BYTES: usize = 4096;

/// Settings of the source `text`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextDocuments {
    /// The file: `.jsonl` holds a document a line, anything else is plain text; either may be packed
    /// with gzip or zstd.
    pub path: String,
    /// Field of a JSONL line that holds the text.
    pub field: String,
    /// A second file to hold out instead of a share of the first.
    pub test_path: Option<String>,
    /// Share of the documents held out for evaluation when there is no `test_path`.
    pub held_out: f64,
}

impl Default for TextDocuments {
    fn default() -> Self {
        Self { path: String::new(), field: "text".into(), test_path: None, held_out: 0.05 }
    }
}

struct Source {
    train: Vec<String>,
    test: Vec<String>,
}

/// Builds the source; reads the files.
///
/// # Errors
/// If a file is missing, a line is malformed or lacks the field, or there is no text at all.
pub fn build(
    options: Value,
    context: &SourceContext<'_>,
) -> Result<Arc<dyn Documents>, ConfigFault> {
    let config: TextDocuments = read_options(options)?;
    require_path(&config.path)?;
    require_share(config.held_out)?;
    let load = |key: &str, path: &str| {
        load(&resolve(path, context.folder), &config.field)
            .map_err(|e| ConfigFault::new(key, e.to_string()))
    };
    let mut source = Source { train: Vec::new(), test: Vec::new() };
    let documents = load("path", &config.path)?;
    match &config.test_path {
        Some(path) => {
            source.train = documents;
            source.test = load("test_path", path)?;
        }
        None => {
            for (index, text) in documents.into_iter().enumerate() {
                match split_of(context.seed, index as u64, config.held_out) {
                    Split::Train => source.train.push(text),
                    Split::Test => source.test.push(text),
                }
            }
        }
    }
    if source.train.is_empty() {
        return Err(ConfigFault::new("path", "no text to train on").found(&config.path));
    }
    Ok(Arc::new(source))
}

fn load(path: &std::path::Path, field: &str) -> Result<Vec<String>, Error> {
    let name = path.to_string_lossy();
    let stem = name.trim_end_matches(".gz").trim_end_matches(".zst");
    if !stem.ends_with(".jsonl") {
        return Ok(plain_documents(&read_text(path)?));
    }
    let mut documents = Vec::new();
    for (line, row) in read_jsonl(path)? {
        match row.get(field).and_then(Value::as_str) {
            Some(text) => documents.push(text.to_string()),
            None => {
                let fields: Vec<&str> = row.keys().map(String::as_str).collect();
                return Err(Error::Data(format!(
                    "{}:{line}: no text field `{field}`; the line has {}",
                    path.display(),
                    fields.join(", ")
                )));
            }
        }
    }
    Ok(documents)
}

fn plain_documents(text: &str) -> Vec<String> {
    let mut documents = Vec::new();
    let mut current = String::new();
    for paragraph in text.split_inclusive("\n\n") {
        current.push_str(paragraph);
        if current.len() >= PLAIN_DOCUMENT_BYTES {
            documents.push(std::mem::take(&mut current));
        }
    }
    if !current.trim().is_empty() {
        documents.push(current);
    }
    documents
}

impl Documents for Source {
    fn len(&self, split: Split) -> u64 {
        match split {
            Split::Train => self.train.len() as u64,
            Split::Test => self.test.len() as u64,
        }
    }

    fn is_procedural(&self) -> bool {
        false
    }

    fn document(&self, split: Split, index: u64) -> Result<Document, Error> {
        let documents = match split {
            Split::Train => &self.train,
            Split::Test => &self.test,
        };
        let text = documents
            .get(index as usize)
            .ok_or_else(|| Error::Data(format!("no document {index} in {split:?}")))?;
        Ok(Document::Text(text.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_is_cut_at_blank_lines_and_nothing_is_lost() {
        let text = "one two three\n\n".repeat(1000);
        let documents = plain_documents(&text);
        assert!(documents.len() > 2);
        assert!(documents.iter().all(|it| it.ends_with("\n\n")));
        assert_eq!(documents.concat(), text);
    }
}
