//! Algorithms on given numbers: the case format of `tallow loss`, one JSON object
//! `{"header": {...}, "cases": [...]}`, every case a small batch with the settings of a formula.
//!
//! This file only translates: it lays a case's sampled tokens end to end, turns its settings into the
//! [`terms`](super::terms) that training runs, and lays what they give out again as the case had it. A
//! setting that is not known makes a case unsupported; it is never ignored.

use candle_core::{Device, Tensor, Var};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tallow_policies::ops::token_logprobs;

use super::sapo::SapoConfig;
use super::terms::aggregation::{Aggregation, Denominators};
use super::terms::baseline::{Baseline, GroupCredit, GroupOfOne, Normalise, Whitening};
use super::terms::baseline::{mean, standard_deviation};
use super::terms::divergence::generalised_divergence;
use super::terms::importance::{ImportanceCorrection, by_reply};
use super::terms::kl::{AdaptiveKl, KlClamps, KlEstimator, KlPenalty};
use super::terms::policy_loss::{
    Anchor, ClipRule, Counting, Measures, PartInputs, PolicyLoss, RatioLevel, StepNumbers,
};
use super::terms::preference::{BradleyTerry, PreferenceKind, PreferenceLoss};
use super::terms::returns::{Gae, MaskedReturn, MaskedValue, on_last_token, returns};
use super::terms::rows::Rows;
use super::terms::shaping::{SoftOverlong, cut_off_reward};
use super::terms::surrogate::{Surrogate, values};
use super::terms::value_loss::ValueLoss;
use crate::evaluation::pass_at_k;

/// One case; other fields are the business of whoever compares.
#[derive(Clone, Debug, Deserialize)]
pub struct Case {
    /// What the results call it.
    pub id: String,
    kind: String,
    algorithm: String,
    hyperparameters: Value,
    inputs: Value,
}

/// Why a case has no result.
#[derive(Debug)]
pub enum NoResult {
    /// A kind, name or value that is not known here.
    Unsupported(String),
    /// An input that contradicts itself or is missing: the file is at fault.
    Broken(String),
}

impl From<candle_core::Error> for NoResult {
    fn from(error: candle_core::Error) -> Self {
        // What follows the first line is a backtrace.
        Self::Broken(error.to_string().lines().next().unwrap_or_default().to_owned())
    }
}

type Outcome = Result<Value, NoResult>;

impl Case {
    /// The outputs of this case.
    ///
    /// # Errors
    /// If it is unsupported, or its inputs are broken.
    pub fn outputs(&self) -> Outcome {
        match self.kind.as_str() {
            "policy_loss" => policy_loss(self),
            "advantage" => advantage(self),
            "gae" => gae(self),
            "value" => value(self),
            "kl" => kl(self),
            "preference" => preference(self),
            "reward_model" => reward_model(self),
            "shaping" => shaping(self),
            "metric" => metric(self),
            other => Err(NoResult::Unsupported(format!("kind `{other}`"))),
        }
    }

    fn settings<T: DeserializeOwned>(&self) -> Result<T, NoResult> {
        T::deserialize(&self.hyperparameters)
            .map_err(|error| NoResult::Unsupported(format!("hyperparameters: {error}")))
    }

    fn inputs<T: DeserializeOwned>(&self) -> Result<T, NoResult> {
        T::deserialize(&self.inputs).map_err(|error| NoResult::Broken(format!("inputs: {error}")))
    }
}

/// Numbers of every position, `(batch, time)`, rows of any length.
type Grid = Vec<Vec<f64>>;

/// Which positions count, and how to get from them to the flat tokens of the terms and back.
struct Layout {
    mask: Vec<Vec<bool>>,
    lengths: Vec<usize>,
}

impl Layout {
    fn new(mask: &[Vec<u8>]) -> Self {
        let mask: Vec<Vec<bool>> =
            mask.iter().map(|row| row.iter().map(|it| *it != 0).collect()).collect();
        let lengths = mask.iter().map(|row| row.iter().filter(|it| **it).count()).collect();
        Self { mask, lengths }
    }

    /// Every position of a grid counts.
    fn whole<T>(grid: &[Vec<T>]) -> Self {
        let mask: Vec<Vec<bool>> = grid.iter().map(|row| vec![true; row.len()]).collect();
        let lengths = grid.iter().map(Vec::len).collect();
        Self { mask, lengths }
    }

    fn check<T>(&self, name: &str, grid: &[Vec<T>]) -> Result<(), NoResult> {
        let same = grid.len() == self.mask.len()
            && grid.iter().zip(&self.mask).all(|(row, mask)| row.len() == mask.len());
        if same {
            return Ok(());
        }
        Err(NoResult::Broken(format!("inputs.{name}: its rows are not as long as the mask's")))
    }

    /// The counted entries end to end.
    fn flat<T: Clone>(&self, name: &str, grid: &[Vec<T>]) -> Result<Vec<T>, NoResult> {
        self.check(name, grid)?;
        let rows = grid.iter().zip(&self.mask);
        Ok(rows
            .flat_map(|(row, mask)| row.iter().zip(mask).filter(|(_, it)| **it))
            .map(|(value, _)| value.clone())
            .collect())
    }

    /// Flat entries at their places, `blank` elsewhere.
    fn laid_out<T: Clone>(&self, flat: &[T], blank: &T) -> Vec<Vec<T>> {
        let mut rest = flat.iter();
        let place = |counts: &bool| match counts {
            true => rest.next().unwrap_or(blank).clone(),
            false => blank.clone(),
        };
        let mut place = place;
        self.mask.iter().map(|row| row.iter().map(&mut place).collect()).collect()
    }

    fn grid(&self, flat: &[f64]) -> Value {
        json!(self.laid_out(flat, &0.0))
    }
}

fn tensor(values: &[f64]) -> Result<Tensor, NoResult> {
    Ok(Tensor::new(values, &Device::Cpu)?)
}

fn variable(values: &[f64]) -> Result<Var, NoResult> {
    Ok(Var::from_vec(values.to_vec(), values.len(), &Device::Cpu)?)
}

