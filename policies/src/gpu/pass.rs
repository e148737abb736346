//! The forward and backward pass of a decoder on a device: see [`crate::decoder`] for what each
//! step means.

use super::buffer::{Room, View};
use super::driver::Kind;
use super::gradients::DeviceGradients;
use super::kernels::Segments;
use super::layer::{Activations, Attended, Place, Scratch, Tiles, norm_backward};
use super::tiles::{key_tiles, query_tiles};
use super::weights::{DeviceRotations, Resident};
use super::words::{SegmentStretches, Stretch, Words};
use crate::decoder::TokenScores;
use crate::error::PolicyError;
use crate::ops::Rotations;
use crate::ops::matmul::Output;
use crate::packed::PackedSequences;
use crate::pass::Keep;

/// Logits held at once: 1 GiB of them.
const CHUNK_LOGITS: usize = 1 << 28;

/// The device's half of a [`crate::Pass`].
#[derive(Debug, Default)]
pub(crate) struct DevicePass {
    words: Words,
    places: Places,
    /// The residual stream before each layer and after the last; two that take turns where nothing
    /// is kept.
    inputs: Vec<Room>,
    last: usize,
    layers: Vec<Activations>,
    scratch: Scratch,
    scored: Scored,
    g: Room,
}

/// Where the indices of the last forward pass stand among its words.
#[derive(Debug, Default)]
struct Places {
    tokens: Stretch,
    positions: Stretch,
    query_tiles: Stretch,
    key_tiles: Stretch,
    /// Rows by token, for the embedding's gradient.
    by_token: SegmentStretches,
    rows: usize,
}

/// The rows that were asked for, and what was computed of them.
#[derive(Debug, Default)]
struct Scored {
    words: Words,
    rows: Stretch,
    by_row: SegmentStretches,
    targets: Stretch,
    selected: Room,
    normed: Room,
    /// f32; of one chunk of rows.
    logits: Room,
    dz: Room,
    logprobs: Room,
    entropies: Room,
    logsumexps: Room,
    slopes: Room,
    d_normed: Room,
    d_selected: Room,
    floats: Room,
    inverse_temperature: f32,
}

impl Resident {
    pub(crate) fn forward(
        &self,
        pass: &mut DevicePass,
        keep: Keep,
        sequences: &PackedSequences,
        rotations: &Rotations,
    ) -> Result<(), PolicyError> {
        let (device, hidden) = (&self.device, self.shape.hidden);
        let DevicePass { words, places, inputs, last, layers, scratch, .. } = pass;
        words.start();
        places.rows = sequences.rows();
        places.tokens = words.add(sequences.tokens().iter().copied());
        places.positions = words.add(sequences.positions().iter().copied());
        places.query_tiles = words.add(query_tiles(sequences, self.heads().group()));
        if keep != Keep::Nothing {
            places.key_tiles = words.add(key_tiles(sequences));
            places.by_token = words.add_segments(&Segments::of(sequences.tokens()));
        }
        words.upload(device)?;
        let rotations = self.rotations(rotations)?;

        let keeps_inputs = keep != Keep::Nothing;
        let count = if keeps_inputs { self.shape.layers + 1 } else { 2 };
        inputs.resize_with(count, Room::default);
        for input in inputs.iter_mut() {
            input.sized(device, Kind::Element, places.rows * hidden)?;
        }
        let kept = if keep == Keep::Activations { self.shape.layers } else { 1 };
        layers.resize_with(kept, Activations::default);
        let first = inputs[0].get(places.rows * hidden);
        device.gather_rows(self.embedding.elements(), words.view(&places.tokens), first, hidden)?;
        let place = self.place(words, places, &rotations);
        let tiles = words.view(&places.query_tiles);
        for (index, layer) in self.layers.iter().enumerate() {
            let (from, to) =
                if keeps_inputs { (index, index + 1) } else { (index % 2, 1 - index % 2) };
            let x = inputs[from].get(places.rows * hidden);
            let next = inputs[to].get(places.rows * hidden);
            let activations = &mut layers[if kept == 1 { 0 } else { index }];
            self.layer_forward(layer, place, x, activations, next, scratch, &mut |it| {
                self.attend(it, tiles)
            })?;
        }
        *last = if keeps_inputs { self.shape.layers } else { self.shape.layers % 2 };
        Ok(())
    }

