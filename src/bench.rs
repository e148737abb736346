//! Speed of the paths a user waits for, on a given model: GRPO steps, training steps, sampling.
//!
//! Every reply is forced to an exact length, so that another program can be given the same work.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rand::RngExt;
use rayon::prelude::*;
use serde_json::{Value, json};
use tallow_envs::{Seed, Split, Task, TaskId};
use tallow_policies::gpu::Device;
use tallow_policies::{
    Completion, Decoder, Engine, InitOptions, LoraConfig, ModelConfig, Request, SamplingParams,
    TokenId, Tokenizer,
};
use tallow_verifiers::{Message, Outcome, Reference, StopReason, Transcript, Verdict, Verifier};

use crate::algorithms::{Algorithm, BUILTIN};
use crate::device;
use crate::error::Error;
use crate::learner::batch::Sequence;
use crate::learner::memory::{Demand, MemoryPlan};
use crate::learner::update::UpdateSettings;
use crate::learner::{Beside, Learner, OptimizerConfig};
use crate::model::{check_fit, model_folder};
use crate::rollout::trajectory::{ScoredGroup, ScoredTrajectory, Trajectory, Turn};

/// A model to measure.
pub struct BenchModel {
    decoder: Decoder,
    tokenizer: Arc<Tokenizer>,
    seed: Seed,
}

impl BenchModel {
    /// Loads a folder, or draws weights for its `config.json`.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub fn load(
        folder: &Path,
        random_init: bool,
        seed: Option<u64>,
        device: Option<Device>,
    ) -> Result<Self, Error> {
        let folder = model_folder(folder)?;
        let tokenizer = Arc::new(Tokenizer::from_folder(&folder)?);
        let seed = Seed(seed.unwrap_or(0));
        let decoder = if random_init {
            let config = ModelConfig::from_folder(&folder)?;
            Decoder::new(config, &InitOptions::default(), seed.0)?
        } else {
            Decoder::from_folder(&folder)?
        };
        check_fit(&decoder, &tokenizer)?;
        let decoder = match &device {
            Some(device) => decoder.on(device)?,
            None => decoder,
        };
        Ok(Self { decoder, tokenizer, seed })
    }

    fn prompts(&self, count: usize, tokens: usize, stream: u64) -> Vec<Arc<[TokenId]>> {
        let mut draws = self.seed.derive(&[stream]).rng();
        let vocabulary = self.decoder.config().vocab_size as u32;
        let ends = self.tokenizer.end_ids();
        (0..count)
            .map(|_| {
                std::iter::repeat_with(|| draws.random_range(0..vocabulary))
                    .filter(|it| !ends.contains(it))
                    .take(tokens)
                    .collect()
            })
            .collect()
    }
}

/// Work of `bench grpo`.
pub struct GrpoWork {
    /// Prompts a step.
    pub prompts: usize,
    /// Replies to each.
    pub group: usize,
    /// Tokens of a prompt.
    pub prompt_tokens: usize,
    /// Tokens of a reply.
    pub new_tokens: usize,
    /// Steps counted.
    pub steps: usize,
    /// Rank of the adapters to train; 0 trains all weights.
    pub lora_rank: usize,
}

/// Adapters beside every linear map, of a rank; none of rank 0.
fn adapters(rank: usize) -> Option<LoraConfig> {
    (rank > 0).then(|| LoraConfig { rank, alpha: 2.0 * rank as f64, ..Default::default() })
}

