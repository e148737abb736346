//! Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, eq. 7), online: the best
//! and the worst reply of each group are a pair (Guo et al. 2024, arXiv:2402.04792). The stage `dpo`
//! runs the same loss over stored pairs.
//!
//! Loss:    -log sigmoid(beta [(log pi(w) - log pi_ref(w)) - (log pi(l) - log pi_ref(l))]), mean over
//!          pairs; log-probabilities of whole replies.
//!
//! Label smoothing is cDPO's, as in OpenRLHF; TRL's `robust` form is `loss = "robust"`. IPO compares
//! sums, as OpenRLHF does and its paper; TRL's means over tokens are `length_normalize = true`.

use serde::{Deserialize, Serialize};

use super::terms::preference::{PreferenceKind, PreferenceLoss};
use super::{Algorithm, AlgorithmConfig, Credit, Objective, Reference};
use tallow_verifiers::ConfigFault;

/// DPO's own settings.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DpoConfig {
    /// Which loss of a pair.
    pub loss: PreferenceKind,
    /// How strongly the policy is held to the reference.
    pub beta: f64,
    /// Share of pairs whose label is thought wrong.
    pub label_smoothing: f64,
    /// Compare means over tokens instead of sums.
    pub length_normalize: bool,
}

impl Default for DpoConfig {
    fn default() -> Self {
        Self {
            loss: PreferenceKind::Sigmoid,
            beta: 0.1,
            label_smoothing: 0.0,
            length_normalize: false,
        }
    }
}

impl DpoConfig {
    /// The loss, with its settings checked.
    ///
    /// # Errors
    /// If a value is out of its range.
    pub fn preference_loss(&self) -> Result<PreferenceLoss, ConfigFault> {
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return Err(ConfigFault::new("beta", "nothing would hold the policy to the reference")
                .found(self.beta)
                .expected("a number above 0, such as 0.1"));
        }
        if !(0.0..0.5).contains(&self.label_smoothing) {
            return Err(ConfigFault::new("label_smoothing", "at a half the labels say nothing")
                .found(self.label_smoothing)
                .expected("a number from 0 to below 0.5"));
        }
        Ok(PreferenceLoss {
            kind: self.loss,
            beta: self.beta,
            label_smoothing: self.label_smoothing,
            length_normalize: self.length_normalize,
        })
    }
}

impl AlgorithmConfig for DpoConfig {
    const NAME: &'static str = "dpo";
    const SUMMARY: &'static str =
        "direct preference optimisation on each group's best and worst reply";

    fn build(&self) -> Result<Algorithm, ConfigFault> {
        let objective = Objective::Pairs(self.preference_loss()?);
        Ok(Algorithm {
            reference: Some(Reference::Start),
            ..Algorithm::minimising(Self::NAME, Credit::Pairs, objective)
        })
    }
}
