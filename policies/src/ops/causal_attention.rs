//! Causal attention with grouped queries over packed sequences.
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
//!
//! Queries are taken in blocks against all keys up to the block's end, so memory is
//! block · time, not time². Nothing is kept for the backward pass, which computes p anew.
//! With g the gradient of o (Dao et al. 2022, arXiv:2205.14135, appendix B.2):
//!
//! ```text
//! dv_j = Σ_t p_tj g_t        dp_tj = g_t · v_j        D_t = g_t · o_t
//! ds_tj = p_tj (dp_tj - D_t) / sqrt(head_dim)
//! dq_t = Σ_j ds_tj k_j       dk_j = Σ_t ds_tj q_t
//! ```
//!
//! Sequences and key heads are independent and run in parallel; each writes to a region of
//! its own, `(heads, time, head_dim)` within its sequence, and the regions are then
//! interleaved to rows.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, D, Device, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::lanes::{PARALLEL_ELEMENTS, dot, exponentiate, max};
use super::matmul::{Extent, Output, View, matmul};
use super::slices::{Values, values};

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
    q.contiguous()?.apply_op3(
        &k.contiguous()?,
        &v.contiguous()?,
        CausalAttention { lengths: Arc::clone(lengths), heads },
    )
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

struct CausalAttention {
    lengths: Arc<[usize]>,
    heads: Heads,
}

/// One sequence and one of its key heads.
#[derive(Clone, Copy)]
struct Place {
    /// The sequence's first row in the packed batch.
    start: usize,
    time: usize,
    kv_head: usize,
}

impl Heads {
    /// Query heads that share a key head.
    pub(crate) fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// Width of a row of queries.
    pub(crate) fn query_width(self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of a row of keys or values.
    pub(crate) fn kv_width(self) -> usize {
        self.kv_heads * self.head_dim
    }
}

impl CausalAttention {
    fn check(&self, q: &[usize], k: &[usize], v: &[usize]) -> Result<()> {
        let tokens: usize = self.lengths.iter().sum();
        let Heads { heads, kv_heads, .. } = self.heads;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            bail!("causal_attention: {heads} heads over {kv_heads} key heads");
        }
        let (query, kv) = ([tokens, self.heads.query_width()], [tokens, self.heads.kv_width()]);
        if q != query || k != kv || v != kv {
            bail!("causal_attention: q {q:?}, k {k:?}, v {v:?}; expected {query:?} and {kv:?}");
        }
        Ok(())
    }

    /// Every sequence and key head, in the order of their regions.
    fn places(&self) -> impl Iterator<Item = Place> {
        let kv_heads = self.heads.kv_heads;
        let mut start = 0;
        self.lengths.iter().flat_map(move |&time| {
            let first = start;
            start += time;
            (0..kv_heads).map(move |kv_head| Place { start: first, time, kv_head })
        })
    }

    /// Rough number of multiplications of one pass, to weigh the cost of threads.
    fn work(&self) -> usize {
        let pairs: usize = self.lengths.iter().map(|&time| time * time).sum();
        pairs * self.heads.query_width()
    }

    /// Runs every place's task, on all threads where the work is worth it.
    fn for_each<T: Send>(&self, tasks: Vec<T>, run: impl Fn(&mut Scratch, T) + Send + Sync) {
        if self.work() < PARALLEL_ELEMENTS {
            let mut scratch = Scratch::default();
            tasks.into_iter().for_each(|task| run(&mut scratch, task));
        } else {
            tasks.into_par_iter().for_each_init(Scratch::default, run);
        }
    }

    /// Regions `(heads, time, head_dim)` of each sequence -> rows `(tokens, heads * head_dim)`.
    fn interleaved(&self, regions: &[f32], heads: usize) -> Vec<f32> {
        let head_dim = self.heads.head_dim;
        let mut rows = Vec::with_capacity(regions.len());
        let mut rest = regions;
        for &time in self.lengths.iter() {
            let (region, later) = rest.split_at(heads * time * head_dim);
            for t in 0..time {
                for head in 0..heads {
                    rows.extend_from_slice(&region[(head * time + t) * head_dim..][..head_dim]);
                }
            }
            rest = later;
        }
        rows
    }
}

