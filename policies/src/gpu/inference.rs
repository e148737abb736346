//! Sampling on a device: the layers over a cache, logits, and the draw of tokens.

use super::buffer::{Buffer, Room, View};
use super::cache::DeviceBlocks;
use super::driver::Kind;
use super::kernels::DrawViews;
use super::layer::{Activations, Attended, Place, Scratch};
use super::tiles::push_tiles;
use super::weights::Resident;
use super::words::Words;
use crate::error::PolicyError;
use crate::ops::Rotations;
use crate::sampling::Draw;

/// Buffers of one call, kept for the next.
#[derive(Debug, Default)]
pub(crate) struct DeviceInference {
    words: Words,
    x: [Room; 2],
    activations: Activations,
    scratch: Scratch,
    selected: Room,
    logits: Room,
    inverse_temperatures: Room,
    uniforms: Room,
    tokens: Room,
    logprobs: Room,
    kept_masses: Room,
}

/// Final normed states of some rows, on the device.
#[derive(Debug)]
pub struct DeviceHidden {
    pub(crate) states: Buffer,
    pub(crate) rows: usize,
}

/// New rows of one sequence: its blocks, how many tokens it held before, and the new tokens.
pub(crate) struct DeviceSpan<'a> {
    pub table: &'a [usize],
    pub held: usize,
    pub tokens: &'a [u32],
}

/// What is drawn from one row of hidden states.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowDraw {
    pub row: usize,
    /// 0 takes the likeliest.
    pub inverse_temperature: f32,
    pub uniform: f64,
    /// Whether the forbidden tokens cannot be drawn yet.
    pub early: bool,
}

impl Resident {
    /// Runs the layers over the spans' tokens, whose places in the cache exist, and gives the
    /// final normed state of each span's last token.
    pub(crate) fn extend(
        &self,
        work: &mut DeviceInference,
        blocks: &DeviceBlocks,
        spans: &[DeviceSpan<'_>],
        rotations: &Rotations,
    ) -> Result<DeviceHidden, PolicyError> {
        let (device, hidden) = (&self.device, self.shape.hidden);
        let heads = self.heads();
        let DeviceInference { words, x, activations, scratch, selected, .. } = work;
        words.start();
        let rows: usize = spans.iter().map(|it| it.tokens.len()).sum();
        let tokens = words.add(spans.iter().flat_map(|it| it.tokens).copied());
        let position = |it: &DeviceSpan<'_>| it.held as u32..(it.held + it.tokens.len()) as u32;
        let positions = words.add(spans.iter().flat_map(position));
        let places = words.add(spans.iter().flat_map(|it| {
            position(it).map(|at| {
                let at = at as usize;
                (it.table[at / POSITIONS] * POSITIONS + at % POSITIONS) as u32
            })
        }));
        let tables = words.add(spans.iter().flat_map(|it| it.table).map(|it| *it as u32));
        let (mut tiles, mut last_rows) = (Vec::new(), Vec::new());
        let (mut row, mut table) = (0, 0);
        for span in spans {
            push_tiles(&mut tiles, row, span.tokens.len() * heads.group(), span.held, table);
            row += span.tokens.len();
            table += span.table.len();
            last_rows.push(row as u32 - 1);
        }
        let tiles = words.add(tiles);
        let last_rows = words.add(last_rows);
        words.upload(device)?;

        let rotations = self.rotations(rotations)?;
        let [tokens, positions, places, tables, tiles, last_rows] =
            [tokens, positions, places, tables, tiles, last_rows].map(|it| words.view(&it));
        let place = Place {
            positions,
            cos: rotations.cos.view(),
            sin: rotations.sin.view(),
            head_dim: heads.head_dim,
        };
        let [first, second] = x;
        let first = first.sized(device, Kind::Element, rows * hidden)?;
        let second = second.sized(device, Kind::Element, rows * hidden)?;
        let x = [first, second];
        device.gather_rows(self.embedding.elements(), tokens, x[0], hidden)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let (from, to) = (x[index % 2], x[1 - index % 2]);
            let at = (index, self.shape.layers);
            self.layer_forward(layer, place, from, activations, to, scratch, &mut |it| {
                let Attended { q, k, v, out, .. } = it;
                device.write_cache(k, v, places, blocks.view(), at, heads)?;
                device.attention_cached(q, blocks.view(), tables, tiles, out, at, heads)
            })?;
        }
        let selected = selected.sized(device, Kind::Element, spans.len() * hidden)?;
        device.gather_rows(x[self.shape.layers % 2], last_rows, selected, hidden)?;
        let states = device.buffer(Kind::Element, spans.len() * hidden)?;
        let eps = self.shape.rms_norm_eps as f32;
        device.rms_norm(selected, self.final_norm.elements(), states.view(), eps)?;
        Ok(DeviceHidden { states, rows: spans.len() })
    }

