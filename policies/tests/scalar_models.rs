//! Scalar models: their contract, their folders in both directions, and heads on a shared trunk.
//!
//! Set `TALLOW_PYTHON` to a Python with torch and transformers to hold saved folders against what
//! transformers loads and writes; without it that test says so and passes. What transformers
//! wrote once lies in `fixtures/scores` and is always read.

#![expect(clippy::unwrap_used, reason = "what a test or bench prepares must succeed")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use tallow_policies::contract::{check_scalar_model, tiny_decoder};
use tallow_policies::{
    AdamW, AdamWConfig, Decoder, GradientSet, HeadInit, InitOptions, Keep, LoraConfig,
    PackedSequences, Pass, PolicyError, ScalarHead, ScalarModel, ScoreGradients, TokenId, models,
};

/// f32 sums in another order than torch's, on values near 1.
const TOLERANCE: f64 = 1e-5;

fn tiny(family: &str, seed: u64) -> ScalarModel {
    let decoder = tiny_decoder(family, seed).unwrap();
    ScalarModel::from_decoder(&decoder, HeadInit::Scaled, seed).unwrap()
}

fn values(model: &ScalarModel, tokens: &[TokenId]) -> Vec<f32> {
    let sequences = PackedSequences::of_lengths(tokens, &[tokens.len()]);
    let rows: Vec<u32> = (0..tokens.len() as u32).collect();
    model.values(&mut Pass::new(Keep::Nothing), &sequences, &rows).unwrap()
}

#[test]
fn every_family_keeps_the_contract() {
    for family in models::BUILTIN {
        for seed in 0..2 {
            let folder = tempfile::tempdir().unwrap();
            check_scalar_model(&tiny(family.name, seed), seed, folder.path())
                .unwrap_or_else(|error| panic!("{} with seed {seed}: {error}", family.name));
        }
    }
}

#[test]
fn a_scalar_model_has_a_trunk_of_its_own_and_no_language_head() {
    let decoder = tiny_decoder("llama", 1).unwrap();
    assert!(decoder.parameters().get("lm_head.weight").is_some());
    let model = ScalarModel::from_decoder(&decoder, HeadInit::default(), 1).unwrap();
    assert!(model.parameters().get("lm_head.weight").is_none());
    assert_eq!(model.parameters().len(), decoder.parameters().len());
    assert_eq!(model.config().architectures, ["LlamaForSequenceClassification"]);
    let before = values(&model, &[3, 1, 4]);
    for (_, variable) in decoder.parameters().iter() {
        variable.set(&variable.zeros_like().unwrap()).unwrap();
    }
    assert_eq!(values(&model, &[3, 1, 4]), before);
}

