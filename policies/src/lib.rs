//! Language models that sample and learn with one forward pass.
//!
//! A [`Decoder`] is a Llama-like transformer over packed rows: every activation is
//! `(tokens, features)`, sequences laid end to end, no padding anywhere. Learning calls
//! [`Decoder::forward`], [`Decoder::score`] and [`Decoder::backward`] on a [`Pass`]; sampling
//! calls [`Inference::extend`] over a [`KvCache`]. Both run the same layers and differ only in
//! where attention finds its keys and values. A [`ScalarModel`] is the same trunk below a head of
//! one value: a reward model or a critic.
//!
//! Axes, everywhere in this crate: `tokens` (all rows of a packed batch), `hidden` (width
//! of the residual stream), `heads`, `kv_heads`, `head_dim`, `intermediate` (width of the
//! feed-forward block), `vocab`, `layers`, `slots` (rows of the key-value cache).

#![deny(unsafe_code)]

mod checkpoint;
pub mod contract;
mod decoder;
pub mod engine;
mod error;
mod gguf;
pub mod gpu;
mod inference;
mod kv_cache;
mod layer;
pub mod lora;
mod model_config;
pub mod models;
pub mod ops;
pub mod optimizer;
pub mod packed;
mod parameters;
mod pass;
mod process;
pub mod rope_scaling;
pub mod sampling;
mod scalar_model;
pub mod tokenizer;

pub use checkpoint::holds_model;
pub use decoder::{CacheSpan, Decoder, ScoreGradients, TokenScores};
pub use engine::Engine;
pub use error::PolicyError;
pub use inference::{Hidden, Inference};
pub use kv_cache::KvCache;
pub use lora::{Adapters, LoraConfig};
pub use model_config::{ModelConfig, Sizes, TokenIds};
pub use optimizer::{
    AdamW, AdamWConfig, DecayTargets, GradientSet, Schedule, ScheduleShape, StepReport,
};
pub use packed::PackedSequences;
pub use parameters::{InitOptions, Parameters};
pub use pass::{Keep, Pass};
pub use process::prepare_process;
pub use rope_scaling::RopeScaling;
pub use sampling::{Completion, FinishReason, PolicyVersion, Request, SamplingParams};
pub use scalar_model::{HeadInit, ScalarHead, ScalarModel};
pub use tokenizer::Tokenizer;

/// The index of a vocabulary entry.
pub type TokenId = u32;
