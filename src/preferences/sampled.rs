//! Pairs of the policy's own replies to an environment's tasks, labelled by a verifier: a stand-in for
//! people whose true wishes are known, so that what a learned reward misses can be measured.
//!
//! Of the replies to a task that the verifier rewards differently, up to `pairs_per_task` pairs are
//! drawn. The better one is preferred with probability
//!
//! ```text
//! sigmoid((r_better - r_worse) / label_temperature)    Bradley and Terry 1952; 1 where it is not set
//! ```
//!
//! and the label is then flipped with probability `noise`. Held-out pairs are of the test split, and
//! have labels of the same kind.

use std::sync::Arc;

use rand::RngExt;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tallow_envs::{Environment, Seed, Split};
use tallow_policies::{Decoder, SamplingParams};
use tallow_verifiers::{Message, Verifier};

use super::{Pair, PairSet, PairSource, PairSourceEntry, Read};
use crate::config::StageContext;
use crate::config::document::Table;
use crate::config::problem::{Fault, Problems};
use crate::error::Error;
use crate::learner::memory::Demand;
use crate::model::ModelSettings;
use crate::renderer::Renderer;
use crate::rollout::pool::{GroupPlan, PoolLimits, RolloutPool};
use crate::rollout::sampling;
use crate::rollout::scoring::Scoring;
use crate::rollout::task_order::TaskOrder;
use crate::rollout::trajectory::ScoredGroup;
use crate::run::StageRun;
use crate::stages::rl::{read_environment, read_verifier};

/// This source's row.
pub const ENTRY: PairSourceEntry = PairSourceEntry {
    name: "sampled",
    summary: "the policy's replies to an environment's tasks, labelled by a verifier; tables env, verifier",
    read,
    default_options: || {
        let mut options = json!(SampledPairs::default());
        options["env"] = Value::Null;
        options["verifier"] = Value::Null;
        options
    },
};

/// Tags of the seed streams of this source.
const TASK_STREAM: u64 = 0x7461_736b;
const REPLY_STREAM: u64 = 0x7265_706c;
const LABEL_STREAM: u64 = 0x6c61_6265;

/// Settings of the source `sampled`, beside its tables `env` and `verifier`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SampledPairs {
    /// Tasks of the train split.
    pub tasks: u64,
    /// Tasks of the test split, for held-out pairs.
    pub test_tasks: u64,
    /// Replies to each.
    pub replies: usize,
    /// Most pairs of the replies to one task.
    pub pairs_per_task: usize,
    /// Probability that a label is flipped.
    pub noise: f64,
    /// Draw labels by the rewards' difference over this; absent: the better one is preferred.
    pub label_temperature: Option<f64>,
    /// How replies are sampled.
    pub sampling: SamplingParams,
    /// Replies sampled at once.
    pub slots: usize,
    /// Most replies in one episode.
    pub max_turns: usize,
}

impl Default for SampledPairs {
    fn default() -> Self {
        Self {
            tasks: 512,
            test_tasks: 128,
            replies: 4,
            pairs_per_task: 1,
            noise: 0.0,
            label_temperature: None,
            sampling: SamplingParams::default(),
            slots: 128,
            max_turns: 8,
        }
    }
}

impl SampledPairs {
    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (key, value, least) in [
            ("tasks", self.tasks, 1),
            ("replies", self.replies as u64, 2),
            ("pairs_per_task", self.pairs_per_task as u64, 1),
            ("slots", self.slots as u64, 1),
            ("max_turns", self.max_turns as u64, 1),
        ] {
            if value < least {
                faults.push(
                    Fault::new(key, "too few to make a pair")
                        .found(value.to_string())
                        .expected(format!("{least} or more")),
                );
            }
        }
        if !(0.0..=0.5).contains(&self.noise) {
            faults.push(
                Fault::new("noise", "labels flipped more often than not are other labels")
                    .found(self.noise.to_string())
                    .expected("a number from 0 to 0.5"),
            );
        }
        if let Some(temperature) = self.label_temperature
            && !(temperature > 0.0 && temperature.is_finite())
        {
            faults.push(
                Fault::new("label_temperature", "nothing can be divided by it")
                    .found(temperature.to_string())
                    .expected("a number above 0, or no such key"),
            );
        }
        faults.extend(sampling::faults(&self.sampling).into_iter().map(|it| it.within("sampling")));
        if self.sampling.temperature == 0.0 {
            faults.push(
                Fault::new("sampling.temperature", "pairs need replies that differ")
                    .found("0")
                    .expected("a number above 0, such as 1.0"),
            );
        }
        faults
    }

    /// Most pairs of one task.
    fn pairs_of_a_task(&self) -> u64 {
        let all = (self.replies as u64).saturating_mul(self.replies as u64 - 1) / 2;
        all.min(self.pairs_per_task as u64)
    }

    /// The pairs of a judged group.
    fn pairs(&self, group: &ScoredGroup, seed: Seed) -> Vec<Pair> {
        let members = &group.members;
        let mut stream = seed.derive(&[LABEL_STREAM, group.task_id().index]).rng();
        let mut candidates = Vec::new();
        for (index, one) in members.iter().enumerate() {
            for other in &members[index + 1..] {
                let (better, worse) =
                    if one.reward > other.reward { (one, other) } else { (other, one) };
                if better.reward > worse.reward {
                    candidates.push((better, worse));
                }
            }
        }
        candidates.shuffle(&mut stream);
        candidates
            .into_iter()
            .take(self.pairs_per_task)
            .map(|(better, worse)| {
                let lead = f64::from(better.reward) - f64::from(worse.reward);
                let right =
                    self.label_temperature.map_or(1.0, |it| 1.0 / (1.0 + (-lead / it).exp()));
                let prefers_better = stream.random_bool(right) != stream.random_bool(self.noise);
                let (chosen, rejected) =
                    if prefers_better { (better, worse) } else { (worse, better) };
                let begin = group.task.prompt.len();
                let said = |it: &crate::rollout::trajectory::ScoredTrajectory| -> Vec<Message> {
                    it.trajectory.transcript.messages[begin..].to_vec()
                };
                Pair {
                    prompt: group.task.prompt.clone(),
                    chosen: said(chosen),
                    rejected: said(rejected),
                    margin: None,
                }
            })
            .collect()
    }
}

