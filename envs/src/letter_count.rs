//! How often a letter occurs in a word.
//!
//! ```text
//! prompt   strawberry r?
//! bare     =3
//! spelled  s0t0r1a1w1b1e1r2r3y3=3
//! ```
//!
//! `spelled` writes each letter and how often the one sought has occurred by then. To a character
//! tokenizer this is counting; to a subword tokenizer it is also spelling.

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

/// Options of the `letter_count` environment.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LetterCountConfig {
    /// Share of tasks whose word is a random string of letters, 0 to 1; the others are words from
    /// a list of a few hundred.
    pub random_share: f64,
    /// Fewest letters of a random string, 1 to `longest`.
    pub shortest: u64,
    /// Most letters of a random string, up to 64.
    pub longest: u64,
}

impl Default for LetterCountConfig {
    fn default() -> Self {
        Self { random_share: 0.5, shortest: 4, longest: 10 }
    }
}

impl EnvConfig for LetterCountConfig {
    const NAME: &'static str = "letter_count";
    const SUMMARY: &'static str = "how often a letter occurs in a word";

    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Environment>, ConfigFault> {
        if !(0.0..=1.0).contains(&self.random_share) {
            return Err(ConfigFault::new("random_share", "not a share")
                .found(self.random_share)
                .expected("0 to 1"));
        }
        check_range("longest", self.longest, 1..=64)?;
        check_range("shortest", self.shortest, 1..=self.longest)?;
        Procedural::build(LetterCount { config: self.clone() }, context.seed, "longest")
    }
}

struct LetterCount {
    config: LetterCountConfig,
}

/// The word and the letter sought in it.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Sought {
    word: String,
    letter: char,
}

impl Sought {
    fn count(&self) -> usize {
        self.word.chars().filter(|&letter| letter == self.letter).count()
    }
}

/// Distinct letters of a random string: few, so that they repeat as they do in words.
const LETTERS_OF_A_RANDOM_STRING: usize = 4;

/// One letter in this many is drawn from the whole alphabet and mostly does not occur.
const ABSENT_LETTERS: u32 = 8;

fn any_letter(rng: &mut ChaCha8Rng) -> char {
    char::from(rng.random_range(b'a'..=b'z'))
}

impl Puzzle for LetterCount {
    type Question = Sought;

    fn name(&self) -> &'static str {
        LetterCountConfig::NAME
    }

    fn candidate(&self, rng: &mut ChaCha8Rng) -> Sought {
        let word: String = if rng.random_bool(self.config.random_share) {
            let letters: Vec<char> =
                (0..LETTERS_OF_A_RANDOM_STRING).map(|_| any_letter(rng)).collect();
            let length = rng.random_range(self.config.shortest..=self.config.longest);
            (0..length).map(|_| letters[rng.random_range(0..letters.len())]).collect()
        } else {
            WORDS[rng.random_range(0..WORDS.len())].to_owned()
        };
        let letter = if rng.random_range(0..ABSENT_LETTERS) == 0 {
            any_letter(rng)
        } else {
            // Words and random strings are ASCII, so a byte is a letter.
            char::from(word.as_bytes()[rng.random_range(0..word.len())])
        };
        Sought { word, letter }
    }

    fn prompt(&self, sought: &Sought) -> String {
        format!("{} {}?", sought.word, sought.letter)
    }

    fn reference(&self, sought: &Sought) -> Reference {
        Reference::Answer(sought.count().to_string())
    }

    fn reply_styles(&self) -> &'static [&'static str] {
        &["bare", "spelled"]
    }

    fn reply(&self, sought: &Sought, style: &str, _seed: Seed) -> Option<String> {
        match style {
            "bare" => Some(format!("={}", sought.count())),
            "spelled" => {
                let mut seen = 0;
                let mut spelled = String::new();
                for letter in sought.word.chars() {
                    seen += usize::from(letter == sought.letter);
                    spelled += &format!("{letter}{seen}");
                }
                Some(format!("{spelled}={seen}"))
            }
            _ => None,
        }
    }
}

