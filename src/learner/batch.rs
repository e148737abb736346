//! Sequences for training: ids, which of them are scored, and how they are cut into micro-batches.
//!
//! Nothing is padded. A micro-batch is sequences packed end to end; the scored tokens of all of them
//! form one flat row of targets, each predicted by the hidden state of the token before it.

use tallow_policies::TokenId;

/// One sequence and the positions in it that are scored.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    tokens: Vec<TokenId>,
    /// Ascending positions in `tokens`, none of them 0: nothing predicts the first token.
    scored: Vec<usize>,
}

impl Sequence {
    /// A sequence with the tokens marked in `is_scored` scored; a mark on the first is dropped.
    pub fn new(tokens: Vec<TokenId>, is_scored: &[bool]) -> Self {
        let scored = (1..tokens.len()).filter(|it| is_scored.get(*it) == Some(&true)).collect();
        Self { tokens, scored }
    }

    /// A sequence with scored positions inside the given stretches.
    pub fn with_stretches(
        tokens: Vec<TokenId>,
        stretches: impl Iterator<Item = std::ops::Range<usize>>,
    ) -> Self {
        let length = tokens.len();
        let scored = stretches.flatten().filter(|it| (1..length).contains(it)).collect();
        Self { tokens, scored }
    }

    /// Its ids.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Number of scored tokens.
    pub fn scored_tokens(&self) -> usize {
        self.scored.len()
    }

    /// Keeps the first `length` ids.
    pub fn truncate(&mut self, length: usize) {
        self.tokens.truncate(length);
        self.scored.retain(|it| *it < length);
    }
}

/// Sequences of one forward pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MicroBatch {
    /// All ids end to end.
    pub tokens: Vec<TokenId>,
    /// Length of each sequence.
    pub lengths: Vec<usize>,
    /// For each scored token, the row of the hidden state that predicts it.
    pub rows: Vec<u32>,
    /// The scored tokens.
    pub targets: Vec<TokenId>,
}

impl MicroBatch {
    /// Packs sequences end to end.
    ///
    /// The ids after a sequence's last scored token are left out: attention is causal, so nothing
    /// that is scored depends on them.
    pub fn pack<'a>(sequences: impl IntoIterator<Item = &'a Sequence>) -> Self {
        let mut batch = Self::default();
        for sequence in sequences {
            let Some(last) = sequence.scored.last() else { continue };
            let start = batch.tokens.len();
            batch.tokens.extend_from_slice(&sequence.tokens[..*last]);
            batch.lengths.push(*last);
            for position in &sequence.scored {
                batch.rows.push((start + position - 1) as u32);
                batch.targets.push(sequence.tokens[*position]);
            }
        }
        batch
    }
}

/// Cuts sequences, in order, into runs of at most `budget` tokens each (a longer sequence is a run
/// by itself); returns the runs as ranges.
pub fn token_budget_runs(lengths: &[usize], budget: usize) -> Vec<std::ops::Range<usize>> {
    let mut runs = Vec::new();
    let mut start = 0;
    let mut tokens = 0;
    for (index, length) in lengths.iter().enumerate() {
        if index > start && tokens + length > budget {
            runs.push(start..index);
            start = index;
            tokens = 0;
        }
        tokens += length;
    }
    if start < lengths.len() {
        runs.push(start..lengths.len());
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scored_tokens_are_predicted_by_the_row_before_them() {
        let first = Sequence::new(vec![5, 6, 7, 8], &[true, false, true, false]);
        let second = Sequence::with_stretches(vec![1, 2, 3], std::iter::once(1..3));
        let batch = MicroBatch::pack([&first, &second]);
        assert_eq!(batch.tokens, [5, 6, 1, 2]);
        assert_eq!(batch.lengths, [2, 2]);
        assert_eq!(batch.rows, [1, 2, 3]);
        assert_eq!(batch.targets, [7, 2, 3]);
    }

    #[test]
    fn runs_fill_the_budget_and_lose_nothing() {
        assert_eq!(token_budget_runs(&[3, 3, 3, 9, 1], 6), [0..2, 2..3, 3..4, 4..5]);
        assert!(token_budget_runs(&[], 6).is_empty());
        assert_eq!(token_budget_runs(&[7], 6), std::iter::once(0..1).collect::<Vec<_>>());
    }
}
