//! GMPO: geometric-mean policy optimisation (Zhao et al. 2025, arXiv:2507.20673, eq. 4).
//!
//! Credit:  GRPO's.
//! Loss:    mean over replies of -A exp(mean of log r), each log r clipped to [-0.4, 0.4] on the side
//!          that A pushes to: one stray token moves a geometric mean little.

use serde::{Deserialize, Serialize};

use super::grpo::standardised;
use super::knobs::must_have_room;
use super::terms::aggregation::Aggregation;
use super::terms::policy_loss::{ClipRule, Measures, PolicyLoss};
use super::terms::surrogate::Surrogate;
use super::{Algorithm, AlgorithmConfig};
use tallow_verifiers::ConfigFault;

/// GMPO's own settings.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct GmpoConfig {
    /// A token's log ratio counts from `-clip_low`.
    pub clip_low: f64,
    /// A token's log ratio counts to `clip_high`.
    pub clip_high: f64,
}

impl Default for GmpoConfig {
    fn default() -> Self {
        Self { clip_low: 0.4, clip_high: 0.4 }
    }
}

impl AlgorithmConfig for GmpoConfig {
    const NAME: &'static str = "gmpo";
    const SUMMARY: &'static str = "GRPO with the geometric mean of clipped token ratios";

    fn build(&self) -> Result<Algorithm, ConfigFault> {
        must_have_room("clip_low", self.clip_low)?;
        must_have_room("clip_high", self.clip_high)?;
        let surrogate = Surrogate::Gmpo { low: self.clip_low, high: self.clip_high };
        let rule = ClipRule::LogRatioOutsideByAdvantageSign;
        let loss = PolicyLoss {
            measures: Measures { clip_rule: rule, ..Measures::default() },
            ..PolicyLoss::new(surrogate).aggregated(Aggregation::SequenceSum)
        };
        Ok(Algorithm::new(Self::NAME, standardised(), loss))
    }
}
