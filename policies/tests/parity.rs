//! The decoder against torch and transformers on three tiny models (see fixtures/README.md).

#![expect(clippy::unwrap_used, reason = "what a test or bench prepares must succeed")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::Deserialize;
use tallow_policies::{
    AdamW, AdamWConfig, CacheSpan, DecayTargets, Decoder, GradientSet, Inference, Keep, KvCache,
    PackedSequences, Pass, TokenId,
};

const MODELS: [&str; 3] = ["tiny-llama", "tiny-qwen2", "tiny-qwen3"];

/// f32 sums in another order than torch's; the reference itself is f32.
const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Reference {
    input_ids: Vec<Vec<TokenId>>,
    labels: Vec<Vec<i64>>,
    loss: f64,
    grad_norm_total: f64,
    token_logprobs: Vec<Vec<f64>>,
    entropy: Vec<Vec<f64>>,
    adamw: AdamWReference,
    left_padded: LeftPadded,
    greedy: Greedy,
}

#[derive(Deserialize)]
struct AdamWReference {
    lr: f64,
    betas: (f64, f64),
    eps: f64,
    weight_decay: f64,
    clip_norm: f64,
    loss_and_grad_norm_before_clip_per_step: Vec<(f64, f64)>,
}

#[derive(Deserialize)]
struct LeftPadded {
    input_ids: Vec<Vec<TokenId>>,
    attention_mask: Vec<Vec<usize>>,
    last_logits: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Greedy {
    prompt: Vec<TokenId>,
    new_ids: Vec<TokenId>,
}

struct Case {
    name: &'static str,
    decoder: Decoder,
    reference: Reference,
    tensors: BTreeMap<String, Tensor>,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn cases() -> impl Iterator<Item = Case> {
    MODELS.into_iter().map(|name| {
        let folder = folder(name);
        let json = std::fs::read(folder.join("reference.json")).unwrap();
        let tensors =
            candle_core::safetensors::load(folder.join("reference.safetensors"), &Device::Cpu);
        Case {
            name,
            decoder: Decoder::from_folder(&folder).unwrap(),
            reference: serde_json::from_slice(&json).unwrap(),
            tensors: tensors.unwrap().into_iter().collect(),
        }
    })
}

impl Reference {
    /// The batch packed, and the rows and targets that the loss scores.
    fn packed(&self) -> (PackedSequences, Vec<u32>, Vec<TokenId>) {
        let tokens = self.input_ids.concat();
        let lengths: Vec<usize> = self.input_ids.iter().map(Vec::len).collect();
        let (mut rows, mut targets, mut start) = (Vec::new(), Vec::new(), 0);
        for labels in &self.labels {
            for t in 0..labels.len() - 1 {
                if let Ok(target) = TokenId::try_from(labels[t + 1]) {
                    rows.push((start + t) as u32);
                    targets.push(target);
                }
            }
            start += labels.len();
        }
        (PackedSequences::of_lengths(&tokens, &lengths), rows, targets)
    }

