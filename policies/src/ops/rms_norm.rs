//! Root-mean-square norm (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4).
//!
//! y = x s · w with s = 1 / sqrt(mean(x²) + eps), row by row; `x` is `(tokens, width)`, `w`
//! is `(width)`. Backward, with g the gradient of y:
//!
//! ```text
//! dx = s (g w) - x s³ mean(g w x)        dw = Σ_t g_t x_t s_t
//! ```

use candle_core::{D, Result, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use super::lanes::{LANES, PARALLEL_ELEMENTS, ROWS_PER_CHUNK, dot, folded};

/// The same of candle's own operations: the reference.
pub fn composed(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let root_mean_square = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    x.broadcast_div(&root_mean_square)?.broadcast_mul(weight)
}

#[inline(always)]
fn inverse_root_mean_square(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

/// Norms each row of `x` into `y`.
pub(crate) fn forward(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let chunk = ROWS_PER_CHUNK * weight.len();
    if x.len() < PARALLEL_ELEMENTS {
        forward_rows(x, weight, eps, y);
    } else {
        y.par_chunks_mut(chunk)
            .zip(x.par_chunks(chunk))
            .for_each(|(y, x)| forward_rows(x, weight, eps, y));
    }
}

/// Adds the gradient of each row to `dx` and that of the weight to `dw`.
pub(crate) fn backward(
    x: &[f32],
    weight: &[f32],
    g: &[f32],
    eps: f32,
    dx: &mut [f32],
    dw: Option<&mut [f32]>,
) {
    let width = weight.len();
    let chunk = ROWS_PER_CHUNK * width;
    let of_chunk = |((dx, x), g): ((&mut [f32], &[f32]), &[f32])| {
        let mut partial = vec![0.0; width];
        backward_rows(x, weight, g, eps, dx, &mut partial);
        partial
    };
    let partials: Vec<Vec<f32>> = if x.len() < PARALLEL_ELEMENTS {
        dx.chunks_mut(chunk).zip(x.chunks(chunk)).zip(g.chunks(chunk)).map(of_chunk).collect()
    } else {
        dx.par_chunks_mut(chunk)
            .zip(x.par_chunks(chunk))
            .zip(g.par_chunks(chunk))
            .map(of_chunk)
            .collect()
    };
    let Some(dw) = dw else { return };
    for partial in partials {
        dw.iter_mut().zip(partial).for_each(|(sum, value)| *sum += value);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn forward_rows(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let width = weight.len();
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let s = inverse_root_mean_square(x, eps);
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            *y = x * s * w;
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn backward_rows(x: &[f32], weight: &[f32], g: &[f32], eps: f32, dx: &mut [f32], dw: &mut [f32]) {
    let width = weight.len();
    let rows = x.chunks_exact(width).zip(g.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
    for ((x, g), dx) in rows {
        let s = inverse_root_mean_square(x, eps);
        let mean_gwx = sum_of_products(g, weight, x) / width as f32;
        let pull = s * s * s * mean_gwx;
        let values = x.iter().zip(g).zip(weight).zip(dx.iter_mut().zip(dw.iter_mut()));
        for (((x, g), w), (dx, dw)) in values {
            *dx += s * (g * w) - x * pull;
            *dw += g * x * s;
        }
    }
}

/// Σ a_i b_i c_i.
#[inline(always)]
fn sum_of_products(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let ((a_rows, a_rest), (b_rows, b_rest), (c_rows, c_rest)) =
        (a.as_chunks::<LANES>(), b.as_chunks::<LANES>(), c.as_chunks::<LANES>());
    for ((a, b), c) in a_rows.iter().zip(b_rows).zip(c_rows) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane] * c[lane];
        }
    }
    for (sum, ((a, b), c)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest).zip(c_rest)) {
        *sum += a * b * c;
    }
    folded(sums)
}
