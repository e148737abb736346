//! One layer on a device: the arithmetic of [`crate::layer`], kernel by kernel.

use super::buffer::{Device, Room, View};
use super::driver::Kind;
use super::gradients::DeviceGradients;
use super::kernels::partial_sums;
use super::weights::{Layer, Linear, Parameter, Resident};
use crate::error::PolicyError;
use crate::ops::Heads;
use crate::ops::matmul::Output;

/// Where the rows stand.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub positions: View<'a>,
    pub cos: View<'a>,
    pub sin: View<'a>,
    pub head_dim: usize,
}

/// What one layer computed, `(rows, width)` each.
#[derive(Debug, Default)]
pub(crate) struct Activations {
    /// Rotated.
    q: Room,
    k: Room,
    v: Room,
    /// Before their norm, for families that have one.
    raw_q: Room,
    raw_k: Room,
    attended: Room,
    /// A row and head each.
    logsumexps: Room,
    h: Room,
    gate: Room,
    up: Room,
}

/// Buffers that live for one layer's work.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    normed: Room,
    inner: Room,
    dq: Room,
    dk: Room,
    dv: Room,
    d_raw_q: Room,
    d_raw_k: Room,
    d_attended: Room,
    d_normed: Room,
    deltas: Room,
    scales: Room,
    partial: Room,
}

/// Attention of q over k and v, and whatever came before: into `out`, with the log-sum-exps.
pub(crate) type Attend<'a> = &'a mut dyn FnMut(Attended<'_>) -> Result<(), PolicyError>;

/// What attention reads and writes.
pub(crate) struct Attended<'a> {
    pub q: View<'a>,
    pub k: View<'a>,
    pub v: View<'a>,
    pub out: View<'a>,
    pub logsumexps: View<'a>,
}

/// Tiles of a pack, for the backward pass.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<'a> {
    pub queries: View<'a>,
    pub keys: View<'a>,
}

impl Scratch {
    /// Room for the scales of rows, and for partial sums.
    pub(crate) fn statistics(&mut self) -> (&mut Room, &mut Room) {
        (&mut self.scales, &mut self.partial)
    }
}

impl Resident {
    pub(crate) fn heads(&self) -> Heads {
        let shape = &self.shape;
        Heads { heads: shape.heads, kv_heads: shape.kv_heads, head_dim: shape.head_dim }
    }

    /// x -> next, both `(rows, hidden)`.
    #[expect(clippy::too_many_arguments, reason = "inputs, outputs and buffers of one layer")]
    pub(crate) fn layer_forward(
        &self,
        layer: &Layer,
        place: Place<'_>,
        x: View<'_>,
        activations: &mut Activations,
        next: View<'_>,
        scratch: &mut Scratch,
        attend: Attend<'_>,
    ) -> Result<(), PolicyError> {
        let (device, shape) = (&self.device, &self.shape);
        let (hidden, intermediate) = (shape.hidden, shape.intermediate);
        let (query_width, kv_width) = (shape.query_width(), shape.kv_width());
        let eps = shape.rms_norm_eps as f32;
        let rows = x.count() / hidden;
        let Activations { q, k, v, raw_q, raw_k, attended, logsumexps, h, gate, up } = activations;

        let normed = scratch.normed.sized(device, Kind::Element, rows * hidden)?;
        device.rms_norm(x, layer.attention_norm.elements(), normed, eps)?;
        let q = q.sized(device, Kind::Element, rows * query_width)?;
        let k = k.sized(device, Kind::Element, rows * kv_width)?;
        let v = v.sized(device, Kind::Element, rows * kv_width)?;
        linear(device, &layer.value, normed, hidden, v)?;
        for (out, raw, map, norm) in
            [(q, raw_q, &layer.query, &layer.query_norm), (k, raw_k, &layer.key, &layer.key_norm)]
        {
            match norm {
                None => linear(device, map, normed, hidden, out)?,
                Some(norm) => {
                    let raw = raw.sized(device, Kind::Element, out.count())?;
                    linear(device, map, normed, hidden, raw)?;
                    device.rms_norm(raw, norm.elements(), out, eps)?;
                }
            }
            let Place { positions, cos, sin, head_dim } = place;
            device.rotate(out, positions, cos, sin, head_dim, 1.0)?;
        }
        let attended = attended.sized(device, Kind::Element, rows * query_width)?;
        let logsumexps = logsumexps.sized(device, Kind::F32, rows * shape.heads)?;
        attend(Attended { q, k, v, out: attended, logsumexps })?;

        let h = h.sized(device, Kind::Element, rows * hidden)?;
        h.copy_from(x)?;
        let weight = layer.output.weight.elements();
        device.project(attended, weight, query_width, h, Output::Add, 1.0)?;
        if let Some(bias) = &layer.output.bias {
            device.add_bias(h, bias.elements())?;
        }

        device.rms_norm(h, layer.feed_forward_norm.elements(), normed, eps)?;
        let gate = gate.sized(device, Kind::Element, rows * intermediate)?;
        let up = up.sized(device, Kind::Element, rows * intermediate)?;
        linear(device, &layer.gate, normed, hidden, gate)?;
        linear(device, &layer.up, normed, hidden, up)?;
        let inner = scratch.inner.sized(device, Kind::Element, rows * intermediate)?;
        device.swiglu(gate, up, inner)?;
        next.copy_from(h)?;
        let weight = layer.down.weight.elements();
        device.project(inner, weight, intermediate, next, Output::Add, 1.0)
    }

