//! A model folder's Jinja chat template, rendered as Hugging Face transformers renders it.
//!
//! Templates are written for Python's Jinja with both block trims on, Python string methods, and
//! the helpers `raise_exception`, `strftime_now` and `tojson`; `pycompat` supplies the methods.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value, context};
use tallow_policies::Tokenizer;
use tallow_verifiers::Message;

use crate::error::Error;

/// ChatML: the template given to tokenizers trained here with `chat = true`.
pub const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}\
{{ '<|im_start|>assistant\n' }}{% endif %}";

/// A compiled chat template with the special tokens it may name.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles the tokenizer's template; `None` if its folder has none.
    ///
    /// # Errors
    /// If the template is not valid Jinja.
    pub fn of(tokenizer: &Tokenizer) -> Result<Option<Self>, Error> {
        let Some(source) = tokenizer.chat_template() else { return Ok(None) };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| Error::chat_template(&e))?;
        environment.set_syntax(syntax);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| {
            Err::<Value, _>(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        // Runs are reproducible, so a template that asks for today's date gets a fixed one.
        environment.add_function("strftime_now", |_format: String| "2026-01-01".to_string());
        environment
            .add_template_owned("chat", source.to_string())
            .map_err(|e| Error::chat_template(&e))?;
        Ok(Some(Self {
            environment,
            bos: tokenizer.special("bos_token").unwrap_or_default(),
            eos: tokenizer.special("eos_token").unwrap_or_default(),
        }))
    }

    /// Text of `messages`; with `add_generation_prompt` it ends where the assistant would begin.
    ///
    /// # Errors
    /// If the template refuses the messages, for instance an order of roles it does not know.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        let template =
            self.environment.get_template("chat").map_err(|e| Error::chat_template(&e))?;
        template
            .render(context! {
                messages => minijinja::value::Serde(messages),
                add_generation_prompt => add_generation_prompt,
                bos_token => self.bos.as_str(),
                eos_token => self.eos.as_str(),
            })
            .map_err(|e| Error::chat_template(&e))
    }
}
