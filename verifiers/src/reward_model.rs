//! A reward model: a language model with a head that gives one number to a conversation.
//!
//! Reward:  r = (score - offset) * scale, then cut to `clip` if it is set.
//!
//! The siblings of a group are scored in one batch. The raw score is logged as the part `score`. This
//! crate knows no tensors: whoever does gives the table of verifiers a [`ScorerLoader`]. The model is
//! loaded by `prepare`, or at the first verdict; a score that is not finite drops its reply.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::{
    config_fault::ConfigFault,
    error::VerifyError,
    registry::{ContractCase, VerifierConfig, Verifiers},
    transcript::Transcript,
    verifier::{
        Preparation, Reference, ReferenceKind, ScorerLoader, TextScorer, Verdict, Verifier,
    },
};

/// Options of the `reward_model` verifier; exactly one of `model` and `stage` is set.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardModelConfig {
    /// The folder of a sequence-classification model in the layout of Hugging Face, from the
    /// configuration's folder.
    pub model: Option<String>,
    /// The earlier stage of the same experiment whose model it is.
    pub stage: Option<String>,
    /// What a score is multiplied by, after `offset` was taken away.
    pub scale: f32,
    /// The score that is worth nothing, e.g. the mean of a few hundred replies.
    pub offset: f32,
    /// Lowest and highest reward; what is beyond is cut.
    pub clip: Option<[f32; 2]>,
}

impl Default for RewardModelConfig {
    fn default() -> Self {
        Self { model: None, stage: None, scale: 1.0, offset: 0.0, clip: None }
    }
}

impl VerifierConfig for RewardModelConfig {
    const NAME: &'static str = "reward_model";
    const SUMMARY: &'static str = "the score of a learned model";
    const NEEDS: Option<&'static str> = Some("a model");

    fn build(&self, verifiers: &Verifiers) -> Result<Arc<dyn Verifier>, ConfigFault> {
        let origin = match (&self.model, &self.stage) {
            (Some(model), None) => Origin::Folder(verifiers.folder().join(model)),
            (None, Some(stage)) => Origin::Stage(stage.clone()),
            (None, None) => {
                return Err(ConfigFault::new("model", "there is no reward model")
                    .expected("`model`, a folder, or `stage`, the name of an earlier stage"));
            }
            (Some(_), Some(_)) => {
                return Err(ConfigFault::new("stage", "there are two reward models")
                    .expected("`model` or `stage`, not both"));
            }
        };
        for (key, number) in [("scale", self.scale), ("offset", self.offset)] {
            if !number.is_finite() || (key == "scale" && number == 0.0) {
                return Err(ConfigFault::new(key, "no score can be scaled by it")
                    .found(number)
                    .expected(if key == "scale" {
                        "a finite number but 0"
                    } else {
                        "a finite number"
                    }));
            }
        }
        if let Some([low, high]) = self.clip
            && !(low.is_finite() && high.is_finite() && low < high)
        {
            return Err(ConfigFault::new("clip", "no range of rewards")
                .found(format!("[{low}, {high}]"))
                .expected("[lowest, highest], finite"));
        }
        let Some(loader) = verifiers.scorer_loader() else {
            return Err(ConfigFault::new("", "reward models cannot be loaded here")
                .hint("a program that embeds Tallow gives `Verifiers::with_scorer_loader` one"));
        };
        match &origin {
            Origin::Folder(folder) => {
                if !folder.is_dir() {
                    return Err(
                        ConfigFault::new("model", "no model folder there").found(folder.display())
                    );
                }
                loader.check(folder).map_err(|problem| {
                    ConfigFault::new("model", problem).found(folder.display())
                })?;
            }
            Origin::Stage(stage) => {
                if let Some(names) = verifiers.earlier_stages()
                    && !names.contains(stage)
                {
                    if names.is_empty() {
                        let problem = "no stage before this one makes a reward model";
                        return Err(ConfigFault::new("stage", problem).found(stage));
                    }
                    let names = names.iter().map(String::as_str);
                    return Err(ConfigFault::unknown_name("stage", "earlier stage", stage, names));
                }
            }
        }
        Ok(Arc::new(RewardModel {
            config: self.clone(),
            origin,
            loader: Arc::clone(loader),
            loaded: Mutex::new(None),
        }))
    }

