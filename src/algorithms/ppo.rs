//! Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) with a critic.
//!
//! Credit:  generalised advantages (arXiv:1506.02438, eq. 16) of each sampled token, whitened over
//!          the step. Tool output between two turns is skipped: it earns nothing, gets no credit, has
//!          no value, and costs no discount.
//! Loss:    mean over tokens of max(-A r, -A clip(r, 0.8, 1.2)) (eq. 7).
//! Critic:  0.5 max((V - R)^2, (V_old + clip(V - V_old, -0.2, 0.2) - R)^2), R = A + V_old.
//!
//! Where the peers disagree: lambda is 0.95 (TRL, the papers), 1 in verl, OpenRLHF and SkyRL; OpenRLHF
//! gives tool output the value 0 (`masked = "zero_value_zero_reward"`). The value clip is 0.5 in verl
//! and OpenRLHF.

use serde::{Deserialize, Serialize};

use super::grpo::clipped;
use super::knobs::must_be_share;
use super::terms::baseline::Whitening;
use super::terms::returns::{Gae, MaskedValue};
use super::terms::value_loss::ValueLoss;
use super::{Algorithm, AlgorithmConfig, Credit};
use tallow_verifiers::ConfigFault;

/// PPO's own settings.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PpoConfig {
    /// The ratio counts from `1 - clip_low`.
    pub clip_low: f64,
    /// The ratio counts to `1 + clip_high`.
    pub clip_high: f64,
    /// Discount of what comes later; 1: none, a reply is short.
    pub gamma: f64,
    /// Discount of later temporal differences.
    pub lambda: f64,
    /// What tool output does to the advantages before it.
    pub masked: MaskedTurns,
    /// What estimates values.
    pub critic: CriticConfig,
}

/// What tool output does to the advantages before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskedTurns {
    /// Nothing.
    #[default]
    Skip,
    /// Each of its tokens is a step of value 0 and reward 0.
    ZeroValueZeroReward,
}

impl Default for PpoConfig {
    fn default() -> Self {
        Self {
            clip_low: 0.2,
            clip_high: 0.2,
            gamma: 1.0,
            lambda: 0.95,
            masked: MaskedTurns::Skip,
            critic: CriticConfig::default(),
        }
    }
}

/// What estimates the value of a state: the reward that is to be expected from here on.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CriticConfig {
    /// Whose layers it stands on.
    pub trunk: CriticTrunk,
    /// Peak learning rate of a trunk of its own; absent: ten times the policy's. It follows the
    /// policy's schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// How far a value moves from the old one before its gradient stops; 0: as far as it will.
    pub value_clip: f64,
    /// Weight of its loss on a shared trunk.
    pub value_coefficient: f64,
    /// Steps in which only the critic learns, so that the first advantages are not noise.
    pub warmup_steps: u64,
}

/// Whose layers a critic stands on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CriticTrunk {
    /// A copy of the policy's at the start, trained apart: twice the memory, no conflict.
    #[default]
    Own,
    /// The policy's.
    Shared,
}

impl Default for CriticConfig {
    fn default() -> Self {
        Self {
            trunk: CriticTrunk::Own,
            learning_rate: None,
            value_clip: 0.2,
            value_coefficient: 0.1,
            warmup_steps: 0,
        }
    }
}

impl CriticConfig {
    /// The critic's loss.
    pub fn loss(&self) -> ValueLoss {
        ValueLoss { clip: (self.value_clip > 0.0).then_some(self.value_clip), factor: 0.5 }
    }

    fn check(&self) -> Result<(), ConfigFault> {
        let rate = self.learning_rate.unwrap_or(0.0);
        for (key, value) in [
            ("critic.learning_rate", rate),
            ("critic.value_clip", self.value_clip),
            ("critic.value_coefficient", self.value_coefficient),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(ConfigFault::new(key, "out of range")
                    .found(value)
                    .expected("a number of 0 or more"));
            }
        }
        if self.trunk == CriticTrunk::Shared && self.learning_rate.is_some() {
            return Err(ConfigFault::new(
                "critic.learning_rate",
                "a shared trunk is trained at the policy's rate",
            )
            .expected("no rate, or trunk = \"own\"")
            .hint("value_coefficient says how strongly the critic pulls on a shared trunk"));
        }
        Ok(())
    }
}

impl AlgorithmConfig for PpoConfig {
    const NAME: &'static str = "ppo";
    const SUMMARY: &'static str = "clipped surrogate with a critic and generalised advantages";

    fn build(&self) -> Result<Algorithm, ConfigFault> {
        must_be_share("gamma", self.gamma)?;
        must_be_share("lambda", self.lambda)?;
        self.critic.check()?;
        let masked = match self.masked {
            MaskedTurns::Skip => MaskedValue::Skip,
            MaskedTurns::ZeroValueZeroReward => MaskedValue::ZeroValueZeroReward,
        };
        let gae = Gae { gamma: self.gamma, lambda: self.lambda, masked };
        let credit = Credit::Gae { gae, whitening: Some(Whitening::default()) };
        Ok(Algorithm {
            critic: Some(self.critic),
            ..Algorithm::new(Self::NAME, credit, clipped(self.clip_low, self.clip_high)?)
        })
    }
}
