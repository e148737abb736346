//! Tasks of another environment with a Python interpreter to call, over several turns.
//!
//! ```text
//! system     You may run Python: write <python>print(2**10)</python> as your reply. ...
//! user       48213*9921-77?
//! assistant  <python>x = 48213*9921
//!            x - 77</python>
//! tool       478321096
//! assistant  =478321096
//! ```
//!
//! A reply that holds a complete `<python>...</python>` is a call; the last one in the reply is run
//! where the calls before it left off, as in a notebook: what it prints comes back as a tool
//! message, then the value of a last expression, then the error if there was one. A reply without a
//! call ends the episode, and so does a call beyond `calls`.
//!
//! The interpreter is the sandbox's: no files, no network, and the same output for the same code. So
//! an episode is the list of its calls, which each call runs again from the first; nothing is
//! held between turns, and the fuel is that of the whole episode. A call that meets a limit leaves
//! a new interpreter.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tallow_sandbox::{Failure, Job, Limits, Report, Sandbox, Tests, Workers};
use tallow_verifiers::{
    ConfigFault, Message, ReferenceKind, Role, answer_span::inside_last_tag, code,
};

use crate::{
    environment::{Environment, Episode, Step},
    error::EnvError,
    procedural::check_range,
    registry::{BuildContext, EnvConfig, Environments},
    task::{Seed, Split, Task},
};

/// Options of the `python_tool` environment.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PythonToolConfig {
    /// A built-in environment, as in a stage's `env`: its tasks are the ones to solve, and its own
    /// rules for several turns, if it has any, do not count.
    pub tasks: Value,
    /// How many calls are answered in one episode, 0 to 64.
    pub calls: u64,
    /// Characters of output that come back, 100 to 100,000; of more, the middle is left out.
    pub output: u64,
    /// Whether a system message explains the interpreter.
    pub instructions: bool,
    /// What all calls of an episode may use.
    pub limits: Limits,
    /// How many calls run at a time; 0 is one per processor core.
    pub workers: u32,
    /// Whether workers are `threads` of this process or `processes` of their own.
    pub backend: Workers,
}

impl Default for PythonToolConfig {
    fn default() -> Self {
        Self {
            tasks: json!({"name": "calculator", "instructions": false}),
            calls: 4,
            output: 2000,
            instructions: true,
            limits: Limits { fuel_millions: 20_000, ..Limits::default() },
            workers: 0,
            backend: Workers::default(),
        }
    }
}

impl EnvConfig for PythonToolConfig {
    const NAME: &'static str = "python_tool";
    const SUMMARY: &'static str = "another environment's tasks with a Python interpreter to call";

    fn build(&self, context: &BuildContext) -> Result<Arc<dyn Environment>, ConfigFault> {
        check_range("calls", self.calls, 0..=64)?;
        check_range("output", self.output, 100..=100_000)?;
        code::check_limits(&self.limits)?;
        code::check_workers(self.workers)?;
        let missing = || {
            ConfigFault::new("tasks", "there are no tasks")
                .expected("an environment, such as { name = \"calculator\" }")
        };
        let mut options = self.tasks.as_object().ok_or_else(missing)?.clone();
        let name = options.remove("name").ok_or_else(missing)?;
        let name = name.as_str().ok_or_else(missing)?;
        if name == Self::NAME {
            return Err(ConfigFault::new("tasks.name", "these would be its own tasks"));
        }
        let tasks = Environments::builtin()
            .build(name, Value::Object(options), context)
            .map_err(|fault| fault.within("tasks"))?;
        Ok(Arc::new(PythonTool { config: self.clone(), tasks }))
    }
}

/// What the system message says.
const INSTRUCTIONS: &str = "You may run Python: write <python>print(2**10)</python> as your reply and \
    its output will be shown to you. Variables are kept from one call to the next. A reply without \
    a call is your answer.";

struct PythonTool {
    config: PythonToolConfig,
    tasks: Arc<dyn Environment>,
}

impl Environment for PythonTool {
    fn name(&self) -> &str {
        PythonToolConfig::NAME
    }

    fn len(&self, split: Split) -> u64 {
        self.tasks.len(split)
    }

    fn task(&self, split: Split, index: u64) -> Result<Task, EnvError> {
        let mut task = self.tasks.task(split, index)?;
        if self.config.instructions {
            match task.prompt.first_mut() {
                Some(first) if first.role == Role::System => {
                    first.content = format!("{}\n\n{INSTRUCTIONS}", first.content);
                }
                _ => task.prompt.insert(0, Message::system(INSTRUCTIONS)),
            }
        }
        Ok(task)
    }

    fn reference_kind(&self) -> ReferenceKind {
        self.tasks.reference_kind()
    }

    fn default_verifier(&self) -> (&'static str, Value) {
        self.tasks.default_verifier()
    }

    fn reply_styles(&self) -> &'static [&'static str] {
        self.tasks.reply_styles()
    }

    fn reply(&self, task: &Task, style: &str, seed: Seed) -> Option<String> {
        self.tasks.reply(task, style, seed)
    }

    fn episode(&self, _task: &Task) -> Result<Box<dyn Episode>, EnvError> {
        Ok(Box::new(Calls {
            sandbox: None,
            config: self.config.clone(),
            left: self.config.calls,
            cells: Vec::new(),
            over: false,
        }))
    }

    fn provenance(&self) -> Option<Value> {
        let python = tallow_sandbox::component_hash();
        Some(json!({"python": python, "tasks": self.tasks.provenance()}))
    }
}

