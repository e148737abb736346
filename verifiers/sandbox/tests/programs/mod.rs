//! Programs in folders beside the tests, and what they are judged by.

use std::{fs, path::Path};

use tallow_sandbox::{Asserts, Job, Limits, Tests};

pub const LIMITS: Limits = Limits {
    fuel_millions: 2000,
    memory_mib: 256,
    output_kib: 64,
    recursion: 1000,
    backstop_s: 120,
};

/// Names and sources of the programs in a folder.
pub fn programs(folder: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let mut programs: Vec<_> = fs::read_dir(folder)
        .expect("the programs are there")
        .map(|entry| entry.expect("the folder can be read").path())
        .map(|path| {
            let name = path.file_stem().expect("it has a name").to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).expect("the program can be read"))
        })
        .collect();
    programs.sort();
    programs
}

/// A program that should square numbers.
pub fn squares(program: &str) -> Job {
    let source = "assert f(2) == 4\nassert f(3) == 9".to_owned();
    let tests = Tests::Asserts(Asserts { source, ..Asserts::default() });
    Job { limits: LIMITS, ..Job::new(program, tests) }
}
