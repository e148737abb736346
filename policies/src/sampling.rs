//! What a sampling request asks for, what comes back, and the draw of one token.
//!
//! Log-probabilities are those of the distribution that was sampled from: softmax(logits / T),
//! truncated and renormalised if `top_k`, `top_p` or `min_p` say so. Greedy decoding (T = 0) is a
//! point mass, whose log-probability would always be 0; it reports the model's own at T = 1.

use std::ops::RangeInclusive;
use std::sync::Arc;

use multiversion::multiversion;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::TokenId;
use crate::ops::lanes::{exponentiate, max, sum};

/// Counts published weights; a token carries the version that sampled it.
pub type PolicyVersion = u64;

/// How to draw tokens and when to stop.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f64,
    /// Keeps the likeliest `top_k` tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the smallest set of likeliest tokens whose mass reaches this; 1 keeps all.
    pub top_p: f64,
    /// Keeps tokens at least this many times as likely as the likeliest; 0 keeps all.
    pub min_p: f64,
    /// Longest reply in tokens, the end token included.
    pub max_tokens: usize,
    /// No end token before this many tokens.
    pub min_tokens: usize,
    /// The reply ends where one of these texts appears; the text stays in the reply.
    pub stop: Vec<String>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            max_tokens: 256,
            min_tokens: 0,
            stop: Vec::new(),
        }
    }
}

impl SamplingParams {
    /// Whether every token keeps its probability. Where not, completions say how much was kept.
    pub fn keeps_full_support(&self) -> bool {
        self.keeps_tail() && self.min_tokens == 0
    }

    pub(crate) fn keeps_tail(&self) -> bool {
        self.top_k == 0 && self.top_p >= 1.0 && self.min_p <= 0.0
    }
}

/// One reply to sample.
#[derive(Clone, Debug)]
pub struct Request {
    /// Handed back with the completion, and the canonical order of a batch: the caller's choice,
    /// unique among the requests in flight.
    pub id: u64,
    /// Ids the reply continues; at least one. Requests with equal prompts share its computation.
    pub prompt: Arc<[TokenId]>,
    /// How to draw.
    pub params: Arc<SamplingParams>,
    /// Seeds this reply's stream; nothing else that happens in the batch draws from it.
    pub seed: u64,
}

/// Why a reply ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end token or a stop text.
    Stop,
    /// `max_tokens`, or the end of the model's context.
    Length,
}

/// One sampled reply.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Sampled ids, the end token included.
    pub tokens: Vec<TokenId>,
    /// log p(token | prefix) in nats under the sampling distribution; one per token.
    pub logprobs: Vec<f32>,
    /// Share of the full distribution that truncation and `min_tokens` kept, one per token: adding
    /// its logarithm to the log-probability gives that under softmax(logits / T). Empty where all
    /// was kept.
    pub kept_masses: Vec<f32>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Oldest and newest policy version that produced a token.
    pub versions: RangeInclusive<PolicyVersion>,
}

/// A drawn token and its log-probability in nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// The id drawn.
    pub token: TokenId,
    /// Its log-probability, see the file's header.
    pub logprob: f32,
    /// Share of the full distribution that could be drawn; 1 if nothing was cut or forbidden.
    pub kept_mass: f32,
}

