//! Reads a tree of values into a serde type and goes on after the first mistake.
//!
//! Serde stops at the first error. So the reader mends what it has reported and starts over: an
//! unknown key is removed, a value of the wrong type and a missing key are replaced by a wildcard
//! that agrees with every type. When serde succeeds, everything has been seen; the result counts
//! only if nothing was mended. Only a tagged enum cannot be made up: after a wrong value inside one
//! that is required, reading ends and the problems after it are told next time. The error type keeps what serde knows (the unknown key, the list
//! of known ones, the type it wanted), so no message has to be taken apart.

use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer,
    MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};

use super::problem::{Fault, nearest};
use super::value::{Content, Entry, Node, Origin, PathText, Step};

/// What a problem is about, which decides what is underlined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// The key itself is wrong.
    Key,
    /// The value is wrong, or the table in which something is missing.
    Value,
}

/// Reads `node`, which stands at `base`, calling `report` for every problem with the path to it
/// inside `node`.
///
/// `also_known` are keys of the top table that another reader takes, so they are neither unknown
/// here nor forgotten when a slip of the pen is to be recognised.
pub(super) fn read<T: DeserializeOwned>(
    node: &Node,
    base: &[Step],
    also_known: &[String],
    mut report: impl FnMut(&[Step], Mark, Fault),
) -> Option<T> {
    let mut working = node.clone();
    let mut sound = true;
    // Keys that a slip was taken for: that they are missing is the same mistake.
    let mut suggested: Vec<(Vec<Step>, String)> = Vec::new();
    // Keys that nothing could be put under.
    let mut given_up: Vec<Vec<Step>> = Vec::new();
    loop {
        let error = match T::deserialize(Reading(&working)) {
            Ok(value) => return sound.then_some(value),
            Err(error) => error,
        };
        sound = false;
        let Failure { path, kind } = error;
        let path: Vec<Step> = path.into_iter().rev().collect();
        let target = working.at_mut(&path)?;
        let invented = target.invented;
        match &kind {
            Kind::UnknownField { field, known } => {
                let position = target.entries().iter().position(|entry| entry.key == *field);
                let (Content::Table(entries), Some(position)) = (&mut target.content, position)
                else {
                    // Inside something that serde read ahead, so its place is not known.
                    let fault = Fault::new("", format!("unknown key `{field}`"));
                    report(&path, Mark::Value, fault.hint(known_keys(known)));
                    return None;
                };
                if entries.remove(position).node.invented {
                    return None;
                }
                let also = also_known.iter().filter(|_| path.is_empty()).map(String::as_str);
                let known: Vec<&str> = known.iter().copied().chain(also).collect();
                let absent = known.iter().copied().filter(|key| target.entry(key).is_none());
                let absent = nearest(field, absent);
                if let Some(meant) = absent {
                    suggested.push((path.clone(), meant.to_owned()));
                }
                let meant = absent.or_else(|| nearest(field, known.iter().copied()));
                let fault = Fault::new("", format!("unknown key `{field}`"));
                let fault = match (meant, known.as_slice()) {
                    (Some(meant), _) => fault.hint(format!("did you mean `{meant}`?")),
                    (None, known) => fault.hint(known_keys(known)),
                };
                let path = [path.as_slice(), &[Step::Key(field.clone())]].concat();
                report(&path, Mark::Key, fault);
            }
            Kind::MissingField(field) => {
                if let Content::Wildcard = target.content {
                    target.content = Content::Table(Vec::new());
                }
                let Content::Table(entries) = &mut target.content else { return None };
                let full = [path.as_slice(), &[Step::Key((*field).to_owned())]].concat();
                if given_up.contains(&full) || entries.iter().any(|entry| entry.key == *field) {
                    return None;
                }
                entries.push(Entry {
                    key: (*field).to_owned(),
                    key_origin: Origin::Top,
                    node: Node::wildcard(),
                });
                let guessed = suggested.iter().any(|(at, key)| *at == path && key == field);
                if !invented && !guessed {
                    let fault = Fault::new("", format!("missing key `{field}`"));
                    report(&full, Mark::Value, fault);
                }
            }
            kind => {
                if invented {
                    // Types that look at the value before they choose need one of their own.
                    let next = match target.content {
                        Content::Wildcard => Some(Content::String(String::new())),
                        Content::String(_) => Some(Content::Integer(1)),
                        Content::Integer(_) => Some(Content::List(Vec::new())),
                        _ => None,
                    };
                    if let Some(next) = next {
                        target.content = next;
                        continue;
                    }
                    // Perhaps there is a default.
                    let (Step::Key(key), parents) = path.split_last()? else { return None };
                    let Content::Table(entries) = &mut working.at_mut(parents)?.content else {
                        return None;
                    };
                    entries.retain(|entry| entry.key != *key);
                    given_up.push(path);
                    continue;
                }
                if target.holds_invention() {
                    return None;
                }
                let full = [base, path.as_slice()].concat();
                report(&path, Mark::Value, kind.fault(&full, target));
                if path.is_empty() {
                    return None;
                }
                *target = Node::wildcard();
            }
        }
    }
}

