//! Log-probability of each row's target under the head, and the entropy of the row.
//!
//! ```text
//! z = hidden wᵀ / temperature        logprob_t = z_t,target - logsumexp(z_t)
//! entropy_t = logsumexp(z_t) - Σ_j p_tj z_tj
//! ```
//!
//! `hidden` is `(tokens, hidden)`, `w` is `(vocab, hidden)`; results are `(tokens)`, in nats.
//! Backward, with g the gradient by the log-probabilities, s that by the entropies and e the
//! one-hot target:
//!
//! ```text
//! dz_tj = (g_t (e_target,j - p_tj) - s_t p_tj (log p_tj + entropy_t)) / temperature
//! dhidden = dz w        dw = dzᵀ hidden
//! ```
//!
//! The derivative of the entropy follows from dH = -Σ_j (log p_j + 1) dp_j, the 1 vanishing because
//! Σ_j dp_j = 0. [`entropy`] and [`entropy_gradient`] are the same for one row in f32 or f64.
//!
//! Rows are taken in chunks, so that at most `CHUNK_LOGITS` logits exist at once. Where all fit
//! into one chunk the backward pass finds them there; else it computes them anew.

use candle_core::{D, Device, Result, Tensor};
use multiversion::multiversion;
use num_traits::Float;
use rayon::prelude::*;

use super::lanes::{LANES, PARALLEL_ELEMENTS, exp, folded, max};
use super::linear;
use super::matmul::{Job, Out, Output, Panels, Right, View, matmul, matmuls};

/// The same of candle's own operations, log-probabilities and entropies: the reference.
pub fn composed(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    temperature: f64,
) -> Result<(Tensor, Tensor)> {
    let logits = (hidden.matmul(&head.t()?)? / temperature)?;
    let logprobs = candle_nn::ops::log_softmax(&logits, D::Minus1)?; // (tokens, vocab)
    let entropies = (logprobs.exp()? * &logprobs)?.sum(D::Minus1)?.neg()?;
    let index = Tensor::from_slice(targets, (targets.len(), 1), &Device::Cpu)?;
    Ok((logprobs.gather(&index, D::Minus1)?.squeeze(1)?, entropies))
}

/// Entropy of softmax(`logits`), in nats: ln Σ_j e^u_j - Σ_j u_j e^u_j / Σ_j e^u_j with
/// u = logits - their largest. 0 of an empty row; a logit of negative infinity counts for nothing.
pub fn entropy<F: Float>(logits: &[F]) -> F {
    distribution(logits).entropy
}

/// Replaces each logit by `slope` times the derivative of the [`entropy`] by it,
/// -slope · p_j (log p_j + H), and gives the entropy H. What the backward pass runs element by
/// element, for one row in the caller's precision.
///
/// Logits divided by a temperature give the gradient by the quotients; `slope` divided by it as well
/// gives that by the logits.
pub fn entropy_gradient<F: Float>(logits: &mut [F], slope: F) -> F {
    let Distribution { logsumexp, entropy } = distribution(logits);
    for z in logits {
        let logprob = *z - logsumexp;
        let p = logprob.exp();
        // 0 · log 0 is 0, not NaN.
        let known = if p > F::zero() { logprob } else { F::zero() };
        *z = logit_slope(p, known, entropy, F::zero(), slope);
    }
    entropy
}

/// The derivative by one logit that is not the target, of g · logprob + s · entropy: with a zero
/// `s` or `g`, of the other alone.
#[inline(always)]
fn logit_slope<F: Float>(p: F, logprob: F, entropy: F, g: F, s: F) -> F {
    -p * (g + s * (logprob + entropy))
}

struct Distribution<F> {
    logsumexp: F,
    entropy: F,
}

