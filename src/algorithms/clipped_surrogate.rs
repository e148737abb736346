//! The PPO term (Schulman et al. 2017, arXiv:1707.06347, eq. 7), shared by its descendants.
//!
//! With r = pi_theta(token) / pi_old(token) and advantage A, the loss of a token is
//! `max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))`. Different bounds below and above are
//! DAPO's clip-higher (arXiv:2503.14476 eq. 10).

use candle_core::Tensor;

/// Bounds the log-ratio before its exponential, so that one stray token cannot make infinity.
const LOG_RATIO_BOUND: f64 = 20.0;

/// Loss of each token, `(tokens)`, with gradient through `logprobs`.
///
/// All inputs are `(tokens)`; `behavior_logprobs` are those recorded when the tokens were sampled.
///
/// # Errors
/// If the shapes disagree.
pub fn clipped_surrogate(
    logprobs: &Tensor,
    behavior_logprobs: &Tensor,
    advantages: &Tensor,
    clip_low: f64,
    clip_high: f64,
) -> candle_core::Result<Tensor> {
    let log_ratio = (logprobs - behavior_logprobs)?.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)?;
    let ratio = log_ratio.exp()?;
    let clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)?;
    let surrogate = (&ratio * advantages)?.minimum(&(&clipped * advantages)?)?;
    surrogate.neg()
}

/// Tokens whose ratio the clip held back: outside the bound on the side its advantage pushes to.
pub fn clipped_tokens(
    logprobs: &[f32],
    behavior_logprobs: &[f32],
    advantages: &[f32],
    clip_low: f64,
    clip_high: f64,
) -> usize {
    logprobs
        .iter()
        .zip(behavior_logprobs)
        .zip(advantages)
        .filter(|((now, then), advantage)| {
            let ratio = f64::from(*now - *then).exp();
            (ratio > 1.0 + clip_high && **advantage > 0.0)
                || (ratio < 1.0 - clip_low && **advantage < 0.0)
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    /// Loss and gradient of single tokens at given ratios, by hand.
    #[test]
    fn loss_and_gradient_follow_the_formula() {
        // (ratio, advantage, loss, d loss / d log ratio) with both clips 0.2
        let table = [
            (1.0, 2.0, -2.0, -2.0),
            (1.0, -1.0, 1.0, 1.0),
            (1.1, 1.0, -1.1, -1.1),
            (1.5, 1.0, -1.2, 0.0),
            (1.5, -1.0, 1.5, 1.5),
            (0.5, 1.0, -0.5, -0.5),
            (0.5, -1.0, 0.8, 0.0),
        ];
        for (ratio, advantage, loss, gradient) in table {
            let logprobs = Var::new(&[f64::ln(ratio)], &Device::Cpu).expect("var");
            let behavior = Tensor::new(&[0.0f64], &Device::Cpu).expect("tensor");
            let advantages = Tensor::new(&[advantage], &Device::Cpu).expect("tensor");
            let got = clipped_surrogate(&logprobs, &behavior, &advantages, 0.2, 0.2).expect("loss");
            let grads = got.sum_all().and_then(|it| it.backward()).expect("backward");
            let got = got.to_vec1::<f64>().expect("loss")[0];
            let slope = grads.get(&logprobs).map_or(0.0, |it| it.to_vec1::<f64>().expect("g")[0]);
            assert!((got - loss).abs() < 1e-9, "ratio {ratio} advantage {advantage}: loss {got}");
            assert!(
                (slope - gradient).abs() < 1e-9,
                "ratio {ratio} advantage {advantage}: {slope}"
            );
        }
    }
}
