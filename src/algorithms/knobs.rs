//! Settings that all methods share: they stand in the same table as the method's own, and each takes
//! the method's value where it is absent. What makes no sense for a method is refused at the start.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tallow_verifiers::ConfigFault;
use tallow_verifiers::config_fault::nearest;

use super::terms::aggregation::Aggregation;
use super::terms::baseline::{Baseline, Normalise, Whitening};
use super::terms::importance::ImportanceCorrection;
use super::terms::kl::{AdaptiveKl, KlClamps, KlEstimator, KlPenalty};
use super::terms::policy_loss::PolicyLoss;
use super::terms::shaping::SoftOverlong;
use super::terms::surrogate::Surrogate;
use super::{Algorithm, Credit, KlInReward, Objective, OldPolicy, Reference, Refill, ZeroVariance};

/// See the head of this file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Knobs {
    /// How token losses become one number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<Aggregation>,
    /// What credit is divided by; for credit of single tokens `batch` whitens, `none` does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalise: Option<Normalise>,
    /// Penalty on the distance to a reference policy; weight 0 keeps none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<KlConfig>,
    /// Weight of the entropy of the policy, which is maximised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy_bonus: Option<f64>,
    /// c: where credit is negative a token's loss is at most -c times its credit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dual_clip: Option<f64>,
    /// Bounds of a reward, before any baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_clip: Option<[f64; 2]>,
    /// Taken off the reward of a reply of `max_tokens`, and proportionally for shorter ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length_penalty: Option<f64>,
    /// What the reward of a reply that was cut off is multiplied by, or, below 0, replaced by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_off_reward: Option<f64>,
    /// Soft punishment of replies near `max_tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlong: Option<SoftOverlong>,
    /// Replies that were cut off do not learn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlong_filter: Option<bool>,
    /// What becomes of groups whose rewards are all equal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero_variance: Option<ZeroVariance>,
    /// Play more tasks until enough groups have differing rewards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refill: Option<Refill>,
    /// Whose log-probabilities stand for the policy before the update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_policy: Option<OldPolicy>,
    /// Correction for a sampler that is not the policy before the update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correction: Option<ImportanceCorrection>,
    /// Bad replies do not learn once the policy has left them by this many nats a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub off_policy_mask: Option<f64>,
}

/// A KL penalty.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct KlConfig {
    /// Its weight; where it adapts, the first.
    pub weight: f64,
    /// Which estimate.
    pub estimator: KlEstimator,
    /// Whether it is part of the loss or of the reward.
    pub place: KlPlace,
    /// In the loss: multiply each estimate by the importance ratio.
    pub times_ratio: bool,
    /// Move the weight to hold the KL at a target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<AdaptiveKl>,
    /// The reference becomes the policy of now every so many steps; 0: never.
    pub refresh_every: u64,
    /// Keep the reference and log the distance to it though the weight is 0.
    pub watch: bool,
}

impl Default for KlConfig {
    fn default() -> Self {
        Self {
            weight: 0.01,
            estimator: KlEstimator::K3,
            place: KlPlace::Loss,
            times_ratio: false,
            adaptive: None,
            refresh_every: 0,
            watch: false,
        }
    }
}

/// Where a KL penalty stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KlPlace {
    /// Added to the loss, with gradient.
    Loss,
    /// Taken off the reward, without.
    Reward,
}

const NAMES: &[&str] = &[
    "aggregation",
    "normalise",
    "kl",
    "entropy_bonus",
    "dual_clip",
    "reward_clip",
    "length_penalty",
    "cut_off_reward",
    "overlong",
    "overlong_filter",
    "zero_variance",
    "refill",
    "old_policy",
    "correction",
    "off_policy_mask",
];

impl Knobs {
    /// Divides a method's table into the knobs and its own settings.
    pub fn split(options: Value) -> (Value, Value) {
        let Value::Object(options) = options else { return (Value::Null, options) };
        let (knobs, own): (Map<_, _>, Map<_, _>) =
            options.into_iter().partition(|(key, _)| NAMES.contains(&key.as_str()));
        (knobs.into(), own.into())
    }

