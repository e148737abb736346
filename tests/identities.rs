//! Identities between methods, as properties over random batches: where two formulas must agree, they
//! do, in credit, loss and gradient.

use candle_core::{Device, Tensor, Var};
use proptest::prelude::*;
use serde_json::json;
use tallow::algorithms::terms::aggregation::Aggregation;
use tallow::algorithms::terms::importance::{ImportanceCorrection, Level, Outside, Weight};
use tallow::algorithms::terms::kl::{KlClamps, KlEstimator};
use tallow::algorithms::terms::policy_loss::{
    Anchor, MetricSums, PartInputs, PolicyLoss, RatioLevel, StepNumbers,
};
use tallow::algorithms::terms::returns::{Gae, MaskedReturn, MaskedValue, returns};
use tallow::algorithms::terms::surrogate::{Surrogate, values};
use tallow::algorithms::{Algorithm, BUILTIN, Rollouts};

/// A step of a few replies, some of them empty.
#[derive(Clone, Debug)]
struct Batch {
    lengths: Vec<usize>,
    groups: Vec<usize>,
    logprobs: Vec<f64>,
    behavior: Vec<f64>,
    sampler: Vec<f64>,
    advantages: Vec<f64>,
}

fn batches() -> impl Strategy<Value = Batch> {
    prop::collection::vec(0usize..6, 2..8)
        .prop_filter("some token", |it| it.iter().any(|it| *it > 0))
        .prop_flat_map(|lengths| {
            let tokens: usize = lengths.iter().sum();
            let logprobs = || prop::collection::vec(-4.0f64..-0.01, tokens);
            (
                Just(lengths.clone()),
                logprobs(),
                logprobs(),
                logprobs(),
                prop::collection::vec(-2.0f64..2.0, lengths.len()),
            )
                .prop_map(|(lengths, logprobs, behavior, sampler, credit)| Batch {
                    groups: (0..lengths.len()).map(|it| it / 2).collect(),
                    advantages: credit
                        .iter()
                        .zip(&lengths)
                        .flat_map(|(credit, length)| std::iter::repeat_n(*credit, *length))
                        .collect(),
                    lengths,
                    logprobs,
                    behavior,
                    sampler,
                })
        })
}

struct Ran {
    loss: f64,
    gradient: Vec<f64>,
    metrics: MetricSums,
}

/// Loss, gradient and metrics of a batch, in parts that end after these replies.
fn run(loss: &PolicyLoss, batch: &Batch, ends: &[usize]) -> Ran {
    let plan = loss.plan(&StepNumbers {
        lengths: &batch.lengths,
        groups: &batch.groups,
        behavior_logprobs: &batch.behavior,
        sampler_logprobs: &batch.sampler,
        max_tokens: 8,
    });
    let mut ran = Ran { loss: 0.0, gradient: Vec::new(), metrics: Vec::new() };
    let mut start = 0;
    for end in ends {
        let first: usize = batch.lengths[..start].iter().sum();
        let tokens = first..first + batch.lengths[start..*end].iter().sum::<usize>();
        let cut = |of: &[f64]| Tensor::new(&of[tokens.clone()], &Device::Cpu).expect("a tensor");
        let logprobs = Var::from_tensor(&cut(&batch.logprobs)).expect("a variable");
        let part = loss
            .loss(
                &plan,
                start..*end,
                &PartInputs {
                    logprobs: &logprobs,
                    behavior_logprobs: &cut(&batch.behavior),
                    sampler_logprobs: &cut(&batch.sampler),
                    reference_logprobs: Some(&cut(&batch.sampler)),
                    entropies: None,
                    advantages: &cut(&batch.advantages),
                },
            )
            .expect("a loss");
        ran.loss += part.loss.to_scalar::<f64>().expect("a scalar");
        let gradients = part.loss.backward().expect("a backward pass");
        match gradients.get(&logprobs) {
            Some(slopes) => ran.gradient.extend(values(slopes).expect("values")),
            None => ran.gradient.extend(vec![0.0; tokens.len()]),
        }
        for (name, value) in part.metrics {
            match ran.metrics.iter_mut().find(|it| it.0 == name) {
                Some(sum) => sum.1 += value,
                None => ran.metrics.push((name, value)),
            }
        }
        start = *end;
    }
    ran
}

fn whole(loss: &PolicyLoss, batch: &Batch) -> Ran {
    run(loss, batch, &[batch.lengths.len()])
}