fn known_keys(known: &[&str]) -> String {
    match known {
        [] => "no keys are known here".to_owned(),
        known => format!("known keys here: {}", known.join(", ")),
    }
}

/// `betas[0]` of `stage[1].optimizer.betas[0]`: what a reader looks for in the line.
pub(super) fn short_name(path: &[Step]) -> String {
    let last_key = path.iter().rposition(|step| matches!(step, Step::Key(_))).unwrap_or(0);
    PathText(&path[last_key..]).to_string()
}

/// What serde had to say, and the path to it from the innermost step outwards.
#[derive(Debug)]
pub(super) struct Failure {
    path: Vec<Step>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Custom(String),
    WrongType { found: String, expected: String },
    WrongValue { found: String, expected: String },
    WrongLength { found: usize, expected: String },
    UnknownVariant { variant: String, known: &'static [&'static str] },
    UnknownField { field: String, known: &'static [&'static str] },
    MissingField(&'static str),
}

impl Kind {
    fn fault(&self, path: &[Step], node: &Node) -> Fault {
        let name = match path {
            [] => "the file".to_owned(),
            path => format!("`{}`", short_name(path)),
        };
        match self {
            Self::WrongType { found, expected } => {
                // Some serde forms read ahead and forget which of the values inside it was.
                let itself = *found == node.in_words() || matches!(node.content, Content::Date(_));
                let found = if itself { node.in_words() } else { found.clone() };
                let name = if itself { name } else { format!("a value in {name}") };
                let hint = if itself { way_out(path, node, expected) } else { None };
                let fault = Fault::new("", format!("{name} has the wrong type"))
                    .found(found)
                    .expected(expected.clone());
                Fault { hint, ..fault }
            }
            Self::WrongValue { found, expected } => {
                Fault::new("", format!("{name} is out of range"))
                    .found(found.clone())
                    .expected(expected.clone())
            }
            Self::WrongLength { found, expected } => {
                Fault::new("", format!("{name} has the wrong length"))
                    .found(found.to_string())
                    .expected(expected.clone())
            }
            Self::UnknownVariant { variant, known } => {
                let fault =
                    Fault::new("", format!("{name} is {variant:?}, which is not known here"))
                        .expected(one_of(known));
                match nearest(variant, known.iter().copied()) {
                    Some(meant) => fault.hint(format!("did you mean {meant:?}?")),
                    None => fault,
                }
            }
            Self::Custom(message) if message.starts_with("data did not match any variant") => {
                Fault::new("", format!("{name} has a form that is not understood here"))
                    .found(node.in_words())
            }
            Self::Custom(message) if message.contains(&name) => Fault::new("", message.clone()),
            Self::Custom(message) => Fault::new("", format!("{name}: {message}")),
            Self::UnknownField { .. } | Self::MissingField(_) => {
                unreachable!("keys are reported by the reader")
            }
        }
    }
}

/// What to write instead, where the value is nearly right.
fn way_out(path: &[Step], node: &Node, expected: &str) -> Option<String> {
    let Some(Step::Key(key)) = path.last() else { return None };
    let number = expected.contains("number");
    match &node.content {
        Content::Float(found) if expected.starts_with("a whole") && found.fract() == 0.0 => {
            Some(format!("write it without a fraction: {key} = {found:.0}"))
        }
        Content::String(text) if number && text.parse::<f64>().is_ok() => {
            Some(format!("write it without quotes: {key} = {text}"))
        }
        Content::String(text) if expected == "true or false" => {
            let value = matches!(text.to_lowercase().as_str(), "true" | "yes" | "on" | "1");
            Some(format!("write it without quotes: {key} = {value}"))
        }
        _ if expected.starts_with("a list") => {
            Some(format!("put it in brackets: {key} = [{}]", node.as_toml()?))
        }
        Content::Integer(_) | Content::Float(_) | Content::Boolean(_) if expected == "a string" => {
            Some(format!("put it in quotes: {key} = \"{}\"", node.as_toml()?))
        }
        _ => None,
    }
}

