//! Numbers that must agree: sampler and learner, one micro-batch and many, one slot and many.

#[path = "../policies/tests/emulated/mod.rs"]
mod emulated;

use std::sync::Arc;

use serde_json::json;
use tallow::algorithms::{self, Algorithm};
use tallow::learner::batch::Sequence;
use tallow::learner::update::UpdateSettings;
use tallow::learner::{Beside, Learner, OptimizerConfig};
use tallow::model::ModelSettings;
use tallow::renderer::Renderer;
use tallow::rollout::trajectory::{ScoredGroup, ScoredTrajectory, Trajectory, Turn};
use tallow_envs::{BuildContext, Environments, Seed, Split};
use tallow_policies::contract;
use tallow_policies::gpu::{Device, Precision};
use tallow_policies::{
    AdamWConfig, Completion, Decoder, Engine, InitOptions, LoraConfig, Request, SamplingParams,
    TokenId, Tokenizer,
};
use tallow_verifiers::{Transcript, Verdict};

/// f32 sums in another order differ by this much, relative to their size.
const AGREEMENT: f64 = 1e-5;

const TEMPERATURE: f64 = 0.8;
const MAX_TOKENS: usize = 12;
const GROUP: usize = 6;

/// A policy and the groups it played: prompts of 2 to 7 digits, replies of 1 to 12 tokens.
struct Scene {
    decoder: Decoder,
    tokenizer: Arc<Tokenizer>,
    prompts: Vec<Arc<[TokenId]>>,
    groups: Vec<ScoredGroup>,
}

impl Scene {
    fn new(family: &str) -> Self {
        let tokenizer = Tokenizer::of_characters(["0123456789+=?"], None).expect("an alphabet");
        let tokenizer = Arc::new(tokenizer);
        let settings = ModelSettings {
            family: family.into(),
            layers: 2,
            hidden: 32,
            heads: 4,
            kv_heads: Some(2),
            context: 40,
            // Wide enough that replies are not uniform noise.
            init: InitOptions { std: Some(0.2), ..InitOptions::default() },
            ..ModelSettings::default()
        };
        let config = settings.config(tokenizer.vocabulary_size()).expect("sound sizes");
        let decoder = Decoder::new(config, &settings.init, 5).expect("a decoder");
        let renderer = Renderer::new(Arc::clone(&tokenizer)).expect("no template");
        let mut scene = Self { decoder, tokenizer, prompts: Vec::new(), groups: Vec::new() };
        let environments = Environments::builtin();
        for digits in 2..8 {
            let context = BuildContext { folder: ".".into(), seed: Seed(1) };
            let environment = environments
                .build("digit_sum", json!({ "digits": digits }), &context)
                .expect("the environment is built in");
            let task = Arc::new(environment.task(Split::Train, 0).expect("a first task"));
            scene.prompts.push(renderer.prompt(&task.prompt).expect("a prompt").into());
            scene.groups.push(ScoredGroup {
                task,
                members: Vec::new(),
                environment_errors: Vec::new(),
                verifier_errors: Vec::new(),
            });
        }
        let params = SamplingParams {
            temperature: TEMPERATURE,
            max_tokens: MAX_TOKENS,
            ..SamplingParams::default()
        };
        let completions = scene.completions(&params, scene.prompts.len() * GROUP);
        for (index, completion) in completions.into_iter().enumerate() {
            let (group, member) = (index / GROUP, index % GROUP);
            let scored = scene.scored(group, member, completion);
            scene.groups[group].members.push(scored);
        }
        scene
    }

    /// Replies to every prompt, [`GROUP`] each, sampled in `slots` slots.
    fn completions(&self, params: &SamplingParams, slots: usize) -> Vec<Completion> {
        let params = Arc::new(params.clone());
        let mut engine =
            Engine::new(&self.decoder, Arc::clone(&self.tokenizer), slots).expect("an engine");
        let requests = (0..self.prompts.len() * GROUP)
            .map(|it| Request {
                id: it as u64,
                prompt: Arc::clone(&self.prompts[it / GROUP]),
                params: Arc::clone(&params),
                seed: it as u64,
            })
            .collect();
        engine.generate(requests).expect("replies")
    }

