//! Linear map: y = x wᵀ + b.
//!
//! `x` is `(tokens, in)`, `w` is `(out, in)` as stored on disk, `b` is `(out)`; `y` is
//! `(tokens, out)`.

use candle_core::{Result, Tensor};

/// y = x wᵀ + b, with gradients for all three.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    composed(x, weight, bias)
}

/// The same of candle's own operations: the reference.
pub fn composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.matmul(&weight.t()?)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}
