//! Causal attention with grouped queries, over packed sequences and over a key-value cache.
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
//! Keys and values are laid out in blocks of 32 positions counted from the start of the sequence,
//! whether they lie in a cache or were gathered from the rows of a batch, and sums run along
//! positions block by block. So a token gets the same bits when it is sampled, when its reply is
//! computed again after losing its place in the cache, and when it is learned from.
//!
//! Queries are taken a few rows at a time: memory is rows · time, never time². Nothing is kept for
//! the backward pass, which computes p anew. With g the gradient of o (Dao et al. 2022,
//! arXiv:2205.14135, appendix B.2):
//!
//! ```text
//! dv_j = Σ_t p_tj g_t        dp_tj = g_t · v_j        D_t = g_t · o_t
//! ds_tj = p_tj (dp_tj - D_t) / sqrt(head_dim)
//! dq_t = Σ_j ds_tj k_j       dk_j = Σ_t ds_tj q_t
//! ```
//!
//! A prompt that several replies share is there once: its rows' gradients are the sums over all
//! that attend to them.

use candle_core::{D, Device, Result, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use super::lanes::{PARALLEL_ELEMENTS, dot, exponentiate, max};
use super::matmul::{Out, Output, Right, View, matmul};
use crate::kv_cache::KvCache;
use crate::packed::{PackedSequences, Segment, Tree};

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

    fn scale(self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// Positions of a block of keys and values.
pub(crate) const BLOCK: usize = 32;

/// Queries computed together: a whole number of the product's blocks, few enough that little of
/// what is computed lies in the future.
const QUERIES: usize = 24;

/// One key head's keys and values at 32 positions.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    /// `(head_dim, 32)`
    pub keys: &'a [f32],
    /// `(32, head_dim)`
    pub values: &'a [f32],
}

/// Scores of a few queries, reused from task to task.
#[derive(Default)]
struct Scratch {
    p: Vec<f32>,
    ds: Vec<f32>,
    own: Gathered,
    shared: Gathered,
}

/// Attention within packed sequences: `out` is `(tokens, heads * head_dim)`.
pub(crate) fn forward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    sequences: &PackedSequences,
    heads: Heads,
    out: &mut [f32],
) {
    let Heads { head_dim, .. } = heads;
    let (group, query_width) = (heads.group(), heads.query_width());
    let tasks = tasks(sequences, out, heads, group * head_dim);
    for_each(sequences, heads, tasks, |scratch, Task { tree, kv_head, mut out }| {
        let rows = KeyRows { k, v, kv_head, heads };
        let Scratch { p, own, shared, .. } = scratch;
        for segment in tree.segments() {
            let blocks = tree.gather(segment, rows, own, shared, Gather::Forward);
            for member in 0..group {
                let head = kv_head * group + member;
                let columns = member * head_dim..(member + 1) * head_dim;
                for first in (0..segment.length).step_by(QUERIES) {
                    let count = QUERIES.min(segment.length - first);
                    let row = segment.start + first;
                    let queries =
                        View::rows(&q[row * query_width + head * head_dim..], query_width);
                    let placed = row - tree.start()..row - tree.start() + count;
                    let first = segment.position + first;
                    let places = Places { first, step: 1, count };
                    let mut out = out.part(placed, columns.clone());
                    attend(p, queries, places, |index| blocks.block(index), heads, &mut out);
                }
            }
        }
    });
}

