//! Stretched contexts against transformers: the frequencies of many configs, and the logits of a
//! tiny model under each kind of scaling (see fixtures/rope/make.py).

#![expect(clippy::unwrap_used, reason = "what a test or bench prepares must succeed")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::Value;
use tallow_policies::{Decoder, ModelConfig, TokenId, contract};

/// The reference computes in f32, and prints eight digits.
const FREQUENCY_TOLERANCE: f64 = 1e-6;

/// f32 sums in another order than torch's.
const LOGIT_TOLERANCE: f64 = 2e-5;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rope")
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join(name)).unwrap()).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f64> {
    let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().map(f64::from).collect()
}

#[test]
fn frequencies_and_attention_factors_match() {
    for case in json("frequencies.json").as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let config: ModelConfig = serde_json::from_value(case["config"].clone()).unwrap();
        let (found, attention_factor) = config.rope_frequencies().unwrap();
        let expected: Vec<f64> = serde_json::from_value(case["inv_freq"].clone()).unwrap();
        assert_eq!(found.len(), expected.len(), "{name}");
        for (pair, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let error = (found / expected - 1.0).abs();
            assert!(error < FREQUENCY_TOLERANCE, "{name}, pair {pair}: {found}, not {expected}");
        }
        let expected = case["attention_scaling"].as_f64().unwrap();
        assert!((attention_factor - expected).abs() < 1e-12, "{name}: {attention_factor}");
    }
}

#[test]
fn logits_match_under_every_kind_of_scaling() {
    let reference = json("logits.json");
    let tokens: Vec<TokenId> = serde_json::from_value(reference["tokens"].clone()).unwrap();
    let expected: HashMap<String, Tensor> =
        candle_core::safetensors::load(fixtures().join("logits.safetensors"), &Device::Cpu)
            .unwrap();
    let mut plain = None;
    for case in reference["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), case["config"].to_string()).unwrap();
        let weights = "model.safetensors";
        std::fs::copy(fixtures().join(weights), folder.path().join(weights)).unwrap();
        let decoder = Decoder::from_folder(folder.path()).unwrap();
        let logits = contract::logits(&decoder, &tokens).unwrap();
        let found: Vec<f64> = logits.into_iter().map(f64::from).collect();
        let expected = floats(&expected[name]);
        let length =
            |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        let whole = length(&mut expected.iter().copied());
        let error = length(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
        assert!(error < LOGIT_TOLERANCE * whole, "{name}: off by {error} of {whole}");
        // A scaling that did nothing would pass unseen.
        match &plain {
            None => plain = Some(found),
            Some(plain) => {
                let change = length(&mut found.iter().zip(plain).map(|(a, b)| a - b));
                assert!(change > 0.01 * whole, "{name} changes the logits by {change} of {whole}");
            }
        }
    }
}
