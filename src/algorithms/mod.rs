//! Methods of policy optimisation: how rewards become credit, and credit a loss. One file each.
//!
//! A method is an [`Algorithm`]: a description in terms of formulas that stand once, in [`terms`].
//! Read [`grpo`] first, then [`ppo`]. [`knobs`] are the settings that all methods share.

pub mod cases;
pub mod contract;
pub mod knobs;
pub mod terms;

pub mod cispo;
pub mod dapo;
pub mod distill;
pub mod dpo;
pub mod dppo;
pub mod dr_grpo;
pub mod expert_iteration;
pub mod gmpo;
pub mod grpo;
pub mod gspo;
pub mod icepop;
pub mod max_rl;
pub mod opo;
pub mod ppo;
pub mod reinforce;
pub mod reinforce_pp;
pub mod rloo;
pub mod sapo;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tallow_verifiers::ConfigFault;
use tallow_verifiers::config_fault::read_options;

use knobs::Knobs;
use terms::aggregation::Aggregation;
use terms::baseline::{GroupCredit, Whitening};
use terms::importance::by_reply;
use terms::kl::{AdaptiveKl, KlClamps, KlEstimator};
use terms::policy_loss::PolicyLoss;
use terms::preference::PreferenceLoss;
use terms::returns::{Gae, MaskedReturn, on_last_token, returns};
use terms::shaping::{self, SoftOverlong};

/// A method of policy optimisation with its settings.
///
/// # Contract (see [`contract::check_algorithm`])
/// - Equal rewards give equal credit; of two siblings the one of higher reward never gets less, at
///   its last token. (Raising a reply's reward may lower its own credit where credit is whitened over
///   tokens: the deviation grows faster than the lead.)
/// - On fresh samples (ratio 1, penalties off) the gradient of the loss by a token's log-probability
///   is minus its advantage times its reply's weight: learning begins as REINFORCE does.
/// - A token with advantage 0 on fresh samples has no gradient.
/// - Loss and gradient do not depend on how a step is cut into micro-batches.
#[derive(Clone, Debug)]
pub struct Algorithm {
    /// Stable name: the key in configs.
    pub name: &'static str,
    /// How rewards become credit.
    pub credit: Credit,
    /// What is minimised.
    pub objective: Objective,
    /// What is done to rewards first.
    pub shaping: Shaping,
    /// Moves the weight of the KL penalty.
    pub adaptive_kl: Option<AdaptiveKl>,
    /// The policy that penalties, pairs or a teacher's credit compare with.
    pub reference: Option<Reference>,
    /// The reference becomes the policy of now every so many steps; 0: never.
    pub refresh_every: u64,
    /// Whose log-probabilities stand for the policy before the update.
    pub old_policy: OldPolicy,
    /// What estimates values, if credit needs them.
    pub critic: Option<ppo::CriticConfig>,
    /// Fewest replies of one task that credit can be assigned to.
    pub smallest_group: usize,
    /// What becomes of groups whose rewards are all equal.
    pub zero_variance: ZeroVariance,
    /// Replies that were cut off do not learn.
    pub overlong_filter: bool,
    /// More tasks are played until enough groups have differing rewards.
    pub refill: Option<Refill>,
}

/// How rewards become credit.
#[derive(Clone)]
pub enum Credit {
    /// Each reply's reward against those of its siblings; all its tokens share it.
    Group {
        /// Baseline and scale.
        rule: GroupCredit,
        /// Over the tokens of the step, afterwards.
        whitening: Option<Whitening>,
    },
    /// Discounted returns of each token.
    Returns {
        /// Discount.
        gamma: f64,
        /// What tool output does to them.
        masked: MaskedReturn,
        /// Over the tokens of the step, afterwards.
        whitening: Option<Whitening>,
    },
    /// Generalised advantages of each token, from a critic's values.
    Gae {
        /// Discounts.
        gae: Gae,
        /// Over the tokens of the step, afterwards.
        whitening: Option<Whitening>,
    },
    /// 1 for replies of at least this reward; the others do not learn.
    Verified {
        /// Least reward.
        at_least: f64,
    },
    /// The best and the worst reply of each group, as a pair.
    Pairs,
    /// None: the loss takes it from the teacher.
    Teacher,
    /// A rule of the method's own: credit of each token.
    Own(Arc<CreditRule>),
}

