//! Mathematical answers: whether a reply's answer is the right one, written otherwise or not.
//!
//! The stages, each in its own file: `fold.rs` (Unicode), `extract.rs` (where the answer stands),
//! `plain.rs` (plain numbers, which stop here), `token.rs`, `parser.rs` and `tree.rs` (an arena of
//! nodes), `polynomial.rs` and `algebra.rs` (values in normal form), `identity.rs` (identities
//! that the normal form does not show), `compare.rs` (sets, tuples, equations, intervals, ...) and
//! `words.rs` (texts, choices, times). `fuel.rs` bounds the work of one verdict by counting it, so
//! that no reply can hang a run and the verdict does not depend on the machine.
//!
//! What is equal to what is written down in this crate's `README.md`. The options have the names
//! that Math-Verify gave them, where it has them.

pub mod algebra;
pub mod compare;
pub mod extract;
pub mod fold;
pub mod fuel;
pub mod identity;
pub mod parser;
pub mod plain;
pub mod polynomial;
pub mod token;
pub mod tree;
pub mod words;

use std::borrow::Cow;
use std::sync::Arc;

use num_rational::BigRational;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::{
    algebra::Algebra,
    compare::Comparison,
    extract::{Missing, Search, extract},
    fuel::{BUDGET, Fuel},
    parser::Unparsed,
    plain::Plain,
    tree::{Id, Node, Tree},
};
use crate::{
    answer_span::excerpt,
    config_fault::ConfigFault,
    error::VerifyError,
    registry::{ContractCase, VerifierConfig, Verifiers},
    transcript::Transcript,
    verifier::{Outcome, Reference, ReferenceKind, Verdict, Verifier},
};

/// Longest answer in bytes that is parsed; longer ones are compared as plain numbers and as text.
const LONGEST: usize = 4096;

/// Kinds of text that are searched for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MatchType {
    /// Boxes and math between delimiters.
    Latex,
    /// Bare numbers.
    Expr,
}

/// What a gold answer or a reply is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerForm {
    /// What would stand in the box.
    Answer,
    /// A text that has to be searched for its answer.
    Text,
}

/// Options of the `math` verifier.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MathConfig {
    /// What the gold answer is written as.
    pub gold_form: AnswerForm,
    /// What the reply is written as.
    pub pred_form: AnswerForm,
    /// Only a `\boxed{}` counts as an answer.
    pub require_box: bool,
    /// Only a box, an `<answer>` tag or an anchor such as `####` or `answer is` counts.
    pub require_anchor: bool,
    /// What else is searched: `latex`, `expr`.
    pub match_types: Vec<MatchType>,
    /// Negative: boxes are not preferred to anchors and other math.
    pub boxed_match_priority: i64,
    /// Decimal places to which two numbers are rounded if one is a decimal.
    pub float_rounding: u32,
    /// Whether `50%` is also 50, besides 0.5.
    pub percent_as_number: bool,
    /// Whether `52` is right for `52_8`; another base never is.
    pub ignore_base: bool,
    /// Whether an inequality in the reply is right for an interval, as the other way round always is.
    pub allow_set_relation_comp: bool,
    /// Whether variables have names: if not, `f(x)` is `f(y)`.
    pub strict: bool,
    /// Draws the primes and points of identity tests; any number.
    pub key: u64,
}

impl Default for MathConfig {
    fn default() -> Self {
        Self {
            gold_form: AnswerForm::Answer,
            pred_form: AnswerForm::Text,
            require_box: false,
            require_anchor: false,
            match_types: vec![MatchType::Latex, MatchType::Expr],
            boxed_match_priority: 0,
            float_rounding: 6,
            percent_as_number: true,
            ignore_base: false,
            allow_set_relation_comp: false,
            strict: true,
            key: 0x7a11_0571_2026,
        }
    }
}

