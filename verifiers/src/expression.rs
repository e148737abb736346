//! Arithmetic over whole numbers: a grammar, and exact evaluation.
//!
//! ```text
//! sum     = product (("+" | "-") product)*
//! product = atom (("*" | "/") atom)*
//! atom    = digits | "(" sum ")"
//! ```
//!
//! Also accepts `×`, `·`, `÷` and `−`. There is no unary minus and no juxtaposition. Length and
//! depth are bounded, so parsing and evaluation are cheap for any input.

use std::fmt;

use nom::{
    IResult, Parser,
    bytes::complete::take_while1,
    character::complete::{char, multispace0, one_of},
    error::{Error, ErrorKind},
    sequence::preceded,
};
use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::Zero;

/// Longest expression read, in bytes. A value has at most this many digits, up to a factor of two.
pub const LONGEST: usize = 1024;

/// Deepest nesting of parentheses read.
pub const DEEPEST: usize = 64;

/// An arithmetic expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// A whole number, as written.
    Number(BigInt),
    /// Two expressions and what is done with them.
    Binary(Box<Expression>, Operator, Box<Expression>),
}

/// One of the four operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`
    Divide,
}

impl fmt::Display for Operator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
            Self::Divide => "/",
        })
    }
}

/// Why text is not an expression, or an expression has no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionProblem {
    /// More bytes than are read.
    #[error("longer than {LONGEST} bytes")]
    TooLong,
    /// More nesting than is read.
    #[error("nested deeper than {DEEPEST} parentheses")]
    TooDeep,
    /// It does not follow the grammar.
    #[error("not an expression from character {at} on")]
    Syntax {
        /// How many characters could be read.
        at: usize,
    },
    /// It divides by zero.
    #[error("division by zero")]
    DivisionByZero,
}

impl Expression {
    /// Reads text that is one expression and white space.
    ///
    /// # Errors
    /// If it is anything else, or too long or too deep.
    pub fn parse(text: &str) -> Result<Self, ExpressionProblem> {
        let text = text.trim();
        if text.len() > LONGEST {
            return Err(ExpressionProblem::TooLong);
        }
        let syntax = |rest: &str| ExpressionProblem::Syntax {
            at: text[..text.len() - rest.len()].chars().count(),
        };
        match sum(text, 0) {
            Ok((rest, expression)) if rest.trim().is_empty() => Ok(expression),
            Ok((rest, _)) => Err(syntax(rest)),
            Err(nom::Err::Failure(error)) if error.code == ErrorKind::TooLarge => {
                Err(ExpressionProblem::TooDeep)
            }
            Err(nom::Err::Error(error) | nom::Err::Failure(error)) => Err(syntax(error.input)),
            Err(nom::Err::Incomplete(_)) => Err(syntax("")),
        }
    }

    /// The exact value.
    ///
    /// # Errors
    /// [`ExpressionProblem::DivisionByZero`].
    pub fn value(&self) -> Result<BigRational, ExpressionProblem> {
        match self {
            Self::Number(number) => Ok(BigRational::from_integer(number.clone())),
            Self::Binary(left, operator, right) => {
                let (left, right) = (left.value()?, right.value()?);
                Ok(match operator {
                    Operator::Add => left + right,
                    Operator::Subtract => left - right,
                    Operator::Multiply => left * right,
                    Operator::Divide if right.is_zero() => {
                        return Err(ExpressionProblem::DivisionByZero);
                    }
                    Operator::Divide => left / right,
                })
            }
        }
    }

    /// The numbers written in it, from left to right.
    pub fn numbers(&self) -> Vec<&BigInt> {
        match self {
            Self::Number(number) => vec![number],
            Self::Binary(left, _, right) => {
                let mut numbers = left.numbers();
                numbers.append(&mut right.numbers());
                numbers
            }
        }
    }
}

fn sum(input: &str, depth: usize) -> IResult<&str, Expression> {
    let (mut rest, mut left) = product(input, depth)?;
    while let Ok((after, sign)) = operator(rest, "+-−") {
        let (after, right) = product(after, depth)?;
        let operator = if sign == '+' { Operator::Add } else { Operator::Subtract };
        left = Expression::Binary(Box::new(left), operator, Box::new(right));
        rest = after;
    }
    Ok((rest, left))
}

fn product(input: &str, depth: usize) -> IResult<&str, Expression> {
    let (mut rest, mut left) = atom(input, depth)?;
    while let Ok((after, sign)) = operator(rest, "*×·/÷") {
        let (after, right) = atom(after, depth)?;
        let operator =
            if matches!(sign, '/' | '÷') { Operator::Divide } else { Operator::Multiply };
        left = Expression::Binary(Box::new(left), operator, Box::new(right));
        rest = after;
    }
    Ok((rest, left))
}

fn atom(input: &str, depth: usize) -> IResult<&str, Expression> {
    let (input, _) = multispace0(input)?;
    if let Ok((inside, _)) = char::<_, Error<&str>>('(')(input) {
        if depth == DEEPEST {
            return Err(nom::Err::Failure(Error::new(input, ErrorKind::TooLarge)));
        }
        let (rest, expression) = sum(inside, depth + 1)?;
        let (rest, _) = preceded(multispace0, char(')')).parse(rest)?;
        return Ok((rest, expression));
    }
    let (rest, digits) = take_while1(|letter: char| letter.is_ascii_digit())(input)?;
    let number: BigInt =
        digits.parse().map_err(|_| nom::Err::Error(Error::new(input, ErrorKind::Digit)))?;
    Ok((rest, Expression::Number(number)))
}

fn operator<'a>(input: &'a str, signs: &str) -> IResult<&'a str, char> {
    preceded(multispace0, one_of(signs)).parse(input)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check_value(text: &str, numerator: i64, denominator: i64) {
        let value = Expression::parse(text).and_then(|it| it.value());
        assert_eq!(value, Ok(BigRational::new(numerator.into(), denominator.into())), "{text}");
    }

    #[test]
    fn precedence_and_association_are_those_of_school() {
        check_value("2+3*4", 14, 1);
        check_value("(2+3)*4", 20, 1);
        check_value("10-3-2", 5, 1);
        check_value("8/4/2", 1, 1);
        check_value(" 1 / 3 × 3 ", 1, 1);
        check_value("2 − 5", -3, 1);
        check_value("((7))", 7, 1);
    }

    #[test]
    fn what_is_not_an_expression_says_where_it_stops() {
        for (text, at) in [("", 0), ("1+", 2), ("(1", 2), ("1 2", 1), ("-3", 0), ("1+x", 2)] {
            let at = ExpressionProblem::Syntax { at };
            assert_eq!(Expression::parse(text), Err(at), "{text}");
        }
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let nested = |depth| format!("{}1{}", "(".repeat(depth), ")".repeat(depth));
        assert!(Expression::parse(&nested(DEEPEST)).is_ok());
        assert_eq!(Expression::parse(&nested(DEEPEST + 1)), Err(ExpressionProblem::TooDeep));
        assert_eq!(Expression::parse(&"1".repeat(LONGEST + 1)), Err(ExpressionProblem::TooLong));
    }

    #[test]
    fn dividing_by_zero_has_no_value() {
        let problem = Expression::parse("1/(2-2)").and_then(|it| it.value());
        assert_eq!(problem, Err(ExpressionProblem::DivisionByZero));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*", dense in "[0-9+*/() −×-]*") {
            for text in [text, dense] {
                let _ = Expression::parse(&text).and_then(|it| it.value());
            }
        }
    }
}