    /// A reply with a reward that differs within its group.
    fn scored(&self, group: usize, member: usize, completion: Completion) -> ScoredTrajectory {
        let prompt = &self.prompts[group];
        let mut tokens = prompt.to_vec();
        tokens.extend_from_slice(&completion.tokens);
        let turn = Turn {
            range: prompt.len()..tokens.len(),
            logprobs: completion.logprobs,
            kept_masses: completion.kept_masses,
        };
        let trajectory = Trajectory {
            member,
            tokens,
            turns: vec![turn],
            transcript: Transcript::of_reply(self.groups[group].task.prompt.clone(), ""),
            versions: 0..=0,
        };
        let reward = ((member * 7 + group * 3) % 5) as f32 / 4.0;
        ScoredTrajectory { trajectory, verdict: Verdict::correct(), reward }
    }

    fn members(&self) -> impl Iterator<Item = &Trajectory> {
        self.groups.iter().flat_map(|it| &it.members).map(|it| &it.trajectory)
    }

    fn sequences(&self) -> Vec<Sequence> {
        let sequence = |it: &Trajectory| {
            Sequence::with_stretches(it.tokens.clone(), it.turns.iter().map(|it| it.range.clone()))
        };
        self.members().map(sequence).collect()
    }

    fn learner(&self, micro_batch_tokens: usize, beside: Beside) -> Learner {
        self.learner_with(micro_batch_tokens, beside, None)
    }

    fn learner_with(
        &self,
        micro_batch_tokens: usize,
        beside: Beside,
        lora: Option<LoraConfig>,
    ) -> Learner {
        let config = OptimizerConfig {
            lora,
            learning_rate: 1e-3,
            // AdamW divides a gradient by its size; with the usual eps a gradient of rounding noise
            // alone would move its weight by a whole step, in either direction.
            adamw: AdamWConfig { eps: 1e-3, ..AdamWConfig::default() },
            micro_batch_tokens,
            ..OptimizerConfig::default()
        };
        let decoder = self.decoder.snapshot().expect("a copy");
        Learner::new(decoder, config, 10, beside, Seed(1)).expect("a learner")
    }
}

/// GRPO without a KL unless the options say otherwise.
fn grpo(mut options: serde_json::Value) -> Algorithm {
    if options.get("kl").is_none() {
        options["kl"] = json!({ "weight": 0.0 });
    }
    let entry = algorithms::BUILTIN.iter().find(|it| it.name == "grpo").expect("grpo is built in");
    entry.build(options).expect("sound options")
}

/// Settings of an update of the policy of version `newest`.
fn settings(epochs: usize, minibatches: usize, newest: u64) -> UpdateSettings {
    UpdateSettings {
        epochs,
        minibatches,
        temperature: TEMPERATURE,
        max_tokens: MAX_TOKENS,
        newest,
        seed: Seed(1),
    }
}

/// Asserts that two numbers agree, relative to their size but never finer than to `floor`.
fn check_close(one: f64, other: f64, floor: f64, what: &str) {
    let scale = one.abs().max(other.abs()).max(floor);
    assert!((one - other).abs() <= AGREEMENT * scale, "{what}: {one} and {other}");
}

/// Asserts that all weights agree, tensor by tensor, relative to the tensor's length.
fn check_same_weights(one: &Decoder, other: &Decoder, what: &str) {
    let weights = |it: &Decoder| -> Vec<(String, Vec<f32>)> {
        let flat = |(name, tensor): (&str, &candle_core::Var)| {
            let values = tensor.flatten_all().and_then(|it| it.to_vec1()).expect("f32 values");
            (name.to_owned(), values)
        };
        it.parameters().iter().map(flat).collect()
    };
    for ((name, one), (_, other)) in weights(one).iter().zip(&weights(other)) {
        let length = |values: &mut dyn Iterator<Item = f32>| {
            values.map(|it| f64::from(it).powi(2)).sum::<f64>().sqrt()
        };
        let apart = length(&mut one.iter().zip(other).map(|(one, other)| one - other));
        let size = length(&mut one.iter().copied()).max(1e-3);
        assert!(apart <= AGREEMENT * size, "{what}: {name} is {apart} apart of {size}");
    }
}

