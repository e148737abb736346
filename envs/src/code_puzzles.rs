//! Small functions to write in Python, judged by hidden tests.
//!
//! ```text
//! user       Write a Python function f(xs) for a list of integers xs. In this order: keep the
//!            even numbers; add 3 to each; return the sum.
//! assistant  ```python
//!            def f(xs):
//!                xs = [x for x in xs if x % 2 == 0]
//!                xs = [x + 3 for x in xs]
//!                return sum(xs)
//!            ```
//! ```
//!
//! A task is a chain of steps; how many is the difficulty. The policy sees none of the tests. Each
//! is a call whose result is worked out here, not by a program.

use std::sync::Arc;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tallow_verifiers::{ConfigFault, Reference, ReferenceKind};

use crate::{
    environment::Environment,
    procedural::{Procedural, Puzzle, check_range},
    registry::{BuildContext, EnvConfig},
    task::Seed,
};

/// Options of the `code_puzzles` environment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CodePuzzlesConfig {
    /// What the function takes.
    pub over: Over,
    /// Steps of the chain, 1 to 8.
    pub steps: u64,
    /// Hidden tests of each task, 2 to 64.
    pub tests: u64,
}

/// What the function takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Over {
    /// An integer.
    Number,
    /// A list of integers.
    List,
}

impl Default for CodePuzzlesConfig {
    fn default() -> Self {
        Self { over: Over::List, steps: 3, tests: 8 }
    }
}

impl EnvConfig for CodePuzzlesConfig {
    const NAME: &'static str = "code_puzzles";
    const SUMMARY: &'static str = "small Python functions to write, judged by hidden tests";

    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Environment>, ConfigFault> {
        check_range("steps", self.steps, 1..=8)?;
        check_range("tests", self.tests, 2..=64)?;
        Procedural::build(CodePuzzles { config: self.clone() }, context.seed, "steps")
    }
}

/// One step of a chain. `k` is 2 to 99.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Do {
    Add,
    Subtract,
    Multiply,
    Square,
    Remainder,
    Negate,
    KeepEven,
    KeepOdd,
    KeepAbove,
    DropFirst,
    Reverse,
    Sort,
    Distinct,
    RunningSums,
    Sum,
    Largest,
    Count,
}

/// A step and its number, where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Step {
    what: Do,
    k: i64,
}

/// Steps of a number, and of each number of a list.
const EACH: [Do; 6] = [Do::Add, Do::Subtract, Do::Multiply, Do::Square, Do::Remainder, Do::Negate];
/// Steps from a list to a list.
const WHOLE: [Do; 8] = [
    Do::KeepEven,
    Do::KeepOdd,
    Do::KeepAbove,
    Do::DropFirst,
    Do::Reverse,
    Do::Sort,
    Do::Distinct,
    Do::RunningSums,
];
/// Steps from a list to a number, only at the end.
const LAST: [Do; 3] = [Do::Sum, Do::Largest, Do::Count];
/// No value of a test is larger, so that none needs more than 64 bits.
const LARGEST: i64 = 1 << 50;

impl Step {
    /// One number after the step; `None` beyond [`LARGEST`].
    fn number(self, x: i64) -> Option<i64> {
        let value = match self.what {
            Do::Add => x.checked_add(self.k),
            Do::Subtract => x.checked_sub(self.k),
            Do::Multiply => x.checked_mul(self.k),
            Do::Square => x.checked_mul(x),
            // As in Python, the remainder by a positive number is never negative.
            Do::Remainder => x.checked_rem_euclid(self.k),
            Do::Negate => x.checked_neg(),
            _ => None,
        };
        value.filter(|value| value.abs() <= LARGEST)
    }

    fn list(self, mut xs: Vec<i64>) -> Option<Vec<i64>> {
        match self.what {
            Do::KeepEven => xs.retain(|x| x % 2 == 0),
            Do::KeepOdd => xs.retain(|x| x % 2 != 0),
            Do::KeepAbove => xs.retain(|x| *x > self.k),
            Do::DropFirst => drop(xs.drain(..xs.len().min(1))),
            Do::Reverse => xs.reverse(),
            Do::Sort => xs.sort_unstable(),
            Do::Distinct => {
                let mut seen = std::collections::HashSet::new();
                xs.retain(|x| seen.insert(*x));
            }
            Do::RunningSums => {
                let mut sum = 0_i64;
                for x in &mut xs {
                    sum = sum.checked_add(*x).filter(|sum| sum.abs() <= LARGEST)?;
                    *x = sum;
                }
            }
            _ => return xs.into_iter().map(|x| self.number(x)).collect(),
        }
        Some(xs)
    }

