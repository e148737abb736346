//! The loop that the stages `reward_model` and `dpo` share: passes over pairs of replies.
//!
//! They differ in what they learn and in the loss; see [`super::reward_model`] and [`super::dpo`].
//! Either way a pair has a lead, by how much the preferred reply scores higher, and sigmoid(lead) is the
//! probability with which the model would have preferred it too. Held-out pairs tell whether that
//! probability can be trusted: among those where the model is 80 % sure, it should be right in 80 %.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tallow_policies::Decoder;

use crate::config::StageContext;
use crate::config::document::Table;
use crate::config::problem::{Fault, Problems};
use crate::error::Error;
use crate::evaluation::set_interval;
use crate::learner::OptimizerConfig;
use crate::learner::batch::SequencePair;
use crate::learner::memory::Demand;
use crate::learner::reward::{PairScores, share_right};
use crate::model::ModelSettings;
use crate::preferences::{self, EncodedPairs, PairSet, PairSource};
use crate::renderer::Renderer;
use crate::rollout::task_order::TaskOrder;
use crate::run::{Resumed, StageRun};
use crate::tracking::Metrics;

/// Tag of the seed stream that orders pairs.
const ORDER_STREAM: u64 = 0x6f72_6465;

/// Training metrics are written every so many steps: a line a step would be mostly noise.
const LOG_EVERY: u64 = 10;

/// Held-out pairs are binned by how sure the model is, from a half to 1.
const CALIBRATION_BINS: usize = 5;

/// Settings of the stages `reward_model` and `dpo`, beside their tables `pairs` and `loss`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PairLoopConfig {
    /// Passes over the training pairs.
    pub epochs: f64,
    /// Optimizer steps; absent: as many as the epochs take.
    pub steps: Option<u64>,
    /// Pairs in a step.
    pub batch: usize,
    /// Longest side of a pair in tokens, longer ones are left out; absent: the model's context.
    pub sequence_tokens: Option<usize>,
    /// How weights change.
    pub optimizer: OptimizerConfig,
    /// Held-out pairs are judged every so many steps, and at the end; 0 for the end only.
    pub evaluate_every: u64,
    /// Most held-out pairs in an evaluation.
    pub evaluate_pairs: usize,
    /// A checkpoint every so many steps; 0 for none.
    pub checkpoint_every: u64,
}

impl Default for PairLoopConfig {
    fn default() -> Self {
        Self {
            epochs: 1.0,
            steps: None,
            batch: 16,
            sequence_tokens: None,
            optimizer: OptimizerConfig { learning_rate: 1e-4, ..OptimizerConfig::default() },
            evaluate_every: 50,
            evaluate_pairs: 1024,
            checkpoint_every: 100,
        }
    }
}

impl PairLoopConfig {
    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (key, value) in [
            ("batch", self.batch),
            ("evaluate_pairs", self.evaluate_pairs),
            ("steps", self.steps.map_or(1, |it| it as usize)),
            ("optimizer.micro_batch_tokens", self.optimizer.micro_batch_tokens),
        ] {
            if value == 0 {
                faults.push(Fault::new(key, format!("{key} must not be 0")).expected("1 or more"));
            }
        }
        if !(self.epochs > 0.0 && self.epochs.is_finite()) {
            faults.push(
                Fault::new("epochs", "no number of passes")
                    .found(self.epochs.to_string())
                    .expected("a number above 0, such as 1.0"),
            );
        }
        faults.extend(self.optimizer.faults());
        faults
    }

    /// Optimizer steps over so many pairs.
    fn total_steps(&self, pairs: u64) -> u64 {
        let passes = (self.epochs * pairs as f64 / self.batch.max(1) as f64).ceil();
        self.steps.unwrap_or(passes as u64).max(1)
    }
}

/// The part of a stage's table that both stages have.
pub struct PairLoop {
    /// Its settings.
    pub config: PairLoopConfig,
    source: Arc<dyn PairSource>,
    source_settings: Value,
}

/// What learns from pairs.
pub trait PairLearner {
    /// One optimizer step; loss, accuracy and margin as `train/…`.
    ///
    /// # Errors
    /// If the model fails or a gradient is not finite (the weights are then unchanged).
    fn learn(&mut self, pairs: &[&SequencePair]) -> Result<Metrics, Error>;

    /// Scores and losses without learning.
    ///
    /// # Errors
    /// If the model fails.
    fn scores(&self, pairs: &[SequencePair]) -> Result<Vec<PairScores>, Error>;

    /// Writes what [`restore`](Self::restore) goes on from.
    ///
    /// # Errors
    /// If a file cannot be written.
    fn save(&self, folder: &Path) -> Result<(), Error>;

    /// Goes on after `steps` steps.
    ///
    /// # Errors
    /// If a file cannot be read.
    fn restore(&mut self, folder: &Path, steps: u64) -> Result<(), Error>;
}

