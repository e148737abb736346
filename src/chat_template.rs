//! A model folder's Jinja chat template, rendered as Hugging Face transformers renders it.
//!
//! Templates are written for Python's Jinja with both block trims on, loop controls, the tag
//! `generation`, Python's string methods (see [`python`]), and the helpers `raise_exception`,
//! `strftime_now` and `tojson`. What transformers does to messages before it renders them is done
//! here too: fields that are null are dropped, and reasoning goes by each of its names.

mod python;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, ErrorKind, State, Value};
use serde_json::Map;
use tallow_policies::Tokenizer;
use tallow_policies::tokenizer::DEFAULT_TEMPLATE;

use crate::error::Error;

/// ChatML: the template given to tokenizers trained here with `chat = true`.
pub const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}\
{{ '<|im_start|>assistant\n' }}{% endif %}";

/// The named template for conversations with tools, where a tokenizer has one.
const TOOL_TEMPLATE: &str = "tool_use";

/// The names that a message's reasoning goes by; templates read the first.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// What a template sees beside messages and special tokens: `tools`, `documents`,
/// `enable_thinking`, whatever it asks for. `chat_template` names one of several templates.
pub type TemplateOptions = Map<String, serde_json::Value>;

/// The compiled chat templates of a tokenizer, with the special tokens they may name.
pub struct ChatTemplate {
    environment: Environment<'static>,
    names: Vec<String>,
    special_tokens: TemplateOptions,
}

impl ChatTemplate {
    /// Compiles the tokenizer's templates; `None` if its folder has none.
    ///
    /// # Errors
    /// If a template is not valid Jinja.
    pub fn of(tokenizer: &Tokenizer) -> Result<Option<Self>, Error> {
        if tokenizer.chat_templates().is_empty() {
            return Ok(None);
        }
        let mut environment = environment()?;
        for (name, source) in tokenizer.chat_templates() {
            environment
                .add_template_owned(name.clone(), without_generation_tags(source))
                .map_err(|e| Error::chat_template(&e))?;
        }
        let special_tokens =
            tokenizer.special_tokens().map(|(name, text)| (name.to_owned(), text.into())).collect();
        let names = tokenizer.chat_templates().keys().cloned().collect();
        Ok(Some(Self { environment, names, special_tokens }))
    }

    /// Text of `messages`, each an object with `role`, `content` and what else the template reads;
    /// with `add_generation_prompt` it ends where the assistant would begin.
    ///
    /// # Errors
    /// If the template refuses the messages, for instance an order of roles it does not know, or
    /// none fits the options.
    pub fn render(
        &self,
        messages: &[serde_json::Value],
        add_generation_prompt: bool,
        options: &TemplateOptions,
    ) -> Result<String, Error> {
        let name = self.name_for(options)?;
        let template = self.environment.get_template(name).map_err(|e| Error::chat_template(&e))?;
        let mut seen = self.special_tokens.clone();
        // Templates ask whether these are none, so they are always there.
        seen.insert("tools".into(), serde_json::Value::Null);
        seen.insert("documents".into(), serde_json::Value::Null);
        seen.extend(options.clone());
        seen.insert("messages".into(), messages.iter().map(as_templates_see).collect());
        seen.insert("add_generation_prompt".into(), add_generation_prompt.into());
        template.render(minijinja::value::Serde(seen)).map_err(|e| Error::chat_template(&e))
    }

    /// The template that the options ask for: by name, for tools, or the default.
    fn name_for<'a>(&'a self, options: &'a TemplateOptions) -> Result<&'a str, Error> {
        let has = |name: &str| self.names.iter().any(|it| it == name);
        let asked = options.get("chat_template").and_then(serde_json::Value::as_str);
        let name = match asked {
            Some(name) => name,
            None if options.get("tools").is_some_and(|it| !it.is_null()) && has(TOOL_TEMPLATE) => {
                TOOL_TEMPLATE
            }
            None => DEFAULT_TEMPLATE,
        };
        if has(name) {
            return Ok(name);
        }
        Err(Error::Template(format!(
            "there is no chat template called `{name}`; the tokenizer has {}",
            self.names.join(", ")
        )))
    }
}

fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(|e| Error::chat_template(&e))?;
    environment.set_syntax(syntax);
    environment.set_unknown_method_callback(python::method);
    environment.set_formatter(|out, state, value| {
        let is_float = value.kind() == ValueKind::Number && !value.is_integer();
        if is_float {
            let text = python::number(value, python::Spelling::Str);
            out.write_str(&text).map_err(minijinja::Error::from)
        } else {
            minijinja::escape_formatter(out, state, value)
        }
    });
    environment.add_filter("tojson", python::tojson);
    // Python's texts and dictionaries have a length and items, which is all that Jinja asks.
    environment.add_test("sequence", |value: &Value| {
        use ValueKind::{Map, Seq, String, Undefined};
        matches!(value.kind(), Map | Seq | String | Undefined)
    });
    environment.add_test("iterable", |value: &Value| {
        use ValueKind::{Iterable, Map, Seq, String, Undefined};
        matches!(value.kind(), Iterable | Map | Seq | String | Undefined)
    });
    // What is no number becomes the default, where minijinja gives an error.
    environment.add_filter("int", |state: &State, value: &Value, default: Option<Value>| {
        let default = default.unwrap_or(Value::from(0));
        minijinja::filters::int(state, value, Some(default.clone()), None, no_names())
            .unwrap_or(default)
    });
    environment.add_filter("float", |state: &State, value: &Value, default: Option<Value>| {
        let default = default.unwrap_or(Value::from(0.0));
        minijinja::filters::float(state, value, Some(default.clone()), no_names())
            .unwrap_or(default)
    });
    environment.add_function("raise_exception", |message: String| {
        Err::<Value, _>(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: Option<String>, named: Kwargs| {
        let format = match format {
            Some(format) => format,
            None => named.get("format")?,
        };
        named.assert_all_used()?;
        python::strftime(&format)
    });
    Ok(environment)
}

fn no_names() -> Kwargs {
    std::iter::empty::<(&str, Value)>().collect()
}

/// The tag `{% generation %}` marks what the assistant wrote and shows nothing itself. Its body has
/// a scope of its own, as the body of `with`.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        text.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 2);
        let name = tag[2..end].trim_matches(|it: char| it.is_whitespace() || "+-".contains(it));
        match name {
            "generation" => text.push_str(&tag.replace("generation", "with")),
            "endgeneration" => text.push_str(&tag.replace("endgeneration", "endwith")),
            _ => text.push_str(tag),
        }
        rest = after;
    }
    text.push_str(rest);
    text
}

/// A message as transformers hands it to a template.
fn as_templates_see(message: &serde_json::Value) -> serde_json::Value {
    let Some(fields) = message.as_object() else { return message.clone() };
    let mut seen: TemplateOptions = fields
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if let Some(reasoning) = REASONING_FIELDS.iter().find_map(|name| seen.get(*name)).cloned() {
        if !seen.contains_key("thinking") {
            seen.insert("thinking".into(), reasoning.clone());
        }
        seen.insert("reasoning_content".into(), reasoning);
    }
    seen.into()
}
