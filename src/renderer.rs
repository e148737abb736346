//! Messages to tokens and back: the only place where the text world meets the tensor world.
//!
//! A model folder with a chat template is spoken to through it. One without (a base model, the tiny
//! models of the experiments) is plain: contents follow one another, and a reply ends with the end
//! token. Sampled ids are never decoded and encoded again: a later turn is the ids so far plus the
//! ids of what the environment added.

use std::sync::Arc;

use serde_json::Value;
use tallow_policies::{TokenId, Tokenizer};
use tallow_verifiers::Message;

use crate::chat_template::{ChatTemplate, TemplateOptions};
use crate::error::Error;

/// Stands for the sampled reply when the text between two replies is rendered.
const PLACEHOLDER: &str = "\u{2}reply\u{3}";

/// Renders conversations for one tokenizer.
pub struct Renderer {
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    options: TemplateOptions,
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
        Self::with_options(tokenizer, TemplateOptions::new())
    }

    /// The same with options that the template sees in every conversation.
    ///
    /// # Errors
    /// If the template is not valid Jinja.
    pub fn with_options(
        tokenizer: Arc<Tokenizer>,
        options: TemplateOptions,
    ) -> Result<Self, Error> {
        let template = ChatTemplate::of(&tokenizer)?;
        Ok(Self { tokenizer, template, options })
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
        self.prompt_of(&as_values(messages), &TemplateOptions::new())
    }

    /// The same for messages as JSON, whose contents may be lists of parts, with tool calls and
    /// whatever the template reads; `options` come before the renderer's own.
    ///
    /// # Errors
    /// If the template or the tokenizer refuses the messages.
    pub fn prompt_of(
        &self,
        messages: &[Value],
        options: &TemplateOptions,
    ) -> Result<Vec<TokenId>, Error> {
        let text = match &self.template {
            Some(template) => template.render(messages, true, &self.with(options))?,
            None => joined(messages)?,
        };
        Ok(self.tokenizer.encode(&text)?)
    }

    /// Ids between a sampled reply and the next one, which holds `new` messages.
    ///
    /// They do not depend on what was said before, so nothing is rendered twice: a template that
    /// shows earlier turns differently (Qwen3's leaves out what was thought) cannot change ids that
    /// were sampled. `ended` says whether the reply's last id was an end token; if not, the turn is
    /// closed here.
    ///
    /// # Errors
    /// If the template does not show an assistant's reply as given.
    pub fn continuation(&self, new: &[Message], ended: bool) -> Result<Vec<TokenId>, Error> {
        self.continuation_of(&as_values(new), ended, &TemplateOptions::new())
    }

    fn continuation_of(
        &self,
        new: &[Value],
        ended: bool,
        options: &TemplateOptions,
    ) -> Result<Vec<TokenId>, Error> {
        let Some(template) = &self.template else {
            return Ok(self.tokenizer.encode(&joined(new)?)?);
        };
        let mut messages = as_values(&[Message::user("x"), Message::assistant(PLACEHOLDER)]);
        messages.extend_from_slice(new);
        let text = template.render(&messages, true, &self.with(options))?;
        let Some((_, rest)) = text.split_once(PLACEHOLDER) else {
            return Err(Error::Template("it does not show the assistant's reply as given".into()));
        };
        let mut ids = self.tokenizer.encode(rest)?;
        if ended && let Some(end) = self.first_end(&ids) {
            // Some templates put a space between a reply and the token that ends it.
            let before = self.tokenizer.decode_with_specials(&ids[..end])?;
            if before.trim().is_empty() {
                ids.drain(..=end);
            }
        }
        Ok(ids)
    }

    /// Ids of a whole conversation with the replies marked, as SFT trains on it: the ids that
    /// sampling would have seen, turn by turn, had the policy written the replies. A reply is what
    /// the template shows for it while it is the last message, so what was thought stays.
    ///
    /// # Errors
    /// If a reply does not follow what the template writes to ask for one.
    pub fn conversation(&self, messages: &[Message]) -> Result<Rendered, Error> {
        self.conversation_of(&as_values(messages), &TemplateOptions::new())
    }

    /// The same for messages as JSON, see [`prompt_of`](Self::prompt_of).
    ///
    /// # Errors
    /// If a reply does not follow what the template writes to ask for one.
    pub fn conversation_of(
        &self,
        messages: &[Value],
        options: &TemplateOptions,
    ) -> Result<Rendered, Error> {
        let mut rendered = Rendered::default();
        let is_reply = |it: &Value| it["role"] == "assistant";
        let Some(template) = &self.template else {
            for message in messages {
                let ids = self.tokenizer.encode(&content(message)?)?;
                rendered.push(&ids, is_reply(message));
                if is_reply(message) {
                    rendered.push(&[self.tokenizer.end_id()], true);
                }
            }
            return Ok(rendered);
        };
        let all = self.with(options);
        // Where the messages after the last reply begin, whether an end token ended it, and what
        // the template writes after that token.
        let mut after_reply: Option<(usize, bool)> = None;
        let mut closing = Vec::new();
        for (index, _) in messages.iter().enumerate().filter(|it| is_reply(it.1)) {
            let before = template.render(&messages[..index], true, &all)?;
            let whole = template.render(&messages[..=index], false, &all)?;
            let Some(reply) = whole.strip_prefix(&before) else {
                return Err(Error::Template(format!(
                    "it shows message {} otherwise than after the text that asks for a reply, so \
                     what is trained on would not be what is sampled",
                    index + 1
                )));
            };
            match after_reply {
                None => rendered.push(&self.tokenizer.encode(&before)?, false),
                Some((start, ended)) => {
                    let new = &messages[start..index];
                    rendered.push(&self.continuation_of(new, ended, options)?, false);
                }
            }
            let reply = self.tokenizer.encode(reply)?;
            let end = self.first_end(&reply);
            let (said, rest) = reply.split_at(end.map_or(reply.len(), |it| it + 1));
            rendered.push(said, true);
            closing = rest.to_vec();
            after_reply = Some((index + 1, end.is_some()));
        }
        rendered.push(&closing, false);
        Ok(rendered)
    }

    /// Text of a sampled reply, special tokens left out.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn reply_text(&self, tokens: &[TokenId]) -> Result<String, Error> {
        Ok(self.tokenizer.decode(tokens)?)
    }

    fn first_end(&self, ids: &[TokenId]) -> Option<usize> {
        ids.iter().position(|it| self.tokenizer.end_ids().contains(it))
    }

    fn with(&self, more: &TemplateOptions) -> TemplateOptions {
        let mut all = self.options.clone();
        all.extend(more.clone());
        all
    }
}

fn as_values(messages: &[Message]) -> Vec<Value> {
    let value = |it: &Message| serde_json::json!({"role": it.role, "content": it.content});
    messages.iter().map(value).collect()
}

fn joined(messages: &[Value]) -> Result<String, Error> {
    messages.iter().map(content).collect()
}

/// What a message says: its content, or the texts of the content's parts.
fn content(message: &Value) -> Result<String, Error> {
    let text = |it: &Value| it.as_str().map(str::to_owned);
    let said = match &message["content"] {
        Value::Array(parts) => parts.iter().map(|it| text(it.get("text")?)).collect(),
        content => text(content),
    };
    said.ok_or_else(|| {
        Error::Data(format!("a message needs a `content` of text or parts of text: {message}"))
    })
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
