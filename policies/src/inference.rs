//! The decoder without gradient: its weights laid out once for many forward products.
//!
//! The same layers as in learning ([`crate::layer`]), over a key-value cache instead of packed
//! sequences. Each row's result depends on its own sequence alone, bit for bit, whatever else is
//! in the batch and however a sequence was cut into calls.

use crate::TokenId;
use crate::decoder::{CacheSpan, Decoder};
use crate::error::PolicyError;
use crate::gpu::inference::{DeviceHidden, DeviceInference, DeviceSpan, RowDraw};
use crate::gpu::weights::Resident;
use crate::kv_cache::KvCache;
use crate::layer::{Activations, PackedLayer, Place, Scratch};
use crate::ops;
use crate::ops::attention::{self, Span};
use crate::ops::matmul::{Job, Out, Panels, View, matmuls};
use crate::ops::slices::Values;
use crate::pass::sized;
use crate::sampling::Draw;

/// A decoder's weights as they were when this was made, ready to sample from.
///
/// Norms and the embedding are read from the decoder's own storage: whoever trains while this
/// samples hands it a [snapshot](Decoder::snapshot).
#[derive(Debug)]
pub struct Inference {
    decoder: Decoder,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Host(Box<HostWork>),
    Device(Box<DeviceInference>),
}

/// The weights laid out for products, and the buffers of one call, kept for the next.
#[derive(Debug, Default)]
struct HostWork {
    layers: Vec<PackedLayer>,
    head: Panels,
    x: [Vec<f32>; 2],
    activations: Activations,
    scratch: Scratch,
}

/// Final normed hidden states, `(rows, hidden)`, where they were computed.
#[derive(Debug)]
pub enum Hidden {
    /// In the computer's own memory.
    Host(Vec<f32>),
    /// In that of a GPU.
    Device(DeviceHidden),
}

impl Inference {
    /// Lays out the weights of `decoder`.
    ///
    /// # Errors
    /// If a weight is not f32 on the CPU.
    pub fn new(decoder: &Decoder) -> Result<Self, PolicyError> {
        let work = match decoder.resident() {
            Some(_) => Work::Device(Box::default()),
            None => Work::Host(Box::new(HostWork::new(decoder)?)),
        };
        Ok(Self { decoder: decoder.clone(), work })
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
    ) -> Result<Hidden, PolicyError> {
        self.check_spans(cache, spans)?;
        let rows: usize = spans.iter().map(|span| span.tokens.len()).sum();
        let decoder = &self.decoder;
        match &mut self.work {
            Work::Device(work) => extend_on_device(decoder, work, cache, spans).map(Hidden::Device),
            // One worker thread leads where all will be needed, so that handing out work is cheap.
            Work::Host(work) if rows * decoder.parameters().count() >= LED_BY_A_WORKER => {
                rayon::scope(|_| work.run(decoder, cache, spans)).map(Hidden::Host)
            }
            Work::Host(work) => work.run(decoder, cache, spans).map(Hidden::Host),
        }
    }

    /// States of the host, where this computes.
    ///
    /// # Errors
    /// If a device fails.
    pub fn hidden(&self, states: Vec<f32>) -> Result<Hidden, PolicyError> {
        match self.decoder.resident() {
            Some(resident) => resident.hidden(&states).map(Hidden::Device),
            None => Ok(Hidden::Host(states)),
        }
    }

    /// The states on the host, `(rows, hidden)`.
    ///
    /// # Errors
    /// If a device fails.
    pub fn read_hidden(&self, hidden: &Hidden) -> Result<Vec<f32>, PolicyError> {
        match (hidden, self.decoder.resident()) {
            (Hidden::Host(states), _) => Ok(states.clone()),
            (Hidden::Device(states), Some(resident)) => states.read(resident),
            (Hidden::Device(_), None) => Err(elsewhere()),
        }
    }

    /// Logits of all rows, `(rows, vocab)`.
    ///
    /// # Errors
    /// If a device fails, or the states were computed elsewhere.
    pub fn logits(&mut self, hidden: &Hidden) -> Result<Vec<f32>, PolicyError> {
        let rows: Vec<usize> = (0..self.rows(hidden)).collect();
        self.logits_of(hidden, &rows)
    }

