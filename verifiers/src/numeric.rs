//! Numeric equality: finds the reply's final number and compares it exactly with the right one.
//!
//! Where the answer stands, first that applies:
//! 1. in the last `\boxed{...}`; a last box that is never closed is malformed, an earlier one is
//!    never taken in its stead;
//! 2. inside the last `<tag>...</tag>`, if `tag` is set;
//! 3. after the last marker, up to the end of its line, if `after` is set;
//! 4. unless `strict`: the last number of the reply.
//!
//! In the first three places the text must be one number (see `number.rs`), so `\boxed{5 or 6}` is
//! malformed. Departs from most graders of GSM8K and MATH, which compare floats within a tolerance:
//! here a third is not 0.333.

use std::sync::Arc;

use num_rational::BigRational;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    answer_span::{TagProblem, after_last, excerpt, inside_last_tag, is_tag_name},
    config_fault::ConfigFault,
    error::VerifyError,
    number::{last_number, whole_number},
    registry::{ContractCase, VerifierConfig, Verifiers},
    transcript::Transcript,
    verifier::{Outcome, Reference, ReferenceKind, Verdict, Verifier},
};

/// Options of the `numeric` verifier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct NumericConfig {
    /// Marker before the answer, e.g. `####`.
    pub after: Option<String>,
    /// Tag around the answer, without brackets, e.g. `answer`.
    pub tag: Option<String>,
    /// Whether a reply without box, tag or marker is malformed instead of being searched for its
    /// last number.
    pub strict: bool,
}

impl VerifierConfig for NumericConfig {
    const NAME: &'static str = "numeric";
    const SUMMARY: &'static str =
        "the final number, compared exactly: boxed, tagged, marked or last";
    // The last number and the last box count, whatever stands before them.
    const ACCEPTS: &'static [&'static str] = &["hedge", "several_boxes"];

    fn build(&self, _verifiers: &Verifiers) -> Result<Arc<dyn Verifier>, ConfigFault> {
        if self.after.as_deref() == Some("") {
            return Err(ConfigFault::new("after", "the marker is empty")
                .found("\"\"")
                .expected("at least one character"));
        }
        if let Some(tag) = &self.tag
            && !is_tag_name(tag)
        {
            return Err(ConfigFault::new("tag", "not the name of a tag")
                .found(format!("{tag:?}"))
                .expected("letters, digits, `_` and `-`, without brackets"));
        }
        Ok(Arc::new(Numeric { config: self.clone() }))
    }

    fn cases() -> Vec<ContractCase> {
        let case = |options: Value, gold: &str, reply: &str, outcome| ContractCase {
            options,
            reference: Reference::Answer(gold.to_owned()),
            reply: reply.to_owned(),
            outcome,
        };
        let marked = || json!({"after": "####"});
        let tagged = || json!({"tag": "answer", "strict": true});
        use Outcome::{Correct, Incorrect, Malformed};
        vec![
            case(json!({}), "42", "It is \\boxed{42}, not 41.", Correct),
            case(json!({}), "1/2", "\\boxed{\\frac{1}{2}}", Correct),
            case(json!({}), "0.5", "\\boxed{\\frac{1}{2}}", Correct),
            case(json!({}), "1000", "\\boxed{ 1{,}000 }", Correct),
            case(json!({}), "#### 1,000", "that makes $1000.", Correct),
            case(json!({}), "She had 3+4=7.\n#### 7", "7", Correct),
            case(json!({}), "1/3", "0.333", Incorrect),
            case(json!({}), "2", "\\boxed{2} but then \\boxed{3}", Incorrect),
            case(json!({}), "2", "\\boxed{2} and then \\boxed{2", Malformed),
            case(json!({}), "5", "\\boxed{5 or 6}", Malformed),
            case(json!({}), "5", "I do not know", Malformed),
            case(json!({}), "5", "", Malformed),
            case(json!({}), "5", "1e999999999", Malformed),
            case(marked(), "-3", "5\n#### -3\nThat is all 9.", Correct),
            case(marked(), "5", "#### none of 5", Malformed),
            case(tagged(), "50", "<answer>50%</answer>", Correct),
            case(tagged(), "50", "<answer>49</answer>", Incorrect),
            case(tagged(), "50", "<answer>50", Malformed),
            case(tagged(), "50", "50", Malformed),
        ]
    }
}

struct Numeric {
    config: NumericConfig,
}

