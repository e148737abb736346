//! The contract of every built-in family, and the slope of every single parameter element.

#![expect(clippy::unwrap_used, reason = "what a test or bench prepares must succeed")]

use tallow_policies::contract::{check_decoder, tiny_decoder};
use tallow_policies::{Decoder, GradientSet, Keep, PackedSequences, Pass, PolicyError, models};

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

/// Mean negative log-probability of some tokens, and its gradients.
fn loss(decoder: &Decoder) -> (f64, GradientSet) {
    let sequences = PackedSequences::of_lengths(&[3, 1, 4, 1, 5, 9], &[4, 2]);
    let (mut pass, mut gradients) = (Pass::default(), GradientSet::new());
    decoder.forward(&mut pass, &sequences).unwrap();
    let scores = decoder.score(&mut pass, &[0, 1, 2, 3, 4, 5], &[1, 4, 1, 5, 9, 2], 1.0).unwrap();
    decoder.backward(&mut pass, &[-1.0 / 6.0; 6], &mut gradients).unwrap();
    (-scores.logprobs.iter().map(|it| f64::from(*it)).sum::<f64>() / 6.0, gradients)
}

#[test]
fn a_published_snapshot_stays_while_a_clone_follows() {
    let decoder = tiny_decoder("qwen2", 0).unwrap();
    let (snapshot, clone) = (decoder.snapshot().unwrap(), decoder.clone());
    let (before, gradients) = loss(&decoder);
    let mut optimizer = tallow_policies::AdamW::new(Default::default());
    optimizer.step(decoder.parameters(), &gradients, 1e-2).unwrap();
    let (after, _) = loss(&decoder);
    assert!(after < before, "{after} after {before}");
    assert_eq!(loss(&snapshot).0, before);
    assert_eq!(loss(&clone).0, after);
    snapshot.copy_from(&decoder).unwrap();
    assert_eq!(loss(&snapshot).0, after);
}

#[test]
fn a_pass_that_kept_nothing_has_no_gradient() {
    let decoder = tiny_decoder("llama", 0).unwrap();
    let mut pass = Pass::new(Keep::Nothing);
    decoder.forward(&mut pass, &PackedSequences::of_lengths(&[3, 1], &[2])).unwrap();
    decoder.score(&mut pass, &[0], &[1], 1.0).unwrap();
    let error = decoder.backward(&mut pass, &[1.0], &mut GradientSet::new()).unwrap_err();
    assert!(matches!(error, PolicyError::Input { .. }), "{error}");
}

#[test]
fn a_missing_gradient_is_an_error_not_zero() {
    let decoder = tiny_decoder("llama", 0).unwrap();
    let (_, mut gradients) = loss(&decoder);
    gradients.reset();
    let mut optimizer = tallow_policies::AdamW::new(Default::default());
    let error = optimizer.step(decoder.parameters(), &gradients, 1e-2).unwrap_err();
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
