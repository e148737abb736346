//! The decoder on a device against the decoder on the CPU.
//!
//! The device is the emulation: the GPU's kernels run on the CPU. With the feature `cuda` and a
//! card, `cuda.rs` holds the card to the same.

#![expect(clippy::unwrap_used, reason = "what a test or bench prepares must succeed")]

mod agreement;
mod emulated;

use tallow_policies::gpu::Precision;

#[test]
fn f32_agrees_with_the_cpu() {
    let Some(device) = emulated::device(Precision::F32) else { return };
    agreement::every_family(&device, 5e-6);
}

/// What bf16 itself costs in networks this small and steep; the kernels are those of f32.
#[test]
fn bf16_agrees_with_the_cpu() {
    let Some(device) = emulated::device(Precision::Bf16) else { return };
    agreement::every_family(&device, 4e-2);
}

#[test]
fn sampling_agrees_with_scoring() {
    let Some(device) = emulated::device(Precision::F32) else { return };
    agreement::sampled_logprobs(&device, 5e-6);
    let Some(device) = emulated::device(Precision::Bf16) else { return };
    agreement::sampled_logprobs(&device, 4e-2);
}

#[test]
fn sampling_draws_what_the_cpu_draws() {
    let Some(device) = emulated::device(Precision::F32) else { return };
    agreement::same_replies(&device);
}

#[test]
fn checkpoints_move_between_cpu_and_device() {
    let Some(device) = emulated::device(Precision::F32) else { return };
    agreement::checkpoints(&device);
}

#[test]
fn scalar_models_give_values_on_a_device() {
    let Some(device) = emulated::device(Precision::F32) else { return };
    agreement::scalar_models(&device, 5e-6);
}
