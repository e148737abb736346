//! One drawing code for every plot of a report, as SVG for the page and PNG for Markdown.
//!
//! Colours: Okabe and Ito's palette, which the colour-blind can tell apart, then grey and violet. The page replaces
//! them by lighter ones on a dark ground (attribute selectors in template.html), so a colour used
//! here must stand there too.

use std::{path::Path, sync::Once};

use plotters::{
    coord::Shift,
    element::DashedPathElement,
    prelude::*,
    style::{
        FontStyle, register_font,
        text_anchor::{HPos, Pos, VPos},
    },
};

use super::ReportError;

/// Width and height of a plot of one panel in layout units; text sizes below are in the same units.
const SIZE: (i32, i32) = (600, 350);

/// Where the first panel ends, and how much lower every further one does.
const FIRST_BOTTOM: i32 = 290;
const PANEL: i32 = 178;

/// Between two panels.
const PANEL_GAP: i32 = 22;

/// Pixels to a layout unit. plotters rounds to whole pixels, so lines drawn at 1 look jagged.
const SVG_SCALE: i32 = 3;
const PNG_SCALE: i32 = 2;

/// Each pixel of the PNG is the mean of a square of this side, which smooths its edges.
const PNG_SUPERSAMPLING: i32 = 2;

/// Points of one curve that are drawn; longer curves are thinned to their means.
const POINTS_DRAWN: usize = 400;

/// Curves shorter than this are drawn as they are, longer ones as dots under a running mean.
const SMOOTHED_FROM: usize = 16;

/// Text size of labels and legend.
const LABEL: i32 = 16;

/// Text size of the names of stages.
const STAGE_NAME: i32 = 13;

const INK: RGBColor = RGBColor(0x24, 0x29, 0x2f);
const FAINT_INK: RGBColor = RGBColor(0x57, 0x60, 0x6a);
const GRID: RGBColor = RGBColor(0xd8, 0xde, 0xe4);
const PALETTE: [RGBColor; 8] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x7f, 0x7f, 0x7f),
    RGBColor(0x7b, 0x4f, 0xb5),
];

/// DejaVu Sans, cut down to Latin, Greek and signs; licence in font/LICENSE-DejaVu.txt.
static FONT: &[u8] = include_bytes!("font/DejaVuSans-subset.ttf");
const FONT_NAME: &str = "sans-serif";

/// A plot: what it shows, and its series.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    /// Names its file: report_plots/SLUG.png.
    pub(super) slug: String,
    pub(super) title: String,
    /// What a reader needs to know to read it; stands under the plot.
    pub(super) caption: String,
    pub(super) x_label: String,
    /// With the unit.
    pub(super) y_label: String,
    pub(super) x: XAxis,
    pub(super) y: YAxis,
    pub(super) series: Vec<Series>,
    /// Further panels below the first, over the same x axis, with the same colours.
    pub(super) below: Vec<Panel>,
    /// Where stages begin that are laid end to end; drawn if there are several.
    pub(super) starts: Vec<(f64, String)>,
}

/// One of several sets of axes of a plot.
#[derive(Clone, Debug)]
pub(super) struct Panel {
    /// With the unit.
    pub(super) y_label: String,
    pub(super) y: YAxis,
    pub(super) series: Vec<Series>,
}

/// What the x axis counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum XAxis {
    /// Steps of a stage.
    Steps,
    /// Powers of two, evenly spaced, as pass@k wants.
    Doublings,
    /// Of a quantity of 0 or more whose square root is evenly spaced, as KL wants.
    Roots,
}

impl XAxis {
    /// A value in the units in which the axis is even.
    fn bent(self, x: f64) -> f64 {
        match self {
            Self::Steps => x,
            Self::Doublings => x.max(1.0).log2(),
            Self::Roots => x.max(0.0).sqrt(),
        }
    }
}

/// How the y axis is laid out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum YAxis {
    /// From 0 to 1.
    Share,
    /// From 0 to the largest value.
    FromZero,
    /// Around the values.
    Fitted,
    /// Powers of ten; values that are not positive stand at the lower edge.
    Log,
}

