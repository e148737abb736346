//! What a scorer outside is asked, and how it answers: the JSON that `process` and `http` share.
//!
//! One request for each group of siblings:
//!
//! ```json
//! {"id": 7, "reference": "42", "reference_kind": "answer",
//!  "items": [{"messages": [{"role": "user", "content": "6*7?"}, …],
//!             "reply": "It is 42.", "stop": "finished"}, …]}
//! ```
//!
//! `reference` is what the task's reference holds: `null` (kind `none`), a string (`answer`), a list of
//! `{"input", "output"}` (`tests`) or any JSON (`custom`). `reply` is the last thing that the policy
//! said, `stop` one of `finished`, `length`, `turn_limit`.
//!
//! One response, with a result for each item, in order:
//!
//! ```json
//! {"id": 7, "results": [
//!    0.5,
//!    {"reward": 1, "outcome": "correct", "parts": {"style": 0.3}, "reason": "as the gold answer"},
//!    {"unscorable": "the compiler did not start"}]}
//! ```
//!
//! The first request of all is about no items (id 0, no reference) and is answered with no results: whoever
//! judges gets ready there, and what cannot work is told before anything is judged.
//!
//! A number alone is a graded reward. `outcome` is `correct`, `incorrect`, `malformed` or `graded`
//! (the default). Numbers are finite. An item that is unscorable, or whose result is not one of these, is
//! dropped and counted by itself; the others are kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    answer_span::excerpt,
    transcript::{Message, StopReason, Transcript},
    verifier::{Outcome, Reference, ReferenceKind, Verdict},
};

#[derive(Serialize)]
struct Request<'a> {
    id: u64,
    reference: &'a Value,
    reference_kind: ReferenceKind,
    items: Vec<Item<'a>>,
}

#[derive(Serialize)]
struct Item<'a> {
    messages: &'a [Message],
    reply: &'a str,
    stop: StopReason,
}