/// Common words, and some whose letters people miscount.
const WORDS: &[&str] = &[
    "apple",
    "banana",
    "orange",
    "cherry",
    "strawberry",
    "blueberry",
    "raspberry",
    "pear",
    "peach",
    "plum",
    "melon",
    "lemon",
    "lime",
    "grape",
    "mango",
    "papaya",
    "apricot",
    "coconut",
    "walnut",
    "almond",
    "hazelnut",
    "carrot",
    "potato",
    "tomato",
    "onion",
    "garlic",
    "pepper",
    "cabbage",
    "spinach",
    "lettuce",
    "cucumber",
    "pumpkin",
    "radish",
    "parsley",
    "bread",
    "butter",
    "cheese",
    "yogurt",
    "cream",
    "coffee",
    "water",
    "juice",
    "sugar",
    "honey",
    "pasta",
    "noodle",
    "sausage",
    "bacon",
    "chicken",
    "turkey",
    "salmon",
    "kitchen",
    "bathroom",
    "bedroom",
    "window",
    "ceiling",
    "carpet",
    "curtain",
    "pillow",
    "blanket",
    "mirror",
    "drawer",
    "cupboard",
    "bottle",
    "glass",
    "spoon",
    "kettle",
    "garden",
    "flower",
    "forest",
    "meadow",
    "river",
    "mountain",
    "valley",
    "desert",
    "island",
    "harbor",
    "bridge",
    "tunnel",
    "street",
    "village",
    "station",
    "airport",
    "morning",
    "evening",
    "afternoon",
    "midnight",
    "winter",
    "summer",
    "spring",
    "autumn",
    "weather",
    "thunder",
    "lightning",
    "rainbow",
    "blizzard",
    "rabbit",
    "squirrel",
    "hedgehog",
    "elephant",
    "giraffe",
    "kangaroo",
    "crocodile",
    "penguin",
    "ostrich",
    "sparrow",
    "pigeon",
    "eagle",
    "falcon",
    "parrot",
    "beetle",
    "butterfly",
    "grasshopper",
    "spider",
    "lobster",
    "octopus",
    "dolphin",
    "whale",
    "teacher",
    "doctor",
    "lawyer",
    "engineer",
    "carpenter",
    "butcher",
    "baker",
    "farmer",
    "sailor",
    "soldier",
    "painter",
    "musician",
    "letter",
    "address",
    "message",
    "telephone",
    "newspaper",
    "magazine",
    "library",
    "dictionary",
    "pencil",
    "eraser",
    "notebook",
    "alphabet",
    "grammar",
    "sentence",
    "bicycle",
    "motorcycle",
    "railroad",
    "helicopter",
    "submarine",
    "trailer",
    "happiness",
    "sadness",
    "kindness",
    "courage",
    "wisdom",
    "success",
    "balance",
    "silence",
    "freedom",
    "justice",
    "progress",
    "business",
    "possession",
    "assess",
    "committee",
    "accommodate",
    "necessary",
    "embarrass",
    "occurrence",
    "parallel",
    "mississippi",
    "tennessee",
    "tomorrow",
    "bookkeeper",
    "yellow",
    "purple",
    "scarlet",
    "crimson",
    "silver",
    "triangle",
    "rectangle",
    "circle",
    "square",
    "cylinder",
    "pyramid",
    "million",
    "billion",
    "thousand",
    "hundred",
    "fifteen",
    "seventeen",
    "jacket",
    "sweater",
    "trousers",
    "slipper",
    "umbrella",
    "glasses",
    "necklace",
    "bracelet",
    "football",
    "baseball",
    "volleyball",
    "swimming",
    "running",
    "wrestling",
    "archery",
    "hammer",
    "scissors",
    "screwdriver",
    "ladder",
    "bucket",
    "shovel",
    "piano",
    "violin",
    "trumpet",
    "guitar",
    "clarinet",
    "drummer",
    "doctorate",
    "university",
    "professor",
    "student",
    "lecture",
    "laboratory",
    "experiment",
    "telescope",
    "microscope",
    "zipper",
    "buzzer",
    "puzzle",
    "jazz",
    "fuzzy",
    "dizzy",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_documented_one() {
        let puzzle = LetterCount { config: LetterCountConfig::default() };
        let sought = Sought { word: "strawberry".to_owned(), letter: 'r' };
        assert_eq!(puzzle.prompt(&sought), "strawberry r?");
        assert_eq!(puzzle.reply(&sought, "bare", Seed(0)).as_deref(), Some("=3"));
        assert_eq!(
            puzzle.reply(&sought, "spelled", Seed(0)).as_deref(),
            Some("s0t0r1a1w1b1e1r2r3y3=3")
        );
    }

    #[test]
    fn the_words_are_distinct_and_lower_case() {
        let distinct: std::collections::HashSet<_> = WORDS.iter().collect();
        assert_eq!(distinct.len(), WORDS.len());
        assert!(WORDS.iter().all(|word| word.bytes().all(|letter| letter.is_ascii_lowercase())));
    }

    #[test]
    fn the_random_share_is_kept() {
        let config = LetterCountConfig { random_share: 0.0, ..Default::default() };
        let puzzle = LetterCount { config };
        for draw in 0..100 {
            let sought = puzzle.candidate(&mut Seed(draw).rng());
            assert!(WORDS.contains(&sought.word.as_str()), "{sought:?}");
        }
    }
}
