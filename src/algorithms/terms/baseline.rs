//! Credit of whole replies from the rewards of their group: reward minus a baseline, over a scale.
//!
//! | baseline | A_i |
//! |---|---|
//! | group mean | r_i - mean r (GRPO, Dr. GRPO, REINFORCE) |
//! | leave one out | r_i - mean of the others (RLOO) |
//! | length weighted | r_i - sum of len_j r_j / sum of len_j (OPO, arXiv:2505.23585) |
//! | runner-up | r_max - r_second for the best, 0 for the others (pass@k, arXiv:2503.19595) |
//! | none | r_i |
//!
//! The scale is the standard deviation (n - 1) of the group or the batch plus epsilon, the group's
//! mean (MaxRL), or 1. The mean is always the group's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What is taken off a reply's reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baseline {
    /// The group's mean.
    GroupMean,
    /// The mean of the others.
    LeaveOneOut,
    /// The mean weighted by length.
    LengthWeighted,
    /// The second best; only the best reply gets credit.
    RunnerUp,
    /// Nothing.
    None,
}

/// What credit is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalise {
    /// The group's standard deviation.
    Group,
    /// The standard deviation over all replies of the step.
    Batch,
    /// The group's mean; credit is 0 where that is not above 0.
    Mean,
    /// Nothing.
    None,
}

/// Credit of a reply that is alone in its group: siblings can be lost to a broken verifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupOfOne {
    /// 0: there is nothing to compare it with.
    Zero,
    /// Its reward, as if the mean were 0.
    Reward,
    /// The same over 1 + epsilon, as if the deviation were 1 (verl, SkyRL).
    RewardOverOne,
}

/// A rule of credit for whole replies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupCredit {
    /// What is taken off.
    pub baseline: Baseline,
    /// What it is divided by.
    pub normalise: Normalise,
    /// Added to a deviation or mean before dividing.
    pub epsilon: f64,
    /// For a reply without siblings.
    pub group_of_one: GroupOfOne,
}

impl GroupCredit {
    /// A baseline and a scale, with GRPO's 1e-6.
    pub fn new(baseline: Baseline, normalise: Normalise) -> Self {
        Self { baseline, normalise, epsilon: 1e-6, group_of_one: GroupOfOne::Zero }
    }

    /// Credit of each reply from its reward, its group and its length in tokens.
    pub fn credit(&self, rewards: &[f64], groups: &[usize], lengths: &[usize]) -> Vec<f64> {
        let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (reply, group) in groups.iter().enumerate() {
            members.entry(*group).or_default().push(reply);
        }
        let batch_std = standard_deviation(rewards, 1);
        let mut credit = vec![0.0; rewards.len()];
        for replies in members.values() {
            let own: Vec<f64> = replies.iter().map(|it| rewards[*it]).collect();
            if own.len() == 1 && self.baseline != Baseline::None {
                credit[replies[0]] = match self.group_of_one {
                    GroupOfOne::Zero => 0.0,
                    GroupOfOne::Reward => own[0],
                    GroupOfOne::RewardOverOne => match self.normalise {
                        Normalise::None => own[0],
                        _ => own[0] / (1.0 + self.epsilon),
                    },
                };
                continue;
            }
            let lengths: Vec<usize> = replies.iter().map(|it| lengths[*it]).collect();
            let mean = mean(&own);
            let scale = match self.normalise {
                Normalise::Group => standard_deviation(&own, 1) + self.epsilon,
                Normalise::Batch => batch_std + self.epsilon,
                Normalise::Mean if mean > 0.0 => mean + self.epsilon,
                Normalise::Mean => f64::INFINITY,
                Normalise::None => 1.0,
            };
            for (reply, centred) in replies.iter().zip(self.centred(&own, &lengths, mean)) {
                credit[*reply] = centred / scale;
            }
        }
        credit
    }

