//! One play of one task: prompt, reply, what the environment says, next reply, until it ends.
//!
//! Written as a state that is handed from worker to engine and back, because an episode spends
//! nearly all its life waiting for tokens: a thread of its own would wait with it.

use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tallow_envs::{Environment, Episode, Seed, Step, Task};
use tallow_policies::{Completion, FinishReason, PolicyVersion, Request, SamplingParams, TokenId};
use tallow_verifiers::{Message, StopReason, Transcript};

use super::trajectory::{Trajectory, Turn};
use crate::renderer::Renderer;

/// An episode between two of its turns.
pub struct LiveEpisode {
    /// Names the episode among all in flight, and orders them.
    pub id: u64,
    /// The group it belongs to, as the pool numbers them.
    pub group: u64,
    member: usize,
    params: Arc<SamplingParams>,
    seed: Seed,
    max_turns: usize,
    rules: Box<dyn Episode>,
    tokens: Vec<TokenId>,
    turns: Vec<Turn>,
    messages: Vec<Message>,
    versions: Option<RangeInclusive<PolicyVersion>>,
}

/// What an episode is about to do.
pub enum Next {
    /// It waits for this reply.
    Reply(Request),
    /// It has ended.
    Ended(Trajectory),
}

/// How one episode is to be played.
#[derive(Clone)]
pub struct EpisodePlan {
    /// See [`LiveEpisode::id`].
    pub id: u64,
    /// See [`LiveEpisode::group`].
    pub group: u64,
    /// Which sibling.
    pub member: usize,
    /// The task, shared by the siblings.
    pub task: Arc<Task>,
    /// How replies are sampled.
    pub params: Arc<SamplingParams>,
    /// Seeds this episode's replies.
    pub seed: Seed,
    /// Most replies before the episode is stopped.
    pub max_turns: usize,
}

impl LiveEpisode {
    /// Opens the episode and asks for its first reply.
    ///
    /// # Errors
    /// What went wrong, if the environment breaks (panics included) or the prompt cannot be
    /// rendered.
    pub fn start(
        plan: EpisodePlan,
        environment: &dyn Environment,
        renderer: &Renderer,
    ) -> Result<(Self, Next), String> {
        let rules = contained("opening the episode", || environment.episode(&plan.task))?
            .map_err(|e| e.to_string())?;
        let tokens = renderer.prompt(&plan.task.prompt).map_err(|e| e.to_string())?;
        let mut live = Self {
            id: plan.id,
            group: plan.group,
            member: plan.member,
            params: plan.params,
            seed: plan.seed,
            max_turns: plan.max_turns,
            rules,
            tokens,
            turns: Vec::new(),
            messages: plan.task.prompt.clone(),
            versions: None,
        };
        let request = live.request();
        Ok((live, Next::Reply(request)))
    }

    /// Which sibling this is.
    pub fn member(&self) -> usize {
        self.member
    }

    /// Takes the reply that was asked for; says what comes next.
    ///
    /// # Errors
    /// What went wrong, if the environment breaks (panics included) or the prompt fills the
    /// context: a reply that could not begin is no reply.
    pub fn reply(&mut self, completion: Completion, renderer: &Renderer) -> Result<Next, String> {
        if completion.tokens.is_empty() && self.turns.is_empty() {
            return Err(format!(
                "a prompt of {} tokens leaves no room for a reply in the model's context; raise \
                 model.context or shorten the tasks",
                self.tokens.len()
            ));
        }
        let text = renderer.reply_text(&completion.tokens).map_err(|e| e.to_string())?;
        let start = self.tokens.len();
        let ended = completion.finish == FinishReason::Stop
            && completion
                .tokens
                .last()
                .is_some_and(|it| renderer.tokenizer().end_ids().contains(it));
        self.tokens.extend_from_slice(&completion.tokens);
        self.turns.push(Turn {
            range: start..self.tokens.len(),
            logprobs: completion.logprobs,
            kept_masses: completion.kept_masses,
        });
        self.messages.push(Message::assistant(text.as_str()));
        let (oldest, newest) = completion.versions.into_inner();
        self.versions = Some(match self.versions.take() {
            None => oldest..=newest,
            Some(seen) => (*seen.start()).min(oldest)..=(*seen.end()).max(newest),
        });
        if completion.finish == FinishReason::Length {
            return Ok(Next::Ended(self.end(StopReason::Length)));
        }
        let rules = &mut self.rules;
        let step = contained("the environment's answer", || rules.step(&text))?
            .map_err(|e| e.to_string())?;
        match step {
            Step::Done => Ok(Next::Ended(self.end(StopReason::Finished))),
            Step::Continue(_) if self.turns.len() >= self.max_turns => {
                Ok(Next::Ended(self.end(StopReason::TurnLimit)))
            }
            Step::Continue(new) => {
                let added = renderer.continuation(&new, ended).map_err(|e| e.to_string())?;
                self.tokens.extend_from_slice(&added);
                self.messages.extend(new);
                Ok(Next::Reply(self.request()))
            }
        }
    }

    fn request(&mut self) -> Request {
        Request {
            id: self.id,
            prompt: self.tokens.as_slice().into(),
            params: Arc::clone(&self.params),
            seed: self.seed.derive(&[self.turns.len() as u64]).0,
        }
    }

    fn end(&mut self, stop: StopReason) -> Trajectory {
        Trajectory {
            member: self.member,
            tokens: std::mem::take(&mut self.tokens),
            turns: std::mem::take(&mut self.turns),
            transcript: Transcript { messages: std::mem::take(&mut self.messages), stop },
            versions: self.versions.take().unwrap_or(0..=0),
        }
    }
}

/// Runs foreign code; a panic becomes a message.
pub fn contained<T>(what: &str, work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let said = payload
            .downcast_ref::<&str>()
            .map(|it| (*it).to_string())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".into());
        format!("{what} panicked: {said}")
    })
}
