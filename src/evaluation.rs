//! How good a policy is: accuracy, pass@k and reply lengths, with intervals.
//!
//! pass@k is the unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (arXiv:2107.03374,
//! eq. 1), with c of a task's n replies right. Intervals are 95 % and take tasks as the independent
//! draws: Wilson's (1927, eq. 2 of doi:10.2307/2276774) for as many draws as would spread as much as
//! the tasks' means do (Kish 1965: the effective sample size), at least the number of tasks. Lengths
//! are in tokens, those of right and wrong replies apart, since a mean over both can rise for either
//! reason.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tallow_envs::{Seed, Split};
use tallow_policies::SamplingParams;
use tallow_verifiers::{Outcome, StopReason};

use crate::config::problem::Fault;
use crate::console::Bar;
use crate::error::Error;
use crate::rollout::pool::{GroupPlan, RolloutPool};
use crate::rollout::sampling::temperature_fault;
use crate::rollout::task_order::TaskOrder;
use crate::rollout::trajectory::ScoredGroup;
use crate::tracking::Metrics;

/// Settings of an evaluation.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationConfig {
    /// Evaluate every so many steps, besides before the first and after the last; 0 for only those.
    pub every: u64,
    /// Held-out tasks; in the stage `rl` 0 leaves evaluations out.
    pub tasks: u64,
    /// Sampled replies to each.
    pub samples: usize,
    /// Which k to tell pass@k for; those above `samples` are left out.
    pub k: Vec<usize>,
    /// Whether to decode greedily as well, one reply to each task.
    pub greedy: bool,
    /// Temperature of the sampled replies; absent: the stage's.
    pub temperature: Option<f64>,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self { every: 0, tasks: 128, samples: 4, k: vec![1, 4], greedy: true, temperature: None }
    }
}

impl EvaluationConfig {
    /// What cannot be measured, under the names of the fields.
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.samples == 0 {
            let problem = "an evaluation without replies";
            faults.push(Fault::new("samples", problem).expected("1 or more"));
        }
        if self.k.contains(&0) {
            let problem = "no task is solved within 0 tries";
            faults.push(Fault::new("k", problem).expected("numbers of 1 or more"));
        }
        let temperature = self.temperature;
        faults.extend(temperature.and_then(|it| temperature_fault("temperature", it)));
        faults
    }
}

/// Tags of the seed streams of an evaluation.
const TASK_STREAM: u64 = 0x6576_616c;
const GREEDY_STREAM: u64 = 0x6772_6565;

/// One evaluation: the same tasks for the same `run_seed`, other draws for another `seed`.
pub struct Evaluation<'a> {
    /// What to measure.
    pub config: &'a EvaluationConfig,
    /// Which half of the environment.
    pub split: Split,
    /// How replies are sampled.
    pub sampling: &'a SamplingParams,
    /// Chooses the tasks.
    pub run_seed: Seed,
    /// Seeds the replies.
    pub seed: Seed,
}

impl Evaluation<'_> {
    /// Plays it; returns its metrics and the sampled groups. `bar` makes a bar for so many tasks.
    ///
    /// # Errors
    /// As [`RolloutPool::play`], or if there is no rollout to judge by.
    pub fn run(
        &self,
        pool: &mut RolloutPool,
        bar: impl FnOnce(u64) -> Bar,
    ) -> Result<(Metrics, Vec<ScoredGroup>), Error> {
        let (sampled, greedy) = self.plans(pool.environment().len(self.split));
        let bar = bar((sampled.len() + greedy.len()) as u64);
        let groups = pool.play(&sampled, |done| bar.set(done as u64))?;
        refuse_if_all_broke(&groups)?;
        let mut metrics = summary(&groups, &self.config.k);
        if !greedy.is_empty() {
            let greedy = pool.play(&greedy, |done| bar.set((sampled.len() + done) as u64))?;
            metrics.set("eval/greedy_accuracy", share_right(&greedy));
        }
        Ok((metrics, groups))
    }

    /// The sampled and the greedy groups, in an environment of `tasks` tasks.
    fn plans(&self, tasks: u64) -> (Vec<GroupPlan>, Vec<GroupPlan>) {
        let mut order = TaskOrder::new(self.run_seed.derive(&[TASK_STREAM]), tasks);
        let count = self.config.tasks.min(tasks);
        let temperature = self.config.temperature.unwrap_or(self.sampling.temperature);
        let at = |temperature| Arc::new(SamplingParams { temperature, ..self.sampling.clone() });
        let (sampled, greedy) = (at(temperature), at(0.0));
        let indices: Vec<u64> = (0..count).map(|it| order.index(it)).collect();
        let plan =
            |index: &u64, size: usize, params: &Arc<SamplingParams>, stream: u64| GroupPlan {
                split: self.split,
                index: *index,
                size,
                params: Arc::clone(params),
                seed: self.seed.derive(&[stream, *index]),
            };
        let size = self.config.samples;
        let samples = indices.iter().map(|it| plan(it, size, &sampled, TASK_STREAM)).collect();
        let greedily = if self.config.greedy {
            indices.iter().map(|it| plan(it, 1, &greedy, GREEDY_STREAM)).collect()
        } else {
            Vec::new()
        };
        (samples, greedily)
    }
}

