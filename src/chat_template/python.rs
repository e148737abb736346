//! What chat templates expect of Python: `json.dumps`, `strftime`, float literals, and the string
//! methods that minijinja's `pycompat` does not have.

use minijinja::value::{Kwargs, Rest, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// The filter `tojson` as transformers defines it: `json.dumps` without escapes for HTML, and with
/// non-ASCII characters as they are.
pub fn tojson(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    const PARAMETERS: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
    if positional.len() > PARAMETERS.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let argument = |index: usize| match positional.get(index) {
        Some(value) => Ok(Some(value.clone())),
        None => named.get::<Option<Value>>(PARAMETERS[index]),
    };
    let indent = match argument(1)?.filter(|it| !it.is_none()) {
        None => None,
        Some(width) => match width.as_str() {
            Some(text) => Some(text.to_owned()),
            None => Some(" ".repeat(usize::try_from(width)?)),
        },
    };
    let (between, after_key) = match argument(2)?.filter(|it| !it.is_none()) {
        Some(pair) => {
            (pair.get_item_by_index(0)?.to_string(), pair.get_item_by_index(1)?.to_string())
        }
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let dump = Dump {
        ensure_ascii: argument(0)?.is_some_and(|it| it.is_true()),
        sort_keys: argument(3)?.is_some_and(|it| it.is_true()),
        indent,
        between,
        after_key,
    };
    named.assert_all_used()?;
    let mut text = String::new();
    dump.write(value, 0, &mut text)?;
    Ok(Value::from(text))
}

/// The settings of one `json.dumps`.
struct Dump {
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    between: String,
    after_key: String,
}

impl Dump {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value, Spelling::Json)),
            ValueKind::String => self.write_text(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_items('[', ']', &items, depth, out, |item, out| {
                    self.write(item, depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.write_items('{', '}', &keys, depth, out, |key, out| {
                    let name = match key.kind() {
                        ValueKind::None => "null".to_owned(),
                        ValueKind::Bool => key.is_true().to_string(),
                        ValueKind::Number => number(key, Spelling::Json),
                        _ => key.to_string(),
                    };
                    self.write_text(&name, out);
                    out.push_str(&self.after_key);
                    self.write(&value.get_item(key)?, depth + 1, out)
                })?;
            }
            other => {
                return Err(Error::new(
                    ErrorKind::BadSerialization,
                    format!("tojson: {other} has no form in JSON"),
                ));
            }
        }
        Ok(())
    }

    fn write_items(
        &self,
        open: char,
        close: char,
        items: &[Value],
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(&Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let new_line = |depth: usize, out: &mut String| {
            if let (Some(indent), false) = (&self.indent, items.is_empty()) {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(&self.between);
            }
            new_line(depth + 1, out);
            write(item, out)?;
        }
        new_line(depth, out);
        out.push(close);
        Ok(())
    }

    fn write_text(&self, text: &str, out: &mut String) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                control if control < ' ' => out.push_str(&escaped(control)),
                wide if self.ensure_ascii && wide > '~' => out.push_str(&escaped(wide)),
                plain => out.push(plain),
            }
        }
        out.push('"');
    }
}

fn escaped(character: char) -> String {
    let mut units = [0; 2];
    character.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect()
}

/// How numbers that are none are spelled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Spelling {
    /// `NaN`, `Infinity`.
    Json,
    /// `nan`, `inf`.
    Str,
}

/// A number as Python writes it: the shortest digits, and `1e-05` or `1e+16` far from 1.
pub fn number(value: &Value, spelling: Spelling) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(float) = f64::try_from(value.clone()) else { return value.to_string() };
    let names = match spelling {
        Spelling::Json => ["NaN", "Infinity", "-Infinity"],
        Spelling::Str => ["nan", "inf", "-inf"],
    };
    match float {
        nan if nan.is_nan() => names[0].into(),
        f64::INFINITY => names[1].into(),
        f64::NEG_INFINITY => names[2].into(),
        _ => {
            let text = format!("{float:?}");
            let Some((digits, exponent)) = text.split_once('e') else { return text };
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            format!("{digits}e{sign}{exponent:0>2}")
        }
    }
}

