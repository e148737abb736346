//! The kernels and how each is launched.
//!
//! Their sources stand in `kernels/`, without includes, and are compiled where they run: by NVRTC
//! for a GPU, by a C++ compiler for the emulation that tests use (`kernels/emulation.h`). A
//! launch here fits its kernel to the shapes it is given; the formulas stand beside the kernels.

use super::buffer::{Device, View};
use super::driver::{Argument, Kind, Launch, Operand, Product};
use crate::error::PolicyError;
use crate::ops::Heads;
use crate::ops::attention::BLOCK;
use crate::ops::matmul::Output;
use crate::optimizer::Update;

/// File name and text of every source, in the order they must be joined.
pub const SOURCES: [(&str, &str); 7] = [
    ("element.cu", include_str!("kernels/element.cu")),
    ("norm.cu", include_str!("kernels/norm.cu")),
    ("rows.cu", include_str!("kernels/rows.cu")),
    ("pointwise.cu", include_str!("kernels/pointwise.cu")),
    ("attention.cu", include_str!("kernels/attention.cu")),
    ("scores.cu", include_str!("kernels/scores.cu")),
    ("optimizer.cu", include_str!("kernels/optimizer.cu")),
];

/// Every kernel, and whether it wants more shared memory than a launch may have unasked.
pub const KERNELS: [(&str, bool); 25] = [
    ("rms_norm", false),
    ("rms_norm_backward", false),
    ("rms_norm_weight_chunks", false),
    ("gather_rows", false),
    ("add_rows", false),
    ("scatter_rows", false),
    ("add_bias", false),
    ("sum_row_chunks", false),
    ("add_partial_rows", false),
    ("narrow_values", false),
    ("widen_values", false),
    ("rotate", false),
    ("swiglu", false),
    ("swiglu_backward", false),
    ("attention", true),
    ("attention_cached", true),
    ("write_cache", false),
    ("attention_deltas", false),
    ("attention_dq", true),
    ("attention_dkv", true),
    ("score_rows", false),
    ("score_rows_backward", false),
    ("sample_rows", false),
    ("square_chunks", false),
    ("adamw", false),
];

/// The most shared memory that a kernel asks for, at the widest head.
pub const MOST_SHARED_BYTES: u32 = shared_bytes(4, 2, WIDEST_HEAD);

/// Columns that a warp's lanes can hold.
pub(crate) const WIDEST_HEAD: usize = 128;

/// Query rows or keys of one tile of attention, and positions of a block of the cache.
pub(crate) const TILE: usize = 32;
const _: () = assert!(TILE == BLOCK, "attention reads a block of the cache as one tile");

/// Words that describe a tile of queries, and of keys.
pub(crate) const QUERY_TILE_WORDS: usize = 5;
pub(crate) const KEY_TILE_WORDS: usize = 3;

const TILE_THREADS: u32 = 128;
const THREADS: u32 = 256;
/// Blocks of a kernel that walks over any number of values: some waves of a large card.
const MOST_BLOCKS: usize = 2048;
/// Rows that one thread sums before another goes on.
const ROWS_PER_CHUNK: usize = 64;

/// Bytes of some tiles of head rows and of some of 32 by 32 weights.
const fn shared_bytes(head_tiles: usize, weight_tiles: usize, head_dim: usize) -> u32 {
    let stride = head_dim.next_multiple_of(4) + 4;
    ((head_tiles * TILE * stride + weight_tiles * TILE * TILE) * 4) as u32
}

fn word(value: usize) -> Argument {
    Argument::U32(u32::try_from(value).expect("sizes of one batch fit 32 bits"))
}

const NONE: Argument = Argument::Address(0, Kind::Element);

/// Threads that share one row.
fn threads_for(width: usize) -> u32 {
    (width.next_multiple_of(32) as u32).min(THREADS)
}

/// Blocks and threads for `count` independent values.
fn spread(count: usize) -> ((u32, u32), u32) {
    ((count.div_ceil(THREADS as usize).min(MOST_BLOCKS) as u32, 1), THREADS)
}

