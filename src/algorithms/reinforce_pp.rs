//! REINFORCE++ and its baseline variant (Hu 2025, arXiv:2501.03262, sections 3.2 and 3.3).
//!
//! Credit:  the discounted return of each token, of the reward less 0.01 k1(pi_old || pi_ref) a
//!          token; whitened over all tokens of the step. Needs no groups.
//!          Baseline variant: r_i - mean r of the group, whitened over all tokens of the step.
//! Loss:    mean over tokens of PPO's clipped surrogate.
//!
//! Where the peers disagree: tool output between two turns neither ends a return (verl, SkyRL) nor
//! costs a discount (OpenRLHF), unless `masked` says so. Whitening has n - 1 and adds its epsilon to
//! the variance (verl, SkyRL); OpenRLHF has n and a floor. The paper's KL of the variant, k2 in the
//! loss, is off: `kl = { estimator = "k2" }`.

use serde::{Deserialize, Serialize};

use super::grpo::clipped;
use super::knobs::must_be_share;
use super::terms::baseline::{Baseline, GroupCredit, Normalise, Whitening};
use super::terms::kl::KlEstimator;
use super::terms::returns::MaskedReturn;
use super::{Algorithm, AlgorithmConfig, Credit, KlInReward, Reference, Shaping};
use tallow_verifiers::ConfigFault;

/// REINFORCE++'s own settings.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReinforcePpConfig {
    /// The ratio counts from `1 - clip_low`.
    pub clip_low: f64,
    /// The ratio counts to `1 + clip_high`.
    pub clip_high: f64,
    /// Discount of what comes later.
    pub gamma: f64,
    /// What tool output does to the returns before it.
    pub masked: MaskedReturn,
}

impl Default for ReinforcePpConfig {
    fn default() -> Self {
        Self { clip_low: 0.2, clip_high: 0.2, gamma: 1.0, masked: MaskedReturn::default() }
    }
}

impl AlgorithmConfig for ReinforcePpConfig {
    const NAME: &'static str = "reinforce_pp";
    const SUMMARY: &'static str = "REINFORCE++: token returns whitened over the step, no critic";

    fn build(&self) -> Result<Algorithm, ConfigFault> {
        must_be_share("gamma", self.gamma)?;
        let credit = Credit::Returns {
            gamma: self.gamma,
            masked: self.masked,
            whitening: Some(Whitening::default()),
        };
        let kl = KlInReward { weight: 0.01, estimator: KlEstimator::K1 };
        Ok(Algorithm {
            shaping: Shaping { kl: Some(kl), ..Shaping::default() },
            reference: Some(Reference::Start),
            ..Algorithm::new(Self::NAME, credit, clipped(self.clip_low, self.clip_high)?)
        })
    }
}

/// The settings of its baseline variant.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReinforcePpBaselineConfig {
    /// The ratio counts from `1 - clip_low`.
    pub clip_low: f64,
    /// The ratio counts to `1 + clip_high`.
    pub clip_high: f64,
}

impl Default for ReinforcePpBaselineConfig {
    fn default() -> Self {
        Self { clip_low: 0.2, clip_high: 0.2 }
    }
}

impl AlgorithmConfig for ReinforcePpBaselineConfig {
    const NAME: &'static str = "reinforce_pp_baseline";
    const SUMMARY: &'static str = "REINFORCE++ with the group's mean taken off before whitening";

    fn build(&self) -> Result<Algorithm, ConfigFault> {
        let rule = GroupCredit::new(Baseline::GroupMean, Normalise::None);
        let credit = Credit::Group { rule, whitening: Some(Whitening::default()) };
        Ok(Algorithm::new(Self::NAME, credit, clipped(self.clip_low, self.clip_high)?))
    }
}
