//! What every decoder and scalar model must keep, as checks that tests run over [`crate::models::BUILTIN`]
//! and that a new family must pass.

use std::path::Path;

use candle_core::{Device, Tensor};
use rand::RngExt;

use crate::error::PolicyError;
use crate::model_config::{ModelConfig, Sizes};
use crate::optimizer::GradientSet;
use crate::parameters::{InitOptions, Parameters, named_stream};
use crate::{
    CacheSpan, Decoder, Inference, Keep, KvCache, PackedSequences, Pass, ScalarModel,
    ScoreGradients, TokenId,
};

/// Sums taken in another order may differ by rounding, relative to their length.
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
    a_shared_prompt_changes_nothing(decoder, &sequences)?;
    the_cache_agrees(decoder, &sequences)?;
    every_gradient_is_the_slope(decoder, &sequences)?;
    saving_and_loading_is_the_identity(decoder, folder)
}

/// Checks every clause of [`ScalarModel`]'s contract on ragged random sequences. Perturbs the model's
/// weights while it runs and puts them back; the head must not be zero. `folder` is an empty folder to
/// save to.
///
/// # Errors
/// Of the first clause that is broken, with its numbers.
pub fn check_scalar_model(
    model: &ScalarModel,
    seed: u64,
    folder: &Path,
) -> Result<(), PolicyError> {
    let sequences = random_sequences(model.decoder(), seed);
    let values = |model: &ScalarModel, sequences: &[Vec<TokenId>]| {
        let sequences = packed(sequences);
        let rows: Vec<u32> = (0..sequences.rows() as u32).collect();
        model.values(&mut Pass::new(Keep::Nothing), &sequences, &rows)
    };
    let together = values(model, &sequences)?;
    let alone: Vec<Vec<f32>> = sequences
        .iter()
        .map(|sequence| values(model, std::slice::from_ref(sequence)))
        .collect::<Result<_, _>>()?;
    same_bits(&together, &alone.concat(), "values of packed sequences and of the same alone")?;

    let (whole, count) = (packed(&sequences), together.len());
    let rows: Vec<u32> = (0..count as u32).collect();
    let slopes = waves(count, 0.7, 1.0 / count as f64);
    for keep in [Keep::Activations, Keep::Inputs] {
        let (mut pass, mut gradients) = (Pass::new(keep), GradientSet::new());
        model.values(&mut pass, &whole, &rows)?;
        model.backward(&mut pass, &slopes, &mut gradients)?;
        gradients_are_slopes(model.parameters(), &gradients, || {
            Ok(weighted(&model.values(&mut pass, &whole, &rows)?, &slopes))
        })?;
    }

    model.save_folder(folder)?;
    let loaded = ScalarModel::from_folder(folder)?;
    if loaded.config() != model.config() {
        return Err(PolicyError::contract("the config changed on its way through a file"));
    }
    same_parameters(loaded.parameters(), model.parameters())?;
    same_bits(&values(&loaded, &sequences)?, &together, "a model and its file")
}

/// Logits of every token of one sequence, `(tokens, vocab)`: for holding a decoder against others.
///
/// # Errors
/// If there is no token, or one is outside the vocabulary.
pub fn logits(decoder: &Decoder, tokens: &[TokenId]) -> Result<Vec<f32>, PolicyError> {
    let states = hidden(decoder, &PackedSequences::of_lengths(tokens, &[tokens.len()]))?;
    let mut inference = Inference::new(decoder)?;
    let states = inference.hidden(states)?;
    inference.logits(&states)
}

fn random_sequences(decoder: &Decoder, seed: u64) -> Vec<Vec<TokenId>> {
    let mut stream = named_stream(seed, "contract");
    let vocab = decoder.config().vocab_size as TokenId;
    // Longer than one block of positions, and ending inside one.
    [41, 1, 37, 2]
        .into_iter()
        .map(|length| (0..length).map(|_| stream.random_range(0..vocab)).collect())
        .collect()
}

