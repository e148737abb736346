//! What every method must satisfy; run over the table by `tests/contracts.rs`.

use candle_core::{Device, Tensor, Var};
use rand::{RngExt, SeedableRng};

use super::terms::policy_loss::{PartInputs, PolicyLoss, StepNumbers};
use super::terms::surrogate::values;
use super::{Algorithm, Credit, Objective, Rollouts};
use crate::error::Error;

/// Checks a method; returns every broken promise.
///
/// # Errors
/// If the method itself fails.
pub fn check_algorithm(algorithm: &Algorithm) -> Result<Vec<String>, Error> {
    let mut broken = Vec::new();
    check_credit(algorithm, &mut broken);
    if let Objective::Policy(loss) = &algorithm.objective {
        check_gradient(loss, &mut broken)?;
        check_parts(loss, &mut broken)?;
    }
    Ok(broken)
}

/// Tokens of the replies that the checks are made on.
const LENGTHS: [usize; 4] = [2, 1, 4, 3];

/// Credit of each reply's last token, from rewards alone, in a step of one group.
fn credit_of(algorithm: &Algorithm, rewards: &[f32]) -> Vec<f64> {
    let rewards: Vec<f64> = rewards.iter().map(|it| f64::from(*it)).collect();
    let sampled: Vec<Vec<bool>> = LENGTHS.iter().map(|it| vec![true; *it]).collect();
    let tokens: usize = LENGTHS.iter().sum();
    let zeros = vec![0.0; tokens];
    let assigned = algorithm.assign_credit(&Rollouts {
        rewards: &rewards,
        groups: &[0; LENGTHS.len()],
        sampled: &sampled,
        behavior_logprobs: &zeros,
        reference_logprobs: Some(&zeros),
        values: Some(&zeros),
        kl_weight: 0.0,
    });
    let mut first = 0;
    LENGTHS
        .iter()
        .map(|length| {
            // The last token's: a discount lowers what comes before.
            first += length;
            assigned.advantages.get(first - 1).copied().unwrap_or(f64::NAN)
        })
        .collect()
}

fn check_credit(algorithm: &Algorithm, broken: &mut Vec<String>) {
    let mut stream = rand_chacha::ChaCha8Rng::seed_from_u64(11);
    for _ in 0..200 {
        let rewards: Vec<f32> = LENGTHS.iter().map(|_| stream.random::<f32>()).collect();
        let credit = credit_of(algorithm, &rewards);
        if credit.iter().any(|it| !it.is_finite()) {
            broken.push(format!("credit {credit:?} of rewards {rewards:?}"));
            return;
        }
        for better in 0..LENGTHS.len() {
            for worse in (0..LENGTHS.len()).filter(|it| rewards[*it] < rewards[better]) {
                if credit[better] < credit[worse] - 1e-9 {
                    broken.push(format!("of rewards {rewards:?} the better gets less: {credit:?}"));
                    return;
                }
            }
        }
    }
    let same = credit_of(algorithm, &[1.0; LENGTHS.len()]);
    let compared = !matches!(algorithm.credit, Credit::Gae { .. } | Credit::Returns { .. });
    if compared && same.iter().any(|it| (it - same[0]).abs() > 1e-9) {
        broken.push(format!("equal rewards give different credit {same:?}"));
    }
}

struct Scene {
    behavior: Vec<f64>,
    advantages: Vec<f64>,
    groups: [usize; LENGTHS.len()],
}

impl Scene {
    /// Replies of which each has one credit, the second none.
    fn new() -> Self {
        let tokens: usize = LENGTHS.iter().sum();
        let per_reply = [1.5, 0.0, -3.0, 0.5];
        let pairs = per_reply.iter().zip(LENGTHS);
        Self {
            behavior: (0..tokens).map(|it| -0.1 - 0.4 * it as f64).collect(),
            advantages: pairs
                .flat_map(|(advantage, length)| std::iter::repeat_n(*advantage, length))
                .collect(),
            groups: [0, 0, 1, 1],
        }
    }