    /// The final normed states of some rows, left on the device for what comes next.
    pub(crate) fn select(
        &self,
        pass: &mut DevicePass,
        rows: &[u32],
        targets: &[u32],
    ) -> Result<(), PolicyError> {
        let (device, hidden) = (&self.device, self.shape.hidden);
        let DevicePass { scored, inputs, last, places, .. } = pass;
        scored.words.start();
        scored.rows = scored.words.add(rows.iter().copied());
        scored.by_row = scored.words.add_segments(&Segments::of(rows));
        scored.targets = scored.words.add(targets.iter().copied());
        scored.words.upload(device)?;
        let selected = scored.selected.sized(device, Kind::Element, rows.len() * hidden)?;
        let states = inputs[*last].get(places.rows * hidden);
        device.gather_rows(states, scored.words.view(&scored.rows), selected, hidden)?;
        let normed = scored.normed.sized(device, Kind::Element, rows.len() * hidden)?;
        let eps = self.shape.rms_norm_eps as f32;
        device.rms_norm(selected, self.final_norm.elements(), normed, eps)
    }

    /// What [`select`](Self::select) left, on the host.
    pub(crate) fn selected(&self, pass: &mut DevicePass) -> Result<Vec<f32>, PolicyError> {
        let scored = &mut pass.scored;
        let count = scored.rows.len() * self.shape.hidden;
        let floats = scored.floats.sized(&self.device, Kind::F32, count)?;
        self.device.widen(scored.normed.get(count), floats)?;
        floats.read()
    }

    pub(crate) fn score(
        &self,
        pass: &mut DevicePass,
        rows: &[u32],
        targets: &[u32],
        temperature: f64,
    ) -> Result<TokenScores, PolicyError> {
        self.select(pass, rows, targets)?;
        let (device, hidden) = (&self.device, self.shape.hidden);
        let scored = &mut pass.scored;
        scored.inverse_temperature = (1.0 / temperature) as f32;
        if rows.is_empty() {
            return Ok(TokenScores::default());
        }
        let count = rows.len();
        let logprobs = scored.logprobs.sized(device, Kind::F32, count)?;
        let entropies = scored.entropies.sized(device, Kind::F32, count)?;
        let logsumexps = scored.logsumexps.sized(device, Kind::F32, count)?;
        let normed = scored.normed.get(count * hidden);
        let targets = scored.words.view(&scored.targets);
        for chunk in self.chunks(count) {
            let normed = normed.slice(chunk.start * hidden..chunk.end * hidden);
            let logits = scored.logits.sized(device, Kind::F32, chunk.len() * self.shape.vocab)?;
            self.logits_into(normed, logits, scored.inverse_temperature)?;
            let outputs = [logprobs, entropies, logsumexps].map(|it| it.slice(chunk.clone()));
            device.score_rows(logits, targets.slice(chunk), outputs)?;
        }
        Ok(TokenScores { logprobs: logprobs.read()?, entropies: entropies.read()? })
    }

    pub(crate) fn backward(
        &self,
        pass: &mut DevicePass,
        d_logprobs: &[f32],
        gradients: &mut DeviceGradients,
    ) -> Result<(), PolicyError> {
        let (device, hidden) = (&self.device, self.shape.hidden);
        let count = d_logprobs.len();
        let scored = &mut pass.scored;
        scored.d_normed.sized(device, Kind::Element, count * hidden)?;
        if count > 0 {
            let slopes = scored.slopes.sized(device, Kind::F32, count)?;
            slopes.write(d_logprobs)?;
            let (normed, d_normed) =
                (scored.normed.get(count * hidden), scored.d_normed.get(count * hidden));
            let logsumexps = scored.logsumexps.get(count);
            let targets = scored.words.view(&scored.targets);
            let chunks = self.chunks(count);
            let kept = chunks.len() == 1;
            for chunk in chunks {
                let values = chunk.start * hidden..chunk.end * hidden;
                let normed = normed.slice(values.clone());
                let size = chunk.len() * self.shape.vocab;
                let logits = scored.logits.sized(device, Kind::F32, size)?;
                if !kept {
                    self.logits_into(normed, logits, scored.inverse_temperature)?;
                }
                let dz = scored.dz.sized(device, Kind::Element, size)?;
                device.score_rows_backward(
                    logits,
                    targets.slice(chunk.clone()),
                    logsumexps.slice(chunk.clone()),
                    slopes.slice(chunk.clone()),
                    dz,
                    scored.inverse_temperature,
                )?;
                let head = self.head.elements();
                let d_normed = d_normed.slice(values);
                device.project_back(dz, head, hidden, d_normed, Output::Replace)?;
                let (dw, into) = gradients.product(device, &self.head)?;
                device.weight_gradient(dz, normed, chunk.len(), dw, into)?;
            }
        }
        self.backward_selected(pass, gradients)
    }

