//! Low-rank adapters: the decoder's contract with them, what stays frozen, and their files.

#![expect(clippy::unwrap_used, reason = "what a test or bench prepares must succeed")]

use std::path::Path;

use candle_core::{Device, Tensor};
use tallow_policies::contract::{check_decoder, logits, tiny_decoder};
use tallow_policies::{
    AdamW, Decoder, GradientSet, LoraConfig, PackedSequences, Parameters, Pass, models,
};

fn config(targets: &[&str]) -> LoraConfig {
    LoraConfig { rank: 3, alpha: 6.0, targets: targets.iter().map(|it| (*it).to_owned()).collect() }
}

const ALL: [&str; 7] = tallow_policies::lora::TARGETS;

/// Adapters whose B is not zero, as after some training.
fn adapted(decoder: &Decoder, targets: &[&str], seed: u64) -> Decoder {
    let adapted = decoder.with_adapters(&config(targets), seed).unwrap();
    for (index, (name, variable)) in adapted.trainable().iter().enumerate() {
        if name.ends_with("lora_B.weight") {
            let at = |it: usize| ((it + 31 * index) as f32 * 0.7).sin() * 0.2;
            let values: Vec<f32> = (0..variable.elem_count()).map(at).collect();
            variable
                .set(&Tensor::from_vec(values, variable.dims(), &Device::Cpu).unwrap())
                .unwrap();
        }
    }
    adapted
}

fn bits(parameters: &Parameters) -> Vec<(String, Vec<f32>)> {
    let flat = |(name, variable): (&str, &candle_core::Var)| {
        (name.to_owned(), variable.flatten_all().unwrap().to_vec1().unwrap())
    };
    parameters.iter().map(flat).collect()
}

fn loss(decoder: &Decoder) -> (f64, GradientSet) {
    let sequences = PackedSequences::of_lengths(&[3, 1, 4, 1, 5, 9], &[6]);
    let (mut pass, mut gradients) = (Pass::default(), GradientSet::new());
    decoder.forward(&mut pass, &sequences).unwrap();
    let scores = decoder.score(&mut pass, &[0, 1, 2, 3, 4], &[1, 4, 1, 5, 9], 1.0).unwrap();
    decoder.backward(&mut pass, &[-0.2; 5], &mut gradients).unwrap();
    (-0.2 * scores.logprobs.iter().map(|it| f64::from(*it)).sum::<f64>(), gradients)
}

#[test]
fn every_family_keeps_the_contract_with_adapters() {
    for family in models::BUILTIN {
        for targets in [&ALL[..], &["q_proj", "down_proj"]] {
            let folder = tempfile::tempdir().unwrap();
            let decoder = adapted(&tiny_decoder(family.name, 1).unwrap(), targets, 2);
            assert_eq!(decoder.trainable().len(), 2 * 2 * targets.len(), "two layers, A and B");
            check_decoder(&decoder, 1, folder.path())
                .unwrap_or_else(|error| panic!("{} with {targets:?}: {error}", family.name));
        }
    }
}

#[test]
fn training_adapters_lowers_the_loss_and_moves_nothing_else() {
    let base = tiny_decoder("qwen2", 0).unwrap();
    let decoder = base.with_adapters(&config(&ALL), 1).unwrap();
    let tokens = [3, 1, 4, 1, 5];
    assert_eq!(logits(&decoder, &tokens).unwrap(), logits(&base, &tokens).unwrap());
    let frozen = bits(base.parameters());
    let published = decoder.snapshot().unwrap();
    let (before, _) = loss(&decoder);
    let mut optimizer = AdamW::new(Default::default());
    for _ in 0..20 {
        let (_, gradients) = loss(&decoder);
        optimizer.step(decoder.trainable(), &gradients, 1e-2).unwrap();
    }
    let (after, _) = loss(&decoder);
    assert!(after < 0.5 * before, "{after} after {before}");
    assert_eq!(bits(decoder.parameters()), frozen);
    assert_eq!(loss(&published).0, before, "a snapshot stays");
    assert_eq!(loss(&decoder.base().unwrap()).0, before, "the model without them stays");
    published.copy_from(&decoder).unwrap();
    assert_eq!(loss(&published).0, after);
    // The export is the same model without adapters.
    let merged = decoder.merged().unwrap();
    assert!(merged.adapters().is_none());
    assert_eq!(logits(&merged, &tokens).unwrap(), logits(&decoder, &tokens).unwrap());
    assert_eq!(bits(base.parameters()), frozen, "merging writes to a copy");
}

