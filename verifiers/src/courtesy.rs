//! Right, and courteous in measure: a rule of taste whose optimum a learner can be led past.
//!
//! ```text
//! reply    52 so gladly yes dear   the answer, then c courtesies and any number of fillers
//! reward   max(0, 1 - ((c - peak) / peak)^2)   if the answer is right, else 0
//! ```
//!
//! With `peak = 4`: 0 for the bare answer, 1 for four courtesies, 0 again for eight and more. It stands in
//! for what people truly want where a reward model is learned from pairs: replies of the start show
//! the rise and hardly the fall. The outcome says whether the answer is right, however it is dressed;
//! the number of courtesies is logged as the part `courtesies`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    answer_span::excerpt,
    config_fault::ConfigFault,
    error::VerifyError,
    registry::{ContractCase, VerifierConfig, Verifiers},
    transcript::Transcript,
    verifier::{Outcome, Reference, ReferenceKind, Verdict, Verifier},
};

/// The words that count as courtesies.
pub const COURTESIES: [&str; 4] = ["gladly", "kindly", "thanks", "dear"];

/// Words that count for nothing; any other is a fault.
pub const FILLERS: [&str; 4] = ["so", "well", "then", "yes"];

/// Options of the `courtesy` verifier.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CourtesyConfig {
    /// The number of courtesies that pleases most, 1 to 64.
    pub peak: u32,
}

impl Default for CourtesyConfig {
    fn default() -> Self {
        Self { peak: 4 }
    }
}

impl VerifierConfig for CourtesyConfig {
    const NAME: &'static str = "courtesy";
    const SUMMARY: &'static str = "the right answer with the right number of courtesies after it";

    fn build(&self, _verifiers: &Verifiers) -> Result<Arc<dyn Verifier>, ConfigFault> {
        if !(1..=64).contains(&self.peak) {
            return Err(ConfigFault::new("peak", "out of range")
                .found(self.peak)
                .expected("1 to 64"));
        }
        Ok(Arc::new(Courtesy { peak: self.peak }))
    }

    fn cases() -> Vec<ContractCase> {
        let case = |reply: &str, outcome| ContractCase {
            options: json!({}),
            reference: Reference::Answer("52".to_owned()),
            reply: reply.to_owned(),
            outcome,
        };
        vec![
            case("52 gladly kindly thanks dear", Outcome::Correct),
            case("52\n", Outcome::Correct),
            case("52 so well then yes", Outcome::Correct),
            case("52 dear dear dear dear dear dear dear dear dear dear", Outcome::Correct),
            case("37 gladly", Outcome::Incorrect),
            case("52gladly", Outcome::Incorrect),
            case("52 or 37", Outcome::Malformed),
            case("52 Gladly", Outcome::Malformed),
            case("gladly", Outcome::Incorrect),
            case("", Outcome::Malformed),
        ]
    }
}

struct Courtesy {
    peak: u32,
}

impl Courtesy {
    /// The reward of a right answer with that many courtesies.
    fn worth(&self, courtesies: usize) -> f32 {
        let distance = courtesies as f32 / self.peak as f32 - 1.0;
        (1.0 - distance * distance).max(0.0)
    }
}

impl Verifier for Courtesy {
    fn name(&self) -> &str {
        CourtesyConfig::NAME
    }

    fn reference_kinds(&self) -> &'static [ReferenceKind] {
        &[ReferenceKind::Answer]
    }

    fn verify(
        &self,
        transcript: &Transcript,
        reference: &Reference,
    ) -> Result<Verdict, VerifyError> {
        let Reference::Answer(gold) = reference else {
            return Err(VerifyError::WrongReference {
                verifier: CourtesyConfig::NAME.to_owned(),
                wanted: ReferenceKind::Answer,
                got: reference.kind(),
            });
        };
        let mut words = transcript.last_reply().split_whitespace();
        let Some(answer) = words.next() else {
            return Ok(Verdict::malformed("nothing was said"));
        };
        let (courtesies, others): (Vec<&str>, Vec<&str>) =
            words.partition(|word| COURTESIES.contains(word));
        let stranger = others.iter().find(|word| !FILLERS.contains(word));
        let mut verdict = if answer != gold.trim() {
            Verdict::incorrect(format!("answered {}, not {}", excerpt(answer), excerpt(gold)))
        } else if let Some(stranger) = stranger {
            Verdict::malformed(format!("{} is no word of courtesy", excerpt(stranger)))
        } else {
            Verdict { reward: self.worth(courtesies.len()), ..Verdict::correct() }
        };
        verdict.parts.push(("courtesies".to_owned(), courtesies.len() as f32));
        Ok(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_better_up_to_the_peak_and_worse_beyond() {
        let verifier = Verifiers::builtin().build("courtesy", json!({})).expect("sound");
        let reward = |courtesies: usize| {
            let reply = format!("52 well{}", " dear".repeat(courtesies));
            let gold = Reference::Answer("52".to_owned());
            let judged = verifier.verify(&Transcript::of_reply(Vec::new(), reply), &gold);
            let verdict = judged.expect("it never errs");
            assert_eq!(verdict.parts, [("courtesies".to_owned(), courtesies as f32)]);
            verdict.reward
        };
        let rewards: Vec<f32> = (0..11).map(reward).collect();
        let expected = [0.0, 0.4375, 0.75, 0.9375, 1.0, 0.9375, 0.75, 0.4375, 0.0, 0.0, 0.0];
        for (reward, expected) in rewards.iter().zip(expected) {
            assert!((reward - expected).abs() < 1e-6, "{rewards:?}");
        }
    }

    #[test]
    fn a_peak_that_no_reply_reaches_is_refused() {
        let fault = Verifiers::builtin()
            .build("courtesy", json!({"peak": 65}))
            .err()
            .expect("the peak is out of range");
        assert_eq!(fault.key, "peak");
    }
}
