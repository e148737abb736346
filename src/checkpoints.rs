//! Checkpoints that survive a kill at any moment, and are trusted only after a check.
//!
//! `checkpoints/STAGE/step_NNNNNN/` holds whatever the caller wrote and a file `checksums` in the
//! format of `sha256sum` (which can check it: `sha256sum -c checksums`). The folder is written
//! under another name, brought to disk and renamed, so it is there wholly or not at all; the
//! checksums guard against what comes later: a full disk elsewhere, a torn copy, a bad sector.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::files::{self, OnPath, StoreError};

/// The name of the file that lists every other file with its digest.
pub const CHECKSUMS: &str = "checksums";

/// Begins the comment lines of `checksums` that hold sizes; `sha256sum -c` skips them.
const SIZE_MARK: &str = "# bytes ";

/// Which checkpoints stay when a new one has been written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Keep this many of the newest, at least one; `None` keeps all.
    pub keep_last: Option<usize>,
    /// Also keep those whose step is a multiple of this.
    pub keep_every: Option<u64>,
}

/// The checkpoints of one run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    retention: Retention,
}

/// One checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Updates that had been made when it was written.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
}

/// What [`Checkpoints::latest_valid`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The newest checkpoint whose checksums hold; `None` if the stage must begin anew.
    pub checkpoint: Option<Checkpoint>,
    /// One line for each newer one that had to be passed over; show them to the user.
    pub warnings: Vec<String>,
}

impl Checkpoints {
    /// The checkpoints under `folder`, which need not exist yet.
    pub fn new(folder: impl Into<PathBuf>, retention: Retention) -> Self {
        Self { folder: folder.into(), retention }
    }

    /// Removes what interrupted writes left; returns the names. Call it once at resume.
    ///
    /// # Errors
    /// If a folder cannot be read or changed.
    pub fn recover(&self) -> Result<Vec<String>, StoreError> {
        let mut cleared = files::recover(&self.folder)?;
        for stage in files::names_in(&self.folder)? {
            cleared.extend(files::recover(&self.folder.join(stage))?);
        }
        Ok(cleared)
    }

    /// Writes a checkpoint: `fill` puts its files into the folder it is given. Older ones are
    /// then removed as the retention says.
    ///
    /// # Errors
    /// What `fill` says, or that the disk cannot be written. No checkpoint is lost by it.
    pub fn save<E: From<StoreError>>(
        &self,
        stage: &str,
        step: u64,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Checkpoint, E> {
        let path = self.path(stage, step);
        files::replace_folder(&path, |staging| -> Result<(), E> {
            fill(staging)?;
            Ok(write_checksums(staging)?)
        })?;
        self.prune(stage, step)?;
        Ok(Checkpoint { step, path })
    }

    /// All checkpoints of `stage` from the oldest to the newest, sound or not.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn list(&self, stage: &str) -> Result<Vec<Checkpoint>, StoreError> {
        let folder = self.folder.join(stage);
        let mut list: Vec<Checkpoint> = files::names_in(&folder)?
            .into_iter()
            .filter_map(|name| {
                let step = name.strip_prefix("step_")?.parse().ok()?;
                Some(Checkpoint { step, path: folder.join(name) })
            })
            .collect();
        list.sort_by_key(|checkpoint| checkpoint.step);
        Ok(list)
    }

    /// The newest checkpoint of `stage` that can be trusted, and why newer ones cannot.
    ///
    /// # Errors
    /// If the folder of the stage cannot be read; a checkpoint that cannot is passed over.
    pub fn latest_valid(&self, stage: &str) -> Result<Found, StoreError> {
        let mut faults: Vec<String> = Vec::new();
        let mut checkpoint = None;
        for candidate in self.list(stage)?.into_iter().rev() {
            match check(&candidate.path) {
                Ok(()) => {
                    checkpoint = Some(candidate);
                    break;
                }
                Err(fault) => {
                    faults.push(format!("checkpoint {}: {fault}", name_of(candidate.step)));
                }
            }
        }
        let outcome = match &checkpoint {
            Some(checkpoint) => format!("falling back to {}", name_of(checkpoint.step)),
            None => format!("no sound checkpoint of stage `{stage}` is left"),
        };
        let warnings = faults.into_iter().map(|fault| format!("{fault}; {outcome}")).collect();
        Ok(Found { checkpoint, warnings })
    }

    /// The folder of the checkpoint of `stage` after `step` updates, whether it exists or not.
    pub fn path(&self, stage: &str, step: u64) -> PathBuf {
        self.folder.join(stage).join(name_of(step))
    }

