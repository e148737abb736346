//! The vocabulary of judging: the [`Verifier`] trait, its [`Verdict`] and the [`Reference`] it
//! judges against.

use std::{fmt, path::Path, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{error::VerifyError, transcript::Transcript};

/// Judges finished transcripts.
///
/// Implement [`name`](Self::name), [`reference_kinds`](Self::reference_kinds) and
/// [`verify`](Self::verify). Override [`verify_group`](Self::verify_group) only if judging
/// siblings together is cheaper (a batched reward model) or means something else (pairwise
/// preference).
///
/// # Contract (see [`check_verifier`](crate::contract::check_verifier))
/// - Same transcript and reference, same verdict.
/// - Never panics, whatever the transcript contains; model output is hostile input.
/// - A reply that cannot be read is [`Outcome::Malformed`], not an error.
/// - Rewards are finite and, for rule-based verifiers, in `0.0..=1.0`.
/// - A reference of a kind that is not in `reference_kinds` is an error.
///
/// Of a scorer outside (a program, a server, a model) the first holds as far as it does of that
/// scorer; whatever goes wrong with it is an error that names it, never a reward.
pub trait Verifier: Send + Sync {
    /// Stable name: the key in configs and the prefix of metrics, e.g. `numeric`.
    fn name(&self) -> &str;

    /// The kinds of reference it can judge against; never empty.
    fn reference_kinds(&self) -> &'static [ReferenceKind];

    /// Gets ready to judge: loads a model, starts a program, looks for its folder.
    ///
    /// Whoever is about to judge calls it once before the first verdict, so that what cannot work
    /// fails before a run begins, not at its first group. A verifier that was not prepared gets
    /// ready at its first verdict. One that judges through others prepares them.
    ///
    /// # Errors
    /// If it cannot get ready; it can judge nothing then.
    fn prepare(&self, _place: &Preparation<'_>) -> Result<(), VerifyError> {
        Ok(())
    }

    /// Whether a verdict waits for something outside (a program, a server, a model that computes on
    /// all cores), so that whoever judges should do it on threads of its own and not hold up a pool
    /// of threads that compute.
    fn waits(&self) -> bool {
        false
    }

    /// Judges one transcript against its task's reference.
    ///
    /// # Errors
    /// Only if the verifier itself could not do its work: the reference is of another kind or
    /// unreadable, the sandbox did not start. The caller drops the trajectory.
    fn verify(
        &self,
        transcript: &Transcript,
        reference: &Reference,
    ) -> Result<Verdict, VerifyError>;

    /// Judges all siblings of one task; one result per transcript, in order.
    fn verify_group(
        &self,
        transcripts: &[Transcript],
        reference: &Reference,
    ) -> Vec<Result<Verdict, VerifyError>> {
        transcripts.iter().map(|transcript| self.verify(transcript, reference)).collect()
    }
}

/// What a verifier may find around it when it gets ready.
#[derive(Clone, Copy, Debug, Default)]
pub struct Preparation<'a> {
    /// The folder in which the models of earlier stages lie, one folder each by the stage's name;
    /// `None` where there are no stages.
    pub models: Option<&'a Path>,
}

/// What a verifier concluded.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Verdict {
    /// Scalar reward, finite; in `0.0..=1.0` for rule-based verifiers.
    pub reward: f32,
    /// What the reward means.
    pub outcome: Outcome,
    /// Named parts before weighting, e.g. `("numeric", 1.0)`; logged, not trained on.
    pub parts: Vec<(String, f32)>,
    /// Why the reply fell short, for a person reading samples.
    pub reason: Option<String>,
}

impl Verdict {
    /// Right: reward 1.
    pub fn correct() -> Self {
        Self { reward: 1.0, outcome: Outcome::Correct, parts: Vec::new(), reason: None }
    }

