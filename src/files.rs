//! Files that are either the old or the new, never half of each.
//!
//! A file or folder is written under another name in the same folder, brought to disk, and then
//! renamed, which a file system does at once. Whatever is interrupted leaves a name that begins
//! with a dot and ends in `.partial`, `.replaced` or `.removed`; [`recover`] clears those away.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

/// Ends the name of something that is still being written.
const PARTIAL: &str = ".partial";
/// Ends the name of a folder whose successor is about to take its place.
const REPLACED: &str = ".replaced";
/// Ends the name of a folder that is about to be deleted.
const REMOVED: &str = ".removed";

/// A file operation that failed: what was tried, on which path, and why.
#[derive(Debug, thiserror::Error)]
#[error("could not {operation} `{}`: {}", path.display(), cause(source))]
pub struct StoreError {
    /// The file or folder.
    pub path: PathBuf,
    /// What was tried, as it follows "could not": `write`, `read`, `create`.
    pub operation: &'static str,
    /// What the operating system said; the message has it already, so print no chain below it.
    pub source: io::Error,
}

impl StoreError {
    /// The failure of `operation` on `path`.
    pub fn new(operation: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self { path: path.into(), operation, source }
    }

    /// A file whose contents cannot be understood.
    pub fn malformed(path: impl Into<PathBuf>, why: impl std::fmt::Display) -> Self {
        Self::new("read", path, io::Error::new(io::ErrorKind::InvalidData, why.to_string()))
    }

    /// What the user can do, where there is something.
    pub fn hint(&self) -> Option<String> {
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new(".")).display();
        match self.source.raw_os_error()? {
            libc::ENOSPC | libc::EDQUOT => Some(format!(
                "free some space where `{parent}` lies, keep fewer checkpoints, or choose another \
                 folder with --out; an interrupted run goes on with --resume"
            )),
            libc::EACCES | libc::EPERM => {
                Some(format!("check who owns `{parent}` and its permissions (ls -ld {parent})"))
            }
            libc::EROFS => Some(format!(
                "`{parent}` lies on a file system that is mounted read-only; choose another \
                 folder with --out"
            )),
            libc::ENOENT if self.operation == "read" || self.operation == "open" => {
                Some("check the spelling and the folder you are in".to_owned())
            }
            libc::ENOENT => Some(format!("check that the folder `{parent}` exists")),
            libc::ENOTDIR => Some(format!(
                "a part of `{parent}` is a file, not a folder; choose another folder with --out"
            )),
            libc::EMFILE | libc::ENFILE => {
                Some("raise the limit of open files (ulimit -n)".to_owned())
            }
            _ => None,
        }
    }
}

/// Turns an [`io::Result`] into one that names the file.
pub trait OnPath<T> {
    /// Names what was tried, as it follows "could not", and on which file.
    ///
    /// # Errors
    /// If this was an error.
    fn on_path(self, operation: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T> OnPath<T> for io::Result<T> {
    fn on_path(self, operation: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::new(operation, path, source))
    }
}

/// A file that appears under its name only when it is complete.
///
/// Dropping it before [`commit`](Self::commit) leaves the old file, if there was one.
pub struct AtomicFile {
    path: PathBuf,
    staged: PathBuf,
    /// Present until the file has been committed.
    file: Option<File>,
}

impl AtomicFile {
    /// Begins to write what shall become `path`; its folder must exist.
    ///
    /// # Errors
    /// If no file can be created in the folder.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        /// Tells apart two threads that write the same file; the last to commit wins.
        static WRITES: AtomicU64 = AtomicU64::new(0);
        let path = path.into();
        let write = WRITES.fetch_add(1, Ordering::Relaxed);
        let staged = beside(&path, &format!(".{}-{write}{PARTIAL}", std::process::id()));
        let file = File::create(&staged).on_path("create", &path)?;
        Ok(Self { path, staged, file: Some(file) })
    }

    /// Brings the contents to disk and gives the file its name.
    ///
    /// # Errors
    /// If the disk is full or the file cannot be renamed; the old file then stays.
    pub fn commit(mut self) -> Result<(), StoreError> {
        self.open_file().sync_all().on_path("write", &self.path)?;
        fs::rename(&self.staged, &self.path).on_path("write", &self.path)?;
        self.file = None;
        sync_folder(folder_of(&self.path))
    }