#[test]
fn adapters_are_merged_into_the_trunk() {
    let lora = LoraConfig { rank: 2, ..LoraConfig::default() };
    let decoder = tiny_decoder("qwen2", 1).unwrap().with_adapters(&lora, 1).unwrap();
    for (name, variable) in decoder.trainable().iter().filter(|(it, _)| it.contains("lora_B")) {
        let values = (variable.as_tensor() + 0.1).unwrap();
        variable.set(&values).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let adapted = ScalarModel::from_decoder(&decoder, HeadInit::Scaled, 1).unwrap();
    let merged =
        ScalarModel::from_decoder(&decoder.merged().unwrap(), HeadInit::Scaled, 1).unwrap();
    let base = ScalarModel::from_decoder(&decoder.base().unwrap(), HeadInit::Scaled, 1).unwrap();
    assert_eq!(values(&adapted, &[3, 1, 4]), values(&merged, &[3, 1, 4]));
    assert_ne!(values(&adapted, &[3, 1, 4]), values(&base, &[3, 1, 4]));
}

#[test]
fn heads_are_drawn_as_asked() {
    let weights = |init, seed| {
        let head = ScalarHead::new(400, init, seed).unwrap();
        let weight = head.parameters().get("score.weight").unwrap();
        assert_eq!(weight.dims(), [1, 400]);
        weight.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert!(weights(HeadInit::Zero, 3).iter().all(|it| it.to_bits() == 0));
    let deviation = |weights: Vec<f32>| {
        (weights.iter().map(|it| f64::from(it * it)).sum::<f64>() / 400.0).sqrt()
    };
    assert!((deviation(weights(HeadInit::Scaled, 3)) - 0.05).abs() < 0.006);
    assert!((deviation(weights(HeadInit::Normal { std: 2.0 }, 3)) - 2.0).abs() < 0.25);
    assert_ne!(weights(HeadInit::Scaled, 3), weights(HeadInit::Scaled, 4));
    assert!(ScalarHead::new(4, HeadInit::Normal { std: -1.0 }, 0).is_err());
    assert!(ScalarHead::new(0, HeadInit::Zero, 0).is_err());
}

#[test]
fn training_lowers_the_loss_and_snapshots_stay() {
    let model = tiny("qwen3", 2);
    let (snapshot, clone) = (model.snapshot().unwrap(), model.clone());
    let sequences = PackedSequences::of_lengths(&[3, 1, 4, 1, 5, 9], &[4, 2]);
    let (rows, targets) = ([3, 5], [1.0_f32, -1.0]);
    let (mut pass, mut gradients) = (Pass::default(), GradientSet::new());
    let mut optimizer = AdamW::new(AdamWConfig::default());
    let mut losses = Vec::new();
    for _ in 0..30 {
        gradients.reset();
        let values = model.values(&mut pass, &sequences, &rows).unwrap();
        let slopes: Vec<f32> = values.iter().zip(targets).map(|(a, b)| 2.0 * (a - b)).collect();
        losses.push(slopes.iter().map(|it| it * it / 4.0).sum::<f32>());
        model.backward(&mut pass, &slopes, &mut gradients).unwrap();
        let report = model.step(&mut optimizer, &gradients, 1e-2).unwrap();
        assert!((report.grad_norm - gradients.norm().unwrap()).abs() < 1e-12);
    }
    assert!(losses[29] < 0.05 * losses[0], "{losses:?}");
    let tokens = [3, 1, 4, 1];
    assert_eq!(values(&clone, &tokens), values(&model, &tokens));
    assert_ne!(values(&snapshot, &tokens), values(&model, &tokens));
    snapshot.copy_from(&model).unwrap();
    assert_eq!(values(&snapshot, &tokens), values(&model, &tokens));
}

/// A head on the policy's own trunk gives each parameter the sum of what both losses give alone.
#[test]
fn a_head_on_a_shared_trunk_adds_its_gradient() {
    let decoder = tiny_decoder("qwen2", 3).unwrap();
    let head = ScalarHead::new(24, HeadInit::Scaled, 3).unwrap();
    let sequences = PackedSequences::of_lengths(&[3, 1, 4, 1, 5, 9], &[4, 2]);
    let (rows, targets) = ([0, 1, 4], [1, 4, 9]);
    let (by_logprob, by_entropy, by_value) = ([0.3, -0.2, 0.1], [0.5, 0.1, -0.4], [1.0, -0.5, 0.2]);
    let run = |logprobs: &[f32], entropies: &[f32], values: &[f32]| {
        let (mut pass, mut gradients) = (Pass::default(), GradientSet::new());
        decoder.forward(&mut pass, &sequences).unwrap();
        decoder.score(&mut pass, &rows, &targets, 0.9).unwrap();
        let states = decoder.hidden(&mut pass, &rows).unwrap();
        let d_hidden = head.backward(states, values, &mut gradients).unwrap();
        let by = ScoreGradients { logprobs, entropies: Some(entropies), hidden: Some(&d_hidden) };
        decoder.backward_scores(&mut pass, &by, &mut gradients).unwrap();
        gradients
    };
    let zero = [0.0; 3];
    let together = run(&by_logprob, &by_entropy, &by_value);
    let apart = [
        run(&by_logprob, &zero, &zero),
        run(&zero, &by_entropy, &zero),
        run(&zero, &zero, &by_value),
    ];
    let trained = decoder.trainable().joined(head.parameters()).unwrap();
    assert_eq!(trained.len(), decoder.trainable().len() + 1);
    for (name, _) in trained.iter() {
        let whole = together.get(name).unwrap();
        let scale = whole.iter().map(|it| it.abs()).fold(0.0, f32::max);
        for (at, found) in whole.iter().enumerate() {
            let sum: f32 = apart.iter().map(|it| it.get(name).unwrap()[at]).sum();
            assert!((found - sum).abs() <= 1e-5 * scale, "{name}[{at}]: {found}, {sum}");
        }
    }
    let mut optimizer = AdamW::new(AdamWConfig::default());
    optimizer.step(&trained, &together, 1e-3).unwrap();
    assert!(matches!(trained.joined(head.parameters()), Err(PolicyError::Input { .. })));
}

#[test]
fn hidden_states_of_other_rows_take_the_score_away() {
    let decoder = tiny_decoder("llama", 0).unwrap();
    let sequences = PackedSequences::of_lengths(&[3, 1, 4], &[3]);
    let (mut pass, mut gradients) = (Pass::default(), GradientSet::new());
    decoder.forward(&mut pass, &sequences).unwrap();
    decoder.score(&mut pass, &[0, 1], &[1, 4], 1.0).unwrap();
    decoder.hidden(&mut pass, &[1, 2]).unwrap();
    let error = decoder.backward(&mut pass, &[1.0, 1.0], &mut gradients).unwrap_err();
    assert!(error.to_string().contains("not scored"), "{error}");
    let error = decoder.backward_logits(&mut pass, &[0.0; 46], &mut gradients).unwrap_err();
    assert!(error.to_string().contains("not asked for"), "{error}");
    decoder.score(&mut pass, &[0, 1], &[1, 4], 1.0).unwrap();
    let by = ScoreGradients { logprobs: &[1.0, 1.0], entropies: Some(&[1.0]), hidden: None };
    let error = decoder.backward_scores(&mut pass, &by, &mut gradients).unwrap_err();
    assert!(matches!(error, PolicyError::Input { .. }), "{error}");
    assert!(decoder.logits(&mut pass, &[0], 0.0).is_err());
}

/// What no row was asked for has a gradient of zero, not that of the update before.
#[test]
fn no_rows_give_gradients_of_zero() {
    let decoder = tiny_decoder("llama", 0).unwrap();
    let sequences = PackedSequences::of_lengths(&[3, 1, 4], &[3]);
    let (mut pass, mut gradients) = (Pass::default(), GradientSet::new());
    for rows in [&[0_u32, 1][..], &[]] {
        for by_logits in [false, true] {
            gradients.reset();
            decoder.forward(&mut pass, &sequences).unwrap();
            if by_logits {
                let logits = decoder.logits(&mut pass, rows, 1.0).unwrap();
                decoder.backward_logits(&mut pass, &logits, &mut gradients).unwrap();
            } else {
                decoder.score(&mut pass, rows, rows, 1.0).unwrap();
                decoder.backward(&mut pass, &vec![1.0; rows.len()], &mut gradients).unwrap();
            }
            assert_eq!(gradients.norm().unwrap() == 0.0, rows.is_empty());
        }
    }
}

/// Logits are those that scores are made of.
#[test]
fn logits_are_those_that_are_scored() {
    let decoder = tiny_decoder("qwen3", 0).unwrap();
    let sequences = PackedSequences::of_lengths(&[3, 1, 4, 1, 5], &[5]);
    let (mut pass, rows, targets) = (Pass::default(), [0, 2, 4], [1, 1, 7]);
    decoder.forward(&mut pass, &sequences).unwrap();
    let logits = decoder.logits(&mut pass, &rows, 0.7).unwrap();
    let scores = decoder.score(&mut pass, &rows, &targets, 0.7).unwrap();
    for (row, logits) in logits.chunks_exact(23).enumerate() {
        let wide: Vec<f64> = logits.iter().map(|it| f64::from(*it)).collect();
        let logsumexp = wide.iter().map(|it| it.exp()).sum::<f64>().ln();
        let logprob = wide[targets[row] as usize] - logsumexp;
        assert!((logprob - f64::from(scores.logprobs[row])).abs() < 1e-5);
        let entropy = tallow_policies::ops::token_logprobs::entropy(&wide);
        assert!((entropy - f64::from(scores.entropies[row])).abs() < 1e-5);
    }
}

#[test]
fn a_head_and_its_file_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("head.safetensors");
    let head = ScalarHead::new(24, HeadInit::Scaled, 3).unwrap();
    head.save(&path).unwrap();
    let loaded = ScalarHead::load(&path).unwrap();
    let states: Vec<f32> = (0..48).map(|it| (it as f32).sin()).collect();
    assert_eq!(loaded.values(&states).unwrap(), head.values(&states).unwrap());
    assert!(head.values(&states[1..]).is_err());
    assert!(head.copy_from(&ScalarHead::new(23, HeadInit::Zero, 0).unwrap()).is_err());
}

#[test]
fn folders_of_the_other_kind_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    tiny_decoder("llama", 0).unwrap().save_folder(folder.path()).unwrap();
    let error = ScalarModel::from_folder(folder.path()).unwrap_err();
    assert!(error.to_string().contains("score.weight is missing"), "{error}");
    let model = tiny("llama", 0);
    model.save_folder(folder.path()).unwrap();
    let error = Decoder::from_folder(folder.path()).unwrap_err();
    assert!(error.to_string().contains("LlamaForSequenceClassification"), "{error}");

    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["id2label"] = json!({"0": "bad", "1": "good"});
    std::fs::write(&path, config.to_string()).unwrap();
    let error = ScalarModel::from_folder(folder.path()).unwrap_err();
    assert!(error.to_string().contains("2 labels, expected one"), "{error}");
}

