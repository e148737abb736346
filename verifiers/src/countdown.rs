//! Countdown: an expression over the given numbers, each used at most once, that hits the target.
//!
//! The reference is `Custom({"numbers": [3, 4, 5], "target": 35})` (see [`CountdownReference`]).
//! The expression stands inside the last `tag` if that is set, else after the last `after` marker,
//! else on the last line that is not blank. It may be followed by `= target`; a false claim there
//! makes the answer wrong. Arithmetic is exact, so `5/3*3` is 5.

use std::sync::Arc;

use num_bigint::BigInt;
use num_rational::BigRational;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    answer_span::{TagProblem, after_last, excerpt, inside_last_tag, is_tag_name},
    config_fault::ConfigFault,
    error::VerifyError,
    expression::{Expression, ExpressionProblem},
    registry::{ContractCase, VerifierConfig, Verifiers},
    transcript::Transcript,
    verifier::{Outcome, Reference, ReferenceKind, Verdict, Verifier},
};

/// Options of the `countdown` verifier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CountdownConfig {
    /// Marker before the expression; a reply without it is malformed.
    pub after: Option<String>,
    /// Tag around the expression, without brackets; a reply without it is malformed.
    pub tag: Option<String>,
}

/// What a countdown task's custom reference holds.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CountdownReference {
    /// The numbers that may be used, each as often as it stands here.
    pub numbers: Vec<u64>,
    /// The value to be reached.
    pub target: u64,
}

impl VerifierConfig for CountdownConfig {
    const NAME: &'static str = "countdown";
    const SUMMARY: &'static str = "an expression over the given numbers that hits the target";

    fn build(&self, _verifiers: &Verifiers) -> Result<Arc<dyn Verifier>, ConfigFault> {
        if self.after.as_deref() == Some("") {
            return Err(ConfigFault::new("after", "the marker is empty")
                .found("\"\"")
                .expected("at least one character"));
        }
        if let Some(tag) = &self.tag {
            if !is_tag_name(tag) {
                return Err(ConfigFault::new("tag", "not the name of a tag")
                    .found(format!("{tag:?}"))
                    .expected("letters, digits, `_` and `-`, without brackets"));
            }
            if self.after.is_some() {
                return Err(ConfigFault::new("tag", "both `tag` and `after` are set")
                    .expected("at most one of them")
                    .hint("drop `after`"));
            }
        }
        Ok(Arc::new(Countdown { config: self.clone() }))
    }

    fn cases() -> Vec<ContractCase> {
        let case = |options: Value, reply: &str, outcome| ContractCase {
            options,
            reference: Reference::Custom(json!({"numbers": [3, 4, 5, 5], "target": 35})),
            reply: reply.to_owned(),
            outcome,
        };
        let tagged = || json!({"tag": "answer"});
        use Outcome::{Correct, Incorrect, Malformed};
        vec![
            case(json!({}), "(3+4)*5", Correct),
            case(json!({}), "Let me see.\n(3 + 4) * 5 = 35\n", Correct),
            case(json!({}), "(3+4)*5=36", Incorrect),
            case(json!({}), "3+4*5+5", Incorrect),
            case(json!({}), "35", Incorrect),
            case(json!({}), "7*5", Incorrect),
            case(json!({}), "(3+4)*5*5/5", Incorrect),
            case(json!({}), "5/(4-4)", Incorrect),
            case(json!({}), "3/(5-5)", Incorrect),
            case(json!({}), "three", Malformed),
            case(json!({}), "", Malformed),
            case(json!({"after": "=>"}), "3+4=7, 7*5=35 =>(3+4)*5=35", Correct),
            case(json!({"after": "=>"}), "(3+4)*5", Malformed),
            case(tagged(), "<answer>5*(4+3)</answer>", Correct),
            case(tagged(), "<answer>5*(4+3)", Malformed),
            case(tagged(), "5*(4+3)", Malformed),
        ]
    }
}

struct Countdown {
    config: CountdownConfig,
}

