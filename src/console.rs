//! What a person at the terminal sees: progress bars and a table of sampled replies.
//!
//! Everything goes to stderr, so that stdout stays for results. Bars vanish when stderr is no
//! terminal; lines are still written there, except under `--quiet`. Text of a model is hostile
//! (it may hold escape sequences), so it passes [`shown`] before it reaches a terminal.

use std::{
    borrow::Cow,
    io::{self, Write},
    time::Duration,
};

use comfy_table::{Cell, CellAlignment, Table, presets};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Characters of a prompt that the table of samples shows: its tail, where the question stands.
const PROMPT_CHARS: usize = 28;

/// Characters of a reply that the table of samples shows: its head and its tail.
const REPLY_CHARS: usize = 56;

/// Redraw interval of a bar whose work reports rarely, so that its clock still moves.
const STEADY_TICK: Duration = Duration::from_millis(250);

/// Hands out progress bars and prints lines above them.
///
/// Clones share one set of bars; hand a clone to each thread that reports.
#[derive(Clone, Debug)]
pub struct Console {
    /// Whether bars and lines are dropped (`-q`). Errors are not the console's to print.
    quiet: bool,
    bars: MultiProgress,
}

impl Console {
    /// A console on stderr; `quiet` drops all it is given.
    pub fn new(quiet: bool) -> Self {
        let target =
            if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        Self { quiet, bars: MultiProgress::with_draw_target(target) }
    }

    /// Whether bars are drawn: neither quiet nor redirected.
    pub fn draws(&self) -> bool {
        !self.bars.is_hidden()
    }

    /// A bar of `total` units of work, for instance `bar("pretrain", 800, "steps")`.
    pub fn bar(&self, label: &str, total: u64, unit: &str) -> Bar {
        let template = format!(
            "{{prefix:>12.bold}} {{bar:24.cyan/dim}} {{human_pos}}/{{human_len}} {} \
             {{per_sec:.dim}} eta {{eta}} {{wide_msg}}",
            literal(unit)
        );
        self.added(ProgressBar::new(total), &template, label)
    }

    /// Prints one line (or several, split at newlines) above the bars; nothing when quiet.
    pub fn line(&self, text: impl AsRef<str>) {
        if self.quiet {
            return;
        }
        // A closed stderr must not end a training run, so failures to print are dropped.
        if self.draws() {
            let _ = self.bars.println(text);
        } else {
            let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
        }
    }

    fn added(&self, bar: ProgressBar, template: &str, label: &str) -> Bar {
        let bar = self.bars.add(bar);
        bar.set_style(style(template).progress_chars("━╸─"));
        bar.set_prefix(shown(label).into_owned());
        if self.draws() {
            bar.enable_steady_tick(STEADY_TICK);
        }
        Bar { bar }
    }
}

/// One line of progress; it leaves the screen when it is dropped.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// Adds `done` units of work.
    pub fn advance(&self, done: u64) {
        self.bar.inc(done);
    }

    /// Sets the units of work done so far; a resumed run starts here without counting the jump
    /// into the rate.
    pub fn start_at(&self, done: u64) {
        self.bar.set_position(done);
        self.bar.reset_eta();
    }

    /// Sets the units of work done so far.
    pub fn set(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// The units of work done so far.
    pub fn position(&self) -> u64 {
        self.bar.position()
    }

    /// Shows `text` at the end of the line, for instance `reward 0.81  length 18.1`.
    pub fn message(&self, text: &str) {
        self.bar.set_message(shown(text).into_owned());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// One sampled reply as the table shows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SampleRow {
    /// The prompt; its tail is shown.
    pub prompt: String,
    /// The reply; shortened in the middle.
    pub reply: String,
    /// The reward of the reply; `None` where the verifier could not score it.
    pub reward: Option<f64>,
    /// The advantage of the reply; `None` before credit is assigned.
    pub advantage: Option<f64>,
    /// Tokens of the reply.
    pub tokens: usize,
}

/// A table of sampled replies, one line each, at most 120 columns wide for narrow characters.
pub fn samples_table(rows: &[SampleRow]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["prompt", "reply", "reward", "advantage", "tokens"]);
    for row in rows {
        table.add_row([
            Cell::new(tail(&row.prompt, PROMPT_CHARS)),
            Cell::new(middle_cut(&row.reply, REPLY_CHARS)),
            number(row.reward.map(|reward| format!("{reward:.2}"))),
            number(row.advantage.map(|advantage| format!("{advantage:+.2}"))),
            number(Some(row.tokens.to_string())),
        ]);
    }
    table.to_string()
}