impl Device {
    fn launch(
        &self,
        kernel: &'static str,
        (grid, threads): ((u32, u32), u32),
        shared_bytes: u32,
        arguments: &[Argument],
    ) -> Result<(), PolicyError> {
        if grid.0 == 0 || grid.1 == 0 {
            return Ok(());
        }
        self.driver().launch(&Launch { kernel, grid, threads, shared_bytes, arguments })
    }

    fn launch_rows(
        &self,
        kernel: &'static str,
        rows: usize,
        width: usize,
        arguments: &[Argument],
    ) -> Result<(), PolicyError> {
        self.launch(kernel, ((rows as u32, 1), threads_for(width)), 0, arguments)
    }

    /// out (rows, columns) = x (rows, inner) · w (columns, inner)ᵀ: a linear map forward.
    pub(crate) fn project(
        &self,
        x: View<'_>,
        weight: View<'_>,
        inner: usize,
        out: View<'_>,
        into: Output,
        scale: f32,
    ) -> Result<(), PolicyError> {
        let (rows, columns) = (x.count() / inner, weight.count() / inner);
        assert!(out.count() == rows * columns, "a product of {rows} by {columns}");
        self.driver().multiply(&Product {
            rows,
            columns,
            inner,
            a: Operand { address: x.address(), stride: inner, transposed: false },
            b: Operand { address: weight.address(), stride: inner, transposed: true },
            out: out.address(),
            out_kind: out.kind(),
            scale,
            add: into == Output::Add,
        })
    }

    /// dx (rows, inner) = g (rows, columns) · w (columns, inner).
    pub(crate) fn project_back(
        &self,
        g: View<'_>,
        weight: View<'_>,
        inner: usize,
        dx: View<'_>,
        into: Output,
    ) -> Result<(), PolicyError> {
        let rows = dx.count() / inner;
        let columns = g.count() / rows;
        assert!(weight.count() == columns * inner, "a weight of {columns} by {inner}");
        self.driver().multiply(&Product {
            rows,
            columns: inner,
            inner: columns,
            a: Operand { address: g.address(), stride: columns, transposed: false },
            b: Operand { address: weight.address(), stride: inner, transposed: false },
            out: dx.address(),
            out_kind: dx.kind(),
            scale: 1.0,
            add: into == Output::Add,
        })
    }

    /// dw (columns, inner) = g (rows, columns)ᵀ · x (rows, inner).
    pub(crate) fn weight_gradient(
        &self,
        g: View<'_>,
        x: View<'_>,
        rows: usize,
        dw: View<'_>,
        into: Output,
    ) -> Result<(), PolicyError> {
        let (columns, inner) = (g.count() / rows, x.count() / rows);
        assert!(dw.count() == columns * inner, "a gradient of {columns} by {inner}");
        self.driver().multiply(&Product {
            rows: columns,
            columns: inner,
            inner: rows,
            a: Operand { address: g.address(), stride: columns, transposed: true },
            b: Operand { address: x.address(), stride: inner, transposed: false },
            out: dw.address(),
            out_kind: dw.kind(),
            scale: 1.0,
            add: into == Output::Add,
        })
    }

    pub(crate) fn rms_norm(
        &self,
        x: View<'_>,
        weight: View<'_>,
        y: View<'_>,
        eps: f32,
    ) -> Result<(), PolicyError> {
        let width = weight.count();
        let arguments =
            [x.argument(), weight.argument(), y.argument(), word(width), Argument::F32(eps)];
        self.launch_rows("rms_norm", x.count() / width, width, &arguments)
    }

    /// dx, and each row's scale for [`rms_norm_weight`](Self::rms_norm_weight).
    #[expect(clippy::too_many_arguments, reason = "inputs and outputs of one kernel")]
    pub(crate) fn rms_norm_backward(
        &self,
        x: View<'_>,
        weight: View<'_>,
        g: View<'_>,
        dx: View<'_>,
        into: Output,
        scales: View<'_>,
        eps: f32,
    ) -> Result<(), PolicyError> {
        let width = weight.count();
        let rows = x.count() / width;
        assert!(scales.count() == rows && dx.count() == x.count() && g.count() == x.count());
        let arguments = [
            x.argument(),
            weight.argument(),
            g.argument(),
            dx.argument(),
            scales.argument(),
            word(width),
            Argument::F32(eps),
            word(usize::from(into == Output::Add)),
        ];
        self.launch_rows("rms_norm_backward", rows, width, &arguments)
    }

