//! REINFORCE leave-one-out (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740, section 4.2).
//!
//! Credit:  A_i = r_i - mean of the others' rewards = G/(G - 1) (r_i - mean r).
//! Loss:    mean over replies of -A log pi(o), the reply as one action: its tokens are summed.
//!
//! Where the peers disagree: TRL clips the ratio of whole-reply probabilities, which is
//! `clip = 0.2` here; verl and SkyRL put this credit under PPO's token loss. A KL, if wanted, is part
//! of the reward (`kl = { place = "reward", estimator = "k1" }`) and so of the baseline.

use serde::{Deserialize, Serialize};

use super::grpo::clipped;
use super::terms::aggregation::Aggregation;
use super::terms::baseline::{Baseline, GroupCredit, Normalise};
use super::terms::policy_loss::{Counting, Measures, PolicyLoss, RatioLevel};
use super::terms::surrogate::Surrogate;
use super::{Algorithm, AlgorithmConfig, Credit};
use tallow_verifiers::ConfigFault;

/// RLOO's own settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RlooConfig {
    /// Clip the ratio of whole-reply probabilities to 1 ± this; absent: no ratio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
}

impl AlgorithmConfig for RlooConfig {
    const NAME: &'static str = "rloo";
    const SUMMARY: &'static str = "REINFORCE, each reply against the mean of the others";

    fn build(&self) -> Result<Algorithm, ConfigFault> {
        let rule = GroupCredit::new(Baseline::LeaveOneOut, Normalise::None);
        let loss = match self.clip {
            None => PolicyLoss::new(Surrogate::Reinforce),
            Some(clip) => PolicyLoss {
                ratio_level: RatioLevel::SequenceProduct,
                counting: Counting { empty: Some(true), ..Counting::default() },
                measures: Measures { clip_of_replies: true, ..Measures::default() },
                ..clipped(clip, clip)
                    .map_err(|fault| ConfigFault { key: "clip".into(), ..fault })?
            },
        };
        let loss = loss.aggregated(Aggregation::SequenceSum);
        Ok(Algorithm::new(Self::NAME, Credit::Group { rule, whitening: None }, loss))
    }
}