#[derive(Deserialize)]
struct Response {
    id: Option<u64>,
    results: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Judged {
    reward: f64,
    #[serde(default)]
    outcome: Option<Outcome>,
    #[serde(default)]
    parts: Option<BTreeMap<String, f64>>,
    #[serde(default)]
    reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unscorable {
    unscorable: String,
}

/// What a reference holds, without its kind.
pub(crate) fn content(reference: &Reference) -> Value {
    match reference {
        Reference::None => Value::Null,
        Reference::Answer(answer) => Value::String(answer.clone()),
        Reference::Tests(cases) => serde_json::json!(cases),
        Reference::Custom(value) => value.clone(),
    }
}

/// A request as one line of JSON, without its end.
pub(crate) fn request(id: u64, transcripts: &[Transcript], reference: &Reference) -> Vec<u8> {
    let request = Request {
        id,
        reference: &content(reference),
        reference_kind: reference.kind(),
        items: transcripts
            .iter()
            .map(|it| Item { messages: &it.messages, reply: it.last_reply(), stop: it.stop })
            .collect(),
    };
    serde_json::to_vec(&request).expect("text, numbers and lists always serialise")
}

/// What was concluded of one item: its verdict, or why there is none.
pub(crate) type Result = std::result::Result<Verdict, String>;

/// Reads the response to request `id` about `count` items.
///
/// # Errors
/// If it is no such response, so that nothing in it can be believed.
pub(crate) fn response(
    bytes: &[u8],
    id: u64,
    count: usize,
) -> std::result::Result<Vec<Result>, String> {
    let response: Response = serde_json::from_slice(bytes).map_err(|error| {
        let text = String::from_utf8_lossy(bytes);
        let hint = if text.contains("NaN") || text.contains("Infinity") {
            "; NaN and Infinity are not JSON: say {\"unscorable\": \"why\"}"
        } else {
            ""
        };
        format!("answered {}, not {{\"results\": […]}}: {error}{hint}", excerpt(text.trim_end()))
    })?;
    if let Some(other) = response.id.filter(|&other| other != id) {
        return Err(format!("answered request {other}, not {id}"));
    }
    if response.results.len() != count {
        return Err(format!("gave {} results for {count} items", response.results.len()));
    }
    Ok(response.results.into_iter().map(result).collect())
}

fn result(value: Value) -> Result {
    if let Some(reward) = value.as_f64() {
        return Ok(Verdict::graded(finite(reward)?));
    }
    if value.get("unscorable").is_some() {
        let told: Unscorable = serde_json::from_value(value.clone())
            .map_err(|error| format!("the result {value} is no result: {error}"))?;
        return Err(format!("unscorable: {}", told.unscorable));
    }
    let judged: Judged = serde_json::from_value(value.clone()).map_err(|error| {
        format!(
            "the result {} is neither a number, nor has it a reward or says why it is unscorable: \
             {error}",
            excerpt(&value.to_string())
        )
    })?;
    let mut verdict = Verdict::graded(finite(judged.reward)?);
    verdict.outcome = judged.outcome.unwrap_or(Outcome::Graded);
    verdict.reason = judged.reason;
    for (name, value) in judged.parts.unwrap_or_default() {
        verdict.parts.push((name, finite(value)?));
    }
    Ok(verdict)
}

fn finite(number: f64) -> std::result::Result<f32, String> {
    let narrow = number as f32;
    if narrow.is_finite() { Ok(narrow) } else { Err(format!("{number} is too large a number")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::verifier::TestCase;

    #[test]
    fn a_request_is_the_documented_one() {
        let group = [Transcript::of_reply(vec![Message::user("6*7?")], "42\n")];
        let asked = request(7, &group, &Reference::Answer("42".to_owned()));
        assert_eq!(
            String::from_utf8(asked).expect("text"),
            r#"{"id":7,"reference":"42","reference_kind":"answer","items":[{"messages":[{"role":"user","content":"6*7?"},{"role":"assistant","content":"42\n"}],"reply":"42\n","stop":"finished"}]}"#
        );
        let tests = Reference::Tests(vec![TestCase { input: "1".into(), output: "2".into() }]);
        assert_eq!(content(&tests), json!([{"input": "1", "output": "2"}]));
        assert_eq!(content(&Reference::None), Value::Null);
        assert_eq!(content(&Reference::Custom(json!({"a": 1}))), json!({"a": 1}));
    }

    #[test]
    fn results_are_read_one_by_one() {
        let answer = br#"{"id": 3, "results": [0.5,
            {"reward": 1, "outcome": "correct", "parts": {"style": 0.25}, "reason": "so"},
            {"unscorable": "no compiler"}, {"reward": 1, "outcom": "correct"}, null, 1e300,
            {"reward": "1"}, {"reward": 0, "outcome": "incorrect"}]}"#;
        let results = response(answer, 3, 8).expect("a response");
        assert_eq!(results[0], Ok(Verdict::graded(0.5)));
        let right = results[1].as_ref().expect("a verdict");
        assert_eq!((right.reward, right.outcome), (1.0, Outcome::Correct));
        assert_eq!(right.parts, [("style".to_owned(), 0.25)]);
        assert_eq!(right.reason.as_deref(), Some("so"));
        assert_eq!(results[2], Err("unscorable: no compiler".to_owned()));
        assert!(results[3].as_ref().expect_err("misspelt").contains("outcom"), "{results:?}");
        assert!(results[4..7].iter().all(std::result::Result::is_err), "{results:?}");
        assert_eq!(results[7].as_ref().expect("a verdict").outcome, Outcome::Incorrect);
    }

    #[test]
    fn what_is_no_response_is_refused_whole() {
        for (answer, told) in [
            ("hello", "answered \"hello\", not"),
            ("{\"results\": [NaN]}", "NaN and Infinity are not JSON"),
            ("{\"results\": []}", "gave 0 results for 1 items"),
            ("{\"results\": [1, 1]}", "gave 2 results for 1 items"),
            ("{\"id\": 2, \"results\": [1]}", "answered request 2, not 3"),
            ("{\"id\": 3}", "missing field `results`"),
            ("", "answered \"\", not"),
        ] {
            let problem = response(answer.as_bytes(), 3, 1).expect_err("refused");
            assert!(problem.contains(told), "{problem}");
        }
    }
}