    /// The same from the gradient by the selected rows.
    pub(crate) fn backward_hidden(
        &self,
        pass: &mut DevicePass,
        d_hidden: &[f32],
        gradients: &mut DeviceGradients,
    ) -> Result<(), PolicyError> {
        let scored = &mut pass.scored;
        let count = scored.rows.len() * self.shape.hidden;
        let floats = scored.floats.sized(&self.device, Kind::F32, count)?;
        floats.write(&d_hidden[..count])?;
        self.device.narrow(floats, scored.d_normed.sized(&self.device, Kind::Element, count)?)?;
        self.backward_selected(pass, gradients)
    }

    fn backward_selected(
        &self,
        pass: &mut DevicePass,
        gradients: &mut DeviceGradients,
    ) -> Result<(), PolicyError> {
        let (device, hidden) = (&self.device, self.shape.hidden);
        let eps = self.shape.rms_norm_eps as f32;
        let DevicePass { words, places, inputs, layers, scratch, scored, g, .. } = pass;
        let total = places.rows * hidden;
        let g = g.sized(device, Kind::Element, total)?;
        g.clear()?;
        let count = scored.rows.len() * hidden;
        if count > 0 {
            let d_selected = scored.d_selected.sized(device, Kind::Element, count)?;
            let (scales, partial) = scratch.statistics();
            norm_backward(
                device,
                &self.final_norm,
                scored.selected.get(count),
                scored.d_normed.get(count),
                (d_selected, Output::Replace),
                eps,
                scales,
                partial,
                gradients,
            )?;
            device.scatter_rows(d_selected, &scored.words.segments(&scored.by_row), g, hidden)?;
        }
        let held = self.held_rotations();
        let place = self.place(words, places, &held);
        let tiles =
            Tiles { queries: words.view(&places.query_tiles), keys: words.view(&places.key_tiles) };
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let x = inputs[index].get(total);
            let recomputes = layers.len() < self.layers.len();
            let activations = &mut layers[if recomputes { 0 } else { index }];
            if recomputes {
                let next = inputs[index + 1].get(total);
                self.layer_forward(layer, place, x, activations, next, scratch, &mut |it| {
                    self.attend(it, tiles.queries)
                })?;
            }
            self.layer_backward(layer, place, tiles, x, activations, g, scratch, gradients)?;
        }
        let d_embedding = gradients.sum(device, &self.embedding)?;
        device.add_rows(g, &words.segments(&places.by_token), d_embedding, hidden)
    }

    /// Logits of some normed rows, divided by the temperature.
    pub(crate) fn logits_into(
        &self,
        normed: View<'_>,
        logits: View<'_>,
        inverse_temperature: f32,
    ) -> Result<(), PolicyError> {
        let (head, hidden) = (self.head.elements(), self.shape.hidden);
        self.device.project(normed, head, hidden, logits, Output::Replace, inverse_temperature)
    }

    fn attend(&self, it: Attended<'_>, tiles: View<'_>) -> Result<(), PolicyError> {
        let Attended { q, k, v, out, logsumexps } = it;
        self.device.attention(q, k, v, tiles, out, logsumexps, self.heads())
    }

    fn place<'a>(
        &self,
        words: &'a Words,
        places: &Places,
        rotations: &'a DeviceRotations,
    ) -> Place<'a> {
        Place {
            positions: words.view(&places.positions),
            cos: rotations.cos.view(),
            sin: rotations.sin.view(),
            head_dim: self.shape.head_dim,
        }
    }

    /// Rows of which all logits are held at once.
    fn chunks(&self, rows: usize) -> Vec<std::ops::Range<usize>> {
        let most = (CHUNK_LOGITS / self.shape.vocab).max(1);
        (0..rows).step_by(most).map(|first| first..rows.min(first + most)).collect()
    }
}
