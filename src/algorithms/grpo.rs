//! Group-relative policy optimisation (Shao et al. 2024, arXiv:2402.03300, section 4.1).
//!
//! Credit:  A_i = (r_i - mean r) / (std r + 1e-4), the same for every token of reply i.
//! Loss:    clipped surrogate + kl_weight * KL(pi_theta || pi_ref), aggregated over the update.
//!
//! Departs from the paper: no KL term unless `kl_weight` is set (as DAPO and Dr. GRPO found it
//! unneeded with verifiable rewards); the standard deviation has n - 1 below it, as in verl and
//! TRL. `aggregation = "sequence_mean"` is the paper's. Dr. GRPO (arXiv:2503.20783) is
//! `normalise = "center"` with `aggregation = "constant_length"`.

use serde::{Deserialize, Serialize};

use super::aggregation::Aggregation;
use super::clipped_surrogate::{clipped_surrogate, clipped_tokens};
use super::kl::KlEstimator;
use super::{Algorithm, AlgorithmConfig, LossInputs, Requires, TokenLoss};
use crate::error::Error;
use tallow_verifiers::ConfigFault;

/// Keeps a nearly constant group from dividing by zero; TRL's value, small against any real spread.
const STD_FLOOR: f32 = 1e-4;

/// Whether advantages are divided by the group's spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalise {
    /// (r - mean) / (std + 1e-4)
    Std,
    /// r - mean
    Center,
}

/// Every knob of GRPO.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrpoConfig {
    /// The ratio is held above `1 - clip_low`. 0.2 scored best in arXiv:1707.06347, table 1.
    pub clip_low: f64,
    /// The ratio is held below `1 + clip_high`; larger than `clip_low` is DAPO's clip-higher.
    pub clip_high: f64,
    /// Weight of the KL penalty to the policy the stage started from; 0 keeps no reference model.
    pub kl_weight: f64,
    /// Which estimator of that KL.
    pub kl_estimator: KlEstimator,
    /// Divide by the group's standard deviation, or only centre.
    pub normalise: Normalise,
    /// How token losses become one number.
    pub aggregation: Aggregation,
}

impl Default for GrpoConfig {
    fn default() -> Self {
        Self {
            clip_low: 0.2,
            clip_high: 0.2,
            kl_weight: 0.0,
            kl_estimator: KlEstimator::K3,
            normalise: Normalise::Std,
            aggregation: Aggregation::TokenMean,
        }
    }
}

impl AlgorithmConfig for GrpoConfig {
    const NAME: &'static str = "grpo";
    const SUMMARY: &'static str = "group-relative policy optimisation; Dr. GRPO as settings";

    fn build(&self) -> Result<Box<dyn Algorithm>, ConfigFault> {
        for (key, value) in [("clip_low", self.clip_low), ("clip_high", self.clip_high)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(ConfigFault::new(key, "the clip must leave the ratio room to move")
                    .found(value)
                    .expected("a number above 0, such as 0.2"));
            }
        }
        if !(self.kl_weight >= 0.0 && self.kl_weight.is_finite()) {
            return Err(ConfigFault::new(
                "kl_weight",
                "a negative KL weight rewards drifting away",
            )
            .found(self.kl_weight)
            .expected("0 or more"));
        }
        Ok(Box::new(Grpo { config: self.clone() }))
    }
}

struct Grpo {
    config: GrpoConfig,
}

impl Algorithm for Grpo {
    fn name(&self) -> &'static str {
        GrpoConfig::NAME
    }

    fn requires(&self) -> Requires {
        Requires { reference: self.config.kl_weight > 0.0, smallest_group: 2 }
    }

    fn aggregation(&self) -> Aggregation {
        self.config.aggregation
    }

    fn assign_credit(&self, rewards: &[f32]) -> Vec<f32> {
        let count = rewards.len() as f32;
        let mean = rewards.iter().sum::<f32>() / count;
        let centred = rewards.iter().map(|it| it - mean);
        match self.config.normalise {
            Normalise::Center => centred.collect(),
            Normalise::Std => {
                let squares: f32 = rewards.iter().map(|it| (it - mean).powi(2)).sum();
                let std = (squares / (count - 1.0).max(1.0)).sqrt();
                centred.map(|it| it / (std + STD_FLOOR)).collect()
            }
        }
    }

    fn loss(&self, inputs: &LossInputs<'_>) -> Result<TokenLoss, Error> {
        let GrpoConfig { clip_low, clip_high, kl_weight, kl_estimator, .. } = self.config;
        let LossInputs { logprobs, behavior_logprobs, advantages, .. } = *inputs;
        let mut losses =
            clipped_surrogate(logprobs, behavior_logprobs, advantages, clip_low, clip_high)?;
        let clipped = clipped_tokens(
            &logprobs.to_vec1::<f32>()?,
            &behavior_logprobs.to_vec1::<f32>()?,
            &advantages.to_vec1::<f32>()?,
            clip_low,
            clip_high,
        );
        let mut sums = vec![("learner/clipped_share", clipped as f64)];
        if let Some(reference) = inputs.reference_logprobs {
            let kl = kl_estimator.estimate(logprobs, reference)?;
            let total: f32 = kl.detach().sum_all()?.to_scalar()?;
            sums.push(("learner/kl_nats", f64::from(total)));
            losses = (losses + (kl * kl_weight)?)?;
        }
        Ok(TokenLoss { losses, sums })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_credit(config: &GrpoConfig, rewards: &[f32], want: &[f32]) {
        let got = config.build().expect("valid").assign_credit(rewards);
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 2e-3, "{rewards:?}: {got} instead of {want}");
        }
    }

    #[test]
    fn credit_is_the_standardised_reward() {
        let std = GrpoConfig::default();
        let half = std::f32::consts::FRAC_1_SQRT_2;
        check_credit(&std, &[1.0, 0.0], &[half, -half]);
        check_credit(&std, &[1.0, 0.0, 0.0, 0.0], &[1.5, -0.5, -0.5, -0.5]);
        check_credit(&std, &[1.0, 1.0, 1.0], &[0.0, 0.0, 0.0]);
        let center = GrpoConfig { normalise: Normalise::Center, ..std };
        check_credit(&center, &[1.0, 0.0, 0.0, 0.0], &[0.75, -0.25, -0.25, -0.25]);
    }

    #[test]
    fn impossible_clips_are_refused() {
        let fault = GrpoConfig { clip_low: -0.1, ..Default::default() }.build().err();
        assert_eq!(fault.map(|it| it.key), Some("clip_low".to_string()));
    }
}
