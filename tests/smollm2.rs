//! SmolLM2-135M-Instruct against numbers recorded with torch and transformers: chat template, token
//! ids, log-probabilities and greedy continuations.
//!
//! The weights (540 MB) are not in the repository. Set `TALLOW_SMOLLM2` to a folder with the f32
//! model to run this, and `TALLOW_SMOLLM2_GGUF` to the file that it was converted from; without
//! them the tests say so and pass.

#[path = "../policies/tests/emulated/mod.rs"]
mod emulated;
mod support;

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use tallow::learner::Learner;
use tallow::learner::batch::Sequence;
use tallow::model::ModelState;
use tallow::renderer::Renderer;
use tallow_policies::gpu::Precision;
use tallow_policies::{Engine, Request, SamplingParams, TokenId};
use tallow_verifiers::Message;

fn reference() -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/smollm2.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("fixture")).expect("JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("list").iter().map(|it| it.as_f64().expect("number")).collect()
}

fn ids(value: &Value) -> Vec<TokenId> {
    value.as_array().expect("list").iter().map(|it| it.as_u64().expect("id") as TokenId).collect()
}

#[test]
fn smollm2_renders_scores_and_continues_as_in_transformers() {
    let Some(folder) = std::env::var_os("TALLOW_SMOLLM2").map(PathBuf::from) else {
        support::skipped("set TALLOW_SMOLLM2 to a folder with SmolLM2-135M-Instruct in f32");
        return;
    };
    let state = ModelState::load(&folder).expect("model loads");
    let tokenizer = state.tokenizer().expect("tokenizer");
    let decoder = state.decoder.expect("weights");
    let renderer = Renderer::new(Arc::clone(&tokenizer)).expect("template");
    let reference = reference();
    for case in reference["tokenizer_cases"].as_array().expect("cases") {
        let text = case["text"].as_str().expect("text");
        assert_eq!(tokenizer.encode(text).expect("ids"), ids(&case["ids"]), "{text:?}");
    }
    let mut engine = Engine::new(&decoder, Arc::clone(&tokenizer), 4).expect("engine");
    for case in reference["cases"].as_array().expect("cases") {
        let name = case["name"].as_str().expect("name");
        let prompt = ids(&case["prompt_ids"]);
        if let Some(messages) = case["messages"].as_array() {
            let messages: Vec<Message> =
                messages.iter().map(|it| serde_json::from_value(it.clone()).expect("m")).collect();
            assert_eq!(renderer.prompt(&messages).expect("rendered"), prompt, "{name}");
        }
        let all = vec![true; prompt.len()];
        let sequence = Sequence::new(prompt.clone(), &all);
        let scored = Learner::score(&decoder, &[sequence], 1.0).expect("scored");
        for (got, want) in scored.iter().zip(numbers(&case["prompt_token_logprobs"])) {
            assert!((f64::from(*got) - want).abs() < 1e-3, "{name}: {got} instead of {want}");
        }
        let greedy = ids(&case["greedy_ids"]);
        let params =
            SamplingParams { temperature: 0.0, max_tokens: greedy.len(), ..Default::default() };
        let request = Request { id: 0, prompt: prompt.into(), params: Arc::new(params), seed: 0 };
        let reply = engine.generate(vec![request]).expect("sampled").remove(0);
        let margins = numbers(&case["greedy_top1_minus_top2_logit"]);
        for (position, (got, want)) in reply.tokens.iter().zip(&greedy).enumerate() {
            if got != want {
                // Where two tokens are this close, rounding decides; what follows then differs.
                assert!(margins[position] < 1e-3, "{name}: token {position} is {got}, not {want}");
                break;
            }
        }
        let first = numbers(&case["greedy_logprobs_first5"]);
        for (got, want) in reply.logprobs.iter().zip(first) {
            assert!((f64::from(*got) - want).abs() < 1e-3, "{name}: {got} instead of {want}");
        }
    }
}

