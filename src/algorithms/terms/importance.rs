//! Corrections for a sampler that is not the policy the learner started from (another engine, other
//! weights, other rounding). With w_t = pi_old(token) / pi_sampler(token), always without gradient:
//!
//! - truncated importance sampling (Yao et al. 2025; Espeholt et al. 2018, arXiv:1802.01561): token
//!   losses are multiplied by min(w, high), or by exp(sum log w) of the reply
//! - masks: tokens or replies whose statistic of w lies outside a range do not learn
//!
//! The peers differ in which side of the ratio they bound and in whether what is dropped still
//! counts in the denominator; both are options here, and the default is a token's min(w, 2).

use serde::{Deserialize, Serialize};

/// A correction: a weight, a filter, or both.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImportanceCorrection {
    /// What token losses are multiplied by.
    pub weight: Option<Weight>,
    /// What does not learn.
    pub filter: Option<Filter>,
    /// Bound of log w (or of its sum over a reply) before its exponential.
    pub log_ratio_clamp: Option<f64>,
    /// Divide the bounded weights by their mean over the step's tokens.
    pub batch_normalize: bool,
}

impl Default for ImportanceCorrection {
    fn default() -> Self {
        let weight =
            Weight { level: Level::Token, low: None, high: Some(2.0), outside: Outside::Clamp };
        Self {
            weight: Some(weight),
            filter: None,
            log_ratio_clamp: Some(20.0),
            batch_normalize: false,
        }
    }
}

/// A weight of token losses.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Weight {
    /// Of the token alone, or of its whole reply.
    pub level: Level,
    /// Least weight.
    #[serde(default)]
    pub low: Option<f64>,
    /// Largest weight.
    #[serde(default)]
    pub high: Option<f64>,
    /// What becomes of a weight outside.
    pub outside: Outside,
}

/// Whose probability is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The token's.
    Token,
    /// The reply's.
    Sequence,
}

/// What becomes of a weight outside its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outside {
    /// It is the nearest bound.
    Clamp,
    /// It is 0.
    Zero,
}

/// Keeps tokens or replies whose statistic lies in `low..=high`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Whether tokens or whole replies are dropped.
    pub level: Level,
    /// What is looked at.
    pub statistic: Statistic,
    /// Least value kept.
    #[serde(default)]
    pub low: Option<f64>,
    /// Largest value kept.
    #[serde(default)]
    pub high: Option<f64>,
    /// Which way round the ratio is read.
    #[serde(default)]
    pub orientation: Orientation,
    /// Whether what is dropped still counts in the denominators.
    #[serde(default)]
    pub denominator: Denominator,
}

/// What a filter looks at, with q the log ratio of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// exp q
    Ratio,
    /// exp(sum of q over the reply)
    Product,
    /// exp(mean of q over the reply)
    GeometricMean,
    /// q^2 / 2
    K2,
    /// exp(q) - 1 - q
    K3,
    /// Mean of k3 over the reply
    MeanK3,
    /// Largest k2 of the reply
    MaxK2,
    /// exp q of any token: one outside drops the reply
    AnyTokenRatio,
}

/// Which policy is the numerator of a filter's ratio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Orientation {
    /// q = log w
    #[default]
    BehaviorOverSampler,
    /// q = -log w
    SamplerOverBehavior,
}

/// What the denominators count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Denominator {
    /// Dropped tokens too: what the others weigh does not depend on what was dropped.
    #[default]
    All,
    /// Kept tokens only.
    Kept,
}

/// A correction worked out for one optimizer step; one entry for each token.
#[derive(Clone, Debug, PartialEq)]
pub struct Corrected {
    /// What the token's loss is multiplied by.
    pub weights: Vec<f64>,
    /// Whether the token learns.
    pub kept: Vec<bool>,
    /// (mean w)^2 / mean w^2 over tokens, a share of 1, with w bounded to [1/high, high]
    /// (Kish 1965). 1 where sampler and learner agree.
    pub effective_sample_size: f64,
    /// Mean of w over tokens before it is bounded.
    pub mean_weight: f64,
}

impl ImportanceCorrection {
    /// Weights and filter of replies of these lengths, from the log-probabilities of their tokens
    /// end to end, in nats.
    pub fn corrected(&self, lengths: &[usize], behavior: &[f64], sampler: &[f64]) -> Corrected {
        let log_weights: Vec<f64> =
            behavior.iter().zip(sampler).map(|(old, drawn)| old - drawn).collect();
        let level = self.weight.map_or(Level::Token, |it| it.level);
        let raw = self.raw_weights(level, lengths, &log_weights);
        let tokens = raw.len().max(1) as f64;
        let high = self.weight.and_then(|it| it.high).unwrap_or(f64::INFINITY);
        let sums = raw.iter().map(|it| it.clamp(1.0 / high, high)).fold((0.0, 0.0), |sum, it| {
            let (first, second): (f64, f64) = sum;
            (first + it, second + it * it)
        });
        let effective = match raw.is_empty() {
            true => 1.0,
            false => (sums.0 / tokens).powi(2) / (sums.1 / tokens),
        };
        Corrected {
            mean_weight: raw.iter().sum::<f64>() / tokens,
            effective_sample_size: effective,
            weights: match self.weight {
                Some(weight) => self.bounded(weight, raw),
                None => vec![1.0; log_weights.len()],
            },
            kept: match self.filter {
                Some(filter) => self.kept(filter, lengths, &log_weights),
                None => vec![true; log_weights.len()],
            },
        }
    }

