//! `reward_model` over a stand-in for a model.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tallow_verifiers::{
    ContractCase, Outcome, Preparation, Reference, ScorerLoader, TextScorer, Transcript, Verifiers,
    VerifyError, contract::check_with_cases,
};

use super::{check_broken, entry, group, judge, part, rewards};

/// Loads folders that hold a file `model`, and remembers which.
#[derive(Debug, Default)]
struct Loader {
    loaded: Mutex<Vec<PathBuf>>,
}

/// The score of a reply is the number it is; other replies tell it what to do instead.
struct Numbers;

impl TextScorer for Numbers {
    fn score(&self, transcripts: &[Transcript]) -> Result<Vec<f32>, VerifyError> {
        if transcripts.iter().any(|it| it.last_reply() == "break") {
            let (verifier, problem) = ("numbers".to_owned(), "out of memory".to_owned());
            return Err(VerifyError::Broken { verifier, problem });
        }
        let kept = transcripts.iter().filter(|it| it.last_reply() != "lose");
        Ok(kept
            .map(|it| match it.last_reply() {
                "not a number" => f32::NAN,
                reply => reply.parse().ok().filter(|it: &f32| it.is_finite()).unwrap_or(0.0),
            })
            .collect())
    }
}

impl ScorerLoader for Loader {
    fn check(&self, model: &Path) -> Result<(), String> {
        if model.join("model").exists() { Ok(()) } else { Err("it has no file `model`".to_owned()) }
    }

    fn load(&self, model: &Path) -> Result<Arc<dyn TextScorer>, String> {
        self.loaded.lock().expect("unpoisoned").push(model.to_owned());
        self.check(model)?;
        Ok(Arc::new(Numbers))
    }
}

struct Scene {
    folder: tempfile::TempDir,
    loader: Arc<Loader>,
    verifiers: Verifiers,
}

impl Scene {
    /// A folder with the models of the stages `reward` and, damaged, `broken`.
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for stage in ["reward", "broken"] {
            std::fs::create_dir(folder.path().join(stage)).expect("made");
        }
        std::fs::write(folder.path().join("reward/model"), "").expect("written");
        let loader = Arc::new(Loader::default());
        let verifiers = Verifiers::builtin()
            .in_folder(folder.path())
            .with_scorer_loader(Arc::clone(&loader) as Arc<dyn ScorerLoader>);
        Self { folder, loader, verifiers }
    }

    fn loads(&self) -> usize {
        self.loader.loaded.lock().expect("unpoisoned").len()
    }

    #[track_caller]
    fn check_fault(&self, options: Value, key: &str, told: &str) {
        let fault = self.verifiers.build("reward_model", options).err().expect("refused");
        assert_eq!(fault.key, key, "{fault}");
        assert!(fault.to_string().contains(told), "{fault}");
    }
}

#[test]
fn a_model_meets_the_contract() {
    let scene = Scene::new();
    let case = |reply: &str| ContractCase {
        options: json!({"model": "reward", "clip": [0, 1]}),
        reference: Reference::None,
        reply: reply.to_owned(),
        outcome: Outcome::Graded,
    };
    let entry = entry(&scene.verifiers, "reward_model");
    assert_eq!(check_with_cases(&entry, &scene.verifiers, &[case("0.5"), case("0.1")]), Ok(()));
}

#[test]
fn scores_become_rewards() {
    let scene = Scene::new();
    let options = json!({"model": "reward", "offset": 1, "scale": 0.5, "clip": [-1, 1]});
    let verifier = scene.verifiers.build("reward_model", options).expect("sound");
    assert_eq!(scene.loads(), 0);
    let verdicts = judge(&verifier, &["2", "9", "-9"]);
    assert_eq!(rewards(&verdicts), [0.5, 1.0, -1.0]);
    assert_eq!(part(&verdicts[1], "score"), 9.0);
    judge(&verifier, &["2"]);
    assert_eq!(scene.loads(), 1);
}

#[test]
fn the_model_of_an_earlier_stage_is_loaded_when_prepared() {
    let scene = Scene::new();
    let verifiers = scene.verifiers.clone().after_stages(["reward".to_owned()]);
    let options = json!({"parts": [
        {"name": "numeric"},
        {"name": "reward_model", "weight": 0, "label": "liked", "options": {"stage": "reward"}},
    ]});
    let verifier = verifiers.build("rubric", options).expect("sound");
    check_broken(&judge(&verifier, &["2"]), &["liked/reward_model", "stage `reward`"]);
    let place = Preparation { models: Some(scene.folder.path()) };
    verifier.prepare(&place).expect("its model is there");
    verifier.prepare(&place).expect("it is loaded");
    assert_eq!(scene.loads(), 1);
    let verdicts = judge(&verifier, &["42", "2"]);
    assert_eq!(rewards(&verdicts), [1.0, 0.0]);
    assert_eq!(part(&verdicts[1], "liked/score"), 2.0);
}

#[test]
fn what_goes_wrong_is_told_and_never_a_reward() {
    let scene = Scene::new();
    let verifier =
        scene.verifiers.build("reward_model", json!({"model": "reward"})).expect("sound");
    check_broken(&judge(&verifier, &["break", "1"]), &["reward_model", "reward:", "out of memory"]);
    check_broken(&judge(&verifier, &["lose", "1"]), &["1 scores for 2 replies"]);
    let mut verdicts = judge(&verifier, &["1", "not a number"]);
    check_broken(&verdicts.split_off(1), &["gave the score NaN"]);
    assert_eq!(rewards(&verdicts), [1.0]);
    assert_eq!(verifier.verify_group(&group(&[]), &Reference::None), []);

    for (stage, told) in [("broken", "no file `model`"), ("gone", "has left no model in")] {
        let options = json!({"stage": stage});
        let verifier = scene.verifiers.build("reward_model", options).expect("not known yet");
        let place = Preparation { models: Some(scene.folder.path()) };
        let error = verifier.prepare(&place).expect_err("there is no model");
        assert!(error.to_string().contains(told) && error.to_string().contains(stage), "{error}");
    }
}

#[test]
fn faults_name_their_key() {
    let scene = Scene::new();
    scene.check_fault(json!({}), "model", "there is no reward model");
    scene.check_fault(json!({"model": "reward", "stage": "reward"}), "stage", "two");
    scene.check_fault(json!({"model": "nowhere"}), "model", "nowhere");
    scene.check_fault(json!({"model": "broken"}), "model", "no file `model`");
    scene.check_fault(json!({"model": "reward", "scale": 0}), "scale", "0");
    scene.check_fault(json!({"model": "reward", "clip": [1, 0]}), "clip", "[1, 0]");
    let after = Scene { verifiers: scene.verifiers.clone().after_stages(["sft".into()]), ..scene };
    after.check_fault(json!({"stage": "stf"}), "stage", "did you mean `sft`?");
    let bare = Verifiers::builtin().build("reward_model", json!({"stage": "x"})).err();
    assert!(bare.expect("refused").to_string().contains("cannot be loaded here"));
}