/// What serde expects, in the words of someone who writes TOML and no Rust.
fn in_words(expected: &str) -> String {
    let range = |low: i128, high: i128| format!("a whole number from {low} to {high}");
    match expected {
        "u8" => range(0, u8::MAX.into()),
        "u16" => range(0, u16::MAX.into()),
        "i8" => range(i8::MIN.into(), i8::MAX.into()),
        "i16" => range(i16::MIN.into(), i16::MAX.into()),
        "u32" | "u64" | "u128" | "usize" => "a whole number of at least 0".to_owned(),
        "i32" | "i64" | "i128" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "bool" | "a boolean" => "true or false".to_owned(),
        "string" | "str" | "a borrowed string" => "a string".to_owned(),
        "path string" => "a path".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "a table".to_owned(),
        _ => {
            let words = expected.strip_prefix("a nonzero ");
            if words.is_some_and(|integer| integer.starts_with('u')) {
                "a whole number of at least 1".to_owned()
            } else if words.is_some() {
                "a whole number other than 0".to_owned()
            } else if expected.starts_with("struct ") || expected.starts_with("internally tagged") {
                "a table".to_owned()
            } else if let Some(length) = expected.strip_prefix("an array of length ") {
                format!("a list of {length} values")
            } else if let Some(length) = expected.strip_prefix("a tuple of size ") {
                format!("a list of {length} values")
            } else {
                expected.to_owned()
            }
        }
    }
}

fn one_of(known: &[&str]) -> String {
    let known: Vec<String> = known.iter().map(|name| format!("{name:?}")).collect();
    match known.as_slice() {
        [] => "nothing".to_owned(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.kind)
    }
}

impl std::error::Error for Failure {}

impl From<Kind> for Failure {
    fn from(kind: Kind) -> Self {
        Self { path: Vec::new(), kind }
    }
}

impl Failure {
    fn inside(mut self, step: Step) -> Self {
        self.path.push(step);
        self
    }
}

fn wrong_type(node: &Node, expected: &str) -> Failure {
    Kind::WrongType { found: node.in_words(), expected: expected.to_owned() }.into()
}

impl de::Error for Failure {
    fn custom<M: fmt::Display>(message: M) -> Self {
        Kind::Custom(message.to_string()).into()
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match unexpected {
            Unexpected::Str(_) => "a string".to_owned(),
            Unexpected::Unsigned(number) => format!("the number {number}"),
            Unexpected::Signed(number) => format!("the number {number}"),
            Unexpected::Float(number) => format!("the number {number:?}"),
            Unexpected::Bool(value) => value.to_string(),
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Map => "a table".to_owned(),
            other => other.to_string(),
        };
        Kind::WrongType { found, expected: in_words(&expected.to_string()) }.into()
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = expected.to_string();
        let highest = match expected.as_str() {
            "u32" => Some(u64::from(u32::MAX)),
            "i32" => Some(i32::MAX as u64),
            "i64" | "isize" => Some(i64::MAX as u64),
            _ => None,
        };
        let words = match (unexpected, highest) {
            (Unexpected::Unsigned(_), Some(highest)) => {
                format!("a whole number of at most {highest}")
            }
            _ => in_words(&expected),
        };
        let found = match unexpected {
            Unexpected::Unsigned(number) => number.to_string(),
            Unexpected::Signed(number) => number.to_string(),
            Unexpected::Float(number) => format!("{number:?}"),
            Unexpected::Bool(value) => value.to_string(),
            Unexpected::Str(text) => format!("{text:?}"),
            other => other.to_string(),
        };
        Kind::WrongValue { found, expected: words }.into()
    }

    fn invalid_length(found: usize, expected: &dyn Expected) -> Self {
        Kind::WrongLength { found, expected: in_words(&expected.to_string()) }.into()
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        Kind::UnknownVariant { variant: variant.to_owned(), known }.into()
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        Kind::UnknownField { field: field.to_owned(), known }.into()
    }

    fn missing_field(field: &'static str) -> Self {
        Kind::MissingField(field).into()
    }
}

/// A value as serde reads it.
#[derive(Clone, Copy)]
struct Reading<'a>(&'a Node);

/// Forwards a type that a wildcard answers with the given value.
macro_rules! or_wildcard {
    ($($method:ident => $visit:ident($value:expr),)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            match self.0.content {
                Content::Wildcard => visitor.$visit($value),
                _ => self.deserialize_any(visitor),
            }
        })*
    };
}

