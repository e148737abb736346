//! One layer of the decoder, forward and in reverse, over the rows of a pack.
//!
//! ```text
//! a = norm(x);  q, k, v = a Wq, a Wk, a Wv;  q, k = rope(norm?(q)), rope(norm?(k))
//! h = x + attention(q, k, v) Wo
//! b = norm(h);  next = h + (silu(b Wgate) * (b Wup)) Wdown
//! ```
//!
//! In reverse, g starts as the gradient by `next` and ends as that by `x`. With adapters
//! ([`crate::lora`]) every W is W + s B A, and only A and B have gradients.

use candle_core::Tensor;

use crate::error::PolicyError;
use crate::lora::{Adapter, AdapterView};
use crate::model_config::DecoderShape;
use crate::ops::matmul::{Job, Output, Panels, Right, matmuls};
use crate::ops::rope::{Rotations, Turn};
use crate::ops::slices::Values;
use crate::ops::{self, Heads, linear};
use crate::optimizer::GradientSet;
use crate::packed::PackedSequences;
use crate::pass::sized;

/// A parameter and its name.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub name: String,
    pub values: Tensor,
}

#[derive(Clone, Debug)]
pub(crate) struct Linear {
    pub weight: Named,
    pub bias: Option<Named>,
    pub adapter: Option<Adapter>,
}

/// The parameters of one layer.
#[derive(Clone, Debug)]
pub(crate) struct LayerWeights {
    /// Whether only the adapters are trained.
    pub frozen: bool,
    pub attention_norm: Named,
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub query_norm: Option<Named>,
    pub key_norm: Option<Named>,
    pub output: Linear,
    pub feed_forward_norm: Named,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// Attention of q over k and v (and whatever came before), into the last argument.
pub(crate) type AttentionOver<'a> = &'a mut dyn FnMut(&[f32], &[f32], &[f32], &mut [f32]);

/// Where the rows stand.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub positions: &'a [u32],
    pub rotations: &'a Rotations,
}

/// What one layer computed, `(rows, width)` each.
#[derive(Debug, Default)]
pub(crate) struct Activations {
    /// Rotated.
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Before their norm, for families that have one.
    raw_q: Vec<f32>,
    raw_k: Vec<f32>,
    attended: Vec<f32>,
    h: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
}

/// Buffers that live for one layer's work.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub normed: Vec<f32>,
    inner: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    d_attended: Vec<f32>,
    d_normed: Vec<f32>,
    panels: Panels,
    /// A weight with its adapter added.
    pub merged: Vec<f32>,
    /// Rows of an adapter's rank.
    low_rank: Vec<f32>,
}

/// The weights of one layer, laid out for the forward product.
#[derive(Clone, Debug, Default)]
pub(crate) struct PackedLayer {
    query: Panels,
    key: Panels,
    value: Panels,
    output: Panels,
    gate: Panels,
    up: Panels,
    down: Panels,
}

/// The values of a layer's parameters, readable while this lives.
pub(crate) struct LayerView<'a> {
    shape: &'a DecoderShape,
    attention_norm: Values<'a>,
    query: LinearView<'a>,
    key: LinearView<'a>,
    value: LinearView<'a>,
    query_norm: Option<Values<'a>>,
    key_norm: Option<Values<'a>>,
    output: LinearView<'a>,
    feed_forward_norm: Values<'a>,
    gate: LinearView<'a>,
    up: LinearView<'a>,
    down: LinearView<'a>,
}

struct LinearView<'a> {
    weight: Values<'a>,
    bias: Option<Values<'a>>,
    adapter: Option<AdapterView<'a>>,
}

impl Linear {
    fn view(&self) -> Result<LinearView<'_>, PolicyError> {
        Ok(LinearView {
            weight: Values::of(&self.weight.values)?,
            bias: self.bias.as_ref().map(|bias| Values::of(&bias.values)).transpose()?,
            adapter: self.adapter.as_ref().map(Adapter::view).transpose()?,
        })
    }
}

impl Linear {
    /// The weight with its adapter added; nothing where there is no adapter.
    pub(crate) fn merged(&self) -> Result<Vec<f32>, PolicyError> {
        let mut merged = Vec::new();
        self.view()?.effective(&mut merged);
        Ok(merged)
    }
}

impl LinearView<'_> {
    fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// The weight that products read: W, or W + s B A in `merged`.
    fn effective<'b>(&'b self, merged: &'b mut Vec<f32>) -> &'b [f32] {
        let Some(adapter) = &self.adapter else { return &self.weight };
        let merged = sized(merged, self.weight.len());
        adapter.merge(&self.weight, merged);
        merged
    }
}

impl LayerWeights {
    pub(crate) fn linears(&self) -> [&Linear; 7] {
        let Self { query, key, value, output, gate, up, down, .. } = self;
        [query, key, value, output, gate, up, down]
    }

