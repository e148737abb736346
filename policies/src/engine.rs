//! The sampling engine: many replies at once over one cache, refilled as replies end.
//!
//! Each [`step`](Engine::step) admits waiting requests into free cache slots, runs the decoder once
//! over every live reply (new prompts whole, the others by one token) and draws a token for each.
//! A prompt that several requests share is computed once and copied: a group's siblings arrive
//! together, so only the first pays for it.
//!
//! The order of work depends on the order of submission alone, never on time: the same requests
//! submitted in the same order give the same replies bit for bit.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use candle_core::Tensor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::TokenId;
use crate::decoder::{CacheSpan, Decoder};
use crate::error::PolicyError;
use crate::kv_cache::KvCache;
use crate::sampling::{Completion, Draw, FinishReason, PolicyVersion, Request, draw};
use crate::tokenizer::Tokenizer;

/// Prompt tokens that one decoder call may hold, so that a burst of long prompts is computed in
/// pieces of bounded memory.
const PREFILL_TOKENS: usize = 4096;

/// Samples replies from one decoder.
pub struct Engine {
    decoder: Decoder,
    version: PolicyVersion,
    tokenizer: Arc<Tokenizer>,
    cache: KvCache,
    /// `slots[i]` is the reply that cache slot `i` holds.
    slots: Vec<Option<Live>>,
    waiting: VecDeque<Request>,
    /// Finished by a request that could not run at all (a prompt that fills the context).
    refused: Vec<(u64, Completion)>,
    sampled_tokens: u64,
}

