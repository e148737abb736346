//! Chains of additions, subtractions and multiplications of small numbers.
//!
//! ```text
//! prompt   12+7*3-4?
//! bare     =29
//! chain    12+21-4;33-4;29=29
//! ```
//!
//! `chain` does one operation at a time, products first and then from left to right, and writes what
//! is left of the expression after each.

use std::sync::Arc;

use num_bigint::BigInt;
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

/// Options of the `arithmetic` environment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ArithmeticConfig {
    /// How many numbers a chain has, 2 to 16.
    pub terms: u64,
    /// Most digits a number has, 1 to 6; every number below that power of ten is as likely.
    pub digits: u64,
    /// The operations drawn from, any of `+`, `-` and `*`; repeat one to draw it more often.
    pub operators: String,
}

impl Default for ArithmeticConfig {
    fn default() -> Self {
        Self { terms: 3, digits: 2, operators: "+-*".to_owned() }
    }
}

impl EnvConfig for ArithmeticConfig {
    const NAME: &'static str = "arithmetic";
    const SUMMARY: &'static str = "chains of additions, subtractions and multiplications";

    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Environment>, ConfigFault> {
        check_range("terms", self.terms, 2..=16)?;
        check_range("digits", self.digits, 1..=6)?;
        if self.operators.is_empty() || !self.operators.chars().all(|it| "+-*".contains(it)) {
            return Err(ConfigFault::new("operators", "not a choice of operations")
                .found(format!("{:?}", self.operators))
                .expected("one or more of `+`, `-` and `*`, written together"));
        }
        let puzzle = Arithmetic {
            terms: self.terms,
            beyond: 10_u64.pow(self.digits as u32),
            operators: self.operators.chars().collect(),
        };
        Procedural::build(puzzle, context.seed, "terms")
    }
}

struct Arithmetic {
    terms: u64,
    /// Every number is below this.
    beyond: u64,
    operators: Vec<char>,
}

/// A first number, then an operation and a number as often as you like.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Chain {
    first: BigIntText,
    rest: Vec<(char, BigIntText)>,
}

/// A number written as text in notes, so that no reader of JSON rounds it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BigIntText(BigInt);

impl Serialize for BigIntText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for BigIntText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

impl Chain {
    fn text(&self) -> String {
        let rest = self.rest.iter().map(|(operator, number)| format!("{operator}{}", number.0));
        std::iter::once(self.first.0.to_string()).chain(rest).collect()
    }

    /// Does the next operation: the first product if there is one, else the first operation.
    /// `None` once only a number is left.
    fn reduced(&self) -> Option<Self> {
        let product = self.rest.iter().position(|(operator, _)| *operator == '*');
        let at = product.unwrap_or(0);
        let (operator, right) = self.rest.get(at)?;
        let left = if at == 0 { &self.first } else { &self.rest[at - 1].1 };
        let value = BigIntText(match operator {
            '*' => &left.0 * &right.0,
            '-' => &left.0 - &right.0,
            _ => &left.0 + &right.0,
        });
        let mut reduced = self.clone();
        reduced.rest.remove(at);
        match at {
            0 => reduced.first = value,
            _ => reduced.rest[at - 1].1 = value,
        }
        Some(reduced)
    }

    /// The chain after each operation; the last of them is the value.
    fn reductions(&self) -> Vec<String> {
        std::iter::successors(self.reduced(), Self::reduced).map(|chain| chain.text()).collect()
    }

    fn answer(&self) -> String {
        self.reductions().pop().unwrap_or_else(|| self.first.0.to_string())
    }
}

impl Puzzle for Arithmetic {
    type Question = Chain;

    fn name(&self) -> &'static str {
        ArithmeticConfig::NAME
    }

    fn candidate(&self, rng: &mut ChaCha8Rng) -> Chain {
        let first = BigIntText(rng.random_range(0..self.beyond).into());
        let rest = (1..self.terms)
            .map(|_| {
                let operator = self.operators[rng.random_range(0..self.operators.len())];
                (operator, BigIntText(rng.random_range(0..self.beyond).into()))
            })
            .collect();
        Chain { first, rest }
    }

    fn prompt(&self, chain: &Chain) -> String {
        format!("{}?", chain.text())
    }

    fn reference(&self, chain: &Chain) -> Reference {
        Reference::Answer(chain.answer())
    }

    fn reply_styles(&self) -> &'static [&'static str] {
        &["bare", "chain"]
    }

    fn reply(&self, chain: &Chain, style: &str, _seed: Seed) -> Option<String> {
        match style {
            "bare" => Some(format!("={}", chain.answer())),
            "chain" => Some(format!("{}={}", chain.reductions().join(";"), chain.answer())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use tallow_verifiers::expression::Expression;

    use super::*;

    fn number(value: i64) -> BigIntText {
        BigIntText(value.into())
    }

    fn puzzle() -> Arithmetic {
        Arithmetic { terms: 5, beyond: 100, operators: vec!['+', '-', '*'] }
    }

    #[test]
    fn the_format_is_the_documented_one() {
        let chain = Chain {
            first: number(12),
            rest: vec![('+', number(7)), ('*', number(3)), ('-', number(4))],
        };
        assert_eq!(puzzle().prompt(&chain), "12+7*3-4?");
        assert_eq!(puzzle().reply(&chain, "bare", Seed(0)).as_deref(), Some("=29"));
        assert_eq!(puzzle().reply(&chain, "chain", Seed(0)).as_deref(), Some("12+21-4;33-4;29=29"));
    }

    #[test]
    fn answers_agree_with_the_grammar_of_the_verifiers() {
        for draw in 0..200 {
            let chain = puzzle().candidate(&mut Seed(draw).rng());
            let value = Expression::parse(&chain.text()).and_then(|it| it.value());
            assert_eq!(value.expect("the chain is an expression").to_string(), chain.answer());
        }
    }

    #[test]
    fn division_is_refused() {
        let context = BuildContext { folder: std::path::PathBuf::new(), seed: Seed(0) };
        let config = ArithmeticConfig { operators: "+/".to_owned(), ..Default::default() };
        assert_eq!(config.build(&context).err().expect("division is refused").key, "operators");
    }
}
