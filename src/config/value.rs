//! A TOML document as a tree whose every key and value remembers where it came from.
//!
//! Spans are byte ranges of the file; what a `--set` gave has the number of that override
//! instead, so that a mistake in it is reported as `--set key=value` and not as a line.

use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where a key or a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// These bytes of the file.
    File(Range<usize>),
    /// The override of this number.
    Override(usize),
    /// Nowhere in particular: the top level of the file.
    Top,
}

/// A value and where it was written.
#[derive(Clone, Debug)]
pub struct Node {
    pub(super) content: Content,
    pub(super) origin: Origin,
    /// The words of the override, which may be meant as a string although they read as a number.
    pub(super) spelled: Option<String>,
    /// Put in by the strict reader to get past a problem; what is wrong with it is not news.
    pub(super) invented: bool,
}

/// What a [`Node`] holds.
#[derive(Clone, Debug)]
pub(super) enum Content {
    String(String),
    Integer(i128),
    Float(f64),
    Boolean(bool),
    Date(String),
    List(Vec<Node>),
    Table(Vec<Entry>),
    /// Agrees with whatever type is asked for; see the strict reader.
    Wildcard,
}

/// A key with its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_origin: Origin,
    pub(super) node: Node,
}

/// One part of a path: `stage[1].steps` is the key `stage`, the index 1 and the key `steps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A key of a table.
    Key(String),
    /// A place in a list, from 0.
    Index(usize),
}

impl Node {
    pub(super) fn new(content: Content, origin: Origin) -> Self {
        Self { content, origin, spelled: None, invented: false }
    }

    pub(super) fn wildcard() -> Self {
        Self { invented: true, ..Self::new(Content::Wildcard, Origin::Top) }
    }

    /// Reads a document; numbers beyond 64 bits come back with their place.
    pub(super) fn parse(text: &str) -> (Self, Vec<(String, Range<usize>)>) {
        let (root, errors) = DeTable::parse_recoverable(text);
        let mut faults: Vec<_> = errors
            .iter()
            .map(|error| {
                let span = error.span().unwrap_or(0..0);
                (syntax_in_words(error.message(), text, span.start), span)
            })
            .collect();
        let mut node = from_table(root.get_ref(), Origin::Top, &mut faults);
        node.origin = Origin::Top;
        (node, faults)
    }

    /// Reads the value of an override; `None` if the words are no TOML value.
    pub(super) fn parse_value(text: &str, number: usize) -> Option<Self> {
        let document = format!("value = {text}");
        let table = DeTable::parse(&document).ok()?.into_inner();
        let (_, value) = table.iter().next().filter(|_| table.len() == 1)?;
        let mut faults = Vec::new();
        let mut node = from_value(value, &mut faults);
        node.set_origin(number);
        if !matches!(node.content, Content::List(_) | Content::Table(_) | Content::String(_)) {
            node.spelled = Some(text.trim().to_owned());
        }
        faults.is_empty().then_some(node)
    }

    /// The value that `path` leads to, if all of it is there.
    pub(super) fn at(&self, path: &[Step]) -> Option<&Node> {
        path.iter().try_fold(self, |node, step| node.child(step))
    }

    /// As [`at`](Self::at), to be changed.
    pub(super) fn at_mut(&mut self, path: &[Step]) -> Option<&mut Node> {
        path.iter().try_fold(self, |node, step| match (step, &mut node.content) {
            (Step::Key(key), Content::Table(entries)) => {
                entries.iter_mut().find(|entry| entry.key == *key).map(|entry| &mut entry.node)
            }
            (Step::Index(index), Content::List(nodes)) => nodes.get_mut(*index),
            _ => None,
        })
    }