/// All final hidden states of sequences packed end to end.
fn hidden(decoder: &Decoder, sequences: &PackedSequences) -> Result<Vec<f32>, PolicyError> {
    let mut pass = Pass::new(Keep::Nothing);
    decoder.forward(&mut pass, sequences)?;
    let rows: Vec<u32> = (0..sequences.rows() as u32).collect();
    Ok(decoder.hidden(&mut pass, &rows)?.to_vec())
}

fn packed(sequences: &[Vec<TokenId>]) -> PackedSequences {
    let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
    PackedSequences::of_lengths(&sequences.concat(), &lengths)
}

/// A packed batch gives each sequence what it would get alone.
fn packing_changes_nothing(
    decoder: &Decoder,
    sequences: &[Vec<TokenId>],
) -> Result<(), PolicyError> {
    let together = hidden(decoder, &packed(sequences))?;
    let alone: Vec<f32> = sequences
        .iter()
        .map(|sequence| hidden(decoder, &packed(std::slice::from_ref(sequence))))
        .collect::<Result<Vec<_>, _>>()?
        .concat();
    same_bits(&together, &alone, "packed sequences and the same alone")
}

/// Replies that share a prompt get the values they would get each with a copy of it, and the
/// gradients are the same up to the order of sums; so are those of a pass that computes its
/// activations anew.
fn a_shared_prompt_changes_nothing(
    decoder: &Decoder,
    sequences: &[Vec<TokenId>],
) -> Result<(), PolicyError> {
    let (prompt, replies) = (&sequences[0], &sequences[1..]);
    let mut shared = PackedSequences::default();
    let parts: Vec<&[TokenId]> = replies.iter().map(Vec::as_slice).collect();
    let (_, starts) = shared.push(prompt, &parts);
    let copies: Vec<Vec<TokenId>> =
        replies.iter().map(|reply| [prompt.as_slice(), reply].concat()).collect();

    // Every token of a reply is a target, the first of each predicted by the prompt's last row.
    let last = prompt.len() as u32 - 1;
    let (mut rows, mut copied_rows, mut end) = (Vec::new(), Vec::new(), 0);
    for (reply, start) in replies.iter().zip(&starts) {
        rows.push(last);
        rows.extend((0..reply.len() as u32 - 1).map(|row| *start as u32 + row));
        copied_rows.extend((0..reply.len() as u32).map(|row| end + last + row));
        end += (prompt.len() + reply.len()) as u32;
    }
    let targets = replies.concat();
    let slopes: Vec<f32> = (0..targets.len()).map(|row| (row as f32 * 0.7).sin()).collect();
    let run = |sequences: &PackedSequences, rows: &[u32], keep| {
        let (mut pass, mut gradients) = (Pass::new(keep), GradientSet::new());
        decoder.forward(&mut pass, sequences)?;
        let scores = decoder.score(&mut pass, rows, &targets, 0.8)?;
        decoder.backward(&mut pass, &slopes, &mut gradients)?;
        Ok::<_, PolicyError>((scores, gradients))
    };
    let (scores, gradients) = run(&shared, &rows, Keep::Activations)?;
    let (copied_scores, copied) = run(&packed(&copies), &copied_rows, Keep::Activations)?;
    same_bits(&scores.logprobs, &copied_scores.logprobs, "a shared prompt and its copies")?;
    let (_, recomputed) = run(&shared, &rows, Keep::Inputs)?;
    for (name, gradient) in gradients.iter() {
        let found = |set: &GradientSet| set.get(name).map(<[f32]>::to_vec).unwrap_or_default();
        agree(gradient, &found(&copied), &format!("gradients of {name}, prompt shared or not,"))?;
        same_bits(gradient, &found(&recomputed), &format!("{name}: kept and recomputed"))?;
    }
    Ok(())
}