    /// Adds the gradient of a norm's weight to `sum`. `partial` holds [`partial_sums`] values.
    pub(crate) fn rms_norm_weight(
        &self,
        x: View<'_>,
        g: View<'_>,
        scales: View<'_>,
        partial: View<'_>,
        sum: View<'_>,
    ) -> Result<(), PolicyError> {
        let width = sum.count();
        let rows = x.count() / width;
        let arguments = [
            x.argument(),
            g.argument(),
            scales.argument(),
            partial.argument(),
            word(rows),
            word(width),
            word(ROWS_PER_CHUNK),
        ];
        self.launch("rms_norm_weight_chunks", columns_by_chunks(rows, width), 0, &arguments)?;
        self.add_partial_rows(partial, rows, sum)
    }

    /// Adds the sum of the rows of `x` to `sum`. `partial` holds [`partial_sums`] values.
    pub(crate) fn sum_rows(
        &self,
        x: View<'_>,
        partial: View<'_>,
        sum: View<'_>,
    ) -> Result<(), PolicyError> {
        let width = sum.count();
        let rows = x.count() / width;
        let arguments =
            [x.argument(), partial.argument(), word(rows), word(width), word(ROWS_PER_CHUNK)];
        self.launch("sum_row_chunks", columns_by_chunks(rows, width), 0, &arguments)?;
        self.add_partial_rows(partial, rows, sum)
    }

    fn add_partial_rows(
        &self,
        partial: View<'_>,
        rows: usize,
        sum: View<'_>,
    ) -> Result<(), PolicyError> {
        let (width, chunks) = (sum.count(), rows.div_ceil(ROWS_PER_CHUNK));
        assert!(partial.count() >= chunks * width, "room for the partial sums");
        let arguments = [partial.argument(), sum.argument(), word(chunks), word(width)];
        let blocks = (width.div_ceil(THREADS as usize) as u32, 1);
        self.launch("add_partial_rows", (blocks, THREADS), 0, &arguments)
    }

    /// out[i] = table[ids[i]]
    pub(crate) fn gather_rows(
        &self,
        table: View<'_>,
        ids: View<'_>,
        out: View<'_>,
        width: usize,
    ) -> Result<(), PolicyError> {
        assert!(out.count() == ids.count() * width, "a row for each id");
        let arguments = [table.argument(), ids.argument(), out.argument(), word(width)];
        self.launch_rows("gather_rows", ids.count(), width, &arguments)
    }

    /// Adds rows of `g` to the f32 rows that `targets` says: see [`Segments`].
    pub(crate) fn add_rows(
        &self,
        g: View<'_>,
        segments: &SegmentViews<'_>,
        table: View<'_>,
        width: usize,
    ) -> Result<(), PolicyError> {
        self.rows_by_segment("add_rows", g, segments, table, width)
    }

    /// The same, written over elements that hold zero.
    pub(crate) fn scatter_rows(
        &self,
        g: View<'_>,
        segments: &SegmentViews<'_>,
        out: View<'_>,
        width: usize,
    ) -> Result<(), PolicyError> {
        self.rows_by_segment("scatter_rows", g, segments, out, width)
    }

    fn rows_by_segment(
        &self,
        kernel: &'static str,
        g: View<'_>,
        segments: &SegmentViews<'_>,
        out: View<'_>,
        width: usize,
    ) -> Result<(), PolicyError> {
        let SegmentViews { order, starts, targets } = segments;
        let arguments = [
            g.argument(),
            order.argument(),
            starts.argument(),
            targets.argument(),
            out.argument(),
            word(width),
        ];
        self.launch_rows(kernel, targets.count(), width, &arguments)
    }

    /// x += bias, row by row.
    pub(crate) fn add_bias(&self, x: View<'_>, bias: View<'_>) -> Result<(), PolicyError> {
        let width = bias.count();
        let arguments = [x.argument(), bias.argument(), x.argument(), word(width)];
        self.launch_rows("add_bias", x.count() / width, width, &arguments)
    }

