//! DPPO: a trust region in total variation instead of in ratio (Qi et al. 2026, arXiv:2602.04879).
//!
//! Credit:  r_i - mean r.
//! Loss:    mean over tokens of -A r + 1e-3 (log r)^2; the first term is dropped where the token's
//!          probability has already moved by 0.2 in the direction that A pushes to. A ratio clip
//!          stops unlikely tokens at once and likely ones hardly ever; this does neither.

use serde::{Deserialize, Serialize};

use super::knobs::must_have_room;
use super::terms::baseline::{Baseline, GroupCredit, Normalise};
use super::terms::policy_loss::{ClipRule, Measures, PolicyLoss};
use super::terms::surrogate::Surrogate;
use super::{Algorithm, AlgorithmConfig, Credit};
use tallow_verifiers::ConfigFault;

/// DPPO's own settings.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DppoConfig {
    /// Dropped where A < 0 and the probability fell by more.
    pub delta_low: f64,
    /// Dropped where A > 0 and the probability rose by more.
    pub delta_high: f64,
    /// Weight of the squared log ratio.
    pub squared_log_ratio: f64,
}

impl Default for DppoConfig {
    fn default() -> Self {
        Self { delta_low: 0.2, delta_high: 0.2, squared_log_ratio: 1e-3 }
    }
}

impl AlgorithmConfig for DppoConfig {
    const NAME: &'static str = "dppo";
    const SUMMARY: &'static str = "importance sampling inside a trust region of probabilities";

    fn build(&self) -> Result<Algorithm, ConfigFault> {
        must_have_room("delta_low", self.delta_low)?;
        must_have_room("delta_high", self.delta_high)?;
        let rule = GroupCredit::new(Baseline::GroupMean, Normalise::None);
        let surrogate = Surrogate::Dppo { delta_low: self.delta_low, delta_high: self.delta_high };
        let loss = PolicyLoss {
            squared_log_ratio: self.squared_log_ratio,
            measures: Measures { clip_rule: ClipRule::Dropped, ..Measures::default() },
            ..PolicyLoss::new(surrogate)
        };
        Ok(Algorithm::new(Self::NAME, Credit::Group { rule, whitening: None }, loss))
    }
}
