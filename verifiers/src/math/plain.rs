//! The fast path: an answer that is one plain number, compared as digits.
//!
//! Grammar, after spaces, one pair of `$`, a currency sign and a final dot or percent-free tail
//! were taken off:
//!
//! ```text
//! number   := sign* currency? (digits? '.' digits | digits '.'?)
//! digits   := [0-9]+ | [0-9]{1,3} (group [0-9]{3})+      group := ',' | '{,}' | ',\!' | '\,' ...
//! ```
//!
//! About four of five answers of MATH and all of GSM8K take this road: nothing is parsed into a
//! tree, no big number is built, and the digits are compared where they stand.

/// A decimal number: sign, and the digits before and after the point without the zeros that do not
/// count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plain {
    /// Never set for zero.
    pub negative: bool,
    /// Digits before the point, without leading zeros.
    pub whole: Digits,
    /// Digits after the point, without final zeros.
    pub fraction: Digits,
    /// Whether a decimal point was written.
    pub decimal: bool,
}

/// Digits in ASCII; short ones are kept in place.
#[derive(Clone, Debug, Eq)]
pub enum Digits {
    /// At most 22 of them.
    Short([u8; 22], u8),
    /// More.
    Long(Vec<u8>),
}

impl Default for Digits {
    fn default() -> Self {
        Self::Short([0; 22], 0)
    }
}

impl PartialEq for Digits {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Digits {
    /// The digits as ASCII.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Short(digits, count) => &digits[..usize::from(*count)],
            Self::Long(digits) => digits,
        }
    }

    fn push(&mut self, digit: u8) {
        match self {
            Self::Short(digits, count) if usize::from(*count) < digits.len() => {
                digits[usize::from(*count)] = digit;
                *count += 1;
            }
            Self::Short(digits, _) => {
                let mut long = digits.to_vec();
                long.push(digit);
                *self = Self::Long(long);
            }
            Self::Long(digits) => digits.push(digit),
        }
    }

    fn pop(&mut self) {
        match self {
            Self::Short(_, count) => *count = count.saturating_sub(1),
            Self::Long(digits) => {
                digits.pop();
            }
        }
    }
}

/// The number that the whole of `text` is; `None` if it is anything else.
pub fn plain(text: &str) -> Option<Plain> {
    let mut text = text.trim();
    for marks in ["$$", "$"] {
        if let Some(inner) = text.strip_prefix(marks).and_then(|it| it.strip_suffix(marks)) {
            text = inner.trim();
            break;
        }
    }
    let mut negative = false;
    loop {
        let rest = if let Some(rest) = text.strip_prefix('-') {
            negative = !negative;
            rest
        } else if let Some(rest) = text.strip_prefix('+') {
            rest
        } else if let Some(rest) = text.strip_prefix("\\$").or_else(|| text.strip_prefix('$')) {
            rest
        } else {
            break;
        };
        text = rest.trim_start();
    }
    let mut text = text.trim_end();
    while let Some(rest) = text.strip_suffix("\\,").or_else(|| text.strip_suffix("\\!")) {
        text = rest.trim_end();
    }
    let bytes = text.as_bytes();
    let mut whole = Digits::default();
    let mut fraction = Digits::default();
    let mut at = 0;
    // Digits since the last group mark; groups other than the first have three.
    let mut run = 0;
    let mut grouped = false;
    let mut digits = 0;
    while at < bytes.len() {
        if bytes[at].is_ascii_digit() {
            run += 1;
            digits += 1;
            if bytes[at] != b'0' || !whole.as_slice().is_empty() {
                whole.push(bytes[at]);
            }
            at += 1;
            continue;
        }
        let Some(width) = group_mark(&bytes[at..]) else { break };
        if (grouped && run != 3) || !(1..=3).contains(&run) {
            return None;
        }
        // `0,5` has a decimal comma, which is for the full parser to see.
        if !grouped && whole.as_slice().is_empty() {
            return None;
        }
        grouped = true;
        run = 0;
        at += width;
    }
    if grouped && run != 3 {
        return None;
    }
    let mut decimal = false;
    if bytes.get(at) == Some(&b'.') {
        at += 1;
        let start = at;
        while bytes.get(at).is_some_and(u8::is_ascii_digit) {
            fraction.push(bytes[at]);
            at += 1;
        }
        decimal = at > start;
        digits += at - start;
    }
    if at < bytes.len() || digits == 0 {
        return None;
    }
    while fraction.as_slice().last() == Some(&b'0') {
        fraction.pop();
    }
    let zero = whole.as_slice().is_empty() && fraction.as_slice().is_empty();
    Some(Plain { negative: negative && !zero, whole, fraction, decimal })
}

/// How many bytes the mark between two groups of three digits takes, if one stands here.
pub fn group_mark(bytes: &[u8]) -> Option<usize> {
    const MARKS: [&[u8]; 7] = [b"{,}\\!", b"{,}", b",\\!\\!", b",\\!", b",\\,", b"\\,", b","];
    MARKS.iter().find(|mark| bytes.starts_with(mark)).map(|mark| {
        // `11,\! 111` has a space that TeX does not show.
        let spaces = bytes[mark.len()..].iter().take_while(|it| **it == b' ').count();
        if mark.ends_with(b"!") { mark.len() + spaces } else { mark.len() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<String> {
        let it = plain(text)?;
        let digits = |it: &Digits| String::from_utf8_lossy(it.as_slice()).into_owned();
        let sign = if it.negative { "-" } else { "" };
        Some(format!("{sign}{}.{}", digits(&it.whole), digits(&it.fraction)))
    }

    #[test]
    fn what_is_a_plain_number_and_what_is_not() {
        let table = [
            ("42", Some("42.")),
            ("-007.50", Some("-7.5")),
            ("$1,234$", Some("1234.")),
            ("\\$3{,}000.00", Some("3000.")),
            ("11,\\! 111,\\! 100", Some("11111100.")),
            ("13.", Some("13.")),
            (".5", Some(".5")),
            ("-0.0", Some(".")),
            ("--7", Some("7.")),
            ("36\\,", Some("36.")),
            ("12,34", None),
            ("1,2,3", None),
            ("0,5", None),
            ("1 2", None),
            ("", None),
            (".", None),
            ("1e5", None),
            ("5%", None),
        ];
        for (text, expected) in table {
            assert_eq!(read(text).as_deref(), expected, "{text}");
        }
        let long = "1".repeat(30_000);
        assert_eq!(
            plain(&long),
            plain(&format!("+{long}.0")).map(|it| Plain { decimal: false, ..it })
        );
    }
}
