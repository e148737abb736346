//! The compiled sandbox in the user's cache: killed while it is made, wanted by two processes at
//! once, damaged, open to others, on a full disk, in a folder that cannot be.
#![cfg(feature = "sandbox")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use support::{Mounted, Scene, skipped, text};

const CASES: &str =
    r#"{"id": 1, "program": "def f(x): return x * x", "tests": {"asserts": "assert f(2) == 4"}}"#;
const RIGHT: &str = r#""verdict":true"#;

/// `tallow verify python` with its cache in `cache`.
fn verify(scene: &Scene, cache: &Path) -> Command {
    let mut command = scene.tallow(["verify", "python", "--cases", "cases.jsonl"]);
    command.env("TALLOW_CACHE", cache);
    command
}

/// The verdict and what was told.
fn ended(child: Child) -> (bool, String) {
    let output = child.wait_with_output().expect("it ends");
    (text(&output.stdout).contains(RIGHT), text(&output.stderr))
}

fn code_in(cache: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(cache).expect("the cache is a folder");
    let mut paths: Vec<PathBuf> = entries.map(|it| it.expect("an entry").path()).collect();
    paths.retain(|it| it.extension().is_some_and(|it| it == "cwasm"));
    paths
}

#[test]
fn the_cache_survives_what_happens_to_it() {
    let scene = Scene::new();
    scene.write("cases.jsonl", CASES);
    let cache = scene.path("cache");
    let run = || ended(verify(&scene, &cache).spawn().expect("the binary starts"));

    let mut killed = verify(&scene, &cache).spawn().expect("the binary starts");
    std::thread::sleep(Duration::from_millis(1500));
    killed.kill().expect("it is still compiling");
    killed.wait().expect("it ends");
    assert!(code_in(&cache).is_empty(), "half a file is no file");

    let both = [(), ()].map(|()| verify(&scene, &cache).spawn().expect("the binary starts"));
    let told = both.map(ended);
    assert!(told.iter().all(|it| it.0), "{told:?}");
    assert_eq!(told.iter().filter(|it| it.1.contains("compiling")).count(), 1, "{told:?}");
    let [file] = &code_in(&cache)[..] else { panic!("one file") };
    assert_eq!(run(), (true, String::new()), "a warm start compiles nothing");

    // Others could have written it: it is not loaded, even if its content is right.
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o666)).expect("our file");
    let (right, told) = run();
    assert!(right && told.contains("compiling"), "{told}");

    let [file] = &code_in(&cache)[..] else { panic!("one file") };
    let mut content = std::fs::read(file).expect("our file");
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(file, content).expect("our file");
    let (right, told) = run();
    assert!(right && told.contains("compiling"), "{told}");
    assert_eq!(run(), (true, String::new()));
}

#[test]
fn without_a_cache_it_works_and_says_so() {
    let scene = Scene::new();
    scene.write("cases.jsonl", CASES);
    let told = ended(verify(&scene, Path::new("cases.jsonl/x")).spawn().expect("it starts"));
    assert!(told.0 && told.1.contains("cannot be kept in cases.jsonl/x"), "{told:?}");
    assert!(told.1.contains("TALLOW_CACHE"), "{told:?}");

    let disk = scene.path("disk");
    let Some(_mounted) = Mounted::new(&disk, "size=1m") else {
        skipped("this process may not mount a file system");
        return;
    };
    let told = ended(verify(&scene, &disk).spawn().expect("it starts"));
    assert!(told.0 && told.1.contains("cannot be kept in"), "{told:?}");
    assert!(code_in(&disk).is_empty(), "half a file is no file");
}
