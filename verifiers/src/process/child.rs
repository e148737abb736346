//! One running program that answers a line with a line.
//!
//! Nothing here waits without a limit: pipes are read and written by threads, which end when the program
//! does, and whoever asks waits at their channels until a deadline. The program leads a process group of
//! its own (on Unix), so that ending it ends what it started.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{self, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender},
    },
    thread,
    time::{Duration, Instant},
};

/// How long a program that has nothing more to do may take to end by itself.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long a program that closed its output may take to end, so that its status can be told.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// How often it is looked at whether a program that is waited for is still there.
const GLANCE: Duration = Duration::from_millis(50);

/// Bytes of a program's stderr that are kept: the last ones.
const TAIL_BYTES: usize = 4096;

/// Lines of it that an error shows.
const TAIL_LINES: usize = 6;

/// A running program.
pub(super) struct Child {
    process: process::Child,
    /// Lines for the thread that writes; without it the program's stdin is closed.
    input: Option<Sender<Vec<u8>>>,
    output: Receiver<Output>,
    tail: Arc<Mutex<Tail>>,
    /// Whether it may be asked again.
    sound: bool,
    /// Its status, once that was read; its number may then be another's.
    status: Option<process::ExitStatus>,
}

/// What came out of a program.
enum Output {
    Line(Vec<u8>),
    TooLong,
    Closed,
}

/// Why a program gave no line.
pub(super) enum Fault {
    /// It is no more.
    Died(String),
    /// It is still there and did something else.
    Misbehaved(String),
}

/// The end of what a program wrote to stderr.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
    closed: bool,
}

impl Child {
    /// Starts the program; lines of more than `max_line_bytes` are not read to their end.
    ///
    /// # Errors
    /// If it does not start.
    pub(super) fn start(mut command: Command, max_line_bytes: u64) -> Result<Self, String> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut process = command.spawn().map_err(|error| format!("does not start: {error}"))?;
        let pipes = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let (to_writer, lines) = mpsc::channel::<Vec<u8>>();
        // One line waits at most, so a program that floods its output is stopped by a full pipe.
        let (to_asker, output) = mpsc::sync_channel(1);
        let tail = Arc::new(Mutex::new(Tail::default()));
        let child = Self {
            process,
            input: Some(to_writer),
            output,
            tail: Arc::clone(&tail),
            sound: true,
            status: None,
        };
        let (Some(mut stdin), Some(stdout), Some(mut stderr)) = pipes else {
            return Err("does not start: it has no pipes".to_owned());
        };
        spawn("writer", move || {
            for line in lines {
                // A broken pipe shows at the other one too, where somebody waits.
                if stdin.write_all(&line).and_then(|()| stdin.flush()).is_err() {
                    break;
                }
            }
        })?;
        spawn("reader", move || read_lines(stdout, max_line_bytes, &to_asker))?;
        spawn("stderr", move || {
            let mut buffer = [0; 4096];
            loop {
                let count = match stderr.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(_) => break,
                };
                let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
                tail.bytes.extend_from_slice(&buffer[..count]);
                let surplus = tail.bytes.len().saturating_sub(TAIL_BYTES);
                tail.bytes.drain(..surplus);
            }
            tail.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        })?;
        Ok(child)
    }

    /// Whether it can be asked: it has not failed before.
    pub(super) fn is_sound(&self) -> bool {
        self.sound
    }

    /// Gives it up: it will be asked nothing more.
    pub(super) fn give_up(&mut self) {
        self.sound = false;
    }

    /// Sends it a line and waits for one, no longer than `patience`. After a fault it is given up.
    ///
    /// # Errors
    /// If it answers none, with the end of what it wrote to stderr.
    pub(super) fn ask(&mut self, mut line: Vec<u8>, patience: Duration) -> Result<Vec<u8>, Fault> {
        line.push(b'\n');
        if let Some(input) = &self.input {
            // If nobody writes any more the program is gone, which its output tells.
            let _ = input.send(line);
        }
        let fault = match self.next(patience) {
            Ok(Output::Line(line)) => return Ok(line),
            Ok(Output::TooLong) => {
                let told = "wrote a line longer than max_reply_bytes".to_owned();
                Fault::Misbehaved(self.with_last_words(told))
            }
            Err(RecvTimeoutError::Timeout) => {
                let told = format!("did not answer within {} s", patience.as_secs_f64());
                Fault::Misbehaved(self.with_last_words(told))
            }
            Ok(Output::Closed) | Err(RecvTimeoutError::Disconnected) => {
                let told = match self.wait(LAST_WORDS) {
                    Some(status) => format!("ended ({status}) without an answer"),
                    None => "closed its output without an answer".to_owned(),
                };
                Fault::Died(self.with_last_words(told))
            }
        };
        self.give_up();
        Err(fault)
    }

    /// What comes out of it next. What it started may hold its output open when it is gone, so whether it
    /// is gone is looked at, too.
    fn next(&mut self, patience: Duration) -> Result<Output, RecvTimeoutError> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Before the look into the channel: what it wrote while it lived is there then, or soon.
            let gone = self.has_ended();
            let span = if gone { LAST_WORDS } else { GLANCE };
            match self.output.recv_timeout(span.min(left)) {
                Err(RecvTimeoutError::Timeout) if gone => return Ok(Output::Closed),
                Err(RecvTimeoutError::Timeout) if left > span => {}
                outcome => return outcome,
            }
        }
    }

    /// `told`, and the last lines that the program wrote to stderr.
    pub(super) fn with_last_words(&mut self, told: String) -> String {
        let ended = self.has_ended();
        let lock = || self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        if ended {
            // What it wrote before it ended is still in the pipe, or on its way here.
            let deadline = Instant::now() + LAST_WORDS;
            while !lock().closed && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(2));
            }
        }
        let text = String::from_utf8_lossy(&lock().bytes)
            .replace(|it: char| it.is_control() && it != '\n', " ");
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        if lines.is_empty() {
            return told;
        }
        let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        let shown: Vec<String> = last.iter().map(|line| line.chars().take(200).collect()).collect();
        format!("{told}; the end of its stderr: {}", shown.join(" | "))
    }

    fn has_ended(&mut self) -> bool {
        self.status.is_some() || has_ended(&mut self.process)
    }

    /// Waits until it has ended, but no longer than `patience`, and reads its status.
    fn wait(&mut self, patience: Duration) -> Option<process::ExitStatus> {
        let deadline = Instant::now() + patience;
        while !self.has_ended() {
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(Duration::from_millis(2));
        }
        if self.status.is_none() {
            // What it started ends with it. Its number is its own until its status is read.
            end_group(&self.process);
            self.status = self.process.try_wait().ok().flatten();
        }
        self.status
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // The end of its input tells it to stop.
        self.input = None;
        let patience = if self.sound { PATIENCE } else { Duration::ZERO };
        if self.wait(patience).is_none() {
            end_group(&self.process);
            let _ = self.process.kill();
            // It is gone at once, unless the kernel holds it: then it stays a zombie, and we go on.
            self.wait(PATIENCE);
        }
    }
}

