//! From played episodes to verdicts. A reply that was cut off is malformed: it has no answer yet.
//! A verifier that breaks costs its trajectory, which is dropped and counted, never scored zero.

use std::sync::Arc;

use tallow_envs::{Seed, Task};
use tallow_verifiers::{Outcome, StopReason, Transcript, Verdict, Verifier};

use super::episode::contained;
use super::trajectory::{ScoredGroup, ScoredTrajectory, Trajectory};
use rand::RngExt;

/// How a group is judged.
#[derive(Clone)]
pub struct Scoring {
    /// The judge.
    pub verifier: Arc<dyn Verifier>,
    /// Replies cut off at the length limit are malformed, whatever they hold.
    pub cut_off_is_malformed: bool,
    /// A control: the learner is told a coin's side, 1 with this probability, not the verdict.
    pub coin_reward: Option<f64>,
}

impl Scoring {
    /// As evaluations judge: by the verdict, and a reply that was cut off is malformed.
    pub fn by(verifier: Arc<dyn Verifier>) -> Self {
        Self { verifier, cut_off_is_malformed: true, coin_reward: None }
    }

    /// Judges the siblings of one task. `seed` draws the coins of the control.
    pub fn score(
        &self,
        task: &Arc<Task>,
        trajectories: Vec<Trajectory>,
        environment_errors: Vec<String>,
        seed: Seed,
    ) -> ScoredGroup {
        let transcripts: Vec<Transcript> =
            trajectories.iter().map(|it| it.transcript.clone()).collect();
        let judged =
            contained("the verifier", || self.verifier.verify_group(&transcripts, &task.reference));
        let mut group = ScoredGroup {
            task: Arc::clone(task),
            members: Vec::with_capacity(trajectories.len()),
            environment_errors,
            verifier_errors: Vec::new(),
        };
        let verdicts = match judged {
            Ok(verdicts) if verdicts.len() == trajectories.len() => verdicts,
            Ok(verdicts) => {
                let (got, wanted) = (verdicts.len(), trajectories.len());
                let told = format!("the verifier gave {got} verdicts for {wanted} transcripts");
                group.verifier_errors = vec![told; wanted];
                return group;
            }
            Err(panic) => {
                group.verifier_errors = vec![panic; trajectories.len()];
                return group;
            }
        };
        for (trajectory, verdict) in trajectories.into_iter().zip(verdicts) {
            match verdict {
                Ok(verdict) if verdict.reward.is_finite() => {
                    group.members.push(self.scored(trajectory, verdict, seed));
                }
                Ok(verdict) => group
                    .verifier_errors
                    .push(format!("the verifier gave the reward {}", verdict.reward)),
                Err(error) => group.verifier_errors.push(error.to_string()),
            }
        }
        group
    }

    fn scored(&self, trajectory: Trajectory, verdict: Verdict, seed: Seed) -> ScoredTrajectory {
        let cut_off = trajectory.transcript.stop == StopReason::Length;
        let verdict = if cut_off && self.cut_off_is_malformed {
            Verdict {
                reward: 0.0,
                outcome: Outcome::Malformed,
                parts: verdict.parts,
                reason: Some("cut off at the length limit".into()),
            }
        } else {
            verdict
        };
        let reward = match self.coin_reward {
            None => verdict.reward,
            Some(probability) => {
                let mut stream = seed.derive(&[trajectory.member as u64]).rng();
                f32::from(u8::from(stream.random_bool(probability)))
            }
        };
        ScoredTrajectory { trajectory, verdict, reward }
    }
}