/// What a judgement says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The answers are equal.
    Equal,
    /// They are not, as far as can be decided.
    NotEqual,
    /// The reply has no answer.
    NoAnswer,
    /// The right answer cannot be read: there is no verdict.
    GoldUnparsed,
    /// The reply's answer is too long, too deep, too large or takes too much work.
    Limit,
}

/// A status and the rule that led to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What is the case.
    pub status: Status,
    /// Which stage decided.
    pub rule: &'static str,
}

const fn judged(status: Status, rule: &'static str) -> Judgement {
    Judgement { status, rule }
}

/// Judges one pair.
pub fn judge(gold: &str, answer: &str, options: &MathConfig) -> Judgement {
    let search = Search {
        boxes: options.boxed_match_priority >= 0,
        require_box: options.require_box,
        require_anchor: options.require_anchor,
        math: options.match_types.contains(&MatchType::Latex),
        numbers: options.match_types.contains(&MatchType::Expr),
    };
    let (Some(gold), Some(answer)) = (fold::fold(gold), fold::fold(answer)) else {
        return if fold::fold(gold).is_none() {
            judged(Status::GoldUnparsed, "characters")
        } else {
            judged(Status::NoAnswer, "characters that turn the direction of the text")
        };
    };
    let gold = match found(&gold, options.gold_form, &search) {
        Ok(gold) => gold,
        Err(_) => return judged(Status::GoldUnparsed, "extraction"),
    };
    let answer = match found(&answer, options.pred_form, &search) {
        Ok(answer) => answer,
        Err(Missing::OpenBox) => return judged(Status::NoAnswer, "the last box is never closed"),
        Err(Missing::Nothing) => return judged(Status::NoAnswer, "extraction"),
    };
    pair(&gold, &answer, options)
}

/// The answer of a text, or a bare answer without its delimiters.
fn found<'a>(text: &'a str, form: AnswerForm, search: &Search) -> Result<Cow<'a, str>, Missing> {
    match form {
        AnswerForm::Text => extract(text, search).map(|it| it.answer),
        AnswerForm::Answer if text.contains("\\boxed") || text.contains("\\fbox") => {
            extract(text, &Search { boxes: true, ..*search }).map(|it| it.answer)
        }
        AnswerForm::Answer => Ok(Cow::Borrowed(text.trim())),
    }
}

