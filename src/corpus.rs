//! Documents as sequences of ids: the stream that pretraining and SFT read.
//!
//! A file's documents are encoded once, in parallel, and cut into pieces that fit the context; an
//! environment's are written and encoded as they are needed. Either way the sequence at a position
//! is a pure function of the settings and the position, so a resumed run reads on where it stopped.

use std::sync::Arc;

use rayon::prelude::*;
use tallow_envs::{Seed, Split};
use tallow_policies::TokenId;
use tallow_verifiers::{Message, Role};

use crate::documents::{Document, Documents};
use crate::error::Error;
use crate::learner::batch::Sequence;
use crate::renderer::Renderer;
use crate::rollout::task_order::TaskOrder;

/// Which tokens of a conversation teach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LossOn {
    /// Every token but the first.
    All,
    /// The replies, end tokens included.
    Replies,
}

/// An endless stream of training sequences.
pub struct Corpus {
    documents: Arc<dyn Documents>,
    renderer: Arc<Renderer>,
    loss_on: LossOn,
    context: usize,
    order: TaskOrder,
    /// All sequences, where the source is not procedural.
    encoded: Option<Vec<Sequence>>,
}

/// Held-out sequences and the bytes of text that their scored tokens stand for.
pub struct HeldOut {
    /// The sequences.
    pub sequences: Vec<Sequence>,
    /// Bytes of text behind the scored tokens.
    pub bytes: usize,
}

impl Corpus {
    /// The training split of `documents`, cut to `context` tokens.
    ///
    /// # Errors
    /// If a document cannot be read or encoded.
    pub fn new(
        documents: Arc<dyn Documents>,
        renderer: Arc<Renderer>,
        loss_on: LossOn,
        context: usize,
        seed: Seed,
    ) -> Result<Self, Error> {
        let encoded = if documents.is_procedural() {
            None
        } else {
            let pieces: Vec<Vec<Sequence>> = (0..documents.len(Split::Train))
                .into_par_iter()
                .map(|index| {
                    let document = documents.document(Split::Train, index)?;
                    Ok(encode(&document, &renderer, loss_on, context)?.0)
                })
                .collect::<Result<_, Error>>()?;
            Some(pieces.into_iter().flatten().collect::<Vec<_>>())
        };
        let length = match &encoded {
            Some(sequences) if sequences.is_empty() => {
                return Err(Error::Data("the documents hold no token to learn from".into()));
            }
            Some(sequences) => sequences.len() as u64,
            None => documents.len(Split::Train),
        };
        let order = TaskOrder::new(seed, length);
        Ok(Self { documents, renderer, loss_on, context, order, encoded })
    }

    /// The `count` sequences from `position` on.
    ///
    /// # Errors
    /// If a document cannot be written or encoded.
    pub fn batch(&mut self, position: u64, count: usize) -> Result<Vec<Sequence>, Error> {
        let indices: Vec<u64> =
            (position..position + count as u64).map(|it| self.order.index(it)).collect();
        if let Some(encoded) = &self.encoded {
            return Ok(indices.iter().map(|it| encoded[*it as usize].clone()).collect());
        }
        indices
            .par_iter()
            .map(|index| {
                let document = self.documents.document(Split::Train, *index)?;
                let (mut pieces, _) =
                    encode(&document, &self.renderer, self.loss_on, self.context)?;
                // A written document is one piece; what does not fit the context is cut off.
                Ok(pieces.swap_remove(0))
            })
            .collect()
    }

    /// At most `limit` held-out documents.
    ///
    /// # Errors
    /// If a document cannot be read or encoded.
    pub fn held_out(&self, limit: usize) -> Result<HeldOut, Error> {
        let count = self.documents.len(Split::Test).min(limit as u64);
        let mut held_out = HeldOut { sequences: Vec::new(), bytes: 0 };
        for index in 0..count {
            let document = self.documents.document(Split::Test, index)?;
            let (pieces, bytes) = encode(&document, &self.renderer, self.loss_on, self.context)?;
            held_out.sequences.extend(pieces);
            held_out.bytes += bytes;
        }
        Ok(held_out)
    }
}

/// A document as pieces of at most `context` tokens, and the bytes that its scored tokens stand for.
fn encode(
    document: &Document,
    renderer: &Renderer,
    loss_on: LossOn,
    context: usize,
) -> Result<(Vec<Sequence>, usize), Error> {
    match document {
        Document::Text(text) => {
            let mut tokens = renderer.tokenizer().encode(text)?;
            tokens.push(renderer.tokenizer().end_id());
            // Neighbouring pieces share a token, so that each piece's first is scored somewhere.
            let step = context.saturating_sub(1).max(1);
            let pieces = (0..tokens.len().max(2) - 1)
                .step_by(step)
                .map(|start| tokens[start..(start + step + 1).min(tokens.len())].to_vec())
                .map(|piece: Vec<TokenId>| {
                    let scored = vec![true; piece.len()];
                    Sequence::new(piece, &scored)
                })
                .collect();
            Ok((pieces, text.len()))
        }
        Document::Conversation(messages) => {
            let rendered = renderer.conversation(messages)?;
            let is_scored = match loss_on {
                LossOn::Replies => rendered.is_reply,
                LossOn::All => vec![true; rendered.tokens.len()],
            };
            let bytes = if rendered.tokens.len() > context {
                let kept = rendered.tokens.iter().zip(&is_scored).take(context);
                let scored: Vec<TokenId> = kept.filter(|it| *it.1).map(|it| *it.0).collect();
                renderer.tokenizer().decode(&scored)?.len()
            } else {
                let is_scored =
                    |it: &&Message| loss_on == LossOn::All || it.role == Role::Assistant;
                messages.iter().filter(is_scored).map(|it| it.content.len()).sum()
            };
            let mut sequence = Sequence::new(rendered.tokens, &is_scored);
            sequence.truncate(context);
            Ok((vec![sequence], bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use tallow_policies::Tokenizer;

    use super::*;

    #[test]
    fn bytes_are_those_of_the_tokens_that_are_scored() {
        let tokenizer = Tokenizer::of_characters(["12+=é?"], None).expect("made");
        let renderer = Renderer::new(Arc::new(tokenizer)).expect("plain");
        let messages = vec![Message::user("1+1?"), Message::assistant("=é1")];
        let document = Document::Conversation(messages);
        let bytes = |loss_on, context| {
            let (pieces, bytes) = encode(&document, &renderer, loss_on, context).expect("encoded");
            (pieces[0].tokens().len(), bytes)
        };
        assert_eq!(bytes(LossOn::Replies, 8), (8, 4));
        assert_eq!(bytes(LossOn::Replies, 6), (6, 3));
        assert_eq!(bytes(LossOn::All, 5), (5, 5));
    }
}
