//! Everything in a table keeps the contract of its kind. Environments and verifiers are checked in
//! their own crates.

use serde_json::json;
use tallow::algorithms::{BUILTIN, contract::check_algorithm};
use tallow_policies::contract::{check_decoder, tiny_decoder};

#[test]
fn every_algorithm_keeps_its_contract() {
    assert!(!BUILTIN.is_empty());
    for entry in BUILTIN {
        let algorithm = (entry.build)(json!({})).expect("the defaults are sound");
        assert_eq!(algorithm.name(), entry.name);
        let broken = check_algorithm(&*algorithm).expect("the algorithm works");
        assert!(broken.is_empty(), "{}: {broken:#?}", entry.name);
    }
}

#[test]
fn every_setting_of_grpo_keeps_the_contract() {
    let entry = BUILTIN.iter().find(|it| it.name == "grpo").expect("grpo is built in");
    for normalise in ["std", "center"] {
        for aggregation in ["token_mean", "sequence_mean", "constant_length"] {
            let options = json!({
                "normalise": normalise, "aggregation": aggregation, "clip_high": 0.28,
            });
            let algorithm = (entry.build)(options).expect("the options are sound");
            let broken = check_algorithm(&*algorithm).expect("the algorithm works");
            assert!(broken.is_empty(), "{normalise}, {aggregation}: {broken:#?}");
        }
    }
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