    /// A fault of a method's own settings that names an unknown key, with the knobs among those it
    /// could have been.
    pub fn also_known(mut fault: ConfigFault) -> ConfigFault {
        if let Some(name) = fault.problem.strip_prefix("unknown key `") {
            let name = name.trim_end_matches('`').to_owned();
            let knobs = NAMES.iter().map(|it| format!("`{it}`")).collect::<Vec<_>>().join(", ");
            fault.expected = Some(match fault.expected {
                Some(own) => format!("{own}, or one that all methods share: {knobs}"),
                None => format!("one of {knobs}"),
            });
            if let Some(near) = nearest(&name, NAMES) {
                fault.hint.get_or_insert_with(|| format!("did you mean `{near}`?"));
            }
        }
        fault
    }

    /// The knobs as a method sets them.
    pub fn of(algorithm: &Algorithm) -> Self {
        let loss = algorithm.policy_loss();
        let kl = loss.and_then(|it| it.kl).map(|kl| KlConfig {
            weight: kl.weight,
            estimator: kl.estimator,
            place: KlPlace::Loss,
            times_ratio: kl.times_ratio,
            adaptive: algorithm.adaptive_kl,
            refresh_every: algorithm.refresh_every,
            watch: false,
        });
        let in_reward = algorithm.shaping.kl.map(|kl| KlConfig {
            weight: kl.weight,
            estimator: kl.estimator,
            place: KlPlace::Reward,
            times_ratio: false,
            adaptive: algorithm.adaptive_kl,
            refresh_every: algorithm.refresh_every,
            watch: false,
        });
        let whitened = |whitening: Option<Whitening>| {
            if whitening.is_some() { Normalise::Batch } else { Normalise::None }
        };
        Self {
            aggregation: match &algorithm.objective {
                Objective::Policy(loss) => Some(loss.aggregation),
                Objective::Divergence { aggregation, .. } => Some(*aggregation),
                Objective::Pairs(_) => None,
            },
            normalise: match &algorithm.credit {
                Credit::Group { rule, .. } => Some(rule.normalise),
                Credit::Returns { whitening, .. } | Credit::Gae { whitening, .. } => {
                    Some(whitened(*whitening))
                }
                _ => None,
            },
            kl: kl.or(in_reward),
            entropy_bonus: loss.map(|it| it.entropy_bonus),
            dual_clip: match loss.map(|it| &it.surrogate) {
                Some(Surrogate::Clip { dual, .. }) => *dual,
                _ => None,
            },
            reward_clip: algorithm.shaping.reward_clip,
            length_penalty: Some(algorithm.shaping.length_penalty),
            cut_off_reward: algorithm.shaping.cut_off_reward,
            overlong: algorithm.shaping.overlong,
            overlong_filter: Some(algorithm.overlong_filter),
            zero_variance: Some(algorithm.zero_variance),
            refill: algorithm.refill,
            old_policy: Some(algorithm.old_policy),
            correction: loss.and_then(|it| it.correction),
            off_policy_mask: loss.and_then(|it| it.off_policy_mask),
        }
    }

    /// As a table.
    pub fn to_json(&self) -> Map<String, Value> {
        match json!(self) {
            Value::Object(table) => table,
            _ => Map::new(),
        }
    }

