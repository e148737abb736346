//! Sequences for training: ids, which of them are scored, and how they are cut into micro-batches.
//!
//! Nothing is padded. A micro-batch is sequences packed end to end, a prompt that siblings share only
//! once; the scored tokens of all of them form one flat row of targets, each predicted by the hidden
//! state of the token before it.

use tallow_policies::{PackedSequences, TokenId};

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

/// Two sequences that begin alike, of which one is preferred.
#[derive(Clone, Debug, PartialEq)]
pub struct SequencePair {
    /// The preferred one; its reply is scored.
    pub chosen: Sequence,
    /// The other; its reply is scored.
    pub rejected: Sequence,
    /// By how much it is preferred, in the units of a reward model's scores; 0 where nobody said.
    pub margin: f64,
}

impl SequencePair {
    /// Ids of the longer one.
    pub fn longest(&self) -> usize {
        self.chosen.tokens().len().max(self.rejected.tokens().len())
    }
}

/// Sequences of one forward pass.
#[derive(Clone, Debug, Default)]
pub struct MicroBatch {
    /// The sequences; a prompt that neighbours share stands there once.
    pub sequences: PackedSequences,
    /// For each scored token, in the order of the sequences, the row that predicts it.
    pub rows: Vec<u32>,
    /// The scored tokens.
    pub targets: Vec<TokenId>,
}

/// Whether sequences beside each other that begin alike are computed with one copy of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedPrompts {
    /// One copy: the same update for less work.
    Once,
    /// A copy for each.
    Copied,
}

/// The ids a sequence needs computed: up to its last scored token, which nothing scored follows.
/// Split where its first scored token stands: what comes before is its prompt.
fn split(sequence: &Sequence) -> Option<(&[TokenId], &[TokenId])> {
    let (first, last) = (*sequence.scored.first()?, *sequence.scored.last()?);
    Some((&sequence.tokens[..first], &sequence.tokens[first..last]))
}

impl MicroBatch {
    /// Packs sequences end to end.
    pub fn pack<'a>(
        sequences: impl IntoIterator<Item = &'a Sequence>,
        sharing: SharedPrompts,
    ) -> Self {
        let sequences: Vec<&Sequence> = sequences.into_iter().collect();
        let mut batch = Self::default();
        let alike = |one: &&Sequence, other: &&Sequence| {
            sharing == SharedPrompts::Once
                && matches!((split(one), split(other)), (Some(a), Some(b)) if a.0 == b.0)
        };
        for siblings in sequences.chunk_by(alike) {
            let parts: Vec<_> = siblings.iter().filter_map(|it| split(it)).collect();
            let Some((prompt, _)) = parts.first() else { continue };
            let replies: Vec<&[TokenId]> = parts.iter().map(|(_, reply)| *reply).collect();
            let (prompt_start, starts) = batch.sequences.push(prompt, &replies);
            for (sequence, start) in siblings.iter().zip(starts) {
                for position in &sequence.scored {
                    // The first is predicted by the prompt's last row, the others by a reply's.
                    let row = match (position - 1).checked_sub(prompt.len()) {
                        Some(of_reply) => start + of_reply,
                        None => prompt_start + position - 1,
                    };
                    batch.rows.push(row as u32);
                    batch.targets.push(sequence.tokens[*position]);
                }
            }
        }
        batch
    }
}

/// Cuts sequences, in order, into runs whose computed tokens stay within `budget` (a longer
/// sequence is a run by itself); returns the runs as ranges.
pub fn token_budget_runs<'a>(
    sequences: impl IntoIterator<Item = &'a Sequence>,
    budget: usize,
    sharing: SharedPrompts,
) -> Vec<std::ops::Range<usize>> {
    let mut runs = Vec::new();
    let (mut start, mut tokens, mut count) = (0, 0, 0);
    let mut before: Option<&[TokenId]> = None;
    for (index, sequence) in sequences.into_iter().enumerate() {
        count = index + 1;
        let (prompt, reply) = split(sequence).unwrap_or_default();
        let shared = sharing == SharedPrompts::Once && index > start && before == Some(prompt);
        let added = reply.len() + if shared { 0 } else { prompt.len() };
        if index > start && tokens + added > budget {
            runs.push(start..index);
            (start, tokens) = (index, prompt.len() + reply.len());
        } else {
            tokens += added;
        }
        before = Some(prompt);
    }
    if start < count {
        runs.push(start..count);
    }
    runs
}

