//! Countdown: reach a target from given numbers, each used at most once.
//!
//! ```text
//! prompt   3,4,5:35?
//! bare     =>(4+3)*5
//! search   5+3=8,8 4|8*4=32,no|back|4+3=7,7 5|7*5=35,yes|4+3=7,7*5=35,ok=>(4+3)*5
//! ```
//!
//! `search` is a depth-first search as one writes it down: each entry does one operation and lists
//! the numbers left; a dead end is `no`, giving up a branch is `back`, a hit is `yes`; then the
//! solution is done once more from the start and found `ok`. Which wrong branches are tried, and in
//! which order, is drawn from the seed; how many is bounded by `search_steps`. After Gandhi et al.
//! 2024, "Stream of Search" (arXiv:2404.03683), in fewer symbols.
//!
//! Targets are reached by construction, from all numbers, through whole positive numbers only.

use std::sync::Arc;

use rand::{RngExt, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tallow_verifiers::{ConfigFault, Reference, ReferenceKind, expression::Operator};

use crate::{
    environment::Environment,
    procedural::{Procedural, Puzzle, check_range},
    registry::{BuildContext, EnvConfig},
    task::Seed,
};

/// Options of the `countdown` environment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CountdownConfig {
    /// How many numbers are given, 2 to 6.
    pub numbers: u64,
    /// The largest number given, 4 to 1000.
    pub largest_number: u64,
    /// The largest target, and the largest number on the way to it; `largest_number` to 1000000.
    pub largest_target: u64,
    /// Most wrong operations tried in a `search` reply, 0 to 1000.
    pub search_steps: u64,
}

impl Default for CountdownConfig {
    fn default() -> Self {
        Self { numbers: 3, largest_number: 10, largest_target: 100, search_steps: 8 }
    }
}

impl EnvConfig for CountdownConfig {
    const NAME: &'static str = "countdown";
    const SUMMARY: &'static str = "reach a target from given numbers by arithmetic";

    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Environment>, ConfigFault> {
        check_range("numbers", self.numbers, 2..=6)?;
        check_range("largest_number", self.largest_number, 4..=1000)?;
        check_range("largest_target", self.largest_target, self.largest_number..=1_000_000)?;
        check_range("search_steps", self.search_steps, 0..=1000)?;
        Procedural::build(Countdown { config: self.clone() }, context.seed, "largest_number")
    }
}

struct Countdown {
    config: CountdownConfig,
}

/// The numbers, the target, and one way from here to there.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Numbers {
    numbers: Vec<u64>,
    target: u64,
    solution: Vec<Operation>,
}

/// One operation on two of the numbers at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Operation {
    left: u64,
    sign: char,
    right: u64,
}

impl Operation {
    /// The result if it is a whole positive number that does not overflow.
    fn value(self) -> Option<u64> {
        let value = match self.operator()? {
            Operator::Add => self.left.checked_add(self.right),
            Operator::Subtract => self.left.checked_sub(self.right),
            Operator::Multiply => self.left.checked_mul(self.right),
            Operator::Divide => {
                (self.left.checked_rem(self.right) == Some(0)).then(|| self.left / self.right)
            }
        };
        value.filter(|&value| value > 0)
    }

    fn operator(self) -> Option<Operator> {
        match self.sign {
            '+' => Some(Operator::Add),
            '-' => Some(Operator::Subtract),
            '*' => Some(Operator::Multiply),
            '/' => Some(Operator::Divide),
            _ => None,
        }
    }

    fn text(self) -> Option<String> {
        Some(format!("{}{}{}={}", self.left, self.sign, self.right, self.value()?))
    }
}

/// A number at hand and the expression it came from.
#[derive(Clone, Debug)]
struct Held {
    value: u64,
    expression: String,
}

/// The numbers at hand after an operation; the result stands first. `None` if the operation is not
/// possible with these numbers.
fn applied(held: &[Held], operation: Operation) -> Option<Vec<Held>> {
    let left = held.iter().position(|it| it.value == operation.left)?;
    let right = (0..held.len()).find(|&at| at != left && held[at].value == operation.right)?;
    let expression =
        format!("({}{}{})", held[left].expression, operation.sign, held[right].expression);
    let others = (0..held.len()).filter(|&at| at != left && at != right);
    let mut after = vec![Held { value: operation.value()?, expression }];
    after.extend(others.map(|at| held[at].clone()));
    Some(after)
}