    /// Changes a method to these settings.
    ///
    /// # Errors
    /// If one makes no sense for it.
    pub fn apply(&self, algorithm: &mut Algorithm) -> Result<(), ConfigFault> {
        let name = algorithm.name;
        if let Some(aggregation) = self.aggregation {
            match &mut algorithm.objective {
                Objective::Policy(loss) if !loss.is_of_replies() => loss.aggregation = aggregation,
                Objective::Divergence { aggregation: old, .. } => *old = aggregation,
                _ => {
                    return Err(senseless(
                        "aggregation",
                        name,
                        "has one loss a reply or pair, not a token",
                    ));
                }
            }
        }
        if let Some(normalise) = self.normalise {
            apply_normalise(normalise, algorithm)?;
        }
        if let Some(kl) = self.kl {
            apply_kl(kl, algorithm)?;
        }
        if let Some(bonus) = self.entropy_bonus {
            at_least_zero("entropy_bonus", bonus)?;
            policy_loss("entropy_bonus", algorithm)?.entropy_bonus = bonus;
        }
        if let Some(dual) = self.dual_clip {
            match &mut policy_loss("dual_clip", algorithm)?.surrogate {
                Surrogate::Clip { dual: old, .. } => *old = Some(dual),
                _ => return Err(senseless("dual_clip", name, "does not clip as PPO does")),
            }
            if !(dual > 1.0 && dual.is_finite()) {
                return Err(ConfigFault::new("dual_clip", "at 1 or less it would undo the loss")
                    .found(dual)
                    .expected("a number above 1, such as 3.0"));
            }
        }
        if let Some([low, high]) = self.reward_clip {
            if low >= high || low.is_nan() || high.is_nan() {
                return Err(ConfigFault::new("reward_clip", "not an interval")
                    .found(format!("[{low}, {high}]"))
                    .expected("[low, high], such as [-10.0, 10.0]"));
            }
            algorithm.shaping.reward_clip = Some([low, high]);
        }
        if let Some(penalty) = self.length_penalty {
            at_least_zero("length_penalty", penalty)?;
            must_reward("length_penalty", algorithm)?;
            algorithm.shaping.length_penalty = penalty;
        }
        if let Some(coefficient) = self.cut_off_reward {
            if !coefficient.is_finite() {
                return Err(ConfigFault::new("cut_off_reward", "not a number")
                    .found(coefficient)
                    .expected("a factor such as 0.5, or a reward below 0 such as -0.5"));
            }
            must_reward("cut_off_reward", algorithm)?;
            algorithm.shaping.cut_off_reward = Some(coefficient);
        }
        if let Some(overlong) = self.overlong {
            at_least_zero("overlong.factor", overlong.factor)?;
            must_reward("overlong", algorithm)?;
            algorithm.shaping.overlong = Some(overlong);
        }
        if let Some(filter) = self.overlong_filter {
            algorithm.overlong_filter = filter;
        }
        if let Some(zero_variance) = self.zero_variance {
            if zero_variance == ZeroVariance::Drop && !compares(algorithm) {
                let why = "learns from single replies: equal rewards teach it all the same";
                return Err(senseless("zero_variance", name, why));
            }
            algorithm.zero_variance = zero_variance;
        }
        if let Some(refill) = self.refill {
            if !compares(algorithm) {
                let why = "learns from single replies: equal rewards teach it all the same";
                return Err(senseless("refill", name, why));
            }
            if refill.most_batches == 0 {
                return Err(ConfigFault::new("refill.most_batches", "nothing would be played")
                    .found(0)
                    .expected("1 or more, such as 10"));
            }
            algorithm.refill = Some(refill);
        }
        if let Some(old_policy) = self.old_policy {
            algorithm.old_policy = old_policy;
        }
        self.apply_off_policy(algorithm)
    }

    fn apply_off_policy(&self, algorithm: &mut Algorithm) -> Result<(), ConfigFault> {
        let name = algorithm.name;
        let old_policy = algorithm.old_policy;
        if let Some(limit) = self.off_policy_mask {
            at_least_zero("off_policy_mask", limit)?;
            let loss = policy_loss("off_policy_mask", algorithm)?;
            if loss.is_of_replies() {
                return Err(senseless("off_policy_mask", name, "has one loss a reply"));
            }
            loss.off_policy_mask = Some(limit);
        }
        let Some(correction) = self.correction else { return Ok(()) };
        let loss = policy_loss("correction", algorithm)?;
        if loss.is_of_replies() {
            return Err(senseless("correction", name, "has one loss a reply"));
        }
        if old_policy == OldPolicy::Sampler {
            return Err(ConfigFault::new(
                "correction",
                "every weight would be 1: sampler and old policy are the same log-probabilities",
            )
            .found("old_policy = \"sampler\"")
            .expected("old_policy = \"learner\" beside it"));
        }
        if correction.weight.is_none() && correction.filter.is_none() {
            return Err(ConfigFault::new("correction", "neither a weight nor a filter")
                .expected("`weight`, `filter` or both"));
        }
        loss.correction = Some(correction);
        Ok(())
    }
}

