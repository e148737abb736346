//! OPO: on-policy optimisation with the optimal baseline (Hao et al. 2025, arXiv:2505.23585, eq. 8).
//!
//! Credit:  A_i = r_i - sum_j len_j r_j / sum_j len_j: the baseline of least variance, if gradients
//!          grow with length.
//! Loss:    mean over tokens of -A log pi; strictly on policy, so no ratio.

use serde::{Deserialize, Serialize};

use super::terms::baseline::{Baseline, GroupCredit, Normalise};
use super::terms::policy_loss::PolicyLoss;
use super::terms::surrogate::Surrogate;
use super::{Algorithm, AlgorithmConfig, Credit};
use tallow_verifiers::ConfigFault;

/// OPO has no settings of its own.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OpoConfig {}

impl AlgorithmConfig for OpoConfig {
    const NAME: &'static str = "opo";
    const SUMMARY: &'static str = "REINFORCE with a baseline weighted by length";

    fn build(&self) -> Result<Algorithm, ConfigFault> {
        let rule = GroupCredit::new(Baseline::LengthWeighted, Normalise::None);
        let loss = PolicyLoss::new(Surrogate::Reinforce);
        Ok(Algorithm::new(Self::NAME, Credit::Group { rule, whitening: None }, loss))
    }
}