    fn open_file(&mut self) -> &mut File {
        self.file.as_mut().expect("the file is open until it is committed")
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.open_file().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.open_file().flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            // A leftover is harmless: `recover` removes it.
            let _ = fs::remove_file(&self.staged);
        }
    }
}

/// Replaces the file `path` by `bytes` at once; its folder must exist.
///
/// # Errors
/// If it cannot be written; the old file then stays.
pub fn write_atomic(path: &Path, bytes: impl AsRef<[u8]>) -> Result<(), StoreError> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes.as_ref()).on_path("write", path)?;
    file.commit()
}

/// Reads a file of text.
///
/// # Errors
/// If it cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, StoreError> {
    fs::read_to_string(path).on_path("read", path)
}

/// Creates a folder and those it lies in; one that exists is as good.
///
/// # Errors
/// If it cannot be created.
pub fn create_folder(path: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(path).on_path("create", path)
}

/// Replaces the folder `target` at once by one that `fill` writes into the path it is given.
///
/// Everything is brought to disk before the name changes. If the program is killed between the
/// two renames, neither name is there, and [`recover`] puts the old folder back.
///
/// # Errors
/// What `fill` says, or that the disk cannot be written; the old folder then stays.
pub fn replace_folder<E: From<StoreError>>(
    target: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let parent = folder_of(target);
    create_folder(parent)?;
    let staging = beside(target, PARTIAL);
    let replaced = beside(target, REPLACED);
    remove_folder_if_there(&staging)?;
    fs::create_dir(&staging).on_path("create", &staging)?;
    let filled = fill(&staging).and_then(|()| Ok(sync_tree(&staging)?));
    if let Err(error) = filled {
        // What went wrong first is what the user must hear of; the rest is cleared at resume.
        let _ = fs::remove_dir_all(&staging);
        return Err(error);
    }
    if target.exists() {
        remove_folder_if_there(&replaced)?;
        fs::rename(target, &replaced).on_path("replace", target)?;
    }
    fs::rename(&staging, target).on_path("write", target)?;
    sync_folder(parent)?;
    Ok(remove_folder_if_there(&replaced)?)
}

/// Deletes a folder so that its name never stands for a half of it.
///
/// # Errors
/// If it cannot be renamed or deleted.
pub fn remove_folder(target: &Path) -> Result<(), StoreError> {
    let removed = beside(target, REMOVED);
    remove_folder_if_there(&removed)?;
    fs::rename(target, &removed).on_path("remove", target)?;
    remove_folder_if_there(&removed)
}

/// Clears what an interrupted write left in `folder` itself, and returns the names it removed
/// or put back. Call it only while no other process writes there.
///
/// # Errors
/// If the folder cannot be read or changed.
pub fn recover(folder: &Path) -> Result<Vec<String>, StoreError> {
    let mut cleared = Vec::new();
    for name in names_in(folder)? {
        let path = folder.join(&name);
        let Some(bare) = name.strip_prefix('.') else { continue };
        if let Some(original) = bare.strip_suffix(REPLACED) {
            let original = folder.join(original);
            if original.exists() {
                remove_folder_if_there(&path)?;
            } else {
                fs::rename(&path, &original).on_path("restore", &original)?;
            }
        } else if bare.ends_with(PARTIAL) || bare.ends_with(REMOVED) {
            if path.is_dir() {
                remove_folder_if_there(&path)?;
            } else {
                fs::remove_file(&path).on_path("remove", &path)?;
            }
        } else {
            continue;
        }
        cleared.push(name);
    }
    Ok(cleared)
}

