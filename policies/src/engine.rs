//! The sampling engine: many replies at once over one cache, refilled as replies end.
//!
//! Each [`step`](Engine::step) admits waiting requests into free slots, runs the decoder once over
//! every live reply (a piece of a prompt, or one token) and draws a token for each whose text so
//! far is computed. A prompt that several requests share is computed once; its blocks of the cache
//! are shared until a reply writes to one.
//!
//! Where the cache is bounded and full, the reply admitted last gives up its blocks and waits; its
//! tokens are kept and computed again when there is room. A reply's bits depend on its prompt, its
//! seed and the weights alone: neither on its neighbours, nor on how often it had to wait.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::TokenId;
use crate::decoder::{CacheSpan, Decoder};
use crate::error::PolicyError;
use crate::gpu::inference::RowDraw;
use crate::inference::{Hidden, Inference};
use crate::kv_cache::KvCache;
use crate::sampling::{Completion, Draw, FinishReason, PolicyVersion, Request, draw};
use crate::tokenizer::Tokenizer;

/// Prompt tokens that one step may compute, so that a burst of long prompts takes bounded memory
/// and holds up the replies beside it for a bounded time.
const PREFILL_TOKENS: usize = 2048;

/// Samples replies from one decoder.
pub struct Engine {
    decoder: Decoder,
    version: PolicyVersion,
    tokenizer: Arc<Tokenizer>,
    /// The weights laid out for sampling: made for the first step, gone when nothing is live, so
    /// that a learner that takes turns with the engine has the memory.
    inference: Option<Inference>,
    cache: KvCache,
    /// `slots[i]` is the reply that cache slot `i` holds.
    slots: Vec<Option<Live>>,
    waiting: VecDeque<Live>,
    /// Finished by a request that could not run at all (a prompt that fills the context).
    refused: Vec<(u64, Completion)>,
    admissions: u64,
    sampled_tokens: u64,
    preemptions: u64,
}

/// A reply being sampled, or waiting to be.
struct Live {
    request: Request,
    stream: ChaCha8Rng,
    tokens: Vec<TokenId>,
    logprobs: Vec<f32>,
    kept_masses: Vec<f32>,
    /// Version of the first drawn token.
    first_version: Option<PolicyVersion>,
    /// Version the prompt in the cache was computed with.
    prompt_version: PolicyVersion,
    /// Orders replies by their last admission: the newest gives way first.
    admission: u64,
    /// Longest this reply may become: `max_tokens` or what the context leaves.
    limit: usize,
}

impl Live {
    /// The prompt and what was drawn.
    fn text(&self) -> impl Iterator<Item = TokenId> {
        self.request.prompt.iter().chain(&self.tokens).copied()
    }

    fn length(&self) -> usize {
        self.request.prompt.len() + self.tokens.len()
    }
}

/// One step's work on a slot.
struct Piece {
    slot: usize,
    tokens: Vec<TokenId>,
    /// Slots with the same prompt that wait for this one to finish it.
    followers: Vec<usize>,
}

impl Engine {
    /// An engine with room for `slots` replies at once.
    ///
    /// # Errors
    /// If the model's configuration allows no cache.
    pub fn new(
        decoder: &Decoder,
        tokenizer: Arc<Tokenizer>,
        slots: usize,
    ) -> Result<Self, PolicyError> {
        let slots = slots.max(1);
        let capacity = decoder.config().max_position_embeddings;
        Ok(Self {
            cache: KvCache::new(decoder, slots, capacity),
            decoder: decoder.clone(),
            version: 0,
            tokenizer,
            inference: None,
            slots: (0..slots).map(|_| None).collect(),
            waiting: VecDeque::new(),
            refused: Vec::new(),
            admissions: 0,
            sampled_tokens: 0,
            preemptions: 0,
        })
    }

    /// Bounds the memory of keys and values. A reply that needs more than that by itself is an
    /// error of [`step`](Self::step): see [`bytes_for`](Self::bytes_for).
    #[must_use]
    pub fn with_cache_bytes(mut self, bytes: usize) -> Self {
        self.cache = self.cache.with_most_bytes(bytes);
        self
    }

    /// Bytes of keys and values that one reply needs whose text reaches `tokens`.
    pub fn bytes_for(config: &crate::ModelConfig, tokens: usize) -> usize {
        tokens.div_ceil(KvCache::BLOCK_POSITIONS) * KvCache::block_bytes(config)
    }

    /// Samples from `decoder`'s weights from the next token on; what is live goes on with them.
    pub fn publish(&mut self, decoder: &Decoder, version: PolicyVersion) {
        self.decoder = decoder.clone();
        self.inference = None;
        self.version = version;
    }

