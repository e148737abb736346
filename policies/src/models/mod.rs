//! The families of decoders this crate can run: one file and one row of [`BUILTIN`] each.
//!
//! A family says what its published configuration leaves unsaid: which projections have a
//! bias, whether queries and keys are normalised. Everything else is in [`ModelConfig`].

mod llama;
mod qwen2;
mod qwen3;

use crate::error::PolicyError;
use crate::model_config::ModelConfig;

/// Every family, in the order of their publication.
pub const BUILTIN: &[Family] = &[llama::FAMILY, qwen2::FAMILY, qwen3::FAMILY];

/// What distinguishes one family of decoders from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub name: &'static str,
    /// The entry of `architectures` in `config.json`.
    pub architecture: &'static str,
    /// Which attention projections carry a bias.
    pub attention_bias: AttentionBias,
    /// Whether queries and keys are RMS-normalised over `head_dim` before rotation.
    pub query_key_norm: bool,
}

impl Family {
    /// The entry of `architectures` for the same trunk below a head of values in place of the
    /// language head, such as `Qwen2ForSequenceClassification`.
    pub fn classifier(&self) -> String {
        let base = self.architecture.trim_end_matches("ForCausalLM");
        format!("{base}{CLASSIFIER}")
    }
}

/// Whether a class of transformers is a [`Family::classifier`].
pub(crate) fn is_classifier(architecture: &str) -> bool {
    architecture.ends_with(CLASSIFIER)
}

const CLASSIFIER: &str = "ForSequenceClassification";

/// Which of the projections q, k, v and o add a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionBias {
    /// q, k and v, always.
    QueryKeyValue,
    /// All four, or none: the field `attention_bias` decides (absent: none).
    Configured,
}

/// The family of a configuration, by `model_type` (or, where that is empty, by architecture).
///
/// # Errors
/// If no row of [`BUILTIN`] matches; the message lists the rows.
pub fn family_of(config: &ModelConfig) -> Result<&'static Family, PolicyError> {
    family_named(&config.model_type, &config.architectures)
}

/// The same before the rest of the configuration has been read.
pub(crate) fn family_named(
    model_type: &str,
    architectures: &[String],
) -> Result<&'static Family, PolicyError> {
    let by_architecture =
        |family: &&Family| architectures.iter().any(|name| name == family.architecture);
    let found = if model_type.is_empty() {
        BUILTIN.iter().find(by_architecture)
    } else {
        BUILTIN.iter().find(|family| family.name == model_type)
    };
    found.ok_or_else(|| {
        let known: Vec<_> = BUILTIN.iter().map(|family| family.name).collect();
        PolicyError::config(format!(
            "model_type {model_type:?} (architectures {architectures:?}) is not a family of this \
             build, which knows {}",
            known.join(", ")
        ))
    })
}
