//! Numbers as people and models write them, read exactly.
//!
//! ```text
//! number   = sign? currency? sign? (fraction | decimal ("/" decimal)?)
//! fraction = ("\frac" | "\dfrac" | "\tfrac") "{" sign? decimal "}" "{" sign? decimal "}"
//! decimal  = (grouped | digits) ("." digits?)? exponent? | "." digits exponent?
//! grouped  = 1 to 3 digits, then one or more of "," and exactly 3 digits
//! ```
//!
//! A percent sign is decoration: `50%` is 50. Every value is an exact rational; there is no
//! rounding anywhere, so `0.1` is one tenth and `0.333` is not a third.

use nom::{
    IResult, Parser,
    branch::alt,
    bytes::complete::{tag, take_while, take_while1},
    character::complete::{char, one_of},
    combinator::{opt, recognize},
    sequence::{delimited, preceded},
};
use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Zero};
use thiserror::Error;

/// More digits than any sensible answer has, few enough that exact arithmetic stays cheap.
const LONGEST: usize = 4096;

/// Powers of ten beyond this are refused before they are multiplied out.
const LARGEST_EXPONENT: i64 = 4096;

/// Why text is not a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NumberProblem {
    /// It does not follow the grammar.
    #[error("not a number")]
    NotANumber,
    /// It has more digits or a larger exponent than is read.
    #[error("a number of more than {LONGEST} digits")]
    TooLarge,
    /// It divides by zero.
    #[error("a fraction whose denominator is zero")]
    ZeroDenominator,
}

/// Reads text that is one number and nothing else but white space, currency and percent signs,
/// mathematics delimiters (`$..$`, `\(..\)`) and a full stop.
///
/// # Errors
/// If it is anything else, or too large to be read.
pub fn whole_number(text: &str) -> Result<BigRational, NumberProblem> {
    let text = undecorated(text);
    if text.len() > 8 * LONGEST {
        return Err(NumberProblem::TooLarge);
    }
    // LaTeX thousands separators: `1{,}000` and `1\,000`.
    let text = text.replace("{,}", ",").replace("\\,", "").replace("\\!", "");
    match number(&text) {
        Ok(("", written)) => written.value(),
        _ => Err(NumberProblem::NotANumber),
    }
}

/// The last number in running text, or `None` if there is none.
///
/// A minus sign belongs to the number only if nothing stands before it that could be subtracted
/// from: `5-3` ends in 3, `x=-3` in -3. Takes time linear in the text.
pub fn last_number(text: &str) -> Option<Result<BigRational, NumberProblem>> {
    let mut last = None;
    let mut rest = text;
    let mut before = ' ';
    while let Some(next) = rest.chars().next() {
        let starts = next.is_ascii_digit()
            || matches!(next, '.' | '\\')
            || (is_minus(next) && !(before.is_alphanumeric() || matches!(before, ')' | '}' | ']')));
        if starts && let Ok((after, written)) = number(rest) {
            last = Some(written);
            // A number always ends in a character that can be subtracted from.
            before = '0';
            rest = after;
        } else {
            before = next;
            rest = &rest[next.len_utf8()..];
        }
    }
    last.map(|written| written.value())
}

/// A number as it was written, before any arithmetic.
#[derive(Clone, Debug)]
struct Written<'a> {
    negative: bool,
    numerator: Decimal<'a>,
    denominator: Option<Decimal<'a>>,
}

/// A decimal as it was written.
#[derive(Clone, Debug)]
struct Decimal<'a> {
    negative: bool,
    /// May hold thousands separators.
    integer: &'a str,
    fraction: &'a str,
    exponent: &'a str,
}

impl Written<'_> {
    fn value(&self) -> Result<BigRational, NumberProblem> {
        let mut value = self.numerator.value()?;
        if let Some(denominator) = &self.denominator {
            let denominator = denominator.value()?;
            if denominator.is_zero() {
                return Err(NumberProblem::ZeroDenominator);
            }
            value /= denominator;
        }
        Ok(if self.negative { -value } else { value })
    }
}

