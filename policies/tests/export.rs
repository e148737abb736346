//! Saved folders in the hands of transformers: same weights, same scaling, same logits.
//!
//! Set `TALLOW_PYTHON` to a Python with torch and transformers to run this; without it the test
//! says so and passes.

#![expect(clippy::unwrap_used, reason = "what a test or bench prepares must succeed")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tallow_policies::{Decoder, InitOptions, ModelConfig, Sizes, TokenId, contract};

/// f32 sums in another order than torch's.
const TOLERANCE: f64 = 2e-5;

/// Asserts that transformers finds the decoder's logits in a folder saved from it.
fn check_export(python: &Path, name: &str, decoder: &Decoder) {
    let folder = tempfile::tempdir().unwrap();
    decoder.save_folder(folder.path()).unwrap();
    let vocab = decoder.config().vocab_size;
    let tokens: Vec<TokenId> = (0..48).map(|at| ((at * at + 5 * at) % vocab) as TokenId).collect();
    let found = contract::logits(decoder, &tokens).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/logits.py");
    let output = Command::new(python)
        .arg(script)
        .arg(folder.path())
        .args(tokens.iter().map(TokenId::to_string))
        .output()
        .unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    let expected: Vec<f64> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found.len(), expected.len(), "{name}");
    let whole = expected.iter().map(|it| it * it).sum::<f64>().sqrt();
    let differences = found.iter().zip(&expected).map(|(a, b)| f64::from(*a) - b);
    let error = differences.map(|it| it * it).sum::<f64>().sqrt();
    assert!(error < TOLERANCE * whole, "{name}: off by {error} of {whole}");
    eprintln!("{name}: off by {:.1e} of the whole", error / whole);
}

fn tiny(family: &str, change: impl Fn(&mut ModelConfig)) -> Decoder {
    let sizes = Sizes {
        vocab: 50,
        hidden: 32,
        intermediate: 48,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 12,
    };
    let mut config = ModelConfig::of_family(family, &sizes).unwrap();
    config.max_position_embeddings = 64;
    config.rope_theta = Some(500.0);
    change(&mut config);
    let init = InitOptions { std: Some(0.3), query_key_bias_std: Some(0.5), residual_std: None };
    Decoder::new(config, &init, 1).unwrap()
}

#[test]
fn transformers_finds_the_same_logits_in_saved_folders() {
    let Some(python) = std::env::var_os("TALLOW_PYTHON").map(PathBuf::from) else {
        eprintln!("SKIPPED: set TALLOW_PYTHON to a Python with torch and transformers");
        return;
    };
    for family in ["llama", "qwen2", "qwen3"] {
        check_export(&python, family, &tiny(family, |_| {}));
        check_export(&python, family, &tiny(family, |it| it.tie_word_embeddings = true));
    }
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16});
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16});
    for (family, scaling) in
        [("qwen2", yarn), ("llama", llama3), ("qwen3", json!({"type": "linear", "factor": 2.0}))]
    {
        let older = tiny(family, |it| it.rope_scaling = Some(scaling.clone()));
        check_export(&python, &format!("{family}, rope_scaling {scaling}"), &older);
        let newer = tiny(family, |it| {
            let mut parameters = scaling.clone();
            parameters["rope_theta"] = json!(500.0);
            it.rope_theta = None;
            it.rope_parameters = Some(parameters);
        });
        check_export(&python, &format!("{family}, rope_parameters {scaling}"), &newer);
    }
    match std::env::var_os("TALLOW_SMOLLM2_GGUF") {
        Some(file) => {
            let decoder = Decoder::from_folder(Path::new(&file)).unwrap();
            check_export(&python, "SmolLM2 from its GGUF file", &decoder);
        }
        None => eprintln!("SKIPPED: set TALLOW_SMOLLM2_GGUF to SmolLM2-135M-Instruct as GGUF"),
    }
}