/// The pairs of a stage under way.
pub struct Prepared {
    /// As ids.
    pub pairs: EncodedPairs,
    /// Optimizer steps in all.
    pub steps: u64,
    resumed: Option<Resumed>,
    /// As text, where checkpoints hold them.
    kept: Option<PairSet>,
}

impl PairLoop {
    /// Reads the tables and keys; `loss` must have been taken from the table.
    pub fn read(
        table: &mut Table,
        context: &StageContext<'_>,
        problems: &mut Problems,
    ) -> Option<Self> {
        let source = preferences::read(table, context, problems);
        let config: PairLoopConfig = table.take(problems)?;
        let faults = config.faults();
        let sound = faults.is_empty();
        for fault in faults {
            problems.at(table, fault);
        }
        let (source, source_settings) = source?;
        sound.then_some(Self { config, source, source_settings })
    }

    /// The settings, defaults filled in, beside the stage's `loss`.
    pub fn resolved(&self, loss: Value) -> Value {
        let mut settings = json!(self.config);
        settings["pairs"] = self.source_settings.clone();
        settings["loss"] = loss;
        settings
    }

    /// Rows of the table shown before the start.
    pub fn derived(&self) -> Vec<(String, String)> {
        let (train, held_out) = self.source.most();
        vec![
            ("pairs to learn from, at most".into(), train.to_string()),
            (
                "pairs held out, at most".into(),
                held_out.min(self.config.evaluate_pairs as u64).to_string(),
            ),
            ("pairs a step".into(), self.config.batch.to_string()),
            ("optimizer steps, at most".into(), self.config.total_steps(train).to_string()),
        ]
    }

    /// Where the source's tasks come from.
    pub fn provenance(&self) -> Option<Value> {
        self.source.provenance()
    }

    fn sequence_tokens(&self, context: usize) -> usize {
        self.config.sequence_tokens.unwrap_or(context).min(context).max(2)
    }

    /// What learning asks of memory, beside `copies` of what is trained.
    pub fn demand(&self, model: &ModelSettings, copies: usize) -> Demand {
        let longest = 2 * self.sequence_tokens(model.context);
        let optimizer = &self.config.optimizer;
        let most = self.config.batch.saturating_mul(longest);
        Demand {
            trains: true,
            copies,
            micro_batch_tokens: optimizer.micro_batch_tokens.min(most).max(longest),
            recomputes: optimizer.recompute_activations,
            lora: optimizer.lora.clone(),
            ..self.source.demand(model).unwrap_or_default()
        }
    }

    /// Gets the pairs, from the newest checkpoint if making them is costly.
    ///
    /// # Errors
    /// If they cannot be made, read or rendered.
    pub fn prepare(
        &self,
        policy: &Decoder,
        renderer: &Arc<Renderer>,
        run: &mut StageRun<'_>,
    ) -> Result<Prepared, Error> {
        let resumed = run.resume()?;
        let costly = self.source.is_costly();
        let set = match &resumed {
            Some(checkpoint) if costly => preferences::kept(&checkpoint.path)?,
            _ => self.source.pairs(policy, renderer, run)?,
        };
        let context = self.sequence_tokens(policy.config().max_position_embeddings);
        let pairs = EncodedPairs::of(&set, renderer, context)?;
        for (count, what) in [
            (pairs.too_long, format!("longer than {context} tokens")),
            (pairs.alike, "of two replies that are the same".to_owned()),
        ] {
            if count > 0 {
                let all = set.train.len() + set.held_out.len();
                run.line(&format!("{count} of {all} pairs are {what}, and left out"));
            }
        }
        let steps = self.config.total_steps(pairs.train.len() as u64);
        Ok(Prepared { pairs, steps, resumed, kept: costly.then_some(set) })
    }

    /// Learns to the end; returns the scores of the held-out pairs then.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run(
        &self,
        prepared: &Prepared,
        learner: &mut dyn PairLearner,
        run: &mut StageRun<'_>,
    ) -> Result<Vec<PairScores>, Error> {
        let (config, pairs, steps) = (&self.config, &prepared.pairs, prepared.steps);
        let mut first = 0;
        if let Some(checkpoint) = &prepared.resumed {
            learner.restore(&checkpoint.path, checkpoint.step)?;
            first = checkpoint.step;
        }
        let held_out = &pairs.held_out[..pairs.held_out.len().min(config.evaluate_pairs)];
        let seed = run.seed().derive(&[ORDER_STREAM]);
        let mut order = TaskOrder::new(seed, pairs.train.len() as u64);
        let bar = run.bar(steps, "steps");
        bar.start_at(first);
        for step in first..steps {
            let started = Instant::now();
            let batch: Vec<&SequencePair> = (0..config.batch as u64)
                .map(|it| order.index(step * config.batch as u64 + it))
                .map(|index| &pairs.train[index as usize])
                .collect();
            let mut metrics = learner.learn(&batch)?;
            let done = step + 1;
            bar.advance(1);
            bar.message(&format!(
                "loss {:.3} nats · right {:.2}",
                metrics.value("train/loss_nats").unwrap_or(f64::NAN),
                metrics.value("train/accuracy").unwrap_or(f64::NAN),
            ));
            if done.is_multiple_of(LOG_EVERY) || done == steps {
                metrics.set("time/step_s", started.elapsed().as_secs_f64());
                run.metrics(done, &metrics)?;
            }
            let due = config.evaluate_every > 0 && done.is_multiple_of(config.evaluate_every);
            if (due || done == steps) && !held_out.is_empty() {
                let mut metrics = summary(&learner.scores(held_out)?);
                if done == steps {
                    metrics.extend(calibration(&learner.scores(held_out)?));
                }
                run.metrics(done, &metrics)?;
                let shown = |name: &str| metrics.value(name).unwrap_or(f64::NAN);
                run.line(&format!(
                    "step {done}: held-out accuracy {:.3} ({:.3} to {:.3}), loss {:.3} nats",
                    shown("eval/accuracy"),
                    shown("eval/accuracy_low"),
                    shown("eval/accuracy_high"),
                    shown("eval/loss"),
                ));
            }
            run.checkpoint(done, steps, config.checkpoint_every, |folder| {
                learner.save(folder)?;
                prepared.kept.as_ref().map_or(Ok(()), |it| preferences::keep(it, folder))
            })?;
        }
        learner.scores(held_out)
    }
}