fn distribution<F: Float>(logits: &[F]) -> Distribution<F> {
    let largest = logits.iter().copied().fold(F::neg_infinity(), F::max);
    let (mut sum, mut weighted) = (F::zero(), F::zero());
    for u in logits.iter().map(|z| *z - largest) {
        let e = u.exp();
        sum = sum + e;
        weighted = weighted + if e > F::zero() { u * e } else { F::zero() };
    }
    if sum == F::zero() {
        return Distribution { logsumexp: largest, entropy: F::zero() };
    }
    let log_sum = sum.ln();
    Distribution { logsumexp: largest + log_sum, entropy: log_sum - weighted / sum }
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
    inverse_temperature: Option<f32>,
    logsumexps: Vec<f32>,
    entropies: Vec<f32>,
    /// All logits if they fit, else those of the last chunk.
    logits: Vec<f32>,
}

impl Scored {
    /// Forgets the rows; keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.targets.clear();
        self.inverse_temperature = None;
    }

    /// How many rows were scored.
    pub(crate) fn rows(&self) -> usize {
        self.targets.len()
    }

    /// 1 / the temperature of the logits of the last rows, if there are some.
    pub(crate) fn inverse_temperature(&self) -> Option<f32> {
        self.inverse_temperature
    }
}

/// All logits divided by the temperature, `(rows, vocab)`. Leaves no score of the rows.
pub(crate) fn logits(
    hidden: &[f32],
    width: usize,
    head: &[f32],
    temperature: f64,
    scored: &mut Scored,
) -> Vec<f32> {
    scored.clear();
    let scale = (1.0 / temperature) as f32;
    scored.inverse_temperature = Some(scale);
    let mut logits = vec![0.0; hidden.len() / width * (head.len() / width)];
    if !logits.is_empty() {
        chunk_logits(&mut logits, hidden, head, scale, width);
    }
    logits
}

/// Gradients from those by the divided [`logits`]: `dhidden` is overwritten; so is `dhead` unless
/// `output` says to add. At least one row.
pub(crate) fn logits_backward(
    hidden: &[f32],
    width: usize,
    head: &[f32],
    g: &[f32],
    inverse_temperature: f32,
    dhidden: &mut [f32],
    dhead: Option<(&mut [f32], Output)>,
) {
    let vocab = head.len() / width;
    let job = linear::backward_input(g, vocab, Right::Rows(head, width), dhidden, width);
    let mut jobs = vec![Job { scale: inverse_temperature, ..job }];
    if let Some((dhead, output)) = dhead {
        let job = linear::backward_weight(g, vocab, hidden, width, dhead);
        jobs.push(Job { output, scale: inverse_temperature, ..job });
    }
    matmuls(jobs);
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
    let scale = (1.0 / temperature) as f32;
    scored.inverse_temperature = Some(scale);
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
        chunk_logits(logits, hidden, head, scale, width);
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
    scored.entropies.clear();
    scored.entropies.extend_from_slice(&entropies);
    (logprobs, entropies)
}

/// What the backward pass starts from, one of each for every row.
#[derive(Clone, Copy)]
pub(crate) struct Slopes<'a> {
    /// The gradient by the log-probabilities.
    pub logprobs: &'a [f32],
    /// The gradient by the entropies; none is zero.
    pub entropies: Option<&'a [f32]>,
}