#[test]
fn the_learner_finds_the_log_probabilities_the_sampler_recorded() {
    for family in ["llama", "qwen2", "qwen3"] {
        let scene = Scene::new(family);
        let lengths: std::collections::BTreeSet<usize> =
            scene.members().map(Trajectory::sampled_tokens).collect();
        assert!(lengths.len() > 3, "the replies have mixed lengths: {lengths:?}");
        let sequences = scene.sequences();
        let found =
            Learner::score(&scene.decoder, &sequences, TEMPERATURE).expect("log-probabilities");
        let recorded: Vec<f32> = scene.members().flat_map(Trajectory::logprobs).collect();
        assert_eq!(found.len(), recorded.len());
        let sum: f64 =
            found.iter().zip(&recorded).map(|(now, then)| f64::from((now - then).abs())).sum();
        let mean = sum / found.len() as f64;
        assert!(mean < 1e-5, "{family}: mean |log ratio| is {mean} nats");
        // The learner reports the same of its own first pass.
        let mut learner = scene.learner(64, Beside::Nothing);
        let metrics = learner
            .update(&grpo(json!({})), &scene.groups, &settings(1, 1, 0))
            .expect("an update")
            .metrics;
        let told = metrics.value("learner/sampler_mismatch_nats").expect("it is measured");
        assert!(told < 1e-5, "{family}: the learner reports {told} nats");
    }
}

#[test]
fn the_cut_into_micro_batches_changes_no_rl_update() {
    let scene = Scene::new("qwen2");
    let tokens: usize = scene.members().map(|it| it.tokens.len()).sum();
    for aggregation in ["token_mean", "sequence_mean", "constant_length"] {
        for kl_weight in [0.0, 0.1] {
            let kl = json!({ "weight": kl_weight });
            let algorithm = grpo(json!({ "aggregation": aggregation, "kl": kl }));
            let what = format!("{aggregation} with kl_weight {kl_weight}");
            let updated = |micro_batch_tokens: usize| {
                let beside = if kl_weight > 0.0 { Beside::Start } else { Beside::Nothing };
                let mut learner = scene.learner(micro_batch_tokens, beside);
                let metrics = learner
                    .update(&algorithm, &scene.groups, &settings(2, 2, 0))
                    .expect("an update")
                    .metrics;
                assert_eq!(learner.steps(), 4);
                (metrics, learner)
            };
            let (whole, one) = updated(tokens);
            for budget in [1, 37, tokens / 3] {
                let (cut, other) = updated(budget);
                for name in ["learner/grad_norm", "learner/loss", "learner/entropy_nats"] {
                    let value = |it: &tallow::tracking::Metrics| it.value(name).expect("a metric");
                    // The loss of normalised advantages is a sum that nearly cancels.
                    check_close(value(&whole), value(&cut), 0.1, &format!("{what}: {name}"));
                }
                check_same_weights(one.decoder(), other.decoder(), &what);
            }
        }
    }
}

#[test]
fn the_cut_into_micro_batches_changes_no_next_token_step() {
    let scene = Scene::new("llama");
    let sequences = scene.sequences();
    let stepped = |micro_batch_tokens: usize| {
        let mut learner = scene.learner(micro_batch_tokens, Beside::Nothing);
        let first = learner.next_token_step(&sequences).expect("a step");
        learner.next_token_step(&sequences).expect("a second step");
        (first, learner)
    };
    let (whole, one) = stepped(usize::MAX);
    for budget in [1, 37, 200] {
        let (cut, other) = stepped(budget);
        for name in ["train/loss_nats", "learner/grad_norm"] {
            let value = |it: &tallow::tracking::Metrics| it.value(name).expect("a metric");
            check_close(value(&whole), value(&cut), 0.0, name);
        }
        check_same_weights(one.decoder(), other.decoder(), "next-token step");
    }
}

