//! The weights being trained. Knows nothing of environments, verifiers or which algorithm it runs.
//!
//! Three ways to learn: [`Learner::update`] from scored groups (RL; in [`update`]),
//! [`Learner::preference_step`] from pairs (DPO), [`Learner::next_token_step`] from sequences
//! (pretraining and SFT). All cut their work into micro-batches by token budget and
//! weigh every token by a denominator taken over the whole update, so that the cut changes nothing
//! but rounding.

pub mod batch;
pub mod critic;
mod guard;
pub mod memory;
pub mod reward;
pub mod update;

use std::path::Path;

use serde::{Deserialize, Serialize};
use tallow_envs::Seed;
use tallow_policies::{
    AdamW, AdamWConfig, Decoder, GradientSet, Keep, LoraConfig, Pass, Schedule, lora,
};

use crate::algorithms::ppo::CriticConfig;
use crate::config::problem::Fault;
use crate::error::Error;
use crate::tracking::Metrics;
use batch::{MicroBatch, Sequence, SharedPrompts, token_budget_runs};
use critic::Critic;

/// Optimizer state beside the weights of a checkpoint.
const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// A reference policy that is not the one the stage began with, beside the weights of a checkpoint.
const REFERENCE_FOLDER: &str = "reference";

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

/// What a learner is given besides the weights it trains.
#[derive(Default)]
pub enum Beside {
    /// Nothing.
    #[default]
    Nothing,
    /// A copy of the weights at the start.
    Start,
    /// Another model of the same vocabulary: a teacher.
    Model(Box<Decoder>),
}

/// A policy, its optimizer, and how many optimizer steps it has taken.
pub struct Learner {
    decoder: Decoder,
    /// What penalties, pairs and distillation compare with.
    reference: Option<Decoder>,
    /// Whether the reference has become another policy than the stage began with.
    refreshed: bool,
    critic: Option<Critic>,
    /// Weight of a KL penalty, where a controller moves it.
    kl_weight: Option<f64>,
    optimizer: AdamW,
    config: OptimizerConfig,
    /// Buffers of the forward and backward pass, and the gradients of one update.
    pass: Pass,
    gradients: GradientSet,
    /// Optimizer steps the schedule spans.
    total_steps: u64,
    steps: u64,
}

impl Learner {
    /// A learner that starts from `decoder`, with a fresh optimizer; `seed` draws fresh adapters,
    /// if the settings want some.
    ///
    /// # Errors
    /// If the weights cannot be copied or adapted.
    pub fn new(
        decoder: Decoder,
        config: OptimizerConfig,
        total_steps: u64,
        beside: Beside,
        seed: Seed,
    ) -> Result<Self, Error> {
        let reference = match (beside, &config.lora) {
            (Beside::Nothing, _) => None,
            (Beside::Model(model), _) => Some(*model),
            // Frozen weights need no copy.
            (Beside::Start, Some(_)) => Some(decoder.clone()),
            (Beside::Start, None) => Some(decoder.snapshot()?),
        };
        let decoder = match &config.lora {
            Some(lora) => decoder.with_adapters(lora, seed.derive(&[ADAPTER_STREAM]).0)?,
            None => decoder,
        };
        let optimizer = AdamW::new(config.adamw.clone());
        let keep = if config.recompute_activations { Keep::Inputs } else { Keep::Activations };
        let (pass, gradients) = (Pass::new(keep), GradientSet::new());
        Ok(Self {
            decoder,
            reference,
            refreshed: false,
            critic: None,
            kl_weight: None,
            optimizer,
            config,
            pass,
            gradients,
            total_steps,
            steps: 0,
        })
    }

    /// Gives this a critic that starts from the policy's weights of now.
    ///
    /// # Errors
    /// If the weights cannot be copied, or are on a device.
    pub fn add_critic(&mut self, config: CriticConfig, seed: Seed) -> Result<(), Error> {
        self.critic = Some(Critic::new(&self.decoder, config, &self.config, seed)?);
        Ok(())
    }

    /// The reference becomes the policy of now.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn refresh_reference(&mut self) -> Result<(), Error> {
        self.reference = Some(self.decoder.snapshot()?);
        self.refreshed = true;
        Ok(())
    }

    /// Weight of a KL penalty, where a controller has moved it.
    pub fn kl_weight(&self) -> Option<f64> {
        self.kl_weight
    }

    /// Goes on with a weight that a controller has moved.
    pub fn set_kl_weight(&mut self, weight: Option<f64>) {
        self.kl_weight = weight;
    }

    /// The weights as they are now.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// What penalties, pairs and distillation compare with, if there is such a model.
    pub fn reference(&self) -> Option<&Decoder> {
        self.reference.as_ref()
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
        let reference = folder.join(REFERENCE_FOLDER);
        if self.reference.is_some() && reference.is_dir() {
            let saved = Decoder::from_folder(&reference)?;
            self.reference = Some(match self.decoder.device() {
                Some(device) => saved.on(device)?,
                None => saved,
            });
            self.refreshed = true;
        }
        self.critic.as_mut().map_or(Ok(()), |it| it.restore(folder))
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
        let stepped = match self.critic.as_ref().and_then(Critic::shared_head) {
            Some(head) => {
                let trained = self.decoder.trainable().joined(head.parameters())?;
                self.optimizer.step(&trained, &self.gradients, rate)
            }
            None => self.decoder.step(&mut self.optimizer, &self.gradients, rate),
        };
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