fn read(table: &mut Table, context: &StageContext<'_>, problems: &mut Problems) -> Option<Read> {
    let (environment, env_settings) = read_environment(table, context, problems);
    let (verifier, verifier_settings) =
        read_verifier(table, environment.as_deref(), context, problems);
    let config: SampledPairs = table.take(problems)?;
    let faults = config.faults();
    let sound = faults.is_empty();
    for fault in faults {
        problems.at(table, fault);
    }
    let (environment, verifier) = (environment?, verifier?);
    if !sound {
        return None;
    }
    let mut settings = json!(config);
    settings["env"] = env_settings;
    settings["verifier"] = verifier_settings;
    Some((Arc::new(Source { config, environment, verifier }), settings))
}

struct Source {
    config: SampledPairs,
    environment: Arc<dyn Environment>,
    verifier: Arc<dyn Verifier>,
}

impl Source {
    /// The groups of one split, judged.
    fn plans(&self, split: Split, seed: Seed) -> Vec<GroupPlan> {
        let asked = if split == Split::Train { self.config.tasks } else { self.config.test_tasks };
        let tasks = self.environment.len(split);
        let mut order = TaskOrder::new(seed.derive(&[TASK_STREAM, split as u64]), tasks);
        let params = Arc::new(self.config.sampling.clone());
        (0..asked.min(tasks))
            .map(|it| {
                let index = order.index(it);
                GroupPlan {
                    split,
                    index,
                    size: self.config.replies,
                    params: Arc::clone(&params),
                    seed: seed.derive(&[REPLY_STREAM, split as u64, index]),
                }
            })
            .collect()
    }
}

impl PairSource for Source {
    fn most(&self) -> (u64, u64) {
        let each = self.config.pairs_of_a_task();
        (self.config.tasks.saturating_mul(each), self.config.test_tasks.saturating_mul(each))
    }

    fn demand(&self, model: &ModelSettings) -> Option<Demand> {
        Some(Demand { slots: self.config.slots, context: model.context, ..Default::default() })
    }

    fn provenance(&self) -> Option<Value> {
        self.environment.provenance()
    }

    fn is_costly(&self) -> bool {
        true
    }

    fn pairs(
        &self,
        policy: &Decoder,
        renderer: &Arc<Renderer>,
        run: &mut StageRun<'_>,
    ) -> Result<PairSet, Error> {
        let config = &self.config;
        run.prepare(&*self.verifier)?;
        let mut pool = RolloutPool::new(
            policy,
            renderer,
            Arc::clone(&self.environment),
            Scoring::by(Arc::clone(&self.verifier)),
            PoolLimits {
                threads: run.threads(),
                slots: config.slots,
                cache_bytes: None,
                episodes: config.slots.max(config.replies),
                max_turns: config.max_turns,
                lockstep: true,
            },
            run.interrupted(),
        )?;
        let seed = run.seed();
        let plans = [Split::Train, Split::Test].map(|split| self.plans(split, seed));
        let bar = run.bar(plans.iter().map(Vec::len).sum::<usize>() as u64, "tasks");
        let [train, test] = &plans;
        let trained = pool.play(train, |done| bar.set(done as u64))?;
        let held_out = pool.play(test, |done| bar.set((train.len() + done) as u64))?;
        drop(pool);
        let mut set = PairSet::default();
        let (mut played, mut broken, mut example) = (0, 0, None);
        for (groups, pairs, split) in
            [(&trained, &mut set.train, Split::Train), (&held_out, &mut set.held_out, Split::Test)]
        {
            for group in groups {
                let errors = || group.environment_errors.iter().chain(&group.verifier_errors);
                played += group.members.len() + errors().count();
                broken += errors().count();
                example = example.or_else(|| errors().next().cloned());
                pairs.extend(config.pairs(group, seed.derive(&[split as u64])));
            }
        }
        run.samples(0, &trained, None, renderer)?;
        if set.train.is_empty() {
            let told = match example {
                Some(example) if broken == played => format!("every rollout broke: {example}"),
                _ => "the verifier rewards all replies to each task alike: there is no pair to learn \
                      from; raise pairs.replies, or train the policy first"
                    .to_owned(),
            };
            return Err(Error::Data(told));
        }
        let mut told = format!(
            "{} pairs to learn from and {} held out, of {} tasks",
            set.train.len(),
            set.held_out.len(),
            train.len() + test.len()
        );
        if broken > 0 {
            told.push_str(&format!("; {broken} of {played} replies could not be judged"));
        }
        run.line(&told);
        Ok(set)
    }
}