/// One line of a plot.
#[derive(Clone, Debug)]
pub(super) struct Series {
    /// Decides the colour where the plot holds several groups.
    pub(super) group: String,
    /// Decides the dashes, and the colour where the plot holds one group only.
    pub(super) kind: String,
    pub(super) mark: Mark,
    /// (x, y), x rising.
    pub(super) points: Vec<(f64, f64)>,
    /// (x, low, high): intervals, drawn as bars.
    pub(super) intervals: Vec<(f64, f64, f64)>,
}

/// How the points of a series are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mark {
    /// Many noisy values: faint dots and their running mean.
    Noisy,
    /// Few values that each stand for much: discs joined by a line.
    Discs,
    /// Values that are smooth already: a line.
    Line,
    /// One of the curves that a line is the mean of: a faint line.
    Faint,
    /// Places on a line: rings.
    Places,
}

impl Chart {
    /// The plot as an SVG element without a background.
    pub(super) fn svg(&self) -> Result<String, ReportError> {
        let mut svg = String::new();
        let size = ((SIZE.0 * SVG_SCALE) as u32, (self.height() * SVG_SCALE) as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        self.draw(&Canvas { root: &root, scale: SVG_SCALE })
            .and_then(|()| root.present())
            .map_err(|error| self.failed(&error))?;
        drop(root);
        Ok(svg)
    }

    /// Writes the plot as a PNG on white.
    pub(super) fn write_png(&self, path: &Path) -> Result<(), ReportError> {
        let (width, height) = ((SIZE.0 * PNG_SCALE) as usize, (self.height() * PNG_SCALE) as usize);
        let side = PNG_SUPERSAMPLING as usize;
        let mut fine = vec![255u8; width * height * side * side * 3];
        {
            let size = ((width * side) as u32, (height * side) as u32);
            let root = BitMapBackend::with_buffer(&mut fine, size).into_drawing_area();
            self.draw(&Canvas { root: &root, scale: PNG_SCALE * PNG_SUPERSAMPLING })
                .and_then(|()| root.present())
                .map_err(|error| self.failed(&error))?;
        }
        let pixels = box_means(&fine, width, height, side);
        let mut png = BitMapBackend::new(path, (width as u32, height as u32));
        png.blit_bitmap((0, 0), (width as u32, height as u32), &pixels)
            .and_then(|()| png.present())
            .map_err(|error| self.failed(&error))
    }

    fn height(&self) -> i32 {
        SIZE.1 + PANEL * self.below.len() as i32
    }

    /// The series of all panels.
    fn all_series(&self) -> impl Iterator<Item = &Series> {
        self.series.iter().chain(self.below.iter().flat_map(|panel| &panel.series))
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> ReportError {
        ReportError::Plot { slug: self.slug.clone(), reason: error.to_string() }
    }

    fn draw<B: DrawingBackend>(&self, canvas: &Canvas<'_, B>) -> Drawn<B> {
        load_font();
        canvas.text(&self.title, (16, 12), 21, &INK, HPos::Left, VPos::Top)?;
        let legend_end = self.draw_legend(canvas)?;

        let above = if self.starts.len() > 1 { STAGE_NAME } else { 0 };
        let first = (self.y_label.as_str(), self.y, self.series.as_slice());
        let below = self.below.iter().map(|it| (it.y_label.as_str(), it.y, it.series.as_slice()));
        let (mut top, mut bottom) = (legend_end + 12 + above, FIRST_BOTTOM);
        let mut frames = Vec::new();
        for (label, y, series) in std::iter::once(first).chain(below) {
            frames.push((Frame::new(self, y, series, top, bottom), label, series));
            (top, bottom) = (bottom + PANEL_GAP, bottom + PANEL);
        }
        // Panels stand on one x axis.
        let left = frames.iter().map(|(frame, ..)| frame.left).max().unwrap_or_default();
        for (nth, (frame, label, series)) in frames.iter_mut().enumerate() {
            frame.left = left;
            self.draw_axes(canvas, frame, label, nth == self.below.len())?;
            self.draw_starts(canvas, frame, nth == 0)?;
            // Dots first, so that no line is hidden under those of another series.
            for series in series.iter() {
                self.draw_dots(canvas, frame, series)?;
            }
            let is_faint = |it: &&Series| it.mark == Mark::Faint;
            let clear = series.iter().filter(|it| !is_faint(it));
            for series in series.iter().filter(is_faint).chain(clear) {
                self.draw_series(canvas, frame, series)?;
            }
        }
        Ok(())
    }

    /// Grid and labels; those of x only under the last panel.
    fn draw_axes<B: DrawingBackend>(
        &self,
        canvas: &Canvas<'_, B>,
        frame: &Frame,
        y_label: &str,
        is_last: bool,
    ) -> Drawn<B> {
        for &(at, ref label) in &frame.y_ticks {
            let y = frame.y(at);
            canvas.line(&[(frame.left, y), (frame.right, y)], &GRID, 1, None)?;
            canvas.text(
                label,
                (frame.left - 7, y),
                LABEL,
                &FAINT_INK,
                HPos::Right,
                VPos::Center,
            )?;
        }
        for &(at, ref label) in &frame.x_ticks {
            let x = frame.x(at);
            canvas.line(&[(x, frame.bottom), (x, frame.bottom + 4)], &FAINT_INK, 1, None)?;
            if is_last {
                let at = (x, frame.bottom + 8);
                canvas.text(label, at, LABEL, &FAINT_INK, HPos::Center, VPos::Top)?;
            }
        }
        canvas.line(
            &[(frame.left, frame.bottom), (frame.right, frame.bottom)],
            &FAINT_INK,
            1,
            None,
        )?;
        if is_last {
            let at = ((frame.left + frame.right) / 2, frame.bottom + 44);
            canvas.text(&self.x_label, at, LABEL, &INK, HPos::Center, VPos::Center)?;
        }
        canvas.rotated_text(y_label, (16, (frame.top + frame.bottom) / 2), LABEL, &INK)
    }

    /// A dashed line where each stage begins, and its name at the top.
    fn draw_starts<B: DrawingBackend>(
        &self,
        canvas: &Canvas<'_, B>,
        frame: &Frame,
        named: bool,
    ) -> Drawn<B> {
        if self.starts.len() < 2 {
            return Ok(());
        }
        let mut places: Vec<(i32, String)> = Vec::new();
        for (start, stage) in &self.starts {
            let x = frame.x(*start);
            match places.last_mut().filter(|(at, _)| *at == x) {
                Some((_, names)) => *names = format!("{names}, {stage}"),
                None => places.push((x, stage.clone())),
            }
        }
        for (x, names) in places {
            canvas.line(&[(x, frame.top), (x, frame.bottom)], &FAINT_INK, 1, Some((3, 3)))?;
            if !named {
                continue;
            }
            let width = canvas.text_width(&names, STAGE_NAME)?;
            let left = (x + 4).min(frame.right - width);
            let at = (left, frame.top - 2);
            canvas.text(&names, at, STAGE_NAME, &FAINT_INK, HPos::Left, VPos::Bottom)?;
        }
        Ok(())
    }

    fn draw_dots<B: DrawingBackend>(
        &self,
        canvas: &Canvas<'_, B>,
        frame: &Frame,
        series: &Series,
    ) -> Drawn<B> {
        if series.mark != Mark::Noisy || series.points.len() < SMOOTHED_FROM {
            return Ok(());
        }
        let colour = self.colour(series).mix(0.3);
        for (x, y) in thinned(&series.points) {
            canvas.disc((frame.x(x), frame.y(y)), 7, &colour)?;
        }
        Ok(())
    }

    fn draw_series<B: DrawingBackend>(
        &self,
        canvas: &Canvas<'_, B>,
        frame: &Frame,
        series: &Series,
    ) -> Drawn<B> {
        let colour = self.colour(series);
        let smooth = match series.mark {
            // On a log axis the mean of the logarithms is what the eye expects.
            Mark::Noisy => running_mean(&thinned(&series.points), |y| frame.bent(y)),
            Mark::Line | Mark::Faint => {
                thinned(&series.points).into_iter().map(|(x, y)| (x, frame.bent(y))).collect()
            }
            Mark::Discs | Mark::Places => {
                series.points.iter().map(|&(x, y)| (x, frame.bent(y))).collect()
            }
        };
        let line: Vec<_> =
            smooth.iter().map(|&(x, bent)| (frame.x(x), frame.y_bent(bent))).collect();
        if series.mark == Mark::Faint {
            return canvas.line(&line, &colour.mix(0.35), 1, None);
        }
        if series.mark == Mark::Places {
            return line.iter().try_for_each(|&at| canvas.ring(at, &colour));
        }
        if self.is_joined(series) {
            canvas.line(&line, &colour, 2, self.dashes(series))?;
        }
        if series.mark == Mark::Discs || line.len() == 1 {
            for &(x, low, high) in &series.intervals {
                let (x, low, high) = (frame.x(x), frame.y(low), frame.y(high));
                canvas.line(&[(x, low), (x, high)], &colour, 1, None)?;
                canvas.line(&[(x - 3, low), (x + 3, low)], &colour, 1, None)?;
                canvas.line(&[(x - 3, high), (x + 3, high)], &colour, 1, None)?;
            }
            for &at in &line {
                canvas.disc(at, 14, &colour)?;
            }
        }
        Ok(())
    }

    /// Draws the legend under the title and returns where it ends.
    fn draw_legend<B: DrawingBackend>(
        &self,
        canvas: &Canvas<'_, B>,
    ) -> Result<i32, DrawingAreaErrorKind<B::ErrorType>> {
        let (groups, kinds) = (self.groups(), self.kinds());
        let mut entries = Vec::new();
        if groups.len() > 1 {
            let colours = (0..groups.len()).map(colour);
            entries.extend(groups.iter().zip(colours).map(|(group, colour)| (group, colour, None)));
        }
        if kinds.len() > 1 {
            for kind in &kinds {
                let series = self.all_series().find(|series| series.kind == **kind);
                let series = series.expect("every kind comes from a series");
                let colour = if groups.len() > 1 { INK } else { self.colour(series) };
                entries.push((kind, colour, Some(series)));
            }
        }
        let (mut x, mut y) = (16, 50);
        if entries.is_empty() {
            return Ok(30);
        }
        for (label, colour, series) in entries {
            let width = 34 + canvas.text_width(label, LABEL)?;
            if x + width > SIZE.0 - 12 && x > 16 {
                (x, y) = (16, y + 21);
            }
            let mark = series.map(|series| series.mark);
            if mark == Some(Mark::Noisy) {
                canvas.disc((x + 5, y - 4), 7, &colour.mix(0.4))?;
                canvas.disc((x + 16, y + 4), 7, &colour.mix(0.4))?;
            }
            let dashes = series.and_then(|series| self.dashes(series));
            if mark == Some(Mark::Faint) {
                canvas.line(&[(x, y), (x + 22, y)], &colour.mix(0.35), 1, None)?;
            } else if mark == Some(Mark::Places) {
                canvas.ring((x + 11, y), &colour)?;
            } else if series.is_none_or(|series| self.is_joined(series)) {
                canvas.line(&[(x, y), (x + 22, y)], &colour, 2, dashes)?;
            } else {
                canvas.line(&[(x + 11, y - 7), (x + 11, y + 7)], &colour, 1, None)?;
            }
            if mark == Some(Mark::Discs) {
                canvas.disc((x + 11, y), 14, &colour)?;
            }
            canvas.text(label, (x + 28, y), LABEL, &INK, HPos::Left, VPos::Center)?;
            x += width + 14;
        }
        Ok(y + 8)
    }

    fn groups(&self) -> Vec<&str> {
        distinct(self.all_series().map(|series| series.group.as_str()))
    }

    fn kinds(&self) -> Vec<&str> {
        distinct(self.all_series().map(|series| series.kind.as_str()))
    }

    fn colour(&self, series: &Series) -> RGBColor {
        let groups = self.groups();
        let (names, name) =
            if groups.len() > 1 { (groups, &series.group) } else { (self.kinds(), &series.kind) };
        colour(names.iter().position(|other| other == name).unwrap_or_default())
    }

    /// Discs beside a noisy curve are not joined: the curve shows the way between them.
    fn is_joined(&self, series: &Series) -> bool {
        match series.mark {
            Mark::Noisy | Mark::Line | Mark::Faint => true,
            Mark::Discs => self.all_series().all(|other| other.mark == Mark::Discs),
            Mark::Places => false,
        }
    }

    /// The length and gap of the dashes of a series; a solid line for the first kind of a mark.
    fn dashes(&self, series: &Series) -> Option<(i32, i32)> {
        let same_mark = self.all_series().filter(|other| other.mark == series.mark);
        let kinds = distinct(same_mark.map(|other| other.kind.as_str()));
        match kinds.iter().position(|kind| *kind == series.kind).unwrap_or_default() {
            0 => None,
            nth if nth % 2 == 1 => Some((6, 4)),
            _ => Some((2, 3)),
        }
    }
}

type Drawn<B> = Result<(), DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

/// A drawing area that is addressed in layout units.
struct Canvas<'a, B: DrawingBackend> {
    root: &'a DrawingArea<B, Shift>,
    scale: i32,
}

impl<B: DrawingBackend> Canvas<'_, B> {
    fn line(
        &self,
        points: &[(i32, i32)],
        colour: &impl Color,
        width: u32,
        dashes: Option<(i32, i32)>,
    ) -> Drawn<B> {
        let points: Vec<_> = points.iter().map(|&at| self.scaled(at)).collect();
        let style = colour.stroke_width(width * self.scale as u32);
        match dashes {
            None => self.root.draw(&PathElement::new(points, style)),
            Some((dash, gap)) => {
                let (dash, gap) = (dash * self.scale, gap * self.scale);
                self.root.draw(&DashedPathElement::new(points, dash, gap, style))
            }
        }
    }

