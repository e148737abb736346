//! Causal attention with grouped queries over packed sequences, and over a cache.
//!
//! For query t of a sequence, over its keys j ≤ t (Vaswani et al. 2017, arXiv:1706.03762,
//! eq. 1; grouping: Ainslie et al. 2023, arXiv:2305.13245):
//!
//! ```text
//! p_tj = softmax_j(q_t · k_j / sqrt(head_dim))        o_t = Σ_j p_tj v_j
//! ```
//!
//! `q` and the result are `(tokens, heads * head_dim)`, `k` and `v` are
//! `(tokens, kv_heads * head_dim)`; head h reads key head h / (heads / kv_heads).

use std::sync::Arc;

use candle_core::{D, Device, Result, Tensor};

/// How many heads there are and how wide they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// Attention within each of the sequences packed end to end; with gradients for all three.
pub fn causal_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lengths: &Arc<[usize]>,
    heads: Heads,
) -> Result<Tensor> {
    composed(q, k, v, lengths, heads)
}

/// The same of candle's own operations: the reference.
pub fn composed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lengths: &Arc<[usize]>,
    Heads { heads, kv_heads, head_dim }: Heads,
) -> Result<Tensor> {
    let group = heads / kv_heads;
    let mut outputs = Vec::with_capacity(lengths.len());
    let mut start = 0;
    for &time in lengths.iter() {
        let by_head = |x: &Tensor, heads: usize| {
            x.narrow(0, start, time)?
                .reshape((time, heads, head_dim))?
                .transpose(0, 1)? // (heads, time, head_dim)
                .contiguous()
        };
        let repeated = |x: Tensor| {
            x.unsqueeze(1)?
                .broadcast_as((kv_heads, group, time, head_dim))?
                .reshape((heads, time, head_dim))?
                .contiguous()
        };
        let q = by_head(q, heads)?;
        let k = repeated(by_head(k, kv_heads)?)?;
        let v = repeated(by_head(v, kv_heads)?)?;
        let future: Vec<f32> = (0..time * time)
            .map(|at| if at % time > at / time { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        let future = Tensor::from_vec(future, (time, time), &Device::Cpu)?;
        let scale = 1.0 / (head_dim as f64).sqrt();
        let scores = (q.matmul(&k.transpose(1, 2)?)? * scale)?; // (heads, time, time)
        let p = candle_nn::ops::softmax(&scores.broadcast_add(&future)?, D::Minus1)?;
        let out = p.matmul(&v)?.transpose(0, 1)?; // (time, heads, head_dim)
        outputs.push(out.reshape((time, heads * head_dim))?);
        start += time;
    }
    Tensor::cat(&outputs, 0)
}