/// Every operation that gives a whole positive number of at most `largest`.
fn possible(held: &[Held], largest: u64) -> Vec<Operation> {
    let mut operations = Vec::new();
    for (at, one) in held.iter().enumerate() {
        for other in &held[at + 1..] {
            let (left, right) = (one.value.max(other.value), one.value.min(other.value));
            for sign in ['+', '-', '*', '/'] {
                let operation = Operation { left, sign, right };
                if operation.value().is_some_and(|value| value <= largest) {
                    operations.push(operation);
                }
            }
        }
    }
    operations
}

fn held(numbers: &[u64]) -> Vec<Held> {
    numbers.iter().map(|&value| Held { value, expression: value.to_string() }).collect()
}

/// Takes the outermost parentheses off.
fn unwrapped(expression: &str) -> &str {
    // Every composite expression is written in exactly one pair of its own.
    expression.strip_prefix('(').and_then(|it| it.strip_suffix(')')).unwrap_or(expression)
}

/// A search being written down.
struct Search<'a> {
    rng: ChaCha8Rng,
    target: u64,
    largest: u64,
    /// Wrong operations that may still be tried.
    budget: u64,
    /// What was done on the way to where the search stands.
    done: Vec<Operation>,
    entries: Vec<String>,
    solution: &'a [Operation],
}

impl Search<'_> {
    /// Searches from the numbers at hand; returns the expression found. `on_path` says whether the
    /// solution's operations up to here were all done, so that the next of them leads on.
    fn run(&mut self, held: &[Held], on_path: bool) -> Option<String> {
        let right = if on_path { self.solution.get(self.done.len()).copied() } else { None };
        let mut wrong = possible(held, self.largest);
        wrong.retain(|&operation| Some(operation) != right);
        wrong.shuffle(&mut self.rng);
        // A person tries a few things before the right one, and gives a dead end one or two looks.
        let tries = self.rng.random_range(0..=2_usize).max(usize::from(!on_path));
        for operation in wrong.into_iter().take(tries) {
            if self.budget == 0 {
                break;
            }
            self.budget -= 1;
            if let Some(found) = self.attempt(held, operation, false) {
                return Some(found);
            }
        }
        self.attempt(held, right?, true)
    }

    /// Does one operation and searches on from there.
    fn attempt(&mut self, held: &[Held], operation: Operation, on_path: bool) -> Option<String> {
        let after = applied(held, operation)?;
        let text = operation.text()?;
        self.done.push(operation);
        let result = after.first()?;
        if result.value == self.target {
            self.entries.push(format!("{text},yes"));
            return Some(unwrapped(&result.expression).to_owned());
        }
        if after.len() == 1 {
            self.entries.push(format!("{text},no"));
        } else {
            let left: Vec<String> = after.iter().map(|it| it.value.to_string()).collect();
            self.entries.push(format!("{text},{}", left.join(" ")));
            if let Some(found) = self.run(&after, on_path) {
                return Some(found);
            }
            self.entries.push("back".to_owned());
        }
        self.done.pop();
        None
    }
}

impl Countdown {
    fn any_question(&self, rng: &mut ChaCha8Rng) -> Numbers {
        let numbers: Vec<u64> = (0..self.config.numbers)
            .map(|_| rng.random_range(1..=self.config.largest_number))
            .collect();
        let mut at_hand = held(&numbers);
        let mut solution = Vec::new();
        while at_hand.len() > 1 {
            let operations = possible(&at_hand, self.config.largest_target);
            let operation = operations[rng.random_range(0..operations.len())];
            solution.push(operation);
            at_hand = applied(&at_hand, operation)
                .expect("unequal numbers can be subtracted and equal ones divided");
        }
        Numbers { numbers, target: at_hand[0].value, solution }
    }
}

impl Puzzle for Countdown {
    type Question = Numbers;

