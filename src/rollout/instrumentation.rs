//! What a step's rollouts tell about the policy, as numbers: lengths by outcome, how its replies go,
//! and how much of them teaches.
//!
//! | name | what it is |
//! |---|---|
//! | `rollout/reward_mean`, `_std` | of what the learner is told, over all replies |
//! | `rollout/accuracy`, `rollout/malformed_share` | shares of replies, by the verdict |
//! | `rollout/reply_tokens_mean`, `_right`, `_wrong` | sampled tokens of a reply, all its turns |
//! | `rollout/truncated_share` | replies cut off at the length limit |
//! | `rollout/kept_mass_mean` | share of the distribution that truncated sampling kept, by token |
//! | `rollout/turns_mean` | turns of the policy in a reply |
//! | `rollout/groups_zero_variance` | groups of equal rewards, as a share: they teach nothing |
//! | `rollout/env_errors`, `rollout/verifier_errors` | replies lost, as a number |
//! | `rollout/answer_changes_share` | replies that state an answer and later a different one |
//! | `rollout/accuracy_changed`, `_unchanged` | accuracy of those, and of the others with an answer |
//! | `phrase/NAME_share` | replies with a phrase of the list |
//! | `phrase/NAME_per_reply`, `_right`, `_wrong` | occurrences in a reply |
//! | `part/NAME` | mean of that part of the verdict |
//! | `learner/staleness_N` | share of replies N updates behind, where rollouts run ahead |
//!
//! A number that nothing was seen for is left out rather than 0: the length of right replies where
//! none was right, the share of changed answers where no reply states one by the marks in use.

use std::collections::BTreeMap;

use tallow_policies::PolicyVersion;
use tallow_verifiers::stated_answers::{changes_answer, stated_answers};
use tallow_verifiers::{Outcome, StopReason};

use super::phrases::Phrases;
use super::trajectory::{ScoredGroup, ScoredTrajectory};
use crate::tracking::Metrics;

/// Bars of the histogram of staleness: the last holds all that is further behind.
const STALENESS_BARS: u64 = 9;

/// What to look for in replies.
#[derive(Clone, Debug)]
pub struct Instruments {
    /// Phrases to count.
    pub phrases: Phrases,
    /// What answers follow, or the tag that they stand in; absent: see [`stated_answers`].
    pub answer_mark: Option<String>,
    /// Most updates that rollouts may be behind; 0 leaves the histogram of staleness out.
    pub max_staleness: u64,
}

impl Instruments {
    /// The numbers of one step, whose weights are of version `newest`.
    pub fn measure(&self, groups: &[ScoredGroup], newest: PolicyVersion) -> Metrics {
        let members: Vec<&ScoredTrajectory> = groups.iter().flat_map(|it| &it.members).collect();
        let mut metrics = Metrics::new();
        outcomes(&mut metrics, &members);
        lengths(&mut metrics, &members);
        sampling(&mut metrics, &members);
        waste(&mut metrics, groups);
        self.answer_changes(&mut metrics, &members);
        self.phrase_counts(&mut metrics, &members);
        parts(&mut metrics, &members);
        self.staleness(&mut metrics, &members, newest);
        metrics
    }

    fn answer_changes(&self, metrics: &mut Metrics, members: &[&ScoredTrajectory]) {
        let mark = self.answer_mark.as_deref();
        let mut changed = Vec::new();
        let mut unchanged = Vec::new();
        for member in members {
            let replies = member.trajectory.transcript.replies();
            let answers: Vec<_> = replies.flat_map(|it| stated_answers(it, mark)).collect();
            if answers.is_empty() {
                continue;
            }
            let kind = if changes_answer(&answers) { &mut changed } else { &mut unchanged };
            kind.push(share(is_right(member)));
        }
        if changed.is_empty() && unchanged.is_empty() {
            return;
        }
        let all = members.len() as f64;
        metrics.set("rollout/answer_changes_share", changed.len() as f64 / all);
        set_mean(metrics, "rollout/accuracy_changed", changed);
        set_mean(metrics, "rollout/accuracy_unchanged", unchanged);
    }

