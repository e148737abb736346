//! Tasks, the splits they belong to, and the seeds they are drawn from.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tallow_verifiers::{Message, Reference};

/// The root of a stream of random draws. Equal seeds give equal draws on every machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Seed(pub u64);

impl Seed {
    /// The seed of a stream within this one, named by what it is for, e.g. `[step, task, member]`.
    ///
    /// Each word is folded in by the finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast
    /// splittable pseudorandom number generators", variant 13 of Stafford), which changes about
    /// half the bits of the result for any bit of the input. For a fixed parent, words map one to
    /// one to children, so siblings never share a stream. `derive(&[a, b])` equals
    /// `derive(&[a]).derive(&[b])`.
    #[must_use]
    pub fn derive(&self, path: &[u64]) -> Self {
        /// 2^64 divided by the golden ratio, as in SplitMix64; keeps zero from being a fixed point.
        const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let fold = |state: u64, word: u64| {
            // The odd factor breaks the symmetry between parent and word.
            let parent = finalise(state.wrapping_add(GOLDEN_GAMMA)).wrapping_mul(3);
            finalise(parent.wrapping_add(finalise(word.wrapping_add(GOLDEN_GAMMA))))
        };
        Self(path.iter().fold(self.0, |state, &word| fold(state, word)))
    }

    /// The generator of this stream.
    pub fn rng(&self) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(self.0)
    }
}

/// SplitMix64's finaliser, a one-to-one map of 64 bits.
fn finalise(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Which part of an environment's tasks. No task is in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// To learn from.
    Train,
    /// To measure with.
    Test,
}

impl std::fmt::Display for Split {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Train => "train",
            Self::Test => "test",
        })
    }
}

/// Names a task within its environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub struct TaskId {
    /// Which split.
    pub split: Split,
    /// Which task of the split, from 0.
    pub index: u64,
}

impl std::fmt::Display for TaskId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.split, self.index)
    }
}

/// Something to be solved.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Task {
    /// Its name within the environment.
    pub id: TaskId,
    /// What the policy sees first.
    pub prompt: Vec<Message>,
    /// What a right solution must meet; the policy never sees it.
    pub reference: Reference,
    /// What the environment itself needs to write replies or run episodes; opaque to all others.
    pub notes: serde_json::Value,
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;

    #[test]
    fn derived_seeds_are_the_same_on_every_machine() {
        assert_eq!(Seed(1).derive(&[2, 3]), Seed(1).derive(&[2]).derive(&[3]));
        assert_eq!(Seed(7).derive(&[]), Seed(7));
        // Published runs name tasks by seed and index: these values may never change.
        assert_eq!(Seed(0).derive(&[0]).0, 12_451_480_314_370_733_454);
        assert_eq!(Seed(1).derive(&[2, 3]).rng().next_u64(), 17_695_026_140_521_039_480);
    }

    #[test]
    fn nearby_paths_share_no_stream() {
        let mut seen = std::collections::HashSet::new();
        for root in 0..16 {
            for first in 0..16 {
                for second in 0..16 {
                    assert!(seen.insert(Seed(root).derive(&[first, second])));
                }
            }
        }
    }

    #[test]
    fn one_flipped_bit_changes_about_half_the_bits() {
        let mut changed = 0;
        for bit in 0..64 {
            let (plain, flipped) = (Seed(5).derive(&[0]).0, Seed(5).derive(&[1 << bit]).0);
            changed += (plain ^ flipped).count_ones();
        }
        // 64 trials of 64 fair bits: mean 2048, standard deviation 32; five of them allowed.
        assert!((1888..=2208).contains(&changed), "{changed} of 4096 bits changed");
    }
}
