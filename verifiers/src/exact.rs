//! Exact match: the reply, or what follows its last marker, must be the answer letter for letter.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    answer_span::{after_last, excerpt},
    config_fault::ConfigFault,
    error::VerifyError,
    registry::{ContractCase, VerifierConfig, Verifiers},
    transcript::Transcript,
    verifier::{Outcome, Reference, ReferenceKind, Verdict, Verifier},
};

/// Options of the `exact` verifier.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExactConfig {
    /// Only the text after the last occurrence of this marker counts; a reply without it is
    /// malformed. Unset, the whole reply is the answer.
    pub after: Option<String>,
    /// Whether white space around reply and answer is ignored.
    pub trim: bool,
    /// Whether upper and lower case are the same.
    pub ignore_case: bool,
}

impl Default for ExactConfig {
    fn default() -> Self {
        Self { after: None, trim: true, ignore_case: false }
    }
}

impl VerifierConfig for ExactConfig {
    const NAME: &'static str = "exact";
    const SUMMARY: &'static str = "the answer, letter for letter, perhaps after a marker";

    fn build(&self, _verifiers: &Verifiers) -> Result<Arc<dyn Verifier>, ConfigFault> {
        if self.after.as_deref() == Some("") {
            return Err(ConfigFault::new("after", "the marker is empty")
                .found("\"\"")
                .expected("at least one character")
                .hint("leave `after` out to judge the whole reply"));
        }
        Ok(Arc::new(Exact { config: self.clone() }))
    }

    fn cases() -> Vec<ContractCase> {
        let case = |options: serde_json::Value, reply: &str, outcome| ContractCase {
            options,
            reference: Reference::Answer("Ja".to_owned()),
            reply: reply.to_owned(),
            outcome,
        };
        vec![
            case(json!({}), " Ja\n", Outcome::Correct),
            case(json!({}), "ja", Outcome::Incorrect),
            case(json!({}), "", Outcome::Incorrect),
            case(json!({"ignore_case": true}), "jA", Outcome::Correct),
            case(json!({"trim": false}), " Ja", Outcome::Incorrect),
            case(json!({"after": "="}), "Nein=Nein=Ja", Outcome::Correct),
            case(json!({"after": "="}), "=Ja=", Outcome::Incorrect),
            case(json!({"after": "="}), "Ja", Outcome::Malformed),
        ]
    }
}

struct Exact {
    config: ExactConfig,
}

impl Exact {
    fn normal_form(&self, text: &str) -> String {
        let text = if self.config.trim { text.trim() } else { text };
        if self.config.ignore_case { text.to_lowercase() } else { text.to_owned() }
    }
}

impl Verifier for Exact {
    fn name(&self) -> &str {
        ExactConfig::NAME
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
                verifier: ExactConfig::NAME.to_owned(),
                wanted: ReferenceKind::Answer,
                got: reference.kind(),
            });
        };
        let reply = transcript.last_reply();
        let answer = match &self.config.after {
            None => reply,
            Some(marker) => match after_last(reply, marker) {
                Some(answer) => answer,
                None => return Ok(Verdict::malformed(format!("no {marker:?} in the reply"))),
            },
        };
        if self.normal_form(answer) == self.normal_form(gold) {
            Ok(Verdict::correct())
        } else {
            Ok(Verdict::incorrect(format!("answered {}, not {}", excerpt(answer), excerpt(gold))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_marker_is_refused() {
        let fault = Verifiers::builtin()
            .build("exact", json!({"after": ""}))
            .err()
            .expect("an empty marker is refused");
        assert_eq!(fault.key, "after");
    }
}