impl Decimal<'_> {
    fn value(&self) -> Result<BigRational, NumberProblem> {
        if self.integer.len() + self.fraction.len() > LONGEST {
            return Err(NumberProblem::TooLarge);
        }
        let exponent: i64 = match self.exponent {
            "" => 0,
            // Digits that do not fit are beyond the limit, whatever they are.
            written => written.parse().map_err(|_| NumberProblem::TooLarge)?,
        };
        if exponent.abs() > LARGEST_EXPONENT {
            return Err(NumberProblem::TooLarge);
        }
        let digits: String = self
            .integer
            .chars()
            .chain(self.fraction.chars())
            .filter(char::is_ascii_digit)
            .collect();
        let digits: BigInt = digits.parse().map_err(|_| NumberProblem::NotANumber)?;

        // value = digits * 10^(exponent - digits after the point)
        let scale = exponent - self.fraction.len() as i64;
        let power = BigInt::from(10).pow(scale.unsigned_abs() as u32);
        let value = if scale < 0 {
            BigRational::new(digits, power)
        } else {
            BigRational::new(digits * power, BigInt::one())
        };
        Ok(if self.negative { -value } else { value })
    }
}

/// Takes away what may stand around a number without changing it.
fn undecorated(mut text: &str) -> &str {
    const BEFORE: [&str; 6] = ["\\$", "$", "\\(", "\\[", "€", "£"];
    const AFTER: [&str; 6] = ["\\%", "%", "$", "\\)", "\\]", "."];
    loop {
        let trimmed = text.trim();
        let bare = BEFORE.iter().find_map(|sign| trimmed.strip_prefix(sign)).unwrap_or(trimmed);
        let bare = AFTER.iter().find_map(|sign| bare.strip_suffix(sign)).unwrap_or(bare);
        if bare.len() == text.len() {
            return bare;
        }
        text = bare;
    }
}

fn is_minus(letter: char) -> bool {
    // The hyphen and the mathematical minus sign.
    matches!(letter, '-' | '−')
}

fn number(input: &str) -> IResult<&str, Written<'_>> {
    let (input, outer) = sign(input)?;
    let (input, _) = opt(alt((tag("\\$"), tag("$"), tag("€"), tag("£")))).parse(input)?;
    let (input, inner) = sign(input)?;
    if outer.is_some() && inner.is_some() {
        // Two signs are no number.
        return Err(nom::Err::Error(nom::error::Error::new(input, nom::error::ErrorKind::Verify)));
    }
    let negative = outer.or(inner).unwrap_or(false);
    let (input, (numerator, denominator)) = alt((latex_fraction, slash_fraction)).parse(input)?;
    Ok((input, Written { negative, numerator, denominator }))
}

/// `Some(true)` for a minus, `Some(false)` for a plus.
fn sign(input: &str) -> IResult<&str, Option<bool>> {
    opt(one_of("+-−").map(is_minus)).parse(input)
}

fn latex_fraction(input: &str) -> IResult<&str, (Decimal<'_>, Option<Decimal<'_>>)> {
    let (input, _) = alt((tag("\\frac"), tag("\\dfrac"), tag("\\tfrac"))).parse(input)?;
    let (input, numerator) = delimited(char('{'), signed_decimal, char('}')).parse(input)?;
    let (input, denominator) = delimited(char('{'), signed_decimal, char('}')).parse(input)?;
    Ok((input, (numerator, Some(denominator))))
}

fn slash_fraction(input: &str) -> IResult<&str, (Decimal<'_>, Option<Decimal<'_>>)> {
    let (input, numerator) = decimal(input)?;
    let (input, denominator) = opt(preceded(char('/'), decimal)).parse(input)?;
    Ok((input, (numerator, denominator)))
}

fn signed_decimal(input: &str) -> IResult<&str, Decimal<'_>> {
    let (input, negative) = sign(input)?;
    let (input, decimal) = decimal(input)?;
    Ok((input, Decimal { negative: negative.unwrap_or(false), ..decimal }))
}

fn decimal(input: &str) -> IResult<&str, Decimal<'_>> {
    let (input, (integer, fraction)) = alt((
        (integer, opt(preceded(char('.'), take_while(is_digit))))
            .map(|(integer, fraction)| (integer, fraction.unwrap_or(""))),
        preceded(char('.'), take_while1(is_digit)).map(|fraction| ("", fraction)),
    ))
    .parse(input)?;
    let (input, exponent) =
        opt(preceded(one_of("eE"), recognize((opt(one_of("+-")), take_while1(is_digit)))))
            .parse(input)?;
    Ok((input, Decimal { negative: false, integer, fraction, exponent: exponent.unwrap_or("") }))
}