/// Whole GRPO steps.
///
/// # Errors
/// If the model fails.
pub fn grpo(model: BenchModel, work: &GrpoWork) -> Result<Value, Error> {
    let seqs = work.prompts * work.group;
    let params = exact_length(work.new_tokens);
    let mut engine = Engine::new(&model.decoder, Arc::clone(&model.tokenizer), seqs)?;
    let lora = adapters(work.lora_rank);
    let config = OptimizerConfig { learning_rate: 1e-6, lora: lora.clone(), ..Default::default() };
    let steps = work.steps.max(1);
    let decoder = model.decoder.clone();
    let mut learner = Learner::new(decoder, config, steps as u64 + 1, Beside::Nothing, model.seed)?;
    let algorithm = grpo_without_kl();
    let tokens = work.prompts * (work.prompt_tokens + work.group * work.new_tokens);
    let demand = Demand {
        trains: true,
        micro_batch_tokens: learner.micro_batch_tokens().min(tokens),
        slots: seqs,
        context: work.prompt_tokens + work.new_tokens,
        lora,
        ..Default::default()
    };
    let plan = MemoryPlan::new(model.decoder.config(), &demand)?;
    let (mut generate_s, mut update_s) = (Vec::new(), Vec::new());
    for step in 0..=steps as u64 {
        let prompts = model.prompts(work.prompts, work.prompt_tokens, step);
        let clock = Instant::now();
        let requests = (0..seqs)
            .map(|it| Request {
                id: it as u64,
                prompt: Arc::clone(&prompts[it / work.group]),
                params: Arc::clone(&params),
                seed: model.seed.derive(&[step, it as u64]).0,
            })
            .collect();
        let completions = engine.generate(requests)?;
        let generated = clock.elapsed().as_secs_f64();
        let clock = Instant::now();
        let groups: Vec<ScoredGroup> = completions
            .chunks(work.group)
            .zip(&prompts)
            .map(|(replies, prompt)| scored(prompt, replies))
            .collect();
        learner.update(
            &algorithm,
            &groups,
            &UpdateSettings {
                epochs: 1,
                minibatches: 1,
                temperature: params.temperature,
                max_tokens: work.new_tokens,
                newest: step,
                seed: model.seed,
            },
        )?;
        engine.publish(learner.decoder(), step + 1);
        if step > 0 {
            generate_s.push(generated);
            update_s.push(clock.elapsed().as_secs_f64());
        }
    }
    let step_s: Vec<f64> = generate_s.iter().zip(&update_s).map(|(a, b)| a + b).collect();
    let (step_s, generate_s, update_s) = (median(step_s), median(generate_s), median(update_s));
    let sampled = (seqs * work.new_tokens) as f64;
    Ok(json!({
        "bench": "grpo", "seqs": seqs, "prompt_tokens": work.prompt_tokens,
        "new_tokens": work.new_tokens, "step_s": rounded(step_s),
        "generate_s": rounded(generate_s), "update_s": rounded(update_s),
        "sampled_tok_s": rounded(sampled / generate_s),
        "end_to_end_tok_s": rounded(sampled / step_s),
        "peak_rss_mb": peak_rss_mb(), "planned_mb": plan.total() >> 20,
        "device": device::name_of(model.decoder.device()),
    }))
}

/// Next-token training steps, beside the machine's best matrix-product rate in the same run.
///
/// # Errors
/// If the model fails.
pub fn train(
    model: BenchModel,
    batch: usize,
    seq: usize,
    steps: usize,
    lora_rank: usize,
) -> Result<Value, Error> {
    let parameters = model.decoder.parameters().count() as f64;
    let gemm_gflops = match model.decoder.device() {
        Some(device) => device.matrix_gflops(CARD_MATRIX)?,
        None => best_matrix_rate(),
    };
    let computed_on = device::name_of(model.decoder.device());
    let prompts: Vec<_> = (0..=steps as u64).map(|it| model.prompts(batch, seq, it)).collect();
    let lora = adapters(lora_rank);
    let config = OptimizerConfig { learning_rate: 1e-4, lora, ..Default::default() };
    let mut learner =
        Learner::new(model.decoder, config, steps as u64 + 1, Beside::Nothing, model.seed)?;
    let mut times = Vec::new();
    for prompts in prompts {
        let sequences: Vec<Sequence> =
            prompts.iter().map(|it| Sequence::new(it.to_vec(), &vec![true; it.len()])).collect();
        let clock = Instant::now();
        learner.next_token_step(&sequences)?;
        times.push(clock.elapsed().as_secs_f64());
    }
    let step_s = median(times.split_off(1));
    let tokens = (batch * seq) as f64;
    // Operations a parameter and token: 2 forward, 2 backward to the input, 2 to the weight where it
    // is trained (Kaplan et al. 2020).
    let trained = learner.decoder().trainable().count() as f64;
    let frozen = if lora_rank > 0 { parameters } else { 0.0 };
    let gflops = (4.0 * frozen + 6.0 * trained) * tokens / step_s / 1e9;
    Ok(json!({
        "bench": "train", "step_s": rounded(step_s), "tok_s": rounded(tokens / step_s),
        "gflops": rounded(gflops), "gemm_gflops": rounded(gemm_gflops),
        "mfu": rounded(gflops / gemm_gflops), "peak_rss_mb": peak_rss_mb(),
        "device": computed_on,
    }))
}

