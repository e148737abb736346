//! Group-relative policy optimisation (Shao et al. 2024, arXiv:2402.03300, eq. 3 and 4).
//!
//! Credit:  A_i = (r_i - mean r) / (std r + 1e-6), the same for every token of reply i.
//! Loss:    (1/N) sum_i (1/|o_i|) sum_t [clipped surrogate + 0.04 k3(pi_theta || pi_ref)].
//!
//! Where the peers disagree: the standard deviation has n - 1 below it, as in all of them; epsilon is
//! verl's. A reply without siblings gets 0 (TRL), not its reward (verl, SkyRL). TRL and verl leave the
//! KL out (`kl = { weight = 0.0 }`) and average over tokens (`aggregation = "token_mean"`).

use serde::{Deserialize, Serialize};

use super::knobs::must_have_room;
use super::terms::aggregation::Aggregation;
use super::terms::baseline::{Baseline, GroupCredit, Normalise};
use super::terms::kl::{KlClamps, KlEstimator, KlPenalty};
use super::terms::policy_loss::PolicyLoss;
use super::terms::surrogate::Surrogate;
use super::{Algorithm, AlgorithmConfig, Credit, Reference};
use tallow_verifiers::ConfigFault;

/// GRPO's own settings.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrpoConfig {
    /// The ratio counts from `1 - clip_low`. 0.2 scored best in arXiv:1707.06347, table 1.
    pub clip_low: f64,
    /// The ratio counts to `1 + clip_high`; larger than `clip_low` is DAPO's clip-higher.
    pub clip_high: f64,
}

impl Default for GrpoConfig {
    fn default() -> Self {
        Self { clip_low: 0.2, clip_high: 0.2 }
    }
}

impl AlgorithmConfig for GrpoConfig {
    const NAME: &'static str = "grpo";
    const SUMMARY: &'static str = "group-relative policy optimisation";

    fn build(&self) -> Result<Algorithm, ConfigFault> {
        let loss = PolicyLoss {
            kl: Some(KlPenalty {
                weight: 0.04,
                estimator: KlEstimator::K3,
                clamps: KlClamps::USUAL,
                times_ratio: false,
                aggregation: None,
            }),
            ..clipped(self.clip_low, self.clip_high)?.aggregated(Aggregation::SequenceMean)
        };
        Ok(Algorithm {
            reference: Some(Reference::Start),
            ..Algorithm::new(Self::NAME, standardised(), loss)
        })
    }
}

/// GRPO's credit: the reward standardised within its group.
pub fn standardised() -> Credit {
    let rule = GroupCredit::new(Baseline::GroupMean, Normalise::Group);
    Credit::Group { rule, whitening: None }
}

/// PPO's clipped surrogate with its bounds checked; nothing besides.
///
/// # Errors
/// If a bound leaves the ratio no room.
pub fn clipped(low: f64, high: f64) -> Result<PolicyLoss, ConfigFault> {
    must_have_room("clip_low", low)?;
    must_have_room("clip_high", high)?;
    Ok(PolicyLoss::new(Surrogate::Clip { low: Some(low), high: Some(high), dual: None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_clips_are_refused() {
        let fault = GrpoConfig { clip_low: -0.1, ..Default::default() }.build().err();
        assert_eq!(fault.map(|it| it.key), Some("clip_low".to_string()));
    }
}
