//! The loop that pretraining and SFT share: next-token loss over a stream of documents.
//!
//! They differ in which tokens teach by default and in what text they are given; see
//! [`super::pretrain`] and [`super::sft`].

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tallow_envs::Seed;

use super::Stage;
use crate::config::StageContext;
use crate::config::document::Table;
use crate::config::problem::{Fault, Problems};
use crate::corpus::{Corpus, LossOn};
use crate::documents::{self, Documents, SourceContext};
use crate::error::Error;
use crate::learner::memory::Demand;
use crate::learner::{Beside, Learner, OptimizerConfig};
use crate::model::{ModelSettings, ModelState};
use crate::renderer::Renderer;
use crate::run::StageRun;
use crate::tracking::Metrics;

/// Tag of the seed stream that orders documents.
const ORDER_STREAM: u64 = 0x6f72_6465;

/// Settings of the stages `pretrain` and `sft`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct NextTokenConfig {
    /// Optimizer steps.
    pub steps: u64,
    /// Documents (pieces of documents longer than the context) in a step.
    pub batch: usize,
    /// Which tokens teach: `all` or `replies`; absent: all in pretraining, replies in SFT.
    pub loss_on: Option<LossOn>,
    /// Longest piece in tokens; absent: the model's context.
    pub sequence_tokens: Option<usize>,
    /// How weights change.
    pub optimizer: OptimizerConfig,
    /// Held-out loss every so many steps, and at the end; 0 for the end only.
    pub evaluate_every: u64,
    /// Held-out documents in an evaluation.
    pub evaluate_documents: usize,
    /// A checkpoint every so many steps; 0 for none.
    pub checkpoint_every: u64,
}

impl Default for NextTokenConfig {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch: 64,
            loss_on: None,
            sequence_tokens: None,
            optimizer: OptimizerConfig::default(),
            evaluate_every: 200,
            evaluate_documents: 256,
            checkpoint_every: 200,
        }
    }
}

/// A stage that learns to predict the next token.
pub struct NextTokenStage {
    kind: &'static str,
    config: NextTokenConfig,
    loss_on: LossOn,
    documents: Arc<dyn Documents>,
    documents_settings: Value,
}

/// Reads the table of either stage.
pub fn read(
    kind: &'static str,
    default_loss: LossOn,
    table: &mut Table,
    context: &StageContext<'_>,
    problems: &mut Problems,
) -> Option<Box<dyn Stage>> {
    if !table.contains("documents") {
        let fault = Fault::new("documents", "there is no text to train on")
            .expected("a table `documents` with a `kind`");
        problems.at(table, fault);
    }
    let documents_table = table.split("documents", problems);
    let config: Option<NextTokenConfig> = table.take(problems);
    let source = SourceContext {
        environments: &context.registry.environments,
        folder: context.folder,
        seed: context.seed,
    };
    let documents_table = documents_table?;
    let documents_settings = documents_table.to_json();
    let documents =
        documents_table.take_with(problems, |options| documents::build(options, &source));
    let config = config?;
    let mut sound = true;
    for (key, value) in [
        ("steps", config.steps),
        ("batch", config.batch as u64),
        ("optimizer.micro_batch_tokens", config.optimizer.micro_batch_tokens as u64),
    ] {
        if value == 0 {
            let fault = Fault::new(key, format!("{key} must not be 0")).expected("1 or more");
            problems.at(table, fault);
            sound = false;
        }
    }
    for fault in config.optimizer.faults() {
        problems.at(table, fault);
        sound = false;
    }
    if !sound {
        return None;
    }
    let loss_on = config.loss_on.unwrap_or(default_loss);
    Some(Box::new(NextTokenStage {
        kind,
        config,
        loss_on,
        documents: documents?,
        documents_settings,
    }))
}

impl NextTokenStage {
    fn sequence_tokens(&self, context: usize) -> usize {
        self.config.sequence_tokens.unwrap_or(context).min(context).max(2)
    }

