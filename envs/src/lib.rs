//! Sources of verifiable tasks.
//!
//! An [`Environment`] gives tasks by split and index, plays them as [`Episode`]s, and can write
//! right replies in several styles, from which pretraining and SFT documents are made. Text only:
//! no tensors, no token ids, no rewards; judging is the verifier's work.
//!
//! Reading order: `task.rs`, `environment.rs`, `digit_sum.rs` (the smallest environment whole),
//! then `contract.rs` (what every environment must satisfy). `README.md` shows how to write one.

#![forbid(unsafe_code)]

pub mod environment;
pub mod task;

pub mod error;
pub mod registry;

pub mod contract;

pub mod procedural;

pub mod arithmetic;
pub mod calculator;
#[cfg(feature = "sandbox")]
pub mod code_puzzles;
pub mod countdown;
pub mod courtesy;
pub mod digit_sum;
pub mod jsonl;
pub mod letter_count;
pub mod multiplication;
pub mod parity;
#[cfg(feature = "sandbox")]
pub mod plugin;
#[cfg(feature = "sandbox")]
pub mod python_tool;

pub use environment::{Environment, Episode, SingleTurn, Step};
pub use error::EnvError;
pub use registry::{BuildContext, EnvConfig, EnvEntry, Environments};
pub use tallow_verifiers::{
    ConfigFault, Message, Reference, ReferenceKind, Role, StopReason, TestCase, Transcript,
};
pub use task::{Seed, Split, Task, TaskId};

/// Every built-in environment, alphabetical. `tallow list` prints this; the contract test runs
/// over it.
pub const BUILTIN: &[EnvEntry] = &[
    EnvEntry::of::<arithmetic::ArithmeticConfig>(),
    EnvEntry::of::<calculator::CalculatorConfig>(),
    #[cfg(feature = "sandbox")]
    EnvEntry::of::<code_puzzles::CodePuzzlesConfig>(),
    EnvEntry::of::<countdown::CountdownConfig>(),
    EnvEntry::of::<courtesy::CourtesyConfig>(),
    EnvEntry::of::<digit_sum::DigitSumConfig>(),
    EnvEntry::of::<jsonl::JsonlConfig>(),
    EnvEntry::of::<letter_count::LetterCountConfig>(),
    EnvEntry::of::<multiplication::MultiplicationConfig>(),
    EnvEntry::of::<parity::ParityConfig>(),
    #[cfg(feature = "sandbox")]
    EnvEntry::of::<tallow_verifiers::plugin::PluginConfig>(),
    #[cfg(feature = "sandbox")]
    EnvEntry::of::<python_tool::PythonToolConfig>(),
];

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
