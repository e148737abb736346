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
use tallow_verifiers::{ConfigFault, Reference};

use crate::{
    environment::Environment,
    procedural::{Procedural, Puzzle, check_range},
    registry::{BuildContext, EnvConfig},
    task::Seed,
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
        check_range("digits", self.digits, 2..=256)?;
        check_range("modulus", self.modulus, 2..=10)?;
        Procedural::build(DigitSum { config: self.clone() }, context.seed, "digits")
    }
}

struct DigitSum {
    config: DigitSumConfig,
}

impl DigitSum {
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

    fn answer(&self, digits: &[u8]) -> u64 {
        self.running_sums(digits).last().copied().unwrap_or(0)
    }
}

impl Puzzle for DigitSum {
    type Question = Vec<u8>;

    fn name(&self) -> &'static str {
        DigitSumConfig::NAME
    }

    fn candidate(&self, rng: &mut ChaCha8Rng) -> Vec<u8> {
        (0..self.config.digits).map(|_| rng.random_range(0..10)).collect()
    }

    fn prompt(&self, digits: &Vec<u8>) -> String {
        let digits: Vec<String> = digits.iter().map(u8::to_string).collect();
        format!("{}?", digits.join("+"))
    }

    fn reference(&self, digits: &Vec<u8>) -> Reference {
        Reference::Answer(self.answer(digits).to_string())
    }

    fn reply_styles(&self) -> &'static [&'static str] {
        &["bare", "chain"]
    }

    fn reply(&self, digits: &Vec<u8>, style: &str, _seed: Seed) -> Option<String> {
        let answer = self.answer(digits);
        match style {
            "bare" => Some(format!("={answer}")),
            "chain" => {
                let sums = self.running_sums(digits);
                let steps: String =
                    digits.iter().zip(sums).map(|(digit, sum)| format!("{digit}{sum}")).collect();
                Some(format!("{steps}={answer}"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_documented_one() {
        let puzzle = DigitSum { config: DigitSumConfig::default() };
        let digits = vec![9, 5, 1, 2, 0, 9, 8, 3];
        let reply = |style| puzzle.reply(&digits, style, Seed(0));
        assert_eq!(puzzle.prompt(&digits), "9+5+1+2+0+9+8+3?");
        assert_eq!(puzzle.reference(&digits), Reference::Answer("7".to_owned()));
        assert_eq!(reply("bare").as_deref(), Some("=7"));
        assert_eq!(reply("chain").as_deref(), Some("9954152707968437=7"));
        assert_eq!(reply("verse"), None);
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