/// The cache, in uneven pieces and from a shared prefix, gives what a forward pass gives.
fn the_cache_agrees(decoder: &Decoder, sequences: &[Vec<TokenId>]) -> Result<(), PolicyError> {
    let width = decoder.config().hidden_size;
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
    let slots = sequences.len() + 1;
    let mut inference = Inference::new(decoder)?;
    let mut cache = KvCache::new(decoder, slots, longest);
    let mut taken = vec![0; sequences.len()];
    let whole: Vec<Vec<f32>> = sequences
        .iter()
        .map(|sequence| hidden(decoder, &packed(std::slice::from_ref(sequence))))
        .collect::<Result<_, _>>()?;
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
        let last = inference.extend(&mut cache, &spans)?;
        let last = inference.read_hidden(&last)?;
        for (span, found) in spans.iter().zip(last.chunks_exact(width)) {
            taken[span.slot] += span.tokens.len();
            let row = taken[span.slot] - 1;
            let expected = &whole[span.slot][row * width..(row + 1) * width];
            same_bits(found, expected, "the cache and a forward pass")?;
        }
    }
    let (from, to) = (0, slots - 1);
    let shared = sequences[from].len() - 1;
    cache.share_prefix(from, to, shared)?;
    let span = CacheSpan { slot: to, tokens: &sequences[from][shared..] };
    let continued = inference.extend(&mut cache, &[span])?;
    let continued = inference.read_hidden(&continued)?;
    same_bits(&continued, &whole[from][shared * width..], "a shared prefix and a forward pass")
}

/// Every trained parameter, and no other, has a gradient that is the slope: by log-probabilities, by
/// these with entropies and hidden states, and by logits.
fn every_gradient_is_the_slope(
    decoder: &Decoder,
    sequences: &[Vec<TokenId>],
) -> Result<(), PolicyError> {
    let tokens = sequences.concat();
    let vocab = decoder.config().vocab_size as TokenId;
    let targets: Vec<TokenId> =
        tokens.iter().enumerate().map(|(row, token)| (token * 7 + row as u32) % vocab).collect();
    let (sequences, rows) = (packed(sequences), (0..tokens.len() as u32).collect::<Vec<_>>());
    let share = 1.0 / targets.len() as f64;
    let mut gradients = GradientSet::new();
    let mut pass = Pass::default();

    let mut logprobs = |gradients: Option<&mut GradientSet>| -> Result<f64, PolicyError> {
        decoder.forward(&mut pass, &sequences)?;
        let scores = decoder.score(&mut pass, &rows, &targets, 0.8)?;
        let slopes = vec![-share as f32; targets.len()];
        if let Some(gradients) = gradients {
            decoder.backward(&mut pass, &slopes, gradients)?;
        }
        Ok(weighted(&scores.logprobs, &slopes))
    };
    logprobs(Some(&mut gradients))?;
    gradients_are_slopes(decoder.trainable(), &gradients, || logprobs(None))?;

    // Uneven weights: equal ones would hide that a row has another's. Hidden states are long, so theirs
    // are small.
    let width = decoder.config().hidden_size;
    let by_logprob = waves(rows.len(), 0.7, share);
    let by_entropy = waves(rows.len(), 1.1, 2.0 * share);
    let by_hidden = waves(rows.len() * width, 1.9, 0.3 * share);
    let by_logit = waves(rows.len() * vocab as usize, 1.3, 0.3 * share);
    let by = ScoreGradients {
        logprobs: &by_logprob,
        entropies: Some(&by_entropy),
        hidden: Some(&by_hidden),
    };
    let mut scores = |gradients: Option<&mut GradientSet>| -> Result<f64, PolicyError> {
        decoder.forward(&mut pass, &sequences)?;
        let scores = decoder.score(&mut pass, &rows, &targets, 0.8)?;
        let states = weighted(decoder.hidden(&mut pass, &rows)?, &by_hidden);
        if let Some(gradients) = gradients {
            decoder.backward_scores(&mut pass, &by, gradients)?;
        }
        let logprobs = weighted(&scores.logprobs, &by_logprob);
        Ok(logprobs + weighted(&scores.entropies, &by_entropy) + states)
    };
    gradients.reset();
    scores(Some(&mut gradients))?;
    gradients_are_slopes(decoder.trainable(), &gradients, || scores(None))?;

    let mut logits = |gradients: Option<&mut GradientSet>| -> Result<f64, PolicyError> {
        decoder.forward(&mut pass, &sequences)?;
        let logits = decoder.logits(&mut pass, &rows, 0.8)?;
        if let Some(gradients) = gradients {
            decoder.backward_logits(&mut pass, &by_logit, gradients)?;
        }
        Ok(weighted(&logits, &by_logit))
    };
    gradients.reset();
    logits(Some(&mut gradients))?;
    gradients_are_slopes(decoder.trainable(), &gradients, || logits(None))
}

