//! Reinforcement learning on verifiable tasks: the program's main loop.
//!
//! Each step plays `groups_per_step` tasks `group_size` times each, has the verifier judge the
//! replies, lets the algorithm turn the verdicts into credit, and changes the weights. With
//! `max_staleness = 0` every reply is drawn from the newest weights; with more, rollouts run ahead
//! by that many steps while the learner works.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tallow_envs::{Environment, Seed, Split};
use tallow_policies::{Decoder, SamplingParams};
use tallow_verifiers::{Outcome, StopReason, Verifier};

use super::{Stage, StageEntry};
use crate::algorithms::ppo::CriticTrunk;
use crate::algorithms::{Algorithm, Reference};
use crate::config::StageContext;
use crate::config::document::Table;
use crate::config::problem::{Fault, Problems};
use crate::error::Error;
use crate::evaluation::{Evaluation, EvaluationConfig};
use crate::learner::memory::{Demand, cache_bound};
use crate::learner::update::UpdateSettings;
use crate::learner::{Beside, Learner, OptimizerConfig};
use crate::model::{ModelSettings, ModelState};
use crate::renderer::Renderer;
use crate::rollout::pool::{GroupPlan, PoolLimits, RolloutPool};
use crate::rollout::sampling;
use crate::rollout::scoring::Scoring;
use crate::rollout::task_order::TaskOrder;
use crate::rollout::trajectory::ScoredGroup;
use crate::run::StageRun;
use crate::tracking::Metrics;

/// This stage's row.
pub const ENTRY: StageEntry = StageEntry {
    name: "rl",
    summary: "rollouts, verdicts, policy gradient; tables env, verifier, algorithm",
    read,
    default_options: || json!(RlConfig::default()),
};

/// Tags of the seed streams of this stage.
const TASK_STREAM: u64 = 0x7461_736b;
const REPLY_STREAM: u64 = 0x7265_706c;
const MINIBATCH_STREAM: u64 = 0x6d69_6e69;
const EVALUATION_STREAM: u64 = 0x6576_616c;

/// Threads and limits of the rollouts.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutConfig {
    /// Threads that play episodes; absent: one for each core.
    pub threads: Option<usize>,
    /// Replies sampled at once; absent: all of a step.
    pub slots: Option<usize>,
    /// Most MiB of keys and values; absent: what the slots may need, as far as it is free. Replies
    /// that find no room wait, which changes no sample of a lockstep run.
    pub cache_mib: Option<u64>,
    /// Most replies in one episode.
    pub max_turns: usize,
    /// Serve requests in a fixed order, so that a run repeats bit for bit.
    pub lockstep: bool,
    /// Versions that rollouts may be behind the weights they train.
    pub max_staleness: u64,
    /// The run stops when more than this share of a step's rollouts broke.
    pub largest_broken_share: f64,
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            threads: None,
            slots: None,
            cache_mib: None,
            max_turns: 8,
            lockstep: true,
            max_staleness: 0,
            largest_broken_share: 0.2,
        }
    }
}

/// Settings of the stage `rl`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RlConfig {
    /// Batches of rollouts.
    pub steps: u64,
    /// Tasks in a batch.
    pub groups_per_step: usize,
    /// Replies to each task.
    pub group_size: usize,
    /// Passes over a batch.
    pub epochs: usize,
    /// Optimizer steps in a pass.
    pub minibatches: usize,
    /// How replies are sampled. What top-k, top-p, min-p and min_tokens cut off is accounted for in
    /// the importance ratio (see `Trajectory::logprobs`), but never tried.
    pub sampling: SamplingParams,
    /// How weights change.
    pub optimizer: OptimizerConfig,
    /// Threads and limits.
    pub rollout: RolloutConfig,
    /// A reply cut off at `max_tokens` is malformed, whatever it holds.
    pub cut_off_is_malformed: bool,
    /// A control: reward by a coin that shows 1 with this probability, whatever the verdict.
    pub coin_reward: Option<f64>,
    /// Phrases to count: under each name, the texts of which a reply must hold one.
    pub phrases: BTreeMap<String, Vec<String>>,
    /// Held-out evaluation.
    pub evaluation: EvaluationConfig,
    /// A checkpoint every so many steps; 0 for none.
    pub checkpoint_every: u64,
    /// Rollouts are kept every so many steps, besides the first and the last; 0 for only those.
    pub samples_every: u64,
}

