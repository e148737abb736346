//! The weights being trained. Knows nothing of environments, verifiers or which algorithm it runs.
//!
//! Two ways to learn: [`Learner::update`] from scored groups (RL), [`Learner::next_token_step`]
//! from sequences (pretraining and SFT). Both cut their work into micro-batches by token budget and
//! weigh every token by a denominator taken over the whole update, so that the cut changes nothing
//! but rounding.

pub mod batch;
mod guard;
pub mod memory;

use std::path::Path;

use candle_core::{Device, Tensor, Var};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use tallow_envs::Seed;
use tallow_policies::{
    AdamW, AdamWConfig, Decoder, GradientSet, Keep, LoraConfig, Pass, Schedule, lora,
};

use crate::algorithms::{Algorithm, LossInputs};
use crate::config::problem::Fault;
use crate::error::Error;
use crate::rollout::trajectory::ScoredGroup;
use crate::tracking::Metrics;
use batch::{MicroBatch, Sequence, SharedPrompts, token_budget_runs};

/// Optimizer state beside the weights of a checkpoint.
const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// Tag of the seed stream that draws fresh adapters.
const ADAPTER_STREAM: u64 = 0x6c6f_7261;

/// How weights are changed: the part of a stage's settings that all stages share.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// How the rate moves over the stage.
    pub schedule: Schedule,
    /// The optimizer's own settings.
    pub adamw: AdamWConfig,
    /// Most tokens in one forward and backward pass; bounds memory, changes no result.
    pub micro_batch_tokens: usize,
    /// Keep only each layer's input for the backward pass and compute the rest anew: a third more
    /// work for a fraction of the memory. Changes no result.
    pub recompute_activations: bool,
    /// Compute a prompt once for all replies to it, in learning as in sampling. Changes results by
    /// rounding only.
    pub share_prompts: bool,
    /// Train low-rank adapters and leave the model's own weights as they are; absent: train those.
    /// `lora = {}` takes the defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            schedule: Schedule::default(),
            adamw: AdamWConfig::default(),
            micro_batch_tokens: 8192,
            recompute_activations: false,
            share_prompts: true,
            lora: None,
        }
    }
}

impl OptimizerConfig {
    fn sharing(&self) -> SharedPrompts {
        if self.share_prompts { SharedPrompts::Once } else { SharedPrompts::Copied }
    }

    /// What cannot work about the settings themselves.
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if !(self.learning_rate >= 0.0 && self.learning_rate.is_finite()) {
            faults.push(
                Fault::new("optimizer.learning_rate", "not a learning rate")
                    .found(self.learning_rate.to_string())
                    .expected("a number of 0 or more, such as 3e-4"),
            );
        }
        if let Some(limit) = self.adamw.clip_norm
            && (limit.is_nan() || limit <= 0.0)
        {
            faults.push(
                Fault::new("optimizer.adamw.clip_norm", "gradients clipped to this teach nothing")
                    .found(limit.to_string())
                    .expected("a number above 0, such as 1.0"),
            );
        }
        faults.extend(self.lora.iter().flat_map(lora_faults));
        faults
    }
}

fn lora_faults(config: &LoraConfig) -> Vec<Fault> {
    let mut faults = Vec::new();
    if config.rank == 0 {
        faults.push(
            Fault::new("optimizer.lora.rank", "an adapter without rank changes nothing")
                .found("0")
                .expected("1 or more, such as 16"),
        );
    }
    if !(config.alpha.is_finite() && config.alpha != 0.0) {
        faults.push(
            Fault::new("optimizer.lora.alpha", "adapters scaled by this change nothing")
                .found(config.alpha.to_string())
                .expected("a number other than 0, such as twice the rank"),
        );
    }
    if config.targets.is_empty() {
        faults.push(
            Fault::new("optimizer.lora.targets", "nothing to adapt")
                .expected(format!("some of {}", lora::TARGETS.join(", "))),
        );
    }
    for target in config.targets.iter().filter(|it| !lora::TARGETS.contains(&it.as_str())) {
        faults.push(
            Fault::new("optimizer.lora.targets", "no linear map of that name")
                .found(target.as_str())
                .expected(format!("some of {}", lora::TARGETS.join(", "))),
        );
    }
    faults
}

/// How often a batch of rollouts is used.
#[derive(Clone, Copy, Debug)]
pub struct Reuse {
    /// Passes over the batch.
    pub epochs: usize,
    /// Optimizer steps in each pass.
    pub minibatches: usize,
}

