//! The loss of a policy-gradient method, put together from the shared terms.
//!
//! ```text
//! loss = sum_t w_t c_t m_t surrogate(r_t, A_t)     w: aggregation, c: importance correction, m: masks
//!      + kl sum_t v_t KL_t                         v: aggregation of the penalty
//!      - bonus sum_t w_t H_t                       H: entropy of the token's distribution
//! ```
//!
//! A method is the description of such a loss ([`PolicyLoss`]): data, so that two of them can be held
//! against each other on one stored batch, and every published variant is a combination.
//! [`PolicyLoss::plan`] works out what concerns the whole optimizer step, [`PolicyLoss::loss`] the
//! differentiated part of one micro-batch of it.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};
use serde::{Deserialize, Serialize};

use super::aggregation::{Aggregation, Denominators};
use super::importance::{Denominator, ImportanceCorrection, by_reply};
use super::kl::KlPenalty;
use super::rows::Rows;
use super::surrogate::{Surrogate, SurrogateInputs, mask, values};

/// Which probabilities the importance ratio compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RatioLevel {
    /// The token's.
    Token,
    /// The geometric mean over the reply's tokens, the same for all of them (GSPO).
    Sequence,
    /// The whole reply's: one ratio and one loss for it (TRL's RLOO).
    SequenceProduct,
}

/// Whose log-probability is the denominator of the ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Anchor {
    /// The policy before the update.
    Behavior,
    /// The engine that drew the tokens.
    Sampler,
}

/// When a token counts as clipped in the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipRule {
    /// The clipped branch is the larger loss.
    Active,
    /// The ratio is outside its range.
    Outside,
    /// The same, and A > 0.
    OutsidePositiveAdvantage,
    /// The trust region dropped it.
    Dropped,
    /// The log ratio is outside its range; low where A < 0, high where A > 0.
    LogRatioOutsideByAdvantageSign,
}

/// How the metrics of a loss are taken; changes no gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measures {
    /// When a token counts as clipped.
    pub clip_rule: ClipRule,
    /// Whether the clipped share is one of replies instead of tokens.
    pub clip_of_replies: bool,
    /// Whether the approximate KL is against the behaviour policy whatever the ratio's anchor.
    pub approx_kl_against_behavior: bool,
    /// Bound of each token's part of the approximate KL.
    pub approx_kl_clamp: Option<f64>,
    /// Whether the KL to the reference is a plain mean over tokens.
    pub kl_over_tokens: bool,
}

impl Default for Measures {
    fn default() -> Self {
        Self {
            clip_rule: ClipRule::Active,
            clip_of_replies: false,
            approx_kl_against_behavior: false,
            approx_kl_clamp: Some(20.0),
            kl_over_tokens: true,
        }
    }
}

/// What the step's denominators may be told besides the replies themselves.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Counting {
    /// See [`Denominators::count_empty`]; absent: as the mode has it.
    pub empty: Option<bool>,
    /// See [`Denominators::without_replies`].
    pub without_replies: bool,
    /// See [`Denominators::tokens`].
    pub tokens: Option<usize>,
    /// See [`Denominators::replies`].
    pub replies: Option<usize>,
}

/// The description of a policy-gradient loss.
#[derive(Clone, Debug)]
pub struct PolicyLoss {
    /// What a token contributes.
    pub surrogate: Surrogate,
    /// Which probabilities the ratio compares.
    pub ratio_level: RatioLevel,
    /// The ratio's denominator.
    pub anchor: Anchor,
    /// Bounds of the log ratio before its exponential; its gradient is 0 beyond them.
    pub log_ratio_bounds: (Option<f64>, Option<f64>),
    /// How token losses become one number.
    pub aggregation: Aggregation,
    /// How the denominators are counted.
    pub counting: Counting,
    /// Penalty on distance to the reference policy.
    pub kl: Option<KlPenalty>,
    /// Correction for a sampler that is another policy.
    pub correction: Option<ImportanceCorrection>,
    /// d: a reply with A < 0 does not learn once mean(log pi_sampler - log pi) over its tokens is
    /// above d (DeepSeek-V3.2, arXiv:2512.02556, section 3.1).
    pub off_policy_mask: Option<f64>,
    /// A token does not learn once its probability fell by more than this.
    pub drop_if_prob_fell_by: Option<f64>,
    /// Adds this times (log r)^2 at every token, dropped ones too.
    pub squared_log_ratio: f64,
    /// Weight of the entropy, which is maximised.
    pub entropy_bonus: f64,
    /// The credit is sg(log pi_ref - log pi) of the token, whatever was assigned (distillation).
    pub teacher_credit: bool,
    /// How the metrics are taken.
    pub measures: Measures,
}