/// A rule of credit of a method's own.
pub type CreditRule = dyn Fn(&Rollouts<'_>) -> Vec<f64> + Send + Sync;

impl fmt::Debug for Credit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Group { .. } => "group",
            Self::Returns { .. } => "returns",
            Self::Gae { .. } => "gae",
            Self::Verified { .. } => "verified",
            Self::Pairs => "pairs",
            Self::Teacher => "teacher",
            Self::Own(_) => "own",
        })
    }
}

/// What is minimised.
#[derive(Clone, Debug)]
pub enum Objective {
    /// A loss of sampled tokens.
    Policy(Box<PolicyLoss>),
    /// A loss of pairs of replies.
    Pairs(PreferenceLoss),
    /// Distance of whole next-token distributions to the reference's.
    Divergence {
        /// See [`terms::divergence`].
        beta: f64,
        /// How token losses become one number.
        aggregation: Aggregation,
    },
}

/// What is done to rewards before credit is assigned.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shaping {
    /// DAPO's soft punishment of long replies.
    pub overlong: Option<SoftOverlong>,
    /// Taken off for a reply of the longest length, and proportionally for shorter ones.
    pub length_penalty: f64,
    /// What the reward of a reply that was cut off is multiplied by, or, below 0, replaced by.
    pub cut_off_reward: Option<f64>,
    /// Bounds of a reward.
    pub reward_clip: Option<[f64; 2]>,
    /// Taken off: a KL estimate of each token.
    pub kl: Option<KlInReward>,
}

/// A KL penalty inside the reward.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KlInReward {
    /// Its weight; where it adapts, the first.
    pub weight: f64,
    /// Which estimate; it carries no gradient here.
    pub estimator: KlEstimator,
}

/// A policy to compare with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// The one the stage started from.
    Start,
    /// The model of a folder, relative to the configuration's.
    Folder(PathBuf),
}

/// Whose log-probabilities stand for the policy before the update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OldPolicy {
    /// Those recorded when the tokens were drawn: no further forward pass. They are the learner's own
    /// to rounding, because sampling and learning share their code, unless rollouts run ahead.
    #[default]
    Sampler,
    /// Those of the learner's weights before the update: one forward pass more, and what a
    /// correction for another sampler needs.
    Learner,
}

/// What becomes of groups whose rewards are all equal, which compare to nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ZeroVariance {
    /// They count in the denominators, as in the papers: steps shrink as tasks are solved.
    #[default]
    Keep,
    /// They are left out: steps keep their size.
    Drop,
}

/// Dynamic sampling (DAPO, arXiv:2503.14476, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Refill {
    /// Most times a step's number of tasks is played before it learns from what there is.
    pub most_batches: usize,
}

impl Default for Refill {
    fn default() -> Self {
        Self { most_batches: 10 }
    }
}

/// One step's replies, as credit sees them; per-token vectors lie end to end.
#[derive(Clone, Copy)]
pub struct Rollouts<'a> {
    /// Shaped reward of each reply.
    pub rewards: &'a [f64],
    /// The prompt each answers.
    pub groups: &'a [usize],
    /// For each reply, every position from its first sampled token to its last: was it sampled?
    pub sampled: &'a [Vec<bool>],
    /// log pi_old of each sampled token, nats.
    pub behavior_logprobs: &'a [f64],
    /// log pi_ref of each sampled token, nats, if there is a reference.
    pub reference_logprobs: Option<&'a [f64]>,
    /// The critic's value before each sampled token, if there is one.
    pub values: Option<&'a [f64]>,
    /// Weight of a KL penalty in the reward now.
    pub kl_weight: f64,
}

