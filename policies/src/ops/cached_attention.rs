//! Causal attention over a key-value cache, without gradient.
//!
//! The rows of q, k and v are the new tokens of each span, end to end. Keys and values are
//! appended to the spans' slots; token t of a span then attends to all its slot held before
//! and to the span's tokens up to itself. The formula is that of
//! [`causal_attention`](super::causal_attention).

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::causal_attention::{Heads, Prefix, Scratch};
use super::lanes::PARALLEL_ELEMENTS;
use super::matmul::View;
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
    let kv_width = heads.kv_width();
    let (q, k, v) = (Values::of(q)?, Values::of(k)?, Values::of(v)?);
    let q: &[f32] = &q;
    let mut row = 0;
    for span in spans {
        let rows = row * kv_width..(row + span.tokens.len()) * kv_width;
        cache.append(layer, span.slot, &k[rows.clone()], &v[rows]);
        row += span.tokens.len();
    }

    let cache = &*cache;
    let mut out = vec![0.0; tokens * query_width];
    let (mut tasks, mut rest, mut work) = (Vec::with_capacity(spans.len()), &mut out[..], 0);
    let mut row = 0;
    for span in spans {
        let time = span.tokens.len();
        let (rows, later) = std::mem::take(&mut rest).split_at_mut(time * query_width);
        tasks.push((span, row, rows));
        work += time * cache.rows(layer, span.slot).keys.len() * heads.group();
        rest = later;
        row += time;
    }
    let attend = |scratch: &mut Scratch, (span, row, out): (&CacheSpan<'_>, usize, &mut [f32])| {
        let cached = cache.rows(layer, span.slot);
        let (time, head_dim) = (span.tokens.len(), heads.head_dim);
        for head in 0..heads.heads {
            let kv_at = head / heads.group() * head_dim;
            let prefix = Prefix {
                keys: View::rows(&cached.keys[kv_at..], kv_width),
                values: View::rows(&cached.values[kv_at..], kv_width),
                held: cached.keys.len() / kv_width - time,
                head_dim,
            };
            let queries = View::rows(&q[row * query_width + head * head_dim..], query_width);
            prefix.attend(scratch, queries, time, &mut out[head * head_dim..], query_width);
        }
    };
    if work < PARALLEL_ELEMENTS {
        let mut scratch = Scratch::default();
        tasks.into_iter().for_each(|task| attend(&mut scratch, task));
    } else {
        tasks.into_par_iter().for_each_init(Scratch::default, attend);
    }
    Tensor::from_vec(out, (tokens, query_width), &Device::Cpu)
}