    /// # Errors
    /// If a parameter is not f32 on the CPU.
    pub(crate) fn view<'a>(
        &'a self,
        shape: &'a DecoderShape,
    ) -> Result<LayerView<'a>, PolicyError> {
        let optional = |named: &'a Option<Named>| {
            named.as_ref().map(|named| Values::of(&named.values)).transpose()
        };
        Ok(LayerView {
            shape,
            attention_norm: Values::of(&self.attention_norm.values)?,
            query: self.query.view()?,
            key: self.key.view()?,
            value: self.value.view()?,
            query_norm: optional(&self.query_norm)?,
            key_norm: optional(&self.key_norm)?,
            output: self.output.view()?,
            feed_forward_norm: Values::of(&self.feed_forward_norm.values)?,
            gate: self.gate.view()?,
            up: self.up.view()?,
            down: self.down.view()?,
        })
    }
}

impl PackedLayer {
    /// Lays out a layer's weights, reusing the memory of the one before; `merged` is a buffer.
    pub(crate) fn pack(&mut self, layer: &LayerView<'_>, merged: &mut Vec<f32>) {
        let DecoderShape { hidden, intermediate, .. } = *layer.shape;
        let (query, kv) = (layer.shape.query_width(), layer.shape.kv_width());
        self.query.pack(layer.query.effective(merged), query, hidden);
        self.key.pack(layer.key.effective(merged), kv, hidden);
        self.value.pack(layer.value.effective(merged), kv, hidden);
        self.output.pack(layer.output.effective(merged), hidden, query);
        self.gate.pack(layer.gate.effective(merged), intermediate, hidden);
        self.up.pack(layer.up.effective(merged), intermediate, hidden);
        self.down.pack(layer.down.effective(merged), hidden, intermediate);
    }
}

