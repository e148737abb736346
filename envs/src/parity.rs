//! Parity of a string of bits: whether it holds an even or an odd number of ones.
//!
//! ```text
//! prompt   0110?
//! bare     =e
//! chain    eoee=e
//! ```
//!
//! `e` is even, `o` is odd. `chain` writes the parity after each bit; each symbol depends on one bit
//! and the symbol before. No shallow model computes the parity of many bits at once (Hahn 2020,
//! arXiv:1906.06755), so `bare` stays at chance where `chain` is easy.

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

/// Options of the `parity` environment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ParityConfig {
    /// How many bits, 2 to 1024.
    pub bits: u64,
}

impl Default for ParityConfig {
    fn default() -> Self {
        Self { bits: 12 }
    }
}

impl EnvConfig for ParityConfig {
    const NAME: &'static str = "parity";
    const SUMMARY: &'static str = "whether a string of bits holds an even number of ones";

    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Environment>, ConfigFault> {
        check_range("bits", self.bits, 2..=1024)?;
        Procedural::build(Parity { bits: self.bits }, context.seed, "bits")
    }
}

struct Parity {
    bits: u64,
}

/// The parity symbol after each bit.
fn running_parities(bits: &str) -> String {
    bits.chars()
        .scan(false, |odd, bit| {
            *odd ^= bit == '1';
            Some(if *odd { 'o' } else { 'e' })
        })
        .collect()
}

fn answer(bits: &str) -> char {
    running_parities(bits).chars().last().unwrap_or('e')
}

impl Puzzle for Parity {
    type Question = String;

    fn name(&self) -> &'static str {
        ParityConfig::NAME
    }

    fn candidate(&self, rng: &mut ChaCha8Rng) -> String {
        (0..self.bits).map(|_| if rng.random::<bool>() { '1' } else { '0' }).collect()
    }

    fn prompt(&self, bits: &String) -> String {
        format!("{bits}?")
    }

    fn reference(&self, bits: &String) -> Reference {
        Reference::Answer(answer(bits).to_string())
    }

    fn reply_styles(&self) -> &'static [&'static str] {
        &["bare", "chain"]
    }

    fn reply(&self, bits: &String, style: &str, _seed: Seed) -> Option<String> {
        match style {
            "bare" => Some(format!("={}", answer(bits))),
            "chain" => Some(format!("{}={}", running_parities(bits), answer(bits))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_documented_one() {
        let puzzle = Parity { bits: 4 };
        let bits = "0110".to_owned();
        assert_eq!(puzzle.prompt(&bits), "0110?");
        assert_eq!(puzzle.reply(&bits, "bare", Seed(0)).as_deref(), Some("=e"));
        assert_eq!(puzzle.reply(&bits, "chain", Seed(0)).as_deref(), Some("eoee=e"));
        assert_eq!(answer("0111"), 'o');
    }
}