    fn clamped(&self, log_weight: f64) -> f64 {
        self.log_ratio_clamp.map_or(log_weight, |it| log_weight.clamp(-it, it))
    }

    fn raw_weights(&self, level: Level, lengths: &[usize], log_weights: &[f64]) -> Vec<f64> {
        match level {
            Level::Token => log_weights.iter().map(|it| self.clamped(*it).exp()).collect(),
            Level::Sequence => by_reply(lengths, log_weights)
                .flat_map(|reply| {
                    let product = self.clamped(reply.iter().sum()).exp();
                    std::iter::repeat_n(product, reply.len())
                })
                .collect(),
        }
    }

    fn bounded(&self, weight: Weight, raw: Vec<f64>) -> Vec<f64> {
        let low = weight.low.unwrap_or(f64::NEG_INFINITY);
        let high = weight.high.unwrap_or(f64::INFINITY);
        let bounded = raw.into_iter().map(|it| match weight.outside {
            Outside::Clamp => it.clamp(low, high),
            Outside::Zero if it < low || it > high => 0.0,
            Outside::Zero => it,
        });
        let mut weights: Vec<f64> = bounded.collect();
        let mean = weights.iter().sum::<f64>() / weights.len().max(1) as f64;
        if self.batch_normalize && mean > 0.0 {
            weights.iter_mut().for_each(|it| *it /= mean);
        }
        weights
    }

    fn kept(&self, filter: Filter, lengths: &[usize], log_weights: &[f64]) -> Vec<bool> {
        let sign = match filter.orientation {
            Orientation::BehaviorOverSampler => 1.0,
            Orientation::SamplerOverBehavior => -1.0,
        };
        let inside = |value: f64| {
            filter.low.is_none_or(|it| value >= it) && filter.high.is_none_or(|it| value <= it)
        };
        let k2 = |q: f64| q * q / 2.0;
        let k3 = |q: f64| q.exp() - 1.0 - q;
        let mut kept = Vec::with_capacity(log_weights.len());
        for reply in by_reply(lengths, log_weights) {
            let q: Vec<f64> = reply.iter().map(|it| self.clamped(*it) * sign).collect();
            let sum = self.clamped(reply.iter().sum::<f64>()) * sign;
            let mean = |values: &dyn Fn(f64) -> f64| {
                q.iter().map(|it| values(*it)).sum::<f64>() / q.len().max(1) as f64
            };
            let of_token = |value: &dyn Fn(f64) -> f64| -> Vec<bool> {
                q.iter().map(|it| inside(value(*it))).collect()
            };
            let tokens: Vec<bool> = match filter.statistic {
                Statistic::Ratio | Statistic::AnyTokenRatio => of_token(&|q| q.exp()),
                Statistic::K2 | Statistic::MaxK2 => of_token(&k2),
                Statistic::K3 => of_token(&k3),
                Statistic::Product => vec![inside(sum.exp()); q.len()],
                Statistic::GeometricMean => vec![inside(mean(&|q| q).exp()); q.len()],
                Statistic::MeanK3 => vec![inside(mean(&k3)); q.len()],
            };
            match filter.level {
                Level::Token => kept.extend(tokens),
                Level::Sequence => {
                    let whole = tokens.iter().all(|it| *it);
                    kept.extend(std::iter::repeat_n(whole, tokens.len()));
                }
            }
        }
        kept
    }
}

/// The replies' stretches of a flat vector.
pub fn by_reply<'a, T>(lengths: &'a [usize], flat: &'a [T]) -> impl Iterator<Item = &'a [T]> {
    lengths.iter().scan(flat, |rest, length| {
        let (reply, later) = rest.split_at(*length);
        *rest = later;
        Some(reply)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_policies_need_no_correction() {
        let same = [-0.5, -1.0, -2.0];
        let corrected = ImportanceCorrection::default().corrected(&[1, 2], &same, &same);
        assert_eq!(corrected.weights, [1.0; 3]);
        assert_eq!((corrected.effective_sample_size, corrected.mean_weight), (1.0, 1.0));
    }

    #[test]
    fn the_default_bounds_a_tokens_weight_from_above_only() {
        let corrected =
            ImportanceCorrection::default().corrected(&[2], &[-0.1, -5.0], &[-3.0, -0.1]);
        assert_eq!(corrected.weights[0], 2.0);
        assert!((corrected.weights[1] - (-4.9f64).exp()).abs() < 1e-12);
    }
}