/// Accuracies and pass@k of the evaluation before a stage's first step, which later ones are told
/// against.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct StartingPoint(BTreeMap<String, f64>);

impl StartingPoint {
    /// What an evaluation found.
    pub fn of(metrics: &Metrics) -> Self {
        let shares = metrics.iter().filter(|(name, _)| {
            let of_k = name.strip_prefix("eval/pass@").is_some_and(|k| k.parse::<usize>().is_ok());
            of_k || matches!(*name, "eval/accuracy" | "eval/greedy_accuracy")
        });
        Self(shares.map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// `eval/accuracy_gain`, `eval/pass@K_gain` and so on: what a later evaluation of the same tasks
    /// found more of; negative where it is less. Nothing where there was no evaluation before.
    pub fn gains(&self, later: &Metrics) -> Metrics {
        let gain =
            |(name, was): (&String, &f64)| Some((format!("{name}_gain"), later.value(name)? - was));
        self.0.iter().filter_map(gain).collect()
    }
}

/// An accuracy of nothing would read as a bad policy.
fn refuse_if_all_broke(groups: &[ScoredGroup]) -> Result<(), Error> {
    let errors =
        |it: &ScoredGroup| it.environment_errors.iter().chain(&it.verifier_errors).next().cloned();
    match groups.iter().find_map(errors) {
        Some(example) if groups.iter().all(|it| it.members.is_empty()) => {
            Err(Error::Environment(format!("every rollout of an evaluation broke: {example}")))
        }
        _ => Ok(()),
    }
}

/// Accuracy, pass@k and lengths of played groups.
pub fn summary(groups: &[ScoredGroup], k: &[usize]) -> Metrics {
    let mut metrics = Metrics::new();
    let counts: Vec<(usize, usize)> =
        groups.iter().map(|it| (it.members.len(), right(it))).filter(|it| it.0 > 0).collect();
    let accuracy: Vec<f64> = counts.iter().map(|(n, c)| *c as f64 / *n as f64).collect();
    set_interval(&mut metrics, "eval/accuracy", &accuracy);
    for k in k {
        let estimates: Vec<f64> =
            counts.iter().filter(|(n, _)| n >= k).map(|(n, c)| pass_at_k(*n, *c, *k)).collect();
        if !estimates.is_empty() {
            set_interval(&mut metrics, &format!("eval/pass@{k}"), &estimates);
        }
    }
    let members = || groups.iter().flat_map(|it| &it.members);
    let lengths = |keep: &dyn Fn(Outcome) -> bool| -> Vec<f64> {
        members()
            .filter(|it| keep(it.verdict.outcome))
            .map(|it| it.trajectory.sampled_tokens() as f64)
            .collect()
    };
    set_mean(&mut metrics, "eval/reply_tokens_mean", &lengths(&|_| true));
    set_mean(&mut metrics, "eval/reply_tokens_right", &lengths(&|it| it == Outcome::Correct));
    set_mean(&mut metrics, "eval/reply_tokens_wrong", &lengths(&|it| it != Outcome::Correct));
    let cut: Vec<f64> = members()
        .map(|it| f64::from(u8::from(it.trajectory.transcript.stop == StopReason::Length)))
        .collect();
    set_mean(&mut metrics, "eval/truncated_share", &cut);
    let broken: usize =
        groups.iter().map(|it| it.environment_errors.len() + it.verifier_errors.len()).sum();
    metrics.set("eval/broken_rollouts", broken as f64);
    metrics
}

/// Probability that at least one of k replies, drawn from n of which c are right, is right.
pub fn pass_at_k(n: usize, c: usize, k: usize) -> f64 {
    if n - c < k {
        return 1.0;
    }
    // C(n-c, k) / C(n, k) as a product of k factors, none of which overflows.
    let missed: f64 = (0..k).map(|it| (n - c - it) as f64 / (n - it) as f64).product();
    1.0 - missed
}

fn right(group: &ScoredGroup) -> usize {
    group.members.iter().filter(|it| it.verdict.outcome == Outcome::Correct).count()
}

fn share_right(groups: &[ScoredGroup]) -> f64 {
    let total: usize = groups.iter().map(|it| it.members.len()).sum();
    groups.iter().map(right).sum::<usize>() as f64 / total.max(1) as f64
}

fn set_mean(metrics: &mut Metrics, name: &str, values: &[f64]) {
    if !values.is_empty() {
        metrics.set(name, values.iter().sum::<f64>() / values.len() as f64);
    }
}

/// The mean of independent values from 0 to 1 as `name`, its 95 % interval as `name_low` and
/// `name_high`.
pub fn set_interval(metrics: &mut Metrics, name: &str, values: &[f64]) {
    if values.is_empty() {
        return;
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance =
        values.iter().map(|it| (it - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    let spread = mean * (1.0 - mean);
    let draws = if variance > 0.0 { (spread * count / variance).max(count) } else { count };
    let (low, high) = wilson(mean, draws);
    metrics.set(name, mean);
    metrics.set(format!("{name}_low"), low);
    metrics.set(format!("{name}_high"), high);
}

/// The 95 % interval of a share seen in so many independent draws. Unlike the mean ± 1.96 standard
/// errors it has a width where all draws were alike.
pub fn wilson(share: f64, draws: f64) -> (f64, f64) {
    const Z: f64 = 1.96;
    let square = Z * Z / draws;
    let center = (share + square / 2.0) / (1.0 + square);
    let half = (share * (1.0 - share) * square + square * square / 4.0).sqrt() / (1.0 + square);
    ((center - half).max(0.0), (center + half).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pass_at_k_is_the_unbiased_estimator() {
        let close = |got: f64, want: f64| assert!((got - want).abs() < 1e-12, "{got} {want}");
        close(pass_at_k(4, 0, 2), 0.0);
        close(pass_at_k(4, 1, 1), 0.25);
        close(pass_at_k(4, 1, 2), 0.5);
        close(pass_at_k(4, 2, 2), 1.0 - 1.0 / 6.0);
        close(pass_at_k(4, 3, 2), 1.0);
        close(pass_at_k(200, 1, 100), 0.5);
    }

    #[test]
    fn gains_are_told_against_the_start_and_survive_a_checkpoint() {
        let start = Metrics::from_iter([
            ("eval/accuracy", 0.1),
            ("eval/pass@4", 0.7),
            ("eval/pass@4_low", 0.6),
            ("eval/pass@16", 0.9),
            ("eval/reply_tokens_mean", 5.0),
        ]);
        let later = Metrics::from_iter([("eval/pass@4", 0.5), ("eval/accuracy", 0.4)]);
        let start = StartingPoint::of(&start);
        let gains = start.gains(&later);
        assert_eq!(
            gains,
            Metrics::from_iter([
                ("eval/accuracy_gain", 0.4 - 0.1),
                ("eval/pass@4_gain", 0.5 - 0.7)
            ])
        );
        let kept = serde_json::to_string(&start).unwrap();
        assert_eq!(serde_json::from_str::<StartingPoint>(&kept).unwrap(), start);
        assert!(StartingPoint::default().gains(&later).is_empty());
    }

    fn interval(values: &[f64]) -> (f64, f64) {
        let mut metrics = Metrics::new();
        set_interval(&mut metrics, "share", values);
        (metrics.value("share_low").unwrap_or(-1.0), metrics.value("share_high").unwrap_or(-1.0))
    }

    #[test]
    fn intervals_have_a_width_where_all_tasks_agree() {
        // Wilson for 0 of 10, and its mirror image: 1.96² / (10 + 1.96²).
        let (low, high) = interval(&[0.0; 10]);
        assert!(low.abs() < 1e-12 && (high - 0.2775).abs() < 1e-4, "{low} {high}");
        let (low, high) = interval(&[1.0; 10]);
        assert!((high - 1.0).abs() < 1e-12 && (low - 0.7225).abs() < 1e-4, "{low} {high}");
    }

    #[test]
    fn intervals_narrow_where_tasks_are_alike_and_widen_where_they_differ() {
        let half = |low: f64, high: f64| (high - low) / 2.0;
        // A hundred tasks right or wrong as a whole: as a hundred draws.
        let split: Vec<f64> = (0..100).map(|it| f64::from(it % 2)).collect();
        let (low, high) = interval(&split);
        assert!((half(low, high) - 0.096).abs() < 1e-3, "{low} {high}");
        // The same accuracy in every task: the standard error of the means, 1.96 · 0.1 / 10.
        let even: Vec<f64> = (0..100).map(|it| 0.4 + 0.2 * f64::from(it % 2)).collect();
        let (low, high) = interval(&even);
        assert!((half(low, high) - 0.0196).abs() < 1e-3, "{low} {high}");
    }
}
