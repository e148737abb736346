//! IcePop: importance weights that are dropped, not clipped, where sampler and learner have come too
//! far apart (Ling team 2025, arXiv:2510.18855, section 3).
//!
//! Credit:  GRPO's.
//! Loss:    mean over tokens of -sg(r) A log pi where 1 - low < r < 1 + high, else nothing, with r
//!          against the policy that sampled. The paper's range is 0.5 to 5.

use serde::{Deserialize, Serialize};

use super::grpo::standardised;
use super::knobs::must_have_room;
use super::terms::policy_loss::{Anchor, ClipRule, Measures, PolicyLoss};
use super::terms::surrogate::Surrogate;
use super::{Algorithm, AlgorithmConfig};
use tallow_verifiers::ConfigFault;

/// IcePop's own settings.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct IcePopConfig {
    /// Tokens learn whose weight is above `1 - clip_low`.
    pub clip_low: f64,
    /// Tokens learn whose weight is below `1 + clip_high`.
    pub clip_high: f64,
}

impl Default for IcePopConfig {
    fn default() -> Self {
        Self { clip_low: 0.5, clip_high: 4.0 }
    }
}

impl AlgorithmConfig for IcePopConfig {
    const NAME: &'static str = "icepop";
    const SUMMARY: &'static str = "REINFORCE with importance weights, none outside a range";

    fn build(&self) -> Result<Algorithm, ConfigFault> {
        must_have_room("clip_low", self.clip_low)?;
        must_have_room("clip_high", self.clip_high)?;
        let surrogate = Surrogate::HardZero { low: self.clip_low, high: self.clip_high };
        let loss = PolicyLoss {
            anchor: Anchor::Sampler,
            measures: Measures { clip_rule: ClipRule::Outside, ..Measures::default() },
            ..PolicyLoss::new(surrogate)
        };
        Ok(Algorithm::new(Self::NAME, standardised(), loss))
    }
}
