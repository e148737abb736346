//! A reward model being trained on pairs (Ouyang et al. 2022, arXiv:2203.02155, eq. 1), and how texts
//! are scored by one.
//!
//! The score of a text is the value at its last token that is not the filler, where transformers reads
//! it too. What the texts of a group have in common is computed once; each gets the score it would get
//! alone, bit for bit.

use std::ops::Range;
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use tallow_envs::Seed;
use tallow_policies::{
    AdamW, Decoder, GradientSet, HeadInit, Keep, PackedSequences, Pass, ScalarModel, TokenId,
};

use super::batch::{SequencePair, SharedPrompts};
use super::{OPTIMIZER_FILE, OptimizerConfig, diverged};
use crate::algorithms::terms::preference::BradleyTerry;
use crate::algorithms::terms::surrogate::values as numbers;
use crate::error::Error;
use crate::tracking::Metrics;

/// Tag of the seed stream that draws the head.
const HEAD_STREAM: u64 = 0x7265_7761;

/// A reward model, its optimizer, and how many steps it has taken.
pub struct RewardLearner {
    model: ScalarModel,
    loss: BradleyTerry,
    optimizer: AdamW,
    config: OptimizerConfig,
    pass: Pass,
    gradients: GradientSet,
    /// Steps the schedule spans.
    total_steps: u64,
    steps: u64,
}

/// What is thought of both sides of a pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairScores {
    /// Score of the preferred one.
    pub chosen: f64,
    /// Score of the other.
    pub rejected: f64,
    /// The pair's loss, nats.
    pub loss: f64,
}

impl RewardLearner {
    /// A learner whose model is a copy of the policy's weights below a fresh head.
    ///
    /// # Errors
    /// If the weights cannot be copied.
    pub fn new(
        policy: &Decoder,
        loss: BradleyTerry,
        config: OptimizerConfig,
        total_steps: u64,
        seed: Seed,
    ) -> Result<Self, Error> {
        let drawn = seed.derive(&[HEAD_STREAM]).0;
        let keep = if config.recompute_activations { Keep::Inputs } else { Keep::Activations };
        Ok(Self {
            model: ScalarModel::from_decoder(policy, HeadInit::Scaled, drawn)?,
            loss,
            optimizer: AdamW::new(config.adamw.clone()),
            config,
            pass: Pass::new(keep),
            gradients: GradientSet::new(),
            total_steps,
            steps: 0,
        })
    }

    /// Takes the model, leaving the optimizer behind.
    pub fn into_model(self) -> ScalarModel {
        self.model
    }

    /// One optimizer step: mean loss over the pairs.
    ///
    /// # Errors
    /// If the model fails or a gradient is not finite (the weights are then unchanged).
    pub fn step(&mut self, pairs: &[&SequencePair]) -> Result<Metrics, Error> {
        let total = pairs.len().max(1) as f64;
        let mut metrics = Metrics::new();
        self.gradients.reset();
        for run in runs(pairs, self.config.micro_batch_tokens) {
            let part = &pairs[run];
            let batch = ScoredTexts::of_pairs(&self.model, part, self.config.sharing());
            let values = self.model.values(&mut self.pass, &batch.sequences, &batch.rows)?;
            let wide: Vec<f64> = values.iter().map(|it| f64::from(*it)).collect();
            let values = Var::new(wide.clone(), &Device::Cpu)?;
            let losses = self.losses(&values, part)?;
            let scalar = (losses.sum_all()? / total)?;
            metrics.add("train/loss_nats", scalar.to_scalar::<f64>()?);
            for pair in wide.chunks_exact(2) {
                metrics.add("train/accuracy", share_right(pair[0], pair[1]) / total);
                metrics.add("train/margin", (pair[0] - pair[1]) / total);
            }
            let slopes: Vec<f32> = match scalar.backward()?.get(&values) {
                Some(slopes) => numbers(slopes)?.into_iter().map(|it| it as f32).collect(),
                None => return Err(Error::Diverged("the loss has no gradient".into())),
            };
            self.model.backward(&mut self.pass, &slopes, &mut self.gradients)?;
        }
        let rate =
            self.config.learning_rate * self.config.schedule.factor(self.steps, self.total_steps);
        let stepped = self.model.step(&mut self.optimizer, &self.gradients, rate);
        let report = stepped.map_err(diverged)?;
        if !report.update_norm.is_finite() {
            let told = format!("a step of {} on the weights is no number", report.update_norm);
            return Err(Error::Diverged(told));
        }
        self.steps += 1;
        metrics.set("learner/grad_norm", report.grad_norm);
        metrics.set("learner/learning_rate", rate);
        Ok(metrics)
    }