impl Numeric {
    /// The reply's final number, or why there is none.
    fn answer(&self, reply: &str) -> Result<BigRational, String> {
        if let Some(boxed) = last_boxed(reply) {
            return read(boxed?, "the last box");
        }
        if let Some(tag) = &self.config.tag {
            match inside_last_tag(reply, tag) {
                Ok(inside) => return read(inside, &format!("<{tag}>")),
                Err(TagProblem::Unterminated) => {
                    return Err(format!("the last <{tag}> is never closed"));
                }
                Err(TagProblem::Absent) => {}
            }
        }
        if let Some(marker) = &self.config.after
            && let Some(rest) = after_last(reply, marker)
        {
            return read(first_line(rest), &format!("what follows {marker:?}"));
        }
        if self.config.strict {
            return Err("the answer is not marked".to_owned());
        }
        match last_number(reply) {
            None => Err("no number in the reply".to_owned()),
            Some(number) => number.map_err(|problem| format!("the last number is {problem}")),
        }
    }
}

impl Verifier for Numeric {
    fn name(&self) -> &str {
        NumericConfig::NAME
    }

    fn reference_kinds(&self) -> &'static [ReferenceKind] {
        &[ReferenceKind::Answer]
    }

    fn verify(
        &self,
        transcript: &Transcript,
        reference: &Reference,
    ) -> Result<Verdict, VerifyError> {
        let Reference::Answer(gold_text) = reference else {
            return Err(VerifyError::WrongReference {
                verifier: NumericConfig::NAME.to_owned(),
                wanted: ReferenceKind::Answer,
                got: reference.kind(),
            });
        };
        let gold = gold(gold_text).map_err(|problem| VerifyError::BadReference {
            verifier: NumericConfig::NAME.to_owned(),
            problem,
        })?;
        Ok(match self.answer(transcript.last_reply()) {
            Err(problem) => Verdict::malformed(problem),
            Ok(answer) if answer == gold => Verdict::correct(),
            Ok(answer) => {
                Verdict::incorrect(format!("answered {}, not {gold}", excerpt(&answer.to_string())))
            }
        })
    }
}

/// The right answer: a box, what follows GSM8K's `####`, or the whole text.
fn gold(text: &str) -> Result<BigRational, String> {
    if let Some(boxed) = last_boxed(text) {
        return read(boxed?, "the last box");
    }
    read(after_last(text, "####").unwrap_or(text), "the answer")
}

fn read(text: &str, place: &str) -> Result<BigRational, String> {
    whole_number(text).map_err(|problem| format!("{place} holds {}: {problem}", excerpt(text)))
}

/// The content of the last `\boxed{...}`; braces inside must balance, escaped ones do not count.
///
/// `None` if there is no box; an error if the last one is not closed.
fn last_boxed(text: &str) -> Option<Result<&str, String>> {
    let rest = after_last(text, "\\boxed")?.trim_start();
    let unterminated = || Err("the last \\boxed is never closed".to_owned());
    let Some(inside) = rest.strip_prefix('{') else {
        return Some(Err("the last \\boxed has no braces".to_owned()));
    };
    let mut depth = 1_usize;
    let mut escaped = false;
    for (at, letter) in inside.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(Ok(&inside[..at]));
                }
            }
            _ => {}
        }
    }
    Some(unterminated())
}

/// The first line that is not blank.
fn first_line(text: &str) -> &str {
    text.lines().find(|line| !line.trim().is_empty()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_balance_their_braces() {
        let table = [
            ("\\boxed{\\frac{1}{2}} x}", Some(Ok("\\frac{1}{2}"))),
            ("\\boxed {5}", Some(Ok("5"))),
            ("\\boxed{\\}}", Some(Ok("\\}"))),
            ("\\boxed{\\boxed{5}}", Some(Ok("5"))),
            ("boxed{5}", None),
        ];
        for (text, expected) in table {
            assert_eq!(last_boxed(text), expected, "{text}");
        }
        assert!(matches!(last_boxed("\\boxed{1}\\boxed{{2}"), Some(Err(_))));
        assert!(matches!(last_boxed("\\boxed 5"), Some(Err(_))));
    }

    #[test]
    fn an_unreadable_gold_answer_is_an_error_not_a_verdict() {
        let verifier = Numeric { config: NumericConfig::default() };
        let transcript = Transcript::of_reply(Vec::new(), "5");
        let verdict = verifier.verify(&transcript, &Reference::Answer("five".to_owned()));
        assert!(matches!(verdict, Err(VerifyError::BadReference { .. })), "{verdict:?}");
    }

    #[test]
    fn a_tag_with_brackets_is_refused() {
        let fault = Verifiers::builtin()
            .build("numeric", json!({"tag": "<answer>"}))
            .err()
            .expect("brackets are no part of the name");
        assert_eq!(fault.key, "tag");
    }
}