/// Draws one token from `logits`, which it overwrites. Ids in `forbidden` cannot be drawn.
///
/// Uses exactly one uniform number of `stream` (none when greedy), so that a reply's draws depend
/// on its seed and length alone.
pub fn draw(
    logits: &mut [f32],
    params: &SamplingParams,
    forbidden: &[TokenId],
    stream: &mut ChaCha8Rng,
) -> Draw {
    let mut masked = Vec::with_capacity(forbidden.len());
    for id in forbidden {
        if let Some(logit) = logits.get_mut(*id as usize) {
            masked.push(std::mem::replace(logit, f32::NEG_INFINITY));
        }
    }
    if params.temperature <= 0.0 {
        let (token, best) = likeliest(logits);
        let total: f64 = logits.iter().map(|it| f64::from(it - best).exp()).sum();
        return Draw { token, logprob: -total.ln() as f32, kept_mass: 1.0 };
    }
    let scale = (1.0 / params.temperature) as f32;
    let uniform: f64 = stream.random();
    if params.temperature != 1.0 {
        logits.iter_mut().for_each(|logit| *logit *= scale);
    }
    let mut drawn = if params.keeps_tail() {
        draw_full(logits, uniform)
    } else {
        draw_truncated(logits, params, uniform)
    };
    // ln Σ exp over what was allowed; what was not weighs this much beside it.
    let logit = logits[drawn.token as usize];
    let log_sum = logit - (drawn.logprob + drawn.kept_mass.ln());
    let rest: f32 = masked.iter().map(|it| (it * scale - log_sum).exp()).sum();
    drawn.kept_mass /= 1.0 + rest;
    drawn
}

/// Draws from softmax(logits). The log-probability is summed as the learner sums it (see
/// `ops::token_logprobs`), so that the two agree to the bit.
fn draw_full(logits: &[f32], uniform: f64) -> Draw {
    /// Weights added up at once before looking closer.
    const STRETCH: usize = 64;
    let mut weights = logits.to_vec();
    let (largest, log_sum) = exponentials(&mut weights);
    let masses: Vec<f64> = weights.chunks(STRETCH).map(|it| f64::from(sum(it))).collect();
    let mut left = uniform * masses.iter().sum::<f64>();
    let mut stretch = 0;
    while stretch + 1 < masses.len() && left >= masses[stretch] {
        left -= masses[stretch];
        stretch += 1;
    }
    let first = stretch * STRETCH;
    let mut chosen = None;
    for (offset, weight) in weights[first..].iter().take(STRETCH).enumerate() {
        // A forbidden token weighs next to nothing, but must not be drawn.
        if logits[first + offset] > f32::NEG_INFINITY {
            chosen = Some(first + offset);
            left -= f64::from(*weight);
            if left < 0.0 {
                break;
            }
        }
    }
    // A stretch of forbidden tokens has some weight left by rounding up to the smallest number.
    let id = chosen.unwrap_or_else(|| likeliest(logits).0 as usize);
    Draw { token: id as TokenId, logprob: logits[id] - largest - log_sum, kept_mass: 1.0 }
}

/// Replaces logits z by exp(z - max); gives the max and ln Σ exp(z - max).
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn exponentials(logits: &mut [f32]) -> (f32, f32) {
    let largest = max(logits);
    (largest, exponentiate(logits, largest).ln())
}

fn draw_truncated(logits: &[f32], params: &SamplingParams, uniform: f64) -> Draw {
    let (_, best) = likeliest(logits);
    let mut weights: Vec<(TokenId, f64)> = logits
        .iter()
        .enumerate()
        .map(|(id, it)| (id as TokenId, f64::from((it - best).exp())))
        .filter(|(_, weight)| *weight > 0.0)
        .collect();
    let whole: f64 = weights.iter().map(|it| it.1).sum();
    // Ties are broken by id, so that the kept set never depends on the sort's whims.
    weights.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if params.top_k > 0 {
        weights.truncate(params.top_k);
    }
    if params.min_p > 0.0 {
        let floor = params.min_p * weights[0].1;
        weights.retain(|(_, weight)| *weight >= floor);
    }
    if params.top_p < 1.0 {
        let total: f64 = weights.iter().map(|it| it.1).sum();
        let mut mass = 0.0;
        let mut kept = 0;
        for (_, weight) in &weights {
            kept += 1;
            mass += weight;
            if mass >= params.top_p * total {
                break;
            }
        }
        weights.truncate(kept);
    }
    let total: f64 = weights.iter().map(|it| it.1).sum();
    let threshold = uniform * total;
    let mut cumulative = 0.0;
    let mut chosen = weights[weights.len() - 1];
    for entry in &weights {
        cumulative += entry.1;
        if cumulative > threshold {
            chosen = *entry;
            break;
        }
    }
    let logprob = (chosen.1.ln() - total.ln()) as f32;
    Draw { token: chosen.0, logprob, kept_mass: (total / whole) as f32 }
}

