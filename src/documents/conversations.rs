//! Conversations from JSONL: `{"messages": [{"role", "content"}]}` or `{"prompt", "completion"}`;
//! field names can be mapped, so that a dataset of questions and worked answers serves as it is.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tallow_envs::Split;
use tallow_verifiers::config_fault::read_options;
use tallow_verifiers::{ConfigFault, Message, Role};

use super::{
    Document, Documents, SourceContext, read_jsonl, require_path, require_share, resolve, split_of,
};

/// Settings of the source `conversations`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Conversations {
    /// The JSONL file, which may be packed with gzip or zstd.
    pub path: String,
    /// Field with the messages; lines without it must have the next two.
    pub messages: String,
    /// Field with the prompt.
    pub prompt: String,
    /// Field with the reply.
    pub completion: String,
    /// Share of the conversations held out for evaluation.
    pub held_out: f64,
}

impl Default for Conversations {
    fn default() -> Self {
        Self {
            path: String::new(),
            messages: "messages".into(),
            prompt: "prompt".into(),
            completion: "completion".into(),
            held_out: 0.05,
        }
    }
}

struct Source {
    train: Vec<Vec<Message>>,
    test: Vec<Vec<Message>>,
}

/// Builds the source; reads the file.
///
/// # Errors
/// If the file is missing or a line holds no conversation with a reply.
pub fn build(
    options: Value,
    context: &SourceContext<'_>,
) -> Result<Arc<dyn Documents>, ConfigFault> {
    let config: Conversations = read_options(options)?;
    require_path(&config.path)?;
    require_share(config.held_out)?;
    let path = resolve(&config.path, context.folder);
    let rows = read_jsonl(&path).map_err(|e| ConfigFault::new("path", e.to_string()))?;
    let mut source = Source { train: Vec::new(), test: Vec::new() };
    for (index, (line, row)) in rows.iter().enumerate() {
        let messages = conversation(row, &config).map_err(|problem| {
            ConfigFault::new("path", format!("{}:{line}: {problem}", path.display()))
        })?;
        match split_of(context.seed, index as u64, config.held_out) {
            Split::Train => source.train.push(messages),
            Split::Test => source.test.push(messages),
        }
    }
    if source.train.is_empty() {
        return Err(ConfigFault::new("path", "no conversation to train on").found(&config.path));
    }
    Ok(Arc::new(source))
}

fn conversation(row: &Map<String, Value>, config: &Conversations) -> Result<Vec<Message>, String> {
    let messages = if let Some(messages) = row.get(&config.messages) {
        serde_json::from_value::<Vec<Message>>(messages.clone())
            .map_err(|e| format!("field `{}`: {e}", config.messages))?
    } else {
        let text = |field: &str| {
            row.get(field).and_then(Value::as_str).ok_or_else(|| {
                let fields: Vec<&str> = row.keys().map(String::as_str).collect();
                format!(
                    "neither `{}` nor a text field `{field}`; the line has {}",
                    config.messages,
                    fields.join(", ")
                )
            })
        };
        vec![Message::user(text(&config.prompt)?), Message::assistant(text(&config.completion)?)]
    };
    if messages.iter().any(|it| it.role == Role::Assistant) {
        Ok(messages)
    } else {
        Err("no message of the assistant to learn from".into())
    }
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

    fn document(&self, split: Split, index: u64) -> Result<Document, crate::error::Error> {
        let conversations = match split {
            Split::Train => &self.train,
            Split::Test => &self.test,
        };
        let messages = conversations.get(index as usize).ok_or_else(|| {
            crate::error::Error::Data(format!("no conversation {index} in {split:?}"))
        })?;
        Ok(Document::Conversation(messages.clone()))
    }
}