/// A policy, its optimizer, and how many optimizer steps it has taken.
pub struct Learner {
    decoder: Decoder,
    reference: Option<Decoder>,
    optimizer: AdamW,
    config: OptimizerConfig,
    /// Buffers of the forward and backward pass, and the gradients of one update.
    pass: Pass,
    gradients: GradientSet,
    /// Optimizer steps the schedule spans.
    total_steps: u64,
    steps: u64,
}

/// Sampled tokens of one reply, ready to be learned from.
struct Sample {
    /// Its place among the batch's replies.
    index: usize,
    sequence: Sequence,
    behavior_logprobs: Vec<f32>,
    reference_logprobs: Vec<f32>,
    advantage: f32,
    /// How far behind the newest weights the oldest token was drawn.
    staleness: u64,
}

impl Learner {
    /// A learner that starts from `decoder`, with a fresh optimizer; `seed` draws fresh adapters,
    /// if the settings want some. With `with_reference` the starting weights are kept for KL
    /// penalties.
    ///
    /// # Errors
    /// If the weights cannot be copied or adapted.
    pub fn new(
        decoder: Decoder,
        config: OptimizerConfig,
        total_steps: u64,
        with_reference: bool,
        seed: Seed,
    ) -> Result<Self, Error> {
        let reference = match &config.lora {
            _ if !with_reference => None,
            // Frozen weights need no copy.
            Some(_) => Some(decoder.clone()),
            None => Some(decoder.snapshot()?),
        };
        let decoder = match &config.lora {
            Some(lora) => decoder.with_adapters(lora, seed.derive(&[ADAPTER_STREAM]).0)?,
            None => decoder,
        };
        let optimizer = AdamW::new(config.adamw.clone());
        let keep = if config.recompute_activations { Keep::Inputs } else { Keep::Activations };
        let (pass, gradients) = (Pass::new(keep), GradientSet::new());
        Ok(Self { decoder, reference, optimizer, config, pass, gradients, total_steps, steps: 0 })
    }

    /// The weights as they are now.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Takes the weights back, leaving the optimizer behind.
    pub fn into_decoder(self) -> Decoder {
        self.decoder
    }

    /// Most tokens in one forward and backward pass.
    pub fn micro_batch_tokens(&self) -> usize {
        self.config.micro_batch_tokens
    }

    /// Optimizer steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Goes on from what [`save`](Self::save) wrote, `steps` optimizer steps into the schedule.
    ///
    /// # Errors
    /// If a file cannot be read or belongs to another model.
    pub fn restore(&mut self, folder: &Path, steps: u64) -> Result<(), Error> {
        let saved = match self.decoder.adapters() {
            Some(_) => self.decoder.with_adapter_folder(folder)?,
            None => Decoder::from_folder(folder)?,
        };
        self.decoder.copy_from(&saved)?;
        self.optimizer = AdamW::load(self.config.adamw.clone(), &folder.join(OPTIMIZER_FILE))?;
        self.steps = steps;
        Ok(())
    }

    /// One next-token step: mean loss over the scored tokens of `sequences`.
    ///
    /// # Errors
    /// If the model fails or a gradient is not finite (the weights are then unchanged).
    pub fn next_token_step(&mut self, sequences: &[Sequence]) -> Result<Metrics, Error> {
        let scored: usize = sequences.iter().map(Sequence::scored_tokens).sum();
        if scored == 0 {
            return Err(Error::Data("a training batch holds no token to learn from: what `loss_on` marks lies beyond the \
                 longest sequence (model.context, sequence_tokens), or there is none"
                    .into()));
        }
        self.gradients.reset();
        let mut loss = 0.0;
        let sharing = self.config.sharing();
        for run in token_budget_runs(sequences, self.config.micro_batch_tokens, sharing) {
            let batch = MicroBatch::pack(&sequences[run], sharing);
            if batch.targets.is_empty() {
                continue;
            }
            self.decoder.forward(&mut self.pass, &batch.sequences)?;
            let scores = self.decoder.score(&mut self.pass, &batch.rows, &batch.targets, 1.0)?;
            loss -= scores.logprobs.iter().map(|it| f64::from(*it)).sum::<f64>() / scored as f64;
            self.finite_loss(loss)?;
            let slopes = vec![-1.0 / scored as f32; batch.targets.len()];
            self.decoder.backward(&mut self.pass, &slopes, &mut self.gradients)?;
        }
        let mut metrics = self.step()?;
        metrics.set("train/loss_nats", loss);
        Ok(metrics)
    }

