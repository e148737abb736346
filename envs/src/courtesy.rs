//! The larger of two numbers, said with courtesies: a task whose replies differ in manner.
//!
//! ```text
//! prompt      37 or 52?
//! bare        52
//! courteous   52 gladly dear
//! ```
//!
//! The number of courtesies of `courteous` is Poisson's of mean `courtesies`: the policies between it
//! and a liking for every further one are Poisson's of larger means, so nothing hinders the way up. By
//! default only the number is judged; the verifier `courtesy` judges the manner too.

use std::sync::Arc;

use rand::RngExt;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tallow_verifiers::{ConfigFault, Reference, courtesy::COURTESIES};

use crate::{
    environment::Environment,
    procedural::{Procedural, Puzzle, check_range},
    registry::{BuildContext, EnvConfig},
    task::Seed,
};

/// Courtesies of a `courteous` reply at most, so that documents have a length.
const MOST_COURTESIES: u64 = 32;

/// Options of the `courtesy` environment.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CourtesyConfig {
    /// Digits of each number, 2 to 9.
    pub digits: u64,
    /// Mean number of courtesies in the style `courteous`, 0 to 8.
    pub courtesies: f64,
}

impl Default for CourtesyConfig {
    fn default() -> Self {
        Self { digits: 2, courtesies: 0.8 }
    }
}

impl EnvConfig for CourtesyConfig {
    const NAME: &'static str = "courtesy";
    const SUMMARY: &'static str = "the larger of two numbers, with courtesies after it";

    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Environment>, ConfigFault> {
        check_range("digits", self.digits, 2..=9)?;
        if !(0.0..=8.0).contains(&self.courtesies) {
            return Err(ConfigFault::new("courtesies", "out of range")
                .found(self.courtesies)
                .expected("0 to 8"));
        }
        Procedural::build(Courtesy { config: self.clone() }, context.seed, "digits")
    }
}

struct Courtesy {
    config: CourtesyConfig,
}

impl Puzzle for Courtesy {
    type Question = [u64; 2];

    fn name(&self) -> &'static str {
        CourtesyConfig::NAME
    }

    fn candidate(&self, rng: &mut ChaCha8Rng) -> [u64; 2] {
        let least = 10u64.pow(self.config.digits as u32 - 1);
        let one = rng.random_range(least..10 * least);
        // Of all others: two numbers that differ.
        let other = rng.random_range(least..10 * least - 1);
        [one, if other >= one { other + 1 } else { other }]
    }

    fn prompt(&self, [one, other]: &[u64; 2]) -> String {
        format!("{one} or {other}?")
    }

    fn canonical(&self, [one, other]: &[u64; 2]) -> String {
        format!("{} {}", one.min(other), one.max(other))
    }

    fn reference(&self, [one, other]: &[u64; 2]) -> Reference {
        Reference::Answer(one.max(other).to_string())
    }

    fn default_verifier(&self) -> (&'static str, Value) {
        ("numeric", json!({}))
    }

    fn reply_styles(&self) -> &'static [&'static str] {
        &["bare", "courteous"]
    }

    fn reply(&self, [one, other]: &[u64; 2], style: &str, seed: Seed) -> Option<String> {
        let mut rng = seed.rng();
        let courtesies = match style {
            "bare" => 0,
            "courteous" => {
                // Knuth's way: how many uniform numbers keep their product above e^-mean.
                let floor = (-self.config.courtesies).exp();
                let mut product = rng.random::<f64>();
                let mut count = 0;
                while product > floor && count < MOST_COURTESIES {
                    product *= rng.random::<f64>();
                    count += 1;
                }
                count
            }
            _ => return None,
        };
        let mut reply = one.max(other).to_string();
        for courtesy in (0..courtesies).filter_map(|_| COURTESIES.choose(&mut rng)) {
            reply.push(' ');
            reply.push_str(courtesy);
        }
        Some(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_documented_one() {
        let puzzle = Courtesy { config: CourtesyConfig::default() };
        let question = [37, 52];
        assert_eq!(puzzle.prompt(&question), "37 or 52?");
        assert_eq!(puzzle.reference(&question), Reference::Answer("52".to_owned()));
        assert_eq!(puzzle.canonical(&question), puzzle.canonical(&[52, 37]));
        let words = |style, seed| {
            let reply = puzzle.reply(&question, style, Seed(seed)).expect("a style");
            let mut words = reply.split(' ');
            assert_eq!(words.next(), Some("52"));
            words.inspect(|word| assert!(COURTESIES.contains(word))).count()
        };
        assert_eq!(words("bare", 1), 0);
        let drawn: usize = (0..2000).map(|seed| words("courteous", seed)).sum();
        let mean = drawn as f64 / 2000.0;
        assert!((mean - 0.8).abs() < 0.1, "{mean}");
        assert_eq!(puzzle.reply(&question, "verse", Seed(0)), None);
    }

    #[test]
    fn more_courtesies_than_a_document_holds_are_refused() {
        let context = BuildContext { folder: std::path::PathBuf::new(), seed: Seed(0) };
        let config = CourtesyConfig { courtesies: 9.0, ..Default::default() };
        let fault = config.build(&context).err().expect("too many");
        assert_eq!(fault.key, "courtesies");
    }
}