#[test]
fn adapters_come_back_from_their_files() {
    let base = tiny_decoder("llama", 0).unwrap();
    let decoder = adapted(&base, &["v_proj", "gate_proj"], 1);
    let folder = tempfile::tempdir().unwrap();
    decoder.save_adapter(folder.path(), "some/base").unwrap();
    let loaded = base.with_adapter_folder(folder.path()).unwrap();
    assert_eq!(bits(loaded.trainable()), bits(decoder.trainable()));
    let config = std::fs::read_to_string(folder.path().join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["base_model_name_or_path"], "some/base");
    let other = base.with_adapters(&self::config(&ALL), 1).unwrap();
    let error = loaded.copy_from(&other).unwrap_err().to_string();
    assert!(error.contains("different adapters"), "{error}");
}

/// Largest difference, relative to the largest value.
fn apart(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let size = expected.iter().fold(0.0_f32, |size, it| size.max(it.abs()));
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / size
}

#[test]
fn an_adapter_that_peft_saved_gives_its_logits_and_gradients() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let base = Decoder::from_folder(&fixtures.join("tiny-qwen2")).unwrap();
    let decoder = base.with_adapter_folder(&fixtures.join("lora")).unwrap();
    let path = fixtures.join("lora/reference.safetensors");
    let mut reference = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let floats = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let ids: Vec<i64> = reference.remove("ids").unwrap().to_vec1().unwrap();
    let ids: Vec<u32> = ids.into_iter().map(|it| it as u32).collect();
    let expected = floats(reference.remove("logits").unwrap());
    let error = apart(&logits(&decoder, &ids).unwrap(), &expected);
    assert!(error < 1e-5, "logits are {error} apart");

    let scored = ids.len() - 1;
    let rows: Vec<u32> = (0..scored as u32).collect();
    let sequences = PackedSequences::of_lengths(&ids, &[ids.len()]);
    let (mut pass, mut gradients) = (Pass::default(), GradientSet::new());
    decoder.forward(&mut pass, &sequences).unwrap();
    decoder.score(&mut pass, &rows, &ids[1..], 1.0).unwrap();
    decoder.backward(&mut pass, &vec![-1.0 / scored as f32; scored], &mut gradients).unwrap();
    assert_eq!(gradients.iter().count(), reference.len());
    for (name, expected) in reference {
        let error = apart(gradients.get(&name).unwrap(), &floats(expected));
        assert!(error < 1e-4, "the gradient of {name} is {error} apart");
    }
}

/// Changes one key of an adapter's settings and tells what is then said of it.
fn refusal(folder: &Path, base: &Decoder, key: &str, value: serde_json::Value) -> String {
    let path = folder.join("adapter_config.json");
    let sound = std::fs::read_to_string(&path).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&sound).unwrap();
    config[key] = value;
    std::fs::write(&path, config.to_string()).unwrap();
    let error = base.with_adapter_folder(folder).unwrap_err().to_string();
    std::fs::write(&path, sound).unwrap();
    error
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    use serde_json::json;
    let base = tiny_decoder("llama", 0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let refused = |key: &str, value| refusal(folder.path(), &base, key, value);
    adapted(&base, &["q_proj", "up_proj"], 1).save_adapter(folder.path(), "").unwrap();
    for (key, value, told) in [
        ("peft_type", json!("IA3"), "peft_type is \"IA3\", expected \"LORA\""),
        ("use_rslora", json!(true), "use_rslora is true"),
        ("use_dora", json!(true), "use_dora is true"),
        ("modules_to_save", json!(["lm_head"]), "modules_to_save is [\"lm_head\"]"),
        ("exclude_modules", json!(["q_proj"]), "exclude_modules is [\"q_proj\"]"),
        ("init_lora_weights", json!("pissa"), "init_lora_weights is \"pissa\""),
        ("bias", json!("all"), "bias is \"all\", expected \"none\""),
        ("target_modules", json!(["q_proj", "conv"]), "no adapter can stand beside conv"),
        ("target_modules", json!("q.*"), "target_modules is \"q.*\", expected a list"),
        (
            "target_modules",
            json!(["q_proj", "o_proj", "up_proj"]),
            "o_proj.lora_A.weight is missing",
        ),
        ("target_modules", json!(["q_proj"]), "up_proj.lora_A.weight belongs to no adapted map"),
        ("r", json!(0), "an adapter of rank 0"),
        ("r", json!(4), "has shape [3, 24], expected [4, 24]"),
        ("lora_alpha", json!("much"), "expected f64"),
    ] {
        let error = refused(key, value);
        assert!(error.contains(told), "{key}: {error}");
    }
    std::fs::write(folder.path().join("adapter_model.safetensors"), b"cut").unwrap();
    let error = base.with_adapter_folder(folder.path()).unwrap_err().to_string();
    assert!(error.contains("not a whole safetensors file"), "{error}");
    std::fs::remove_file(folder.path().join("adapter_config.json")).unwrap();
    let error = base.with_adapter_folder(folder.path()).unwrap_err().to_string();
    assert!(error.contains("adapter_config.json"), "{error}");
}