    /// A disc whose diameter is in halves of a layout unit.
    fn disc(&self, at: (i32, i32), diameter: i32, colour: &impl Color) -> Drawn<B> {
        let radius = (diameter * self.scale / 4).max(1);
        self.root.draw(&Circle::new(self.scaled(at), radius, colour.filled()))
    }

    /// A ring around a place on a line.
    fn ring(&self, at: (i32, i32), colour: &RGBColor) -> Drawn<B> {
        let style = colour.stroke_width(2 * self.scale as u32);
        self.root.draw(&Circle::new(self.scaled(at), 6 * self.scale, style))
    }

    fn text(
        &self,
        text: &str,
        at: (i32, i32),
        size: i32,
        colour: &RGBColor,
        horizontal: HPos,
        vertical: VPos,
    ) -> Drawn<B> {
        let style = self.style(size, colour).pos(Pos::new(horizontal, vertical));
        self.root.draw_text(&printable(text), &style, self.scaled(at))
    }

    fn rotated_text(&self, text: &str, at: (i32, i32), size: i32, colour: &RGBColor) -> Drawn<B> {
        let style = self.style(size, colour).transform(FontTransform::Rotate270);
        let style = style.pos(Pos::new(HPos::Center, VPos::Center));
        self.root.draw_text(&printable(text), &style, self.scaled(at))
    }