#[track_caller]
fn close(one: f64, other: f64) {
    assert!((one - other).abs() <= 1e-9 * (1.0 + one.abs()), "{one} and {other}");
}

#[track_caller]
fn same(one: &Ran, other: &Ran) {
    close(one.loss, other.loss);
    assert_eq!(one.gradient.len(), other.gradient.len());
    one.gradient.iter().zip(&other.gradient).for_each(|(one, other)| close(*one, *other));
}

fn built(name: &str, options: serde_json::Value) -> Algorithm {
    let entry = BUILTIN.iter().find(|it| it.name == name).expect("it is built in");
    entry.build(options).expect("sound options")
}

fn clip() -> PolicyLoss {
    PolicyLoss::new(Surrogate::Clip { low: Some(0.2), high: Some(0.3), dual: None })
}

/// Credit of replies of one token each.
fn credit(algorithm: &Algorithm, rewards: &[f64], groups: &[usize]) -> Vec<f64> {
    let sampled = vec![vec![true]; rewards.len()];
    let zeros = vec![0.0; rewards.len()];
    let rollouts = Rollouts {
        rewards,
        groups,
        sampled: &sampled,
        behavior_logprobs: &zeros,
        reference_logprobs: None,
        values: None,
        kl_weight: 0.0,
    };
    algorithm.assign_credit(&rollouts).advantages
}