/// Digits, with thousands separators only where every group but the first has exactly three.
fn integer(input: &str) -> IResult<&str, &str> {
    let (rest, first) = take_while1(is_digit)(input)?;
    if first.len() > 3 {
        return Ok((rest, first));
    }
    let mut end = first.len();
    let bytes = input.as_bytes();
    let digit_at = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    while bytes.get(end) == Some(&b',') && (end + 1..end + 4).all(digit_at) && !digit_at(end + 4) {
        end += 4;
    }
    Ok((&input[end..], &input[..end]))
}

fn is_digit(letter: char) -> bool {
    letter.is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ratio(numerator: i64, denominator: i64) -> BigRational {
        BigRational::new(numerator.into(), denominator.into())
    }

    #[test]
    fn whole_numbers_are_read_exactly() {
        let table = [
            ("42", 42, 1),
            (" +42.\n", 42, 1),
            ("-0.50", -1, 2),
            (".5", 1, 2),
            ("1,234,567", 1_234_567, 1),
            ("1{,}234", 1234, 1),
            ("10\\,000", 10_000, 1),
            ("3/4", 3, 4),
            ("-6/8", -3, 4),
            ("1.5/0.5", 3, 1),
            ("\\frac{1}{-3}", -1, 3),
            ("-\\dfrac{7}{2}", -7, 2),
            ("$1,000.25$", 4001, 4),
            ("\\$18", 18, 1),
            ("-$5", -5, 1),
            ("50\\%", 50, 1),
            ("50 %", 50, 1),
            ("1e3", 1000, 1),
            ("2.5E-1", 1, 4),
            ("−7", -7, 1),
            ("\\(12\\)", 12, 1),
            ("007", 7, 1),
        ];
        for (text, numerator, denominator) in table {
            assert_eq!(whole_number(text), Ok(ratio(numerator, denominator)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_number_is_refused() {
        for text in
            ["", "five", "4 2", "1,23", "1,2345", "1.2.3", "--3", "5x", "x=5", "1/", "e5", "٣", "."]
        {
            assert_eq!(whole_number(text), Err(NumberProblem::NotANumber), "{text}");
        }
        assert_eq!(whole_number("1/0"), Err(NumberProblem::ZeroDenominator));
        assert_eq!(whole_number("1/0.00"), Err(NumberProblem::ZeroDenominator));
    }

    #[test]
    fn sizes_are_bounded_before_any_arithmetic() {
        assert_eq!(whole_number("1e999999999"), Err(NumberProblem::TooLarge));
        assert_eq!(whole_number("1e-99999999999999999999"), Err(NumberProblem::TooLarge));
        assert_eq!(whole_number(&"9".repeat(5000)), Err(NumberProblem::TooLarge));
        assert!(whole_number(&"9".repeat(4096)).is_ok());
    }

    #[test]
    fn the_last_number_of_a_sentence() {
        let table = [
            ("so 3 apples and 4 pears make 7.", Some(7)),
            ("5-3", Some(3)),
            ("x=-3", Some(-3)),
            ("it costs $1,200", Some(1200)),
            ("(2)-4", Some(4)),
            ("no digits here", None),
            ("1,2,3", Some(3)),
            ("-", None),
            ("12-", Some(12)),
        ];
        for (text, expected) in table {
            let found = last_number(text).map(|it| it.expect("small numbers are read"));
            assert_eq!(found, expected.map(|it| ratio(it, 1)), "{text}");
        }
        assert_eq!(last_number("about \\frac{2}{3}"), Some(Ok(ratio(2, 3))));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC*", dense in "[0-9.,/eE+$%{}frac\\\\-]*") {
            for text in [text, dense] {
                let _ = whole_number(&text);
                let _ = last_number(&text);
            }
        }

        #[test]
        fn integers_are_read_back(value: i64) {
            prop_assert_eq!(whole_number(&value.to_string()), Ok(ratio(value, 1)));
        }
    }
}