    /// Queues a request; it starts when a slot is free, in order of submission.
    pub fn submit(&mut self, request: Request) {
        let context = self.decoder.config().max_position_embeddings;
        let limit = request.params.max_tokens.min(context.saturating_sub(request.prompt.len()));
        if limit == 0 || request.prompt.is_empty() {
            let empty = Completion {
                tokens: Vec::new(),
                logprobs: Vec::new(),
                kept_masses: Vec::new(),
                finish: FinishReason::Length,
                versions: self.version..=self.version,
            };
            self.refused.push((request.id, empty));
            return;
        }
        self.waiting.push_back(Live {
            stream: ChaCha8Rng::seed_from_u64(request.seed),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            kept_masses: Vec::new(),
            first_version: None,
            prompt_version: self.version,
            admission: 0,
            limit,
            request,
        });
    }

    /// Whether nothing is live or waiting.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.refused.is_empty() && self.live() == 0
    }

    /// Replies being sampled now.
    pub fn live(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Tokens drawn since the engine was made.
    pub fn sampled_tokens(&self) -> u64 {
        self.sampled_tokens
    }

    /// How often a reply had to give up its place in the cache.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Bytes the cache holds now.
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// One token for every live reply whose text is computed; returns those that ended, with their
    /// request ids.
    ///
    /// # Errors
    /// If the model fails, or one reply alone needs more cache than there is; the engine is then
    /// of no further use.
    pub fn step(&mut self) -> Result<Vec<(u64, Completion)>, PolicyError> {
        self.admit();
        let mut finished = std::mem::take(&mut self.refused);
        let pieces = self.plan()?;
        if !pieces.is_empty() {
            let mut inference = match self.inference.take() {
                Some(inference) => inference,
                None => Inference::new(&self.decoder)?,
            };
            let spans: Vec<CacheSpan<'_>> = pieces
                .iter()
                .map(|piece| CacheSpan { slot: piece.slot, tokens: &piece.tokens })
                .collect();
            let hidden = inference.extend(&mut self.cache, &spans)?;
            let drawn = self.rows_to_draw(&pieces)?;
            finished.extend(self.draw_rows(&mut inference, &drawn, &hidden)?);
            self.inference = Some(inference);
        }
        if self.live() == 0 && self.waiting.is_empty() {
            self.inference = None;
        }
        Ok(finished)
    }

    /// Samples all `requests` to their end; completions come in the order of the requests.
    ///
    /// # Errors
    /// If the model fails.
    pub fn generate(&mut self, requests: Vec<Request>) -> Result<Vec<Completion>, PolicyError> {
        let ids: Vec<u64> = requests.iter().map(|it| it.id).collect();
        for request in requests {
            self.submit(request);
        }
        let mut finished = HashMap::with_capacity(ids.len());
        while !self.is_idle() {
            finished.extend(self.step()?);
        }
        Ok(ids
            .iter()
            .map(|id| finished.remove(id).expect("every submitted request finishes once"))
            .collect())
    }

    /// Fills free slots in order of submission, while the cache has room for what each must
    /// compute before its first token.
    fn admit(&mut self) {
        let mut promised = 0;
        while let Some(slot) = self.slots.iter().position(Option::is_none) {
            let Some(next) = self.waiting.front() else { break };
            // Shared prompts need less; asking for more than is needed only delays.
            let shared =
                self.slots.iter().flatten().any(|it| it.request.prompt == next.request.prompt);
            let tokens = if shared { KvCache::BLOCK_POSITIONS + 1 } else { next.length() + 1 };
            promised += tokens.div_ceil(KvCache::BLOCK_POSITIONS);
            if promised > self.cache.blocks_free() && self.live() > 0 {
                break;
            }
            let mut live = self.waiting.pop_front().expect("it was looked at");
            self.admissions += 1;
            live.admission = self.admissions;
            live.prompt_version = self.version;
            self.cache.clear(slot);
            self.slots[slot] = Some(live);
        }
    }

    /// What each live reply computes in this step; takes blocks from the newest replies where
    /// the cache is too small for all.
    fn plan(&mut self) -> Result<Vec<Piece>, PolicyError> {
        loop {
            let pieces = self.pieces()?;
            let needed: usize = pieces
                .iter()
                .map(|piece| self.cache.blocks_needed(piece.slot, piece.tokens.len()))
                .sum();
            // A block that several replies share is copied by all of them but the last, and
            // counted for each: never too few.
            if needed <= self.cache.blocks_free() {
                return Ok(pieces);
            }
            let newest = |slot: &usize| self.slots[*slot].as_ref().map(|it| it.admission);
            let live: Vec<usize> =
                (0..self.slots.len()).filter(|slot| self.slots[*slot].is_some()).collect();
            if live.len() == 1 {
                return Err(PolicyError::input(format!(
                    "a reply of {} tokens with its prompt needs more cache than there is: {} \
                     blocks of {} tokens",
                    self.slots[live[0]].as_ref().map_or(0, Live::length),
                    needed + self.cache.blocks_free(),
                    KvCache::BLOCK_POSITIONS,
                )));
            }
            let slot = live.into_iter().max_by_key(newest).expect("more than one is live");
            let live = self.slots[slot].take().expect("chosen among the live");
            self.cache.clear(slot);
            self.waiting.push_front(live);
            self.preemptions += 1;
        }
    }

    fn pieces(&mut self) -> Result<Vec<Piece>, PolicyError> {
        let mut order: Vec<usize> =
            (0..self.slots.len()).filter(|slot| self.slots[*slot].is_some()).collect();
        order.sort_by_key(|slot| self.slots[*slot].as_ref().map(|it| it.admission));
        let mut pieces: Vec<Piece> = Vec::with_capacity(order.len());
        // Pieces of prompts that are being computed, by prompt.
        let mut leaders: HashMap<Arc<[TokenId]>, usize> = HashMap::new();
        let mut room = PREFILL_TOKENS;
        for slot in order {
            let live = self.slots[slot].as_ref().expect("only live slots are in the order");
            let (prompt, length) = (Arc::clone(&live.request.prompt), live.length());
            if self.cache.len(slot) < prompt.len() {
                if let Some(donor) = self.donor(slot) {
                    self.cache.share_prefix(donor, slot, prompt.len().min(length - 1))?;
                } else if let Some(leader) = leaders.get(&prompt) {
                    pieces[*leader].followers.push(slot);
                    continue;
                }
            }
            let held = self.cache.len(slot);
            let count = (length - held).min(if length - held == 1 { 1 } else { room });
            if count == 0 {
                continue;
            }
            room -= if length - held == 1 { 0 } else { count };
            if held < prompt.len() {
                leaders.insert(Arc::clone(&prompt), pieces.len());
            }
            let live = self.slots[slot].as_ref().expect("only live slots are in the order");
            let tokens = live.text().skip(held).take(count).collect();
            pieces.push(Piece { slot, tokens, followers: Vec::new() });
        }
        Ok(pieces)
    }

    /// Another slot whose cache holds the whole prompt of this one, computed under the current
    /// weights.
    fn donor(&self, slot: usize) -> Option<usize> {
        let prompt = &self.slots[slot].as_ref()?.request.prompt;
        self.slots.iter().enumerate().position(|(other, live)| {
            live.as_ref().is_some_and(|live| {
                other != slot
                    && live.prompt_version == self.version
                    && self.cache.len(other) >= prompt.len()
                    && live.request.prompt == *prompt
            })
        })
    }

    /// Slots whose text is now computed, each with the row of its last hidden state. Replies that
    /// waited for a prompt share it, and draw their first token from its last row.
    fn rows_to_draw(&mut self, pieces: &[Piece]) -> Result<Vec<(usize, usize)>, PolicyError> {
        let mut drawn = Vec::with_capacity(pieces.len());
        for (row, piece) in pieces.iter().enumerate() {
            let leader = self.slots[piece.slot].as_ref().expect("a piece is of a live slot");
            if leader.length() > self.cache.len(piece.slot) {
                continue;
            }
            drawn.push((piece.slot, row));
            let (fresh, prompt) = (leader.tokens.is_empty(), leader.request.prompt.len());
            for &follower in &piece.followers {
                // A reply that lost its place in the cache has tokens of its own to compute first.
                let waits = self.slots[follower].as_ref().is_some_and(|it| it.tokens.is_empty());
                if fresh && waits {
                    drawn.push((follower, row));
                    self.cache.share_prefix(piece.slot, follower, prompt)?;
                }
            }
        }
        drawn.sort_unstable();
        Ok(drawn)
    }

    fn draw_rows(
        &mut self,
        inference: &mut Inference,
        drawn: &[(usize, usize)],
        hidden: &Hidden,
    ) -> Result<Vec<(u64, Completion)>, PolicyError> {
        let end_ids = self.tokenizer.end_ids();
        let mut rows = vec![None; self.slots.len()];
        for (slot, row) in drawn {
            rows[*slot] = Some(*row);
        }
        let jobs =
            self.slots.iter_mut().enumerate().filter_map(|(slot, live)| {
                Some(Job { slot, live: live.as_mut()?, row: rows[slot]? })
            });
        // A device draws where no tail is cut off.
        let on_device = |job: &Job<'_>| {
            matches!(hidden, Hidden::Device(_)) && job.live.request.params.keeps_tail()
        };
        let (on_device, on_host): (Vec<_>, Vec<_>) = jobs.partition(on_device);
        let mut draws = draw_on_device(inference, hidden, on_device, end_ids)?;
        draws.extend(draw_on_host(inference, hidden, on_host, end_ids)?);
        draws.sort_unstable_by_key(|(slot, _)| *slot);
        self.sampled_tokens += draws.len() as u64;
        let mut finished = Vec::new();
        for (slot, drawn) in draws {
            let Some(finish) = self.append(slot, drawn)? else { continue };
            let live = self.slots[slot].take().expect("a drawn slot is live");
            self.cache.clear(slot);
            let oldest = live.first_version.unwrap_or(self.version);
            let completion = Completion {
                tokens: live.tokens,
                logprobs: live.logprobs,
                kept_masses: live.kept_masses,
                finish,
                versions: oldest..=self.version,
            };
            finished.push((live.request.id, completion));
        }
        Ok(finished)
    }

    /// Adds a drawn token to its reply; says why the reply ended, if it did.
    fn append(&mut self, slot: usize, drawn: Draw) -> Result<Option<FinishReason>, PolicyError> {
        let live = self.slots[slot].as_mut().expect("a drawn slot is live");
        live.first_version.get_or_insert(self.version);
        live.tokens.push(drawn.token);
        live.logprobs.push(drawn.logprob);
        if !live.request.params.keeps_full_support() {
            live.kept_masses.push(drawn.kept_mass);
        }
        if self.tokenizer.end_ids().contains(&drawn.token) || stopped(live, &self.tokenizer)? {
            return Ok(Some(FinishReason::Stop));
        }
        Ok((live.tokens.len() >= live.limit).then_some(FinishReason::Length))
    }
}

