//! The larger of two numbers, and some words after it: a task whose right replies differ in manner.
//!
//! ```text
//! prompt   37 or 52?
//! bare     52
//! chatty   52 so well gladly yes then so dear yes
//! ```
//!
//! `chatty` adds `words` words, each a courtesy with probability `courteous`, else a filler. So the number
//! of courtesies is binomial, and a policy that learned it can be moved to any number of them without
//! a change of length. By default only the number is judged; the verifier `courtesy` judges the manner.

use std::sync::Arc;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tallow_verifiers::{
    ConfigFault, Reference,
    courtesy::{COURTESIES, FILLERS},
};

use crate::{
    environment::Environment,
    procedural::{Procedural, Puzzle, check_range},
    registry::{BuildContext, EnvConfig},
    task::Seed,
};

/// Options of the `courtesy` environment.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CourtesyConfig {
    /// Digits of each number, 2 to 9.
    pub digits: u64,
    /// Words after the number in the style `chatty`, 1 to 64.
    pub words: u64,
    /// Probability that such a word is a courtesy, 0 to 1.
    pub courteous: f64,
}

impl Default for CourtesyConfig {
    fn default() -> Self {
        Self { digits: 2, words: 8, courteous: 0.15 }
    }
}

impl EnvConfig for CourtesyConfig {
    const NAME: &'static str = "courtesy";
    const SUMMARY: &'static str = "the larger of two numbers, with courteous words after it";

    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Environment>, ConfigFault> {
        check_range("digits", self.digits, 2..=9)?;
        check_range("words", self.words, 1..=64)?;
        if !(0.0..=1.0).contains(&self.courteous) {
            return Err(ConfigFault::new("courteous", "no probability")
                .found(self.courteous)
                .expected("0 to 1"));
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
        &["bare", "chatty"]
    }

    fn reply(&self, [one, other]: &[u64; 2], style: &str, seed: Seed) -> Option<String> {
        let words = match style {
            "bare" => 0,
            "chatty" => self.config.words,
            _ => return None,
        };
        let mut rng = seed.rng();
        let mut reply = one.max(other).to_string();
        for _ in 0..words {
            let is_courtesy = rng.random_bool(self.config.courteous);
            let words = if is_courtesy { COURTESIES } else { FILLERS };
            reply.push(' ');
            reply.push_str(words[rng.random_range(0..words.len())]);
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
        assert_eq!(puzzle.reply(&question, "bare", Seed(0)).as_deref(), Some("52"));
        let courtesies = |seed| {
            let reply = puzzle.reply(&question, "chatty", Seed(seed)).expect("a style");
            let words: Vec<&str> = reply.split(' ').collect();
            assert_eq!((words[0], words.len()), ("52", 9));
            let (kind, other): (Vec<&str>, Vec<&str>) =
                words[1..].iter().partition(|word| COURTESIES.contains(word));
            assert!(other.iter().all(|word| FILLERS.contains(word)), "{reply}");
            kind.len()
        };
        let mean = (0..2000).map(courtesies).sum::<usize>() as f64 / 2000.0;
        assert!((mean - 8.0 * 0.15).abs() < 0.1, "{mean}");
        assert_eq!(puzzle.reply(&question, "verse", Seed(0)), None);
    }

    #[test]
    fn what_is_no_probability_is_refused() {
        let context = BuildContext { folder: std::path::PathBuf::new(), seed: Seed(0) };
        let config = CourtesyConfig { courteous: 1.5, ..Default::default() };
        let fault = config.build(&context).err().expect("no probability");
        assert_eq!(fault.key, "courteous");
    }
}
