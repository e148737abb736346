//! The differentiable operations a decoder is made of.
//!
//! Each has one file: what it computes, the fused operation and the composed reference.

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

pub(crate) use cached_attention::cached_attention;
pub use causal_attention::{Heads, causal_attention};
pub use embedding::embedding;
pub use linear::linear;
pub use rms_norm::rms_norm;
pub use rope::{Rotations, rope};
pub use swiglu::swiglu;
pub use token_logprobs::token_logprobs;