    /// Logits of some rows, `(rows, vocab)`.
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub(crate) fn logits_of(
        &mut self,
        hidden: &Hidden,
        rows: &[usize],
    ) -> Result<Vec<f32>, PolicyError> {
        let shape = self.decoder.shape();
        match (&mut self.work, hidden) {
            (Work::Host(work), Hidden::Host(states)) => {
                let width = shape.hidden;
                let mut selected = Vec::with_capacity(rows.len() * width);
                for row in rows {
                    selected.extend_from_slice(&states[row * width..(row + 1) * width]);
                }
                let mut logits = vec![0.0; rows.len() * shape.vocab];
                let out = Out::rows(&mut logits, shape.vocab);
                let states = View::rows(&selected, width);
                matmuls(vec![Job::new(out, states, work.head.right(), width)]);
                Ok(logits)
            }
            (Work::Device(work), Hidden::Device(states)) => {
                resident(&self.decoder).logits(work, states, rows)
            }
            _ => Err(elsewhere()),
        }
    }

    /// Draws where the states are, if that is a device; `None` where the logits are no numbers.
    pub(crate) fn draw_on_device(
        &mut self,
        hidden: &Hidden,
        draws: &[RowDraw],
        forbidden: &[TokenId],
    ) -> Result<Vec<Option<Draw>>, PolicyError> {
        match (&mut self.work, hidden) {
            (Work::Device(work), Hidden::Device(states)) => {
                resident(&self.decoder).draw(work, states, draws, forbidden)
            }
            _ => Err(elsewhere()),
        }
    }

    fn rows(&self, hidden: &Hidden) -> usize {
        match hidden {
            Hidden::Host(states) => states.len() / self.decoder.shape().hidden,
            Hidden::Device(states) => states.rows,
        }
    }

    fn check_spans(&self, cache: &KvCache, spans: &[CacheSpan<'_>]) -> Result<(), PolicyError> {
        if cache.on_device().is_some() != self.decoder.device().is_some() {
            return Err(PolicyError::input("the cache was made for a decoder on another device"));
        }
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

impl HostWork {
    fn new(decoder: &Decoder) -> Result<Self, PolicyError> {
        let shape = decoder.shape();
        let mut work = Self::default();
        let mut merged = Vec::new();
        for layer in decoder.layers() {
            let mut packed = PackedLayer::default();
            packed.pack(&layer.view(shape)?, &mut merged);
            work.layers.push(packed);
        }
        work.head.pack(&Values::of(decoder.head())?, shape.vocab, shape.hidden);
        Ok(work)
    }

    fn run(
        &mut self,
        decoder: &Decoder,
        cache: &mut KvCache,
        spans: &[CacheSpan<'_>],
    ) -> Result<Vec<f32>, PolicyError> {
        let shape = decoder.shape();
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
                cache.grow(span.slot, length)?;
                start += length;
                Ok(Span { sequence: span.slot, start: start - length, length })
            })
            .collect::<Result<_, PolicyError>>()?;
        let rows = tokens.len();
        let rotations = decoder.rotations_to(&positions);
        let place = Place { positions: &positions, rotations: &rotations };
        let heads = decoder.heads();
        let kv_width = heads.kv_width();
        decoder.embed(&tokens, sized(&mut self.x[0], rows * shape.hidden))?;
        for (index, (layer, packed)) in decoder.layers().iter().zip(&self.layers).enumerate() {
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
        decoder.final_norm(selected, &mut hidden)?;
        Ok(hidden)
    }
}

fn extend_on_device(
    decoder: &Decoder,
    work: &mut DeviceInference,
    cache: &mut KvCache,
    spans: &[CacheSpan<'_>],
) -> Result<DeviceHidden, PolicyError> {
    let held: Vec<usize> = spans.iter().map(|span| cache.len(span.slot)).collect();
    for span in spans {
        cache.grow(span.slot, span.tokens.len())?;
    }
    let longest = spans.iter().map(|span| cache.len(span.slot)).max().unwrap_or(1);
    let rotations = decoder.rotations_to(&[longest as u32 - 1]);
    let placed: Vec<DeviceSpan<'_>> = spans
        .iter()
        .zip(held)
        .map(|(span, held)| DeviceSpan { table: cache.table(span.slot), held, tokens: span.tokens })
        .collect();
    let blocks = cache.on_device().expect("the caller checked where the cache is");
    resident(decoder).extend(work, blocks, &placed, &rotations)
}

fn resident(decoder: &Decoder) -> &Resident {
    decoder.resident().expect("work on a device is of a decoder on it")
}

fn elsewhere() -> PolicyError {
    PolicyError::input("hidden states were computed on another device than this decoder is on")
}

/// Multiplications of a call from which on a worker thread leads it.
const LED_BY_A_WORKER: usize = 1 << 24;
