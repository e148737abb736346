//! The command line. One file a group of verbs; this one parses, and is the only place that prints
//! errors.

mod attack;
mod chat;
mod compare;
mod list;
mod loss;
mod measure;
mod model;
mod output;
mod run;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tallow_policies::gpu::{Device, Precision};
use tallow_verifiers::ConfigFault;

use crate::config::problem::Paint;
use crate::device::DeviceName;
use crate::error::Error;
use crate::registry::Registry;

/// Reinforcement learning of language models on verifiable tasks.
#[derive(Parser)]
#[command(name = "tallow", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

/// Flags that every verb takes.
#[derive(Args, Clone)]
pub struct Common {
    /// Device to compute on.
    #[arg(
        long,
        global = true,
        help_heading = "Common options",
        default_value = "auto",
        value_name = "auto|cpu|cuda[:N]"
    )]
    device: String,
    /// What weights and activations are stored as on a GPU; default: bf16. The CPU uses f32.
    #[arg(
        long,
        global = true,
        help_heading = "Common options",
        value_name = "f32|bf16",
        value_parser = precision
    )]
    dtype: Option<Precision>,
    /// Threads for tensors, verification and rollouts; default: one for each core.
    #[arg(long, global = true, help_heading = "Common options", value_name = "N")]
    threads: Option<usize>,
    /// Overrides the seed.
    #[arg(long, global = true, help_heading = "Common options", value_name = "S")]
    seed: Option<u64>,
    /// Print only machine-readable lines on stdout.
    #[arg(long, global = true, help_heading = "Common options")]
    json: bool,
    /// No progress, no notes.
    #[arg(short, long, global = true, help_heading = "Common options")]
    quiet: bool,
    /// More detail in error messages.
    #[arg(short, long, global = true, help_heading = "Common options")]
    verbose: bool,
}

impl Common {
    /// Threads to use.
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or_else(cores).max(1)
    }

    /// Opens the device to compute on; none is the CPU.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn open_device(&self) -> Result<Option<Device>, Error> {
        DeviceName::parse(&self.device)?.open(self.dtype)
    }
}

#[derive(Subcommand)]
enum Verb {
    Run(run::RunArgs),
    Check(run::CheckArgs),
    List(list::ListArgs),
    Verify(verify::VerifyArgs),
    Loss(loss::LossArgs),
    Attack(attack::AttackArgs),
    Generate(model::GenerateArgs),
    Score(model::ScoreArgs),
    Eval(model::EvalArgs),
    Chat(chat::ChatArgs),
    Report(ReportArgs),
    Bench(measure::BenchArgs),
}

/// Write report.html (self-contained) and report.md with plots from a run folder.
#[derive(Args)]
#[command(after_help = "Example: tallow report runs/emergence")]
struct ReportArgs {
    /// The run folder, such as runs/emergence.
    run: PathBuf,
}

/// Parses the process's arguments, runs the verb with what `registry` holds, prints errors.
pub fn main(registry: Registry) -> ExitCode {
    #[cfg(feature = "sandbox")]
    if tallow_verifiers::code::served_as_worker() {
        return ExitCode::SUCCESS;
    }
    // Before any other thread and the first tensor.
    tallow_policies::prepare_process();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap prints help on stdout and mistakes on stderr, each with the right status.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match dispatch(cli, &registry) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error);
            ExitCode::from(error.exit_status())
        }
    }
}

fn dispatch(cli: Cli, registry: &Registry) -> Result<(), Error> {
    let common = &cli.common;
    DeviceName::parse(&common.device)?;
    set_threads(common.threads())?;
    match cli.verb {
        Verb::Run(args) => run::run(&args, common, registry),
        Verb::Check(args) => run::check(&args, common, registry),
        Verb::List(args) => list::list(&args, common, registry),
        Verb::Verify(args) => verify::verify(&args, common, registry),
        Verb::Loss(args) => loss::loss(&args, common, registry),
        Verb::Attack(args) => attack::run(&args, common, registry),
        Verb::Generate(args) => model::generate(&args, common),
        Verb::Score(args) => model::score(&args, common),
        Verb::Eval(args) => model::eval(&args, common, registry),
        Verb::Chat(args) => chat::chat(&args, common),
        Verb::Report(args) => {
            let written =
                crate::report::write(&args.run).map_err(|e| Error::Data(format!("report: {e}")))?;
            say(&format!("{}\n{}", written.html.display(), written.markdown.display()));
            Ok(())
        }
        Verb::Bench(args) => measure::bench(&args, common, registry),
    }
}

fn precision(text: &str) -> Result<Precision, String> {
    match text {
        "f32" => Ok(Precision::F32),
        "bf16" => Ok(Precision::Bf16),
        _ => Err("expected f32 or bf16".to_owned()),
    }
}

/// Sets the size of the one pool that tensors and verifiers share.
fn set_threads(threads: usize) -> Result<(), Error> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(|e| {
        Error::usage(format!("cannot start {threads} threads: {e}"), "lower --threads")
    })
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What a component says of options given on the command line. Its `hint` is told once, by the
/// error; the key `name` is no option there but the argument itself.
fn refused(mut fault: ConfigFault, otherwise: &str) -> Error {
    let hint = fault.hint.take().unwrap_or_else(|| otherwise.to_owned());
    if fault.key == "name" {
        fault.key.clear();
    }
    Error::usage(fault.to_string(), hint)
}

/// Prints results: the one way to stdout. A closed pipe ends the output quietly.
pub(crate) fn say(text: &str) {
    use std::io::Write;
    drop(writeln!(std::io::stdout().lock(), "{text}"));
}

/// Prints a piece of a line at once.
pub(crate) fn say_part(text: &str) {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    drop(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()));
}

fn print_error(error: &Error) {
    use std::io::{IsTerminal, Write};
    let mut stderr = std::io::stderr().lock();
    let text = match error {
        Error::Config(problems) => {
            let colour = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none();
            problems.render(if colour { Paint::Colour } else { Paint::Plain })
        }
        other => format!("error: {other}"),
    };
    drop(writeln!(stderr, "{text}"));
    if let Some(hint) = error.hint() {
        drop(writeln!(stderr, "hint: {hint}"));
    }
}
