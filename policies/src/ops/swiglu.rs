//! Gated feed-forward activation (Shazeer 2020, arXiv:2002.05202, SwiGLU).
//!
//! y = silu(gate) · up with silu(z) = z σ(z) and σ(z) = 1 / (1 + exp(-z)); all
//! `(tokens, intermediate)`. Backward, with g the gradient of y:
//!
//! ```text
//! dgate = g up σ (1 + gate (1 - σ))        dup = g gate σ
//! ```

use candle_core::{Result, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use super::lanes::{PARALLEL_ELEMENTS, exp};

/// The same of candle's own operations: the reference.
pub fn composed(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()?.mul(up)
}

#[inline(always)]
fn sigmoid(z: f32) -> f32 {
    1.0 / (1.0 + exp(-z))
}

/// y = silu(gate) · up.
pub(crate) fn forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
    if y.len() < PARALLEL_ELEMENTS {
        forward_chunk(gate, up, y);
    } else {
        y.par_chunks_mut(CHUNK)
            .zip(gate.par_chunks(CHUNK))
            .zip(up.par_chunks(CHUNK))
            .for_each(|((y, gate), up)| forward_chunk(gate, up, y));
    }
}

/// Overwrites `gate` and `up` with their gradients, and the gradient `g` of y with y: the three
/// that the products around it need next.
pub(crate) fn backward(gate: &mut [f32], up: &mut [f32], g: &mut [f32]) {
    if g.len() < PARALLEL_ELEMENTS {
        backward_chunk(gate, up, g);
    } else {
        gate.par_chunks_mut(CHUNK)
            .zip(up.par_chunks_mut(CHUNK))
            .zip(g.par_chunks_mut(CHUNK))
            .for_each(|((gate, up), g)| backward_chunk(gate, up, g));
    }
}

/// Elements one thread takes at a time.
const CHUNK: usize = 1 << 14;

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn forward_chunk(gate: &[f32], up: &[f32], y: &mut [f32]) {
    for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
        *y = gate * sigmoid(*gate) * up;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn backward_chunk(gate: &mut [f32], up: &mut [f32], g: &mut [f32]) {
    for ((gate, up), g) in gate.iter_mut().zip(up).zip(g) {
        let sigma = sigmoid(*gate);
        let silu = *gate * sigma;
        let (dy, value) = (*g, silu * *up);
        let dgate = dy * *up * sigma * (1.0 + *gate * (1.0 - sigma));
        *up = dy * silu;
        *gate = dgate;
        *g = value;
    }
}
