//! Where in a reply the answer stands: after a marker, or inside tags.
//!
//! The last occurrence always wins, so that a policy may write the marker while it thinks. What is
//! written last but left unfinished is never replaced by something earlier: a reply cut off by the
//! token limit has no answer.

/// The text after the last `marker`, or `None` if the marker is absent.
pub fn after_last<'a>(reply: &'a str, marker: &str) -> Option<&'a str> {
    reply.rfind(marker).map(|start| &reply[start + marker.len()..])
}

/// Why no text was found inside tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagProblem {
    /// No opening tag.
    Absent,
    /// The last opening tag is never closed.
    Unterminated,
}

/// The text inside the last `<tag>...</tag>`.
///
/// # Errors
/// If the tag is absent, or its last opening is never closed.
pub fn inside_last_tag<'a>(reply: &'a str, tag: &str) -> Result<&'a str, TagProblem> {
    let inside = after_last(reply, &format!("<{tag}>")).ok_or(TagProblem::Absent)?;
    let end = inside.find(&format!("</{tag}>")).ok_or(TagProblem::Unterminated)?;
    Ok(&inside[..end])
}

/// Whether `name` can be a tag: not empty, and only letters, digits, `_` and `-`.
pub fn is_tag_name(name: &str) -> bool {
    !name.is_empty()
        && name.chars().all(|letter| letter.is_alphanumeric() || letter == '_' || letter == '-')
}

/// At most 60 characters of hostile text, for a reason that a person reads.
pub(crate) fn excerpt(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?} and more", &text[..end]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_marker_counts() {
        assert_eq!(after_last("a=1, so b=2", "="), Some("2"));
        assert_eq!(after_last("no marker", "="), None);
        assert_eq!(after_last("ends with=", "="), Some(""));
    }

    #[test]
    fn an_unclosed_last_tag_never_falls_back_to_an_earlier_one() {
        assert_eq!(inside_last_tag("<a>1</a><a>2", "a"), Err(TagProblem::Unterminated));
        assert_eq!(inside_last_tag("<a>1</a><a>2</a>", "a"), Ok("2"));
        assert_eq!(inside_last_tag("1</a>", "a"), Err(TagProblem::Absent));
    }

    #[test]
    fn excerpts_are_cut_between_characters() {
        let hostile = "é".repeat(100);
        assert!(excerpt(&hostile).ends_with("\" and more"));
        assert_eq!(excerpt("short"), "\"short\"");
    }
}