/// Splits consecutive regions of the given sizes off a slice.
fn split(mut rest: &mut [f32], sizes: impl Iterator<Item = usize>) -> Vec<&mut [f32]> {
    sizes
        .map(|size| {
            let (region, later) = std::mem::take(&mut rest).split_at_mut(size);
            rest = later;
            region
        })
        .collect()
}

impl CustomOp3 for CausalAttention {
    fn name(&self) -> &'static str {
        "causal_attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.check(q_layout.dims(), k_layout.dims(), v_layout.dims())?;
        let (q, k, v) = (values(q, q_layout)?, values(k, k_layout)?, values(v, v_layout)?);
        let heads = self.heads;
        let Heads { head_dim, .. } = heads;
        let (group, query_width, kv_width) = (heads.group(), heads.query_width(), heads.kv_width());
        let mut out = vec![0.0; q.len()];
        let sizes = self.places().map(|place| group * place.time * head_dim);
        let tasks: Vec<_> = self.places().zip(split(&mut out, sizes)).collect();
        self.for_each(tasks, |scratch, (Place { start, time, kv_head }, region)| {
            let at = start * kv_width + kv_head * head_dim;
            let prefix = Prefix {
                keys: View::rows(&k[at..], kv_width),
                values: View::rows(&v[at..], kv_width),
                held: 0,
                head_dim,
            };
            for (member, out) in region.chunks_exact_mut(time * head_dim).enumerate() {
                let at = start * query_width + (kv_head * group + member) * head_dim;
                let queries = View::rows(&q[at..], query_width);
                prefix.attend(scratch, queries, time, out, head_dim);
            }
        });
        Ok((CpuStorage::F32(self.interleaved(&out, heads.heads)), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let (q_shape, kv_shape) = (q.shape(), k.shape());
        let (q, k, v) = (Values::of(q)?, Values::of(k)?, Values::of(v)?);
        let (out, g) = (Values::of(out)?, Values::of(&g)?);
        let [q, k, v, out, g] = [&*q, &*k, &*v, &*out, &*g];
        let heads = self.heads;
        let Heads { head_dim, kv_heads, .. } = heads;
        let (group, query_width, kv_width) = (heads.group(), heads.query_width(), heads.kv_width());

        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        let query_sizes = self.places().map(|place| group * place.time * head_dim);
        let kv_sizes = || self.places().map(|place| place.time * head_dim);
        let tasks: Vec<_> = self
            .places()
            .zip(split(&mut dq, query_sizes))
            .zip(split(&mut dk, kv_sizes()).into_iter().zip(split(&mut dv, kv_sizes())))
            .collect();
        self.for_each(tasks, |scratch, ((Place { start, time, kv_head }, dq), (dk, dv))| {
            let at = start * kv_width + kv_head * head_dim;
            let prefix = Prefix {
                keys: View::rows(&k[at..], kv_width),
                values: View::rows(&v[at..], kv_width),
                held: 0,
                head_dim,
            };
            for (member, dq) in dq.chunks_exact_mut(time * head_dim).enumerate() {
                let at = start * query_width + (kv_head * group + member) * head_dim;
                let rows = |values| View::rows(values, query_width);
                let (q, out, g) = (rows(&q[at..]), rows(&out[at..]), rows(&g[at..]));
                prefix.attend_backward(scratch, q, out, g, time, Gradients { dq, dk, dv });
            }
        });
        let rows = |regions: &[f32], heads, shape: &Shape| {
            Tensor::from_vec(self.interleaved(regions, heads), shape, &Device::Cpu).map(Some)
        };
        Ok((
            rows(&dq, heads.heads, q_shape)?,
            rows(&dk, kv_heads, kv_shape)?,
            rows(&dv, kv_heads, kv_shape)?,
        ))
    }
}

/// Queries per block: enough for gemm to run at speed, few enough that little of what is
/// computed lies in the future.
const BLOCK: usize = 64;

/// Scores of one block, reused from block to block.
#[derive(Default)]
pub(crate) struct Scratch {
    p: Vec<f32>,
    ds: Vec<f32>,
}

/// One key head's keys and values, `(held + time, head_dim)`, of which the first `held`
/// come before the first query.
#[derive(Clone, Copy)]
pub(crate) struct Prefix<'a> {
    pub keys: View<'a>,
    pub values: View<'a>,
    pub held: usize,
    pub head_dim: usize,
}

/// Gradients of one head, `(time, head_dim)` each; those of keys and values are added to.
struct Gradients<'a> {
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

