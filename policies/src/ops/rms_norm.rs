//! Root-mean-square norm (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4).
//!
//! y = x / sqrt(mean(x²) + eps) · w, row by row; `x` is `(tokens, width)`, `w` is `(width)`.

use candle_core::{D, Result, Tensor};

/// Norm of each row, scaled by `weight`; with gradients for both.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    composed(x, weight, eps)
}

/// The same of candle's own operations: the reference.
pub fn composed(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let root_mean_square = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    x.broadcast_div(&root_mean_square)?.broadcast_mul(weight)
}