/// What credit gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Assigned {
    /// Credit of each sampled token.
    pub advantages: Vec<f64>,
    /// What the critic should have said before each sampled token; empty without one.
    pub returns: Vec<f64>,
    /// Which replies learn.
    pub learns: Vec<bool>,
}

impl Algorithm {
    /// A method with nothing but a rule of credit and a loss.
    pub fn new(name: &'static str, credit: Credit, loss: PolicyLoss) -> Self {
        Self::minimising(name, credit, Objective::Policy(Box::new(loss)))
    }

    /// The same with any objective.
    pub fn minimising(name: &'static str, credit: Credit, objective: Objective) -> Self {
        let compares = matches!(credit, Credit::Group { .. } | Credit::Pairs);
        Self {
            name,
            credit,
            objective,
            shaping: Shaping::default(),
            adaptive_kl: None,
            reference: None,
            refresh_every: 0,
            old_policy: OldPolicy::default(),
            critic: None,
            smallest_group: if compares { 2 } else { 1 },
            zero_variance: ZeroVariance::default(),
            overlong_filter: false,
            refill: None,
        }
    }

    /// The policy-gradient loss, if that is what this minimises.
    pub fn policy_loss(&self) -> Option<&PolicyLoss> {
        match &self.objective {
            Objective::Policy(loss) => Some(loss),
            _ => None,
        }
    }

    /// The same, to change it.
    pub fn policy_loss_mut(&mut self) -> Option<&mut PolicyLoss> {
        match &mut self.objective {
            Objective::Policy(loss) => Some(loss),
            _ => None,
        }
    }