impl Prefix<'_> {
    /// Attention of one head's `time` queries; its rows are written `out_stride` apart.
    pub(crate) fn attend(
        &self,
        scratch: &mut Scratch,
        queries: View<'_>,
        time: usize,
        out: &mut [f32],
        out_stride: usize,
    ) {
        for first in (0..time).step_by(BLOCK) {
            let rows = BLOCK.min(time - first);
            let seen = self.held + first + rows;
            let queries = from_row(queries, first);
            self.probabilities(&mut scratch.p, queries, first, rows);
            let extent = Extent { rows, columns: self.head_dim, inner: seen };
            let p = View::rows(&scratch.p, seen);
            let out = &mut out[first * out_stride..];
            matmul(out, out_stride, Output::Replace, 1.0, p, self.values, extent);
        }
    }

    /// Gradients of one head, where nothing comes before the first query.
    fn attend_backward(
        &self,
        scratch: &mut Scratch,
        queries: View<'_>,
        out: View<'_>,
        g: View<'_>,
        time: usize,
        Gradients { dq, dk, dv }: Gradients<'_>,
    ) {
        let head_dim = self.head_dim;
        let scale = 1.0 / (head_dim as f32).sqrt();
        for first in (0..time).step_by(BLOCK) {
            let rows = BLOCK.min(time - first);
            let seen = first + rows;
            let (queries, out, g) =
                (from_row(queries, first), from_row(out, first), from_row(g, first));
            self.probabilities(&mut scratch.p, queries, first, rows);
            let Scratch { p, ds } = &mut *scratch;

            let over_rows = Extent { rows: seen, columns: head_dim, inner: rows };
            let p_view = View::rows(p, seen);
            matmul(dv, head_dim, Output::Add, 1.0, p_view.transposed(), g, over_rows);

            ds.resize(rows * seen, 0.0);
            let extent = Extent { rows, columns: seen, inner: head_dim };
            matmul(ds, seen, Output::Replace, 1.0, g, self.values.transposed(), extent); // dp
            softmax_backward(ds, p, seen, g, out, head_dim, scale);

            let ds = View::rows(ds, seen);
            let over_keys = Extent { rows, columns: head_dim, inner: seen };
            let dq = &mut dq[first * head_dim..];
            matmul(dq, head_dim, Output::Replace, 1.0, ds, self.keys, over_keys);
            matmul(dk, head_dim, Output::Add, 1.0, ds.transposed(), queries, over_rows);
        }
    }

    /// p of a block of queries, `(rows, seen)`: zero beyond each query's own position.
    fn probabilities(&self, p: &mut Vec<f32>, queries: View<'_>, first: usize, rows: usize) {
        let before = self.held + first;
        let seen = before + rows;
        p.resize(rows * seen, 0.0);
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let extent = Extent { rows, columns: seen, inner: self.head_dim };
        matmul(p, seen, Output::Replace, scale, queries, self.keys.transposed(), extent);
        causal_softmax(p, seen, before);
    }
}

fn from_row(view: View<'_>, row: usize) -> View<'_> {
    View { values: &view.values[row * view.row_stride..], ..view }
}

/// Softmax of row i over its first `before + i + 1` columns; the others become zero.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn causal_softmax(scores: &mut [f32], columns: usize, before: usize) {
    for (i, row) in scores.chunks_exact_mut(columns).enumerate() {
        let (past, future) = row.split_at_mut(before + i + 1);
        let largest = max(past);
        let share = 1.0 / exponentiate(past, largest);
        past.iter_mut().for_each(|p| *p *= share);
        future.fill(0.0);
    }
}

/// dp -> ds in place: ds = p (dp - D) scale with D = g · o.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn softmax_backward(
    ds: &mut [f32],
    p: &[f32],
    columns: usize,
    g: View<'_>,
    out: View<'_>,
    head_dim: usize,
    scale: f32,
) {
    let rows = ds.chunks_exact_mut(columns).zip(p.chunks_exact(columns));
    for (i, (ds, p)) in rows.enumerate() {
        let g = &g.values[i * g.row_stride..][..head_dim];
        let out = &out.values[i * out.row_stride..][..head_dim];
        let d = dot(g, out);
        for (ds, p) in ds.iter_mut().zip(p) {
            *ds = p * (*ds - d) * scale;
        }
    }
}
