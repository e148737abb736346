//! How attention's rows are cut into tiles for `kernels/attention.cu`.

use super::kernels::TILE;
use crate::packed::PackedSequences;

/// Tiles of query rows within packed sequences: five words each.
pub(crate) fn query_tiles(sequences: &PackedSequences, group: usize) -> Vec<u32> {
    let mut words = Vec::new();
    for tree in sequences.trees() {
        for segment in tree.segments() {
            let prompt = if segment.position == 0 { 0 } else { tree.start() };
            push_tiles(&mut words, segment.start, segment.length * group, prompt, segment.position);
        }
    }
    words
}

/// Tiles of the query rows of one segment; the last two words say where its keys are.
pub(crate) fn push_tiles(
    words: &mut Vec<u32>,
    row: usize,
    rows: usize,
    keys: usize,
    more_keys: usize,
) {
    for first in (0..rows).step_by(TILE) {
        let count = TILE.min(rows - first);
        words.extend([row, first, count, keys, more_keys].map(|it| it as u32));
    }
}

/// Tiles of keys within packed sequences and where the rows end that see them: three words each.
pub(crate) fn key_tiles(sequences: &PackedSequences) -> Vec<u32> {
    let mut words = Vec::new();
    for tree in sequences.trees() {
        for segment in tree.segments() {
            let own_end = segment.start + segment.length;
            let end = if segment.position == 0 { tree.start() + tree.rows() } else { own_end };
            for first in (segment.start..own_end).step_by(TILE) {
                words.extend([first, TILE.min(own_end - first), end].map(|it| it as u32));
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_prompts_and_replies() {
        let mut sequences = PackedSequences::default();
        sequences.push(&[7; 33], &[&[1; 2], &[2; 40]]);
        let tiles = query_tiles(&sequences, 2);
        let expected = [
            [0, 0, 32, 0, 0],
            [0, 32, 32, 0, 0],
            [0, 64, 2, 0, 0],
            [33, 0, 4, 0, 33],
            [35, 0, 32, 0, 33],
            [35, 32, 32, 0, 33],
            [35, 64, 16, 0, 33],
        ];
        assert_eq!(tiles, expected.concat());
        let expected = [[0, 32, 75], [32, 1, 75], [33, 2, 35], [35, 32, 75], [67, 8, 75]];
        assert_eq!(key_tiles(&sequences), expected.concat());
    }
}