/// An episode: the calls so far, and how many more may be made.
struct Calls {
    /// Started at the first call.
    sandbox: Option<Arc<Sandbox>>,
    config: PythonToolConfig,
    left: u64,
    cells: Vec<String>,
    over: bool,
}

impl Calls {
    /// Runs a call after those before it.
    fn run(&mut self, code: &str) -> Result<String, EnvError> {
        let broken = |problem: String| EnvError::Broken {
            environment: PythonToolConfig::NAME.to_owned(),
            problem,
        };
        let sandbox = match &self.sandbox {
            Some(sandbox) => sandbox,
            None => {
                let shared = code::shared(self.config.backend, self.config.workers);
                self.sandbox.insert(shared.map_err(|error| broken(error.to_string()))?)
            }
        };
        self.cells.push(code.trim_matches('\n').to_owned());
        let job =
            Job { limits: self.config.limits, ..Job::new("", Tests::Cells(self.cells.clone())) };
        let report = sandbox.grade(job).map_err(|error| broken(error.to_string()))?;
        if !matches!(report.failure, None | Some(Failure::RuntimeError(_))) {
            self.cells.clear();
        }
        Ok(shown(&report, self.config.output as usize))
    }
}

impl Episode for Calls {
    fn step(&mut self, reply: &str) -> Result<Step, EnvError> {
        if self.over {
            return Err(EnvError::EpisodeOver { environment: PythonToolConfig::NAME.to_owned() });
        }
        match inside_last_tag(reply, "python") {
            Ok(code) if self.left > 0 => {
                self.left -= 1;
                Ok(Step::Continue(vec![Message::tool(self.run(code)?)]))
            }
            _ => {
                self.over = true;
                Ok(Step::Done)
            }
        }
    }
}

/// What the policy sees of a call.
fn shown(report: &Report, most: usize) -> String {
    let mut text = report.stdout.clone() + &report.stderr;
    if let Some(failure) = &report.failure {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text += &match failure {
            Failure::RuntimeError(error) => error.clone(),
            limit => format!("{limit}; the interpreter is a new one"),
        };
    }
    let text = text.trim_end();
    if text.is_empty() {
        return "(no output)".to_owned();
    }
    let count = text.chars().count();
    if count <= most {
        return text.to_owned();
    }
    let head: String = text.chars().take(most / 2).collect();
    let tail: String = text.chars().skip(count - most / 2).collect();
    format!("{head}\n[{} characters left out]\n{tail}", count - most / 2 * 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn episode(options: Value) -> Box<dyn Episode> {
        let context = BuildContext { folder: ".".into(), seed: Seed(1) };
        let environment = Environments::builtin().build(PythonToolConfig::NAME, options, &context);
        let environment = environment.unwrap_or_else(|fault| panic!("{fault}"));
        let task = environment.task(Split::Train, 0).expect("a task");
        assert_eq!(task.prompt[0].role, Role::System);
        environment.episode(&task).expect("an episode")
    }

    #[test]
    fn calls_are_answered_where_the_last_one_left_off() {
        let mut episode = episode(json!({"workers": 1, "calls": 9, "output": 100}));
        for (call, answer) in [
            ("x = 48213*9921", "(no output)"),
            ("\nprint('x is', x)\nx - 77\n", "x is 478321173\n478321096"),
            ("x / 0", "ZeroDivisionError: division by zero (line 1)"),
            ("print(1", "SyntaxError: '(' was never closed (line 1)"),
            ("import random\ny = random.random()\ny == y, x", "(True, 478321173)"),
            (
                "open('/etc/passwd')",
                "FileNotFoundError: [Errno 44] No such file or directory: '/etc/passwd' (line 1)",
            ),
            ("while True: pass", "time: the fuel ran out; the interpreter is a new one"),
            ("x", "NameError: name 'x' is not defined (line 1)"),
        ] {
            assert_eq!(
                episode.step(&format!("Let me see. <python>{call}</python>")),
                Ok(Step::Continue(vec![Message::tool(answer)])),
            );
        }
        let Ok(Step::Continue(told)) = episode.step("<python>'a' * 1000</python>") else {
            panic!("it goes on");
        };
        assert_eq!(told[0].content.lines().nth(1), Some("[902 characters left out]"));
        assert_eq!(episode.step("<python>1</python>"), Ok(Step::Done), "a call too many");
        assert!(matches!(episode.step("=1"), Err(EnvError::EpisodeOver { .. })));
    }

    #[test]
    fn tasks_are_another_environments_and_never_its_own() {
        let context = BuildContext { folder: ".".into(), seed: Seed(1) };
        let key = |tasks: Value| {
            Environments::builtin()
                .build(PythonToolConfig::NAME, json!({"tasks": tasks}), &context)
                .err()
                .map(|fault| fault.key)
        };
        assert_eq!(key(json!({"name": "parity", "bits": 8})), None);
        assert_eq!(key(json!({"name": "python_tool"})).as_deref(), Some("tasks.name"));
        assert_eq!(key(json!({"name": "parity", "bit": 8})).as_deref(), Some("tasks.bit"));
        assert_eq!(key(json!({})).as_deref(), Some("tasks"));
    }
}