/// Judges two answers that were found and folded.
fn pair(gold: &str, answer: &str, options: &MathConfig) -> Judgement {
    let (gold, answer) = (gold.trim(), answer.trim());
    if gold.is_empty() {
        return judged(Status::GoldUnparsed, "empty");
    }
    if answer.is_empty() {
        return judged(Status::NoAnswer, "empty");
    }
    let plain_gold = plain::plain(gold);
    if let Some(left) = &plain_gold
        && let Some(right) = plain::plain(answer)
        && let Some(equal) = same_plain(left, &right, options)
    {
        let status = if equal { Status::Equal } else { Status::NotEqual };
        return judged(status, "plain numbers");
    }
    if let (Some((left, seconds, said)), Some((right, other_seconds, other_said))) =
        (words::time(gold), words::time(answer))
        && (said
            || other_said
            || seconds + other_seconds > 0
            || gold.matches(':').count() + answer.matches(':').count() > 2)
    {
        let clock = |it: u32, both: bool| if both { it } else { it % 720 };
        // Without `p.m.` on one side, 4:30 may be either.
        let exact = said == other_said || left >= 720 && !said || right >= 720 && !other_said;
        let equal = clock(left, exact) == clock(right, exact) && seconds == other_seconds;
        let status = if equal { Status::Equal } else { Status::NotEqual };
        return judged(status, "times of day");
    }
    let gold = match words::marked(gold) {
        Some((letter, rest)) => {
            if words::same(&letter.to_string(), answer) || same_letters(gold, answer) {
                return judged(Status::Equal, "the choice");
            }
            rest
        }
        None => gold,
    };
    if gold.len() > LONGEST {
        return judged(Status::GoldUnparsed, "length");
    }
    if answer.len() > LONGEST {
        return judged(Status::Limit, "length");
    }
    let mut tree = Tree::default();
    // The right answer has a budget of its own: what the reply says must not make it unreadable.
    let mut fuel = Fuel::new(BUDGET);
    let gold_root = match parser::parse(gold, &mut tree, &mut fuel) {
        Ok(root) => root,
        Err(_) if is_text(gold) => tree.add(Node::Text(gold.to_owned())),
        Err(Unparsed::Empty) => return judged(Status::GoldUnparsed, "empty"),
        Err(_) => return judged(Status::GoldUnparsed, "grammar"),
    };
    if let Node::Text(_) = tree.get(gold_root)
        && words::normal(gold).is_empty()
    {
        return judged(Status::GoldUnparsed, "empty");
    }
    let mut fuel = Fuel::new(BUDGET);
    let answer_root = match parser::parse(answer, &mut tree, &mut fuel) {
        Ok(root) => root,
        Err(Unparsed::Empty) => return judged(Status::NoAnswer, "empty"),
        Err(problem) => {
            let words = matches!(tree.get(gold_root), Node::Text(_)) || is_choice(&tree, gold_root);
            let said = words && words::same(gold, answer);
            if said || same_letters(gold, answer) {
                return judged(Status::Equal, "the same text");
            }
            return match problem {
                Unparsed::Limit => judged(Status::Limit, "size"),
                _ => judged(Status::NotEqual, "grammar"),
            };
        }
    };
    let worded = |tree: &Tree, id: Id| matches!(tree.get(id), Node::Text(_));
    if worded(&tree, gold_root) || worded(&tree, answer_root) || is_choice(&tree, gold_root) {
        let status = if words::same(gold, answer) { Status::Equal } else { Status::NotEqual };
        return judged(status, "words");
    }
    if same_letters(gold, answer) {
        return judged(Status::Equal, "the same text");
    }
    if !options.strict {
        tree.number_symbols(gold_root);
    }
    let seed = identity::seed(options.key, gold, answer);
    let mut comparison = Comparison::new(&tree, Algebra::new(fuel), options, seed);
    let mut decided = comparison.same(gold_root, answer_root);
    if decided == Ok(false) && comparison.degrees_on_one_side(gold_root) {
        comparison = comparison.without_degrees();
        decided = comparison.same(gold_root, answer_root);
    }
    match decided {
        Ok(true) => judged(Status::Equal, comparison.rule()),
        Ok(false) => judged(Status::NotEqual, comparison.rule()),
        Err(_) => judged(Status::Limit, "work"),
    }
}

impl VerifierConfig for MathConfig {
    const NAME: &'static str = "math";
    const SUMMARY: &'static str = "a mathematical answer, however it is written";

    fn build(&self, _verifiers: &Verifiers) -> Result<Arc<dyn Verifier>, ConfigFault> {
        if self.match_types.is_empty() {
            return Err(ConfigFault::new("match_types", "nothing is searched")
                .found("[]")
                .expected("`latex`, `expr` or both"));
        }
        if self.float_rounding > 50 {
            return Err(ConfigFault::new(
                "float_rounding",
                "more decimal places than are computed",
            )
            .found(self.float_rounding)
            .expected("0 to 50"));
        }
        Ok(Arc::new(Math { options: self.clone() }))
    }

    fn cases() -> Vec<ContractCase> {
        include_str!("cases.txt").lines().filter_map(contract_case).collect()
    }
}

/// A line of `cases.txt`: `outcome | gold | reply | options`.
fn contract_case(line: &str) -> Option<ContractCase> {
    let line = line.trim();
    if line.is_empty() || line.starts_with("# ") || line == "#" {
        return None;
    }
    let mut parts = line.split(" || ").map(str::trim);
    let outcome = match parts.next()? {
        "=" => Outcome::Correct,
        "!" => Outcome::Incorrect,
        "?" => Outcome::Malformed,
        other => unreachable!("a line of cases.txt begins with {other:?}"),
    };
    let reference = Reference::Answer(parts.next()?.to_owned());
    let reply = parts.next()?.replace("\\n#", "\n#");
    let options = match parts.next() {
        Some(options) => serde_json::from_str(options).unwrap_or(Value::Null),
        None => json!({}),
    };
    Some(ContractCase { options, reference, reply, outcome })
}