    fn text_width(&self, text: &str, size: i32) -> Result<i32, DrawingAreaErrorKind<B::ErrorType>> {
        let (width, _) = self.root.estimate_text_size(&printable(text), &self.style(size, &INK))?;
        Ok(width as i32 / self.scale)
    }

    fn style(&self, size: i32, colour: &RGBColor) -> TextStyle<'static> {
        let font = FontDesc::from((FONT_NAME, f64::from(size * self.scale)));
        TextStyle { font, color: colour.to_backend_color(), pos: Pos::new(HPos::Left, VPos::Top) }
    }

    fn scaled(&self, (x, y): (i32, i32)) -> (i32, i32) {
        (x * self.scale, y * self.scale)
    }
}

/// Where the values of a chart stand on its canvas.
#[derive(Debug)]
struct Frame {
    left: i32,
    right: i32,
    top: i32,
    bottom: i32,
    x_range: (f64, f64),
    /// In bent units.
    y_range: (f64, f64),
    x_axis: XAxis,
    y_axis: YAxis,
    x_ticks: Vec<(f64, String)>,
    y_ticks: Vec<(f64, String)>,
}

impl Frame {
    fn new(chart: &Chart, y: YAxis, series: &[Series], top: i32, bottom: i32) -> Self {
        let points = || chart.all_series().flat_map(|series| &series.points);
        let values = series.iter().flat_map(|series| &series.points).map(|&(_, y)| y);
        let bounds = series.iter().flat_map(|series| &series.intervals);
        let values: Vec<f64> =
            values.chain(bounds.flat_map(|&(_, low, high)| [low, high])).collect();

        let (y_range, y_ticks) = match y {
            YAxis::Share => ((0.0, 1.0), ticks(0.0, 1.0, 5)),
            YAxis::Log => log_ticks(&values),
            YAxis::FromZero => fitted(range(values.iter().copied().chain([0.0]))),
            YAxis::Fitted => fitted(range(values.iter().copied())),
        };
        let bend_x = |x: f64| chart.x.bent(x);
        let stages = if chart.starts.len() > 1 { chart.starts.as_slice() } else { &[] };
        let begins = stages.iter().map(|(start, _)| *start);
        let (first, last) = range(points().map(|&(x, _)| bend_x(x)).chain(begins));
        let last = if last > first { last } else { first + 1.0 };
        let x_ticks = match chart.x {
            XAxis::Steps => ticks(first, last, 7),
            XAxis::Roots => root_ticks(last * last),
            XAxis::Doublings => {
                let mut tries: Vec<_> = points().map(|&(x, _)| x).collect();
                tries.sort_by(f64::total_cmp);
                tries.dedup();
                tries.iter().map(|&k| (k, format!("{k:.0}"))).collect()
            }
        };
        let longest = y_ticks.iter().map(|(_, label)| label.chars().count()).max().unwrap_or(0);
        let margin = (last - first) * 0.02;
        Self {
            left: 42 + 9 * longest as i32,
            right: SIZE.0 - 16,
            top,
            bottom,
            x_range: (first - margin, last + margin),
            y_range,
            x_axis: chart.x,
            y_axis: y,
            x_ticks,
            y_ticks,
        }
    }