    fn centred(&self, rewards: &[f64], lengths: &[usize], mean: f64) -> Vec<f64> {
        let count = rewards.len() as f64;
        match self.baseline {
            Baseline::None => rewards.to_vec(),
            Baseline::GroupMean => rewards.iter().map(|it| it - mean).collect(),
            // r_i - (sum - r_i) / (n - 1) = n / (n - 1) (r_i - mean)
            Baseline::LeaveOneOut => {
                rewards.iter().map(|it| count / (count - 1.0) * (it - mean)).collect()
            }
            Baseline::LengthWeighted => {
                let tokens: usize = lengths.iter().sum();
                let weighted: f64 = rewards
                    .iter()
                    .zip(lengths)
                    .map(|(reward, length)| reward * *length as f64)
                    .sum();
                let baseline = if tokens > 0 { weighted / tokens as f64 } else { mean };
                rewards.iter().map(|it| it - baseline).collect()
            }
            Baseline::RunnerUp => {
                let best = (0..rewards.len())
                    .fold(0, |best, it| if rewards[it] > rewards[best] { it } else { best });
                let others = (0..rewards.len()).filter(|it| *it != best);
                let second = others.map(|it| rewards[it]).fold(f64::NEG_INFINITY, f64::max);
                let credit = |it| if it == best { rewards[best] - second } else { 0.0 };
                (0..rewards.len()).map(credit).collect()
            }
        }
    }
}

/// Arithmetic mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Standard deviation with n - `ddof` below it; 0 where that is 0.
pub fn standard_deviation(values: &[f64], ddof: usize) -> f64 {
    variance(values, ddof).sqrt()
}

/// Variance with n - `ddof` below it; 0 where that is 0.
pub fn variance(values: &[f64], ddof: usize) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|it| (it - mean).powi(2)).sum();
    squares / values.len().saturating_sub(ddof).max(1) as f64
}

/// Standardises all of a step's numbers to mean 0 and deviation 1.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Whitening {
    /// 1 for the unbiased variance, 0 for the plain one.
    pub ddof: usize,
    /// Keeps constant numbers from being divided by zero.
    pub epsilon: f64,
    /// How.
    pub epsilon_mode: EpsilonMode,
}

/// What epsilon does to the variance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EpsilonMode {
    /// (x - mean) / sqrt(variance + epsilon): verl, SkyRL.
    AddedToVariance,
    /// (x - mean) / sqrt(max(variance, epsilon)): OpenRLHF.
    FloorOfVariance,
}

impl Default for Whitening {
    fn default() -> Self {
        Self { ddof: 1, epsilon: 1e-8, epsilon_mode: EpsilonMode::AddedToVariance }
    }
}

impl Whitening {
    /// The numbers, whitened.
    pub fn whitened(&self, values: &[f64]) -> Vec<f64> {
        let (mean, variance) = (mean(values), variance(values, self.ddof));
        let scale = match self.epsilon_mode {
            EpsilonMode::AddedToVariance => (variance + self.epsilon).sqrt(),
            EpsilonMode::FloorOfVariance => variance.max(self.epsilon).sqrt(),
        };
        values.iter().map(|it| (it - mean) / scale).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rule: GroupCredit, rewards: &[f64], want: &[f64]) {
        let got = rule.credit(rewards, &vec![0; rewards.len()], &vec![1; rewards.len()]);
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-5, "{rewards:?}: {got} instead of {want}");
        }
    }

    #[test]
    fn credit_follows_its_rule() {
        let half = std::f64::consts::FRAC_1_SQRT_2;
        let grpo = GroupCredit::new(Baseline::GroupMean, Normalise::Group);
        check(grpo, &[1.0, 0.0], &[half, -half]);
        check(grpo, &[1.0, 0.0, 0.0, 0.0], &[1.5, -0.5, -0.5, -0.5]);
        check(grpo, &[1.0, 1.0, 1.0], &[0.0; 3]);
        check(grpo, &[1.0], &[0.0]);
        let centred = GroupCredit::new(Baseline::GroupMean, Normalise::None);
        check(centred, &[1.0, 0.0, 0.0, 0.0], &[0.75, -0.25, -0.25, -0.25]);
        let rloo = GroupCredit::new(Baseline::LeaveOneOut, Normalise::None);
        check(rloo, &[1.0, 0.0, 0.0, 0.0], &[1.0, -1.0 / 3.0, -1.0 / 3.0, -1.0 / 3.0]);
        let max_rl =
            GroupCredit { epsilon: 0.0, ..GroupCredit::new(Baseline::GroupMean, Normalise::Mean) };
        check(max_rl, &[1.0, 0.0, 0.0, 0.0], &[3.0, -1.0, -1.0, -1.0]);
        check(max_rl, &[0.0, 0.0], &[0.0, 0.0]);
        let best = GroupCredit::new(Baseline::RunnerUp, Normalise::None);
        check(best, &[0.0, 1.0, 0.25], &[0.0, 0.75, 0.0]);
    }
}
