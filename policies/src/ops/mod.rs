//! The differentiable operations a decoder is made of, on packed f32 rows.
//!
//! Each has one file: its formula and shapes, the fused operation with forward and backward
//! on slices, and the same composed of candle's own operations as a reference. [`ALL`] lists
//! them for the tests and benches that hold the two against each other.
//!
//! Results do not depend on the number of threads: rows are independent, and sums over rows
//! run over chunks whose size depends on the shapes alone.

mod cached_attention;
pub mod causal_attention;
pub mod embedding;
mod lanes;
pub mod linear;
mod matmul;
pub mod rms_norm;
pub mod rope;
pub(crate) mod slices;
pub mod swiglu;
pub mod token_logprobs;

use std::sync::Arc;

use candle_core::{Result, Tensor};

pub(crate) use cached_attention::cached_attention;
pub use causal_attention::{Heads, causal_attention};
pub use embedding::embedding;
pub use linear::linear;
pub use rms_norm::rms_norm;
pub use rope::{Rotations, rope};
pub use swiglu::swiglu;
pub use token_logprobs::token_logprobs;

/// Every operation with a gradient.
pub const ALL: &[Operation] = &[
    Operation {
        name: "linear",
        inputs: |batch| vec![vec![batch.tokens(), batch.width], vec![batch.vocab, batch.width]],
        fused: |inputs, _| linear(&inputs[0], &inputs[1], None),
        composed: |inputs, _| linear::composed(&inputs[0], &inputs[1], None),
    },
    Operation {
        name: "linear_with_bias",
        inputs: |batch| {
            let Batch { width, vocab, .. } = *batch;
            vec![vec![batch.tokens(), width], vec![vocab, width], vec![vocab]]
        },
        fused: |inputs, _| linear(&inputs[0], &inputs[1], Some(&inputs[2])),
        composed: |inputs, _| linear::composed(&inputs[0], &inputs[1], Some(&inputs[2])),
    },
    Operation {
        name: "rms_norm",
        inputs: |batch| vec![vec![batch.tokens(), batch.width], vec![batch.width]],
        fused: |inputs, _| rms_norm(&inputs[0], &inputs[1], 1e-6),
        composed: |inputs, _| rms_norm::composed(&inputs[0], &inputs[1], 1e-6),
    },
    Operation {
        name: "rope",
        inputs: |batch| vec![vec![batch.tokens(), batch.heads.query_width()]],
        fused: |inputs, batch| rope(&inputs[0], &batch.positions(), &batch.rotations()),
        composed: |inputs, batch| {
            rope::composed(&inputs[0], &batch.positions(), &batch.rotations())
        },
    },
    Operation {
        name: "swiglu",
        inputs: |batch| vec![vec![batch.tokens(), batch.width]; 2],
        fused: |inputs, _| swiglu(&inputs[0], &inputs[1]),
        composed: |inputs, _| swiglu::composed(&inputs[0], &inputs[1]),
    },
    Operation {
        name: "causal_attention",
        inputs: |batch| {
            let (tokens, heads) = (batch.tokens(), batch.heads);
            let kv = vec![tokens, heads.kv_width()];
            vec![vec![tokens, heads.query_width()], kv.clone(), kv]
        },
        fused: |inputs, batch| {
            let lengths = batch.lengths.clone().into();
            causal_attention(&inputs[0], &inputs[1], &inputs[2], &lengths, batch.heads)
        },
        composed: |inputs, batch| {
            let lengths = batch.lengths.clone().into();
            causal_attention::composed(&inputs[0], &inputs[1], &inputs[2], &lengths, batch.heads)
        },
    },
    Operation {
        name: "embedding",
        inputs: |batch| vec![vec![batch.vocab, batch.width]],
        fused: |inputs, batch| embedding(&inputs[0], &batch.ids()),
        composed: |inputs, batch| embedding::composed(&inputs[0], &batch.ids()),
    },
    Operation {
        name: "token_logprobs",
        inputs: |batch| vec![vec![batch.tokens(), batch.width], vec![batch.vocab, batch.width]],
        fused: |inputs, batch| {
            Ok(token_logprobs(&inputs[0], &inputs[1], &batch.ids(), TRIED_TEMPERATURE)?.0)
        },
        composed: |inputs, batch| {
            let ids = batch.ids();
            Ok(token_logprobs::composed(&inputs[0], &inputs[1], &ids, TRIED_TEMPERATURE)?.0)
        },
    },
];

/// A temperature other than 1, so that forgetting it shows.
const TRIED_TEMPERATURE: f64 = 0.7;

/// One operation, fused and composed, as a function of tensors of given shapes.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Its name in test and bench output.
    pub name: &'static str,
    /// Shapes of its differentiable inputs for a batch.
    pub inputs: fn(&Batch) -> Vec<Vec<usize>>,
    /// What training runs.
    pub fused: Forward,
    /// The same of candle's own operations.
    pub composed: Forward,
}

/// Inputs, and the batch they were made for, to the result.
pub type Forward = fn(&[Tensor], &Batch) -> Result<Tensor>;

/// The sizes an operation can be tried on, and the ids and positions that go with them.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Tokens of each of the packed sequences.
    pub lengths: Vec<usize>,
    /// The heads of attention and rotation.
    pub heads: Heads,
    /// Width of a row elsewhere.
    pub width: usize,
    /// Rows of tables and heads, and width of linear outputs.
    pub vocab: usize,
}

impl Batch {
    /// Rows in all.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Each row's position in its sequence.
    fn positions(&self) -> Arc<[u32]> {
        self.lengths.iter().flat_map(|&length| 0..length as u32).collect()
    }

    /// Some id below `vocab` for each row, with repeats.
    fn ids(&self) -> Arc<[u32]> {
        (0..self.tokens()).map(|row| (row * row % self.vocab) as u32).collect()
    }

    fn rotations(&self) -> Arc<Rotations> {
        let positions = self.lengths.iter().copied().max().unwrap_or(0);
        Arc::new(Rotations::new(self.heads.head_dim, 100.0, &crate::RopeScaling::None, positions))
    }
}