    fn words(self, over: Over) -> String {
        let k = self.k;
        let each = match over {
            Over::Number => "it",
            Over::List => "each",
        };
        match self.what {
            Do::Add => format!("add {k} to {each}"),
            Do::Subtract => format!("subtract {k} from {each}"),
            Do::Multiply => format!("multiply {each} by {k}"),
            Do::Square => format!("square {each}"),
            Do::Remainder => format!("take the remainder of {each} by {k}"),
            Do::Negate => format!("change the sign of {each}"),
            Do::KeepEven => "keep the even numbers".to_owned(),
            Do::KeepOdd => "keep the odd numbers".to_owned(),
            Do::KeepAbove => format!("keep the numbers above {k}"),
            Do::DropFirst => "drop the first number if there is one".to_owned(),
            Do::Reverse => "reverse the order".to_owned(),
            Do::Sort => "sort in ascending order".to_owned(),
            Do::Distinct => "drop every number that has occurred before".to_owned(),
            Do::RunningSums => "replace each by the sum of all up to and with it".to_owned(),
            Do::Sum => "return the sum".to_owned(),
            Do::Largest => "return the largest, or 0 if there is none".to_owned(),
            Do::Count => "return how many there are".to_owned(),
        }
    }

    /// The expression in Python of a number called x, or a list called xs, after the step.
    fn code(self, over: Over) -> String {
        let k = self.k;
        let x = match self.what {
            Do::Add => format!("x + {k}"),
            Do::Subtract => format!("x - {k}"),
            Do::Multiply => format!("x * {k}"),
            Do::Square => "x * x".to_owned(),
            Do::Remainder => format!("x % {k}"),
            Do::Negate => "-x".to_owned(),
            Do::KeepEven => return "[x for x in xs if x % 2 == 0]".to_owned(),
            Do::KeepOdd => return "[x for x in xs if x % 2 == 1]".to_owned(),
            Do::KeepAbove => return format!("[x for x in xs if x > {k}]"),
            Do::DropFirst => return "xs[1:]".to_owned(),
            Do::Reverse => return "xs[::-1]".to_owned(),
            Do::Sort => return "sorted(xs)".to_owned(),
            Do::Distinct => return "list(dict.fromkeys(xs))".to_owned(),
            Do::RunningSums => {
                return "[sum(xs[:i + 1]) for i in range(len(xs))]".to_owned();
            }
            Do::Sum => return "sum(xs)".to_owned(),
            Do::Largest => return "max(xs, default=0)".to_owned(),
            Do::Count => return "len(xs)".to_owned(),
        };
        match over {
            Over::Number => x,
            Over::List => format!("[{x} for x in xs]"),
        }
    }
}

/// A chain of steps and the inputs that it is tested with.
#[derive(Debug, Deserialize, Serialize)]
struct Question {
    over: Over,
    steps: Vec<Step>,
    inputs: Vec<Vec<i64>>,
}

impl Question {
    /// What the chain makes of an input; `None` if a number grows too large, or the chain makes
    /// no sense.
    fn answer(&self, input: &[i64]) -> Option<Value> {
        let mut xs = input.to_vec();
        for step in &self.steps {
            match step.what {
                Do::Sum => {
                    let sum = xs.iter().try_fold(0_i64, |sum, x| sum.checked_add(*x))?;
                    return Some(json!(sum));
                }
                Do::Largest => return Some(json!(xs.iter().max().copied().unwrap_or(0))),
                Do::Count => return Some(json!(xs.len())),
                _ => xs = step.list(xs)?,
            }
        }
        match self.over {
            Over::Number => xs.first().map(|x| json!(x)),
            Over::List => Some(json!(xs)),
        }
    }

    fn argument(&self, input: &[i64]) -> Value {
        match self.over {
            Over::Number => json!(input.first()),
            Over::List => json!(input),
        }
    }
}

struct CodePuzzles {
    config: CodePuzzlesConfig,
}