/// Sampling alone: prompts first, then a token at a time.
///
/// # Errors
/// If the model fails.
pub fn generate(
    model: &BenchModel,
    batch: usize,
    prompt_tokens: usize,
    new_tokens: usize,
) -> Result<Value, Error> {
    let mut prefill_s = Vec::new();
    let mut decode_s = Vec::new();
    for round in 0..4 {
        let prompts = model.prompts(batch, prompt_tokens, round);
        let mut engine = Engine::new(&model.decoder, Arc::clone(&model.tokenizer), batch)?;
        let params = exact_length(new_tokens);
        for (index, prompt) in prompts.iter().enumerate() {
            engine.submit(Request {
                id: index as u64,
                prompt: Arc::clone(prompt),
                params: Arc::clone(&params),
                seed: index as u64,
            });
        }
        let clock = Instant::now();
        engine.step()?;
        let prefilled = clock.elapsed().as_secs_f64();
        while !engine.is_idle() {
            engine.step()?;
        }
        // The first round warms up.
        if round > 0 {
            prefill_s.push(prefilled);
            decode_s.push(clock.elapsed().as_secs_f64() - prefilled);
        }
    }
    let steps = new_tokens.saturating_sub(1) as f64;
    let decode_s = median(decode_s);
    let prefill_s = median(prefill_s);
    let mut line = json!({
        "bench": "generate", "step_s": rounded(prefill_s + decode_s),
        "prefill_tok_s": rounded((batch * prompt_tokens) as f64 / prefill_s),
        "decode_tok_s": rounded(batch as f64 * steps / decode_s),
        "peak_rss_mb": peak_rss_mb(),
        "device": device::name_of(model.decoder.device()),
    });
    if let Some(device) = model.decoder.device() {
        // Each step reads every weight once: the least that decoding can take.
        let bytes = (model.decoder.parameters().count() * device.precision().bytes()) as f64;
        let bandwidth = device.bandwidth_gb_s(CARD_COPY_BYTES)?;
        line["bandwidth_gb_s"] = json!(rounded(bandwidth));
        line["mbu"] = json!(rounded(bytes * steps / decode_s / 1e9 / bandwidth));
    }
    Ok(line)
}

/// GRPO with a KL weight of 0, as the contract of the command has it: no reference model.
fn grpo_without_kl() -> Algorithm {
    let entry = BUILTIN.iter().find(|it| it.name == "grpo").expect("grpo is built in");
    entry.build(json!({"kl": {"weight": 0.0}})).expect("the settings are sound")
}

fn exact_length(tokens: usize) -> Arc<SamplingParams> {
    Arc::new(SamplingParams { max_tokens: tokens, min_tokens: tokens, ..Default::default() })
}

/// A group with rewards that differ, so that an update has something to learn.
fn scored(prompt: &[TokenId], replies: &[Completion]) -> ScoredGroup {
    let task = Arc::new(Task {
        id: TaskId { split: Split::Train, index: 0 },
        prompt: vec![Message::user("")],
        reference: Reference::None,
        notes: Value::Null,
    });
    let members = replies
        .iter()
        .enumerate()
        .map(|(member, reply)| {
            let mut tokens = prompt.to_vec();
            tokens.extend_from_slice(&reply.tokens);
            let range = prompt.len()..tokens.len();
            let turn = Turn {
                range,
                logprobs: reply.logprobs.clone(),
                kept_masses: reply.kept_masses.clone(),
            };
            let transcript =
                Transcript { messages: vec![Message::user("")], stop: StopReason::Finished };
            let trajectory = Trajectory {
                member,
                tokens,
                turns: vec![turn],
                transcript,
                versions: reply.versions.clone(),
            };
            let reward = (member % 2) as f32;
            ScoredTrajectory { trajectory, verdict: Verdict::graded(reward), reward }
        })
        .collect();
    ScoredGroup { task, members, environment_errors: Vec::new(), verifier_errors: Vec::new() }
}

/// What a card is measured with: large enough to fill it.
const CARD_MATRIX: usize = 8192;
const CARD_COPY_BYTES: usize = 1 << 30;

/// Best rate of a 1024 cubed f32 product on all threads, in GFLOP/s.
fn best_matrix_rate() -> f64 {
    const SIZE: usize = 1024;
    let device = candle_core::Device::Cpu;
    let filled = |value: f32| candle_core::Tensor::full(value, (SIZE, SIZE), &device);
    let (Ok(left), Ok(right)) = (filled(0.5), filled(0.25)) else { return f64::NAN };
    let best = (0..12)
        .filter_map(|_| {
            let clock = Instant::now();
            left.matmul(&right).ok().map(|_| clock.elapsed().as_secs_f64())
        })
        .fold(f64::INFINITY, f64::min);
    2.0 * (SIZE as f64).powi(3) / best / 1e9
}