/// Gradients of [`forward`]: `dq` is overwritten, `dk` and `dv` too.
#[expect(clippy::too_many_arguments, reason = "five inputs, three gradients, two shapes")]
pub(crate) fn backward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &[f32],
    g: &[f32],
    sequences: &PackedSequences,
    heads: Heads,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let Heads { head_dim, .. } = heads;
    let (group, query_width) = (heads.group(), heads.query_width());
    dk.fill(0.0);
    dv.fill(0.0);
    let dk = tasks(sequences, dk, heads, head_dim);
    let dv = tasks(sequences, dv, heads, head_dim);
    let dq = tasks(sequences, dq, heads, group * head_dim);
    let tasks: Vec<_> = dq.into_iter().zip(dk.into_iter().zip(dv)).collect();
    for_each(
        sequences,
        heads,
        tasks,
        |scratch, (Task { tree, kv_head, out: mut dq }, (dk, dv))| {
            let (mut dk, mut dv) = (dk.out, dv.out);
            let rows = KeyRows { k, v, kv_head, heads };
            let Scratch { p, ds, own, shared } = scratch;
            for segment in tree.segments() {
                let blocks = tree.gather(segment, rows, own, shared, Gather::Backward);
                // Rows of the tree that hold the sequence's positions: the prompt's, then its own.
                let before = segment.position;
                let own_row = segment.start - tree.start();
                for member in 0..group {
                    let head = kv_head * group + member;
                    let columns = member * head_dim..(member + 1) * head_dim;
                    for first in (0..segment.length).step_by(QUERIES) {
                        let count = QUERIES.min(segment.length - first);
                        let row = segment.start + first;
                        let of_head = |values| {
                            View::rows(
                                slice_from(values, row * query_width + head * head_dim),
                                query_width,
                            )
                        };
                        let (queries, out, g) = (of_head(q), of_head(out), of_head(g));
                        let places = Places { first: before + first, step: 1, count };
                        let width =
                            probabilities(p, queries, places, |at| blocks.block(at).keys, heads);
                        let seen = before + first + count;

                        // dp, then ds
                        ds.resize(count * width, 0.0);
                        for index in 0..width / BLOCK {
                            let columns = index * BLOCK..(index + 1) * BLOCK;
                            let right = Right::Rows(blocks.values_transposed(index), BLOCK);
                            let mut part = Out::rows(&mut ds[..count * width], width);
                            matmul(
                                &mut part.part(0..count, columns),
                                Output::Replace,
                                1.0,
                                g,
                                right,
                                head_dim,
                            );
                        }
                        softmax_backward(
                            &mut ds[..count * width],
                            p,
                            width,
                            g,
                            out,
                            head_dim,
                            heads.scale(),
                        );

                        let placed = row - tree.start()..row - tree.start() + count;
                        for index in 0..width / BLOCK {
                            let ds = View::rows(&ds[index * BLOCK..], width);
                            let output = if index == 0 { Output::Replace } else { Output::Add };
                            let right = Right::Rows(blocks.key_rows(index), head_dim);
                            let mut dq = dq.part(placed.clone(), columns.clone());
                            matmul(&mut dq, output, 1.0, ds, right, BLOCK);
                        }
                        for (d, weights, right) in [(&mut dv, &*p, g), (&mut dk, &*ds, queries)] {
                            let right = Right::Rows(right.values, query_width);
                            let weights = View::rows(weights, width).transposed();
                            if before > 0 {
                                let mut shared = d.part(0..before, 0..head_dim);
                                matmul(&mut shared, Output::Add, 1.0, weights, right, count);
                            }
                            let mut own = d.part(own_row..own_row + seen - before, 0..head_dim);
                            matmul(
                                &mut own,
                                Output::Add,
                                1.0,
                                weights.skip_rows(before),
                                right,
                                count,
                            );
                        }
                    }
                }
            }
        },
    );
}

/// New tokens of one cached sequence: where their rows begin and how many there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub sequence: usize,
    pub start: usize,
    pub length: usize,
}