fn apply_normalise(normalise: Normalise, algorithm: &mut Algorithm) -> Result<(), ConfigFault> {
    let name = algorithm.name;
    match (&mut algorithm.credit, normalise) {
        (Credit::Group { rule, .. }, _) => {
            if rule.baseline == Baseline::RunnerUp && normalise == Normalise::Mean {
                return Err(senseless("normalise", name, "takes no mean off"));
            }
            rule.normalise = normalise;
        }
        (Credit::Returns { whitening, .. } | Credit::Gae { whitening, .. }, Normalise::Batch) => {
            whitening.get_or_insert_default();
        }
        (Credit::Returns { whitening, .. } | Credit::Gae { whitening, .. }, Normalise::None) => {
            *whitening = None;
        }
        (Credit::Returns { .. } | Credit::Gae { .. }, _) => {
            let why = "gives credit to tokens, not to groups: `batch` or `none`";
            return Err(senseless("normalise", name, why));
        }
        _ => return Err(senseless("normalise", name, "has no credit to normalise")),
    }
    Ok(())
}

/// Refuses what shapes rewards where none is used.
fn must_reward(key: &str, algorithm: &Algorithm) -> Result<(), ConfigFault> {
    match algorithm.credit {
        Credit::Teacher => Err(senseless(key, algorithm.name, "uses no reward")),
        _ => Ok(()),
    }
}

/// Whether credit comes from differences within a group.
fn compares(algorithm: &Algorithm) -> bool {
    matches!(algorithm.credit, Credit::Group { .. } | Credit::Pairs)
}

fn apply_kl(kl: KlConfig, algorithm: &mut Algorithm) -> Result<(), ConfigFault> {
    let name = algorithm.name;
    at_least_zero("kl.weight", kl.weight)?;
    let loss = policy_loss("kl", algorithm)?;
    if loss.teacher_credit {
        return Err(senseless("kl", name, "is itself a distance to its teacher"));
    }
    let no_ratio = matches!(loss.surrogate, Surrogate::Reinforce);
    loss.kl = None;
    algorithm.shaping.kl = None;
    if !matches!(algorithm.reference, Some(Reference::Folder(_))) {
        algorithm.reference = None;
    }
    (algorithm.adaptive_kl, algorithm.refresh_every) = (None, 0);
    if kl.weight == 0.0 {
        if kl.adaptive.is_some() {
            return Err(ConfigFault::new(
                "kl.adaptive",
                "a weight of 0 stays 0 whatever it is multiplied by",
            )
            .expected("kl.weight above 0, such as 0.01"));
        }
        if kl.watch {
            algorithm.reference.get_or_insert(Reference::Start);
        }
        return Ok(());
    }
    match kl.place {
        KlPlace::Loss => {
            if kl.times_ratio && no_ratio {
                return Err(senseless("kl.times_ratio", name, "has no importance ratio"));
            }
            policy_loss("kl", algorithm)?.kl = Some(KlPenalty {
                weight: kl.weight,
                estimator: kl.estimator,
                clamps: KlClamps::USUAL,
                times_ratio: kl.times_ratio,
                aggregation: None,
            });
        }
        KlPlace::Reward => {
            if kl.times_ratio {
                let told = "a KL in the reward has no gradient, so nothing to correct";
                return Err(ConfigFault::new("kl.times_ratio", told).expected("false"));
            }
            if kl.estimator == KlEstimator::K3StraightThroughK2 {
                let told = "a KL in the reward has no gradient: this is k3 there";
                return Err(ConfigFault::new("kl.estimator", told).expected("k1, k2, k3 or abs"));
            }
            if matches!(algorithm.credit, Credit::Verified { .. }) {
                return Err(senseless("kl.place", name, "asks only whether a reply is right"));
            }
            algorithm.shaping.kl = Some(KlInReward { weight: kl.weight, estimator: kl.estimator });
        }
    }
    if let Some(adaptive) = kl.adaptive
        && !(adaptive.target > 0.0 && adaptive.horizon > 0.0)
    {
        return Err(ConfigFault::new("kl.adaptive", "nothing to steer to")
            .found(format!("target {}, horizon {}", adaptive.target, adaptive.horizon))
            .expected("both above 0, such as { target = 0.1, horizon = 10000.0 }"));
    }
    algorithm.reference.get_or_insert(Reference::Start);
    algorithm.adaptive_kl = kl.adaptive;
    algorithm.refresh_every = kl.refresh_every;
    Ok(())
}