/// The gradient of a scalar by a variable; zeros where none flows.
fn gradient(of: &Tensor, by: &Var) -> Result<Vec<f64>, NoResult> {
    match of.backward()?.get(by) {
        Some(slopes) => Ok(slopes.flatten_all()?.to_vec1()?),
        None => Ok(vec![0.0; by.elem_count()]),
    }
}

fn missing(name: &str) -> NoResult {
    NoResult::Broken(format!("inputs.{name} is missing"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AggregationSettings {
    mode: String,
    #[serde(default)]
    count_empty_sequences: bool,
    #[serde(default, rename = "T_max")]
    t_max: Option<usize>,
    #[serde(default)]
    divide_by_batch: Option<bool>,
    #[serde(default)]
    num_tokens_global: Option<usize>,
    #[serde(default)]
    num_sequences_global: Option<usize>,
}

impl AggregationSettings {
    fn mode(&self) -> Result<Aggregation, NoResult> {
        aggregation_named(&self.mode)
    }

    fn counting(&self) -> Counting {
        Counting {
            empty: Some(self.count_empty_sequences),
            without_replies: self.divide_by_batch == Some(false),
            tokens: self.num_tokens_global,
            replies: self.num_sequences_global,
        }
    }

    fn weights(&self, lengths: &[usize], groups: &[usize]) -> Result<Vec<f64>, NoResult> {
        let counting = self.counting();
        Ok(self.mode()?.weights(&Denominators {
            lengths,
            groups,
            max_tokens: self.t_max.unwrap_or(1),
            count_empty: self.count_empty_sequences,
            without_replies: counting.without_replies,
            tokens: counting.tokens,
            replies: counting.replies,
        }))
    }
}

fn aggregation_named(mode: &str) -> Result<Aggregation, NoResult> {
    Ok(match mode {
        "token_mean" => Aggregation::TokenMean,
        "seq_mean_token_mean" => Aggregation::SequenceMean,
        "seq_mean_token_sum" | "seq_mean_surrogate" => Aggregation::SequenceSum,
        "seq_mean_token_sum_norm" => Aggregation::ConstantLength,
        "prompt_mean" => Aggregation::PromptMean,
        other => return Err(NoResult::Unsupported(format!("aggregation mode `{other}`"))),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KlSettings {
    coef: f64,
    estimator: KlEstimator,
    #[serde(default)]
    exponent_clamp: Option<f64>,
    #[serde(default)]
    value_clamp: Option<f64>,
    #[serde(default)]
    times_ratio: bool,
    aggregation: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicySettings {
    surrogate: String,
    #[serde(default = "token_level")]
    ratio_level: RatioLevel,
    #[serde(default = "behavior_anchor")]
    anchor: Anchor,
    clip_low: Option<f64>,
    clip_high: Option<f64>,
    dual_clip: Option<f64>,
    log_ratio_min: Option<f64>,
    log_ratio_max: Option<f64>,
    aggregation: AggregationSettings,
    kl: Option<KlSettings>,
    importance_correction: Option<Map<String, Value>>,
    off_policy_mask_threshold: Option<f64>,
    clip_fraction_rule: Option<ClipRule>,
    clip_fraction_over: Option<Over>,
    approx_kl_against: Option<Against>,
    approx_kl_clamp: Option<f64>,
    kl_metric: Option<KlMetric>,
    tau_pos: Option<f64>,
    tau_neg: Option<f64>,
    delta_low: Option<f64>,
    delta_high: Option<f64>,
    drop_if_prob_fell_by: Option<f64>,
    squared_log_ratio_coef: Option<f64>,
    advantage: Option<String>,
    advantage_epsilon: Option<f64>,
    beta: Option<f64>,
    temperature: Option<f64>,
}

fn token_level() -> RatioLevel {
    RatioLevel::Token
}

fn behavior_anchor() -> Anchor {
    Anchor::Behavior
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Over {
    Tokens,
    Sequences,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Against {
    Anchor,
    Behavior,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum KlMetric {
    AsInLoss,
    TokenMean,
}

impl PolicySettings {
    fn loss(&self) -> Result<PolicyLoss, NoResult> {
        let needed = |name: &str, value: Option<f64>| {
            value.ok_or_else(|| {
                NoResult::Unsupported(format!("`{}` without {name}", self.surrogate))
            })
        };
        let surrogate = match self.surrogate.as_str() {
            "clip" => {
                Surrogate::Clip { low: self.clip_low, high: self.clip_high, dual: self.dual_clip }
            }
            "cispo" => Surrogate::Cispo { low: self.clip_low, high: self.clip_high },
            "unclipped" => Surrogate::Unclipped,
            "reinforce" => Surrogate::Reinforce,
            "hard_zero" => Surrogate::HardZero {
                low: needed("clip_low", self.clip_low)?,
                high: needed("clip_high", self.clip_high)?,
            },
            "gmpo" => Surrogate::Gmpo {
                low: needed("clip_low", self.clip_low)?,
                high: needed("clip_high", self.clip_high)?,
            },
            "sapo" => SapoConfig {
                tau_positive: needed("tau_pos", self.tau_pos)?,
                tau_negative: needed("tau_neg", self.tau_neg)?,
            }
            .surrogate(),
            "dppo_binary_tv" => Surrogate::Dppo {
                delta_low: needed("delta_low", self.delta_low)?,
                delta_high: needed("delta_high", self.delta_high)?,
            },
            other => return Err(NoResult::Unsupported(format!("surrogate `{other}`"))),
        };
        let correction = self.importance_correction.clone().map(|mut table| {
            // What is absent is not used; a config's table has defaults.
            table.entry("weight").or_insert(Value::Null);
            table.entry("log_ratio_clamp").or_insert(Value::Null);
            ImportanceCorrection::deserialize(Value::Object(table))
                .map_err(|error| NoResult::Unsupported(format!("importance_correction: {error}")))
        });
        let kl = self.kl.as_ref().map(|kl| {
            let aggregation = match kl.aggregation.as_str() {
                "same" => None,
                mode => Some(aggregation_named(mode)?),
            };
            Ok::<_, NoResult>(KlPenalty {
                weight: kl.coef,
                estimator: kl.estimator,
                clamps: KlClamps { exponent: kl.exponent_clamp, value: kl.value_clamp },
                times_ratio: kl.times_ratio,
                aggregation,
            })
        });
        let mut loss = PolicyLoss {
            ratio_level: self.ratio_level,
            anchor: self.anchor,
            log_ratio_bounds: (self.log_ratio_min, self.log_ratio_max),
            aggregation: self.aggregation.mode()?,
            counting: self.aggregation.counting(),
            kl: kl.transpose()?,
            correction: correction.transpose()?,
            off_policy_mask: self.off_policy_mask_threshold,
            drop_if_prob_fell_by: self.drop_if_prob_fell_by,
            squared_log_ratio: self.squared_log_ratio_coef.unwrap_or(0.0),
            teacher_credit: self.advantage.as_deref() == Some("teacher_minus_student"),
            measures: Measures {
                clip_rule: self.clip_fraction_rule.unwrap_or(ClipRule::Active),
                clip_of_replies: self.clip_fraction_over == Some(Over::Sequences),
                approx_kl_against_behavior: self.approx_kl_against == Some(Against::Behavior),
                approx_kl_clamp: self.approx_kl_clamp,
                kl_over_tokens: self.kl_metric == Some(KlMetric::TokenMean),
            },
            ..PolicyLoss::new(surrogate)
        };
        if loss.is_of_replies() {
            loss.aggregation = Aggregation::SequenceSum;
        }
        Ok(loss)
    }
}

#[derive(Deserialize)]
struct PolicyCase {
    mask: Vec<Vec<u8>>,
    group: Option<Vec<usize>>,
    logprobs: Option<Grid>,
    behavior_logprobs: Option<Grid>,
    sampler_logprobs: Option<Grid>,
    reference_logprobs: Option<Grid>,
    advantages: Option<Grid>,
    rewards: Option<Vec<Option<f64>>>,
    loss_matrix: Option<Grid>,
    logits: Option<Vec<Vec<Vec<f64>>>>,
    teacher_logits: Option<Vec<Vec<Vec<f64>>>>,
}

fn policy_loss(case: &Case) -> Outcome {
    let settings: PolicySettings = case.settings()?;
    let inputs: PolicyCase = case.inputs()?;
    let layout = Layout::new(&inputs.mask);
    let groups = inputs.group.clone().unwrap_or_else(|| (0..layout.lengths.len()).collect());
    if groups.len() != layout.lengths.len() {
        return Err(NoResult::Broken("inputs.group: not one entry for each row".into()));
    }
    match settings.surrogate.as_str() {
        "none" => return aggregated(&settings, &inputs, &layout, &groups),
        "full_vocabulary_divergence" => return divergence(&settings, &inputs, &layout, &groups),
        _ => {}
    }
    let loss = settings.loss()?;
    let flat = |name: &str, grid: &Option<Grid>| match grid {
        Some(grid) => layout.flat(name, grid).map(Some),
        None => Ok(None),
    };
    let logprobs = flat("logprobs", &inputs.logprobs)?.ok_or_else(|| missing("logprobs"))?;
    let behavior = flat("behavior_logprobs", &inputs.behavior_logprobs)?;
    let sampler = flat("sampler_logprobs", &inputs.sampler_logprobs)?;
    let reference = flat("reference_logprobs", &inputs.reference_logprobs)?;
    // Where one of the policies is not told apart, it is the other.
    let behavior = behavior.or_else(|| sampler.clone()).unwrap_or_else(|| logprobs.clone());
    let sampler = sampler.unwrap_or_else(|| behavior.clone());
    let mut outputs = Map::new();
    let advantages = match (settings.advantage.as_deref(), &inputs.rewards) {
        (None, _) => {
            flat("advantages", &inputs.advantages)?.ok_or_else(|| missing("advantages"))?
        }
        (Some("teacher_minus_student"), _) => {
            let reference = reference.as_ref().ok_or_else(|| missing("reference_logprobs"))?;
            let credit: Vec<f64> =
                reference.iter().zip(&logprobs).map(|(teacher, own)| teacher - own).collect();
            outputs.insert("token_advantages".into(), layout.grid(&credit));
            credit
        }
        (Some(name), Some(rewards)) => {
            let epsilon = settings.advantage_epsilon.unwrap_or(1e-6);
            let credit = pipeline_credit(name, epsilon, rewards, &groups, &layout)?;
            outputs.insert("advantages".into(), layout.grid(&credit));
            credit
        }
        (Some(_), None) => return Err(missing("rewards")),
    };
    let plan = loss.plan(&StepNumbers {
        lengths: &layout.lengths,
        groups: &groups,
        behavior_logprobs: &behavior,
        sampler_logprobs: &sampler,
        max_tokens: settings.aggregation.t_max.unwrap_or(1),
    });
    let variable = variable(&logprobs)?;
    let reference = reference.as_deref().map(tensor).transpose()?;
    let part = loss.loss(
        &plan,
        0..layout.lengths.len(),
        &PartInputs {
            logprobs: &variable,
            behavior_logprobs: &tensor(&behavior)?,
            sampler_logprobs: &tensor(&sampler)?,
            reference_logprobs: reference.as_ref(),
            entropies: None,
            advantages: &tensor(&advantages)?,
        },
    )?;
    let slopes = gradient(&part.loss, &variable)?;
    outputs.insert("loss".into(), json!(part.loss.to_scalar::<f64>()?));
    outputs.insert("grad_logprobs".into(), layout.grid(&slopes));
    let metrics: Map<String, Value> = part
        .metrics
        .iter()
        .filter_map(|(name, value)| Some((metric_name(name)?.to_owned(), json!(value))))
        .collect();
    outputs.insert("metrics".into(), metrics.into());
    Ok(outputs.into())
}

/// What the format calls a metric of the learner.
fn metric_name(name: &str) -> Option<&'static str> {
    Some(match name {
        "learner/clipped_share" => "clip_fraction",
        "learner/clipped_low_share" => "clip_fraction_low",
        "learner/clipped_high_share" => "clip_fraction_high",
        "learner/dual_clipped_share" => "dual_clip_fraction",
        "learner/approx_kl_nats" => "approx_kl",
        "learner/sampler_kl_nats" => "sampler_kl",
        "learner/kl_nats" => "kl",
        _ => return None,
    })
}

fn pipeline_credit(
    name: &str,
    epsilon: f64,
    rewards: &[Option<f64>],
    groups: &[usize],
    layout: &Layout,
) -> Result<Vec<f64>, NoResult> {
    let (baseline, normalise, whitening) = match name {
        "grpo" => (Baseline::GroupMean, Normalise::Group, None),
        "none" => (Baseline::GroupMean, Normalise::None, None),
        "rloo" => (Baseline::LeaveOneOut, Normalise::None, None),
        "reinforce_plus_plus_baseline" => {
            (Baseline::GroupMean, Normalise::None, Some(Whitening::default()))
        }
        other => return Err(NoResult::Unsupported(format!("advantage `{other}`"))),
    };
    let rule = GroupCredit { epsilon, ..GroupCredit::new(baseline, normalise) };
    let credit = group_credit(&rule, rewards, groups, &layout.lengths)?;
    let credit = spread(&credit, &layout.lengths);
    Ok(whitening.map_or(credit.clone(), |it| it.whitened(&credit)))
}

/// Credit of replies, where those without a verdict are left out and get 0.
fn group_credit(
    rule: &GroupCredit,
    rewards: &[Option<f64>],
    groups: &[usize],
    lengths: &[usize],
) -> Result<Vec<f64>, NoResult> {
    if rewards.len() != groups.len() || rewards.len() != lengths.len() {
        return Err(NoResult::Broken("inputs: rewards, group and mask differ in length".into()));
    }
    let judged: Vec<usize> = (0..rewards.len()).filter(|it| rewards[*it].is_some()).collect();
    let of = |values: &[usize]| -> Vec<usize> { judged.iter().map(|it| values[*it]).collect() };
    let known: Vec<f64> = rewards.iter().filter_map(|it| *it).collect();
    let mut credit = vec![0.0; rewards.len()];
    for (reply, value) in judged.iter().zip(rule.credit(&known, &of(groups), &of(lengths))) {
        credit[*reply] = value;
    }
    Ok(credit)
}

fn spread(rows: &[f64], lengths: &[usize]) -> Vec<f64> {
    let pairs = rows.iter().zip(lengths);
    pairs.flat_map(|(value, length)| std::iter::repeat_n(*value, *length)).collect()
}

fn aggregated(
    settings: &PolicySettings,
    inputs: &PolicyCase,
    layout: &Layout,
    groups: &[usize],
) -> Outcome {
    let grid = inputs.loss_matrix.as_ref().ok_or_else(|| missing("loss_matrix"))?;
    let losses = variable(&layout.flat("loss_matrix", grid)?)?;
    let weights = settings.aggregation.weights(&layout.lengths, groups)?;
    let loss = (losses.as_tensor() * tensor(&spread(&weights, &layout.lengths))?)?.sum_all()?;
    let slopes = gradient(&loss, &losses)?;
    Ok(json!({"loss": loss.to_scalar::<f64>()?, "grad_loss_matrix": layout.grid(&slopes)}))
}

fn divergence(
    settings: &PolicySettings,
    inputs: &PolicyCase,
    layout: &Layout,
    groups: &[usize],
) -> Outcome {
    let beta = settings.beta.ok_or_else(|| NoResult::Unsupported("no `beta`".into()))?;
    let temperature = settings.temperature.unwrap_or(1.0);
    let flat = |name: &str, grid: &Option<Vec<Vec<Vec<f64>>>>| {
        let grid = grid.as_ref().ok_or_else(|| missing(name))?;
        layout.flat(name, grid)
    };
    let logits = flat("logits", &inputs.logits)?;
    let teacher = flat("teacher_logits", &inputs.teacher_logits)?;
    let vocab = logits.first().map_or(0, Vec::len);
    let matrix =
        |rows: &[Vec<f64>]| Tensor::from_vec(rows.concat(), (rows.len(), vocab), &Device::Cpu);
    let variable = Var::from_tensor(&matrix(&logits)?)?;
    let losses = generalised_divergence(
        &(variable.as_tensor() / temperature)?,
        &(matrix(&teacher)? / temperature)?,
        beta,
    )?;
    let weights = settings.aggregation.weights(&layout.lengths, groups)?;
    let loss = (losses * tensor(&spread(&weights, &layout.lengths))?)?.sum_all()?;
    let slopes = gradient(&loss, &variable)?;
    let slopes: Vec<Vec<f64>> = slopes.chunks(vocab.max(1)).map(<[f64]>::to_vec).collect();
    let entropies: Vec<f64> = logits.iter().map(|it| token_logprobs::entropy(it)).collect();
    Ok(json!({
        "loss": loss.to_scalar::<f64>()?,
        "grad_logits": layout.laid_out(&slopes, &vec![0.0; vocab]),
        "metrics": {"entropy": mean(&entropies)},
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdvantageSettings {
    normalize: Option<String>,
    std_scope: Option<String>,
    std_ddof: Option<usize>,
    epsilon: Option<f64>,
    group_of_one: Option<String>,
    reward_clip: Option<[f64; 2]>,
    whiten: Option<Whitening>,
    kl_in_reward: Option<KlInRewardSettings>,
    normalize_batch: Option<NormalizeBatch>,
    gamma: Option<f64>,
    masked_tokens: Option<MaskedReturn>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KlInRewardSettings {
    coef: f64,
    estimator: KlEstimator,
    reduction: Reduction,
    #[serde(default)]
    exponent_clamp: Option<f64>,
    #[serde(default)]
    value_clamp: Option<f64>,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Reduction {
    SequenceSum,
    PerToken,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NormalizeBatch {
    ddof: usize,
    epsilon: f64,
}

#[derive(Deserialize)]
struct AdvantageCase {
    mask: Vec<Vec<u8>>,
    rewards: Option<Vec<Option<f64>>>,
    group: Option<Vec<usize>>,
    token_rewards: Option<Grid>,
    behavior_logprobs: Option<Grid>,
    reference_logprobs: Option<Grid>,
}

fn advantage(case: &Case) -> Outcome {
    let settings: AdvantageSettings = case.settings()?;
    let inputs: AdvantageCase = case.inputs()?;
    let layout = Layout::new(&inputs.mask);
    if settings.std_ddof.is_some_and(|it| it != 1) {
        return Err(NoResult::Unsupported("std_ddof other than 1".into()));
    }
    if case.algorithm == "reinforce_plus_plus" {
        return token_returns(&settings, &inputs, &layout);
    }
    let normalise = match (settings.normalize.as_deref(), settings.std_scope.as_deref()) {
        (None | Some("none"), _) => Normalise::None,
        (Some("std"), None | Some("group")) => Normalise::Group,
        (Some("std"), Some("batch")) => Normalise::Batch,
        (one, other) => {
            return Err(NoResult::Unsupported(format!("normalize {one:?}, std_scope {other:?}")));
        }
    };
    let group_of_one = match settings.group_of_one.as_deref() {
        None | Some("undefined" | "zero") => GroupOfOne::Zero,
        Some("reward" | "mean_zero") => GroupOfOne::Reward,
        Some("mean_zero_std_one") => GroupOfOne::RewardOverOne,
        Some(other) => return Err(NoResult::Unsupported(format!("group_of_one `{other}`"))),
    };
    let (baseline, normalise) = match case.algorithm.as_str() {
        "grpo" | "dr_grpo" | "reinforce_plus_plus_baseline" => (Baseline::GroupMean, normalise),
        "rloo" => (Baseline::LeaveOneOut, normalise),
        "opo" => (Baseline::LengthWeighted, normalise),
        "maxrl" => (Baseline::GroupMean, Normalise::Mean),
        "grpo_pass_at_k" => (Baseline::RunnerUp, normalise),
        other => return Err(NoResult::Unsupported(format!("algorithm `{other}`"))),
    };
    let epsilon = settings.epsilon.unwrap_or(0.0);
    let rule = GroupCredit { baseline, normalise, epsilon, group_of_one };
    let mut rewards = inputs.rewards.clone().ok_or_else(|| missing("rewards"))?;
    let groups = inputs.group.clone().ok_or_else(|| missing("group"))?;
    if let Some(kl) = &settings.kl_in_reward {
        if kl.reduction != Reduction::SequenceSum {
            return Err(NoResult::Unsupported("kl_in_reward per token beside a group".into()));
        }
        let taken = token_kl(kl, &inputs, &layout)?;
        let sums = by_reply(&layout.lengths, &taken).map(|it| it.iter().sum::<f64>());
        for (reward, kl) in rewards.iter_mut().zip(sums) {
            *reward = reward.map(|it| it - kl);
        }
    }
    let mut credit = group_credit(&rule, &rewards, &groups, &layout.lengths)?;
    if let Some([low, high]) = settings.reward_clip {
        credit.iter_mut().for_each(|it| *it = it.clamp(low, high));
    }
    if let Some(normalize) = &settings.normalize_batch {
        let (mean, std) = (mean(&credit), standard_deviation(&credit, normalize.ddof));
        credit.iter_mut().for_each(|it| *it = (*it - mean) / (std + normalize.epsilon));
    }
    let credit = spread(&credit, &layout.lengths);
    let credit = settings.whiten.map_or(credit.clone(), |it| it.whitened(&credit));
    Ok(json!({"advantages": layout.grid(&credit)}))
}

/// The KL penalty of each counted token.
fn token_kl(
    kl: &KlInRewardSettings,
    inputs: &AdvantageCase,
    layout: &Layout,
) -> Result<Vec<f64>, NoResult> {
    let grid = |name: &str, grid: &Option<Grid>| {
        layout.flat(name, grid.as_ref().ok_or_else(|| missing(name))?)
    };
    let behavior = grid("behavior_logprobs", &inputs.behavior_logprobs)?;
    let reference = grid("reference_logprobs", &inputs.reference_logprobs)?;
    let clamps = KlClamps { exponent: kl.exponent_clamp, value: kl.value_clamp };
    let pairs = behavior.iter().zip(&reference);
    Ok(pairs.map(|(now, then)| kl.coef * kl.estimator.value(now - then, clamps)).collect())
}

/// Rewards of every position, from one a token or one a reply on its last counted token.
fn position_rewards(
    token_rewards: Option<&Grid>,
    rewards: Option<&[f64]>,
    layout: &Layout,
) -> Result<Grid, NoResult> {
    match (token_rewards, rewards) {
        (Some(grid), _) => {
            layout.check("token_rewards", grid)?;
            Ok(grid.clone())
        }
        (None, Some(rewards)) if rewards.len() == layout.mask.len() => {
            let pairs = rewards.iter().zip(&layout.mask);
            Ok(pairs.map(|(reward, mask)| on_last_token(*reward, mask)).collect())
        }
        _ => Err(missing("token_rewards or rewards")),
    }
}

fn clipped(rewards: Option<Vec<f64>>, clip: Option<[f64; 2]>) -> Option<Vec<f64>> {
    let bound = |it: f64| clip.map_or(it, |[low, high]| it.clamp(low, high));
    rewards.map(|rewards| rewards.into_iter().map(bound).collect())
}

fn token_returns(settings: &AdvantageSettings, inputs: &AdvantageCase, layout: &Layout) -> Outcome {
    let gamma = settings.gamma.ok_or_else(|| NoResult::Unsupported("no `gamma`".into()))?;
    let judged = inputs
        .rewards
        .as_ref()
        .map(|rewards| rewards.iter().map(|it| it.unwrap_or(0.0)).collect::<Vec<f64>>());
    let judged = clipped(judged, settings.reward_clip);
    let mut rewards = position_rewards(inputs.token_rewards.as_ref(), judged.as_deref(), layout)?;
    if let Some(kl) = &settings.kl_in_reward {
        if kl.reduction != Reduction::PerToken {
            return Err(NoResult::Unsupported("kl_in_reward by sequence in a token return".into()));
        }
        let taken = layout.laid_out(&token_kl(kl, inputs, layout)?, &0.0);
        for (row, kl) in rewards.iter_mut().zip(taken) {
            row.iter_mut().zip(kl).for_each(|(reward, kl)| *reward -= kl);
        }
    }
    let masked = settings.masked_tokens.unwrap_or_default();
    let rows = rewards.iter().zip(&layout.mask);
    let returns: Grid = rows.map(|(row, mask)| returns(row, mask, gamma, masked)).collect();
    let flat = layout.flat("returns", &returns)?;
    let credit = settings.whiten.map_or(flat.clone(), |it| it.whitened(&flat));
    Ok(json!({"advantages": layout.grid(&credit), "returns": layout.grid(&flat)}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GaeSettings {
    gamma: f64,
    gae_lambda: f64,
    #[serde(default)]
    masked_tokens: MaskedValue,
    whiten: Option<Whitening>,
    reward_clip: Option<[f64; 2]>,
}

#[derive(Deserialize)]
struct GaeCase {
    mask: Vec<Vec<u8>>,
    values: Grid,
    token_rewards: Option<Grid>,
    rewards: Option<Vec<f64>>,
}

fn gae(case: &Case) -> Outcome {
    let settings: GaeSettings = case.settings()?;
    let inputs: GaeCase = case.inputs()?;
    let layout = Layout::new(&inputs.mask);
    layout.check("values", &inputs.values)?;
    let judged = clipped(inputs.rewards, settings.reward_clip);
    let rewards = position_rewards(inputs.token_rewards.as_ref(), judged.as_deref(), &layout)?;
    let gae =
        Gae { gamma: settings.gamma, lambda: settings.gae_lambda, masked: settings.masked_tokens };
    let mut credit = Vec::new();
    let mut targets = Vec::new();
    for ((rewards, values), mask) in rewards.iter().zip(&inputs.values).zip(&layout.mask) {
        let advantages = gae.advantages(rewards, values, mask);
        for position in (0..mask.len()).filter(|it| mask[*it]) {
            credit.push(advantages[position]);
            targets.push(advantages[position] + values[position]);
        }
    }
    let credit = settings.whiten.map_or(credit.clone(), |it| it.whitened(&credit));
    Ok(json!({"advantages": layout.grid(&credit), "returns": layout.grid(&targets)}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ValueSettings {
    value_clip: Option<f64>,
    factor: f64,
    aggregation: AggregationSettings,
}

#[derive(Deserialize)]
struct ValueCase {
    mask: Vec<Vec<u8>>,
    values: Grid,
    old_values: Grid,
    returns: Grid,
}

fn value(case: &Case) -> Outcome {
    let settings: ValueSettings = case.settings()?;
    let inputs: ValueCase = case.inputs()?;
    let layout = Layout::new(&inputs.mask);
    let now = variable(&layout.flat("values", &inputs.values)?)?;
    let old = layout.flat("old_values", &inputs.old_values)?;
    let targets = layout.flat("returns", &inputs.returns)?;
    let loss = ValueLoss { clip: settings.value_clip, factor: settings.factor };
    let (losses, held) = loss.losses(&now, &old, &targets)?;
    let groups: Vec<usize> = (0..layout.lengths.len()).collect();
    let weights = settings.aggregation.weights(&layout.lengths, &groups)?;
    let total = (losses * tensor(&spread(&weights, &layout.lengths))?)?.sum_all()?;
    let slopes = gradient(&total, &now)?;
    let held = held.iter().filter(|it| **it).count() as f64 / held.len().max(1) as f64;
    Ok(json!({
        "loss": total.to_scalar::<f64>()?,
        "grad_values": layout.grid(&slopes),
        "metrics": {"clip_fraction": held},
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EstimatorSettings {
    estimator: KlEstimator,
    exponent_clamp: Option<f64>,
    value_clamp: Option<f64>,
}

#[derive(Deserialize)]
struct EstimatorCase {
    logprobs: Grid,
    reference_logprobs: Grid,
    mask: Option<Vec<Vec<u8>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdaptiveSettings {
    kl_coef_init: f64,
    kl_target: f64,
    horizon: f64,
    clip: f64,
}

#[derive(Deserialize)]
struct AdaptiveCase {
    kl: Vec<f64>,
    num_steps: Vec<f64>,
}

fn kl(case: &Case) -> Outcome {
    if case.algorithm == "adaptive_kl" {
        let settings: AdaptiveSettings = case.settings()?;
        let inputs: AdaptiveCase = case.inputs()?;
        let controller = AdaptiveKl { target: settings.kl_target, horizon: settings.horizon };
        let weights = inputs.kl.iter().zip(&inputs.num_steps).scan(
            settings.kl_coef_init,
            |weight, (kl, replies)| {
                *weight = controller.adapted(*weight, *kl, *replies, settings.clip);
                Some(*weight)
            },
        );
        return Ok(json!({"kl_coef": weights.collect::<Vec<f64>>()}));
    }
    let settings: EstimatorSettings = case.settings()?;
    let inputs: EstimatorCase = case.inputs()?;
    let layout = match &inputs.mask {
        Some(mask) => Layout::new(mask),
        None => Layout::whole(&inputs.logprobs),
    };
    let logprobs = variable(&layout.flat("logprobs", &inputs.logprobs)?)?;
    let reference = tensor(&layout.flat("reference_logprobs", &inputs.reference_logprobs)?)?;
    let clamps = KlClamps { exponent: settings.exponent_clamp, value: settings.value_clamp };
    let estimates = settings.estimator.estimate(&logprobs, &reference, clamps)?;
    let slopes = gradient(&estimates.sum_all()?, &logprobs)?;
    Ok(json!({"kl": layout.grid(&values(&estimates)?), "grad_logprobs": layout.grid(&slopes)}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PreferenceSettings {
    loss: PreferenceKind,
    beta: f64,
    #[serde(default)]
    label_smoothing: f64,
    #[serde(default)]
    length_normalize: bool,
}

#[derive(Deserialize)]
struct PreferenceCase {
    chosen_logprobs: Option<Vec<f64>>,
    rejected_logprobs: Option<Vec<f64>>,
    reference_chosen_logprobs: Option<Vec<f64>>,
    reference_rejected_logprobs: Option<Vec<f64>>,
    chosen_token_logprobs: Option<Grid>,
    rejected_token_logprobs: Option<Grid>,
    reference_chosen_token_logprobs: Option<Grid>,
    reference_rejected_token_logprobs: Option<Grid>,
    chosen_mask: Option<Vec<Vec<u8>>>,
    rejected_mask: Option<Vec<Vec<u8>>>,
}

/// Log-probabilities of one side's tokens, the reference's, and which of them count.
type TokenSide<'a> = (&'a Option<Grid>, &'a Option<Grid>, &'a Option<Vec<Vec<u8>>>);

/// One side of the pairs: the tokens that are differentiated, and what becomes of them.
struct Side {
    layout: Option<Layout>,
    logprobs: Var,
    replies: Tensor,
    reference: Tensor,
    /// Implicit reward of each reply.
    rewards: Vec<f64>,
}

impl Side {
    fn new(
        name: &str,
        whole: (&Option<Vec<f64>>, &Option<Vec<f64>>),
        tokens: &TokenSide<'_>,
        loss: &PreferenceLoss,
    ) -> Result<Self, NoResult> {
        if let (Some(logprobs), Some(reference)) = whole {
            let logprobs = variable(logprobs)?;
            let (replies, reference) = (logprobs.as_tensor().clone(), tensor(reference)?);
            let rewards = loss.rewards(&replies, &reference)?;
            return Ok(Self { layout: None, logprobs, replies, reference, rewards });
        }
        let (Some(logprobs), Some(reference), Some(mask)) = *tokens else {
            return Err(missing(&format!("{name}_logprobs, or tokens and mask of {name}")));
        };
        let layout = Layout::new(mask);
        let rows = Rows::new(&layout.lengths)?;
        let logprobs = variable(&layout.flat(&format!("{name}_token_logprobs"), logprobs)?)?;
        let flat = layout.flat(&format!("reference_{name}_token_logprobs"), reference)?;
        let reference = tensor(&flat)?;
        let rewards = loss.rewards(&rows.sum(&logprobs)?, &rows.sum(&reference)?)?;
        let reference = loss.of_replies(&rows, &reference)?;
        let replies = loss.of_replies(&rows, &logprobs)?;
        Ok(Self { layout: Some(layout), logprobs, replies, reference, rewards })
    }

    fn gradient(&self, of: &Tensor) -> Outcome {
        let slopes = gradient(of, &self.logprobs)?;
        Ok(match &self.layout {
            Some(layout) => layout.grid(&slopes),
            None => json!(slopes),
        })
    }
}

fn preference(case: &Case) -> Outcome {
    let settings: PreferenceSettings = case.settings()?;
    let inputs: PreferenceCase = case.inputs()?;
    let loss = PreferenceLoss {
        kind: settings.loss,
        beta: settings.beta,
        label_smoothing: settings.label_smoothing,
        length_normalize: settings.length_normalize,
    };
    let chosen = Side::new(
        "chosen",
        (&inputs.chosen_logprobs, &inputs.reference_chosen_logprobs),
        &(
            &inputs.chosen_token_logprobs,
            &inputs.reference_chosen_token_logprobs,
            &inputs.chosen_mask,
        ),
        &loss,
    )?;
    let rejected = Side::new(
        "rejected",
        (&inputs.rejected_logprobs, &inputs.reference_rejected_logprobs),
        &(
            &inputs.rejected_token_logprobs,
            &inputs.reference_rejected_token_logprobs,
            &inputs.rejected_mask,
        ),
        &loss,
    )?;
    let total = loss
        .losses(&chosen.replies, &rejected.replies, &chosen.reference, &rejected.reference)?
        .mean_all()?;
    let rewards = chosen.rewards.iter().zip(&rejected.rewards);
    let right = rewards.clone().filter(|(chosen, rejected)| chosen > rejected).count();
    let margins: Vec<f64> = rewards.map(|(chosen, rejected)| chosen - rejected).collect();
    let names = match chosen.layout {
        Some(_) => ["grad_chosen_token_logprobs", "grad_rejected_token_logprobs"],
        None => ["grad_chosen_logprobs", "grad_rejected_logprobs"],
    };
    Ok(json!({
        "loss": total.to_scalar::<f64>()?,
        (names[0]): chosen.gradient(&total)?,
        (names[1]): rejected.gradient(&total)?,
        "chosen_rewards": chosen.rewards,
        "rejected_rewards": rejected.rewards,
        "metrics": {
            "reward_accuracy": right as f64 / margins.len().max(1) as f64,
            "reward_margin": mean(&margins),
        },
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RewardModelSettings {
    #[serde(default)]
    center_rewards_coefficient: f64,
    #[serde(default)]
    label_smoothing: f64,
}

#[derive(Deserialize)]
struct RewardModelCase {
    chosen_rewards: Vec<f64>,
    rejected_rewards: Vec<f64>,
    margin: Option<Vec<f64>>,
}

fn reward_model(case: &Case) -> Outcome {
    let settings: RewardModelSettings = case.settings()?;
    let inputs: RewardModelCase = case.inputs()?;
    let loss = BradleyTerry {
        label_smoothing: settings.label_smoothing,
        centering: settings.center_rewards_coefficient,
    };
    let (chosen, rejected) =
        (variable(&inputs.chosen_rewards)?, variable(&inputs.rejected_rewards)?);
    let margin = inputs.margin.as_deref().map(tensor).transpose()?;
    let total = loss.losses(&chosen, &rejected, margin.as_ref())?.mean_all()?;
    let pairs = inputs.chosen_rewards.iter().zip(&inputs.rejected_rewards);
    let leads: Vec<f64> = pairs.map(|(chosen, rejected)| chosen - rejected).collect();
    let right = leads.iter().filter(|it| **it > 0.0).count();
    Ok(json!({
        "loss": total.to_scalar::<f64>()?,
        "grad_chosen_rewards": gradient(&total, &chosen)?,
        "grad_rejected_rewards": gradient(&total, &rejected)?,
        "metrics": {
            "accuracy": right as f64 / leads.len().max(1) as f64,
            "margin": mean(&leads),
        },
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShapingSettings {
    #[serde(rename = "T_max")]
    t_max: Option<usize>,
    overlong_buffer: Option<usize>,
    penalty_factor: Option<f64>,
    cap_at_factor: Option<bool>,
    coefficient: Option<f64>,
}

#[derive(Deserialize)]
struct ShapingCase {
    rewards: Vec<f64>,
    response_lengths: Option<Vec<usize>>,
    truncated: Option<Vec<u8>>,
}

fn shaping(case: &Case) -> Outcome {
    let settings: ShapingSettings = case.settings()?;
    let inputs: ShapingCase = case.inputs()?;
    let rewards: Vec<f64> = match (case.algorithm.as_str(), settings.coefficient) {
        ("stop_properly", Some(coefficient)) => {
            let truncated = inputs.truncated.ok_or_else(|| missing("truncated"))?;
            let pairs = inputs.rewards.iter().zip(truncated);
            let shaped = |(reward, cut): (&f64, u8)| match cut {
                0 => *reward,
                _ => cut_off_reward(*reward, coefficient),
            };
            pairs.map(shaped).collect()
        }
        ("soft_overlong", None) => {
            let (Some(longest), Some(buffer), Some(factor)) =
                (settings.t_max, settings.overlong_buffer, settings.penalty_factor)
            else {
                let told = "soft_overlong without T_max, overlong_buffer and penalty_factor";
                return Err(NoResult::Unsupported(told.into()));
            };
            let lengths = inputs.response_lengths.ok_or_else(|| missing("response_lengths"))?;
            let soft = SoftOverlong { buffer: Some(buffer), factor };
            let capped = settings.cap_at_factor.unwrap_or(true);
            let pairs = inputs.rewards.iter().zip(lengths);
            pairs.map(|(reward, length)| reward - soft.penalty(length, longest, capped)).collect()
        }
        (other, _) => return Err(NoResult::Unsupported(format!("shaping `{other}`"))),
    };
    Ok(json!({"rewards": rewards}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MetricSettings {
    estimator: Option<String>,
    aggregation: Option<AggregationSettings>,
    importance_correction: Option<ImportanceCorrection>,
}

#[derive(Deserialize)]
struct MetricCase {
    num_samples: Option<Vec<u64>>,
    num_correct: Option<Vec<u64>>,
    k: Option<Vec<u64>>,
    logits: Option<Vec<Vec<Vec<f64>>>>,
    mask: Option<Vec<Vec<u8>>>,
    behavior_logprobs: Option<Grid>,
    sampler_logprobs: Option<Grid>,
}

fn metric(case: &Case) -> Outcome {
    let settings: MetricSettings = case.settings()?;
    let inputs: MetricCase = case.inputs()?;
    match case.algorithm.as_str() {
        "pass_at_k" => {
            if settings.estimator.as_deref().is_some_and(|it| it != "unbiased") {
                return Err(NoResult::Unsupported("an estimator other than unbiased".into()));
            }
            let samples = inputs.num_samples.ok_or_else(|| missing("num_samples"))?;
            let correct = inputs.num_correct.ok_or_else(|| missing("num_correct"))?;
            let ks = inputs.k.ok_or_else(|| missing("k"))?;
            let row = |k: &u64| -> Vec<f64> {
                let tasks = samples.iter().zip(&correct);
                tasks.map(|(n, c)| pass_at_k(*n as usize, *c as usize, *k as usize)).collect()
            };
            Ok(json!({"pass_at_k": ks.iter().map(row).collect::<Vec<_>>()}))
        }
        "entropy" => {
            let logits = inputs.logits.ok_or_else(|| missing("logits"))?;
            let mask = inputs.mask.ok_or_else(|| missing("mask"))?;
            let layout = Layout::new(&mask);
            let slopes = |row: &Vec<f64>| {
                let mut slopes = row.clone();
                let entropy = token_logprobs::entropy_gradient(&mut slopes, 1.0);
                (entropy, slopes)
            };
            let all: Vec<Vec<(f64, Vec<f64>)>> =
                logits.iter().map(|rows| rows.iter().map(slopes).collect()).collect();
            let entropies: Grid =
                all.iter().map(|rows| rows.iter().map(|it| it.0).collect()).collect();
            let flat = layout.flat("logits", &entropies)?;
            let mean = match settings.aggregation {
                Some(aggregation) => {
                    let groups: Vec<usize> = (0..layout.lengths.len()).collect();
                    let weights = aggregation.weights(&layout.lengths, &groups)?;
                    let weights = spread(&weights, &layout.lengths);
                    flat.iter().zip(weights).map(|(entropy, weight)| entropy * weight).sum()
                }
                None => mean(&flat),
            };
            let slopes: Vec<Vec<&Vec<f64>>> =
                all.iter().map(|rows| rows.iter().map(|it| &it.1).collect()).collect();
            Ok(json!({
                "token_entropy": entropies, "mean_entropy": mean, "grad_logits": slopes,
            }))
        }
        "importance_weights" => {
            let correction = settings
                .importance_correction
                .ok_or_else(|| NoResult::Unsupported("no `importance_correction`".into()))?;
            let layout = Layout::new(&inputs.mask.ok_or_else(|| missing("mask"))?);
            let flat = |name: &str, grid: Option<Grid>| {
                layout.flat(name, &grid.ok_or_else(|| missing(name))?)
            };
            let behavior = flat("behavior_logprobs", inputs.behavior_logprobs)?;
            let sampler = flat("sampler_logprobs", inputs.sampler_logprobs)?;
            let corrected = correction.corrected(&layout.lengths, &behavior, &sampler);
            Ok(json!({
                "weights": layout.grid(&corrected.weights),
                "mean_weight_before_truncation": corrected.mean_weight,
                "effective_sample_size": corrected.effective_sample_size,
            }))
        }
        other => Err(NoResult::Unsupported(format!("metric `{other}`"))),
    }
}
