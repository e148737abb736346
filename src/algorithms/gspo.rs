//! Group sequence policy optimisation (Zheng et al. 2025, arXiv:2507.18071, eq. 5 to 7).
//!
//! Credit:  GRPO's.
//! Loss:    mean over replies of max(-A s, -A clip(s, 1 - 3e-4, 1 + 4e-4)), with the reply's ratio
//!          s = (pi_theta(o) / pi_old(o))^(1/|o|) = exp(mean of log r).
//!
//! log s is capped at 10, as in verl; verl writes the same gradient as a token loss with
//! stop-gradients.

use serde::{Deserialize, Serialize};

use super::grpo::{clipped, standardised};
use super::terms::aggregation::Aggregation;
use super::terms::policy_loss::{PolicyLoss, RatioLevel};
use super::{Algorithm, AlgorithmConfig};
use tallow_verifiers::ConfigFault;

/// GSPO's own settings.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct GspoConfig {
    /// The reply's ratio counts from `1 - clip_low`: a mean over tokens moves far less than one.
    pub clip_low: f64,
    /// The reply's ratio counts to `1 + clip_high`.
    pub clip_high: f64,
}

impl Default for GspoConfig {
    fn default() -> Self {
        Self { clip_low: 3e-4, clip_high: 4e-4 }
    }
}

impl AlgorithmConfig for GspoConfig {
    const NAME: &'static str = "gspo";
    const SUMMARY: &'static str = "GRPO with one importance ratio a reply";

    fn build(&self) -> Result<Algorithm, ConfigFault> {
        let loss = PolicyLoss {
            ratio_level: RatioLevel::Sequence,
            log_ratio_bounds: (None, Some(10.0)),
            ..clipped(self.clip_low, self.clip_high)?.aggregated(Aggregation::SequenceMean)
        };
        Ok(Algorithm::new(Self::NAME, standardised(), loss))
    }
}
