//! Where the lines of a verb go: a file that appears whole or not at all, or stdout.

use std::io::{ErrorKind, Write};
use std::path::Path;

use crate::error::Error;
use crate::files::{AtomicFile, OnPath};

/// Lines on their way out.
pub enum Output<'a> {
    /// To whoever reads stdout.
    Stdout,
    /// To a file, by way of one beside it.
    File(AtomicFile, &'a Path),
}

impl<'a> Output<'a> {
    /// Opens the file, if one is named: before the work, which would be lost for want of a folder.
    ///
    /// # Errors
    /// If the file cannot be created.
    pub fn open(path: Option<&'a Path>) -> Result<Self, Error> {
        Ok(match path {
            None => Self::Stdout,
            Some(path) => Self::File(AtomicFile::create(path)?, path),
        })
    }

    /// Writes lines and brings them to their place. A reader that closes the pipe has seen enough.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(self, lines: impl Iterator<Item = String>) -> Result<(), Error> {
        match self {
            Self::Stdout => {
                let mut stdout = std::io::stdout().lock();
                for line in lines {
                    match writeln!(stdout, "{line}") {
                        Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
                        written => written.on_path("write", Path::new("stdout"))?,
                    }
                }
            }
            Self::File(mut file, path) => {
                for line in lines {
                    file.write_all((line + "\n").as_bytes()).on_path("write", path)?;
                }
                file.commit()?;
            }
        }
        Ok(())
    }
}