/// Attention of new tokens over a cache that holds their keys and values already; `q` and `out` are
/// `(tokens, heads * head_dim)`, the spans' rows end to end.
pub(crate) fn cached(
    q: &[f32],
    cache: &KvCache,
    layer: usize,
    spans: &[Span],
    heads: Heads,
    out: &mut [f32],
) {
    let (group, query_width) = (heads.group(), heads.query_width());
    // Single tokens whose sequences share their first blocks read those blocks together.
    let alike = |one: &Span, other: &Span| {
        let first = |span: &Span| cache.table(span.sequence).first().copied();
        one.length == 1 && other.length == 1 && first(one) == first(other)
    };
    let mut rest = &mut *out;
    let (mut tasks, mut work) = (Vec::new(), 0);
    for run in spans.chunk_by(alike) {
        for spans in run.chunks(QUERIES) {
            let rows: usize = spans.iter().map(|span| span.length).sum();
            let held: usize = spans.iter().map(|span| cache.len(span.sequence)).sum();
            work += rows * held / spans.len() * query_width;
            let (values, later) = std::mem::take(&mut rest).split_at_mut(rows * query_width);
            rest = later;
            let columns = Out::rows(values, query_width).column_blocks(group * heads.head_dim);
            tasks.extend(columns.into_iter().enumerate().map(|(head, out)| (spans, head, out)));
        }
    }
    let attend = |p: &mut Vec<f32>, (spans, kv_head, mut out): (&[Span], usize, Out<'_>)| {
        let at = Cached { q, cache, layer, kv_head, heads };
        match spans {
            [span] if span.length > 1 => at.prompt(p, span, &mut out),
            spans => at.siblings(p, spans, &mut out),
        }
    };
    if work < PARALLEL_ELEMENTS {
        let mut scratch = Vec::new();
        tasks.into_iter().for_each(|task| attend(&mut scratch, task));
    } else {
        tasks.into_par_iter().for_each_init(Vec::new, attend);
    }
}

/// One key head of one layer of a cache, and the queries over it.
struct Cached<'a> {
    q: &'a [f32],
    cache: &'a KvCache,
    layer: usize,
    kv_head: usize,
    heads: Heads,
}

impl<'a> Cached<'a> {
    /// Queries of one head of the group, from a row on.
    fn queries(&self, row: usize, member: usize) -> View<'a> {
        let (width, head) = (self.heads.query_width(), self.kv_head * self.heads.group() + member);
        View::rows(&self.q[row * width + head * self.heads.head_dim..], width)
    }

    fn block(&self, span: &Span, index: usize) -> Block<'a> {
        self.cache.block(self.layer, span.sequence, self.kv_head, index)
    }

    /// Many tokens of one sequence.
    fn prompt(&self, p: &mut Vec<f32>, span: &Span, out: &mut Out<'_>) {
        let held = self.cache.len(span.sequence) - span.length;
        let Heads { head_dim, .. } = self.heads;
        for member in 0..self.heads.group() {
            let columns = member * head_dim..(member + 1) * head_dim;
            for first in (0..span.length).step_by(QUERIES) {
                let count = QUERIES.min(span.length - first);
                let queries = self.queries(span.start + first, member);
                let places = Places { first: held + first, step: 1, count };
                let mut out = out.part(first..first + count, columns.clone());
                attend(p, queries, places, |index| self.block(span, index), self.heads, &mut out);
            }
        }
    }

    /// One token of each of several sequences. Blocks that all share are multiplied with all their
    /// queries at once; every sum is the same as for each alone.
    fn siblings(&self, p: &mut Vec<f32>, spans: &[Span], out: &mut Out<'_>) {
        let (group, head_dim) = (self.heads.group(), self.heads.head_dim);
        let tables: Vec<&[usize]> =
            spans.iter().map(|span| self.cache.table(span.sequence)).collect();
        // Alone, the heads of the group are the only rows to multiply a block with at once.
        let alike = |index: &usize| {
            tables.len() > 1 && tables.iter().all(|it| it.get(*index) == tables[0].get(*index))
        };
        let shared = (0..tables[0].len()).take_while(alike).count();
        let blocks = tables.iter().map(|it| it.len()).max().unwrap_or(0);
        // Scores are `(group, spans, width)`.
        let (count, width) = (spans.len(), blocks * BLOCK);
        if p.len() < group * count * width {
            p.resize(group * count * width, 0.0);
        }
        let p = &mut p[..group * count * width];
        let scale = self.heads.scale();
        let columns = |index: usize| index * BLOCK..(index + 1) * BLOCK;
        for index in 0..shared {
            let keys = Right::Rows(self.block(&spans[0], index).keys, BLOCK);
            for (member, p) in p.chunks_exact_mut(count * width).enumerate() {
                let queries = self.queries(spans[0].start, member);
                let mut scores = Out::rows(p, width);
                let mut scores = scores.part(0..count, columns(index));
                matmul(&mut scores, Output::Replace, scale, queries, keys, head_dim);
            }
        }
        for (row, (span, table)) in spans.iter().zip(&tables).enumerate() {
            let queries = View::rows(self.queries(span.start, 0).values, head_dim);
            for index in shared..table.len() {
                let keys = Right::Rows(self.block(span, index).keys, BLOCK);
                let mut scores = Out::rows(p, count * width);
                let start = row * width + index * BLOCK;
                let columns = start..start + self.filled(span, index);
                let mut scores = scores.part(0..group, columns);
                matmul(&mut scores, Output::Replace, scale, queries, keys, head_dim);
            }
        }
        for (row, scores) in p.chunks_exact_mut(width).enumerate() {
            let held = self.cache.len(spans[row % count].sequence);
            causal_softmax(scores, width, held - 1, 0);
        }
        for index in 0..shared {
            let values = Right::Rows(self.block(&spans[0], index).values, head_dim);
            let output = if index == 0 { Output::Replace } else { Output::Add };
            for (member, p) in p.chunks_exact(count * width).enumerate() {
                let p = View::rows(&p[index * BLOCK..], width);
                let columns = member * head_dim..(member + 1) * head_dim;
                matmul(&mut out.part(0..count, columns), output, 1.0, p, values, BLOCK);
            }
        }
        for (row, (span, table)) in spans.iter().zip(&tables).enumerate() {
            for index in shared..table.len() {
                let values = Right::Rows(self.block(span, index).values, head_dim);
                let output = if index == 0 { Output::Replace } else { Output::Add };
                let p = View::rows(&p[row * width + index * BLOCK..], count * width);
                let mut out = out.part(row..row + 1, 0..group * head_dim);
                let mut out = out.regrouped(0, group, head_dim);
                matmul(&mut out, output, 1.0, p, values, self.filled(span, index));
            }
        }
    }

    /// Positions of a block that a sequence has reached. Beyond them p is zero: leaving them out
    /// changes no sum.
    fn filled(&self, span: &Span, index: usize) -> usize {
        BLOCK.min(self.cache.len(span.sequence) - index * BLOCK)
    }
}