fn number(text: Option<String>) -> Cell {
    Cell::new(text.unwrap_or_else(|| "–".to_owned())).set_alignment(CellAlignment::Right)
}

/// The last `limit` characters of `text`, escaped.
fn tail(text: &str, limit: usize) -> String {
    let text = shown(text);
    let chars = text.chars().count();
    if chars <= limit {
        return text.into_owned();
    }
    std::iter::once('…').chain(text.chars().skip(chars + 1 - limit)).collect()
}

/// `text`, escaped, with its middle left out where it exceeds `limit` characters.
fn middle_cut(text: &str, limit: usize) -> String {
    let text = shown(text);
    let chars = text.chars().count();
    if chars <= limit {
        return text.into_owned();
    }
    let head = limit / 2;
    let foot = limit - head - 1;
    let kept = text.chars().take(head).chain(std::iter::once('…'));
    kept.chain(text.chars().skip(chars - foot)).collect()
}

/// `text` with every character that could move the cursor, hide or reorder text made visible.
pub fn shown(text: &str) -> Cow<'_, str> {
    if !text.chars().any(acts_on_terminal) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for char in text.chars() {
        match char {
            '\n' => escaped.push('⏎'),
            '\t' => escaped.push('⇥'),
            char if acts_on_terminal(char) => escaped.extend(char.escape_unicode()),
            char => escaped.push(char),
        }
    }
    Cow::Owned(escaped)
}

/// As [`shown`], but line ends and tabs stay.
pub fn shown_lines(text: &str) -> String {
    let pieces = text.split_inclusive(['\n', '\t']).map(|piece| {
        let inside = piece.trim_end_matches(['\n', '\t']);
        format!("{}{}", shown(inside), &piece[inside.len()..])
    });
    pieces.collect()
}

/// Control characters, and the invisible ones that change the direction or the join of text.
fn acts_on_terminal(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// `text` such that a template of indicatif shows it as it stands.
fn literal(text: &str) -> String {
    text.replace('{', "{{").replace('}', "}}")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates of this file are well formed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(reply: &str) -> SampleRow {
        SampleRow {
            prompt: "9+5+1+2+0+9+8+3?".to_owned(),
            reply: reply.to_owned(),
            reward: Some(1.0),
            advantage: Some(-0.25),
            tokens: 19,
        }
    }

    #[test]
    fn escape_sequences_of_a_reply_are_shown_and_not_obeyed() {
        let table = samples_table(&[row("\u{1b}[2J=7\n\u{202e}evil")]);
        assert!(!table.contains('\u{1b}') && !table.contains('\u{202e}'));
        assert!(table.contains(r"\u{1b}[2J=7⏎\u{202e}evil"), "{table}");
    }

    #[test]
    fn lines_and_tabs_stay_where_text_is_printed_as_such() {
        assert_eq!(shown_lines("a\n\n\tb\u{1b}[2J\r\n"), "a\n\n\tb\\u{1b}[2J\\u{d}\n");
    }

    #[test]
    fn long_replies_keep_head_and_tail_within_the_width() {
        let table = samples_table(&[row(&format!("START{}END", "x".repeat(5000)))]);
        assert!(table.contains("START") && table.contains("END"));
        assert!(table.lines().all(|line| line.chars().count() <= 120), "{table}");
    }

    #[test]
    fn missing_numbers_show_a_dash() {
        let unscored = SampleRow { reward: None, advantage: None, ..row("x") };
        assert_eq!(samples_table(&[unscored]).matches('–').count(), 2);
    }

    #[test]
    fn cuts_count_characters_not_bytes() {
        assert_eq!(tail("äöüß", 3), "…üß");
        assert_eq!(middle_cut("äöüßéè", 5), "äö…éè");
        assert_eq!(middle_cut("äöü", 5), "äöü");
    }

    #[test]
    fn bars_count_while_hidden() {
        let console = Console::new(true);
        let bar = console.bar("rl {x}", 10, "steps {of} work");
        bar.start_at(4);
        bar.advance(2);
        bar.message("reward 0.5");
        assert_eq!(bar.position(), 6);
    }
}