struct Math {
    options: MathConfig,
}

impl Verifier for Math {
    fn name(&self) -> &str {
        MathConfig::NAME
    }

    fn reference_kinds(&self) -> &'static [ReferenceKind] {
        &[ReferenceKind::Answer]
    }

    fn verify(
        &self,
        transcript: &Transcript,
        reference: &Reference,
    ) -> Result<Verdict, VerifyError> {
        let Reference::Answer(gold) = reference else {
            return Err(VerifyError::WrongReference {
                verifier: MathConfig::NAME.to_owned(),
                wanted: ReferenceKind::Answer,
                got: reference.kind(),
            });
        };
        let Judgement { status, rule } = judge(gold, transcript.last_reply(), &self.options);
        Ok(match status {
            Status::Equal => Verdict { reason: Some(rule.to_owned()), ..Verdict::correct() },
            Status::NotEqual => Verdict::incorrect(rule),
            Status::Limit => Verdict::incorrect(format!("beyond the limits: {rule}")),
            Status::NoAnswer => Verdict::malformed(format!("no answer: {rule}")),
            Status::GoldUnparsed => {
                return Err(VerifyError::BadReference {
                    verifier: MathConfig::NAME.to_owned(),
                    problem: format!("{} is no answer ({rule})", excerpt(gold)),
                });
            }
        })
    }
}

/// Whether two plain numbers are equal; `None` if they have to be rounded first.
fn same_plain(gold: &Plain, answer: &Plain, options: &MathConfig) -> Option<bool> {
    if gold.negative == answer.negative
        && gold.whole == answer.whole
        && gold.fraction == answer.fraction
    {
        return Some(true);
    }
    let places = options.float_rounding as usize;
    let short =
        gold.fraction.as_slice().len() <= places && answer.fraction.as_slice().len() <= places;
    if short {
        return Some(false);
    }
    // Thirty digits differ before their sixth decimal, or there is nothing to round.
    let value = |it: &Plain| -> Option<BigRational> {
        let digits = [it.whole.as_slice(), it.fraction.as_slice()].concat();
        if digits.len() > 400 {
            return None;
        }
        let text = if digits.is_empty() { "0" } else { std::str::from_utf8(&digits).ok()? };
        let number: num_bigint::BigInt = text.parse().ok()?;
        let scale = num_bigint::BigInt::from(10).pow(it.fraction.as_slice().len() as u32);
        let value = BigRational::new(number, scale);
        Some(if it.negative { -value } else { value })
    };
    let (Some(left), Some(right)) = (value(gold), value(answer)) else { return Some(false) };
    Some(compare::rounds(&left, &right, options.float_rounding))
}

/// Whether what is no math may be an answer in words.
fn is_text(text: &str) -> bool {
    if ["\\text", "\\mathrm", "\\mbox", "\\textbf"].iter().any(|it| text.contains(it)) {
        return true;
    }
    text.chars().any(char::is_alphabetic)
        && text
            .chars()
            .all(|it| it.is_alphanumeric() || it.is_whitespace() || ".,:;'\"-()?!/&".contains(it))
}

/// A lone capital letter that marks a choice.
fn is_choice(tree: &Tree, id: Id) -> bool {
    matches!(tree.get(id), Node::Symbol(name) if matches!(name.as_str(), "A" | "B" | "C" | "D" | "E"))
}

/// Whether two texts are the same but for spaces.
fn same_letters(a: &str, b: &str) -> bool {
    let letters = |it: &str| it.bytes().filter(|it| !it.is_ascii_whitespace()).collect::<Vec<_>>();
    letters(a) == letters(b)
}