    /// Logits of some rows of hidden states, `(rows, vocab)`, on the host.
    pub(crate) fn logits(
        &self,
        work: &mut DeviceInference,
        hidden: &DeviceHidden,
        rows: &[usize],
    ) -> Result<Vec<f32>, PolicyError> {
        self.logits_of(work, hidden, rows)?.read()
    }

    /// A token for each draw; `None` where the logits are no numbers.
    pub(crate) fn draw(
        &self,
        work: &mut DeviceInference,
        hidden: &DeviceHidden,
        draws: &[RowDraw],
        forbidden: &[u32],
    ) -> Result<Vec<Option<Draw>>, PolicyError> {
        let (device, count) = (&self.device, draws.len());
        let rows: Vec<usize> = draws.iter().map(|it| it.row).collect();
        self.logits_of(work, hidden, &rows)?;
        let logits = work.logits.get(count * self.shape.vocab);
        work.words.start();
        let early = work.words.add(draws.iter().map(|it| u32::from(it.early)));
        let forbidden = work.words.add(forbidden.iter().copied());
        work.words.upload(device)?;
        let given = DrawViews {
            inverse_temperatures: work.inverse_temperatures.sized(device, Kind::F32, count)?,
            uniforms: work.uniforms.sized(device, Kind::F64, count)?,
            early: work.words.view(&early),
            forbidden: work.words.view(&forbidden),
        };
        let temperatures: Vec<f32> = draws.iter().map(|it| it.inverse_temperature).collect();
        given.inverse_temperatures.write(&temperatures)?;
        let uniforms: Vec<f64> = draws.iter().map(|it| it.uniform).collect();
        given.uniforms.write(&uniforms)?;
        let tokens = work.tokens.sized(device, Kind::U32, count)?;
        let logprobs = work.logprobs.sized(device, Kind::F32, count)?;
        let kept_masses = work.kept_masses.sized(device, Kind::F32, count)?;
        device.sample_rows(logits, &given, tokens, logprobs, kept_masses)?;
        let numbers = logprobs.read::<f32>()?.into_iter().zip(kept_masses.read::<f32>()?);
        let drawn = |(token, (logprob, kept_mass))| {
            (token != NO_TOKEN).then_some(Draw { token, logprob, kept_mass })
        };
        Ok(tokens.read::<u32>()?.into_iter().zip(numbers).map(drawn).collect())
    }

    fn logits_of<'a>(
        &self,
        work: &'a mut DeviceInference,
        hidden: &DeviceHidden,
        rows: &[usize],
    ) -> Result<View<'a>, PolicyError> {
        let (device, width) = (&self.device, self.shape.hidden);
        let logits = work.logits.sized(device, Kind::F32, rows.len() * self.shape.vocab)?;
        let all = rows.iter().copied().eq(0..hidden.rows);
        let states = if all {
            hidden.states.slice(0..hidden.rows * width)
        } else {
            work.words.start();
            let ids = work.words.add(rows.iter().map(|it| *it as u32));
            work.words.upload(device)?;
            let selected = work.selected.sized(device, Kind::Element, rows.len() * width)?;
            device.gather_rows(hidden.states.view(), work.words.view(&ids), selected, width)?;
            selected
        };
        self.logits_into(states, logits, 1.0)?;
        Ok(logits)
    }

    /// States of the host, on the device.
    pub(crate) fn hidden(&self, states: &[f32]) -> Result<DeviceHidden, PolicyError> {
        let buffer = self.device.buffer(Kind::Element, states.len())?;
        self.device.narrow(self.device.floats(states)?.view(), buffer.view())?;
        Ok(DeviceHidden { states: buffer, rows: states.len() / self.shape.hidden })
    }
}

impl DeviceHidden {
    /// On the host, `(rows, hidden)`.
    pub(crate) fn read(&self, resident: &Resident) -> Result<Vec<f32>, PolicyError> {
        let device = &resident.device;
        let count = self.rows * resident.shape.hidden;
        let floats = device.buffer(Kind::F32, count)?;
        device.widen(self.states.slice(0..count), floats.view())?;
        floats.view().read()
    }
}

/// Positions of a block of the cache.
const POSITIONS: usize = crate::ops::attention::BLOCK;
/// What the kernel says where there is nothing to draw.
const NO_TOKEN: u32 = u32::MAX;