impl LayerView<'_> {
    fn heads(&self) -> Heads {
        let DecoderShape { heads, kv_heads, head_dim, .. } = *self.shape;
        Heads { heads, kv_heads, head_dim }
    }

    /// x -> next, both `(rows, hidden)`.
    #[expect(clippy::too_many_arguments, reason = "inputs, outputs and buffers of one layer")]
    pub(crate) fn forward(
        &self,
        packed: &PackedLayer,
        place: Place<'_>,
        x: &[f32],
        activations: &mut Activations,
        next: &mut Vec<f32>,
        scratch: &mut Scratch,
        attention: AttentionOver<'_>,
    ) {
        let DecoderShape { hidden, intermediate, rms_norm_eps, .. } = *self.shape;
        let (query_width, kv_width) = (self.shape.query_width(), self.shape.kv_width());
        let eps = rms_norm_eps as f32;
        let rows = place.positions.len();
        let x = &x[..rows * hidden];
        let Activations { q, k, v, raw_q, raw_k, attended, h, gate, up } = activations;
        let normed = sized(&mut scratch.normed, rows * hidden);
        ops::rms_norm::forward(x, &self.attention_norm, eps, normed);
        let q = sized(q, rows * query_width);
        let (k, v) = (sized(k, rows * kv_width), sized(v, rows * kv_width));
        let (bq, bk, bv) = (self.query.bias(), self.key.bias(), self.value.bias());
        matmuls(vec![
            linear::forward(normed, hidden, &packed.query, bq, q, query_width),
            linear::forward(normed, hidden, &packed.key, bk, k, kv_width),
            linear::forward(normed, hidden, &packed.value, bv, v, kv_width),
        ]);
        let norms = [(&mut *q, raw_q, &self.query_norm), (&mut *k, raw_k, &self.key_norm)];
        for (x, raw, norm) in norms {
            let Some(norm) = norm else { continue };
            let raw = sized(raw, x.len());
            raw.copy_from_slice(x);
            ops::rms_norm::forward(raw, norm, eps, x);
        }
        ops::rope::turn(q, query_width, place.positions, place.rotations, Turn::Forth);
        ops::rope::turn(k, kv_width, place.positions, place.rotations, Turn::Forth);
        let attended = sized(attended, rows * query_width);
        attention(q, k, v, attended);

        let h = sized(h, rows * hidden);
        h.copy_from_slice(x);
        if let Some(bias) = self.output.bias() {
            h.chunks_exact_mut(hidden).for_each(|row| add(row, bias));
        }
        let job = linear::forward(attended, query_width, &packed.output, None, h, hidden);
        matmuls(vec![Job { output: Output::Add, ..job }]);

        ops::rms_norm::forward(h, &self.feed_forward_norm, eps, normed);
        let (gate, up) = (sized(gate, rows * intermediate), sized(up, rows * intermediate));
        matmuls(vec![
            linear::forward(normed, hidden, &packed.gate, None, gate, intermediate),
            linear::forward(normed, hidden, &packed.up, None, up, intermediate),
        ]);
        let inner = sized(&mut scratch.inner, rows * intermediate);
        ops::swiglu::forward(gate, up, inner);
        let next = sized(next, rows * hidden);
        next.copy_from_slice(h);
        let job = linear::forward(inner, intermediate, &packed.down, None, next, hidden);
        matmuls(vec![Job { output: Output::Add, ..job }]);
    }

    /// Turns `g`, the gradient by `next`, into that by `x`, and adds to `gradients`. Uses up the
    /// activations.
    #[expect(clippy::too_many_arguments, reason = "inputs, outputs and buffers of one layer")]
    pub(crate) fn backward(
        &self,
        weights: &LayerWeights,
        place: Place<'_>,
        sequences: &PackedSequences,
        x: &[f32],
        activations: &mut Activations,
        g: &mut [f32],
        scratch: &mut Scratch,
        gradients: &mut GradientSet,
    ) {
        let DecoderShape { hidden, intermediate, rms_norm_eps, .. } = *self.shape;
        let (query_width, kv_width) = (self.shape.query_width(), self.shape.kv_width());
        let eps = rms_norm_eps as f32;
        let rows = place.positions.len();
        let x = &x[..rows * hidden];
        let Activations { q, k, v, raw_q, raw_k, attended, h, gate, up } = activations;
        let (q, attended) = (&q[..rows * query_width], &attended[..rows * query_width]);
        let (k, v) = (&k[..rows * kv_width], &v[..rows * kv_width]);
        let h = &h[..rows * hidden];
        let (gate, up) = (&mut gate[..rows * intermediate], &mut up[..rows * intermediate]);
        let Scratch { normed, inner, dq, dk, dv, d_attended, d_normed, panels, merged, low_rank } =
            scratch;
        let trained = !weights.frozen;
        let (normed, d_normed) = (sized(normed, rows * hidden), sized(d_normed, rows * hidden));

        // Feed-forward. `inner` holds the gradient of silu(gate) up, then its value.
        let inner = sized(inner, rows * intermediate);
        let weight = self.down.effective(merged);
        input_gradient(panels, weight, g, hidden, inner, intermediate, Output::Replace);
        ops::swiglu::backward(gate, up, inner);
        ops::rms_norm::forward(h, &self.feed_forward_norm, eps, normed);
        let (dgate, dup) = (&*gate, &*up);
        let mut low = LowRank { panels, rows: low_rank };
        weight_gradients(
            gradients,
            trained,
            &mut low,
            [
                (&weights.down, &self.down, &*g, &*inner),
                (&weights.gate, &self.gate, dgate, &*normed),
                (&weights.up, &self.up, dup, &*normed),
            ],
        );
        sum_of_inputs(
            low.panels,
            merged,
            d_normed,
            hidden,
            [(dgate, &self.gate, intermediate), (dup, &self.up, intermediate)],
        );
        gradients.sum_into(&weights.feed_forward_norm, trained, |dw| {
            ops::rms_norm::backward(h, &self.feed_forward_norm, d_normed, eps, g, dw);
        });

        // Attention. `g` is now the gradient by h.
        let d_attended = sized(d_attended, rows * query_width);
        let weight = self.output.effective(merged);
        input_gradient(low.panels, weight, g, hidden, d_attended, query_width, Output::Replace);
        let maps = [(&weights.output, &self.output, &*g, attended)];
        weight_gradients(gradients, trained, &mut low, maps);
        let dq = sized(dq, rows * query_width);
        let (dk, dv) = (sized(dk, rows * kv_width), sized(dv, rows * kv_width));
        let heads = self.heads();
        ops::attention::backward(q, k, v, attended, d_attended, sequences, heads, dq, dk, dv);
        ops::rope::turn(dq, query_width, place.positions, place.rotations, Turn::Back);
        ops::rope::turn(dk, kv_width, place.positions, place.rotations, Turn::Back);
        for (g, raw, norm, named) in [
            (&mut *dq, raw_q, &self.query_norm, &weights.query_norm),
            (&mut *dk, raw_k, &self.key_norm, &weights.key_norm),
        ] {
            let (Some(norm), Some(named)) = (norm, named) else { continue };
            // The buffer of d_attended is free and as large as the larger of the two.
            let dx = &mut d_attended[..g.len()];
            dx.fill(0.0);
            gradients.sum_into(named, trained, |dw| {
                ops::rms_norm::backward(&raw[..g.len()], norm, g, eps, dx, dw);
            });
            g.copy_from_slice(dx);
        }
        ops::rms_norm::forward(x, &self.attention_norm, eps, normed);
        let (dq, dk, dv) = (&*dq, &*dk, &*dv);
        weight_gradients(
            gradients,
            trained,
            &mut low,
            [
                (&weights.query, &self.query, dq, &*normed),
                (&weights.key, &self.key, dk, &*normed),
                (&weights.value, &self.value, dv, &*normed),
            ],
        );
        let maps = [
            (dq, &self.query, query_width),
            (dk, &self.key, kv_width),
            (dv, &self.value, kv_width),
        ];
        sum_of_inputs(low.panels, merged, d_normed, hidden, maps);
        gradients.sum_into(&weights.attention_norm, trained, |dw| {
            ops::rms_norm::backward(x, &self.attention_norm, d_normed, eps, g, dw);
        });
    }
}