#[test]
fn shared_prompts_and_refilled_slots_change_no_reply() {
    for family in ["llama", "qwen2", "qwen3"] {
        let scene = Scene::new(family);
        let params = SamplingParams {
            temperature: 0.0,
            max_tokens: MAX_TOKENS,
            ..SamplingParams::default()
        };
        let alone = scene.completions(&params, 1);
        for slots in [3, 7, scene.prompts.len() * GROUP] {
            let together = scene.completions(&params, slots);
            for (index, (one, other)) in alone.iter().zip(&together).enumerate() {
                assert_eq!(one.tokens, other.tokens, "{family}: reply {index} in {slots} slots");
                assert_eq!(one.finish, other.finish);
                for (one, other) in one.logprobs.iter().zip(&other.logprobs) {
                    assert!((one - other).abs() < 1e-4, "{family}: {one} and {other} nats");
                }
            }
        }
    }
}

/// A cache of eight blocks, for 36 replies that each need one or two.
fn small_cache(scene: &Scene, slots: usize) -> Engine {
    let engine = Engine::new(&scene.decoder, Arc::clone(&scene.tokenizer), slots);
    let bytes = 8 * Engine::bytes_for(scene.decoder.config(), 1);
    engine.expect("an engine").with_cache_bytes(bytes)
}

fn long_requests(scene: &Scene, round: u64) -> Vec<Request> {
    requests(scene, round, SamplingParams { max_tokens: 32, ..SamplingParams::default() })
}

fn requests(scene: &Scene, round: u64, params: SamplingParams) -> Vec<Request> {
    let params = Arc::new(SamplingParams { temperature: TEMPERATURE, ..params });
    (0..scene.prompts.len() * GROUP)
        .map(|it| Request {
            id: it as u64,
            prompt: Arc::clone(&scene.prompts[it / GROUP]),
            params: Arc::clone(&params),
            seed: round * 1000 + it as u64,
        })
        .collect()
}

#[test]
fn replies_that_lose_their_place_in_the_cache_come_out_the_same() {
    for family in ["llama", "qwen2", "qwen3"] {
        let scene = Scene::new(family);
        let slots = scene.prompts.len() * GROUP;
        let mut roomy =
            Engine::new(&scene.decoder, Arc::clone(&scene.tokenizer), slots).expect("an engine");
        let expected = roomy.generate(long_requests(&scene, 0)).expect("replies");
        assert_eq!(roomy.preemptions(), 0);
        let mut tight = small_cache(&scene, slots);
        let found = tight.generate(long_requests(&scene, 0)).expect("replies");
        assert!(tight.preemptions() > 0, "{family}: the cache was large enough for all");
        assert!(tight.cache_bytes() < roomy.cache_bytes());
        // To the bit: ids and log-probabilities.
        assert_eq!(found, expected, "{family}");
    }
}

#[test]
fn a_reply_that_no_cache_of_this_size_could_hold_is_an_error() {
    let scene = Scene::new("llama");
    let bytes = Engine::bytes_for(scene.decoder.config(), 1);
    let mut engine = Engine::new(&scene.decoder, Arc::clone(&scene.tokenizer), 4)
        .expect("an engine")
        .with_cache_bytes(bytes);
    let error = engine.generate(long_requests(&scene, 0)).expect_err("one block is too few");
    assert!(error.to_string().contains("needs more cache than there is"), "{error}");
}

/// The replies of the last rounds were drawn from the adapted model, not from its base.
fn check_adapters_matter(decoder: &Decoder) {
    let logits = |it: &Decoder| contract::logits(it, &[1, 2, 3]).expect("logits");
    let base = decoder.base().expect("a base");
    assert_eq!(decoder.adapters().is_some(), logits(decoder) != logits(&base));
}

#[test]
fn truncated_sampling_leaves_the_first_ratio_at_one() {
    let whole = SamplingParams { max_tokens: MAX_TOKENS, ..SamplingParams::default() };
    for params in [
        SamplingParams { top_k: 3, ..whole.clone() },
        SamplingParams { top_p: 0.7, ..whole.clone() },
        SamplingParams { min_p: 0.3, ..whole.clone() },
        SamplingParams { min_tokens: 5, ..whole.clone() },
    ] {
        let mut scene = Scene::new("llama");
        let slots = scene.prompts.len() * GROUP;
        let mut engine =
            Engine::new(&scene.decoder, Arc::clone(&scene.tokenizer), slots).expect("an engine");
        let replies = engine.generate(requests(&scene, 0, params.clone())).expect("replies");
        for (index, completion) in replies.into_iter().enumerate() {
            let (group, member) = (index / GROUP, index % GROUP);
            scene.groups[group].members[member] = scene.scored(group, member, completion);
        }
        let masses = scene.members().map(Trajectory::kept_mass);
        let (mass, tokens) = masses.fold((0.0, 0), |all, it| (all.0 + it.0, all.1 + it.1));
        assert!(mass / (tokens as f64) < 0.995, "{params:?} cut nothing: {mass} of {tokens}");
        let mut learner = scene.learner(200, Beside::Nothing);
        let metrics = learner
            .update(&grpo(json!({})), &scene.groups, &settings(1, 1, 0))
            .expect("an update")
            .metrics;
        let told = metrics.value("learner/sampler_mismatch_nats").expect("it is measured");
        assert!(told < 1e-5, "{params:?}: {told} nats");
    }
}