    fn x(&self, x: f64) -> i32 {
        let x = self.x_axis.bent(x);
        let share = (x - self.x_range.0) / (self.x_range.1 - self.x_range.0);
        self.left + (share * f64::from(self.right - self.left)).round() as i32
    }

    fn y(&self, y: f64) -> i32 {
        self.y_bent(self.bent(y))
    }

    /// A value in the units in which the axis is even: its logarithm on a log axis.
    fn bent(&self, y: f64) -> f64 {
        match self.y_axis {
            YAxis::Log if y > 0.0 => y.log10().max(self.y_range.0),
            YAxis::Log => self.y_range.0,
            _ => y,
        }
    }

    fn y_bent(&self, bent: f64) -> i32 {
        let share = (bent - self.y_range.0) / (self.y_range.1 - self.y_range.0);
        self.bottom - (share.clamp(0.0, 1.0) * f64::from(self.bottom - self.top)).round() as i32
    }
}

fn colour(nth: usize) -> RGBColor {
    PALETTE[nth % PALETTE.len()]
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let bounds =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if bounds.0 <= bounds.1 { bounds } else { (0.0, 1.0) }
}

/// A range that ends on ticks, so that the first and last grid line frame the curves.
fn fitted((low, high): (f64, f64)) -> ((f64, f64), Vec<(f64, String)>) {
    let pad = if high > low { 0.0 } else { high.abs().max(1.0) * 0.5 };
    let low_padded = if low == 0.0 { 0.0 } else { low - pad };
    let step = tick_step(low_padded, high + pad, 5);
    let low = (low_padded / step).floor() * step;
    let high = ((high + pad) / step).ceil() * step;
    ((low, high), ticks(low, high, 5))
}

