//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864, eq. 34), halves paired.
//!
//! A head's element i < head_dim/2 turns with element i + head_dim/2 by the angle
//! position · theta^(-2i / head_dim), as in transformers (the paper pairs neighbours); a
//! [`RopeScaling`] changes these frequencies.
//! `x` is `(tokens, heads * head_dim)`; queries and keys are turned alike.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, D, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::lanes::{PARALLEL_ELEMENTS, ROWS_PER_CHUNK};
use super::slices::{Values, values};
use crate::rope_scaling::RopeScaling;

/// Cosines and sines of every position up to a bound: `(positions, head_dim / 2)` each.
#[derive(Clone, Debug)]
pub struct Rotations {
    head_dim: usize,
    positions: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotations {
    /// The table for positions below `positions`. Angles are taken in f64; a scaling's attention
    /// factor multiplies cosines and sines.
    pub fn new(head_dim: usize, theta: f64, scaling: &RopeScaling, positions: usize) -> Self {
        let half = head_dim / 2;
        let (mut cos, mut sin) =
            (Vec::with_capacity(positions * half), Vec::with_capacity(positions * half));
        let frequencies = scaling.frequencies(head_dim, theta);
        let factor = scaling.attention_factor();
        for position in 0..positions {
            for frequency in &frequencies {
                let angle = position as f64 * frequency;
                cos.push((factor * angle.cos()) as f32);
                sin.push((factor * angle.sin()) as f32);
            }
        }
        Self { head_dim, positions, cos, sin }
    }

    /// How many positions the table holds.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Cosines and sines of one position, `(head_dim / 2)` each.
    fn row(&self, position: u32) -> (&[f32], &[f32]) {
        let half = self.head_dim / 2;
        let start = position as usize * half;
        (&self.cos[start..start + half], &self.sin[start..start + half])
    }
}

/// The rows of `x` turned to their positions; with gradient.
pub fn rope(x: &Tensor, positions: &Arc<[u32]>, rotations: &Arc<Rotations>) -> Result<Tensor> {
    let (tokens, width) = x.dims2()?;
    check(tokens, width, positions, rotations)?;
    let (positions, rotations) = (Arc::clone(positions), Arc::clone(rotations));
    x.contiguous()?.apply_op1(Rope { positions, rotations })
}

/// The same of candle's own operations: the reference.
pub fn composed(x: &Tensor, positions: &Arc<[u32]>, rotations: &Arc<Rotations>) -> Result<Tensor> {
    let (tokens, width) = x.dims2()?;
    let (head_dim, half) = (rotations.head_dim, rotations.head_dim / 2);
    check(tokens, width, positions, rotations)?;
    let (mut cos, mut sin) = (Vec::new(), Vec::new());
    for &position in positions.iter() {
        let (row_cos, row_sin) = rotations.row(position);
        cos.extend_from_slice(row_cos);
        sin.extend_from_slice(row_sin);
    }
    let cos = Tensor::from_vec(cos, (tokens, 1, half), &Device::Cpu)?;
    let sin = Tensor::from_vec(sin, (tokens, 1, half), &Device::Cpu)?;
    let x = x.reshape((tokens, width / head_dim, head_dim))?;
    let (first, second) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let turned_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let turned_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
    Tensor::cat(&[turned_first, turned_second], D::Minus1)?.reshape((tokens, width))
}

fn check(tokens: usize, width: usize, positions: &[u32], rotations: &Rotations) -> Result<()> {
    if positions.len() != tokens {
        bail!("rope: {} positions for {tokens} rows", positions.len());
    }
    if !width.is_multiple_of(rotations.head_dim) {
        bail!("rope: width {width} is not a multiple of head_dim {}", rotations.head_dim);
    }
    if let Some(&far) = positions.iter().find(|&&p| p as usize >= rotations.positions) {
        bail!("rope: position {far}, but the table holds {}", rotations.positions);
    }
    Ok(())
}

struct Rope {
    positions: Arc<[u32]>,
    rotations: Arc<Rotations>,
}

/// Which way to turn. A rotation's transpose turns the other way (and is scaled alike), so
/// gradients turn back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Forth,
    Back,
}

impl Rope {
    fn turned(&self, x: &[f32], width: usize, turn: Turn) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        let chunk = ROWS_PER_CHUNK * width;
        let turn_rows = |(index, (out, x)): (usize, (&mut [f32], &[f32]))| {
            let positions = &self.positions[index * ROWS_PER_CHUNK..];
            for ((out, x), &position) in
                out.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(positions)
            {
                let (cos, sin) = self.rotations.row(position);
                match turn {
                    Turn::Forth => turn_row(x, cos, sin, 1.0, out),
                    Turn::Back => turn_row(x, cos, sin, -1.0, out),
                }
            }
        };
        if x.len() < PARALLEL_ELEMENTS {
            out.chunks_mut(chunk).zip(x.chunks(chunk)).enumerate().for_each(turn_rows);
        } else {
            out.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).enumerate().for_each(turn_rows);
        }
        out
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_tokens, width) = layout.shape().dims2()?;
        let turned = self.turned(values(x, layout)?, width, Turn::Forth);
        Ok((CpuStorage::F32(turned), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _turned: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (_tokens, width) = x.dims2()?;
        let g = g.contiguous()?;
        let dx = self.turned(&Values::of(&g)?, width, Turn::Back);
        Tensor::from_vec(dx, x.shape(), &Device::Cpu).map(Some)
    }
}

/// Turns every head of one row by the angles, times `sign`.
fn turn_row(x: &[f32], cos: &[f32], sin: &[f32], sign: f32, out: &mut [f32]) {
    let half = cos.len();
    for (x, out) in x.chunks_exact(2 * half).zip(out.chunks_exact_mut(2 * half)) {
        let ((first, second), (out_first, out_second)) = (x.split_at(half), out.split_at_mut(half));
        for i in 0..half {
            let sin = sign * sin[i];
            out_first[i] = first[i] * cos[i] - second[i] * sin;
            out_second[i] = second[i] * cos[i] + first[i] * sin;
        }
    }
}