/// Sends what `output` has on to whoever asks, line by line, until nobody does.
fn read_lines(output: ChildStdout, max_line_bytes: u64, to_asker: &SyncSender<Output>) {
    let mut output = BufReader::new(output);
    loop {
        let mut line = Vec::new();
        let read = (&mut output).take(max_line_bytes + 1).read_until(b'\n', &mut line);
        let event = match read {
            Ok(_) if line.ends_with(b"\n") => Output::Line(line),
            Ok(count) if count as u64 > max_line_bytes => Output::TooLong,
            Ok(_) | Err(_) => Output::Closed,
        };
        let goes_on = matches!(event, Output::Line(_));
        if to_asker.send(event).is_err() || !goes_on {
            return;
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    thread::Builder::new()
        .name(format!("scorer-{name}"))
        .spawn(work)
        .map(|_| ())
        .map_err(|error| format!("does not start: no thread for its pipes: {error}"))
}

/// Whether the program has ended; its status stays to be read.
#[cfg(unix)]
fn has_ended(process: &mut process::Child) -> bool {
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // An error means that its status was read before.
    waitid(WaitId::Pid(Pid::from_child(process)), options).map_or(true, |status| status.is_some())
}

/// Ends the program and all that it started.
#[cfg(unix)]
fn end_group(process: &process::Child) {
    use rustix::process::{Pid, Signal, kill_process_group};
    let _ = kill_process_group(Pid::from_child(process), Signal::KILL);
}

#[cfg(not(unix))]
fn has_ended(process: &mut process::Child) -> bool {
    !matches!(process.try_wait(), Ok(None))
}

#[cfg(not(unix))]
fn end_group(_: &process::Child) {}