impl Countdown {
    /// Where the expression should stand, or why there is no such place.
    fn span<'a>(&self, reply: &'a str) -> Result<&'a str, String> {
        if let Some(tag) = &self.config.tag {
            return inside_last_tag(reply, tag).map_err(|problem| match problem {
                TagProblem::Absent => format!("no <{tag}> in the reply"),
                TagProblem::Unterminated => format!("the last <{tag}> is never closed"),
            });
        }
        if let Some(marker) = &self.config.after {
            return after_last(reply, marker).ok_or_else(|| format!("no {marker:?} in the reply"));
        }
        let last_line = reply.lines().rev().find(|line| !line.trim().is_empty());
        last_line.ok_or_else(|| "the reply is empty".to_owned())
    }
}

impl Verifier for Countdown {
    fn name(&self) -> &str {
        CountdownConfig::NAME
    }

    fn reference_kinds(&self) -> &'static [ReferenceKind] {
        &[ReferenceKind::Custom]
    }

    fn verify(
        &self,
        transcript: &Transcript,
        reference: &Reference,
    ) -> Result<Verdict, VerifyError> {
        let Reference::Custom(custom) = reference else {
            return Err(VerifyError::WrongReference {
                verifier: CountdownConfig::NAME.to_owned(),
                wanted: ReferenceKind::Custom,
                got: reference.kind(),
            });
        };
        let puzzle =
            CountdownReference::deserialize(custom).map_err(|error| VerifyError::BadReference {
                verifier: CountdownConfig::NAME.to_owned(),
                problem: error.to_string(),
            })?;
        Ok(match self.span(transcript.last_reply()) {
            Err(problem) => Verdict::malformed(problem),
            Ok(text) => judge(text, &puzzle),
        })
    }
}

/// Judges `expression` or `expression = target`.
fn judge(text: &str, puzzle: &CountdownReference) -> Verdict {
    let (written, claim) = match text.split_once('=') {
        Some((written, claim)) => (written, Some(claim)),
        None => (text, None),
    };
    let unreadable = |part: &str, problem: ExpressionProblem| {
        Verdict::malformed(format!("{}: {problem}", excerpt(part)))
    };
    let expression = match Expression::parse(written) {
        Ok(expression) => expression,
        Err(problem) => return unreadable(written, problem),
    };
    let target = BigRational::from_integer(BigInt::from(puzzle.target));
    if let Some(claim) = claim {
        match Expression::parse(claim).and_then(|claim| claim.value()) {
            Ok(claimed) if claimed == target => {}
            Ok(_) => return Verdict::incorrect(format!("claims a value other than {target}")),
            Err(problem) => return unreadable(claim, problem),
        }
    }

    let mut unused: Vec<BigInt> = puzzle.numbers.iter().map(|&it| BigInt::from(it)).collect();
    for number in expression.numbers() {
        match unused.iter().position(|it| it == number) {
            Some(at) => drop(unused.swap_remove(at)),
            None => {
                let number = excerpt(&number.to_string());
                return Verdict::incorrect(format!("uses {number} more often than it is given"));
            }
        }
    }
    match expression.value() {
        Ok(value) if value == target => Verdict::correct(),
        Ok(value) => {
            Verdict::incorrect(format!("is {}, not {target}", excerpt(&value.to_string())))
        }
        Err(problem) => Verdict::incorrect(problem.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_without_a_target_is_an_error() {
        let verifier = Countdown { config: CountdownConfig::default() };
        let transcript = Transcript::of_reply(Vec::new(), "3");
        let verdict = verifier.verify(&transcript, &Reference::Custom(json!({"numbers": [3]})));
        assert!(matches!(verdict, Err(VerifyError::BadReference { .. })), "{verdict:?}");
    }

    #[test]
    fn a_number_given_twice_may_be_used_twice() {
        let puzzle = CountdownReference { numbers: vec![5, 5], target: 25 };
        assert_eq!(judge("5*5", &puzzle), Verdict::correct());
        assert_eq!(judge("5*5*5", &puzzle).outcome, Outcome::Incorrect);
    }

    #[test]
    fn fractions_on_the_way_are_exact() {
        let puzzle = CountdownReference { numbers: vec![5, 3, 6], target: 10 };
        assert_eq!(judge("5/3*6", &puzzle), Verdict::correct());
    }
}
