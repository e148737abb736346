//! A weighted sum of other verifiers.
//!
//! Reward:  r = sum_i w_i r_i / sum_i w_i, so that full marks are 1.
//!
//! The first part is the primary one: the rubric's outcome is the primary's outcome, so a reply is
//! [`Outcome::Correct`] exactly when the primary part says so, however well or badly it did in
//! form. A part of weight 0 is watched, not paid. Each part's own reward is logged under its label,
//! and what it logs itself under `label/name`. A part that errs makes the whole verdict an error: a
//! half-judged reply would teach the wrong thing.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    config_fault::ConfigFault,
    error::VerifyError,
    registry::{ContractCase, VerifierConfig, Verifiers},
    transcript::Transcript,
    verifier::{Outcome, Preparation, Reference, ReferenceKind, Verdict, Verifier},
};

/// Options of the `rubric` verifier.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RubricConfig {
    /// What is judged; the first part decides the outcome. There is no default: an empty rubric is
    /// refused.
    pub parts: Vec<RubricPart>,
}

/// One part of a rubric.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RubricPart {
    /// Name of the verifier.
    pub name: String,
    /// Its share of the reward, relative to the others; finite. With 0 it is logged and not paid;
    /// at least one part must be paid.
    pub weight: f32,
    /// Its options.
    pub options: serde_json::Map<String, Value>,
    /// Under which name its reward is logged; the verifier's name if unset.
    pub label: Option<String>,
}

impl Default for RubricPart {
    fn default() -> Self {
        Self { name: String::new(), weight: 1.0, options: serde_json::Map::new(), label: None }
    }
}

impl VerifierConfig for RubricConfig {
    const NAME: &'static str = "rubric";
    const SUMMARY: &'static str =
        "a weighted sum of other verifiers; the first decides the outcome";
    // What its parts accept: `numeric` takes the last number.
    const ACCEPTS: &'static [&'static str] = &["hedge", "several_boxes"];

    fn build(&self, verifiers: &Verifiers) -> Result<Arc<dyn Verifier>, ConfigFault> {
        if self.parts.is_empty() {
            return Err(ConfigFault::new("parts", "a rubric needs something to judge by")
                .found("[]")
                .expected("at least one part")
                .hint("parts = [{ name = \"numeric\" }, { name = \"format\", weight = 0.2 }]"));
        }
        let mut parts: Vec<Part> = Vec::new();
        for (at, part) in self.parts.iter().enumerate() {
            let key = format!("parts[{at}]");
            if !(part.weight.is_finite() && part.weight >= 0.0) {
                return Err(ConfigFault::new(format!("{key}.weight"), "not a weight")
                    .found(part.weight)
                    .expected("a finite number, 0 or above"));
            }
            let label = part.label.clone().unwrap_or_else(|| part.name.clone());
            if parts.iter().any(|other| other.label == label) {
                return Err(ConfigFault::new(format!("{key}.label"), "two parts of one label")
                    .found(format!("\"{label}\""))
                    .expected("a label of its own for each part")
                    .hint("set `label`"));
            }
            let options = Value::Object(part.options.clone());
            let verifier = match verifiers.get(&part.name) {
                Some(entry) => entry
                    .build(options, verifiers)
                    .map_err(|fault| fault.within(&format!("{key}.options")))?,
                None => {
                    let names = verifiers.entries().iter().map(|entry| entry.name());
                    let key = format!("{key}.name");
                    return Err(ConfigFault::unknown_name(key, "verifier", &part.name, names));
                }
            };
            parts.push(Part { label, weight: part.weight, verifier });
        }

        if parts.iter().all(|part| part.weight == 0.0) {
            return Err(ConfigFault::new("parts", "no part is paid: every weight is 0")
                .expected("at least one weight above 0"));
        }

        let shared = |kind: &ReferenceKind| {
            parts.iter().all(|part| part.verifier.reference_kinds().contains(kind))
        };
        let kinds = subset(shared);
        if kinds.is_empty() {
            return Err(ConfigFault::new("parts", "the parts judge by references of other kinds")
                .expected("at least one kind of reference that all parts can judge by"));
        }
        Ok(Arc::new(Rubric { parts, kinds }))
    }

    fn cases() -> Vec<ContractCase> {
        let case = |reply: &str, outcome| ContractCase {
            options: json!({"parts": [
                {"name": "numeric", "options": {"tag": "answer"}},
                {"name": "format", "weight": 0.25, "label": "tags"},
            ]}),
            reference: Reference::Answer("4".to_owned()),
            reply: reply.to_owned(),
            outcome,
        };
        vec![
            case("<think>2+2</think><answer>4</answer>", Outcome::Correct),
            case("<answer>4</answer>", Outcome::Correct),
            case("<think>2+2</think><answer>5</answer>", Outcome::Incorrect),
            case("<think>2+2</think><answer>four</answer>", Outcome::Malformed),
        ]
    }
}

