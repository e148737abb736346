//! Sums of digits modulo a small number: the framework's smallest interesting task.
//!
//! ```text
//! prompt   9+5+1+2+0+9+8+3?
//! bare     =7
//! chain    9954152707968437=7
//! ```
//!
//! `chain` writes, for every digit, the digit and then the running sum modulo `modulus`. Each
//! symbol of it depends on at most two symbols before it, which a small transformer learns in
//! minutes; `bare` asks for the whole sum at once, which it hardly learns at all. So whether a
//! policy came to reason aloud can be seen in its reward.

use std::sync::Arc;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tallow_verifiers::{ConfigFault, Message, Reference, ReferenceKind};

use crate::{
    environment::Environment,
    error::EnvError,
    procedural,
    registry::{BuildContext, EnvConfig},
    task::{Seed, Split, Task, TaskId},
};

/// Options of the `digit_sum` environment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DigitSumConfig {
    /// How many digits are summed, 2 to 256.
    pub digits: u64,
    /// The sum is taken modulo this, 2 to 10, so that it is always one symbol.
    pub modulus: u64,
}

impl Default for DigitSumConfig {
    fn default() -> Self {
        Self { digits: 8, modulus: 10 }
    }
}

impl EnvConfig for DigitSumConfig {
    const NAME: &'static str = "digit_sum";
    const SUMMARY: &'static str = "the sum of a row of digits, modulo a small number";

    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Environment>, ConfigFault> {
        procedural::check_range("digits", self.digits, 2..=256)?;
        procedural::check_range("modulus", self.modulus, 2..=10)?;
        let environment = DigitSum { config: self.clone(), seed: context.seed };
        procedural::check_space(
            Self::NAME,
            "digits",
            |rng| environment.candidate(rng),
            |digits| prompt(digits),
        )?;
        Ok(Arc::new(environment))
    }
}

struct DigitSum {
    config: DigitSumConfig,
    seed: Seed,
}

impl DigitSum {
    fn candidate(&self, rng: &mut ChaCha8Rng) -> Vec<u8> {
        (0..self.config.digits).map(|_| rng.random_range(0..10)).collect()
    }

    /// The running sums, modulo the modulus, after each digit.
    fn running_sums(&self, digits: &[u8]) -> Vec<u64> {
        digits
            .iter()
            .scan(0, |sum, &digit| {
                *sum = (*sum + u64::from(digit)) % self.config.modulus;
                Some(*sum)
            })
            .collect()
    }
}

impl Environment for DigitSum {
    fn name(&self) -> &str {
        DigitSumConfig::NAME
    }

    fn len(&self, split: Split) -> u64 {
        procedural::len(split)
    }

    fn task(&self, split: Split, index: u64) -> Result<Task, EnvError> {
        let digits = procedural::draw(
            DigitSumConfig::NAME,
            self.seed,
            split,
            index,
            |rng| self.candidate(rng),
            |digits| prompt(digits),
        )?;
        let answer = self.running_sums(&digits).last().copied().unwrap_or(0);
        Ok(Task {
            id: TaskId { split, index },
            prompt: vec![Message::user(prompt(&digits))],
            reference: Reference::Answer(answer.to_string()),
            notes: json!({ "digits": digits }),
        })
    }

    fn reference_kind(&self) -> ReferenceKind {
        ReferenceKind::Answer
    }

    fn default_verifier(&self) -> (&'static str, Value) {
        ("exact", json!({ "after": "=" }))
    }

    fn reply_styles(&self) -> &'static [&'static str] {
        &["bare", "chain"]
    }

    fn reply(&self, task: &Task, style: &str, _seed: Seed) -> Option<String> {
        let digits: Vec<u8> = Vec::deserialize(task.notes.get("digits")?).ok()?;
        let sums = self.running_sums(&digits);
        let answer = sums.last()?;
        match style {
            "bare" => Some(format!("={answer}")),
            "chain" => {
                let steps: String =
                    digits.iter().zip(&sums).map(|(digit, sum)| format!("{digit}{sum}")).collect();
                Some(format!("{steps}={answer}"))
            }
            _ => None,
        }
    }
}

/// `9+5+1?`
fn prompt(digits: &[u8]) -> String {
    let digits: Vec<String> = digits.iter().map(u8::to_string).collect();
    format!("{}?", digits.join("+"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_documented_one() {
        let environment = DigitSum { config: DigitSumConfig::default(), seed: Seed(0) };
        let digits = [9, 5, 1, 2, 0, 9, 8, 3];
        let task = Task {
            id: TaskId { split: Split::Train, index: 0 },
            prompt: vec![Message::user(prompt(&digits))],
            reference: Reference::Answer("7".to_owned()),
            notes: json!({ "digits": digits }),
        };
        assert_eq!(task.prompt[0].content, "9+5+1+2+0+9+8+3?");
        assert_eq!(environment.reply(&task, "bare", Seed(0)).as_deref(), Some("=7"));
        assert_eq!(
            environment.reply(&task, "chain", Seed(0)).as_deref(),
            Some("9954152707968437=7")
        );
        assert_eq!(environment.reply(&task, "verse", Seed(0)), None);
    }

    #[test]
    fn a_modulus_of_two_symbols_is_refused() {
        let context = BuildContext { folder: std::path::PathBuf::new(), seed: Seed(0) };
        let fault = DigitSumConfig { digits: 8, modulus: 11 }
            .build(&context)
            .err()
            .expect("the modulus is out of range");
        assert_eq!(fault.to_string(), "`modulus`: out of range, found 11, expected 2 to 10");
    }
}