    /// f32 -> elements
    pub(crate) fn narrow(&self, x: View<'_>, y: View<'_>) -> Result<(), PolicyError> {
        let arguments = [x.argument(), y.argument(), Argument::U64(x.count() as u64)];
        self.launch("narrow_values", spread(x.count()), 0, &arguments)
    }

    /// elements -> f32
    pub(crate) fn widen(&self, x: View<'_>, y: View<'_>) -> Result<(), PolicyError> {
        let arguments = [x.argument(), y.argument(), Argument::U64(x.count() as u64)];
        self.launch("widen_values", spread(x.count()), 0, &arguments)
    }

    /// Turns heads to their positions; `sign` -1 turns back.
    pub(crate) fn rotate(
        &self,
        x: View<'_>,
        positions: View<'_>,
        cos: View<'_>,
        sin: View<'_>,
        head_dim: usize,
        sign: f32,
    ) -> Result<(), PolicyError> {
        let width = x.count() / positions.count();
        let arguments = [
            x.argument(),
            positions.argument(),
            cos.argument(),
            sin.argument(),
            word(width),
            word(head_dim),
            Argument::F32(sign),
        ];
        self.launch_rows("rotate", positions.count(), width / 2, &arguments)
    }

    pub(crate) fn swiglu(
        &self,
        gate: View<'_>,
        up: View<'_>,
        y: View<'_>,
    ) -> Result<(), PolicyError> {
        let count = Argument::U64(y.count() as u64);
        let arguments = [gate.argument(), up.argument(), y.argument(), count];
        self.launch("swiglu", spread(y.count()), 0, &arguments)
    }

    /// gate, up, g = dgate, dup, silu(gate) up.
    pub(crate) fn swiglu_backward(
        &self,
        gate: View<'_>,
        up: View<'_>,
        g: View<'_>,
    ) -> Result<(), PolicyError> {
        let count = Argument::U64(g.count() as u64);
        let arguments = [gate.argument(), up.argument(), g.argument(), count];
        self.launch("swiglu_backward", spread(g.count()), 0, &arguments)
    }

    /// Attention within packed sequences; see `kernels/attention.cu` for the tiles.
    #[expect(clippy::too_many_arguments, reason = "inputs and outputs of one kernel")]
    pub(crate) fn attention(
        &self,
        q: View<'_>,
        k: View<'_>,
        v: View<'_>,
        tiles: View<'_>,
        out: View<'_>,
        logsumexps: View<'_>,
        sizes: Heads,
    ) -> Result<(), PolicyError> {
        let arguments = [
            q.argument(),
            k.argument(),
            v.argument(),
            tiles.argument(),
            out.argument(),
            logsumexps.argument(),
            word(sizes.heads),
            word(sizes.kv_heads),
            word(sizes.head_dim),
        ];
        let shared = shared_bytes(3, 1, sizes.head_dim);
        let grid = tile_grid(tiles, QUERY_TILE_WORDS, sizes);
        self.launch("attention", grid, shared, &arguments)
    }

    /// Attention over a cache.
    #[expect(clippy::too_many_arguments, reason = "inputs and outputs of one kernel")]
    pub(crate) fn attention_cached(
        &self,
        q: View<'_>,
        blocks: View<'_>,
        tables: View<'_>,
        tiles: View<'_>,
        out: View<'_>,
        (layer, layers): (usize, usize),
        sizes: Heads,
    ) -> Result<(), PolicyError> {
        let arguments = [
            q.argument(),
            blocks.argument(),
            tables.argument(),
            tiles.argument(),
            out.argument(),
            word(layer),
            word(layers),
            word(sizes.heads),
            word(sizes.kv_heads),
            word(sizes.head_dim),
        ];
        let shared = shared_bytes(3, 1, sizes.head_dim);
        let grid = tile_grid(tiles, QUERY_TILE_WORDS, sizes);
        self.launch("attention_cached", grid, shared, &arguments)
    }