/// Heads of two labels, which transformers does not name, and with a bias.
#[test]
fn other_heads_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny("qwen2", 0);
    let told = |change: fn(&mut HashMap<String, Tensor>)| {
        model.save_folder(folder.path()).unwrap();
        let path = folder.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config.as_object_mut().unwrap().remove("id2label");
        std::fs::write(&path, config.to_string()).unwrap();
        let path = folder.path().join("model.safetensors");
        let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        change(&mut tensors);
        candle_core::safetensors::save(&tensors, &path).unwrap();
        ScalarModel::from_folder(folder.path()).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(told(|_| {}), Ok(()));
    let two = told(|tensors| {
        let weight = &tensors["score.weight"];
        let weight = Tensor::cat(&[weight, weight], 0).unwrap();
        tensors.insert("score.weight".to_owned(), weight);
    });
    assert!(two.as_ref().unwrap_err().contains("2 values a token, expected one"), "{two:?}");
    let bias = told(|tensors| {
        let bias = Tensor::from_slice(&[0.5_f32], 1, &Device::Cpu).unwrap();
        tensors.insert("score.bias".to_owned(), bias);
    });
    assert!(bias.as_ref().unwrap_err().contains("score.bias"), "{bias:?}");
}

#[test]
fn other_keys_of_the_configuration_and_its_filler_stay() {
    let decoder = tiny_decoder("llama", 0).unwrap();
    let with = |change: fn(&mut tallow_policies::ModelConfig)| {
        let mut config = decoder.config().clone();
        change(&mut config);
        let decoder = Decoder::new(config, &InitOptions::default(), 0).unwrap();
        ScalarModel::from_decoder(&decoder, HeadInit::Zero, 0).unwrap()
    };
    let model = with(|it| {
        it.other.insert("note".to_owned(), json!("kept"));
        it.pad_token_id = Some(2);
    });
    assert_eq!(model.config().other["note"], "kept");
    assert_eq!(model.config().other["id2label"], json!({"0": "LABEL_0"}));
    assert_eq!(model.config().pad_token_id, Some(2));
    assert_eq!(model.pooled_position(&[2, 5, 6, 2, 2]), 2);
    assert_eq!(model.pooled_position(&[2, 2]), 0);
    let ends = with(|it| it.name_special_tokens(0, None));
    assert_eq!(ends.config().pad_token_id, Some(1));
    assert_eq!(ends.pooled_position(&[5, 6, 0]), 2);
}