/// About `count` round numbers from `low` to `high`, with labels.
fn ticks(low: f64, high: f64, count: usize) -> Vec<(f64, String)> {
    let step = tick_step(low, high, count);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|nth| (nth as f64 * step, tick_label(nth as f64 * step, step))).collect()
}

/// 1, 2 or 5 times a power of ten.
fn tick_step(low: f64, high: f64, count: usize) -> f64 {
    let rough = (high - low).max(f64::MIN_POSITIVE) / count as f64;
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= rough * 0.999);
    factor.unwrap_or(10.0) * power
}

fn tick_label(value: f64, step: f64) -> String {
    let (value, step, suffix) = match value.abs() {
        _ if step < 1e-4 => return format!("{value:.1e}"),
        size if size >= 1e6 => (value / 1e6, step / 1e6, "M"),
        size if size >= 1e4 => (value / 1e3, step / 1e3, "k"),
        _ => (value, step, ""),
    };
    let decimals = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
    format!("{value:.decimals$}{suffix}")
}

/// 0 and the round numbers up to `most` whose roots are not too close to each other.
fn root_ticks(most: f64) -> Vec<(f64, String)> {
    let mut ticks = vec![(0.0, "0".to_owned())];
    for power in -4..6 {
        for factor in [1.0, 2.0, 5.0] {
            let value: f64 = factor * 10f64.powi(power);
            let last: f64 = ticks.last().map_or(0.0, |it| it.0);
            let apart = value.sqrt() - last.sqrt() > 0.07 * most.sqrt();
            if value <= most && apart {
                ticks.push((value, tick_label(value, value)));
            }
        }
    }
    ticks
}