    /// Turns `g`, the gradient by `next`, into that by `x`, and adds to `gradients`. Uses up the
    /// activations.
    #[expect(clippy::too_many_arguments, reason = "inputs, outputs and buffers of one layer")]
    pub(crate) fn layer_backward(
        &self,
        layer: &Layer,
        place: Place<'_>,
        tiles: Tiles<'_>,
        x: View<'_>,
        activations: &mut Activations,
        g: View<'_>,
        scratch: &mut Scratch,
        gradients: &mut DeviceGradients,
    ) -> Result<(), PolicyError> {
        let (device, shape) = (&self.device, &self.shape);
        let (hidden, intermediate) = (shape.hidden, shape.intermediate);
        let (query_width, kv_width) = (shape.query_width(), shape.kv_width());
        let eps = shape.rms_norm_eps as f32;
        let rows = x.count() / hidden;
        let kept = &*activations;
        let (q, attended) = (kept.q.get(rows * query_width), kept.attended.get(rows * query_width));
        let (k, v) = (kept.k.get(rows * kv_width), kept.v.get(rows * kv_width));
        let logsumexps = kept.logsumexps.get(rows * shape.heads);
        let h = kept.h.get(rows * hidden);
        let (gate, up) = (kept.gate.get(rows * intermediate), kept.up.get(rows * intermediate));
        let Scratch {
            normed,
            inner,
            dq,
            dk,
            dv,
            d_raw_q,
            d_raw_k,
            d_attended,
            d_normed,
            deltas,
            scales,
            partial,
        } = scratch;
        let normed = normed.sized(device, Kind::Element, rows * hidden)?;
        let d_normed = d_normed.sized(device, Kind::Element, rows * hidden)?;

        // Feed-forward. `inner` holds the gradient of silu(gate) up, then its value.
        let inner = inner.sized(device, Kind::Element, rows * intermediate)?;
        device.project_back(
            g,
            layer.down.weight.elements(),
            intermediate,
            inner,
            Output::Replace,
        )?;
        device.swiglu_backward(gate, up, inner)?;
        device.rms_norm(h, layer.feed_forward_norm.elements(), normed, eps)?;
        for (map, g, x) in
            [(&layer.down, g, inner), (&layer.gate, gate, normed), (&layer.up, up, normed)]
        {
            map_gradients(device, map, g, x, rows, partial, gradients)?;
        }
        device.project_back(
            gate,
            layer.gate.weight.elements(),
            hidden,
            d_normed,
            Output::Replace,
        )?;
        device.project_back(up, layer.up.weight.elements(), hidden, d_normed, Output::Add)?;
        let norm = &layer.feed_forward_norm;
        norm_backward(
            device,
            norm,
            h,
            d_normed,
            (g, Output::Add),
            eps,
            scales,
            partial,
            gradients,
        )?;

        // Attention. `g` is now the gradient by h.
        let d_attended = d_attended.sized(device, Kind::Element, rows * query_width)?;
        let weight = layer.output.weight.elements();
        device.project_back(g, weight, query_width, d_attended, Output::Replace)?;
        map_gradients(device, &layer.output, g, attended, rows, partial, gradients)?;
        let mut dq = dq.sized(device, Kind::Element, rows * query_width)?;
        let mut dk = dk.sized(device, Kind::Element, rows * kv_width)?;
        let dv = dv.sized(device, Kind::Element, rows * kv_width)?;
        let deltas = deltas.sized(device, Kind::F32, rows * shape.heads)?;
        device.attention_backward(
            [q, k, v],
            attended,
            d_attended,
            logsumexps,
            deltas,
            tiles.queries,
            tiles.keys,
            [dq, dk, dv],
            self.heads(),
        )?;
        for (dx, raw, d_raw, norm) in [
            (&mut dq, &kept.raw_q, d_raw_q, &layer.query_norm),
            (&mut dk, &kept.raw_k, d_raw_k, &layer.key_norm),
        ] {
            let Place { positions, cos, sin, head_dim } = place;
            device.rotate(*dx, positions, cos, sin, head_dim, -1.0)?;
            let Some(norm) = norm else { continue };
            let (raw, d_raw) =
                (raw.get(dx.count()), d_raw.sized(device, Kind::Element, dx.count())?);
            let into = (d_raw, Output::Replace);
            norm_backward(device, norm, raw, *dx, into, eps, scales, partial, gradients)?;
            *dx = d_raw;
        }
        device.rms_norm(x, layer.attention_norm.elements(), normed, eps)?;
        let maps = [(&layer.query, dq), (&layer.key, dk), (&layer.value, dv)];
        for (index, (map, g)) in maps.into_iter().enumerate() {
            map_gradients(device, map, g, normed, rows, partial, gradients)?;
            let into = if index == 0 { Output::Replace } else { Output::Add };
            device.project_back(g, map.weight.elements(), hidden, d_normed, into)?;
        }
        let norm = &layer.attention_norm;
        norm_backward(device, norm, x, d_normed, (g, Output::Add), eps, scales, partial, gradients)
    }
}