proptest! {
    #[test]
    fn rloo_is_dr_grpo_scaled(rewards in prop::collection::vec(-3.0f64..3.0, 8), size in prop::sample::select(vec![2usize, 4, 8])) {
        let groups: Vec<usize> = (0..8).map(|it| it / size).collect();
        let scale = size as f64 / (size as f64 - 1.0);
        let rloo = credit(&built("rloo", json!({})), &rewards, &groups);
        let dr_grpo = credit(&built("dr_grpo", json!({})), &rewards, &groups);
        rloo.iter().zip(&dr_grpo).for_each(|(rloo, dr)| close(*rloo, scale * dr));
    }

    #[test]
    fn gspo_with_equal_token_ratios_is_ppo(batch in batches(), drift in prop::collection::vec(-0.5f64..0.5, 8)) {
        let mut batch = batch;
        let shifts = drift.iter().zip(&batch.lengths).flat_map(|(drift, length)| std::iter::repeat_n(*drift, *length));
        batch.logprobs = batch.behavior.iter().zip(shifts).map(|(old, shift)| old + shift).collect();
        let ppo = clip().aggregated(Aggregation::SequenceMean);
        let gspo = PolicyLoss { ratio_level: RatioLevel::Sequence, ..ppo.clone() };
        same(&whole(&ppo, &batch), &whole(&gspo, &batch));
    }

    #[test]
    fn k3_is_never_negative(d in -30.0f64..30.0) {
        prop_assert!(KlEstimator::K3.value(d, KlClamps::USUAL) >= 0.0);
        let d = Tensor::new(&[d], &Device::Cpu).expect("a tensor");
        let zero = Tensor::new(&[0.0], &Device::Cpu).expect("a tensor");
        let k3 = KlEstimator::K3.estimate(&d, &zero, KlClamps::USUAL).expect("an estimate");
        prop_assert!(values(&k3).expect("values")[0] >= 0.0);
    }

    #[test]
    fn gae_without_discounts_and_values_is_reward_to_go(steps in prop::collection::vec((-1.0f64..1.0, any::<bool>()), 1..12)) {
        let rewards: Vec<f64> = steps.iter().map(|it| it.0).collect();
        let sampled: Vec<bool> = steps.iter().map(|it| it.1).collect();
        let gae = Gae { gamma: 1.0, lambda: 1.0, masked: MaskedValue::Skip };
        let advantages = gae.advantages(&rewards, &vec![0.0; rewards.len()], &sampled);
        let to_go = returns(&rewards, &sampled, 1.0, MaskedReturn::CarryReturn);
        for position in 0..rewards.len() {
            let later = (position..rewards.len()).filter(|it| sampled[*it]).map(|it| rewards[it]);
            let sum = if sampled[position] { later.sum() } else { 0.0 };
            close(advantages[position], sum);
            close(to_go[position], sum);
        }
    }

    #[test]
    fn the_cut_into_micro_batches_changes_nothing(batch in batches(), cuts in prop::collection::vec(any::<bool>(), 8)) {
        let count = batch.lengths.len();
        let mut ends: Vec<usize> = (1..count).filter(|it| cuts[*it]).collect();
        ends.push(count);
        for aggregation in [Aggregation::TokenMean, Aggregation::SequenceMean, Aggregation::SequenceSum, Aggregation::ConstantLength, Aggregation::PromptMean] {
            let loss = PolicyLoss { correction: Some(ImportanceCorrection::default()), ..clip().aggregated(aggregation) };
            let (one, cut) = (whole(&loss, &batch), run(&loss, &batch, &ends));
            same(&one, &cut);
            for ((name, one), (_, other)) in one.metrics.iter().zip(&cut.metrics) {
                prop_assert!((one - other).abs() < 1e-9, "{}: {} and {}", name, one, other);
            }
        }
    }

    #[test]
    fn at_ratio_one_nothing_is_clipped(batch in batches()) {
        let mut batch = batch;
        batch.logprobs.clone_from(&batch.behavior);
        for loss in [clip(), PolicyLoss { ratio_level: RatioLevel::Sequence, ..clip() }, PolicyLoss { ratio_level: RatioLevel::SequenceProduct, ..clip() }] {
            let ran = whole(&loss, &batch);
            for (name, value) in &ran.metrics {
                prop_assert!(!name.contains("clipped") || *value == 0.0, "{} is {}", name, value);
            }
        }
        // And the loss is minus the mean credit.
        let mean = batch.advantages.iter().sum::<f64>() / batch.advantages.len() as f64;
        close(whole(&clip(), &batch).loss, -mean);
    }

    #[test]
    fn reinforce_with_a_truncated_weight_is_cispo_at_the_sampler(batch in batches()) {
        let cispo = PolicyLoss { anchor: Anchor::Sampler, ..PolicyLoss::new(Surrogate::Cispo { low: None, high: Some(1.0) }) };
        let mut on_policy = batch.clone();
        on_policy.behavior.clone_from(&batch.logprobs);
        let weight = Weight { level: Level::Token, low: None, high: Some(2.0), outside: Outside::Clamp };
        let correction = ImportanceCorrection { weight: Some(weight), ..ImportanceCorrection::default() };
        let reinforce = PolicyLoss { correction: Some(correction), ..PolicyLoss::new(Surrogate::Reinforce) };
        same(&whole(&cispo, &batch), &whole(&reinforce, &on_policy));
    }

    #[test]
    fn masked_positions_have_no_gradient_and_no_say(batch in batches(), noise in prop::collection::vec(-9.0f64..9.0, 64)) {
        // A reply's tokens with tool output between them, as the case format writes it.
        let place = |flat: &[f64], filler: &dyn Fn(usize) -> f64| -> Vec<Vec<f64>> {
            let mut rest = flat.iter();
            batch.lengths.iter().map(|length| {
                (0..2 * length + 1).map(|it| if it % 2 == 1 { *rest.next().expect("a token") } else { filler(it) }).collect()
            }).collect()
        };
        let mask: Vec<Vec<u8>> = batch.lengths.iter().map(|length| (0..2 * length + 1).map(|it| u8::from(it % 2 == 1)).collect()).collect();
        let outputs = |filler: &dyn Fn(usize) -> f64| {
            let case = json!({
                "id": "masked", "kind": "policy_loss", "algorithm": "grpo",
                "hyperparameters": {"surrogate": "clip", "clip_low": 0.2, "clip_high": 0.2, "aggregation": {"mode": "token_mean"},
                    "kl": {"coef": 0.1, "estimator": "k3", "aggregation": "same"}},
                "inputs": {"mask": mask, "logprobs": place(&batch.logprobs, filler), "behavior_logprobs": place(&batch.behavior, filler),
                    "reference_logprobs": place(&batch.sampler, filler), "advantages": place(&batch.advantages, filler)},
            });
            let case: tallow::algorithms::cases::Case = serde_json::from_value(case).expect("a case");
            case.outputs().expect("outputs")
        };
        let quiet = outputs(&|_| 0.0);
        prop_assert_eq!(&quiet, &outputs(&|it| noise[it % noise.len()]));
        for (slopes, mask) in quiet["grad_logprobs"].as_array().expect("rows").iter().zip(&mask) {
            for (slope, counts) in slopes.as_array().expect("a row").iter().zip(mask) {
                prop_assert!(*counts == 1 || slope.as_f64() == Some(0.0));
            }
        }
    }
}