fn likeliest(logits: &[f32]) -> (TokenId, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, logit) in logits.iter().enumerate() {
        if *logit > best.1 {
            best = (id as TokenId, *logit);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    const LOGITS: [f32; 4] = [0.0, 1.0, 2.0, -1.0];

    fn frequencies(params: &SamplingParams) -> ([f64; 4], Vec<Draw>) {
        let mut counts = [0.0; 4];
        let mut stream = ChaCha8Rng::seed_from_u64(7);
        let draws: Vec<Draw> =
            (0..20_000).map(|_| draw(&mut LOGITS.clone(), params, &[], &mut stream)).collect();
        for it in &draws {
            counts[it.token as usize] += 1.0 / draws.len() as f64;
        }
        (counts, draws)
    }

    #[test]
    fn frequencies_match_the_reported_log_probabilities() {
        let table = [
            SamplingParams::default(),
            SamplingParams { temperature: 0.5, ..Default::default() },
            SamplingParams { top_k: 2, ..Default::default() },
            SamplingParams { top_p: 0.8, ..Default::default() },
            SamplingParams { min_p: 0.2, ..Default::default() },
        ];
        for params in table {
            let (frequency, draws) = frequencies(&params);
            for it in draws {
                let probability = f64::from(it.logprob).exp();
                let seen = frequency[it.token as usize];
                // Three standard deviations of 20,000 draws are at most 0.011.
                assert!((probability - seen).abs() < 0.012, "{params:?} {it:?} seen {seen}");
            }
        }
    }

    /// The log-probability under the whole distribution is the drawn one's and the kept mass's.
    #[test]
    fn kept_masses_lead_back_to_the_whole_distribution() {
        let truncated = SamplingParams { top_k: 3, temperature: 0.7, ..Default::default() };
        let table = [
            (SamplingParams { top_k: 2, ..Default::default() }, vec![]),
            (SamplingParams { top_p: 0.7, temperature: 1.5, ..Default::default() }, vec![]),
            (SamplingParams { min_p: 0.2, ..Default::default() }, vec![]),
            (SamplingParams::default(), vec![2]),
            (truncated, vec![1, 3]),
        ];
        let mut stream = ChaCha8Rng::seed_from_u64(3);
        for (params, forbidden) in table {
            let weights = LOGITS.map(|it| (f64::from(it) / params.temperature).exp());
            let total: f64 = weights.iter().sum();
            for _ in 0..20 {
                let drawn = draw(&mut LOGITS.clone(), &params, &forbidden, &mut stream);
                let whole = (weights[drawn.token as usize] / total).ln();
                let found = f64::from(drawn.logprob) + f64::from(drawn.kept_mass).ln();
                assert!((found - whole).abs() < 1e-6, "{params:?} {drawn:?} {whole}");
                assert!(drawn.kept_mass < 1.0);
            }
        }
    }

    #[test]
    fn truncation_keeps_what_it_says() {
        let kept =
            |params: SamplingParams| frequencies(&params).0.iter().filter(|it| **it > 0.0).count();
        assert_eq!(kept(SamplingParams { top_k: 2, ..Default::default() }), 2);
        // exp(2) / total = 0.64, exp(1) / total = 0.24
        assert_eq!(kept(SamplingParams { top_p: 0.6, ..Default::default() }), 1);
        assert_eq!(kept(SamplingParams { top_p: 0.7, ..Default::default() }), 2);
        assert_eq!(kept(SamplingParams { min_p: 0.3, ..Default::default() }), 2);
    }

    #[test]
    fn greedy_takes_the_likeliest_and_forbidden_ids_are_never_drawn() {
        let params = SamplingParams { temperature: 0.0, ..Default::default() };
        let mut stream = ChaCha8Rng::seed_from_u64(1);
        assert_eq!(draw(&mut LOGITS.clone(), &params, &[], &mut stream).token, 2);
        assert_eq!(draw(&mut LOGITS.clone(), &params, &[2], &mut stream).token, 1);
    }
}