    fn cases() -> Vec<ContractCase> {
        Vec::new()
    }
}

/// Where the model comes from.
enum Origin {
    Folder(PathBuf),
    /// Its folder is known once the models of earlier stages are.
    Stage(String),
}

struct RewardModel {
    config: RewardModelConfig,
    origin: Origin,
    loader: Arc<dyn ScorerLoader>,
    /// What loading came to; a folder that cannot be loaded is not tried for every group anew.
    loaded: Mutex<Option<Result<Arc<dyn TextScorer>, String>>>,
}

impl RewardModel {
    /// The model, loaded if it was not; others wait meanwhile.
    fn scorer(&self, models: Option<&Path>) -> Result<Arc<dyn TextScorer>, VerifyError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = match &*loaded {
            Some(outcome) => outcome.clone(),
            None => {
                let folder = self.folder(models).map_err(|problem| self.broken(problem))?;
                let outcome = self.loader.load(&folder);
                loaded.insert(outcome).clone()
            }
        };
        outcome.map_err(|problem| self.broken(format!("cannot be loaded: {problem}")))
    }

    fn folder(&self, models: Option<&Path>) -> Result<PathBuf, String> {
        match (&self.origin, models) {
            (Origin::Folder(folder), _) => Ok(folder.clone()),
            (Origin::Stage(stage), Some(models)) => {
                let folder = models.join(stage);
                if folder.is_dir() {
                    Ok(folder)
                } else {
                    Err(format!("has left no model in {}", folder.display()))
                }
            }
            (Origin::Stage(_), None) => {
                Err("has no model here: models of stages are there in a run only".to_owned())
            }
        }
    }

    fn broken(&self, problem: impl std::fmt::Display) -> VerifyError {
        let origin = match &self.origin {
            Origin::Folder(folder) => format!("model {}", folder.display()),
            Origin::Stage(stage) => format!("stage `{stage}`"),
        };
        VerifyError::Broken {
            verifier: RewardModelConfig::NAME.to_owned(),
            problem: format!("{origin}: {problem}"),
        }
    }

    fn verdict(&self, score: f32) -> Result<Verdict, VerifyError> {
        let mut reward = (score - self.config.offset) * self.config.scale;
        // A score that is no number must not become one by being cut.
        if !score.is_finite() || !reward.is_finite() {
            return Err(self.broken(format!("gave the score {score}")));
        }
        if let Some([low, high]) = self.config.clip {
            reward = reward.clamp(low, high);
        }
        Ok(Verdict::graded(reward).with_part("score", score))
    }
}

impl Verifier for RewardModel {
    fn name(&self) -> &str {
        RewardModelConfig::NAME
    }

    fn reference_kinds(&self) -> &'static [ReferenceKind] {
        ReferenceKind::ALL
    }

    fn waits(&self) -> bool {
        true
    }

    fn prepare(&self, place: &Preparation<'_>) -> Result<(), VerifyError> {
        self.scorer(place.models).map(|_| ())
    }

    fn verify(
        &self,
        transcript: &Transcript,
        reference: &Reference,
    ) -> Result<Verdict, VerifyError> {
        self.verify_group(std::slice::from_ref(transcript), reference).remove(0)
    }

    fn verify_group(
        &self,
        transcripts: &[Transcript],
        _: &Reference,
    ) -> Vec<Result<Verdict, VerifyError>> {
        let scores = self.scorer(None).and_then(|scorer| {
            let scores = scorer.score(transcripts).map_err(|error| match error {
                VerifyError::Broken { problem, .. } => self.broken(problem),
                other => self.broken(other),
            })?;
            if scores.len() != transcripts.len() {
                let (got, wanted) = (scores.len(), transcripts.len());
                return Err(self.broken(format!("gave {got} scores for {wanted} replies")));
            }
            Ok(scores)
        });
        match scores {
            Ok(scores) => scores.into_iter().map(|score| self.verdict(score)).collect(),
            Err(error) => transcripts.iter().map(|_| Err(error.clone())).collect(),
        }
    }
}