    fn prune(&self, stage: &str, newest: u64) -> Result<(), StoreError> {
        let Some(keep_last) = self.retention.keep_last else { return Ok(()) };
        // Steps beyond the one just written belong to a past that was abandoned at resume;
        // they are overwritten as the run reaches them and do not count as the newest.
        let mut list = self.list(stage)?;
        list.retain(|checkpoint| checkpoint.step <= newest);
        let surplus = list.len().saturating_sub(keep_last.max(1));
        for checkpoint in &list[..surplus] {
            let every = self.retention.keep_every.filter(|every| *every > 0);
            if every.is_some_and(|every| checkpoint.step.is_multiple_of(every)) {
                continue;
            }
            files::remove_folder(&checkpoint.path)?;
        }
        Ok(())
    }
}

/// Lists every file under `folder` with size and digest in its file `checksums`.
///
/// # Errors
/// If a file cannot be read or the list not be written.
pub fn write_checksums(folder: &Path) -> Result<(), StoreError> {
    let mut text = String::new();
    for name in files::files_under(folder)? {
        if name == CHECKSUMS {
            continue;
        }
        let path = folder.join(&name);
        let bytes = fs::metadata(&path).on_path("read", &path)?.len();
        let digest = files::sha256_of_file(&path)?;
        writeln!(text, "{SIZE_MARK}{bytes}  {name}\n{digest}  {name}")
            .expect("writing to a string does not fail");
    }
    files::write_atomic(&folder.join(CHECKSUMS), text)
}

/// Compares every file of `folder` with its `checksums`.
///
/// # Errors
/// The first difference, in words: "`model.safetensors` has 1024 bytes, expected 4096".
pub fn check(folder: &Path) -> Result<(), String> {
    let text = match files::read_text(&folder.join(CHECKSUMS)) {
        Ok(text) => text,
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => {
            return Err(format!("its file `{CHECKSUMS}` is missing"));
        }
        Err(error) => return Err(error.to_string()),
    };
    let mut files_listed = 0;
    // Sizes come first: they are quick to compare, and say more than a digest that differs.
    for line in text.lines() {
        let Some((bytes, name)) =
            line.strip_prefix(SIZE_MARK).and_then(|rest| rest.split_once("  "))
        else {
            continue;
        };
        let found = match fs::metadata(folder.join(name)) {
            Ok(metadata) => metadata.len(),
            Err(_) => return Err(format!("`{name}` is missing")),
        };
        if bytes != found.to_string() {
            return Err(format!("`{name}` has {found} bytes, expected {bytes}"));
        }
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((digest, name)) = line.split_once("  ").filter(|(digest, _)| digest.len() == 64)
        else {
            return Err(format!("its file `{CHECKSUMS}` is damaged"));
        };
        files_listed += 1;
        let found = files::sha256_of_file(&folder.join(name)).map_err(|error| error.to_string())?;
        if found != digest {
            return Err(format!(
                "`{name}` is damaged: its SHA-256 begins with {}, expected {}",
                &found[..12],
                digest.get(..12).unwrap_or(digest)
            ));
        }
    }
    if files_listed == 0 || !text.ends_with('\n') {
        return Err(format!("its file `{CHECKSUMS}` is damaged"));
    }
    Ok(())
}