    /// The entries of a table; none for anything else.
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.content {
            Content::Table(entries) => entries,
            _ => &[],
        }
    }

    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The string under `key`, if it is one.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match &self.entry(key)?.node.content {
            Content::String(text) => Some(text),
            _ => None,
        }
    }

    /// Where the key that `path` ends with was written.
    pub(super) fn key_origin(&self, path: &[Step]) -> Option<&Origin> {
        let (last, parents) = path.split_last()?;
        match last {
            Step::Key(key) => self.at(parents)?.entry(key).map(|entry| &entry.key_origin),
            Step::Index(_) => self.at(path).map(|node| &node.origin),
        }
    }

    /// Where `path` stands, or else the nearest thing around it that does.
    pub(super) fn nearest_origin(&self, path: &[Step]) -> &Origin {
        let mut node = self;
        for step in path {
            match node.child(step) {
                Some(child) => node = child,
                None => break,
            }
        }
        &node.origin
    }

    /// Whether anything in it was put there by the strict reader.
    pub(super) fn holds_invention(&self) -> bool {
        self.invented
            || match &self.content {
                Content::List(nodes) => nodes.iter().any(Self::holds_invention),
                Content::Table(entries) => entries.iter().any(|it| it.node.holds_invention()),
                _ => false,
            }
    }

    /// What the value is, in the reader's words.
    pub(super) fn in_words(&self) -> String {
        match &self.content {
            Content::String(_) => "a string".to_owned(),
            Content::Integer(number) => format!("the number {number}"),
            Content::Float(number) => format!("the number {number:?}"),
            Content::Boolean(value) => value.to_string(),
            Content::Date(_) => "a date".to_owned(),
            Content::List(_) => "a list".to_owned(),
            Content::Table(_) => "a table".to_owned(),
            Content::Wildcard => "nothing".to_owned(),
        }
    }

    /// The value as it would stand in TOML, if it is short.
    pub(super) fn as_toml(&self) -> Option<String> {
        match &self.content {
            Content::String(text) if text.len() <= 40 => Some(format!("{text:?}")),
            Content::Integer(number) => Some(number.to_string()),
            Content::Float(number) => Some(format!("{number:?}")),
            Content::Boolean(value) => Some(value.to_string()),
            _ => None,
        }
    }

    /// The value as JSON; dates become strings. JSON has no infinity: the paths of such numbers
    /// come back with `null` in their place.
    pub(super) fn to_json(
        &self,
        path: &mut Vec<Step>,
        lost: &mut Vec<Vec<Step>>,
    ) -> serde_json::Value {
        use serde_json::Value;
        match &self.content {
            Content::String(text) | Content::Date(text) => Value::String(text.clone()),
            Content::Integer(number) => match (u64::try_from(*number), i64::try_from(*number)) {
                (Ok(number), _) => Value::from(number),
                (_, Ok(number)) => Value::from(number),
                _ => Value::from(*number as f64),
            },
            Content::Float(number) => {
                if !number.is_finite() {
                    lost.push(path.clone());
                }
                Value::from(*number)
            }
            Content::Boolean(value) => Value::Bool(*value),
            Content::List(nodes) => {
                let inside = nodes.iter().enumerate().map(|(index, node)| {
                    path.push(Step::Index(index));
                    let value = node.to_json(path, lost);
                    path.pop();
                    value
                });
                Value::Array(inside.collect())
            }
            Content::Table(entries) => {
                let inside = entries.iter().map(|entry| {
                    path.push(Step::Key(entry.key.clone()));
                    let value = entry.node.to_json(path, lost);
                    path.pop();
                    (entry.key.clone(), value)
                });
                Value::Object(inside.collect())
            }
            Content::Wildcard => Value::Null,
        }
    }

    fn child(&self, step: &Step) -> Option<&Node> {
        match (step, &self.content) {
            (Step::Key(key), _) => self.entry(key).map(|entry| &entry.node),
            (Step::Index(index), Content::List(nodes)) => nodes.get(*index),
            _ => None,
        }
    }

    fn set_origin(&mut self, number: usize) {
        self.origin = Origin::Override(number);
        match &mut self.content {
            Content::List(nodes) => nodes.iter_mut().for_each(|node| node.set_origin(number)),
            Content::Table(entries) => {
                for entry in entries {
                    entry.key_origin = Origin::Override(number);
                    entry.node.set_origin(number);
                }
            }
            _ => {}
        }
    }
}