/// `datetime.strftime` of [`TODAY`].
///
/// # Errors
/// If the format holds a directive that Python's C library would not know either.
pub fn strftime(format: &str) -> Result<String, Error> {
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let directive = rest.next();
        let bare = directive == Some('-');
        let name = if bare { rest.next() } else { directive };
        let Some(value) = name.and_then(directive_of_today) else {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("strftime_now: {format:?} holds a directive that is not known"),
            ));
        };
        let short = value.trim_start_matches('0');
        text.push_str(if !bare || short.is_empty() { value } else { short });
    }
    Ok(text)
}

/// The day that every template is told: runs are reproducible, so it cannot be the real one.
pub const TODAY: &str = "2026-01-01";

fn directive_of_today(directive: char) -> Option<&'static str> {
    Some(match directive {
        'Y' | 'G' => "2026",
        'y' | 'g' => "26",
        'C' => "20",
        'm' | 'd' | 'V' => "01",
        'e' => " 1",
        'B' => "January",
        'b' | 'h' => "Jan",
        'A' => "Thursday",
        'a' => "Thu",
        'u' | 'w' => "4",
        'j' => "001",
        'U' | 'W' | 'H' | 'M' | 'S' => "00",
        'I' => "12",
        'p' => "AM",
        'f' => "000000",
        'z' | 'Z' => "",
        'F' => TODAY,
        'T' | 'X' => "00:00:00",
        'R' => "00:00",
        'D' | 'x' => "01/01/26",
        'c' => "Thu Jan  1 00:00:00 2026",
        'n' => "\n",
        't' => "\t",
        '%' => "%",
        _ => return None,
    })
}

/// Methods of Python's strings, lists and dictionaries: those below, then minijinja's.
pub fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = text_method(text, name, arguments)
    {
        return result;
    }
    match (value.kind(), name) {
        (ValueKind::Map, "copy") | (ValueKind::Seq, "copy") => Ok(value.clone()),
        (ValueKind::Seq, "index") => {
            let (sought,): (&Value,) = from_args(arguments)?;
            let at = value.try_iter()?.position(|it| it == *sought);
            at.map(Value::from).ok_or_else(|| absent(name))
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments),
    }
}

fn absent(name: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("{name}: not found"))
}

fn text_method(text: &str, name: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    let pair = |head: &str, middle: &str, tail: &str| {
        Value::from(minijinja::value::Tuple::from([
            Value::from(head),
            Value::from(middle),
            Value::from(tail),
        ]))
    };
    let result = || -> Result<Option<Value>, Error> {
        Ok(Some(match name {
            "strip" | "lstrip" | "rstrip" => {
                let (characters,): (Option<&str>,) = from_args(arguments)?;
                let strips = |it: char| match characters {
                    Some(characters) => characters.contains(it),
                    None => is_space(it),
                };
                Value::from(match name {
                    "strip" => text.trim_matches(strips),
                    "lstrip" => text.trim_start_matches(strips),
                    _ => text.trim_end_matches(strips),
                })
            }
            "split" | "rsplit" => split(text, name == "rsplit", arguments)?,
            "splitlines" => {
                let (keep,): (Option<bool>,) = from_args(arguments)?;
                Value::from(lines(text, keep.unwrap_or(false)))
            }
            "partition" => {
                let (separator,): (&str,) = from_args(arguments)?;
                match text.split_once(separator) {
                    Some((head, tail)) => pair(head, separator, tail),
                    None => pair(text, "", ""),
                }
            }
            "rpartition" => {
                let (separator,): (&str,) = from_args(arguments)?;
                match text.rsplit_once(separator) {
                    Some((head, tail)) => pair(head, separator, tail),
                    None => pair("", "", text),
                }
            }
            "removeprefix" => {
                let (prefix,): (&str,) = from_args(arguments)?;
                Value::from(text.strip_prefix(prefix).unwrap_or(text))
            }
            "removesuffix" => {
                let (suffix,): (&str,) = from_args(arguments)?;
                Value::from(text.strip_suffix(suffix).unwrap_or(text))
            }
            "index" | "rindex" => {
                let (sought,): (&str,) = from_args(arguments)?;
                let at = if name == "index" { text.find(sought) } else { text.rfind(sought) };
                Value::from(text[..at.ok_or_else(|| absent(name))?].chars().count())
            }
            "ljust" | "rjust" | "center" | "zfill" => padded(text, name, arguments)?,
            "casefold" => Value::from(text.to_lowercase()),
            "swapcase" => Value::from(
                text.chars()
                    .map(|it| match it {
                        upper if upper.is_uppercase() => upper.to_lowercase().to_string(),
                        other => other.to_uppercase().to_string(),
                    })
                    .collect::<String>(),
            ),
            "title" => Value::from(title(text)),
            "isdecimal" => {
                Value::from(!text.is_empty() && text.chars().all(|it| it.is_ascii_digit()))
            }
            "isspace" => Value::from(!text.is_empty() && text.chars().all(is_space)),
            _ => return Ok(None),
        }))
    };
    result().transpose()
}