/// Gradients from those by the scores: `dhidden` is overwritten; so is `dhead` unless `output` says
/// to add.
pub(crate) fn backward(
    hidden: &[f32],
    width: usize,
    head: &[f32],
    slopes: Slopes<'_>,
    scored: &mut Scored,
    dhidden: &mut [f32],
    dhead: Option<(&mut [f32], Output)>,
) {
    let vocab = head.len() / width;
    let chunk = rows_per_chunk(vocab);
    let Scored { targets, inverse_temperature, logsumexps, entropies, logits } = scored;
    let inverse_temperature = inverse_temperature.unwrap_or(1.0);
    let kept = targets.len() <= chunk;
    let mut dhead = dhead;
    let chunks = hidden.chunks(chunk * width).zip(dhidden.chunks_mut(chunk * width));
    for (index, (hidden, dhidden)) in chunks.enumerate() {
        let first = index * chunk;
        let count = hidden.len() / width;
        let dz = &mut logits[..count * vocab];
        if !kept {
            chunk_logits(dz, hidden, head, inverse_temperature, width);
        }
        let row_gradient = |(row, dz): (usize, &mut [f32])| {
            let row = first + row;
            let slope = slopes.logprobs[row] * inverse_temperature;
            match slopes.entropies {
                None => logit_gradients(dz, logsumexps[row], -slope),
                Some(by) => {
                    let (logsumexp, entropy) = (logsumexps[row], entropies[row]);
                    let by_entropy = by[row] * inverse_temperature;
                    score_gradients(dz, logsumexp, entropy, slope, by_entropy);
                }
            }
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

/// z -> the gradient by it of slope · logprob + by_entropy · entropy, but for the target's own share,
/// in place.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn score_gradients(logits: &mut [f32], logsumexp: f32, entropy: f32, slope: f32, by_entropy: f32) {
    for z in logits {
        let logprob = *z - logsumexp;
        *z = logit_slope(exp(logprob), logprob, entropy, slope, by_entropy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peaked row, a flat one and one far from zero.
    fn rows() -> Vec<Vec<f64>> {
        let row = |scale: f64, shift: f64| {
            (0..37).map(|at| scale * f64::from(at * at % 17).sin() + shift).collect()
        };
        vec![row(8.0, 0.0), row(0.1, 3.0), row(2.0, -400.0), vec![1.5]]
    }

    #[test]
    fn the_gradient_of_the_entropy_is_its_slope() {
        for row in rows() {
            let mut gradient = row.clone();
            let held = entropy_gradient(&mut gradient, 1.7);
            assert_eq!(held, entropy(&row));
            for at in 0..row.len() {
                let moved = |step: f64| {
                    let mut moved = row.clone();
                    moved[at] += step;
                    entropy(&moved)
                };
                let slope = 1.7 * (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((slope - gradient[at]).abs() < 1e-8, "{at}: {slope}, {}", gradient[at]);
            }
        }
    }

    #[test]
    fn the_kernel_and_the_row_formula_agree() {
        for row in rows() {
            let narrow: Vec<f32> = row.iter().map(|z| *z as f32).collect();
            let wide: Vec<f64> = narrow.iter().map(|z| f64::from(*z)).collect();
            let Row { logsumexp, entropy: found, .. } = scored_row(&narrow, 0);
            let mut kernel = narrow.clone();
            score_gradients(&mut kernel, logsumexp, found, 0.0, -0.6);
            let (mut in_f32, mut in_f64) = (narrow, wide);
            let held = entropy_gradient(&mut in_f32, -0.6);
            let exact = entropy_gradient(&mut in_f64, -0.6);
            // logsumexp is as large as the logits, and rounded to their precision.
            let near = |a: f64, b: f64| (a - b).abs() < 2e-6 * (1.0 + logsumexp.abs() as f64);
            assert!(near(f64::from(found), exact) && near(f64::from(held), exact));
            for ((kernel, narrow), exact) in kernel.iter().zip(&in_f32).zip(&in_f64) {
                assert!(near(f64::from(*kernel), *exact) && near(f64::from(*narrow), *exact));
            }
        }
    }

    #[test]
    fn impossible_words_and_empty_rows_have_no_entropy() {
        let mut row = [0.0, f64::NEG_INFINITY, 0.0];
        assert!((entropy(&row) - 2.0_f64.ln()).abs() < 1e-15);
        entropy_gradient(&mut row, 1.0);
        assert!(row.iter().all(|it| it.abs() < 1e-15), "{row:?}");
        assert_eq!(entropy::<f64>(&[]), 0.0);
    }
}
