//! Makes the tokenizer that the later stages use: characters for tiny models, byte-level BPE for
//! text.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tallow_envs::Split;
use tallow_policies::Tokenizer;

use super::{Stage, StageEntry};
use crate::chat_template::CHATML;
use crate::config::StageContext;
use crate::config::document::Table;
use crate::config::problem::{Fault, Problems};
use crate::documents::{self, Documents, SourceContext};
use crate::error::Error;
use crate::learner::memory::Demand;
use crate::model::{ModelSettings, ModelState};
use crate::run::StageRun;

/// This stage's row.
pub const ENTRY: StageEntry = StageEntry {
    name: "tokenizer",
    summary: "train a tokenizer: characters, or byte-level BPE",
    read,
    default_options: || json!(TokenizerConfig::default()),
};

/// How text is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum TokenizerType {
    /// One token a character.
    Characters,
    /// Byte-level BPE.
    Bpe,
}

/// Settings of the stage `tokenizer`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct TokenizerConfig {
    /// `characters` or `bpe`.
    r#type: TokenizerType,
    /// Size of a BPE vocabulary, the 256 bytes and the special tokens included.
    vocabulary: usize,
    /// BPE: every digit is a token of its own.
    split_digits: bool,
    /// Give the tokenizer ChatML turns; without, a reply follows its prompt plainly.
    chat: bool,
    /// Documents to look at.
    sample: u64,
    /// Characters: an alphabet to hold besides those seen in the documents.
    alphabet: String,
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        Self {
            r#type: TokenizerType::Characters,
            vocabulary: 4096,
            split_digits: true,
            chat: false,
            sample: 2000,
            alphabet: String::new(),
        }
    }
}

struct TokenizerStage {
    config: TokenizerConfig,
    documents: Option<Arc<dyn Documents>>,
    documents_settings: Value,
}

fn read(
    table: &mut Table,
    context: &StageContext<'_>,
    problems: &mut Problems,
) -> Option<Box<dyn Stage>> {
    let documents_table = table.split("documents", problems);
    let config: Option<TokenizerConfig> = table.take(problems);
    let source = SourceContext {
        environments: &context.registry.environments,
        folder: context.folder,
        seed: context.seed,
    };
    let documents_settings = documents_table.as_ref().map_or(Value::Null, Table::to_json);
    let documents = match documents_table {
        Some(it) => Some(it.take_with(problems, |options| documents::build(options, &source))?),
        None => None,
    };
    let config = config?;
    if documents.is_none() && (config.alphabet.is_empty() || config.r#type == TokenizerType::Bpe) {
        problems.at(
            table,
            Fault::new("documents", "there is no text to make a tokenizer from")
                .expected("a table `documents`, or `alphabet` for a character tokenizer"),
        );
        return None;
    }
    Some(Box::new(TokenizerStage { config, documents, documents_settings }))
}

impl Stage for TokenizerStage {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn resolved(&self) -> Value {
        let mut settings = json!(self.config);
        settings["documents"] = self.documents_settings.clone();
        settings
    }

    fn derived(&self, _model: &ModelSettings) -> Vec<(String, String)> {
        Vec::new()
    }

    fn demand(&self, _model: &ModelSettings) -> Option<Demand> {
        None
    }

    fn run(&self, start: ModelState, run: &mut StageRun<'_>) -> Result<ModelState, Error> {
        let mut texts = vec![self.config.alphabet.clone()];
        if let Some(documents) = &self.documents {
            let count = documents.len(Split::Train).min(self.config.sample);
            let bar = run.bar(count, "documents");
            for index in 0..count {
                let document = documents.document(Split::Train, index)?;
                texts.extend(document.texts().into_iter().map(str::to_string));
                bar.advance(1);
            }
        }
        let template = self.config.chat.then_some(CHATML);
        let tokenizer = match self.config.r#type {
            TokenizerType::Characters => {
                Tokenizer::of_characters(texts.iter().map(String::as_str), template)?
            }
            TokenizerType::Bpe => Tokenizer::train_bpe(
                texts.iter(),
                self.config.vocabulary,
                self.config.split_digits,
                template,
            )?,
        };
        let bytes: usize = texts.iter().map(String::len).sum();
        let mut tokens = 0;
        for text in &texts {
            tokens += tokenizer.encode(text)?.len();
        }
        run.line(&format!(
            "{} tokens in the vocabulary, {:.2} bytes a token",
            tokenizer.vocabulary_size(),
            bytes as f64 / tokens.max(1) as f64
        ));
        Ok(ModelState {
            tokenizer: Some(Arc::new(tokenizer)),
            decoder: start.decoder,
            scorer: None,
        })
    }
}
