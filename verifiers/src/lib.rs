//! Judges of replies.
//!
//! A [`Verifier`] reads a finished [`Transcript`] and the task's [`Reference`] and returns a
//! [`Verdict`]. Text in, text out: no tensors, no token ids, and no reward shaping beyond what the
//! verdict states. A wrong answer is data; only a broken checker is an error ([`VerifyError`]).
//!
//! Reading order: `transcript.rs`, `verifier.rs`, `exact.rs` (the smallest verifier whole), then
//! `contract.rs` (what every verifier must satisfy). `README.md` shows how to write one.

#![forbid(unsafe_code)]

pub mod transcript;
pub mod verifier;

pub mod error;

pub mod config_fault;
pub mod registry;

pub mod attack;
pub mod contract;

pub mod answer_span;
mod endpoint;
mod exchange;
pub mod expression;
pub mod number;
pub mod stated_answers;

#[cfg(feature = "sandbox")]
pub mod code;
pub mod countdown;
pub mod courtesy;
pub mod exact;
pub mod format;
pub mod http;
pub mod judge;
pub mod math;
pub mod numeric;
#[cfg(feature = "sandbox")]
pub mod plugin;
pub mod process;
pub mod reward_model;
pub mod rubric;

pub use config_fault::ConfigFault;
pub use error::VerifyError;
pub use registry::{ContractCase, VerifierConfig, VerifierEntry, Verifiers};
pub use transcript::{Message, Role, StopReason, Transcript};
pub use verifier::{
    Outcome, Preparation, Reference, ReferenceKind, ScorerLoader, TestCase, TextScorer, Verdict,
    Verifier,
};

/// Every built-in verifier, alphabetical. `tallow list` prints this; the contract test runs over it.
pub const BUILTIN: &[VerifierEntry] = &[
    VerifierEntry::of::<countdown::CountdownConfig>(),
    VerifierEntry::of::<courtesy::CourtesyConfig>(),
    VerifierEntry::of::<exact::ExactConfig>(),
    VerifierEntry::of::<format::FormatConfig>(),
    VerifierEntry::of::<http::HttpConfig>(),
    VerifierEntry::of::<judge::JudgeConfig>(),
    VerifierEntry::of::<math::MathConfig>(),
    VerifierEntry::of::<numeric::NumericConfig>(),
    #[cfg(feature = "sandbox")]
    VerifierEntry::of::<plugin::PluginConfig>(),
    VerifierEntry::of::<process::ProcessConfig>(),
    #[cfg(feature = "sandbox")]
    VerifierEntry::of::<code::PythonConfig>(),
    VerifierEntry::of::<reward_model::RewardModelConfig>(),
    VerifierEntry::of::<rubric::RubricConfig>(),
];

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
