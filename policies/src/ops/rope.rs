//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864, eq. 34), halves paired.
//!
//! A head's element i < head_dim/2 turns with element i + head_dim/2 by the angle
//! position · theta^(-2i / head_dim), as in transformers (the paper pairs neighbours).
//! `x` is `(tokens, heads * head_dim)`; queries and keys are turned alike.

use std::sync::Arc;

use candle_core::{D, Device, Result, Tensor, bail};

/// Cosines and sines of every position up to a bound: `(positions, head_dim / 2)` each.
#[derive(Clone, Debug)]
pub struct Rotations {
    head_dim: usize,
    positions: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotations {
    /// The table for positions below `positions`. Angles are taken in f64.
    pub fn new(head_dim: usize, theta: f64, positions: usize) -> Self {
        let half = head_dim / 2;
        let (mut cos, mut sin) =
            (Vec::with_capacity(positions * half), Vec::with_capacity(positions * half));
        let frequencies: Vec<f64> =
            (0..half).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect();
        for position in 0..positions {
            for frequency in &frequencies {
                let angle = position as f64 * frequency;
                cos.push(angle.cos() as f32);
                sin.push(angle.sin() as f32);
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
    composed(x, positions, rotations)
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