    /// Writes rows of keys and values to their places in the cache.
    pub(crate) fn write_cache(
        &self,
        k: View<'_>,
        v: View<'_>,
        places: View<'_>,
        blocks: View<'_>,
        (layer, layers): (usize, usize),
        sizes: Heads,
    ) -> Result<(), PolicyError> {
        let arguments = [
            k.argument(),
            v.argument(),
            places.argument(),
            blocks.argument(),
            word(layer),
            word(layers),
            word(sizes.kv_heads),
            word(sizes.head_dim),
        ];
        let width = sizes.kv_heads * sizes.head_dim;
        self.launch_rows("write_cache", places.count(), width, &arguments)
    }

    /// Gradients by q, k and v from the gradient `g` by what [`attention`](Self::attention) gave.
    #[expect(clippy::too_many_arguments, reason = "inputs and outputs of three kernels")]
    pub(crate) fn attention_backward(
        &self,
        [q, k, v]: [View<'_>; 3],
        out: View<'_>,
        g: View<'_>,
        logsumexps: View<'_>,
        deltas: View<'_>,
        query_tiles: View<'_>,
        key_tiles: View<'_>,
        [dq, dk, dv]: [View<'_>; 3],
        sizes: Heads,
    ) -> Result<(), PolicyError> {
        let Heads { heads, kv_heads, head_dim } = sizes;
        let count = q.count() / head_dim;
        let arguments =
            [out.argument(), g.argument(), deltas.argument(), word(count), word(head_dim)];
        let warps = (THREADS / 32) as usize;
        let grid = (count.div_ceil(warps) as u32, 1);
        self.launch("attention_deltas", (grid, THREADS), 0, &arguments)?;
        let given = [q, k, v, g, logsumexps, deltas].map(View::argument);
        let sizes_of = [word(heads), word(kv_heads), word(head_dim)];
        let arguments = [&given[..], &[query_tiles.argument(), dq.argument()], &sizes_of].concat();
        let grid = tile_grid(query_tiles, QUERY_TILE_WORDS, sizes);
        self.launch("attention_dq", grid, shared_bytes(4, 1, head_dim), &arguments)?;
        let outputs = [key_tiles.argument(), dk.argument(), dv.argument()];
        let arguments = [&given[..], &outputs, &sizes_of].concat();
        let grid = tile_grid(key_tiles, KEY_TILE_WORDS, sizes);
        self.launch("attention_dkv", grid, shared_bytes(4, 2, head_dim), &arguments)
    }

    /// Log-probability of each row's target, entropy and log-sum-exp of each row.
    pub(crate) fn score_rows(
        &self,
        logits: View<'_>,
        targets: View<'_>,
        [logprobs, entropies, logsumexps]: [View<'_>; 3],
    ) -> Result<(), PolicyError> {
        let rows = targets.count();
        let vocab = logits.count() / rows;
        let arguments = [
            logits.argument(),
            targets.argument(),
            logprobs.argument(),
            entropies.argument(),
            logsumexps.argument(),
            word(vocab),
        ];
        self.launch_rows("score_rows", rows, vocab, &arguments)
    }

    /// The gradient by the logits before the temperature, from `g` by the log-probabilities.
    pub(crate) fn score_rows_backward(
        &self,
        logits: View<'_>,
        targets: View<'_>,
        logsumexps: View<'_>,
        g: View<'_>,
        dz: View<'_>,
        inverse_temperature: f32,
    ) -> Result<(), PolicyError> {
        let rows = targets.count();
        let vocab = logits.count() / rows;
        let arguments = [
            logits.argument(),
            targets.argument(),
            logsumexps.argument(),
            g.argument(),
            dz.argument(),
            word(vocab),
            Argument::F32(inverse_temperature),
        ];
        self.launch_rows("score_rows_backward", rows, vocab, &arguments)
    }

    /// Draws a token for each row; see `kernels/scores.cu`.
    pub(crate) fn sample_rows(
        &self,
        logits: View<'_>,
        given: &DrawViews<'_>,
        tokens: View<'_>,
        logprobs: View<'_>,
        kept_masses: View<'_>,
    ) -> Result<(), PolicyError> {
        let rows = tokens.count();
        let vocab = logits.count() / rows;
        let arguments = [
            logits.argument(),
            given.inverse_temperatures.argument(),
            given.uniforms.argument(),
            given.early.argument(),
            given.forbidden.argument(),
            tokens.argument(),
            logprobs.argument(),
            kept_masses.argument(),
            word(given.forbidden.count()),
            word(vocab),
        ];
        self.launch_rows("sample_rows", rows, vocab, &arguments)
    }

    /// The squares of `x`, summed into as many parts as `partial` holds.
    pub(crate) fn sum_squares(&self, x: View<'_>, partial: View<'_>) -> Result<(), PolicyError> {
        let arguments = [x.argument(), partial.argument(), Argument::U64(x.count() as u64)];
        let grid = (partial.count() as u32, 1);
        self.launch("square_chunks", (grid, THREADS), 0, &arguments)
    }

    /// One step of one tensor; `partial` receives the squares of the change as
    /// [`sum_squares`](Self::sum_squares) does.
    #[expect(clippy::too_many_arguments, reason = "inputs and outputs of one kernel")]
    pub(crate) fn adamw(
        &self,
        weights: View<'_>,
        mean: View<'_>,
        square: View<'_>,
        gradient: View<'_>,
        copy: Option<View<'_>>,
        partial: View<'_>,
        step: Update,
    ) -> Result<(), PolicyError> {
        let arguments = [
            weights.argument(),
            mean.argument(),
            square.argument(),
            gradient.argument(),
            copy.map_or(NONE, View::argument),
            partial.argument(),
            Argument::U64(weights.count() as u64),
            Argument::F32(step.keep),
            Argument::F32(step.clip_scale),
            Argument::F32(step.beta1),
            Argument::F32(step.beta2),
            Argument::F32(step.mean_share),
            Argument::F32(step.square_share),
            Argument::F32(step.rate),
            Argument::F32(step.square_root_correction),
            Argument::F32(step.eps),
        ];
        self.launch("adamw", ((partial.count() as u32, 1), THREADS), 0, &arguments)
    }
}

/// f32 values that the partial sums of some columns over some rows take.
pub(crate) fn partial_sums(rows: usize, width: usize) -> usize {
    rows.div_ceil(ROWS_PER_CHUNK) * width
}

/// Parts into which the squares of `count` values are summed.
pub(crate) fn square_parts(count: usize) -> usize {
    /// Values a block takes before another does.
    const VALUES: usize = 8 * 1024;
    count.div_ceil(VALUES).clamp(1, 512)
}

fn columns_by_chunks(rows: usize, width: usize) -> ((u32, u32), u32) {
    let columns = width.div_ceil(THREADS as usize) as u32;
    ((columns, rows.div_ceil(ROWS_PER_CHUNK) as u32), THREADS)
}

fn tile_grid(tiles: View<'_>, words: usize, sizes: Heads) -> ((u32, u32), u32) {
    (((tiles.count() / words) as u32, sizes.kv_heads as u32), TILE_THREADS)
}

/// Rows sorted by where they go, so that each place is written once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Segments {
    /// Rows, those of one place together, in their own order.
    pub order: Vec<u32>,
    /// Where each place's rows begin in `order`, and the end.
    pub starts: Vec<u32>,
    pub targets: Vec<u32>,
}

/// What decides the draw of each row.
#[derive(Clone, Copy)]
pub(crate) struct DrawViews<'a> {
    /// 0 takes the likeliest.
    pub inverse_temperatures: View<'a>,
    pub uniforms: View<'a>,
    /// Whether the row may not draw the forbidden tokens yet.
    pub early: View<'a>,
    pub forbidden: View<'a>,
}

/// [`Segments`] on the device.
#[derive(Clone, Copy)]
pub(crate) struct SegmentViews<'a> {
    pub order: View<'a>,
    pub starts: View<'a>,
    pub targets: View<'a>,
}

impl Segments {
    /// Row i goes to `places[i]`.
    pub(crate) fn of(places: &[u32]) -> Self {
        let mut order: Vec<u32> = (0..places.len() as u32).collect();
        order.sort_by_key(|row| places[*row as usize]);
        let (mut starts, mut targets) = (Vec::new(), Vec::new());
        for (index, row) in order.iter().enumerate() {
            let place = places[*row as usize];
            if targets.last() != Some(&place) {
                targets.push(place);
                starts.push(index as u32);
            }
        }
        starts.push(order.len() as u32);
        Self { order, starts, targets }
    }
}
