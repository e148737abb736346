//! Long multiplication, laid out so that a tiny transformer can learn it from single characters.
//!
//! ```text
//! prompt   123*45?
//! bare     =5535
//! chain    5:315512101110560;4:312312085110450;>53550=5535
//! checked  5:315512101110560;4:312312085110450;>53550#6000+=5535
//! ```
//!
//! `chain` has one row for each digit `b` of the right factor, lowest first, written `b:`, then one
//! group of five symbols for each digit `a` of the left factor, lowest first, then `;`. With `s` the
//! digit that the rows above left at this place and `c'` the carry of the group before (0 at first),
//!
//! ```text
//! a    the digit of the left factor, restated
//! x y  the product a * b in two digits
//! d c  a * b + s + c' in two digits, the lower one first; at most 81 + 9 + 9 = 99
//! ```
//!
//! The last carry of a row becomes the digit above it. After `>` stands the whole product, lowest
//! digit first and padded with zeros to the digits of both factors; after `=`, the product as one
//! writes it.
//!
//! Why so: every symbol is a function of at most three symbols that stand at fixed distances, since
//! rows and groups have fixed widths; products and sums are apart, so no table to be memorised has
//! more than a hundred rows; carries are written, not remembered; and the reversal of the digits is
//! a step of its own.
//!
//! `checked` casts out nines before it answers: `#`, the left factor, the right factor, the product
//! of those two and the product found, each modulo 9, then `+` since the last two agree.

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

/// Options of the `multiplication` environment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MultiplicationConfig {
    /// Digits of the left factor, 1 to 9.
    pub left_digits: u64,
    /// Digits of the right factor, 1 to 9.
    pub right_digits: u64,
}

impl Default for MultiplicationConfig {
    fn default() -> Self {
        Self { left_digits: 3, right_digits: 2 }
    }
}

impl EnvConfig for MultiplicationConfig {
    const NAME: &'static str = "multiplication";
    const SUMMARY: &'static str = "products of numbers with a fixed number of digits";

    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Environment>, ConfigFault> {
        check_range("left_digits", self.left_digits, 1..=9)?;
        check_range("right_digits", self.right_digits, 1..=9)?;
        Procedural::build(Multiplication { config: self.clone() }, context.seed, "left_digits")
    }
}

struct Multiplication {
    config: MultiplicationConfig,
}

/// The two factors.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Factors {
    left: u64,
    right: u64,
}

impl Factors {
    fn product(self) -> u128 {
        u128::from(self.left) * u128::from(self.right)
    }
}

impl Multiplication {
    /// The rows and, after `>`, the product from its lowest digit.
    fn chain(&self, factors: Factors) -> String {
        let left = digits_lowest_first(factors.left, self.config.left_digits);
        let right = digits_lowest_first(factors.right, self.config.right_digits);
        let mut found = vec![0; left.len() + right.len()];
        let mut chain = String::new();
        for (shift, b) in right.iter().enumerate() {
            chain += &format!("{b}:");
            let mut carry = 0;
            for (place, a) in left.iter().enumerate() {
                let total = a * b + found[shift + place] + carry;
                found[shift + place] = total % 10;
                carry = total / 10;
                chain += &format!("{a}{:02}{}{carry}", a * b, total % 10);
            }
            found[shift + left.len()] = carry;
            chain.push(';');
        }
        let found: String = found.iter().map(u32::to_string).collect();
        format!("{chain}>{found}")
    }
}

impl Puzzle for Multiplication {
    type Question = Factors;

    fn name(&self) -> &'static str {
        MultiplicationConfig::NAME
    }

    fn candidate(&self, rng: &mut ChaCha8Rng) -> Factors {
        let mut factor = |digits: u64| {
            let lowest = if digits == 1 { 0 } else { 10_u64.pow(digits as u32 - 1) };
            rng.random_range(lowest..10_u64.pow(digits as u32))
        };
        Factors { left: factor(self.config.left_digits), right: factor(self.config.right_digits) }
    }

    fn prompt(&self, factors: &Factors) -> String {
        format!("{}*{}?", factors.left, factors.right)
    }

    fn canonical(&self, factors: &Factors) -> String {
        // Whoever has seen 12*34 has seen 34*12.
        format!("{}*{}", factors.left.min(factors.right), factors.left.max(factors.right))
    }

    fn reference(&self, factors: &Factors) -> Reference {
        Reference::Answer(factors.product().to_string())
    }

    fn reply_styles(&self) -> &'static [&'static str] {
        &["bare", "chain", "checked"]
    }

    fn reply(&self, factors: &Factors, style: &str, _seed: Seed) -> Option<String> {
        let product = factors.product();
        match style {
            "bare" => Some(format!("={product}")),
            "chain" => Some(format!("{}={product}", self.chain(*factors))),
            "checked" => {
                let (left, right) = (factors.left % 9, factors.right % 9);
                let (expected, found) = (left * right % 9, product % 9);
                let chain = self.chain(*factors);
                Some(format!("{chain}#{left}{right}{expected}{found}+={product}"))
            }
            _ => None,
        }
    }
}

/// The lowest `width` digits of a number, the lowest first.
fn digits_lowest_first(number: u64, width: u64) -> Vec<u32> {
    (0..width)
        .scan(number, |rest, _| {
            let digit = (*rest % 10) as u32;
            *rest /= 10;
            Some(digit)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_format_is_the_documented_one() {
        let puzzle = Multiplication { config: MultiplicationConfig::default() };
        let factors = Factors { left: 123, right: 45 };
        let reply = |style| puzzle.reply(&factors, style, Seed(0));
        assert_eq!(puzzle.prompt(&factors), "123*45?");
        assert_eq!(reply("bare").as_deref(), Some("=5535"));
        let chain = "5:315512101110560;4:312312085110450;>53550";
        assert_eq!(reply("chain"), Some(format!("{chain}=5535")));
        assert_eq!(reply("checked"), Some(format!("{chain}#6000+=5535")));
    }

    proptest! {
        #[test]
        fn the_rows_add_up_to_the_product(left in 0..100_000_u64, right in 0..1000_u64) {
            let config = MultiplicationConfig { left_digits: 5, right_digits: 3 };
            let chain = Multiplication { config }.chain(Factors { left, right });
            let (_, found) = chain.split_once('>').expect("the chain ends in the product");
            let found: String = found.chars().rev().collect();
            prop_assert_eq!(found.parse::<u64>().expect("digits"), left * right);
        }

        #[test]
        fn no_notes_make_a_reply_panic(left: u64, right: u64) {
            let puzzle = Multiplication { config: MultiplicationConfig::default() };
            for style in puzzle.reply_styles() {
                let reply = puzzle.reply(&Factors { left, right }, style, Seed(0));
                prop_assert!(reply.is_some());
            }
        }
    }
}
