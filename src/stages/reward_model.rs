//! A reward model from pairs (Christiano et al. 2017, arXiv:1706.03741; Ouyang et al. 2022,
//! arXiv:2203.02155): the current policy's weights below a head of one value.
//!
//! Loss:   -log sigmoid(r(chosen) - r(rejected) - margin) + centering (r(chosen) + r(rejected))^2
//!
//! What it leaves in `models/STAGE` is a scorer: the verifier `reward_model` of a later stage names it
//! with `stage = "…"`. The next stage goes on from the policy that came into this one. Only differences
//! of scores are learned, so their zero and scale mean nothing; the mean and the standard deviation
//! over held-out replies are told at the end, as the verifier's `offset` and `scale`.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::pair_loop::{PairLearner, PairLoop, PairLoopConfig};
use super::{Stage, StageEntry};
use crate::algorithms::terms::preference::BradleyTerry;
use crate::config::StageContext;
use crate::config::document::Table;
use crate::config::problem::{Fault, Problems};
use crate::error::Error;
use crate::learner::batch::SequencePair;
use crate::learner::memory::Demand;
use crate::learner::reward::{PairScores, RewardLearner};
use crate::model::{ModelSettings, ModelState};
use crate::renderer::Renderer;
use crate::run::StageRun;
use crate::tracking::Metrics;

/// This stage's row.
pub const ENTRY: StageEntry = StageEntry {
    name: "reward_model",
    summary: "a scorer of replies from pairs; the policy stays as it is; tables pairs, loss",
    read,
    default_options: || {
        let mut options = json!(PairLoopConfig::default());
        options["loss"] = json!(RewardLossConfig::default());
        options["pairs"] = Value::Null;
        options
    },
};

/// The table `loss` of the stage `reward_model`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardLossConfig {
    /// Share of pairs whose label is thought wrong.
    pub label_smoothing: f64,
    /// Pulls the sum of a pair's scores to 0 (arXiv:2312.09244 takes 0.01).
    pub centering: f64,
    /// Whether a pair's `margin`, where it has one, is what its scores must differ by.
    pub use_margin: bool,
}

impl Default for RewardLossConfig {
    fn default() -> Self {
        Self { label_smoothing: 0.0, centering: 0.0, use_margin: true }
    }
}

impl RewardLossConfig {
    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if !(0.0..0.5).contains(&self.label_smoothing) {
            faults.push(
                Fault::new("loss.label_smoothing", "at a half the labels say nothing")
                    .found(self.label_smoothing.to_string())
                    .expected("a number from 0 to below 0.5"),
            );
        }
        if !(self.centering >= 0.0 && self.centering.is_finite()) {
            faults.push(
                Fault::new("loss.centering", "not a weight")
                    .found(self.centering.to_string())
                    .expected("0 or more, such as 0.01"),
            );
        }
        faults
    }
}

struct RewardModelStage {
    pairs: PairLoop,
    loss: RewardLossConfig,
}

fn read(
    table: &mut Table,
    context: &StageContext<'_>,
    problems: &mut Problems,
) -> Option<Box<dyn Stage>> {
    let loss: Option<RewardLossConfig> = table.split_or_empty("loss", problems).take(problems);
    let pairs = PairLoop::read(table, context, problems);
    let (loss, pairs) = (loss?, pairs?);
    let mut faults = loss.faults();
    if pairs.config.optimizer.lora.is_some() {
        faults.push(
            Fault::new("optimizer.lora", "a reward model is trained whole")
                .hint("adapters carry no head: leave `lora` out, or train the policy by `dpo`"),
        );
    }
    let sound = faults.is_empty();
    for fault in faults {
        problems.at(table, fault);
    }
    sound.then(|| Box::new(RewardModelStage { pairs, loss }) as Box<dyn Stage>)
}

impl PairLearner for RewardLearner {
    fn learn(&mut self, pairs: &[&SequencePair]) -> Result<Metrics, Error> {
        self.step(pairs)
    }

    fn scores(&self, pairs: &[SequencePair]) -> Result<Vec<PairScores>, Error> {
        RewardLearner::scores(self, pairs)
    }

    fn save(&self, folder: &Path) -> Result<(), Error> {
        RewardLearner::save(self, folder)
    }

    fn restore(&mut self, folder: &Path, steps: u64) -> Result<(), Error> {
        RewardLearner::restore(self, folder, steps)
    }
}

impl Stage for RewardModelStage {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn leaves_policy(&self) -> bool {
        false
    }

    fn resolved(&self) -> Value {
        self.pairs.resolved(json!(self.loss))
    }

    fn derived(&self, _model: &ModelSettings) -> Vec<(String, String)> {
        self.pairs.derived()
    }

    fn provenance(&self) -> Option<Value> {
        self.pairs.provenance()
    }

    fn demand(&self, model: &ModelSettings) -> Option<Demand> {
        // The policy stands beside it.
        Some(self.pairs.demand(model, 1))
    }

    fn run(&self, mut start: ModelState, run: &mut StageRun<'_>) -> Result<ModelState, Error> {
        let tokenizer = start.tokenizer()?;
        let policy = start.decoder(run.model(), run.run_seed(), run.device())?;
        let options = run.model().chat_template_kwargs.clone();
        let renderer = Arc::new(Renderer::with_options(Arc::clone(&tokenizer), options)?);
        if run.device().is_some() {
            run.line("a reward model is trained on the CPU");
        }
        let mut prepared = self.pairs.prepare(&policy, &renderer, run)?;
        if !self.loss.use_margin {
            let pairs = &mut prepared.pairs;
            pairs.train.iter_mut().chain(&mut pairs.held_out).for_each(|it| it.margin = 0.0);
        }
        let loss = BradleyTerry {
            label_smoothing: self.loss.label_smoothing,
            centering: self.loss.centering,
        };
        let optimizer = self.pairs.config.optimizer.clone();
        let mut learner = RewardLearner::new(&policy, loss, optimizer, prepared.steps, run.seed())?;
        let scores = self.pairs.run(&prepared, &mut learner, run)?;
        if !scores.is_empty() {
            let (mean, std) = moments(&scores);
            let told = Metrics::from_iter([("eval/reward_mean", mean), ("eval/reward_std", std)]);
            run.metrics(prepared.steps, &told)?;
            run.line(&format!(
                "held-out replies score {mean:.3} ± {std:.3}: as rewards of mean 0 and deviation 1 by \
                 verifier = {{ offset = {mean:.3}, scale = {:.3} }}",
                1.0 / std.max(SMALLEST_STD)
            ));
        }
        Ok(ModelState {
            tokenizer: Some(tokenizer),
            decoder: Some(policy),
            scorer: Some(learner.into_model()),
        })
    }
}

/// Keeps the suggested scale a number where all replies score the same.
const SMALLEST_STD: f64 = 1e-6;

/// Mean and standard deviation of all scores, of both sides.
fn moments(scores: &[PairScores]) -> (f64, f64) {
    let all = || scores.iter().flat_map(|it| [it.chosen, it.rejected]);
    let count = (2 * scores.len()) as f64;
    let mean = all().sum::<f64>() / count;
    let variance = all().map(|it| (it - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}