/// Python counts four separators as space that Unicode does not.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

fn split(text: &str, from_right: bool, arguments: &[Value]) -> Result<Value, Error> {
    let (separator, most, named): (Option<Value>, Option<i64>, Kwargs) = from_args(arguments)?;
    let separator = match separator.or(named.get("sep")?) {
        Some(given) if !given.is_none() => Some(given),
        _ => None,
    };
    let most = most.or(named.get("maxsplit")?).unwrap_or(-1);
    named.assert_all_used()?;
    let most = usize::try_from(most).unwrap_or(usize::MAX).saturating_add(1);
    let mut parts: Vec<&str> = match &separator {
        Some(separator) => {
            let separator = separator.as_str().filter(|it| !it.is_empty()).ok_or_else(|| {
                Error::new(ErrorKind::InvalidOperation, "split: the separator is no text")
            })?;
            match from_right {
                false => text.splitn(most, separator).collect(),
                true => text.rsplitn(most, separator).collect(),
            }
        }
        None => split_at_spaces(text, most, from_right),
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Parts between runs of space, at most `most`; the last one made keeps its spaces.
fn split_at_spaces(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let (mut rest, mut parts) = (text, Vec::new());
    loop {
        rest = if from_right {
            rest.trim_end_matches(is_space)
        } else {
            rest.trim_start_matches(is_space)
        };
        if rest.is_empty() {
            return parts;
        }
        let cut = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = cut.filter(|_| parts.len() + 1 < most) else {
            parts.push(rest);
            return parts;
        };
        let width = rest[at..].chars().next().map_or(1, char::len_utf8);
        if from_right {
            parts.push(&rest[at + width..]);
            rest = &rest[..at];
        } else {
            parts.push(&rest[..at]);
            rest = &rest[at + width..];
        }
    }
}

fn lines(text: &str, keep_ends: bool) -> Vec<String> {
    let ends = |it: char| {
        matches!(
            it,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let (mut found, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let Some(at) = rest.find(ends) else {
            found.push(rest.to_owned());
            break;
        };
        let end = match &rest[at..] {
            pair if pair.starts_with("\r\n") => at + 2,
            other => at + other.chars().next().map_or(1, char::len_utf8),
        };
        found.push(rest[..if keep_ends { end } else { at }].to_owned());
        rest = &rest[end..];
    }
    found
}

fn padded(text: &str, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (width, fill): (usize, Option<&str>) = from_args(arguments)?;
    let missing = width.saturating_sub(text.chars().count());
    let fill = if name == "zfill" { "0" } else { fill.unwrap_or(" ") };
    Ok(Value::from(match name {
        "ljust" => format!("{text}{}", fill.repeat(missing)),
        "center" => {
            // Python gives an odd place to the left where the width is odd, else to the right.
            let left = missing / 2 + (missing & width & 1);
            format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left))
        }
        _ => {
            let sign = text.starts_with(['+', '-']) && name == "zfill";
            let (head, tail) = text.split_at(usize::from(sign));
            format!("{head}{}{tail}", fill.repeat(missing))
        }
    }))
}

/// `str.title`: a letter after anything but a letter is upper case, every other is lower.
fn title(text: &str) -> String {
    let mut inside = false;
    let mut titled = String::with_capacity(text.len());
    for character in text.chars() {
        let was_inside = std::mem::replace(&mut inside, character.is_alphabetic());
        if was_inside {
            titled.extend(character.to_lowercase());
        } else {
            titled.extend(character.to_uppercase());
        }
    }
    titled
}
