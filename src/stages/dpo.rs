//! Direct preference optimisation over stored pairs (Rafailov et al. 2023, arXiv:2305.18290): the
//! policy learns from preferences without a reward model. The loss is [`crate::algorithms::dpo`]'s.
//!
//! The reference is the policy at the stage's start; its log-probabilities are computed with each batch.
//! A pair's lead is the difference of the implicit rewards beta (log pi - log pi_ref) of whole
//! replies.

use std::path::Path;
use std::sync::Arc;

use candle_core::Var;
use serde_json::{Value, json};

use super::pair_loop::{PairLearner, PairLoop, PairLoopConfig};
use super::{Stage, StageEntry};
use crate::algorithms::dpo::DpoConfig;
use crate::algorithms::terms::preference::PreferenceLoss;
use crate::algorithms::terms::surrogate::values as numbers;
use crate::config::StageContext;
use crate::config::document::Table;
use crate::config::problem::Problems;
use crate::error::Error;
use crate::learner::batch::{Sequence, SequencePair, SharedPrompts, bundled_runs};
use crate::learner::memory::Demand;
use crate::learner::reward::PairScores;
use crate::learner::update::ScoredReply;
use crate::learner::{Beside, Learner};
use crate::model::{ModelSettings, ModelState};
use crate::renderer::Renderer;
use crate::run::StageRun;
use crate::tracking::Metrics;

/// This stage's row.
pub const ENTRY: StageEntry = StageEntry {
    name: "dpo",
    summary: "direct preference optimisation on stored pairs; tables pairs, loss",
    read,
    default_options: || {
        let mut options = json!(PairLoopConfig::default());
        options["loss"] = json!(DpoConfig::default());
        options["pairs"] = Value::Null;
        options
    },
};

struct DpoStage {
    pairs: PairLoop,
    settings: DpoConfig,
    loss: PreferenceLoss,
}

fn read(
    table: &mut Table,
    context: &StageContext<'_>,
    problems: &mut Problems,
) -> Option<Box<dyn Stage>> {
    let settings: Option<DpoConfig> = table.split_or_empty("loss", problems).take(problems);
    let pairs = PairLoop::read(table, context, problems);
    let settings = settings?;
    let loss = settings
        .preference_loss()
        .map_err(|fault| problems.at(table, fault.within("loss").into()))
        .ok();
    Some(Box::new(DpoStage { pairs: pairs?, settings, loss: loss? }))
}

impl Stage for DpoStage {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn resolved(&self) -> Value {
        self.pairs.resolved(json!(self.settings))
    }

    fn derived(&self, _model: &ModelSettings) -> Vec<(String, String)> {
        self.pairs.derived()
    }

    fn provenance(&self) -> Option<Value> {
        self.pairs.provenance()
    }

    fn demand(&self, model: &ModelSettings) -> Option<Demand> {
        // With adapters the frozen weights are the reference.
        let copies = usize::from(self.pairs.config.optimizer.lora.is_none());
        Some(self.pairs.demand(model, copies))
    }

    fn run(&self, mut start: ModelState, run: &mut StageRun<'_>) -> Result<ModelState, Error> {
        let tokenizer = start.tokenizer()?;
        let policy = start.decoder(run.model(), run.run_seed(), run.device())?;
        let options = run.model().chat_template_kwargs.clone();
        let renderer = Arc::new(Renderer::with_options(Arc::clone(&tokenizer), options)?);
        let prepared = self.pairs.prepare(&policy, &renderer, run)?;
        let optimizer = self.pairs.config.optimizer.clone();
        let learner = Learner::new(policy, optimizer, prepared.steps, Beside::Start, run.seed())?;
        let mut learner = DpoLearner { learner, loss: self.loss };
        self.pairs.run(&prepared, &mut learner, run)?;
        let decoder = Some(learner.learner.into_decoder());
        Ok(ModelState { tokenizer: Some(tokenizer), decoder, scorer: None })
    }
}

struct DpoLearner {
    learner: Learner,
    loss: PreferenceLoss,
}

/// Both sides of each pair, the preferred one first.
fn sides<'a>(pairs: impl IntoIterator<Item = &'a SequencePair>) -> Vec<&'a Sequence> {
    pairs.into_iter().flat_map(|it| [&it.chosen, &it.rejected]).collect()
}

impl DpoLearner {
    /// log pi_ref of each scored token of each sequence, nats.
    fn reference(&self, sequences: &[&Sequence]) -> Result<Vec<Vec<f64>>, Error> {
        let Some(reference) = self.learner.reference() else {
            return Err(Error::Diverged(
                "pairs are compared with a reference, and there is none".into(),
            ));
        };
        let mut all = Vec::with_capacity(sequences.len());
        for run in self.runs(sequences) {
            let part: Vec<Sequence> = sequences[run].iter().map(|it| (*it).clone()).collect();
            let flat = Learner::score(reference, &part, 1.0)?;
            let mut rest = flat.as_slice();
            for sequence in &part {
                let (own, later) = rest.split_at(sequence.scored_tokens());
                all.push(own.iter().map(|it| f64::from(*it)).collect());
                rest = later;
            }
        }
        Ok(all)
    }

    fn runs(&self, sequences: &[&Sequence]) -> Vec<std::ops::Range<usize>> {
        bundled_runs(sequences, 2, self.learner.micro_batch_tokens(), SharedPrompts::Once)
    }
}

fn replies<'a>(sequences: &[&'a Sequence], reference: &'a [Vec<f64>]) -> Vec<ScoredReply<'a>> {
    let both = sequences.iter().zip(reference);
    both.map(|(sequence, it)| ScoredReply { sequence, reference_logprobs: it }).collect()
}

impl PairLearner for DpoLearner {
    fn learn(&mut self, pairs: &[&SequencePair]) -> Result<Metrics, Error> {
        let sequences = sides(pairs.iter().copied());
        let reference = self.reference(&sequences)?;
        let stepped =
            self.learner.preference_step(&self.loss, &replies(&sequences, &reference), 1.0)?;
        let mut metrics = Metrics::new();
        for (name, value) in stepped.iter() {
            let name = match name {
                "learner/loss" => "train/loss_nats",
                "learner/pair_accuracy" => "train/accuracy",
                "learner/pair_margin" => "train/margin",
                other => other,
            };
            metrics.set(name, value);
        }
        Ok(metrics)
    }

    fn scores(&self, pairs: &[SequencePair]) -> Result<Vec<PairScores>, Error> {
        let sequences = sides(pairs);
        let reference = self.reference(&sequences)?;
        let replies = replies(&sequences, &reference);
        let mut scores = Vec::with_capacity(pairs.len());
        for run in self.runs(&sequences) {
            let part: Vec<Sequence> =
                sequences[run.clone()].iter().map(|it| (*it).clone()).collect();
            let logprobs: Vec<f64> = Learner::score(self.learner.decoder(), &part, 1.0)?
                .into_iter()
                .map(f64::from)
                .collect();
            let logprobs = Var::new(logprobs, &candle_core::Device::Cpu)?;
            let judged = self.loss.judged(&logprobs, &replies[run])?;
            let losses = numbers(&judged.losses)?;
            scores.extend(
                judged.rewards().zip(losses).map(|((chosen, rejected), loss)| PairScores {
                    chosen,
                    rejected,
                    loss,
                }),
            );
        }
        Ok(scores)
    }

    fn save(&self, folder: &Path) -> Result<(), Error> {
        self.learner.save(folder)
    }

    fn restore(&mut self, folder: &Path, steps: u64) -> Result<(), Error> {
        self.learner.restore(folder, steps)
    }
}
