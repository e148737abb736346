//! Weights and optimizer state on disk: round trips, shards, and damage named for what it is.

#![expect(clippy::unwrap_used, reason = "what a test or bench prepares must succeed")]

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use tallow_policies::contract::tiny_decoder;
use tallow_policies::{
    AdamW, AdamWConfig, Decoder, GradientSet, PackedSequences, Pass, PolicyError,
};

fn saved(folder: &Path) -> Decoder {
    let decoder = tiny_decoder("qwen2", 5).unwrap();
    decoder.save_folder(folder).unwrap();
    decoder
}

fn tensors(folder: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Saves a decoder, lets `damage` change its tensors, and gives the error of loading it.
fn error_after(damage: impl Fn(&mut HashMap<String, Tensor>)) -> String {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path());
    let mut tensors = tensors(folder.path());
    damage(&mut tensors);
    candle_core::safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
    Decoder::from_folder(folder.path()).unwrap_err().to_string()
}

const NAME: &str = "model.layers.1.mlp.up_proj.weight";

#[test]
fn a_missing_tensor_is_named() {
    let message = error_after(|tensors| drop(tensors.remove(NAME)));
    assert!(message.contains(NAME) && message.contains("missing"), "{message}");
}

#[test]
fn a_family_that_is_not_known_is_named_before_its_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"architectures":["GPT2LMHeadModel"],"model_type":"gpt2","n_embd":768}"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let message = Decoder::from_folder(folder.path()).unwrap_err().to_string();
    assert!(message.contains("config.json") && message.contains("\"gpt2\""), "{message}");
}

#[test]
fn a_wrong_shape_is_named_with_both_shapes() {
    let message = error_after(|tensors| {
        let short = tensors[NAME].narrow(0, 0, 7).unwrap();
        tensors.insert(NAME.to_owned(), short);
    });
    assert!(message.contains(NAME) && message.contains("[7, 24], expected [40, 24]"), "{message}");
}

#[test]
fn a_nan_is_named_with_its_place() {
    let message = error_after(|tensors| {
        let nan = (tensors[NAME].zeros_like().unwrap() * f64::NAN).unwrap();
        tensors.insert(NAME.to_owned(), nan);
    });
    assert!(message.contains(NAME) && message.contains("NaN at element 0"), "{message}");
}

#[test]
fn an_integer_tensor_is_refused() {
    let message = error_after(|tensors| {
        let integers = tensors[NAME].to_dtype(DType::U32).unwrap();
        tensors.insert(NAME.to_owned(), integers);
    });
    assert!(message.contains(NAME) && message.contains("U32"), "{message}");
}

#[test]
fn a_truncated_file_is_called_so() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path());
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for kept in [0, 7, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..kept]).unwrap();
        let error = Decoder::from_folder(folder.path()).unwrap_err();
        assert!(error.to_string().contains("not a whole safetensors file"), "{kept}: {error}");
    }
}

#[test]
fn an_empty_folder_names_the_config() {
    let folder = tempfile::tempdir().unwrap();
    let error = Decoder::from_folder(folder.path()).unwrap_err();
    assert!(matches!(&error, PolicyError::File { action: "read", .. }), "{error}");
    assert!(error.to_string().contains("config.json"), "{error}");
}

#[test]
fn half_precision_shards_are_read_and_widened() {
    let folder = tempfile::tempdir().unwrap();
    let decoder = saved(folder.path());
    let mut names: Vec<String> = Vec::new();
    let mut shards = [HashMap::new(), HashMap::new()];
    for (name, tensor) in tensors(folder.path()) {
        let dtype = if names.len().is_multiple_of(2) { DType::BF16 } else { DType::F16 };
        shards[names.len() % 2].insert(name.clone(), tensor.to_dtype(dtype).unwrap());
        names.push(name);
    }
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let mut weight_map = serde_json::Map::new();
    for (index, shard) in shards.iter().enumerate() {
        let file = format!("model-{index}.safetensors");
        candle_core::safetensors::save(shard, folder.path().join(&file)).unwrap();
        weight_map.extend(shard.keys().map(|name| (name.clone(), file.clone().into())));
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": weight_map });
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();

    let loaded = Decoder::from_folder(folder.path()).unwrap();
    for (name, variable) in decoder.parameters().iter() {
        let shard = shards.iter().find_map(|shard| shard.get(name)).unwrap();
        let widened = shard.to_dtype(DType::F32).unwrap();
        assert_eq!(floats(&widened), floats(loaded.parameters().get(name).unwrap()), "{name}");
        assert_eq!(widened.dims(), variable.dims());
    }
}

/// Gradients of the mean negative log-probability of some tokens, added `times` times.
fn gradients_added(decoder: &Decoder, times: usize) -> GradientSet {
    let sequences = PackedSequences::of_lengths(&[1, 2, 3, 4], &[4]);
    let (mut pass, mut gradients) = (Pass::default(), GradientSet::new());
    for _ in 0..times {
        decoder.forward(&mut pass, &sequences).unwrap();
        decoder.score(&mut pass, &[0, 1, 2, 3], &[2, 3, 4, 5], 1.0).unwrap();
        decoder.backward(&mut pass, &[-0.25; 4], &mut gradients).unwrap();
    }
    gradients
}

fn gradients(decoder: &Decoder) -> GradientSet {
    gradients_added(decoder, 1)
}

#[test]
fn a_resumed_optimizer_continues_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("optimizer.safetensors");
    let config = AdamWConfig { weight_decay: 0.1, ..Default::default() };
    let decoder = tiny_decoder("llama", 1).unwrap();
    let mut optimizer = AdamW::new(config.clone());
    for _ in 0..3 {
        optimizer.step(decoder.parameters(), &gradients(&decoder), 1e-2).unwrap();
    }
    optimizer.save(&state).unwrap();
    let resumed = decoder.snapshot().unwrap();
    let mut resumed_optimizer = AdamW::load(config, &state).unwrap();
    for _ in 0..3 {
        let report = optimizer.step(decoder.parameters(), &gradients(&decoder), 1e-2).unwrap();
        let again =
            resumed_optimizer.step(resumed.parameters(), &gradients(&resumed), 1e-2).unwrap();
        assert_eq!(report, again);
    }
    for ((name, one), (_, other)) in decoder.parameters().iter().zip(resumed.parameters().iter()) {
        assert_eq!(floats(one), floats(other), "{name}");
    }
}

#[test]
fn a_nan_gradient_is_named_and_changes_nothing() {
    let decoder = tiny_decoder("llama", 1).unwrap();
    let before = decoder.snapshot().unwrap();
    let mut poisoned = gradients(&decoder);
    poisoned.scale(f32::NAN);
    let mut optimizer = AdamW::new(AdamWConfig::default());
    let error = optimizer.step(decoder.parameters(), &poisoned, 1e-2).unwrap_err();
    assert!(matches!(error, PolicyError::Gradient { .. }), "{error}");
    assert_eq!(optimizer.steps_taken(), 0);
    for ((name, one), (_, other)) in decoder.parameters().iter().zip(before.parameters().iter()) {
        assert_eq!(floats(one), floats(other), "{name}");
    }
}

#[test]
fn micro_batches_add_up() {
    let decoder = tiny_decoder("llama", 1).unwrap();
    let once = gradients(&decoder);
    let mut twice = gradients_added(&decoder, 2);
    twice.scale(0.5);
    for ((name, one), (_, other)) in once.iter().zip(twice.iter()) {
        let (one, other) = (one.iter(), other.iter());
        let worst = one.zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-7, "{name}: {worst}");
    }
}
