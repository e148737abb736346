//! Pairs of replies of which one is preferred: what reward models and DPO learn from.
//!
//! | source | the pairs | the labels |
//! |---|---|---|
//! | `file` | lines of a JSONL file | the file's |
//! | `sampled` | the policy's own replies to an environment's tasks | a verifier's, perhaps with errors |
//!
//! A source gives text; [`EncodedPairs`] are its ids. A pair stands in one split with all others of the
//! same prompt, so that no prompt is learned from and asked about.

pub mod file;
pub mod sampled;

use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use serde_json::{Value, json};
use tallow_policies::Decoder;
use tallow_verifiers::{ConfigFault, Message};

use crate::config::StageContext;
use crate::config::document::Table;
use crate::config::problem::{Fault, Problems};
use crate::error::Error;
use crate::files::write_atomic;
use crate::learner::batch::{Sequence, SequencePair};
use crate::learner::memory::Demand;
use crate::model::ModelSettings;
use crate::renderer::Renderer;
use crate::run::StageRun;

/// Two ways a conversation goes on, and which of them is preferred.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// What both begin with.
    pub prompt: Vec<Message>,
    /// What follows in the preferred one; holds a reply.
    pub chosen: Vec<Message>,
    /// What follows in the other; holds a reply.
    pub rejected: Vec<Message>,
    /// By how much it is preferred, in the units of a reward model's scores.
    pub margin: Option<f64>,
}

/// Pairs to learn from, and others to ask about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PairSet {
    /// To learn from.
    pub train: Vec<Pair>,
    /// Held out.
    pub held_out: Vec<Pair>,
}

/// A source of pairs.
pub trait PairSource: Send + Sync {
    /// The most pairs there will be: to learn from, and held out.
    fn most(&self) -> (u64, u64);

    /// What making them asks of memory; `None` if next to nothing.
    fn demand(&self, _model: &ModelSettings) -> Option<Demand> {
        None
    }

    /// Where its tasks come from, for the record.
    fn provenance(&self) -> Option<Value> {
        None
    }

    /// Whether making them takes so long that checkpoints hold them.
    fn is_costly(&self) -> bool {
        false
    }

    /// The pairs; they depend on the settings, the seed and the weights of `policy` alone.
    ///
    /// # Errors
    /// If they cannot be made.
    fn pairs(
        &self,
        policy: &Decoder,
        renderer: &Arc<Renderer>,
        run: &mut StageRun<'_>,
    ) -> Result<PairSet, Error>;
}

/// A source and its settings for the resolved configuration.
pub type Read = (Arc<dyn PairSource>, Value);