    /// What of this the decoder differentiates on the CPU only, if anything.
    pub fn on_cpu_only(&self) -> Option<&'static str> {
        if self.policy_loss().is_some_and(|it| it.entropy_bonus != 0.0) {
            return Some("an entropy bonus");
        }
        if matches!(self.objective, Objective::Divergence { .. }) {
            return Some("distillation over the vocabulary");
        }
        let shared = |it: ppo::CriticConfig| it.trunk == ppo::CriticTrunk::Shared;
        self.critic.is_some_and(shared).then_some("a critic on the policy's trunk")
    }

    /// The weight of the KL penalty at the start, in the loss or in the reward; 0 without one.
    pub fn kl_weight(&self) -> f64 {
        let in_loss = self.policy_loss().and_then(|it| it.kl).map(|it| it.weight);
        in_loss.or(self.shaping.kl.map(|it| it.weight)).unwrap_or(0.0)
    }

    /// The reward after shaping of a reply of `tokens` tokens, where `longest` are allowed and it was
    /// `cut_off` or not.
    pub fn shaped_reward(&self, reward: f64, tokens: usize, longest: usize, cut_off: bool) -> f64 {
        let Shaping { overlong, length_penalty, cut_off_reward, reward_clip, .. } = self.shaping;
        let reward = match cut_off_reward {
            Some(coefficient) if cut_off => shaping::cut_off_reward(reward, coefficient),
            _ => reward,
        };
        let overlong = overlong.map_or(0.0, |it| it.penalty(tokens, longest, true));
        let length = length_penalty * tokens as f64 / longest.max(1) as f64;
        let shaped = reward - overlong - length;
        reward_clip.map_or(shaped, |[low, high]| shaped.clamp(low, high))
    }

    /// Credit of every sampled token of a step.
    pub fn assign_credit(&self, of: &Rollouts<'_>) -> Assigned {
        let lengths: Vec<usize> =
            of.sampled.iter().map(|it| it.iter().filter(|it| **it).count()).collect();
        let kl = self.token_kl(of);
        let mut learns = vec![true; lengths.len()];
        let per_reply = |credit: &[f64]| -> Vec<f64> {
            let pairs = credit.iter().zip(&lengths);
            pairs.flat_map(|(credit, length)| std::iter::repeat_n(*credit, *length)).collect()
        };
        let whitened = |credit: Vec<f64>, whitening: Option<Whitening>| match whitening {
            Some(whitening) => whitening.whitened(&credit),
            None => credit,
        };
        let mut targets = Vec::new();
        let advantages = match &self.credit {
            Credit::Group { rule, whitening } => {
                // The penalty is part of the reward that the baseline is taken off.
                let kl = by_reply(&lengths, &kl).map(|it| it.iter().sum::<f64>());
                let rewards: Vec<f64> =
                    of.rewards.iter().zip(kl).map(|(reward, kl)| reward - kl).collect();
                whitened(per_reply(&rule.credit(&rewards, of.groups, &lengths)), *whitening)
            }
            Credit::Returns { gamma, masked, whitening } => {
                let credit = positions(of, &lengths, &kl, |rewards, _, sampled| {
                    returns(rewards, sampled, *gamma, *masked)
                });
                whitened(credit, *whitening)
            }
            Credit::Gae { gae, whitening } => {
                let credit = positions(of, &lengths, &kl, |rewards, values, sampled| {
                    gae.advantages(rewards, values, sampled)
                });
                let values = of.values.unwrap_or(&[]);
                targets = credit.iter().zip(values).map(|(a, value)| a + value).collect();
                whitened(credit, *whitening)
            }
            Credit::Verified { at_least } => {
                learns = of.rewards.iter().map(|it| it >= at_least).collect();
                let credit: Vec<f64> = learns.iter().map(|it| f64::from(u8::from(*it))).collect();
                per_reply(&credit)
            }
            Credit::Pairs | Credit::Teacher => vec![0.0; lengths.iter().sum()],
            Credit::Own(rule) => rule(of),
        };
        Assigned { advantages, returns: targets, learns }
    }

    /// The KL penalty in the reward of each sampled token; zeros without one.
    fn token_kl(&self, of: &Rollouts<'_>) -> Vec<f64> {
        match (self.shaping.kl, of.reference_logprobs) {
            (Some(kl), Some(reference)) => of
                .behavior_logprobs
                .iter()
                .zip(reference)
                .map(|(now, then)| of.kl_weight * kl.estimator.value(now - then, KlClamps::USUAL))
                .collect(),
            _ => vec![0.0; of.behavior_logprobs.len()],
        }
    }

    /// The best and the worst reply of each group, where they differ.
    pub fn pairs(rewards: &[f64], groups: &[usize]) -> Vec<(usize, usize)> {
        let mut pairs = Vec::new();
        let replies: Vec<usize> = (0..rewards.len()).collect();
        for group in replies.chunk_by(|one, other| groups[*one] == groups[*other]) {
            // The first of equals, so that the choice is the same on every machine.
            let best = group
                .iter()
                .copied()
                .reduce(|best, it| if rewards[it] > rewards[best] { it } else { best });
            let worst = group
                .iter()
                .copied()
                .reduce(|worst, it| if rewards[it] < rewards[worst] { it } else { worst });
            if let (Some(best), Some(worst)) = (best, worst)
                && rewards[best] > rewards[worst]
            {
                pairs.push((best, worst));
            }
        }
        pairs
    }
}

/// Credit of sampled tokens from a rule over all positions of each reply: its reward is earned by
/// the last token, what `kl` says is lost by each.
fn positions(
    of: &Rollouts<'_>,
    lengths: &[usize],
    kl: &[f64],
    rule: impl Fn(&[f64], &[f64], &[bool]) -> Vec<f64>,
) -> Vec<f64> {
    let none = vec![0.0; kl.len()];
    let values = of.values.unwrap_or(&none);
    let parts = by_reply(lengths, kl).zip(by_reply(lengths, values));
    let mut credit = Vec::with_capacity(kl.len());
    for ((sampled, reward), (kl, values)) in of.sampled.iter().zip(of.rewards).zip(parts) {
        let mut rewards = on_last_token(*reward, sampled);
        let mut all_values = vec![0.0; sampled.len()];
        let places = sampled.iter().enumerate().filter(|(_, it)| **it).map(|(place, _)| place);
        for ((place, kl), value) in places.zip(kl).zip(values) {
            rewards[place] -= kl;
            all_values[place] = *value;
        }
        let assigned = rule(&rewards, &all_values, sampled);
        credit.extend(assigned.iter().zip(sampled).filter(|(_, it)| **it).map(|(a, _)| *a));
    }
    credit
}

