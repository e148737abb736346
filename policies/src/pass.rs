//! One forward pass over packed sequences and what it leaves for the backward pass.
//!
//! A pass owns every buffer it needs and keeps them, so that a learner that uses one pass for all
//! its micro-batches allocates for the largest only once.

use crate::gpu::pass::DevicePass;
use crate::layer::{Activations, PackedLayer, Scratch};
use crate::ops::token_logprobs::Scored;
use crate::packed::PackedSequences;

/// How much of a forward pass is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// What every layer computed: the fastest backward pass.
    #[default]
    Activations,
    /// Each layer's input; the backward pass computes the rest anew, layer by layer (Chen et al.
    /// 2016, arXiv:1604.06174).
    Inputs,
    /// Nothing: there will be no backward pass.
    Nothing,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Pass {
    pub(crate) keep: Keep,
    pub(crate) sequences: PackedSequences,
    /// The residual stream before each layer and after the last, `(rows, hidden)` each; two that
    /// take turns where nothing is kept.
    pub(crate) inputs: Vec<Vec<f32>>,
    /// Which of them is the residual stream after the last layer.
    pub(crate) last: usize,
    /// One for each layer, or one for all.
    pub(crate) layers: Vec<Activations>,
    /// The layer at hand, its weights laid out for the forward product.
    pub(crate) packed: PackedLayer,
    pub(crate) scratch: Scratch,
    /// Rows whose hidden states were asked for, before and after the final norm.
    pub(crate) rows: Vec<u32>,
    pub(crate) selected: Vec<f32>,
    pub(crate) normed: Vec<f32>,
    pub(crate) scored: Scored,
    pub(crate) d_hidden: Vec<f32>,
    pub(crate) g: Vec<f32>,
    /// The same where the decoder is on a device.
    pub(crate) device: DevicePass,
}

impl Pass {
    /// A pass that keeps the given amount.
    pub fn new(keep: Keep) -> Self {
        Self { keep, ..Self::default() }
    }
}

/// The first `count` values of a buffer, which grows to hold them. What they are is the caller's
/// to write.
pub(crate) fn sized(buffer: &mut Vec<f32>, count: usize) -> &mut [f32] {
    if buffer.len() < count {
        buffer.resize(count, 0.0);
    }
    &mut buffer[..count]
}