    fn phrase_counts(&self, metrics: &mut Metrics, members: &[&ScoredTrajectory]) {
        let counts: Vec<(bool, Vec<usize>)> = members
            .iter()
            .map(|it| (is_right(it), self.phrases.count(it.trajectory.transcript.replies())))
            .collect();
        for (index, name) in self.phrases.names().enumerate() {
            let of = |wanted: Option<bool>| {
                let kept = counts.iter().filter(move |it| wanted.is_none_or(|right| it.0 == right));
                kept.map(move |it| it.1[index] as f64)
            };
            let holds = of(None).map(|it| share(it > 0.0));
            set_mean(metrics, format!("phrase/{name}_share"), holds);
            set_mean(metrics, format!("phrase/{name}_per_reply"), of(None));
            set_mean(metrics, format!("phrase/{name}_per_reply_right"), of(Some(true)));
            set_mean(metrics, format!("phrase/{name}_per_reply_wrong"), of(Some(false)));
        }
    }

    fn staleness(
        &self,
        metrics: &mut Metrics,
        members: &[&ScoredTrajectory],
        newest: PolicyVersion,
    ) {
        if self.max_staleness == 0 {
            return;
        }
        let bars = (self.max_staleness.saturating_add(1)).min(STALENESS_BARS) as usize;
        let mut histogram = vec![0_usize; bars];
        for member in members {
            // By the oldest token, as the learner takes it.
            let behind = newest.saturating_sub(*member.trajectory.versions.start());
            histogram[(behind as usize).min(bars - 1)] += 1;
        }
        for (behind, count) in histogram.into_iter().enumerate() {
            let of_all = count as f64 / members.len().max(1) as f64;
            metrics.set(format!("learner/staleness_{behind}"), of_all);
        }
    }
}

fn is_right(member: &ScoredTrajectory) -> bool {
    member.verdict.outcome == Outcome::Correct
}

fn share(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}

/// The mean of some values; nothing where there are none.
fn set_mean(metrics: &mut Metrics, name: impl Into<String>, values: impl IntoIterator<Item = f64>) {
    let (sum, count) = values.into_iter().fold((0.0, 0_usize), |(s, n), it| (s + it, n + 1));
    if count > 0 {
        metrics.set(name, sum / count as f64);
    }
}

fn outcomes(metrics: &mut Metrics, members: &[&ScoredTrajectory]) {
    let count = members.len().max(1) as f64;
    let mean = |value: &dyn Fn(&ScoredTrajectory) -> f64| {
        members.iter().map(|it| value(it)).sum::<f64>() / count
    };
    let reward = mean(&|it| f64::from(it.reward));
    let variance = mean(&|it| (f64::from(it.reward) - reward).powi(2));
    metrics.set("rollout/reward_mean", reward);
    metrics.set("rollout/reward_std", variance.sqrt());
    metrics.set("rollout/accuracy", mean(&|it| share(is_right(it))));
    let malformed = mean(&|it| share(it.verdict.outcome == Outcome::Malformed));
    metrics.set("rollout/malformed_share", malformed);
}

fn lengths(metrics: &mut Metrics, members: &[&ScoredTrajectory]) {
    let of = |wanted: Option<bool>| {
        let kept =
            members.iter().filter(move |it| wanted.is_none_or(|right| is_right(it) == right));
        kept.map(|it| it.trajectory.sampled_tokens() as f64)
    };
    let all = of(None).sum::<f64>() / members.len().max(1) as f64;
    metrics.set("rollout/reply_tokens_mean", all);
    set_mean(metrics, "rollout/reply_tokens_right", of(Some(true)));
    set_mean(metrics, "rollout/reply_tokens_wrong", of(Some(false)));
}

