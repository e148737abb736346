//! What every algorithm must satisfy; run over the table by `tests/contracts.rs`.

use candle_core::{Device, Tensor, Var};
use rand::{RngExt, SeedableRng};

use super::{Algorithm, LossInputs};
use crate::error::Error;

/// Checks an algorithm with its penalties off; returns every broken promise.
///
/// # Errors
/// If the algorithm itself fails.
pub fn check_algorithm(algorithm: &dyn Algorithm) -> Result<Vec<String>, Error> {
    let mut broken = Vec::new();
    check_credit(algorithm, &mut broken);
    check_gradient(algorithm, &mut broken)?;
    Ok(broken)
}

fn check_credit(algorithm: &dyn Algorithm, broken: &mut Vec<String>) {
    let mut stream = rand_chacha::ChaCha8Rng::seed_from_u64(11);
    let size = algorithm.requires().smallest_group.max(4);
    for _ in 0..200 {
        let rewards: Vec<f32> = (0..size).map(|_| stream.random::<f32>()).collect();
        let credit = algorithm.assign_credit(&rewards);
        if credit.len() != rewards.len() || credit.iter().any(|it| !it.is_finite()) {
            broken.push(format!("credit {credit:?} of rewards {rewards:?}"));
            return;
        }
        let raised_reply = stream.random_range(0..size);
        let mut raised = rewards.clone();
        raised[raised_reply] += 0.5;
        let after = algorithm.assign_credit(&raised);
        // One ulp of slack: the group's mean and spread are sums in f32.
        if after[raised_reply] < credit[raised_reply] - 1e-5 {
            broken.push(format!("raising reward {raised_reply} of {rewards:?} lowered its credit"));
        }
    }
    let same = algorithm.assign_credit(&vec![1.0; size]);
    if same.iter().any(|it| *it != same[0]) {
        broken.push(format!("equal rewards give different credit {same:?}"));
    }
}

fn check_gradient(algorithm: &dyn Algorithm, broken: &mut Vec<String>) -> Result<(), Error> {
    let advantages = [1.5f32, -0.5, 0.0, 2.0, -3.0];
    let behavior = [-0.1f32, -2.0, -1.0, -0.01, -5.0];
    let logprobs = Var::new(&behavior, &Device::Cpu)?;
    let behavior = Tensor::new(&behavior, &Device::Cpu)?;
    let credit = Tensor::new(&advantages, &Device::Cpu)?;
    let reference = algorithm.requires().reference.then(|| behavior.clone());
    let loss = algorithm.loss(&LossInputs {
        logprobs: &logprobs,
        behavior_logprobs: &behavior,
        reference_logprobs: reference.as_ref(),
        advantages: &credit,
    })?;
    let gradients = loss.losses.sum_all()?.backward()?;
    let slopes = match gradients.get(&logprobs) {
        Some(found) => found.to_vec1::<f32>()?,
        None => vec![0.0; advantages.len()],
    };
    for (slope, advantage) in slopes.iter().zip(advantages) {
        if (slope + advantage).abs() > 1e-5 {
            broken.push(format!("advantage {advantage} gives the gradient {slope}"));
        }
    }
    Ok(())
}