/// Whole powers of ten around the positive values, at most seven of them labelled.
fn log_ticks(values: &[f64]) -> ((f64, f64), Vec<(f64, String)>) {
    let (low, high) = range(values.iter().copied().filter(|&value| value > 0.0));
    let (low, high) = (low.log10().floor().max(-300.0) as i32, high.log10().ceil() as i32);
    let high = high.max(low + 1);
    let stride = ((high - low) / 7 + 1) as usize;
    let ticks = (low..=high).step_by(stride).map(|power| {
        let label = match power {
            -3..=3 => format!("{}", 10f64.powi(power)),
            _ => format!("1e{power}"),
        };
        (10f64.powi(power), label)
    });
    ((f64::from(low), f64::from(high)), ticks.collect())
}

/// At most [`POINTS_DRAWN`] points, each the mean of as many neighbours.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let chunk = points.len().div_ceil(POINTS_DRAWN).max(1);
    let mean = |chunk: &[(f64, f64)]| {
        let (x, y) = chunk.iter().fold((0.0, 0.0), |(a, b), &(x, y)| (a + x, b + y));
        (x / chunk.len() as f64, y / chunk.len() as f64)
    };
    points.chunks(chunk).map(mean).collect()
}

/// Mean of each value and its neighbours; the window is a twelfth of the curve, and narrows at
/// both ends so that the first and the last value stand as they are.
fn running_mean(points: &[(f64, f64)], bend: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
    let bent: Vec<_> = points.iter().map(|&(_, y)| bend(y)).collect();
    let reach = if points.len() < SMOOTHED_FROM { 0 } else { points.len().div_ceil(24) };
    let mean = |(at, &(x, _)): (usize, &(f64, f64))| {
        let reach = reach.min(at).min(points.len() - 1 - at);
        let window = &bent[at - reach..=at + reach];
        (x, window.iter().sum::<f64>() / window.len() as f64)
    };
    points.iter().enumerate().map(mean).collect()
}

