//! Linear map: y = x wᵀ + b.
//!
//! `x` is `(tokens, in)`, `w` is `(out, in)` as stored on disk, `b` is `(out)`; `y` is
//! `(tokens, out)`. Backward, with g the gradient of y:
//!
//! ```text
//! dx = g w        dw = gᵀ x        db = Σ_t g_t
//! ```

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Tensor, bail};
use multiversion::multiversion;

use super::matmul::{Extent, Output, View, parallel_matmul};
use super::slices::{Values, values};

/// y = x wᵀ + b, with gradients for those of the three that ask for one.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let x = x.contiguous()?;
    match bias {
        Some(bias) => x.apply_op3(weight, bias, Linear),
        None => x.apply_op2(weight, Linear),
    }
}

/// The same of candle's own operations: the reference.
pub fn composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.matmul(&weight.t()?)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

struct Linear;

impl Linear {
    fn forward(
        x: (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let (tokens, inner) = x.1.shape().dims2()?;
        let (columns, weight_inner) = weight.1.shape().dims2()?;
        if inner != weight_inner {
            bail!("linear: rows of {inner} for a weight of ({columns}, {weight_inner})");
        }
        let (x, weight) = (values(x.0, x.1)?, values(weight.0, weight.1)?);
        let mut y = Vec::new();
        let output = match bias {
            None => {
                y.resize(tokens * columns, 0.0);
                Output::Replace
            }
            Some((storage, layout)) => {
                let bias = values(storage, layout)?;
                if bias.len() != columns {
                    bail!("linear: a bias of {} for {columns} columns", bias.len());
                }
                y.reserve_exact(tokens * columns);
                (0..tokens).for_each(|_| y.extend_from_slice(bias));
                Output::Add
            }
        };
        let transposed = View::rows(weight, inner).transposed();
        let extent = Extent { rows: tokens, columns, inner };
        parallel_matmul(&mut y, output, 1.0, View::rows(x, inner), transposed, extent);
        Ok((CpuStorage::F32(y), (tokens, columns).into()))
    }

    /// dx and dw, each only if asked for.
    fn backward(
        x: &Tensor,
        weight: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (tokens, inner) = x.dims2()?;
        let (columns, _inner) = weight.dims2()?;
        let g_values = Values::of(g)?;
        let g = View::rows(&g_values, columns);
        let dx = if x.track_op() {
            let weight = Values::of(weight)?;
            let mut dx = vec![0.0; tokens * inner];
            let extent = Extent { rows: tokens, columns: inner, inner: columns };
            parallel_matmul(&mut dx, Output::Replace, 1.0, g, View::rows(&weight, inner), extent);
            Some(Tensor::from_vec(dx, (tokens, inner), &Device::Cpu)?)
        } else {
            None
        };
        let dw = if weight.track_op() {
            let x = Values::of(x)?;
            let mut dw = vec![0.0; columns * inner];
            let extent = Extent { rows: columns, columns: inner, inner: tokens };
            parallel_matmul(
                &mut dw,
                Output::Replace,
                1.0,
                g.transposed(),
                View::rows(&x, inner),
                extent,
            );
            Some(Tensor::from_vec(dw, (columns, inner), &Device::Cpu)?)
        } else {
            None
        };
        Ok((dx, dw))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Self::forward((x, x_layout), (weight, weight_layout), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Self::backward(x, weight, &g.contiguous()?)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear_with_bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Self::forward((x, x_layout), (weight, weight_layout), Some((bias, bias_layout)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let (dx, dw) = Self::backward(x, weight, &g)?;
        let db = if bias.track_op() {
            let mut db = vec![0.0; bias.dims1()?];
            sum_rows(&Values::of(&g)?, &mut db);
            Some(Tensor::from_vec(db, bias.shape(), &Device::Cpu)?)
        } else {
            None
        };
        Ok((dx, dw, db))
    }
}

/// Adds every row to `sum`, in order.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn sum_rows(rows: &[f32], sum: &mut [f32]) {
    for row in rows.chunks_exact(sum.len()) {
        for (sum, value) in sum.iter_mut().zip(row) {
            *sum += value;
        }
    }
}