struct Rubric {
    parts: Vec<Part>,
    kinds: &'static [ReferenceKind],
}

struct Part {
    label: String,
    weight: f32,
    verifier: Arc<dyn Verifier>,
}

impl Part {
    /// The error of this part, which names it: the label before the verifier's own name, where the
    /// two differ.
    fn named(&self, mut error: VerifyError) -> VerifyError {
        let (VerifyError::WrongReference { verifier, .. }
        | VerifyError::BadReference { verifier, .. }
        | VerifyError::Broken { verifier, .. }) = &mut error;
        if *verifier != self.label {
            *verifier = format!("{}/{verifier}", self.label);
        }
        error
    }
}

impl Rubric {
    /// Weighs one verdict per part, in order.
    fn weigh(&self, verdicts: Vec<Verdict>) -> Verdict {
        let outcome = verdicts.first().map_or(Outcome::Malformed, |primary| primary.outcome);
        let total: f64 = self.parts.iter().map(|part| f64::from(part.weight)).sum();
        let mut reward = 0.0;
        let mut parts = Vec::new();
        let mut reasons = Vec::new();
        for (part, verdict) in self.parts.iter().zip(verdicts) {
            // What is only watched must not reach the reward, be it infinite.
            if part.weight > 0.0 {
                reward += f64::from(part.weight) * f64::from(verdict.reward) / total;
            }
            parts.push((part.label.clone(), verdict.reward));
            let inner = verdict.parts.into_iter();
            parts.extend(inner.map(|(name, value)| (format!("{}/{name}", part.label), value)));
            reasons.extend(verdict.reason.map(|reason| format!("{}: {reason}", part.label)));
        }
        let reason = (!reasons.is_empty()).then(|| reasons.join("; "));
        Verdict { reward: reward as f32, outcome, parts, reason }
    }
}

impl Verifier for Rubric {
    fn name(&self) -> &str {
        RubricConfig::NAME
    }

    fn reference_kinds(&self) -> &'static [ReferenceKind] {
        self.kinds
    }

    fn waits(&self) -> bool {
        self.parts.iter().any(|part| part.verifier.waits())
    }

    fn prepare(&self, place: &Preparation<'_>) -> Result<(), VerifyError> {
        for part in &self.parts {
            part.verifier.prepare(place).map_err(|error| part.named(error))?;
        }
        Ok(())
    }

    fn verify(
        &self,
        transcript: &Transcript,
        reference: &Reference,
    ) -> Result<Verdict, VerifyError> {
        let verdicts: Result<Vec<_>, _> = self
            .parts
            .iter()
            .map(|part| {
                part.verifier.verify(transcript, reference).map_err(|error| part.named(error))
            })
            .collect();
        Ok(self.weigh(verdicts?))
    }

    /// Each part judges the whole group at once, so that a batched part stays batched.
    fn verify_group(
        &self,
        transcripts: &[Transcript],
        reference: &Reference,
    ) -> Vec<Result<Verdict, VerifyError>> {
        let mut by_transcript: Vec<Result<Vec<Verdict>, VerifyError>> =
            transcripts.iter().map(|_| Ok(Vec::new())).collect();
        for part in &self.parts {
            let verdicts = part.verifier.verify_group(transcripts, reference);
            if verdicts.len() != transcripts.len() {
                let broken = part.named(VerifyError::Broken {
                    verifier: part.verifier.name().to_owned(),
                    problem: format!(
                        "gave {} verdicts for {} transcripts",
                        verdicts.len(),
                        transcripts.len()
                    ),
                });
                return transcripts.iter().map(|_| Err(broken.clone())).collect();
            }
            for (so_far, verdict) in by_transcript.iter_mut().zip(verdicts) {
                match (so_far.as_mut(), verdict) {
                    (Ok(earlier), Ok(verdict)) => earlier.push(verdict),
                    (Ok(_), Err(error)) => *so_far = Err(part.named(error)),
                    (Err(_), _) => {}
                }
            }
        }
        by_transcript.into_iter().map(|verdicts| verdicts.map(|it| self.weigh(it))).collect()
    }
}

