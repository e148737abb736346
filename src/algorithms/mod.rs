//! Policy-gradient methods: how rewards become credit, and credit a loss. One file each.
//!
//! Read [`grpo`] first. The parts that methods share stand once: [`clipped_surrogate`], [`kl`],
//! [`aggregation`].

pub mod aggregation;
pub mod clipped_surrogate;
pub mod contract;
pub mod grpo;
pub mod kl;

use candle_core::Tensor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tallow_verifiers::ConfigFault;
use tallow_verifiers::config_fault::read_options;

use crate::error::Error;
use aggregation::Aggregation;

/// A policy-gradient method.
///
/// # Contract (see [`contract::check_algorithm`])
/// - One credit per reply; equal rewards give equal credit.
/// - Raising one reply's reward never lowers that reply's credit.
/// - On fresh samples (ratio 1, penalties off) the gradient of a token's loss with respect to its
///   log-probability is minus its advantage.
/// - A token with advantage 0 on fresh samples has no gradient.
pub trait Algorithm: Send {
    /// Stable name: the key in configs.
    fn name(&self) -> &'static str;

    /// What must be there before this method can work.
    fn requires(&self) -> Requires;

    /// How token losses become one number.
    fn aggregation(&self) -> Aggregation;

    /// Credit of each reply of one group, from the group's rewards; every sampled token of the
    /// reply receives it.
    fn assign_credit(&self, rewards: &[f32]) -> Vec<f32>;

    /// Loss of each token, with gradient.
    ///
    /// # Errors
    /// If the tensors' shapes disagree.
    fn loss(&self, inputs: &LossInputs<'_>) -> Result<TokenLoss, Error>;
}

/// What an algorithm needs around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requires {
    /// Log-probabilities under the policy the stage started from.
    pub reference: bool,
    /// Fewest replies of one task that credit can be assigned to.
    pub smallest_group: usize,
}

/// Everything a loss may look at. All tensors are f32 `(tokens)`: the sampled tokens of a
/// micro-batch end to end, nothing else.
#[derive(Clone, Copy)]
pub struct LossInputs<'a> {
    /// log pi_theta(token), nats; carries gradient.
    pub logprobs: &'a Tensor,
    /// log pi_old(token), nats, recorded when the token was sampled.
    pub behavior_logprobs: &'a Tensor,
    /// log pi_ref(token), nats, if [`Requires::reference`].
    pub reference_logprobs: Option<&'a Tensor>,
    /// Credit of each token.
    pub advantages: &'a Tensor,
}

/// What an algorithm makes of a micro-batch.
pub struct TokenLoss {
    /// Loss of each token, `(tokens)`, with gradient; the learner weighs and sums it.
    pub losses: Tensor,
    /// Metric names and their sums over the tokens; the learner divides by the update's tokens.
    pub sums: Vec<(&'static str, f64)>,
}

/// Configuration of an algorithm; its struct stands in the algorithm's file.
pub trait AlgorithmConfig: DeserializeOwned + Serialize + Default {
    /// The name configs use.
    const NAME: &'static str;
    /// One line for `tallow list`.
    const SUMMARY: &'static str;

    /// The algorithm, or what is wrong with its settings.
    ///
    /// # Errors
    /// If a value is out of its range.
    fn build(&self) -> Result<Box<dyn Algorithm>, ConfigFault>;
}

/// A row of the table of algorithms.
#[derive(Clone, Copy)]
pub struct AlgorithmEntry {
    /// The name configs use.
    pub name: &'static str,
    /// One line for `tallow list`.
    pub summary: &'static str,
    /// Builds from options; unknown keys are faults.
    pub build: fn(serde_json::Value) -> Result<Box<dyn Algorithm>, ConfigFault>,
    /// The options with their defaults.
    pub default_options: fn() -> serde_json::Value,
}

impl AlgorithmEntry {
    /// The row of one algorithm.
    pub const fn of<C: AlgorithmConfig>() -> Self {
        Self {
            name: C::NAME,
            summary: C::SUMMARY,
            build: |options| read_options::<C>(options)?.build(),
            default_options: || {
                serde_json::to_value(C::default()).expect("a config struct is plain data")
            },
        }
    }
}

/// Every built-in algorithm, alphabetical.
pub const BUILTIN: &[AlgorithmEntry] = &[AlgorithmEntry::of::<grpo::GrpoConfig>()];