/// A live reply whose next token is drawn from a row of hidden states.
struct Job<'a> {
    slot: usize,
    live: &'a mut Live,
    row: usize,
}

fn draw_on_host(
    inference: &mut Inference,
    hidden: &Hidden,
    jobs: Vec<Job<'_>>,
    end_ids: &[TokenId],
) -> Result<Vec<(usize, Draw)>, PolicyError> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    // Replies that share a prompt share a row.
    let mut rows: Vec<usize> = jobs.iter().map(|job| job.row).collect();
    rows.sort_unstable();
    rows.dedup();
    let logits = inference.logits_of(hidden, &rows)?;
    if logits.iter().any(|it| !it.is_finite()) {
        return Err(PolicyError::NotFinite { what: "the logits" });
    }
    let vocabulary = logits.len() / rows.len();
    let draw_one = |Job { slot, live, row }: Job<'_>| -> (usize, Draw) {
        let early = live.tokens.len() < live.request.params.min_tokens;
        let forbidden = if early { end_ids } else { &[] };
        let index = rows.binary_search(&row).expect("every job's row is among them");
        let mut row = logits[index * vocabulary..(index + 1) * vocabulary].to_vec();
        (slot, draw(&mut row, &live.request.params, forbidden, &mut live.stream))
    };
    // A tiny vocabulary is drawn faster than the work is handed out.
    Ok(if vocabulary * jobs.len() < 1 << 15 {
        jobs.into_iter().map(draw_one).collect()
    } else {
        jobs.into_par_iter().map(draw_one).collect()
    })
}