/// The same of candle's own operations: the reference. Sequences that share a prompt are computed
/// each with a copy of it.
pub fn composed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    sequences: &PackedSequences,
    Heads { heads, kv_heads, head_dim }: Heads,
) -> Result<Tensor> {
    let group = heads / kv_heads;
    let mut outputs = Vec::new();
    for tree in sequences.trees() {
        for segment in tree.segments() {
            let time = segment.position + segment.length;
            let whole = |x: &Tensor| {
                let own = x.narrow(0, segment.start, segment.length)?;
                if segment.position == 0 {
                    return Ok(own);
                }
                Tensor::cat(&[x.narrow(0, tree.start(), segment.position)?, own], 0)
            };
            let by_head = |x: &Tensor, heads: usize| {
                whole(x)?
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
            let out = p.matmul(&v)?.transpose(0, 1)?.reshape((time, heads * head_dim))?;
            outputs.push(out.narrow(0, segment.position, segment.length)?);
        }
    }
    Tensor::cat(&outputs, 0)
}

/// One tree of sequences, one of its key heads, and that head's columns of a result.
struct Task<'a> {
    tree: &'a Tree,
    kv_head: usize,
    out: Out<'a>,
}

/// Every tree and key head with its rows and `columns` columns of `values`.
fn tasks<'a>(
    sequences: &'a PackedSequences,
    values: &'a mut [f32],
    heads: Heads,
    columns: usize,
) -> Vec<Task<'a>> {
    let width = columns * heads.kv_heads;
    let mut rest = values;
    let mut tasks = Vec::with_capacity(sequences.trees().len() * heads.kv_heads);
    for tree in sequences.trees() {
        let (rows, later) = std::mem::take(&mut rest).split_at_mut(tree.rows() * width);
        rest = later;
        let blocks = Out::rows(rows, width).column_blocks(columns);
        tasks.extend(blocks.into_iter().enumerate().map(|(kv_head, out)| Task {
            tree,
            kv_head,
            out,
        }));
    }
    tasks
}