fn sampling(metrics: &mut Metrics, members: &[&ScoredTrajectory]) {
    let count = members.len().max(1) as f64;
    let cut = members.iter().filter(|it| it.trajectory.transcript.stop == StopReason::Length);
    metrics.set("rollout/truncated_share", cut.count() as f64 / count);
    let kept = members.iter().map(|it| it.trajectory.kept_mass());
    let (mass, tokens) = kept.fold((0.0, 0), |all, it| (all.0 + it.0, all.1 + it.1));
    if tokens > 0 {
        metrics.set("rollout/kept_mass_mean", mass / tokens as f64);
    }
    let turns: usize = members.iter().map(|it| it.trajectory.turns.len()).sum();
    metrics.set("rollout/turns_mean", turns as f64 / count);
}

fn waste(metrics: &mut Metrics, groups: &[ScoredGroup]) {
    let still = groups.iter().filter(|it| it.has_no_variance()).count();
    metrics.set("rollout/groups_zero_variance", still as f64 / groups.len().max(1) as f64);
    let broken =
        |errors: &dyn Fn(&ScoredGroup) -> usize| groups.iter().map(errors).sum::<usize>() as f64;
    metrics.set("rollout/env_errors", broken(&|it| it.environment_errors.len()));
    metrics.set("rollout/verifier_errors", broken(&|it| it.verifier_errors.len()));
}

