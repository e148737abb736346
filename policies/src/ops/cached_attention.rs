//! Causal attention over a key-value cache, without gradient.
//!
//! The rows of q, k and v are the new tokens of each span, end to end. Keys and values are
//! appended to the spans' slots; token t of a span then attends to all its slot held before
//! and to the span's tokens up to itself. The formula is that of
//! [`causal_attention`](super::causal_attention).

use candle_core::{Device, Result, Tensor};

use super::causal_attention::Heads;
use super::slices::Values;
use crate::decoder::CacheSpan;
use crate::kv_cache::KvCache;

/// Appends `k` and `v` to one layer of the cache and attends over it.
///
/// `q` and the result are `(tokens, heads * head_dim)`; `k` and `v` are
/// `(tokens, kv_heads * head_dim)`, where `tokens` counts all spans' tokens.
pub(crate) fn cached_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cache: &mut KvCache,
    layer: usize,
    spans: &[CacheSpan<'_>],
    heads: Heads,
) -> Result<Tensor> {
    let (tokens, query_width) = q.dims2()?;
    let (_, kv_width) = k.dims2()?;
    let (q, k, v) = (Values::of(q)?, Values::of(k)?, Values::of(v)?);
    let mut row = 0;
    for span in spans {
        let rows = row * kv_width..(row + span.tokens.len()) * kv_width;
        cache.append(layer, span.slot, &k[rows.clone()], &v[rows]);
        row += span.tokens.len();
    }
    let mut out = vec![0.0; tokens * query_width];
    let mut row = 0;
    let Heads { heads, kv_heads, head_dim } = heads;
    let scale = 1.0 / (head_dim as f32).sqrt();
    for span in spans {
        let cached = cache.rows(layer, span.slot);
        let held = cached.keys.len() / kv_width - span.tokens.len();
        for t in 0..span.tokens.len() {
            for head in 0..heads {
                let kv_head = head / (heads / kv_heads);
                let at = (row + t) * query_width + head * head_dim;
                let query = &q[at..at + head_dim];
                let mut p: Vec<f32> = (0..=held + t)
                    .map(|j| {
                        let key = &cached.keys[j * kv_width + kv_head * head_dim..][..head_dim];
                        query.iter().zip(key).map(|(a, b)| a * b).sum::<f32>() * scale
                    })
                    .collect();
                let max = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let mut sum = 0.0;
                for p in &mut p {
                    *p = (*p - max).exp();
                    sum += *p;
                }
                for (j, p) in p.iter().enumerate() {
                    let value = &cached.values[j * kv_width + kv_head * head_dim..][..head_dim];
                    for (o, v) in out[at..at + head_dim].iter_mut().zip(value) {
                        *o += p / sum * v;
                    }
                }
            }
        }
        row += span.tokens.len();
    }
    Tensor::from_vec(out, (tokens, query_width), &Device::Cpu)
}