impl PolicyLoss {
    /// The neutral loss with this surrogate: token ratios against the behaviour policy, token mean,
    /// nothing besides. e^20 bounds a ratio that one stray token would make infinite.
    pub fn new(surrogate: Surrogate) -> Self {
        Self {
            surrogate,
            ratio_level: RatioLevel::Token,
            anchor: Anchor::Behavior,
            log_ratio_bounds: (Some(-20.0), Some(20.0)),
            aggregation: Aggregation::TokenMean,
            counting: Counting::default(),
            kl: None,
            correction: None,
            off_policy_mask: None,
            drop_if_prob_fell_by: None,
            squared_log_ratio: 0.0,
            entropy_bonus: 0.0,
            teacher_credit: false,
            measures: Measures::default(),
        }
    }

    /// The same with another aggregation.
    #[must_use]
    pub fn aggregated(self, aggregation: Aggregation) -> Self {
        Self { aggregation, ..self }
    }

    /// Whether its loss is one number a reply, not one a token.
    pub fn is_of_replies(&self) -> bool {
        self.ratio_level == RatioLevel::SequenceProduct || self.surrogate.is_of_replies()
    }
}

/// One optimizer step as plain numbers; per-token vectors lie end to end.
#[derive(Clone, Copy, Debug)]
pub struct StepNumbers<'a> {
    /// Sampled tokens of each reply.
    pub lengths: &'a [usize],
    /// The prompt each reply answers.
    pub groups: &'a [usize],
    /// log pi_old of each token, nats.
    pub behavior_logprobs: &'a [f64],
    /// log pi_sampler of each token, nats.
    pub sampler_logprobs: &'a [f64],
    /// Longest reply allowed.
    pub max_tokens: usize,
}

/// What a loss needs to know of the whole optimizer step before it sees a part of it.
#[derive(Clone, Debug)]
pub struct StepPlan {
    lengths: Vec<usize>,
    /// Weight of each reply's tokens, and the same for the KL penalty.
    weights: Vec<f64>,
    kl_weights: Vec<f64>,
    /// What the importance correction multiplies each token's loss by.
    correction: Option<Vec<f64>>,
    /// Tokens that the metrics count.
    counted: Vec<bool>,
    /// Weight of the KL penalty now: it may adapt.
    kl_weight: f64,
    /// Numbers about the whole step: share of effective samples, mean importance weight, share kept.
    pub metrics: Vec<(&'static str, f64)>,
}

/// The metrics of a loss, as sums over part of a step that add up to the step's means.
pub type MetricSums = Vec<(&'static str, f64)>;

/// What a micro-batch contributes to the step.
pub struct PartLoss {
    /// Scalar, f64, with gradient.
    pub loss: Tensor,
    /// Metrics that add up over the parts of a step.
    pub metrics: MetricSums,
}

/// One micro-batch of a step: whole replies; tensors are f64 `(tokens)`, the replies end to end.
#[derive(Clone, Copy)]
pub struct PartInputs<'a> {
    /// log pi_theta, nats; carries gradient.
    pub logprobs: &'a Tensor,
    /// log pi_old, nats.
    pub behavior_logprobs: &'a Tensor,
    /// log pi_sampler, nats.
    pub sampler_logprobs: &'a Tensor,
    /// log pi_ref, or the teacher's, nats.
    pub reference_logprobs: Option<&'a Tensor>,
    /// Entropy of each token's distribution, nats; carries gradient. Needed for a bonus.
    pub entropies: Option<&'a Tensor>,
    /// Credit of each token.
    pub advantages: &'a Tensor,
}

impl PolicyLoss {
    /// Works out what concerns the whole step.
    pub fn plan(&self, step: &StepNumbers<'_>) -> StepPlan {
        let mut metrics = Vec::new();
        let mut counted = vec![true; step.behavior_logprobs.len()];
        let mut counted_lengths = step.lengths.to_vec();
        let correction = self.correction.map(|correction| {
            let corrected =
                correction.corrected(step.lengths, step.behavior_logprobs, step.sampler_logprobs);
            metrics.push(("learner/corrected_sample_size", corrected.effective_sample_size));
            metrics.push(("learner/importance_weight_mean", corrected.mean_weight));
            let kept = corrected.kept.iter().filter(|it| **it).count() as f64;
            metrics.push(("learner/kept_share", kept / corrected.kept.len().max(1) as f64));
            if correction.filter.is_some_and(|it| it.denominator == Denominator::Kept) {
                counted_lengths = by_reply(step.lengths, &corrected.kept)
                    .map(|reply| reply.iter().filter(|it| **it).count())
                    .collect();
                counted.clone_from(&corrected.kept);
            }
            let weights = corrected.weights.iter().zip(&corrected.kept);
            weights.map(|(weight, kept)| if *kept { *weight } else { 0.0 }).collect()
        });
        let weights_of = |mode: Aggregation, counting: Counting| {
            mode.weights(&Denominators {
                lengths: &counted_lengths,
                groups: step.groups,
                max_tokens: step.max_tokens,
                count_empty: counting.empty.unwrap_or(mode.counts_empty()),
                without_replies: counting.without_replies,
                tokens: counting.tokens,
                replies: counting.replies,
            })
        };
        let weights = weights_of(self.aggregation, self.counting);
        let kl_weights = match self.kl.and_then(|it| it.aggregation) {
            Some(mode) => weights_of(mode, Counting { empty: Some(true), ..Counting::default() }),
            None => weights.clone(),
        };
        StepPlan {
            lengths: step.lengths.to_vec(),
            weights,
            kl_weights,
            correction,
            counted,
            kl_weight: self.kl.map_or(0.0, |it| it.weight),
            metrics,
        }
    }