fn parts(metrics: &mut Metrics, members: &[&ScoredTrajectory]) {
    let mut parts: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (name, value) in members.iter().flat_map(|it| &it.verdict.parts) {
        parts.entry(name).or_default().push(f64::from(*value));
    }
    for (name, values) in parts {
        set_mean(metrics, format!("part/{name}"), values);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tallow_envs::{Split, Task, TaskId};
    use tallow_verifiers::{Message, Reference, Transcript, Verdict};

    use super::super::phrases::{PhraseLists, built_in};
    use super::super::trajectory::{Trajectory, Turn};
    use super::*;

    fn member(reply: &str, tokens: usize, right: bool, version: u64) -> ScoredTrajectory {
        let turn = Turn { range: 2..2 + tokens, logprobs: vec![0.0; tokens], kept_masses: vec![] };
        let reward = f32::from(u8::from(right));
        ScoredTrajectory {
            trajectory: Trajectory {
                member: 0,
                tokens: vec![0; 2 + tokens],
                turns: vec![turn],
                transcript: Transcript::of_reply(vec![Message::user("?")], reply),
                versions: version..=version + 1,
            },
            verdict: Verdict {
                reward,
                outcome: if right { Outcome::Correct } else { Outcome::Incorrect },
                parts: vec![("exact".into(), reward)],
                reason: None,
            },
            reward,
        }
    }

    fn group(members: Vec<ScoredTrajectory>) -> ScoredGroup {
        let reference = Reference::Answer("7".into());
        let id = TaskId { split: Split::Train, index: 0 };
        ScoredGroup {
            task: Arc::new(Task {
                id,
                prompt: vec![Message::user("?")],
                reference,
                notes: Default::default(),
            }),
            members,
            environment_errors: vec!["broke".into()],
            verifier_errors: Vec::new(),
        }
    }

    fn instruments(lists: &PhraseLists, mark: Option<&str>, max_staleness: u64) -> Instruments {
        let answer_mark = mark.map(str::to_owned);
        Instruments { phrases: Phrases::new(lists), answer_mark, max_staleness }
    }

    fn check(metrics: &Metrics, expected: &[(&str, f64)]) {
        for (name, value) in expected {
            let found = metrics.value(name).unwrap_or_else(|| panic!("{name} is absent"));
            assert!((found - value).abs() < 1e-12, "{name}: {found}, expected {value}");
        }
    }

    #[test]
    fn lengths_and_shares_are_told_by_outcome() {
        let mut cut = member("=9", 9, false, 5);
        cut.trajectory.transcript.stop = StopReason::Length;
        cut.trajectory.turns[0].kept_masses = vec![0.5; 9];
        let groups = [
            group(vec![member("=7", 4, true, 5), member("=8", 6, false, 5)]),
            group(vec![cut, member("", 1, false, 5)]),
        ];
        let metrics = instruments(&PhraseLists::new(), None, 0).measure(&groups, 5);
        let expected = [
            ("rollout/reward_mean", 0.25),
            ("rollout/reward_std", 0.1875_f64.sqrt()),
            ("rollout/accuracy", 0.25),
            ("rollout/malformed_share", 0.0),
            ("rollout/reply_tokens_mean", 5.0),
            ("rollout/reply_tokens_right", 4.0),
            ("rollout/reply_tokens_wrong", 16.0 / 3.0),
            ("rollout/truncated_share", 0.25),
            ("rollout/kept_mass_mean", 0.5),
            ("rollout/turns_mean", 1.0),
            ("rollout/groups_zero_variance", 0.5),
            ("rollout/env_errors", 2.0),
            ("rollout/verifier_errors", 0.0),
            ("part/exact", 0.25),
        ];
        check(&metrics, &expected);
        assert_eq!(metrics.len(), expected.len(), "nothing else was seen");
    }

    #[test]
    fn phrases_are_told_as_shares_and_as_counts_by_outcome() {
        let groups = [group(vec![
            member("Wait, let me check: 7", 3, true, 0),
            member("7. wait. Wait! No, try again from scratch", 3, false, 0),
            member("7", 1, false, 0),
            member("waiting", 1, false, 0),
        ])];
        let metrics = instruments(&built_in(), None, 0).measure(&groups, 0);
        check(
            &metrics,
            &[
                ("phrase/reflection_share", 0.5),
                ("phrase/reflection_per_reply", 1.0),
                ("phrase/reflection_per_reply_right", 2.0),
                ("phrase/reflection_per_reply_wrong", 2.0 / 3.0),
                ("phrase/backtracking_share", 0.25),
                ("phrase/backtracking_per_reply", 0.5),
                ("phrase/restart_per_reply_right", 0.0),
                ("phrase/restart_per_reply_wrong", 1.0 / 3.0),
            ],
        );
        let wrong = [group(vec![member("wait", 1, false, 0)])];
        let metrics = instruments(&built_in(), None, 0).measure(&wrong, 0);
        assert_eq!(metrics.value("phrase/reflection_per_reply_right"), None);
    }

    #[test]
    fn changed_answers_are_a_share_with_accuracies_beside_it() {
        let groups = [group(vec![
            member("=6, no, =7", 5, true, 0),
            member("=7, no, =6", 5, false, 0),
            member("=7", 2, true, 0),
            member("I do not know", 2, false, 0),
        ])];
        let metrics = instruments(&PhraseLists::new(), Some("="), 0).measure(&groups, 0);
        check(
            &metrics,
            &[
                ("rollout/answer_changes_share", 0.5),
                ("rollout/accuracy_changed", 0.5),
                ("rollout/accuracy_unchanged", 1.0),
            ],
        );
        let metrics = instruments(&PhraseLists::new(), None, 0).measure(&groups, 0);
        assert_eq!(metrics.value("rollout/answer_changes_share"), None, "no such answer is stated");
    }

    #[test]
    fn staleness_is_a_histogram_of_shares() {
        let versions = [9, 9, 8, 7, 2];
        let members = versions.map(|it| member("=7", 2, true, it));
        let groups = [group(members.to_vec())];
        let metrics = instruments(&PhraseLists::new(), None, 2).measure(&groups, 9);
        let expected = [0.4, 0.2, 0.4];
        for (behind, expected) in expected.into_iter().enumerate() {
            check(&metrics, &[(&format!("learner/staleness_{behind}"), expected)]);
        }
        assert_eq!(metrics.value("learner/staleness_3"), None);
        let ahead = instruments(&PhraseLists::new(), None, u64::MAX).measure(&groups, 100);
        check(&ahead, &[("learner/staleness_0", 0.0), ("learner/staleness_8", 1.0)]);
        let lockstep = instruments(&PhraseLists::new(), None, 0).measure(&groups, 9);
        assert!(!lockstep.iter().any(|it| it.0.starts_with("learner/")));
    }

    #[test]
    fn nothing_played_gives_zeros_and_no_means() {
        let metrics = instruments(&built_in(), None, 1).measure(&[], 3);
        assert!(metrics.iter().all(|it| it.1 == 0.0), "{metrics:?}");
        assert_eq!(metrics.value("rollout/reply_tokens_right"), None);
    }
}
