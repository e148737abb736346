//! How a component refuses its configuration: which key, what is wrong, what was found, what was
//! expected, and the way out.
//!
//! Components know nothing of files; the caller adds the file's name and puts its own table's path
//! before `key`.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;

/// One problem with a component's options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigFault {
    /// Dotted path inside the component's table, e.g. `parts[0].name`; empty for the whole table.
    pub key: String,
    /// What is wrong, lower case, no full stop.
    pub problem: String,
    /// The value found.
    pub found: Option<String>,
    /// What would have been accepted.
    pub expected: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl ConfigFault {
    /// A fault with a key and a problem; add the rest with the methods below.
    pub fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { key: key.into(), problem: problem.into(), ..Self::default() }
    }

    /// States the value found.
    #[must_use]
    pub fn found(mut self, found: impl fmt::Display) -> Self {
        self.found = Some(found.to_string());
        self
    }

    /// States what would have been accepted.
    #[must_use]
    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    /// States the way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same fault seen from one table further out: `prefix` goes before its key.
    #[must_use]
    pub fn within(mut self, prefix: &str) -> Self {
        self.key = match (prefix.is_empty(), self.key.is_empty()) {
            (true, _) => self.key,
            (false, true) => prefix.to_owned(),
            // A path that starts with an index follows its table without a dot: `parts[0]`.
            (false, false) if self.key.starts_with('[') => format!("{prefix}{}", self.key),
            (false, false) => format!("{prefix}.{}", self.key),
        };
        self
    }

    /// A name that is not in a table of names, with the nearest one as a hint.
    pub fn unknown_name<'a>(
        key: impl Into<String>,
        noun: &str,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let known: Vec<&str> = known.into_iter().collect();
        let mut fault =
            Self::new(key, format!("there is no {noun} called `{name}`")).expected(one_of(&known));
        fault.hint = nearest(name, &known).map(|near| format!("did you mean `{near}`?"));
        fault
    }

    /// A serde error and the path at which it happened, as a fault.
    ///
    /// An unknown key is reported at its own path, with the valid keys and the nearest of them.
    pub fn from_serde_path(error: &serde_path_to_error::Error<serde_json::Error>) -> Self {
        let path = error.path().to_string();
        // serde_path_to_error writes the root as a single dot.
        let key = if path == "." { String::new() } else { path };
        let message = error.inner().to_string();

        if let Some((name, known)) = unknown_in(&message, "unknown field ") {
            let mut fault = Self::new(key, format!("unknown key `{name}`"));
            fault.expected = (!known.is_empty()).then(|| one_of(&known));
            fault.hint = match nearest(name, &known) {
                Some(near) => Some(format!("did you mean `{near}`?")),
                None if known.is_empty() => Some("this component has no options".to_owned()),
                None => None,
            };
            return fault;
        }
        if let Some((name, known)) = unknown_in(&message, "unknown variant ") {
            let mut fault = Self::new(key, format!("`{name}` is not one of the choices"))
                .expected(one_of(&known));
            fault.hint = nearest(name, &known).map(|near| format!("did you mean `{near}`?"));
            return fault;
        }
        for (prefix, problem) in [
            ("invalid type: ", "a value of the wrong type"),
            ("invalid value: ", "a value that is not accepted"),
        ] {
            if let Some((found, expected)) =
                message.strip_prefix(prefix).and_then(|rest| rest.split_once(", expected "))
            {
                return Self::new(key, problem).found(found).expected(expected);
            }
        }
        Self::new(key, message)
    }
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(formatter, "`{}`: ", self.key)?;
        }
        formatter.write_str(&self.problem)?;
        if let Some(found) = &self.found {
            write!(formatter, ", found {found}")?;
        }
        if let Some(expected) = &self.expected {
            write!(formatter, ", expected {expected}")?;
        }
        if let Some(hint) = &self.hint {
            write!(formatter, " (hint: {hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigFault {}

/// Reads a component's options; `null` stands for an empty table.
///
/// # Errors
/// The first fault serde meets, with its path.
pub fn read_options<C: DeserializeOwned>(options: Value) -> Result<C, ConfigFault> {
    let options = if options.is_null() { Value::Object(serde_json::Map::new()) } else { options };
    if !options.is_object() {
        return Err(ConfigFault::new("", "the options are not a table").found(options));
    }
    serde_path_to_error::deserialize(options).map_err(|error| ConfigFault::from_serde_path(&error))
}

/// The nearest of `known` to a misspelt `name`, if one is near enough to be what was meant.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    // A third of the letters may be wrong; transpositions count as one slip.
    let slips_allowed = (name.chars().count() / 3).max(1);
    known
        .iter()
        .map(|&candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|&(slips, _)| slips <= slips_allowed)
        .min_by_key(|&(slips, _)| slips)
        .map(|(_, candidate)| candidate)
}

/// Splits serde's "unknown field `x`, expected one of `a`, `b`" into `x` and the names.
///
/// The wording is serde's public behaviour but not a typed interface; if it changes, the caller
/// falls back to the message itself.
fn unknown_in<'a>(message: &'a str, prefix: &str) -> Option<(&'a str, Vec<&'a str>)> {
    let rest = message.strip_prefix(prefix)?.strip_prefix('`')?;
    // The name is the user's and may itself hold a back quote, so cut at the fixed words after it.
    let (name, rest) =
        rest.rsplit_once("`, expected ").or_else(|| rest.rsplit_once("`, there are no "))?;
    let known = rest.split('`').skip(1).step_by(2).collect();
    Some((name, known))
}

