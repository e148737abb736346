//! Everything in a table keeps the contract of its kind. Environments and verifiers are checked in
//! their own crates.

use serde_json::{Value, json};
use tallow::algorithms::contract::check_algorithm;
use tallow::algorithms::{Algorithm, AlgorithmEntry, BUILTIN};
use tallow_policies::contract::{check_decoder, tiny_decoder};

/// Builds a method of the table; distillation needs a teacher's name, though nobody reads it here.
fn built(entry: &AlgorithmEntry, mut options: Value) -> Algorithm {
    if entry.name == "distill" {
        options["teacher"] = json!("teacher");
    }
    entry.build(options).unwrap_or_else(|fault| panic!("{}: {fault}", entry.name))
}

#[test]
fn every_algorithm_keeps_its_contract() {
    assert!(BUILTIN.len() >= 14);
    for entry in BUILTIN {
        let algorithm = built(entry, json!({}));
        assert_eq!(algorithm.name, entry.name);
        let broken = check_algorithm(&algorithm).expect("the algorithm works");
        assert!(broken.is_empty(), "{}: {broken:#?}", entry.name);
    }
}

#[test]
fn every_combination_that_is_accepted_keeps_the_contract() {
    let knobs = [
        json!({"aggregation": "token_mean"}),
        json!({"aggregation": "sequence_mean"}),
        json!({"aggregation": "sequence_sum"}),
        json!({"aggregation": "constant_length"}),
        json!({"aggregation": "prompt_mean"}),
        json!({"normalise": "group"}),
        json!({"normalise": "batch"}),
        json!({"normalise": "none"}),
        json!({"normalise": "mean"}),
        json!({"kl": {"weight": 0.1}}),
        json!({"kl": {"weight": 0.1, "estimator": "k2", "times_ratio": true}}),
        json!({"kl": {"weight": 0.1, "estimator": "k1", "place": "reward"}}),
        json!({"dual_clip": 3.0}),
        json!({"old_policy": "learner", "correction": {}}),
        json!({"off_policy_mask": 0.1}),
        json!({"reward_clip": [-1.0, 1.0], "length_penalty": 0.1, "overlong": {}}),
    ];
    let mut accepted = 0;
    for entry in BUILTIN {
        for knob in &knobs {
            let mut options = knob.clone();
            if entry.name == "distill" {
                options["teacher"] = json!("teacher");
            }
            let Ok(algorithm) = entry.build(options) else { continue };
            accepted += 1;
            let broken = check_algorithm(&algorithm).expect("the algorithm works");
            assert!(broken.is_empty(), "{} with {knob}: {broken:#?}", entry.name);
        }
    }
    assert!(accepted > 100, "{accepted} combinations were tried");
}

#[test]
fn every_model_family_keeps_the_decoders_contract() {
    assert!(!tallow_policies::models::BUILTIN.is_empty());
    for family in tallow_policies::models::BUILTIN {
        for seed in 0..3 {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let decoder = tiny_decoder(family.name, seed).expect("the family is known");
            if let Err(broken) = check_decoder(&decoder, seed, folder.path()) {
                panic!("{} with seed {seed}: {broken}", family.name);
            }
        }
    }
}
