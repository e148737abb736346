//! Gated feed-forward activation (Shazeer 2020, arXiv:2002.05202, SwiGLU).
//!
//! y = silu(gate) · up with silu(z) = z / (1 + exp(-z)); all `(tokens, intermediate)`.

use candle_core::{Result, Tensor};

/// silu(gate) · up, with gradients for both.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    composed(gate, up)
}

/// The same of candle's own operations: the reference.
pub fn composed(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()?.mul(up)
}
