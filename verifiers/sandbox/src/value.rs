//! Python values as the guest writes them (`guest/values.py`), compared with expectations in JSON.

use std::collections::HashSet;

use serde_json::{Number, Value, json};

/// A JSON value as the guest reads it.
pub(crate) fn written(value: &Value) -> Value {
    match value {
        Value::Array(items) => tagged("l", items.iter().map(written)),
        Value::Object(pairs) => {
            tagged("d", pairs.iter().flat_map(|(key, value)| [json!(key), written(value)]))
        }
        Value::Number(number) if number.as_i64().is_some_and(|n| n.unsigned_abs() >= 1 << 53) => {
            let n = number.as_i64().unwrap_or_default();
            let sign = if n < 0 { "-" } else { "" };
            json!(["I", format!("{sign}{:x}", n.unsigned_abs())])
        }
        other => other.clone(),
    }
}

/// Arguments of a call: a tuple of JSON values.
pub(crate) fn arguments(args: &[Value]) -> Value {
    tagged("t", args.iter().map(written))
}

fn tagged(tag: &str, items: impl Iterator<Item = Value>) -> Value {
    Value::Array(std::iter::once(json!(tag)).chain(items).collect())
}

/// Whether what a program returned is `expected`.
///
/// JSON knows fewer types than Python: an array is met by a list or a tuple, an object by a dict
/// whose keys read the same as text, and a number by an int or a float of that value; floats may
/// differ by `tolerance`, relative or absolute. True and 1 are not the same.
pub(crate) fn matches(got: &Value, expected: &Value, tolerance: f64) -> bool {
    match (got, expected) {
        (Value::Array(got), _) => {
            let Some((Value::String(tag), parts)) = got.split_first() else { return false };
            match (tag.as_str(), expected) {
                ("l" | "t" | "q", Value::Array(expected)) => {
                    parts.len() == expected.len()
                        && parts.iter().zip(expected).all(|(g, e)| matches(g, e, tolerance))
                }
                ("d" | "C" | "O" | "D", Value::Object(expected)) => {
                    // Two keys that read the same, such as 1 and "1", must not stand for two.
                    let mut met = HashSet::new();
                    let all = parts.chunks_exact(2).all(|pair| {
                        let Some(key) = key(&pair[0]) else { return false };
                        let same = expected
                            .get(&key)
                            .is_some_and(|value| matches(&pair[1], value, tolerance));
                        same && met.insert(key)
                    });
                    all && parts.len() == 2 * expected.len()
                }
                ("I", Value::Number(expected)) => parts
                    .first()
                    .and_then(Value::as_str)
                    .is_some_and(|digits| large(digits, expected, tolerance)),
                // An object of the program's own class that is also a value.
                ("p", _) => parts.get(2).is_some_and(|plain| matches(plain, expected, tolerance)),
                _ => false,
            }
        }
        (Value::Number(got), Value::Number(expected)) => {
            if !got.is_f64() && !expected.is_f64() {
                return got == expected;
            }
            let (Some(got), Some(expected)) = (got.as_f64(), expected.as_f64()) else {
                return false;
            };
            (got - expected).abs() <= tolerance * got.abs().max(expected.abs()).max(1.0)
        }
        _ => got == expected,
    }
}

/// Whether the integer of these hexadecimal digits is `expected`. JSON has no exact integers beyond
/// 64 bits: there both are floats.
fn large(digits: &str, expected: &Number, tolerance: f64) -> bool {
    if !expected.is_f64() {
        return i128::from_str_radix(digits, 16).ok() == expected.as_i128();
    }
    let (sign, digits) = digits.strip_prefix('-').map_or((1.0, digits), |rest| (-1.0, rest));
    let mut got = 0.0_f64;
    for digit in digits.chars() {
        let Some(digit) = digit.to_digit(16) else { return false };
        got = got.mul_add(16.0, f64::from(digit));
    }
    let (got, expected) = (sign * got, expected.as_f64().unwrap_or(f64::NAN));
    (got - expected).abs() <= tolerance * expected.abs()
}

/// A dict's key as JSON would have to write it.
fn key(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(true) => Some("true".to_owned()),
        Value::Bool(false) => Some("false".to_owned()),
        Value::Null => Some("null".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_returns_is_compared_by_value() {
        for (got, expected, same) in [
            (json!(3), json!(3), true),
            (json!(3.0), json!(3), true),
            (json!(true), json!(1), false),
            (json!(1), json!(true), false),
            (json!("3"), json!(3), false),
            (json!(["t", 1, ["l", 2]]), json!([1, [2]]), true),
            (json!(["s", 1]), json!([1]), false),
            (json!(["d", 1, "a", "b", null]), json!({"b": null, "1": "a"}), true),
            (json!(["d", 1, "a"]), json!({"1": "a", "2": "b"}), false),
            (json!(0.1 + 0.2), json!(0.3), true),
            (json!(0.31), json!(0.3), false),
            (json!(["f", "nan"]), json!(0.0), false),
            (json!(["I", "de0b6b3a7640000"]), json!(1_000_000_000_000_000_000_i64), true),
            (json!(["I", "40000000000000000000"]), json!(302_231_454_903_657_293_676_544.0), true),
            (
                json!(["I", "-40000000000000000000"]),
                json!(302_231_454_903_657_293_676_544.0),
                false,
            ),
            (json!(["d", 1, "a", "1", "a"]), json!({"1": "a", "2": "b"}), false),
            (json!(["p", 0, "Point", ["t", 1, 2]]), json!([1, 2]), true),
            (json!(["h", 0, "Yes"]), json!(3), false),
            (json!([]), json!([]), false),
        ] {
            assert_eq!(matches(&got, &expected, 1e-9), same, "{got} {expected}");
        }
    }
}
