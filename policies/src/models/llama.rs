//! Llama and its many relatives (Touvron et al. 2023, arXiv:2302.13971), SmolLM2 among them.
//!
//! No bias, unless `attention_bias` asks for it on q, k, v and o.

use super::{AttentionBias, Family};

pub(super) const FAMILY: Family = Family {
    name: "llama",
    architecture: "LlamaForCausalLM",
    attention_bias: AttentionBias::Configured,
    query_key_norm: false,
};