    /// Loss and gradient by each token, in parts that end after these replies.
    fn run(
        &self,
        loss: &PolicyLoss,
        logprobs: &[f64],
        ends: &[usize],
    ) -> Result<(f64, Vec<f64>), Error> {
        let plan = loss.plan(&StepNumbers {
            lengths: &LENGTHS,
            groups: &self.groups,
            behavior_logprobs: &self.behavior,
            sampler_logprobs: &self.behavior,
            max_tokens: 8,
        });
        let (mut total, mut slopes, mut start) = (0.0, Vec::new(), 0);
        for end in ends {
            let first: usize = LENGTHS[..start].iter().sum();
            let tokens = first..first + LENGTHS[start..*end].iter().sum::<usize>();
            let logprobs = Var::new(&logprobs[tokens.clone()], &Device::Cpu)?;
            let behavior = Tensor::new(&self.behavior[tokens.clone()], &Device::Cpu)?;
            let part = loss.loss(
                &plan,
                start..*end,
                &PartInputs {
                    logprobs: &logprobs,
                    behavior_logprobs: &behavior,
                    sampler_logprobs: &behavior,
                    reference_logprobs: Some(&behavior),
                    entropies: Some(&behavior),
                    advantages: &Tensor::new(&self.advantages[tokens], &Device::Cpu)?,
                },
            )?;
            total += part.loss.to_scalar::<f64>()?;
            match part.loss.backward()?.get(&logprobs) {
                Some(found) => slopes.extend(values(found)?),
                None => slopes.extend(vec![0.0; logprobs.elem_count()]),
            }
            start = *end;
        }
        Ok((total, slopes))
    }
}

/// On fresh samples every loss is REINFORCE: the gradient of a token is minus its credit times the
/// weight of its reply, and nothing where there is no credit.
fn check_gradient(loss: &PolicyLoss, broken: &mut Vec<String>) -> Result<(), Error> {
    if loss.teacher_credit {
        return Ok(());
    }
    let scene = Scene::new();
    let (_, slopes) = scene.run(loss, &scene.behavior, &[LENGTHS.len()])?;
    let mut weights: Vec<(usize, f64)> = Vec::new();
    for (token, (slope, advantage)) in slopes.iter().zip(&scene.advantages).enumerate() {
        if *advantage == 0.0 {
            if slope.abs() > 1e-12 {
                broken.push(format!("token {token} has no credit and the gradient {slope}"));
            }
            continue;
        }
        let weight = -slope / advantage;
        if weight <= 0.0 {
            broken.push(format!("credit {advantage} of token {token} gives the gradient {slope}"));
        }
        let mut end = 0;
        let ends = LENGTHS.iter().map(|it| {
            end += it;
            end
        });
        let reply = ends.take_while(|it| *it <= token).count();
        match weights.iter().find(|it| it.0 == reply) {
            Some((_, first)) if (first - weight).abs() > 1e-9 => {
                broken.push(format!("tokens of reply {reply} weigh {first} and {weight}"));
            }
            Some(_) => {}
            None => weights.push((reply, weight)),
        }
    }
    Ok(())
}

fn check_parts(loss: &PolicyLoss, broken: &mut Vec<String>) -> Result<(), Error> {
    let scene = Scene::new();
    let moved: Vec<f64> =
        scene.behavior.iter().enumerate().map(|(at, it)| it + 0.3 * (at as f64).sin()).collect();
    let (whole, slopes) = scene.run(loss, &moved, &[LENGTHS.len()])?;
    for ends in [&[1, 2, 3, 4][..], &[3, 4], &[1, 4]] {
        let (total, by_token) = scene.run(loss, &moved, ends)?;
        let far = slopes.iter().zip(&by_token).any(|(one, other)| (one - other).abs() > 1e-12);
        if far || (whole - total).abs() > 1e-12 {
            broken.push(format!("cut after replies {ends:?} the loss is {total}, whole {whole}"));
        }
    }
    Ok(())
}
