//! Structure alone: the reply is a fixed sequence of tagged sections and nothing else.
//!
//! ```text
//! <think> anything </think> <answer> anything </answer>
//! ```
//!
//! Meant as one part of a rubric beside a verifier that reads the answer. It never looks at the
//! reference, so it goes with every environment.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    answer_span::is_tag_name,
    config_fault::ConfigFault,
    error::VerifyError,
    registry::{ContractCase, VerifierConfig, Verifiers},
    transcript::Transcript,
    verifier::{Outcome, Reference, ReferenceKind, Verdict, Verifier},
};

/// Options of the `format` verifier.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FormatConfig {
    /// Names of the sections, in order, without brackets. Each must occur exactly once. Empty: the
    /// reply is free text with `markers`.
    pub tags: Vec<String>,
    /// Texts that must occur exactly once each, in order, with something after the last: `####`.
    pub markers: Vec<String>,
    /// Whether a section may hold nothing but white space.
    pub allow_empty: bool,
}

impl Default for FormatConfig {
    fn default() -> Self {
        Self {
            tags: vec!["think".to_owned(), "answer".to_owned()],
            markers: Vec::new(),
            allow_empty: false,
        }
    }
}

impl VerifierConfig for FormatConfig {
    const NAME: &'static str = "format";
    const SUMMARY: &'static str =
        "tagged sections in order, each once, and nothing outside; or markers in text";
    // It judges the form alone.
    const ACCEPTS: &'static [&'static str] = &["format_only", "prompt_injection"];

    fn build(&self, _verifiers: &Verifiers) -> Result<Arc<dyn Verifier>, ConfigFault> {
        if self.tags.is_empty() && self.markers.is_empty() {
            return Err(ConfigFault::new("tags", "no tag and no marker is required")
                .found("[]")
                .expected("at least one name, or `markers`"));
        }
        if let Some(at) = self.markers.iter().position(|it| it.trim().is_empty()) {
            return Err(ConfigFault::new(format!("markers[{at}]"), "an empty marker")
                .expected("a text such as \"####\""));
        }
        for (at, tag) in self.tags.iter().enumerate() {
            let key = format!("tags[{at}]");
            if !is_tag_name(tag) {
                return Err(ConfigFault::new(key, "not the name of a tag")
                    .found(format!("{tag:?}"))
                    .expected("letters, digits, `_` and `-`, without brackets"));
            }
            if self.tags[..at].contains(tag) {
                return Err(ConfigFault::new(key, "the same tag twice")
                    .found(format!("{tag:?}"))
                    .expected("each tag once"));
            }
        }
        Ok(Arc::new(Format { config: self.clone() }))
    }

    fn cases() -> Vec<ContractCase> {
        let case = |options: Value, reply: &str, outcome| ContractCase {
            options,
            reference: Reference::None,
            reply: reply.to_owned(),
            outcome,
        };
        use Outcome::{Correct, Malformed};
        vec![
            case(json!({}), "<think>hm</think>\n<answer>4</answer>\n", Correct),
            case(json!({}), "<think>a < b</think><answer>4</answer>", Correct),
            case(json!({}), "<answer>4</answer><think>hm</think>", Malformed),
            case(json!({}), "<think>hm</think><answer>4", Malformed),
            case(json!({}), "<think>hm<answer>4</answer></think>", Malformed),
            case(json!({}), "so: <think>hm</think><answer>4</answer>", Malformed),
            case(json!({}), "<think>hm</think><answer>4</answer> done", Malformed),
            case(json!({}), "<think>a</think><think>b</think><answer>4</answer>", Malformed),
            case(json!({}), "<think> </think><answer>4</answer>", Malformed),
            case(json!({"allow_empty": true}), "<think> </think><answer>4</answer>", Correct),
            case(json!({"tags": ["plan"]}), "<plan>x</plan>", Correct),
            case(json!({"tags": ["plan"]}), "", Malformed),
            case(json!({"tags": [], "markers": ["####"]}), "so it is\n#### 4", Correct),
            case(json!({"tags": [], "markers": ["####"]}), "so it is 4", Malformed),
            case(json!({"tags": [], "markers": ["####"]}), "#### 4 #### 5", Malformed),
            case(json!({"tags": [], "markers": ["####"]}), "so it is\n####", Malformed),
        ]
    }
}

struct Format {
    config: FormatConfig,
}

impl Format {
    /// What breaks the structure, or nothing.
    fn fault(&self, reply: &str) -> Result<(), String> {
        for tag in &self.config.tags {
            for mark in [format!("<{tag}>"), format!("</{tag}>")] {
                match reply.matches(&mark).count() {
                    1 => {}
                    0 => return Err(format!("{mark} is missing")),
                    times => return Err(format!("{mark} occurs {times} times, not once")),
                }
            }
        }
        self.marker_fault(reply)?;
        if self.config.tags.is_empty() {
            return Ok(());
        }
        let mut rest = reply;
        for tag in &self.config.tags {
            rest = rest
                .trim_start()
                .strip_prefix(&format!("<{tag}>"))
                .ok_or_else(|| format!("something else stands where <{tag}> should open"))?;
            let (inside, after) = rest
                .split_once(&format!("</{tag}>"))
                .ok_or_else(|| format!("</{tag}> stands before <{tag}>"))?;
            if inside.trim().is_empty() && !self.config.allow_empty {
                return Err(format!("<{tag}> is empty"));
            }
            rest = after;
        }
        if rest.trim().is_empty() { Ok(()) } else { Err("text after the last section".to_owned()) }
    }
}

impl Format {
    fn marker_fault(&self, reply: &str) -> Result<(), String> {
        let mut rest = reply;
        for marker in &self.config.markers {
            match reply.matches(marker.as_str()).count() {
                1 => {}
                0 => return Err(format!("{marker} is missing")),
                times => return Err(format!("{marker} occurs {times} times, not once")),
            }
            rest = rest
                .split_once(marker.as_str())
                .map(|it| it.1)
                .ok_or_else(|| format!("{marker} stands before the marker it should follow"))?;
        }
        if !self.config.markers.is_empty() && rest.trim().is_empty() {
            return Err("nothing after the last marker".to_owned());
        }
        Ok(())
    }
}

impl Verifier for Format {
    fn name(&self) -> &str {
        FormatConfig::NAME
    }

    fn reference_kinds(&self) -> &'static [ReferenceKind] {
        ReferenceKind::ALL
    }

    fn verify(
        &self,
        transcript: &Transcript,
        _reference: &Reference,
    ) -> Result<Verdict, VerifyError> {
        Ok(match self.fault(transcript.last_reply()) {
            Ok(()) => Verdict::correct(),
            Err(reason) => Verdict::malformed(reason),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_that_cannot_be_are_refused_at_their_place() {
        for (tags, key) in
            [(json!([]), "tags"), (json!(["a", "<b>"]), "tags[1]"), (json!(["a", "a"]), "tags[1]")]
        {
            let fault = Verifiers::builtin()
                .build("format", json!({ "tags": tags }))
                .err()
                .expect("the tags are refused");
            assert_eq!(fault.key, key);
        }
    }
}
