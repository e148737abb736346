//! Sequences packed end to end for one forward pass, a shared prompt only once.
//!
//! A [`Tree`] is a prompt and the replies that continue it; a plain sequence is a tree without
//! replies. Nothing is padded. Each reply attends to the prompt and to itself, never to its
//! siblings, so the pass gives every reply what it would get alone.

use crate::TokenId;

/// Trees of sequences, their rows end to end: a prompt, then its replies, then the next prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedSequences {
    tokens: Vec<TokenId>,
    positions: Vec<u32>,
    trees: Vec<Tree>,
}

/// A prompt and the replies that continue it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    segments: Vec<Segment>,
}

/// Consecutive rows of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its first row in the pack.
    pub start: usize,
    /// How many rows it has, at least one.
    pub length: usize,
    /// The position of its first row in its sequence: 0, or the length of the prompt.
    pub position: usize,
}

impl PackedSequences {
    /// Sequences of the given lengths, in order, from their tokens end to end. Empty ones are
    /// left out.
    pub fn of_lengths(tokens: &[TokenId], lengths: &[usize]) -> Self {
        let mut packed = Self::default();
        let mut start = 0;
        for length in lengths {
            if *length > 0 {
                packed.push(&tokens[start..start + length], &[]);
            }
            start += length;
        }
        packed
    }

    /// Adds a prompt of at least one token and replies that continue it (empty ones get no rows).
    /// Returns the row the prompt starts at and the rows the replies start at.
    pub fn push(&mut self, prompt: &[TokenId], replies: &[&[TokenId]]) -> (usize, Vec<usize>) {
        assert!(!prompt.is_empty(), "a prompt has at least one token");
        let mut segments = Vec::with_capacity(1 + replies.len());
        let mut starts = Vec::with_capacity(replies.len());
        let start = self.tokens.len();
        segments.push(Segment { start, length: prompt.len(), position: 0 });
        self.tokens.extend_from_slice(prompt);
        self.positions.extend(0..prompt.len() as u32);
        for reply in replies {
            let start = self.tokens.len();
            starts.push(start);
            if reply.is_empty() {
                continue;
            }
            segments.push(Segment { start, length: reply.len(), position: prompt.len() });
            self.tokens.extend_from_slice(reply);
            self.positions.extend((prompt.len()..prompt.len() + reply.len()).map(|it| it as u32));
        }
        self.trees.push(Tree { segments });
        (start, starts)
    }

    /// All ids, row by row.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Each row's position in its sequence.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// The trees, in the order of their rows.
    pub fn trees(&self) -> &[Tree] {
        &self.trees
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }
}

impl Tree {
    /// The prompt, then the replies.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The prompt's first row.
    pub fn start(&self) -> usize {
        self.segments[0].start
    }

    /// How many rows the tree has.
    pub fn rows(&self) -> usize {
        self.segments.iter().map(|it| it.length).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_continue_their_prompt() {
        let mut packed = PackedSequences::of_lengths(&[9, 9], &[2, 0]);
        let (prompt, replies) = packed.push(&[1, 2, 3], &[&[4], &[], &[5, 6]]);
        assert_eq!((prompt, replies), (2, vec![5, 6, 6]));
        assert_eq!(packed.tokens(), [9, 9, 1, 2, 3, 4, 5, 6]);
        assert_eq!(packed.positions(), [0, 1, 0, 1, 2, 3, 3, 4]);
        assert_eq!(packed.trees().len(), 2);
        assert_eq!((packed.trees()[1].start(), packed.trees()[1].rows()), (2, 6));
    }
}
