//! Expert iteration, or rejection sampling: sample, keep what is verified, imitate it, repeat
//! (Anthony et al. 2017, arXiv:1705.08439; STaR, arXiv:2203.14465; ReST-EM, arXiv:2312.06585).
//!
//! Credit:  1 for replies whose reward is at least `keep_from`; the others are left out.
//! Loss:    mean over tokens of -log pi: SFT on one's own right replies.
//!
//! `epochs` and `minibatches` of the stage say how long each batch is imitated before the next is
//! sampled. With one pass over each it is REINFORCE without a baseline on 0/1 rewards.

use serde::{Deserialize, Serialize};

use super::terms::policy_loss::PolicyLoss;
use super::terms::surrogate::Surrogate;
use super::{Algorithm, AlgorithmConfig, Credit};
use tallow_verifiers::ConfigFault;

/// Expert iteration's own settings.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExpertIterationConfig {
    /// Least reward of a reply that is imitated.
    pub keep_from: f64,
}

impl Default for ExpertIterationConfig {
    fn default() -> Self {
        Self { keep_from: 1.0 }
    }
}

impl AlgorithmConfig for ExpertIterationConfig {
    const NAME: &'static str = "expert_iteration";
    const SUMMARY: &'static str = "SFT on one's own verified replies, again and again";

    fn build(&self) -> Result<Algorithm, ConfigFault> {
        if !self.keep_from.is_finite() {
            return Err(ConfigFault::new("keep_from", "no reply would be kept")
                .found(self.keep_from)
                .expected("a reward, such as 1.0"));
        }
        let credit = Credit::Verified { at_least: self.keep_from };
        Ok(Algorithm::new(Self::NAME, credit, PolicyLoss::new(Surrogate::Reinforce)))
    }
}
