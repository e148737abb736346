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
//! Rows are taken in chunks, so that at most `CHUNK_LOGITS` logits exist at once; the
//! backward pass computes them anew from the kept logsumexp.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, D, Device, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::lanes::{LANES, PARALLEL_ELEMENTS, exp, folded, max};
use super::matmul::{Extent, Output, View, parallel_matmul};
use super::slices::{Values, values};

/// Log-probabilities `(tokens)`, with gradients for `hidden` and `head`, and entropies.
pub fn token_logprobs(
    hidden: &Tensor,
    head: &Tensor,
    targets: &Arc<[u32]>,
    temperature: f64,
) -> Result<(Tensor, Vec<f32>)> {
    let rows: Arc<Mutex<RowSums>> = Arc::default();
    let op = TokenLogprobs {
        targets: Arc::clone(targets),
        inverse_temperature: (1.0 / temperature) as f32,
        rows: Arc::clone(&rows),
    };
    let logprobs = hidden.contiguous()?.apply_op2(&head.contiguous()?, op)?;
    let entropies = std::mem::take(&mut locked(&rows).entropies);
    Ok((logprobs, entropies))
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

/// Logits held at once: 64 MiB of them.
const CHUNK_LOGITS: usize = 1 << 24;

/// Fewest rows in a chunk: below this, reading the head outweighs the arithmetic.
const FEWEST_ROWS: usize = 64;

struct TokenLogprobs {
    targets: Arc<[u32]>,
    inverse_temperature: f32,
    /// Written by the forward pass, read by the backward pass; never contended.
    rows: Arc<Mutex<RowSums>>,
}

/// What the forward pass leaves behind, one of each per row.
#[derive(Default)]
struct RowSums {
    logsumexps: Vec<f32>,
    entropies: Vec<f32>,
}

fn locked(rows: &Mutex<RowSums>) -> std::sync::MutexGuard<'_, RowSums> {
    rows.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Logits of some rows: out = scale · hidden wᵀ.
fn chunk_logits(out: &mut [f32], hidden: &[f32], head: &[f32], scale: f32, width: usize) {
    let (rows, vocab) = (hidden.len() / width, head.len() / width);
    let extent = Extent { rows, columns: vocab, inner: width };
    let (hidden, head) = (View::rows(hidden, width), View::rows(head, width).transposed());
    parallel_matmul(out, Output::Replace, scale, hidden, head, extent);
}

fn rows_per_chunk(vocab: usize) -> usize {
    (CHUNK_LOGITS / vocab).max(FEWEST_ROWS)
}

impl CustomOp2 for TokenLogprobs {
    fn name(&self) -> &'static str {
        "token_logprobs"
    }

    fn cpu_fwd(
        &self,
        hidden: &CpuStorage,
        hidden_layout: &Layout,
        head: &CpuStorage,
        head_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (tokens, width) = hidden_layout.shape().dims2()?;
        let (vocab, head_width) = head_layout.shape().dims2()?;
        if width != head_width || tokens != self.targets.len() {
            bail!(
                "token_logprobs: hidden ({tokens}, {width}), head ({vocab}, {head_width}), {} targets",
                self.targets.len()
            );
        }
        if let Some(target) = self.targets.iter().find(|&&target| target as usize >= vocab) {
            bail!("token_logprobs: target {target} for a vocabulary of {vocab}");
        }
        let (hidden, head) = (values(hidden, hidden_layout)?, values(head, head_layout)?);
        let chunk = rows_per_chunk(vocab);
        let mut logits = vec![0.0; chunk.min(tokens) * vocab];
        let mut rows: Vec<Row> = Vec::with_capacity(tokens);
        for (hidden, targets) in hidden.chunks(chunk * width).zip(self.targets.chunks(chunk)) {
            let logits = &mut logits[..targets.len() * vocab];
            chunk_logits(logits, hidden, head, self.inverse_temperature, width);
            if logits.len() < PARALLEL_ELEMENTS {
                let scored = logits.chunks(vocab).zip(targets);
                rows.extend(scored.map(|(logits, &target)| scored_row(logits, target as usize)));
            } else {
                let scored = logits.par_chunks(vocab).zip(targets);
                rows.par_extend(
                    scored.map(|(logits, &target)| scored_row(logits, target as usize)),
                );
            }
        }
        *locked(&self.rows) = RowSums {
            logsumexps: rows.iter().map(|row| row.logsumexp).collect(),
            entropies: rows.iter().map(|row| row.entropy).collect(),
        };
        let logprobs = rows.iter().map(|row| row.logprob).collect();
        Ok((CpuStorage::F32(logprobs), tokens.into()))
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        head: &Tensor,
        _logprobs: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (tokens, width) = hidden.dims2()?;
        let (vocab, _width) = head.dims2()?;
        let wants_dhead = head.track_op();
        let g = g.contiguous()?;
        let (hidden, head, g) = (Values::of(hidden)?, Values::of(head)?, Values::of(&g)?);
        let rows = locked(&self.rows);
        let chunk = rows_per_chunk(vocab);
        let mut logits = vec![0.0; chunk.min(tokens) * vocab];
        let mut dhidden = vec![0.0; tokens * width];
        let mut dhead = vec![0.0; if wants_dhead { vocab * width } else { 0 }];
        for (index, (hidden, dhidden)) in
            hidden.chunks(chunk * width).zip(dhidden.chunks_mut(chunk * width)).enumerate()
        {
            let first = index * chunk;
            let count = hidden.len() / width;
            let dz = &mut logits[..count * vocab];
            chunk_logits(dz, hidden, &head, self.inverse_temperature, width);
            let row_gradient = |(row, dz): (usize, &mut [f32])| {
                let row = first + row;
                let slope = g[row] * self.inverse_temperature;
                logit_gradients(dz, rows.logsumexps[row], -slope);
                dz[self.targets[row] as usize] += slope;
            };
            if dz.len() < PARALLEL_ELEMENTS {
                dz.chunks_mut(vocab).enumerate().for_each(row_gradient);
            } else {
                dz.par_chunks_mut(vocab).enumerate().for_each(row_gradient);
            }
            let dz = View::rows(dz, vocab);
            let extent = Extent { rows: count, columns: width, inner: vocab };
            parallel_matmul(dhidden, Output::Replace, 1.0, dz, View::rows(&head, width), extent);
            if wants_dhead {
                let extent = Extent { rows: vocab, columns: width, inner: count };
                let hidden = View::rows(hidden, width);
                parallel_matmul(&mut dhead, Output::Add, 1.0, dz.transposed(), hidden, extent);
            }
        }
        let dhidden = Tensor::from_vec(dhidden, (tokens, width), &Device::Cpu)?;
        let dhead = match wants_dhead {
            true => Some(Tensor::from_vec(dhead, (vocab, width), &Device::Cpu)?),
            false => None,
        };
        Ok((Some(dhidden), dhead))
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
