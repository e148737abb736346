//! Log-probability of each row's target under the head, and the entropy of the row.
//!
//! ```text
//! z = hidden wᵀ / temperature        logprob_t = z_t,target - logsumexp(z_t)
//! entropy_t = logsumexp(z_t) - Σ_j p_tj z_tj
//! ```
//!
//! `hidden` is `(tokens, hidden)`, `w` is `(vocab, hidden)`; results are `(tokens)`, in nats.
//! Gradients flow through the log-probabilities only. Backward, with g the gradient of the
//! log-probabilities and e the one-hot target:
//!
//! ```text
//! dz_t = g_t (e_target - p_t) / temperature        dhidden = dz w        dw = dzᵀ hidden
//! ```
//!
//! Rows are taken in chunks, so that at most `CHUNK_LOGITS` logits exist at once. Where all fit
//! into one chunk the backward pass finds them there; else it computes them anew.

use candle_core::{D, Device, Result, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use super::lanes::{LANES, PARALLEL_ELEMENTS, exp, folded, max};
use super::linear;
use super::matmul::{Job, Out, Output, Panels, Right, View, matmul, matmuls};

/// The same of candle's own operations: the reference.
pub fn composed(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    temperature: f64,
) -> Result<(Tensor, Vec<f32>)> {
    let logits = (hidden.matmul(&head.t()?)? / temperature)?;
    let logprobs = candle_nn::ops::log_softmax(&logits, D::Minus1)?; // (tokens, vocab)
    let entropies = (logprobs.exp()? * &logprobs)?.sum(D::Minus1)?.neg()?.to_vec1()?;
    let index = Tensor::from_slice(targets, (targets.len(), 1), &Device::Cpu)?;
    Ok((logprobs.gather(&index, D::Minus1)?.squeeze(1)?, entropies))
}

/// Logits held at once: 128 MiB of them.
const CHUNK_LOGITS: usize = 1 << 25;

/// Fewest rows in a chunk: below this, reading the head outweighs the arithmetic.
const FEWEST_ROWS: usize = 96;

/// Columns of the head made into panels at a time: they stay in a core's own cache.
const PACKED_COLUMNS: usize = 256;

/// What the forward pass leaves for the backward pass.
#[derive(Debug, Default)]
pub(crate) struct Scored {
    targets: Vec<u32>,
    inverse_temperature: f32,
    logsumexps: Vec<f32>,
    /// All logits if they fit, else those of the last chunk.
    logits: Vec<f32>,
}

/// Log-probabilities and entropies, one of each per row.
pub(crate) fn forward(
    hidden: &[f32],
    width: usize,
    head: &[f32],
    targets: &[u32],
    temperature: f64,
    scored: &mut Scored,
) -> (Vec<f32>, Vec<f32>) {
    let vocab = head.len() / width;
    scored.targets.clear();
    scored.targets.extend_from_slice(targets);
    scored.inverse_temperature = (1.0 / temperature) as f32;
    scored.logsumexps.clear();
    let (mut logprobs, mut entropies) =
        (Vec::with_capacity(targets.len()), Vec::with_capacity(targets.len()));
    let chunk = rows_per_chunk(vocab);
    let room = chunk.min(targets.len()) * vocab;
    if scored.logits.len() < room {
        scored.logits.resize(room, 0.0);
    }
    for (hidden, targets) in hidden.chunks(chunk * width).zip(targets.chunks(chunk)) {
        let logits = &mut scored.logits[..targets.len() * vocab];
        chunk_logits(logits, hidden, head, scored.inverse_temperature, width);
        let score = |(logits, &target): (&[f32], &u32)| scored_row(logits, target as usize);
        let rows: Vec<Row> = if logits.len() < PARALLEL_ELEMENTS {
            logits.chunks(vocab).zip(targets).map(score).collect()
        } else {
            logits.par_chunks(vocab).zip(targets).map(score).collect()
        };
        logprobs.extend(rows.iter().map(|row| row.logprob));
        entropies.extend(rows.iter().map(|row| row.entropy));
        scored.logsumexps.extend(rows.iter().map(|row| row.logsumexp));
    }
    (logprobs, entropies)
}

/// Gradients from those of the log-probabilities: `dhidden` is overwritten; so is `dhead` unless
/// `output` says to add.
pub(crate) fn backward(
    hidden: &[f32],
    width: usize,
    head: &[f32],
    g: &[f32],
    scored: &mut Scored,
    dhidden: &mut [f32],
    dhead: Option<(&mut [f32], Output)>,
) {
    let vocab = head.len() / width;
    let chunk = rows_per_chunk(vocab);
    let Scored { targets, inverse_temperature, logsumexps, logits } = scored;
    let kept = targets.len() <= chunk;
    let mut dhead = dhead;
    let chunks = hidden.chunks(chunk * width).zip(dhidden.chunks_mut(chunk * width));
    for (index, (hidden, dhidden)) in chunks.enumerate() {
        let first = index * chunk;
        let count = hidden.len() / width;
        let dz = &mut logits[..count * vocab];
        if !kept {
            chunk_logits(dz, hidden, head, *inverse_temperature, width);
        }
        let row_gradient = |(row, dz): (usize, &mut [f32])| {
            let row = first + row;
            let slope = g[row] * *inverse_temperature;
            logit_gradients(dz, logsumexps[row], -slope);
            dz[targets[row] as usize] += slope;
        };
        if dz.len() < PARALLEL_ELEMENTS {
            dz.chunks_mut(vocab).enumerate().for_each(row_gradient);
        } else {
            dz.par_chunks_mut(vocab).enumerate().for_each(row_gradient);
        }
        let mut jobs =
            vec![linear::backward_input(dz, vocab, Right::Rows(head, width), dhidden, width)];
        if let Some((dhead, output)) = &mut dhead {
            let job = linear::backward_weight(dz, vocab, hidden, width, dhead);
            jobs.push(Job { output: *output, ..job });
        }
        matmuls(jobs);
        if let Some((_, output)) = &mut dhead {
            *output = Output::Add;
        }
    }
}

fn rows_per_chunk(vocab: usize) -> usize {
    (CHUNK_LOGITS / vocab).max(FEWEST_ROWS)
}

/// Logits of some rows: out = scale · hidden wᵀ. Each task makes its own columns of the head into
/// panels, so that the head is read once and never held twice.
fn chunk_logits(out: &mut [f32], hidden: &[f32], head: &[f32], scale: f32, width: usize) {
    let vocab = head.len() / width;
    let work = out.len() * width;
    let blocks = Out::rows(out, vocab).column_blocks(PACKED_COLUMNS);
    let tasks = blocks.into_iter().zip(head.chunks(PACKED_COLUMNS * width));
    let product = |panels: &mut Panels, (mut out, head): (Out<'_>, &[f32])| {
        panels.pack(head, head.len() / width, width);
        let hidden = View::rows(hidden, width);
        matmul(&mut out, Output::Replace, scale, hidden, panels.right(), width);
    };
    if work < PARALLEL_ELEMENTS {
        let mut panels = Panels::default();
        tasks.for_each(|task| product(&mut panels, task));
    } else {
        let tasks: Vec<_> = tasks.collect();
        tasks.into_par_iter().with_max_len(1).for_each_init(Panels::default, product);
    }
}

struct Row {
    logprob: f32,
    logsumexp: f32,
    entropy: f32,
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn scored_row(logits: &[f32], target: usize) -> Row {
    let largest = max(logits);
    // With u = z - max: logsumexp = max + ln Σ e^u, entropy = ln Σ e^u - Σ u e^u / Σ e^u.
    let (mut sums, mut weighted) = ([0.0; LANES], [0.0; LANES]);
    let (rows, rest) = logits.as_chunks::<LANES>();
    for row in rows {
        for lane in 0..LANES {
            let u = row[lane] - largest;
            let e = exp(u);
            sums[lane] += e;
            weighted[lane] += u * e;
        }
    }
    for (lane, &z) in rest.iter().enumerate() {
        let u = z - largest;
        let e = exp(u);
        sums[lane] += e;
        weighted[lane] += u * e;
    }
    let (sum, weighted) = (folded(sums), folded(weighted));
    let log_sum = sum.ln();
    Row {
        logprob: logits[target] - largest - log_sum,
        logsumexp: largest + log_sum,
        entropy: log_sum - weighted / sum,
    }
}

/// z -> scale · p, in place.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn logit_gradients(logits: &mut [f32], logsumexp: f32, scale: f32) {
    for z in logits {
        *z = scale * exp(*z - logsumexp);
    }
}