fn draw_on_device(
    inference: &mut Inference,
    hidden: &Hidden,
    jobs: Vec<Job<'_>>,
    end_ids: &[TokenId],
) -> Result<Vec<(usize, Draw)>, PolicyError> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let (slots, rows): (Vec<usize>, Vec<RowDraw>) = jobs
        .into_iter()
        .map(|Job { slot, live, row }| {
            let temperature = live.request.params.temperature;
            // As on the host: one number of the stream for each token, none when greedy.
            let (inverse_temperature, uniform) = if temperature > 0.0 {
                ((1.0 / temperature) as f32, live.stream.random())
            } else {
                (0.0, 0.0)
            };
            let early = live.tokens.len() < live.request.params.min_tokens;
            (slot, RowDraw { row, inverse_temperature, uniform, early })
        })
        .unzip();
    let drawn = inference.draw_on_device(hidden, &rows, end_ids)?;
    slots
        .into_iter()
        .zip(drawn)
        .map(|(slot, drawn)| match drawn {
            Some(drawn) => Ok((slot, drawn)),
            None => Err(PolicyError::NotFinite { what: "the logits" }),
        })
        .collect()
}

/// Whether the reply's newest token completed a stop text. Looks only at as many last tokens as
/// could hold one: a token holds at least one byte.
fn stopped(live: &Live, tokenizer: &Tokenizer) -> Result<bool, PolicyError> {
    let stop = &live.request.params.stop;
    let Some(longest) = stop.iter().map(String::len).max() else { return Ok(false) };
    let from = live.tokens.len().saturating_sub(longest + 4);
    let tail = tokenizer.decode_with_specials(&live.tokens[from..])?;
    Ok(stop.iter().any(|it| !it.is_empty() && tail.contains(it.as_str())))
}
