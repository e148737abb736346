//! On-policy distillation (Agarwal et al. 2024, arXiv:2306.13649; Lu 2025, "On-policy distillation"):
//! the policy samples, a teacher says at every token what it would have thought.
//!
//! `over = "sampled"`: the reverse KL of the sampled tokens as credit, as prime-rl has it:
//!   A_t = sg(log pi_teacher - log pi), loss -A r + 1e-3 (log r)^2, mean over tokens; the first term is
//!   dropped where the token's probability fell by more than 0.2.
//! `over = "vocabulary"`: the divergence of whole next-token distributions; `beta` 1 is the reverse
//!   KL, 0 the forward, between the generalised Jensen-Shannon divergence (TRL's GKD). Costs the
//!   teacher's logits for the whole vocabulary at every token.
//!
//! Uses no reward; the verifier still says how often the policy is right.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::knobs::must_be_share;
use super::terms::aggregation::Aggregation;
use super::terms::policy_loss::PolicyLoss;
use super::terms::surrogate::Surrogate;
use super::{Algorithm, AlgorithmConfig, Credit, Objective, Reference};
use tallow_verifiers::ConfigFault;

/// Distillation's own settings.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistillConfig {
    /// Folder of the teacher's model, of the same vocabulary; there is no default.
    pub teacher: PathBuf,
    /// What is compared.
    pub over: Compared,
    /// Over the vocabulary: which divergence.
    pub beta: f64,
}

/// What is compared with the teacher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compared {
    /// The probabilities of the sampled tokens.
    #[default]
    Sampled,
    /// Whole distributions.
    Vocabulary,
}

impl Default for DistillConfig {
    fn default() -> Self {
        Self { teacher: PathBuf::new(), over: Compared::Sampled, beta: 1.0 }
    }
}

/// A token whose probability fell by more no longer learns.
const LARGEST_FALL: f64 = 0.2;

/// Weight of the squared log ratio, which keeps steps near the policy that sampled.
const SQUARED_LOG_RATIO: f64 = 1e-3;

impl AlgorithmConfig for DistillConfig {
    const NAME: &'static str = "distill";
    const SUMMARY: &'static str = "on-policy distillation from a teacher's folder";

    fn build(&self) -> Result<Algorithm, ConfigFault> {
        if self.teacher.as_os_str().is_empty() {
            return Err(ConfigFault::new("teacher", "there is nobody to learn from")
                .expected("the folder of a model of the same vocabulary"));
        }
        must_be_share("beta", self.beta)?;
        let objective = match self.over {
            Compared::Sampled => Objective::Policy(Box::new(PolicyLoss {
                teacher_credit: true,
                drop_if_prob_fell_by: Some(LARGEST_FALL),
                squared_log_ratio: SQUARED_LOG_RATIO,
                ..PolicyLoss::new(Surrogate::Unclipped)
            })),
            Compared::Vocabulary => {
                Objective::Divergence { beta: self.beta, aggregation: Aggregation::TokenMean }
            }
        };
        Ok(Algorithm {
            reference: Some(Reference::Folder(self.teacher.clone())),
            ..Algorithm::minimising(Self::NAME, Credit::Teacher, objective)
        })
    }
}