impl Default for RlConfig {
    fn default() -> Self {
        Self {
            steps: 100,
            groups_per_step: 16,
            group_size: 8,
            epochs: 1,
            minibatches: 1,
            sampling: SamplingParams::default(),
            optimizer: OptimizerConfig { learning_rate: 3e-4, ..Default::default() },
            rollout: RolloutConfig::default(),
            cut_off_is_malformed: true,
            coin_reward: None,
            phrases: BTreeMap::new(),
            evaluation: EvaluationConfig::default(),
            checkpoint_every: 20,
            samples_every: 10,
        }
    }
}

impl RlConfig {
    /// Replies in a batch. Absurd settings are told by the memory plan, so they must not wrap.
    fn replies(&self) -> usize {
        self.groups_per_step.saturating_mul(self.group_size)
    }
}

struct RlStage {
    config: RlConfig,
    environment: Arc<dyn Environment>,
    verifier: Arc<dyn Verifier>,
    algorithm: Algorithm,
    /// The sub-tables as they were given, for the resolved configuration.
    components: [(&'static str, Value); 3],
}

fn read(
    table: &mut Table,
    context: &StageContext<'_>,
    problems: &mut Problems,
) -> Option<Box<dyn Stage>> {
    let (environment, env_settings) = read_environment(table, context, problems);
    let (verifier, verifier_settings) =
        read_verifier(table, environment.as_deref(), context, problems);
    let mut algorithm_table = table.split_named("algorithm", problems);
    let name: String = algorithm_table
        .as_mut()
        .and_then(|it| it.pull("name", problems))
        .unwrap_or_else(|| "grpo".into());
    let entry = context.registry.algorithms.iter().find(|it| it.name == name).copied();
    if entry.is_none() {
        let names = context.registry.algorithms.iter().map(|it| it.name);
        let fault = tallow_verifiers::ConfigFault::unknown_name(
            "algorithm.name",
            "algorithm",
            &name,
            names,
        );
        problems.at(table, fault.into());
    }
    let algorithm = entry.and_then(|entry| match &algorithm_table {
        Some(table) => table.take_with(problems, |options| entry.build(options)),
        None => entry
            .build(json!({}))
            .map_err(|fault| problems.at(table, fault.within("algorithm").into()))
            .ok(),
    });
    let options = algorithm_table.as_ref().map_or_else(|| json!({}), Table::to_json);
    let config: Option<RlConfig> = table.take(problems);
    let (config, mut algorithm) = (config?, algorithm?);
    let mut faults = faults(&config, &algorithm);
    if let Some(Reference::Folder(path)) = &mut algorithm.reference {
        *path = context.folder.join(&*path);
        if !tallow_policies::holds_model(path) {
            faults.push(
                Fault::new("algorithm.teacher", "no model folder there")
                    .found(path.display().to_string())
                    .expected("a folder with config.json and model.safetensors"),
            );
        }
    }
    let sound = faults.is_empty();
    for fault in faults {
        problems.at(table, fault);
    }
    if !sound {
        return None;
    }
    let entry = entry?;
    let mut algorithm_settings = entry.default_options();
    merge(&mut algorithm_settings, &options);
    algorithm_settings["name"] = json!(name);
    Some(Box::new(RlStage {
        config,
        environment: environment?,
        verifier: verifier?,
        algorithm,
        components: [
            ("env", env_settings),
            ("verifier", verifier_settings),
            ("algorithm", algorithm_settings),
        ],
    }))
}

/// What a component's table names; one with a `plugin` needs no name.
fn component_name(table: &mut Table, problems: &mut Problems) -> Option<String> {
    if table.contains("plugin") && !table.contains("name") {
        return Some("plugin".to_owned());
    }
    table.require("name", problems)
}

/// Reads a stage's `env` table.
pub fn read_environment(
    table: &mut Table,
    context: &StageContext<'_>,
    problems: &mut Problems,
) -> (Option<Arc<dyn Environment>>, Value) {
    if !table.contains("env") {
        let fault = Fault::new("env", "there are no tasks")
            .expected("a table `env` with a `name`")
            .hint("`tallow list envs` shows all");
        problems.at(table, fault);
        return (None, Value::Null);
    }
    let Some(mut env) = table.split_named("env", problems) else { return (None, Value::Null) };
    let Some(name) = component_name(&mut env, problems) else { return (None, Value::Null) };
    let environments = &context.registry.environments;
    let build_context = context.environment_context();
    if environments.get(&name).is_none() {
        let names = environments.entries().iter().map(|it| it.name());
        let fault =
            tallow_verifiers::ConfigFault::unknown_name("name", "environment", &name, names);
        problems.at(&env, fault.into());
        return (None, Value::Null);
    }
    let built =
        env.take_with(problems, |options| environments.build(&name, options, &build_context));
    let mut settings = environments.get(&name).map_or(Value::Null, |it| it.default_options());
    merge(&mut settings, &env.to_json());
    settings["name"] = json!(name);
    (built, settings)
}

/// Reads a stage's `verifier` table; without one, the environment's own choice.
pub fn read_verifier(
    table: &mut Table,
    environment: Option<&dyn Environment>,
    context: &StageContext<'_>,
    problems: &mut Problems,
) -> (Option<Arc<dyn Verifier>>, Value) {
    let verifiers = &context.verifiers();
    let given = table.split_named("verifier", problems);
    let (name, built, options) = match given {
        None => {
            let Some(environment) = environment else { return (None, Value::Null) };
            let (name, options) = environment.default_verifier();
            let built = match verifiers.build(name, options.clone()) {
                Ok(built) => Some(built),
                Err(fault) => {
                    problems.at(table, fault.within("verifier").into());
                    None
                }
            };
            (name.to_string(), built, options)
        }
        Some(mut table) => {
            let Some(name) = component_name(&mut table, problems) else {
                return (None, Value::Null);
            };
            if verifiers.get(&name).is_none() {
                let names = verifiers.entries().iter().map(|it| it.name());
                let fault =
                    tallow_verifiers::ConfigFault::unknown_name("name", "verifier", &name, names);
                problems.at(&table, fault.into());
                return (None, Value::Null);
            }
            let built = table.take_with(problems, |options| verifiers.build(&name, options));
            let options = table.to_json();
            (name, built, options)
        }
    };
    if let (Some(verifier), Some(environment)) = (&built, environment)
        && let Some(fault) = cannot_judge(&name, &**verifier, environment)
    {
        problems.at(table, fault);
    }
    let mut settings = options;
    settings["name"] = json!(name);
    (built, settings)
}

/// The fault of a verifier whose references are not those of the environment's tasks.
pub fn cannot_judge(
    name: &str,
    verifier: &dyn Verifier,
    environment: &dyn Environment,
) -> Option<Fault> {
    let (kinds, given) = (verifier.reference_kinds(), environment.reference_kind());
    (!kinds.contains(&given)).then(|| {
        let kinds: Vec<String> = kinds.iter().map(ToString::to_string).collect();
        Fault::new("verifier", format!("`{name}` cannot judge this environment's tasks"))
            .found(format!("references of kind {given}"))
            .expected(kinds.join(" or "))
    })
}

/// What cannot work about the settings themselves.
fn faults(config: &RlConfig, algorithm: &Algorithm) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (key, value) in [
        ("steps", config.steps as usize),
        ("groups_per_step", config.groups_per_step),
        ("group_size", config.group_size),
        ("epochs", config.epochs),
        ("minibatches", config.minibatches),
        ("rollout.max_turns", config.rollout.max_turns),
        ("optimizer.micro_batch_tokens", config.optimizer.micro_batch_tokens),
    ] {
        if value == 0 {
            faults.push(Fault::new(key, format!("{key} must not be 0")).expected("1 or more"));
        }
    }
    let least = algorithm.smallest_group;
    if config.group_size > 0 && config.group_size < least {
        let name = algorithm.name;
        let problem = format!("`{name}` compares the replies to one task with each other");
        faults.push(
            Fault::new("group_size", problem)
                .found(config.group_size.to_string())
                .expected(format!("{least} or more"))
                .hint("set group_size = 8"),
        );
    }
    let replies = config.replies();
    if config.minibatches > 0 && replies > 0 && !replies.is_multiple_of(config.minibatches) {
        let problem = "the replies of a step do not divide into the minibatches";
        faults.push(
            Fault::new("minibatches", problem)
                .found(format!("{replies} replies in {} minibatches", config.minibatches))
                .expected("a divisor of groups_per_step × group_size"),
        );
    }
    let sampling_faults = sampling::faults(&config.sampling);
    faults.extend(sampling_faults.into_iter().map(|it| it.within("sampling")));
    faults.extend(config.evaluation.faults().into_iter().map(|it| it.within("evaluation")));
    if config.sampling.temperature == 0.0 {
        faults.push(
            Fault::new("sampling.temperature", "training needs replies that differ")
                .found(config.sampling.temperature.to_string())
                .expected("a number above 0, such as 1.0"),
        );
    }
    if config.rollout.lockstep && config.rollout.max_staleness > 0 {
        faults.push(
            Fault::new("rollout.max_staleness", "lockstep runs do not run ahead of the learner")
                .found(config.rollout.max_staleness.to_string())
                .expected("0, or rollout.lockstep = false"),
        );
    }
    faults.extend(config.optimizer.faults());
    if !(0.0..=1.0).contains(&config.rollout.largest_broken_share) {
        faults.push(
            Fault::new("rollout.largest_broken_share", "not a share")
                .found(config.rollout.largest_broken_share.to_string())
                .expected("a number from 0 to 1"),
        );
    }
    if let Some(probability) = config.coin_reward
        && !(0.0..=1.0).contains(&probability)
    {
        faults.push(
            Fault::new("coin_reward", "not a probability")
                .found(probability.to_string())
                .expected("a number from 0 to 1"),
        );
    }
    faults
}

impl RlStage {
    fn episodes(&self) -> usize {
        let ahead = self.config.rollout.max_staleness as usize;
        self.config.replies().saturating_mul(ahead.saturating_add(1))
    }