/// Buffers for products of an adapter's rank.
struct LowRank<'a> {
    panels: &'a mut Panels,
    rows: &'a mut Vec<f32>,
}

/// A map, its values, the gradient by its result, and what it read.
type Mapped<'a> = (&'a Linear, &'a LinearView<'a>, &'a [f32], &'a [f32]);

/// Adds the gradients of the weights and biases of some maps, or of their adapters where the
/// weights are frozen.
fn weight_gradients<const N: usize>(
    gradients: &mut GradientSet,
    trained: bool,
    low: &mut LowRank<'_>,
    maps: [Mapped<'_>; N],
) {
    if !trained {
        maps.into_iter().for_each(|map| adapter_gradients(gradients, low, map));
        return;
    }
    let mut taken =
        maps.map(|(linear, ..)| gradients.take(&linear.weight.name, &linear.weight.values));
    let jobs = taken.iter_mut().zip(maps).map(|(dw, (_, _, g, x))| {
        let (columns, inner) = dw.dims2();
        let output = dw.output();
        Job { output, ..linear::backward_weight(g, columns, x, inner, dw.values()) }
    });
    matmuls(jobs.collect());
    for (dw, (linear, _, g, _)) in taken.into_iter().zip(maps) {
        gradients.put(&linear.weight.name, dw);
        let Some(bias) = &linear.bias else { continue };
        let mut db = gradients.take(&bias.name, &bias.values);
        linear::backward_bias(g, db.summed());
        gradients.put(&bias.name, db);
    }
}

/// dB = s gᵀ (x Aᵀ), then dA = s (g B)ᵀ x: no product is as large as the weight.
fn adapter_gradients(
    gradients: &mut GradientSet,
    low: &mut LowRank<'_>,
    (linear, view, g, x): Mapped<'_>,
) {
    let (Some(named), Some(adapter)) = (&linear.adapter, &view.adapter) else { return };
    let AdapterView { a, b, rank, scale } = adapter;
    let (rank, scale) = (*rank, *scale);
    let (inner, columns) = (a.len() / rank, b.len() / rank);
    let rows = sized(low.rows, g.len() / columns * rank);
    low.panels.pack(a, rank, inner);
    matmuls(vec![linear::forward(x, inner, low.panels, None, rows, rank)]);
    let mut db = gradients.take(&named.b.name, &named.b.values);
    let output = db.output();
    let job = linear::backward_weight(g, columns, rows, rank, db.values());
    matmuls(vec![Job { output, scale, ..job }]);
    gradients.put(&named.b.name, db);

    matmuls(vec![linear::backward_input(g, columns, Right::Rows(b, rank), rows, rank)]);
    let mut da = gradients.take(&named.a.name, &named.a.values);
    let output = da.output();
    let job = linear::backward_weight(rows, rank, x, inner, da.values());
    matmuls(vec![Job { output, scale, ..job }]);
    gradients.put(&named.a.name, da);
}

/// dx = Σ g w over maps that read the same x.
fn sum_of_inputs<const N: usize>(
    panels: &mut Panels,
    merged: &mut Vec<f32>,
    dx: &mut [f32],
    hidden: usize,
    maps: [(&[f32], &LinearView<'_>, usize); N],
) {
    for (index, (g, map, columns)) in maps.into_iter().enumerate() {
        let output = if index == 0 { Output::Replace } else { Output::Add };
        input_gradient(panels, map.effective(merged), g, columns, dx, hidden, output);
    }
}

/// dx = g w, or added to it. Where many rows read the weight, it is laid out for them first.
fn input_gradient(
    panels: &mut Panels,
    weight: &[f32],
    g: &[f32],
    columns: usize,
    dx: &mut [f32],
    inner: usize,
    output: Output,
) {
    let right = if g.len() / columns < FEW_ROWS {
        Right::Rows(weight, inner)
    } else {
        panels.pack_rows(weight, columns, inner);
        panels.right()
    };
    matmuls(vec![Job { output, ..linear::backward_input(g, columns, right, dx, inner) }]);
}

/// Rows for which laying out a weight costs more than it saves.
const FEW_ROWS: usize = 48;

fn add(sum: &mut [f32], values: &[f32]) {
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}