fn linear(
    device: &Device,
    map: &Linear,
    x: View<'_>,
    inner: usize,
    out: View<'_>,
) -> Result<(), PolicyError> {
    device.project(x, map.weight.elements(), inner, out, Output::Replace, 1.0)?;
    match &map.bias {
        Some(bias) => device.add_bias(out, bias.elements()),
        None => Ok(()),
    }
}

/// Adds the gradients of a map's weight and bias.
fn map_gradients(
    device: &Device,
    map: &Linear,
    g: View<'_>,
    x: View<'_>,
    rows: usize,
    partial: &mut Room,
    gradients: &mut DeviceGradients,
) -> Result<(), PolicyError> {
    let (dw, into) = gradients.product(device, &map.weight)?;
    device.weight_gradient(g, x, rows, dw, into)?;
    let Some(bias) = &map.bias else { return Ok(()) };
    let db = gradients.sum(device, bias)?;
    let partial = partial.sized(device, Kind::F32, partial_sums(rows, db.count()))?;
    device.sum_rows(g, partial, db)
}

/// The gradient by a norm's input, into or onto `dx`, and that of its weight.
#[expect(clippy::too_many_arguments, reason = "inputs, outputs and buffers of one operation")]
pub(crate) fn norm_backward(
    device: &Device,
    norm: &Parameter,
    x: View<'_>,
    g: View<'_>,
    (dx, into): (View<'_>, Output),
    eps: f32,
    scales: &mut Room,
    partial: &mut Room,
    gradients: &mut DeviceGradients,
) -> Result<(), PolicyError> {
    let width = norm.master.count();
    let rows = x.count() / width;
    let scales = scales.sized(device, Kind::F32, rows)?;
    device.rms_norm_backward(x, norm.elements(), g, dx, into, scales, eps)?;
    let dw = gradients.sum(device, norm)?;
    let partial = partial.sized(device, Kind::F32, partial_sums(rows, width))?;
    device.rms_norm_weight(x, g, scales, partial, dw)
}