impl CodePuzzles {
    fn drawn(&self, rng: &mut ChaCha8Rng) -> Question {
        let CodePuzzlesConfig { over, steps, tests } = self.config;
        let mut chain: Vec<Step> = Vec::new();
        while (chain.len() as u64) < steps {
            let last = chain.len() as u64 + 1 == steps;
            let what = match over {
                Over::Number => EACH[rng.random_range(0..EACH.len())],
                Over::List if last && rng.random_bool(0.5) => LAST[rng.random_range(0..LAST.len())],
                Over::List if rng.random_bool(0.5) => EACH[rng.random_range(0..EACH.len())],
                Over::List => WHOLE[rng.random_range(0..WHOLE.len())],
            };
            // The same step twice would often be the same as once.
            if chain.last().is_some_and(|before| before.what == what) {
                continue;
            }
            chain.push(Step { what, k: rng.random_range(2..100) });
        }
        let inputs = (0..tests)
            .map(|test| {
                let length = match over {
                    Over::Number => 1,
                    // The empty list is among the tests, and one in which numbers repeat.
                    Over::List if test == 0 => 0,
                    Over::List => rng.random_range(1..10),
                };
                let mut xs: Vec<i64> = (0..length).map(|_| rng.random_range(-99..100)).collect();
                if test % 2 == 1 && length > 1 {
                    xs[length - 1] = xs[0];
                }
                xs
            })
            .collect();
        Question { over, steps: chain, inputs }
    }
}

impl Puzzle for CodePuzzles {
    type Question = Question;

    fn name(&self) -> &'static str {
        CodePuzzlesConfig::NAME
    }

    fn candidate(&self, rng: &mut ChaCha8Rng) -> Question {
        loop {
            let question = self.drawn(rng);
            if question.inputs.iter().all(|input| question.answer(input).is_some()) {
                return question;
            }
        }
    }

    fn prompt(&self, question: &Question) -> String {
        let words: Vec<String> =
            question.steps.iter().map(|step| step.words(question.over)).collect();
        let returns = match question.steps.last() {
            Some(step) if LAST.contains(&step.what) => "",
            _ => "; return the result",
        };
        let takes = match question.over {
            Over::Number => "f(x) for an integer x",
            Over::List => "f(xs) for a list of integers xs",
        };
        format!("Write a Python function {takes}. In this order: {}{returns}.", words.join("; "))
    }

    fn reference(&self, question: &Question) -> Reference {
        let calls: Vec<Value> = question
            .inputs
            .iter()
            .map(|input| {
                json!({
                    "function": "f",
                    "args": [question.argument(input)],
                    "expected": question.answer(input),
                })
            })
            .collect();
        Reference::Custom(json!({ "calls": calls }))
    }

    fn reference_kind(&self) -> ReferenceKind {
        ReferenceKind::Custom
    }

    fn default_verifier(&self) -> (&'static str, Value) {
        ("python", json!({}))
    }

    fn reply_styles(&self) -> &'static [&'static str] {
        &["bare"]
    }

    fn reply(&self, question: &Question, style: &str, _seed: Seed) -> Option<String> {
        let name = match question.over {
            Over::Number => "x",
            Over::List => "xs",
        };
        let mut body = String::new();
        for (index, step) in question.steps.iter().enumerate() {
            let code = step.code(question.over);
            if index + 1 == question.steps.len() {
                body += &format!("    return {code}\n");
            } else {
                body += &format!("    {name} = {code}\n");
            }
        }
        (style == "bare").then(|| format!("```python\ndef f({name}):\n{body}```"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(what: Do) -> Step {
        Step { what, k: 3 }
    }

    #[test]
    fn a_chain_is_worked_out_as_python_would() {
        let answer = |over, steps: &[Do], input: &[i64]| {
            let steps = steps.iter().map(|what| step(*what)).collect();
            Question { over, steps, inputs: Vec::new() }.answer(input)
        };
        assert_eq!(answer(Over::Number, &[Do::Remainder, Do::Negate], &[-7]), Some(json!(-2)));
        assert_eq!(
            answer(Over::List, &[Do::Distinct, Do::Sort, Do::Add], &[5, -1, 5]),
            Some(json!([2, 8]))
        );
        assert_eq!(answer(Over::List, &[Do::KeepOdd, Do::Sum], &[-3, 2, 4]), Some(json!(-3)));
        assert_eq!(answer(Over::List, &[Do::DropFirst, Do::Largest], &[]), Some(json!(0)));
        assert_eq!(answer(Over::List, &[Do::RunningSums], &[1, 2, 3]), Some(json!([1, 3, 6])));
        assert_eq!(answer(Over::Number, &[Do::Square; 6], &[99]), None);
    }
}