/// Configuration of a method: its own settings; its struct stands in the method's file.
pub trait AlgorithmConfig: DeserializeOwned + Serialize + Default {
    /// The name configs use.
    const NAME: &'static str;
    /// One line for `tallow list`.
    const SUMMARY: &'static str;

    /// The method as its paper has it, or what is wrong with its settings.
    ///
    /// # Errors
    /// If a value is out of its range.
    fn build(&self) -> Result<Algorithm, ConfigFault>;
}

/// A row of the table of methods.
#[derive(Clone, Copy)]
pub struct AlgorithmEntry {
    /// The name configs use.
    pub name: &'static str,
    /// One line for `tallow list`.
    pub summary: &'static str,
    build: fn(Value) -> Result<Algorithm, ConfigFault>,
    default_options: fn() -> Value,
}

impl AlgorithmEntry {
    /// The row of one method.
    pub const fn of<C: AlgorithmConfig>() -> Self {
        Self {
            name: C::NAME,
            summary: C::SUMMARY,
            build: |options| read_options::<C>(options)?.build(),
            default_options: || {
                serde_json::to_value(C::default()).expect("a config struct is plain data")
            },
        }
    }

    /// Builds from options: the method's own and the [`Knobs`]; unknown keys are faults.
    ///
    /// # Errors
    /// If a key is unknown, a value out of its range, or a knob makes no sense for the method.
    pub fn build(&self, options: Value) -> Result<Algorithm, ConfigFault> {
        let (knobs, own) = Knobs::split(options);
        let knobs: Knobs = read_options(knobs)?;
        let mut algorithm = (self.build)(own).map_err(Knobs::also_known)?;
        knobs.apply(&mut algorithm)?;
        Ok(algorithm)
    }

    /// The options with their defaults, the method's own and the knobs as it sets them.
    pub fn default_options(&self) -> Value {
        let mut options = (self.default_options)();
        if let (Value::Object(options), Ok(algorithm)) = (&mut options, (self.build)(Value::Null)) {
            options.extend(Knobs::of(&algorithm).to_json());
        }
        options
    }
}

/// Every built-in method, alphabetical.
pub const BUILTIN: &[AlgorithmEntry] = &[
    AlgorithmEntry::of::<cispo::CispoConfig>(),
    AlgorithmEntry::of::<dapo::DapoConfig>(),
    AlgorithmEntry::of::<distill::DistillConfig>(),
    AlgorithmEntry::of::<dpo::DpoConfig>(),
    AlgorithmEntry::of::<dppo::DppoConfig>(),
    AlgorithmEntry::of::<dr_grpo::DrGrpoConfig>(),
    AlgorithmEntry::of::<expert_iteration::ExpertIterationConfig>(),
    AlgorithmEntry::of::<gmpo::GmpoConfig>(),
    AlgorithmEntry::of::<grpo::GrpoConfig>(),
    AlgorithmEntry::of::<gspo::GspoConfig>(),
    AlgorithmEntry::of::<icepop::IcePopConfig>(),
    AlgorithmEntry::of::<max_rl::MaxRlConfig>(),
    AlgorithmEntry::of::<opo::OpoConfig>(),
    AlgorithmEntry::of::<ppo::PpoConfig>(),
    AlgorithmEntry::of::<reinforce::ReinforceConfig>(),
    AlgorithmEntry::of::<reinforce_pp::ReinforcePpConfig>(),
    AlgorithmEntry::of::<reinforce_pp::ReinforcePpBaselineConfig>(),
    AlgorithmEntry::of::<rloo::RlooConfig>(),
    AlgorithmEntry::of::<sapo::SapoConfig>(),
];