    fn name(&self) -> &'static str {
        CountdownConfig::NAME
    }

    fn candidate(&self, rng: &mut ChaCha8Rng) -> Numbers {
        /// A target that is itself given asks for no arithmetic; so many redraws avoid nearly all.
        const REDRAWS: u32 = 16;
        let mut question = self.any_question(rng);
        for _ in 0..REDRAWS {
            if !question.numbers.contains(&question.target) {
                break;
            }
            question = self.any_question(rng);
        }
        question
    }

    fn prompt(&self, question: &Numbers) -> String {
        let numbers: Vec<String> = question.numbers.iter().map(u64::to_string).collect();
        format!("{}:{}?", numbers.join(","), question.target)
    }

    fn canonical(&self, question: &Numbers) -> String {
        let mut sorted = question.numbers.clone();
        sorted.sort_unstable();
        format!("{sorted:?} {}", question.target)
    }

    fn reference(&self, question: &Numbers) -> Reference {
        Reference::Custom(json!({ "numbers": question.numbers, "target": question.target }))
    }

    fn reference_kind(&self) -> ReferenceKind {
        ReferenceKind::Custom
    }

    fn default_verifier(&self) -> (&'static str, Value) {
        ("countdown", json!({ "after": "=>" }))
    }

    fn reply_styles(&self) -> &'static [&'static str] {
        &["bare", "search"]
    }

    fn reply(&self, question: &Numbers, style: &str, seed: Seed) -> Option<String> {
        match style {
            "bare" => {
                let mut at_hand = held(&question.numbers);
                for &operation in &question.solution {
                    at_hand = applied(&at_hand, operation)?;
                }
                Some(format!("=>{}", unwrapped(&at_hand.first()?.expression)))
            }
            "search" => {
                let mut search = Search {
                    rng: seed.rng(),
                    target: question.target,
                    largest: self.config.largest_target,
                    budget: self.config.search_steps,
                    done: Vec::new(),
                    entries: Vec::new(),
                    solution: &question.solution,
                };
                let found = search.run(&held(&question.numbers), true)?;
                let check: Option<Vec<String>> =
                    search.done.iter().map(|operation| operation.text()).collect();
                let (trace, check) = (search.entries.join("|"), check?.join(","));
                Some(format!("{trace}|{check},ok=>{found}"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use tallow_verifiers::{Outcome, Transcript, Verifiers};

    use super::*;

    fn puzzle(search_steps: u64) -> Countdown {
        let config = CountdownConfig { numbers: 4, search_steps, ..Default::default() };
        Countdown { config }
    }

    #[test]
    fn the_bare_format_is_the_documented_one() {
        let question = Numbers {
            numbers: vec![3, 4, 5],
            target: 35,
            solution: vec![
                Operation { left: 4, sign: '+', right: 3 },
                Operation { left: 7, sign: '*', right: 5 },
            ],
        };
        assert_eq!(puzzle(0).prompt(&question), "3,4,5:35?");
        let reply = |style| puzzle(0).reply(&question, style, Seed(0));
        assert_eq!(reply("bare").as_deref(), Some("=>(4+3)*5"));
        assert_eq!(
            reply("search").as_deref(),
            Some("4+3=7,7 5|7*5=35,yes|4+3=7,7*5=35,ok=>(4+3)*5")
        );
    }

    #[test]
    fn searches_differ_by_seed_stay_short_and_end_in_a_right_answer() {
        let verifier = Verifiers::builtin()
            .build("countdown", json!({ "after": "=>" }))
            .expect("the options are sound");
        let (mut backtracked, mut distinct) = (0, std::collections::HashSet::new());
        for draw in 0..100 {
            let question = puzzle(12).candidate(&mut Seed(draw).rng());
            let reply = puzzle(12).reply(&question, "search", Seed(draw)).expect("a search");
            // 12 wrong operations, at most as many `back`s, 3 right ones and the check.
            assert!(reply.split('|').count() <= 12 + 12 + 3 + 1, "{reply}");
            backtracked += u32::from(reply.contains("back"));
            let transcript = Transcript::of_reply(Vec::new(), reply.clone());
            let verdict = verifier.verify(&transcript, &puzzle(12).reference(&question));
            assert_eq!(verdict.expect("judged").outcome, Outcome::Correct, "{reply}");
            let question = puzzle(12).candidate(&mut Seed(0).rng());
            distinct.insert(puzzle(12).reply(&question, "search", Seed(draw)));
        }
        assert!(backtracked > 20, "only {backtracked} of 100 searches backtracked");
        assert!(distinct.len() > 20, "only {} distinct searches", distinct.len());
    }

    #[test]
    fn notes_from_elsewhere_give_no_reply_and_no_panic() {
        let question = Numbers {
            numbers: vec![1, u64::MAX],
            target: 0,
            solution: vec![Operation { left: u64::MAX, sign: '*', right: 2 }],
        };
        for style in ["bare", "search"] {
            assert_eq!(puzzle(12).reply(&question, style, Seed(0)), None);
        }
    }
}
