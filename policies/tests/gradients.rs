//! The contract of every built-in family, and the slope of every single parameter element.

#![expect(clippy::unwrap_used, reason = "what a test or bench prepares must succeed")]

use candle_core::Tensor;
use tallow_policies::contract::{check_decoder, tiny_decoder};
use tallow_policies::{Decoder, GradientSet, PolicyError, TokenId, models};

#[test]
fn every_family_keeps_the_contract() {
    for family in models::BUILTIN {
        for seed in 0..3 {
            let folder = tempfile::tempdir().unwrap();
            let decoder = tiny_decoder(family.name, seed).unwrap();
            check_decoder(&decoder, seed, folder.path())
                .unwrap_or_else(|error| panic!("{} with seed {seed}: {error}", family.name));
        }
    }
}

#[test]
fn a_tied_head_adds_to_the_gradient_of_the_embedding() {
    let mut config = tiny_decoder("llama", 0).unwrap().config().clone();
    config.tie_word_embeddings = true;
    let folder = tempfile::tempdir().unwrap();
    let init = tallow_policies::InitOptions { std: Some(0.3), ..Default::default() };
    let decoder = Decoder::new(config, &init, 3).unwrap();
    assert!(decoder.parameters().get("lm_head.weight").is_none());
    check_decoder(&decoder, 3, folder.path()).unwrap();
}

#[test]
fn biases_where_llama_configures_them_keep_the_contract() {
    let mut config = tiny_decoder("llama", 0).unwrap().config().clone();
    config.attention_bias = Some(true);
    let folder = tempfile::tempdir().unwrap();
    let init = tallow_policies::InitOptions { std: Some(0.3), ..Default::default() };
    let decoder = Decoder::new(config, &init, 4).unwrap();
    assert!(decoder.parameters().get("model.layers.1.self_attn.o_proj.bias").is_some());
    check_decoder(&decoder, 4, folder.path()).unwrap();
}

fn loss(decoder: &Decoder) -> Tensor {
    let tokens: [TokenId; 6] = [3, 1, 4, 1, 5, 9];
    let hidden = decoder.hidden(&tokens, &[4, 2]).unwrap();
    let scores = decoder.token_logprobs(&hidden, &[1, 4, 1, 5, 9, 2], 1.0).unwrap();
    scores.logprobs.mean_all().unwrap().neg().unwrap()
}

#[test]
fn a_published_snapshot_stays_while_a_frozen_twin_follows() {
    let decoder = tiny_decoder("qwen2", 0).unwrap();
    let (snapshot, frozen) = (decoder.snapshot().unwrap(), decoder.frozen());
    let before: f32 = loss(&decoder).to_scalar().unwrap();
    let store = loss(&decoder).backward().unwrap();
    let gradients = GradientSet::from_store(decoder.parameters(), &store).unwrap();
    let mut optimizer = tallow_policies::AdamW::new(Default::default());
    optimizer.step(decoder.parameters(), &gradients, 1e-2).unwrap();
    let after: f32 = loss(&decoder).to_scalar().unwrap();
    assert!(after < before, "{after} after {before}");
    assert_eq!(loss(&snapshot).to_scalar::<f32>().unwrap(), before);
    assert_eq!(loss(&frozen).to_scalar::<f32>().unwrap(), after);
    snapshot.copy_from(&decoder).unwrap();
    assert_eq!(loss(&snapshot).to_scalar::<f32>().unwrap(), after);
}

#[test]
fn a_gradient_through_a_frozen_decoder_is_missing_not_zero() {
    let decoder = tiny_decoder("llama", 0).unwrap();
    let store = loss(&decoder.frozen()).backward().unwrap();
    let error = GradientSet::from_store(decoder.parameters(), &store).unwrap_err();
    assert!(matches!(error, PolicyError::Gradient { .. }), "{error}");
}

#[test]
fn fresh_weights_depend_on_seed_and_name_only() {
    let values = |seed, layers| {
        let mut config = tiny_decoder("qwen3", 0).unwrap().config().clone();
        config.num_hidden_layers = layers;
        let decoder = Decoder::new(config, &Default::default(), seed).unwrap();
        let weight = decoder.parameters().get("model.layers.0.mlp.up_proj.weight").unwrap();
        weight.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(values(1, 1), values(1, 2));
    assert_ne!(values(1, 1), values(2, 1));
}