/// Every parameter, and nothing else, has a gradient, not zero, whose length is the slope of the loss
/// along it.
fn gradients_are_slopes(
    parameters: &Parameters,
    gradients: &GradientSet,
    mut loss: impl FnMut() -> Result<f64, PolicyError>,
) -> Result<(), PolicyError> {
    if let Some((frozen, _)) = gradients.iter().find(|(name, _)| parameters.get(name).is_none()) {
        return Err(PolicyError::contract(format!("{frozen} is frozen and has a gradient")));
    }
    for (name, variable) in parameters.iter() {
        let gradient = gradients
            .get(name)
            .ok_or_else(|| PolicyError::contract(format!("{name} has no gradient")))?;
        let slope = length(gradient);
        // A bias of the keys would shift all of a query's scores alike, which softmax does
        // not see, were it not for the rotation: its gradient is small, but not zero.
        if slope < 1e-7 {
            return Err(PolicyError::contract(format!("the gradient of {name} is zero")));
        }
        let before = variable.as_detached_tensor().copy()?;
        let direction = Tensor::from_slice(gradient, variable.shape(), &Device::Cpu)?;
        let mut loss_at = |step: f64| -> Result<f64, PolicyError> {
            variable.set(&(&before + (&direction * (step / slope))?)?)?;
            loss()
        };
        let step = (LOSS_CHANGE / slope).clamp(*STEPS.start(), *STEPS.end());
        let mut central = |step: f64| -> Result<f64, PolicyError> {
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

/// Σ value · weight.
fn weighted(values: &[f32], weights: &[f32]) -> f64 {
    values.iter().zip(weights).map(|(value, weight)| f64::from(*value) * f64::from(*weight)).sum()
}

/// Some weights of both signs.
fn waves(count: usize, pace: f64, height: f64) -> Vec<f32> {
    (0..count).map(|at| (height * (at as f64 * pace + 0.4).sin()) as f32).collect()
}

fn saving_and_loading_is_the_identity(decoder: &Decoder, folder: &Path) -> Result<(), PolicyError> {
    decoder.save_folder(folder)?;
    let loaded = Decoder::from_folder(folder)?;
    if loaded.config() != decoder.config() {
        return Err(PolicyError::contract("the config changed on its way through a file"));
    }
    let tokens: Vec<TokenId> = (0..decoder.config().vocab_size as TokenId).collect();
    let whole = PackedSequences::of_lengths(&tokens, &[tokens.len()]);
    same_bits(&hidden(decoder, &whole)?, &hidden(&loaded, &whole)?, "a model and its file")?;
    same_parameters(loaded.parameters(), decoder.merged()?.parameters())
}

fn same_parameters(found: &Parameters, expected: &Parameters) -> Result<(), PolicyError> {
    let names = |parameters: &Parameters| -> Vec<String> {
        parameters.iter().map(|(name, _)| name.to_owned()).collect()
    };
    if names(found) != names(expected) {
        return Err(PolicyError::contract("parameters were lost on their way through a file"));
    }
    for ((name, saved), (_, loaded)) in expected.iter().zip(found.iter()) {
        if floats(saved)? != floats(loaded)? {
            return Err(PolicyError::contract(format!("{name} changed on its way through a file")));
        }
    }
    Ok(())
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>, PolicyError> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

fn length(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

fn same_bits(found: &[f32], expected: &[f32], what: &str) -> Result<(), PolicyError> {
    if found == expected {
        return Ok(());
    }
    let differing = found.iter().zip(expected).filter(|(a, b)| a != b).count();
    Err(PolicyError::contract(format!("{what} differ in {differing} of {} values", found.len())))
}

fn agree(found: &[f32], expected: &[f32], what: &str) -> Result<(), PolicyError> {
    let error: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
    let (error, expected) = (length(&error), length(expected));
    if error <= AGREEMENT * expected {
        Ok(())
    } else {
        Err(PolicyError::contract(format!("{what} differ by {error}, relative to {expected}")))
    }
}