    fn evaluate(
        &self,
        step: u64,
        learner: &Learner,
        corpus: &Corpus,
        run: &mut StageRun<'_>,
    ) -> Result<(), Error> {
        let held_out = corpus.held_out(self.config.evaluate_documents)?;
        if held_out.sequences.is_empty() {
            return Ok(());
        }
        let budget = self.config.optimizer.micro_batch_tokens;
        let (loss, tokens) =
            Learner::evaluate_loss(learner.decoder(), &held_out.sequences, budget)?;
        let mut metrics = Metrics::new();
        metrics.set("eval/loss_nats", loss);
        let bits = loss * tokens as f64 / std::f64::consts::LN_2;
        metrics.set("eval/bits_per_byte", bits / held_out.bytes.max(1) as f64);
        run.metrics(step, &metrics)
    }
}

impl Stage for NextTokenStage {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn resolved(&self) -> Value {
        let mut settings = json!(self.config);
        settings["loss_on"] = json!(self.loss_on);
        settings["documents"] = self.documents_settings.clone();
        settings
    }

    fn derived(&self, model: &ModelSettings) -> Vec<(String, String)> {
        let most = self.config.batch.saturating_mul(self.sequence_tokens(model.context));
        vec![
            ("documents a step".into(), self.config.batch.to_string()),
            ("tokens a step, at most".into(), most.to_string()),
            (
                "micro-batches a step, at most".into(),
                most.div_ceil(self.config.optimizer.micro_batch_tokens).to_string(),
            ),
            ("optimizer steps".into(), self.config.steps.to_string()),
        ]
    }

    fn demand(&self, model: &ModelSettings) -> Option<Demand> {
        let sequence = self.sequence_tokens(model.context);
        let most = self.config.batch.saturating_mul(sequence);
        let micro_batch = self.config.optimizer.micro_batch_tokens.min(most).max(sequence);
        Some(Demand {
            trains: true,
            micro_batch_tokens: micro_batch,
            recomputes: self.config.optimizer.recompute_activations,
            lora: self.config.optimizer.lora.clone(),
            ..Default::default()
        })
    }

    fn run(&self, mut start: ModelState, run: &mut StageRun<'_>) -> Result<ModelState, Error> {
        let tokenizer = start.tokenizer()?;
        let decoder = start.decoder(run.model(), run.run_seed(), run.device())?;
        let context = self.sequence_tokens(decoder.config().max_position_embeddings);
        let options = run.model().chat_template_kwargs.clone();
        let renderer = Arc::new(Renderer::with_options(Arc::clone(&tokenizer), options)?);
        let order = run.seed().derive(&[ORDER_STREAM]);
        let documents = Arc::clone(&self.documents);
        let mut corpus = Corpus::new(documents, renderer, self.loss_on, context, Seed(order.0))?;
        let config = &self.config;
        let optimizer = config.optimizer.clone();
        let mut learner =
            Learner::new(decoder, optimizer, config.steps, Beside::Nothing, run.seed())?;
        let mut first = 0;
        if let Some(checkpoint) = run.resume()? {
            learner.restore(&checkpoint.path, checkpoint.step)?;
            first = checkpoint.step;
        }
        let bar = run.bar(config.steps, "steps");
        bar.start_at(first);
        for step in first..config.steps {
            let started = Instant::now();
            let batch = corpus.batch(step * config.batch as u64, config.batch)?;
            let tokens: usize = batch.iter().map(|it| it.tokens().len()).sum();
            let mut metrics = learner.next_token_step(&batch)?;
            let done = step + 1;
            let speed = tokens as f64 / started.elapsed().as_secs_f64().max(1e-9);
            bar.advance(1);
            let loss = metrics.value("train/loss_nats").unwrap_or(f64::NAN);
            bar.message(&format!("loss {loss:.3} nats · {speed:.0} tokens/s"));
            if done.is_multiple_of(LOG_EVERY) || done == config.steps {
                metrics.set("train/tokens_per_second", speed);
                run.metrics(done, &metrics)?;
            }
            let due = config.evaluate_every > 0 && done.is_multiple_of(config.evaluate_every);
            if due || done == config.steps {
                self.evaluate(done, &learner, &corpus, run)?;
            }
            run.checkpoint(done, config.steps, config.checkpoint_every, |folder| {
                learner.save(folder)
            })?;
        }
        Ok(ModelState {
            tokenizer: Some(tokenizer),
            decoder: Some(learner.into_decoder()),
            scorer: None,
        })
    }
}

/// Training metrics are written every so many steps: a line a step would be mostly noise.
const LOG_EVERY: u64 = 10;
