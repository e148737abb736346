//! Gated feed-forward activation (Shazeer 2020, arXiv:2002.05202, SwiGLU).
//!
//! y = silu(gate) · up with silu(z) = z σ(z) and σ(z) = 1 / (1 + exp(-z)); all
//! `(tokens, intermediate)`. Backward, with g the gradient of y:
//!
//! ```text
//! dgate = g up σ (1 + gate (1 - σ))        dup = g gate σ
//! ```

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::lanes::{PARALLEL_ELEMENTS, exp};
use super::slices::{Values, values};

/// silu(gate) · up, with gradients for both.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.contiguous()?.apply_op2(&up.contiguous()?, SwiGlu)
}

/// The same of candle's own operations: the reference.
pub fn composed(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()?.mul(up)
}

struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if gate_layout.shape() != up_layout.shape() {
            bail!("swiglu: gate {:?} and up {:?}", gate_layout.shape(), up_layout.shape());
        }
        let (gate, up) = (values(gate, gate_layout)?, values(up, up_layout)?);
        let mut y = vec![0.0; gate.len()];
        if y.len() < PARALLEL_ELEMENTS {
            forward(gate, up, &mut y);
        } else {
            y.par_chunks_mut(CHUNK)
                .zip(gate.par_chunks(CHUNK))
                .zip(up.par_chunks(CHUNK))
                .for_each(|((y, gate), up)| forward(gate, up, y));
        }
        Ok((CpuStorage::F32(y), gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (shape, g) = (gate.shape(), g.contiguous()?);
        let (gate, up, g) = (Values::of(gate)?, Values::of(up)?, Values::of(&g)?);
        let (mut dgate, mut dup) = (vec![0.0; gate.len()], vec![0.0; up.len()]);
        if g.len() < PARALLEL_ELEMENTS {
            backward(&gate, &up, &g, &mut dgate, &mut dup);
        } else {
            dgate
                .par_chunks_mut(CHUNK)
                .zip(dup.par_chunks_mut(CHUNK))
                .zip(gate.par_chunks(CHUNK))
                .zip(up.par_chunks(CHUNK))
                .zip(g.par_chunks(CHUNK))
                .for_each(|((((dgate, dup), gate), up), g)| backward(gate, up, g, dgate, dup));
        }
        Ok((
            Some(Tensor::from_vec(dgate, shape, &Device::Cpu)?),
            Some(Tensor::from_vec(dup, shape, &Device::Cpu)?),
        ))
    }
}

/// Elements one thread takes at a time.
const CHUNK: usize = 1 << 14;

#[inline(always)]
fn sigmoid(z: f32) -> f32 {
    1.0 / (1.0 + exp(-z))
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
    for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
        *y = gate * sigmoid(*gate) * up;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn backward(gate: &[f32], up: &[f32], g: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    let gradients = dgate.iter_mut().zip(dup);
    for (((gate, up), g), (dgate, dup)) in gate.iter().zip(up).zip(g).zip(gradients) {
        let sigma = sigmoid(*gate);
        *dgate = g * up * sigma * (1.0 + gate * (1.0 - sigma));
        *dup = g * gate * sigma;
    }
}
