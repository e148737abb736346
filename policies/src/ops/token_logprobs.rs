//! Log-probability of each row's target under the head, and the entropy of the row.
//!
//! ```text
//! z = hidden wᵀ / temperature        logprob_t = z_t,target - logsumexp(z_t)
//! entropy_t = logsumexp(z_t) - Σ_j p_tj z_tj
//! ```
//!
//! `hidden` is `(tokens, hidden)`, `w` is `(vocab, hidden)`; results are `(tokens)`, in nats.
//! Gradients flow through the log-probabilities only.

use std::sync::Arc;

use candle_core::{D, Device, Result, Tensor};

/// Log-probabilities `(tokens)`, with gradients for `hidden` and `head`, and entropies.
pub fn token_logprobs(
    hidden: &Tensor,
    head: &Tensor,
    targets: &Arc<[u32]>,
    temperature: f64,
) -> Result<(Tensor, Vec<f32>)> {
    composed(hidden, head, targets, temperature)
}

/// The same of candle's own operations: the reference.
pub fn composed(
    hidden: &Tensor,
    head: &Tensor,
    targets: &Arc<[u32]>,
    temperature: f64,
) -> Result<(Tensor, Vec<f32>)> {
    let logits = (hidden.matmul(&head.t()?)? / temperature)?;
    let logprobs = candle_nn::ops::log_softmax(&logits, D::Minus1)?; // (tokens, vocab)
    let entropies = (logprobs.exp()? * &logprobs)?.sum(D::Minus1)?.neg()?.to_vec1()?;
    let index = Tensor::from_slice(targets, (targets.len(), 1), &Device::Cpu)?;
    Ok((logprobs.gather(&index, D::Minus1)?.squeeze(1)?, entropies))
}