    /// Mean loss in nats over the scored tokens of `sequences`, without learning; and their number.
    ///
    /// # Errors
    /// If the model fails.
    pub fn evaluate_loss(
        decoder: &Decoder,
        sequences: &[Sequence],
        budget: usize,
    ) -> Result<(f64, usize), Error> {
        let mut total = 0.0;
        let mut tokens = 0;
        for run in token_budget_runs(sequences, budget, SharedPrompts::Once) {
            let scored = Self::score(decoder, &sequences[run], 1.0)?;
            total -= scored.iter().map(|it| f64::from(*it)).sum::<f64>();
            tokens += scored.len();
        }
        Ok((total / tokens.max(1) as f64, tokens))
    }

    /// Learns from scored groups; groups without variance or too small for the algorithm teach
    /// nothing and are dropped and counted.
    ///
    /// `newest` is the version of the current weights, `temperature` the one that sampled,
    /// `max_tokens` the longest reply allowed, `seed` draws the order of minibatches.
    ///
    /// # Errors
    /// If the model fails or a gradient is not finite (the weights are then unchanged).
    pub fn update(
        &mut self,
        algorithm: &dyn Algorithm,
        groups: &[ScoredGroup],
        reuse: Reuse,
        sampling: (f64, usize),
        newest: u64,
        seed: Seed,
    ) -> Result<Metrics, Error> {
        let (temperature, max_tokens) = sampling;
        let mut samples = usable_samples(algorithm, groups, newest);
        let mut metrics = Metrics::new();
        if samples.is_empty() {
            return Ok(metrics);
        }
        let stale: u64 = samples.iter().map(|it| it.staleness).sum();
        metrics.set("learner/staleness_mean", stale as f64 / samples.len() as f64);
        self.annotate_reference(&mut samples, temperature)?;
        let mut sums = Metrics::new();
        let mut updates = 0.0;
        for epoch in 0..reuse.epochs.max(1) {
            if reuse.minibatches > 1 {
                samples.shuffle(&mut seed.derive(&[epoch as u64]).rng());
            }
            let size = samples.len().div_ceil(reuse.minibatches.max(1));
            for minibatch in samples.chunks_mut(size) {
                // Siblings stand together again, so that they can share their prompt.
                minibatch.sort_by_key(|it| it.index);
                let (report, mismatch) =
                    self.minibatch(algorithm, minibatch, temperature, max_tokens)?;
                // Only before the first step are these still the weights that sampled; later the
                // difference is learning, not a disagreement between sampler and learner.
                if updates == 0.0 {
                    metrics.set("learner/sampler_mismatch_nats", mismatch);
                }
                sums.accumulate(&report);
                updates += 1.0;
            }
        }
        sums.scale(1.0 / updates);
        metrics.extend(sums);
        metrics.set("learner/optimizer_steps", self.steps as f64);
        Ok(metrics)
    }

    fn minibatch(
        &mut self,
        algorithm: &dyn Algorithm,
        samples: &[Sample],
        temperature: f64,
        max_tokens: usize,
    ) -> Result<(Metrics, f64), Error> {
        let sampled: Vec<usize> = samples.iter().map(|it| it.sequence.scored_tokens()).collect();
        let total = sampled.iter().sum::<usize>().max(1) as f64;
        let weights = algorithm.aggregation().token_weights(&sampled, max_tokens);
        let sharing = self.config.sharing();
        let budget = self.config.micro_batch_tokens;
        self.gradients.reset();
        let mut metrics = Metrics::new();
        let mut mismatch = 0.0;
        for run in token_budget_runs(samples.iter().map(|it| &it.sequence), budget, sharing) {
            let part = &samples[run.clone()];
            let batch = MicroBatch::pack(part.iter().map(|it| &it.sequence), sharing);
            if batch.targets.is_empty() {
                continue;
            }
            self.decoder.forward(&mut self.pass, &batch.sequences)?;
            let scores =
                self.decoder.score(&mut self.pass, &batch.rows, &batch.targets, temperature)?;
            let behavior: Vec<f32> =
                part.iter().flat_map(|it| it.behavior_logprobs.iter().copied()).collect();
            let differences = scores.logprobs.iter().zip(&behavior);
            mismatch += differences.map(|(now, then)| f64::from((now - then).abs())).sum::<f64>();
            let entropy: f64 = scores.entropies.iter().map(|it| f64::from(*it)).sum();
            metrics.add("learner/entropy_nats", entropy / total);

            // The algorithm's loss is differentiated by candle as a function of these.
            let logprobs = Var::new(scores.logprobs, &Device::Cpu)?;
            let spread = |value: &dyn Fn(usize) -> f32| -> Result<Tensor, Error> {
                let flat: Vec<f32> = run
                    .clone()
                    .flat_map(|it| std::iter::repeat_n(value(it), sampled[it]))
                    .collect();
                Ok(Tensor::new(flat, &Device::Cpu)?)
            };
            let reference: Vec<f32> =
                part.iter().flat_map(|it| it.reference_logprobs.iter().copied()).collect();
            let reference = match &self.reference {
                Some(_) => Some(Tensor::new(reference, &Device::Cpu)?),
                None => None,
            };
            let loss = algorithm.loss(&LossInputs {
                logprobs: &logprobs,
                behavior_logprobs: &Tensor::new(behavior, &Device::Cpu)?,
                reference_logprobs: reference.as_ref(),
                advantages: &spread(&|it| samples[it].advantage)?,
            })?;
            for (name, sum) in loss.sums {
                metrics.add(name, sum / total);
            }
            let scalar = (loss.losses * spread(&|it| weights[it])?)?.sum_all()?;
            metrics.add("learner/loss", f64::from(scalar.to_scalar::<f32>()?));
            let slopes = match scalar.backward()?.get(&logprobs) {
                Some(slopes) => slopes.to_vec1::<f32>()?,
                None => {
                    let told = format!("the loss of {} has no gradient", algorithm.name());
                    return Err(Error::Diverged(told));
                }
            };
            self.decoder.backward(&mut self.pass, &slopes, &mut self.gradients)?;
        }
        metrics.extend(self.step()?);
        Ok((metrics, mismatch / total))
    }

