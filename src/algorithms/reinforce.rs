//! REINFORCE with a baseline (Williams 1992), the simplest correct method.
//!
//! Credit:  A_i = r_i - mean r of the group; r_i where `baseline = "none"`; with `"runner_up"` the best
//!          reply gets its lead over the second and the others nothing, which is the gradient of the
//!          best of k (Tang et al. 2025, arXiv:2503.19595).
//! Loss:    mean over tokens of -A log pi. No ratio: more than one optimizer step on a batch learns
//!          from samples of another policy without knowing it.

use serde::{Deserialize, Serialize};

use super::terms::baseline::{Baseline, GroupCredit, Normalise};
use super::terms::policy_loss::PolicyLoss;
use super::terms::surrogate::Surrogate;
use super::{Algorithm, AlgorithmConfig, Credit};
use tallow_verifiers::ConfigFault;

/// REINFORCE's own settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReinforceConfig {
    /// What is taken off a reward.
    pub baseline: ReinforceBaseline,
}

/// What REINFORCE takes off a reward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReinforceBaseline {
    /// The mean of the group.
    #[default]
    GroupMean,
    /// The second best reward, and only the best reply gets credit.
    RunnerUp,
    /// Nothing.
    None,
}

impl AlgorithmConfig for ReinforceConfig {
    const NAME: &'static str = "reinforce";
    const SUMMARY: &'static str = "policy gradient with the group's mean as baseline";

    fn build(&self) -> Result<Algorithm, ConfigFault> {
        let loss = PolicyLoss::new(Surrogate::Reinforce);
        let baseline = match self.baseline {
            ReinforceBaseline::GroupMean => Baseline::GroupMean,
            ReinforceBaseline::RunnerUp => Baseline::RunnerUp,
            ReinforceBaseline::None => Baseline::None,
        };
        let rule = GroupCredit::new(baseline, Normalise::None);
        let method = Algorithm::new(Self::NAME, Credit::Group { rule, whitening: None }, loss);
        let smallest_group = if baseline == Baseline::None { 1 } else { 2 };
        Ok(Algorithm { smallest_group, ..method })
    }
}
