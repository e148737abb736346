//! Root-mean-square norm (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4).
//!
//! y = x s · w with s = 1 / sqrt(mean(x²) + eps), row by row; `x` is `(tokens, width)`, `w`
//! is `(width)`. Backward, with g the gradient of y:
//!
//! ```text
//! dx = s (g w) - x s³ mean(g w x)        dw = Σ_t g_t x_t s_t
//! ```

use candle_core::{CpuStorage, CustomOp2, D, Device, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::lanes::{LANES, PARALLEL_ELEMENTS, ROWS_PER_CHUNK, dot, folded};
use super::slices::{Values, values};

/// Norm of each row, scaled by `weight`; with gradients for both.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    x.contiguous()?.apply_op2(weight, RmsNorm { eps: eps as f32 })
}

/// The same of candle's own operations: the reference.
pub fn composed(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let root_mean_square = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    x.broadcast_div(&root_mean_square)?.broadcast_mul(weight)
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (values(x, x_layout)?, values(weight, weight_layout)?);
        let width = weight.len();
        if x_layout.dims().last() != Some(&width) {
            bail!("rms_norm: a weight of {width} for rows of shape {:?}", x_layout.shape());
        }
        let mut y = vec![0.0; x.len()];
        if x.len() < PARALLEL_ELEMENTS {
            forward_rows(x, weight, self.eps, &mut y);
        } else {
            let chunk = ROWS_PER_CHUNK * width;
            y.par_chunks_mut(chunk)
                .zip(x.par_chunks(chunk))
                .for_each(|(y, x)| forward_rows(x, weight, self.eps, y));
        }
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let shape = x.shape();
        let (x, weight, g) = (Values::of(x)?, Values::of(weight)?, Values::of(&g)?);
        let width = weight.len();
        let chunk = ROWS_PER_CHUNK * width;
        let mut dx = vec![0.0; x.len()];
        let mut dw = vec![0.0; width];
        if x.len() < PARALLEL_ELEMENTS {
            for ((dx, x), g) in dx.chunks_mut(chunk).zip(x.chunks(chunk)).zip(g.chunks(chunk)) {
                let mut partial = vec![0.0; width];
                backward_rows(x, &weight, g, self.eps, dx, &mut partial);
                add(&mut dw, &partial);
            }
        } else {
            let (x, weight): (&[f32], &[f32]) = (&x, &weight);
            let partials: Vec<Vec<f32>> = dx
                .par_chunks_mut(chunk)
                .zip(x.par_chunks(chunk))
                .zip(g.par_chunks(chunk))
                .map(|((dx, x), g)| {
                    let mut partial = vec![0.0; width];
                    backward_rows(x, weight, g, self.eps, dx, &mut partial);
                    partial
                })
                .collect();
            partials.iter().for_each(|partial| add(&mut dw, partial));
        }
        let dx = Tensor::from_vec(dx, shape, &Device::Cpu)?;
        Ok((Some(dx), Some(Tensor::from_vec(dw, width, &Device::Cpu)?)))
    }
}

fn add(sum: &mut [f32], values: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += value;
    }
}

#[inline(always)]
fn inverse_root_mean_square(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
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
        for i in 0..width {
            dx[i] = s * (g[i] * weight[i]) - x[i] * pull;
            dw[i] += g[i] * x[i] * s;
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
