//! What is wrong with a configuration, told so that it can be put right.
//!
//! A [`Problem`] knows its place (a line of the file or the `--set` that caused it), what was
//! found, what was expected and the way out. [`Problems`] gathers all of one pass, because a
//! reader who mends one line at a time has to start the program once for every mistake.

use std::fmt;
use std::ops::Range;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};
use serde::Serialize;

/// What a component says about its own table; it knows keys and values, but no files.
///
/// The other half, where the key stands, is added by [`Table::problem`](super::document::Table::problem).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// Dotted path inside the component's table, e.g. `sampling.top_p` or `tiers[1].digits`;
    /// empty for the table as a whole.
    pub key: String,
    /// What is wrong, lower case and without a full stop.
    pub problem: String,
    /// What stands there, if saying so helps.
    pub found: Option<String>,
    /// What should stand there.
    pub expected: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Fault {
    /// A fault of `key` that is described by `problem`.
    pub fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { key: key.into(), problem: problem.into(), ..Self::default() }
    }

    /// The same fault seen from one table further out: `table` goes before its key.
    pub fn within(mut self, table: &str) -> Self {
        self.key = format!("{table}.{}", self.key);
        self
    }

    /// Adds what was found.
    pub fn found(mut self, found: impl Into<String>) -> Self {
        self.found = Some(found.into());
        self
    }

    /// Adds what was expected.
    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    /// Adds the way out.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Where a problem stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// A file as a whole: it is missing, or a key is absent from its top level.
    File {
        /// The file as the user named it.
        path: String,
    },
    /// A line of a file.
    Line {
        /// The file as the user named it.
        path: String,
        /// First line is 1.
        line: usize,
        /// First character of the line is 1.
        column: usize,
        /// The text of that line.
        excerpt: String,
        /// The bytes of `excerpt` that are meant.
        marked: Range<usize>,
    },
    /// A `--set key=value` of the command line.
    Override {
        /// What follows `--set`.
        text: String,
    },
}

impl Place {
    /// The place of the bytes `span` in `text`, the contents of the file `path`.
    pub fn in_text(path: &str, text: &str, span: Range<usize>) -> Self {
        let start = floor_char_boundary(text, span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
        let excerpt = text[line_start..line_end].trim_end_matches('\r');
        let end = floor_char_boundary(text, span.end).clamp(start, line_start + excerpt.len());
        let marked = start - line_start..(end - line_start).max(start - line_start);
        Self::Line {
            path: path.to_owned(),
            line: text[..line_start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            excerpt: excerpt.to_owned(),
            marked,
        }
    }

    /// Files before overrides, lines from top to bottom.
    fn reading_order(&self) -> (u8, usize, usize) {
        match self {
            Self::File { .. } => (0, 0, 0),
            Self::Line { line, column, .. } => (0, *line, *column),
            Self::Override { .. } => (1, 0, 0),
        }
    }
}

impl fmt::Display for Place {
    /// `file`, `file:line:column` or `--set key=value`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path } => formatter.write_str(path),
            Self::Line { path, line, column, .. } => write!(formatter, "{path}:{line}:{column}"),
            Self::Override { text } => {
                write!(formatter, "--set {}", text.replace('\n', "\\n").replace('\r', "\\r"))
            }
        }
    }
}

/// One thing wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where it stands.
    pub place: Place,
    /// The key it is about, from the top of the file: `stage[1].group_size`; empty for the whole.
    pub key: String,
    /// What is wrong, lower case and without a full stop.
    pub what: String,
    /// What stands there.
    pub found: Option<String>,
    /// What should stand there.
    pub expected: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Problem {
    /// The problem that `fault` describes, at `place` and under the full path `key`.
    pub fn new(place: Place, key: impl Into<String>, fault: Fault) -> Self {
        let Fault { key: _, problem, found, expected, hint } = fault;
        Self { place, key: key.into(), what: problem, found, expected, hint }
    }

    /// What is wrong, with what was found and expected, in one line.
    pub fn title(&self) -> String {
        match (&self.found, &self.expected) {
            (None, None) => self.what.clone(),
            (Some(found), None) => format!("{}: found {found}", self.what),
            (None, Some(expected)) => format!("{}: expected {expected}", self.what),
            (Some(found), Some(expected)) => {
                format!("{}: found {found}, expected {expected}", self.what)
            }
        }
    }

    /// The problem as a few lines of text: title, place, the line of the file, hint.
    pub fn render(&self, paint: Paint) -> String {
        let renderer = match paint {
            Paint::Plain => Renderer::plain(),
            Paint::Colour => Renderer::styled(),
        };
        let renderer = renderer.decor_style(DecorStyle::Ascii);
        let title = self.title();
        let title = Level::ERROR.primary_title(&title);
        let label = if self.key.is_empty() { String::new() } else { format!("key {}", self.key) };
        let mut groups = vec![match &self.place {
            Place::Line { path, line, excerpt, marked, .. } => title.element(
                Snippet::source(excerpt).path(path).line_start(*line).annotation(
                    AnnotationKind::Primary
                        .span(marked.clone())
                        .label((!label.is_empty()).then_some(label.as_str())),
                ),
            ),
            place if label.is_empty() => title.element(Origin::path(place.to_string())),
            place => title.element(Origin::path(format!("{place}, {label}"))),
        }];
        let hint = Level::HELP.with_name("hint");
        if let Some(text) = &self.hint {
            groups.push(hint.secondary_title(text).elements(Vec::<Origin<'_>>::new()));
        }
        renderer.render(&groups)
    }
}

/// Whether the text is for a terminal that shows colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// Text alone, for files, pipes and tests.
    Plain,
    /// With the escape codes of a terminal.
    Colour,
}

/// Everything wrong with one configuration, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    subject: String,
    list: Vec<Problem>,
}

