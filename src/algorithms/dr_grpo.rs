//! Dr. GRPO: GRPO done right (Liu et al. 2025, arXiv:2503.20783, section 3.1).
//!
//! Credit:  A_i = r_i - mean r. No division: it favours tasks that are nearly solved or hopeless.
//! Loss:    sum over tokens of the clipped surrogate / (N L), with L = `max_tokens`. No division by
//!          the reply's own length: it favours long wrong replies.
//!
//! Where the peers disagree: L is the configured longest reply (TRL, SkyRL), never the width of the
//! batch (verl's default); the sum is divided by the number of replies (verl does not).

use serde::{Deserialize, Serialize};

use super::grpo::clipped;
use super::terms::aggregation::Aggregation;
use super::terms::baseline::{Baseline, GroupCredit, Normalise};
use super::{Algorithm, AlgorithmConfig, Credit};
use tallow_verifiers::ConfigFault;

/// Dr. GRPO's own settings.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DrGrpoConfig {
    /// The ratio counts from `1 - clip_low`.
    pub clip_low: f64,
    /// The ratio counts to `1 + clip_high`.
    pub clip_high: f64,
}

impl Default for DrGrpoConfig {
    fn default() -> Self {
        Self { clip_low: 0.2, clip_high: 0.2 }
    }
}

impl AlgorithmConfig for DrGrpoConfig {
    const NAME: &'static str = "dr_grpo";
    const SUMMARY: &'static str = "GRPO without its biases to length and difficulty";

    fn build(&self) -> Result<Algorithm, ConfigFault> {
        let rule = GroupCredit::new(Baseline::GroupMean, Normalise::None);
        let loss = clipped(self.clip_low, self.clip_high)?.aggregated(Aggregation::ConstantLength);
        Ok(Algorithm::new(Self::NAME, Credit::Group { rule, whitening: None }, loss))
    }
}
