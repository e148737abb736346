//! Evaluation as a stage: pass@k with intervals on held-out tasks; leaves the model as it is.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tallow_envs::{Environment, Split};
use tallow_policies::SamplingParams;
use tallow_verifiers::Verifier;

use super::{Stage, StageEntry, rl};
use crate::config::StageContext;
use crate::config::document::Table;
use crate::config::problem::{Fault, Problems};
use crate::error::Error;
use crate::evaluation::{Evaluation, EvaluationConfig};
use crate::learner::memory::Demand;
use crate::model::{ModelSettings, ModelState};
use crate::renderer::Renderer;
use crate::rollout::pool::{PoolLimits, RolloutPool};
use crate::rollout::sampling;
use crate::rollout::scoring::Scoring;
use crate::run::StageRun;

/// This stage's row.
pub const ENTRY: StageEntry = StageEntry {
    name: "eval",
    summary: "pass@k on held-out tasks; tables env, verifier",
    read,
    default_options: || json!(EvalConfig::default()),
};

/// Settings of the stage `eval`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct EvalConfig {
    /// Which half of the environment.
    split: Split,
    /// How replies are sampled.
    sampling: SamplingParams,
    /// What to measure; `every` has no meaning here.
    evaluation: EvaluationConfig,
    /// Replies sampled at once.
    slots: usize,
    /// Most replies in one episode.
    max_turns: usize,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            split: Split::Test,
            sampling: SamplingParams::default(),
            evaluation: EvaluationConfig::default(),
            slots: 128,
            max_turns: 8,
        }
    }
}

struct EvalStage {
    config: EvalConfig,
    environment: Arc<dyn Environment>,
    verifier: Arc<dyn Verifier>,
    components: [(&'static str, Value); 2],
}

fn read(
    table: &mut Table,
    context: &StageContext<'_>,
    problems: &mut Problems,
) -> Option<Box<dyn Stage>> {
    let (environment, env_settings) = rl::read_environment(table, context, problems);
    let (verifier, verifier_settings) =
        rl::read_verifier(table, environment.as_deref(), context, problems);
    let config: EvalConfig = table.take(problems)?;
    let mut faults = Vec::new();
    for (key, value) in
        [("evaluation.tasks", config.evaluation.tasks), ("max_turns", config.max_turns as u64)]
    {
        if value == 0 {
            faults.push(Fault::new(key, format!("{key} must not be 0")).expected("1 or more"));
        }
    }
    faults.extend(sampling::faults(&config.sampling).into_iter().map(|it| it.within("sampling")));
    faults.extend(config.evaluation.faults().into_iter().map(|it| it.within("evaluation")));
    let sound = faults.is_empty();
    for fault in faults {
        problems.at(table, fault);
    }
    if !sound {
        return None;
    }
    Some(Box::new(EvalStage {
        config,
        environment: environment?,
        verifier: verifier?,
        components: [("env", env_settings), ("verifier", verifier_settings)],
    }))
}

impl Stage for EvalStage {
    fn kind(&self) -> &'static str {
        ENTRY.name
    }

    fn resolved(&self) -> Value {
        let mut settings = json!(self.config);
        for (key, value) in &self.components {
            settings[*key] = value.clone();
        }
        settings
    }

    fn derived(&self, _model: &ModelSettings) -> Vec<(String, String)> {
        let evaluation = &self.config.evaluation;
        vec![
            ("tasks".into(), evaluation.tasks.to_string()),
            (
                "replies".into(),
                evaluation.tasks.saturating_mul(evaluation.samples as u64).to_string(),
            ),
        ]
    }

    fn provenance(&self) -> Option<Value> {
        self.environment.provenance()
    }

    fn demand(&self, model: &ModelSettings) -> Option<Demand> {
        Some(Demand { slots: self.config.slots, context: model.context, ..Default::default() })
    }

    fn run(&self, mut start: ModelState, run: &mut StageRun<'_>) -> Result<ModelState, Error> {
        let config = &self.config;
        run.prepare(&*self.verifier)?;
        let tokenizer = start.tokenizer()?;
        let decoder = start.decoder(run.model(), run.run_seed(), run.device())?;
        let options = run.model().chat_template_kwargs.clone();
        let renderer = Arc::new(Renderer::with_options(Arc::clone(&tokenizer), options)?);
        let mut pool = RolloutPool::new(
            &decoder,
            &renderer,
            Arc::clone(&self.environment),
            Scoring::by(Arc::clone(&self.verifier)),
            PoolLimits {
                threads: run.threads(),
                slots: config.slots,
                cache_bytes: None,
                episodes: config.slots.max(config.evaluation.samples),
                max_turns: config.max_turns,
                lockstep: true,
            },
            run.interrupted(),
        )?;
        let evaluation = Evaluation {
            config: &config.evaluation,
            split: config.split,
            sampling: &config.sampling,
            run_seed: run.run_seed(),
            seed: run.seed(),
        };
        let (metrics, groups) = evaluation.run(&mut pool, |total| run.bar(total, "tasks"))?;
        drop(pool);
        run.metrics(0, &metrics)?;
        run.samples(0, &groups, None, &renderer)?;
        Ok(ModelState { tokenizer: Some(tokenizer), decoder: Some(decoder), scorer: None })
    }
}
