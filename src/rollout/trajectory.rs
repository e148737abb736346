//! What a rollout leaves behind: token ids with their log-probabilities, text, and the verdict.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use tallow_envs::{Task, TaskId};
use tallow_policies::{PolicyVersion, TokenId};
use tallow_verifiers::{Transcript, Verdict};

/// One sampled reply within a trajectory.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// Where the sampled ids stand in [`Trajectory::tokens`].
    pub range: Range<usize>,
    /// log p(token | prefix) in nats under the sampling distribution; one per sampled id.
    pub logprobs: Vec<f32>,
    /// Share of softmax(logits / T) that could be drawn, one per sampled id; empty where all was.
    pub kept_masses: Vec<f32>,
}

/// One play of one task: exactly the ids the policy saw and drew, and the text they stand for.
#[derive(Clone, Debug)]
pub struct Trajectory {
    /// Which of its group's siblings this is.
    pub member: usize,
    /// Prompt, replies and what the environment added, in order.
    pub tokens: Vec<TokenId>,
    /// The sampled stretches, in order; everything else is context.
    pub turns: Vec<Turn>,
    /// The same as text, for the verifier.
    pub transcript: Transcript,
    /// Oldest and newest policy version that drew a token.
    pub versions: RangeInclusive<PolicyVersion>,
}

impl Trajectory {
    /// Number of sampled ids.
    pub fn sampled_tokens(&self) -> usize {
        self.turns.iter().map(|it| it.range.len()).sum()
    }

    /// Every position from the first sampled id to the last: was it sampled? What lies between two
    /// turns, tool output for one, was not.
    pub fn sampled_positions(&self) -> Vec<bool> {
        let first = self.turns.first().map_or(0, |it| it.range.start);
        let last = self.turns.last().map_or(0, |it| it.range.end);
        let mut sampled = vec![false; last - first];
        for turn in &self.turns {
            sampled[turn.range.start - first..turn.range.end - first].fill(true);
        }
        sampled
    }

    /// Log-probabilities of the sampled ids under the whole distribution softmax(logits / T), in
    /// order: what a learner compares its own with.
    ///
    /// Where top-k, top-p, min-p or a least length cut the distribution, that is the recorded
    /// log-probability and the logarithm of the mass kept. An importance ratio of the learner's
    /// log-probability to the recorded one alone would be the kept mass where the policy has not
    /// changed at all, instead of 1. This ratio is that of the two policies cut to the set that was
    /// kept when the token was drawn, as far as learning leaves the mass of that set alone.
    pub fn logprobs(&self) -> Vec<f32> {
        let of_turn = |turn: &Turn| {
            let mut logprobs = turn.logprobs.clone();
            logprobs.iter_mut().zip(&turn.kept_masses).for_each(|(it, mass)| *it += mass.ln());
            logprobs
        };
        self.turns.iter().flat_map(of_turn).collect()
    }

    /// Sum and number of the kept masses of all sampled ids; nothing where all was kept.
    pub fn kept_mass(&self) -> (f64, usize) {
        let masses = self.turns.iter().flat_map(|it| &it.kept_masses);
        masses.fold((0.0, 0), |(sum, count), mass| (sum + f64::from(*mass), count + 1))
    }
}

/// A trajectory and what its verifier concluded.
#[derive(Clone, Debug)]
pub struct ScoredTrajectory {
    /// What was played.
    pub trajectory: Trajectory,
    /// What the verifier said of it.
    pub verdict: Verdict,
    /// What the learner is told; the verdict's reward, unless the run is a control.
    pub reward: f32,
}

/// The siblings of one task that could be judged, with the number of those that could not.
#[derive(Clone, Debug)]
pub struct ScoredGroup {
    /// The task they all played.
    pub task: Arc<Task>,
    /// Judged trajectories, in order of member.
    pub members: Vec<ScoredTrajectory>,
    /// Trajectories lost to a broken environment.
    pub environment_errors: Vec<String>,
    /// Trajectories lost to a broken verifier.
    pub verifier_errors: Vec<String>,
}

impl ScoredGroup {
    /// Which task this is.
    pub fn task_id(&self) -> TaskId {
        self.task.id
    }

    /// Rewards of the members, in order.
    pub fn rewards(&self) -> Vec<f32> {
        self.members.iter().map(|it| it.reward).collect()
    }

    /// Whether all rewards are equal, so that comparing siblings teaches nothing.
    pub fn has_no_variance(&self) -> bool {
        self.members.windows(2).all(|pair| pair[0].reward == pair[1].reward)
    }
}