    fn slots(&self) -> usize {
        self.config.rollout.slots.unwrap_or(self.episodes()).max(1)
    }

    /// The last step whose rollouts may be under way while `step` is learned from: no further
    /// ahead than allowed, and not past an evaluation, which samples by itself.
    fn furthest(&self, step: u64) -> u64 {
        let ahead = step + self.config.rollout.max_staleness;
        match self.config.evaluation.every {
            0 => ahead,
            every => ahead.min((step / every + 1) * every - 1),
        }
    }

    fn plans(&self, step: u64, order: &mut TaskOrder, seed: Seed) -> Vec<GroupPlan> {
        let params = Arc::new(self.config.sampling.clone());
        let per_step = self.config.groups_per_step as u64;
        (0..per_step)
            .map(|it| {
                let position = step * per_step + it;
                GroupPlan {
                    split: Split::Train,
                    index: order.index(position),
                    size: self.config.group_size,
                    params: Arc::clone(&params),
                    seed: seed.derive(&[REPLY_STREAM, position]),
                }
            })
            .collect()
    }

    fn evaluate(
        &self,
        step: u64,
        pool: &mut RolloutPool,
        renderer: &Renderer,
        run: &mut StageRun<'_>,
    ) -> Result<(), Error> {
        if self.config.evaluation.tasks == 0 {
            return Ok(());
        }
        let evaluation = Evaluation {
            config: &self.config.evaluation,
            split: Split::Test,
            sampling: &self.config.sampling,
            run_seed: run.run_seed(),
            seed: run.seed().derive(&[EVALUATION_STREAM, step]),
        };
        let (metrics, groups) = evaluation.run(pool, |total| run.bar(total, "tasks"))?;
        run.metrics(step, &metrics)?;
        run.samples(step, &groups, None, renderer)?;
        let shown = |name: &str| metrics.value(name).unwrap_or(f64::NAN);
        run.line(&format!(
            "step {step}: held-out accuracy {:.3} ({:.3} to {:.3}), greedy {:.3}, reply {:.1} tokens",
            shown("eval/accuracy"),
            shown("eval/accuracy_low"),
            shown("eval/accuracy_high"),
            shown("eval/greedy_accuracy"),
            shown("eval/reply_tokens_mean"),
        ));
        Ok(())
    }

