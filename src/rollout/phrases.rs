//! Phrases to count in replies: which texts stand for which habit, and where in a text they occur.
//!
//! A text is found whatever its case, and only as whole words: a letter or digit at its end must
//! not go on, so `wait` is not in `waiter`. Occurrences do not overlap; the longest text at a place
//! counts, so a list may hold `check` and `let me check`.
//!
//! Words are weak evidence of what a policy does: a reply can say `wait` and change nothing. Read
//! them beside the share of replies that change their answer.

use std::collections::BTreeMap;

use tallow_policies::Tokenizer;

use crate::config::problem::Fault;

/// Texts by the name they are counted under.
pub type PhraseLists = BTreeMap<String, Vec<String>>;

/// Lists that stand under these names unless a run gives texts of its own. Most of the first are
/// those that Liu et al. 2025 (arXiv:2503.20783) searched base models for.
const BUILT_IN: [(&str, &[&str]); 3] = [
    (
        "reflection",
        &[
            "wait",
            "hmm",
            "aha",
            "let me check",
            "let me verify",
            "let me double-check",
            "let's check",
            "let's verify",
            "check:",
            "check again",
            "double-check",
            "double check",
            "recheck",
            "re-check",
            "verify again",
            "re-examine",
            "reexamine",
            "re-evaluate",
            "reevaluate",
            "reassess",
            "reconsider",
            "rethink",
            "think again",
            "go over the steps",
        ],
    ),
    (
        "backtracking",
        &[
            "no,",
            "try again",
            "instead",
            "alternatively",
            "another way",
            "another approach",
            "that's wrong",
            "that is wrong",
            "that's not right",
            "that is not right",
            "doesn't work",
            "does not work",
            "go back",
            "backtrack",
            "made a mistake",
        ],
    ),
    (
        "restart",
        &["start over", "start again", "begin again", "from scratch", "from the beginning"],
    ),
];

/// All built-in lists.
pub fn built_in() -> PhraseLists {
    let owned = |texts: &[&str]| texts.iter().map(|it| (*it).to_owned()).collect();
    BUILT_IN.iter().map(|(name, texts)| ((*name).to_owned(), owned(texts))).collect()
}

/// Puts the built-in list where an empty one stands under its name.
pub fn fill_named(lists: &mut PhraseLists) {
    let built_in = built_in();
    for (name, texts) in lists.iter_mut().filter(|(_, texts)| texts.is_empty()) {
        texts.extend(built_in.get(name).into_iter().flatten().cloned());
    }
}

/// What cannot be counted, under the names of the lists.
pub fn faults(lists: &PhraseLists) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (name, texts) in lists {
        if texts.is_empty() {
            let names: Vec<&str> = BUILT_IN.iter().map(|it| it.0).collect();
            faults.push(
                Fault::new(name.clone(), "there is nothing to count")
                    .found("[]")
                    .expected(format!("texts, or one of the names {}", names.join(", "))),
            );
        }
        if texts.iter().any(|it| it.trim().is_empty()) {
            faults.push(
                Fault::new(name.clone(), "a text without letters or signs is everywhere")
                    .expected("texts such as \"wait\""),
            );
        }
    }
    faults
}

/// Lists made ready for counting.
#[derive(Clone, Debug)]
pub struct Phrases {
    lists: Vec<List>,
}

#[derive(Clone, Debug)]
struct List {
    name: String,
    /// In lower case, the longest first.
    texts: Vec<String>,
    /// By first byte, whether a text begins so.
    begins: Box<[bool; 256]>,
}

impl Phrases {
    /// All of the lists.
    pub fn new(lists: &PhraseLists) -> Self {
        let ready = |(name, texts): (&String, &Vec<String>)| {
            let mut texts: Vec<String> = texts.iter().map(|it| it.to_lowercase()).collect();
            texts.retain(|it| !it.is_empty());
            texts.sort_by_key(|it| std::cmp::Reverse(it.len()));
            let mut begins = Box::new([false; 256]);
            texts.iter().for_each(|it| begins[usize::from(it.as_bytes()[0])] = true);
            List { name: name.clone(), texts, begins }
        };
        Self { lists: lists.iter().map(ready).collect() }
    }