impl<'de> Deserializer<'de> for Reading<'de> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match &self.0.content {
            Content::String(text) | Content::Date(text) => visitor.visit_borrowed_str(text),
            Content::Integer(number) => match (u64::try_from(*number), i64::try_from(*number)) {
                (Ok(number), _) => visitor.visit_u64(number),
                (_, Ok(number)) => visitor.visit_i64(number),
                _ => visitor.visit_i128(*number),
            },
            Content::Float(number) => visitor.visit_f64(*number),
            Content::Boolean(value) => visitor.visit_bool(*value),
            Content::List(nodes) => visitor.visit_seq(Items { nodes, position: 0 }),
            Content::Table(entries) => visitor.visit_map(Pairs { entries, position: 0 }),
            Content::Wildcard => visitor.visit_unit(),
        }
    }

    or_wildcard! {
        deserialize_bool => visit_bool(false),
        deserialize_i8 => visit_i8(1),
        deserialize_i16 => visit_i16(1),
        deserialize_i32 => visit_i32(1),
        deserialize_i64 => visit_i64(1),
        deserialize_i128 => visit_i128(1),
        deserialize_u8 => visit_u8(1),
        deserialize_u16 => visit_u16(1),
        deserialize_u32 => visit_u32(1),
        deserialize_u64 => visit_u64(1),
        deserialize_u128 => visit_u128(1),
        deserialize_f32 => visit_f32(1.0),
        deserialize_f64 => visit_f64(1.0),
        deserialize_char => visit_char(' '),
        deserialize_bytes => visit_bytes(&[]),
        deserialize_byte_buf => visit_bytes(&[]),
        deserialize_seq => visit_seq(Items { nodes: &[], position: 0 }),
        deserialize_map => visit_map(Pairs { entries: &[], position: 0 }),
        deserialize_identifier => visit_str(""),
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match (&self.0.content, &self.0.spelled) {
            (Content::Wildcard, _) => visitor.visit_str(""),
            (_, Some(spelled)) => visitor.visit_borrowed_str(spelled),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.0.content {
            Content::Wildcard => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_any(visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.deserialize_any(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        match &self.0.content {
            Content::Wildcard => visitor.visit_seq(Repeat { left: length }),
            // Serde's tuple visitor stops reading at its length and would let more pass.
            Content::List(nodes) if nodes.len() != length => Err(Kind::WrongLength {
                found: nodes.len(),
                expected: format!("a list of {length} values"),
            }
            .into()),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        match self.0.content {
            // Serde would take a list for the fields in their order.
            Content::List(_) => Err(wrong_type(self.0, "a table")),
            _ => self.deserialize_map(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        match &self.0.content {
            Content::String(name) => visitor.visit_enum(name.as_str().into_deserializer()),
            Content::Table(entries) if entries.len() == 1 => {
                visitor.visit_enum(Variant { name: &entries[0].key, node: &entries[0].node })
            }
            Content::Wildcard => match variants.first() {
                Some(name) => visitor.visit_enum(Variant { name, node: self.0 }),
                None => visitor.visit_unit(),
            },
            _ => match &self.0.spelled {
                Some(name) => visitor.visit_enum(name.as_str().into_deserializer()),
                None => Err(wrong_type(self.0, &one_of(variants))),
            },
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_unit()
    }
}

struct Items<'a> {
    nodes: &'a [Node],
    position: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Failure;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Failure> {
        let Some(node) = self.nodes.get(self.position) else { return Ok(None) };
        let index = self.position;
        self.position += 1;
        seed.deserialize(Reading(node)).map(Some).map_err(|error| error.inside(Step::Index(index)))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.nodes.len() - self.position)
    }
}

/// Stands for a tuple of a given length that is being made up.
struct Repeat {
    left: usize,
}

impl<'de> SeqAccess<'de> for Repeat {
    type Error = Failure;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Failure> {
        static WILDCARD: std::sync::LazyLock<Node> = std::sync::LazyLock::new(Node::wildcard);
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(Reading(&WILDCARD)).map(Some)
    }
}

struct Pairs<'a> {
    entries: &'a [Entry],
    position: usize,
}

impl<'de> MapAccess<'de> for Pairs<'de> {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Failure> {
        match self.entries.get(self.position) {
            Some(entry) => seed.deserialize(entry.key.as_str().into_deserializer()).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Failure> {
        let entry = &self.entries[self.position];
        self.position += 1;
        seed.deserialize(Reading(&entry.node))
            .map_err(|error| error.inside(Step::Key(entry.key.clone())))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.entries.len() - self.position)
    }
}

/// `{ variant = value }`.
struct Variant<'a> {
    name: &'a str,
    node: &'a Node,
}

impl<'a> Variant<'a> {
    fn inside<T>(self, read: impl FnOnce(Reading<'a>) -> Result<T, Failure>) -> Result<T, Failure> {
        let step = Step::Key(self.name.to_owned());
        match self.node.content {
            Content::Wildcard => read(Reading(self.node)),
            _ => read(Reading(self.node)).map_err(|error| error.inside(step)),
        }
    }
}

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = Failure;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Failure> {
        let name: de::value::StrDeserializer<'_, Failure> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'de> {
    type Error = Failure;

    fn unit_variant(self) -> Result<(), Failure> {
        match self.node.content {
            Content::Wildcard => Ok(()),
            _ => Err(wrong_type(self.node, &format!("the string {:?}", self.name))),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Failure> {
        self.inside(|reading| seed.deserialize(reading))
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.inside(|reading| reading.deserialize_tuple(length, visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.inside(|reading| reading.deserialize_map(visitor))
    }
}