/// Plays and learns for some rounds, with a cache too small for all replies.
fn play(scene: &mut Scene, learner: &mut Learner, rounds: u64, what: &str) {
    let slots = scene.prompts.len() * GROUP;
    let mut engine = small_cache(scene, slots);
    let algorithm = grpo(json!({}));
    for round in 0..rounds {
        engine.publish(learner.decoder(), round);
        let replies = engine.generate(long_requests(scene, round)).expect("replies");
        for (index, completion) in replies.into_iter().enumerate() {
            let (group, member) = (index / GROUP, index % GROUP);
            scene.groups[group].members[member] = scene.scored(group, member, completion);
        }
        let settings = UpdateSettings { max_tokens: 32, ..settings(1, 1, round) };
        let metrics =
            learner.update(&algorithm, &scene.groups, &settings).expect("an update").metrics;
        let told = metrics.value("learner/sampler_mismatch_nats").expect("it is measured");
        assert!(told < 1e-5, "{what}: {told} nats in round {round}");
    }
    assert!(engine.preemptions() > 0, "{what}: nothing had to wait");
}

#[test]
fn sampler_and_learner_agree_through_fifty_updates() {
    let lora = LoraConfig { rank: 4, ..LoraConfig::default() };
    for (family, lora) in [("llama", None), ("qwen3", None), ("qwen2", Some(lora))] {
        let mut scene = Scene::new(family);
        let mut learner = scene.learner_with(200, Beside::Nothing, lora);
        play(&mut scene, &mut learner, 50, family);
        check_adapters_matter(learner.decoder());
    }
}

/// Learner and engine on a device (an emulated one) play the same rounds.
#[test]
fn a_gpu_samples_and_learns_what_the_cpu_does() {
    let Some(device) = emulated::device(Precision::F32) else { return };
    let played = |on: Option<&Device>| {
        let mut scene = Scene::new("qwen2");
        if let Some(device) = on {
            scene.decoder = scene.decoder.on(device).expect("a small model");
        }
        let mut learner = scene.learner(200, Beside::Nothing);
        play(&mut scene, &mut learner, 3, "qwen2");
        learner.decoder().read_back().expect("weights");
        (scene.members().map(|it| it.tokens.clone()).collect::<Vec<_>>(), learner)
    };
    let ((replies, learner), (device_replies, device_learner)) =
        (played(None), played(Some(&device)));
    assert_eq!(replies, device_replies);
    check_same_weights(learner.decoder(), device_learner.decoder(), "CPU and GPU");
}

#[test]
fn shared_prompts_change_an_update_by_rounding_only() {
    let scene = Scene::new("qwen2");
    let updated = |share_prompts: bool, recompute_activations: bool| {
        let config = OptimizerConfig {
            learning_rate: 1e-3,
            adamw: AdamWConfig { eps: 1e-3, ..AdamWConfig::default() },
            share_prompts,
            recompute_activations,
            ..OptimizerConfig::default()
        };
        let decoder = scene.decoder.snapshot().expect("a copy");
        let mut learner =
            Learner::new(decoder, config, 10, Beside::Nothing, Seed(1)).expect("a learner");
        learner.update(&grpo(json!({})), &scene.groups, &settings(2, 2, 0)).expect("an update");
        learner
    };
    let shared = updated(true, false);
    check_same_weights(shared.decoder(), updated(false, false).decoder(), "prompts copied");
    check_same_weights(shared.decoder(), updated(true, true).decoder(), "recomputed");
}