    /// Mean negative log-probability of the scored tokens, and its gradients.
    fn loss(&self, decoder: &Decoder) -> (f64, GradientSet) {
        let (sequences, rows, targets) = self.packed();
        let (mut pass, mut gradients) = (Pass::default(), GradientSet::new());
        decoder.forward(&mut pass, &sequences).unwrap();
        let scores = decoder.score(&mut pass, &rows, &targets, 1.0).unwrap();
        let share = 1.0 / targets.len() as f32;
        decoder.backward(&mut pass, &vec![-share; targets.len()], &mut gradients).unwrap();
        (-wide(&scores.logprobs).iter().sum::<f64>() / targets.len() as f64, gradients)
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|it| f64::from(*it)).collect()
}

/// Logits of every row.
fn logits(decoder: &Decoder, sequences: &PackedSequences) -> Vec<f64> {
    let mut pass = Pass::new(Keep::Nothing);
    decoder.forward(&mut pass, sequences).unwrap();
    let rows: Vec<u32> = (0..sequences.rows() as u32).collect();
    let hidden = decoder.hidden(&mut pass, &rows).unwrap().to_vec();
    let mut inference = Inference::new(decoder).unwrap();
    let hidden = inference.hidden(hidden).unwrap();
    wide(&inference.logits(&hidden).unwrap())
}

fn floats(tensor: &Tensor) -> Vec<f64> {
    let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().map(f64::from).collect()
}

fn assert_close(found: f64, expected: f64, what: &str) {
    let error = (found - expected).abs() / expected.abs().max(1.0);
    assert!(error < TOLERANCE, "{what}: {found}, expected {expected}");
}

/// The length of the difference is small against the length of what was expected.
fn assert_near(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let error = length(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    let expected = length(&mut expected.iter().copied());
    assert!(error <= TOLERANCE * expected, "{what}: off by {error} of {expected}");
}

#[test]
fn logits_match_on_every_row() {
    for Case { name, decoder, reference, tensors } in cases() {
        let logits = logits(&decoder, &reference.packed().0);
        assert_near(&logits, &floats(&tensors["logits"]), name);
    }
}

#[test]
fn loss_and_every_gradient_match() {
    for Case { name, decoder, reference, tensors } in cases() {
        let (loss, gradients) = reference.loss(&decoder);
        assert_close(loss, reference.loss, name);
        assert_close(gradients.norm().unwrap(), reference.grad_norm_total, name);
        for (parameter, gradient) in gradients.iter() {
            let expected = &tensors[&format!("grad.{parameter}")];
            assert_near(&wide(gradient), &floats(expected), &format!("{name}: {parameter}"));
        }
    }
}

#[test]
fn token_logprobs_and_entropies_match() {
    for Case { name, decoder, reference, .. } in cases() {
        for (row, tokens) in reference.input_ids.iter().enumerate() {
            let sequence = PackedSequences::of_lengths(tokens, &[tokens.len()]);
            let mut pass = Pass::new(Keep::Nothing);
            decoder.forward(&mut pass, &sequence).unwrap();
            let rows: Vec<u32> = (0..tokens.len() as u32).collect();
            let mut targets = tokens[1..].to_vec();
            targets.push(0); // nothing follows the last row; only its entropy is compared
            let scores = decoder.score(&mut pass, &rows, &targets, 1.0).unwrap();
            let logprobs = wide(&scores.logprobs);
            assert_near(&logprobs[..tokens.len() - 1], &reference.token_logprobs[row], name);
            assert_near(&wide(&scores.entropies), &reference.entropy[row], name);
        }
    }
}

#[test]
fn five_adamw_steps_match() {
    for Case { name, decoder, reference, .. } in cases() {
        let expected = &reference.adamw;
        let mut optimizer = AdamW::new(AdamWConfig {
            beta1: expected.betas.0,
            beta2: expected.betas.1,
            eps: expected.eps,
            weight_decay: expected.weight_decay,
            decay: DecayTargets::All,
            clip_norm: Some(expected.clip_norm),
        });
        for &(loss_then, norm_then) in &expected.loss_and_grad_norm_before_clip_per_step {
            let (loss, gradients) = reference.loss(&decoder);
            assert_close(loss, loss_then, name);
            let report = optimizer.step(decoder.parameters(), &gradients, expected.lr).unwrap();
            assert_close(report.grad_norm, norm_then, name);
        }
    }
}

#[test]
fn sequences_need_no_padding() {
    for Case { name, decoder, reference, .. } in cases() {
        let LeftPadded { input_ids, attention_mask, last_logits } = &reference.left_padded;
        for ((row, mask), expected) in input_ids.iter().zip(attention_mask).zip(last_logits) {
            let real: Vec<TokenId> =
                row.iter().zip(mask).filter(|(_, mask)| **mask == 1).map(|(id, _)| *id).collect();
            let logits = logits(&decoder, &PackedSequences::of_lengths(&real, &[real.len()]));
            let last = &logits[logits.len() - decoder.config().vocab_size..];
            // The reference is printed with five decimals.
            assert_near(last, expected, name);
        }
    }
}

#[test]
fn greedy_continuation_through_the_cache_matches() {
    for Case { name, decoder, reference, .. } in cases() {
        let Greedy { prompt, new_ids } = &reference.greedy;
        let mut cache = KvCache::new(&decoder, 1, 64);
        let mut inference = Inference::new(&decoder).unwrap();
        let mut next = prompt.clone();
        let mut found = Vec::new();
        while found.len() < new_ids.len() {
            let spans = [CacheSpan { slot: 0, tokens: &next }];
            let hidden = inference.extend(&mut cache, &spans).unwrap();
            let logits = inference.logits(&hidden).unwrap();
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            found.push(best as TokenId);
            next = vec![best as TokenId];
        }
        assert_eq!(&found, new_ids, "{name}");
    }
}
