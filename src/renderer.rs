//! Messages to tokens and back: the only place where the text world meets the tensor world.
//!
//! A model folder with a chat template is spoken to through it. One without (a base model, the tiny
//! models of the experiments) is plain: contents follow one another, and a reply ends with the end
//! token. Sampled ids are never decoded and encoded again: a later turn is the ids so far plus the
//! ids of what the environment added.

use std::sync::Arc;

use tallow_policies::{TokenId, Tokenizer};
use tallow_verifiers::{Message, Role};

use crate::chat_template::ChatTemplate;
use crate::error::Error;

/// Stands for the sampled reply when the text between two replies is rendered.
const PLACEHOLDER: &str = "\u{2}reply\u{3}";

/// Renders conversations for one tokenizer.
pub struct Renderer {
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
}

/// A rendered conversation: ids, and for each whether a reply's author writes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rendered {
    /// Ids of the whole conversation.
    pub tokens: Vec<TokenId>,
    /// True for reply tokens, the token that ends the reply included; same length as `tokens`.
    pub is_reply: Vec<bool>,
}

impl Rendered {
    fn push(&mut self, tokens: &[TokenId], is_reply: bool) {
        self.tokens.extend_from_slice(tokens);
        self.is_reply.resize(self.tokens.len(), is_reply);
    }
}

impl Renderer {
    /// A renderer with the tokenizer's own chat template, or plain where it has none.
    ///
    /// # Errors
    /// If the template is not valid Jinja.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Result<Self, Error> {
        let template = ChatTemplate::of(&tokenizer)?;
        Ok(Self { tokenizer, template })
    }

    /// The tokenizer underneath.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Ids of `messages`, ending where a reply would begin.
    ///
    /// # Errors
    /// If the template or the tokenizer refuses the messages.
    pub fn prompt(&self, messages: &[Message]) -> Result<Vec<TokenId>, Error> {
        match &self.template {
            Some(template) => Ok(self.tokenizer.encode(&template.render(messages, true)?)?),
            None => Ok(self.tokenizer.encode(&joined(messages))?),
        }
    }

    /// Ids between a sampled reply and the next one, which holds `new` messages.
    ///
    /// `ended` says whether the reply's last id was an end token; if not, the turn is closed here.
    ///
    /// # Errors
    /// If the template does not keep what it rendered before when messages are added.
    pub fn continuation(&self, new: &[Message], ended: bool) -> Result<Vec<TokenId>, Error> {
        let Some(template) = &self.template else {
            return Ok(self.tokenizer.encode(&joined(new))?);
        };
        let mut messages = vec![Message::user("x"), Message::assistant(PLACEHOLDER)];
        messages.extend_from_slice(new);
        let text = template.render(&messages, true)?;
        let Some((_, rest)) = text.split_once(PLACEHOLDER) else {
            return Err(Error::Template("it does not show the assistant's reply as given".into()));
        };
        let mut ids = self.tokenizer.encode(rest)?;
        if ended && ids.first().is_some_and(|it| self.tokenizer.end_ids().contains(it)) {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// Ids of a whole conversation with the replies marked, as SFT trains on it. Its prefix up to a
    /// reply is exactly what [`prompt`](Self::prompt) gives for the messages before.
    ///
    /// # Errors
    /// If the template rewrites earlier turns (training on it would not match sampling).
    pub fn conversation(&self, messages: &[Message]) -> Result<Rendered, Error> {
        let mut rendered = Rendered::default();
        let Some(template) = &self.template else {
            for message in messages {
                let is_reply = message.role == Role::Assistant;
                rendered.push(&self.tokenizer.encode(&message.content)?, is_reply);
                if is_reply {
                    rendered.push(&[self.tokenizer.end_id()], true);
                }
            }
            return Ok(rendered);
        };
        let mut text = String::new();
        for (index, message) in messages.iter().enumerate() {
            if message.role != Role::Assistant {
                continue;
            }
            let before = template.render(&messages[..index], true)?;
            let after = template.render(&messages[..=index], false)?;
            let (Some(prompt), Some(reply)) =
                (before.strip_prefix(&text), after.strip_prefix(&before))
            else {
                return Err(Error::Template(
                    "it rewrites earlier turns when a message is added, so what is trained on \
                     would not be what is sampled"
                        .into(),
                ));
            };
            rendered.push(&self.tokenizer.encode(prompt)?, false);
            let reply = self.tokenizer.encode(reply)?;
            let end = reply.iter().position(|it| self.tokenizer.end_ids().contains(it));
            let (said, rest) = reply.split_at(end.map_or(reply.len(), |it| it + 1));
            rendered.push(said, true);
            rendered.push(rest, false);
            text = after;
        }
        Ok(rendered)
    }

    /// Text of a sampled reply, special tokens left out.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn reply_text(&self, tokens: &[TokenId]) -> Result<String, Error> {
        Ok(self.tokenizer.decode(tokens)?)
    }
}

fn joined(messages: &[Message]) -> String {
    messages.iter().map(|it| it.content.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat_template::CHATML;

    fn chat() -> Renderer {
        let texts = ["systemuserassistanttool\n hello there 0123456789 x"];
        let tokenizer =
            Tokenizer::train_bpe(texts.iter(), 300, true, Some(CHATML)).expect("trained");
        Renderer::new(Arc::new(tokenizer)).expect("template compiles")
    }

    #[test]
    fn training_text_begins_with_the_prompt_that_sampling_sees() {
        let renderer = chat();
        let messages = [
            Message::user("hello 1"),
            Message::assistant("2"),
            Message::user("there"),
            Message::assistant("x"),
        ];
        let rendered = renderer.conversation(&messages).expect("rendered");
        let first = renderer.prompt(&messages[..1]).expect("prompt");
        assert_eq!(rendered.tokens[..first.len()], first);
        assert!(rendered.is_reply[..first.len()].iter().all(|it| !it));
        let reply: Vec<TokenId> = rendered
            .tokens
            .iter()
            .zip(&rendered.is_reply)
            .filter(|it| *it.1)
            .map(|it| *it.0)
            .collect();
        let text = renderer.tokenizer().decode_with_specials(&reply).expect("text");
        assert_eq!(text, "2<|im_end|>x<|im_end|>");
    }

    #[test]
    fn ids_of_a_second_turn_equal_the_whole_conversation_rendered_at_once() {
        let renderer = chat();
        let messages = [Message::user("hello"), Message::assistant("there"), Message::tool("12")];
        let mut ids = renderer.prompt(&messages[..1]).expect("prompt");
        ids.extend(renderer.tokenizer().encode("there<|im_end|>").expect("reply"));
        ids.extend(renderer.continuation(&messages[2..], true).expect("continuation"));
        assert_eq!(ids, renderer.prompt(&messages).expect("whole"));
    }

    #[test]
    fn a_plain_reply_ends_with_the_end_token() {
        let tokenizer = Tokenizer::of_characters(["1+=?"], None).expect("made");
        let renderer = Renderer::new(Arc::new(tokenizer)).expect("plain");
        let messages = [Message::user("1+1?"), Message::assistant("=1")];
        let rendered = renderer.conversation(&messages).expect("rendered");
        assert_eq!(rendered.is_reply, [false, false, false, false, true, true, true]);
        assert_eq!(rendered.tokens[6], renderer.tokenizer().end_id());
    }
}