/// Runs every task, on all threads where the work is worth it.
fn for_each<T: Send>(
    sequences: &PackedSequences,
    heads: Heads,
    tasks: Vec<T>,
    run: impl Fn(&mut Scratch, T) + Send + Sync,
) {
    let pairs: usize = sequences
        .trees()
        .iter()
        .flat_map(Tree::segments)
        .map(|it| it.length * (it.position + it.length))
        .sum();
    if pairs * heads.query_width() < PARALLEL_ELEMENTS {
        let mut scratch = Scratch::default();
        tasks.into_iter().for_each(|task| run(&mut scratch, task));
    } else {
        tasks.into_par_iter().for_each_init(Scratch::default, run);
    }
}

/// The rows of a batch that hold one key head.
#[derive(Clone, Copy)]
struct KeyRows<'a> {
    k: &'a [f32],
    v: &'a [f32],
    kv_head: usize,
    heads: Heads,
}

/// What the blocks of a segment are gathered for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gather {
    Forward,
    Backward,
}

/// Blocks of some positions of one key head, gathered from rows of a batch.
#[derive(Default)]
struct Gathered {
    head_dim: usize,
    /// `(blocks, head_dim, 32)`
    keys: Vec<f32>,
    /// `(blocks, 32, head_dim)`
    values: Vec<f32>,
    /// `(blocks, 32, head_dim)`, for the backward pass.
    key_rows: Vec<f32>,
    /// `(blocks, head_dim, 32)`, for the backward pass.
    values_transposed: Vec<f32>,
}

impl Gathered {
    /// Blocks of the positions from `start`, which begins a block, to `end`; `row_of` says which
    /// row of the batch holds a position.
    fn fill(
        &mut self,
        rows: KeyRows<'_>,
        start: usize,
        end: usize,
        row_of: impl Fn(usize) -> usize,
        purpose: Gather,
    ) {
        let KeyRows { k, v, kv_head, heads } = rows;
        let (head_dim, kv_width) = (heads.head_dim, heads.kv_width());
        self.head_dim = head_dim;
        let size = (end - start).div_ceil(BLOCK) * BLOCK * head_dim;
        let reset = |values: &mut Vec<f32>| {
            values.clear();
            values.resize(size, 0.0);
        };
        reset(&mut self.keys);
        let (transposed, plain) = match purpose {
            Gather::Forward => (&mut self.keys, &mut self.values),
            Gather::Backward => {
                reset(&mut self.values_transposed);
                (&mut self.keys, &mut self.key_rows)
            }
        };
        reset(plain);
        for position in start..end {
            let at = row_of(position) * kv_width + kv_head * head_dim;
            let (key, value) = (&k[at..at + head_dim], &v[at..at + head_dim]);
            let block = (position - start) / BLOCK * BLOCK * head_dim;
            let lane = position % BLOCK;
            scatter(&mut transposed[block + lane..], key);
            let row = block + lane * head_dim..block + (lane + 1) * head_dim;
            match purpose {
                Gather::Forward => plain[row].copy_from_slice(value),
                Gather::Backward => {
                    plain[row].copy_from_slice(key);
                    scatter(&mut self.values_transposed[block + lane..], value);
                }
            }
        }
    }

    fn range(&self, index: usize) -> std::ops::Range<usize> {
        index * BLOCK * self.head_dim..(index + 1) * BLOCK * self.head_dim
    }
}

/// One column of a `(head_dim, 32)` block.
pub(crate) fn scatter(column: &mut [f32], values: &[f32]) {
    for (place, value) in column.iter_mut().step_by(BLOCK).zip(values) {
        *place = *value;
    }
}

/// The blocks a segment attends to: the prompt's whole ones, which it shares, then its own.
struct Blocks<'a> {
    shared: &'a Gathered,
    /// Blocks read from `shared`.
    shared_count: usize,
    own: &'a Gathered,
}