    /// Scores and losses of pairs, without learning.
    ///
    /// # Errors
    /// If the model fails.
    pub fn scores(&self, pairs: &[SequencePair]) -> Result<Vec<PairScores>, Error> {
        let pairs: Vec<&SequencePair> = pairs.iter().collect();
        let mut scores = Vec::with_capacity(pairs.len());
        let mut pass = Pass::new(Keep::Nothing);
        for run in runs(&pairs, self.config.micro_batch_tokens) {
            let part = &pairs[run];
            let batch = ScoredTexts::of_pairs(&self.model, part, SharedPrompts::Once);
            let values = self.model.values(&mut pass, &batch.sequences, &batch.rows)?;
            let wide: Vec<f64> = values.iter().map(|it| f64::from(*it)).collect();
            let values = Var::new(wide.clone(), &Device::Cpu)?;
            let losses = numbers(&self.losses(&values, part)?)?;
            scores.extend(wide.chunks_exact(2).zip(losses).map(|(pair, loss)| PairScores {
                chosen: pair[0],
                rejected: pair[1],
                loss,
            }));
        }
        Ok(scores)
    }

    /// Loss of each pair from the values of both sides, one after the other.
    fn losses(&self, values: &Var, pairs: &[&SequencePair]) -> Result<Tensor, Error> {
        let sides = values.reshape((pairs.len(), 2))?;
        let side = |index: usize| sides.narrow(1, index, 1)?.squeeze(1);
        let margins: Vec<f64> = pairs.iter().map(|it| it.margin).collect();
        let margins = Tensor::new(margins, &Device::Cpu)?;
        Ok(self.loss.losses(&side(0)?, &side(1)?, Some(&margins))?)
    }

    /// Writes the model and the optimizer's state into `folder`, which exists.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        self.model.save_folder(folder)?;
        Ok(self.optimizer.save(&folder.join(OPTIMIZER_FILE))?)
    }

    /// Goes on from what [`save`](Self::save) wrote, after `steps` steps.
    ///
    /// # Errors
    /// If a file cannot be read or belongs to another model.
    pub fn restore(&mut self, folder: &Path, steps: u64) -> Result<(), Error> {
        self.model.copy_from(&ScalarModel::from_folder(folder)?)?;
        self.optimizer = AdamW::load(self.config.adamw.clone(), &folder.join(OPTIMIZER_FILE))?;
        self.steps = steps;
        Ok(())
    }
}

/// 1 where the preferred one scores higher, a half where both score the same.
pub fn share_right(chosen: f64, rejected: f64) -> f64 {
    if chosen == rejected { 0.5 } else { f64::from(u8::from(chosen > rejected)) }
}

/// The score of each text of a group, in order. Packs of more than `budget` tokens are cut between
/// texts.
///
/// # Errors
/// If a text is empty or has an id that is outside the vocabulary, or the model fails.
pub fn scores(
    model: &ScalarModel,
    texts: &[Vec<TokenId>],
    budget: usize,
) -> Result<Vec<f32>, Error> {
    let mut scores = Vec::with_capacity(texts.len());
    let mut pass = Pass::new(Keep::Nothing);
    let mut rest = texts;
    while !rest.is_empty() {
        let fitting = (1..=rest.len())
            .take_while(|count| *count == 1 || rows_of(&rest[..*count]) <= budget)
            .last()
            .unwrap_or(1);
        let (now, later) = rest.split_at(fitting);
        let mut batch = ScoredTexts::default();
        batch.push(model, now, SharedPrompts::Once);
        scores.extend(model.values(&mut pass, &batch.sequences, &batch.rows)?);
        rest = later;
    }
    Ok(scores)
}

/// Texts packed for one pass, and the row in which each has its score.
#[derive(Default)]
struct ScoredTexts {
    sequences: PackedSequences,
    rows: Vec<u32>,
}

impl ScoredTexts {
    /// Both sides of each pair, the preferred one first.
    fn of_pairs(model: &ScalarModel, pairs: &[&SequencePair], sharing: SharedPrompts) -> Self {
        let mut batch = Self::default();
        for pair in pairs {
            batch.push(model, &[pair.chosen.tokens(), pair.rejected.tokens()], sharing);
        }
        batch
    }

    fn push(
        &mut self,
        model: &ScalarModel,
        texts: &[impl AsRef<[TokenId]>],
        sharing: SharedPrompts,
    ) {
        if sharing == SharedPrompts::Copied && texts.len() > 1 {
            for text in texts {
                self.push(model, &[text.as_ref()], sharing);
            }
            return;
        }
        let shared = shared_length(texts);
        let Some(first) = texts.first() else { return };
        // Without a common beginning there is nothing to share: each stands for itself.
        if shared == 0 {
            if texts.len() > 1 {
                for text in texts {
                    self.push(model, &[text.as_ref()], sharing);
                }
            }
            return;
        }
        let replies: Vec<&[TokenId]> = texts.iter().map(|it| &it.as_ref()[shared..]).collect();
        let (prompt, starts) = self.sequences.push(&first.as_ref()[..shared], &replies);
        for (text, start) in texts.iter().zip(starts) {
            let position = model.pooled_position(text.as_ref());
            let row = match position.checked_sub(shared) {
                Some(of_reply) => start + of_reply,
                None => prompt + position,
            };
            self.rows.push(row as u32);
        }
    }
}

