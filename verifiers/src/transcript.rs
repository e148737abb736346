//! What was said: messages by role, and the transcript a verifier judges.
//!
//! A transcript is text only. Token ids, log-probabilities and masks belong to the rollout's
//! trajectory and never reach a verifier.

use serde::{Deserialize, Serialize};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Standing instructions, before the conversation.
    System,
    /// The one who asks: the task's prompt.
    User,
    /// The policy.
    Assistant,
    /// A tool that the environment ran on the policy's behalf.
    Tool,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What was said, verbatim.
    pub content: String,
}

impl Message {
    /// A standing instruction.
    pub fn system(content: impl Into<String>) -> Self {
        Self { role: Role::System, content: content.into() }
    }

    /// Something asked of the policy.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: Role::User, content: content.into() }
    }

    /// A reply of the policy.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: Role::Assistant, content: content.into() }
    }

    /// A tool's output.
    pub fn tool(content: impl Into<String>) -> Self {
        Self { role: Role::Tool, content: content.into() }
    }
}

/// Why the conversation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The policy ended its last reply itself and the environment was done.
    Finished,
    /// The last reply ran into the token limit.
    Length,
    /// The episode ran into its limit of turns.
    TurnLimit,
}

/// A finished conversation, as a verifier sees it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Transcript {
    /// All messages in order, the prompt included.
    pub messages: Vec<Message>,
    /// Why it ended.
    pub stop: StopReason,
}

impl Transcript {
    /// A prompt and one finished reply: the transcript of a single-turn episode.
    pub fn of_reply(mut prompt: Vec<Message>, reply: impl Into<String>) -> Self {
        prompt.push(Message::assistant(reply));
        Self { messages: prompt, stop: StopReason::Finished }
    }

    /// Content of the last assistant message, or `""` if the policy never spoke.
    pub fn last_reply(&self) -> &str {
        self.messages
            .iter()
            .rev()
            .find(|message| message.role == Role::Assistant)
            .map_or("", |message| message.content.as_str())
    }

    /// Contents of all assistant messages, in order.
    pub fn replies(&self) -> impl Iterator<Item = &str> {
        self.messages
            .iter()
            .filter(|message| message.role == Role::Assistant)
            .map(|message| message.content.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_reply_skips_what_the_tool_said_after_it() {
        let transcript = Transcript {
            messages: vec![
                Message::user("2*3?"),
                Message::assistant("<calc>2*3</calc>"),
                Message::tool("6"),
            ],
            stop: StopReason::TurnLimit,
        };
        assert_eq!(transcript.last_reply(), "<calc>2*3</calc>");
        assert_eq!(transcript.replies().count(), 1);
    }

    #[test]
    fn a_policy_that_never_spoke_replied_nothing() {
        let transcript =
            Transcript { messages: vec![Message::user("hello")], stop: StopReason::Length };
        assert_eq!(transcript.last_reply(), "");
    }

    #[test]
    fn serialised_names_are_the_documented_ones() {
        let transcript =
            Transcript { messages: vec![Message::system("be brief")], stop: StopReason::TurnLimit };
        assert_eq!(
            serde_json::to_string(&transcript).expect("a transcript serialises"),
            r#"{"messages":[{"role":"system","content":"be brief"}],"stop":"turn_limit"}"#
        );
    }
}