    /// Loss and metrics of the replies `replies` of the planned step.
    ///
    /// # Errors
    /// If the shapes disagree, or something that the loss needs is missing.
    pub fn loss(
        &self,
        plan: &StepPlan,
        replies: Range<usize>,
        inputs: &PartInputs<'_>,
    ) -> Result<PartLoss> {
        let first: usize = plan.lengths[..replies.start].iter().sum();
        let rows = Rows::new(&plan.lengths[replies.clone()])?;
        let tokens = first..first + rows.tokens();
        let of_tokens = |weights: &[f64]| {
            Tensor::new(rows.spread_values(&weights[replies.clone()]), &Device::Cpu)
        };
        let PartInputs { logprobs, behavior_logprobs, sampler_logprobs, .. } = *inputs;
        let anchor = match self.anchor {
            Anchor::Behavior => behavior_logprobs,
            Anchor::Sampler => sampler_logprobs,
        };
        let credit = if self.teacher_credit {
            (needed(inputs.reference_logprobs, "reference")? - logprobs)?.detach()
        } else {
            inputs.advantages.clone()
        };
        let token_log_ratio = (logprobs - anchor)?;
        let advantages = values(&credit)?;
        let of_replies = self.is_of_replies();
        let log_ratio = self.surrogate.log_ratio(&token_log_ratio, &advantages)?;
        let log_ratio = match self.ratio_level {
            RatioLevel::Token if of_replies => rows.mean(&log_ratio)?,
            RatioLevel::Token => log_ratio,
            RatioLevel::Sequence => rows.spread(&rows.mean(&log_ratio)?)?,
            RatioLevel::SequenceProduct => rows.sum(&log_ratio)?,
        };
        let log_ratio = within(&log_ratio, self.log_ratio_bounds)?;
        let ratio = log_ratio.exp()?;

        let policy = if of_replies {
            // A reply's tokens share its credit.
            let credit = rows.mean(&credit)?;
            let losses = self.surrogate.losses(&SurrogateInputs {
                logprobs,
                anchor_logprobs: anchor,
                ratio: &ratio,
                advantages: &credit,
            })?;
            (losses * Tensor::new(&plan.weights[replies.clone()], &Device::Cpu)?)?.sum_all()?
        } else {
            let mut losses = self.surrogate.losses(&SurrogateInputs {
                logprobs,
                anchor_logprobs: anchor,
                ratio: &ratio,
                advantages: &credit,
            })?;
            if let Some(correction) = &plan.correction {
                losses = (losses * Tensor::new(&correction[tokens.clone()], &Device::Cpu)?)?;
            }
            if let Some(limit) = self.off_policy_mask {
                losses = (losses * self.near_enough(limit, &rows, inputs, &advantages)?)?;
            }
            if let Some(fall) = self.drop_if_prob_fell_by {
                let pairs = values(logprobs)?.into_iter().zip(values(anchor)?);
                let moved: Vec<f64> = pairs.map(|(now, then)| now.exp() - then.exp()).collect();
                losses = (losses * mask(&moved, |it| it >= -fall)?)?;
            }
            if self.squared_log_ratio > 0.0 {
                losses = (losses + (token_log_ratio.sqr()? * self.squared_log_ratio)?)?;
            }
            (losses * of_tokens(&plan.weights)?)?.sum_all()?
        };

        let mut metrics = self.measured(plan, &rows, &tokens, &ratio, &advantages, inputs)?;
        let mut loss = policy;
        if let Some(kl) = &self.kl {
            let reference = needed(inputs.reference_logprobs, "reference")?;
            let mut estimates = kl.estimator.estimate(logprobs, reference, kl.clamps)?;
            if kl.times_ratio {
                // A reply's ratio weighs the estimate of each of its tokens.
                let ratio = if of_replies { rows.spread(&ratio)? } else { ratio };
                estimates = (estimates * ratio)?;
            }
            let plain = values(&estimates)?;
            let total = (estimates * of_tokens(&plan.kl_weights)?)?.sum_all()?;
            let kl_metric = if self.measures.kl_over_tokens {
                plan.token_mean(&tokens, plain.into_iter())
            } else {
                total.detach().to_scalar()?
            };
            metrics.push(("learner/kl_nats", kl_metric));
            loss = (loss + (total * plan.kl_weight)?)?;
        }
        if self.entropy_bonus != 0.0 {
            let entropies = needed(inputs.entropies, "entropies")?;
            let total = (entropies * of_tokens(&plan.weights)?)?.sum_all()?;
            loss = (loss - (total * self.entropy_bonus)?)?;
        }
        Ok(PartLoss { loss, metrics })
    }