/// The names in `folder`, sorted; none if there is no such folder.
///
/// # Errors
/// If it cannot be read.
pub fn names_in(folder: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::new("read", folder, error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.on_path("read", folder)?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The files under `folder` at any depth, as paths inside it with `/` between, sorted.
///
/// # Errors
/// If a folder cannot be read.
pub fn files_under(folder: &Path) -> Result<Vec<String>, StoreError> {
    let mut files = Vec::new();
    let mut waiting = vec![String::new()];
    while let Some(inside) = waiting.pop() {
        for name in names_in(&folder.join(&inside))? {
            let path = if inside.is_empty() { name } else { format!("{inside}/{name}") };
            if folder.join(&path).is_dir() {
                waiting.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The SHA-256 of a file's contents in hexadecimal, as `sha256sum` prints it.
///
/// # Errors
/// If the file cannot be read.
pub fn sha256_of_file(path: &Path) -> Result<String, StoreError> {
    let mut file = File::open(path).on_path("read", path)?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut block).on_path("read", path)?;
        if read == 0 {
            break;
        }
        hasher.update(&block[..read]);
    }
    let mut text = String::with_capacity(64);
    for byte in hasher.finalize() {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
    }
    Ok(text)
}

/// `no space left on device (28)`: the system's words in our form.
fn cause(error: &io::Error) -> String {
    let text = error.to_string();
    let Some(code) = error.raw_os_error() else { return text };
    let words = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = words.chars();
    let first = letters.next().map(|letter| letter.to_lowercase().to_string());
    format!("{}{} ({code})", first.unwrap_or_default(), letters.as_str())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn beside(target: &Path, ending: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    folder_of(target).join(format!(".{name}{ending}"))
}

fn remove_folder_if_there(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::new("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Brings the names in a folder to disk; without it a rename may be lost with the power.
fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|opened| opened.sync_all()).on_path("write", folder)
}

fn sync_tree(folder: &Path) -> Result<(), StoreError> {
    for name in names_in(folder)? {
        let path = folder.join(name);
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).on_path("write", &path)?;
        }
    }
    sync_folder(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn errors_name_what_was_tried_where_and_why() {
        for (code, operation, message, hint) in [
            (libc::ENOSPC, "write", "no space left on device (28)", "keep fewer checkpoints"),
            (libc::EACCES, "write", "permission denied (13)", "check who owns `runs/x`"),
            (libc::EROFS, "write", "read-only file system (30)", "mounted read-only"),
            (libc::ENOENT, "read", "no such file or directory (2)", "check the spelling"),
            (libc::ENOENT, "write", "no such file or directory (2)", "folder `runs/x` exists"),
        ] {
            let source = io::Error::from_raw_os_error(code);
            let error = StoreError::new(operation, "runs/x/metrics.jsonl", source);
            let expected = format!("could not {operation} `runs/x/metrics.jsonl`: {message}");
            assert_eq!(error.to_string(), expected);
            assert!(error.hint().unwrap().contains(hint), "{:?}", error.hint());
        }
    }

    #[test]
    fn an_uncommitted_file_leaves_the_old_one_and_no_litter() {
        let folder = scratch();
        let path = folder.path().join("run.json");
        write_atomic(&path, "old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(read_text(&path).unwrap(), "old");
        write_atomic(&path, "new").unwrap();
        assert_eq!(read_text(&path).unwrap(), "new");
        assert_eq!(names_in(folder.path()).unwrap(), ["run.json"]);
    }

    #[test]
    fn writing_into_a_folder_that_is_not_there_says_so() {
        let folder = scratch();
        let error = write_atomic(&folder.path().join("absent/run.json"), "x").unwrap_err();
        assert!(error.to_string().ends_with("no such file or directory (2)"), "{error}");
        assert!(error.hint().unwrap().contains("absent` exists"));
    }

    #[test]
    fn a_folder_that_could_not_be_filled_leaves_the_old_one() {
        let folder = scratch();
        let target = folder.path().join("sft");
        let write = |text: &'static str| {
            move |staging: &Path| write_atomic(&staging.join("config.json"), text)
        };
        replace_folder(&target, write("first")).unwrap();
        replace_folder(&target, write("second")).unwrap();
        let failed: Result<(), StoreError> = replace_folder(&target, |staging| {
            write_atomic(&staging.join("config.json"), "third")?;
            Err(StoreError::new("write", staging, io::Error::from_raw_os_error(libc::ENOSPC)))
        });
        failed.unwrap_err();
        assert_eq!(read_text(&target.join("config.json")).unwrap(), "second");
        assert_eq!(names_in(folder.path()).unwrap(), ["sft"]);
    }

    #[test]
    fn recovery_puts_back_what_was_replaced_but_not_succeeded() {
        let folder = scratch();
        for name in [".a.replaced", ".b.replaced", "b", ".c.partial", ".d.removed", "e"] {
            create_folder(&folder.path().join(name)).unwrap();
        }
        write_atomic(&folder.path().join(".f.12.partial"), "").unwrap();
        let cleared = recover(folder.path()).unwrap();
        assert_eq!(cleared.len(), 5);
        assert_eq!(names_in(folder.path()).unwrap(), ["a", "b", "e"]);
    }

    #[test]
    fn the_digest_is_that_of_sha256sum() {
        let folder = scratch();
        let path = folder.path().join("abc");
        write_atomic(&path, "abc").unwrap();
        assert_eq!(
            sha256_of_file(&path).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
