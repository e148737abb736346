//! What `wit/plugin.wit` defines, as Rust sees it; that file says what each means.

use wasmtime::component::{ComponentType, Lift, Lower};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
pub enum Role {
    /// Standing instructions.
    #[component(name = "system")]
    System,
    /// The one who asks.
    #[component(name = "user")]
    User,
    /// The policy.
    #[component(name = "assistant")]
    Assistant,
    /// A tool.
    #[component(name = "tool")]
    Tool,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(record)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What was said.
    pub content: String,
}

/// Why a conversation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
pub enum Stop {
    /// The policy was done.
    #[component(name = "finished")]
    Finished,
    /// The limit of tokens.
    #[component(name = "length")]
    Length,
    /// The limit of turns.
    #[component(name = "turn-limit")]
    TurnLimit,
}

/// An input and the output that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(record)]
pub struct TestCase {
    /// What the program is given.
    pub input: String,
    /// What it must answer.
    pub output: String,
}

/// What a right solution must meet.
#[derive(Clone, Debug, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(variant)]
pub enum Reference {
    /// Nothing.
    #[component(name = "none")]
    None,
    /// One right answer.
    #[component(name = "answer")]
    Answer(String),
    /// Inputs and outputs.
    #[component(name = "tests")]
    Tests(Vec<TestCase>),
    /// JSON.
    #[component(name = "custom")]
    Custom(String),
}

/// The kind of a [`Reference`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
pub enum ReferenceKind {
    /// [`Reference::None`].
    #[component(name = "none")]
    None,
    /// [`Reference::Answer`].
    #[component(name = "answer")]
    Answer,
    /// [`Reference::Tests`].
    #[component(name = "tests")]
    Tests,
    /// [`Reference::Custom`].
    #[component(name = "custom")]
    Custom,
}

/// A finished conversation and what it is judged against.
#[derive(Clone, Debug, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(record)]
pub struct Conversation {
    /// All messages, the prompt included.
    pub messages: Vec<Message>,
    /// Why it ended.
    pub stop: Stop,
    /// What it is judged against.
    pub reference: Reference,
}

/// What a reward means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
pub enum Outcome {
    /// Right.
    #[component(name = "correct")]
    Correct,
    /// Readable and wrong.
    #[component(name = "incorrect")]
    Incorrect,
    /// Not readable.
    #[component(name = "malformed")]
    Malformed,
    /// A judgement by degree.
    #[component(name = "graded")]
    Graded,
}

/// What a plugin concluded.
#[derive(Clone, Debug, PartialEq, ComponentType, Lift, Lower)]
#[component(record)]
pub struct Verdict {
    /// The reward.
    pub reward: f32,
    /// What it means.
    pub outcome: Outcome,
    /// Named parts of it.
    pub parts: Vec<(String, f32)>,
    /// Why the reply fell short.
    pub reason: Option<String>,
}

/// Which part of an environment's tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
pub enum Split {
    /// To learn from.
    #[component(name = "train")]
    Train,
    /// To measure with.
    #[component(name = "test")]
    Test,
}

/// What an environment says of itself.
#[derive(Clone, Debug, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(record)]
pub struct About {
    /// Tasks of the split [`Split::Train`].
    pub train: u64,
    /// Tasks of the split [`Split::Test`].
    pub test: u64,
    /// The verifier that suits its tasks.
    pub verifier: String,
    /// That verifier's options, as JSON.
    #[component(name = "verifier-options")]
    pub verifier_options: String,
    /// The kind of its references.
    pub reference: ReferenceKind,
    /// Styles of right replies.
    pub styles: Vec<String>,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(record)]
pub struct Task {
    /// What the policy sees first.
    pub prompt: Vec<Message>,
    /// What a right solution must meet.
    pub reference: Reference,
    /// What the plugin itself needs to know of the task.
    pub notes: String,
}

/// What follows a reply.
#[derive(Clone, Debug, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(variant)]
pub enum Next {
    /// Messages to reply to.
    #[component(name = "more")]
    More(Vec<Message>),
    /// The end.
    #[component(name = "done")]
    Done,
}
