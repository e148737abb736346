//! The decoder on a GPU.
//!
//! A [`crate::Decoder`] that was put [`on`](crate::Decoder::on) a [`Device`] keeps its parameters
//! there: forward, backward, the optimizer's step and sampling then run on the device, through the
//! same calls, and the host's copy is brought up to date when something reads it. The arithmetic
//! is that of [`crate::layer`], one kernel an operation, products by the device's own library.
//!
//! Weights and activations are f32 or bf16 ([`Precision`]); masters, moments, gradients, norms'
//! and softmax's sums are f32. No kernel adds with atomics, so equal calls give equal bits on one
//! card; unlike on the CPU, what a row gets may depend on how many rows are computed beside it,
//! because the library chooses its kernels by shape.
//!
//! What a device must do is the trait [`Driver`]: [`cuda`] is the one for NVIDIA cards (feature
//! `cuda`). Tests put an emulation in its place that runs the same kernels on the CPU.

mod buffer;
pub(crate) mod cache;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod driver;
pub(crate) mod gradients;
pub(crate) mod inference;
pub mod kernels;
mod layer;
mod measure;
pub(crate) mod optimizer;
pub(crate) mod pass;
mod tiles;
pub(crate) mod weights;
mod words;

pub use buffer::Device;
pub use driver::{Driver, Precision};
