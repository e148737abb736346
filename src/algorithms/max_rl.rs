//! MaxRL: maximum likelihood through reinforcement learning (Tajwar et al. 2026, arXiv:2602.02710).
//!
//! Credit:  A_i = (r_i - mean r) / mean r, 0 where the mean is not above 0: hard tasks weigh more,
//!          as they do in the gradient of log P(right), of which this is an estimate.
//! Loss:    mean over tokens of -A log pi.
//!
//! SkyRL adds 1e-6 to the mean, so that a group with mean 0 and rewards of both signs blows up.

use serde::{Deserialize, Serialize};

use super::terms::baseline::{Baseline, GroupCredit, Normalise};
use super::terms::policy_loss::PolicyLoss;
use super::terms::surrogate::Surrogate;
use super::{Algorithm, AlgorithmConfig, Credit};
use tallow_verifiers::ConfigFault;

/// MaxRL has no settings of its own.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaxRlConfig {}

impl AlgorithmConfig for MaxRlConfig {
    const NAME: &'static str = "max_rl";
    const SUMMARY: &'static str =
        "REINFORCE with credit over the group's mean: likelihood of being right";

    fn build(&self) -> Result<Algorithm, ConfigFault> {
        let rule =
            GroupCredit { epsilon: 0.0, ..GroupCredit::new(Baseline::GroupMean, Normalise::Mean) };
        let loss = PolicyLoss::new(Surrogate::Reinforce);
        Ok(Algorithm::new(Self::NAME, Credit::Group { rule, whitening: None }, loss))
    }
}