    /// Numbers about a step's rollouts.
    fn rollout_metrics(&self, groups: &[ScoredGroup]) -> Metrics {
        let mut metrics = Metrics::new();
        let members: Vec<_> = groups.iter().flat_map(|it| &it.members).collect();
        let count = members.len().max(1) as f64;
        let mean = |value: &dyn Fn(&crate::rollout::trajectory::ScoredTrajectory) -> f64| {
            members.iter().map(|it| value(it)).sum::<f64>() / count
        };
        let is = |yes: bool| f64::from(u8::from(yes));
        let reward = mean(&|it| f64::from(it.reward));
        metrics.set("rollout/reward_mean", reward);
        let variance = mean(&|it| (f64::from(it.reward) - reward).powi(2));
        metrics.set("rollout/reward_std", variance.sqrt());
        let right = |it: &crate::rollout::trajectory::ScoredTrajectory| {
            it.verdict.outcome == Outcome::Correct
        };
        metrics.set("rollout/accuracy", mean(&|it| is(right(it))));
        metrics.set(
            "rollout/malformed_share",
            mean(&|it| is(it.verdict.outcome == Outcome::Malformed)),
        );
        metrics.set("rollout/reply_tokens_mean", mean(&|it| it.trajectory.sampled_tokens() as f64));
        for (name, wanted) in
            [("rollout/reply_tokens_right", true), ("rollout/reply_tokens_wrong", false)]
        {
            let lengths: Vec<usize> = members
                .iter()
                .filter(|it| right(it) == wanted)
                .map(|it| it.trajectory.sampled_tokens())
                .collect();
            if !lengths.is_empty() {
                metrics.set(name, lengths.iter().sum::<usize>() as f64 / lengths.len() as f64);
            }
        }
        let cut = |it: &crate::rollout::trajectory::ScoredTrajectory| {
            it.trajectory.transcript.stop == StopReason::Length
        };
        metrics.set("rollout/truncated_share", mean(&|it| is(cut(it))));
        let kept = members.iter().map(|it| it.trajectory.kept_mass());
        let (mass, tokens) = kept.fold((0.0, 0), |all, it| (all.0 + it.0, all.1 + it.1));
        if tokens > 0 {
            metrics.set("rollout/kept_mass_mean", mass / tokens as f64);
        }
        metrics.set("rollout/turns_mean", mean(&|it| it.trajectory.turns.len() as f64));
        let still = groups.iter().filter(|it| it.has_no_variance()).count();
        metrics.set("rollout/groups_zero_variance", still as f64 / groups.len().max(1) as f64);
        let broken = |errors: &dyn Fn(&ScoredGroup) -> usize| {
            groups.iter().map(errors).sum::<usize>() as f64
        };
        metrics.set("rollout/env_errors", broken(&|it| it.environment_errors.len()));
        metrics.set("rollout/verifier_errors", broken(&|it| it.verifier_errors.len()));
        for (name, texts) in &self.config.phrases {
            let share = mean(&|it| {
                is(it
                    .trajectory
                    .transcript
                    .replies()
                    .any(|reply| texts.iter().any(|text| reply.contains(text.as_str()))))
            });
            metrics.set(format!("phrase/{name}_share"), share);
        }
        let mut parts: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for (name, value) in members.iter().flat_map(|it| &it.verdict.parts) {
            let sum = parts.entry(name).or_default();
            *sum = (sum.0 + f64::from(*value), sum.1 + 1.0);
        }
        for (name, (sum, count)) in parts {
            metrics.set(format!("part/{name}"), sum / count);
        }
        metrics
    }