/// The kinds that satisfy `holds`, as one of the sixteen possible constants, since a verifier's
/// kinds outlive it.
fn subset(holds: impl Fn(&ReferenceKind) -> bool) -> &'static [ReferenceKind] {
    use ReferenceKind::{Answer, Custom, None, Tests};
    match (holds(&None), holds(&Answer), holds(&Tests), holds(&Custom)) {
        (false, false, false, false) => &[],
        (false, false, false, true) => &[Custom],
        (false, false, true, false) => &[Tests],
        (false, false, true, true) => &[Tests, Custom],
        (false, true, false, false) => &[Answer],
        (false, true, false, true) => &[Answer, Custom],
        (false, true, true, false) => &[Answer, Tests],
        (false, true, true, true) => &[Answer, Tests, Custom],
        (true, false, false, false) => &[None],
        (true, false, false, true) => &[None, Custom],
        (true, false, true, false) => &[None, Tests],
        (true, false, true, true) => &[None, Tests, Custom],
        (true, true, false, false) => &[None, Answer],
        (true, true, false, true) => &[None, Answer, Custom],
        (true, true, true, false) => &[None, Answer, Tests],
        (true, true, true, true) => &[None, Answer, Tests, Custom],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rubric(parts: Value) -> Result<Arc<dyn Verifier>, ConfigFault> {
        Verifiers::builtin().build("rubric", json!({ "parts": parts }))
    }

    #[track_caller]
    fn check_fault(parts: Value, key: &str) {
        assert_eq!(rubric(parts).err().expect("the parts are refused").key, key);
    }

    #[test]
    fn full_marks_are_one_and_parts_are_logged_unweighted() {
        let verifier = rubric(json!([
            {"name": "exact", "weight": 3.0},
            {"name": "format", "weight": 1.0, "options": {"tags": ["a"]}, "label": "tags"},
        ]))
        .expect("the rubric is sound");
        let gold = Reference::Answer("<a>1</a>".to_owned());
        let judge = |reply: &str| {
            verifier.verify(&Transcript::of_reply(Vec::new(), reply), &gold).expect("judged")
        };
        assert_eq!(judge("<a>1</a>").reward, 1.0);
        let wrong = judge("<a>2</a>");
        assert_eq!((wrong.reward, wrong.outcome), (0.25, Outcome::Incorrect));
        assert_eq!(wrong.parts, [("exact".to_owned(), 0.0), ("tags".to_owned(), 1.0)]);
    }

    #[test]
    fn a_part_without_weight_is_watched_and_inner_parts_are_logged_too() {
        let verifier = rubric(json!([
            {"name": "exact"},
            {"name": "format", "weight": 0.0, "options": {"tags": ["a"]}, "label": "tags"},
            {"name": "rubric", "weight": 0.0, "label": "inner", "options": {"parts": [
                {"name": "exact", "label": "answer"},
            ]}},
        ]))
        .expect("sound");
        let gold = Reference::Answer("4".to_owned());
        let verdict = verifier.verify(&Transcript::of_reply(vec![], "4"), &gold).expect("judged");
        assert_eq!((verdict.reward, verdict.outcome), (1.0, Outcome::Correct));
        let parts = [("exact", 1.0), ("tags", 0.0), ("inner", 1.0), ("inner/answer", 1.0)];
        assert_eq!(verdict.parts, parts.map(|(name, value)| (name.to_owned(), value)));
    }

    #[test]
    fn an_error_names_its_part() {
        let verifier = rubric(json!([
            {"name": "format"},
            {"name": "numeric", "label": "number"},
        ]))
        .expect("sound");
        let gold = Reference::Answer("not a number".to_owned());
        let transcript = Transcript::of_reply(vec![], "4");
        for error in [
            verifier.verify(&transcript, &gold).expect_err("unreadable"),
            verifier.verify_group(&[transcript], &gold).remove(0).expect_err("unreadable"),
        ] {
            assert!(error.to_string().contains("`number/numeric`"), "{error}");
        }
    }

    #[test]
    fn a_group_is_judged_as_its_members_are() {
        let verifier = rubric(json!([{"name": "exact"}, {"name": "format"}])).expect("sound");
        let gold = Reference::Answer("4".to_owned());
        let group: Vec<_> = ["4", "<think>x</think><answer>4</answer>"]
            .map(|it| Transcript::of_reply(vec![], it))
            .into();
        let one_by_one: Vec<_> = group.iter().map(|it| verifier.verify(it, &gold)).collect();
        assert_eq!(verifier.verify_group(&group, &gold), one_by_one);
    }

    #[test]
    fn a_part_that_errs_makes_the_verdict_an_error() {
        let verifier = rubric(json!([{"name": "format"}, {"name": "numeric"}])).expect("sound");
        let gold = Reference::Answer("not a number".to_owned());
        let transcript = Transcript::of_reply(vec![], "4");
        assert!(verifier.verify(&transcript, &gold).is_err());
        assert!(verifier.verify_group(&[transcript], &gold)[0].is_err());
    }

    #[test]
    fn faults_name_the_part() {
        check_fault(json!([]), "parts");
        check_fault(json!([{"name": "exat"}]), "parts[0].name");
        check_fault(json!([{"name": "exact", "weight": -0.5}]), "parts[0].weight");
        check_fault(json!([{"name": "exact", "weight": 0.0}]), "parts");
        check_fault(json!([{"name": "exact"}, {"name": "exact"}]), "parts[1].label");
        check_fault(
            json!([{"name": "exact", "options": {"trimm": true}}]),
            "parts[0].options.trimm",
        );
        check_fault(json!([{"name": "exact"}, {"name": "countdown"}]), "parts");
    }
}
