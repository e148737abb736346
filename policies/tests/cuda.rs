//! A real card, held to what the emulation is held to. Needs the feature `cuda`; what there is no
//! card or library for is skipped, and says so.

#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "what a test or bench prepares must succeed")]

mod agreement;

use tallow_policies::PolicyError;
use tallow_policies::gpu::{Device, Precision, cuda};

/// The card, or why the test is skipped.
fn card(precision: Precision) -> Option<Device> {
    match cuda::open(0, precision) {
        Ok(device) => Some(device),
        Err(error) => {
            eprintln!("SKIPPED: no card to test: {error}");
            None
        }
    }
}

/// H100 and H200 are 9.0, A100 is 8.0.
#[test]
fn the_kernels_assemble() {
    for precision in [Precision::F32, Precision::Bf16] {
        for capability in [(8, 0), (9, 0)] {
            match cuda::compile(precision, capability) {
                Ok(image) => assert!(image.starts_with(b"\x7fELF"), "machine code"),
                Err(PolicyError::Device { message }) if message.contains("cannot open") => {
                    eprintln!("SKIPPED: {message}");
                    return;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn a_missing_card_is_told() {
    let told = cuda::open(4711, Precision::Bf16).unwrap_err().to_string();
    assert!(told.starts_with("GPU: cannot open"), "{told}");
}

#[test]
fn f32_agrees_with_the_cpu() {
    let Some(device) = card(Precision::F32) else { return };
    agreement::every_family(&device, 1e-5);
}

#[test]
fn bf16_agrees_with_the_cpu() {
    let Some(device) = card(Precision::Bf16) else { return };
    agreement::every_family(&device, 4e-2);
}

#[test]
fn sampling_agrees_with_scoring() {
    let Some(device) = card(Precision::F32) else { return };
    agreement::sampled_logprobs(&device, 1e-5);
    let Some(device) = card(Precision::Bf16) else { return };
    agreement::sampled_logprobs(&device, 4e-2);
}

#[test]
fn sampling_draws_what_the_cpu_draws() {
    let Some(device) = card(Precision::F32) else { return };
    agreement::same_replies(&device);
}

#[test]
fn checkpoints_move_between_cpu_and_device() {
    let Some(device) = card(Precision::F32) else { return };
    agreement::checkpoints(&device);
}

#[test]
fn scalar_models_give_values_on_a_device() {
    let Some(device) = card(Precision::F32) else { return };
    agreement::scalar_models(&device, 1e-5);
}