    fn refuse_if_broken(&self, step: u64, groups: &[ScoredGroup]) -> Result<(), Error> {
        let played = self.config.replies();
        let environment: Vec<&String> =
            groups.iter().flat_map(|it| &it.environment_errors).collect();
        let verifier: Vec<&String> = groups.iter().flat_map(|it| &it.verifier_errors).collect();
        for (who, all) in [("the environment", environment), ("the verifier", verifier)] {
            let broken = all.len();
            if broken as f64 > self.config.rollout.largest_broken_share * played as f64 {
                let example = all.first().map_or_else(String::new, |it| (*it).clone());
                return Err(Error::TooManyBroken { broken, played, step, who, example });
            }
        }
        Ok(())
    }
}

impl Stage for RlStage {
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
        let config = &self.config;
        let replies = config.replies();
        let updates = config.epochs.saturating_mul(config.minibatches);
        vec![
            ("prompts a step".into(), config.groups_per_step.to_string()),
            ("replies a prompt".into(), config.group_size.to_string()),
            ("replies a step".into(), replies.to_string()),
            (
                "sampled tokens a step, at most".into(),
                replies.saturating_mul(config.sampling.max_tokens).to_string(),
            ),
            ("optimizer steps a step".into(), updates.to_string()),
            ("replies an optimizer step".into(), (replies / config.minibatches).to_string()),
            (
                "optimizer steps in all".into(),
                config.steps.saturating_mul(updates as u64).to_string(),
            ),
        ]
    }

