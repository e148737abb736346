//! `tallow chat`: a conversation in the terminal; each reply is shown as it is sampled.
//!
//! The engine hands over replies when they have ended. One conversation needs no batch: it samples
//! from the decoder itself, and keeps the keys and values of all turns in the cache.

use clap::Args;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rustyline::error::ReadlineError;
use tallow_envs::Seed;
use tallow_policies::sampling::draw;
use tallow_policies::{
    CacheSpan, Inference, KvCache, PolicyError, SamplingParams, TokenId, Tokenizer,
};
use tallow_verifiers::Message;

use super::model::{DEFAULT_SEED, Loaded, ModelArgs, SamplingArgs, load};
use super::{Common, say, say_part};
use crate::console::shown_lines;
use crate::error::Error;

/// Talk to a model in the terminal; an empty line or Ctrl-D ends.
#[derive(Args)]
#[command(after_help = "Example: tallow chat --model SmolLM2-135M-Instruct")]
pub struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// `tallow chat`.
pub fn chat(args: &ChatArgs, common: &Common) -> Result<(), Error> {
    let params = args.sampling.params()?;
    let mut conversation = Conversation::new(load(&args.model, common)?)?;
    let mut editor = rustyline::DefaultEditor::new()
        .map_err(|e| Error::Data(format!("cannot read from the terminal: {e}")))?;
    let seed = Seed(common.seed.unwrap_or(DEFAULT_SEED));
    for turn in 0u64.. {
        let line = match editor.readline("you> ") {
            Ok(line) if !line.trim().is_empty() => line,
            Ok(_) | Err(ReadlineError::Eof | ReadlineError::Interrupted) => break,
            Err(error) => return Err(Error::Data(format!("cannot read a line: {error}"))),
        };
        // History is a convenience; a line that cannot be kept is no reason to stop.
        drop(editor.add_history_entry(line.as_str()));
        // A line that the tokenizer has no tokens for can be said in other words.
        if let Err(error) = conversation.hear(line) {
            say(&format!("({error})"));
            continue;
        }
        if conversation.room() == 0 {
            say("(the model's context is full: the conversation ends here)");
            break;
        }
        say_part("model> ");
        let replied = conversation
            .reply(&params, seed.derive(&[turn]).0, |text| say_part(&shown_lines(text)));
        say("");
        replied?;
    }
    Ok(())
}

/// What has been said, as ids and as keys and values.
struct Conversation {
    model: Loaded,
    inference: Inference,
    cache: KvCache,
    tokens: Vec<TokenId>,
}

impl Conversation {
    fn new(model: Loaded) -> Result<Self, Error> {
        let config = model.decoder.config();
        let cache = KvCache::new(&model.decoder, 1, config.max_position_embeddings);
        let inference = Inference::new(&model.decoder)?;
        Ok(Self { model, inference, cache, tokens: Vec::new() })
    }

    /// Adds what the user said.
    fn hear(&mut self, line: String) -> Result<(), Error> {
        let message = [Message::user(line)];
        let renderer = &self.model.renderer;
        let added = match self.tokens.last() {
            None => renderer.prompt(&message)?,
            Some(last) => {
                renderer.continuation(&message, self.model.tokenizer.end_ids().contains(last))?
            }
        };
        self.tokens.extend(added);
        Ok(())
    }

    /// Tokens that still fit the model's context.
    fn room(&self) -> usize {
        self.cache.capacity().saturating_sub(self.tokens.len())
    }

    /// Samples a reply, and shows its text piece by piece.
    fn reply(
        &mut self,
        params: &SamplingParams,
        seed: u64,
        mut show: impl FnMut(&str),
    ) -> Result<(), Error> {
        let tokenizer = &self.model.tokenizer;
        let mut stream = ChaCha8Rng::seed_from_u64(seed);
        let mut text = TextStream::new(tokenizer);
        let mut said = String::new();
        for sampled in 0..params.max_tokens.min(self.room()) {
            let new = &self.tokens[self.cache.len(0)..];
            let span = CacheSpan { slot: 0, tokens: new };
            let hidden = self.inference.extend(&mut self.cache, &[span])?;
            let mut logits = self.inference.logits(&hidden)?;
            if logits.iter().any(|it| !it.is_finite()) {
                return Err(PolicyError::NotFinite { what: "the logits" }.into());
            }
            let end_ids = tokenizer.end_ids();
            let forbidden = if sampled < params.min_tokens { end_ids } else { &[] };
            let token = draw(&mut logits, params, forbidden, &mut stream).token;
            self.tokens.push(token);
            let piece = text.push(token)?;
            show(&piece);
            said.push_str(&piece);
            let stopped = params.stop.iter().any(|it| !it.is_empty() && said.contains(it));
            if stopped || end_ids.contains(&token) {
                break;
            }
        }
        show(&text.rest()?);
        Ok(())
    }
}

/// The text of tokens that come one by one. A token may end within a character, and what a token
/// reads may depend on the one before it: text is given out once the tokens so far end in a whole
/// character, and decoded together with the piece before.
struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<TokenId>,
    /// Where the piece before begins.
    before: usize,
    /// Where the tokens begin whose text has not been given out.
    waiting: usize,
}

impl<'a> TextStream<'a> {
    fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, tokens: Vec::new(), before: 0, waiting: 0 }
    }

    /// Takes a token; returns the text that is whole now.
    fn push(&mut self, token: TokenId) -> Result<String, Error> {
        self.tokens.push(token);
        let text = self.waiting_text()?;
        // The mark of bytes that form no character yet.
        if text.is_empty() || text.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        (self.before, self.waiting) = (self.waiting, self.tokens.len());
        Ok(text)
    }

    /// What is left at the end, whole or not.
    fn rest(&mut self) -> Result<String, Error> {
        let text = self.waiting_text()?;
        (self.before, self.waiting) = (self.waiting, self.tokens.len());
        Ok(text)
    }

    fn waiting_text(&self) -> Result<String, Error> {
        let given = self.tokenizer.decode(&self.tokens[self.before..self.waiting])?;
        let all = self.tokenizer.decode(&self.tokens[self.before..])?;
        Ok(all.get(given.len()..).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_to_the_whole_text_and_hold_whole_characters() {
        let seen = ["plain words 0123456789"];
        let tokenizer = Tokenizer::train_bpe(seen.iter(), 280, true, None).expect("trained");
        // None of these was seen, so each of its bytes is a token.
        let text = "words: é, 漢字, 🦀🦀 and e\u{301} 42";
        let tokens = tokenizer.encode(text).expect("encoded");
        assert!(tokens.len() > text.chars().count());
        let mut stream = TextStream::new(&tokenizer);
        let mut joined = String::new();
        for token in tokens {
            let piece = stream.push(token).expect("decoded");
            assert!(!piece.contains('\u{fffd}'), "{piece:?}");
            joined.push_str(&piece);
        }
        assert_eq!(joined, text);
        assert_eq!(stream.rest().expect("decoded"), "");
    }

    #[test]
    fn a_reply_that_ends_within_a_character_shows_the_mark_once() {
        let tokenizer = Tokenizer::train_bpe(["ab"].iter(), 270, true, None).expect("trained");
        let tokens = tokenizer.encode("a🦀").expect("encoded");
        let mut stream = TextStream::new(&tokenizer);
        let pieces: Vec<String> =
            tokens[..3].iter().map(|it| stream.push(*it).expect("decoded")).collect();
        assert_eq!(pieces, ["a", "", ""]);
        assert_eq!(stream.rest().expect("decoded"), "\u{fffd}");
    }
}
