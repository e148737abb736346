//! DAPO: decoupled clip and dynamic sampling (Yu et al. 2025, arXiv:2503.14476, section 3).
//!
//! Credit:  GRPO's, of the reward less a soft punishment of replies near the longest (eq. 13).
//! Loss:    mean over all tokens of the step (eq. 8) of the surrogate clipped at 0.8 and 1.28
//!          (clip-higher, eq. 10). No KL.
//! Tasks:   played until enough groups have both right and wrong replies (section 3.2).
//!
//! The paper's other treatment of replies that were cut off, leaving them out of the loss, is
//! `overlong_filter = true`.

use serde::{Deserialize, Serialize};

use super::grpo::{clipped, standardised};
use super::terms::shaping::SoftOverlong;
use super::{Algorithm, AlgorithmConfig, Refill, Shaping, ZeroVariance};
use tallow_verifiers::ConfigFault;

/// DAPO's own settings.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DapoConfig {
    /// The ratio counts from `1 - clip_low`.
    pub clip_low: f64,
    /// The ratio counts to `1 + clip_high`: room for unlikely tokens to become likely.
    pub clip_high: f64,
}

impl Default for DapoConfig {
    fn default() -> Self {
        Self { clip_low: 0.2, clip_high: 0.28 }
    }
}

impl AlgorithmConfig for DapoConfig {
    const NAME: &'static str = "dapo";
    const SUMMARY: &'static str =
        "GRPO with clip-higher, token mean, dynamic sampling, soft overlong";

    fn build(&self) -> Result<Algorithm, ConfigFault> {
        let loss = clipped(self.clip_low, self.clip_high)?;
        Ok(Algorithm {
            shaping: Shaping { overlong: Some(SoftOverlong::default()), ..Shaping::default() },
            zero_variance: ZeroVariance::Drop,
            refill: Some(Refill::default()),
            ..Algorithm::new(Self::NAME, standardised(), loss)
        })
    }
}