    fn provenance(&self) -> Option<Value> {
        self.environment.provenance()
    }

    fn demand(&self, model: &ModelSettings) -> Option<Demand> {
        let sequence = model.context;
        let most = self.config.replies().saturating_mul(sequence);
        let optimizer = &self.config.optimizer;
        // With adapters the frozen weights are the reference.
        let algorithm = &self.algorithm;
        let keeps_reference = match algorithm.reference {
            Some(Reference::Start) => optimizer.lora.is_none() || algorithm.refresh_every > 0,
            Some(Reference::Folder(_)) => true,
            None => false,
        };
        // A critic on a trunk of its own has weights, gradients and two moments.
        let critic = match algorithm.critic.map(|it| it.trunk) {
            Some(CriticTrunk::Own) => 4,
            _ => 0,
        };
        let copies = critic
            + usize::from(keeps_reference)
            + usize::from(self.config.rollout.max_staleness > 0);
        Some(Demand {
            trains: true,
            copies,
            micro_batch_tokens: optimizer.micro_batch_tokens.min(most),
            recomputes: optimizer.recompute_activations,
            lora: optimizer.lora.clone(),
            slots: self.slots(),
            context: sequence,
            rollout_tokens: most,
            cache_bytes: self.config.rollout.cache_mib.map(|mib| mib.saturating_mul(1 << 20)),
        })
    }

    fn run(&self, mut start: ModelState, run: &mut StageRun<'_>) -> Result<ModelState, Error> {
        let config = &self.config;
        let algorithm = &self.algorithm;
        run.prepare(&*self.verifier)?;
        let tokenizer = start.tokenizer()?;
        let decoder = start.decoder(run.model(), run.run_seed(), run.device())?;
        let options = run.model().chat_template_kwargs.clone();
        let renderer = Arc::new(Renderer::with_options(Arc::clone(&tokenizer), options)?);
        let updates = config.steps * (config.epochs * config.minibatches) as u64;
        let beside = match &algorithm.reference {
            None => Beside::Nothing,
            Some(Reference::Start) => Beside::Start,
            Some(Reference::Folder(path)) => Beside::Model(Box::new(teacher(path, &decoder)?)),
        };
        let optimizer = config.optimizer.clone();
        let mut learner = Learner::new(decoder, optimizer, updates, beside, run.seed())?;
        if let Some(critic) = algorithm.critic {
            learner.add_critic(critic, run.seed())?;
        }
        let mut first = 0;
        let mut evaluated = false;
        if let Some(checkpoint) = run.resume()? {
            let state: RlState = checkpoint.state()?;
            learner.restore(&checkpoint.path, state.optimizer_steps)?;
            learner.set_kl_weight(state.kl_weight);
            first = checkpoint.step;
            evaluated = state.evaluated;
        }
        let context = learner.decoder().config().max_position_embeddings;
        let cache_bytes = match self.demand(run.model()) {
            Some(demand) => cache_bound(learner.decoder(), &Demand { context, ..demand })?,
            None => None,
        };
        let mut pool = RolloutPool::new(
            learner.decoder(),
            &renderer,
            Arc::clone(&self.environment),
            Scoring {
                verifier: Arc::clone(&self.verifier),
                cut_off_is_malformed: config.cut_off_is_malformed,
                coin_reward: config.coin_reward,
            },
            PoolLimits {
                threads: config.rollout.threads.unwrap_or_else(|| run.threads()),
                slots: self.slots(),
                cache_bytes,
                // A group plays as a whole: an evaluation's may be larger than a step.
                episodes: self.episodes().max(config.evaluation.samples),
                max_turns: config.rollout.max_turns,
                lockstep: config.rollout.lockstep,
            },
            run.interrupted(),
        )?;
        let seed = run.seed();
        let tasks = self.environment.len(Split::Train);
        let mut order = TaskOrder::new(seed.derive(&[TASK_STREAM]), tasks);
        let share = |learner: &Learner| {
            // Rollouts that run ahead need weights that stand still while the learner works;
            // otherwise the engine rests then, and reads the learner's own.
            if config.rollout.max_staleness > 0 {
                learner.decoder().snapshot()
            } else {
                Ok(learner.decoder().clone())
            }
        };
        pool.publish(share(&learner)?, first)?;
        if !evaluated {
            self.evaluate(first, &mut pool, &renderer, run)?;
        }
        let bar = run.bar(config.steps, "steps");
        bar.start_at(first);
        let mut started = first;
        for step in first..config.steps {
            let clock = Instant::now();
            let collected = (|| {
                while started < config.steps && started <= self.furthest(step) {
                    pool.start(&self.plans(started, &mut order, seed))?;
                    started += 1;
                }
                pool.finish(config.groups_per_step)
            })();
            if matches!(collected, Err(Error::Interrupted)) && step > first {
                run.keep(step, |folder| save(&learner, true, folder))?;
            }
            let groups = collected?;
            let rollout_s = clock.elapsed().as_secs_f64();
            self.refuse_if_broken(step, &groups)?;
            let mut metrics = self.rollout_metrics(&groups);
            let updated = learner.update(
                algorithm,
                &groups,
                &UpdateSettings {
                    epochs: config.epochs,
                    minibatches: config.minibatches,
                    temperature: config.sampling.temperature,
                    max_tokens: config.sampling.max_tokens,
                    newest: step,
                    seed: seed.derive(&[MINIBATCH_STREAM, step]),
                },
            )?;
            metrics.extend(updated.metrics);
            let done = step + 1;
            if algorithm.refresh_every > 0 && done.is_multiple_of(algorithm.refresh_every) {
                learner.refresh_reference()?;
            }
            pool.publish(share(&learner)?, done)?;
            let sampled: usize = groups
                .iter()
                .flat_map(|it| &it.members)
                .map(|it| it.trajectory.sampled_tokens())
                .sum();
            metrics.set("rollout/tokens_per_second", sampled as f64 / rollout_s.max(1e-9));
            metrics.set("time/rollout_s", rollout_s);
            metrics.set("time/step_s", clock.elapsed().as_secs_f64());
            run.metrics(done, &metrics)?;
            let every = config.samples_every;
            let keep = done == 1 || done == config.steps || (every > 0 && done % every == 0);
            if keep {
                run.samples(done, &groups, Some(&updated.credit), &renderer)?;
            }
            bar.advance(1);
            bar.message(&format!(
                "right {:.2} · reply {:.1} tokens",
                metrics.value("rollout/accuracy").unwrap_or(0.0),
                metrics.value("rollout/reply_tokens_mean").unwrap_or(0.0),
            ));
            let every = config.evaluation.every;
            if done == config.steps || (every > 0 && done % every == 0) {
                let evaluated = self.evaluate(done, &mut pool, &renderer, run);
                if matches!(evaluated, Err(Error::Interrupted)) {
                    run.keep(done, |folder| save(&learner, false, folder))?;
                }
                evaluated?;
            }
            run.checkpoint(done, config.steps, config.checkpoint_every, |folder| {
                save(&learner, true, folder)
            })?;
        }
        drop(pool);
        let decoder = Some(learner.into_decoder());
        Ok(ModelState { tokenizer: Some(tokenizer), decoder, scorer: None })
    }
}

