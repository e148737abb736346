//! The differentiable operations a decoder is made of, on packed f32 rows.
//!
//! Each has one file: its formula and shapes, forward and backward on slices, and the same
//! composed of candle's own operations as a reference. [`ALL`] lists them for the tests and
//! benches that hold the two against each other.
//!
//! Results do not depend on the number of threads: rows are independent, and sums over rows
//! run over chunks whose size depends on the shapes alone.

pub mod attention;
pub mod embedding;
mod kernel;
pub(crate) mod lanes;
pub mod linear;
pub(crate) mod matmul;
pub mod rms_norm;
pub mod rope;
pub(crate) mod slices;
pub mod swiglu;
mod table;
pub mod token_logprobs;

pub use attention::Heads;
pub use rope::Rotations;
pub use table::{ALL, Batch, Operation, Results};
