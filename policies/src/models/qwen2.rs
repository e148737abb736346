//! Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv:2407.10671).
//!
//! Bias on q, k and v, never on o.

use super::{AttentionBias, Family};

pub(super) const FAMILY: Family = Family {
    name: "qwen2",
    architecture: "Qwen2ForCausalLM",
    attention_bias: AttentionBias::QueryKeyValue,
    query_key_norm: false,
};