#[test]
fn a_pass_that_kept_nothing_has_no_gradient() {
    let model = tiny("llama", 0);
    let mut pass = Pass::new(Keep::Nothing);
    let sequences = PackedSequences::of_lengths(&[3, 1], &[2]);
    model.values(&mut pass, &sequences, &[1]).unwrap();
    let mut gradients = GradientSet::new();
    assert!(model.backward(&mut pass, &[1.0], &mut gradients).is_err());
    assert!(gradients.is_empty());
    let mut pass = Pass::default();
    model.values(&mut pass, &sequences, &[1]).unwrap();
    assert!(model.backward(&mut pass, &[1.0, 1.0], &mut gradients).is_err());
}

/// Asserts that a folder's model gives each text the score that transformers gave it, alone and in a
/// padded batch. Returns the largest difference.
fn check_scores(folder: &Path, reference: &Value) -> f64 {
    let model = ScalarModel::from_folder(folder).unwrap();
    let texts: Vec<Vec<TokenId>> = serde_json::from_value(reference["texts"].clone()).unwrap();
    let mut worst = 0.0_f64;
    for kind in ["alone", "padded"] {
        let expected: Vec<f64> = serde_json::from_value(reference[kind].clone()).unwrap();
        assert_eq!(expected.len(), texts.len());
        for (text, expected) in texts.iter().zip(expected) {
            let found = f64::from(values(&model, text)[model.pooled_position(text)]);
            worst = worst.max((found - expected).abs());
        }
    }
    assert!(worst < TOLERANCE, "{}: off by {worst}", folder.display());
    worst
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/scores")
}

