//! CISPO: clipped importance sampling weights (MiniMax-M1 2025, arXiv:2506.13585, eq. 4).
//!
//! Credit:  GRPO's.
//! Loss:    mean over tokens of -sg(min(r, 1 + clip_high)) A log pi: a clipped token keeps its
//!          gradient, only its weight is bounded.
//!
//! One name, three behaviours: the paper bounds from above only, as here and in TRL (whose
//! `epsilon_high` is the bound itself); verl bounds both sides (`clip_low`); SkyRL to [0, 5].

use serde::{Deserialize, Serialize};

use super::grpo::standardised;
use super::knobs::must_have_room;
use super::terms::policy_loss::{ClipRule, Measures, PolicyLoss};
use super::terms::surrogate::Surrogate;
use super::{Algorithm, AlgorithmConfig};
use tallow_verifiers::ConfigFault;

/// CISPO's own settings.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CispoConfig {
    /// The weight is at least `1 - clip_low`; absent: no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_low: Option<f64>,
    /// The weight is at most `1 + clip_high`.
    pub clip_high: f64,
}

impl Default for CispoConfig {
    fn default() -> Self {
        Self { clip_low: None, clip_high: 1.0 }
    }
}

impl AlgorithmConfig for CispoConfig {
    const NAME: &'static str = "cispo";
    const SUMMARY: &'static str = "REINFORCE with a bounded importance weight";

    fn build(&self) -> Result<Algorithm, ConfigFault> {
        must_have_room("clip_high", self.clip_high)?;
        if let Some(low) = self.clip_low {
            must_have_room("clip_low", low)?;
        }
        let loss = PolicyLoss {
            measures: Measures { clip_rule: ClipRule::Outside, ..Measures::default() },
            ..PolicyLoss::new(Surrogate::Cispo { low: self.clip_low, high: Some(self.clip_high) })
        };
        Ok(Algorithm::new(Self::NAME, standardised(), loss))
    }
}
