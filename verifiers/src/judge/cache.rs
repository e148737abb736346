//! Answers of judges that were paid for once, kept by what was asked.
//!
//! An answer is a file of its own, named by the hash of address and request: `ab/ab12….json`. It appears
//! whole or not at all (written beside its place, then renamed), so any number of runs may share a
//! folder. A file that cannot be read counts as absent and is written anew. To forget everything,
//! delete the folder.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A folder of answers.
pub(super) struct Cache {
    folder: PathBuf,
}

/// What an answer is kept under.
pub(super) struct Key(String);

/// What a judge said.
#[derive(Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Answer {
    /// Which judge; for a person who looks.
    pub model: String,
    /// What it said, whole: how its score is read may change.
    pub text: String,
}

impl Key {
    /// The key of a request to an address.
    pub(super) fn of(url: &str, request: &[u8]) -> Self {
        let mut hash = Sha256::new();
        // An address has no line break, so nothing of it can pass for a part of the request.
        hash.update(url.as_bytes());
        hash.update(b"\n");
        hash.update(request);
        Self(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl Cache {
    /// The answers in a folder, which is made when it is needed.
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Makes the folder and sees that files can be made in it.
    ///
    /// # Errors
    /// If it cannot.
    pub(super) fn create(&self) -> Result<(), String> {
        fs::create_dir_all(&self.folder)
            .and_then(|()| tempfile::NamedTempFile::new_in(&self.folder))
            .map(|_| ())
            .map_err(|error| format!("no cache in {}: {error}", self.folder.display()))
    }

    /// The answer kept under a key.
    pub(super) fn get(&self, key: &Key) -> Option<Answer> {
        serde_json::from_slice(&fs::read(self.path(key)).ok()?).ok()
    }

    /// Keeps an answer.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn put(&self, key: &Key, answer: &Answer) -> std::io::Result<()> {
        let path = self.path(key);
        let folder = path.parent().unwrap_or(Path::new(""));
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec(answer)?)?;
        file.persist(&path)?;
        Ok(())
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.folder.join(&key.0[..2]).join(format!("{}.json", key.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_kept_by_address_and_request() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::new(folder.path().join("answers"));
        cache.create().expect("the folder can be made");
        let key = Key::of("http://a", b"one");
        let answer = Answer { model: "m".to_owned(), text: "Score: 1".to_owned() };
        assert_eq!(cache.get(&key), None);
        cache.put(&key, &answer).expect("written");
        assert_eq!(cache.get(&key), Some(answer));
        assert_eq!(cache.get(&Key::of("http://b", b"one")), None);
        assert_eq!(cache.get(&Key::of("http://a", b"two")), None);
        fs::write(cache.path(&key), "{\"model\":").expect("damaged");
        assert_eq!(cache.get(&key), None);
    }

    #[test]
    fn a_folder_that_cannot_be_is_told() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let problem = Cache::new(file.path().join("below")).create().expect_err("it is a file");
        assert!(problem.contains(&file.path().display().to_string()), "{problem}");
    }
}