fn name_of(step: u64) -> String {
    format!("step_{step:06}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: &str = "model.safetensors";

    struct Scene {
        folder: tempfile::TempDir,
        checkpoints: Checkpoints,
    }

    impl Scene {
        fn new(retention: Retention) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let checkpoints = Checkpoints::new(folder.path().join("checkpoints"), retention);
            Self { folder, checkpoints }
        }

        fn with_steps(steps: &[u64]) -> Self {
            let scene = Self::new(Retention::default());
            for step in steps {
                scene.save(*step);
            }
            scene
        }

        fn save(&self, step: u64) {
            let saved: Result<_, StoreError> = self.checkpoints.save("rl", step, |staging| {
                fs::write(staging.join(MODEL), vec![step as u8; 4096]).on_path("write", staging)?;
                files::create_folder(&staging.join("optimizer"))?;
                files::write_atomic(&staging.join("optimizer/state.bin"), step.to_string())
            });
            saved.unwrap();
        }

        fn file(&self, step: u64, name: &str) -> PathBuf {
            self.checkpoints.path("rl", step).join(name)
        }

        fn steps(&self) -> Vec<u64> {
            let list = self.checkpoints.list("rl").unwrap();
            list.iter().map(|checkpoint| checkpoint.step).collect()
        }

        fn check_latest(&self, step: Option<u64>, warnings: &[&str]) {
            let found = self.checkpoints.latest_valid("rl").unwrap();
            assert_eq!(found.checkpoint.map(|checkpoint| checkpoint.step), step);
            assert_eq!(found.warnings, warnings);
        }
    }

    #[test]
    fn the_newest_sound_checkpoint_is_taken_without_a_word() {
        Scene::with_steps(&[30, 40]).check_latest(Some(40), &[]);
        Scene::with_steps(&[]).check_latest(None, &[]);
        Scene::with_steps(&[9, 1_000_000, 999_999]).check_latest(Some(1_000_000), &[]);
    }

    #[test]
    fn a_truncated_file_is_named_with_both_sizes() {
        let scene = Scene::with_steps(&[30, 40]);
        fs::write(scene.file(40, MODEL), vec![40; 1024]).unwrap();
        scene.check_latest(
            Some(30),
            &["checkpoint step_000040: `model.safetensors` has 1024 bytes, expected 4096; \
               falling back to step_000030"],
        );
    }

    #[test]
    fn a_changed_byte_is_found() {
        let scene = Scene::with_steps(&[30, 40]);
        let mut bytes = fs::read(scene.file(40, MODEL)).unwrap();
        bytes[2000] ^= 1;
        fs::write(scene.file(40, MODEL), bytes).unwrap();
        let found = scene.checkpoints.latest_valid("rl").unwrap();
        assert_eq!(found.checkpoint.unwrap().step, 30);
        assert!(found.warnings[0].contains("`model.safetensors` is damaged: its SHA-256 begins"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let scene = Scene::with_steps(&[30, 40]);
        fs::remove_file(scene.file(40, "optimizer/state.bin")).unwrap();
        scene.check_latest(
            Some(30),
            &["checkpoint step_000040: `optimizer/state.bin` is missing; \
               falling back to step_000030"],
        );
    }

    #[test]
    fn missing_empty_and_torn_checksums_are_not_trusted() {
        let scene = Scene::with_steps(&[10, 20, 30]);
        fs::write(scene.file(10, CHECKSUMS), "").unwrap();
        let text = fs::read_to_string(scene.file(20, CHECKSUMS)).unwrap();
        fs::write(scene.file(20, CHECKSUMS), &text[..text.len() - 1]).unwrap();
        fs::remove_file(scene.file(30, CHECKSUMS)).unwrap();
        let end = "no sound checkpoint of stage `rl` is left";
        scene.check_latest(
            None,
            &[
                &format!("checkpoint step_000030: its file `checksums` is missing; {end}"),
                &format!("checkpoint step_000020: its file `checksums` is damaged; {end}"),
                &format!("checkpoint step_000010: its file `checksums` is damaged; {end}"),
            ],
        );
    }

    #[test]
    fn what_a_killed_write_left_is_never_taken_and_is_removed() {
        let scene = Scene::with_steps(&[30]);
        let stage = scene.folder.path().join("checkpoints/rl");
        fs::create_dir(stage.join(".step_000040.partial")).unwrap();
        fs::write(stage.join(".step_000040.partial").join(MODEL), "half").unwrap();
        scene.check_latest(Some(30), &[]);
        assert_eq!(scene.checkpoints.recover().unwrap(), [".step_000040.partial"]);
        assert_eq!(files::names_in(&stage).unwrap(), ["step_000030"]);
        scene.save(40);
        scene.check_latest(Some(40), &[]);
    }

    #[test]
    fn a_kill_between_the_two_renames_gives_the_old_one_back() {
        let scene = Scene::with_steps(&[30, 40]);
        let stage = scene.folder.path().join("checkpoints/rl");
        fs::rename(stage.join("step_000040"), stage.join(".step_000040.replaced")).unwrap();
        fs::create_dir(stage.join(".step_000040.partial")).unwrap();
        scene.checkpoints.recover().unwrap();
        scene.check_latest(Some(40), &[]);
    }

    #[test]
    fn a_failed_save_keeps_the_old_one() {
        let scene = Scene::with_steps(&[40]);
        let failed: Result<_, StoreError> = scene.checkpoints.save("rl", 40, |staging| {
            files::write_atomic(&staging.join(MODEL), "half")?;
            Err(StoreError::malformed(staging, "stop"))
        });
        failed.unwrap_err();
        scene.check_latest(Some(40), &[]);
        assert_eq!(fs::read(scene.file(40, MODEL)).unwrap().len(), 4096);
    }

    #[test]
    fn a_damaged_checkpoint_can_be_written_again() {
        let scene = Scene::with_steps(&[40]);
        fs::write(scene.file(40, MODEL), "x").unwrap();
        scene.save(40);
        scene.check_latest(Some(40), &[]);
    }

    #[test]
    fn pruning_keeps_the_last_and_every_nth() {
        let retention = Retention { keep_last: Some(2), keep_every: Some(30) };
        let scene = Scene::new(retention);
        for step in [10, 20, 30, 40, 50] {
            scene.save(step);
        }
        assert_eq!(scene.steps(), [30, 40, 50]);
    }

    #[test]
    fn pruning_never_removes_what_was_just_written() {
        let scene = Scene::with_steps(&[10, 20, 90]);
        let retention = Retention { keep_last: Some(0), keep_every: None };
        let scene = Scene {
            checkpoints: Checkpoints::new(scene.folder.path().join("checkpoints"), retention),
            ..scene
        };
        scene.save(30);
        assert_eq!(scene.steps(), [30, 90]);
    }
}