/// The kernels of a GPU, run on the CPU, at a real model's sizes; slow, so a few tokens only.
#[test]
fn smollm2_continues_as_in_transformers_on_an_emulated_gpu() {
    let Some(folder) = std::env::var_os("TALLOW_SMOLLM2").map(PathBuf::from) else {
        support::skipped("set TALLOW_SMOLLM2 to a folder with SmolLM2-135M-Instruct in f32");
        return;
    };
    let state = ModelState::load(&folder).expect("model loads");
    let tokenizer = state.tokenizer().expect("tokenizer");
    let decoder = state.decoder.expect("weights");
    let reference = reference();
    let cases = reference["cases"].as_array().expect("cases");
    let shortest = |it: &&Value| it["prompt_ids"].as_array().expect("ids").len();
    let case = cases.iter().min_by_key(shortest).expect("a case");
    // torch in bf16 is off by up to 0.26 nats on this prompt, 0.06 on average.
    for (precision, most) in [(Precision::F32, 1e-3), (Precision::Bf16, 0.26)] {
        let Some(device) = emulated::device(precision) else { return };
        let decoder = decoder.on(&device).expect("a device");
        let prompt = ids(&case["prompt_ids"]);
        let sequence = Sequence::new(prompt.clone(), &vec![true; prompt.len()]);
        let scored = Learner::score(&decoder, &[sequence], 1.0).expect("scored");
        for (got, want) in scored.iter().zip(numbers(&case["prompt_token_logprobs"])) {
            let apart = (f64::from(*got) - want).abs();
            assert!(apart < most, "{precision:?}: {got} instead of {want}");
        }
        let params = SamplingParams { temperature: 0.0, max_tokens: 5, ..Default::default() };
        let request = Request { id: 0, prompt: prompt.into(), params: Arc::new(params), seed: 0 };
        let mut engine = Engine::new(&decoder, Arc::clone(&tokenizer), 1).expect("engine");
        let reply = engine.generate(vec![request]).expect("sampled").remove(0);
        assert_eq!(reply.tokens, ids(&case["greedy_ids"])[..5], "{precision:?}");
        for (got, want) in reply.logprobs.iter().zip(numbers(&case["greedy_logprobs_first5"])) {
            let apart = (f64::from(*got) - want).abs();
            assert!(apart < most, "{precision:?}: {got} instead of {want}");
        }
    }
}

#[test]
fn the_gguf_file_gives_the_model_that_it_was_converted_to() {
    let path = |name| std::env::var_os(name).map(PathBuf::from);
    let (Some(folder), Some(file)) = (path("TALLOW_SMOLLM2"), path("TALLOW_SMOLLM2_GGUF")) else {
        eprintln!(
            "SKIPPED: set TALLOW_SMOLLM2 to a folder with SmolLM2-135M-Instruct in f32, and \
             TALLOW_SMOLLM2_GGUF to the GGUF file that it was converted from"
        );
        return;
    };
    let expected = ModelState::load(&folder).expect("the folder loads");
    let found = ModelState::load(&file).expect("the file loads");
    let saved = tempfile::tempdir().expect("a folder");
    found.save(saved.path(), None).expect("saved");
    let again = ModelState::load(saved.path()).expect("the saved folder loads");
    let decoder = expected.decoder.as_ref().expect("weights");
    let tokenizer = expected.tokenizer().expect("a tokenizer");
    let renderer = Renderer::new(Arc::clone(&tokenizer)).expect("a template");
    let prose = std::fs::read_to_string(file!()).expect("this file");
    let messages = [Message::system("Be brief."), Message::user("12 + 345 = ?")];
    for state in [found, again] {
        let other = state.decoder.as_ref().expect("weights");
        assert_eq!(other.config(), decoder.config());
        let values = |it: &candle_core::Tensor| -> Vec<f32> {
            it.flatten_all().and_then(|it| it.to_vec1()).expect("values")
        };
        assert_eq!(other.parameters().len(), decoder.parameters().len());
        for (name, variable) in decoder.parameters().iter() {
            let same = other.parameters().get(name).expect("the same names");
            assert!(values(variable) == values(same), "{name} differs");
        }
        let other = state.tokenizer().expect("a tokenizer");
        let mut texts: Vec<&str> =
            prose.lines().chain([prose.as_str(), "  naïve 日本 \u{1F600}\r\n\t12345"]).collect();
        let reference = reference();
        texts.extend(
            reference["tokenizer_cases"]
                .as_array()
                .expect("cases")
                .iter()
                .map(|it| it["text"].as_str().expect("text")),
        );
        for text in texts {
            let ids = tokenizer.encode(text).expect("ids");
            assert_eq!(other.encode(text).expect("ids"), ids, "{text:?}");
            assert_eq!(other.decode(&ids).expect("text"), tokenizer.decode(&ids).expect("text"));
        }
        assert_eq!(other.end_ids(), tokenizer.end_ids());
        assert_eq!(other.pad_id(), tokenizer.pad_id());
        assert_eq!(other.vocabulary_size(), tokenizer.vocabulary_size());
        assert_eq!(other.chat_templates(), tokenizer.chat_templates());
        let other = Renderer::new(other).expect("a template");
        let prompt = renderer.prompt(&messages).expect("ids");
        assert_eq!(other.prompt(&messages).expect("ids"), prompt);
    }
}
