//! Phases of training. Each takes the policy the one before left and leaves a better one, or a
//! scorer beside it.
//!
//! Read [`rl`] first: it is the program's main loop.

pub mod dpo;
pub mod eval;
pub mod next_token;
pub mod pair_loop;
pub mod pretrain;
pub mod reward_model;
pub mod rl;
pub mod sft;
pub mod tokenizer;

use serde_json::Value;

use crate::config::StageContext;
use crate::config::document::Table;
use crate::config::problem::Problems;
use crate::error::Error;
use crate::learner::memory::Demand;
use crate::model::{ModelSettings, ModelState};
use crate::run::StageRun;

/// One phase of training.
pub trait Stage: Send + Sync {
    /// The kind configs use.
    fn kind(&self) -> &'static str;

    /// Its settings with every default filled in.
    fn resolved(&self) -> Value;

    /// What follows from the settings, as rows of name and value: prompts, replies and tokens a
    /// step, updates, and what else people get wrong.
    fn derived(&self, model: &ModelSettings) -> Vec<(String, String)>;

    /// Where its tasks come from, for the record; `None` if its settings and the seed say it all.
    fn provenance(&self) -> Option<Value> {
        None
    }

    /// Whether what it leaves is the policy that the next stage goes on from; otherwise it leaves a
    /// scorer, and the next stage goes on from the policy that came into this one.
    fn leaves_policy(&self) -> bool {
        true
    }

    /// What it asks of memory; `None` if next to nothing.
    fn demand(&self, model: &ModelSettings) -> Option<Demand>;

    /// Runs it, going on from its newest checkpoint if it was stopped before.
    ///
    /// # Errors
    /// See [`Error`]; what was checkpointed stays.
    fn run(&self, start: ModelState, run: &mut StageRun<'_>) -> Result<ModelState, Error>;
}

/// A row of the table of stages.
pub struct StageEntry {
    /// The kind configs use.
    pub name: &'static str,
    /// One line for `tallow list`.
    pub summary: &'static str,
    /// Reads the stage's table; problems are collected.
    pub read: fn(&mut Table, &StageContext<'_>, &mut Problems) -> Option<Box<dyn Stage>>,
    /// The settings with their defaults.
    pub default_options: fn() -> Value,
}

/// Every stage, in the order of a model's life.
pub const BUILTIN: &[StageEntry] = &[
    tokenizer::ENTRY,
    pretrain::ENTRY,
    sft::ENTRY,
    dpo::ENTRY,
    reward_model::ENTRY,
    rl::ENTRY,
    eval::ENTRY,
];