    fn annotate_reference(&self, samples: &mut [Sample], temperature: f64) -> Result<(), Error> {
        let Some(reference) = &self.reference else { return Ok(()) };
        let sequences: Vec<Sequence> = samples.iter().map(|it| it.sequence.clone()).collect();
        let sharing = self.config.sharing();
        for run in token_budget_runs(&sequences, self.config.micro_batch_tokens, sharing) {
            let scored = Self::score(reference, &sequences[run.clone()], temperature)?;
            let mut rest = scored.as_slice();
            for sample in &mut samples[run] {
                let (own, later) = rest.split_at(sample.sequence.scored_tokens());
                sample.reference_logprobs = own.to_vec();
                rest = later;
            }
        }
        Ok(())
    }

    /// Log-probabilities of the scored tokens of all sequences, in order, in nats.
    ///
    /// # Errors
    /// If the model fails.
    pub fn score(
        decoder: &Decoder,
        sequences: &[Sequence],
        temperature: f64,
    ) -> Result<Vec<f32>, Error> {
        let batch = MicroBatch::pack(sequences, SharedPrompts::Once);
        if batch.targets.is_empty() {
            return Ok(Vec::new());
        }
        let mut pass = Pass::new(Keep::Nothing);
        decoder.forward(&mut pass, &batch.sequences)?;
        Ok(decoder.score(&mut pass, &batch.rows, &batch.targets, temperature)?.logprobs)
    }

    fn step(&mut self) -> Result<Metrics, Error> {
        let factor = self.config.schedule.factor(self.steps, self.total_steps);
        let rate = self.config.learning_rate * factor;
        let stepped = self.decoder.step(&mut self.optimizer, &self.gradients, rate);
        let report = stepped.map_err(|it| self.diverged(it))?;
        if !report.update_norm.is_finite() {
            return Err(self.step_too_long()?);
        }
        self.steps += 1;
        let mut metrics = Metrics::new();
        metrics.set("learner/grad_norm", report.grad_norm);
        metrics.set("learner/learning_rate", rate);
        Ok(metrics)
    }
}

fn usable_samples(algorithm: &dyn Algorithm, groups: &[ScoredGroup], newest: u64) -> Vec<Sample> {
    let mut samples = Vec::new();
    for group in groups {
        let rewards = group.rewards();
        if rewards.len() < algorithm.requires().smallest_group || group.has_no_variance() {
            continue;
        }
        let credit = algorithm.assign_credit(&rewards);
        for (member, advantage) in group.members.iter().zip(credit) {
            let trajectory = &member.trajectory;
            samples.push(Sample {
                index: samples.len(),
                sequence: Sequence::with_stretches(
                    trajectory.tokens.clone(),
                    trajectory.turns.iter().map(|it| it.range.clone()),
                ),
                behavior_logprobs: trajectory.logprobs(),
                reference_logprobs: Vec::new(),
                advantage,
                staleness: newest.saturating_sub(*trajectory.versions.start()),
            });
        }
    }
    samples
}
