//! What every decoder must keep, as checks that tests run over [`crate::models::BUILTIN`]
//! and that a new family must pass.

use std::path::Path;

use candle_core::{Device, Tensor};
use rand::RngExt;

use crate::error::PolicyError;
use crate::model_config::{ModelConfig, Sizes};
use crate::optimizer::GradientSet;
use crate::parameters::{InitOptions, named_stream};
use crate::{CacheSpan, Decoder, KvCache, TokenId};

/// Two ways to the same f32 numbers may differ by rounding, relative to their length.
const AGREEMENT: f64 = 1e-5;

/// Differences of an f32 loss against the gradient, beyond rounding.
const DIFFERENCE_AGREEMENT: f64 = 1e-2;

/// By how much a step along a gradient should change the loss, and the bounds of the step:
/// far enough to rise above rounding, near enough for curvature to cancel.
const LOSS_CHANGE: f64 = 0.01;
const STEPS: std::ops::RangeInclusive<f64> = 2e-3..=2e-2;

/// How far an f32 loss of a few nats may be off.
const LOSS_ROUNDING: f64 = 2e-6;

/// A tiny decoder of the named family, drawn widely enough that every parameter matters.
///
/// # Errors
/// If the family is unknown.
pub fn tiny_decoder(family: &str, seed: u64) -> Result<Decoder, PolicyError> {
    let sizes = Sizes {
        vocab: 23,
        hidden: 24,
        intermediate: 40,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
    };
    let mut config = ModelConfig::of_family(family, &sizes)?;
    config.rope_theta = Some(100.0);
    let init = InitOptions { std: Some(0.3), query_key_bias_std: Some(0.5), residual_std: None };
    Decoder::new(config, &init, seed)
}

/// Checks every clause of [`Decoder`]'s contract on ragged random sequences. Perturbs the
/// decoder's weights while it runs and puts them back. `folder` is an empty folder to save to.
///
/// # Errors
/// Of the first clause that is broken, with its numbers.
pub fn check_decoder(decoder: &Decoder, seed: u64, folder: &Path) -> Result<(), PolicyError> {
    let sequences = random_sequences(decoder, seed);
    packing_changes_nothing(decoder, &sequences)?;
    the_cache_agrees(decoder, &sequences)?;
    frozen_records_nothing(decoder, &sequences)?;
    every_gradient_is_the_slope(decoder, &sequences)?;
    saving_and_loading_is_the_identity(decoder, folder)
}

fn random_sequences(decoder: &Decoder, seed: u64) -> Vec<Vec<TokenId>> {
    let mut stream = named_stream(seed, "contract");
    let vocab = decoder.config().vocab_size as TokenId;
    [5, 1, 9, 2]
        .into_iter()
        .map(|length| (0..length).map(|_| stream.random_range(0..vocab)).collect())
        .collect()
}

fn packed_hidden(decoder: &Decoder, sequences: &[Vec<TokenId>]) -> Result<Tensor, PolicyError> {
    let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
    decoder.hidden(&sequences.concat(), &lengths)
}

/// A packed batch gives each sequence what it would get alone.
fn packing_changes_nothing(
    decoder: &Decoder,
    sequences: &[Vec<TokenId>],
) -> Result<(), PolicyError> {
    let packed = packed_hidden(decoder, sequences)?;
    let mut start = 0;
    for sequence in sequences {
        let alone = decoder.hidden(sequence, &[sequence.len()])?;
        let found = packed.narrow(0, start, sequence.len())?;
        agree(&found, &alone, "a packed sequence and the same alone")?;
        start += sequence.len();
    }
    Ok(())
}

/// `extend`, in uneven pieces and from a copied prefix, gives what `hidden` gives.
fn the_cache_agrees(decoder: &Decoder, sequences: &[Vec<TokenId>]) -> Result<(), PolicyError> {
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
    let slots = sequences.len() + 1;
    let mut cache = KvCache::new(decoder.config(), slots, longest)?;
    let mut taken = vec![0; sequences.len()];
    for piece in 1.. {
        let spans: Vec<CacheSpan<'_>> = sequences
            .iter()
            .enumerate()
            .filter(|(slot, sequence)| taken[*slot] < sequence.len())
            .map(|(slot, sequence)| {
                let end = sequence.len().min(taken[slot] + piece);
                CacheSpan { slot, tokens: &sequence[taken[slot]..end] }
            })
            .collect();
        if spans.is_empty() {
            break;
        }
        let last = decoder.extend(&mut cache, &spans)?;
        for (row, span) in spans.iter().enumerate() {
            taken[span.slot] += span.tokens.len();
            let seen = &sequences[span.slot][..taken[span.slot]];
            let whole = decoder.hidden(seen, &[seen.len()])?.narrow(0, seen.len() - 1, 1)?;
            agree(&last.narrow(0, row, 1)?, &whole, "extend and hidden")?;
        }
    }
    let (from, to) = (0, slots - 1);
    let shared = sequences[from].len() - 1;
    cache.copy_prefix(from, to, shared)?;
    let span = CacheSpan { slot: to, tokens: &sequences[from][shared..] };
    let continued = decoder.extend(&mut cache, &[span])?;
    let whole = decoder.hidden(&sequences[from], &[shared + 1])?.narrow(0, shared, 1)?;
    agree(&continued, &whole, "extend from a copied prefix and hidden")
}