/// What a checkpoint of this stage holds besides weights and optimizer: batches without any
/// variance take no optimizer step, so steps alone do not tell where the schedule is.
#[derive(Deserialize, Serialize)]
struct RlState {
    optimizer_steps: u64,
    /// False if the evaluation that follows this step was interrupted: it is made up for.
    evaluated: bool,
    /// Weight of a KL penalty that a controller has moved.
    #[serde(default)]
    kl_weight: Option<f64>,
}

fn save(learner: &Learner, evaluated: bool, folder: &Path) -> Result<(), Error> {
    learner.save(folder)?;
    let state = RlState {
        optimizer_steps: learner.steps(),
        evaluated,
        kl_weight: learner.kl_weight(),
    };
    crate::run::save_state(folder, &state)
}

/// A teacher's model, beside the policy that learns from it.
fn teacher(path: &Path, policy: &Decoder) -> Result<Decoder, Error> {
    let teacher = Decoder::from_folder(path)?;
    let (taught, known) = (policy.config().vocab_size, teacher.config().vocab_size);
    if taught != known {
        return Err(Error::Data(format!(
            "the teacher in {} has a vocabulary of {known}, the policy one of {taught}: their \
             log-probabilities cannot be compared",
            path.display()
        )));
    }
    match policy.device() {
        Some(device) => Ok(teacher.on(device)?),
        None => Ok(teacher),
    }
}

/// Lays `over` on `under`, table by table.
fn merge(under: &mut Value, over: &Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                merge(under.entry(key).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over.clone(),
    }
}
