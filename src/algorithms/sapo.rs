//! SAPO: soft adaptive policy optimisation (Gao et al. 2025, arXiv:2511.20347, eq. 5 and 6).
//!
//! Credit:  GRPO's.
//! Loss:    mean over replies of their mean of -A sigmoid(tau (r - 1)) 4 / tau, with tau 1 where A > 0
//!          and 1.05 elsewhere: a gate that closes softly instead of a clip, sooner for what is
//!          pushed down.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::grpo::standardised;
use super::knobs::must_have_room;
use super::terms::aggregation::Aggregation;
use super::terms::policy_loss::PolicyLoss;
use super::terms::surrogate::{Surrogate, mask, values};
use super::{Algorithm, AlgorithmConfig};
use tallow_verifiers::ConfigFault;

/// SAPO's own settings.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SapoConfig {
    /// Steepness of the gate where A > 0.
    pub tau_positive: f64,
    /// Steepness elsewhere.
    pub tau_negative: f64,
}

impl Default for SapoConfig {
    fn default() -> Self {
        Self { tau_positive: 1.0, tau_negative: 1.05 }
    }
}

impl AlgorithmConfig for SapoConfig {
    const NAME: &'static str = "sapo";
    const SUMMARY: &'static str = "GRPO with a soft gate in place of the clip";

    fn build(&self) -> Result<Algorithm, ConfigFault> {
        must_have_room("tau_positive", self.tau_positive)?;
        must_have_room("tau_negative", self.tau_negative)?;
        let loss = PolicyLoss::new(self.surrogate()).aggregated(Aggregation::SequenceMean);
        Ok(Algorithm::new(Self::NAME, standardised(), loss))
    }
}

impl SapoConfig {
    /// The gate.
    pub fn surrogate(&self) -> Surrogate {
        let Self { tau_positive, tau_negative } = *self;
        Surrogate::Own(
            Self::NAME,
            Arc::new(move |of| {
                let rises = mask(&values(of.advantages)?, |it| it > 0.0)?;
                let tau = rises.affine(tau_positive - tau_negative, tau_negative)?;
                let exponent = ((of.ratio - 1.0)? * &tau)?.neg()?.exp()?;
                let gate = exponent.affine(1.0, 1.0)?.recip()?; // sigmoid(tau (r - 1))
                ((gate * 4.0)? / tau)?.mul(of.advantages)?.neg()
            }),
        )
    }
}