/// How many ids all texts begin with.
fn shared_length(texts: &[impl AsRef<[TokenId]>]) -> usize {
    let Some((first, others)) = texts.split_first() else { return 0 };
    let alike =
        |other: &[TokenId]| first.as_ref().iter().zip(other).take_while(|it| it.0 == it.1).count();
    others.iter().map(|it| alike(it.as_ref())).min().unwrap_or(first.as_ref().len())
}

/// Rows that texts of one group take.
fn rows_of(texts: &[impl AsRef<[TokenId]>]) -> usize {
    let shared = shared_length(texts);
    shared + texts.iter().map(|it| it.as_ref().len() - shared).sum::<usize>()
}

/// Pairs that are computed together: as many as the budget of tokens allows, at least one.
fn runs(pairs: &[&SequencePair], budget: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (index, pair) in pairs.iter().enumerate() {
        let rows = rows_of(&[pair.chosen.tokens(), pair.rejected.tokens()]);
        match runs.last_mut() {
            Some(last) if tokens + rows <= budget => {
                last.end = index + 1;
                tokens += rows;
            }
            _ => {
                runs.push(index..index + 1);
                tokens = rows;
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use tallow_policies::{InitOptions, ModelConfig, Sizes};

    use super::*;
    use crate::learner::batch::Sequence;

    fn policy() -> Decoder {
        let sizes = Sizes {
            vocab: 16,
            hidden: 16,
            intermediate: 24,
            layers: 2,
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
        };
        let mut config = ModelConfig::of_family("llama", &sizes).expect("a family");
        config.name_special_tokens(1, Some(0));
        Decoder::new(config, &InitOptions::default(), 3).expect("a model")
    }

    fn pair(prompt: &[TokenId], chosen: &[TokenId], rejected: &[TokenId]) -> SequencePair {
        let side = |reply: &[TokenId]| {
            let tokens = [prompt, reply].concat();
            let length = tokens.len();
            Sequence::with_stretches(tokens, std::iter::once(prompt.len()..length))
        };
        SequencePair { chosen: side(chosen), rejected: side(rejected), margin: 0.0 }
    }

    fn learner(budget: usize, shared: bool) -> RewardLearner {
        let config = OptimizerConfig {
            micro_batch_tokens: budget,
            share_prompts: shared,
            ..OptimizerConfig::default()
        };
        let loss = BradleyTerry { label_smoothing: 0.0, centering: 0.01 };
        RewardLearner::new(&policy(), loss, config, 10, Seed(1)).expect("a learner")
    }

    #[test]
    fn texts_of_a_group_score_what_each_scores_alone() {
        let model = learner(64, true).into_model();
        let texts = vec![vec![2, 3, 4, 5, 1], vec![2, 3, 4, 1], vec![2, 3], vec![2, 3, 9, 0, 0]];
        let together = scores(&model, &texts, 64).expect("scored");
        let apart = scores(&model, &texts, 1).expect("scored");
        assert_eq!(together, apart);
        for (text, score) in texts.iter().zip(&together) {
            let row = model.pooled_position(text) as u32;
            let packed = PackedSequences::of_lengths(text, &[text.len()]);
            let value = model.values(&mut Pass::new(Keep::Nothing), &packed, &[row]);
            assert_eq!(value.expect("scored"), [*score]);
        }
        let strangers = vec![vec![2, 3], vec![4, 5]];
        assert_eq!(
            scores(&model, &strangers, 64).expect("scored"),
            scores(&model, &strangers, 1).expect("scored")
        );
    }

    #[test]
    fn a_step_is_the_same_however_it_is_cut() {
        let pairs = [
            pair(&[2, 3, 4], &[5, 1], &[6, 7, 1]),
            pair(&[8, 3], &[5, 1], &[1]),
            pair(&[], &[9, 1], &[10, 11]),
        ];
        let pairs: Vec<&SequencePair> = pairs.iter().collect();
        let stepped = |budget, shared| {
            let mut learner = learner(budget, shared);
            let metrics = learner.step(&pairs).expect("a step");
            (metrics.value("train/loss_nats").expect("a loss"), metrics)
        };
        let (whole, metrics) = stepped(64, true);
        for (budget, shared) in [(1, true), (64, false), (1, false)] {
            let (loss, cut) = stepped(budget, shared);
            assert!((loss - whole).abs() < 1e-12, "{loss} {whole}");
            let norm = |it: &Metrics| it.value("learner/grad_norm").expect("a norm");
            assert!((norm(&cut) / norm(&metrics) - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn pairs_are_learned() {
        let pairs = [pair(&[2, 3], &[5, 1], &[6, 1]), pair(&[4, 3], &[5, 1], &[6, 1])];
        let borrowed: Vec<&SequencePair> = pairs.iter().collect();
        let mut learner = learner(64, true);
        for _ in 0..10 {
            learner.step(&borrowed).expect("a step");
        }
        for scores in learner.scores(&pairs).expect("scored") {
            assert!(scores.chosen > scores.rejected + 1.0, "{scores:?}");
        }
    }
}
