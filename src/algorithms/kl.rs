//! Estimators of KL(pi_theta || pi_ref) from sampled tokens (Schulman, "Approximating KL
//! divergence", 2020). With d = log pi_theta - log pi_ref of the sampled token:
//!
//! - k1 = d: unbiased, of either sign; as a loss its expected gradient is zero, so it regularises
//!   nothing on policy
//! - k2 = d^2 / 2: biased, but its gradient is the unbiased one on policy
//! - k3 = exp(-d) - 1 + d: unbiased and never negative; the usual choice (GRPO eq. 4)

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

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
}

/// Bounds d before its exponential: e^20 is already far beyond any policy worth keeping.
const LOG_RATIO_BOUND: f64 = 20.0;

impl KlEstimator {
    /// The estimate for each token, in nats; `(tokens)`, with gradient through `logprobs`.
    ///
    /// # Errors
    /// If the shapes disagree.
    pub fn estimate(
        self,
        logprobs: &Tensor,
        reference_logprobs: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let d = (logprobs - reference_logprobs)?.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)?;
        match self {
            Self::K1 => Ok(d),
            Self::K2 => d.sqr()? / 2.0,
            Self::K3 => (d.neg()?.exp()? - 1.0)? + d,
        }
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
        let values = |kind: KlEstimator| {
            kind.estimate(&logprobs, &reference)
                .and_then(|it| it.to_vec1::<f64>())
                .expect("estimate")
        };
        let close = |got: Vec<f64>, want: [f64; 2]| {
            assert!((got[0] - want[0]).abs() < 1e-12 && (got[1] - want[1]).abs() < 1e-12);
        };
        close(values(KlEstimator::K1), [0.5, -1.0]);
        close(values(KlEstimator::K2), [0.125, 0.5]);
        close(values(KlEstimator::K3), [(-0.5f64).exp() - 0.5, 1.0f64.exp() - 2.0]);
    }
}