/// Accuracy, lead and loss over pairs.
fn summary(scores: &[PairScores]) -> Metrics {
    let mut metrics = Metrics::new();
    let count = scores.len().max(1) as f64;
    let right: Vec<f64> = scores.iter().map(|it| share_right(it.chosen, it.rejected)).collect();
    set_interval(&mut metrics, "eval/accuracy", &right);
    let mean = |of: &dyn Fn(&PairScores) -> f64| scores.iter().map(of).sum::<f64>() / count;
    metrics.set("eval/margin", mean(&|it| it.chosen - it.rejected));
    metrics.set("eval/loss", mean(&|it| it.loss));
    metrics
}

/// How sure the model is of its preferences, and how often it is right, in bins of the former:
/// `calibration/bin_N_predicted` and `_observed`, with `_pairs` in it; and the mean distance
/// of the two, weighted by pairs (expected calibration error, arXiv:1706.04599, eq. 3).
fn calibration(scores: &[PairScores]) -> Metrics {
    let mut bins = [(0.0, 0.0, 0.0); CALIBRATION_BINS];
    for it in scores {
        let sure = 1.0 / (1.0 + (-(it.chosen - it.rejected).abs()).exp());
        let bin = ((sure - 0.5) * 2.0 * CALIBRATION_BINS as f64) as usize;
        let (predicted, observed, pairs) = &mut bins[bin.min(CALIBRATION_BINS - 1)];
        *predicted += sure;
        *observed += share_right(it.chosen, it.rejected);
        *pairs += 1.0;
    }
    let mut metrics = Metrics::new();
    let mut error = 0.0;
    for (number, (predicted, observed, pairs)) in (1..).zip(bins) {
        if pairs > 0.0 {
            metrics.set(format!("calibration/bin_{number}_predicted"), predicted / pairs);
            metrics.set(format!("calibration/bin_{number}_observed"), observed / pairs);
            metrics.set(format!("calibration/bin_{number}_pairs"), pairs);
            error += (predicted - observed).abs() / scores.len() as f64;
        }
    }
    metrics.set("eval/calibration_error", error);
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(lead: f64) -> PairScores {
        PairScores { chosen: lead, rejected: 0.0, loss: 0.0 }
    }

    #[test]
    fn a_model_that_is_as_sure_as_it_is_right_is_calibrated() {
        // sigmoid(ln 4) = 0.8, and four of five are right.
        let lead = 4.0f64.ln();
        let pairs = [lead, lead, lead, lead, -lead].map(scores);
        let metrics = calibration(&pairs);
        let value = |name: &str| metrics.value(name).unwrap_or(f64::NAN);
        assert!(value("eval/calibration_error") < 1e-12);
        // 0.8 may fall on either side of its bin's edge.
        let pairs: f64 =
            (1..=5).filter_map(|it| metrics.value(&format!("calibration/bin_{it}_pairs"))).sum();
        assert_eq!(pairs, 5.0);
        let sure = calibration(&[20.0, -20.0].map(scores));
        assert!((sure.value("eval/calibration_error").unwrap_or(0.0) - 0.5).abs() < 1e-6);
    }

    #[test]
    fn scores_that_are_equal_are_half_right() {
        let metrics = summary(&[scores(0.0), scores(1.0)]);
        assert_eq!(metrics.value("eval/accuracy"), Some(0.75));
    }

    #[test]
    fn epochs_give_the_steps_unless_they_are_set() {
        let mut config = PairLoopConfig { epochs: 1.5, batch: 4, ..PairLoopConfig::default() };
        assert_eq!(config.total_steps(10), 4);
        config.steps = Some(7);
        assert_eq!(config.total_steps(10), 7);
    }
}