/// Each pixel of the result is the mean of a `side` × `side` square of `fine` (RGB).
fn box_means(fine: &[u8], width: usize, height: usize, side: usize) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            for channel in 0..3 {
                let square = (0..side * side).map(|nth| {
                    let (row, column) = (y * side + nth / side, x * side + nth % side);
                    usize::from(fine[(row * width * side + column) * 3 + channel])
                });
                pixels.push((square.sum::<usize>() / (side * side)) as u8);
            }
        }
    }
    pixels
}

/// Names are data: control characters have no place in an SVG.
fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}

fn load_font() {
    static LOADED: Once = Once::new();
    LOADED.call_once(|| {
        let loaded = register_font(FONT_NAME, FontStyle::Normal, FONT);
        assert!(loaded.is_ok(), "the embedded font is a font");
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64) -> Vec<String> {
        ticks(low, high, 5).into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(labels(0.0, 1.0), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(0.0, 60.0), ["0", "20", "40", "60"]);
        assert_eq!(labels(3.0, 3.5), ["3.0", "3.1", "3.2", "3.3", "3.4", "3.5"]);
        assert_eq!(labels(0.0, 50_000.0), ["0", "10k", "20k", "30k", "40k", "50k"]);
    }

    #[test]
    fn a_running_mean_keeps_the_ends_and_constants() {
        let points: Vec<_> = (0..100).map(|x| (f64::from(x), 3.0)).collect();
        assert_eq!(running_mean(&points, |y| y), points);
        let line: Vec<_> = (0..100).map(|x| (f64::from(x), f64::from(x))).collect();
        let mean = running_mean(&line, |y| y);
        assert_eq!((mean[0], mean[99]), (line[0], line[99]));
    }

    #[test]
    fn long_curves_are_thinned() {
        let points: Vec<_> = (0..100_000).map(|x| (f64::from(x), 1.0)).collect();
        assert!(thinned(&points).len() <= POINTS_DRAWN);
    }

    #[test]
    fn a_log_axis_takes_zeros_and_tiny_values() {
        let ((low, high), ticks) = log_ticks(&[0.0, 3e-9, 2e-4]);
        assert_eq!((low, high), (-9.0, -3.0));
        assert_eq!(ticks.len(), 7);
        assert!(!log_ticks(&[0.0]).1.is_empty());
    }

    #[test]
    fn a_root_axis_has_round_numbers_apart_from_each_other() {
        let labels: Vec<String> = root_ticks(56.0).into_iter().map(|it| it.1).collect();
        assert_eq!(labels, ["0", "0.5", "2", "5", "10", "20", "50"]);
        assert_eq!(XAxis::Roots.bent(-1.0), 0.0);
    }

    #[test]
    fn names_cannot_break_out_of_the_svg() {
        let series = |group: &str| Series {
            group: group.to_owned(),
            kind: String::new(),
            mark: Mark::Discs,
            points: vec![(0.0, 0.5)],
            intervals: vec![(0.0, 0.4, 0.6)],
        };
        let chart = Chart {
            slug: "x".to_owned(),
            title: "</text><script>alert(1)</script>".to_owned(),
            caption: String::new(),
            x_label: "step".to_owned(),
            y_label: "share".to_owned(),
            x: XAxis::Steps,
            y: YAxis::Share,
            series: vec![series("a"), series("<img onerror=x>\u{1b}")],
            below: vec![Panel {
                y_label: "</text><script>".to_owned(),
                y: YAxis::Fitted,
                series: vec![series("<script>")],
            }],
            starts: vec![(0.0, "a".to_owned()), (0.0, "<script>\u{1b}".to_owned())],
        };
        let svg = chart.svg().unwrap();
        assert!(!svg.contains("<script") && !svg.contains("<img") && !svg.contains('\u{1b}'));
    }
}