/// A row of the table of sources.
pub struct PairSourceEntry {
    /// The name configs use.
    pub name: &'static str,
    /// One line for `tallow list`.
    pub summary: &'static str,
    /// Reads the rest of the table `pairs`.
    pub read: fn(&mut Table, &StageContext<'_>, &mut Problems) -> Option<Read>,
    /// The options with their defaults; `null` where one must be given.
    pub default_options: fn() -> Value,
}

/// Every source, alphabetical.
pub const BUILTIN: &[PairSourceEntry] = &[file::ENTRY, sampled::ENTRY];

/// Reads a stage's table `pairs`.
pub fn read(
    table: &mut Table,
    context: &StageContext<'_>,
    problems: &mut Problems,
) -> Option<Read> {
    let names = || BUILTIN.iter().map(|it| it.name);
    if !table.contains("pairs") {
        let fault = Fault::new("pairs", "there are no preferences to learn from").expected(
            format!("a table `pairs` with a `kind`: {}", names().collect::<Vec<_>>().join(" or ")),
        );
        problems.at(table, fault);
        return None;
    }
    let mut pairs = table.split("pairs", problems)?;
    let kind: String = pairs.require("kind", problems)?;
    let Some(entry) = BUILTIN.iter().find(|it| it.name == kind) else {
        let fault = ConfigFault::unknown_name("kind", "source of pairs", &kind, names());
        problems.at(&pairs, fault.into());
        return None;
    };
    let (source, mut settings) = (entry.read)(&mut pairs, context, problems)?;
    settings["kind"] = json!(kind);
    Some((source, settings))
}

/// Pairs as ids.
#[derive(Debug, Default)]
pub struct EncodedPairs {
    /// To learn from.
    pub train: Vec<SequencePair>,
    /// Held out.
    pub held_out: Vec<SequencePair>,
    /// Pairs of which a side is longer than the context, left out of both.
    pub too_long: usize,
    /// Pairs whose sides are the same ids, left out of both.
    pub alike: usize,
}

impl EncodedPairs {
    /// Renders every pair; those with a side of more than `context` ids are left out: a reply without
    /// its end is not what was preferred.
    ///
    /// # Errors
    /// If a conversation cannot be rendered, or no pair is left to learn from.
    pub fn of(pairs: &PairSet, renderer: &Renderer, context: usize) -> Result<Self, Error> {
        let mut encoded = Self::default();
        let all = |part: &[Pair]| -> Result<Vec<SequencePair>, Error> {
            part.par_iter().map(|it| encode(it, renderer)).collect()
        };
        encoded.train = all(&pairs.train)?;
        encoded.held_out = all(&pairs.held_out)?;
        for part in [&mut encoded.train, &mut encoded.held_out] {
            let before = part.len();
            part.retain(|it| it.longest() <= context);
            encoded.too_long += before - part.len();
            let before = part.len();
            part.retain(|it| it.chosen.tokens() != it.rejected.tokens());
            encoded.alike += before - part.len();
        }
        if encoded.train.is_empty() {
            return Err(Error::Data(format!(
                "no pair to learn from: {} are longer than {context} tokens (model.context, \
                 sequence_tokens), and of {} both sides are the same",
                encoded.too_long, encoded.alike
            )));
        }
        Ok(encoded)
    }
}

/// The ids of both sides as sampling and judging see them; what follows the prompt is scored.
fn encode(pair: &Pair, renderer: &Renderer) -> Result<SequencePair, Error> {
    // Replies within the prompt are the same on both sides and say nothing.
    let before = renderer.conversation(&pair.prompt)?.tokens.len();
    let side = |reply: &[Message]| -> Result<Sequence, Error> {
        let messages: Vec<Message> = pair.prompt.iter().chain(reply).cloned().collect();
        let mut rendered = renderer.conversation(&messages)?;
        rendered.is_reply.iter_mut().take(before).for_each(|it| *it = false);
        Ok(Sequence::new(rendered.tokens, &rendered.is_reply))
    };
    Ok(SequencePair {
        chosen: side(&pair.chosen)?,
        rejected: side(&pair.rejected)?,
        margin: pair.margin.unwrap_or(0.0),
    })
}

/// Names of the files that [`keep`] writes.
const KEPT: [&str; 2] = ["pairs_train.jsonl", "pairs_held_out.jsonl"];

/// Writes pairs beside a checkpoint, in a form that the source `file` reads.
///
/// # Errors
/// If a file cannot be written.
pub fn keep(pairs: &PairSet, folder: &Path) -> Result<(), Error> {
    for (name, part) in KEPT.iter().zip([&pairs.train, &pairs.held_out]) {
        let lines: String = part.iter().map(|it| format!("{}\n", line_of(it))).collect();
        write_atomic(&folder.join(name), lines)?;
    }
    Ok(())
}

/// Reads what [`keep`] wrote.
///
/// # Errors
/// If a file is missing or damaged.
pub fn kept(folder: &Path) -> Result<PairSet, Error> {
    let [train, held_out] = KEPT.map(|name| file::read_pairs(&folder.join(name)));
    Ok(PairSet { train: train?, held_out: held_out? })
}

fn line_of(pair: &Pair) -> Value {
    let mut line = json!({"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected});
    if let Some(margin) = pair.margin {
        line["margin"] = json!(margin);
    }
    line
}

#[cfg(test)]
mod tests {
    use tallow_policies::Tokenizer;

    use super::*;

    #[test]
    fn what_follows_the_prompt_is_scored_and_replies_within_it_are_not() {
        let tokenizer = Tokenizer::of_characters(["12+=?ab"], None).expect("made");
        let renderer = Renderer::new(Arc::new(tokenizer)).expect("plain");
        let pair = Pair {
            prompt: vec![Message::user("1?"), Message::assistant("2"), Message::user("+?")],
            chosen: vec![Message::assistant("ab")],
            rejected: vec![Message::assistant("b")],
            margin: None,
        };
        let set = PairSet { train: vec![pair], held_out: Vec::new() };
        let encoded = EncodedPairs::of(&set, &renderer, 16).expect("encoded");
        let SequencePair { chosen, rejected, .. } = &encoded.train[0];
        // "1?", "2" and its end, "+?", then "ab" and its end.
        assert_eq!((chosen.tokens().len(), chosen.scored_tokens()), (9, 3));
        assert_eq!((rejected.tokens().len(), rejected.scored_tokens()), (8, 2));
        let none = EncodedPairs::of(&set, &renderer, 8).expect_err("the longer side has 9");
        assert!(none.to_string().contains("1 are longer than 8 tokens"), "{none}");
    }
}
