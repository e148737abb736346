//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864, eq. 34), halves paired.
//!
//! A head's element i < head_dim/2 turns with element i + head_dim/2 by the angle
//! position · theta^(-2i / head_dim), as in transformers (the paper pairs neighbours); a
//! [`RopeScaling`] changes these frequencies.
//! `x` is `(tokens, heads * head_dim)`; queries and keys are turned alike.

use candle_core::{D, Device, Result, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use super::lanes::{PARALLEL_ELEMENTS, ROWS_PER_CHUNK};
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

    /// All cosines and all sines.
    pub(crate) fn values(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    /// Cosines and sines of one position, `(head_dim / 2)` each.
    fn row(&self, position: u32) -> (&[f32], &[f32]) {
        let half = self.head_dim / 2;
        let start = position as usize * half;
        (&self.cos[start..start + half], &self.sin[start..start + half])
    }
}

/// The same of candle's own operations: the reference.
pub fn composed(x: &Tensor, positions: &[u32], rotations: &Rotations) -> Result<Tensor> {
    let (tokens, width) = x.dims2()?;
    let (head_dim, half) = (rotations.head_dim, rotations.head_dim / 2);
    let (mut cos, mut sin) = (Vec::new(), Vec::new());
    for &position in positions {
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

/// Which way to turn. A rotation's transpose turns the other way (and is scaled alike), so
/// gradients turn back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Forth,
    Back,
}

/// Turns rows of `width` to their positions, in place.
pub(crate) fn turn(
    x: &mut [f32],
    width: usize,
    positions: &[u32],
    rotations: &Rotations,
    turn: Turn,
) {
    let sign = if turn == Turn::Forth { 1.0 } else { -1.0 };
    let turn_rows = |(x, positions): (&mut [f32], &[u32])| {
        for (x, &position) in x.chunks_exact_mut(width).zip(positions) {
            let (cos, sin) = rotations.row(position);
            turn_row(x, cos, sin, sign);
        }
    };
    if x.len() < PARALLEL_ELEMENTS {
        turn_rows((x, positions));
    } else {
        x.par_chunks_mut(ROWS_PER_CHUNK * width)
            .zip(positions.par_chunks(ROWS_PER_CHUNK))
            .for_each(turn_rows);
    }
}

/// Turns every head of one row by the angles, times `sign`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn turn_row(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let half = cos.len();
    for x in x.chunks_exact_mut(2 * half) {
        let (first, second) = x.split_at_mut(half);
        for (((first, second), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            let sin = sign * sin;
            let turned = *first * cos - *second * sin;
            *second = *second * cos + *first * sin;
            *first = turned;
        }
    }
}