impl<'a> Blocks<'a> {
    fn place(&self, index: usize) -> (&'a Gathered, usize) {
        match index.checked_sub(self.shared_count) {
            Some(own) => (self.own, own),
            None => (self.shared, index),
        }
    }

    fn block(&self, index: usize) -> Block<'a> {
        let (gathered, index) = self.place(index);
        let range = gathered.range(index);
        // In the backward pass there are no values.
        let values = gathered.values.get(range.clone()).unwrap_or(&[]);
        Block { keys: &gathered.keys[range], values }
    }

    fn key_rows(&self, index: usize) -> &'a [f32] {
        let (gathered, index) = self.place(index);
        &gathered.key_rows[gathered.range(index)]
    }

    fn values_transposed(&self, index: usize) -> &'a [f32] {
        let (gathered, index) = self.place(index);
        &gathered.values_transposed[gathered.range(index)]
    }
}

impl Tree {
    /// The blocks of one segment. The first segment fills `shared`, which the others then read; a
    /// block that a prompt ends in is copied, as the cache does.
    fn gather<'a>(
        &self,
        segment: &Segment,
        rows: KeyRows<'_>,
        own: &'a mut Gathered,
        shared: &'a mut Gathered,
        purpose: Gather,
    ) -> Blocks<'a> {
        if segment.position == 0 {
            shared.fill(rows, 0, segment.length, |position| segment.start + position, purpose);
            return Blocks { shared, shared_count: usize::MAX, own };
        }
        let before = segment.position;
        let shared_count = before / BLOCK;
        let row_of = |position: usize| match position.checked_sub(before) {
            Some(own) => segment.start + own,
            None => self.start() + position,
        };
        own.fill(rows, shared_count * BLOCK, before + segment.length, row_of, purpose);
        Blocks { shared, shared_count, own }
    }
}

/// Positions of the query rows: `first + step * row`.
#[derive(Clone, Copy)]
struct Places {
    first: usize,
    step: usize,
    count: usize,
}

/// Attention of a few queries over the blocks up to their positions.
fn attend<'b>(
    p: &mut Vec<f32>,
    queries: View<'_>,
    places: Places,
    block: impl Fn(usize) -> Block<'b>,
    heads: Heads,
    out: &mut Out<'_>,
) {
    let width = probabilities(p, queries, places, |index| block(index).keys, heads);
    for index in 0..width / BLOCK {
        let p = View::rows(&p[index * BLOCK..], width);
        let output = if index == 0 { Output::Replace } else { Output::Add };
        matmul(out, output, 1.0, p, Right::Rows(block(index).values, heads.head_dim), BLOCK);
    }
}

/// p of a few queries, `(count, width)`, zero beyond each query's own position; gives the width,
/// a whole number of blocks.
fn probabilities<'b>(
    p: &mut Vec<f32>,
    queries: View<'_>,
    places: Places,
    keys: impl Fn(usize) -> &'b [f32],
    heads: Heads,
) -> usize {
    let Places { first, step, count } = places;
    let seen = first + step * (count - 1) + 1;
    let width = seen.next_multiple_of(BLOCK);
    if p.len() < count * width {
        p.resize(count * width, 0.0);
    }
    for index in 0..width / BLOCK {
        let mut scores = Out::rows(&mut p[..count * width], width);
        let mut scores = scores.part(0..count, index * BLOCK..(index + 1) * BLOCK);
        let right = Right::Rows(keys(index), BLOCK);
        matmul(&mut scores, Output::Replace, heads.scale(), queries, right, heads.head_dim);
    }
    causal_softmax(&mut p[..count * width], width, first, step);
    width
}

fn slice_from(values: &[f32], start: usize) -> &[f32] {
    &values[start..]
}

/// Softmax of row i over its first `first + step * i + 1` columns; the others become zero.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn causal_softmax(scores: &mut [f32], columns: usize, first: usize, step: usize) {
    for (i, row) in scores.chunks_exact_mut(columns).enumerate() {
        let (past, future) = row.split_at_mut(first + step * i + 1);
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