/// Largest resident size so far, in megabytes.
fn peak_rss_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status
        .lines()
        .find_map(|it| it.strip_prefix("VmHWM:"))
        .and_then(|it| it.split_whitespace().next())
        .and_then(|it| it.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.is_empty() {
        f64::NAN
    } else if values.len().is_multiple_of(2) {
        (values[middle - 1] + values[middle]) / 2.0
    } else {
        values[middle]
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// Reasons of verdicts whose shares are told, the most frequent ones.
const MOST_REASONS: usize = 16;

/// Verdicts of a verifier: on one thread with the time of each case, then on all threads.
///
/// # Errors
/// None at present.
pub fn verify(name: &str, cases: &[VerifyCase], repeat: usize) -> Result<Value, Error> {
    let repeat = repeat.max(1);
    let mut reasons = std::collections::BTreeMap::<String, usize>::new();
    for (verifier, transcript, reference) in cases {
        let reason = match verifier.verify(transcript, reference) {
            Ok(verdict) => verdict.reason.unwrap_or_default(),
            Err(_) => "unscorable".to_owned(),
        };
        *reasons.entry(reason).or_default() += 1;
    }
    let mut reasons: Vec<(String, usize)> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let shares: serde_json::Map<String, Value> = reasons
        .into_iter()
        .take(MOST_REASONS)
        .map(|(reason, count)| (reason, json!(count as f64 / cases.len() as f64)))
        .collect();
    let mut times = vec![Vec::with_capacity(repeat); cases.len()];
    let mut rounds = Vec::with_capacity(repeat);
    for _ in 0..repeat {
        let round = Instant::now();
        for ((verifier, transcript, reference), times) in cases.iter().zip(&mut times) {
            let clock = Instant::now();
            std::hint::black_box(verifier.verify(transcript, reference).is_ok());
            times.push(clock.elapsed().as_secs_f64() * 1e6);
        }
        rounds.push(round.elapsed().as_secs_f64());
    }
    let mut all = Vec::with_capacity(repeat);
    for _ in 0..repeat {
        let round = Instant::now();
        cases.par_iter().for_each(|(verifier, transcript, reference)| {
            std::hint::black_box(verifier.verify(transcript, reference).is_ok());
        });
        all.push(round.elapsed().as_secs_f64());
    }
    let mut of_cases: Vec<f64> = times.into_iter().map(median).collect();
    of_cases.sort_by(f64::total_cmp);
    let at = |share: f64| of_cases[((of_cases.len() - 1) as f64 * share) as usize];
    let count = cases.len() as f64;
    Ok(json!({
        "bench": "verify",
        "verifier": name,
        "cases": cases.len(),
        "verdicts_s": count / median(rounds),
        "mean_us": of_cases.iter().sum::<f64>() / count,
        "p50_us": at(0.5),
        "p99_us": at(0.99),
        "max_us": at(1.0),
        "threads": rayon::current_num_threads(),
        "all_threads_verdicts_s": count / median(all),
        "reasons": shares,
    }))
}

/// A case and the verifier that judges it.
pub type VerifyCase = (Arc<dyn Verifier>, Transcript, Reference);

/// Programs judged in the sandbox, on every thread, `repeat` times over. `start_ms` is the time to
/// the first verdict, the sandbox's start included.
///
/// # Errors
/// If a case cannot be judged.
pub fn sandbox(cases: &[VerifyCase], repeat: usize) -> Result<Value, Error> {
    let judge = |(verifier, transcript, reference): &VerifyCase| {
        let clock = Instant::now();
        let verdict = verifier.verify(transcript, reference);
        (clock.elapsed().as_secs_f64() * 1e3, verdict)
    };
    let (start_ms, first) = judge(&cases[0]);
    first.map_err(|error| Error::Data(error.to_string()))?;
    let mut times = Vec::with_capacity(repeat * cases.len());
    let mut rounds = Vec::with_capacity(repeat);
    let mut correct = 0;
    // A round of warming up: every worker's judge starts at its first program.
    for round in 0..=repeat.max(1) {
        let clock = Instant::now();
        let judged: Vec<_> = cases.par_iter().map(judge).collect();
        let round_s = clock.elapsed().as_secs_f64();
        if round == 0 {
            correct = judged
                .iter()
                .filter(|(_, verdict)| {
                    verdict.as_ref().is_ok_and(|verdict| verdict.outcome == Outcome::Correct)
                })
                .count();
            continue;
        }
        rounds.push(round_s);
        times.extend(judged.into_iter().map(|(ms, _)| ms));
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    Ok(json!({
        "bench": "sandbox",
        "programs_s": cases.len() as f64 / median(rounds),
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
        "start_ms": start_ms,
        "programs": cases.len(),
        "correct": correct,
        "threads": rayon::current_num_threads(),
    }))
}