fn policy_loss<'a>(
    key: &str,
    algorithm: &'a mut Algorithm,
) -> Result<&'a mut PolicyLoss, ConfigFault> {
    let name = algorithm.name;
    let why = "has no loss of sampled tokens";
    algorithm.policy_loss_mut().ok_or_else(|| senseless(key, name, why))
}

fn senseless(key: &str, method: &str, why: &str) -> ConfigFault {
    ConfigFault::new(key, format!("makes no sense here: `{method}` {why}"))
        .hint(format!("leave out `{key}`, or choose another method"))
}

fn at_least_zero(key: &str, value: f64) -> Result<(), ConfigFault> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(ConfigFault::new(key, "not a weight").found(value).expected("a number of 0 or more"))
}

/// A method's clip: the ratio must have room to move.
///
/// # Errors
/// If it has none.
pub fn must_have_room(key: &str, clip: f64) -> Result<(), ConfigFault> {
    if clip > 0.0 && clip.is_finite() {
        return Ok(());
    }
    Err(ConfigFault::new(key, "the clip must leave the ratio room to move")
        .found(clip)
        .expected("a number above 0, such as 0.2"))
}

/// A share or discount.
///
/// # Errors
/// If it is not between 0 and 1.
pub fn must_be_share(key: &str, value: f64) -> Result<(), ConfigFault> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(ConfigFault::new(key, "out of range").found(value).expected("a number from 0 to 1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithms::BUILTIN;

    #[track_caller]
    fn refused(name: &str, options: Value, key: &str) {
        let entry = BUILTIN.iter().find(|it| it.name == name).expect("built in");
        let fault = entry.build(options.clone()).err();
        let fault = fault.unwrap_or_else(|| panic!("{name} accepts {options}"));
        assert_eq!(fault.key, key, "{fault}");
    }

    #[test]
    fn what_makes_no_sense_is_refused_at_its_key() {
        refused("reinforce", json!({"dual_clip": 3.0}), "dual_clip");
        refused("grpo", json!({"dual_clip": 0.5}), "dual_clip");
        refused("grpo", json!({"correction": {}}), "correction");
        refused("gmpo", json!({"aggregation": "token_mean"}), "aggregation");
        refused("dpo", json!({"kl": {}}), "kl");
        refused("dpo", json!({"entropy_bonus": 0.1}), "entropy_bonus");
        refused("expert_iteration", json!({"kl": {"place": "reward"}}), "kl.place");
        refused("expert_iteration", json!({"refill": {}}), "refill");
        refused("reinforce", json!({"kl": {"times_ratio": true}}), "kl.times_ratio");
        refused("grpo", json!({"kl": {"weight": 0.0, "adaptive": {"target": 1.0}}}), "kl.adaptive");
        refused("grpo", json!({"kl": {"weight": -1.0}}), "kl.weight");
        refused("ppo", json!({"normalise": "group"}), "normalise");
        refused("ppo", json!({"zero_variance": "drop"}), "zero_variance");
        refused("distill", json!({"teacher": "x", "length_penalty": 1.0}), "length_penalty");
        refused("grpo", json!({"reward_clip": [1.0, 0.0]}), "reward_clip");
        refused("grpo", json!({"agregation": "token_mean"}), "agregation");
    }

    #[test]
    fn knobs_read_back_as_they_were_set() {
        let entry = BUILTIN.iter().find(|it| it.name == "grpo").expect("built in");
        let options = json!({
            "aggregation": "prompt_mean", "normalise": "batch", "dual_clip": 3.0,
            "kl": {"weight": 0.5, "estimator": "k1", "place": "reward"},
            "old_policy": "learner", "correction": {}, "overlong": {"factor": 0.5},
        });
        let algorithm = entry.build(options.clone()).expect("sound");
        let (knobs, _) = Knobs::split(options);
        let back = json!(Knobs::of(&algorithm));
        for (key, value) in knobs.as_object().expect("a table") {
            match value {
                Value::Object(table) => {
                    for (inner, value) in table {
                        assert_eq!(&back[key][inner], value, "{key}.{inner}");
                    }
                }
                value => assert_eq!(&back[key], value, "{key}"),
            }
        }
    }
}
