//! Estimators of KL(pi_theta || pi_ref) from sampled tokens (Schulman, "Approximating KL
//! divergence", 2020), and the controller that adapts their weight. With d = log pi_theta - log
//! pi_ref of the sampled token:
//!
//! - k1 = d: unbiased, of either sign; as a loss its expected gradient is zero, so it regularises
//!   nothing on policy. Meant for the reward.
//! - k2 = d^2 / 2: biased, but its gradient is the unbiased one on policy
//! - k3 = exp(-d) - 1 + d: unbiased and never negative; the usual choice (GRPO eq. 4)
//! - k3_straight_through_k2: the value of k3 with the gradient of k2
//! - abs = |d|

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::aggregation::Aggregation;

/// Which estimator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// d
    K1,
    /// d^2 / 2
    K2,
    /// exp(-d) - 1 + d
    K3,
    /// Value of k3, gradient of k2.
    #[serde(rename = "k3_straight_through_k2")]
    K3StraightThroughK2,
    /// |d|
    Abs,
}

/// Bounds of an estimate; beyond them it is constant, its gradient 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KlClamps {
    /// Of d before its exponential.
    pub exponent: Option<f64>,
    /// Of the estimate.
    pub value: Option<f64>,
}

impl KlClamps {
    /// e^20 is already far beyond any policy worth keeping.
    pub const USUAL: Self = Self { exponent: Some(20.0), value: None };
}

impl KlEstimator {
    /// The estimate for each token, in nats; `(tokens)`, with gradient through `logprobs`.
    ///
    /// # Errors
    /// If the shapes disagree.
    pub fn estimate(
        self,
        logprobs: &Tensor,
        reference_logprobs: &Tensor,
        clamps: KlClamps,
    ) -> candle_core::Result<Tensor> {
        let d = (logprobs - reference_logprobs)?;
        let k3 = || {
            let d = match clamps.exponent {
                Some(bound) => d.clamp(-bound, bound)?,
                None => d.clone(),
            };
            (d.neg()?.exp()? - 1.0)? + d
        };
        let estimate = match self {
            Self::K1 => d.clone(),
            Self::K2 => (d.sqr()? / 2.0)?,
            Self::K3 => k3()?,
            Self::K3StraightThroughK2 => {
                let k2 = (d.sqr()? / 2.0)?;
                ((k3()? - &k2)?.detach() + k2)?
            }
            // |d| = d sign(d), whose gradient is 0 at 0.
            Self::Abs => {
                let signs: Vec<f64> =
                    d.detach().to_vec1::<f64>()?.iter().map(|it| sign(*it)).collect();
                (&d * Tensor::new(signs, d.device())?)?
            }
        };
        match clamps.value {
            Some(bound) => estimate.clamp(-bound, bound),
            None => Ok(estimate),
        }
    }

    /// The same of plain numbers.
    pub fn value(self, d: f64, clamps: KlClamps) -> f64 {
        let bounded = |value: f64, bound: Option<f64>| match bound {
            Some(bound) => value.clamp(-bound, bound),
            None => value,
        };
        let estimate = match self {
            Self::K1 => d,
            Self::K2 => d * d / 2.0,
            Self::K3 | Self::K3StraightThroughK2 => {
                let d = bounded(d, clamps.exponent);
                (-d).exp() - 1.0 + d
            }
            Self::Abs => d.abs(),
        };
        bounded(estimate, clamps.value)
    }
}

fn sign(value: f64) -> f64 {
    if value == 0.0 { 0.0 } else { value.signum() }
}

/// A KL penalty inside the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KlPenalty {
    /// Its weight; where it adapts, the first.
    pub weight: f64,
    /// Which estimate.
    pub estimator: KlEstimator,
    /// Bounds of the estimate.
    pub clamps: KlClamps,
    /// Multiply each estimate by the importance ratio, with gradient through both: unbiased off
    /// policy as well.
    pub times_ratio: bool,
    /// How its tokens become one number; absent: as the policy's.
    pub aggregation: Option<Aggregation>,
}

/// Moves the weight of a KL penalty so that the KL stays near a target (Ziegler et al. 2019,
/// arXiv:1909.08593, section 2.2): weight *= 1 + clip(kl / target - 1, -0.2, 0.2) n / horizon.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveKl {
    /// Where the KL should be, in nats a token.
    pub target: f64,
    /// Replies over which a deviation at its bound changes the weight by a fifth.
    #[serde(default = "AdaptiveKl::usual_horizon")]
    pub horizon: f64,
}

impl AdaptiveKl {
    /// Bound of one deviation.
    pub const CLIP: f64 = 0.2;

    fn usual_horizon() -> f64 {
        10_000.0
    }

    /// The weight after `replies` more replies showed this KL.
    pub fn adapted(self, weight: f64, kl: f64, replies: f64, clip: f64) -> f64 {
        let deviation = (kl / self.target - 1.0).clamp(-clip, clip);
        weight * (1.0 + deviation * replies / self.horizon)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn estimators_follow_their_formulas() {
        let logprobs = Tensor::new(&[-1.0f64, -2.0], &Device::Cpu).expect("tensor");
        let reference = Tensor::new(&[-1.5f64, -1.0], &Device::Cpu).expect("tensor");
        let (high, low) = ((-0.5f64).exp() - 0.5, 1.0f64.exp() - 2.0);
        for (kind, want) in [
            (KlEstimator::K1, [0.5, -1.0]),
            (KlEstimator::K2, [0.125, 0.5]),
            (KlEstimator::K3, [high, low]),
            (KlEstimator::K3StraightThroughK2, [high, low]),
            (KlEstimator::Abs, [0.5, 1.0]),
        ] {
            let got = kind
                .estimate(&logprobs, &reference, KlClamps::USUAL)
                .and_then(|it| it.to_vec1::<f64>())
                .expect("estimate");
            for (index, d) in [0.5, -1.0].into_iter().enumerate() {
                assert!((got[index] - want[index]).abs() < 1e-12, "{kind:?}: {got:?}");
                assert!((kind.value(d, KlClamps::USUAL) - want[index]).abs() < 1e-12);
            }
        }
    }
}