    /// 1 for the tokens of replies that the off-policy mask lets learn.
    fn near_enough(
        &self,
        limit: f64,
        rows: &Rows,
        inputs: &PartInputs<'_>,
        advantages: &[f64],
    ) -> Result<Tensor> {
        let drift = rows.mean(&(inputs.sampler_logprobs - inputs.logprobs)?.detach())?;
        let drift = rows.spread_values(&values(&drift)?);
        let marks = drift.iter().zip(advantages);
        let marks: Vec<f64> =
            marks.map(|(drift, a)| f64::from(u8::from(*a >= 0.0 || *drift <= limit))).collect();
        Tensor::new(marks, &Device::Cpu)
    }

    fn measured(
        &self,
        plan: &StepPlan,
        rows: &Rows,
        tokens: &Range<usize>,
        ratio: &Tensor,
        advantages: &[f64],
        inputs: &PartInputs<'_>,
    ) -> Result<MetricSums> {
        let ratio = values(ratio)?;
        let logprobs = values(inputs.logprobs)?;
        let behavior = values(inputs.behavior_logprobs)?;
        let sampler = values(inputs.sampler_logprobs)?;
        let anchor = match self.anchor {
            Anchor::Behavior => &behavior,
            Anchor::Sampler => &sampler,
        };
        // The ratio and credit of each token or reply, whichever has the loss.
        let of_replies = ratio.len() != logprobs.len();
        let credit: Vec<f64> = if of_replies {
            let first = by_reply(rows.lengths(), advantages).map(|it| it.first().copied());
            first.map(|it| it.unwrap_or(0.0)).collect()
        } else {
            advantages.to_vec()
        };
        let (low, high) = self.surrogate.bounds();
        let clipped: Vec<bool> = match self.measures.clip_rule {
            ClipRule::Active => ratio
                .iter()
                .zip(&credit)
                .map(|(ratio, a)| -a * ratio.clamp(low, high) > -a * ratio)
                .collect(),
            ClipRule::Outside => ratio.iter().map(|it| *it < low || *it > high).collect(),
            ClipRule::OutsidePositiveAdvantage => ratio
                .iter()
                .zip(&credit)
                .map(|(ratio, a)| (*ratio < low || *ratio > high) && *a > 0.0)
                .collect(),
            ClipRule::Dropped => self.surrogate.dropped(&logprobs, anchor, advantages),
            ClipRule::LogRatioOutsideByAdvantageSign => vec![false; ratio.len()],
        };
        let below = ratio.iter().zip(&credit).map(|(it, a)| *it < low && *a < 0.0);
        let above = ratio.iter().zip(&credit).map(|(it, a)| *it > high && *a > 0.0);
        let share = |marks: &mut dyn Iterator<Item = bool>| {
            let marks = marks.map(|it| f64::from(u8::from(it)));
            match (of_replies, self.measures.clip_of_replies) {
                (false, false) => plan.token_mean(tokens, marks),
                (true, _) => marks.sum::<f64>() / plan.lengths.len() as f64,
                // A reply's tokens share one ratio.
                (false, true) => {
                    let marks: Vec<f64> = marks.collect();
                    let first = by_reply(rows.lengths(), &marks).filter_map(|it| it.first());
                    first.sum::<f64>() / plan.lengths.len() as f64
                }
            }
        };
        let mut metrics = vec![
            ("learner/clipped_share", share(&mut clipped.iter().copied())),
            ("learner/clipped_low_share", share(&mut below.collect::<Vec<_>>().into_iter())),
            ("learner/clipped_high_share", share(&mut above.collect::<Vec<_>>().into_iter())),
        ];
        if let Surrogate::Gmpo { low, high } = self.surrogate {
            let log_ratio: Vec<f64> = logprobs.iter().zip(anchor).map(|(a, b)| a - b).collect();
            // Outside on either side, told apart by the sign of the credit.
            let outside = |positive: bool| {
                let pairs = log_ratio.iter().zip(advantages);
                let marks = pairs.map(move |(q, a)| {
                    let signed = if positive { *a > 0.0 } else { *a < 0.0 };
                    f64::from(u8::from((*q < -low || *q > high) && signed))
                });
                plan.token_mean(tokens, marks)
            };
            metrics[1].1 = outside(false);
            metrics[2].1 = outside(true);
            metrics[0].1 = metrics[1].1 + metrics[2].1;
        }
        if let Surrogate::Clip { dual: Some(dual), .. } = self.surrogate {
            let marks = ratio.iter().zip(&credit).map(|(ratio, a)| {
                let loss = (-a * ratio).max(-a * ratio.clamp(low, high));
                *a < 0.0 && loss > -a * dual
            });
            metrics.push((
                "learner/dual_clipped_share",
                share(&mut marks.collect::<Vec<_>>().into_iter()),
            ));
        }
        let against = if self.measures.approx_kl_against_behavior { &behavior } else { anchor };
        let bound = self.measures.approx_kl_clamp.unwrap_or(f64::INFINITY);
        let drift =
            against.iter().zip(&logprobs).map(|(then, now)| (then - now).clamp(-bound, bound));
        metrics.push(("learner/approx_kl_nats", plan.token_mean(tokens, drift)));
        let gap = sampler.iter().zip(&behavior).map(|(drawn, old)| drawn - old);
        metrics.push(("learner/sampler_kl_nats", plan.token_mean(tokens, gap)));
        Ok(metrics)
    }
}

impl StepPlan {
    /// Sets the weight of the KL penalty, where a controller moves it.
    pub fn set_kl_weight(&mut self, weight: f64) {
        self.kl_weight = weight;
    }

    /// Part of the mean over the step's counted tokens that the tokens `tokens` contribute.
    fn token_mean(&self, tokens: &Range<usize>, values: impl Iterator<Item = f64>) -> f64 {
        let total = self.counted.iter().filter(|it| **it).count().max(1) as f64;
        let counted = &self.counted[tokens.clone()];
        values.zip(counted).filter(|(_, counted)| **counted).map(|(it, _)| it).sum::<f64>() / total
    }
}

fn needed<'a>(given: Option<&'a Tensor>, what: &str) -> Result<&'a Tensor> {
    given.ok_or_else(|| candle_core::Error::Msg(format!("this loss needs {what}")))
}

fn within(log_ratio: &Tensor, bounds: (Option<f64>, Option<f64>)) -> Result<Tensor> {
    let raised = match bounds.0 {
        Some(low) => log_ratio.maximum(low)?,
        None => log_ratio.clone(),
    };
    match bounds.1 {
        Some(high) => raised.minimum(high),
        None => Ok(raised),
    }
}
