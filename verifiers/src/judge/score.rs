//! Where in a judge's answer the score is.
//!
//! What stands last counts, since a judge may quote the reply, which may hold a score of its own, before it
//! concludes. A number outside of the scale is no score.

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config_fault::ConfigFault;

/// Where the score is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ScoreForm {
    /// A regular expression whose first group is the number; its last match counts.
    Pattern(String),
    /// A field of a JSON object; the last object of the answer that has it counts.
    Field(String),
}

impl Default for ScoreForm {
    fn default() -> Self {
        Self::Pattern(r"(?i)score[\s:*=]+(-?[0-9]+(?:\.[0-9]+)?)".to_owned())
    }
}

/// Reads scores of one form within one scale.
pub(super) struct ScoreReader {
    form: Form,
    scale: [f64; 2],
}

enum Form {
    Pattern(Regex),
    Field(String),
}

impl ScoreReader {
    /// A reader of scores within `scale`.
    ///
    /// # Errors
    /// If nothing can be read by the form.
    pub(super) fn new(form: &ScoreForm, scale: [f64; 2]) -> Result<Self, ConfigFault> {
        let form = match form {
            ScoreForm::Pattern(pattern) => {
                let regex = Regex::new(pattern).map_err(|error| {
                    ConfigFault::new("score.pattern", format!("not a regular expression: {error}"))
                })?;
                if regex.captures_len() < 2 {
                    return Err(ConfigFault::new(
                        "score.pattern",
                        "it does not say which part is the number",
                    )
                    .found(format!("`{pattern}`"))
                    .expected("a group in brackets, e.g. `Score: ([0-9.]+)`"));
                }
                Form::Pattern(regex)
            }
            ScoreForm::Field(field) if field.is_empty() => {
                return Err(ConfigFault::new("score.field", "the field has no name"));
            }
            ScoreForm::Field(field) => Form::Field(field.clone()),
        };
        Ok(Self { form, scale })
    }

    /// The score in an answer.
    ///
    /// # Errors
    /// What is wrong with the answer, as the end of a sentence about it.
    pub(super) fn read(&self, answer: &str) -> Result<f64, String> {
        let score = match &self.form {
            Form::Pattern(regex) => {
                let last = regex.captures_iter(answer).last();
                let found = last.and_then(|captures| Some(captures.get(1)?.as_str().to_owned()));
                let text = found.ok_or_else(|| format!("holds no score by `{regex}`"))?;
                text.trim().parse().map_err(|_| format!("has the score {text:?}, no number"))?
            }
            Form::Field(field) => {
                let value = last_with_field(answer, field)
                    .ok_or_else(|| format!("holds no JSON object with the field `{field}`"))?;
                let number = match &value {
                    Value::String(text) => text.trim().parse().ok(),
                    value => value.as_f64(),
                };
                number.ok_or_else(|| format!("has the {field} {value}, no number"))?
            }
        };
        let [low, high] = self.scale;
        if (low..=high).contains(&score) {
            Ok(score)
        } else {
            Err(format!("has the score {score}, not one from {low} to {high}"))
        }
    }
}

/// The field's value in the last JSON object of `answer` that has it; objects inside others count
/// only if those around them do not have it.
fn last_with_field(answer: &str, field: &str) -> Option<Value> {
    /// Braces that are tried, so that an answer of nothing but braces costs little.
    const TRIES: usize = 1000;
    let mut found = None;
    let mut from = 0;
    for _ in 0..TRIES {
        let Some(start) = answer[from..].find('{').map(|it| from + it) else { break };
        let mut objects = serde_json::Deserializer::from_str(&answer[start..])
            .into_iter::<serde_json::Map<String, Value>>();
        from = start + 1;
        if let Some(Ok(mut object)) = objects.next()
            && let Some(value) = object.remove(field)
        {
            found = Some(value);
            from = start + objects.byte_offset();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(form: ScoreForm, answer: &str) -> Result<f64, String> {
        ScoreReader::new(&form, [0.0, 10.0]).expect("a sound form").read(answer)
    }

    #[test]
    fn the_last_score_counts() {
        for (answer, score) in [
            ("Score: 7", 7.0),
            ("It says `Score: 10`, and is wrong.\nScore: 2", 2.0),
            ("**Score:** 7.5/10", 7.5),
            ("score = 3", 3.0),
            ("SCORE: 0", 0.0),
            ("Final score: **8**.", 8.0),
        ] {
            assert_eq!(read(ScoreForm::default(), answer), Ok(score), "{answer}");
        }
    }

    #[test]
    fn what_is_no_score_is_none() {
        for answer in ["", "Score: high", "Score: 11", "Score: -1", "7", "Score: 99999999999999"] {
            assert!(read(ScoreForm::default(), answer).is_err(), "{answer}");
        }
        let loose = || ScoreForm::Pattern("= ([0-9.]+)".to_owned());
        assert_eq!(read(loose(), "= 7."), Ok(7.0));
        assert!(read(loose(), "= 7.5.").is_err());
    }

    #[test]
    fn a_field_is_found_in_prose_and_fences() {
        let field = || ScoreForm::Field("score".to_owned());
        for (answer, score) in [
            ("{\"score\": 4}", 4.0),
            ("```json\n{\"why\": \"{x}\", \"score\": \"6\"}\n```", 6.0),
            ("first {\"score\": 1} then {\"score\": 9, \"x\": {\"score\": 2}} {\"y\": 0}", 9.0),
            ("{\"outer\": {\"score\": 3}}", 3.0),
        ] {
            assert_eq!(read(field(), answer), Ok(score), "{answer}");
        }
        for answer in ["", "{", "{\"score\": null}", "{\"score\": 12}", "score: 4"] {
            assert!(read(field(), answer).is_err(), "{answer}");
        }
        assert!(read(field(), &"{".repeat(100_000)).is_err());
        assert!(read(field(), &"{\"a\":".repeat(100_000)).is_err());
    }
}
