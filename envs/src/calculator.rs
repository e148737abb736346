//! Arithmetic too large for the head, with a calculator to call: the smallest tool-use episode.
//!
//! ```text
//! system     You may use a calculator. ...
//! user       48213*9921-77?
//! assistant  <calc>48213*9921</calc>
//! tool       478321173
//! assistant  <calc>478321173-77</calc>
//! tool       478321096
//! assistant  =478321096
//! ```
//!
//! A reply that holds a complete `<calc>...</calc>` is a call; the last one in the reply is worked
//! out, exactly, and the result or an error text comes back as a tool message. A reply without a
//! call ends the episode, and so does a call beyond `calls`. A call that is never closed is no call.

use std::sync::Arc;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tallow_verifiers::{
    ConfigFault, Message, Reference, ReferenceKind,
    answer_span::inside_last_tag,
    expression::{Expression, ExpressionProblem},
};

use crate::{
    environment::{Environment, Episode, Step},
    error::EnvError,
    procedural::{self, check_range},
    registry::{BuildContext, EnvConfig},
    task::{Seed, Split, Task, TaskId},
};

/// Options of the `calculator` environment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CalculatorConfig {
    /// How many numbers a question has, 2 to 8.
    pub terms: u64,
    /// Digits of each number, 1 to 15.
    pub digits: u64,
    /// How many calls are answered in one episode, 0 to 64.
    pub calls: u64,
    /// Whether a system message explains the calculator.
    pub instructions: bool,
}

impl Default for CalculatorConfig {
    fn default() -> Self {
        Self { terms: 3, digits: 4, calls: 4, instructions: true }
    }
}

impl EnvConfig for CalculatorConfig {
    const NAME: &'static str = "calculator";
    const SUMMARY: &'static str = "large arithmetic with a calculator to call, over several turns";

    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Environment>, ConfigFault> {
        check_range("terms", self.terms, 2..=8)?;
        check_range("digits", self.digits, 1..=15)?;
        check_range("calls", self.calls, 0..=64)?;
        let environment = Calculator { config: self.clone(), seed: context.seed };
        procedural::check_space(
            Self::NAME,
            "digits",
            |rng| environment.candidate(rng),
            Clone::clone,
        )?;
        Ok(Arc::new(environment))
    }
}

/// What the system message says.
const INSTRUCTIONS: &str = "You may use a calculator: write <calc>12*(3+4)</calc> as your reply and \
    its result will be shown to you. When you know the answer, write it after an equals sign, \
    like =84.";

struct Calculator {
    config: CalculatorConfig,
    seed: Seed,
}

impl Calculator {
    /// An expression such as `48213*9921-77`.
    fn candidate(&self, rng: &mut ChaCha8Rng) -> String {
        let digits = self.config.digits as u32;
        let lowest = if digits == 1 { 0 } else { 10_u64.pow(digits - 1) };
        let mut expression = String::new();
        for term in 0..self.config.terms {
            if term > 0 {
                expression.push(['+', '-', '*'][rng.random_range(0..3)]);
            }
            expression += &rng.random_range(lowest..10_u64.pow(digits)).to_string();
        }
        expression
    }
}

impl Environment for Calculator {
    fn name(&self) -> &str {
        CalculatorConfig::NAME
    }

    fn len(&self, split: Split) -> u64 {
        procedural::len(split)
    }

    fn task(&self, split: Split, index: u64) -> Result<Task, EnvError> {
        let expression = procedural::draw(
            CalculatorConfig::NAME,
            self.seed,
            split,
            index,
            |rng| self.candidate(rng),
            Clone::clone,
        )?;
        let answer = calculated(&expression).map_err(|problem| EnvError::Broken {
            environment: CalculatorConfig::NAME.to_owned(),
            problem: format!("its own expression {expression} has no value: {problem}"),
        })?;
        let mut prompt = Vec::new();
        if self.config.instructions {
            prompt.push(Message::system(INSTRUCTIONS));
        }
        prompt.push(Message::user(format!("{expression}?")));
        Ok(Task {
            id: TaskId { split, index },
            prompt,
            reference: Reference::Answer(answer),
            notes: json!({ "expression": expression }),
        })
    }

    fn reference_kind(&self) -> ReferenceKind {
        ReferenceKind::Answer
    }

    fn default_verifier(&self) -> (&'static str, Value) {
        ("exact", json!({ "after": "=" }))
    }

    fn reply_styles(&self) -> &'static [&'static str] {
        &["bare"]
    }

    fn reply(&self, task: &Task, style: &str, _seed: Seed) -> Option<String> {
        let answer = calculated(task.notes.get("expression")?.as_str()?).ok()?;
        (style == "bare").then(|| format!("={answer}"))
    }

    fn episode(&self, _task: &Task) -> Result<Box<dyn Episode>, EnvError> {
        Ok(Box::new(Calls { left: self.config.calls, over: false }))
    }
}

/// An episode: the calls that may still be made.
struct Calls {
    left: u64,
    over: bool,
}

impl Episode for Calls {
    fn step(&mut self, reply: &str) -> Result<Step, EnvError> {
        if self.over {
            return Err(EnvError::EpisodeOver { environment: CalculatorConfig::NAME.to_owned() });
        }
        match inside_last_tag(reply, "calc") {
            Ok(call) if self.left > 0 => {
                self.left -= 1;
                let result = calculated(call).unwrap_or_else(|problem| format!("error: {problem}"));
                Ok(Step::Continue(vec![Message::tool(result)]))
            }
            _ => {
                self.over = true;
                Ok(Step::Done)
            }
        }
    }
}

/// The exact value in lowest terms: `84`, `-3` or `7/2`.
fn calculated(expression: &str) -> Result<String, ExpressionProblem> {
    Ok(Expression::parse(expression)?.value()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(text: &str) -> Result<Step, EnvError> {
        Ok(Step::Continue(vec![Message::tool(text)]))
    }

    #[test]
    fn calls_are_answered_until_a_reply_makes_none() {
        let mut episode = Calls { left: 4, over: false };
        assert_eq!(episode.step("<calc>12*(3+4)</calc>"), tool("84"));
        assert_eq!(episode.step("<calc>1</calc> or <calc>7/2</calc>"), tool("7/2"));
        assert_eq!(episode.step("<calc>1/0</calc>"), tool("error: division by zero"));
        assert_eq!(
            episode.step("<calc>two</calc>"),
            tool("error: not an expression from character 0 on")
        );
        assert_eq!(episode.step("=84"), Ok(Step::Done));
        assert!(matches!(episode.step("=84"), Err(EnvError::EpisodeOver { .. })));
    }

    #[test]
    fn a_call_too_many_ends_the_episode() {
        let mut episode = Calls { left: 1, over: false };
        assert_eq!(episode.step("<calc>1+1</calc>"), tool("2"));
        assert_eq!(episode.step("<calc>1+1</calc>"), Ok(Step::Done));
    }

    #[test]
    fn an_unclosed_call_is_no_call() {
        let mut episode = Calls { left: 1, over: false };
        assert_eq!(episode.step("<calc>1</calc><calc>1+1"), Ok(Step::Done));
    }
}