#[test]
fn what_transformers_wrote_gives_the_scores_it_gave() {
    for family in models::BUILTIN {
        let folder = fixtures().join(family.name);
        let reference = std::fs::read(folder.join("scores.json")).unwrap();
        check_scores(&folder, &serde_json::from_slice(&reference).unwrap());
    }
}

#[test]
fn transformers_gives_the_same_scores_from_saved_folders() {
    let Some(python) = std::env::var_os("TALLOW_PYTHON") else {
        eprintln!("SKIPPED: set TALLOW_PYTHON to a Python with torch and transformers");
        return;
    };
    let script = fixtures().join("scores.py");
    let run = |arguments: &[&str], folder: &Path| -> Value {
        let output =
            Command::new(&python).arg(&script).args(arguments).arg(folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    for family in models::BUILTIN {
        for seed in 0..3 {
            let folder = tempfile::tempdir().unwrap();
            let mut config = tiny_decoder(family.name, seed).unwrap().config().clone();
            // With a token that ends texts but does not fill, one that does both, and neither.
            match seed {
                0 => config.name_special_tokens(2, None),
                1 => config.name_special_tokens(2, Some(2)),
                _ => {}
            }
            let init = InitOptions { std: Some(0.2), ..InitOptions::default() };
            let decoder = Decoder::new(config, &init, seed).unwrap();
            let model = ScalarModel::from_decoder(&decoder, HeadInit::Scaled, seed).unwrap();
            model.save_folder(folder.path()).unwrap();
            let worst = check_scores(folder.path(), &run(&["score"], folder.path()));
            eprintln!("{}, seed {seed}, ours there: off by {worst:.1e}", family.name);

            let folder = tempfile::tempdir().unwrap();
            let seed = seed.to_string();
            let reference = run(&["make", family.name, &seed], folder.path());
            let worst = check_scores(folder.path(), &reference);
            eprintln!("{}, seed {seed}, theirs here: off by {worst:.1e}", family.name);
        }
    }
}