/// A reply being sampled.
struct Live {
    request: Request,
    stream: ChaCha8Rng,
    tokens: Vec<TokenId>,
    logprobs: Vec<f32>,
    first_version: PolicyVersion,
    /// Longest this reply may become: `max_tokens` or what the context leaves.
    limit: usize,
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
            cache: KvCache::new(decoder.config(), slots, capacity)?,
            decoder: decoder.frozen(),
            version: 0,
            tokenizer,
            slots: (0..slots).map(|_| None).collect(),
            waiting: VecDeque::new(),
            refused: Vec::new(),
            sampled_tokens: 0,
        })
    }

    /// Samples from `decoder`'s weights from the next token on; what is live goes on with them.
    pub fn publish(&mut self, decoder: &Decoder, version: PolicyVersion) {
        self.decoder = decoder.frozen();
        self.version = version;
    }

    /// Queues a request; it starts when a slot is free, in order of submission.
    pub fn submit(&mut self, request: Request) {
        self.waiting.push_back(request);
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

    /// Bytes the cache holds now.
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// One token for every live reply; returns those that ended, with their request ids.
    ///
    /// # Errors
    /// If the model fails; the engine is then of no further use.
    pub fn step(&mut self) -> Result<Vec<(u64, Completion)>, PolicyError> {
        let mut hidden: Vec<(usize, Tensor)> = Vec::new();
        let single = self.admit(&mut hidden)?;
        let mut rows: Vec<(usize, TokenId)> = Vec::new();
        for (slot, live) in self.slots.iter().enumerate() {
            let Some(live) = live else { continue };
            if let Some(last) = live.tokens.last() {
                rows.push((slot, *last));
            } else if single.contains(&slot) {
                rows.push((slot, live.request.prompt[live.request.prompt.len() - 1]));
            }
        }
        let mut order: Vec<usize> = Vec::with_capacity(rows.len() + hidden.len());
        let mut parts: Vec<Tensor> = Vec::new();
        if !rows.is_empty() {
            let spans: Vec<CacheSpan<'_>> = rows
                .iter()
                .map(|(slot, token)| CacheSpan { slot: *slot, tokens: std::slice::from_ref(token) })
                .collect();
            parts.push(self.decoder.extend(&mut self.cache, &spans)?);
            order.extend(rows.iter().map(|it| it.0));
        }
        for (slot, row) in hidden {
            order.push(slot);
            parts.push(row);
        }
        if order.is_empty() {
            return Ok(std::mem::take(&mut self.refused));
        }
        let hidden = if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 0)? };
        self.draw_rows(&order, &hidden)
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

    /// Fills free slots. New prompts are computed here, one for all its siblings, and leave the
    /// hidden state of their last token in `hidden`; a request whose prompt a live sibling still
    /// holds copies all but the last token and is returned, to run with the replies.
    fn admit(&mut self, hidden: &mut Vec<(usize, Tensor)>) -> Result<Vec<usize>, PolicyError> {
        let mut single = Vec::new();
        // First slot of each prompt admitted in this step, and the slots that share it.
        let mut fresh: Vec<(usize, Vec<usize>)> = Vec::new();
        while !self.waiting.is_empty() {
            let Some(slot) = self.slots.iter().position(Option::is_none) else { break };
            let Some(request) = self.waiting.pop_front() else { break };
            let context = self.decoder.config().max_position_embeddings;
            let limit = request.params.max_tokens.min(context.saturating_sub(request.prompt.len()));
            if limit == 0 || request.prompt.is_empty() {
                let versions = self.version..=self.version;
                let finish = FinishReason::Length;
                let empty =
                    Completion { tokens: Vec::new(), logprobs: Vec::new(), finish, versions };
                self.refused.push((request.id, empty));
                continue;
            }
            self.cache.clear(slot);
            let sibling = fresh.iter_mut().find(|(first, _)| {
                self.slots[*first].as_ref().is_some_and(|it| it.request.prompt == request.prompt)
            });
            if let Some((_, sharers)) = sibling {
                sharers.push(slot);
            } else if let Some(donor) = self.donor(&request.prompt) {
                self.cache.copy_prefix(donor, slot, request.prompt.len() - 1)?;
                single.push(slot);
            } else {
                fresh.push((slot, Vec::new()));
            }
            self.slots[slot] = Some(Live {
                stream: ChaCha8Rng::seed_from_u64(request.seed),
                tokens: Vec::new(),
                logprobs: Vec::new(),
                first_version: self.version,
                limit,
                request,
            });
        }
        self.prefill(&fresh, hidden)?;
        Ok(single)
    }

    /// A slot whose cache still begins with `prompt`, computed under the current weights.
    fn donor(&self, prompt: &Arc<[TokenId]>) -> Option<usize> {
        self.slots.iter().position(|it| {
            it.as_ref().is_some_and(|live| {
                live.first_version == self.version
                    && !live.tokens.is_empty()
                    && live.request.prompt == *prompt
            })
        })
    }

    fn prefill(
        &mut self,
        fresh: &[(usize, Vec<usize>)],
        hidden: &mut Vec<(usize, Tensor)>,
    ) -> Result<(), PolicyError> {
        let mut start = 0;
        while start < fresh.len() {
            let mut end = start;
            let mut tokens = 0;
            while end < fresh.len() {
                tokens += self.prompt(fresh[end].0).len();
                if end > start && tokens > PREFILL_TOKENS {
                    break;
                }
                end += 1;
            }
            let prompts: Vec<(usize, Arc<[TokenId]>)> =
                fresh[start..end].iter().map(|(slot, _)| (*slot, self.prompt(*slot))).collect();
            let spans: Vec<CacheSpan<'_>> = prompts
                .iter()
                .map(|(slot, prompt)| CacheSpan { slot: *slot, tokens: prompt })
                .collect();
            let last = self.decoder.extend(&mut self.cache, &spans)?;
            for (row, (slot, sharers)) in fresh[start..end].iter().enumerate() {
                let state = last.narrow(0, row, 1)?;
                for sharer in sharers {
                    self.cache.copy_prefix(*slot, *sharer, prompts[row].1.len())?;
                    hidden.push((*sharer, state.clone()));
                }
                hidden.push((*slot, state));
            }
            start = end;
        }
        hidden.sort_by_key(|it| it.0);
        Ok(())
    }

    fn prompt(&self, slot: usize) -> Arc<[TokenId]> {
        let live = self.slots[slot].as_ref().expect("an admitted slot is live");
        Arc::clone(&live.request.prompt)
    }

    fn draw_rows(
        &mut self,
        order: &[usize],
        hidden: &Tensor,
    ) -> Result<Vec<(u64, Completion)>, PolicyError> {
        let logits = self.decoder.logits(hidden)?;
        let (_, vocabulary) = logits.dims2()?;
        let mut logits = logits.flatten_all()?.to_vec1::<f32>()?;
        if logits.iter().any(|it| !it.is_finite()) {
            return Err(PolicyError::NotFinite { what: "the logits" });
        }
        let end_ids = self.tokenizer.end_ids();
        let mut row_of_slot = vec![usize::MAX; self.slots.len()];
        for (row, slot) in order.iter().enumerate() {
            row_of_slot[*slot] = row;
        }
        let mut rows: Vec<Option<&mut [f32]>> =
            logits.chunks_exact_mut(vocabulary).map(Some).collect();
        let mut jobs: Vec<(usize, &mut Live, &mut [f32])> = Vec::with_capacity(order.len());
        for (slot, live) in self.slots.iter_mut().enumerate() {
            let Some(live) = live else { continue };
            let Some(row) = rows.get_mut(row_of_slot[slot]).and_then(Option::take) else {
                continue;
            };
            jobs.push((slot, live, row));
        }
        let draw_one = |(slot, live, row): (usize, &mut Live, &mut [f32])| -> (usize, Draw) {
            let early = live.tokens.len() < live.request.params.min_tokens;
            let forbidden = if early { end_ids } else { &[] };
            (slot, draw(row, &live.request.params, forbidden, &mut live.stream))
        };
        // A tiny vocabulary is drawn faster than the work is handed out.
        let draws: Vec<(usize, Draw)> = if vocabulary * order.len() < 1 << 15 {
            jobs.into_iter().map(draw_one).collect()
        } else {
            jobs.into_par_iter().map(draw_one).collect()
        };
        self.sampled_tokens += draws.len() as u64;
        let mut finished = std::mem::take(&mut self.refused);
        for (slot, drawn) in draws {
            let reason = self.append(slot, drawn)?;
            if let Some(finish) = reason {
                let live = self.slots[slot].take().expect("a drawn slot is live");
                let versions = live.first_version..=self.version;
                let (tokens, logprobs) = (live.tokens, live.logprobs);
                finished.push((live.request.id, Completion { tokens, logprobs, finish, versions }));
            }
        }
        Ok(finished)
    }

    /// Adds a drawn token to its reply; says why the reply ended, if it did.
    fn append(&mut self, slot: usize, drawn: Draw) -> Result<Option<FinishReason>, PolicyError> {
        let live = self.slots[slot].as_mut().expect("a drawn slot is live");
        live.tokens.push(drawn.token);
        live.logprobs.push(drawn.logprob);
        if self.tokenizer.end_ids().contains(&drawn.token) || stopped(live, &self.tokenizer)? {
            return Ok(Some(FinishReason::Stop));
        }
        Ok((live.tokens.len() >= live.limit).then_some(FinishReason::Length))
    }
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