/// The same for sequences of which each `bundle` neighbours stay together.
pub fn bundled_runs(
    sequences: &[&Sequence],
    bundle: usize,
    budget: usize,
    sharing: SharedPrompts,
) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for start in (0..sequences.len()).step_by(bundle) {
        let end = (start + bundle).min(sequences.len());
        let longer = runs.last().map_or(start, |it| it.start)..end;
        let fits = token_budget_runs(sequences[longer.clone()].iter().copied(), budget, sharing);
        match runs.last_mut() {
            Some(last) if fits.len() == 1 => *last = longer,
            _ => runs.push(start..end),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(tokens: &[TokenId], scored: std::ops::Range<usize>) -> Sequence {
        Sequence::with_stretches(tokens.to_vec(), std::iter::once(scored))
    }

    #[test]
    fn scored_tokens_are_predicted_by_the_row_before_them() {
        let first = Sequence::new(vec![5, 6, 7, 8], &[true, false, true, false]);
        let second = sequence(&[1, 2, 3], 1..3);
        for sharing in [SharedPrompts::Once, SharedPrompts::Copied] {
            let batch = MicroBatch::pack([&first, &second], sharing);
            assert_eq!(batch.sequences.tokens(), [5, 6, 1, 2]);
            assert_eq!(batch.rows, [1, 2, 3]);
            assert_eq!(batch.targets, [7, 2, 3]);
        }
    }

    #[test]
    fn a_shared_prompt_stands_there_once() {
        let siblings = [sequence(&[1, 2, 3, 4], 2..4), sequence(&[1, 2, 5, 6, 7], 2..5)];
        let other = sequence(&[1, 9, 8], 2..3);
        let batch = MicroBatch::pack(siblings.iter().chain([&other]), SharedPrompts::Once);
        assert_eq!(batch.sequences.tokens(), [1, 2, 3, 5, 6, 1, 9]);
        assert_eq!(batch.rows, [1, 2, 1, 3, 4, 6]);
        assert_eq!(batch.targets, [3, 4, 5, 6, 7, 8]);
        let copied = MicroBatch::pack(&siblings, SharedPrompts::Copied);
        assert_eq!(copied.sequences.tokens(), [1, 2, 3, 1, 2, 5, 6]);
        assert_eq!(copied.rows, [1, 2, 4, 5, 6]);
    }

    #[test]
    fn pairs_stay_together() {
        let sequences: Vec<Sequence> = (0..6).map(|it| sequence(&[it; 5], 1..5)).collect();
        let sequences: Vec<&Sequence> = sequences.iter().collect();
        let runs = |budget| bundled_runs(&sequences, 2, budget, SharedPrompts::Once);
        assert_eq!(runs(4), [0..2, 2..4, 4..6]);
        assert_eq!(runs(16), [0..4, 4..6]);
        assert_eq!(runs(100).len(), 1);
    }

    #[test]
    fn runs_fill_the_budget_and_lose_nothing() {
        // Computed tokens: one fewer than there are, because the last is only a target.
        let sequences: Vec<Sequence> = [4, 4, 4, 10, 2]
            .iter()
            .enumerate()
            .map(|(index, length)| sequence(&vec![index as u32; *length], 1..*length))
            .collect();
        let runs = |budget, sharing| token_budget_runs(&sequences, budget, sharing);
        assert_eq!(runs(6, SharedPrompts::Once), [0..2, 2..3, 3..4, 4..5]);
        assert!(token_budget_runs(&[], 6, SharedPrompts::Once).is_empty());
        let siblings = [sequence(&[1; 9], 7..9), sequence(&[1; 9], 7..9)];
        assert_eq!(token_budget_runs(&siblings, 9, SharedPrompts::Once).len(), 1);
        assert_eq!(token_budget_runs(&siblings, 9, SharedPrompts::Copied).len(), 2);
    }
}