impl Problems {
    /// No problems yet with `subject`, the file as the user named it.
    pub fn of(subject: impl Into<String>) -> Self {
        Self { subject: subject.into(), list: Vec::new() }
    }

    /// Adds one more.
    pub fn push(&mut self, problem: Problem) {
        if !self.list.contains(&problem) {
            self.list.push(problem);
        }
    }

    /// Adds all of `others`.
    pub fn extend(&mut self, others: Problems) {
        for problem in others.list {
            self.push(problem);
        }
    }

    /// Puts `fault` on the key it names inside `table`.
    pub fn at(&mut self, table: &super::document::Table, fault: Fault) {
        self.push(table.problem(fault));
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// The problems in the order they were found.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }

    /// `value` if nothing was wrong, else the problems in the order of the file.
    ///
    /// # Errors
    /// If there are problems. `value` is `None` only if there are; a missing value without a
    /// problem is a mistake of the reader and panics.
    pub fn into_result<T>(mut self, value: Option<T>) -> Result<T, Problems> {
        if self.list.is_empty() {
            return Ok(value.expect("a configuration without problems has been read"));
        }
        self.list.sort_by_key(|problem| problem.place.reading_order());
        Err(self)
    }

    /// All problems as text, then how many there are.
    pub fn render(&self, paint: Paint) -> String {
        let mut text = String::new();
        for problem in &self.list {
            text.push_str(&problem.render(paint));
            text.push_str("\n\n");
        }
        let count = self.list.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        text.push_str(&format!("{count} {noun} in {}; nothing was started", self.subject));
        text
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.render(Paint::Plain))
    }
}

impl std::error::Error for Problems {}

/// The one of `candidates` that was probably meant by `word`, if any is near enough.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Below this likeness two words share letters by accident.
    const ALIKE: f64 = 0.6;
    let folded = |word: &str| word.to_lowercase().replace('-', "_");
    let wanted = folded(word);
    candidates
        .into_iter()
        .map(|candidate| {
            (strsim::normalized_damerau_levenshtein(&wanted, &folded(candidate)), candidate)
        })
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(left, _), (right, _)| left.total_cmp(right))
        .map(|(_, candidate)| candidate)
}

fn floor_char_boundary(text: &str, index: usize) -> usize {
    let mut index = index.min(text.len());
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_shows_its_line_and_its_way_out() {
        let text = "seed = 1\n[[stage]]\ngroup_siez = 8\n";
        let place = Place::in_text("config.toml", text, 19..29);
        let fault =
            Fault::new("group_siez", "unknown key `group_siez`").hint("did you mean `group_size`?");
        let problem = Problem::new(place, "stage[0].group_siez", fault);
        assert_eq!(
            problem.render(Paint::Plain),
            "\
error: unknown key `group_siez`
 --> config.toml:3:1
  |
3 | group_siez = 8
  | ^^^^^^^^^^ key stage[0].group_siez
  |
hint: did you mean `group_size`?"
        );
        assert!(problem.render(Paint::Colour).contains('\u{1b}'));
    }

    #[test]
    fn an_override_is_its_own_place() {
        let place = Place::Override { text: "rl.group_siez=8".to_owned() };
        let fault = Fault::new("group_siez", "unknown key `group_siez`");
        assert_eq!(
            Problem::new(place, "stage[0].group_siez", fault).render(Paint::Plain),
            "\
error: unknown key `group_siez`
--> --set rl.group_siez=8, key stage[0].group_siez"
        );
    }

    #[test]
    fn places_count_characters_and_stay_inside_the_line() {
        let text = "a = \"é\" b\r\nc = 1";
        let place = Place::in_text("f", text, 9..14);
        assert_eq!(place.to_string(), "f:1:9");
        assert!(matches!(place, Place::Line { marked, .. } if marked == (9..10)));
        assert_eq!(Place::in_text("f", text, 400..500).to_string(), "f:2:6");
        assert_eq!(Place::in_text("f", "", 0..0).to_string(), "f:1:1");
    }

    #[test]
    fn typing_slips_are_recognised_and_other_words_are_not() {
        let keys = ["group_size", "groups_per_step", "steps", "clip_range"];
        for (slip, meant) in [
            ("group_siez", Some("group_size")),
            ("group-size", Some("group_size")),
            ("stpes", Some("steps")),
            ("step", Some("steps")),
            ("cliprange", Some("clip_range")),
            ("colour", None),
            ("x", None),
        ] {
            assert_eq!(nearest(slip, keys), meant, "{slip}");
        }
    }
}