/// A frozen decoder gives the same values and no gradient graph, as does `extend`.
fn frozen_records_nothing(
    decoder: &Decoder,
    sequences: &[Vec<TokenId>],
) -> Result<(), PolicyError> {
    let frozen = packed_hidden(&decoder.frozen(), sequences)?;
    let mut cache = KvCache::new(decoder.config(), 1, sequences[0].len())?;
    let extended = decoder.extend(&mut cache, &[CacheSpan { slot: 0, tokens: &sequences[0] }])?;
    if frozen.track_op() || extended.track_op() {
        return Err(PolicyError::contract("a frozen decoder or extend records gradients"));
    }
    agree(&frozen, &packed_hidden(decoder, sequences)?, "a frozen decoder and its original")
}

/// Every parameter has a gradient, not zero, whose length is the slope along it.
fn every_gradient_is_the_slope(
    decoder: &Decoder,
    sequences: &[Vec<TokenId>],
) -> Result<(), PolicyError> {
    let tokens = sequences.concat();
    let vocab = decoder.config().vocab_size as TokenId;
    let targets: Vec<TokenId> =
        tokens.iter().enumerate().map(|(row, token)| (token * 7 + row as u32) % vocab).collect();
    let loss = || -> Result<Tensor, PolicyError> {
        let hidden = packed_hidden(decoder, sequences)?;
        Ok(decoder.token_logprobs(&hidden, &targets, 0.8)?.logprobs.mean_all()?.neg()?)
    };
    let gradients = GradientSet::from_store(decoder.parameters(), &loss()?.backward()?)?;
    for (name, variable) in decoder.parameters().iter() {
        let gradient = gradients.get(name).expect("from_store checked every name");
        let slope = length(&floats(gradient)?);
        // A bias of the keys would shift all of a query's scores alike, which softmax does
        // not see, were it not for the rotation: its gradient is small, but not zero.
        if slope < 1e-7 {
            return Err(PolicyError::contract(format!("the gradient of {name} is zero")));
        }
        let before = variable.as_detached_tensor().copy()?;
        let loss_at = |step: f64| -> Result<f64, PolicyError> {
            variable.set(&(&before + (gradient * (step / slope))?)?)?;
            Ok(f64::from(loss()?.to_scalar::<f32>()?))
        };
        let step = (LOSS_CHANGE / slope).clamp(*STEPS.start(), *STEPS.end());
        let central = |step: f64| -> Result<f64, PolicyError> {
            Ok((loss_at(step)? - loss_at(-step)?) / (2.0 * step))
        };
        // Richardson's extrapolation: the third derivative cancels.
        let found = (4.0 * central(step)? - central(2.0 * step)?) / 3.0;
        variable.set(&before)?;
        let error = ((found - slope).abs() - LOSS_ROUNDING / step).max(0.0);
        if error > DIFFERENCE_AGREEMENT * slope {
            return Err(PolicyError::contract(format!(
                "the gradient of {name} has length {slope}, but the loss rises by {found} along it"
            )));
        }
    }
    Ok(())
}

fn saving_and_loading_is_the_identity(decoder: &Decoder, folder: &Path) -> Result<(), PolicyError> {
    decoder.save_folder(folder)?;
    let loaded = Decoder::from_folder(folder)?;
    if loaded.config() != decoder.config() {
        return Err(PolicyError::contract("the config changed on its way through a file"));
    }
    let names = |decoder: &Decoder| -> Vec<String> {
        decoder.parameters().iter().map(|(name, _)| name.to_owned()).collect()
    };
    if names(&loaded) != names(decoder) {
        return Err(PolicyError::contract("parameters were lost on their way through a file"));
    }
    for ((name, saved), (_, loaded)) in decoder.parameters().iter().zip(loaded.parameters().iter())
    {
        if floats(saved)? != floats(loaded)? {
            return Err(PolicyError::contract(format!("{name} changed on its way through a file")));
        }
    }
    Ok(())
}

fn floats(tensor: &Tensor) -> Result<Vec<f64>, PolicyError> {
    let values: Vec<f32> = tensor.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
    Ok(values.into_iter().map(f64::from).collect())
}

fn length(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

fn agree(found: &Tensor, expected: &Tensor, what: &str) -> Result<(), PolicyError> {
    let (found, expected) = (floats(found)?, floats(expected)?);
    let error: Vec<f64> = found.iter().zip(&expected).map(|(a, b)| a - b).collect();
    let (error, expected) = (length(&error), length(&expected));
    if error <= AGREEMENT * expected {
        Ok(())
    } else {
        Err(PolicyError::contract(format!("{what} differ by {error}, relative to {expected}")))
    }
}
