//! Reward models for the verifier `reward_model`: where its text meets a [`ScalarModel`].
//!
//! A conversation is rendered as the stage `reward_model` renders its pairs, and scored where
//! transformers scores it: see [`crate::learner::reward`].

use std::path::Path;
use std::sync::Arc;

use tallow_policies::{ScalarModel, TokenId, Tokenizer, holds_model};
use tallow_verifiers::{ScorerLoader, TextScorer, Transcript, VerifyError};

use crate::chat_template::TemplateOptions;
use crate::error::Error;
use crate::learner::reward;
use crate::renderer::Renderer;

/// Tokens in one forward pass; bounds memory, changes no score.
const TOKENS_AT_ONCE: usize = 8192;

/// Loads reward models from folders in the layout of transformers' sequence classification.
#[derive(Clone, Debug, Default)]
pub struct FolderScorers {
    options: TemplateOptions,
}

impl FolderScorers {
    /// A loader whose models' chat templates see `options` in every conversation.
    pub fn with_options(options: TemplateOptions) -> Self {
        Self { options }
    }
}

impl ScorerLoader for FolderScorers {
    fn check(&self, model: &Path) -> Result<(), String> {
        if !holds_model(model) {
            return Err("no reward model there: it has no config.json".to_owned());
        }
        if !model.join("tokenizer.json").is_file() {
            return Err("it has no tokenizer.json to read text with".to_owned());
        }
        Ok(())
    }

    fn load(&self, model: &Path) -> Result<Arc<dyn TextScorer>, String> {
        let scorer = RewardScorer::from_folder(model, &self.options).map_err(|e| e.to_string())?;
        Ok(Arc::new(scorer))
    }
}

/// A reward model with the renderer of its folder's tokenizer.
pub struct RewardScorer {
    model: ScalarModel,
    renderer: Renderer,
}

impl RewardScorer {
    /// Loads a folder.
    ///
    /// # Errors
    /// If a file is missing or damaged, or the tokenizer does not fit the model.
    pub fn from_folder(folder: &Path, options: &TemplateOptions) -> Result<Self, Error> {
        let tokenizer = Arc::new(Tokenizer::from_folder(folder)?);
        let model = ScalarModel::from_folder(folder)?;
        let (rows, ids) = (model.config().vocab_size, tokenizer.vocabulary_size());
        if rows < ids {
            return Err(Error::Data(format!(
                "{}: the model embeds {rows} tokens (vocab_size) but its tokenizer has ids up to {}",
                folder.display(),
                ids - 1
            )));
        }
        Ok(Self { model, renderer: Renderer::with_options(tokenizer, options.clone())? })
    }

    /// The model.
    pub fn model(&self) -> &ScalarModel {
        &self.model
    }

    /// The ids of a conversation, as the model reads them.
    ///
    /// # Errors
    /// If the template or the tokenizer refuses the messages.
    pub fn ids(&self, transcript: &Transcript) -> Result<Vec<TokenId>, Error> {
        Ok(self.renderer.conversation(&transcript.messages)?.tokens)
    }

    fn scores(&self, transcripts: &[Transcript]) -> Result<Vec<f32>, Error> {
        let texts: Vec<Vec<TokenId>> =
            transcripts.iter().map(|it| self.ids(it)).collect::<Result<_, _>>()?;
        reward::scores(&self.model, &texts, TOKENS_AT_ONCE)
    }
}

impl TextScorer for RewardScorer {
    fn score(&self, transcripts: &[Transcript]) -> Result<Vec<f32>, VerifyError> {
        self.scores(transcripts).map_err(|error| VerifyError::Broken {
            verifier: "reward_model".to_owned(),
            problem: error.to_string(),
        })
    }
}