/// `a`, `b` or `c`.
fn one_of(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.as_slice() {
        [] => "nothing".to_owned(),
        [only] => only.clone(),
        [firsts @ .., last] => format!("{} or {last}", firsts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Outer {
        digits: u32,
        style: Style,
        inner: Inner,
        list: Vec<Inner>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Inner {
        weight: f32,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Style {
        #[default]
        Bare,
        Chain,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Nothing {}

    #[track_caller]
    fn check_fault(options: Value, shown: &str) {
        let fault = read_options::<Outer>(options).expect_err("the options are faulty");
        assert_eq!(fault.to_string(), shown);
    }

    #[test]
    fn a_misspelt_key_is_named_with_its_neighbours_and_the_nearest() {
        check_fault(
            json!({"digts": 3}),
            "`digts`: unknown key `digts`, expected `digits`, `style`, `inner` or `list` \
             (hint: did you mean `digits`?)",
        );
    }

    #[test]
    fn a_misspelt_key_in_a_nested_table_has_its_whole_path() {
        check_fault(
            json!({"inner": {"wieght": 1}}),
            "`inner.wieght`: unknown key `wieght`, expected `weight` \
             (hint: did you mean `weight`?)",
        );
        check_fault(
            json!({"list": [{}, {"zzz": 1}]}),
            "`list[1].zzz`: unknown key `zzz`, expected `weight`",
        );
    }

    #[test]
    fn a_hostile_key_keeps_its_back_quotes() {
        let fault = read_options::<Outer>(json!({"a`, expected `b": 1})).expect_err("unknown");
        assert_eq!(fault.problem, "unknown key `a`, expected `b`");
    }

    #[test]
    fn a_wrong_type_says_found_and_expected() {
        check_fault(
            json!({"digits": "three"}),
            "`digits`: a value of the wrong type, found string \"three\", expected u32",
        );
        check_fault(
            json!({"digits": -1}),
            "`digits`: a value that is not accepted, found integer `-1`, expected u32",
        );
    }

    #[test]
    fn an_unknown_choice_lists_the_choices() {
        check_fault(
            json!({"style": "chian"}),
            "`style`: `chian` is not one of the choices, expected `bare` or `chain` \
             (hint: did you mean `chain`?)",
        );
    }

    #[test]
    fn an_unknown_name_is_told_once() {
        let fault = ConfigFault::unknown_name("name", "verifier", "exat", ["exact", "numeric"]);
        assert_eq!(
            fault.to_string(),
            "`name`: there is no verifier called `exat`, expected `exact` or `numeric` \
             (hint: did you mean `exact`?)"
        );
    }

    #[test]
    fn a_component_without_options_says_so() {
        let fault = read_options::<Nothing>(json!({"x": 1})).expect_err("unknown");
        assert_eq!(fault.key, "x");
        assert_eq!(fault.hint.as_deref(), Some("this component has no options"));
    }

    #[test]
    fn null_is_an_empty_table_and_a_number_is_none() {
        assert_eq!(read_options::<Outer>(Value::Null).expect("null is empty").digits, 0);
        check_fault(json!(3), "the options are not a table, found 3");
    }

    #[test]
    fn within_joins_paths() {
        let fault = |key: &str| ConfigFault::new(key, "bad");
        assert_eq!(fault("a").within("b").key, "b.a");
        assert_eq!(fault("[0].a").within("b").key, "b[0].a");
        assert_eq!(fault("").within("b").key, "b");
        assert_eq!(fault("a").within("").key, "a");
    }

    #[test]
    fn nearest_refuses_what_is_too_far() {
        assert_eq!(nearest("nmueric", &["exact", "numeric"]), Some("numeric"));
        assert_eq!(nearest("reward", &["exact", "numeric"]), None);
    }
}
