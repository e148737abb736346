//! Linear map: y = x wᵀ + b.
//!
//! `x` is `(tokens, in)`, `w` is `(out, in)` as stored on disk, `b` is `(out)`; `y` is
//! `(tokens, out)`. Backward, with g the gradient of y:
//!
//! ```text
//! dx = g w        dw = gᵀ x        db = Σ_t g_t
//! ```
//!
//! The forward product reads the weight as [`Panels`] of its transpose, dx as panels of itself.

use candle_core::{Result, Tensor};
use multiversion::multiversion;

use super::matmul::{Job, Out, Panels, Right, View};

/// The same of candle's own operations: the reference.
pub fn composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.matmul(&weight.t()?)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// y = x wᵀ + b, to be computed beside others.
pub(crate) fn forward<'a>(
    x: &'a [f32],
    inner: usize,
    weight: &'a Panels,
    bias: Option<&'a [f32]>,
    y: &'a mut [f32],
    columns: usize,
) -> Job<'a> {
    let (x, weight) = (View::rows(x, inner), weight.right());
    Job { bias, ..Job::new(Out::rows(y, columns), x, weight, inner) }
}

/// dx = g w, to be computed beside others; the weight as it is ([`Right::Rows`]) or laid out by
/// [`Panels::pack_rows`].
pub(crate) fn backward_input<'a>(
    g: &'a [f32],
    columns: usize,
    weight: Right<'a>,
    dx: &'a mut [f32],
    inner: usize,
) -> Job<'a> {
    Job::new(Out::rows(dx, inner), View::rows(g, columns), weight, columns)
}

/// dw = gᵀ x, to be computed beside others. Sums over tokens run in their order.
pub(crate) fn backward_weight<'a>(
    g: &'a [f32],
    columns: usize,
    x: &'a [f32],
    inner: usize,
    dw: &'a mut [f32],
) -> Job<'a> {
    let (tokens, x) = (g.len() / columns, Right::Rows(x, inner));
    Job::new(Out::rows(dw, inner), View::rows(g, columns).transposed(), x, tokens)
}

/// Adds Σ_t g_t, in the order of the tokens, to `db`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
pub(crate) fn backward_bias(g: &[f32], db: &mut [f32]) {
    for row in g.chunks_exact(db.len()) {
        for (sum, value) in db.iter_mut().zip(row) {
            *sum += value;
        }
    }
}
