//! Qwen3, dense models (Yang et al. 2025, arXiv:2505.09388).
//!
//! No bias by default; queries and keys are RMS-normalised head by head before rotation.

use super::{AttentionBias, Family};

pub(super) const FAMILY: Family = Family {
    name: "qwen3",
    architecture: "Qwen3ForCausalLM",
    attention_bias: AttentionBias::Configured,
    query_key_norm: true,
};