    /// Readable and wrong: reward 0.
    pub fn incorrect(reason: impl Into<String>) -> Self {
        Self {
            reward: 0.0,
            outcome: Outcome::Incorrect,
            parts: Vec::new(),
            reason: Some(reason.into()),
        }
    }

    /// No answer could be read from the reply: reward 0.
    pub fn malformed(reason: impl Into<String>) -> Self {
        Self {
            reward: 0.0,
            outcome: Outcome::Malformed,
            parts: Vec::new(),
            reason: Some(reason.into()),
        }
    }

    /// A judgement by degree, neither right nor wrong.
    pub fn graded(reward: f32) -> Self {
        Self { reward, outcome: Outcome::Graded, parts: Vec::new(), reason: None }
    }

    /// The same verdict with one more named part.
    #[must_use]
    pub fn with_part(mut self, name: impl Into<String>, value: f32) -> Self {
        self.parts.push((name.into(), value));
        self
    }
}

/// What a reward means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The answer is right.
    Correct,
    /// The answer was read and is wrong.
    Incorrect,
    /// No answer could be read.
    Malformed,
    /// A judgement by degree; only the reward counts.
    Graded,
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Correct => "correct",
            Self::Incorrect => "incorrect",
            Self::Malformed => "malformed",
            Self::Graded => "graded",
        })
    }
}

/// What a correct solution must meet. Environments fill it; verifiers read it; the policy never
/// sees it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Reference {
    /// Nothing: the reply is judged by itself.
    None,
    /// One right answer, as text.
    Answer(String),
    /// Inputs and the outputs a program must give for them.
    Tests(Vec<TestCase>),
    /// Anything else, in a form that the environment and one verifier agree on.
    Custom(serde_json::Value),
}

impl Reference {
    /// Which kind it is.
    pub fn kind(&self) -> ReferenceKind {
        match self {
            Self::None => ReferenceKind::None,
            Self::Answer(_) => ReferenceKind::Answer,
            Self::Tests(_) => ReferenceKind::Tests,
            Self::Custom(_) => ReferenceKind::Custom,
        }
    }
}

/// One input and the output it must give.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TestCase {
    /// What the program is given.
    pub input: String,
    /// What it must answer.
    pub output: String,
}

/// The kind of a [`Reference`], by which environments and verifiers are paired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReferenceKind {
    /// [`Reference::None`].
    None,
    /// [`Reference::Answer`].
    Answer,
    /// [`Reference::Tests`].
    Tests,
    /// [`Reference::Custom`].
    Custom,
}

impl ReferenceKind {
    /// Every kind: what a verifier that never looks at the reference accepts.
    pub const ALL: &'static [Self] = &[Self::None, Self::Answer, Self::Tests, Self::Custom];
}

impl fmt::Display for ReferenceKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::None => "none",
            Self::Answer => "answer",
            Self::Tests => "tests",
            Self::Custom => "custom",
        })
    }
}

/// Scores text with a learned model; the seam through which reward models plug in.
pub trait TextScorer: Send + Sync {
    /// One score per transcript, in order; higher is better, unit-free.
    ///
    /// # Errors
    /// If the model behind it broke.
    fn score(&self, transcripts: &[Transcript]) -> Result<Vec<f32>, VerifyError>;
}

/// Makes scorers of model folders; given to the table of verifiers by whoever knows tensors
/// ([`Verifiers::with_scorer_loader`](crate::Verifiers::with_scorer_loader)).
pub trait ScorerLoader: fmt::Debug + Send + Sync {
    /// Looks at a model's folder without loading it: is it one that [`load`](Self::load) reads?
    ///
    /// # Errors
    /// What is wrong with it, for a person who wrote its path in a configuration.
    fn check(&self, model: &Path) -> Result<(), String>;

    /// Loads the model in a folder.
    ///
    /// # Errors
    /// What is wrong with it.
    fn load(&self, model: &Path) -> Result<Arc<dyn TextScorer>, String>;
}