    /// Those lists of which the tokenizer can write a text: a policy over digits never says `wait`,
    /// and a line of zeros would only stand in the way.
    pub fn written_by(lists: &PhraseLists, tokenizer: &Tokenizer) -> Self {
        let mut lists = lists.clone();
        lists.retain(|_, texts| texts.iter().any(|it| tokenizer.encode(it).is_ok()));
        Self::new(&lists)
    }

    /// Names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.lists.iter().map(|it| it.name.as_str())
    }

    /// How often each list occurs in all texts together, in the order of the names.
    pub fn count<'a>(&self, replies: impl Iterator<Item = &'a str>) -> Vec<usize> {
        let mut counts = vec![0; self.lists.len()];
        if counts.is_empty() {
            return counts;
        }
        for reply in replies {
            let lower = reply.to_lowercase();
            for (count, list) in counts.iter_mut().zip(&self.lists) {
                *count += list.occurrences(&lower);
            }
        }
        counts
    }
}

impl List {
    fn occurrences(&self, lower: &str) -> usize {
        let bytes = lower.as_bytes();
        let (mut at, mut count) = (0, 0);
        while at < bytes.len() {
            let found = match self.begins[usize::from(bytes[at])] && lower.is_char_boundary(at) {
                true => self.texts.iter().find(|it| stands_at(lower, at, it)),
                false => None,
            };
            count += usize::from(found.is_some());
            at += found.map_or(1, String::len);
        }
        count
    }
}

/// Whether `text` stands there and its words neither begin before nor go on behind it.
fn stands_at(lower: &str, at: usize, text: &str) -> bool {
    if !lower[at..].starts_with(text) {
        return false;
    }
    let joins = |one: Option<char>, other: Option<char>| {
        one.zip(other).is_some_and(|(a, b)| a.is_alphanumeric() && b.is_alphanumeric())
    };
    let end = at + text.len();
    !joins(lower[..at].chars().next_back(), text.chars().next())
        && !joins(text.chars().next_back(), lower[end..].chars().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(texts: &[&str]) -> PhraseLists {
        [("it".to_owned(), texts.iter().map(|it| (*it).to_owned()).collect())].into()
    }

    fn check(texts: &[&str], reply: &str, expected: usize) {
        let counts = Phrases::new(&lists(texts)).count([reply].into_iter());
        assert_eq!(counts, [expected], "{texts:?} in {reply:?}");
    }

    #[test]
    fn phrases_are_whole_words_in_any_case() {
        check(&["wait"], "Wait, WAIT! waiter await wait", 3);
        check(&["no,"], "no, piano, No,", 2);
        check(&["check:"], "Check: 3+4=7 check : checks:", 1);
        check(&["=0"], "1+9=0\n=05 =0", 2);
        check(&["#"], "12#3#", 2);
        check(&["back"], "no|back|4+3", 1);
        check(&["ÉTÉ"], "été étés", 1);
        check(&[""], "nothing", 0);
        check(&["wait"], "", 0);
    }

    #[test]
    fn the_longest_phrase_at_a_place_counts_once() {
        check(&["check", "let me check", "me"], "Let me check. Check me", 3);
        check(&["aa"], "aa aa aaaa", 2);
    }

    #[test]
    fn an_empty_list_names_a_built_in_one_or_is_a_fault() {
        let mut named: PhraseLists =
            [("reflection".to_owned(), Vec::new()), ("mine".to_owned(), vec!["#".to_owned()])]
                .into();
        fill_named(&mut named);
        assert_eq!(named["reflection"], built_in()["reflection"]);
        assert!(faults(&named).is_empty());
        assert_eq!(faults(&lists(&[])).len(), 1);
        assert_eq!(faults(&lists(&["wait", " "])).len(), 1);
        assert!(faults(&built_in()).is_empty());
    }

    #[test]
    fn what_a_tokenizer_cannot_write_is_left_out() {
        let tokenizer = Tokenizer::of_characters(["0123="], None).unwrap();
        let mut lists = built_in();
        lists.insert("answer".to_owned(), vec!["=".to_owned(), "so".to_owned()]);
        let phrases = Phrases::written_by(&lists, &tokenizer);
        assert_eq!(phrases.names().collect::<Vec<_>>(), ["answer"]);
    }
}
