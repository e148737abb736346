//! The decoder without gradient: its weights laid out once for many forward products.
//!
//! The same layers as in learning ([`crate::layer`]), over a key-value cache instead of packed
//! sequences. Each row's result depends on its own sequence alone, bit for bit, whatever else is
//! in the batch and however a sequence was cut into calls.

use crate::TokenId;
use crate::decoder::{CacheSpan, Decoder};
use crate::error::PolicyError;
use crate::kv_cache::KvCache;
use crate::layer::{Activations, PackedLayer, Place, Scratch};
use crate::ops;
use crate::ops::attention::{self, Span};
use crate::ops::matmul::{Job, Out, Panels, View, matmuls};
use crate::ops::slices::Values;
use crate::pass::sized;

/// A decoder's weights as they were when this was made, ready to sample from.
///
/// Norms and the embedding are read from the decoder's own storage: whoever trains while this
/// samples hands it a [snapshot](Decoder::snapshot).
#[derive(Debug)]
pub struct Inference {
    decoder: Decoder,
    layers: Vec<PackedLayer>,
    head: Panels,
    // Buffers of one call, kept for the next.
    x: [Vec<f32>; 2],
    activations: Activations,
    scratch: Scratch,
}

impl Inference {
    /// Lays out the weights of `decoder`.
    ///
    /// # Errors
    /// If a weight is not f32 on the CPU.
    pub fn new(decoder: &Decoder) -> Result<Self, PolicyError> {
        let shape = decoder.shape();
        let mut layers = Vec::with_capacity(shape.layers);
        let mut merged = Vec::new();
        for layer in decoder.layers() {
            let mut packed = PackedLayer::default();
            packed.pack(&layer.view(shape)?, &mut merged);
            layers.push(packed);
        }
        let mut head = Panels::default();
        head.pack(&Values::of(decoder.head())?, shape.vocab, shape.hidden);
        Ok(Self {
            decoder: decoder.clone(),
            layers,
            head,
            x: Default::default(),
            activations: Activations::default(),
            scratch: Scratch::default(),
        })
    }

    /// The decoder this samples from.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Appends each span's tokens to its cache slot and returns the final normed hidden state of
    /// each span's last token, `(spans, hidden)`. Prefill and decode are the same call, and may
    /// be mixed.
    ///
    /// # Errors
    /// If a span is empty, names a slot twice or outside the cache, overflows its slot, or the
    /// cache has too few free blocks; the cache is then as it was.
    pub fn extend(
        &mut self,
        cache: &mut KvCache,
        spans: &[CacheSpan<'_>],
    ) -> Result<Vec<f32>, PolicyError> {
        self.check_spans(cache, spans)?;
        let rows: usize = spans.iter().map(|span| span.tokens.len()).sum();
        // One worker thread leads where all will be needed, so that handing out work is cheap.
        if rows * self.decoder.parameters().count() < LED_BY_A_WORKER {
            self.run(cache, spans)
        } else {
            rayon::scope(|_| self.run(cache, spans))
        }
    }

    /// Hidden states `(rows, hidden)` -> logits `(rows, vocab)`.
    pub fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        let shape = self.decoder.shape();
        let rows = hidden.len() / shape.hidden;
        let mut logits = vec![0.0; rows * shape.vocab];
        let out = Out::rows(&mut logits, shape.vocab);
        let hidden = View::rows(hidden, shape.hidden);
        matmuls(vec![Job::new(out, hidden, self.head.right(), shape.hidden)]);
        logits
    }

    fn run(
        &mut self,
        cache: &mut KvCache,
        spans: &[CacheSpan<'_>],
    ) -> Result<Vec<f32>, PolicyError> {
        let shape = self.decoder.shape();
        let tokens: Vec<TokenId> = spans.iter().flat_map(|span| span.tokens).copied().collect();
        let positions: Vec<u32> = spans
            .iter()
            .flat_map(|span| {
                let held = cache.len(span.slot);
                held as u32..(held + span.tokens.len()) as u32
            })
            .collect();
        let mut start = 0;
        let placed: Vec<Span> = spans
            .iter()
            .map(|span| {
                let length = span.tokens.len();
                cache.grow(span.slot, length);
                start += length;
                Span { sequence: span.slot, start: start - length, length }
            })
            .collect();
        let rows = tokens.len();
        let rotations = self.decoder.rotations_to(&positions);
        let place = Place { positions: &positions, rotations: &rotations };
        let heads = self.decoder.heads();
        let kv_width = heads.kv_width();
        self.decoder.embed(&tokens, sized(&mut self.x[0], rows * shape.hidden))?;
        for (index, (layer, packed)) in self.decoder.layers().iter().zip(&self.layers).enumerate() {
            let [x, next] = self
                .x
                .get_disjoint_mut([index % 2, 1 - index % 2])
                .expect("two buffers that take turns");
            let view = layer.view(shape)?;
            let (activations, scratch) = (&mut self.activations, &mut self.scratch);
            view.forward(packed, place, x, activations, next, scratch, &mut |q, k, v, out| {
                for span in &placed {
                    let rows = span.start * kv_width..(span.start + span.length) * kv_width;
                    cache.write(index, span.sequence, &k[rows.clone()], &v[rows]);
                }
                attention::cached(q, cache, index, &placed, heads, out);
            });
        }
        let last = &self.x[shape.layers % 2];
        let last_rows: Vec<u32> =
            placed.iter().map(|span| (span.start + span.length - 1) as u32).collect();
        let selected = sized(&mut self.scratch.normed, spans.len() * shape.hidden);
        ops::embedding::forward(last, shape.hidden, &last_rows, selected);
        let mut hidden = vec![0.0; selected.len()];
        self.decoder.final_norm(selected, &mut hidden)?;
        Ok(hidden)
    }

    fn check_spans(&self, cache: &KvCache, spans: &[CacheSpan<'_>]) -> Result<(), PolicyError> {
        let shape = self.decoder.shape();
        if !cache.fits(shape.layers, shape.kv_heads, shape.head_dim) {
            return Err(PolicyError::input("the cache was made for a model of another shape"));
        }
        if spans.is_empty() {
            return Err(PolicyError::input("no span to extend the cache with"));
        }
        let mut named = vec![false; cache.slots()];
        let mut blocks = 0;
        for &CacheSpan { slot, tokens } in spans {
            match named.get_mut(slot) {
                None => {
                    return Err(PolicyError::input(format!(
                        "slot {slot} of a cache with {} slots",
                        cache.slots()
                    )));
                }
                Some(true) => {
                    return Err(PolicyError::input(format!("slot {slot} is named by two spans")));
                }
                Some(named) => *named = true,
            }
            if tokens.is_empty() {
                return Err(PolicyError::input(format!("the span of slot {slot} is empty")));
            }
            if cache.len(slot) + tokens.len() > cache.capacity() {
                return Err(PolicyError::input(format!(
                    "slot {slot} holds {} tokens and cannot take {} more: its capacity is {}",
                    cache.len(slot),
                    tokens.len(),
                    cache.capacity()
                )));
            }
            self.decoder.check_vocabulary(tokens)?;
            blocks += cache.blocks_needed(slot, tokens.len());
        }
        if blocks > cache.blocks_free() {
            return Err(PolicyError::input(format!(
                "{blocks} blocks of the cache are needed and {} are free",
                cache.blocks_free()
            )));
        }
        Ok(())
    }
}

/// Multiplications of a call from which on a worker thread leads it.
const LED_BY_A_WORKER: usize = 1 << 24;