/// Reads a path as it is written on the command line: `stage[1].steps`, `stage."a.b"`.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse_path(text: &str) -> Result<Vec<Step>, String> {
    let mut path = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        if let Some(inside) = rest.strip_prefix('[') {
            let (index, after) = inside.split_once(']').ok_or("a `[` is not closed")?;
            let index = index.trim().parse().map_err(|_| format!("`[{index}]` is no index"))?;
            path.push(Step::Index(index));
            rest = after;
        } else {
            if !path.is_empty() {
                rest = rest.strip_prefix('.').ok_or("a `.` is missing between two keys")?;
            }
            let (key, after) = match rest.chars().next().filter(|first| "\"'".contains(*first)) {
                Some(quote) => rest[1..].split_once(quote).ok_or("a quote is not closed")?,
                None => rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len())),
            };
            let key = key.trim();
            if key.is_empty() {
                return Err("a key is empty".to_owned());
            }
            path.push(Step::Key(key.to_owned()));
            rest = after;
        }
    }
    if path.is_empty() { Err("the key is empty".to_owned()) } else { Ok(path) }
}

/// A path as text: `stage[1].steps`.
pub struct PathText<'a>(pub &'a [Step]);

impl fmt::Display for PathText<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(formatter, "[{index}]")?,
                Step::Key(key) => {
                    if position > 0 {
                        formatter.write_str(".")?;
                    }
                    let bare = |letter: char| letter.is_alphanumeric() || "_-".contains(letter);
                    if key.chars().all(bare) {
                        formatter.write_str(key)?;
                    } else {
                        write!(formatter, "{key:?}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn from_table(
    table: &DeTable<'_>,
    origin: Origin,
    faults: &mut Vec<(String, Range<usize>)>,
) -> Node {
    let entries = table.iter().map(|(key, value)| Entry {
        key: key.get_ref().to_string(),
        key_origin: Origin::File(key.span()),
        node: from_value(value, faults),
    });
    Node::new(Content::Table(entries.collect()), origin)
}

fn from_value(value: &Spanned<DeValue<'_>>, faults: &mut Vec<(String, Range<usize>)>) -> Node {
    let origin = Origin::File(value.span());
    let content = match value.get_ref() {
        DeValue::String(text) => Content::String(text.to_string()),
        DeValue::Integer(number) => {
            let read = i128::from_str_radix(number.as_str(), number.radix()).ok();
            match read.filter(|read| (i64::MIN.into()..=u64::MAX.into()).contains(read)) {
                Some(read) => Content::Integer(read),
                None => {
                    faults.push((format!("{number} does not fit into 64 bits"), value.span()));
                    Content::Integer(0)
                }
            }
        }
        DeValue::Float(number) => match number.as_str().parse::<f64>() {
            Ok(read)
                if read.is_finite() || !number.as_str().contains(|c: char| c.is_ascii_digit()) =>
            {
                Content::Float(read)
            }
            _ => {
                faults.push((format!("{number} does not fit into 64 bits"), value.span()));
                Content::Float(0.0)
            }
        },
        DeValue::Boolean(value) => Content::Boolean(*value),
        DeValue::Datetime(date) => Content::Date(date.to_string()),
        DeValue::Array(values) => {
            Content::List(values.iter().map(|value| from_value(value, faults)).collect())
        }
        DeValue::Table(table) => return from_table(table, origin, faults),
    };
    Node::new(content, origin)
}

/// The parser's message, or ours where it misleads: nothing after `=` is no unquoted string.
fn syntax_in_words(message: &str, text: &str, start: usize) -> String {
    let rest = text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or("");
    let before = text.get(..start).unwrap_or("").trim_end_matches([' ', '\t']);
    if rest.trim().is_empty() && before.ends_with('=') {
        return "a value is missing after `=`".to_owned();
    }
    format!("not valid TOML: {message}")
}
